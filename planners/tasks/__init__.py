"""What a plan is for: goals, rewards, obstacles, limits and smoothness, as densities over trajectories."""

from boltzmix.planners.tasks.avoid import Avoid
from boltzmix.planners.tasks.base import Task, TaskTerm
from boltzmix.planners.tasks.clamped import Clamped, Goal, Start, Waypoint
from boltzmix.planners.tasks.limits import Bounds, Constraint, Dynamics
from boltzmix.planners.tasks.rewards import Reach, Reward, Value
from boltzmix.planners.tasks.smooth import Smooth
from boltzmix.planners.tasks.transitions import TransitionChain, Transitions

__all__ = [
    "Task",
    "TaskTerm",
    "Clamped",
    "Start",
    "Goal",
    "Waypoint",
    "Reach",
    "Reward",
    "Value",
    "Smooth",
    "TransitionChain",
    "Transitions",
    "Avoid",
    "Bounds",
    "Dynamics",
    "Constraint",
]
