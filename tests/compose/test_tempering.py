"""Parallel tempering: exact at every temperature, swaps from cached energies, an even ladder, the evidence.

Statistical checks start from exact draws of all replicas; seeds are fixed, and each bound is a two-sided normal
quantile such that correct code fails the check with probability ``FALSE_POSITIVES``, shared among its statistics.
"""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.compose.adaptation.temperatures import Temperatures, equalised, regridded, round_ends
from boltzmix.compose.errors import NonFinite
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels import Barker, EllipticalSlice, GibbsWithGradients, ParallelTempering, RandomWalk
from boltzmix.compose.kernels.ghmc import GHMC
from boltzmix.compose.kernels.ladder_record import bridge, evidence, suggested
from boltzmix.compose.kernels.tempered import Ends, Parts, TemperedTarget, weights_of
from boltzmix.compose.kernels.tempering import swap_chances, swap_order
from tests.interruption import assert_same_run, interrupt
from tests.kernel_contracts import bound
from tests.kernel_contracts import seeded as generator

CHAINS = 4000
MEAN, VARIANCE = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
TARGET = bm.Gaussian(MEAN, VARIANCE)
REFERENCE = bm.Gaussian(torch.zeros(2, dtype=torch.float64), 9.0)
MODES = bm.GaussianMixture([[-15.0], [15.0]], 1.0, [0.25, 0.75])


def density(fn, dim, **options):
    return bm.term(fn, kind="energy", event_shape=(dim,), **options)


def tempered_moments(kernel):
    """Means and variances ``(T, D)`` of p^β, or of the geometric path between two Gaussians."""
    betas = kernel.betas(2)[:, None]
    start = 0.0 if kernel.reference is None else (1 - betas) / 9.0
    variance = 1.0 / (start + betas / VARIANCE)
    return variance * betas * MEAN / VARIANCE, variance


def placed(kernel, target, replicas, seed):
    """A state with these replicas ``(N, T, D)``."""
    state = kernel.init(target, replicas[:, -1], generator(seed))
    parts = Ends(kernel.kernel, target, kernel.reference).evaluate(replicas.flatten(0, 1))
    energies, scores = (t.unflatten(0, replicas.shape[:2]) for t in (parts.energies, parts.scores))
    found = {"replicas": replicas, "energies": energies, "scores": scores}
    return state.having({**found, "energy": energies[:, -1, 0], "score": scores[:, -1, 0]})


def check_stationary(kernel, steps=8, seed=2, chains=CHAINS):
    """Exact draws at every temperature stay exact; the state after the last step."""
    mean, variance = tempered_moments(kernel)
    target, source = ravel(TARGET), generator(seed)
    noise = torch.randn(chains, *mean.shape, generator=source, dtype=torch.float64)
    state = placed(kernel, target, mean + variance.sqrt() * noise, 3)
    tune, moved = kernel.tune(state.x), 0.0
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
        moved += float(info.swaps.mean()) / steps
    assert 0.1 < moved < 0.95
    z_mean = (state.replicas.mean(0) - mean) / (variance / chains).sqrt()
    squares = ((state.replicas - mean) ** 2).mean(0)
    z_variance = (squares / variance - 1) * math.sqrt(chains / 2)
    together = torch.stack([z_mean, z_variance])
    assert float(together.abs().max()) < bound(together.numel())
    assert torch.equal(state.x, state.replicas[:, -1])
    return state


LADDERS = {
    "whole energy": {"temperatures": [1.0, 2.0, 5.0, 12.0]},
    "reference": {"temperatures": [1.0, 2.0, 6.0, 40.0, math.inf], "reference": REFERENCE},
}
INNER = {
    "MALA": bm.MALA(step_size=0.4),
    "HMC": bm.HMC(step_size=0.7, num_leapfrog=2),
    "RandomWalk": RandomWalk(step_size=1.2),
    "NUTS": bm.NUTS(step_size=0.6, max_depth=4),
    "GHMC": GHMC(step_size=0.7, alpha=0.8),
    "Barker": Barker(step_size=0.9),
    "EllipticalSlice": EllipticalSlice(prior=bm.Gaussian(torch.zeros(2, dtype=torch.float64), 4.0)),
}


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("inner", ["MALA", "GHMC"])
def test_exact_draws_at_all_temperatures_stay_exact(inner, ladder):
    check_stationary(ParallelTempering(INNER[inner], **LADDERS[ladder]))


