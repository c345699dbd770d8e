"""Errors in planners, policies and controllers, planted one by one: a named law notices each."""

import pytest

from tests.mutations.harness import Mutation, law, verify
from tests.planners import test_controllers, test_known, test_planner, test_policy, test_stitching

KNOWN, GUIDED, JUDGE, PLANNER, ROUNDS, PROBLEM, REACH, STITCH, POLICY, CONTROL = (
    f"boltzmix.planners.{name}"
    for name in (
        "known", "guided", "judgement", "planner", "rounds", "problem", "reachability", "stitching", "policy",
        "controllers",
    )
)  # fmt: skip

GAUSSIAN = law(test_known.test_a_gaussian_is_conditioned_in_closed_form)
TRAINED = law(test_known.test_a_trained_prior_is_told_what_is_known_and_stays_noised)
EXACT = law(test_planner.test_quadratic_tasks_on_an_isotropic_prior_are_exact)
SEEDS = law(test_planner.test_the_same_seed_gives_the_same_plans)
WARM = law(test_policy.test_a_new_plan_starts_from_the_rest_of_the_last_one)
LIMITS = law(test_planner.test_constraints_that_no_plan_meets_are_named)
ACTIONS = law(test_policy.test_the_action_is_the_controller_s_at_the_time_since_the_plan)
ENDS = law(test_policy.test_terminated_and_truncated_are_kept_apart)
TOLD = law(test_stitching.test_known_coordinates_reach_every_segment_that_holds_them)

