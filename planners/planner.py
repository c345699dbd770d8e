r"""A planner: a trajectory prior, times the tasks of a problem, sampled, checked and sorted.

.. math:: p_{plan}(\tau) \propto p_{dynamics}(\tau)\, \prod_k p_k(\tau)^{w_k}

The prior is any term over normalised trajectories. Starts, goals and waypoints are known coordinates
(:mod:`boltzmix.planners.known`); every other task is a factor. Two ways to put the factors on the way down the noise
levels:

``at="estimate"``
    tasks act on the prior's denoised estimate (:mod:`boltzmix.planners.guided`): one network forward a level, few
    levels, an approximation. The default, with :class:`~boltzmix.compose.samplers.reverse.Reverse`.
``at="state"``
    the plain product, for samplers whose draws are exact in the limit (SMC, Annealed, AIS, FKC, MCMC).

With a budget a plan is *anytime*: a first round with as many levels as fit, then further rounds that renoise the best
plans to an intermediate level and come down again, while time is left. Whatever is best so far is returned.
"""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.kernels.langevin import ULA
from boltzmix.compose.product import Product
from boltzmix.compose.sample import as_generator, sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.term import Term
from boltzmix.planners.guided import Guidance, Guided, OutOfTime
from boltzmix.planners.judgement import Judgement, Rank, judge, merged, refused, result_of
from boltzmix.planners.known import Held, Known, hold
from boltzmix.planners.obstacles import as_obstacles
from boltzmix.planners.problem import Maps, Problem, as_bounds, later, pose
from boltzmix.planners.result import PlanResult
from boltzmix.planners.space import TrajectorySpace

_TOP, _BOTTOM, _RHO = 10.0, 0.02, 7.0
_FEWEST, _MOST_ROUNDS = 2, 16


@dataclass
class Cost:
    """Running means of what things take, in seconds: one level of a batch, and judging it."""

    level: float = 0.0
    judge: float = 0.0
    rest: float = 0.0

    def learn(self, what: str, seconds: float) -> None:
        """Mix in a measurement; a slower one counts more, since budgets are kept by the slow ones."""
        known = getattr(self, what)
        share = 0.5 if seconds > known else 0.2
        setattr(self, what, seconds if known == 0.0 else known + share * (seconds - known))


