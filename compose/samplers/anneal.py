r"""The loop that SMC, AIS and annealed MCMC share: down a path, reweigh, resample, move.

At each level the particles are carried to the next density, weighed by the ratio of the two, resampled
when the weights are uneven, and moved by a kernel that leaves the new density invariant. Annealed MCMC
leaves out the weights, AIS the resampling.

*Carrying.* On the noise path of a composite whose exponents sum to W, the cloud's variance per coordinate
shrinks like :math:`v' = v - (\sigma^2 - \sigma'^2) / W`. The particles are contracted about their mean by
:math:`\sqrt{v'/v}` and the Jacobian enters the weights, which removes most of the cost of the large noise
levels (a deterministic move inside an SMC sampler: Del Moral, Doucet and Jasra, 2006, section 2; Arbel,
Matthews and Doucet, 2021). Mean and variance for one half of the particles come from the other half:
fitted on the particles that they move, log Z would be biased by about D/N per level. The halves are families: copies
that resampling made of one particle stay together.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite, NotNormalizable
from boltzmix.compose.kernels.base import Kernel, State, Tune
from boltzmix.compose.samplers.moves import Moves
from boltzmix.compose.samplers.particles import Cloud
from boltzmix.compose.samplers.path import NoisePath, Path, Point, strengths

_PROBES = 512


@dataclass
class Plan:
    """How to go down a path.

    Args:
        kernel: what moves the particles.
        levels: ``"adaptive"``, or the values of u ∈ (0, 1] to visit, the last of which is 1.
        cess: conditional effective sample size to aim at per level, as a fraction.
        ess_threshold: resample when the effective sample size falls below this fraction; 0 never does.
        moves: kernel steps at each level.
        weigh: whether to compute weights and log Z.
        max_levels: give up beyond this many levels.
        longest: the largest step in u that adaptive levels take.
        step_sizes: fixed step size for a level's description, instead of adaptation.
        compile: whether moves and evaluations are compiled, ``"auto"``, True or False.
    """

    kernel: Kernel
    levels: str | Sequence[float] = "adaptive"
    cess: float = 0.98
    ess_threshold: float = 0.5
    moves: int = 1
    weigh: bool = True
    max_levels: int = 1000
    longest: float = 1.0
    step_sizes: Callable[[dict[str, float]], float] | None = None
    record: bool = False
    compile: bool | str = False

    @property
    def evaluations(self) -> int | None:
        """Evaluations of all particles in a run; None where levels are as many as they turn out to be."""
        if isinstance(self.levels, str):
            return None
        return len(self.levels) * (1 + self.moves * self.kernel.evaluations_per_step)


@dataclass
class Descent:
    """Where a run stands; everything that resuming needs."""

    point: Point
    cloud: Cloud
    u: float
    increment: float
    step_size: float
    width: float
    levels: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    moves: Moves | None = None

    def moving(self, path: Path, plan: Plan) -> Moves:
        """The steps and evaluations of this run."""
        if self.moves is None:
            self.moves = Moves(path, plan.kernel, plan.compile, plan.evaluations)
        return self.moves


def begin(path: Path, plan: Plan, n: int, generator: torch.Generator | None) -> Descent:
    """Draw the start and weigh it against the path's first density."""
    x, log_density = path.start(n, generator)
    point = path.evaluate(x, 0.0)
    cloud = Cloud.uniform(n, x)
    if plan.weigh:
        increments = -point.energy - log_density.to(point.energy)
        _require_weights(path, increments, 0.0)
        cloud.reweigh(increments)
    guess = plan.kernel.step_size or plan.kernel.initial_step_size(path.view.dim)
    return Descent(point, cloud, 0.0, 0.02, guess, _spread(x))


