"""Effective draws for each CPU second of NUTS, beside BlackJAX and NumPyro, at 64 chains and at 4.

Every sampler starts at the same points, adapts in its own way with the same number of transitions, and computes in
float64. The figure is the smallest bulk effective sample size over coordinates divided by the CPU seconds of the
sampling phase; tuning and compilation are apart. Each sampler has a process of its own, seeds are the rounds, and the
order of the samplers changes from round to round. A run whose chains disagree (R-hat above 1.05) has no effective size
that means anything, and none is reported.
"""

import copy
import itertools
import math
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density, density
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import pictures, timing
from boltzmix.benchmarks.speed.sides import Side, SideFailed
from boltzmix.benchmarks.speed.timing import ratio, turns
from boltzmix.compose.adaptation.base import Adaptation, Tuner
from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.draw import Draw
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC

OURS, PEERS = "boltzmix", ("BlackJAX", "NumPyro")
TARGETS = ("eight_schools", "logistic_regression", "ill_conditioned", "stochastic_volatility")
#: number of chains, and transitions of warm-up and sampling of each
LENGTHS = {64: 500, 4: 1000}
_CONVERGED = 1.05
_JUDGED = 64


# --------------------------------------------------------- in the side processes


@dataclass(frozen=True)
class Clocked(MCMC):
    """MCMC that notes the CPU seconds of the process when sampling has ended, before diagnostics."""

    marks: dict[str, float] = field(default_factory=dict, compare=False)

    def _finish(self, *args: Any, **options: Any) -> Draw:
        self.marks["end"] = timing.now()
        return super()._finish(*args, **options)


def clocked(adaptation: Adaptation, marks: dict[str, float]) -> Adaptation:
    """The same adaptation, which notes when it has ended."""
    kind = type(adaptation)

    def begin(self: Any, *args: Any, **options: Any) -> Tuner:
        tuner = kind.begin(self, *args, **options)
        finish = tuner.finish

        def marked() -> Any:
            found = finish()
            marks["tuned"] = timing.now()
            return found

        tuner.finish = marked
        return tuner

    clone = copy.copy(adaptation)
    object.__setattr__(
        clone, "__class__", type(kind.__name__, (kind,), {"begin": begin, "__module__": kind.__module__})
    )
    return clone


@dataclass(frozen=True)
class Timed:
    """Draws ``(chains, draws, D)`` of one run in float64, CPU seconds by phase, and what compiled it."""

    draws: Tensor
    seconds: dict[str, float]
    gradients: float
    divergences: int
    backend: str = "jax"


def ours(target: Density, starts: Tensor, warmup: int, draws: int, seed: int, kernel: Kernel | None = None) -> Timed:
    """:class:`boltzmix.MCMC` as a user runs it, compiled, after a short run in which everything is compiled."""
    made = kernel or NUTS()
    term = target.term(torch.float64)

    def go(warmup: int, draws: int, marks: dict[str, float]) -> Draw:
        adapt = clocked(made.adaptation(), marks)
        sampler = Clocked(made, warmup=warmup, draws=draws, adapt=adapt, compile=True, marks=marks)
        options: dict[str, Any] = {"init": starts, "dtype": torch.float64, "seed": seed, "progress": False}
        return sample(term, chains=len(starts), sampler=sampler, **options)

    made_by = go(min(warmup, 20), min(draws, 20), {}).info.extra["compile"]
    begin = timing.now()
    marks: dict[str, float] = {}
    draw = go(warmup, draws, marks)
    assert isinstance(draw.x, Tensor)
    gradients = (draw.info.evaluations - draw.info.extra["warmup_evaluations"]) * len(starts)
    seconds = {
        "compile": made_by["seconds"],
        "tuning": marks["tuned"] - begin,
        "sampling": marks["end"] - marks["tuned"],
    }
    backend = made_by["backend"] + (f": {made_by['reason']}" if "reason" in made_by else "")
    return Timed(draw.x.double(), seconds, gradients, draw.info.divergences, backend)


def theirs(library: str, target: Density, starts: Tensor, warmup: int, draws: int, seed: int) -> Timed:
    """NUTS of a library, all chains mapped over in one compiled program.

    Raises:
        MissingExtra: it is not installed.
    """
    from boltzmix.benchmarks import peers

    run = peers.raw_nuts(target, starts, warmup, draws, seed, library=library)
    seconds = {"compile": run.compile_seconds, "tuning": run.tuning_seconds, "sampling": run.seconds[0]}
    return Timed(run.draws, seconds, run.gradients[0], run.divergences)


