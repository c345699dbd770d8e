r"""Ordinary differential equations :math:`dx/dt = f(x, t)`, integrated by fixed or by adaptive steps.

Fixed steps of Runge–Kutta are written out here: rows do not depend on each other, and solutions are differentiated as
often as f is. Adaptive methods, and gradients by the adjoint equation, are torchdiffeq's (extra ``ode``). Adaptive
steps are chosen for the whole batch, so that rows then depend on each other within the tolerances.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra

STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
Parts = tuple[Tensor, ...]
Method = Literal["euler", "midpoint", "heun", "rk4", "dopri5", "dopri8", "bosh3", "adaptive_heun"]


@dataclass(frozen=True)
class Solver:
    """How an equation is integrated.

    Args:
        method: fixed steps: ``"rk4"`` (four evaluations each), ``"heun"``, ``"midpoint"`` (two) or ``"euler"`` (one);
            or adaptive ones: ``"dopri5"``, ``"dopri8"``, ``"bosh3"`` or ``"adaptive_heun"``.
        steps: of the fixed methods, equal in the field's time.
        rtol, atol: tolerances of the adaptive methods.

    Raises:
        ValueError: an unknown method, or numbers out of range.
    """

    method: Method = "rk4"
    steps: int = 64
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.method not in (*STAGES, *ADAPTIVE):
            raise ValueError(f"method: a solver is one of {', '.join((*STAGES, *ADAPTIVE))}, got {self.method!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is a positive int, got {self.steps!r}")
        for name, value in {"rtol": self.rtol, "atol": self.atol}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is a number > 0, got {value!r}")

    @property
    def evaluations(self) -> int:
        """Of the field, for the fixed methods; for adaptive ones those of six steps, a common length."""
        return STAGES[self.method] * self.steps if self.method in STAGES else 36

    def refined(self) -> "Solver":
        """Twice as many steps, or tolerances a tenth."""
        return replace(self, steps=2 * self.steps, rtol=self.rtol / 10, atol=self.atol / 10)

    def solve(
        self,
        field: Callable[[Parts, float], Parts],
        state: Parts,
        start: float,
        end: float,
        *,
        adjoint: Sequence[Tensor] | None = None,
    ) -> Parts:
        """The state at ``end`` of what is ``state`` at ``start``.

        Args:
            field: ``f(state, t)``, one slope for each tensor of the state; t is between ``start`` and ``end``.
            state: tensors.
            start, end: times, in either order.
            adjoint: the parameters of the field, for gradients by the adjoint equation: memory independent of the
                number of steps, first derivatives alone. The steps are then torchdiffeq's, of the same order.

        Raises:
            MissingExtra: an adaptive method or ``adjoint`` without torchdiffeq.

        Example:
            >>> (x,) = Solver(steps=16).solve(lambda state, t: (-state[0],), (torch.ones(1),), 0.0, 1.0)
            >>> torch.allclose(x, torch.ones(1) * math.exp(-1), atol=1e-5)
            True
        """
        if adjoint is not None or self.method not in STAGES:
            return self._torchdiffeq(field, state, start, end, adjoint)
        h = (end - start) / self.steps
        for k in range(self.steps):
            t = start + k * h
            state = self._step(field, state, t, h, end if k == self.steps - 1 else t + h)
        return state

    def _step(self, field: Callable[[Parts, float], Parts], state: Parts, t: float, h: float, after: float) -> Parts:
        first = field(state, t)
        if self.method == "euler":
            return _moved(state, h, first)
        if self.method == "heun":
            second = field(_moved(state, h, first), after)
            return tuple(s + h / 2 * (a + b) for s, a, b in zip(state, first, second, strict=True))
        second = field(_moved(state, h / 2, first), t + h / 2)
        if self.method == "midpoint":
            return _moved(state, h, second)
        third = field(_moved(state, h / 2, second), t + h / 2)
        fourth = field(_moved(state, h, third), after)
        slopes = zip(state, first, second, third, fourth, strict=True)
        return tuple(s + h / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in slopes)

    def _torchdiffeq(
        self,
        field: Callable[[Parts, float], Parts],
        state: Parts,
        start: float,
        end: float,
        adjoint: Sequence[Tensor] | None,
    ) -> Parts:
        try:
            from torchdiffeq import odeint, odeint_adjoint
        except ImportError as error:
            what = "adjoint=True" if adjoint is not None else f"the solver {self.method!r}"
            raise MissingExtra(f'{what} needs torchdiffeq: pip install "boltzmix[ode]"') from error
        low, high = min(start, end), max(start, end)

        def right_side(t: Tensor, parts: Parts) -> Parts:
            return field(parts, min(max(float(t), low), high))

        grid = self.steps + 1 if self.method in STAGES else 2
        times = torch.linspace(start, end, grid, dtype=torch.float64, device=state[0].device)
        options: dict[str, Any] = {"method": "heun2" if self.method == "heun" else self.method}
        options |= {"rtol": self.rtol, "atol": self.atol}
        if adjoint is not None:
            options["adjoint_params"] = tuple(adjoint)
        found: Any = (odeint if adjoint is None else odeint_adjoint)(right_side, state, times, **options)
        return tuple(part[-1] for part in found)


def _moved(state: Parts, h: float, slopes: Parts) -> Parts:
    return tuple(s + h * slope for s, slope in zip(state, slopes, strict=True))
