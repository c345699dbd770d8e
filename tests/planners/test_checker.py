"""The checker: exact along segments, in time, and apart from the tasks."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzmix.planners import (
    Box,
    Disc,
    DistanceField,
    Moving,
    Obstacle,
    Polygon,
    TrajectorySpace,
    Union,
    check,
    checker,
    clearance,
)

PLANE = TrajectorySpace(6, ("x", "y"), dt=0.2)
FULL = TrajectorySpace(4, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.5, bounds=((-1, 1), (-2, 2)))

SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
STAR = Polygon(((0.0, 0.0), (2.0, -0.5), (1.0, 0.6), (1.5, 2.0), (0.2, 1.0), (-1.0, 1.5)))


def grid_of(shape, cell=0.1, half=2.0):
    axis = torch.arange(-half, half + cell / 2, cell, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return DistanceField(shape.distance(grid), (-half, -half), cell)


class Ellipse(Obstacle):
    """A lower bound of an ellipse's distance: an obstacle of the user's own."""

    def _distance(self, points, time):
        return torch.linalg.vector_norm(points * torch.tensor([0.5, 1.0]).to(points), dim=-1) - 0.5


OBSTACLES = {
    "disc": Disc(0.2, -0.1, 0.5),
    "box": Box(-0.4, -0.6, 0.9, 0.2),
    "thin wall": Box(0.0, -2.0, 0.01, 2.0),
    "square": Polygon(SQUARE),
    "star": STAR,
    "inflated star": STAR.inflated(0.2),
    "field": grid_of(STAR),
    "inflated field": grid_of(STAR).inflated(0.1),
    "union": Union([Disc(0.5, 0.5, 0.3), STAR, grid_of(STAR).inflated(0.05)]),
    "moving disc": Moving(Disc(-0.5, 0, 0.4), velocity=(1.0, 0.3)),
    "moving star": Moving(STAR, velocity=(-1.0, 0.3)).inflated(0.1),
    "waypoints": Moving(Box(-0.2, -0.2, 0.2, 0.3), waypoints=[(0.05, 0, 0), (0.33, 1, 1), (0.5, -1, 1)]),
    "one's own": Ellipse(),
}


def ways(n=25, horizon=6, seed=0, step=0.7):
    generator = torch.Generator().manual_seed(seed)
    return (step * torch.randn(n, horizon, 2, generator=generator, dtype=torch.float64)).cumsum(1)


def brute(obstacle, tau, dt, count=10_000):
    """Least distance over ``count`` places of every segment, from torch's pointwise distances."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    least = []
    for k in range(tau.shape[1] - 1):
        points = tau[:, k, None] + u[:, None] * (tau[:, k + 1] - tau[:, k])[:, None]
        least.append(obstacle.distance(points, ((k + u) * dt).expand(len(tau), -1)).amin(1))
    return torch.stack(least, 1).amin(1).numpy()


@pytest.mark.parametrize("name", OBSTACLES)
def test_clearances_are_those_of_ten_thousand_places_on_every_segment(name):
    """Never above brute force, and below it by no more than the distance can change between two of its places."""
    tau = ways(12)
    clearance = check(tau, PLANE, [OBSTACLES[name]]).clearance
    dense = brute(OBSTACLES[name], tau, PLANE.dt)
    longest = float(torch.linalg.vector_norm(tau.diff(dim=1), dim=-1).max()) + 2.0 * PLANE.dt
    searched = 1.1e-4 if name == "one's own" else 1e-9
    assert (clearance <= dense + searched).all()
    assert (dense - clearance).max() <= longest / 2e4 * 1.5 + searched
    assert 0.0 < (dense < 0).mean() < 1.0  # both kinds are there


