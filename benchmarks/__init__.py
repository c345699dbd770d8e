"""Targets with known truth, metrics, comparisons and suites.

``python -m boltzmix bench SUITE`` runs a suite and writes ``runs/<suite>/<time>/`` with ``results.json``, ``table.md``
and pictures; :func:`run_suite` is the same from Python. Modules are imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzmix.benchmarks.report import Report

SUITES: dict[str, str] = {
    "compositions": "products, mixtures and negations against exact answers: error against evaluations, log Z, weights",
    "families": "every family on digits at equal training time; three families in one formula; a small model × a prior",
    "across": "a flow × an autoregressive model × a classifier on principal components of digits, by SMC and HMC",
    "speed": "overhead of a guidance composite over the bare network, and of HMC over a hand-written loop",
    "mcmc": "NUTS and microcanonical Langevin beside BlackJAX and NumPyro: effective draws for each gradient, errors",
    "posteriors": "posteriors of posteriordb by NUTS against the collection's reference draws",
    "hard": "separated modes, many wells, a funnel and a magnet against exact answers, by SMC and parallel tempering",
    "energy": "energy models by persistent CD and NCE against a diffusion of equal size and training budget, in 2-D",
}


def run_suite(
    name: str, *, out: Any = None, quick: bool = False, seeds: int = 5, progress: bool | None = None, **options: Any
) -> "Report":
    """Run a suite, write its folder, print its table.

    Args:
        name: one of :data:`SUITES`.
        out: folder to write to; None is ``runs/NAME/TIME``.
        quick: smaller sizes.
        seeds: how many seeds.
        progress: say on stderr what is running; None does on a terminal.
        options: what the suite itself takes, e.g. ``only=["2a"]``.

    Raises:
        ValueError: an unknown suite.
    """
    if name not in SUITES:
        raise ValueError(f"no suite is called {name!r}; there are {', '.join(SUITES)}")
    module = importlib.import_module(f"boltzmix.benchmarks.suites.{name}")
    return module.run(out=out, quick=quick, seeds=seeds, progress=progress, **options)
