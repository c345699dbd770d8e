r"""Log-densities and divergences of diagonal Gaussians, as functions of their parameters.

.. math::
    \log N(x; \mu, s^2) &= -\sum_i \tfrac12 \Big(\frac{x_i - \mu_i}{s_i}\Big)^2 + \log s_i + \tfrac12 \log 2\pi, \\
    KL(N(\mu, s^2) \,\|\, N(m, t^2)) &= \sum_i \tfrac12 \Big(\frac{s_i^2 + (\mu_i - m_i)^2}{t_i^2} - 1\Big)
    - \log\frac{s_i}{t_i}.
"""

import math
from typing import Any

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over the event, ``(N, *event)`` to ``(N,)``."""
    return -0.5 * (z.flatten(1).square().sum(1) + math.prod(z.shape[1:]) * _LOG_2PI)


def log_normal(x: Tensor, mean: Tensor | float, log_std: Tensor | float) -> Tensor:
    """log N(x; mean, e^{2 log_std}) summed over the event, ``(rows,)``."""
    spread = torch.as_tensor(log_std, dtype=x.dtype, device=x.device)
    whitened = (x - mean) * (-spread).exp()
    return -(0.5 * whitened.square() + spread + 0.5 * _LOG_2PI).flatten(1).sum(1)


def kl_normal(mean: Tensor, log_std: Tensor, base_mean: Tensor | float = 0.0, base_log_std: Any = 0.0) -> Tensor:
    """KL(N(mean, e^{2 log_std}) ‖ N(base_mean, e^{2 base_log_std})) summed over the event, ``(rows,)``."""
    base = torch.as_tensor(base_log_std, dtype=mean.dtype, device=mean.device)
    gap = log_std - base
    shift = (mean - base_mean) * (-base).exp()
    return (0.5 * ((2 * gap).exp() + shift.square() - 1) - gap).flatten(1).sum(1)
