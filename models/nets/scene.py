"""A network for small pictures whose objects are described: patches as tokens, places as Gaussian blobs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning
from boltzmix.models.nets.unet import Attention, ResidualBlock, norm_groups

_BLOB = 1.5  # standard deviation of a blob in pixels


class DescriptionMaps(nn.Module):
    """Rows of attributes to pictures and to vectors.

    An object that has a place becomes a Gaussian blob there, in one channel of its own and in one for each attribute
    that is known; what is known without a place goes into a vector. Networks learn blobs at once where they fail to
    read a place off two numbers.

    Args:
        attributes: number of values of each attribute of an object, e.g. (3, 4) for shapes and colours.
        objects: objects in a row, ``len(attributes) + 2`` numbers each: the attributes, then x and y in pixels; −1
            where nothing is said.
        extra: number of values of further attributes that stand behind the objects and have no place.
        size: height and width of the picture.
        width: size of the vector.
    """

    centres: Tensor

    def __init__(self, attributes: Sequence[int], objects: int, extra: Sequence[int], size: int, width: int) -> None:
        """Build one table for each attribute, row 0 for what is not said."""
        super().__init__()
        self.attributes, self.objects, self.extra = tuple(attributes), objects, tuple(extra)
        self.columns = objects * (len(self.attributes) + 2) + len(self.extra)
        self.channels = 1 + sum(self.attributes)
        self.register_buffer("centres", torch.arange(size) + 0.5, persistent=False)
        self.tables = nn.ModuleList(nn.Embedding(count + 1, width) for count in (*self.attributes, *self.extra))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.3)  # pyright: ignore[reportArgumentType]

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, columns)`` to maps ``(N, channels, size, size)`` and vectors ``(N, width)``."""
        n, kinds = len(rows), len(self.attributes)
        per_object = rows[:, : self.objects * (kinds + 2)].reshape(n, self.objects, kinds + 2)
        known, place = per_object[..., :kinds].long(), per_object[..., kinds:]
        placed = (place[..., :1] >= 0).to(rows.dtype)
        along = (-(self.centres - place[..., None]).square() / (2 * _BLOB**2)).exp() * placed[..., None]
        x, y = along.unbind(2)
        marks = [placed]
        for index, count in enumerate(self.attributes):
            value = known[..., index]
            marks.append(nn.functional.one_hot(value + 1, count + 1)[..., 1:].to(rows.dtype) * placed)
        maps = torch.einsum("nkc,nki,nkj->ncij", torch.cat(marks, -1), y, x)
        vector = torch.zeros((), dtype=rows.dtype, device=rows.device)
        unplaced = 1 - placed
        for index in range(kinds):
            vector = vector + (self.tables[index](known[..., index] + 1) * unplaced).sum(1)
        for index in range(len(self.extra)):
            value = rows[:, self.columns - len(self.extra) + index].long()
            vector = vector + self.tables[kinds + index](value + 1)
        return maps, vector


class SceneNet(nn.Module):
    """Picture to picture of the same shape, ``(N, C, S, S)``, told by rows of numbers what it should show.

    The picture is cut into patches, which become channels of a coarse grid; on it alternate residual convolutions and
    self-attention, and what the first half computed is added to the second half.

    Args:
        channels: picture channels C.
        size: height and width S, a multiple of ``patch``.
        patch: side of a patch.
        hidden: features of a patch.
        blocks: residual blocks, an odd number; all but the first are followed by attention.
        attributes, objects, extra: the columns of a row: see :class:`DescriptionMaps`.
        heads: attention heads.

    Example:
        >>> import torch
        >>> net = SceneNet(size=16, hidden=16, blocks=3)
        >>> net(torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.tensor([[0, -1, 5.0, 7.0]] * 2)).shape
        torch.Size([2, 3, 16, 16])
    """

    scalar = False

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        patch: int = 4,
        hidden: int = 96,
        blocks: int = 3,
        attributes: Sequence[int] = (3, 4),
        objects: int = 1,
        extra: Sequence[int] = (),
        heads: int = 4,
    ) -> None:
        """Build the network; its last layer starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        if size % patch:
            raise ValueError(f"patches of {patch} do not tile {size} pixels")
        if blocks < 1 or blocks % 2 == 0:
            raise ValueError(f"blocks is an odd number, so that the two halves mirror each other, got {blocks}")
        width = 2 * hidden
        groups = norm_groups(hidden)
        self.patch = patch
        self.maps = DescriptionMaps(attributes, objects, extra, size, width)
        self.columns = self.maps.columns
        self.conditioning = Conditioning(width)
        self.first = nn.Conv2d(channels * patch**2, hidden, 3, padding=1)
        self.hint = nn.Conv2d(self.maps.channels * patch**2, hidden, 1, bias=False)
        self.blocks = nn.ModuleList(ResidualBlock(hidden, width, groups) for _ in range(blocks))
        self.attention = nn.ModuleList(Attention(hidden, heads, groups) for _ in range(blocks - 1))
        self.last_norm = nn.GroupNorm(groups, hidden)
        self.last = nn.Conv2d(hidden, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, c_noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """``(N, C, S, S)``, ``(N,)`` and ``(N, columns)`` or None to ``(N, C, S, S)``."""
        if rows is None:
            rows = x.new_full((1, self.columns), -1.0)
        maps, vector = self.maps(rows.to(x.dtype))
        embedding = self.conditioning(c_noise) + vector
        h = self.first(nn.functional.pixel_unshuffle(x, self.patch))
        h = h + self.hint(nn.functional.pixel_unshuffle(maps, self.patch))
        half = len(self.blocks) // 2
        kept = []
        for index, block in enumerate(self.blocks):
            if index > half:
                h = h + kept.pop()
            h = block(h, embedding)
            if index:
                h = self.attention[index - 1](h)
            if index < half:
                kept.append(h)
        out = self.last(nn.functional.silu(self.last_norm(h)))
        return nn.functional.pixel_shuffle(out, self.patch)
