"""A small U-Net along time: trajectories of any length, and coordinates of them that are known."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning
from boltzmix.models.nets.fields import FieldEmbedding
from boltzmix.models.nets.unet import norm_groups


class TemporalBlock(nn.Module):
    """``h + conv(silu((1 + a) ⊙ norm(conv(silu(norm h))) + b))`` along time; a, b are handed in."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        """Build the block; its last convolution starts at zero."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """``(N, C, T)`` and ``(N, 2 C, 1)`` to ``(N, C, T)``."""
        scale, shift = modulation.chunk(2, 1)
        inner = self.norm2(self.conv1(nn.functional.silu(self.norm1(h))))
        return h + self.conv2(nn.functional.silu(torch.addcmul(shift, inner, 1 + scale)))


class TemporalUNet(nn.Module):
    """Trajectory to trajectory of the same length, ``(N, H, inputs)`` to ``(N, H, dim)``.

    Tokens are taken ``patch`` at a time as the channels of one position; every further level halves the number of
    positions, and additive skips join the way down to the way up. The noise level and what is said modulate every
    block, all of them by one linear map.

    Args:
        dim: columns of the trajectory, D.
        hidden: features per level, finest first.
        patch: tokens in one position of the finest level.
        blocks: residual blocks per level on the way down, and on the way up; the coarsest level has twice as many.
        kernel: positions in a convolution, an odd number.
        masked: whether the input holds D more columns that say which coordinates are known (1) and which are not (0).
        width: size of the embedding of noise level and attributes.
        waves: frequencies k (per unit of the input) of further input channels sin kv and cos kv of the first D columns;
            places in a maze are hard to tell from two numbers, and easy from their waves.
        fields: attributes that a row of numbers says, see :class:`~boltzmix.models.nets.fields.FieldEmbedding`.

    Raises:
        ValueError: an even kernel, sizes below 1, a length that the levels do not divide.

    Source: M. Janner, Y. Du, J. Tenenbaum, S. Levine (2022), Planning with diffusion for flexible behavior synthesis
    (temporal U-Nets), with patches, and a mask of known coordinates in place of overwriting them.

    Example:
        >>> import torch
        >>> net = TemporalUNet(6, hidden=(16, 24))
        >>> net(torch.zeros(2, 32, 12), torch.zeros(2)).shape
        torch.Size([2, 32, 6])
    """

    scalar = False
    waves: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (96, 128),
        patch: int = 2,
        blocks: int = 1,
        kernel: int = 5,
        masked: bool = True,
        width: int = 128,
        waves: Sequence[float] = (),
        fields: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Build the two paths; the last convolution starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        if kernel % 2 == 0 or min(kernel, dim, patch, blocks, width, *hidden) < 1:
            raise ValueError(
                f"an odd kernel and sizes of at least 1 are wanted, got kernel={kernel}, dim={dim}, patch={patch}, "
                f"blocks={blocks}, width={width}, hidden={tuple(hidden)}"
            )
        self.dim, self.patch, self.masked = dim, patch, masked
        self.inputs = 2 * dim if masked else dim
        self.factor = patch * 2 ** (len(hidden) - 1)
        self.columns = None if fields is None else len(fields)
        self.conditioning = Conditioning(width)
        self.fields = None if fields is None else FieldEmbedding(fields, width)
        groups = [norm_groups(c) for c in hidden]

        def level(channels: int, group: int) -> nn.ModuleList:
            return nn.ModuleList(TemporalBlock(channels, kernel, group) for _ in range(blocks))

        self.register_buffer("waves", torch.tensor([float(k) for k in waves]), persistent=False)
        self.first = nn.Conv1d((self.inputs + 2 * dim * len(waves)) * patch, hidden[0], kernel, padding=kernel // 2)
        self.down = nn.ModuleList(level(c, g) for c, g in zip(hidden, groups, strict=True))
        self.up = nn.ModuleList(level(c, g) for c, g in zip(hidden, groups, strict=True))
        pairs = list(itertools.pairwise(hidden))
        self.shrink = nn.ModuleList(nn.Conv1d(a, b, 2, stride=2) for a, b in pairs)
        self.grow = nn.ModuleList(nn.Conv1d(b, a, 1) for a, b in pairs)
        self.sizes = [2 * c for c in (*hidden, *reversed(hidden)) for _ in range(blocks)]
        self.modulation = nn.Linear(width, sum(self.sizes))
        self.norm = nn.GroupNorm(groups[0], hidden[0])
        self.last = nn.Conv1d(hidden[0], dim * patch, kernel, padding=kernel // 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, c_noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, H, inputs)``, ``c_noise`` ``(N,)``, ``rows`` ``(N, columns)`` or None."""
        if x.ndim != 3 or x.shape[2] != self.inputs or x.shape[1] % self.factor:
            raise ValueError(
                f"this network takes trajectories (N, H, {self.inputs}) whose length H is a multiple of "
                f"{self.factor}, got {tuple(x.shape)}"
            )
        n, horizon = x.shape[:2]
        embedding = self.conditioning(c_noise)
        if self.fields is not None:
            embedding = embedding + self.fields(x.new_full((1, self.fields.columns), -1.0) if rows is None else rows)
        modulations = iter(self.modulation(embedding)[..., None].split(self.sizes, 1))
        if len(self.waves):
            angles = (x[..., : self.dim, None] * self.waves).flatten(2)
            x = torch.cat([x, angles.sin(), angles.cos()], 2)
        h = self.first(x.reshape(n, horizon // self.patch, -1).mT)
        skips = []
        for index, level in enumerate(self.down):
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, next(modulations))
            if index < len(self.shrink):
                skips.append(h)
                h = self.shrink[index](h)
        for index in reversed(range(len(self.up))):
            for block in self.up[index]:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, next(modulations))
            if index > 0:
                h = skips[index - 1] + self.grow[index - 1](h).repeat_interleave(2, 2)
        out = self.last(nn.functional.silu(self.norm(h)))
        return out.mT.reshape(n, horizon, self.dim)
