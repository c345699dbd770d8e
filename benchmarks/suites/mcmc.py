r"""Chains against BlackJAX and NumPyro: effective draws for each gradient, on targets with known moments.

Sections are named FAMILY-TARGET. The families are ``nuts`` (4 chains, 1000 + 1000 transitions), ``mclmc`` (unadjusted
microcanonical Langevin) and ``adjusted`` (with a Metropolis test), both after their own tuning with equal gradients;
the targets are four of :mod:`boltzmix.benchmarks.densities`. Every sampler starts at the same points, in float64, with
the defaults that its documentation recommends.

The figure is the smallest bulk effective sample size over coordinates for 1,000 gradients of the sampling phase, of all
chains together. Ours counts each row on which the target was evaluated, from inside the target; peers report what they
used. Compared are the medians over seeds, ours over that of the better peer, with the 95 % percentile interval of the
bootstrap over seeds (seeds are drawn together for all samplers, and the better peer is chosen anew each time).

The same ratio stands beside it with the warm-up counted, and for the squares of deviations from the true means:
trajectories that end opposite to where they began help means and not variances. So do errors of means and variances
against the truth: a sampler that is wrong can be as effective as it likes.

What a peer does depends on its version, our code for it, and the seed alone. Its figures are kept in
``runs/mcmc/peers`` and taken from there by later commands; delete the folder to have them measured anew.
"""

import hashlib
import inspect
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import densities, peers
from boltzmix.benchmarks.densities import Density, density
from boltzmix.benchmarks.methods import Budget
from boltzmix.benchmarks.peers import BlackJAXAdjustedMCLMC, BlackJAXMCLMC, BlackJAXNUTS, NumPyroNUTS, Peer
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.compose.adaptation.loop import warm_up
from boltzmix.compose.callables import term
from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.draw import Draw, write_atomically
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.kernels.microcanonical import MicrocanonicalLangevin
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.term import Term

CHAINS = 4
OURS = "boltzmix"
#: the densities that this suite compares on
TARGETS = ("eight_schools", "logistic_regression", "ill_conditioned", "rotated")
#: what the issue of equal efficiency asks of the ratio
GOAL = 0.9
#: of :mod:`boltzmix.benchmarks.densities`
TARGETS = ("eight_schools", "logistic_regression", "ill_conditioned", "rotated")
#: where peers' figures are kept
MEMORY = Path("runs/mcmc/peers")
_PEERS = ("blackjax", "numpyro", "jax", "jaxlib")
_PACKAGES = ("jax", "blackjax", "numpyro")
_FEWEST = 20  # chains over all seeds, for a t-statistic
_FAMILIES = {"nuts": "NUTS", "mclmc": "unadjusted MCLMC", "adjusted": "adjusted MCLMC"}


@dataclass(frozen=True)
class Chains:
    """What a sampler did on one target with one seed.

    Attributes:
        x: ``(chains, draws, D)`` in float64.
        gradients: evaluations of the sampling phase, over all chains.
        warmup_gradients: those before it.
        divergences: transitions of the sampling phase.
        step_size: mean over chains.
        length: of a trajectory: leapfrogs of a transition on average for NUTS, L / step size for MCLMC.
        numbers: what else is worth knowing.
    """

    x: Tensor
    gradients: int
    warmup_gradients: int
    divergences: int
    step_size: float
    length: float
    numbers: dict[str, Any] = field(default_factory=dict)


