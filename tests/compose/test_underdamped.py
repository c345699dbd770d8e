"""Underdamped Langevin and generalised HMC: what they leave invariant, and what becomes of the velocity.

Statistical checks compare with exact or predicted moments by z-scores; seeds are fixed, and a correct kernel fails a
check with probability ``FALSE_POSITIVES``, shared among its statistics (Bonferroni).
"""

import math
from dataclasses import replace

import pytest
import torch

from boltzmix.compose import MCMC, sample
from boltzmix.compose.callables import term
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import GHMC, HMC, Dense, Noise, Tune, Underdamped, draw_noise
from boltzmix.compose.kernels.ghmc import SliceState
from boltzmix.compose.kernels.velocity import VelocityState
from tests.kernel_contracts import bound
from tests.kernel_contracts import seeded as generator

CHAINS = 20_000


def march(kernel, target, x, steps, seed, tune=None):
    source = generator(seed)
    state, refused = kernel.init(target, x, source), 0.0
    tune = tune or kernel.tune(x)
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
        refused += 1 - float(info.accepted.double().mean())
    return state, refused / steps


def quartic(dim=3):
    """A target that is no Gaussian."""
    return ravel(
        term(lambda x: (x**4).sum(-1) / 4 + 0.3 * x.prod(-1), kind="energy", event_shape=dim), dtype=torch.float64
    )


# -------------------------------------------------- underdamped: its bias


def stationary(variance, step, friction):
    """The covariance of (x, v) that BAOAB has on N(0, variance): the fixed point of S = M S Mᵀ + Q."""
    eta = math.exp(-friction * step)
    kick = torch.tensor([[1.0, 0.0], [-0.5 * step / variance, 1.0]], dtype=torch.float64)
    drift = torch.tensor([[1.0, 0.5 * step], [0.0, 1.0]], dtype=torch.float64)
    keep = torch.diag(torch.tensor([1.0, eta], dtype=torch.float64))
    late = kick @ drift
    whole = late @ keep @ drift @ kick
    noise = late @ torch.diag(torch.tensor([0.0, 1 - eta * eta], dtype=torch.float64)) @ late.T
    eye = torch.eye(4, dtype=torch.float64)
    return torch.linalg.solve(eye - torch.kron(whole, whole), noise.reshape(4)).reshape(2, 2)


@pytest.mark.parametrize(("variance", "step", "friction"), [(1.0, 1.2, 1.0), (0.5, 0.9, 0.3), (2.0, 2.0, 4.0)])
def test_the_bias_on_a_gaussian_is_that_of_the_linear_map(variance, step, friction):
    expected = stationary(variance, step, friction)
    torch.testing.assert_close(expected[0, 0], torch.tensor(variance, dtype=torch.float64))  # positions are exact
    assert float(expected[1, 1]) == pytest.approx(1 - step**2 / (4 * variance))  # and velocities are not
    p = Gaussian(torch.zeros(1, dtype=torch.float64), variance)
    state, _ = march(Underdamped(step, friction), ravel(p), p.sample(CHAINS, generator(1)), 40, seed=2)
    pair = torch.cat([state.x, state.velocity], 1)
    z_variance = ((pair**2).mean(0) / expected.diagonal() - 1) * math.sqrt(CHAINS / 2)
    z_product = (pair[:, 0] * pair[:, 1]).mean() * math.sqrt(CHAINS) / expected.diagonal().prod().sqrt()
    z_mean = pair.mean(0) / expected.diagonal().sqrt() * math.sqrt(CHAINS)
    assert float(torch.cat([z_variance, z_mean, z_product[None]]).abs().max()) < bound(5)


def test_velocities_are_forgotten_at_the_rate_of_the_friction():
    # a flat target: v_n · v_0 = e^{−γεn}
    flat = ravel(term(lambda x: 0.0 * x.sum(-1), kind="energy", event_shape=1), dtype=torch.float64)
    kernel = Underdamped(step_size=0.5, friction=0.7)
    source = generator(3)
    first = kernel.init(flat, torch.zeros(CHAINS, 1, dtype=torch.float64), source)
    state = first
    for _ in range(3):
        state, _ = kernel.step(flat, state, kernel.tune(state.x), kernel.noise(state, source))
    kept = math.exp(-0.7 * 0.5 * 3)
    product = (first.velocity * state.velocity).mean()
    assert abs(float(product) - kept) * math.sqrt(CHAINS / (1 + kept**2)) < bound(1)


