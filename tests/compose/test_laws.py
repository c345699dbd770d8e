"""The laws of the algebra over random formulas: an energy is that of the formula as written, however it is written.

A formula is a random tree; ``naive`` evaluates it as on paper, leaf by leaf, in float64, without flattening or merging.
Besides its energy it returns the size of the numbers that were added up, which is what "1e-5 relative" refers to: for
p/p that is |E_p|, not 0.
"""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boltzmix.compose import (
    Box,
    Gaussian,
    GaussianMixture,
    bounded_negation,
    guidance,
    mixture,
    negation,
    product,
    term,
)
from boltzmix.compose.closed_form import gaussian_product, mixture_product
from tests.contracts import Contract, check_convolution, check_integral

D = torch.float64
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
checked = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def well(x):
    return (x**4).sum(-1) / 8 - (x**2).sum(-1) / 3


def ripple(x):
    return -torch.cosh(0.5 * x).log().sum(-1) + torch.sin(x[:, 0])


@functools.cache
def leaf(name, dtype):
    """The leaves: Gaussians, mixtures, functions and a box, one object for each dtype."""
    a = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=dtype)
    means = torch.tensor([[-1.0, 0.5], [1.2, -0.3]], dtype=dtype)
    return {
        "gauss": lambda: Gaussian(means[0], a),
        "wide": lambda: Gaussian(means[1], 4.0),
        "mixture": lambda: GaussianMixture(means, 0.5, [1, 3]),
        "well": lambda: term(well, kind="energy", event_shape=2),
        "ripple": lambda: term(ripple, kind="log_prob", event_shape=2),
        "box": lambda: Box(torch.full((2,), -6.0, dtype=dtype), torch.full((2,), 6.0, dtype=dtype)),
    }[name]()


LEAVES = ("gauss", "wide", "mixture", "well", "ripple", "box")
exponents = st.sampled_from([-1.5, -1.0, -0.4, 0.0, 0.5, 1.0, 2.0, 2.7])
scales = st.sampled_from([1e-3, 0.3, 1.0, 7.0])
positive = st.sampled_from([0.5, 1.0, 3.0])
trees = st.recursive(
    st.sampled_from(LEAVES).map(lambda n: ("leaf", n)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["*", "/", "+"]), inner, inner),
        st.tuples(st.just("**"), inner, exponents),
        st.tuples(st.just("scale"), inner, scales),
        st.tuples(st.just("guidance"), inner, inner, exponents),
        st.tuples(st.just("negation"), inner, inner, positive),
        st.tuples(st.just("bounded"), inner, inner, positive),
        st.tuples(st.just("mixture"), inner, inner, positive),
    ),
    max_leaves=6,
)


def build(tree, dtype=D):
    """The formula as a term."""
    op, *rest = tree
    if op == "leaf":
        return leaf(rest[0], dtype)
    args = [build(t, dtype) if isinstance(t, tuple) else t for t in rest]
    return {
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
        "+": lambda a, b: a + b,
        "**": lambda a, w: a**w,
        "scale": lambda a, c: c * a,
        "guidance": guidance,
        "negation": negation,
        "bounded": bounded_negation,
        "mixture": lambda a, b, w: mixture([a, b], [1.0, w]),
    }[op](*args)


def naive(tree, x, sigma):
    """Energy (N,) of the formula as on paper, and the size of the numbers in it."""
    op, *rest = tree
    if op == "leaf":
        energy = leaf(rest[0], D).energy(x, sigma)
        return energy, energy.abs()
    (a, size_a), *more = [naive(t, x, sigma) if isinstance(t, tuple) else (t, None) for t in rest]
    b, size_b = more[0]
    if op == "**":
        return b * a, abs(b) * size_a
    if op == "scale":
        return a - math.log(b), size_a + abs(math.log(b))
    w = more[1][0] if len(more) > 1 else None
    if op == "*":
        return a + b, size_a + size_b
    if op == "/":
        return a - b, size_a + size_b
    if op == "+":
        return -torch.logaddexp(-a, -b), size_a + size_b
    if op == "guidance":
        return (1 - w) * a + w * b, abs(1 - w) * size_a + abs(w) * size_b
    if op == "negation":
        return a - w * b, size_a + w * size_b
    if op == "bounded":
        gap = a - b
        return a + w * torch.logaddexp(gap, torch.zeros_like(gap)), size_a + w * (size_a + size_b)
    assert op == "mixture"
    return -torch.logaddexp(-a - math.log(1 + w), -b + math.log(w / (1 + w))), size_a + size_b + 1


