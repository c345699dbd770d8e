"""Chains: adaptation, moments with their Monte-Carlo error, starts, warnings and resuming.

Seeds are fixed; z-scores use the effective sample size of the chains themselves, |z| < 4.5 is 7e-6 per statistic.
"""

import math
import warnings

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.errors import MissingEnergy, NonFinite, SamplingWarning
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.kernels import HMC, MALA, NUTS, UHMC, ULA, Gibbs, draw_noise
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC
from tests.interruption import assert_same_run, interrupt

VARIANCES = torch.tensor([0.2, 1.0, 3.0])
P = Gaussian(torch.tensor([1.0, -2.0, 0.5]), VARIANCES)


def energy(fn, dim):
    return term(fn, kind="energy", event_shape=dim)


@pytest.mark.parametrize(
    ("kernel", "warmup", "draws"),
    [(None, "auto", 400), (HMC(num_leapfrog=4), 1500, 400), (MALA(), 500, 1500)],
    ids=["default", "HMC", "MALA"],
)
def test_moments_are_right_and_the_step_size_hits_its_target(kernel, warmup, draws):
    draw = sample(P, chains=16, sampler=MCMC(kernel, warmup=warmup, draws=draws), seed=0)
    assert draw.x.shape == (16, draws, 3)
    assert draw.chains
    assert draw.log_z is None
    assert draw.log_weights.shape == (16, draws)
    goal = (kernel or NUTS()).target_acceptance
    # the average of log step sizes sits below the step of the average acceptance, which falls steeply there
    assert -0.03 < draw.info.acceptance - goal < 0.07
    sizes = ess(draw.x)
    assert draw.info.ess == pytest.approx(float(sizes.min()))
    assert draw.info.extra["rhat"] < 1.05
    z = (draw.x.flatten(0, 1).double().mean(0) - P.mean) / (VARIANCES / sizes).sqrt()
    assert float(z.abs().max()) < 4.5
    squares = (draw.x - P.mean) ** 2
    z = (squares.flatten(0, 1).double().mean(0) / VARIANCES - 1) * (ess(squares) / 2).sqrt()
    assert float(z.abs().max()) < 4.5


@pytest.mark.parametrize("kernel", [ULA(), UHMC(num_leapfrog=3)], ids=["ULA", "UHMC"])
def test_unadjusted_kernels_adapt_to_a_small_bias(kernel):
    score_only = term(lambda x: -x, kind="score", event_shape=20)
    draw = sample(score_only, chains=64, sampler=MCMC(kernel, warmup=300, draws=200), seed=1)
    assert draw.info.acceptance > 0.94
    assert abs(float(draw.x.var()) - 1) < 0.06


def test_one_chain_in_the_tails_does_not_freeze_the_others():
    heavy = energy(lambda x: (1 + (x**2).sum(-1)).log() * 3, 2)
    init = torch.zeros(8, 2)
    init[0] = 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # R-hat is what that chain deserves
        draw = sample(heavy, chains=8, sampler=MCMC(HMC(num_leapfrog=5), warmup=300, draws=300), init=init, seed=2)
    assert draw.info.step_size > 0.2
    rest = draw.x[1:]
    assert float(ess(rest).min()) > 200
    quartic = energy(lambda x: (x**4).sum(-1), 2)  # its gradient in the tails makes any shared step tiny
    init[0] = 50.0
    draw = sample(quartic, chains=8, sampler=MCMC(HMC(num_leapfrog=5), warmup=300, draws=300), init=init, seed=2)
    assert draw.info.step_size > 0.1
    assert draw.info.extra["rhat"] < 1.05


def test_without_adaptation_the_kernel_runs_exactly_as_given():
    kernel = HMC(step_size=0.4, num_leapfrog=3)
    init = torch.zeros(5, 3)
    draw = sample(P, chains=5, sampler=MCMC(kernel, adapt=False, draws=40), init=init, seed=3)
    assert draw.info.step_size == pytest.approx(0.4)
    assert draw.info.extra["warmup"] == 0
    target, generator = ravel(P), torch.Generator().manual_seed(3)
    state, noise = kernel.init(target, init), draw_noise(init, generator, 40)
    for step in range(40):
        state, _ = kernel.step(target, state, kernel.tune(init), noise[step])
        assert torch.equal(state.x, draw.x[:, step])
    given = sample(P, chains=5, sampler=MCMC(kernel, warmup=0, draws=40), init=init, seed=3)
    assert torch.equal(given.x, draw.x)
    assert draw.info.evaluations == 1 + 40 * 3


