"""Targets with known truth, metrics, comparisons and suites.

``python -m boltzmix bench SUITE`` runs a suite and writes ``runs/<suite>/<time>/`` with ``results.json``, ``table.md``
and pictures; :func:`run_suite` is the same from Python. Modules are imported when they are used.
"""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzmix.benchmarks.comparison import Comparison as Comparison
    from boltzmix.benchmarks.densities import Density as Density
    from boltzmix.benchmarks.methods import Budget as Budget
    from boltzmix.benchmarks.methods import MethodRun as MethodRun
    from boltzmix.benchmarks.own_targets import known as known
    from boltzmix.benchmarks.report import Report
    from boltzmix.benchmarks.sweep import compare as compare

SUITES: dict[str, str] = {
    "compositions": "products, mixtures and negations against exact answers: error against evaluations, log Z, weights",
    "families": "every family on digits at equal training time; three families in one formula; a small model × a prior",
    "across": "a flow × an autoregressive model × a classifier on principal components of digits, by SMC and HMC",
    "samplers": "our samplers and other libraries' on known truths: moments against counted gradients, ranked",
    "images": "pictures of scenes by composition: hits, the law of what comes out, NOT, large canvases, cost",
    "planning": "mazes and worlds of obstacles: success, path cost, unseen constraints, rewards, real time, refusals",
    "speed": "rates beside BlackJAX and NumPyro, overhead over bare work, growth of cost beside the machine's floors",
    "mcmc": "NUTS and microcanonical Langevin beside BlackJAX and NumPyro: effective draws for each gradient, errors",
    "posteriors": "posteriors of posteriordb by NUTS against the collection's reference draws",
    "hard": "separated modes, many wells, a funnel and a magnet against exact answers, by SMC and parallel tempering",
    "energy": "energy models by persistent CD and NCE against a diffusion of equal size and training budget, in 2-D",
}

_NAMES = {
    "Budget": "methods",
    "Comparison": "comparison",
    "Density": "densities",
    "MethodRun": "methods",
    "compare": "sweep",
    "known": "own_targets",
}


def __getattr__(name: str) -> Any:
    """The comparison of samplers, imported when it is first used."""
    if name not in _NAMES:
        raise AttributeError(f"boltzmix.benchmarks has no {name!r}; its names are run_suite, {', '.join(_NAMES)}")
    value = getattr(importlib.import_module(f"boltzmix.benchmarks.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


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
        ValueError: an unknown suite, or an option that it does not take.
    """
    if name not in SUITES:
        raise ValueError(f"no suite is called {name!r}; there are {', '.join(SUITES)}")
    module = importlib.import_module(f"boltzmix.benchmarks.suites.{name}")
    if unknown := [option for option in options if option not in inspect.signature(module.run).parameters]:
        raise ValueError(f"the suite {name!r} takes no {', '.join(unknown)}")
    return module.run(out=out, quick=quick, seeds=seeds, progress=progress, **options)
