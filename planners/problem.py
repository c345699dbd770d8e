"""A planning problem, checked: what is known, what is asked, and what can be shown to be impossible before sampling.

Mistakes of the caller (wrong shapes, values that are not finite, a goal outside of the bounds) are errors. Problems
without a solution are not: they have reasons, each beginning with the name of the task or check that cannot be met.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.planners.known import Held
from boltzmix.planners.obstacles.base import Obstacle
from boltzmix.planners.reachability import Reachability, around, moves, proves
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task

_SAME = 1e-6
#: share of its radius by which a robot may start inside an obstacle that it touches: no plan of such a problem is
#: feasible, and the best of them leads away
_CONTACT = 0.5


@dataclass(frozen=True)
class Problem:
    """One problem in a space.

    Attributes:
        space: of the trajectories.
        start: state or position as given, float64; None where a task says it.
        goal: likewise.
        tasks: every task, those that clamp included.
        obstacles: known ones, those of tasks that avoid more included.
        radius: of what moves, in metres.
        bounds: that the whole robot stays inside, or None.
        max_speed: in metres per second, or None.
        mask: ``(H, D)``, True where a coordinate is known.
        value: ``(H, D)``, its value in physical units, float64.
        conflicts: pairs of tasks that fix one coordinate at two values.
    """

    space: TrajectorySpace
    start: Tensor | None
    goal: Tensor | None
    tasks: tuple[Task, ...]
    obstacles: tuple[Any, ...]
    radius: float
    bounds: tuple[tuple[float, float], ...] | None
    max_speed: float | None
    mask: Tensor
    value: Tensor
    conflicts: tuple[str, ...]

    @property
    def clamped(self) -> tuple[Task, ...]:
        """Tasks that fix coordinates."""
        return tuple(task for task in self.tasks if task.known(self.space) is not None)

    @property
    def free_tasks(self) -> tuple[Task, ...]:
        """Tasks that are terms."""
        return tuple(task for task in self.tasks if task.known(self.space) is None)

    def held(self, dtype: torch.dtype) -> Held:
        """What is known, in the sampler's coordinates."""
        return Held(self.mask, self.space.normalise(self.value).to(dtype))

    def impossible(self, map_of: "Maps | None" = None) -> tuple[str, ...]:
        """Why there is no solution, each reason beginning with a name; empty where nothing could be shown."""
        reasons = list(self.conflicts)
        pinned = self._pinned()
        for name, token, position in pinned:
            point, clock = torch.tensor([position], dtype=torch.float64), torch.tensor([token * self.space.dt])
            for index, obstacle in enumerate(self.obstacles):
                gap = float(distance(obstacle, point, clock.double())[0]) - self.radius
                if gap < -(_CONTACT * self.radius if token == 0 else 0.0) - _SAME:
                    reasons.append(
                        f"{name}: {_shown(position)} is {-gap:.3g} m inside obstacle {index} ({_label(obstacle)})"
                        + (f" with its radius of {self.radius:g} m" if self.radius else "")
                    )
            for axis, (low, high) in enumerate(self.bounds or ()):
                low, high = low + self.radius, high - self.radius
                if not low - _SAME <= position[axis] <= high + _SAME:
                    reasons.append(
                        f"bounds: {name} is at {self.space.position[axis]} = {position[axis]:.4g}, outside of "
                        f"[{low:g}, {high:g}]"
                    )
        if reasons:
            return tuple(reasons)
        for (first, i, a), (second, j, b) in itertools.pairwise(pinned):
            if self.max_speed is not None and math.dist(a, b) > self.max_speed * (j - i) * self.space.dt * (1 + _SAME):
                reasons.append(
                    f"speed: {first} and {second} are {math.dist(a, b):.3g} m and {(j - i) * self.space.dt:.3g} s "
                    f"apart, faster than {self.max_speed:g} m/s"
                )
            shut = (map_of or Maps()).resolution_apart(self, a, b)
            if shut is not None:
                reasons.append(
                    f"{second}: no path leads from {_shown(a)} to {_shown(b)} past the obstacles (flood fill with "
                    f"cells of {shut:.3g} m)"
                )
        return tuple(reasons)

    def _pinned(self) -> list[tuple[str, int, list[float]]]:
        """Positions that are known in full: (task, token, position), in the order of time."""
        found, places = [], self.space.columns(self.space.position)
        for task in self.clamped:
            own = task.known(self.space)
            assert own is not None
            for token in own[0].any(1).nonzero()[:, 0].tolist():
                if bool(own[0][token, places].all()):
                    found.append((task.name, token, self.value[token, places].tolist()))
        return sorted(found, key=lambda item: item[1])


class Maps:
    """Grids that proofs of unreachable goals have made, kept from plan to plan while the obstacles stay the same."""

    def __init__(self) -> None:
        """Start with none."""
        self._key: Any = None
        self._map: Reachability | None = None

    def resolution_apart(self, problem: Problem, start: Sequence[float], goal: Sequence[float]) -> float | None:
        """The resolution at which no path leads from start to goal, or None where that is not shown."""
        static = tuple(o for o in problem.obstacles if proves(o))
        if not static or len(start) != 2:
            return None
        if problem.bounds is None:
            low, high = around(start, goal, static, problem.radius)
            found = Reachability(static, low, high, radius=problem.radius, closed=False)
        else:
            key = (tuple(id(o) for o in static), problem.radius, problem.bounds)
            if self._map is None or key != self._key:
                low = [a + problem.radius for a, _ in problem.bounds]
                high = [b - problem.radius for _, b in problem.bounds]
                self._key, self._map = key, Reachability(static, low, high, radius=problem.radius)
                self._kept = static  # identities stay unique while their objects live
            found = self._map
        return found.resolution if found.apart(start, goal) else None


