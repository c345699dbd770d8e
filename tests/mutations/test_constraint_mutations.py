"""Errors in maps onto supports, in their determinants and in the posteriors written with them: each is noticed."""

import pytest

from tests.benchmarks import test_posteriors
from tests.compose import test_supports
from tests.mutations.harness import Mutation, law, verify

MAPS, SUPPORTS, FLAT, PRODUCT, MIXTURE = (
    f"boltzmix.compose.{m}" for m in ("bijections", "supports", "flat", "product", "mixture")
)
START = "boltzmix.compose.samplers.start"
POSTERIORS, RECORDS = (f"boltzmix.benchmarks.{m}" for m in ("posteriors", "posteriordb"))


def determinant(name):
    return law(test_supports.test_maps_are_one_to_one_and_their_determinant_is_that_of_autograd, name)


def density(name):
    full = next(n for n in test_posteriors.NAMES if n.startswith(name))
    return law(test_posteriors.test_densities_are_those_of_scipy_up_to_a_constant, full)


SCORES = law(test_supports.test_the_scores_of_unconstrained_coordinates_are_those_of_their_energy)
CLAMP = law(test_supports.test_a_clamp_holds_entries_of_a_constrained_variable)
ALGEBRA = law(test_supports.test_supports_of_a_product_meet_and_those_of_a_sum_are_real)
EXACT = law(test_supports.test_exact_starts_go_with_their_determinant)
STARTS = test_supports.EDGES
EDGE, TORN = (law(test_supports.test_starts_on_the_edge_are_refused, *STARTS[row]) for row in (0, 3))

DETERMINANTS = [
    Mutation(
        "no determinant of exp",
        MAPS,
        '"""log e^y."""\n        return x',
        '"""."""\n        return 0 * x',
        determinant("positive"),
    ),
    Mutation("half a sigmoid", MAPS, "F.logsigmoid(x) + F.logsigmoid(-x)\n", "F.logsigmoid(x)\n", determinant("unit")),
    Mutation("an interval of width one", MAPS, "(self.high - self.low).to(x).log() + ", "", determinant("interval")),
    Mutation(
        "sticks broken without their slope",
        MAPS,
        "self._logs(x)[..., :-1] + F.logsigmoid(-self._shifted(x))",
        "self._logs(x)[..., :-1]",
        determinant("simplex"),
    ),
    Mutation(
        "sticks that are not broken evenly",
        MAPS,
        "return x - torch.arange",
        "return x - 0 * torch.arange",
        law(test_supports.test_maps_are_torchs_own_where_torch_does_not_clamp, "simplex"),
    ),
    Mutation("the first entry counts", MAPS, "else x[..., 1:]).sum(-1)", "else x).sum(-1)", determinant("ordered")),
    Mutation(
        "every entry is a logarithm",
        MAPS,
        "return self._log_diagonal(x).sum(-1)",
        "return x.sum(-1)",
        determinant("lower cholesky"),
    ),
    Mutation(
        "powers of the factor's diagonal one off",
        MAPS,
        "logs.shape[-1] + 1, 1, -1",
        "logs.shape[-1], 0, -1",
        determinant("positive definite"),
    ),
    Mutation(
        "no 2^K",
        MAPS,
        "(powers * logs).sum(-1) + logs",
        "(powers * logs).sum(-1) + 0 * logs",
        determinant("positive definite"),
    ),
    Mutation(
        "rows of correlations without what is left",
        MAPS,
        "logs.sum(-1) + 0.5 * self._vector(left).sum(-1)",
        "logs.sum(-1)",
        determinant("correlation factor"),
    ),
    Mutation(
        "rows of correlations longer than one",
        MAPS,
        "(tanh + unit) * (0.5 * left).exp()",
        "(tanh + unit) * left.exp()",
        determinant("correlation factor"),
    ),
    Mutation(
        "a sigmoid that clamps",
        MAPS,
        "torch.sigmoid(-x.abs())",
        "torch.sigmoid(-x.abs()).clamp(min=1e-16)",
        law(test_supports.test_maps_do_not_clamp),
    ),
]