@pytest.mark.parametrize("name", ["disc", "box", "square", "star", "field"])
def test_a_plan_that_stands_still_is_as_clear_as_its_point(name):
    points = 1.5 * torch.randn(40, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = OBSTACLES[name].distance(points).numpy()
    for horizon in (1, 3):
        tau = points[:, None].expand(-1, horizon, -1)
        found = check(tau, PLANE.resized(horizon), [OBSTACLES[name]]).clearance
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("obstacle", "way", "clearance"),
    [
        (Disc(0, 0, 1), [(-2, 0.5), (2, 0.5)], -0.5),
        (Disc(0, 0, 1), [(-2, 1.0), (2, 1.0)], 0.0),
        (Disc(0, 0, 1), [(2, 2), (3, 9)], 8**0.5 - 1),
        (Box(0, 0, 2, 1), [(-1, 0.5), (3, 0.5)], -0.5),
        (Box(0, 0, 2, 1), [(-1, 0.0), (1, 2.0)], 0.0),
        (Box(0, 0, 1, 1), [(-0.1, 0.8), (0.2, 1.1)], -0.05),
        (Box(0, 0, 1, 1), [(2, 2), (5, 2)], 2**0.5),
        (Polygon(((0, 0), (1, 0), (1, 1), (0, 1))), [(-1, -1), (2, 2)], -0.5),
        (Polygon(((0, 0), (1, 0), (1, 1), (0, 1))), [(-1, 0), (2, 0)], 0.0),
        (Polygon(((0, 0), (1, 0), (1, 1), (0, 1))), [(-1, 1), (1, 3)], 0.5**0.5),
        (Polygon(((0, 0), (3, 0), (3, 3), (0, 3), (0, 2), (2, 2), (2, 1), (0, 1))), [(0, 1.5), (1.5, 1.5)], 0.5),
        (Moving(Disc(0, 0, 1), velocity=(4, 0)), [(4, 0), (0, 0)], -1.0),
        (Moving(Disc(0, 0, 1), velocity=(0, 5)), [(4, 0), (0, 0)], 4 * 5 / 41**0.5 - 1.0),
        (Box(0, 0, 2, 1), [(2, 4), (4, 0)], 3 / 5**0.5),
        (Polygon(((0, 0), (4, 0), (4, 2), (0, 1))), [(1.5, 0.2), (2.5, 1.3)], -0.7372014096392505),
    ],
)
def test_clearances_known_by_hand(obstacle, way, clearance):
    """Among them: through the corners of a polygon, along an edge, in the notch of a C, and as far from two sides."""
    tau = np.array([way], dtype=float)
    found = check(tau, TrajectorySpace(2, ("x", "y")), obstacle).clearance
    assert found[0] == pytest.approx(clearance, abs=1e-12)


def test_a_wall_between_two_tokens_is_seen_where_tokens_alone_see_nothing():
    wall = Box(0.495, -1, 0.505, 1)
    tau = np.array([[(0.0, 0.0), (1.0, 0.0)], [(0.0, 0.0), (0.4, 0.0)]])
    tokens = wall.distance(torch.from_numpy(tau)).amin(1)
    assert bool((tokens > 0.05).all())
    report = check(tau, TrajectorySpace(2, ("x", "y")), [wall])
    assert report.feasible.tolist() == [False, True]
    assert report.violations["collision"] == pytest.approx([0.005, 0.0])


def test_two_that_swap_places_meet_although_each_token_is_clear():
    """A disc and the robot pass through each other between two tokens."""
    other = Moving(Disc(1.0, 0.0, 0.1), velocity=(-1.0, 0.0))
    tau = np.array([[(0.0, 0.0), (1.0, 0.0)]])
    report = check(tau, TrajectorySpace(2, ("x", "y"), dt=1.0), [other])
    assert report.violations["collision"][0] == pytest.approx(0.1)
    assert check(tau, TrajectorySpace(2, ("x", "y"), dt=0.1), [other.later(2.0)]).feasible[0]


