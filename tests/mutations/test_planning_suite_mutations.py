"""Errors that the planning suite can have, planted one by one: a law notices each."""

import pytest

from tests.benchmarks import test_planning as laws
from tests.benchmarks import test_planning_composition as parts
from tests.mutations.harness import Mutation, law, verify

PLANNING = "boltzmix.benchmarks.planning"
PAIRED, PROBLEMS, EPISODES = f"{PLANNING}.paired", f"{PLANNING}.problems", f"{PLANNING}.episodes"

PLANTED = [
    Mutation(
        "wins counted on all problems",
        PAIRED,
        "n = wins + losses",
        "n = len(a)",
        laws.mcnemar_is_the_binomial_tail,
    ),
    Mutation("a one-sided tail", PAIRED, "min(1.0, 2 * tail)", "min(1.0, tail)", laws.mcnemar_is_the_binomial_tail),
    Mutation(
        "flips that are larger, not at least as large",
        PAIRED,
        ">= gap.sum() - 1e-12",
        "> gap.sum() + 1e-9",
        laws.sign_flips_are_those_of_every_sign,
    ),
    Mutation(
        "the other way round",
        PAIRED,
        "gap = a - b",
        "gap = b - a",
        laws.sign_flips_are_those_of_every_sign,
    ),
    Mutation(
        "a body without a radius may pass",
        PROBLEMS,
        'indexing="ij"), -1), duration) > margin',
        'indexing="ij"), -1), duration) > 0.0',
        laws.a_wall_across_the_world_cannot_be_passed,
    ),
    Mutation(
        "regions are not told apart",
        PROBLEMS,
        "ends[0] != 0 and ends[0] == ends[1]",
        "ends[0] != 0 and ends[1] != 0",
        laws.a_wall_across_the_world_cannot_be_passed,
    ),
    Mutation(
        "clearance at the steps alone",
        EPISODES,
        "path[:-1] + s * np.diff(path, axis=0) for s",
        "path[:-1] + 0 * s * np.diff(path, axis=0) for s",
        laws.episodes_are_judged_by_the_way_that_was_gone,
    ),
    Mutation(
        "added obstacles are not looked at",
        EPISODES,
        "[*environment.obstacles, *obstacles]",
        "[*environment.obstacles]",
        laws.episodes_are_judged_by_the_way_that_was_gone,
    ),
    Mutation(
        "the body is a point",
        EPISODES,
        "- float(environment.radius)",
        "- 0.0",
        laws.episodes_are_judged_by_the_way_that_was_gone,
    ),
    Mutation(
        "costs where the method failed",
        EPISODES,
        "if a.success and b.success",
        "if b.success",
        laws.outcomes_are_paired_with_the_oracle,
    ),
    Mutation(
        "evaluations of an episode, not of a replan",
        EPISODES,
        "for e in episodes) / replans if replans",
        "for e in episodes) / len(episodes) if replans",
        laws.outcomes_are_paired_with_the_oracle,
    ),
    Mutation(
        "a tilt the other way",
        f"{PLANNING}.conditions",
        "(r / beta).softmax(0)",
        "(-r / beta).softmax(0)",
        parts.test_the_tilted_mean_is_that_of_a_gaussian_tilt,
    ),
    Mutation(
        "plans are looked at where their tokens are",
        f"{PLANNING}.energy",
        "torch.linspace(0.0, 1.0, 17,",
        "torch.linspace(0.0, 1.0, 2,",
        law(parts.test_plans_are_clear_where_they_keep_the_radius_between_tokens_too),
    ),
]


@pytest.mark.parametrize("mutation", PLANTED, ids=lambda m: m.name)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