POINTS = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=D) * 1.5
LEVELS = [None, 0.4, torch.linspace(0.1, 3.0, 9, dtype=D)]
levels = st.sampled_from(LEVELS)


def assert_same(left, right, size, dtype, what):
    bound = TOLERANCE[dtype] * (1 + size)
    assert left.dtype == dtype
    gap = (left.detach().double() - right.detach().double()).abs()
    assert bool((gap <= bound).all()), f"{what}: off by {float((gap / bound).max()):.2g} tolerances"


def same_energy(left, right, sigma, size, what):
    assert_same(left.energy(POINTS, sigma), right.energy(POINTS, sigma), size, D, what)
    gap = (left.score(POINTS, sigma) - right.score(POINTS, sigma)).abs()
    assert float(gap.max()) <= 1e-5 * (1 + float(right.score(POINTS, sigma).abs().max()) + float(size.max())), what


@pytest.mark.parametrize("dtype", [D, torch.float32])
@checked
@given(trees, levels)
def test_a_formula_has_the_energy_that_it_spells(dtype, tree, sigma):
    expected, size = naive(tree, POINTS, sigma)
    found = build(tree, dtype).energy(POINTS.to(dtype), sigma)
    assert_same(found, expected, size, dtype, tree)


@checked
@given(trees, levels)
def test_score_is_autograd_of_energy(tree, sigma):
    formula = build(tree)
    x = POINTS.clone().requires_grad_()
    energy = formula.energy(x, sigma)
    expected = -torch.autograd.grad(energy.sum(), x)[0] if energy.requires_grad else torch.zeros_like(x)
    size = 1 + float(naive(tree, POINTS, sigma)[1].max())
    fused_energy, fused = formula.energy_and_score(POINTS, sigma)
    for score in (formula.score(POINTS, sigma), fused):
        assert float((score - expected).abs().max()) <= 1e-5 * (size + float(expected.abs().max()))
    assert float((fused_energy - energy).abs().max()) <= 1e-10 * size


LAWS = {
    "a * b == b * a": (lambda a, b, c, u, v: a * b, lambda a, b, c, u, v: b * a),
    "a + b == b + a": (lambda a, b, c, u, v: a + b, lambda a, b, c, u, v: b + a),
    "(a * b) * c == a * (b * c)": (lambda a, b, c, u, v: (a * b) * c, lambda a, b, c, u, v: a * (b * c)),
    "(a + b) + c == a + (b + c)": (lambda a, b, c, u, v: (a + b) + c, lambda a, b, c, u, v: a + (b + c)),
    "a * (b + c) == a * b + a * c": (lambda a, b, c, u, v: a * (b + c), lambda a, b, c, u, v: a * b + a * c),
    "(a + b) / c == a / c + b / c": (lambda a, b, c, u, v: (a + b) / c, lambda a, b, c, u, v: a / c + b / c),
    "a * b / b == a": (lambda a, b, c, u, v: a * b / b, lambda a, b, c, u, v: a),
    "a / (b / c) == a * c / b": (lambda a, b, c, u, v: a / (b / c), lambda a, b, c, u, v: a * c / b),
    "(a ** u) ** v == a ** (u v)": (lambda a, b, c, u, v: (a**u) ** v, lambda a, b, c, u, v: a ** (u * v)),
    "a ** u * a ** v == a ** (u + v)": (lambda a, b, c, u, v: a**u * a**v, lambda a, b, c, u, v: a ** (u + v)),
    "(a * b) ** u == a ** u * b ** u": (lambda a, b, c, u, v: (a * b) ** u, lambda a, b, c, u, v: a**u * b**u),
    "a + a == 2 a": (lambda a, b, c, u, v: a + a, lambda a, b, c, u, v: 2 * a),
    "3 (a + b) == 3 a + 3 b": (lambda a, b, c, u, v: 3 * (a + b), lambda a, b, c, u, v: 3 * a + b * 3.0),
    "a / 4 == 0.25 a": (lambda a, b, c, u, v: a / 4, lambda a, b, c, u, v: 0.25 * a),
    "sum([a, b, c])": (lambda a, b, c, u, v: sum([a, b, c]), lambda a, b, c, u, v: a + b + c),
    "product(a, b, c)": (lambda a, b, c, u, v: product(a, b, c), lambda a, b, c, u, v: a * b * c),
    "negation": (lambda a, b, c, u, v: negation(a, b, u), lambda a, b, c, u, v: a / b**u),
    "guidance": (lambda a, b, c, u, v: guidance(a, b, u), lambda a, b, c, u, v: a * (b / a) ** u),
    "mixture": (lambda a, b, c, u, v: mixture([a, b], [1, 3]), lambda a, b, c, u, v: 0.25 * a + 0.75 * b),
}


