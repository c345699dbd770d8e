"""Errors that NUTS in C++ can have, planted one by one in its text: a named check notices each."""

from contextlib import contextmanager

import pytest

from boltzmix.compose.compiled import nuts as compiled
from boltzmix.compose.compiled import toolchain
from tests.compose import test_compiled_nuts as tests
from tests.mutations.harness import NOTICED, Mutation, law, mutate, verify

TEXT = "boltzmix/compose/compiled/nuts.h"
MODULE = "boltzmix.compose.compiled.nuts"

pytestmark = tests.pytestmark

GAUSSIAN = law(tests.agree_on_a_gaussian)
FUNNEL = law(tests.agree_on_a_funnel)
WALLS = law(tests.agree_between_walls)
FLAT = law(tests.agree_where_nothing_turns)
DIAGONAL, SEPARATE, DENSE, LOW_RANK = (
    law(tests.agree_with_a_mass, name) for name in ("diagonal", "one for each chain", "dense", "low rank")
)
ALONE = law(tests.alone_and_together, "none")
COINS = law(tests.fair_coins)


def row(name, old, new, check, within=""):
    return Mutation(name, TEXT, old, new, check, within)


ROWS = [
    # what is chosen
    row("progressive sampling without bias", "uniform * before < added", "uniform * (before + added) < added", FUNNEL),
    row("the new half is always taken", "lane.uniform * before < added", "true", FUNNEL),
    row("the old half is forgotten", "lane.weight = before + added", "lane.weight = added", GAUSSIAN),
    row("weights on an old scale", "lane.peak = std::max(lane.peak, peak[i]), ", "", GAUSSIAN),
    row("weights of the halves on different scales", "(higher ? T(1) : ratio)", "T(1)", GAUSSIAN),
    row("the new half is weighed by its last leaf", "? weight * part + T(1)", "? T(1)", GAUSSIAN),
    row("exponential noise in the place of Gumbel's", "- v_log(-v_log(u))", "- v_log(u)", GAUSSIAN),
    row("the leaf of the least key", "newer = noisy > key", "newer = noisy < key", GAUSSIAN),
    row("the energy of another leaf", "lane.energy = lane.best_energy, ", "", GAUSSIAN),
    # where it goes
    row("backwards for forwards", "uniform_of(i) < T(0.5)", "uniform_of(i) >= T(0.5)", GAUSSIAN),
    row("backwards with the velocity of forwards", "first[j] = -last[j]", "first[j] = last[j]", GAUSSIAN),
    row("backwards from the wrong end", "std::swap(lane.first, lane.last)", "", GAUSSIAN),
    row("the sum of velocities is not mirrored", "until[j] = -until[j];", "", GAUSSIAN),
    row("sums before the ends are not mirrored", "= until[j] - last[j]", "= until[j]", GAUSSIAN),
    row("a whole kick", "T(0.5) * rate[j] * score[j]", "rate[j] * score[j]", GAUSSIAN),
    row("a whole kick at the end that turns", "T(0.5) * rate[j][i]", "rate[j][i]", GAUSSIAN),
    row("no mass for velocities", "x[j] += step_size * pulled[j]", "x[j] += step_size * velocity[j]", DENSE),
    row("a matrix that is not transposed", "job.scale, 1, D", "job.scale, D, 1", DENSE),
    row("no mass at the end that turns", "own[2 * PITCH + j]", "own[PITCH + j]", DENSE),
    row("entries left out of a matrix", "low = std::min(low, j), high", "low = j, high", DENSE),
    row("no scales for scores", "scaled[i] = job.scale[i] * score[i]", "scaled[i] = score[i]", LOW_RANK),
    row("scales of other chains", "job.scale + chain * D", "job.scale", SEPARATE),
    row("no scales", "job.kind == PLAIN ? T(1) : scale[j]", "T(1)", DIAGONAL),
    # when it stops
    row("sub-trees are not looked at", "if (ends && l < lane.depth)", "if (false)", FUNNEL),
    row("only the smallest sub-trees are looked at", "l < closed && !ends", "l < 1", GAUSSIAN),
    row("no turns between neighbours", "if (l && !ends)", "if (false)", GAUSSIAN),
    row("no turns between first leaves", "(lane.crossed >> l & 1) || ", "", GAUSSIAN),
    row("no turns between last leaves", " || turns(lane, k - half, now);", ";", GAUSSIAN),
    row("first leaves of other trees", "if (turns(lane, k - half, now))", "if (turns(lane, 0, now))", GAUSSIAN),
    row("only the first leaf's velocity counts", " || both[ROW / 2] <= 0", "", GAUSSIAN),
    row("sums from the start of the trajectory", "until[j] - then[PITCH / ROW + j]", "until[j]", GAUSSIAN),
    row("whole trajectories that turn are thrown away", "l < lane.depth) return", "l <= lane.depth) return", GAUSSIAN),
    row("whole trajectories that turn go on", "if (ends || ++lane.depth", "if (++lane.depth", GAUSSIAN),
    row("one doubling less", "++lane.depth == top", "++lane.depth == top - 1", FLAT),
    row("leaves that are needed are overwritten", "top + 1 + __builtin_ctzll(~k)", "top + 2", GAUSSIAN),
    row("first leaves that are needed are overwritten", "__builtin_ctzll(k | (int64_t(1) << top))", "top", GAUSSIAN),
    # leaves that cannot be
    row("errors of any size", "log_weight >= T(-job.max_energy_error)", "log_weight >= -INF", FUNNEL),
    row("minus infinity is a low energy", " & (log_weight < INF)", "", WALLS),
    row("divergences are not counted", "lane.divergent = energy[i] != INF", "lane.divergent = false", WALLS),
    row("infinite energies are counted", "lane.divergent = energy[i] != INF", "lane.divergent = true", WALLS),
    # what is reported
    row("acceptance above one", "good & (log_weight < 0) ?", "good ?", GAUSSIAN),
    row("acceptance of leaves that cannot be", "acceptance += good ? chance : V{}", "acceptance += chance", WALLS),
    row("a leaf too many", "leapfrogs[at] = lane.leaf", "leapfrogs[at] = lane.leaf + 1", GAUSSIAN),
    row("the Hamiltonian of the start", "hamiltonian[at] = lane.level", "hamiltonian[at] = start[i]", GAUSSIAN),
    row("all chains are said to have moved", "lane.accepted = lane.divergent = false", "lane.accepted = true", WALLS),
    row("scores of other points", "deal(score, scores)", "deal(x, scores)", GAUSSIAN),
    # who takes part
    row("energies of old points", "job.energy[lane.chain] = lane.energy;", "", ALONE),
    row("scores of old points", "std::memcpy(job.score + lane.chain * D, own + PITCH, D * sizeof(T));", "", ALONE),
    row("one seed for all chains", "seed = job.seeds[lane.chain]", "seed = job.seeds[0]", COINS),
    row("the same numbers in every transition", "at = 4 * uint64_t(lane.step)", "at = 0", COINS),
    row("uniforms of a part of the interval", "s[3]);\n        a[i]", "s[3]) >> 1;\n        a[i]", COINS),
]