@pytest.mark.parametrize("name", ["disc", "star", "moving disc"])
def test_a_robot_of_a_radius_is_a_point_among_inflated_obstacles(name):
    tau = ways()
    one = check(tau, PLANE, [OBSTACLES[name]], radius=0.15)
    two = check(tau, PLANE, [OBSTACLES[name].inflated(0.15)])
    np.testing.assert_allclose(one.clearance, two.clearance, atol=1e-12)


def test_each_obstacle_is_reported():
    tau = ways()
    report = check(tau, PLANE, list(OBSTACLES.values()))
    assert report.clearances.shape == (25, len(OBSTACLES))
    np.testing.assert_array_equal(report.clearances.min(1), report.clearance)
    np.testing.assert_allclose(report.violations["collision"], np.maximum(-report.clearance, 0))


def plan():
    """One plan of FULL that obeys x' = x + v dt, v' = v + a dt."""
    tau = np.zeros((1, 4, 6))
    tau[0, :, 4:] = [(0.4, 0.0), (0.0, -0.4), (-0.4, 0.2), (0, 0)]
    for h in range(3):
        tau[0, h + 1, 2:4] = tau[0, h, 2:4] + 0.5 * tau[0, h, 4:]
        tau[0, h + 1, :2] = tau[0, h, :2] + 0.5 * tau[0, h, 2:4]
    return tau


def euler(states, actions):
    v = states[:, 2:]
    return np.concatenate([states[:, :2] + 0.5 * v, v + 0.5 * actions], 1)


def test_all_checks_together_and_each_broken_alone():
    tau = plan()
    ask = {
        "obstacles": [Disc(0.5, 1.0, 0.2)], "radius": 0.1, "max_speed": 0.3, "dynamics": euler, "start": (0, 0, 0, 0),
        "goal": tau[0, -1, :2], "bounds": ((-0.5, 0.5), (-0.5, 0.5)),
    }  # fmt: skip
    report = check(tau, FULL, **ask)
    assert report.feasible.tolist() == [True]
    assert report.failed(0) == ()
    assert set(report.violations) == {"finite", "collision", "bounds", "speed", "dynamics", "start", "goal"}
    broken = {
        "collision": ({"obstacles": [Disc(0.1, 0.2, 0.2)]}, None),
        "bounds": ({"bounds": ((-0.5, 0.25), (-0.5, 0.5))}, 0.05),
        "speed": ({"max_speed": 0.15}, 0.2 * 2**0.5 - 0.15),
        "dynamics": ({"dynamics": lambda s, a: s + 0.0}, None),
        "start": ({"start": (0, 0, 0, 0.3)}, 0.3),
        "goal": ({"goal": tau[0, -1, :2] + np.array([0.03, 0.04])}, 0.05),
    }
    for name, (change, amount) in broken.items():
        report = check(tau, FULL, **{**ask, **change})
        assert report.failed(0) == (name,)
        assert not report.feasible[0]
        if amount is not None:
            assert report.violations[name][0] == pytest.approx(amount)


def test_bounds_are_the_spaces_own_unless_said_otherwise_and_hold_the_whole_robot():
    tau = np.zeros((1, 4, 6))
    tau[0, 2, 0] = 0.95
    assert check(tau, FULL).feasible[0]
    assert check(tau, FULL, radius=0.1).violations["bounds"][0] == pytest.approx(0.05)
    assert check(tau, FULL, radius=0.1, bounds=((-2, 2), (-2, 2))).feasible[0]
    assert "bounds" not in check(np.zeros((1, 6, 2)), PLANE).violations


def test_tolerances_are_those_asked_for():
    tau = plan()
    assert check(tau, FULL, start=(5e-5, 0.0)).feasible[0]
    assert not check(tau, FULL, start=(5e-5, 0.0), tolerance=1e-5).feasible[0]
    assert check(tau, FULL, goal=(1.0, 0.0), tolerance={"goal": 2.0}).feasible[0]
    assert not check(tau, FULL, goal=(1.0, 0.0), tolerance={"start": 2.0}).feasible[0]
    assert not check(tau, FULL, obstacles="disc:0,0,1", tolerance=5.0).feasible[0]
    assert check(tau, FULL, obstacles="disc:0,0,1", tolerance={"collision": 5.0}).feasible[0]


