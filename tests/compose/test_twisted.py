"""Twisted sampling: exact for the chain and for the density, evidence, populations, counts, ends of the schedule.

Closed forms are compared by t-statistics over ten independent populations of one run: 9 degrees of freedom, bound 5, a
false-positive rate of 7e-4 for each number (about 150 numbers; seeds are fixed and were not searched).
"""

import math
import warnings

import pytest
import torch
from torch import nn

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp, Denoised
from boltzmix.compose.errors import MissingEnergy, NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.measurements import Measurement
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import Reverse, Twisted, base, twisted_run
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.particles import Populations
from boltzmix.compose.samplers.twisting import Twist
from tests.contracts import Contract, contract_cases

COUNT, BOUND = 10, 5.0
F64 = torch.float64


def f(*values):
    return torch.tensor(values, dtype=F64)


MEAN = f(0.3, -0.5, 0.1)
SPREAD = f([1.0, 0.5, 0.2], [0.5, 0.8, -0.1], [0.2, -0.1, 0.5])
P = Gaussian(MEAN, SPREAD)
ROWS = f([1.0, 0.5, 0.0], [0.0, -0.3, 1.0])
Y = f(1.0, 0.3, -0.6)
MASK = torch.tensor([True, False, True])
LEVELS = (20.0, 5.0, 1.5, 0.5, 0.15, 0.05)
EYE = torch.eye(3, dtype=F64)


def score_of(p, low=0.002, high=80.0):
    """A noised density known by its score alone."""
    return term(
        lambda x, s: p._score(x, s), kind="score", path="noised", event_shape=p.event_shape, sigma_range=(low, high)
    )


def function(h, y, noise):
    """log N(y; h x, noise) as a plain function."""
    likelihood = torch.distributions.MultivariateNormal(y, noise)
    return term(lambda x: likelihood.log_prob(x @ h.mT), kind="log_prob", event_shape=3)


def chain_covariance(variance, c2, levels):
    """Covariance of the reverse chain's last states: all of it is linear."""
    spread = SPREAD + levels[0] ** 2 * EYE
    for sigma, following in zip(levels, (*levels[1:], 0.0), strict=True):
        gain = SPREAD @ torch.linalg.inv(SPREAD + sigma**2 * EYE)
        share = (following / sigma) ** 2
        step = gain + share * (EYE - gain)
        v = {"small": 0 * c2, "large": 0 * c2 + sigma**2, "matched": sigma**2 * c2 / (sigma**2 + c2)}[variance]
        noise = following**2 * (1 - share) + (1 - share) ** 2 * v if following else 0 * c2
        spread = step @ spread @ step.mT + torch.diag(noise)
    return spread


def posterior(spread, h, y, noise):
    """Mean, variances and log evidence of N(MEAN, spread) given y = h x + noise."""
    total = h @ spread @ h.mT + noise
    gain = spread @ h.mT @ torch.linalg.inv(total)
    evidence = torch.distributions.MultivariateNormal(h @ MEAN, total).log_prob(y)
    return MEAN + gain @ (y - h @ MEAN), (spread - gain @ h @ spread).diag(), float(evidence)


def statistics(draw, truth, free=None):
    """t-statistics of Z, means and variances over the populations of a weighted draw."""
    mean, variance, log_z = truth
    weights = (draw.log_weights.double().reshape(COUNT, -1)).softmax(1)
    x = draw.x.double().reshape(COUNT, weights.shape[1], -1)
    moments = [torch.einsum("kp,kpd->kd", weights, g) for g in (x - mean, (x - mean) ** 2 - variance)]
    found = torch.cat([m if free is None else m[:, free] for m in moments], 1)
    if "population_log_z" in draw.info.extra:
        ratio = (torch.tensor(draw.info.extra["population_log_z"], dtype=F64) - log_z).exp() - 1
        found = torch.cat([ratio[:, None], found], 1)
    return found.mean(0) / (found.std(0) / math.sqrt(COUNT))


def twisted(**options):
    return Twisted(**{"sigmas": LEVELS, "resample": False, **options})


