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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite, NotNormalizable
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.flat import FlatTarget, FlatView
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term

_RELATIVE_CAP = 1e-6


@dataclass(frozen=True)
class Point:
    """Flat positions with what the path knows about them: energy, score, and the parts these came from."""

    x: Tensor
    energy: Tensor
    score: Tensor
    parts: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

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

    def after(self, before: Point, x: Tensor, energy: Tensor, score: Tensor, accepted: Tensor) -> Point:
        """The point that a kernel's step left behind."""
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
    ) -> None:
        """Hold the base's energy-and-score function and its exact sampler."""
        self.view = view
        self.base, self._draw = base, draw
        self.has_energy = True
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def start(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws of the base."""
        return self._draw(n, generator)

    def energy_and_score(self, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Energies and scores at λ, remembering the parts."""
        base_energy, base_score = self.base(x)
        energy, score = self.view.at(None).energy_and_score(x)
        self._last = (base_energy, base_score, energy, score)
        return _join(self._last, weight)

    def evaluate(self, x: Tensor, u: float) -> Point:
        """One evaluation of the target and one of the base."""
        energy, score = self.energy_and_score(x, u)
        return Point(x, energy, score, self._last)

    def shift(self, point: Point, u: float) -> Point:
        """Another λ at no cost."""
        if point.parts is None:
            return self.evaluate(point.x, u)
        energy, score = _join(point.parts, u)
        return Point(point.x, energy, score, point.parts)

    def target(self, u: float) -> Any:
        """The joint density at λ = u."""
        return _TemperedTarget(self, u)

    def after(self, before: Point, x: Tensor, energy: Tensor, score: Tensor, accepted: Tensor) -> Point:
        """Take the parts of accepted proposals from the step's last evaluation, if that was the proposal."""
        last, self._last = self._last, None
        if before.parts is None or last is None or last[0].shape != energy.shape:
            return Point(x, energy, score)
        column = accepted[:, None]
        parts = (
            torch.where(accepted, last[0], before.parts[0]),
            torch.where(column, last[1], before.parts[1]),
            torch.where(accepted, last[2], before.parts[2]),
            torch.where(column, last[3], before.parts[3]),
        )
        return Point(x, energy, score, parts)

    def describe(self, u: float) -> dict[str, float]:
        """λ."""
        return {"sigma": 0.0, "weight": u}


class _TemperedTarget:
    def __init__(self, path: TemperedPath, weight: float) -> None:
        self.path, self.weight = path, weight
        self.has_energy = True

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.energy_and_score(x, self.weight)

    def score(self, x: Tensor) -> Tensor:
        return self.path.energy_and_score(x, self.weight)[1]


def _join(parts: tuple[Tensor, Tensor, Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    base_energy, base_score, energy, score = parts
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


def strength(term: Term, sigma: float) -> float:
    """Sum of the exponents of the noised factors at σ: the inverse of the coarse variance in units of σ²."""
    return _strengths(term, torch.tensor(sigma, dtype=torch.float64))


def _strengths(term: Term, sigma: Tensor) -> float:
    if isinstance(term, Product):
        return math.fsum(float(e.value(sigma)) * _strengths(t, sigma) for t, e in term.pairs())
    return 0.0 if term.path == "static" else 1.0


def noise_path(view: FlatView, generator: torch.Generator | None, probes: int) -> NoisePath:
    """Find where the noise path starts: level, centre and variance; everything it evaluates is counted.

    The level descends from the top of the composite's range while draws of the matched Gaussian keep an
    effective sample size above 0.8, so that no mode is missed that is visible from above.

    Raises:
        NotNormalizable: the noised factors have no positive total exponent.
        NonFinite: the composite is not finite at its largest level.
    """
    term = view.term
    low, high = term.sigma_range
    top = min(high, 1e3)
    total = strength(term, top)
    late = total <= 0 or _has_static_factor(term)
    moving = _with_late_factors(view, lambda sigma: torch.zeros_like(sigma)) if late else view
    if moving is not view:
        total = strength(moving.term, top)
    if not total > 0:
        raise NotNormalizable(
            f"{view.original.name()} has noised factors with a total exponent of {total:g} at sigma={top:g}: "
            "there is no level at which its path could start"
        )
    best: tuple[float, Tensor, Tensor] | None = None
    sigma, factor = top, 3.0
    mean = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
    while sigma > max(low, 1e-6):
        total = strength(moving.term, sigma)
        if not total > 0:
            break
        mean, variance, share = _fit_start(moving, sigma, total, mean, generator, probes)
        if best is None and not share > 0:
            raise NonFinite(
                f"{view.original.name()} is not finite around its start at sigma={sigma:g}; check its energies there"
            )
        if best is not None and share < 0.8:
            if factor == 3.0:
                sigma, factor = best[0] / 1.5, 1.5
                mean = best[1]
                continue
            break
        best = (sigma, mean, variance)
        if share < 0.8:
            break
        sigma = sigma / factor
    assert best is not None
    return NoisePath(view, best[0], best[1], best[2], late)


def _fit_start(
    view: FlatView, sigma: float, total: float, mean: Tensor, generator: torch.Generator | None, probes: int
) -> tuple[Tensor, Tensor, float]:
    """Newton steps on the centre, a variance from the score's slope, and the effective fraction of draws."""
    target = view.at(sigma)
    spread = sigma**2 / total
    for _ in range(6):
        move = spread * target.score(mean[None])[0]
        if not bool(torch.isfinite(move).all()):
            break
        mean = mean + move
        if float(move.abs().max()) < 0.05 * math.sqrt(spread):
            break
    variance = torch.full_like(mean, spread)
    x, log_q = gaussian_draws(mean, variance, probes, generator)
    if not view.has_energy:
        score = target.score(x)
        # without energies: how far the score is from that of the Gaussian, in its own units
        gap = ((score + (x - mean) / variance) * (x - mean)).sum(-1)
        return mean, variance, effective_fraction(gap)
    energy = target.energy(x)
    return mean, variance, effective_fraction(-energy - log_q)


def _has_static_factor(term: Term) -> bool:
    return isinstance(term, Product) and any(t.path == "static" for t, _ in term.pairs())


def _with_late_factors(view: FlatView, weight: Callable[[Tensor], Tensor]) -> FlatView:
    """The view's composite with λ(σ) on static factors, and on quotients when these would be improper."""
    term = view.term
    assert isinstance(term, Product)
    improper = strength(term, min(term.sigma_range[1], 1e3)) <= 0
    pairs = []
    for factor, exponent in term.pairs():
        constant = exponent.constant
        negative = constant is not None and constant < 0
        if factor.path == "static" or (improper and negative):
            pairs.append((factor, exponent * Exponent(weight)))
        else:
            pairs.append((factor, exponent))
    clone = object.__new__(FlatView)
    clone.__dict__.update(view.__dict__)
    clone.__dict__.pop("_rows_each", None)
    clone.term = Product(pairs, term.log_scale, term.variables)
    clone.term.sigma_range = term.sigma_range
    return clone
