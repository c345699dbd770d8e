"""Judges count what they say, exact draws pass them, and floors are those of exact draws."""

import dataclasses
import math

import pytest
import torch

from boltzmix.benchmarks.scenes.judges import (
    attribute_counts,
    attribute_distances,
    count_distance,
    diversity,
    entropy,
    forbidden_share,
    image_error,
    match,
    pair_objects,
    share,
)
from boltzmix.benchmarks.scenes.law import count_law, exact_draws
from boltzmix.benchmarks.scenes.parser import EXTRA, Parsed, parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts, Scenes

SMALL, LARGE = Scenes.small(), Scenes()
MOST = LARGE.most


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def parsed(*pictures, clean=True):
    """What a parser would say of pictures given as lists of (shape, color, x, y)."""
    n, slots = len(pictures), MOST + EXTRA
    position, shape, color = torch.full((n, slots, 2), -1.0), torch.full((n, slots), -1), torch.full((n, slots), -1)
    for i, objects in enumerate(pictures):
        for j, (s, c, x, y) in enumerate(objects):
            position[i, j] = torch.tensor([x, y])
            shape[i, j], color[i, j] = SHAPES.index(s), COLORS.index(c)
    count = (shape >= 0).sum(1)
    yes, zero = torch.full((n,), clean), torch.zeros(n)
    return Parsed(count, position, shape, color, zero, zero, torch.ones(n, dtype=torch.bool), yes, yes, yes)


def as_parsed(layouts):
    """Exact layouts as the parser would say them."""
    n, extra = len(layouts.count), MOST + EXTRA - layouts.shape.shape[1]

    def wide(t):
        return torch.nn.functional.pad(t, (0, extra), value=-1)

    position = torch.nn.functional.pad(layouts.position, (0, 0, 0, extra), value=-1.0)
    yes, zero = torch.ones(n, dtype=torch.bool), torch.zeros(n)
    return Parsed(layouts.count, position, wide(layouts.shape), wide(layouts.color), zero, zero, yes, yes, yes, yes)


# --------------------------------------------------------------------------- hits


def requests_are_met_one_to_one():
    red, blue = ("circle", "red", 8.0, 8.0), ("square", "blue", 20.0, 8.0)
    near = {"x": 9.0, "y": 8.0}
    twice = Requests.of(near, {"x": 8.0, "y": 9.0})
    assert match(parsed([red, blue]), twice).met.tolist() in ([[True, False]], [[False, True]])
    assert match(parsed([red, ("square", "red", 9.5, 9.5)]), twice).met.all()
    # the closest pairs first would leave the second request without an object
    crossed = parsed([("circle", "red", 8.0, 8.0), ("circle", "red", 11.0, 8.0)])
    found = match(crossed, Requests.of({"x": 9.4, "y": 8.0}, {"x": 12.9, "y": 8.0}))
    assert found.met.all()
    found = match(crossed, Requests.of({"x": 9.6, "y": 8.0}, {"x": 12.5, "y": 8.0}))
    assert found.met.all()
    assert found.found.tolist() == [[0, 1]]
    assert found.distance.tolist() == [pytest.approx([1.6, 1.5], abs=1e-5)]


def test_requests_are_met_one_to_one():
    requests_are_met_one_to_one()


def wanted_attributes_count():
    picture = parsed([("circle", "red", 8.0, 8.0), ("square", "blue", 20.0, 8.0)])
    cases = [
        ({"x": 9.9, "y": 8.0}, True),
        ({"x": 10.1, "y": 8.0}, False),
        ({"x": 8.0, "y": 8.0, "color": "red"}, True),
        ({"x": 8.0, "y": 8.0, "color": "blue"}, False),
        ({"x": 20.0, "y": 8.0, "shape": "square", "color": "blue"}, True),
        ({"x": 20.0, "y": 8.0, "shape": "circle", "color": "blue"}, False),
        ({"color": "blue"}, True),
        ({"shape": "circle", "color": "blue"}, False),
        ({"color": "green"}, False),
    ]
    for condition, expected in cases:
        assert match(picture, Requests.of(condition)).right.item() is expected, condition


def test_wanted_attributes_count():
    wanted_attributes_count()


def unclean_pictures_are_wrong():
    asked = Requests.of({"color": "red"}, n=2)
    objects = [("circle", "red", 8.0, 8.0)]
    assert match(parsed(objects, objects), asked).accuracy().rate == 1.0
    assert match(parsed(objects, objects, clean=False), asked).accuracy().rate == 0.0
    assert match(parsed(objects, []), asked).accuracy().rate == 0.5


def test_unclean_pictures_are_wrong():
    unclean_pictures_are_wrong()


def test_exact_draws_are_right_end_to_end():
    truth = SMALL.layouts(30, seeded(0), count=2)
    asked = Requests.among(truth, 2, ("position", "shape", "color"), seeded(1))
    draws = exact_draws(SMALL, asked, generator=seeded(2))
    noisy = SMALL.render(draws)
    found = parse(noisy + 0.03 * torch.randn(noisy.shape, generator=seeded(3)), SMALL)
    matches = match(found, asked)
    assert matches.accuracy().rate == 1.0
    assert torch.equal(found.count, draws.count)
    assert matches.distance.max() < 0.1
    assert image_error(found)["mean"] == pytest.approx(0.03, rel=0.05)
    moved = Requests(asked.position.roll(1, 0), asked.shape, asked.color)
    assert match(found, moved).accuracy().rate < 0.1


