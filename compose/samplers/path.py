r"""Paths: one-parameter families of densities from a start that is sampled exactly to the target.

A path runs over u ∈ [0, 1]. All of them offer the same three things: draws from the start with their
log-density, energies and scores at (x, u), and the same at another u for points already evaluated.

:class:`NoisePath`
    :math:`E(x; u) = E(x; \sigma(u))` with :math:`\sigma(u) = \sigma_{min} + (\sigma_0 - \sigma_{min})(1 - u)^4`
    and σ = None at u = 1. Static factors, and quotients that would be improper at large σ, enter with
    :math:`\lambda(\sigma)` that rises from 0 to 1.
:class:`TemperedPath`
    :math:`E(x; u) = (1 - \lambda) E_b(x) + \lambda E(x)` with :math:`\lambda = u`: from exact draws of a
    factor, or from a Gaussian fitted to the target. Points keep the energies of both ends, so moving to
    another λ costs nothing.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.flat import FlatTarget, FlatView
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.wrappers import On, Wrapper

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Point:
    """Flat positions with what the path knows about them: energy, score, and the parts these came from."""

    x: Tensor
    energy: Tensor
    score: Tensor
    parts: Parts | None = None

    def select(self, rows: Tensor) -> "Point":
        """The points at an index of rows."""
        parts = None if self.parts is None else tuple(p[rows] for p in self.parts)
        return Point(self.x[rows], self.energy[rows], self.score[rows], parts)  # pyright: ignore[reportArgumentType]


class Path:
    """A family of densities over u ∈ [0, 1]; see the module's page."""

    view: FlatView
    has_energy: bool
    normalized_start: bool = True

    def start(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws ``(n, D)`` and the log-density of the start at them."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, u: float) -> Point:
        """Energies and scores at u."""
        raise NotImplementedError

    def shift(self, point: Point, u: float) -> Point:
        """The same points at another u."""
        return self.evaluate(point.x, u)

    def target(self, u: float) -> Any:
        """The target that kernels see at u."""
        raise NotImplementedError

    def number(self, u: float) -> float | None:
        """What stands in the density for u, σ or λ; None at the end, where neither does."""
        raise NotImplementedError

    def target_at(self, number: Any) -> Any:
        """The target at a level given as a number, a tensor () or None."""
        raise NotImplementedError

    def after(self, target: Any, before: Point, x: Tensor, energy: Tensor, score: Tensor) -> Point:
        """The point that a kernel's step on ``target`` left behind."""
        return Point(x, energy, score)

    def describe(self, u: float) -> dict[str, float]:
        """The noise level and the weight of late factors at u, for reports."""
        raise NotImplementedError


class NoisePath(Path):
    """Down the noise levels of a composite."""

    def __init__(self, view: FlatView, sigma: float, mean: Tensor, variance: Tensor, late: bool) -> None:
        """Start at N(mean, variance) for noise level ``sigma``; ``late`` factors enter with λ(σ)."""
        self.sigma, self.low = sigma, view.term.sigma_range[0]
        self.mean, self.variance = mean, variance
        self.has_energy = view.has_energy
        self.late = late
        self.original = view
        self.view = _with_late_factors(view, self.weight_at) if late else view

    def level(self, u: float) -> float | None:
        """σ(u); None at the end."""
        return None if u >= 1.0 else self.low + (self.sigma - self.low) * (1.0 - u) ** 4

    def weight_at(self, sigma: Tensor) -> Tensor:
        """λ(σ), the weight of late factors."""
        share = ((sigma - self.low) / (self.sigma - self.low)).clamp(0.0, 1.0)
        return (1.0 - share**0.25) ** 4

    def start(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Gaussian draws."""
        return gaussian_draws(self.mean, self.variance, n, generator)

    def target(self, u: float) -> FlatTarget:
        """The composite at σ(u)."""
        return self.view.at(self.level(u))

    def number(self, u: float) -> float | None:
        """σ(u)."""
        return self.level(u)

    def target_at(self, number: Any) -> FlatTarget:
        """The composite at a σ."""
        return self.view.at(number)

    def evaluate(self, x: Tensor, u: float) -> Point:
        """One evaluation of the composite."""
        if not self.has_energy:
            return Point(x, x.new_full((x.shape[0],), torch.nan), self.target(u).score(x))
        return Point(x, *self.target(u).energy_and_score(x))

    def describe(self, u: float) -> dict[str, float]:
        """σ and λ."""
        level = self.level(u)
        weight = 1.0 if level is None else float(self.weight_at(torch.tensor(level, dtype=torch.float64)))
        return {"sigma": 0.0 if level is None else level, "weight": weight if self.late else 1.0}


class TemperedPath(Path):
    """From a base density to the target by a geometric path."""

    def __init__(
        self,
        view: FlatView,
        base: Callable[[Tensor], tuple[Tensor, Tensor]],
        draw: Callable[[int, torch.Generator | None], tuple[Tensor, Tensor]],
        base_rows: int = 0,
    ) -> None:
        """Hold the base's energy-and-score function, its exact sampler, and what one evaluation costs its networks."""
        self.view = view
        self.base, self._draw, self.base_rows = base, draw, base_rows
        self.has_energy = True

    def start(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws of the base."""
        return self._draw(n, generator)

    def parts(self, x: Tensor) -> Parts:
        """Energies and scores of both ends: one evaluation of the target and one of the base."""
        self.view.counter.network_rows += x.shape[0] * self.base_rows
        return *self.base(x), *self.view.at(None).energy_and_score(x)

    def evaluate(self, x: Tensor, u: float) -> Point:
        """One evaluation of the target and one of the base."""
        parts = self.parts(x)
        return Point(x, *join(parts, u), parts)

    def shift(self, point: Point, u: float) -> Point:
        """Another λ at no cost."""
        if point.parts is None:
            return self.evaluate(point.x, u)
        energy, score = join(point.parts, u)
        return Point(point.x, energy, score, point.parts)

    def target(self, u: float) -> "TemperedTarget":
        """The joint density at λ = u."""
        return TemperedTarget(self, u)

    def number(self, u: float) -> float | None:
        """λ; None at the target."""
        return None if u >= 1.0 else u

    def target_at(self, number: Any) -> "TemperedTarget":
        """The joint density at a λ."""
        return TemperedTarget(self, 1.0 if number is None else number)

    def after(self, target: Any, before: Point, x: Tensor, energy: Tensor, score: Tensor) -> Point:
        """Take the parts of rows that moved from the step's last evaluation, if that is where they moved to.

        The last evaluation of a trajectory that chooses among its points (NUTS) is elsewhere: those are evaluated anew.
        """
        last, at = target.last, target.where
        if before.parts is None or last is None or at is None or at.shape != x.shape:
            return Point(x, energy, score)
        there = (x == at).all(1)
        if not bool((there | (x == before.x).all(1)).all()):
            return Point(x, energy, score)
        column = there[:, None]
        parts = (
            torch.where(there, last[0], before.parts[0]),
            torch.where(column, last[1], before.parts[1]),
            torch.where(there, last[2], before.parts[2]),
            torch.where(column, last[3], before.parts[3]),
        )
        return Point(x, energy, score, parts)

    def describe(self, u: float) -> dict[str, float]:
        """λ."""
        return {"sigma": 0.0, "weight": u}


class TemperedTarget:
    """The density of a geometric path at one λ, a number or a tensor ().

    ``last`` holds the parts of the last evaluation, and ``where`` its positions.
    """

    def __init__(self, path: TemperedPath, weight: Any) -> None:
        """Bind a path to a level."""
        self.path, self.weight, self.view = path, weight, path.view
        self.has_energy, self.dim = True, path.view.dim
        self.last: Parts | None = None
        self.where: Tensor | None = None

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation of the target and one of the base."""
        self.last, self.where = self.path.parts(x), x
        return join(self.last, self.weight)

    def score(self, x: Tensor) -> Tensor:
        """Scores ``(N, D)``."""
        return self.energy_and_score(x)[1]

    def count(self, rows: int) -> None:
        """Record ``rows`` evaluations."""
        self.view.count(rows)
        self.view.counter.network_rows += rows * self.path.base_rows


def join(parts: Parts, weight: Any) -> tuple[Tensor, Tensor]:
    """Energies and scores at λ; at its ends the other part, which may be infinite, does not enter."""
    base_energy, base_score, energy, score = parts
    if not isinstance(weight, Tensor):
        if weight == 0.0:
            return base_energy, base_score
        if weight == 1.0:
            return energy, score
    return (1.0 - weight) * base_energy + weight * energy, (1.0 - weight) * base_score + weight * score


def gaussian_draws(mean: Tensor, variance: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draws of a diagonal Gaussian and their log-density."""
    noise = torch.randn(n, len(mean), generator=generator, dtype=mean.dtype, device=mean.device)
    logs = -0.5 * (noise * noise).sum(-1) - 0.5 * (variance.log() + math.log(2 * math.pi)).sum()
    return mean + variance.sqrt() * noise, logs


def effective_fraction(log_weights: Tensor) -> float:
    """Effective sample size as a fraction, (Σw)² / (n Σw²); 0 when nothing is finite."""
    logs = torch.where(torch.isnan(log_weights), -torch.inf, log_weights).double()
    top = logs.max()
    if not bool(torch.isfinite(top)):
        return 0.0
    w = (logs - top).exp()
    return float(w.sum() ** 2 / (len(w) * (w * w).sum()))


def strengths(view: FlatView, sigma: float) -> Tensor:
    """For each flat coordinate, the sum of the exponents of the noised factors over its variable.

    At large σ a coordinate of strength W is close to N(·, σ² / W).
    """
    found = _strengths(view.term, torch.tensor(sigma, dtype=torch.float64))
    names = view.names or ["x"]
    return view.spread([found.get(name, 0.0) for name in names])


def _strengths(term: Term, sigma: Tensor) -> dict[str, float | Tensor]:
    if isinstance(term, Product):
        total: dict[str, float | Tensor] = {}
        for factor, exponent in term.pairs():
            weight = float(exponent.value(sigma))
            for name, value in _strengths(factor, sigma).items():
                total[name] = total.get(name, 0.0) + weight * value
        return total
    if isinstance(term, On):
        inner = _strengths(term.inner, sigma)
        old = term.inner.variables if isinstance(term.inner.variables, Mapping) else ["x"]
        return {new: inner[name] for new, name in zip(term.names, old, strict=True) if name in inner}
    if isinstance(term, Wrapper) and type(term)._strength is Wrapper._strength:  # Known has entries of its own
        return _strengths(term.inner, sigma)
    return dict.fromkeys(term.variables if isinstance(term.variables, Mapping) else ["x"], term._strength(sigma))


def noise_path(view: FlatView, generator: torch.Generator | None, probes: int) -> NoisePath:
    """Find where the noise path starts: level, centre and variance; everything it evaluates is counted.

    The level descends from the top of the composite's range while draws of the matched Gaussian keep an
    effective sample size above 0.8, and while they stay three times wider than the data (as seen from the level above).
    The second rule keeps separate modes in view: from too low a start, draws around one mode look perfect.

    Raises:
        NotNormalizable: the noised factors have no positive total exponent.
        NonFinite: the composite is not finite at its largest level.
    """
    term = view.term
    low, high = term.sigma_range
    top = min(high, 1e3)
    late = bool((strengths(view, top) <= 0).any()) or _has_static_factor(term)
    moving = _with_late_factors(view, lambda sigma: torch.zeros_like(sigma)) if late else view
    if not bool((strengths(moving, top) > 0).all()):
        raise NotNormalizable(
            f"{view.original.name()}: at sigma={top:g} the exponents of its noised factors add up to "
            f"{float(strengths(moving, top).min()):g} for a variable, so there is no level where its path could start; "
            "give every variable a noised prior, or use static terms only"
        )
    origin = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
    sigma, best = top, _fit_start(moving, top, origin, generator, probes)
    if not best[2] > 0:
        raise NonFinite(
            f"{view.original.name()} is not finite around its start at sigma={top:g}; check its energies there"
        )
    while best[2] < 0.8 and sigma < min(high, 1e7):  # data of a scale beyond the usual top
        sigma = min(10 * sigma, high)
        best = _fit_start(moving, sigma, origin, generator, probes)
    for factor in (3.0, 1.5):
        while best[2] >= 0.8 and sigma / factor > max(low, 1e-6) and best[3] * factor**2 < 1 / 9:
            found = _fit_start(moving, sigma / factor, best[0], generator, probes)
            if found[2] < 0.8:
                break
            sigma, best = sigma / factor, found
    if best[2] < 0.5:
        warnings.warn(
            f"{view.original.name()}: even at sigma={sigma:.3g}, the top of its range, draws of the matched Gaussian "
            f"have an effective size of {best[2]:.0%}; modes that are not visible from there may be missed",
            SamplingWarning,
            stacklevel=6,
        )
    return NoisePath(view, sigma, best[0], best[1], late)


def has_noise_path(view: FlatView) -> bool:
    """Whether the noised factors alone hold every variable at large σ, without static factors and quotients."""
    view = view.as_product()
    top = min(view.term.sigma_range[1], 1e3)
    moving = _with_late_factors(view, lambda sigma: torch.zeros_like(sigma))
    return bool((strengths(moving, top) > 0).all())


def _fit_start(
    view: FlatView, sigma: float, mean: Tensor, generator: torch.Generator | None, probes: int
) -> tuple[Tensor, Tensor, float, float]:
    """Newton steps on the centre, the coarse variance, the effective fraction of Gaussian draws, and the data's spread.

    The spread is the largest eigenvalue of the data's covariance in units of the coarse variance. For draws x of the
    matched Gaussian N(m, V), Tweedie's estimate x + V s(x) regresses to the data's mean with slope C / (C + V), so
    its covariance in whitened units is close to (C / V)².
    """
    target = view.at(sigma)
    variance = (sigma**2 / strengths(view, sigma)).to(mean)
    if not bool((variance > 0).all()):
        return mean, variance, 0.0, math.inf
    for _ in range(6):
        move = variance * target.score(mean[None])[0]
        if not bool(torch.isfinite(move).all()):
            break
        mean = mean + move
        if bool((move.abs() < 0.05 * variance.sqrt()).all()):
            break
    x, log_q = gaussian_draws(mean, variance, probes, generator)
    if view.has_energy:
        energy, score = target.energy_and_score(x)
        share = effective_fraction(-energy - log_q)
    else:
        score = target.score(x)
        # without energies: how far the score is from that of the Gaussian, in its own units
        share = effective_fraction(((score + (x - mean) / variance) * (x - mean)).sum(-1))
    estimate = ((x + variance * score) / variance.sqrt()).double()
    estimate = estimate[torch.isfinite(estimate).all(1)]
    if len(estimate) < 2:
        return mean, variance, share, math.inf
    centred = estimate - estimate.mean(0)
    if len(centred) < centred.shape[1]:  # the same from inner products, many times faster where rows are images
        top = math.sqrt(max(float(torch.linalg.eigvalsh(centred @ centred.mT)[-1]), 0.0))
    else:
        top = float(torch.linalg.svdvals(centred)[0])
    return mean, variance, share, top / math.sqrt(len(estimate) - 1)


def _has_static_factor(term: Term) -> bool:
    return isinstance(term, Product) and any(t.path == "static" for t, _ in term.pairs())


def _with_late_factors(view: FlatView, weight: Callable[[Tensor], Tensor]) -> FlatView:
    """The view's composite with λ(σ) on static factors, and on quotients when these would be improper."""
    term = view.term
    assert isinstance(term, Product)
    improper = bool((strengths(view, min(term.sigma_range[1], 1e3)) <= 0).any())
    pairs = []
    for factor, exponent in term.pairs():
        constant = exponent.constant
        negative = constant is not None and constant < 0
        if factor.path == "static" or (improper and negative):
            pairs.append((factor, exponent * Exponent(weight)))
        else:
            pairs.append((factor, exponent))
    product = Product(pairs, term.log_scale, term.variables)
    product.sigma_range = term.sigma_range
    return view.with_term(product)
