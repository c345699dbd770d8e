"""Errors in trajectory spaces, obstacles, tasks and the checker: each is noticed."""

import pytest
import torch

from boltzmix.planners import Avoid, Box, Disc, Moving, Polygon, TrajectorySpace, check
from tests.mutations.harness import Mutation, law, verify
from tests.planners import (
    test_checker,
    test_obstacles,
    test_space,
    test_tasks_avoid,
    test_tasks_contract,
    test_tasks_soft,
)

SPACE, CHECKER, CLEARANCE, SHAPES, FIELDS, MOVING = (
    f"boltzmix.planners.{m}"
    for m in ("space", "checker", "clearance", "obstacles.shapes", "obstacles.field", "obstacles.moving")
)
BASE, CLAMPED, AVOID, NEAREST, LIMITS, REWARDS, SMOOTH = (
    f"boltzmix.planners.tasks.{m}" for m in ("base", "clamped", "avoid", "nearest", "limits", "rewards", "smooth")
)

PLANE = TrajectorySpace(6, ("x", "y"), dt=0.2)


def signed(name):
    return law(test_obstacles.test_distances_are_those_to_the_outline_with_the_sign_of_its_winding, name)


def dense(name):
    """The checker against 400 places on each of a few segments, which is enough for an error and quick."""

    def run():
        obstacle, tau = test_checker.OBSTACLES[name], test_checker.ways(12, seed=3)
        found = torch.from_numpy(check(tau, PLANE, [obstacle]).clearance)
        brute = torch.from_numpy(test_checker.brute(obstacle, tau, PLANE.dt, 401))
        assert bool((found <= brute + 1e-9).all())
        assert float((brute - found).max()) < 0.012

    return law(run)


def known(row):
    """One of the clearances known by hand."""
    ways = test_checker.test_clearances_known_by_hand.pytestmark[0].args[1]
    return law(test_checker.test_clearances_known_by_hand, *ways[row])


def contract(check_, *names):
    """A check of every task, for some of them."""

    def run():
        for name in names:
            check_(name)

    return law(run)


def avoided():
    """Deepest places of random segments, against the checker's formulas."""
    tau = test_tasks_avoid.ways(25, seed=4)
    for obstacle in (
        Disc(0.2, -0.1, 0.5),
        Box(-0.4, -0.6, 0.9, 0.2),
        Polygon(((-1, -1), (1, -1.2), (0.5, 0.7))),
        Moving(Box(0, 0, 0.3, 0.8), (-1.0, 0.4)),
        Polygon(((-1, -1), (1, -1.2), (0.5, 0.7))).inflated(0.2),
    ):
        deep = check(tau, PLANE, obstacle, radius=0.1).violations["collision"]
        found = Avoid(obstacle, 0.3, radius=0.1).violation(tau, PLANE)
        torch.testing.assert_close(found, torch.from_numpy(deep), atol=1e-4, rtol=0)


def margins():
    """Zero from radius + margin on, and positive before it."""
    for gap, positive in ((0.31, False), (0.29, True), (0.21, True)):
        tau = torch.tensor([[[-1.0, 0.5 + gap], [1.0, 0.5 + gap]]])
        energy = Avoid(Disc(0, 0, 0.5), 0.2, radius=0.1).energy(tau, TrajectorySpace(2, ("x", "y")))
        assert (float(energy) > 0) == positive


