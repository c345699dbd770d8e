r"""Twisted diffusion sampling: conditioning a diffusion model at test time, with weights that put it right.

The target is p(x) r(x): a diffusion prior p, or a composite of such, and factors r known at the data end (a reward, a
classifier, a measurement, pixels that are given). Reverse diffusion from σ to σ' has the kernel

.. math::
    p(x' \mid x) = N(x';\; \hat x_0 + \rho (x - \hat x_0),\; v), \qquad \rho = \sigma'^2 / \sigma^2, \qquad
    v = \sigma'^2 (1 - \rho) + (1 - \rho)^2 V,

with the estimate :math:`\hat x_0(x, \sigma)` and V the variance of x_0 given x: 0 in DDPM's smaller choice ("small"),
σ² in its larger ("large"), and :math:`\sigma^2 c^2 / (\sigma^2 + c^2)` for data of standard deviation c ("matched",
exact for Gaussian data). Twisting looks ahead by :math:`\tilde r(x; \sigma)`, which is r at the estimate
(:mod:`boltzmix.compose.samplers.twisting`), and moves along its gradient through the network:

.. math::
    q(x' \mid x) = N\bigl(\hat x_0 + \rho (x - \hat x_0) + (1 - \rho)\, \sigma^2\, \nabla_x \log \tilde r(x; \sigma),\;
    v\bigr), \qquad
    w = \frac{p(x' \mid x)\, \tilde r(x'; \sigma')}{q(x' \mid x)\, \tilde r(x; \sigma)}.

The move is the reverse step of the score :math:`s + \nabla\log\tilde r`; its factor is v itself for V = σ². The weights
multiply to :math:`r(x_0) \prod p(x' \mid x) / \prod q(x' \mid x)`: whatever :math:`\tilde r > 0` is, draws have the law
of the reverse chain times r, and the mean weight is :math:`Z = E_{\text{chain}}[r(x_0)]`.

*What is exact.* With ``reference="chain"``, draws (as their number grows) and log Z belong to :math:`p_{chain}(x)\,
r(x)`: the law of ``Reverse(solver="ddpm")`` on these levels (its default is "small"), which tends to that of p as steps
grow and carries the error of the network's score. With a Clamp the observed coordinates have the final kernel
:math:`N(\hat x_0, V)` at the last level. With ``reference="density"`` the chain is only a proposal, and

.. math::
    w = \frac{p(x'; \sigma')\, N(x; x', (\sigma^2 - \sigma'^2)/W)\, \tilde r(x'; \sigma')}
             {p(x; \sigma)\, q(x' \mid x)\, \tilde r(x; \sigma)}

leaves no error of discretisation, also for composites, whose summed scores are not those of the noised product; the
prior needs energies, and more steps for even weights.

Sources: L. Wu, B. Trippe, C. Naesseth, D. Blei, J. Cunningham (2023), Practical and asymptotically exact conditional
sampling in diffusion models. H. Chung, J. Kim, M. McCann, M. Klasky, J. Ye (2023), Diffusion posterior sampling for
general noisy inverse problems. F. Bao, C. Li, J. Zhu, B. Zhang (2022), Analytic-DPM (the variance of the kernel).
"""

import itertools
import math
import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, frames_of, is_number, new_info
from boltzmix.compose.samplers.particles import Populations, check_population, check_rows
from boltzmix.compose.samplers.path import gaussian_draws, noise_path
from boltzmix.compose.samplers.twisted_run import Run, restore, snapshot, warn_if_collapsed, warn_once
from boltzmix.compose.samplers.twisting import Twist
from boltzmix.compose.term import check_levels