PLANS = [
    Mutation("the conditional mean on the wrong side", KNOWN, "mean[free] + gain @", "mean[free] - gain @", GAUSSIAN),
    Mutation("knowing does not narrow", KNOWN, "free] - gain @ cross.mT", "free] - 0 * gain @ cross.mT", GAUSSIAN),
    Mutation(
        "a slice claims to be noised",
        KNOWN,
        'term.path == "noised" and not conditional',
        "conditional",
        law(test_known.test_a_slice_ends_in_the_conditional_and_says_that_it_is_no_convolution),
    ),
    Mutation("a trained prior is not told what is known", KNOWN, "if given is None else", "if True else", TRAINED),
    Mutation(
        "all rows get the first one's known values",
        KNOWN,
        "self.value.to(x).expand(n, -1)",
        "self.value[:1].to(x).expand(n, -1)",
        law(test_known.test_values_for_each_row_stay_with_their_rows),
    ),
    Mutation(
        "the estimate's spread is that of the noise",
        GUIDED,
        "self.guidance.spread * sigma**2 / (self.guidance.spread + sigma**2)",
        "sigma**2",
        EXACT,
    ),
    Mutation("tasks pull without a tether", GUIDED, "residual = u + root.mT", "residual = root.mT", EXACT),
    Mutation("the data end has no tasks", GUIDED, "score - self.held.split", "score - 0 * self.held.split", EXACT),
    Mutation(
        "weights are ignored",
        GUIDED,
        "weight.value(sigma) * term._energy",
        "1.0 * term._energy",
        law(test_planner.test_weights_may_depend_on_the_level),
    ),
    Mutation(
        "deadlines pass unnoticed",
        GUIDED,
        "time.perf_counter() > self.deadline",
        "False",
        law(test_planner.test_the_deadline_raises_with_the_last_estimate),
    ),
    Mutation(
        "neighbours do not move along",
        GUIDED,
        "vectors * values.clamp(min=0.0).sqrt()",
        "torch.eye(tokens, dtype=torch.float64)",
        law(test_planner.test_the_correlation_is_its_formula),
    ),
    Mutation("hard tasks do not count", JUDGE, "feasible &= amount <= tolerance", "feasible &= True", LIMITS),
    Mutation(
        "the worst plan comes first",
        JUDGE,
        "0.0, total), ~self.feasible)",
        "0.0, total), self.feasible)",
        law(test_planner.test_mixed_plans_are_sorted),
    ),
    Mutation(
        "energies of tasks do not rank",
        JUDGE,
        "cost + _weight(task) * energies[name]",
        "cost + 0 * energies[name]",
        law(test_planner.test_mixed_plans_are_sorted),
    ),
    Mutation(
        "starts come from nowhere in particular",
        ROUNDS,
        "len(self.held.free), generator=self.generator,",
        "len(self.held.free),",
        SEEDS,
    ),
    Mutation(
        "warm starts forget what they start from",
        ROUNDS,
        "states = init + sigmas[0] * noise",
        "states = 0 * init + sigmas[0] * noise",
        law(test_planner.test_a_warm_start_stays_near_what_it_starts_from),
    ),
    Mutation(
        "one candidate is counted",
        ROUNDS,
        "self.evaluations += round(used * self.count)",
        "self.evaluations += round(used)",
        law(test_planner.test_evaluations_are_counted),
    ),
    Mutation(
        "exact samplers do not see tasks",
        ROUNDS,
        "Product([(given, 1.0), *held]) if held else given",
        "given",
        law(test_planner.test_other_samplers_take_the_plain_product),
    ),
    Mutation(
        "contradictions pass",
        PROBLEM,
        "clash = own[0] & mask &",
        "clash = own[0] & ~own[0] &",
        law(test_planner.test_contradicting_tasks_are_named),
    ),
    Mutation(
        "obstacles stand where they were at the start",
        PROBLEM,
        "torch.tensor([token * self.space.dt])",
        "torch.tensor([0.0 * self.space.dt])",
        law(test_planner.test_an_obstacle_that_leaves_in_time_is_no_proof),
    ),
    Mutation(
        "a far goal is in time",
        PROBLEM,
        "self.max_speed * (j - i) * self.space.dt * (1",
        "self.max_speed * (j - i) * (1",
        law(test_planner.test_a_goal_that_is_too_far_for_the_speed_is_named),
    ),
    Mutation(
        "cells that are blocked in part count as walls",
        REACH,
        ">= radius - side / math.sqrt(2)",
        ">= radius + side / math.sqrt(2)",
        law(test_planner.test_a_gap_is_a_way_for_what_fits, 0.12, 0.0, False),
    ),
    Mutation(
        "the ball is a point",
        REACH,
        ">= radius - side / math.sqrt(2)",
        ">= -side / math.sqrt(2)",
        law(test_planner.test_a_gap_is_a_way_for_what_fits, 0.3, 0.3, True),
    ),
    Mutation(
        "overlaps count twice",
        STITCH,
        "(Window(own, (start, 0), shape), -1.0)",
        "(Window(own, (start, 0), shape), -0.0)",
        law(test_stitching.test_overlaps_count_once),
    ),
    Mutation("overlaps know nothing", STITCH, "else told(small, mask[start : start + overlap])", "else small", TOLD),
    Mutation("segments are told what lies elsewhere", STITCH, "mask[start : start + h]", "mask[:h]", TOLD),
    Mutation("old plans are not shifted", POLICY, "late + k * space.dt) for k", "k * space.dt) for k", WARM),
    Mutation(
        "ended plans keep moving",
        POLICY,
        "plan.shape[1])])] = 0.0",
        "plan.shape[1])])] *= 1.0",
        law(test_policy.test_the_rest_of_a_plan_is_at_rest_where_it_ends),
    ),
    Mutation(
        "a bad plan replaces a good one",
        POLICY,
        "kept = (not good and old) or not len(result)",
        "kept = not len(result)",
        law(test_policy.test_an_infeasible_plan_does_not_replace_a_feasible_one),
    ),
    Mutation(
        "obstacles start anew with every plan",
        POLICY,
        "clock=self.step * self._tick",
        "clock=0.0 * self._tick",
        law(test_policy.test_plans_are_told_the_time_since_the_reset),
    ),
    Mutation(
        "a call's own obstacles stand still",
        PLANNER,
        "*later((*self.tasks, *tasks), clock)",
        "*self.tasks, *tasks",
        law(test_planner.test_obstacles_have_moved_by_the_clock_when_a_plan_begins, "task"),
    ),
    Mutation("the plan is always at its beginning", POLICY, "self._since += 1", "self._since += 0", ACTIONS),
    Mutation("truncation ends", POLICY, "= bool(terminated), bool", "= bool(terminated or truncated), 0 * bool", ENDS),
    Mutation(
        "patience that ran out is an end",
        POLICY,
        "            episode.truncated = True",
        "            episode.terminated = True",
        ENDS,
    ),
    Mutation(
        "all plans have one seed",
        POLICY,
        "+ len(self.records)) %",
        "+ 0) %",
        law(test_policy.test_seeds_differ_between_replans_and_budgets_are_passed_on),
    ),
    Mutation(
        "damping pushes",
        CONTROL,
        "action + self.kd * (plan.velocity(ahead)",
        "action - self.kd * (plan.velocity(ahead)",
        law(test_controllers.test_pd_is_its_law),
    ),
    Mutation(
        "actions are one token late",
        CONTROL,
        "self.plan[max(k, 0), len",
        "self.plan[max(k - 1, 0), len",
        law(test_controllers.test_own_actions_hold_for_a_token),
    ),
    Mutation(
        "inverse dynamics is asked for the next token",
        CONTROL,
        "plan.space.dt / plan.space.stride if",
        "plan.space.dt if",
        law(test_controllers.test_inverse_dynamics_is_asked_for_the_next_state),
    ),
    Mutation(
        "plans go on after their end",
        CONTROL,
        "self._velocity is not None and time > self.duration",
        "False",
        law(test_controllers.test_a_plan_is_read_between_tokens_and_rests_after_them),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutation", PLANS, ids=lambda mutation: mutation.name)
def test_noticed(mutation: Mutation) -> None:
    verify(mutation)