def test_numbers_that_are_not_finite_are_reported_and_spoil_nothing_else():
    tau = ways(3).float()
    clean = check(tau, PLANE, [Disc(0, 0, 0.1)])
    tau[1, 2, 0], tau[1, 3, 1] = torch.nan, torch.inf
    report = check(tau, PLANE, [Disc(0, 0, 0.1)], start=(0.0, 0.0), tolerance=10.0)
    assert report.violations["finite"].tolist() == [0, 2, 0]
    assert np.isnan(report.clearance[1])
    assert not report.feasible[1]
    assert report.violations["collision"][1] == np.inf
    np.testing.assert_array_equal(report.clearance[[0, 2]], clean.clearance[[0, 2]])


def test_without_obstacles_all_is_clear():
    report = check(np.zeros((6, 2)), PLANE)
    assert len(report) == 1
    assert report.feasible[0]
    assert report.clearance[0] == np.inf


@pytest.mark.parametrize("plans", [np.zeros((0, 6, 2)), np.full((2, 6, 2), np.nan)], ids=["none", "only NaN"])
def test_a_missing_plan_is_no_plan(plans):
    limits = {"start": (0, 0), "max_speed": 1.0, "bounds": ((0, 1), (0, 1)), "dynamics": lambda s: s}
    report = check(plans, PLANE, list(OBSTACLES.values()), **limits)
    assert report.feasible.shape == (len(plans),)
    assert not report.feasible.any()
    assert all(amount.shape == (len(plans),) for amount in report.violations.values())


def test_the_checker_shares_no_code_with_the_tasks():
    files = [Path(inspect.getsourcefile(module) or "") for module in (checker, clearance)]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert not any("tasks" in (name or "") for name in imported)
    taken = {a.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert "box_distance" not in taken  # no distance function of the obstacles either


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: check(np.zeros((6, 3)), PLANE), ValueError, "N, H, D"),
        (lambda: check(np.zeros((6, 2), dtype=int), PLANE), TypeError, "floating"),
        (lambda: check(np.zeros((6, 2)), "plane"), TypeError, "TrajectorySpace"),
        (lambda: check(np.zeros((6, 2)), PLANE, radius=-1), ValueError, "radius"),
        (lambda: check(np.zeros((6, 2)), PLANE, radius=float("nan")), ValueError, "radius"),
        (lambda: check(np.zeros((6, 2)), PLANE, max_speed=-1), ValueError, "max_speed"),
        (lambda: check(np.zeros((6, 2)), PLANE, tolerance=-1), ValueError, "tolerance"),
        (lambda: check(np.zeros((6, 2)), PLANE, tolerance={"colour": 1}), ValueError, "no check"),
        (lambda: check(np.zeros((6, 2)), PLANE, tolerance="1"), TypeError, "number"),
        (lambda: check(np.zeros((6, 2)), PLANE, bounds=((0, 1),)), ValueError, "bounds"),
        (lambda: check(np.zeros((6, 2)), PLANE, bounds=((0, 1), (1, 0))), ValueError, "bounds"),
        (lambda: check(np.zeros((6, 2)), PLANE, goal=(0, 0, 0)), ValueError, "goal"),
        (lambda: check(np.zeros((6, 2)), PLANE, start=(0, np.nan)), ValueError, "finite"),
        (lambda: check(np.zeros((6, 2)), PLANE, dynamics=lambda s: s[:, :1]), ValueError, "next states"),
        (lambda: check(np.zeros((6, 2)), PLANE, [3]), TypeError, "obstacles"),
        (lambda: check(np.zeros((3, 1)), TrajectorySpace(3, ("x",), position=("x",)), STAR), ValueError, "plane"),
    ],
)
def test_wrong_calls_are_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
