r"""Effective sample sizes, R-hat and Monte-Carlo errors of chains ``(chains, draws, *event)``.

With W the mean variance within chains, B/n the variance of their means, :math:`V = \tfrac{n-1}{n} W + B/n` and
:math:`\hat\rho_t = 1 - (W - \bar\gamma_t) / V` from the autocovariances γ averaged over M chains of n draws,

.. math::
    \hat R = \sqrt{V / W}, \qquad
    \mathrm{ESS} = \frac{M n}{-1 + 2 \sum_j P_j}, \qquad P_j = \min_{i \le j} (\hat\rho_{2i} + \hat\rho_{2i+1}),

the sum ending where a pair is no longer positive (Geyer, 1992, *Practical Markov chain Monte Carlo*). Chains are first
split in halves, and for R-hat and the bulk replaced by the normal scores of their ranks: Vehtari, Gelman, Simpson,
Carpenter and Bürkner (2021), *Rank-normalization, folding, and localization: an improved R-hat for assessing
convergence of MCMC*. Columns are taken together as long as they are small, and one after the other when they are not,
so that memory stays at a few copies of one column.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_NUMBERS = 2**20  # of draws looked at together
_BLOCK = 2**18  # of draws Fourier-transformed together

_METHODS = ("bulk", "tail", "mean", "sd", "median", "mad", "folded", "quantile", "local", "identity")
_RHATS = ("rank", "z_scale", "folded", "split", "identity")


def ess(x: Tensor, method: str = "bulk", prob: float | Sequence[float] | None = None) -> Tensor:
    """Effective sample size, by the names that ArviZ uses.

    Args:
        x: ``(chains, draws, *event)``, at least four draws; integers are fine.
        method: ``"bulk"`` (for the location, from rank-normalised draws), ``"tail"`` (the smaller one of the 5 % and
            95 % quantiles), ``"mean"``, ``"sd"``, ``"median"``, ``"mad"``, ``"quantile"`` at ``prob``, ``"local"`` for
            the interval between the two quantiles ``prob``, ``"folded"`` (for the scale), or ``"identity"`` (of the
            mean, without splitting the chains).
        prob: a probability for ``"quantile"``, two of them for ``"local"`` and, if not (0.05, 0.95), for ``"tail"``.

    Returns:
        ``(*event)`` in float64; NaN where a coordinate is constant or not finite.

    Raises:
        TypeError: no tensor of numbers.
        ValueError: fewer than four draws, or an unknown method.

    Example:
        >>> x = torch.randn(4, 1000, 3, generator=torch.Generator().manual_seed(0))
        >>> ess(x).shape, bool((ess(x, "tail") > 3000).all())
        (torch.Size([3]), True)
    """
    if method not in _METHODS:
        raise ValueError(f"ess has the methods {', '.join(_METHODS)}; got {method!r}")
    probs = _probabilities(method, prob)
    return over_columns(x, lambda c: _Columns(c).ess(method, probs))


def rhat(x: Tensor, method: str = "rank") -> Tensor:
    """R-hat: by default the larger one of the rank-normalised and the folded split R-hat.

    Args:
        x: ``(chains, draws, *event)``, at least four draws; integers are fine. One chain is compared with itself, its
            first half with its second.
        method: ``"rank"``, or a part of it: ``"z_scale"`` sees locations that differ, ``"folded"`` scales, ``"split"``
            does without ranks, ``"identity"`` also without splitting (chains must then be several).

    Returns:
        ``(*event)`` in float64; NaN where a coordinate is constant or not finite.
    """
    if method not in _RHATS:
        raise ValueError(f"rhat has the methods {', '.join(_RHATS)}; got {method!r}")
    return over_columns(x, lambda c: _Columns(c).rhat(method))


def mcse(x: Tensor, method: str = "mean", prob: float | None = None) -> Tensor:
    """Monte-Carlo standard error of the mean, the standard deviation, the median or a quantile.

    Args:
        x: ``(chains, draws, *event)``, at least four draws.
        method: ``"mean"``, ``"sd"``, ``"median"`` or ``"quantile"`` at ``prob``.
        prob: of the quantile.

    Returns:
        ``(*event)`` in float64, in the units of x; NaN where a coordinate is constant or not finite.
    """
    if method not in ("mean", "sd", "median", "quantile"):
        raise ValueError(f"mcse has the methods mean, sd, median, quantile; got {method!r}")
    probs = _probabilities(method, prob)
    return over_columns(x, lambda c: _Columns(c).mcse(method, probs[0]))


def bfmi(energy: Tensor) -> Tensor:
    r"""E-BFMI of each chain, :math:`\sum_n (H_n - H_{n-1})^2 / \sum_n (H_n - \bar H)^2`.

    Below 0.3 the momentum's kinetic energy is too small a part of the energy's variation: chains move slowly through
    energies (Betancourt, 2016, *Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo*).

    Args:
        energy: of consecutive draws, ``(chains, draws)``: ``draw.stats["energy"]``. It means little for thinned draws,
            and for kernels that keep a part of their momentum.

    Returns:
        ``(chains,)`` in float64, NaN where the energy is constant.
    """
    if not isinstance(energy, Tensor) or energy.is_complex():
        raise TypeError(f"energies are a tensor of real numbers (chains, draws), got {_what(energy)}")
    if energy.ndim != 2 or energy.shape[1] < 2:
        raise ValueError(f"energies have shape (chains, draws >= 2), got {tuple(energy.shape)}")
    h = energy.detach().double()
    return h.diff(dim=1).square().sum(1) / (h - h.mean(1, keepdim=True)).square().sum(1)


def autocorrelation(x: Tensor, lags: int | None = None) -> Tensor:
    """Autocorrelation of every chain.

    Args:
        x: ``(chains, draws, *event)``.
        lags: how many, from lag 0 on; None is one for each draw.

    Returns:
        ``(chains, lags, *event)`` in float64; NaN where a chain is constant or not finite.
    """
    _check(x, least=1)
    n = x.shape[1]
    lags = n if lags is None else lags
    if isinstance(lags, bool) or not isinstance(lags, int) or not 1 <= lags <= n:
        raise ValueError(f"lags is an int from 1 to the number of draws, {n}; got {lags!r}")
    columns = x.detach().reshape(len(x), n, math.prod(x.shape[2:]))
    found = torch.empty(len(x), lags, columns.shape[2], dtype=torch.float64, device=x.device)
    for rows in range(0, len(x), size := max(1, _BLOCK // max(1, columns[0].numel()))):
        c = columns[rows : rows + size].double().movedim(1, 2)
        still = (c == c[..., :1]).all(-1, keepdim=True)
        covariance = torch.fft.irfft(_transform(c).square().sum(-1), _padded(n))[..., :lags]
        found[rows : rows + size] = torch.where(still, torch.nan, covariance / covariance[..., :1]).movedim(2, 1)
    return found.reshape(len(x), lags, *x.shape[2:])


def statistics(x: Tensor) -> dict[str, Tensor]:
    """What a summary shows of every coordinate, from one pass: each ``(*event)`` in float64.

    ``mean``, ``sd``, ``5%``, ``95%``, ``mcse_mean``, ``mcse_sd``, ``ess_bulk``, ``ess_tail`` and ``r_hat``; the last
    five are NaN for fewer than four draws.
    """
    names = ("mean", "sd", "5%", "95%", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
    found = over_columns(x, lambda c: _Columns(c).statistics(), least=1, rows=len(names), mask=False)
    return dict(zip(names, found, strict=True))


def convergence(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bulk and tail effective sample size and R-hat, ``(*event)`` each, from one sort."""
    bulk, tail, r = over_columns(x, lambda c: _Columns(c).convergence(), rows=3)
    return bulk, tail, r


