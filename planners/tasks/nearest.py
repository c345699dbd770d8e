r"""Where segments come nearest to obstacles, for many segments and obstacles at once.

Pairs whose bounding circles stay apart are left out first. For the others the place :math:`u \in [0, 1]` of the least
signed distance is found without a graph: among the places of :class:`Group` ``marks`` where a formula has it, else by a
search.

The gradient of a minimum over u is that of the distance at its place, with u held (the envelope theorem), where the
distance is differentiable along the segment. At a kink, on the medial axis of an obstacle, it is the mean of the
gradients on both sides, weighed so that the mean slope along the segment is 0:

.. math::
    \nabla \min_u d = \lambda \nabla d|_{u^-} + (1 - \lambda) \nabla d|_{u^+}, \qquad
    \lambda\, d'(u^-) + (1 - \lambda)\, d'(u^+) = 0 .

A segment that crosses a wall from side to side is as deep wherever it is shifted to, and this gradient says so.

Source: J. M. Danskin (1967), The Theory of Max-Min.

For discs, boxes and, outside them, polygons the least distance is exact. How deep a segment enters a polygon that is
not convex, and the least distance to a field or a motion through waypoints, may be missed by 1/32 of the segment's
length, half the step of the search's first round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boltzmix.planners.obstacles import Box, Disc, Inflated, Moving, Obstacle, Polygon, Union, box_distance
from boltzmix.planners.space import TrajectorySpace

# A search looks at 17 places of the segment, then as often between the neighbours of the best: 3 rounds leave 1/1024.
_PLACES, _ROUNDS = 17, 3
# How far from the least place the two sides of a kink are looked at: more than the search leaves, and, for gradients,
# as little as the dtype can tell apart.
_SIDES = {torch.float64: (1.0 / 512, 1.0 / 16384)}
_SIDE = (1.0 / 512,)


@dataclass(frozen=True)
class Segments:
    """The segments of N plans: their ends ``(N, K, 2)`` and the seconds of these, ``(K,)``."""

    start: Tensor
    stop: Tensor
    begins: Tensor
    ends: Tensor

    @classmethod
    def of(cls, tau: Tensor, space: TrajectorySpace) -> "Segments":
        """K = H − 1 segments; a single token is a segment that stands still."""
        positions, times = space.positions(tau), space.times(tau)
        if space.horizon == 1:
            return cls(positions, positions, times, times)
        return cls(positions[:, :-1], positions[:, 1:], times[:-1], times[1:])


class Table:
    """Numbers as a tensor, made once for each dtype and device."""

    def __init__(self, values: Sequence) -> None:
        """Hold them as lists."""
        self.values = values
        self._made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, t: Tensor) -> Tensor:
        """The tensor, of the dtype and on the device of ``t``."""
        where = (t.dtype, t.device)
        if where not in self._made:
            self._made[where] = t.new_tensor(self.values)
        return self._made[where]


@dataclass(frozen=True)
class Group:
    """Obstacles of one kind, evaluated together.

    Args:
        centres: ``(M, 2)`` of circles around the M members.
        reaches: ``(M,)``, the radii of these; infinite where there is none.
        distance: signed distances ``(R, J)`` from points ``(R, J, 2)``, which member ``(R,)`` and seconds ``(R, J)``.
        marks: places ``(R, J)`` of segments, from their ends ``(R, 2)`` and members, one of which is the nearest.
        search: whether to look between the marks, too.
        smooth: whether the distance has no kinks, so that its gradient is that at the least place.
        shift: how far a member has moved at times ``(K,)``, ``(K, 2)``; None where nothing moves.
    """

    centres: Table
    reaches: Table
    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    marks: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    search: bool = False
    smooth: bool = False
    shift: Callable[[Tensor], Tensor] | None = None

    def least(self, segments: Segments, within: float) -> tuple[Tensor, Tensor]:
        """Plans ``(R,)`` and least distances ``(R,)`` of the pairs of segments and members that come ``within``."""
        start, stop = segments.start, segments.stop
        if self.shift is not None:
            start, stop = start - self.shift(segments.begins), stop - self.shift(segments.ends)
        with torch.no_grad():
            row, segment, member = self._close(start, stop, within)
            p, q = start[row, segment], stop[row, segment]
            if not len(row):
                return row, p[:, 0]
            begin = segments.begins[segment]
            duration = segments.ends[segment] - begin
            place, distance = self._nearest(p, q, member, begin, duration)
            keep = (~(distance >= within)).nonzero()[:, 0]  # NaN is not far away: it is to be seen
        row, segment, member, place = row[keep], segment[keep], member[keep], place[keep]
        if not (torch.is_grad_enabled() and (start.requires_grad or stop.requires_grad)):
            return row, distance[keep]
        p, q, begin, duration = start[row, segment], stop[row, segment], begin[keep], duration[keep]
        if self.smooth:
            return row, self._at(place[:, None], p, q, member, begin, duration)[:, 0]
        with torch.no_grad():
            around, found = self._sides(_SIDES.get(p.dtype, _SIDE)[-1], place, p, q, member, begin, duration)
            falls, rises = (found[:, 0] - found[:, 1]).relu(), (found[:, 3] - found[:, 2]).relu()
            weight = torch.where(falls + rises > 0, rises / (falls + rises), 0.5)
            aside = (around[:, 1:3] - place[:, None])[..., None] * (q - p)[:, None]
        # the normals are those on both sides, the place whose motion they measure is the least one
        points = torch.lerp(p, q, place[:, None])[:, None] + aside
        sides = self.distance(points, member, begin[:, None] + around[:, 1:3] * duration[:, None])
        mean = torch.lerp(sides[:, 1], sides[:, 0], weight)
        return row, distance[keep] + (mean - mean.detach())

    def _close(self, start: Tensor, stop: Tensor, within: float) -> tuple[Tensor, Tensor, Tensor]:
        """Plans, segments and members whose circles come within reach."""
        centres, reaches = self.centres.like(start), self.reaches.like(start)
        along = (stop - start)[..., None, :]
        offset = centres - start[..., None, :]  # (N, K, M, 2)
        gap = offset - opposite(offset, along)[..., None] * along
        far = (gap * gap).sum(-1) >= (reaches + within).square()
        row, segment, member = (~far).nonzero(as_tuple=True)
        return row, segment, member

    def _nearest(self, p: Tensor, q: Tensor, member: Tensor, begin: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        """Where on each segment the distance is least, ``(R,)`` in [0, 1], and the distance there."""
        marks = [] if self.marks is None else [self.marks(p, q, member).clamp(0.0, 1.0)]
        steps = torch.linspace(0.0, 1.0, _PLACES, dtype=p.dtype, device=p.device)
        if self.search:
            marks.append(steps.expand(len(p), _PLACES))
        places = torch.cat(marks, 1) if len(marks) > 1 else marks[0]
        place, distance = self._best(places, p, q, member, begin, duration)
        reach = 1.0 / (_PLACES - 1)
        for _ in range(_ROUNDS - 1 if self.search else 0):
            low, high = (place - reach).clamp(min=0.0), (place + reach).clamp(max=1.0)
            places = torch.cat([place[:, None], torch.lerp(low[:, None], high[:, None], steps)], 1)
            place, distance = self._best(places, p, q, member, begin, duration)
            reach = 2 * reach / (_PLACES - 1)
        for width in _SIDES.get(p.dtype, _SIDE) if self.search else ():
            place, distance = self._sharpened(width, place, distance, p, q, member, begin, duration)
        return place, distance

    def _sharpened(
        self,
        width: float,
        place: Tensor,
        distance: Tensor,
        p: Tensor,
        q: Tensor,
        member: Tensor,
        begin: Tensor,
        duration: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The least of a place, of where straight lines from both sides of it meet, and of a parabola's vertex."""
        around, found = self._sides(width, place, p, q, member, begin, duration)
        step = around[:, 1] - around[:, 0]
        rise, fall = (found[:, 3] - found[:, 2]) / step, (found[:, 1] - found[:, 0]) / step
        # left line through (around₁, found₁) of slope `fall`, right line through (around₂, found₂) of slope `rise`
        turn = rise - fall
        meet = (found[:, 1] - found[:, 2] + rise * around[:, 2] - fall * around[:, 1]) / torch.where(turn > 0, turn, 1)
        meet = torch.where((turn > 0) & (step > 0), meet, place).clamp(around[:, 1], around[:, 2])
        bend = found[:, 0] + found[:, 3] - 2 * distance
        shift = 2 * step * (found[:, 0] - found[:, 3]) / (2 * torch.where(bend > 0, bend, 1))
        vertex = torch.where(bend > 0, place + shift, place).clamp(around[:, 0], around[:, 3])
        return self._best(torch.stack([place, meet, vertex], 1), p, q, member, begin, duration)

    def _sides(
        self, width: float, place: Tensor, p: Tensor, q: Tensor, member: Tensor, begin: Tensor, duration: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two places on either side of a place, ``(R, 4)``, and the distances there; fewer apart near the ends."""
        side = torch.minimum(place, 1 - place).div(2).clamp(max=width)[:, None]
        around = place[:, None] + side * place.new_tensor([-2.0, -1.0, 1.0, 2.0])
        return around, self._at(around, p, q, member, begin, duration)

    def _best(
        self, places: Tensor, p: Tensor, q: Tensor, member: Tensor, begin: Tensor, duration: Tensor
    ) -> tuple[Tensor, Tensor]:
        distance, which = self._at(places, p, q, member, begin, duration).min(1, keepdim=True)
        return places.gather(1, which)[:, 0], distance[:, 0]

    def _at(self, places: Tensor, p: Tensor, q: Tensor, member: Tensor, begin: Tensor, duration: Tensor) -> Tensor:
        """Distances at places ``(R, J)`` of the segments."""
        points = torch.lerp(p[:, None], q[:, None], places[..., None])
        return self.distance(points, member, begin[:, None] + places * duration[:, None])


def opposite(offset: Tensor, along: Tensor) -> Tensor:
    """Places in [0, 1] of segments that are nearest to points, by the way from their start to each, ``(…, 2)``."""
    length = (along * along).sum(-1).clamp(min=torch.finfo(along.dtype).tiny)
    return ((offset * along).sum(-1) / length).clamp(0.0, 1.0)


def group(obstacles: Sequence[Obstacle]) -> tuple[Group, ...]:
    """Discs together, boxes together, and each of the others alone; unions are opened."""
    listed = [member for o in obstacles for member in _opened(o)]
    discs = [o for o in listed if isinstance(o, Disc)]
    boxes = [o for o in listed if isinstance(o, Box)]
    found = [_discs(discs)] if discs else []
    if boxes:
        found.append(_boxes(boxes))
    return (*found, *(_alone(o) for o in listed if not isinstance(o, (Disc, Box))))


def _opened(obstacle: Obstacle) -> list[Obstacle]:
    if isinstance(obstacle, Union):
        return [member for o in obstacle.obstacles for member in _opened(o)]
    return [obstacle]


def _discs(discs: Sequence[Disc]) -> Group:
    centres, radii = Table([(o.x, o.y) for o in discs]), Table([o.radius for o in discs])

    def distance(points: Tensor, member: Tensor, seconds: Tensor) -> Tensor:
        away = points - centres.like(points)[member][:, None]
        return torch.linalg.vector_norm(away, dim=-1) - radii.like(points)[member][:, None]

    def marks(p: Tensor, q: Tensor, member: Tensor) -> Tensor:
        return opposite(centres.like(p)[member] - p, q - p)[:, None]

    return Group(centres, radii, distance, marks, smooth=True)


def _boxes(boxes: Sequence[Box]) -> Group:
    circles = [_circle(o) for o in boxes]
    centres = Table([c for c, _ in circles])
    halves = Table([((o.x_high - o.x_low) / 2, (o.y_high - o.y_low) / 2) for o in boxes])
    signs = Table([(1, 1), (1, -1), (-1, 1), (-1, -1)])

    def distance(points: Tensor, member: Tensor, seconds: Tensor) -> Tensor:
        away = points - centres.like(points)[member][:, None]
        return box_distance(away, halves.like(points)[member][:, None])

    def marks(p: Tensor, q: Tensor, member: Tensor) -> Tensor:
        """Ends and places opposite corners for what is outside; inside, where |x| − h_x or |y| − h_y turn or meet."""
        p, along, half = p - centres.like(p)[member], q - p, halves.like(p)[member]
        corners = half[:, None] * signs.like(p)
        near = opposite(corners - p[:, None], along[:, None])
        tiny = torch.finfo(p.dtype).tiny
        turns = -p / torch.where(along.abs() < tiny, tiny, along)
        # |x| − h_x = |y| − h_y on the diagonals x ± y = ±(h_x − h_y)
        sides, slopes = (
            torch.stack([p.sum(1), p[:, 0] - p[:, 1]], 1),
            torch.stack([along.sum(1), along[:, 0] - along[:, 1]], 1),
        )
        slopes = torch.where(slopes.abs() < tiny, tiny, slopes)
        gap = (half[:, 0] - half[:, 1])[:, None]
        ends = torch.zeros_like(p)
        ends[:, 1] = 1.0
        return torch.cat([ends, near, turns, (gap - sides) / slopes, (-gap - sides) / slopes], 1)

    return Group(centres, Table([r for _, r in circles]), distance, marks)


def _alone(obstacle: Obstacle) -> Group:
    """Any obstacle; at constant velocity it is seen from its own frame, where segments stay straight."""
    if isinstance(obstacle, Moving) and obstacle.velocity is not None and not isinstance(obstacle.obstacle, Union):
        still = group([obstacle.obstacle])[0]
        return replace(still, shift=obstacle.shift)

    def distance(points: Tensor, member: Tensor, seconds: Tensor) -> Tensor:
        return obstacle._distance(points, seconds)

    centre, reach = ((0.0, 0.0), math.inf) if obstacle.moves else _circle(obstacle)
    inner = obstacle.obstacle if isinstance(obstacle, Inflated) else obstacle
    marks = _corners(inner) if isinstance(inner, Polygon) else None
    return Group(Table([centre]), Table([reach]), distance, marks, search=True)


def _corners(polygon: Polygon) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Places opposite a polygon's corners, and midway between those where a segment meets its edges' lines."""
    table = Table(polygon.vertices)

    def marks(p: Tensor, q: Tensor, member: Tensor) -> Tensor:
        a = table.like(p)
        edge, along, offset = a.roll(-1, 0) - a, (q - p)[:, None], a - p[:, None]
        across = along[..., 0] * edge[:, 1] - along[..., 1] * edge[:, 0]
        meet = (offset[..., 0] * edge[:, 1] - offset[..., 1] * edge[:, 0]) / torch.where(across == 0, torch.inf, across)
        cuts = torch.cat([meet.clamp(0.0, 1.0), torch.zeros_like(p)], 1)
        cuts[:, -1] = 1.0
        cuts = cuts.sort(1).values
        return torch.cat([opposite(offset, along), (cuts[:, 1:] + cuts[:, :-1]) / 2], 1)

    return marks


def _circle(obstacle: Obstacle) -> tuple[tuple[float, float], float]:
    """A circle around the extent."""
    x_low, y_low, x_high, y_high = obstacle.extent
    if not all(math.isfinite(v) for v in (x_low, y_low, x_high, y_high)):
        return (0.0, 0.0), math.inf
    return ((x_low + x_high) / 2, (y_low + y_high) / 2), math.hypot(x_high - x_low, y_high - y_low) / 2
