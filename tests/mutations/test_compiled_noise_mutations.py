"""Errors in how compiled transitions draw, keep and share numbers: each is noticed."""

from contextlib import contextmanager

import pytest
import torch

from boltzmix.compose.compiled import memory, normals
from tests.compose import test_compiled_noise as noise
from tests.compose import test_compiled_reuse as reuse
from tests.mutations.harness import NOTICED, Mutation, law, mutate, verify

pytestmark = noise.pytestmark

TEXT = "boltzmix/compose/compiled/normals.h"
NORMALS, MEMORY = "boltzmix.compose.compiled.normals", "boltzmix.compose.compiled.memory"
PRODUCTS, POINTWISE = "boltzmix.compose.compiled.products", "boltzmix.compose.compiled.pointwise"
TRANSITIONS = "boltzmix.compose.compiled.transitions"

SINGLE, DOUBLE = (law(noise.agrees_with_torch, dtype) for dtype in noise.DTYPES)
LAW, TAILS, DISTANCE = law(noise.looks_normal), law(noise.reaches_far_out), law(noise.passes_kolmogorovs_test)

ROWS = [
    Mutation("words of an older state", TEXT, "X y = (here & 0x80000000u)", "X y = (after & 0x80000000u)", SINGLE),
    Mutation("words are not tempered", TEXT, "y ^= (y << 15) & 0xefc60000u;", "", SINGLE),
    Mutation("the last word comes first", TEXT, "words[2 * i] & 0x1fffff", "words[2 * i + 1] & 0x1fffff", DOUBLE),
    Mutation("the logarithm of the other end", TEXT, "logarithm(T(1) - take(a, b))", "logarithm(take(a, b))", SINGLE),
    Mutation("a short series of the logarithm", TEXT, "? 5 : 11>(s * s, c)", "? 2 : 10>(s * s, c)", SINGLE),
    Mutation("a short series of the logarithm in double", TEXT, "? 5 : 11>(s * s, c)", "? 5 : 6>(s * s, c)", DOUBLE),
    Mutation("cosines of the wrong sign", TEXT, "((quarter + 1) & 2) << up", "(quarter & 2) << up", SINGLE),
    Mutation("every other group is that before it", TEXT, "? a + 16 : a;", "? a : a;", LAW),
    Mutation("one uniform for both numbers of a pair", TEXT, "turned(take(a + 8, b + 8)", "turned(take(a, b)", LAW),
    Mutation("half turns", TEXT, "(PI / 2), square", "(PI / 4), square", DISTANCE),
    Mutation("radii that are too short far out", TEXT, "T(0.69314718055994531) + s", "T(0.66) + s", TAILS),
    Mutation("the last group is left as it is", TEXT, "normals_of(to + count - 16, 1);", "", SINGLE),
    Mutation("the generator stays where it was", TEXT, "generator->next = stream.next;", "", SINGLE),
]


@contextmanager
def planted(mutation=None):
    """The changed text."""
    text = normals.algorithm() if mutation is None else mutate(normals.algorithm(), mutation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normals, "algorithm", lambda: text)
        yield


#: each row is compiled: some in every run, all of them with ``-m slow``
SOME = [pytest.param(m, marks=[] if k % 4 == 0 else pytest.mark.slow, id=m.name) for k, m in enumerate(ROWS)]


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


def checked():
    """What is compared with torch before it is used."""
    for dtype in noise.DTYPES:
        library = noise.library(dtype)
        assert normals.draws_as_torch_does(library, dtype)
    noise.test_the_default_generator_is_used_where_none_is_given()


def used_again():
    if memory.large_pages():
        noise.memory_is_used_again_when_nobody_has_it()


def written_apart():
    """Two tensors at once are two."""
    first, second = (memory.empty((1 << 19,), torch.float32).fill_(value) for value in (1.0, 2.0))
    assert float(first.max()) == 1.0
    assert float(second.min()) == 2.0


AGAIN, APART = law(used_again), law(written_apart)
ONCE, OTHERS = law(reuse.products_are_taken_once), law(reuse.other_products_are_their_own)
CARRIED = law(reuse.carried_values_are_those_of_the_last_turn)

PYTHON = [
    Mutation("one uniform for two purposes", NORMALS, "uniform[0], uniform[1]", "uniform[0], uniform[0]", law(checked)),
    Mutation("a generator that does not go on", NORMALS, "generator.set_state(state)", "pass", law(checked)),
    Mutation("memory that is never used again", MEMORY, ".append(memory)", ".clear()", AGAIN),
    Mutation("memory that is used while it is held", MEMORY, "_waiting[size].pop()", "_waiting[size][-1]", law(
        noise.memory_is_used_again_when_nobody_has_it)),
    Mutation("products of other matrices", PRODUCTS, "torch.equal(x.known, y.known)", "True", OTHERS),
    Mutation("products of other vectors", PRODUCTS, "x.buffer == y.buffer", "True", OTHERS),
    Mutation("multiples are forgotten", PRODUCTS, "[found, left * right]", "[found, 1.0]", ONCE),
    Mutation("multiples that are rounded", POINTWISE, "abs(math.frexp(factor)[0]) == 0.5", "factor", law(
        reuse.products_are_taken_once, -0.3)),
    Mutation("products of an earlier turn", TRANSITIONS, "start:], products", "start:], writer.products", CARRIED),
    Mutation("a value that stays behind", TRANSITIONS, "zip(held, after, strict=True)]", "list(zip(held, after))[1:]]",
             CARRIED),
]  # fmt: skip


@pytest.mark.parametrize("mutation", PYTHON, ids=lambda m: m.name)
def test_the_error_in_python_is_noticed(mutation):
    verify(mutation)
