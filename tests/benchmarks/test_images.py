"""The image suite: what it asks for, what it counts, and that its judges notice wrong pictures."""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.scenes import accuracy, cost, counts, negation, pictures
from boltzmix.benchmarks.scenes.methods import METHODS, Pictures, draw, formula, visible
from boltzmix.benchmarks.scenes.parser import parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.benchmarks.suites import images
from boltzmix.models.data import Scenes

SCENES = Scenes.small()
QUICK = Settings(quick=True, seeds=(0,))


@pytest.fixture(scope="module")
def model():
    return bm.models.load("scenes16")


def drawn(x):
    return Pictures(x, 10.0, 30.0, 0.1)


def test_requests_are_the_same_for_every_method():
    first, layouts = accuracy.requests(SCENES, 20, 2, ("position",), 0)
    again, _ = accuracy.requests(SCENES, 20, 2, ("position",), 0)
    assert torch.equal(first.position, again.position)
    assert (layouts.count >= 2).all()
    assert not torch.equal(first.position, accuracy.requests(SCENES, 20, 2, ("position",), 1)[0].position)


def test_the_formula_is_guidance_by_every_request(model):
    asked, _ = accuracy.requests(SCENES, 3, 2, ("position", "color"), 0)
    target = formula(model, asked, 2.0)
    assert sorted(e.constant for _, e in target.pairs()) == [-3.0, 2.0, 2.0]
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told = [model.given(**asked.given(j)) for j in range(2)]
    expected = 2 * told[0].score(x, 1.0) + 2 * told[1].score(x, 1.0) - 3 * model.score(x, 1.0)
    assert torch.allclose(target.score(x, 1.0), expected, atol=1e-3)


def guidance_ends_below_its_level(model):
    """Exponents of quotients at and above the level, the bare model below it; one network call as ever."""
    asked, _ = accuracy.requests(SCENES, 3, 2, ("position",), 0)
    whole, part = formula(model, asked, 2.0), formula(model, asked, 2.0, least=0.5)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sigma in (0.5, 3.0):
            assert torch.allclose(part.score(x, sigma), whole.score(x, sigma), atol=1e-3)
        assert torch.allclose(part.score(x, 0.49), model.score(x, 0.49), atol=1e-3)
        assert not torch.allclose(whole.score(x, 0.49), model.score(x, 0.49), atol=0.1)


def test_guidance_ends_below_its_level(model):
    guidance_ends_below_its_level(model)


def test_visible_levels_begin_about_the_mean_picture(model):
    ladder = visible(7)
    assert ladder.begins[0] == pytest.approx(20.0)
    assert ladder.begins[-1] == pytest.approx(0.05)
    assert (ladder.ends[-1], ladder.spread, len(ladder.begins)) == (0.0, 20.0, 7)
    assert float(bm.models.load("scenes").core.loc.mean()) == pytest.approx(ladder.centre, abs=0.02)
    assert float(model.core.loc.mean()) == pytest.approx(ladder.centre, abs=0.1)


