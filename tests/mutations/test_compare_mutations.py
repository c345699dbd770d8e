"""Errors that a comparison of samplers can have, planted one by one: a law notices each."""

import functools
import tempfile
from pathlib import Path

import pytest

from tests.benchmarks import test_compare
from tests.mutations.harness import Mutation, law, verify

BIAS, CELL, STANDING = (f"boltzmix.benchmarks.{name}" for name in ("bias", "cell", "standing"))
AUDIT, TALLY, METHODS, SWEEP = (f"boltzmix.benchmarks.{name}" for name in ("audit", "tally", "methods", "sweep"))
OWN = "boltzmix.benchmarks.own_targets"

FORMULA = test_compare.squared_bias_is_that_of_the_definition
EXACT = test_compare.exact_draws_need_a_hundred_draws
COST = test_compare.gradients_are_those_of_draws_times_cost
STAYING = test_compare.staying_below_is_asked
MEDIANS = law(test_compare.medians_are_over_the_chains_of_all_runs)
RATE = functools.partial(test_compare.false_positives_are_as_rare_as_said, trials=400)
FOUND = test_compare.a_bias_is_found_and_its_size_is_a_lower_bound
WEIGHTS = test_compare.weights_are_used
FIGURES = test_compare.figures_of_exact_draws
ORDER = test_compare.bias_comes_before_speed
CAUGHT = law(test_compare.cheaters_are_caught)
SPENT = law(test_compare.what_kernels_spend_is_counted_from_inside)
BLIND = test_compare.the_truth_cannot_be_looked_up
ROWS = law(test_compare.failures_are_rows)
MOMENTS = test_compare.moments_of_a_term_are_estimated_from_exact_draws


