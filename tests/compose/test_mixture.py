"""Sums of densities: weights, zero densities, exact draws, scores without energies."""

import math

import pytest
import torch

from boltzmix.compose import Box, Gaussian, GaussianMixture, MissingEnergy, mixture, term
from boltzmix.compose.mixture import Mixture
from tests.contracts import assert_z

D = torch.float64
P, Q = Gaussian(torch.zeros(2, dtype=D), 1.0), Gaussian(torch.ones(2, dtype=D), 2.0)
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=D)


def pull(x):
    return -x


def test_plus_adds_and_mixture_weighs():
    assert torch.allclose((P + Q).energy(X), mixture([P, Q]).energy(X) - math.log(2))
    assert mixture([P, Q]).weights() == pytest.approx([0.5, 0.5])
    assert mixture([P, Q], [2, 6]).weights() == pytest.approx([0.25, 0.75])


def test_nested_sums_flatten_and_equal_members_merge():
    formula = 0.5 * (P + Q) + 0.5 * P
    assert isinstance(formula, Mixture)
    assert sorted(formula.weights()) == pytest.approx([0.5, 1.0])
    again = (P * Q / Q) + P
    assert again.weights() == pytest.approx([2.0])


def test_scales_beyond_floating_point():
    """Weights are logarithms: 1e300² neither overflows when summed nor when named."""
    huge = 1e300 * (1e300 * P) + 1e300 * (1e300 * Q)
    assert torch.isfinite(huge.energy(X)).all()
    assert torch.allclose(huge.energy(X), (P + Q).energy(X) - 2 * math.log(1e300))
    assert "inf" in huge.name()
    assert huge.weights() == [math.inf, math.inf]
    assert (huge + huge).path == "noised"


def test_members_of_zero_density_have_no_say():
    left = Box(torch.tensor([-2.0], dtype=D), torch.tensor([-1.0], dtype=D))
    right = Box(torch.tensor([1.0], dtype=D), torch.tensor([3.0], dtype=D))
    energy, score = mixture([left, right]).energy_and_score(torch.tensor([[-1.5], [2.0], [0.0]], dtype=D))
    assert torch.allclose(energy[:2].exp(), torch.tensor([2.0, 4.0], dtype=D))
    assert math.isinf(energy[2])
    assert not score.any()


def test_draws_have_the_weights():
    """Component counts of 40,000 draws: |z| < 5, false-positive rate 6e-7."""
    means = torch.tensor([[-20.0, 0.0], [20.0, 0.0], [0.0, 30.0]], dtype=D)
    formula = mixture([Gaussian(means[0], 1.0), GaussianMixture(means[1:], 1.0, [1, 3])], [1, 3])
    x = formula.sample(40_000, torch.Generator().manual_seed(0))
    which = torch.cdist(x, means).argmin(1)
    expected = torch.tensor([4, 3, 9], dtype=D) / 16
    share = torch.bincount(which, minlength=3) / len(x)
    assert_z((share - expected) / (expected * (1 - expected) / len(x)).sqrt(), "shares")
    assert torch.equal(x, formula.sample(40_000, torch.Generator().manual_seed(0)))


def test_draws_over_named_variables():
    formula = mixture([P.on("a") * Q.on("b"), Q.on("a") * P.on("b")])
    draws = formula.sample(50, torch.Generator().manual_seed(0))
    assert {n: tuple(t.shape) for n, t in draws.items()} == {"a": (50, 2), "b": (50, 2)}


def test_score_only_members_have_neither_energy_nor_score_when_mixed():
    s = term(pull, kind="score", event_shape=2)
    formula = mixture([s, P])
    for method in (formula.energy, formula.score, formula.energy_and_score, (formula * P).score, (P * formula).energy):
        with pytest.raises(MissingEnergy):
            method(X)
    assert torch.allclose((2 * s).score(X), -X)
    assert torch.allclose(mixture([s]).score(X), -X)


def test_coarse_weighs_members_by_their_integrals():
    """p + p·q at σ = 50: the product's mass has fallen to N(m_p; m_q, 2σ²)-ish, so the start is all but p's."""
    start = (P + P * Q).coarse(50.0)
    assert float(start.weights.max()) > 0.999
    even = mixture([P, Q], [1, 3]).coarse(50.0)
    assert torch.allclose(even.weights, torch.tensor([0.25, 0.75], dtype=D))


def test_coarse_of_images_matches_moments():
    zero, one = torch.zeros(1, 2, 2, dtype=D), torch.ones(1, 2, 2, dtype=D)
    start = mixture([Gaussian(zero, 1.0), Gaussian(one, 3.0)], [1, 3]).coarse(2.0)
    assert torch.allclose(start.mean, torch.full((4,), 0.75, dtype=D))
    assert torch.allclose(start.variances, torch.full((4,), 0.25 * 5 + 0.75 * 7 + 0.1875, dtype=D))
