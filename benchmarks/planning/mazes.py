"""Mazes: every method on the same pairs that a straight line with PD fails, in the simulator.

What is compared are whole controllers: a planner, how its plans are followed, and how often it plans again. Path cost
is the way that was gone over the way of the breadth-first oracle with the same PD controller, on pairs where both
arrive. Contacts are judged on the way that was gone, and plans by the dense checker.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from boltzmix.benchmarks.planning import methods
from boltzmix.benchmarks.planning.episodes import Episode, Outcome, Pair, Policy, outcome, run_all
from boltzmix.benchmarks.planning.priors import MissingWeights, provenance
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.errors import MissingExtra

MAZES = {"pointmaze-umaze": 0.99, "pointmaze-medium": 0.97, "pointmaze-large": 0.95}
"""Environments and the success that is aimed at."""

REPORTED, TUNING = 0, 1000
"""Seeds of pairs: those of the figures, and those that settings were chosen on."""

COST = 1.10
"""The path cost that is aimed at, over the oracle's."""

ORACLE = "breadth-first oracle + PD"


def run(report: Report, settings: Settings, maze: str, listed: str = "ours") -> None:
    """One maze: our prior with every controller and training seed, or the baselines that do without it."""
    from boltzmix.planners import environments

    environment = environments.make(maze)
    n = settings.size(100, 3)
    pairs = hard_pairs(environment, n, REPORTED)
    found: dict[str, Outcome] = {}
    oracle: list[Episode] | None = None
    ways = methods.others(maze, environment) if listed == "others" else methods.of_maze(maze, environment, settings)
    for name, few, make in ways:
        try:
            policy = make()
        except (MissingWeights, MissingExtra, FileNotFoundError) as error:
            report.skip(f"{maze}: {name}", str(error))
            continue
        chosen = pairs[: min(n, few)] if few else pairs
        episodes, seconds = run_all(lambda pair, policy=policy: policy, environment, chosen)
        if name == ORACLE:
            oracle = episodes
        made = found[name] = tell(report, maze, name, episodes, oracle, seconds)
        report.keep()
        if name.startswith(methods.OURS) and "PD" in name:
            report.check(f"{maze}: {name}", "success", made.success.rate, "≥", MAZES[maze], interval(made))
            report.check(f"{maze}: {name}", "path cost over the oracle's, median", made.cost, "≤", COST)
    if listed == "ours":
        for seed in settings.seeds:
            with contextlib.suppress(MissingWeights):
                report.notes.append(provenance(maze, seed))
    title = f"**{maze}**, pairs that a straight line fails; in brackets how many"
    report.summary = "\n".join([*report.summary.splitlines(), "", title, "", *table(found)]).strip()


def hard_pairs(environment: Any, n: int, seed: int) -> list[Pair]:
    """n pairs on which a straight line with PD fails; the same for the same seed."""
    from boltzmix.planners.environments.pairs import hard_pairs as found

    return [Pair(start, goal, 10_000 * seed + k) for k, (start, goal) in enumerate(found(environment, n, seed))]


def interval(made: Outcome) -> str:
    """The interval of a success rate, in words."""
    return f"[{made.success.low:.3f}, {made.success.high:.3f}], n = {made.success.n}"


def tell(
    report: Report, task: str, name: str, episodes: Sequence[Episode], oracle: Sequence[Episode] | None, seconds: float
) -> Outcome:
    """A method's figures as a row, and as a point of the task's curves."""
    made = outcome(episodes, None if oracle is None else oracle[: len(episodes)])
    note = (
        f"{interval(made)}; path cost {_said(made.cost)}, contacts {made.contacts:.3f}, replan p50 "
        f"{_said(1e3 * made.p50)} ms, p95 {_said(1e3 * made.p95)} ms, {made.replans:.1f} replans of "
        f"{_said(made.evaluations)} evaluations; {seconds / len(episodes):.2f} CPU-s an episode"
    )
    if made.errors:
        note += f"; gave up: {made.errors[0][:120]}" + (
            f" (and {len(made.errors) - 1} more)" if made.errors[1:] else ""
        )
    report.tell(f"{task}: {name}", "success", made.success.rate, note)
    report.point(
        task, name, **dataclasses.asdict(made.success), cost=made.cost, contacts=made.contacts, p50=made.p50,
        p95=made.p95, replans=made.replans, evaluations=made.evaluations, steps=made.steps, cpu_seconds=seconds,
    )  # fmt: skip
    return made


def _said(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def table(found: dict[str, Outcome]) -> list[str]:
    """Methods as rows, in Markdown."""
    lines = [
        "| method | success | 95 % interval | path cost | contacts | p50 ms | p95 ms | replans | evaluations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, made in found.items():
        cells = [
            f"{made.success.rate:.3f} ({made.success.n})", f"{made.success.low:.3f}–{made.success.high:.3f}",
            *(_said(v) for v in (made.cost, made.contacts, 1e3 * made.p50, 1e3 * made.p95, made.replans)),
            _said(made.evaluations),
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


MakePolicy = Callable[[], Policy]
