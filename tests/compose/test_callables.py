"""Functions and torch.distributions as terms: rows that fail, constants, dtypes, supports."""

import math
import warnings

import pytest
import torch
from torch.distributions import Beta, Dirichlet, Gamma, Independent, Laplace, MultivariateNormal, Normal

from boltzmix.compose import Gaussian, SamplingWarning, term
from tests.contracts import assert_z

D = torch.float64
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=D)


def picky(x):
    """A density whose Cholesky fails for rows with a negative first coordinate."""
    a = torch.eye(2, dtype=x.dtype) * x[:, :1, None]
    return torch.linalg.cholesky(a).diagonal(dim1=-2, dim2=-1).log().sum(-1) - (x**2).sum(-1)


def grumpy(x):
    """Raises an ordinary error as soon as one row is out of range."""
    if bool((x[:, 0] > 5).any()):
        raise ValueError("x too large")
    return -(x**2).sum(-1)


# ---------------------------------------------------------------------------------------------------- rows that fail


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("kind", ["log_prob", "energy"])
def test_only_the_failing_rows_are_nan(n, kind):
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(n), dtype=D) + 0.1
    x[n // 2, 0] = -1.0
    p = term(picky, kind=kind, event_shape=2)
    with pytest.warns(SamplingWarning, match="count as NaN"):
        energy, score = p.energy_and_score(x)
    bad = torch.zeros(n, dtype=torch.bool)
    bad[n // 2] = True
    assert torch.equal(torch.isnan(energy), bad)
    assert torch.equal(torch.isnan(score).any(1), bad)
    if n > 1:
        good = term(picky, kind=kind, event_shape=2)
        assert torch.allclose(energy[~bad], good.energy(x[~bad]))
        assert torch.allclose(score[~bad], good.score(x[~bad]))


def test_per_row_levels_are_halved_with_their_rows():
    def fn(x, sigma):
        if bool((x[:, 0] < 0).any()):
            raise RuntimeError("negative")
        return (x**2).sum(-1) * sigma

    x = torch.tensor([[1.0], [-1.0], [2.0]], dtype=D)
    sigma = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    with pytest.warns(SamplingWarning):
        energy = term(fn, kind="energy", event_shape=1, path="annealed").energy(x, sigma)
    assert energy[[0, 2]].tolist() == [1.0, 12.0]
    assert math.isnan(energy[1])


def test_scores_and_named_variables_are_halved_too():
    def pull(x):
        return -x if bool((x > -1).all()) else torch.linalg.cholesky(-torch.eye(2, dtype=x.dtype))

    with pytest.warns(SamplingWarning):
        score = term(pull, kind="score", event_shape=1).score(torch.tensor([[0.5], [-3.0]], dtype=D))
    assert torch.isnan(score[:, 0]).tolist() == [False, True]
    named = term(lambda s: grumpy(s["a"]) + s["b"][:, 0], kind="log_prob", event_shape={"a": 1, "b": 1})
    state = {"a": torch.tensor([[1.0], [9.0], [2.0]], dtype=D), "b": torch.ones(3, 1, dtype=D)}
    with pytest.warns(SamplingWarning):
        energy, found = named.energy_and_score(state)
    assert torch.isnan(energy).tolist() == [False, True, False]
    assert found["a"][[0, 2], 0].tolist() == [-2.0, -4.0]


@pytest.mark.parametrize("n", [1, 5])
def test_a_function_that_fails_everywhere_raises_its_own_error(n):
    def broken(x):
        return x @ torch.zeros(7, dtype=D)

    with pytest.raises(RuntimeError, match="7"):
        term(broken, kind="energy", event_shape=2).energy(torch.zeros(n, 2, dtype=D))


def test_all_rows_failing_after_it_has_worked_are_nan():
    """Two chains that both leave the support do not end a run."""
    p = term(grumpy, kind="log_prob", event_shape=1)
    assert torch.isfinite(p.energy(torch.ones(2, 1, dtype=D))).all()
    with pytest.warns(SamplingWarning, match="too large"):
        assert torch.isnan(p.energy(torch.full((2, 1), 9.0, dtype=D))).all()
    assert torch.isnan(p.energy(torch.full((1, 1), 9.0, dtype=D))).all()


def test_the_warning_comes_once():
    p = term(picky, kind="log_prob", event_shape=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            p.energy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=D))
    assert len([w for w in caught if w.category is SamplingWarning]) == 1


def test_shape_errors_are_not_halved():
    calls = []

    def wrong(x):
        calls.append(len(x))
        return (x**2).sum(0)

    with pytest.raises(ValueError, match="sum over the event dimensions"):
        term(wrong, kind="energy", event_shape=1).energy(torch.zeros(64, 1, dtype=D))
    assert calls == [64]


def test_programming_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        term(lambda x: 1 / 0, kind="energy", event_shape=1).energy(torch.zeros(4, 1))


# ------------------------------------------------------------------------------------------- constants, dtypes, kinds


def test_a_constant_energy_has_score_zero():
    p = term(lambda x: torch.zeros(len(x), dtype=x.dtype), kind="energy", event_shape=2)
    assert not p.score(X).any()
    w = torch.nn.Parameter(torch.ones((), dtype=D))
    q = term(lambda x: w.expand(len(x)), kind="energy", event_shape=2)
    assert not q.score(X).any()
    inside = term(lambda x: torch.where(x[:, 0] > 0, 0.0, math.inf).to(x), kind="energy", event_shape=2)
    assert not inside.score(X).any()


def test_a_detached_energy_is_refused():
    for fn in (lambda x: (x.detach() ** 2).sum(-1), lambda x: torch.from_numpy((x.detach().numpy() ** 2).sum(-1))):
        p = term(fn, kind="energy", event_shape=2)
        assert p.energy(X).shape == (8,)
        with pytest.raises(ValueError, match="carries no gradient"):
            p.score(X)


def test_score_under_no_grad():
    with torch.no_grad():
        assert torch.allclose(term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2).score(X), -2 * X)


