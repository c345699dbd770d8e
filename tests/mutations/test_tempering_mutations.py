"""Errors in parallel tempering, its ladder and its evidence, planted one by one: a named check notices each."""

import functools

import pytest
import torch

import boltzmix as bm
from boltzmix.compose.kernels import ParallelTempering
from tests.compose import test_smc_kernels, test_tempering
from tests.mutations.harness import Mutation, law, verify

TEMPERING, TEMPERED, RECORD = (f"boltzmix.compose.kernels.{m}" for m in ("tempering", "tempered", "ladder_record"))
LADDER, PATH = "boltzmix.compose.adaptation.temperatures", "boltzmix.compose.samplers.path"


def short(ladder, inner, steps=6):
    kernel = ParallelTempering(test_tempering.INNER[inner], **test_tempering.LADDERS[ladder])
    return law(functools.partial(test_tempering.check_stationary, kernel, steps, 2, 3000))


WHOLE, REFERENCE = short("whole energy", "MALA"), short("reference", "MALA")
CACHED = law(test_tempering.test_cached_energies_and_scores_are_those_of_their_replicas, "HMC", "reference")
CHOSEN = law(test_tempering.test_cached_energies_and_scores_are_those_of_their_replicas, "NUTS", "whole energy")
CHANCES = law(test_tempering.test_swap_chances_are_the_ratio_of_joint_densities)
TURNS = law(test_tempering.test_even_and_odd_pairs_take_turns)
FINITE = law(test_tempering.test_what_has_no_finite_energy_or_score_never_reaches_the_target)
STRAIGHT = law(test_tempering.test_replicas_travel_straight_where_nothing_is_refused)
EVEN = law(test_tempering.test_an_equalised_ladder_cuts_the_barrier_into_equal_pieces, False)
LOGS = law(test_tempering.test_an_equalised_ladder_cuts_the_barrier_into_equal_pieces, True)
EVIDENCE = law(test_tempering.test_the_evidence_of_cells_and_its_error)
BETWEEN = law(test_tempering.test_energies_and_scores_between_the_ends)
HIDDEN = law(test_tempering.test_no_weight_hides_what_is_not_finite)


@law
def a_new_ladder_takes_its_replicas_along():
    """After rungs are added every replica has its own energies."""
    target = bm.ravel(test_tempering.TARGET)
    kernel = ParallelTempering(bm.MALA(), reference=test_tempering.REFERENCE)
    source = torch.Generator().manual_seed(1)
    state = kernel.init(target, torch.randn(6, 2, generator=source, dtype=torch.float64), source)
    tuner, widths = kernel.adaptation().begin(kernel, target, state, 40, source), set()
    for _ in range(40):
        before = state
        state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, source))
        tuner.update(before, state, info)
        state = tuner.carry(state)
        widths.add(state.replicas.shape[1])
        assert state.replicas.shape[1] == len(tuner.tune.betas)
    assert len(widths) > 1
    parts = test_tempering.Ends(kernel.kernel, target, kernel.reference).evaluate(state.replicas.flatten(0, 1))
    torch.testing.assert_close(state.energies.flatten(0, 1), parts.energies)


