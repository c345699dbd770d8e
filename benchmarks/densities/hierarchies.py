r"""Hierarchical posteriors in non-centred coordinates.

``eight_schools`` (Rubin, 1981), D = 10, over :math:`(\mu, \log \tau, \theta)`:
:math:`\mu \sim N(0, 5), \tau \sim C^+(0, 5), \theta_j \sim N(0, 1), y_j \sim N(\mu + \tau \theta_j, s_j)`, as
posteriordb's ``eight_schools_noncentered``. Its truth is a sum over a grid of :math:`(\mu, \log \tau)`, given which the
:math:`\theta_j` are Gaussian.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities.base import Constants, Density, LogProb, moments

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@cache
def eight_schools() -> Density:
    """Eight schools, non-centred."""
    held = Constants(EFFECTS, 1 / ERRORS)

    def log_prob(x: Tensor) -> Tensor:
        y, scale = held(x)
        mu, log_tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        tau = log_tau.exp()
        residual = (y - mu[:, None] - tau[:, None] * theta) * scale
        prior = -0.02 * (mu * mu) - (0.04 * (tau * tau)).log1p() + log_tau  # the last is the Jacobian
        return prior - 0.5 * (theta * theta).sum(1) - 0.5 * (residual * residual).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            y, scale = EFFECTS.astype(x.dtype), (1 / ERRORS).astype(x.dtype)
            mu, log_tau, theta = x[0], x[1], x[2:]
            tau = jnp.exp(log_tau)
            residual = (y - mu - tau * theta) * scale
            prior = -0.02 * (mu * mu) - jnp.log1p(0.04 * (tau * tau)) + log_tau
            return prior - 0.5 * jnp.sum(theta * theta) - 0.5 * jnp.sum(residual * residual)

        return one

    first, second, fourth = eight_schools_moments()
    return Density("eight_schools", 10, log_prob, jax_log_prob, **moments(first, second, fourth), truth="quadrature")


def eight_schools_moments(points: int = 801) -> tuple[Tensor, Tensor, Tensor]:
    r""":math:`E\,x_i, E\,x_i^2, E\,x_i^4` by sums over a grid of (μ, log τ).

    Given both, θ_j is N(m_j, v_j) with v_j = 1 / (1 + τ² / s_j²).
    """
    mu = torch.linspace(-40, 40, points, dtype=torch.float64)
    log_tau = torch.linspace(-18, 9, points, dtype=torch.float64)
    grid, level = torch.meshgrid(mu, log_tau, indexing="ij")
    tau = level.exp()
    log_weight = -0.5 * (grid / 5) ** 2 - ((tau / 5) ** 2).log1p() + level
    given = [(grid, 0.0), (level, 0.0)]
    for y_j, s_j in zip(EFFECTS, ERRORS, strict=True):
        total = s_j**2 + tau**2
        log_weight = log_weight - 0.5 * (y_j - grid) ** 2 / total - 0.5 * total.log()
        given.append((tau * (y_j - grid) / total, s_j**2 / total))
    weight = (log_weight - log_weight.max()).exp()
    weight = weight / weight.sum()
    first = torch.stack([(weight * m).sum() for m, _ in given])
    second = torch.stack([(weight * (m**2 + v)).sum() for m, v in given])
    fourth = torch.stack([(weight * (m**4 + 6 * m**2 * v + 3 * v**2)).sum() for m, v in given])
    return first, second, fourth


DENSITIES = {"eight_schools": eight_schools}
