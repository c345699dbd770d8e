"""Planning problems with obstacles that no prior has seen, all of them solvable.

A start and a goal lie on opposite sides, obstacles between them; at least one of them blocks the straight line, both
ends are free, and a grid search finds a way around for a body of the robot's radius. What moves is searched as all
the places that it visits, so that a way exists at any time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from boltzmix.planners.obstacles import Box, Disc, Moving, Polygon

FAMILIES = ("discs", "boxes", "polygons", "moving")
"""Kinds of obstacles, in the order in which they join."""


@dataclass(frozen=True)
class Problem:
    """From ``start`` to ``goal`` (physical positions) among ``obstacles``."""

    start: tuple[float, float]
    goal: tuple[float, float]
    obstacles: tuple[Any, ...]


def problems(
    n: int,
    bounds: tuple[tuple[float, float], tuple[float, float]],
    *,
    families: Sequence[str] = ("discs",),
    count: int = 1,
    radius: float = 0.0,
    size: tuple[float, float] = (0.08, 0.16),
    duration: float = 1.0,
    seed: int = 0,
    tries: int = 2000,
) -> list[Problem]:
    """n solvable problems, the same for the same arguments.

    Args:
        n: how many.
        bounds: ((x_low, x_high), (y_low, y_high)) of the world.
        families: kinds of obstacles, of :data:`FAMILIES`; they take turns.
        count: obstacles in each problem.
        radius: of the body, in the world's units.
        size: least and largest radius of an obstacle (of the circle around it), in shares of the world's smaller side.
        duration: of a plan, in seconds; moving obstacles go about one obstacle's size in it.
        seed: of everything.
        tries: for each problem, before giving up.

    Raises:
        ValueError: an unknown family, or a world so crowded that no problem was found.
    """
    if unknown := sorted(set(families) - set(FAMILIES)):
        raise ValueError(f"no families of obstacles are called {unknown}; there are {', '.join(FAMILIES)}")
    if not families or count < 1 or n < 1:
        raise ValueError(f"expected at least one problem, family and obstacle, got {n}, {list(families)} and {count}")
    generator = np.random.default_rng([seed, count, len(families)])
    (x_low, x_high), (y_low, y_high) = bounds
    low, side = np.array([x_low, y_low]), np.array([x_high - x_low, y_high - y_low])
    smaller = float(side.min())
    found: list[Problem] = []
    for _ in range(tries * n):
        turn = generator.uniform(0, 2 * math.pi)
        reach = 0.5 * side - radius - 0.06 * smaller
        heading = np.array([math.cos(turn), math.sin(turn)])
        start = low + 0.5 * side - reach * heading
        goal = low + 0.5 * side + reach * (heading + generator.normal(0, 0.1, 2)).clip(-1, 1)
        obstacles = []
        for k in range(count):
            # the first one lies on the way, the others anywhere in the middle of the world
            if k == 0:
                centre = start + generator.uniform(0.35, 0.65) * (goal - start)
            else:
                centre = low + side * generator.uniform(0.15, 0.85, 2)
            extent = smaller * generator.uniform(*size)
            obstacles.append(_obstacle(families[k % len(families)], centre, extent, duration, generator))
        problem = Problem((float(start[0]), float(start[1])), (float(goal[0]), float(goal[1])), tuple(obstacles))
        if (
            _blocked(problem, radius, duration)
            and _free_ends(problem, radius + 0.02 * smaller, duration)
            and solvable(problem, bounds, radius + 0.01 * smaller, duration)
        ):
            found.append(problem)
            if len(found) == n:
                return found
    raise ValueError(
        f"only {len(found)} of {n} problems with {count} obstacles were found in {tries * n} tries: the world is too "
        "crowded, ask for fewer or smaller obstacles"
    )


def _obstacle(family: str, centre: np.ndarray, extent: float, duration: float, generator: np.random.Generator) -> Any:
    x, y = float(centre[0]), float(centre[1])
    if family == "discs":
        return Disc(x, y, extent)
    if family == "boxes":
        wide, high = extent * generator.uniform(0.5, 0.9, 2)
        return Box(x - wide, y - high, x + wide, y + high)
    if family == "polygons":
        corners = int(generator.integers(3, 7))
        turns = np.sort(generator.uniform(0, 2 * math.pi / corners * 0.6, corners)) + 2 * math.pi / corners * np.arange(
            corners
        )
        return Polygon(tuple((x + extent * math.cos(t), y + extent * math.sin(t)) for t in turns))
    turn = generator.uniform(0, 2 * math.pi)
    speed = extent / duration
    velocity = (speed * math.cos(turn), speed * math.sin(turn))
    return Moving(Disc(x - 0.5 * duration * velocity[0], y - 0.5 * duration * velocity[1], 0.8 * extent), velocity)


def clearance(obstacles: Sequence[Any], points: np.ndarray, times: np.ndarray | float = 0.0) -> np.ndarray:
    """Least signed distance of points ``(..., 2)`` at times ``(...)`` in seconds to obstacles; +inf without any."""
    where = torch.as_tensor(np.asarray(points, dtype=float))
    when = torch.as_tensor(np.broadcast_to(np.asarray(times, dtype=float), where.shape[:-1]).copy())
    least = torch.full(where.shape[:-1], math.inf, dtype=where.dtype)
    for obstacle in obstacles:
        least = torch.minimum(least, obstacle.distance(where, when))
    return least.numpy()


def _swept(obstacles: Sequence[Any], points: np.ndarray, duration: float) -> np.ndarray:
    """The least clearance over a plan's duration."""
    return np.min([clearance(obstacles, points, time) for time in np.linspace(0, duration, 9)], axis=0)


def solvable(
    problem: Problem,
    bounds: tuple[tuple[float, float], tuple[float, float]],
    margin: float,
    duration: float = 1.0,
    cells: int = 60,
) -> bool:
    """Whether a grid with cells that keep ``margin`` from every obstacle and wall joins start and goal."""
    from scipy.ndimage import label

    (x_low, x_high), (y_low, y_high) = bounds
    xs, ys = np.linspace(x_low + margin, x_high - margin, cells), np.linspace(y_low + margin, y_high - margin, cells)
    free = _swept(problem.obstacles, np.stack(np.meshgrid(xs, ys, indexing="ij"), -1), duration) > margin
    region: Any = label(free)[0]  # pyright: ignore[reportIndexIssue]  # neighbours share an edge: no way through corners
    ends = [region[np.abs(xs - x).argmin(), np.abs(ys - y).argmin()] for x, y in (problem.start, problem.goal)]
    return ends[0] != 0 and ends[0] == ends[1]


def _blocked(problem: Problem, radius: float, duration: float) -> bool:
    """Whether going straight at an even pace touches something."""
    line = np.linspace(problem.start, problem.goal, 200)
    return bool((clearance(problem.obstacles, line, np.linspace(0, duration, 200)) < radius).any())


def _free_ends(problem: Problem, margin: float, duration: float) -> bool:
    return bool((_swept(problem.obstacles, np.array([problem.start, problem.goal]), duration) > margin).all())
