"""The Barker proposal: its ratio from its density, its aim, and how little a step size that is too large costs."""

import math

import pytest
import torch

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import MALA, Barker, Dense, Tune, draw_noise
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from tests.kernel_contracts import march, seeded
from tests.kernel_targets import Banana, Scales, normals


def test_the_ratio_is_that_of_densities_and_proposals():
    target, size = Banana(), 0.7
    mass = Dense(torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64))
    kernel, tune = Barker(), Tune(torch.tensor(size, dtype=torch.float64), mass)
    state = kernel.init(target, target.draw(500, seeded(1)))
    noise = kernel.noise(state, seeded(2))
    after, info = kernel.step(target, state, tune, noise)
    took = info.accepted

    def log_q(y, x):
        """log Π_i 2 N(w_i; 0, ε²) / (1 + exp(−w_i g_i)), w = F⁻¹ (y − x), g = Fᵀ s(x)."""
        w = torch.linalg.solve_triangular(mass.factor, (y - x).mT, upper=False).mT
        g = target.score(x) @ mass.factor
        parts = math.log(2) - 0.5 * (w / size) ** 2 - (1 + (-w * g).exp()).log()
        return parts.sum(1)

    x, y = state.x[took], after.x[took]
    ratio = target.energy(x) - target.energy(y) + log_q(x, y) - log_q(y, x)
    assert 100 < len(x) < 450
    torch.testing.assert_close(info.acceptance[took], ratio.clamp(max=0).exp())


def test_steps_go_up_as_often_as_barker_says():
    """P(w > 0 | |w|) = 1 / (1 + exp(−|w| g)), before any test: mean sign of the steps, 4 standard errors."""
    slope, n = 1.3, 40_000

    class Slope:
        has_energy = True

        def energy_and_score(self, x):
            return torch.zeros(len(x), dtype=x.dtype), torch.full_like(x, slope)

        def score(self, x):
            return torch.full_like(x, slope)

    kernel = Barker(step_size=1.0)
    state = kernel.init(Slope(), torch.zeros(n, 1, dtype=torch.float64))
    noise = kernel.noise(state, seeded(3))
    sure = type(noise)(noise.normal, torch.zeros(n, dtype=torch.float64), noise.jitter, turns=noise.turns)
    after, _ = kernel.step(Slope(), state, kernel.tune(state.x), sure)
    expected = (2 * torch.sigmoid(noise.normal.abs() * slope) - 1).mean()
    assert abs(float(after.x.sign().mean() - expected)) < 4 / math.sqrt(n)


def test_noise_of_a_block_has_turns_of_its_own():
    kernel = Barker(step_size=1.0)
    state = kernel.init(Banana(), torch.zeros(5, 2, dtype=torch.float64))
    block = kernel.noise(state, seeded(4), 3)
    assert block.turns.shape == (3, 5, 2)
    assert not torch.equal(block[0].turns, block[1].turns)
    assert torch.equal(block[2].turns, block.turns[2])


def test_noise_without_turns_is_refused():
    kernel = Barker(step_size=1.0)
    state = kernel.init(Banana(), torch.zeros(5, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"kernel\.noise\(state\)"):
        kernel.step(Banana(), state, kernel.tune(state.x), draw_noise(state.x, seeded(5)))


@pytest.mark.filterwarnings("ignore:MCMC. R-hat")
def test_adaptation_reaches_its_aim_and_the_moments_are_right():
    """25 chains; |z| < 5 on 20 numbers with the standard errors of the chains' means."""
    target = Gaussian(torch.linspace(-1, 1, 10), torch.linspace(0.1, 4, 10))
    draw = sample(target, chains=25, sampler=MCMC(Barker(), warmup=400, draws=800), seed=6)
    assert abs(draw.info.acceptance - 0.4) < 0.06
    for found, truth in ((draw.x, target.mean), ((draw.x - target.mean) ** 2, target.variances)):
        each = found.mean(1)
        assert float(((each.mean(0) - truth) / (each.std(0) / 5)).abs().max()) < 5


def test_step_sizes_that_are_too_large_cost_less_than_in_mala():
    """One coordinate twenty times narrower than the others: MALA stands still at the step size that suits them."""

    class Narrow(Scales):
        def __init__(self):
            super().__init__()
            self.scale = torch.ones(10, dtype=torch.float64)
            self.scale[0] = 0.05

    rates = {}
    for kernel in (Barker(step_size=0.8), MALA(step_size=0.5 * 0.8**2)):  # noise of the same variance
        start = Narrow().mean + Narrow().scale * normals(2000, 10, seeded(7))
        rates[type(kernel).__name__] = march(kernel, Narrow(), start, 10, seeded(8))[1]
    assert rates["MALA"] < 5e-3
    assert rates["Barker"] > 10 * rates["MALA"]
