"""Posteriors of posteriordb, written as users write them, against the collection's reference draws.

Four chains of NUTS with its default adaptation (a dense mass where a regression's columns are correlated, acceptance
0.95 for the Gaussian process, which warns of divergences at 0.8), in float64.
Differences of means and of standard deviations from the reference are in units of the Monte Carlo standard errors of
both sides; over the 76 parameters of all sections a correct sampler exceeds |z| = 4 somewhere in about one run of a
hundred. R-hat is the rank-normalised split one, over all parameters of the reference.

The records that come with the package are used, or those of a posteriordb folder: ``run(folder=…)``, or the environment
variable ``POSTERIORDB``. ``diamonds`` is run with a folder only.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from boltzmix.benchmarks import posteriordb
from boltzmix.benchmarks.posteriors import POSTERIORS, Posterior, posterior
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.compose.adaptation.windows import Windows
from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC

CHAINS = 4
LARGEST_Z = 4.0
LARGEST_RHAT = 1.01


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    folder: str | Path | None = None,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the other arguments.

    Args:
        folder: a posteriordb folder; None takes that of ``POSTERIORDB``, or the records that come with the package.
    """
    records = posteriordb.open_folder(folder or os.environ.get("POSTERIORDB") or None)
    sections = [(name.split("-")[0], _section(name, records)) for name in POSTERIORS]
    title = "Posteriors of posteriordb against their reference draws"
    return run_sections("posteriors", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress)


def _section(name: str, records: posteriordb.Folder) -> Callable[[Report, Settings], None]:
    def section(report: Report, settings: Settings) -> None:
        if name == "diamonds-diamonds" and isinstance(records, posteriordb.Shipped):
            report.skip(name, "its data do not come with the package: give a posteriordb folder")
            return
        compare(report, settings, records.record(name))

    return section


@dataclass(frozen=True)
class Outcome:
    """What one run of the chains found; ``draws`` are parameters by their Stan names, ``(chains, draws)``."""

    draws: dict[str, Tensor]
    gradients: float
    divergences: int
    seconds: float


def chains(model: Posterior, names: Sequence[str], warmup: int, draws: int, seed: int) -> Outcome:
    """Run NUTS and name what it drew as the reference does."""
    kernel = NUTS(target_acceptance=model.target_acceptance)
    sampler = MCMC(kernel, warmup=warmup, draws=draws, adapt=Windows(mass="dense") if model.dense else True)
    draw = sample(model.term, chains=CHAINS, sampler=sampler, dtype=torch.float64, seed=seed, progress=False)
    assert isinstance(draw.x, dict)
    found = model.quantities({name: x.flatten(0, 1) for name, x in draw.x.items()})
    shaped = posteriordb.named({name: x.reshape(CHAINS, draws, *x.shape[1:]) for name, x in found.items()})
    info = draw.info
    return Outcome({name: shaped[name] for name in names}, info.evaluations, info.divergences, info.seconds)


def compare(report: Report, settings: Settings, record: posteriordb.Record) -> None:
    """Moments, R-hat and costs of one posterior; the worst over seeds."""
    model, task = posterior(record), record.name
    warmup, draws = settings.size(700, 300), settings.size(1000, 150)
    rows: list[dict[str, float]] = []
    for seed in settings.seeds:
        found = chains(model, record.reference.names, warmup, draws, seed)
        z_mean, z_sd = posteriordb.moments(found.draws).z_scores(record.reference)
        x = torch.stack(list(found.draws.values()), -1)
        rows.append(
            {
                "mean": float(z_mean.abs().max()),
                "sd": float(z_sd.abs().max()),
                "rhat": float(rhat(x).max()),
                "ess": float(ess(x).min()),
                "gradients": found.gradients,
                "divergences": found.divergences,
                "seconds": found.seconds,
            }
        )
        report.point(task, "NUTS", seed=seed, **rows[-1])
    worst = {key: max(row[key] for row in rows) for key in rows[0]}
    count = f"{len(record.reference.names)} parameters, {CHAINS} chains of {draws} draws"
    report.check(task, "largest |z| of a mean", worst["mean"], "≤", LARGEST_Z, count)
    report.check(task, "largest |z| of a standard deviation", worst["sd"], "≤", LARGEST_Z, count)
    report.check(task, "largest R-hat", worst["rhat"], "≤", LARGEST_RHAT)
    report.tell(task, "target acceptance", model.target_acceptance)
    report.tell(task, "smallest bulk ESS", min(row["ess"] for row in rows))
    report.tell(task, "gradients for each chain, warm-up included", worst["gradients"])
    report.tell(task, "divergences", worst["divergences"])
    report.tell(task, "seconds", worst["seconds"])
