"""C++ of views: tensors whose entries are those of another one at other places, which nobody writes anywhere."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from boltzmix.compose.compiled.lower import Index, Value, Writer
from boltzmix.compose.compiled.pointwise import repeated
from boltzmix.compose.compiled.table import operation, result_shape


def moved(a: Value, shape: Sequence[int], where: Callable[[Index], Index], torn: int = -1) -> Value:
    """A view: the entry at an index is that of ``a`` at another, which is affine in it except along ``torn``."""
    shape = tuple(shape)

    def run(index: Index, dim: int) -> str | None:
        if dim == torn:
            return None
        origin, after = where((0,) * len(shape)), where(tuple(int(d == dim) for d in range(len(shape))))
        steps = {d: j - i for d, (i, j) in enumerate(zip(origin, after, strict=True)) if i != j}
        if not steps:
            return repeated(a, where(index))
        if list(steps.values()) != [1]:
            return None
        return a.run(where(index), next(iter(steps)))

    return Value(shape, a.kind, lambda index: a.at(where(index)), a.cost, run=run)


@operation("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(writer: Writer, node: Any, a: Value, shape: Any, *rest: Any) -> Value:
    return reshaped(writer, a, result_shape(node))


@operation("unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "flatten.using_ints")
def _resize(writer: Writer, node: Any, a: Value, *rest: Any) -> Value:
    return reshaped(writer, a, result_shape(node))


def reshaped(writer: Writer, a: Value, shape: tuple[int, ...]) -> Value:
    if shape == a.shape:
        return a
    if [e for e in shape if e != 1] == [e for e in a.shape if e != 1] and a.buffer is None:

        def where(index: Index) -> Index:
            left = iter(i for i, extent in zip(index, shape, strict=True) if extent != 1)
            return tuple(0 if extent == 1 else next(left) for extent in a.shape)

        return moved(a, shape, where)
    if a.known is not None:
        return writer.constant(a.known.reshape(shape))
    a = writer.keep(a)
    assert a.buffer is not None
    return writer.stored(shape, a.kind, a.buffer)


@operation("expand")
def _expand(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    return expanded(writer, a, result_shape(node))


def expanded(writer: Writer, a: Value, shape: tuple[int, ...]) -> Value:
    if shape == a.shape:
        return a
    if a.cost and math.prod(shape) > a.size:
        a = writer.keep(a)

    def where(index: Index) -> Index:
        own = index[len(shape) - len(a.shape) :]
        return tuple(0 if extent == 1 else i for i, extent in zip(own, a.shape, strict=True))

    return moved(a, shape, where)


@operation("permute")
def _permute(writer: Writer, node: Any, a: Value, dims: Sequence[int]) -> Value:
    order = [d % len(dims) for d in dims]

    def where(index: Index) -> Index:
        found: list[Any] = [0] * len(order)
        for place, dim in enumerate(order):
            found[dim] = index[place]
        return tuple(found)

    return moved(a, [a.shape[d] for d in order], where)


@operation("t")
def _t(writer: Writer, node: Any, a: Value) -> Value:
    return a if len(a.shape) < 2 else _permute(writer, node, a, (1, 0))


@operation("transpose.int")
def _transpose(writer: Writer, node: Any, a: Value, first: int, second: int) -> Value:
    order = list(range(len(a.shape)))
    order[first], order[second] = order[second], order[first]
    return _permute(writer, node, a, order)


def replaced(index: Index, dim: int, by: Any) -> Index:
    return (*index[:dim], by, *index[dim + 1 :])


def plus(i: Any, step: int, start: int) -> Any:
    if isinstance(i, int):
        return i * step + start
    scaled = i if step == 1 else f"({i}) * {step}"
    return f"{scaled} + {start}" if start else scaled


@operation("slice.Tensor")
def _slice(
    writer: Writer, node: Any, a: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim %= len(a.shape)
    first = slice(start, end, step).indices(a.shape[dim])[0]
    shape = result_shape(node)
    return moved(a, shape, lambda index: replaced(index, dim, plus(index[dim], step, first)))


@operation("select.int")
def _select(writer: Writer, node: Any, a: Value, dim: int, place: int) -> Value:
    dim %= len(a.shape)
    place %= a.shape[dim]
    shape = (*a.shape[:dim], *a.shape[dim + 1 :])
    return moved(a, shape, lambda index: (*index[:dim], place, *index[dim:]))


@operation("split.Tensor", "split_with_sizes", "unbind.int", "chunk")
def _split(writer: Writer, node: Any, a: Value, *rest: Any) -> list[Value]:
    parts = node.meta["val"]
    if "unbind" in node.target.name():
        dim = rest[0] if rest else 0
        return [_select(writer, node, a, dim, k) for k in range(len(parts))]
    dim, start, found = (rest[1] if len(rest) > 1 else 0) % len(a.shape), 0, []
    for part in parts:
        begin = start
        found.append(moved(a, tuple(part.shape), lambda index, b=begin: replaced(index, dim, plus(index[dim], 1, b))))
        start += part.shape[dim]
    return found


@operation("flip")
def _flip(writer: Writer, node: Any, a: Value, dims: Sequence[int]) -> Value:
    turned = {d % len(a.shape) for d in dims}

    def where(index: Index) -> Index:
        return tuple(plus(i, -1, a.shape[d] - 1) if d in turned else i for d, i in enumerate(index))

    return moved(a, a.shape, where)


@operation("copy")
def _copy(writer: Writer, node: Any, a: Value, b: Value, non_blocking: bool = False) -> Value:
    return _expand(writer, node, b, a.shape)