def pose(
    space: TrajectorySpace,
    start: Any,
    goal: Any,
    tasks: Sequence[Task],
    *,
    obstacles: Sequence[Any] = (),
    radius: float = 0.0,
    bounds: Any = None,
    max_speed: float | None = None,
) -> Problem:
    """Check what was asked and gather what is known.

    Raises:
        ValueError: wrong shapes, a goal outside of the bounds.
        NonFinite: a start or goal with NaN or infinite entries.
        TypeError: tasks that are none.
    """
    from boltzmix.planners.tasks.clamped import Goal, Start

    bounds = as_bounds(bounds if bounds is not None else space.bounds, space)
    listed: list[Task] = []
    given: dict[str, Tensor | None] = {"start": None, "goal": None}
    for what, value, make in (("start", start, Start), ("goal", goal, Goal)):
        if isinstance(value, Task):
            listed.append(value)
        elif value is not None:
            vector = state_vector(value, space, what)
            given[what] = vector
            listed.append(make(vector.tolist()))
    if not listed or start is None:
        raise ValueError(f"plan() needs a start: a state {space.state}, a position {space.position} or a task Start(…)")
    if given["goal"] is not None and bounds is not None:
        spot = position_of(given["goal"], space)
        for name, value, (low, high) in zip(space.position, spot, bounds, strict=True):
            if not low <= value <= high:
                raise ValueError(f"the goal's {name} = {value:.6g} lies outside of the bounds [{low:g}, {high:g}]")
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(
                f"tasks are Avoid(…), Reach(…), Reward(…), …, got {type(task).__name__}; wrap a function of "
                "trajectories as Reward(fn) or Constraint(fn)"
            )
        listed.append(task)
    mask, value, conflicts = _gather(space, listed)
    extra = [o for task in listed for o in _obstacles_of(task) if all(o is not known for known in obstacles)]
    return Problem(
        space, given["start"], given["goal"], tuple(listed), (*obstacles, *extra), float(radius), bounds, max_speed,
        mask, value, conflicts,
    )  # fmt: skip


def later(items: Sequence[Any], seconds: float) -> tuple[Any, ...]:
    """Tasks or obstacles as a clock sees them that starts ``seconds`` later.

    Raises:
        ValueError: seconds that are no finite number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise ValueError(f"clock is a finite number of seconds, got {seconds!r}")
    if seconds == 0.0:
        return tuple(items)
    return tuple(item.later(seconds) if isinstance(item, (Task, Obstacle)) else item for item in items)


def state_vector(value: Any, space: TrajectorySpace, what: str) -> Tensor:
    """A state ``(S,)`` or a position, float64.

    Raises:
        ValueError: another shape.
        NonFinite: entries that are not finite.
        TypeError: no numbers.
    """
    try:
        vector = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the {what} is a vector of numbers or a task, got {type(value).__name__}") from error
    sizes = {len(space.state): f"a state {space.state}", len(space.position): f"a position {space.position}"}
    if vector.ndim != 1 or len(vector) not in sizes:
        raise ValueError(f"the {what} is {' or '.join(sizes.values())}, got shape {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise NonFinite(f"the {what} must be finite, got {vector.tolist()}")
    return vector.clone()


def position_of(vector: Tensor, space: TrajectorySpace) -> list[float]:
    """The position of a state or of a position."""
    if len(vector) == len(space.state):
        return [float(vector[i]) for i in space.columns(space.position)]
    return vector.tolist()


def as_bounds(bounds: Any, space: TrajectorySpace) -> tuple[tuple[float, float], ...] | None:
    """``((low, high), …)`` for each position column.

    Raises:
        ValueError: another shape, or bounds without room.
    """
    if bounds is None:
        return None
    found = tuple((float(low), float(high)) for low, high in bounds)
    if len(found) != len(space.position) or not all(low < high for low, high in found):
        raise ValueError(f"bounds are (low, high) with low < high for each of {space.position}, got {bounds!r}")
    return found


def distance(obstacle: Any, points: Tensor, clock: Tensor) -> Tensor:
    """Signed distances at given times."""
    return obstacle.distance(points, clock) if moves(obstacle) else obstacle.distance(points)


def _gather(space: TrajectorySpace, tasks: Sequence[Task]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """What clamped tasks know together, in physical units, and where they contradict each other."""
    mask = torch.zeros(space.shape, dtype=torch.bool)
    value = torch.zeros(space.shape, dtype=torch.float64)
    owner: dict[tuple[int, int], str] = {}
    conflicts: list[str] = []
    scale = torch.tensor(space.scale, dtype=torch.float64)
    for task in tasks:
        own = task.known(space)
        if own is None:
            continue
        theirs = space.physical(own[1].double())
        clash = own[0] & mask & ((theirs - value).abs() > _SAME * scale)
        for token, column in clash.nonzero().tolist()[:1]:
            conflicts.append(
                f"{task.name}: {space.names[column]} of token {token} is fixed at {float(theirs[token, column]):.4g} "
                f"and by {owner[token, column]} at {float(value[token, column]):.4g}"
            )
        for token, column in (own[0] & ~mask).nonzero().tolist():
            owner[token, column] = task.name
        value = torch.where(own[0] & ~mask, theirs, value)
        mask = mask | own[0]
    return mask, value, tuple(conflicts)


def _obstacles_of(task: Task) -> Sequence[Any]:
    """Obstacles that a task keeps clear of."""
    found = getattr(task, "obstacles", ())
    return found if isinstance(found, (list, tuple)) else (found,)


def _label(obstacle: Any) -> str:
    text = repr(obstacle)
    return text if len(text) <= 60 else type(obstacle).__name__


def _shown(position: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in position) + ")"
