"""Blocks of transitions as one C++ function: W chains to a vector, all transitions in one call.

The function is generated from the code of the kernel and of the target (:mod:`boltzmix.compose.compiled.rows`,
:mod:`boltzmix.compose.compiled.lower`) and built by the machine's own compiler. Chains never wait for each other, and
nothing is allocated while it runs.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from boltzmix.compose.compiled import rows
from boltzmix.compose.compiled.lower import Index, Value, Writer, lower
from boltzmix.compose.compiled.toolchain import HERE, vector_bytes
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Target

_NAMES = {torch.float32: "float", torch.float64: "double"}


def lanes_for(chains: int, dtype: torch.dtype) -> int:
    """W: as many chains as a vector of this processor holds, and no more than there are."""
    size = dtype.itemsize
    most, lanes = vector_bytes() // size, 16 // size
    while lanes < min(most, chains):
        lanes *= 2
    return lanes


@dataclass(frozen=True)
class Source:
    """C++ of a target, and the arrays that it reads.

    Attributes:
        text: the prelude, the functions ``energy_and_score``, ``score`` and ``energy`` that were asked for, and
            ``evaluate_all`` for rows of states.
        constants: what ``constants`` points to.
        lanes: W.
        dim: D.
        dtype: of T.
        given: how many of the constants, at the front, are inputs of the target.
    """

    text: str
    constants: list[Tensor]
    lanes: int
    dim: int
    dtype: torch.dtype
    given: int = 0


def source(target: Target, x: Tensor, lanes: int, also: Sequence[str] = ()) -> Source:
    """C++ of the evaluations of a target, for chains like ``x`` ``(N, D)``.

    There is a function for energies and scores together (scores alone, where the target has no energy), and for each
    of ``also``: ``"score"``, ``"energy"``. A target may have ``inputs``, tensors that code reads anew at every call;
    they come first among the constants, and ``having(tensors)`` is the target with others in their place. One with
    ``parts > 0`` gives as many numbers beside energy and score.

    Raises:
        CompileError: the target cannot be traced, or does something that has no C++ here.
    """
    if x.device.type != "cpu" or x.dtype not in _NAMES:
        raise CompileError(f"C++ is generated for float32 and float64 on the CPU, not {x.dtype} on {x.device}")
    if getattr(getattr(target, "view", None), "per_row", False):
        raise CompileError("conditions that differ by row make a target of its own of each row")
    width = lanes * x.dtype.itemsize
    given: list[Tensor] = list(getattr(target, "inputs", ()))
    constants = list(given)
    main, parts = main_call(target), int(getattr(target, "parts", 0))
    functions = []
    with uncounted(target):
        for call in dict.fromkeys([main, *also]):
            functions.append(_function(call, target, x[:1], given, Writer(width, constants, x.dtype, len(given))))
    head = [
        f"typedef {_NAMES[x.dtype]} T;",
        f"#define SINGLE {int(x.dtype == torch.float32)}",
        f"constexpr int W = {lanes}, WIDE = {max(vector_bytes() // x.dtype.itemsize, lanes)};",
        f"constexpr int D = {x.shape[1]}, P = {parts};",
        (HERE / "prelude.h").read_text(),
        "static thread_local const T* const* constants;",
    ]
    calls = {"energy_and_score": "(place, e, s);", "score": "(place, s);", "energy_score_parts": "(place, e, s, p);"}
    tail = _EVALUATE_ALL.replace("EVALUATE", main + calls[main])
    return Source("\n".join([*head, *functions, tail]), constants, lanes, x.shape[1], x.dtype, len(given))


OUTPUTS = {
    "energy_and_score": ("energy", "score"),
    "score": ("score",),
    "energy": ("energy",),
    "energy_score_parts": ("energy", "score", "parts"),
}


def main_call(target: Any) -> str:
    """The function that evaluates everything that a target has."""
    if getattr(target, "parts", 0):
        return "energy_score_parts"
    return "energy_and_score" if target.has_energy else "score"


def _function(name: str, target: Any, x: Tensor, given: Sequence[Tensor], writer: Writer) -> str:
    def evaluate(t: Tensor, *tensors: Tensor) -> Any:
        return getattr(target.having(tensors) if tensors else target, name)(t)

    graph = rows.trace(evaluate, [x, *given], "the target")
    check_dtypes(graph, x.dtype)
    inputs = [writer.stored(t.shape, "T", f"constants[{k}]") for k, t in enumerate(given)]
    results = lower(graph, [writer.stored(x.shape, "V", "x"), *inputs], writer)
    outputs = OUTPUTS[name]
    for output, value in zip(outputs, results, strict=True):
        writer.write(writer.stored((value.size,), "V", output), flat(value))
    arguments = ", ".join(f"V* {output}" for output in outputs)
    return "\n".join([f"static void {name}(const V* x, {arguments}) {{", *writer.code(), "}"])


def flat(value: Value) -> Value:
    """A tensor with no more than one dimension that is not 1, as a vector."""
    shape = value.shape
    long = [d for d, extent in enumerate(shape) if extent != 1]
    if len(long) > 1:
        raise CompileError(f"a result has shape {tuple(shape)}; rows are flat")

    def where(index: Index) -> Index:
        return tuple(index[0] if long and d == long[0] else 0 for d in range(len(shape)))

    def run(index: Index, dim: int) -> str | None:
        return value.run(where(index), long[0]) if long else None

    return Value((value.size,), value.kind, lambda index: value.at(where(index)), value.cost, run=run)


def check_dtypes(graph: fx.GraphModule, dtype: torch.dtype) -> None:
    """Refuse graphs that compute in another precision than that of the states.

    Constants may be of any: what depends on the state may not, but for tensors without dimensions, which do not decide
    the dtype of a result.
    """
    depends: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or depends.intersection(node.all_input_nodes):
            depends.add(node)
            found = node.meta.get("val")
            if isinstance(found, Tensor) and found.is_floating_point() and found.dtype != dtype and found.ndim:
                raise CompileError(f"the target computes in {found.dtype} for states of {dtype}")


class uncounted:
    """What runs within leaves a target's counter as it was."""

    def __init__(self, target: Target) -> None:
        """Remember."""
        self.counter = getattr(getattr(target, "view", None), "counter", None)

    def __enter__(self) -> None:
        """Note where it stands."""
        if self.counter is not None:
            self.before = dict(vars(self.counter))

    def __exit__(self, *error: object) -> None:
        """Put it back."""
        if self.counter is not None:
            vars(self.counter).update(self.before)


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    """An array of pointers to the numbers of tensors, 0 for None."""
    return (ctypes.c_void_p * max(len(tensors), 1))(*(0 if t is None else t.data_ptr() for t in tensors))


