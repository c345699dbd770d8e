r"""Every family on the same digits, trained by the public ``fit`` for the same time, and judged by the same figures.

The data are scikit-learn's 8×8 digits with their labels. Pixels have 17 levels; families over real numbers are trained
on :math:`x = 2(k + u)/17 - 1` with :math:`u \sim U[0, 1)`, and their densities become bits per pixel of the levels by

.. math:: \frac{-\log p(x) + 64 \log(17/2)}{64 \log 2},

an upper bound on those of the levels (Theis, van den Oord and Bethge, 2016, *A note on the evaluation of generative
models*). Before draws are judged or shown, those of real numbers are put back on their levels.

A training budget is CPU seconds of one thread. Each family first takes a few steps to see what a step costs, and then
as many as fit into the budget; nothing else differs but what :mod:`boltzmix.benchmarks.digits_families` says, which is
the whole configuration. Models are kept beside the results, and a second run judges those that it finds.
"""

import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics, plots
from boltzmix.benchmarks.digits_families import FAMILIES, PIXELS, TRAINING_IMAGES, Family, grey_levels
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.suites import across
from boltzmix.benchmarks.suites.adaptation import rare_classes
from boltzmix.compose.draw import write_atomically
from boltzmix.models import data
from boltzmix.models.fit import fit
from boltzmix.models.load import build, load, save
from boltzmix.models.training.seeding import seeded

_COLUMNS = (
    ("family", "family"),
    ("kind", "likelihood"),
    ("bits", "bits/dim"),
    ("accuracy", "as asked"),
    ("distance", "energy distance"),
    ("nearest", "nearest"),
    ("parameters", "parameters"),
    ("steps", "steps"),
    ("training", "training s"),
    ("sampling", "sampling s"),
)


@dataclass
class Judged:
    """What is known of one family.

    Attributes:
        family: its name.
        kind: what its bits per pixel are: exact, a bound, or an estimate.
        bits: bits per pixel of held-out digits, without a label.
        bits_train: the same of training digits.
        accuracy: share of class-conditional draws that the classifier sees as the class asked for.
        distance: energy distance of these draws to held-out digits.
        nearest: median distance of draws to the nearest training digit.
        parameters: numbers learned.
        steps, batch, training: optimiser steps, their batch size, and CPU seconds.
        sampling: CPU seconds for all draws.
        draws: how many.
        error: what went wrong, if anything did.
    """

    family: str
    kind: str = ""
    bits: float = math.nan
    bits_train: float = math.nan
    accuracy: float = math.nan
    distance: float = math.nan
    nearest: float = math.nan
    parameters: int = 0
    steps: int = 0
    batch: int = 0
    training: float = math.nan
    sampling: float = math.nan
    draws: int = 0
    error: str = ""
    pictures: dict[str, Any] = field(default_factory=dict, repr=False)


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 1,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    *,
    families: Sequence[str] | None = None,
    budget: float = 120.0,
    workers: int | None = None,
) -> Report:
    """Train and judge every family, one seed.

    Args:
        out, quick, seeds, only, progress: as in every suite; the table of families uses the first seed.
        families: names of families; None for all.
        budget: CPU seconds of training.
        workers: processes of one thread each; None for one for each core.
    """
    if families is not None and (unknown := sorted(set(families) - set(FAMILIES))):
        raise ValueError(f"the suite has no families {unknown}; it has {', '.join(FAMILIES)}")
    if not 0 < budget < math.inf:
        raise ValueError(f"budget is a number of seconds > 0, got {budget!r}")
    folder = Path(out) if out is not None else Path("runs") / "families" / time.strftime("%Y%m%d-%H%M%S")
    names = list(FAMILIES) if families is None else list(families)
    many = max(1, min(len(names), workers or os.cpu_count() or 1))

    def digits(report: Report, settings: Settings) -> None:
        judged = _all(names, settings.seeds[0], 2.0 if quick else budget, 2 if quick else 40, folder, many)
        _tabulate(report, judged, settings)

    def three(report: Report, settings: Settings) -> None:
        across.digits(report, settings, folder / "models")

    sections = [("digits", digits), ("plane", across.plane), ("three families", three), ("rare classes", rare_classes)]
    title = f"Every family on digits, {2 if quick else budget:g} CPU seconds of training each"
    return run_sections("families", title, sections, out=folder, quick=quick, seeds=seeds, only=only, progress=progress)


