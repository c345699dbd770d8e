"""Gaussians and their mixtures: every covariance shape, image-shaped events, scipy as the second opinion."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from boltzmix.compose import Gaussian, GaussianMixture
from tests.contracts import assert_z

D = torch.float64
MATRIX = torch.tensor([[1.5, 0.6, 0.1], [0.6, 0.9, -0.2], [0.1, -0.2, 0.7]], dtype=D)
DIAGONAL = torch.tensor([0.3, 1.2, 2.0], dtype=D)
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=D)
X = torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=D) * 2


@pytest.mark.parametrize(
    ("covariance", "matrix"),
    [
        (0.7, 0.7 * torch.eye(3, dtype=D)),
        (torch.tensor(0.7, dtype=D), 0.7 * torch.eye(3, dtype=D)),
        (DIAGONAL, torch.diag(DIAGONAL)),
        (DIAGONAL.tolist(), torch.diag(DIAGONAL)),
        (MATRIX, MATRIX),
        (MATRIX.numpy(), MATRIX),
    ],
    ids=["number", "scalar", "diagonal", "list", "matrix", "numpy"],
)
@pytest.mark.parametrize("sigma", [None, 0.5, 30.0])
def test_energy_is_scipys(covariance, matrix, sigma):
    p = Gaussian(MEAN, covariance)
    noised = matrix + (sigma or 0.0) ** 2 * torch.eye(3, dtype=D)
    expected = -stats.multivariate_normal(MEAN.numpy(), noised.numpy()).logpdf(X.numpy())
    assert np.allclose(p.energy(X, sigma).numpy(), expected, rtol=1e-10)
    assert torch.allclose(p.score(X, sigma), -torch.linalg.solve(noised, (X - MEAN).mT).mT)
    assert torch.allclose(p.covariance, matrix)


@pytest.mark.parametrize(
    ("covariances", "matrices"),
    [
        (0.7, 0.7 * torch.eye(3, dtype=D).expand(2, 3, 3)),
        (torch.tensor([0.5, 2.0], dtype=D), torch.tensor([0.5, 2.0], dtype=D)[:, None, None] * torch.eye(3, dtype=D)),
        (torch.stack([DIAGONAL, 2 * DIAGONAL]), torch.diag_embed(torch.stack([DIAGONAL, 2 * DIAGONAL]))),
        (torch.stack([MATRIX, 2 * MATRIX]), torch.stack([MATRIX, 2 * MATRIX])),
    ],
    ids=["number", "variances", "diagonals", "matrices"],
)
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_mixture_energy_is_scipys(covariances, matrices, sigma):
    means = torch.stack([MEAN, -MEAN])
    p = GaussianMixture(means, covariances, [1.0, 3.0])
    noise = (sigma or 0.0) ** 2 * np.eye(3)
    expected = sum(
        w * stats.multivariate_normal(m.numpy(), c.numpy() + noise).pdf(X.numpy())
        for w, m, c in zip((0.25, 0.75), means, matrices, strict=True)
    )
    assert np.allclose(p.log_prob(X, sigma).numpy(), np.log(expected), rtol=1e-9)
    assert torch.allclose(p.component_log_prob(X, sigma).logsumexp(1), p.log_prob(X, sigma))
    assert torch.allclose(p.covariances, matrices)


def test_image_events_are_flattened_row_by_row():
    mean = torch.arange(6, dtype=D).reshape(1, 2, 3)
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=D)
    covariance = a @ a.mT + torch.eye(6, dtype=D)
    image, flat = Gaussian(mean, covariance), Gaussian(mean.reshape(-1), covariance)
    x = torch.randn(5, 1, 2, 3, dtype=D, generator=torch.Generator().manual_seed(2))
    for sigma in (None, 0.4, torch.linspace(0, 2, 5, dtype=D)):
        assert torch.allclose(image.energy(x, sigma), flat.energy(x.flatten(1), sigma))
        assert torch.allclose(image.score(x, sigma).flatten(1), flat.score(x.flatten(1), sigma))
    assert image.sample(4).shape == (4, 1, 2, 3)
    assert image.coarse(3.0).event_shape == (1, 2, 3)


def test_far_away_energies_keep_float32():
    """At 10⁴ standard deviations and at σ from 1e-3 to 80 the score keeps six digits."""
    p = Gaussian(torch.zeros(2), 1e-2)
    for sigma in (1e-3, 0.1, 80.0):
        x = torch.tensor([[1e3, -1e-3]])
        exact = -x.double() / (float(torch.tensor(1e-2)) + float(torch.tensor(sigma)) ** 2)
        assert torch.allclose(p.score(x, sigma).double(), exact, rtol=1e-6)


def test_draws_have_the_covariance():
    """Second moments of exact draws: six z-scores below 5, false-positive rate 6e-7 each."""
    n = 40_000
    x = Gaussian(MEAN, MATRIX).sample(n, torch.Generator().manual_seed(3)) - MEAN
    products = x[:, :, None] * x[:, None, :]
    z = (products.mean(0) - MATRIX) / (products.std(0) / math.sqrt(n))
    assert_z(z.flatten(), "covariance of draws")


def test_a_generator_fixes_the_draws():
    for p in (Gaussian(MEAN, MATRIX), GaussianMixture(torch.stack([MEAN, -MEAN]), MATRIX.expand(2, 3, 3))):
        draws = [p.sample(5, torch.Generator().manual_seed(4)) for _ in range(2)]
        assert torch.equal(*draws)
        assert draws[0].dtype == D


def test_weights_are_normalised_and_kept_at_every_level():
    p = GaussianMixture(torch.tensor([[-40.0], [40.0]], dtype=D), 1.0, [2.0, 6.0])
    assert p.weights.tolist() == [0.25, 0.75]
    x = torch.tensor([[-40.0], [40.0]], dtype=D)
    for sigma in (None, 3.0):
        gap = p.log_ratio(x[:1], x[1:], sigma)
        assert float(gap) == pytest.approx(math.log(3.0))


def test_parameters_are_copied():
    mean = torch.zeros(2, dtype=D)
    p = Gaussian(mean, 1.0)
    mean += 5
    assert not p.mean.any()
