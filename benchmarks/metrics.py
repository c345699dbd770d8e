r"""Distances between draws and exact draws, each with the floor that exact draws themselves reach.

**Maximum mean discrepancy** (Gretton et al., 2012, *A kernel two-sample test*). With
:math:`k(x, y) = \tfrac1B \sum_b \exp(-\|x - y\|^2 / 2 h_b^2)`,

.. math::
    \mathrm{MMD}^2_u = \tfrac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \tfrac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
                     - \tfrac{2}{nm} \sum_{ij} k(x_i, y_j)

is unbiased, so two exact sets scatter about zero and its logarithm is clamped; the biased form divides by n² and m²
and keeps the diagonal. Sums are in float64 and blocked, so that n = 4,000 needs no n × n matrix.

**Mode masses.** For a truth that is a mixture :math:`\sum_k \pi_k p_k`, a draw's mass of mode k is the mean posterior
responsibility :math:`\hat\pi_k = \tfrac1n \sum_i \pi_k p_k(x_i) / p(x_i)`; the error is the total variation
:math:`\tfrac12 \sum_k |\hat\pi_k - \pi_k|`.

No finite sample has distance zero: :func:`exact_pairs` measures what pairs of exact sets of the same size reach.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from boltzmix.compose.gaussian import GaussianMixture

FACTORS = (0.05, 0.2, 1.0, 5.0)
CLAMP = 1e-9
_BLOCK = 400

Exact = Callable[[int, torch.Generator], Tensor]


def median_squared_distance(x: Tensor, most: int = 2000) -> float:
    """Median over pairs of the first ``most`` rows of ``(N, D)``."""
    return float(torch.nn.functional.pdist(x[:most].double()).square().median())


def bandwidths(exact: Tensor, factors: Sequence[float] = FACTORS) -> tuple[float, ...]:
    """Squared bandwidths h_b²: multiples of the median squared distance of exact draws."""
    scale = median_squared_distance(exact)
    if not scale > 0:
        raise ValueError("the exact draws coincide: there is no distance to scale the bandwidths by")
    return tuple(f * scale for f in factors)


def kernel_mean(x: Tensor, y: Tensor, squared: Sequence[float]) -> float:
    """Mean of k(x_i, y_j) over all pairs, in float64."""
    x, y = _rows(x), _rows(y)
    return math.fsum(_block_sum(rows, y, squared) for rows in x.split(_BLOCK)) / (len(x) * len(y))


def self_mean(x: Tensor, squared: Sequence[float], unbiased: bool = True) -> float:
    """Mean of k(x_i, x_j) over pairs i ≠ j, or over all pairs when biased; each pair is computed once."""
    x = _rows(x)
    n, total = len(x), 0.0
    if unbiased and n < 2:
        raise ValueError(f"the unbiased estimate needs two rows or more, got {n}")
    for start in range(0, n, _BLOCK):
        rows = x[start : start + _BLOCK]
        total += _block_sum(rows, rows, squared, exclude_diagonal=True)
        if start + _BLOCK < n:
            total += 2 * _block_sum(rows, x[start + _BLOCK :], squared)
    return total / (n * (n - 1)) if unbiased else (total + n) / n**2


def mmd2(x: Tensor, y: Tensor, squared: Sequence[float], unbiased: bool = True) -> float:
    """Squared maximum mean discrepancy of two sets of rows for squared bandwidths ``squared``."""
    own = self_mean(x, squared, unbiased) + self_mean(y, squared, unbiased)
    return own - 2 * kernel_mean(x, y, squared)


def log_mmd2(value: float) -> float:
    """ln MMD², clamped at 1e-9: an unbiased estimate between exact sets is negative half of the time."""
    return math.log(max(value, CLAMP))


class Discrepancy:
    """MMD² against a truth, with bandwidths and reference sets fixed once, so that figures of one task compare.

    Args:
        exact: draws from the truth, ``(n, generator) -> (n, D)``.
        squared: squared bandwidths; None takes four about the median distance of 2,000 exact draws.
        unbiased: which estimate.
        references: number of exact sets of its size that a draw is compared with.
        seed: of these.
    """

    def __init__(
        self,
        exact: Exact,
        squared: Sequence[float] | None = None,
        unbiased: bool = True,
        references: int = 4,
        seed: int = 0,
    ) -> None:
        """Fix the bandwidths."""
        self.exact, self.unbiased, self.count, self.seed = exact, unbiased, references, seed
        self.squared = bandwidths(exact(2000, _generator(seed, 0))) if squared is None else tuple(squared)
        self._sets: dict[int, list[tuple[Tensor, float]]] = {}

    def values(self, x: Tensor) -> list[float]:
        """MMD² against each reference set."""
        own = self_mean(x, self.squared, self.unbiased)
        return [own + other - 2 * kernel_mean(x, y, self.squared) for y, other in self._references(len(x))]

    def __call__(self, x: Tensor) -> float:
        """Mean of the MMD² against the reference sets."""
        found = self.values(x)
        return math.fsum(found) / len(found)

    def floor(self, n: int, pairs: int) -> Tensor:
        """MMD² of independent pairs of exact sets of size n."""
        return exact_pairs(
            self.exact, n, pairs, lambda x, y: mmd2(x, y, self.squared, self.unbiased), _generator(self.seed, 2)
        )

    def _references(self, n: int) -> list[tuple[Tensor, float]]:
        if n not in self._sets:
            generator = _generator(self.seed, 1)
            sets = [self.exact(n, generator) for _ in range(self.count)]
            self._sets[n] = [(y, self_mean(y, self.squared, self.unbiased)) for y in sets]
        return self._sets[n]


def exact_pairs(
    exact: Exact, n: int, pairs: int, metric: Callable[[Tensor, Tensor], float], generator: torch.Generator
) -> Tensor:
    """A metric between independent pairs of exact sets of size n, ``(pairs,)`` in float64."""
    return torch.tensor([metric(exact(n, generator), exact(n, generator)) for _ in range(pairs)], dtype=torch.float64)


def responsibilities(truth: GaussianMixture, x: Tensor) -> Tensor:
    """Posterior probabilities of the components ``(N, K)``, in float64."""
    twin = GaussianMixture(truth.means.double(), truth.covariances.double(), truth.weights.double())
    return torch.cat([twin.component_log_prob(rows.double()).softmax(-1) for rows in x.split(4000)])


def mode_masses(truth: GaussianMixture, x: Tensor) -> Tensor:
    """Mean responsibilities ``(K,)``."""
    return responsibilities(truth, x).mean(0)


def mode_error(truth: GaussianMixture, x: Tensor) -> float:
    """Total variation between the mode masses of a draw and those of the truth."""
    return total_variation(mode_masses(truth, x), truth.weights)


def total_variation(p: Tensor, q: Tensor) -> float:
    """½ Σ |p − q| of two sets of masses."""
    return float(0.5 * (p.double() - q.double()).abs().sum())


def member_z(truth: GaussianMixture, sizes: Sequence[int], x: Tensor, exact: Tensor) -> list[float]:
    """z-scores of the masses of members, each of ``sizes`` consecutive components of the truth.

    The error bar is that of independent draws, from the spread of the members' responsibilities at ``exact`` draws.
    """
    found = []
    blocks = [responsibilities(truth, rows).split(list(sizes), 1) for rows in (x, exact)]
    weights = truth.weights.double().split(list(sizes))
    for own, reference, weight in zip(*blocks, weights, strict=True):
        error = reference.sum(1).std() / math.sqrt(len(x))
        found.append(float((own.sum(1).mean() - weight.sum()) / error))
    return found


def support_fraction(inside: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Share of draws for which ``inside`` holds."""
    return float(inside(x).double().mean())


