"""Memory that blocks of transitions write to: large tensors in large pages, which are used again.

The first write to a page of fresh memory interrupts the program. With pages of 4 KiB that takes as long as a cheap
transition, and on a virtual machine several times as long where the host has to find the memory. Linux gives pages of
2 MiB to those who ask; and the memory of a tensor that is gone is kept for the next one of its size, up to a limit.
"""

import ctypes
import functools
import math
import mmap
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_PAGE = 1 << 21
_LEAST = 1 << 20  # bytes: half a page at most is left empty
#: bytes that may wait for the next tensor
_WAITING = 1 << 28

_waiting: dict[int, list[mmap.mmap]] = {}  # by size


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As :func:`torch.empty` on the CPU; in large pages where it is large and the system has them.

    Args:
        shape: of the tensor.
        dtype: its type.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _LEAST or not large_pages():
        return torch.empty(tuple(shape), dtype=dtype)
    size = (size + _PAGE - 1) // _PAGE * _PAGE
    try:
        memory = _waiting[size].pop()
    except (KeyError, IndexError):
        memory = _pages(size)
    view = (ctypes.c_char * len(memory)).from_buffer(memory)  # tensors hold this, and nobody else does
    weakref.finalize(view, _keep, size, memory).atexit = False
    return torch.frombuffer(view, dtype=dtype, count=count, offset=-ctypes.addressof(view) % _PAGE).reshape(shape)


def _pages(size: int) -> mmap.mmap:
    """Fresh ones, and one more where the first does not begin where a large page does."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _PAGE:
        memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _keep(size: int, memory: mmap.mmap) -> None:
    """Have it wait, unless as much waits already."""
    if waiting() + size <= _WAITING:
        _waiting.setdefault(size, []).append(memory)


def waiting() -> int:
    """Bytes that wait for the next tensor."""
    return sum(size * len(memories) for size, memories in _waiting.items())


@functools.cache
def large_pages() -> bool:
    """Whether the system gives large pages to those who ask."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return False
