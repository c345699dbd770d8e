"""A transformer over image patches: adaptive normalisation from noise level and label, gates that start at zero."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning


class Block(nn.Module):
    """``h + g ⊙ f((1 + a) ⊙ norm(h) + b)`` for attention and then for a perceptron; a, b, g from the embedding."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        """Build the block; its modulation starts at zero, so that the block starts as the identity."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """``(N, T, width)`` and ``(N, width)`` to ``(N, T, width)``."""
        a1, b1, g1, a2, b2, g2 = self.modulation(embedding)[:, None].chunk(6, 2)
        h = h + g1 * self._attend(torch.addcmul(b1, self.norm1(h), 1 + a1))
        inner = nn.functional.gelu(self.widen(torch.addcmul(b2, self.norm2(h), 1 + a2)), approximate="tanh")
        return h + g2 * self.narrow(inner)

    def _attend(self, h: Tensor) -> Tensor:
        """Attention in matrix products: the fused kernels have no second derivative."""
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class DiT(nn.Module):
    """Image to image of the same shape, ``(N, C, H, W)``, by attention over patches.

    Args:
        channels: image channels C.
        size: height and width, one number where they are equal.
        patch: side of a patch, a divisor of both; (size / patch)² tokens.
        width: features per token; a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        expansion: hidden features of the blocks' perceptrons, in widths.
        num_classes: number of labels; None for networks without labels.

    Source: W. Peebles, S. Xie (2023), Scalable diffusion models with transformers (adaLN-Zero).

    Example:
        >>> import torch
        >>> DiT(1, size=8, patch=2, width=16, depth=1, num_classes=10)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    scalar = False
    positions: Tensor

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 8,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        num_classes: int | None = None,
    ) -> None:
        """Build the layers; the last one starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        height, breadth = (size, size) if isinstance(size, int) else (int(s) for s in size)
        if patch < 1 or height % patch or breadth % patch:
            raise ValueError(f"patch divides height and width, got patch={patch} for {height} by {breadth}")
        if width % heads or width % 4:
            raise ValueError(f"width is a multiple of 4 and of heads, got width={width} and heads={heads}")
        if depth < 1:
            raise ValueError(f"depth is at least 1, got {depth}")
        self.num_classes = num_classes
        self.shape, self.patch = (channels, height, breadth), patch
        self.conditioning = Conditioning(width, num_classes)
        self.first = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", waves(height // patch, breadth // patch, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, channels * patch * patch)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, C, H, W)``, ``c_noise`` and ``label`` of shape ``(N,)``."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this network was built for images {self.shape}, got {tuple(x.shape[1:])}")
        embedding = self.conditioning(c_noise, label)
        h = self.first(x).flatten(2).mT + self.positions
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, 2)
        return self._unpatch(self.last(torch.addcmul(shift, self.norm(h), 1 + scale)))

    def _unpatch(self, h: Tensor) -> Tensor:
        """``(N, T, C · patch²)`` to ``(N, C, H, W)``."""
        channels, height, breadth = self.shape
        p = self.patch
        grid = h.reshape(len(h), height // p, breadth // p, channels, p, p)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(h), channels, height, breadth)


def waves(rows: int, columns: int, width: int) -> Tensor:
    """Fixed sine and cosine features of a token's row and column, ``(rows · columns, width)``."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    down, across = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (down, across)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
