"""Boxes: exact at every level, tails included, against scipy in more digits than are asked for."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from boltzmix.compose import Box

D = torch.float64


def reference(x, low, high, sigma):
    """Energy and score by erfcx in float64, in the tail where neither of the two differences cancels.

    With b the nearer and a the farther bound in units of σ, reflected so that a < b ≤ 0:
    Φ(b) − Φ(a) = ½ exp(−b²/2) (erfcx(−b/√2) − exp(−(a² − b²)/2) erfcx(−a/√2)); inside the box Φ is used as it is.
    """
    upper, lower = (x - low) / sigma, (x - high) / sigma
    sign = np.where(upper + lower > 0, -1.0, 1.0)
    a, b = np.where(sign < 0, -upper, lower), np.where(sign < 0, -lower, upper)
    far = np.exp((b - a) * (b + a) / 2)
    r2 = math.sqrt(2)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        tail = special.erfcx(-b / r2) - far * special.erfcx(-a / r2)
        inside = special.ndtr(b) - special.ndtr(a)
        log_mass = np.where(b < 0, np.log(tail / 2) - b**2 / 2, np.log(inside))
        edge = np.where(b < 0, math.sqrt(2 / math.pi) / tail, np.exp(-(b**2) / 2) / math.sqrt(2 * math.pi) / inside)
    return math.log(high - low) - log_mass, sign * edge * (1 - far) / sigma


LEVELS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 80.0)


def places(low, high, sigma):
    """Inside, at the edges, and up to 100 σ outside."""
    inside = np.linspace(low, high, 9)
    outside = np.array([0.1, 1.0, 3.0, 10.0, 30.0, 100.0]) * sigma
    return np.concatenate([inside, low - outside, high + outside])


@pytest.mark.parametrize(("dtype", "rtol"), [(D, 1e-9), (torch.float32, 3e-5)])
@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.5), (-10.0, 10.0)])
def test_energy_and_score_in_the_tails(sigma, low, high, dtype, rtol):
    x = torch.tensor(places(low, high, sigma), dtype=dtype)[:, None]
    level = float(torch.tensor(sigma, dtype=dtype))
    energy, score = Box(torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype)).energy_and_score(x, level)
    expected_energy, expected_score = reference(x[:, 0].double().numpy(), low, high, level)
    assert np.allclose(energy.double().numpy(), expected_energy, rtol=rtol, atol=rtol)
    assert np.allclose(score[:, 0].double().numpy(), expected_score, rtol=3 * rtol, atol=rtol / level)


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_a_thousand_deviations_out_nothing_overflows(dtype):
    p = Box(torch.tensor([-1.0], dtype=dtype), torch.tensor([1.0], dtype=dtype))
    x = torch.tensor([[2.0], [-2.0], [300.0], [0.0]], dtype=dtype).requires_grad_()
    for sigma in (1e-3, 1e-2):
        energy, score = p.energy_and_score(x, sigma)
        assert torch.isfinite(energy).all()
        expected = torch.tensor([-1.0, 1.0, -299.0, 0.0], dtype=dtype)[:, None] / sigma**2
        assert torch.allclose(score, expected, rtol=1e-4)
        second = torch.autograd.grad(score.sum(), x)[0]
        assert torch.isfinite(second).all()
        assert torch.isfinite(torch.autograd.grad(p.energy(x, sigma).sum(), x)[0]).all()


def test_the_data_end_is_the_closed_box():
    p = Box(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0]))
    x = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 0.5], [2.1, 0.5], [-0.1, 0.5]])
    for sigma in (None, 0.0, torch.zeros(5)):
        energy, score = p.energy_and_score(x, sigma)
        assert torch.allclose(energy[:3], torch.tensor(math.log(2.0)))
        assert torch.isinf(energy[3:]).all()
        assert not score.any()


def test_rows_at_zero_noise_among_noised_ones():
    """σ = 0 in some rows: these are the sharp box, and no NaN leaks into anyone's gradient."""
    p = Box(torch.tensor([0.0], dtype=D), torch.tensor([1.0], dtype=D))
    x = torch.tensor([[0.5], [0.5], [1.5], [1.5], [0.0]], dtype=D).requires_grad_()
    sigma = torch.tensor([0.0, 0.3, 0.0, 0.3, 0.0], dtype=D)
    energy = p.energy(x, sigma)
    assert energy[[0, 4]].tolist() == [0.0, 0.0]
    assert math.isinf(energy[2])
    assert torch.allclose(energy[[1, 3]], p.energy(x[[1, 3]], 0.3))
    grad = torch.autograd.grad(energy[torch.isfinite(energy)].sum(), x)[0]
    assert torch.allclose(-grad, p.score(x, sigma))


def test_draws_fill_the_box_and_have_finite_energy():
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])
    p = Box(low, high)
    x = p.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.isfinite(p.energy(x)).all()
    z = (x.double().mean(0) - (low + high) / 2) / ((high - low) / math.sqrt(12 * len(x)))
    assert float(z.abs().max()) < 5  # two numbers: false-positive rate 1.2e-6
