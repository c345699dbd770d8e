"""Several obstacles as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.planners.obstacles.base import Extent, Obstacle
from boltzmix.planners.obstacles.texts import as_obstacles


class Union(Obstacle):
    """Several obstacles as one: the least of their distances, exact outside and a bound inside where they overlap."""

    def __init__(self, obstacles: Sequence[Obstacle]) -> None:
        """Hold them."""
        self.obstacles = as_obstacles(obstacles)
        if not self.obstacles:
            raise ValueError("a union needs at least one obstacle")
        self.moves = any(o.moves for o in self.obstacles)

    def __repr__(self) -> str:
        """The members."""
        return f"Union({list(self.obstacles)!r})"

    @property
    def extent(self) -> Extent:
        """The rectangle around all."""
        low_x, low_y, high_x, high_y = zip(*(o.extent for o in self.obstacles), strict=True)
        return (min(low_x), min(low_y), max(high_x), max(high_y))

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        return torch.stack([o._distance(points, time) for o in self.obstacles]).amin(0)

    def inflated(self, radius: float) -> Obstacle:
        """Every member, grown."""
        return Union([o.inflated(radius) for o in self.obstacles])

    def later(self, seconds: float) -> Obstacle:
        """The later members."""
        return Union([o.later(seconds) for o in self.obstacles])
