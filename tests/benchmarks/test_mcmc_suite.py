"""The suite beside BlackJAX and NumPyro: counts, statistics, and what is said when a peer is missing or fails.

Statistical checks have fixed seeds and state their false-positive rate.
"""

import functools
import json
from importlib.util import find_spec

import pytest
import torch

from boltzmix import benchmarks
from boltzmix.__main__ import main
from boltzmix.benchmarks import peers
from boltzmix.benchmarks.densities import density
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import mcmc
from boltzmix.benchmarks.suites.mcmc import Chains
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.kernels.microcanonical import MicrocanonicalLangevin

with_peers = pytest.mark.skipif(
    bool(peers.missing(("jax", "blackjax", "numpyro"))), reason='needs pip install "boltzmix[peers]"'
)
SETTINGS = Settings(quick=True, seeds=tuple(range(6)))


def exact(target, starts, seed, shift=0.0, scale=1.0, gradients=8000):
    """A sampler that draws exactly, or with an error."""
    assert target.name == "ill_conditioned"
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(starts), 400, target.dim, generator=generator, dtype=torch.float64)
    return Chains(shift + scale * x * target.variance.sqrt(), gradients, 1000, 0, 1.0, 2.0)


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    """Where peers' figures are kept, empty."""
    monkeypatch.setattr(mcmc, "MEMORY", tmp_path / "peers")
    monkeypatch.setattr(mcmc, "_digest", lambda settings: "digest")
    return tmp_path / "peers"


def compared(monkeypatch, **samplers):
    """The report of a comparison between samplers that are given."""
    monkeypatch.setattr(mcmc, "samplers", lambda family, settings: samplers)
    monkeypatch.setattr(mcmc, "_settings", lambda family: "settings")
    report = Report("mcmc", "test", section="test")
    mcmc.compare(report, SETTINGS, "nuts", "ill_conditioned")
    return report


def ratios(report):
    return [row for row in report.rows if "upper bound" in row.quantity]


def test_equal_samplers_reach_the_goal_and_a_wasteful_one_misses_it(monkeypatch):
    report = compared(monkeypatch, boltzmix=exact, A=exact, B=functools.partial(exact, gradients=9000))
    (ratio, with_warmup, _), figures = ratios(report), report.curves["NUTS, ill conditioned"]
    assert ratio.holds
    assert ratio.value == pytest.approx(1.0)
    assert with_warmup.holds is None
    assert "the better peer is A" in ratio.note
    assert not report.missed
    assert figures["A"][0]["per_1000"] == pytest.approx(9 / 8 * figures["B"][0]["per_1000"])
    report = compared(monkeypatch, boltzmix=functools.partial(exact, gradients=10_000), C=exact)
    assert not ratios(report)[0].holds
    assert ratios(report)[0].value == pytest.approx(0.8)


@pytest.mark.parametrize("error", [{"shift": 0.3}, {"scale": 1.03}])
def test_a_biased_sampler_does_not_pass(monkeypatch, error):
    report = compared(monkeypatch, boltzmix=functools.partial(exact, **error), A=exact)
    (missed,) = report.missed
    assert "truth, boltzmix" in missed.quantity


def test_a_peer_that_fails_is_reported_and_the_others_are_compared(monkeypatch):
    def broken(target, starts, seed):
        raise RuntimeError("out of order\nand more")

    report = compared(monkeypatch, boltzmix=exact, A=broken, B=exact)
    (missed,) = report.missed
    assert (missed.quantity, missed.note) == ("A ran", "RuntimeError: out of order")
    assert "without A, which failed" in ratios(report)[0].note


def test_what_peers_did_is_kept_and_taken_again(monkeypatch, memory):
    runs = []

    def noted(target, starts, seed):
        runs.append(seed)
        return exact(target, starts, seed)

    first = compared(monkeypatch, boltzmix=exact, A=noted)
    second = compared(monkeypatch, boltzmix=exact, A=noted)
    assert runs == list(SETTINGS.seeds)
    assert [r for r in first.rows if r.quantity.endswith("A")] == [r for r in second.rows if r.quantity.endswith("A")]
    assert not list(memory.rglob("boltzmix*"))


def ratio_of_medians_is_that_of_the_better_peer():
    ours, a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 1.0, 1.0, 1.0, 1.0]
    assert mcmc.ratio_of_medians(ours, [a, b]) == pytest.approx((0.5, 0.5, 0.5))
    point, low, high = mcmc.ratio_of_medians([9.0, 10.0, 11.0, 12.0], [[10.0, 10.0, 10.0, 10.0]])
    assert point == pytest.approx(1.05)
    assert 0.9 <= low < 1.0 < point < high <= 1.2


def test_ratio_of_medians_is_that_of_the_better_peer():
    ratio_of_medians_is_that_of_the_better_peer()


def intervals_cover(trials=400, seeds=10):
    """The true ratio lies in 95 % intervals as often as they say, within what percentile intervals of medians miss.

    With 400 trials the share has a standard error of 1.1 %; [0.89, 0.99] is at least four of them from 0.95 on one side
    and allows for the interval's own error on the other.
    """
    generator = torch.Generator().manual_seed(0)
    draws = (0.2 * torch.randn(trials, 2, seeds, generator=generator, dtype=torch.float64)).exp()
    inside = 0
    for ours, theirs in draws:
        _, low, high = mcmc.ratio_of_medians((0.8 * ours).tolist(), [theirs.tolist()], resamples=500)
        inside += low <= 0.8 <= high
    assert 0.89 < inside / trials < 0.995


