"""Autoregressive models over reals: quadrature, the contract of every term, exact draws, and kernels on products.

Statistical tests state their false-positive rate where they stand; seeds are fixed.
"""

import math

import pytest
import torch

from boltzmix.compose import HMC, MCMC, SMC, Gaussian, sample
from boltzmix.models import Autoregressive
from boltzmix.models.conditionals import DiscretisedLogistic, LogisticMixture
from boltzmix.models.nets import PixelCNN, WaveNet
from boltzmix.models.orders import multiscale
from tests.contracts import Contract, assert_close, contract_cases
from tests.models.test_autoregressive import D, images, rng, transformer
from tests.models.test_nets_causal import drawn


def reals(size=2, seed=7, **options):
    """Mixtures of three logistics of similar widths, which a grid resolves."""
    net = transformer(size, 9, num_classes=2)
    model = drawn(Autoregressive(net, (size,), continuous=True, num_classes=2, **options), seed)
    with torch.no_grad():
        for p in (net.last.weight, net.last.bias):
            p[6:].mul_(0.2)
    return model


def wave_reals():
    net = WaveNet(6, hidden=6, dilations=(1, 2), length=4)
    order = multiscale((1, 2, 2), 1)
    return drawn(Autoregressive(net, (1, 2, 2), continuous=True, order=order, loc=0.3, scale=0.7), seed=8)


def pixel_reals():
    net = PixelCNN(2, 6, hidden=6, layers=1, first=3)
    return drawn(Autoregressive(net, (2, 1, 2), continuous=True), seed=9)


def guided():
    model = reals()
    return model.given(label=0) ** 2 / model.given(label=1)


TERMS = {
    "reals-1d": Contract(lambda: reals(1), span=6.0),
    "reals-2d": Contract(lambda: reals(order=(1, 0), loc=0.5, scale=0.6), span=6.0),
    "reals-label": Contract(lambda: reals().given(label=1), span=6.0),
    "reals-label-rows": Contract(lambda: reals(3).given(label=torch.arange(12) % 2), span=6.0),
    "reals-interval": Contract(lambda: reals(interval=(-1.5, 2.0)), span=2.0, smooth=False),
    "reals-wavenet": Contract(wave_reals, span=6.0),
    "reals-pixelcnn": Contract(pixel_reals, span=6.0),
    "reals-float32": Contract(lambda: reals().float(), dtype=torch.float32, span=6.0),
    "levels": Contract(images),
    "product": Contract(lambda: guided() * Gaussian(torch.zeros(2, dtype=D), 1.0), coarse=False),
}
# Conditions that belong to twelve rows cannot be drawn by the thousand.
BY_ROWS = {f"reals-label-rows-{check}" for check in ("rows", "samples", "stein")}
CASES = [case for case in contract_cases(TERMS) if case.id not in BY_ROWS]


@pytest.mark.parametrize(("check", "contract"), CASES)
def test_contract(check, contract):
    check(contract)


def grid_2d(half, count):
    """Cell centres and the area of a cell."""
    axis = half * ((torch.arange(count, dtype=D) + 0.5) / count * 2 - 1)
    return torch.cartesian_prod(axis, axis), (2 * half / count) ** 2


def integrates_to_one(**options):
    model = reals(**options)
    low, high = options.get("interval", (-12.0, 12.0))
    axis = low + (high - low) * (torch.arange(300, dtype=D) + 0.5) / 300
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * ((high - low) / 300) ** 2
    assert_close(total, 1.0, 1e-3, "the integral of the density")


@pytest.mark.parametrize("options", [{}, {"loc": 1.0, "scale": 0.7}, {"interval": (-0.7, 0.4)}])
def test_reals_integrate_to_one(options):
    integrates_to_one(**options)


