"""Benchmark posteriors: both languages agree, and the true moments are those of the density.

Statistical checks have fixed seeds; |z| < 4.5 is 7e-6 per statistic.
"""

import math

import pytest
import torch
from torch.distributions import HalfCauchy, Normal

from boltzmix.benchmarks import densities
from boltzmix.benchmarks.densities import DENSITIES, density
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC


def points(target, n=16):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, target.dim, generator=generator, dtype=torch.float64)


def energies_and_gradients_of_both_languages_agree(target):
    jax = pytest.importorskip("jax", reason='needs pip install "boltzmix[peers]"')
    x = points(target)
    energy, score = target.term().energy_and_score(x)
    with jax.enable_x64(True):
        value, gradient = jax.vmap(jax.value_and_grad(target.jax_log_prob()))(x.numpy())
    assert torch.allclose(-energy, torch.tensor(value), rtol=1e-5, atol=1e-5)
    assert torch.allclose(score, torch.tensor(gradient), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_energies_and_gradients_of_both_languages_agree(name):
    energies_and_gradients_of_both_languages_agree(density(name))


def eight_schools_is_the_model_as_written():
    target = densities.eight_schools.__wrapped__()
    x = points(target)
    mu, tau, theta = x[:, :1], x[:, 1:2].exp(), x[:, 2:]
    y, s = torch.tensor(densities.EFFECTS), torch.tensor(densities.ERRORS)
    expected = Normal(0.0, 5.0).log_prob(mu)[:, 0] + (HalfCauchy(5.0).log_prob(tau) + tau.log())[:, 0]
    expected = expected + Normal(0.0, 1.0).log_prob(theta).sum(1) + Normal(mu + tau * theta, s).log_prob(y).sum(1)
    difference = target.log_prob(x) - expected
    assert torch.allclose(difference, difference[:1].expand(len(x)), atol=1e-9)


def test_eight_schools_is_the_model_as_written():
    eight_schools_is_the_model_as_written()


def moments_of_eight_schools_are_those_of_weighted_prior_draws(n=400_000):
    """The likelihood alone weighs draws from the prior, whichever way τ is written."""
    y, s = torch.tensor(densities.EFFECTS), torch.tensor(densities.ERRORS)
    mean, variance = densities._eight_schools_moments(y, s, 401)
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    mu, theta = 5 * torch.randn(n, 1, **options), torch.randn(n, 8, **options)
    tau = 5 * (math.pi / 2 * torch.rand(n, 1, **options)).tan()
    weight = Normal(mu + tau * theta, s).log_prob(y).sum(1).softmax(0)
    x = torch.cat([mu, tau.log(), theta], 1)
    for values, truth in ((x, mean), ((x - mean) ** 2, variance)):
        found = weight @ values
        error = (weight**2 @ (values - found) ** 2).sqrt()
        assert float(((found - truth) / error).abs().max()) < 4.5


def test_moments_of_eight_schools_are_those_of_weighted_prior_draws():
    moments_of_eight_schools_are_those_of_weighted_prior_draws()


def test_moments_of_the_regression_are_those_of_chains():
    target = density("logistic_regression")
    sampler = MCMC(HMC(num_leapfrog=4), warmup=300, draws=1500)
    draw = sample(
        target.term(), chains=8, sampler=sampler, init=target.starts(8, 0), dtype=torch.float64, seed=0, progress=False
    )
    for values, truth in ((draw.x, target.mean), ((draw.x - target.mean) ** 2, target.variance)):
        error = (values.flatten(0, 1).var(0) / ess(values)).sqrt()
        assert float(((values.flatten(0, 1).mean(0) - truth) / error).abs().max()) < 4.5


@pytest.mark.parametrize("name", ["ill_conditioned", "rotated"])
def test_variances_of_gaussians_are_those_of_their_density(name):
    target = density(name)
    basis = torch.eye(target.dim, dtype=torch.float64)
    precision = -target.term().score(basis)
    assert torch.allclose(torch.linalg.inv(precision).diagonal(), target.variance, rtol=1e-8)
    scales = torch.linalg.eigvalsh(precision)
    assert float(scales[-1] / scales[0]) == pytest.approx(1e4)


def test_starts_depend_on_the_seed_alone():
    target = density("rotated")
    assert torch.equal(target.starts(4, 3), target.starts(4, 3))
    assert not torch.equal(target.starts(4, 3), target.starts(4, 4))
    assert float(target.starts(64, 0).abs().max()) < 2


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="there are eight_schools"):
        density("nine_schools")
