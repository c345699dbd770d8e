"""Rewards: the tuned policy p_ref e^{r/β} against enumeration and closed forms; regression and preferences."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from boltzmix.compose import SMC, Denoised, Gaussian, GaussianMixture, sample, term
from boltzmix.compose.errors import MissingEnergy
from boltzmix.models import Reward, fit
from boltzmix.models.nets import LogitsMLP
from tests.contracts import Contract, assert_z, contract_cases

D = torch.float64
MEAN = torch.tensor([0.5, -0.3], dtype=D)
COVARIANCE = torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=D)
REFERENCE = Gaussian(MEAN, COVARIANCE)
PUSH = torch.tensor([0.8, -0.5], dtype=D)
PULL = torch.tensor([[0.6, 0.1], [0.1, 0.9]], dtype=D)
GOAL = torch.tensor([-1.0, 1.0], dtype=D)


def linear(x):
    return x @ PUSH.to(x)


def quadratic(x):
    gap = x - GOAL.to(x)
    return -0.5 * (gap @ PULL.to(x) * gap).sum(-1)


def net():
    torch.manual_seed(0)
    return LogitsMLP(2, out=1, hidden=(16, 16)).to(D)


class Table(nn.Module):
    """A reward of one integer, or of several added up."""

    def __init__(self, values):
        super().__init__()
        self.register_buffer("values", torch.tensor(values, dtype=D))

    def forward(self, x):
        return self.values[x].sum(1)


TERMS = {
    "network": Contract(lambda: Reward(net(), (2,), beta=0.7)),
    "quadratic": Contract(lambda: Reward(quadratic, (2,))),
    "tuned": Contract(lambda: REFERENCE * Reward(quadratic, (2,), beta=2.0), coarse=False),
    "denoised": Contract(lambda: REFERENCE * Denoised(Reward(quadratic, (2,), 2.0), REFERENCE), levels=(None, 0.5)),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------------- tuned policies


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_tuned_policy_by_enumeration(beta):
    """p_ref e^{r/β} over integers: probabilities, and Z = E_ref e^{r/β}."""
    probs, rewards = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D), [1.0, -0.5, 0.3, 2.0]
    tuned = term(Categorical(probs=probs)) * Reward(Table(rewards), (1,), beta, support="integers(4)")
    mass = (-tuned.energy(torch.arange(4)[:, None])).exp()
    want = probs * (torch.tensor(rewards, dtype=D) / beta).exp()
    assert torch.allclose(mass, want)
    assert float(mass.sum().log()) == pytest.approx(float((probs.log() + torch.tensor(rewards) / beta).logsumexp(0)))


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_tuned_gaussian_in_closed_form(kind, beta):
    """N(m, C) e^{a·x/β} is N(m + C a/β, C); with −½(x−g)ᵀA(x−g)/β the precisions add. Draws and log Z by SMC.

    Five moments of 4,000 particles at |z| < 5, and log Z within 4 standard errors: false-positive rate 7e-5.
    """
    precision = torch.linalg.inv(COVARIANCE)
    if kind == "linear":
        covariance, mean = COVARIANCE, MEAN + COVARIANCE @ PUSH / beta
        log_z = PUSH @ MEAN / beta + 0.5 * PUSH @ COVARIANCE @ PUSH / beta**2
    else:
        total = precision + PULL / beta
        covariance = torch.linalg.inv(total)
        mean = covariance @ (precision @ MEAN + PULL @ GOAL / beta)
        wide = COVARIANCE + beta * torch.linalg.inv(PULL)
        log_z = Gaussian(GOAL, wide).log_prob(MEAN[None])[0] + 0.5 * torch.logdet(2 * math.pi * beta * PULL.inverse())
    tuned = REFERENCE * Reward(linear if kind == "linear" else quadratic, (2,), beta)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    assert torch.allclose(tuned.score(x), Gaussian(mean, covariance).score(x))
    ratio = Gaussian(mean, covariance).energy(x) - tuned.energy(x)
    assert torch.allclose(ratio, log_z.expand(20))
    draw = sample(tuned, 4000, seed=0, progress=False)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (draw.x - mean).mT, upper=False).mT
    features = torch.stack([*white.unbind(1), *(white**2 - 1).unbind(1), white.prod(1)], 1)
    assert_z(features.mean(0) / (features.std(0) / math.sqrt(4000)), "moments of the tuned policy")
    assert abs(draw.log_z - float(log_z)) < 4 * draw.log_z_se


def test_small_beta_follows_the_reward_and_large_beta_the_reference():
    values = []
    for beta in (0.2, 1.0, 5.0, 1e3):
        x = sample(REFERENCE * Reward(quadratic, (2,), beta), 1000, seed=0, progress=False).x
        values.append(float(quadratic(x).mean()))
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(float(quadratic(REFERENCE.sample(4000)).mean()), abs=0.4)


def test_a_tilted_mixture_keeps_the_mode_masses_of_the_closed_form():
    """Σ w_k N(m_k, s²) e^{a·x/β}: masses ∝ w_k e^{a·m_k/β}, log Z their sum; five standard errors of 4,000 draws."""
    means = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]], dtype=D)
    weights, beta = torch.tensor([0.5, 0.3, 0.2], dtype=D), 2.0
    draw = sample(GaussianMixture(means, 0.2, weights) * Reward(linear, (2,), beta), 4000, seed=1, progress=False)
    logs = weights.log() + means @ PUSH / beta + 0.5 * 0.2 * PUSH @ PUSH / beta**2
    found = torch.bincount(torch.cdist(draw.x, means).argmin(1), minlength=3) / 4000
    want = logs.softmax(0)
    # resampled particles scatter more than independent draws: their standard error is doubled
    assert bool(((found - want).abs() < 5 * 2 * (want * (1 - want) / 4000).sqrt()).all())
    assert abs(draw.log_z - float(logs.logsumexp(0))) < 4 * draw.log_z_se


# ------------------------------------------------------------------------------------------------------------- learning


def test_regression_learns_the_reward():
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Reward(LogitsMLP(2, out=1, hidden=(32, 32)), (2,))
    fit(model, (x, quadratic(x)), steps=400, batch_size=256, lr=1e-2, ema=0.98, progress=False)
    with torch.no_grad():
        error = model.reward(x) - quadratic(x)
    assert float(error.square().mean()) < 0.01 * float(quadratic(x).var())
    assert model.calibrated


def test_preferences_learn_the_reward_up_to_a_constant():
    """Pairs answered by Bradley and Terry's model of a linear reward; the slope and its direction are found."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4000, 2, generator=generator) for _ in range(2))
    first = torch.rand(4000, generator=generator) < torch.sigmoid(linear(a) - linear(b))
    better, worse = torch.where(first[:, None], a, b), torch.where(first[:, None], b, a)
    torch.manual_seed(0)
    model = Reward(nn.Linear(2, 1), (2,), objective="preferences")
    fit(model, (better, worse), steps=300, batch_size=256, lr=3e-2, ema=0.98, progress=False)
    assert isinstance(model.core, nn.Linear)
    assert torch.allclose(model.core.weight.detach()[0], PUSH.float(), atol=0.15)
    assert not model.calibrated
    assert sample(REFERENCE * Reward(lambda x: linear(x), (2,), objective="preferences"), 50, seed=0).log_z is None