@pytest.mark.parametrize("law", LAWS)
@settings(checked, max_examples=25)
@given(trees, trees, trees, exponents, exponents, levels)
def test_law(law, a, b, c, u, v, sigma):
    left, right = LAWS[law]
    size = 1.0 + sum(naive(t, POINTS, sigma)[1] for t in (a, b, c))
    terms = [build(t) for t in (a, b, c)]
    same_energy(left(*terms, u, v), right(*terms, u, v), sigma, (1 + abs(u)) * (1 + abs(v)) * size, law)


@checked
@given(trees, levels)
def test_quotient_of_equals_is_one(tree, sigma):
    one = build(tree) / build(tree)
    assert one.pairs() == []
    assert not one.energy(POINTS, sigma).any()
    assert not one.score(POINTS, sigma).any()
    assert one.event_shape == (2,)


@checked
@given(trees, st.permutations([0.5, -1.0, 2.0]))
def test_normal_form_does_not_depend_on_the_order(tree, powers):
    """Merging: {p: Σ w} whatever the order, and p costs one evaluation."""
    p, q = build(tree), leaf("gauss", D)
    formula = functools.reduce(lambda acc, w: acc * p**w * q, powers, q)
    straight = p**1.5 * q**4
    assert {t.key() for t, _ in formula.pairs()} == {t.key() for t, _ in straight.pairs()}
    found = {t.key(): e.constant for t, e in formula.pairs()}
    assert all(found[t.key()] == pytest.approx(e.constant) for t, e in straight.pairs())


# --------------------------------------------------------------------------------------------------------- closed forms


def random_spd(size, rng):
    a = torch.randn(size, size, generator=rng, dtype=D)
    return a @ a.mT / size + 0.2 * torch.eye(size, dtype=D)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0), (2.5, 0.3), (2.0, -0.4), (-1.0, 3.0)])
def test_gaussian_products_powers_and_quotients(weights, seed):
    """∏ N(m_i, C_i)^{w_i} = Z N(m, C): energies up to log Z, which numbers confirm, and scores."""
    rng = torch.Generator().manual_seed(seed)
    size = 3
    pairs = []
    for w in weights:
        spread = random_spd(size, rng) * (6.0 if w < 0 else 1.0) + (3 * torch.eye(size, dtype=D) if w < 0 else 0)
        pairs.append((Gaussian(torch.randn(size, generator=rng, dtype=D), spread), w))
    formula = product(*[p**w for p, w in pairs])
    exact, log_z = gaussian_product(pairs)
    x = torch.randn(16, size, generator=rng, dtype=D) * 2
    gap = formula.energy(x) - exact.energy(x)
    assert float((gap + log_z).abs().max()) < 1e-8 * (1 + abs(log_z))
    assert torch.allclose(formula.score(x), exact.score(x), rtol=1e-8, atol=1e-9)


def test_guidance_of_gaussians_is_the_closed_form():
    """p (p_c / p)^α with N(0, 1) and N(1, ½): precision 1 + α, mean 2α / (1 + α)."""
    p, p_c = Gaussian(torch.zeros(1, dtype=D), 1.0), Gaussian(torch.ones(1, dtype=D), 0.5)
    for alpha in (0.0, 0.5, 1.0, 4.0):
        guided = guidance(p, p_c, alpha)
        exact, _ = gaussian_product([(p, 1 - alpha), (p_c, alpha)])
        assert float(exact.covariance) == pytest.approx(1 / (1 + alpha))
        assert float(exact.mean) == pytest.approx(2 * alpha / (1 + alpha))
        x = torch.linspace(-3, 3, 7, dtype=D)[:, None]
        assert torch.allclose(guided.score(x), exact.score(x))


