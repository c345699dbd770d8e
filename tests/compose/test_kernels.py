"""Kernels leave their target invariant, count what they evaluate, and never rewrite a state.

Statistical checks start from exact draws and compare means and variances with z-scores. Seeds are fixed; each bound is
a two-sided normal quantile such that a correct kernel fails the check with probability ``FALSE_POSITIVES``, shared
among its statistics (Bonferroni).
"""

import math
from statistics import NormalDist

import pytest
import torch
from scipy.integrate import quad

from boltzmix.compose.callables import term
from boltzmix.compose.errors import NonFinite
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC, MALA, UHMC, ULA, Noise, State, Tune, draw_noise

FALSE_POSITIVES = 1e-4
CHAINS = 20_000


def bound(statistics):
    """|z| that one of so many statistics exceeds with probability FALSE_POSITIVES."""
    return NormalDist().inv_cdf(1 - FALSE_POSITIVES / (2 * statistics))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def march(kernel, target, x, steps, seed, inverse_mass=None):
    """The public loop: final state, mean acceptance, number of divergences."""
    source, state, acceptance, divergences = generator(seed), kernel.init(target, x), 0.0, 0
    tune = Tune(torch.tensor(kernel.step_size, dtype=x.dtype), inverse_mass)
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
        acceptance += float(info.acceptance.mean()) / steps
        divergences += int(info.divergent.sum())
    return state, acceptance, divergences


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


# ------------------------------------------------------------ stationarity

VARIANCES = torch.linspace(0.1, 4.0, 10, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kernel", "acceptance", "steps"),
    [
        (MALA(step_size=0.052), 0.9, 40),
        (MALA(step_size=0.16), 0.6, 40),
        (MALA(step_size=0.23), 0.4, 40),
        (HMC(step_size=0.32, num_leapfrog=4), 0.9, 15),
        (HMC(step_size=0.55, num_leapfrog=4), 0.6, 15),
        (HMC(step_size=0.62, num_leapfrog=4), 0.4, 15),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, (int, float)) else str(v),
)
def test_exact_draws_of_a_gaussian_stay_exact(kernel, acceptance, steps):
    p = Gaussian(torch.zeros(10, dtype=torch.float64), VARIANCES)
    x = p.sample(CHAINS, generator(1))
    state, found, divergences = march(kernel, ravel(p), x, steps, seed=2)
    assert abs(found - acceptance) < 0.05
    assert divergences == 0
    mean_z = state.x.mean(0) / (VARIANCES / CHAINS).sqrt()
    variance_z = ((state.x**2).mean(0) / VARIANCES - 1) * math.sqrt(CHAINS / 2)
    assert float(torch.cat([mean_z, variance_z]).abs().max()) < bound(20)


STRENGTH = 2.0


def moment(power):
    """∫ x^k exp(a sqrt(4 − x²)) dx over the support, normalised."""

    def weight(x):
        return math.exp(STRENGTH * math.sqrt(max(4 - x * x, 0.0)))

    return quad(lambda x: x**power * weight(x), -2, 2)[0] / quad(weight, -2, 2)[0]


def semicircle_draws(n, seed):
    """Exact draws by rejection from the uniform density on (−2, 2)."""
    source, kept = generator(seed), torch.empty(0, dtype=torch.float64)
    while len(kept) < n:
        x = 4 * torch.rand(4 * n, generator=source, dtype=torch.float64) - 2
        u = torch.rand(4 * n, generator=source, dtype=torch.float64)
        kept = torch.cat([kept, x[u.log() < STRENGTH * ((4 - x * x).sqrt() - 2)]])
    return kept[:n, None]


def undefined_outside(x):
    return -STRENGTH * (4 - x[:, 0] ** 2).sqrt()


def infinite_outside(x):
    inside = x[:, 0].abs() < 2
    return torch.where(inside, -STRENGTH * (4 - x[:, 0] ** 2).clamp(min=1e-300).sqrt(), torch.inf)


