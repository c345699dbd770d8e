"""Errors planted one by one in masses, warm-ups and the files that draws go to: a named check notices each."""

import functools
import tempfile
from pathlib import Path

import pytest

from boltzmix.compose.adaptation import ChEES, Windows
from boltzmix.compose.kernels import HMC, MALA
from tests.compose import test_adaptation, test_chain_store
from tests.mutations.harness import Mutation, law, verify

AVERAGING, MOMENTS, MASSES, WINDOWS, CHEES, LOOP = (
    f"boltzmix.compose.adaptation.{m}" for m in ("dual_averaging", "moments", "masses", "windows", "chees", "loop")
)
MASS, HMC_ = (f"boltzmix.compose.kernels.{m}" for m in ("mass", "hmc"))
STORE, CHAINS = (f"boltzmix.compose.samplers.{m}" for m in ("store", "mcmc"))


def in_files(check, *args):
    """A check of files, in a folder of its own."""

    def run():
        with tempfile.TemporaryDirectory() as folder:
            check(*args, Path(folder))

    return law(run)


maps = functools.partial(law, test_adaptation.test_push_and_pull_are_one_map_and_its_transpose)
gives = functools.partial(law, test_adaptation.test_many_draws_give_the_mass)
MOMENTS_AGREE = law(test_adaptation.test_running_moments_are_those_of_all_rows)
EXACT = law(test_adaptation.test_fisher_masses_of_a_gaussian_are_exact_after_few_draws)
SCALES = law(test_adaptation.test_scales_of_eight_orders_are_found, HMC(num_leapfrog=4))
RESUMES = law(test_adaptation.test_a_tuner_goes_on_bit_for_bit, HMC(num_leapfrog=3), Windows())
RESUMES_DENSE = law(
    test_adaptation.test_a_tuner_goes_on_bit_for_bit, HMC(num_leapfrog=3), Windows(mass="dense", estimator="fisher")
)
RESUMES_LOW_RANK = law(
    test_adaptation.test_a_tuner_goes_on_bit_for_bit, MALA(), Windows(mass="low-rank", estimator="fisher")
)
RESUMES_CHEES = law(test_adaptation.test_a_tuner_goes_on_bit_for_bit, HMC(num_leapfrog=None), ChEES())
WIDER = law(test_adaptation.test_chees_finds_longer_trajectories_for_wider_targets)
MIXES = law(test_adaptation.test_chees_with_a_mass_mixes_in_few_leapfrogs)
TRAJECTORY = law(test_adaptation.test_the_trajectory_that_chees_sees_is_the_one_that_was_taken)
KILLED = in_files(test_chain_store.test_a_killed_run_goes_on_bit_for_bit, True, 0.6)
KILLED_IN_MEMORY = in_files(test_chain_store.test_a_killed_run_goes_on_bit_for_bit, False, 0.9)

