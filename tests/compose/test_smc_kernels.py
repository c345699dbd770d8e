"""SMC over temperatures, from a prior to a posterior, with any kernel that leaves its target invariant."""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.compose.flat import FlatView
from boltzmix.compose.kernels.ghmc import GHMC
from boltzmix.compose.samplers.start import tempered

KERNELS = {
    "HMC": bm.HMC(num_leapfrog=2),
    "MALA": bm.MALA(),
    "RandomWalk": bm.RandomWalk(),
    "Barker": bm.Barker(),
    "NUTS": bm.NUTS(max_depth=3),
    "GHMC": GHMC(),
}
PRIOR = bm.Gaussian(torch.zeros(2), 25.0)


def likelihood(x):
    """Two observations of each coordinate: y = 3 ± 0.5 and y = 2 ± 0.5."""
    return 0.5 * ((x - 3).square() + (x - 2).square()).sum(1) / 0.25


@pytest.mark.parametrize("name", KERNELS)
def test_log_z_with_any_kernel(name):
    posterior = PRIOR * bm.term(likelihood, kind="energy", event_shape=(2,))
    sampler = bm.SMC(path="geometric", kernel=KERNELS[name], cess=0.95)
    draw = bm.sample(posterior, 1500, sampler=sampler, init=PRIOR, seed=0)
    precision = 1 / 25.0 + 8.0
    mean = (3 + 2) / 0.25 / precision
    exponent = 0.5 * mean**2 * precision - 0.5 * (9 + 4) / 0.25
    truth = 2 * (exponent - 0.5 * math.log(25.0 * precision))
    assert abs(draw.log_z - truth) < 4.5 * draw.log_z_se
    assert draw.log_z_se < 0.15
    assert float((draw.x.mean(0) - mean).abs().max()) < 5 * 3 * precision**-0.5 / math.sqrt(1500)
    assert draw.info.divergences == 0


def test_separated_modes_as_they_come():
    truth = bm.GaussianMixture([[-30.0, 0.0], [30.0, 5.0], [0.0, -35.0]], 1.0, [0.2, 0.3, 0.5])
    target = bm.term(truth.log_prob, kind="log_prob", event_shape=(2,))
    draw = bm.sample(target, 4000, sampler=bm.SMC(cess=0.95), seed=0)
    masses = truth.component_log_prob(draw.x).softmax(-1).mean(0)
    assert float((masses - torch.tensor([0.2, 0.3, 0.5])).abs().sum()) / 2 < 0.1
    assert abs(draw.log_z) < 4.5 * draw.log_z_se
    assert draw.log_z_se < 0.1


def test_points_of_a_path_hold_the_parts_of_where_they_are():
    view = FlatView(bm.term(likelihood, kind="energy", event_shape=(2,)))
    path = tempered(view, PRIOR)
    x, proposal, elsewhere = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    accepted = torch.tensor([True, False] * 3)
    moved = torch.where(accepted[:, None], proposal, x)
    for last in (proposal, elsewhere):  # a Metropolis step, and a trajectory that chose another leaf than its last
        before = path.evaluate(x, 0.3)
        target = path.target(0.3)
        energy, score = target.energy_and_score(moved)
        target.energy_and_score(last)
        point = path.after(target, before, moved, energy, score)
        there = path.evaluate(moved, 0.7)
        shifted = path.shift(point, 0.7)
        torch.testing.assert_close(shifted.energy, there.energy)
        torch.testing.assert_close(shifted.score, there.score)
