r"""Feynman–Kac corrected reverse diffusion: weighted particles for formulas over score-only terms.

The mathematics are those of :mod:`boltzmix.compose.samplers.feynman_kac`. A run evaluates every factor once a level,
adds the increments of the log-weights, resamples where the effective sample size has fallen, and takes one step of the
reverse SDE on summed scores:

.. math::
    \log w \mathrel{+}= \sum_j \tfrac12 (\Delta_- + \Delta_+)\, r_j(x_k; \sigma_k), \qquad
    x_{k+1} = \text{step}(x_k, \text{drift}(x_k), z).

Weights that no resampling has spent are carried on, and log Z is the sum of the logs of the mean increments.
"""

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, RunInfo, zeros
from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.flat import FlatView
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, frames_of, is_number, new_info
from boltzmix.compose.samplers.coarse_start import Begin, begin_at
from boltzmix.compose.samplers.feynman_kac import Formula, Values, interval, summed, weight_rates
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.particles import Populations, check_population, check_rows
from boltzmix.compose.samplers.proper import refuse_improper
from boltzmix.compose.samplers.sums import run_strata, run_sum, split_sum
from boltzmix.compose.term import check_levels

_ESCAPED = 100.0


@dataclass(frozen=True)
class FKC(Sampler):
    r"""Reverse diffusion on summed scores, with Feynman–Kac weights that correct it for the formula as written.

    For products, powers, quotients and guidance of noised terms, of which only scores need be known, times static
    factors with energies (rewards, constraints), which are faded in along the path. Exact as particles and steps grow;
    one evaluation a step.

    log Z is that of noised factors as normalised densities, which diffusion models are.

    Args:
        steps: number of levels above zero.
        sigmas: decreasing levels to use instead, or a plain :class:`Ladder`; the last step goes on to 0.
        rho: curvature of the levels (Karras et al. 2022), from a level where the formula is close to a Gaussian.
        ess_threshold: resample below this fraction of effective particles; 0 never does.
        population: particles form populations of this many consecutive rows, each weighed and resampled by itself, and
            n is a multiple. With a condition for each row, those of a population are the same. The first row of each
            population is then a fair draw; ``info.extra["population_log_z"]`` holds their log Z.
        noise: share κ of fresh noise: 1 is the reverse SDE, 0 the probability flow, more is Langevin dynamics on top,
            which forgets more and needs smaller steps. The weights hold for each.
        resample: resample at the end, so that weights are equal; False keeps them.
        record: keep the particles of every level for ``Draw.animate``.

    Raises:
        ValueError: settings outside their range.
        MissingEnergy: a score-only factor that is static, or whose exponent changes with σ.
        TypeError: an annealed factor, or a Clamp.
        NotNormalizable: exponents of noised factors that do not add up to a positive number.

    Bias: of the second order in the steps (docs/samplers.md has figures); of the order of the square of the last level,
    from which the last step goes to Tweedie's estimate; and of learned scores that are of no density.

    Source: M. Skreta et al. (2025), Feynman–Kac correctors in diffusion: annealing, guidance, and product of experts.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian, sample, term
        >>> p = Gaussian(torch.zeros(2), 1.0)
        >>> q = term(lambda x, s: p.score(x, s), kind="score", path="noised", event_shape=2)
        >>> draw = sample(q**3, 500, sampler=FKC(steps=20), seed=0)
        >>> abs(draw.log_z + math.log(3) + 2 * math.log(2 * math.pi)) < 0.01
        True
    """

    steps: int = 100
    sigmas: Sequence[float] | Ladder | None = None
    rho: float = 7.0
    ess_threshold: float = 0.5
    population: int | None = None
    noise: float = 1.0
    resample: bool = True
    record: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise ValueError(f"FKC needs steps >= 2, got {self.steps!r}")
        if not is_number(self.rho) or not 0 < self.rho < math.inf:
            raise ValueError(f"FKC needs a positive finite rho, got {self.rho!r}")
        if not is_number(self.ess_threshold) or not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold is a fraction in [0, 1], got {self.ess_threshold!r}")
        if not is_number(self.noise) or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is a share >= 0 of the reverse SDE's, got {self.noise!r}")
        check_population(self.population, "FKC")
        if self.sigmas is not None:
            levels = _plain(self.sigmas)
            falling = all(a > b for a, b in itertools.pairwise(levels))
            if len(levels) < 2 or not falling or not levels[-1] > 0 or not levels[0] < math.inf:
                raise ValueError(f"sigmas are two or more finite, positive, strictly decreasing levels, got {levels}")

    def run(self, request: Request) -> Draw:
        """Go down the levels; sums that do not commute with noising are split over their members first."""
        term = request.term
        if request.init is not None:
            raise ValueError("FKC starts from the formula's coarse form, whose weight it knows: leave out init=")
        members = split_sum(term)
        if len(members) > 1:
            if self.population is not None:
                raise ValueError(
                    f"{term.name()} is drawn member by member, which population= cannot divide: leave it out, or draw "
                    "the members by themselves"
                )
            if isinstance(term, Mixture) and all(not m.has_energy and m.path == "noised" for _, m in members):
                return run_strata(self, request)
            return run_sum(self, request, members, _run)
        return _run(self, request)


