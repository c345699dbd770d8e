"""Rows of a description, categories and numbers with −1 where nothing is said, as one vector per row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_WAVES = 4


class FieldEmbedding(nn.Module):
    r"""``(N, columns)`` to ``(N, width)``: the sum of one vector for every attribute.

    A category looks its vector up in a table. A number v in [low, high] becomes :math:`u = (v - low)/(high - low)` and
    the features 1, u, sin πku, cos πku for k = 1 … 4, mapped linearly; a column that says nothing adds nothing.

    Args:
        fields: for each name its categories, or the ends (low, high) of its range, as
            :class:`~boltzmix.models.description.Description` takes them.
        width: size of the vector.

    Example:
        >>> import torch
        >>> embed = FieldEmbedding({"returns": (0.0, 1.0), "skill": ("left", "right")}, 8)
        >>> embed(torch.tensor([[0.5, -1.0], [-1.0, 1.0]])).shape
        torch.Size([2, 8])
    """

    harmonics: Tensor

    def __init__(self, fields: Mapping[str, Sequence[Any]], width: int) -> None:
        """Build a table or a linear map for every field."""
        super().__init__()
        if not fields:
            raise ValueError("fields names at least one attribute; leave it out for a network that is told nothing")
        self.columns = len(fields)
        self.ranges: list[tuple[float, float] | None] = []
        parts: list[nn.Module] = []
        for values in fields.values():
            if all(isinstance(value, str) for value in values):
                self.ranges.append(None)
                table = nn.Embedding(len(values) + 1, width)  # row 0 is for what is not said
                nn.init.normal_(table.weight, std=0.3)
                parts.append(table)
            else:
                low, high = (float(end) for end in values)
                self.ranges.append((low, high))
                parts.append(nn.Linear(2 + 2 * _WAVES, width, bias=False))
        self.parts = nn.ModuleList(parts)
        self.register_buffer("harmonics", math.pi * torch.arange(1, _WAVES + 1), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """``(N, columns)`` to ``(N, width)``."""
        if rows.ndim != 2 or rows.shape[1] != self.columns:
            raise ValueError(f"descriptions have shape (N, {self.columns}), got {tuple(rows.shape)}")
        total = None
        for index, (part, ends) in enumerate(zip(self.parts, self.ranges, strict=True)):
            value = rows[:, index]
            if ends is None:
                vector = part(value.long() + 1)
            else:
                said = (value >= 0).to(rows.dtype)[:, None]
                u = ((value - ends[0]) / (ends[1] - ends[0]))[:, None]
                angles = u * self.harmonics
                vector = part(said * torch.cat([torch.ones_like(u), u, angles.sin(), angles.cos()], 1))
            total = vector if total is None else total + vector
        assert total is not None
        return total
