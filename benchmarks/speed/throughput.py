"""Gradients for each CPU second at fixed settings beside BlackJAX, on six targets at three numbers of chains.

Sections ``throughput-hmc`` (10 leapfrogs, no jitter) and ``throughput-mclmc`` (unadjusted, two gradients a step), in
float32. Ours runs in tiers: eager, and compiled by each backend of :func:`boltzmix.compile_kernel`; ``auto`` is what a
user gets, and is judged. BlackJAX runs as jit of a scan over transitions of chains mapped over. Each library has a
process of its own; one run of each tier and one of BlackJAX are a round, the order changes from round to round, and the
figure is the median of the ratios within rounds. Noise is drawn and every position kept within the time; compilation is
apart. From the same starts with the same settings both sides have one law, transition by transition, so moments of the
first run are compared chain by chain.
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import pictures, targets
from boltzmix.benchmarks.speed.jobs import Moments, Prepared, Work, discrepancy, moments, prepare
from boltzmix.benchmarks.speed.sides import Side, SideFailed
from boltzmix.benchmarks.speed.timing import ratio, turns

PEER = "BlackJAX"
#: the tier that is judged, and those beside it
JUDGED, TIERS = "auto", ("auto", "inductor", "eager")
#: transitions of one run, and how many times fewer eager ones are timed
STEPS = {4: 4000, 256: 1000, 4096: 100}
EAGER_SHARE = 20
#: least ratio at many chains; that of all targets but one at 256; that at 4 chains from a dimension on
AT_MANY, AT_256, AT_4, LARGE = 1.0, 1.8, 2.5, 25
#: largest discrepancy of equal laws: with 2·10⁴ figures all below it but with probability 2·10⁴ · 2 exp(−18) = 6·10⁻⁴
SAME = 6.0
#: chains from which that can tell: no discrepancy exceeds the square root of their number
FEWEST = 64

_WORDS = {"hmc": "HMC, L = 10", "mclmc": "unadjusted MCLMC"}


def hmc(report: Report, settings: Settings) -> None:
    """Fixed-step HMC."""
    compare(report, settings, "hmc")


def mclmc(report: Report, settings: Settings) -> None:
    """Unadjusted microcanonical Langevin."""
    compare(report, settings, "mclmc")


# --------------------------------------------------------- in the side processes


def prepare_here(request: dict[str, Any], kept: dict[str, Prepared]) -> dict[str, Any]:
    """Compile a job and keep it under its tier; ``clear`` forgets the others first."""
    if request.pop("clear", False):
        kept.clear()
    work = Work(**request)
    job = kept[work.tier] = prepare(work)
    return {"compile": job.compile_seconds, **job.facts}


def run_here(request: dict[str, Any], kept: dict[str, Prepared]) -> dict[str, Any]:
    """Run a job once; ``save`` is a file for the moments of its chains."""
    job = kept[request["tier"]]
    seconds, found = job.run()
    if request.get("save"):
        torch.save(tuple(moments(job.positions(found))), request["save"])
    return {"seconds": seconds}


# ------------------------------------------------------------------ in the parent


@dataclass
class Cell:
    """What was measured on one target at one number of chains.

    Attributes:
        dim: of the target.
        rates: gradients for each CPU second in each round, by tier and peer.
        compile_seconds: by tier and peer.
        backends: by tier.
        apart: discrepancy of moments; NaN where there is nothing to compare.
        failed: what went wrong, by tier and peer.
    """

    dim: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    apart: float = math.nan
    failed: dict[str, SideFailed] = field(default_factory=dict)

    def ratio(self, tier: str) -> tuple[float, float, float]:
        """Median and quartiles of the tier's rate over the peer's, within rounds."""
        return ratio(self.rates[tier], self.rates[PEER])


def measure(
    ours: Any,
    theirs: Any,
    algorithm: str,
    name: str,
    chains: int,
    steps: int,
    tiers: Sequence[str],
    rounds: int,
    seed: int,
) -> Cell:
    """Prepare every tier and the peer, compare the law of their first runs, and time them in turns."""
    cell = Cell(targets.target(name)[0].dim)
    works: dict[str, Work] = {}
    for k, tier in enumerate([PEER, *tiers]):
        side = theirs if tier == PEER else ours
        count = max(4, steps // EAGER_SHARE) if tier == "eager" else steps
        work = Work(algorithm, name, chains, count, tier, seed)
        try:
            facts = side("prepare", clear=k < 2, **vars(work))
            backend = facts.get("backend", tier)
            if tier == "inductor" and backend != tier:
                raise SideFailed("CompileError", f"asked for inductor and got {backend}")
        except SideFailed as error:
            cell.failed[tier] = error
            continue
        works[tier], cell.compile_seconds[tier], cell.backends[tier] = work, facts["compile"], backend
    _first_runs(ours, theirs, works, cell)
    for order in turns(list(works), rounds):
        for tier in order:
            try:
                seconds = (theirs if tier == PEER else ours)("run", tier=tier)["seconds"]
            except SideFailed as error:
                cell.failed.setdefault(tier, error)
                continue
            cell.rates.setdefault(tier, []).append(works[tier].gradients / seconds)
    for tier in cell.failed:  # one that failed on the way has no rounds to compare
        cell.rates.pop(tier, None)
    return cell


def _first_runs(ours: Any, theirs: Any, works: Mapping[str, Work], cell: Cell) -> None:
    """Warm up with one run of each, and compare the moments of the judged tier with the peer's."""
    found: dict[str, Moments] = {}
    with tempfile.TemporaryDirectory() as folder:
        for tier in works:
            file = str(Path(folder) / f"{tier}.pt")
            try:
                (theirs if tier == PEER else ours)("run", tier=tier, save=file)
            except SideFailed as error:
                cell.failed[tier] = error
                continue
            found[tier] = Moments(*torch.load(file))
    if PEER in found and JUDGED in found:
        cell.apart = discrepancy(found[JUDGED], found[PEER])


