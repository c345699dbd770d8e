"""Noise for compiled transitions: the numbers that torch draws, several times as fast.

:func:`draw_noise` gives what :func:`boltzmix.compose.kernels.base.draw_noise` gives from the same generator, up to the
rounding of logarithms, sines and cosines, and leaves the generator in the same state. So runs begin, go on and are
resumed from seeds as eager ones. Drawing 10⁵ normals by ``torch.randn`` takes as long as a short trajectory with them;
most of that is the Mersenne twister, one number after another.

How torch draws is no promise of torch's: before its first use the library is compared with it, and where they differ
torch draws.
"""

import ctypes
import functools

import torch
from torch import Tensor

from boltzmix.compose.compiled.memory import empty
from boltzmix.compose.compiled.toolchain import HERE, load, vector_bytes
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Kernel, Noise, State
from boltzmix.compose.kernels.base import draw_noise as draw_by_torch

#: normals from which copying the generator's state to and fro pays
_FEWEST = 2**11
_TYPES = {torch.float32: "float", torch.float64: "double"}


def noise_of(kernel: Kernel, state: State, generator: torch.Generator | None, steps: int) -> Noise:
    """``kernel.noise(state, generator, steps)``, faster where that is possible."""
    if type(kernel).noise is not Kernel.noise:
        return kernel.noise(state, generator, steps)
    return draw_noise(state.x, generator, steps)


def draw_noise(like: Tensor, generator: torch.Generator | None, steps: int) -> Noise:
    """A block of noise for states like ``(N, D)``.

    Args:
        like: the states.
        generator: torch's, of the CPU; None is its default one.
        steps: transitions.
    """
    library = None
    if like.device.type == "cpu" and like.dtype in _TYPES and steps * like.numel() >= _FEWEST:
        library = checked_library(like.dtype)
    if library is None:
        return draw_by_torch(like, generator, steps)
    return _drawn(library, like, torch.default_generator if generator is None else generator, steps)


def _drawn(library: ctypes.CDLL, like: Tensor, generator: torch.Generator, steps: int) -> Noise:
    normal, uniform = empty((steps, *like.shape), like.dtype), empty((2, steps, len(like)), like.dtype)
    state = generator.get_state()
    library.draw(
        ctypes.c_void_p(state.data_ptr()),
        ctypes.c_void_p(normal.data_ptr()), ctypes.c_long(normal.numel()),
        ctypes.c_void_p(uniform.data_ptr()), ctypes.c_long(uniform.numel()),
    )  # fmt: skip
    generator.set_state(state)
    return Noise(normal, uniform[0], uniform[1], generator)


@functools.cache
def checked_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled code for a type, once it draws as torch does; None where it does not, or without a compiler."""
    try:
        library = load(source(dtype))
    except CompileError:
        return None
    return library if draws_as_torch_does(library, dtype) else None


def source(dtype: torch.dtype) -> str:
    """Its C++."""
    wide = vector_bytes() // dtype.itemsize
    head = [
        f"typedef {_TYPES[dtype]} T;", f"#define SINGLE {int(dtype == torch.float32)}",
        f"constexpr int W = {wide}, WIDE = {wide};",
    ]  # fmt: skip
    return "\n".join([*head, (HERE / "prelude.h").read_text(encoding="utf-8"), algorithm()])


def algorithm() -> str:
    """The part of it that draws."""
    return (HERE / "normals.h").read_text(encoding="utf-8")


def draws_as_torch_does(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    """Whether numbers agree up to rounding and the generators' states to the bit.

    Normals of 16 and more are compared, their number a multiple of 16 or not, from several places of the generator.
    """
    mine, torchs = (torch.Generator().manual_seed(20) for _ in range(2))
    if len(mine.get_state()) != _STATE:
        return False
    near = 1e-5 if dtype == torch.float32 else 1e-13
    for steps, n, d in ((1, 16, 1), (3, 7, 5), (2, 40, 8), (2, 311, 2), (5, 101, 3)):
        like = torch.empty(n, d, dtype=dtype)
        found, truth = _drawn(library, like, mine, steps), draw_by_torch(like, torchs, steps)
        if not torch.allclose(found.normal, truth.normal, rtol=0, atol=near):
            return False
        if not (torch.equal(found.uniform, truth.uniform) and torch.equal(found.jitter, truth.jitter)):
            return False
        if not torch.equal(mine.get_state(), torchs.get_state()):
            return False
    return True


_STATE = 5056  # bytes of a generator's
