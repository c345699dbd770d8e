r"""Two methods on the same problems, compared pair by pair.

*Successes.* Problems on which both methods succeed, or both fail, say nothing about which is better. Of the n others
the first wins k; under equality k is Binomial(n, ½), which gives McNemar's (1947) exact test.

*Amounts.* Under equality the sign of each difference is arbitrary, so the mean difference is compared with its law over
all sign flips (Fisher, 1935), drawn at random.
"""

import math
from collections.abc import Sequence

import numpy as np


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """p-value, two-sided, of equal success rates of two methods on the same problems.

    Raises:
        ValueError: no problems, or a different number for each.

    Example:
        >>> round(mcnemar([True] * 6 + [False] * 4, [False] * 6 + [False] * 4), 4)  # 2 / 2^6
        0.0312
    """
    a, b = _pairs(first, second)
    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def sign_flips(first: Sequence[float], second: Sequence[float], draws: int = 10_000, seed: int = 0) -> float:
    """p-value, one-sided, of ``first`` being larger than ``second`` on average only by chance.

    The observed signs count as one of the draws, so that p is never 0 and the test is exact (Phipson and Smyth, 2010).

    Raises:
        ValueError: no problems, a different number for each, or values that are not finite.

    Example:
        >>> sign_flips([1.0, 2.0, 3.0, 2.0, 2.0, 1.0], [0.0] * 6) < 0.03 < sign_flips([1.0, -1.0], [0.0, 0.0])
        True
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"expected two lists of equal length with at least one value, got {a.shape} and {b.shape}")
    gap = a - b
    if not np.isfinite(gap).all():
        raise ValueError(
            f"{(~np.isfinite(gap)).sum()} of {len(gap)} differences are not finite: report them, do not test"
        )
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(gap)))
    at_least = (signs @ gap >= gap.sum() - 1e-12 * np.abs(gap).sum()).sum()
    return float((1 + at_least) / (1 + draws))


def _pairs(first: Sequence[bool], second: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0 or a.dtype != bool or b.dtype != bool:
        raise ValueError(
            f"expected two lists of bools, of equal length, got {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    return a, b
