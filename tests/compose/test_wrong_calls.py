"""Wrong calls: the class of the error, and that the message names what came, what was expected and what to do."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal, Poisson

from boltzmix.compose import (
    Box,
    Clamp,
    Denoised,
    Exponent,
    Gaussian,
    GaussianMixture,
    Geometric,
    MissingEnergy,
    NonFinite,
    NotNormalizable,
    ScopeError,
    Term,
    Variable,
    affine,
    bounded_negation,
    guidance,
    integers,
    mixture,
    product,
    ravel,
    term,
)
from boltzmix.compose.closed_form import gaussian_product
from boltzmix.compose.kernels import HMC

P = Gaussian(torch.zeros(2), 1.0)
Q = Gaussian(torch.ones(2), 2.0)
THREE = Gaussian(torch.zeros(3), 1.0)
NAMED = P.on("x") * THREE.on("y")
X = torch.zeros(4, 2)
EYE = torch.eye(2)


def square(x):
    return (x**2).sum(-1)


STATIC = term(square, kind="energy", event_shape=2)
SCORE = term(lambda x: -x, kind="score", event_shape=2, name="pull")
RANGED = term(
    lambda x, s: square(x), kind="energy", event_shape=2, path="noised", sigma_range=(0.1, 5.0), name="ranged"
)
GAMMA = term(torch.distributions.Gamma(torch.tensor(1.0), torch.tensor(1.0)))
TOKENS = term(lambda x: x.sum(-1).float(), kind="energy", event_shape=2, support="integers(4)", name="tokens")


def function(fn, **options):
    return term(fn, kind="energy", event_shape=2, **options)


class Bad(Term):
    """A term whose energies have the wrong shape."""

    def __init__(self):
        super().__init__()
        self.variables = Variable((2,))

    def _energy(self, x, sigma):
        return (x**2).sum(-1, keepdim=True)


def subclass_with_energy():
    type("Mine", (Term,), {"energy": lambda self, x: x})


CALLS = {
    # states
    "event shape": (lambda: P.energy(torch.zeros(4, 3)), ValueError, ["Gaussian", "(N, 2)", "(4, 3)"]),
    "no batch dimension": (lambda: P.energy(torch.zeros(2)), ValueError, ["(N, 2)", "(2,)", "x[None]"]),
    "scalar x": (lambda: P.score(torch.tensor(1.0)), ValueError, ["(N, 2)", "()"]),
    "integer x": (
        lambda: P.energy(torch.zeros(4, 2, dtype=torch.long)),
        TypeError,
        ["int64", "floating-point", "convert"],
    ),
    "complex x": (lambda: P.energy(torch.zeros(4, 2, dtype=torch.cfloat)), TypeError, ["complex64", "floating-point"]),
    "bool x": (lambda: P.energy(torch.zeros(4, 2, dtype=torch.bool)), TypeError, ["bool", "floating-point"]),
    "numpy x": (lambda: P.energy(np.zeros((4, 2))), TypeError, ["ndarray", "tensor", "(N, *event)"]),
    "dictionary for a plain term": (lambda: P.energy({"x": X}), TypeError, ["dict", "shape (2,)", ".on(name)"]),
    "tensor for a named term": (lambda: NAMED.energy(X), TypeError, ["Tensor", "x: (2,)", "dictionary"]),
    "missing variable": (lambda: NAMED.energy({"x": X}), ScopeError, ["lacks ['y']", "x: (2,)"]),
    "unknown variable": (lambda: P.on("x").energy({"x": X, "z": X}), ScopeError, ["unknown ['z']"]),
    "batches that differ": (lambda: NAMED.energy({"x": X, "y": torch.zeros(3, 3)}), ValueError, ["share N", "4", "3"]),
    "float tokens": (lambda: TOKENS.energy(X), TypeError, ["tokens", "integer", "float32", "convert"]),
    "declared dtype": (
        lambda: GAMMA.energy(torch.ones(2, 1, dtype=torch.float64)),
        TypeError,
        ["float32", "float64", "x.to"],
    ),
    "log_ratio of two sizes": (lambda: P.log_ratio(X, torch.zeros(3, 2)), ValueError, ["one batch size", "4", "3"]),
    "log_ratio nodes": (lambda: SCORE.log_ratio(X, X, nodes=5), ValueError, ["[1, 2, 3]", "5"]),
    # noise levels
    "negative sigma": (lambda: P.energy(X, -0.1), ValueError, [">= 0", "-0.1", "Gaussian"]),
    "NaN sigma": (lambda: P.score(X, math.nan), ValueError, ["finite", "nan"]),
    "infinite sigma": (lambda: P.score(X, math.inf), ValueError, ["finite", "inf"]),
    "NaN in one row": (lambda: P.score(X, torch.tensor([1.0, math.nan, 1.0, 1.0])), ValueError, ["finite", "nan"]),
    "negative sigma of a static term": (lambda: STATIC.energy(X, -1.0), ValueError, [">= 0", "-1", "square"]),
    "sigma above the range": (lambda: RANGED.energy(X, 6.0), ValueError, ["[0.1, 5]", "6", "ranged", "sigma=None"]),
    "sigma below the range": (lambda: (RANGED * P).energy(X, 0.0), ValueError, ["[0.1, 5]", "0", "sigma=None"]),
    "sigma shape": (lambda: P.energy(X, torch.ones(4, 1)), ValueError, ["()", "(N,) = (4,)", "(4, 1)"]),
    "sigma rows": (lambda: P.energy(X, torch.ones(3)), ValueError, ["(4,)", "(3,)"]),
    "integer sigma tensor": (lambda: P.energy(X, torch.tensor(1)), TypeError, ["floating point", "int64"]),
    "bool sigma": (lambda: P.energy(X, True), TypeError, ["number", "bool"]),
    "text sigma": (lambda: P.energy(X, "1"), TypeError, ["number", "str"]),
    "sigma by name, plain term": (lambda: P.energy(X, {"x": 1.0}), ValueError, ["one variable", "['x']"]),
    "sigma by unknown name": (
        lambda: NAMED.energy({"x": X, "y": torch.zeros(4, 3)}, {"z": 1.0}),
        ValueError,
        ["x: (2,)", "['z']"],
    ),
    "at a negative level": (lambda: P.at(-1.0), ValueError, [">= 0", "-1"]),
    "at a negative level, static": (lambda: STATIC.at(-1.0), ValueError, [">= 0", "-1"]),
    "at several levels": (lambda: P.at(torch.ones(3)), ValueError, ["one noise level", "(3,)"]),
    "at a name": (lambda: P.at("data"), TypeError, ["number >= 0 or None", "str"]),
    "coarse at zero": (lambda: P.coarse(0.0), ValueError, ["sigma > 0", "0.0"]),
    "coarse of a static term": (lambda: STATIC.coarse(1.0), TypeError, ["square", "static"]),
    "coarse of named variables": (lambda: NAMED.coarse(1.0), TypeError, ["one variable", "factors"]),
    # Gaussians
    "mean scalar": (lambda: Gaussian(torch.tensor(0.0), 1.0), ValueError, ["(D,)", "scalar", "torch.tensor([m])"]),
    "integer mean": (
        lambda: Gaussian(torch.zeros(2, dtype=torch.long), 1.0),
        TypeError,
        ["mean", "floating point", "int64", "convert"],
    ),
    "NaN mean": (lambda: Gaussian(torch.tensor([0.0, math.nan]), 1.0), NonFinite, ["mean", "finite", "nan"]),
    "text mean": (lambda: Gaussian("zero", 1.0), TypeError, ["mean", "tensor", "'zero'"]),
    "mixed dtypes": (lambda: Gaussian(torch.zeros(2), EYE.double()), TypeError, ["covariance", "float64", "float32"]),
    "mean that requires grad": (
        lambda: Gaussian(torch.zeros(2, requires_grad=True), 1.0),
        ValueError,
        ["constant", "detach"],
    ),
    "covariance shape": (lambda: Gaussian(torch.zeros(2), torch.ones(3)), ValueError, ["(2, 2)", "(3,)", "variances"]),
    "negative variance": (lambda: Gaussian(torch.zeros(2), -1.0), ValueError, ["positive", "-1"]),
    "zero variance": (lambda: Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0])), ValueError, ["positive", "0"]),
    "bool variance": (lambda: Gaussian(torch.zeros(2), True), TypeError, ["covariance", "bool"]),
    "not positive definite": (
        lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        ValueError,
        ["not positive definite", "-1"],
    ),
    "not symmetric": (
        lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        ValueError,
        ["not symmetric", "0.5 * (C + C.mT)"],
    ),
    "means shape": (lambda: GaussianMixture(torch.zeros(2), 1.0), ValueError, ["(K, D)", "(2,)"]),
    "covariances shape": (lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(2)), ValueError, ["(3, 2, 2)", "(2,)"]),
    "mixture covariance not SPD": (
        lambda: GaussianMixture(torch.zeros(1, 2), -EYE[None]),
        ValueError,
        ["GaussianMixture", "not positive definite"],
    ),
    "zero component weight": (
        lambda: GaussianMixture(torch.zeros(2, 2), 1.0, [1.0, 0.0]),
        ValueError,
        ["(2,)", "positive", "0.0"],
    ),
    "too many component weights": (
        lambda: GaussianMixture(torch.zeros(2, 2), 1.0, [1.0, 1.0, 1.0]),
        ValueError,
        ["(2,)", "(3,)"],
    ),
    # boxes
    "empty box": (lambda: Box([0.0, 1.0], [1.0, 1.0]), ValueError, ["high > low", "1.0"]),
    "corner shapes": (lambda: Box([0.0], [1.0, 2.0]), ValueError, ["(D,)", "(1,)", "(2,)"]),
    "infinite box": (lambda: Box([0.0], [math.inf]), NonFinite, ["high", "finite", "inf"]),
    # functions
    "no kind": (lambda: term(square, event_shape=2), ValueError, ["kind", "log_prob", "None", "sign"]),
    "wrong kind": (lambda: term(square, kind="logp", event_shape=2), ValueError, ["'log_prob'", "'logp'"]),
    "no event_shape": (lambda: term(square, kind="energy"), ValueError, ["event_shape", "(10,)"]),
    "event_shape of zero": (
        lambda: term(square, kind="energy", event_shape=(0,)),
        ValueError,
        ["positive ints", "(0,)"],
    ),
    "event_shape a float": (
        lambda: term(square, kind="energy", event_shape=2.0),
        TypeError,
        ["event_shape", "2.0", "(10,)"],
    ),
    "wrong path": (lambda: function(square, path="noisy"), ValueError, ["'noised'", "'noisy'"]),
    "two arguments, no path": (
        lambda: function(lambda x, s: square(x)),
        ValueError,
        ["two arguments", "path='noised'"],
    ),
    "unknown hint": (lambda: function(square, scale=2), TypeError, ["['scale']", "sigma_range"]),
    "unknown support": (lambda: function(square, support="complex"), ValueError, ["'complex'", "simplex"]),
    "normalized_over a stranger": (
        lambda: term(square, kind="energy", event_shape={"a": 2}, normalized_over={"b"}),
        ValueError,
        ["['a']", "['b']"],
    ),
    "reversed range": (lambda: function(square, sigma_range=(5.0, 1.0)), ValueError, ["low <= high", "5.0"]),
    "no function": (lambda: term(3.0, kind="energy", event_shape=2), TypeError, ["function", "float"]),
    "a class": (lambda: term(nn.Linear, kind="energy", event_shape=2), TypeError, ["Linear", "function"]),
    "hints for a term": (lambda: term(P, kind="energy"), TypeError, ["Term already"]),
    "energies (N, 1)": (
        lambda: function(lambda x: (x**2).sum(-1, keepdim=True)).energy(X),
        ValueError,
        ["(4,)", "(4, 1)", "sum over the event"],
    ),
    "energies of a class (N, 1)": (lambda: Bad().energy(X), ValueError, ["Bad", "(N,) = (4,)", "(4, 1)"]),
    "a scalar energy": (lambda: function(lambda x: (x**2).sum()).energy(X), ValueError, ["(4,)", "()"]),
    "score shape": (lambda: term(square, kind="score", event_shape=2).score(X), ValueError, ["(4, 2)", "(4,)"]),
    "numpy energy": (lambda: function(lambda x: x.numpy().sum(-1)).energy(X), TypeError, ["tensor", "ndarray"]),
    "energy in another dtype": (
        lambda: function(lambda x: square(x).double()).energy(X),
        TypeError,
        ["float64", "float32", "dtype="],
    ),
    "detached energy": (
        lambda: function(lambda x: square(x.detach())).score(X + torch.arange(4.0)[:, None]),
        ValueError,
        ["no gradient", "detach"],
    ),
    "batched distribution": (lambda: term(Normal(torch.zeros(3), 1.0)), ValueError, ["(3,)", "Independent"]),
    "infinite support": (lambda: term(Poisson(torch.tensor(2.0))), TypeError, ["Poisson", "infinitely many"]),
    "score of integers": (
        lambda: term(Categorical(torch.ones(3))).score(torch.zeros(2, 1, dtype=torch.long)),
        MissingEnergy,
        ["Categorical", "over integers"],
    ),
    "hints for a distribution": (
        lambda: term(Normal(torch.tensor(0.0), 1.0), kind="log_prob"),
        TypeError,
        ["no hints", "log_prob"],
    ),
    "integers(0)": (lambda: integers(0), ValueError, ["positive int", "0"]),
    "shape as a list": (lambda: Variable([2]), ValueError, ["tuple", "[2]"]),
    # operators
    "adding a number": (lambda: P + 1, TypeError, ["number 1", "Box"]),
    "adding a function": (lambda: P + square, TypeError, ["function", "boltzmix.term"]),
    "multiplying a function": (lambda: P * square, TypeError, ["function", "boltzmix.term"]),
    "multiplying a tensor": (lambda: P * torch.tensor(0.3), TypeError, ["Tensor", "positive number", "float("]),
    "zero scale": (lambda: 0 * P, ValueError, ["positive", "0"]),
    "negative scale": (lambda: -0.3 * P, ValueError, ["positive", "-0.3"]),
    "infinite scale": (lambda: P / math.inf, ValueError, ["finite", "inf"]),
    "bool scale": (lambda: True * P, TypeError, ["positive number", "bool"]),
    "unary minus": (lambda: -P, TypeError, ["p / q ** gamma", "1 / p"]),
    "subtraction": (lambda: P - Q, TypeError, ["p / q ** gamma", "bounded_negation"]),
    "or": (lambda: P | Q, TypeError, ["mixture([p, q])", "0.5 * p + 0.5 * q"]),
    "and": (lambda: P & Q, TypeError, ["p * q"]),
    "not": (lambda: ~P, TypeError, ["p / q ** gamma", "normalised"]),
    "NaN exponent": (lambda: P**math.nan, ValueError, ["exponent", "finite", "nan"]),
    "bool exponent": (lambda: P**True, TypeError, ["exponent", "bool", "number"]),
    "vector exponent": (lambda: P ** torch.ones(3), ValueError, ["exponent", "(3,)"]),
    "integer tensor exponent": (lambda: P ** torch.tensor(2), ValueError, ["floating-point", "int64"]),
    "NaN tensor exponent": (lambda: P ** torch.tensor(math.nan), ValueError, ["finite", "nan"]),
    "text exponent": (lambda: P ** "2", TypeError, ["exponent", "str"]),
    "schedule of NaN": (lambda: (P ** (lambda s: s / s)).energy(X, 0.0), ValueError, ["finite", "nan", "sigma="]),
    "schedule of a column": (
        lambda: (P ** (lambda s: s[:, None])).energy(X, torch.ones(4)),
        ValueError,
        ["one per row", "(4, 1)", "(4,)"],
    ),
    "guidance power None": (lambda: guidance(P, Q, None), TypeError, ["exponent", "NoneType"]),
    "Exponent of a list": (lambda: Exponent([1.0]), TypeError, ["exponent", "list"]),
    "empty product": (lambda: product(), ValueError, ["at least one", "none"]),
    "product of numbers": (lambda: product(P, 3), TypeError, ["terms", "int"]),
    "shapes that differ": (lambda: P * THREE, ScopeError, ["(2,)", "(3,)", ".on(name)"]),
    "named and plain": (lambda: P.on("x") * Q, ScopeError, ["['x']", "unnamed", ".on(name)"]),
    "one name, two shapes": (lambda: P.on("x") * THREE.on("x"), ScopeError, ["'x'", "(2,)", "(3,)"]),
    "sum over two scopes": (lambda: P.on("x") + NAMED, ScopeError, ["one scope", "x: (2,)", "y: (3,)"]),
    "sum of two shapes": (lambda: mixture([P, THREE]), ScopeError, ["(2,)", "(3,)"]),
    "too many names": (lambda: P.on("x", "y"), ScopeError, ["1 different names", "('x', 'y')"]),
    "repeated names": (lambda: NAMED.on("a", "a"), ScopeError, ["2 different names", "('a', 'a')"]),
    "a name that is no text": (lambda: P.on(3), ScopeError, ["1 different names", "(3,)"]),
    "no common level": (
        lambda: RANGED * affine(RANGED, 0.0, 100.0),
        ValueError,
        ["no noise level", "[0.1, 5]", "[10, 500]", "affine"],
    ),
    "mixture of nothing": (lambda: mixture([]), ValueError, ["at least one", "none"]),
    "negative mixture weight": (lambda: mixture([P, Q], [1.0, -1.0]), ValueError, ["positive", "-1.0"]),
    "NaN mixture weight": (lambda: mixture([P, Q], [1.0, math.nan]), ValueError, ["finite", "nan"]),
    "mixture weights' number": (lambda: mixture([P, Q], [1.0]), ValueError, ["2 terms", "1 weights"]),
    "learnable mixture weights": (
        lambda: mixture([P, Q], torch.ones(2, requires_grad=True)),
        ValueError,
        ["constants", "detach"],
    ),
    "mixture of functions": (lambda: mixture([P, square]), TypeError, ["function", "boltzmix.term"]),
    # what a term is not
    "energy of a score": (lambda: SCORE.energy(X), MissingEnergy, ["pull", "only a score", "log_ratio()"]),
    "energy of a product with a score": (
        lambda: (P * SCORE).energy_and_score(X),
        MissingEnergy,
        ["pull", "only a score"],
    ),
    "score of a score-only mixture": (lambda: mixture([SCORE, P]).score(X), MissingEnergy, ["score-only", "top level"]),
    "nested score-only mixture": (
        lambda: (mixture([SCORE, P]) * Q).score(X),
        MissingEnergy,
        ["score-only", "members with energies"],
    ),
    "log_ratio of a score-only mixture": (lambda: mixture([SCORE, P]).log_ratio(X, X), MissingEnergy, ["score-only"]),
    "log_prob unnormalised": (
        lambda: (P * Q).log_prob(X),
        TypeError,
        ["log_prob()", "Gaussian · Gaussian", "-energy(x)", "calibrate"],
    ),
    "denoise annealed product": (
        lambda: (P * Q).denoise(X, 1.0),
        TypeError,
        ["annealed", "product of noised densities", "noised factors"],
    ),
    "denoise names the factor": (lambda: (P * STATIC**2).denoise(X, 1.0), TypeError, ["its factor square is static"]),
    "denoise names the exponent": (lambda: (Q**3).denoise(X, 1.0), TypeError, ["its factor Gaussian has exponent 3"]),
    "denoise names the member": (
        lambda: (P + P * Q).denoise(X, 1.0),
        TypeError,
        ["its member Gaussian · Gaussian is annealed"],
    ),
    "denoise static": (lambda: STATIC.denoise(X, 1.0), TypeError, ["square", "static"]),
    "denoise without a level": (lambda: P.denoise(X, None), ValueError, ["noise level", "None"]),
    "given on a term without conditions": (lambda: P.given(label=3), TypeError, ["Gaussian", "['label']", "none"]),
    "given of nothing": (lambda: P.given(), TypeError, ["given(label=3)"]),
    "sampling a product": (lambda: (P * Q).sample(3), TypeError, ["exactly", "boltzmix.sample"]),
    "sampling no draws": (lambda: P.sample(0), ValueError, ["positive int", "0"]),
    "sampling 2.5 draws": (lambda: P.sample(2.5), ValueError, ["positive int", "2.5"]),
    "event_shape of named": (lambda: NAMED.event_shape, TypeError, ["one variable", "['x', 'y']"]),
    "coarse of a quotient": (
        lambda: (P / Q**2).coarse(50.0),
        NotNormalizable,
        ["exponents", "positive definite", "50"],
    ),
    "closed form of a quotient": (
        lambda: gaussian_product([(P, 1.0), (Q, -3.0)]),
        NotNormalizable,
        ["no finite integral"],
    ),
    "overriding a public method": (subclass_with_energy, TypeError, ["Mine", "energy", "_energy"]),
    "integer variables under HMC": (
        lambda: HMC(step_size=0.1).init(ravel(TOKENS), torch.zeros(1, *TOKENS.event_shape)),
        TypeError,
        ["HMC moves real", "discrete", "Gibbs()"],
    ),
    # wrappers and constraints
    "affine scale zero": (lambda: affine(P, 0.0, 0.0), ValueError, ["scale", "zero", "[0.0]"]),
    "affine scale shape": (lambda: affine(P, 0.0, torch.ones(3)), ValueError, ["scale", "(2,)", "(3,)"]),
    "affine scale NaN": (lambda: affine(P, 0.0, math.nan), NonFinite, ["scale", "finite"]),
    "affine of named": (lambda: affine(NAMED), ScopeError, ["one variable", "x: (2,)", "before binding"]),
    "affine of tokens": (lambda: affine(TOKENS, 0.0, 2.0), TypeError, ["real", "integers(4)"]),
    "affine of a function": (lambda: affine(square), TypeError, ["function", "boltzmix.term"]),
    "denoised of a noised term": (lambda: Denoised(P, Q), TypeError, ["static term", "noised", ".at(sigma)"]),
    "denoised by an annealed prior": (lambda: Denoised(STATIC, P * Q), TypeError, ["noised prior", "annealed"]),
    "denoised score": (lambda: Denoised(SCORE, P), MissingEnergy, ["pull", "only a score"]),
    "denoised function": (lambda: Denoised(square, P), TypeError, ["two terms", "boltzmix.term"]),
    "denoised of another shape": (lambda: Denoised(STATIC, THREE), ScopeError, ["(2,)", "(3,)"]),
    "clamp mask of floats": (
        lambda: Clamp(torch.ones(2), torch.zeros(2)),
        TypeError,
        ["mask", "boolean", "float32", "mask > 0"],
    ),
    "clamp nothing": (lambda: Clamp([False, False], torch.zeros(2)), ValueError, ["no coordinate"]),
    "clamp value shape": (lambda: Clamp([True, False], torch.zeros(3)), ValueError, ["(2,)", "(3,)", "(n, *event)"]),
    "clamp rows": (lambda: Clamp([True, False], torch.zeros(3, 2)).energy(X), ValueError, ["3 conditions", "4 rows"]),
    "clamp alone": (lambda: ravel(Clamp([True, False], torch.zeros(2))), ValueError, ["no density", "prior * Clamp"]),
    "bounded_negation alpha": (lambda: bounded_negation(P, Q, -1.0), ValueError, ["alpha >= 0", "-1.0"]),
    "bounded_negation of a score": (lambda: bounded_negation(P, SCORE, 1.0), MissingEnergy, ["pull", "only a score"]),
    "bounded_negation of a function": (lambda: bounded_negation(P, square, 1.0), TypeError, ["function"]),
    "geometric of two scopes": (lambda: Geometric(P.on("x"), NAMED), ScopeError, ["same variables", "y: (3,)"]),
    "geometric of a function": (lambda: Geometric(P, square), TypeError, ["two terms", "boltzmix.term"]),
    "geometric beyond one": (lambda: Geometric(P, Q).energy(X, 2.0), ValueError, ["[0, 1]", "2"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_call(name):
    call, error, fragments = CALLS[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, f"raised {type(caught.value).__name__}: {message}"
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is not in: {message}"
    assert len(message) < 400


def test_there_are_enough():
    assert len(CALLS) >= 40
