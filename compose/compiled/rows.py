"""Graphs of one row: what a target and a kernel do to a single chain, as tensor operations without Python.

Targets and kernels are written for batches whose rows do not touch each other, so the graph of a batch of one says
everything, with static shapes. Tracing runs the code once; branches on the numbers in a tensor cannot be traced.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from boltzmix.compose.compiled import tuning
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Tune
from boltzmix.compose.tracing import Loops, Repetitions, tracing

#: operations that the decompositions of torch leave whole, and that are written out here
_KEPT = ("aten::sigmoid", "aten::tanh", "aten::mean", "aten::mean.dim", "aten::addmm", "aten::baddbmm", "aten::mv")


def trace(
    function: Callable[..., Any], arguments: Sequence[Tensor], what: str, loops: Loops | None = None
) -> fx.GraphModule:
    """The graph of a function of tensors, decomposed into few operations.

    Raises:
        CompileError: the function looks at numbers, or does something that has no graph.
    """
    from torch._decomp import core_aten_decompositions, get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    table: Any = {k: v for k, v in core_aten_decompositions().items() if k.name() not in _KEPT}
    aten = torch.ops.aten
    table |= get_decompositions([
        aten._softmax, aten._log_softmax, aten.native_layer_norm, aten.leaky_relu, aten.elu,
        aten.gelu, aten.hardtanh, aten.mish,
    ])  # fmt: skip
    try:
        with tracing(loops), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(function, decomposition_table=table, tracing_mode="real")(*arguments)
            if any(_writes(node) for node in graph.graph.nodes):
                pure = torch.func.functionalize(graph, remove="mutations")
                graph = make_fx(pure, decomposition_table=table, tracing_mode="real")(*arguments)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CompileError(f"{what} cannot be traced: {type(error).__name__}: {said}") from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes a tensor in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


class Evaluations:
    """A target that stands for another while a kernel is traced: each evaluation is one call in the graph.

    ``last`` is what a target with ``parts`` gives beside energies and scores, of the last evaluation.
    """

    def __init__(self, target: Any) -> None:
        """Count from zero."""
        self.target = target
        self.has_energy, self.dim = target.has_energy, target.dim
        self.count = 0
        self.last: Tensor | None = None

    def score(self, x: Tensor) -> Tensor:
        """One evaluation."""
        self.count += 1
        return _operations().score(x)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation."""
        self.count += 1
        if not getattr(self.target, "parts", 0):
            return _operations().energy_and_score(x)
        energy, score, self.last = _operations().energy_score_parts(x)
        return energy, score

    def energy(self, x: Tensor) -> Tensor:
        """One evaluation."""
        if getattr(self.target, "parts", 0):
            return self.energy_and_score(x)[0]
        self.count += 1
        return _operations().energy(x)

    @contextlib.contextmanager
    def standing_in(self) -> Iterator["Evaluations"]:
        """The calls give the values of the target."""
        _CURRENT.append(self.target)
        try:
            yield self
        finally:
            _CURRENT.pop()
            _LOOPS.clear()  # graphs of one trace, which nothing calls after it


@dataclass(frozen=True)
class Loop:
    """A loop of a traced step.

    Attributes:
        graph: of its body, from what is carried and what is fixed to what is carried.
        count: of repetitions.
        evaluations: of the target in one of them.
    """

    graph: fx.GraphModule
    count: int | Repetitions
    evaluations: int


class LoopTracer(Loops):
    """Traces the body of each loop into a graph of its own; the loop is one call in the graph around it."""

    def __init__(self, stand_in: Evaluations) -> None:
        """Start without loops."""
        self.stand_in = stand_in
        self.found: list[Loop] = []

    def repeat(
        self, count: int | Repetitions, body: Callable[..., tuple[Tensor, ...]], carry: tuple[Tensor, ...],
        fixed: Sequence[Any],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Trace the body, and run it once."""
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

        parts = [tuning.tensors_of(f) if isinstance(f, Tune) else {"": f} for f in fixed]

        def flat(*tensors: Tensor) -> list[Tensor]:
            rest, values = list(tensors[len(carry) :]), []
            for part, given in zip(parts, fixed, strict=True):
                mine = {name: rest.pop(0) for name in part}
                values.append(tuning.rebuilt(given, mine) if isinstance(given, Tune) else mine[""])
            return list(body(*tensors[: len(carry)], *values))

        reads = [tensor for part in parts for tensor in part.values()]
        before = self.stand_in.count
        with disable_proxy_modes_tracing():
            graph = trace(flat, [t.detach().clone() for t in (*carry, *reads)], "a loop", self)
        self.found.append(Loop(graph, count, self.stand_in.count - before))
        self.stand_in.count = before
        _LOOPS.append(graph)
        return tuple(_operations().repeat(list(carry), reads, len(self.found) - 1))


_LOOPS: list[fx.GraphModule] = []
_CURRENT: list[Any] = []
_OPERATIONS: list[Any] = []


def _operations() -> Any:
    """``torch.ops.boltzmix``, whose operations are defined at the first call."""
    if not _OPERATIONS:

        @torch.library.custom_op("boltzmix::energy_and_score", mutates_args=())
        def energy_and_score(x: Tensor) -> tuple[Tensor, Tensor]:
            energy, score = _CURRENT[-1].energy_and_score(x)
            return energy.clone(), score.clone()

        @torch.library.custom_op("boltzmix::energy_score_parts", mutates_args=())
        def energy_score_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            energy, score, parts = _CURRENT[-1].energy_score_parts(x)
            return energy.clone(), score.clone(), parts.clone()

        @torch.library.custom_op("boltzmix::score", mutates_args=())
        def score(x: Tensor) -> Tensor:
            return _CURRENT[-1].score(x).clone()

        @torch.library.custom_op("boltzmix::energy", mutates_args=())
        def energy(x: Tensor) -> Tensor:
            return _CURRENT[-1].energy(x).clone()

        @torch.library.custom_op("boltzmix::repeat", mutates_args=())
        def repeat(carry: list[Tensor], fixed: list[Tensor], which: int) -> list[Tensor]:
            return [t.clone() for t in _LOOPS[which](*carry, *fixed)]

        _OPERATIONS.append(torch.ops.boltzmix)
    return _OPERATIONS[0]
