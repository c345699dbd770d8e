"""Environments: a ball in the mazes of gymnasium-robotics and ogbench, and among obstacles in the plane."""

from boltzmix.planners.environments.base import Environment, MazeEnvironment
from boltzmix.planners.environments.layout import MazeLayout, path_length
from boltzmix.planners.environments.making import NAMES, make
from boltzmix.planners.environments.obstacle_world import ObstacleWorld
from boltzmix.planners.environments.pairs import hard_pairs
from boltzmix.planners.environments.pointmaze import OGBenchPointMaze, PointMaze
from boltzmix.planners.environments.recording import Recorder
from boltzmix.planners.environments.visibility import VisibilityGraph
from boltzmix.planners.environments.waypoints import WaypointController

__all__ = [
    "Environment",
    "MazeEnvironment",
    "MazeLayout",
    "NAMES",
    "OGBenchPointMaze",
    "ObstacleWorld",
    "PointMaze",
    "Recorder",
    "VisibilityGraph",
    "WaypointController",
    "hard_pairs",
    "make",
    "path_length",
]