def test_a_network_learns_through_energy_and_score():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)).to(D)
    p = term(net, kind="energy", event_shape=2)
    (p.score(X) ** 2).mean().backward()
    assert any(bool(w.grad.any()) for w in net.parameters())
    assert set(map(id, p.parameters())) == set(map(id, net.parameters()))
    with torch.no_grad():
        assert not p.energy(X).requires_grad


def test_no_graph_is_built_when_nobody_needs_one():
    p = term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2)
    energy, score = (p * Gaussian(torch.zeros(2, dtype=D), 1.0)).energy_and_score(X)
    assert not energy.requires_grad
    assert not score.requires_grad


def test_the_dtype_is_xs():
    p = term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2)
    assert p.energy(X.float()).dtype == torch.float32
    constant = torch.ones(2, dtype=D)
    with pytest.raises(TypeError, match="float64"):
        term(lambda x: ((x - constant) ** 2).sum(-1), kind="energy", event_shape=2).energy(X.float())


def test_data_end_of_a_function_with_a_smallest_level():
    seen = []

    def fn(x, sigma):
        seen.append(float(sigma))
        return (x**2).sum(-1)

    term(fn, kind="energy", event_shape=2, path="noised").energy(X)
    term(fn, kind="energy", event_shape=2, path="noised", sigma_range=(0.02, 80.0)).energy(X)
    assert seen == [0.0, 0.02]


def test_the_same_function_is_one_term():
    def fn(x):
        return (x**2).sum(-1)

    a, b = term(fn, kind="energy", event_shape=2), term(fn, kind="energy", event_shape=2)
    assert (a / b).pairs() == []
    assert len((a * term(fn, kind="log_prob", event_shape=2)).pairs()) == 2
    assert term(a) is a


def test_discrete_functions_have_energies_and_no_gradient():
    p = term(lambda x: x.sum(-1).float(), kind="energy", event_shape=3, support="integers(4)")
    assert p.energy(torch.ones(2, 3, dtype=torch.long)).tolist() == [3.0, 3.0]
    assert p.energy(torch.ones(2, 3, dtype=torch.long), 0.5).tolist() == [3.0, 3.0]


# ------------------------------------------------------------------------------------------------ torch.distributions


@pytest.mark.parametrize(
    "distribution",
    [
        MultivariateNormal(torch.zeros(2, dtype=D), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=D)),
        Independent(Laplace(torch.zeros(2, dtype=D), torch.ones(2, dtype=D)), 1),
        Independent(Normal(torch.zeros(2, 3, dtype=D), 1.0), 2),
    ],
    ids=["mvn", "laplace", "image"],
)
def test_energies_are_the_distributions(distribution):
    p = term(distribution)
    x = p.sample(9, torch.Generator().manual_seed(0))
    assert torch.allclose(p.log_prob(x), distribution.log_prob(x))
    assert p.event_shape == distribution.event_shape
    assert (p.path, p.normalized, p.calibrated, p.samplable) == ("static", True, True, True)


def test_outside_the_support_energy_is_infinite():
    p = term(Gamma(torch.tensor(3.0, dtype=D), torch.tensor(2.0, dtype=D)))
    assert p.event_shape == (1,)
    assert p.variables.support == "positive"
    energy, score = p.energy_and_score(torch.tensor([[1.0], [-1.0], [2.0], [math.nan]], dtype=D))
    assert torch.isfinite(energy).tolist() == [True, False, True, False]
    assert math.isinf(energy[1])
    assert math.isnan(energy[3])
    assert score[[0, 2], 0].tolist() == pytest.approx([2 / 1 - 2, 2 / 2 - 2])
    assert not score[1].any()
    assert torch.isinf(p.energy(-torch.ones(3, 1, dtype=D))).all()


def test_supports_are_declared():
    assert term(Beta(torch.tensor(2.0), torch.tensor(2.0))).variables.support == "unit"
    assert term(Dirichlet(torch.ones(3))).variables.support == "simplex"
    assert term(Independent(Gamma(torch.ones(3), torch.ones(3)), 1)).variables.support == "positive"


def test_draws_come_from_our_generator_and_leave_the_global_one_alone():
    p = term(Independent(Laplace(torch.zeros(2), torch.ones(2)), 1))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = p.sample(4, torch.Generator().manual_seed(1))
    term(Normal(torch.tensor(0.0), 1.0))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, p.sample(4, torch.Generator().manual_seed(1)))


def test_gamma_draws_match():
    """Mean and second moment of 20,000 draws: two z-scores below 5, false-positive rate 1.2e-6."""
    x = term(Gamma(torch.tensor(3.0), torch.tensor(2.0))).sample(20_000, torch.Generator().manual_seed(0)).double()
    moments = torch.stack([x[:, 0], x[:, 0] ** 2], dim=1)
    assert_z((moments.mean(0) - torch.tensor([1.5, 3.0])) / (moments.std(0) / math.sqrt(len(x))), "Gamma moments")


def test_x_in_another_dtype_is_refused():
    p = term(Normal(torch.tensor(0.0, dtype=D), 1.0))
    assert p.variables.dtype == D
    with pytest.raises(TypeError, match="float64"):
        p.energy(torch.zeros(2, 1))
