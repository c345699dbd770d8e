"""Errors planted in microcanonical and underdamped Langevin, in generalised HMC and their tuning: each is noticed."""

import pytest

from boltzmix.compose.kernels import GHMC, Underdamped
from tests.compose import test_microcanonical as micro
from tests.compose import test_underdamped as under
from tests.mutations.harness import Mutation, law, verify

KERNEL, BASE = "boltzmix.compose.kernels.microcanonical", "boltzmix.compose.kernels.base"
TUNING = "boltzmix.compose.adaptation.microcanonical"
UNDERDAMPED, VELOCITY, HMC_, GHMC_ = (
    f"boltzmix.compose.kernels.{m}" for m in ("underdamped", "velocity", "hmc", "ghmc")
)


FLOW = law(micro.test_a_kick_is_the_flow_of_the_velocity_and_its_jacobian)
STEEP = law(micro.test_steep_scores_do_not_overflow_and_no_score_does_nothing)
VOLUME = law(micro.test_the_energy_error_is_the_volume_and_the_density)
REVERSES = law(micro.test_a_step_and_its_energy_error_are_reversible, "mclachlan")
TRAJECTORY = law(micro.test_a_trajectory_is_accepted_by_its_whole_energy_error_and_its_end_leads_back)
STAYS = law(micro.test_exact_draws_of_a_gaussian_stay_exact, *micro.ADJUSTED[1])
FORGETS = law(micro.test_directions_are_forgotten_over_the_length)
COUNTS = law(micro.test_the_number_of_steps_has_the_mean_that_the_length_asks_for, 1.7)
BLIND = law(micro.test_a_score_alone_will_do_and_its_energy_error_is_exact_on_a_gaussian)
INFINITE = law(micro.test_infinite_energies_are_ordinary_rejections)
EDGE = law(micro.test_steps_out_of_the_support_are_refused_counted_and_turned_round)
BIAS = law(micro.test_the_bias_on_a_gaussian_tends_to_the_stated_one, "leapfrog", 1.0)
MASS = law(micro.test_a_mass_is_a_change_of_coordinates, False)
COST = law(micro.test_a_step_costs_what_the_kernel_says, "mclachlan", 2)
ROWS = law(micro.test_a_step_size_for_each_chain_is_that_chain_s)

MICROCANONICAL = [
    Mutation("kicks over D dimensions", KERNEL, "velocity.shape[1] - 1", "velocity.shape[1]", FLOW),
    Mutation("a kick without the projection", KERNEL, "(1 + zeta + c * (1 - zeta))", "(1 + zeta)", FLOW),
    Mutation("a kick down the density", KERNEL, "+ (1 - zeta) *", "- (1 - zeta) *", FLOW),
    Mutation("a kick without exponentials", KERNEL, "zeta = (-delta).exp()", "zeta = 1 - delta", FLOW),
    Mutation(
        "a kick that overflows",
        KERNEL,
        "delta + (along + against * zeta * zeta).log()",
        "(along * delta.exp() + against * zeta).log()",
        STEEP,
    ),
    Mutation("no score is divided by zero", KERNEL, "torch.where(norm > 0, norm, 1.0)", "norm", STEEP),
    Mutation("velocities that drift off the sphere", KERNEL, "return unit(turned), ", "return turned, ", FLOW),
    Mutation("ΔK for D dimensions", KERNEL, "gain = spare *", "gain = (spare + 1) *", FLOW),
    Mutation("ΔK with the wrong sign", KERNEL, "gain = spare *", "gain = -spare *", VOLUME),
    Mutation("ΔK without δ", KERNEL, "(delta + (along", "((along", FLOW),
    Mutation("ΔK of the last kick alone", KERNEL, "gain = gain + more", "gain = more", VOLUME),
    Mutation(
        "kicks that are not symmetric", KERNEL, "coefficients[j + 1] * size", "coefficients[j - 1] * size", REVERSES
    ),
    Mutation("acceptance without the kinetic term", KERNEL, "- state.energy + kinetic", "- state.energy", STAYS),
    Mutation("acceptance without the energy", KERNEL, "end.energy - state.energy + kinetic", "kinetic", STAYS),
    Mutation("acceptance by the last step", KERNEL, "end.velocity, kinetic + gain", "end.velocity, gain", TRAJECTORY),
    Mutation("no test", KERNEL, "state, end, -error, noise", "state, end, 0 * error, noise", STAYS),
    Mutation("the test the wrong way round", KERNEL, "state, end, -error, noise", "state, end, error, noise", STAYS),
    Mutation(
        "velocities that are not uniform", KERNEL, "state.score, unit(noise.normal)", "state.score, noise.normal", STAYS
    ),
    Mutation("counts with the mean of half the length", KERNEL, "(2 * ratio - 1)", "(1 * ratio)", COUNTS),
    Mutation("counts with a mean that is too large", KERNEL, "(2 * ratio - 1)", "(2 * ratio)", COUNTS),
    Mutation(
        "a length in steps",
        KERNEL,
        "self._length(tune, noise.normal) / tune.step_size",
        "self._length(tune, noise.normal)",
        COUNTS,
    ),
    Mutation("rows that have arrived go on", KERNEL, "tune.column * (k < count)[:, None]", "tune.column", ROWS),
    Mutation("ν for a length twice as long", KERNEL, "expm1(2 * size / length)", "expm1(size / length)", FORGETS),
    Mutation("ν without the dimension", KERNEL, " / state.x.shape[1]).sqrt()", ").sqrt()", FORGETS),
    Mutation("no renewal", KERNEL, "chosen.velocity + spread * noise.normal", "chosen.velocity", FORGETS),
    Mutation("the energy error without ΔK", KERNEL, "error = gain - energy", "error = -energy", BLIND),
    Mutation("half the work", KERNEL, "(0.5 * (before + score)", "(before", BLIND),
    Mutation(
        "an infinite energy is accepted at first",
        BASE,
        "torch.where(torch.isfinite(proposal.energy), fall, -torch.inf)",
        "fall",
        INFINITE,
    ),
    Mutation("infinite energies count", BASE, "~good & (proposal.energy != torch.inf)", "~good", INFINITE),
    Mutation("no flip at a wall", KERNEL, "chosen = turned(chosen, info.accepted)", "pass", EDGE),
    Mutation("drifts without the mass", KERNEL, "size * tune.push(velocity)", "size * velocity", MASS),
    Mutation("kicks without the mass", KERNEL, "kick(velocity, tune.pull(score)", "kick(velocity, score", MASS),
    Mutation("drifts of twice the length", KERNEL, "coefficients[j] * size", "2 * coefficients[j] * size", BIAS),
    Mutation(
        "a cost that is not honest", KERNEL, "len(INTEGRATORS[self.integrator]) // 2\n        if", "1\n        if", COST
    ),
    Mutation(
        "steps are counted, not evaluations",
        KERNEL,
        "stages, dtype=torch.long) * count",
        "1, dtype=torch.long) * count",
        COST,
    ),
    Mutation(
        "old energies of a new target",
        KERNEL,
        "return replace(state, energy=energy, score=score)",
        "return replace(state, score=score)",
        law(micro.test_energies_of_a_target_that_has_changed_are_taken_anew),
    ),
    Mutation(
        "one dimension is accepted",
        KERNEL,
        "if x.shape[1] < 2",
        "if x.shape[1] < 1",
        law(micro.test_wrong_calls_say_what_to_do),
    ),
]

