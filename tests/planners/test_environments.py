"""Environments: shortest paths against geometry done by hand, simulators against their own equations."""

import math
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch

from boltzmix.planners.environments import (
    NAMES,
    MazeLayout,
    ObstacleWorld,
    VisibilityGraph,
    WaypointController,
    hard_pairs,
    make,
    path_length,
)
from boltzmix.planners.environments.pairs import straight_line_arrives
from boltzmix.planners.environments.visibility import segment_clearance
from boltzmix.planners.obstacles import Box, Disc, Moving, Polygon

U = ("#####", "#   #", "### #", "#   #", "#####")
LOOP = ("#######", "#     #", "# ### #", "# #   #", "# # # #", "#   # #", "#######")


def dense(path, spacing=0.01):
    """Points along a polyline."""
    points = [np.asarray(path[0], dtype=float)]
    for one, other in pairwise(path):
        one, other = np.asarray(one), np.asarray(other)
        count = max(1, math.ceil(np.linalg.norm(other - one) / spacing))
        points += [one + (other - one) * (k + 1) / count for k in range(count)]
    return np.stack(points)


def taut_around_disc(gap, radius):
    """From (−gap, 0) to (gap, 0) around a disc at the origin: two tangents and an arc."""
    return 2.0 * math.sqrt(gap**2 - radius**2) + radius * (math.pi - 2.0 * math.acos(radius / gap))


def taut_in_u(radius):
    """From (−1, −1) to (−1, 1) in U: two tangents, two arcs around the corners (½, ±½), one side."""
    away = math.hypot(1.5, 0.5)
    turn = math.atan2(0.5, 1.5) + math.pi / 2 - math.acos(radius / away) + math.pi / 2 - math.pi / 2
    angle = math.pi + math.atan2(0.5, 1.5) + math.acos(radius / away)  # of the first tangent point
    assert 0.0 < turn < math.pi
    return 2.0 * math.sqrt(away**2 - radius**2) + 2.0 * radius * (2.0 * math.pi - angle) + 1.0


# --- shortest paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.3])
def shortest_paths_are_taut(radius):
    disc = VisibilityGraph([], [(0.0, 0.0, 0.5)], radius).path((-2.0, 0.0), (2.0, 0.0))[0]
    assert disc == pytest.approx(taut_around_disc(2.0, 0.5 + radius), rel=2e-3)
    length = MazeLayout.centred(U, radius=radius).shortest_path((-1.0, -1.0), (-1.0, 1.0))[0]
    assert length == pytest.approx(taut_in_u(radius), rel=1e-3)


test_shortest_paths_are_taut = shortest_paths_are_taut


def paths_keep_their_distance_and_are_no_longer_than_others(pairs=12):
    """Random pairs: the ball touches no wall, no detour over a third point is shorter, both directions agree."""
    maze, rng = MazeLayout.centred(LOOP, radius=0.15), np.random.default_rng(0)
    for _ in range(pairs):
        start, via, goal = (maze.sample(rng) for _ in range(3))
        length, path = maze.shortest_path(start, goal)
        assert path[0] == pytest.approx(start)
        assert path[-1] == pytest.approx(goal)
        assert length == pytest.approx(path_length(path))
        assert min(maze.clearance(point) for point in dense(path, 0.02)) >= 0.15 - 1e-6
        assert length == pytest.approx(maze.shortest_path(goal, start)[0])
        assert math.dist(start, goal) - 1e-9 <= length <= maze.breadth_first(start, goal)[0] * 1.003
        assert length <= maze.shortest_path(start, via)[0] + maze.shortest_path(via, goal)[0] + 1e-9


def test_paths_keep_their_distance_and_are_no_longer_than_others():
    paths_keep_their_distance_and_are_no_longer_than_others()


