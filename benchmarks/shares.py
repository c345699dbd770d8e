"""Proportions with their intervals."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % interval (Wilson, 1927): ``rate`` = hits / n between ``low`` and ``high``."""

    hits: int
    n: int
    rate: float
    low: float
    high: float


def share(hits: Tensor, level: float = 0.95) -> Share:
    """The proportion of true values.

    Raises:
        ValueError: no values, or not bool ``(n,)``.

    Example:
        >>> import torch
        >>> found = share(torch.tensor([True] * 97 + [False] * 3))
        >>> round(found.low, 3), found.rate, round(found.high, 3)
        (0.915, 0.97, 0.99)
    """
    if hits.dtype != torch.bool or hits.ndim != 1 or len(hits) == 0:
        raise ValueError(f"share takes one or more bools (n,), got {hits.dtype} {tuple(hits.shape)}")
    n, count = len(hits), int(hits.sum())
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = count / n
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Share(count, n, rate, max(0.0, middle - reach), min(1.0, middle + reach))
