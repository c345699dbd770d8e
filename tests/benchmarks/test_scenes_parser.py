"""The parser undoes the renderer, is as precise as the noise allows, and says what it does not believe."""

import dataclasses

import pytest
import torch

from boltzmix.benchmarks.scenes.fitting import Brush, fit_all, ink, paint
from boltzmix.benchmarks.scenes.judges import pair_objects
from boltzmix.benchmarks.scenes.parser import EXTRA, parse, parser_accuracy, tolerance
from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts, Scenes

SMALL, LARGE = Scenes.small(), Scenes()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def every_pair(scenes):
    return dataclasses.replace(scenes, held_out=())


def scene(*objects):
    """One layout of (shape, color, x, y)."""
    position = torch.tensor([[(x, y) for _, _, x, y in objects]])
    shape = torch.tensor([[SHAPES.index(s) for s, _, _, _ in objects]])
    color = torch.tensor([[COLORS.index(c) for _, c, _, _ in objects]])
    return Layouts(torch.tensor([len(objects)]), position, shape, color)


def rendered_scenes_are_recovered(scenes, n, seed=0):
    truth = every_pair(scenes).layouts(n, seeded(seed))
    found = parse(scenes.render(truth), scenes)
    assert torch.equal(found.count, truth.count)
    assert found.clean.all()
    assert found.rms.max() < 2e-3
    pairs = pair_objects(truth, found, radius=0.05)
    assert len(pairs.row) == int(truth.count.sum())
    for name in ("shape", "color"):
        own, other = getattr(truth, name), getattr(found, name)
        assert torch.equal(own[pairs.row, pairs.first], other[pairs.row, pairs.second])


@pytest.mark.parametrize(("scenes", "n"), [(SMALL, 120), (LARGE, 50)], ids=["16", "32"])
def test_rendered_scenes_are_recovered(scenes, n):
    rendered_scenes_are_recovered(scenes, n)


def precision_is_the_bound_of_cramer_and_rao(n=250, noise=0.08):
    """Least squares reach the information bound: the mean of squared errors over their bounds is 1.

    With some 1,000 coordinates it has a standard error of 0.045 or so; four of these is a false-positive rate of 1e-4.
    """
    truth = SMALL.layouts(n, seeded(1))
    images = SMALL.render(truth)
    found = parse(images + noise * torch.randn(images.shape, generator=seeded(2)), SMALL, rms=1.0)
    pairs = pair_objects(truth, found)
    place, kind = truth.position[pairs.row, pairs.first], truth.shape[pairs.row, pairs.first]
    strength = ink(images)[truth.color[pairs.row, pairs.first]].square().sum(1)
    brush = Brush(SMALL)
    _, slopes = brush.slopes(place - brush.origin(place), kind)
    information = strength[:, None, None] * torch.einsum("mdij,meij->mde", slopes, slopes) / noise**2
    error = found.position[pairs.row, pairs.second] - place
    # errors in units of the bound: 2 for each object
    ratio = torch.einsum("md,mde,me->m", error, information, error) / 2
    assert len(ratio) == int(truth.count.sum())
    assert abs(float(ratio.mean()) - 1) < 0.18, float(ratio.mean())


def test_precision_is_the_bound_of_cramer_and_rao():
    precision_is_the_bound_of_cramer_and_rao()


def noise_leaves_kinds_alone():
    truth = every_pair(SMALL).layouts(150, seeded(3))
    images = SMALL.render(truth)
    found = parse(images + 0.2 * torch.randn(images.shape, generator=seeded(4)), SMALL)
    assert torch.equal(found.count, truth.count)
    pairs = pair_objects(truth, found)
    shape = truth.shape[pairs.row, pairs.first] == found.shape[pairs.row, pairs.second]
    color = truth.color[pairs.row, pairs.first] == found.color[pairs.row, pairs.second]
    assert color.all()
    assert shape.double().mean() > 0.99
    assert not found.explained.any()  # noise of 0.2 is not noise of a good model


def test_noise_leaves_kinds_alone():
    noise_leaves_kinds_alone()


def flags_say_what_is_wrong():
    pictures = [
        LARGE.render(scene(("circle", "red", 8.0, 8.0), ("square", "blue", 13.6, 8.0))),  # too close, do not touch
        LARGE.render(scene(("circle", "green", 3.5, 20.0))),  # beyond the margin
        LARGE.render(scene(("triangle", "yellow", 10.0, 20.0))),
        0.55 * (LARGE.render(scene(("circle", "yellow", 16.0, 16.0))) + 1) - 1,  # a ghost of an object
        torch.full((1, 3, 32, 32), -1.0),
    ]
    found = parse(torch.cat(pictures), LARGE)
    assert found.count.tolist() == [2, 1, 1, 0, 0]
    assert found.apart.tolist() == [False, True, True, True, True]
    assert found.inside.tolist() == [True, False, True, True, True]
    assert found.explained.tolist() == [True, True, True, False, True]
    assert found.clean.tolist() == [False, False, True, False, True]


def test_flags_say_what_is_wrong():
    flags_say_what_is_wrong()


