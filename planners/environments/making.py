"""Environments by name."""

from boltzmix.planners.environments.base import Environment
from boltzmix.planners.environments.pointmaze import OGBENCH, ROBOTICS, OGBenchPointMaze, PointMaze

NAMES = (*(f"pointmaze-{size}" for size in ROBOTICS), *(f"ogbench-pointmaze-{size}" for size in OGBENCH), "obstacles")


def make(name: str, *, seed: int | None = None, render: bool = False, max_steps: float | None = None) -> Environment:
    """An environment by its name.

    Args:
        name: "pointmaze-umaze", "-medium" or "-large" (gymnasium-robotics), "ogbench-pointmaze-medium", "-large" or
            "-giant", or "obstacles" (an :class:`~.obstacle_world.ObstacleWorld` without any yet).
        seed: of random starts and goals.
        render: choose the headless renderer now (see :func:`~.recording.backend`), before libraries are imported that
            decide on one themselves, as ogbench's do. Say True where a film by MuJoCo's camera is to be made.
        max_steps: truncates episodes; None takes the environment's own limit; inf never does.

    Raises:
        ValueError: an unknown name.
        MissingExtra: the simulator is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"no environment is called {name!r}; there are {', '.join(NAMES)}")
    if render:
        from boltzmix.planners.environments.recording import backend

        backend()
    family, _, size = name.rpartition("-")
    if family == "pointmaze":
        return PointMaze(size, seed=seed, max_steps=max_steps)
    if family == "ogbench-pointmaze":
        return OGBenchPointMaze(size, seed=seed, max_steps=max_steps)
    from boltzmix.planners.environments.obstacle_world import ObstacleWorld

    return ObstacleWorld(seed=seed, max_steps=max_steps)
