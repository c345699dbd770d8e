"""Errors that a comparison of samplers can have, planted one by one: a law notices each."""

import pytest

from tests.benchmarks import test_densities, test_mcmc_suite
from tests.mutations.harness import Mutation, verify

DENSITIES, SUITE = "boltzmix.benchmarks.densities", "boltzmix.benchmarks.suites.mcmc"
MODEL = test_densities.eight_schools_is_the_model_as_written
MOMENTS = test_densities.moments_of_eight_schools_are_those_of_weighted_prior_draws
RATIO = test_mcmc_suite.ratio_of_medians_is_that_of_the_better_peer
ERRORS = test_mcmc_suite.t_statistics_are_those_of_independent_chains
JUDGED = test_mcmc_suite.judged_figures_are_those_of_exact_draws


def counted():
    """An error that the suite raises counts as noticed, too."""
    try:
        test_mcmc_suite.evaluations_of_ours_are_counted_from_inside_the_target()
    except RuntimeError as error:
        raise AssertionError(str(error)) from error


TARGETS = [
    Mutation("no Jacobian of log τ", DENSITIES, ".log1p() + log_tau  # the", ".log1p()  # the", MODEL),
    Mutation("effects that τ does not scale", DENSITIES, "tau[:, None] * theta", "theta", MODEL),
    Mutation("another scale of τ", DENSITIES, "- ((tau / 5) ** 2).log1p() + log_tau", "- tau.log1p() + log_tau", MODEL),
    Mutation("a grid without the Jacobian", DENSITIES, ".log1p() + level", ".log1p()", MOMENTS),
    Mutation("a grid without the marginal's width", DENSITIES, "/ total - 0.5 * total.log()", "/ total", MOMENTS),
    Mutation("variances without those given the grid", DENSITIES, "centre**2 + s_j**2 / total", "centre**2", MOMENTS),
]
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


@pytest.mark.parametrize("mutation", [*TARGETS, *FIGURES], ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_it_is_noticed(mutation):
    verify(mutation)