def logistic_tails_keep_their_digits():
    """Against the formula in exact arithmetic where float64 would lose it: far tails, narrow bins, far truncations."""
    one = torch.tensor([[0.0, 0.0, 1e-3]], dtype=D)
    spread = float(LogisticMixture()._split(one)[2].exp())
    for x in (-300.0, -3.0, 0.2, 40.0, 500.0):
        z = x / spread
        exact = torch.tensor(-abs(z) - 2 * math.log1p(math.exp(-abs(z))) - math.log(spread), dtype=D)
        assert_close(LogisticMixture().log_prob(one[0], torch.tensor(x, dtype=D)), exact, 1e-12, f"tail at {x}")
    far = LogisticMixture(interval=(800.0, 801.0))
    axis = 800 + (torch.arange(2000, dtype=D) + 0.5) / 2000
    assert_close(far.log_prob(one.expand(2000, 3), axis).exp().mean(), 1.0, 1e-6, "a truncation far in the tail")
    draws = far.draw(one.expand(4000, 3), rng())
    assert bool(((draws >= 800) & (draws <= 801)).all())
    mean = float((axis * far.log_prob(one.expand(2000, 3), axis).exp()).mean())
    assert abs(float(draws.mean()) - mean) < 5 * float(draws.std()) / 4000**0.5
    outputs = torch.randn(50, 9, generator=rng(), dtype=D) * 6
    for k in (1, 2, 17, 256):
        levels = torch.arange(k).expand(50, -1)
        table = DiscretisedLogistic(k).log_prob(outputs[:, None].expand(-1, k, -1), levels)
        assert_close(table.exp().sum(1), torch.ones(50), 1e-10, f"{k} levels")
        assert bool(torch.isfinite(table).all())


def test_logistic_tails_keep_their_digits():
    logistic_tails_keep_their_digits()


def test_levels_of_a_logistic_mixture_are_bins_of_its_density():
    outputs = torch.randn(9, generator=rng(1), dtype=D)
    table = DiscretisedLogistic(5).log_prob(outputs.expand(5, 9), torch.arange(5)).exp()
    fine = torch.linspace(-60, 60, 600_001, dtype=D)
    density = LogisticMixture().log_prob(outputs.expand(len(fine), 9), fine).exp()
    bins = ((fine + 1) / 0.5).round().clamp(0, 4).long()
    expected = torch.zeros(5, dtype=D).index_add(0, bins, density) * float(fine[1] - fine[0])
    assert_close(table, expected, 1e-3, "mass of the bins")


def draws_of_reals_have_the_density(seed=0, **options):
    """Counts in 8 × 8 cells of equal width against the grid's masses."""
    from scipy.stats import chi2

    model, n = reals(**options), 20_000
    low, high = options.get("interval", (-4.0, 4.0))
    axis = low + (high - low) * (torch.arange(240, dtype=D) + 0.5) / 240
    with torch.no_grad():
        logs = model.log_prob(torch.cartesian_prod(axis, axis))
    p = (logs.exp() * ((high - low) / 240) ** 2).reshape(8, 30, 8, 30).sum((1, 3)).flatten()
    draws = model.sample(n, rng(seed))
    cell = ((draws - low) / (high - low) * 8).floor().long()
    inside = ((cell >= 0) & (cell < 8)).all(1)
    counts = torch.bincount(cell[inside] @ torch.tensor([8, 1]), minlength=64).double()
    counts, p = torch.cat([counts, (n - counts.sum())[None]]), torch.cat([p, (1 - p.sum()).clamp(min=0)[None]])
    kept = n * p >= 5
    statistic = float(((counts - n * p)[kept] ** 2 / (n * p)[kept]).sum())
    limit = float(chi2.isf(1e-6, int(kept.sum())))
    assert statistic < limit, f"chi-square {statistic:.0f}, limit {limit:.0f}"


@pytest.mark.parametrize("options", [{}, {"order": (1, 0), "loc": 0.5, "scale": 0.5}, {"interval": (-0.7, 0.9)}])
def test_draws_of_reals_have_the_density(options):
    draws_of_reals_have_the_density(**options)


def test_outside_its_interval_a_density_is_zero():
    model = reals(interval=(-0.5, 0.5))
    x = torch.tensor([[0.6, 0.0], [0.0, -0.6], [0.5, -0.5]], dtype=D)
    energy, score = model.energy_and_score(x)
    assert torch.isposinf(energy).tolist() == [True, True, False]
    assert bool(torch.isfinite(score).all())
    draws = reals(interval=(-0.5, 0.5)).float().sample(5000, rng())
    assert bool((draws.abs() <= 0.5).all())


