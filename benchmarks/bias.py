r"""How wrong the moments of a sampler are, and after how many gradients they are right.

For coordinate i of one chain, after n draws,

.. math::
    b_i^2 = \frac{\left(\frac1n \sum_{k \le n} x_{k,i}^2 - E\,x_i^2\right)^2}{\mathrm{Var}\,x_i^2}, \qquad
    b_\text{avg}^2 = \frac1D \sum_i b_i^2, \qquad b_\text{max}^2 = \max_i b_i^2,

(Hoffman and Sountsov, 2022, *Tuning-free generalized Hamiltonian Monte Carlo*; Robnik, De Luca, Silverstein and
Seljak, 2023, *Microcanonical Hamiltonian Monte Carlo*). n independent draws have :math:`E\,b_i^2 = 1/n`, so 0.01 is the
error of a hundred of them. Curves run over the gradients that a chain had spent, warm-up apart; over chains and seeds
the median is taken, and :func:`gradients_to` says after how many the curve stays below a threshold.

A curve that levels off is a bias. :func:`bias` tests for one: with :math:`\bar e_i` the mean over K chains of the
errors of a chain's mean of :math:`x_i` or :math:`x_i^2`, in standard deviations of either, and its standard error
:math:`s_i` over chains, a sampler is *biased* where

.. math:: |\bar e_i| > a + t_{K-1,\, 1 - \alpha / 4D}\; s_i

for any of the 2D moments, a being what the truth itself may be off. :math:`s_i` is at least :math:`1/\sqrt N`, what N
independent draws would have, because heavy tails that no chain has visited are an error that chains agree on. A sampler
without bias is called biased with probability α at most (Bonferroni), for chain means that are normal. α is 10⁻⁴: in a
table of a thousand rows, one false row is expected for every ten tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density

#: false-positive rate of :func:`bias` for one sampler on one target
ALPHA = 1e-4
#: points of a curve for a factor of ten in gradients
PER_DECADE = 100
_NUMBERS = 2**22  # of draws whose running means are held at once


@dataclass(frozen=True)
class Curve:
    """b² over gradients.

    Attributes:
        gradients: of a chain so far, on average over chains, ``(P,)``.
        average: b_avg² of each chain, ``(chains, P)``.
        largest: b_max² of each chain, ``(chains, P)``.
    """

    gradients: Tensor
    average: Tensor
    largest: Tensor


def squared_bias(draws: Tensor, square_mean: Tensor, square_variance: Tensor) -> tuple[Tensor, Tensor]:
    """b_avg² and b_max² of every chain after each of its draws.

    Args:
        draws: ``(chains, draws, D)``.
        square_mean: E x_i², ``(D,)``.
        square_variance: Var x_i², ``(D,)``.

    Returns:
        two tensors ``(chains, draws)`` in float64.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> average, largest = squared_bias(torch.tensor([[[1.0], [2.0]]]), one, 2 * one)
        >>> average.tolist()  # means of squares: 1, then 2.5
        [[0.0, 1.125]]
    """
    chains, count, dim = draws.shape
    average = torch.zeros(chains, count, dtype=torch.float64)
    largest = torch.zeros(chains, count, dtype=torch.float64)
    n = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    width = max(1, _NUMBERS // count)
    for chain in range(chains):
        for columns in torch.arange(dim).split(width):
            x = draws[chain][:, columns].double()
            error = (x * x).cumsum(0) / n - square_mean[columns]
            b2 = error * error / square_variance[columns]
            average[chain] += b2.sum(1) / dim
            largest[chain] = torch.maximum(largest[chain], b2.max(1).values)
    return average, largest


def curve(draws: Tensor, gradients: Tensor, density: Density) -> Curve:
    """b² on a grid of gradients that is the same for every run, :data:`PER_DECADE` points for a factor of ten.

    Args:
        draws: ``(chains, draws, D)``.
        gradients: that each draw cost its chain, ``(chains, draws)``.
        density: whose moments are known.
    """
    average, largest = squared_bias(draws, density.square_mean, density.square_variance)
    spent = gradients.double().mean(0).cumsum(0)
    grid = grid_up_to(float(spent[-1]))
    grid = grid[grid >= float(spent[0]) * (1 - 1e-12)]
    if not len(grid):
        grid = spent[-1:]
    last = torch.searchsorted(spent, grid * (1 + 1e-12), right=True) - 1
    return Curve(grid, average[:, last], largest[:, last])


def weighted_point(draws: Tensor, log_weights: Tensor, gradients: Tensor, density: Density) -> Curve:
    """The one point of a weighted cloud ``(1, n, D)``: nothing is known before all its gradients are spent."""
    weight = log_weights[0].double().softmax(0)
    x = draws[0].double()
    error = weight @ (x * x) - density.square_mean
    b2 = error * error / density.square_variance
    return Curve(gradients.double().sum()[None], b2.mean()[None, None], b2.max()[None, None])


@cache
def _grid(decades: int) -> Tensor:
    return 10 ** (torch.arange(decades * PER_DECADE + 1, dtype=torch.float64) / PER_DECADE)


def grid_up_to(total: float) -> Tensor:
    """Gradients at which curves are kept, up to a total."""
    grid = _grid(max(1, math.ceil(math.log10(max(total, 10.0)))) + 1)
    return grid[grid <= total * (1 + 1e-12)]


def median_curve(gradients: Sequence[Tensor], curves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The median over the chains of several runs, where all of them have gone.

    Args:
        gradients: of each run, ``(P_r,)``, parts of one grid.
        curves: of each run, ``(chains, P_r)``.

    Returns:
        gradients ``(P,)`` and medians ``(P,)``; before the first draw of a chain its error is infinite.
    """
    if all(len(g) == 1 for g in gradients):  # clouds: a point each
        where = torch.cat(list(gradients)).quantile(0.5)[None]
        return where, torch.cat([c[:, 0] for c in curves]).quantile(0.5)[None]
    end = min(float(g[-1]) for g in gradients)
    first = min((g for g in gradients), key=lambda g: float(g[0]))
    grid = first[first <= end * (1 + 1e-12)]
    rows = []
    for own, values in zip(gradients, curves, strict=True):
        missing = int((grid < float(own[0]) * (1 - 1e-12)).sum())
        part = values[:, : len(grid) - missing]
        rows.append(torch.cat([part.new_full((len(part), missing), math.inf), part], 1))
    return grid, _median(torch.cat(rows))


