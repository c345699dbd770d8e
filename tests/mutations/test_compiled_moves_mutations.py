"""Planted errors in blocks by torch's compiler, and in the compiled moves of samplers along a path."""

import pytest

from tests.compose import test_compiled_moves, test_compiled_scan
from tests.mutations.harness import Mutation, law, verify

SCAN, MOVES, PATH = (
    "boltzmix.compose.compiled.scan", "boltzmix.compose.samplers.moves", "boltzmix.compose.samplers.path",
)  # fmt: skip
PADDING = law(test_compiled_scan.padding_changes_nothing)
WORK = law(test_compiled_moves.work_is_counted)
PARTS = law(test_compiled_moves.test_parts_in_one_tensor_and_apart)
LEVEL = law(test_compiled_moves.test_a_level_is_an_input)
ROWS = [
    Mutation("every transition of a padded block is one", SCAN, "< true", "< self.length", PADDING),
    Mutation("transitions too many are kept", SCAN, "column[:true]", "column", PADDING),
    Mutation("one evaluation too few is counted", SCAN, "+ steps * rows)", "+ (steps - 1) * rows)", PADDING),
    Mutation("evaluations of one step are counted", SCAN, "+ steps * rows)", "+ rows)", PADDING),
    Mutation("blocks begin at the first noise", SCAN, "t[done : done + self.length]", "t[: self.length]", PADDING),
    Mutation("padding with the first noise", SCAN, "block[-1:]", "block[:1]",
             law(test_compiled_scan.test_padding_repeats_the_last_noise)),
    Mutation("evaluations before the measure are forgotten", MOVES, "self._work = self._evaluations *",
             "self._work = 0 *", WORK),
    Mutation("work without calls", MOVES, "evaluations * (self._calls * _CALL + rows", "evaluations * (rows", WORK),
    Mutation("energies of the ends exchanged", MOVES, "parts[:, 0], parts[:, 1]", "parts[:, 1], parts[:, 0]", PARTS),
    Mutation("scores of the ends exchanged", MOVES, "base_score, score = slopes", "score, base_score = slopes", PARTS),
    Mutation("code keeps its first level", MOVES, "return LevelTarget(self.path, *tensors)", "return self", LEVEL),
    Mutation("weights of the ends exchanged", PATH, "(1.0 - weight) * base_energy + weight * energy",
             "weight * base_energy + (1.0 - weight) * energy", law(test_compiled_moves.test_exact_weights)),
]  # fmt: skip


@pytest.mark.parametrize("mutation", ROWS, ids=lambda row: row.name)
def test_noticed(mutation: Mutation):
    verify(mutation)
