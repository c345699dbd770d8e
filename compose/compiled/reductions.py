"""C++ of reductions over dimensions: sums, extremes, moments, norms and running totals, in an order of their own."""

import math
from collections.abc import Callable
from typing import Any

from boltzmix.compose.compiled.lower import WIDE, Index, Value, Writer, linear, literal
from boltzmix.compose.compiled.pointwise import numeric, pointwise, power, truth
from boltzmix.compose.compiled.table import operation, result_shape
from boltzmix.compose.compiled.views import replaced, reshaped
from boltzmix.compose.errors import CompileError


def _reduced(
    writer: Writer, node: Any, a: Value, dims: Any, kind: str, start: str, join: Callable[[str, str], str],
    finish: Callable[[str], str] = lambda total: total,
) -> Value:  # fmt: skip
    """A reduction over some dimensions of the operand, of the shape that the node says."""
    every = range(len(a.shape))
    gone = set(every) if dims is None or dims == [] else {d % max(len(a.shape), 1) for d in _listed(dims)}
    whole = sums(writer, a, gone, kind, start, join, finish)
    assert whole.buffer is not None
    return writer.stored(result_shape(node), kind, whole.buffer)


def sums(
    writer: Writer, a: Value, gone: set[int], kind: str, start: str, join: Callable[[str, str], str],
    finish: Callable[[str], str] = lambda total: total,
) -> Value:  # fmt: skip
    """The same without those dimensions; long ones run on several partial results, which do not wait for each other."""
    left = [d for d in range(len(a.shape)) if d not in gone]
    lost = [d for d in sorted(gone) if a.shape[d] != 1]
    shape = [a.shape[d] for d in left]
    whole = writer.stored(shape, kind, writer.array(kind, math.prod(shape)))
    entry, entries = (a.vector, a.vectors) if kind == "V" else (a.at, a.run)
    last = lost[-1] if lost else -1

    def full(index: Index, place: Index) -> Index:
        found: list[Any] = [0] * len(a.shape)
        for dims, indices in ((left, index), (lost, place)):
            for d, i in zip(dims, indices, strict=True):
                found[d] = i
        return tuple(found)

    def total(index: Index, first: int, step: int, read: Callable[[Index], str | None]) -> list[str] | None:
        """Lines that leave in r the reduction of the last dimension from ``first`` on, ``step`` entries at once."""
        probe = read(full(index, ("0",) * len(lost)))
        if probe is None:
            return None
        inner, count = writer.inner(), (a.shape[last] - first) // step if lost else 1
        names = ["r", *(f"r{k}" for k in range(1, 4 if count >= 8 else 1))]
        inner.lines.append(" ".join(f"{kind} {name} = {start};" for name in names))

        def along(outer: Index) -> list[str]:
            if not lost:
                return [f"r = {join('r', str(read(full(index, ()))))};"]
            i, lines = writer.fresh("i"), []
            begin, end = first, first + count * step
            for group in [names, names[:1]] if len(names) > 1 else [names]:
                stride = step * len(group)
                stop = begin + (end - begin) // stride * stride
                if stop > begin:
                    lines.append(f"for (int {i} = {begin}; {i} < {stop}; {i} += {stride}) {{")
                    for k, name in enumerate(group):
                        place = f"{i} + {k * step}" if k else i
                        lines.append(f"{name} = {join(name, str(read(full(index, (*outer, place)))))};")
                    lines.append("}")
                begin = stop
            return lines

        inner.loop([a.shape[d] for d in lost[:-1]], along)
        inner.lines += [f"r = {join('r', name)};" for name in names[1:]]
        return inner.lines

    many = writer.entries

    def body(index: Index) -> list[str]:
        name, lines, first = writer.fresh("t"), [], 0
        if lost and 1 < many <= a.shape[last]:
            found = total(index, 0, many, lambda place: entries(place, last))
            if found is not None:
                first = a.shape[last] - a.shape[last] % many
                each = "part<NarrowM>(r, k)" if kind == "M" else "part<Narrow>(r, k)"
                lines += [f"{{ {WIDE}", *found, f"for (int k = 0; k < R; ++k) {name} = {join(name, each)};", "}"]
        if not lost or first < a.shape[last]:
            rest = total(index, first, 1, entry)
            assert rest is not None
            lines += ["{", *rest, f"{name} = {join(name, 'r')};", "}"]
        return [f"{{ {kind} {name} = {start};", *lines, f"{whole.at(index)} = {finish(name)}; }}"]

    def wide(index: Index, dim: int) -> str | None:
        found = total(index, 0, 1, lambda place: entries(place, left[dim]))
        if found is None or math.prod(shape[dim + 1 :]) != 1:
            return None
        return "\n".join([*found, f"store({whole.buffer} + {linear(index, shape)}, {finish('r')});"])

    writer.loop(shape, body, wide)
    return whole