def test_paths_turn_with_the_maze():
    """Mirrored and turned mazes have mirrored paths of the same length."""
    maze = MazeLayout.centred(LOOP, radius=0.15)
    mirrored = MazeLayout.centred([row[::-1] for row in LOOP], radius=0.15)
    turned = MazeLayout.centred(["".join(column) for column in zip(*LOOP, strict=True)], radius=0.15)
    rng = np.random.default_rng(1)
    for _ in range(5):
        (x, y), (u, v) = maze.sample(rng), maze.sample(rng)
        length = maze.shortest_path((x, y), (u, v))[0]
        assert mirrored.shortest_path((-x, y), (-u, v))[0] == pytest.approx(length, rel=1e-9)
        assert turned.shortest_path((-y, -x), (-v, -u))[0] == pytest.approx(length, rel=1e-9)


def test_where_there_is_no_path():
    walled = MazeLayout.centred(["#####", "# # #", "#####"])
    assert walled.shortest_path((-1.0, 0.0), (1.0, 0.0)) == (math.inf, [])
    assert walled.breadth_first((-1.0, 0.0), (1.0, 0.0)) == (math.inf, [])
    assert walled.shortest_path((-1.0, 0.0), (0.0, 0.0)) == (math.inf, [])  # the goal is in a wall
    narrow = MazeLayout.centred(U, radius=0.6)  # wider than the corridor
    assert narrow.shortest_path((-1.0, -1.0), (-1.0, 1.0)) == (math.inf, [])
    with pytest.raises(ValueError, match="radius"):
        VisibilityGraph([], [], 0.0)


def a_start_at_a_wall_can_be_left():
    """Contacts are soft, and a ball may lie a little deeper in a wall than its radius."""
    maze = MazeLayout.centred(U, radius=0.1)
    length, path = maze.shortest_path((-1.0, -1.42), (-1.0, 1.0))
    assert length == pytest.approx(maze.shortest_path((-1.0, -1.4), (-1.0, 1.0))[0], abs=0.03)
    assert len(path) > 2


def test_a_start_at_a_wall_can_be_left():
    a_start_at_a_wall_can_be_left()


def breadth_first_takes_the_fewest_cells():
    """As many steps from cell to cell as relaxation over all cells finds (Bellman and Ford)."""
    maze = MazeLayout.centred(("######", "#    #", "# ## #", "#    #", "# ## #", "#    #", "######"))
    rng = np.random.default_rng(0)
    for _ in range(6):
        start, goal = maze.sample(rng), maze.sample(rng)
        far = dict.fromkeys(maze.free_cells, math.inf) | {maze.cell(start): 0}
        for _ in far:
            for i, j in far:
                around = ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1))
                far[i, j] = min(far[i, j], 1 + min(far.get(cell, math.inf) for cell in around))
        length, path = maze.breadth_first(start, goal)
        assert len(path) - 1 == max(1, far[maze.cell(goal)])
        assert length == pytest.approx(path_length(path))


def test_breadth_first_takes_the_fewest_cells():
    breadth_first_takes_the_fewest_cells()


def segment_distances_are_those_of_their_points():
    generator = torch.Generator().manual_seed(0)
    start, end = (4.0 * torch.rand(200, 2, generator=generator).double() - 2.0 for _ in range(2))
    boxes = torch.tensor([[-1.0, -0.5, 0.2, 0.4], [0.5, 0.5, 0.6, 1.5]], dtype=torch.float64)
    discs = torch.tensor([[1.0, -1.0, 0.4]], dtype=torch.float64)
    found = segment_clearance(start, end, boxes, discs)
    shares = torch.linspace(0, 1, 801, dtype=torch.float64)[:, None, None]
    points = start + shares * (end - start)
    obstacles = [Box(*box) for box in boxes.tolist()] + [Disc(*disc) for disc in discs.tolist()]
    expected = torch.stack([obstacle.distance(points) for obstacle in obstacles]).amin((0, 1)).clamp_min(0.0)
    assert float((found - expected).abs().max()) < 5e-3  # half the spacing of the points
    assert bool((found <= expected + 1e-12).all())


def test_segment_distances_are_those_of_their_points():
    segment_distances_are_those_of_their_points()


