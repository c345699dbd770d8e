"""C++ of torch's operations on the tensors of one row: the table :data:`OPERATIONS`, by overload name.

Results are as torch's, NaN and infinities included; sums are taken in another order. What is not in the table makes
:func:`~boltzmix.compose.compiled.lower.lower` refuse the graph.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled.lower import WIDE, Index, Value, Writer, linear, linear_number, literal
from boltzmix.compose.errors import CompileError

Lowering = Callable[..., Any]
OPERATIONS: dict[str, Lowering] = {}

_TILE = 14  # sums that a matrix product keeps in registers
_WIDE_TILE = 8  # likewise of R entries each


def _operation(*names: str) -> Callable[[Lowering], Lowering]:
    def add(lowering: Lowering) -> Lowering:
        OPERATIONS.update(dict.fromkeys((f"aten::{name}" if "::" not in name else name for name in names), lowering))
        return lowering

    return add


# ------------------------------------------------------------------- pointwise


def pointwise(writer: Writer, operands: Sequence[Any], text: Callable[..., str], kind: str, weight: int = 1) -> Value:
    """An operation on entries; operands are values that broadcast, or numbers."""
    values = [o for o in operands if isinstance(o, Value)]
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in values)))
    size = math.prod(shape)
    # an expression that is read again for every repetition would be computed as often
    kept = [writer.keep(o) if isinstance(o, Value) and o.cost and o.size < size else o for o in operands]

    def own(operand: Value, index: Index) -> Index:
        return tuple(
            0 if extent == 1 else i for i, extent in zip(_last(index, len(operand.shape)), operand.shape, strict=True)
        )

    def at(index: Index) -> str:
        written = []
        for operand in kept:
            if isinstance(operand, Value):
                written.append(operand.at(own(operand, index)) if kind == "T" else operand.vector(own(operand, index)))
            else:
                written.append(_number(operand))
        return text(*written)

    def run(index: Index, dim: int) -> str | None:
        written = []
        for operand in kept:
            if not isinstance(operand, Value):
                written.append(_number(operand))
                continue
            along = dim - len(shape) + len(operand.shape)
            if along < 0 or operand.shape[along] == 1:
                entries = repeated(operand, own(operand, index))
            else:
                entries = operand.run(own(operand, index), along)
            if entries is None:
                return None
            written.append(f"as<V>({entries})" if operand.kind == "T" and kind != "T" else entries)
        return text(*written)

    return Value(shape, kind, at, weight + sum(o.cost for o in kept if isinstance(o, Value)), run=run)


def repeated(value: Value, index: Index) -> str | None:
    """One entry for R, as :attr:`Value.run` gives them."""
    if value.kind == "T":
        return value.at(index) if value.cost == 0 else None
    return f"tile<{value.kind}>({value.at(index)})" if value.cost == 0 else None


def _last(index: Index, count: int) -> Index:
    return index[len(index) - count :]


def _number(operand: Any) -> str:
    if isinstance(operand, bool):
        return "(M{} - 1)" if operand else "M{}"
    return literal(operand)


def _shared(*operands: Any) -> bool:
    return all(o.kind == "T" for o in operands if isinstance(o, Value))


def _numeric(writer: Writer, operand: Any) -> Any:
    """Truth values as numbers where torch takes them for such."""
    if isinstance(operand, Value) and operand.kind == "M":
        return pointwise(writer, [operand], lambda a: f"number<V>({a})", "V")
    return operand


_OF_TRUTHS = {"add": "|", "mul": "&"}


def _arithmetic(name: str, text: str) -> None:
    @_operation(f"{name}.Tensor", f"{name}.Scalar")
    def lowering(writer: Writer, node: Any, a: Any, b: Any, alpha: float = 1) -> Value:
        if node.meta["val"].dtype == torch.bool and name in _OF_TRUTHS:
            operands = [_truth(writer, a), _truth(writer, b)]
            return pointwise(writer, operands, lambda x, y: f"({x} {_OF_TRUTHS[name]} {y})", "M")
        a, b = _numeric(writer, a), _numeric(writer, b)
        kind = "T" if _shared(a, b) else "V"
        scale = "" if alpha == 1 else f" * {literal(alpha)}"
        return pointwise(writer, [a, b], lambda x, y: f"({x} {text} {y}{scale})", kind)


for _name, _text in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
    _arithmetic(_name, _text)


@_operation("rsub.Scalar", "rsub.Tensor")
def _rsub(writer: Writer, node: Any, a: Value, b: Any, alpha: float = 1) -> Value:
    scale = "" if alpha == 1 else f" * {literal(alpha)}"
    return pointwise(writer, [a, b], lambda x, y: f"({y} - {x}{scale})", "T" if _shared(a, b) else "V")


def _function(name: str, text: str, weight: int = 4) -> None:
    @_operation(name)
    def lowering(writer: Writer, node: Any, a: Any, *rest: Any) -> Value:
        if rest:
            raise CompileError(f"{node.target} with {rest} has no C++ here")
        return pointwise(writer, [_numeric(writer, a)], lambda x: text.format(x), "V", weight)


for _name, _text in {
    "exp": "v_exp({})", "log": "v_log({})", "log1p": "v_log1p({})", "expm1": "v_expm1({})", "sin": "v_sin({})",
    "cos": "v_cos({})", "tan": "v_tan({})", "tanh": "v_tanh({})", "sinh": "v_sinh({})", "cosh": "v_cosh({})",
    "atan": "v_atan({})", "erf": "v_erf({})", "erfc": "v_erfc({})", "sigmoid": "v_sigmoid({})", "sqrt": "v_sqrt({})",
    "rsqrt": "(T(1) / v_sqrt({}))", "lgamma": "v_lgamma({})", "floor": "v_floor({})", "ceil": "v_ceil({})",
    "log2": "(v_log({}) * T(1.4426950408889634))", "log10": "(v_log({}) * T(0.43429448190325182))",
    "exp2": "v_exp({} * T(0.69314718055994531))", "abs": "v_abs({})", "sign": "v_sign({})", "sgn": "v_sign({})",
    "relu": "v_max({}, as<V>(T(0)))",
    "asin": "v_asin({})", "acos": "v_acos({})", "asinh": "v_asinh({})", "acosh": "v_acosh({})", "atanh": "v_atanh({})",
    "digamma": "v_digamma({})", "erfinv": "v_erfinv({})", "special_erfcx": "v_erfcx({})", "trunc": "v_trunc({})",
    "round": "v_round({})", "special_ndtri": "v_ndtri({})",
}.items():  # fmt: skip
    _function(_name, _text)


@_operation("neg")
def _neg(writer: Writer, node: Any, a: Value) -> Value:
    return pointwise(writer, [a], lambda x: f"(-{x})", a.kind)


@_operation("reciprocal")
def _reciprocal(writer: Writer, node: Any, a: Value) -> Value:
    return pointwise(writer, [a], lambda x: f"(T(1) / {x})", a.kind)


@_operation("square")
def _square(writer: Writer, node: Any, a: Value) -> Value:
    return _power(writer, node, a, 2)


@_operation("pow.Tensor_Scalar")
def _power(writer: Writer, node: Any, a: Value, exponent: float) -> Value:
    if exponent in (2, 3, 4):
        a = writer.keep(a) if a.cost else a
        return pointwise(writer, [a], lambda x: "(" + " * ".join([x] * int(exponent)) + ")", a.kind)
    if exponent == 1:
        return a
    if exponent == -1:
        return _reciprocal(writer, node, a)
    if exponent == -2:
        return _reciprocal(writer, node, _power(writer, node, a, 2))
    if exponent == -0.5:
        return pointwise(writer, [a], lambda x: f"(T(1) / v_sqrt(as<V>({x})))", "V", 5)
    if exponent == 0.5:
        return pointwise(writer, [a], lambda x: f"v_sqrt(as<V>({x}))", "V", 4)
    return pointwise(writer, [a], lambda x: f"v_pow({x}, as<V>({literal(exponent)}))", "V", 8)


@_operation("pow.Tensor_Tensor", "pow.Scalar")
def _pow(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    a, b = _numeric(writer, a), _numeric(writer, b)
    return pointwise(writer, [a, b], lambda x, y: f"v_pow(as<V>({x}), as<V>({y}))", "V", 8)


def _function_of_two(names: Sequence[str], function: str) -> None:
    @_operation(*names)
    def lowering(writer: Writer, node: Any, a: Any, b: Any) -> Value:
        a, b = _numeric(writer, a), _numeric(writer, b)
        return pointwise(writer, [a, b], lambda x, y: f"{function}(as<V>({x}), as<V>({y}))", "V", 8)


_function_of_two(["atan2"], "v_atan2")
_function_of_two(["hypot"], "v_hypot")
_function_of_two(["fmod.Scalar", "fmod.Tensor"], "v_fmod")
_function_of_two(["remainder.Scalar", "remainder.Tensor", "remainder.Scalar_Tensor"], "v_remainder")
_function_of_two(["copysign.Scalar", "copysign.Tensor"], "v_copysign")


@_operation("polygamma")
def _polygamma(writer: Writer, node: Any, order: int, a: Value) -> Value:
    if order > 1:
        raise CompileError(f"derivatives of digamma beyond the first have no C++ here, got order {order}")
    return pointwise(writer, [a], lambda x: f"v_{'tri' if order else 'di'}gamma({x})", "V", 8)


def _comparison(name: str, text: str) -> None:
    @_operation(f"{name}.Scalar", f"{name}.Tensor")
    def lowering(writer: Writer, node: Any, a: Any, b: Any) -> Value:
        a, b = _numeric(writer, a), _numeric(writer, b)
        return pointwise(writer, [a, b], lambda x, y: f"({x} {text} {y})", "M")


for _name, _text in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    _comparison(_name, _text)


def _truth(writer: Writer, operand: Any) -> Any:
    if isinstance(operand, Value) and operand.kind != "M":
        return pointwise(writer, [operand], lambda x: f"({x} != T(0))", "M")
    return operand


def _logical(names: Sequence[str], text: str) -> None:
    @_operation(*names)
    def lowering(writer: Writer, node: Any, *operands: Any) -> Value:
        return pointwise(writer, [_truth(writer, o) for o in operands], lambda *xs: text.format(*xs), "M")


_logical(("logical_and", "bitwise_and.Tensor", "bitwise_and.Scalar"), "({} & {})")
_logical(("logical_or", "bitwise_or.Tensor", "bitwise_or.Scalar"), "({} | {})")
_logical(("logical_xor", "bitwise_xor.Tensor", "bitwise_xor.Scalar"), "({} ^ {})")
_logical(("logical_not", "bitwise_not"), "(~({}))")

for _name in ("isnan", "isinf", "isfinite"):

    def _test(writer: Writer, node: Any, a: Value, name: str = _name) -> Value:
        return pointwise(writer, [a], lambda x: f"m_{name}({x})", "M")

    _operation(_name)(_test)


@_operation("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(writer: Writer, node: Any, mask: Value, a: Any, b: Any) -> Value:
    if any(isinstance(o, Value) and o.kind == "M" for o in (a, b)):
        return pointwise(writer, [mask, a, b], lambda m, x, y: f"(({m} & {x}) | (~({m}) & {y}))", "M")
    return pointwise(writer, [mask, a, b], lambda m, x, y: f"choose({m}, as<V>({x}), as<V>({y}))", "V")


@_operation("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(writer: Writer, node: Any, a: Value, mask: Value, value: Any) -> Value:
    return _where(writer, node, mask, value, a)


@_operation("maximum", "max.other")
def _maximum(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    return pointwise(writer, [a, b], lambda x, y: f"v_max(as<V>({x}), as<V>({y}))", "V", 3)


@_operation("minimum", "min.other")
def _minimum(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    return pointwise(writer, [a, b], lambda x, y: f"v_min(as<V>({x}), as<V>({y}))", "V", 3)


@_operation("clamp", "clamp.Tensor")
def _clamp(writer: Writer, node: Any, a: Value, min: Any = None, max: Any = None) -> Value:  # noqa: A002
    found = a if min is None else _maximum(writer, node, a, min)
    return found if max is None else _minimum(writer, node, found, max)


@_operation("clamp_min", "clamp_min.Tensor")
def _clamp_min(writer: Writer, node: Any, a: Value, low: Any) -> Value:
    return _maximum(writer, node, a, low)


@_operation("clamp_max", "clamp_max.Tensor")
def _clamp_max(writer: Writer, node: Any, a: Value, high: Any) -> Value:
    return _minimum(writer, node, a, high)


@_operation("nan_to_num")
def _nan_to_num(
    writer: Writer, node: Any, a: Value, nan: float | None = None, high: float | None = None, low: float | None = None
) -> Value:
    a = writer.keep(a)
    limits = torch.finfo(node.meta["val"].dtype)
    top, bottom = literal(limits.max if high is None else high), literal(limits.min if low is None else low)

    def text(x: str) -> str:
        bounded = f"choose({x} == T(INFINITY), as<V>({top}), choose({x} == T(-INFINITY), as<V>({bottom}), {x}))"
        return f"choose(m_isnan({x}), as<V>({literal(nan or 0.0)}), {bounded})"

    return pointwise(writer, [a], text, "V", 6)


@_operation("_to_copy", "to.dtype", "type_as", "prims::convert_element_type")
def _convert(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        return _truth(writer, a)
    if not dtype.is_floating_point:
        raise CompileError("integers that depend on the state have no C++ here")
    return _numeric(writer, a)


@_operation("clone", "detach", "alias", "lift_fresh_copy", "positive", "contiguous")
def _same(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    return a


@_operation("copy")
def _copy(writer: Writer, node: Any, a: Value, b: Value, non_blocking: bool = False) -> Value:
    return _expand(writer, node, b, a.shape)


@_operation("full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_full", "new_ones", "new_empty")
def _filled(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    like = node.meta["val"]
    name = node.target.name()
    value = 1 if "ones" in name else 0
    if "full" in name:
        value = rest[-1]
    return writer.constant(torch.full(tuple(like.shape), value, dtype=like.dtype))


# ----------------------------------------------------------------------- views


def _moved(a: Value, shape: Sequence[int], where: Callable[[Index], Index], torn: int = -1) -> Value:
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


def _result_shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


@_operation("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(writer: Writer, node: Any, a: Value, shape: Any, *rest: Any) -> Value:
    return _reshaped(writer, a, _result_shape(node))


@_operation("unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "flatten.using_ints")
def _resize(writer: Writer, node: Any, a: Value, *rest: Any) -> Value:
    return _reshaped(writer, a, _result_shape(node))


def _reshaped(writer: Writer, a: Value, shape: tuple[int, ...]) -> Value:
    if shape == a.shape:
        return a
    if [e for e in shape if e != 1] == [e for e in a.shape if e != 1] and a.buffer is None:

        def where(index: Index) -> Index:
            left = iter(i for i, extent in zip(index, shape, strict=True) if extent != 1)
            return tuple(0 if extent == 1 else next(left) for extent in a.shape)

        return _moved(a, shape, where)
    if a.known is not None:
        return writer.constant(a.known.reshape(shape))
    a = writer.keep(a)
    assert a.buffer is not None
    return writer.stored(shape, a.kind, a.buffer)


@_operation("expand")
def _expand(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    return _expanded(writer, a, _result_shape(node))


def _expanded(writer: Writer, a: Value, shape: tuple[int, ...]) -> Value:
    if shape == a.shape:
        return a
    if a.cost and math.prod(shape) > a.size:
        a = writer.keep(a)

    def where(index: Index) -> Index:
        own = index[len(shape) - len(a.shape) :]
        return tuple(0 if extent == 1 else i for i, extent in zip(own, a.shape, strict=True))

    return _moved(a, shape, where)


@_operation("permute")
def _permute(writer: Writer, node: Any, a: Value, dims: Sequence[int]) -> Value:
    order = [d % len(dims) for d in dims]

    def where(index: Index) -> Index:
        found: list[Any] = [0] * len(order)
        for place, dim in enumerate(order):
            found[dim] = index[place]
        return tuple(found)

    return _moved(a, [a.shape[d] for d in order], where)


@_operation("t")
def _t(writer: Writer, node: Any, a: Value) -> Value:
    return a if len(a.shape) < 2 else _permute(writer, node, a, (1, 0))


@_operation("transpose.int")
def _transpose(writer: Writer, node: Any, a: Value, first: int, second: int) -> Value:
    order = list(range(len(a.shape)))
    order[first], order[second] = order[second], order[first]
    return _permute(writer, node, a, order)


def _replaced(index: Index, dim: int, by: Any) -> Index:
    return (*index[:dim], by, *index[dim + 1 :])


def _plus(i: Any, step: int, start: int) -> Any:
    if isinstance(i, int):
        return i * step + start
    scaled = i if step == 1 else f"({i}) * {step}"
    return f"{scaled} + {start}" if start else scaled


@_operation("slice.Tensor")
def _slice(
    writer: Writer, node: Any, a: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim %= len(a.shape)
    first = slice(start, end, step).indices(a.shape[dim])[0]
    shape = _result_shape(node)
    return _moved(a, shape, lambda index: _replaced(index, dim, _plus(index[dim], step, first)))


@_operation("select.int")
def _select(writer: Writer, node: Any, a: Value, dim: int, place: int) -> Value:
    dim %= len(a.shape)
    place %= a.shape[dim]
    shape = (*a.shape[:dim], *a.shape[dim + 1 :])
    return _moved(a, shape, lambda index: (*index[:dim], place, *index[dim:]))


@_operation("split.Tensor", "split_with_sizes", "unbind.int", "chunk")
def _split(writer: Writer, node: Any, a: Value, *rest: Any) -> list[Value]:
    parts = node.meta["val"]
    if "unbind" in node.target.name():
        dim = rest[0] if rest else 0
        return [_select(writer, node, a, dim, k) for k in range(len(parts))]
    dim, start, found = (rest[1] if len(rest) > 1 else 0) % len(a.shape), 0, []
    for part in parts:
        begin = start
        found.append(
            _moved(a, tuple(part.shape), lambda index, b=begin: _replaced(index, dim, _plus(index[dim], 1, b)))
        )
        start += part.shape[dim]
    return found


@_operation("flip")
def _flip(writer: Writer, node: Any, a: Value, dims: Sequence[int]) -> Value:
    turned = {d % len(a.shape) for d in dims}

    def where(index: Index) -> Index:
        return tuple(_plus(i, -1, a.shape[d] - 1) if d in turned else i for d, i in enumerate(index))

    return _moved(a, a.shape, where)


@_operation("index_select")
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
    found = _moved(a, shape, lambda index: _replaced(index, dim, place(index[dim : dim + 1])), torn=dim)
    full = (*a.shape[:dim], *places.shape, *a.shape[dim + 1 :])
    return found if full == shape else _reshaped(writer, found, full)


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
    buffer, flat = _copied(writer, a), places.reshape(-1)
    name, shape, sign = writer.table(flat), tuple(places.shape), "+=" if accumulate else "="
    given = values if isinstance(values, Value) else writer.constant(torch.tensor(values))
    spread = _expanded(writer, _numeric(writer, given), shape)

    def body(index: Index) -> str:
        known = all(isinstance(i, int) for i in index)
        place = int(flat[linear_number(index, shape)]) if known else f"{name}[{linear(index, shape)}]"
        return f"{buffer}[{place}] {sign} {spread.vector(index)};"

    writer.loop(shape, body)
    return writer.stored(a.shape, "V", buffer)


@_operation("index.Tensor", "_unsafe_index.Tensor")
def _index(writer: Writer, node: Any, a: Value, indices: Sequence[Any]) -> Value:
    if _several(indices):
        known = _known_indices(indices)
        return _picked(writer, a, _places(a, lambda t: t[known]))
    return _taken(writer, node, a, *_along(a, indices))


@_operation("index_put", "_unsafe_index_put")
def _index_put(
    writer: Writer, node: Any, a: Value, indices: Sequence[Any], values: Value, accumulate: bool = False
) -> Value:
    known = _known_indices(indices)
    return _put(writer, a, _places(a, lambda t: t[known]), values, accumulate)


@_operation("embedding")
def _embedding(writer: Writer, node: Any, a: Value, places: Value, *rest: Any) -> Value:
    return _taken(writer, node, a, 0, _known_places(places, a.shape[0]))


@_operation("gather")
def _gather(writer: Writer, node: Any, a: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    (known,) = _known_indices([index])
    return _picked(writer, a, _places(a, lambda t: t.gather(dim, known)))


@_operation("scatter.src", "scatter.value", "scatter_add")
def _scatter(writer: Writer, node: Any, a: Value, dim: int, index: Value, values: Any) -> Value:
    (known,) = _known_indices([index])
    if isinstance(values, Value) and values.shape != tuple(known.shape):
        values = _moved(values, known.shape, lambda index: index)
    return _put(writer, a, _places(a, lambda t: t.gather(dim, known)), values, "add" in node.target.name())


@_operation("unfold")
def _unfold(writer: Writer, node: Any, a: Value, dim: int, size: int, step: int) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.unfold(dim, size, step)))


@_operation("diagonal")
def _diagonal(writer: Writer, node: Any, a: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.diagonal(offset, dim1, dim2)))


@_operation("diagonal_scatter")
def _diagonal_scatter(
    writer: Writer, node: Any, a: Value, b: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    return _put(writer, a, _places(a, lambda t: t.diagonal(offset, dim1, dim2)), b, False)


@_operation("repeat")
def _repeat(writer: Writer, node: Any, a: Value, times: Sequence[int]) -> Value:
    return _picked(writer, a, _places(a, lambda t: t.repeat(*times)))


@_operation("index_add")
def _index_add(writer: Writer, node: Any, a: Value, dim: int, places: Value, values: Value) -> Value:
    indices = [None] * (dim % len(a.shape)) + [places]
    return _index_put(writer, node, a, indices, values, True)


def _copied(writer: Writer, a: Value) -> str:
    """A fresh buffer with the entries of a value."""
    name = writer.array("V", a.size)
    whole = writer.stored(a.shape, "V", name)
    writer.write(whole, a)
    return name


@_operation("slice_scatter")
def _slice_scatter(
    writer: Writer, node: Any, a: Value, b: Value, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(a.shape)
    first = slice(start, end, step).indices(a.shape[dim])[0]
    whole = writer.stored(a.shape, "V", _copied(writer, a))
    writer.write(whole, b, lambda index: _replaced(index, dim, _plus(index[dim], step, first)))
    return whole


@_operation("select_scatter")
def _select_scatter(writer: Writer, node: Any, a: Value, b: Value, dim: int, place: int) -> Value:
    dim %= len(a.shape)
    return _slice_scatter(writer, node, a, _unsqueezed(b, dim), dim, place % a.shape[dim], place % a.shape[dim] + 1)


def _unsqueezed(b: Value, dim: int) -> Value:
    shape = (*b.shape[:dim], 1, *b.shape[dim:])
    return _moved(b, shape, lambda index: (*index[:dim], *index[dim + 1 :]))


@_operation("slice_backward")
def _slice_backward(
    writer: Writer, node: Any, a: Value, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    return _slice_scatter(writer, node, _zeros(writer, sizes), a, dim, start, end, step)


@_operation("select_backward")
def _select_backward(writer: Writer, node: Any, a: Value, sizes: Sequence[int], dim: int, place: int) -> Value:
    return _select_scatter(writer, node, _zeros(writer, sizes), a, dim, place)


def _zeros(writer: Writer, sizes: Sequence[int]) -> Value:
    return writer.constant(torch.zeros(tuple(sizes)))


@_operation("constant_pad_nd")
def _pad(writer: Writer, node: Any, a: Value, pad: Sequence[int], value: float = 0) -> Value:
    shape = _result_shape(node)
    offsets = [0] * len(shape)
    for k in range(len(pad) // 2):
        d, (before, after) = len(shape) - 1 - k, pad[2 * k : 2 * k + 2]
        offsets[d] = max(before, 0)
        first, rest = max(-before, 0), a.shape[d] - max(-before, 0) - max(-after, 0)
        a = _moved(a, (*a.shape[:d], rest, *a.shape[d + 1 :]),
                   lambda index, d=d, first=first: _replaced(index, d, _plus(index[d], 1, first)))  # fmt: skip
    whole = writer.stored(shape, "V", _copied(writer, writer.constant(torch.full(shape, value))))
    writer.write(whole, a, lambda index: tuple(_plus(i, 1, o) for i, o in zip(index, offsets, strict=True)))
    return whole


@_operation("cat")
def _cat(writer: Writer, node: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    shape = _result_shape(node)
    dim %= len(shape)
    kind = "M" if parts[0].kind == "M" else "V"
    whole, start = writer.stored(shape, kind, writer.array(kind, math.prod(shape))), 0
    for part in parts:
        if len(part.shape) != len(shape):  # torch lets empty vectors pass
            continue
        writer.write(whole, part, lambda index, b=start: _replaced(index, dim, _plus(index[dim], 1, b)))
        start += part.shape[dim]
    return whole


@_operation("stack")
def _stack(writer: Writer, node: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    place = dim % len(_result_shape(node))
    return _cat(writer, node, [_unsqueezed(p, place) for p in parts], place)


# ------------------------------------------------------------------ reductions


def _reduced(
    writer: Writer, node: Any, a: Value, dims: Any, kind: str, start: str, join: Callable[[str, str], str],
    finish: Callable[[str], str] = lambda total: total,
) -> Value:  # fmt: skip
    """A reduction over some dimensions of the operand, of the shape that the node says."""
    every = range(len(a.shape))
    gone = set(every) if dims is None or dims == [] else {d % max(len(a.shape), 1) for d in _listed(dims)}
    whole = _sums(writer, a, gone, kind, start, join, finish)
    assert whole.buffer is not None
    return writer.stored(_result_shape(node), kind, whole.buffer)


def _sums(
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


@_operation("sum", "sum.dim_IntList")
def _sum(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    return _reduced(writer, node, _numeric(writer, a), dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")


@_operation("mean", "mean.dim")
def _mean(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    share = a.size // max(math.prod(_result_shape(node)), 1)
    return _reduced(
        writer, node, a, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})", lambda t: f"({t}) / T({share})"
    )


@_operation("prod", "prod.dim_int")
def _prod(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any, **options: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(1))", lambda x, y: f"({x} * {y})")


@_operation("amax", "max")
def _amax(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(-INFINITY))", lambda x, y: f"v_max({x}, {y})")


@_operation("amin", "min")
def _amin(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, a, dims, "V", "as<V>(T(INFINITY))", lambda x, y: f"v_min({x}, {y})")


@_operation("any", "any.dim", "any.dims")
def _any(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, _truth(writer, a), dims, "M", "M{}", lambda x, y: f"({x} | {y})")


@_operation("all", "all.dim", "all.dims")
def _all(writer: Writer, node: Any, a: Value, dims: Any = None, *rest: Any) -> Value:
    return _reduced(writer, node, _truth(writer, a), dims, "M", "(M{} - 1)", lambda x, y: f"({x} & {y})")


def _running(name: str, start: str, text: str) -> None:
    @_operation(name)
    def lowering(writer: Writer, node: Any, a: Value, dim: int, **options: Any) -> Value:
        if not a.shape:
            return a
        a, dim = _numeric(writer, a), dim % len(a.shape)
        whole = writer.stored(a.shape, "V", writer.array("V", a.size))
        outer = [1 if d == dim else e for d, e in enumerate(a.shape)]

        def body(index: Index) -> list[str]:
            total, i = writer.fresh("r"), writer.fresh("i")
            here = _replaced(index, dim, i)
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


@_operation("prims::var", "var.correction", "var_mean.correction")
def _var(
    writer: Writer, node: Any, a: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False
) -> Any:
    gone = set(range(len(a.shape))) if not dims and dims != 0 else {d % len(a.shape) for d in _listed(dims)}
    a = writer.keep(a)
    count = math.prod(a.shape[d] for d in gone)
    rest = count - (1 if correction is None else correction)

    def plus(x: str, y: str) -> str:
        return f"({x} + {y})"

    mean = _sums(writer, a, gone, "V", "as<V>(T(0))", plus, lambda t: f"({t}) / T({count})")
    kept = _reshaped(writer, mean, tuple(1 if d in gone else e for d, e in enumerate(a.shape)))
    gaps = writer.keep(pointwise(writer, [a, kept], lambda x, y: f"({x} - {y})", "V"))
    squares = _power(writer, node, gaps, 2)
    found = _sums(writer, squares, gone, "V", "as<V>(T(0))", plus, lambda t: f"({t}) / {literal(max(rest, 0))}")
    both = "mean" in node.target.name()
    shape = tuple((node.meta["val"][0] if both else node.meta["val"]).shape)
    variance = _reshaped(writer, found, shape)
    return [variance, _reshaped(writer, mean, shape)] if both else variance


@_operation("linalg_vector_norm")
def _vector_norm(
    writer: Writer, node: Any, a: Value, order: float = 2, dims: Any = None, keepdim: bool = False, **options: Any
) -> Value:
    if order == 2:
        squares = _power(writer, node, a, 2)
        total = _reduced(writer, node, squares, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
        return pointwise(writer, [total], lambda x: f"v_sqrt({x})", "V", 4)
    size = pointwise(writer, [a], lambda x: f"v_abs({x})", "V")
    if order == math.inf:
        return _amax(writer, node, size, dims)
    if order == -math.inf:
        return _amin(writer, node, size, dims)
    if order == 0:
        size = _numeric(writer, _truth(writer, a))
    elif order != 1:
        size = _power(writer, node, size, order)
    total = _reduced(writer, node, size, dims, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
    return total if order in (0, 1) else _power(writer, node, total, 1 / order)


@_operation("max.dim", "min.dim")
def _largest(writer: Writer, node: Any, a: Value, dim: int, keepdim: bool = False) -> list[Any]:
    """Values; their places depend on the state."""
    if any(user.args[1] == 1 and user.users for user in node.users):
        raise CompileError("max(dim) and min(dim) give places, which depend on the state; write amax or amin")
    names, least = ("v_max", "-INFINITY") if "max" in node.target.name() else ("v_min", "INFINITY")
    gone = {dim % max(len(a.shape), 1)} if a.shape else set()
    found = _sums(writer, a, gone, "V", f"as<V>(T({least}))", lambda x, y: f"{names}({x}, {y})")
    return [writer.stored(tuple(node.meta["val"][0].shape), "V", str(found.buffer)), None]


# ------------------------------------------------------------ matrix products


@_operation("mm")
def _mm(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    return _product(writer, a, b, ())


@_operation("bmm")
def _bmm(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    return _product(writer, a, b, (a.shape[0],))


@_operation("mv")
def _mv(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    column = _moved(b, (b.shape[0], 1), lambda index: (index[0],))
    return _reshaped(writer, _product(writer, a, column, ()), _result_shape(node))


@_operation("dot")
def _dot(writer: Writer, node: Any, a: Value, b: Value) -> Value:
    row = _moved(a, (1, a.shape[0]), lambda index: (index[1],))
    column = _moved(b, (b.shape[0], 1), lambda index: (index[0],))
    return _reshaped(writer, _product(writer, row, column, ()), ())


@_operation("addmm")
def _addmm(writer: Writer, node: Any, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    found = _product(writer, a, b, ())
    if alpha != 1:
        found = pointwise(writer, [found, alpha], lambda x, y: f"({x} * {y})", "V")
    scale = "" if beta == 1 else f" * {literal(beta)}"
    return pointwise(writer, [found, c], lambda x, y: f"({x} + {y}{scale})", "V")


@_operation("baddbmm")
def _baddbmm(writer: Writer, node: Any, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise CompileError("baddbmm with factors has no C++ here")
    found = _product(writer, a, b, (a.shape[0],))
    return pointwise(writer, [found, c], lambda x, y: f"({x} + {y})", "V")


def _product(writer: Writer, a: Value, b: Value, batch: tuple[int, ...]) -> Value:
    """A (…, M, K) times B (…, K, N), in tiles of sums along the longer of M and N."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    a, b = _numeric(writer, a), _numeric(writer, b)
    if m == n == 1:  # a sum of products
        row = _moved(a, (*batch, k), lambda index: (*index[:-1], 0, index[-1]))
        column = _moved(b, (*batch, k), lambda index: (*index, 0))
        products = pointwise(writer, [row, column], lambda x, y: f"({x} * {y})", "V")
        sums = _sums(writer, products, {len(batch)}, "V", "as<V>(T(0))", lambda x, y: f"({x} + {y})")
        return _reshaped(writer, sums, (*batch, 1, 1))
    a, b = writer.keep(a), writer.keep(b)  # entries are read many times
    tiles = _Tiles(writer, a, b, batch)
    return tiles.write()


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
        begin = first if tile is None else _plus(tile, self.tile * many, 0)
        i = self.writer.fresh("i")
        splits = max(1, min(4, 8 // count)) if self.k >= 16 else 1
        lines = ["{ " + (WIDE if many > 1 else "")]
        lines += [f"V r{s}[{count}] = {{}};" for s in range(splits)]
        whole = self.k - self.k % splits
        lines.append(f"for (int {i} = 0; {i} < {whole}; {i} += {splits}) {{")
        for s in range(splits):
            lines += self._step(lead, place, begin, tile, _plus(i, 1, s), count, many, f"r{s}")
        lines.append("}")
        for rest in range(whole, self.k):
            lines += self._step(lead, place, begin, tile, rest, count, many, "r0")
        for s in range(1, splits):
            lines += [f"r0[{j}] += r{s}[{j}];" for j in range(count)]
        return [*lines, *self._results(lead, place, begin, count, many), "}"]

    def _step(
        self, lead: list[Any], place: Any, begin: Any, tile: Any, i: Any, count: int, many: int, sums: str
    ) -> list[str]:
        """Products of one place of K."""
        entry = self.single.at((*lead, place, i) if self.across else (*lead, i, place))
        factor = entry if self.single.kind == "T" else f"tile<V>({entry})"
        lines = [f"{{ const V f = as<V>({factor});"]
        if not self.known:
            entries = [self._entry(tuple(lead), i, _plus(begin, 1, j * many), many) for j in range(count)]
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
        return [*lines, *(f"{sums}[{j}] += f * {entry};" for j, entry in enumerate(entries)), "}"]

    def _results(self, lead: list[Any], place: Any, begin: Any, count: int, many: int) -> list[str]:
        """Stores; the last unit of a known factor may reach beyond the product."""
        there = self.extent - begin if isinstance(begin, int) else count * many
        lines = []
        for j in range(count):
            first = j * many
            entries = [_plus(begin, 1, first + part) for part in range(min(many, there - first))]
            places = [(*lead, place, at) if self.across else (*lead, at, place) for at in entries]
            if many == 1:
                lines.append(f"{self.whole.at(places[0])} = r0[{j}];")
            elif len(places) == many and (self.across or self.other == 1):
                lines.append(f"store({self.whole.buffer} + {linear(places[0], self.whole.shape)}, r0[{j}]);")
            else:
                lines += [f"{self.whole.at(at)} = part<Narrow>(r0[{j}], {part});" for part, at in enumerate(places)]
        return lines


__all__ = ["OPERATIONS", "linear_number", "pointwise"]