FACTORS = {
    "a mask": (lambda: Measurement(MASK, Y, 0.3), EYE[MASK], Y[MASK], 0.09 * EYE[:2, :2]),
    "a matrix": (lambda: Measurement(ROWS, Y[:2], 0.4), ROWS, Y[:2], 0.16 * EYE[:2, :2]),
    "a function": (lambda: function(ROWS, Y[:2], 0.5 * EYE[:2, :2]), ROWS, Y[:2], 0.5 * EYE[:2, :2]),
    "a clamp": (lambda: Clamp(MASK, Y), EYE[MASK], Y[MASK], None),
}
CHAINS = {
    "a mask": ("a mask", {}),
    "a mask, narrow": ("a mask", {"data_std": 0.5, "variance": "large"}),
    "a mask, from far above the data": ("a mask", {"sigmas": (20.0, 5.0, 1.5)}),
    "a mask, wide": ("a mask", {"data_std": math.inf}),
    "a matrix": ("a matrix", {}),
    "a matrix, small": ("a matrix", {"variance": "small"}),
    "a function": ("a function", {"ess_threshold": 0.95}),
    "a function at a point": ("a function", {"lookahead": 1, "limit": 0.3}),
    "a function, no resampling": ("a function", {"ess_threshold": 0.0, "lookahead": 4}),
    "a clamp": ("a clamp", {}),
    "a clamp, large": ("a clamp", {"variance": "large", "data_std": 0.5}),
}


@pytest.mark.parametrize("case", CHAINS)
def test_the_weights_are_exact_for_the_reverse_chain(case):
    """Six steps: far from p, and still the chain's own law times r."""
    name, options = CHAINS[case]
    make, h, y, noise = FACTORS[name]
    c2 = SPREAD.diag() if options.get("data_std") is None else 0 * MEAN + options["data_std"] ** 2
    c2 = c2.clamp(max=1e12)
    spread = chain_covariance(options.get("variance", "matched"), c2, options.get("sigmas", LEVELS))
    if noise is None:  # clamped coordinates have the last kernel's own noise
        noise = torch.diag(1 / (1 / c2[MASK] + 1 / LEVELS[-1] ** 2))
    truth = posterior(spread, h, y, noise)
    free = ~MASK if name == "a clamp" else None
    draw = sample(P * make(), 400 * COUNT, sampler=twisted(population=400, **options), seed=1)
    assert float(statistics(draw, truth, free).abs().max()) < BOUND
    if name == "a clamp":
        assert bool((draw.x[:, MASK] == Y[MASK]).all())
    plain = posterior(SPREAD, h, y, noise)
    assert abs(plain[2] - truth[2]) > 1e-3, "the chain's law is not that of p"


@pytest.mark.parametrize("name", FACTORS)
def test_with_energies_the_weights_are_exact_for_the_density(name):
    make, h, y, noise = FACTORS[name]
    truth = posterior(SPREAD, h, y, 0 * EYE[:2, :2] if noise is None else noise)
    sampler = Twisted(steps=12, reference="density", population=400, resample=False)
    draw = sample(P * make(), 400 * COUNT, sampler=sampler, seed=2)
    assert float(statistics(draw, truth, ~MASK if name == "a clamp" else None).abs().max()) < BOUND


def test_with_energies_composites_are_exact_whatever_their_summed_scores_are():
    q = Gaussian(f(1.0, 0.0, -0.5), 0.7)
    composite = P * (q / P) ** 0.5 * q**0.5  # exponents 0.5 and 1: no noised product
    exact = Gaussian(MEAN, SPREAD)
    precision = 0.5 * torch.linalg.inv(exact.covariance) + EYE / 0.7
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (0.5 * torch.linalg.inv(SPREAD) @ MEAN + q.mean / 0.7)
    total = ROWS @ covariance @ ROWS.mT + 0.16 * EYE[:2, :2]
    gain = covariance @ ROWS.mT @ torch.linalg.inv(total)
    at = mean + gain @ (Y[:2] - ROWS @ mean)
    truth = at, (covariance - gain @ ROWS @ covariance).diag(), 0.0
    target = composite * Measurement(ROWS, Y[:2], 0.4)
    draw = sample(
        target, 400 * COUNT, sampler=Twisted(steps=16, reference="density", population=400, resample=False), seed=3
    )
    assert float(statistics(draw, truth)[1:].abs().max()) < BOUND


