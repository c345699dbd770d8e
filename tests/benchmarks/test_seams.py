"""Seam statistics: even pictures have none, planted ones are found; and the tapestry's figures and files."""

import json

import pytest
import torch
from torch import nn

from boltzmix.benchmarks import scenes_tapestry
from boltzmix.benchmarks.scenes_tapestry import PLACES, met_requests, place, tapestry
from boltzmix.benchmarks.seams import border_steps, borders, score_matrix, seams, twin
from boltzmix.compose import Canvas, Gaussian
from boltzmix.models import Diffusion
from boltzmix.models.data.scenes import RELATIONS, Scenes
from boltzmix.models.nets import SceneNet


def noise(n=6, size=64, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_borders_are_where_windows_begin_and_end():
    assert borders(64, 32, 16) == [15, 31, 47]
    assert borders(24, 10, 7) == [6, 9, 13, 16]
    assert borders(32, 16, 16) == [15]


def test_even_pictures_have_no_seams():
    """Independent pixels and smooth ones: |z| < 4, a false alarm in 16,000 seeds each."""
    smooth = nn.functional.avg_pool2d(noise(), 5, 1, 2)
    for x in (noise(), smooth):
        found = seams(x, 32, 16)
        assert abs(found.ratio - 1) < 4 * found.error
        assert found.error < 0.05
        assert found.blocks == 2 * 6 * 2
        assert len(found.profile) == 16


@pytest.mark.parametrize("axis", [2, 3])
def test_a_planted_seam_is_found_where_it_is(axis):
    x = noise()
    x[(slice(None),) * axis + (slice(16, 32),)] += 2.0  # steps of 2 across the borders at 15 and at 31
    found = seams(x, 32, 16)
    assert found.ratio > 1 + 5 * found.error
    across, along = found.by_axis[axis - 2], found.by_axis[3 - axis]
    assert across > 1.05
    assert abs(along - 1) < 0.05
    assert max(range(16), key=found.profile.__getitem__) == 0
    assert abs(seams(x, 32, 16, offset=8).ratio - 1) < 0.1


def test_the_error_is_that_of_repetitions():
    """The bootstrap's standard error against the spread over 40 data sets: within a half."""
    smooth = [nn.functional.avg_pool2d(noise(4, 64, seed), 5, 1, 2) for seed in range(40)]
    found = [seams(x, 32, 16, resamples=200) for x in smooth]
    spread = torch.tensor([f.ratio for f in found]).std()
    error = torch.tensor([f.error for f in found]).mean()
    assert 0.5 < float(error / spread) < 1.5


def test_objects_that_keep_away_from_borders_show_within_reach():
    """Nothing happens within three pixels of borders: the steps across them say so, and their neighbours' too."""
    x = noise()
    for border in (16, 32, 48):
        x[..., border - 3 : border + 3] = 0
        x[..., border - 3 : border + 3, :] = 0
    assert seams(x, 32, 16).ratio < 0.1
    assert seams(x, 32, 16, reach=3).ratio < 0.1


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 8, 8), {}, "N, C, H, W"),
        (torch.full((1, 1, 8, 8), torch.nan), {}, "finite"),
        (torch.zeros(1, 1, 8, 8), {}, "nothing to compare"),
        (torch.zeros(1, 1, 64, 64), {"reach": 0}, "1 or more"),
        (torch.zeros(1, 1, 64, 64), {"reach": 9}, "nothing to compare"),
    ],
)
def test_wrong_calls(x, options, message):
    with pytest.raises(ValueError, match=message):
        seams(x, 32, 16, **options)


def test_the_twin_is_exact_and_its_biases_are_known():
    rows = {row["rule"]: row for row in twin((0.9,))}
    assert rows["marginal"]["score_error"] < 1e-10
    assert rows["centre"]["score_error"] < 1e-10
    assert rows["product"]["langevin"]["variance_least"] < 0.36
    assert rows["mean"]["reverse"]["border_steps"] > 2.5
    assert abs(rows["marginal"]["reverse"]["border_steps"] - 1) < 0.02
    assert score_matrix(Gaussian(torch.zeros(2, dtype=torch.float64), 0.5)).tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert border_steps(torch.eye(48, dtype=torch.float64), 16, 8) == pytest.approx(1.0)


def small_model():
    """The 16 × 16 architecture, untrained."""
    scenes = Scenes.small()
    span = [scenes.margin, scenes.size - scenes.margin]
    fields = {"shape": ["circle", "square", "triangle"], "color": ["red", "green", "blue", "yellow"]}
    fields |= {"x": span, "y": span, "relation": list(RELATIONS)}
    net = SceneNet(size=16, hidden=8, blocks=1, extra=(3,))
    return Diffusion(net, (3, 16, 16), fields=fields, together=[["x", "y"]], sigma_range=(0.02, 80.0))


def test_requests_are_looked_for_in_their_windows():
    """Objects rendered onto a canvas are found where they are, and only there."""
    scenes = Scenes.small()
    canvas = Canvas(small_model(), (3, 64, 64), 8)
    asked = [{**c, "x": c["x"] / 2, "y": c["y"] / 2} for c in PLACES]
    wide = Scenes(size=64, most=4, radius=2.0, margin=3.0, distance=5.7)
    layouts = wide.layouts(2, torch.Generator().manual_seed(0), count=4)
    for slot, c in enumerate(asked):
        layouts.position[0, slot] = torch.tensor([c["x"], c["y"]])
        layouts.shape[0, slot] = ("circle", "square", "triangle").index(c["shape"])
        layouts.color[0, slot] = ("red", "green", "blue", "yellow").index(c["color"])
    met = met_requests(wide.render(layouts), canvas, asked, scenes)
    assert met.tolist() == [[True] * 4, [False] * 4]


def test_places_are_local_quotients():
    model = small_model()
    canvas = Canvas(model, (3, 64, 64), 8)
    quotient = place(canvas, model, {"color": "red", "x": 50.0, "y": 20.0}, 2.0)
    x = torch.randn(2, 3, 64, 64)
    crop = x[:, :, 12:28, 42:58]
    expected = 2 * (model.given(color="red", x=8.0, y=8.0).score(crop, 0.5) - model.score(crop, 0.5))
    assert torch.allclose(quotient.score(x, 0.5)[:, :, 12:28, 42:58], expected, atol=1e-4)


def test_a_tapestry_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes_tapestry, "_CHUNK", 2)
    nothing = torch.zeros(2, 4, dtype=torch.bool)  # an untrained network's noise takes the parser long
    monkeypatch.setattr(scenes_tapestry, "met_requests", lambda *given: nothing)
    found = tapestry(tmp_path, quick=True, seed=1, model=small_model(), canvases=2, only=["centre, reverse"])
    assert json.loads((tmp_path / "tapestry.json").read_text()) == json.loads(json.dumps(found))
    (row,) = found["methods"]
    assert row["canvases"] == 2
    assert row["network_rows"] == 49 * row["evaluations"]
    assert 0 < row["across"]["ratio"] < 10
    assert [r["power"] for r in found["local"]] == [0.0, 1.0, 2.0]
    names = {file.name for file in tmp_path.iterdir()}
    assert {"tapestry.json", "tapestry-centre-reverse.png", "tapestry-wide.png", "tapestry-placed-power-2.png"} <= names
