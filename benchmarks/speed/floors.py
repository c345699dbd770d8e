r"""What the machine allows at best, measured in the same run: bytes moved and multiplications done for each second.

Memory: the triad :math:`a = b + s c` and the copy :math:`a = b` of STREAM (McCalpin, 1995, *Memory bandwidth and
machine balance in current high performance computers*), on arrays that fit a cache and on arrays that fit none.
Matrices: single-precision products of given shapes.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from boltzmix.benchmarks.speed.timing import in_turns

#: bytes of one array: within a core's own cache, and larger than every cache
IN_CACHE, IN_MEMORY = 1 << 17, 1 << 27


def triad(size: int) -> tuple[Callable[[], object], int]:
    """a = b + 3 c on arrays of ``size`` bytes, and the bytes that one call moves."""
    b, c = torch.ones(size // 4), torch.ones(size // 4)
    a = torch.empty_like(b)
    return lambda: torch.add(b, c, alpha=3.0, out=a), 3 * size


def copy(size: int) -> tuple[Callable[[], object], int]:
    """a = b on arrays of ``size`` bytes, and the bytes that one call moves."""
    b = torch.ones(size // 4)
    a = torch.empty_like(b)
    return lambda: a.copy_(b), 2 * size


def bandwidths(rounds: int, in_memory: int = IN_MEMORY) -> dict[str, float]:
    """Bytes for each CPU second: "copy" and "triad", each "in cache" and "in memory".

    Args:
        rounds: of which the median counts.
        in_memory: bytes of one array of the larger size.
    """
    jobs, moved = {}, {}
    for place, size in (("in cache", IN_CACHE), ("in memory", in_memory)):
        for name, make in (("copy", copy), ("triad", triad)):
            jobs[f"{name} {place}"], moved[f"{name} {place}"] = make(size)
    times = in_turns(jobs, rounds)
    return {name: moved[name] / statistics.median(seconds) for name, seconds in times.items()}


def copied(x: Tensor) -> Callable[[], object]:
    """One copy of x into memory that is there: an evaluation reads a state and writes a score of its size, at least."""
    to = torch.empty_like(x)
    return lambda: to.copy_(x)


def products(shapes: Sequence[tuple[int, int, int]], seed: int = 0) -> Callable[[], object]:
    """Products of matrices (n, k) (k, m) of the given shapes (n, k, m), in single precision, into memory that is there.

    Args:
        shapes: of one evaluation.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    ready = []
    for n, k, m in shapes:
        a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
        ready.append((a, b, torch.empty(n, m)))

    def job() -> None:
        for a, b, out in ready:
            torch.mm(a, b, out=out)

    return job


def operations(shapes: Sequence[tuple[int, int, int]]) -> int:
    """Multiplications and additions of such products, two for each entry of both factors.

    >>> operations([(2, 3, 4)])
    48
    """
    return sum(2 * n * k * m for n, k, m in shapes)


def matrix_rate(size: int, rounds: int) -> float:
    """Operations for each CPU second of square single-precision products of a size."""
    shapes = [(size, size, size)]
    times = in_turns({"product": products(shapes)}, rounds)["product"]
    return operations(shapes) / statistics.median(times)
