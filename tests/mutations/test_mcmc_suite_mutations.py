"""Errors that a comparison of samplers can have, planted one by one: a law notices each."""

import pytest

from tests.benchmarks import test_mcmc_suite
from tests.mutations.harness import Mutation, verify

SUITE = "boltzmix.benchmarks.suites.mcmc"
RATIO = test_mcmc_suite.ratio_of_medians_is_that_of_the_better_peer
ERRORS = test_mcmc_suite.t_statistics_are_those_of_independent_chains
JUDGED = test_mcmc_suite.judged_figures_are_those_of_exact_draws


def counted():
    """An error that the suite raises counts as noticed, too."""
    try:
        test_mcmc_suite.evaluations_of_ours_are_counted_from_inside_the_target()
    except RuntimeError as error:
        raise AssertionError(str(error)) from error


FIGURES = [
    Mutation("the worse peer", SUITE, "medians[1:].max(0)", "medians[1:].min(0)", RATIO),
    Mutation(
        "seeds drawn apart for each sampler",
        SUITE,
        "medians = table[:, chosen].quantile",
        "medians = torch.stack([row[chosen.roll(k, 0)] for k, row in enumerate(table)]).quantile",
        RATIO,
    ),
    Mutation("means for medians", SUITE, "table.quantile(0.5, dim=1)", "(table**2).mean(1)", RATIO),
    Mutation("the standard deviation for the standard error", SUITE, " / math.sqrt(len(errors))", "", ERRORS),
    Mutation(
        "warm-up never counted", SUITE, "(chains.gradients + chains.warmup_gradients)", "chains.gradients", JUDGED
    ),
    Mutation(
        "b² of the mean over coordinates",
        SUITE,
        '"mean_error2": float((mean.mean(0) ** 2).max())',
        '"mean_error2": float(mean.mean() ** 2)',
        JUDGED,
    ),
    Mutation(
        "errors in units of the draws' own scale",
        SUITE,
        "target.mean) / target.variance.sqrt()",
        "target.mean) / chains.x.double().std((0, 1))",
        JUDGED,
    ),
    Mutation("the largest effective size", SUITE, "float(sizes.min())", "float(sizes.max() * 1.2)", JUDGED),
    Mutation("warm-up counted as sampling", SUITE, "gradients=rows - before", "gradients=rows", counted),
    Mutation("calls counted instead of rows", SUITE, "self.rows += len(x)", "self.rows += 1", counted),
]


@pytest.mark.parametrize("mutation", FIGURES, ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_it_is_noticed(mutation):
    verify(mutation)
