"""One prior, many rewards and kinds of goals: each guided planner against the same planner without the reward.

Nothing is trained: a reward is a function of trajectories, a goal is a task, and the weights of the prior have the same
bits before and after. For every problem (a start and a goal) the planner draws the same number of plans with the same
seed, with the reward and without; the problem's figure is the *mean* reward of its plans, not the best one's, so that
sorting plays no part. Differences are tested pair by pair, by sign flips.
"""

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.planning.paired import sign_flips
from boltzmix.benchmarks.planning.priors import trained
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.term import Term
from boltzmix.planners.planner import Planner
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks import Goal, Reach, Reward, Waypoint

PLACE = (0.3, 0.3)
"""Where a camera stands, or a charger: metres."""

LEVEL = 0.01
"""Largest p-value of the paired tests; nine of them are made, and each is reported."""


def height(space: TrajectorySpace) -> Callable[[Tensor], Tensor]:
    """Mean of y along the plan, in metres: keep to the upper side."""
    return lambda tau: space.positions(tau)[..., 1].mean(1)


def visit(space: TrajectorySpace) -> Callable[[Tensor], Tensor]:
    """Minus the distance between :data:`PLACE` and the nearest token, smoothed over tokens, in metres."""

    def reward(tau: Tensor) -> Tensor:
        gap = (space.positions(tau) - tau.new_tensor(PLACE)).square().sum(2).add(1e-6).sqrt()
        return 0.05 * ((-gap / 0.05).logsumexp(1) - math.log(gap.shape[1]))

    return reward


def calm(space: TrajectorySpace) -> Callable[[Tensor], Tensor]:
    """Minus the root mean square of the acceleration between tokens, in m/s²: save energy."""

    def reward(tau: Tensor) -> Tensor:
        p = space.positions(tau)
        acceleration = (p[:, 2:] - 2 * p[:, 1:-1] + p[:, :-2]) / space.dt**2
        return -acceleration.square().sum(2).mean(1).add(1e-6).sqrt()

    return reward


REWARDS: dict[str, tuple[Callable[..., Callable[[Tensor], Tensor]], float]] = {
    "height": (height, 40.0),
    "visit": (visit, 40.0),
    "calm": (calm, 4.0),
}
"""Rewards and their weights in the energy."""


@dataclass(frozen=True)
class Question:
    """From ``start`` to ``goal``, metres."""

    start: tuple[float, float]
    goal: tuple[float, float]
    seed: int


GOALS: dict[str, Callable[[Question, TrajectorySpace], list[Any]]] = {
    "position": lambda q, space: [Goal(q.goal)],
    "region": lambda q, space: [Reach(q.goal, 0.1)],
    "waypoint, then position": lambda q, space: [Waypoint(_between(q), space.horizon // 2), Goal(q.goal)],
}
"""Kinds of goals: the last token exactly; near a place; a place on the way as well."""


def _between(question: Question) -> tuple[float, float]:
    """Beside the middle of the straight line."""
    (x, y), (u, v) = question.start, question.goal
    turn = 0.25 if question.seed % 2 else -0.25
    return 0.5 * (x + u) - turn * (v - y), 0.5 * (y + v) + turn * (u - x)


@dataclass(frozen=True)
class Row:
    """One reward with one kind of goal.

    Attributes:
        reward, goal: their names.
        guided, plain: mean over problems of the mean reward of the plans, with the reward and without.
        better: share of problems on which guidance is better.
        p: one-sided p-value of the paired test.
        reached: share of the guided plans that reach the goal, the waypoint and the bounds.
        problems: how many.
    """

    reward: str
    goal: str
    guided: float
    plain: float
    better: float
    p: float
    reached: float
    problems: int


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of all weights, in order."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def questions(seeds: Sequence[int], bounds: Any, least: float = 0.5) -> list[Question]:
    """One problem for each seed: start and goal uniform inside of the bounds, ``least`` of the smaller side apart."""
    found = []
    for seed in seeds:
        generator = np.random.default_rng([seed, 3])
        low, high = np.array(bounds, dtype=float).T
        margin = 0.12 * (high - low)
        while True:
            start, goal = generator.uniform(low + margin, high - margin, (2, 2))
            if float(np.linalg.norm(goal - start)) >= least * float((high - low).min()):
                break
        ends = [(float(x), float(y)) for x, y in (start, goal)]
        found.append(Question(ends[0], ends[1], int(seed)))
    return found


def rows(prior: Term, planner: Planner | None = None, seeds: Sequence[int] = range(20)) -> list[Row]:
    """Every reward with every kind of goal.

    Args:
        prior: over trajectories with two position columns.
        planner: of the prior; None is the default one.
        seeds: of the problems and of their plans.
    """
    planner = Planner(prior) if planner is None else planner
    space = planner.space
    bounds = space.bounds or ((-1.0, 1.0), (-1.0, 1.0))
    asked = questions(seeds, bounds)
    found = []
    for goal, tasks_of in GOALS.items():
        plain = [_plans(planner, q, tasks_of(q, space)) for q in asked]
        for name, (make, weight) in REWARDS.items():
            reward = make(space)
            guided = [_plans(planner, q, [*tasks_of(q, space), Reward(reward, name) ** weight]) for q in asked]
            ours, theirs = ([_mean(reward, r.trajectories) for r in group] for group in (guided, plain))
            found.append(
                Row(
                    name,
                    goal,
                    statistics.fmean(ours),
                    statistics.fmean(theirs),
                    statistics.fmean(a > b for a, b in zip(ours, theirs, strict=True)),
                    sign_flips(ours, theirs),
                    statistics.fmean(float(np.mean(r.feasible)) for r in guided),
                    len(asked),
                )
            )  # fmt: skip
    return found


def _plans(planner: Planner, question: Question, tasks: Sequence[Any]) -> Any:
    """Plans from rest at the start."""
    space = planner.space
    state = np.zeros(len(space.state))
    state[space.columns(space.position)] = question.start
    return planner.plan(state, None, tasks, seed=question.seed)


def _mean(reward: Callable[[Tensor], Tensor], plans: Any) -> float:
    return float(reward(torch.as_tensor(np.asarray(plans))).mean())


def run(report: Report, settings: Settings) -> None:
    """The prior of the obstacle world; its weights before and after."""
    name = "obstacles"
    for seed, prior in trained(report, name, settings.seeds):
        before = digest(prior)
        lines = ["| reward | goal | guided | plain prior | better on | p | feasible |", "|---|---|---|---|---|---|---|"]
        for row in rows(prior, Planner(prior), range(settings.size(40, 3))):
            task = f"{name}, seed {seed}: {row.reward}, {row.goal}"
            report.check(task, "p of the paired test", row.p, "≤", LEVEL, f"{row.problems} problems")
            report.tell(task, "mean reward, guided less plain", row.guided - row.plain, f"better on {row.better:.2f}")
            lines.append(
                f"| {row.reward} | {row.goal} | {row.guided:.3f} | {row.plain:.3f} | {row.better:.2f} | {row.p:.2g} | "
                f"{row.reached:.2f} |"
            )
        same = digest(prior) == before
        report.state(f"{name}, seed {seed}", "weights before and after", same, "bit-identical", before[:12])
        report.summary += "\n" + "\n".join(lines) + "\n"
