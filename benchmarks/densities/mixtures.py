r"""Separated modes with known masses.

================  ==  =============================================================================================
name               D  density
================  ==  =============================================================================================
``grid``           2  25 Gaussians of sd 0.05 at {−2, −1, 0, 1, 2}²
``forty_modes``    2  40 Gaussians of sd softplus(1) ≈ 1.31, equal weights, means uniform in [−40, 40]² (Midgley et
                      al., 2023, *Flow annealed importance sampling bootstrap*)
``many_well``     32  16 copies of the double well :math:`\log p = -x_1^4 + 6 x_1^2 + \tfrac12 x_1 - \tfrac12 x_2^2`
                      (Noé, Olsson, Köhler and Wu, 2019, *Boltzmann generators*): 65,536 modes
================  ==  =============================================================================================

Modes of a mixture are the cells of points nearest to each mean; those of ``many_well`` the numbers of copies that are
in their right well, which are binomial.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities.base import Constants, Density, LogProb, Modes, moments, normal_draws, zeros
from boltzmix.compose.gaussian import GaussianMixture

WELLS = 16

# ---------------------------------------------------------------------- Gaussians


def grid_means() -> Tensor:
    """Means of the 25 Gaussians, ``(25, 2)``."""
    line = torch.arange(-2.0, 3.0, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def forty_means(seed: int = 0) -> Tensor:
    """Means of the 40 Gaussians, ``(40, 2)``."""
    return 80.0 * (torch.rand(40, 2, generator=torch.Generator().manual_seed(seed)) - 0.5).double()


@cache
def grid() -> Density:
    """25 narrow modes on a square grid; the reference is N(0, 2)."""
    means = grid_means()
    # the edge of a cell is ten standard deviations away
    masses = torch.full((25,), 1 / 25, dtype=torch.float64)
    return _mixture("grid", means, 0.05, masses, math.sqrt(2.0))


@cache
def forty_modes() -> Density:
    """40 modes in the square [−40, 40]²; the reference is N(0, 40² / 3), a Gaussian of the square's variance."""
    means, sd = forty_means(), math.log1p(math.e)
    return _mixture("forty_modes", means, sd, cell_masses(means, sd), 40.0 / math.sqrt(3.0))


def components(target: Density) -> GaussianMixture:
    """``grid`` or ``forty_modes`` as the mixture that it is, in float32.

    Raises:
        ValueError: another target.
    """
    if target.name == "grid":
        return GaussianMixture(grid_means().float(), 0.05**2)
    if target.name == "forty_modes":
        return GaussianMixture(forty_means().float(), math.log1p(math.e) ** 2)
    raise ValueError(f"{target.name} is no mixture of Gaussians; grid and forty_modes are")


def _mixture(name: str, means: Tensor, sd: float, masses: Tensor, extent: float) -> Density:
    """Gaussians of equal weights and variances; normalised."""
    count = len(means)
    held, scale = Constants(means), -0.5 / sd**2
    constant = -math.log(count) - math.log(2 * math.pi * sd**2)
    centres = means.numpy()

    def log_prob(x: Tensor) -> Tensor:
        (m,) = held(x)
        off = x[:, None, :] - m
        return torch.logsumexp(scale * (off * off).sum(2), 1) + constant

    def jax_log_prob() -> LogProb:
        import jax
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            off = x - centres.astype(x.dtype)
            return jax.nn.logsumexp(scale * jnp.sum(off * off, 1)) + constant

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        return means[torch.randint(count, (n,), generator=generator)] + sd * normal_draws(n, 2, generator)

    v = sd**2
    second, fourth = (means**2 + v).mean(0), (means**4 + 6 * means**2 * v + 3 * v**2).mean(0)
    return Density(
        name, 2, log_prob, jax_log_prob, **moments(means.mean(0), second, fourth), exact=exact, log_z=0.0,
        modes=Modes(lambda x: _nearest(x.double(), means), masses), reference=(zeros(2), zeros(2) + extent),
    )  # fmt: skip


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    return torch.cdist(x, means).argmin(1)