@dataclass
class Walk:
    """Where a run stands; everything that resuming needs."""

    x: Tensor
    cloud: Populations
    index: int = 0
    goal: Tensor | None = None
    width: float = 0.0
    lost: int = 0
    levels: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


def _run(sampler: FKC, request: Request) -> Draw:
    clock = time.perf_counter()
    if request.term.path == "static":
        raise TypeError(
            f"FKC needs a factor that changes with sigma and {request.term.name()} is static: use SMC or MCMC"
        )
    view = request.view().as_product()
    check_rows(view.term, request.n, sampler.population)
    refuse_improper(request.term)
    formula = Formula(view)
    if sampler.sigmas is not None:
        check_levels(torch.tensor(_plain(sampler.sigmas)), view.term.sigma_range, view.term.name())
    store = None
    if request.checkpoint is not None:
        store = Checkpoint(request.checkpoint, request.fingerprint(sampler, view))
    saved = None if store is None else store.load()
    if saved is None:
        begin = begin_at(formula, request, sampler)
        x = begin.mean + begin.variance.sqrt() * _noise(request, view)
        walk = Walk(x, Populations.uniform(request.n, sampler.population, x), width=_spread(x))
    else:
        begin, walk = _restore(view, request, *saved)
    if sampler.record and not walk.frames:
        walk.frames.append(walk.x.clone())
    bar = Progress("FKC", request.progress)
    try:
        while walk.index < len(begin.levels):
            _advance(sampler, request, formula, begin, walk)
            bar(walk.index / len(begin.levels), f"sigma={begin.levels[walk.index - 1]:.3g}")
            if store is not None:
                store.save(lambda: _snapshot(view, request, begin, walk))
    finally:
        bar.close()
    return _finish(sampler, request, view, begin, walk, clock)


def _advance(sampler: FKC, request: Request, formula: Formula, begin: Begin, walk: Walk) -> None:
    """Evaluate at one level, weigh, resample, and step to the next."""
    clock = time.perf_counter()
    k, levels, flow = walk.index, begin.levels, begin.flow
    sigma = levels[k]
    before = levels[k - 1] if k else None
    following = levels[k + 1] if k + 1 < len(levels) else None
    values = formula.evaluate(walk.x, sigma, start=k == 0)
    powers = [member.power(sigma) for member in formula.noised]
    tilt = summed([score for _, score in values.tilts], _tilts(formula, begin, k), walk.x)
    rates = weight_rates(walk.x, values.scores, powers, tilt, flow, sigma)
    increments = interval(before, sigma, following) * rates.double().sum(1)
    if following is None:  # the last step goes to 0
        last = weight_rates(walk.x, values.scores, powers, tilt, flow, sigma, escort=False)
        increments = increments + sigma**2 * last.double().sum(1)
    increments = increments + _changes(formula, begin, values, walk.x, k)
    if k == 0:
        increments = increments + begin.log_weights(walk.x, formula, values, powers)
        increments = increments + flow.guess.log_z(levels[-1]) - flow.guess.log_z(sigma)  # what rates leave out
    score = summed(values.scores, powers, walk.x)
    drift = flow.drift(walk.x, score, tilt, sigma)
    bad = ~torch.isfinite(drift).all(1) | torch.isnan(increments)
    walk.lost += int(bad.sum())
    conditional = _conditional(walk.cloud, increments)
    walk.cloud.reweigh(torch.where(bad, -torch.inf, increments), f"{request.term.name()} at sigma={sigma:.3g}")
    ess = walk.cloud.ess
    rows = walk.cloud.resample(request.generator, sampler.ess_threshold)
    goal, previous = flow.goal(walk.x, drift, sigma), walk.goal
    if rows is not None:
        walk.x, goal, score, tilt = walk.x[rows], goal[rows], score[rows], tilt[rows]
        previous = None if previous is None else previous[rows]
    if following is None:
        walk.x = walk.x + sigma**2 / flow.strength * (score + tilt)
    else:
        z = _noise(request, formula.view) if sampler.noise else torch.zeros_like(walk.x)
        earlier = None if previous is None or before is None else (previous, before)
        walk.x = flow.step(walk.x, goal, earlier, sigma, following, z)
    walk.goal, walk.index = goal, k + 1
    walk.levels.append(
        {
            "sigma": sigma,
            "weight": begin.fading(k),
            "conditional_ess": float(conditional.mean()),
            "ess": float(ess.mean()),
            "resampled": 0.0 if rows is None else float((ess < sampler.ess_threshold).double().mean()),
            "evaluations": 1.0,
            "seconds": time.perf_counter() - clock,
        }
    )
    _refuse_escaped(request, walk, sigma)
    if sampler.record:
        walk.frames.append(walk.x.clone())


