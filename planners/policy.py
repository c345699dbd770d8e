r"""Receding-horizon control: plan, act for a while, plan again from where the robot is.

A new plan begins as the old one: shifted by the time that has passed, noised to an intermediate level, and denoised in
fewer steps (Janner et al., 2022, *Planning with diffusion*, section 4.5). Where the new plan is not feasible and the
rest of the old one is, the old one stays, once.

Arrays cross the boundary: observations are numpy vectors or gymnasium's goal dictionaries, actions are numpy vectors.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boltzmix.compose.errors import NonFinite
from boltzmix.planners.controllers import PD, Controller, Reference
from boltzmix.planners.result import PlanResult


@dataclass
class Record:
    """One replan.

    Attributes:
        step: of the environment.
        seconds: wall time of the call.
        evaluations: of the prior.
        status: of the result.
        kept: whether the old plan stayed.
        warm: whether it started from the old plan.
        reasons: what was wrong.
    """

    step: int
    seconds: float
    evaluations: int
    status: str
    kept: bool
    warm: bool
    reasons: tuple[str, ...] = ()


class RecedingHorizonPolicy:
    """Plans, follows the plan with a controller, and replans.

    Args:
        planner: anything with ``plan(start, goal, tasks, n=, budget_ms=, seed=, init=, clock=) -> PlanResult`` and a
            ``space``; the clock is the time since the reset, by which moving obstacles have moved.
        controller: from the plan to actions; None is :class:`~boltzmix.planners.controllers.PD`.
        replan_every: environment steps between plans; None plans once, and again where the goal moves.
        budget_ms: milliseconds for each plan; None for as long as it takes.
        tasks: of every plan.
        goal: position or state, where observations and ``reset(options=)`` do not say it.
        warm: whether plans start from the one before.
        candidates: plans asked of the planner; None for its own number.

    Raises:
        ValueError: numbers out of range.
        TypeError: a planner or controller that is none.

    Example:
        ``policy = RecedingHorizonPolicy(planner, PD(10, 1), replan_every=20, budget_ms=80)``; ``policy.reset(seed=0)``;
        ``action = policy.act(observation)``.
    """

    def __init__(
        self,
        planner: Any,
        controller: Controller | None = None,
        *,
        replan_every: int | None = 10,
        budget_ms: float | None = None,
        tasks: Any = (),
        goal: Any = None,
        warm: bool = True,
        candidates: int | None = None,
    ) -> None:
        """Check the settings."""
        if not callable(getattr(planner, "plan", None)):
            raise TypeError(f"a policy needs a planner with plan(start, goal, …), got {type(planner).__name__}")
        if controller is not None and not callable(getattr(controller, "act", None)):
            raise TypeError(f"controller is PD(…), InverseDynamics(…) or OwnActions(), got {type(controller).__name__}")
        if replan_every is not None and (
            isinstance(replan_every, bool) or not isinstance(replan_every, int) or replan_every < 1
        ):
            raise ValueError(f"replan_every is a number of environment steps, an int >= 1, got {replan_every!r}")
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise ValueError(f"budget_ms is a positive number of milliseconds, got {budget_ms!r}")
        self.planner, self.controller = planner, PD() if controller is None else controller
        self.replan_every, self.budget_ms, self.tasks = replan_every, budget_ms, tuple(tasks)
        self.fixed_goal, self.warm, self.candidates = goal, warm, candidates
        self.space = planner.space
        self.records: list[Record] = []
        self.reset()

    # ------------------------------------------------------------------- public

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Begin an episode: no plan, step 0, no records.

        Args:
            seed: of all plans to come; the same seed and observations give the same actions where there is no budget.
            options: ``{"goal": position}`` for vector observations.

        Raises:
            TypeError: a seed that is no int, or unknown options.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed is an int or None, got {type(seed).__name__}")
        unknown = sorted(set(options or {}) - {"goal"})
        if unknown:
            raise TypeError(f"a policy's options are goal=, got {unknown}")
        self.seed = seed
        self.goal = (options or {}).get("goal", self.fixed_goal)
        self.step, self.records = 0, []
        self.result: PlanResult | None = None
        self._reference: Reference | None = None
        self._since, self._last, self._tick = 0, 0, self.space.dt / self.space.stride
        self._planned_for: Any = None

    def act(self, observation: Any) -> Any:
        """The action ``(A,)`` for an observation: a state vector, or a gymnasium goal dictionary.

        Raises:
            ValueError: an observation of another shape, or no goal.
            NonFinite: an observation with NaN or infinite entries.
        """
        state, goal = self.read(observation)
        if self._due(goal):
            self._replan(state, goal)
        if self._reference is None:
            reasons = "" if self.result is None else "; ".join(self.result.reasons)
            raise ValueError(f"there is no plan to follow: {reasons}")
        action = self.controller.act(state, self._reference, self._since * self._tick)
        self.step += 1
        self._since += 1
        return action

    def read(self, observation: Any) -> tuple[Any, Any]:
        """The state ``(S,)`` and the goal of an observation, checked."""
        import numpy as np

        goal = self.goal
        if isinstance(observation, Mapping):
            if "observation" not in observation:
                raise ValueError(f"a goal dictionary has the entry 'observation', got {sorted(observation)}")
            goal = observation.get("desired_goal", goal)
            observation = observation["observation"]
        state = np.asarray(observation, dtype=np.float64)
        size = len(self.space.state)
        if state.shape != (size,):
            raise ValueError(f"an observation holds the state {self.space.state}, shape ({size},), got {state.shape}")
        if not np.isfinite(state).all():
            raise NonFinite(f"the observation must be finite, got {state.tolist()}")
        if goal is None and not self.tasks:
            raise ValueError(
                "no goal: give a dictionary with 'desired_goal', reset(options={'goal': …}), goal= or tasks="
            )
        if goal is not None:
            goal = np.asarray(goal, dtype=np.float64)
            if not np.isfinite(goal).all():
                raise NonFinite(f"the goal must be finite, got {goal.tolist()}")
        return state, goal

    def report(self) -> dict[str, Any]:
        """What replanning cost since the reset: counts, milliseconds (p50, p95, worst), evaluations, the controller."""
        import numpy as np

        times = np.array([1e3 * record.seconds for record in self.records])
        return {
            "controller": getattr(self.controller, "name", lambda: type(self.controller).__name__)(),
            "replans": len(self.records),
            "kept": sum(record.kept for record in self.records),
            "infeasible": sum(record.status == "infeasible" for record in self.records),
            "latency_ms": {
                "p50": float(np.quantile(times, 0.5)), "p95": float(np.quantile(times, 0.95)), "worst": times.max(),
            } if len(times) else {},
            "evaluations": sum(record.evaluations for record in self.records),
            "steps": self.step,
        }  # fmt: skip

    # ------------------------------------------------------------------ helpers

    def _due(self, goal: Any) -> bool:
        """Whether to plan before this step."""
        if self._reference is None:
            return True
        if goal is not None and (self._planned_for is None or not (goal == self._planned_for).all()):
            return True
        return self.replan_every is not None and self.step - self._last >= self.replan_every

    def _replan(self, state: Any, goal: Any) -> None:
        """A plan from here, from the rest of the last one where there is one."""
        same_goal = self._planned_for is not None and goal is not None and bool((goal == self._planned_for).all())
        init = self._shifted() if self.warm and self._reference is not None else None
        options: dict[str, Any] = {} if self.candidates is None else {"n": self.candidates}
        began = time.perf_counter()
        result = self.planner.plan(
            state, goal, self.tasks, budget_ms=self.budget_ms, seed=self._next_seed(), init=init,
            clock=self.step * self._tick, **options,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        self._last = self.step
        good = result.status == "feasible"
        once = not (self.records and self.records[-1].kept)  # what failed twice does so for a reason
        old = self.result is not None and self.result.status == "feasible" and same_goal and not self._over() and once
        kept = (not good and old) or not len(result)
        self.records.append(
            Record(self.step, seconds, result.evaluations, result.status, kept, init is not None, result.reasons)
        )
        if kept and self._reference is not None:
            return
        self.result, self._planned_for = result, goal
        self._reference = Reference(result.space, result.best) if len(result) else None
        self._since = 0

    def _next_seed(self) -> int | None:
        """A seed for the next plan, the same for the same reset seed and replan."""
        return None if self.seed is None else (self.seed * 1_000_003 + len(self.records)) % 2**31

    def _over(self) -> bool:
        """Whether the plan's time has passed."""
        assert self._reference is not None
        return self._since * self._tick > self._reference.duration

    def _shifted(self) -> Any:
        """The rest of the last plan, resting at its end, ``(1, H, D)``."""
        import numpy as np

        assert self._reference is not None
        space, late = self._reference.space, self._since * self._tick
        rows = [self._reference.at(late + k * space.dt) for k in range(space.horizon)]
        plan = np.stack(rows)
        over = late + space.dt * np.arange(space.horizon) > self._reference.duration + 1e-9
        rates = [space.names.index(f"v{name}") for name in space.position if f"v{name}" in space.names]
        plan[np.ix_(over, [*rates, *range(len(space.state), plan.shape[1])])] = 0.0
        return plan[None]


