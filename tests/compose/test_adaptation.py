"""Warm-ups find step sizes, masses and trajectory lengths, and go on bit for bit.

Estimates of a mass are compared with closed forms; where they are random, bounds are several standard errors wide and
seeds are fixed.
"""

import math

import pytest
import torch

from boltzmix.compose.adaptation import ChEES, Windows, warm_up, window_adaptation
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.masses import MassEstimate, between, shrink
from boltzmix.compose.adaptation.moments import Moments
from boltzmix.compose.adaptation.windows import window_ends
from boltzmix.compose.callables import term
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC, MALA, UHMC, ULA, Dense, Diagonal, Info, LowRank, State
from boltzmix.compose.kernels.mass import as_mass, mass_from
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC
from tests.kernel_contracts import seeded as generator

F64 = torch.float64


def covariance(dim, spread, seed=0):
    """A covariance with eigenvalues from 1/spread to spread in random directions."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=F64))[0]
    return basis @ torch.diag(torch.logspace(-math.log10(spread), math.log10(spread), dim, dtype=F64)) @ basis.mT


def low_rank(dim=6, seed=3):
    basis = torch.linalg.qr(torch.randn(dim, 2, generator=generator(seed), dtype=F64))[0]
    variance = torch.rand(dim, generator=generator(seed + 1), dtype=F64) + 0.5
    return LowRank(variance, basis, torch.tensor([9.0, 0.1], dtype=F64))


MASSES = {
    "diagonal": lambda: Diagonal(torch.tensor([0.1, 1.0, 5.0, 2.0, 3.0, 0.5], dtype=F64)),
    "dense": lambda: Dense(covariance(6, 10.0)),
    "low rank": low_rank,
}


# ------------------------------------------------------------------ masses


@pytest.mark.parametrize("name", MASSES)
def test_push_and_pull_are_one_map_and_its_transpose(name):
    mass = MASSES[name]()
    eye = torch.eye(6, dtype=F64)
    push, pull = mass.push(eye).mT, mass.pull(eye).mT  # columns F e_k and Fᵀ e_k
    torch.testing.assert_close(push.mT, pull)
    torch.testing.assert_close((push @ push.mT).diagonal(), mass.variances)
    if isinstance(mass, Dense):
        torch.testing.assert_close(push @ push.mT, mass.covariance)
    if isinstance(mass, LowRank):
        scale = torch.diag(mass.variance.sqrt())
        core = eye + mass.basis @ torch.diag(mass.eigenvalues - 1) @ mass.basis.mT
        torch.testing.assert_close(push @ push.mT, scale @ core @ scale)


@pytest.mark.parametrize("name", MASSES)
def test_a_mass_can_be_written_down_and_read_back(name):
    mass = MASSES[name]()
    again = mass_from(mass.tensors())
    assert type(again) is type(mass)
    assert repr(again) == repr(mass)
    torch.testing.assert_close(again.push(torch.ones(1, 6, dtype=F64)), mass.push(torch.ones(1, 6, dtype=F64)))
    assert mass_from({}) is None


def test_two_masses_have_two_names():
    assert repr(HMC(inverse_mass=torch.ones(3))) != repr(HMC(inverse_mass=2 * torch.ones(3)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Diagonal(torch.tensor([1.0, -1.0])), ValueError, "positive finite variances"),
        (lambda: Diagonal(torch.tensor([1.0, math.inf])), ValueError, "positive finite variances"),
        (lambda: Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), ValueError, "symmetric positive definite"),
        (lambda: Dense(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), ValueError, "symmetric positive definite"),
        (lambda: Dense(torch.ones(2, 3)), ValueError, r"\(D, D\)"),
        (lambda: LowRank(torch.ones(3), torch.ones(3, 1), torch.ones(1)), ValueError, "orthonormal"),
        (lambda: LowRank(torch.ones(3), torch.eye(3)[:, :1], -torch.ones(1)), ValueError, "positive finite"),
        (lambda: LowRank(torch.ones(3), torch.eye(2), torch.ones(2)), ValueError, r"\(3,\), \(2, 2\) and \(2,\)"),
        (lambda: as_mass([1.0, 2.0]), TypeError, "got list"),
        (lambda: as_mass(torch.ones(2, dtype=torch.long)), TypeError, "floating-point"),
        (lambda: as_mass(torch.ones(2, 2, 2)), ValueError, r"\(2, 2, 2\)"),
        (lambda: Windows(mass="full"), ValueError, "'diagonal', 'dense', 'low-rank'"),
        (lambda: Windows(estimator="newton"), ValueError, "'welford', 'fisher'"),
        (lambda: Windows(target_acceptance=1.0), ValueError, "between 0 and 1"),
        (lambda: ChEES(target_acceptance=0.0), ValueError, "between 0 and 1"),
        (lambda: ChEES(mass="dense"), ValueError, "diagonal"),
        (lambda: HMC(num_leapfrog=5, length=1.0), ValueError, "goes with num_leapfrog=None"),
        (lambda: HMC(num_leapfrog=None, length=-1.0), ValueError, "positive"),
        (lambda: HMC(step_size=0.1, num_leapfrog=None).tune(), ValueError, "has no length"),
    ],
)
def test_wrong_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_running_moments_are_those_of_all_rows():
    rows = torch.randn(300, 4, generator=generator(0), dtype=F64) @ torch.randn(4, 4, generator=generator(1), dtype=F64)
    rows = rows + 1e6  # a mean far from zero: sums of squares would lose everything
    dense, diagonal = Moments(rows, dense=True), Moments(rows)
    for batch in rows.split([1, 99, 150, 50]):
        dense.update(batch)
        diagonal.update(batch)
    torch.testing.assert_close(dense.covariance(), torch.cov(rows.mT), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(diagonal.covariance(), rows.var(0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dense.mean, rows.mean(0))


def test_between_solves_its_equation():
    first, second = covariance(5, 30.0, seed=1), covariance(5, 4.0, seed=2)
    found = between(first, second)
    torch.testing.assert_close(found @ second @ found, first)
    torch.testing.assert_close(between(first, torch.linalg.inv(first)), first)


def test_shrinkage_goes_with_the_number_of_draws():
    true = covariance(20, 5.0)
    draws = torch.randn(400, 20, generator=generator(3), dtype=F64) @ torch.linalg.cholesky(true).mT
    few, many = torch.cov(draws[:15].mT), torch.cov(draws.mT)
    eigenvalues = torch.linalg.eigvalsh(shrink(few, 15))
    assert float(eigenvalues.min()) > 0.01 * float(eigenvalues.max())  # singular without
    assert float(torch.linalg.norm(shrink(few, 15) - true)) < 0.9 * float(torch.linalg.norm(few - true))
    torch.testing.assert_close(shrink(few, 15).diagonal(), few.diagonal())
    assert float((shrink(many, 400) - many).abs().max()) < 0.05 * float(many.abs().max())
    torch.testing.assert_close(shrink(torch.eye(3, dtype=F64), 10), torch.eye(3, dtype=F64))


def test_fisher_masses_of_a_gaussian_are_exact_after_few_draws():
    """Scores are −C⁻¹(x − μ): C B C = A holds for C itself, whatever the draws."""
    true = covariance(6, 100.0)
    p = Gaussian(torch.ones(6, dtype=F64), true)
    x = p.sample(9, generator(4))
    first, second = torch.cov(x.mT), torch.cov(p.score(x).mT)
    torch.testing.assert_close(between(first, second), true)
    axes = Gaussian(torch.ones(6, dtype=F64), true.diagonal())
    estimate = MassEstimate("diagonal", "fisher", x)
    x = axes.sample(3, generator(5))
    estimate.update(x, axes.score(x))
    torch.testing.assert_close(estimate.estimate().variances, true.diagonal())


@pytest.mark.parametrize("estimator", ["welford", "fisher"])
@pytest.mark.parametrize("mass", ["diagonal", "dense", "low-rank"])
def test_many_draws_give_the_mass(mass, estimator):
    basis = torch.linalg.qr(torch.randn(30, 2, generator=generator(6), dtype=F64))[0]
    true = torch.eye(30, dtype=F64) + basis @ torch.diag(torch.tensor([99.0, 399.0], dtype=F64)) @ basis.mT
    p = Gaussian(torch.zeros(30, dtype=F64), true)
    estimate = MassEstimate(mass, estimator, torch.zeros(1, 30, dtype=F64))
    for batch in p.sample(4000, generator(7)).split(500):
        estimate.update(batch, p.score(batch))
    found = estimate.estimate()
    factor = found.push(torch.eye(30, dtype=F64)).mT
    values = torch.linalg.eigvalsh(factor.mT @ torch.linalg.inv(true) @ factor)  # all 1 for a perfect mass
    condition = float(values.max() / values.min())
    if mass == "diagonal":
        expected = (
            true.diagonal() if estimator == "welford" else (true.diagonal() / torch.linalg.inv(true).diagonal()).sqrt()
        )
        torch.testing.assert_close(found.variances, expected, rtol=0.15, atol=0)
    else:
        # 400 without; a low rank has to undo the diagonal scaling of the other 28 directions as well as it can
        most = {("dense", "welford"): 1.5, ("dense", "fisher"): 1.001, ("low-rank", "welford"): 12.0}
        assert condition < most.get((mass, estimator), 3.0)


def test_coordinates_that_never_move_give_no_mass():
    estimate = MassEstimate("diagonal", "welford", torch.zeros(4, 2))
    estimate.update(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), torch.zeros(2, 2))
    assert estimate.estimate() is None


# --------------------------------------------------------------- step sizes


def test_dual_averaging_reaches_its_goal():
    """An acceptance exp(−ε) has its goal .8 at ε = −log .8; chains are independent of each other."""
    averaging = DualAveraging(torch.tensor([1e-3, 1.0, 50.0], dtype=F64), 0.8)
    for _ in range(2000):
        averaging.update((-averaging.step_size).exp())
    torch.testing.assert_close(averaging.averaged(), torch.full((3,), -math.log(0.8), dtype=F64), rtol=0.05, atol=0)


def test_windows_double_and_end_before_the_last_phase():
    assert window_ends(1000) == (75, [100, 150, 250, 450, 950])
    assert window_ends(500) == (75, [100, 150, 250, 450])
    assert window_ends(100) == (15, [90])
    assert window_ends(10) == (10, [])


@pytest.mark.parametrize(
    "kernel", [MALA(), HMC(num_leapfrog=4), ULA(), UHMC(num_leapfrog=3)], ids=lambda k: type(k).__name__
)
def test_scales_of_eight_orders_are_found(kernel):
    variances = torch.tensor([1e-4, 1e-2, 1.0, 1e2, 1e4], dtype=F64)
    target = ravel(Gaussian(torch.zeros(5, dtype=F64), variances))
    tuned, state = warm_up(kernel, target, torch.randn(64, 5, generator=generator(8), dtype=F64), seed=9)
    assert type(tuned) is type(kernel)
    assert not tuned.adapts
    torch.testing.assert_close(tuned.inverse_mass.variances, variances, rtol=0.35, atol=0)
    assert 0.05 < tuned.step_size < 3
    assert state.x.shape == (64, 5)


@pytest.mark.parametrize(
    ("adaptation", "most"),
    [(Windows(), 0.3), (Windows(mass="dense"), 1.0), (Windows(mass="dense", estimator="fisher"), 1.0)],
    ids=["diagonal", "dense", "dense fisher"],
)
def test_a_dense_mass_allows_long_steps_where_coordinates_are_correlated(adaptation, most):
    p = Gaussian(torch.zeros(10, dtype=F64), covariance(10, 30.0))
    x = torch.randn(8, 10, generator=generator(10), dtype=F64)
    tuned = window_adaptation(HMC(num_leapfrog=5), ravel(p), x, adaptation=adaptation, seed=11)
    assert (tuned.step_size > 0.5) == (most == 1.0)


def test_scores_give_a_first_mass_before_chains_have_crossed_their_target():
    """After 25 of 300 transitions of a tenth of the widest scale, the mass is known to 20 %."""
    variances = torch.tensor([1e-4, 1.0, 1e4], dtype=F64)
    p = Gaussian(torch.zeros(3, dtype=F64), variances)
    x, kernel, target = torch.randn(8, 3, generator=generator(23), dtype=F64), HMC(num_leapfrog=3), ravel(p)
    source, state = generator(24), kernel.init(target, x)
    tuner = Windows().begin(kernel, target, state, 300, source)
    for _ in range(25):
        before = state
        state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, source))
        tuner.update(before, state, info)
    assert float(state.x[:, 2].abs().max()) < 40
    torch.testing.assert_close(tuner.tune.mass.variances, variances, rtol=0.2, atol=0)


def test_each_window_begins_anew():
    """Draws of an early window, before the chains have settled, leave no trace in the mass."""
    x = torch.zeros(50, 2, dtype=F64)
    tuner = Windows().begin(HMC(), None, State(x, x[:, 0], x), 300, generator(0))
    source = generator(22)
    for step in range(300):
        x = torch.randn(50, 2, generator=source, dtype=F64) * (100.0 if step < 150 else 1.0)
        state = State(x, x[:, 0], torch.randn(50, 2, generator=source, dtype=F64))
        accepted = torch.full((50,), 0.8, dtype=F64)
        tuner.update(state, state, Info(accepted, accepted > 0, accepted < 0))
    torch.testing.assert_close(tuner.finish().mass.variances, torch.ones(2, dtype=F64), rtol=0.1, atol=0)


def test_a_mass_that_was_given_is_kept():
    mass = Diagonal(torch.tensor([4.0, 9.0]))
    p = Gaussian(torch.zeros(2), torch.tensor([1.0, 1.0]))
    tuned = window_adaptation(HMC(inverse_mass=mass), ravel(p), torch.zeros(4, 2), warmup=60, seed=0)
    assert tuned.inverse_mass is mass


def test_a_public_loop_with_a_tuned_kernel_has_the_right_variance():
    """Independent chains at one time: the variance of 4,000 has standard error 2.2 %; |z| < 4.5."""
    variances = torch.tensor([0.01, 25.0], dtype=F64)
    target = ravel(Gaussian(torch.zeros(2, dtype=F64), variances))
    start = torch.randn(4000, 2, generator=generator(12), dtype=F64)
    kernel = window_adaptation(HMC(num_leapfrog=3), target, start, warmup=100, seed=13)
    source, state = generator(14), kernel.init(target, start)
    for _ in range(60):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, source))
    z = (state.x.square().mean(0) / variances - 1) * math.sqrt(4000 / 2)
    assert float(z.abs().max()) < 4.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x: window_adaptation(HMC(step_size=0.1), t, x), "leaves nothing to adapt"),
        (lambda t, x: window_adaptation(HMC(step_size=0.1), t, x, adaptation=Windows()), "leaves nothing to adapt"),
        (lambda t, x: window_adaptation(HMC(), t, x, warmup=0), "warmup is an int >= 1"),
        (lambda t, x: window_adaptation(HMC(num_leapfrog=None), t, x[:4]), "at least 8 chains, got 4"),
        (lambda t, x: window_adaptation(MALA(), t, x, adaptation=ChEES()), r"HMC\(num_leapfrog=None\)"),
        (lambda t, x: window_adaptation(HMC(num_leapfrog=None, length=1.0), t, x, adaptation=ChEES()), "together"),
    ],
)
def test_what_cannot_be_adapted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(ravel(Gaussian(torch.zeros(2), 1.0)), torch.zeros(16, 2))


# -------------------------------------------------------------------- ChEES


def test_chees_finds_longer_trajectories_for_wider_targets():
    """Without a mass the length follows the widest coordinate: ten times the scale, ten times the length (± 40 %)."""
    found = []
    for scale in (1.0, 10.0):
        p = Gaussian(torch.zeros(10, dtype=F64), torch.tensor([1.0] * 9 + [scale**2], dtype=F64))
        start = p.sample(128, generator(15))
        kernel = HMC(num_leapfrog=None)
        tuned = window_adaptation(kernel, ravel(p), start, adaptation=ChEES(mass=None), seed=16)
        assert tuned.length > tuned.step_size
        found.append(tuned.length)
    assert 4 < found[1] / found[0] < 14


def test_chees_with_a_mass_mixes_in_few_leapfrogs():
    p = Gaussian(torch.zeros(20), torch.logspace(-2, 2, 20))
    draw = sample(p, chains=64, sampler=MCMC(HMC(num_leapfrog=None), draws=200), seed=17)
    used = 64 * (draw.info.evaluations - draw.info.extra["warmup_evaluations"])
    assert draw.info.extra["rhat"] < 1.02
    assert draw.info.ess > 0.1 * used
    assert draw.stats["n_steps"].shape == (64, 200)
    assert int(draw.stats["n_steps"].sum()) == pytest.approx(used)


def test_the_trajectory_that_chees_sees_is_the_one_that_was_taken():
    p = Gaussian(torch.zeros(3, dtype=F64), 1.0)
    target, kernel = ravel(p), HMC(step_size=0.1, num_leapfrog=None, length=0.7)
    state = kernel.init(target, p.sample(5, generator(18)))
    noise = kernel.noise(state, generator(19))
    new, info = kernel.step(target, state, kernel.tune(state.x), noise)
    assert int(info.num_leapfrog[0]) == math.ceil(2 * float(noise.jitter[0]) * 0.7 / 0.1)
    assert torch.equal(new.x[info.accepted], info.end[info.accepted])
    kinetic = 0.5 * info.velocity.square().sum(1)
    torch.testing.assert_close(info.energy[info.accepted], (new.energy + kinetic)[info.accepted])


# ----------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("kernel", "adaptation"),
    [
        (HMC(num_leapfrog=3), Windows()),
        (HMC(num_leapfrog=3), Windows(mass="dense", estimator="fisher")),
        (MALA(), Windows(mass="low-rank", estimator="fisher")),
        (HMC(num_leapfrog=None), ChEES()),
    ],
    ids=["diagonal", "dense", "low-rank", "ChEES"],
)
def test_a_tuner_goes_on_bit_for_bit(kernel, adaptation):
    quartic = term(lambda x: (x**4).sum(-1) / 4 + x[:, 0] * x[:, 1], kind="energy", event_shape=3)
    target, start = ravel(quartic, dtype=F64), torch.randn(12, 3, generator=generator(20), dtype=F64)
    state = kernel.init(target, start)

    def go(tuner, state, source, steps):
        for _ in range(steps):
            before = state
            state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, source))
            tuner.update(before, state, info)
        return state

    source = generator(21)
    tuner = adaptation.begin(kernel, target, state, 200, source)
    for stop in (10, 90, 170):
        state = go(tuner, state, source, stop - tuner.step)
        tensors, record = tuner.snapshot()
        tensors = {k: v.clone() for k, v in tensors.items()}
        twin, twin_source = adaptation.begin(kernel, target, state, 200, source), generator(0)
        twin.restore(tensors, record)
        twin_source.set_state(source.get_state())
        twin_state = go(twin, state, twin_source, 20)
        state = go(tuner, state, source, 20)
        assert torch.equal(twin_state.x, state.x)
        assert torch.equal(twin.tune.step_size, tuner.tune.step_size)
    assert repr(twin.finish()) == repr(tuner.finish())
