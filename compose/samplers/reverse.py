r"""Reverse diffusion in the σ coordinate: Heun, Euler (DDIM), DDPM, DPM-Solver++ (2M) and their stochastic versions.

With :math:`x_\sigma = x_0 + \sigma \varepsilon` the probability-flow equation is
:math:`dx/d\sigma = -\sigma\, s(x; \sigma) = (x - D) / \sigma` with :math:`D = x + \sigma^2 s`. By default levels
follow Karras et al. (2022),
:math:`\sigma_i = (\sigma_{max}^{1/\rho} + \tfrac{i}{N-1}(\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}))^\rho`, ρ = 7.

In this coordinate the samplers of the literature are one step, from σ to σ' with fresh noise z:

.. math::
    x' = B + \frac{\sqrt{\sigma'^2 - v}}{\sigma} (x - B) + \sqrt{v}\, z, \qquad
    v = \eta^2 \sigma'^2 \Bigl(1 - \frac{\sigma'^2}{\sigma^2}\Bigr).

B = D and η = 0 is DDIM (Song, Meng, Ermon 2021), which is Euler's method; η = 1 is DDPM's ancestral step (Ho, Jain,
Abbeel 2020), also known as Euler ancestral. With B extrapolated from the last two estimates, linearly in −log σ, it is
DPM-Solver++ (2M) for η = 0 and its SDE version for η = 1 (Lu et al. 2022).

The scheme is exact only for noised terms. The sum of the scores of noised factors is not the score of the
noised product: for composites this sampler is biased, and warns so. A corrector moves states on the composite's own
density at every level (:mod:`boltzmix.compose.samplers.predictor_corrector`).
"""

import itertools
import math
import time
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.flat import FlatView
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.samplers.base import Progress, Request, Sampler, frames_of, is_number, new_info
from boltzmix.compose.samplers.from_noise import from_noise
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.path import gaussian_draws, noise_path, strengths
from boltzmix.compose.samplers.predictor_corrector import check_corrector, corrector_of
from boltzmix.compose.samplers.sums import run_strata
from boltzmix.compose.term import Term, check_levels

_SOLVERS = ("heun", "ddim", "ddpm", "dpmpp", "euler", "euler-ancestral")
_VARIANCES = ("small", "large", "learned")


