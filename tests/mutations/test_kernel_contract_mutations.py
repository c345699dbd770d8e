"""Errors that kernels have had, planted one by one: a check of tests/kernel_contracts.py, or a named test, notices."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from boltzmix.compose.kernels import HMC, UHMC
from tests import kernel_contracts as contracts
from tests.compose import test_barker, test_elliptical_slice, test_kernels, test_random_walk
from tests.compose.test_kernel_contracts import KERNELS
from tests.mutations.harness import Mutation, law, verify

BASE, BARKER, SLICE, HMC_, LANGEVIN, MASS, WALK = (
    f"boltzmix.compose.kernels.{m}"
    for m in ("base", "barker", "elliptical_slice", "hmc", "langevin", "mass", "random_walk")
)


def of(kernel: str, check: str) -> Callable[[], None]:
    """A check of the contract suite for one row of it."""
    return law(getattr(contracts, f"check_{check}"), KERNELS[kernel])


def small(check: str) -> Callable[[], None]:
    """A check of the slice sampler with few chains: searches that are broken are long."""
    return law(getattr(contracts, f"check_{check}"), replace(KERNELS["EllipticalSlice"], chains=2000, steps=4))


LANGEVINS = [
    Mutation(
        "MALA's wrong denominator", LANGEVIN, "return 0.5 * ((noise", "return 0.25 * ((noise", of("MALA", "stationary")
    ),
    Mutation("MALA without the proposal's density", LANGEVIN, "- (back * back).sum(-1)", "", of("MALA", "stationary")),
    Mutation("MALA upside down", LANGEVIN, "state.energy - energy", "energy - state.energy", of("MALA", "geweke")),
    Mutation(
        "MALA without a test",
        LANGEVIN,
        "log_ratio = state.energy",
        "log_ratio = float('inf') + state.energy",
        of("MALA", "reversible"),
        "class MALA",
    ),
    Mutation(
        "a Langevin step with noise of variance h",
        LANGEVIN,
        "(2 * tune.column).sqrt() * noise",
        "tune.column.sqrt() * noise",
        of("ULA", "bias"),
    ),
    Mutation(
        "Langevin with the mass on one side only",
        LANGEVIN,
        "tune.column * tune.pull(state.score)",
        "tune.column * state.score",
        of("ULA", "mass"),
    ),
]

HAMILTONIANS = [
    Mutation(
        "an in-place leapfrog",
        HMC_,
        "x = x + step * tune",
        "x += step * tune",
        of("HMC", "decides_for_each_chain"),
        "def leapfrog(",
    ),
    Mutation(
        "momentum is not refreshed",
        HMC_,
        "trajectory(target, state, noise.normal, tune",
        "trajectory(target, state, 0 * noise.normal + 1, tune",
        of("HMC", "forgets_its_start"),
    ),
    Mutation(
        "the last half step is a whole one",
        HMC_,
        "velocity + 0.5 * step * tune.pull(score)",
        "velocity + step * tune.pull(score)",
        of("HMC", "reversible"),
        "def leapfrog(",
    ),
    Mutation(
        "HMC without the kinetic energy",
        HMC_,
        "before - after",
        "state.energy - proposal.energy",
        of("HMC", "stationary"),
    ),
    Mutation("HMC without a test", HMC_, "before - after", "0 * before", of("HMC", "ranks")),
    Mutation("HMC upside down", HMC_, "before - after", "after - before", of("HMC", "geweke")),
    Mutation(
        "an evaluation more per leapfrog",
        HMC_,
        "velocity + step * tune.pull(target.score(x))",
        "velocity + 0.5 * step * tune.pull(target.score(x) + target.score(x))",
        of("HMC", "costs_what_it_says"),
    ),
    Mutation(
        "half kicks inside a trajectory",
        HMC_,
        "velocity + step * tune.pull(target",
        "velocity + 0.5 * step * tune.pull(target",
        law(test_kernels.test_energy_errors_of_the_leapfrog_shrink_with_the_square_of_its_step),
    ),
    Mutation(
        "no jitter",
        HMC_,
        "tune.column * (0.8 + 0.4 * noise.jitter)[:, None]",
        "tune.column * 1.0",
        law(test_kernels.test_jitter_breaks_resonance),
    ),
    Mutation(
        "unadjusted HMC reports no acceptance",
        HMC_,
        "energy_fall(target, state, proposal, work) + kinetic",
        "0 * kinetic",
        law(
            test_kernels.test_unadjusted_kernels_report_the_acceptance_that_a_test_would_have,
            UHMC(step_size=0.9, num_leapfrog=3),
            HMC(step_size=0.9, num_leapfrog=3),
        ),
    ),
    Mutation(
        "unadjusted HMC forgets half a step",
        HMC_,
        "return velocity + 0.5 * step * tune.pull(score)",
        "return velocity + 0.45 * step * tune.pull(score)",
        of("UHMC", "bias"),
        "def leapfrog_with_work",
    ),
]

SHARED = [
    Mutation(
        "one accept per batch",
        BASE,
        "uniform.log() < log_ratio",
        "uniform.log()[0] < log_ratio.mean()",
        of("HMC", "rows_are_chains"),
    ),
    Mutation(
        "rejected states keep the proposal's score",
        BASE,
        "for name, new in proposal.tensors().items()",
        'for name, new in [("x", proposal.x), ("energy", proposal.energy)]',
        of("HMC", "decides_for_each_chain"),
        "def take",
    ),
    Mutation(
        "NaN is accepted",
        BASE,
        "finite & (uniform.log() < log_ratio)",
        "~(uniform.log() >= log_ratio)",
        of("MALA", "edges"),
    ),
    Mutation(
        "NaN states are zeroed and accepted",
        BASE,
        "accepted = finite & (uniform.log() < log_ratio)",
        "accepted = uniform.log() < torch.nan_to_num(log_ratio, nan=0.0)\n"
        "    proposal = State(torch.where(finite[:, None], proposal.x, 0.0), torch.nan_to_num(proposal.energy), "
        "torch.nan_to_num(proposal.score))",
        of("MALA", "edges"),
    ),
    Mutation(
        "infinite energies count as divergences",
        BASE,
        "~(finite | (proposal.energy == torch.inf))",
        "~finite",
        of("MALA", "edges"),
    ),
    Mutation(
        "-inf is accepted",
        BASE,
        "torch.isfinite(value) & (torch.isfinite(proposal.score).all(-1) if scored else True)",
        "~torch.isnan(proposal.energy)",
        of("MALA", "edges"),
    ),
    Mutation(
        "unadjusted kernels enter what is undefined",
        BASE,
        "chosen = take(good, proposal, state)",
        "chosen = take(torch.ones_like(good), proposal, state)",
        of("ULA", "edges"),
    ),
    Mutation(
        "starts are not checked",
        BASE,
        "if not bool(good.all()):",
        "if not bool(good.any()):",
        of("HMC", "starts_are_checked"),
    ),
    Mutation(
        "noise of a block is drawn once",
        BASE,
        "return Noise(self.normal[step], self",
        "return Noise(self.normal[0], self",
        of("MALA", "reproducible"),
    ),
    Mutation(
        "acceptance from the global generator",
        BASE,
        "torch.rand(rows, **options), torch.rand(rows, **options), generator",
        "torch.rand(rows, **(options | {'generator': None})), torch.rand(rows, **options), generator",
        of("MALA", "reproducible"),
    ),
    Mutation(
        "a mass in another dtype",
        BASE,
        "velocity if self.mass is None else",
        "velocity.double() if self.mass is None else",
        of("HMC", "dtypes"),
    ),
    Mutation(
        "mass instead of its inverse",
        MASS,
        "self.variance.sqrt()",
        "self.variance.rsqrt()",
        of("HMC", "mass"),
        "class Diagonal",
    ),
    Mutation(
        "the root of a dense mass from the wrong side",
        MASS,
        "return score @ self.factor",
        "return score @ self.factor.mT",
        of("MALA", "mass"),
        "class Dense",
    ),
    Mutation(
        "a low-rank mass without its scales",
        MASS,
        "self._root(self.scale * score)",
        "self._root(score)",
        of("Barker", "mass"),
        "class LowRank",
    ),
]

BARKERS = [
    Mutation(
        "Barker without the proposal's density",
        BARKER,
        "+ back.sum(-1)",
        "+ 0 * back.sum(-1)",
        of("Barker", "stationary"),
    ),
    Mutation(
        "Barker with the ratio upside down", BARKER, "+ back.sum(-1)", "- back.sum(-1)", of("Barker", "stationary")
    ),
    Mutation(
        "Barker's way back turned like the way there",
        BARKER,
        "logsigmoid(-move * tune.pull(score))",
        "logsigmoid(move * tune.pull(score))",
        of("Barker", "reversible"),
    ),
    Mutation(
        "Barker's way back from the old score",
        BARKER,
        "logsigmoid(-move * tune.pull(score))",
        "logsigmoid(-move * slope)",
        of("Barker", "geweke"),
    ),
    Mutation(
        "Barker without a test",
        BARKER,
        "log_ratio = change + back.sum(-1)",
        "log_ratio = 0 * energy",
        of("Barker", "ranks"),
    ),
    Mutation(
        "Barker with the energies' sign wrong",
        BARKER,
        "state.energy - energy",
        "energy - state.energy",
        of("Barker", "reversible"),
    ),
    Mutation("Barker steps down", BARKER, "turns < torch.sigmoid", "turns > torch.sigmoid", of("Barker", "geweke")),
    Mutation(
        "Barker with one turn for all coordinates",
        BARKER,
        "torch.where(turns <",
        "torch.where(turns[:, :1] <",
        of("Barker", "stationary"),
    ),
    Mutation(
        "Barker's way back without the mass", BARKER, "-move * tune.pull(score)", "-move * score", of("Barker", "mass")
    ),
    Mutation(
        "Barker's turns without the mass",
        BARKER,
        "slope = tune.pull(state.score)",
        "slope = state.score",
        of("Barker", "mass"),
    ),
    Mutation(
        "Barker's turns of a block are drawn once",
        BARKER,
        "turns=self.turns[step]",
        "turns=self.turns[0]",
        law(test_barker.test_noise_of_a_block_has_turns_of_its_own),
    ),
    Mutation(
        "Barker's turns from the global generator",
        BARKER,
        '{"generator": generator,',
        '{"generator": None,',
        of("Barker", "reproducible"),
    ),
]

WALKS = [
    Mutation(
        "a random walk upside down",
        WALK,
        "state.energy - proposal.energy",
        "proposal.energy - state.energy",
        of("RandomWalk", "stationary"),
    ),
    Mutation(
        "a random walk without a test",
        WALK,
        "state.energy - proposal.energy",
        "0 * proposal.energy",
        of("RandomWalk", "reversible"),
    ),
    Mutation(
        "a random walk that accepts with half the ratio",
        WALK,
        "state.energy - proposal.energy",
        "0.5 * (state.energy - proposal.energy)",
        of("RandomWalk", "ranks"),
    ),
    Mutation(
        "a random walk without its mass", WALK, "tune.push(noise.normal)", "noise.normal", of("RandomWalk", "mass")
    ),
    Mutation(
        "a random walk with a drift",
        WALK,
        "tune.push(noise.normal)",
        "(tune.push(noise.normal) + 0.1)",
        of("RandomWalk", "geweke"),
    ),
    Mutation(
        "a random walk pays for gradients",
        WALK,
        "energy_of(target, x)",
        "target.energy_and_score(x)[0]",
        of("RandomWalk", "costs_what_it_says"),
    ),
    Mutation(
        "a random walk keeps scores of where it was",
        WALK,
        "torch.full_like(x, torch.nan)",
        "state.score",
        law(test_random_walk.test_scores_are_true_or_nan),
    ),
    Mutation(
        "starts of a random walk pay for gradients",
        BASE,
        "if not self.uses_score:",
        "if False:",
        of("RandomWalk", "costs_what_it_says"),
        "def init",
    ),
]

SLICES = [
    Mutation(
        "the slice without log u",
        SLICE,
        "- state.energy + noise.uniform.log()",
        "- state.energy",
        of("EllipticalSlice", "stationary"),
    ),
    Mutation(
        "the slice with log u twice",
        SLICE,
        "+ noise.uniform.log()",
        "+ 2 * noise.uniform.log()",
        of("EllipticalSlice", "reversible"),
    ),
    Mutation(
        "the slice from its wrong side",
        SLICE,
        "- found > level[rows]",
        "- found < level[rows]",
        small("geweke"),
    ),
    Mutation(
        "the slice of the target instead of the likelihood",
        SLICE,
        "(prior.energy(tried) - found >",
        "(prior.energy(state.x)[rows] - found >",
        of("EllipticalSlice", "stationary"),
    ),
    Mutation(
        "the prior's mean is forgotten",
        SLICE,
        "start, nu = state.x - prior.mean",
        "start, nu = state.x",
        small("stationary"),
    ),
    Mutation(
        "the prior's mean is forgotten in its energy",
        SLICE,
        "y = x - self.mean",
        "y = x - 0",
        small("stationary"),
    ),
    Mutation(
        "variances for scales",
        SLICE,
        "normal * self.variances.sqrt()",
        "normal * self.variances",
        small("stationary"),
    ),
    Mutation(
        "a bracket that shrinks away from the state",
        SLICE,
        "torch.where(angle < 0, angle, low[rows])",
        "torch.where(angle < 0, low[rows], angle)",
        small("stationary"),
    ),
    Mutation(
        "a bracket on one side of the state",
        SLICE,
        "low, high = theta - 2 * math.pi, theta",
        "low, high = 0 * theta, 0 * theta + 2 * math.pi",
        of("EllipticalSlice", "reversible"),
    ),
    Mutation(
        "a dense prior turned the wrong way",
        SLICE,
        "draw[:, span] @ basis.mT",
        "draw[:, span] @ basis",
        law(test_elliptical_slice.test_a_conjugate_posterior_in_closed_form),
    ),
    Mutation(
        "-inf is on the slice",
        SLICE,
        "finite = torch.isfinite(found)",
        "finite = ~torch.isnan(found)",
        small("edges"),
    ),
    Mutation(
        "divergences of the search are not counted",
        SLICE,
        "divergent[rows] | ~(finite",
        "divergent[rows] & ~(finite",
        of("EllipticalSlice", "edges"),
    ),
    Mutation(
        "angles are not counted",
        SLICE,
        "torch.ones_like(rows)",
        "torch.zeros_like(rows)",
        of("EllipticalSlice", "costs_what_it_says"),
    ),
    Mutation("conditions move to other rows", SLICE, "if whole else", "if False else", of("EllipticalSlice", "geweke")),
    Mutation(
        "angles from the global generator",
        SLICE,
        "generator=noise.generator",
        "generator=None",
        of("EllipticalSlice", "reproducible"),
    ),
    Mutation(
        "the prior of the data at every noise level",
        SLICE,
        "if sigma is None or prior is not None",
        "if True",
        law(test_elliptical_slice.test_the_prior_is_that_of_the_noise_level),
    ),
    Mutation("the first of several priors", SLICE, "!= 1:", "== 0:", law(test_elliptical_slice.check_several_priors)),
    Mutation(
        "a factor to any power is a prior",
        SLICE,
        "exponent is None or exponent.constant == 1.0",
        "True",
        law(test_elliptical_slice.check_powers),
    ),
]


@pytest.mark.parametrize(
    "mutation", [*LANGEVINS, *HAMILTONIANS, *SHARED, *BARKERS, *WALKS, *SLICES], ids=lambda m: m.name
)
@pytest.mark.filterwarnings("ignore")
def test_noticed(mutation: Mutation) -> None:
    verify(mutation)
