"""One Gaussian in every family: the same score, and the same conditional when coordinates are clamped.

Families join in tests/models/gaussian_families.py by one row.
"""

import itertools
import math
import warnings

import pytest
import torch

from boltzmix.benchmarks.metrics import bandwidths, kernel_mean, self_mean
from boltzmix.compose import SMC, UHMC, Annealed, Clamp, Reverse, sample
from tests.models.gaussian_families import COVARIANCE, FAMILIES, LEVELS, MEAN, conditional, points, truth

D = torch.float64
MASK = torch.tensor([False, True, False, True])
VALUE = torch.tensor([0.0, 0.8, 0.0, 0.6], dtype=D)
DRAWS = 1000
DOWN = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # levels for small steps: most of them where σ is small


@pytest.mark.parametrize("name", FAMILIES)
def test_the_score_is_the_gaussians(name):
    """At the data end, and at every level of a noised term, from draws twice as wide as the Gaussian.

    Of families that were fitted to the Gaussian's draws: the root mean square at such draws, and energies within 0.3.
    """
    family = FAMILIES[name]
    if family.learned:
        term, x = family.make(), truth().sample(2000, torch.Generator().manual_seed(5))
        with torch.no_grad():
            apart = (term.score(x) - truth().score(x)).square().sum(1).mean().sqrt()
            energies = term.energy(x) - truth().energy(x)
        assert float(apart) <= family.error, f"{name}: {float(apart):.2g}"
        assert abs(float(energies.mean())) < 0.1, "the mean is a Kullback-Leibler divergence"
        assert float(energies.std()) < 0.3
        return
    term, x = family.make(), points(64, dtype=family.dtype)
    levels = (None, *LEVELS) if term.path == "noised" else (None,)
    with torch.no_grad():
        for sigma in levels:
            want = truth(family.sigma if sigma is None else sigma, family.dtype).score(x)
            error = float((term.score(x, sigma) - want).abs().max())
            assert error <= family.error, f"{name} at sigma={sigma}: {error:.2g}"
            if term.has_energy:
                apart = term.energy(x, sigma) - truth(sigma or family.sigma, family.dtype).energy(x)
                spread = float((apart - apart.mean()).abs().max())
                assert spread <= 30 * family.error, f"energy of {name} at sigma={sigma}: {spread:.2g}"
                if term.normalized:
                    assert float(apart.abs().max()) <= 30 * family.error, f"log Z of {name} at sigma={sigma}"


# ----------------------------------------------------------------------------------------------------------- inpainting


def whitened(x):
    """Draws of the free coordinates in units of the exact conditional."""
    mean, covariance = conditional(MASK, VALUE)
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, (x.to(D)[:, ~MASK] - mean).mT, upper=False).mT


def exact(n, seed):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.fixture(scope="module")
def judge():
    """MMD² to exact draws of the conditional, and the largest that 30 exact sets of the same size reach."""
    reference = exact(3000, 99)
    squared = bandwidths(reference)
    inner = self_mean(reference, squared)

    def distance(x):
        return self_mean(x, squared) + inner - 2 * kernel_mean(x, reference, squared)

    return distance, max(distance(exact(DRAWS, 100 + i)) for i in range(30))


def z_scores(x):
    """Of two means, two variances and the correlation of draws that should be standard normal."""
    f = torch.stack([*x.unbind(1), *((x**2 - 1) / math.sqrt(2)).unbind(1), x.prod(1)], 1)
    return f.mean(0) * math.sqrt(len(x))


def drawn(term, sampler, dtype=D):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clamp = Clamp(MASK, VALUE.to(dtype))
        return sample(term * clamp, DRAWS, sampler=sampler, seed=0, dtype=dtype, progress=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_inpainting_draws_the_gaussian_conditional(name, judge):
    """Known coordinates exactly, the others as the conditional: by SMC where there are energies, else by annealed UHMC.

    Five z-scores below 5 (false-positive rate 3e-6; UHMC's step makes variances 2 % too large, a third of one z), and
    MMD² below twice the largest of 30 exact sets of the same size.
    """
    family, (distance, floor) = FAMILIES[name], judge
    term = family.make()
    sampler = SMC() if term.has_energy else Annealed(DOWN, UHMC(step_size=0.1, num_leapfrog=10), sweeps=5)
    x = drawn(term, sampler, family.dtype).x
    assert bool((x[:, MASK] == VALUE[MASK].to(x)).all())
    white = whitened(x)
    assert float(z_scores(white).abs().max()) < 5
    assert distance(white) < 2 * floor


def test_what_is_not_conditioning_is_noticed(judge):
    """The marginal, and the replacement of known coordinates under reverse diffusion, are far from the floor."""
    distance, floor = judge
    marginal = truth().sample(DRAWS, torch.Generator().manual_seed(1))
    assert distance(whitened(marginal)) > 20 * floor
    replaced = drawn(FAMILIES["Diffusion"].make(), Reverse(steps=40)).x
    assert bool((replaced[:, MASK] == VALUE[MASK]).all())
    assert float(z_scores(whitened(replaced)).abs().max()) > 10


def test_the_conditional_is_the_closed_form():
    """p(x_a | x_b) ∝ p(x): the joint energy minus the conditional's is constant in x_a."""
    mean, covariance = conditional(MASK, VALUE)
    x = points(20)
    x[:, MASK] = VALUE[MASK]
    gap = x[:, ~MASK] - mean
    inner = 0.5 * (gap @ torch.linalg.inv(covariance) * gap).sum(1)
    apart = truth().energy(x) - inner
    assert torch.allclose(apart, apart[:1].expand(20))
    assert torch.allclose(COVARIANCE, COVARIANCE.mT)
    assert float(torch.linalg.eigvalsh(COVARIANCE)[0]) > 0.05
    off_diagonal = [float(COVARIANCE[i, j]) for i, j in itertools.combinations(range(4), 2)]
    assert min(map(abs, off_diagonal)) > 0.05  # every coordinate tells about every other
    assert MEAN.abs().min() > 0
