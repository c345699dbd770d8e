"""Exponents: numbers, parameters that are learnt, functions of σ; sums and products of these."""

import copy

import pytest
import torch

from boltzmix.compose import Exponent, Gaussian, GaussianMixture, guidance, negation

D = torch.float64
P, Q = Gaussian(torch.zeros(2, dtype=D), 1.0), Gaussian(torch.ones(2, dtype=D), 2.0)
R = GaussianMixture(torch.eye(2, dtype=D), 0.5)
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=D)


def theta(value=2.0):
    return torch.nn.Parameter(torch.tensor(value, dtype=D))


def test_a_learnable_exponent_gets_the_energys_gradient():
    w = theta()
    formula = P * Q**w
    assert formula.energy(X).requires_grad
    formula.energy(X).sum().backward()
    assert float(w.grad) == pytest.approx(float(Q.energy(X).sum()))
    w.grad = None
    (formula.score(X) ** 2).sum().backward()
    s = P.score(X) + 2.0 * Q.score(X)
    assert float(w.grad) == pytest.approx(float((2 * s * Q.score(X)).sum()))


def test_a_learnable_exponent_is_held_once_however_often_it_occurs():
    w = theta()
    formula = guidance(P, Q, w) * R**w / Q ** (-1.0)
    assert list(formula.parameters()) == [w]
    state = formula.state_dict(keep_vars=True)
    assert sum(t is w for t in state.values()) == 1
    other = guidance(P, Q, other_w := theta(0.0)) * R**other_w / Q ** (-1.0)
    other.load_state_dict(formula.state_dict())
    assert float(other_w) == 2.0
    assert torch.allclose(other.energy(X), formula.energy(X))


def test_merging_keeps_polynomials_of_parameters():
    a, b = theta(2.0), theta(3.0)
    formula = (P**a * P**0.5) ** b
    assert len(formula.pairs()) == 1
    assert float(formula.exponents()[0]) == pytest.approx((2.0 + 0.5) * 3.0)
    assert {id(p) for p in formula.parameters()} == {id(a), id(b)}
    formula.energy(X).sum().backward()
    assert float(a.grad) == pytest.approx(3.0 * float(P.energy(X).sum()))
    assert float(b.grad) == pytest.approx(2.5 * float(P.energy(X).sum()))


def test_parameters_cancel():
    w = theta()
    assert (P**w / P**w).pairs() == []
    assert guidance(P, P, w).exponents() == [1.0]
    assert negation(P, Q, w).exponents()[1] == -2.0


def test_a_step_of_an_optimiser_moves_the_formula():
    w = theta(0.5)
    formula = P * Q**w
    optimizer = torch.optim.SGD(formula.parameters(), lr=0.1)
    before = formula.energy(X).detach()
    formula.energy(X).mean().backward()
    optimizer.step()
    assert float(w) != 0.5
    assert not torch.allclose(formula.energy(X), before)


def test_tensors_that_need_no_gradient_are_numbers():
    formula = P ** torch.tensor(2.0)
    assert formula.exponents() == [2.0]
    assert list(formula.parameters()) == list(formula._exponents.buffers()) == []
    w = torch.tensor(2.0, dtype=D, requires_grad=True)
    (P**w).energy(X).sum().backward()
    assert float(w.grad) == pytest.approx(float(P.energy(X).sum()))


def test_guidance_interval():
    """Guidance only where 0.2 < σ < 2: elsewhere the formula is p (Kynkäänniemi et al., 2024)."""

    def interval(sigma):
        return torch.where((sigma > 0.2) & (sigma < 2.0), 3.0, 0.0)

    formula = guidance(P, Q, interval)
    for sigma, strength in ((None, 0.0), (0.1, 0.0), (1.0, 3.0), (5.0, 0.0)):
        assert torch.allclose(formula.energy(X, sigma), guidance(P, Q, strength).energy(X, sigma))
    rows = torch.tensor([0.0, 0.1, 0.3, 1.0, 1.9, 2.5, 9.0], dtype=D)
    expected = torch.stack([formula.energy(X[i : i + 1], float(s))[0] for i, s in enumerate(rows)])
    assert torch.allclose(formula.energy(X, rows), expected)
    assert formula.path == "annealed"


def test_functions_of_sigma_multiply_with_parameters():
    w = theta()
    formula = (P**w) ** (lambda s: 1 / (1 + s))
    assert float(formula.exponents(torch.tensor(1.0))[0]) == pytest.approx(1.0)
    assert torch.allclose(formula.energy(X, 3.0), 0.5 * P.energy(X, 3.0))
    assert list(formula.parameters()) == [w]


def test_python_branches_work_for_one_level():
    formula = P ** (lambda s: 2.0 if s > 1 else 1)
    assert torch.allclose(formula.energy(X, 2.0), 2 * P.energy(X, 2.0))
    assert torch.allclose(formula.energy(X), P.energy(X))
    with pytest.raises(ValueError, match="torch.where"):
        formula.energy(X, torch.linspace(0, 2, 7, dtype=D))


@pytest.mark.parametrize(
    "bad", [lambda s: float("nan"), lambda s: s * torch.inf, lambda s: torch.full((7,), torch.nan)]
)
def test_schedules_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        (P**bad).energy(X, torch.full((7,), 0.5, dtype=D))


def test_schedules_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="one per row"):
        (P ** (lambda s: torch.ones(3))).energy(X, 1.0)
    with pytest.raises(TypeError, match="number or a tensor"):
        (P ** (lambda s: "1")).energy(X, 1.0)


def test_arithmetic_of_exponents():
    a = Exponent(2.0)
    assert (a * Exponent(3.0) + Exponent(1.0)).constant == 7.0
    w = theta(3.0)
    square = Exponent(w) * Exponent(w)
    assert float(square.value(None)) == 9.0
    assert (square + Exponent(-1.0) * square).constant == 0.0


def test_deep_copies_keep_sharing_among_themselves():
    w = theta()
    clone = copy.deepcopy(guidance(P, Q, w))
    (own,) = clone.parameters()
    assert own is not w
    own.data.fill_(5.0)
    assert torch.allclose(clone.energy(X), guidance(P, Q, 5.0).energy(X))