def test_samplers_that_refuse_have_a_row(model):
    report = Report("test", "test", section="test")
    asked, _ = accuracy.requests(SCENES, 2, 1, ("position",), 0)
    accuracy.refusal(report, "task", "smc", bm.SMC(), model, asked, 1.0)
    assert math.isnan(report.rows[0].value)
    assert "MissingEnergy: SMC needs energies" in report.rows[0].note
    with pytest.raises(AssertionError, match="judge it"):
        accuracy.refusal(report, "task", "reverse", bm.Reverse(steps=2, solver="ddpm"), model, asked, 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_what_it_is_asked_for_at_its_price(model, name):
    """At 12 evaluations pictures are rough; that they are finite, counted and reproducible is what is asked here."""
    asked, _ = accuracy.requests(SCENES, 2, 2, ("position",), 0)
    method = METHODS[name]
    particles = 2 if method.population else 1
    found = draw(method, model, asked, 1.0, 24, 0, particles)
    assert found.x.shape == (2 * particles, 3, 16, 16)
    assert found.x.isfinite().all()
    assert found.evaluations <= (90 if name == "fkc" else 45)  # FKC looks for its start, which pays for many scenes
    assert found.rows >= 2 * found.evaluations  # at least two views of the network at each
    again = draw(method, model, asked, 1.0, 24, 0, particles)
    assert torch.equal(found.x, again.x)


def test_right_pictures_are_right_and_others_are_not():
    asked, layouts = accuracy.requests(SCENES, 40, 2, ("position", "shape", "color"), 0)
    report = Report("test", "test", section="test")
    assert accuracy.tell(report, "task", "exact", drawn(SCENES.render(layouts)), SCENES, asked, 1.0).rate == 1.0
    other = SCENES.render(SCENES.layouts(40, torch.Generator().manual_seed(5)))
    assert accuracy.tell(report, "task", "others", drawn(other), SCENES, asked, 1.0).rate < 0.1
    half = torch.cat([SCENES.render(layouts)[:20], other[20:]])
    assert 0.45 < accuracy.tell(report, "task", "half", drawn(half), SCENES, asked, 1.0).rate < 0.6
    assert [point["rate"] for point in report.curves["task"]["exact"]] == [1.0]
    # of each population the first row is judged
    twice = SCENES.render(layouts).repeat_interleave(2, 0)
    twice[1::2] = 0.0
    assert accuracy.tell(report, "task", "populations", drawn(twice), SCENES, asked, 1.0, 2).rate == 1.0


def test_pairs_never_seen_are_those_that_no_scene_holds():
    asked, _ = accuracy.held_out_requests(SCENES, 10, 2, 0)
    pairs = {(int(s), int(c)) for s, c in zip(asked.shape.flatten(), asked.color.flatten(), strict=True)}
    allowed = {tuple(pair) for pair in SCENES.pairs.tolist()}
    assert len(pairs) == 2
    assert not pairs & allowed


def test_attributes_told_apart_are_said_once(model):
    """p(shape, place) p(color, place) / p(place): exponents of the place's own view are −w."""
    asked, _ = accuracy.held_out_requests(SCENES, 2, 1, 0)
    seen = []

    def spy(n, make, seed):
        seen.append(make(torch.arange(n))[0])
        return drawn(torch.zeros(n, 3, 16, 16))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "in_chunks", spy)
        accuracy.composed_by_attribute(METHODS["reverse"], model, asked, 2.0, 10, 0)
    told = {tuple(sorted(_said(term))): e.constant for term, e in seen[0].pairs()}
    assert told == {(): -1.0, ("shape", "x", "y"): 2.0, ("color", "x", "y"): 2.0, ("x", "y"): -2.0}


def _said(term):
    if term.labels is None:
        return []
    return [name for name, value in zip(term.description.names, term.labels[0], strict=True) if value != -1]