def _all(names: Sequence[str], seed: int, budget: float, each: int, folder: Path, workers: int) -> list[Judged]:
    """Judge families in processes of one thread; in the order of the table, whatever finished first."""
    found: dict[str, Judged] = {}
    if workers == 1:
        for name in names:
            found[name] = judge(name, seed, budget, each, str(folder / "models"))
    else:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        try:
            jobs = {pool.submit(judge, n, seed, budget, each, str(folder / "models")): n for n in names}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return [found[name] for name in names]


def judge(name: str, seed: int, budget: float, each: int, folder: str) -> Judged:
    """Train one family, or find it trained, and measure it; an exception becomes its ``error``."""
    family, made = FAMILIES[name], Judged(name)
    try:
        model = _trained(name, family, seed, budget, Path(folder), made)
        _measure(model, family, seed, each, made)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        made.error = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return made


def _trained(name: str, family: Family, seed: int, budget: float, folder: Path, made: Judged) -> Any:
    with contextlib.suppress(ValueError, FileNotFoundError):
        model = load(name, folder)
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        made.steps, made.batch, made.training = about["steps"], about["batch"], about["training"]
        made.parameters = sum(p.numel() for p in model.parameters())
        return model

    def fresh() -> Any:
        made: Any = seeded(lambda: build(family.spec), seed)
        if family.prepared:
            generator = torch.Generator().manual_seed(seed)
            made.prepare(source(8 * TRAINING_IMAGES, generator), generator)
        return made

    source = family.data()
    trial = 6 if budget < 10 else 30
    fit(fresh(), source, steps=2, seed=seed, progress=False, **family.fit)  # imports and first calls cost extra
    clock = time.process_time()
    fit(fresh(), source, steps=trial, seed=seed, progress=False, **family.fit)
    each = (time.process_time() - clock) / trial
    steps = min(max(trial, round(budget / each)), family.most or 10**9)
    model = fresh()
    clock = time.process_time()
    fit(model, source, steps=steps, seed=seed, progress=False, metrics=folder / f"{name}.jsonl", **family.fit)
    made.steps, made.batch, made.training = steps, family.fit["batch_size"], time.process_time() - clock
    made.parameters = sum(p.numel() for p in model.parameters())
    save(
        model, name, folder, family.spec, steps=steps, batch=made.batch, training=made.training, seed=seed,
        settings=family.fit,
    )  # fmt: skip
    return load(name, folder)


def _measure(model: Any, family: Family, seed: int, each: int, made: Judged) -> None:
    (train, _), (test, _) = data.digit_levels("train"), data.digit_levels("test")
    made.kind = family.kind
    most = 16 if each < 10 else len(test)
    made.bits, made.bits_train = (_bits(model, family, levels[:most], seed) for levels in (test, train))
    labels = torch.arange(10).repeat(each)
    clock = time.process_time()
    draws = family.draw(model, each, seed)
    made.sampling, made.draws = time.process_time() - clock, len(draws)
    if not bool(torch.isfinite(draws.float()).all()):
        raise ValueError(
            f"{int((~torch.isfinite(draws.flatten(1)).all(1)).sum())} of {len(draws)} draws are not finite"
        )
    grey = grey_levels(draws)
    found = load("digits-classifier").predict(grey)
    right = found == labels
    made.accuracy = float(right.double().mean())
    real, reference = test.float() / 8 - 1, train.float() / 8 - 1
    made.distance = metrics.energy_distance(grey, real)
    made.nearest = metrics.nearest_distance(grey, reference)
    made.pictures = {"draws": grey[: 10 * min(each, 6), 0].numpy(), "right": right[: 10 * min(each, 6)].numpy()}


