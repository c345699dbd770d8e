"""From a path in the plane to a trajectory: when the tokens of a plan are where.

Geometric planners return polylines; a plan has a token every dt seconds, velocities, and rests at its end. Two laws
turn one into the other:

- without limits, the path is traversed over the whole horizon by the quintic s(u) = 10u³ − 15u⁴ + 6u⁵, u = t/T, which
  minimises ∫ jerk² between rests on a straight line (Flash and Hogan 1985, "The coordination of arm movements");
- with a speed v and an acceleration a, as fast as these allow: ṡ is limited by v, at a corner of turning angle θ by
  √(a R) with the radius R of the arc that cuts the corner by no more than ``cut``,
  R = cut · cos(θ/2) / (1 − cos(θ/2)), and between them by |d(ṡ²)/ds| ≤ 2a, in one pass forward and one backward over
  the arc length (Bobrow, Dubowsky and Gibson 1985, "Time-optimal control of robotic manipulators along specified
  paths"). The path itself is not rounded: a controller that tracks it cuts the corner by about ``cut``.
"""

import math

import torch
from torch import Tensor

_GRID = 512  # stations of the speed profile along a path


def arrival(path: Tensor, speed: float, acceleration: float, *, initial_speed: float = 0.0, cut: float = 0.05) -> float:
    """Seconds that the speed profile needs for a polyline ``(K, 2)``."""
    return float(_profile(path, speed, acceleration, initial_speed, cut)[1][-1])


def timed(
    path: Tensor,
    steps: int,
    dt: float,
    *,
    speed: float | None = None,
    acceleration: float | None = None,
    initial_speed: float = 0.0,
    cut: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Positions and velocities ``(steps, 2)`` at the times 0, dt, 2 dt, … along a polyline.

    Args:
        path: ``(K, 2)`` vertices.
        steps: tokens, at least 2.
        dt: seconds between tokens.
        speed: the highest, in units of length per second; None: the quintic over the whole horizon.
        acceleration: along the path and in corners; both or neither.
        initial_speed: along the path at its start, above what the limits allow where the start state is faster.
        cut: by how much a corner may be cut, in units of length.

    A path that takes longer than the horizon is left unfinished: the plan then does not reach its goal, and the checker
    says so.

    Raises:
        ValueError: limits that are not positive, or one without the other.
    """
    if steps < 2 or not dt > 0:
        raise ValueError(f"a timed path has at least 2 tokens and dt > 0, got {steps} tokens, dt = {dt}")
    if (speed is None) != (acceleration is None):
        raise ValueError("give both speed= and acceleration=, or neither for a path stretched over the horizon")
    time = torch.arange(steps, dtype=path.dtype) * dt
    stations, tangents = _stations(path)
    total = stations[-1]
    if float(total) == 0.0:
        return path[:1].expand(steps, 2).clone(), torch.zeros(steps, 2, dtype=path.dtype)
    if speed is None or acceleration is None:
        u = time / time[-1]
        s = total * (10 * u**3 - 15 * u**4 + 6 * u**5)
        rate = total * (30 * u**2 - 60 * u**3 + 30 * u**4) / time[-1]
    else:
        arc, clock, squared = _profile(path, speed, acceleration, initial_speed, cut)
        # ṡ² is linear in s between stations, so the acceleration is constant there and the interpolation is exact.
        cell = (torch.searchsorted(clock, time, right=True) - 1).clamp(0, len(arc) - 2)
        span = arc[cell + 1] - arc[cell]
        pull = (squared[cell + 1] - squared[cell]) / (2 * span)
        since = torch.minimum(time, clock[-1]) - clock[cell]
        rate = squared[cell].sqrt() + pull * since
        s = arc[cell] + squared[cell].sqrt() * since + 0.5 * pull * since**2
        over = time >= clock[-1]
        s, rate = torch.where(over, total, s), torch.where(over, torch.zeros_like(rate), rate)
    piece = (torch.searchsorted(stations, s, right=True) - 1).clamp(0, len(tangents) - 1)
    corners = _distinct(path)
    positions = corners[piece] + (s - stations[piece])[:, None] * tangents[piece]
    return positions, rate.clamp_min(0.0)[:, None] * tangents[piece]


def _distinct(path: Tensor) -> Tensor:
    """The path without repeated vertices."""
    keep = torch.cat([torch.ones(1, dtype=torch.bool), path.diff(dim=0).norm(dim=-1) > 0])
    return path[keep]


def _stations(path: Tensor) -> tuple[Tensor, Tensor]:
    """Arc length at the vertices, and the unit tangent of each piece."""
    steps = _distinct(path).diff(dim=0)
    spans = steps.norm(dim=-1)
    return torch.cat([spans.new_zeros(1), spans.cumsum(0)]), steps / spans[:, None]


def _profile(
    path: Tensor, speed: float, acceleration: float, initial_speed: float, cut: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arc lengths, the times at which they are passed, and ṡ² there."""
    for name, value in (("speed", speed), ("acceleration", acceleration), ("cut", cut)):
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{name} is a positive number, got {value}")
    if not initial_speed >= 0 or math.isinf(initial_speed):
        raise ValueError(f"initial_speed is a finite number ≥ 0, got {initial_speed}")
    stations, tangents = _stations(path)
    total = float(stations[-1])
    if total == 0.0:
        zero = path.new_zeros(1)
        return zero, zero, zero
    arc = torch.cat([torch.linspace(0.0, total, _GRID, dtype=path.dtype), stations[1:-1]]).unique()
    limit = torch.full_like(arc, speed**2)
    if len(tangents) > 1:
        cosine = ((1 + (tangents[1:] * tangents[:-1]).sum(-1)) / 2).clamp(0, 1).sqrt()  # cos(θ/2)
        radius = cut * cosine / (1 - cosine).clamp_min(1e-12)
        at = torch.searchsorted(arc, stations[1:-1])
        limit[at] = torch.minimum(limit[at], acceleration * radius)
    limit[-1] = 0.0
    squared = limit.tolist()
    gaps = (2 * acceleration * arc.diff()).tolist()
    squared[0] = initial_speed**2
    for i, gap in enumerate(gaps):
        squared[i + 1] = min(squared[i + 1], squared[i] + gap)
    for i in range(len(gaps) - 1, 0, -1):
        squared[i] = min(squared[i], squared[i + 1] + gaps[i])
    known = torch.tensor(squared, dtype=path.dtype)
    rates = known.sqrt()
    # A station of speed zero between two others takes the time of its neighbours' mean speed: 2 Δs / (ṡ₁ + ṡ₂).
    clock = torch.cat([arc.new_zeros(1), (2 * arc.diff() / (rates[1:] + rates[:-1]).clamp_min(1e-9)).cumsum(0)])
    return arc, clock, known
