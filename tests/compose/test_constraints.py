"""Denoised, Clamp, bounded_negation, Geometric."""

import math

import pytest
import torch

from boltzmix.compose import Box, Clamp, Denoised, Gaussian, GaussianMixture, Geometric, bounded_negation, term
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable

D = torch.float64
PRIOR = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=D), 0.4, [1, 2])
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=D) * 2


def cost(x):
    return (x[:, 0] - 1) ** 2 + torch.cos(x[:, 1])


COST = term(cost, kind="energy", event_shape=2)


def test_denoised_is_the_term_at_the_posterior_mean():
    r = Denoised(COST, PRIOR)
    for sigma in (0.3, 2.0, torch.linspace(0.1, 2.0, 8, dtype=D)):
        assert torch.allclose(r.energy(X, sigma), cost(PRIOR.denoise(X, sigma)))


def test_denoised_is_the_term_itself_at_the_data_end():
    r = Denoised(COST, PRIOR)
    for sigma in (None, 0.0, torch.zeros(8, dtype=D)):
        assert torch.equal(r.energy(X, sigma), cost(X))
        assert torch.allclose(r.score(X, sigma), COST.score(X))
    mixed = torch.tensor([0.0, 1.0] * 4, dtype=D)
    assert torch.equal(r.energy(X, mixed)[::2], cost(X)[::2])


def test_denoised_differentiates_through_the_prior():
    """Against differences of the energy: a prior taken as constant would give another score."""
    r, sigma, h = Denoised(COST, PRIOR), 0.8, 1e-5
    score = r.score(X, sigma)
    for k in range(2):
        step = h * torch.eye(2, dtype=D)[k]
        slope = (r.energy(X + step, sigma) - r.energy(X - step, sigma)) / (2 * h)
        assert torch.allclose(score[:, k], -slope, atol=1e-7)
    estimate = PRIOR.denoise(X, sigma)
    assert not torch.allclose(score, COST.score(estimate), atol=1e-2)


def test_denoised_below_a_networks_smallest_level():
    """A prior that knows [0.1, 10]: the composite's path still ends at σ = 0, where the term is itself."""

    def pull(x, sigma):
        return -x / (1 + sigma.reshape(-1, 1) ** 2)

    prior = term(pull, kind="score", event_shape=2, path="noised", sigma_range=(0.1, 10.0))
    r = Denoised(COST, prior)
    assert r.sigma_range == (0.0, 10.0)
    assert torch.equal(r.energy(X, 0.0), cost(X))
    assert torch.allclose(r.energy(X, 0.05), cost(X / (1 + 0.1**2)))


def test_denoised_over_named_variables():
    r = Denoised(COST.on("a"), PRIOR.on("a"))
    state = {"a": X}
    plain = Denoised(COST, PRIOR)
    for sigma in (None, 0.5):
        assert torch.allclose(r.energy(state, sigma), plain.energy(X, sigma))
        assert torch.allclose(r.score(state, sigma)["a"], plain.score(X, sigma))
    assert torch.allclose(r.energy(state, {"a": 0.5}), plain.energy(X, 0.5))
    assert torch.allclose(r.energy(state, {"a": None}), cost(X))


def test_denoised_does_not_narrow_the_start():
    assert torch.allclose((PRIOR * Denoised(COST, PRIOR)).coarse(9.0).means, PRIOR.coarse(9.0).means)
    with pytest.raises(TypeError, match="coarse"):
        Denoised(COST, PRIOR).coarse(9.0)


def test_clamp_is_a_delta():
    clamp = Clamp(torch.tensor([True, False]), torch.tensor([0.5, 0.0], dtype=D))
    x = torch.tensor([[0.5, 3.0], [0.4, 3.0]], dtype=D)
    energy, score = clamp.energy_and_score(x)
    assert energy.tolist() == [0.0, math.inf]
    assert not score.any()
    per_row = Clamp([True, False], torch.tensor([[0.5, 0.0], [0.4, 0.0]], dtype=D))
    assert per_row.per_row
    assert not per_row.energy(x).any()


@pytest.mark.parametrize("alpha", [0.5, 2.0, 10.0])
def test_bounded_negation_on_a_grid(alpha):
    """exp(−E) = p / (1 + q/p)^α: never above p, so integrable."""
    p, q = Gaussian(torch.zeros(1, dtype=D), 4.0), Gaussian(torch.ones(1, dtype=D), 0.5)
    x = torch.linspace(-20, 20, 8001, dtype=D)[:, None]
    a, b = p.log_prob(x).exp(), q.log_prob(x).exp()
    expected = a / (1 + b / a) ** alpha
    assert torch.allclose((-bounded_negation(p, q, alpha).energy(x)).exp(), expected, rtol=1e-9, atol=1e-30)
    assert bool((expected <= a).all())
    mass = float(expected.sum()) * 0.005
    assert 0 < mass < 1


