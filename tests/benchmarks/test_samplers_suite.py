"""The suite of samplers: its sections, what is judged, and that it runs without other libraries."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch

from boltzmix.__main__ import main
from boltzmix.benchmarks import Budget, compare, run_suite
from boltzmix.benchmarks.densities import DENSITIES, density
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import samplers
from tests.benchmarks.test_compare import drawn, gaussian, raises, says_half

FULL, QUICK = Settings(quick=False, seeds=(0,)), Settings(quick=True, seeds=(0,))


def test_every_target_has_one_section():
    found = samplers.groups(list(DENSITIES))
    assert sorted(name for names in found.values() for name in names) == sorted(DENSITIES)
    assert "ill_conditioned" in found["gaussians"]


def test_draws_fit_into_memory():
    for name in ("standard", "banana"):
        target = density(name)
        budget, chains = samplers.setting(target, FULL)
        assert chains * budget.gradients * target.dim <= 2**26
        assert samplers.setting(target, QUICK)[0].gradients <= budget.gradients
    wide = replace(gaussian(), dim=10_000)
    assert samplers.setting(wide, FULL)[0].gradients == 2**26 // (8 * 10_000)


def test_methods_suit_their_targets():
    assert "NUTS" in samplers.methods(density("banana"))
    assert "SMC" not in samplers.methods(density("standard"))
    assert {"SMC", "tempering"} <= set(samplers.methods(density("grid")))
    assert samplers.methods(density("ising")) == list(samplers.DISCRETE)
    assert samplers.rivals(density("ising")) == {}
    assert "Pyro NUTS" in samplers.rivals(density("ill_conditioned"))


def described(name, cost, **methods):
    """The report of a comparison in which the rival draws exactly at ten gradients, and ours at ``cost``."""
    target = gaussian(name=name)
    ours = {"NUTS": lambda *a: drawn(*a, cost=cost), "BlackJAX NUTS": drawn, **methods}
    report = Report("samplers", "test", section="test")
    samplers.describe(report, compare(target, ours, Budget(0, 400), seeds=2, chains=8), name)
    return report


def fewer_gradients_than_the_rival_are_asked_for():
    """Independent draws at a known cost each: 5 against 10 gradients hold, 20 do not."""
    (row,) = [r for r in described("ill_conditioned", 5.0).rows if "best of ours" in r.quantity]
    assert row.holds
    assert row.value == pytest.approx(0.5, rel=0.15)
    (row,) = [r for r in described("ill_conditioned", 20.0).rows if "best of ours" in r.quantity]
    assert not row.holds
    assert not [r for r in described("elsewhere", 5.0).rows if "best of ours" in r.quantity]


def test_fewer_gradients_than_the_rival_are_asked_for():
    fewer_gradients_than_the_rival_are_asked_for()


def test_a_biased_sampler_of_ours_is_not_the_best_and_is_missed():
    report = described("ill_conditioned", 20.0, MALA=lambda *a: drawn(*a, cost=1.0, scale=0.9))
    (best,) = [r for r in report.rows if "best of ours" in r.quantity]
    assert not best.holds
    assert [r.quantity for r in report.missed if "chance" in r.quantity] == [
        "MALA: worst error of a moment over what chance allows"
    ]


def test_failures_of_ours_are_missed_and_those_of_others_are_rows():
    report = described("elsewhere", 5.0, MALA=raises, Barker=says_half, theirs=raises)
    (missed,) = report.missed
    assert "MALA: ZeroDivisionError" in missed.note
    assert "Barker: " in missed.note
    assert "theirs" not in missed.note
    assert "| theirs | failed |" in report.summary
    report = described("ill_conditioned", 5.0, **{"BlackJAX NUTS": raises})
    assert [r for r in report.rows if r.quantity == "SKIPPED" and "ZeroDivisionError" in r.note]


def test_the_suite_runs_from_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(samplers, "methods", lambda target: ["MALA", "MCLMC"])
    command = ["bench", "samplers", "--quick", "--seeds", "1", "--targets", "banana", "--no-peers"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "### banana" in said
    assert "| MALA |" in said
    assert (tmp_path / "curves-banana.png").exists()
    assert (tmp_path / "targets" / "banana" / "comparison.json").exists()


def test_libraries_that_are_not_installed_are_rows(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    absent = ("jax", "blackjax", "numpyro")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else find(name, *a))
    monkeypatch.setattr(samplers, "methods", lambda target: ["MALA"])
    report = run_suite("samplers", out=tmp_path, quick=True, seeds=1, targets=["banana"], progress=False)
    skipped = [r.note for r in report.rows if r.quantity == "SKIPPED"]
    assert len(skipped) == len(samplers.PEERS)
    assert all('pip install "boltzmix[peers]"' in note for note in skipped)
    assert not report.missed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["samplers", "--targets", "nowhere"], "there are no targets ['nowhere']"),
        (["hard", "--no-peers"], "the suite 'hard' takes no peers"),
        (["samplers", "--targets", "banana", "--jobs", "2", "--backend", "mpi", "--quick"], None),
    ],
)
def test_wrong_options(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "methods", lambda target: ["MALA"])
    code = main(["bench", *options, "--out", str(tmp_path)])
    said = capsys.readouterr()
    if message is None:
        assert "backend is one of" in said.out  # a section that does not run is a row
    else:
        assert code == 2
        assert message in said.err


def test_curves_are_thinned_from_their_end():
    curve = {"gradients": [float(k) for k in range(1, 1001)], "largest": [1.0] * 999 + [math.pi]}
    found = samplers._thinned(curve)
    assert len(found["gradients"]) <= 60
    assert (found["gradients"][-1], found["largest"][-1]) == (1000.0, 3.14)
    assert torch.tensor(found["gradients"]).diff().min() > 0
