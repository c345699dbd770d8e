"""The laws of composites of descriptions are those of weighted prior scenes; draws follow them.

z-scores are of fixed seeds; limits of 4 for each of a few comparisons are false-positive rates below 1e-3.
"""

import dataclasses
import math

import pytest
import torch

from boltzmix.benchmarks.scenes.law import (
    _room,
    check_places,
    count_law,
    description_weights,
    exact_draws,
)
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts, Scenes

SMALL, LARGE = Scenes.small(), Scenes()
POINTS = dataclasses.replace(SMALL, distance=1e-6)  # objects without cores
AT = {"x": 5.0, "y": 5.5}
FAR = {"x": 11.3, "y": 11.3}  # balls of RADIUS about the two keep the distance
RADIUS = 1.3


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def prior(n=150_000, scenes=SMALL, seed=0):
    return scenes.layouts(n, seeded(seed))


PRIOR = prior()


def disc(n, radius):
    """Points that fill a disc evenly."""
    i = torch.arange(n) + 0.5
    angle = i * math.pi * (3 - 5**0.5)
    return (radius * (i / n).sqrt())[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def counts_of(layouts, weights, most):
    """Weighted frequencies of N = 1 … most and their standard errors."""
    hot = torch.nn.functional.one_hot(layouts.count - 1, most).double()
    share = weights / weights.sum()
    mean = (share[:, None] * hot).sum(0)
    return mean, ((share[:, None] * (hot - mean)).square().sum(0)).sqrt()


def in_balls(scenes, asked, powers, points=100, **options):
    """The law with every place spread over its ball."""
    moved = asked.position.repeat(points, 1, 1)
    for j in range(asked.k):
        if asked.placed[0, j]:  # one place, one order
            order = torch.randperm(points, generator=seeded(int(asked.position[0, j, 0])))
            moved[:, j] += disc(points, RADIUS)[order]
    rows = Requests(moved, asked.shape.repeat(points, 1), asked.color.repeat(points, 1))
    density = count_law(scenes, rows, powers, particles=500, **options).density.mean(0)
    return density / density.sum()


def law_is_that_of_weighted_prior_scenes(conditions, powers, **options):
    asked = Requests.of(*conditions)
    weights = description_weights(PRIOR, asked, powers, radius=RADIUS, **options)
    mean, error = counts_of(PRIOR, weights, SMALL.most)
    exact = in_balls(SMALL, asked, powers, **options)
    z = (mean - exact)[error > 0] / error[error > 0]
    assert z.abs().max() < 4, (mean, exact, z)
    assert ((mean - exact).abs()[error == 0] < 1e-12).all()
    return error


CASES = {
    "a place": ([AT], 1.0),
    "a place, squared": ([AT], 2.0),
    "a place and its kind": ([{"shape": "circle", "color": "red", **AT}], 2.0),
    "two places": ([AT, FAR], 1.0),
    "two places, other powers": ([AT, {"color": "red", **FAR}], (0.5, 2.0)),
    "a colour": ([{"color": "red"}], 2.0),
    "two attributes": ([{"color": "red"}, {"shape": "circle"}], (1.0, 3.0)),
    "a colour beside a red place": ([{"color": "red", **AT}, {"color": "red"}], (1.0, 2.0)),
    "a colour beside a place": ([AT, {"color": "red"}], 1.5),
    "one place twice": ([{"color": "green", **AT}, {"shape": "square", **AT}], 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_law_is_that_of_weighted_prior_scenes(case):
    law_is_that_of_weighted_prior_scenes(*CASES[case])


NEGATIONS = {
    "without red": ((), 1.0, [{"color": "red"}], math.inf),
    "less red": ((), 1.0, [{"color": "red"}], 2.0),
    "a place without red": ([AT], 1.0, [{"color": "red"}], math.inf),
    "no red circles, no squares": ((), 1.0, [{"color": "red", "shape": "circle"}, {"shape": "square"}], 1.5),
}


@pytest.mark.parametrize("case", NEGATIONS)
def test_law_of_negations_is_that_of_weighted_prior_scenes(case):
    conditions, powers, without, strength = NEGATIONS[case]
    law_is_that_of_weighted_prior_scenes(conditions, powers, without=without, strength=strength)


def without_cores_the_law_is_closed_form(k=2, power=1.5):
    places = [{"x": 4.0 + 2 * j, "y": 8.0} for j in range(k)]
    law = count_law(POINTS, Requests.of(*places), power).masses[0]
    n = torch.arange(1.0, POINTS.most + 1, dtype=torch.float64)
    expected = torch.tensor([math.perm(int(m), k) for m in n], dtype=torch.float64) * n ** (-k * power)
    assert torch.allclose(law, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize(("k", "power"), [(1, 1.0), (1, 4.0), (2, 1.5), (3, 1.0)])
def test_without_cores_the_law_is_closed_form(k, power):
    without_cores_the_law_is_closed_form(k, power)


def one_condition_on_an_average_object_keeps_the_prior():
    """E p(N | c) over c ~ p(c) is p(N); the conditions scatter by 1/√n, the Monte Carlo less."""
    asked = Requests.among(prior(400, seed=5), 1, generator=seeded(6))
    law = count_law(SMALL, asked, 1.0, particles=1000)
    mean, error = law.average()
    spread = (law.masses.var(0) / len(asked) + error**2).sqrt()
    assert ((mean - 1 / 3).abs() / spread).max() < 4, mean


def test_one_condition_on_an_average_object_keeps_the_prior():
    one_condition_on_an_average_object_keeps_the_prior()


def no_red_is_a_power_of_the_other_colours():
    law = count_law(LARGE, Requests.of(), without=[{"color": "red"}])
    others = float((LARGE.pairs[:, 1] != COLORS.index("red")).double().mean())
    expected = others ** torch.arange(1.0, 6.0, dtype=torch.float64)
    assert torch.allclose(law.masses[0], expected / expected.sum(), atol=1e-12)
    assert (law.error == 0).all()


def test_no_red_is_a_power_of_the_other_colours():
    no_red_is_a_power_of_the_other_colours()


def room_is_the_share_of_points_that_keep_the_distance():
    """a(n | c) against uniform points tried at once; standard errors of both sides."""
    pins = torch.tensor([[6.0, 7.0]])
    room = _room(SMALL, ((6.0, 7.0),), 2, 2000, 10, 0)[0]
    points = SMALL.margin + (SMALL.size - 2 * SMALL.margin) * torch.rand(200_000, 2, 2, generator=seeded(1))
    both = torch.cat([points, pins.expand(len(points), 1, 2)], 1)
    gap = torch.cdist(both, both) + 100 * torch.eye(3)
    for n, kept in ((1, gap[:, [0, 2]][:, :, [0, 2]]), (2, gap)):
        share = (kept >= SMALL.distance).all(-1).all(-1).double()
        error = (share.var() / len(share) + room[:, n].var() / len(room)).sqrt()
        assert abs(float(room[:, n].mean() - share.mean())) < 4 * float(error)


def test_room_is_the_share_of_points_that_keep_the_distance():
    room_is_the_share_of_points_that_keep_the_distance()


def errors_are_those_of_repeated_runs():
    """The spread of the law over seeds is the standard error that each run states, within a factor of two."""
    asked = Requests.of(AT)
    runs = [count_law(SMALL, asked, particles=100, seed=seed) for seed in range(0, 60, 2)]
    spread = torch.stack([run.masses[0] for run in runs]).std(0)
    stated = torch.stack([run.error[0] for run in runs]).mean(0)
    assert ((spread / stated) < 2).all()
    assert ((spread / stated) > 0.5).all()


def test_errors_are_those_of_repeated_runs():
    errors_are_those_of_repeated_runs()


# ------------------------------------------------------------------------ draws


def draws_have_what_was_asked(n=400):
    conditions = [{"color": "red", **AT}, FAR, {"color": "blue"}]
    asked = Requests.of(*conditions, n=n)
    draws = exact_draws(SMALL, asked, 2.0, without=[{"shape": "square"}], generator=seeded(0))
    assert SMALL.keeps_distance(draws.position, draws.count).all()
    present = draws.shape >= 0
    assert torch.equal(present.sum(1), draws.count)
    assert torch.equal(present, torch.arange(SMALL.most) < draws.count[:, None])
    assert (draws.position[~present] == -1).all()
    assert (draws.color[~present] == -1).all()
    assert not (draws.shape == SHAPES.index("square")).any()
    assert (draws.color == COLORS.index("blue")).any(1).all()
    for j, place in enumerate((AT, FAR)):
        at = (draws.position - torch.tensor([place["x"], place["y"]])).norm(dim=-1) < 1e-4
        assert (at.sum(1) == 1).all()
        assert 0.2 < float(at[:, 0].double().mean()) < 0.6  # in any slot
        if j == 0:
            assert (draws.color[at] == COLORS.index("red")).all()
    held = {(int(s), int(c)) for s, c in zip(draws.shape[present], draws.color[present], strict=True)}
    assert held <= {tuple(pair) for pair in SMALL.pairs.tolist()}


def test_draws_have_what_was_asked():
    draws_have_what_was_asked()


def statistics(layouts):
    """Figures of each scene: N, reds, circles, N², mean x, and the distance of its closest pair (0 for one object)."""
    present = layouts.shape >= 0
    gap = torch.cdist(layouts.position, layouts.position) + 1e3 * torch.eye(layouts.shape.shape[1])
    gap = torch.where(present[:, None] & present[..., None], gap, 1e3).flatten(1).amin(1)
    count = layouts.count.double()
    return torch.stack(
        [
            count,
            count**2,
            (layouts.color == COLORS.index("red")).sum(1).double(),
            (layouts.shape == SHAPES.index("circle")).sum(1).double(),
            (layouts.position[..., 0] * present).sum(1).double() / count,
            torch.where(layouts.count > 1, gap, 0.0).double(),
        ],
        1,
    )


def draws_are_weighted_prior_scenes(conditions, powers, n=4000, **options):
    """Means of figures of scenes over draws (places spread over their balls) and over weighted prior scenes."""
    asked = Requests.of(*conditions)
    weights = description_weights(PRIOR, asked, powers, radius=RADIUS, **options)
    share = weights / weights.sum()
    figures = statistics(PRIOR)
    mean = (share[:, None] * figures).sum(0)
    error = (share[:, None] * (figures - mean)).square().sum(0)
    rows = Requests.of(*conditions, n=n)
    law = None
    if asked.placed.any():  # one ball: the density at its points weighs them
        points = disc(100, RADIUS)
        grid = Requests(asked.position + points[:, None], asked.shape.repeat(100, 1), asked.color.repeat(100, 1))
        known = count_law(SMALL, grid, powers, particles=500, **options)
        pick = torch.multinomial(known.density.sum(1), n, replacement=True, generator=seeded(7))
        rows = grid.rows(pick)
        law = dataclasses.replace(known, masses=known.masses[pick])
    draws = statistics(exact_draws(SMALL, rows, powers, generator=seeded(8), law=law, **options))
    z = (draws.mean(0) - mean) / (error + draws.var(0) / n).sqrt()
    assert z.abs().nan_to_num().max() < 4, z


DRAWN = {
    "the prior": ((), 1.0, {}),
    "a place": ([AT], 2.0, {}),
    "a red place": ([{"color": "red", **AT}], 1.0, {}),
    "two colours": ([{"color": "red"}, {"shape": "circle"}], (2.0, 1.0), {}),
    "less red": ((), 1.0, {"without": [{"color": "red"}], "strength": 2.0}),
    "a place without red": ([AT], 1.0, {"without": [{"color": "red"}]}),
}


@pytest.mark.parametrize("case", DRAWN)
def test_draws_are_weighted_prior_scenes(case):
    conditions, powers, options = DRAWN[case]
    draws_are_weighted_prior_scenes(conditions, powers, **options)


def test_draws_repeat_with_their_seed():
    asked = Requests.of(AT, n=30)
    first, second = (exact_draws(SMALL, asked, generator=seeded(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_draws_of_different_requests_keep_to_their_rows():
    truth = SMALL.layouts(50, seeded(9), count=2)
    asked = Requests.among(truth, 2, ("position", "shape", "color"), seeded(10))
    draws = exact_draws(SMALL, asked, generator=seeded(11))
    for j in range(2):
        at = (draws.position - asked.position[:, j, None]).norm(dim=-1) < 1e-4
        assert (at.sum(1) == 1).all()
        assert torch.equal(draws.color[at], asked.color[:, j])
        assert torch.equal(draws.shape[at], asked.shape[:, j])


# --------------------------------------------------------------------- requests


def test_requests_among_scenes_are_their_objects():
    truth = SMALL.layouts(40, seeded(12), count=3)
    asked = Requests.among(truth, 2, ("position", "color"), seeded(13))
    assert (asked.shape == -1).all()
    gap = (asked.position[:, :, None] - truth.position[:, None]).norm(dim=-1)
    assert (gap.amin(2) == 0).all()
    assert not torch.equal(gap[:, 0].argmin(1), gap[:, 1].argmin(1))
    assert (gap.argmin(2)[:, 0] != gap.argmin(2)[:, 1]).all()
    assert torch.equal(truth.color.gather(1, gap.argmin(2)), asked.color)
    given = asked.given(1)
    assert set(given) == {"x", "y", "color"}
    assert given["color"] == [COLORS[i] for i in asked.color[:, 1].tolist()]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="2.83 px apart"):
        count_law(SMALL, Requests.of({"x": 6.0, "y": 6.0}, {"x": 8.0, "y": 8.0}))
    with pytest.raises(ValueError, match=r"centres lie in \[3, 13\]"):
        check_places(SMALL, torch.tensor([[[1.0, 8.0]]]))
    with pytest.raises(ValueError, match="no mass"):
        count_law(SMALL, Requests.of({"shape": "triangle", "color": "red"}))
    with pytest.raises(ValueError, match="powers are one positive number or 1"):
        count_law(SMALL, Requests.of(AT), -1.0)
    with pytest.raises(ValueError, match="powers are one positive number or 1"):
        count_law(SMALL, Requests.of(AT), (1.0, 2.0))
    with pytest.raises(ValueError, match="attributes only"):
        count_law(SMALL, Requests.of(), without=[AT])
    with pytest.raises(ValueError, match="strength is positive"):
        count_law(SMALL, Requests.of(), without=[{"color": "red"}], strength=0.0)
    with pytest.raises(ValueError, match="different attributes"):
        count_law(SMALL, Requests.of({"color": "red", **AT}, {"color": "blue", **AT}))
    with pytest.raises(ValueError, match="x and y go together"):
        Requests.of({"x": 3.0})
    with pytest.raises(ValueError, match="color is one of"):
        Requests.of({"color": "mauve"})
    with pytest.raises(ValueError, match="names shape, color, x and y"):
        Requests.of({"relation": "left of"})
    with pytest.raises(ValueError, match="scenes of 3 or more"):
        Requests.among(SMALL.layouts(4, seeded(0), count=2), 3)
    first, second = Requests.of({"color": "red", **AT}), Requests.of({"color": "red"})
    mixed = Requests(
        *(torch.cat([getattr(r, name) for r in (first, second)]) for name in ("position", "shape", "color"))
    )
    with pytest.raises(ValueError, match="only some pictures"):
        mixed.given(0)
    with pytest.raises(ValueError, match="only some pictures"):
        count_law(SMALL, mixed)
    with pytest.raises(ValueError, match="long tensor"):
        Requests(torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long))


def test_weights_are_counts_over_n():
    layout = Layouts(
        torch.tensor([3]),
        torch.tensor([[[6.0, 7.0], [12.0, 5.0], [11.0, 11.0]]]),
        torch.tensor([[0, 0, 1]]),
        torch.tensor([[0, 2, 0]]),
    )

    def weight(*conditions, power=1.0, **options):
        return float(description_weights(layout, Requests.of(*conditions), power, **options))

    assert weight({"shape": "circle"}) == pytest.approx(2 / 3)
    assert weight({"shape": "circle"}, power=2.0) == pytest.approx(4 / 9)
    assert weight({"shape": "circle", "color": "red"}) == pytest.approx(1 / 3)
    assert weight({"x": 6.5, "y": 7.0}, radius=0.6) == pytest.approx(1 / 3)
    assert weight({"x": 6.5, "y": 7.0}, radius=0.4) == 0.0
    assert weight({"color": "red"}, {"shape": "circle"}) == pytest.approx(4 / 9)
    assert weight(without=[{"color": "red"}], strength=2.0) == pytest.approx(1 / 9)
    assert weight(without=[{"color": "yellow"}], strength=math.inf) == 1.0
    assert weight(without=[{"color": "blue"}], strength=math.inf) == 0.0
