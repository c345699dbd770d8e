"""Receding-horizon control: when it plans, from what, what it records, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from boltzmix.compose.errors import NonFinite
from boltzmix.planners.controllers import PD, Reference
from boltzmix.planners.obstacles import Disc
from boltzmix.planners.planner import Planner
from boltzmix.planners.policy import RecedingHorizonPolicy, rollout
from boltzmix.planners.result import PlanResult
from boltzmix.planners.space import TrajectorySpace
from tests.planners.twins import GaussianTwin

SPACE = TrajectorySpace(9, ("x", "y"), dt=0.4, stride=4)


class Line:
    """A planner of straight lines that remembers what it was asked."""

    def __init__(self, space: TrajectorySpace = SPACE) -> None:
        self.space, self.calls, self.good = space, [], True

    def plan(self, start, goal=None, tasks=(), **options: Any) -> PlanResult:
        self.calls.append({"start": np.array(start), "goal": np.array(goal), **options})
        share = np.linspace(0, 1, self.space.horizon)[:, None]
        plan = ((1 - share) * np.asarray(start) + share * np.asarray(goal))[None]
        return PlanResult(
            "feasible" if self.good else "infeasible", () if self.good else ("collision: violated by 1",), plan, {},
            np.array([self.good]), {}, 7, 0.001, options.get("seed"), self.space,
        )  # fmt: skip


class Point:
    """A point that goes where it is pushed, ten steps a second; ends at the goal, gives up after 60 steps."""

    max_steps = 60

    def __init__(self, end: str = "success") -> None:
        self.end, self.resets = end, []

    def reset(self, *, seed=None, options=None):
        self.resets.append((seed, options))
        self.state, self.goal, self.steps = np.zeros(2), np.array([1.0, 0.0]), 0
        return self._observation(), {}

    def _observation(self):
        return {"observation": self.state.copy(), "achieved_goal": self.state.copy(), "desired_goal": self.goal.copy()}

    def step(self, action):
        self.state, self.steps = self.state + 0.1 * np.asarray(action), self.steps + 1
        near = bool(np.linalg.norm(self.state - self.goal) < 0.1)
        ended = near and self.end == "terminated"
        truncated = self.steps >= 60
        return self._observation(), float(near), ended, truncated, {"success": near} if self.end == "success" else {}


def policy(**options) -> RecedingHorizonPolicy:
    return RecedingHorizonPolicy(Line(), PD(4.0, 0.0), **options)


def observation(x: float = 0.0, goal=(1.0, 0.0)) -> dict[str, np.ndarray]:
    return {"observation": np.array([x, 0.0]), "desired_goal": np.array(goal)}


def test_it_replans_as_often_as_it_was_told_and_when_the_goal_moves() -> None:
    own = policy(replan_every=3)
    for k in range(7):
        own.act(observation(0.01 * k))
    assert [record.step for record in own.records] == [0, 3, 6]
    own.act(observation(goal=(0.0, 1.0)))
    assert len(own.records) == 4
    once = policy(replan_every=None)
    for _ in range(20):
        once.act(observation())
    assert len(once.records) == 1


def test_a_new_plan_starts_from_the_rest_of_the_last_one() -> None:
    own = policy(replan_every=6)
    for _ in range(7):
        own.act(observation())
    first, second = own.planner.calls
    assert first["init"] is None
    # six steps of 0.1 s are one token and a half of 0.4 s; a token is an eighth of the line
    shifted = second["init"]
    assert shifted.shape == (1, 9, 2)
    np.testing.assert_allclose(shifted[0, :, 0], np.minimum((np.arange(9) + 1.5) / 8, 1.0))
    cold = policy(replan_every=1, warm=False)
    cold.act(observation())
    cold.act(observation())
    assert cold.planner.calls[1]["init"] is None


def test_plans_are_told_the_time_since_the_reset() -> None:
    """In seconds of the environment, by which obstacles have moved."""
    own = policy(replan_every=6)
    for _ in range(13):
        own.act(observation())
    np.testing.assert_allclose([call["clock"] for call in own.planner.calls], [0.0, 0.6, 1.2])
    own.reset()
    own.act(observation())
    assert own.planner.calls[-1]["clock"] == 0.0


def test_the_rest_of_a_plan_is_at_rest_where_it_ends() -> None:
    space = TrajectorySpace(3, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=1.0)
    own = RecedingHorizonPolicy(Line(space), PD(1.0, 0.0), goal=[0.0] * 4)
    own._reference = Reference(space, np.ones((3, 6)))
    own._since = 2
    np.testing.assert_array_equal(own._shifted()[0], [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])


def test_the_action_is_the_controller_s_at_the_time_since_the_plan() -> None:
    own = policy(replan_every=5)
    actions = [own.act(observation(0.05)) for _ in range(6)]
    for k, action in enumerate(actions[:5]):
        x = 0.05 + 0.95 * 0.1 * k / 3.2
        np.testing.assert_allclose(action, [min(4.0 * (x - 0.05), 1.0), 0.0], atol=1e-9)
    np.testing.assert_allclose(actions[5], 0.0, atol=1e-9)  # a new plan from here


def test_an_infeasible_plan_does_not_replace_a_feasible_one() -> None:
    own = policy(replan_every=2)
    own.act(observation())
    own.act(observation())
    own.planner.good = False
    own.act(observation(0.5))
    assert own.records[-1].kept
    assert own.records[-1].reasons == ("collision: violated by 1",)
    np.testing.assert_allclose(own._reference.plan[0], [0.0, 0.0])
    own.act(observation(0.5))
    own.act(observation(0.5))  # it failed again
    assert [record.step for record in own.records] == [0, 2, 4]
    assert not own.records[-1].kept
    own.planner.good = True
    own.act(observation(0.5, goal=(0.0, 1.0)))
    own.planner.good = False
    own.act(observation(0.5, goal=(1.0, 1.0)))  # the old plan leads elsewhere
    assert not own.records[-1].kept


def test_the_same_seed_gives_the_same_actions() -> None:
    twin = RecedingHorizonPolicy(
        Planner(GaussianTwin(8), TrajectorySpace(8, ("x", "y"), dt=0.1), obstacles=[Disc(0.5, 0.1, 0.2)]),
        PD(2.0, 0.0),
        replan_every=2,
    )

    def run(seed: int) -> np.ndarray:
        twin.reset(seed=seed)
        return np.array([twin.act(observation(0.02 * k)) for k in range(5)])

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.allclose(run(3), run(4))
    assert isinstance(run(3), np.ndarray)


def test_seeds_differ_between_replans_and_budgets_are_passed_on() -> None:
    own = policy(replan_every=1, budget_ms=50, candidates=4)
    own.reset(seed=1)
    for _ in range(3):
        own.act(observation())
    assert len({call["seed"] for call in own.planner.calls}) == 3
    assert all(call["budget_ms"] == 50 and call["n"] == 4 for call in own.planner.calls)


def test_vectors_and_dictionaries_say_the_same() -> None:
    first, second = policy(), policy()
    second.reset(options={"goal": [1.0, 0.0]})
    np.testing.assert_array_equal(first.act(observation(0.2)), second.act(np.array([0.2, 0.0])))
    np.testing.assert_array_equal(first.planner.calls[0]["goal"], second.planner.calls[0]["goal"])


def test_reset_forgets() -> None:
    own = policy(replan_every=None)
    own.act(observation())
    own.reset(seed=0)
    assert own.records == []
    own.act(observation())
    assert own.records[0].step == 0
    assert not own.records[0].warm


def test_terminated_and_truncated_are_kept_apart() -> None:
    ended = rollout(policy(replan_every=None), Point("terminated"), seed=5)
    assert (ended.terminated, ended.truncated, ended.success) == (True, False, None)
    reached = rollout(policy(replan_every=None), Point("success"))
    assert (reached.terminated, reached.truncated, reached.success) == (False, False, True)
    assert reached.reached == len(reached.actions)
    on = rollout(policy(replan_every=None), Point("success"), stop=False)
    assert (on.truncated, on.success) == (True, True)
    assert len(on.actions) == 60
    assert on.reached == reached.reached
    short = rollout(policy(replan_every=None), Point("terminated"), max_steps=4)
    assert (short.terminated, short.truncated) == (False, True)
    assert len(short.observations) == 5
    assert short.positions.shape == (5, 2)


def test_seed_and_options_reach_the_environment() -> None:
    world = Point()
    rollout(policy(), world, seed=7, reset={"options": {"cell": 1}}, max_steps=2)
    assert world.resets == [(7, {"cell": 1})]


def test_reports_hold_what_replanning_cost() -> None:
    own = policy(replan_every=2)
    for _ in range(4):
        own.act(observation())
    found = own.report()
    assert (found["controller"], found["replans"], found["evaluations"], found["steps"]) == ("PD", 2, 14, 4)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["worst"]


def test_bad_observations_are_refused() -> None:
    own = policy()
    with pytest.raises(NonFinite, match="observation must be finite"):
        own.act(observation(float("nan")))
    with pytest.raises(NonFinite, match="goal must be finite"):
        own.act(observation(goal=(np.inf, 0.0)))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        own.act(np.zeros(3))
    with pytest.raises(ValueError, match="no goal"):
        own.act(np.zeros(2))
    with pytest.raises(ValueError, match="entry 'observation'"):
        own.act({"state": np.zeros(2)})
    assert own.records == []
    with pytest.raises(TypeError, match="seed"):
        own.reset(seed=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="options"):
        own.reset(options={"target": 1})
    with pytest.raises(ValueError, match="replan_every"):
        policy(replan_every=0)
    with pytest.raises(ValueError, match="budget_ms"):
        policy(budget_ms=-1.0)
    with pytest.raises(TypeError, match="needs a planner"):
        RecedingHorizonPolicy(torch.nn.Linear(1, 1))


def test_without_any_plan_it_says_why() -> None:
    blocked = Planner(GaussianTwin(8), TrajectorySpace(8, ("x", "y"), dt=0.1), obstacles=[Disc(0.0, 0.0, 0.2)])
    with pytest.raises(ValueError, match="no plan to follow: start"):
        RecedingHorizonPolicy(blocked, PD(1.0, 0.0)).act(observation())
