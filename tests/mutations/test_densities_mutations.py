"""Errors that a benchmark target or its truth can have, planted one by one: a law notices each."""

import pytest

from tests.benchmarks import test_densities as tests
from tests.mutations.harness import Mutation, law, verify

PACKAGE = "boltzmix.benchmarks.densities"
BASE, GAUSSIANS, SHAPES = f"{PACKAGE}.base", f"{PACKAGE}.gaussians", f"{PACKAGE}.shapes"
MIXTURES, LATTICES, PROCESSES = f"{PACKAGE}.mixtures", f"{PACKAGE}.lattices", f"{PACKAGE}.processes"
HIERARCHIES, REGRESSIONS = f"{PACKAGE}.hierarchies", f"{PACKAGE}.regressions"
REFERENCE = f"{PACKAGE}.reference"

SCHOOLS = tests.eight_schools_is_the_model_as_written
GRID = law(tests.moments_of_eight_schools_are_those_of_weighted_prior_draws, 100_000)
VOLATILITY = tests.volatility_is_the_model_as_written
SPARSE = tests.sparse_regression_is_the_model_as_written
COX = tests.cox_process_is_the_model_as_written
TRANSFER = tests.transfer_moments_are_those_of_a_grid
MAGNET = tests.small_magnets_are_those_of_all_states


def drawn(name):
    return law(tests.exact_draws_have_the_true_moments, name)


def stein(name):
    return law(tests.exact_draws_are_draws_of_the_density, name)


def plane(name):
    return law(tests.moments_in_the_plane_are_those_of_a_grid, name)


def masses(name):
    return law(tests.masses_of_modes_are_those_of_exact_draws, name)


def agreement():
    tests.agreement_is_in_standard_errors_of_both()


