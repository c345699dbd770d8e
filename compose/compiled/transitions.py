"""Whole transitions in C++: a kernel's step, traced around a target's evaluations, in a loop over chains and steps."""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, fx

from boltzmix.compose.compiled import rows, tuning
from boltzmix.compose.compiled.block import Block, Trace
from boltzmix.compose.compiled.lower import Value, Writer, lower
from boltzmix.compose.compiled.memory import empty
from boltzmix.compose.compiled.native import (
    OUTPUTS,
    Source,
    check_dtypes,
    check_source,
    flat,
    lanes_for,
    pointers,
    source,
    uncounted,
)
from boltzmix.compose.compiled.normals import noise_of
from boltzmix.compose.compiled.toolchain import load
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune


@dataclass(frozen=True)
class StepGraph:
    """A kernel's step on one row.

    Attributes:
        graph: from the tensors of state, tuning and noise to those of the next state and of the info.
        info: the class of its info.
        reported: the fields of the info that are tensors.
        noise: how many numbers of each kind a chain needs.
        loops: those that the graph calls.
        evaluations: of one step, outside of loops.
    """

    graph: fx.GraphModule
    info: type[Info]
    reported: list[str]
    noise: dict[str, int]
    loops: list[rows.Loop]
    evaluations: int

    @property
    def counted(self) -> bool:
        """Whether a run says how often a loop is gone through."""
        return any(not isinstance(loop.count, int) for loop in self.loops)

    def evaluations_of(self, repetitions: int) -> int:
        """Evaluations of one transition."""
        return self.evaluations + sum(
            loop.evaluations * (loop.count if isinstance(loop.count, int) else repetitions + loop.count.offset)
            for loop in self.loops
        )


def step_graph(kernel: Kernel, target: Target, state: State, tune: Tune) -> StepGraph:
    """Trace one step of the first chain.

    Raises:
        CompileError: the step looks at numbers, as trajectories of random length do, or draws random numbers itself.
    """
    row = state.select(torch.zeros(1, dtype=torch.long))
    names, given = list(row.tensors()), tuning.first_row(tune)
    stand_in = rows.Evaluations(target)
    found: dict[str, Any] = {}

    def step(*tensors: Tensor) -> list[Tensor]:
        here = row.having(dict(zip(names, tensors, strict=False)))
        tuned = tuning.rebuilt(tune, dict(zip(given, tensors[len(names) :], strict=False)))
        stand_in.count = 0
        fresh = replace(noise, generator=None, **dict(zip(drawn, tensors[-len(drawn) :], strict=True)))
        after, info = kernel.step(stand_in, here, tuned, fresh)
        found["state"], found["info"] = after, type(info)
        found["names"] = [f.name for f in fields(info) if isinstance(getattr(info, f.name), Tensor)]
        return [*after.tensors().values(), *(getattr(info, name) for name in found["names"])]

    noise = kernel.noise(row, torch.Generator().manual_seed(0))
    drawn = noise_tensors(noise)
    inputs = [*row.tensors().values(), *given.values(), *drawn.values()]
    loops = rows.LoopTracer(stand_in)
    with uncounted(target), stand_in.standing_in():
        graph = rows.trace(step, inputs, f"{type(kernel).__name__}'s step", loops)
    check_dtypes(graph, state.x.dtype)
    if list(found["state"].tensors()) != names:
        raise CompileError(f"{type(kernel).__name__}'s step changes what its state holds")
    return StepGraph(
        graph, found["info"], found["names"], {k: t.numel() for k, t in drawn.items()}, loops.found,
        stand_in.count,
    )  # fmt: skip


def noise_tensors(noise: Noise) -> dict[str, Tensor]:
    """The tensors of a noise by name."""
    return {f.name: t for f in fields(noise) if isinstance(t := getattr(noise, f.name), Tensor)}


