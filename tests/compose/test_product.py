"""Products: normal form, zero exponents, evaluation counts, what merges and what a start looks like."""

import math

import numpy as np
import pytest
import torch

from boltzmix.compose import Box, Gaussian, GaussianMixture, NotNormalizable, Term, affine, guidance, product, term
from boltzmix.compose.product import Product
from boltzmix.compose.variable import Variable

D = torch.float64
P, Q = Gaussian(torch.zeros(2, dtype=D), 1.0), Gaussian(torch.ones(2, dtype=D), 2.0)
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=D)


class Counted(Term):
    """A network with conditions: calls and rows are counted, members of one network share a forward."""

    path = "noised"
    conditions = frozenset({"label"})

    def __init__(self, label=None, calls=None):
        super().__init__()
        self.variables = Variable((2,))
        self.label = label
        self.calls = [] if calls is None else calls

    def _given(self, **condition):
        return Counted(condition["label"], self.calls)

    def key(self):
        return ("counted", id(self.calls), self.label)

    def _group(self):
        return ("counted", id(self.calls))

    def _rows(self):
        return 1

    def _one(self, x, sigma, label):
        mean = 0.0 if label is None else float(label)
        variance = 1 + (0 if sigma is None else sigma**2)
        return 0.5 * ((x - mean) ** 2).sum(-1) / variance, -(x - mean) / variance

    def _energy_and_score(self, x, sigma):
        self.calls.append(1)
        return self._one(x, sigma, self.label)

    def _evaluate_together(self, terms, x, sigma, energy, score):
        self.calls.append(len(terms))
        return [self._one(x, sigma, t.label) for t in terms]


def test_guidance_merges_and_costs_one_forward_of_all_conditions():
    p = Counted()
    cat, dog = p.given(label=3), p.given(label=5)
    formula = p * (cat / p) ** 4 * (dog / p) ** 4
    assert sorted(formula.exponents()) == [-7.0, 4.0, 4.0]
    for method in (formula.energy, formula.score, formula.energy_and_score):
        p.calls.clear()
        method(X)
        assert p.calls == [3]
    assert formula._rows() == 3


def test_each_distinct_leaf_is_evaluated_once_wherever_it_occurs():
    p = Counted()
    c = p.given(label=3)
    formula = p * (c / p) ** 3 + p
    formula.energy_and_score(X)
    assert p.calls == [2]
    assert formula._rows() == 2
    p.calls.clear()
    ((p + c) * p / (c + 2 * p) ** 2).score(X)
    assert p.calls == [2]


def test_a_lone_term_is_not_evaluated_with_others():
    p = Counted()
    (p**2 * Q).score(X)
    assert p.calls == [1]


def test_named_and_scaled_views_of_one_network_stay_together():
    p = Counted()
    moved = affine(p, 1.0, 2.0)
    formula = guidance(moved, moved.given(label=2), 3.0)
    formula.score(X)
    assert p.calls == [2]
    p.calls.clear()
    formula.to(D).score(X)
    assert p.calls == [2]
    p.calls.clear()
    guidance(p, p.given(label=2), 3.0).on("x").score({"x": X})
    assert p.calls == [2]


def test_given_on_a_formula_reaches_the_members_that_take_it():
    p = Counted()
    formula = (p * Q).given(label=2)
    assert torch.allclose(formula.score(X), p.given(label=2).score(X) + Q.score(X))
    summed = (p + Q * p).given(label=2)
    assert torch.allclose(summed.energy(X), (p.given(label=2) + Q * p.given(label=2)).energy(X))
    assert torch.allclose((p.on("a") * Q.on("b")).given(label=1).energy({"a": X, "b": X}),
                          p.given(label=1).energy(X) + Q.energy(X))  # fmt: skip


