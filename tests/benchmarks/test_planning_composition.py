"""Rewards, joint models and energies of the planning suite: what they compare is what they say."""

import types

import numpy as np
import pytest
import torch

from boltzmix.benchmarks.planning import conditions, energy, joint, rewards
from boltzmix.benchmarks.planning.episodes import Pair
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose import Gaussian
from boltzmix.planners import Minimise, TrajectorySpace
from boltzmix.planners.obstacles import Disc
from boltzmix.planners.tasks.transitions import TransitionChain


def smooth_prior(horizon=8):
    """A Gaussian of smooth paths in the plane, as a prior."""
    at = torch.arange(horizon) / horizon
    one = torch.exp(-((at[:, None] - at) ** 2) / 0.2) + 0.05 * torch.eye(horizon)
    prior = Gaussian(torch.zeros(horizon, 2), torch.kron(one, torch.eye(2)))
    prior.trajectory = TrajectorySpace(horizon, ("x", "y"), dt=0.1, bounds=((-1.0, 1.0), (-1.0, 1.0))).to_dict()
    return prior


# -------------------------------------------------------------------------------------------------------------- rewards


def test_every_reward_is_better_than_the_prior_and_weights_stay():
    """Six problems: better on average for each of three rewards and three kinds of goals."""
    prior = smooth_prior()
    before = rewards.digest(prior)
    rows = rewards.rows(prior, seeds=range(6))
    assert {(row.reward, row.goal) for row in rows} == {(r, g) for r in rewards.REWARDS for g in rewards.GOALS}
    for row in rows:
        assert row.guided > row.plain, row
        assert row.problems == 6
    assert rewards.digest(prior) == before
    prior.mean.add_(1e-7)
    assert rewards.digest(prior) != before


def test_rewards_by_hand():
    space = TrajectorySpace(4, ("x", "y"), dt=0.5)
    line = torch.tensor([[[0.0, 0.3], [0.1, 0.3], [0.2, 0.3], [0.3, 0.3]]])
    assert float(rewards.height(space)(line)) == pytest.approx(0.3)
    assert float(rewards.calm(space)(line)) == pytest.approx(-1e-3, abs=1e-4)
    assert -0.1 < float(rewards.visit(space)(line)) < 0.0  # the last token is on the spot
    assert float(rewards.visit(space)(line - 1.0)) < -1.0
    bent = line.clone()
    bent[0, 1, 1] += 0.5
    assert float(rewards.calm(space)(bent)) < -1.0


def test_questions_are_apart_and_the_same_for_a_seed():
    bounds = ((-1.0, 1.0), (-2.0, 2.0))
    asked = rewards.questions(range(20), bounds)
    assert asked[3:5] == rewards.questions([3, 4], bounds)
    for q in asked:
        assert np.hypot(q.start[0] - q.goal[0], q.start[1] - q.goal[1]) >= 1.0
        assert max(abs(q.start[0]), abs(q.goal[0])) <= 0.76
    middle = rewards._between(asked[0])
    assert middle != pytest.approx([0.5 * (a + b) for a, b in zip(asked[0].start, asked[0].goal, strict=True)])


# ---------------------------------------------------------------------------------------------------------- joint model


def test_training_tells_one_disc_and_the_trajectory_avoids_it():
    x, rows = joint.stream(200, torch.Generator().manual_seed(0))
    slots = rows.reshape(200, 2, 3)
    told = (slots >= 0).all(2)
    assert bool((told.sum(1) <= 1).all())
    share = told.float().mean(0)
    assert bool(((share > 0.1) & (share < 0.4)).all()), share
    centred = (slots[..., :2] - 1).abs().amax(2) < 1  # discs centred outside are told at the edge
    p = 0.5 * x[..., :2]
    for slot in (0, 1):
        keep = told[:, slot] & centred[:, slot]
        gap = (p[keep] - (slots[keep, slot, :2] - 1)[:, None]).norm(dim=2) - slots[keep, slot, 2:]
        assert float(gap.min()) > 0.04


