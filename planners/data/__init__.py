"""Trajectories: made here by a waypoint controller, or read from files of other libraries."""

from boltzmix.planners.data.collecting import DEFAULT_STEPS, STEPS, Driving, collect
from boltzmix.planners.data.reading import read_lerobot, read_minari, read_npz, read_ogbench
from boltzmix.planners.data.trajectories import Trajectories

__all__ = [
    "DEFAULT_STEPS",
    "Driving",
    "STEPS",
    "Trajectories",
    "collect",
    "read_lerobot",
    "read_minari",
    "read_npz",
    "read_ogbench",
]