@contextmanager
def planted(mutation=None):
    """The changed text, compiled in a hurry."""
    text = compiled.algorithm() if mutation is None else mutate(compiled.algorithm(), mutation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "algorithm", lambda: text)
        patch.setattr(toolchain, "_FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in toolchain._FLAGS))
        yield


#: each row is compiled: some in every run, all of them with ``-m slow``
SOME = [pytest.param(m, marks=[] if k % 10 == 0 else pytest.mark.slow, id=m.name) for k, m in enumerate(ROWS)]


@pytest.mark.parametrize("mutation", SOME)
def test_the_error_is_noticed(mutation):
    with planted():
        mutation.law()
    with planted(mutation):
        try:
            mutation.law()
        except NOTICED:
            return
    raise AssertionError(f"{mutation.name}: planted, and the law did not notice")


@pytest.mark.parametrize(
    "mutation",
    [
        Mutation("the transposed factor", MODULE, "variances.dtype)).mT", "variances.dtype))", DENSE),
        Mutation(
            "seeds from elsewhere", MODULE, ", generator=noise.generator)", ")",
            law(tests.test_the_generator_decides_everything),
        ),
        Mutation(
            "evaluations of the longest chain", MODULE, '["num_leapfrog"].sum()', '["num_leapfrog"].amax(1).sum()',
            law(tests.test_evaluations_are_counted),
        ),
    ],
    ids=lambda m: m.name,
)  # fmt: skip
def test_the_error_in_python_is_noticed(mutation):
    verify(mutation)
