r"""A double integrator among obstacles in the plane: no simulator needed.

A ball with the state (x, y, vx, vy) is pushed by an acceleration that is constant during a step,

.. math:: x' = x + dt · v + \tfrac{1}{2} dt^2 a, \qquad v' = v + dt · a.

Obstacles are hard, smooth and do not bounce: where the ball touches one (or a bound of the world) the parts of its
velocity and of its acceleration that point inwards are gone, it slides on, and ``info["contact"]`` says so. An obstacle
that moves does not push: a ball that it has run over stays until it has passed.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.planners.environments.base import Environment, Observation, Step
from boltzmix.planners.environments.visibility import Point, VisibilityGraph

if TYPE_CHECKING:
    import numpy as np

_SLACK = 1e-9  # metres within which a contact is resolved
_IMPACTS = 4  # in one step, after which the ball is wedged in


class ObstacleWorld(Environment):
    r"""A ball that is pushed among discs and boxes.

    Args:
        obstacles: of :mod:`boltzmix.planners.obstacles`. Those that move are seen where they are at time
            ``steps · dt``.
        bounds: ``((x_low, x_high), (y_low, y_high))``, metres; they hold the ball's centre.
        radius: of the ball, metres.
        dt: seconds between steps.
        action_limit: largest acceleration per axis, m/s².
        goal_radius: metres.
        max_steps: truncates episodes; None is 200; inf never does.
        seed: of random starts and goals.

    Raises:
        ValueError: bounds without area, or a radius, time step or limit that is not positive.

    Example:
        >>> from boltzmix.planners.obstacles import Disc
        >>> world = ObstacleWorld([Disc(0.0, 0.0, 0.3)])
        >>> observation = world.reset(start=(-0.8, 0.0), goal=(0.8, 0.0))
        >>> observation, reward, terminated, truncated, info = world.step([1.0, 0.0])
        >>> [round(float(value), 3) for value in observation["observation"]]
        [-0.795, 0.0, 0.1, 0.0]
        >>> round(world.shortest_path((-0.8, 0.0), (0.8, 0.0))[0], 3)
        1.748
    """

    name = "obstacles"
    gain = 1.0
    cruise = (0.5, 0.9)

    def __init__(
        self,
        obstacles: Sequence[Any] = (),
        *,
        bounds: tuple[tuple[float, float], tuple[float, float]] = ((-1.0, 1.0), (-1.0, 1.0)),
        radius: float = 0.04,
        dt: float = 0.1,
        action_limit: float = 8.0,
        goal_radius: float = 0.1,
        max_steps: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        (x_low, x_high), (y_low, y_high) = bounds
        if not (x_low < x_high and y_low < y_high):
            raise ValueError(f"bounds are ((x_low, x_high), (y_low, y_high)) with low < high, got {bounds}")
        for name, value in {
            "radius": radius,
            "dt": dt,
            "action_limit": action_limit,
            "goal_radius": goal_radius,
        }.items():
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} is positive and finite, got {value!r}")
        self.radius, self.dt, self.action_limit, self.goal_radius = radius, dt, action_limit, goal_radius
        self.max_steps = 200 if max_steps is None else max_steps
        self._bounds, self._obstacles = bounds, tuple(obstacles)
        self._simple = _simple(self._obstacles)
        self._state = [0.0, 0.0, 0.0, 0.0]
        self._graphs: dict[float, VisibilityGraph] = {}

    @classmethod
    def random(
        cls, discs: int = 3, *, seed: int | None = None, sizes: tuple[float, float] = (0.12, 0.32), **options: Any
    ) -> "ObstacleWorld":
        """A world with random discs, which leave 2.5 radii of the ball between them.

        Args:
            discs: how many.
            seed: of the discs and of later starts and goals.
            sizes: smallest and largest radius, metres.
            **options: of :class:`ObstacleWorld`.

        Raises:
            ValueError: so many discs that there is no room for them.
        """
        import numpy as np

        from boltzmix.planners.obstacles import Disc

        world = cls(seed=seed, **options)
        rng = np.random.default_rng([0 if seed is None else seed, discs])
        low, high = zip(*world.bounds, strict=True)
        found: list[Any] = []
        for _ in range(100 * max(1, discs)):
            if len(found) == discs:
                break
            x, y = (float(value) for value in rng.uniform(low, high))
            size = float(rng.uniform(*sizes))
            if all(math.dist((x, y), (o.x, o.y)) > size + o.radius + 2.5 * world.radius for o in found):
                found.append(Disc(x, y, size))
        else:
            raise ValueError(f"no room for {discs} discs of radius {sizes} within {world.bounds}")
        world._obstacles, world._simple = tuple(found), True
        return world

    # --- what an environment gives ------------------------------------------------------------------------------

    @property
    def state(self) -> "np.ndarray":
        """(x, y, vx, vy)."""
        import numpy as np

        return np.array(self._state)

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((x_low, x_high), (y_low, y_high)) of the ball's centre."""
        return self._bounds

    @property
    def obstacles(self) -> tuple[Any, ...]:
        """Those that were given."""
        return self._obstacles

    def clearance(self, point: Point) -> float:
        """The distance between a point and the nearest obstacle now; 0 inside one and out of bounds."""
        return max(0.0, self._room(float(point[0]), float(point[1])))

    def sample(self) -> tuple[float, float]:
        """Uniform over the points where the ball may be."""
        low, high = zip(*self._bounds, strict=True)
        for _ in range(10_000):
            x, y = (float(value) for value in self.generator.uniform(low, high))
            if self._room(x, y) >= self.radius:
                return x, y
        raise ValueError("no random point has room for the ball")

    def shortest_path(
        self, start: Point, goal: Point, radius: float | None = None
    ) -> tuple[float, list[tuple[float, float]]]:
        """Length and vertices of the shortest path among discs and boxes; ``(inf, [])`` where there is none.

        Raises:
            ValueError: obstacles that are neither discs nor boxes.
        """
        radius = self.radius if radius is None else float(radius)
        if radius not in self._graphs:
            from boltzmix.planners.obstacles import Box, Disc

            other = sorted({type(o).__name__ for o in self._obstacles if not isinstance(o, (Box, Disc))})
            if other:
                raise ValueError(f"shortest paths are known among discs and boxes that rest, not {', '.join(other)}")
            boxes = [(o.x_low, o.y_low, o.x_high, o.y_high) for o in self._obstacles if isinstance(o, Box)]
            discs = [(o.x, o.y, o.radius) for o in self._obstacles if isinstance(o, Disc)]
            self._graphs[radius] = VisibilityGraph(boxes, discs, radius, self._bounds)
        return self._graphs[radius].path(start, goal)

    def predict(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state ``(…, 4)`` away from obstacles, differentiable."""
        position, velocity = state[..., :2], state[..., 2:]
        return torch.cat(
            [position + self.dt * velocity + 0.5 * self.dt**2 * action, velocity + self.dt * action], dim=-1
        )

    def drive(self, velocity: Sequence[float], state: Any = None, stiffness: float = 15.0) -> "np.ndarray":
        """As :meth:`Environment.drive`; the stiffness is at most 0.6/dt, beyond which steps this long overshoot."""
        return super().drive(velocity, state, min(stiffness, 0.6 / self.dt))

    def description(self) -> dict[str, Any]:
        """Obstacles, bounds and limits."""
        return {
            "obstacles": [repr(obstacle) for obstacle in self._obstacles],
            "bounds": self._bounds,
            "radius": self.radius,
            "action_limit": self.action_limit,
        }

    def as_gymnasium(self) -> Any:
        """This world as a ``gymnasium.Env`` with a goal dictionary as observation; a view, not a copy.

        ``reset(seed=, options={"start": …, "goal": …})``; ``step`` and ``close`` are this world's own, and ``render``
        draws it from above.

        Raises:
            MissingExtra: gymnasium is not installed.
        """
        return _gymnasium(self)

    def _set(self, state: "np.ndarray", goal: tuple[float, float]) -> None:
        self._state = [float(value) for value in state]

    def _advance(self, action: "np.ndarray") -> bool:
        ax, ay = float(action[0]), float(action[1])
        begin, left = self.steps * self.dt, self.dt
        for impacts in range(_IMPACTS):
            spent, normal = self._until_contact(ax, ay, begin, left)
            self._state = _moved(self._state, ax, ay, spent)
            begin, left = begin + spent, left - spent
            if normal is None:
                return impacts > 0
            x, y, vx, vy = self._state
            inward, push = min(0.0, vx * normal[0] + vy * normal[1]), min(0.0, ax * normal[0] + ay * normal[1])
            self._state = [x, y, vx - inward * normal[0], vy - inward * normal[1]]
            ax, ay = ax - push * normal[0], ay - push * normal[1]
        self._state = [*self._state[:2], 0.0, 0.0]  # wedged in
        return True

    def _until_contact(
        self, ax: float, ay: float, begin: float, span: float
    ) -> tuple[float, tuple[float, float] | None]:
        """Seconds of free motion, at most ``span``, and the outward normal of what is touched then."""

        def blocked(seconds: float, slack: float) -> bool:
            x, y = _moved(self._state, ax, ay, seconds)[:2]
            return self._room(x, y, begin + seconds, slack) < self.radius - slack

        reach = span * (math.hypot(*self._state[2:]) + span * math.hypot(ax, ay))
        if self._far(reach):
            return span, None
        count = max(2, math.ceil(4.0 * reach / self.radius))
        hit = next((k for k in range(count) if blocked(span * (k + 1) / count, 2.0 * _SLACK)), None)
        if hit is None:
            return span, None
        low, high = span * hit / count, span * (hit + 1) / count
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if blocked(middle, _SLACK) else (middle, high)
        beyond = _moved(self._state, ax, ay, high)[:2]
        for axis, (least, most) in enumerate(self._bounds):
            if not least - _SLACK <= beyond[axis] <= most + _SLACK:
                sign = 1.0 if beyond[axis] < least else -1.0
                return low, ((sign, 0.0) if axis == 0 else (0.0, sign))
        x, y = _moved(self._state, ax, ay, low)[:2]
        return low, self._normal(x, y, begin + low)

    def _normal(self, x: float, y: float, time: float) -> tuple[float, float]:
        """The gradient of the distance to the nearest obstacle."""
        point = torch.tensor([[x, y]], dtype=torch.float64, requires_grad=True)
        moment = torch.tensor([time], dtype=torch.float64)
        nearest = min(
            (obstacle.distance(point, moment if obstacle.moves else None) for obstacle in self._obstacles),
            key=lambda distance: float(distance.detach()),
        )
        (gradient,) = torch.autograd.grad(nearest.sum(), point)
        nx, ny = (float(value) for value in gradient[0])
        size = math.hypot(nx, ny)
        return (nx / size, ny / size) if size > 0.0 else (0.0, 0.0)

    def _far(self, reach: float) -> bool:
        """Whether nothing can be touched within ``reach``: a quick test, which distances to bounds are part of."""
        x, y = self._state[:2]
        (x_low, x_high), (y_low, y_high) = self._bounds
        inside = min(x - x_low, x_high - x, y - y_low, y_high - y) > reach
        return inside and self._simple and self._room(x, y) > self.radius + reach

    def _room(self, x: float, y: float, time: float | None = None, slack: float = _SLACK) -> float:
        """The signed distance to the nearest obstacle at a time (default: now); −inf out of bounds."""
        (x_low, x_high), (y_low, y_high) = self._bounds
        if not (x_low - slack <= x <= x_high + slack and y_low - slack <= y <= y_high + slack):
            return -math.inf
        if self._simple:
            return min((_signed(obstacle, x, y) for obstacle in self._obstacles), default=math.inf)
        point = torch.tensor([[x, y]], dtype=torch.float64)
        moment = torch.tensor([self.steps * self.dt if time is None else time], dtype=torch.float64)
        return min(float(obstacle.distance(point, moment if obstacle.moves else None)) for obstacle in self._obstacles)


def _simple(obstacles: Sequence[Any]) -> bool:
    """Whether there are only discs and boxes, whose distances need no tensors."""
    from boltzmix.planners.obstacles import Box, Disc

    return all(type(obstacle) in (Box, Disc) for obstacle in obstacles)


def _signed(obstacle: Any, x: float, y: float) -> float:
    """The signed distance of a point from a disc or a box."""
    from boltzmix.planners.obstacles import Disc

    if isinstance(obstacle, Disc):
        return math.hypot(x - obstacle.x, y - obstacle.y) - obstacle.radius
    across = max(obstacle.x_low - x, x - obstacle.x_high)
    up = max(obstacle.y_low - y, y - obstacle.y_high)
    return math.hypot(max(across, 0.0), max(up, 0.0)) + min(max(across, up), 0.0)


def _moved(state: Sequence[float], ax: float, ay: float, seconds: float) -> list[float]:
    """The state after free motion with a constant acceleration."""
    x, y, vx, vy = state
    half = 0.5 * seconds * seconds
    return [x + seconds * vx + half * ax, y + seconds * vy + half * ay, vx + seconds * ax, vy + seconds * ay]


def _gymnasium(world: ObstacleWorld) -> Any:
    try:
        import gymnasium  # pyright: ignore[reportMissingImports]
        from gymnasium import spaces  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra('a gymnasium.Env needs gymnasium: pip install "boltzmix[planning]"') from error
    import numpy as np

    class GymnasiumWorld(gymnasium.Env):
        """The world behind gymnasium's interface."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": round(1.0 / world.dt)}  # noqa: RUF012
        render_mode = "rgb_array"

        def __init__(self) -> None:
            limit = np.full(2, world.action_limit)
            self.action_space = spaces.Box(-limit, limit, dtype=np.float64)
            sizes = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
            self.observation_space = spaces.Dict(
                {name: spaces.Box(-np.inf, np.inf, (size,), np.float64) for name, size in sizes.items()}
            )

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Observation, dict[str, Any]]:
            super().reset(seed=seed)
            options = options or {}
            unknown = sorted(set(options) - {"start", "goal"})
            if unknown:
                raise ValueError(f'the options of reset are "start" and "goal", got {unknown}')
            return world.reset(options.get("start"), options.get("goal"), seed), {}

        def step(self, action: Any) -> Step:
            return world.step(action)

        def render(self) -> "np.ndarray":
            from boltzmix.planners.environments.recording import top_view

            return top_view(world)

    return GymnasiumWorld()
