"""Points, segments and polylines among obstacles, as the geometric baselines need them.

An obstacle's ``distance`` is 1-Lipschitz, so the distance d at a point proves a ball of radius d around it to be free.
A segment is therefore certified by walking along it in steps of the distance itself (sphere tracing, Hart 1996), and
not by sampling it at a spacing that was guessed. Walking must not stall where a path touches the clearance it was asked
for: a step is at least the resolution h, and what is asked for is h/2 more than the clearance. Two samples s apart with
distances d₁ ≥ h/2, d₂ ≥ h/2 and s = max(d₁, h) leave at least (d₁ + d₂ − s)/2 ≥ 0 between them, so a segment that
passes is clear, and one that fails comes nearer than the clearance plus h/2.

The feasibility of a result is decided by :func:`boltzmix.planners.checker.check`, which shares no code with this file.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class HasDistance(Protocol):
    """What the baselines ask of an obstacle."""

    def distance(self, points: Tensor, time: Tensor | None = None) -> Tensor: ...


Limits = Sequence[tuple[float, float]]


class Surroundings:
    """The free space of a ball among static obstacles: distances, certified segments, and a count of what was asked.

    Args:
        obstacles: objects with ``distance(points (..., 2)) -> (...)``, negative inside.
        radius: of the ball that moves.
        bounds: ``((x_low, x_high), (y_low, y_high))`` that its centre keeps, or None.
        resolution: h, the shortest step of a walk along a segment, in units of length; None takes one 500th of the
            extent of the bounds, or 0.01 without bounds.

    Raises:
        ValueError: a negative radius, a resolution that is not positive, bounds that are not two increasing pairs.
    """

    def __init__(
        self,
        obstacles: Sequence[HasDistance] = (),
        radius: float = 0.0,
        bounds: Limits | None = None,
        resolution: float | None = None,
    ) -> None:
        if not radius >= 0 or math.isinf(radius):
            raise ValueError(f"radius is a finite number ≥ 0, got {radius}")
        if bounds is not None and (len(bounds) != 2 or not all(low < high for low, high in bounds)):
            raise ValueError(f"bounds are ((x_low, x_high), (y_low, y_high)) with low < high, got {bounds}")
        if resolution is None:
            resolution = 0.01 if bounds is None else max(high - low for low, high in bounds) / 500
        if not resolution > 0 or math.isinf(resolution):
            raise ValueError(f"resolution is a positive length, got {resolution}")
        self.obstacles = tuple(obstacles)
        self.radius = float(radius)
        self.bounds = None if bounds is None else tuple((float(low), float(high)) for low, high in bounds)
        self.resolution = float(resolution)
        self.queries = 0

    def distance(self, points: Tensor) -> Tensor:
        """Distance from the ball's surface to the nearest obstacle, +inf without obstacles; ``(..., 2) -> (...)``.

        Bounds are kept by the centre of the ball and count as walls there.
        """
        self.queries += points[..., 0].numel()
        nearest = torch.full(points.shape[:-1], math.inf, dtype=points.dtype, device=points.device)
        for obstacle in self.obstacles:
            nearest = torch.minimum(nearest, obstacle.distance(points) - self.radius)
        if self.bounds is not None:
            (x_low, x_high), (y_low, y_high) = self.bounds
            x, y = points.unbind(-1)
            inside = torch.stack([x - x_low, x_high - x, y - y_low, y_high - y]).amin(0)
            # Touching a bound is allowed, touching an obstacle is a collision: half a step of slack, used up by `free`.
            nearest = torch.minimum(nearest, inside + 0.5 * self.resolution)
        return nearest

    def free(self, points: Tensor) -> Tensor:
        """Whether points are h/2 farther from every obstacle than the radius; ``(..., 2) -> (...)`` bool."""
        return self.distance(points) >= 0.5 * self.resolution

    def clear(self, starts: Tensor, ends: Tensor) -> Tensor:
        """Whether each segment is certified free; ``(M, 2), (M, 2) -> (M,)`` bool."""
        span = (ends - starts).norm(dim=-1)
        direction = (ends - starts) / span.clamp_min(torch.finfo(starts.dtype).tiny)[:, None]
        verdict = torch.ones(len(starts), dtype=torch.bool)
        walking = torch.arange(len(starts))
        along = torch.zeros_like(span)
        while walking.numel():
            here = self.distance(starts[walking] + along[walking, None] * direction[walking])
            hit = here < 0.5 * self.resolution
            verdict[walking[hit]] = False
            arrived = along[walking] >= span[walking]
            on = ~hit & ~arrived
            walking, here = walking[on], here[on]
            along[walking] = torch.minimum(along[walking] + here.clamp_min(self.resolution), span[walking])
        return verdict

    def path_is_clear(self, path: Tensor) -> bool:
        """Whether every segment of a polyline ``(K, 2)`` is certified free."""
        return bool(self.clear(path[:-1], path[1:]).all()) if len(path) > 1 else bool(self.free(path).all())


def margins(largest: float) -> list[float]:
    """A margin, its halves, and none: what is asked of a path until one is found.

    Raises:
        ValueError: a negative margin.
    """
    if not 0 <= largest < math.inf:
        raise ValueError(f"margin is a length ≥ 0, got {largest}")
    return [largest / 2**k for k in range(5)] + [0.0] if largest else [0.0]


def length(path: Tensor) -> Tensor:
    """Σ |p_{k+1} − p_k| of polylines; ``(..., K, 2) -> (...)``."""
    return path.diff(dim=-2).norm(dim=-1).sum(-1)


def resample(path: Tensor, count: int) -> Tensor:
    """``count`` points on a polyline ``(K, 2)``, evenly spread over each segment, all its vertices among them.

    A segment gets points in proportion to its length; more points come back where vertices alone are more.
    """
    spans = path.diff(dim=0).norm(dim=-1)
    path = torch.cat([path[:1], path[1:][spans > 0]])
    spans = spans[spans > 0]
    if not len(spans):
        return path[:1]
    pieces = (spans / spans.sum() * (count - 1)).round().clamp_min(1).long().tolist()
    parts = [
        start + torch.arange(number, dtype=path.dtype)[:, None] / number * (end - start)
        for start, end, number in zip(path[:-1], path[1:], pieces, strict=True)
    ]
    return torch.cat([*parts, path[-1:]])


def shorten(path: Tensor, surroundings: Surroundings, *, points: int = 40, passes: int = 12) -> Tensor:
    """A taut polyline in the homotopy class of a clear one (up to the resolution).

    Each pass spreads points over the path, by turns evenly and at shares 2⁻ᵏ of the segments beside its vertices, finds
    the shortest chain through a subset of them whose segments are all certified clear (dynamic programming over the
    pairs; the pieces of the path itself are among them), and replaces the path by it. It ends when two passes together
    save less than a ten-thousandth. The length never grows, the ends stay.
    """
    lengths = [math.inf, float(length(path))]
    for number in range(passes):
        spread = resample(path, points) if number % 2 == 0 else _beside_vertices(path)
        path = _chain(spread, surroundings) if len(spread) > 2 else spread
        lengths.append(float(length(path)))
        if lengths[-1] > lengths[-3] * (1 - 1e-4):
            break
    return path


def _chain(points: Tensor, surroundings: Surroundings) -> Tensor:
    """The shortest chain through a subset of a clear path's points, from the first to the last."""
    count = len(points)
    first, second = torch.triu_indices(count, count, offset=1)
    known = second == first + 1
    clear = known.clone()
    clear[~known] = surroundings.clear(points[first[~known]], points[second[~known]])
    cost = torch.full((count, count), math.inf, dtype=points.dtype)
    # A segment costs a millionth of the whole beside its length, so that points on a straight line are left out.
    spans = (points[second] - points[first]).norm(dim=-1)
    cost[first[clear], second[clear]] = spans[clear] + 1e-6 * length(points)
    reached = torch.full((count,), math.inf, dtype=points.dtype)
    reached[0] = 0.0
    before = [0] * count
    for j in range(1, count):
        total = reached[:j] + cost[:j, j]
        before[j] = int(total.argmin())
        reached[j] = total[before[j]]
    chain = [count - 1]
    while chain[-1] != 0:
        chain.append(before[chain[-1]])
    return points[chain[::-1]]


def _beside_vertices(path: Tensor, scales: int = 7) -> Tensor:
    """The vertices of a polyline and points on its segments at 2⁻¹, 2⁻², … of their lengths from both ends."""
    share = 0.5 ** torch.arange(scales, 0, -1, dtype=path.dtype)
    share = torch.cat([share.new_zeros(1), share, 1 - share.flip(0)[1:]])[:, None]
    parts = [start + share * (end - start) for start, end in itertools.pairwise(path)]
    return torch.cat([*parts, path[-1:]])
