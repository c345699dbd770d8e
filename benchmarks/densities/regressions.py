r"""Bayesian logistic regressions on synthetic data.

``logistic_regression``, D = 25: 1000 seeded rows, first column 1, coefficients :math:`\sim N(0, 1)`.

``sparse_logistic_regression``, D = 51: coefficients :math:`\beta_j = w_j \lambda_j \tau` with :math:`w_j \sim N(0, 1)`
and :math:`\lambda_j, \tau \sim \mathrm{Gamma}(1/2, 1/2)` (shape, rate), over :math:`(w, \log\lambda, \log\tau)`, the
model of Inference Gym's sparse regression on the German credit data (Sountsov, Radul et al., 2020, *Inference Gym*).
The data are **not** the German credit data but have their shape: 1000 rows, 24 standardised columns and a constant one,
of which 8 matter.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from boltzmix.benchmarks.densities.base import Constants, Density, LogProb
from boltzmix.benchmarks.densities.truths import reference_moments


def dense_data(rows: int = 1000, columns: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(rows, columns)`` and labels ``(rows,)`` of 0 and 1 that numpy's RandomState(0) draws."""
    draw = np.random.RandomState(0)
    features = draw.randn(rows, columns)
    features[:, 0] = 1.0
    probability = 1 / (1 + np.exp(-features @ (0.5 * draw.randn(columns))))
    return features, (draw.rand(rows) < probability).astype(np.float64)


@cache
def logistic_regression() -> Density:
    """Coefficients of a logistic regression, dense."""
    features, labels = dense_data()
    columns = features.shape[1]
    held = Constants(features.T, labels)

    def log_prob(x: Tensor) -> Tensor:
        turned, y = held(x)
        logits = x @ turned
        return (logits * y - softplus(logits)).sum(1) - 0.5 * (x * x).sum(1)

    def jax_log_prob() -> LogProb:
        import jax
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            logits = features.astype(x.dtype) @ x
            return jnp.sum(logits * labels.astype(x.dtype) - jax.nn.softplus(logits)) - 0.5 * jnp.sum(x * x)

        return one

    known = reference_moments("logistic_regression", columns)
    return Density("logistic_regression", columns, log_prob, jax_log_prob, **known)


def importance_moments(proposals: int, seed: int = 7) -> tuple[Any, ...]:
    r"""Moments of the dense regression by importance sampling, antithetic.

    Draws are from the Gaussian at the mode with 1.1 times the covariance there. The error of a weighted mean is
    :math:`\sqrt{\sum_k w_k^2 (f_k - \bar f)^2}`, with one :math:`w_k f_k` for each antithetic pair.

    Returns:
        :math:`E\,x_i, E\,x_i^2, E\,x_i^4`, the standard errors of the first two, ``(D,)`` each, and numbers.
    """
    features = torch.tensor(dense_data()[0])
    dim = features.shape[1]
    target = logistic_regression()
    mode, eye = torch.zeros(1, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    curvature = eye
    for _ in range(50):
        with torch.enable_grad():
            at = mode.clone().requires_grad_()
            (slope,) = torch.autograd.grad(target.log_prob(at).sum(), at)
        p = (features @ mode[0]).sigmoid()
        curvature = eye + features.mT @ ((p * (1 - p))[:, None] * features)
        mode = mode + torch.linalg.solve(curvature, slope[0])
    factor = math.sqrt(1.1) * torch.linalg.cholesky(torch.linalg.inv(curvature))
    generator = torch.Generator().manual_seed(seed)
    weights, rows = [], []
    for _ in range(proposals // 4096):
        normal = torch.randn(2048, dim, generator=generator, dtype=torch.float64)
        pair = torch.stack([normal, -normal])
        x = mode + pair @ factor.mT
        rows.append(x)
        weights.append(target.log_prob(x.reshape(-1, dim)).reshape(2, -1) + 0.5 * (pair * pair).sum(2))
    x, log_weight = torch.cat(rows, 1), torch.cat(weights, 1)  # (2, n, D), (2, n)
    weight = log_weight.flatten().softmax(0).reshape(log_weight.shape)

    def of(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weight[..., None] * values).sum((0, 1))
        return mean, (weight[..., None] * (values - mean)).sum(0).square().sum(0).sqrt()

    (first, first_error), (second, second_error), (fourth, _) = (of(x**power) for power in (1, 2, 4))
    numbers = {"proposals": log_weight.numel(), "weights_ess": float(1 / (weight**2).sum()), "seed": seed}
    return first, second, fourth, first_error, second_error, numbers


# ------------------------------------------------------------------------- sparse


def sparse_data(rows: int = 1000, columns: int = 25, relevant: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Correlated standardised features, the last column 1, and labels of which the first few columns decide."""
    draw = np.random.RandomState(24)
    common = draw.randn(rows, 4) @ draw.randn(4, columns - 1)
    features = draw.randn(rows, columns - 1) + 0.4 * common
    features = (features - features.mean(0)) / features.std(0)
    features = np.concatenate([features, np.ones((rows, 1))], 1)
    coefficients = np.zeros(columns)
    coefficients[:relevant] = draw.choice([-1.0, 1.0], relevant) * np.linspace(0.8, 0.2, relevant)
    coefficients[-1] = -1.0
    probability = 1 / (1 + np.exp(-features @ coefficients))
    return features, (draw.rand(rows) < probability).astype(np.float64)


@cache
def sparse_logistic_regression() -> Density:
    """Coefficients of a logistic regression with global and local scales."""
    features, labels = sparse_data()
    count = features.shape[1]
    held = Constants(features.T, labels)

    def log_prob(x: Tensor) -> Tensor:
        turned, y = held(x)
        weights, levels = x[:, :count], x[:, count:]
        scales = levels.exp()
        logits = (weights * scales[:, :count] * scales[:, count:]) @ turned
        prior = 0.5 * (levels - scales).sum(1) - 0.5 * (weights * weights).sum(1)  # Jacobian included
        return prior + (logits * y - softplus(logits)).sum(1)

    def jax_log_prob() -> LogProb:
        import jax
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            weights, levels = x[:count], x[count:]
            scales = jnp.exp(levels)
            logits = features.astype(x.dtype) @ (weights * scales[:count] * scales[count:])
            prior = 0.5 * jnp.sum(levels - scales) - 0.5 * jnp.sum(weights * weights)
            return prior + jnp.sum(logits * labels.astype(x.dtype) - jax.nn.softplus(logits))

        return one

    known = reference_moments("sparse_logistic_regression", 2 * count + 1)
    return Density("sparse_logistic_regression", 2 * count + 1, log_prob, jax_log_prob, **known)


DENSITIES = {
    "logistic_regression": logistic_regression,
    "sparse_logistic_regression": sparse_logistic_regression,
}
