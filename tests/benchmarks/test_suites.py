"""Suites run, write what they promise, and notice a sampler that is wrong."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from boltzmix import benchmarks
from boltzmix.benchmarks import metrics, targets
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.speed import overhead
from boltzmix.benchmarks.suites import compositions
from boltzmix.compose.samplers.smc import SMC

QUICK = Settings(quick=True, seeds=(0, 1))


@dataclass(frozen=True)
class Spoiled(SMC):
    """SMC whose draws lose a part of one mode, and whose evidence is off."""

    def run(self, request):
        draw = super().run(request)
        bad = draw.x[:, 0] > 0.5
        good = (~bad).nonzero()[:, 0]
        x = draw.x.clone()
        x[bad] = draw.x[good[torch.arange(int(bad.sum())) % len(good)]]
        return replace(draw, x=x, log_z=draw.log_z + 0.5)


def default_rows(sampler):
    task = targets.ring_line()
    report = Report("test", "test", section="test")
    judge = metrics.Discrepancy(task.exact, references=2)
    points = compositions.runs(task, sampler, 1500, QUICK, judge)
    compositions.default_targets(report, task.name, points, 120, compositions.mode_floor(task, 1500, 5), "")
    compositions.evidence(report, task.name, points, "", 0.1)
    top = metrics.quantile(judge.floor(1500, 30), 0.99)
    report.check(task.name, "MMD²", max(p["mmd2"] for p in points) / top, "≤", 1.0)
    return report


def test_a_right_sampler_holds_its_targets():
    assert not default_rows(SMC(cess=0.995)).missed


def test_a_wrong_sampler_misses_them():
    missed = {row.quantity for row in default_rows(Spoiled(cess=0.995)).missed}
    assert missed >= {"mode-mass error above exact draws", "MMD²", "log Z, worst |error|"}


def test_formulas_drawn_without_a_word_would_be_noticed():
    outcome, _ = compositions.attempt(lambda: None)
    assert outcome == "drawn without a word"


def test_a_section_that_fails_is_a_target_that_does_not_hold(tmp_path, capsys):
    def broken(report, settings):
        report.check("first", "figure", 1.0, "≤", 2.0)
        raise RuntimeError("something broke")

    def sound(report, settings):
        report.check("second", "figure", math.nan, "≤", 2.0)

    report = run_sections("test", "A test", [("one", broken), ("two", sound)], out=tmp_path, quick=True, seeds=2)
    assert [r.holds for r in report.rows] == [True, False, False]
    assert "something broke" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["rows"][2]["value"] is None


def test_wrong_arguments_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="compositions, .*speed"):
        benchmarks.run_suite("composition")
    with pytest.raises(ValueError, match="it has"):
        benchmarks.run_suite("compositions", only=["2z"], out=tmp_path)
    for seeds in (0, -1, True, []):
        with pytest.raises(ValueError, match="seeds"):
            benchmarks.run_suite("speed", seeds=seeds, out=tmp_path)


def check_folder(folder, suite, pictures):
    found = json.loads((folder / "results.json").read_text())
    assert found["schema"] == 1
    assert found["suite"] == suite
    assert found["command"].startswith(f"python -m boltzmix bench {suite} --quick")
    assert found["threads"] == 1
    assert {"python", "torch"} <= set(found["versions"])
    assert found["seeds"] == [0, 1]
    for row in found["rows"]:
        assert set(row) == {"section", "task", "quantity", "value", "target", "holds", "note"}
        assert (row["holds"] is None) == (row["target"] == "")
    assert not [r for r in found["rows"] if r["quantity"] == "ran to its end"]
    assert "| part | task |" in (folder / "table.md").read_text()
    assert {p.name for p in folder.glob("*.png")} == pictures
    assert not list(folder.glob(".*"))  # no temporary file stays
    return found


def test_quick_run_of_the_first_section(tmp_path, capsys):
    threads = torch.get_num_threads()
    benchmarks.run_suite("compositions", quick=True, seeds=2, out=tmp_path, only=["2a"])
    assert torch.get_num_threads() == threads
    found = check_folder(tmp_path, "compositions", {"ring-line.png"})
    assert set(found["curves"]["ring × line"]) >= {"SMC, exact start", "SMC, noise path", "Annealed", "AIS", "Reverse"}
    counted = [p for points in found["curves"]["ring × line"].values() for p in points]
    assert all(abs(p["evaluations"] - p["counted"]) < 0.01 for p in counted)
    assert "targets hold" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_run_of_every_section(tmp_path):
    benchmarks.run_suite("compositions", quick=True, seeds=2, out=tmp_path)
    check_folder(tmp_path, "compositions", {"ring-line.png", "evidence.png"})


@pytest.mark.slow
def test_quick_run_of_speed(tmp_path):
    benchmarks.run_suite("speed", quick=True, seeds=2, out=tmp_path, only=["guidance", "hmc"])
    check_folder(tmp_path, "speed", {"ratios.png"})


def test_the_loop_by_hand_samples_its_gaussian():
    """A bare loop that is wrong would be no yardstick."""
    from boltzmix.compose.flat import ravel
    from boltzmix.compose.gaussian import Gaussian

    gaussian = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0]))
    generator = torch.Generator().manual_seed(0)
    x = overhead.by_hand(ravel(gaussian), gaussian.sample(20_000, generator), 0.4, 4, 25, True, generator)
    spread = gaussian.variances.sqrt() / math.sqrt(len(x))
    assert float(((x.mean(0) - gaussian.mean) / spread).abs().max()) < 4.5
    assert torch.allclose(x.var(0), gaussian.variances, rtol=4.5 * math.sqrt(2 / len(x)))


def test_bare_work_is_the_work_of_the_composite():
    """The bare forward gives the numbers from which the composite's score is made."""
    from boltzmix.models.diffusion import Diffusion
    from boltzmix.models.nets import UNet

    torch.manual_seed(0)
    p = Diffusion(UNet(1, hidden=(8, 16), num_classes=10), (1, 8, 8), num_classes=10).eval()
    with torch.no_grad():
        for parameter in p.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        x, sigma = torch.randn(3, 1, 8, 8), torch.tensor(0.5)
        parts = overhead.bare_work(p, x, sigma)().chunk(9)
        score = overhead.guidance_composite(p).score(x, 0.5)
    spread, gain = p.core.spread(sigma), p.core.gain(sigma)
    mean = parts[0] + overhead._POWER * sum(part - parts[0] for part in parts[1:])
    assert torch.allclose(score, -x / spread**2 + gain / spread * mean, atol=1e-5)
