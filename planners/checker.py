r"""Feasibility of plans, decided apart from the tasks that shaped them.

A plan is the polyline through its tokens, and obstacles are looked at along all of it
(:mod:`boltzmix.planners.clearance`). All is numpy in float64 and shares no code with :mod:`boltzmix.planners.tasks`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from boltzmix.planners.clearance import clearance as least_distance
from boltzmix.planners.obstacles import as_obstacles
from boltzmix.planners.space import TrajectorySpace

if TYPE_CHECKING:
    import numpy as np

#: what counts as satisfied, in the physical unit of each check: a state that float32 holds, contact to a nanometre
TOLERANCES = {"start": 1e-4, "goal": 1e-4, "dynamics": 1e-4, "collision": 1e-9, "bounds": 1e-6, "speed": 1e-6}


@dataclass(frozen=True)
class Report:
    """What a check found, for N plans.

    Attributes:
        feasible: ``(N,)`` bool: every violation is 0.
        violations: amounts ``(N,)`` in physical units by name, 0 where satisfied: ``"finite"`` (numbers that are not),
            ``"collision"`` (metres inside an obstacle), ``"bounds"`` (metres outside), ``"speed"`` (m/s too fast),
            ``"dynamics"`` (largest error of a step), ``"start"`` and ``"goal"`` (distance from them). Plans with
            numbers that are not finite violate everything by infinity.
        clearance: ``(N,)`` least distance in metres between the robot and the obstacles on the whole way, negative in
            collision, infinite without obstacles, NaN for plans that are not finite.
        clearances: ``(N, O)``, for each obstacle.
    """

    feasible: "np.ndarray"
    violations: dict[str, "np.ndarray"]
    clearance: "np.ndarray"
    clearances: "np.ndarray" = field(repr=False)

    def __len__(self) -> int:
        """Number of plans."""
        return len(self.feasible)

    def failed(self, plan: int) -> tuple[str, ...]:
        """The names of what one plan violates."""
        return tuple(name for name, amount in self.violations.items() if amount[plan] != 0)


def check(
    tau: Any,
    space: TrajectorySpace,
    obstacles: Any = (),
    *,
    radius: float = 0.0,
    bounds: Any = None,
    max_speed: float | None = None,
    dynamics: Callable[..., Any] | None = None,
    start: Any = None,
    goal: Any = None,
    tolerance: float | Mapping[str, float] | None = None,
) -> Report:
    """Check plans against the world, along whole segments.

    Args:
        tau: plans ``(N, H, D)`` or one ``(H, D)`` in physical units, an array or a tensor.
        space: names, time step and bounds.
        obstacles: one, several, or texts that :func:`~boltzmix.planners.obstacles.parse` reads. Those that move start
            at time 0 of the plan.
        radius: of the robot, in metres: it must stay as far from obstacles, and inside the bounds by as much.
        bounds: (low, high) for each position column; None takes the space's, if it has them.
        max_speed: metres per second between two tokens.
        dynamics: states ``(M, S)`` and, where the space has them, actions ``(M, A)`` to next states, all arrays.
        start, goal: a state, a position or numbers by column name, at the first and at the last token.
        tolerance: a number for start, goal and dynamics, or numbers by the name of a check. By default
            ``TOLERANCES``; violations up to it are 0.

    Raises:
        ValueError: plans of another shape, negative radius or tolerances, unknown names, values that do not fit.
        TypeError: plans that hold no floating-point numbers.
    """
    import numpy as np

    plans = _plans(tau, space)
    allowed = _tolerances(tolerance)
    radius = _nonnegative(radius, "radius")
    count = len(plans)
    broken = (~np.isfinite(plans)).sum((1, 2)).astype(float)
    good = broken == 0
    whole = plans[good]
    positions = whole[..., space.columns(space.position)]
    found: dict[str, np.ndarray] = {}
    listed = as_obstacles(obstacles)
    clear = np.full((len(whole), len(listed)), np.inf)
    if listed:
        if len(space.position) != 2:
            raise ValueError(f"obstacles lie in the plane and this space has the position columns {space.position}")
        for k, obstacle in enumerate(listed if len(whole) else ()):
            clear[:, k] = least_distance(obstacle, positions, space.dt) - radius
        found["collision"] = np.maximum(-clear.min(1), 0.0)
    limits = space.bounds if bounds is None else _limits(bounds, space)
    if limits is not None:
        low, high = np.asarray(limits).T
        room = np.minimum(positions - low, high - positions) - radius
        found["bounds"] = np.maximum(-room.min((1, 2), initial=np.inf), 0.0)
    if max_speed is not None:
        limit = _nonnegative(max_speed, "max_speed")
        speed = np.linalg.norm(np.diff(positions, axis=1), axis=-1) / space.dt
        found["speed"] = np.maximum(speed.max(1, initial=0.0) - limit, 0.0)
    if dynamics is not None:
        found["dynamics"] = _residual(dynamics, whole, space)
    for name, value, token in (("start", start, 0), ("goal", goal, -1)):
        if value is not None:
            wanted = space.values(value, name)
            error = whole[:, token, space.columns(list(wanted))] - np.asarray(list(wanted.values()))
            found[name] = np.linalg.norm(error, axis=1)
    violations = {"finite": broken}
    for name, amount in found.items():
        every = np.full(count, np.inf)
        every[good] = np.where(amount <= allowed[name], 0.0, amount)
        violations[name] = every
    clearances = np.full((count, len(listed)), np.nan)
    clearances[good] = clear
    clearance = np.full(count, np.nan)
    clearance[good] = clear.min(1, initial=np.inf)
    feasible = np.all([amount == 0 for amount in violations.values()], axis=0)
    return Report(feasible, violations, clearance, clearances)


def _plans(tau: Any, space: TrajectorySpace) -> "np.ndarray":
    """Plans as float64 ``(N, H, D)``."""
    import numpy as np

    if not isinstance(space, TrajectorySpace):
        raise TypeError(f"check(tau, space, …) takes a TrajectorySpace, got {type(space).__name__}")
    plans = tau.detach().cpu().numpy() if isinstance(tau, Tensor) else np.asarray(tau)
    if plans.dtype.kind != "f":
        raise TypeError(f"plans hold floating-point numbers, got {plans.dtype}")
    if plans.ndim == 2:
        plans = plans[None]
    if plans.ndim != 3 or plans.shape[1:] != space.shape:
        raise ValueError(f"plans are (N, H, D) = (N, {space.shape[0]}, {space.shape[1]}), got {plans.shape}")
    return plans.astype(np.float64)


def _tolerances(given: float | Mapping[str, float] | None) -> dict[str, float]:
    if given is None:
        return TOLERANCES
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(TOLERANCES))
        if unknown:
            raise ValueError(f"no check is called {unknown}; tolerances are of {sorted(TOLERANCES)}")
        return {**TOLERANCES, **{name: _nonnegative(v, f"tolerance of {name}") for name, v in given.items()}}
    value = _nonnegative(given, "tolerance")
    return {**TOLERANCES, **dict.fromkeys(("start", "goal", "dynamics"), value)}


def _nonnegative(value: Any, what: str) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is a number, got {value!r}")
    number = float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{what} is a finite number >= 0, got {number:g}")
    return number


def _limits(bounds: Any, space: TrajectorySpace) -> Sequence[Sequence[float]]:
    import numpy as np

    limits = np.asarray(bounds, dtype=np.float64)
    if limits.shape != (len(space.position), 2) or not (limits[:, 0] < limits[:, 1]).all():
        raise ValueError(f"bounds are (low, high), low < high, for each of {space.position}, got {bounds!r}")
    return limits.tolist()


def _residual(dynamics: Callable[..., Any], plans: "np.ndarray", space: TrajectorySpace) -> "np.ndarray":
    """Largest absolute error of a step, ``(N,)``."""
    import numpy as np

    size = len(space.state)
    inputs = [plans[:, :-1, :size].reshape(-1, size)]
    if space.action:
        inputs.append(plans[:, :-1, size:].reshape(-1, len(space.action)))
    following = np.asarray(dynamics(*inputs), dtype=np.float64)
    if following.shape != inputs[0].shape:
        raise ValueError(f"dynamics returns next states {inputs[0].shape}, got {following.shape}")
    error = np.abs(plans[:, 1:, :size] - following.reshape(plans[:, 1:, :size].shape))
    return error.max((1, 2), initial=0.0)