def method_here(request: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """One run: its effective size, convergence, and CPU seconds by phase."""
    library = request.pop("method")
    target, chains, seed = density(request["target"]), request["chains"], request["seed"]
    arguments = (target, target.starts(chains, seed), request["warmup"], request["draws"], seed)
    return figures(target, ours(*arguments) if library == OURS else theirs(library, *arguments))


def figures(target: Density, run: Timed) -> dict[str, Any]:
    """What is reported of a run.

    ``worst`` is the largest error of a mean in units of its standard error, |mean − truth| / (sd / √ESS).
    """
    standard = (run.draws - target.mean) / target.variance.sqrt()
    sizes = ess(standard)
    errors = standard.mean((0, 1)).abs() * sizes.sqrt()
    return {
        "ess": float(sizes.min()), "rhat": float(rhat(standard).max()), "worst": float(errors.max()),
        "gradients": run.gradients, "divergences": run.divergences, "backend": run.backend, **run.seconds,
    }  # fmt: skip


# ------------------------------------------------------------------ in the parent


def rate(found: Mapping[str, Any]) -> float:
    """Effective draws for each CPU second of the sampling phase; NaN where chains disagree."""
    return found["ess"] / found["sampling"] if found["rhat"] <= _CONVERGED else math.nan


def section(report: Report, settings: Settings, open_side: Any = Side) -> None:
    """All targets at both numbers of chains."""
    names = TARGETS[: settings.size(len(TARGETS), 2)]
    above: dict[int, int] = {}
    peers_ran = False
    groups: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        sides = {method: stack.enter_context(open_side()) for method in (OURS, *PEERS)}
        for chains, name in itertools.product(list(LENGTHS)[: settings.size(2, 1)], names):
            length = LENGTHS[chains] // settings.size(1, 5)
            task = f"NUTS, {name.replace('_', ' ')}, {chains} chains"
            found, failed = measure(
                sides, name, chains, length, settings.seeds[: settings.size(len(settings.seeds), 2)]
            )
            wins = describe(report, task, found, failed)
            above[chains] = above.get(chains, 0) + (wins or 0)
            peers_ran = peers_ran or any(peer in found for peer in PEERS)
            groups[f"{name.replace('_', ' ')},\n{chains} chains"] = {
                method: value for method, runs in found.items()
                if not math.isnan(value := statistics.median(map(rate, runs)))
            }  # fmt: skip
    if not peers_ran:
        report.skip(f"NUTS, {_JUDGED} chains, all targets", "no peer ran")
    elif _JUDGED in above:
        quantity = f"targets of {len(names)} above every peer in ESS per CPU second"
        report.check(f"NUTS, {_JUDGED} chains", quantity, above[_JUDGED], "≥", len(names) - 1)
    label = "min bulk ESS per CPU second"
    report.figures["nuts"] = lambda figure: pictures.bars(figure, groups, label)


def measure(
    sides: Mapping[str, Any], name: str, chains: int, length: int, seeds: tuple[int, ...]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, SideFailed]]:
    """Every sampler with every seed, in turns; those that fail are left out from then on."""
    found: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, SideFailed] = {}
    for seed, order in zip(seeds, turns(list(sides), len(seeds)), strict=True):
        for method in order:
            if method in failed:
                continue
            request = {"target": name, "chains": chains, "warmup": length, "draws": length, "seed": seed}
            try:
                clock = time.perf_counter()
                answer = sides[method]("method", method=method, **request)
            except SideFailed as error:
                failed[method] = error
                found.pop(method, None)
                continue
            found.setdefault(method, []).append({"seed": seed, **answer, "elapsed": time.perf_counter() - clock})
    return found, failed


def describe(
    report: Report, task: str, found: Mapping[str, list[dict[str, Any]]], failed: Mapping[str, SideFailed]
) -> bool | None:
    """The rows of one target; whether ours is above every peer, None where there is no peer to be above."""
    for method, error in failed.items():
        if error.kind == "MissingExtra":
            report.skip(f"{task}, {method}", str(error))
        else:
            report.state(task, f"{method} ran", False, "yes", str(error))
    for method, runs in found.items():
        for run in runs:
            report.point(task, method, **run)

        def median(key: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.median(run[key] for run in runs)

        worst = max(run["rhat"] for run in runs)
        note = (
            f"min ESS {median('ess'):.0f}; sampling {median('sampling'):.3g} s, tuning {median('tuning'):.3g} s, "
            f"compilation {median('compile'):.3g} s ({runs[0]['backend']}); "
            f"{median('gradients'):.3g} gradients; R-hat ≤ {worst:.3f}; {sum(run['divergences'] for run in runs):.0f} "
            f"divergences; means within {max(run['worst'] for run in runs):.1f} standard errors of the truth"
        )
        values = [rate(run) for run in runs]
        if any(map(math.isnan, values)):
            report.skip(f"{task}, {method}", f"chains disagree, so that ESS means nothing; {note}")
        else:
            quantity = f"min bulk ESS per CPU second, median over seeds, {method}"
            report.tell(task, quantity, statistics.median(values), note)
    return _above(report, task, found)


def _above(report: Report, task: str, found: Mapping[str, list[dict[str, Any]]]) -> bool | None:
    """Ratios to every peer that ran, with the same starts within a round."""
    peers = [peer for peer in PEERS if peer in found]
    if not peers:
        return None
    good = True
    for peer in peers:
        own, other = ([rate(run) for run in found.get(method, [])] for method in (OURS, peer))
        if len(own) != len(other) or len(own) < 2 or any(map(math.isnan, own)):
            good = False
            continue
        if any(map(math.isnan, other)):  # a peer without a figure is no bar
            continue
        value, low, high = ratio(own, other)
        report.tell(
            task, f"ESS per CPU second over {peer}'s", value, f"quartiles {low:.2f} … {high:.2f}, {len(own)} seeds"
        )
        good = good and value > 1.0
    return good
