r"""Where a Feynman–Kac corrected run starts: a level, a Gaussian that is drawn exactly, and its importance weight.

At a large σ every noised factor is close to a Gaussian. Its score at probes tells its variance V_i (the slope), the sum
of the scores that of the formula, :math:`\Sigma^{-1} = \sum_i \beta_i V_i^{-1}`. Particles are drawn from N(m, Σ) and
weighed by

.. math::
    \sum_i \beta_i\, \ell_i(x) - \log N(x; m, \Sigma),

where ℓ_i is log q_i: known for normalised factors with energies, and otherwise the integral of the score from m to x
by the trapezoid rule, with the constant of the Gaussian that the probes show. That is exact for Gaussians of any
covariance, and elsewhere wrong by the excess kurtosis, of the order (C / σ²)² for data of variance C.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite, NotNormalizable
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.feynman_kac import Fade, Flow, Formula, Guess, Values, log_coarse, summed
from boltzmix.compose.samplers.path import gaussian_draws, noise_path, strengths

if TYPE_CHECKING:
    from boltzmix.compose.samplers.fkc import FKC

_PROBES = 256
_GUESS = ("powers", "means", "scales", "pull", "curvature")
_FITTED = 64  # coordinates up to which the Gaussians of a quotient are fitted to its factors one by one
_FARTHER = 3.0  # how far above the lowest level that SMC would start at


@dataclass(frozen=True)
class Begin:
    """The levels, the particles' motion, and the start: N(mean, variance) with what weighs it.

    ``variances`` ``(K, D)`` and ``at_centre`` ``(K, D)`` or ``(K, N, D)`` are the factors' V_i and scores at the mean.
    """

    levels: list[float]
    flow: Flow
    mean: Tensor
    variance: Tensor
    variances: Tensor
    at_centre: Tensor

    def fading(self, k: int) -> float:
        """λ at a level, the weight of static factors."""
        return self.flow.guess.fade.value(self.levels[k])

    def log_weights(self, x: Tensor, formula: Formula, values: Values, powers: list[float]) -> Tensor:
        """The start's log importance weight, ``(N,)``."""
        scaled = (x - self.mean) / self.variance.sqrt()
        total = 0.5 * (scaled.double() ** 2 + (2 * math.pi * self.variance.double()).log()).sum(1)
        for k, (member, power) in enumerate(zip(formula.noised, powers, strict=True)):
            known = values.logs[k] if member.term.normalized else None
            if known is None:
                known = log_coarse(x, values.scores[k], self.at_centre[k], self.mean, self.variances[k], member.columns)
            total = total + power * known.double()
        return total

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the levels."""
        return {
            "start_mean": self.mean, "start_variance": self.variance, "start_variances": self.variances,
            "start_scores": self.at_centre, "strength": self.flow.strength,
            **{f"guess_{name}": getattr(self.flow.guess, name) for name in _GUESS},
        }  # fmt: skip

    @staticmethod
    def restore(tensors: dict[str, Tensor], state: dict[str, Any]) -> "Begin":
        """Take up a snapshot."""
        guess = Guess(**{name: tensors[f"guess_{name}"] for name in _GUESS}, fade=Fade(*state["fade"]))
        flow = Flow(state["noise"], tensors["strength"], guess)
        return Begin(
            state["levels"], flow, tensors["start_mean"], tensors["start_variance"],
            tensors["start_variances"], tensors["start_scores"],
        )  # fmt: skip


def begin_at(formula: Formula, request: Request, sampler: "FKC") -> Begin:
    """Find the start; everything that it evaluates is counted.

    Raises:
        NotNormalizable: exponents of noised factors that do not add up to a positive number.
        NonFinite: the formula is not finite at its largest level.
    """
    view = formula.view
    low, high = view.term.sigma_range
    given = None if sampler.sigmas is None else _levels(sampler.sigmas)
    top = min(high, 1e3)
    total = strengths(view, top)
    if not bool((total > 0).all()):
        raise NotNormalizable(
            f"FKC: the exponents of the noised factors of {view.term.name()} add up to {float(total.min()):g}, so "
            "there is no level where its path could start; use SMC, with terms that have energies"
        )
    if view.per_row:
        seen, centre = _seen_by_rows(formula, request, min(high, 80.0))
    else:
        path = noise_path(view, request.generator, _PROBES if request.n >= 64 else max(32, request.n))
        seen, centre = path.sigma, path.mean
    powers, means, scales = _gaussians(formula, request, seen, centre)
    share = powers.abs()
    own = (share * scales).sum(0) / share.sum(0)
    spread = math.sqrt(float(own.mean()))
    sigma = given[0] if given is not None else min(high, _FARTHER * seen)
    variances, at_centre, variance = _fit(formula, request, sigma, centre)
    levels = given or _karras(sigma, max(low, 2e-3 * min(1.0, spread)), sampler.steps, sampler.rho)
    strength = strengths(view, sigma)
    v = torch.tensor([*levels, 0.0], dtype=torch.float64, device=own.device)[:, None] ** 2
    weak = ((powers / (scales + v[:, None])).sum(1) * (own + v) < 0.2 * strength).any(0)
    if bool((powers < 0).any()) and (view.per_row or view.dim > _FITTED):
        weak = torch.ones_like(weak)  # differences of many noisy fits say nothing, and quotients would amplify it
    alone = torch.zeros_like(powers)
    alone[0] = strength  # one Gaussian where the factors have hardly any precision on the way
    means = torch.where(weak, (share * means).sum(0) / share.sum(0), means)
    powers, scales = torch.where(weak, alone, powers), torch.where(weak, own, scales)
    pull, curvature = _tilt(formula, request, levels[-1], powers, means, scales)
    fade = Fade(levels[0], levels[-1], 1.0 / float((1.0 / own + curvature).max()))
    flow = Flow(float(sampler.noise), strength.to(centre), Guess(powers, means, scales, pull, curvature, fade))
    return Begin(levels, flow, centre, variance, variances, at_centre)


def _levels(sigmas: Any) -> list[float]:
    return [float(s) for s in getattr(sigmas, "begins", sigmas)]


def _karras(top: float, bottom: float, steps: int, rho: float) -> list[float]:
    a, b = top ** (1 / rho), bottom ** (1 / rho)
    return [(a + k / (steps - 1) * (b - a)) ** rho for k in range(steps - 1)] + [bottom]


def _probe(formula: Formula, request: Request, sigma: float, centre: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Draws of the matched Gaussian at a level, and the scores of every factor there."""
    view, n = formula.view, request.n
    variance = (sigma**2 / strengths(view, sigma)).to(centre)
    times, rows = (-(-32 // n), n) if view.per_row else (1, max(32, min(_PROBES, n)))
    draws = [gaussian_draws(centre, variance, rows, request.generator)[0] for _ in range(times)]
    scores = [formula.evaluate(x, sigma).scores for x in draws]
    x, each = torch.cat(draws), [torch.cat(parts) for parts in zip(*scores, strict=True)]
    if not all(bool(torch.isfinite(s).all()) for s in each):
        raise NonFinite(f"{view.original.name()} has scores that are not finite around its start at sigma={sigma:g}")
    return x, each


def _slope(x: Tensor, score: Tensor) -> Tensor:
    """−∂s/∂x of every coordinate by least squares, ``(D,)`` in float64."""
    x, score = x.double() - x.double().mean(0), score.double() - score.double().mean(0)
    return -(x * score).sum(0) / (x * x).sum(0)


def _gaussians(formula: Formula, request: Request, sigma: float, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponents, means and variances of the noised factors as Gaussians, ``(K, D)`` in float64."""
    x, scores = _probe(formula, request, sigma, centre)
    least = (1e-3 * sigma) ** 2
    powers, means, scales = [], [], []
    for member, score in zip(formula.noised, scores, strict=True):
        variance = _variance(_slope(x, score), sigma).clamp(least + sigma**2, 2 * sigma**2)
        powers.append(member.power(sigma) * member.columns.double())
        scales.append(variance - sigma**2)
        means.append(x.double().mean(0) + variance * score.double().mean(0))
    return torch.stack(powers), torch.stack(means), torch.stack(scales)


def _tilt(
    formula: Formula, request: Request, sigma: float, powers: Tensor, means: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """g and H of the static factors, from their gradients at draws of the noised ones as Gaussians."""
    pull, curvature = torch.zeros_like(means[0]), torch.zeros_like(means[0])
    if not formula.static:
        return pull, curvature
    precision = (powers / (scales + sigma**2)).sum(0)
    mean = (powers * means / (scales + sigma**2)).sum(0) / precision
    like = request.n if formula.view.per_row else max(32, min(_PROBES, request.n))
    x = gaussian_draws(mean, 1.0 / precision, like, request.generator)[0].to(formula.view.dtype)
    values = formula.evaluate(x, sigma)
    for member, (_, slope) in zip(formula.static, values.tilts, strict=True):
        kept = torch.isfinite(slope).all(1)
        if int(kept.sum()) >= 8:
            own = _slope(x[kept], slope[kept]).clamp(min=0.0)
            curvature += member.power(None) * own
            pull += member.power(None) * (slope[kept].double().mean(0) + own * x[kept].double().mean(0))
    return pull, curvature.clamp(min=0.0)


def _variance(slope: Tensor, sigma: float, strength: Tensor | float = 1.0) -> Tensor:
    """1 / slope, and σ² / W where the slope is not positive."""
    return torch.where(slope > 0, 1.0 / slope, sigma**2 / torch.as_tensor(strength, dtype=torch.float64))


def _fit(formula: Formula, request: Request, sigma: float, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors' V_i ``(K, D)`` and scores at the centre, and Σ of the formula ``(D,)``."""
    x, scores = _probe(formula, request, sigma, centre)
    variances = torch.stack([_variance(_slope(x, s), sigma) for s in scores])
    precision = sum(
        member.power(sigma) * member.columns / variance.to(centre)
        for member, variance in zip(formula.noised, variances, strict=True)
    )
    assert isinstance(precision, Tensor)
    coarse = (sigma**2 / strengths(formula.view, sigma)).to(centre)
    variance = torch.where(precision > 0, 1.0 / precision, coarse)
    rows = request.n if formula.view.per_row else 1
    at_centre = formula.evaluate(centre.expand(rows, -1), sigma).scores
    return variances.to(centre), torch.stack(at_centre), variance


def _seen_by_rows(formula: Formula, request: Request, top: float) -> tuple[float, Tensor]:
    """A level three times the data's largest standard deviation, and a centre, for targets that differ by row."""
    view = formula.view
    strength = strengths(view, top).to(view.dtype)
    origin = torch.zeros(request.n, view.dim, dtype=view.dtype, device=view.device)
    powers = [member.power(top) for member in formula.noised]
    score = summed(formula.evaluate(origin, top).scores, powers, origin)
    centre = (top**2 / strength * score).mean(0)
    x, scores = _probe(formula, request, top, centre)
    estimate = (x + top**2 / strength * summed(scores, powers, x)).double()
    values = torch.linalg.svdvals(estimate - estimate.mean(0))
    share = float(values[0]) / math.sqrt(len(estimate) - 1) / top  # close to C / σ² times its square root W
    widest = top * math.sqrt(share)
    return min(top, max(3.0 * widest, view.term.sigma_range[0])), centre
