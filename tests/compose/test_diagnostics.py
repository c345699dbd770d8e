"""Effective sample size and R-hat against ArviZ, and against what is known of simple chains."""

import math

import pytest
import torch

from boltzmix.compose.diagnostics import ess, rhat

arviz = pytest.importorskip("arviz")


def autoregressive(chains, draws, rho, seed, shift=0.0):
    noise = torch.randn(chains, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = noise.clone()
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x + shift * torch.arange(chains)[:, None]


CHAINS = {
    "independent": autoregressive(4, 500, 0.0, 0),
    "sticky": autoregressive(4, 500, 0.95, 1),
    "antithetic": autoregressive(4, 500, -0.7, 2),
    "odd draws": autoregressive(3, 501, 0.5, 3),
    "one chain": autoregressive(1, 200, 0.5, 4),
    "chains that disagree": autoregressive(4, 300, 0.3, 5, shift=1.0),
    "ties": autoregressive(4, 200, 0.5, 6).round(),
    "heavy tails": autoregressive(4, 300, 0.5, 7).exp() ** 3,
    "a scale of 1e-12": 1e-12 * autoregressive(2, 100, 0.2, 8),
    "five draws": autoregressive(4, 5, 0.2, 9),
    "many chains": autoregressive(64, 30, 0.6, 10),
    "single precision": autoregressive(4, 100, 0.5, 11).float(),
}


@pytest.mark.parametrize("case", CHAINS)
def test_agrees_with_arviz(case):
    x = CHAINS[case]
    values = x.double().numpy()
    assert float(ess(x)) == pytest.approx(float(arviz.ess(values, method="bulk")), rel=1e-6)
    if len(x) > 1:  # ArviZ wants two chains, ours are split in two anyway
        assert float(rhat(x)) == pytest.approx(float(arviz.rhat(values, method="rank")), rel=1e-6)


def test_antithetic_chains_are_worth_more_than_their_draws():
    assert float(ess(CHAINS["antithetic"])) > 2000 > float(ess(CHAINS["sticky"]))


def test_the_size_of_an_autoregressive_chain_is_the_known_one():
    x = autoregressive(20, 4000, 0.5, 12)
    assert float(ess(x)) == pytest.approx(80_000 * (1 - 0.5) / (1 + 0.5), rel=0.05)
    assert float(rhat(x)) == pytest.approx(1.0, abs=0.002)


def test_rhat_sees_different_means_and_different_scales():
    assert float(rhat(CHAINS["chains that disagree"])) > 1.3
    scales = autoregressive(4, 500, 0.0, 13) * torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None]
    assert float(rhat(scales)) > 1.1


def test_shapes_follow_the_event_and_coordinates_are_taken_one_by_one():
    x = torch.stack([autoregressive(3, 60, 0.1 * k, k) for k in range(6)], -1).reshape(3, 60, 2, 3)
    assert ess(x).shape == rhat(x).shape == (2, 3)
    assert float(ess(x)[1, 2]) == pytest.approx(float(ess(x[:, :, 1, 2])))
    assert ess(x[:, :, 0, 0]).shape == ()


def test_constant_and_undefined_coordinates_are_nan():
    x = autoregressive(2, 50, 0.0, 14)
    both = torch.stack([x, torch.full_like(x, 3.0), torch.where(x > 2, torch.nan, x)], -1)
    assert torch.isnan(ess(both)).tolist() == [False, True, True]
    assert torch.isnan(rhat(both)).tolist() == [False, True, True]


@pytest.mark.parametrize("fn", [ess, rhat])
def test_what_is_no_chain_is_refused(fn):
    for bad in (torch.randn(5), torch.randn(4, 3), torch.randn(2, 2, 10)):
        with pytest.raises(ValueError, match=r"\(chains, draws >= 4, \*event\)"):
            fn(bad)
    for bad in (torch.zeros(4, 10, dtype=torch.int64), [[1.0] * 5]):
        with pytest.raises(TypeError, match="floating-point tensor"):
            fn(bad)
