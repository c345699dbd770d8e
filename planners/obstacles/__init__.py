"""Obstacles in the plane: signed distances in metres, negative inside."""

from boltzmix.planners.obstacles.base import Extent, Inflated, Obstacle
from boltzmix.planners.obstacles.field import DistanceField
from boltzmix.planners.obstacles.moving import Moving
from boltzmix.planners.obstacles.shapes import Box, Disc, Polygon, box_distance
from boltzmix.planners.obstacles.texts import as_obstacles, parse
from boltzmix.planners.obstacles.union import Union

__all__ = [
    "Obstacle",
    "Disc",
    "Box",
    "Polygon",
    "DistanceField",
    "Moving",
    "Inflated",
    "Union",
    "Extent",
    "as_obstacles",
    "box_distance",
    "parse",
]
