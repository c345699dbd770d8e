"""Errors that densities of posteriors and their judge can have, planted one by one: a law notices each."""

import functools

import pytest

from tests.benchmarks import test_posteriors as tests
from tests.mutations.harness import Mutation, law, verify

DENSITIES, RECORDS = "boltzmix.benchmarks.posteriors", "boltzmix.benchmarks.posteriordb"
JUDGE, COORDINATES = "boltzmix.benchmarks.judgement", "boltzmix.benchmarks.posterior_density"
SUITE = "boltzmix.benchmarks.suites.posteriors"
SCORES = law(tests.scores_are_standard_normal_for_correlated_chains)
BOUND = law(tests.the_bound_is_that_of_all_parameters_and_seeds)
COUNTED = law(tests.gradients_of_all_phases_are_counted)
SAME = law(tests.a_target_over_coordinates_is_the_posterior, "garch-garch11")
BACK = law(tests.coordinates_of_draws_lead_back_to_them)
ORDER = law(tests.test_a_differential_equation_is_solved_to_order_four_and_better_than_by_the_collection)


def scipy(name: str) -> functools.partial:
    """The density against the same in numpy."""
    (full,) = [n for n in tests.NAMES if n.startswith(name)]
    return law(tests.test_densities_are_those_of_scipy_up_to_a_constant, full)


REGRESSIONS = [
    Mutation("a fit without the residuals", DENSITIES, "squares = scatter + (", "squares = (", scipy("kidiq")),
    Mutation("R transposed", DENSITIES, "centre - beta @ r.mT", "centre - beta @ r", scipy("nes")),
    Mutation("one observation's log σ", DENSITIES, "- len(y) * sigma.log()", "- sigma.log()", scipy("mesquite")),
    Mutation("columns not centred", DENSITIES, "x = x - x.mean(0)", "x = x - 0.0", scipy("diamonds")),
    Mutation("a power of three halves", DENSITIES, "return -2.0 * torch", "return -1.5 * torch", scipy("diamonds")),
    Mutation("the past in reverse", DENSITIES, "y[order - k : len(y) - k]", "y[k - 1 : len(y) - order + k - 1]",
             scipy("arK")),
]  # fmt: skip
RECURSIONS = [
    Mutation("a decay that is not squared", DENSITIES, "2 * reach, decay * decay", "2 * reach, decay", scipy("garch")),
    Mutation("sums that stop early", DENSITIES, "while reach < len(y):", "while reach < 16:", scipy("garch")),
    Mutation("shares exchanged", DENSITIES, 'p["share"][:, 1:2]', 'p["share"][:, :1]', scipy("garch")),
    Mutation("steps in the wrong order", DENSITIES, "early, late = steps[:, 0:even:2], steps[:, 1:even:2]",
             "late, early = steps[:, 0:even:2], steps[:, 1:even:2]", scipy("hmm")),
    Mutation("the odd step dropped", DENSITIES, "[torch.logaddexp(*through), steps[:, even:]]",
             "[torch.logaddexp(*through)]", scipy("hmm")),
    Mutation("emission of the state that is left", DENSITIES, "emission[:, 1:, None]", "emission[:, 1:, :, None]",
             scipy("hmm")),
    Mutation("lynxes that only starve", DENSITIES, "hares.exp(), value=other", "hares.exp(), value=-other",
             scipy("hudson")),
    Mutation("a last share left out", DENSITIES, "hares = torch.addcmul(hares + _PREY[0] * alpha",
             "_ = torch.addcmul(hares + _PREY[0] * alpha", ORDER),
    Mutation("no width of the log-normal", DENSITIES, "normal(spread, -1.0, 1.0) - spread", "normal(spread, -1.0, 1.0)",
             scipy("hudson")),
]  # fmt: skip
PRIORS = [
    Mutation("effects that τ does not scale", DENSITIES, 'p["tau"][:, None] * p["z"]\n', 'p["z"]\n', scipy("eight")),
    Mutation("no log sd where it varies", DENSITIES, "squares - sd.log()", "squares", scipy("low_dim")),
    Mutation("a flat weight", DENSITIES, "4.0 * weights.sum(1)", "0.0 * weights.sum(1)", scipy("low_dim")),
    Mutation("a gamma of shape 24", DENSITIES, "24.0 * p", "23.0 * p", scipy("gp_pois")),
]
JUDGES = [
    Mutation("one error left out", RECORDS, "(self.mean_se**2 + other.mean_se**2)", "(self.mean_se**2)", SCORES),
    Mutation("that of spreads left out", RECORDS, "(self.sd_se**2 + other.sd_se**2)", "(self.sd_se**2)", SCORES),
    Mutation("a bound of one side", JUDGE, "inv_cdf(each / 2)", "inv_cdf(each)", BOUND),
    Mutation("a bound for one comparison", JUDGE, "math.log1p(-rate) / comparisons", "math.log1p(-rate)", BOUND),
    Mutation("seeds not counted", SUITE, "return 2 * seeds *", "return 2 *", BOUND),
    Mutation("spreads not counted", SUITE, "return 2 * seeds *", "return seeds *", BOUND),
    Mutation("the start free of charge", SUITE, "cloud.info.evaluations * PARTICLES / CHAINS", "0.0", COUNTED),
    Mutation("warm-up counted twice", SUITE, "draw.info.evaluations - warm", "draw.info.evaluations", COUNTED),
]  # fmt: skip
TARGETS = [
    Mutation("no Jacobian", COORDINATES, "view.energy_of(view.term, y.double(), None)",
             "view.term.energy(view.unravel(y.double()))", SAME),
    Mutation("the precision of the inside", COORDINATES, ".to(y.dtype)", "", SAME),
    Mutation("a state in the wrong order", DENSITIES, 'torch.stack([p["theta1"], p["theta2"]], 1)',
             'torch.stack([p["theta2"], p["theta1"]], 1)', BACK),
    Mutation("entries by position", RECORDS, "tuple(int(k) - 1 for k in inside[:-1].split(\",\"))",
             "tuple(-int(k) for k in inside[:-1].split(\",\"))", BACK),
    Mutation("variances of y for those of its square", COORDINATES, "flat[1].mean(0), flat[1].var(0)]",
             "flat[1].mean(0), flat[0].var(0)]", BACK),
    Mutation("standard errors not squared", COORDINATES, "mcse(squares)]) ** 2 /", "mcse(squares)]) /", BACK),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [*REGRESSIONS, *RECURSIONS, *PRIORS, *JUDGES, *TARGETS], ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_it_is_noticed(mutation):
    verify(mutation)