def test_swaps_alone_leave_every_temperature_as_it_is():
    # steps of 1e-6 move nothing: what is left are swaps, and one draw of the reference
    check_stationary(ParallelTempering(bm.MALA(step_size=1e-12), **LADDERS["whole energy"]), steps=11)


def test_a_ladder_that_ends_below_its_reference_is_exact_at_its_own_hottest_temperature():
    kernel = ParallelTempering(INNER["MALA"], temperatures=[1.0, 2.0, 4.0], reference=REFERENCE)
    state = check_stationary(kernel)
    assert kernel.recorder(ravel(TARGET), state, 10).log_z() is None  # the hottest density is not normalised


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("inner", INNER)
def test_cached_energies_and_scores_are_those_of_their_replicas(inner, ladder):
    kernel = ParallelTempering(INNER[inner], **LADDERS[ladder])
    target, source = ravel(TARGET), generator(4)
    x = torch.randn(20, 2, generator=source, dtype=torch.float64)
    state = kernel.init(target, x, source)
    for _ in range(6):
        state, _ = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
    assert len(state.replicas.unique(dim=0)) == 20
    parts = Ends(kernel.kernel, target, kernel.reference).evaluate(state.replicas.flatten(0, 1))
    torch.testing.assert_close(state.energies.flatten(0, 1), parts.energies)
    torch.testing.assert_close(state.scores.flatten(0, 1), parts.scores, equal_nan=True)
    assert torch.equal(state.energy, state.energies[:, -1, 0])


def test_a_swap_costs_no_evaluation():
    for inner, each in ((bm.HMC(step_size=0.7, num_leapfrog=3), 3), (bm.MALA(step_size=0.4), 1)):
        kernel = ParallelTempering(inner, temperatures=[1.0, 2.0, 4.0])
        target, source = ravel(TARGET), generator(4)
        state = kernel.init(target, torch.zeros(7, 2, dtype=torch.float64), source)
        before = target.view.counter.rows
        kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
        assert target.view.counter.rows - before == 7 * 3 * each


def test_swap_chances_are_the_ratio_of_joint_densities():
    betas = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    energies = 3 * torch.randn(50, 4, 2, generator=generator(5), dtype=torch.float64)
    chances = swap_chances(betas, Parts(energies, torch.zeros(50, 4, 2, 1)), True)

    def log_density(row, t):
        return -(betas[t] * row[:, 0] + (1 - betas[t]) * row[:, 1])

    for i in range(3):
        here, there = energies[:, i], energies[:, i + 1]
        ratio = (
            log_density(there, i) + log_density(here, i + 1) - log_density(here, i) - log_density(there, i + 1)
        )  # fmt: skip
        torch.testing.assert_close(chances[:, i], ratio.exp().clamp(max=1.0))


def test_what_has_no_finite_energy_or_score_never_reaches_the_target():
    betas = torch.tensor([0.0, 1.0])
    hot = torch.tensor([-torch.inf, torch.nan, torch.inf, -5.0, -5.0])
    energies = torch.stack([torch.stack([hot, torch.zeros(5)], 1), torch.tensor([[2.0, 2.0]]).expand(5, 2)], 1)
    scores = torch.zeros(5, 2, 2, 1)
    scores[3, 0, 0] = torch.nan
    assert swap_chances(betas, Parts(energies, scores), True).flatten().tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert swap_chances(betas, Parts(energies, scores), False).flatten().tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_even_and_odd_pairs_take_turns():
    ones, zeros = torch.ones(2, 4), torch.zeros(2, 4)
    parity = torch.tensor([0, 1])
    assert swap_order(ones, zeros, parity).tolist() == [[1, 0, 3, 2, 4], [0, 2, 1, 4, 3]]
    assert swap_order(zeros, zeros, parity).tolist() == [[0, 1, 2, 3, 4]] * 2
    kernel = ParallelTempering(bm.MALA(step_size=0.1), temperatures=[1.0, 2.0, 4.0])
    target, source = ravel(TARGET), generator(4)
    state = kernel.init(target, torch.zeros(3, 2, dtype=torch.float64), source)
    for parity in (0, 1, 0):
        assert state.parity.tolist() == [parity] * 3
        state, _ = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))


