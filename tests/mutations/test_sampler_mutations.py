"""Errors that released samplers have had, planted one by one: a named check notices each."""

import tempfile
from pathlib import Path

import pytest

from boltzmix.compose.kernels import HMC, MALA, UHMC
from boltzmix.compose.samplers import Annealed, base
from tests.compose import test_kernels, test_mcmc, test_smc, test_wrong_sampler_calls
from tests.mutations.harness import Mutation, law, verify

KERNEL = "boltzmix.compose.kernels.base"
LOOP, CLOUD, PATH, RUNS, CHAINS, REVERSE = (
    f"boltzmix.compose.samplers.{m}" for m in ("anneal", "particles", "path", "smc", "mcmc", "reverse")
)
AVERAGING, WINDOWS = (f"boltzmix.compose.adaptation.{m}" for m in ("dual_averaging", "windows"))
SUMS, PROPER, RESUME = (f"boltzmix.compose.samplers.{m}" for m in ("sums", "proper", "resume"))
CALIBRATION, FLAT = (f"boltzmix.compose.{m}" for m in ("calibration", "flat"))


def resumes(case):
    """A killed run goes on bit for bit."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        save = base.Checkpoint.save
        patch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
        test_smc.test_a_killed_run_goes_on_bit_for_bit(case, Path(folder), None)


NOISE_PATH = law(test_smc.test_log_z_and_masses_of_a_product_of_mixtures, "noise")
SAMPLERS = [
    Mutation(
        "evaluations of scores are not counted",
        FLAT,
        "self.view.count(x.shape[0])",
        "pass",
        law(test_kernels.test_a_step_costs_what_the_kernel_says, HMC(step_size=0.1, num_leapfrog=7), 7),
        "def score(self",
    ),
    Mutation(
        "clamped coordinates are moved",
        FLAT,
        "index_copy(1, self._free, flat)",
        "index_copy(1, self._free, flat) + 0.01",
        law(test_smc.test_a_clamped_product_is_the_gaussian_conditional),
    ),
    Mutation(
        "a dropped Jacobian",
        LOOP,
        "_increments(run, run.point, point) + log_det",
        "_increments(run, run.point, point)",
        NOISE_PATH,
    ),
    Mutation(
        "a contraction fitted on the particles that it moves",
        LOOP,
        "        moved[half] = mean + scale * (x[half] - mean)\n        log_det[half]",
        "        moved[~half] = mean + scale * (x[~half] - mean)\n        log_det[~half]",
        law(test_smc.check_contraction),
    ),
    Mutation("log Z without the start's weight", LOOP, "cloud.reweigh(increments)", "pass", NOISE_PATH, "def begin"),
    Mutation(
        "the start's density is forgotten",
        PATH,
        "- 0.5 * (variance.log() + math.log(2 * math.pi)).sum()",
        "",
        NOISE_PATH,
    ),
    Mutation(
        "resampling without resetting the weights",
        CLOUD,
        "torch.full_like(self.log_weights, -math.log(len(rows)))",
        "self.log_weights[rows]",
        law(test_smc.test_log_z_and_masses_of_a_product_of_mixtures, "noise, resampled often"),
    ),
    Mutation(
        "ancestors are not carried along",
        CLOUD,
        "self.ancestors = self.ancestors[rows]",
        "pass",
        law(test_smc.test_adaptive_levels_have_an_honest_error_bar),
    ),
    Mutation(
        "an error bar from the last weights alone",
        CLOUD,
        "shares.index_add_(0, self.ancestors, self.weights)",
        "shares += self.weights",
        law(test_smc.test_adaptive_levels_have_an_honest_error_bar),
    ),
    Mutation("weights that are not normalised", CLOUD, "total - norm\n", "total\n", NOISE_PATH),
    Mutation("weights upside down", LOOP, "here.energy - point.energy)", "point.energy - here.energy)", NOISE_PATH),
    Mutation(
        "particles are never moved",
        LOOP,
        "run.point, info = moves.step(",
        "_, info = moves.step(",
        law(test_smc.test_particles_are_moved_apart_after_resampling),
    ),
    Mutation(
        "weights are dropped at the end",
        RUNS,
        "run.point = run.point.select(run.cloud.resample(request.generator))",
        "pass",
        law(test_smc.test_the_last_weights_are_used),
        "if sampler.resample",
    ),
    Mutation(
        "static factors at full strength from the start",
        PATH,
        "(factor, exponent * Exponent(weight))",
        "(factor, exponent)",
        law(test_smc.test_a_quotient_that_is_improper_at_large_sigma_is_sampled_right),
    ),
    Mutation(
        "a start in one of the modes",
        PATH,
        "best[3] * factor**2 < 1 / 9",
        "True",
        law(test_smc.test_separate_modes_stay_in_view, 2, 3.0, 0.3),
    ),
    Mutation(
        "edges are searched for ever",
        LOOP,
        "stubborn >= 2",
        "stubborn >= 99",
        law(test_smc.test_hard_edges_do_not_cost_a_search),
    ),
    Mutation(
        "dead particles come back to life",
        LOOP,
        "torch.where(weights == -torch.inf, -torch.inf, here.energy - point.energy)",
        "here.energy - point.energy",
        law(test_smc.test_particles_that_died_stay_dead),
    ),
    Mutation(
        "members of a sum weigh what is written",
        SUMS,
        "[w + _known_log_z(d) for",
        "[w for",
        law(test_smc.test_sums_keep_the_weights_of_their_members, "p + p q"),
    ),
    Mutation(
        "weights of a sum are dropped",
        SUMS,
        "[w + _known_log_z(d) for",
        "[_known_log_z(d) for",
        law(test_smc.test_sums_keep_the_weights_of_their_members, "of callables on the noise path"),
    ),
    Mutation(
        "tails are not looked at",
        PROPER,
        "if bool(heavy.any()):\n        raise",
        "if False:\n        raise",
        law(test_smc.test_densities_without_an_integral_are_refused, "mixtures whose tails cancel"),
    ),
    Mutation(
        "tails are looked at, not counted",
        PROPER,
        "view.at(None).energy(mean + r * rays)",
        "view.term._energy(view.unravel(mean + r * rays), None)",
        law(test_smc.test_every_evaluation_is_counted),
    ),
    Mutation(
        "a generator that is not restored",
        RESUME,
        'request.generator.set_state(tensors["generator"])',
        "pass",
        law(resumes, "noise"),
    ),
    Mutation(
        "resuming from the first candidate",
        RESUME,
        ".index(base.key())",
        ".index(base.key()) * 0",
        law(resumes, "exact start from the second candidate"),
    ),
    Mutation(
        "checkpoints of any target",
        "boltzmix.compose.samplers.base",
        '"target": digest.hexdigest()[:16]',
        '"target": 0',
        law(lambda: foreign()),
    ),
    Mutation(
        "strata that share a checkpoint", SUMS, 'file.with_name(f"{file.name}.{index}")', "file", law(resumes, "a sum")
    ),
    Mutation(
        "networks are left in evaluation mode",
        "boltzmix.compose.samplers.base",
        "module.training = mode",
        "pass",
        law(test_smc.test_networks_run_in_evaluation_mode_with_frozen_parameters_and_get_both_back),
    ),
    Mutation(
        "annealed Langevin with a step linear in sigma",
        LOOP,
        "** kernel.step_power",
        "** 1",
        law(test_smc.test_annealed_langevin_scales_its_step_with_the_noise),
    ),
    Mutation(
        "unstable steps throw chains to infinity",
        KERNEL,
        "good = good & (log_ratio > -100.0 - state.x.shape[1])",
        "pass",
        law(lambda: stable()),
    ),
    Mutation(
        "Heun is Euler",
        REVERSE,
        "0.5 * (slope + second)",
        "slope",
        law(test_smc.test_reverse_solvers_have_their_order, "heun", 2),
    ),
    Mutation(
        "multistep is one step",
        REVERSE,
        "return (1 + 0.5 * ratio) * denoised - 0.5 * ratio * previous[0]",
        "return denoised",
        law(test_smc.test_reverse_solvers_have_their_order, "dpmpp", 2),
    ),
    Mutation(
        "DDPM with too much noise",
        REVERSE,
        "lower = following**2 * (1.0 - (following / sigma) ** 2)",
        "lower = following**2",
        law(test_smc.test_reverse_solvers_converge_to_the_mixture, "ddpm"),
    ),
    Mutation(
        "reverse diffusion forgets the data's spread",
        REVERSE,
        'view.term.path == "noised" and view.names is None',
        "False",
        law(test_smc.test_reverse_starts_with_the_spread_of_the_data),
    ),
    Mutation(
        "calibration with the wrong sign",
        CALIBRATION,
        "energy + self.offset",
        "energy - self.offset",
        law(test_smc.test_calibrated_energies_are_normalised_at_every_level_and_mixtures_of_them_keep_their_weights),
    ),
    Mutation(
        "calibration knows only its path's levels",
        CALIBRATION,
        "found += _above(path, n, generator)",
        "pass",
        law(test_smc.test_calibrated_energies_are_normalised_at_every_level_and_mixtures_of_them_keep_their_weights),
    ),
    Mutation(
        "dual averaging with the wrong sign",
        AVERAGING,
        "(self.goal - acceptance - self.error)",
        "(acceptance - self.goal - self.error)",
        law(test_mcmc.test_moments_are_right_and_the_step_size_hits_its_target, MALA(), 500, 1500),
    ),
    Mutation(
        "one step size for all chains from the start",
        WINDOWS,
        "if self.step >= self.shared_from:",
        "if True:",
        law(test_mcmc.test_one_chain_in_the_tails_does_not_freeze_the_others),
    ),
    Mutation(
        "thinning off by one",
        CHAINS,
        "(self.kept + k + 1) % self.thin == 0",
        "(self.kept + k) % self.thin == 0",
        law(test_mcmc.test_thinning_keeps_every_kth_draw),
    ),
    Mutation(
        "unadjusted kernels under weights",
        RUNS,
        "elif weigh:",
        "elif False:",
        law(test_wrong_sampler_calls.test_wrong_calls_say_what_to_do, "an unadjusted kernel for SMC"),
    ),
]


def stable():
    """Few levels and an adapted unadjusted kernel: the cloud stays where its density is."""
    from boltzmix.compose.sample import sample

    draw = sample(test_smc.score_of(test_smc.P), 300, sampler=Annealed(levels=6, kernel=UHMC(num_leapfrog=5)), seed=39)
    assert float(draw.x.abs().max()) < 40


def foreign():
    """Another target's checkpoint is refused."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        save = base.Checkpoint.save
        patch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
        test_smc.test_checkpoints_of_other_runs_and_damaged_ones_are_refused(Path(folder), None)


@pytest.mark.parametrize("mutation", SAMPLERS, ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore")
def test_noticed(mutation):
    verify(mutation)