DEEPEST, MARGINS = law(avoided), law(margins)
THIN = law(test_tasks_avoid.test_a_wall_thinner_than_the_way_between_two_tokens_is_seen)
SWAP = law(test_tasks_avoid.test_one_that_moves_is_met_where_it_is_and_not_where_it_was)
SCORES = contract(
    test_tasks_contract.test_the_score_is_minus_the_gradient_of_the_energy, "avoid", "avoid moving", "reach any"
)
NOT_FINITE = contract(test_tasks_contract.test_plans_that_are_not_finite_have_no_finite_energy, "avoid", "bounds")
WEIGHTS = contract(test_tasks_contract.test_weights_multiply_energies_and_powers_of_powers_multiply, "bounds", "reach")
HINGE = law(test_tasks_avoid.test_the_hinge_is_zero_beyond_its_margin_and_its_slope_is_continuous, 0.1)
ALONE = contract(test_tasks_contract.test_each_plan_is_judged_by_itself, "avoid")
KNOWN = law(test_tasks_contract.test_start_goal_and_waypoint_fix_what_they_say_in_normalised_units)
PROCESS = [
    law(test_tasks_soft.test_smooth_with_a_mean_is_the_density_of_its_gaussian_process, kernel, "place")
    for kernel in ("rbf", "matern32", "matern52")
]
LINES = law(test_tasks_soft.test_smooth_about_an_unknown_line_is_the_limit_of_a_wide_prior_of_lines, "matern52")
SPACES = law(test_tasks_soft.test_one_smooth_serves_several_spaces)
STEPS = law(test_tasks_soft.test_dynamics_is_the_gaussian_of_its_steps)
OUTSIDE = law(test_tasks_soft.test_bounds_penalise_what_is_outside_by_its_distance)
ALONG = law(test_tasks_soft.test_reach_anywhere_looks_along_the_segments)
MEANS = law(test_tasks_soft.test_reach_anywhere_is_the_mean_of_densities_over_segments)
TOKEN = law(test_tasks_soft.test_reach_at_a_token_is_a_gaussian_there)
VALUE = law(test_tasks_soft.test_a_value_is_read_in_the_samplers_units_and_may_take_the_noise_level)
TILT = law(test_tasks_soft.test_a_linear_reward_shifts_a_gaussian_by_its_gradient)
ADOPTED = law(test_space.test_a_prior_of_other_units_is_exactly_that_density_here)
LEVELS = law(test_space.test_one_ratio_of_scales_keeps_the_noise_levels_exact)
FITTED = law(test_space.test_fitted_columns_have_mean_zero_and_variance_one_and_positions_share_their_scale)
ROUND = law(test_space.test_normalising_and_back_changes_nothing)
TOGETHER = law(test_checker.test_all_checks_together_and_each_broken_alone)
ROOM = law(test_checker.test_bounds_are_the_spaces_own_unless_said_otherwise_and_hold_the_whole_robot)
SPOILED = law(test_checker.test_numbers_that_are_not_finite_are_reported_and_spoil_nothing_else)
LATER = law(test_obstacles.test_a_later_clock_sees_a_later_obstacle, Moving(Disc(0, 0, 0.5), velocity=(1.0, -0.5)))
WAYPOINTS = law(test_obstacles.test_waypoints_are_joined_by_straight_ways_and_held_at_the_ends)
FIELD = law(test_obstacles.test_a_field_has_its_values_at_its_grid_points_and_means_between_them)


def refused(*vertices):
    def run():
        with pytest.raises(ValueError):
            Polygon(vertices)

    return run


SPACES_ROWS = [
    Mutation("units multiplied", SPACE, "return (tau - loc) / scale", "return (tau - loc) * scale", ROUND),
    Mutation("a location that is not scaled", SPACE, "(there - here) / unit for", "(there - here) for", ADOPTED),
    Mutation("ratios upside down", SPACE, "[there / here for", "[here / there for", ADOPTED),
    Mutation(
        "levels of another unit", SPACE, "like.new_tensor(ratios[0]) if one", "like.new_tensor(1.0) if one", LEVELS
    ),
    Mutation("positions of two scales", SPACE, "variance[places] = variance[places].mean()", "pass", FITTED),
    Mutation("a variance for a scale", SPACE, "torch.where(still, 1.0, variance.sqrt())", "variance + still", FITTED),
]