def check_edge(kernel, steps, energy):
    """The semicircle density keeps its mean and variance under steps that leave its support; divergences."""
    target = ravel(term(energy, kind="energy", event_shape=1), dtype=torch.float64)
    start = semicircle_draws(CHAINS, 3)
    state, acceptance, divergences = march(kernel, target, start, steps, seed=4)
    assert 0.2 < acceptance < 0.95
    assert bool((state.x.abs() < 2).all()), "a chain left the support"
    second, fourth = moment(2), moment(4)
    z = [
        float(state.x.mean()) / math.sqrt(second / CHAINS),
        float((state.x**2).mean() - second) / math.sqrt((fourth - second**2) / CHAINS),
    ]
    assert max(map(abs, z)) < bound(2)
    return divergences


EDGE_KERNELS = [(MALA(step_size=0.8), 30), (HMC(step_size=0.9, num_leapfrog=3), 20)]


@pytest.mark.parametrize(("kernel", "steps"), EDGE_KERNELS, ids=["MALA", "HMC"])
def test_an_edge_with_nan_outside_is_rejected_and_counted(kernel, steps):
    assert check_edge(kernel, steps, undefined_outside) > 1000


@pytest.mark.parametrize(("kernel", "steps"), EDGE_KERNELS, ids=["MALA", "HMC"])
def test_an_edge_with_infinite_energy_is_an_ordinary_rejection(kernel, steps):
    assert check_edge(kernel, steps, infinite_outside) == 0


@pytest.mark.parametrize("kernel", [MALA(step_size=0.5), HMC(step_size=0.5, num_leapfrog=2)], ids=["MALA", "HMC"])
def test_minus_infinite_energies_are_rejected_and_counted(kernel):
    def energy(x):
        return torch.where(x[:, 0] > 1.0, -torch.inf, 0.5 * (x**2).sum(-1))

    target = ravel(term(energy, kind="energy", event_shape=2))
    start = torch.zeros(500, 2)
    state, _, divergences = march(kernel, target, start, 20, seed=5)
    assert divergences > 0
    assert bool((state.x[:, 0] <= 1.0).all())
    assert bool(torch.isfinite(state.energy).all())


@pytest.mark.parametrize("kernel", [ULA(step_size=0.5), UHMC(step_size=0.5, num_leapfrog=2)], ids=["ULA", "UHMC"])
def test_unadjusted_kernels_reject_undefined_proposals_and_count_them(kernel):
    target = ravel(term(undefined_outside, kind="energy", event_shape=1), dtype=torch.float64)
    state, acceptance, divergences = march(kernel, target, semicircle_draws(500, 6), 20, seed=7)
    assert divergences > 0
    assert bool((state.x.abs() < 2).all())
    assert bool(torch.isfinite(state.score).all())
    assert 0.0 <= acceptance <= 1.0


@pytest.mark.parametrize("kernel", [MALA, HMC, ULA, UHMC])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 5.0])
def test_starts_that_are_not_finite_are_refused(kernel, bad):
    target = ravel(term(undefined_outside, kind="energy", event_shape=1))
    start = torch.zeros(4, 1)
    start[2] = bad
    with pytest.raises(NonFinite, match=r"1 of 4 starts.*row 2.*inside the support"):
        kernel(step_size=0.1).init(target, start)


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


@pytest.mark.parametrize("kernel", [MALA(step_size=0.3), HMC(step_size=0.5, num_leapfrog=3)], ids=["MALA", "HMC"])
def test_each_chain_is_accepted_by_itself_and_states_are_never_changed_in_place(kernel):
    target = quartic()
    state = kernel.init(target, torch.randn(400, 3, generator=generator(10), dtype=torch.float64))
    before = State(state.x.clone(), state.energy.clone(), state.score.clone())
    proposal, info = kernel.step(target, state, kernel.tune(state.x), take_any(state, 11))
    noise = draw_noise(state.x, generator(11))
    after, taken = kernel.step(target, state, kernel.tune(state.x), noise)
    for field in ("x", "energy", "score"):
        assert torch.equal(getattr(state, field), getattr(before, field)), "the step changed its argument"
    assert torch.equal(taken.accepted, noise.uniform < info.acceptance)
    assert 0.1 < float(taken.accepted.double().mean()) < 0.9, "the check needs chains of both kinds"
    assert torch.equal(after.x, torch.where(taken.accepted[:, None], proposal.x, before.x))
    energy, score = target.energy_and_score(after.x)
    torch.testing.assert_close(after.energy, energy)
    torch.testing.assert_close(after.score, score)


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