def descend(
    path: Path,
    plan: Plan,
    run: Descent,
    generator: torch.Generator | None,
    progress: Callable[[float, str], None] | None = None,
    save: Callable[[Descent], None] | None = None,
) -> Descent:
    """Go on from where ``run`` stands to u = 1.

    Raises:
        NotNormalizable: the particles escape, or the level cap is reached.
        NonFinite: no particle has a finite weight.
    """
    cap = 1e2 if isinstance(path, NoisePath) else 1e4  # a fitted base may be much narrower than its target
    while run.u < 1.0:
        clock, rows = time.perf_counter(), path.view.counter.rows
        if len(run.levels) >= plan.max_levels:
            raise NotNormalizable(
                f"{path.view.original.name()}: after {plan.max_levels} levels the path is at "
                f"{_words(path.describe(run.u))}; the composite may have no finite integral, or raise max_levels"
            )
        left = run.u
        conditional = _advance(path, plan, run)
        ess = run.cloud.ess / len(run.point.x) if plan.weigh else 1.0
        if plan.weigh and ess < plan.ess_threshold:
            run.point = run.point.select(run.cloud.resample(generator))
        shrink = None if plan.weigh else _shrink(path, run, left)
        acceptance, divergences = move(path, plan, run, generator, plan.moves, shrink)
        run.levels.append(
            {
                "u": run.u,
                **path.describe(run.u),
                "conditional_ess": conditional,
                "ess": ess,
                "acceptance": acceptance,
                "divergences": divergences,
                "step_size": run.step_size,
                "evaluations": (path.view.counter.rows - rows) / len(run.point.x),
                "seconds": time.perf_counter() - clock,
            }
        )
        now = _spread(run.point.x)
        if not math.isfinite(now) or now > cap * run.width:
            raise NotNormalizable(
                f"{path.view.original.name()}: at {_words(path.describe(run.u))} the particles spread over {now:.3g}, "
                f"{now / run.width:.3g} times the start; the composite has no finite integral along its path. "
                "Use bounded_negation(p, q, alpha), or a smaller exponent on the quotient"
            )
        if plan.record:
            run.frames.append(run.point.x.clone())
        if progress is not None:
            progress(run.u, f"{_words(path.describe(run.u))}, ESS {ess:.2f}, acceptance {acceptance:.2f}")
        if save is not None:
            save(run)
    return run


def move(
    path: Path,
    plan: Plan,
    run: Descent,
    generator: torch.Generator | None,
    steps: int,
    shrink: Tensor | None = None,
) -> tuple[float, int]:
    """Kernel steps at the current level, adapting the step size; mean acceptance and divergences.

    The inverse mass is the cloud's variance, times ``shrink`` where the cloud has not followed its density yet.
    """
    mass = plan.kernel.inverse_mass
    if mass is None and plan.kernel.step_size is None:
        mass = cloud_variance(run.point.x, run.cloud.weights)
        mass = mass if shrink is None else mass * shrink
    moves = run.moving(path, plan)
    rates, divergences = [], 0
    if plan.step_sizes is not None:
        run.step_size = plan.step_sizes(path.describe(run.u))
    for _ in range(steps):
        tune = Tune(torch.as_tensor(run.step_size, dtype=run.point.x.dtype), mass)
        before = run.point
        state = plan.kernel.attach(State(before.x, before.energy, before.score), generator)
        run.point, info = moves.step(run.u, before, state, tune, plan.kernel.noise(state, generator))
        rates.append(float(info.acceptance.mean()))
        divergences += int(info.divergent.sum())
        if plan.kernel.step_size is None:
            run.step_size = nudged(plan.kernel, run.step_size, rates[-1], len(before.x))
    return math.fsum(rates) / max(steps, 1), divergences


def nudged(kernel: Kernel, step_size: float, rate: float, n: int) -> float:
    """A step size after a transition in which ``rate`` of ``n`` particles were accepted, towards the kernel's goal."""
    goal = kernel.target_acceptance
    change = rate - goal
    if change > 0 and n >= 64:  # from a goal near 1 there is little room above it to climb with
        change = change * min(4.0, 0.25 / (1.0 - goal))
    return min(max(step_size * math.exp(change), 1e-6), 10.0)


def scaled_step(kernel: Kernel, sigma: float, last: float) -> float:
    """A step size that was given for the ``last`` noise level above zero, at another: lengths scale with σ."""
    assert kernel.step_size is not None
    return kernel.step_size * (max(sigma, last) / last) ** kernel.step_power


def _shrink(path: Path, run: Descent, left: float) -> Tensor | None:
    """How much narrower than the cloud the density at the new level is, on the noise path; None elsewhere."""
    if not isinstance(path, NoisePath):
        return None
    now, then = path.level(left) or 0.0, path.level(run.u) or 0.0
    loss = ((now**2 - then**2) / strengths(path.view, now)).to(run.point.x)
    return (1.0 - loss / cloud_variance(run.point.x, run.cloud.weights)).clamp(0.05, 1.0)


