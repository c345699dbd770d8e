"""What kernels and terms need to know of being traced into a graph.

Traced code runs once, so it cannot look at the numbers in a tensor. :func:`repeat` is a loop that stays a loop.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_TRACING: ContextVar[bool] = ContextVar("boltzmix_tracing", default=False)
_LOOPS: ContextVar["Loops | None"] = ContextVar("boltzmix_loops", default=None)


@contextlib.contextmanager
def tracing(loops: "Loops | None" = None) -> Iterator[None]:
    """What runs within is traced; loops are handed over where somebody takes them."""
    first, second = _TRACING.set(True), _LOOPS.set(loops)
    try:
        yield
    finally:
        _TRACING.reset(first)
        _LOOPS.reset(second)


def is_tracing() -> bool:
    """Whether a graph is being made: rows that raise are then an error, and not rows to be reported."""
    return _TRACING.get()


@dataclass(frozen=True)
class Repetitions:
    """A number of repetitions that only a run knows, plus ``offset``."""

    offset: int = 0

    def __sub__(self, number: int) -> "Repetitions":
        """Fewer of them."""
        return Repetitions(self.offset - number)


class Loops:
    """What takes loops while a kernel is traced."""

    def repeat(
        self, count: "int | Repetitions", body: Callable[..., tuple[Tensor, ...]], carry: tuple[Tensor, ...],
        fixed: Sequence[Any],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """A loop as :func:`repeat` describes it."""
        raise NotImplementedError


def unknown_repetitions() -> Repetitions | None:
    """What stands for a number of repetitions that a kernel draws, while loops are traced; None otherwise."""
    return None if _LOOPS.get() is None else Repetitions()


def repeat(
    count: int | Repetitions,
    body: Callable[..., tuple[Tensor, ...]],
    carry: tuple[Tensor, ...],
    fixed: Sequence[Any] = (),
) -> tuple[Tensor, ...]:
    """``carry = body(*carry, *fixed)``, ``count`` times.

    Args:
        count: of repetitions.
        body: from tensors to as many of the same shapes; tensors that it reads are among its arguments.
        carry: what it starts from.
        fixed: tensors and tunings that it reads.
    """
    loops = _LOOPS.get()
    if loops is not None:
        return loops.repeat(count, body, carry, fixed)
    assert isinstance(count, int)
    for _ in range(count):
        carry = body(*carry, *fixed)
    return carry
