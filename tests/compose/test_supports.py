"""Variables with a support: maps onto it, their determinants, and samplers that move without edges."""

import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    LKJCholesky,
    MixtureSameFamily,
    Normal,
    Uniform,
    VonMises,
    Wishart,
    biject_to,
    constraints,
)

from boltzmix.compose import (
    AIS,
    HMC,
    MCMC,
    SMC,
    Clamp,
    Gaussian,
    ScopeError,
    Variable,
    bounded_negation,
    integers,
    mixture,
    product,
    ravel,
    sample,
    term,
)
from boltzmix.compose.bijections import bijection
from boltzmix.compose.supports import contains, meet
from tests.contracts import assert_z

D = torch.float64
BOUNDS = torch.tensor([0.0, 1.0], dtype=D), torch.tensor([2.0, 5.0], dtype=D)
SUPPORTS = {
    "positive number": ("positive", (), 1),
    "positive": (constraints.positive, (3,), 3),
    "above": (constraints.greater_than(2.0), (2,), 2),
    "below": (constraints.less_than(-1.0), (2,), 2),
    "unit": ("unit", (2,), 2),
    "interval": (constraints.interval(-1.0, 2.0), (2,), 2),
    "intervals": (constraints.interval(*BOUNDS), (2,), 2),
    "simplex": ("simplex", (4,), 3),
    "rows of simplices": ("simplex", (2, 3), 4),
    "ordered": ("ordered", (3,), 3),
    "positive ordered": ("positive_ordered", (3,), 3),
    "lower cholesky": (constraints.lower_cholesky, (3, 3), 6),
    "correlation factor": (constraints.corr_cholesky, (4, 4), 6),
    "positive definite": (constraints.positive_definite, (3, 3), 6),
    "independent": (constraints.independent(constraints.positive, 1), (3,), 3),
    "cat": (constraints.cat([constraints.positive, constraints.unit_interval], -1, [1, 2]), (3,), 3),
}


def freely(variable, x):
    """The entries of one value that its density is a density of, ``(dim,)``."""
    support, shape = variable.support, variable.shape
    if support == "simplex":
        return x[..., :-1].flatten()
    if support in ("lower_cholesky", "positive_definite", "corr_cholesky"):
        rows, columns = torch.tril_indices(*shape[-2:], -1 if support == "corr_cholesky" else 0)
        return x[..., rows, columns].flatten()
    return x.flatten()