def _median(values: Tensor) -> Tensor:
    """Median over rows, with infinities among them."""
    ordered, half = values.sort(0).values, (len(values) - 1) // 2
    low, high = ordered[half], ordered[len(values) // 2]
    return torch.where(torch.isinf(high), high, 0.5 * (low + high))


def gradients_to(threshold: float, gradients: Tensor, curve: Tensor) -> float:
    """The first of ``gradients`` after which a curve stays below a threshold; NaN where it does not.

    Args:
        threshold: of b².
        gradients: ``(P,)``.
        curve: ``(P,)``.

    Example:
        >>> g = torch.tensor([10.0, 20.0, 30.0, 40.0])
        >>> gradients_to(0.01, g, torch.tensor([0.005, 0.02, 0.009, 0.008]))
        30.0
        >>> gradients_to(0.001, g, torch.tensor([0.005, 0.02, 0.009, 0.008]))
        nan
    """
    above = (~(curve < threshold)).nonzero()[:, 0]
    start = int(above[-1]) + 1 if len(above) else 0
    return float(gradients[start]) if start < len(gradients) else math.nan


def chain_errors(draws: Tensor, log_weights: Tensor | None, density: Density) -> Tensor:
    """Errors of the means of x and of x² of every chain in the target's standard deviations, ``(chains, 2D)``."""
    x = draws.double()
    if log_weights is None:
        first, second = x.mean(1), (x * x).mean(1)
    else:
        weight = log_weights.double().softmax(1)[:, :, None]
        first, second = (weight * x).sum(1), (weight * x * x).sum(1)
    means = (first - density.mean) / density.variance.sqrt()
    return torch.cat([means, (second - density.square_mean) / density.square_variance.sqrt()], 1)


@dataclass(frozen=True)
class Bias:
    """What can be said of a sampler's bias.

    Attributes:
        biased: the errors of its moments are more than chance; None where too few chains were run to tell.
        worst: largest |mean error| in standard errors.
        allowed: how large that may be.
        floor: b² that the worst moment has at least, at the test's level: 0 for a sampler that is not biased.
    """

    biased: bool | None
    worst: float
    allowed: float
    floor: float


def bias(errors: Tensor, draws: int, accuracy: float = 0.0, alpha: float = ALPHA) -> Bias:
    """Test the errors of independent chains.

    Args:
        errors: :func:`chain_errors`, ``(K, 2D)``.
        draws: of all chains together, N.
        accuracy: b² below which the truth itself is not known.
        alpha: probability that a sampler without bias is called biased.
    """
    count = len(errors)
    if count < 2:
        return Bias(None, math.nan, math.nan, 0.0)
    mean = (errors.mean(0).abs() - math.sqrt(accuracy)).clamp(min=0.0)
    error = (errors.std(0) / math.sqrt(count)).clamp(min=1 / math.sqrt(draws))
    allowed = t_quantile(count - 1, alpha / errors.shape[1])
    worst = float((mean / error).max())
    floor = float((mean - allowed * error).clamp(min=0.0).square().max())
    return Bias(worst > allowed, worst, allowed, floor)


@cache
def t_quantile(degrees: int, tail: float) -> float:
    r"""The t beyond which, on both sides together, Student's distribution has a probability of ``tail``.

    With :math:`t = \sqrt\nu \tan\theta` its density is proportional to :math:`\cos^{\nu - 1} \theta`.

    Example:
        >>> round(t_quantile(4, 0.05), 3), round(t_quantile(1000, 0.05), 3)
        (2.776, 1.962)
    """
    # both tails are the fraction of cos^(ν−1) beyond θ; near π/2 the angle to it keeps its digits
    rest = np.geomspace(1e-12, math.pi / 2, 200_001)
    density = np.sin(rest) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(rest))])
    angle = float(np.interp(tail * mass[-1], mass, rest))
    return math.sqrt(degrees) / math.tan(angle)


def mode_error(draws: Tensor, log_weights: Tensor | None, density: Density) -> float:
    """Total variation between the masses of the target's modes and those of the draws; NaN without modes."""
    if density.modes is None:
        return math.nan
    masses = density.modes.masses.double()
    flat = draws.double().flatten(0, 1)
    weight = flat.new_zeros(len(flat)) if log_weights is None else log_weights.double().flatten()
    found = torch.zeros_like(masses).index_add(0, density.modes.assign(flat), weight.softmax(0))
    return 0.5 * float((found - masses).abs().sum())