POSTERIORS = [
    Mutation("no Jacobian of log τ", HIERARCHIES, ".log1p() + log_tau  # the", ".log1p()  # the", SCHOOLS),
    Mutation("effects that τ does not scale", HIERARCHIES, "tau[:, None] * theta", "theta", SCHOOLS),
    Mutation("another scale of τ", HIERARCHIES, "(0.04 * (tau * tau)).log1p()", "(0.2 * (tau * tau)).log1p()", SCHOOLS),
    Mutation("a grid without the Jacobian", HIERARCHIES, ".log1p() + level", ".log1p()", GRID),
    Mutation("a grid without the marginal's width", HIERARCHIES, "/ total - 0.5 * total.log()", "/ total", GRID),
    Mutation("squares without the variance given the grid", HIERARCHIES, "(m**2 + v)).sum()", "m**2).sum()", GRID),
    Mutation("fourth powers of a third of the spread", HIERARCHIES, "3 * v**2", "v**2", GRID),
    Mutation(
        "the first shock as the others", PROCESSES, "(log_up + log_down)).exp() * 0.5", "0.0 * logit).exp()", VOLATILITY
    ),
    Mutation(
        "a recursion that ends too early",
        PROCESSES,
        "while reach < count:",
        "while reach < count / 2:",
        VOLATILITY,
        "def log_prob",
    ),
    Mutation(
        "powers that are not squared",
        PROCESSES,
        "power * power, 2 * reach",
        "power, 2 * reach",
        VOLATILITY,
        "def log_prob",
    ),
    Mutation(
        "no Jacobian of the persistence",
        PROCESSES,
        "(20.0 * log_up + 1.5 * log_down)[:",
        "(19.0 * log_up + 0.5 * log_down)[:",
        VOLATILITY,
    ),
    Mutation(
        "no Jacobian of log σ", PROCESSES, "prior = prior + log_scale - (0.25", "prior = prior - (0.25", VOLATILITY
    ),
    Mutation(
        "variances for standard deviations",
        PROCESSES,
        "-(0.5 * level + half * (-level).exp()).sum(1)",
        "-(level + half * (-2 * level).exp()).sum(1)",
        VOLATILITY,
    ),
    Mutation(
        "no Jacobian of log scales",
        REGRESSIONS,
        "0.5 * (levels - scales).sum(1)",
        "-0.5 * (levels + scales).sum(1)",
        SPARSE,
    ),
    Mutation(
        "coefficients without their global scale",
        REGRESSIONS,
        "scales[:, :count] * scales[:, count:]",
        "scales[:, :count]",
        SPARSE,
    ),
    Mutation(
        "intensities of a cell twice as large", PROCESSES, "MEAN - 2 * math.log(SIDE)", "MEAN - math.log(SIDE)", COX
    ),
    Mutation("a factor turned over", PROCESSES, "Constants(factor.T, seen)", "Constants(factor, seen)", COX),
]
SHAPED = [
    Mutation(
        "a basis turned the wrong way",
        GAUSSIANS,
        "normal_draws(n, dim, generator) @ turn.mT",
        "normal_draws(n, dim, generator) @ turn",
        stein("rotated"),
    ),
    Mutation(
        "variances for standard deviations",
        GAUSSIANS,
        "gaussian_moments(zeros(dim), sd**2)",
        "gaussian_moments(zeros(dim), sd)",
        drawn("extreme"),
    ),
    Mutation("squares of one variance", BASE, "2 * variance**2", "variance**2", drawn("standard")),
    Mutation("a banana's fourth moment without the cross term", SHAPES, "4971.0", "4863.0", plane("banana")),
    Mutation(
        "a banana that bends less",
        SHAPES,
        "off = b - 0.03 * (square - 100.0)\n        return",
        "off = b - 0.02 * (square - 100.0)\n        return",
        plane("banana"),
    ),
    Mutation(
        "a funnel without the width of its rest",
        SHAPES,
        "0.5 * spread - 0.5 * (dim - 1) * v\n\n    def jax",
        "0.5 * spread\n\n    def jax",
        stein("funnel"),
    ),
    Mutation(
        "a ring whose fourth moment forgets its width", SHAPES, "(square**2 + width**2)", "square**2", plane("ring")
    ),
    Mutation(
        "draws of a ring that are too wide",
        SHAPES,
        "width * normal_draws(n, 1, generator)).sqrt()",
        "3 * width * normal_draws(n, 1, generator)).sqrt()",
        stein("ring"),
    ),
    Mutation("a mixture that is not normalised", MIXTURES, "-math.log(count) - ", "- ", plane("grid")),
    Mutation(
        "moments of the means alone", MIXTURES, "(means**2 + v).mean(0)", "(means**2).mean(0)", plane("forty_modes")
    ),
    Mutation(
        "cells whose masses do not add to one",
        MIXTURES,
        "mass / len(means)",
        "mass / (len(means) + 1)",
        masses("forty_modes"),
    ),
    Mutation(
        "wells of equal mass",
        MIXTURES,
        "right**count * (1 - right) ** (wells - count)",
        "0.5**wells",
        masses("many_well"),
    ),
    Mutation("wells without their tilt", MIXTURES, "+ 0.5 * x", "", stein("many_well")),
]
FIELDS = [
    Mutation("half of the coupling", LATTICES, "np.exp(2 * np.outer", "np.exp(np.outer", TRANSFER),
    Mutation(
        "a row that does not close",
        LATTICES,
        "for j in range(length):\n        axes",
        "for j in range(length - 1):\n        axes",
        TRANSFER,
    ),
    Mutation(
        "one row too few",
        LATTICES,
        "(values / values.max()) ** length",
        "(values / values.max()) ** (length - 1)",
        TRANSFER,
    ),
    Mutation("spins that see half of their neighbours", LATTICES, "(right + down)", "(1.5 * right)", TRANSFER),
    Mutation(
        "rows drawn without the way back", LATTICES, "step[last] * powers[length - k][:, first].T", "step[last]", MAGNET
    ),
    Mutation("the first row as if alone", LATTICES, "powers[length].diagonal()", "within", MAGNET),
]
CHECKS = [
    Mutation(
        "errors of one side alone",
        REFERENCE,
        'torch.hypot(getattr(one, f"{name}_error"), getattr(other, f"{name}_error"))',
        'getattr(one, f"{name}_error")',
        agreement,
    ),
    Mutation(
        "standard deviations for standard errors", REFERENCE, "m.std(0) / math.sqrt(len(x))", "m.std(0)", agreement
    ),
    Mutation("an accuracy that is not squared", REFERENCE, "self.mean_error**2", "self.mean_error", agreement),
]


@pytest.mark.parametrize("mutation", [*POSTERIORS, *SHAPED, *FIELDS, *CHECKS], ids=lambda m: m.name)
def test_it_is_noticed(mutation):
    verify(mutation)
