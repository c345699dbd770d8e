"""Blocks of transitions by torch's compiler: whatever torch can trace, networks above all, on the CPU or a GPU.

``make_fx`` traces a kernel's step for all N rows with the target inside. Tensors that the target holds become inputs of
the graph, so that compiled code depends on what is computed and not on the numbers that it is computed with: another
run of a model with other data, or with parameters that have changed, takes the code that is there.

There are two tiers. A *compiled step* is called for every transition. A *scan* over transitions is one call for a
block of them, with noise drawn before; blocks have one length, and a transition too many leaves the state as it is.
Where the scan fails, which is a prototype of torch's, the compiled step goes on alone.

On a GPU the compiled step runs under CUDA graphs, which record the kernels of a step and launch them in one call.
CUDA graphs need static addresses, so results are copied out before the next step. There is no scan on a GPU.
"""

import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, fx

from boltzmix.compose.compiled import tuning
from boltzmix.compose.compiled.block import Block, Trace
from boltzmix.compose.compiled.native import uncounted
from boltzmix.compose.compiled.transitions import noise_tensors
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune
from boltzmix.compose.tracing import tracing

LENGTH = 64
#: the fewest transitions that a scan is begun for; fewer are as many compiled steps
_FEWEST = 16
_KEPT = ("x", "energy")


@dataclass(frozen=True)
class WholeStep:
    """A kernel's step on all rows, target included.

    Attributes:
        graph: from ``held``, what the target is given, the tuning, the state and the noise, in this order, to the next
            state and the info.
        held: tensors that the target, or the code, holds.
        info: the class of its info.
        reported: the fields of the info that are tensors.
        rows: evaluations of all chains together, ``(rows, network rows)`` of a counter.
    """

    graph: fx.GraphModule
    held: list[Tensor]
    info: type[Info]
    reported: list[str]
    rows: dict[str, int]