_VARIANCES = ("small", "large", "matched")
_REFERENCES = ("chain", "density")
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Twisted(Sampler):
    r"""Twisted diffusion sampling of p(x) r(x), with importance weights, resampling and log Z.

    The formula is a product of a prior that changes with σ (one noised term, or a composite such as guidance) and
    factors at the data end: static terms, :class:`~boltzmix.compose.constraints.Denoised` ones,
    :class:`~boltzmix.compose.measurements.Measurement`, and a :class:`~boltzmix.compose.constraints.Clamp`, which makes
    this the exact way to in- and outpaint. See the module's page for the equations and for what exactly is exact.
    Score-only priors will do; r needs an energy that is finite wherever it is positive at the end, since particles
    whose estimate has r = 0 on the way are lost. One evaluation is one forward and one backward through prior and r.

    Args:
        steps: number of levels above the data end.
        sigmas: the decreasing levels to use instead of Karras'.
        rho: curvature of Karras' levels.
        ess_threshold: resample where fewer than this fraction of particles are effective; 0 never does.
        corrected: False leaves out weights and resampling. That is diffusion posterior sampling (DPS, Chung et al.),
            with the step that Tweedie's formula gives in place of a tuned one, and is **biased** at any number of
            steps: r at the estimate is not the expectation of r. It warns so once.
        reference: ``"chain"``, the reverse chain itself, or ``"density"``, the prior's energies at every level.
        variance: of the reverse kernel: ``"matched"``, ``"small"`` or ``"large"``.
        data_std: c, standard deviation of the data: the width at which measurements and clamped coordinates are
            anticipated, and of the matched variance. None takes it from the prior's coarse form, per coordinate, or,
            where that does not tell, from a pilot of some evaluations; 0 anticipates at the point x̂0 alone.
        lookahead: number of points around x̂0 at which static factors are averaged, even or 1; they cost no evaluation
            of the prior. None is 8 with weights, and 1 (the point x̂0) without or where data_std is 0.
        limit: the longest move of the estimate along the twist, in units of its standard deviation
            :math:`(\mathrm{tr} V)^{1/2}`; steep factors far from the data would throw particles about.
        population: size P of independent populations, within which resampling stays; n is a multiple of P. Conditions
            of each row (labels, rows of a Clamp or Measurement) need it, each repeated P times; ``log_z`` is then that
            of each population, in ``info.extra["population_log_z"]``.
        resample: resample at the end, so that weights are equal; False keeps them (of each population by itself).
        record: keep the states of every level for ``Draw.animate``.

    Raises:
        ValueError: settings outside their range; conditions that differ within a population.
        TypeError: a formula in which nothing changes with σ.
        MissingEnergy: a static factor that is score-only, or ``reference="density"`` without energies.
        NonFinite: no particle of a population has a finite weight.

    Example:
        >>> from boltzmix.compose import Gaussian, Measurement, sample
        >>> prior = Gaussian(torch.zeros(2), 1.0)
        >>> seen = Measurement(torch.tensor([True, False]), torch.ones(2), 0.5)
        >>> draw = sample(prior * seen, 2000, sampler=Twisted(steps=40), seed=0)
        >>> truth = -0.5 * math.log(2 * math.pi * 1.25) - 0.5 / 1.25       # log N(1; 0, 1 + 0.25)
        >>> abs(draw.log_z - truth) < 0.05, abs(float(draw.x[:, 0].mean()) - 0.8) < 0.05
        (True, True)
    """

    steps: int = 100
    sigmas: tuple[float, ...] | None = None
    rho: float = 7.0
    ess_threshold: float = 0.5
    corrected: bool = True
    reference: str = "chain"
    variance: str = "matched"
    data_std: float | None = None
    lookahead: int | None = None
    limit: float = 2.0
    population: int | None = None
    resample: bool = True
    record: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Twisted needs steps >= 1, got {self.steps!r}")
        if not is_number(self.rho) or not 0 < self.rho < math.inf:
            raise ValueError(f"Twisted needs a positive finite rho, got {self.rho!r}")
        if self.sigmas is not None:
            if isinstance(self.sigmas, str) or not hasattr(self.sigmas, "__iter__"):
                raise TypeError(f"sigmas is a tuple of decreasing levels, got {self.sigmas!r}")
            levels = [float(s) for s in self.sigmas]
            falling = all(a > b for a, b in itertools.pairwise(levels))
            if not levels or not falling or not levels[-1] > 0 or not levels[0] < math.inf:
                raise ValueError(f"sigmas are finite, positive and strictly decreasing, got {levels}")
        if not is_number(self.ess_threshold) or not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold is a fraction in [0, 1], got {self.ess_threshold!r}")
        for name in ("corrected", "resample", "record"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is True or False, got {getattr(self, name)!r}")
        if self.reference not in _REFERENCES:
            raise ValueError(f"reference is one of {_REFERENCES}, got {self.reference!r}")
        if self.variance not in _VARIANCES:
            raise ValueError(f"variance is one of {_VARIANCES}, got {self.variance!r}")
        if self.data_std is not None and (not is_number(self.data_std) or not 0 <= self.data_std <= math.inf):
            raise ValueError(f"data_std is a standard deviation >= 0 or None, got {self.data_std!r}")
        if self.lookahead is not None:
            odd = isinstance(self.lookahead, bool) or not isinstance(self.lookahead, int) or self.lookahead < 1
            if odd or (self.lookahead > 1 and self.lookahead % 2):
                raise ValueError(f"lookahead is 1 or an even number of points, got {self.lookahead!r}")
        if not is_number(self.limit) or not self.limit > 0:
            raise ValueError(f"limit is a number > 0, math.inf for none, got {self.limit!r}")
        check_population(self.population, "Twisted")
        if not self.corrected and self.reference == "density":
            raise ValueError('reference="density" says how to weigh, and corrected=False does not weigh: choose one')

    def run(self, request: Request) -> Draw:
        """Twist the reverse chain down to the data end."""
        clock = time.perf_counter()
        if request.init is not None:
            raise TypeError("Twisted starts at the top of the noise levels: leave out init=")
        if self.corrected or self.population is not None:
            Populations.uniform(request.n, self.population, torch.zeros(()))  # n divides
            if self.corrected:
                check_rows(request.term, request.n, self.population)
        points = self.lookahead or (8 if self.corrected and self.data_std != 0 else 1)
        twist = Twist(request, self.data_std, self.reference == "density", points)
        self._warn(twist)
        store = None
        if request.checkpoint is not None:
            store = Checkpoint(request.checkpoint, request.fingerprint(self, twist.view))
        resumed = None if store is None else store.load()
        run = self._begin(twist, request) if resumed is None else restore(twist, request, *resumed)
        bar = Progress("Twisted", request.progress)
        try:
            while run.k < len(run.begins):
                self._advance(twist, request, run)
                bar(run.k / len(run.begins), f"sigma={run.records[-1]['sigma']:.3g}, ESS {run.records[-1]['ess']:.2f}")
                if store is not None:
                    store.save(lambda: snapshot(twist, request, run))
        finally:
            bar.close()
        return self._finish(twist, request, run, clock)

    # ------------------------------------------------------------------- start

    def _begin(self, twist: Twist, request: Request) -> Run:
        """Draws of what the prior looks like at the first level, weighed by the twist there."""
        view = twist.prior_view
        low, high = view.term.sigma_range
        mean: Tensor | None = None
        if self.sigmas is not None:
            levels = [float(s) for s in self.sigmas]
            check_levels(torch.tensor(levels, dtype=torch.float64), (low, high), view.term.name())
        else:
            top = high if high < 1e3 else None
            if top is None and view.term._rows():
                top = 1e3  # a network's own range is open above: no evaluations are spent on the search for a start
            if top is None:
                path = noise_path(view, request.generator, 256)
                top, mean = 2 * path.sigma, path.mean
            bottom = max(low, 2e-3 * min(1.0, top))
            levels = _karras(top, bottom, self.steps, self.rho)
        if self.reference == "density":
            # the last density is that of the data end, σ_min for networks: a last step to it, with noise
            levels = [s for s in levels if s > low * (1 + 1e-6)]
            if not levels:
                raise ValueError(f'reference="density" needs a level above {low:g}, the data end of {view.term.name()}')
            ends = [*levels[1:], low]
        else:
            ends = [*levels[1:], 0.0]
        x, log_start = self._start(twist, request, levels[0], mean)
        look = twist.look(x, levels[0])
        run = Run(x, look, Populations.uniform(request.n, self.population, x), levels, ends)
        if self.corrected:
            first = look.log_twist.double()
            if twist.energies:
                first = first + (look.log_prior - log_start).double()
            run.weigh(twist, first, levels[0])
        if self.record:
            run.frames.append(x.clone())
        return run

    @staticmethod
    def _start(twist: Twist, request: Request, sigma: float, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        view, part = twist.view, twist.coarse(sigma)
        if part is not None:
            draw = part._sample(request.n, request.generator)
            log_density = -part._energy(draw, None)
            x = draw.reshape(request.n, -1).to(dtype=view.dtype, device=view.device)
            return x, log_density.to(x)
        centre = twist.centre(sigma) if mean is None else mean
        return gaussian_draws(centre, (sigma**2 / twist.total(sigma)).to(centre), request.n, request.generator)

    # -------------------------------------------------------------------- step

    def _advance(self, twist: Twist, request: Request, run: Run) -> None:
        """One step of the chain: propose, look, weigh, resample."""
        clock = time.perf_counter()
        sigma, following = run.begins[run.k], run.ends[run.k]
        last = run.k == len(run.begins) - 1
        before = run.look
        x, increments = self._propose(twist, request, run, sigma, following, last)
        if not last:
            run.look = twist.look(x, following)
            log_twist, log_prior = run.look.log_twist, run.look.log_prior
        elif self.corrected:
            log_twist, log_prior = twist.end(x)
        else:
            log_twist, log_prior = before.log_twist, before.log_prior
        run.x, ess, chosen = x, torch.ones(1), None
        if self.corrected:
            increments = increments + log_twist.double() - before.log_twist.double()
            if twist.energies:
                increments = increments + log_prior.double() - before.log_prior.double()
            run.weigh(twist, increments, following)
            ess = run.cloud.ess
            if not last:
                chosen = run.cloud.resample(request.generator, self.ess_threshold)
                if chosen is not None:
                    run.x, run.look = run.x[chosen], run.look.select(chosen)
        run.k += 1
        run.records.append(
            {
                "sigma": following,
                "ess": float(ess.mean()),
                "least_ess": float(ess.min()),
                "resampled": chosen is not None,
                "evaluations": 1.0,
                "seconds": time.perf_counter() - clock,
            }
        )
        if self.record and not last:
            run.frames.append(run.x.clone())

    def _propose(
        self, twist: Twist, request: Request, run: Run, sigma: float, following: float, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Where the particles go, and log p(x'|x) − log q(x'|x), or its counterpart for densities, ``(N,)``."""
        x, look = run.x, run.look
        share = (following / sigma) ** 2
        total = twist.total(sigma)
        noise, width = sigma**2 / total, twist.width(sigma)
        base = look.estimate + share * (x - look.estimate)
        if last and not twist.energies:  # the chain ends in its estimate
            increments = twist.log_observed(look.estimate, width)
            return twist.observe(base), increments.double()
        spread = {"small": torch.zeros_like(noise), "large": noise, "matched": width}[self.variance]
        variance = following**2 / total * (1 - share) + (1 - share) ** 2 * spread
        if not bool((variance > 0).all()):
            raise ValueError(
                'a step to the data end has no noise with variance="small" or data_std=0, and reference="density" '
                'weighs with its density: use variance="matched" or "large"'
            )
        shift = (1 - share) * self._move(look.slope, noise, width)
        z = torch.randn(x.shape, generator=request.generator, dtype=x.dtype, device=x.device)
        moved = base + shift + variance.sqrt().to(x) * z
        if last:
            moved = twist.observe(moved)
        if not self.corrected:
            return moved, x.new_zeros(len(x), dtype=torch.float64)
        if not twist.energies:
            tilt = shift.double() / variance.sqrt()
            return moved, -(tilt * z + 0.5 * tilt.square()).sum(1)
        forwards = noise * (1 - share)  # variance of the noise that leads back from σ' to σ
        back = -0.5 * ((x - moved).double().square() / forwards + forwards.log() + _LOG_2PI).sum(1)
        towards = -0.5 * (z.double().square() + variance.log() + _LOG_2PI)
        if last and twist.mask is not None:
            towards = towards[:, ~twist.mask]  # clamped coordinates are not drawn
        return moved, back - towards.sum(1)

    def _move(self, slope: Tensor, noise: Tensor, width: Tensor) -> Tensor:
        """σ² ∇ log r̃, what conditioning adds to the estimate, no longer than its limit."""
        move = noise.to(slope) * slope
        width = torch.where(width > 0, width, noise)
        longest = self.limit * math.sqrt(float(width.sum()))
        length = torch.linalg.vector_norm(move, dim=1, keepdim=True)
        return torch.where(length > longest, move * (longest / length), move)

    # --------------------------------------------------------------------- end

    def _finish(self, twist: Twist, request: Request, run: Run, clock: float) -> Draw:
        view, cloud, n = twist.view, run.cloud, request.n
        info = new_info(self, request)
        info.path, info.ess, info.levels, info.divergences = "noise", float(n), run.records, run.divergences
        log_z = log_z_se = None
        weights = zeros(n, run.x)
        if self.corrected:
            size = cloud.log_weights.shape[1]
            info.ess = float(cloud.ess.sum()) * size
            raw, raw_se = cloud.evidence()
            info.extra["raw_log_z"] = raw
            if len(cloud.log_z) > 1:
                info.extra["population_log_z"] = cloud.log_z.tolist()
                info.extra["population_ess"] = cloud.ess.tolist()
            if self._calibrated(twist, request):
                log_z, log_z_se = raw, raw_se
            warn_if_collapsed(run, twist)
            if self.resample:
                rows = cloud.resample(request.generator, 0.999999)
                run.x = run.x if rows is None else run.x[rows]
            else:
                weights = (cloud.log_weights + math.log(size)).reshape(-1).to(run.x)
        lost = int((~torch.isfinite(run.x).all(1)).sum())
        if lost:
            info.divergences = max(info.divergences, lost)
            warnings.warn(
                f"Twisted: {lost} of {n} draws are not finite; they are returned as they are",
                SamplingWarning,
                stacklevel=4,
            )
        info.evaluations = view.counter.rows / n
        info.network_rows = view.counter.network_rows / n
        info.seconds = time.perf_counter() - clock
        return Draw(view.unravel(run.x), weights, log_z, log_z_se, info, frames_of(view, run.frames))

    def _calibrated(self, twist: Twist, request: Request) -> bool:
        """Whether log Z is that of the formula: one target, and constants that mean something."""
        several = any(getattr(module, "per_row", False) is True for module in request.term.modules())
        if several or not twist.calibrated:
            return False
        if twist.energies:
            return request.term.calibrated
        one = twist.single
        return one is not None and one.path == "noised" and (one.normalized or not one.has_energy)

    def _warn(self, twist: Twist) -> None:
        if not self.corrected:
            warn_once(
                "Twisted(corrected=False) is diffusion posterior sampling: factors at the denoised estimate are not "
                "their expectations, so the draws are biased at any number of steps; corrected=True weighs them"
            )
        elif not twist.energies and twist.prior.path != "noised":
            warn_once(
                f"Twisted on {twist.prior.name()}: {twist.prior.path_reason}, so its reverse chain, which the weights "
                'take as the prior, is not the composite; use reference="density" for terms with energies, or FKC'
            )


def _karras(top: float, bottom: float, steps: int, rho: float) -> list[float]:
    """Levels of Karras et al. (2022) from top to bottom."""
    a, b = top ** (1 / rho), bottom ** (1 / rho)
    return [(a + (i / max(steps - 1, 1)) * (b - a)) ** rho for i in range(steps)]
