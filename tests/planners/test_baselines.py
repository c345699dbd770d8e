"""Baselines: laws of the geometry, of action search, of the covariant gradient, of cloning, and of what is counted."""

import math
import sys

import numpy as np
import pytest
import torch

from boltzmix import term
from boltzmix.compose import MissingExtra, NonFinite
from boltzmix.compose.kernels import ULA
from boltzmix.compose.samplers import Reverse
from boltzmix.planners.baselines import (
    CEM,
    MPPI,
    OMPL,
    BehaviourCloning,
    BestOfN,
    BreadthFirst,
    GradientPlanner,
    GuidanceOnly,
    StraightLine,
)
from boltzmix.planners.baselines.actions import Rollouts, noise, penetration, whiten
from boltzmix.planners.baselines.breadth_first import route
from boltzmix.planners.baselines.cloning import chunks, flatten_observation
from boltzmix.planners.baselines.geometry import Surroundings, length, margins, resample, shorten
from boltzmix.planners.baselines.gradient import hinge, prior_precision, smoothness
from boltzmix.planners.baselines.mppi import weights
from boltzmix.planners.baselines.ompl import Validity
from boltzmix.planners.baselines.timing import arrival, timed
from boltzmix.planners.checker import check
from boltzmix.planners.obstacles import Box, Disc, Moving, Polygon
from boltzmix.planners.planner import Planner
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.avoid import Avoid
from boltzmix.planners.tasks.rewards import Reward

BOUNDS = ((-2.0, 2.0), (-2.0, 2.0))
SPACE = TrajectorySpace(48, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.1, bounds=BOUNDS)
START, GOAL = (-1.0, 0.0, 0.0, 0.0), (1.0, 0.0)
DISC = Disc(0.0, 0.05, 0.5)
CLUTTER = (Disc(0.3, 0.4, 0.35), Box(-1.2, -0.9, -0.5, 0.2), Polygon(((0.2, -1.2), (1.1, -0.7), (0.4, -0.4))))


def double_integrator(states, actions):
    """0.1 s of unit mass under a constant force."""
    position, velocity = states[:, :2], states[:, 2:]
    return torch.cat([position + 0.1 * velocity + 0.005 * actions, velocity + 0.1 * actions], dim=1)


