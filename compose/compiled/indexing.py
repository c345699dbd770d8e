"""C++ of indexing: entries read from, or put at, places that are known when the code is written."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled.copies import copied
from boltzmix.compose.compiled.lower import Index, Value, Writer, linear, linear_number
from boltzmix.compose.compiled.pointwise import numeric
from boltzmix.compose.compiled.table import operation
from boltzmix.compose.compiled.views import expanded, moved, replaced, reshaped
from boltzmix.compose.errors import CompileError


@operation("index_select")
def _index_select(writer: Writer, node: Any, a: Value, dim: int, places: Value) -> Value:
    return _taken(writer, node, a, dim, _known_places(places, a.shape[dim]))


def _known_places(places: Any, extent: int) -> Tensor:
    if not isinstance(places, Value) or places.known is None or places.known.is_floating_point():
        raise CompileError("indexing by what depends on the state has no C++ here")
    if places.known.dtype == torch.bool:
        return places.known.nonzero()[:, 0]
    return places.known % extent


def _taken(writer: Writer, node: Any, a: Value, dim: int, places: Tensor) -> Value:
    dim %= len(a.shape)
    numbers = places.reshape(-1)
    name = writer.table(numbers)

    def place(index: Index) -> Any:
        i = index[0]
        return int(numbers[i]) if isinstance(i, int) else f"{name}[{i}]"

    shape = (*a.shape[:dim], len(numbers), *a.shape[dim + 1 :])
    found = moved(a, shape, lambda index: replaced(index, dim, place(index[dim : dim + 1])), torn=dim)
    full = (*a.shape[:dim], *places.shape, *a.shape[dim + 1 :])
    return found if full == shape else reshaped(writer, found, full)


def _several(indices: Sequence[Any]) -> bool:
    """Whether indices are along more than one dimension, or not along a whole one."""
    given = [i for i in indices if i is not None]
    return len(given) != 1 or (
        given[0].known is not None and given[0].known.dtype == torch.bool and given[0].known.ndim > 1
    )


def _along(a: Value, indices: Sequence[Any]) -> tuple[int, Tensor]:
    dim = next(d for d, i in enumerate(indices) if i is not None)
    return dim, _known_places(indices[dim], a.shape[dim])


def _known_indices(indices: Sequence[Any]) -> tuple[Any, ...]:
    for i in indices:
        if i is not None and (i.known is None or i.known.is_floating_point()):
            raise CompileError("indexing by what depends on the state has no C++ here")
    return tuple(slice(None) if i is None else i.known for i in indices)


def _places(a: Value, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each entry of a rearranged tensor, its place in ``a``."""
    return move(torch.arange(a.size).reshape(a.shape))


def _picked(writer: Writer, a: Value, places: Tensor) -> Value:
    """The entries at some places."""
    shape, flat = tuple(places.shape), places.reshape(-1)
    source = writer.keep(a)
    entries = (
        writer.constant(a.known.reshape(-1))
        if a.known is not None
        else writer.stored((a.size,), a.kind, str(source.buffer))
    )
    name = writer.table(flat)

    def at(index: Index) -> str:
        if all(isinstance(i, int) for i in index):
            return entries.at((int(flat[linear_number(index, shape)]),))
        return entries.at((f"{name}[{linear(index, shape)}]",))

    def run(index: Index, dim: int) -> str | None:
        return None

    return Value(shape, a.kind, at, run=run)


def _put(writer: Writer, a: Value, places: Tensor, values: Any, accumulate: bool) -> Value:
    """A copy of ``a`` with values at some places."""
    buffer, flat = copied(writer, a), places.reshape(-1)
    name, shape, sign = writer.table(flat), tuple(places.shape), "+=" if accumulate else "="
    given = values if isinstance(values, Value) else writer.constant(torch.tensor(values))
    spread = expanded(writer, numeric(writer, given), shape)

    def body(index: Index) -> str:
        known = all(isinstance(i, int) for i in index)
        place = int(flat[linear_number(index, shape)]) if known else f"{name}[{linear(index, shape)}]"
        return f"{buffer}[{place}] {sign} {spread.vector(index)};"

    writer.loop(shape, body)
    return writer.stored(a.shape, "V", buffer)


@operation("index.Tensor", "_unsafe_index.Tensor")
def _index(writer: Writer, node: Any, a: Value, indices: Sequence[Any]) -> Value:
    if _several(indices):
        known = _known_indices(indices)
        return _picked(writer, a, _places(a, lambda t: t[known]))
    return _taken(writer, node, a, *_along(a, indices))


@operation("index_put", "_unsafe_index_put")
def _index_put(
    writer: Writer, node: Any, a: Value, indices: Sequence[Any], values: Value, accumulate: bool = False
) -> Value:
    known = _known_indices(indices)
    return _put(writer, a, _places(a, lambda t: t[known]), values, accumulate)


@operation("embedding")
def _embedding(writer: Writer, node: Any, a: Value, places: Value, *rest: Any) -> Value:
    return _taken(writer, node, a, 0, _known_places(places, a.shape[0]))


@operation("gather")
def _gather(writer: Writer, node: Any, a: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    (known,) = _known_indices([index])
    return _picked(writer, a, _places(a, lambda t: t.gather(dim, known)))


@operation("scatter.src", "scatter.value", "scatter_add")
def _scatter(writer: Writer, node: Any, a: Value, dim: int, index: Value, values: Any) -> Value:
    (known,) = _known_indices([index])
    if isinstance(values, Value) and values.shape != tuple(known.shape):
        values = moved(values, known.shape, lambda index: index)
    return _put(writer, a, _places(a, lambda t: t.gather(dim, known)), values, "add" in node.target.name())


@operation("unfold")
def _unfold(writer: Writer, node: Any, a: Value, dim: int, size: int, step: int) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.unfold(dim, size, step)))


@operation("diagonal")
def _diagonal(writer: Writer, node: Any, a: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.diagonal(offset, dim1, dim2)))


@operation("diagonal_scatter")
def _diagonal_scatter(
    writer: Writer, node: Any, a: Value, b: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    return _put(writer, a, _places(a, lambda t: t.diagonal(offset, dim1, dim2)), b, False)


@operation("repeat")
def _repeat(writer: Writer, node: Any, a: Value, times: Sequence[int]) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.repeat(*times)))


@operation("index_add")
def _index_add(writer: Writer, node: Any, a: Value, dim: int, places: Value, values: Value) -> Value:
    indices = [None] * (dim % len(a.shape)) + [places]
    return _index_put(writer, node, a, indices, values, True)
