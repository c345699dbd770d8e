"""Scenes: the law of what they hold, the renderer, and descriptions that tell as much as they say."""

import math

import pytest
import torch

from boltzmix.models.data import Scenes
from boltzmix.models.data.scenes import COLORS, FIELDS, HELD_OUT, NOTHING, SHAPES, Layouts, objects

SCENES = Scenes()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scenes_are_what_their_law_says():
    """Frequencies within 4.5 standard errors (three families of some 20 numbers: 1 false alarm in 2,000 seeds)."""
    n = 20_000
    layouts = SCENES.layouts(n, generator())
    share = torch.bincount(layouts.count, minlength=6)[1:] / n
    assert (share - 0.2).abs().max() < 4.5 * math.sqrt(0.16 / n)
    present = layouts.shape >= 0
    assert torch.equal(present.sum(1), layouts.count)
    pair = (layouts.shape * len(COLORS) + layouts.color)[present]
    seen = torch.bincount(pair, minlength=12) / len(pair)
    held = {SHAPES.index(s) * len(COLORS) + COLORS.index(c) for s, c in HELD_OUT}
    assert all(float(seen[k]) == 0 for k in held)
    others = torch.stack([seen[k] for k in range(12) if k not in held])
    assert (others - 0.1).abs().max() < 4.5 * math.sqrt(0.09 / len(pair))
    assert SCENES.keeps_distance(layouts.position, layouts.count).all()
    place = layouts.position[present]
    assert place.min() >= SCENES.margin
    assert place.max() <= SCENES.size - SCENES.margin
    alone = layouts.position[layouts.count == 1, 0]
    assert (alone.mean(0) - 16).abs().max() < 4.5 * 22 / math.sqrt(12 * len(alone))
    # pairs: all of the square but discs around each other, so they are further apart than independent points
    two = layouts.position[layouts.count == 2]
    assert (two[:, 0] - two[:, 1]).norm(dim=1).min() >= SCENES.distance


def test_the_renderer_covers_what_shapes_cover():
    """Coverage sums to the area of the outline, wherever the centre lies between pixels."""
    place = 16 + torch.rand(200, 2, generator=generator())
    r = SCENES.radius
    areas = (math.pi * r**2, (1.8 * r) ** 2, 3 * math.sqrt(3) / 4 * (1.4 * r) ** 2)
    for shape, area in enumerate(areas):
        covered = SCENES.coverage(place, torch.full((200,), shape)).sum((1, 2))
        assert (covered.mean() / area - 1).abs() < 0.03
    centre = SCENES.coverage(place, torch.zeros(200, dtype=torch.long))
    ticks = torch.arange(32) + 0.5
    x = (centre * ticks).sum((1, 2)) / centre.sum((1, 2))
    y = (centre * ticks[:, None]).sum((1, 2)) / centre.sum((1, 2))
    # the ramp at the outline is not the exact area of each pixel: a fortieth of a pixel, and no drift
    assert (torch.stack([x, y], 1) - place).abs().max() < 0.025
    assert (torch.stack([x, y], 1) - place).mean(0).abs().max() < 0.003


def test_rendered_scenes_are_pictures_and_follow_their_places():
    layouts = SCENES.layouts(64, generator())
    x = SCENES.render(layouts)
    assert x.shape == (64, 3, 32, 32)
    assert x.min() == -1
    assert x.max() <= 1
    ink = (x + 1).flatten(1).sum(1)
    assert (ink > 0).all()
    empty = Layouts(torch.zeros(1, dtype=torch.long), torch.full((1, 5, 2), -1.0), *(2 * [torch.full((1, 5), -1)]))
    assert (SCENES.render(empty) == -1).all()
    place = layouts.position.clone().requires_grad_()
    slope = torch.autograd.grad(SCENES.render(layouts._replace(position=place))[:, 0].sum(), place)[0]
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def test_descriptions_name_one_object_chosen_fairly():
    """A place that is told is that of each object equally often (chi-square, 0.1 %), and nothing depends on N."""
    layouts = SCENES.layouts(40_000, generator(1))
    rows = SCENES.describe(layouts, generator(2))
    assert rows.shape == (40_000, len(FIELDS))
    told = rows[:, 2] >= 0
    gap = (rows[told, None, 2:4] - layouts.position[told]).norm(dim=-1)
    which = gap.argmin(1)
    assert gap.min(1).values.max() == 0
    three = layouts.count[told] == 3
    seen = torch.bincount(which[three], minlength=3).double()
    assert ((seen - seen.mean()).square() / seen.mean()).sum() < 13.8
    every = torch.arange(len(which))
    shape = layouts.shape[told][every, which]
    said = rows[told, 0] >= 0
    assert torch.equal(rows[told, 0][said].long(), shape[said])
    # what is said must not tell N: an empty description is as likely for one object as for five
    empty = (rows == NOTHING).all(1)
    for pattern in (empty, told):
        rates = torch.stack([pattern[layouts.count == n].double().mean() for n in range(1, 6)])
        share = float(pattern.double().mean())
        assert (rates - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / 8000)


def test_relations_are_true():
    layouts = SCENES.layouts(20_000, generator(3))
    rows = SCENES.describe(layouts, generator(4))
    for kind, axis in ((0, 0), (1, 1)):
        related = (rows[:, 4] == kind) & (rows[:, [0, 1, 5, 6]] >= 0).all(1)
        assert related.sum() > 100
        place, shape, color = (column[related] for column in layouts[1:])
        first = (shape == rows[related, 0, None]) & (color == rows[related, 1, None])
        second = (shape == rows[related, 5, None]) & (color == rows[related, 6, None])
        before = place[:, :, None, axis] <= place[:, None, :, axis]
        holds = (first[:, :, None] & second[:, None] & before & ~torch.eye(5, dtype=torch.bool)).any((1, 2))
        assert holds.all()
    alone = rows[:, 4] == 2
    assert (layouts.count[alone] == 1).all()
    assert (rows[alone][:, [0, 1, 2, 3, 5, 6]] == NOTHING).all()
    assert alone.sum() > 500


def test_an_inventory_holds_everything_in_random_order():
    layouts = SCENES.layouts(500, generator(5))
    rows = SCENES.inventory(layouts, generator(6)).reshape(500, 5, 4)
    assert torch.equal((rows[..., 0] >= 0).sum(1), layouts.count)
    for column, values in ((0, layouts.shape), (1, layouts.color), (2, layouts.position[..., 0])):
        assert torch.equal(rows[..., column].sort(1).values, values.float().sort(1).values)
    five = layouts.count == 5
    moved = (rows[five, 0, 2] != layouts.position[five, 0, 0]).double().mean()
    assert 0.6 < moved < 0.97
    first = next(objects(layouts))
    assert len(first) == layouts.count[0]
    assert set(first[0]) == {"shape", "color", "x", "y"}


def test_streams_repeat_with_their_seed():
    for stream in (SCENES.stream, SCENES.full_stream):
        (x, rows), (again, same) = stream(8, generator(7)), stream(8, generator(7))
        assert torch.equal(x, again)
        assert torch.equal(rows, same)
        assert not torch.equal(x, stream(8, generator(8))[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "positive int"),
        ({"most": True}, "positive int"),
        ({"radius": -1.0}, "positive number"),
        ({"distance": math.nan}, "positive number"),
        ({"margin": 16.0}, "no room"),
        ({"most": 30}, "no room"),
        ({"held_out": (("cube", "red"),)}, "held_out"),
    ],
)
def test_impossible_scenes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**wrong)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="1 to 5"):
        SCENES.layouts(3, count=6)
