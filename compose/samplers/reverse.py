r"""Reverse diffusion in the σ coordinate: Heun, DDIM, DDPM and DPM-Solver++ (2M).

With :math:`x_\sigma = x_0 + \sigma \varepsilon` the probability-flow equation is
:math:`dx/d\sigma = -\sigma\, s(x; \sigma)`. Levels follow Karras et al. (2022),
:math:`\sigma_i = (\sigma_{max}^{1/\rho} + \tfrac{i}{N-1}(\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}))^\rho`, ρ = 7.

The scheme is exact only for noised terms. The sum of the scores of noised factors is not the score of the
noised product: for composites this sampler is biased, and warns so.
"""

import itertools
import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import NotNormalizable, SamplingWarning
from boltzmix.compose.flat import FlatView
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.samplers.base import Progress, Request, Sampler, frames_of, new_info
from boltzmix.compose.samplers.path import gaussian_draws, noise_path, strengths
from boltzmix.compose.samplers.sums import run_strata
from boltzmix.compose.term import check_levels

_SOLVERS = ("heun", "ddim", "ddpm", "dpmpp")


@dataclass(frozen=True)
class Reverse(Sampler):
    """Reverse diffusion from the largest noise level to the data end.

    Biased for products, powers and quotients (a warning names the factor that makes it so); use SMC or
    Annealed there. With a Clamp it is the replacement heuristic: known coordinates are set to their noised
    values at every level, which is not conditioning.

    Args:
        steps: number of levels above zero.
        solver: ``"heun"`` (second order, two evaluations a step), ``"ddim"`` (Euler), ``"ddpm"``
            (ancestral, stochastic), ``"dpmpp"`` (DPM-Solver++ 2M, Lu et al., 2022).
        sigmas: the decreasing levels to use instead of Karras'.
        rho: curvature of Karras' levels.
        record: keep the states of every level for ``Draw.animate``.
    """

    steps: int = 50
    solver: str = "heun"
    sigmas: tuple[float, ...] | None = None
    rho: float = 7.0
    record: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Reverse needs steps >= 1, got {self.steps!r}")
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver is one of {_SOLVERS}, got {self.solver!r}")
        if isinstance(self.rho, bool) or not isinstance(self.rho, (int, float)) or not 0 < self.rho < float("inf"):
            raise ValueError(f"Reverse needs a positive finite rho, got {self.rho!r}")
        if self.sigmas is not None:
            levels = [float(s) for s in self.sigmas]
            falling = all(a > b for a, b in itertools.pairwise(levels))
            if not levels or not falling or not levels[-1] > 0 or not levels[0] < float("inf"):
                raise ValueError(f"sigmas are finite, positive and strictly decreasing, got {levels}")

    def run(self, request: Request) -> Draw:
        """Integrate from the largest level to the data end."""
        term = request.term
        if isinstance(term, Mixture) and not term.has_energy:
            return run_strata(self, request)
        if request.checkpoint is not None:
            raise ValueError("Reverse is short and keeps no checkpoint; leave out checkpoint=")
        if request.init is not None:
            raise TypeError("Reverse starts at the largest noise level and takes no init; leave out init=")
        clock = time.perf_counter()
        view = request.view()
        if term.path == "static":
            raise TypeError(
                f"Reverse needs a term that changes with sigma and {term.name()} is static: use SMC or MCMC"
            )
        if view.term.path != "noised":
            _warn_once(
                f"Reverse on {term.name()}: {view.term.path_reason}, so the sum of noisy scores is not the score of "
                "the noised composite and the draws are biased; use SMC, or Annealed for score-only terms"
            )
        if view.term is not term:
            _warn_once(
                "Reverse with a Clamp is the replacement heuristic: known coordinates are set to their noised values "
                "at every level, which biases the others; use Annealed or SMC"
            )
        levels, x = self._start(view, request)
        fixed = view._fixed
        frames = [x.clone()] if self.record else []
        bar = Progress("Reverse", request.progress)
        previous: tuple[Tensor, float] | None = None
        try:
            for k, sigma in enumerate(levels):
                following = levels[k + 1] if k + 1 < len(levels) else 0.0
                if fixed is not None:
                    noise = torch.randn(
                        request.n, fixed.shape[1], generator=request.generator, dtype=x.dtype, device=x.device
                    )
                    view._fixed = fixed + sigma * noise
                x, previous = self._step(view, x, sigma, following, previous, request.generator)
                if frames:
                    frames.append(x.clone())
                bar((k + 1) / len(levels), f"sigma={following:.3g}")
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
        info.levels = [{"sigma": s} for s in levels]
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.seconds = time.perf_counter() - clock
        return Draw(view.unravel(x), zeros(request.n, x), None, None, info, frames_of(view, frames))

    def _start(self, view: FlatView, request: Request) -> tuple[list[float], Tensor]:
        low, high = view.term.sigma_range
        inner = view.as_product()
        if self.sigmas:
            check_levels(torch.tensor(self.sigmas, dtype=torch.float64), (low, high), view.term.name())
        top = self.sigmas[0] if self.sigmas else (high if high < 1e3 else None)
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
            x = view.ravel(coarse.sample(request.n, request.generator)).to(mean)
        else:
            x, _ = gaussian_draws(mean, top**2 / total, request.n, request.generator)
        if self.sigmas:
            return [float(s) for s in self.sigmas], x
        bottom = max(low, 2e-3 * min(1.0, top))
        ramp = [i / max(self.steps - 1, 1) for i in range(self.steps)]
        a, b = top ** (1 / self.rho), bottom ** (1 / self.rho)
        return [(a + t * (b - a)) ** self.rho for t in ramp], x

    def _step(
        self,
        view: FlatView,
        x: Tensor,
        sigma: float,
        following: float,
        previous: tuple[Tensor, float] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        """One step from σ to the following level; also the denoised estimate and the level it was made at."""
        score = view.at(sigma).score(x)
        denoised = x + sigma**2 * score
        if following == 0.0:
            return denoised, (denoised, sigma)
        if self.solver == "ddpm":
            share = following**2 / sigma**2
            mean = denoised + share * (x - denoised)
            spread = (following**2 * (1.0 - share)) ** 0.5
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            return mean + spread * noise, (denoised, sigma)
        if self.solver == "dpmpp" and previous is not None:
            # linear extrapolation of the denoised estimate in λ = −log σ to the middle of the step
            step = torch.tensor(sigma / following).log()
            before = torch.tensor(previous[1] / sigma).log()
            ratio = float(step / before)
            blended = (1 + 0.5 * ratio) * denoised - 0.5 * ratio * previous[0]
            return blended + following / sigma * (x - blended), (denoised, sigma)
        euler = x - (following - sigma) * sigma * score
        if self.solver != "heun" or following < view.term.sigma_range[0]:
            return euler, (denoised, sigma)
        second = view.at(following).score(euler)
        slope = -0.5 * (sigma * score + following * second)
        return x + (following - sigma) * slope, (denoised, sigma)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SamplingWarning, stacklevel=4)
