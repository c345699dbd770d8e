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

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import MissingEnergy, NonFinite, NotNormalizable, SamplingWarning, ScopeError
from boltzmix.compose.flat import FlatView, require_energy
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.kernels.hmc import HMC, UHMC
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product, scope_names, unite
from boltzmix.compose.samplers.anneal import Descent, Plan, begin, descend, move
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, frames_of, new_info
from boltzmix.compose.samplers.particles import Cloud
from boltzmix.compose.samplers.path import (
    NoisePath,
    Path,
    Point,
    TemperedPath,
    effective_fraction,
    noise_path,
    strengths,
)
from boltzmix.compose.term import Term
from boltzmix.compose.variable import describe_variables

_PROBES = 256
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

    Example:
        >>> import torch
        >>> from boltzmix.compose.sample import sample
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

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
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
        check_kernel(self.kernel, type(self).__name__)

    def run(self, request: Request) -> Draw:
        """Go down the path; sums whose members are not normalised are split over their members first."""
        members = split_sum(request.term)
        if len(members) > 1:
            return run_sum(self, request, members)
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
    """

    levels: int | Sequence[float] = 32
    kernel: Kernel | None = None
    sweeps: int = 2
    record: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if isinstance(self.levels, str):
            raise ValueError("Annealed takes a number of levels or a list of u, adaptive levels need weights: use SMC")
        check_levels_setting(self.levels)
        if isinstance(self.sweeps, bool) or not isinstance(self.sweeps, int) or self.sweeps < 1:
            raise ValueError(f"sweeps is an int >= 1, got {self.sweeps!r}")
        check_kernel(self.kernel, "Annealed")

    def run(self, request: Request) -> Draw:
        """Go down the path without weights; sums of score-only members are stratified."""
        if isinstance(request.term, Mixture) and not request.term.has_energy:
            return run_strata(self, request)
        return _run(self, request)

    def _plan(self, has_energy: bool) -> Plan:
        kernel = self.kernel or (HMC(num_leapfrog=3) if has_energy else UHMC(num_leapfrog=3))
        return Plan(kernel=kernel, levels=level_grid(self.levels), moves=self.sweeps, weigh=False, record=self.record)


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


def check_kernel(kernel: Kernel | None, owner: str) -> None:
    """Kernels are instances, not classes."""
    if kernel is not None and not isinstance(kernel, Kernel):
        what = f"the class {kernel.__name__}; write {kernel.__name__}()" if isinstance(kernel, type) else repr(kernel)
        raise TypeError(f"{owner}(kernel=…) takes a kernel such as HMC(), got {what}")


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
        require_energy(view, f"{type(plan.kernel).__name__}()")
    elif weigh:
        raise TypeError(
            f"{type(sampler).__name__} needs a kernel that leaves the target invariant, "
            f"{type(plan.kernel).__name__} is unadjusted; use HMC or MALA, or Annealed"
        )
    _refuse_improper(request.term)
    store = None
    if request.checkpoint is not None:
        store = Checkpoint(request.checkpoint, request.fingerprint(sampler, view))
    resumed = None if store is None else store.load()
    if resumed is None:
        path, info.path, why = choose_path(sampler, view, request)
        run = begin(path, plan, request.n, request.generator)
    else:
        path, run, info.path, why = _restore(view, request, *resumed)
    info.reason = "; ".join(filter(None, [info.reason, why]))
    plan = _langevin_steps(plan, path)
    if plan.record and not run.frames:
        run.frames.append(run.point.x.clone())
    bar = Progress(type(sampler).__name__, request.progress)
    try:

        def save(run: Descent) -> None:
            if store is not None:
                store.save(lambda: _snapshot(path, run, request, info.path, why))

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
        _warn_if_collapsed(sampler, run)
        if sampler.resample:
            if info.ess < 0.999 * request.n or bool((run.cloud.log_weights == -torch.inf).any()):
                run.point = run.point.select(run.cloud.resample(request.generator))
        else:
            weights = (run.cloud.log_weights + math.log(request.n)).to(run.point.x)
        if sampler.final_moves:
            move(path, plan, run, request.generator, sampler.final_moves)
    else:
        _warn_if_undefined(request.term, run.point)
    _refuse_growing_tails(request.term, view, run.point)
    levels = run.levels
    info.levels = levels
    info.acceptance = math.fsum(r["acceptance"] for r in levels) / max(len(levels), 1)
    info.divergences = sum(r["divergences"] for r in levels)
    info.step_size = run.step_size
    info.evaluations = view.counter.rows / request.n
    info.network_rows = view.counter.network_rows / request.n
    info.seconds = time.perf_counter() - clock
    x = view.unravel(run.point.x)
    return Draw(x, weights, log_z, log_z_se, info, frames_of(view, run.frames))


def _warn_if_undefined(term: Term, point: Point) -> None:
    good = torch.isfinite(point.score).all(1) & ~torch.isinf(point.energy)
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


def _warn_if_collapsed(sampler: SMC, run: Descent) -> None:
    n = len(run.point.x)
    families = len(run.cloud.ancestors.unique())
    lowest = min((r["ess"] for r in run.levels), default=1.0)
    if n >= 50 and (families < 0.02 * n or lowest < 0.02 or run.cloud.ess < 0.02 * n):
        warnings.warn(
            f"{type(sampler).__name__}: weights collapsed ({families} of {n} first ancestors left, effective size "
            f"down to {lowest:.1%}). Masses of modes and log Z are unreliable: use more particles or cess closer to 1; "
            f"in high dimensions (here {run.point.x.shape[1]}) Annealed, without weights, is the honest choice",
            SamplingWarning,
            stacklevel=5,
        )


def _langevin_steps(plan: Plan, path: Path) -> Plan:
    """Annealed Langevin scales a fixed step size by σ²/σ_L², other kernels by σ/σ_L."""
    fixed = plan.kernel.step_size
    if fixed is None or plan.weigh or not isinstance(path, NoisePath) or isinstance(plan.levels, str):
        return plan
    grid = [path.level(u) for u in plan.levels]
    last = min((level for level in grid if level), default=path.sigma)
    power = 1 if isinstance(plan.kernel, HMC) else 2
    return replace(plan, step_sizes=lambda at: fixed * (max(at["sigma"], last) / last) ** power)


# ------------------------------------------------------------------- the start


def choose_path(sampler: SMC | Annealed, view: FlatView, request: Request) -> tuple[Path, str, str]:
    """The path, its name, and why it was taken."""
    wanted = sampler.path if isinstance(sampler, SMC) else "auto"
    term = view.term
    probes = _PROBES if request.n >= 64 else max(32, request.n)
    if isinstance(request.init, Term):
        if wanted == "noise":
            raise ValueError("path='noise' finds its own start; leave out init=, or use path='geometric' with it")
        base = _check_init(view, request.init)
        return tempered(view, base), "geometric", f"on a geometric path from {base.name()}, given as init"
    if wanted in ("auto", "exact-start") and isinstance(sampler, SMC) and view.dim == view.full_dim:
        found = _exact_start(view, request, probes, 0.0 if wanted == "exact-start" else 0.05)
        if found is not None:
            base, share = found
            return tempered(view, base), "exact-start", f"starts from exact draws of {base.name()} (ESS {share:.0%})"
        if wanted == "exact-start":
            raise ValueError(
                f"path='exact-start' needs a normalised factor with exponent >= 1 that can be sampled exactly; "
                f"{term.name()} has none"
            )
    if wanted in ("auto", "noise") and term.path != "static":
        moved = view.as_product()
        if not moved.per_row:
            path = noise_path(moved, request.generator, probes)
        else:
            path = _row_path(moved, request)
        return (
            path,
            "noise",
            f"follows the noise levels from sigma={path.sigma:.3g}"
            + ("; static factors and improper quotients enter with a rising weight" if path.late else ""),
        )
    if wanted == "noise":
        raise ValueError(f"path='noise' needs a factor that changes with sigma; {term.name()} is static")
    if not view.has_energy:
        raise MissingEnergy(
            f"{term.name()} is static and score-only: it has no path to follow. Run MCMC(UHMC(step_size=…)) on it"
        )
    reference = _reference(view, request)
    return tempered(view, reference), "geometric", "static terms, on a geometric path from a Gaussian fitted by a pilot"


def _row_path(view: FlatView, request: Request) -> NoisePath:
    """A start for targets that differ by row: the top of the range, centred by one evaluation."""
    sigma = min(view.term.sigma_range[1], 80.0)
    total = strengths(view, sigma).to(view.dtype)
    if not bool((total > 0).all()):
        raise NotNormalizable(
            f"{view.term.name()} has a total exponent of {float(total.min()):g}: no level where its path could start"
        )
    variance = sigma**2 / total
    origin = torch.zeros(request.n, view.dim, dtype=view.dtype, device=view.device)
    mean = (variance * view.at(sigma).score(origin)).mean(0)
    return NoisePath(view, sigma, mean, variance, late=False)


def candidates(term: Term) -> list[Term]:
    """Normalised factors with exponent ≥ 1 that can be sampled exactly, and the term itself."""
    if isinstance(term, Mixture) and term.samplable and not term.normalized:
        total = math.log(math.fsum(term.weights()))
        return [Mixture(term._terms(), [w - total for w in term.log_weights])]
    if term.samplable and term.normalized:
        return [term]
    if not isinstance(term, Product):
        return []
    found = []
    for factor, exponent in term.pairs():
        constant = exponent.constant
        whole = factor.variables == term.variables
        if constant is not None and constant >= 1 and factor.samplable and factor.normalized and whole:
            found.append(factor)
    return found


def _exact_start(view: FlatView, request: Request, probes: int, least: float) -> tuple[Term, float] | None:
    best: tuple[Term, float] | None = None
    for base in candidates(view.term):
        x = view.ravel(_cast(base.sample(probes, request.generator), view))
        energy = view.at(None).energy(x)
        with torch.no_grad():
            own = base._energy(view.unravel(x), None)
        share = effective_fraction(own - energy)
        if share >= least and (best is None or share > best[1]):
            best = (base, share)
    return best


def _cast(x: Any, view: FlatView) -> Any:
    if isinstance(x, Tensor):
        return x.to(dtype=view.dtype, device=view.device)
    return {name: t.to(dtype=view.dtype, device=view.device) for name, t in x.items()}


def tempered(view: FlatView, base: Term) -> TemperedPath:
    """The geometric path from a normalised term that can be sampled."""
    rows_each = base._rows()

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        view.counter.network_rows += x.shape[0] * rows_each
        with torch.no_grad():
            energy, score = base._energy_and_score(view.unravel(x), None)
        return energy, view.ravel(score)

    def draw(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x = view.ravel(_cast(base.sample(n, generator), view))
        with torch.no_grad():
            return x, -base._energy(view.unravel(x), None)

    path = TemperedPath(view, evaluate, draw)
    path.base_term = base  # pyright: ignore[reportAttributeAccessIssue]
    return path


class _FlatGaussian(Term):
    """A Gaussian over the flat coordinates of a view, as a base for a geometric path."""

    samplable = True
    normalized = True

    def __init__(self, view: FlatView, gaussian: Gaussian) -> None:
        super().__init__()
        self.variables = view.term.variables
        self.gaussian = gaussian
        self._view = view

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Any]:
        energy, score = self.gaussian._energy_and_score(self._view.ravel(x), None)
        return energy, self._view.unravel(score)

    def _sample(self, n: int, generator: torch.Generator | None) -> Any:
        return self._view.unravel(self.gaussian.sample(n, generator).to(self._view.dtype))  # pyright: ignore[reportAttributeAccessIssue]

    def name(self) -> str:
        return "a fitted Gaussian"


def _check_init(view: FlatView, init: Term) -> Term:
    """A term to start from: normalised, sampled exactly, over the target's variables."""
    if not (init.samplable and init.normalized):
        raise TypeError(
            f"init as a term is where the path starts: it must be normalised and sampled exactly, {init.name()} is "
            f"{'not normalised' if init.samplable else 'not sampled exactly'}; use a Gaussian"
        )
    if scope_names(init) != scope_names(view.term):
        raise ScopeError(
            f"init is over {describe_variables(init.variables)} and the target over "
            f"{describe_variables(view.term.variables)}"
        )
    unite([init.variables, view.term.variables])
    require_energy(view, "a path from init")
    if view.dim != view.full_dim:
        raise ValueError("init= and a Clamp do not go together: the start would not respect the clamped coordinates")
    return init


