"""Other units: the Jacobian, the noise level that is rescaled, what stays noised."""

import math

import pytest
import torch

from boltzmix.compose import Box, Gaussian, GaussianMixture, affine, guidance, term
from tests.contracts import Contract, check_convolution, check_integral

D = torch.float64
P = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=D), 0.4, [1, 2])
LOC = torch.tensor([0.3, -2.0], dtype=D)
X = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=D) * 2


@pytest.mark.parametrize("scale", [2.5, -0.5])
def test_a_scalar_scale_is_the_rescaled_mixture(scale):
    moved = affine(P, LOC, scale)
    exact = GaussianMixture(LOC + scale * P.means, 0.4 * scale**2, P.weights)
    for sigma in (None, 0.7, torch.linspace(0, 3, 9, dtype=D)):
        assert torch.allclose(moved.energy(X, sigma), exact.energy(X, sigma))
        assert torch.allclose(moved.score(X, sigma), exact.score(X, sigma))
    assert torch.allclose(moved.denoise(X, 0.7), exact.denoise(X, 0.7))
    assert moved.path == "noised"
    assert moved.normalized
    check_convolution(Contract(lambda: moved, span=6.0))
    check_integral(Contract(lambda: moved, span=6.0))


def test_a_scale_per_coordinate_is_exact_at_the_data_end_and_annealed():
    scale = torch.tensor([0.5, 3.0], dtype=D)
    moved = affine(P, LOC, scale)
    exact = GaussianMixture(LOC + scale * P.means, (0.4 * scale**2).expand(2, 2), P.weights)
    assert torch.allclose(moved.energy(X), exact.energy(X))
    assert torch.allclose(moved.score(X), exact.score(X))
    assert moved.path == "annealed"
    with pytest.raises(TypeError, match="anisotropic"):
        moved.denoise(X, 0.5)
    check_integral(Contract(lambda: moved, span=10.0, levels=(None, 0.5)))
    assert torch.allclose(moved.coarse(2.0).means, exact.means)


def test_sigma_range_is_in_the_new_units():
    p = term(lambda x, s: (x**2).sum(-1), kind="energy", event_shape=2, path="noised", sigma_range=(0.01, 10.0))
    assert affine(p, 0.0, 4.0).sigma_range == pytest.approx((0.04, 40.0))
    with pytest.raises(ValueError, match="noise levels in"):
        affine(p, 0.0, 4.0).energy(X, 41.0)


def test_draws_are_moved():
    moved = affine(P, LOC, -2.0)
    x = moved.sample(5, torch.Generator().manual_seed(1))
    assert torch.allclose(x, LOC - 2.0 * P.sample(5, torch.Generator().manual_seed(1)))


def test_images_and_numbers():
    image = affine(Gaussian(torch.zeros(1, 2, 2, dtype=D), 1.0), 0.5, 0.5)
    exact = Gaussian(torch.full((1, 2, 2), 0.5, dtype=D), 0.25)
    x = torch.randn(3, 1, 2, 2, dtype=D)
    assert torch.allclose(image.energy(x, 0.3), exact.energy(x, 0.3))
    assert torch.allclose(image.coarse(3.0).variances, exact.coarse(3.0).variances)


def test_python_numbers_keep_float64():
    """0.1 is not the float32 0.1 when the term is float64."""
    moved = affine(Gaussian(torch.zeros(1, dtype=D), 1.0), 0.1, 0.3)
    assert float(moved.sample(1, torch.Generator().manual_seed(0)) - 0.1) == pytest.approx(
        0.3 * float(torch.randn(1, generator=torch.Generator().manual_seed(0), dtype=D)), rel=1e-12
    )


def test_models_in_other_units_compose():
    """[0, 1] against [−1, 1]: the same box in both units is one density, and the quotient is 1."""
    unit = Box(torch.zeros(2, dtype=D), torch.ones(2, dtype=D))
    signed = Box(-torch.ones(2, dtype=D), torch.ones(2, dtype=D))
    for sigma in (None, 0.2, 3.0):
        x = torch.rand(9, 2, dtype=D, generator=torch.Generator().manual_seed(2)) * 2 - 1
        assert torch.allclose(affine(unit, -1.0, 2.0).energy(x, sigma), signed.energy(x, sigma))


def test_nested_maps_multiply():
    twice = affine(affine(P, 1.0, 2.0), LOC, 3.0)
    once = affine(P, LOC + 3.0, 6.0)
    assert torch.allclose(twice.energy(X, 0.5), once.energy(X, 0.5))


def test_static_terms_are_moved_too():
    laplace = term(lambda x: x.abs().sum(-1) + 2 * math.log(2), kind="energy", event_shape=2, normalized=True)
    moved = affine(laplace, 1.0, 2.0)
    assert moved.path == "static"
    assert moved.normalized
    assert torch.allclose(moved.energy(X), ((X - 1) / 2).abs().sum(-1) + 2 * math.log(4))


def test_a_positive_variable_is_real_once_moved():
    gamma = term(torch.distributions.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
    assert gamma.variables.support == "positive"
    assert affine(gamma, -1.0, 2.0).variables.support == "real"


def test_guidance_through_a_map_merges():
    moved = affine(P, 0.0, 2.0)
    assert guidance(moved, moved, 3.0).exponents() == [1.0]
