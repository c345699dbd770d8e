"""Networks for static energies: ``net(x, label=None) -> (N, 1)``, smooth everywhere, zero before training."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import LabelEmbedding


class EnergyMLP(nn.Module):
    """``h ← h + silu((1 + a) ⊙ W h + b)`` with a, b from the label, then one number.

    SiLU has derivatives of every order, so that scores and their traces exist; the network grows linearly at infinity,
    slower than the energy of a Gaussian base.

    Args:
        dim: D, size of the vectors.
        hidden: width of the layers.
        depth: number of residual layers.
        num_classes: number of labels; None for networks without labels.
        width: size of the label embedding.

    Example:
        >>> import torch
        >>> EnergyMLP(2, hidden=8)(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    scalar = True

    def __init__(
        self, dim: int, hidden: int = 128, depth: int = 3, num_classes: int | None = None, width: int = 32
    ) -> None:
        """Build the layers; the last one starts at zero, so that training starts from the base."""
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Linear(dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.label = None if num_classes is None else LabelEmbedding(num_classes, width)
        self.modulation = None if num_classes is None else nn.Linear(width, 2 * hidden * depth)
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, D)``, ``label`` long ``(N,)`` or None, to ``(N, 1)``."""
        if x.ndim != 2 or x.shape[1] != self.first.in_features:
            raise ValueError(
                f"EnergyMLP({self.first.in_features}) takes vectors (N, {self.first.in_features}), got "
                f"{tuple(x.shape)}; use EnergyConv for images, or flatten them"
            )
        h = self.first(x)
        parts = _modulation(self, label)
        for i, layer in enumerate(self.layers):
            inner = layer(h)
            if parts is not None:
                inner = torch.addcmul(parts[2 * i + 1], inner, 1 + parts[2 * i])
            h = h + nn.functional.silu(inner)
        return self.last(h)


class EnergyConv(nn.Module):
    """A convolutional energy for small images: residual stages, halved by strided convolutions, without normalisation.

    Statistics over a batch or an image would tie pixels or rows together and roughen the energy; the last layer reads
    every position of the coarsest stage.

    Args:
        channels: image channels C.
        hidden: features per resolution, finest first; each further entry halves height and width.
        size: height and width of the images.
        num_classes: number of labels; None for networks without labels.
        width: size of the label embedding.

    Example:
        >>> import torch
        >>> EnergyConv(1, hidden=(8, 16), num_classes=10)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 1])
    """

    scalar = True

    def __init__(
        self,
        channels: int = 1,
        hidden: Sequence[int] = (32, 64, 128),
        size: int = 8,
        num_classes: int | None = None,
        width: int = 32,
    ) -> None:
        """Build the stages; the last layer starts at zero, so that training starts from the base."""
        super().__init__()
        factor = 2 ** (len(hidden) - 1)
        if size % factor:
            raise ValueError(f"size must be a multiple of {factor} for {len(hidden)} resolutions, got {size}")
        self.num_classes = num_classes
        self.first = nn.Conv2d(channels, hidden[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in hidden)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(hidden))
        self.label = None if num_classes is None else LabelEmbedding(num_classes, width)
        self.modulation = None if num_classes is None else nn.Linear(width, 2 * sum(hidden))
        self.sizes = [c for c in hidden for _ in range(2)]
        self.mix = nn.Linear(hidden[-1] * (size // factor) ** 2, hidden[-1])
        self.last = nn.Linear(hidden[-1], 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, C, H, W)`` and long ``(N,)`` or None, to ``(N, 1)``."""
        parts = _modulation(self, label, self.sizes)
        h = self.first(x)
        for i, block in enumerate(self.blocks):
            inner = block(nn.functional.silu(h))
            if parts is not None:
                scale, shift = (part[:, :, None, None] for part in parts[2 * i : 2 * i + 2])
                inner = torch.addcmul(shift, inner, 1 + scale)
            h = h + nn.functional.silu(inner)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        return self.last(nn.functional.silu(self.mix(h.flatten(1))))


def _modulation(
    net: EnergyMLP | EnergyConv, label: Tensor | None, sizes: Sequence[int] = ()
) -> Sequence[Tensor] | None:
    """Scales and shifts from the label, ``(N, ·)`` or ``(1, ·)`` each; None for networks without labels."""
    if net.modulation is None or net.label is None:
        if label is not None:
            raise TypeError("this network was built without classes and got labels; build it with num_classes=")
        return None
    modulation = net.modulation(nn.functional.silu(net.label(label)))
    return modulation.split(list(sizes), 1) if sizes else modulation.chunk(2 * len(net.layers), 1)  # pyright: ignore[reportArgumentType]