@dataclass
class Episode:
    """One episode.

    Attributes:
        observations: one more than actions.
        actions: ``(T, A)``.
        rewards: ``(T,)``.
        terminated: whether the task ended (reached, or failed).
        truncated: whether time ran out; such an episode says nothing about what would have come.
        success: what the environment's ``info`` says (``success`` or ``is_success``), at any step; None if it does not.
        reached: the first step at which it did.
        info: the last.
    """

    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    reached: int | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def positions(self) -> Any:
        """The first two numbers of every state, ``(T + 1, 2)``."""
        import numpy as np

        states = [o["observation"] if isinstance(o, Mapping) else o for o in self.observations]
        return np.stack([np.asarray(s)[:2] for s in states])


def rollout(
    policy: Any,
    environment: Any,
    *,
    seed: int | None = None,
    reset: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    stop: bool = True,
) -> Episode:
    """Run a policy in a gymnasium environment, or one of this package, until it ends.

    ``terminated`` is an end of the task and ``truncated`` an end of patience; the two are kept apart, and reaching
    ``max_steps`` is a truncation.

    Args:
        policy: with ``reset(seed=)`` and ``act(observation)``.
        environment: with ``reset`` and ``step(action) -> (observation, reward, terminated, truncated, info)``.
        seed: of both.
        reset: further arguments of the environment's ``reset``: ``dict(options=…)``, or ``dict(start=…, goal=…)``.
        max_steps: of the episode; None leaves the end to the environment.
        stop: whether to stop at the first success.

    Raises:
        ValueError: an environment that never ends, without ``max_steps``.
    """
    found = environment.reset(**({} if seed is None else {"seed": seed}), **(reset or {}))
    observation = found[0] if isinstance(found, tuple) else found
    policy.reset(seed=seed)
    episode = Episode([observation])
    limit = max_steps if max_steps is not None else getattr(environment, "max_steps", None)
    while not (episode.terminated or episode.truncated):
        action = policy.act(observation)
        observation, reward, terminated, truncated, info = environment.step(action)
        episode.observations.append(observation)
        episode.actions.append(action)
        episode.rewards.append(float(reward))
        episode.info = dict(info)
        episode.terminated, episode.truncated = bool(terminated), bool(truncated)
        now = info.get("success", info.get("is_success"))
        if now is not None:
            episode.success = bool(episode.success) or bool(now)
            if bool(now) and episode.reached is None:
                episode.reached = len(episode.actions)
        if limit is not None and len(episode.actions) >= limit and not episode.terminated:
            episode.truncated = True
        if limit is None and len(episode.actions) >= 1_000_000:
            raise ValueError("a million steps without an end: give max_steps=")
        if stop and episode.success:
            break
    return episode
