r"""Log-densities of noised models along a reverse trajectory, from their scores alone.

Noised densities obey the heat equation, :math:`\partial_\sigma \log q = \sigma (\nabla \cdot s + |s|^2)`. Along a
path that goes down the levels with any drift and the noise of the reverse SDE, :math:`dx = u\, d\tau + \sqrt{2\sigma}\,
dW` with :math:`d\tau = -d\sigma`, Itô's formula adds :math:`\langle s, dx \rangle + \sigma \nabla \cdot s\, d\tau`, and
the divergence cancels:

.. math:: d \log q(x_\tau; \sigma_\tau) = \langle s, dx \rangle - \sigma |s|^2\, d\tau .

**In finite steps.** A reverse transition and the forward one are two ways to write one joint density,
:math:`q(x'; \sigma')\, N(x; x', v) = q(x; \sigma)\, r(x' | x)` with :math:`v = \sigma^2 - \sigma'^2`. The reverse
kernel has the mean x + v s exactly (Tweedie), and with variance v c for the rest of it

.. math::
    \log q(x'; \sigma') - \log q(x; \sigma) = \frac{|\Delta|^2}{2 v} - \frac{|\Delta - v s|^2}{2 v c}
    - \frac{D}{2} \log c, \qquad \Delta = x' - x .

c = 1 (Euler and Maruyama's step) is Itô's formula with v/2 in place of σ dτ; c = σ'²/σ² (DDPM's) is exact for a point
mass, c = (C + σ'²)/(C + σ²) for N(m, C). The error of a step is :math:`\tfrac12 (y^\top \nabla s\, y - v \nabla \cdot
s)` with y = Δ − v s, which is fair for noise of variance v: the sum is of the order ½ in the step size. But the noise
must be complete: what is taken out of y in a direction e leaves the bias :math:`-\tfrac{v}{2}\, e^\top \nabla s\, e`.

Source: M. Skreta, L. Atanackovic, J. Bose, A. Tong, K. Neklyudov (2025), The superposition of diffusion models using
the Itô density estimator.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ItoDensity:
    r"""log q_i(x_σ; σ) of K members along the trajectories of N particles.

    Where the start is wrong by a constant that all members share, so are the values; differences are right.

    Args:
        log_q: ``(K, N)`` at the start, of any floating dtype; kept in float64.

    Example:
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> p, x, move = Gaussian(torch.zeros(1), 1.0), torch.ones(1, 1), torch.full((1, 1), -0.4)
        >>> level = torch.tensor(2.0)  # from σ = 2 to σ' = 1
        >>> density = ItoDensity(-p.energy(x, level)[None])
        >>> _ = density.advance([p.score(x, level)], move, variance=3.0, ratio=2 / 5)
        >>> bool((density.log_q[0] + p.energy(x + move, torch.tensor(1.0))).abs() < 1e-6)
        True
    """

    def __init__(self, log_q: Tensor) -> None:
        """Hold the start."""
        if log_q.ndim != 2 or not log_q.is_floating_point():
            raise ValueError(
                f"log_q is (members, particles) in floating point, got {tuple(log_q.shape)} of {log_q.dtype}"
            )
        self.log_q = log_q.double()

    def advance(self, scores: Sequence[Tensor] | Tensor, move: Tensor, variance: float, ratio: float = 1.0) -> Tensor:
        """Follow one step; the increments ``(K, N)``.

        Args:
            scores: of every member at the step's beginning, K of ``(N, D)``.
            move: Δ = x' − x, ``(N, D)``; best as it was computed, since the difference of two states rounds.
            variance: v = σ² − σ'².
            ratio: c, the variance of the step's noise in units of v.
        """
        if not variance > 0 or not ratio > 0:
            raise ValueError(f"a step down has variance > 0 and ratio > 0, got {variance} and {ratio}")
        stacked = torch.stack(list(scores)) if not isinstance(scores, Tensor) else scores
        mean = stacked.mean(0)
        rest = move - variance * mean
        common = _dot(move, move) / (2 * variance) - _dot(rest, rest) / (2 * variance * ratio)
        common = common - 0.5 * move.shape[1] * math.log(ratio)
        # members differ by little at large σ: their differences are computed from those of the scores
        increments = common + differences(stacked - mean, rest, variance, ratio)
        self.log_q = self.log_q + increments
        return increments

    @property
    def relative(self) -> Tensor:
        """log q_i less the mean over members, ``(K, N)``."""
        return self.log_q - self.log_q.mean(0)


def differences(deviations: Tensor, rest: Tensor, variance: float, ratio: float) -> Tensor:
    """Increments ``(K, N)`` of members with scores s̄ + d_i, up to a common term: (⟨d_i, y⟩ − v |d_i|²/2) / c.

    Args:
        deviations: d_i, ``(K, N, D)``.
        rest: y = Δ − v s̄, ``(N, D)``.
        variance: v.
        ratio: c.
    """
    return (_dot(deviations, rest) - 0.5 * variance * _dot(deviations, deviations)) / ratio


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, dtype=torch.float64)