@dataclass(frozen=True)
class Reverse(Sampler):
    """Reverse diffusion from the largest noise level to the data end.

    Biased for products, powers and quotients (a warning names the factor that makes it so); use SMC, Annealed or a
    corrector there. With a Clamp it is the replacement heuristic: known coordinates are set to their noised
    values at every level, which is not conditioning.

    ``sample(…, init=x)`` starts from states x at the first level, ``(n, *event)``, in place of draws of the term's
    coarse form. Random numbers are drawn from the generator in this order: the start, unless ``init`` is given, as
    one ``randn`` of all states; then for each step, where its noise is not zero, one ``randn`` of all states (before
    it, with a Clamp, one for the clamped coordinates; then what a corrector draws).

    Args:
        steps: number of levels above zero.
        solver: ``"heun"`` (second order, two evaluations a step), ``"ddim"`` (Euler's method when eta is 0, and then
            the same as ``"euler"``), ``"ddpm"`` (ancestral), ``"dpmpp"`` (DPM-Solver++ 2M), ``"euler-ancestral"``
            (the same as ``"ddim"`` with eta 1).
        sigmas: the decreasing levels to use instead of Karras', or a :class:`Ladder`.
        rho: curvature of Karras' levels.
        record: keep the states of every level for ``Draw.animate``.
        eta: share of fresh noise, for ddim and dpmpp: 0 is deterministic, 1 replaces as much as DDPM does.
        order: of dpmpp, 1 or 2.
        last_order: of dpmpp's last step, where that ends above zero; a step to zero is of the first order.
        variance: of ddpm's noise: ``"small"`` (of the posterior given x0), ``"large"`` (of the forward step), or
            ``"learned"`` (between the two, by a network with twice the channels).
        clip: (least, greatest) value of the denoised estimate, a bias that some models were tuned with; None for none.
        corrector: a kernel that moves the states at every level but the first, before the next step leaves it. That
            step takes the score from the corrector's last evaluation. ``UHMC``, ``ULA`` and ``Underdamped`` add their
            own bias; ``HMC``, ``GHMC``, ``MALA`` and ``Barker`` test their proposals, by line integrals where a term
            has a score alone.
        corrections: transitions of the corrector at each of these levels.
        between: (lowest, highest) noise level that is corrected; None corrects all but the first. What a composite
            looks like is decided in part of its levels, and that is where corrections are worth their evaluations.
        snr: signal-to-noise ratio that a corrector without a step size takes it from, in place of adapting it.

    Raises:
        ValueError: settings outside their range, or that the solver does not take.
        MissingEnergy: a corrector that needs energies, on a score-only term.

    Example:
        >>> from boltzmix.compose import UHMC, Gaussian, sample
        >>> p, q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 1.0)
        >>> corrected = Reverse(steps=20, solver="ddim", corrector=UHMC(num_leapfrog=3), corrections=2)
        >>> draw = sample(p * q, 500, sampler=corrected, seed=0)
        >>> draw.info.evaluations < 20 * 7 + 20, 0.4 < float(draw.x.var(0).mean()) < 0.6
        (True, True)
    """

    takes_states: ClassVar[bool] = True

    steps: int = 50
    solver: str = "heun"
    sigmas: tuple[float, ...] | Ladder | None = None
    rho: float = 7.0
    record: bool = False
    eta: float = 0.0
    order: int = 2
    last_order: int = 2
    variance: str = "small"
    clip: tuple[float, float] | None = None
    corrector: Kernel | None = None
    corrections: int = 1
    between: tuple[float, float] | None = None
    snr: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Reverse needs steps >= 1, got {self.steps!r}")
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver is one of {_SOLVERS}, got {self.solver!r}")
        if not is_number(self.rho) or not 0 < self.rho < math.inf:
            raise ValueError(f"Reverse needs a positive finite rho, got {self.rho!r}")
        if self.sigmas is not None and not isinstance(self.sigmas, Ladder):
            levels = [float(s) for s in self.sigmas]
            falling = all(a > b for a, b in itertools.pairwise(levels))
            if not levels or not falling or not levels[-1] > 0 or not levels[0] < math.inf:
                raise ValueError(f"sigmas are finite, positive and strictly decreasing, got {levels}")
        if not is_number(self.eta) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta is a share of noise in [0, 1], got {self.eta!r}")
        if self.eta and self.solver not in ("ddim", "dpmpp"):
            raise ValueError(f"eta is for the solvers ddim and dpmpp; {self.solver!r} has a fixed one")
        if self.order not in (1, 2) or self.last_order not in (1, 2):
            raise ValueError(f"dpmpp has order and last_order 1 or 2, got {self.order!r} and {self.last_order!r}")
        if self.variance not in _VARIANCES:
            raise ValueError(f"variance is one of {_VARIANCES}, got {self.variance!r}")
        if self.variance != "small" and self.solver != "ddpm":
            raise ValueError(f'variance={self.variance!r} is for solver="ddpm", got solver={self.solver!r}')
        if self.clip is not None:
            low, high = self.clip
            if not low < high:
                raise ValueError(f"clip is (least, greatest) with least < greatest, got {self.clip!r}")
            if self.solver == "heun":
                raise ValueError("clip= is for solvers of one evaluation a step, not for heun")
        check_corrector(self)

    def run(self, request: Request) -> Draw:
        """Integrate from the largest level to the data end."""
        term = request.term
        if isinstance(term, Mixture) and not term.has_energy:
            if request.init is not None:
                raise TypeError(
                    "init= does not say which member of a score-only mixture a state belongs to: leave it out"
                )
            return run_strata(self, request)
        if request.checkpoint is not None:
            raise ValueError("Reverse is short and keeps no checkpoint; leave out checkpoint=")
        clock = time.perf_counter()
        view = request.view()
        if term.path == "static":
            raise TypeError(
                f"Reverse needs a term that changes with sigma and {term.name()} is static: use SMC or MCMC"
            )
        if view.term.path != "noised" and self.corrector is None:
            _warn_once(
                f"Reverse on {term.name()}: {view.term.path_reason}, so the sum of noisy scores is not the score of "
                "the noised composite and the draws are biased; use SMC, or Annealed for score-only terms"
            )
        if view.term is not term:
            _warn_once(
                "Reverse with a Clamp is the replacement heuristic: known coordinates are set to their noised values "
                "at every level, which biases the others; use Annealed or SMC"
            )
        ladder, x = self._start(view, request)
        fixed = view._fixed
        correct = corrector_of(self, view, ladder)
        frames = [x.clone()] if self.record else []
        bar = Progress("Reverse", request.progress)
        previous: tuple[Tensor, float] | None = None
        try:
            for k, sigma in enumerate(ladder.begins):
                if fixed is not None:
                    noise = torch.randn(
                        request.n, fixed.shape[1], generator=request.generator, dtype=x.dtype, device=x.device
                    )
                    view._fixed = fixed + sigma * noise if sigma < math.inf else noise
                score, share = None, 1.0
                if correct is not None:
                    share = correct.share(sigma)
                    if k and correct.wanted(sigma):
                        x, score = correct(x, sigma, request.generator)
                x, previous = self._step(view, x, ladder, k, previous, request.generator, score, share)
                if ladder.carry is not None and ladder.carry[k] != 1.0:
                    x = ladder.centre + ladder.carry[k] * (x - ladder.centre)
                if frames:
                    frames.append(x.clone())
                bar((k + 1) / len(ladder.begins), f"sigma={ladder.ends[k]:.3g}")
        finally:
            view._fixed = fixed
            bar.close()
        info = new_info(self, request)
        info.path, info.ess = "noise", float(request.n)
        info.divergences = int((~torch.isfinite(x).all(1)).sum())
        if info.divergences:
            warnings.warn(
                f"Reverse: {info.divergences} of {request.n} draws are not finite; they are returned as they are",
                SamplingWarning,
                stacklevel=3,
            )
        info.levels = [{"sigma": s} for s in ladder.begins]
        if correct is not None:
            correct.report(info)
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.seconds = time.perf_counter() - clock
        return Draw(view.unravel(x), zeros(request.n, x), None, None, info, frames_of(view, frames))

    # ------------------------------------------------------------------ start

    def _start(self, view: FlatView, request: Request) -> tuple[Ladder, Tensor]:
        """The ladder, and states at its first level."""
        low, high = view.term.sigma_range
        ladder = self.sigmas if isinstance(self.sigmas, Ladder) else None
        if ladder is None and self.sigmas is not None:
            ladder = Ladder.down([float(s) for s in self.sigmas])  # pyright: ignore[reportGeneralTypeIssues]
        if ladder is not None:
            finite = [s for s in ladder.begins if s < math.inf]
            check_levels(torch.tensor(finite, dtype=torch.float64), (low, high), view.term.name())
            if self.solver == "heun" and ladder.begins[0] == math.inf:
                raise ValueError('solver="heun" starts at a finite level, and this ladder at inf; use "euler"')
        top = ladder.begins[0] if ladder is not None else (high if high < 1e3 else None)
        if top is None and view.term._rows():
            top = 1e3  # a network's own range is open above: no evaluations are spent on the search for a start
        if request.init is not None:
            x = self._given(view, request, top)
        elif ladder is not None and ladder.spread is not None:
            noise = self._noise(view, request)
            x = noise if top == math.inf else ladder.centre + ladder.spread * noise
        else:
            x, top = self._coarse(view, request, top)
        if ladder is not None:
            return ladder, x
        assert top is not None
        bottom = max(low, 2e-3 * min(1.0, top))
        ramp = [i / max(self.steps - 1, 1) for i in range(self.steps)]
        a, b = top ** (1 / self.rho), bottom ** (1 / self.rho)
        return Ladder.down([(a + t * (b - a)) ** self.rho for t in ramp]), x

    @staticmethod
    def _noise(view: FlatView, request: Request) -> Tensor:
        return torch.randn(
            request.n, view.dim, generator=request.generator, dtype=view.dtype, device=view.device
        )  # fmt: skip

    def _given(self, view: FlatView, request: Request, top: float | None) -> Tensor:
        """The states that ``init`` holds, checked."""
        init = request.init
        if isinstance(init, Term):
            raise TypeError(
                "init for Reverse is the states at its first level, a tensor (n, *event), not a term; draw them first: "
                "init=term.sample(n)"
            )
        if top is None:
            raise ValueError("init= holds states at the first level: say which one it is, Reverse(sigmas=…)")
        request.term._check(init, None)
        x = view.ravel(init)
        if x.shape[0] != request.n:
            raise ValueError(f"init holds {x.shape[0]} states and n={request.n} draws were asked for")
        if x.dtype != view.dtype:
            raise TypeError(f"init is {x.dtype} and the target {view.dtype}; convert it, or pass dtype={x.dtype}")
        if not bool(torch.isfinite(x).all()):
            raise NonFinite("init holds numbers that are not finite")
        return x.to(view.device)

    @staticmethod
    def _coarse(view: FlatView, request: Request, top: float | None) -> tuple[Tensor, float]:
        """Draws of what the term looks like at its top level, and that level."""
        if top == math.inf:
            raise ValueError("a ladder that begins at inf starts from unit noise: give it spread=1.0, or pass init=")
        inner = view.as_product()
        mean = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
        if top is None:
            path = noise_path(inner, request.generator, 256)
            top, mean = 2 * path.sigma, path.mean
        total = strengths(inner, top).to(mean)
        if not bool((total > 0).all()):
            raise NotNormalizable(
                f"{view.term.name()} has a total exponent of {float(total.min()):g}: no level where it could start"
            )
        if view.term.path == "noised" and view.names is None and view.dim == view.full_dim:
            # σ_max² alone would forget the spread of the data, and the error survives to the end
            view.count(1)
            coarse = view.term._coarse(torch.tensor(float(top), dtype=torch.float64, device=view.device))
            return view.ravel(coarse.sample(request.n, request.generator)).to(mean), top
        return gaussian_draws(mean, top**2 / total, request.n, request.generator)[0], top

    # ------------------------------------------------------------------- step

    def _step(
        self,
        view: FlatView,
        x: Tensor,
        ladder: Ladder,
        k: int,
        previous: tuple[Tensor, float] | None,
        generator: torch.Generator | None,
        score: Tensor | None = None,
        noise_share: float | Tensor = 1.0,
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        """One step of the ladder; also the denoised estimate and the level it was made at.

        The noise of states at σ has the variance ``noise_share`` · σ²; their ``score`` may be known.
        """
        sigma, following = ladder.begins[k], ladder.ends[k]
        estimate, share = self._estimate(view, x, sigma, score, noise_share)
        denoised = estimate if self.clip is None else estimate.clamp(*self.clip)
        if self.solver == "ddpm":
            base, variance = denoised, self._variance(ladder, k, share)
            keep = following**2 / sigma  # the posterior's mean, whatever the variance that is added
        else:
            eta = 1.0 if self.solver == "euler-ancestral" else self.eta
            base = denoised
            if self.solver == "dpmpp":
                base = self._extrapolated(denoised, sigma, following, previous, k == len(ladder.begins) - 1)
            variance = eta**2 * following**2 * (1.0 - (following / sigma) ** 2)
            keep = math.sqrt(max(following**2 - variance, 0.0))
        if following == 0.0 and not isinstance(variance, Tensor) and variance == 0.0:
            return base, (denoised, sigma)
        least = view.term.sigma_range[0] * (1 - 1e-6)  # a rounded end of the range is still that end
        if self.solver == "heun" and following >= least:
            slope = (x - estimate) / sigma
            euler = x + (following - sigma) * slope
            second = -following * noise_share * view.at(following).score(euler)
            return x + (following - sigma) * 0.5 * (slope + second), (denoised, sigma)
        if sigma == math.inf:
            towards = x  # x is the noise itself
        elif self.solver in ("ddpm", "dpmpp"):
            towards = (x - base) / sigma
        else:
            towards = (x - estimate) / sigma  # DDIM keeps the network's own direction where the estimate is clipped
        moved = base + keep * towards
        if isinstance(variance, Tensor) or variance > 0.0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            moved = moved + (variance * noise_share) ** 0.5 * noise
        return moved, (denoised, sigma)

    def _extrapolated(
        self, denoised: Tensor, sigma: float, following: float, previous: tuple[Tensor, float] | None, last: bool
    ) -> Tensor:
        """The estimate in the middle of the step, linear in λ = −log σ through the last two."""
        first = self.order == 1 or previous is None or following == 0.0 or (last and self.last_order == 1)
        if first or previous is None or previous[1] == math.inf:
            return denoised
        ratio = math.log(sigma / following) / math.log(previous[1] / sigma)
        return (1 + 0.5 * ratio) * denoised - 0.5 * ratio * previous[0]

    def _variance(self, ladder: Ladder, k: int, share: Tensor | None) -> float | Tensor:
        """Variance of the noise that ddpm adds in step k."""
        sigma, following = ladder.begins[k], ladder.ends[k]
        lower = following**2 * (1.0 - (following / sigma) ** 2) if ladder.lower is None else ladder.lower[k]
        upper = sigma**2 - following**2 if ladder.upper is None else ladder.upper[k]
        if self.variance == "small" or following == upper == 0.0:
            return lower
        if self.variance == "large":
            return upper if ladder.upper is not None or following > 0.0 else 0.0
        if lower == 0.0:
            return 0.0  # the geometric mean with zero, whatever the share
        assert share is not None
        return (share * math.log(upper) + (1.0 - share) * math.log(lower)).exp()

    def _estimate(
        self, view: FlatView, x: Tensor, sigma: float, score: Tensor | None, noise_share: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """E[x0 | x] flat, from a score where it is known, and the share of the larger variance where a network says."""
        if sigma == math.inf:
            return from_noise(view, x), None
        if self.variance != "learned":
            return x + sigma**2 * noise_share * (view.at(sigma).score(x) if score is None else score), None
        both = getattr(view.term, "_score_and_share", None)
        if both is None:
            raise TypeError(
                f'variance="learned" needs one network with a learned variance, and {view.term.name()} is not one; '
                'use variance="small"'
            )
        view.count(x.shape[0])
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        own, share = both(view.unravel(x), level)
        return x + sigma**2 * noise_share * view.ravel(own), view.ravel(share)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SamplingWarning, stacklevel=4)
