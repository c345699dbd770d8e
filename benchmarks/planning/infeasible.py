"""Problems without a solution, inputs that make no sense, and the same seed twice.

An infeasible problem is a result with reasons, not an exception; a malformed input is an exception, not a result.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from boltzmix.benchmarks.planning.constraints import at_rest
from boltzmix.benchmarks.planning.priors import MissingWeights, prior_of
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.planners import PD, RecedingHorizonPolicy
from boltzmix.planners.obstacles import Box, Disc
from boltzmix.planners.planner import Planner
from boltzmix.planners.tasks.limits import Bounds, Constraint

START, GOAL = (-0.7, 0.0), (0.7, 0.0)
RADIUS = 0.04
RING = (
    Box(0.45, -0.25, 0.5, 0.25), Box(0.9, -0.25, 0.95, 0.25), Box(0.45, 0.2, 0.95, 0.25), Box(0.45, -0.25, 0.95, -0.2),
)  # fmt: skip
"""Four walls around the goal."""


def run(report: Report, settings: Settings) -> None:
    """Every case with the prior of the obstacle world."""
    try:
        prior = prior_of("obstacles", settings.seeds[0])
    except MissingWeights as error:
        report.skip("infeasible problems", f"weights missing: {error}")
        return
    judge(report, prior)


def judge(report: Report, prior: Any, space: Any = None) -> None:
    """The cases, with any prior over positions and velocities in the square."""

    def planner(*obstacles: Any, **options: Any) -> Planner:
        options = {"candidates": 4, "steps": 5, **options}
        return Planner(prior, space, obstacles=obstacles, radius=RADIUS, bounds=((-1.0, 1.0), (-1.0, 1.0)), **options)

    free = planner()
    start = at_rest(START, free.space)

    def west(tau: Any) -> Any:
        return tau[..., free.space.columns("x")[0]] + 0.2  # > 0 east of x = -0.2: violated, for the goal is there

    def east(tau: Any) -> Any:
        return -0.2 - tau[..., free.space.columns("x")[0]]

    cases: dict[str, tuple[Callable[[], Any], str]] = {
        "walled-in goal": (lambda: planner(*RING).plan(start, GOAL, seed=0), "no path"),
        "start inside an obstacle": (lambda: planner(Disc(-0.7, 0.0, 0.2)).plan(start, GOAL, seed=0), "start"),
        "goal inside an obstacle": (lambda: planner(Disc(0.7, 0.0, 0.2)).plan(start, GOAL, seed=0), "goal"),
        "bounds that leave the goal out": (
            lambda: free.plan(start, GOAL, [Bounds((-1.0, -1.0), (0.5, 1.0), columns=("x", "y"))], seed=0), "bounds",
        ),
        "two constraints that exclude each other": (
            lambda: free.plan(start, None, [Constraint(west, name="west"), Constraint(east, name="east")], seed=0),
            "west|east",
        ),
        "a speed limit that the horizon makes impossible": (
            lambda: planner(max_speed=0.05).plan(start, GOAL, seed=0), "speed",
        ),
    }  # fmt: skip
    for name, (ask, wanted) in cases.items():
        result = ask()
        said = " ".join(result.reasons)
        named = result.status == "infeasible" and any(word in said for word in wanted.split("|"))
        report.state(name, "infeasible, and the reason named", named, wanted.replace("|", " or "), said[:160])

    policy = RecedingHorizonPolicy(free, PD(), goal=GOAL)
    broken = start.copy()
    broken[0] = math.nan
    refusals: dict[str, Callable[[], Any]] = {
        "an observation with NaN": lambda: policy.act(broken),
        "an observation of another shape": lambda: policy.act(start[:-1]),
        "a start with infinity": lambda: free.plan(np.where(np.isnan(broken), np.inf, broken), GOAL),
        "a goal out of bounds": lambda: free.plan(start, (3.0, 0.0)),
        "a goal of another shape": lambda: free.plan(start, (0.1, 0.2, 0.3)),
        "a budget of nothing": lambda: free.plan(start, GOAL, budget_ms=0.0),
    }
    for name, call in refusals.items():
        try:
            call()
            said = ""
        except (ValueError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
        report.state(name, "refused", bool(said), "ValueError or TypeError", said[:160])

    blocked = planner(Disc(0.0, 0.0, 0.2))
    first, again, other = (blocked.plan(start, GOAL, seed=seed).trajectories for seed in (3, 3, 4))
    report.state("the same seed", "the same plans, bit for bit", bool(np.array_equal(first, again)), "yes")
    report.state("another seed", "other plans", not np.array_equal(first, other), "yes")
