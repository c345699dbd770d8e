r"""The variational bound on log p of a diffusion model.

For levels :math:`\sigma_1 < \dots < \sigma_T` and the chain :math:`x_0, x_{\sigma_1}, \dots`,

.. math::
    -\log p(x_0) \le L_T + \sum_{t=2}^{T} L_{t-1} + L_0, \qquad
    L_{t-1} = \tfrac12 (\sigma_t^2 / \sigma_{t-1}^2 - 1)\, E\|\varepsilon - \hat\varepsilon(x_{\sigma_t})\|^2,

:math:`L_T = KL(N(x_0, \sigma_T^2 I) \| p_T)` and :math:`L_0 = -E \log p(x_0 | x_{\sigma_1})`. Scaling x at each level
by a schedule's α changes none of them, so one bound serves all schedules with these levels. With ever more levels the
sum becomes :math:`\int E\|\varepsilon - \hat\varepsilon\|^2 d\ln\sigma`.

Sources: J. Ho, A. Jain, P. Abbeel (2020), Denoising diffusion probabilistic models. D. Kingma et al. (2021),
Variational diffusion models.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.term import Term
from boltzmix.compose.variable import expand_rows
from boltzmix.models.likelihood import centre_and_spread, noise_ends, require_noised


class Bound(NamedTuple):
    """A lower bound on log p, ``(N,)``, its standard error ``(N,)``, and its parts: −bound = prior + path + decoder."""

    value: Tensor
    standard_error: Tensor
    prior: Tensor
    path: Tensor
    decoder: Tensor


def diffusion_elbo(
    term: Term,
    x: Tensor,
    levels: int | Sequence[float] | Tensor | None = None,
    *,
    draws: int | None = None,
    repeats: int = 4,
    generator: torch.Generator | None = None,
    decoder: Literal["denoiser", "identity"] = "denoiser",
    bins: tuple[float, float, int] | None = None,
    prior: Gaussian | None = None,
) -> Bound:
    r"""The diffusion bound :math:`-(L_T + \sum L_{t-1} + L_0) \le \log p(x)`, by Monte Carlo (see the module's page).

    The generative chain is :math:`x_T \sim p_T`,
    :math:`x_{t-1} \sim N(r x_t + (1 - r) D(x_t), \sigma_{t-1}^2 (1 - r) I)` with r = σ²_{t−1}/σ²_t and D the term's
    denoiser, and the decoder; the bound is on its log p, for whatever score.

    Args:
        term: a noised term with a score.
        x: ``(N, *event)``; on the grid of ``bins`` where these are given.
        levels: the increasing σ_1 … σ_T, for instance ``schedule.level(torch.arange(T))``; an int for as many geometric
            ones over ``sigma_range``; None for the limit of infinitely many.
        draws: levels drawn per datum and repeat, stratified, each with noise of its own; None for every level once, or
            64 in the limit.
        repeats: independent estimates, whose mean is returned and whose scatter is the standard error (that of few is
            itself uncertain).
        generator: where noise and levels come from.
        decoder: mean of p(x0 | x_{σ_1}): the denoised estimate, or x_{σ_1} itself. Its standard deviation is σ_1.
        bins: (low, high, count) for data on ``count`` equidistant values from low to high: the decoder's Gaussian
            is integrated over the cell of each value, the outer cells open, and the bound is on a log *probability*.
        prior: p_T; None for ``term.coarse(σ_T)``, or the term's own Gaussian.

    Raises:
        TypeError: a term that is not noised.
        ValueError: levels that do not increase, data off the grid of ``bins``.

    Example:
        >>> p = Gaussian(torch.zeros(2), 1.0)
        >>> rng = torch.Generator().manual_seed(0)
        >>> bound = diffusion_elbo(p, torch.zeros(400, 2), torch.logspace(-2, 2, 200), generator=rng)
        >>> gap = float((p.log_prob(torch.zeros(400, 2)) - bound.value).mean())
        >>> 0.0 < gap < 0.5
        True
    """
    require_noised(term)
    term._check(x, None)
    if decoder not in ("denoiser", "identity"):
        raise ValueError(f"decoder is 'denoiser' or 'identity', got {decoder!r}")
    for name, value, least in (("repeats", repeats, 2), ("draws", draws, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is an int >= {least}, got {value!r}")
    ladder = _ladder(term, levels)
    low, high = (ladder[0], ladder[-1]) if ladder is not None else noise_ends(term, None)
    if ladder is None:
        draws = draws or 64
    with torch.no_grad():
        coarse = term.coarse(high) if prior is None else prior
        if not isinstance(coarse, Gaussian):
            raise TypeError(f"the bound's prior is a Gaussian, and {term.name()}.coarse gives a mixture; pass prior=")
        top = _prior_term(x, high, coarse.to(x.dtype).to(x.device))
        spread = centre_and_spread(coarse, high)[1]
        paths, decoders = [], []
        for _ in range(repeats):
            paths.append(_path_term(term, x, ladder, (low, high), draws, spread, generator))
            decoders.append(_decoder_term(term, x, low, decoder, bins, generator))
        path, decoding = torch.stack(paths), torch.stack(decoders)
        error = (path + decoding).std(0) / math.sqrt(repeats)
        return Bound(-(top + (path + decoding).mean(0)), error, top, path.mean(0), decoding.mean(0))


def _ladder(term: Term, levels: int | Sequence[float] | Tensor | None) -> list[float] | None:
    if levels is None:
        return None
    if isinstance(levels, int):
        if isinstance(levels, bool) or levels < 2:
            raise ValueError(f"levels is an int >= 2, increasing noise levels, or None; got {levels!r}")
        low, high = noise_ends(term, None)
        ramp = torch.linspace(math.log(low), math.log(high), levels, dtype=torch.float64).exp()
        ramp[0], ramp[-1] = low, high
        return ramp.tolist()
    values = [float(level) for level in levels]
    if len(values) < 2 or any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"levels increase strictly, at least two of them, got {values[:5]}")
    noise_ends(term, (values[0], values[-1]))
    return values


def _prior_term(x: Tensor, high: float, gaussian: Gaussian) -> Tensor:
    """KL(N(x, σ_T² I) ‖ p_T), ``(N,)``."""
    # E log q is exact, and E −log p_T of a Gaussian is its energy at the mean plus half the trace.
    at_mean = gaussian.energy(x.reshape(len(x), *gaussian.event_shape))
    dim = x[0].numel()
    trace = 0.5 * high**2 * float((1 / gaussian.variances.double()).sum())
    return at_mean + trace - 0.5 * dim * (1 + math.log(2 * math.pi * high**2))


def _path_term(
    term: Term,
    x: Tensor,
    ladder: list[float] | None,
    ends: tuple[float, float],
    draws: int | None,
    spread: float,
    generator: torch.Generator | None,
) -> Tensor:
    """One estimate of Σ L_{t−1}, or of its limit, ``(N,)``."""
    total = x.new_zeros(len(x))
    if ladder is None:
        assert draws is not None
        span = math.log(ends[1] / ends[0])
        for k in range(draws):
            share = (k + _uniform(x, generator)) / draws
            sigma = (math.log(ends[0]) + span * share).exp().clamp(*ends).to(x)
            total = total + span / draws * _noise_error(term, x, sigma, spread, generator)
        return total
    levels = torch.tensor(ladder, dtype=torch.float64, device=x.device)
    weights = 0.5 * (levels[1:] ** 2 / levels[:-1] ** 2 - 1)
    count = len(weights)
    if draws is None:
        for sigma, weight in zip(levels[1:], weights, strict=True):
            total = total + float(weight) * _noise_error(term, x, sigma.to(x), spread, generator)
        return total
    for k in range(draws):
        index = ((k + _uniform(x, generator)) / draws * count).long().clamp(max=count - 1)
        error = _noise_error(term, x, levels[1:][index].to(x), spread, generator)
        total = total + count / draws * weights[index].to(x) * error
    return total


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device, dtype=torch.float64)


def _noise_error(term: Term, x: Tensor, sigma: Tensor, spread: float, generator: torch.Generator | None) -> Tensor:
    """‖ε − ε̂‖² for one draw of the noise in each row, ε̂ = −σ s, less its part in ‖ε‖² − D, whose mean is 0.

    That part is (c² / (c² + σ²))² for Gaussian data of spread c: nearly all of the scatter at small σ.
    """
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    level = expand_rows(sigma, x)
    score = term.score(x + level * noise, sigma)
    assert isinstance(score, Tensor)
    part = (spread**2 / (spread**2 + sigma**2)) ** 2
    excess = noise.square().flatten(1).sum(1) - x[0].numel()
    return (noise + level * score).square().flatten(1).sum(1) - part * excess


def _decoder_term(
    term: Term,
    x: Tensor,
    low: float,
    decoder: str,
    bins: tuple[float, float, int] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """One estimate of −E log p(x0 | x_{σ_1}), ``(N,)``."""
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    noisy = x + low * noise
    mean = term.denoise(noisy, low) if decoder == "denoiser" else noisy
    assert isinstance(mean, Tensor)
    if bins is None:
        # ‖x − mean‖² / σ_1² is close to ‖ε‖², whose mean is D
        gap = (((x - mean) / low).square() - noise.square()).flatten(1).sum(1)
        return 0.5 * gap + 0.5 * x[0].numel() * (1 + math.log(2 * math.pi * low**2))
    first, last, count = bins
    if not (isinstance(count, int) and count >= 2 and first < last):
        raise ValueError(f"bins is (low, high, count) with low < high and count >= 2, got {bins}")
    cell = (last - first) / (count - 1)
    index = (x - first) / cell
    if bool(((index - index.round()).abs() > 1e-3).any()) or bool((index < -0.5).any() | (index > count - 0.5).any()):
        raise ValueError(
            f"the data lie on the {count} values from {first:g} to {last:g} that bins= names; these do not"
        )
    right = torch.where(index.round() >= count - 1, torch.inf, (x + cell / 2 - mean) / low)
    left = torch.where(index.round() <= 0, -torch.inf, (x - cell / 2 - mean) / low)
    return -_log_mass(left, right).flatten(1).sum(1)


def _log_mass(left: Tensor, right: Tensor) -> Tensor:
    """log(Φ(right) − Φ(left)), in the tail where it does not cancel."""
    flip = left + right > 0
    a = torch.where(flip, -right, left)
    b = torch.where(flip, -left, right)
    upper, lower = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    return upper + torch.log1p(-(lower - upper).exp())
