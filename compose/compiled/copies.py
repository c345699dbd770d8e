"""C++ of tensors that are put together from others: padded, joined, or with a slice replaced."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from boltzmix.compose.compiled.lower import Value, Writer
from boltzmix.compose.compiled.table import operation, result_shape
from boltzmix.compose.compiled.views import moved, plus, replaced


def copied(writer: Writer, a: Value) -> str:
    """A fresh buffer with the entries of a value."""
    name = writer.array("V", a.size)
    whole = writer.stored(a.shape, "V", name)
    writer.write(whole, a)
    return name


@operation("slice_scatter")
def _slice_scatter(
    writer: Writer, node: Any, a: Value, b: Value, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(a.shape)
    first = slice(start, end, step).indices(a.shape[dim])[0]
    whole = writer.stored(a.shape, "V", copied(writer, a))
    writer.write(whole, b, lambda index: replaced(index, dim, plus(index[dim], step, first)))
    return whole


@operation("select_scatter")
def _select_scatter(writer: Writer, node: Any, a: Value, b: Value, dim: int, place: int) -> Value:
    dim %= len(a.shape)
    return _slice_scatter(writer, node, a, _unsqueezed(b, dim), dim, place % a.shape[dim], place % a.shape[dim] + 1)


def _unsqueezed(b: Value, dim: int) -> Value:
    shape = (*b.shape[:dim], 1, *b.shape[dim:])
    return moved(b, shape, lambda index: (*index[:dim], *index[dim + 1 :]))


@operation("slice_backward")
def _slice_backward(
    writer: Writer, node: Any, a: Value, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    return _slice_scatter(writer, node, _zeros(writer, sizes), a, dim, start, end, step)


@operation("select_backward")
def _select_backward(writer: Writer, node: Any, a: Value, sizes: Sequence[int], dim: int, place: int) -> Value:
    return _select_scatter(writer, node, _zeros(writer, sizes), a, dim, place)


def _zeros(writer: Writer, sizes: Sequence[int]) -> Value:
    return writer.constant(torch.zeros(tuple(sizes)))


@operation("constant_pad_nd")
def _pad(writer: Writer, node: Any, a: Value, pad: Sequence[int], value: float = 0) -> Value:
    shape = result_shape(node)
    offsets = [0] * len(shape)
    for k in range(len(pad) // 2):
        d, (before, after) = len(shape) - 1 - k, pad[2 * k : 2 * k + 2]
        offsets[d] = max(before, 0)
        first, rest = max(-before, 0), a.shape[d] - max(-before, 0) - max(-after, 0)
        a = moved(a, (*a.shape[:d], rest, *a.shape[d + 1 :]),
                   lambda index, d=d, first=first: replaced(index, d, plus(index[d], 1, first)))  # fmt: skip
    whole = writer.stored(shape, "V", copied(writer, writer.constant(torch.full(shape, value))))
    writer.write(whole, a, lambda index: tuple(plus(i, 1, o) for i, o in zip(index, offsets, strict=True)))
    return whole


@operation("cat")
def _cat(writer: Writer, node: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    shape = result_shape(node)
    dim %= len(shape)
    kind = "M" if parts[0].kind == "M" else "V"
    whole, start = writer.stored(shape, kind, writer.array(kind, math.prod(shape))), 0
    for part in parts:
        if len(part.shape) != len(shape):  # torch lets empty vectors pass
            continue
        writer.write(whole, part, lambda index, b=start: replaced(index, dim, plus(index[dim], 1, b)))
        start += part.shape[dim]
    return whole


@operation("stack")
def _stack(writer: Writer, node: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    place = dim % len(result_shape(node))
    return _cat(writer, node, [_unsqueezed(p, place) for p in parts], place)