Runner = Callable[[Density, Tensor, int], Chains]


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the arguments. Seeds start the chains.

    Raises:
        MissingExtra: BlackJAX or NumPyro is not installed.
    """
    peers.require(_PACKAGES, "comparing with BlackJAX and NumPyro")
    talk = sys.stderr.isatty() if progress is None else progress
    sections = [(f"{family}-{name}", _section(family, name, talk)) for family in _FAMILIES for name in TARGETS]
    title = "Effective draws for each gradient, beside BlackJAX and NumPyro"
    return run_sections("mcmc", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress)


def _section(family: str, name: str, talk: bool) -> Callable[[Report, Settings], None]:
    return lambda report, settings: compare(report, settings, family, name, talk)


def samplers(family: str, settings: Settings) -> dict[str, Runner]:
    """The samplers of a family by name, ours first."""
    if family == "nuts":
        warmup = draws = settings.size(1000, 150)
        return {
            OURS: lambda d, x, seed: ours(d, x, NUTS(), warmup, draws, seed),
            "BlackJAX": theirs(BlackJAXNUTS(), Budget(warmup, draws)),
            "NumPyro": theirs(NumPyroNUTS(), Budget(warmup, draws)),
        }
    steps = settings.size(10_000, 1_500)
    if family == "mclmc":
        warmup = round(steps / 3)  # as many as BlackJAX's tuning takes
        return {
            OURS: lambda d, x, seed: ours_at_budget(d, x, MicrocanonicalLangevin(), warmup, 2 * steps, seed),
            "BlackJAX": theirs(BlackJAXMCLMC(), Budget(warmup, steps)),
        }
    draws = steps // 2  # its tuning aims at two steps for each draw
    return {
        OURS: lambda d, x, seed: ours_at_budget(
            d, x, MicrocanonicalLangevin(adjusted=True), settings.size(1000, 300), 2 * steps, seed
        ),
        # the library asks for as many tuning steps as draws, and takes three in ten of them
        "BlackJAX": theirs(BlackJAXAdjustedMCLMC(), Budget(round(0.3 * draws), draws)),
    }


def theirs(peer: Peer, budget: Budget) -> Runner:
    """A peer as a runner; what it raises is raised."""

    def run(target: Density, starts: Tensor, seed: int) -> Chains:
        found = peer.run(target, starts, budget, seed)
        assert found.draws is not None
        settings = ("step_size", "length")
        return Chains(
            found.draws,
            gradients=round(float(found.gradients.sum())),
            warmup_gradients=round(found.tuning_gradients * len(starts)),
            divergences=found.divergences,
            **{name: found.numbers[name] for name in settings},
            numbers={name: value for name, value in found.numbers.items() if name not in settings},
        )

    return run


class Counted:
    """The log-density of a target that counts the rows on which it was evaluated."""

    def __init__(self, target: Density) -> None:
        """Start from none."""
        self.target, self.rows = target, 0

    def __call__(self, x: Tensor) -> Tensor:
        """log p of each row."""
        self.rows += len(x)
        return self.target.log_prob(x)

    def term(self) -> Term:
        """As a term."""
        return term(self, kind="log_prob", event_shape=(self.target.dim,), name=self.target.name)


def ours(target: Density, starts: Tensor, kernel: Kernel, warmup: int, draws: int, seed: int) -> Chains:
    """The kernel through the public ``sample``, which adapts it.

    Raises:
        RuntimeError: the sampler and the target count different numbers of evaluations.
    """
    counted = Counted(target)
    draw = _sample(counted, starts, MCMC(kernel, warmup=warmup, draws=draws), seed)
    before = round(draw.info.extra["warmup_evaluations"] * len(starts))
    return _chains(draw, counted.rows, before)


def ours_at_budget(
    target: Density, starts: Tensor, kernel: MicrocanonicalLangevin, warmup: int, gradients: int, seed: int
) -> Chains:
    """The same where a transition's cost is known only after the warm-up: ``gradients`` for each chain after it."""
    counted = Counted(target)
    tuned, state = warm_up(kernel, ravel(counted.term(), dtype=starts.dtype), starts, warmup=warmup, seed=seed)
    before, counted.rows = counted.rows, 0
    draws = max(4, round(gradients / tuned.evaluations_per_step))
    draw = _sample(counted, state.x, MCMC(tuned, warmup=0, draws=draws), seed + 1_000_000)
    assert tuned.length is not None
    assert tuned.step_size is not None
    return replace(_chains(draw, counted.rows + before, before), length=tuned.length / tuned.step_size)