# --- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [True, False])
def cells_and_walls_agree(down):
    """Every cell finds itself again, and a point lies in a wall if and only if its cell is one."""
    cells = tuple(tuple(int(cell == "#") for cell in row) for row in LOOP)
    maze = MazeLayout(cells, 4.0, (-4.0, 10.0), 0.7, down=down)
    assert all(maze.cell(maze.centre((i, j))) == (i, j) for i in range(7) for j in range(7))
    (x_low, x_high), (y_low, y_high) = maze.bounds
    points = np.random.default_rng(0).uniform((x_low, y_low), (x_high, y_high), (400, 2))
    inside = torch.stack([wall.distance(torch.tensor(points)) < 0.0 for wall in maze.walls]).any(0)
    for point, wall in zip(points, inside.tolist(), strict=True):
        i, j = maze.cell(point)
        assert wall == bool(cells[i][j])
        assert maze.free(point, 1e-9) != wall


test_cells_and_walls_agree = cells_and_walls_agree


def test_walls_have_no_seams():
    """The distance inside a thick wall is that to its surface: the runs overlap."""
    maze = MazeLayout.centred(U)
    deep = torch.stack([wall.distance(torch.tensor([[2.0, 0.5], [0.0, 2.0], [-2.0, -2.0]])) for wall in maze.walls])
    assert deep.amin(0).tolist() == pytest.approx([-0.5, -0.5, -0.5])


def test_random_points_are_free_and_everywhere():
    maze, rng = MazeLayout.centred(U), np.random.default_rng(0)
    points = [maze.sample(rng) for _ in range(200)]
    assert all(maze.free(point, 0.25 - 1e-9) for point in points)
    assert {maze.cell(point) for point in points} == set(maze.free_cells)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: MazeLayout(((0, 1), (1,))), "one length"),
        (lambda: MazeLayout(((0, 2),)), "0 .free. and 1"),
        (lambda: MazeLayout(((1, 1),)), "free cell"),
        (lambda: MazeLayout(((0,),), scale=0.0), "positive"),
        (lambda: MazeLayout.centred(U).cell((9.0, 0.0)), "outside the maze"),
        (lambda: MazeLayout.centred(U).shortest_path((math.nan, 0.0), (0.0, 1.0)), "finite"),
        (lambda: MazeLayout.centred(U).free((0.0, 0.0, 0.0)), "2 coordinates"),
        (lambda: make("pointmaze-huge"), "pointmaze-umaze"),
        (lambda: WaypointController([]), "at least one"),
    ],
)
def test_wrong_arguments_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


# --- a world without a simulator ----------------------------------------------------------------------------------


def free_motion_is_the_double_integrator():
    """Steps agree with ``predict``, and many with the closed form of constant acceleration."""
    world = ObstacleWorld(dt=0.05)
    world.reset((-0.8, 0.5, 0.3, -0.2), (0.9, 0.9))
    action = np.array([0.4, -0.6])
    predicted = world.predict(torch.tensor(world.state), torch.tensor(action))
    world.step(action)
    assert world.state == pytest.approx(predicted.numpy(), abs=1e-12)
    for _ in range(19):
        world.step(action)
    t = 1.0
    expected = [-0.8 + 0.3 * t + 0.2 * t * t, 0.5 - 0.2 * t - 0.3 * t * t, 0.3 + 0.4 * t, -0.2 - 0.6 * t]
    assert world.state == pytest.approx(expected, abs=1e-9)


def test_free_motion_is_the_double_integrator():
    free_motion_is_the_double_integrator()


def nothing_enters_an_obstacle(steps=250):
    """Random pushes: the ball keeps its radius to everything and stays within the bounds; contacts are reported."""
    world = ObstacleWorld([Disc(0.2, 0.1, 0.3), Box(-0.7, -0.6, -0.3, 0.5)], max_steps=math.inf)
    rng = np.random.default_rng(0)
    world.reset((-0.9, -0.9), (0.9, 0.9))
    touched = 0
    for _ in range(steps):
        before = world.state
        _, _, _, _, info = world.step(rng.uniform(-8.0, 8.0, 2))
        touched += info["contact"]
        assert world.clearance(world.state[:2]) >= world.radius - 1e-7
        assert np.abs(world.state[:2]).max() <= 1.0 + 1e-7
        assert math.dist(before[:2], world.state[:2]) < 1.0
    assert 0.04 * steps < touched < 0.96 * steps


