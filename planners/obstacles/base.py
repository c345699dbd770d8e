r"""Obstacles: signed distances in the plane, in metres, negative inside.

A signed distance function d is 1-Lipschitz, its gradient is the unit normal, and an obstacle grown by r (its Minkowski
sum with a disc) is :math:`d - r` outside, which is how a round robot of radius r becomes a point. Every obstacle is
differentiable in torch, and takes points ``(…, 2)`` and, for those that move, seconds ``(…)``.

Source: S. Osher, R. Fedkiw (2003), Level Set Methods and Dynamic Implicit Surfaces, chapter 2.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

Extent = tuple[float, float, float, float]


class Obstacle(ABC):
    """Something to stay away from: one signed distance function.

    Subclasses define :meth:`_distance`, and :attr:`extent` where they are bounded.
    """

    #: whether the distance depends on time
    moves: bool = False

    @abstractmethod
    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        """Signed distance ``(…)`` of points ``(…, 2)``."""

    @property
    def extent(self) -> Extent:
        """(x_low, y_low, x_high, y_high) of a rectangle around it, at time 0 for those that move; infinite if none."""
        return (-math.inf, -math.inf, math.inf, math.inf)

    def distance(self, points: Tensor, time: Tensor | float | None = None) -> Tensor:
        """Signed distance in metres, negative inside, differentiable.

        Args:
            points: ``(…, 2)`` in metres.
            time: seconds, a number or ``(…)``; only obstacles that move need it.

        Raises:
            ValueError: points of another shape, or no time for an obstacle that moves.
            TypeError: points that are no floating-point tensor.
        """
        if not isinstance(points, Tensor) or not points.is_floating_point():
            kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise TypeError(f"points are a floating-point tensor (…, 2), got {kind}")
        if points.ndim < 1 or points.shape[-1] != 2:
            raise ValueError(f"points are (…, 2) in metres, got shape {tuple(points.shape)}")
        if time is None:
            if self.moves:
                raise ValueError(f"{type(self).__name__} moves: pass time= in seconds, a number or one for each point")
            return self._distance(points, None)
        if not isinstance(time, Tensor):
            time = points.new_tensor(finite(time, "time"))
        try:
            same = torch.broadcast_shapes(time.shape, points.shape[:-1]) == points.shape[:-1]
        except RuntimeError:
            same = False
        if not same:
            raise ValueError(f"time is a number or (…) = {tuple(points.shape[:-1])}, got {tuple(time.shape)}")
        return self._distance(points, time.to(points))

    def inflated(self, radius: float) -> "Obstacle":
        """The obstacle grown by ``radius`` metres on every side, d − radius."""
        radius = finite(radius, "radius")
        if radius < 0:
            raise ValueError(f"obstacles are inflated by a radius >= 0, got {radius:g}")
        return self if radius == 0 else Inflated(self, radius)

    def later(self, seconds: float) -> "Obstacle":
        """The obstacle as a clock sees it that starts ``seconds`` later: itself, unless it moves."""
        finite(seconds, "seconds")
        return self

    def patch(self, time: float | None = None, **style: Any) -> Any:
        """A matplotlib patch of the obstacle, at a time where it moves; style goes to matplotlib."""
        from boltzmix.planners.obstacles.pictures import outline

        return outline(self, time, **style)


class Inflated(Obstacle):
    """An obstacle grown by a radius; made by :meth:`Obstacle.inflated`."""

    def __init__(self, obstacle: Obstacle, radius: float) -> None:
        """Hold both."""
        self.obstacle, self.radius = obstacle, float(radius)
        self.moves = obstacle.moves

    def __repr__(self) -> str:
        """The obstacle and the radius."""
        return f"{self.obstacle!r}.inflated({self.radius:g})"

    @property
    def extent(self) -> Extent:
        """The obstacle's, grown."""
        x_low, y_low, x_high, y_high = self.obstacle.extent
        return (x_low - self.radius, y_low - self.radius, x_high + self.radius, y_high + self.radius)

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        return self.obstacle._distance(points, time) - self.radius

    def inflated(self, radius: float) -> Obstacle:
        """Grown once more."""
        return (
            self.obstacle.inflated(self.radius + finite(radius, "radius")) if radius >= 0 else super().inflated(radius)
        )

    def later(self, seconds: float) -> Obstacle:
        """The later obstacle, grown."""
        return Inflated(self.obstacle.later(seconds), self.radius)


def finite(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        ValueError: NaN or infinite.
        TypeError: no number.
    """
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, got {number}")
    return number


def rows(given: Any, width: int, what: str) -> list[list[float]]:
    """Rows of ``width`` finite numbers."""
    try:
        found = [[finite(v, what) for v in row] for row in given]
    except TypeError:
        raise TypeError(f"{what} holds rows of {width} numbers, got {given!r}") from None
    wrong = next((row for row in found if len(row) != width), None)
    if wrong is not None:
        raise ValueError(f"{what} holds rows of {width} numbers, got one of {len(wrong)}")
    return found