OBSTACLE_ROWS = [
    Mutation("a disc without radius", SHAPES, "dim=-1) - self.radius", "dim=-1)", signed("disc")),
    Mutation("no inside of a box", SHAPES, "outside + q.amax(-1).clamp(max=0.0)", "outside", signed("box")),
    Mutation("the nearer side of a box", SHAPES, "q.amax(-1)", "q.amin(-1)", signed("box")),
    Mutation(
        "city blocks",
        SHAPES,
        "torch.linalg.vector_norm(q.clamp(min=0.0), dim=-1)",
        "q.clamp(min=0.0).sum(-1)",
        signed("box"),
    ),
    Mutation(
        "lines instead of edges", SHAPES, ".clamp(0.0, 1.0)\n        nearest", "\n        nearest", signed("star")
    ),
    Mutation("an even number of crossings", SHAPES, "meets.sum(-1) % 2 == 1", "meets.sum(-1) >= 1", signed("star")),
    Mutation(
        "rays to both sides",
        SHAPES,
        "meets = spans & (",
        "meets = spans & ((points[..., None, 0] > -9) | ",
        signed("triangle"),
    ),
    Mutation(
        "cells the other way round",
        FIELDS,
        "values[i, j] * (1 - v) + values[i, j + 1] * v",
        "values[i, j] * v + values[i, j + 1] * (1 - v)",
        FIELD,
    ),
    Mutation("x for y", FIELDS, "u, v = u - i, v - j", "v, u = u - i, v - j", FIELD),
    Mutation(
        "it moves against its velocity", MOVING, "points - self.shift(time)", "points + self.shift(time)", WAYPOINTS
    ),
    Mutation(
        "motions go on after the last waypoint", MOVING, "- a[..., 0])).clamp(0.0, 1.0)", "- a[..., 0]))", WAYPOINTS
    ),
    Mutation("earlier for later", MOVING, "(t - seconds, x, y)", "(t + seconds, x, y)", LATER),
    Mutation(
        "crossings at a point are not seen",
        SHAPES,
        "    return any(\n",
        "    return False and any(\n",
        refused((0, 0), (4, 0), (4, 4), (2, 0), (0, 4)),
    ),
    Mutation(
        "edges may cross",
        SHAPES,
        "first[0] * first[1] < 0 and",
        "False and",
        refused((0, 0), (1, 1), (1, 0), (0, 1)),
    ),
    Mutation("edges may turn back", SHAPES, "== 0 and back > 0", "== 0 and back > 99", refused((0, 0), (4, 0), (2, 0))),
]

