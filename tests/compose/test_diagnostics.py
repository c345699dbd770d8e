"""Effective sample sizes, R-hat, errors and energies against ArviZ, and against what is known of simple chains."""

import math

import numpy as np
import pytest
import torch

from boltzmix.compose import diagnostics
from boltzmix.compose.diagnostics import autocorrelation, bfmi, ess, mcse, rhat, statistics
from boltzmix.compose.samplers.energies import Energies

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


ESS = {
    **dict.fromkeys(("bulk", "tail", "mean", "sd", "median", "mad", "folded", "identity")),
    "quantile": 0.25,
    "local": (0.25, 0.75),
}
MCSE = {**dict.fromkeys(("mean", "sd", "median")), "quantile": 0.1}


def random_chains(kind, seed):
    """Chains of a random number and length, with a random autocorrelation, negative ones included."""
    g = torch.Generator().manual_seed(seed)
    chains, draws = int(torch.randint(1, 7, (), generator=g)), int(torch.randint(4, 160, (), generator=g))
    rho = 1.9 * float(torch.rand((), generator=g)) - 0.93
    x = autoregressive(chains, draws, rho, seed)
    if kind == "heavy tails":
        return x.exp() * torch.special.ndtr(x).sub(0.5).mul(math.pi * 0.999).tan() ** 3
    if kind == "rejections":
        moves = torch.rand(x.shape, generator=g) < 0.5
        for t in range(1, draws):
            x[:, t] = torch.where(moves[:, t], x[:, t], x[:, t - 1])
        return x
    changes = {
        "integers": x.mul(2).round().long(),
        "two values": (x > 0.5).int(),
        "disagree": x + torch.arange(chains)[:, None],
    }
    return changes.get(kind, x)


@pytest.mark.parametrize("kind", ["plain", "heavy tails", "rejections", "integers", "two values", "disagree"])
def test_everything_agrees_with_arviz_on_random_chains(kind, monkeypatch):
    # ArviZ's (1 - g) a + g b may round below a where a == b, and then miscounts draws that equal the quantile
    monkeypatch.setattr(arviz.stats.diagnostics, "_quantile", exact_quantile)
    for seed in range(8):
        x = random_chains(kind, 100 + seed)
        if bool((x == x[0, 0]).all()):
            continue
        values = x.double().numpy()
        pairs = [(ess(x, m, prob), arviz.ess(values, method=m, prob=prob)) for m, prob in ESS.items()]
        pairs += [(mcse(x, m, prob), arviz.mcse(values, method=m, prob=prob)) for m, prob in MCSE.items()]
        if len(x) > 1:
            pairs += [(rhat(x, m), arviz.rhat(values, method=m)) for m in ("rank", "z_scale", "folded", "split")]
            pairs += [(rhat(x, "identity"), arviz.rhat(values, method="identity"))]
        for ours, theirs in pairs:
            assert float(ours) == pytest.approx(float(theirs), rel=1e-6, nan_ok=True)
        if not x.is_floating_point():
            continue
        table = arviz.summary(arviz.convert_to_dataset(values), round_to="none", stat_focus="mean")
        ours = statistics(x)
        for name in ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"):
            # of an odd number of draws, ArviZ's table folds at another median than its rhat() does
            if name != "r_hat" or (len(x) > 1 and x.shape[1] % 2 == 0):
                assert float(ours[name]) == pytest.approx(float(table[name].iloc[0]), rel=1e-6), name
        for name, p in (("5%", 0.05), ("95%", 0.95)):
            assert float(ours[name]) == pytest.approx(float(np.quantile(values, p)), rel=1e-12)


def exact_quantile(values, q):
    """Linear between order statistics, without an error of rounding between equal ones."""
    ordered, n = np.sort(np.asarray(values, float).ravel()), np.size(values)
    found = []
    for p in np.atleast_1d(q):
        place = n * p + (1 - p)
        k = int(min(max(place, 1), n - 1))
        low, high, share = ordered[k - 1], ordered[k], min(max(place - k, 0), 1)
        found.append(low if low == high else (1 - share) * low + share * high)
    return np.array(found)


def test_energies_and_autocorrelations_agree_with_arviz():
    x = autoregressive(5, 301, 0.8, 20)
    assert bfmi(x).tolist() == pytest.approx(arviz.bfmi(x.numpy()).tolist(), rel=1e-9)
    np.testing.assert_allclose(autocorrelation(x).numpy(), arviz.autocorr(x.numpy()), atol=1e-12)
    both = torch.stack([x, torch.full_like(x, 2.0)], -1)
    torch.testing.assert_close(autocorrelation(both, lags=7)[..., 0], autocorrelation(x)[:, :7])
    assert bool(autocorrelation(both)[..., 1].isnan().all())
    assert bool(bfmi(torch.ones(2, 9)).isnan().all())


