"""Errors in the planning baselines, planted one by one: a law of tests/planners/test_baselines.py notices each."""

import pytest

from boltzmix.planners.baselines import CEM, MPPI
from tests.mutations.harness import Mutation, law, verify
from tests.planners import test_baselines as laws

ACTIONS, BASE, BREADTH, CEM_, CLONING, EQUAL, GEOMETRY, GRADIENT, MPPI_, OMPL_, TIMING = (
    f"boltzmix.planners.baselines.{module}"
    for module in (
        *("actions", "base", "breadth_first", "cem", "cloning", "equal", "geometry", "gradient", "mppi", "ompl"),
        "timing",
    )
)

PATHS = [
    Mutation(
        "a walk without half a resolution to spare",
        GEOMETRY,
        "hit = here < 0.5 * self.resolution",
        "hit = here < 0.0",
        law(laws.test_a_step_never_passes_a_thin_wall),
    ),
    Mutation(
        "steps of twice the distance",
        GEOMETRY,
        "here.clamp_min(self.resolution)",
        "(2 * here).clamp_min(self.resolution)",
        law(laws.certified_segments_are_clear),
    ),
    Mutation(
        "the ball's radius is forgotten",
        GEOMETRY,
        "obstacle.distance(points) - self.radius",
        "obstacle.distance(points)",
        law(laws.certified_segments_are_clear),
    ),
    Mutation(
        "bounds that may be crossed",
        GEOMETRY,
        "inside + 0.5 * self.resolution",
        "inside + self.resolution",
        law(laws.test_bounds_may_be_touched_and_not_crossed),
    ),
    Mutation(
        "shortcuts through walls",
        GEOMETRY,
        "clear[~known] = surroundings.clear(points[first[~known]], points[second[~known]])",
        "clear[~known] = True",
        law(laws.the_shortest_path_in_a_hand_made_maze),
    ),
    Mutation(
        "a path that is pulled once",
        GEOMETRY,
        "lengths[-1] > lengths[-3] * (1 - 1e-4)",
        "True",
        law(laws.the_shortest_path_in_a_hand_made_maze),
    ),
    Mutation(
        "edges of the grid that nobody checks",
        BREADTH,
        "pairs = pairs[:, surroundings.clear(points[pairs[0]], points[pairs[1]])]",
        "pairs = pairs[:, :]",
        law(laws.a_grid_does_not_step_over_a_thin_wall),
    ),
    Mutation(
        "a grid without diagonal steps to one side",
        BREADTH,
        "max(0, -j) : len(y) - max(0, j)",
        "max(0, j) : len(y) - max(0, j)",
        law(laws.the_shortest_path_in_a_hand_made_maze),
    ),
]

TIMES = [
    Mutation("no brakes", TIMING, "limit[-1] = 0.0", "pass", law(laws.the_trapezoid_takes_its_analytic_time)),
    Mutation(
        "half the acceleration",
        TIMING,
        "2 * acceleration * arc.diff()",
        "acceleration * arc.diff()",
        law(laws.the_trapezoid_takes_its_analytic_time),
    ),
    Mutation(
        "corners at full speed",
        TIMING,
        "torch.minimum(limit[at], acceleration * radius)",
        "limit[at]",
        law(laws.corners_are_taken_at_the_speed_of_their_arc),
    ),
    Mutation(
        "a corner's arc from the whole angle",
        TIMING,
        ".clamp(0, 1).sqrt()",
        ".clamp(0, 1)",
        law(laws.corners_are_taken_at_the_speed_of_their_arc),
    ),
    Mutation(
        "a quintic whose speed is not its derivative",
        TIMING,
        "(30 * u**2 - 60 * u**3 + 30 * u**4)",
        "(20 * u**2 - 40 * u**3 + 20 * u**4)",
        law(laws.test_without_limits_a_path_fills_the_horizon_from_rest_to_rest),
    ),
]

