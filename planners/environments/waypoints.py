r"""A controller that follows a polyline: what makes the data.

The speed along the path is limited by bends, v² ≤ a_side / κ, with the curvature κ over a window of the path, and by
braking, v(s)² ≤ v(s + ds)² + 2 a_brake ds. The ball aims at the point of the path that lies ``lookahead`` ahead of
it and is driven towards the limited speed in that direction (pure pursuit with proportional velocity control); near the
end it aims at the goal with a speed proportional to what is left, and so comes to rest there.

Source: R. C. Coulter (1992), "Implementation of the Pure Pursuit Path Tracking Algorithm".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from boltzmix.planners.environments.base import Environment

if TYPE_CHECKING:
    import numpy as np


@dataclass
class WaypointController:
    """Follows a polyline and rests at its end.

    Args:
        path: vertices ``(x, y)``, metres.
        speed: at most, m/s.
        brake: deceleration ahead of bends and of the end, m/s².
        side: acceleration across the path in bends, m/s².
        lookahead: metres.
        stiffness: of the velocity control, 1/s.
        approach: speed over distance near the end, 1/s.
        spacing: between the samples of the path, metres.

    Raises:
        ValueError: a path of no points.
    """

    path: Sequence[Sequence[float]]
    speed: float = 2.0
    brake: float = 6.0
    side: float = 12.0
    lookahead: float = 0.15
    stiffness: float = 15.0
    approach: float = 5.0
    spacing: float = 0.02
    _at: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.path):
            raise ValueError("a path has at least one point, got none")
        self._points = _sampled(self.path, self.spacing)
        self._speeds = self._limits()

    def velocity(self, x: float, y: float) -> tuple[float, float]:
        """The velocity to have at a position, m/s; calls follow the ball along the path."""
        points, last = self._points, len(self._points) - 1
        ahead = max(1, round(self.lookahead / self.spacing))
        window = range(self._at, min(last, self._at + 3 * ahead) + 1)
        self._at = min(window, key=lambda i: (points[i][0] - x) ** 2 + (points[i][1] - y) ** 2)
        target = points[min(last, self._at + ahead)]
        dx, dy = target[0] - x, target[1] - y
        gap = math.hypot(dx, dy)
        if gap == 0.0:
            return 0.0, 0.0
        left = gap + self.spacing * max(0, last - self._at - ahead)  # along the path
        speed = min(self._speeds[self._at], self.approach * left)
        return speed * dx / gap, speed * dy / gap

    def act(self, environment: Environment, state: Any = None) -> "np.ndarray":
        """The action in a state of the environment (default: its present one)."""
        state = environment.state if state is None else state
        velocity = self.velocity(float(state[0]), float(state[1]))
        return environment.drive(velocity, state, self.stiffness)

    def _limits(self) -> list[float]:
        points, count = self._points, len(self._points)
        reach = max(1, round(0.5 * self.lookahead / self.spacing))
        found = []
        for i in range(count):
            before, here, after = points[max(0, i - reach)], points[i], points[min(count - 1, i + reach)]
            one = (here[0] - before[0], here[1] - before[1])
            two = (after[0] - here[0], after[1] - here[1])
            turn = abs(math.atan2(one[0] * two[1] - one[1] * two[0], one[0] * two[0] + one[1] * two[1]))
            bend = turn / (reach * self.spacing)
            found.append(min(self.speed, math.sqrt(self.side / bend)) if bend > 0.0 else self.speed)
        if count > 1:
            found[-1] = min(found[-1], self.approach * self.lookahead)  # and `velocity` brings it to rest
        for i in reversed(range(count - 1)):
            found[i] = min(found[i], math.sqrt(found[i + 1] ** 2 + 2.0 * self.brake * self.spacing))
        return found


def _sampled(path: Sequence[Sequence[float]], spacing: float) -> list[tuple[float, float]]:
    """Points along a polyline, about ``spacing`` apart, the last one exactly at its end."""
    vertices = [(float(x), float(y)) for x, y in path]
    points, carried = [vertices[0]], 0.0
    for (x0, y0), (x1, y1) in pairwise(vertices):
        length = math.hypot(x1 - x0, y1 - y0)
        along = spacing - carried
        while along <= length:
            share = along / length
            points.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
            along += spacing
        carried = length - (along - spacing)
    points.append(vertices[-1])
    return points
