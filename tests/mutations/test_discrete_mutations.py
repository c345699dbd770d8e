"""Errors in kernels of discrete variables and of blocks, planted one by one: a named check notices each."""

import functools
import tempfile

import pytest

from boltzmix.compose import Gibbs, GibbsWithGradients
from boltzmix.compose.kernels import gibbs
from tests.compose import test_blocks, test_discrete_kernels
from tests.mutations.harness import Mutation, law, verify

GIBBS, GRADIENT, BLOCKS = (f"boltzmix.compose.kernels.{m}" for m in ("gibbs", "gradient_gibbs", "blocks"))
BOUND, ADAPT = (f"boltzmix.compose.adaptation.{m}" for m in ("discrete", "blocks"))
FLAT, TERM, STARTS, ISING, FUNCTION = (
    "boltzmix.compose.flat", "boltzmix.compose.term", "boltzmix.compose.samplers.chain_starts",
    "boltzmix.benchmarks.ising", "boltzmix.compose.callables",
)  # fmt: skip

stays = functools.partial(law, test_discrete_kernels.test_exact_draws_stay_exact)
balance = functools.partial(law, test_discrete_kernels.test_flows_balance_in_detail)
joint = functools.partial(law, test_blocks.test_a_mixture_with_labels_keeps_its_joint_distribution)
cached = functools.partial(law, test_discrete_kernels.test_energies_and_estimates_are_those_of_the_state)
starts = law(test_discrete_kernels.test_starts_are_integers_of_all_kinds_and_given_ones_are_checked)
transfer = law(test_discrete_kernels.test_transfer_matrices_agree_with_enumeration, True)
formulas = law(test_discrete_kernels.test_relaxed_terms_take_integers_and_keep_their_gradient_in_formulas)
biased = law(test_discrete_kernels.test_unadjusted_langevin_has_the_stated_bias, 1.0, 1.0)


estimated = law(test_discrete_kernels.test_estimates_of_multilinear_energies_are_their_differences)


def all_values():
    """A block of everything takes all its values, planned anew."""
    gibbs._plan.cache_clear()
    try:
        test_discrete_kernels.test_a_block_of_everything_is_drawn_exactly(5)
    finally:
        gibbs._plan.cache_clear()