def test_nothing_enters_an_obstacle():
    nothing_enters_an_obstacle()


def contacts_take_what_points_inwards_and_nothing_else():
    """A ball pushed obliquely into a wall slides: along the wall it moves as if the wall were not there."""
    world = ObstacleWorld([Box(-1.0, -1.0, 1.0, 0.0)])
    world.reset((-0.8, 0.2, 0.5, -0.5), (0.9, 0.9))
    for _ in range(10):
        _, _, _, _, info = world.step([0.3, -2.0])
    x, y, vx, vy = world.state
    assert info["contact"]
    assert (y, vy) == pytest.approx((world.radius, 0.0), abs=1e-6)
    assert (x, vx) == pytest.approx((-0.8 + 0.5 + 0.15, 0.8), abs=1e-6)


def test_contacts_take_what_points_inwards_and_nothing_else():
    contacts_take_what_points_inwards_and_nothing_else()


def test_a_corner_holds_the_ball():
    world = ObstacleWorld()
    world.reset((0.9, 0.9), (-0.9, -0.9))
    for _ in range(8):
        world.step([8.0, 8.0])
    assert world.state == pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-6)


def test_a_moving_obstacle_is_where_it_is_at_the_time():
    disc = Moving(Disc(-0.9, 0.0, 0.1), velocity=(1.0, 0.0))
    world = ObstacleWorld([disc], max_steps=math.inf)
    world.reset((0.0, 0.0), (0.9, 0.0))
    contacts = [world.step([0.0, 0.0])[4]["contact"] for _ in range(16)]
    arrives = round((0.9 - 0.14) / 0.1)
    assert not any(contacts[: arrives - 1])
    assert all(contacts[arrives : arrives + 2])
    with pytest.raises(ValueError, match="Moving"):
        world.shortest_path((0.0, 0.5), (0.5, 0.5))


def success_reward_and_truncation_are_apart():
    world = ObstacleWorld(max_steps=3)
    world.reset((0.0, 0.0), (0.5, 0.0))
    ended = [world.step([0.0, 0.0])[1:4] for _ in range(3)]
    assert ended == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]
    world.reset((0.45, 0.0), (0.5, 0.0))
    observation, reward, terminated, truncated, info = world.step([0.0, 0.0])
    assert (reward, terminated, truncated, info["success"]) == (1.0, False, False, True)
    assert observation["desired_goal"].tolist() == [0.5, 0.0]


def test_success_reward_and_truncation_are_apart():
    success_reward_and_truncation_are_apart()


def drives_are_proportional_within_the_limit():
    """At the velocity that is wanted only the damping is made up for; beyond the limit the direction is kept."""
    world = ObstacleWorld()
    world.damping = 0.5
    state = np.array([0.0, 0.0, 0.8, -0.4])
    assert world.drive((0.8, -0.4), state) == pytest.approx(0.5 * state[2:])
    assert world.drive((0.9, -0.4), state, stiffness=3.0) == pytest.approx(0.5 * state[2:] + [0.3, 0.0])
    hard = world.drive((40.0, 20.0), np.zeros(4))
    assert hard == pytest.approx([world.action_limit, 0.5 * world.action_limit])