def _sample(counted: Counted, starts: Tensor, sampler: MCMC, seed: int) -> Draw:
    options: dict[str, Any] = {"init": starts, "dtype": starts.dtype, "seed": seed, "progress": False}
    draw = sample(counted.term(), chains=len(starts), sampler=sampler, **options)
    said = round(draw.info.evaluations * len(starts))
    if said != counted.rows:
        raise RuntimeError(f"the sampler counts {said} evaluations and the target {counted.rows}")
    return draw


def _chains(draw: Draw, rows: int, before: int) -> Chains:
    assert isinstance(draw.x, Tensor)
    transitions = draw.x.shape[0] * draw.x.shape[1]
    steps = draw.stats.get("n_steps")
    used = rows - before if steps is None else int(steps.sum())
    return Chains(
        draw.x,
        gradients=rows - before,
        warmup_gradients=before,
        divergences=draw.info.divergences,
        step_size=draw.info.step_size,
        length=used / transitions,
        numbers={"acceptance": draw.info.acceptance, "used": used},
    )


@dataclass(frozen=True)
class Judged:
    """A run's figures, and per chain the errors from which bias is judged.

    Attributes:
        numbers: for the report.
        mean: (mean of a chain − truth) / sd, ``(chains, D)``.
        variance: mean of (x − truth)² / variance − 1 of a chain, ``(chains, D)``.
    """

    numbers: dict[str, Any]
    mean: Tensor
    variance: Tensor


def judge(target: Density, chains: Chains, seed: int, seconds: float) -> Judged:
    """Effective sizes, convergence and errors of one run."""
    standard = (chains.x.double() - target.mean) / target.variance.sqrt()
    sizes = ess(standard)
    least = float(sizes.min())
    squares = standard * standard
    mean, variance = standard.mean(1), squares.mean(1) - 1
    numbers = {
        "seed": seed,
        "seconds": seconds,
        "ess": least,
        "ess_coordinate": int(sizes.argmin()),
        "ess_median": float(sizes.median()),
        "per_1000": 1000 * least / chains.gradients,
        "per_1000_with_warmup": 1000 * least / (chains.gradients + chains.warmup_gradients),
        "per_1000_squares": 1000 * float(ess(squares).min()) / chains.gradients,
        "gradients": chains.gradients,
        "warmup_gradients": chains.warmup_gradients,
        "rhat": float(rhat(standard).max()),
        "divergences": chains.divergences,
        "step_size": chains.step_size,
        "length": chains.length,
        "mean_error2": float((mean.mean(0) ** 2).max()),
        "variance_error": float(variance.mean(0).abs().max()),
        **{k: v for k, v in chains.numbers.items() if k != "variances"},
    }
    if "variances" in chains.numbers:
        learned = torch.tensor(chains.numbers["variances"], dtype=torch.float64) / target.variance
        numbers["mass_spread"] = float(learned.log().std().exp())  # 1 where the mass is the truth up to a factor
    return Judged(numbers, mean, variance)


def _judged(runner: Runner, target: Density, seed: int, file: Path | None) -> Judged:
    """A run and its figures; with a file, those that an earlier command left there."""
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        errors = (torch.tensor(kept[name], dtype=torch.float64) for name in ("mean", "variance"))
        return Judged(kept["numbers"], *errors)
    clock = time.perf_counter()
    chains = runner(target, target.starts(CHAINS, seed), seed)
    result = judge(target, chains, seed, time.perf_counter() - clock)
    if file is not None:
        kept = {"numbers": result.numbers, "mean": result.mean.tolist(), "variance": result.variance.tolist()}
        write_atomically(file, json.dumps(kept).encode())
    return result


