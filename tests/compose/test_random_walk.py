"""Random-walk Metropolis: energies only, wherever it runs."""

import warnings

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.flat import FlatView
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import RandomWalk, State
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC, Annealed
from tests.kernel_contracts import seeded
from tests.kernel_targets import Banana


@pytest.mark.filterwarnings("ignore:MCMC. R-hat")  # as slow as random walks are
def test_adaptation_reaches_its_aim():
    draw = sample(Gaussian(torch.zeros(20), torch.linspace(0.2, 3, 20)), chains=20,
                  sampler=MCMC(RandomWalk(), warmup=400, draws=200), seed=1)  # fmt: skip
    assert abs(draw.info.acceptance - 0.234) < 0.05
    assert draw.info.evaluations == 32 + 1 + 600


@pytest.mark.filterwarnings("ignore:MCMC. R-hat")
def test_densities_without_a_gradient_are_sampled():
    """Poisson-like steps: P(⌊|x|⌋ = 0) = 1 − 1/e, with the standard error of 100 chains, |z| < 4.5 (7e-6)."""
    stairs = term(lambda x: x.abs().floor().sum(-1), kind="energy", event_shape=1)
    draw = sample(stairs, chains=100, sampler=MCMC(RandomWalk(), warmup=200, draws=500), seed=2)
    each = (draw.x[..., 0].abs() < 1).double().mean(1)
    truth = 1 - 1 / torch.e
    assert abs(float(each.mean()) - truth) < 4.5 * float(each.std()) / 10


def test_no_gradient_is_ever_taken():
    calls = []

    def energy(x):
        calls.append(torch.is_grad_enabled())
        return 0.5 * (x * x).sum(-1)

    view = FlatView(term(energy, kind="energy", event_shape=3))
    target, kernel = view.at(), RandomWalk(step_size=1.0)
    state = kernel.init(target, torch.zeros(4, 3))
    for _ in range(3):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, seeded(3)))
    assert view.counter.rows == 16
    assert not any(calls)
    assert bool(torch.isnan(state.score).all())


def test_scores_are_true_or_nan():
    """A state from elsewhere has scores: those of rows that stay are kept, those of rows that move are not."""
    target, kernel = Banana(), RandomWalk(step_size=1.0)
    x = target.draw(200, seeded(4))
    state = State(x, *target.energy_and_score(x))
    after, info = kernel.step(target, state, kernel.tune(x), kernel.noise(state, seeded(5)))
    assert 20 < int(info.accepted.sum()) < 180
    assert bool(torch.isnan(after.score[info.accepted]).all())
    assert torch.equal(after.score[~info.accepted], state.score[~info.accepted])


def test_smc_and_annealing_take_it():
    """log Z of a product of Gaussians within 4 reported standard errors (6e-5); no false alarm about scores."""
    p, q = Gaussian(torch.zeros(3), 1.0), Gaussian(torch.ones(3), 0.5)
    truth = float(-0.5 * 3 * (torch.log(torch.tensor(2 * torch.pi * 1.5)) + 1 / 1.5))
    likelihood = term(lambda x: q.energy(x), kind="energy", event_shape=3)
    for product in (p * q, p * likelihood):
        draw = sample(product, 1000, sampler=SMC(kernel=RandomWalk(), moves=4), seed=6)
        assert abs(draw.log_z - truth) < 4 * draw.log_z_se
        assert abs(float(draw.x.mean()) - 2 / 3) < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw = sample(p * q, 500, sampler=Annealed(kernel=RandomWalk(), sweeps=4), seed=7)
    assert abs(float(draw.x.mean()) - 2 / 3) < 0.1