def test_replicas_travel_straight_where_nothing_is_refused():
    flat = density(lambda x: REFERENCE.energy(x) + 3.0, 2)
    kernel = ParallelTempering(RandomWalk(step_size=0.1), temperatures=[1, 2, 4, 8, math.inf], reference=REFERENCE)
    target, source = ravel(flat, dtype=torch.float64), generator(6)
    state = kernel.init(target, torch.zeros(2, 2, dtype=torch.float64), source)
    trips = []
    for _ in range(20):
        state, info = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
        trips.append(info.trips.tolist())
    assert trips[:5] == [[False] * 2] * 3 + [[True] * 2, [False] * 2] or sum(t[0] for t in trips[:4]) <= 1
    assert sum(t[0] for t in trips[6:]) == 7  # one replica arrives in every other transition


def test_energies_and_scores_between_the_ends():
    x = torch.randn(6, 2, generator=generator(9), dtype=torch.float64)
    betas = torch.tensor([0.0, 0.1, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    for reference in (None, REFERENCE):
        ends = Ends(bm.MALA(step_size=0.1), ravel(TARGET), reference)
        tempered = TemperedTarget(ends, weights_of(betas, ends.count))
        y = x.clone().requires_grad_()
        wanted = betas * TARGET._energy(y, None)
        if reference is not None:
            wanted = wanted + (1 - betas) * reference._energy(y, None)
        (slope,) = torch.autograd.grad(wanted.sum(), y)
        energy, score = tempered.energy_and_score(x)
        torch.testing.assert_close(energy, wanted.detach())
        torch.testing.assert_close(score, -slope)
        torch.testing.assert_close(tempered.score(x), -slope)
        torch.testing.assert_close(tempered.energy(x), wanted.detach())
        torch.testing.assert_close(tempered.energies(x[:, None].expand(-1, 3, -1))[:, 1], wanted.detach())
        with pytest.raises(ValueError, match="every row has its own"):
            tempered.score(x[:3])
        with pytest.raises(AttributeError, match="at several temperatures"):
            tempered.log_prob  # noqa: B018


def test_no_weight_hides_what_is_not_finite():
    parts = Parts(torch.tensor([[torch.inf, 2.0]]), torch.tensor([[[torch.nan], [3.0]]]))
    energy, score = parts.at(weights_of(torch.zeros(1), 2))
    assert energy.tolist() == [2.0]
    assert score.tolist() == [[3.0]]


# ------------------------------------------------------------------------- ladder


@pytest.mark.parametrize("logs", [True, False])
def test_an_equalised_ladder_cuts_the_barrier_into_equal_pieces(logs):
    start = 0.01 if logs else 0.0
    betas = torch.linspace(0, 1, 400, dtype=torch.float64) ** 3 * (1 - start) + start
    barrier = betas**0.3 * 4
    found = equalised(betas, barrier.diff(), 9, logs)
    assert found[0] == betas[0]
    assert found[-1] == 1
    assert bool((found.diff() > 0).all())
    pieces = (found**0.3 * 4).diff()
    torch.testing.assert_close(pieces, pieces.mean().expand(8), rtol=0.1, atol=0.0)
    still = equalised(betas, torch.zeros(399, dtype=torch.float64), 5, logs)
    assert bool((still.diff() > 0).all())


def test_values_on_another_ladder():
    old, new = torch.tensor([0.1, 0.4, 1.0]), torch.tensor([0.1, 0.25, 0.4, 0.7, 1.0])
    values = torch.tensor([[1.0, 4.0, 16.0]])
    torch.testing.assert_close(regridded(values, old, new), torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]))


def test_rounds_double_and_leave_a_fifth():
    ends = round_ends(500)
    assert ends[-1] == 400
    widths = torch.tensor([0, *ends]).diff()
    assert bool((widths[1:] >= 2 * widths[:-1]).all())
    assert round_ends(10) == [8]
    assert suggested(4.2) == 9


def gaussian_path(dim=4, scale=100.0):
    """A wide reference and a narrow target, log Z = 1.5."""
    log_z = 1.5
    target = density(lambda x: 0.5 * (x - 1).square().sum(1) + 0.5 * dim * math.log(2 * math.pi) - log_z, dim)
    return target, bm.Gaussian(torch.zeros(dim), scale), log_z