def cell_masses(means: Tensor, sd: float, points: int = 401, reach: float = 8.0) -> Tensor:
    """Masses of the cells nearest to each mean under Gaussians of equal weights, by sums over a square about each."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    weight = (-0.5 * line**2).exp()
    weight = weight / weight.sum()
    offsets, mass = sd * torch.cartesian_prod(line, line), torch.outer(weight, weight).flatten()
    found = torch.zeros(len(means), dtype=torch.float64)
    for mean in means:  # only cells that meet the square can be nearest
        near = ((means - mean).abs().amax(1) < 2 * math.sqrt(2) * reach * sd).nonzero()[:, 0]
        found.index_add_(0, near[_nearest(mean + offsets, means[near])], mass / len(means))
    return found


# --------------------------------------------------------------------- many wells


def well_log_density(x: Any) -> Any:
    """Of the coordinate with two wells, up to a constant; of tensors and arrays."""
    square = x * x
    return square * (6 - square) + 0.5 * x


@cache
def _well_table(points: int = 40_001, edge: float = 4.0) -> tuple[Tensor, Tensor, float]:
    """A grid over the two wells, its cumulative masses, and the log of the integral (trapezoid rule)."""
    x = torch.linspace(-edge, edge, points, dtype=torch.float64)
    log_density = well_log_density(x)
    top = float(log_density.max())
    density = (log_density - top).exp()
    step = float(x[1] - x[0])
    pieces = 0.5 * step * (density[1:] + density[:-1])
    total = float(pieces.sum())
    cumulative = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)]) / total
    return x, cumulative, math.log(total) + top


def right_mass() -> float:
    """The mass of the right one of two wells, :math:`P(x_1 > 0)`."""
    x, cumulative, _ = _well_table()
    return 1.0 - float(cumulative[len(x) // 2])


def right_masses(x: Tensor) -> Tensor:
    """The mass found in the right well of each copy, ``(W,)``."""
    return (x.flatten(0, -2)[:, 0::2] > 0).double().mean(0)


@cache
def many_well(wells: int = WELLS) -> Density:
    """Independent double wells over coordinates (x₁, x₂, x₁, x₂, …); the reference is N(0, 4)."""

    def log_prob(x: Tensor) -> Tensor:
        first, second = x[:, 0::2], x[:, 1::2]
        return (well_log_density(first) - 0.5 * (second * second)).sum(1)

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            first, second = x[0::2], x[1::2]
            return jnp.sum(well_log_density(first) - 0.5 * (second * second))

        return one

    def exact(n: int, generator: torch.Generator) -> Tensor:
        grid, cumulative, _ = _well_table()
        uniform = torch.rand(n * wells, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(cumulative, uniform).clamp(1, len(grid) - 1)
        share = (uniform - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1])
        first = (grid[right - 1] + share * (grid[1] - grid[0])).reshape(n, wells)
        return torch.stack([first, normal_draws(n, wells, generator)], 2).flatten(1)

    x, _, log_pair = _well_table()
    weight = (well_log_density(x) - log_pair).exp() * (x[1] - x[0])
    powers = [torch.stack([(weight * x**k).sum(), other]).repeat(wells)
              for k, other in ((1, x.new_tensor(0.0)), (2, x.new_tensor(1.0)), (4, x.new_tensor(3.0)))]  # fmt: skip
    right, count = right_mass(), np.arange(wells + 1)
    choices = np.array([math.comb(wells, k) for k in count])
    masses = torch.tensor(choices * right**count * (1 - right) ** (wells - count))
    return Density(
        "many_well", 2 * wells, log_prob, jax_log_prob, **moments(*powers), exact=exact,
        log_z=wells * (log_pair + 0.5 * math.log(2 * math.pi)),
        modes=Modes(lambda rows: (rows[:, 0::2] > 0).sum(1), masses), truth="quadrature",
        reference=(zeros(2 * wells), zeros(2 * wells) + 2),
    )  # fmt: skip


DENSITIES = {"grid": grid, "forty_modes": forty_modes, "many_well": many_well}