def test_drives_are_proportional_within_the_limit():
    drives_are_proportional_within_the_limit()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda world: world.reset((math.nan, 0.0), (0.5, 0.5)), "not finite"),
        (lambda world: world.reset((0.0, 0.0), (0.5, 0.5)), "the start .0, 0. lies 0 m from an obstacle"),
        (lambda world: world.reset((0.5, 0.5), (0.32, 0.0)), "the goal"),
        (lambda world: world.reset((0.5, 0.5), (2.0, 0.0)), "bounds"),
        (lambda world: world.reset((0.5, 0.5, 0.5), (0.9, 0.0)), r"\(4,\)"),
        (lambda world: world.step([math.inf, 0.0]), "finite"),
        (lambda world: world.step([9.0, 0.0]), "clip"),
        (lambda world: world.step([1.0, 0.0, 0.0]), "shape"),
        (lambda world: ObstacleWorld().step([0.0, 0.0]), "before reset"),
        (lambda world: ObstacleWorld(radius=0.0), "positive"),
        (lambda world: ObstacleWorld(bounds=((1.0, -1.0), (-1.0, 1.0))), "low < high"),
        (lambda world: ObstacleWorld.random(200), "no room"),
        (
            lambda world: ObstacleWorld([Polygon(((0, 0), (0.1, 0), (0, 0.1)))]).shortest_path((0.5, 0), (0.5, 0.5)),
            "Polygon",
        ),
        (lambda world: hard_pairs(ObstacleWorld(), 3, 0, tries=3), "0 of 3 hard pairs"),
    ],
)
def test_a_world_refuses(wrong, said):
    world = ObstacleWorld([Disc(0.0, 0.0, 0.3)])
    world.reset((0.5, 0.5), (0.8, 0.5))
    with pytest.raises(ValueError, match=said):
        wrong(world)


def hard_pairs_are_hard_and_repeat():
    """The same seed gives the same pairs, more of them begin with the fewer, and a wall lies between the ends."""
    world = ObstacleWorld.random(4, seed=2)
    pairs = hard_pairs(world, 3, 5)
    assert pairs == hard_pairs(world, 3, 5)
    assert pairs[:2] == hard_pairs(world, 2, 5)
    assert pairs[:1] != hard_pairs(world, 1, 6)
    obstacles = world.obstacles
    for start, goal in pairs:
        length = world.shortest_path(start, goal)[0]
        assert math.isfinite(length)
        assert not straight_line_arrives(world, start, goal, length)
        line = torch.tensor(dense([start, goal]))
        nearest = torch.stack([obstacle.distance(line) for obstacle in obstacles]).amin()
        assert float(nearest) < world.radius


def test_hard_pairs_are_hard_and_repeat():
    hard_pairs_are_hard_and_repeat()


def controllers_arrive_directly_and_rest():
    """Shortest paths are followed within 5 % of their length, without contact, and end at rest at the goal."""
    world = ObstacleWorld([Disc(0.0, 0.0, 0.4)], dt=0.02, max_steps=math.inf)
    for start, goal in (((-0.8, 0.0), (0.8, 0.1)), ((-0.5, -0.6), (0.6, 0.5))):
        length, _ = world.shortest_path(start, goal)
        path = world.shortest_path(start, goal, 0.07)[1]
        world.reset(start, goal)
        controller = WaypointController(path, speed=0.8, lookahead=0.06, spacing=0.01)
        gone, contact = [world.state[:2]], False
        for _ in range(400):
            contact |= world.step(controller.act(world))[4]["contact"]
            gone.append(world.state[:2])
        assert not contact
        assert path_length(gone) <= 1.05 * length
        assert world.state == pytest.approx([*goal, 0.0, 0.0], abs=2e-3)


def test_controllers_arrive_directly_and_rest():
    controllers_arrive_directly_and_rest()


def speeds_obey_bends_and_brakes():
    """v² ≤ a_side / κ at a bend, and v² grows by at most 2 a ds from one sample to the next."""
    controller = WaypointController([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)], speed=2.0, side=4.0, brake=3.0)
    speeds = np.array(controller._speeds)
    assert speeds.max() == pytest.approx(2.0)
    corner = int(np.argmin([math.dist(point, (1.0, 0.0)) for point in controller._points]))
    assert speeds[corner] == pytest.approx(math.sqrt(4.0 * 0.08 / (math.pi / 2)), rel=1e-6)
    assert (speeds[:-1] ** 2 - speeds[1:] ** 2).max() <= 2.0 * 3.0 * controller.spacing + 1e-9


