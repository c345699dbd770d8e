"""Discs, boxes and polygons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.obstacles.base import Extent, Inflated, Obstacle, finite, rows


@dataclass(frozen=True)
class Disc(Obstacle):
    """A disc, :math:`d = |p - c| - r`.

    Example:
        >>> Disc(0.0, 0.0, 1.0).distance(torch.tensor([[2.0, 0.0], [0.0, 0.5]])).tolist()
        [1.0, -0.5]
    """

    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        _hold(self, "x", "y", "radius")
        if self.radius <= 0:
            raise ValueError(f"a disc has a radius > 0, got {self.radius:g}")

    @property
    def extent(self) -> Extent:
        """The square around it."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        return torch.linalg.vector_norm(points - points.new_tensor((self.x, self.y)), dim=-1) - self.radius

    def inflated(self, radius: float) -> Obstacle:
        """A larger disc."""
        grown = super().inflated(radius)
        return Disc(self.x, self.y, self.radius + grown.radius) if isinstance(grown, Inflated) else self

    def patch(self, time: float | None = None, **style: Any) -> Any:
        """A circle."""
        from matplotlib.patches import Circle

        return Circle((self.x, self.y), self.radius, **style)


@dataclass(frozen=True)
class Box(Obstacle):
    r"""A rectangle along the axes.

    With :math:`q = |p - c| - h` for centre c and half sides h, :math:`d = |\max(q, 0)| + \min(\max(q_x, q_y), 0)`.
    """

    x_low: float
    y_low: float
    x_high: float
    y_high: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        _hold(self, "x_low", "y_low", "x_high", "y_high")
        if self.x_low >= self.x_high or self.y_low >= self.y_high:
            raise ValueError(
                f"a box has x_low < x_high and y_low < y_high, got x from {self.x_low:g} to {self.x_high:g} and y from "
                f"{self.y_low:g} to {self.y_high:g}"
            )

    @property
    def extent(self) -> Extent:
        """The box itself."""
        return (self.x_low, self.y_low, self.x_high, self.y_high)

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        centre = points.new_tensor(((self.x_low + self.x_high) / 2, (self.y_low + self.y_high) / 2))
        half = points.new_tensor(((self.x_high - self.x_low) / 2, (self.y_high - self.y_low) / 2))
        return box_distance(points - centre, half)

    def patch(self, time: float | None = None, **style: Any) -> Any:
        """A rectangle."""
        from matplotlib.patches import Rectangle

        return Rectangle((self.x_low, self.y_low), self.x_high - self.x_low, self.y_high - self.y_low, **style)


@dataclass(frozen=True)
class Polygon(Obstacle):
    """A simple polygon, convex or not: distance to its nearest edge, negative where a ray crosses edges an odd number
    of times.

    Args:
        vertices: at least three (x, y), in either order of rotation, the last one not repeating the first.

    Raises:
        ValueError: edges that cross or touch, vertices that repeat, no area.
    """

    vertices: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        """Check that the edges make one closed curve without crossings."""
        pairs = [tuple(pair) for pair in rows(self.vertices, 2, "a polygon's vertices")]
        object.__setattr__(self, "vertices", tuple(pairs))
        if len(pairs) < 3:
            raise ValueError(f"a polygon has at least 3 vertices, got {len(pairs)}")
        repeated = [p for k, p in enumerate(pairs) if p in pairs[:k]]
        if repeated:
            raise ValueError(f"a polygon's vertices differ, {repeated[0]} comes twice; leave out the closing one")
        crossing = _first_crossing(pairs)
        if crossing is not None:
            raise ValueError(
                f"edges {crossing[0]} and {crossing[1]} of the polygon cross or touch: order its vertices along its "
                "outline"
            )

    @property
    def extent(self) -> Extent:
        """The rectangle around its vertices."""
        xs, ys = zip(*self.vertices, strict=True)
        return (min(xs), min(ys), max(xs), max(ys))

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        a = points.new_tensor(self.vertices)
        b = a.roll(-1, 0)
        edge, away = b - a, points[..., None, :] - a
        along = ((away * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0.0, 1.0)
        nearest = torch.linalg.vector_norm(away - along[..., None] * edge, dim=-1).amin(-1)
        # a horizontal ray to the right meets an edge where its ends lie on different sides of the ray
        y = points[..., None, 1]
        spans = (a[:, 1] > y) != (b[:, 1] > y)
        rise = torch.where(edge[:, 1] == 0, 1.0, edge[:, 1])
        meets = spans & (points[..., None, 0] < a[:, 0] + (y - a[:, 1]) * edge[:, 0] / rise)
        return torch.where(meets.sum(-1) % 2 == 1, -nearest, nearest)

    def patch(self, time: float | None = None, **style: Any) -> Any:
        """A polygon."""
        from matplotlib.patches import Polygon as Patch

        return Patch(list(self.vertices), closed=True, **style)


def box_distance(points: Tensor, half: Tensor) -> Tensor:
    """Signed distance of points ``(…, 2)`` to the rectangle of half sides ``(…, 2)`` around 0."""
    q = points.abs() - half
    outside = torch.linalg.vector_norm(q.clamp(min=0.0), dim=-1)
    return outside + q.amax(-1).clamp(max=0.0)


def _hold(obstacle: Obstacle, *names: str) -> None:
    """Store fields of a frozen dataclass as finite floats."""
    for name in names:
        value = finite(getattr(obstacle, name), f"{type(obstacle).__name__.lower()}'s {name}")
        object.__setattr__(obstacle, name, value)


def _cross(o: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float:
    """Twice the signed area of the triangle o, a, b."""
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def _first_crossing(corners: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """The first two edges that share more than a common corner, by number."""
    n = len(corners)
    for i in range(n):
        for j in range(i + 1, n):
            a, b, c, d = corners[i], corners[(i + 1) % n], corners[j], corners[(j + 1) % n]
            if j == i + 1 or (i == 0 and j == n - 1):
                # neighbours share one corner; they overlap if the next one turns back on the same line
                shared, before, after = (b, a, d) if j == i + 1 else (a, b, c)
                back = (before[0] - shared[0]) * (after[0] - shared[0]) + (before[1] - shared[1]) * (
                    after[1] - shared[1]
                )
                if _cross(before, shared, after) == 0 and back > 0:
                    return i, j
            elif _touch(a, b, c, d):
                return i, j
    return None


def _touch(a: Sequence[float], b: Sequence[float], c: Sequence[float], d: Sequence[float]) -> bool:
    """Whether two segments have a point in common."""
    first, second = (_cross(a, b, c), _cross(a, b, d)), (_cross(c, d, a), _cross(c, d, b))
    if first[0] * first[1] < 0 and second[0] * second[1] < 0:
        return True
    flat = ((first[0], a, b, c), (first[1], a, b, d), (second[0], c, d, a), (second[1], c, d, b))
    return any(
        area == 0 and min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(p[1], q[1])
        for area, p, q, r in flat
    )