def _reference(view: FlatView, request: Request) -> Term:
    """A Gaussian matched to a short pilot run, with its covariance inflated."""
    zero = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
    broad = _FlatGaussian(view, Gaussian(zero, 25.0))
    size = min(512, max(128, request.n))
    pilot = Plan(HMC(num_leapfrog=3), cess=0.9, max_levels=400)
    path = tempered(view, broad)
    run = descend(path, pilot, begin(path, pilot, size, request.generator), request.generator)
    run.point = run.point.select(run.cloud.resample(request.generator))
    move(path, pilot, run, request.generator, 5)
    x = run.point.x
    mean, centred = x.mean(0), x - x.mean(0)
    if size >= 4 * view.dim:
        covariance = 1.5 * centred.mT @ centred / (size - 1)
        covariance = 0.95 * covariance + 0.05 * torch.diag(covariance.diag())
    else:
        covariance = 1.5 * centred.var(0).clamp(min=1e-12)
    return _FlatGaussian(view, Gaussian(mean, covariance))


# ---------------------------------------------------------- sums over members


def split_sum(term: Term) -> list[tuple[float, Term]]:
    """(log-weight, member) of a sum that does not commute with noising; one pair otherwise.

    A product with such a sum as a factor is expanded: (p + q) r = p r + q r.
    """
    if isinstance(term, Mixture) and term.path == "annealed":
        found = []
        for log_weight, member in zip(term.log_weights, term._terms(), strict=True):
            found += [(log_weight + extra, inner) for extra, inner in split_sum(member)]
        return found
    if isinstance(term, Product):
        pairs = term.pairs()
        for index, (factor, exponent) in enumerate(pairs):
            if isinstance(factor, Mixture) and factor.path == "annealed" and exponent.constant == 1.0:
                rest = pairs[:index] + pairs[index + 1 :]
                found = []
                for log_weight, member in zip(factor.log_weights, factor._terms(), strict=True):
                    inner = Product([(member, 1.0), *rest], 0.0, term.variables)
                    found += [(log_weight + term.log_scale + extra, t) for extra, t in split_sum(inner)]
                return found
    return [(0.0, term)]


