"""What pictures of scenes were asked to show: k objects in each of n pictures, by place, shape and colour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts

_NOTHING = -1
_COINCIDE = 1e-3  # px; places closer than this are one place


@dataclass(frozen=True)
class Requests:
    """k objects asked of each of n pictures; −1 where nothing is asked.

    Args:
        position: places (x, y) in pixels, ``(n, k, 2)``.
        shape: indices into ``SHAPES``, long ``(n, k)``.
        color: indices into ``COLORS``, long ``(n, k)``.

    Raises:
        ValueError: shapes that do not agree, a place with one coordinate, numbers that are not finite or no index.

    Example:
        >>> asked = Requests.of({"shape": "circle", "x": 8.0, "y": 8.0}, {"color": "red"})
        >>> asked.shape.tolist(), asked.color.tolist(), asked.placed.tolist()
        ([[0, -1]], [[-1, 0]], [[True, False]])
    """

    position: Tensor
    shape: Tensor
    color: Tensor

    def __post_init__(self) -> None:
        """Check the three against each other."""
        if self.position.ndim != 3 or self.position.shape[-1] != 2:
            raise ValueError(f"positions of requests are (n, k, 2), got {tuple(self.position.shape)}")
        for name, values, kinds in (("shape", self.shape, SHAPES), ("color", self.color, COLORS)):
            if values.shape != self.position.shape[:2] or values.dtype != torch.long:
                raise ValueError(
                    f"{name} of requests is a long tensor {tuple(self.position.shape[:2])}, got {values.dtype} "
                    f"{tuple(values.shape)}"
                )
            if values.numel() and not -1 <= int(values.min()) <= int(values.max()) < len(kinds):
                raise ValueError(f"{name} of requests holds indices into {kinds} or −1, got {values.unique().tolist()}")
        if not self.position.isfinite().all():
            raise ValueError("places of requests are finite; −1 where none is asked")
        if ((self.position >= 0)[..., 0] != (self.position >= 0)[..., 1]).any():
            raise ValueError("a request that names x names y, too")

    def __len__(self) -> int:
        """Number of pictures n."""
        return len(self.position)

    @property
    def k(self) -> int:
        """Objects asked of each picture."""
        return self.position.shape[1]

    @property
    def placed(self) -> Tensor:
        """Where a place is asked, bool ``(n, k)``."""
        return self.position[..., 0] >= 0

    @classmethod
    def of(cls, *conditions: Mapping[str, object], n: int = 1) -> "Requests":
        """The same conditions for n pictures, each a dictionary of what ``given()`` takes.

        Raises:
            ValueError: an unknown name or value, or x without y.
        """
        place, shape, color = [], [], []
        for condition in conditions:
            unknown = set(condition) - {"shape", "color", "x", "y"}
            if unknown:
                raise ValueError(f"a request names shape, color, x and y; got {sorted(unknown)}")
            shape.append(_index(condition.get("shape"), SHAPES, "shape"))
            color.append(_index(condition.get("color"), COLORS, "color"))
            if ("x" in condition) != ("y" in condition):
                raise ValueError(f"x and y go together, got {dict(condition)}")
            place.append((_pixel(condition["x"]), _pixel(condition["y"])) if "x" in condition else (-1.0, -1.0))
        position = torch.tensor(place, dtype=torch.float32).reshape(1, -1, 2).repeat(n, 1, 1)
        columns = (torch.tensor(values, dtype=torch.long).reshape(1, -1).repeat(n, 1) for values in (shape, color))
        return cls(position, *columns)

    @classmethod
    def among(
        cls, layouts: Layouts, k: int, fields: Sequence[str] = ("position",), generator: torch.Generator | None = None
    ) -> "Requests":
        """k distinct objects of each scene, chosen uniformly, by the attributes ``fields``.

        Args:
            layouts: scenes of k objects or more.
            fields: some of "position", "shape", "color".

        Raises:
            ValueError: a scene of fewer objects, or an unknown field.
        """
        unknown = set(fields) - {"position", "shape", "color"}
        if unknown or not fields:
            raise ValueError(f"fields are some of position, shape and color, got {list(fields)}")
        if k < 1 or (len(layouts.count) and int(layouts.count.min()) < k):
            raise ValueError(f"requests of {k} objects need scenes of {max(k, 1)} or more: layouts(n, count=…)")
        key = torch.rand(layouts.shape.shape, generator=generator, device=layouts.shape.device)
        chosen = torch.where(layouts.shape < 0, 2.0, key).argsort(1)[:, :k]
        position = layouts.position.gather(1, chosen[..., None].expand(-1, -1, 2))
        shape, color = layouts.shape.gather(1, chosen), layouts.color.gather(1, chosen)
        return cls(
            position if "position" in fields else torch.full_like(position, _NOTHING),
            shape if "shape" in fields else torch.full_like(shape, _NOTHING),
            color if "color" in fields else torch.full_like(color, _NOTHING),
        )

    def rows(self, index: Tensor | slice) -> "Requests":
        """Those of some pictures."""
        return Requests(self.position[index], self.shape[index], self.color[index])

    def given(self, j: int) -> dict[str, object]:
        """What ``scenes.given(**…)`` takes for the j-th object: one value for each picture.

        Raises:
            ValueError: an attribute that only some of the pictures ask for.
        """
        found: dict[str, object] = {}
        for name, values, kinds in (("shape", self.shape, SHAPES), ("color", self.color, COLORS)):
            column = values[:, j]
            if _all_or_none(column >= 0, name):
                found[name] = [kinds[int(index)] for index in column]
        if _all_or_none(self.placed[:, j], "place"):
            found["x"], found["y"] = self.position[:, j, 0], self.position[:, j, 1]
        return found

    def merged(self) -> "Requests":
        """The same, with those that name one place in every picture made one object that has all their attributes.

        Raises:
            ValueError: attributes that contradict each other.
        """
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, shape, color in zip(
            self.position.unbind(1), self.shape.unbind(1), self.color.unbind(1), strict=True
        ):
            for index, (other, own_shape, own_color) in enumerate(kept):
                both = bool((place[:, 0] >= 0).all() and (other[:, 0] >= 0).all())
                if both and float((place - other).norm(dim=-1).max()) < _COINCIDE:
                    kept[index] = (other, _joined(own_shape, shape), _joined(own_color, color))
                    break
            else:
                kept.append((place, shape, color))
        if not kept:
            return self
        return Requests(*(torch.stack(columns, 1) for columns in zip(*kept, strict=True)))


def _joined(first: Tensor, second: Tensor) -> Tensor:
    if ((first >= 0) & (second >= 0) & (first != second)).any():
        raise ValueError("two requests of one place ask for different attributes")
    return torch.maximum(first, second)


def _index(value: object, kinds: Sequence[str], name: str) -> int:
    if value is None:
        return _NOTHING
    if value not in kinds:
        raise ValueError(f"{name} is one of {tuple(kinds)}, got {value!r}")
    return list(kinds).index(str(value))


def _pixel(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"x and y are pixels, numbers from 0, got {value!r}")
    return float(value)


def _all_or_none(asked: Tensor, name: str) -> bool:
    if asked.any() and not asked.all():
        raise ValueError(f"only some pictures ask for a {name} here: split the requests by what they ask")
    return bool(asked.any())
