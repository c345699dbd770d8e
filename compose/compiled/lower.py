"""From a graph of tensor operations to C++ in which every number is a vector of W chains.

The graph is that of one row (:mod:`boltzmix.compose.compiled.rows`), so its shapes are static and small. A value is
either written to a buffer, or kept as an expression that its readers write out: pointwise operations with one reader
are, so that a chain of them becomes one loop. What does not depend on the row is computed while lowering.

Where W chains do not fill the vectors of the processor, loops take R entries at once: those that follow each other
along a dimension of a buffer are one wide vector, U, of R entries × W chains. A value says how that is written, if it
can be (:attr:`Value.run`); the text of an operation is the same for both, and what remains of a loop is done entry by
entry.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from boltzmix.compose.compiled.toolchain import vector_bytes
from boltzmix.compose.errors import CompileError

_STACK = 1 << 20  # bytes of buffers that one function may hold
_LINES = 60_000  # of C++ of one function
_INLINE = 24  # operations that one expression may hold

Index = tuple[Any, ...]  # one int or C++ expression for each dimension
Run = Callable[[Index, int], str | None]


def _none(index: Index, dim: int) -> str | None:
    """The run of a value whose entries do not follow each other."""
    return None


@dataclass(frozen=True)
class Value:
    """A tensor of one row while C++ is written.

    Attributes:
        shape: static.
        kind: ``"V"`` numbers of each chain, ``"T"`` numbers that all chains share, ``"M"`` truth values of each chain.
        at: the C++ expression of the entry at an index.
        cost: operations of that expression; 0 is a load.
        known: the tensor itself, where it does not depend on any input.
        buffer: the name of the array that holds the entries in order, where there is one.
        run: the C++ expression of the R entries from an index on along a dimension, as a U (of kind T, a T where all
            are equal), for a block in which ``V`` and ``M`` stand for the wide types; None where there is none.
        scaled: of which value it is a multiple, and which, where that is exact.
    """

    shape: tuple[int, ...]
    kind: str
    at: Callable[[Index], str]
    cost: int = 0
    known: Tensor | None = None
    buffer: str | None = None
    run: Run = _none
    scaled: "tuple[Value, float] | None" = None

    @property
    def size(self) -> int:
        """How many entries."""
        return math.prod(self.shape)

    def vector(self, index: Index) -> str:
        """The entry as a V."""
        return f"as<V>({self.at(index)})" if self.kind == "T" else self.at(index)

    def vectors(self, index: Index, dim: int) -> str | None:
        """R entries as a U."""
        text = self.run(index, dim)
        return f"as<V>({text})" if text is not None and self.kind == "T" else text


@dataclass
class Writer:
    """C++ of one function, and the constants that it reads.

    Attributes:
        width: bytes of a V.
        constants: what ``constants`` points to, of all functions of a source.
        dtype: of T.
        given: how many of the constants, at the front, may change from call to call.
        lines: so far.
        products: matrix products that are there: the factors, one of them by its buffer, and the result.
    """

    width: int
    constants: list[Tensor]
    dtype: torch.dtype = torch.float32
    given: int = 0
    lines: list[str] = field(default_factory=list)
    held: int = 0
    names: Any = field(default_factory=itertools.count)
    read: set[int] = field(default_factory=set)
    products: list[Any] = field(default_factory=list)

    @property
    def lanes(self) -> int:
        """W."""
        return self.width // self.dtype.itemsize

    @property
    def entries(self) -> int:
        """R, entries in a wide vector."""
        return max(vector_bytes() // self.width, 1)

    def code(self) -> list[str]:
        """All lines, with the constants that they read before them."""
        return [f"const T* const c{number} = constants[{number}];" for number in sorted(self.read)] + self.lines

    def inner(self) -> "Writer":
        """For lines to be put into these later."""
        return Writer(self.width, self.constants, self.dtype, self.given, names=self.names, read=self.read)

    def fresh(self, letter: str) -> str:
        """A name."""
        return f"{letter}{next(self.names)}"

    def array(self, kind: str, size: int) -> str:
        """Declare a buffer."""
        self.held += size * self.width
        if self.held > _STACK:
            raise CompileError(f"one row needs buffers of more than {_STACK >> 10} KiB")
        name = self.fresh("b")
        self.lines.append(f"alignas(64) {kind} {name}[{max(size, 1)}];")
        return name

    def loop(
        self,
        shape: Sequence[int],
        body: Callable[[Index], str | list[str]],
        wide: Callable[[Index, int], str | None] | None = None,
    ) -> None:
        """A loop over all indices of a shape.

        Args:
            shape: extents.
            body: the statements of one index.
            wide: the statement of R indices along the last dimension that is not 1, or None where it has none.
        """
        shape = tuple(shape)
        if 0 in shape:
            return
        index: list[Any] = [0] * len(shape)
        long = [d for d, extent in enumerate(shape) if extent != 1]
        for d in long[:-1]:
            index[d] = self.fresh("i")
            self.lines.append(f"for (int {index[d]} = 0; {index[d]} < {shape[d]}; ++{index[d]}) {{")
        if long:
            self._innermost(index, long[-1], shape[long[-1]], body, wide)
        else:
            self._add(body(tuple(index)))
        self.lines.append("}" * len(long[:-1]))
        if len(self.lines) > _LINES:
            raise CompileError(f"the C++ of one row has more than {_LINES} lines")

    def _innermost(
        self, index: list[Any], d: int, extent: int, body: Callable[[Index], str | list[str]],
        wide: Callable[[Index, int], str | None] | None,
    ) -> None:  # fmt: skip
        name, many, start = self.fresh("i"), self.entries, 0
        index[d] = name
        if wide is not None and 1 < many <= extent and (text := wide(tuple(index), d)) is not None:
            start = extent - extent % many
            self.lines.append(f"for (int {name} = 0; {name} < {start}; {name} += R) {{ {WIDE} {text} }}")
        if start == extent - 1:
            index[d] = start
            self._add(body(tuple(index)))
        elif start < extent:
            self.lines.append(f"for (int {name} = {start}; {name} < {extent}; ++{name}) {{")
            self._add(body(tuple(index)))
            self.lines.append("}")

    def _add(self, lines: str | list[str]) -> None:
        self.lines += [lines] if isinstance(lines, str) else lines

    # ------------------------------------------------------------------ values

    def stored(self, shape: Sequence[int], kind: str, buffer: str) -> Value:
        """The value whose entries a buffer holds in order."""
        shape = tuple(shape)

        def run(index: Index, dim: int) -> str | None:
            if math.prod(shape[dim + 1 :]) != 1:
                return None
            return f"{'expand' if kind == 'T' else 'load'}({buffer} + {linear(index, shape)})"

        return Value(shape, kind, lambda index: f"{buffer}[{linear(index, shape)}]", buffer=buffer, run=run)

    def constant(self, tensor: Tensor) -> Value:
        """A tensor that is known; truth values and integers are numbers of type T, too."""
        shape, truth = tuple(tensor.shape), tensor.dtype == torch.bool
        flat = tensor.detach().reshape(-1).to(self.dtype)
        uniform = len(flat) > 0 and bool((flat == flat[0]).all() & (flat.signbit() == flat[0].signbit()).all())

        def number(index: Index) -> str:
            if uniform:
                return literal(flat[0].item())
            if all(isinstance(i, int) for i in index):
                return literal(flat[linear_number(index, shape)].item())
            return f"{self.table(flat)}[{linear(index, shape)}]"

        def numbers(index: Index, dim: int) -> str | None:
            if uniform:
                return literal(flat[0].item())
            if math.prod(shape[dim + 1 :]) != 1:
                return None
            return f"expand({self.table(flat)} + {linear(index, shape)})"

        def mask(index: Index) -> str:
            if uniform:
                return "(M{} - 1)" if bool(flat[0]) else "M{}"
            return f"(as<V>({number(index)}) != T(0))"

        def masks(index: Index, dim: int) -> str | None:
            text = numbers(index, dim)
            return mask(index) if uniform else None if text is None else f"({text} != T(0))"

        if truth:
            return Value(shape, "M", mask, known=tensor, run=masks)
        return Value(shape, "T", number, known=tensor, run=numbers)

    def table(self, flat: Tensor) -> str:
        """The name of an array of known numbers: of type T, or of integers."""
        if not flat.is_floating_point():
            name = self.fresh("n")
            numbers = ", ".join(str(int(v)) for v in flat.tolist())
            self.lines.append(f"static const int {name}[] = {{{numbers}}};")
            return name
        flat = flat.to(self.dtype).contiguous()
        for number, old in enumerate(self.constants):
            if number >= self.given and old.shape == flat.shape and torch.equal(old, flat):
                break
        else:
            number = len(self.constants)
            self.constants.append(flat)
        self.read.add(number)
        return f"c{number}"

    def keep(self, value: Value) -> Value:
        """The value in a buffer."""
        if value.buffer is not None or value.known is not None:
            return value
        whole = self.stored(value.shape, value.kind, self.array(value.kind, value.size))
        self.write(whole, value)
        return whole

    def write(self, whole: Value, value: Value, where: Callable[[Index], Index] = lambda index: index) -> None:
        """Put the entries of a value into those of a buffer.

        Args:
            whole: of the buffer.
            value: as many entries, or fewer.
            where: from an index of the value to one of the buffer, affine.
        """
        buffer = whole.buffer
        entry = value.vector if whole.kind == "V" else value.at
        entries = {"V": value.vectors, "M": value.run, "T": _none}[whole.kind]
        origin = [0] * len(value.shape)

        def place(index: Index) -> int:
            return linear_number(where(index), whole.shape)

        def wide(index: Index, dim: int) -> str | None:
            next_one = tuple(int(d == dim) for d in range(len(origin)))
            if place(next_one) - place(tuple(origin)) != 1 or (text := entries(index, dim)) is None:
                return None
            return f"store({buffer} + {linear(where(index), whole.shape)}, {text});"

        self.loop(value.shape, lambda index: f"{whole.at(where(index))} = {entry(index)};", wide)


#: within a block, the expressions of entries mean R entries
WIDE = "typedef U V; typedef Wide M;"


def linear(index: Index, shape: Sequence[int]) -> str:
    """The place of an index in row-major order, as C++."""
    number, terms, stride = 0, [], 1
    for i, extent in zip(reversed(index), reversed(shape), strict=True):
        if isinstance(i, int):
            number += i * stride
        else:
            terms.append(i if stride == 1 else f"({i}) * {stride}")
        stride *= extent
    return " + ".join([*terms, *([str(number)] if number or not terms else [])])


def linear_number(index: Index, shape: Sequence[int]) -> int:
    """The same for numbers."""
    place = 0
    for i, extent in zip(index, shape, strict=True):
        place = place * extent + i
    return place


def literal(number: Any) -> str:
    """A number of type T."""
    if isinstance(number, bool):
        return str(int(number))
    if math.isnan(number):
        return "T(NAN)"
    if math.isinf(number):
        return "T(INFINITY)" if number > 0 else "T(-INFINITY)"
    return f"T({float(number)!r})"


def lower(
    graph: fx.GraphModule, inputs: Sequence[Value], writer: Writer, calls: Callable[..., Any] | None = None
) -> list[Value]:
    """Write the operations of a graph; the values of its outputs.

    Args:
        graph: of one row, in operations of :mod:`boltzmix.compose.compiled.operations`.
        inputs: one for each placeholder.
        writer: where code goes.
        calls: writes operations that are not tensor operations: ``(writer, node, values) -> value``, or None.

    Raises:
        CompileError: an operation that has no C++ here.
    """
    from boltzmix.compose.compiled.operations import OPERATIONS

    found: dict[fx.Node, Any] = {}
    given = iter(inputs)

    def resolve(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return found[argument]
        if isinstance(argument, (list, tuple)):
            return type(argument)(resolve(a) for a in argument)
        return argument

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            found[node] = next(given)
        elif node.op == "get_attr":
            held = getattr(graph, node.target)
            if not isinstance(held, Tensor):
                raise CompileError(f"the code holds a {type(held).__name__}: does it draw random numbers itself?")
            found[node] = writer.constant(held)
        elif node.op == "output":
            (results,) = node.args
            return [resolve(r) for r in (results if isinstance(results, (list, tuple)) else [results])]
        else:
            arguments, options = resolve(node.args), {k: resolve(v) for k, v in node.kwargs.items()}
            value = _known(node, arguments, options, writer)
            if value is None and calls is not None:
                value = calls(writer, node, arguments)
            if value is None:
                name = node.target.name() if hasattr(node.target, "name") else str(node.target)
                if node.target is operator.getitem:
                    value = arguments[0][arguments[1]]
                elif name in OPERATIONS:
                    value = OPERATIONS[name](writer, node, *arguments, **options)
                else:
                    raise CompileError(f"{_label(node)} has no C++ here")
            if isinstance(value, Value) and value.cost and (len(node.users) > 1 or value.cost > _INLINE):
                value = writer.keep(value)
            found[node] = value
    raise AssertionError("a graph ends with its output")


def _label(node: fx.Node) -> str:
    return f"the operation {node.target}"


def _known(node: fx.Node, arguments: Any, options: dict[str, Any], writer: Writer) -> Any:
    """What does not depend on any input is computed now."""
    values = [v for v in _flat((arguments, list(options.values()))) if isinstance(v, Value)]
    if any(v.known is None for v in values) or not callable(node.target):
        return None
    if getattr(node.target, "namespace", None) != "aten":
        return None
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise CompileError(f"{_label(node)} draws random numbers within the step")
    result = node.target(*_tensors(arguments), **{k: _tensors(v) for k, v in options.items()})
    if isinstance(result, Tensor):
        return writer.constant(result)
    return [writer.constant(r) for r in result]


def _flat(argument: Any) -> list[Any]:
    if isinstance(argument, (list, tuple)):
        return [leaf for a in argument for leaf in _flat(a)]
    return [argument]


def _tensors(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.known
    if isinstance(argument, (list, tuple)):
        return type(argument)(_tensors(a) for a in argument)
    return argument
