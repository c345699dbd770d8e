"""Avoid: the penalty is zero exactly where every segment keeps its distance."""

import pytest
import torch

from boltzmix.planners import Avoid, Box, Disc, DistanceField, Moving, Polygon, TrajectorySpace, Union, check
from boltzmix.planners.tasks.base import hinge

PLANE = TrajectorySpace(6, ("x", "y"), dt=0.2)
STAR = Polygon(((0.0, 0.0), (2.0, -0.5), (1.0, 0.6), (1.5, 2.0), (0.2, 1.0), (-1.0, 1.5)))


def field():
    axis = torch.arange(-2, 2.05, 0.1, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return DistanceField(Disc(0.2, 0.1, 0.6).distance(grid), (-2, -2), 0.1)


OBSTACLES = {
    "discs": [Disc(0.2, -0.1, 0.5), Disc(1.0, 1.0, 0.2)],
    "boxes": [Box(-0.4, -0.6, 0.9, 0.2), Box(1.0, 1.0, 1.02, 3.0), Box(-1.0, 0.5, 1.0, 0.51)],
    "polygons": [STAR, Polygon(((-1, -1), (0, -1.2), (-0.5, -0.3)))],
    "field": [field()],
    "inflated": [STAR.inflated(0.1), Box(-0.4, -0.6, 0.9, 0.2).inflated(0.1)],
    "union": [Union([STAR, Disc(-1, -1, 0.3)])],
    "moving": [
        Moving(Disc(-0.5, 0, 0.4), (1.0, 0.3)),
        Moving(Box(0, 0, 0.3, 0.8), (-1.0, 0.0)),
        Moving(STAR, (0, 1.0)),
    ],
    "waypoints": [Moving(Disc(0, 0, 0.4), waypoints=[(0.1, 0, 0), (0.4, 1, 1), (0.9, -1, 0)])],
    "all": [Disc(0.2, -0.1, 0.5), Box(1.0, 1.0, 1.02, 3.0), STAR, field(), Moving(Disc(-0.5, 0, 0.4), (1.0, 0.3))],
}


SEARCHED = ("polygons", "inflated", "union", "field", "waypoints", "moving", "all")


def ways(n=15, seed=0, step=0.7):
    generator = torch.Generator().manual_seed(seed)
    return (step * torch.randn(n, 6, 2, generator=generator, dtype=torch.float64)).cumsum(1)


def dense(obstacles, tau, count=801):
    """Least distance ``(N, K, O)`` on every segment to every obstacle, from ``count`` places of it."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    found = []
    for k in range(tau.shape[1] - 1):
        points = torch.lerp(tau[:, k, None], tau[:, k + 1, None], u[:, None])
        time = ((k + u) * PLANE.dt).expand(len(tau), -1)
        found.append(torch.stack([o.distance(points, time).amin(1) for o in obstacles], 1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_energy_is_the_hinge_of_the_least_distance_of_each_segment(name):
    tau, margin = ways(), 0.15
    task = Avoid(OBSTACLES[name], margin, 1.0, radius=0.05)
    brute = hinge(dense(OBSTACLES[name], tau) - 0.05, margin).sum((1, 2))
    # brute force misses by half its step, 1/1600 of a segment; a search may miss by 1/32 of it, and seldom does
    energy, longest = task.energy(tau, PLANE), float(torch.linalg.vector_norm(tau.diff(dim=1), dim=-1).max())
    off = longest / 32 if name in SEARCHED else longest / 1600
    assert bool(((energy - brute).abs() <= 5 * off).all())
    assert float((energy - brute).abs().mean()) <= 2e-3


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_penalty_is_zero_exactly_where_all_segments_keep_the_margin(name):
    tau, margin = ways(60, seed=1, step=0.45), 0.1
    least = dense(OBSTACLES[name], tau, 601).amin((1, 2))
    energy = Avoid(OBSTACLES[name], margin).energy(tau, PLANE)
    sure = (least - margin).abs() > (0.02 if name in ("field", "waypoints", "all") else 0.002)
    assert int(sure.sum()) >= 50
    assert 3 <= int((least[sure] >= margin).sum()) <= 57
    assert torch.equal(energy[sure] == 0, least[sure] >= margin)


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_violation_is_how_deep_the_checker_says(name):
    tau = ways(25, seed=2)
    report = check(tau, PLANE, OBSTACLES[name], radius=0.05)
    violation = Avoid(OBSTACLES[name], 0.3, radius=0.05).violation(tau, PLANE)
    deep = torch.from_numpy(report.violations["collision"])
    longest = float(torch.linalg.vector_norm(tau.diff(dim=1), dim=-1).max())
    assert float((violation - deep).max()) <= 1e-9  # never deeper than the deepest place
    assert float((deep - violation).max()) <= (longest / 32 if name in SEARCHED else 1e-9)
    assert int((deep > 0).sum()) > 3


def test_a_wall_thinner_than_the_way_between_two_tokens_is_seen():
    """Tokens and the middle of the segment are far from it, and still it pushes both tokens back."""
    space = TrajectorySpace(2, ("x", "y"))
    wall, tau = Box(0.70, -1.0, 0.701, 1.0), torch.tensor([[[0.0, 0.9], [1.0, 0.9]]], dtype=torch.float64)
    assert bool((wall.distance(tau) > 0.2).all())
    bound = Avoid(wall, margin=0.05).bind(space)
    assert float(bound.energy(tau)) > 2.0
    assert float(Avoid(wall, margin=0.0).violation(tau, space)) == pytest.approx(5e-4, rel=1e-3)
    disc = Avoid(Disc(0.70, 0.88, 0.001), margin=0.05).bind(space)
    up = disc.score(tau)
    assert float(up[0, 1, 1]) > float(up[0, 0, 1]) > 0.0  # the nearer token is pushed more
    assert float(up[0, 1, 1] / up[0, 0, 1]) == pytest.approx(0.7 / 0.3, rel=1e-6)


def test_one_that_moves_is_met_where_it_is_and_not_where_it_was():
    space = TrajectorySpace(2, ("x", "y"), dt=1.0)
    tau = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    swap = Moving(Disc(1.0, 0.0, 0.1), velocity=(-1.0, 0.0))
    assert float(Avoid(swap).violation(tau, space)) == pytest.approx(0.1)
    assert float(Avoid(swap.later(5.0)).energy(tau, space)) == 0.0
    assert float(Avoid(swap).later(5.0).energy(tau, space)) == 0.0
    still = Avoid("disc:0,0,0.3")
    assert still.later(5.0) is still
    crossing = Moving(Disc(0.5, 1.0, 0.1), velocity=(0.0, -1.0))
    assert float(Avoid(crossing).violation(tau, space)) == pytest.approx(0.0)
    assert float(Avoid(Disc(0.5, 0.0, 0.1)).violation(tau, space)) == pytest.approx(0.1)


def test_following_the_score_leads_out_of_convex_obstacles():
    space = PLANE.resized(30)
    along = torch.linspace(-2.5, 2.5, 30, dtype=torch.float64)
    tau = torch.stack([torch.stack([along, torch.full_like(along, y)], 1) for y in (-0.35, -0.15, 0.1, 0.3)])
    for obstacles in (OBSTACLES["discs"], OBSTACLES["boxes"][:1], [Moving(Disc(-0.3, -0.2, 0.5), (0.1, 0.05))]):
        bound, x = Avoid(obstacles, 0.1, 1.0).bind(space), tau.clone()
        for _ in range(60):
            x = x + 0.05 * bound.score(x)
        assert check(tau, space, obstacles).feasible.mean() < 0.5
        assert float(Avoid(obstacles).violation(x, space).mean()) < 0.1 * float(
            Avoid(obstacles).violation(tau, space).mean()
        )


def test_a_single_token_is_a_way_that_stands_still():
    space = TrajectorySpace(1, ("x", "y"))
    tau = torch.tensor([[[0.3, 0.0]], [[2.0, 0.0]]])
    assert Avoid(Disc(0, 0, 0.5)).violation(tau, space).tolist() == pytest.approx([0.2, 0.0])


@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_the_hinge_is_zero_beyond_its_margin_and_its_slope_is_continuous(margin):
    d = torch.linspace(-3, 3, 100001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(hinge(d, margin).sum(), d)
    assert bool((hinge(d, margin)[d >= margin] == 0).all())
    assert bool((hinge(d, margin)[d < margin] > 0).all())
    inside = d < -1e-6
    torch.testing.assert_close(slope[inside], -torch.ones(int(inside.sum())).double())
    if margin:
        assert float(slope.diff().abs().max()) < 6e-5 / margin * 1.01
        torch.testing.assert_close(
            hinge(d, margin)[(d > 0) & (d < margin)], ((margin - d) ** 2 / (2 * margin))[(d > 0) & (d < margin)]
        )


def test_texts_are_obstacles():
    tau = ways(5)
    one, two = Avoid("disc:0.2,-0.1,0.5"), Avoid([Disc(0.2, -0.1, 0.5)])
    assert torch.equal(one.energy(tau, PLANE), two.energy(tau, PLANE))