def test_a_warmup_without_adaptation_is_thrown_away():
    kernel, init = MALA(step_size=0.1), torch.zeros(4, 3)
    whole = sample(P, chains=4, sampler=MCMC(kernel, warmup=0, draws=128), init=init, seed=4)
    late = sample(P, chains=4, sampler=MCMC(kernel, warmup=64, draws=64), init=init, seed=4)
    assert torch.equal(late.x, whole.x[:, 64:])


def test_thinning_keeps_every_kth_draw():
    kernel, init = MALA(step_size=0.1), torch.zeros(4, 3)
    whole = sample(P, chains=4, sampler=MCMC(kernel, draws=120), init=init, seed=5)
    thinned = sample(P, chains=4, sampler=MCMC(kernel, draws=40, thin=3), init=init, seed=5)
    assert torch.equal(thinned.x, whole.x[:, 2::3])
    assert thinned.info.evaluations == whole.info.evaluations


def test_few_draws_and_one_chain_are_allowed():
    draw = sample(P, chains=1, sampler=MCMC(MALA(step_size=0.1), draws=2), seed=6)
    assert draw.x.shape == (1, 2, 3)
    assert math.isnan(draw.info.ess)
    with pytest.raises(ValueError, match="warmup=0 leaves no time"):
        sample(P, chains=1, sampler=MCMC(HMC(), warmup=0), seed=6)


def test_starts_are_inside_the_support_and_counted():
    inside = energy(lambda x: torch.where((x - 1.5).abs().amax(-1) < 0.4, (x**2).sum(-1), torch.inf), 2)
    draw = sample(inside, chains=6, sampler=MCMC(HMC(step_size=0.1), draws=20), seed=7)
    assert bool(((draw.x - 1.5).abs() < 0.4).all())
    assert draw.info.evaluations == 32 + 1 + 20 * 10
    nowhere = energy(lambda x: torch.where((x - 9).abs().amax(-1) < 0.4, (x**2).sum(-1), torch.inf), 2)
    with pytest.raises(NonFinite, match=r"none of 192 starts.*init="):
        sample(nowhere, chains=6, seed=7)
    draw = sample(nowhere, chains=6, init=torch.full((6, 2), 9.0), sampler=MCMC(MALA(step_size=0.01), draws=20), seed=7)
    assert bool(((draw.x - 9).abs() < 0.4).all())


def test_every_evaluation_is_counted():
    rows = []
    counted = energy(lambda x: rows.append(x.shape[0]) or (x**2).sum(-1), 2)
    draw = sample(counted, chains=6, sampler=MCMC(HMC(num_leapfrog=3), warmup=50, draws=30), seed=8)
    assert draw.info.evaluations * 6 == sum(rows) == 6 * (32 + 1 + 80 * 3)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        (torch.zeros(3, 3), ValueError, "3 starts and chains=4"),
        (torch.zeros(4, 2), ValueError, "expects x of shape"),
        (torch.zeros(4, 3, dtype=torch.float64), TypeError, "dtype=torch.float64"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, "floating-point"),
        (torch.full((4, 3), torch.nan), NonFinite, "4 of 4 starts"),
        ([[0.0] * 3] * 4, TypeError, "init is a state"),
        ({"a": torch.zeros(4, 3)}, TypeError, "got a dict"),
        (P, TypeError, "init is a state"),
    ],
    ids=str,
)
def test_starts_that_do_not_fit_are_refused(init, error, message):
    with pytest.raises(error, match=message):
        sample(P, chains=4, init=init, sampler=MCMC(MALA(step_size=0.1)), seed=0)


def test_chains_that_disagree_warn():
    modes = GaussianMixture(torch.tensor([[-20.0, 0.0], [20.0, 0.0]]), 1.0)
    init = torch.tensor([[-20.0, 0.0], [20.0, 0.0]])
    with pytest.warns(SamplingWarning, match=r"R-hat is .*SMC"):
        sample(modes, chains=2, sampler=MCMC(HMC(step_size=0.5), draws=100), init=init, seed=9)