def resumes():
    """A killed run of blocks goes on bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        test_blocks.test_a_killed_run_goes_on_bit_for_bit(folder)


ROWS = [
    Mutation(
        "Gibbs upside down",
        GIBBS,
        "torch.where(usable, -energies, -torch.inf)",
        "torch.where(usable, energies, -torch.inf)",
        stays("Gibbs", "spins"),
    ),
    Mutation(
        "Gibbs prefers to stay",
        GIBBS,
        "cumulative = log_probability.exp().cumsum(-1)",
        "cumulative = log_probability.exp()\n    cumulative[..., 0] += 0.1\n    cumulative = cumulative.cumsum(-1)",
        law(test_discrete_kernels.test_a_block_of_everything_is_drawn_exactly, 5),
    ),
    Mutation(
        "the last values are too rare",
        GIBBS,
        "height.contiguous(), right=True",
        "(0.9 * height).contiguous(), right=True",
        law(test_discrete_kernels.test_a_block_of_everything_is_drawn_exactly, 5),
    ),
    Mutation(
        "one uniform for all blocks of a sweep",
        GIBBS,
        "uniform[:, k])",
        "uniform[:, 0])",
        law(test_discrete_kernels.test_one_sweep_of_systematic_gibbs_is_the_product_of_conditionals),
    ),
    Mutation(
        "the state's energy is not handed on",
        GIBBS,
        "energy = energies.gather(1, choice[:, None])[:, 0]",
        "energy = state.energy",
        stays("Gibbs", "spins"),
    ),
    Mutation(
        "values beyond the last",
        GIBBS,
        "% levels_of(target)[columns][:, None]",
        "% int(levels_of(target).max())",
        stays("Gibbs", "counts"),
    ),
    Mutation("a value is left out", GIBBS, "for c in block)))[1:]", "for c in block)))[2:]", all_values),
    Mutation(
        "a random order that is the same for all sweeps",
        GIBBS,
        "torch.rand(n, count, **options).argsort(1)",
        "torch.arange(count).expand(n, -1)",
        law(test_discrete_kernels.test_a_sweep_in_random_order_is_reversible),
    ),
    Mutation(
        "shorter blocks take padding for candidates",
        GIBBS,
        "v.new_zeros(tall - len(v))",
        "v.new_ones(tall - len(v))",
        stays("Gibbs in random order", "labels"),
    ),
    Mutation(
        "undefined values are not counted",
        GIBBS,
        "undefined | ~(usable | (energies == torch.inf)).all(1)",
        "undefined",
        law(test_discrete_kernels.test_undefined_states_are_never_entered_and_counted, Gibbs(), float("nan")),
    ),
    Mutation(
        "infinite energies count as divergences",
        GIBBS,
        "~(usable | (energies == torch.inf)).all(1)",
        "~usable.all(1)",
        law(test_discrete_kernels.test_undefined_states_are_never_entered_and_counted, Gibbs(), float("inf")),
    ),
    Mutation(
        "one coordinate more is evaluated",
        GIBBS,
        "found = torch.where(valid, energies_with",
        "energy_of(target, x)\n    found = torch.where(valid, energies_with",
        law(test_discrete_kernels.test_a_step_costs_what_the_kernel_says, Gibbs(), 8),
    ),
    Mutation(
        "no reverse proposal",
        GRADIENT,
        "back.gather(1, old)[:, 0] - forward.gather(1, choice[:, None])[:, 0]",
        "0.0",
        balance("GibbsWithGradients", "spins"),
    ),
    Mutation(
        "the reverse proposal of another change",
        GRADIENT,
        "old = column * width + state.x.gather(1, column).long()",
        "old = choice[:, None]",
        balance("GibbsWithGradients", "labels"),
    ),
    Mutation(
        "estimates upside down",
        GRADIENT,
        "d = g - g.gather(2",
        "d = -g + g.gather(2",
        law(test_discrete_kernels.test_ising_by_mcmc_has_its_exact_energy_and_magnetisation, "adapted"),
    ),
    Mutation(
        "the whole difference in the proposal but not in its density",
        GRADIENT,
        "choice = draw(torch.where(stuck[:, None], 0.0, forward), uniform)",
        "choice = draw(torch.where(stuck[:, None], 0.0, (1.5 * forward).log_softmax(1)), uniform)",
        stays("GibbsWithGradients", "spins"),
    ),
    Mutation(
        "a proposal is accepted by its energy alone",
        GRADIENT,
        "uniform.log() < log_ratio",
        "uniform.log() < state.energy - proposal.energy",
        stays("GibbsWithGradients", "labels"),
    ),
    Mutation(
        "one accept per batch",
        GRADIENT,
        "uniform.log() < log_ratio",
        "uniform.log()[0] < log_ratio",
        stays("DiscreteLangevin", "spins"),
    ),
    Mutation(
        "differences to the wrong side",
        GRADIENT,
        "energy[:, None] - found)",
        "found - energy[:, None])",
        law(
            test_discrete_kernels.test_undefined_states_are_never_entered_and_counted,
            GibbsWithGradients(differences="exact"),
            float("inf"),
        ),
    ),
    Mutation(
        "Langevin without the reverse proposal",
        GRADIENT,
        "energy + change.sum((1, 2))",
        "energy",
        balance("DiscreteLangevin", "spins"),
    ),
    Mutation(
        "Langevin with the reverse proposal of one coordinate",
        GRADIENT,
        "change.sum((1, 2))",
        "change[:, 0, 0]",
        stays("DiscreteLangevin", "spins"),
    ),
    Mutation("a whole gradient in place of half", GRADIENT, "(0.5 * d - distance", "(d - distance", biased),
    Mutation("a distance of twice the size", GRADIENT, "distance / (2 * scale)", "distance / scale", biased),
    Mutation(
        "unadjusted kernels reject",
        GRADIENT,
        "return take(usable, proposal, state), replace(info, accepted=usable",
        "return taken, replace(info, accepted=usable",
        biased,
    ),
    Mutation(
        "NaN proposals are accepted",
        GRADIENT,
        "torch.where(usable & ~torch.isnan(log_ratio), log_ratio, -torch.inf)",
        "torch.nan_to_num(log_ratio)",
        law(test_discrete_kernels.test_undefined_proposals_of_gradients_are_rejected_and_counted),
    ),
    Mutation(
        "old estimates with a new state",
        GRADIENT,
        "proposal = replace(state, x=x, energy=energy, score=g.flatten(1))\n        back = self.log_proposal(target, "
        "proposal, tune",
        "proposal = replace(state, x=x, energy=energy)\n        back = self.log_proposal(target, proposal, tune",
        cached("DiscreteLangevin", "labels"),
    ),
    Mutation(
        "steps without a bound",
        BOUND,
        "averaging.step_size.clamp(max=self.largest)",
        "averaging.step_size",
        law(test_discrete_kernels.test_steps_of_free_spins_are_bounded),
    ),
    Mutation(
        "averaged steps without a bound",
        BOUND,
        "averaging.average.clamp(max=math.log(self.largest))",
        "averaging.average",
        law(test_discrete_kernels.test_steps_of_free_spins_are_bounded),
    ),
    Mutation(
        "conditions leave their rows",
        FLAT,
        "if self.view.per_row:  # conditions belong to their rows",
        "if False:",
        law(test_discrete_kernels.test_conditions_stay_with_their_rows),
    ),
    Mutation(
        "padding in front of the values",
        FLAT,
        "(0, widest - variable.levels)",
        "(widest - variable.levels, 0)",
        estimated,
    ),
    Mutation(
        "values that are not multiplied", FUNCTION, "t @ torch.arange(k, dtype", "t @ torch.ones(k, dtype", estimated
    ),
    Mutation(
        "starts without the last value",
        STARTS,
        "(box * view.levels).floor()",
        "(box * (view.levels - 1)).floor()",
        starts,
    ),
    Mutation("starts outside are taken", STARTS, "if bool(outside.any()):", "if False:", starts),
    Mutation(
        "a scale for powers of one-hot scores",
        "boltzmix.compose.product",
        "total = _accumulate(total, s, w)",
        "total = _accumulate(total, s, 1.0)",
        formulas,
    ),
    Mutation(
        "up-spins of the last row only",
        ISING,
        "power = torch.arange(size) - count[:, None]",
        "power = torch.arange(size) - 0 * count[:, None]",
        transfer,
    ),
    Mutation(
        "a torus that is not closed",
        ISING,
        "(product * (strength * between).exp().T).sum() if periodic else",
        "product.sum() if periodic else",
        transfer,
    ),
    Mutation("scores of other labels", BLOCKS, "kernel.refresh(there, part, known)", "part", joint("HMC, Gibbs")),
    Mutation(
        "energies of other positions",
        BLOCKS,
        "replace(part, x=x[:, there.columns], energy=given)",
        "replace(part, x=x[:, there.columns])",
        law(test_blocks.test_the_next_block_compares_with_the_energy_of_the_joint_state),
    ),
    Mutation("all blocks at once", BLOCKS, "there = there.at(x)", "there = there.at(state.x)", joint("HMC, Gibbs")),
    Mutation(
        "energies that are known are evaluated again",
        BLOCKS,
        "kernel.refresh(there, part, known)",
        "kernel.refresh(there, part, False)",
        law(test_blocks.test_scores_are_evaluated_anew_and_energies_handed_on),
    ),
    Mutation(
        "unadjusted blocks pass their energies on",
        BLOCKS,
        "part.energy, kernel.adjusted",
        "part.energy, True",
        law(test_blocks.test_unadjusted_blocks_leave_energies_to_those_that_need_them),
    ),
    Mutation(
        "scores of all variables",
        BLOCKS,
        "return energy, score[:, self.columns]",
        "return energy, score[:, : self.dim]",
        law(test_blocks.test_conditionals_have_the_scores_of_their_variables),
        "def energy_and_score",
    ),
    Mutation(
        "momenta are lost",
        BLOCKS,
        "part = replace(part, x=x[:, there.columns], energy=given)",
        "part = kernel.attach(State(x[:, there.columns], energy, part.score), noise.generator)",
        law(test_blocks.test_momenta_stay_with_their_block),
    ),
    Mutation(
        "terms of labels are asked for a score",
        TERM,
        "if any(t.is_floating_point() for t in own.values()):",
        "if True:",
        joint("HMC, Gibbs"),
    ),
    Mutation(
        "a block's tuner is not asked",
        ADAPT,
        "tuner.update(earlier, later, report)",
        "pass",
        law(test_blocks.test_each_block_adapts_its_own_step_size),
    ),
    Mutation(
        "a resumed run adapts from the start",
        ADAPT,
        'tuner.restore(part(tensors, f"{b}/"), state[str(b)])',
        "pass",
        law(resumes),
    ),
    Mutation("a resumed run has fresh momenta", BLOCKS, 'if k.startswith(f"{b}/")})', "if False})", law(resumes)),
]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
def test_the_law_notices(mutation):
    verify(mutation)