def test_the_loss_of_preferences_is_bradley_and_terrys():
    model = Reward(linear, (2,), objective="preferences")
    better, worse = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    want = -(linear(better).exp() / (linear(better).exp() + linear(worse).exp())).log().mean()
    assert torch.allclose(model.loss((better, worse), torch.Generator()), want)


def test_equal_rewards_merge():
    a, b = Reward(linear, (2,), 2.0), Reward(linear, (2,), 2.0)
    assert (a * b).exponents() == [2.0]
    assert len((a * Reward(linear, (2,), 1.0)).pairs()) == 2
    with pytest.raises(MissingEnergy, match="integers"):
        Reward(Table([0.0, 1.0]), (1,), support="integers(2)").score(torch.zeros(2, 1, dtype=torch.long))


X = torch.zeros(3, 2)
WRONG = {
    "beta 0": (lambda: Reward(linear, (2,), beta=0.0), ValueError, "beta is a finite number > 0"),
    "beta negative": (lambda: Reward(linear, (2,), beta=-1.0), ValueError, "write the reward with its sign"),
    "beta a string": (lambda: Reward(linear, (2,), beta="1"), ValueError, "beta"),
    "no function": (lambda: Reward(3.0, (2,)), TypeError, "got float"),
    "a term": (lambda: Reward(REFERENCE, (2,)), TypeError, r"term \*\* \(1 / beta\)"),
    "objective": (lambda: Reward(linear, (2,), objective="ranking"), ValueError, "'preferences'"),
    "rewards per coordinate": (lambda: Reward(lambda x: x, (2,)).energy(X), ValueError, r"\(3,\) or \(3, 1\)"),
    "rewards of another dtype": (lambda: Reward(lambda x: linear(x).double(), (2,)).energy(X), TypeError, "float64"),
    "integer rewards": (
        lambda: Reward(lambda x: x[:, 0], (1,), support="integers(3)").energy(X[:, :1].long()),
        TypeError,
        "floating-point",
    ),
    "rewards in half precision": (lambda: Reward(lambda x: linear(x).half(), (2,)).energy(X), TypeError, "float16"),
    "no graph": (
        lambda: Reward(lambda x: linear(x).detach(), (2,)).score(X + torch.rand(3, 2)),
        ValueError,
        "gradient",
    ),
    "batch alone": (lambda: Reward(net(), (2,)).loss(X.double(), torch.Generator()), ValueError, "a pair"),
    "regression from pairs": (
        lambda: Reward(net(), (2,)).loss((X.double(), X.double()), torch.Generator()),
        ValueError,
        r"\(x, r\)",
    ),
    "preferences from rewards": (
        lambda: Reward(net(), (2,), objective="preferences").loss((X.double(), torch.zeros(3)), torch.Generator()),
        ValueError,
        "x_worse",
    ),
    "given": (lambda: Reward(linear, (2,)).given(label=1), TypeError, "it takes none"),
    "gradient-free kernels": (
        lambda: sample(Reward(Table([0.0, 1.0]), (1,), support="integers(2)"), 5, sampler=SMC()),
        TypeError,
        "discrete",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_weights_and_states_of_two_dtypes_are_named():
    model = Reward(net().float(), (2,))
    with pytest.raises(TypeError, match="holds torch.float32 weights and got torch.float64; convert x, or the model"):
        model.energy(torch.zeros(3, 2, dtype=D))
    assert model.double().energy(torch.zeros(3, 2, dtype=D)).dtype == D
