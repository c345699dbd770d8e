r"""Shortest paths for a ball among boxes and discs.

A ball of radius r may be where the distance to every obstacle is at least r. The shortest path between two such points
is a taut string: straight segments, and arcs of radius r around convex corners (R + r around discs). Here each arc is
replaced by the polygon that touches it from outside, whose vertices are the nodes of a visibility graph: two nodes are
joined if the segment between them keeps the distance r. Paths in this graph are therefore feasible, exactly, and longer
than the taut string by at most the factor tan(δ/2)/(δ/2) on arcs, where δ is the angle between vertices (0.3 % for the
eight vertices of a quarter turn that are the default).

Source: T. Lozano-Pérez and M. Wesley (1979), "An algorithm for planning collision-free paths among polyhedral
obstacles", Communications of the ACM.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Point = Sequence[float] | Any
_SLACK = 1e-9


def _box_distance(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances ``(M, B)`` of points ``(M, 2)`` from boxes ``(B, 4)``; 0 inside."""
    low, high = boxes[:, :2], boxes[:, 2:]
    outside = torch.maximum(low - points[:, None], points[:, None] - high).clamp_min(0.0)
    return outside.square().sum(-1).sqrt()


def _point_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances ``(M, K)`` of points ``(K, 2)`` from segments ``(M, 2)``."""
    along = end - start
    length = along.square().sum(-1).clamp_min(1e-300)
    share = ((points - start[:, None]) * along[:, None]).sum(-1) / length[:, None]
    nearest = start[:, None] + share.clamp(0.0, 1.0)[..., None] * along[:, None]
    return (points - nearest).square().sum(-1).sqrt()


def segment_clearance(start: Tensor, end: Tensor, boxes: Tensor, discs: Tensor) -> Tensor:
    """The distance ``(M,)`` between segments and the nearest obstacle: 0 where they meet, inf without obstacles.

    Args:
        start: float64 ``(M, 2)``.
        end: ``(M, 2)``.
        boxes: ``(B, 4)``: x_low, y_low, x_high, y_high.
        discs: ``(K, 3)``: x, y, radius.

    Example:
        >>> wall = torch.tensor([[1.0, -1.0, 2.0, 1.0]], dtype=torch.float64)
        >>> start, end = torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]]).double().unbind(0), None
        >>> a = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> b = torch.tensor([[3.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
        >>> segment_clearance(a, b, wall, torch.zeros(0, 3, dtype=torch.float64)).tolist()
        [0.0, 1.0]
    """
    found = torch.full((len(start),), math.inf, dtype=torch.float64)
    if len(boxes):
        low, high = boxes[:, :2], boxes[:, 2:]
        along = (end - start)[:, None]
        first, second = (low - start[:, None]) / along, (high - start[:, None]) / along
        within = (start[:, None] >= low) & (start[:, None] <= high)
        parallel = along == 0.0
        enter = torch.where(
            parallel, torch.where(within, -math.inf, math.inf).double(), torch.minimum(first, second)
        ).amax(-1)
        leave = torch.where(
            parallel, torch.where(within, math.inf, -math.inf).double(), torch.maximum(first, second)
        ).amin(-1)
        meets = (torch.maximum(enter, torch.zeros(())) <= torch.minimum(leave, torch.ones(()))).any(-1)
        corners = torch.stack([boxes[:, [i, j]] for i in (0, 2) for j in (1, 3)], 1).reshape(-1, 2)
        apart = torch.minimum(_box_distance(start, boxes), _box_distance(end, boxes)).amin(-1)
        apart = torch.minimum(apart, _point_segment(corners, start, end).amin(-1))
        found = torch.where(meets, 0.0, apart)
    if len(discs):
        apart = (_point_segment(discs[:, :2], start, end) - discs[:, 2]).amin(-1)
        found = torch.minimum(found, apart.clamp_min(0.0))
    return found


class VisibilityGraph:
    """All shortest paths of a ball among boxes and discs, within bounds.

    Args:
        boxes: ``(x_low, y_low, x_high, y_high)`` each.
        discs: ``(x, y, radius)`` each.
        radius: of the ball, > 0.
        bounds: ``((x_low, x_high), (y_low, y_high))``, which the ball's centre keeps to; None for no bounds.
        arc: vertices of a quarter turn.

    Raises:
        ValueError: a radius that is not positive.

    Example:
        >>> graph = VisibilityGraph(boxes=[(-1, -5, 1, 0)], discs=[], radius=0.5)
        >>> length, path = graph.path((-2, -1), (2, -1))
        >>> round(length, 3), path[0], path[-1]
        (5.796, (-2.0, -1.0), (2.0, -1.0))
        >>> graph.path((-2, 2), (2, 2))[0]
        4.0
    """

    def __init__(
        self,
        boxes: Sequence[Sequence[float]],
        discs: Sequence[Sequence[float]],
        radius: float,
        bounds: Sequence[Sequence[float]] | None = None,
        arc: int = 8,
    ) -> None:
        if not radius > 0.0:
            raise ValueError(f"a shortest path needs the radius of the ball, > 0, got {radius!r}")
        self.radius, self.bounds, self.arc = float(radius), bounds, arc
        self.boxes = torch.tensor([list(box) for box in boxes], dtype=torch.float64).reshape(-1, 4)
        self.discs = torch.tensor([list(disc) for disc in discs], dtype=torch.float64).reshape(-1, 3)
        nodes = self._nodes()
        self.nodes = nodes[(self.clearance(nodes) >= self.radius - _SLACK) & self._inside(nodes)]
        self._connect()

    def clearance(self, points: Tensor) -> Tensor:
        """Distance ``(M,)`` of points from the nearest obstacle; 0 inside one."""
        return segment_clearance(points, points, self.boxes, self.discs)

    def path(self, start: Point, goal: Point) -> tuple[float, list[tuple[float, float]]]:
        """Length and vertices of the shortest path; ``(inf, [])`` where there is none.

        A start or a goal that is nearer to an obstacle than the radius may be left along any segment that comes no
        nearer; one inside an obstacle has no path.
        """
        ends = torch.tensor([[float(start[0]), float(start[1])], [float(goal[0]), float(goal[1])]], dtype=torch.float64)
        room = self.clearance(ends)
        if not bool((room > 0.0).all()):
            return math.inf, []
        needed = room.clamp_max(self.radius) - _SLACK
        gap = float((ends[1] - ends[0]).square().sum().sqrt())
        straight = segment_clearance(ends[:1], ends[1:], self.boxes, self.discs)
        vertices = [(float(x), float(y)) for x, y in ends.tolist()]
        if float(straight) >= float(needed.min()):
            return gap, vertices
        if not len(self.nodes):
            return math.inf, []
        reach = [self._seen(end, float(least)) for end, least in zip(ends, needed, strict=True)]
        total = reach[0][:, None] + self._lengths + reach[1][None]
        best = int(total.argmin())
        first, last = divmod(best, len(self.nodes))
        length = float(total[first, last])
        if not math.isfinite(length):
            return math.inf, []
        between = [last]
        while between[-1] != first:
            between.append(int(self._before[first, between[-1]]))
        middle = [tuple(self.nodes[index].tolist()) for index in reversed(between)]
        return length, [vertices[0], *middle, vertices[1]]

    def _seen(self, point: Tensor, least: float) -> Tensor:
        """Distances ``(K,)`` from a point to the nodes that it sees, inf to the others."""
        start = point.expand_as(self.nodes)
        clear = segment_clearance(start, self.nodes, self.boxes, self.discs) >= least
        return torch.where(clear, (self.nodes - start).square().sum(-1).sqrt(), math.inf)

    def _nodes(self) -> Tensor:
        step = 0.5 * math.pi / self.arc
        out = 1.0 / math.cos(0.5 * step)  # so that the sides of the polygon touch the arc
        found = [torch.zeros(0, 2, dtype=torch.float64)]
        angles = (torch.arange(self.arc, dtype=torch.float64) + 0.5) * step
        for (i, j), quarter in {(2, 3): 0, (0, 3): 1, (0, 1): 2, (2, 1): 3}.items():
            turned = angles + 0.5 * math.pi * quarter
            ring = self.radius * out * torch.stack([turned.cos(), turned.sin()], -1)
            found.append((self.boxes[:, None, [i, j]] + ring).reshape(-1, 2))
        turned = (torch.arange(4 * self.arc, dtype=torch.float64) + 0.5) * step
        ring = out * torch.stack([turned.cos(), turned.sin()], -1)
        found.append((self.discs[:, None, :2] + (self.discs[:, None, 2:] + self.radius) * ring).reshape(-1, 2))
        return torch.unique(torch.cat(found).mul(1e10).round().div(1e10), dim=0)

    def _inside(self, points: Tensor) -> Tensor:
        inside = torch.ones(len(points), dtype=torch.bool)
        for axis, (low, high) in enumerate(self.bounds or ()):
            inside &= (points[:, axis] >= low - _SLACK) & (points[:, axis] <= high + _SLACK)
        return inside

    def _connect(self) -> None:
        from scipy.sparse.csgraph import shortest_path

        count = len(self.nodes)
        first, second = torch.triu_indices(count, count, 1)
        clear = torch.zeros(len(first), dtype=torch.bool)
        for part in torch.arange(len(first)).split(20_000):
            start, end = self.nodes[first[part]], self.nodes[second[part]]
            clear[part] = segment_clearance(start, end, self.boxes, self.discs) >= self.radius - _SLACK
        gaps = torch.zeros(count, count, dtype=torch.float64)  # 0 stands for no edge
        first, second = first[clear], second[clear]
        gaps[first, second] = (self.nodes[first] - self.nodes[second]).square().sum(-1).sqrt()
        if count == 0:
            self._lengths, self._before = gaps, gaps.long()
            return
        lengths, before = shortest_path(gaps.numpy(), directed=False, return_predecessors=True)
        self._lengths, self._before = torch.from_numpy(lengths), torch.from_numpy(before)
