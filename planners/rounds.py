r"""Rounds of sampling: the composition of a prior and tasks, drawn as often as there is time, and what came of it.

The first round comes down all noise levels; further ones renoise the better half of the plans to an intermediate level
and come down again. What levels and judgements cost is learnt from call to call, so that a budget is kept.
"""

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.kernels.langevin import ULA
from boltzmix.compose.product import Product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.term import Term
from boltzmix.planners.guided import Guidance, Guided, OutOfTime
from boltzmix.planners.judgement import Judgement, Rank, judge, merged
from boltzmix.planners.known import Held, Known, hold
from boltzmix.planners.problem import Problem

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


@dataclass(frozen=True)
class How:
    """How a planner samples; the arguments of :class:`~boltzmix.planners.planner.Planner` of these names."""

    sampler: Sampler | None
    steps: int
    warm_level: float
    warm_steps: int | None
    rounds: int
    guidance: Guidance
    at: str
    rank: Rank | None


class Rounds:
    """One call: sampling rounds within the budget, and what was found so far.

    Args:
        how: the planner's settings.
        problem: what is planned.
        prior: over the problem's space.
        count: plans in a round.
        generator: of all noise.
        clock: when the call began, on the clock of ``time.perf_counter``.
        budget: seconds from there; None for no limit.
        cost: what things took in earlier calls of this size; learns.
    """

    def __init__(
        self,
        how: How,
        problem: Problem,
        prior: Term,
        count: int,
        generator: torch.Generator,
        clock: float,
        budget: float | None,
        cost: Cost,
    ) -> None:
        """Build the composition."""
        self.how, self.problem, self.count, self.generator = how, problem, count, generator
        self.clock, self.budget, self.cost = clock, budget, cost
        own = next((t for t in (*prior.parameters(), *prior.buffers()) if t.is_floating_point()), None)
        self.dtype = torch.get_default_dtype() if own is None else own.dtype
        self.held: Held = problem.held(self.dtype)
        given = self.given = hold(prior, self.held)
        free = [pair for task in problem.free_tasks for pair in _powers(task.bind(problem.space))]
        self.guided: Guided | None = None
        if how.at == "estimate":
            self.guided = Guided(given, free, self.held, how.guidance)
            self.target: Term = self.guided
        else:
            held = [(Known(term, self.held), weight) for term, weight in free]
            self.target = Product([(given, 1.0), *held]) if held else given
        self.judged: Judgement | None = None
        self.evaluations = 0
        self.info: dict[str, Any] = {"rounds": 0, "forwards": 0, "steps": []}

    def go(self, init: Tensor | None) -> None:
        """Rounds until the budget is spent, or a plan is feasible where there is none."""
        limit = 1 + self.how.rounds if self.budget is None else _MOST_ROUNDS
        for k in range(limit):
            if k and not self._another():
                break
            plans = self.sampled(init if not k else self._renewed())
            began = time.perf_counter()
            found = judge(self.problem, plans, rank=self.how.rank)
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
        how = self.how
        own = how.sampler
        if own is not None and not isinstance(own, Reverse):
            if init is not None:
                raise ValueError(f"a warm start is for Reverse, and the planner's sampler is {type(own).__name__}")
            return own, {}, 0
        base = default_sampler() if own is None else own
        steps = how.steps if own is None else own.steps
        low, high = self.target.sigma_range
        bottom = max(low, _BOTTOM)
        top = min(high, _TOP)
        if init is not None:
            top = min(how.warm_level, top)
            steps = how.warm_steps or max(_FEWEST, (steps + 1) // 2)
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