def points(*pairs):
    return torch.tensor(pairs, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- geometry


def certified_segments_are_clear(seed=0):
    """What is certified keeps the clearance; what is refused comes nearer than half a resolution more."""
    generator = torch.Generator().manual_seed(seed)
    ends = 4 * torch.rand(400, 2, 2, generator=generator, dtype=torch.float64) - 2
    surroundings = Surroundings(CLUTTER, 0.1, None, 0.02)
    clear = surroundings.clear(ends[:, 0], ends[:, 1]).numpy()
    assert 40 < clear.sum() < 360
    space = TrajectorySpace(2, ("x", "y"))
    clearance = check(ends, space, CLUTTER, radius=0.1).clearance
    assert (clearance[clear] >= 0).all()
    assert (clearance[~clear] <= 0.01 + 1e-9).all()


def test_certified_segments_are_clear():
    certified_segments_are_clear()


def test_a_step_never_passes_a_thin_wall():
    wall = Box(-0.001, -1.0, 0.001, 1.0)
    surroundings = Surroundings((wall,), 0.0, None, 0.05)
    assert not bool(surroundings.clear(points((-1.0, 0.3)), points((1.0, 0.31))))


def test_bounds_may_be_touched_and_not_crossed():
    surroundings = Surroundings((), 0.1, BOUNDS)
    assert surroundings.path_is_clear(points((-2.0, -2.0), (2.0, -2.0)))
    assert not surroundings.path_is_clear(points((-2.0, -2.0), (2.0, -2.001)))


def the_shortest_path_in_a_hand_made_maze():
    """A wall to go around, and a zigzag of two: lengths by Pythagoras through the walls' corners."""
    one, two = Box(-0.1, -1.0, 0.1, 0.5), Box(0.4, -0.5, 0.6, 1.0)
    low, high = points((-0.5, -0.5)), points((0.5, -0.5))
    across = 2 * math.hypot(0.4, 1.0) + 0.2
    zigzag = math.hypot(0.4, 1.0) + 0.2 + math.hypot(0.3, 1.0) + 0.2 + math.hypot(0.3, 1.0)
    square = ((-1.0, 1.0), (-1.0, 1.0))
    for walls, end, exact in (((one,), high, across), ((one, two), points((0.9, 0.5)), zigzag)):
        surroundings = Surroundings(walls, 0.0, square)
        path = route(low[0], end[0], surroundings)
        assert path is not None
        assert surroundings.path_is_clear(path)
        assert exact <= float(length(path)) <= 1.005 * exact


def test_the_shortest_path_in_a_hand_made_maze():
    the_shortest_path_in_a_hand_made_maze()


def a_grid_does_not_step_over_a_thin_wall():
    """A wall thinner than the grid's spacing, with a gap at its end: the route goes through the gap."""
    wall = Box(-0.512, -1.0, -0.508, 0.7)
    surroundings = Surroundings((wall,), 0.0, ((-1.0, 1.0), (-1.0, 1.0)), 0.002)
    path = route(points((-0.8, -0.5))[0], points((0.8, -0.5))[0], surroundings, 0.1)
    assert path is not None
    assert surroundings.path_is_clear(path)
    exact = math.hypot(0.8 - 0.512, 1.2) + 0.004 + math.hypot(0.8 + 0.508, 1.2)
    assert exact <= float(length(path)) <= 1.01 * exact


def test_a_grid_does_not_step_over_a_thin_wall():
    a_grid_does_not_step_over_a_thin_wall()


def a_ball_stays_inside_the_bounds():
    """A wall that leaves a gap to the bound of less than the ball: it must go around the other side."""
    wall = Box(-0.1, -1.0, 0.1, 1.82)
    planner = BreadthFirst(SPACE, obstacles=(wall,), radius=0.1, bounds=((-2.0, 2.0), (-2.0, 2.0)))
    result = planner.plan((-1.0, 1.0, 0.0, 0.0), (1.0, 1.0))
    assert result.status == "feasible", result.reasons
    assert result.best[:, 1].min() < -1


def test_a_ball_stays_inside_the_bounds():
    a_ball_stays_inside_the_bounds()


def test_the_oracle_agrees_with_the_visibility_graph():
    """Another algorithm of this package, exact for mazes: within half a percent and never shorter."""
    from boltzmix.planners.environments.layout import MazeLayout

    maze = MazeLayout.centred(["#####", "#   #", "### #", "#   #", "#####"], scale=1.0, radius=0.1)
    surroundings = Surroundings(maze.walls, maze.radius, maze.bounds)
    for start, goal in (((-1.0, -1.0), (-1.0, 1.0)), ((-0.7, -1.2), (0.9, 1.1))):
        exact, _ = maze.shortest_path(start, goal)
        path = route(points(start)[0], points(goal)[0], surroundings)
        assert path is not None
        assert exact - 1e-6 <= float(length(path)) <= 1.005 * exact


def test_pulling_taut_never_lengthens_and_keeps_the_ends():
    surroundings = Surroundings((DISC,), 0.0, BOUNDS)
    detour = points((-1.0, 0.0), (-1.0, 1.5), (1.0, 1.5), (1.0, 0.0))
    taut = shorten(detour, surroundings)
    assert surroundings.path_is_clear(taut)
    assert torch.equal(taut[[0, -1]], detour[[0, -1]])
    assert float(length(taut)) < 0.6 * float(length(detour))
    spread = resample(detour, 20)
    assert float(length(spread)) == pytest.approx(float(length(detour)), rel=1e-12)


# ----------------------------------------------------------------------------------------------------------- timing


def the_trapezoid_takes_its_analytic_time():
    """L/v + v/a where the top speed is reached, 2 √(L/a) where it is not; positions integrate the velocities."""
    line = points((0.0, 0.0), (3.0, 4.0))
    assert arrival(line, 2.0, 1.0) == pytest.approx(5 / 2 + 2 / 1, rel=1e-3)
    assert arrival(line, 9.0, 1.0) == pytest.approx(2 * math.sqrt(5), rel=1e-3)
    positions, velocities = timed(line, 400, 0.02, speed=2.0, acceleration=1.0)
    speeds = velocities.norm(dim=-1)
    assert float(speeds.max()) <= 2.0 + 1e-9
    assert float(speeds.diff().abs().max() / 0.02) <= 1.0 + 1e-6
    torch.testing.assert_close(positions[-1], line[-1])
    assert float(speeds[-1]) == 0.0
    middle = (velocities[1:] + velocities[:-1]) / 2
    torch.testing.assert_close(positions.diff(dim=0) / 0.02, middle, atol=0.02, rtol=0)


def test_the_trapezoid_takes_its_analytic_time():
    the_trapezoid_takes_its_analytic_time()


def corners_are_taken_at_the_speed_of_their_arc():
    """A right angle that may be cut by c: v² = a c cos 45° / (1 − cos 45°)."""
    bend = points((0.0, 0.0), (4.0, 0.0), (4.0, 4.0))
    positions, velocities = timed(bend, 2000, 0.005, speed=5.0, acceleration=1.0, cut=0.05)
    at = int((positions - bend[1]).norm(dim=-1).argmin())
    expected = math.sqrt(0.05 * math.cos(math.pi / 4) / (1 - math.cos(math.pi / 4)))
    assert float(velocities[at].norm()) == pytest.approx(expected, rel=0.05)


def test_corners_are_taken_at_the_speed_of_their_arc():
    corners_are_taken_at_the_speed_of_their_arc()


def test_without_limits_a_path_fills_the_horizon_from_rest_to_rest():
    positions, velocities = timed(points((0.0, 0.0), (1.0, 0.0)), 11, 0.1)
    assert float(positions[5, 0]) == pytest.approx(0.5)
    assert float(velocities[5, 0]) == pytest.approx(15 / 8)
    assert velocities[[0, -1]].abs().max() < 1e-9
    with pytest.raises(ValueError, match="both speed= and acceleration="):
        timed(points((0.0, 0.0), (1.0, 0.0)), 11, 0.1, speed=1.0)


# ------------------------------------------------------------------------------------------- straight and geometric


@pytest.mark.parametrize("kind", [StraightLine, BreadthFirst, GradientPlanner])
def test_a_convex_free_space_has_a_straight_plan(kind):
    outside = Disc(0.0, 1.5, 0.3)  # which leaves the segment and its surroundings free
    result = kind(SPACE, obstacles=(outside,), radius=0.1).plan(START, (1.0, 0.5), seed=0)
    assert result.status == "feasible", result.reasons
    best = result.best[:, :2]
    away = (best - [-1.0, 0.0]) @ np.array([-0.5, 2.0]) / math.hypot(0.5, 2.0)
    assert np.abs(away).max() < 1e-6
    assert result.path_lengths[0] == pytest.approx(math.hypot(2.0, 0.5), rel=1e-6)


def test_the_straight_line_goes_through_walls_and_is_told_so():
    result = StraightLine(SPACE, obstacles=(DISC,)).plan(START, GOAL)
    assert result.status == "infeasible"
    assert any(reason.startswith("collision") for reason in result.reasons)
    assert result.evaluations == 1


def test_breadth_first_goes_around_and_says_when_there_is_no_way():
    result = BreadthFirst(SPACE, obstacles=(DISC,), radius=0.05, speed=1.0, acceleration=2.0).plan(START, GOAL)
    assert result.status == "feasible", result.reasons
    walled = tuple(Box(*sides) for sides in ((0.7, -0.4, 1.3, -0.3), (0.7, 0.3, 1.3, 0.4), (0.6, -0.4, 0.7, 0.4),
                                             (1.3, -0.4, 1.4, 0.4)))  # fmt: skip
    shut = BreadthFirst(SPACE, obstacles=walled).plan(START, GOAL)
    assert shut.status == "infeasible"
    assert len(shut) == 0
    assert shut.reasons[0].startswith("goal: no route")
    assert shut.evaluations > 1000


def test_a_route_near_a_wall_gives_up_its_margin_before_it_gives_up():
    near = (-1.0, DISC.y, 0.0, 0.0)
    ball = Disc(-1.0, DISC.y + 0.12, 0.1)  # 0.02 from the start
    result = BreadthFirst(SPACE, obstacles=(ball,), margin=0.05).plan(near, GOAL)
    assert result.status == "feasible", result.reasons
    assert margins(0.08) == [0.08, 0.04, 0.02, 0.01, 0.005, 0.0]


@pytest.mark.parametrize("kind", [BreadthFirst, OMPL])
def test_planners_in_space_refuse_what_moves(kind):
    with pytest.raises(ValueError, match="obstacles move"):
        kind(SPACE, obstacles=(Moving(DISC, velocity=(0.1, 0.0)),)).plan(START, GOAL)


def test_what_was_asked_is_checked():
    planner = StraightLine(SPACE)
    with pytest.raises(NonFinite):
        planner.plan((float("nan"), 0.0, 0.0, 0.0), GOAL)
    with pytest.raises(ValueError, match="outside of the bounds"):
        planner.plan(START, (9.0, 0.0))
    with pytest.raises(ValueError, match="shape"):
        planner.plan((1.0, 2.0, 3.0), GOAL)
    with pytest.raises(ValueError, match="between two points"):
        planner.plan(START)
    for wrong in ({"n": 0}, {"budget_ms": 0}, {"init": torch.zeros(3, 6)}):
        with pytest.raises(ValueError):
            planner.plan(START, GOAL, **wrong)


# ----------------------------------------------------------------------------------------------------- action search

STEPS = 8
TWIN = TrajectorySpace(STEPS + 1, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.1)
A = np.block([[np.eye(2), 0.1 * np.eye(2)], [np.zeros((2, 2)), np.eye(2)]])
B = np.vstack([0.005 * np.eye(2), 0.1 * np.eye(2)])
Q = np.diag([5.0, 5.0, 1.0, 1.0])
X0 = torch.tensor([1.0, -0.5, 0.3, 0.2], dtype=torch.float64)


def riccati(r):
    """The least cost Σ_{t=1}^T xᵀ Q x + Σ uᵀ R u from X0, and its actions, by the backward recursion."""
    value, gains = Q.copy(), []
    for _ in range(STEPS):
        gain = np.linalg.solve(r + B.T @ value @ B, B.T @ value @ A)
        gains.append(gain)
        value = Q + A.T @ value @ (A - B @ gain)
    x, actions = X0.numpy(), []
    for gain in reversed(gains):
        actions.append(-gain @ x)
        x = A @ x + B @ actions[-1]
    return float(X0.numpy() @ (value - Q) @ X0.numpy()), np.array(actions)


def quadratic(effort):
    """Σ_{t≥1} xᵀ Q x + effort Σ |u|²."""
    weight = torch.from_numpy(Q)

    def cost(states, actions):
        late = states[:, 1:]
        return torch.einsum("nti,ij,ntj->n", late, weight, late) + effort * actions.square().sum((1, 2))

    return cost


def test_riccati_is_the_minimum():
    best, actions = riccati(0.05 * np.eye(2))
    sequences = torch.from_numpy(actions)[None]
    cost = Rollouts(double_integrator, quadratic(0.05), X0)
    assert float(cost(sequences)) == pytest.approx(best, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    others = sequences + 0.1 * torch.randn(100, STEPS, 2, generator=generator, dtype=torch.float64)
    assert bool((cost(others) > best).all())


def cem_reaches_the_regulator():
    """Within a ten-thousandth of Riccati's cost, from zero; 20 seeds come within a millionth."""
    best, _ = riccati(0.05 * np.eye(2))
    planner = CEM(TWIN, dynamics=double_integrator, low=(-20, -20), high=(20, 20), cost=quadratic(0.05), iterations=40,
                  correlation=0.0)  # fmt: skip
    rollouts = Rollouts(double_integrator, quadratic(0.05), X0)
    mean = torch.zeros(STEPS, 2, dtype=torch.float64)
    found = planner.search(rollouts, mean, torch.Generator().manual_seed(0))
    assert best <= float(rollouts(found[None])) <= 1.0001 * best


def test_cem_reaches_the_regulator():
    cem_reaches_the_regulator()


def mppi_settles_on_the_regulator_of_its_noise(correlation=0.0):
    """With J = Σ xᵀ Q x alone, R = λ Σ⁻¹ / 2 comes from the noise: the mean of e^(−J/λ) N(0, Σ).

    The last iterations' mean is compared with the exact mean, in units of the prior's standard deviation: 0.02, where
    20 seeds of this setting stay below 0.006.
    """
    temperature, deviation = 2.0, 2.0
    lag = torch.arange(STEPS).double()
    gram = deviation**2 * correlation ** (lag[:, None] - lag).abs() if correlation else deviation**2 * torch.eye(STEPS)
    states = Rollouts(double_integrator, quadratic(0.0), X0)
    # J is quadratic in u: its Hessian and gradient at zero, by autograd
    flat = torch.zeros(2 * STEPS, dtype=torch.float64)
    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(lambda u: states(u.reshape(1, STEPS, 2)).sum(), flat)
        slope = torch.autograd.functional.jacobian(lambda u: states(u.reshape(1, STEPS, 2)).sum(), flat)
    precision = torch.kron(torch.linalg.inv(gram.double()).contiguous(), torch.eye(2, dtype=torch.float64))
    exact = torch.linalg.solve(hessian / temperature + precision, -slope / temperature).reshape(STEPS, 2)
    if not correlation:
        np.testing.assert_allclose(exact, riccati(temperature / deviation**2 / 2 * np.eye(2))[1], atol=1e-9)
    planner = MPPI(TWIN, dynamics=double_integrator, low=(-40, -40), high=(40, 40), cost=quadratic(0.0), samples=4096,
                   iterations=1, temperature=temperature, spread=deviation / 40, correlation=correlation)  # fmt: skip
    rollouts = Rollouts(double_integrator, quadratic(0.0), X0)
    generator, mean, total = torch.Generator().manual_seed(0), torch.zeros(STEPS, 2, dtype=torch.float64), 0.0
    for k in range(40):
        mean = planner.search(rollouts, mean, generator)
        total = total + mean if k >= 10 else 0.0
    assert float(((total / 30 - exact) / deviation).square().mean().sqrt()) < 0.02


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_mppi_settles_on_the_regulator_of_its_noise(correlation):
    mppi_settles_on_the_regulator_of_its_noise(correlation)


def weights_halve_for_each_temperature_times_log_two():
    costs = 3.0 * math.log(2) * torch.tensor([5.0, 6.0, 7.0, math.inf], dtype=torch.float64)
    assert weights(costs, 3.0).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0.0])


