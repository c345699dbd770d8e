r"""Controllers: from a plan to an action, at every step of the environment.

A plan says where to be; what acts is a controller, and much of a planner's success is its controller's. So it is an
explicit part of a policy and is reported by name. All take the state, the plan as a :class:`Reference`, and the seconds
since the plan's first token, in physical units, and return one action.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.space import TrajectorySpace

Limit = tuple[float, float] | None


class Reference:
    """A plan as functions of time, linear between tokens; after the last token it stays there, at rest.

    Args:
        space: of the plan.
        trajectory: ``(H, D)`` in physical units.
        closed: seconds at which the plan is over, by default that of its last token.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, space: TrajectorySpace, trajectory: Any) -> None:
        """Hold the arrays and find the velocity columns."""
        import numpy as np

        self.space = space
        self.plan = np.asarray(trajectory, dtype=np.float64)
        if self.plan.shape != space.shape:
            raise ValueError(f"a plan in this space has shape {space.shape}, got {self.plan.shape}")
        self._position = space.columns(space.position)
        names = [f"v{name}" for name in space.position]
        self._velocity = space.columns(names) if all(name in space.state for name in names) else None
        if self._velocity is None and space.horizon > 1:
            self._slopes = np.gradient(self.plan[:, self._position], space.dt, axis=0)

    @property
    def duration(self) -> float:
        """Seconds from the first token to the last."""
        return self.space.duration

    def token(self, time: float) -> tuple[int, float]:
        """The token before a time, and how far it is to the next, in [0, 1]."""
        last = self.space.horizon - 1
        place = min(max(time / self.space.dt, 0.0), float(last))
        k = min(int(place), max(last - 1, 0))
        return k, place - k

    def at(self, time: float) -> Any:
        """All columns ``(D,)`` at a time."""
        k, share = self.token(time)
        following = min(k + 1, self.space.horizon - 1)
        return (1.0 - share) * self.plan[k] + share * self.plan[following]

    def state(self, time: float) -> Any:
        """The state ``(S,)``; velocities are zero once the plan is over."""
        found = self.at(time)[: len(self.space.state)].copy()
        if self._velocity is not None and time > self.duration:
            found[self._velocity] = 0.0
        return found

    def position(self, time: float) -> Any:
        """The position."""
        return self.at(time)[self._position]

    def velocity(self, time: float) -> Any:
        """The velocity: that of the plan's own columns, or of differences between tokens; zero after the end."""
        import numpy as np

        if time > self.duration or self.space.horizon == 1:
            return np.zeros(len(self._position))
        if self._velocity is not None:
            return self.at(time)[self._velocity]
        k, share = self.token(time)
        following = min(k + 1, self.space.horizon - 1)
        return (1.0 - share) * self._slopes[k] + share * self._slopes[following]

    def action(self, time: float) -> Any:
        """The plan's own action, that of the token whose interval holds the time."""
        if not self.space.action:
            raise ValueError(f"this plan has no action columns, only the state {self.space.state}: use PD(…)")
        k = min(int(time / self.space.dt + 1e-9), self.space.horizon - 1)
        return self.plan[max(k, 0), len(self.space.state) :].copy()


class Controller:
    """Base of controllers: :meth:`act`."""

    def act(self, state: Any, plan: Reference, time: float) -> Any:
        """An action ``(A,)`` for a state ``(S,)``, ``time`` seconds after the plan's first token."""
        raise NotImplementedError

    def name(self) -> str:
        """What reports call it."""
        return type(self).__name__


@dataclass(frozen=True)
class PD(Controller):
    r"""Proportional and derivative feedback on the plan's positions: :math:`a = k_p (p^* - p) + k_d (v^* - v)`.

    Args:
        kp: action per metre.
        kd: action per m/s; needs velocity columns in the state.
        lead: seconds by which the plan is read ahead, which makes up for the lag of feedback.
        feedforward: share of the plan's own action that is added, where it has one.
        limit: (low, high) that actions are clipped to, an actuator's saturation; None for none.
        width: number of actions, where it is not that of positions.

    Raises:
        ValueError: gains or a lead that are not finite and >= 0.
    """

    kp: float = 10.0
    kd: float = 1.0
    lead: float = 0.0
    feedforward: float = 0.0
    limit: Limit = (-1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse gains that make no sense."""
        for name in ("kp", "kd", "lead", "feedforward"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"PD's {name} is a finite number >= 0, got {value!r}")
        if self.limit is not None and not self.limit[0] < self.limit[1]:
            raise ValueError(f"PD's limit is (low, high) with low < high, got {self.limit!r}")

    def act(self, state: Any, plan: Reference, time: float) -> Any:
        """The feedback law, clipped to the limit."""
        import numpy as np

        state = np.asarray(state, dtype=np.float64)
        ahead = time + self.lead
        action = self.kp * (plan.position(ahead) - state[plan._position])
        if self.kd:
            if plan._velocity is None:
                raise ValueError(
                    f"PD's kd needs velocities v{plan.space.position[0]}, … in the state, and it has "
                    f"{plan.space.state}; use PD(kd=0)"
                )
            action = action + self.kd * (plan.velocity(ahead) - state[plan._velocity])
        if self.feedforward:
            action = action + self.feedforward * plan.action(time)
        return action if self.limit is None else np.clip(action, *self.limit)


@dataclass(frozen=True)
class OwnActions(Controller):
    """The plan's own actions, in open loop between replans.

    Args:
        limit: (low, high) that actions are clipped to; None for none.
    """

    limit: Limit = (-1.0, 1.0)

    def act(self, state: Any, plan: Reference, time: float) -> Any:
        """The action of the token at hand."""
        import numpy as np

        action = plan.action(time)
        return action if self.limit is None else np.clip(action, *self.limit)


@dataclass(frozen=True)
class InverseDynamics(Controller):
    """A learned model of which action leads from a state to the next one, asked for the plan's next state.

    Args:
        model: a function or module of states ``(1, S)`` and next states ``(1, S)`` that returns actions ``(1, A)``,
            tensors in physical units.
        ahead: seconds to the next state, what the model was trained on; None takes the time between two tokens divided
            by the stride, which is one environment step.
        limit: (low, high) that actions are clipped to; None for none.
    """

    model: Callable[[Tensor, Tensor], Tensor]
    ahead: float | None = None
    limit: Limit = (-1.0, 1.0)

    def act(self, state: Any, plan: Reference, time: float) -> Any:
        """What the model says."""
        import numpy as np

        step = plan.space.dt / plan.space.stride if self.ahead is None else self.ahead
        now = torch.as_tensor(np.asarray(state), dtype=torch.get_default_dtype())[None]
        then = torch.as_tensor(plan.state(time + step), dtype=now.dtype)[None]
        with torch.no_grad():
            found = self.model(now, then)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1:
            raise ValueError(f"the inverse dynamics returns actions (1, A), got {getattr(found, 'shape', found)}")
        action = found[0].double().numpy()
        return action if self.limit is None else np.clip(action, *self.limit)
