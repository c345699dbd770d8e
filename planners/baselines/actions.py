"""Search over action sequences through a model of the dynamics: what CEM and MPPI share.

The model is any function of a batch, ``dynamics(states (N, S), actions (N, A)) -> states (N, S)``, over one token. A
sequence u of H − 1 actions leads from the start to H states, and costs

    J(u) = w_g Σ_{t<H} |p_t − g|² + w_T |p_H − g|² + w_v |v_H|² + w_u Σ |u_t|² + w_o Σ_s relu(m − d_s) + Σ_k w_k E_k(τ),

with the goal g, the last velocity v_H (where the state has one), the distances d_s to the nearest obstacle at points
spread along every segment, the margin m (beyond the radius of the ball) and the energies E_k of the tasks; or what the
caller's own ``cost(states, actions)`` says. One evaluation is one step of the model for one state: N sequences of H − 1
actions are N (H − 1) evaluations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.planners.baselines.base import Baseline, Found, Question, velocity_names, weight_of

Dynamics = Callable[[Tensor, Tensor], Tensor]
Cost = Callable[[Tensor, Tensor], Tensor]

_POINTS = 4  # per segment, its end among them


class Rollouts:
    """A model and a cost as a function of action sequences, with a count of the model's steps.

    Args:
        dynamics: ``(N, S), (N, A) -> (N, S)``.
        cost: states ``(N, H, S)`` with the start first, actions ``(N, H − 1, A)`` -> ``(N,)``.
        start: ``(S,)``.

    Raises:
        ValueError: a model or a cost whose shape is not the one above.
        FloatingPointError: a cost that is NaN; +inf is a sequence that must not be taken.
    """

    def __init__(self, dynamics: Dynamics, cost: Cost, start: Tensor) -> None:
        self.dynamics, self.cost, self.start = dynamics, cost, start
        self.steps = 0

    def states(self, actions: Tensor) -> Tensor:
        """States ``(N, H, S)`` that sequences ``(N, H − 1, A)`` lead through."""
        count, length, _ = actions.shape
        states = [self.start.to(actions).expand(count, -1)]
        for t in range(length):
            state = self.dynamics(states[-1], actions[:, t])
            if state.shape != states[0].shape:
                raise ValueError(
                    f"dynamics(states, actions) returns states {tuple(states[0].shape)}, got {tuple(state.shape)}"
                )
            states.append(state)
        self.steps += count * length
        return torch.stack(states, dim=1)

    def __call__(self, actions: Tensor) -> Tensor:
        """Costs ``(N,)``."""
        cost = self.cost(self.states(actions), actions)
        if cost.shape != (len(actions),):
            raise ValueError(f"cost(states, actions) returns ({len(actions)},), got {tuple(cost.shape)}")
        if bool(cost.isnan().any()):
            raise FloatingPointError(f"{int(cost.isnan().sum())} of {len(cost)} sequences cost NaN; check the model")
        return cost


def noise(count: int, like: Tensor, correlation: float, generator: torch.Generator) -> Tensor:
    """Standard normal sequences ``(count, *like.shape)``, ε_t = ρ ε_{t−1} + √(1−ρ²) ξ_t with ε_0 of the same variance.

    Correlated noise explores where white noise averages itself out through an integrating system (Pinneri et al. 2020,
    "Sample-efficient cross-entropy method for real-time planning").

    Args:
        count: sequences.
        like: a sequence ``(length, size)``, for its shape, dtype and device.
        correlation: ρ in [0, 1).
        generator: of the white noise, one ``randn`` for all.
    """
    white = torch.randn(count, *like.shape, generator=generator, dtype=like.dtype, device=like.device)
    if correlation == 0.0:
        return white
    series = [white[:, 0]]
    for t in range(1, white.shape[1]):
        series.append(correlation * series[-1] + math.sqrt(1 - correlation**2) * white[:, t])
    return torch.stack(series, dim=1)


def whiten(series: Tensor, correlation: float) -> Tensor:
    """ξ of sequences ``(…, length, size)``: the inverse of :func:`noise`, so that ⟨whiten a, whiten b⟩ = aᵀ Σ⁻¹ b."""
    if correlation == 0.0:
        return series
    rest = (series[..., 1:, :] - correlation * series[..., :-1, :]) / math.sqrt(1 - correlation**2)
    return torch.cat([series[..., :1, :], rest], dim=-2)


@dataclass(frozen=True)
class ActionPlanner(Baseline):
    """Base of CEM and MPPI.

    Args:
        dynamics: the model, see the module.
        low, high: ``(A,)`` limits of the actions; sequences are sampled within them (clipped, as both methods do).
        cost: states ``(N, H, S)``, actions ``(N, H − 1, A)`` -> ``(N,)``; None for the cost of the module, whose
            weights follow.
        correlation: ρ of the noise in [0, 1).
        goal_weight, final_weight, rest_weight, effort_weight, obstacle_weight, margin: w_g, w_T, w_v, w_u, w_o, m;
            lengths in metres.
        samples, iterations: sequences per iteration, and iterations.
    """

    dynamics: Dynamics = field(kw_only=True)
    low: Sequence[float] = field(kw_only=True)
    high: Sequence[float] = field(kw_only=True)
    cost: Cost | None = None
    samples: int = 512
    iterations: int = 20
    correlation: float = 0.5
    goal_weight: float = 1.0
    final_weight: float = 10.0
    rest_weight: float = 1.0
    effort_weight: float = 1e-3
    obstacle_weight: float = 1e3
    margin: float = 0.02
    evaluation: ClassVar[str] = "step of the model for one state"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        name = type(self).__name__
        actions = len(self.space.action) or len(self.low)
        limits = torch.tensor([list(self.low), list(self.high)], dtype=torch.float64)
        if limits.shape != (2, actions) or not bool((limits[0] < limits[1]).all() and limits.isfinite().all()):
            raise ValueError(
                f"{name}: low and high are {actions} finite numbers with low < high, got {self.low}, {self.high}"
            )
        if self.samples < 2 or self.iterations < 1:
            raise ValueError(f"{name}: samples ≥ 2 and iterations ≥ 1, got {self.samples} and {self.iterations}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"{name}: correlation is in [0, 1), got {self.correlation}")

    def search(
        self, rollouts: Rollouts, mean: Tensor, generator: torch.Generator, stop: Callable[[], bool] = lambda: False
    ) -> Tensor:
        """The sequence ``(H − 1, A)`` that the method ends with, from a first guess."""
        raise NotImplementedError

    def _search(self, question: Question) -> Found:
        space = question.space
        cost = self.default_cost(question) if self.cost is None else self.cost
        size, states = len(self.low), len(space.state)
        low, high = (torch.tensor(list(limit), dtype=torch.float64) for limit in (self.low, self.high))
        rollouts = Rollouts(self.dynamics, cost, question.start)
        plans, costs = [], []
        for k in range(question.n):
            mean = ((low + high) / 2).expand(space.horizon - 1, size).clone()
            if question.init is not None and space.action:
                mean = question.init[k % len(question.init), :-1, states:].to(mean).clamp(low, high)
            found = self.search(rollouts, mean, question.generator, question.out_of_time)
            path = rollouts.states(found[None])
            costs.append(cost(path, found[None])[0])
            plans.append(_with_actions(path[0], found, len(space.action)))
        order = torch.stack(costs).argsort(stable=True)
        return Found(torch.stack(plans)[order], rollouts.steps, info={"cost": torch.stack(costs)[order].tolist()})

    def default_cost(self, question: Question) -> Cost:
        """J of the module for one problem."""
        space, goal = question.space, question.goal
        places, speeds = space.columns(space.position), space.columns(velocity_names(space))

        def cost(states: Tensor, actions: Tensor) -> Tensor:
            positions = states[..., places]
            total = self.effort_weight * actions.square().sum((-1, -2))
            if goal is not None:
                away = (positions - goal.to(positions)).square().sum(-1)
                total = total + self.goal_weight * away[:, 1:-1].sum(-1) + self.final_weight * away[:, -1]
                if speeds:
                    total = total + self.rest_weight * states[:, -1, speeds].square().sum(-1)
            if question.problem.obstacles or question.limits is not None:
                depth = penetration(positions, question, self.margin)
                total = total + self.obstacle_weight * depth.sum(-1)
            if question.soft:
                last = torch.zeros_like(actions[:, :1])
                plans = torch.cat([states, torch.cat([actions, last], dim=1)[..., : len(space.action)]], dim=-1)
                for task in question.soft:
                    total = total + weight_of(task) * task.energy(plans, space)
            return total

        return cost


def penetration(positions: Tensor, question: Question, margin: float) -> Tensor:
    """relu(m − d) at points along the segments of positions ``(N, H, 2)``; ``(N, (H − 1) · points)``."""
    count, tokens, _ = positions.shape
    share = torch.arange(1, _POINTS + 1, dtype=positions.dtype) / _POINTS
    points = positions[:, :-1, None] + share[:, None] * (positions[:, 1:] - positions[:, :-1])[:, :, None]
    time = (torch.arange(tokens - 1, dtype=positions.dtype)[:, None] + share) * question.space.dt
    depth = torch.zeros(points.shape[:-1], dtype=positions.dtype)
    for obstacle in question.problem.obstacles:
        distance = obstacle.distance(points, time.expand(count, -1, -1)) - question.problem.radius
        depth = torch.maximum(depth, margin - distance)
    if question.limits is not None:
        for axis, (low, high) in enumerate(question.limits):
            at = points[..., axis]
            depth = torch.maximum(depth, torch.maximum(low - at, at - high))
    return depth.reshape(count, -1)


def _with_actions(states: Tensor, actions: Tensor, columns: int) -> Tensor:
    """A plan ``(H, D)``: the last token's action is zero, nothing follows it."""
    if not columns:
        return states
    return torch.cat([states, torch.cat([actions, torch.zeros_like(actions[:1])])], dim=-1)