class NativeBlock(Block):
    """Transitions of a kernel whose step is a fixed sequence of operations."""

    backend = "native"

    def __init__(self, kernel: Kernel, target: Target, state: State, tune: Tune) -> None:
        """Trace, write, build and check.

        Raises:
            CompileError: with what stands in the way.
        """
        clock = time.perf_counter()
        self.kernel, self.target, self.like, self.structure = kernel, target, state, tuning.structure(tune)
        self.step = step_graph(kernel, target, state, tune)
        graphs = [self.step.graph, *(loop.graph for loop in self.step.loops)]
        calls = {name for graph in graphs for node in graph.graph.nodes if (name := _called(node))}
        lanes = lanes_for(len(state.x), state.x.dtype)
        made = source(target, state.x, lanes, sorted(calls - {"repeat"}))
        text = _write(self.step, made, state, tune)
        self.library = load(text)
        self.constants = made.constants
        check_source(self.library, made, target, state.x)
        self.seconds = time.perf_counter() - clock

    def noise(self, state: State, generator: torch.Generator | None, steps: int) -> Noise:
        """That of the kernel, drawn by compiled code."""
        return noise_of(self.kernel, state, generator, steps)

    def __call__(
        self, state: State, tune: Tune, noise: Noise, reported: Sequence[str] | None = None
    ) -> tuple[State, Trace]:
        """Transitions of every chain, one for each of the noise's."""
        self.check(state, tune)
        x, (steps, n) = state.x, noise.uniform.shape
        after = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.tensors().items()}
        states = {name: empty((steps, *tensor.shape), x.dtype) for name, tensor in after.items() if name in _KEPT}
        kept: list[Tensor | None] = [states.get(name) for name in after]
        found: dict[str, Tensor] = {}
        for name in self.step.reported:
            shape = (steps, n, x.shape[1]) if name in _WIDE else (steps, n)
            dtype = torch.bool if name in _TRUTH else torch.long if name == "num_leapfrog" else x.dtype
            wanted = reported is None or name in reported
            tensor = empty(shape, dtype) if wanted else None
            kept.append(tensor)
            if tensor is not None:
                found[name] = tensor
        drawn = [tensor.to(x.dtype).contiguous() for tensor in noise_tensors(noise).values()]
        shared = tuning.contiguous(tune, x.dtype)
        counts = torch.zeros(steps, dtype=torch.long)
        if self.step.counted:
            counts = torch.tensor([self.kernel.repetitions(tune, noise[k]) for k in range(steps)])  # pyright: ignore[reportAttributeAccessIssue]
            if reported is None or "num_leapfrog" in reported:
                each = torch.tensor([self.step.evaluations_of(k) for k in counts.tolist()])
                found["num_leapfrog"] = each[:, None].expand(steps, n).contiguous()
        self.library.block(
            ctypes.c_long(n), ctypes.c_long(steps), ctypes.c_void_p(counts.data_ptr()),
            pointers(self.constants), pointers(list(after.values())),
            pointers(shared), pointers(drawn), pointers(kept),
        )  # fmt: skip
        self.count(n * sum(self.step.evaluations_of(k) for k in counts.tolist()))
        return state.having(after), Trace(states, self.step.info, found)


#: fields of states that are kept of every transition, and fields of infos that are not one number of each chain
_KEPT = ("x", "energy")
_WIDE = ("end", "velocity")
_TRUTH = ("accepted", "divergent")


def _called(node: fx.Node) -> str | None:
    """Which of our own operations a node calls."""
    if node.op == "call_function" and getattr(node.target, "namespace", "") == "boltzmix":
        return node.target.name().split("::")[1]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return None


class _Calls:
    """Writes evaluations as calls of the target's functions, and loops as loops."""

    def __init__(self, loops: list[rows.Loop]) -> None:
        """Hold the loops that nodes refer to."""
        self.loops = loops

    def __call__(self, writer: Writer, node: fx.Node, arguments: Any) -> Any:
        """The value of a node that calls one of our operations; None for others."""
        name = _called(node)
        if name is None:
            return None
        if name == "repeat":
            return self._loop(writer, *arguments[:3])
        x = writer.keep(arguments[0])
        values = node.meta["val"] if len(OUTPUTS[name]) > 1 else [node.meta["val"]]
        results = [writer.stored(t.shape, "V", writer.array("V", t.numel())) for t in values]
        writer.lines.append(f"{name}({', '.join([str(x.buffer), *(str(r.buffer) for r in results)])});")
        return results if len(results) > 1 else results[0]

    def _loop(self, writer: Writer, carry: list[Value], fixed: list[Value], which: int) -> list[Value]:
        loop = self.loops[which]
        held = [self._movable(writer, value.size) for value in carry]
        for name, value in zip(held, carry, strict=True):
            _assign(writer, name, value)
        here = [writer.stored(value.shape, "V", name) for name, value in zip(held, carry, strict=True)]
        fixed = [writer.keep(value) if value.cost else value for value in fixed]
        count = loop.count if isinstance(loop.count, int) else f"repetitions + {loop.count.offset}"
        start, turn, products = len(writer.lines), writer.fresh("n"), writer.products
        writer.products = []  # of what changes from turn to turn
        after: list[str] = []
        for value in lower(loop.graph, [*here, *fixed], writer, self):
            name, declared = value.buffer, f"alignas(64) V {value.buffer}[{value.size}];"
            if declared not in writer.lines[start:]:  # not the loop's own, or spoken for
                name = writer.array("V", value.size)
                declared = writer.lines[-1]
                _assign(writer, name, value)
            writer.lines.remove(declared)  # it is to be there before the loop, and after it
            writer.held -= value.size * writer.width
            after.append(str(name))
        body, writer.products = writer.lines[start:], products
        del writer.lines[start:]
        for name, value in zip(after, carry, strict=True):
            self._movable(writer, value.size, name)
        writer.lines += [f"for (long {turn} = 0; {turn} < {count}; ++{turn}) {{", *body]
        writer.lines += [f"std::swap({old}, {new});" for old, new in zip(held, after, strict=True)]
        writer.lines.append("}")
        return here

    @staticmethod
    def _movable(writer: Writer, size: int, name: str | None = None) -> str:
        """A buffer whose name can come to mean another one; its name, a new one or that given."""
        buffer, name = writer.array("V", size), name or writer.fresh("b")
        writer.lines.append(f"V* {name} = {buffer};")
        return name