STEP = law(micro.test_the_step_size_is_that_of_the_energy_variance_asked_for)
TUNED = law(micro.check_tuned, False)
TUNED_EXACT = law(micro.check_tuned, True)

ADAPTATION = [
    Mutation("an energy variance that grows as ε⁴", TUNING, "/ self.step_size**6", "/ self.step_size**4", STEP),
    Mutation("a step of the fourth root", TUNING, "** (-1 / 6)", "** (-1 / 4)", STEP),
    Mutation("the energy error, not its square", TUNING, "error * error / self.goal", "error.abs() / self.goal", STEP),
    Mutation("refused steps say nothing", TUNING, "torch.where(refused, 10.0,", "torch.where(refused, 1.0,", STEP),
    Mutation(
        "a goal that forgets the dimension",
        TUNING,
        "self.settings.energy_variance * self.like.shape[1]",
        "self.settings.energy_variance * 1e-2",
        TUNED,
    ),
    Mutation("L in transitions", TUNING, "* distance * float", "* float", TUNED),
    Mutation(
        "L of all draws", TUNING, "* distance * float(spacing.mean())", "* distance * float(spacing.sum())", TUNED
    ),
    Mutation(
        "a window that is thrown away",
        TUNING,
        "        self.mass = mass\n        self.search",
        "        self.search",
        TUNED,
    ),
    Mutation(
        "one chain decides for all",
        TUNING,
        "acceptance.sum() / count.clamp(min=1)",
        "acceptance.min()",
        TUNED_EXACT,
    ),
    Mutation(
        "a given length is adapted",
        TUNING,
        "begin < self.step <= end and self.kernel.length is None",
        "begin < self.step <= end",
        law(micro.test_a_length_that_was_given_is_left),
    ),
    Mutation(
        "a history that is forgotten",
        TUNING,
        'list(tensors["history"]) if "history" in tensors else []',
        "[]",
        law(micro.test_a_warm_up_goes_on_bit_for_bit, False, 75),
    ),
    Mutation(
        "a length that is forgotten",
        TUNING,
        'self.length = tensors["length"]',
        "pass",
        law(micro.test_a_warm_up_goes_on_bit_for_bit, True, 90),
    ),
]

