"""Every term of compose/ under the contract of tests/contracts.py, one line each."""

import copy

import pytest
import torch
from torch.distributions import Gamma, Independent, Laplace, MultivariateNormal

from boltzmix.compose import (
    Box,
    Canvas,
    Denoised,
    Gaussian,
    GaussianMixture,
    Geometric,
    Window,
    affine,
    bounded_negation,
    guidance,
    mixture,
    negation,
    term,
)
from tests.contracts import Contract, check_samples, check_score_is_gradient, contract_cases

D = torch.float64


def vector(*values):
    return torch.tensor(values, dtype=D)


def spd(size, seed=0):
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=D)
    return a @ a.mT / size + 0.3 * torch.eye(size, dtype=D)


P = Gaussian(vector(0.5, -0.3), spd(2))
Q = Gaussian(vector(-0.5, 0.8), 1.7)
R = GaussianMixture(vector(-1.5, 0.0, 1.0, 1.0).reshape(2, 2), vector(0.3, 0.6), [1.0, 2.0])
P1, Q1 = Gaussian(vector(0.4), 0.5), Gaussian(vector(-0.6), 1.5)


def quartic(x):
    return (x**4).sum(-1) / 4 - (x**2).sum(-1)


def student(x):
    return -2 * torch.log1p((x**2).sum(-1) / 3)


def convolved(x, sigma):
    return -0.5 * (x**2).sum(-1) / (1 + sigma**2) - 0.5 * x.shape[-1] * torch.log1p(sigma**2)


def pulled(x, sigma):
    return -x / (1 + expand(sigma) ** 2)


def expand(sigma):
    return sigma[:, None] if sigma.ndim else sigma


def theta(value):
    return torch.nn.Parameter(torch.tensor(value, dtype=D))


