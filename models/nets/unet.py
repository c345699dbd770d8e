"""A small U-Net for images: GroupNorm, SiLU, additive skips, modulated by noise level and label."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning


def norm_groups(channels: int) -> int:
    """How many groups of equal size a GroupNorm makes of channels: 8, or the next power of two that divides them."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0)


class ResidualBlock(nn.Module):
    """``h + conv(silu((1 + a) ⊙ norm(conv(silu(norm h))) + b))`` with a, b from the embedding."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        """Build the block; its last convolution starts at zero."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """``(N, C, H, W)`` and ``(N, width)`` to ``(N, C, H, W)``."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        inner = self.norm2(self.conv1(nn.functional.silu(self.norm1(h))))
        return h + self.conv2(nn.functional.silu(torch.addcmul(shift, inner, 1 + scale)))


class Attention(nn.Module):
    """Self-attention over pixels, written with matrix products so that it can be differentiated twice."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        """Build the block; its last projection starts at zero."""
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide the channels, got {heads} heads for {channels} channels")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.project = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)

    def forward(self, h: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H, W)``."""
        n, c = h.shape[:2]
        qkv = self.qkv(self.norm(h).flatten(2)).reshape(n, 3, self.heads, c // self.heads, -1)
        q, k, v = qkv.unbind(1)
        weights = torch.softmax(q.mT @ k / q.shape[2] ** 0.5, -1)
        mixed = (v @ weights.mT).reshape(n, c, -1)
        return h + self.project(mixed).reshape(h.shape)


class UNet(nn.Module):
    """Image to image of the same shape, ``(N, C, H, W)``.

    Args:
        channels: image channels C.
        hidden: features per resolution, finest first; each further entry halves height and width.
        blocks: residual blocks per resolution on the way down (and as many on the way up).
        attention: True for self-attention over the pixels of the coarsest resolution, or the resolutions that have it
            as indices into ``hidden``: (1, 2) for the second and third, on the way down and on the way up.
        heads: attention heads.
        num_classes: number of labels; None for networks without labels.

    Example:
        >>> import torch
        >>> UNet(1, hidden=(8, 16), num_classes=10)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    scalar = False

    def __init__(
        self,
        channels: int = 1,
        hidden: Sequence[int] = (32, 64),
        blocks: int = 1,
        attention: bool | Sequence[int] = False,
        heads: int = 4,
        num_classes: int | None = None,
    ) -> None:
        """Build the two paths; the last convolution starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        self.num_classes = num_classes
        groups = [norm_groups(c) for c in hidden]
        width = 4 * hidden[0]
        self.factor = 2 ** (len(hidden) - 1)
        self.conditioning = Conditioning(width, num_classes)
        self.first = nn.Conv2d(channels, hidden[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList(ResidualBlock(c, width, g) for _ in range(blocks))
            for c, g in zip(hidden, groups, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(ResidualBlock(c, width, g) for _ in range(blocks))
            for c, g in zip(hidden, groups, strict=True)
        )
        pairs = list(itertools.pairwise(hidden))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        coarsest = len(hidden) - 1
        wanted = ({coarsest} if attention else set()) if isinstance(attention, bool) else set(attention)
        if not wanted <= set(range(len(hidden))):
            raise ValueError(f"attention names resolutions 0 … {coarsest} of hidden, got {attention}")
        self.attention = Attention(hidden[-1], heads, groups[-1]) if coarsest in wanted else None
        finer = sorted(wanted - {coarsest})
        self.attend_down = nn.ModuleDict({str(i): Attention(hidden[i], heads, groups[i]) for i in finer})
        self.attend_up = nn.ModuleDict({str(i): Attention(hidden[i], heads, groups[i]) for i in finer})
        self.norm = nn.GroupNorm(groups[0], hidden[0])
        self.last = nn.Conv2d(hidden[0], channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, C, H, W)``, ``c_noise`` and ``label`` of shape ``(N,)``."""
        if x.ndim != 4 or x.shape[1] != self.first.in_channels:
            raise ValueError(
                f"UNet({self.first.in_channels}) takes images (N, {self.first.in_channels}, H, W), got {tuple(x.shape)}"
            )
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"height and width must be multiples of {self.factor}, got {tuple(x.shape[-2:])}")
        embedding = self.conditioning(c_noise, label)
        h = self.first(x)
        skips = []
        for i, level in enumerate(self.down):
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, embedding)
            if str(i) in self.attend_down:
                h = self.attend_down[str(i)](h)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        if self.attention is not None:
            h = self.attention(h)
        for i in reversed(range(len(self.up))):
            for block in self.up[i]:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, embedding)
            if str(i) in self.attend_up:
                h = self.attend_up[str(i)](h)
            if i > 0:
                h = skips[i - 1] + nn.functional.interpolate(self.grow[i - 1](h), scale_factor=2.0, mode="nearest")
        return self.last(nn.functional.silu(self.norm(h)))
