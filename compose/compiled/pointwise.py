"""C++ of operations on entries: arithmetic, functions, comparisons, choices, and tensors full of one number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from boltzmix.compose.compiled.lower import Index, Value, Writer, literal
from boltzmix.compose.compiled.table import operation
from boltzmix.compose.errors import CompileError


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


def numeric(writer: Writer, operand: Any) -> Any:
    """Truth values as numbers where torch takes them for such."""
    if isinstance(operand, Value) and operand.kind == "M":
        return pointwise(writer, [operand], lambda a: f"number<V>({a})", "V")
    return operand


_OF_TRUTHS = {"add": "|", "mul": "&"}


def _arithmetic(name: str, text: str) -> None:
    @operation(f"{name}.Tensor", f"{name}.Scalar")
    def lowering(writer: Writer, node: Any, a: Any, b: Any, alpha: float = 1) -> Value:
        if node.meta["val"].dtype == torch.bool and name in _OF_TRUTHS:
            operands = [truth(writer, a), truth(writer, b)]
            return pointwise(writer, operands, lambda x, y: f"({x} {_OF_TRUTHS[name]} {y})", "M")
        a, b = numeric(writer, a), numeric(writer, b)
        kind = "T" if _shared(a, b) else "V"
        scale = "" if alpha == 1 else f" * {literal(alpha)}"
        found = pointwise(writer, [a, b], lambda x, y: f"({x} {text} {y}{scale})", kind)
        return replace(found, scaled=_multiple(a, b, found.shape)) if name == "mul" else found


def _multiple(a: Any, b: Any, shape: tuple[int, ...]) -> tuple[Value, float] | None:
    """Of a product that is one of its factors, its signs and exponents changed: that factor, and by what."""
    for value, other in ((a, b), (b, a)):
        known = other.known if isinstance(other, Value) else torch.as_tensor(other)
        if not isinstance(value, Value) or value.shape != shape or known is None or not known.numel():
            continue
        factor = float(known.flatten()[0])
        if bool((known == factor).all()) and abs(math.frexp(factor)[0]) == 0.5:
            return value, factor
    return None


for _name, _text in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
    _arithmetic(_name, _text)


@operation("rsub.Scalar", "rsub.Tensor")
def _rsub(writer: Writer, node: Any, a: Value, b: Any, alpha: float = 1) -> Value:
    scale = "" if alpha == 1 else f" * {literal(alpha)}"
    return pointwise(writer, [a, b], lambda x, y: f"({y} - {x}{scale})", "T" if _shared(a, b) else "V")


def _function(name: str, text: str, weight: int = 4) -> None:
    @operation(name)
    def lowering(writer: Writer, node: Any, a: Any, *rest: Any) -> Value:
        if rest:
            raise CompileError(f"{node.target} with {rest} has no C++ here")
        return pointwise(writer, [numeric(writer, a)], lambda x: text.format(x), "V", weight)


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


@operation("neg")
def _neg(writer: Writer, node: Any, a: Value) -> Value:
    return pointwise(writer, [a], lambda x: f"(-{x})", a.kind)


@operation("reciprocal")
def _reciprocal(writer: Writer, node: Any, a: Value) -> Value:
    return pointwise(writer, [a], lambda x: f"(T(1) / {x})", a.kind)


@operation("square")
def _square(writer: Writer, node: Any, a: Value) -> Value:
    return power(writer, node, a, 2)


@operation("pow.Tensor_Scalar")
def power(writer: Writer, node: Any, a: Value, exponent: float) -> Value:
    if exponent in (2, 3, 4):
        a = writer.keep(a) if a.cost else a
        return pointwise(writer, [a], lambda x: "(" + " * ".join([x] * int(exponent)) + ")", a.kind)
    if exponent == 1:
        return a
    if exponent == -1:
        return _reciprocal(writer, node, a)
    if exponent == -2:
        return _reciprocal(writer, node, power(writer, node, a, 2))
    if exponent == -0.5:
        return pointwise(writer, [a], lambda x: f"(T(1) / v_sqrt(as<V>({x})))", "V", 5)
    if exponent == 0.5:
        return pointwise(writer, [a], lambda x: f"v_sqrt(as<V>({x}))", "V", 4)
    return pointwise(writer, [a], lambda x: f"v_pow({x}, as<V>({literal(exponent)}))", "V", 8)


@operation("pow.Tensor_Tensor", "pow.Scalar")
def _pow(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    a, b = numeric(writer, a), numeric(writer, b)
    return pointwise(writer, [a, b], lambda x, y: f"v_pow(as<V>({x}), as<V>({y}))", "V", 8)


def _function_of_two(names: Sequence[str], function: str) -> None:
    @operation(*names)
    def lowering(writer: Writer, node: Any, a: Any, b: Any) -> Value:
        a, b = numeric(writer, a), numeric(writer, b)
        return pointwise(writer, [a, b], lambda x, y: f"{function}(as<V>({x}), as<V>({y}))", "V", 8)


_function_of_two(["atan2"], "v_atan2")
_function_of_two(["hypot"], "v_hypot")
_function_of_two(["fmod.Scalar", "fmod.Tensor"], "v_fmod")
_function_of_two(["remainder.Scalar", "remainder.Tensor", "remainder.Scalar_Tensor"], "v_remainder")
_function_of_two(["copysign.Scalar", "copysign.Tensor"], "v_copysign")


@operation("polygamma")
def _polygamma(writer: Writer, node: Any, order: int, a: Value) -> Value:
    if order > 1:
        raise CompileError(f"derivatives of digamma beyond the first have no C++ here, got order {order}")
    return pointwise(writer, [a], lambda x: f"v_{'tri' if order else 'di'}gamma({x})", "V", 8)


def _comparison(name: str, text: str) -> None:
    @operation(f"{name}.Scalar", f"{name}.Tensor")
    def lowering(writer: Writer, node: Any, a: Any, b: Any) -> Value:
        a, b = numeric(writer, a), numeric(writer, b)
        return pointwise(writer, [a, b], lambda x, y: f"({x} {text} {y})", "M")


for _name, _text in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    _comparison(_name, _text)


def truth(writer: Writer, operand: Any) -> Any:
    if isinstance(operand, Value) and operand.kind != "M":
        return pointwise(writer, [operand], lambda x: f"({x} != T(0))", "M")
    return operand


def _logical(names: Sequence[str], text: str) -> None:
    @operation(*names)
    def lowering(writer: Writer, node: Any, *operands: Any) -> Value:
        return pointwise(writer, [truth(writer, o) for o in operands], lambda *xs: text.format(*xs), "M")


_logical(("logical_and", "bitwise_and.Tensor", "bitwise_and.Scalar"), "({} & {})")
_logical(("logical_or", "bitwise_or.Tensor", "bitwise_or.Scalar"), "({} | {})")
_logical(("logical_xor", "bitwise_xor.Tensor", "bitwise_xor.Scalar"), "({} ^ {})")
_logical(("logical_not", "bitwise_not"), "(~({}))")

for _name in ("isnan", "isinf", "isfinite"):

    def _test(writer: Writer, node: Any, a: Value, name: str = _name) -> Value:
        return pointwise(writer, [a], lambda x: f"m_{name}({x})", "M")

    operation(_name)(_test)


@operation("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(writer: Writer, node: Any, mask: Value, a: Any, b: Any) -> Value:
    if any(isinstance(o, Value) and o.kind == "M" for o in (a, b)):
        return pointwise(writer, [mask, a, b], lambda m, x, y: f"(({m} & {x}) | (~({m}) & {y}))", "M")
    return pointwise(writer, [mask, a, b], lambda m, x, y: f"choose({m}, as<V>({x}), as<V>({y}))", "V")


@operation("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(writer: Writer, node: Any, a: Value, mask: Value, value: Any) -> Value:
    return _where(writer, node, mask, value, a)


@operation("maximum", "max.other")
def _maximum(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    return pointwise(writer, [a, b], lambda x, y: f"v_max(as<V>({x}), as<V>({y}))", "V", 3)


@operation("minimum", "min.other")
def _minimum(writer: Writer, node: Any, a: Any, b: Any) -> Value:
    return pointwise(writer, [a, b], lambda x, y: f"v_min(as<V>({x}), as<V>({y}))", "V", 3)


@operation("clamp", "clamp.Tensor")
def _clamp(writer: Writer, node: Any, a: Value, min: Any = None, max: Any = None) -> Value:  # noqa: A002
    found = a if min is None else _maximum(writer, node, a, min)
    return found if max is None else _minimum(writer, node, found, max)


@operation("clamp_min", "clamp_min.Tensor")
def _clamp_min(writer: Writer, node: Any, a: Value, low: Any) -> Value:
    return _maximum(writer, node, a, low)


@operation("clamp_max", "clamp_max.Tensor")
def _clamp_max(writer: Writer, node: Any, a: Value, high: Any) -> Value:
    return _minimum(writer, node, a, high)


@operation("nan_to_num")
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


@operation("_to_copy", "to.dtype", "type_as", "prims::convert_element_type")
def _convert(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        return truth(writer, a)
    if not dtype.is_floating_point:
        raise CompileError("integers that depend on the state have no C++ here")
    return numeric(writer, a)


@operation("clone", "detach", "alias", "lift_fresh_copy", "positive", "contiguous")
def _same(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    return a


@operation("full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_full", "new_ones", "new_empty")
def _filled(writer: Writer, node: Any, a: Value, *rest: Any, **options: Any) -> Value:
    like = node.meta["val"]
    name = node.target.name()
    value = 1 if "ones" in name else 0
    if "full" in name:
        value = rest[-1]
    return writer.constant(torch.full(tuple(like.shape), value, dtype=like.dtype))
