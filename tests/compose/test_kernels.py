"""HMC and Langevin kernels step by step, and kernels on terms of any shape; the laws of all kernels are contracts."""

import math

import pytest
import torch

from boltzmix.compose import MCMC, sample
from boltzmix.compose.callables import term
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC, MALA, UHMC, ULA, Noise, Tune, draw_noise
from boltzmix.compose.kernels.hmc import leapfrog
from tests import kernel_contracts
from tests.kernel_contracts import assert_z
from tests.kernel_contracts import seeded as generator

CHAINS = 20_000


def march(kernel, target, x, steps, seed):
    """The public loop: final state, mean acceptance, number of divergences."""
    return kernel_contracts.march(kernel, target, x, steps, generator(seed))


class Recorder:
    """A target that notes the points and the number of rows that it was asked for."""

    has_energy = True

    def __init__(self, target):
        self.target, self.points, self.rows = target, [], 0

    def _note(self, x):
        self.points.append(x.clone())
        self.rows += x.shape[0]

    def score(self, x):
        self._note(x)
        return self.target.score(x)

    def energy_and_score(self, x):
        self._note(x)
        return self.target.energy_and_score(x)


# ------------------------------------------------------- one step, exactly


def quartic():
    """A target that is no Gaussian, so that no formula is exact by accident."""
    return ravel(
        term(lambda x: (x**4).sum(-1) / 4 + 0.3 * x.prod(-1), kind="energy", event_shape=3), dtype=torch.float64
    )


def take_any(state, seed):
    """Noise whose uniforms accept any finite proposal."""
    noise = draw_noise(state.x, generator(seed))
    return Noise(noise.normal, torch.zeros_like(noise.uniform), noise.jitter)


def test_the_leapfrog_is_reversible():
    kernel, size = HMC(step_size=0.2, num_leapfrog=5, jitter=False), 0.2
    target = Recorder(quartic())
    start = torch.randn(50, 3, generator=generator(8), dtype=torch.float64)
    state = kernel.init(target, start)
    target.points.clear()
    end, forth = kernel.step(target, state, kernel.tune(start), take_any(state, 9))
    path = [start, *target.points]
    arrival = (path[-1] - path[-2]) / size + 0.5 * size * end.score
    back = Noise(-arrival, torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64))
    target.points.clear()
    _, again = kernel.step(target, end, kernel.tune(start), back)
    for there, here in zip(reversed(path[:-1]), target.points, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
    # min(1, r) / min(1, 1/r) = r, and one of the two is 1
    assert bool((torch.maximum(forth.acceptance, again.acceptance) > 1 - 1e-9).all())
    assert bool((torch.minimum(forth.acceptance, again.acceptance) < 1 - 1e-9).any())


def test_energy_errors_of_the_leapfrog_shrink_with_the_square_of_its_step():
    target, tune = quartic(), Tune(torch.tensor(1.0, dtype=torch.float64))
    start, velocity = torch.randn(2, 50, 3, generator=generator(14), dtype=torch.float64)
    state, errors = HMC(step_size=0.1).init(target, start), []
    for count in (40, 80):
        end, last = leapfrog(target, state, velocity, tune, tune.step_size / count, count)
        kinetic = 0.5 * (last.square() - velocity.square()).sum(1)
        errors.append(float((end.energy - state.energy + kinetic).square().mean().sqrt()))
    assert 3.8 < errors[0] / errors[1] < 4.2


def test_mala_accepts_by_the_ratio_of_densities_and_proposals():
    kernel, h = MALA(step_size=0.15), 0.15
    target = quartic()
    state = kernel.init(target, torch.randn(100, 3, generator=generator(12), dtype=torch.float64))
    after, info = kernel.step(target, state, kernel.tune(state.x), take_any(state, 13))

    def log_q(y, x, score):  # variance 2h, so 4h in the denominator
        return -((y - x - h * score) ** 2).sum(-1) / (4 * h)

    ratio = state.energy - after.energy + log_q(state.x, after.x, after.score) - log_q(after.x, state.x, state.score)
    torch.testing.assert_close(info.acceptance, ratio.clamp(max=0).exp())


def test_hmc_draws_a_fresh_momentum_for_every_transition():
    kernel = HMC(step_size=0.3, num_leapfrog=3, jitter=False)
    target, start = quartic(), torch.full((2000, 3), 0.5, dtype=torch.float64)
    state = kernel.init(target, start)
    state, _ = kernel.step(target, state, kernel.tune(start), kernel.noise(state, generator(14)))
    assert float(state.x.std(0).min()) > 0.3, "chains from one point must go different ways"


@pytest.mark.parametrize(
    ("kernel", "cost"),
    [
        (MALA(step_size=0.1), 1),
        (ULA(step_size=0.1), 1),
        (HMC(step_size=0.1, num_leapfrog=7), 7),
        (UHMC(step_size=0.1, num_leapfrog=7), 7),
    ],
    ids=["MALA", "ULA", "HMC", "UHMC"],
)
def test_a_step_costs_what_the_kernel_says(kernel, cost):
    calls = []

    def energy(x):
        calls.append(x.shape[0])
        return (x**2).sum(-1)

    view = FlatView(term(energy, kind="energy", event_shape=2))
    target = view.at()
    state = kernel.init(target, torch.ones(11, 2))
    assert sum(calls) == view.counter.rows == 11
    for _ in range(3):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(0)))
    assert kernel.evaluations_per_step == cost
    assert sum(calls) == view.counter.rows == 11 * (1 + 3 * cost)


