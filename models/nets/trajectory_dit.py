"""A transformer over the tokens of a trajectory: every moment sees every other, whatever their distance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning
from boltzmix.models.nets.fields import FieldEmbedding


class TokenBlock(nn.Module):
    """``h + g ⊙ f((1 + a) ⊙ norm(h) + b)`` for attention and then for a perceptron; a, b, g are handed in."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        """Build the block."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """``(N, T, width)`` and ``(N, 1, 6 width)`` to ``(N, T, width)``."""
        a1, b1, g1, a2, b2, g2 = modulation.chunk(6, 2)
        h = torch.addcmul(h, g1, self._attend(torch.addcmul(b1, self.norm1(h), 1 + a1)))
        inner = nn.functional.silu(self.widen(torch.addcmul(b2, self.norm2(h), 1 + a2)))
        return torch.addcmul(h, g2, self.narrow(inner))

    def _attend(self, h: Tensor) -> Tensor:
        """Attention in matrix products: the fused kernels have no second derivative."""
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class Places(nn.Module):
    """A map with a learned vector at every place: positions to vectors, ``(…, 2)`` to ``(…, size)``.

    Gaussian bumps on a regular grid, one spacing wide, share out a position among the vectors nearby; far outside of
    the grid nothing is left.

    Args:
        low: the grid's lower corner, in normalised units.
        high: its upper corner.
        counts: bumps along each axis.
        size: of the vectors.
    """

    grid_x: Tensor
    grid_y: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float], counts: Sequence[int], size: int) -> None:
        """Lay out the grid."""
        super().__init__()
        self.spacing = [(b - a) / (n - 1) for a, b, n in zip(low, high, counts, strict=True)]
        for name, a, b, n in zip(("grid_x", "grid_y"), low, high, counts, strict=True):
            self.register_buffer(name, torch.linspace(a, b, n), persistent=False)
        self.table = nn.Linear(counts[0] * counts[1], size, bias=False)
        nn.init.normal_(self.table.weight, std=0.3)

    def forward(self, position: Tensor) -> Tensor:
        """Vectors of positions."""
        along = [
            (-0.5 * ((position[..., i, None] - grid) / width).square()).exp()
            for i, (grid, width) in enumerate(zip((self.grid_x, self.grid_y), self.spacing, strict=True))
        ]
        return self.table((along[0][..., :, None] * along[1][..., None, :]).flatten(-2))


class TrajectoryDiT(nn.Module):
    """Trajectory to trajectory of the same length, ``(N, H, inputs)`` to ``(N, H, dim)``.

    Args:
        dim: columns of the trajectory, D.
        patch: tokens of the trajectory in one token of the transformer; H is a multiple of it.
        width: features per token; a multiple of 2 and of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        expansion: hidden features of the blocks' perceptrons, in widths.
        embedding: size of the embedding of noise level and attributes, which modulates every block.
        waves: frequencies k (per unit of the input) of further input channels sin kv and cos kv of the first D columns;
            places in a maze are hard to tell from two numbers, and easy from their waves.
        places: arguments of :class:`Places`, a map that tokens are looked up in by their first two columns, which are
            positions; None for none. For models with ``sigma_data=1``: what the noise level divides is multiplied back.
        masked: whether the input holds D more columns that say which coordinates are known (1) and which are not (0).
        fields: attributes that a row of numbers says, see :class:`~boltzmix.models.nets.fields.FieldEmbedding`.

    Raises:
        ValueError: sizes that do not go together, a length that ``patch`` does not divide.

    Source: W. Peebles, S. Xie (2023), Scalable diffusion models with transformers (adaLN-Zero), over time.

    Example:
        >>> import torch
        >>> TrajectoryDiT(4, width=16, depth=1)(torch.zeros(2, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 8, 4])
    """

    scalar = False
    frequencies: Tensor
    waves: Tensor

    def __init__(
        self,
        dim: int,
        patch: int = 2,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 2,
        embedding: int = 48,
        waves: Sequence[float] = (),
        places: Mapping[str, Any] | None = None,
        masked: bool = True,
        fields: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Build the layers; the last one starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width is a multiple of 2 and of heads, got width={width} and heads={heads}")
        if min(dim, patch, depth, expansion) < 1:
            raise ValueError(
                f"sizes are at least 1, got dim={dim}, patch={patch}, depth={depth}, expansion={expansion}"
            )
        self.dim, self.patch, self.masked = dim, patch, masked
        self.inputs = 2 * dim if masked else dim
        self.factor = patch
        self.columns = None if fields is None else len(fields)
        self.conditioning = Conditioning(embedding)
        self.fields = None if fields is None else FieldEmbedding(fields, embedding)
        self.register_buffer("waves", torch.tensor([float(k) for k in waves]), persistent=False)
        self.places = None if places is None else Places(**places)
        extra = 2 * dim * len(waves) + (0 if places is None else places["size"])
        self.first = nn.Linear((self.inputs + extra) * patch, width)
        half = width // 2
        self.register_buffer("frequencies", 1_000.0 ** -(torch.arange(half) / half), persistent=False)
        self.blocks = nn.ModuleList(TokenBlock(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(embedding, (6 * depth + 2) * width)
        self.last = nn.Linear(width, dim * patch)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, H, inputs)``, ``c_noise`` ``(N,)``, ``rows`` ``(N, columns)`` or None."""
        if x.ndim != 3 or x.shape[2] != self.inputs or x.shape[1] % self.patch:
            raise ValueError(
                f"this network takes trajectories (N, H, {self.inputs}) whose length H is a multiple of "
                f"{self.patch}, got {tuple(x.shape)}"
            )
        n, horizon = x.shape[:2]
        embedding = self.conditioning(c_noise)
        if self.fields is not None:
            embedding = embedding + self.fields(x.new_full((1, self.fields.columns), -1.0) if rows is None else rows)
        more = [x]
        if len(self.waves):
            angles = (x[..., : self.dim, None] * self.waves).flatten(2)
            more += [angles.sin(), angles.cos()]
        if self.places is not None:
            # free coordinates come divided by √(σ² + 1)
            spread = ((8 * c_noise).exp() + 1).sqrt()[:, None, None]
            position = x[..., :2]
            if self.masked:
                position = torch.where(x[..., self.dim : self.dim + 2] > 0, position, position * spread)
            else:
                position = position * spread
            more.append(self.places(position))
        x = torch.cat(more, 2)
        h = self.first(x.reshape(n, horizon // self.patch, -1))
        angles = torch.arange(h.shape[1], device=x.device, dtype=x.dtype)[:, None] * self.frequencies
        h = h + torch.cat([angles.sin(), angles.cos()], 1)
        modulation = self.modulation(embedding)[:, None]
        for block, part in zip(self.blocks, modulation.split(6 * h.shape[2], 2), strict=False):
            h = block(h, part)
        scale, shift = modulation[..., -2 * h.shape[2] :].chunk(2, 2)
        return self.last(torch.addcmul(shift, self.norm(h), 1 + scale)).reshape(n, horizon, self.dim)
