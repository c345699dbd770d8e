"""Conditions with several attributes: ``p.given(shape="circle", x=8.0, y=8.0)`` as rows of numbers for a network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.models.nets.embedding import NULL

Field = tuple[str, ...] | tuple[float, float]


class Description:
    """The attributes that a model can be told, one column each.

    A row holds the number of a category, or a number itself; −1 (:data:`~boltzmix.models.nets.embedding.NULL`) where
    nothing is said, so ranges of numbers do not reach below zero.

    Args:
        fields: for each name its categories, or the ends (low, high) of a range of numbers ≥ 0.
        together: groups of names that are given together or not at all, such as the coordinates of a place.

    Raises:
        ValueError: no fields, a field of neither kind, or a group of unknown names.

    Example:
        >>> about = Description({"shape": ("circle", "square"), "x": (0.0, 8.0)})
        >>> about.rows({"shape": "square"})
        tensor([[ 1., -1.]])
        >>> about.rows({"shape": ["circle", "square"], "x": 4})
        tensor([[0., 4.],
                [1., 4.]])
    """

    def __init__(self, fields: Mapping[str, Sequence[Any]], together: Sequence[Sequence[str]] = ()) -> None:
        """Check the fields."""
        if not fields:
            raise ValueError("a description needs at least one field")
        self.fields = {str(name): _field(name, values) for name, values in fields.items()}
        self.together = tuple(tuple(group) for group in together)
        for name in (name for group in self.together for name in group):
            if name not in self.fields:
                raise ValueError(f"together names {name!r}, the fields are {list(self.fields)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes, in the order of the columns."""
        return tuple(self.fields)

    def rows(self, condition: Mapping[str, object]) -> Tensor:
        """What is said as ``(1, columns)``, or ``(N, columns)`` where a value is a sequence of N, one per particle.

        Raises:
            TypeError, ValueError: a value of another kind, out of range, or half of what goes together.
        """
        for group in self.together:
            said = [name for name in group if name in condition]
            if said and len(said) < len(group):
                raise ValueError(f"{' and '.join(group)} are given together, got only {', '.join(said)}")
        columns = {name: self._column(name, value) for name, value in condition.items()}
        lengths = {name: len(column) for name, column in columns.items() if column.ndim}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"conditions of one value per particle have one length, got {lengths}")
        n = next(iter(lengths.values()), 1)
        rows = torch.full((n, len(self.fields)), float(NULL))
        for index, name in enumerate(self.fields):
            if name in columns:
                rows[:, index] = columns[name]
        return rows

    def _column(self, name: str, value: object) -> Tensor:
        """One value, ``()``, or one for each particle, ``(N,)``."""
        if isinstance(value, Tensor):
            if value.ndim > 1 or value.dtype in (torch.bool, torch.complex64, torch.complex128):
                raise TypeError(f"{name} is one value or one per particle, got {value.dtype} {tuple(value.shape)}")
            value = value.tolist()
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not value:
                raise ValueError(f"{name} holds one value per particle, got none")
            return torch.tensor([self._number(name, entry) for entry in value])
        return torch.tensor(self._number(name, value))

    def _number(self, name: str, value: object) -> float:
        field = self.fields[name]
        if isinstance(field[0], str):
            if isinstance(value, str):
                if value not in field:
                    raise ValueError(f"{name} is one of {', '.join(map(str, field))}, got {value!r}")
                return float(field.index(value))  # pyright: ignore[reportArgumentType]
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(field):
                return float(value)
            raise ValueError(f"{name} is one of {', '.join(map(str, field))} (or its number), got {value!r}")
        low, high = field
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a number in [{low:g}, {high:g}], got {value!r}")
        if not float(low) <= value <= float(high):
            raise ValueError(f"{name} is in [{low:g}, {high:g}], where the model was trained; got {value:g}")
        return float(value)

    def check(self, rows: Tensor, n: int) -> None:
        """Refuse rows of a training batch that mean nothing.

        Raises:
            TypeError: another shape, or rows that hold no floating-point numbers.
            ValueError: a value out of the range of its field.
        """
        if rows.shape != (n, len(self.fields)) or not rows.is_floating_point():
            raise TypeError(
                f"descriptions are floats of shape ({n}, {len(self.fields)}) with columns {', '.join(self.fields)}, "
                f"got {rows.dtype} of shape {tuple(rows.shape)}"
            )
        for column, (name, field) in zip(rows.T, self.fields.items(), strict=True):
            said = column != NULL
            low, high = field[0], field[-1]
            if isinstance(low, str) or isinstance(high, str):
                good = (column == column.round()) & (column >= 0) & (column < len(field))
            else:
                good = (column >= low) & (column <= high)
            if not bool((good | ~said).all()):
                raise ValueError(f"{name} of a description is {_range(field)} or {NULL}, got {column[said & ~good][0]}")

    def describe(self, row: Sequence[float]) -> str:
        """One row for people: ``shape=circle, x=8``."""
        said = []
        for value, (name, field) in zip(row, self.fields.items(), strict=True):
            if value != NULL:
                said.append(f"{name}={field[int(value)] if isinstance(field[0], str) else format(value, 'g')}")
        return ", ".join(said)


def _field(name: object, values: Sequence[Any]) -> Field:
    found = tuple(values)
    if found and all(isinstance(value, str) for value in found):
        return found
    if len(found) == 2 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found):
        low, high = (float(value) for value in found)
        if 0 <= low < high < math.inf:
            return low, high
    raise ValueError(
        f"field {name!r} holds names of categories, or the ends 0 <= low < high of a range, got {values!r}"
    )


def _range(field: Field) -> str:
    return f"a number below {len(field)}" if isinstance(field[0], str) else f"in [{field[0]:g}, {field[1]:g}]"
