r"""Exact products, powers and quotients of Gaussians and mixtures: the truth that samplers are tested on.

.. math::
    \prod_i N(x; m_i, C_i)^{w_i} = Z\, N(x; m, C), \qquad
    C^{-1} = \sum_i w_i C_i^{-1}, \qquad C^{-1} m = \sum_i w_i C_i^{-1} m_i
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.compose.errors import NotNormalizable
from boltzmix.compose.gaussian import Gaussian, GaussianMixture

_LOG_2PI = math.log(2 * math.pi)


def gaussian_product(factors: Sequence[tuple[Gaussian, float]]) -> tuple[Gaussian, float]:
    """The Gaussian ∝ ∏ p_i^{w_i} and log ∫ ∏ p_i^{w_i}; negative exponents are quotients.

    Raises:
        NotNormalizable: the precisions do not add up to a positive definite matrix.
    """
    parameters = [(p.mean, p.covariance, w) for p, w in factors]
    mean, covariance, log_z = _combine(parameters)
    shape = factors[0][0].event_shape
    return Gaussian(mean.reshape(shape), covariance), float(log_z)


def mixture_product(factors: Sequence[GaussianMixture]) -> tuple[GaussianMixture, float]:
    """The product of mixtures, a mixture over all combinations of components, and its log integral."""
    means, covariances, logs = [], [], []
    for combination in itertools.product(*(range(len(f.weights)) for f in factors)):
        parts = [(f.means[k], f.covariances[k], 1.0) for f, k in zip(factors, combination, strict=True)]
        mean, covariance, log_z = _combine(parts)
        means.append(mean)
        covariances.append(covariance)
        logs.append(log_z + sum(f.weights[k].log() for f, k in zip(factors, combination, strict=True)))
    log_weights = torch.stack(logs)
    total = log_weights.logsumexp(0)
    weights = (log_weights - total).exp()
    seen = weights > 0  # combinations whose weight underflows are no components
    product = GaussianMixture(torch.stack(means)[seen], torch.stack(covariances)[seen], weights[seen])
    return product, float(total)


def _combine(parts: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, Tensor]:
    size = len(parts[0][0])
    inverses = [torch.linalg.inv(c) for _, c, _ in parts]
    precision = sum(w * inverse for (_, _, w), inverse in zip(parts, inverses, strict=True))
    assert isinstance(precision, Tensor)
    precision = 0.5 * (precision + precision.mT)
    smallest = float(torch.linalg.eigvalsh(precision).min())
    if smallest <= 0:
        raise NotNormalizable(f"the precisions add up to a matrix with eigenvalue {smallest:g}: no finite integral")
    shift = sum(w * (inverse @ m) for (m, _, w), inverse in zip(parts, inverses, strict=True))
    assert isinstance(shift, Tensor)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ shift
    log_z = 0.5 * (size * _LOG_2PI - torch.logdet(precision) + mean @ shift)
    for (m, c, w), inverse in zip(parts, inverses, strict=True):
        log_z = log_z - 0.5 * w * (size * _LOG_2PI + torch.logdet(c) + m @ (inverse @ m))
    return mean, 0.5 * (covariance + covariance.mT), log_z
