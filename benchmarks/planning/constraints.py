"""Obstacles that no training data had: corrected sampling, guidance only and best-of-N at equal evaluations.

The prior knows how things move among hidden discs, and is told of none. Every method draws ``candidates`` plans (best-
of-N as many more as the same evaluations buy without any task in the sampler), the dense checker sorts them, and a
problem is solved where the first plan is feasible: free of collisions along whole segments, inside the bounds, from the
start to the goal. An evaluation is one state at which the prior's network is evaluated; gradients of tasks are not
counted and are reported as time.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from boltzmix.benchmarks.planning import methods
from boltzmix.benchmarks.planning.paired import mcnemar
from boltzmix.benchmarks.planning.priors import MissingWeights, prior_of, provenance
from boltzmix.benchmarks.planning.problems import FAMILIES, Problem, problems
from boltzmix.benchmarks.plots import logarithmic
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.shares import Share, share
from boltzmix.compose.term import Term

TARGET = 0.98
"""Least share of problems solved with one to three unseen obstacles."""

CANDIDATES, FULL = 8, 10
"""Plans that are drawn, and evaluations for each, in the tables."""

CASES = ((1, 1), (1, 2), (1, 3), (3, 3), (4, 4), (1, 6))
"""Numbers of families and of obstacles; training had two hidden discs at most."""

FEW, BUDGETS = 4, (3, 6, 12, 24)
"""Plans, and evaluations for each, in the plot."""

RADIUS = 0.04

REPORTED, TUNING = 7, 1007
"""Seeds of problems: those of the figures, and those that settings were chosen on."""


@dataclass(frozen=True)
class Solved:
    """One problem's result.

    Attributes:
        feasible: the first plan is.
        any: share of feasible plans among those that were drawn.
        length: of the first plan over the straight line; NaN where it is not feasible.
        evaluations, seconds: of the call.
        reasons: what is violated.
    """

    feasible: bool
    any: float
    length: float
    evaluations: int
    seconds: float
    reasons: tuple[str, ...]


def run(report: Report, settings: Settings) -> None:
    """A table for each number and kind of obstacles; of further training seeds ours alone, on up to three discs."""
    n = settings.size(60, 4)
    for seed in settings.seeds:
        try:
            prior = prior_of("obstacles", seed)
        except MissingWeights as error:
            report.skip(f"training seed {seed}", f"weights missing: {error}")
            continue
        report.notes.append(provenance("obstacles", seed))
        for kinds, count in CASES:
            if seed == settings.seeds[0]:
                table(report, prior, f"{said(kinds, count)}, seed {seed}", cases(n, FAMILIES[:kinds], count))
            elif kinds == 1 and count <= 3:
                ours = dict(list(methods.constrained(FULL, CANDIDATES).items())[:1])
                task = f"{said(kinds, count)}, seed {seed}"
                table(report, prior, task, cases(n, FAMILIES[:kinds], count), ours)


def said(kinds: int, count: int) -> str:
    """The obstacles in words."""
    return f"{count} of {', '.join(FAMILIES[:kinds])}" if kinds > 1 else f"{count} disc{'s' if count > 1 else ''}"


def cases(n: int, families: Sequence[str], count: int, seed: int = REPORTED) -> list[Problem]:
    """The problems of a table."""
    bounds = ((-0.95, 0.95), (-0.95, 0.95))
    return problems(n, bounds, families=families, count=count, radius=RADIUS, duration=3.1, seed=seed)


def table(
    report: Report,
    prior: Term,
    task: str,
    asked: Sequence[Problem],
    compared: dict[str, Callable[..., Any]] | None = None,
) -> None:
    """Every method on the same problems at equal evaluations; the first of them against its target and the others."""
    found: dict[str, list[Solved]] = {}
    for name, make in (compared or methods.constrained(FULL, CANDIDATES)).items():
        found[name] = solve(make, prior, asked)
        tell(report, task, name, found[name])
        report.keep()
    ours, *others = found
    won = share(torch.tensor([s.feasible for s in found[ours]]))
    if len(asked[0].obstacles) <= 3:
        report.check(task, f"{ours}: solved", won.rate, "≥", TARGET, interval(won))
    for name in others:
        mine, theirs = ([s.feasible for s in found[key]] for key in (ours, name))
        gap = statistics.fmean(mine) - statistics.fmean(theirs)
        report.tell(task, f"{ours} less {name}", gap, f"paired (McNemar), p = {mcnemar(mine, theirs):.2g}")


def against_compute(report: Report, settings: Settings) -> None:
    """Success against evaluations, three obstacles of three families."""
    task, n = "success against compute, 3 obstacles of 3 families", settings.size(40, 4)
    prior, asked = prior_of("obstacles", settings.seeds[0]), cases(n, FAMILIES[:3], 3)
    for budget in BUDGETS if not settings.quick else BUDGETS[:2]:
        for name, make in methods.constrained(budget, FEW).items():
            tell(report, task, name, solve(make, prior, asked), budget)
            report.keep()
    report.figures["compute"] = curve(report, task)


def solve(make: Callable[..., Any], prior: Term, asked: Sequence[Problem]) -> list[Solved]:
    """One call for each problem; the problem's number is its seed."""
    found = []
    for number, problem in enumerate(asked):
        planner = make(prior, problem.obstacles, RADIUS)
        clock = time.process_time()
        result = planner.plan(at_rest(problem.start, planner.space), problem.goal, seed=number)
        seconds = time.process_time() - clock
        straight = float(np.linalg.norm(np.subtract(problem.goal, problem.start)))
        good = result.status == "feasible"
        length = float(result.path_lengths[0]) / straight if good else float("nan")
        share_of = float(np.mean(result.feasible)) if len(result) else 0.0
        found.append(Solved(good, share_of, length, int(result.evaluations), seconds, result.reasons))
    return found