def test_the_warm_up_evens_out_refusals_and_finds_log_z():
    target, reference, log_z = gaussian_path()
    kernel = ParallelTempering(bm.HMC(num_leapfrog=3), reference=reference)
    draw = bm.sample(target, chains=30, sampler=bm.MCMC(kernel, warmup=200, draws=250), seed=1)
    extra = draw.info.extra
    swaps = torch.tensor(extra["swap_acceptance"])
    assert len(extra["temperatures"]) == len(swaps) + 1
    assert abs(len(swaps) - 2 * extra["barrier"]) < 2
    assert float(swaps.std()) < 0.08
    assert extra["temperatures"][0] == 1.0
    assert extra["temperatures"][-1] == math.inf
    assert 0.003 < draw.log_z_se < 0.1
    assert abs(draw.log_z - log_z) < 4 * draw.log_z_se
    assert extra["round_trips"] > 100
    assert abs(draw.info.acceptance - 0.75) < 0.12
    z = (draw.x.mean((0, 1)) - 1) / (draw.x.mean(1).std(0) / math.sqrt(30))
    assert float(z.abs().max()) < 4.5


def test_the_evidence_of_cells_and_its_error():
    betas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    source, cells = generator(8), []
    for _ in range(40):  # E_ref: N(0, 1); V = x² / 2 + 0.3, so N(0, 1 / (1 + β)) and log Z = −0.3 − log(2) / 2
        x = torch.randn(200, 3, generator=source, dtype=torch.float64) / (1 + betas).sqrt()
        cells.append(bridge(betas, 0.5 * x * x + 0.3).logsumexp(0))
    log_z, error = evidence(torch.stack(cells))
    assert 0.001 < error < 0.02
    assert abs(log_z + 0.3 + 0.5 * math.log(2)) < 4 * error
    same = evidence(torch.stack(cells * 4))
    assert abs(same[0] - log_z) < 1e-9
    assert abs(same[1] - error / 2) < 0.1 * error


def test_steps_and_masses_differ_by_temperature():
    kernel = ParallelTempering(bm.MALA(), temperatures=[1.0, 10.0, 100.0])
    target = bm.Gaussian(torch.zeros(2), torch.tensor([1.0, 25.0]))
    tuned = bm.window_adaptation(kernel, ravel(target), torch.randn(60, 2, generator=generator(1)), warmup=250, seed=1)
    assert not tuned.adapts
    assert tuned.temperatures == pytest.approx((1.0, 10.0, 100.0))
    variances = tuned.tuning.variances
    torch.testing.assert_close(variances[:, 1] / variances[:, 0], torch.full((3,), 25.0), rtol=0.5, atol=0.0)
    torch.testing.assert_close(variances[:2] / variances[1:], torch.full((2, 2), 10.0), rtol=0.6, atol=0.0)
    state = tuned.init(ravel(target), torch.randn(5, 2), generator(2))
    _, info = tuned.step(ravel(target), state, tuned.tune(state.x), tuned.noise(state, generator(3)))
    assert info.rates.shape == (5, 3)
    assert repr(tuned) != repr(kernel)


# ------------------------------------------------------------------- whole runs


def test_masses_of_modes_that_no_chain_crosses_between():
    kernel = ParallelTempering(bm.HMC(num_leapfrog=3))
    draw = bm.sample(MODES, chains=20, sampler=bm.MCMC(kernel, warmup=200, draws=250), seed=0)
    share = (draw.x > 0).double().mean((1, 2))
    assert abs(float(share.mean()) - 0.75) < 4 * float(share.std()) / math.sqrt(20)
    assert float(share.std()) / math.sqrt(20) < 0.05
    assert draw.log_z is None
    assert draw.x.shape == (20, 250, 1)


def test_discrete_variables():
    weights = torch.tensor([0.0, 3.0, 0.0])  # two good values apart by a bad one, and neighbours that agree

    def energy(x):
        return weights[x.long()].sum(1) + 2.0 * (x[:, :-1] != x[:, 1:]).to(torch.float32).sum(1)

    target = density(energy, 3, support="integers(3)")
    states = torch.cartesian_prod(*[torch.arange(3)] * 3)
    exact = (-energy(states)).softmax(0)
    sampler = bm.MCMC(ParallelTempering(bm.Gibbs(), temperatures=[1, 2, 5]), warmup=60, draws=150)
    draw = bm.sample(target, chains=100, sampler=sampler, seed=0)
    index = (draw.x * torch.tensor([9, 3, 1])).sum(-1)
    shares = torch.stack([(index == k).double().mean(1) for k in range(27)], 1)
    z = (shares.mean(0) - exact) / (shares.std(0) / 10).clamp(min=1e-3)
    assert float(z.abs().max()) < 5