def wilson_interval_solves_its_equation(n=50, z=1.959964):
    """The ends p of the interval satisfy |rate − p| = z √(p (1 − p) / n)."""
    for hits in (0, 3, 25, 49):
        found = share(torch.arange(n) < hits)
        assert found.rate == hits / n
        for end in (found.low, found.high):
            gap = abs(found.rate - end)
            assert gap == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-6) or end in (0.0, 1.0)
        assert found.low <= found.rate <= found.high


def test_wilson_interval_solves_its_equation():
    wilson_interval_solves_its_equation()


def forbidden_share_counts_pictures():
    red, blue = ("circle", "red", 8.0, 8.0), ("square", "blue", 20.0, 8.0)
    found = parsed([red, ("square", "red", 20.0, 8.0)], [blue], [], [blue, red])
    assert forbidden_share(found, color="red").rate == 0.5
    assert forbidden_share(found, color="red", shape="square").rate == 0.25
    broken = dataclasses.replace(found, finite=torch.tensor([True, False, True, True]))
    assert forbidden_share(broken, color="red").rate == 0.75
    with pytest.raises(ValueError, match="say which"):
        forbidden_share(found)


def test_forbidden_share_counts_pictures():
    forbidden_share_counts_pictures()


def test_objects_are_paired_by_place():
    truth = SMALL.layouts(30, seeded(4))
    order = torch.stack([torch.randperm(3, generator=seeded(i)) for i in range(30)])
    shuffled = Layouts(
        truth.count,
        truth.position.gather(1, order[..., None].expand(-1, -1, 2)),
        truth.shape.gather(1, order),
        truth.color.gather(1, order),
    )
    pairs = pair_objects(truth, shuffled, radius=0.1)
    assert len(pairs.row) == int(truth.count.sum())
    assert torch.equal(order[pairs.row, pairs.second], pairs.first)


# ---------------------------------------------------------------------- diversity


def test_entropy_of_even_counts_is_the_logarithm():
    assert entropy(torch.full((4,), 100_000)) == pytest.approx(math.log(4), abs=1e-5)
    assert entropy(torch.tensor([7, 0, 0])) == 0.0
    with pytest.raises(ValueError, match="no counts"):
        entropy(torch.zeros(3))


def entropy_correction_removes_most_of_the_bias(n=40, kinds=4):
    law = torch.full((kinds,), 1 / kinds)
    drawn = torch.stack(
        [torch.bincount(torch.multinomial(law, n, True, generator=seeded(i)), minlength=kinds) for i in range(300)]
    )
    found = torch.tensor([entropy(counts) for counts in drawn])
    assert abs(float(found.mean()) - math.log(kinds)) < 4 * float(found.std()) / 300**0.5


def test_entropy_correction_removes_most_of_the_bias():
    entropy_correction_removes_most_of_the_bias()


def diversity_leaves_out_what_was_requested():
    red, free = ("circle", "red", 8.0, 8.0), [("square", c, 20.0, 20.0) for c in COLORS]
    pictures = [[red, other] for other in free]
    found = parsed(*pictures)
    images = torch.randn(4, 3, 32, 32, generator=seeded(5))
    asked = Requests.of({"x": 8.0, "y": 8.0, "color": "red"}, n=4)
    figures = diversity(images, found, asked, match(found, asked))
    assert figures["color"] == pytest.approx(math.log(4) + 3 / 8)  # the four others; the red ones are as asked
    assert figures["shape"] == pytest.approx(math.log(2) + 1 / 16)  # shapes were free everywhere
    assert figures["count"] == 0.0
    distances = [float((images[i] - images[j]).square().mean()) for i in range(4) for j in range(i)]
    assert figures["distance"] == pytest.approx((sum(distances) / 6) ** 0.5, rel=1e-5)


def test_diversity_leaves_out_what_was_requested():
    diversity_leaves_out_what_was_requested()


# ------------------------------------------------------------------ distributions


def floor_is_that_of_exact_draws():
    """Draws of a law lie from it as far as the simulated floor says, and are corrected to two fifths of it."""
    law = torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05], dtype=torch.float64)
    draws = [torch.multinomial(law, 200, True, generator=seeded(i)) + 1 for i in range(150)]
    found = [count_distance(count, law, MOST) for count in draws]
    tv = torch.tensor([d.tv for d in found])
    assert abs(float(tv.mean()) - found[0].floor) < 4 * float(tv.std()) / 150**0.5
    assert 0.01 < float((tv > found[0].high).double().mean()) < 0.11  # about 5 %
    corrected = torch.tensor([d.corrected for d in found])
    assert float(corrected.mean()) < 0.6 * found[0].floor


def test_floor_is_that_of_exact_draws():
    floor_is_that_of_exact_draws()


