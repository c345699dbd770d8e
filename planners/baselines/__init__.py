"""What a planner is compared with: baselines that plan as it does, are judged as it is, and count what they evaluate.

Names are loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzmix.planners.baselines.base import Baseline as Baseline
    from boltzmix.planners.baselines.breadth_first import BreadthFirst as BreadthFirst
    from boltzmix.planners.baselines.cem import CEM as CEM
    from boltzmix.planners.baselines.cloning import BehaviourCloning as BehaviourCloning
    from boltzmix.planners.baselines.equal import BestOfN as BestOfN
    from boltzmix.planners.baselines.equal import GuidanceOnly as GuidanceOnly
    from boltzmix.planners.baselines.gradient import GradientPlanner as GradientPlanner
    from boltzmix.planners.baselines.mppi import MPPI as MPPI
    from boltzmix.planners.baselines.ompl import OMPL as OMPL
    from boltzmix.planners.baselines.straight_line import StraightLine as StraightLine

# public name -> the module below this package that defines it
_NAMES = {
    "Baseline": "base",
    "StraightLine": "straight_line",
    "BreadthFirst": "breadth_first",
    "BehaviourCloning": "cloning",
    "CEM": "cem",
    "MPPI": "mppi",
    "GradientPlanner": "gradient",
    "OMPL": "ompl",
    "BestOfN": "equal",
    "GuidanceOnly": "equal",
}

_SUBMODULES = ("actions", "cloning", "geometry", "timing")

__all__ = [*_NAMES, *_SUBMODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Find a public name in the module that defines it."""
    if name in _SUBMODULES:
        return importlib.import_module(f"boltzmix.planners.baselines.{name}")
    if name not in _NAMES:
        raise AttributeError(f"boltzmix.planners.baselines has no {name!r}; its names are {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"boltzmix.planners.baselines.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