@pytest.mark.parametrize("dim", [1, 8])
def test_linear_gaussian_posteriors(dim):
    """Diagonal Gaussians, for which the matched kernel is exact: means, variances and log Z of p itself."""
    generator = torch.Generator().manual_seed(dim)
    prior = Gaussian(
        torch.randn(dim, generator=generator, dtype=F64), torch.rand(dim, generator=generator).double() + 0.3
    )
    mask = torch.arange(dim) % 2 == 0
    y = prior.mean + prior.variances.sqrt()
    noise = 0.25
    truth_z = float(torch.distributions.Normal(prior.mean, (prior.variances + noise).sqrt()).log_prob(y)[mask].sum())
    gain = torch.where(mask, prior.variances / (prior.variances + noise), 0.0)
    truth = prior.mean + gain * (y - prior.mean), prior.variances * (1 - gain), truth_z
    sampler = Twisted(steps=30, population=300, resample=False)
    draw = sample(score_of(prior) * Measurement(mask, y, 0.5), 300 * COUNT, sampler=sampler, seed=4, dtype=F64)
    free = sample(prior * Measurement(mask, y, 0.5), 300 * COUNT, sampler=sampler, seed=5)
    assert float(statistics(free, truth).abs().max()) < BOUND
    assert abs(free.log_z - truth_z) < 3 * free.log_z_se + 0.003
    if dim == 1:  # a pilot finds the width of a prior that does not tell
        assert float(statistics(draw, truth).abs().max()) < BOUND
    uncorrected = sample(
        prior * Denoised(Measurement(mask, y, 0.5), prior),
        300 * COUNT,
        sampler=Twisted(steps=30, population=300, corrected=False),
        seed=6,
    )
    assert uncorrected.log_z is None
    assert float(statistics(uncorrected, truth).abs().max()) > 2 * BOUND  # DPS misses


# ------------------------------------------------------- mixtures, rewards, classifiers

Q = GaussianMixture(f([-2.0], [1.0]), f(0.3, 0.5), f(0.4, 0.6))
GRID = torch.linspace(-12, 12, 24001, dtype=F64)[:, None]
TILTS = {
    "a classifier": lambda x: nn.functional.logsigmoid(2 * x[:, 0] - 0.5),
    "a reward": lambda x: -0.7 * (x[:, 0] - 0.5) ** 2,
    "a likelihood that is not linear": lambda x: -0.5 * ((x[:, 0] ** 2 - 2.0) / 0.7) ** 2,
}


def on_a_grid(log_density):
    """Mean, variance and log of the integral of a density of one variable."""
    weights = log_density.softmax(0)
    mean = (weights * GRID[:, 0]).sum()
    return (
        mean[None],
        (weights * (GRID[:, 0] - mean) ** 2).sum()[None],
        float(log_density.logsumexp(0)) + math.log(1e-3),
    )


@pytest.mark.parametrize("reference", ["chain", "density"])
@pytest.mark.parametrize("tilt", TILTS)
def test_mixtures_with_rewards_and_classifiers(tilt, reference):
    truth = on_a_grid(-Q.energy(GRID) + TILTS[tilt](GRID))
    target = Q * term(TILTS[tilt], kind="log_prob", event_shape=1)
    sampler = Twisted(steps=60, population=200, resample=False, reference=reference)
    draw = sample(target, 200 * COUNT, sampler=sampler, seed=7)
    assert float(statistics(draw, truth).abs().max()) < BOUND
    assert abs(draw.log_z - truth[2]) < 3 * draw.log_z_se + 0.01


@pytest.mark.parametrize("tilt", TILTS)
def test_dps_misses(tilt):
    truth = on_a_grid(-Q.energy(GRID) + TILTS[tilt](GRID))
    target = Q * term(TILTS[tilt], kind="log_prob", event_shape=1)
    sampler = Twisted(steps=60, population=200, corrected=False)
    draw = sample(target, 200 * COUNT, sampler=sampler, seed=8)
    assert float(statistics(draw, truth).abs().max()) > 2 * BOUND


def test_a_noise_aware_factor_is_its_own_twist():
    """p(c | x; σ) in closed form: weights are all but constant."""
    means, prior = f([-1.0], [1.0]), GaussianMixture(f([-1.0], [1.0]), 0.5, f(0.5, 0.5))

    def log_posterior(x, sigma):
        spread = 0.5 + sigma**2
        return (-((x - means[:, 0]) ** 2) / (2 * spread)).log_softmax(1)[:, 1]

    aware = term(log_posterior, kind="log_prob", event_shape=1, path="annealed")
    aware._strength = lambda sigma: 0.0
    draw = sample(prior * aware, 2000, sampler=Twisted(steps=60), seed=9)
    assert draw.info.ess > 0.9 * 2000
    assert abs(draw.log_z - math.log(0.5)) < 3 * draw.log_z_se + 0.01
    assert abs(float(draw.x.mean()) - 1.0) < 5 * math.sqrt(0.5 / 1000)


# --------------------------------------------------------------------- inpainting