def _digest(settings: Settings) -> str:
    """Of everything that peers' figures depend on, besides the seed."""
    parts = [inspect.getsource(part) for part in (judge, samplers, theirs)]
    parts += [file.read_text(encoding="utf-8") for module in (peers, densities) for file in _files(module)]
    parts += [f"{name} {version(name)}" for name in (*_PEERS, "numpy", "torch")]
    return hashlib.sha256("\0".join([*parts, str(settings.quick)]).encode()).hexdigest()[:12]


def _files(module: ModuleType) -> list[Path]:
    """The files that a module, or a package, is written in."""
    if hasattr(module, "__path__"):
        return sorted(file for folder in module.__path__ for file in Path(folder).glob("*.py"))
    return [Path(inspect.getfile(module))]


def compare(report: Report, settings: Settings, family: str, name: str, talk: bool = False) -> None:
    """All samplers of a family on one target, every seed; a sampler that raises is reported, and the others go on."""
    target, task = density(name), f"{_FAMILIES[family]}, {name.replace('_', ' ')}"
    found: dict[str, list[Judged]] = {}
    runners = samplers(family, settings)
    memory = MEMORY / f"{family}-{name}-{_digest(settings)}"
    for method, runner in runners.items():
        try:
            for seed in settings.seeds:
                result = _judged(runner, target, seed, None if method == OURS else memory / f"{method}-{seed}.json")
                found.setdefault(method, []).append(result)
                report.point(task, method, **result.numbers)
                if talk:
                    words = (
                        f"  {method} seed {seed}: {result.numbers['per_1000']:.3g} effective draws for 1,000 gradients"
                    )
                    print(f"{words}, {result.numbers['seconds']:.1f} s", file=sys.stderr, flush=True)
        except Exception as error:
            found.pop(method, None)
            report.state(task, f"{method} ran", False, "yes", f"{type(error).__name__}: {error}".splitlines()[0])
    exact = family != "mclmc"
    for method, results in found.items():
        _describe(report, task, method, results, exact)
    if OURS in found and len(found) > 1:
        _ratios(report, task, {method: [r.numbers for r in results] for method, results in found.items()}, runners)
    report.figures[family] = lambda figure: picture(figure, report.curves, _FAMILIES[family])
    report.notes = [*dict.fromkeys([*report.notes, _settings(family)])]


def _describe(report: Report, task: str, method: str, results: Sequence[Judged], exact: bool) -> None:
    numbers = [r.numbers for r in results]

    def median(key: str) -> float:
        return statistics.median(n[key] for n in numbers)

    spread = [n["per_1000"] for n in numbers]
    note = (
        f"{min(spread):.3g} … {max(spread):.3g}; with warm-up {median('per_1000_with_warmup'):.3g}; "
        f"of squares {median('per_1000_squares'):.3g}; min ESS {median('ess'):.0f} of {median('gradients'):.3g} "
        f"gradients; R-hat ≤ {max(n['rhat'] for n in numbers):.3f}; {sum(n['divergences'] for n in numbers)} "
        f"divergences; step size {median('step_size'):.3g}, length {median('length'):.3g}"
    )
    if "acceptance" in numbers[0]:
        note += f", acceptance {median('acceptance'):.2f}"
    report.tell(task, f"min bulk ESS for 1,000 gradients, median over seeds, {method}", median("per_1000"), note)
    mean, variance = (torch.cat([getattr(r, name) for r in results]) for name in ("mean", "variance"))
    squared, relative = float((mean.mean(0) ** 2).max()), float(variance.mean(0).abs().max())
    worst = max(t_statistic(mean), t_statistic(variance))
    note = f"all seeds together; means: b² = {squared:.2g} at worst; variances: {100 * relative:.2g} % at worst"
    quantity = f"worst |t| of means and variances against the truth, {method}"
    if exact and method == OURS and len(mean) >= _FEWEST:
        report.check(task, quantity, worst, "≤", 5.0, note)
    else:
        report.tell(task, quantity, worst, note)


def t_statistic(errors: Tensor) -> float:
    """The largest |t| over coordinates of errors ``(chains, D)`` of independent chains."""
    return float((errors.mean(0) / (errors.std(0) / math.sqrt(len(errors)))).abs().max())


