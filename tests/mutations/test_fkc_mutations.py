"""Errors in Feynman–Kac corrected reverse diffusion, planted one by one: a named check notices each."""

import pytest

from boltzmix.compose.closed_form import gaussian_product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import FKC
from tests.compose import test_fkc, test_fkc_quotients
from tests.mutations.harness import Mutation, law, verify

FORMULAS, RUNS, START = (f"boltzmix.compose.samplers.{m}" for m in ("feynman_kac", "fkc", "coarse_start"))


def products(case: str) -> None:
    """Two 1-d Gaussians, known by scores."""
    test_fkc.test_gaussians(case)


def unspent(threshold: float) -> None:
    """log Z of a mixture's square, in one short run."""
    target = test_fkc.formula(test_fkc.MIXTURES["power 2"])
    draw = sample(target, 1000, sampler=FKC(steps=60, ess_threshold=threshold), seed=1)
    assert abs(draw.log_z - test_fkc.on_a_grid(test_fkc.MIXTURES["power 2"])[0]) < 4 * draw.log_z_se


def coarse() -> None:
    """From a level where data are not small beside the noise, the start's weight matters."""
    pairs = [(test_fkc.gaussian([0.0, 0.0], [1.0, 1.0]), 1.0), (test_fkc.gaussian([1.0, -1.0], [2.0, 0.5]), 1.0)]
    target = test_fkc.formula(pairs)
    sigmas = [3.0 * (1e-3) ** (k / 59) for k in range(60)]
    draw = sample(target, 2000, sampler=FKC(sigmas=sigmas), seed=1)
    assert abs(draw.log_z - gaussian_product(pairs)[1]) < 1e-3 + 4 * draw.log_z_se


RATES = law(test_fkc.test_weight_rates_are_the_formulas_of_the_papers)
GUESS = law(test_fkc.test_the_guess_transports_itself)
STEP = law(test_fkc.test_a_step_keeps_the_gaussian_of_the_coarse_levels)
MUTATIONS = [
    Mutation("squares of scores without their exponents", FORMULAS, "rate - power * (score * score)",
             "rate - score * score", RATES),
    Mutation("Euler's factor g² in place of g²/2", FORMULAS, "rate = 0.5 * rate + 0.5 * total * tilt",
             "rate = rate + 0.5 * total * tilt", RATES),
    Mutation("a tilt's gradient at full weight", FORMULAS, "0.5 * total * tilt", "total * tilt", RATES),
    Mutation("the escort's divergence is forgotten", FORMULAS, "own = slope - flow.guess.rate(sigma)",
             "own = -flow.guess.rate(sigma)", law(products, "power 2")),
    Mutation("the escort moves particles and not weights", FORMULAS,
             "(slope.to(x) * x + shift.to(x)) * (total + tilt)", "0.0 * (total + tilt)", law(products, "power 2")),
    Mutation("the guess's mean stands still", FORMULAS, "-mean_change - 0.5 * score - slope * mean",
             "-0.5 * score - slope * mean", GUESS),
    Mutation("the guess's variance shrinks at another rate", FORMULAS, "0.5 * (noised + precision_change / precision)",
             "0.5 * (noised - precision_change / precision)", GUESS),
    Mutation("the guess's rate is no derivative of its log Z", FORMULAS, "0.5 * mean**2 * precision_change",
             "mean**2 * precision_change", GUESS),
    Mutation("a fading whose slope is of σ, not of v", FORMULAS, "-(self._share(sigma) ** 2) / self.scale",
             "-2 * sigma * (self._share(sigma) ** 2) / self.scale", GUESS),
    Mutation("noise of the reverse SDE whatever the share", FORMULAS, "self.noise * self.strength)) / self.strength",
             "self.strength)) / self.strength", STEP),
    Mutation("the relaxation forgets the share of noise", FORMULAS, "0.5 * (1.0 + self.noise * self.strength)",
             "0.5 * (1.0 + self.strength)", STEP),
    Mutation("Euler's weights: the rate at the left end", FORMULAS, "return 0.5 * sigma**2 * steps",
             "return 0.0 if following is None else 2 * sigma**2 * math.log(sigma / following)",
             law(test_fkc.test_the_trapezoid_rule_is_of_the_second_order)),
    Mutation("the start's weight is left out", RUNS, "increments + begin.log_weights(walk.x, formula, values, powers)",
             "increments", law(products, "product")),
    Mutation("the log-density of the start has the wrong sign", START, "0.5 * (scaled.double() ** 2 +",
             "-0.5 * (scaled.double() ** 2 +", law(coarse)),
    Mutation("a coarse log-density from one end of the segment", FORMULAS, "0.5 * ((score + at_centre)",
             "1.0 * ((score + at_centre)", law(coarse)),
    Mutation("the guess's log Z is not put back", RUNS, "flow.guess.log_z(levels[-1]) - flow.guess.log_z(sigma)",
             "0.0", law(products, "product")),
    Mutation("resampled states with the goals of others", RUNS, "goal[rows], score[rows]", "goal, score[rows]",
             law(unspent, 1.0)),
    Mutation("weights are spent without resampling", RUNS,
             "rows = walk.cloud.resample(request.generator, sampler.ess_threshold)",
             "rows = walk.cloud.resample(request.generator, sampler.ess_threshold); "
             "walk.cloud.log_weights = torch.full_like(walk.cloud.log_weights, -math.log(len(walk.x)))",
             law(unspent, 0.5)),
    Mutation("a tilt ends before its full weight", RUNS, "half * (_tilts(formula, begin, b)[index]",
             "0.9 * half * (_tilts(formula, begin, b)[index]", law(test_fkc.test_rewards, "quadratic", 1)),
    Mutation("the guess's tilt is counted twice", RUNS, "add(begin.flow.guess.tilt(x).sum(1), -change)",
             "add(begin.flow.guess.tilt(x).sum(1), 0.0)", law(test_fkc.test_rewards, "quadratic", 1)),
    Mutation("a scale is lost", RUNS, "raw += view.term.log_scale", "raw += 0.0",
             law(test_fkc.test_evidence_is_kept_back_where_constants_are_free)),
    Mutation("rows of a population are not shuffled", RUNS, ".gather(1, keys.argsort(1))", "",
             law(test_fkc.test_rows_of_a_population_are_in_random_order)),
    Mutation("a quotient's Gaussians are fitted in many dimensions", START, "(view.per_row or view.dim > _FITTED)",
             "view.per_row", law(test_fkc_quotients.many_coordinates)),
    Mutation("a quotient's Gaussians are fitted to rows of several targets", START,
             "(view.per_row or view.dim > _FITTED)", "view.dim > _FITTED", law(test_fkc_quotients.conditions_of_rows)),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_error_is_noticed(mutation):
    verify(mutation)