def test_gradients_of_discrete_variables():
    def energy(x):
        return 0.7 * (2 * x - 1).prod(1) - 0.2 * x.sum(1)

    target = density(energy, 3, support="integers(2)", relaxed="values")
    states = torch.cartesian_prod(*[torch.arange(2)] * 3)
    exact = (-energy(states.float())).softmax(0)
    kernel = ParallelTempering(GibbsWithGradients(), temperatures=[1, 2])
    draw = bm.sample(target, chains=100, sampler=bm.MCMC(kernel, warmup=60, draws=150), seed=0)
    index = (draw.x * torch.tensor([4, 2, 1])).sum(-1)
    shares = torch.stack([(index == k).double().mean(1) for k in range(8)], 1)
    assert float(((shares.mean(0) - exact) / (shares.std(0) / 10)).abs().max()) < 5


@pytest.mark.parametrize(("share", "dtype"), [(0.4, torch.float32), (0.8, torch.float32), (0.8, torch.float64)])
def test_a_killed_run_goes_on_bit_for_bit(share, dtype, tmp_path):
    kernel = ParallelTempering(GHMC(), reference=bm.Gaussian(torch.zeros(2, dtype=dtype), 4.0))
    sampler = bm.MCMC(kernel, warmup=130, draws=130)
    found = interrupt(lambda x: (x**4 - 3 * x**2).sum(-1), sampler, share, tmp_path / "run", seed=13, dtype=dtype)
    assert_same_run(found.resumed, found.whole)


def test_a_target_that_is_no_term():
    class Target:
        has_energy = True

        def score(self, x):
            return -x

        def energy_and_score(self, x):
            return 0.5 * x.square().sum(1), -x

    for reference in (None, bm.Gaussian(torch.zeros(2), 4.0)):
        kernel = ParallelTempering(bm.HMC(step_size=0.5), temperatures=3, reference=reference)
        state = kernel.init(Target(), torch.zeros(3, 2), generator(0))
        state, info = kernel.step(Target(), state, kernel.tune(state.x), kernel.noise(state, generator(1)))
        assert info.swaps.shape == (3, 2)


# ------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": bm.HMC}, TypeError, r"class HMC; write HMC\(\)"),
        ({"kernel": bm.UHMC()}, TypeError, "unadjusted"),
        ({"kernel": ParallelTempering()}, TypeError, "around itself"),
        ({"temperatures": 1}, ValueError, "2 temperatures or more"),
        ({"temperatures": [1.0, 3.0, 2.0]}, ValueError, "increases from 1"),
        ({"temperatures": [2.0, 3.0]}, ValueError, "increases from 1"),
        ({"temperatures": [1.0, math.inf]}, ValueError, "give reference="),
        ({"temperatures": "many"}, TypeError, "increases from 1"),
        ({"hottest": 1.0}, ValueError, "above 1"),
        ({"hottest": math.inf}, ValueError, "finite"),
        ({"reference": 3.0}, TypeError, "term such as Gaussian"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ParallelTempering(**arguments)


def test_wrong_calls():
    kernel = ParallelTempering(bm.HMC(step_size=0.5), temperatures=3, reference=bm.Gaussian(torch.zeros(3), 4.0))
    with pytest.raises(ValueError, match=r"reference|shape|variable"):
        bm.sample(MODES, chains=2, sampler=bm.MCMC(kernel, warmup=5, draws=5), seed=0)
    with pytest.raises(ValueError, match="none|no step_size"):
        ParallelTempering(bm.HMC(), temperatures=[1, 2]).tune(torch.zeros(1, 1))
    windows = bm.MCMC(ParallelTempering(bm.HMC()), warmup=5, draws=5, adapt=bm.Windows())
    with pytest.raises(TypeError, match="Temperatures"):
        bm.sample(MODES, chains=2, sampler=windows, seed=0)
    with pytest.raises(TypeError, match="adapts ParallelTempering"):
        bm.sample(MODES, chains=2, sampler=bm.MCMC(bm.HMC(), warmup=5, draws=5, adapt=Temperatures()), seed=0)
    with pytest.raises(ValueError, match="most"):
        Temperatures(most=1)
    outside = ParallelTempering(bm.HMC(step_size=0.5), temperatures=3, reference=bm.Box([-1.0], [1.0]))
    with pytest.raises(NonFinite, match="outside the support of the reference"):
        outside.init(ravel(MODES), torch.full((2, 1), 5.0), generator(0))