def test_inpainting_is_the_conditional_and_replacement_is_not():
    p = Gaussian(f(0.0, 0.0), f([1.0, 0.9], [0.9, 1.0]))
    mask, y = torch.tensor([True, False]), f(1.5, 0.0)
    truth = f(1.35), f(0.19), 0.0
    exact = Twisted(steps=30, population=400, reference="density")
    draw = sample(p * Clamp(mask, y), 400 * COUNT, sampler=exact, seed=10)
    assert float(statistics(draw, truth, ~mask)[1:].abs().max()) < BOUND
    outpainted = sample(p * Clamp(~mask, y.flip(0)), 400 * COUNT, sampler=exact, seed=11)
    assert float(statistics(outpainted, truth, mask)[1:].abs().max()) < BOUND
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        heuristic = sample(p * Clamp(mask, y), 400 * COUNT, sampler=Reverse(steps=60), seed=12)
    assert float(statistics(heuristic, truth, ~mask).abs().max()) > 4 * BOUND
    chain = sample(
        score_of(p) * Clamp(mask, y), 400 * COUNT, sampler=Twisted(steps=100, population=400), seed=10, dtype=F64
    )
    assert abs(float(chain.x[:, 1].mean()) - 1.35) < 0.05  # up to the chain's discretisation


def test_named_variables():
    p, q = Gaussian(f(0.0), 1.0), Gaussian(f(1.0), 0.5)
    r = term(lambda s: -0.5 * (s["a"][:, 0] - s["b"][:, 0]) ** 2, kind="log_prob", event_shape={"a": 1, "b": 1})
    prior = p.on("a") * q.on("b")
    target = prior * r * Measurement(torch.tensor([True]), f(0.7), 0.5).on("a")
    precision = f([1 + 1 + 4, -1.0], [-1.0, 1 + 2])
    mean = torch.linalg.solve(precision, f(4 * 0.7, 2.0))
    truth = mean, torch.linalg.inv(precision).diag(), 0.0
    draw = sample(target, 300 * COUNT, sampler=Twisted(steps=40, population=300, data_std=1.0, resample=False), seed=13)
    draw.x = torch.cat([draw.x["a"], draw.x["b"]], 1)
    assert float(statistics(draw, truth)[1:].abs().max()) < BOUND


# ----------------------------------------------------------------------- the twist


def request(target, n=5, dtype=F64):
    return Request(target, n, torch.Generator().manual_seed(0), 0, "", dtype=dtype)


SLOPES = {
    "a function": lambda: P * function(ROWS, Y[:2], 0.5 * EYE[:2, :2]),
    "at the estimate": lambda: P * Denoised(function(ROWS, Y[:2], 0.5 * EYE[:2, :2]), P),
    "at another's estimate": lambda: P * Denoised(function(ROWS, Y[:2], EYE[:2, :2]), Gaussian(MEAN, 2.0)),
    "a mask, twice": lambda: P * Measurement(MASK, Y, 0.3) ** 2,
    "a matrix": lambda: P * Measurement(ROWS, Y[:2], 0.3),
    "a power": lambda: P**1.5 * Measurement(ROWS, Y[:2], 0.3),
    "a clamp and a function": lambda: P * Clamp(MASK, Y) * function(ROWS, Y[:2], EYE[:2, :2]),
    "a varying exponent": lambda: P * function(ROWS, Y[:2], EYE[:2, :2]) ** (lambda s: 1 / (1 + s)),
    "a scale and guidance": lambda: 3.0 * (P * (Gaussian(MEAN + 1, 0.5) / P) ** 2 * Measurement(ROWS, Y[:2], 0.3)),
}


@pytest.mark.parametrize("lookahead", [1, 4])
@pytest.mark.parametrize("case", SLOPES)
def test_the_slope_is_the_gradient_of_the_twist(case, lookahead):
    twist = Twist(request(SLOPES[case](), 3), None, energies=False, lookahead=lookahead)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for sigma in (0.1, 2.0):
        look = twist.look(x, sigma)
        numeric = torch.zeros_like(x)
        for d in range(3):
            step = 1e-5 * EYE[d]
            numeric[:, d] = (twist.look(x + step, sigma).log_twist - twist.look(x - step, sigma).log_twist) / 2e-5
        torch.testing.assert_close(look.slope, numeric, rtol=1e-6, atol=1e-7)
        exponents = 1.5 if case == "a power" else 1.0
        torch.testing.assert_close(look.estimate, x + sigma**2 / exponents * twist.prior.score(x, sigma))


def test_another_priors_estimate_is_its_own():
    reward, other = function(ROWS, Y[:2], EYE[:2, :2]), Gaussian(MEAN, 2.0)
    twist = Twist(request(P * Denoised(reward, other), 3), None, energies=False)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(twist.look(x, 1.5).log_twist, -reward.energy(other.denoise(x, 1.5)))
    twist = Twist(request(P * Denoised(reward, P), 3), None, energies=False, lookahead=4)
    torch.testing.assert_close(twist.look(x, 1.5).log_twist, -reward.energy(P.denoise(x, 1.5)))