TASK_ROWS = [
    Mutation("a slope of two inside", BASE, "(short - margin).relu()", "2 * (short - margin).relu()", HINGE),
    Mutation("a jump at contact", BASE, "near.square() / (2 * margin)", "near.square() / margin", HINGE),
    Mutation(
        "weights that add", BASE, "self.exponent * as_exponent(weight)", "self.exponent + as_exponent(weight)", WEIGHTS
    ),
    Mutation("weights forgotten", BASE, "else term**self.exponent", "else term", WEIGHTS),
    Mutation(
        "tasks in normalised units",
        BASE,
        "tau = self.space.physical(x)",
        "tau = x",
        contract(test_tasks_contract.test_the_bound_term_is_the_task_at_the_physical_trajectory, "reach", "avoid"),
    ),
    Mutation("known values in metres", CLAMPED, "(value - space.loc[place]) / space.scale[place]", "value", KNOWN),
    Mutation("goals one token early", CLAMPED, "mask[token, place] = True", "mask[token - 1, place] = True", KNOWN),
    Mutation("margins inside the robot", AVOID, "self.radius + self.margin)", "self.margin)", MARGINS),
    Mutation("no radius", AVOID, "hinge(distance - self.radius, self.margin)", "hinge(distance, self.margin)", MARGINS),
    Mutation(
        "the shallowest place", AVOID, 'self.radius - distance, "amax")', 'self.radius - distance, "sum")', DEEPEST
    ),
    Mutation("obstacles that stand where they started", NEAREST, "start - self.shift(segments.begins)", "start", SWAP),
    Mutation(
        "the end of a segment at its beginning's time",
        NEAREST,
        "self.shift(segments.ends)",
        "self.shift(segments.begins)",
        DEEPEST,
    ),
    Mutation(
        "circles that are too small",
        NEAREST,
        "math.hypot(x_high - x_low, y_high - y_low) / 2",
        "math.hypot(x_high - x_low, y_high - y_low) / 4",
        DEEPEST,
    ),
    Mutation("circles without the margin", NEAREST, "(reaches + within).square()", "reaches.square()", MARGINS),
    Mutation(
        "NaN is far away",
        NEAREST,
        "row, segment, member = (~far).nonzero(as_tuple=True)",
        "row, segment, member = ((gap * gap).sum(-1) < (reaches + within).square()).nonzero(as_tuple=True)",
        NOT_FINITE,
    ),
    Mutation(
        "corners only", NEAREST, "return torch.cat([ends, near, turns,", "return torch.cat([ends, near, near,", DEEPEST
    ),
    Mutation("no diagonals of a box", NEAREST, "(gap - sides) / slopes, (-gap - sides) / slopes]", "turns]", DEEPEST),
    Mutation(
        "ends alone", NEAREST, "return torch.cat([ends, near, turns,", "return torch.cat([ends, ends, ends,", THIN
    ),
    Mutation(
        "one side of a kink",
        NEAREST,
        "weight = torch.where(falls + rises > 0, rises / (falls + rises), 0.5)",
        "weight = torch.ones_like(falls)",
        SCORES,
    ),
    Mutation("sides of a kink exchanged", NEAREST, "rises / (falls + rises)", "falls / (falls + rises)", SCORES),
    Mutation(
        "both tokens pushed alike",
        NEAREST,
        "torch.lerp(p, q, place[:, None])[:, None] + aside",
        "torch.lerp(p, q, 0 * place[:, None] + 0.5)[:, None] + aside"
        " + ((place - 0.5)[:, None] * (q - p)).detach()[:, None]",
        SCORES,
    ),
    Mutation("a plan in place of another", AVOID, "energy.index_add(0, rows,", "energy.index_add(0, 0 * rows,", ALONE),
    Mutation("ceilings for floors", LIMITS, "x.new_tensor(high) - x], 1)", "x - x.new_tensor(high)], 1)", OUTSIDE),
    Mutation("steps one off", LIMITS, "states[:, 1:] - following", "states[:, :-1] - following", STEPS),
    Mutation("widths squared", LIMITS, "/ tau.new_tensor(self.width)", "/ tau.new_tensor(self.width) ** 2", STEPS),
    Mutation("a width for a variance", REWARDS, "(2 * self.width**2)", "(2 * self.width)", TOKEN),
    Mutation("a sum of densities", REWARDS, "math.log(quadratic.shape[1]) - ", "-", MEANS),
    Mutation("tokens for segments", REWARDS, "/ length).clamp(0.0, 1.0)", "/ length).clamp(0.0, 0.0)", ALONG),
    Mutation(
        "less reward is better",
        REWARDS,
        'return -self._one_each(self.fn(tau), tau, "reward")',
        'return self._one_each(self.fn(tau), tau, "reward")',
        TILT,
    ),
    Mutation("values of metres", REWARDS, "x = space.normalise(tau)", "x = tau", VALUE),
    Mutation("half a squared exponential", SMOOTH, "(-0.5 * r * r).exp()", "(-r * r).exp()", PROCESS[0]),
    Mutation("a rougher kernel", SMOOTH, "a = math.sqrt(3) * r", "a = r", PROCESS[1]),
    Mutation("a third left out", SMOOTH, "(1 + a + a * a / 3)", "(1 + a)", PROCESS[2]),
    Mutation("a scale for a variance", SMOOTH, "return self.scale**2 * shape", "return self.scale * shape", PROCESS[2]),
    Mutation("one coordinate's constant", SMOOTH, "+ constant * p.shape[2]", "+ constant", PROCESS[2]),
    Mutation(
        "half a determinant",
        SMOOTH,
        "float(factor.diagonal().log().sum())",
        "float(factor.diagonal().log().sum()) / 2",
        PROCESS[2],
    ),
    Mutation("constants alone are free", SMOOTH, "complete[:, min(2, space.horizon) :]", "complete[:, 1:]", LINES),
    Mutation(
        "one time step for all", SMOOTH, "where = (space.horizon, space.dt)", "where = (space.horizon, 0.0)", SPACES
    ),
]

