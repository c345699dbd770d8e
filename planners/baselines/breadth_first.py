"""The oracle: breadth-first search over the cells of a grid laid on the free space, then the path pulled taut.

Cells are the points of a square grid that the ball may occupy; a step goes to one of the sixteen neighbours at offsets
(±1, 0), (±1, ±1), (±2, ±1) and their mirror images, where the segment between them is certified free. Steps cost their
length, so the search expands cells in the order of their distance from the start: breadth-first with unequal steps
(uniform-cost search; Dijkstra 1959, "A note on two problems in connexion with graphs"). Sixteen directions bound the
length on the grid by 1/cos(13.3°) ≈ 1.028 of the true one, which decides between routes; the chosen route is then
pulled taut (:func:`shorten`), and its length is that of the any-angle path up to the resolution.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.planners.baselines.base import Baseline, Found, Question
from boltzmix.planners.baselines.geometry import Limits, Surroundings, length, margins, shorten
from boltzmix.planners.baselines.timing import timed

_STEPS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))  # and their opposites


@dataclass(frozen=True)
class BreadthFirst(Baseline):
    """Shortest route over a grid of the free space, pulled taut: an oracle that knows every obstacle.

    An evaluation is one distance of one point to the obstacles.

    Args:
        cell: spacing of the grid in units of length; None takes a 64th of the larger extent. Gaps narrower than two
            cells may be missed.
        margin: clearance of the path beyond the radius, in metres: the chords between tokens cut corners, and
            controllers do, too. Where a start or a goal is nearer to an obstacle, or no route is left, the margin is
            halved, four times at most, and then given up.
        speed, acceleration, cut: of the motion along the path, see :func:`timed`.
        resolution: of certified segments, see :class:`Surroundings`.
    """

    cell: float | None = None
    margin: float = 0.05
    speed: float | None = None
    acceleration: float | None = None
    cut: float = 0.05
    resolution: float | None = None

    evaluation: ClassVar[str] = "distance to the obstacles"

    def _search(self, question: Question) -> Found:
        goal = question.needs_goal("BreadthFirst")
        queries, path = 0, None
        for margin in margins(self.margin):
            surroundings = question.surroundings("BreadthFirst", self.resolution, margin)
            path = route(question.position, goal, surroundings, self.cell)
            queries += surroundings.queries
            if path is not None:
                break
        if path is None:
            return Found(None, queries, reason="goal: no route leads there over the grid's free cells")
        positions, velocities = timed(
            path,
            question.space.horizon,
            question.space.dt,
            speed=self.speed,
            acceleration=self.acceleration,
            initial_speed=question.speed_along(path),
            cut=self.cut,
        )
        plans = question.trajectory(positions[None], velocities[None]).repeat(question.n, 1, 1)
        return Found(plans, queries, info={"path": path.numpy(), "length": float(length(path))})


def route(start: Tensor, goal: Tensor, surroundings: Surroundings, cell: float | None = None) -> Tensor | None:
    """The taut shortest path ``(K, 2)`` on a grid over the free space, or None where there is none.

    Raises:
        ValueError: a spacing that is not positive; no bounds, where a grid has no end.
    """
    if surroundings.bounds is None:
        raise ValueError("breadth-first search lays a grid over bounds: give bounds=((x_low, x_high), (y_low, y_high))")
    if not bool(surroundings.free(torch.stack([start, goal])).all()):
        return None
    if bool(surroundings.clear(start[None], goal[None])):
        return torch.stack([start, goal])
    points, edges, spans = _graph(surroundings, cell)
    ends = torch.stack([start, goal])
    count = len(points)
    first, second, spans = [edges[0]], [edges[1]], [spans]
    reach = 3.0 * float((points[1:] - points[:-1]).norm(dim=-1).min()) if count > 1 else math.inf
    for number, end in enumerate(ends):  # each end joins the grid points that it sees nearby
        near = ((points - end).norm(dim=-1) <= reach).nonzero()[:, 0]
        near = near[surroundings.clear(end.expand(len(near), 2), points[near])]
        first.append(torch.full_like(near, count + number))
        second.append(near)
        spans.append((points[near] - end).norm(dim=-1))
    chain = _shortest(torch.cat(first), torch.cat(second), torch.cat(spans), count + 2, count, count + 1)
    if chain is None:
        return None
    return shorten(torch.cat([points, ends])[chain], surroundings)


def _graph(surroundings: Surroundings, cell: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Free grid points ``(M, 2)``, edges ``(2, E)`` between them, and the edges' lengths."""
    bounds: Limits = surroundings.bounds or ()
    extent = max(high - low for low, high in bounds)
    cell = extent / 64 if cell is None else cell
    if not cell > 0:
        raise ValueError(f"cell is a positive length, got {cell}")
    x, y = (torch.arange(low, high + 0.5 * cell, cell, dtype=torch.float64) for low, high in bounds)
    grid = torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)
    free = surroundings.free(grid)
    number = torch.full(free.shape, -1)
    number[free] = torch.arange(int(free.sum()))
    points = grid[free]
    edges = []
    for i, j in _STEPS:
        here = number[: -i or None, max(0, -j) : len(y) - max(0, j)]
        there = number[i:, max(0, j) : len(y) + min(0, j)]
        both = (here >= 0) & (there >= 0)
        edges.append(torch.stack([here[both], there[both]]))
    pairs = torch.cat(edges, dim=1)
    pairs = pairs[:, surroundings.clear(points[pairs[0]], points[pairs[1]])]
    return points, pairs, (points[pairs[0]] - points[pairs[1]]).norm(dim=-1)


def _shortest(first: Tensor, second: Tensor, spans: Tensor, count: int, source: int, target: int) -> list[int] | None:
    """The cheapest chain of nodes in an undirected graph, or None."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    graph = coo_array((spans.numpy(), (first.numpy(), second.numpy())), shape=(count, count)).tocsr()
    reached, before = dijkstra(graph, directed=False, indices=source, return_predecessors=True)
    if not math.isfinite(reached[target]):
        return None
    chain = [target]
    while chain[-1] != source:
        chain.append(int(before[chain[-1]]))
    return chain[::-1]