def test_intervals_cover():
    intervals_cover()


def t_statistics_are_those_of_independent_chains():
    """The worst of 50 coordinates: below 5 for exact draws, 2e-4; a mean that is off by one standard error adds 1."""
    generator = torch.Generator().manual_seed(2)
    errors = torch.randn(400, 50, generator=generator, dtype=torch.float64)
    assert mcmc.t_statistic(errors) < 5
    assert abs(mcmc.t_statistic(errors + 1.0) - 20) < 5  # a unit shift is √400 standard errors


def test_t_statistics_are_those_of_independent_chains():
    t_statistics_are_those_of_independent_chains()


def judged_figures_are_those_of_exact_draws():
    """Independent draws: 1600 of them for 8000 gradients are 200 for 1,000; the smallest of 50 is less, by estimate."""
    target = density("ill_conditioned")
    found = mcmc.judge(target, exact(target, torch.zeros(4, 50), 0), 0, 0.0).numbers
    assert 130 < found["per_1000"] < 220
    assert found["per_1000_with_warmup"] == pytest.approx(found["per_1000"] * 8 / 9)
    assert 0.0 < found["mean_error2"] < 20 / 1600  # the largest of 50 squared normals over 1600, 1e-4 above 15
    biased = mcmc.judge(target, exact(target, torch.zeros(4, 50), 0, shift=2.0), 0, 0.0).numbers
    assert abs(biased["mean_error2"] - 4.0) < 0.4  # where the standard deviation is 1
    wide = mcmc.judge(target, exact(target, torch.zeros(4, 50), 0, scale=2.0), 0, 0.0).numbers
    assert abs(wide["variance_error"] - 3.0) < 0.8


def test_judged_figures_are_those_of_exact_draws():
    judged_figures_are_those_of_exact_draws()


def evaluations_of_ours_are_counted_from_inside_the_target():
    target = density("eight_schools")
    chains = mcmc.ours(target, target.starts(4, 0), HMC(num_leapfrog=3), 30, 20, 0)
    assert (chains.gradients, chains.warmup_gradients) == (4 * 20 * 3, 4 * (30 * 3 + 1))
    assert chains.length == 3
    chains = mcmc.ours_at_budget(target, target.starts(4, 0), MicrocanonicalLangevin(), 30, 60, 0)
    assert (chains.gradients, chains.warmup_gradients) == (4 * (30 * 2 + 1), 4 * (30 * 2 + 1))
    assert chains.x.shape == (4, 30, 10)


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_evaluations_of_ours_are_counted_from_inside_the_target():
    evaluations_of_ours_are_counted_from_inside_the_target()


@with_peers
@pytest.mark.slow
@pytest.mark.parametrize("family", ["nuts", "mclmc", "adjusted"])
def test_peers_run_as_long_as_the_suite_asks(family):
    """Of what a method says it did, the suite keeps draws and gradients of all chains; as many as ours, or about."""
    target, settings = density("eight_schools"), Settings(quick=True, seeds=(0,))
    draws = {"nuts": 150, "mclmc": 1500, "adjusted": 750}[family]
    warmup = {"nuts": 150, "mclmc": 500, "adjusted": 225}[family]
    for name, runner in list(mcmc.samplers(family, settings).items())[1:]:
        chains = runner(target, target.starts(2, 0), 0)
        assert chains.x.shape == (2, draws, 10), name
        assert chains.length > 0
        if family == "mclmc":
            assert (chains.gradients, chains.warmup_gradients) == (2 * 2 * draws, 2 * (2 * warmup + 1))
        if family == "adjusted":  # two steps for each draw, which are four gradients, on average
            assert abs(chains.gradients / (4 * 2 * draws) - 1) < 0.2
            assert abs(chains.warmup_gradients / (4 * 2 * warmup) - 1) < 0.5


def test_missing_peers_are_named_with_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "numpyro" else find_spec("torch"))
    with pytest.raises(MissingExtra, match=r'needs numpyro: pip install "boltzmix\[peers\]"'):
        benchmarks.run_suite("mcmc", out=tmp_path)
    assert main(["bench", "mcmc", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'pip install "boltzmix[peers]"' in line


@with_peers
@pytest.mark.slow
@pytest.mark.parametrize("section", ["nuts-eight_schools", "mclmc-ill_conditioned", "adjusted-logistic_regression"])
def test_quick_run(tmp_path, section):
    report = benchmarks.run_suite("mcmc", quick=True, seeds=1, out=tmp_path, only=[section])
    found = json.loads((tmp_path / "results.json").read_text())
    assert not [r for r in found["rows"] if r["quantity"].endswith((" ran", "ran to its end"))]
    (methods,) = found["curves"].values()
    assert set(methods) == {"boltzmix", "BlackJAX"} | ({"NumPyro"} if "nuts" in section else set())
    assert {p.name for p in tmp_path.glob("*.png")} == {section.partition("-")[0] + ".png"}
    assert ratios(report)