class Planner:
    """Plans from a prior and tasks.

    Args:
        prior: a term over normalised trajectories ``(H, D)``.
        space: of the prior; None reads ``prior.trajectory``.
        sampler: of the composition; None is reverse diffusion of ``steps`` levels with tasks at the denoised estimate.
        obstacles: that every plan avoids: Disc, Box, Polygon, …, or texts such as ``"disc:0,0,0.5"``.
        radius: of the round robot, in metres.
        bounds: that the whole robot stays inside, ``((low, high), …)`` in metres; None takes the space's.
        max_speed: in m/s, checked between tokens; None for no limit.
        tasks: of every plan, beside those of a call.
        candidates: plans that are sampled at once, of which the best are returned.
        steps: noise levels of the default sampler.
        warm_level: σ to which plans are renoised in warm starts and further rounds, in normalised units.
        warm_steps: noise levels from there; None for half of ``steps``.
        rounds: further rounds while no plan is feasible, without a budget.
        margin: metres beyond the radius in which obstacles push, before contact.
        sharpness: energy for each metre of a segment inside an obstacle.
        guidance: how tasks act on the denoised estimate.
        at: ``"estimate"`` or ``"state"``, or None for what suits the sampler.
        rank: (trajectories, energies) → ``(n,)``, smaller is better, in place of the weighted energies of tasks plus,
            where obstacles are known, the path's length.

    Raises:
        TypeError: a prior that is no term, or a sampler that is none.
        ValueError: a prior of another shape than the space, or settings out of range.

    Example:
        >>> from boltzmix.compose import Gaussian
        >>> space = TrajectorySpace(4, ("x", "y"))
        >>> prior = Gaussian(torch.zeros(4, 2), 1.0)
        >>> result = Planner(prior, space).plan([0.0, 0.0], [1.0, 1.0], seed=0)
        >>> result.status, result.best[0].tolist(), result.best[-1].tolist()
        ('feasible', [0.0, 0.0], [1.0, 1.0])
    """

    def __init__(
        self,
        prior: Term,
        space: TrajectorySpace | None = None,
        *,
        sampler: Sampler | None = None,
        obstacles: Any = (),
        radius: float = 0.0,
        bounds: Any = None,
        max_speed: float | None = None,
        tasks: Sequence[Any] = (),
        candidates: int = 8,
        steps: int = 8,
        warm_level: float = 0.3,
        warm_steps: int | None = None,
        rounds: int = 0,
        margin: float = 0.1,
        sharpness: float = 1000.0,
        guidance: Guidance | None = None,
        at: str | None = None,
        rank: Rank | None = None,
    ) -> None:
        """Check the settings; nothing is sampled yet."""
        if not isinstance(prior, Term):
            raise TypeError(f"a prior is a term, got {type(prior).__name__}; wrap it with boltzmix.term(...)")
        self.space = TrajectorySpace.of(prior) if space is None else space
        if not isinstance(self.space, TrajectorySpace):
            raise TypeError(f"space is a TrajectorySpace, got {type(self.space).__name__}")
        if prior.event_shape != self.space.shape:
            raise ValueError(f"the prior is over {prior.event_shape} and the space is {self.space.shape}")
        if sampler is not None and not isinstance(sampler, Sampler):
            raise TypeError(f"sampler is Reverse(…), SMC(…), Annealed(…), …, got {type(sampler).__name__}")
        if isinstance(sampler, MCMC):
            raise TypeError(
                "a planner draws independent plans: use SMC, Annealed, AIS, FKC or Reverse in place of MCMC"
            )
        for name, value, least in (("candidates", candidates, 1), ("steps", steps, 1), ("rounds", rounds, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is an int >= {least}, got {value!r}")
        for name, number in (("radius", radius), ("margin", margin)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} is a length >= 0, got {number!r}")
        if not 0 < warm_level < math.inf:
            raise ValueError(f"warm_level is a positive noise level, got {warm_level!r}")
        if at not in (None, "estimate", "state"):
            raise ValueError(f"at is 'estimate', 'state' or None, got {at!r}")
        self.prior, self.sampler = prior, sampler
        self.obstacles = as_obstacles(obstacles)
        self.radius, self.max_speed = float(radius), max_speed
        self.bounds = as_bounds(bounds if bounds is not None else self.space.bounds, self.space)
        self.tasks, self.candidates, self.steps = tuple(tasks), candidates, steps
        self.warm_level, self.warm_steps, self.rounds = float(warm_level), warm_steps, rounds
        self.margin, self.sharpness = float(margin), float(sharpness)
        self.guidance = Guidance() if guidance is None else guidance
        self.at = at or ("estimate" if sampler is None or isinstance(sampler, Reverse) else "state")
        self.rank = rank
        self._maps = Maps()
        self._costs: dict[Any, Cost] = {}
        self._stretched: dict[int, tuple[Term, TrajectorySpace]] = {}

    # ------------------------------------------------------------------- public

    def plan(
        self,
        start: Any,
        goal: Any = None,
        tasks: Sequence[Any] = (),
        *,
        n: int | None = None,
        horizon: int | None = None,
        budget_ms: float | None = None,
        seed: int | torch.Generator | None = None,
        init: Any = None,
        clock: float = 0.0,
    ) -> PlanResult:
        """Plans for one problem.

        The same seed gives the same plans, except under a budget, whose clock decides how many levels fit.

        Args:
            start: a state ``(S,)`` or a position, in physical units, or a task.
            goal: a position or a state at the last token, or a task such as ``Reach(…)``; None where tasks say it all.
            tasks: more factors, for this call.
            n: plans to return, best first; by default all candidates. More candidates are sampled where n asks for it.
            horizon: tokens, where the prior can be resized.
            budget_ms: milliseconds of wall time that the call keeps; what is best by then is returned.
            seed: an int, a ``torch.Generator``, or None for a fresh one.
            init: earlier plans ``(H, D)`` or ``(m, H, D)`` in physical units: a warm start from ``warm_level``.
            clock: seconds for which moving obstacles have moved when the plan begins.

        Returns:
            A :class:`~boltzmix.planners.result.PlanResult`; an infeasible problem is one with reasons, no error.

        Raises:
            ValueError: wrong shapes, a goal outside of the bounds, a budget or n that is not positive.
            NonFinite: a start, goal or init that is not finite.
        """
        began = time.perf_counter()
        count = self._count(n)
        budget = _budget(budget_ms)
        generator, number = as_generator(seed, None)
        prior, space = self._resized(horizon)
        problem = self._pose(space, start, goal, tasks, clock)
        reasons = problem.impossible(self._maps)
        if reasons:
            return refused(problem, reasons, time.perf_counter() - began, number)
        run = _Run(self, problem, prior, count, generator, began, budget)
        run.go(run.states_of(init))
        judged = run.judged
        assert judged is not None
        seconds = time.perf_counter() - began
        info = {"candidates": count, **run.info}
        return result_of(
            problem, judged.first(count if n is None else n), evaluations=run.evaluations, seconds=seconds,
            seed=number, info=info,
        )  # fmt: skip

    def plan_many(
        self,
        starts: Any,
        goals: Any,
        tasks: Sequence[Any] = (),
        *,
        n: int | None = None,
        seed: int | torch.Generator | None = None,
    ) -> list[PlanResult]:
        """Plans for several (start, goal) pairs, sampled in one batch.

        Args:
            starts: ``(P, S)`` states or ``(P, 2)`` positions.
            goals: ``(P, 2)`` positions or ``(P, S)`` states.
            tasks: factors of every pair.
            n: plans returned for each.
            seed: of the batch; results differ from those of single calls.

        Returns:
            One result for each pair; ``seconds`` and ``evaluations`` are the pair's share of the batch's.
        """
        clock = time.perf_counter()
        count = self._count(n)
        generator, number = as_generator(seed, None)
        if len(starts) != len(goals):
            raise ValueError(
                f"plan_many() needs a goal for each start, got {len(starts)} starts and {len(goals)} goals"
            )
        problems = [self._pose(self.space, s, g, tasks) for s, g in zip(starts, goals, strict=True)]
        reasons = [problem.impossible(self._maps) for problem in problems]
        open_ = [k for k, found in enumerate(reasons) if not found]
        results: list[PlanResult | None] = [
            refused(p, found, 0.0, number) if found else None for p, found in zip(problems, reasons, strict=True)
        ]
        if open_:
            first = problems[open_[0]]
            values = torch.stack([problems[k].value for k in open_]).repeat_interleave(count, 0)
            batch = replace(first, value=values)
            run = _Run(self, batch, self.prior, count * len(open_), generator, clock, None)
            plans = run.sampled(None)
            share = (time.perf_counter() - clock) / len(open_)
            for place, k in enumerate(open_):
                began = time.perf_counter()
                judged = judge(problems[k], plans[place * count : (place + 1) * count], rank=self.rank)
                results[k] = result_of(
                    problems[k], judged.first(count if n is None else n), evaluations=run.evaluations // len(open_),
                    seconds=share + time.perf_counter() - began, seed=number,
                    info={"candidates": count, "batch": len(open_), **run.info},
                )  # fmt: skip
        return [result for result in results if result is not None]

    # ------------------------------------------------------------------ helpers

    def _count(self, n: int | None) -> int:
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"n is a positive int, the number of plans to return, got {n!r}")
        return max(self.candidates, n or 0)

    def _resized(self, horizon: int | None) -> tuple[Term, TrajectorySpace]:
        """The prior and the space over another number of tokens."""
        if horizon is None or horizon == self.space.horizon:
            return self.prior, self.space
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 2:
            raise ValueError(f"horizon is a number of tokens, an int >= 2, got {horizon!r}")
        if horizon not in self._stretched:
            resize = getattr(self.prior, "resized", None)
            if resize is None:
                raise ValueError(
                    f"{self.prior.name()} plans {self.space.horizon} tokens and cannot be resized to {horizon}; for "
                    "longer ones give a prior of overlapping segments, boltzmix.planners.stitched(prior, horizon)"
                )
            self._stretched[horizon] = resize(horizon), self.space.resized(horizon)
        return self._stretched[horizon]

    def _pose(self, space: TrajectorySpace, start: Any, goal: Any, tasks: Sequence[Any], clock: float = 0.0) -> Problem:
        """The problem, with the planner's own obstacles and bounds as tasks."""
        from boltzmix.planners.tasks.avoid import Avoid
        from boltzmix.planners.tasks.limits import Bounds

        own: list[Any] = []
        obstacles = later(self.obstacles, clock)
        if obstacles:
            own.append(Avoid(obstacles, self.margin, self.sharpness, radius=self.radius))
        if self.bounds is not None:
            low = [a + self.radius for a, _ in self.bounds]
            high = [b - self.radius for _, b in self.bounds]
            own.append(Bounds(low, high, columns=space.position, sharpness=self.sharpness))
        return pose(
            space, start, goal, (*own, *later((*self.tasks, *tasks), clock)), obstacles=obstacles, radius=self.radius,
            bounds=self.bounds, max_speed=self.max_speed,
        )  # fmt: skip


class _Run:
    """One call: sampling rounds within the budget, and what was found so far."""

    def __init__(
        self,
        planner: Planner,
        problem: Problem,
        prior: Term,
        count: int,
        generator: torch.Generator,
        clock: float,
        budget: float | None,
    ) -> None:
        """Build the composition."""
        self.planner, self.problem, self.count, self.generator = planner, problem, count, generator
        self.clock, self.budget = clock, budget
        own = next((t for t in (*prior.parameters(), *prior.buffers()) if t.is_floating_point()), None)
        self.dtype = torch.get_default_dtype() if own is None else own.dtype
        self.held: Held = problem.held(self.dtype)
        given = self.given = hold(prior, self.held)
        free = [pair for task in problem.free_tasks for pair in _powers(task.bind(problem.space))]
        self.guided: Guided | None = None
        if planner.at == "estimate":
            self.guided = Guided(given, free, self.held, planner.guidance)
            self.target: Term = self.guided
        else:
            held = [(Known(term, self.held), weight) for term, weight in free]
            self.target = Product([(given, 1.0), *held]) if held else given
        key = (count, problem.space.horizon, len(free))
        self.cost = planner._costs.setdefault(key, Cost())
        self.judged: Judgement | None = None
        self.evaluations = 0
        self.info: dict[str, Any] = {"rounds": 0, "forwards": 0, "steps": []}

    def go(self, init: Tensor | None) -> None:
        """Rounds until the budget is spent, or a plan is feasible where there is none."""
        limit = 1 + self.planner.rounds if self.budget is None else _MOST_ROUNDS
        for k in range(limit):
            if k and not self._another():
                break
            plans = self.sampled(init if not k else self._renewed())
            began = time.perf_counter()
            found = judge(self.problem, plans, rank=self.planner.rank)
            self.judged = found if self.judged is None else merged(self.judged, found)
            self.cost.learn("judge", time.perf_counter() - began)

    def sampled(self, init: Tensor | None) -> Any:
        """One round: plans ``(n, H, D)`` in physical units, float64; ``init`` holds normalised states to start from."""
        began = time.perf_counter()
        sampler, options, levels = self._sampler(init)
        before = 0 if self.guided is None else self.guided.forwards
        if self.guided is not None:
            self.guided.last = None
            self.guided.deadline = None
            if self.budget is not None:
                # no level begins that would end too late
                reserve = self.cost.level + 1.5 * self.cost.judge + self.cost.rest
                self.guided.deadline = self.clock + self.budget - reserve
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SamplingWarning)  # the bias is stated at `at=`
                draw: Draw = sample(
                    self.target, self.count, sampler=sampler, seed=self.generator, progress=False, dtype=self.dtype,
                    **options,
                )  # fmt: skip
            x, used = draw.x, draw.info.evaluations
            assert isinstance(x, Tensor)
        except OutOfTime as early:
            x, used = early.estimate, float(early.forwards - before)
        self.evaluations += round(used * self.count)
        self.info["rounds"] += 1
        self.info["forwards"] += round(used)
        self.info["steps"].append(levels)
        if levels:
            self.cost.learn("level", (time.perf_counter() - began) / max(used, 1.0))
        return self._physical(x)

    def states_of(self, init: Any) -> Tensor | None:
        """Free coordinates ``(count, F)`` of earlier plans, repeated as often as needed."""
        if init is None:
            return None
        space = self.problem.space
        plans = torch.as_tensor(init, dtype=torch.float64)
        plans = plans[None] if plans.ndim == 2 else plans
        if plans.ndim != 3 or tuple(plans.shape[1:]) != space.shape or not len(plans):
            raise ValueError(f"init holds plans {space.shape} or (m, {space.shape[0]}, {space.shape[1]}), got "
                             f"{tuple(plans.shape)}")  # fmt: skip
        if not bool(torch.isfinite(plans).all()):
            raise NonFinite("init holds plans that are not finite")
        states = self.held.split(space.normalise(plans).to(self.dtype))
        return states[torch.arange(self.count) % len(states)]

    def _another(self) -> bool:
        """Whether a further round is worth it and fits."""
        assert self.judged is not None
        if self.budget is None:
            return not bool(self.judged.feasible[0])
        if self.guided is None:
            return False  # the time of other samplers is theirs
        left = self.clock + self.budget - time.perf_counter() - 2 * self.cost.judge - self.cost.rest
        return left > (_FEWEST + 1) * self.cost.level

    def _renewed(self) -> Tensor:
        """The better half of the plans so far, as states to renoise."""
        assert self.judged is not None
        best = self.judged.trajectories[: max(1, self.count // 2)]
        states = self.states_of(best)
        assert states is not None
        return states

    def _sampler(self, init: Tensor | None) -> tuple[Sampler, dict[str, Any], int]:
        """The sampler of a round, options of its call, and its number of levels (0 where that is its own affair)."""
        planner = self.planner
        own = planner.sampler
        if own is not None and not isinstance(own, Reverse):
            if init is not None:
                raise ValueError(f"a warm start is for Reverse, and the planner's sampler is {type(own).__name__}")
            return own, {}, 0
        base = default_sampler() if own is None else own
        steps = planner.steps if own is None else own.steps
        low, high = self.target.sigma_range
        bottom = max(low, _BOTTOM)
        top = min(high, _TOP)
        if init is not None:
            top = min(planner.warm_level, top)
            steps = planner.warm_steps or max(_FEWEST, (steps + 1) // 2)
        elif own is not None and own.sigmas is not None:
            return own, {}, own.steps
        steps = self._fitting(steps, base)
        sigmas = karras(top, min(bottom, 0.5 * top), steps)
        noise = torch.randn(self.count, len(self.held.free), generator=self.generator, dtype=self.dtype)
        if init is not None:
            states = init + sigmas[0] * noise
        elif self.target._rows():
            # normalised data have about unit variance
            states = self._centre(sigmas[0]) + math.sqrt(1.0 + sigmas[0] ** 2) * noise
        else:
            states = None
        options = {} if states is None else {"init": states}
        return replace(base, steps=steps, sigmas=tuple(sigmas)), options, steps

    def _centre(self, sigma: float) -> Tensor:
        """What the prior expects of the free coordinates at the top level, by two steps of x ← x + σ² s(x; σ).

        In the slow modes of H tokens the noise is only σ / √H, so plans that start around 0 would stay nearer to the
        middle than the prior wants: they would cut corners.
        """
        rows = self.count if self.held.per_row else 1
        centre = torch.zeros(rows, len(self.held.free), dtype=self.dtype)
        with torch.no_grad():
            for _ in range(2):
                score = self.given.score(centre, sigma)
                assert isinstance(score, Tensor)
                centre = centre + sigma**2 * score
                self.evaluations += rows
                self.info["forwards"] += 1
        return centre

    def _fitting(self, steps: int, sampler: Reverse) -> int:
        """As many levels as fit into what is left of the budget."""
        if self.budget is None:
            return steps
        if self.cost.level == 0.0:
            self._probe()
        per_level = 1.0 if sampler.solver != "heun" else 2.0
        if sampler.corrector is not None:
            per_level += sampler.corrections * sampler.corrector.evaluations_per_step
        left = self.clock + self.budget - time.perf_counter() - 2 * self.cost.judge - self.cost.rest
        return max(_FEWEST, min(steps, int(left / (per_level * self.cost.level))))

    def _probe(self) -> None:
        """Time one evaluation, where none is known yet."""
        x = torch.zeros(self.count, len(self.held.free), dtype=self.dtype)
        began = time.perf_counter()
        with torch.no_grad():
            self.target.score(x, min(1.0, self.target.sigma_range[1]))
        self.cost.learn("level", time.perf_counter() - began)
        self.evaluations += self.count
        self.info["forwards"] += 1

    def _physical(self, x: Tensor) -> Any:
        """Plans in physical units, float64, known coordinates as they were given."""
        plans = self.problem.space.physical(self.held.join(x).double())
        return torch.where(self.problem.mask, self.problem.value, plans).numpy()


def default_sampler() -> Reverse:
    """What a planner uses where nothing else is asked: DDIM steps."""
    return Reverse(solver="ddim")


def corrected(step_size: float | None = None, corrections: int = 1) -> Reverse:
    """DDIM steps with Langevin corrections at every level: slower, and less biased by the tasks' approximation."""
    snr = 0.15 if step_size is None else None
    return Reverse(solver="ddim", corrector=ULA(step_size), corrections=corrections, snr=snr)


def karras(top: float, bottom: float, steps: int) -> list[float]:
    """Decreasing levels, evenly spaced in σ^(1/7) (Karras et al., 2022)."""
    if steps == 1:
        return [top]
    a, b = top ** (1 / _RHO), bottom ** (1 / _RHO)
    return [(a + i / (steps - 1) * (b - a)) ** _RHO for i in range(steps)]


def _powers(term: Term) -> list[tuple[Term, Any]]:
    """A bound task as (term, exponent) pairs, since its weight may be a function of σ."""
    return list(term.pairs()) if isinstance(term, Product) else [(term, 1.0)]


def _budget(budget_ms: float | None) -> float | None:
    """Seconds."""
    if budget_ms is None:
        return None
    if isinstance(budget_ms, bool) or not isinstance(budget_ms, (int, float)) or not 0 < budget_ms < math.inf:
        raise ValueError(f"budget_ms is a positive number of milliseconds, got {budget_ms!r}")
    return budget_ms / 1e3