_EVALUATE_ALL = """
extern "C" void evaluate_all(long n, const T* const* given, const T* x, T* energy, T* score, T* parts) {
    constants = given;
    for (long g = 0; g < n; g += W) {
        V place[D], e[1] = {}, s[D], p[P > 0 ? P : 1];
        for (int l = 0; l < W; ++l)
            for (int d = 0; d < D; ++d) place[d][l] = x[(g + l < n ? g + l : n - 1) * D + d];
        EVALUATE
        for (int l = 0; l < W && g + l < n; ++l) {
            energy[g + l] = e[0][l];
            for (int d = 0; d < D; ++d) score[(g + l) * D + d] = s[d][l];
            for (int k = 0; k < P; ++k) parts[(g + l) * P + k] = p[k][l];
        }
    }
}
"""


def evaluate_rows(
    library: ctypes.CDLL, constants: Sequence[Tensor], target: Any, x: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compiled energies ``(N,)`` (0 without), scores ``(N, D)`` and parts ``(N, P)`` of rows; uncounted."""
    x, count = x.contiguous(), int(getattr(target, "parts", 0))
    energy, score = x.new_zeros(len(x)), torch.empty_like(x)
    parts = x.new_empty(len(x), count) if count else None
    library.evaluate_all(
        ctypes.c_long(len(x)), pointers(constants),
        *(ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in (x, energy, score, parts)),
    )  # fmt: skip
    return energy, score, parts


def check_source(library: ctypes.CDLL, made: Source, target: Target, x: Tensor) -> None:
    """Compare compiled evaluations with the target's own, at the chains' places and near them.

    A graph of one row is wrong where rows touch each other, as when a function standardises its batch.

    Raises:
        CompileError: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x[:64].shape, generator=generator, dtype=x.dtype)
    places = torch.cat([x[:64], x[:64] + 0.1 * noise]).contiguous()
    energy, score, _ = evaluate_rows(library, made.constants, target, places)
    with uncounted(target):
        if target.has_energy:
            wanted_energy, wanted = target.energy_and_score(places)
        else:
            wanted_energy, wanted = torch.zeros_like(energy), target.score(places)
    near = 1e-3 if x.dtype == torch.float32 else 1e-8
    for found, truth in ((energy[:, None], wanted_energy[:, None]), (score, wanted)):
        finite = torch.isfinite(truth)
        scale = 1.0 + torch.where(finite, truth.abs(), 0.0).amax(1, keepdim=True)
        close = torch.where(finite, (found - truth).abs() <= near * scale, (found == truth) | (found != found))
        if not bool(close.all()):
            row = int((~close).any(1).nonzero()[0])
            raise CompileError(
                f"compiled evaluations differ from the target's own, in {int((~close).any(1).sum())} of {len(places)} "
                f"rows: {found[row].tolist()[:4]} for {truth[row].tolist()[:4]}; do its rows touch each other?"
            )
