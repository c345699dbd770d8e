"""Signed distances: against brute force, in time, and what is refused."""

import math

import matplotlib
import numpy as np
import pytest
import torch

from boltzmix.planners import Box, Disc, DistanceField, Moving, Obstacle, Polygon, Union
from boltzmix.planners.obstacles import as_obstacles, parse

matplotlib.use("Agg")

STAR = Polygon(((0.0, 0.0), (2.0, -0.5), (1.0, 0.6), (1.5, 2.0), (0.2, 1.0), (-1.0, 1.5)))
SHAPES = {
    "disc": Disc(0.3, -0.2, 0.7),
    "box": Box(-0.5, -1.0, 0.8, 0.3),
    "triangle": Polygon(((0, 0), (1, 0.2), (0.3, 1.1))),
    "triangle, clockwise": Polygon(((0.3, 1.1), (1, 0.2), (0, 0))),
    "star": STAR,
}


def points(n, seed=0, scale=1.5):
    return scale * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outline(shape):
    """Many points of the outline, made without the distance, and whether points are inside, by angle or by halves."""
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)[:-1]
    if isinstance(shape, Disc):
        turn = 2 * math.pi * t
        return torch.stack([shape.x + shape.radius * turn.cos(), shape.y + shape.radius * turn.sin()], 1)
    if isinstance(shape, Box):
        corners = [(shape.x_low, shape.y_low), (shape.x_high, shape.y_low), (shape.x_high, shape.y_high)]
        corners.append((shape.x_low, shape.y_high))
    else:
        corners = shape.vertices
    a = torch.tensor(corners, dtype=torch.float64)
    return torch.cat([torch.lerp(p, q, t[:, None]) for p, q in zip(a, a.roll(-1, 0), strict=True)])


def winds(shape, p):
    """Whether the outline turns around each point: the sum of its angles is ±2π inside and 0 outside."""
    ring = outline(shape)
    angle = torch.atan2(ring[:, 1] - p[:, None, 1], ring[:, 0] - p[:, None, 0])
    step = angle.roll(-1, 1) - angle
    return (torch.remainder(step + math.pi, 2 * math.pi) - math.pi).sum(1).abs() > math.pi


