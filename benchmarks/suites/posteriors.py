"""Posteriors of posteriordb, written as users write them, against the collection's reference draws.

One rule for all, in float64: 64 particles of SMC go to the posterior from a Gaussian that it fits itself; eight of them
start eight chains of NUTS at acceptance 0.95, of which 500 transitions adapt the step size and a dense mass, estimated
from draws and scores, and 2,000 are kept. No posterior has a setting of its own, and the gradients of all three phases
are counted. Chains from random points stay in other modes of the differential equation; particles that do are
resampled.

Differences of means and of standard deviations from the reference are in units of the Monte Carlo standard errors of
both sides. The bound on |z| is the one that the largest of all of them, over the parameters of every posterior and over
the seeds, exceeds in one run of a hundred of a correct sampler with normal errors: a family-wise rate. R-hat is the
rank-normalised split one, over all parameters of the reference, and its bound that of the collection.

The records that come with the package are used, or those of a posteriordb folder: ``run(folder=…)``, or the environment
variable ``POSTERIORDB``. A posterior of one's own is a row, ``run(folder=…, models={"coins-flips": coins})``
with ``coins`` a function from the data to a :class:`~boltzmix.benchmarks.posteriors.Posterior`; what a folder lacks is
skipped and says so.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from boltzmix.benchmarks import posteriordb
from boltzmix.benchmarks.judgement import Judgement, largest_z
from boltzmix.benchmarks.posteriors import POSTERIORS, Data, Posterior, posterior
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, parse_seeds, run_sections
from boltzmix.compose.adaptation.windows import Windows
from boltzmix.compose.draw import Draw
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC

CHAINS, PARTICLES = 8, 64
WARMUP, DRAWS = 500, 2000
ACCEPTANCE = 0.95
FAMILY_WISE = 0.01
LARGEST_RHAT = 1.01

Models = Mapping[str, Callable[[Data], Posterior]]


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    folder: str | Path | None = None,
    models: Models = POSTERIORS,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the other arguments.

    Args:
        folder: a posteriordb folder; None takes that of ``POSTERIORDB``, or the records that come with the package.
        models: by a record's name, the function that makes the posterior of its data.
    """
    records = posteriordb.open_folder(folder or os.environ.get("POSTERIORDB") or None)
    found = {name: records.record(name) for name in models if name in records.names()}
    bound = round(largest_z(comparisons(found.values(), len(parse_seeds(seeds))), FAMILY_WISE), 2) if found else 0.0
    labels = short_names(list(models))
    sections = [(labels[name], _section(name, found.get(name), models, bound)) for name in models]
    title = "Posteriors of posteriordb against their reference draws"
    return run_sections("posteriors", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress)


def comparisons(records: Iterable[posteriordb.Record], seeds: int) -> int:
    """How many z-scores a run has: a mean and a standard deviation for each parameter and seed."""
    return 2 * seeds * sum(len(record.reference.names) for record in records)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """What comes before the first hyphen, the name of the data, where that tells posteriors apart."""
    first = [name.split("-")[0] for name in names]
    return {name: short if first.count(short) == 1 else name for name, short in zip(names, first, strict=True)}


def _section(
    name: str, record: posteriordb.Record | None, models: Models, bound: float
) -> Callable[[Report, Settings], None]:
    def section(report: Report, settings: Settings) -> None:
        if record is None:
            report.skip(name, "the folder has no reference draws of it")
            return
        compare(report, settings, name, posterior(record, models), bound)

    return section


@dataclass(frozen=True)
class Outcome:
    """One run of the chains: what they found, and what they cost, gradients for each chain and process-CPU seconds."""

    draw: Draw
    found: Judgement
    start: float
    warmup: float
    sampling: float
    seconds: float


def chains(
    model: Posterior, seed: int, warmup: int = WARMUP, draws: int = DRAWS, compiled: bool | str = "auto"
) -> Outcome:
    """Particles, then chains from some of them; ``compiled`` is :class:`MCMC`'s ``compile``."""
    clock = time.process_time()
    options = {"dtype": torch.float64, "seed": seed, "progress": False}
    cloud = sample(model.term, PARTICLES, sampler=SMC(cess=0.9), **options)
    assert isinstance(cloud.x, dict)
    init = {name: x[:: PARTICLES // CHAINS] for name, x in cloud.x.items()}
    adapt = Windows(mass="dense", estimator="fisher")
    sampler = MCMC(NUTS(target_acceptance=ACCEPTANCE), warmup=warmup, draws=draws, adapt=adapt, compile=compiled)
    draw = sample(model.term, chains=CHAINS, init=init, sampler=sampler, **options)
    seconds = time.process_time() - clock
    start, warm = cloud.info.evaluations * PARTICLES / CHAINS, draw.info.extra["warmup_evaluations"]
    return Outcome(draw, model.judge(draw), start, warm, draw.info.evaluations - warm, seconds)


def compare(report: Report, settings: Settings, task: str, model: Posterior, bound: float) -> None:
    """Moments, R-hat and costs of one posterior; the worst over seeds."""
    warmup, draws = settings.size(WARMUP, 200), settings.size(DRAWS, 100)
    rows: list[dict[str, float]] = []
    for seed in settings.seeds:
        one = chains(model, seed, warmup, draws)
        cost = {"start": one.start, "warmup": one.warmup, "sampling": one.sampling, "seconds": one.seconds}
        rows.append({**one.found.worst(), **cost})
        report.point(task, "NUTS", seed=seed, **rows[-1])
    worst = {key: max(row[key] for row in rows) for key in rows[0]}
    size = min(row["ess"] for row in rows)
    assert model.reference is not None
    count = f"{len(model.reference.names)} parameters, {CHAINS} chains of {draws} draws, {len(rows)} seeds"
    report.check(task, "largest |z| of a mean", worst["mean"], "≤", bound, count)
    report.check(task, "largest |z| of a standard deviation", worst["sd"], "≤", bound, count)
    report.check(task, "largest R-hat", worst["rhat"], "≤", LARGEST_RHAT)
    report.tell(task, "smallest bulk ESS", size)
    report.tell(task, "divergences", worst["divergences"], f"of {CHAINS * draws} transitions")
    report.tell(task, "gradients for each chain, to start", worst["start"], f"SMC of {PARTICLES} particles")
    report.tell(task, "gradients for each chain, warm-up", worst["warmup"])
    report.tell(task, "gradients for each chain, sampling", worst["sampling"])
    report.tell(task, "smallest bulk ESS per 1000 gradients", 1000 * size / (CHAINS * worst["sampling"]))
    report.tell(task, "process-CPU seconds of a seed", worst["seconds"])
    _summarise(report, [task.split("-")[0], model.reference.names, worst, size])


def _summarise(report: Report, row: list) -> None:
    """A line of the summary, the worst over seeds."""
    name, names, worst, size = row
    if not report.summary:
        heads = ["posterior", "parameters", "largest \\|z\\|, means", "sds", "R-hat", "ESS", "divergences", "gradients"]
        report.summary = "| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|"
    total = worst["start"] + worst["warmup"] + worst["sampling"]
    cells = [name, str(len(names)), f"{worst['mean']:.2f}", f"{worst['sd']:.2f}", f"{worst['rhat']:.4f}"]
    cells += [f"{size:.0f}", f"{worst['divergences']:.0f}", f"{total:.3g}"]
    report.summary += "\n| " + " | ".join(cells) + " |"