def run_sum(sampler: SMC, request: Request, members: list[tuple[float, Term]]) -> Draw:
    """Draw every member by itself, weigh each by its own log Z, and resample over all.

    Raises:
        MissingEnergy: a member without an energy.
    """
    clock = time.perf_counter()
    n, count = request.n, len(members)
    sizes = [n // count + (k < n % count) for k in range(count)]
    sizes = [max(s, min(n, 256)) for s in sizes]
    draws = []
    for k, ((_, member), size) in enumerate(zip(members, sizes, strict=True)):
        part = replace_request(request, member, size, k)
        draws.append(_run(replace(sampler, record=False), part))
    logs = torch.tensor([w + _known_log_z(d) for (w, _), d in zip(members, draws, strict=True)], dtype=torch.float64)
    total = logs.logsumexp(0)
    shares = (logs - total).exp()
    errors = torch.tensor([_known_se(d) for d in draws], dtype=torch.float64)
    states = [request.view().ravel(d.x) for d in draws]
    weights = torch.cat([share * d.log_weights.double().softmax(0) for share, d in zip(shares, draws, strict=True)])
    pool = torch.cat(states)
    view = request.view()
    info = new_info(sampler, request)
    info.ess = float(1.0 / (weights**2).sum())
    if sampler.resample:
        counts = _allocate(shares, n, request.generator)
        chosen = []
        for k, state in enumerate(states):
            order = torch.randperm(len(state), generator=request.generator)
            repeats = -(-int(counts[k]) // len(state)) if len(state) else 0
            chosen.append(state[torch.cat([order] * max(repeats, 1))[: int(counts[k])]])
        x, log_weights = torch.cat(chosen), zeros(n, pool)
    else:
        x, log_weights = pool, (weights.log() + math.log(len(pool))).to(pool)
    spent = sum(d.info.evaluations * s for d, s in zip(draws, sizes, strict=True))
    info.evaluations = spent / n
    info.network_rows = sum(d.info.network_rows * s for d, s in zip(draws, sizes, strict=True)) / n
    info.acceptance = math.fsum(d.info.acceptance for d in draws) / count
    info.divergences = sum(d.info.divergences for d in draws)
    info.step_size = draws[0].info.step_size
    info.path = "+".join(d.info.path for d in draws)
    info.reason = f"{request.reason}; a sum of {count} members, each drawn by itself and weighed by its own log Z"
    info.extra = {
        "raw_log_z": float(total),
        "members": [
            {"weight": float(s), "log_z": _known_log_z(d), "path": d.info.path}
            for s, d in zip(shares, draws, strict=True)
        ],
    }
    info.seconds = time.perf_counter() - clock
    known = request.term.calibrated
    if not known:
        warnings.warn(
            f"{request.term.name()}: a member's energy has a free constant, so the weights of this sum rest on it; "
            "calibrate(member) fixes it",
            SamplingWarning,
            stacklevel=4,
        )
    se = math.sqrt(float(((shares * errors) ** 2).sum()))
    return Draw(view.unravel(x), log_weights, float(total) if known else None, se if known else None, info)


def run_strata(sampler: Sampler, request: Request) -> Draw:
    """Draw a sum of score-only members: as many particles from each as its weight says."""
    assert isinstance(request.term, Mixture)
    clock = time.perf_counter()
    mixture = request.term
    shares = torch.tensor(mixture.log_weights, dtype=torch.float64).softmax(0)
    counts = _allocate(shares, request.n, request.generator)
    draws = []
    for k, (member, size) in enumerate(zip(mixture._terms(), counts.tolist(), strict=True)):
        if size:
            draws.append(sampler.run(replace_request(request, member, size, k)))
    view = request.view()
    x = torch.cat([view.ravel(d.x) for d in draws])
    info = new_info(sampler, request)
    info.reason = f"{request.reason}; a mixture of score-only members, {counts.tolist()} draws from each"
    info.evaluations = sum(d.info.evaluations * len(d) for d in draws) / request.n
    info.network_rows = sum(d.info.network_rows * len(d) for d in draws) / request.n
    info.acceptance = math.fsum(d.info.acceptance * len(d) for d in draws) / request.n
    info.divergences = sum(d.info.divergences for d in draws)
    info.ess, info.seconds = float(request.n), time.perf_counter() - clock
    return Draw(view.unravel(x), zeros(request.n, x), None, None, info)


def replace_request(request: Request, term: Term, n: int, index: int) -> Request:
    """The same request for a member of a sum, with a checkpoint of its own beside the given one."""
    file = request.checkpoint
    file = None if file is None else file.with_name(f"{file.name}.{index}")
    return replace(request, term=term, n=n, progress=request.progress or False, checkpoint=file)


def _allocate(shares: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Counts that add up to n, within one of n·share, unbiased."""
    from boltzmix.compose.samplers.particles import systematic

    return torch.bincount(systematic(shares, n, generator).cpu(), minlength=len(shares))


def _known_log_z(draw: Draw) -> float:
    """log Z of the energies as they are, whether or not their constants mean something."""
    return draw.info.extra["raw_log_z"]


def _known_se(draw: Draw) -> float:
    return draw.log_z_se if draw.log_z_se is not None else 0.0


# ----------------------------------------------------------- what is improper


def _refuse_improper(term: Term) -> None:
    """Gaussian composites have a closed form: refuse those that are not positive definite."""
    if not isinstance(term, Product):
        return
    pairs = term.pairs()
    if not pairs:
        raise NotNormalizable(f"{term.name()} is constant: everything cancelled, and a constant has no finite integral")
    if not all(isinstance(t, Gaussian) and e.constant is not None for t, e in pairs):
        return
    from boltzmix.compose.closed_form import gaussian_product

    gaussian_product([(t, e.constant) for t, e in pairs])  # pyright: ignore[reportArgumentType]


def _refuse_growing_tails(term: Term, view: FlatView, point: Point) -> None:
    """Densities that may have no integral: along rays, energies must grow like D log r and more."""
    if not view.has_energy or view.term._rows() or view.per_row or _surely_proper(view.term):
        return
    x, mean, spread = point.x[:64], point.x.mean(0), point.x.std(0).clamp(min=1e-30)
    size = ((x - mean) / spread).square().mean(1, keepdim=True).sqrt()
    rays = (x - mean) / size.clamp(min=1e-3)  # as long as a draw is from the mean
    energies = torch.stack([view.at(None).energy(mean + r * rays) for r in (8.0, 64.0, 512.0)])
    heavy = energies[2] - energies[1] < 0.99 * math.log(8.0) * view.dim  # NaN where both are infinite: no mass
    if bool(heavy.any()):
        raise NotNormalizable(
            f"{term.name()}: the density does not fall fast enough along {int(heavy.sum())} of {len(x)} rays from the "
            f"draws to infinity (energies {[round(float(e), 1) for e in energies[:, heavy][:, 0]]} at 8, 64 and 512 "
            "times the distance), so it has no finite integral; use bounded_negation, or a smaller exponent on the "
            "quotient"
        )


def _surely_proper(term: Term) -> bool:
    """Products of positive powers of normalised terms, at least one of them with exponent ≥ 1; sums of these."""
    if term.normalized:
        return True
    if isinstance(term, Mixture):
        return all(_surely_proper(t) for t in term._terms())
    if not isinstance(term, Product):
        return False
    weights = [e.constant for _, e in term.pairs()]
    return all(w is not None and w > 0 for w in weights) and all(t.normalized for t, _ in term.pairs())


# ------------------------------------------------------------------ resuming


def _snapshot(
    path: Path, run: Descent, request: Request, kind: str, why: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {
        "x": run.point.x,
        "energy": run.point.energy,
        "score": run.point.score,
        "log_weights": run.cloud.log_weights,
        "ancestors": run.cloud.ancestors,
        "generator": request.generator.get_state(),
    }
    if run.point.parts is not None:
        tensors.update({f"part{k}": p for k, p in enumerate(run.point.parts)})
    tensors.update({f"frame{k:05d}": f for k, f in enumerate(run.frames)})
    state: dict[str, Any] = {
        "u": run.u,
        "increment": run.increment,
        "step_size": run.step_size,
        "width": run.width,
        "levels": run.levels,
        "log_z": run.cloud.log_z,
        "path": kind,
        "why": why,
        "rows": path.view.counter.rows,
        "network_rows": path.view.counter.network_rows,
    }
    if isinstance(path, NoisePath):
        tensors["start_mean"], tensors["start_variance"] = path.mean, path.variance
        state["sigma"], state["late"] = path.sigma, path.late
    else:
        base = path.base_term  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(base, _FlatGaussian):
            tensors.update({f"base/{k}": v for k, v in base.gaussian.named_buffers()})
        elif not isinstance(request.init, Term):
            state["base"] = [c.key() for c in candidates(path.view.term)].index(base.key())
    return tensors, state


def _restore(
    view: FlatView, request: Request, tensors: dict[str, Tensor], state: dict[str, Any]
) -> tuple[Path, Descent, str, str]:
    tensors = {k: v if k == "generator" else v.to(view.device) for k, v in tensors.items()}
    request.generator.set_state(tensors["generator"])
    path: Path
    if state["path"] == "noise":
        path = NoisePath(
            view.as_product(), state["sigma"], tensors["start_mean"], tensors["start_variance"], state["late"]
        )
    elif "base/mean" in tensors:
        gaussian = Gaussian(tensors["base/mean"], tensors["base/variances"])
        gaussian.basis = tensors.get("base/basis")
        path = tempered(view, _FlatGaussian(view, gaussian))
    else:
        base = request.init if isinstance(request.init, Term) else candidates(view.term)[state["base"]]
        path = tempered(view, base)
    parts = tuple(tensors[f"part{k}"] for k in range(4)) if "part0" in tensors else None
    point = Point(tensors["x"], tensors["energy"], tensors["score"], parts)  # pyright: ignore[reportArgumentType]
    cloud = Cloud(tensors["log_weights"], tensors["ancestors"], state["log_z"])
    frames = [tensors[k] for k in sorted(tensors) if k.startswith("frame")]
    run = Descent(
        point, cloud, state["u"], state["increment"], state["step_size"], state["width"], state["levels"], frames
    )
    view.counter.rows, view.counter.network_rows = state["rows"], state["network_rows"]
    return path, run, state["path"], state["why"]
