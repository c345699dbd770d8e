r"""Samplers that go down a path: SMC, AIS and annealed MCMC.

==========  ========  ===========  =============================
sampler     weights   resampling   returns
==========  ========  ===========  =============================
SMC         yes       yes          samples, log Z
AIS         yes       no           weighted samples, log Z
Annealed    no        no           samples (biased where mixing is poor)
==========  ========  ===========  =============================

Sources: Del Moral, Doucet and Jasra (2006), *Sequential Monte Carlo samplers*; Neal (2001), *Annealed
importance sampling*; Du et al. (2023), *Reduce, reuse, recycle*; Song and Ermon (2019), *Generative
modeling by estimating gradients of the data distribution*.
"""

import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled.policy import check_setting
from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.flat import FlatView, require_energy
from boltzmix.compose.kernels.base import Kernel, check_kernel
from boltzmix.compose.kernels.hmc import HMC, UHMC
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.samplers.anneal import Descent, Plan, begin, descend, move, scaled_step
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, frames_of, new_info
from boltzmix.compose.samplers.path import (
    NoisePath,
    Path,
    Point,
)
from boltzmix.compose.samplers.proper import refuse_growing_tails, refuse_improper
from boltzmix.compose.samplers.resume import restore, snapshot
from boltzmix.compose.samplers.start import choose_path
from boltzmix.compose.samplers.sums import run_strata, run_sum, split_sum
from boltzmix.compose.term import Term

_PATHS = ("auto", "noise", "geometric", "exact-start")
LevelsLike = str | int | Sequence[float]