def nearest_distance(x: Tensor, reference: Tensor) -> float:
    """Median over rows of x of the Euclidean distance to the nearest row of ``reference``; rows are flattened."""
    return float(torch.cdist(_rows(x), _rows(reference)).min(1).values.median())


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance of two sets of rows, :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased.

    Zero in expectation for two sets of one distribution, so the estimate may be negative (Székely and Rizzo, 2013,
    *Energy statistics*).
    """
    x, y = _rows(x), _rows(y)
    own = [float(torch.nn.functional.pdist(rows).mean()) for rows in (x, y)]
    return 2 * float(torch.cdist(x, y).mean()) - own[0] - own[1]


def quantile(values: Tensor, q: float) -> float:
    """Linear quantile."""
    return float(torch.quantile(values.double(), q))


def bootstrap(values: Tensor, q: float, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """90 % interval of the q-quantile of ``values`` by resampling them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (resamples, len(values)), generator=generator)
    found = torch.quantile(values.double()[rows], q, dim=1)
    return quantile(found, 0.05), quantile(found, 0.95)


def _rows(x: Tensor) -> Tensor:
    if x.ndim < 2:
        raise ValueError(f"metrics compare rows (N, D), got {tuple(x.shape)}")
    return x.detach().flatten(1).double()


def _block_sum(x: Tensor, y: Tensor, squared: Sequence[float], exclude_diagonal: bool = False) -> float:
    total = 0.0
    for start in range(0, len(y), _BLOCK):  # tiles that stay in the cache
        total += _tile_sum(x, y[start : start + _BLOCK], squared, exclude_diagonal)
    return total / len(squared)


def _tile_sum(x: Tensor, y: Tensor, squared: Sequence[float], exclude_diagonal: bool) -> float:
    if x.shape[1] <= 4:  # differences, exact for close pairs; beyond, one matrix product
        distance = (x[:, :1] - y[:, 0]).square_()
        for d in range(1, x.shape[1]):
            distance += (x[:, d : d + 1] - y[:, d]).square_()
    else:
        distance = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.mT, alpha=-2).clamp_(min=0.0)
    if exclude_diagonal:
        distance.fill_diagonal_(torch.inf)
    widest = max(squared)
    base = distance.mul_(-0.5 / widest).exp_()
    total = 0.0
    power, value = 1, base
    for b in sorted(squared, reverse=True):  # narrower kernels are powers of the widest
        ratio = widest / b
        if abs(ratio - round(ratio)) < 1e-9 and round(ratio) % power == 0:
            value, power = _integer_power(value, round(ratio) // power), round(ratio)
            total += float(value.sum())
        else:
            total += float(base.pow(ratio).sum())
    return total


def _integer_power(x: Tensor, n: int) -> Tensor:
    """x^n by repeated squaring, cheaper than another exponential."""
    result: Tensor | None = None
    while n:
        if n & 1:
            result = x if result is None else result * x
        n >>= 1
        if n:
            x = x * x
    assert result is not None
    return result


def _generator(seed: int, stream: int) -> torch.Generator:
    """A generator apart from the samplers', so that references never share a stream with what they judge."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + stream)