def test_without_friction_and_noise_the_step_is_a_reversible_leapfrog():
    kernel, target = Underdamped(step_size=0.2, friction=1e-12), quartic()
    state = kernel.init(target, torch.randn(50, 3, generator=generator(4), dtype=torch.float64), generator(5))
    quiet = replace(draw_noise(state.x, generator(6)), normal=torch.zeros_like(state.x))
    there = state
    for _ in range(5):
        there, _ = kernel.step(target, there, kernel.tune(state.x), quiet)
    assert float((there.x - state.x).abs().min(0).values.max()) > 1e-3
    back = replace(there, velocity=-there.velocity)
    for _ in range(5):
        back, _ = kernel.step(target, back, kernel.tune(state.x), quiet)
    torch.testing.assert_close(back.x, state.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(-back.velocity, state.velocity, rtol=0, atol=1e-9)


def test_the_acceptance_reported_is_that_of_the_work_without_the_heat():
    p = Gaussian(torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    kernel, target, eps, gamma = Underdamped(step_size=0.9, friction=1.3), ravel(p), 0.9, 1.3
    state = kernel.init(target, p.sample(200, generator(7)), generator(8))
    noise = draw_noise(state.x, generator(9))
    _, info = kernel.step(target, state, kernel.tune(state.x), noise)

    def hamiltonian(x, v):
        return target.energy(x) + 0.5 * (v * v).sum(-1)

    kicked = state.velocity + 0.5 * eps * state.score
    half = state.x + 0.5 * eps * kicked
    eta = math.exp(-gamma * eps)
    renewed = eta * kicked + math.sqrt(1 - eta**2) * noise.normal
    end = half + 0.5 * eps * renewed
    velocity = renewed + 0.5 * eps * target.score(end)
    error = hamiltonian(half, kicked) - hamiltonian(state.x, state.velocity)
    error = error + hamiltonian(end, velocity) - hamiltonian(half, renewed)
    torch.testing.assert_close(info.acceptance, (-error).clamp(max=0).exp())


def test_terms_with_a_score_alone_will_do():
    p = term(lambda x: -x, kind="score", event_shape=2)
    draw = sample(p, chains=50, sampler=MCMC(Underdamped(step_size=0.5), draws=40), seed=0)
    assert bool(torch.isfinite(draw.x).all())


def semicircle(x):
    return -2.0 * (4 - x[:, 0] ** 2).sqrt()


def test_steps_out_of_the_support_are_refused_counted_and_turned_round():
    target = ravel(term(semicircle, kind="energy", event_shape=1), dtype=torch.float64)
    kernel = Underdamped(step_size=0.5)
    state = kernel.init(target, torch.full((4, 1), 1.9, dtype=torch.float64), generator(10))
    state = VelocityState(state.x, state.energy, state.score, torch.full_like(state.x, 3.0))
    quiet = replace(draw_noise(state.x, generator(11)), normal=torch.full_like(state.x, 2.0))
    after, info = kernel.step(target, state, kernel.tune(state.x), quiet)
    assert bool(info.divergent.all())
    assert not bool(info.accepted.any())
    assert torch.equal(after.x, state.x)
    assert torch.equal(after.velocity, -state.velocity)


@pytest.mark.parametrize(("outside", "counted"), [(torch.nan, True), (torch.inf, False)])
def test_energies_that_are_undefined_are_refused_though_scores_are_finite(outside, counted):
    def energy(x):  # constant outside, so that the score is 0 there
        return torch.where(x[:, 0] > 1.0, outside, 0.5 * (x * x).sum(-1))

    target = ravel(term(energy, kind="energy", event_shape=2), dtype=torch.float64)
    state = Underdamped(0.5).init(target, torch.zeros(500, 2, dtype=torch.float64), generator(28))
    source, divergences = generator(29), 0
    for _ in range(20):
        state, info = Underdamped(0.5).step(target, state, Tune(torch.tensor(0.5)), draw_noise(state.x, source))
        divergences += int(info.divergent.sum())
    assert bool((state.x[:, 0] <= 1.0).all())
    assert (divergences > 100) == counted


# ------------------------------------------------------- generalised HMC


def slow(variances):
    return Gaussian(torch.zeros(len(variances), dtype=torch.float64), torch.tensor(variances, dtype=torch.float64))


def check_stationary(kernel, steps, refused_at_least):
    """Exact draws keep their variances while many proposals are refused."""
    variances = [0.2, 1.0, 3.0]
    p = slow(variances)
    state, refused = march(kernel, ravel(p), p.sample(CHAINS, generator(12)), steps, seed=13)
    assert refused > refused_at_least
    exact = torch.tensor(variances, dtype=torch.float64)
    z = [
        state.x.mean(0) / (exact / CHAINS).sqrt(),
        ((state.x**2).mean(0) / exact - 1) * math.sqrt(CHAINS / 2),
        state.velocity.mean(0) * math.sqrt(CHAINS),
        ((state.velocity**2).mean(0) - 1) * math.sqrt(CHAINS / 2),
        (state.x * state.velocity).mean(0) / (exact / CHAINS).sqrt(),
    ]
    assert float(torch.cat(z).abs().max()) < bound(15)


GHMC_CASES = [
    (GHMC(step_size=0.75, alpha=0.9), 40, 0.1),
    (GHMC(step_size=0.7, alpha=0.6, num_leapfrog=3), 20, 0.1),
    (GHMC(step_size=0.75, alpha=0.9, delta=0.1), 40, 0.1),
]


@pytest.mark.parametrize(("kernel", "steps", "refused"), GHMC_CASES, ids=["one", "three", "persistent"])
def test_exact_draws_stay_exact_with_their_velocities(kernel, steps, refused):
    check_stationary(kernel, steps, refused)


def test_the_persistent_slice_variable_stays_uniform():
    kernel = GHMC(step_size=0.75, alpha=0.9, delta=0.1)
    p = slow([0.2, 1.0, 3.0])
    state, _ = march(kernel, ravel(p), p.sample(CHAINS, generator(14)), 30, seed=15)
    assert isinstance(state, SliceState)
    u = state.slice
    assert bool((u.abs() <= 1).all())
    z = [float(u.mean()) * math.sqrt(3 * CHAINS), float((u * u).mean() - 1 / 3) * math.sqrt(CHAINS * 45 / 4)]
    assert max(map(abs, z)) < bound(2)


def test_refused_velocities_are_reversed_and_the_others_go_on():
    kernel, target = GHMC(step_size=0.9, alpha=0.8, jitter=False), quartic()
    state = kernel.init(target, torch.randn(300, 3, generator=generator(16), dtype=torch.float64), generator(17))
    noise = draw_noise(state.x, generator(18))
    after, info = kernel.step(target, state, kernel.tune(state.x), noise)
    assert 0.1 < float(info.accepted.double().mean()) < 0.9
    start = 0.8 * state.velocity + 0.6 * noise.normal
    end = start + 0.45 * state.score
    end = end + 0.45 * target.score(state.x + 0.9 * end)
    torch.testing.assert_close(after.velocity, torch.where(info.accepted[:, None], end, -start))
    assert torch.equal(after.x[~info.accepted], state.x[~info.accepted])


def test_with_a_fresh_velocity_it_is_hmc():
    target = quartic()
    x = torch.randn(200, 3, generator=generator(19), dtype=torch.float64)
    for steps in (1, 4):
        noise = draw_noise(x, generator(20))
        one, two = HMC(step_size=0.6, num_leapfrog=steps), GHMC(step_size=0.6, num_leapfrog=steps, alpha=0.0)
        a, seen = one.step(target, one.init(target, x), one.tune(x), noise)
        b, found = two.step(target, two.init(target, x, generator(21)), two.tune(x), noise)
        torch.testing.assert_close(a.x, b.x)
        assert torch.equal(seen.accepted, found.accepted)
        torch.testing.assert_close(seen.energy, found.energy)


def test_persistence_makes_few_leapfrogs_go_far():
    # on a wide direction, moves that keep their direction travel further than moves that do not
    p = slow([1.0, 400.0])
    far = []
    for alpha in (0.0, 0.95):
        x = torch.zeros(2000, 2, dtype=torch.float64)
        state, _ = march(GHMC(step_size=0.5, alpha=alpha), ravel(p), x, 60, seed=22)
        far.append(float((state.x[:, 1] ** 2).mean()))
    assert far[1] > 4 * far[0]


# --------------------------------------------- what all kernels have to do

KERNELS = [Underdamped(step_size=0.3), GHMC(step_size=0.4, num_leapfrog=2), GHMC(step_size=0.4, delta=0.2)]
NAMES = ["Underdamped", "GHMC", "persistent"]


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_a_mass_is_a_change_of_coordinates(kernel):
    root = torch.tensor([[0.1, 0.0, 0.0], [3.0, 2.0, 0.0], [-4.0, 1.0, 10.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(root)

    def energy(y):
        return (y**4).sum(-1) / 4 + 0.2 * y[:, 0] * y[:, 1]

    plain = ravel(term(energy, kind="energy", event_shape=3), dtype=torch.float64)
    mapped = ravel(term(lambda x: energy(x @ inverse.T), kind="energy", event_shape=3), dtype=torch.float64)
    y = torch.randn(40, 3, generator=generator(23), dtype=torch.float64)
    size = torch.tensor(kernel.step_size, dtype=torch.float64)
    expected, refused = march(kernel, plain, y, 10, 24, Tune(size))
    found, same = march(kernel, mapped, y @ root.T, 10, 24, Tune(size, Dense(root @ root.T)))
    assert same == pytest.approx(refused)
    torch.testing.assert_close(found.x @ inverse.T, expected.x)
    torch.testing.assert_close(found.velocity, expected.velocity)


@pytest.mark.parametrize(("kernel", "cost"), list(zip(KERNELS, (1, 2, 1), strict=True)), ids=NAMES)
def test_a_step_costs_what_the_kernel_says(kernel, cost):
    view = FlatView(term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2))
    target = view.at()
    state = kernel.init(target, torch.ones(11, 2), generator(0))
    for _ in range(3):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(0)))
    assert kernel.evaluations_per_step == cost
    assert view.counter.rows == 11 * (1 + 3 * cost)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_each_chain_is_alone_and_nothing_is_changed_in_place(kernel):
    target = quartic()
    state = kernel.init(target, torch.randn(6, 3, generator=generator(25), dtype=torch.float64), generator(26))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    sizes = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    noise = draw_noise(state.x, generator(27))
    together, _ = kernel.step(target, state, Tune(sizes), noise)
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    for row in range(6):
        own = Noise(*(t[row : row + 1] for t in (noise.normal, noise.uniform, noise.jitter)))
        single, _ = kernel.step(target, state.select(slice(row, row + 1)), Tune(sizes[row]), own)
        for name, tensor in single.tensors().items():
            torch.testing.assert_close(tensor[0], together.tensors()[name][row], equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_the_dtype_of_their_start(kernel, dtype):
    target = ravel(Gaussian(torch.zeros(2, dtype=dtype), 1.0))
    state, _ = march(kernel, target, torch.zeros(3, 2, dtype=dtype), 2, seed=0)
    assert {t.dtype for t in state.tensors().values()} == {dtype}


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")  # R-hat of 1.01 for short runs
@pytest.mark.parametrize("kernel", [Underdamped(), GHMC()], ids=NAMES[:2])
def test_warm_up_finds_step_size_and_mass(kernel):
    variances = torch.tensor([1e-2, 1.0, 100.0])
    p = Gaussian(torch.zeros(3), variances)
    draw = sample(p, chains=50, sampler=MCMC(kernel, warmup=300, draws=600), seed=1)
    assert draw.info.acceptance == pytest.approx(kernel.target_acceptance, abs=0.04)
    ratio = draw.x.double().var((0, 1)) / variances
    assert float((ratio - 1).abs().max()) < 0.1  # some thousand effective draws, and no bias on a Gaussian


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Underdamped(friction=0.0), "friction"),
        (lambda: Underdamped(friction=math.inf), "friction"),
        (lambda: Underdamped(friction="1"), "friction"),
        (lambda: Underdamped(step_size=-1.0), "step_size"),
        (lambda: GHMC(alpha=1.0), r"alpha is in \[0, 1\)"),
        (lambda: GHMC(alpha=-0.1), "alpha"),
        (lambda: GHMC(delta=0.0), r"delta is in \(0, 1\)"),
        (lambda: GHMC(delta=True), "delta"),
        (lambda: GHMC(num_leapfrog=0), "num_leapfrog"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