def at_rest(position: Sequence[float], space: Any) -> np.ndarray:
    """A state at ``position`` with every other coordinate zero."""
    state = np.zeros(len(space.state))
    state[[space.state.index(name) for name in space.position]] = position
    return state


def interval(found: Share) -> str:
    """In words."""
    return f"[{found.low:.3f}, {found.high:.3f}], n = {found.n}"


def tell(report: Report, task: str, name: str, found: Sequence[Solved], budget: int = FULL) -> Share:
    """A row, and a point of the curve."""
    solved = share(torch.tensor([s.feasible for s in found]))
    lengths = [s.length for s in found if s.feasible]
    evaluations = statistics.fmean(s.evaluations for s in found)
    each = statistics.fmean(s.any for s in found)
    length = statistics.median(lengths) if lengths else float("nan")
    seconds = statistics.median(s.seconds for s in found)
    why = [s.reasons[0].split(":")[0] for s in found if s.reasons]
    lost = ", ".join(f"{why.count(reason)} {reason}" for reason in sorted(set(why)))
    report.tell(
        task,
        f"{name}: solved",
        solved.rate,
        f"{interval(solved)}; {evaluations:.0f} evaluations, {1e3 * seconds:.0f} CPU-ms; of single plans {each:.3f}; "
        f"length over the straight line {length:.2f}" + (f"; lost to {lost}" if lost else ""),
    )
    report.point(
        task, name, budget=budget, evaluations=evaluations, each=each, length=length, cpu_ms=1e3 * seconds,
        **dataclasses.asdict(solved),
    )  # fmt: skip
    return solved


def curve(report: Report, task: str) -> Callable[[Any], None]:
    """Shares with their intervals against evaluations, for problems (best plan) and for single plans."""

    def paint(figure: Any) -> None:
        figure.set_size_inches(10, 4.2)
        left, right = figure.subplots(1, 2)
        for name, points in report.curves.get(task, {}).items():
            x = [p["evaluations"] for p in points]
            rates = np.array([p["rate"] for p in points])
            error = [rates - [p["low"] for p in points], [p["high"] for p in points] - rates]
            left.errorbar(x, rates, yerr=np.maximum(error, 0.0), marker="o", capsize=2, label=name)
            right.plot([p["cpu_ms"] for p in points], rates, "o-", label=name)
        left.set_xlabel("evaluations of the prior for one problem")
        right.set_xlabel("CPU milliseconds for one problem, median")
        for axes in (left, right):
            logarithmic(axes)
            axes.axhline(TARGET, color="0.5", linestyle=":")
            axes.set_ylim(-0.03, 1.03)
            axes.grid(alpha=0.3)
        left.set_ylabel("share of problems solved")
        left.legend(fontsize=8)
        figure.suptitle(task, fontsize=10)

    return paint
