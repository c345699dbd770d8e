"""Starts and goals that mean something: those between which driving straight ahead fails."""

import math

from boltzmix.planners.environments.base import Environment
from boltzmix.planners.environments.making import make
from boltzmix.planners.environments.waypoints import WaypointController

Pair = tuple[tuple[float, float], tuple[float, float]]


def hard_pairs(name: str | Environment, n: int, seed: int, *, tries: int = 200) -> list[Pair]:
    """n pairs of start and goal on which a straight line with PD fails, in simulation.

    Candidates are drawn as the environment draws them. A pair is kept if the ball, which starts at rest, never comes
    within the environment's ``goal_radius`` of the goal, neither where it follows the straight line nor where it is
    pulled towards the goal itself and slides along walls; both have twice the time that the shortest path takes at
    1 m/s, plus 2 s. Pairs without any path, and pairs whose shortest path is a straight line, are left out.

    Args:
        name: of the environment, or an environment, whose random state is then reset.
        n: how many pairs.
        seed: the same seed gives the same pairs, and the first pairs of a longer list.
        tries: candidates per pair before giving up.

    Raises:
        ValueError: fewer than 0 pairs wanted; almost every candidate is easy, as in a maze without inner walls.
    """
    import numpy as np

    if n < 0:
        raise ValueError(f"n is at least 0, got {n}")
    environment = make(name) if isinstance(name, str) else name
    environment._generator = np.random.default_rng(seed)
    found: list[Pair] = []
    for _ in range(tries * max(1, n)):
        if len(found) == n:
            return found
        start, goal = environment.sample(), environment.sample()
        length, path = environment.shortest_path(start, goal)
        around = math.isfinite(length) and len(path) > 2 and math.dist(start, goal) > environment.goal_radius
        if around and not straight_line_arrives(environment, start, goal, length):
            found.append((start, goal))
    raise ValueError(
        f"{len(found)} of {n} hard pairs in {tries * max(1, n)} candidates: a straight line nearly always arrives here"
    )


def straight_line_arrives(
    environment: Environment, start: tuple[float, float], goal: tuple[float, float], length: float
) -> bool:
    """Whether the straight line, or the pull of the goal, brings the ball within ``goal_radius``; simulates both."""
    limit = math.ceil((2.0 * length / min(1.0, environment.max_speed) + 2.0) / environment.dt)
    unit, speed = environment.radius, 0.5 * sum(environment.cruise)
    along = WaypointController([start, goal], speed, lookahead=1.5 * unit, spacing=0.2 * unit)
    pulled = WaypointController([goal], speed, lookahead=1.5 * unit, spacing=0.2 * unit, approach=2.0)
    return any(_arrives(environment, start, goal, controller, limit) for controller in (along, pulled))


def _arrives(
    environment: Environment,
    start: tuple[float, float],
    goal: tuple[float, float],
    controller: WaypointController,
    limit: int,
) -> bool:
    observation = environment.reset(start, goal)
    still, before = 0, observation["observation"]
    for _ in range(limit):
        observation, _, _, _, info = environment.step(controller.act(environment, before))
        if info["success"]:
            return True
        here = observation["observation"]
        still = still + 1 if math.dist(here, before) < 1e-6 * environment.radius else 0
        before = here
        if still >= 50:  # stuck at a wall, where the controller asks for the same for ever
            return False
    return False