def _assign(writer: Writer, buffer: str, value: Value) -> None:
    """Write the entries of a value, of which one dimension at most is not 1, to a buffer."""
    writer.write(writer.stored((value.size,), "M" if value.kind == "M" else "V", buffer), flat(value))


def _write(step: StepGraph, made: Source, state: State, tune: Tune) -> str:
    """The target's source, with the step and the loops around it."""
    writer = Writer(made.lanes * made.dtype.itemsize, made.constants, made.dtype, made.given)
    fields_ = {name: tensor[:1] for name, tensor in state.tensors().items()}
    tuned, own = tuning.first_row(tune), tuning.per_chain(tune)
    noise = {name: (1,) if size == 1 else (1, size) for name, size in step.noise.items()}
    placeholders = [node for node in step.graph.graph.nodes if node.op == "placeholder"]
    read = {name for name, node in zip([*fields_, *tuned, *noise], placeholders, strict=True) if node.users}
    inputs = [writer.stored(tensor.shape, "V", f"s{k}") for k, tensor in enumerate(fields_.values())]
    for k, (name, tensor) in enumerate(tuned.items()):
        inputs.append(writer.stored(tensor.shape, "V" if own[name] else "T", f"t{k}"))
    inputs += [writer.stored(shape, "V", f"z{k}") for k, shape in enumerate(noise.values())]
    results = lower(step.graph, inputs, writer, _Calls(step.loops))
    names = [f"o{k}" for k in range(len(results))]
    for name, value in zip(names, results, strict=True):
        _assign(writer, name, value)

    load_rows, store_rows, declare, arguments, loads, fetches, keeps, moves = [], [], [], [], [], [], [], []
    for k, tensor in enumerate(fields_.values()):
        size = tensor.numel()
        declare.append(f"V s{k}[{size}];")
        arguments.append(f"V* s{k}")
        load_rows.append(f"gather<{size}>(s{k}, state[{k}], g, n);")
        store_rows.append(f"scatter<{size}>(s{k}, state[{k}], g, n);")
        moves.append(f"std::memcpy(s{k}, o{k}, sizeof s{k});")
    for k, (name, tensor) in enumerate(tuned.items()):
        if own[name]:
            declare.append(f"V t{k}[{tensor.numel()}];")
            load_rows.append(f"gather<{tensor.numel()}>(t{k}, tuning[{k}], g, n);")
            arguments.append(f"const V* t{k}")
        else:
            declare.append(f"const T* t{k} = tuning[{k}];")
            arguments.append(f"const T* t{k}")
    for k, (name, shape) in enumerate(noise.items()):
        size = shape[-1]
        declare.append(f"V z{k}[{size}];")
        arguments.append(f"const V* z{k}")
        if name in read:
            loads.append(f"gather<{size}>(z{k}, noise[{k}] + step * n * {size}, g, n);")
            if size > 1:
                fetches.append(f"if (step + 1 < steps) fetch<{size}, 0>(noise[{k}] + (step + 1) * n * {size}, g, n);")
    for k, value in enumerate(results):
        kind = value.kind if value.kind == "M" else "V"
        declare.append(f"{kind} o{k}[{value.size}];")
        arguments.append(f"{kind}* o{k}")
        element = "T" if k < len(fields_) else _element(step.reported[k - len(fields_)])
        if value.size > 1:
            fetches.append(
                f"if (kept[{k}]) fetch<{value.size}, 1>(({element}*)kept[{k}] + step * n * {value.size}, g, n);"
            )
        keeps.append(
            f"if (kept[{k}]) scatter<{value.size}>(o{k}, ({element}*)kept[{k}] + step * n * {value.size}, g, n);"
        )
    called = ", ".join(a.split()[-1].lstrip("*") for a in arguments)
    return "\n".join([
        made.text,
        f"static void transition(long repetitions, {', '.join(arguments)}) {{", *writer.code(), "}",
        'extern "C" void block(long n, long steps, const long* counts, const T* const* given, T* const* state,',
        "                      const T* const* tuning,",
        "                      const T* const* noise, void* const* kept) {",
        "constants = given;",
        "for (long g = 0; g < n; g += W) {",
        *declare, *load_rows,
        "for (long step = 0; step < steps; ++step) {",
        *loads, *fetches, f"transition(counts[step], {called});", *keeps, *moves,
        "}",
        *store_rows,
        "} }",
    ])  # fmt: skip


def _element(name: str) -> str:
    return "bool" if name in _TRUTH else "long" if name == "num_leapfrog" else "T"
