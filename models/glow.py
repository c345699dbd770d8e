"""Glow: an invertible network for images, from coarse to fine, with exact log-density and exact draws."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.models.invertible import Invertible, Map
from boltzmix.models.nets.invertible import ActNorm, AffineCoupling, InvertibleConv, LabelAffine, squeeze, unsqueeze
from boltzmix.models.nets.units import Units


class Glow(Invertible):
    r"""Levels of squeeze, steps of (actnorm, invertible 1×1 convolution, affine coupling), and a split.

    .. math:: \log p(x \mid c) = \log N(z; 0, I) + \sum_{\text{layers}} \log|\det|

    At a split half of the channels leave as latents. Their prior, a Gaussian with mean and scale from the half that
    stays, is written as one more affine coupling, and the Gaussian of the last level, whose mean and scale depend on
    the label, as an affine map. So z is standard normal and has as many numbers as x. All log-scales are bounded
    smoothly, the map is the identity up to rotations before training, and derivatives of every order exist.

    ``fit`` initialises actnorm by its first batch (:meth:`prepare`); without that it starts as the identity.

    Args:
        event_shape: (C, H, W), H and W multiples of 2^levels.
        levels: number of squeezes; there is one split less.
        steps: steps in each level.
        hidden: channels of the coupling networks.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        bound: largest \|log-scale\| of one coupling.
        dropout: probability with which a label is hidden in training.
        loc, scale, bounds, margin: the model's units; see :class:`~boltzmix.models.nets.units.Units`.

    Raises:
        ValueError: sizes that cannot be squeezed, or numbers out of range.

    Source: D. P. Kingma, P. Dhariwal (2018), Glow: generative flow with invertible 1×1 convolutions.

    Example:
        >>> import torch
        >>> glow = Glow((1, 4, 4), levels=2, steps=1, hidden=8, num_classes=3, bounds=(-1, 1))
        >>> glow.given(label=1).log_prob(torch.zeros(5, 1, 4, 4)).shape, glow.sample(4).shape
        (torch.Size([5]), torch.Size([4, 1, 4, 4]))
    """

    core: "GlowMap"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        levels: int = 2,
        steps: int = 4,
        hidden: int = 64,
        num_classes: int | None = None,
        bound: float = 2.0,
        dropout: float = 0.1,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        margin: float = 0.05,
    ) -> None:
        """Check the arguments and build the layers."""
        super().__init__()
        shape = self._declare(event_shape, num_classes, dropout)
        for name, value in {"levels": levels, "steps": steps, "hidden": hidden}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is a positive int, got {value!r}")
        if len(shape) != 3 or any(size % 2**levels for size in shape[1:]):
            raise ValueError(
                f"event_shape is (C, H, W) with H and W multiples of 2**levels = {2**levels}, got {shape}; pad the "
                "images, or take fewer levels"
            )
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is the largest |log-scale|, a number > 0; got {bound!r}")
        options: Any = {"hidden": hidden, "num_classes": num_classes, "bound": bound}
        units = Units(shape, loc=loc, scale=scale, bounds=bounds, margin=margin)
        self.core = GlowMap(units, shape, levels, steps, options)


class GlowMap(Map):
    """The layers of Glow."""

    def __init__(self, units: Units, shape: tuple[int, ...], levels: int, steps: int, options: dict[str, Any]) -> None:
        """Build the levels."""
        super().__init__(units)
        channels, height, width = shape
        self.levels = nn.ModuleList()
        self.splits = nn.ModuleList()
        self.left: list[tuple[int, int, int]] = []  # shapes of the latents that leave, level by level
        for level in range(levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers: list[nn.Module] = []
            for _ in range(steps):
                layers += [ActNorm(channels), InvertibleConv(channels), AffineCoupling(channels, **options)]
            self.levels.append(nn.ModuleList(layers))
            if level < levels - 1:
                self.splits.append(AffineCoupling(channels, **options))
                self.left.append((channels - channels // 2, height, width))
                channels //= 2
        self.left.append((channels, height, width))
        self.top = LabelAffine(channels, options["num_classes"], options["bound"])

    def forward(self, u: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and the log-determinant."""
        return self._forward(u, label, False)

    @torch.no_grad()
    def initialise(self, u: Tensor, label: Tensor | None) -> None:
        """Actnorm layer after actnorm layer, each by what the ones before make of the batch."""
        self._forward(u, label, True)

    def _forward(self, h: Tensor, label: Tensor | None, initialise: bool) -> tuple[Tensor, Tensor]:
        total = h.new_zeros(h.shape[0])
        latents = []
        for i, layers in enumerate(self.levels):
            h = squeeze(h)
            for layer in layers:  # pyright: ignore[reportGeneralTypeIssues]
                if initialise and isinstance(layer, ActNorm):
                    layer.initialise(h)
                h, gain = layer(h, label)
                total = total + gain
            if i < len(self.splits):
                split: Any = self.splits[i]
                h, gain = split(h, label)
                total = total + gain
                h, z = split.split(h)
                latents.append(z)
        h, gain = self.top(h, label)
        latents.append(h)
        return torch.cat([z.flatten(1) for z in latents], 1), total + gain

    def inverse(self, z: Tensor, label: Tensor | None) -> Tensor:
        """u."""
        parts = z.split([math.prod(shape) for shape in self.left], 1)
        latents = [part.unflatten(1, shape) for part, shape in zip(parts, self.left, strict=True)]
        h = self.top.inverse(latents[-1], label)
        for i in reversed(range(len(self.levels))):
            if i < len(self.splits):
                split: Any = self.splits[i]
                h = split.inverse(torch.cat([h, latents[i]], 1), label)
            layers: Any = self.levels[i]
            for layer in reversed(layers):
                h = layer.inverse(h, label)
            h = unsqueeze(h)
        return h