# ---------------------------------------------- acceptance and resonance


@pytest.mark.parametrize(
    ("kernel", "adjusted"),
    [
        (ULA(step_size=0.3), MALA(step_size=0.3)),
        (UHMC(step_size=0.9, num_leapfrog=3), HMC(step_size=0.9, num_leapfrog=3)),
    ],
    ids=["ULA", "UHMC"],
)
def test_unadjusted_kernels_report_the_acceptance_that_a_test_would_have(kernel, adjusted):
    p = Gaussian(torch.zeros(4, dtype=torch.float64), torch.tensor([0.5, 1.0, 1.0, 2.0], dtype=torch.float64))
    x = p.sample(200, generator(19))
    results = []
    for one in (kernel, adjusted):
        state = one.init(ravel(p), x)
        results.append(one.step(ravel(p), state, one.tune(x), draw_noise(x, generator(20)))[1].acceptance)
    assert float(results[0].min()) < 0.95
    torch.testing.assert_close(results[0], results[1])


def test_jitter_breaks_resonance():
    length = 10
    period = 2 * math.sin(math.pi / length)  # L leapfrogs of this size turn a unit Gaussian by 2π
    p = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)
    start = torch.full((CHAINS, 1), 3.0, dtype=torch.float64)
    stuck, _, _ = march(HMC(step_size=period, num_leapfrog=length, jitter=False), ravel(p), start, 20, seed=21)
    torch.testing.assert_close(stuck.x, start)
    free, _, _ = march(HMC(step_size=period, num_leapfrog=length), ravel(p), start, 60, seed=21)
    z = [float(free.x.mean()) * math.sqrt(CHAINS), float((free.x**2).mean() - 1) * math.sqrt(CHAINS / 2)]
    assert_z(z, "moments after 60 transitions")


# ------------------------------------------------------- shapes and scaling


def chain_of(target, start, kernel):
    return march(kernel, target, start, 5, seed=22)[0].x


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)], ids=["(N, C, H, W)", "(N, H, S)"])
@pytest.mark.parametrize("kernel", [HMC(step_size=0.3, num_leapfrog=3), MALA(step_size=0.1)], ids=["HMC", "MALA"])
def test_states_of_any_shape_run_as_flat_ones(kernel, shape):
    def energy(x):
        flat = x.flatten(1)
        return 0.5 * (flat**2).sum(-1) + 0.1 * (flat[:, 1:] * flat[:, :-1]).sum(-1)

    start = torch.randn(7, 24, generator=generator(23))
    flat = ravel(term(energy, kind="energy", event_shape=24))
    shaped = ravel(term(lambda x: energy(x), kind="energy", event_shape=shape))
    assert shaped.dim == 24
    torch.testing.assert_close(chain_of(shaped, start, kernel), chain_of(flat, start, kernel), rtol=0, atol=0)
    assert shaped.view.unravel(start).shape == (7, *shape)
    torch.testing.assert_close(shaped.view.ravel(shaped.view.unravel(start)), start, rtol=0, atol=0)


def test_dictionaries_of_variables_run_as_flat_states():
    a = Gaussian(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5])).on("a")
    b = Gaussian(torch.ones(2, 2), 0.7).on("b")
    link = Gaussian(torch.zeros(3), 2.0).on("a")
    joint = Gaussian(torch.tensor([0.0, 0, 0, 1, 1, 1, 1]), torch.tensor([1 / 1.5, 1.0, 0.4, 0.7, 0.7, 0.7, 0.7]))
    start = torch.randn(9, 7, generator=generator(24))
    named, flat = ravel(a * b * link), ravel(joint)
    kernel = HMC(step_size=0.4, num_leapfrog=3)
    torch.testing.assert_close(chain_of(named, start, kernel), chain_of(flat, start, kernel), rtol=1e-5, atol=1e-5)
    state = named.view.unravel(start)
    assert {k: tuple(v.shape) for k, v in state.items()} == {"a": (9, 3), "b": (9, 2, 2)}


def test_a_user_writes_the_loop_in_three_lines_and_the_same_noise_gives_the_same_result():
    def run():
        source = generator(29)
        kernel, target = HMC(step_size=0.5), ravel(Gaussian(torch.zeros(2), 1.0))
        state = kernel.init(target, torch.zeros(8, 2))
        for _ in range(10):
            state, _ = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
        return state.x

    assert torch.equal(run(), run())


def test_noise_of_a_block_is_one_transition_at_a_time():
    block = draw_noise(torch.zeros(5, 3), generator(30), steps=4)
    assert block.normal.shape == (4, 5, 3)
    assert block.uniform.shape == block.jitter.shape == (4, 5)
    assert torch.equal(block[2].normal, block.normal[2])
    assert not torch.equal(block[1].uniform, block[2].uniform)


@pytest.mark.parametrize("kernel", [UHMC(), ULA()], ids=["UHMC", "ULA"])
def test_unadjusted_kernels_adapt_on_linear_tails(kernel):
    """The gradients on either side of a kink cancel in a trapezoid rule: such jumps would look free of error."""
    target = term(lambda x: (torch.nn.functional.softplus(2 * x) - x).sum(1), kind="energy", event_shape=1)  # log cosh
    sampler = MCMC(kernel, warmup=300, draws=200)
    draw = sample(target, chains=200, sampler=sampler, dtype=torch.float64, seed=1)
    assert 0.8 < float(draw.x.var()) / (math.pi**2 / 4) < 1.25
