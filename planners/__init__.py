"""Planning as inference over trajectories: p(τ) ∝ p_dynamics(τ) · p_task(τ, goal).

Trajectory spaces, task terms, planners, policies and environments live here. A planner multiplies a trajectory prior,
which is any term, by terms of the task, and samples the product; this package therefore imports `boltzmix.compose`
only and never `boltzmix.models`.

Names are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzmix.planners.checker import Report as Report
    from boltzmix.planners.checker import check as check
    from boltzmix.planners.controllers import PD as PD
    from boltzmix.planners.controllers import Controller as Controller
    from boltzmix.planners.controllers import InverseDynamics as InverseDynamics
    from boltzmix.planners.controllers import OwnActions as OwnActions
    from boltzmix.planners.controllers import Reference as Reference
    from boltzmix.planners.guided import Guidance as Guidance
    from boltzmix.planners.guided import Guided as Guided
    from boltzmix.planners.known import Conditions as Conditions
    from boltzmix.planners.known import Held as Held
    from boltzmix.planners.known import Known as Known
    from boltzmix.planners.known import hold as hold
    from boltzmix.planners.minimise import Minimise as Minimise
    from boltzmix.planners.obstacles import Box as Box
    from boltzmix.planners.obstacles import Disc as Disc
    from boltzmix.planners.obstacles import DistanceField as DistanceField
    from boltzmix.planners.obstacles import Moving as Moving
    from boltzmix.planners.obstacles import Obstacle as Obstacle
    from boltzmix.planners.obstacles import Polygon as Polygon
    from boltzmix.planners.obstacles import Union as Union
    from boltzmix.planners.planner import Planner as Planner
    from boltzmix.planners.policy import Episode as Episode
    from boltzmix.planners.policy import RecedingHorizonPolicy as RecedingHorizonPolicy
    from boltzmix.planners.policy import rollout as rollout
    from boltzmix.planners.result import PlanResult as PlanResult
    from boltzmix.planners.rounds import corrected as corrected
    from boltzmix.planners.space import TrajectorySpace as TrajectorySpace
    from boltzmix.planners.stitching import stitched as stitched
    from boltzmix.planners.tasks.avoid import Avoid as Avoid
    from boltzmix.planners.tasks.base import Task as Task
    from boltzmix.planners.tasks.clamped import Goal as Goal
    from boltzmix.planners.tasks.clamped import Start as Start
    from boltzmix.planners.tasks.clamped import Waypoint as Waypoint
    from boltzmix.planners.tasks.limits import Bounds as Bounds
    from boltzmix.planners.tasks.limits import Constraint as Constraint
    from boltzmix.planners.tasks.limits import Dynamics as Dynamics
    from boltzmix.planners.tasks.rewards import Reach as Reach
    from boltzmix.planners.tasks.rewards import Reward as Reward
    from boltzmix.planners.tasks.rewards import Value as Value
    from boltzmix.planners.tasks.smooth import Smooth as Smooth
    from boltzmix.planners.tasks.transitions import TransitionChain as TransitionChain
    from boltzmix.planners.tasks.transitions import Transitions as Transitions

# public name -> the module below this package that defines it
_NAMES = {
    "TrajectorySpace": "space",
    "Obstacle": "obstacles",
    "Disc": "obstacles",
    "Box": "obstacles",
    "Polygon": "obstacles",
    "DistanceField": "obstacles",
    "Moving": "obstacles",
    "Union": "obstacles",
    "check": "checker",
    "Report": "checker",
    "Task": "tasks.base",
    "Start": "tasks.clamped",
    "Goal": "tasks.clamped",
    "Waypoint": "tasks.clamped",
    "Avoid": "tasks.avoid",
    "Bounds": "tasks.limits",
    "Dynamics": "tasks.limits",
    "Constraint": "tasks.limits",
    "Reach": "tasks.rewards",
    "Reward": "tasks.rewards",
    "Value": "tasks.rewards",
    "Smooth": "tasks.smooth",
    "TransitionChain": "tasks.transitions",
    "Transitions": "tasks.transitions",
    "Minimise": "minimise",
    "Planner": "planner",
    "stitched": "stitching",
    "corrected": "rounds",
    "PlanResult": "result",
    "RecedingHorizonPolicy": "policy",
    "Episode": "policy",
    "rollout": "policy",
    "PD": "controllers",
    "Controller": "controllers",
    "InverseDynamics": "controllers",
    "OwnActions": "controllers",
    "Reference": "controllers",
    "Known": "known",
    "Held": "known",
    "hold": "known",
    "Conditions": "known",
    "Guided": "guided",
    "Guidance": "guided",
}
_SUBPACKAGES = ("baselines", "checker", "clearance", "data", "environments", "obstacles", "space", "tasks")

__all__ = [*_NAMES, *_SUBPACKAGES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Find a public name in the module that defines it."""
    if name in _NAMES:
        value = getattr(importlib.import_module(f"boltzmix.planners.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"boltzmix.planners.{name}")
    raise AttributeError(f"boltzmix.planners has no {name!r}; its names are {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
