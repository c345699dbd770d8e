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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from boltzmix.compose.sample import as_generator
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.term import Term
from boltzmix.planners.guided import Guidance
from boltzmix.planners.judgement import Rank, judge, refused, result_of
from boltzmix.planners.obstacles import as_obstacles
from boltzmix.planners.problem import Maps, Problem, as_bounds, later, pose
from boltzmix.planners.result import PlanResult
from boltzmix.planners.rounds import Cost, How, Rounds
from boltzmix.planners.space import TrajectorySpace


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
        run = self._rounds(problem, prior, count, generator, began, budget)
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
            run = self._rounds(batch, self.prior, count * len(open_), generator, clock, None)
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

    def _rounds(
        self,
        problem: Problem,
        prior: Term,
        count: int,
        generator: torch.Generator,
        began: float,
        budget: float | None,
    ) -> Rounds:
        """What samples one problem, with the planner's settings as they are now."""
        how = How(
            self.sampler, self.steps, self.warm_level, self.warm_steps, self.rounds, self.guidance, self.at, self.rank
        )
        cost = self._costs.setdefault((count, problem.space.horizon, len(problem.free_tasks)), Cost())
        return Rounds(how, problem, prior, count, generator, began, budget, cost)

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


def _budget(budget_ms: float | None) -> float | None:
    """Seconds."""
    if budget_ms is None:
        return None
    if isinstance(budget_ms, bool) or not isinstance(budget_ms, (int, float)) or not 0 < budget_ms < math.inf:
        raise ValueError(f"budget_ms is a positive number of milliseconds, got {budget_ms!r}")
    return budget_ms / 1e3
