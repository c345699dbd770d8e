"""The energy suite runs, compares at equal size and budget, and counts the budget right."""

import json
import math

import pytest
import torch

from boltzmix import benchmarks
from boltzmix.benchmarks.suites import energy
from boltzmix.models import data


@pytest.mark.parametrize("method", energy.METHODS)
def test_sizes_are_equal_and_a_step_costs_what_is_said(method):
    goal = energy.size(energy.build("diffusion", 32))
    model = energy.build(method, 32)
    assert abs(energy.size(model) / goal - 1) < 0.03
    generator, rows = torch.Generator().manual_seed(0), []
    x = data.two_moons(energy._BATCH, generator)
    model.loss(x, generator)
    model.core.net.register_forward_hook(lambda net, args, out: rows.append(len(args[0])))
    model.loss(x, generator)
    assert sum(rows) == energy.rows_per_step(method)


def test_distances_below_the_floor_do_not_count():
    assert energy.held([1e-9, -1e-5], 3e-4) == pytest.approx(math.log(3e-4))
    assert energy.held([1e-2, 3e-2], 3e-4) == pytest.approx(math.log(2e-2))


def test_the_grid_integrates_a_known_density():
    model = energy.build("nce", 8)
    assert abs(energy.grid_log_z(model) - math.log(math.erf(4 / math.sqrt(2)) ** 2)) < 1e-4
    total = energy.log_density(model).exp().sum() * (8 / 400) ** 2
    assert abs(float(total) - 1) < 1e-6


def test_quick_run(tmp_path):
    report = benchmarks.run_suite("energy", quick=True, seeds=1, out=tmp_path, only=["grid"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert not [r for r in found["rows"] if r["quantity"] == "ran to its end"]
    assert {p.name for p in tmp_path.glob("*.png")} == {"grid.png"}
    assert set(found["curves"]["25 Gaussians"]) == set(energy.METHODS.values())
    errors = [r for r in report.rows if "log Z by SMC" in r.quantity]
    assert len(errors) == 2
    assert all(r.holds for r in errors)
