"""What planners and benchmarks ask of an environment: one interface over simulators of a ball in the plane."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.planners.environments.layout import MazeLayout
from boltzmix.planners.environments.visibility import Point

if TYPE_CHECKING:
    import numpy as np

    from boltzmix.planners.environments.recording import Recorder

Observation = dict[str, "np.ndarray"]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class Environment:
    r"""A ball that is pushed in the plane, from a start to a goal.

    Subclasses simulate. A state is ``(x, y, vx, vy)`` in metres and metres per second, or ``(x, y)`` where the
    simulator sets positions; an observation is gymnasium's goal dictionary, ``observation`` (the state),
    ``achieved_goal`` and ``desired_goal``. Reaching the goal does not end an episode: ``terminated`` is False
    throughout, and ``info["success"]`` says whether the ball is within ``goal_radius`` of the goal.

    Attributes:
        name: for :func:`~boltzmix.planners.environments.make`.
        state_names: of the state's columns.
        action_names: of the action's columns.
        dt: seconds between steps.
        radius: of the ball, metres.
        goal_radius: how near the ball must be for success, metres.
        action_limit: actions lie in ``[−action_limit, action_limit]``, per axis.
        gain: acceleration per unit of action, m/s²; where actions set displacements, metres per unit and step.
        damping: 1/s.
        max_speed: per axis, m/s; inf if there is no limit.
        cruise: slowest and fastest speed at which data are collected, m/s.
        max_steps: after which an episode is truncated; inf for never.
        layout: of a maze; None elsewhere.
        env: the simulator itself.
    """

    name: str
    state_names: tuple[str, ...] = ("x", "y", "vx", "vy")
    action_names: tuple[str, ...] = ("ax", "ay")
    dt: float
    radius: float
    goal_radius: float
    action_limit: float = 1.0
    gain: float
    damping: float = 0.0
    max_speed: float = math.inf
    cruise: tuple[float, float] = (1.6, 2.4)
    max_steps: float = math.inf
    layout: MazeLayout | None = None
    env: Any = None

    def __init__(self, seed: int | None = None) -> None:
        self.goal: tuple[float, float] = (math.nan, math.nan)
        self.steps = 0
        self._generator: Any = None
        self._seed = seed
        self._recorder: Recorder | None = None

    # --- what subclasses give -----------------------------------------------------------------------------------

    def _set(self, state: "np.ndarray", goal: tuple[float, float]) -> None:
        """Place the ball, as if nothing had happened before."""
        raise NotImplementedError

    def _advance(self, action: "np.ndarray") -> bool:
        """Simulate one step; whether the ball touched an obstacle."""
        raise NotImplementedError

    @property
    def state(self) -> "np.ndarray":
        """The state, float64."""
        raise NotImplementedError

    def sample(self) -> tuple[float, float]:
        """A random free point, of the environment's own generator."""
        raise NotImplementedError

    def clearance(self, point: Point) -> float:
        """The distance between a point and the nearest obstacle; 0 inside."""
        raise NotImplementedError

    def shortest_path(
        self, start: Point, goal: Point, radius: float | None = None
    ) -> tuple[float, list[tuple[float, float]]]:
        """Length and vertices of the shortest path of the ball; ``(inf, [])`` where there is none."""
        raise NotImplementedError

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """``((x_low, x_high), (y_low, y_high))``."""
        raise NotImplementedError

    @property
    def obstacles(self) -> tuple[Any, ...]:
        """Walls and other obstacles, of :mod:`boltzmix.planners.obstacles`."""
        raise NotImplementedError

    # --- what users call ----------------------------------------------------------------------------------------

    @property
    def generator(self) -> Any:
        """The ``numpy.random.Generator`` of random starts and goals."""
        if self._generator is None:
            import numpy as np

            self._generator = np.random.default_rng(self._seed)
        return self._generator

    def reset(
        self,
        start: Sequence[float] | Any = None,
        goal: Point | None = None,
        seed: int | None = None,
    ) -> Observation:
        """Begin an episode; starts and goals that are not given are drawn.

        Args:
            start: a position ``(2,)``, at rest, or a state ``(4,)``.
            goal: a position ``(2,)``.
            seed: of the environment's generator, from here on.

        Raises:
            ValueError: a start or goal that is not finite, has another shape, or where the ball would be in a wall.
        """
        import numpy as np

        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self.steps = 0
        begin = np.zeros(len(self.state_names))
        given = self.sample() if start is None else np.asarray(start, dtype=np.float64).reshape(-1)
        if len(given) not in (2, len(begin)):
            raise ValueError(f"a start is a position (2,) or a state ({len(begin)},), got {len(given)} numbers")
        begin[: len(given)] = given
        if not np.isfinite(begin).all():
            raise ValueError(f"the start is not finite: {begin.tolist()}")
        self._placed("start", begin)
        target = self._draw_goal(begin) if goal is None else np.asarray(goal, dtype=np.float64).reshape(-1)
        if len(target) != 2 or not np.isfinite(target).all():
            raise ValueError(f"a goal is a finite position (2,), got {np.asarray(target).tolist()}")
        self._placed("goal", target)
        self.goal = (float(target[0]), float(target[1]))
        self._set(begin, self.goal)
        if self._recorder is not None:
            self._recorder.take()
        return self._observe()

    def step(self, action: Any) -> Step:
        """One step: ``(observation, reward, terminated, truncated, info)``; the reward is 1 at the goal, else 0.

        Raises:
            ValueError: an action of another shape, one that is not finite, or one beyond the limit. A controller clips
                its own actions; the environment does not.
        """
        import numpy as np

        if math.isnan(self.goal[0]):
            raise ValueError("step() before reset()")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"an action is (2,) and finite, got shape {action.shape}: {action.tolist()}")
        if np.abs(action).max() > self.action_limit * (1.0 + 1e-6):
            raise ValueError(
                f"actions lie in [−{self.action_limit:g}, {self.action_limit:g}], got {action.tolist()}; "
                "clip them in the controller"
            )
        touched = self._advance(action)
        self.steps += 1
        observation = self._observe()
        success = math.dist(observation["achieved_goal"], self.goal) <= self.goal_radius
        truncated = self.steps >= self.max_steps
        if self._recorder is not None:
            self._recorder.step()
        return observation, float(success), False, truncated, {"success": success, "contact": touched}

    def drive(self, velocity: Sequence[float], state: Any = None, stiffness: float = 15.0) -> "np.ndarray":
        """The action that brings the ball towards a velocity ``(2,)``, m/s, within the limits.

        Where actions are forces this is proportional control with the damping made up for,
        ``gain · a = stiffness · (velocity − v) + damping · v``; where they are displacements,
        ``gain · a = dt · velocity``. Both are scaled back to the limit along their own direction.
        """
        import numpy as np

        state = self.state if state is None else state
        if len(self.state_names) == 4:
            push = [stiffness * (velocity[i] - state[2 + i]) + self.damping * state[2 + i] for i in (0, 1)]
        else:
            push = [self.dt * velocity[i] for i in (0, 1)]
        size = max(abs(push[0]), abs(push[1])) / (self.gain * self.action_limit)
        return np.array(push) / self.gain / max(1.0, size)

    def predict(self, state: Tensor, action: Tensor) -> Tensor:
        r"""The next state ``(..., S)`` away from obstacles, differentiable: one step of the simulator's own integrator.

        .. math:: v' = (clip(v) + dt · gain · a) / (1 + dt · damping), \qquad x' = x + dt · v'

        or, where actions are displacements, x' = x + gain · a.
        """
        if len(self.state_names) == 2:
            return state + self.gain * action
        position, velocity = state[..., :2], state[..., 2:]
        velocity = velocity.clamp(-self.max_speed, self.max_speed)
        velocity = (velocity + self.dt * self.gain * action) / (1.0 + self.dt * self.damping)
        return torch.cat([position + self.dt * velocity, velocity], -1)

    def record(
        self, path: Any, *, fps: int = 25, view: str = "camera", size: tuple[int, int] = (320, 320)
    ) -> "Recorder":
        """A context manager that films what happens inside it: an mp4 or a GIF, by the ending of ``path``.

        ``view="camera"`` renders with MuJoCo (EGL, then osmesa) and falls back to ``"top"``, a drawing seen from above;
        ``Recorder.backend`` says what was used. The camera wants ``make(…, render=True)``.

        Example:
            ``with environment.record("run.mp4") as film: ...`` and then ``film.backend``.
        """
        from boltzmix.planners.environments.recording import Recorder

        return Recorder(self, path, fps=fps, view=view, size=size)

    def description(self) -> dict[str, Any]:
        """What tells worlds of one name apart, for JSON."""
        return {}

    def close(self) -> None:
        """Free the simulator."""
        if self.env is not None:
            self.env.close()

    def _observe(self) -> Observation:
        import numpy as np

        state = self.state
        return {"observation": state, "achieved_goal": state[:2].copy(), "desired_goal": np.array(self.goal)}

    def _draw_goal(self, start: "np.ndarray") -> "np.ndarray":
        import numpy as np

        for _ in range(1000):
            goal = np.array(self.sample())
            if math.dist(goal, start[:2]) > self.goal_radius:
                return goal
        raise ValueError(f"no goal farther than {self.goal_radius} m from the start ({start[0]:g}, {start[1]:g})")

    def _placed(self, what: str, point: "np.ndarray") -> None:
        room = self.clearance((float(point[0]), float(point[1])))
        if room < self.radius - 1e-9:
            raise ValueError(
                f"the {what} ({point[0]:g}, {point[1]:g}) lies {room:.3g} m from an obstacle, and the ball's radius is "
                f"{self.radius:g} m; bounds: {self.bounds}"
            )


class MazeEnvironment(Environment):
    """An :class:`Environment` whose obstacles are the walls of a :class:`~.layout.MazeLayout`."""

    layout: MazeLayout  # type: ignore[assignment]

    def sample(self) -> tuple[float, float]:
        """As gymnasium-robotics draws it: the centre of a free cell and uniform noise of a quarter of a cell."""
        for _ in range(1000):
            point = self.layout.sample(self.generator)
            if self.layout.free(point, self.radius):
                return point
        raise ValueError("no random point has room for the ball")

    def clearance(self, point: Point) -> float:
        """The distance between a point and the nearest wall."""
        return self.layout.clearance(point)

    def shortest_path(
        self, start: Point, goal: Point, radius: float | None = None
    ) -> tuple[float, list[tuple[float, float]]]:
        """That of the layout."""
        return self.layout.shortest_path(start, goal, self.radius if radius is None else radius)

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Those of the layout."""
        return self.layout.bounds

    @property
    def obstacles(self) -> tuple[Any, ...]:
        """The layout's walls."""
        return self.layout.walls
