"""Boltzmix: compose generative models as energies, and sample what you composed, correctly.

    import boltzmix as bm

    draw = bm.sample(p * q, 4096, seed=0)

Names are loaded when first used, so that ``import boltzmix`` costs what ``import torch`` costs.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from boltzmix import benchmarks as benchmarks
    from boltzmix import compose as compose
    from boltzmix import models as models
    from boltzmix import planners as planners
    from boltzmix.compose import *  # noqa: F403
    from boltzmix.models.adapters import term as term

_SUBPACKAGES = ("benchmarks", "compose", "models", "planners")


def __getattr__(name: str) -> Any:
    """Find a public name: a subpackage, ``term`` with its adapters, or a name of ``boltzmix.compose``."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"boltzmix.{name}")
    if name == "term":
        value = importlib.import_module("boltzmix.models.adapters").term
    else:
        compose = importlib.import_module("boltzmix.compose")
        if name not in compose.__all__:
            raise AttributeError(f"boltzmix has no {name!r}; its names are {', '.join(__dir__())}")
        value = getattr(compose, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    names = importlib.import_module("boltzmix.compose").__all__
    return sorted({*names, *_SUBPACKAGES, "term", "__version__"})
