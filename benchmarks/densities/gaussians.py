r"""Gaussians around 0: round, ill-conditioned along the axes, and turned.

======================  ===  =====================================================================================
name                      D  covariance
======================  ===  =====================================================================================
``standard``            100  I
``ill_conditioned``      50  diagonal, variances geometric from 1 to 10⁴
``rotated``              50  the same variances along seeded random directions, out of reach of a diagonal mass
``extreme``              50  diagonal, variances geometric from 1 to 10⁶
``dense_precision``      50  precision with eigenvalues geometric from 1 to 10⁴ along seeded random directions
======================  ===  =====================================================================================
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities.base import (
    Constants,
    Density,
    LogProb,
    gaussian_moments,
    normal_draws,
    zeros,
)


def standard(dim: int = 100) -> Density:
    """N(0, I)."""

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * (x * x).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        return lambda x: -0.5 * jnp.sum(x * x)

    def exact(n: int, generator: torch.Generator) -> Tensor:
        return normal_draws(n, dim, generator)

    log_z = 0.5 * dim * math.log(2 * math.pi)
    return Density(
        "standard", dim, log_prob, jax_log_prob, **gaussian_moments(zeros(dim), zeros(dim) + 1), exact=exact,
        log_z=log_z,
    )  # fmt: skip


def ill_conditioned(dim: int = 50) -> Density:
    """Independent coordinates with variances from 1 to 10⁴."""
    return _along_axes("ill_conditioned", np.geomspace(1.0, 1e4, dim))


def extreme(dim: int = 50) -> Density:
    """Independent coordinates with variances from 1 to 10⁶."""
    return _along_axes("extreme", np.geomspace(1.0, 1e6, dim))


def rotated(dim: int = 50) -> Density:
    """Variances from 1 to 10⁴ along random directions."""
    basis = np.linalg.qr(np.random.RandomState(1).randn(dim, dim))[0]
    return _turned("rotated", basis, np.geomspace(1.0, 1e4, dim))


def dense_precision(dim: int = 50) -> Density:
    """Precisions from 1 to 10⁴ along random directions."""
    basis = np.linalg.qr(np.random.RandomState(0).randn(dim, dim))[0]
    return _turned("dense_precision", basis, 1.0 / np.geomspace(1.0, 1e4, dim))


def _along_axes(name: str, variances: np.ndarray) -> Density:
    precision, dim = 1.0 / variances, len(variances)
    held, sd = Constants(precision), torch.tensor(np.sqrt(variances))

    def log_prob(x: Tensor) -> Tensor:
        (scale,) = held(x)
        return -0.5 * (x * (x * scale)).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            return -0.5 * jnp.sum(x * (x * precision.astype(x.dtype)))

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        return sd * normal_draws(n, dim, generator)

    log_z = 0.5 * float(np.log(2 * np.pi * variances).sum())
    return Density(name, dim, log_prob, jax_log_prob, **gaussian_moments(zeros(dim), sd**2), exact=exact, log_z=log_z)


def _turned(name: str, basis: np.ndarray, variances: np.ndarray) -> Density:
    """Covariance ``basis · variances · basis``ᵀ."""
    precision, dim = (basis / variances) @ basis.T, len(variances)
    precision = 0.5 * (precision + precision.T)
    held = Constants(precision)
    turn, marginal = torch.tensor(basis * np.sqrt(variances)), torch.tensor(((basis * variances) * basis).sum(1))

    def log_prob(x: Tensor) -> Tensor:
        (matrix,) = held(x)
        return -0.5 * (x * (x @ matrix)).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        return lambda x: -0.5 * jnp.sum(x * (x @ precision.astype(x.dtype)))

    def exact(n: int, generator: torch.Generator) -> Tensor:
        return normal_draws(n, dim, generator) @ turn.mT

    log_z = 0.5 * float(np.log(2 * np.pi * variances).sum())
    return Density(
        name, dim, log_prob, jax_log_prob, **gaussian_moments(zeros(dim), marginal), exact=exact, log_z=log_z
    )


DENSITIES = {
    "standard": standard,
    "ill_conditioned": ill_conditioned,
    "rotated": rotated,
    "extreme": extreme,
    "dense_precision": dense_precision,
}