def test_bounded_negation_far_from_q_is_p_and_near_it_is_the_quotient():
    p, q = Gaussian(torch.zeros(1, dtype=D), 4.0), Gaussian(torch.ones(1, dtype=D), 0.01)
    formula = bounded_negation(p, q, 3.0)
    far, near = torch.tensor([[-8.0]], dtype=D), torch.ones(1, 1, dtype=D)
    assert float(formula.energy(far)) == pytest.approx(float(p.energy(far)))
    ratio = float(p.energy(near) - q.energy(near))
    assert float(formula.energy(near) - p.energy(near)) == pytest.approx(3.0 * math.log1p(math.exp(ratio)))
    assert float(formula.energy(near)) > float(p.energy(near))


def test_bounded_negation_where_a_density_is_zero():
    p = Box(torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    q = Box(torch.full((1,), 0.5, dtype=D), torch.full((1,), 2.0, dtype=D))
    x = torch.tensor([[0.2], [0.7], [1.5], [5.0]], dtype=D)
    energy, score = bounded_negation(p, q, 1.0).energy_and_score(x)
    assert torch.isinf(energy).tolist() == [False, False, True, True]
    assert float(energy[0]) == 0.0
    assert not torch.isnan(score).any()


def test_bounded_negation_over_different_variables():
    p, q = Gaussian(torch.zeros(1, dtype=D), 4.0), Gaussian(torch.ones(1, dtype=D), 0.5)
    formula = bounded_negation(p.on("a") * p.on("b"), q.on("b"), 1.0)
    state = {"a": X[:, :1].clone().requires_grad_(), "b": X[:, 1:].clone().requires_grad_()}
    expected = torch.autograd.grad(formula.energy(state).sum(), list(state.values()))
    for found, grad in zip(formula.score(state).values(), expected, strict=True):
        assert torch.allclose(found, -grad)


def test_geometric_joins_base_and_target():
    base, target = Gaussian(torch.zeros(2, dtype=D), 4.0), PRIOR * COST
    path = Geometric(base, target)
    for level in (0.0, 0.3, 1.0):
        exact = level * base.energy(X) + (1 - level) * target.energy(X)
        assert torch.allclose(path.energy(X, level), exact)
        assert torch.allclose(path.score(X, level), level * base.score(X) + (1 - level) * target.score(X))
    assert torch.equal(path.energy(X), target.energy(X))
    assert path.sigma_range == (0.0, 1.0)
    with pytest.raises(ValueError, match="noise levels"):
        path.energy(X, 1.5)


def test_geometric_ends_are_pure_where_the_other_is_zero():
    inner = Box(torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    path = Geometric(inner, Gaussian(torch.zeros(1, dtype=D), 1.0))
    x = torch.tensor([[0.5], [3.0]], dtype=D)
    assert torch.isfinite(path.energy(x)).all()
    assert torch.isinf(path.energy(x, torch.tensor([0.0, 0.5], dtype=D))).tolist() == [False, True]
    assert torch.isinf(path.energy(x, 1.0)).tolist() == [False, True]


class Counted(Term):
    """Counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.variables = Variable((2,))
        self.count = 0

    def _energy_and_score(self, x, sigma):
        self.count += 1
        return 0.5 * (x**2).sum(-1), -x

    def _rows(self):
        return 1


def test_geometric_evaluates_shared_terms_once():
    p = Counted()
    path = Geometric(p, p * COST)
    path.energy_and_score(X, 0.5)
    assert p.count == 1
    assert path._rows() == 1
    assert isinstance(path.target, Product)


def test_conditions_reach_inside():
    class Labelled(Counted):
        conditions = frozenset({"label"})

        def _given(self, **condition):
            other = Labelled()
            other.path = self.path
            other.label = condition["label"]
            return other

    p, noised = Labelled(), Labelled()
    noised.path = "noised"
    assert Geometric(p, COST).given(label=1).base.label == 1
    assert Denoised(p, PRIOR).given(label=2).term.label == 2
    assert Denoised(COST, noised).given(label=3).prior.label == 3
    assert bounded_negation(p, COST, 1.0).given(label=4).p.label == 4
