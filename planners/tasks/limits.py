"""Limits on a plan: bounds of columns, a dynamics model, and constraints g(τ) ≤ 0 of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task, hinge, nonnegative, positive


class Bounds(Task):
    r"""Columns between a low and a high value: :math:`E = k \sum_{h, j} c(x_{hj} - l_j) + c(u_j - x_{hj})`.

    c is :func:`~boltzmix.planners.tasks.base.hinge`. A box is convex, so between two tokens inside it the whole segment
    is inside, and nowhere on a segment is a limit exceeded by more than at one of its ends: the tokens tell all.

    Args:
        low: a number or one for each column, in the columns' own units; None takes the space's bounds of positions.
        high: likewise.
        columns: which columns; None for the position.
        margin: how far inside the penalty sets in, in the columns' unit.
        sharpness: energy for each unit and token outside.
        name: what results call it.

    Raises:
        ValueError: low ≥ high, one of them alone, sizes that do not fit, a space without bounds where None asks for
            them.
    """

    def __init__(
        self,
        low: Any = None,
        high: Any = None,
        *,
        columns: str | Sequence[str] | None = None,
        margin: float = 0.0,
        sharpness: float = 100.0,
        name: str | None = None,
    ) -> None:
        """Check what can be checked without a space."""
        super().__init__(name)
        if (low is None) != (high is None):
            raise ValueError("Bounds takes low and high, or neither for the space's own bounds")
        if low is None and columns is not None:
            raise ValueError(f"Bounds(columns={columns!r}) needs low= and high= of these columns")
        self.low = None if low is None else _numbers(low, "Bounds' low")
        self.high = None if high is None else _numbers(high, "Bounds' high")
        self.columns = (columns,) if isinstance(columns, str) else None if columns is None else tuple(columns)
        self.margin = nonnegative(margin, "Bounds' margin")
        self.sharpness = positive(sharpness, "Bounds' sharpness")

    def _limits(self, space: TrajectorySpace) -> tuple[list[int], list[float], list[float]]:
        names = space.position if self.columns is None else self.columns
        places = space.columns(names)
        if self.low is None or self.high is None:
            if space.bounds is None:
                raise ValueError("Bounds() takes the space's bounds and it has none: write Bounds(low, high)")
            return places, [b[0] for b in space.bounds], [b[1] for b in space.bounds]
        low, high = (v * len(places) if len(v) == 1 else v for v in (self.low, self.high))
        if len(low) != len(places) or len(high) != len(places):
            raise ValueError(f"Bounds has one number or one for each of {names}, got {len(low)} and {len(high)}")
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"Bounds needs low < high, got low {low} and high {high}")
        return places, low, high

    def _fit(self, space: TrajectorySpace) -> None:
        self._limits(space)

    def _room(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """How far inside each limit every number is, ``(N, 2, H, J)``."""
        places, low, high = self._limits(space)
        x = tau[..., places]
        return torch.stack([x - x.new_tensor(low), x.new_tensor(high) - x], 1)

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return self.sharpness * hinge(self._room(tau, space), self.margin).flatten(1).sum(1)

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return (-self._room(tau, space)).flatten(1).amax(1).clamp(min=0.0)


class Dynamics(Task):
    r"""A model of one step: :math:`E = \tfrac12 \sum_h |(s_{h+1} - f(s_h, a_h)) / w|^2`.

    The violation is the largest error of a step, in units of the width.

    Args:
        fn: from token to token: states ``(M, S)`` and actions ``(M, A)`` to next states ``(M, S)``, in physical units;
            in a space without actions it takes the states alone. A module is held, so that samplers freeze it.
        width: how far a step may be off: a number, or one for each state column.
        name: what results call it.

    Raises:
        ValueError: widths that are not positive or do not fit, next states of another shape.
    """

    def __init__(self, fn: Callable[..., Tensor], width: Any, name: str | None = None) -> None:
        """Hold the function."""
        super().__init__(name)
        if not callable(fn):
            raise TypeError(f"Dynamics takes a function of states and actions, got {type(fn).__name__}")
        self.fn = fn
        self.width = [positive(w, "Dynamics' width") for w in _numbers(width, "Dynamics' width")]

    def modules(self) -> tuple[nn.Module, ...]:
        """The model, where it is a module."""
        return (self.fn,) if isinstance(self.fn, nn.Module) else ()

    def _fit(self, space: TrajectorySpace) -> None:
        if len(self.width) not in (1, len(space.state)):
            raise ValueError(f"Dynamics' width is a number or one for each of {space.state}, got {len(self.width)}")

    def _errors(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """Errors in units of the width, ``(N, H − 1, S)``."""
        states = space.states(tau)
        inputs = [states[:, :-1].flatten(0, 1)]
        if space.action:
            inputs.append(space.actions(tau)[:, :-1].flatten(0, 1))
        following = self.fn(*inputs)
        if not isinstance(following, Tensor) or following.shape != inputs[0].shape:
            got = tuple(following.shape) if isinstance(following, Tensor) else type(following).__name__
            raise ValueError(f"{self.name}: the model returns next states {tuple(inputs[0].shape)}, got {got}")
        return (states[:, 1:] - following.reshape(states[:, 1:].shape)) / tau.new_tensor(self.width)

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return 0.5 * self._errors(tau, space).square().flatten(1).sum(1)

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        errors = self._errors(tau, space).abs().flatten(1)
        return errors.amax(1) if errors.shape[1] else tau.new_zeros(tau.shape[0])


class Constraint(Task):
    r"""Any constraint :math:`g(\tau) \le 0`: :math:`E = k \sum_j c(-g_j(\tau))`.

    Args:
        fn: physical trajectories ``(N, H, D)`` to g, ``(N,)`` or ``(N, J)``, by how much each is exceeded.
        sharpness: energy for each unit of g.
        margin: how far before the limit the penalty sets in, in units of g.
        name: what results call it; the function's own name if it has one.

    Raises:
        ValueError: values of another shape.
    """

    def __init__(
        self, fn: Callable[[Tensor], Tensor], sharpness: float = 100.0, *, margin: float = 0.0, name: str | None = None
    ) -> None:
        """Hold the function."""
        if not callable(fn):
            raise TypeError(f"Constraint takes a function of trajectories, got {type(fn).__name__}")
        super().__init__(own_name(fn) if name is None else name)
        self.fn = fn
        self.sharpness = positive(sharpness, "Constraint's sharpness")
        self.margin = nonnegative(margin, "Constraint's margin")

    def modules(self) -> tuple[nn.Module, ...]:
        """The function, where it is a module."""
        return (self.fn,) if isinstance(self.fn, nn.Module) else ()

    def _excess(self, tau: Tensor) -> Tensor:
        value = self.fn(tau)
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or value.shape[0] != tau.shape[0]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{self.name}: a constraint returns (N,) or (N, J) numbers for N = {tau.shape[0]} trajectories, got "
                f"{got}"
            )
        return value.reshape(tau.shape[0], -1)

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return self.sharpness * hinge(-self._excess(tau), self.margin).sum(1)

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return self._excess(tau).amax(1).clamp(min=0.0)


def own_name(fn: object) -> str | None:
    """A function's name for results; None for those that have none."""
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) and name != "<lambda>" else None


def _numbers(given: Any, what: str) -> list[float]:
    """A number, or several, as finite floats."""
    if isinstance(given, (str, Mapping)):
        raise TypeError(f"{what} is a number or a sequence of them, got {given!r}")
    listed = torch.as_tensor(given, dtype=torch.float64)
    if listed.ndim > 1 or not listed.numel():
        raise ValueError(f"{what} is a number or one for each column, got shape {tuple(listed.shape)}")
    if not bool(torch.isfinite(listed).all()):
        raise ValueError(f"{what} must be finite, got {listed.reshape(-1).tolist()}")
    return listed.reshape(-1).tolist()