CHECKER_ROWS = [
    Mutation(
        "tokens for segments",
        CLEARANCE,
        "place = np.clip((offset * along).sum(-1)",
        "place = 0 * np.clip((offset * along).sum(-1)",
        dense("disc"),
    ),
    Mutation(
        "ends of a segment alone", CLEARANCE, "np.concatenate([ends, opposite, meet], 1)", "ends", dense("thin wall")
    ),
    Mutation(
        "no corners",
        CLEARANCE,
        "np.concatenate([ends, opposite, meet], 1)",
        "np.concatenate([ends, meet], 1)",
        known(13),
    ),
    Mutation(
        "no diagonals",
        CLEARANCE,
        "np.concatenate([ends, opposite, meet], 1)",
        "np.concatenate([ends, opposite], 1)",
        known(3),
    ),
    Mutation("touching a corner is all", CLEARANCE, "enters = touches | crosses", "enters = crosses", known(7)),
    Mutation(
        "depths of corners alone",
        CLEARANCE,
        "quadratics = np.concatenate([lines, points])",
        "quadratics = points",
        known(14),
    ),
    Mutation(
        "nothing between the roots",
        CLEARANCE,
        "np.concatenate([found, (marks[1:] + marks[:-1]) / 2])",
        "np.concatenate([found[:2], found[:2]])",
        dense("star"),
    ),
    Mutation(
        "a field at its cuts alone",
        CLEARANCE,
        "np.where(bend > 0, -slope /",
        "np.where(bend > 9e9, -slope /",
        dense("inflated field"),
    ),
    Mutation(
        "a field of one cell",
        CLEARANCE,
        "i = np.minimum(middle[..., 0].astype(int), nx - 2)",
        "i = 0 * np.minimum(middle[..., 0].astype(int), nx - 2)",
        dense("field"),
    ),
    Mutation(
        "a frame that moves too fast",
        CLEARANCE,
        "seen = ways - _shifts(obstacle, moments)",
        "seen = ways - 2 * _shifts(obstacle, moments)",
        dense("moving disc"),
    ),
    Mutation("knots left out", CLEARANCE, "[t for t in knots if times[0] < t < times[-1]]", "[]", dense("waypoints")),
    Mutation(
        "segments pruned too soon", CLEARANCE, "ends[:, 1:] - length) / 2", "ends[:, 1:]) / 2", dense("thin wall")
    ),
    Mutation("intervals closed too soon", CLEARANCE, "d - length[which] * width / 2 <", "d <", dense("one's own")),
    Mutation(
        "no radius",
        CHECKER,
        "least_distance(obstacle, positions, space.dt) - radius",
        "least_distance(obstacle, positions, space.dt)",
        law(test_checker.test_a_robot_of_a_radius_is_a_point_among_inflated_obstacles, "disc"),
    ),
    Mutation("the goal at the start", CHECKER, '("goal", goal, -1)', '("goal", goal, 0)', TOGETHER),
    Mutation("speeds per token", CHECKER, "axis=-1) / space.dt", "axis=-1)", TOGETHER),
    Mutation("robots without a body meet the bounds", CHECKER, "high - positions) - radius", "high - positions)", ROOM),
    Mutation(
        "what is not finite is feasible", CHECKER, "every = np.full(count, np.inf)", "every = np.zeros(count)", SPOILED
    ),
]

ROWS = [*SPACES_ROWS, *OBSTACLE_ROWS, *TASK_ROWS, *CHECKER_ROWS]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
def test_the_error_is_noticed(mutation):
    verify(mutation)
