r"""Tasks: factors :math:`p_{task}(\tau) \propto e^{-w E(\tau)}` of a plan's density.

A task is written in physical units and knows no space; :meth:`Task.bind` makes it a term over a space's normalised
trajectories, which multiplies a prior like any other term. Its weight w is an exponent of the algebra: a number, or a
function of σ, so that a constraint may come in slowly on the way down the noise levels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.exponent import Exponent, as_exponent
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.planners.space import TrajectorySpace

Known = tuple[Tensor, Tensor]


class Task(ABC):
    """One thing that is asked of a plan.

    Subclasses define :meth:`_energy`, and :meth:`_violation` where the task can fail.

    Attributes:
        name: what results call it.
        weight: exponent of the task's factor: a number, or a function of σ.
        hard: whether its coordinates are clamped rather than weighed.
    """

    hard: bool = False

    def __init__(self, name: str | None = None) -> None:
        """Name the task; its weight is 1."""
        self.name = type(self).__name__.lower() if name is None else name
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"a task's name is a text, got {name!r}")
        self.exponent = Exponent(1.0)
        self._identity = object()  # shared by copies with other weights, so that they merge in a product

    # ------------------------------------------------------------------ hooks

    @abstractmethod
    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """Energy ``(N,)`` of physical trajectories, without the weight."""

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """By how much each plan fails the task, ``(N,)``."""
        return tau.new_zeros(tau.shape[0])

    def _fit(self, space: TrajectorySpace) -> None:
        """Refuse spaces that the task does not fit; by default none."""
        return

    def modules(self) -> tuple[nn.Module, ...]:
        """Networks that the task evaluates: its terms hold them, so that samplers freeze them."""
        return ()

    # ----------------------------------------------------------------- public

    @property
    def weight(self) -> Any:
        """The exponent as a number where it is one, else as an Exponent."""
        constant = self.exponent.constant
        return self.exponent if constant is None else constant

    def energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """Energy ``(N,)`` of physical trajectories ``(N, H, D)``, differentiable, without the weight.

        Raises:
            ValueError: trajectories of another shape than the space's, or a function of the user's that returns
                anything but one number for each.
        """
        self._check(tau, space)
        return self._one_each(self._energy(tau, space), tau, "energy")

    def violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """By how much each plan fails the task, ``(N,)`` in the task's physical unit; 0 where it holds."""
        self._check(tau, space)
        with torch.no_grad():
            return self._one_each(self._violation(tau, space), tau, "violation")

    def known(self, space: TrajectorySpace) -> Known | None:
        """Which coordinates the task fixes and their normalised values, both ``(H, D)``; None where it fixes none."""
        return None

    def later(self, seconds: float) -> "Task":
        """The task as a clock sees it that starts ``seconds`` later: itself, unless it holds what moves."""
        return self

    def bind(self, space: TrajectorySpace) -> Term:
        """The task's factor over the normalised trajectories of a space: a static term with an energy."""
        self._require_space(space)
        self._fit(space)
        term = self._term(space)
        return term if self.exponent.constant == 1.0 else term**self.exponent

    def __pow__(self, weight: object) -> "Task":
        """The task with its weight multiplied: a number, a scalar tensor or a function of σ."""
        twin = copy.copy(self)
        twin.exponent = self.exponent * as_exponent(weight)
        return twin

    def __repr__(self) -> str:
        """Name and weight."""
        return f"{type(self).__name__}({self.name!r})" + (
            "" if self.exponent.constant == 1.0 else f" ** {self.exponent.extra_repr()}"
        )

    # ---------------------------------------------------------------- helpers

    def _term(self, space: TrajectorySpace) -> Term:
        return TaskTerm(self, space)

    @staticmethod
    def _require_space(space: object) -> None:
        if not isinstance(space, TrajectorySpace):
            raise TypeError(f"tasks are read in a TrajectorySpace, got {type(space).__name__}")

    def _check(self, tau: Tensor, space: TrajectorySpace) -> None:
        self._require_space(space)
        if not isinstance(tau, Tensor):
            raise TypeError(f"{self.name}: trajectories are a tensor (N, H, D), got {type(tau).__name__}")
        if not tau.is_floating_point():
            raise TypeError(f"{self.name}: trajectories are floating point, got {tau.dtype}")
        if tau.ndim != 3 or tuple(tau.shape[1:]) != space.shape:
            raise ValueError(
                f"{self.name}: trajectories are (N, H, D) = (N, {space.shape[0]}, {space.shape[1]}), got "
                f"{tuple(tau.shape)}" + ("; add a batch dimension with tau[None]" if tau.ndim == 2 else "")
            )
        self._fit(space)

    def _one_each(self, value: Any, tau: Tensor, what: str) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != (tau.shape[0],):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: {what} is one number for each of {tau.shape[0]} trajectories, got {got}")
        if not value.is_floating_point():
            raise TypeError(f"{self.name}: {what} is floating point, got {value.dtype}")
        return value


class TaskTerm(Term):
    r"""A task over normalised trajectories: :math:`E(x) = E_{task}(\mathrm{loc} + \mathrm{scale} \cdot x)`, static."""

    path = "static"

    def __init__(self, task: Task, space: TrajectorySpace) -> None:
        """Hold both, and the task's networks as modules."""
        super().__init__()
        self.task, self.space = task, space
        self.variables = Variable(space.shape)
        self.networks = nn.ModuleList(task.modules())

    def key(self) -> Hashable:
        """The task, whatever its weight, and the space."""
        return ("task", id(self.task._identity), self.space)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        tau = self.space.physical(x)
        return self.task._one_each(self.task._energy(tau, self.space), tau, "energy")

    def name(self) -> str:
        """The task's."""
        return self.task.name


def hinge(distance: Tensor, margin: float) -> Tensor:
    r"""A penalty in metres of signed distances: zero from ``margin`` on, and of slope −1 inside.

    .. math::
        c(d) = \begin{cases} 0 & d \ge m \\ (m - d)^2 / 2m & 0 \le d < m \\ m/2 - d & d < 0 \end{cases}

    Its derivative is continuous for m > 0. Source: N. Ratliff, M. Zucker, J. A. Bagnell, S. Srinivasa (2009), CHOMP:
    Gradient optimization techniques for efficient motion planning.
    """
    short = margin - distance
    if margin == 0.0:
        return short.relu()
    near = short.clamp(min=0.0, max=margin)
    return near.square() / (2 * margin) + (short - margin).relu()  # relu, not clamp: its slope at 0 is 0


def nonnegative(value: Any, what: str) -> float:
    """A finite number ≥ 0.

    Raises:
        ValueError: anything else.
    """
    number = _real(value, what)
    if not 0.0 <= number < float("inf"):
        raise ValueError(f"{what} is a finite number >= 0, got {number:g}")
    return number


def positive(value: Any, what: str) -> float:
    """A finite number > 0.

    Raises:
        ValueError: anything else.
    """
    number = _real(value, what)
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{what} is a finite number > 0, got {number:g}")
    return number


def _real(value: Any, what: str) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is a number, got {value!r}")
    return float(value)