def _tilts(formula: Formula, begin: Begin, k: int) -> list[float]:
    """c_j at a level."""
    return [member.power(begin.levels[k]) * begin.fading(k) for member in formula.static]


def _changes(formula: Formula, begin: Begin, values: Values, x: Tensor, k: int) -> Tensor:
    """Σ L dc at a level: half of the changes to the levels beside it, and all of that to the data end.

    What the guess knows of the tilts is integrated with the other rates, where it cancels against them.
    """
    last = len(begin.levels) - 1
    sides = [(max(k - 1, 0), k, 0.5), (k, min(k + 1, last), 0.5)]
    total = torch.zeros(len(values.scores[0]), dtype=torch.float64, device=values.scores[0].device)

    def add(log_density: Tensor, change: float) -> None:
        nonlocal total
        if change:  # 0 · ∞ is 0 here
            total = total + change * log_density.double()

    for index, (member, (log_density, _)) in enumerate(zip(formula.static, values.tilts, strict=True)):
        change = sum(
            half * (_tilts(formula, begin, b)[index] - _tilts(formula, begin, a)[index]) for a, b, half in sides
        )
        add(log_density, change + (member.power(None) - _tilts(formula, begin, k)[index] if k == last else 0.0))
    if begin.flow.guess.tilted:
        change = sum(half * (begin.fading(b) - begin.fading(a)) for a, b, half in sides)
        add(begin.flow.guess.tilt(x).sum(1), -change)
    for index in formula.varying:
        member, log_density = formula.noised[index], values.logs[index]
        assert log_density is not None
        at = [member.power(begin.levels[i]) for i in (max(k - 1, 0), k, min(k + 1, last))]
        add(log_density, 0.5 * (at[2] - at[0]) + (member.power(None) - at[1] if k == last else 0.0))
    return total


def _conditional(cloud: Populations, increments: Tensor) -> Tensor:
    """(Σ W w)² / Σ W w² of each population, for incremental weights w."""
    logs = torch.where(torch.isnan(increments), -torch.inf, increments).reshape(cloud.log_weights.shape)
    first, second = ((cloud.log_weights + times * logs).logsumexp(1) for times in (1, 2))
    return torch.nan_to_num((2 * first - second).exp(), nan=0.0)


def _refuse_escaped(request: Request, walk: Walk, sigma: float) -> None:
    now = _spread(walk.x)
    if now > _ESCAPED * walk.width:
        raise NotNormalizable(
            f"{request.term.name()}: at sigma={sigma:.3g} the particles spread over {now:.3g}, {now / walk.width:.3g} "
            "times the start: the formula has no finite integral along its path, or the steps are too coarse; take "
            "more steps, or a smaller exponent on the quotient"
        )