def kept():
    """In a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        test_compare.finished_runs_are_kept(Path(folder))


FIGURES_OF_BIAS = [
    Mutation("errors of means for errors of squares", BIAS, "(x * x).cumsum(0) / n", "x.cumsum(0) / n", FORMULA),
    Mutation(
        "standard deviations for variances", BIAS, "error * error / square_variance[columns]", "error * error", FORMULA
    ),
    Mutation(
        "the number of the chain for the number of draws",
        BIAS,
        "torch.arange(1, count + 1",
        "torch.arange(0, count",
        FORMULA,
    ),
    Mutation("the sum for the average", BIAS, "b2.sum(1) / dim", "b2.sum(1)", EXACT),
    Mutation("the least for the largest", BIAS, "b2.max(1).values)", "b2.min(1).values)", FORMULA),
    Mutation(
        "gradients of all chains",
        BIAS,
        "gradients.double().mean(0).cumsum(0)",
        "gradients.double().sum(0).cumsum(0)",
        COST,
    ),
    Mutation("the next draw for the last one", BIAS, "right=True) - 1", "right=True).clamp(max=len(spent) - 1)", COST),
    Mutation("the first time below", BIAS, "int(above[-1]) + 1", "int(above[0]) + 1", STAYING),
    Mutation("the threshold itself will do", BIAS, "~(curve < threshold)", "curve > threshold", STAYING),
    Mutation(
        "a chain without draws has no error",
        BIAS,
        "(len(part), missing), math.inf",
        "(len(part), missing), 0.0",
        MEDIANS,
    ),
    Mutation("longer runs alone", BIAS, "end = min(float(g[-1])", "end = max(float(g[-1])", MEDIANS),
]
TESTS_OF_BIAS = [
    Mutation(
        "the standard deviation for the standard error",
        BIAS,
        "(errors.std(0) / math.sqrt(count))",
        "errors.std(0)",
        FOUND,
    ),
    Mutation(
        "no floor under the standard error", BIAS, ".clamp(min=1 / math.sqrt(draws))", ".clamp(min=1e-300)", FOUND
    ),
    Mutation("no correction for the number of moments", BIAS, "alpha / errors.shape[1]", "alpha", RATE),
    Mutation("a normal quantile", BIAS, "t_quantile(count - 1,", "t_quantile(10**4,", RATE),
    Mutation("the truth taken as certain", BIAS, "- math.sqrt(accuracy)", "", FOUND),
    Mutation("the estimate for the bound", BIAS, "(mean - allowed * error).clamp(min=0.0)", "mean", FOUND),
    Mutation("clouds without their weights", BIAS, "error = weight @ (x * x)", "error = (x * x).mean(0)", WEIGHTS),
    Mutation(
        "moments of clouds without their weights",
        BIAS,
        "(weight * x).sum(1), (weight * x * x).sum(1)",
        "x.mean(1), (x * x).mean(1)",
        WEIGHTS,
    ),
    Mutation(
        "gradients of one particle",
        BIAS,
        "Curve(gradients.double().sum()[None]",
        "Curve(gradients.double().mean()[None]",
        WEIGHTS,
    ),
    Mutation(
        "modes without weights",
        BIAS,
        "weight.softmax(0))\n    return 0.5",
        "weight.exp() * 0 + 1 / len(weight))\n    return 0.5",
        WEIGHTS,
    ),
    Mutation(
        "modes counted twice", BIAS, "return 0.5 * float((found - masses)", "return float((found - masses)", WEIGHTS
    ),
]
STANDINGS = [
    Mutation(
        "draws for gradients",
        CELL,
        'numbers["ess_per_1000"] = 1000 * numbers["ess"] / total',
        'numbers["ess_per_1000"] = 1000 * numbers["ess"] / x.shape[1]',
        FIGURES,
    ),
    Mutation(
        "speed before bias",
        STANDING,
        "return STATUSES.index(s.status), reached,",
        "return reached, STATUSES.index(s.status),",
        ORDER,
    ),
    Mutation("failed seeds are forgotten", STANDING, "    if kinds:\n", "    if False:\n", ROWS),
    Mutation("a bias that nobody mentions", STANDING, "if tested.biased:", "if False:", ORDER),
]
COUNTING = [
    Mutation("calls for rows", TALLY, "self.rows += x.shape[0]", "self.rows += 1", SPENT),
    Mutation("what is said is believed", AUDIT, "abs(said - tally.rows) > 0.5", "abs(said - tally.rows) > 1e9", CAUGHT),
    Mutation(
        "whoever says so is not counted",
        AUDIT,
        "not run.counted and tally.elsewhere and tally.rows == 0",
        "not run.counted",
        CAUGHT,
    ),
    Mutation(
        "the warm-up among the draws",
        METHODS,
        "tuning_gradients=marks.before[first] / len(x)",
        "tuning_gradients=0.0",
        SPENT,
    ),
    Mutation("the engine's count for the target's", METHODS, "if said != tally.rows:", "if False:", CAUGHT),
    Mutation("a truth to look up", AUDIT, "exact=None,", "exact=density.exact,", BLIND),
    Mutation("moments to look up", AUDIT, " mean=unknown,", " mean=density.mean,", BLIND),
    Mutation(
        "an engine that is believed",
        METHODS,
        "if abs(said - seen) >",
        "if False and abs(said - seen) >",
        law(test_compare.compiled_counts_are_held_to_eager_ones),
    ),
    Mutation("draws that are not finite pass", AUDIT, "if bad := int(", "if bad := 0 * int(", ROWS),
    Mutation("any shape of draws", AUDIT, "(lead[0] != expected and", "(False and", ROWS),
    Mutation(
        "seeds share their runs",
        SWEEP,
        "repr((self.budget, self.chains, self.seed,",
        "repr((self.budget, self.chains,",
        law(kept),
    ),
    Mutation(
        "what a method carries is forgotten", SWEEP, "source.encode() + _bytes(carried)", "source.encode()", law(kept)
    ),
    Mutation("fourth moments for variances", OWN, "fourth - second**2", "fourth", MOMENTS),
]


@pytest.mark.parametrize("mutation", FIGURES_OF_BIAS, ids=lambda m: m.name)
def test_an_error_of_a_figure_is_noticed(mutation):
    verify(mutation)


@pytest.mark.parametrize("mutation", TESTS_OF_BIAS, ids=lambda m: m.name)
def test_an_error_of_the_test_for_bias_is_noticed(mutation):
    verify(mutation)


@pytest.mark.parametrize("mutation", STANDINGS, ids=lambda m: m.name)
def test_an_error_of_the_standings_is_noticed(mutation):
    verify(mutation)


@pytest.mark.parametrize("mutation", COUNTING, ids=lambda m: m.name)
def test_an_error_of_the_count_is_noticed(mutation):
    verify(mutation)