def test_running_energies_say_what_stored_ones_do_and_survive_a_checkpoint():
    h, running = 1e4 + autoregressive(3, 200, 0.7, 21), Energies()
    for block in h.T.split([1, 64, 26, 40, 69]):
        running.update(block)
        if running.count == 91:  # through a checkpoint
            saved, count = {name: t.clone() for name, t in running.tensors().items()}, running.count
            running = Energies()
            running.restore(saved, count)
    assert running.bfmi().tolist() == pytest.approx(bfmi(h).tolist(), rel=1e-9)


def test_the_error_of_a_mean_is_that_of_many_runs():
    # the standard deviation of 400 means is known within 3.5 % (one in 100,000 beyond 4.4 of these)
    runs = autoregressive(400, 256, 0.6, 22).reshape(100, 4, 256)
    true = float(autoregressive(8000, 1024, 0.6, 23).mean(1).std())
    said = torch.stack([mcse(run.flatten()[None]) for run in runs])
    assert float(said.mean()) == pytest.approx(true, rel=0.16)


@pytest.mark.parametrize("numbers", [1, 700, 10**9])
def test_chunks_change_nothing(numbers, monkeypatch):
    x = torch.stack([autoregressive(3, 61, 0.2 * k, 30 + k) for k in range(4)], -1)
    whole = [fn(x) for fn in (ess, rhat, mcse, autocorrelation)] + list(statistics(x).values())
    monkeypatch.setattr(diagnostics, "_NUMBERS", numbers)
    monkeypatch.setattr(diagnostics, "_BLOCK", numbers)
    parts = [fn(x) for fn in (ess, rhat, mcse, autocorrelation)] + list(statistics(x).values())
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


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
    bad = [torch.full_like(x, 3.0), torch.where(x > 2, torch.nan, x), torch.where(x > 2, torch.inf, x)]
    every = torch.stack([x, *bad, torch.where(x > 2, -torch.inf, x)], -1)
    for fn in (ess, rhat, mcse):
        assert torch.isnan(fn(every)).tolist() == [False, True, True, True, True]
    for method in ESS:
        assert torch.isnan(ess(every, method, ESS[method])).tolist() == [False, True, True, True, True]
    table = statistics(every)
    assert torch.isnan(table["ess_tail"]).tolist() == [False, True, True, True, True]
    assert torch.isnan(table["mean"]).tolist() == [False, False, True, True, True]
    assert float(table["sd"][1]) == 0


def test_few_draws_have_means_and_no_errors():
    table = statistics(torch.tensor([[1.0, 2.0, 6.0]]))
    assert (float(table["mean"]), float(table["5%"])) == (3.0, pytest.approx(1.1))
    assert math.isnan(float(table["r_hat"]))
    assert math.isnan(float(statistics(torch.ones(1, 1))["sd"]))


@pytest.mark.parametrize("fn", [ess, rhat, mcse])
def test_what_is_no_chain_is_refused(fn):
    for bad in (torch.randn(5), torch.randn(4, 3), torch.randn(2, 2, 10), torch.zeros(0, 9)):
        with pytest.raises(ValueError, match=r"\(chains, draws >= 4, \*event\)"):
            fn(bad)
    for bad in (torch.zeros(4, 10, dtype=torch.complex64), [[1.0] * 5]):
        with pytest.raises(TypeError, match="tensor of real numbers"):
            fn(bad)
    with pytest.raises(ValueError, match="has the methods.*'mode'"):
        fn(torch.randn(2, 9), "mode")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: ess(x, "quantile"), ValueError, "prob between 0 and 1, got prob=None"),
        (lambda x: ess(x, "local", 0.3), ValueError, "two probabilities"),
        (lambda x: ess(x, "bulk", 0.3), ValueError, "no prob"),
        (lambda x: mcse(x, "quantile", 1.5), ValueError, "prob=1.5"),
        (lambda x: bfmi(x[0]), ValueError, r"\(chains, draws >= 2\)"),
        (lambda x: bfmi(None), TypeError, "got NoneType"),
        (lambda x: autocorrelation(x, 10), ValueError, "lags is an int from 1 to the number of draws, 9"),
    ],
)
def test_wrong_calls_say_what_came(call, error, said):
    with pytest.raises(error, match=said):
        call(torch.randn(2, 9))
