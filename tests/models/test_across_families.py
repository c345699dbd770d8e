"""Any family times any other: products of one Gaussian, written in two families, are sampled to the closed form.

:math:`p \\cdot p = N(m, C/2)`, whatever the two factors are. The families and their own errors are those of
tests/models/gaussian_families.py.
"""

import itertools
import math
import warnings

import pytest
import torch

from boltzmix.benchmarks.metrics import bandwidths, kernel_mean, self_mean
from boltzmix.compose import SMC, UHMC, Annealed, Clamp, Gaussian, sample
from tests.models.gaussian_families import COVARIANCE, DIM, FAMILIES, MEAN, linear_vae, truth

D = torch.float64
DRAWS = 500
DOWN = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # levels for small steps: most of them where σ is small

# one of each kind; the others differ from these by their adapters' arithmetic alone
KINDS = (
    "GaussianMixture",
    "torch MultivariateNormal",
    "callable log_prob",
    "callable score",
    "reward",
    "zuko",
    "Diffusion",
    "EnergyDiffusion",
    "NCSN",
    "network VP v",
    "FlowMatching",
    "FlowMatching by optimal transport",
    "EnergyModel",
    "ContinuousFlow",
    "Flow",
    "Glow",
    "Autoregressive",
)
CONSTANTS = {"reward": -2 * math.log(2)}  # N(m, 2C) under the reward that halves its covariance integrates to 1/4
COSTLY = {
    "callable score", "Diffusion", "NCSN", "network VP v", "FlowMatching", "FlowMatching by optimal transport",
    "ContinuousFlow", "Glow", "Autoregressive",
}  # fmt: skip
"""Seconds a draw. Each of them times every other kind is quick enough for every run, each times each other is slow."""

PAIRS = [
    pytest.param(*pair, marks=pytest.mark.slow if COSTLY.issuperset(pair) else (), id=" * ".join(pair))
    for pair in itertools.combinations(KINDS, 2)
]


def whitened(x, covariance):
    """Draws in units of N(MEAN, covariance)."""
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, (x.to(D) - MEAN).mT, upper=False).mT


def normal(n, seed):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.fixture(scope="module")
def judge():
    """MMD² to exact draws, and the largest that 50 exact sets of the same size reach."""
    reference = normal(3000, 99)
    squared = bandwidths(reference)
    inner = self_mean(reference, squared)

    def distance(x):
        return self_mean(x, squared) + inner - 2 * kernel_mean(x, reference, squared)

    return distance, max(distance(normal(DRAWS, 100 + i)) for i in range(50))


def z_scores(x):
    """Of four means, four variances and six correlations of draws that should be standard normal."""
    pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations(range(DIM), 2)]
    f = torch.stack([*x.unbind(1), *((x**2 - 1) / math.sqrt(2)).unbind(1), *pairs], 1)
    return f.mean(0) * math.sqrt(len(x))


def drawn(term, n=DRAWS):
    sampler = SMC() if term.has_energy else Annealed(DOWN, UHMC(step_size=0.07, num_leapfrog=10), sweeps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sample(term, n, sampler=sampler, seed=0, dtype=D, progress=False)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_product_is_the_gaussians(first, second, judge):
    """Fourteen z-scores below 5 (false-positive rate 1e-5), MMD² below twice the largest of 50 exact sets.

    Where both factors have energies log Z is the closed form's within five standard errors, and the constants that the
    factors are known to: those of the fitted ones are off by at most 0.1.
    """
    distance, floor = judge
    term = FAMILIES[first].make() * FAMILIES[second].make()
    draw = drawn(term)
    white = whitened(draw.x, COVARIANCE / 2)
    assert float(z_scores(white).abs().max()) < 5
    assert distance(white) < 2 * floor
    if draw.log_z is not None:
        exact = -0.5 * torch.logdet(4 * math.pi * COVARIANCE)  # ∫ N(x; m, C)² dx
        exact = exact + sum(CONSTANTS.get(name, 0.0) for name in (first, second))
        slack = 0.1 * sum(FAMILIES[name].learned for name in (first, second))
        assert abs(draw.log_z - float(exact)) < 5 * draw.log_z_se + 0.02 + slack


def test_a_latent_variable_model_joins_by_its_observed_variable(judge):
    """p(x, z) q(x): x follows N(m, C/2), and z what p says of z given x."""
    distance, floor = judge
    vae = linear_vae()
    draw = drawn(vae * truth().on("x"))
    white = whitened(draw.x["x"], COVARIANCE / 2)
    assert float(z_scores(white).abs().max()) < 5
    assert distance(white) < 2 * floor
    core = vae.core.decoder
    variance = COVARIANCE - core.weight @ core.weight.mT
    gain = core.weight.mT @ torch.linalg.inv(COVARIANCE)
    left = torch.eye(DIM, dtype=D) - gain @ core.weight  # the posterior's covariance
    gap = draw.x["z"] - (draw.x["x"] - MEAN) @ gain.mT
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(left), gap.mT, upper=False).mT.detach()
    assert float(z_scores(z).abs().max()) < 5
    assert torch.allclose(variance, variance.diagonal().diag(), atol=1e-12)


def test_what_is_no_product_is_noticed(judge):
    """One factor alone, and the product at half its strength, are far from the floor."""
    distance, floor = judge
    for covariance in (COVARIANCE, COVARIANCE / 2 * 1.4):
        x = Gaussian(MEAN, covariance).sample(DRAWS, torch.Generator().manual_seed(1))
        white = whitened(x, COVARIANCE / 2)
        assert distance(white) > 2 * floor or float(z_scores(white).abs().max()) > 5


def test_three_families_and_a_clamp(judge):
    """A flow, a diffusion's energy and an energy model with two coordinates known: N(m, C/3), conditioned."""
    mask = torch.tensor([True, False, False, True])
    value = torch.tensor([0.4, 0.0, 0.0, -0.3], dtype=D)
    term = FAMILIES["ContinuousFlow"].make() * FAMILIES["EnergyDiffusion"].make() * FAMILIES["EnergyModel"].make()
    x = drawn(term * Clamp(mask, value)).x
    assert bool((x[:, mask] == value[mask]).all())
    precision = 3 * torch.linalg.inv(COVARIANCE)
    free = ~mask
    inner = precision[free][:, free]
    mean = MEAN[free] - torch.linalg.solve(inner, precision[free][:, mask] @ (value - MEAN)[mask])
    white = (x[:, free] - mean) @ torch.linalg.cholesky(inner)
    f = torch.stack([*white.unbind(1), *((white**2 - 1) / math.sqrt(2)).unbind(1), white.prod(1)], 1)
    assert float((f.mean(0) * math.sqrt(len(x))).abs().max()) < 5