def test_a_prefix_of_reals_leaves_a_density_over_the_rest():
    model = reals(order=(1, 0))
    value = torch.tensor([0.4], dtype=D)
    view = model.given(prefix=value)
    axis = torch.linspace(-60, 60, 60_001, dtype=D)
    x = torch.stack([axis, torch.full_like(axis, 0.4)], 1)
    with torch.no_grad():
        assert_close(view.log_prob(x).exp().sum() * 120 / 60_000, 1.0, 1e-4, "the integral over the rest")
        marginal = model.log_prob(x).exp().sum() * 120 / 60_000
        assert_close(model.prefix_log_prob(value[None]).exp()[0], marginal, 1e-4, "the density of the prefix")
    assert bool(torch.isposinf(view.energy(x + 0.1)).all())
    assert bool((view.sample(4, rng())[:, 1] == 0.4).all())


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_kernels_hold_a_clamped_prefix_still():
    model = reals(order=(1, 0))
    view = model.given(prefix=torch.tensor([0.4], dtype=D))
    draw = sample(view * view.clamp(), chains=100, sampler=MCMC(HMC(), warmup=100, draws=40), seed=0)
    found = draw.x.reshape(-1, 2)
    assert bool((found[:, 1] == 0.4).all())
    exact = view.sample(20_000, rng())
    for f in (torch.tanh, torch.cos):
        chains = f(draw.x[..., 0]).mean(1)
        error = float(chains.std()) / 100**0.5 + float(f(exact[:, 0]).std()) / 20_000**0.5
        assert abs(float(f(exact[:, 0]).mean() - chains.mean())) < 5 * error  # fails by chance below 1e-6 each
    rows = torch.tensor([[0.1], [0.2], [0.3]], dtype=D)
    clamp = model.given(prefix=rows).clamp()
    assert clamp.mask.tolist() == [False, True]
    assert torch.equal(clamp.value[:, 1:], rows)
    with pytest.raises(TypeError, match=r"continuous models with a prefix"):
        model.clamp()


def samplers_agree_with_a_grid():
    model = reals()
    target = model * Gaussian(torch.tensor([0.5, -0.5], dtype=D), 1.0)
    x, cell = grid_2d(7.0, 200)
    with torch.no_grad():
        logs = -target.energy(x)
    log_z, weights = float(logs.logsumexp(0)) + math.log(cell), logs.softmax(0)
    features = lambda t: torch.cat([t, t**2, t.prod(-1, keepdim=True)], -1)  # noqa: E731
    exact = weights @ features(x)
    draw = sample(target, chains=60, sampler=MCMC(HMC(num_leapfrog=6), warmup=80, draws=60), seed=0)
    chains = features(draw.x).mean(1)
    z = (chains.mean(0) - exact) / (chains.std(0) / 60**0.5)
    assert float(z.abs().max()) < 5, z  # five z-scores over independent chains: false alarms below 5e-6
    smc = sample(target, 2000, sampler=SMC(), seed=0)
    assert abs(smc.log_z - log_z) < 5 * smc.log_z_se + 0.01
    assert smc.info.evaluations > 0


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_hmc_and_smc_on_a_product_agree_with_a_grid():
    samplers_agree_with_a_grid()


def test_reals_of_given_lengths_ignore_what_stands_behind():
    model = drawn(Autoregressive(transformer(3, 6), (3,), continuous=True))
    x, lengths = torch.randn(2, 3, generator=rng(), dtype=D), torch.tensor([1, 3])
    found = model.sequence_log_prob(x, lengths)
    x[0, 1:] = math.nan
    assert torch.equal(model.sequence_log_prob(x, lengths), found)
    assert_close(found[0], model.prefix_log_prob(x[:1, :1])[0], 1e-12, "a sequence of one value")
    assert_close(found[1], model.log_prob(x[1:])[0], 1e-12, "a sequence of all values")