def whole_step(kernel: Kernel, target: Any, state: State, tune: Tune) -> WholeStep:
    """Trace one step of all chains.

    Raises:
        CompileError: the step looks at numbers, draws random ones, or changes tensors that it was given.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    names, given = list(state.tensors()), tuning.tensors_of(tune)
    drawn = kernel.noise(state, torch.Generator(state.x.device).manual_seed(0))
    noise = noise_tensors(drawn)
    levels = list(getattr(target, "inputs", ()))
    found: dict[str, Any] = {}
    counter = getattr(getattr(target, "view", None), "counter", None)

    def step(*tensors: Tensor) -> list[Tensor]:
        part = iter(tensors)
        there = target.having([next(part) for _ in levels]) if levels else target
        tuned = tuning.rebuilt(tune, {name: next(part) for name in given})
        here = state.having({name: next(part) for name in names})
        fresh = replace(drawn, generator=None, **{name: next(part) for name in noise})
        before = {} if counter is None else dict(vars(counter))
        after, info = kernel.step(there, here, tuned, fresh)
        found["rows"] = {} if counter is None else {k: v - before[k] for k, v in vars(counter).items()}
        found["state"], found["info"] = after, type(info)
        found["names"] = [f.name for f in fields(info) if isinstance(getattr(info, f.name), Tensor)]
        return [*after.tensors().values(), *(getattr(info, name) for name in found["names"])]

    inputs = [*levels, *given.values(), *state.tensors().values(), *noise.values()]
    what = f"{type(kernel).__name__}'s step"
    try:
        with uncounted(target), tracing(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(step, tracing_mode="real")(*inputs)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CompileError(f"{what} cannot be traced: {type(error).__name__}: {said}") from error
    if list(found["state"].tensors()) != names:
        raise CompileError(f"{what} changes what its state holds")
    graph.graph.eliminate_dead_code()
    check_pure(graph, what)
    held = _lift(graph)
    return WholeStep(graph, held, found["info"], found["names"], found["rows"])


def check_pure(graph: fx.GraphModule, what: str) -> None:
    """Refuse graphs whose calls would not be repeatable.

    Raises:
        CompileError: an operation draws random numbers, or writes to a tensor that the graph is given.
    """
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CompileError(f"{what} draws random numbers with {node.target}")
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(written, fx.Node) and _base(written).op in ("placeholder", "get_attr"):
                raise CompileError(f"{what} changes a tensor that it was given, with {node.target}")


def _base(node: fx.Node) -> fx.Node:
    """The node whose memory a view shows."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        aliases = schema is not None and any(r.alias_info is not None for r in schema.returns)
        source = next((a for a in node.args if isinstance(a, fx.Node)), None)
        if not aliases or source is None:
            break
        node = source
    return node


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds; what they are now, in the order of the new inputs."""
    held: dict[str, tuple[fx.Node, Tensor]] = {}
    first = next(iter(graph.graph.nodes))
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in held:
            with graph.graph.inserting_before(first):
                held[name] = graph.graph.placeholder(f"held_{len(held)}"), getattr(graph, name).detach()
        node.replace_all_uses_with(held[name][0])
        graph.graph.erase_node(node)
    for name in held:
        delattr(graph, name)
    graph.recompile()
    return [tensor for _, tensor in held.values()]


def options(device: torch.device) -> dict[str, Any]:
    """Settings of torch's compiler for a device.

    On the CPU, a chain of leapfrogs that is inlined without limit takes minutes to compile: every intermediate that is
    read is stored instead.
    """
    if device.type == "cuda":
        return {"triton.cudagraphs": True}
    return {"cpp_wrapper": True, "realize_reads_threshold": 1, "realize_opcount_threshold": 1,
            "realize_acc_reads_threshold": 1}  # fmt: skip


_CODE: dict[tuple[Any, ...], Callable[..., Any]] = {}


def code(
    graph: fx.GraphModule, inputs: Sequence[Tensor], tier: tuple[Any, ...], make: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    """The compiled function of a graph; made once for a text and the shapes of its inputs."""
    shapes = tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in inputs)
    key = (graph.code, shapes, *tier)
    if key not in _CODE:
        function, device = make(), inputs[-1].device
        _CODE[key] = torch.compile(function, fullgraph=True, dynamic=False, options=options(device))
    return _CODE[key]


def scan_over(graph: fx.GraphModule, states: int, wanted: Sequence[int]) -> Callable[..., Any]:
    """Transitions in a loop of torch's own; of those that are not active the state stays what it was.

    Args:
        graph: of one step.
        states: how many of its outputs are the state.
        wanted: which outputs are kept of every transition.
    """
    from torch._higher_order_ops import scan

    def run(shared: list[Tensor], carry: list[Tensor], noise: list[Tensor], active: Tensor) -> Any:
        def body(state: list[Tensor], given: list[Tensor]) -> Any:
            out = graph(*shared, *state, *given[:-1])
            chosen = [torch.where(given[-1], new, old) for new, old in zip(out[:states], state, strict=True)]
            return chosen, [out[k].clone() for k in wanted]

        return scan(body, [t.clone() for t in carry], [*noise, active])

    # torch keeps what it compiled by code object, and a limited number for each
    renamed = run.__code__.replace(co_name=f"scan_{len(_CODE)}")
    return types.FunctionType(renamed, run.__globals__, renamed.co_name, None, run.__closure__)


class ScanBlock(Block):
    """Transitions of a kernel whose step is a fixed sequence of operations, compiled by torch.

    Args:
        kernel: any that torch can trace.
        target: likewise.
        state: where chains stand; blocks are for these shapes.
        tune: the tuning, whose structure matters.
        length: of the blocks that are scanned; 1 for compiled steps only.

    Attributes:
        tier: ``"scan"``, or ``"step"`` where steps are called one by one.
        reason: why it is not a scan.

    Raises:
        CompileError: what stands in the way.
    """

    backend = "inductor"

    def __init__(self, kernel: Kernel, target: Target, state: State, tune: Tune, length: int = LENGTH) -> None:
        """Trace, compile the step, and compare it with the kernel's own."""
        clock = time.perf_counter()
        self.kernel, self.target, self.like, self.structure = kernel, target, state, tuning.structure(tune)
        self.length = length
        self.step = whole_step(kernel, target, state, tune)
        on_cpu = state.x.device.type == "cpu"
        self.tier, self.reason = "scan", ""
        if length < 2 or not on_cpu:
            self.tier, self.reason = "step", "blocks of one step" if on_cpu else "a GPU runs steps under CUDA graphs"
        noise = kernel.noise(state, torch.Generator(state.x.device).manual_seed(1), 1)
        try:
            out = self._one(state.tensors(), tune, noise, 0)
        except CompileError:
            raise
        except Exception as error:
            raise CompileError(f"torch's compiler fails on the step: {_said(error)}") from error
        self._check(kernel, state, tune, noise, out)
        self.seconds = time.perf_counter() - clock

    def __call__(
        self, state: State, tune: Tune, noise: Noise, reported: Sequence[str] | None = None
    ) -> tuple[State, Trace]:
        """Transitions of every chain, one for each of the noise's."""
        self.check(state, tune)
        if len(state.x) != len(self.like.x):
            raise ValueError(f"the block was compiled for {len(self.like.x)} chains, got {len(state.x)}")
        steps, names = len(noise.uniform), list(state.tensors())
        columns = [*names, *(f"info.{name}" for name in self.step.reported)]
        asked = self.step.reported if reported is None else [n for n in self.step.reported if n in reported]
        wanted = [columns.index(name) for name in [*_KEPT, *(f"info.{name}" for name in asked)]]
        kept: list[list[Tensor]] = [[] for _ in wanted]
        now, done = state.tensors(), 0
        while done < steps and self.tier == "scan" and steps - done >= _FEWEST:
            try:
                last, block = self._block(now, tune, noise, done, wanted)
            except Exception as error:
                self.tier, self.reason = "step", f"the scan fails: {_said(error)}"
                break
            for column, values in zip(kept, block, strict=True):
                column.append(values)
            now, done = dict(zip(names, last, strict=True)), done + len(block[0])
        for k in range(done, steps):
            out = self._one(now, tune, noise, k)
            for column, index in zip(kept, wanted, strict=True):
                column.append(out[index][None])
            now = dict(zip(names, out[: len(names)], strict=True))
        states, infos = kept[: len(_KEPT)], kept[len(_KEPT) :]
        self._note(steps)
        trace = Trace(
            {name: torch.cat(column) for name, column in zip(_KEPT, states, strict=True)},
            self.step.info,
            {name: torch.cat(column) for name, column in zip(asked, infos, strict=True)},
        )
        return state.having(now), trace

    def _shared(self, tune: Tune) -> list[Tensor]:
        """What every transition of a call is given."""
        like = self.like.x
        return [*self.step.held, *getattr(self.target, "inputs", ()), *tuning.contiguous(tune, like.dtype)]

    def _one(self, now: dict[str, Tensor], tune: Tune, noise: Noise, k: int) -> list[Tensor]:
        """One compiled step; everything that it gives."""
        drawn = [t[k].contiguous() for t in noise_tensors(noise).values()]
        inputs = [*self._shared(tune), *(t.contiguous() for t in now.values()), *drawn]
        function = code(self.step.graph, inputs, ("step",), lambda: self.step.graph)
        with torch.no_grad():
            out = function(*inputs)
        return [t.clone() for t in out] if inputs[-1].is_cuda else list(out)

    def _block(
        self, now: dict[str, Tensor], tune: Tune, noise: Noise, done: int, wanted: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A block that is scanned, from noise ``done`` on: the last state, and what is kept of each transition."""
        clock = time.perf_counter()
        drawn = [padded(t[done : done + self.length], self.length) for t in noise_tensors(noise).values()]
        true = min(self.length, len(noise.uniform) - done)
        active = torch.arange(self.length, device=self.like.x.device) < true
        carry, shared = [t.contiguous() for t in now.values()], self._shared(tune)
        before = len(_CODE)
        function = code(
            self.step.graph, [*shared, *carry, *drawn], ("scan", self.length, *wanted),
            lambda: scan_over(self.step.graph, len(carry), wanted),
        )  # fmt: skip
        with torch.no_grad():
            last, kept = function(shared, carry, drawn, active)
        if len(_CODE) > before:
            self.seconds += time.perf_counter() - clock
        return list(last), [column[:true] for column in kept]

    def _note(self, steps: int) -> None:
        """Counters count what the kernel's own steps would."""
        counter = getattr(getattr(self.target, "view", None), "counter", None)
        for name, rows in self.step.rows.items():
            setattr(counter, name, getattr(counter, name) + steps * rows)

    def _check(self, kernel: Kernel, state: State, tune: Tune, noise: Noise, out: list[Tensor]) -> None:
        """Compare with the kernel's own step; rows may differ whose test was close, or whose trajectory is chaotic."""
        with uncounted(self.target), torch.no_grad():
            truth = kernel.step(self.target, state, tune, noise[0])[0].x
        near = 1e-3 if truth.dtype == torch.float32 else 1e-8
        good = ((out[0] - truth).abs() <= near * (1 + truth.abs())).all(1)
        if float(good.double().mean()) < 0.9:
            raise CompileError(
                f"{int((~good).sum())} of {len(good)} rows of the compiled step differ from the kernel's"
            )


def padded(block: Tensor, length: int) -> Tensor:
    """Noise of ``length`` transitions: the last one is repeated where there are fewer."""
    missing = length - len(block)
    return block.contiguous() if not missing else torch.cat([block, block[-1:].expand(missing, *block.shape[1:])])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
