"""Functions and torch.distributions as terms: rows that fail, constants, dtypes, supports."""

import math
import warnings

import pytest
import torch
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    ExpTransform,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    SigmoidTransform,
    SoftmaxTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    constraints,
)

from boltzmix.compose import SMC, Gaussian, MissingEnergy, NonFinite, SamplingWarning, Variable, sample, term
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


# ------------------------------------------------------------------------------------------- supports that are not real


def number(value):
    return torch.tensor(value, dtype=D)


EXP_UNIFORM = TransformedDistribution(Uniform(number(0.0), number(2.0)), [ExpTransform()])
STEPS = MixtureSameFamily(
    Categorical(probs=torch.tensor([0.25, 0.75], dtype=D)),
    Uniform(torch.tensor([0.0, 2.0], dtype=D), torch.tensor([1.0, 5.0], dtype=D)),
)
CONSTRAINED = {
    "exp of uniform": (EXP_UNIFORM, "positive", (1.0, math.e**2)),
    "mixture of uniforms": (STEPS, "real", (0.0, 5.0)),
    "uniform": (Uniform(number(-1.0), number(2.0)), constraints.interval(-1.0, 2.0), (-1.0, 2.0)),
    "sigmoid of normal": (
        TransformedDistribution(Normal(number(0.0), 1.0), [SigmoidTransform(), AffineTransform(-1.0, 3.0)]),
        "real",
        (-1.0, 2.0),
    ),
    "beta": (Beta(number(2.0), number(3.0)), "unit", (0.0, 1.0)),
    "exponential": (Exponential(number(1.0)), "positive", (0.0, 40.0)),
    "half normal": (HalfNormal(number(1.0)), "positive", (0.0, 10.0)),
    "log normal": (LogNormal(number(0.0), number(0.5)), "positive", (0.0, 40.0)),
    "pareto": (Pareto(number(1.5), number(6.0)), constraints.greater_than(1.5), (1.5, 60.0)),
    "weibull": (Weibull(number(1.0), number(2.0)), "positive", (0.0, 9.0)),
    "gumbel": (Gumbel(number(0.0), number(1.0)), "real", (-6.0, 40.0)),
    "von mises": (VonMises(number(0.5), number(2.0)), constraints.interval(-math.pi, math.pi), (-math.pi, math.pi)),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_constrained_density_integrates_to_one_and_is_zero_outside(name):
    """By the midpoint rule on the support; outside +inf, never NaN, with a score of zero."""
    distribution, support, (low, high) = CONSTRAINED[name]
    p = term(distribution)
    assert p.variables == Variable((1,), support, D)
    count = 400_000
    x = low + (high - low) * (torch.arange(count, dtype=D) + 0.5)[:, None] / count
    energy, score = p.energy_and_score(x)
    assert float((-energy).exp().sum()) * (high - low) / count == pytest.approx(1.0, abs=1e-3)
    assert torch.isfinite(score).all()
    beyond = torch.tensor([low - 1e-3, high + 1e-3, low - 7.0], dtype=D)[:, None]
    if name in ("exponential", "half normal", "log normal", "pareto", "weibull", "gumbel"):
        beyond = beyond[::2] if name != "gumbel" else beyond[:0]  # half lines; all of the line
    energy, score = p.energy_and_score(torch.cat([beyond, x[1::200_000]]))
    assert torch.isposinf(energy[: len(beyond)]).all()
    assert torch.isfinite(energy[len(beyond) :]).all()
    assert not score[: len(beyond)].any()
    assert torch.isfinite(p.energy(p.sample(2000, torch.Generator().manual_seed(0)))).all()


def test_exp_of_a_uniform_has_density_1_over_2x():
    x = torch.tensor([[1.0 + 1e-9], [2.0], [7.0], [0.99], [7.4], [-1.0]], dtype=D)
    p = term(EXP_UNIFORM)
    energy, score = p.energy_and_score(x)
    assert torch.allclose(energy[:3], (2 * x[:3, 0]).log())
    assert torch.isposinf(energy[3:]).all()
    assert torch.allclose(score[:3], -1 / x[:3])
    draws = p.sample(20_000, torch.Generator().manual_seed(0))
    assert_z((draws.log().mean() - 1.0)[None] / (draws.log().std() / math.sqrt(20_000)), "mean of log x")


def test_the_support_is_the_image_of_the_bases():
    """exp of an exponential lives beyond 1, where torch's formula for the base would go on."""
    p = term(TransformedDistribution(Exponential(number(2.0)), [ExpTransform()]))
    energy = p.energy(torch.tensor([[0.5], [0.999], [2.0]], dtype=D))
    assert torch.isposinf(energy[:2]).all()
    assert float(energy[2]) == pytest.approx(-math.log(2.0) + 3 * math.log(2.0))


def test_samplers_respect_a_bounded_support():
    """SMC on 1/(2x), whose edges cut off moves: the mean of log x at |z| < 5, false-positive rate 6e-7."""
    draw = sample(term(EXP_UNIFORM), 4000, seed=0, progress=False)
    assert 1.0 <= float(draw.x.min()) <= float(draw.x.max()) <= math.e**2
    logs = draw.x.log()
    assert_z(torch.stack([(logs.mean() - 1) / (logs.std() / math.sqrt(4000))]), "log x of SMC draws")


def test_the_users_distribution_still_validates():
    distribution = Uniform(number(0.0), number(1.0), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(number(2.0))
    p = term(distribution)
    assert torch.isposinf(p.energy(torch.full((1, 1), 2.0, dtype=D))).all()
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(number(2.0))


def test_simplex_draws_are_in_their_own_support():
    """torch's own check misses draws of many coordinates in float32."""
    p = term(Dirichlet(torch.ones(300)))
    x = p.sample(500, torch.Generator().manual_seed(0))
    assert torch.isfinite(p.energy(x)).all()
    assert torch.isposinf(p.energy(1.01 * x)).all()
    assert torch.isposinf(p.energy(x - 0.1)).all()


class Triangles(Distribution):
    """Something over lower triangular matrices, a constraint that no density here is over."""

    support = constraints.lower_triangular
    arg_constraints = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(event_shape=torch.Size((2, 2)))


DISCRETE = {
    "categorical": (Categorical(probs=torch.tensor([0.2, 0.3, 0.5], dtype=D)), 3),
    "bernoulli": (Bernoulli(number(0.3)), 2),
    "binomial": (Binomial(4, number(0.3)), 5),
    "rows of categoricals": (Independent(Categorical(logits=torch.randn(2, 3, dtype=D)), 1), 3),
    "binomials of several sizes": (Independent(Binomial(torch.tensor([3.0, 5.0], dtype=D), number(0.4)), 1), 6),
    "multinomial": (Multinomial(3, torch.tensor([0.2, 0.8], dtype=D)), 4),
    "one hot": (OneHotCategorical(torch.tensor([0.2, 0.3, 0.5], dtype=D)), 2),
    "mixture": (
        MixtureSameFamily(Categorical(torch.ones(2, dtype=D)), Categorical(torch.tensor([[1.0, 2], [3, 1]], dtype=D))),
        2,
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions_have_energies_draws_and_no_score(name):
    """Enumerated probabilities sum to one and are the frequencies of draws, |z| < 5 for at most 36 values."""
    distribution, k = DISCRETE[name]
    p = term(distribution)
    assert p.variables.support == f"integers({k})"
    values = torch.cartesian_prod(*[torch.arange(k)] * p.event_shape[0]).reshape(-1, p.event_shape[0])
    mass = (-p.energy(values)).exp()
    assert float(mass.sum()) == pytest.approx(1.0)
    assert torch.equal(p.energy(values.int()), p.energy(values))
    for outside in (values[:1] - 1, values[-1:] + 1, values[:1] + 99):
        assert torch.isposinf(p.energy(outside)).all()
    x = p.sample(4000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.long
    found = (x[:, None] == values).all(2).double().mean(0)
    assert not found[mass == 0].any()
    some = mass > 0
    assert_z((found - mass)[some] / (mass * (1 - mass) / 4000).sqrt()[some].clamp(min=1e-9), name)
    with pytest.raises(MissingEnergy, match="over integers"):
        p.score(values)
    assert sample(p, 5, seed=0).info.sampler == "Exact"
    with pytest.raises(TypeError, match="discrete"):
        sample(p, 5, sampler=SMC(), seed=0)
    with pytest.raises(TypeError, match="integer values"):
        p.energy(values.double())


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (Poisson(number(2.0)), r"infinitely many values .* cut its tail"),
        (Geometric(number(0.3)), "infinitely many"),
        (NegativeBinomial(number(3.0), number(0.5)), "infinitely many"),
        (Triangles(), "a surface of fewer dimensions"),
        (TransformedDistribution(Normal(number(0.0), 1.0), [AbsTransform()]), "not one-to-one"),
        (TransformedDistribution(Normal(torch.zeros(2), 1.0), [SoftmaxTransform()]), "not one-to-one"),
        (TransformedDistribution(Bernoulli(number(0.5)), [AffineTransform(0.0, 2.0)]), "discrete distribution"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
def test_distributions_without_a_density_over_our_variables_are_refused(distribution, message):
    with pytest.raises(TypeError, match=message):
        term(distribution)


def test_the_advice_for_an_infinite_support_works():
    poisson = Poisson(number(2.0))
    p = term(Categorical(probs=poisson.log_prob(torch.arange(30, dtype=D)).exp()))
    assert float(p.log_prob(torch.tensor([[3]]))) == pytest.approx(float(poisson.log_prob(number(3.0))), abs=1e-9)


# --------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_or_refused_never_cast(dtype):
    x = torch.ones(3, 2, dtype=dtype)
    energy, score = term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2).energy_and_score(x)
    assert energy.dtype == score.dtype == dtype
    with pytest.raises(TypeError, match=r"returned torch\.float32 for x of torch\.b?float16"):
        term(lambda x: (x.float() ** 2).sum(-1), kind="energy", event_shape=2).energy(x)
    with pytest.raises(TypeError, match=r"expects torch\.float32, got torch\.b?float16"):
        term(Independent(Normal(torch.zeros(2), 1.0), 1)).energy(x)
    assert term(Independent(Normal(x[0], 1.0), 1)).energy(x).dtype == dtype


def test_a_half_precision_overflow_is_named():
    """inf − inf in float16 is an error that names the dtype; the same function in float32 is fine."""

    def energy(x):
        big = (x**4).sum(1)
        return big - 0.5 * big

    p = term(energy, kind="energy", event_shape=(2,))
    x = torch.full((3, 2), 30.0)
    assert torch.isfinite(p.energy(x)).all()
    with pytest.raises(NonFinite, match="float16"):
        p.energy(x.half())
