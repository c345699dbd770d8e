r"""Posteriors over a latent process, in whitened coordinates, on synthetic seeded data.

``stochastic_volatility`` (Kim, Shephard and Chib, 1998, *Stochastic volatility: likelihood inference and comparison
with ARCH models*; priors as in Inference Gym but for that of μ, a Cauchy law there, whose tails are too heavy for
moments to be compared), 100 returns, D = 103:

.. math::
    y_t \sim N(0, e^{h_t}), \quad h_t = \mu + u_t, \quad u_1 = \sigma z_1 / \sqrt{1 - \phi^2}, \quad
    u_t = \phi u_{t-1} + \sigma z_t, \quad z_t \sim N(0, 1),

:math:`(\phi + 1) / 2 \sim \mathrm{Beta}(20, 3/2)`, :math:`\mu \sim N(0, 5)`, :math:`\sigma \sim C^+(0, 2)`, over
:math:`(\operatorname{logit} \frac{\phi + 1}{2}, \mu, \log \sigma, z_1, \dots, z_T)`. The recursion is summed by
doubling: with :math:`u^{(0)} = \sigma z`, :math:`u^{(k+1)}_t = u^{(k)}_t + \phi^{2^k} u^{(k)}_{t - 2^k}` is
complete after :math:`\lceil \log_2 T \rceil` steps.

``cox_process``, the log-Gaussian Cox process (Møller, Syversveen and Waagepetersen, 1998), on a 16 × 16 grid of cells
of area a = 1/256, D = 256:

.. math:: y_i \sim \mathrm{Poisson}(a\, e^{f_i}), \qquad f = \mu + L z, \qquad z \sim N(0, I), \qquad
    (L L^T)_{ij} = s^2 e^{-|r_i - r_j| / \ell},

with s² = 1.91, μ = log 126 − s² / 2 as in Girolami and Calderhead (2011), *Riemann manifold Langevin and Hamiltonian
Monte Carlo methods*, and ℓ = 1/6, longer than theirs since cells are wider.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from boltzmix.benchmarks.densities.base import Constants, Density, LogProb
from boltzmix.benchmarks.densities.truths import reference_moments

# --------------------------------------------------------------------- volatility


def returns(count: int = 100) -> np.ndarray:
    """Returns in per cent of a seeded run of the model with φ = 0.95, μ = −0.2, σ = 0.25."""
    draw = np.random.RandomState(98)
    noise, level = draw.randn(count), np.zeros(count)
    level[0] = 0.25 * noise[0] / math.sqrt(1 - 0.95**2)
    for t in range(1, count):
        level[t] = 0.95 * level[t - 1] + 0.25 * noise[t]
    return np.exp(0.5 * (level - 0.2)) * draw.randn(count)


@cache
def stochastic_volatility() -> Density:
    """Volatilities of 100 returns, non-centred."""
    half_squares = 0.5 * returns() ** 2
    count = len(half_squares)
    held = Constants(half_squares)

    def log_prob(x: Tensor) -> Tensor:
        (half,) = held(x)
        logit, mean, log_scale, z = x[:, :1], x[:, 1], x[:, 2], x[:, 3:]
        log_up = logsigmoid(logit)
        log_down = log_up - logit  # of (1 + φ) / 2 and (1 − φ) / 2
        scale = log_scale.exp()
        first = z[:, :1] * (-0.5 * (log_up + log_down)).exp() * 0.5  # 1 − φ² is 4 times their product
        level = scale[:, None] * torch.cat([first, z[:, 1:]], 1)
        power, reach = 2 * log_up.exp() - 1, 1
        while reach < count:
            level = level + power * pad(level[:, :-reach], (reach, 0))
            power, reach = power * power, 2 * reach
        level = level + mean[:, None]
        likelihood = -(0.5 * level + half * (-level).exp()).sum(1)
        prior = (20.0 * log_up + 1.5 * log_down)[:, 0] - 0.02 * (mean * mean)  # Jacobians included
        prior = prior + log_scale - (0.25 * (scale * scale)).log1p()
        return likelihood + prior - 0.5 * (z * z).sum(1)

    def jax_log_prob() -> LogProb:
        import jax
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            half = half_squares.astype(x.dtype)
            logit, mean, log_scale, z = x[0], x[1], x[2], x[3:]
            log_up = jax.nn.log_sigmoid(logit)
            log_down = log_up - logit
            scale = jnp.exp(log_scale)
            first = z[:1] * jnp.exp(-0.5 * (log_up + log_down)) * 0.5
            level = scale * jnp.concatenate([first, z[1:]])
            power, reach = 2 * jnp.exp(log_up) - 1, 1
            while reach < count:
                level = level + power * jnp.pad(level[:-reach], (reach, 0))
                power, reach = power * power, 2 * reach
            level = level + mean
            likelihood = -jnp.sum(0.5 * level + half * jnp.exp(-level))
            prior = 20.0 * log_up + 1.5 * log_down - 0.02 * (mean * mean)
            prior = prior + log_scale - jnp.log1p(0.25 * (scale * scale))
            return likelihood + prior - 0.5 * jnp.sum(z * z)

        return one

    known = reference_moments("stochastic_volatility", count + 3)
    return Density("stochastic_volatility", count + 3, log_prob, jax_log_prob, **known)


# ------------------------------------------------------------------------ counts

SIDE, VARIANCE, LENGTH = 16, 1.91, 1 / 6
MEAN = math.log(126) - VARIANCE / 2


def covariance(side: int = SIDE) -> np.ndarray:
    """Of the log-intensities at the centres of cells of the unit square, row by row."""
    line = (np.arange(side) + 0.5) / side
    centres = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    distance = np.sqrt(((centres[:, None] - centres) ** 2).sum(-1))
    return VARIANCE * np.exp(-distance / LENGTH)


def counts(side: int = SIDE) -> np.ndarray:
    """Counts of a seeded run of the model."""
    draw = np.random.RandomState(98)
    level = MEAN + np.linalg.cholesky(covariance(side)) @ draw.randn(side * side)
    return draw.poisson(np.exp(level) / side**2).astype(np.float64)


@cache
def cox_process() -> Density:
    """Log-intensities of a Cox process, whitened."""
    factor, seen = np.linalg.cholesky(covariance()), counts()
    # log of the expected count, cell by cell, is offset + L z
    offset = MEAN - 2 * math.log(SIDE)
    held = Constants(factor.T, seen)

    def log_prob(x: Tensor) -> Tensor:
        turned, y = held(x)
        level = x @ turned + offset
        return (y * level - level.exp()).sum(1) - 0.5 * (x * x).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            level = factor.astype(x.dtype) @ x + offset
            return jnp.sum(seen.astype(x.dtype) * level - jnp.exp(level)) - 0.5 * jnp.sum(x * x)

        return one

    return Density("cox_process", SIDE * SIDE, log_prob, jax_log_prob, **reference_moments("cox_process", SIDE * SIDE))


DENSITIES = {"stochastic_volatility": stochastic_volatility, "cox_process": cox_process}
