"""How fast: overhead over the bare work, rates beside peers, effective draws for each second, and how cost grows.

=======================================================  ==============================================================
sections                                                 what they measure
=======================================================  ==============================================================
``guidance``, ``hmc``                                    :mod:`boltzmix.benchmarks.speed.overhead`
``composites``                                           :mod:`boltzmix.benchmarks.speed.composites`: after compilation
``throughput-hmc``, ``throughput-mclmc``                 :mod:`boltzmix.benchmarks.speed.throughput`: beside BlackJAX
``nuts``                                                 :mod:`boltzmix.benchmarks.speed.nuts`: beside its peers
``floors``, ``chains``, ``dimension``, ``conditions``,   :mod:`boltzmix.benchmarks.speed.scaling`: evaluations against
``networks``                                             size, beside what the machine allows
``memory``                                               :mod:`boltzmix.benchmarks.speed.memory`: against chains
=======================================================  ==============================================================

Figures are CPU seconds on one thread; both sides of a ratio are timed in turns in one run, and the median counts.
"""

from collections.abc import Sequence
from pathlib import Path

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import run_sections
from boltzmix.benchmarks.speed import composites, memory, nuts, overhead, scaling, throughput

SECTIONS = [
    ("guidance", overhead.guidance),
    ("hmc", overhead.hmc),
    ("composites", composites.section),
    ("throughput-hmc", throughput.hmc),
    ("throughput-mclmc", throughput.mclmc),
    ("nuts", nuts.section),
    ("floors", scaling.floors),
    ("chains", scaling.chains),
    ("dimension", scaling.dimension),
    ("conditions", scaling.conditions),
    ("networks", scaling.networks),
    ("memory", memory.section),
]


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the suite; each seed is a repetition with fresh weights and states, or starts the chains."""
    title = "Speed (one thread): over the bare work, beside peers, and against size"
    return run_sections("speed", title, SECTIONS, out=out, quick=quick, seeds=seeds, only=only, progress=progress)