SEARCHES = [
    Mutation(
        "the worst sequences are kept",
        CEM_,
        "costs.argsort(stable=True)",
        "costs.argsort(stable=True, descending=True)",
        law(laws.cem_reaches_the_regulator),
    ),
    Mutation(
        "a spread that is never fitted",
        CEM_,
        "(1 - self.momentum) * kept.std(0, correction=0)",
        "(1 - self.momentum) * deviation",
        law(laws.cem_reaches_the_regulator),
    ),
    Mutation(
        "no control cost",
        MPPI_,
        "if self.control_cost:",
        "if False:",
        law(laws.mppi_settles_on_the_regulator_of_its_noise),
    ),
    Mutation(
        "the control cost of another noise",
        MPPI_,
        "whiten(drawn / deviation, self.correlation)",
        "drawn / deviation",
        law(laws.mppi_settles_on_the_regulator_of_its_noise, 0.6),
    ),
    Mutation(
        "weights at another temperature",
        MPPI_,
        "-costs / temperature",
        "-2 * costs / temperature",
        law(laws.weights_halve_for_each_temperature_times_log_two),
    ),
    Mutation(
        "a control cost at temperature one",
        MPPI_,
        "self.control_cost * self.temperature *",
        "self.control_cost *",
        law(laws.mppi_settles_on_the_regulator_of_its_noise),
    ),
    Mutation(
        "noise that fades",
        ACTIONS,
        "math.sqrt(1 - correlation**2) * white[:, t]",
        "(1 - correlation) * white[:, t]",
        law(laws.noise_is_stationary_and_whitened_by_its_inverse),
    ),
    Mutation(
        "whitening without its scale",
        ACTIONS,
        "/ math.sqrt(1 - correlation**2)",
        "",
        law(laws.noise_is_stationary_and_whitened_by_its_inverse),
    ),
    Mutation(
        "rollouts counted once for all samples",
        ACTIONS,
        "self.steps += count * length",
        "self.steps += length",
        law(laws.model_steps_are_counted, CEM),
    ),
    Mutation(
        "plans that ignore their seed",
        ACTIONS,
        "self.search(rollouts, mean, question.generator",
        "self.search(rollouts, mean, torch.Generator()",
        law(laws.model_steps_are_counted, MPPI),
    ),
    Mutation(
        "collisions at tokens only",
        ACTIONS,
        "points = positions[:, :-1, None] + share[:, None] *",
        "points = positions[:, :-1, None] + share[:, None].ceil() *",
        law(laws.depth_is_seen_between_tokens),
    ),
    Mutation(
        "obstacles that stand still",
        ACTIONS,
        "time.expand(count, -1, -1)",
        "0 * time.expand(count, -1, -1)",
        law(laws.depth_is_seen_between_tokens),
    ),
]

GRADIENTS = [
    Mutation(
        "an obstacle cost per token, not per length",
        GRADIENT,
        "cost * paths.diff(dim=1).norm(dim=-1)",
        "cost / paths.shape[1]",
        law(laws.the_obstacle_cost_is_per_length),
    ),
    Mutation(
        "a prior that depends on the number of tokens",
        GRADIENT,
        "return float(tokens - 1) ** (2 * order - 1) *",
        "return",
        law(laws.the_prior_is_the_hessian_of_smoothness),
    ),
    Mutation(
        "a gradient that is not covariant",
        GRADIENT,
        "step * torch.cholesky_solve(slope, factor)",
        "1e-3 * step * slope",
        law(laws.the_first_step_without_obstacles_is_the_last),
    ),
    Mutation(
        "a hinge with a jump",
        GRADIENT,
        "margin / 2 - near",
        "-near",
        law(laws.test_the_hinge_is_smooth),
    ),
    Mutation(
        "steps up the hill",
        GRADIENT,
        "better = (new_value <= value)",
        "better = (new_value >= value)",
        law(laws.the_gradient_planner_leaves_the_disc),
    ),
    Mutation(
        "restarts that are all the straight line",
        GRADIENT,
        "paths[:, 1:-1] += size * (root @ draws)",
        "paths[:, 1:-1] += 0 * (root @ draws)",
        law(laws.a_symmetric_obstacle_is_left_on_either_side),
    ),
]

OTHERS = [
    Mutation(
        "a table that is taken at its word near a surface",
        OMPL_,
        "torch.where(distance > reach, 1,",
        "torch.where(distance > 0, 1,",
        law(laws.the_table_of_validity_is_exact),
    ),
    Mutation(
        "chunks over the end of an episode",
        CLONING,
        "bounds[torch.searchsorted(bounds, step, right=True)] - 1",
        "torch.full_like(step, total - 1)",
        law(laws.chunks_stay_in_their_episode),
    ),
    Mutation(
        "a policy that forgets its units",
        CLONING,
        '(vector - self.statistics["mean"]) / self.statistics["scale"]',
        '(vector - self.statistics["mean"])',
        law(laws.cloning_repeats_its_demonstrations),
    ),
    Mutation(
        "best of N with every level free",
        EQUAL,
        "n = evaluations // (self.planner.steps * _per_level(self.planner))",
        "n = evaluations",
        law(laws.equal_evaluations_are_not_exceeded),
    ),
    Mutation(
        "guidance only with its corrector",
        EQUAL,
        "replace(own, corrector=None, corrections=1, between=None, snr=None)",
        "own",
        law(laws.equal_evaluations_are_not_exceeded),
    ),
    Mutation(
        "candidates that cost nothing",
        EQUAL,
        "(_per_level(self.planner) * planner.candidates)",
        "_per_level(self.planner)",
        law(laws.equal_evaluations_are_not_exceeded),
    ),
    Mutation(
        "a blind draw judged by what it saw",
        EQUAL,
        "self.judge._pose(",
        "self.planner._pose(",
        law(laws.best_of_n_is_judged_with_the_obstacles_it_did_not_see),
    ),
    Mutation(
        "bounds for the centre, where the ball must stay inside",
        BASE,
        "(low + radius, high - radius)",
        "(low, high)",
        law(laws.a_ball_stays_inside_the_bounds),
    ),
]


@pytest.mark.parametrize(
    "mutation", [*PATHS, *TIMES, *SEARCHES, *GRADIENTS, *OTHERS], ids=lambda mutation: mutation.name.replace(" ", "-")
)
def test_planted_errors_are_noticed(mutation):
    verify(mutation)
