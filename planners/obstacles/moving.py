"""Obstacles that are carried along."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.obstacles.base import Extent, Obstacle, finite, rows
from boltzmix.planners.obstacles.shapes import Box, Disc, Polygon


class Moving(Obstacle):
    r"""An obstacle that is carried along: at time t it stands where the given one does, shifted by s(t).

    Args:
        obstacle: as it stands without a shift.
        velocity: (vx, vy) in m/s, :math:`s(t) = v t`.
        waypoints: or shifts at times, ``[(t, x, y), …]``, straight between them and still before and after them.

    Raises:
        ValueError: both or neither, times that do not increase.

    Example:
        >>> ball = Moving(Disc(0.0, 0.0, 1.0), velocity=(1.0, 0.0))
        >>> ball.distance(torch.zeros(1, 2), 3.0).tolist()
        [2.0]
    """

    moves = True

    def __init__(self, obstacle: Obstacle, velocity: Any = None, *, waypoints: Any = None) -> None:
        """Check the motion; one of constant velocity becomes two waypoints that are continued."""
        if not isinstance(obstacle, Obstacle):
            raise TypeError(f"Moving carries an obstacle, got {type(obstacle).__name__}")
        if obstacle.moves:
            raise ValueError("Moving carries an obstacle that does not move by itself; give the whole motion at once")
        if (velocity is None) == (waypoints is None):
            raise ValueError("Moving takes velocity=(vx, vy) or waypoints=[(t, x, y), …], one of them")
        self.obstacle = obstacle
        self.velocity: tuple[float, float] | None = None
        self.knots: tuple[tuple[float, float, float], ...]
        if velocity is not None:
            vx, vy = rows([velocity], 2, "a velocity")[0]
            self.velocity = (vx, vy)
            self.knots = ((0.0, 0.0, 0.0),)
        else:
            self.knots = tuple((t, x, y) for t, x, y in rows(waypoints, 3, "waypoints"))
            times = [t for t, _, _ in self.knots]
            if not times or any(b <= a for a, b in itertools.pairwise(times)):
                raise ValueError(f"waypoints are (t, x, y) at increasing times, got times {times}")

    def __repr__(self) -> str:
        """The obstacle and its motion."""
        motion = f"velocity={self.velocity}" if self.velocity is not None else f"waypoints={list(self.knots)}"
        return f"Moving({self.obstacle!r}, {motion})"

    @property
    def extent(self) -> Extent:
        """Where it stands at time 0."""
        x, y = self.shift(torch.zeros((), dtype=torch.float64)).tolist()
        x_low, y_low, x_high, y_high = self.obstacle.extent
        return (x_low + x, y_low + y, x_high + x, y_high + y)

    def shift(self, time: Tensor) -> Tensor:
        """How far it has moved at each time, ``(…, 2)``."""
        if self.velocity is not None:
            start = time.new_tensor(self.knots[0])
            return start[1:] + (time[..., None] - start[0]) * time.new_tensor(self.velocity)
        knots = time.new_tensor(self.knots)
        if len(knots) == 1:
            return knots[0, 1:].expand(*time.shape, 2)
        after = torch.searchsorted(knots[:, 0].contiguous(), time.detach().contiguous()).clamp(1, len(knots) - 1)
        a, b = knots[after - 1], knots[after]
        part = ((time - a[..., 0]) / (b[..., 0] - a[..., 0])).clamp(0.0, 1.0)
        return a[..., 1:] + part[..., None] * (b[..., 1:] - a[..., 1:])

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        assert time is not None
        return self.obstacle._distance(points - self.shift(time), None)

    def inflated(self, radius: float) -> Obstacle:
        """The carried obstacle, grown."""
        return self._carry(self.obstacle.inflated(radius), 0.0)

    def later(self, seconds: float) -> Obstacle:
        """The same motion on a clock that starts ``seconds`` later."""
        return self._carry(self.obstacle, finite(seconds, "seconds"))

    def _carry(self, obstacle: Obstacle, seconds: float) -> "Moving":
        twin = copy.copy(self)
        twin.obstacle = obstacle
        twin.knots = tuple((t - seconds, x, y) for t, x, y in self.knots)
        return twin

    def patch(self, time: float | None = None, **style: Any) -> Any:
        """The carried obstacle's patch where it stands at ``time`` (at 0 if None)."""
        if isinstance(self.obstacle, (Disc, Box, Polygon)):
            x, y = self.shift(torch.tensor(0.0 if time is None else time, dtype=torch.float64)).tolist()
            return _moved(self.obstacle, x, y).patch(**style)
        from boltzmix.planners.obstacles.pictures import outline

        return outline(self, 0.0 if time is None else time, **style)


def _moved(obstacle: Disc | Box | Polygon, x: float, y: float) -> Obstacle:
    if isinstance(obstacle, Disc):
        return Disc(obstacle.x + x, obstacle.y + y, obstacle.radius)
    if isinstance(obstacle, Box):
        return Box(obstacle.x_low + x, obstacle.y_low + y, obstacle.x_high + x, obstacle.y_high + y)
    return Polygon(tuple((u + x, v + y) for u, v in obstacle.vertices))