def _advance(path: Path, plan: Plan, run: Descent) -> float:
    """Carry the particles to the next level and weigh them; the conditional effective fraction."""
    if isinstance(plan.levels, str):
        return _advance_adaptively(path, plan, run)
    following = next(u for u in plan.levels if u > run.u)
    if not plan.weigh:
        run.point, run.u = run.moving(path, plan).shift(run.point, following), following
        return 1.0
    point, increments = _carry(path, plan, run, following)
    conditional = run.cloud.conditional_ess(increments)
    _require_weights(path, increments, following)
    run.cloud.reweigh(_finite(increments))
    run.point, run.u = point, following
    return conditional


def _advance_adaptively(path: Path, plan: Plan, run: Descent) -> float:
    """The step in u is controlled so that −log of the conditional fraction stays near its aim.

    On the noise path, where every look at another level is an evaluation, a few hundred of many particles
    look first. A level that turns out much too bold all the same is given up, its evaluations counted, and
    a shorter one tried.
    """
    aim = -math.log(plan.cess)
    step, before, stubborn = _probed(path, plan, run, aim), math.inf, 0
    for _ in range(40):
        following = min(1.0, run.u + step)
        point, increments = _carry(path, plan, run, following)
        conditional = run.cloud.conditional_ess(increments)
        cost = -math.log(conditional) if conditional > 0 else math.inf
        if cost <= (2.0 if following < 1.0 else 1.3) * aim:
            break
        # An edge enters at once: where steps 25 times shorter are no better, take the loss.
        stubborn = stubborn + 1 if cost > 0.9 * before else 0
        if stubborn >= 2 and conditional * len(increments) >= 10:
            break
        before = cost
        step = (following - run.u) * (max(0.2, 0.9 * math.sqrt(aim / cost)) if math.isfinite(cost) else 0.2)
        if run.u + step == run.u:
            where = f"{path.view.original.name()}: no step from {_words(path.describe(run.u))}"
            if _spread(run.point.x) > 10 * run.width:
                raise NotNormalizable(
                    f"{where} keeps finite weights, and the particles spread over {_spread(run.point.x):.3g}, "
                    f"{_spread(run.point.x) / run.width:.3g} times the start: its integral is not finite there"
                )
            raise NonFinite(f"{where} keeps finite weights; its energies jump there")
    _require_weights(path, increments, following)  # pyright: ignore[reportPossiblyUnboundVariable]
    run.increment = (following - run.u) * min(3.0, max(0.4, math.sqrt(aim / max(cost, 1e-12))))  # pyright: ignore[reportPossiblyUnboundVariable]
    run.cloud.reweigh(_finite(increments))  # pyright: ignore[reportPossiblyUnboundVariable]
    run.point, run.u = point, following  # pyright: ignore[reportPossiblyUnboundVariable]
    return conditional  # pyright: ignore[reportPossiblyUnboundVariable]