def _bits(model: Any, family: Family, levels: Tensor, seed: int) -> float:
    """Bits per pixel of the levels, mean over images."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    if family.discrete:
        return float(family.nats(model, levels, generator).double().mean()) / (PIXELS * math.log(2))
    x = 2 * (levels + torch.rand(levels.shape, generator=generator)) / 17 - 1
    nats = float(family.nats(model, x, generator).double().mean())
    return (nats + PIXELS * math.log(17 / 2)) / (PIXELS * math.log(2))


def _tabulate(report: Report, judged: Sequence[Judged], settings: Settings) -> None:
    (train, _), (test, _) = data.digits("train"), data.digits("test")
    floor = metrics.energy_distance(
        train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:400]], test
    )
    classifier = load("digits-classifier")
    lines = ["| " + " | ".join(title for _, title in _COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for j in judged:
        lines.append("| " + " | ".join(_cell(getattr(j, key)) for key, _ in _COLUMNS) + " |")
        for key, title in _COLUMNS[2:]:
            report.tell(j.family, title, getattr(j, key), j.kind if key == "bits" else "")
        report.tell(j.family, "bits/dim of training digits", j.bits_train)
        report.state(j.family, "trained, drawn and judged", not j.error, "yes", j.error)
        numbers = {k: v for k, v in asdict(j).items() if k not in ("family", "pictures")}
        report.point("digits", j.family, **numbers)
        if j.pictures:
            report.figures[j.family] = _sheet(j)
    real = {
        "accuracy": float((classifier.predict(test) == data.digits("test")[1]).double().mean()),
        "distance": floor,
        "nearest": metrics.nearest_distance(test, train),
    }
    cells = ["held-out digits themselves", *(_cell(real.get(key, "")) for key, _ in _COLUMNS[1:])]
    lines.append("| " + " | ".join(cells) + " |")
    for key, value in real.items():
        report.tell("held-out digits themselves", dict(_COLUMNS)[key], value)
    report.summary = "\n".join(lines)
    report.notes += [
        "bits/dim: of held-out digits without a label, per pixel of 17 levels; lower is better.",
        "as asked: share of class-conditional draws, the same number of each class, that a classifier trained on real "
        "digits sees as the class asked for.",
        "energy distance: of these draws to held-out digits; its floor is that of 400 training digits.",
        "nearest: median distance to the nearest training digit; much below that of held-out digits is memory.",
        "training and sampling are CPU seconds of one thread; all draws count, ten classes of equal size.",
        "a family that does harm to itself by longer training stops earlier: `most` in benchmarks/digits_families.py.",
    ]


def _sheet(judged: Judged) -> Any:
    def draw(figure: Any) -> None:
        figure.set_size_inches(6.0, 0.58 * len(judged.pictures["draws"]) / 10 + 0.5)
        ax = figure.subplots()
        ax.imshow(plots.tiles(judged.pictures["draws"], judged.pictures["right"], 10))
        ax.set_axis_off()
        ax.set_title(
            f"{judged.family}: {judged.bits:.2f} bits/dim, {100 * judged.accuracy:.0f} % as asked "
            "(red: another digit); the first draws of each class",
            fontsize=7,
        )

    return draw


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def publish(folder: str | Path, root: str | Path = ".") -> None:
    """Copy a run's files to benchmarks/results/families and its table into docs/models.md.

    Raises:
        ValueError: a quick run.
    """
    folder, root = Path(folder), Path(root)
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if found["quick"]:
        raise ValueError(f"{folder} is a quick run: nothing to show")
    kept = root / "benchmarks" / "results" / "families"
    for path in [folder / "results.json", folder / "table.md", *sorted(folder.glob("*.png"))]:
        write_atomically(kept / path.name, path.read_bytes())
    page = root / "docs" / "models.md"
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(_BEGIN)
    tail = rest.split(_END)[1]
    page_text = f"{head}{_BEGIN}\n\n{found['summary']}\n\n{_END}{tail}"
    write_atomically(page, page_text.encode())


_BEGIN = "<!-- generated by: python -m boltzmix.benchmarks.suites.families FOLDER -->"
_END = "<!-- end -->"

if __name__ == "__main__":
    publish(sys.argv[1])