# ---------------------------------------------------------- unadjusted bias


@pytest.mark.parametrize(("variance", "step"), [(1.0, 0.4), (0.5, 0.3)])
def test_ula_has_the_stated_bias(variance, step):
    p = Gaussian(torch.zeros(1, dtype=torch.float64), variance)
    state, _, _ = march(ULA(step_size=step), ravel(p), p.sample(CHAINS, generator(15)), 60, seed=16)
    expected = variance / (1 - step / (2 * variance))
    assert expected > 1.2 * variance
    z = (float((state.x**2).mean()) / expected - 1) * math.sqrt(CHAINS / 2)
    assert abs(z) < bound(1)


@pytest.mark.parametrize(("variance", "step"), [(1.0, 1.0), (0.5, 0.6)])
def test_uhmc_has_the_stated_bias(variance, step):
    p = Gaussian(torch.zeros(1, dtype=torch.float64), variance)
    kernel = UHMC(step_size=step, num_leapfrog=2, jitter=False)
    state, _, _ = march(kernel, ravel(p), p.sample(CHAINS, generator(17)), 40, seed=18)
    expected = variance / (1 - step**2 / (4 * variance))
    assert expected > 1.1 * variance
    z = (float((state.x**2).mean()) / expected - 1) * math.sqrt(CHAINS / 2)
    assert abs(z) < bound(1)


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
    assert max(map(abs, z)) < bound(2)


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


@pytest.mark.parametrize(
    "kernel",
    [
        MALA(step_size=0.2),
        ULA(step_size=0.2),
        HMC(step_size=0.4, num_leapfrog=3),
        UHMC(step_size=0.4, num_leapfrog=3),
    ],
    ids=["MALA", "ULA", "HMC", "UHMC"],
)
def test_a_rescaled_target_with_its_inverse_mass_gives_the_same_chain(kernel):
    variances = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    scale = variances.sqrt()

    def energy(z):
        return (z**4).sum(-1) / 4 + 0.2 * z[:, 0] * z[:, 1]

    plain = ravel(term(energy, kind="energy", event_shape=3), dtype=torch.float64)
    scaled = ravel(term(lambda x: energy(x / scale), kind="energy", event_shape=3), dtype=torch.float64)
    start = torch.randn(40, 3, generator=generator(25), dtype=torch.float64)
    expected, acceptance, _ = march(kernel, plain, start, 10, seed=26)
    found, same, _ = march(kernel, scaled, start * scale, 10, seed=26, inverse_mass=variances)
    assert 0.3 < acceptance < 0.999
    assert same == pytest.approx(acceptance, abs=1e-9)
    torch.testing.assert_close(found.x / scale, expected.x)


def test_a_step_size_for_each_chain_is_that_chain_s():
    target, start = quartic(), torch.randn(6, 3, generator=generator(27), dtype=torch.float64)
    sizes = torch.linspace(0.01, 0.3, 6, dtype=torch.float64)
    for kernel in (MALA(), HMC(num_leapfrog=2), ULA(), UHMC(num_leapfrog=2)):
        state = kernel.init(target, start)
        noise = draw_noise(start, generator(28))
        together, _ = kernel.step(target, state, Tune(sizes), noise)
        for row in range(6):
            alone = kernel.init(target, start[row : row + 1])
            own = Noise(noise.normal[row : row + 1], noise.uniform[row : row + 1], noise.jitter[row : row + 1])
            single, _ = kernel.step(target, alone, Tune(sizes[row]), own)
            torch.testing.assert_close(single.x[0], together.x[row])


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


def test_states_keep_the_dtype_of_their_start():
    for dtype in (torch.float32, torch.float64):
        target = ravel(Gaussian(torch.zeros(2, dtype=dtype), 1.0))
        for kernel in (MALA(step_size=0.1), HMC(step_size=0.1), ULA(step_size=0.1), UHMC(step_size=0.1)):
            state, _, _ = march(kernel, target, torch.zeros(3, 2, dtype=dtype), 2, seed=0)
            assert state.x.dtype == state.score.dtype == dtype
