"""Errors in line integrals of the score and in predictor–corrector steps, planted one by one."""

import math

import pytest
import torch

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import GHMC, HMC, MALA, UHMC, ULA, Barker
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import Reverse
from tests.compose import test_line_integrals as integrals
from tests.compose import test_predictor_corrector as corrected
from tests.mutations.harness import Mutation, law, verify

INTEGRAL, HMC_, LANGEVIN, BARKER, GHMC_, BASE = (
    f"boltzmix.compose.kernels.{m}" for m in ("line_integral", "hmc", "langevin", "barker", "ghmc", "base")
)
CORRECTOR, REVERSE, ANNEAL, SMC_ = (
    f"boltzmix.compose.samplers.{m}" for m in ("predictor_corrector", "reverse", "anneal", "smc")
)


def polynomials(nodes):
    return law(integrals.test_polynomial_energies_are_integrated_exactly_up_to_their_degree, nodes)


def same_as_energies(name, nodes=1):
    return law(integrals.test_on_gaussians_chains_are_those_that_energies_give, name, nodes)


def counted(name):
    return law(integrals.test_evaluations_are_counted, name)


def quartic(kernel):
    """Acceptances on log p = −Σ x⁴ / 4, whose work Simpson's rule finds exactly, are those of the energy."""

    def check():
        class Known(integrals.Scores):
            has_energy = True

            def energy_and_score(self, x):
                return 0.25 * (x**4).sum(1), self.score(x)

        score, x = (lambda x: -(x**3)), integrals.normals(40, 2, seed=1)
        found = []
        for kind in (Known, integrals.Scores):
            target, source = kind(score), integrals.seeded(2)
            state = kernel.init(target, x, source)
            found.append(kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))[1].acceptance)
        torch.testing.assert_close(*found)
        assert float(found[0].min()) < 0.9

    return law(check)


def third():
    """Three equal Gaussians: predictors alone end at a third of their variance."""
    p = [corrected.scored(Gaussian(torch.full((3,), float(k)), 0.5)) for k in range(3)]
    for solver in ("ddim", "ddpm", "heun"):
        sampler = Reverse(20, solver, corrector=ULA(step_size=1e-12))
        draw = sample(p[0] * p[1] * p[2], 300, sampler=sampler, seed=0)
        assert 0.6 < float(draw.x.var(0).mean()) / (0.5 / 3) < 1.2, solver


def narrow():
    """The signal-to-noise ratio leads to steps that suit a narrow density, and counts all levels but the first."""
    p = corrected.scored(Gaussian(torch.zeros(4), 0.01))
    sampler = Reverse(20, "ddim", corrector=UHMC(num_leapfrog=2), snr=0.2)
    draw = sample(p, 300, sampler=sampler, seed=0)
    assert len([level for level in draw.info.levels if "step_size" in level]) == 19
    assert draw.info.step_size == pytest.approx(2 * 0.2 * math.sqrt(0.01), rel=0.2)


def adapted():
    """Acceptances come near the kernel's goal."""
    p = corrected.scored(corrected.LEFT) * corrected.scored(corrected.RIGHT)
    draw = sample(p, 200, sampler=Reverse(30, "ddim", corrector=HMC(num_leapfrog=3), corrections=2), seed=0)
    assert draw.info.acceptance == pytest.approx(0.75, abs=0.1)