def test_the_law_of_counts_judges_a_sampler_that_ignores_it(model):
    """Exact draws of the prior, handed in as guided ones, are far from the guided law of N."""
    report = Report("test", "test", section="test")

    def prior(method, own, asked, power, evaluations, seed, particles=1):
        return drawn(SCENES.render(SCENES.layouts(len(asked) * particles, torch.Generator().manual_seed(1))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "draw", prior)
        found = counts.judge(report, METHODS["reverse"], model, SCENES, 1, 4.0, 10, 128, 0)
    assert found.tv > 0.3 > found.floor
    assert found.mean == pytest.approx(2.0, abs=0.3)
    assert found.exact_mean < 1.3


def test_ink_is_counted_where_it_is():
    layouts = Scenes().layouts(200, torch.Generator().manual_seed(0))
    x = Scenes().render(layouts)
    red = ((layouts.color == 0) & (layouts.shape >= 0)).sum(1)
    ink = negation.redness(x)
    assert ((ink > 1) == (red > 0)).all()
    assert ink[red == 0].max() == 0
    top, bottom, left, right = negation.REGION
    amount = negation.ink_in_region(x)
    there = ((x[:, :, top:bottom, left:right] + 1).flatten(1).sum(1)) > 0
    assert (amount[~there] == 0).all()
    assert (amount[there] > 0).double().mean() > 0.9


def test_pictures_with_the_colour_are_seen_and_exact_ones_pass():
    report = Report("test", "test", section="test")
    exact = negation.exact_without(SCENES, 4000, lambda layouts: (layouts.color != 0).all(1), 0)
    again = negation.exact_without(SCENES, 300, lambda layouts: (layouts.color != 0).all(1), 1)
    rate, worst = negation.judge(report, "exact", parse(SCENES.render(again), SCENES), SCENES, {"law": exact})
    assert rate == 0.0
    assert worst["law"] < 0.03
    every = SCENES.layouts(300, torch.Generator().manual_seed(2))
    rate, worst = negation.judge(report, "prior", parse(SCENES.render(every), SCENES), SCENES, {"law": exact})
    assert rate > 0.2
    assert worst["law"] > 0.05


def test_the_bare_network_is_the_composite_by_hand(model):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    conditions = tuple(
        {**c, "x": min(c["x"], 12.0), "y": min(c["y"], 12.0)} if "x" in c else c for c in cost.CONDITIONS
    )
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(cost, "CONDITIONS", conditions)
        bare = cost.bare_scores(model, x, torch.tensor(0.8), cost.description_rows(model, 2))
        assert torch.allclose(cost.composite(model).score(x, 0.8), bare, rtol=1e-3, atol=1e-3)


def test_curves_are_drawn(tmp_path):
    report = Report("test", "test", section="test")
    for evaluations in (10, 100):
        report.point("task", "reverse", evaluations=evaluations, rate=0.5)
    report.figures["curve"] = pictures.curve(report, "task", "rate", "right pictures")
    report.about = {"command": "none", "versions": {}, "seeds": [0], "threads": 1, "seconds": 0.0, "quick": True}
    report.write(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_suite_takes_its_parts_by_name(tmp_path):
    with pytest.raises(ValueError, match="places"):
        images.run(out=tmp_path, quick=True, only=["place"])
    report = images.run(out=tmp_path, quick=True, only=["parser"], progress=False)
    assert not report.missed
    assert (tmp_path / "table.md").exists()


def test_models_that_are_told_everything_are_asked_for_everything():
    """Each requested object brings its own attributes; what the request says itself goes first."""
    asked, layouts = accuracy.requests(SCENES, 5, 2, ("position",), 3)
    chosen = accuracy._attributes(layouts, asked)
    for i in range(5):
        for j in range(2):
            slot = int((layouts.position[i] - asked.position[i, j]).norm(dim=-1).argmin())
            assert int(chosen["shape"][i, j]) == int(layouts.shape[i, slot])
            assert math.isclose(float(chosen["x"][i, j]), float(asked.position[i, j, 0]), abs_tol=1e-4)
    named = Requests(asked.position, torch.full_like(asked.shape, 2), asked.color)
    assert (accuracy._attributes(layouts, named)["shape"] == 2).all()


def test_the_number_of_objects_stays_below_the_level_at_which_it_is_decided():
    """A mixture of the very scenes has their exact score: little noise keeps every number, much noise the law of N."""
    report = Report("images", "test")
    report.section = "counts-prior"
    layouts = SCENES.layouts(24, torch.Generator().manual_seed(3))

    def mixture(pictures):
        return bm.mixture([bm.Gaussian(x, 4e-4) for x in pictures], [1 / 24] * 24)

    exact = mixture(SCENES.render(layouts))
    counts.restarted(report, exact, SCENES, (0.3, 30.0), 12, 24, seed=3)
    near, far = report.rows
    assert near.value == 0.0
    assert "stays in 1.000" in near.note
    assert 0.0 < far.value < 0.35  # 24 draws of a law of three values
    assert "stays in 1.000" not in far.note
    with_two = mixture(SCENES.render(SCENES.layouts(24, count=2)))
    counts.restarted(report, with_two, SCENES, (30.0,), 12, 24, seed=3)
    assert report.rows[-1].value > 0.4  # a model that knows scenes of two alone