def normal_scores(c: Tensor) -> Tensor:
    """Columns ``(K, chains, draws)`` replaced by the normal scores of their ranks, all chains together."""
    return _rank_normalise(c.double())


def size_of_each(c: Tensor) -> Tensor:
    """Effective sample size for the mean of each chain alone, ``(chains, draws)`` to ``(chains,)``."""
    return _ess(c.double()[:, None])


# --------------------------------------------------------------------- columns


def _what(x: Any) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def _check(x: Any, least: int = 4) -> None:
    if not isinstance(x, Tensor) or x.is_complex():
        raise TypeError(f"chains are a tensor of real numbers (chains, draws, *event), got {_what(x)}")
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1] < least:
        raise ValueError(f"chains have shape (chains, draws >= {least}, *event), got {tuple(x.shape)}")


def _probabilities(method: str, prob: float | Sequence[float] | None) -> tuple[float, ...]:
    wanted = {"tail": 2, "local": 2, "quantile": 1}.get(method, 0)
    given = () if prob is None else tuple(prob) if isinstance(prob, Sequence) else (prob,)
    if prob is None and method not in ("quantile", "local"):
        return (0.05, 0.95) if method == "tail" else (0.5,)
    if method == "tail" and len(given) == 1:
        given = (given[0], 1 - given[0])
    if len(given) != wanted or not all(isinstance(p, (int, float)) and 0 < p < 1 for p in given):
        expected = {0: "no prob", 1: "prob between 0 and 1", 2: "two probabilities between 0 and 1"}[wanted]
        raise ValueError(f"method={method!r} takes {expected}, got prob={prob!r}")
    return given