def test_chains_that_never_move_warn_and_have_no_effective_size():
    with pytest.warns(SamplingWarning, match="1 of 1 chains never moved.*smaller step size"):
        draw = sample(P, chains=1, sampler=MCMC(HMC(step_size=80.0), draws=50), seed=10)
    assert math.isnan(draw.info.ess)


def test_divergences_are_counted_and_warn():
    semicircle = energy(lambda x: -2 * (4 - x[:, 0] ** 2).sqrt(), 1)
    with pytest.warns(SamplingWarning, match="proposals were not finite and were rejected"):
        draw = sample(semicircle, chains=8, sampler=MCMC(MALA(step_size=0.8), draws=200), seed=11)
    assert draw.info.divergences > 10
    assert bool(torch.isfinite(draw.x).all())


def test_clamped_coordinates_stay_also_with_a_condition_for_each_chain():
    joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    values = torch.stack([torch.tensor([-2.0, 0.0, 1.0, 2.0]), torch.zeros(4)], 1)
    target = joint * Clamp(torch.tensor([True, False]), values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # four different targets: R-hat must be large
        draw = sample(target, chains=4, sampler=MCMC(HMC(num_leapfrog=4), warmup=200, draws=800), seed=12)
    assert torch.equal(draw.x[:, :, 0], values[:, :1].expand(4, 800))
    rest = draw.x[:, :, 1]
    sizes = torch.stack([ess(row[None, :]) for row in rest])
    z = (rest.double().mean(1) - 0.8 * values[:, 0]) / (0.36 / sizes).sqrt()
    assert float(z.abs().max()) < 4.5


def test_named_variables_and_images_come_back_in_shape():
    named = sample(
        P.on("a") * Gaussian(torch.zeros(2, 2), 1.0).on("b"), chains=3, sampler=MCMC(HMC(step_size=0.3), draws=9)
    )
    assert {k: tuple(v.shape) for k, v in named.x.items()} == {"a": (3, 9, 3), "b": (3, 9, 2, 2)}
    image = sample(Gaussian(torch.zeros(1, 4, 4), 1.0), chains=2, sampler=MCMC(HMC(step_size=0.3), draws=5))
    assert image.x.shape == (2, 5, 1, 4, 4)


def test_score_only_terms_need_unadjusted_kernels():
    score_only = term(lambda x: -x, kind="score", event_shape=2)
    with pytest.raises(MissingEnergy, match=r"NUTS\(\) needs energies"):
        sample(score_only, chains=2)
    assert sample(score_only, chains=2, sampler=MCMC(ULA(step_size=0.1), draws=5), seed=0).x.shape == (2, 5, 2)


@pytest.mark.parametrize("share", [0.3, 0.8], ids=["in the warm-up", "in the draws"])
def test_a_killed_run_goes_on_bit_for_bit(share, tmp_path):
    sampler = MCMC(HMC(num_leapfrog=3), warmup=150, draws=200)
    found = interrupt(lambda x: (x**4).sum(-1), sampler, share, tmp_path / "run", seed=13)
    assert_same_run(found.resumed, found.whole)
    with pytest.raises(ValueError, match="another run.*seed"):
        found.again(14)


def test_a_target_that_is_never_finite_again_says_so():
    """Finite at the starts and NaN from then on: no step size is small enough."""
    calls = []

    def once(x):
        calls.append(len(x))
        return -x.square().sum(1) * (1.0 if len(calls) < 6 else math.nan)

    target = term(once, kind="log_prob", event_shape=2)
    with pytest.raises(NonFinite, match=r"no step size is small enough.*init="):
        sample(target, chains=2, sampler=MCMC(HMC(num_leapfrog=1), warmup=300, draws=10), seed=0)


def test_kernels_without_a_step_size_report_none():
    cubes = term(lambda x: 0.1 * x.sum(1), kind="energy", event_shape=2, support="integers(2)")
    draw = sample(cubes, chains=2, sampler=MCMC(Gibbs(), warmup=5, draws=10), seed=0)
    assert math.isnan(draw.info.step_size)
    assert "step size" not in str(draw.summary())
    assert repr(draw) == "<Draw by MCMC(Gibbs): x (2, 10, 2); summary() has the numbers>"
