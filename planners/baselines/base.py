"""What the baselines share: the arguments of ``plan``, what a search sees of a problem, and how a result is judged.

A baseline plans as :class:`boltzmix.planners.planner.Planner` does: ``plan(start, goal, tasks, *, n, horizon,
budget_ms, seed, init) -> PlanResult``, in physical units, with the same seeds and refusals
(:func:`boltzmix.planners.problem.pose`), judged by the same independent checker
(:func:`boltzmix.planners.judgement.judge`). So it stands in a table, and in a receding-horizon policy, wherever a
planner does. What differs is what it searches with, and what one of its ``evaluations`` is: each class says so, and
``info["evaluation"]`` repeats it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.compose.sample import as_generator
from boltzmix.planners.baselines.geometry import Surroundings
from boltzmix.planners.judgement import judge, refused, result_of
from boltzmix.planners.obstacles import as_obstacles
from boltzmix.planners.problem import Problem, later, pose, position_of
from boltzmix.planners.space import TrajectorySpace

Bounds = tuple[tuple[float, float], ...]


@dataclass
class Question:
    """What a search sees.

    Attributes:
        problem: as posed: space, obstacles, radius, bounds, tasks.
        start: ``(S,)`` state, float64; columns that nothing says are zero.
        goal: ``(2,)`` position at the end, or None.
        n: plans asked for.
        generator: the only source of randomness.
        deadline: ``time.perf_counter()`` at which to stop, or +inf.
        init: ``(m, H, D)`` plans to start from, float64, or None.
    """

    problem: Problem
    start: Tensor
    goal: Tensor | None
    n: int
    generator: torch.Generator
    deadline: float
    init: Tensor | None

    @property
    def space(self) -> TrajectorySpace:
        """Of the trajectories."""
        return self.problem.space

    @property
    def position(self) -> Tensor:
        """The start's position, ``(2,)``."""
        return self.start[self.space.columns(self.space.position)]

    @property
    def velocity(self) -> Tensor:
        """The start's velocity ``(2,)``, zero in a space without."""
        names = velocity_names(self.space)
        return self.start[self.space.columns(names)] if names else torch.zeros_like(self.position)

    @property
    def soft(self) -> tuple[Any, ...]:
        """Tasks that are weighed and are no obstacles: those the search handles as such."""
        return tuple(task for task in self.problem.free_tasks if not getattr(task, "obstacles", ()))

    @property
    def limits(self) -> Bounds | None:
        """What the centre of the ball keeps: the bounds, narrower by its radius on each side."""
        bounds, radius = self.problem.bounds, self.problem.radius
        return None if bounds is None else tuple((low + radius, high - radius) for low, high in bounds)

    def needs_goal(self, who: str) -> Tensor:
        """The goal, or the error that says that there is none."""
        if self.goal is None:
            raise ValueError(f"{who} plans between two points: give goal=, a position {self.space.position} or a state")
        return self.goal

    def surroundings(self, who: str, resolution: float | None = None, margin: float = 0.0) -> Surroundings:
        """The free space of a ball that is larger by a margin; a moving obstacle leaves none that lasts."""
        moving = [type(obstacle).__name__ for obstacle in self.problem.obstacles if obstacle.moves]
        if moving:
            raise ValueError(
                f"{who} plans in space and not in time, and obstacles move: {', '.join(moving)}; use CEM, MPPI, "
                "GradientPlanner or Planner"
            )
        return Surroundings(self.problem.obstacles, self.problem.radius + margin, self.limits, resolution)

    def speed_along(self, path: Tensor) -> float:
        """The part of the start's velocity that already goes along a polyline."""
        heading = path[1] - path[0] if len(path) > 1 else torch.zeros_like(path[0])
        return max(0.0, float(self.velocity @ heading / heading.norm().clamp_min(1e-12)))

    def out_of_time(self) -> bool:
        """Whether the budget is spent."""
        return time.perf_counter() >= self.deadline

    def trajectory(self, positions: Tensor, velocities: Tensor | None = None) -> Tensor:
        """Plans ``(n, H, D)`` of positions ``(n, H, 2)``, whose other columns follow.

        Velocities are those given, or central differences of the positions (one-sided at the ends); the first token is
        the start itself. Columns that geometry says nothing about (actions, other states) are zero: such plans are
        executed by a controller and never by their own actions.
        """
        space = self.space
        plans = positions.new_zeros(len(positions), *space.shape)
        plans[..., space.columns(space.position)] = positions
        names = velocity_names(space)
        if names:
            if velocities is None:
                velocities = torch.gradient(positions, spacing=space.dt, dim=1)[0]
            plans[..., space.columns(names)] = velocities
        plans[:, 0, : len(space.state)] = self.start.to(plans)
        return plans


