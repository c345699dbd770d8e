"""Planning by composition: mazes, unseen constraints, many rewards from one prior, real time, refusals.

Every method meets the same start-goal pairs, or problems, with the same seeds; judges are independent of the planners
(:mod:`boltzmix.benchmarks.planning`). ``--only`` runs a part. Priors of several training seeds are read from
``runs/weights`` and ``runs/weights/seedK``; what is missing is a visible row.
"""

import importlib
from pathlib import Path
from typing import Any

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Section, Settings, run_sections

MAZES = ("pointmaze-umaze", "pointmaze-medium", "pointmaze-large")
BASELINES = tuple(f"{maze}-baselines" for maze in MAZES)
PARTS = (
    *MAZES,
    *BASELINES,
    "constraints",
    "compute",
    "rewards",
    "conditions",
    "joint",
    "energy",
    "realtime",
    "infeasible",
)
"""Names for ``--only``; ``mazes`` stands for the first six."""


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: Any = 3,
    progress: bool | None = None,
    only: Any = None,
) -> Report:
    """Run the suite; ``quick`` takes few episodes, ``seeds`` are those of training."""
    if only is not None and "mazes" in only:
        only = [name for part in only for name in ((*MAZES, *BASELINES) if part == "mazes" else (part,))]
    return run_sections(
        "planning",
        "Planning by composition",
        [(part, _section(part)) for part in PARTS],
        out=out, quick=quick, seeds=seeds, only=only, progress=progress,
    )  # fmt: skip


def _section(part: str) -> Section:
    def section(report: Report, settings: Settings) -> None:
        maze = part.removesuffix("-baselines")
        module = "mazes" if maze in MAZES else {"compute": "constraints"}.get(part, part)
        found = importlib.import_module(f"boltzmix.benchmarks.planning.{module}")
        if maze in MAZES:
            found.run(report, settings, maze, "ours" if part == maze else "others")
        elif part == "compute":
            found.against_compute(report, settings)
        else:
            found.run(report, settings)

    return section
