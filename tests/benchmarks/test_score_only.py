"""The tables of score-only samplers: every row is there, and the figures are of the right size."""

import pytest
import torch

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import score_only
from boltzmix.compose import Gaussian

QUICK = Settings(quick=True, seeds=(0,))


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_feynman_kac_beside_smc():
    report = Report("test", "test", section="4a")
    score_only.feynman_kac(report, QUICK)
    errors = [row for row in report.rows if "log Z" in row.quantity]
    assert len(errors) == 6
    assert all(row.value < 0.6 for row in errors)
    biased = [row.value for row in report.rows if row.quantity.startswith("Reverse")]
    weighed = [row.value for row in report.rows if row.quantity.startswith("FKC()") and "masses" in row.quantity]
    assert biased[1] > 2 * weighed[1]


def test_superposition():
    report = Report("test", "test", section="4b")
    score_only.superposition(report, QUICK)
    gaps = {row.quantity: row.value for row in report.rows if row.task.startswith("AND of two Gaussians")}
    assert gaps['"returned", 20 levels: gap'] < gaps['"free", 20 levels: gap']
    rough, matched = (row.value for row in report.rows if row.task.startswith("OR"))
    assert matched < 0.3 * rough


def test_score_twins_are_the_density_s_own():
    p = Gaussian(torch.zeros(2), 1.5)
    twin = score_only.score_of(p)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert not twin.has_energy
    assert torch.allclose(twin.score(x, 0.5), p.score(x, 0.5))
    assert score_only.karras(3)[0] == pytest.approx(80.0)
