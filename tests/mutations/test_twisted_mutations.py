"""Errors in twisted sampling, planted one by one: a named check notices each."""

import pytest

from tests.compose import test_twisted as laws
from tests.mutations.harness import Mutation, law, verify

SAMPLER, TWIST, CLOUD = (f"boltzmix.compose.samplers.{m}" for m in ("twisted", "twisting", "particles"))
LIKELIHOOD = "boltzmix.compose.measurements"
CHAIN = law(laws.test_the_weights_are_exact_for_the_reverse_chain, "a matrix, small")
FUNCTION = law(laws.test_the_weights_are_exact_for_the_reverse_chain, "a function")
CLAMP = law(laws.test_the_weights_are_exact_for_the_reverse_chain, "a clamp")
DENSITY = law(laws.test_with_energies_the_weights_are_exact_for_the_density, "a matrix")
SLOPE = law(laws.test_the_slope_is_the_gradient_of_the_twist, "a function", 1)
MEASURED = law(laws.test_measurements_are_likelihoods)
POPULATIONS = law(laws.test_populations_resample_within_themselves)

ERRORS = [
    Mutation("the proposal's density is left out", SAMPLER, "tilt * z + 0.5 * tilt.square()", "0 * tilt", CHAIN),
    Mutation("the proposal's mean without its square", SAMPLER, " + 0.5 * tilt.square()", "", CHAIN),
    Mutation(
        "the twist before the step is not divided out",
        SAMPLER,
        "log_twist.double() - before.log_twist.double()",
        "log_twist.double()",
        CHAIN,
    ),
    Mutation(
        "the start is not weighed by its twist",
        SAMPLER,
        "first = look.log_twist.double()",
        "first = 0 * look.log_twist.double()",
        CHAIN,
    ),
    Mutation(
        "the data end keeps the likelihood of the last level",
        SAMPLER,
        "log_twist, log_prior = twist.end(x)",
        "log_twist, log_prior = before.log_twist, twist.end(x)[1]",
        law(laws.test_the_weights_are_exact_for_the_reverse_chain, "a mask, from far above the data"),
    ),
    Mutation(
        "the kernel forgets the variance of x0",
        SAMPLER,
        " + (1 - share) ** 2 * spread",
        "",
        law(laws.test_the_weights_are_exact_for_the_reverse_chain, "a matrix"),
    ),
    Mutation("the estimate's share in a step", SAMPLER, "(following / sigma) ** 2", "(following / sigma)", CHAIN),
    Mutation(
        "particles are resampled and their looks are not",
        SAMPLER,
        "run.x, run.look = run.x[chosen], run.look.select(chosen)",
        "run.x = run.x[chosen]",
        FUNCTION,
    ),
    Mutation(
        "the noise that leads back is not normalised",
        SAMPLER,
        "square() / forwards + forwards.log() + _LOG_2PI",
        "square() / forwards",
        DENSITY,
    ),
    Mutation(
        "densities without the prior's ratio",
        SAMPLER,
        "log_prior.double() - before.log_prior",
        "0 * before.log_prior",
        DENSITY,
    ),
    Mutation("densities without the start's", SAMPLER, "(look.log_prior - log_start)", "look.log_prior", DENSITY),
    Mutation(
        "clamped coordinates count as drawn",
        SAMPLER,
        "towards = towards[:, ~twist.mask]",
        "pass",
        law(laws.test_with_energies_the_weights_are_exact_for_the_density, "a clamp"),
    ),
    Mutation(
        "what is clamped is not observed at the end",
        SAMPLER,
        "twist.log_observed(look.estimate, width)",
        "0 * x[:, 0]",
        CLAMP,
    ),
    Mutation(
        "the slope does not go through the network",
        TWIST,
        "self.view._joined(self.view._parts(score))",
        "self.view._joined(self.view._parts(score)).detach()",
        SLOPE,
    ),
    Mutation(
        "the estimate forgets the exponents",
        TWIST,
        "step = (sigma**2 / self.total(sigma))",
        "step = (sigma**2 + 0 * self.total(sigma))",
        law(laws.test_the_slope_is_the_gradient_of_the_twist, "a power", 1),
    ),
    Mutation(
        "a factor at another prior's estimate is taken at this one's",
        TWIST,
        "inside = factor.prior.key() == own and",
        "inside =",
        law(laws.test_another_priors_estimate_is_its_own),
    ),
    Mutation(
        "the width of data given x is the noise's",
        TWIST,
        "noise / (1.0 + noise / self.variance)",
        "noise",
        law(laws.test_the_width_is_the_spread_of_data_given_x),
    ),
    Mutation(
        "a pilot that takes the slope for the variance",
        TWIST,
        "* slope / (1 - slope)",
        "* slope * slope",
        law(laws.test_the_width_is_the_spread_of_data_given_x),
    ),
    Mutation(
        "looks are not counted", TWIST, "self.view.count(x.shape[0])", "pass", law(laws.test_evaluations_are_counted)
    ),
    Mutation(
        "clamped coordinates are not set at the end", TWIST, "torch.where(self.mask, self.value.to(x), x)", "x", CLAMP
    ),
    Mutation(
        "a matrix does not spread the estimate's width",
        LIKELIHOOD,
        "(matrix * spread) @ matrix.mT",
        "0 * matrix @ matrix.mT",
        MEASURED,
    ),
    Mutation("a power does not narrow a measurement", LIKELIHOOD, ".square() / power", ".square()", MEASURED),
    Mutation("a measurement without its constant", LIKELIHOOD, "+ 0.5 * residual.shape[-1] * _LOG_2PI", "", MEASURED),
    Mutation(
        "rows of other populations are taken",
        CLOUD,
        "(drawn + size * torch.arange(count, device=device)[:, None])",
        "drawn",
        POPULATIONS,
        "class Populations",
    ),
    Mutation(
        "populations that need none are resampled",
        CLOUD,
        "drawn = torch.where(chosen[:, None], drawn, own)",
        "pass",
        POPULATIONS,
    ),
    Mutation(
        "weights survive resampling",
        CLOUD,
        "torch.where(chosen[:, None], -math.log(size), self.log_weights)",
        "self.log_weights",
        POPULATIONS,
    ),
    Mutation(
        "evidence as the mean of logs",
        CLOUD,
        "float(self.log_z.logsumexp(0)) - math.log(count)",
        "float(self.log_z.mean())",
        POPULATIONS,
    ),
    Mutation(
        "particles without weight come back",
        CLOUD,
        "logs = torch.where(self.log_weights == -torch.inf, -torch.inf, logs)",
        "pass",
        law(laws.test_a_particle_without_weight_does_not_come_back),
    ),
    Mutation(
        "conditions that differ within a population",
        CLOUD,
        "(rows == rows[:, :1]).all()",
        "True",
        law(laws.test_wrong_calls_say_what_to_write, "rows that differ"),
    ),
]


@pytest.mark.parametrize("mutation", ERRORS, ids=lambda m: m.name)
def test_an_error_is_noticed(mutation):
    verify(mutation)