def _ratios(
    report: Report, task: str, found: Mapping[str, Sequence[Mapping[str, Any]]], runners: Mapping[str, Runner]
) -> None:
    figures = {"per_1000": "", "per_1000_with_warmup": ", warm-up counted", "per_1000_squares": ", of squares"}
    for key, words in figures.items():
        values = {method: [n[key] for n in numbers] for method, numbers in found.items()}
        rivals = {method: v for method, v in values.items() if method != OURS}
        better = max(rivals, key=lambda method: statistics.median(rivals[method]))
        point, low, high = ratio_of_medians(values[OURS], list(rivals.values()))
        marks = ", ".join(
            f"{w} {v:.3f} {'≥' if v >= GOAL else '<'} {GOAL}" for w, v in (("point", point), ("lower", low))
        )
        note = f"ratio {point:.3f}, 95 % interval {low:.3f} … {high:.3f}: {marks}; the better peer is {better}"
        if absent := [m for m in runners if m not in found]:
            note += f"; without {', '.join(absent)}, which failed"
        quantity = f"ratio to the better peer{words}: upper bound of the interval"
        if key == "per_1000":
            report.check(task, quantity, high, "≥", GOAL, note)
        else:
            report.tell(task, quantity, high, note)


def ratio_of_medians(
    values: Sequence[float], rivals: Sequence[Sequence[float]], resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float, float]:
    """Median of ours over the largest median of the rivals, with the bootstrap's percentile interval over seeds.

    Args:
        values: one for each seed.
        rivals: of each peer, one for each seed in the same order.
        resamples: of the seeds, the same for everyone.
        level: of the interval.
    """
    table = torch.tensor([list(values), *map(list, rivals)], dtype=torch.float64)
    count = table.shape[1]
    chosen = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))
    medians = table[:, chosen].quantile(0.5, dim=2)
    ratios = medians[0] / medians[1:].max(0).values
    tail = (1 - level) / 2
    low, high = ratios.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    point = table.quantile(0.5, dim=1)
    return float(point[0] / point[1:].max()), low, high


def _settings(family: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _PEERS)
    what = {
        "nuts": "target acceptance 0.8, diagonal mass, trees of depth at most 10 in all three; BlackJAX: "
        "window_adaptation and nuts.build_kernel as they come; NumPyro: NUTS(potential_fn=…) as it comes; "
        "boltzmix: MCMC(NUTS(), warmup=…, draws=…)",
        "mclmc": "BlackJAX: mclmc.build_kernel() and mclmc_find_L_and_step_size as they come (diagonal mass, energy "
        "variance 5e-4 per dimension)",
        "adjusted": "BlackJAX: adjusted_mclmc_dynamic with random lengths and adjusted_mclmc_find_L_and_step_size as "
        f"it comes, target acceptance {BlackJAXAdjustedMCLMC().acceptance}, which its examples recommend",
    }[family]
    return f"{_FAMILIES[family]}: {what}. Every peer adapts each of its {CHAINS} chains alone. {versions}; float64."


def picture(figure: Any, curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], family: str) -> None:
    """Every seed of every sampler, with medians: a panel for each target."""
    tasks = {task: methods for task, methods in curves.items() if task.startswith(f"{family}, ")}
    figure.set_size_inches(3.4 * len(tasks), 2.2)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, (task, methods) in zip(axes, tasks.items(), strict=True):
        for row, points in enumerate(methods.values()):
            values = [p["per_1000"] for p in points]
            axis.plot(values, [row] * len(values), "o", markersize=4, alpha=0.5)
            axis.plot([statistics.median(values)], [row], "k|", markersize=16, markeredgewidth=2)
        axis.set_yticks(range(len(methods)), list(methods))
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("min ESS for 1,000 gradients", fontsize=8)
        axis.grid(alpha=0.3, axis="x")