@pytest.mark.parametrize("case", SLOPES)
def test_the_twist_becomes_the_factors_at_the_data_end(case):
    twist = Twist(request(SLOPES[case](), 3), None, energies=False)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    near, (end, _) = twist.look(x, 1e-5), twist.end(x)
    observed = twist.log_observed(near.estimate, twist.width(1e-5))
    torch.testing.assert_close(near.log_twist - observed, end, rtol=1e-4, atol=1e-4)


def test_the_width_is_the_spread_of_data_given_x():
    twist = Twist(request(Gaussian(MEAN, f(1.0, 4.0, 0.25)) * Measurement(MASK, Y, 0.3)), None, energies=False)
    torch.testing.assert_close(twist.width(2.0), f(4 / 5, 2.0, 1 / (4 + 1 / 4)))
    wide = GaussianMixture(f([-3.0], [3.0]), f(1.0, 1.0))
    for high in (80.0, 999.0):
        found = Twist(request(score_of(wide, high=high) * Measurement(torch.tensor([True]), f(0.0), 1.0)), None, False)
        assert abs(float(found.variance.sqrt()) - math.sqrt(10)) < 0.3, "a pilot finds c"
    unknown = Twist(request(Gaussian(MEAN, 1.0) * Measurement(MASK, Y, 0.3)), 2.0, energies=False)
    torch.testing.assert_close(unknown.variance, f(4.0, 4.0, 4.0))


# ------------------------------------------------------------- counts, seeds, resuming


def test_evaluations_are_counted():
    calls, rows = [0], [0]

    def score(x, sigma):
        calls[0], rows[0] = calls[0] + 1, rows[0] + len(x)
        return P._score(x, sigma)

    target = term(score, kind="score", path="noised", event_shape=3, sigma_range=(0.01, 50.0)) * Measurement(
        MASK, Y, 0.5
    )
    draw = sample(target, 100, sampler=Twisted(steps=7, data_std=1.0), seed=0, dtype=F64)
    # one row for the start's centre; the data end is an evaluation of the factors
    assert rows[0] == 100 * 7 + 1
    assert draw.info.evaluations == 7 + 1 + 1 / 100
    assert len(draw.info.levels) == 7
    rows[0] = 0
    piloted = sample(target, 100, sampler=Twisted(steps=7), seed=0, dtype=F64)
    assert round(piloted.info.evaluations * 100) == rows[0] + 100
    uncorrected = sample(target, 100, sampler=Twisted(steps=7, data_std=1.0, corrected=False), seed=0, dtype=F64)
    assert uncorrected.info.evaluations == 7 + 1 / 100


def test_the_same_seed_gives_the_same_numbers_and_leaves_networks_alone():
    net = nn.Linear(3, 3).double().train()
    prior = term(
        lambda x, s: -(x - 0.1 * net(x)) / (1 + s**2),
        kind="score",
        path="noised",
        event_shape=3,
        sigma_range=(0.01, 50),
    )
    target = prior * Measurement(MASK, Y, 0.5)
    draws = [sample(target, 50, sampler=Twisted(steps=5, record=True), seed=s, dtype=F64) for s in (0, 0, 1)]
    assert torch.equal(draws[0].x, draws[1].x)
    assert not torch.equal(draws[0].x, draws[2].x)
    assert len(draws[0].frames) == 5
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("reference", ["chain", "density"])
def test_a_killed_run_goes_on_bit_for_bit(reference, tmp_path, monkeypatch):
    save = base.Checkpoint.save
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
    left = [math.inf]

    def reward(x):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return -((x[:, 0] - 1.0) ** 2)

    target = P * term(reward, kind="log_prob", event_shape=3) * Clamp(MASK & (Y < 0), Y)
    sampler = Twisted(steps=8, reference=reference, population=50, record=True)
    whole = sample(target, 100, sampler=sampler, seed=3)
    file = tmp_path / "run.safetensors"
    left[0] = 5
    with pytest.raises(Killed):
        sample(target, 100, sampler=sampler, seed=3, checkpoint=file)
    assert file.exists()
    left[0] = 6
    resumed = sample(target, 100, sampler=sampler, seed=3, checkpoint=file)
    assert torch.equal(resumed.x, whole.x)
    assert resumed.info.extra == whole.info.extra
    assert resumed.info.evaluations == whole.info.evaluations
    assert all(torch.equal(a, b) for a, b in zip(resumed.frames, whole.frames, strict=True))
    with pytest.raises(ValueError, match="another run"):
        sample(target, 100, sampler=sampler, seed=4, checkpoint=file)


# ---------------------------------------------------------------------- populations


