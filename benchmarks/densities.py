r"""Posteriors on which samplers are compared, each written twice, for torch and for jax, with its true moments.

========================  ===  ===================================================================================
name                       D   log-density, up to a constant
========================  ===  ===================================================================================
``eight_schools``          10  non-centred: :math:`\mu \sim N(0, 5), \tau \sim C^+(0, 5), \theta_j \sim N(0, 1)`,
                               :math:`y_j \sim N(\mu + \tau \theta_j, s_j)`; over :math:`(\mu, \log \tau, \theta)`
``logistic_regression``    25  1000 seeded rows, first column 1, coefficients :math:`\sim N(0, 1)`
``ill_conditioned``        50  Gaussian with variances geometric from 1 to 10⁴, along the axes
``rotated``                50  the same, turned by a seeded rotation, out of reach of a diagonal mass
========================  ===  ===================================================================================

Truths do not come from a sampler under test: eight schools is a sum over a grid of :math:`(\mu, \log \tau)`, given
which the :math:`\theta_j` are Gaussian; the regression is importance sampled from its Laplace approximation.
"""

# jax and what is built on it are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.compose.callables import term
from boltzmix.compose.term import Term

LogProb = Callable[[Any], Any]

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
_PROPOSALS = 1 << 17


@dataclass(frozen=True)
class Density:
    """A target in both languages and what is known of it.

    Attributes:
        name: one of :data:`DENSITIES`.
        dim: D.
        log_prob: of rows ``(N, D)`` in torch, ``(N,)``.
        jax_log_prob: makes the same function of one point ``(D,)`` in jax.
        mean: true means, ``(D,)`` in float64.
        variance: true variances, ``(D,)`` in float64.
    """

    name: str
    dim: int
    log_prob: LogProb
    jax_log_prob: Callable[[], LogProb]
    mean: Tensor
    variance: Tensor

    def term(self) -> Term:
        """The target as a term over float64 states."""
        return term(self.log_prob, kind="log_prob", event_shape=(self.dim,), name=self.name)

    def starts(self, chains: int, seed: int) -> Tensor:
        """The same starts for every sampler: uniform in (−2, 2), ``(chains, D)`` in float64."""
        generator = torch.Generator().manual_seed(90_000 + seed)
        return 4 * torch.rand(chains, self.dim, generator=generator, dtype=torch.float64) - 2


