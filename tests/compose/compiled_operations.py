"""Many functions of one row in one generated source, for comparisons of C++ with torch."""

import ctypes
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from boltzmix.compose.compiled import rows
from boltzmix.compose.compiled.lower import Writer, lower
from boltzmix.compose.compiled.native import flat, pointers
from boltzmix.compose.compiled.toolchain import HERE, load, vector_bytes

Row = Callable[[Tensor], Tensor]


def compiled(functions: Mapping[str, Row], x: Tensor, lanes: int) -> dict[str, Tensor]:
    """What each function gives for each row of ``x`` ``(N, D)``, in C++ for vectors of ``lanes`` rows: ``(N, M)``."""
    constants: list[Tensor] = []
    texts, sizes = [], []
    for number, function in enumerate(functions.values()):
        writer = Writer(lanes * x.dtype.itemsize, constants, x.dtype)
        graph = rows.trace(_flattened(function), [x[:1]], "a function")
        (value,) = lower(graph, [writer.stored(x[:1].shape, "V", "x")], writer)
        if value.kind == "M":
            lowered = writer.keep(value)
            sizes.append(value.size)
            writer.loop((value.size,), lambda i, v=lowered: f"out[{i[0]}] = number<V>({v.at(i)});")
        else:
            sizes.append(value.size)
            writer.write(writer.stored((value.size,), "V", "out"), flat(value))
        texts.append("\n".join([f"static void f{number}(const V* x, V* out) {{", *writer.code(), "}"]))
    most = max(vector_bytes() // x.dtype.itemsize, lanes)
    head = [
        f"typedef {'float' if x.dtype == torch.float32 else 'double'} T;",
        f"#define SINGLE {int(x.dtype == torch.float32)}",
        f"constexpr int W = {lanes}, WIDE = {most}, D = {x.shape[1]};",
        (HERE / "prelude.h").read_text(),
        "static thread_local const T* const* constants;",
    ]
    calls = "\n".join(f"case {k}: f{k}(place, out); break;" for k in range(len(texts)))
    tail = f"""
    extern "C" void apply(int which, long n, long size, const T* const* given, const T* x, T* results) {{
        constants = given;
        static V place[D], out[4096];
        for (long g = 0; g < n; g += W) {{
            gather<D>(place, x, g, n);
            switch (which) {{ {calls} }}
            for (int l = 0; l < W && g + l < n; ++l)
                for (long i = 0; i < size; ++i) results[(g + l) * size + i] = out[i][l];
        }}
    }}"""
    library = load("\n".join([*head, *texts, tail]))
    found = {}
    for number, (name, size) in enumerate(zip(functions, sizes, strict=True)):
        result = torch.empty(len(x), size, dtype=x.dtype)
        library.apply(
            ctypes.c_int(number), ctypes.c_long(len(x)), ctypes.c_long(size), pointers(constants),
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(result.data_ptr()),
        )  # fmt: skip
        found[name] = result
    return found


def _flattened(function: Row) -> Row:
    return lambda x: function(x).reshape(-1)


def eager(function: Row, x: Tensor) -> Tensor:
    """The same by torch."""
    return torch.stack([function(row[None]).reshape(-1).to(x.dtype) for row in x])


def differing(found: Tensor, wanted: Tensor, near: float) -> Tensor:
    """Where two results differ by more than rounding, as relative and absolute error, or in what is not finite."""
    special = ~torch.isfinite(wanted)
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    close = (found - wanted).abs() <= near * (1.0 + wanted.abs())
    return torch.where(special, ~same, ~close)


def awkward(count: int, size: int, dtype: torch.dtype) -> Tensor:
    """Rows of random numbers, among them zeros of both signs, infinities, NaN, subnormal and large ones."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, size, generator=generator, dtype=dtype) * 3
    limits = torch.finfo(dtype)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, limits.tiny / 8, 1e15, -1e15, 1.0, -1.0, 0.5, 2.0]
    )
    flat = x.flatten()
    places = torch.randperm(flat.numel(), generator=generator)[: 2 * len(special)]
    flat[places] = special.to(dtype).repeat(2)
    return flat.reshape(count, size)