def test_a_condition_for_each_row_in_populations():
    values = torch.stack([Y, Y + 1.0, -Y])
    target = P * Clamp(MASK, values.repeat_interleave(400, 0))
    draw = sample(target, 1200, sampler=Twisted(steps=40, population=400), seed=14)
    assert draw.log_z is None
    assert len(draw.info.extra["population_log_z"]) == 3
    for k, value in enumerate(values):
        mean, variance, log_z = posterior(SPREAD, EYE[MASK], value[MASK], 0 * EYE[:2, :2])
        part = draw.x[400 * k : 400 * (k + 1)]
        assert bool((part[:, MASK] == value[MASK]).all())
        assert abs(float(part[:, 1].mean() - mean[1])) < 5 * math.sqrt(float(variance[1]) / 100)
        assert abs(draw.info.extra["population_log_z"][k] - log_z) < 0.3
    measured = P * Measurement(MASK, values.repeat_interleave(400, 0), 0.3)
    draw = sample(measured, 1200, sampler=Twisted(steps=20, population=400), seed=15)
    for k, value in enumerate(values):
        log_z = posterior(SPREAD, EYE[MASK], value[MASK], 0.09 * EYE[:2, :2])[2]
        assert abs(draw.info.extra["population_log_z"][k] - log_z) < 0.2