def test_weights_halve_for_each_temperature_times_log_two():
    weights_halve_for_each_temperature_times_log_two()


def test_mppi_is_pytorch_mppi():
    """Iteration by iteration the same mean, where both draw the same normal numbers, clipped actions included."""
    other = pytest.importorskip("pytorch_mppi")
    low, high = torch.full((2,), -1.0, dtype=torch.float64), torch.full((2,), 1.0, dtype=torch.float64)
    cost = quadratic(0.05)
    theirs = other.MPPI(
        double_integrator,
        lambda x, u: cost(torch.stack([x, x], dim=1), u[:, None]),
        4,
        0.25 * torch.eye(2, dtype=torch.float64),
        num_samples=64,
        horizon=STEPS,
        lambda_=0.7,
        u_min=low,
        u_max=high,
        U_init=0.3 * torch.ones(STEPS, 2, dtype=torch.float64),
    )
    ours = MPPI(TWIN, dynamics=double_integrator, low=(-1, -1), high=(1, 1), samples=64, iterations=1, temperature=0.7,
                spread=0.5, correlation=0.0)  # fmt: skip
    rollouts = Rollouts(double_integrator, cost, X0)
    generator, mean = torch.Generator().manual_seed(5), 0.3 * torch.ones(STEPS, 2, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(4):
            mean = ours.search(rollouts, mean, generator)
            theirs.command(X0, shift_nominal_trajectory=False)
            torch.testing.assert_close(mean, theirs.get_action_sequence(), atol=1e-10, rtol=0)


def noise_is_stationary_and_whitened_by_its_inverse():
    """Variance 1 at every step and correlation ρ between neighbours, within 5 standard errors of 20 000 draws."""
    generator = torch.Generator().manual_seed(0)
    drawn = noise(20_000, torch.zeros(6, 2, dtype=torch.float64), 0.7, generator)
    error = 5 * math.sqrt(2 / 20_000)
    assert bool((drawn.var(0) - 1).abs().max() < error)
    assert float(((drawn[:, 1:] * drawn[:, :-1]).mean(0) - 0.7).abs().max()) < error
    lag = torch.arange(6).double()
    precision = torch.linalg.inv(0.7 ** (lag[:, None] - lag).abs())
    a, b = drawn[0], drawn[1]
    inner = (whiten(a, 0.7) * whiten(b, 0.7)).sum()
    torch.testing.assert_close(inner, torch.einsum("ti,ts,si->", a, precision, b))


def test_noise_is_stationary_and_whitened_by_its_inverse():
    noise_is_stationary_and_whitened_by_its_inverse()


def depth_is_seen_between_tokens():
    """A ball that passes through a disc between two tokens: relu(margin + radius − d) along the segment, in time."""
    planner = CEM(SPACE, dynamics=double_integrator, low=(-1, -1), high=(1, 1), obstacles=(Disc(0.0, 0.0, 0.2),),
                  radius=0.1, margin=0.05)  # fmt: skip
    path = points((-1.0, 0.0), (1.0, 0.0), (1.5, 0.0))[None]
    depth = penetration(path, question_of(planner), 0.05)[0]
    assert float(depth.max()) == pytest.approx(0.35)
    assert float(depth[-4:].max()) == 0.0
    moving = CEM(SPACE, dynamics=double_integrator, low=(-1, -1), high=(1, 1),
                 obstacles=(Moving(Disc(0.0, 0.0, 0.2), velocity=(0.0, 8.0)),))  # fmt: skip
    assert float(penetration(path, question_of(moving), 0.0).max()) == 0.0


def test_depth_is_seen_between_tokens():
    depth_is_seen_between_tokens()


def model_steps_are_counted(kind):
    called = 0

    def counting(states, actions):
        nonlocal called
        called += len(states)
        return double_integrator(states, actions)

    settings = {"dynamics": counting, "low": (-1, -1), "high": (1, 1), "obstacles": (DISC,)}
    planner = kind(SPACE, samples=64, iterations=3, **({"elites": 8} if kind is CEM else {}), **settings)
    result = planner.plan(START, GOAL, n=2, seed=3)
    assert result.evaluations == called
    assert len(result) == 2
    again = planner.plan(START, GOAL, n=2, seed=3)
    np.testing.assert_array_equal(result.trajectories, again.trajectories)
    other = planner.plan(START, GOAL, n=2, seed=4)
    assert not np.array_equal(result.trajectories, other.trajectories)


@pytest.mark.parametrize("kind", [CEM, MPPI])
def test_model_steps_are_counted(kind):
    model_steps_are_counted(kind)


@pytest.mark.parametrize("kind", [CEM, MPPI])
def test_action_search_follows_its_model_and_avoids(kind):
    planner = kind(SPACE, dynamics=double_integrator, low=(-1, -1), high=(1, 1), obstacles=(DISC,))
    result = planner.plan(START, GOAL, seed=0)
    plan = torch.from_numpy(result.best)
    torch.testing.assert_close(double_integrator(plan[:-1, :4], plan[:-1, 4:]), plan[1:, :4])
    assert result.violations["collision"][0] == 0
    assert np.linalg.norm(result.best[-1, :2] - GOAL) < 0.35
    assert np.abs(result.best[:, 4:]).max() <= 1
    warm = planner.plan(START, GOAL, seed=1, init=result)
    assert warm.info["cost"][0] <= 1.1 * result.info["cost"][0]


def test_action_search_weighs_tasks():
    up = Reward(lambda tau: tau[..., 1].mean(-1)) ** 200.0
    planner = CEM(SPACE, dynamics=double_integrator, low=(-1, -1), high=(1, 1), iterations=10)
    plain, raised = planner.plan(START, GOAL, seed=0), planner.plan(START, GOAL, (up,), seed=0)
    assert raised.best[:, 1].mean() > plain.best[:, 1].mean() + 0.3


def test_action_search_says_what_is_wrong():
    with pytest.raises(ValueError, match="low < high"):
        CEM(SPACE, dynamics=double_integrator, low=(1, 1), high=(-1, -1))
    with pytest.raises(ValueError, match="returns states"):
        CEM(SPACE, dynamics=lambda s, a: s[:, :2], low=(-1, -1), high=(1, 1)).plan(START, GOAL)
    with pytest.raises(FloatingPointError, match="NaN"):
        MPPI(SPACE, dynamics=lambda s, a: s * math.nan, low=(-1, -1), high=(1, 1)).plan(START, GOAL)
    with pytest.raises(FloatingPointError, match="inf"):
        weights(torch.full((4,), math.inf), 1.0)
    with pytest.raises(ValueError, match="elites"):
        CEM(SPACE, dynamics=double_integrator, low=(-1, -1), high=(1, 1), elites=400)


# --------------------------------------------------------------------------------------------------------- gradient


def around(radius, offset):
    """The shortest path from (−1, 0) to (1, 0) around a disc of this radius whose centre lies ``offset`` above."""
    away = math.hypot(1.0, offset)
    turned = math.pi - 2 * math.atan2(offset, 1.0)  # the angle between the ends, seen from the centre, below it
    return 2 * math.sqrt(away**2 - radius**2) + radius * (turned - 2 * math.acos(radius / away))


def the_gradient_planner_leaves_the_disc(order=1):
    planner = GradientPlanner(SPACE, obstacles=(DISC,), order=order, margin=0.1)
    result = planner.plan(START, GOAL, seed=0)
    assert result.status == "feasible", result.reasons
    shortest = around(DISC.radius, DISC.y)
    assert shortest <= result.path_lengths[0] <= 1.05 * around(DISC.radius + 0.1, DISC.y)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_planner_leaves_the_disc(order):
    the_gradient_planner_leaves_the_disc(order)


def a_symmetric_obstacle_is_left_on_either_side():
    """From the line through the middle of a disc there is no downhill to a side; draws of the prior find both."""
    planner = GradientPlanner(SPACE, obstacles=(Disc(0.0, 0.0, 0.5),), restarts=12)
    result = planner.plan(START, GOAL, n=12, seed=0)
    assert result.status == "feasible", result.reasons
    sides = {float(np.sign(plan[24, 1])) for plan in result.trajectories[result.feasible]}
    assert sides == {-1.0, 1.0}


def test_a_symmetric_obstacle_is_left_on_either_side():
    a_symmetric_obstacle_is_left_on_either_side()


def the_prior_is_the_hessian_of_smoothness():
    for order in (1, 2):
        ends = torch.zeros(2, dtype=torch.float64)

        def energy(inner, order=order, ends=ends):
            path = torch.cat([ends[:1], inner, ends[1:]])
            return smoothness(torch.stack([path, 0 * path], dim=-1)[None], order)[0]

        with torch.enable_grad():
            hessian = torch.autograd.functional.hessian(energy, torch.zeros(5, dtype=torch.float64))
        torch.testing.assert_close(prior_precision(7, order), hessian)
    line = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * points((3.0, 4.0))
    assert float(smoothness(line[None], 1)) == pytest.approx(12.5)
    assert float(smoothness(line[None], 2)) == pytest.approx(0.0)


def test_the_prior_is_the_hessian_of_smoothness():
    the_prior_is_the_hessian_of_smoothness()


def the_first_step_without_obstacles_is_the_last():
    """A covariant step of size 1 ends at the minimum of a quadratic."""
    planner = GradientPlanner(SPACE, iterations=2, restarts=3)
    result = planner.plan(START, GOAL, n=3, seed=0)
    line = np.linspace([-1.0, 0.0], [1.0, 0.0], SPACE.horizon)
    np.testing.assert_allclose(result.trajectories[..., :2], np.broadcast_to(line, (3, SPACE.horizon, 2)), atol=1e-9)


def test_the_first_step_without_obstacles_is_the_last():
    the_first_step_without_obstacles_is_the_last()


def the_obstacle_cost_is_per_length():
    """The same path in twice the tokens, or at an uneven speed, costs the same: ∫ c ds."""
    planner, costs = GradientPlanner(SPACE, obstacles=(DISC,)), []
    for share in (torch.linspace(0, 1, 200), torch.linspace(0, 1, 400), torch.linspace(0, 1, 400) ** 2):
        question = question_of(planner)
        path = share.double()[:, None] * points((2.0, 0.0)) - points((1.0, 0.0))
        costs.append(float(planner._obstacle_cost(path[None], question)))
    exact = float(hinge(DISC.distance(points(*[(x, 0.0) for x in np.linspace(-1, 1, 20_001)])), 0.1).mean() * 2)
    np.testing.assert_allclose(costs, exact, rtol=2e-3)


def question_of(planner):
    """What its search would see."""
    from boltzmix.planners.baselines.base import Question
    from boltzmix.planners.problem import pose

    problem = pose(planner.space, START, GOAL, (), obstacles=planner.obstacles, radius=planner.radius)
    generator = torch.Generator().manual_seed(0)
    return Question(problem, points(START)[0], points(GOAL)[0], 1, generator, math.inf, None)


def test_the_obstacle_cost_is_per_length():
    the_obstacle_cost_is_per_length()


def test_the_hinge_is_smooth():
    with torch.enable_grad():
        at = torch.tensor([-0.3, -1e-9, 1e-9, 0.05, 0.1 - 1e-9, 0.1 + 1e-9, math.inf], dtype=torch.float64)
        at.requires_grad_(True)
        cost = hinge(at, 0.1)
        (slope,) = torch.autograd.grad(cost.sum(), at)
    torch.testing.assert_close(cost[1:5:3] + 0, torch.tensor([0.05, 0.0], dtype=torch.float64), atol=1e-8, rtol=0)
    expected = torch.tensor([-1.0, -1.0, -1.0, -0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, atol=1e-7, rtol=0)


def test_the_gradient_planner_sees_obstacles_move():
    """A disc that leaves before the path arrives is no reason for a detour."""
    leaving = Moving(Disc(0.0, 0.0, 0.4), velocity=(0.0, 1.5))
    result = GradientPlanner(SPACE, obstacles=(leaving,), bounds=((-9, 9), (-9, 9))).plan(START, GOAL, seed=0)
    assert result.status == "feasible", result.reasons
    assert result.path_lengths[0] < 2.02


def test_obstacles_have_moved_by_the_clock():
    """A disc that comes after the plan of 4.7 seconds stands in the way of one that begins then."""
    coming = Moving(Disc(0.0, 0.0, 0.4), waypoints=[(5.0, 0.0, 9.0), (7.0, 0.0, 0.0)])
    planner = StraightLine(SPACE, obstacles=(coming,))
    assert planner.plan(START, GOAL).status == "feasible"
    assert planner.plan(START, GOAL, clock=7.0).status == "infeasible"
    assert StraightLine(SPACE).plan(START, GOAL, [Avoid(coming)], clock=7.0).status == "infeasible"


# -------------------------------------------------------------------------------------------------------------- OMPL


@pytest.mark.parametrize("method", ["RRTConnect", "RRTstar", "BITstar"])
def test_ompl_paths_are_free_and_repeat(method):
    pytest.importorskip("ompl")
    checks = 10_000
    planner = OMPL(SPACE, obstacles=CLUTTER, radius=0.1, method=method, checks=checks, speed=1.0, acceleration=2.0)
    for goal in ((1.5, 0.9), (-1.6, -1.2)):
        result = planner.plan((1.5, -1.5, 0.0, 0.0), goal, seed=1)
        assert result.status == "feasible", result.reasons
        (path,) = result.info["paths"]
        space = TrajectorySpace(len(path), ("x", "y"))
        assert check(path, space, CLUTTER, radius=0.1, start=(1.5, -1.5), goal=goal).feasible.all()
        assert result.evaluations <= 4 * checks  # an edge in hand is finished, and simplifying adds
        np.testing.assert_array_equal(planner.plan((1.5, -1.5, 0.0, 0.0), goal, seed=1).best, result.best)


def the_table_of_validity_is_exact():
    surroundings = Surroundings(CLUTTER, 0.1, BOUNDS, 0.008)
    valid = Validity(surroundings)
    spots = 4.4 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2.2
    expected = surroundings.free(spots).tolist()
    assert [valid(x, y) for x, y in spots.tolist()] == expected
    assert valid.count == 4000
    assert 400 < sum(expected) < 3600


def test_the_table_of_validity_is_exact():
    the_table_of_validity_is_exact()


def test_ompl_says_when_it_found_nothing():
    pytest.importorskip("ompl")
    wall = Box(-0.1, -3.0, 0.1, 3.0)
    result = OMPL(SPACE, obstacles=(wall,), checks=500).plan(START, GOAL, seed=0)
    assert result.status == "infeasible"
    assert "RRTConnect found no path" in result.reasons[0]


def test_ompl_asks_for_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ompl", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[ompl\]"'):
        OMPL(SPACE).plan(START, GOAL)
    with pytest.raises(ValueError, match="method is one of"):
        OMPL(SPACE, method="PRM")


# ------------------------------------------------------------------------------------------------ behaviour cloning


def demonstrations(seed=0):
    """Episodes of a linear controller with noise in its state, a = K (goal − x)."""
    generator = torch.Generator().manual_seed(seed)
    states, actions, goals, ends = [], [], [], []
    for _ in range(40):
        goal, x = (2 * torch.rand(2, generator=generator) - 1 for _ in range(2))
        for _ in range(20):
            action = 0.5 * (goal - x)
            states.append(x)
            actions.append(action)
            goals.append(goal)
            x = x + 0.3 * action + 0.02 * torch.randn(2, generator=generator)
        ends.append(len(states))
    return torch.stack(states), torch.stack(actions), torch.stack(goals), ends


def chunks_stay_in_their_episode():
    states = torch.arange(7.0)[:, None]
    observations, found = chunks(states, 10 * states, 0 * states, [3, 7], 3)
    expected = [[0, 10, 20], [10, 20, 20], [20, 20, 20], [30, 40, 50], [40, 50, 60], [50, 60, 60], [60, 60, 60]]
    assert found[..., 0].tolist() == expected
    assert observations.shape == (7, 2)


def test_chunks_stay_in_their_episode():
    chunks_stay_in_their_episode()
    with pytest.raises(ValueError, match="last end"):
        chunks(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1), [3], 2)


def cloning_repeats_its_demonstrations():
    """A controller that is linear is learnt to a few per cent of its actions' spread, in any units."""
    states, actions, goals, ends = demonstrations()
    observations, targets = chunks(1000 * states, actions, 1000 * goals, ends, 2)
    policy = BehaviourCloning.fit(observations, targets, chunk=2, width=64, layers=2, steps=600, batch=256,
                                  learning_rate=3e-3, seed=0)  # fmt: skip
    predicted = torch.stack([policy.chunk_for(row) for row in observations[::40]])
    error = (predicted[:, 0] - targets[::40, 0]).square().mean().sqrt()
    assert float(error / actions.std()) < 0.05


def test_cloning_repeats_its_demonstrations():
    cloning_repeats_its_demonstrations()


def test_a_cloned_policy_executes_its_chunk_and_checks_what_it_sees():
    states, actions, goals, ends = demonstrations()
    observations, targets = chunks(states, actions, goals, ends, 4)
    settings = {"chunk": 4, "width": 16, "layers": 1, "steps": 20, "seed": 0}
    policy = BehaviourCloning.fit(observations, targets, execute=3, low=(-0.1, -0.1), high=(0.1, 0.1), **settings)
    policy.reset(seed=0)
    seen = {"observation": np.array([0.2, 0.1]), "desired_goal": np.array([5.0, -5.0]), "achieved_goal": np.zeros(2)}
    taken = np.stack([policy.act(seen) for _ in range(7)])
    assert policy.evaluations == 3
    assert np.abs(taken).max() <= 0.1 + 1e-7
    np.testing.assert_array_equal(taken[:3], policy.chunk_for(seen)[:3].numpy())
    np.testing.assert_array_equal(taken[:3], taken[3:6])
    assert flatten_observation(seen).tolist() == [0.2, 0.1, 5.0, -5.0]
    with pytest.raises(ValueError, match="not finite"):
        policy.chunk_for(np.array([math.nan, 0, 0, 0]))
    with pytest.raises(ValueError, match="4 numbers"):
        policy.chunk_for(np.zeros(3))
    with pytest.raises(ValueError, match="missing"):
        flatten_observation({"observation": np.zeros(2)})
    twin = BehaviourCloning.fit(observations, targets, **settings)
    assert torch.equal(
        twin.chunk_for(np.zeros(4)), BehaviourCloning.fit(observations, targets, **settings).chunk_for(np.zeros(4))
    )


# --------------------------------------------------------------------------------------------------- equal evaluations


SMALL = TrajectorySpace(12, ("x", "y"), dt=0.2, bounds=BOUNDS)


def corrected_planner(rows=None):
    """A planner with two Langevin corrections at each of six levels; ``rows`` collects what its prior is asked."""

    def score(x, sigma):
        if rows is not None:
            rows.append(len(x))
        return -x / (0.5 + sigma.reshape(-1, 1, 1) ** 2)

    prior = term(score, kind="score", event_shape=SMALL.shape, path="noised")
    sampler = Reverse(steps=6, solver="ddim", corrector=ULA(0.05), corrections=2)
    return Planner(prior, SMALL, sampler=sampler, obstacles=(Disc(0.0, 0.0, 0.3),), candidates=8)


def equal_evaluations_are_not_exceeded():
    """E is what the corrected planner counted; the others spend at most that, and nearly all of it.

    What is counted is what the prior was asked.
    """
    rows = []
    planner = corrected_planner(rows)
    asked = planner.plan((-1.0, 0.0), GOAL, seed=0).evaluations
    assert asked == sum(rows)
    for other in (
        GuidanceOnly(planner, asked),
        BestOfN(planner, evaluations=asked),
        BestOfN(planner, evaluations=asked, guided=True),
    ):
        rows.clear()
        result = other.plan((-1.0, 0.0), GOAL, seed=0)
        assert 0.8 * asked <= result.evaluations <= asked, type(other).__name__
        assert result.evaluations == sum(rows)
        assert result.info["asked"] == asked


def test_equal_evaluations_are_not_exceeded():
    equal_evaluations_are_not_exceeded()


def best_of_n_is_judged_with_the_obstacles_it_did_not_see():
    planner = corrected_planner()
    blind = BestOfN(planner, 64)
    result = blind.plan((-1.0, 0.0), GOAL, seed=0)
    assert "collision" in result.violations
    assert len(result) == 64
    report = check(result.trajectories, SMALL, planner.obstacles, start=(-1.0, 0.0), goal=GOAL)
    np.testing.assert_array_equal(report.feasible, result.feasible)
    assert result.feasible[0] == result.feasible.any()
    assert not blind.planner.obstacles
    assert planner.obstacles  # the planner itself is as it was


def test_best_of_n_is_judged_with_the_obstacles_it_did_not_see():
    best_of_n_is_judged_with_the_obstacles_it_did_not_see()


def test_guidance_only_has_no_corrector_and_more_levels():
    planner = corrected_planner()
    assert GuidanceOnly(planner).planner.sampler == Reverse(steps=6, solver="ddim")
    assert GuidanceOnly(planner, 160).planner.sampler.steps == 20
    assert planner.sampler.corrector is not None
    with pytest.raises(ValueError, match="fewer than two levels"):
        GuidanceOnly(planner, 8)
    with pytest.raises(ValueError, match="one of the two"):
        BestOfN(planner)
    with pytest.raises(ValueError, match="at least one plan"):
        BestOfN(planner, evaluations=3)
    with pytest.raises(ValueError, match="more than"):
        BestOfN(planner, 4).plan((-1.0, 0.0), GOAL, n=5)