ONE = (1.0, 1.2, 1.0)
LINEAR = law(under.test_the_bias_on_a_gaussian_is_that_of_the_linear_map, *ONE)
FRICTION = law(under.test_velocities_are_forgotten_at_the_rate_of_the_friction)
WORK = law(under.test_the_acceptance_reported_is_that_of_the_work_without_the_heat)

LANGEVIN = [
    Mutation(
        "friction of twice the strength", UNDERDAMPED, "-self.friction * step", "-2 * self.friction * step", FRICTION
    ),
    Mutation(
        "noise of Euler's method",
        UNDERDAMPED,
        "(1 - decay * decay).sqrt()",
        "(2 * self.friction * step) ** 0.5",
        LINEAR,
    ),
    Mutation("noise too large by a root", UNDERDAMPED, "(1 - decay * decay).sqrt()", "(1 - decay).sqrt()", LINEAR),
    Mutation("a drift by one velocity", UNDERDAMPED, "tune.push(kicked + renewed)", "tune.push(2 * renewed)", LINEAR),
    Mutation("a whole last kick", UNDERDAMPED, "renewed + 0.5 * step", "renewed + step", LINEAR),
    Mutation("a whole first kick", UNDERDAMPED, "state.velocity + 0.5 * step", "state.velocity + step", LINEAR),
    Mutation(
        "the first kick's score for the last",
        UNDERDAMPED,
        "renewed + 0.5 * step * tune.pull(score)",
        "renewed + 0.5 * step * tune.pull(state.score)",
        LINEAR,
    ),
    Mutation(
        "heat is counted as work",
        UNDERDAMPED,
        "(kinetic(state.velocity, kicked) + kinetic(renewed, velocity))",
        "kinetic(state.velocity, velocity)",
        WORK,
    ),
    Mutation("work of one score", UNDERDAMPED, "0.5 * (state.score + score)", "score", WORK),
    Mutation(
        "finite scores are enough",
        BASE,
        "if not target.has_energy:",
        "if True:",
        law(under.test_energies_that_are_undefined_are_refused_though_scores_are_finite, float("nan"), True),
    ),
    Mutation(
        "no turn where a step is refused",
        VELOCITY,
        "state.velocity, -state.velocity",
        "state.velocity, state.velocity",
        law(under.test_steps_out_of_the_support_are_refused_counted_and_turned_round),
    ),
    Mutation(
        "kicks without the mass",
        UNDERDAMPED,
        "tune.pull(state.score)",
        "state.score",
        law(under.test_a_mass_is_a_change_of_coordinates, Underdamped(step_size=0.3)),
    ),
]

ONE_STEP = law(under.check_stationary, *under.GHMC_CASES[0])
PERSISTENT = law(under.check_stationary, *under.GHMC_CASES[2])
UNIFORM = law(under.test_the_persistent_slice_variable_stays_uniform)
HMC_AGAIN = law(under.test_with_a_fresh_velocity_it_is_hmc)

GENERALISED = [
    Mutation(
        "no flip on rejection",
        VELOCITY,
        "state.velocity, -state.velocity",
        "state.velocity, state.velocity",
        ONE_STEP,
    ),
    Mutation(
        "a flip on acceptance",
        VELOCITY,
        "state.velocity, -state.velocity",
        "-state.velocity, state.velocity",
        law(under.test_persistence_makes_few_leapfrogs_go_far),
    ),
    Mutation("noise that does not complete α", GHMC_, "math.sqrt(1 - self.alpha**2)", "(1 - self.alpha)", ONE_STEP),
    Mutation("the old velocity in the test", GHMC_, "0.5 * (start * start)", "0.5 * (state.velocity**2)", ONE_STEP),
    Mutation(
        "the refused keep the old velocity",
        GHMC_,
        "replace(state, velocity=start)",
        "state",
        law(under.test_refused_velocities_are_reversed_and_the_others_go_on),
    ),
    Mutation(
        "the energy of the other end", GHMC_, "info.accepted, after, before", "info.accepted, before, after", HMC_AGAIN
    ),
    Mutation("a slice that is not rescaled", GHMC_, "drifted * (-log_ratio).exp()", "drifted", PERSISTENT),
    Mutation("a slice rescaled the wrong way", GHMC_, "(-log_ratio).exp()", "log_ratio.exp()", UNIFORM),
    Mutation(
        "a slice that leaves its ring",
        GHMC_,
        "_wrap(state.slice + self.delta_of(noise))",
        "state.slice + self.delta_of(noise)",
        UNIFORM,
    ),
    Mutation(
        "a mass that is not used",
        HMC_,
        "step * tune.push(velocity)",
        "step * velocity",
        law(under.test_a_mass_is_a_change_of_coordinates, GHMC(step_size=0.4, num_leapfrog=2)),
        within="def leapfrog(",
    ),
]


@pytest.mark.parametrize(
    "mutation", [*MICROCANONICAL, *ADAPTATION, *LANGEVIN, *GENERALISED], ids=lambda mutation: mutation.name
)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