def density(name: str) -> Density:
    """One of the targets by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DENSITIES:
        raise ValueError(f"no density is called {name!r}; there are {', '.join(DENSITIES)}")
    return DENSITIES[name]()


@cache
def eight_schools() -> Density:
    """Eight schools (Rubin, 1981), non-centred, as posteriordb's ``eight_schools_noncentered``."""
    y, s = torch.tensor(EFFECTS), torch.tensor(ERRORS)

    def log_prob(x: Tensor) -> Tensor:
        mu, log_tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        tau = log_tau.exp()
        residual = (y - mu[:, None] - tau[:, None] * theta) / s
        prior = -0.5 * (mu / 5) ** 2 - ((tau / 5) ** 2).log1p() + log_tau  # the last is the Jacobian
        return prior - 0.5 * (theta * theta).sum(1) - 0.5 * (residual * residual).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            mu, log_tau, theta = x[0], x[1], x[2:]
            tau = jnp.exp(log_tau)
            residual = (EFFECTS - mu - tau * theta) / ERRORS
            prior = -0.5 * (mu / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + log_tau
            return prior - 0.5 * jnp.sum(theta**2) - 0.5 * jnp.sum(residual**2)

        return one

    mean, variance = _eight_schools_moments(y, s)
    return Density("eight_schools", 10, log_prob, jax_log_prob, mean, variance)


def _eight_schools_moments(y: Tensor, s: Tensor, points: int = 801) -> tuple[Tensor, Tensor]:
    """Sums over a grid of (μ, log τ); given both, θ_j is N(m_j, v_j) with v_j = 1 / (1 + τ² / s_j²)."""
    mu = torch.linspace(-40, 40, points, dtype=torch.float64)
    log_tau = torch.linspace(-18, 9, points, dtype=torch.float64)
    grid, level = torch.meshgrid(mu, log_tau, indexing="ij")
    tau = level.exp()
    log_weight = -0.5 * (grid / 5) ** 2 - ((tau / 5) ** 2).log1p() + level
    first, second = [], []
    for y_j, s_j in zip(y, s, strict=True):
        total = s_j**2 + tau**2
        log_weight = log_weight - 0.5 * (y_j - grid) ** 2 / total - 0.5 * total.log()
        centre = tau * (y_j - grid) / total
        first.append(centre)
        second.append(centre**2 + s_j**2 / total)
    weight = (log_weight - log_weight.max()).exp()
    weight = weight / weight.sum()
    mean = torch.stack([(weight * t).sum() for t in (grid, level, *first)])
    square = torch.stack([(weight * t).sum() for t in (grid**2, level**2, *second)])
    return mean, square - mean**2


@cache
def logistic_regression(rows: int = 1000, columns: int = 25) -> Density:
    """Bayesian logistic regression on synthetic data that numpy's RandomState(0) draws."""
    draw = np.random.RandomState(0)
    features = draw.randn(rows, columns)
    features[:, 0] = 1.0
    probability = 1 / (1 + np.exp(-features @ (0.5 * draw.randn(columns))))
    labels = (draw.rand(rows) < probability).astype(np.float64)
    x_data, y_data = torch.tensor(features), torch.tensor(labels)

    def log_prob(x: Tensor) -> Tensor:
        logits = x @ x_data.mT
        return (logits * y_data - torch.nn.functional.softplus(logits)).sum(1) - 0.5 * (x * x).sum(1)

    def jax_log_prob() -> LogProb:
        import jax
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            logits = features @ x
            return jnp.sum(logits * labels - jax.nn.softplus(logits)) - 0.5 * jnp.sum(x**2)

        return one

    mean, variance = _laplace_moments(log_prob, x_data, columns)
    return Density("logistic_regression", columns, log_prob, jax_log_prob, mean, variance)


def _laplace_moments(log_prob: LogProb, features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Moments by importance sampling, antithetic, from the Gaussian at the mode with 1.1 times its covariance."""
    mode = torch.zeros(1, dim, dtype=torch.float64)
    curvature = torch.eye(dim, dtype=torch.float64)
    for _ in range(50):
        with torch.enable_grad():
            at = mode.clone().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(at).sum(), at)
        p = (features @ mode[0]).sigmoid()
        curvature = torch.eye(dim, dtype=torch.float64) + features.mT @ ((p * (1 - p))[:, None] * features)
        mode = mode + torch.linalg.solve(curvature, slope[0])
    factor = math.sqrt(1.1) * torch.linalg.cholesky(torch.linalg.inv(curvature))
    generator = torch.Generator().manual_seed(7)
    weights, rows = [], []
    for _ in range(_PROPOSALS // 4096):
        normal = torch.randn(2048, dim, generator=generator, dtype=torch.float64)
        normal = torch.cat([normal, -normal])
        x = mode + normal @ factor.mT
        rows.append(x)
        weights.append(log_prob(x) + 0.5 * (normal * normal).sum(1))
    x, weight = torch.cat(rows), torch.cat(weights).softmax(0)
    mean = weight @ x
    return mean, weight @ (x - mean) ** 2


def ill_conditioned(dim: int = 50) -> Density:
    """Independent coordinates with variances from 1 to 10⁴."""
    return _gaussian("ill_conditioned", dim, None)


def rotated(dim: int = 50) -> Density:
    """The same variances along random directions."""
    draw = np.random.RandomState(1)
    return _gaussian("rotated", dim, np.linalg.qr(draw.randn(dim, dim))[0])


def _gaussian(name: str, dim: int, basis: np.ndarray | None) -> Density:
    variances = np.geomspace(1.0, 1e4, dim)
    if basis is None:
        precision, marginal = 1.0 / variances, variances
    else:
        precision, marginal = (basis / variances) @ basis.T, ((basis * variances) * basis).sum(1)
    matrix = torch.tensor(precision)

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * (x * (x * matrix if basis is None else x @ matrix)).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        return lambda x: -0.5 * jnp.sum(x * (x * precision if basis is None else precision @ x))

    zero = torch.zeros(dim, dtype=torch.float64)
    return Density(name, dim, log_prob, jax_log_prob, zero, torch.tensor(marginal))


DENSITIES: dict[str, Callable[[], Density]] = {
    "eight_schools": eight_schools,
    "logistic_regression": logistic_regression,
    "ill_conditioned": ill_conditioned,
    "rotated": rotated,
}
