r"""Ordinary differential equations with the density they carry.

Along :math:`dx/dt = f(x, t)` a density obeys :math:`d\log p(x_t)/dt = -\nabla\cdot f(x_t, t)` (Chen et al., 2018,
*Neural ordinary differential equations*), so that

.. math:: \log p(x_a; a) = \log p(x_b; b) + \int_a^b \nabla\cdot f(x_t, t)\, dt .

The divergence is exact, one vector–Jacobian product per coordinate, or Hutchinson's estimate
:math:`E\, e^\top \nabla f\, e` over random signs e (Grathwohl et al., 2019, *FFJORD*). Fixed steps of Runge–Kutta are
our own; ``"dopri5"``, with steps adapted to tolerances, is torchdiffeq's (extra ``ode``). It adapts to the whole batch,
so that rows then depend on each other within the tolerance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra

Field = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Solver:
    """How an equation is integrated.

    Args:
        method: ``"rk4"`` (four evaluations a step), ``"heun"`` (two), or ``"dopri5"`` (adaptive).
        steps: of the fixed methods, equal in the field's time.
        rtol, atol: tolerances of ``"dopri5"``.
    """

    method: Literal["rk4", "heun", "dopri5"] = "rk4"
    steps: int = 64
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.method not in ("rk4", "heun", "dopri5"):
            raise ValueError(f"method is 'rk4', 'heun' or 'dopri5', got {self.method!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is a positive int, got {self.steps!r}")
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(f"rtol and atol are positive, got {self.rtol!r} and {self.atol!r}")

    @property
    def evaluations(self) -> int:
        """Of the field, for the fixed methods; a guess for the adaptive one."""
        return {"rk4": 4, "heun": 2, "dopri5": 1}[self.method] * self.steps


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Probes for Hutchinson's estimate: −1 or 1, each with probability ½."""
    bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return 2 * bits.to(like.dtype) - 1


def value_and_divergence(field: Field, x: Tensor, t: float, probes: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    """f(x, t), shaped like x, and its divergence ``(K, N)``.

    Args:
        field: differentiable in x.
        x: ``(N, *event)``.
        t: the time.
        probes: ``(K, 1 or N, *event)`` signs for K estimates; None for the exact trace, K = 1.
        keep: whether the results are to be differentiated themselves.
    """
    with torch.enable_grad():
        leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = field(leaf, t)
        if not value.requires_grad:  # a constant field
            return value, x.new_zeros(1 if probes is None else len(probes), len(x))
        columns = []
        if probes is None:
            flat, total = value.flatten(1), torch.zeros_like(x[:, :0].flatten(1).sum(1))
            for i in range(flat.shape[1]):
                (slope,) = torch.autograd.grad(flat[:, i].sum(), leaf, create_graph=keep, retain_graph=True)
                total = total + slope.flatten(1)[:, i]
            columns.append(total)
        else:
            for e in probes:
                (slope,) = torch.autograd.grad((value * e).sum(), leaf, create_graph=keep, retain_graph=True)
                columns.append((slope * e).flatten(1).sum(1))
        divergence = torch.stack(columns)
    return (value, divergence) if keep else (value.detach(), divergence.detach())


def integrate(
    field: Field,
    x: Tensor,
    start: float,
    end: float,
    solver: Solver,
    *,
    divergence: bool = True,
    probes: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """Where x at ``start`` is carried by ``end``, and the integral of the divergence on its way, ``(K, N)``.

    Args:
        field: ``f(x, t)`` for t between ``start`` and ``end``.
        x: ``(N, *event)``.
        start, end: times, in either order.
        solver: see :class:`Solver`.
        divergence: False skips it; the integral is then zero.
        probes: as for :func:`value_and_divergence`.
        keep: whether the results are to be differentiated.

    Raises:
        MissingExtra: ``"dopri5"`` without torchdiffeq.

    Example:
        >>> x, total = integrate(lambda x, t: -x, torch.ones(1, 2), 0.0, 1.0, Solver(steps=16))
        >>> torch.allclose(x, torch.ones(1, 2) * math.exp(-1), atol=1e-5), round(float(total), 5)
        (True, -2.0)
    """

    def rate(at: Tensor, t: float) -> tuple[Tensor, Tensor]:
        if divergence:
            return value_and_divergence(field, at, t, probes, keep)
        with torch.set_grad_enabled(keep):
            return field(at, t), at.new_zeros(1, len(at))

    total = x.new_zeros(1 if probes is None else len(probes), len(x))
    if solver.method == "dopri5":
        return _adaptive(rate, x, total, start, end, solver)
    h = (end - start) / solver.steps
    for k in range(solver.steps):
        t = start + k * h
        after = end if k == solver.steps - 1 else t + h
        a, da = rate(x, t)
        if solver.method == "heun":
            b, db = rate(x + h * a, after)
            x, total = x + h / 2 * (a + b), total + h / 2 * (da + db)
            continue
        b, db = rate(x + h / 2 * a, t + h / 2)
        c, dc = rate(x + h / 2 * b, t + h / 2)
        d, dd = rate(x + h * c, after)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
        total = total + h / 6 * (da + 2 * db + 2 * dc + dd)
    return x, total


def _adaptive(
    rate: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    x: Tensor,
    total: Tensor,
    start: float,
    end: float,
    solver: Solver,
) -> tuple[Tensor, Tensor]:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise MissingExtra('method="dopri5" needs torchdiffeq: pip install "boltzmix[ode]"') from error
    low, high = min(start, end), max(start, end)

    def right_side(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return rate(state[0], min(max(float(t), low), high))

    times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    found = odeint(right_side, (x, total), times, rtol=solver.rtol, atol=solver.atol, method="dopri5")
    return found[0][-1], found[1][-1]  # pyright: ignore[reportIndexIssue, reportReturnType]
