r"""A proof that a goal cannot be reached: connected components of a grid over the known obstacles.

The free space of a ball of radius r among static obstacles is :math:`\{p : d(p) \ge r\}` with the signed distance d. It
is covered by square cells of side h. Since d is 1-Lipschitz, a cell with :math:`d(\text{centre}) < r - h/\sqrt 2` holds
no free point at all and is *blocked*; every other cell counts as open. A continuous free path passes through open cells
only, each a neighbour (by a side or a corner) of the one before. So where no chain of open cells leads from the start's
to the goal's there is no path: a proof, independent of any sampler, at every resolution. The converse does not hold:
gaps and walls thinner than about h are left open, as are seams of obstacles that only touch where r = 0, and a goal
that is not shown to be unreachable may be so.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Limits = Sequence[tuple[float, float]]


class Reachability:
    """Which parts of a plane are shut off from each other by static obstacles.

    Args:
        obstacles: with ``distance(points)``, 1-Lipschitz; those that move, and fields of given values, are left out.
        low: lowest corner of the grid, in metres.
        high: highest corner.
        radius: of the ball, in metres.
        closed: whether nothing passes beyond the corners (they are bounds); otherwise the outermost cells are open.
        resolution: side of a cell, in metres; None for the larger extent / 160.

    Raises:
        ValueError: a resolution that is not positive.

    Example:
        >>> class Wall:
        ...     def distance(self, points):
        ...         return points[..., 0].abs() - 0.5
        >>> Reachability([Wall()], (-2, -1), (2, 1)).apart((-1.5, 0.0), (1.5, 0.0))
        True
    """

    def __init__(
        self,
        obstacles: Sequence[Any],
        low: Sequence[float],
        high: Sequence[float],
        *,
        radius: float = 0.0,
        closed: bool = True,
        resolution: float | None = None,
    ) -> None:
        """Label the components."""
        extent = max(b - a for a, b in zip(low, high, strict=True))
        side = extent / 160 if resolution is None else float(resolution)
        if not 0 < side < math.inf:
            raise ValueError(f"resolution is the side of a cell, a positive length, got {resolution!r}")
        self.resolution, self.low = side, [float(a) for a in low]
        counts = [max(1, math.ceil((b - a) / side)) for a, b in zip(low, high, strict=True)]
        axes = [a + side * (torch.arange(k, dtype=torch.float64) + 0.5) for a, k in zip(self.low, counts, strict=True)]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        free = torch.ones(counts, dtype=torch.bool)
        for obstacle in obstacles:
            if proves(obstacle):
                free &= obstacle.distance(centres) >= radius - side / math.sqrt(2)
        if not closed:
            free[0, :] = free[-1, :] = free[:, 0] = free[:, -1] = True
        self.labels = components(free)

    def apart(self, start: Sequence[float], goal: Sequence[float]) -> bool:
        """Whether no path leads from one position to the other; nothing is said of positions in blocked cells."""
        here, there = int(self.labels[self._cell(start)]), int(self.labels[self._cell(goal)])
        return here != there and here > 0 and there > 0

    def _cell(self, point: Sequence[float]) -> tuple[int, ...]:
        places = (int((float(v) - a) // self.resolution) for v, a in zip(point, self.low, strict=True))
        return tuple(min(max(i, 0), k - 1) for i, k in zip(places, self.labels.shape, strict=True))


def components(free: Tensor) -> Tensor:
    """A number for each connected component of the open cells ``(I, J)``, by sides and corners; 0 where blocked."""
    labels = torch.where(free, torch.arange(1, free.numel() + 1, dtype=torch.float64).reshape(free.shape), 0.0)
    while True:
        grown = torch.nn.functional.max_pool2d(labels[None, None], 3, 1, 1)[0, 0]
        # the largest label of a neighbourhood, and the label of the cell that it names: chains halve
        grown = torch.where(free, torch.cat([labels.new_zeros(1), grown.flatten()])[grown.long()], 0.0)
        if torch.equal(grown, labels):
            return labels.long()
        labels = grown


def moves(obstacle: Any) -> bool:
    """Whether an obstacle is elsewhere at other times."""
    return bool(getattr(obstacle, "moves", type(obstacle).__name__ == "Moving"))


def proves(obstacle: Any) -> bool:
    """Whether an obstacle stands still and its distance is 1-Lipschitz, which values on a grid need not be."""
    inner = getattr(obstacle, "obstacle", obstacle)
    return not moves(obstacle) and type(inner).__name__ != "DistanceField"


def around(start: Sequence[float], goal: Sequence[float], obstacles: Sequence[Any], radius: float) -> tuple[Any, Any]:
    """Corners of a rectangle around two positions that reaches to the obstacles near them."""
    ends = torch.tensor([list(start), list(goal)], dtype=torch.float64)
    near = [float(o.distance(ends).abs().max()) for o in obstacles if proves(o)]
    reach = float((ends[1] - ends[0]).norm()) + max(near, default=0.0) + 4 * radius
    return (ends.amin(0) - reach).tolist(), (ends.amax(0) + reach).tolist()
