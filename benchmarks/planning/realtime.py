"""Real-time use: a receding-horizon policy on U-maze, success and path cost against milliseconds for each replan.

The budget is wall time that a replan keeps to by taking fewer levels and stopping early; the full setting has none. The
simulator waits while the policy plans, and replans are so far apart that planning at the budget would have been over
before the next one. Latencies are of this machine with whatever else it did; the load average stands beside them.
"""

import os
from collections.abc import Callable
from typing import Any

from boltzmix.benchmarks.planning import methods
from boltzmix.benchmarks.planning.episodes import Episode, run_all
from boltzmix.benchmarks.planning.mazes import REPORTED, hard_pairs, tell
from boltzmix.benchmarks.planning.priors import MissingWeights
from boltzmix.benchmarks.plots import logarithmic
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.errors import MissingExtra
from boltzmix.planners import PD, RecedingHorizonPolicy, baselines

MAZE = "pointmaze-umaze"
BUDGETS = (20, 50, 100, 200, 500)
"""Milliseconds."""

TASK = "U-maze, success against milliseconds for a replan"
WITHIN, FAST = 0.02, 100.0
"""The fastest setting whose success is within this of the full one should take less than so many milliseconds."""


def run(report: Report, settings: Settings) -> None:
    """Every budget and the full setting on the same pairs."""
    from boltzmix.planners import environments

    try:
        environment = environments.make(MAZE)
        planner = methods.maze_planner(MAZE, environment, settings.seeds[0])
    except (MissingWeights, MissingExtra) as error:
        report.skip(TASK, str(error))
        return
    pairs = hard_pairs(environment, settings.size(50, 3), REPORTED)
    space = methods.space_of(MAZE)
    known: dict[str, Any] = {"obstacles": environment.obstacles, "radius": environment.radius}
    oracle_planner = baselines.BreadthFirst(
        space.resized(3 * space.horizon), **known, bounds=environment.bounds, speed=methods.SPEED,
        acceleration=methods.ACCELERATION,
    )  # fmt: skip
    oracle, _ = run_all(lambda pair: RecedingHorizonPolicy(oracle_planner, PD(), replan_every=None), environment, pairs)

    def measured(name: str, budget: float | None) -> list[Episode]:
        policy = RecedingHorizonPolicy(planner, PD(), replan_every=3 * space.stride, budget_ms=budget)
        episodes, seconds = run_all(lambda pair: policy, environment, pairs)
        tell(report, TASK, name, episodes, oracle, seconds)
        point = report.curves[TASK][name][-1]
        point["budget"], point["load"] = budget, os.getloadavg()[0]
        report.rows[-1] = _with_load(report.rows[-1], point["load"])
        report.keep()
        return episodes

    rates = {}
    for budget in BUDGETS if not settings.quick else BUDGETS[:2]:
        episodes = measured(f"{budget} ms", float(budget))
        rates[budget] = sum(e.success for e in episodes) / len(episodes)
    whole = measured("no budget", None)
    full = sum(e.success for e in whole) / len(whole)
    good = [budget for budget, rate in rates.items() if rate >= full - WITHIN]
    fastest = float(min(good)) if good else float("nan")
    report.check(
        TASK, f"least budget within {WITHIN:g} of the full success, ms", fastest, "≤", FAST, f"full {full:.3f}"
    )
    report.figures["realtime"] = curve(report)


def _with_load(row: Any, load: float) -> Any:
    import dataclasses

    return dataclasses.replace(row, note=f"{row.note}; load average {load:.1f}")


def curve(report: Report) -> Callable[[Any], None]:
    """Success with its interval, and path cost, against the median latency."""

    def paint(figure: Any) -> None:
        figure.set_size_inches(9, 3.8)
        left, right = figure.subplots(1, 2)
        for number, (name, points) in enumerate(report.curves.get(TASK, {}).items()):
            point = points[-1]
            x = 1e3 * point["p50"]
            spread = [[point["rate"] - point["low"]], [point["high"] - point["rate"]]]
            left.errorbar([x], [point["rate"]], yerr=spread, marker="o", capsize=3)
            below = {"xytext": (0, -12 - 12 * (number % 3)), "textcoords": "offset points"}
            left.annotate(name, (x, point["low"]), fontsize=8, ha="center", **below)
            right.plot([x], [point["cost"]], "o")
            right.annotate(name, (x, point["cost"]), textcoords="offset points", xytext=(0, 6), fontsize=8, ha="center")
        left.set_ylabel("success")
        right.set_ylabel("path cost over the oracle's, median")
        for axes in (left, right):
            logarithmic(axes)
            axes.set_xlabel("milliseconds for a replan, median")
            axes.margins(x=0.12, y=0.12)
            axes.grid(alpha=0.3)
        left.set_ylim(-0.1, 1.05)

    return paint
