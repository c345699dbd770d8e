"""What generated code computes once, and where it keeps it: products of symmetric matrices, and loops that carry."""

import re
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import boltzmix.compose as bm
from boltzmix.compose.compiled import toolchain
from boltzmix.compose.compiled.block import compile_kernel
from boltzmix.compose.compiled.native import check_source, evaluate_rows, source
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels.base import Info, Kernel
from boltzmix.compose.tracing import repeat

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")

D, N = 6, 8


def spread(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def code(function) -> tuple[int, Tensor, Tensor]:
    """How many products the energy and its score take; compiled scores, and the target's own."""
    target = ravel(bm.term(function, kind="log_prob", event_shape=(D,)), dtype=torch.float64)
    x = spread(1, N, D)
    made = source(target, x, 8)
    library = toolchain.load(made.text)
    check_source(library, made, target, x)
    body = made.text[made.text.index("static void energy_and_score") :]
    return len(re.findall(r"r0\[0\] \+= ", body)), evaluate_rows(library, made.constants, target, x)[1], target.score(x)


SQUARE = spread(2, D, D)
SYMMETRIC = SQUARE @ SQUARE.mT
SYMMETRIC = 0.5 * (SYMMETRIC + SYMMETRIC.mT)


def quadratic(matrix: Tensor, factor: float = -0.5):
    return lambda x: factor * (x * (x @ matrix)).sum(1)


def products_are_taken_once(factor: float = -0.5):
    """The score of xᵀ A x is A x + Aᵀ x; a factor that is no power of two is rounded with the vector, as it stands."""
    alone, found, truth = code(quadratic(SYMMETRIC, factor))
    torch.testing.assert_close(found, truth, rtol=1e-13, atol=1e-13)
    other, found, truth = code(quadratic(SQUARE, factor))
    torch.testing.assert_close(found, truth, rtol=1e-13, atol=1e-13)
    assert other == 2 * alone if factor == -0.5 else other == alone


@pytest.mark.parametrize("factor", [-0.5, -0.3])
def test_products_are_taken_once(factor):
    products_are_taken_once(factor)


def other_products_are_their_own():
    """Of other vectors with the same matrix, and of the same vector with other matrices."""
    _, found, truth = code(lambda x: -0.5 * (x * (x @ SYMMETRIC)).sum(1) - (x.square() @ SYMMETRIC).sum(1))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    changed = SYMMETRIC.clone()
    changed[0, 0] += 1
    _, found, truth = code(lambda x: -0.5 * (x * (x @ SYMMETRIC)).sum(1) - (x * (x @ changed)).sum(1))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


def test_other_products_are_their_own():
    other_products_are_their_own()


# -------------------------------------------------------------------------- loops


@dataclass(frozen=True)
class Turning(Kernel):
    """No kernel of anything: what is carried changes places, comes twice, stays, and is multiplied."""

    step_size: float | None = 0.1
    turns: int = 5
    adjusted = False

    def step(self, target, state, tune, noise):
        matrix = torch.eye(D, dtype=torch.float64) + 0.1 * SYMMETRIC / SYMMETRIC.abs().max()

        def move(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor):
            new = b + 0.1 * (a @ matrix)
            score = target.score(new)
            return b, new, new, score, e

        start = (state.x, noise.normal, state.x, state.score, noise.normal + 1)
        a, b, c, d, e = repeat(self.turns, move, start)
        x = 0.1 * (a + 2 * b + 3 * c + 5 * d + 7 * e) + 0.01 * (a @ matrix)
        ones = torch.ones_like(noise.uniform)
        return replace(state, x=x, score=target.score(x)), Info(ones, ones > 0, ones < 0)


def carried_values_are_those_of_the_last_turn(turns: int = 5):
    target = ravel(bm.term(quadratic(SYMMETRIC / 20), kind="log_prob", event_shape=(D,)), dtype=torch.float64)
    kernel = Turning(turns=turns)
    state = kernel.init(target, spread(3, N, D))
    tune, noise = kernel.tune(state.x), kernel.noise(state, torch.Generator().manual_seed(0), 3)
    block = compile_kernel(kernel, target, state, tune, backend="native")
    after, trace = block(state, tune, noise)
    for k in range(3):
        state, _ = kernel.step(target, state, tune, noise[k])
        torch.testing.assert_close(trace.x[k], state.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(after.score, state.score, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("turns", [1, 4, 5])
def test_carried_values_are_those_of_the_last_turn(turns):
    carried_values_are_those_of_the_last_turn(turns)