TERMS = {
    "gaussian-scalar": Contract(lambda: Gaussian(vector(0.5, -0.5), 0.7)),
    "gaussian-diagonal": Contract(lambda: Gaussian(vector(0.5), vector(0.7))),
    "gaussian-full": Contract(lambda: Gaussian(vector(0.5, -0.5), spd(2)), span=6.0),
    "gaussian-5d": Contract(lambda: Gaussian(torch.ones(5, dtype=D), spd(5)), levels=(None, 1.0, 2.0)),
    "gaussian-image": Contract(lambda: Gaussian(torch.ones(2, 2, 3, dtype=D), 0.8), levels=(None, 1.5)),
    "gaussian-float32": Contract(lambda: Gaussian(torch.zeros(2), 1.0), dtype=torch.float32, span=5.0),
    "mixture-scalar": Contract(lambda: GaussianMixture(vector(-1.0, 1.0)[:, None], vector(0.2, 0.3), [1, 3])),
    "mixture-diagonal": Contract(
        lambda: GaussianMixture(torch.eye(2, dtype=D), vector(0.3, 0.4, 0.5, 1.0).reshape(2, 2))
    ),
    "mixture-full": Contract(
        lambda: GaussianMixture(torch.eye(2, dtype=D), torch.stack([spd(2, 1), spd(2, 2)])), span=5.0
    ),
    "mixture-4d": Contract(lambda: GaussianMixture(torch.eye(4, dtype=D)[:3], spd(4).expand(3, 4, 4), [1, 2, 3])),
    "mixture-float32": Contract(lambda: GaussianMixture(torch.eye(2), 0.5), dtype=torch.float32),
    "box": Contract(lambda: Box(vector(-1.0), vector(1.5)), span=2.0, smooth=False),
    "box-2d": Contract(lambda: Box(vector(-1.0, 0.0), vector(1.0, 1.5)), span=2.0, smooth=False),
    "box-image": Contract(lambda: Box(-torch.ones(2, 2, dtype=D), torch.ones(2, 2, dtype=D)), span=1.5, smooth=False),
    "product": Contract(lambda: P * Q),
    "product-mixture": Contract(lambda: P * R**2 / Q**0.5),
    "power": Contract(lambda: P**2.5),
    "quotient": Contract(lambda: P**2 / Q),
    "cancelled": Contract(lambda: P * Q / Q, span=5.0),
    "scaled": Contract(lambda: 0.3 * R),
    "empty": Contract(lambda: 2.0 * (P / P), levels=(None,)),
    "negation": Contract(lambda: negation(P, Q, 0.3)),
    "guidance": Contract(lambda: guidance(Q, P, 3.0)),
    "guidance-interval": Contract(lambda: guidance(Q, P, lambda s: torch.where((s > 0.1) & (s < 1), 3.0, 0.0))),
    "guidance-learnable": Contract(lambda: guidance(Q, P, theta(2.0))),
    "sum-normalised": Contract(lambda: 0.25 * P1 + 0.75 * Q1, span=8.0),
    "sum-2d": Contract(lambda: mixture([P, Q, R], [1, 2, 3]), span=7.0),
    "sum-image": Contract(
        lambda: mixture([Gaussian(torch.zeros(2, 2, dtype=D), 1.0), Gaussian(torch.ones(2, 2, dtype=D), 0.5)])
    ),
    "sum-unnormalised": Contract(lambda: P + P * Q),
    "product-of-sums": Contract(lambda: (P + Q) * (R + Q) / (P + R) ** 0.5),
    "affine-scalar": Contract(lambda: affine(R, vector(0.3, -0.2), -1.5), span=6.0),
    "affine-diagonal": Contract(lambda: affine(P, 0.5, vector(0.5, 2.0)), span=8.0),
    "affine-full": Contract(lambda: affine(Gaussian(vector(0.5, -0.3), 1.0), 0.5, 2.0), span=8.0),
    "affine-image": Contract(
        lambda: affine(Gaussian(torch.ones(2, 2, dtype=D), 0.5), 1.0, torch.full((2, 2), 1.4, dtype=D))
    ),
    "frozen": Contract(lambda: P.at(0.7), span=5.0),
    "named": Contract(lambda: P.on("x") * Q1.on("y")),
    "factor-graph": Contract(lambda: R.on("x") * Q1.on("y") * term(coupling, kind="energy", event_shape=XY)),
    "denoised": Contract(
        lambda: R * Denoised(term(quartic, kind="energy", event_shape=2), R) ** 0.5, levels=(None, 0.3, 1.0)
    ),
    "denoised-alone": Contract(
        lambda: Denoised(term(quartic, kind="energy", event_shape=(2,)), P), levels=(None, 0.3), coarse=False
    ),
    "bounded-negation": Contract(lambda: bounded_negation(R, P, 2.5)),
    "geometric": Contract(
        lambda: Geometric(P, term(quartic, kind="energy", event_shape=(2,))), levels=(None, 0.0, 0.3, 1.0)
    ),
    "function-log-prob": Contract(lambda: term(student, kind="log_prob", event_shape=(2,))),
    "function-noised": Contract(lambda: term(convolved, kind="log_prob", event_shape=(2,), path="noised"), span=5.0),
    "function-score": Contract(
        lambda: term(pulled, kind="score", event_shape=(3,), path="noised", sigma_range=(0.1, 50.0)),
        levels=(None, 0.1, 2.0),
    ),
    "function-network": Contract(lambda: term(Net(), kind="energy", event_shape=(2,)), tolerance=1e-6),
    "canvas": Contract(lambda: Canvas(P, (3,), 1), span=6.0),
    "canvas-mixture": Contract(lambda: Canvas(R, (3,), 1), span=6.0),
    "canvas-disjoint": Contract(lambda: Canvas(R, (4,), 2), span=6.0, levels=(None, 1.0)),
    "canvas-averaged": Contract(lambda: Canvas(R, (3,), 1, overlap="mean"), span=6.0, hessian=False),  # no gradient
    "canvas-conditions": Contract(lambda: Canvas(P, (3,), 1, conditions={1: Q}) * Window(Q1, 2, (3,)), span=6.0),
    "network-twice": Contract(
        lambda: guidance(
            term(NET, kind="energy", event_shape=2), P * term(NET, kind="energy", event_shape=2), theta(0.4)
        ),
        levels=(None, 0.5),
        coarse=False,
    ),
    "torch-normal": Contract(lambda: term(MultivariateNormal(vector(0.0, 1.0), spd(2))), span=6.0, convertible=False),
    "torch-laplace": Contract(
        lambda: term(Independent(Laplace(vector(0.5), vector(1.0)), 1)), span=14.0, convertible=False, smooth=False
    ),
    "torch-gamma": Contract(
        lambda: term(Gamma(vector(3.0)[0], vector(2.0)[0])), centre=4.0, span=4.0, convertible=False, smooth=False
    ),
}

XY = {"x": (2,), "y": (1,)}


def coupling(state):
    return 0.5 * ((state["x"].sum(-1, keepdim=True) - state["y"]) ** 2).sum(-1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(D)

    def forward(self, x):
        return self.layers(x)[:, 0] + 0.1 * (x**2).sum(-1)


NET = Net()


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


def test_a_wrong_score_fails_the_contract():
    """The suite itself notices: a Gaussian whose score belongs to another variance."""

    class Wrong(Gaussian):
        def _score(self, x, sigma):
            return 1.01 * super()._score(x, sigma)

    with pytest.raises(AssertionError, match="score"):
        check_score_is_gradient(Contract(lambda: Wrong(vector(0.0, 0.0), 1.0)))


def test_wrong_draws_fail_the_contract():
    class Wrong(Gaussian):
        def _sample(self, n, generator):
            return 1.1 * super()._sample(n, generator)

    with pytest.raises(AssertionError, match="z"):
        check_samples(Contract(lambda: Wrong(vector(0.0, 0.0), 1.0)))


def test_a_deep_copy_shares_nothing():
    p = guidance(Q, P, theta(2.0))
    clone = copy.deepcopy(p)
    assert not {id(t) for t in p.state_dict(keep_vars=True).values()} & {
        id(t) for t in clone.state_dict(keep_vars=True).values()
    }