@pytest.mark.parametrize("name", SHAPES)
def test_distances_are_those_to_the_outline_with_the_sign_of_its_winding(name):
    shape, p = SHAPES[name], points(40)
    brute = torch.cdist(p, outline(shape)).amin(1)
    signed = torch.where(winds(shape, p), -brute, brute)
    torch.testing.assert_close(shape.distance(p), signed, atol=4e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_is_a_unit_normal(name):
    p = points(200, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(SHAPES[name].distance(p).sum(), p)
    torch.testing.assert_close(torch.linalg.vector_norm(gradient, dim=1), torch.ones(200).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_at_centres_corners_and_edges_are_finite(name):
    shape = SHAPES[name]
    x_low, y_low, x_high, y_high = shape.extent
    at = [((x_low + x_high) / 2, (y_low + y_high) / 2), (x_low, y_low), (x_low, (y_low + y_high) / 2)]
    p = torch.tensor([*at, *getattr(shape, "vertices", ())], requires_grad=True)
    (gradient,) = torch.autograd.grad(shape.distance(p).sum(), p)
    assert bool(torch.isfinite(gradient).all())
    assert float(torch.linalg.vector_norm(gradient, dim=1).max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_an_inflated_obstacle_is_nearer_by_its_radius(name):
    p = points(50, seed=2)
    grown = SHAPES[name].inflated(0.25)
    torch.testing.assert_close(grown.distance(p), SHAPES[name].distance(p) - 0.25)
    torch.testing.assert_close(grown.inflated(0.5).distance(p), SHAPES[name].distance(p) - 0.75)
    assert SHAPES[name].inflated(0.0) is SHAPES[name]
    x_low, _, x_high, _ = grown.extent
    assert (x_low, x_high) == pytest.approx((SHAPES[name].extent[0] - 0.25, SHAPES[name].extent[2] + 0.25))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_those_of_the_points(name, dtype):
    d = SHAPES[name].distance(points(24).to(dtype).reshape(2, 3, 4, 2))
    assert (d.shape, d.dtype) == ((2, 3, 4), dtype)


def test_a_union_is_the_nearest_of_its_members():
    p = points(40)
    both = Union([SHAPES["disc"], SHAPES["star"]])
    nearest = torch.minimum(SHAPES["disc"].distance(p), SHAPES["star"].distance(p))
    assert torch.equal(both.distance(p), nearest)
    assert both.extent == pytest.approx((-1.0, -0.9, 2.0, 2.0))


# ----------------------------------------------------------------- fields


def field_of(shape, cell=0.05, half=2.0):
    axis = torch.arange(-half, half + cell / 2, cell, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return DistanceField(shape.distance(grid), (-half, -half), cell)


def test_a_field_is_the_disc_that_it_was_made_of():
    """Bilinear interpolation of |p − c| − r is off by at most cell² / (4 |p − c|) where that is not small."""
    disc, p = SHAPES["disc"], points(400, scale=0.8)
    away = disc.distance(p) + disc.radius
    p, away = p[away > 0.3], away[away > 0.3]
    p, away = p[p.abs().amax(1) < 2], away[p.abs().amax(1) < 2]
    error = (field_of(disc).distance(p) - disc.distance(p)).abs()
    assert bool((error <= 0.05**2 / (4 * (away - 0.08))).all())


def test_a_field_has_its_values_at_its_grid_points_and_means_between_them():
    values = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.2, 0.1]], dtype=torch.float64)
    field = DistanceField(values, (1.0, 2.0), 0.5)
    at = torch.tensor([[1.0, 2.0], [1.5, 2.0], [1.0, 3.0], [1.25, 2.5], [1.5, 2.25]], dtype=torch.float64)
    assert field.distance(at).tolist() == pytest.approx([0.0, 0.3, 0.2, 0.15, 0.25])


def test_outside_its_grid_a_field_is_a_lower_bound():
    disc = SHAPES["disc"]
    far = torch.tensor([[3.0, 0.0], [-4.0, 5.0], [0.0, -2.5]], dtype=torch.float64)
    field = field_of(disc).distance(far)
    assert bool((field <= disc.distance(far) + 1e-3).all())
    assert bool((field > 0).all())


# ----------------------------------------------------------------- motion


def test_an_obstacle_at_constant_velocity_stands_where_its_time_says():
    ball = Moving(Disc(1.0, 0.0, 0.5), velocity=(0.0, 2.0))
    p, time = points(30), torch.linspace(-1, 3, 30, dtype=torch.float64)
    expected = torch.stack([Disc(1.0, 2.0 * float(t), 0.5).distance(q[None])[0] for q, t in zip(p, time, strict=True)])
    torch.testing.assert_close(ball.distance(p, time), expected)
    torch.testing.assert_close(ball.distance(p, 1.5), Disc(1.0, 3.0, 0.5).distance(p))


def test_waypoints_are_joined_by_straight_ways_and_held_at_the_ends():
    cart = Moving(Box(0, 0, 1, 1), waypoints=[(1.0, 0.0, 0.0), (2.0, 4.0, 0.0), (4.0, 4.0, 2.0)])
    for time, x, y in [(0.0, 0, 0), (1.0, 0, 0), (1.25, 1, 0), (2.0, 4, 0), (3.0, 4, 1), (9.0, 4, 2)]:
        p = points(5)
        torch.testing.assert_close(cart.distance(p, time), Box(x, y, x + 1, y + 1).distance(p))


@pytest.mark.parametrize(
    "moving",
    [
        Moving(Disc(0, 0, 0.5), velocity=(1.0, -0.5)),
        Moving(STAR, waypoints=[(0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (2.0, 0.0, 3.0)]),
        Moving(Disc(0, 0, 0.5), velocity=(1.0, -0.5)).inflated(0.2),
        Union([Moving(Disc(0, 0, 0.5), velocity=(1.0, -0.5)), Disc(0, 0, 0.1)]),
    ],
    ids=["velocity", "waypoints", "inflated", "union"],
)
def test_a_later_clock_sees_a_later_obstacle(moving):
    p = points(20)
    torch.testing.assert_close(moving.later(0.75).distance(p, 0.5), moving.distance(p, 1.25))
    torch.testing.assert_close(moving.later(0.5).later(0.25).distance(p, 0.5), moving.distance(p, 1.25))
    with pytest.raises(ValueError, match="time="):
        moving.distance(p)


def test_obstacles_that_stand_still_have_no_clock():
    assert SHAPES["box"].later(3.0) is SHAPES["box"]


# ----------------------------------------------------------------- texts and pictures


def test_obstacles_are_read_from_texts():
    assert parse("disc:1,-2.5,.5") == Disc(1, -2.5, 0.5)
    assert parse(" BOX:0, 0, 1, 2e0 ") == Box(0, 0, 1, 2)
    assert parse("polygon:0,0;1,0;0,1") == Polygon(((0, 0), (1, 0), (0, 1)))
    assert parse("disc:0,0,1@1,-1").velocity == (1.0, -1.0)
    assert as_obstacles("disc:1,2,3") == (Disc(1, 2, 3),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disc",
        "disc:",
        "disc:1,2",
        "disc:1,2,3,4",
        "disc:1,2,-3",
        "disc:1,2,0",
        "disc:1,2,nan",
        "disc:a,b,c",
        "disc 1,2,3",
        "circle:1,2,3",
        "box:0,0,1",
        "box:1,0,0,1",
        "polygon:0,0;1,0",
        "polygon:0,0;1,1;1,0;0,1",
        "polygon:0,0,1,0,0,1",
        "polygon:0,0;1,0;0,1;0,0",
        "disc:0,0,1@1",
        "disc:0,0,1@",
        "box:0,0,inf,1",
    ],
)
def test_malformed_texts_are_refused(text):
    with pytest.raises(ValueError):
        parse(text)


PICTURES = {**SHAPES, "moving": Moving(SHAPES["disc"], velocity=(1.0, 0.0)), "inflated": STAR.inflated(0.2)}
PICTURES["field"] = field_of(SHAPES["disc"])
PICTURES["union"] = Union([SHAPES["disc"], SHAPES["star"]])
PICTURES["moving field"] = Moving(STAR.inflated(0.1), velocity=(1.0, 0.0))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_cover_what_is_inside(name):
    """Points are inside the patch exactly where the distance is negative, away from the outline."""
    shape = PICTURES[name]
    patch = shape.patch(2.0, color="red") if shape.moves else shape.patch(color="red")
    p = points(300, seed=4) + (torch.tensor([2.0, 0.0]) if shape.moves else 0.0)
    d = shape.distance(p, 2.0) if shape.moves else shape.distance(p)
    far = d.abs() > 0.05
    inside = patch.get_path().contains_points(patch.get_patch_transform().inverted().transform(p.numpy()))
    assert np.array_equal(inside[far.numpy()], (d[far] < 0).numpy())


# ----------------------------------------------------------------- errors

GRID = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Disc(0, 0, -1), ValueError, "radius > 0"),
        (lambda: Disc(0, float("nan"), 1), ValueError, "finite"),
        (lambda: Disc("0", 0, 1), TypeError, "number"),
        (lambda: Box(1, 0, 0, 1), ValueError, "x_low < x_high"),
        (lambda: Polygon(((0, 0), (1, 1))), ValueError, "at least 3"),
        (lambda: Polygon(((0, 0), (1, 1), (1, 0), (0, 1))), ValueError, "cross"),
        (lambda: Polygon(((0, 0), (2, 0), (1, 0), (1, 1))), ValueError, "cross or touch"),
        (lambda: Polygon(((0, 0), (1, 0), (2, 0))), ValueError, "cross or touch"),
        (lambda: Polygon(((0, 0), (1, 0), (0, 0), (0, 1))), ValueError, "twice"),
        (lambda: Polygon(((0, 0), (4, 0), (4, 4), (2, 0), (0, 4))), ValueError, "cross or touch"),
        (lambda: Polygon(((0, 0, 0), (1, 0, 0), (0, 1, 0))), ValueError, "rows of 2"),
        (lambda: Polygon(7), TypeError, "rows"),
        (lambda: DistanceField(GRID[0], (0, 0), 1.0), ValueError, "nx, ny"),
        (lambda: DistanceField(GRID.long(), (0, 0), 1.0), ValueError, "floating"),
        (lambda: DistanceField(GRID / 0, (0, 0), 1.0), ValueError, "finite"),
        (lambda: DistanceField(GRID, (0, 0), 0.0), ValueError, "cell"),
        (lambda: DistanceField(GRID, (0, 0, 0), 1.0), ValueError, "origin"),
        (lambda: DistanceField(torch.eye(4), (0, 0), 0.5), ValueError, "metres"),
        (lambda: Moving(Disc(0, 0, 1)), ValueError, "one of them"),
        (lambda: Moving(Disc(0, 0, 1), (1, 0), waypoints=[(0, 0, 0)]), ValueError, "one of them"),
        (lambda: Moving(Disc(0, 0, 1), (1, 0, 0)), ValueError, "rows of 2"),
        (lambda: Moving(Disc(0, 0, 1), waypoints=[(1, 0, 0), (1, 1, 1)]), ValueError, "increasing"),
        (lambda: Moving(Disc(0, 0, 1), waypoints=[]), ValueError, "increasing"),
        (lambda: Moving(Moving(Disc(0, 0, 1), (1, 0)), (1, 0)), ValueError, "does not move"),
        (lambda: Moving("disc", (1, 0)), TypeError, "carries an obstacle"),
        (lambda: Disc(0, 0, 1).inflated(-0.1), ValueError, ">= 0"),
        (lambda: STAR.inflated(0.1).inflated(-0.05), ValueError, ">= 0"),
        (lambda: STAR.inflated(0.1).inflated(float("nan")), ValueError, "finite"),
        (lambda: Union([]), ValueError, "at least one"),
        (lambda: as_obstacles(3), TypeError, "sequence"),
        (lambda: as_obstacles([3]), TypeError, "subclass Obstacle"),
        (lambda: parse(3), TypeError, "text"),
        (lambda: STAR.distance(torch.zeros(3)), ValueError, "(…, 2)"),
        (lambda: STAR.distance(torch.zeros(3, 2, dtype=torch.long)), TypeError, "floating"),
        (lambda: STAR.distance([[0.0, 0.0]]), TypeError, "tensor"),
        (lambda: Moving(STAR, (1, 0)).distance(torch.zeros(3, 2), torch.zeros(4)), ValueError, "time"),
        (lambda: Moving(STAR, (1, 0)).distance(torch.zeros(3, 2), float("nan")), ValueError, "finite"),
    ],
)
def test_wrong_obstacles_are_refused(call, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_a_function_of_ones_own_is_an_obstacle():
    class Half(Obstacle):
        def _distance(self, points, time):
            return points[..., 0]

    assert Half().distance(torch.tensor([[2.0, 0.0]])).tolist() == [2.0]
    with pytest.raises(ValueError, match="no extent"):
        Half().patch()
