r"""Planning by gradient: a covariant descent on smoothness and obstacle costs.

Paths :math:`\xi` are H positions with both ends fixed. The objective is

.. math::
    U(\xi) = \tfrac12\, \xi^\top A\, \xi + w \sum_t c(p_t)\, |p_{t+1} - p_t| + \sum_k w_k E_k(\tau),

a Gaussian-process prior (``order`` 1: :math:`\tfrac{H-1}{2} \sum |p_{t+1} - p_t|^2`, whose minimum among obstacles is
the shortest path at constant speed; 2: second differences), and the obstacle cost per length that is passed, so that
hurrying through an obstacle gains nothing. c is CHOMP's hinge of the distance d to the nearest surface,

.. math::
    c = \varepsilon/2 - d \;(d < 0), \quad (d - \varepsilon)^2 / (2 \varepsilon) \;(0 \le d \le \varepsilon), \quad
    0 \;(d > \varepsilon),

averaged over points spread along each segment. The descent is covariant,
:math:`\xi \leftarrow \xi - \eta A^{-1} \nabla U`: an obstacle that touches one token bends the whole path, and without
obstacles the first step ends at the minimum. Each path has its own :math:`\eta`, halved where U would rise.

Ratliff, Zucker, Bagnell and Srinivasa (2009), "CHOMP: Gradient optimization techniques for efficient motion planning";
Mukadam et al. (2018), "Continuous-time Gaussian process motion planning via probabilistic inference" for the prior.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.planners.baselines.base import Baseline, Found, Question, weight_of
from boltzmix.planners.baselines.timing import timed

_POINTS = 4  # per segment


@dataclass(frozen=True)
class GradientPlanner(Baseline):
    """CHOMP-like descent from several draws of the prior; see the module.

    The first path starts as the straight line, the others as the line plus a draw of N(0, A⁻¹), scaled to a root mean
    square of ``spread`` times the distance L between the ends. The paths of lowest U are returned, clear ones first.
    One evaluation is one gradient of U for one path.

    Args:
        iterations: gradients per path.
        restarts: paths that descend together.
        obstacle_weight: w, relative to a smoothness of L²/2.
        margin: ε, in units of length.
        order: of the prior, 1 or 2.
        spread: of the starts, as a share of L.
        speed, acceleration, cut: with these the path found is timed by :func:`timed` (it then rests at its goal);
            without, token t of the path is token t of the plan, which moving obstacles need.
    """

    iterations: int = 200
    restarts: int = 8
    obstacle_weight: float = 50.0
    margin: float = 0.1
    order: int = 1
    spread: float = 0.3
    speed: float | None = None
    acceleration: float | None = None
    cut: float = 0.05
    evaluation: ClassVar[str] = "gradient of the objective for one path"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.order not in (1, 2):
            raise ValueError(f"GradientPlanner: order is 1 or 2, got {self.order}")
        if self.iterations < 1 or self.restarts < 1:
            raise ValueError(f"GradientPlanner: iterations and restarts ≥ 1, got {self.iterations}, {self.restarts}")
        if not (self.margin > 0 and self.obstacle_weight > 0 and self.spread >= 0):
            raise ValueError(
                "GradientPlanner: margin > 0, obstacle_weight > 0, spread ≥ 0, got "
                f"{self.margin}, {self.obstacle_weight}, {self.spread}"
            )

    def _search(self, question: Question) -> Found:
        goal, space = question.needs_goal("GradientPlanner"), question.space
        if space.horizon < 4:
            raise ValueError(f"GradientPlanner: a path has at least 4 tokens, got horizon {space.horizon}")
        start, count = question.position, max(self.restarts, question.n)
        precision = prior_precision(space.horizon, self.order)
        line = start + torch.linspace(0, 1, space.horizon, dtype=start.dtype)[:, None] * (goal - start)
        root = torch.linalg.inv(torch.linalg.cholesky(precision)).mT  # root rootᵀ = A⁻¹
        size = self.spread * float((goal - start).norm()) / math.sqrt(float(root.square().sum(-1).mean()))
        draws = torch.randn(count, space.horizon - 2, 2, generator=question.generator, dtype=start.dtype)
        draws[0] = 0.0
        paths = line.expand(count, -1, -1).clone()
        paths[:, 1:-1] += size * (root @ draws)
        if question.init is not None:
            given = question.init[: min(count, len(question.init)), 1:-1, space.columns(space.position)]
            paths[: len(given), 1:-1] = given.to(paths)
        paths, value, evaluations = self._descend(paths, precision, question)
        clearance = torch.stack([self._clearance(path, question) for path in paths])
        order = torch.argsort(torch.where(clearance >= 0, value, value + float(value.max() - value.min()) + 1.0))
        paths = paths[order[: question.n]]
        info = {"objective": value[order[: question.n]].tolist(), "paths": paths.numpy()}
        if self.speed is None:
            return Found(question.trajectory(paths), evaluations, info=info)
        moves = [
            timed(path, space.horizon, space.dt, speed=self.speed, acceleration=self.acceleration, cut=self.cut)
            for path in paths
        ]
        positions, velocities = (torch.stack(part) for part in zip(*moves, strict=True))
        return Found(question.trajectory(positions, velocities), evaluations, info=info)

    def _descend(self, paths: Tensor, precision: Tensor, question: Question) -> tuple[Tensor, Tensor, int]:
        """Paths, their U, and gradients taken."""
        factor = torch.linalg.cholesky(precision)
        step = torch.ones(len(paths), 1, 1, dtype=paths.dtype)
        value, slope = self._value_and_slope(paths, precision, question)
        evaluations = len(paths)
        for _ in range(self.iterations - 1):
            proposal = paths.clone()
            proposal[:, 1:-1] -= step * torch.cholesky_solve(slope, factor)
            new_value, new_slope = self._value_and_slope(proposal, precision, question)
            evaluations += len(paths)
            better = (new_value <= value)[:, None, None]
            paths, slope = torch.where(better, proposal, paths), torch.where(better, new_slope, slope)
            value = torch.where(better[:, 0, 0], new_value, value)
            step = torch.where(better, (1.5 * step).clamp(max=1.0), 0.5 * step)
            if question.out_of_time() or float(step.max()) < 1e-9:
                break
        return paths, value, evaluations

    def _value_and_slope(self, paths: Tensor, precision: Tensor, question: Question) -> tuple[Tensor, Tensor]:
        """U and its gradient with respect to the inner positions, ``(n,)`` and ``(n, H − 2, 2)``."""
        with torch.enable_grad():
            inner = paths[:, 1:-1].detach().requires_grad_(True)
            whole = torch.cat([paths[:, :1], inner, paths[:, -1:]], dim=1)
            value = smoothness(whole, self.order) + self.obstacle_weight * self._obstacle_cost(whole, question)
            if question.soft:
                plans = question.trajectory(whole)
                for task in question.soft:
                    value = value + weight_of(task) * task.energy(plans, question.space)
            (slope,) = torch.autograd.grad(value.sum(), inner)
        return value.detach(), slope

    def _obstacle_cost(self, paths: Tensor, question: Question) -> Tensor:
        """Σ c |Δp| of paths ``(n, H, 2)``."""
        points, time = _along(paths, question.space.dt)
        # Bounds limit the centre and may be touched: their hinge starts where they are reached.
        cost = hinge(_distance(points, time, question, slack=self.margin), self.margin).mean(-1)
        return (cost * paths.diff(dim=1).norm(dim=-1)).sum(-1)

    def _clearance(self, path: Tensor, question: Question) -> Tensor:
        """Smallest distance at the points of one path."""
        points, time = _along(path[None], question.space.dt)
        return _distance(points, time, question).amin()


def hinge(distance: Tensor, margin: float) -> Tensor:
    """CHOMP's cost c(d), once continuously differentiable."""
    near = distance.clamp(max=margin)  # +inf, where nothing stands, has no slope
    return torch.where(near < 0, margin / 2 - near, (near - margin).square() / (2 * margin))


