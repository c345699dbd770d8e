"""A network for scenes: fine patches find what may be an object, and coarse ones weigh it against the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning
from boltzmix.models.nets.scene import DescriptionMaps
from boltzmix.models.nets.unet import Attention, ResidualBlock, norm_groups


class SceneUNet(nn.Module):
    """Picture to picture of the same shape, ``(N, C, S, S)``, told by rows of numbers what it should show.

    Small patches become channels of a fine grid, where residual convolutions find what an object may be; on a grid of
    half the side, with attention, all of the picture decides what it is; and the fine grid draws it. Where noise is as
    strong as the objects, a fine grid is what finds them: a coarse one would have to learn each object for each place
    within a patch.

    Args:
        channels: picture channels C.
        size: height and width S, a multiple of ``2 · patch``.
        patch: side of a patch of the fine grid.
        hidden: features of the fine and of the coarse grid.
        blocks: residual blocks on the fine grid, before and again after the coarse one, and on the coarse grid, where
            each is followed by attention.
        attributes, objects, extra: the columns of a row: see :class:`~boltzmix.models.nets.scene.DescriptionMaps`.
        heads: attention heads.

    Example:
        >>> import torch
        >>> net = SceneUNet(size=16, hidden=(8, 16), blocks=(1, 1))
        >>> net(torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.tensor([[0, -1, 5.0, 7.0]] * 2)).shape
        torch.Size([2, 3, 16, 16])
    """

    scalar = False

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        patch: int = 2,
        hidden: Sequence[int] = (64, 96),
        blocks: Sequence[int] = (1, 2),
        attributes: Sequence[int] = (3, 4),
        objects: int = 1,
        extra: Sequence[int] = (),
        heads: int = 4,
    ) -> None:
        """Build the network; its last layer starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        if patch < 1 or size % (2 * patch):
            raise ValueError(f"patches of {patch} and of {2 * patch} must tile {size} pixels")
        if len(hidden) != 2 or len(blocks) != 2 or min(*hidden, *blocks) < 1:
            raise ValueError(f"hidden and blocks are two positive numbers, fine and coarse, got {hidden} and {blocks}")
        fine, coarse = hidden
        width = 2 * fine
        groups = [norm_groups(c) for c in hidden]
        self.patch = patch
        self.maps = DescriptionMaps(attributes, objects, extra, size, width)
        self.columns = self.maps.columns
        self.conditioning = Conditioning(width)
        self.first = nn.Conv2d(channels * patch**2, fine, 3, padding=1)
        self.hint = nn.Conv2d(self.maps.channels * patch**2, fine, 1, bias=False)
        self.before = nn.ModuleList(ResidualBlock(fine, width, groups[0]) for _ in range(blocks[0]))
        self.shrink = nn.Conv2d(fine, coarse, 2, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(coarse, width, groups[1]) for _ in range(blocks[1]))
        self.attention = nn.ModuleList(Attention(coarse, heads, groups[1]) for _ in range(blocks[1]))
        self.grow = nn.Conv2d(coarse, 4 * fine, 1)
        self.after = nn.ModuleList(ResidualBlock(fine, width, groups[0]) for _ in range(blocks[0]))
        self.last_norm = nn.GroupNorm(groups[0], fine)
        self.last = nn.Conv2d(fine, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, c_noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """``(N, C, S, S)``, ``(N,)`` and ``(N, columns)`` or None to ``(N, C, S, S)``."""
        if rows is None:
            rows = x.new_full((1, self.columns), -1.0)
        maps, vector = self.maps(rows.to(x.dtype))
        embedding = self.conditioning(c_noise) + vector
        h = self.first(nn.functional.pixel_unshuffle(x, self.patch))
        h = _laid_out(h + self.hint(nn.functional.pixel_unshuffle(maps, self.patch)))
        for block in self.before:
            h = block(h, embedding)
        inner = self.shrink(h)
        for block, attend in zip(self.blocks, self.attention, strict=True):
            inner = attend(block(inner, embedding))
        h = h + _laid_out(nn.functional.pixel_shuffle(self.grow(inner), 2))
        for block in self.after:
            h = block(h, embedding)
        out = self.last(nn.functional.silu(self.last_norm(h)))
        return nn.functional.pixel_shuffle(out, self.patch)


def _laid_out(h: Tensor) -> Tensor:
    """The same with channels last in memory, where convolutions in float32 are faster and group norms as fast.

    In bfloat16 group norms lose more than convolutions gain.
    """
    return h if h.dtype == torch.bfloat16 else h.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