SAMPLING = [
    Mutation(
        "a dropped Jacobian",
        FLAT,
        "return energy - log_det if",
        "return energy if",
        law(test_supports.test_log_z_is_the_integral_over_the_support, "gamma"),
    ),
    Mutation(
        "a dropped Jacobian, seen by chains",
        FLAT,
        "return energy - log_det if",
        "return energy if",
        law(test_supports.test_chains_in_unconstrained_coordinates_have_the_right_moments, "gamma"),
    ),
    Mutation("a Jacobian of the wrong sign", FLAT, "return energy - log_det if", "return energy + log_det if", SCORES),
    Mutation("scores without the Jacobian's", FLAT, "torch.ones_like(log_det)]", "torch.zeros_like(log_det)]", SCORES),
    Mutation(
        "scores without the chain rule", FLAT, "*(s for _, s in moving)", "*(1.0 + 0 * s for _, s in moving)", SCORES
    ),
    Mutation(
        "held coordinates have a determinant",
        FLAT,
        "logs = None if logs is None else torch.where(masks[index], 0.0, logs)",
        "logs = logs if masks is not None else logs",
        CLAMP,
    ),
    Mutation("clamps outside the support", FLAT, "if not bool(inside.all()):", "if not bool(inside.any()):", CLAMP),
    Mutation("starts on the edge", FLAT, "good.reshape(len(x), -1).all(1) & ", "", EDGE),
    Mutation("starts outside", FLAT, " & contains(variable.support, x, len(variable.shape))", "", TORN),
    Mutation(
        "a base without its determinant",
        START,
        "else view.energy_of(base, x)",
        "else base._energy(view.unravel(x), None)",
        EXACT,
    ),
    Mutation(
        "formulas with noise levels leave their coordinates",
        FLAT,
        'moved = term.path == "static" if',
        "moved = True if",
        law(test_supports.test_formulas_with_noise_levels_keep_their_coordinates),
    ),
    Mutation(
        "a product lives where its first factor does", PRODUCT, "both = meet(supports)", "both = supports[0]", ALGEBRA
    ),
    Mutation(
        "a quotient ends where its denominator does",
        PRODUCT,
        "weight.constant is None or weight.constant > 0",
        "True",
        ALGEBRA,
    ),
    Mutation(
        "a sum lives where all its members do", MIXTURE, "for t in members], added=True)", "for t in members])", ALGEBRA
    ),
    Mutation(
        "intervals that join instead of meet",
        SUPPORTS,
        "first[0], second[0], torch.maximum",
        "first[0], second[0], torch.minimum",
        ALGEBRA,
    ),
]

WRITTEN = [
    Mutation(
        "an exponential for a Cauchy", POSTERIORS, "torch.log1p((x / scale) ** 2)", "(x / scale)", density("kidiq")
    ),
    Mutation(
        "a wider prior of tau",
        POSTERIORS,
        'half_cauchy(p["tau"], 5.0)',
        'half_cauchy(p["tau"], 25.0)',
        density("eight"),
    ),
    Mutation(
        "weights without logarithms",
        POSTERIORS,
        'y = column(data["weight"]).log()',
        'y = column(data["weight"])',
        density("mesquite"),
    ),
    Mutation(
        "earnings without logarithms",
        POSTERIORS,
        'column(data["earn"]).log()',
        'column(data["earn"])',
        density("earnings"),
    ),
    Mutation("ages one off", POSTERIORS, "for k in (2, 3, 4)", "for k in (1, 2, 3)", density("nes")),
    Mutation("no prior of sigma", POSTERIORS, ' + normal(p["sigma"], 0.0, 10.0)', "", density("sblrc")),
    Mutation("lags one off", POSTERIORS, "for k in range(1, order + 1)", "for k in range(order)", density("arK")),
    Mutation("a beta(6, 6) prior", POSTERIORS, "4.0 * weights.sum(1)", "5.0 * weights.sum(1)", density("low_dim")),
    Mutation(
        "labels of the mixture switched",
        POSTERIORS,
        '[p["theta"].log(), torch.log1p(-p["theta"])]',
        '[torch.log1p(-p["theta"]), p["theta"].log()]',
        density("low_dim"),
    ),
    Mutation("a length scale to the first power", POSTERIORS, "squares / rho**2", "squares / rho", density("gp")),
    Mutation(
        "one standard error for both moments",
        RECORDS,
        "(self.sd - other.sd)",
        "0 * (self.sd - other.sd)",
        law(test_posteriors.test_a_wrong_mean_or_spread_would_be_noticed, 0.0, 1.3, "spreads"),
    ),
]


@pytest.mark.parametrize("mutation", [*DETERMINANTS, *SAMPLING, *WRITTEN], ids=lambda m: m.name)
def test_the_error_is_noticed(mutation):
    verify(mutation)