LINES = [
    Mutation("weights of the ends doubled", INTEGRAL, "ends * (first", "2 * ends * (first", polynomials(1)),
    Mutation("one end only", INTEGRAL, "(first + last)", "(first + first)", polynomials(0)),
    Mutation("nodes of the wrong piece", INTEGRAL, "x + place * shift", "x - place * shift", polynomials(2)),
    Mutation("nodes all in the middle", INTEGRAL, "x + place * shift", "x + 0.5 * shift", polynomials(3)),
    Mutation("nodes of one weight", INTEGRAL, "weight * tar", "(1 - 2 * ends) / len(inner) * tar", polynomials(3)),
    Mutation("work per unit length", INTEGRAL, "(mean * shift)", "(mean * shift / shift.norm())", polynomials(1)),
    Mutation(
        "MALA's integral from the proposal",
        LANGEVIN,
        "line_integral(target, state.x, x",
        "line_integral(target, x, x",
        quartic(MALA(0.1, nodes=1)),
    ),
    Mutation("MALA's integral upside down", LANGEVIN, "= change + _rev", "= -change + _rev", same_as_energies("MALA")),
    Mutation("MALA without the integral", LANGEVIN, "= change + _rev", "= 0 * change + _rev", same_as_energies("MALA")),
    Mutation("MALA refuses all that has no energy", LANGEVIN, ", known=False", "", same_as_energies("MALA")),
    Mutation("MALA with nodes of its own", LANGEVIN, "score, self.nodes)", "score, 0)", quartic(MALA(0.1, nodes=1))),
    Mutation(
        "Barker's integral of the old score",
        BARKER,
        "state.score, score, self.nodes",
        "state.score, state.score, self.nodes",
        same_as_energies("Barker"),
    ),
    Mutation(
        "Barker without nodes", BARKER, "score, self.nodes)", "score, 0)", quartic(Barker(0.5, nodes=1))
    ),
    Mutation(
        "HMC's work of the last leapfrog is forgotten",
        HMC_,
        "work = work + line_integral(target, x, shift, before",
        "work = work + 0 * line_integral(target, x, shift, before",
        same_as_energies("HMC"),
    ),
    Mutation(
        "HMC's work of the last leapfrog only",
        HMC_,
        "work = work + line_integral(target, x, shift, score",
        "work = line_integral(target, x, shift, score",
        same_as_energies("HMC"),
    ),
    Mutation(
        "HMC's nodes are those of the way back",
        HMC_,
        "line_integral(target, x, shift, score, after, nodes)",
        "line_integral(target, x, -shift, score, after, nodes)",
        same_as_energies("HMC"),
    ),
    Mutation("HMC's work has the wrong sign", HMC_, "return end, velocity, work,", "return end, velocity, -work,",
             same_as_energies("HMC")),
    Mutation("HMC by the trapezoid rule", HMC_, "nodes = 0 if target", "nodes = 0 if True or target",
             quartic(HMC(0.6, 3, nodes=1))),
    Mutation("GHMC by the trapezoid rule", GHMC_, "count, self.nodes", "count, 0", quartic(GHMC(0.6, 3, nodes=1))),
    Mutation("random lengths that count leapfrogs only", HMC_, "else 1 + self.nodes", "else 1",
             counted("HMC of random length")),
    Mutation("a start is asked for its energy", BASE, "self.adjusted and (target.has_energy or not self.integrates)",
             "self.adjusted", same_as_energies("MALA")),
    Mutation("scores that are not finite are no divergence", BASE, "proposal.energy if known else log_ratio",
             "proposal.energy if known else uniform",
             law(integrals.test_what_is_not_finite_between_both_ends_is_a_divergence)),
]  # fmt: skip

CORRECTORS = [
    Mutation("steps of the summed score", CORRECTOR, "total.reciprocal()", "torch.ones_like(total)", law(third)),
    Mutation("a ratio of lengths for a step of areas", CORRECTOR, "0.5 * length**2 if power", "length if power",
             law(corrected.test_the_signal_to_noise_ratio_gives_the_step)),
    Mutation("half the ratio", CORRECTOR, "2.0 * ratio", "ratio", law(narrow)),
    Mutation("steps for the sum of squares", CORRECTOR, "(finite * finite).mean()", "(finite * finite).sum(1).mean()",
             law(narrow)),
    Mutation("a given step at every level", CORRECTOR, "scaled_step(self.kernel, sigma, self.last)",
             "self.kernel.step_size", law(corrected.test_given_step_sizes_scale_with_the_level)),
    Mutation("one power for all kernels", ANNEAL, "** kernel.step_power", "** 1",
             law(corrected.test_given_step_sizes_scale_with_the_level)),
    Mutation("steps that are not adapted", CORRECTOR, "self.step_size = nudged", "_ = nudged", law(adapted)),
    Mutation("corrections at the level below", CORRECTOR, "target, kernel = self.view.at(sigma)",
             "target, kernel = self.view.at(0.5 * sigma)", law(lambda: level())),
    Mutation("one correction for all", CORRECTOR, "range(self.steps)", "range(1)",
             law(corrected.test_every_evaluation_is_counted_and_none_is_made_twice)),
    Mutation("the score is asked for again", REVERSE, "if score is None else score", "",
             law(corrected.test_every_evaluation_is_counted_and_none_is_made_twice)),
    Mutation("the start is corrected", REVERSE, "if k and correct.wanted(sigma)", "if correct.wanted(sigma)",
             law(corrected.test_every_evaluation_is_counted_and_none_is_made_twice)),
    Mutation("every level is corrected", CORRECTOR, "low <= sigma <= high", "low <= sigma",
             law(corrected.test_corrections_between_two_levels_alone)),
    Mutation("noise of one factor", REVERSE, "(variance * noise_share) ** 0.5", "variance**0.5", law(third)),
    Mutation("Heun's second slope of one factor", REVERSE, "-following * noise_share", "-following", law(third)),
]  # fmt: skip


def level():
    """States are exact at the level that they are corrected at, which a step to the next one keeps."""
    p = corrected.scored(Gaussian(torch.zeros(2), 1.0))
    sampler = Reverse(sigmas=(40.0, 1.0), solver="ddim", corrector=HMC(num_leapfrog=3), corrections=20, record=True)
    draw = sample(p, 500, sampler=sampler, seed=0)
    assert float(draw.x.var(0).mean()) == pytest.approx(0.5, abs=0.08)  # D = x / 2 of N(0, 2)


@pytest.mark.parametrize("mutation", [*LINES, *CORRECTORS], ids=lambda mutation: mutation.name)
def test_planted_errors_are_noticed(mutation):
    verify(mutation)