MUTATIONS = [
    Mutation(
        "the wrong sign in the swap ratio",
        TEMPERING,
        "slope[:, 1:] - slope[:, :-1])",
        "slope[:, :-1] - slope[:, 1:])",
        WHOLE,
    ),
    Mutation("β of the wrong neighbour", TEMPERING, "(betas[1:] - betas[:-1]) *", "betas[1:] *", CHANCES),
    Mutation("swaps that are always taken", TEMPERING, "(uniform < chances)", "(uniform < 2.0)", WHOLE),
    Mutation(
        "replicas swap and their energies stay",
        TEMPERING,
        "energies = parts.energies.gather(1, order[..., None].expand(-1, -1, ends.count))",
        "energies = parts.energies",
        CACHED,
    ),
    Mutation(
        "replicas swap and their scores stay",
        TEMPERING,
        "scores = parts.scores.gather(1, order[..., None, None].expand(-1, -1, *parts.scores.shape[2:]))",
        "scores = parts.scores",
        CACHED,
    ),
    Mutation("even pairs only", TEMPERING, "parity=1 - state.parity", "parity=state.parity", TURNS),
    Mutation("even and odd pairs at once", TEMPERING, "(pairs % 2 == parity[:, None]) & (uniform", "(uniform", TURNS),
    Mutation(
        "an undefined replica reaches the target",
        TEMPERING,
        "torch.where(usable, torch.nan_to_num",
        "torch.where(usable | True, torch.nan_to_num",
        FINITE,
    ),
    Mutation(
        "a replica without a score reaches the target",
        TEMPERING,
        "usable & torch.isfinite(parts.scores)",
        "usable | torch.isfinite(parts.scores)",
        FINITE,
    ),
    Mutation(
        "the reference is not drawn afresh but at the target",
        TEMPERED,
        "self.reference.sample(n, generator)",
        "0.5 * self.reference.sample(n, generator)",
        REFERENCE,
    ),
    Mutation(
        "the reference at full weight everywhere",
        TEMPERED,
        "torch.stack([betas, 1.0 - betas], -1)",
        "torch.stack([betas, torch.ones_like(betas)], -1)",
        REFERENCE,
    ),
    Mutation(
        "the score without its β",
        TEMPERED,
        "torch.where(off[..., None], 0.0, weights[..., None] * self.scores)",
        "torch.where(off[..., None], 0.0, self.scores)",
        BETWEEN,
    ),
    Mutation(
        "what weighs nothing is looked at",
        TEMPERED,
        "torch.where(off, 0.0, weights * self.energies)",
        "(weights * self.energies)",
        HIDDEN,
    ),
    Mutation(
        "a chosen leaf takes the parts of the last one",
        TEMPERED,
        "rows = (~known).nonzero()[:, 0]",
        "rows = known.new_zeros(0, dtype=torch.long)",
        CHOSEN,
    ),
    Mutation(
        "trips without having been at the hot end",
        TEMPERING,
        "torch.ones_like(state.visited[:, :1])",
        "torch.zeros_like(state.visited[:, :1])",
        STRAIGHT,
    ),
    Mutation(
        "trips counted again and again",
        TEMPERING,
        "torch.zeros_like(visited[:, -1:])], 1), parity",
        "visited[:, -1:]], 1), parity",
        STRAIGHT,
    ),
    Mutation("refusals of a ladder are not accumulated", LADDER, "rates.cumsum(0)", "rates", EVEN),
    Mutation(
        "a ladder that is evenly spaced",
        LADDER,
        "found = interpolated(goals, barrier, scale)",
        "found = torch.linspace(float(scale[0]), float(scale[-1]), number, dtype=scale.dtype)",
        LOGS,
    ),
    Mutation(
        "a ladder interpolated in the wrong coordinate",
        LADDER,
        "found.exp() if logs else found**4",
        "found.exp() if logs else found**2",
        EVEN,
    ),
    Mutation(
        "new rungs without energies of their own",
        LADDER,
        'for name in ("replicas", "energies", "scores")',
        'for name in ("replicas", "scores")',
        a_new_ladder_takes_its_replicas_along,
    ),
    Mutation("evidence from one side with the whole step", RECORD, "half = 0.5 * (", "half = 1.0 * (", EVIDENCE),
    Mutation(
        "the bridge's signs",
        RECORD,
        "torch.stack([-half * slope[:, :-1], half",
        "torch.stack([half * slope[:, :-1], -half",
        EVIDENCE,
    ),
    Mutation("a jackknife that divides by cells", RECORD, "* (cells - 1) / cells", "/ cells", EVIDENCE),
    Mutation(
        "a level's parts are those of the last leaf",
        PATH,
        "there = (x == at).all(1)",
        "there = torch.ones(len(x), dtype=torch.bool)",
        law(test_smc_kernels.test_points_of_a_path_hold_the_parts_of_where_they_are),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
