"""C++ of matrix products: tiles of sums that stay in registers."""

import math
from typing import Any

import torch

from boltzmix.compose.compiled.lower import WIDE, Index, Value, Writer, linear, literal
from boltzmix.compose.compiled.pointwise import numeric, pointwise
from boltzmix.compose.compiled.reductions import sums
from boltzmix.compose.compiled.table import operation, result_shape
from boltzmix.compose.compiled.views import moved, plus, reshaped
from boltzmix.compose.errors import CompileError

_TILE = 14  # sums that a matrix product keeps in registers
_WIDE_TILE = 8  # likewise of R entries each


@operation("mm")
def _mm(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    return _product(writer, a, b, ())


@operation("bmm")
def _bmm(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    return _product(writer, a, b, (a.shape[0],))


@operation("mv")
def _mv(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    column = moved(b, (b.shape[0], 1), lambda index: (index[0],))
    return reshaped(writer, _product(writer, a, column, ()), result_shape(node))


@operation("dot")
def _dot(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    row = moved(a, (1, a.shape[0]), lambda index: (index[1],))
    column = moved(b, (b.shape[0], 1), lambda index: (index[0],))
    return reshaped(writer, _product(writer, row, column, ()), ())


@operation("addmm")
def _addmm(writer: Writer, node: Any, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    found = _product(writer, a, b, ())
    if alpha != 1:
        found = pointwise(writer, [found, alpha], lambda x, y: f"({x} * {y})", "V")
    scale = "" if beta == 1 else f" * {literal(beta)}"
    return pointwise(writer, [found, c], lambda x, y: f"({x} + {y}{scale})", "V")


@operation("baddbmm")
def _baddbmm(writer: Writer, node: Any, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise CompileError("baddbmm with factors has no C++ here")
    found = _product(writer, a, b, (a.shape[0],))
    return pointwise(writer, [found, c], lambda x, y: f"({x} + {y})", "V")


def _product(writer: Writer, a: Value, b: Value, batch: tuple[int, ...]) -> Value:
    """A (…, M, K) times B (…, K, N), in tiles of sums along the longer of M and N."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    a, b = numeric(writer, a), numeric(writer, b)
    if m == n == 1:  # a sum of products
        row = moved(a, (*batch, k), lambda index: (*index[:-1], 0, index[-1]))
        column = moved(b, (*batch, k), lambda index: (*index, 0))
        products = pointwise(writer, [row, column], lambda x, y: f"({x} * {y})", "V")
        total = sums(writer, products, {len(batch)}, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
        return reshaped(writer, total, (*batch, 1, 1))
    (a, left), (b, right) = _unscaled(a), _unscaled(b)
    a, b = writer.keep(a), writer.keep(b)  # entries are read many times
    found = _again(writer, a, b, batch)
    if found is None:
        found = _Tiles(writer, a, b, batch).write()
        writer.products.append((a, b, batch, found))
    if left * right == 1:
        return found
    return pointwise(writer, [found, left * right], lambda x, y: f"({x} * {y})", "V")


def _unscaled(value: Value) -> tuple[Value, float]:
    """What a factor is an exact multiple of, and by how much."""
    return (value, 1.0) if value.scaled is None else value.scaled


def _again(writer: Writer, a: Value, b: Value, batch: tuple[int, ...]) -> Value | None:
    """A product that is there already; the derivative of a quadratic form with a symmetric matrix takes it twice."""

    def same(x: Value, y: Value) -> bool:
        if x.known is None or y.known is None:
            return x.shape == y.shape and x.buffer is not None and x.buffer == y.buffer
        return x.known.shape == y.known.shape and torch.equal(x.known, y.known)

    for first, second, lead, found in writer.products:
        if lead == batch and same(first, a) and same(second, b):
            return found
    return None


class _Tiles:
    """A matrix product: tiles of sums that stay in registers while K is run through.

    One factor gives the entries along a tile and the other a number for all of them. A known factor is packed in the
    order in which it is read, with zeros to full tiles.
    """

    def __init__(self, writer: Writer, a: Value, b: Value, batch: tuple[int, ...]) -> None:
        """Choose the tiles."""
        (m, self.k), n = a.shape[-2:], b.shape[-1]
        self.writer, self.batch, self.across = writer, batch, n >= m
        self.extent, self.other = (n, m) if self.across else (m, n)
        self.tiled, self.single = (b, a) if self.across else (a, b)
        shape = (*batch, m, n)
        self.whole = writer.stored(shape, "V", writer.array("V", math.prod(shape)))
        self.many = writer.entries if self.extent >= writer.entries else 1
        self.known = self.tiled.known is not None
        if not self.known and self.many > 1 and self._entry(self._lead(0), 0, 0, self.many) is None:
            self.many = 1
        self.units = -(-self.extent // self.many) if self.known else self.extent // self.many
        count = -(-self.units // (_WIDE_TILE if self.many > 1 else _TILE))
        self.tile = -(-self.units // count)
        # whole tiles, in a loop
        self.tiles = (self.extent // self.many if self.known else self.units) // self.tile
        self.packed = self._pack() if self.known else ""

    def _lead(self, i: Any) -> Index:
        return (i,) * len(self.batch)

    def _pack(self) -> str:
        known = self.tiled.known
        assert known is not None
        matrix = known.to(self.writer.dtype)
        matrix = (matrix if self.across else matrix.mT).reshape(-1, self.k, self.extent)
        width = self.tile * self.many
        count = -(-self.extent // width)
        full = torch.nn.functional.pad(matrix, (0, count * width - self.extent))
        flat = full.unflatten(2, (count, width)).transpose(1, 2).flatten()
        return self.writer.table(torch.nn.functional.pad(flat, (0, 64 if self.many > 1 else 0)))

    def _entry(self, lead: Index, i: Any, place: Any, many: int) -> str | None:
        """The tiled factor at row ``i`` of K and ``place`` of the tile's dimension."""
        index = (*lead, i, place) if self.across else (*lead, place, i)
        if many == 1:
            return self.tiled.at(index)
        return self.tiled.run(index, len(lead) + (1 if self.across else 0))

    def write(self) -> Value:
        """The lines, and the product."""
        bounds = (*self.batch, self.other)
        self.writer.loop((*bounds, self.tiles), lambda index: self._tile(index[:-1], index[-1], self.tile, self.many))
        done = self.tiles * self.tile
        if done < self.units:
            self.writer.loop(bounds, lambda index: self._tile(index, self.tiles, self.units - done, self.many))
        if self.units * self.many < self.extent:
            first = self.units * self.many
            self.writer.loop(bounds, lambda index: self._tile(index, None, self.extent - first, 1, first))
        return self.whole

    def _tile(self, index: Index, tile: Any, count: int, many: int, first: int = 0) -> list[str]:
        *lead, place = index
        begin = first if tile is None else plus(tile, self.tile * many, 0)
        i = self.writer.fresh("i")
        splits = max(1, min(4, 8 // count)) if self.k >= 16 else 1
        lines = ["{ " + (WIDE if many > 1 else "")]
        lines += [f"V r{s}[{count}] = {{}};" for s in range(splits)]
        whole = self.k - self.k % splits
        lines.append(f"for (int {i} = 0; {i} < {whole}; {i} += {splits}) {{")
        for s in range(splits):
            lines += self._step(lead, place, begin, tile, plus(i, 1, s), count, many, f"r{s}")
        lines.append("}")
        for rest in range(whole, self.k):
            lines += self._step(lead, place, begin, tile, rest, count, many, "r0")
        for s in range(1, splits):
            lines += [f"r0[{j}] += r{s}[{j}];" for j in range(count)]
        return [*lines, *self._results(lead, place, begin, count, many), "}"]

    def _step(
        self, lead: list[Any], place: Any, begin: Any, tile: Any, i: Any, count: int, many: int, totals: str
    ) -> list[str]:
        """Products of one place of K."""
        entry = self.single.at((*lead, place, i) if self.across else (*lead, i, place))
        factor = entry if self.single.kind == "T" else f"tile<V>({entry})"
        lines = [f"{{ const V f = as<V>({factor});"]
        if not self.known:
            entries = [self._entry(tuple(lead), i, plus(begin, 1, j * many), many) for j in range(count)]
        else:
            width = self.tile * many
            row = linear((*lead, tile, i, 0), (*self.batch, -(-self.extent // width), self.k, width))
            lines.append(f"const T* const p = {self.packed} + {row};")
            if many == 1:
                entries = [f"p[{j}]" for j in range(count)]
            else:
                lanes = self.writer.lanes
                for g in range(-(-count // lanes)):
                    lines.append(f"const U u{g} = *(const LooseU*)(p + {g} * WIDE);")
                entries = [f"stretch<{j % lanes} * R>(u{j // lanes})" for j in range(count)]
        return [*lines, *(f"{totals}[{j}] += f * {entry};" for j, entry in enumerate(entries)), "}"]

    def _results(self, lead: list[Any], place: Any, begin: Any, count: int, many: int) -> list[str]:
        """Stores; the last unit of a known factor may reach beyond the product."""
        there = self.extent - begin if isinstance(begin, int) else count * many
        lines = []
        for j in range(count):
            first = j * many
            entries = [plus(begin, 1, first + part) for part in range(min(many, there - first))]
            places = [(*lead, place, at) if self.across else (*lead, at, place) for at in entries]
            if many == 1:
                lines.append(f"{self.whole.at(places[0])} = r0[{j}];")
            elif len(places) == many and (self.across or self.other == 1):
                lines.append(f"store({self.whole.buffer} + {linear(places[0], self.whole.shape)}, r0[{j}]);")
            else:
                lines += [f"{self.whole.at(at)} = part<Narrow>(r0[{j}], {part});" for part, at in enumerate(places)]
        return lines