PLANTED = [
    Mutation(
        "a dense mass that pulls with its factor", MASS, "score @ self.factor", "score @ self.factor.mT", maps("dense")
    ),
    Mutation(
        "a dense mass that pushes transposed",
        MASS,
        "velocity @ self.factor.mT",
        "velocity @ self.factor",
        maps("dense"),
    ),
    Mutation(
        "eigenvalues without their root",
        MASS,
        "self.eigenvalues.sqrt() - 1.0",
        "self.eigenvalues - 1.0",
        maps("low rank"),
    ),
    Mutation(
        "a low-rank pull in the wrong order",
        MASS,
        "self._root(self.scale * score)",
        "self.scale * self._root(score)",
        maps("low rank"),
    ),
    Mutation(
        "variances without the low rank", MASS, "(self.eigenvalues - 1.0)", "(0 * self.eigenvalues)", maps("low rank")
    ),
    Mutation(
        "masses that look alike",
        MASS,
        "digest.hexdigest()[:8]",
        "''",
        law(test_adaptation.test_two_masses_have_two_names),
    ),
    Mutation("batches whose means are forgotten", MOMENTS, "+ factor * shift * shift", "", MOMENTS_AGREE),
    Mutation(
        "dense batches whose means are forgotten", MOMENTS, "+ factor * shift[:, None] * shift", "", MOMENTS_AGREE
    ),
    Mutation("a mean of means", MOMENTS, "shift * (n / total)", "shift * 0.5", MOMENTS_AGREE),
    Mutation(
        "the goal is taken for the error",
        AVERAGING,
        "(self.goal - acceptance - self.error)",
        "(self.goal - self.error)",
        law(test_adaptation.test_dual_averaging_reaches_its_goal),
    ),
    Mutation(
        "an average that does not average",
        AVERAGING,
        "self.average = weight * log_step + (1 - weight) * self.average",
        "pass",
        law(test_adaptation.test_dual_averaging_reaches_its_goal),
    ),
    Mutation("a Fisher mass without its root", MASSES, "else second)).sqrt()", "else second))", EXACT),
    Mutation(
        "the geometric mean the wrong way round",
        MASSES,
        "root @ first @ root",
        "inverse @ first @ inverse",
        law(test_adaptation.test_between_solves_its_equation),
    ),
    Mutation(
        "no shrinkage",
        MASSES,
        "(1 - rho) * correlation",
        "correlation",
        law(test_adaptation.test_shrinkage_goes_with_the_number_of_draws),
    ),
    Mutation(
        "too much shrinkage",
        MASSES,
        "(n + 1 - 2 / p) * excess",
        "excess",
        law(test_adaptation.test_shrinkage_goes_with_the_number_of_draws),
    ),
    Mutation(
        "a low rank whose remainder has no scale", MASSES, "moment / rest", "moment", gives("low-rank", "welford")
    ),
    Mutation(
        "scores are whitened like draws",
        MASSES,
        "(score - score.mean(0)) * scale",
        "(score - score.mean(0)) / scale",
        gives("low-rank", "fisher"),
    ),
    Mutation("the mass is not used", WINDOWS, "        self.mass = mass\n", "", SCALES),
    Mutation(
        "a window keeps the draws of the last",
        WINDOWS,
        "mass, self.window = self.window.estimate(), self._empty()",
        "mass = self.window.estimate()",
        law(test_adaptation.test_each_window_begins_anew),
    ),
    Mutation(
        "the last step instead of the averaged one",
        WINDOWS,
        "Tune(self.averaging.averaged(), self.mass)",
        "Tune(self.averaging.step_size, self.mass)",
        law(lambda: averaged()),
    ),
    Mutation(
        "no mass from scores",
        WINDOWS,
        'MassEstimate("diagonal", "fisher", self.like)',
        'MassEstimate("diagonal", "welford", self.like)',
        law(test_adaptation.test_scores_give_a_first_mass_before_chains_have_crossed_their_target),
    ),
    Mutation(
        "a given mass is thrown away",
        WINDOWS,
        "settings.mass is not None and self.mass is None",
        "True",
        law(test_adaptation.test_a_mass_that_was_given_is_kept),
    ),
    Mutation("a tuner forgets its step", WINDOWS, 'self.step = state["step"]', "pass", RESUMES),
    Mutation("a tuner forgets its mass", WINDOWS, 'self.mass = mass_from(part(tensors, "mass/"))', "pass", RESUMES),
    Mutation(
        "a tuner forgets its draws",
        MASSES,
        'self.draws.restore(part(tensors, "draws/"), record["draws"])',
        "pass",
        RESUMES,
    ),
    Mutation(
        "a tuner forgets its scores",
        MASSES,
        'self.scores.restore(part(tensors, "scores/"), record["scores"])',
        "pass",
        RESUMES_DENSE,
    ),
    Mutation(
        "a tuner forgets its rows",
        MASSES,
        'self.rows, self.stride, self.seen = tensors["rows"]',
        '_, self.stride, self.seen = tensors["rows"]',
        RESUMES_LOW_RANK,
    ),
    Mutation("ChEES goes down", CHEES, "+ _RATE * max", "- _RATE * max", WIDER),
    Mutation("ChEES without centring", CHEES, "start - start.mean(0), end - end.mean(0)", "start, end - start", WIDER),
    Mutation(
        "ChEES keeps its length when the units change",
        CHEES,
        "self.log_length -= 0.5 * math.log",
        "self.log_length += 0.5 * math.log",
        MIXES,
    ),
    Mutation("ChEES forgets its numbers", CHEES, "setattr(self, name, state[name])", "pass", RESUMES_CHEES),
    Mutation("trajectories of half their length", HMC_, "2 * share * length", "share * length", TRAJECTORY),
    Mutation(
        "the rejected end is reported as the energy",
        HMC_,
        "torch.where(info.accepted, after, before)",
        "before",
        TRAJECTORY,
    ),
    Mutation(
        "nothing is learned",
        LOOP,
        "tuner.update(before, state, info)",
        "pass",
        law(test_adaptation.test_a_public_loop_with_a_tuned_kernel_has_the_right_variance),
    ),
    Mutation(
        "a block is written one draw late",
        STORE,
        "at : at + values.shape[1]",
        "at + 1 : at + 1 + values.shape[1]",
        in_files(test_chain_store.test_files_hold_what_memory_would),
    ),
    Mutation(
        "files of another run are taken",
        STORE,
        "values.shape[:2] != (self.chains, self.draws)",
        "False",
        in_files(test_chain_store.test_files_of_another_run_are_refused),
    ),
    Mutation("an unfinished file has its final name", STORE, '.with_suffix(".npy.partial")', "", KILLED),
    Mutation("a checkpoint without draws", STORE, "values[:, :done]", "values[:, :0]", KILLED_IN_MEMORY),
    Mutation(
        "a resumed run forgets what it kept",
        CHAINS,
        'self.step, self.kept, self.divergences = record["step"], record["kept"]',
        'self.step, self.kept, self.divergences = record["step"], 0',
        KILLED_IN_MEMORY,
    ),
]


def averaged():
    """The tuned step size is the averaged one."""
    from boltzmix.compose.adaptation.windows import WindowTuner
    from boltzmix.compose.kernels import State

    x = test_adaptation.torch.zeros(2, 3)
    tuner = WindowTuner(Windows(), HMC(), State(x, x[:, 0], x), 10)
    for acceptance in (0.2, 0.9, 0.4):
        tuner.averaging.update(test_adaptation.torch.full((2,), acceptance))
    assert test_adaptation.torch.equal(tuner.finish().step_size, tuner.averaging.averaged())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutation", PLANTED, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