def more_objects_than_the_prior_has_are_found():
    objects = [(SHAPES[i % 3], COLORS[i % 4], 6.0 + 9.5 * (i % 3), 6.0 + 9.5 * (i // 3)) for i in range(9)]
    for count in (6, 9):
        found = parse(LARGE.render(scene(*objects[:count])), LARGE)
        assert found.count.item() == min(count, LARGE.most + EXTRA)
        assert found.explained.item() == (count <= LARGE.most + EXTRA)


def test_more_objects_than_the_prior_has_are_found():
    more_objects_than_the_prior_has_are_found()


def touching_objects_are_told_apart():
    truth = scene(("circle", "red", 9.3, 9.8), ("circle", "red", 13.1, 11.2), ("square", "blue", 20.0, 20.4))
    found = parse(LARGE.render(truth), LARGE)
    assert found.count.item() == 3
    assert len(pair_objects(truth, found, radius=0.05).row) == 3
    assert not found.apart.item()


def test_touching_objects_are_told_apart():
    touching_objects_are_told_apart()


def test_noise_is_not_a_scene():
    grey = torch.randn(20, 3, 16, 16, generator=seeded(5)).clamp(-1, 1)
    flat = torch.zeros(1, 3, 16, 16)
    assert not parse(torch.cat([grey, flat]), SMALL).clean.any()


def pictures_that_are_not_finite_are_not_parsed():
    images = SMALL.render(SMALL.layouts(4, seeded(6)))
    images[1, 0, 3, 3] = torch.nan
    images[3] = torch.inf
    found, alone = parse(images, SMALL), parse(images[[0, 2]], SMALL)
    assert found.finite.tolist() == [True, False, True, False]
    assert found.count[[1, 3]].tolist() == [-1, -1]
    assert found.rms[[1, 3]].isnan().all()
    assert not found.clean[[1, 3]].any()
    assert (found.shape[[1, 3]] == -1).all()
    for field in dataclasses.fields(found):
        assert torch.equal(getattr(found, field.name)[[0, 2]], getattr(alone, field.name))


def test_pictures_that_are_not_finite_are_not_parsed():
    pictures_that_are_not_finite_are_not_parsed()


def test_no_pictures_at_all():
    found = parse(torch.empty(0, 3, 16, 16), SMALL)
    assert found.count.shape == (0,)
    assert found.clean.shape == (0,)
    assert parse(torch.full((2, 3, 16, 16), torch.nan), SMALL).count.tolist() == [-1, -1]


def windows_are_the_renderer(scenes=SMALL):
    truth = scenes.layouts(20, seeded(7))
    row, slot = (truth.shape >= 0).nonzero(as_tuple=True)
    painted = paint(Brush(scenes), truth.position[row, slot], truth.shape[row, slot], truth.color[row, slot], row, 20)
    assert torch.allclose(painted - 1, scenes.render(truth), atol=2e-6)


@pytest.mark.parametrize("scenes", [SMALL, LARGE], ids=["16", "32"])
def test_windows_are_the_renderer(scenes):
    windows_are_the_renderer(scenes)


def joint_fit_finds_the_minimum():
    """Two objects that overlap: from half a pixel away, both centres return."""
    truth = scene(("circle", "red", 6.2, 7.9), ("square", "yellow", 9.7, 8.4))
    above = SMALL.render(truth) + 1
    start = truth.position + torch.tensor([[0.4, -0.3], [-0.3, 0.45]])
    found = fit_all(Brush(SMALL), above, start, truth.shape, truth.color, steps=8)
    assert (found - truth.position).abs().max() < 5e-3


def test_joint_fit_finds_the_minimum():
    joint_fit_finds_the_minimum()


def test_tolerance_is_noise_and_a_share_of_the_faintest_object():
    green = SMALL.render(scene(("triangle", "green", 8.5, 8.5))) + 1  # what is darkest and smallest
    expected = (0.02**2 + 0.1 * float(green.square().sum()) / (3 * 16**2)) ** 0.5
    assert tolerance(SMALL, noise=0.02, share=0.1) == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_what_it_says():
    clean, noisy = parser_accuracy(SMALL, 60, noises=(0.0, 0.6), seed=1)
    assert clean["count"] == clean["exact"] == clean["shape"] == clean["color"] == clean["clean"] == 1.0
    assert clean["missed"] == clean["spurious"] == 0.0
    assert clean["position_rms"] < 1e-3
    assert noisy["shape"] < 1.0
    assert noisy["position_rms"] > 0.05
    assert noisy["rms"] == pytest.approx(0.6, rel=0.02)


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"\(n, 3, 16, 16\), got \(2, 3, 32, 32\)"):
        parse(torch.zeros(2, 3, 32, 32), SMALL)
    with pytest.raises(TypeError, match="int64"):
        parse(torch.zeros(2, 3, 16, 16, dtype=torch.long), SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("scenes", [SMALL, LARGE], ids=["16", "32"])
def test_five_thousand_scenes(scenes):
    for row in parser_accuracy(scenes, 5000, noises=(0.0, 0.1)):
        assert row["exact"] > 0.999
