r"""PixelCNN with a vertical and a horizontal stack: masked convolutions without a blind spot.

The vertical stack sees whole rows up to the current one and is handed down one row, so that at pixel (r, c) the
horizontal stack receives rows above r; it adds what is to the left of c in row r and, at the pixel itself, the
channels before the one that is predicted. A single stack of masked convolutions instead misses a wedge to
the upper right.

At the pixel itself features belong to channels: features of channel i feed those of channel j when i < j (mask *A*, the
first layer) or i ≤ j (mask *B*, all others). Every layer is gated, :math:`\tanh(a) \odot \sigma(b)`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from boltzmix.models.nets.embedding import LabelEmbedding
from boltzmix.models.nets.values import ValueEmbedding, check_sizes, label_bias


class MaskedConv(nn.Conv2d):
    """``1 × k`` convolution over the pixel and those left of it; features at the pixel itself are masked by channel.

    Args:
        inputs, features: numbers of features, in ``copies`` blocks of ``groups`` equal groups, one for each channel.
        kernel: k, the pixel itself included.
        groups: image channels.
        mask: ``"A"`` hides the own channel, ``"B"`` shows it.
        copies: blocks among the output features: 2 for the two halves of a gate.
    """

    mask: Tensor

    def __init__(
        self, inputs: int, features: int, kernel: int, groups: int, mask: Literal["A", "B"], copies: int = 1
    ) -> None:
        """Build the mask."""
        super().__init__(inputs, features, (1, kernel))
        source = torch.arange(inputs) * groups // inputs
        block = features // copies
        target = torch.arange(features) % block * groups // block
        shown = torch.ones(features, inputs, 1, kernel)
        centre = source[None, :] < target[:, None] if mask == "A" else source[None, :] <= target[:, None]
        shown[:, :, 0, -1] = centre.float()
        self.register_buffer("mask", shown, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """``(N, inputs, H, W)`` to ``(N, features, H, W)``."""
        left = pad(input, (self.kernel_size[1] - 1, 0, 0, 0))
        return nn.functional.conv2d(left, self.weight * self.mask, self.bias)


class GatedLayer(nn.Module):
    """One layer of both stacks."""

    def __init__(
        self, inputs: int, hidden: int, kernel: int, groups: int, mask: Literal["A", "B"], width: int | None
    ) -> None:
        """Build the layer; the first one (mask A) has no residual path."""
        super().__init__()
        self.residual = mask == "B"
        self.reach = kernel // 2
        self.vertical = nn.Conv2d(inputs, 2 * hidden, (self.reach + 1, kernel))
        self.link = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        self.horizontal = MaskedConv(inputs, 2 * hidden, self.reach + 1, groups, mask, copies=2)
        self.project = MaskedConv(hidden, hidden, 1, groups, "B")
        self.modulation = None if width is None else nn.Linear(width, 4 * hidden, bias=False)

    def forward(self, v: Tensor, h: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal features ``(N, ·, H, W)`` to ``(N, hidden, H, W)`` each."""
        a = self.vertical(pad(v, (self.reach, self.reach, self.reach, 0)))
        b = self.horizontal(h) + self.link(_down(a))
        if self.modulation is not None:
            for_a, for_b = self.modulation(bias)[:, :, None, None].chunk(2, 1)
            a, b = a + for_a, b + for_b
        a, b = _gate(a), self.project(_gate(b))
        return (v + a, h + b) if self.residual else (a, b)


class PixelCNN(nn.Module):
    """``(N, C, H, W)`` values to ``(N, C, H, W, outputs)``: each depends on the values before it in raster order.

    Raster order: row by row, the channels of a pixel one after the other.

    Args:
        channels: image channels C.
        outputs: numbers put out for each value: K logits for K levels, 3·M for a mixture of M logistics.
        levels: number of levels of long inputs; None for reals.
        hidden: features of each stack, a multiple of C.
        layers: gated layers after the first one.
        kernel: size of their convolutions, odd.
        first: size of the first layer's, odd.
        num_classes: number of labels; None for networks without labels.

    Every value before is seen once ``first // 2 + layers · (kernel // 2)`` reaches the longer side less one.

    Raises:
        ValueError: sizes that are not positive ints, even kernels, or hidden features that the channels do not divide.

    Source: A. van den Oord et al. (2016), Conditional image generation with PixelCNN decoders.

    Example:
        >>> import torch
        >>> PixelCNN(1, 17, levels=17, hidden=8, layers=1)(torch.zeros(2, 1, 8, 8, dtype=torch.long)).shape
        torch.Size([2, 1, 8, 8, 17])
    """

    layout = "image"

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        levels: int | None = None,
        hidden: int = 48,
        layers: int = 4,
        kernel: int = 3,
        first: int = 7,
        num_classes: int | None = None,
    ) -> None:
        """Build the layers; the last one starts at zero."""
        super().__init__()
        check_sizes(channels=channels, outputs=outputs, hidden=hidden, layers=layers, kernel=kernel, first=first)
        if hidden % channels:
            raise ValueError(f"hidden is a multiple of the {channels} channels, got {hidden}")
        if kernel % 2 == 0 or first % 2 == 0:
            raise ValueError(f"kernel and first are odd, got {kernel} and {first}")
        self.channels, self.outputs, self.levels, self.num_classes = channels, outputs, levels, num_classes
        width = 16
        self.values = ValueEmbedding(levels, width)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden)
        embedded = None if num_classes is None else hidden
        self.first = GatedLayer(channels * width, hidden, first, channels, "A", embedded)
        # Where a pixel is, which convolutions can tell from the border only: known beforehand, so no mask.
        self.place = nn.Conv2d(4, 2 * hidden, 1)
        self.layers = nn.ModuleList(GatedLayer(hidden, hidden, kernel, channels, "B", embedded) for _ in range(layers))
        self.middle = MaskedConv(hidden, hidden, 1, channels, "B")
        self.last = MaskedConv(hidden, channels * outputs, 1, channels, "B")
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, C, H, W)`` values and ``(N,)`` labels or None to ``(N, C, H, W, outputs)``."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"this network takes (N, {self.channels}, H, W), got {tuple(x.shape)}")
        embedded = self.values(x).movedim(-1, 2).flatten(1, 2)
        bias = label_bias(self.label, label)
        v, h = self.first(embedded, embedded, bias)
        for_v, for_h = self.place(_places(h)).chunk(2, 1)
        v, h = v + for_v, h + for_h
        for layer in self.layers:
            v, h = layer(v, h, bias)
        out = self.last(silu(self.middle(silu(h))))
        return out.unflatten(1, (self.channels, self.outputs)).movedim(2, -1)


def _gate(a: Tensor) -> Tensor:
    wave, gate = a.chunk(2, 1)
    return wave.tanh() * gate.sigmoid()


def _down(a: Tensor) -> Tensor:
    """Row r − 1 in the place of row r."""
    return pad(a, (0, 0, 1, 0))[:, :, :-1]


def _places(like: Tensor) -> Tensor:
    """Row and column in [−1, 1] and their squares, ``(1, 4, H, W)``."""
    rows, columns = (
        torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device) if side > 1 else like.new_zeros(1)
        for side in like.shape[2:]
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([grid, grid**2])[None]