def compare(report: Report, settings: Settings, algorithm: str, open_side: Any = Side) -> None:
    """All cells of an algorithm: a row for each, and how many of them reach what is asked."""
    chains = settings.size(3, 2)
    names = list(targets.TARGETS)[: settings.size(len(targets.TARGETS), 3)]
    cells: dict[tuple[str, int], Cell] = {}
    with open_side() as ours, open_side() as theirs:
        for name, number in itertools.product(names, list(STEPS)[:chains]):
            steps, rounds = STEPS[number] // settings.size(1, 10), settings.size(6, 2)
            # torch's compiler takes half a minute for each, and one size says how it compares
            tiers = [t for t in TIERS if t != "inductor" or (number == 256 and not settings.quick)]
            cell = measure(ours, theirs, algorithm, name, number, steps, tiers, rounds, settings.seeds[0])
            cells[name, number] = cell
            describe(report, _WORDS[algorithm], name, number, cell, exact=algorithm == "hmc")
    tally(report, _WORDS[algorithm], cells)
    table = {key: cell.ratio(JUDGED)[0] for key, cell in cells.items() if {JUDGED, PEER} <= set(cell.rates)}
    report.figures[f"throughput-{algorithm}"] = lambda figure: pictures.ratios(figure, table, _WORDS[algorithm], PEER)


def describe(report: Report, words: str, name: str, chains: int, cell: Cell, exact: bool) -> None:
    """The rows of one cell: rates of all tiers, the judged ratio, compile times, and whether the laws agree."""
    task = f"{words}, {name.replace('_', ' ')} ({cell.dim}-d), {chains} chains"
    for tier, error in cell.failed.items():
        if error.kind == "MissingExtra":
            report.skip(f"{task}, {tier}", str(error))
        elif tier in (JUDGED, PEER):
            report.state(task, f"{tier} ran", False, "yes", str(error))
        else:
            report.tell(task, f"gradients per CPU second, {tier}", math.nan, str(error))
    for tier, rates in cell.rates.items():
        backend = cell.backends[tier]
        note = f"compiled in {cell.compile_seconds[tier]:.1f} s" if cell.compile_seconds[tier] else "nothing to compile"
        report.tell(task, f"gradients per CPU second, {tier}", statistics.median(rates), note + (
            f" by {backend}" if backend != tier else ""
        ))  # fmt: skip
        if tier == PEER or PEER not in cell.rates:
            continue
        value, low, high = cell.ratio(tier)
        note = f"quartiles {low:.2f} … {high:.2f} of {len(rates)} rounds"
        bound = goal(chains, cell.dim) if tier == JUDGED else None
        quantity = f"rate over {PEER}'s, {tier}"
        if bound is None:
            report.tell(task, quantity, value, note)
        else:
            report.check(task, quantity, value, "≥", bound, note)
    for k, rates in enumerate(zip(*cell.rates.values(), strict=True)):
        report.point(words, f"{name}, {chains}", round=k, **dict(zip(cell.rates, rates, strict=True)))
    if math.isnan(cell.apart):
        return
    quantity, note = f"moments of chains against {PEER}'s, |Σd| / √Σd²", "means of x and x² of the first run, worst"
    if exact and chains >= FEWEST:
        report.check(task, quantity, cell.apart, "≤", SAME, note)
    else:
        report.tell(task, quantity, cell.apart, note)


def goal(chains: int, dim: int) -> float | None:
    """What is asked of the ratio in a cell; None where it is reported only."""
    if chains >= 256:
        return AT_MANY
    return AT_4 if dim >= LARGE else None


def tally(report: Report, words: str, cells: Mapping[tuple[str, int], Cell]) -> None:
    """How many targets reach 1.8 at 256 chains; a target without a ratio does not."""
    at_256 = {name: cell for (name, chains), cell in cells.items() if chains == 256}
    if not at_256:
        return
    if not any(PEER in cell.rates for cell in at_256.values()):
        report.skip(f"{words}, all targets, 256 chains", f"{PEER} ran on none")
        return
    good = sum({JUDGED, PEER} <= set(c.rates) and c.ratio(JUDGED)[0] >= AT_256 for c in at_256.values())
    quantity = f"targets of {len(at_256)} with {AT_256} times {PEER}'s rate"
    report.check(f"{words}, 256 chains", quantity, good, "≥", len(at_256) - 1)
