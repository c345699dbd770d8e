r"""Trajectories through a square with obstacles that the trajectories avoid and do not tell.

The world is :math:`[-1, 1]^2` metres with zero to two discs, drawn anew for every row, anywhere or between the start
and the goal. A point mass with the state
(x, y, vx, vy) and the action (ax, ay), its acceleration, moves from a start to a goal, both uniform outside of the
discs, and rests there. Between the two its path is the straight line plus a smooth random bend,

.. math:: q(u) = (1 - u) q_0 + u q_1 + \sum_{k=1}^{4} k^{-3/2} a_k \sin \pi k u, \qquad a_k \sim N(0, A^2 I),

run through in the time T = length / speed + 0.4 s by the minimum-jerk law :math:`u = 10 s^3 - 15 s^4 + 6 s^5`,
s = t/T. Bends are tried from a random amplitude A to larger ones and the first that stays in the square and off the
discs is taken. So the law of a path given its ends is broad, and holds detours to both sides: what obstacles are added
later can choose from. Velocities are those of the law, actions their differences, positions the exact integral of
constant acceleration between two tokens: every row obeys the dynamics of a double integrator.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TRAJECTORY: Mapping[str, Any] = {
    "horizon": 32,
    "state": ["x", "y", "vx", "vy"],
    "action": ["ax", "ay"],
    "dt": 0.1,
    "stride": 1,
    "loc": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "scale": [0.5, 0.5, 0.5, 0.5, 2.0, 2.0],
    "position": ["x", "y"],
    "bounds": [[-1.0, 1.0], [-1.0, 1.0]],
}
"""Columns, seconds between tokens and normaliser of :data:`obstacles`, as ``TrajectorySpace.of`` reads them."""

SIDES = ("left", "straight", "right")
"""What a skill says: to which side of the line from start to goal the path bends."""

FIELDS: Mapping[str, Any] = {"returns": [0.0, 1.0], "skill": list(SIDES)}
"""What the rows of :data:`obstacles` say: the distance from first to last token over the length, and the side."""

_AMPLITUDES = (0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6)
_FIRST = (0.35, 0.1, 0.15, 0.15, 0.15, 0.1)  # how often the search begins at each of the amplitudes
_PAUSE = 0.4  # seconds that starting and stopping take beside length / speed
_BETWEEN = 4  # points at which a path is compared with the discs, per token


@dataclass(frozen=True)
class ObstacleWorld:
    """The law of trajectories among discs.

    Args:
        horizon: tokens of a trajectory.
        dt: seconds between two tokens.
        most: largest number of discs in a row; the number is uniform on 0 … ``most``.
        radius: smallest and largest radius of a disc, metres.
        clearance: distance that a path keeps from every disc, metres.
        between: share of the discs that stand near the line from start to goal.
        speed: smallest and largest mean speed on the way, metres per second.
        push: largest acceleration per axis, metres per second squared; rows that need more are drawn again.
        moving: share of the rows that begin on the way, with a velocity, instead of at rest.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> import torch
        >>> tau, rows = ObstacleWorld().sample(5, torch.Generator().manual_seed(0))
        >>> tau.shape, rows.shape
        (torch.Size([5, 32, 6]), torch.Size([5, 2]))
    """

    horizon: int = TRAJECTORY["horizon"]
    dt: float = TRAJECTORY["dt"]
    most: int = 2
    radius: tuple[float, float] = (0.12, 0.32)
    clearance: float = 0.05
    between: float = 0.6
    speed: tuple[float, float] = (0.7, 1.2)
    push: float = 8.0
    moving: float = 0.4

    def __post_init__(self) -> None:
        """Refuse numbers that describe no world."""
        if self.horizon < 2 or self.most < 0:
            raise ValueError(f"horizon >= 2 and most >= 0 are wanted, got {self.horizon} and {self.most}")
        for what in ("radius", "speed"):
            low, high = getattr(self, what)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{what} is (low, high) with 0 < low <= high, got {(low, high)}")
        if not (0 < self.dt < math.inf and 0 <= self.clearance < math.inf and self.push > 0):
            raise ValueError(
                f"dt > 0, clearance >= 0 and push > 0 are wanted, got {self.dt}, {self.clearance} and {self.push}"
            )
        if not (0 <= self.moving <= 1 and 0 <= self.between <= 1):
            raise ValueError(f"moving and between are shares in [0, 1], got {self.moving} and {self.between}")

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Trajectories ``(n, horizon, 6)`` in physical units and what is said of them, ``(n, 2)`` (:data:`FIELDS`)."""
        tau, rows, _ = self.worlds(n, generator)
        return tau, rows

    def worlds(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the discs that were avoided, ``(n, most, 3)``: x, y and radius, 0 where there is none."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        have = 0
        while have < n:
            found.append(self._try(max(16, math.ceil(1.3 * (n - have))), generator))
            have += len(found[-1][0])
        tau, rows, discs = (torch.cat(parts)[:n] for parts in zip(*found, strict=True))
        return tau, rows, discs

    def _try(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """At most n rows: those for which a bend was found."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator)

        ends = uniform(-0.95, 0.95, 2, 2)
        way = ends[:, :1] + uniform(0.2, 0.8, self.most, 1) * (ends[:, 1:] - ends[:, :1])
        way = way + 0.1 * torch.randn(n, self.most, 2, generator=generator)
        centre = torch.where(uniform(0, 1, self.most, 1) < self.between, way, uniform(-0.8, 0.8, self.most, 2))
        discs = torch.cat([centre, uniform(*self.radius, self.most, 1)], 2)
        count = torch.randint(self.most + 1, (n, 1), generator=generator)
        discs[..., 2] *= torch.arange(self.most) < count
        bends = torch.randn(n, len(_AMPLITUDES), 4, 2, generator=generator)
        bends = bends * torch.tensor(_AMPLITUDES)[:, None, None] / torch.arange(1, 5)[:, None] ** 1.5
        span = (ends[:, 1] - ends[:, 0]).norm(dim=1)
        bends = bends * (0.3 + span).clamp(max=1.0)[:, None, None, None]
        first = torch.multinomial(torch.tensor(_FIRST), n, replacement=True, generator=generator)

        # each row's first bend that is free, looked for along a geometric path
        u = torch.linspace(0, 1, 8 * _BETWEEN)
        waves = (math.pi * torch.arange(1, 5)[:, None] * u).sin()
        line = ends[:, :1] + u[:, None] * (ends[:, 1:] - ends[:, :1])
        path = line[:, None] + torch.einsum("nakc,kt->natc", bends, waves)
        free = (path.abs().amax((2, 3)) < 0.97) & (self._gap(path, discs).amin(2) > 0)
        free &= torch.arange(len(_AMPLITUDES)) >= first[:, None]
        chosen = free.to(torch.int8).argmax(1)
        each = torch.arange(n)
        bend, path = bends[each, chosen], path[each, chosen]

        length = path.diff(dim=1).norm(dim=2).sum(1)
        duration = length / uniform(*self.speed) + _PAUSE
        begin = uniform(0.0, 0.7) * duration * (uniform(0.0, 1.0) < self.moving)
        tau = self._run(ends, bend, duration, begin)
        # the tokens' own segments decide, since the path was looked at coarsely
        dense = _dense(tau[..., :2])
        keep = free.any(1) & (self._gap(dense[:, None], discs)[:, 0].amin(1) > 0) & (dense.abs().amax((1, 2)) < 1)
        keep &= tau[..., 4:].abs().amax((1, 2)) <= self.push
        return tau[keep], described(tau)[keep], discs[keep]

    def _gap(self, path: Tensor, discs: Tensor) -> Tensor:
        """Distance to the nearest disc less radius and clearance, ``(n, a, t)``; inf without discs."""
        gap = torch.full(path.shape[:3], math.inf)
        for x, y, radius in discs.permute(1, 2, 0):
            centre = torch.stack([x, y], 1)[:, None, None]
            here = (path - centre).norm(dim=3) - (radius + self.clearance)[:, None, None]
            gap = torch.minimum(gap, torch.where((radius > 0)[:, None, None], here, math.inf))
        return gap

    def _run(self, ends: Tensor, bend: Tensor, duration: Tensor, begin: Tensor) -> Tensor:
        """Tokens of the motion from time ``begin`` on."""
        time = begin[:, None] + self.dt * torch.arange(self.horizon + 1)
        s = (time / duration[:, None]).clamp(0, 1)
        u = s**3 * (10 - 15 * s + 6 * s**2)
        rate = 30 * s**2 * (1 - s) ** 2 / duration[:, None]
        k = torch.arange(1, 5)
        angle = math.pi * k * u[..., None]
        slope = (ends[:, 1] - ends[:, 0])[:, None] + torch.einsum("ntk,nkc->ntc", math.pi * k * angle.cos(), bend)
        velocity = slope * rate[..., None]
        place = ends[:, 0] + u[:, :1] * (ends[:, 1] - ends[:, 0])
        place = place + torch.einsum("nk,nkc->nc", angle[:, 0].sin(), bend)
        action = velocity.diff(dim=1) / self.dt
        step = (velocity[:, :-1] + velocity[:, 1:]) * (self.dt / 2)
        position = place[:, None] + torch.cat([torch.zeros_like(step[:, :1]), step.cumsum(1)[:, :-1]], 1)
        return torch.cat([position, velocity[:, :-1], action], 2)


def obstacles(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A stream for ``fit``: n trajectories ``(n, 32, 6)``, normalised, and what is said of them, ``(n, 2)``."""
    tau, rows = ObstacleWorld().sample(n, generator)
    return (tau - torch.tensor(TRAJECTORY["loc"])) / torch.tensor(TRAJECTORY["scale"]), rows


def _dense(position: Tensor) -> Tensor:
    """Positions ``(n, H, 2)`` with points between them."""
    share = torch.arange(_BETWEEN) / _BETWEEN
    steps = position[:, :-1, None] + share[:, None] * position.diff(dim=1)[:, :, None]
    return torch.cat([steps.flatten(1, 2), position[:, -1:]], 1)


def described(tau: Tensor) -> Tensor:
    """What is said of physical trajectories ``(n, H, D)``: directness, and the index of the side in :data:`SIDES`."""
    position = tau[..., :2]
    length = position.diff(dim=1).norm(dim=2).sum(1)
    across = position[:, -1] - position[:, 0]
    straight = across.norm(dim=1)
    offset = position - position[:, :1]
    # where the path is farthest from the line through its ends, positive to the left
    height = (across[:, :1] * offset[..., 1] - across[:, 1:] * offset[..., 0]) / straight.clamp(min=1e-6)[:, None]
    farthest = height.gather(1, height.abs().argmax(1, keepdim=True))[:, 0]
    bent = farthest.abs() > 0.1 * straight.clamp(min=0.2)
    side = torch.where(bent, torch.where(farthest > 0, 0.0, 2.0), 1.0)
    directness = (straight / length.clamp(min=1e-3)).clamp(0, 1)
    return torch.stack([directness, side], 1)