@dataclass(frozen=True)
class SMC(Sampler):
    """Sequential Monte Carlo from a start that is sampled exactly down to the composite.

    Args:
        levels: ``"adaptive"``, a number of levels, or the u ∈ (0, 1] to visit (1 is the target).
        path: ``"noise"`` (down the noise levels), ``"exact-start"`` (from draws of one factor),
            ``"geometric"`` (from a fitted Gaussian), or ``"auto"``.
        cess: conditional effective sample size per level that adaptive levels aim at.
        kernel: what moves the particles; None is HMC with 2 leapfrogs, adapted to the particle cloud.
        ess_threshold: resample below this fraction of effective particles.
        moves: kernel steps per level.
        final_moves: kernel steps on the target after the last level.
        max_levels: beyond this the target counts as not normalisable.
        resample: resample at the end, so that weights are equal; False keeps them.
        record: keep the particles of every level for ``Draw.animate``.
        compile: ``"auto"`` compiles moves and evaluations once a run has done about as much work as compiling takes,
            True at once, warning where that does not work, and False never. ``info.extra["compile"]`` tells.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian, sample
        >>> p, q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 1.0)
        >>> draw = sample(p * q, 500, sampler=SMC(), seed=0)
        >>> tuple(draw.x.shape)
        (500, 2)
    """

    levels: LevelsLike = "adaptive"
    path: str = "auto"
    cess: float = 0.98
    kernel: Kernel | None = None
    ess_threshold: float = 0.5
    moves: int = 1
    max_levels: int = 1000
    final_moves: int = 1
    resample: bool = True
    record: bool = False
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_setting(self.compile, type(self).__name__)
        check_levels_setting(self.levels)
        if self.path not in _PATHS:
            raise ValueError(f"path is one of {_PATHS}, got {self.path!r}")
        for name in ("cess", "ess_threshold"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"{name} is a fraction between 0 and 1, got {value!r}")
        for name, least in (("moves", 1), ("max_levels", 1), ("final_moves", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is an int >= {least}, got {value!r}")
        if self.kernel is not None:
            check_kernel(self.kernel, f"{type(self).__name__}(kernel=…)")

    def run(self, request: Request) -> Draw:
        """Go down the path; sums whose members are not normalised are split over their members first."""
        members = split_sum(request.term)
        if len(members) > 1:
            return run_sum(self, request, members, _run)
        return _run(self, request)

    def _plan(self) -> Plan:
        kernel = self.kernel or HMC(num_leapfrog=2)
        return Plan(
            kernel=kernel,
            levels=level_grid(self.levels),
            cess=self.cess,
            ess_threshold=self.ess_threshold,
            moves=self.moves,
            max_levels=self.max_levels,
            record=self.record,
            compile=self.compile,
        )


@dataclass(frozen=True)
class AIS(SMC):
    """Annealed importance sampling: the same without resampling, so weights stay unbiased but uneven.

    Arguments are those of :class:`SMC`; weights are kept (``resample=False``) by default.
    """

    levels: LevelsLike = 64
    resample: bool = False

    def _plan(self) -> Plan:
        return replace(super()._plan(), ess_threshold=0.0)


@dataclass(frozen=True)
class Annealed(Sampler):
    r"""Annealed MCMC: a kernel at each level of a fixed ladder, without weights.

    Biased where the kernel does not mix within a level: relative masses of separated modes are those that
    the path happens to leave, not those of the formula. In thousands of dimensions, where weights
    degenerate, it is the honest choice.

    With ``ULA(step_size=ε)`` it is annealed Langevin dynamics, with steps :math:`\epsilon\, \sigma_i^2 / \sigma_L^2`
    where :math:`\sigma_L` is the last noise level above zero (in the units of the kernel, h = α/2).

    Args:
        levels: number of levels, or the u ∈ (0, 1] to visit.
        kernel: None is UHMC for score-only terms and HMC otherwise, adapted at every level.
        sweeps: kernel steps per level.
        record: keep the states of every level for ``Draw.animate``.
        compile: as for :class:`SMC`.
    """

    levels: int | Sequence[float] = 32
    kernel: Kernel | None = None
    sweeps: int = 2
    record: bool = False
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_setting(self.compile, "Annealed")
        if isinstance(self.levels, str):
            raise ValueError("Annealed takes a number of levels or a list of u, adaptive levels need weights: use SMC")
        check_levels_setting(self.levels)
        if isinstance(self.sweeps, bool) or not isinstance(self.sweeps, int) or self.sweeps < 1:
            raise ValueError(f"sweeps is an int >= 1, got {self.sweeps!r}")
        if self.kernel is not None:
            check_kernel(self.kernel, "Annealed(kernel=…)")

    def run(self, request: Request) -> Draw:
        """Go down the path without weights; sums of score-only members are stratified."""
        if isinstance(request.term, Mixture) and not request.term.has_energy:
            return run_strata(self, request)
        return _run(self, request)

    def _plan(self, has_energy: bool) -> Plan:
        kernel = self.kernel or (HMC(num_leapfrog=3) if has_energy else UHMC(num_leapfrog=3))
        return Plan(
            kernel=kernel, levels=level_grid(self.levels), moves=self.sweeps, weigh=False, record=self.record,
            compile=self.compile,
        )  # fmt: skip


def check_levels_setting(levels: LevelsLike) -> None:
    """Levels are ``"adaptive"``, a positive int, or increasing u in (0, 1] that end in 1."""
    if isinstance(levels, str):
        if levels != "adaptive":
            raise ValueError(f"levels is 'adaptive', an int or a list of u, got {levels!r}")
        return
    if isinstance(levels, bool):
        raise ValueError(f"levels is 'adaptive', an int or a list of u, got {levels!r}")
    if isinstance(levels, int):
        if levels < 1:
            raise ValueError(f"levels needs at least 1, got {levels}")
        return
    if not isinstance(levels, Sequence | Tensor) or not all(isinstance(u, int | float | Tensor) for u in levels):
        raise TypeError(f"levels is 'adaptive', an int or a list of increasing u in (0, 1], got {levels!r}")
    values = [float(u) for u in levels]
    increasing = all(a < b for a, b in itertools.pairwise(values))
    if not values or not increasing or not values[0] > 0 or values[-1] != 1.0:
        raise ValueError(f"levels as a list are increasing u in (0, 1] that end in 1, got {values}")


def level_grid(levels: LevelsLike) -> str | list[float]:
    """The u to visit: an int is spread evenly."""
    if isinstance(levels, str):
        return levels
    if isinstance(levels, int):
        return [(k + 1) / levels for k in range(levels)]
    return [float(u) for u in levels]


# --------------------------------------------------------------------- running


def _run(sampler: SMC | Annealed, request: Request) -> Draw:
    clock = time.perf_counter()
    view = request.view()
    info = new_info(sampler, request)
    weigh = isinstance(sampler, SMC)
    if weigh:
        require_energy(view, type(sampler).__name__)
        if view.per_row:
            raise ValueError(
                "a condition for each draw (rows of a Clamp, or of labels) makes n different targets: use Annealed"
            )
        plan = sampler._plan()
    else:
        plan = sampler._plan(view.has_energy)
    if plan.kernel.adjusted:
        if not plan.kernel.integrates:
            require_energy(view, f"{type(plan.kernel).__name__}()")
    elif weigh:
        raise TypeError(
            f"{type(sampler).__name__} needs a kernel that leaves the target invariant, "
            f"{type(plan.kernel).__name__} is unadjusted; use HMC or MALA, or Annealed"
        )
    refuse_improper(request.term)
    store = None
    if request.checkpoint is not None:
        store = Checkpoint(request.checkpoint, request.fingerprint(sampler, view))
    resumed = None if store is None else store.load()
    if resumed is None:
        path, info.path, why = choose_path(view, request, sampler.path if isinstance(sampler, SMC) else "auto", weigh)
        run = begin(path, plan, request.n, request.generator)
    else:
        path, run, info.path, why = restore(view, request, *resumed)
    info.reason = "; ".join(filter(None, [info.reason, why]))
    plan = _langevin_steps(plan, path)
    if plan.record and not run.frames:
        run.frames.append(run.point.x.clone())
    bar = Progress(type(sampler).__name__, request.progress)
    try:

        def save(run: Descent) -> None:
            if store is not None:
                store.save(lambda: snapshot(path, run, request, info.path, why))

        descend(path, plan, run, request.generator, bar, save)
    finally:
        bar.close()
    return _finish(sampler, request, view, path, plan, run, info, clock)


def _finish(
    sampler: SMC | Annealed,
    request: Request,
    view: FlatView,
    path: Path,
    plan: Plan,
    run: Descent,
    info: Any,
    clock: float,
) -> Draw:
    log_z = log_z_se = None
    info.ess = float(request.n)
    weights = zeros(request.n, run.point.x)
    if isinstance(sampler, SMC):
        info.ess = run.cloud.ess
        se = run.cloud.log_z_se()
        info.extra["raw_log_z"] = run.cloud.log_z
        if request.term.calibrated:
            log_z, log_z_se = run.cloud.log_z, se
        warn_if_collapsed(sampler, run)
        if sampler.resample:
            if info.ess < 0.999 * request.n or bool((run.cloud.log_weights == -torch.inf).any()):
                run.point = run.point.select(run.cloud.resample(request.generator))
        else:
            weights = (run.cloud.log_weights + math.log(request.n)).to(run.point.x)
        if sampler.final_moves:
            move(path, plan, run, request.generator, sampler.final_moves)
    else:
        _warn_if_undefined(request.term, run.point, plan.kernel.uses_score)
    refuse_growing_tails(request.term, view, run.point)
    levels = run.levels
    info.levels = levels
    info.extra["compile"] = run.moving(path, plan).report()
    info.acceptance = math.fsum(r["acceptance"] for r in levels) / max(len(levels), 1)
    info.divergences = sum(r["divergences"] for r in levels)
    info.step_size = run.step_size
    info.evaluations = view.counter.rows / request.n
    info.network_rows = view.counter.network_rows / request.n
    info.seconds = time.perf_counter() - clock
    x = view.unravel(run.point.x)
    return Draw(x, weights, log_z, log_z_se, info, frames_of(view, run.frames))


def _warn_if_undefined(term: Term, point: Point, scores: bool) -> None:
    good = torch.isfinite(point.score).all(1) & ~torch.isinf(point.energy) if scores else torch.isfinite(point.energy)
    lost = int((~good).sum())
    if lost == len(good):
        raise NonFinite(f"{term.name()}: every draw ended where the density is zero or undefined; use SMC")
    if lost:
        warnings.warn(
            f"Annealed: {lost} of {len(good)} draws are where {term.name()} is zero or undefined: without weights, "
            "particles that a hard edge cuts off stay where they are; use SMC, which removes them",
            SamplingWarning,
            stacklevel=5,
        )


def warn_if_collapsed(sampler: SMC, run: Descent) -> None:
    n = len(run.point.x)
    families = len(run.cloud.ancestors.unique())
    lowest = min((r["ess"] for r in run.levels), default=1.0)
    if n >= 10 and (families < max(2, 0.02 * n) or lowest < 0.02 or run.cloud.ess < 0.02 * n):
        warnings.warn(
            f"{type(sampler).__name__}: weights collapsed ({families} of {n} first ancestors left, effective size "
            f"down to {lowest:.1%}). Masses of modes and log Z are unreliable: use more particles or cess closer to 1; "
            f"in high dimensions (here {run.point.x.shape[1]}) Annealed, without weights, is the honest choice",
            SamplingWarning,
            stacklevel=5,
        )


def _langevin_steps(plan: Plan, path: Path) -> Plan:
    """A given step size is that of the last level: Langevin's scales with σ²/σ_L², that of others with σ/σ_L."""
    if plan.kernel.step_size is None or plan.weigh or not isinstance(path, NoisePath) or isinstance(plan.levels, str):
        return plan
    grid = [path.level(u) for u in plan.levels]
    last = min((level for level in grid if level), default=path.sigma)
    return replace(plan, step_sizes=lambda at: scaled_step(plan.kernel, at["sigma"], last))