def corrected_distance_is_nearer_the_truth():
    """Of samples of another law the corrected figure is nearer its distance than the counted one."""
    law = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2], dtype=torch.float64)
    other = torch.tensor([0.26, 0.2, 0.2, 0.2, 0.14], dtype=torch.float64)
    found = [
        count_distance(torch.multinomial(other, 300, True, generator=seeded(i)) + 1, law, MOST) for i in range(150)
    ]
    tv = sum(d.tv for d in found) / 150
    corrected = sum(d.corrected for d in found) / 150
    assert tv > 0.065  # the truth is 0.06
    assert abs(corrected - 0.06) < 0.7 * (tv - 0.06)
    error = torch.tensor([d.tv for d in found]).std()
    assert found[0].error == pytest.approx(float(error), rel=0.5)
    far = count_distance(torch.full((1000,), 5), law, MOST)
    assert far.tv == pytest.approx(0.8)
    assert far.corrected == pytest.approx(0.8, abs=1e-3)


def test_corrected_distance_is_nearer_the_truth():
    corrected_distance_is_nearer_the_truth()


def each_picture_has_its_own_law():
    """Half of the pictures show one object, half five, as they should: less scatter than one law for all has."""
    laws = torch.zeros(400, MOST, dtype=torch.float64)
    laws[:200, 0] = laws[200:, 4] = 1.0
    count = torch.cat([torch.full((200,), 1), torch.full((200,), 5)])
    found = count_distance(count, laws, MOST)
    assert found.tv == found.floor == found.corrected == 0.0
    assert found.mean == found.exact_mean == 3.0
    assert count_distance(count, laws.mean(0), MOST).floor > 0.01


def test_each_picture_has_its_own_law():
    each_picture_has_its_own_law()


def impossible_counts_are_categories():
    law = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = count_distance(torch.tensor([3, 3, 0, -1, 7, 8, 3, 3, 3, 3]), law, MOST)
    assert found.tv == pytest.approx(0.4)
    assert found.mean == pytest.approx((18 + 0 + 7 + 8) / 9)
    assert found.masses.tolist() == pytest.approx([0.1, 0.1, 0, 0, 0.6, 0, 0, 0, 0.1, 0.1])


def test_impossible_counts_are_categories():
    impossible_counts_are_categories()


def exact_draws_pass_and_others_do_not():
    """NOT red: exact draws are within the 95 % band; the prior, and its scenes less their red objects, are not."""
    law = {"without": [{"color": "red"}]}
    exact = exact_draws(LARGE, Requests.of(n=20_000), generator=seeded(6), **law)
    draws = exact_draws(LARGE, Requests.of(n=1000), generator=seeded(7), **law)
    found = attribute_distances(as_parsed(draws), exact, LARGE)
    assert set(found) == {"count", "shape", "color", "pair", "cell"}
    for name, distance in found.items():
        assert distance.tv < 1.3 * distance.high, name
        assert distance.excess < 0.03, name
    prior = attribute_distances(as_parsed(LARGE.layouts(1000, seeded(8))), exact, LARGE)
    for name in ("count", "color", "pair"):
        assert prior[name].tv > 3 * prior[name].high, name
        assert prior[name].corrected == pytest.approx(prior[name].tv, rel=0.1)
    fewer = dataclasses.replace(LARGE, held_out=())
    assert attribute_distances(as_parsed(fewer.layouts(1000, seeded(9))), exact, LARGE)["pair"].excess > 0.1


def test_exact_draws_pass_and_others_do_not():
    exact_draws_pass_and_others_do_not()


def test_attributes_are_counted_by_scene():
    found = attribute_counts(parsed([("circle", "red", 5.5, 5.5), ("square", "red", 26.0, 15.0)], []), LARGE, cells=2)
    assert found["shape"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert found["color"].tolist() == [[2, 0, 0, 0], [0, 0, 0, 0]]
    assert found["pair"][0].nonzero()[:, 0].tolist() == [0, 4]
    assert found["cell"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert found["count"].argmax(1).tolist() == [3, 1]


def test_count_law_goes_in_whole():
    law = count_law(LARGE, Requests.of({"color": "red"}))
    assert count_distance(torch.tensor([1, 2, 3, 4, 5]), law, MOST).tv == pytest.approx(0, abs=1e-12)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="1 pictures and requests for 2"):
        match(parsed([]), Requests.of({"color": "red"}, n=2))
    with pytest.raises(ValueError, match="one or more bools"):
        share(torch.ones(3))
    with pytest.raises(ValueError, match="counts are −1 to 8"):
        count_distance(torch.tensor([9]), torch.ones(5) / 5, MOST)
    with pytest.raises(ValueError, match=r"masses of N are \(5,\)"):
        count_distance(torch.tensor([1, 2]), torch.ones(4) / 4, MOST)
    with pytest.raises(ValueError, match="no object in any picture"):
        attribute_distances(parsed([]), LARGE.layouts(5, seeded(0)), LARGE)
    with pytest.raises(ValueError, match="no picture is finite"):
        image_error(parse(torch.full((1, 3, 32, 32), torch.nan), LARGE))