def over_columns(x: Tensor, fn: Callable[[Tensor], Tensor], least: int = 4, rows: int = 0, mask: bool = True) -> Tensor:
    """``fn`` of columns ``(K, chains, draws)`` in float64, some at a time; ``(*event)``, or ``(rows, *event)``."""
    _check(x, least)
    chains, draws, event = x.shape[0], x.shape[1], x.shape[2:]
    columns = x.detach().reshape(chains, draws, math.prod(event))
    lead = (rows,) if rows else ()
    found = torch.empty(*lead, columns.shape[2], dtype=torch.float64, device=x.device)
    for k in range(0, columns.shape[2], size := max(1, _NUMBERS // (chains * draws))):
        c = columns[:, :, k : k + size].permute(2, 0, 1).to(torch.float64, memory_format=torch.contiguous_format)
        values = fn(c)
        if mask:
            flat = c.flatten(1)
            low, high = flat.aminmax(dim=1)  # NaN where there is one
            values = torch.where(torch.isfinite(high - low) & (low < high), values, torch.nan)
        found[..., k : k + size] = values
    return found.reshape((*lead, *event))


class _Columns:
    """Columns ``(K, chains, draws)`` with what several statistics share: halves, order, quantiles."""

    def __init__(self, c: Tensor) -> None:
        self.c = c

    @cached_property
    def halves(self) -> Tensor:
        """``(K, 2 chains, draws // 2)``; the middle one of an odd number of draws is left out."""
        return _split(self.c)

    @cached_property
    def order(self) -> Tensor:
        return _argsort(self.halves.flatten(1))

    @cached_property
    def ordered_halves(self) -> Tensor:
        return self.halves.flatten(1).gather(1, self.order)

    @cached_property
    def ordered(self) -> Tensor:
        if self.c.shape[2] % 2:
            flat = self.c.flatten(1)
            return flat.gather(1, _argsort(flat))
        return self.ordered_halves

    @cached_property
    def scores(self) -> Tensor:
        return _scores(self.order, self.ordered_halves).reshape(self.halves.shape)

    def folded(self) -> Tensor:
        """Normal scores of the distances from the median."""
        distance = (self.halves - _quantile(self.ordered_halves, 0.5)[:, None, None]).abs()
        return _rank_normalise(distance)

    def indicator(self, p: float) -> Tensor:
        """Whether draws are at most the quantile."""
        return (self.c <= _quantile(self.ordered, p)[:, None, None]).double()

    def ess(self, method: str, probs: tuple[float, ...] = (0.5,)) -> Tensor:
        c = self.c
        if method == "bulk":
            return _ess(self.scores)
        if method in ("tail", "quantile", "median"):
            sizes = [_ess(_split(self.indicator(p))) for p in ((0.5,) if method == "median" else probs)]
            return torch.stack(sizes).amin(0)
        if method == "local":
            low, high = (_quantile(self.ordered, p)[:, None, None] for p in probs)
            return _ess(_split(((low <= c) & (c <= high)).double()))
        if method == "folded":
            return _ess(self.folded())
        if method == "mad":
            distance = (c - _quantile(self.ordered, 0.5)[:, None, None]).abs()
            flat = distance.flatten(1)
            median = _quantile(flat.gather(1, _argsort(flat)), 0.5)[:, None, None]
            return _ess(_rank_normalise(_split((distance <= median).double())))
        if method == "sd":
            return _ess(_split(self.squares()))
        return _ess(c if method == "identity" else self.halves)

    def squares(self) -> Tensor:
        return (self.c - self.c.mean((1, 2), keepdim=True)).square()

    def rhat(self, method: str) -> Tensor:
        if method == "rank":
            return torch.maximum(_rhat(self.scores), _rhat(self.folded()))
        if method == "z_scale":
            return _rhat(self.scores)
        if method == "folded":
            return _rhat(self.folded())
        return _rhat(self.c if method == "identity" else self.halves)

    def mcse(self, method: str, p: float) -> Tensor:
        if method == "mean":
            return self.c.flatten(1).std(1) / self.ess("mean").sqrt()
        if method == "sd":
            squares = self.squares()
            mean = squares.mean((1, 2))
            variance = (squares.square().mean((1, 2)) - mean**2) / _ess(_split(squares))
            return (variance / mean / 4).sqrt()
        from scipy.special import betaincinv

        size = self.ess("quantile", (p,))
        last = self.ordered.shape[1] - 1
        numbers = size.cpu().numpy()
        # where the quantile of size independent draws would lie, one standard deviation below and above
        ends = [torch.from_numpy(betaincinv(numbers * p + 1, numbers * (1 - p) + 1, q)) for q in (0.1586553, 0.8413447)]
        low, high = (torch.nan_to_num(e).to(self.c.device) * (last + 1) - 1 for e in ends)
        below = self.ordered.gather(1, low.floor().clamp(0, last).long()[:, None])
        above = self.ordered.gather(1, high.ceil().clamp(0, last).long()[:, None])
        return ((above - below) / 2)[:, 0]

    def convergence(self) -> Tensor:
        return torch.stack([self.ess("bulk"), self.ess("tail", (0.05, 0.95)), self.rhat("rank")])

    def statistics(self) -> Tensor:
        flat = self.c.flatten(1)
        low, high = flat.aminmax(dim=1)
        finite, moves = torch.isfinite(high - low), low < high
        ordered = self.ordered if self.c.shape[2] > 1 else flat.gather(1, _argsort(flat))
        nothing = torch.full_like(low, torch.nan)
        sd = flat.std(1) if flat.shape[1] > 1 else nothing
        plain = [flat.mean(1), sd, _quantile(ordered, 0.05), _quantile(ordered, 0.95)]
        if self.c.shape[2] < 4:
            return torch.stack([torch.where(finite, v, torch.nan) for v in plain] + [nothing] * 5)
        errors = [sd / self.ess("mean").sqrt(), self.mcse("sd", 0.5)]
        checked = [torch.where(moves, v, torch.nan) for v in [*errors, *self.convergence()]]
        return torch.stack([torch.where(finite, v, torch.nan) for v in [*plain, *checked]])


# -------------------------------------------------------------------- formulas


def _split(c: Tensor) -> Tensor:
    half = c.shape[-1] // 2
    return torch.cat([c[..., :half], c[..., c.shape[-1] - half :]], -2)


def _argsort(flat: Tensor) -> Tensor:
    if flat.device.type == "cpu":  # numpy's sort is three times as fast as torch's stable one
        import numpy as np

        return torch.from_numpy(np.argsort(flat.numpy(), axis=1))
    return flat.argsort(1)


def _rank_normalise(c: Tensor) -> Tensor:
    flat = c.flatten(1)
    order = _argsort(flat)
    return _scores(order, flat.gather(1, order)).reshape(c.shape)


def _scores(order: Tensor, ordered: Tensor) -> Tensor:
    """Φ⁻¹((rank − 3/8) / (size + 1/4)) with average ranks for ties."""
    size = ordered.shape[1]
    place = torch.arange(1, size + 1, dtype=torch.float64, device=ordered.device).expand_as(ordered)
    new = ordered[:, 1:] != ordered[:, :-1]
    if bool(new.all()):
        rank = place[:1]
    else:
        edge = torch.ones_like(new[:, :1])
        first = torch.where(torch.cat([edge, new], 1), place, 0.0).cummax(1).values
        last = torch.where(torch.cat([new, edge], 1), place, size).flip(1).cummin(1).values.flip(1)
        rank = (first + last) / 2
    z = torch.special.ndtri((rank - 0.375) / (size + 0.25))
    return torch.empty_like(ordered).scatter_(1, order, z.expand_as(ordered))


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """Linear between order statistics ``(K, S)``, as R and numpy do by default."""
    size = ordered.shape[1]
    if size == 1:
        return ordered[:, 0]
    place = size * p + (1 - p)
    k = int(min(max(place, 1), size - 1))
    share = min(max(place - k, 0.0), 1.0)
    low, high = ordered[:, k - 1], ordered[:, k]
    return torch.where(low == high, low, (1 - share) * low + share * high)


def _rhat(c: Tensor) -> Tensor:
    n = c.shape[2]
    within = c.var(2).mean(1)
    between = n * c.mean(2).var(1) if c.shape[1] > 1 else torch.full_like(within, torch.nan)
    return ((n - 1) / n + between / within / n).sqrt()


def _padded(n: int) -> int:
    return 1 << (2 * n - 1).bit_length()


def _transform(c: Tensor) -> Tensor:
    """Fourier transform of centred chains ``(…, n)``, padded so that lags do not wrap round, as pairs of reals."""
    return torch.view_as_real(torch.fft.rfft(c - c.mean(-1, keepdim=True), _padded(c.shape[-1])))


def _autocovariance(c: Tensor) -> Tensor:
    """Of every lag, averaged over chains: ``(K, M, n)`` to ``(K, n)``."""
    k, m, n = c.shape
    power = torch.zeros(k, _padded(n) // 2 + 1, dtype=torch.float64, device=c.device)
    for rows in range(0, m, size := max(1, _BLOCK // (k * n))):
        power += _transform(c[:, rows : rows + size]).square().sum((1, 3))
    return torch.fft.irfft(power, _padded(n))[:, :n] / (m * n)


def _ess(c: Tensor) -> Tensor:
    """Geyer's initial monotone sequence on the autocorrelation averaged over chains; all draws of a constant."""
    m, n = c.shape[1:]
    low, high = c.flatten(1).aminmax(dim=1)
    constant = high - low <= 4 * torch.finfo(c.dtype).eps * torch.maximum(low.abs(), high.abs())
    covariance = _autocovariance(c)
    within = covariance[:, :1] * n / (n - 1)
    total = within * (n - 1) / n
    if m > 1:
        total = total + c.mean(2).var(1)[:, None]
    rho = 1.0 - (within - covariance) / total
    rho = torch.cat([torch.ones_like(total), rho[:, 1:]], 1)
    pairs = max(0, (n - 3) // 2) + 1
    even, odd = rho[:, 0 : 2 * pairs : 2], rho[:, 1 : 2 * pairs : 2]
    pair = even + odd
    # the first pair that is not positive ends the sum; of the last one looked at, half counts when it helps
    over = torch.cat([pair[:, :-1] <= 0, torch.ones_like(pair[:, :1], dtype=torch.bool)], 1)
    end = over.int().argmax(1, keepdim=True)
    counted = torch.arange(pairs, device=c.device) < end
    total_pairs = torch.where(counted, pair.cummin(1).values, 0.0).sum(1)
    rest, whole = even.gather(1, end)[:, 0], pair.gather(1, end)[:, 0]
    tau = -1.0 + 2.0 * total_pairs + torch.where((rest > 0) | (whole >= 0), rest, 0.0)
    size = m * n
    return torch.where(constant, float(size), size / tau.clamp(min=1.0 / math.log10(size)))
