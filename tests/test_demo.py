"""The demo: one setting for a whole gallery, the worst panel shown, failures reported, figures that are right."""

import dataclasses
import json
import math
import sys

import pytest
import torch

from boltzmix.benchmarks import demo, demo_panels, demo_planning, demo_sheets
from boltzmix.benchmarks.demo_panels import DIGITS, PLANE, Panel, Plane
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.samplers.smc import SMC, Annealed

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run, and what it printed."""
    said = []
    report = demo.run(tmp_path_factory.mktemp("demo") / "out", quick=True, seed=0, say=said.append)
    return report, "\n".join(said), json.loads((report.out / "results.json").read_text(encoding="utf-8"))


def test_it_writes_its_sheets_one_gif_and_the_results(quick):
    report, _, _ = quick
    names = {p.name for p in report.out.iterdir()}
    wanted = {"plane.png", "digits.png", "completions.png", "worst.png", "path.gif", "results.json"}
    if demo_planning.available():
        wanted |= {"planning.png", "planning.gif"}
    assert names == wanted
    assert all(p.stat().st_size > 1000 for p in report.out.iterdir())


def test_every_panel_is_judged(quick):
    report, _, results = quick
    assert not report.failed
    assert [p["formula"] for p in results["panels"]] == [item.formula for item in (*PLANE, *DIGITS)]
    for p in results["panels"]:
        judged = ["distance", "floor", "to_formula", "naive", "log_z", "log_z_se", "log_z_exact"]
        if p["gallery"] == "digits":
            judged = ["nearest", "nearest_real"]
        for key in (*judged, "evaluations", "seconds", "acceptance"):
            assert isinstance(p[key], float), (p["formula"], key)
            assert math.isfinite(p[key]), (p["formula"], key)


def test_a_gallery_has_one_sampler(quick):
    _, _, results = quick
    for gallery in ("plane", "digits"):
        assert {p["sampler"] for p in results["panels"] if p["gallery"] == gallery} == {results["samplers"][gallery]}


def test_the_full_setting_is_the_default_sampler_and_one_annealed():
    setting = demo_panels.full()
    assert setting.plane == SMC()
    assert setting.digits == Annealed(levels=64, sweeps=1)


def test_the_table_names_compositions_samplers_figures_and_files(quick):
    report, said, _ = quick
    for word in ("ring * line", "p * Clamp(upper, digits)", "SMC(", "Annealed(", "distance", "floor", "log Z", "evals"):
        assert word in said
    assert str(report.out) in said
    assert "worst panel of the plane" in said
    assert "worst panel of digits" in said
    assert f"{len(PLANE) + len(DIGITS)}/{len(PLANE) + len(DIGITS)}" in said  # progress up to the last


def test_unseen_obstacles_are_avoided_and_the_prior_alone_does_not(quick):
    report, said, results = quick
    if not demo_planning.available():
        pytest.skip("the prior of the obstacle world does not ship yet")
    assert [p["name"] for p in results["planning"]] == [name for name, _ in demo_planning.WORLDS]
    assert all(p.composed >= p.alone for p in report.planned)
    assert report.planned[0].status == report.planned[2].status == "feasible"
    assert report.planned[0].composed > 0.5 > report.planned[0].alone
    assert "PLANNING" in said


def test_the_worst_panels_are_those_with_the_worst_figures(quick):
    report, said, _ = quick
    plane = [p for p in report.panels if p.gallery == "plane"]
    worst = max(plane, key=lambda p: p.distance / p.floor)
    assert f"worst panel of the plane (worst.png): {worst.formula}." in said


def test_a_formula_is_what_its_text_says():
    terms = {name: Gaussian(torch.randn(2, generator=torch.Generator().manual_seed(k)), 1.0 + k / 4) for k, name in
             enumerate(("ring", "line", "circle", "bar"))}  # fmt: skip
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(9))
    for item in PLANE:
        text = eval(item.formula, {**terms, "bounded_negation": demo_panels.bounded_negation})
        built = item.build(*(terms[name] for name in item.factors))
        torch.testing.assert_close(built.energy(x), text.energy(x))


@pytest.mark.parametrize("item", DIGITS, ids=lambda item: item.formula)
def test_a_formula_over_digits_is_what_its_text_says(item):
    p = demo_panels._load("digits")
    given = torch.zeros(1, 1, 8, 8)
    names = {"p": p, "upper": demo_panels.UPPER, "digits": given, "Clamp": demo_panels.Clamp}
    names |= {f"p{k}": p.given(label=k) for k in (3, 7, 8)}
    names |= {"mixture": demo_panels.mixture, "bounded_negation": demo_panels.bounded_negation}
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, :4] = 0.0
    torch.testing.assert_close(item.build(p, given).energy(x, 0.5), eval(item.formula, names).energy(x, 0.5))


def test_the_same_seed_gives_the_same_figures(tmp_path):
    first, second, other = (demo_panels.panel("plane", 5, True, seed, str(tmp_path)) for seed in (1, 1, 2))
    assert first.distance == second.distance
    assert first.log_z == second.log_z
    assert first.log_z != other.log_z


def test_distances_are_floors_for_exact_draws_and_large_for_others(monkeypatch, tmp_path):
    # The factors' exact densities in place of the networks: what is left is the sampler.
    monkeypatch.setattr(demo_panels, "_load", lambda name: demo_panels.toy(name))
    made = demo_panels.panel("plane", 5, True, 0, str(tmp_path))
    assert made.floor is not None
    assert made.distance < 2 * made.floor
    assert made.to_formula < 2 * made.floor
    assert made.naive > 4 * made.floor
    assert abs(made.log_z - made.log_z_exact) < 4 * made.log_z_se


def test_what_has_no_integral_is_reported_and_not_drawn(monkeypatch, tmp_path):
    hopeless = Plane("negation", "line / ring ** 3", ("line", "ring"), lambda p, q: p / q**3)
    monkeypatch.setattr(demo_panels, "PLANE", (hopeless, PLANE[5]))
    monkeypatch.setattr(demo_panels, "_load", lambda name: demo_panels.toy(name))
    panels = [demo_panels.panel("plane", k, True, 0, str(tmp_path)) for k in (0, 1)]
    assert panels[0].error.startswith("NotNormalizable")
    assert not panels[0].pictures
    demo_sheets.draw_sheets(panels, tmp_path)
    assert (tmp_path / "plane.png").exists()
    digits = Panel("digits", "a", "b", "c", 8, nearest=1.0, nearest_real=1.0)
    report = demo_panels.Report(tmp_path, [*panels, digits], 1.0)
    assert "NotNormalizable" in demo_sheets.table(report, demo_panels.quick())
    assert report.failed == panels[:1]


def test_without_scikit_learn_it_says_so_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    said = []
    with pytest.raises(MissingExtra, match=r"scikit-learn.*pip install"):
        demo.run(tmp_path / "out", quick=True, say=said.append)
    assert not said
    assert not (tmp_path / "out").exists()


def test_processes_give_the_same_panels_as_one(quick, tmp_path):
    def figures(made):
        return {k: v for k, v in dataclasses.asdict(made).items() if "seconds" not in k and k != "pictures"}

    report, _, _ = quick
    alone = {p.formula: p for p in report.panels}
    together = [made for _, made in demo._work([("digits", 0), ("plane", 5)], True, 0, str(tmp_path), 2)]
    assert {p.formula for p in together} == {"p", "line ** 3"}
    for made in together:
        assert figures(made) == figures(alone[made.formula])