def _listed(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


@operation("sum", "sum.dim_IntList")
def _sum(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    return _reduced(writer, node, numeric(writer, a), dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")


@operation("mean", "mean.dim")
def _mean(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    share = a.size // max(math.prod(result_shape(node)), 1)
    return _reduced(
        writer, node, a, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})", lambda t: f"({t}) / T({share})"
    )


@operation("prod", "prod.dim_int")
def _prod(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(1))", lambda x, y: f"({x} * {y})")


@operation("amax", "max")
def _amax(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(-INFINITY))", lambda x, y: f"v_max({x}, {y})")


@operation("amin", "min")
def _amin(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(INFINITY))", lambda x, y: f"v_min({x}, {y})")


@operation("any", "any.dim", "any.dims")
def _any(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, truth(writer, a), dims, "M", "M{}", lambda x, y: f"({x} | {y})")


@operation("all", "all.dim", "all.dims")
def _all(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, truth(writer, a), dims, "M", "(M{} - 1)", lambda x, y: f"({x} & {y})")


def _running(name: str, start: str, text: str) -> None:
    @operation(name)
    def lowering(writer: Writer, node: Any, a: Value, dim: int, **options: Any) -> Value:
        if not a.shape:
            return a
        a, dim = numeric(writer, a), dim % len(a.shape)
        whole = writer.stored(a.shape, "V", writer.array("V", a.size))
        outer = [1 if d == dim else e for d, e in enumerate(a.shape)]

        def body(index: Index) -> list[str]:
            total, i = writer.fresh("r"), writer.fresh("i")
            here = replaced(index, dim, i)
            return [
                f"{{ V {total} = {start}; for (int {i} = 0; {i} < {a.shape[dim]}; ++{i}) {{",
                f"{total} = {text.format(total, a.vector(here))}; {whole.at(here)} = {total};",
                "} }",
            ]

        writer.loop(outer, body)
        return whole


_running("cumsum", "as<V>(T(0))", "{} + {}")
_running("cumprod", "as<V>(T(1))", "{} * {}")
_running("logcumsumexp", "as<V>(T(-INFINITY))", "v_logaddexp({}, {})")


@operation("prims::var", "var.correction", "var_mean.correction")
def _var(
    writer: Writer, node: Any, a: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False
) -> Any:
    gone = set(range(len(a.shape))) if not dims and dims != 0 else {d % len(a.shape) for d in _listed(dims)}
    a = writer.keep(a)
    count = math.prod(a.shape[d] for d in gone)
    rest = count - (1 if correction is None else correction)

    def plus(x: str, y: str) -> str:
        return f"({x} + {y})"

    mean = sums(writer, a, gone, "V", "as<V>(T(0))", plus, lambda t: f"({t}) / T({count})")
    kept = reshaped(writer, mean, tuple(1 if d in gone else e for d, e in enumerate(a.shape)))
    gaps = writer.keep(pointwise(writer, [a, kept], lambda x, y: f"({x} - {y})", "V"))
    squares = power(writer, node, gaps, 2)
    found = sums(writer, squares, gone, "V", "as<V>(T(0))", plus, lambda t: f"({t}) / {literal(max(rest, 0))}")
    both = "mean" in node.target.name()
    shape = tuple((node.meta["val"][0] if both else node.meta["val"]).shape)
    variance = reshaped(writer, found, shape)
    return [variance, reshaped(writer, mean, shape)] if both else variance


@operation("linalg_vector_norm")
def _vector_norm(
    writer: Writer, node: Any, a: Value, order: float = 2, dims: Any = None, keepdim: bool = False, **options: Any
) -> Value:
    if order == 2:
        squares = power(writer, node, a, 2)
        total = _reduced(writer, node, squares, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
        return pointwise(writer, [total], lambda x: f"v_sqrt({x})", "V", 4)
    size = pointwise(writer, [a], lambda x: f"v_abs({x})", "V")
    if order == math.inf:
        return _amax(writer, node, size, dims)
    if order == -math.inf:
        return _amin(writer, node, size, dims)
    if order == 0:
        size = numeric(writer, truth(writer, a))
    elif order != 1:
        size = power(writer, node, size, order)
    total = _reduced(writer, node, size, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
    return total if order in (0, 1) else power(writer, node, total, 1 / order)


@operation("max.dim", "min.dim")
def _largest(writer: Writer, node: Any, a: Value, dim: int, keepdim: bool = False) -> list[Any]:
    """Values; their places depend on the state."""
    if any(user.args[1] == 1 and user.users for user in node.users):
        raise CompileError("max(dim) and min(dim) give places, which depend on the state; write amax or amin")
    names, least = ("v_max", "-INFINITY") if "max" in node.target.name() else ("v_min", "INFINITY")
    gone = {dim % max(len(a.shape), 1)} if a.shape else set()
    found = sums(writer, a, gone, "V", f"as<V>(T({least}))", lambda x, y: f"{names}({x}, {y})")
    return [writer.stored(tuple(node.meta["val"][0].shape), "V", str(found.buffer)), None]
