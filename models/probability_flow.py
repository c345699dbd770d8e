r"""Ordinary differential equations with the density they carry.

Along :math:`dx/dt = f(x, t)` a density obeys :math:`d\log p(x_t)/dt = -\nabla\cdot f(x_t, t)` (Chen et al., 2018,
*Neural ordinary differential equations*), so that

.. math:: \log p(x_a; a) = \log p(x_b; b) + \int_a^b \nabla\cdot f(x_t, t)\, dt .
"""

from collections.abc import Callable

import torch
from torch import Tensor

from boltzmix.models.divergence import divergence as products
from boltzmix.models.divergence import unit_vectors
from boltzmix.models.ode import Parts, Solver

Field = Callable[[Tensor, float], Tensor]


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
        if probes is None:
            found = products(value, leaf, unit_vectors(leaf), keep).sum(0, keepdim=True)
        else:
            found = products(value, leaf, probes, keep)
    return (value, found) if keep else (value.detach(), found.detach())


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
        solver: see :class:`~boltzmix.models.ode.Solver`.
        divergence: False skips it; the integral is then zero.
        probes: as for :func:`value_and_divergence`.
        keep: whether the results are to be differentiated.

    Raises:
        MissingExtra: an adaptive method without torchdiffeq.

    Example:
        >>> import math
        >>> x, total = integrate(lambda x, t: -x, torch.ones(1, 2), 0.0, 1.0, Solver(steps=16))
        >>> torch.allclose(x, torch.ones(1, 2) * math.exp(-1), atol=1e-5), round(float(total), 5)
        (True, -2.0)
    """
    total = x.new_zeros(1 if probes is None else len(probes), len(x))

    def rate(state: Parts, t: float) -> Parts:
        if divergence:
            return value_and_divergence(field, state[0], t, probes, keep)
        with torch.set_grad_enabled(keep):
            return field(state[0], t), torch.zeros_like(total)

    x, total = solver.solve(rate, (x, total), start, end)
    return x, total