def smoothness(paths: Tensor, order: int) -> Tensor:
    """½ ξᵀ A ξ of paths ``(n, H, 2)``, L²/2 for a straight line of length L at constant speed (order 1)."""
    pieces = paths.shape[1] - 1
    return 0.5 * pieces ** (2 * order - 1) * paths.diff(n=order, dim=1).square().sum((-1, -2))


def prior_precision(tokens: int, order: int) -> Tensor:
    """A over the inner tokens, ``(H − 2, H − 2)``, float64: the Hessian of :func:`smoothness` for one coordinate."""
    differences = torch.eye(tokens, dtype=torch.float64).diff(n=order, dim=0)[:, 1:-1]
    return float(tokens - 1) ** (2 * order - 1) * differences.mT @ differences


def _along(paths: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """Points ``(n, H − 1, points, 2)`` along the segments and their times."""
    share = (torch.arange(_POINTS, dtype=paths.dtype) + 0.5) / _POINTS
    points = paths[:, :-1, None] + share[:, None] * paths.diff(dim=1)[:, :, None]
    time = (torch.arange(paths.shape[1] - 1, dtype=paths.dtype)[:, None] + share) * dt
    return points, time.expand(points.shape[:-1])


def _distance(points: Tensor, time: Tensor, question: Question, slack: float = 0.0) -> Tensor:
    """Distance of the ball's surface to the nearest obstacle, or of its centre to a bound ``slack`` farther out."""
    nearest = torch.full(points.shape[:-1], math.inf, dtype=points.dtype)
    for obstacle in question.problem.obstacles:
        nearest = torch.minimum(nearest, obstacle.distance(points, time) - question.problem.radius)
    if question.limits is not None:
        for axis, (low, high) in enumerate(question.limits):
            at = points[..., axis]
            nearest = torch.minimum(nearest, torch.minimum(at - low, high - at) + slack)
    return nearest