def test_zero_exponents_leave_the_density_one_also_where_it_is_zero():
    box = Box(torch.zeros(2, dtype=D), torch.ones(2, dtype=D))
    outside = torch.full((3, 2), 5.0, dtype=D)
    off = torch.nn.Parameter(torch.tensor(0.0, dtype=D))
    per_row = torch.tensor([0.0, 0.5, 0.0], dtype=D)
    for formula, sigma in (
        (P * box**0, None),
        (P * box ** (lambda s: 0.0), None),
        (P * box ** (lambda s: torch.zeros(())), None),
        (P * box**off, None),
    ):
        assert torch.allclose(formula.energy(outside, sigma), P.energy(outside, sigma))
        assert torch.allclose(formula.score(outside, sigma), P.score(outside, sigma))
    edge = term(lambda x: torch.where(x[:, 0] > 1, math.inf, 0.0 * x[:, 0]), kind="energy", event_shape=2)
    gated = P * edge ** (lambda s: s)
    found = gated.energy(outside, per_row)
    assert torch.isinf(found).tolist() == [False, True, False]
    assert torch.allclose(found[[0, 2]], P.energy(outside, per_row)[[0, 2]])


def test_scales_follow_powers():
    formula = (3 * P) ** 2 / 9
    assert formula.log_scale == pytest.approx(0.0)
    assert torch.allclose(formula.energy(X), 2 * P.energy(X))
    learnable = torch.nn.Parameter(torch.tensor(2.0, dtype=D))
    assert torch.allclose(((3 * P) ** learnable).energy(X), 2 * (P.energy(X) - math.log(3)))
    assert torch.allclose((1 / P).energy(X), -P.energy(X))
    assert torch.allclose((np.float64(2.0) * P).energy(X), P.energy(X) - math.log(2))


def test_product_accepts_a_list():
    assert product([P, Q]).exponents() == product(P, Q).exponents() == [1.0, 1.0]


def test_formulas_read_back():
    assert (P * Q**2).name() == "Gaussian · Gaussian^2"
    assert (P / P).name() == "1"
    assert "learnable" in (P ** torch.nn.Parameter(torch.tensor(1.0))).name()


def test_coarse_adds_precisions_and_ignores_static_factors():
    well = term(lambda x: (x**4).sum(-1), kind="energy", event_shape=2)
    start = (P**2 * Q * well).coarse(10.0)
    precision = 2 / 101 + 1 / 102
    assert torch.allclose(start.variances, torch.full((2,), 1 / precision, dtype=D))
    assert torch.allclose(start.mean, torch.full((2,), (1 / 102) / precision, dtype=D))


def test_coarse_of_a_single_factor_is_its_own():
    mix = GaussianMixture(torch.eye(2, dtype=D), 0.1)
    assert isinstance((0.3 * mix).coarse(2.0), GaussianMixture)


def test_coarse_of_images_stays_diagonal():
    big = torch.zeros(3, 64, 64)
    start = (Gaussian(big, 1.0) * Gaussian(big + 1, 1.0)).coarse(50.0)
    assert start.event_shape == (3, 64, 64)
    assert start.basis is None


def test_coarse_with_full_covariances():
    a, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=D), torch.tensor([1.0, 4.0], dtype=D)
    start = (Gaussian(torch.zeros(2, dtype=D), a) * Gaussian(torch.ones(2, dtype=D), b)).coarse(1.0)
    eye = torch.eye(2, dtype=D)
    precision = torch.linalg.inv(a + eye) + torch.linalg.inv(torch.diag(b) + eye)
    assert torch.allclose(start.covariance, torch.linalg.inv(precision))


def test_quotients_that_cannot_start_are_refused_there_and_not_when_built():
    formula = P / Gaussian(torch.zeros(2, dtype=D), 4.0) ** 2
    formula.energy(X)
    with pytest.raises(NotNormalizable, match="positive definite"):
        formula.coarse(10.0)


def test_pairs_can_be_given_by_hand():
    formula = Product([(P, 1.0), (Q, -0.5), (P, 2.0)])
    assert formula.exponents() == [3.0, -0.5]
