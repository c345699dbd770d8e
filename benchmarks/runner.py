"""Runs a suite: one thread, its own folder, every section on its own, the table printed at the end."""

import contextlib
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from boltzmix.benchmarks.report import Report
from boltzmix.compose.errors import SamplingWarning


@dataclass(frozen=True)
class Settings:
    """What a suite is asked for.

    Attributes:
        quick: smaller sizes, to see that everything runs.
        seeds: of the samplers.
    """

    quick: bool
    seeds: tuple[int, ...]

    def size(self, full: int, quick: int) -> int:
        """One number or the other."""
        return quick if self.quick else full


Section = Callable[[Report, Settings], None]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Pin torch to one thread, and put back what was: on small tensors a second one costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_sections(
    suite: str,
    title: str,
    sections: Sequence[tuple[str, Section]],
    *,
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    said: str = "",
) -> Report:
    """Run sections one after the other, write the report and print its table.

    A section that raises is reported as a target that does not hold, and the others still run. Files are written after
    each section.

    Args:
        suite: name, and folder under ``runs/``.
        title: heading of the table.
        sections: pairs of a label and a function that fills the report.
        out: folder to write to; None is ``runs/SUITE/TIME``.
        quick: smaller sizes.
        seeds: how many (0, 1, …), or which.
        only: labels of the sections to run; None runs all.
        progress: say on stderr what is running; None does on a terminal.
        said: options of the suite's own, as they stand in the command.
    """
    settings = Settings(bool(quick), parse_seeds(seeds))
    labels = [label for label, _ in sections]
    if only is not None and (unknown := sorted(set(only) - set(labels))):
        raise ValueError(f"{suite} has no sections {unknown}; it has {labels}")
    now = datetime.now(UTC)
    folder = Path(out) if out is not None else Path("runs") / suite / now.strftime("%Y%m%d-%H%M%S")
    report = Report(suite, title, folder=folder)
    parts = ["python -m boltzmix bench", suite, *(["--quick"] if settings.quick else [])]
    first = settings.seeds == tuple(range(len(settings.seeds)))
    which = str(len(settings.seeds)) if first else " ".join(map(str, settings.seeds))
    about = {
        "command": " ".join([*parts, f"--seeds {which}", *(["--only", *only] if only else []), *said.split()]),
        "created": now.isoformat(timespec="seconds"),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": 1,
        "quick": settings.quick,
        "seeds": list(settings.seeds),
    }
    talk = sys.stderr.isatty() if progress is None else progress
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # suites that look for warnings record them themselves
        for label, section in sections:
            if only is not None and label not in only:
                continue
            if talk:
                print(f"{suite} {label} … ({report.elapsed:.0f} s)", file=sys.stderr, flush=True)
            report.section = label
            report.about = {**about, "sections": report.about.get("sections", []), "seconds": report.elapsed}
            try:
                section(report, settings)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                report.state("the section itself", "ran to its end", False, "yes", what)
            report.about = {**about, "sections": [*report.about.get("sections", []), label]}
            report.about["seconds"] = report.elapsed
            report.write(folder)  # what is known so far: a run that is killed keeps its finished sections
    print(report.markdown())
    print(f"written to {folder}")
    return report


def parse_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds 0, 1, … from how many, or those that are given."""
    if isinstance(seeds, bool) or (isinstance(seeds, int) and seeds < 1):
        raise ValueError(f"seeds is a positive int or a list of ints, got {seeds!r}")
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found:
        raise ValueError("seeds is empty: give at least one")
    return found


def _versions() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("boltzmix", "zuko"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
