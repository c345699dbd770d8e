r"""What twisted sampling reads from a formula: a prior that changes with σ, and factors that look at its estimate.

A product is split into

``prior``
    the factors that hold the state at large σ: a noised term, or a composite of such terms (guidance, AND).
``twist``
    everything else, as a function :math:`\tilde r(x; \sigma) > 0` that anticipates :math:`r` at the data end. With
    Tweedie's estimate :math:`\hat x_0 = x + (\sigma^2/W)\, s(x; \sigma)`, where W is the sum of the prior's exponents,

    =====================================  =====================================================================
    factor                                 its share of :math:`\tilde r(x; \sigma)`
    =====================================  =====================================================================
    static r                               :math:`\tfrac1K \sum_k r(\hat x_0 + \sqrt{V} \varepsilon_k)`, or
                                           :math:`r(\hat x_0)` for K = 1
    ``Denoised(r, prior)``                 :math:`r(\hat x_0)`
    :class:`Measurement` (y, A, s)         :math:`N(y; A \hat x_0, s^2 I + A V A^\top)`
    :class:`Clamp` (y, mask)               :math:`N(y; \hat x_0, V)` over the masked coordinates
    ``Denoised(r, q)`` of another q,       its own value at (x, σ)
    a noise-aware classifier
    =====================================  =====================================================================

    where :math:`V = \sigma^2 c^2 / (\sigma^2 + c^2)` is the variance of x_0 given x for data of standard deviation c,
    and :math:`\varepsilon_k` are points of N(0, I) in pairs ±ε, drawn once: one twist for the whole run.

Prior and twist are evaluated together: one forward, and one backward for :math:`\nabla_x \log\tilde r` through the
network.

Source of the average over points: J. Song et al. (2023), Loss-guided diffusion models for plug-and-play controllable
generation; there the points are fresh in every step and there are no weights.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.constraints import Denoised
from boltzmix.compose.errors import MissingEnergy, NotNormalizable
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.flat import FlatView
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.measurements import Measurement
from boltzmix.compose.product import Product, moments
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.path import strengths
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.compose.wrappers import On

Pair = tuple[Term, Exponent]
_LOG_2PI = math.log(2 * math.pi)
_PROBES = 32


@dataclass(frozen=True)
class Look:
    """What one evaluation at (x, σ) gives.

    Attributes:
        estimate: x̂0, ``(N, D)``.
        log_twist: log r̃(x; σ), ``(N,)``.
        slope: its gradient with respect to x, ``(N, D)``.
        log_prior: log of the prior's density, ``(N,)``; NaN where it was not asked for.
    """

    estimate: Tensor
    log_twist: Tensor
    slope: Tensor
    log_prior: Tensor

    def select(self, rows: Tensor) -> "Look":
        """The rows of an index."""
        return Look(self.estimate[rows], self.log_twist[rows], self.slope[rows], self.log_prior[rows])


class Twist:
    """A formula split into prior and twist, over full flat states: clamped coordinates are there, and noisy.

    Args:
        request: what was asked for.
        data_std: c, a number, or None to take it from the prior's coarse form, or a pilot where that does not tell.
        energies: whether the prior's log-density is evaluated, too.
        lookahead: K, the number of points at which static factors are averaged.

    Raises:
        TypeError: nothing in the formula changes with σ.
        MissingEnergy: a static factor known by its score alone, or energies of a prior that has none.
        NotNormalizable: a prior whose exponents do not add up to a positive number.
        ValueError: a Clamp, and a data_std of 0.
    """

    def __init__(self, request: Request, data_std: float | None, energies: bool, lookahead: int = 1) -> None:
        """Sort the factors, and find the spread of the data."""
        held = request.view()
        self.original = held.original
        self.mask, self.value = held._held, held._fixed
        if self.mask is not None and data_std == 0:
            raise ValueError("a Clamp is anticipated with a width: data_std is > 0 there, or None")
        view = FlatView(held.term, request.dtype, request.device, request.n).as_product()
        view.counter, view.original = held.counter, held.original
        self.view, self.energies = view, energies
        self.rows = request.n if view.per_row else 1  # the fewest that the prior can be evaluated at
        if view.term.path == "static":
            raise TypeError(
                f"Twisted needs a prior that changes with sigma and {view.term.name()} is static: use SMC or MCMC"
            )
        self._sort()
        self.prior = Product(self._prior, 0.0, view.term.variables)
        self.prior._require_score("Twisted")
        if energies and not self.prior.has_energy:
            raise MissingEnergy(
                f'reference="density" weighs with energies and {self.prior.name()} has only a score; use '
                'reference="chain"'
            )
        self.prior_view = view.with_term(self.prior)
        self.single = self._prior[0][0] if len(self._prior) == 1 and self._prior[0][1].constant == 1.0 else None
        self.variance = self._data_variance(data_std, request)
        self.points = torch.zeros(0, view.dim, dtype=view.dtype, device=view.device)
        if lookahead > 1 and self.plain.factors:
            half = torch.randn(
                lookahead // 2, view.dim, generator=request.generator, dtype=view.dtype, device=view.device
            )
            self.points = torch.cat([half, -half])

    def _sort(self) -> None:
        term = self.view.term
        assert isinstance(term, Product)
        level = torch.tensor(min(max(1.0, term.sigma_range[0]), term.sigma_range[1]), dtype=torch.float64)
        self._prior: list[Pair] = []
        static: list[Pair] = []
        moving: list[Pair] = []
        denoised: list[tuple[Denoised, Exponent]] = []
        self.measured: list[tuple[Measurement, float, str | None]] = []
        for factor, exponent in term.pairs():
            inner, name = (factor.inner, factor.names[0]) if isinstance(factor, On) else (factor, None)
            if factor.path == "static":
                if not factor.has_energy:
                    raise MissingEnergy(f"Twisted weighs with {factor.name()}, which has only a score")
                if isinstance(inner, Measurement) and (exponent.constant or 0.0) > 0:
                    self.measured.append((inner, exponent.constant or 0.0, name))
                static.append((factor, exponent))
            elif isinstance(factor, Denoised):
                denoised.append((factor, exponent))
            elif factor._strength(level) == 0 and factor.has_energy:
                moving.append((factor, exponent))
            else:
                self._prior.append((factor, exponent))
        own = self._prior[0][0].key() if len(self._prior) == 1 else None
        for factor, exponent in denoised:  # of the prior itself: r at an estimate that is there already
            inside = factor.prior.key() == own and self._prior[0][1].constant == 1.0
            (static if inside else moving).append((factor.term if inside else factor, exponent))
        variables = term.variables
        blurred = {id(m) for m, _, _ in self.measured}
        plain = [(t, e) for t, e in static if id(t.inner if isinstance(t, On) else t) not in blurred]
        pointwise = [(t, e) for t, e in plain if any(t is d.term for d, _ in denoised)]
        self.static = Product(static, term.log_scale, variables)
        self.pointwise = Product(pointwise, term.log_scale, variables)
        self.plain = Product([pair for pair in plain if all(pair[0] is not t for t, _ in pointwise)], 0.0, variables)
        self.moving = Product(moving, 0.0, variables)
        self.calibrated = self.static.calibrated and self.moving.calibrated

    def _data_variance(self, data_std: float | None, request: Request) -> Tensor:
        """c² for each flat coordinate, float64."""
        whole = torch.ones(self.view.dim, dtype=torch.float64, device=self.view.device)
        if data_std is not None:
            return whole * float(data_std) ** 2
        low, high = self.prior.sigma_range
        level = min(max(low, 1e-4), high)
        part = self.coarse(level)
        if part is not None:
            spread = moments(part)[1]
            found = (spread if spread.ndim == 1 else spread.diag()).to(whole) - level**2 / self.total(level)
            if bool((found > 1e-3 * level**2).all()):
                return found
        return whole * self._pilot(request)

    def _pilot(self, request: Request) -> float:
        """c² of a prior that does not tell, one number for all coordinates; every evaluation is counted.

        For draws of N(m, (σ²/W) I) at a σ well above c the estimate regresses on x with slope a = c² / (c² + σ²/W).
        The level falls from the top of the range until a is large enough to be seen.
        """
        view, (low, high) = self.view, self.prior.sigma_range
        n = self.rows if view.per_row else _PROBES
        centre = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
        sigma, found = min(high, 1e3), math.inf
        for _ in range(8):
            noise = sigma**2 / self.total(sigma)
            z = torch.randn(n, view.dim, generator=request.generator, dtype=view.dtype, device=view.device)
            view.count(n)
            step = noise.to(z)
            x = centre + step.sqrt() * z
            score = view.score_of(self.prior, x, torch.tensor(sigma, dtype=x.dtype, device=x.device))
            estimate = x + step * score
            centred, by = (estimate - estimate.mean(0)).double(), (x - x.mean(0)).double()
            slope = float((centred * by).sum() / by.square().sum())
            if slope > 0.02 or sigma <= 4 * low:
                found = float(noise.mean()) * slope / (1 - slope) if 0 < slope < 0.98 else math.inf
                break
            centre, sigma = estimate.mean(0), max(sigma / 4, low)
        return found

    def coarse(self, sigma: float) -> Gaussian | GaussianMixture | None:
        """What the prior looks like at a level, a network's look counted for one row; None where it does not say."""
        moving = [t for t, _ in self.prior.pairs() if t.path != "static"]
        if not isinstance(self.prior.variables, Variable) or any(type(t)._coarse is Term._coarse for t in moving):
            return None
        self.view.count(1)
        try:
            return self.prior._coarse(torch.tensor(sigma, dtype=torch.float64, device=self.view.device))
        except NotNormalizable:
            return None

    def centre(self, sigma: float) -> Tensor:
        """Where the prior is centred at a large level, ``(D,)``, by one Newton step from the origin."""
        view = self.view
        origin = torch.zeros(self.rows, view.dim, dtype=view.dtype, device=view.device)
        view.count(len(origin))
        score = view.score_of(self.prior, origin, torch.tensor(sigma, dtype=view.dtype, device=view.device))
        return (sigma**2 / self.total(sigma)).to(score) * score.mean(0)

    # ------------------------------------------------------------------ levels

    def total(self, sigma: float) -> Tensor:
        """W for each flat coordinate, float64."""
        found = strengths(self.prior_view, sigma)
        if not bool((found > 0).all()):
            raise NotNormalizable(
                f"{self.prior.name()} has a total exponent of {float(found.min()):g} at sigma={sigma:g}: the noised "
                "factors must hold every coordinate"
            )
        return found

    def width(self, sigma: float) -> Tensor:
        """V, the variance of x_0 given x at σ, for each flat coordinate, float64."""
        noise = sigma**2 / self.total(sigma)
        return noise / (1.0 + noise / self.variance)

    # ---------------------------------------------------------------- evaluation

    def look(self, x: Tensor, sigma: float) -> Look:
        """Prior and twist at (x, σ): one evaluation."""
        self.view.count(x.shape[0])
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        with torch.enable_grad(), _twice_differentiable(self.prior.has_energy):
            leaf = x.detach().requires_grad_()
            state, log_prior = self.view.unravel(leaf), x.new_full((x.shape[0],), torch.nan)
            if self.energies:
                energy, score = self.prior._energy_and_score(state, level)
                log_prior = energy.detach().neg()
            else:
                score = self.prior._score(state, level)
            step = (sigma**2 / self.total(sigma)).to(x)
            estimate = leaf + step * self.view._joined(self.view._parts(score))
            log_twist = self._log_twist(leaf, estimate, sigma, level)
            slope = torch.zeros_like(x)
            if log_twist.requires_grad:
                (found,) = torch.autograd.grad(log_twist.sum(), leaf, allow_unused=True)
                slope = slope if found is None else found
        return Look(estimate.detach(), log_twist.detach(), slope.detach(), log_prior)

    def _log_twist(self, x: Tensor, estimate: Tensor, sigma: float, level: Tensor) -> Tensor:
        view, width = self.view, self.width(sigma)
        total = x.new_zeros(x.shape[0])
        guess = view.unravel(estimate)
        if self.pointwise.factors or self.pointwise.log_scale:
            total = total - self.pointwise._energy(guess, level)
        if len(self.points):
            total = total - self._averaged(estimate, width.sqrt().to(x), level)
            view.counter.network_rows += (len(self.points) - 1) * x.shape[0] * self.plain._rows()
        elif self.plain.factors:
            total = total - self.plain._energy(guess, level)
        if self.measured:
            spread = view.unravel(width[None].to(x))
            for measurement, power, name in self.measured:
                total = total - measurement.blurred(_of(guess, name), _of(spread, name)[0], power)
        if self.moving.factors:
            total = total - self.moving._energy(view.unravel(x), level)
        if self.mask is not None:
            total = total + self.log_observed(estimate, width)
        return total

    def _averaged(self, estimate: Tensor, spread: Tensor, level: Tensor) -> Tensor:
        """−log of the mean of the static factors over points around the estimate, ``(N,)``."""
        around = estimate + spread * self.points[:, None]
        if self.view.per_row:  # conditions belong to their rows
            energies = torch.stack([self.plain._energy(self.view.unravel(part), level) for part in around])
        else:
            energies = self.plain._energy(self.view.unravel(around.flatten(0, 1)), level).reshape(len(around), -1)
        return math.log(len(around)) - energies.neg().logsumexp(0)

    def log_observed(self, estimate: Tensor, width: Tensor) -> Tensor:
        """log N(y; x̂0, V) over clamped coordinates, ``(N,)``; 0 without any."""
        if self.mask is None or self.value is None:
            return estimate.new_zeros(estimate.shape[0])
        spread = width[self.mask].to(estimate)
        residual = (self.value - estimate)[:, self.mask]
        return -0.5 * (residual.square() / spread + spread.log() + _LOG_2PI).sum(1)

    def end(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log r and the prior's log-density (NaN unless asked for) at the data end: one evaluation."""
        view, n = self.view, x.shape[0]
        view.counter.rows += n
        view.counter.network_rows += n * (self.static._rows() + self.moving._rows())
        state = view.unravel(x)
        total, log_prior = x.new_zeros(n), x.new_full((n,), torch.nan)
        for part in (self.static, self.moving):
            if part.factors or part.log_scale:
                total = total - part._energy(state, None)
        if self.energies:
            view.counter.network_rows += n * self.prior._rows()
            log_prior = -self.prior._energy(state, None)
        return total, log_prior

    def observe(self, x: Tensor) -> Tensor:
        """x with its clamped coordinates at what was observed."""
        if self.mask is None or self.value is None:
            return x
        return torch.where(self.mask, self.value.to(x), x)


def _of(state: Any, name: str | None) -> Any:
    return state[name] if isinstance(state, Mapping) and name is not None else state


def _twice_differentiable(needed: bool) -> contextlib.AbstractContextManager[object]:
    """The attention kernel that has second derivatives, for priors whose score is a gradient already."""
    if not needed:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