def test_populations_resample_within_themselves():
    cloud = Populations.uniform(12, 4, torch.zeros(()))
    logs = torch.zeros(12)
    logs[:4] = torch.tensor([0.0, -9.0, -9.0, -9.0])
    logs[4] = math.log(3.0)
    logs[8:] = math.log(3.0)
    cloud.reweigh(logs)
    assert cloud.ess[0] < 0.3
    torch.testing.assert_close(cloud.ess[1:], f(0.75, 1.0), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(cloud.log_z[1:], f(math.log(1.5), math.log(3.0)), rtol=1e-6, atol=0.0)
    rows = cloud.resample(torch.Generator().manual_seed(0), 0.5)
    assert rows.tolist()[4:] == list(range(4, 12))
    assert set(rows.tolist()[:4]) == {0}
    assert cloud.families.tolist() == [1.0, 4.0, 4.0]
    torch.testing.assert_close(
        cloud.log_weights.exp()[:2], f([0.25] * 4, [0.5, 1 / 6, 1 / 6, 1 / 6]), rtol=1e-6, atol=0
    )
    assert cloud.resample(None, 0.5) is None
    total = f(0.0, math.log(1.5), math.log(3.0))
    total[0] = float(logs[:4].logsumexp(0)) - math.log(4)
    assert abs(cloud.evidence()[0] - float(total.logsumexp(0) - math.log(3))) < 1e-6  # the mean of the Z
    with pytest.raises(NonFinite, match=r"populations \[1\]"):
        cloud.reweigh(torch.where(torch.arange(12) // 4 == 1, -torch.inf, 0.0))


def test_a_particle_without_weight_does_not_come_back():
    cloud = Populations.uniform(4, None, torch.zeros(()))
    cloud.reweigh(f(-math.inf, math.nan, 0.0, 0.0))
    cloud.reweigh(f(math.inf, 5.0, 0.0, 0.0))
    assert set(cloud.resample(torch.Generator().manual_seed(0)).tolist()) == {2, 3}
    assert abs(float(cloud.log_z) - math.log(0.5)) < 1e-12


# ------------------------------------------------------------- ends of the schedule


def test_finite_at_both_ends_for_flow_matching():
    """t from 0.001 to 0.999 is σ from 0.001 to 999; velocities as a network in float32 gives them."""
    from boltzmix.models.adapters.network import NetworkTerm
    from boltzmix.models.schedules import FlowMatching

    def velocity(x_t, t):  # of N(0, 0.25) data: E[ε − x0 | x_t]
        t = t[:, None]
        return x_t * (t - 0.25 * (1 - t)) / (t**2 + 0.25 * (1 - t) ** 2)

    prior = NetworkTerm(velocity, FlowMatching(), "flow", (2,))
    assert prior.sigma_range[1] > 990
    target = prior * Measurement(torch.tensor([True, False]), torch.ones(2), 0.5)
    for options in ({}, {"data_std": math.inf}, {"variance": "small"}, {"corrected": False}):
        draw = sample(target, 1000, sampler=Twisted(steps=40, **options), seed=16)
        assert bool(torch.isfinite(draw.x).all())
        assert draw.info.divergences == 0
        assert abs(float(draw.x[:, 0].mean()) - 0.5) < (0.25 if options else 0.08)
    truth = -0.5 * math.log(2 * math.pi * 0.5) - 1.0
    draw = sample(target, 1000, sampler=Twisted(steps=40), seed=16)
    assert abs(draw.log_z - truth) < 3 * draw.log_z_se + 0.01


class Attention(nn.Module):
    """A small network with attention over the coordinates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(2, 8), nn.Linear(8, 1)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x, c_noise, label=None):
        both = torch.stack([x, c_noise[:, None].expand_as(x)], -1)
        return self.out(self.attention(self.into(both)))[..., 0]


def test_gradients_go_through_attention_also_for_energies():
    from boltzmix.models import Diffusion, EnergyDiffusion

    mask = torch.tensor([True, False, False])
    for family in (Diffusion, EnergyDiffusion):
        model = family(Attention(), (3,), sigma_range=(0.01, 20.0))
        target = model * Measurement(mask, torch.ones(3), 0.5)
        for reference in ("chain", "density") if model.has_energy else ("chain",):
            draw = sample(target, 40, sampler=Twisted(steps=6, reference=reference), seed=17)
            assert bool(torch.isfinite(draw.x).all())
            assert abs(float(draw.x[:, 0].mean()) - float(draw.x[:, 1].mean())) > 0.05


# ------------------------------------------------------------------------- measurements


MEASUREMENTS = {
    "mask": Contract(lambda: Measurement(MASK, Y, 0.3)),
    "matrix": Contract(lambda: Measurement(ROWS, Y[:2], f(0.3, 0.6))),
    "posterior": Contract(lambda: P * Measurement(ROWS, Y[:2], 0.4), levels=(None, 0.3), coarse=False),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(MEASUREMENTS))
def test_contract(check, contract):
    check(contract)


def test_measurements_are_likelihoods():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    by_hand = torch.distributions.Normal(x[:, MASK], 0.3).log_prob(Y[MASK]).sum(1)
    torch.testing.assert_close(-Measurement(MASK, Y, 0.3).energy(x), by_hand)
    torch.testing.assert_close(-Measurement(EYE[MASK], Y[MASK], 0.3).energy(x), by_hand)
    each = f(0.3, 1.0, 0.3)
    torch.testing.assert_close(-Measurement(MASK, Y, each).energy(x), by_hand)
    rows = Measurement(MASK, Y.expand(4, 3), 0.3)
    torch.testing.assert_close(-rows.energy(x), by_hand)
    spread = f(0.5, 0.2, 0.7)
    total = ROWS @ torch.diag(spread) @ ROWS.mT + 0.08 * EYE[:2, :2]
    truth = torch.distributions.MultivariateNormal(x @ ROWS.mT, total).log_prob(Y[:2])
    scale = -math.log(2 * math.pi * 0.16 * 2)  # N(y; Ax, s² I)² over N(y; Ax, s² I / 2)
    torch.testing.assert_close(-Measurement(ROWS, Y[:2], 0.4).blurred(x, spread, 2.0), truth + scale)
    torch.testing.assert_close(rows.blurred(x, f(0.0)[0], 3.0), 3 * rows.energy(x))
    masked = Measurement(MASK, Y, 0.3).blurred(x, spread, 2.0)
    torch.testing.assert_close(masked, Measurement(EYE[MASK], Y[MASK], 0.3).blurred(x, spread, 2.0))
    torch.testing.assert_close(rows.blurred(x, f(0.0)[0]), rows.energy(x))
    images = Measurement(torch.ones(2, 1, 2, 2, dtype=F64), f(1.0, 2.0), 1.0)
    assert images.event_shape == (1, 2, 2)
    assert images.energy(torch.zeros(3, 1, 2, 2, dtype=F64)).shape == (3,)


STATIC_SCORE = term(lambda x: -x, kind="score", event_shape=3, name="force")
HALF = term(lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf).to(x), kind="energy", event_shape=3, name="half")
SEEN = Measurement(MASK, Y, 0.3)
CALLS = {
    "no steps": (lambda: Twisted(steps=0), ValueError, ["steps >= 1", "got 0"]),
    "levels that rise": (lambda: Twisted(sigmas=(0.1, 1.0)), ValueError, ["strictly decreasing"]),
    "levels as a number": (lambda: Twisted(sigmas=3.0), TypeError, ["tuple of decreasing levels"]),
    "a negative rho": (lambda: Twisted(rho=-1.0), ValueError, ["positive finite rho"]),
    "a threshold of 2": (lambda: Twisted(ess_threshold=2.0), ValueError, ["ess_threshold", "[0, 1]"]),
    "corrected as a number": (lambda: Twisted(corrected=1), TypeError, ["corrected is True or False"]),
    "an unknown reference": (lambda: Twisted(reference="p"), ValueError, ["chain", "density", "'p'"]),
    "an unknown variance": (lambda: Twisted(variance="big"), ValueError, ["matched", "'big'"]),
    "a negative width": (lambda: Twisted(data_std=-1.0), ValueError, ["data_std", "-1.0"]),
    "three points": (lambda: Twisted(lookahead=3), ValueError, ["1 or an even number", "got 3"]),
    "no limit": (lambda: Twisted(limit=0.0), ValueError, ["limit", "math.inf"]),
    "a population of none": (lambda: Twisted(population=0), ValueError, ["population", "got 0"]),
    "weights that are left out": (lambda: Twisted(corrected=False, reference="density"), ValueError, ["choose one"]),
    "n that does not divide": (
        lambda: sample(P * SEEN, 10, sampler=Twisted(steps=2, population=4)),
        ValueError,
        ["populations of 4", "n=12"],
    ),
    "rows without populations": (
        lambda: sample(P * Clamp(MASK, Y.expand(4, 3)), 4, sampler=Twisted(steps=2)),
        ValueError,
        ["population=P", "repeated P times"],
    ),
    "rows that differ": (
        lambda: sample(P * Clamp(MASK, Y * torch.arange(4)[:, None]), 4, sampler=Twisted(steps=2, population=2)),
        ValueError,
        ["differ within a population of 2", "repeat_interleave(2, 0)"],
    ),
    "static terms": (lambda: sample(SEEN * HALF, 4, sampler=Twisted()), TypeError, ["changes with sigma", "SMC"]),
    "a static score": (
        lambda: sample(P * STATIC_SCORE, 4, sampler=Twisted()),
        MissingEnergy,
        ["force", "only a score"],
    ),
    "energies of a score": (
        lambda: sample(score_of(P) * SEEN, 4, sampler=Twisted(reference="density")),
        MissingEnergy,
        ['reference="chain"'],
    ),
    "no positive exponent": (lambda: sample(1 / P * SEEN, 4, sampler=Twisted()), NotNormalizable, ["exponent of -1"]),
    "a start": (lambda: sample(P * SEEN, 4, sampler=Twisted(), init=P), TypeError, ["leave out init="]),
    "levels out of range": (
        lambda: sample(score_of(P) * SEEN, 4, sampler=Twisted(sigmas=(100.0, 1.0)), dtype=F64),
        ValueError,
        ["[0.002, 80]"],
    ),
    "a clamp without a width": (
        lambda: sample(P * Clamp(MASK, Y), 4, sampler=Twisted(data_std=0.0)),
        ValueError,
        ["data_std is > 0"],
    ),
    "a density without noise": (
        lambda: sample(P * SEEN, 4, sampler=Twisted(steps=2, variance="small", reference="density")),
        ValueError,
        ['variance="matched"'],
    ),
    "a checkpoint without a seed": (
        lambda: sample(P * SEEN, 4, sampler=Twisted(), checkpoint="x"),
        ValueError,
        ["pass seed="],
    ),
    "an operator of integers": (lambda: Measurement(torch.ones(2, 3).long(), Y, 1.0), TypeError, ["boolean mask"]),
    "an empty mask": (lambda: Measurement(MASK & False, Y, 1.0), ValueError, ["at least one entry"]),
    "a value of another shape": (lambda: Measurement(ROWS, Y, 1.0), ValueError, ["(2,)", "(3,)"]),
    "a std of zero": (lambda: Measurement(MASK, Y, 0.0), ValueError, ["std", "use Clamp"]),
    "a vector as a matrix": (lambda: Measurement(Y, Y, 1.0), ValueError, ["(M, *event)"]),
    "rows of measurements": (
        lambda: Measurement(MASK, Y.expand(4, 3), 1.0).energy(torch.zeros(3, 3, dtype=F64)),
        ValueError,
        ["4 measurements", "3 rows"],
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls_say_what_to_write(case):
    call, error, words = CALLS[case]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def warned(target, n=50, **options):
    """Messages of a run, with those that come once forgotten first."""
    twisted_run._warned.clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sample(target, n, sampler=Twisted(**{"steps": 5, **options}), seed=0)
    return " | ".join(str(w.message) for w in found if issubclass(w.category, SamplingWarning))


def test_what_limits_a_draw_is_said():
    assert "biased at any number of steps" in warned(P * SEEN, corrected=False)
    assert "zero at the estimate" in warned(P * HALF, sigmas=LEVELS, lookahead=1)
    assert "exponent" in warned(P * (Gaussian(MEAN, 0.5) / P) ** 2 * SEEN)
    assert warned(P * SEEN, steps=20) == ""
    steep = term(lambda x: -1e6 * x.square().sum(1), kind="log_prob", event_shape=3)
    assert "weights collapsed" in warned(P * steep, n=50)
