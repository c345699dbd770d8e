r"""Effective sample size and R-hat of chains.

Rank-normalised and split as in Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), *Rank-normalization,
folding, and localization: an improved R-hat for assessing convergence of MCMC*.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def ess(x: Tensor) -> Tensor:
    """Bulk effective sample size.

    Args:
        x: ``(chains, draws, *event)``, at least four draws.

    Returns:
        ``(*event)``; NaN where a coordinate is constant or not finite.
    """
    chains, shape = _columns(x)
    return _over_columns(chains, lambda c: _ess(_rank_normalize(_split(c)))).reshape(shape)


def rhat(x: Tensor) -> Tensor:
    """The larger of the rank-normalised and the folded split R-hat.

    Args:
        x: ``(chains, draws, *event)``, at least four draws.

    Returns:
        ``(*event)``; NaN where a coordinate is constant or not finite.
    """
    chains, shape = _columns(x)

    def both(c: Tensor) -> float:
        split = _split(c)
        folded = (split - split.flatten().quantile(0.5)).abs()
        return max(_rhat(_rank_normalize(split)), _rhat(_rank_normalize(folded)))

    return _over_columns(chains, both).reshape(shape)


def _columns(x: Tensor) -> tuple[Tensor, torch.Size]:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"chains are a floating-point tensor (chains, draws, *event), got {type(x).__name__}")
    if x.ndim < 2 or x.shape[1] < 4:
        raise ValueError(f"chains have shape (chains, draws >= 4, *event), got {tuple(x.shape)}")
    return x.detach().double().reshape(x.shape[0], x.shape[1], -1), x.shape[2:]


def _over_columns(chains: Tensor, fn: Callable[[Tensor], float]) -> Tensor:
    values = []
    for k in range(chains.shape[2]):
        column = chains[:, :, k]
        steady = not bool(torch.isfinite(column).all()) or bool((column == column[0, 0]).all())
        values.append(math.nan if steady else fn(column))
    return torch.tensor(values, dtype=torch.float64)


def _split(c: Tensor) -> Tensor:
    half = c.shape[1] // 2
    return torch.cat([c[:, :half], c[:, -half:]])


def _rank_normalize(c: Tensor) -> Tensor:
    """Φ⁻¹((rank − 3/8) / (size + 1/4)) with average ranks for ties."""
    flat = c.flatten()
    _, inverse, counts = flat.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[inverse]
    return torch.special.ndtri((ranks - 0.375) / (flat.numel() + 0.25)).reshape(c.shape)


def _rhat(c: Tensor) -> float:
    n = c.shape[1]
    within = c.var(1).mean()
    between = n * c.mean(1).var()
    return float(((n - 1) / n + between / within / n).sqrt())


def _ess(c: Tensor) -> float:
    """Geyer's initial monotone sequence on the autocorrelation averaged over chains."""
    m, n = c.shape
    centred = c - c.mean(1, keepdim=True)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(centred, size)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), size)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n
    if m > 1:
        total = total + c.mean(1).var()
    correlation = (1.0 - (within - covariance) / total).tolist()
    rho = [1.0, correlation[1]] + [0.0] * (n - 2)
    even, odd, t = 1.0, correlation[1], 1
    while t < n - 3 and even + odd > 0:
        even, odd = correlation[t + 1], correlation[t + 2]
        if even + odd >= 0:
            rho[t + 1], rho[t + 2] = even, odd
        t += 2
    last = t - 2
    if even > 0:
        rho[last + 1] = even
    for k in range(1, last - 1, 2):
        if rho[k + 1] + rho[k + 2] > rho[k - 1] + rho[k]:
            rho[k + 1] = rho[k + 2] = (rho[k - 1] + rho[k]) / 2
    tau = -1.0 + 2.0 * math.fsum(rho[: last + 1]) + rho[last + 1]
    return m * n / max(tau, 1.0 / math.log10(m * n))
