"""Returns of noised trajectories: closed forms for Gaussians and linear returns, exact tilts, wrong calls."""

import json
import math

import pytest
import torch
from torch import nn

from boltzmix.compose import Gaussian, Reverse, sample
from boltzmix.compose.errors import NonFinite
from boltzmix.models import Returns, fit
from boltzmix.models.load import build
from tests.contracts import Contract, assert_z, contract_cases

D = torch.float64
SLOPE = torch.tensor([0.8, -0.5])
BETA = 0.7


def excited():
    torch.manual_seed(0)
    model = Returns((3, 2), hidden=8, beta=0.5).to(D)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng, dtype=D))
        model.centre.fill_(0.3)
        model.width.fill_(2.0)
    return model


TERMS = {"returns": Contract(excited, levels=(None, 0.1, 2.0), coarse=False)}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


class Exact(nn.Module):
    """The known J or V of standard normal x (2,) and the return SLOPE · x, in units of the return."""

    def __init__(self, soft, shift=0.0):
        super().__init__()
        self.soft, self.shift = soft, shift
        self.register_buffer("slope", SLOPE.to(D))

    def forward(self, x, c_noise):
        square = (4 * c_noise).exp() ** 2
        share = 1 / (1 + square)
        mean = (x * (square + 1).sqrt()[:, None]) @ self.slope * share  # the model hands in x / √(σ² + 1)
        variance = self.slope.square().sum() * square * share  # of the return given x
        return mean + self.shift + (0.5 * variance / BETA if self.soft else 0.0)


def exact(soft=True, shift=0.0):
    kind = "soft" if soft else "mean"
    return Returns((2,), Exact(soft, shift), beta=BETA, kind=kind, sigma_range=(0.01, 50.0)).to(D)


def soft_value_is_the_noised_tilt():
    """p(x; σ) e^{V/β} is the noised density of p e^{R/β}: its score is that of N(a/β, 1 + σ²)."""
    tilted = Gaussian(SLOPE.to(D) / BETA, 1.0)
    product = Gaussian(torch.zeros(2, dtype=D), 1.0) * exact()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    for sigma in (0.1, 1.0, 10.0):
        assert torch.allclose(product.score(x, sigma), tilted.score(x, sigma), atol=1e-9)


def test_soft_value_is_the_noised_tilt():
    soft_value_is_the_noised_tilt()


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_reverse_diffusion_with_the_soft_value_draws_the_tilted_density():
    """Means and variances of 2,000 draws; four numbers at |z| < 5."""
    product = Gaussian(torch.zeros(2, dtype=D), 1.0) * exact()
    x = sample(product, 2_000, sampler=Reverse(steps=40), seed=0, progress=False).x
    z = x - SLOPE.to(D) / BETA
    features = torch.cat([z, z**2 - 1], 1)
    assert_z(features.mean(0) / (features.std(0) / math.sqrt(2_000)), "moments of the tilted density")


def energy_is_minus_the_value_over_beta():
    model = excited()
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    assert torch.allclose(model.energy(x, 0.5), -model.value(x, 0.5) / 0.5)
    assert torch.allclose(model.energy(x), model.energy(x, 0.02))


def test_energy_is_minus_the_value_over_beta():
    energy_is_minus_the_value_over_beta()


def exact_values_have_the_least_loss():
    """Over 40,000 noised draws the closed form beats the same function moved by a tenth, for both kinds."""
    x = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    returns = x @ SLOPE.to(D)
    for soft in (False, True):
        losses = []
        for shift in (0.0, 0.1, -0.1):
            model = exact(soft, shift)
            model.prepared.fill_(True)
            losses.append(float(model.loss((x, returns), torch.Generator().manual_seed(1))))
        assert losses[0] < min(losses[1:]), (soft, losses)


def loss_by_hand():
    """The squared error in units of the returns' variance, at levels uniform in ln σ and noise of these levels."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    returns = 3 * (x @ SLOPE.to(D)) + 1
    model = exact(soft=False)
    loss = model.loss((x, returns), torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    low, high = math.log(0.01), math.log(50.0)
    sigma = (low + (high - low) * torch.rand(50, generator=rng, dtype=D)).exp()
    noisy = x + sigma[:, None] * torch.randn(50, 2, generator=rng, dtype=D)
    gap = (model.value(noisy, sigma) - returns) / returns.std(correction=0)
    assert torch.allclose(loss, gap.square().mean())
    assert float(model.centre) == pytest.approx(float(returns.mean()))


def test_exact_values_have_the_least_loss():
    exact_values_have_the_least_loss()
    loss_by_hand()


def test_learned_values_match_the_closed_form():
    """Both kinds, learned from clean pairs: within a tenth of the return's standard deviation on noised data."""
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    for kind in ("mean", "soft"):
        torch.manual_seed(0)
        model = Returns((2,), beta=BETA, kind=kind, sigma_range=(0.05, 5.0), hidden=32, depth=1)
        fit(model, (x, x @ SLOPE), steps=400, batch_size=256, lr=5e-3, ema=0.98, progress=False)
        truth = exact(kind == "soft")
        for sigma in (0.3, 2.0):
            rng = torch.Generator().manual_seed(2)
            points = torch.randn(2_000, 2, generator=rng, dtype=D) * math.sqrt(1 + sigma**2)
            error = (model.value(points.float(), sigma).double() - truth.value(points, sigma)).square().mean().sqrt()
            assert float(error) < 0.1 * float(SLOPE.norm()), (kind, sigma, float(error))


def test_build():
    spec = {"class": "Returns", "arguments": {"event_shape": [4, 2], "beta": 0.5, "hidden": 8}}
    model = build(json.loads(json.dumps(spec)))
    assert model.value(torch.zeros(3, 4, 2)).shape == (3,)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Returns((2,), beta=0.0), ValueError, "beta"),
        (lambda: Returns((2,), kind="hard"), ValueError, "kind"),
        (lambda: Returns((2,), sigma_range=(1.0, 0.5)), ValueError, "sigma_range"),
        (lambda: Returns((2,), flat=False), ValueError, "net="),
        (lambda: Returns((2,)).value(torch.zeros(3, 2, dtype=D)), TypeError, "float64"),
        (lambda: Returns((2,)).loss(torch.zeros(3, 2), torch.Generator()), ValueError, "a pair"),
        (lambda: Returns((2,)).loss((torch.zeros(3, 2), torch.zeros(2)), torch.Generator()), ValueError, "returns are"),
        (lambda: Returns((2,)).loss((torch.zeros(3, 2), torch.ones(3)), torch.Generator()), ValueError, "are equal"),
        (
            lambda: Returns((2,)).loss((torch.zeros(2, 2), torch.tensor([0.0, math.nan])), torch.Generator()),
            NonFinite,
            "NaN",
        ),
    ],
)
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=words):
        call()
