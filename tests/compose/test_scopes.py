"""Named variables: dictionary states, levels per variable, factor graphs that are exact on Gaussians."""

import math

import pytest
import torch

from boltzmix.compose import Clamp, Gaussian, GaussianMixture, ScopeError, mixture, term
from boltzmix.compose.wrappers import On

D = torch.float64
RNG = torch.Generator().manual_seed(0)
P = Gaussian(torch.tensor([0.5, -0.5], dtype=D), torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=D))
Q = Gaussian(torch.ones(1, dtype=D), 2.0)
STATE = {"x": torch.randn(6, 2, generator=RNG, dtype=D), "y": torch.randn(6, 1, generator=RNG, dtype=D)}


def joint(covariance, names):
    """N(0, C) over two named scalars, as a function of a dictionary."""
    precision = torch.linalg.inv(covariance)
    constant = 0.5 * torch.logdet(2 * math.pi * covariance)

    def energy(state):
        v = torch.cat([state[n] for n in names], dim=1)
        return 0.5 * torch.einsum("ni,ij,nj->n", v, precision, v) + constant

    return term(energy, kind="energy", event_shape=dict.fromkeys(names, (1,)), normalized=True)


def test_factors_add_over_their_own_variables():
    formula = P.on("x") * Q.on("y") ** 2
    assert torch.allclose(formula.energy(STATE), P.energy(STATE["x"]) + 2 * Q.energy(STATE["y"]))
    score = formula.score(STATE)
    assert torch.allclose(score["x"], P.score(STATE["x"]))
    assert torch.allclose(score["y"], 2 * Q.score(STATE["y"]))


def test_order_of_the_dictionary_does_not_matter():
    formula = P.on("x") * Q.on("y")
    assert torch.equal(formula.energy(STATE), formula.energy(dict(reversed(STATE.items()))))


def test_a_level_for_each_variable():
    formula = P.on("x") * Q.on("y")
    rows = torch.linspace(0, 2, 6, dtype=D)
    energy = formula.energy(STATE, {"x": 0.5, "y": rows})
    assert torch.allclose(energy, P.energy(STATE["x"], 0.5) + Q.energy(STATE["y"], rows))
    half = formula.energy(STATE, {"x": 0.5})  # a variable that is not named stays at its data end
    assert torch.allclose(half, P.energy(STATE["x"], 0.5) + Q.energy(STATE["y"]))
    assert torch.equal(half, formula.energy(STATE, {"x": 0.5, "y": None}))
    denoised = formula.denoise(STATE, {"x": 0.5, "y": None})
    assert torch.allclose(denoised["x"], P.denoise(STATE["x"], 0.5))
    assert torch.equal(denoised["y"], STATE["y"])


def test_a_varying_exponent_sees_the_level_of_its_own_variables():
    formula = P.on("x") ** (lambda s: 1 + s) * Q.on("y") ** (lambda s: 2 * s)
    energy = formula.energy(STATE, {"x": 0.5, "y": 3.0})
    assert torch.allclose(energy, 1.5 * P.energy(STATE["x"], 0.5) + 6 * Q.energy(STATE["y"], 3.0))


def test_factor_graph_of_gaussians_is_exact():
    """p(x,y) p(y,z) / p(y) is the Gaussian Markov chain: Cov(x, z) = C_xy C_yz / C_yy, and it is normalised."""
    xy = torch.tensor([[1.0, 0.7], [0.7, 2.0]], dtype=D)
    yz = torch.tensor([[2.0, -0.5], [-0.5, 1.5]], dtype=D)
    chain = joint(xy, "xy") * joint(yz, "yz") / Gaussian(torch.zeros(1, dtype=D), 2.0).on("y")
    covariance = torch.tensor([[1.0, 0.7, 0.7 * -0.5 / 2.0], [0.7, 2.0, -0.5], [0.7 * -0.5 / 2.0, -0.5, 1.5]], dtype=D)
    exact = Gaussian(torch.zeros(3, dtype=D), covariance)
    v = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    state = {n: v[:, i : i + 1] for i, n in enumerate("xyz")}
    assert torch.allclose(chain.energy(state), exact.energy(v))
    score = chain.score(state)
    assert torch.allclose(torch.cat([score[n] for n in "xyz"], dim=1), exact.score(v))
    assert list(chain.variables) == ["x", "y", "z"]


def test_renaming_binds_members_so_that_equal_ones_still_merge():
    formula = (P * GaussianMixture(torch.eye(2, dtype=D), 1.0)).on("x") / P.on("x")
    assert len(formula.pairs()) == 1
    assert formula.path == "noised"
    summed = mixture([P, P**2]).on("x")
    assert torch.allclose(summed.energy({"x": STATE["x"]}), mixture([P, P**2]).energy(STATE["x"]))
    clamp = Clamp(torch.tensor([True, False]), torch.zeros(2, dtype=D))
    assert [type(t) for t, _ in (P * clamp).on("x").pairs()] == [On, On]


def test_renaming_named_variables():
    formula = (P.on("x") * Q.on("y")).on("a", "b")
    state = {"a": STATE["x"], "b": STATE["y"]}
    assert torch.allclose(formula.energy(state), (P.on("x") * Q.on("y")).energy(STATE))
    swapped = joint(torch.eye(2, dtype=D) * 2 + 1, "xy").on("y", "x")
    v = {"x": torch.ones(1, 1, dtype=D), "y": torch.zeros(1, 1, dtype=D)}
    assert set(swapped.score(v)) == {"x", "y"}
    cancelled = (P.on("x") * Q.on("y") / Q.on("y")).on("a", "b")
    assert list(cancelled.variables) == ["a", "b"]
    assert not cancelled.score(state)["b"].any()


def test_exact_draws_of_independent_variables():
    formula = P.on("x") * Q.on("y")
    draws = formula.sample(30, torch.Generator().manual_seed(0))
    assert {n: tuple(t.shape) for n, t in draws.items()} == {"x": (30, 2), "y": (30, 1)}
    static = term(torch.distributions.Laplace(torch.tensor(0.0, dtype=D), 1.0)).on("z") * Q.on("y")
    assert static.samplable
    assert static.path == "annealed"
    assert static.sample(3)["z"].shape == (3, 1)


def test_scores_of_a_function_of_named_variables():
    fn = term(lambda s: {"x": -s["x"], "y": -2 * s["y"]}, kind="score", event_shape={"x": 2, "y": 1})
    found = (fn * Q.on("y")).score(STATE)
    assert torch.allclose(found["y"], -2 * STATE["y"] + Q.score(STATE["y"]))
    assert fn.log_ratio(STATE, {n: 0 * t for n, t in STATE.items()}).shape == (6,)


def test_one_name_cannot_have_two_shapes():
    with pytest.raises(ScopeError, match="'x'"):
        P.on("x") * Q.on("x")


def test_dtypes_that_variables_declare_meet():
    declared = term(torch.distributions.Normal(torch.tensor(0.0, dtype=D), 1.0))
    assert (Q * declared).variables.dtype == (declared * Q).variables.dtype == D
    other = term(torch.distributions.Normal(torch.tensor(0.0), 1.0))
    with pytest.raises(TypeError, match="float32"):
        declared * other
