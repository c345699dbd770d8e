r"""Targets on which samplers fail, each with exact draws and an exact answer.

==============  ====  ===========================================================================================
name               D  density
==============  ====  ===========================================================================================
``forty_modes``    2  40 Gaussians of sd softplus(1) ≈ 1.31, equal weights, means uniform in [−40, 40]² (Midgley et
                      al., 2023)
``many_well``     32  16 copies of the double well :math:`\log p = -x_1^4 + 6 x_1^2 + \tfrac12 x_1 - \tfrac12 x_2^2`
                      (Noé et al., 2019): 65,536 modes
``funnel``        10  v ~ N(0, 3²), x_i | v ~ N(0, e^v), centred (Neal, 2003)
``grid``           2  25 Gaussians of sd 0.05 at {−2, −1, 0, 1, 2}²
==============  ====  ===========================================================================================

Sources: R. Neal (2003), *Slice sampling*; F. Noé, S. Olsson, J. Köhler and H. Wu (2019), *Boltzmann generators*; L.
Midgley, V. Stimper, G. Simm, B. Schölkopf and J. M. Hernández-Lobato (2023), *Flow annealed importance sampling
bootstrap*. All terms are functions: samplers see energies and gradients and nothing to draw from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from boltzmix.compose.callables import term
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.term import Term

WELLS = 16


@dataclass(frozen=True)
class HardTarget:
    """A density and its truth.

    Attributes:
        name: what tables call it.
        term: a function of rows ``(N, D)``, unnormalised where ``log_z`` is not 0.
        dim: D.
        log_z: the log of its integral.
        exact: exact draws, ``(n, generator) -> (n, D)``.
        reference: a normalised term that somebody who knows the target's extent, and nothing of its modes, would take.
        truth: the mixture, where it is one.
    """

    name: str
    term: Term
    dim: int
    log_z: float
    exact: Callable[[int, torch.Generator], Tensor]
    reference: Gaussian
    truth: GaussianMixture | None = None


def _mixture(name: str, truth: GaussianMixture, reference: Gaussian) -> HardTarget:
    def exact(n: int, generator: torch.Generator) -> Tensor:
        x = truth.sample(n, generator)
        assert isinstance(x, Tensor)
        return x

    dim = truth.means.shape[1]
    density = term(truth.log_prob, kind="log_prob", event_shape=(dim,), name=name)
    return HardTarget(name, density, dim, 0.0, exact, reference, truth)


@cache
def forty_modes(seed: int = 0) -> HardTarget:
    """40 modes in the square [−40, 40]²; the reference is N(0, 40² / 3), a Gaussian of the square's variance."""
    generator = torch.Generator().manual_seed(seed)
    means = 80.0 * (torch.rand(40, 2, generator=generator) - 0.5)
    sd = math.log1p(math.e)
    return _mixture("40 modes", GaussianMixture(means, sd**2), Gaussian(torch.zeros(2), 40.0**2 / 3))


@cache
def grid() -> HardTarget:
    """25 narrow modes on a square grid; the reference is N(0, 2)."""
    line = torch.arange(-2.0, 3.0)
    return _mixture("25 Gaussians", GaussianMixture(torch.cartesian_prod(line, line), 0.05**2),
                    Gaussian(torch.zeros(2), 2.0))  # fmt: skip


# --------------------------------------------------------------------- many wells


def well_log_density(x: Tensor) -> Tensor:
    """Of the coordinate with two wells, up to a constant."""
    return -(x**4) + 6 * x**2 + 0.5 * x


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


@cache
def many_well(wells: int = WELLS) -> HardTarget:
    """Independent double wells over coordinates (x₁, x₂, x₁, x₂, …); the reference is N(0, 4)."""

    def log_prob(x: Tensor) -> Tensor:
        first, second = x[:, 0::2], x[:, 1::2]
        return (well_log_density(first) - 0.5 * second * second).sum(1)

    def exact(n: int, generator: torch.Generator) -> Tensor:
        grid, cumulative, _ = _well_table()
        uniform = torch.rand(n * wells, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(cumulative, uniform).clamp(1, len(grid) - 1)
        share = (uniform - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1])
        first = grid[right - 1] + share * (grid[1] - grid[0])
        second = torch.randn(n, wells, generator=generator)
        return torch.stack([first.reshape(n, wells).float(), second], 2).flatten(1)

    name = f"ManyWell-{2 * wells}"
    density = term(log_prob, kind="log_prob", event_shape=(2 * wells,), name=name)
    log_z = wells * (_well_table()[2] + 0.5 * math.log(2 * math.pi))
    return HardTarget(name, density, 2 * wells, log_z, exact, Gaussian(torch.zeros(2 * wells), 4.0))


def right_masses(x: Tensor) -> Tensor:
    """The mass found in the right well of each copy, ``(W,)``."""
    return (x.flatten(0, -2)[:, 0::2] > 0).double().mean(0)


# ------------------------------------------------------------------------- funnel


@cache
def funnel(dim: int = 10) -> HardTarget:
    """Neal's funnel, centred; the reference is N(0, 3² I)."""

    def log_prob(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        normal = math.log(2 * math.pi)
        neck = -0.5 * (v / 3) ** 2 - math.log(3) - 0.5 * normal
        return neck - 0.5 * ((rest * rest).sum(1) * (-v).exp() + (dim - 1) * (v + normal))

    def exact(n: int, generator: torch.Generator) -> Tensor:
        v = 3.0 * torch.randn(n, 1, generator=generator)
        return torch.cat([v, (0.5 * v).exp() * torch.randn(n, dim - 1, generator=generator)], 1)

    density = term(log_prob, kind="log_prob", event_shape=(dim,), name="funnel")
    return HardTarget("funnel", density, dim, 0.0, exact, Gaussian(torch.zeros(dim), 9.0))
