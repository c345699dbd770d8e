r"""Curved densities whose moments have closed forms.

=====================  ==  ========================================================================================
name                    D  density
=====================  ==  ========================================================================================
``banana``              2  a ~ N(0, 10²), b | a ~ N(0.03 (a² − 100), 1) (Haario, Saksman and Tamminen, 1999)
``funnel``             10  v ~ N(0, 3²), x_i | v ~ N(0, e^v), centred (Neal, 2003, *Slice sampling*)
``funnel_noncentred``  10  the same over (v, z) with x = e^{v/2} z
``ring``                2  a narrow ring of radius R = 2: x² + y² ~ N(R², w²) with w = 0.2, a width of about w / 2R
=====================  ==  ========================================================================================

The fourth moment of a funnel's coordinate is :math:`3 e^{18}`: means of :math:`x_i^2` converge slowly for every
sampler, exact draws included.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.densities.base import (
    Density,
    LogProb,
    gaussian_moments,
    moments,
    normal_draws,
    zeros,
)

_NORMAL = math.log(2 * math.pi)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def banana() -> Density:
    """A bent Gaussian in the plane."""

    def log_prob(x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        square = a * a
        off = b - 0.03 * (square - 100.0)
        return -0.005 * square - 0.5 * (off * off)

    def jax_log_prob() -> LogProb:
        def one(x: Any) -> Any:
            a, b = x[0], x[1]
            square = a * a
            off = b - 0.03 * (square - 100.0)
            return -0.005 * square - 0.5 * (off * off)

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        z = normal_draws(n, 2, generator)
        return torch.stack([10 * z[:, 0], 3 * (z[:, 0] ** 2 - 1) + z[:, 1]], 1)

    # with c = 3 (z² − 1): E c² = 9 · 2 and E c⁴ = 81 · 60, so E b² = 18 + 1 and E b⁴ = 4860 + 6 · 18 + 3
    known = moments(zeros(2), _numbers(100.0, 19.0), _numbers(30_000.0, 4971.0))
    return Density("banana", 2, log_prob, jax_log_prob, **known, exact=exact, log_z=_NORMAL + math.log(10),
                   reference=(zeros(2), _numbers(10.0, 10.0)))  # fmt: skip


def funnel(dim: int = 10) -> Density:
    """Neal's funnel, centred; the reference is N(0, 3² I)."""
    constant = -math.log(3) - 0.5 * dim * _NORMAL

    def log_prob(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        spread = (rest * rest).sum(1) * (-v).exp()
        return constant - v * v / 18 - 0.5 * spread - 0.5 * (dim - 1) * v

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            v, rest = x[0], x[1:]
            spread = jnp.sum(rest * rest) * jnp.exp(-v)
            return constant - v * v / 18 - 0.5 * spread - 0.5 * (dim - 1) * v

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        z = normal_draws(n, dim, generator)
        v = 3 * z[:, :1]
        return torch.cat([v, (0.5 * v).exp() * z[:, 1:]], 1)

    rest = torch.ones(dim - 1, dtype=torch.float64)
    second = torch.cat([_numbers(9.0), math.exp(4.5) * rest])
    fourth = torch.cat([_numbers(243.0), 3 * math.exp(18.0) * rest])
    return Density("funnel", dim, log_prob, jax_log_prob, **moments(zeros(dim), second, fourth), exact=exact,
                   log_z=0.0, reference=(zeros(dim), zeros(dim) + 3))  # fmt: skip


def funnel_noncentred(dim: int = 10) -> Density:
    """The funnel over (v, z) with x = e^{v/2} z: a Gaussian."""
    constant = -math.log(3) - 0.5 * dim * _NORMAL

    def log_prob(x: Tensor) -> Tensor:
        v, z = x[:, 0], x[:, 1:]
        return constant - v * v / 18 - 0.5 * (z * z).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            v, z = x[0], x[1:]
            return constant - v * v / 18 - 0.5 * jnp.sum(z * z)

        return one

    variances = zeros(dim) + 1
    variances[0] = 9.0

    def exact(n: int, generator: torch.Generator) -> Tensor:
        return variances.sqrt() * normal_draws(n, dim, generator)

    return Density("funnel_noncentred", dim, log_prob, jax_log_prob, **gaussian_moments(zeros(dim), variances),
                   exact=exact, log_z=0.0)  # fmt: skip


def ring(radius: float = 2.0, width: float = 0.2) -> Density:
    """A narrow ring; x² + y² is normal but for the e^{−R⁴ / 2w²} beyond 0, and the angle uniform."""
    square, scale = radius**2, 0.5 / width**2

    def log_prob(x: Tensor) -> Tensor:
        off = (x * x).sum(1) - square
        return -scale * (off * off)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            off = jnp.sum(x * x) - square
            return -scale * (off * off)

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        r = (square + width * normal_draws(n, 1, generator)).sqrt()
        angle = 2 * math.pi * torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return r * torch.cat([angle.cos(), angle.sin()], 1)

    # E cos² = 1/2 and E cos⁴ = 3/8
    both = zeros(2) + 1
    known = moments(zeros(2), square / 2 * both, 3 / 8 * (square**2 + width**2) * both)
    log_z = math.log(math.pi * width) + 0.5 * _NORMAL
    return Density("ring", 2, log_prob, jax_log_prob, **known, exact=exact, log_z=log_z)


DENSITIES = {"banana": banana, "funnel": funnel, "funnel_noncentred": funnel_noncentred, "ring": ring}