def _probed(path: Path, plan: Plan, run: Descent, aim: float) -> float:
    """A step in u whose cost is near its aim, judged by some particles; the predicted one where all must look."""
    step, n = min(run.increment, plan.longest), len(run.point.x)
    if not isinstance(path, NoisePath) or n < 4 * _PROBES:
        return step
    rows = torch.arange(_PROBES, device=run.point.x.device) * (n // _PROBES)
    for _ in range(4):
        following = min(1.0, run.u + step)
        conditional = run.cloud.conditional_ess(_carry(path, plan, run, following, rows)[1], rows)
        cost = -math.log(conditional) if conditional > 0 else math.inf
        if cost <= 1.2 * aim and (cost >= 0.7 * aim or following == 1.0 or step == plan.longest):
            break
        change = math.sqrt(aim / max(cost, 1e-12)) if math.isfinite(cost) else 0.2
        step = min((following - run.u) * min(3.0, max(0.3, change)), plan.longest)
    return step


def _carry(path: Path, plan: Plan, run: Descent, following: float, rows: Tensor | None = None) -> tuple[Point, Tensor]:
    """Particles (all, or ``rows``) at the next level, contracted where that helps, and their log-weight increments."""
    n, dim = run.point.x.shape
    moves = run.moving(path, plan)
    if not isinstance(path, NoisePath) or path.late or path.view.per_row or n < 64:
        here = run.point if rows is None else run.point.select(rows)
        point = moves.shift(here, following)
        return point, _increments(run, here, point, rows)
    now, then = path.level(run.u) or 0.0, path.level(following) or 0.0
    loss = (now**2 - then**2) / strengths(path.view, now)
    x, log_det = contract(run.point.x, run.cloud.weights, loss, n < 16 * dim, halves(run.cloud))
    if rows is None:
        point = moves.evaluate(x, following)
        return point, _increments(run, run.point, point) + log_det
    point = moves.evaluate(x[rows], following)
    return point, _increments(run, run.point.select(rows), point, rows) + log_det[rows]


def _increments(run: Descent, here: Point, point: Point, rows: Tensor | None = None) -> Tensor:
    """Log-ratios of the next density to the present one; particles of zero weight keep it."""
    weights = run.cloud.log_weights if rows is None else run.cloud.log_weights[rows]
    return torch.where(weights == -torch.inf, -torch.inf, here.energy - point.energy)


def halves(cloud: Cloud) -> Tensor:
    """Which of two halves each particle is in: by first ancestors, so that copies are together.

    Where one family of ancestors has taken over, particles alternate instead.
    """
    odd = cloud.ancestors % 2 == 1
    share = float(cloud.weights[odd].sum())
    if 0.1 < share < 0.9:
        return odd
    return torch.arange(len(odd), device=odd.device) % 2 == 1


def contract(x: Tensor, weights: Tensor, loss: Tensor, isotropic: bool, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Contract each half of the particles about the other half's mean, so that variances fall by ``loss`` ``(D,)``."""
    moved, log_det = torch.empty_like(x), x.new_empty(len(x))
    for half in (odd, ~odd):
        others = weights[~half]
        total = others.sum()
        if not float(total) > 0:  # no weight to take a mean from: stay
            moved[half], log_det[half] = x[half], 0.0
            continue
        others = others / total
        mean = (others[:, None] * x[~half].double()).sum(0)
        variance = (others[:, None] * (x[~half].double() - mean) ** 2).sum(0)
        if isotropic:
            variance = variance.mean().expand_as(variance)
        scale = (1.0 - loss / variance.clamp(min=1e-300)).clamp(0.2, 1.0).sqrt().to(x)
        mean = mean.to(x)
        moved[half] = mean + scale * (x[half] - mean)
        log_det[half] = scale.log().sum()
    return moved, log_det


def cloud_variance(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted variance for each coordinate: the inverse mass."""
    w = weights.to(x)[:, None]
    mean = (w * x).sum(0)
    variance = (w * (x - mean) ** 2).sum(0)
    if len(x) < 4 * x.shape[1]:  # too few particles for a variance of their own: shrink to the mean
        variance = 0.1 * variance + 0.9 * variance.mean()
    top = float(variance.max())
    return variance.clamp(min=1e-10 * top) if top > 0 else torch.ones_like(variance)


def _spread(x: Tensor) -> float:
    """Root mean square distance from the mean."""
    centred = (x - x.mean(0)).double()
    return math.sqrt(float((centred**2).sum(1).mean()) + 1e-300)


def _finite(increments: Tensor) -> Tensor:
    """Increments with NaN as zero weight: a point whose density is undefined there cannot be kept."""
    return torch.where(torch.isnan(increments), -torch.inf, increments)


def _require_weights(path: Path, increments: Tensor, u: float) -> None:
    infinite = int((increments == torch.inf).sum())
    where = _words(path.describe(u))
    if infinite:
        raise NotNormalizable(
            f"{path.view.original.name()}: {infinite} of {len(increments)} particles meet an infinite density at "
            f"{where}, so it has no finite integral there; a quotient divides by zero, use bounded_negation instead"
        )
    if not bool(torch.isfinite(increments).any()):
        raise NonFinite(
            f"{path.view.original.name()}: no particle has a finite weight at {where}; the densities may not overlap"
        )


def _words(level: dict[str, float]) -> str:
    return f"sigma={level['sigma']:.3g}, weight {level['weight']:.3g}"
