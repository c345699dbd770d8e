"""PointMaze of gymnasium-robotics and of ogbench, simulated by MuJoCo, without rendering unless asked for."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from boltzmix.compose.errors import MissingExtra
from boltzmix.planners.environments.base import MazeEnvironment
from boltzmix.planners.environments.layout import MazeLayout

if TYPE_CHECKING:
    import numpy as np

# size -> name in the library, and the library's own limit of steps
ROBOTICS = {
    "umaze": ("PointMaze_UMaze-v3", 300),
    "medium": ("PointMaze_Medium-v3", 600),
    "large": ("PointMaze_Large-v3", 800),
}
OGBENCH = {size: (f"pointmaze-{size}-v0", 1000) for size in ("medium", "large", "giant")}


class PointMaze(MazeEnvironment):
    """A ball of radius 0.1 m, pushed by forces, in a maze of cells of 1 m (gymnasium-robotics).

    A motor of gear 100 pushes a mass of 4.19 kg, so that an action of 1 accelerates by 23.9 m/s². Speeds are limited to
    5 m/s per axis, and a step is 0.01 s. The environment is used as it is but for three things: starts and goals are
    set exactly, the time limit is ``max_steps``, and actions beyond the limit are refused instead of clipped.

    Args:
        size: "umaze", "medium" or "large".
        seed: of random starts and goals.
        max_steps: truncates episodes; None takes the library's own, 300, 600 and 800; inf never does.

    Raises:
        MissingExtra: gymnasium-robotics is not installed.

    Source: J. Fu, A. Kumar, O. Nachum, G. Tucker, S. Levine (2020), "D4RL: Datasets for Deep Data-Driven Reinforcement
    Learning"; Farama Foundation, gymnasium-robotics.
    """

    dt, radius, goal_radius, max_speed = 0.01, 0.1, 0.45, 5.0

    def __init__(self, size: str = "umaze", *, seed: int | None = None, max_steps: float | None = None) -> None:
        super().__init__(seed)
        try:
            import gymnasium  # pyright: ignore[reportMissingImports]
            import gymnasium_robotics  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra('PointMaze needs gymnasium-robotics: pip install "boltzmix[planning]"') from error
        with suppress(AttributeError):
            gymnasium.register_envs(gymnasium_robotics)
        if size not in ROBOTICS:
            raise ValueError(f"size is one of {', '.join(ROBOTICS)}, got {size!r}")
        known, own = ROBOTICS[size]
        self.name, self.max_steps = f"pointmaze-{size}", own if max_steps is None else max_steps
        self.env = gymnasium.make(known, render_mode="rgb_array", max_episode_steps=-1, disable_env_checker=True)
        maze: Any = self.env.unwrapped
        with suppress(OSError):  # a copy that the simulator has read
            os.unlink(maze.tmp_xml_file_path)
        self._maze, self._point = maze, maze.point_env
        self.layout = MazeLayout.centred(maze.maze.maze_map, maze.maze.maze_size_scaling, self.radius)
        self._blocks = _prepared(self._point.model)
        mass = float(self._point.model.body_mass.sum())
        self.gain = float(self._point.model.actuator_gear[0, 0]) / mass
        self.damping = float(self._point.model.dof_damping[0]) / mass
        self.env.reset(seed=0)

    @property
    def state(self) -> "np.ndarray":
        """(x, y, vx, vy)."""
        import numpy as np

        return np.concatenate([self._point.data.qpos, self._point.data.qvel])

    def _set(self, state: "np.ndarray", goal: tuple[float, float]) -> None:
        import numpy as np

        self._maze.goal = np.array(goal)
        self._maze.update_target_site_pos()
        _forget(self._point)
        self._point.set_state(state[:2], state[2:])

    def _advance(self, action: "np.ndarray") -> bool:
        self._point.step(action)
        return _touches(self._point.data, self._blocks)


class OGBenchPointMaze(MazeEnvironment):
    """A ball of radius 0.7 m in a maze of cells of 4 m, whose actions are displacements (ogbench).

    An action of 1 moves the ball by 0.2 m in a step of 0.1 s, after which contacts push it out of walls; there is no
    velocity to speak of, and a state is ``(x, y)``. Random starts and goals are drawn as in :class:`PointMaze`.

    Args:
        size: "medium", "large" or "giant".
        seed: of random starts and goals.
        max_steps: truncates episodes; None takes the library's own, 1000; inf never does.

    Raises:
        MissingExtra: ogbench is not installed.

    Source: S. Park, K. Frans, B. Eysenbach, S. Levine (2025), "OGBench: Benchmarking Offline Goal-Conditioned RL".
    """

    state_names = ("x", "y")
    action_names = ("dx", "dy")
    dt, radius, goal_radius, gain = 0.1, 0.7, 1.0, 0.2
    max_speed = 2.0

    def __init__(self, size: str = "medium", *, seed: int | None = None, max_steps: float | None = None) -> None:
        super().__init__(seed)
        try:
            import gymnasium  # pyright: ignore[reportMissingImports]
            import ogbench  # noqa: F401  (registers its environments)  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra('ogbench\'s mazes need ogbench: pip install "boltzmix[planning]"') from error
        if size not in OGBENCH:
            raise ValueError(f"size is one of {', '.join(OGBENCH)}, got {size!r}")
        known, own = OGBENCH[size]
        self.name, self.max_steps = f"ogbench-pointmaze-{size}", own if max_steps is None else max_steps
        options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True, "terminate_at_goal": False}
        self.env = gymnasium.make(known, render_mode="rgb_array", width=320, height=320, **options)
        maze: Any = self.env.unwrapped
        with suppress(OSError):
            os.unlink(maze.fullpath)
        self._maze = maze
        self._blocks = _prepared(maze.model)
        cells = tuple(tuple(int(cell) for cell in row) for row in maze.maze_map)
        origin = (-float(maze._offset_x), -float(maze._offset_y))
        self.layout = MazeLayout(cells, float(maze._maze_unit), origin, self.radius, down=False)
        self.env.reset(seed=0)

    @property
    def state(self) -> "np.ndarray":
        """(x, y)."""
        return self._maze.data.qpos[:2].copy()

    def _set(self, state: "np.ndarray", goal: tuple[float, float]) -> None:
        import numpy as np

        _forget(self._maze)
        self._maze.set_goal(goal_xy=np.array(goal))
        self._maze.set_state(state, np.zeros(2))

    def _advance(self, action: "np.ndarray") -> bool:
        import gymnasium  # pyright: ignore[reportMissingImports]

        base: Any = type(self._maze).__mro__[1]  # the ball alone: the maze's own step would compare goals
        assert issubclass(base, gymnasium.Env)
        base.step(self._maze, action)
        return _touches(self._maze.data, self._blocks)


def _prepared(model: Any) -> frozenset[int]:
    """The numbers of the maze's blocks; and frames without shadows and antialiasing.

    Without a GPU these cost three to eighteen times the rest of a frame.
    """
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    return frozenset(k for k in range(model.ngeom) if model.geom(k).name.startswith("block_"))


def _forget(simulation: Any) -> None:
    """Set the simulator back completely: contacts are solved from a warm start, which would be what was before."""
    import mujoco  # pyright: ignore[reportMissingImports]

    library: Any = mujoco
    library.mj_resetData(simulation.model, simulation.data)


def _touches(data: Any, blocks: frozenset[int]) -> bool:
    """Whether a contact is one with a block; the ball always touches the floor."""
    return any(geom in blocks for pair in data.contact.geom.tolist() for geom in pair)