def test_closed_form_log_z_is_the_integral():
    p, q = Gaussian(torch.tensor([0.3], dtype=D), 0.7), Gaussian(torch.tensor([-1.0], dtype=D), 2.0)
    x = torch.linspace(-30, 30, 60_001, dtype=D)[:, None]
    for w, v in ((1.0, 1.0), (2.0, -0.5), (0.3, 0.1)):
        log_z = gaussian_product([(p, w), (q, v)])[1]
        found = torch.logsumexp(-(p**w * q**v).energy(x), 0) + math.log(1e-3)
        assert float(found) == pytest.approx(log_z, abs=1e-9)


def test_mixture_products():
    rng = torch.Generator().manual_seed(1)
    parts = [
        GaussianMixture(
            torch.randn(k, 2, generator=rng, dtype=D), torch.stack([random_spd(2, rng) for _ in range(k)]), w
        )
        for k, w in ((2, [1, 2]), (3, [1, 1, 4]))
    ]
    exact, log_z = mixture_product(parts)
    x = torch.randn(20, 2, generator=rng, dtype=D)
    assert torch.allclose(product(*parts).energy(x), exact.energy(x) - log_z, atol=1e-9)
    assert torch.allclose(product(*parts).score(x), exact.score(x), atol=1e-9)


def test_mixture_product_drops_combinations_that_underflow():
    far = GaussianMixture(torch.tensor([[0.0], [100.0]], dtype=D), 0.01)
    exact, _ = mixture_product([far, far])
    assert len(exact.weights) == 2


# ----------------------------------------------------------------------------------------------------- noise and flags


def test_mixtures_of_normalised_terms_commute_with_noising():
    """Σ w_k (p_k ∗ N) = (Σ w_k p_k) ∗ N: a sum is a GaussianMixture at every level."""
    means = torch.tensor([[-1.0, 0.5], [1.2, -0.3]], dtype=D)
    summed = 0.25 * Gaussian(means[0], 0.3) + 0.75 * Gaussian(means[1], 0.8)
    exact = GaussianMixture(means, torch.tensor([0.3, 0.8], dtype=D), [1, 3])
    for sigma in (None, 0.5, 3.0):
        assert torch.allclose(summed.energy(POINTS, sigma), exact.energy(POINTS, sigma))
        assert torch.allclose(summed.score(POINTS, sigma), exact.score(POINTS, sigma))
    check_convolution(Contract(lambda: mixture([Gaussian(means[0], 0.3), exact]), span=5.0))


def test_summed_scores_are_not_the_noised_product():
    """N(0,1)² noised by σ has variance ½ + σ²; the product of the noised has (1 + σ²)/2, and says it is annealed."""
    p = Gaussian(torch.zeros(1, dtype=D), 1.0)
    twice = p * Gaussian(torch.zeros(1, dtype=D), torch.tensor([1.0], dtype=D))
    slope = -float(twice.score(torch.ones(1, 1, dtype=D), 2.0))
    assert slope == pytest.approx(2 / (1 + 4))
    assert twice.path == "annealed"


G, H = leaf("gauss", D), leaf("wide", D)
W = leaf("well", D)
CHAIN = {"x": (1,), "y": (1,)}


def conditional(state):
    gap = state["y"] - 0.5 * state["x"]
    return -0.5 * (gap**2).sum(-1) - 0.5 * math.log(2 * math.pi)


CONDITIONAL = term(conditional, kind="log_prob", event_shape=CHAIN, normalized_over={"y"})
NORMAL = Gaussian(torch.zeros(1, dtype=D), 1.0)
NEXT = CONDITIONAL.on("y", "z")
UNCALIBRATED = type("Uncalibrated", (Gaussian,), {"calibrated": False, "normalized": False})(
    torch.zeros(2, dtype=D), 1.0
)

