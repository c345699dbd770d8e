r"""Obstacles to avoid, seen along whole segments.

.. math::
    E(\tau) = k \sum_{o} \sum_{h} c\Big(\min_{u \in [0,1]} d_o\big(p_h + u(p_{h+1} - p_h), t_h + u\,\Delta t\big) - r
    \Big)

with :func:`~boltzmix.planners.tasks.base.hinge` c. The least distance of a segment is looked for
(:mod:`~boltzmix.planners.tasks.nearest`), not sampled, so an obstacle thinner than the way between two tokens is seen.
"""

import copy
from typing import Any

from torch import Tensor

from boltzmix.planners.obstacles import as_obstacles
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task, hinge, nonnegative, positive
from boltzmix.planners.tasks.nearest import Segments, group


class Avoid(Task):
    """Stay ``margin`` away from obstacles, all along the way.

    The energy is zero exactly where every segment keeps ``radius + margin`` from every obstacle. The violation is how
    deep a plan enters the inflated obstacles, in metres: a plan inside the margin is no violation. A segment through a
    wall is pushed out at its deepest place, both ends the same way; a wall that two tokens stand on either side of is
    left around its end or not at all, so start several plans.

    Args:
        obstacles: one, several, or texts that :func:`~boltzmix.planners.obstacles.parse` reads. The members of a union
            count each for itself.
        margin: metres in which the penalty sets in before contact.
        sharpness: energy for each metre, segment and obstacle inside.
        radius: of a round robot, in metres.
        name: what results call it.

    Raises:
        ValueError: no obstacles, negative numbers, or a space whose positions are not two.

    Example:
        >>> import torch
        >>> way = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
        >>> Avoid("disc:0,0,0.25").violation(way, TrajectorySpace(2, ("x", "y"))).tolist()
        [0.25]
    """

    def __init__(
        self,
        obstacles: Any,
        margin: float = 0.1,
        sharpness: float = 100.0,
        *,
        radius: float = 0.0,
        name: str | None = None,
    ) -> None:
        """Check the numbers and lay the obstacles out for evaluation together."""
        super().__init__(name)
        self.obstacles = as_obstacles(obstacles)
        if not self.obstacles:
            raise ValueError("Avoid needs at least one obstacle")
        self.margin = nonnegative(margin, "Avoid's margin")
        self.sharpness = positive(sharpness, "Avoid's sharpness")
        self.radius = nonnegative(radius, "Avoid's radius")
        self._groups = group(self.obstacles)

    def later(self, seconds: float) -> "Avoid":
        """The same task with obstacles that have moved for ``seconds``; itself where none of them moves."""
        moved = tuple(obstacle.later(seconds) for obstacle in self.obstacles)
        if all(new is old for new, old in zip(moved, self.obstacles, strict=True)):
            return self
        twin = copy.copy(self)
        twin.obstacles = moved
        twin._groups = group(twin.obstacles)
        return twin

    def _fit(self, space: TrajectorySpace) -> None:
        if len(space.position) != 2:
            raise ValueError(f"obstacles lie in the plane and this space has the position columns {space.position}")

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        segments = Segments.of(tau, space)
        energy = tau.new_zeros(tau.shape[0])
        for members in self._groups:
            rows, distance = members.least(segments, self.radius + self.margin)
            if len(rows):
                energy = energy.index_add(0, rows, hinge(distance - self.radius, self.margin))
        return self.sharpness * energy

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        segments = Segments.of(tau, space)
        depth = tau.new_zeros(tau.shape[0])
        for members in self._groups:
            rows, distance = members.least(segments, self.radius)
            if len(rows):
                depth = depth.scatter_reduce(0, rows, self.radius - distance, "amax")
        return depth