def points(variable, n=6, seed=0, scale=1.5):
    return scale * torch.randn(n, *variable.free_shape, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.mark.parametrize("name", SUPPORTS)
def test_maps_are_one_to_one_and_their_determinant_is_that_of_autograd(name):
    support, shape, dim = SUPPORTS[name]
    variable = Variable(shape, support)
    assert variable.dim == dim
    transform = bijection(variable.support)
    y = points(variable)
    x = transform(y)
    assert x.shape == (6, *shape)
    assert x.dtype == D
    assert contains(variable.support, x, len(shape)).all()
    assert torch.allclose(transform.inv(x), y, atol=1e-9)
    logs = transform.log_abs_det_jacobian(y, x).reshape(6, -1).sum(1)
    for row in range(6):
        slope = torch.autograd.functional.jacobian(lambda q: freely(variable, transform(q[None])[0]), y[row])
        assert float(logs[row]) == pytest.approx(float(torch.linalg.slogdet(slope.reshape(dim, dim))[1]), abs=1e-9)


@pytest.mark.parametrize("name", ["unit", "interval", "simplex", "correlation factor", "positive", "above"])
def test_maps_are_torchs_own_where_torch_does_not_clamp(name):
    support, shape, _ = SUPPORTS[name]
    variable = Variable(shape, support)
    y = points(variable, scale=0.7)
    own, theirs = bijection(variable.support), biject_to(support if not isinstance(support, str) else _named(support))
    assert torch.allclose(own(y), theirs(y), atol=1e-12)
    logs = [t.log_abs_det_jacobian(y, t(y)).reshape(6, -1).sum(1) for t in (own, theirs)]
    assert torch.allclose(*logs, atol=1e-9)


def _named(name):
    return {"unit": constraints.unit_interval, "simplex": constraints.simplex}[name]


# ------------------------------------------------------------------------------------------------- densities of y


def number(value):
    return torch.tensor(value, dtype=D)


NORMALISED = {
    "gamma": Gamma(number(2.5), number(1.5)),
    "beta": Beta(number(0.7), number(2.0)),
    "interval": Uniform(number(-1.0), number(2.0)),
    "von mises": VonMises(number(0.5), number(2.0)),
    "simplex": Dirichlet(torch.tensor([0.8, 2.0, 1.5], dtype=D)),
    "correlations": LKJCholesky(2, number(1.7)),
    "wishart": Wishart(number(2.5), torch.eye(1, dtype=D)),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_the_density_of_unconstrained_coordinates_integrates_to_one(name):
    """By the trapezoidal rule, which converges faster than any power of the step for smooth densities on the line."""
    p = term(NORMALISED[name])
    target = ravel(p)
    assert target.view.transformed
    line = torch.linspace(-32.0, 32.0, 641, dtype=D) if target.dim == 2 else torch.linspace(-80.0, 80.0, 8001, dtype=D)
    grid = torch.cartesian_prod(*[line] * target.dim).reshape(-1, target.dim)
    total = float((-target.energy(grid)).exp().sum()) * float(line[1] - line[0]) ** target.dim
    assert total == pytest.approx(1.0, abs=2e-5)


def test_the_scores_of_unconstrained_coordinates_are_those_of_their_energy():
    """The chain rule against finite differences, for every support at once."""
    variables = {name.replace(" ", "_"): Variable(shape, support) for name, (support, shape, _) in SUPPORTS.items()}

    def energy(p):
        total = 0.0
        for k, x in enumerate(p.values()):
            w = torch.linspace(0.3, 1.1, x[0].numel(), dtype=D)
            total = total + ((x.reshape(len(x), -1) * w) ** 2).sum(1) * (0.1 + 0.05 * k)
        return total

    target = ravel(term(energy, kind="energy", variables=variables), dtype=D)
    assert target.dim == sum(dim for *_, dim in SUPPORTS.values())
    y = 0.7 * torch.randn(1, target.dim, generator=torch.Generator().manual_seed(1), dtype=D)
    found, score = target.energy_and_score(y)
    assert torch.equal(score, target.score(y))
    assert torch.allclose(found, target.energy(y))
    step = 1e-6 * torch.eye(target.dim, dtype=D)
    slope = (target.energy(y + step) - target.energy(y - step)) / 2e-6
    assert torch.allclose(-slope, score[0], atol=1e-6, rtol=1e-6)
    state = target.view.unravel(y)
    assert torch.allclose(target.view.ravel(state), y, atol=1e-9)
    assert torch.allclose(target.energy(y), energy(state) - target.view.log_abs_det_jacobian(y))


def test_matrices_have_the_normalising_constants_of_torch():
    """LKJ and Wishart densities of y, weighed by Gaussian draws of y: means of weights are 1, |z| < 5 (1.2e-6)."""
    generator = torch.Generator().manual_seed(2)
    scores = []
    for distribution in (LKJCholesky(3, number(2.0)), Wishart(number(4.0), torch.eye(2, dtype=D))):
        target = ravel(term(distribution))
        y = 1.3 * torch.randn(40_000, target.dim, generator=generator, dtype=D)
        own = -0.5 * (y / 1.3).square().sum(1) - target.dim * math.log(1.3 * math.sqrt(2 * math.pi))
        weights = (-target.energy(y) - own).exp()
        scores.append((weights.mean() - 1) / (weights.std() / math.sqrt(len(y))))
    assert_z(torch.stack(scores), "means of weights")


# ------------------------------------------------------------------------------------------------------- samplers


def lkj(p):
    """LKJ over Cholesky factors of 3 × 3 correlation matrices with concentration 2, up to a constant."""
    logs = p["L"].diagonal(dim1=-2, dim2=-1)[:, 1:].log()
    return (logs * torch.tensor([3.0, 2.0], dtype=logs.dtype)).sum(1)  # K − k + 2 η − 2 for k = 2, 3


MOMENTS = {
    "gamma": (term(Gamma(number(3.0), number(2.0))), lambda x: torch.stack([x[:, 0], x[:, 0].log()], 1),
              [1.5, float(torch.digamma(number(3.0))) - math.log(2.0)]),
    "beta": (term(Beta(number(2.0), number(0.6))), lambda x: torch.cat([x, x**2], 1),
             [2 / 2.6, 2 * 3 / (2.6 * 3.6)]),
    "dirichlet": (term(Dirichlet(number([0.7, 1.0, 2.3]))), lambda x: torch.cat([x, x**2], 1),
                  [0.175, 0.25, 0.575, 0.7 * 1.7 / 20, 2.0 / 20, 2.3 * 3.3 / 20]),
    "correlations": (term(lkj, kind="log_prob", variables={"L": Variable((3, 3), "corr_cholesky")}),
                     lambda x: _correlations(x["L"]), [0.0, 0.0, 0.0, 1 / 6, 1 / 6, 1 / 6]),
    "ordered": (term(lambda x: -0.5 * (x**2).sum(1), kind="log_prob", event_shape=3, support="ordered"),
                lambda x: x, [-1.5 / math.sqrt(math.pi), 0.0, 1.5 / math.sqrt(math.pi)]),
    "interval": (term(lambda x: x[:, 0], kind="log_prob", event_shape=1, support=constraints.interval(-1.0, 2.0)),
                 lambda x: torch.exp(-x), [3 / (math.e**2 - 1 / math.e)]),
}  # fmt: skip


def _correlations(factor):
    """Off-diagonal correlations and their squares; under LKJ, (r + 1)/2 is Beta(η + K/2 − 1) twice: var 1/(2a + 1)."""
    r = (factor @ factor.mT)[:, [1, 2, 2], [0, 0, 1]]
    return torch.cat([r, r * r], 1)


def z_of_chains(values, truth):
    """z-scores from the spread of the means of chains ``(chains, draws, k)``."""
    means = values.mean(1)
    return (means.mean(0) - truth) / (means.std(0) / math.sqrt(len(means)))


@pytest.mark.parametrize("name", MOMENTS)
def test_chains_in_unconstrained_coordinates_have_the_right_moments(name):
    """64 chains of HMC: |z| < 5 for at most six moments (false-positive rate 3e-5 with 63 degrees of freedom)."""
    p, statistic, truth = MOMENTS[name]
    sampler = MCMC(HMC(step_size=0.5, num_leapfrog=4), warmup=60, draws=150)
    draw = sample(p, chains=64, sampler=sampler, dtype=D, seed=3, progress=False)
    for state in draw.x.values() if isinstance(draw.x, dict) else [draw.x]:
        assert state.dtype == D
        variable = p.variables if isinstance(p.variables, Variable) else p.variables["L"]
        assert contains(variable.support, state.flatten(0, 1), len(variable.shape)).all()
    flat = draw.x.flatten(0, 1) if not isinstance(draw.x, dict) else {"L": draw.x["L"].flatten(0, 1)}
    values = statistic(flat).reshape(64, 150, -1)
    assert_z(z_of_chains(values, torch.tensor(truth, dtype=D)), name)


EVIDENCE = {
    "gamma": (term(lambda x: 2 * x[:, 0].log() - x[:, 0], kind="log_prob", event_shape=1, support="positive"),
              math.log(2.0)),
    "beta": (term(lambda x: (x * (1 - x)).log()[:, 0], kind="log_prob", event_shape=1, support="unit"),
             -math.log(6.0)),
    "dirichlet": (term(lambda x: x.log().sum(1), kind="log_prob", event_shape=3, support="simplex"),
                  -math.log(120.0)),
    "correlations": (term(lambda x: 0 * x[:, 0, 0], kind="log_prob", event_shape=(3, 3), support="corr_cholesky"),
                     math.log(2 * math.pi)),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIDENCE)
def test_log_z_is_the_integral_over_the_support(name):
    """SMC from a fitted Gaussian; within 5 of its own standard errors and 0.1."""
    p, truth = EVIDENCE[name]
    draw = sample(p, 1500, sampler=SMC(), dtype=D, seed=4, progress=False)
    assert draw.info.path == "geometric"
    assert abs(draw.log_z - truth) < 0.1
    support = p.variables.support
    assert contains(support, draw.x, len(p.event_shape)).all()


def test_exact_starts_go_with_their_determinant():
    """Gamma prior × exponential likelihood: a Gamma, with log Z in closed form; SMC and AIS from draws of the prior."""
    prior = term(Gamma(number(3.0), number(2.0)))
    formula = prior * term(lambda x: -1.5 * x[:, 0], kind="log_prob", event_shape=1)
    truth = 3 * math.log(2.0 / 3.5)
    for sampler in (SMC(path="exact-start"), AIS(path="exact-start", levels=8)):
        draw = sample(formula, 2000, sampler=sampler, seed=5, progress=False)
        assert draw.info.path == "exact-start"
        assert abs(draw.log_z - truth) < 0.06
        weights = draw.log_weights.softmax(0)
        assert float((weights * draw.x[:, 0]).sum()) == pytest.approx(3 / 3.5, abs=0.06)


def test_a_path_from_init_needs_the_support_of_the_target():
    posterior, _ = EVIDENCE["gamma"]
    wide = term(Gamma(number(2.0), number(0.5)))
    draw = sample(posterior, 1500, sampler=SMC(), init=wide, seed=7, progress=False)
    assert draw.log_z == pytest.approx(math.log(2.0), abs=0.1)
    with pytest.raises(ValueError, match=r"init lives on \{'x': 'real'\} and the target on \{'x': 'positive'\}"):
        sample(posterior, 100, sampler=SMC(), init=Gaussian(torch.zeros(1, dtype=D), 1.0), dtype=D, seed=7)


# ------------------------------------------------------------------------------------- starts, clamps, edges, algebra


HIERARCHY = term(
    lambda p: -((p["theta"] - p["mu"][:, None]) ** 2).sum(1) - p["tau"] - p["mu"] ** 2 + p["w"].log().sum(1),
    kind="log_prob",
    event_shape={"mu": (), "tau": (), "theta": (3,), "w": (2,)},
    support={"tau": "positive", "w": "simplex"},
)


def hierarchy(n, **changed):
    state = {
        "mu": torch.zeros(n), "tau": torch.ones(n), "theta": torch.zeros(n, 3), "w": torch.full((n, 2), 0.5),
    }  # fmt: skip
    return state | changed


def test_starts_are_given_and_draws_come_back_in_the_variables_own_coordinates():
    sampler = MCMC(HMC(step_size=1e-4, num_leapfrog=1), draws=3, adapt=False)
    start = hierarchy(2, tau=torch.tensor([0.25, 4.0]), w=torch.tensor([[0.1, 0.9], [0.75, 0.25]]))
    draw = sample(HIERARCHY, chains=2, sampler=sampler, init=start, seed=0, progress=False)
    assert {name: tuple(x.shape) for name, x in draw.x.items()} == {
        "mu": (2, 3), "tau": (2, 3), "theta": (2, 3, 3), "w": (2, 3, 2),
    }  # fmt: skip
    assert all(x.dtype == torch.float32 for x in draw.x.values())
    assert torch.allclose(draw.x["tau"], start["tau"][:, None], rtol=1e-2)
    assert torch.allclose(draw.x["w"], start["w"][:, None], rtol=1e-2)


EDGES = [
    ({"tau": torch.tensor([1.0, 0.0])}, r"'tau' of row 1 is \[0.0\], on the edge of its support positive"),
    ({"tau": torch.tensor([-1.0, 1.0])}, r"'tau' of row 0"),
    ({"w": torch.tensor([[1.0, 0.0], [0.5, 0.5]])}, r"'w' of row 0 is \[1.0, 0.0\]"),
    ({"w": torch.tensor([[0.5, 0.5], [0.5, 0.6]])}, r"'w' of row 1.*simplex"),
    ({"tau": torch.tensor([math.nan, 1.0])}, "1 of 2 states"),
]


@pytest.mark.parametrize(("changed", "message"), EDGES)
def test_starts_on_the_edge_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        sample(HIERARCHY, chains=2, sampler=MCMC(HMC(step_size=0.1), draws=4), init=hierarchy(2, **changed), seed=0)


def test_a_clamp_holds_entries_of_a_constrained_variable():
    """Clamped Gammas: the others keep their moments, and log Z is that of the slice, without a determinant."""
    p = term(Independent(Gamma(number([3.0, 2.0]), number(1.0)), 1))
    clamp = Clamp(torch.tensor([True, False]), number([2.0, 0.0]))
    draw = sample(p * clamp, 2000, sampler=SMC(), seed=6, progress=False)
    assert (draw.x[:, 0] == 2.0).all()
    assert draw.log_z == pytest.approx(float(Gamma(number(3.0), number(1.0)).log_prob(number(2.0))), abs=0.06)
    assert float(draw.x[:, 1].mean()) == pytest.approx(2.0, abs=0.2)
    target = ravel(p * clamp)
    y = torch.linspace(-1.0, 1.0, 5, dtype=D)[:, None]
    assert torch.allclose(target.view.log_abs_det_jacobian(y), y[:, 0])
    step = (target.energy(y + 1e-6) - target.energy(y - 1e-6)) / 2e-6
    assert torch.allclose(target.score(y)[:, 0], -step, atol=1e-6)
    held = Clamp(torch.tensor([True, False]), number([1.0, 0.0]))
    box = ravel(term(Independent(Uniform(number([-1.0, 0.0]), number(2.0)), 1)) * held)
    alone = ravel(term(Uniform(number(0.0), number(2.0))))
    assert torch.allclose(box.view.log_abs_det_jacobian(y), alone.view.log_abs_det_jacobian(y))
    with pytest.raises(ValueError, match=r"holds variable 'x' at \[-2.0\], outside of its support positive"):
        ravel(p * Clamp(torch.tensor([True, False]), number([-2.0, 0.0])))
    with pytest.raises(ValueError, match="whose entries hang together"):
        ravel(term(Dirichlet(number([1.0, 1.0]))) * Clamp(torch.tensor([True, False]), number([0.5, 0.0])))


def test_a_value_that_rounds_onto_the_edge_has_the_density_of_the_edge():
    """In float32 sigmoid(20) is 1: uniform densities stay right there, vanishing ones reject, infinite ones diverge."""
    y = torch.tensor([[20.0], [-120.0]])
    flat = ravel(term(lambda x: 0.0 * x[:, 0], kind="energy", event_shape=1, support="unit"))
    assert flat.view.unravel(y)[:, 0].tolist() == [1.0, 0.0]
    assert torch.allclose(flat.energy(y), torch.tensor([20.0, 120.0]))
    vanishing, infinite = (ravel(term(Beta(torch.tensor(a), torch.tensor(a)))) for a in (2.0, 0.5))
    assert torch.isposinf(vanishing.energy(y)).all()
    assert torch.isneginf(infinite.energy(y)).all()
    kernel = HMC(step_size=3.0, num_leapfrog=1)
    counted = []
    for target in (flat, vanishing, infinite):
        state = kernel.init(target, torch.full((4000, 1), 14.0))
        noise = kernel.noise(state, torch.Generator().manual_seed(0))
        after, info = kernel.step(target, state, kernel.tune(state.x), noise)
        counted.append(int(info.divergent.sum()))
        assert torch.isfinite(after.energy).all()
    assert counted[0] == counted[1] == 0
    assert counted[2] > 100


def test_maps_do_not_clamp():
    """Far out in float64 the distance from the edge keeps falling, where torch's maps stop."""
    y = torch.tensor([-800.0, -40.0, 30.0], dtype=D)
    x = bijection("unit")(y)
    assert x.tolist() == pytest.approx([0.0, math.exp(-40.0), 1 - math.exp(-30.0)], rel=1e-12, abs=0.0)
    lower = bijection(constraints.interval(-1.0, 0.0))(torch.tensor([30.0, 80.0], dtype=D))
    assert lower.tolist() == pytest.approx([-math.exp(-30.0), -math.exp(-80.0)], rel=1e-9, abs=0.0)
    parts = bijection("simplex")(torch.tensor([80.0, 3.0], dtype=D))
    assert float(parts[1]) == pytest.approx(2 * math.exp(-80.0) / (1 + math.exp(-3.0)), rel=1e-9, abs=0.0)


def test_supports_of_a_product_meet_and_those_of_a_sum_are_real():
    gamma, uniform = term(Gamma(number(2.0), number(1.0))), term(Uniform(number(-1.0), number(3.0)))
    wide = Gaussian(torch.zeros(1, dtype=D), 4.0)
    assert (gamma * wide).variables.support == "positive"
    assert (wide * gamma).variables == gamma.variables
    assert (gamma * uniform).variables == Variable((1,), constraints.interval(0.0, 3.0), D)
    assert mixture([gamma, uniform], [0.5, 0.5]).variables.support == "real"
    assert mixture([gamma, gamma**2], [0.5, 0.5]).variables.support == "positive"
    assert (wide / uniform).variables.support == "real"
    assert bounded_negation(wide, gamma, 1.0).variables.support == "real"
    assert (gamma.on("a") * wide.on("b")).variables["a"].support == "positive"
    assert meet(["ordered", "positive"]) == "positive_ordered"
    assert meet(["unit", "simplex", "real"]) == "simplex"
    with pytest.raises(ScopeError, match="positive in one term and less_than"):
        product([gamma, term(lambda x: x[:, 0], kind="energy", event_shape=1, support=constraints.less_than(-2.0))])


def test_a_sum_over_several_supports_is_sampled_where_its_members_live():
    p = mixture([term(Uniform(number(-3.0), number(-2.0))), term(Gamma(number(9.0), number(3.0)))], [0.25, 0.75])
    draw = sample(p, 2000, seed=8, progress=False)
    assert abs(float((draw.x < 0).double().mean()) - 0.25) < 0.04


def test_entries_that_a_support_fixes_are_known_and_are_no_reason_for_a_warning():
    shapes = {"a": (2,), "L": (2, 2), "C": (3, 3)}
    p = term(
        lambda p: 0.5 * (p["a"] ** 2).sum(1) + (p["L"] ** 2).sum((1, 2)),
        kind="energy",
        event_shape=shapes,
        support={"L": "lower_cholesky", "C": "corr_cholesky"},
    )
    held = [0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0]
    assert ravel(p).view.clamped.int().tolist() == held
    assert ravel(term(Gamma(number(1.0), number(1.0)))).view.clamped is None
    draw = sample(p, chains=4, sampler=MCMC(HMC(num_leapfrog=3), warmup=50, draws=50), seed=0, progress=False)
    assert not [found for found in draw.info.extra["warnings"] if found["code"] == "constant"]
    assert math.isfinite(draw.info.ess)


def test_formulas_with_noise_levels_keep_their_coordinates():
    noised = Gaussian(torch.zeros(1, dtype=D), 1.0) * term(Gamma(number(2.0), number(1.0)))
    assert noised.path != "static"
    assert not ravel(noised).view.transformed
    draw = sample(noised, chains=8, sampler=MCMC(HMC(step_size=0.4, num_leapfrog=3), draws=50), seed=0, progress=False)
    assert (draw.x > 0).all()
    assert draw.info.divergences == 0
    surface = Gaussian(torch.zeros(3, dtype=D), 1.0) * term(Dirichlet(number([1.0, 2.0, 3.0])))
    with pytest.raises(TypeError, match=r"simplex, a surface of 2 dimensions in \(3,\), and .* has noise levels"):
        sample(surface, 10, sampler=SMC(path="noise"), seed=0)


# ------------------------------------------------------------------------------------------------------- wrong calls


def f(p):
    return p["a"].sum(1)


WRONG = {
    "a class": (lambda: Variable((2,), constraints.interval), TypeError, "the class _Interval"),
    "no support": (lambda: Variable((2,), 3), TypeError, "got int"),
    "an unknown name": (lambda: Variable((2,), "complex"), ValueError, "'complex': real, positive"),
    "a number as a simplex": (lambda: Variable((), "simplex"), ValueError, r"simplex does not fit shape \(\)"),
    "a simplex of one": (lambda: Variable((1,), "simplex"), ValueError, "at least two"),
    "a vector as a matrix": (lambda: Variable((3,), "corr_cholesky"), ValueError, "of 2 dimensions"),
    "a matrix that is not square": (lambda: Variable((2, 3), "lower_cholesky"), ValueError, "square matrix"),
    "bounds of another shape": (
        lambda: Variable((3,), constraints.interval(torch.zeros(2), 1.0)), ValueError, "does not fit shape",
    ),
    "more bounds than entries": (
        lambda: Variable((), constraints.greater_than(torch.zeros(2))), ValueError, r"values have shape \(2,\)",
    ),
    "bounds the wrong way": (lambda: Variable((2,), constraints.interval(1.0, 0.0)), ValueError, "below its high end"),
    "infinite bounds": (
        lambda: Variable((2,), constraints.interval(torch.tensor([-math.inf, 0.0]), 1.0)), ValueError, "finite",
    ),
    "a constraint without a map": (lambda: Variable((2, 2), constraints.symmetric), ValueError, "no one-to-one map"),
    "counts": (lambda: Variable((), constraints.nonnegative_integer), ValueError, "finitely many"),
    "integers from one": (lambda: Variable((), constraints.integer_interval(1, 3)), ValueError, "start at 0"),
    "a support of nobody": (
        lambda: term(f, kind="energy", event_shape={"a": 2}, support={"b": "positive"}), ValueError, r"names \['b'\]",
    ),
    "supports without names": (
        lambda: term(f, kind="energy", event_shape=2, support={"b": "positive"}), TypeError, "by name",
    ),
    "variables twice": (
        lambda: term(f, kind="energy", event_shape=2, variables=Variable((2,))), TypeError, "not both",
    ),
    "variables that are shapes": (
        lambda: term(f, kind="energy", variables={"a": (2,)}), TypeError, "a Variable or a dictionary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_supports_say_what_to_write(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_supports_have_one_form():
    assert Variable((2,), constraints.positive).support == "positive"
    assert Variable((2,), constraints.nonnegative).support == "positive"
    assert Variable((2,), constraints.greater_than(torch.tensor(0.0))).support == "positive"
    assert Variable((2,), constraints.unit_interval).support == "unit"
    assert Variable((2,), constraints.independent(constraints.real, 1)).support == "real"
    assert Variable((2,), constraints.boolean).support == integers(2)
    assert Variable((), constraints.integer_interval(0, 3)).support == integers(4)
    both = [Variable((2,), constraints.interval(torch.tensor([0.0, 1.0]), 2.0)) for _ in range(2)]
    assert both[0] == both[1]
    assert hash(both[0]) == hash(both[1])
    assert both[0] != Variable((2,), constraints.interval(torch.tensor([0.0, 1.5]), 2.0))
    steps = MixtureSameFamily(Categorical(torch.ones(2)), Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])))
    assert term(steps).variables.support == "real"
    assert term(Independent(Normal(torch.zeros(2), 1.0), 1)).variables.support == "real"