def _finish(sampler: FKC, request: Request, view: FlatView, begin: Begin, walk: Walk, clock: float) -> Draw:
    info: RunInfo = new_info(sampler, request)
    cloud, n = walk.cloud, request.n
    count, size = cloud.log_weights.shape
    assert isinstance(view.term, Product)
    log_z = cloud.log_z + view.term.log_scale
    se = cloud.log_z_se()
    fraction = float(cloud.ess.mean())
    info.ess, info.path, info.levels, info.divergences = fraction * n, "noise", walk.levels, walk.lost
    info.reason = f"{info.reason}; follows the noise levels from sigma={begin.levels[0]:.3g}"
    if walk.lost:
        warnings.warn(
            f"FKC: scores or weights of {request.term.name()} were not finite {walk.lost} times; these particles have "
            "no weight",
            SamplingWarning,
            stacklevel=4,
        )
    families, lowest = cloud.families, min(level["ess"] for level in walk.levels)
    if size >= 10 and (float(families.mean()) < max(2, 0.02 * size) or lowest < 0.02 or fraction < 0.02):
        warnings.warn(
            f"FKC: weights collapsed ({float(families.mean()):.3g} of {size} first ancestors left, effective size down "
            f"to {lowest:.1%}). Masses of modes and log Z are unreliable: use more particles or steps; in high "
            f"dimensions (here {view.dim}) Annealed, without weights, is the honest choice",
            SamplingWarning,
            stacklevel=4,
        )
    raw, raw_se = cloud.evidence()
    raw += view.term.log_scale
    info.extra["raw_log_z"] = raw
    info.extra["steps"] = len(begin.levels)
    if sampler.population is not None:
        info.extra["population_log_z"] = log_z.tolist()
        info.extra["population_log_z_se"] = se.tolist()
    weights = zeros(n, walk.x)
    if sampler.resample:
        rows = torch.arange(n, device=walk.x.device)
        drawn = cloud.resample(request.generator, 0.999)
        rows = rows if drawn is None else drawn
        if sampler.population is not None:  # copies lie beside each other: any row is to be a fair draw
            keys = torch.rand(count, size, generator=request.generator, device=walk.x.device)
            rows = rows.reshape(count, size).gather(1, keys.argsort(1)).reshape(-1)
        walk.x = walk.x[rows]
    else:
        weights = (cloud.log_weights.reshape(-1) + math.log(size)).to(walk.x)
    info.evaluations = view.counter.rows / n
    info.network_rows = view.counter.network_rows / n
    info.seconds = time.perf_counter() - clock
    known = not view.per_row and all(
        (t.normalized or not t.has_energy) if t.path == "noised" else t.calibrated for t, _ in view.term.pairs()
    )
    return Draw(
        view.unravel(walk.x), weights, raw if known else None, raw_se if known else None, info,
        frames_of(view, walk.frames),
    )  # fmt: skip


def _snapshot(view: FlatView, request: Request, begin: Begin, walk: Walk) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint holds."""
    tensors = {
        "x": walk.x,
        "log_weights": walk.cloud.log_weights,
        "ancestors": walk.cloud.ancestors,
        "log_z": walk.cloud.log_z,
        "generator": request.generator.get_state(),
        **begin.tensors(),
    }
    if walk.goal is not None:
        tensors["goal"] = walk.goal
    tensors.update({f"frame{k:05d}": f for k, f in enumerate(walk.frames)})
    state = {
        "index": walk.index, "width": walk.width, "lost": walk.lost, "records": walk.levels, "levels": begin.levels,
        "fade": list(dataclasses.astuple(begin.flow.guess.fade)), "noise": begin.flow.noise,
        "rows": view.counter.rows, "network_rows": view.counter.network_rows,
    }  # fmt: skip
    return tensors, state


def _restore(view: FlatView, request: Request, tensors: dict[str, Tensor], state: dict[str, Any]) -> tuple[Begin, Walk]:
    """Take up a snapshot."""
    request.generator.set_state(tensors["generator"])
    tensors = {name: value.to(view.device) for name, value in tensors.items() if name != "generator"}
    cloud = Populations(tensors["log_weights"], tensors["ancestors"], tensors["log_z"])
    frames = [tensors[name] for name in sorted(tensors) if name.startswith("frame")]
    walk = Walk(
        tensors["x"], cloud, state["index"], tensors.get("goal"), state["width"], state["lost"], state["records"],
        frames,
    )  # fmt: skip
    view.counter.rows, view.counter.network_rows = state["rows"], state["network_rows"]
    return Begin.restore(tensors, state), walk


def _noise(request: Request, view: FlatView) -> Tensor:
    return torch.randn(request.n, view.dim, generator=request.generator, dtype=view.dtype, device=view.device)


def _spread(x: Tensor) -> float:
    """Root mean square distance from the mean, of the finite states."""
    kept = x[torch.isfinite(x).all(1)].double()
    if not len(kept):
        raise NonFinite("no particle is finite any more; take more steps, and check the scores")
    return math.sqrt(float(((kept - kept.mean(0)) ** 2).sum(1).mean()) + 1e-300)


def _plain(sigmas: Sequence[float] | Ladder) -> list[float]:
    """The levels of a sequence, or of a ladder whose steps begin where the last one ended."""
    if not isinstance(sigmas, Ladder):
        return [float(s) for s in sigmas]
    extra = [name for name in ("carry", "spread", "lower", "upper") if getattr(sigmas, name) is not None]
    if extra or sigmas.begins[1:] != sigmas.ends[:-1] or sigmas.final != 0.0:
        raise ValueError(
            "FKC takes plain levels that go on to 0, Ladder.down(levels): a ladder that rescales states, spreads the "
            "start or jumps between steps follows other densities"
        )
    return list(sigmas.begins)