def test_speeds_obey_bends_and_brakes():
    speeds_obey_bends_and_brakes()


@pytest.mark.filterwarnings("ignore:.*WARN.*")  # advice on ranges of spaces
def test_as_a_gymnasium_environment():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    env = ObstacleWorld([Disc(0.0, 0.0, 0.3), Disc(-0.5, 0.4, 0.2)], seed=0).as_gymnasium()
    check_env(env, skip_render_check=True)
    assert isinstance(env, gymnasium.Env)
    observation, _ = env.reset(options={"start": (-0.9, -0.9), "goal": (0.9, 0.9)})
    assert observation["observation"].tolist() == [-0.9, -0.9, 0.0, 0.0]
    assert env.render().shape == (320, 320, 3)
    with pytest.raises(ValueError, match="goal_cell"):
        env.reset(options={"goal_cell": (1, 1)})


# --- films --------------------------------------------------------------------------------------------------------


def test_films_of_a_world_are_drawn_from_above(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    world = ObstacleWorld([Disc(0.0, 0.0, 0.3)])
    with world.record(tmp_path / "run.gif", fps=10) as film:
        world.reset((-0.8, 0.0), (0.8, 0.5))
        for _ in range(5):
            world.step([4.0, 4.0])
    assert film.backend == "top"
    assert "no simulator" in film.reason
    frames = imageio.mimread(tmp_path / "run.gif")
    assert len(frames) == film.frames == 6
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50
    with pytest.raises(ValueError, match="mp4 or a"):
        world.record(tmp_path / "run.avi")
    with pytest.raises(ValueError, match="no frames"), world.record(tmp_path / "none.gif"):
        pass
    with world.record(tmp_path / "other.gif", fps=10):
        world.reset()
        with pytest.raises(ValueError, match="already"):
            world.record(tmp_path / "third.gif")


def test_without_a_renderer_films_say_so(tmp_path, monkeypatch):
    """MuJoCo refuses a MUJOCO_GL that it does not know: a drawing takes the camera's place, with the reason."""
    pytest.importorskip("gymnasium_robotics")
    pytest.importorskip("imageio.v2")
    from boltzmix.planners.environments import recording

    monkeypatch.setattr(recording, "_PROBE", "raise SystemExit('no such device')")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    recording.backend.cache_clear()
    try:
        maze = make("pointmaze-umaze", seed=0)
        with maze.record(tmp_path / "run.mp4") as film:
            maze.reset()
            maze.step([0.5, 0.0])
    finally:
        recording.backend.cache_clear()
    assert film.backend == "top"
    assert film.reason == "egl: no such device; osmesa: no such device"
    assert (tmp_path / "run.mp4").stat().st_size > 500


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointmaze-umaze", "ogbench-pointmaze-medium"])
def test_mujoco_renders_without_a_screen(name, tmp_path):
    if not all(find_spec(library) for library in ("gymnasium_robotics", "ogbench")):  # not imported: see make
        pytest.skip("no simulators")
    imageio = pytest.importorskip("imageio.v2")
    maze = make(name, seed=0, render=True)
    with maze.record(tmp_path / "run.gif") as film:
        maze.reset()
        for _ in range(8):
            maze.step([1.0, 0.0])
    if film.backend == "top":
        pytest.skip(film.reason)
    frames = imageio.mimread(tmp_path / "run.gif")
    assert frames[0].std() > 10.0  # a picture, not a flat colour


# --- the mazes of gymnasium-robotics and ogbench ------------------------------------------------------------------


@pytest.fixture(scope="module")
def umaze():
    pytest.importorskip("gymnasium_robotics")
    return make("pointmaze-umaze", seed=0)


def test_layouts_are_those_of_the_simulator(umaze):
    """Every block of the simulator lies in a wall cell, and there are as many blocks as wall cells."""
    pytest.importorskip("ogbench")
    for maze in (umaze, make("ogbench-pointmaze-medium")):
        model = maze.env.unwrapped.model
        blocks = [i for i in range(model.ngeom) if model.geom(i).name.startswith("block_")]
        for i in blocks:
            x, y, half = *model.geom_pos[i][:2], model.geom_size[i][0]
            row, column = maze.layout.cell((x, y))
            assert model.geom(i).name == f"block_{row}_{column}"
            assert maze.layout.cells[row][column] == 1
            assert maze.layout.centre((row, column)) == pytest.approx((x, y))
            assert 2.0 * half == pytest.approx(maze.layout.scale)
        assert len(blocks) == sum(map(sum, maze.layout.cells))
        ball = min(i for i in range(model.ngeom) if model.geom(i).name in ("particle_geom", "pointbody"))
        assert model.geom_size[ball][0] == pytest.approx(maze.radius)


def test_the_equation_of_motion_is_the_simulators(umaze):
    """Free motion: ``predict`` gives the simulator's next state, over ten random steps."""
    pytest.importorskip("ogbench")
    rng = np.random.default_rng(0)
    for maze, start in ((umaze, (0.0, -1.0, 1.0, 0.5)), (make("ogbench-pointmaze-medium"), (0.0, 0.0))):
        maze.reset(start, maze.sample())
        for _ in range(10):
            action = rng.uniform(-1.0, 1.0, 2)
            predicted = maze.predict(torch.tensor(maze.state), torch.tensor(action))
            observation, _, _, _, info = maze.step(action)
            assert not info["contact"]
            assert observation["observation"] == pytest.approx(predicted.numpy(), abs=1e-9)


def test_episodes_begin_and_end_as_told(umaze):
    observation = umaze.reset((-1.1, -0.9), (-0.8, 1.1))
    assert observation["observation"].tolist() == [-1.1, -0.9, 0.0, 0.0]
    assert observation["desired_goal"].tolist() == [-0.8, 1.1]
    assert umaze.max_steps == 300
    flags = [umaze.step([0.0, 0.0])[2:4] for _ in range(300)]
    assert flags == [(False, False)] * 299 + [(False, True)]
    assert make("pointmaze-umaze", max_steps=math.inf).max_steps == math.inf
    with pytest.raises(ValueError, match="the goal"):
        umaze.reset((-1.0, -1.0), (-1.0, 0.3))


def test_the_same_seed_and_actions_give_the_same_states(umaze):
    """Bit for bit, whatever was simulated before: contacts included."""

    def run():
        umaze.reset(seed=7)
        states = [umaze.state]
        for action in np.random.default_rng(1).uniform(-1.0, 1.0, (60, 2)):
            umaze.step(np.repeat(action, 1))
            states.append(umaze.state)
        return np.stack(states)

    first = run()
    umaze.reset(seed=3)
    for _ in range(40):
        umaze.step([1.0, 1.0])
    assert np.array_equal(run(), first)


def test_hard_pairs_of_the_u_maze(umaze):
    """On each, a simple PD towards the goal fails within the library's own limit, and the way around is longer."""
    pairs = hard_pairs(umaze, 6, 0)
    assert pairs == hard_pairs("pointmaze-umaze", 6, 0)
    for start, goal in pairs:
        assert umaze.shortest_path(start, goal)[0] > 1.1 * math.dist(start, goal)
        observation = umaze.reset(start, goal)
        for _ in range(300):
            state = observation["observation"]
            action = np.clip(2.0 * (np.array(goal) - state[:2]) - 0.5 * state[2:], -1.0, 1.0)
            observation, _, _, _, info = umaze.step(action)
            assert not info["success"]


def test_every_name_makes_an_environment():
    pytest.importorskip("gymnasium_robotics")
    pytest.importorskip("ogbench")
    for name in NAMES:
        environment = make(name, seed=1)
        observation = environment.reset()
        assert environment.name == name
        assert observation["observation"].shape == (len(environment.state_names),)
        assert environment.step(np.zeros(2))[0]["achieved_goal"] == pytest.approx(
            observation["achieved_goal"], abs=1e-6
        )
        environment.close()