@dataclass
class Found:
    """What a search ends with: plans ``(n, H, D)`` in physical units, its cost, why it found none, and what else."""

    plans: Tensor | None
    evaluations: int
    reason: str = ""
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """Base of the baselines: a space, what stands in it, and ``plan``.

    Args:
        space: tokens, their units and their spacing; two position columns.
        obstacles: Disc, Box, Polygon, …, or texts such as ``"disc:0,0,0.5"``.
        radius: of the ball that moves, in metres.
        bounds: that it stays inside of, ``((x_low, x_high), (y_low, y_high))``; None takes the space's.
        tasks: terms of every call. Obstacles of tasks are kept clear of; other terms enter where a search has a cost,
            and are reported everywhere.

    Raises:
        ValueError: a space without two position columns.
    """

    space: TrajectorySpace
    obstacles: tuple[Any, ...] = field(default=(), kw_only=True)
    radius: float = field(default=0.0, kw_only=True)
    bounds: Bounds | None = field(default=None, kw_only=True)
    tasks: tuple[Any, ...] = field(default=(), kw_only=True)

    #: what one of the result's ``evaluations`` is
    evaluation: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check what every baseline needs."""
        if not isinstance(self.space, TrajectorySpace):
            raise TypeError(f"{type(self).__name__} plans in a TrajectorySpace, got {type(self.space).__name__}")
        if len(self.space.position) != 2:
            raise ValueError(f"{type(self).__name__} plans in the plane, the position is {self.space.position}")
        object.__setattr__(self, "obstacles", as_obstacles(self.obstacles))
        object.__setattr__(self, "tasks", tuple(self.tasks))

    def plan(
        self,
        start: Any,
        goal: Any = None,
        tasks: Sequence[Any] = (),
        *,
        n: int | None = None,
        horizon: int | None = None,
        budget_ms: float | None = None,
        seed: int | torch.Generator | None = None,
        init: Any = None,
        clock: float = 0.0,
    ) -> Any:
        """Plans from a start to a goal, judged.

        Args:
            start: state ``(S,)`` or position ``(2,)`` in physical units, or a task ``Start(…)``.
            goal: likewise.
            tasks: more terms, for this call.
            n: plans, 1 unless told.
            horizon: tokens, the space's unless told.
            budget_ms: wall-clock milliseconds after which a search that repeats itself stops with what it has; a
                straight line and a breadth-first search are not interrupted.
            seed: for the same plan again.
            init: plans ``(H, D)`` or ``(n, H, D)`` in physical units to start from, where the search starts from
                something; a :class:`PlanResult` will do.
            clock: seconds for which moving obstacles have moved when the plan begins.

        Raises:
            ValueError: wrong shapes, a goal outside the bounds, a budget ≤ 0, a number of plans < 1.
            NonFinite: a start or a goal that is not finite.
        """
        began = time.perf_counter()
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise ValueError(f"n is a positive number of plans, got {n!r}")
        if budget_ms is not None and not budget_ms > 0:
            raise ValueError(f"budget_ms is a positive number of milliseconds, got {budget_ms!r}")
        space = self.space if horizon is None else self.space.resized(horizon)
        problem = pose(
            space, start, goal, later((*self.tasks, *tasks), clock), obstacles=later(self.obstacles, clock),
            radius=self.radius, bounds=self.bounds,
        )  # fmt: skip
        generator, number = as_generator(seed, "cpu")
        deadline = began + 1e-3 * budget_ms if budget_ms is not None else float("inf")
        question = Question(
            problem, _start_of(problem), _goal_of(problem), n or 1, generator, deadline, _plans_of(init, space)
        )
        with torch.no_grad():
            found = self._search(question)
        info = {"planner": type(self).__name__, "evaluation": self.evaluation, "candidates": n or 1, **found.info}
        if found.plans is None:
            result = refused(problem, (found.reason,), time.perf_counter() - began, number)
            return replace(result, evaluations=found.evaluations, info={**info, "proven": False})
        judged = judge(problem, found.plans.numpy())
        return result_of(
            problem,
            judged,
            evaluations=found.evaluations,
            seconds=time.perf_counter() - began,
            seed=number,
            info=info,
        )

    def _search(self, question: Question) -> Found:
        """Plans in physical units; overridden by each baseline."""
        raise NotImplementedError


def velocity_names(space: TrajectorySpace) -> tuple[str, ...]:
    """The state columns named v and a position's name, ``("vx", "vy")``, or none where one is missing."""
    names = tuple(f"v{name}" for name in space.position)
    return names if all(name in space.state for name in names) else ()


def weight_of(task: Any) -> float:
    """A task's weight at the data end, where baselines live."""
    return float(task.exponent.value(None))


def _start_of(problem: Problem) -> Tensor:
    """What is known of the first state; the rest is zero."""
    state = problem.value[0, : len(problem.space.state)]
    if problem.start is None or len(problem.start) != len(state):
        return state.clone()
    return problem.start.clone()


def _goal_of(problem: Problem) -> Tensor | None:
    """The goal's position: as given, or of the last token where a task clamps it."""
    space = problem.space
    places = space.columns(space.position)
    if problem.goal is not None:
        return torch.tensor(position_of(problem.goal, space), dtype=torch.float64)
    return problem.value[-1, places].clone() if bool(problem.mask[-1, places].all()) else None


def _plans_of(init: Any, space: TrajectorySpace) -> Tensor | None:
    """Plans to start from, ``(m, H, D)``.

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    if init is None:
        return None
    plans = torch.as_tensor(getattr(init, "trajectories", init), dtype=torch.float64)
    plans = plans[None] if plans.ndim == 2 else plans
    if plans.ndim != 3 or tuple(plans.shape[1:]) != space.shape:
        raise ValueError(f"init is plans (H, D) or (n, H, D) with (H, D) = {space.shape}, got {tuple(plans.shape)}")
    if not bool(plans.isfinite().all()):
        raise ValueError("init holds plans with values that are not finite")
    return plans if len(plans) else None
