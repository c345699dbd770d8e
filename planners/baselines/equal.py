"""What a planner is worth beyond guidance and beyond choosing: the same prior at the same number of evaluations.

A corrected planner spends E evaluations of its prior on one call: levels × candidates × (1 + corrections). Two simpler
ways to spend E on the same prior are

- :class:`GuidanceOnly`: reverse diffusion with the tasks' guidance and no corrector. The evaluations that corrections
  would take go into more levels for the same number of candidates.
- :class:`BestOfN`: N independent plans, of which the independent checker and the tasks' energies choose the best. They
  are draws of the prior given start and goal, blind to the tasks, or guided ones. The evaluations go into N.

Neither spends more than E, and ``evaluations`` of the result says what was spent: counted, not computed.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.planners.judgement import judge, result_of
from boltzmix.planners.space import TrajectorySpace

if TYPE_CHECKING:
    from boltzmix.planners.guided import Guidance
    from boltzmix.planners.planner import Planner
    from boltzmix.planners.result import PlanResult

_PER_LEVEL = {"heun": 2}  # evaluations; one for the others


class GuidanceOnly:
    """A planner without its corrector.

    Args:
        planner: whose prior, tasks, guidance and number of candidates are kept.
        evaluations: E, to spend on each call; None keeps the planner's number of levels.
        guidance: how tasks act, in place of the planner's; ``Guidance(iterations=1)`` is one explicit step, as Diffuser
            takes it (Janner et al. 2022, "Planning with diffusion for flexible behavior synthesis").

    Raises:
        ValueError: E allows less than two levels.
    """

    def __init__(
        self, planner: "Planner", evaluations: int | None = None, *, guidance: "Guidance | None" = None
    ) -> None:
        """Copy the planner without what corrects it."""
        self.evaluations = _asked(evaluations)
        self.planner = _plain(planner)
        if guidance is not None:
            self.planner.guidance = guidance
        if evaluations is not None:
            _spend(
                self.planner, levels=evaluations // (_per_level(self.planner) * planner.candidates), asked=evaluations
            )
        self.space: TrajectorySpace = self.planner.space

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
    ) -> "PlanResult":
        """As the planner's; ``info["asked"]`` is E."""
        if n is not None and n > self.planner.candidates:
            raise ValueError(
                f"n = {n} plans are more than the {self.planner.candidates} candidates that the evaluations are for"
            )
        result = self.planner.plan(
            start, goal, tasks, n=n, horizon=horizon, budget_ms=budget_ms, seed=seed, init=init, clock=clock
        )
        result.info.update(planner="GuidanceOnly", asked=self.evaluations)
        return result


class BestOfN:
    """The best of N independent plans.

    Args:
        planner: whose prior is drawn from, without its corrector; its obstacles, bounds and tasks judge.
        n: N; or
        evaluations: E, to spend on each call, N = E / levels.
        guided: whether the draws are guided by the tasks; otherwise they know the start, the goal and other clamped
            coordinates, and no more.

    Raises:
        ValueError: neither or both of n and evaluations, or E below one plan.
    """

    def __init__(
        self, planner: "Planner", n: int | None = None, *, evaluations: int | None = None, guided: bool = False
    ) -> None:
        """Copy the planner without what corrects it."""
        if (n is None) == (evaluations is None):
            raise ValueError("BestOfN takes n= plans or evaluations= to spend, one of the two")
        self.evaluations, self.guided = _asked(evaluations), guided
        self.planner, self.judge = _plain(planner), planner
        if evaluations is not None:
            n = evaluations // (self.planner.steps * _per_level(self.planner))
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(
                f"BestOfN needs at least one plan, got n = {n!r}"
                + (
                    ""
                    if evaluations is None
                    else f" from {evaluations} evaluations at {self.planner.steps} levels a plan"
                )
            )
        self.n = self.planner.candidates = n
        if not guided:
            self.planner.obstacles, self.planner.bounds, self.planner.tasks = (), None, _known(planner.tasks)
        self.space: TrajectorySpace = self.planner.space

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
    ) -> "PlanResult":
        """As the planner's: N draws, the best n of them; ``info["asked"]`` is E."""
        began = time.perf_counter()
        if n is not None and n > self.n:
            raise ValueError(f"n = {n} plans are more than the {self.n} that are drawn")
        drawn = self.planner.plan(
            start,
            goal,
            tasks if self.guided else _known(tasks),
            horizon=horizon,
            budget_ms=budget_ms,
            seed=seed,
            init=init,
            clock=clock,
        )
        info = {**drawn.info, "planner": "BestOfN", "asked": self.evaluations, "candidates": self.n}
        if not len(drawn):
            drawn.info.update(info)
            return drawn
        problem = self.judge._pose(drawn.space, start, goal, tasks, clock)
        judged = judge(problem, drawn.trajectories, rank=self.judge.rank)
        return result_of(
            problem,
            judged if n is None else judged.first(n),
            evaluations=drawn.evaluations,
            seconds=time.perf_counter() - began,
            seed=drawn.seed,
            info=info,
        )


def _plain(planner: "Planner") -> "Planner":
    """A copy that runs reverse diffusion once, at the denoised estimate, without a corrector."""
    twin = copy.copy(planner)
    own = planner.sampler
    if isinstance(own, Reverse):
        twin.sampler = replace(own, corrector=None, corrections=1, between=None, snr=None)
        twin.steps = own.steps
    else:
        twin.sampler = None
    twin.at, twin.rounds = "estimate", 0
    twin._costs, twin._stretched = {}, {}
    return twin


def _known(tasks: Sequence[Any]) -> tuple[Any, ...]:
    """The tasks that fix coordinates: what a blind draw knows."""
    return tuple(task for task in tasks if task.hard)


def _per_level(planner: "Planner") -> int:
    """Evaluations of one plan at one level."""
    return _PER_LEVEL.get(planner.sampler.solver, 1) if isinstance(planner.sampler, Reverse) else 1


def _spend(planner: "Planner", levels: int, asked: int) -> None:
    """Set the number of levels."""
    if levels < 2:
        raise ValueError(f"{asked} evaluations are fewer than two levels of {planner.candidates} candidates")
    planner.steps = levels
    if isinstance(planner.sampler, Reverse):
        planner.sampler = replace(planner.sampler, steps=levels, sigmas=None)


def _asked(evaluations: int | None) -> int | None:
    """E, checked."""
    if evaluations is not None and (
        isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1
    ):
        raise ValueError(f"evaluations is a positive int, got {evaluations!r}")
    return evaluations