def test_discs_are_said_in_the_units_of_training():
    found = joint.said([Disc(-0.5, 0.25, 0.2), Disc(0.1, 0.0, 0.3)])
    assert found == {"x_a": 0.5, "y_a": 1.25, "r_a": 0.2, "x_b": 1.1, "y_b": 1.0, "r_b": 0.3}
    assert set(found) == set(joint.fields())
    with pytest.raises(ValueError, match="2 slots"):
        joint.said([Disc(0, 0, 0.1)] * 3)


# --------------------------------------------------------------------------------------------------------------- energy


def test_the_best_plan_by_energy_is_the_one_of_least_energy():
    """Without walls the planner sorts by the chain's energy alone."""
    space = TrajectorySpace(4, ("x", "y"))
    one = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    pairs = Gaussian(torch.zeros(4), torch.kron(one, torch.eye(2)))
    chain = TransitionChain(pairs, 4, 2, trajectory=space.to_dict())
    chain.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    world = types.SimpleNamespace(obstacles=(), radius=0.0, bounds=None)
    planner = energy.energy_planner(chain, world, Minimise(steps=3, spread=1.0), walls=False)
    result = planner.plan([0.0, 0.0], [1.0, 1.0], seed=0)
    energies = chain.energy(torch.as_tensor(result.trajectories).float())
    assert len(result) == energy.CANDIDATES
    assert bool((energies.diff() >= -1e-5).all())


def test_plans_are_clear_where_they_keep_the_radius_between_tokens_too():
    """Two tokens on either side of a disc touch it half way; a second plan passes it just outside of the radius."""
    space = TrajectorySpace(2, ("x", "y", "vx", "vy"), position=("x", "y"))
    world = types.SimpleNamespace(obstacles=(Disc(0.0, 0.0, 0.3),), radius=0.2)
    pair = Pair((-1.0, 0.0), (1.0, 0.0), 0)
    clear = []
    for height in (0.0, 0.49, 0.51):
        way = np.array([[[-1.0, height, 9.0, 9.0], [1.0, height, 9.0, 9.0]]])
        planner = types.SimpleNamespace(
            space=space, plan=lambda *_, way=way, **__: types.SimpleNamespace(trajectories=way)
        )
        clear.append(energy.plans_keep_clear(planner, world, [pair]).rate)
    assert clear == [0.0, 0.0, 1.0]


# ----------------------------------------------------------------------------------------------- conditions and values


def test_the_tilted_mean_is_that_of_a_gaussian_tilt():
    """Without a tilt it is the mean; a weak one adds var(R) / β to it; the error is of the right size."""
    x, _ = conditions.obstacles(4000, torch.Generator().manual_seed(1))
    r = conditions.height(conditions.SPACE.physical(x)).double()
    plain, error = conditions.tilted_mean(4000, 1, beta=1e9)
    assert plain == pytest.approx(float(r.mean()), abs=1e-6)
    assert error == pytest.approx(float(r.std()) / 4000**0.5, rel=0.01)
    weak, _ = conditions.tilted_mean(4000, 1, beta=10.0)
    assert weak - plain == pytest.approx(float(r.var()) / 10.0, rel=0.02)


def test_conditions_and_values_are_told_for_every_draw():
    report = Report("planning", "test")
    report.section = "conditions"
    conditions.run(report, Settings(quick=True, seeds=(0,)))
    rows = {(row.task, row.quantity): row for row in report.rows}
    left = rows["seed 0: skill, left", "prior alone: share that bends so"].value
    assert rows["seed 0: skill, left", "asked, power 2: share that bends so"].value > left
    low, high = (rows["seed 0: directness", f"asked for {value}: mean"].value for value in ("0.6", "1"))
    assert low < high
    tilt = "seed 0: height tilted by exp(R / 0.25 m)"
    exact, plain = (rows[tilt, name].value for name in ("data, weighed: mean, m", "prior alone: mean, m"))
    for what in ("log of the mean exponential", "mean return (Diffuser)"):
        found = rows[tilt, f"prior × value, {what}: mean, m"].value
        share = rows[tilt, f"prior × value, {what}: share of the way to the exact mean"].value
        assert share == pytest.approx((found - plain) / (exact - plain))
