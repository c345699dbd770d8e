"""Wrong formulas planted in the code that writes C++; the law compares one operation with torch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compose.compiled_operations import compiled, differing, eager
from tests.mutations.harness import Mutation, verify

POINTWISE = "boltzmix.compose.compiled.pointwise"
VIEWS = "boltzmix.compose.compiled.views"
INDEXING = "boltzmix.compose.compiled.indexing"
REDUCTIONS = "boltzmix.compose.compiled.reductions"
PRODUCTS = "boltzmix.compose.compiled.products"
LOWER = "boltzmix.compose.compiled.lower"


def as_torch(function: Callable[[Tensor], Tensor], size: int = 7) -> Callable[[], None]:
    """The function's C++ gives what torch gives."""

    def law() -> None:
        x = torch.randn(5, size, generator=torch.Generator().manual_seed(1))
        found = compiled({"": function}, x, 4)[""]
        assert not differing(found, eager(function, x), 1e-4).any()

    return law


CONSTANT = torch.randn(9, 7, generator=torch.Generator().manual_seed(2))

MUTATIONS = [
    Mutation(
        "flip is one entry off",
        VIEWS,
        "a.shape[d] - 1)",
        "a.shape[d])",
        as_torch(lambda x: x.flip(1)),
        "def _flip",
    ),
    Mutation(
        "mean divides by the results",
        REDUCTIONS,
        "T({share})",
        "T({a.size + share})",
        as_torch(lambda x: x.mean(1)),
        "def _mean",
    ),
    Mutation(
        "a clamp from above is one from below",
        POINTWISE,
        "_minimum",
        "_maximum",
        as_torch(lambda x: x.clamp(-1, 0.5)),
        "def _clamp",
    ),
    Mutation("slices start at 0", VIEWS, "step, first)", "step, 0)", as_torch(lambda x: x[:, 2:]), "def _slice"),
    Mutation(
        "squares are cubes", POINTWISE, "int(exponent)", "(int(exponent) + 1)", as_torch(lambda x: x**2), "def power"
    ),
    Mutation(
        "where is turned",
        POINTWISE,
        '[mask, a, b], lambda m, x, y: f"choose',
        '[mask, b, a], lambda m, x, y: f"choose',
        as_torch(lambda x: torch.where(x > 0, x, 2 * x)),
        "def _where",
    ),
    Mutation(
        "repeated places are overwritten",
        INDEXING,
        '"+=" if accumulate else "="',
        '"="',
        as_torch(lambda x: x.index_add(1, torch.tensor([1, 1, 3]), x[:, :3])),
    ),
    Mutation(
        "the rest of a loop is left out",
        LOWER,
        "elif start < extent:",
        "elif start == 0:",
        as_torch(lambda x: x.exp() * 2),
    ),
    Mutation(
        "products leave out the last of K",
        PRODUCTS,
        "< {whole};",
        "< {whole - 1};",
        as_torch(lambda x: x @ CONSTANT.T, 7),
    ),
    Mutation("wide sums forget a part", REDUCTIONS, "k < R; ++k", "k < R - 1; ++k", as_torch(lambda x: x.sum(1))),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLTZMIX_CXXFLAGS", "-O0")
    verify(mutation)
