"""Errors that superpositions can have, planted one by one: a law notices each."""

import math

import pytest
import torch

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.mixture import mixture
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import SuperDiff
from tests.compose import test_superdiff as laws
from tests.mutations.harness import Mutation, law, verify

ITO, EQUAL, RUN, MEMBERS = (
    f"boltzmix.compose.samplers.{m}" for m in ("ito", "equal_densities", "superdiff", "members")
)  # fmt: skip
EXACT = law(laws.test_a_gaussian_s_log_density_is_exact_at_any_step_with_its_own_noise)
EQUATIONS = law(laws.test_increments_of_all_members_become_equal_and_noise_across_is_kept)
VANISHES = law(laws.check_gap_vanishes, laws.TWO, "returned", 32, 256)
CORRECTED = law(laws.check_gap_vanishes, laws.TWO, "corrected", 32, 256)


def masses():
    """The masses of far members are those of the weights."""
    target = mixture([laws.score_of(p) for p in laws.FAR], [0.2, 0.8])
    draw = sample(target, 1000, sampler=SuperDiff("or", sigmas=laws.down(60), width=0.7), seed=0)
    assert abs(float((draw.x[:, 0] > 0).double().mean()) - 0.2) < 4 * math.sqrt(0.16 / 1000)


def width():
    """Euler and Maruyama's noise, DDPM's and that between have the variances they say."""
    p = Gaussian(torch.zeros(50), 0.5)
    target = mixture([laws.score_of(p), laws.score_of(Gaussian(torch.zeros(50), 0.5))])
    draw = sample(target, 200, sampler=SuperDiff("or", sigmas=laws.down(8), width=math.sqrt(0.5)), seed=1)
    assert abs(float(draw.x.var()) - 0.5) < 4 * 0.5 * math.sqrt(2 / 10_000)


ROWS = [
    Mutation("half of the drift in Itô's formula", ITO, "2 * variance * ratio", "variance * ratio", EXACT),
    Mutation("no determinant of the noise", ITO, "- 0.5 * move.shape[1] * math.log(ratio)", "", EXACT),
    Mutation(
        "the drift's square counted once, not halved",
        ITO,
        "0.5 * variance * _dot(deviations, deviations)",
        "variance * _dot(deviations, deviations)",
        law(laws.test_differences_are_those_of_the_whole_increments),
    ),
    Mutation("increments that forget the noise's share", ITO, ") / ratio\n\n\ndef _dot", ")\n\n\ndef _dot", EQUATIONS),
    Mutation("noise that is not projected", EQUAL, "axes.back(wanted - own)", "axes.back(wanted)", EQUATIONS),
    Mutation("a gap that is never closed", EQUAL, "- ratio * gap", "", EQUATIONS),
    Mutation("a gap that is opened", EQUAL, "- ratio * gap", "+ ratio * gap", EQUATIONS),
    Mutation("three scores are averaged", EQUAL, "0.5 * variance * squares - ", "-", EQUATIONS),
    Mutation(
        "axes that are not of length one",
        EQUAL,
        "vectors * values.clamp(min=1e-300).rsqrt()",
        "vectors * values.clamp(min=1e-300).reciprocal()",
        EQUATIONS,
    ),
    Mutation(
        "a step without bounds",
        EQUAL,
        "torch.maximum(torch.minimum(wanted, limit), -limit)",
        "wanted",
        law(laws.test_a_gap_is_closed_at_the_pace_of_the_noise),
    ),
    Mutation(
        "directions made of rounding",
        EQUAL,
        "kept = values > least[:, None]",
        "kept = values > -1.0",
        law(laws.test_scores_that_differ_by_rounding_have_no_axes),
    ),
    Mutation("noise that is not returned", EQUAL, "if keep:", "if False:", VANISHES),
    Mutation(
        "returned noise of half the size", EQUAL, "deviation * own.sign()", "0.5 * deviation * own.sign()", VANISHES
    ),
    Mutation("every step adds noise", RUN, "at.step % 2 == 0", "True", VANISHES),
    Mutation(
        "the last noise stays",
        RUN,
        " and at.step < at.noisy - 1",
        "",
        law(laws.test_the_estimates_agree_at_the_end_of_any_number_of_steps),
    ),
    Mutation(
        "the missing slope with the wrong sign",
        EQUAL,
        "return -0.5 * variance * total",
        "return 0.5 * variance * total",
        CORRECTED,
    ),
    Mutation("the missing slope is not counted", RUN, "density.log_q = density.log_q + missing", "pass", CORRECTED),
    Mutation(
        "a bias with the wrong sign",
        RUN,
        "density.relative - biases *",
        "density.relative + biases *",
        law(laws.test_bias_sets_the_gap_between_log_densities),
    ),
    Mutation("weights that are not used", RUN, "+ biases + log_weights)", "+ biases)", law(masses)),
    Mutation(
        "densities that are not used",
        RUN,
        "(self.temperature * density.relative + ",
        "(0.0 * density.relative + ",
        law(masses),
    ),
    Mutation(
        "temperature divides",
        RUN,
        "(self.temperature * density.relative",
        "(density.relative / max(self.temperature, 0.1)",
        law(laws.test_temperature_of_or),
    ),
    Mutation(
        "densities upside down",
        RUN,
        "self.temperature * density.relative",
        "-self.temperature * density.relative",
        law(masses),
    ),
    Mutation(
        "members alike at the start",
        RUN,
        "-t._coarse(level)._energy(state, None) for t",
        "0.0 * t._coarse(level)._energy(state, None) for t",
        law(laws.test_the_start_knows_how_members_differ_there),
    ),
    Mutation(
        "DDPM's noise whatever the width",
        RUN,
        "(self.width**2 + end**2) / (self.width**2 + sigma**2)",
        "end**2 / sigma**2",
        law(width),
    ),
    Mutation(
        "a member evaluated by itself",
        MEMBERS,
        "values = evaluate(open_leaves(members), x, sigma, energy=energies, score=True)",
        "values = {}\n    for leaf in open_leaves(members):\n"
        "        values |= evaluate([leaf], x, sigma, energy=energies, score=True)",
        law(laws.test_one_evaluation_a_step_and_one_forward_for_all_conditions),
    ),
    Mutation(
        "evaluations that are not counted",
        MEMBERS,
        "view.count(x.shape[0])",
        "pass",
        law(laws.test_one_evaluation_a_step_and_one_forward_for_all_conditions),
    ),
    Mutation(
        "a generator that is not restored",
        RUN,
        'request.generator.set_state(tensors["generator"])',
        "pass",
        law(lambda: resumes()),
    ),
    Mutation(
        "log-densities that start again",
        RUN,
        'tensors["log_q"].to(view.device)',
        '0.0 * tensors["log_q"].to(view.device)',
        law(lambda: resumes()),
    ),
]


def resumes():
    """A killed run goes on bit for bit."""
    import tempfile
    from pathlib import Path

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        laws.test_a_killed_run_goes_on_bit_for_bit("or", Path(folder), patch)


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore")
def test_noticed(mutation):
    verify(mutation)
