r"""The least signed distance between plans and obstacles, exactly and in numpy.

Along every segment the least signed distance to a disc, a box or a polygon is a formula, and so is that to a bilinear
distance field, which is a quadratic between two grid lines; nothing is sampled. Obstacles that move are seen from their
own frame, where a segment during which they keep their velocity stays straight.

Source: C. Ericson (2005), Real-Time Collision Detection, chapter 5.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from boltzmix.planners.obstacles import Box, Disc, DistanceField, Inflated, Moving, Obstacle, Polygon, Union

if TYPE_CHECKING:
    import numpy as np


def clearance(obstacle: Obstacle, positions: "np.ndarray", dt: float) -> "np.ndarray":
    """Least signed distance ``(N,)`` on the ways through positions ``(N, H, 2)`` at times 0, dt, …"""
    import numpy as np

    n, horizon, _ = positions.shape
    times = np.arange(horizon) * dt
    ways, moments = (positions, times) if horizon > 1 else (positions.repeat(2, 1), np.zeros(2))
    if isinstance(obstacle, Union):
        return np.min([clearance(o, positions, dt) for o in obstacle.obstacles], axis=0)
    if isinstance(obstacle, Inflated):
        return clearance(obstacle.obstacle, positions, dt) - obstacle.radius
    if isinstance(obstacle, Moving):
        ways, moments = _with_knots(ways, moments, [t for t, _, _ in obstacle.knots])
        seen = ways - _shifts(obstacle, moments)
        return _least(obstacle.obstacle, seen)
    if obstacle.moves:
        p, q = ways[:, :-1].reshape(-1, 2), ways[:, 1:].reshape(-1, 2)
        return _searched(obstacle, p, q, np.tile(moments[:-1], n), np.tile(moments[1:], n)).reshape(n, -1).min(1)
    return _least(obstacle, ways)


def _least(obstacle: Obstacle, ways: "np.ndarray") -> "np.ndarray":
    """Least signed distance ``(N,)`` of ways ``(N, H, 2)`` to an obstacle that stands still.

    A distance changes by no more than the way, so on a segment of length l whose ends are d and d' away it is at least
    (d + d' − l) / 2; segments on which that is above the least distance of their plan's tokens need no closer look.
    """
    import numpy as np

    if isinstance(obstacle, Union):
        return np.min([_least(o, ways) for o in obstacle.obstacles], axis=0)
    if isinstance(obstacle, Inflated):
        return _least(obstacle.obstacle, ways) - obstacle.radius
    n, horizon, _ = ways.shape
    points = ways.reshape(-1, 2)
    if isinstance(obstacle, DistanceField):  # bilinear, so steeper than a distance
        return _static(obstacle, ways[:, :-1].reshape(-1, 2), ways[:, 1:].reshape(-1, 2)).reshape(n, -1).min(1)
    ends = _static(obstacle, points, points).reshape(n, horizon)
    found = ends.min(1)
    length = np.linalg.norm(np.diff(ways, axis=1), axis=-1)
    plan, segment = np.nonzero((ends[:, :-1] + ends[:, 1:] - length) / 2 < found[:, None])
    np.minimum.at(found, plan, _static(obstacle, ways[plan, segment], ways[plan, segment + 1]))
    return found


def _static(obstacle: Obstacle, p: "np.ndarray", q: "np.ndarray") -> "np.ndarray":
    """Least signed distance ``(M,)`` on segments from p to q, ``(M, 2)``, to an obstacle that stands still."""
    import numpy as np

    if isinstance(obstacle, Disc):
        return point_segment(np.array([[obstacle.x, obstacle.y]]), p, q)[:, 0] - obstacle.radius
    if isinstance(obstacle, Box):
        return segment_box(obstacle, p, q)
    if isinstance(obstacle, Polygon):
        return segment_polygon(np.asarray(obstacle.vertices), p, q)
    if isinstance(obstacle, DistanceField):
        return segment_field(obstacle, p, q)
    if isinstance(obstacle, Inflated):
        return _static(obstacle.obstacle, p, q) - obstacle.radius
    if isinstance(obstacle, Union):
        return np.min([_static(o, p, q) for o in obstacle.obstacles], axis=0)
    return _searched(obstacle, p, q)


def point_segment(points: "np.ndarray", p: "np.ndarray", q: "np.ndarray") -> "np.ndarray":
    """Distances ``(M, K)`` of points ``(K, 2)`` to segments ``(M, 2)``."""
    import numpy as np

    along = (q - p)[:, None]
    offset = points[None] - p[:, None]
    length = (along**2).sum(-1)
    place = np.clip((offset * along).sum(-1) / np.where(length > 0, length, 1.0), 0.0, 1.0)
    return np.linalg.norm(offset - place[..., None] * along, axis=-1)


def segment_box(box: Box, p: "np.ndarray", q: "np.ndarray") -> "np.ndarray":
    r"""Least signed distance ``(M,)`` of segments to a box.

    Outside it is reached at an end of the segment or opposite a corner. Inside it is the least of
    :math:`\max(|x| - h_x, |y| - h_y)`, the largest of four functions that are linear along the segment, hence at an end
    or where two of these meet.
    """
    import numpy as np

    half = np.array([(box.x_high - box.x_low) / 2, (box.y_high - box.y_low) / 2])
    centre = np.array([(box.x_high + box.x_low) / 2, (box.y_high + box.y_low) / 2])
    p, q = p - centre, q - centre
    along = q - p
    length = (along**2).sum(1)
    corners = half * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    opposite = ((corners[None] - p[:, None]) * along[:, None]).sum(-1) / np.where(length > 0, length, 1.0)[:, None]
    # s·p(u) − h for the four sides, as value and slope; where two are equal
    value = np.stack([p[:, 0], -p[:, 0], p[:, 1], -p[:, 1]], 1) - np.repeat(half, 2)
    slope = np.stack([along[:, 0], -along[:, 0], along[:, 1], -along[:, 1]], 1)
    one, two = np.triu_indices(4, 1)
    difference = slope[:, two] - slope[:, one]
    meet = (value[:, one] - value[:, two]) / np.where(difference != 0, difference, 1.0)
    ends = np.broadcast_to([0.0, 1.0], (len(p), 2))
    places = np.clip(np.concatenate([ends, opposite, meet], 1), 0.0, 1.0)
    beyond = np.abs(p[:, None] + places[..., None] * along[:, None]) - half
    outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
    return (outside + np.minimum(beyond.max(-1), 0.0)).min(1)


def segment_polygon(corners: "np.ndarray", p: "np.ndarray", q: "np.ndarray") -> "np.ndarray":
    r"""Least signed distance ``(M,)`` of segments to a simple polygon ``(V, 2)``.

    A segment that neither starts inside nor crosses an edge is as far as its nearest edge. On others the depth, the
    distance to the nearest edge, is a minimum of convex functions of the place on the segment: each is one of
    "distance to a line" or "distance to a corner", so the deepest place is an end, or where two of these are equal
    (roots of quadratics). All of them are tried.
    """
    import numpy as np

    a, b = corners, np.roll(corners, -1, 0)
    apart = np.minimum(
        np.minimum(point_segment(corners, p, q).min(1), _to_edges(p, a, b).min(1)), _to_edges(q, a, b).min(1)
    )
    touches = apart <= 1e-12 * np.abs(corners).max()  # perhaps through a corner, where no edge is properly crossed
    enters = touches | crosses(p, q, a, b).any(1) | inside(p, corners) | inside(q, corners)
    found = np.where(enters, 0.0, apart)
    for m in np.flatnonzero(enters):
        places = _balanced(p[m], q[m], a, b)
        points = p[m] + places[:, None] * (q[m] - p[m])
        within = inside(points, corners)
        if within.any():
            found[m] = -_to_edges(points[within], a, b).min(1).max()
    return found


def inside(points: "np.ndarray", corners: "np.ndarray") -> "np.ndarray":
    """Whether points ``(M, 2)`` are inside a polygon: a ray crosses its outline an odd number of times."""
    import numpy as np

    x, y = points[:, :1], points[:, 1:]
    a, b = corners, np.roll(corners, -1, 0)
    spans = (a[:, 1] > y) != (b[:, 1] > y)
    rise = np.where(b[:, 1] != a[:, 1], b[:, 1] - a[:, 1], 1.0)
    right = x < a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / rise
    return (spans & right).sum(1) % 2 == 1


def crosses(p: "np.ndarray", q: "np.ndarray", a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """Whether segments ``(M, 2)`` and edges ``(V, 2)`` properly cross, ``(M, V)``; touching is distance 0, not this."""

    def side(o: "np.ndarray", u: "np.ndarray", v: "np.ndarray") -> "np.ndarray":
        first, second = u - o, v - o
        return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]

    p, q = p[:, None], q[:, None]
    return (side(p, q, a) * side(p, q, b) < 0) & (side(a, b, p) * side(a, b, q) < 0)


def _to_edges(points: "np.ndarray", a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """Distances ``(M, V)`` of points to edges."""
    return point_segment(points, a, b).T


def _balanced(p: "np.ndarray", q: "np.ndarray", a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """Places on one segment where squared distances to two lines or corners are equal, least, or end.

    Along the segment each squared distance is a quadratic in the place u, α u² + β u + γ.
    """
    import numpy as np

    along = q - p
    edge = b - a
    normal = np.stack([-edge[:, 1], edge[:, 0]], 1) / np.linalg.norm(edge, axis=1, keepdims=True)
    offset, slope = ((p - a) * normal).sum(1), normal @ along
    lines = np.stack([slope**2, 2 * slope * offset, offset**2], 1)
    away = p - a
    points = np.stack([np.full(len(a), along @ along), 2 * away @ along, (away**2).sum(1)], 1)
    quadratics = np.concatenate([lines, points])
    one, two = np.triu_indices(len(quadratics), 1)
    alpha, beta, gamma = (quadratics[one] - quadratics[two]).T
    small = np.abs(alpha) <= 1e-14 * max(float(along @ along), 1e-300)
    linear = np.where(small & (beta != 0), -gamma / np.where(beta != 0, beta, 1.0), 0.0)
    root = np.sqrt(np.maximum(beta**2 - 4 * alpha * gamma, 0.0))
    double = np.where(small, 1.0, 2 * alpha)
    ends_of_edges = _crossing_places(p, along, a, edge)
    found = np.concatenate(
        [
            [0.0, 1.0],
            linear,
            np.where(small, 0.0, (-beta + root) / double),
            np.where(small, 0.0, (-beta - root) / double),
        ]
    )
    # where the segment meets the outline it may only graze it: look between neighbours, too
    marks = np.unique(np.clip(np.concatenate([[0.0, 1.0], ends_of_edges]), 0.0, 1.0))
    return np.clip(np.concatenate([found, (marks[1:] + marks[:-1]) / 2]), 0.0, 1.0)


def _crossing_places(p: "np.ndarray", along: "np.ndarray", a: "np.ndarray", edge: "np.ndarray") -> "np.ndarray":
    """Where the line through a segment meets the lines through edges."""
    import numpy as np

    across = along[0] * edge[:, 1] - along[1] * edge[:, 0]
    offset = a - p
    return (offset[:, 0] * edge[:, 1] - offset[:, 1] * edge[:, 0]) / np.where(across != 0, across, np.inf)


def segment_field(obstacle: DistanceField, p: "np.ndarray", q: "np.ndarray") -> "np.ndarray":
    """Least value ``(M,)`` of a bilinear field on segments, which is a quadratic between two grid lines.

    Outside the grid the field is that of the nearest border point, which is bilinear in the clamped place, so the
    border's lines cut the segment like the others.
    """
    import numpy as np

    values = obstacle.values.double().numpy()
    nx, ny = values.shape
    p, q = ((v - np.asarray(obstacle.origin)) / obstacle.cell for v in (p, q))
    along = q - p
    cuts = []
    for axis, size in ((0, nx), (1, ny)):
        step = np.where(along[:, axis] != 0, along[:, axis], np.inf)
        cuts.append((np.arange(size) - p[:, axis, None]) / step[:, None])
    marks = np.sort(np.clip(np.concatenate([np.zeros((len(p), 1)), *cuts, np.ones((len(p), 1))], 1), 0.0, 1.0), 1)
    low, high = marks[:, :-1], marks[:, 1:]

    def value(place: "np.ndarray", cell: "np.ndarray") -> "np.ndarray":
        """The field at places of the piece whose middle is ``cell``, so that ends belong to the piece's own cell."""
        at = np.clip(p[:, None] + place[..., None] * along[:, None], 0.0, [nx - 1, ny - 1])
        middle = np.clip(p[:, None] + cell[..., None] * along[:, None], 0.0, [nx - 1, ny - 1])
        i = np.minimum(middle[..., 0].astype(int), nx - 2)
        j = np.minimum(middle[..., 1].astype(int), ny - 2)
        u, v = at[..., 0] - i, at[..., 1] - j
        return (values[i, j] * (1 - u) * (1 - v) + values[i + 1, j] * u * (1 - v)
                + values[i, j + 1] * (1 - u) * v + values[i + 1, j + 1] * u * v)  # fmt: skip

    middle = (low + high) / 2
    first, half, last = (value(t, middle) for t in (low, middle, high))
    # the quadratic through three places of the piece, in w ∈ [0, 1]
    bend = 2 * (first + last - 2 * half)
    slope = last - first - bend
    turn = np.clip(np.where(bend > 0, -slope / np.where(bend > 0, 2 * bend, 1.0), 0.0), 0.0, 1.0)
    lowest = first + slope * turn + bend * turn**2
    return np.minimum(np.minimum(first, last), lowest).min(1)


def _searched(
    obstacle: Obstacle,
    p: "np.ndarray",
    q: "np.ndarray",
    begin: "np.ndarray | None" = None,
    end: "np.ndarray | None" = None,
    precision: float = 1e-4,
) -> "np.ndarray":
    """Least distance ``(M,)`` to an obstacle of the user's own, within ``precision`` metres.

    Where it stands still, a distance changes by no more than the way, so an interval whose middle is d away holds
    nothing below d minus half its length; intervals that could are halved. Where it moves, its speed is not known, and
    1000 places of each segment are looked at.
    """
    import numpy as np
    import torch

    def distance(points: "np.ndarray", time: "np.ndarray | None") -> "np.ndarray":
        with torch.no_grad():
            seconds = None if time is None else torch.from_numpy(time)
            return obstacle.distance(torch.from_numpy(points), seconds).numpy()

    if begin is not None and end is not None:
        u = np.linspace(0.0, 1.0, 1001)
        points = p[:, None] + u[:, None] * (q - p)[:, None]
        return distance(points, begin[:, None] + u * (end - begin)[:, None]).min(1)
    found = np.minimum(distance(p, None), distance(q, None))
    length = np.linalg.norm(q - p, axis=1)
    which, low, width = np.arange(len(p)), np.zeros(len(p)), 1.0
    while len(which) and width > 1e-9:
        middle = low + width / 2
        d = distance(p[which] + middle[:, None] * (q - p)[which], None)
        np.minimum.at(found, which, d)
        open_ = d - length[which] * width / 2 < found[which] - precision
        which, low, width = np.repeat(which[open_], 2), np.repeat(low[open_], 2), width / 2
        low[1::2] += width
    return found


def _with_knots(ways: "np.ndarray", times: "np.ndarray", knots: Sequence[float]) -> tuple["np.ndarray", "np.ndarray"]:
    """Ways and times with places added where an obstacle changes its velocity."""
    import numpy as np

    extra = [t for t in knots if times[0] < t < times[-1]]
    every = np.unique(np.concatenate([times, extra])) if len(extra) else times
    if len(every) == len(times):
        return ways, times
    after = np.clip(np.searchsorted(times, every), 1, len(times) - 1)
    part = (every - times[after - 1]) / (times[after] - times[after - 1])
    return ways[:, after - 1] + part[:, None] * (ways[:, after] - ways[:, after - 1]), every


def _shifts(obstacle: Moving, times: "np.ndarray") -> "np.ndarray":
    """How far an obstacle has moved, ``(K, 2)``."""
    import numpy as np

    knots = np.asarray(obstacle.knots)
    if obstacle.velocity is not None:
        return knots[0, 1:] + (times[:, None] - knots[0, 0]) * np.asarray(obstacle.velocity)
    return np.stack([np.interp(times, knots[:, 0], knots[:, axis]) for axis in (1, 2)], 1)