FLAGS = {  # formula: (path, normalized, calibrated, samplable)
    "p": (lambda: G, "noised", True, True, True),
    "p*q": (lambda: G * H, "annealed", False, True, False),
    "p*q/q": (lambda: G * H / H, "noised", True, True, True),
    "p**2": (lambda: G**2, "annealed", False, True, False),
    "p**1": (lambda: G**1, "noised", True, True, True),
    "p**tensor(1)": (lambda: G ** torch.tensor(1.0), "noised", True, True, True),
    "2p": (lambda: 2 * G, "noised", False, True, True),
    "2p/2": (lambda: 2 * G / 2, "noised", True, True, True),
    "p/p": (lambda: G / G, "static", False, True, False),
    "static": (lambda: W * W**2, "static", False, True, False),
    "static varying": (lambda: W ** (lambda s: 1 + s), "annealed", False, True, False),
    "p*static": (lambda: G * W, "annealed", False, True, False),
    "0.5p+0.5q": (lambda: 0.5 * G + 0.5 * H, "noised", True, True, True),
    "p+q": (lambda: G + H, "noised", False, True, True),
    "p+p": (lambda: G + G, "noised", False, True, True),
    "mixture[p,p]": (lambda: mixture([G, G]), "noised", True, True, True),
    "mixture[p,q,r]": (lambda: mixture([G, H, leaf("mixture", D)], [1, 2, 5]), "noised", True, True, True),
    "p+p*q": (lambda: G + G * H, "annealed", False, True, False),
    "p+static": (lambda: G + W, "annealed", False, True, False),
    "p(x)q(y)": (lambda: G.on("x") * H.on("y"), "noised", True, True, True),
    "p(x)q(x)": (lambda: G.on("x") * H.on("x"), "annealed", False, True, False),
    "(p*q)(x)/q(x)": (lambda: (G * H).on("x") / H.on("x"), "noised", True, True, True),
    "p(x)q(y)/q(y)": (lambda: G.on("x") * H.on("y") / H.on("y"), "noised", False, True, False),
    "p(y|x)": (lambda: CONDITIONAL, "static", False, True, False),
    "p(x)p(y|x)": (lambda: NORMAL.on("x") * CONDITIONAL, "annealed", True, True, False),
    "p(x)p(y|x)p(z|y)": (lambda: NORMAL.on("x") * CONDITIONAL * NEXT, "annealed", True, True, False),
    "p(y|x)p(z|y)": (lambda: CONDITIONAL * NEXT, "static", False, True, False),
    "p(y)p(y|x)": (lambda: NORMAL.on("y") * CONDITIONAL, "annealed", False, True, False),
    "uncalibrated": (lambda: G * UNCALIBRATED, "annealed", False, False, False),
    "mixture uncalibrated": (lambda: mixture([G, UNCALIBRATED]), "annealed", False, False, False),
    "bounded": (lambda: bounded_negation(G, H, 1.0), "annealed", False, True, False),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    make, path, normalized, calibrated, samplable = FLAGS[name]
    formula = make()
    found = (formula.path, formula.normalized, formula.calibrated, formula.samplable)
    assert found == (path, normalized, calibrated, samplable)
    assert bool(formula.path_reason) == (path == "annealed")


@pytest.mark.parametrize(
    ("formula", "fragment"),
    [
        (G * H, "a product of noised densities is not the noised product"),
        (G**2.5, "its factor Gaussian has exponent 2.5"),
        (G * W, "its factor well is static"),
        (G + W, "its member well is static"),
        (G + G * H, "its member Gaussian · Gaussian is annealed: a product of noised densities"),
        ((G**2 + H) * H, "is annealed: its member Gaussian^2 is annealed: its factor Gaussian has exponent 2"),
    ],
)
def test_path_reason_names_the_factor(formula, fragment):
    assert fragment in formula.path_reason


def test_partly_normalised_products_say_over_what():
    assert (CONDITIONAL * NEXT).normalized_over == {"y", "z"}
    assert NEXT.normalized_over == {"z"}
    assert (NORMAL.on("x") * CONDITIONAL).normalized_over is None
    assert (2 * CONDITIONAL).normalized_over is None


def test_the_chain_rule_integrates_to_one():
    joint = NORMAL.on("x") * CONDITIONAL
    axis = torch.linspace(-8, 8, 401, dtype=D)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    total = (-joint.energy({"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)})).exp().sum() * 0.04**2
    assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_normalised_formulas_integrate_to_one():
    for make in (lambda: G * H / H, lambda: 2 * G / 2, lambda: mixture([G, H])):
        check_integral(Contract(make, span=9.0))


def test_sigma_range_is_the_common_one():
    def at(low, high):
        return term(lambda x, s: (x**2).sum(-1), kind="energy", event_shape=2, path="noised", sigma_range=(low, high))

    assert (at(0.1, 5.0) * at(0.2, 9.0)).sigma_range == (0.2, 5.0)
    assert (at(0.1, 5.0) + at(0.2, 9.0)).sigma_range == (0.2, 5.0)
    assert (at(0.1, 5.0) * W).sigma_range == (0.1, 5.0)
    assert bounded_negation(at(0.1, 5.0), W, 1.0).sigma_range == (0.1, 5.0)
