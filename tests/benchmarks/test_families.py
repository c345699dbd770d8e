"""The table of families: its units are right, its order is that of the labels, and nothing that fails is lost."""

import json
import math
from pathlib import Path

import pytest
import torch

from boltzmix.benchmarks import digits_families, metrics
from boltzmix.benchmarks.digits_families import FAMILIES, Family, by_class, grey_levels
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import across, adaptation, families
from boltzmix.compose.box import Box
from boltzmix.models import data
from boltzmix.models.load import build

QUICK = Settings(quick=True, seeds=(0,))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_entry_builds_and_takes_labels(name):
    family = FAMILIES[name]
    model = build(family.spec)
    assert "label" in model.conditions
    assert {"lr", "batch_size"} <= set(family.fit)
    assert "steps" not in family.fit


def test_a_uniform_density_costs_log2_of_the_levels():
    """Uniform on [−1, 1]^64 gives every level the same chance: log2(17) bits per pixel."""
    box = Box([-1.0] * 64, [1.0] * 64)
    flat = Family({}, {}, lambda model, x, g: model.energy(x.flatten(1)), "exact", by_class(digits_families.ancestral))
    levels = data.digit_levels("test")[0][:5]
    assert families._bits(box, flat, levels, 0) == pytest.approx(math.log2(17), abs=1e-5)


def test_grey_levels_undo_the_noise():
    levels = data.digit_levels("test")[0][:50]
    x = 2 * (levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))) / 17 - 1
    assert torch.equal(grey_levels(x), levels.float() / 8 - 1)
    assert torch.equal(grey_levels(levels), levels.float() / 8 - 1)
    assert grey_levels(torch.tensor([-3.0, 3.0])).tolist() == [-1.0, 1.0]


def test_draws_come_class_by_class():
    class Stub:
        def given(self, label):
            return label

    found = by_class(lambda label, n, seed: torch.full((n, 1), label))(Stub(), 3, 0)
    assert found[:, 0].tolist() == [*range(10)] * 3


def test_the_table_is_written_and_a_second_run_finds_the_models(tmp_path, capsys):
    """Two families in seconds; what they are judged by does not change when they are found again."""
    first = families.run(tmp_path, quick=True, only=["digits"], families=["vae", "transformer"], workers=1)
    assert not first.missed
    assert (tmp_path / "vae.png").exists()
    assert (tmp_path / "models" / "transformer.safetensors").exists()
    assert "| vae |" in (tmp_path / "table.md").read_text()
    again = families.run(tmp_path, quick=True, only=["digits"], families=["vae", "transformer"], workers=1)
    for a, b in zip(first.rows, again.rows, strict=True):
        assert a.quantity == b.quantity
        if not a.quantity.startswith("sampling"):
            assert a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    found = json.loads((tmp_path / "results.json").read_text())
    with pytest.raises(ValueError, match="quick"):
        families.publish(tmp_path, tmp_path)
    assert set(found["curves"]["digits"]) == {"vae", "transformer"}
    capsys.readouterr()


def test_a_family_that_fails_is_a_row_that_does_not_hold(tmp_path, monkeypatch):
    broken = Family({"class": "VAE", "arguments": {}}, {"batch_size": 2}, digits_families.exact, "exact", None)
    monkeypatch.setitem(FAMILIES, "broken", broken)
    made = families.judge("broken", 0, 1.0, 2, str(tmp_path))
    assert made.error
    report = Report("families", "x")
    families._tabulate(report, [made], QUICK)
    assert [row.holds for row in report.rows if row.quantity == "trained, drawn and judged"] == [False]


def test_wrong_arguments_name_the_families(tmp_path):
    with pytest.raises(ValueError, match="energy-diffusion"):
        families.run(tmp_path, families=["vea"])
    with pytest.raises(ValueError, match="budget"):
        families.run(tmp_path, budget=0)


def test_rare_classes_compare_both_sides_at_their_best():
    report = Report("families", "x")
    adaptation.rare_classes(report, QUICK)
    judged = [row for row in report.rows if row.holds is not None]
    assert len(judged) == 1, "one class in a quick run"
    curves = report.curves["rare class 3"]
    best = {
        kind: min(p[0]["distance"] for name, p in curves.items() if name.startswith(kind + ","))
        for kind in ("small", "small * large")
    }
    assert judged[0].value == pytest.approx(best["small * large"] / best["small"])


def test_energy_distance_sees_missing_classes():
    """The yardstick itself: half of the classes are farther from held-out digits than all of them."""
    (train, label), (test, _) = data.digits("train"), data.digits("test")
    assert metrics.energy_distance(train[label < 5], test) > 10 * abs(metrics.energy_distance(train, test))


def test_the_page_shows_the_committed_run():
    root = Path(__file__).resolve().parents[2]
    found = json.loads((root / "benchmarks/results/families/results.json").read_text(encoding="utf-8"))
    assert found["summary"] in (root / "docs/models.md").read_text(encoding="utf-8")
    assert set(found["curves"]["digits"]) == set(FAMILIES)
    assert not found["quick"]


def test_components_are_put_back_into_pixels():
    """With all 64 axes nothing is lost."""
    images = data.digits("test")[0][:20].double()
    axes = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    centre, spread = images.flatten(1).mean(0), torch.linspace(0.5, 2, 64, dtype=torch.float64)
    coded = (images.flatten(1) - centre) @ axes.mT / spread
    assert torch.allclose(across._pixels(coded, centre, axes, spread), images)
