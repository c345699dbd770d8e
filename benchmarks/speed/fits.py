r"""Exponents of growth: the slope of log cost over log size, where sizes are large."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    r"""cost :math:`\approx c \cdot \mathrm{size}^a`.

    Attributes:
        exponent: a.
        error: its standard error, from the scatter about the line.
        points: that were fitted.
    """

    exponent: float
    error: float
    points: int

    def __str__(self) -> str:
        """With its error."""
        return f"{self.exponent:.2f} ± {self.error:.2f}"


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    r"""Least squares of log cost on log size over the upper half of the sizes' logarithmic range.

    Small sizes are left out: there the cost is that of a call, whatever its size. With residuals r over n points,
    :math:`\mathrm{se}(a)^2 = \frac{\sum r^2}{(n - 2) \sum (\log s - \overline{\log s})^2}`.

    Args:
        sizes: positive, at least three of them in the upper half.
        costs: positive, one for each size: seconds or bytes.

    Raises:
        ValueError: too few points, or numbers that are not positive and finite.

    >>> print(growth([1, 2, 4, 8, 16, 32], [5.0, 5.0, 8.0, 16.0, 32.0, 64.0]))
    1.00 ± 0.00
    """
    if len(sizes) != len(costs):
        raise ValueError(f"there is one cost for each size, got {len(sizes)} sizes and {len(costs)} costs")
    for name, values in (("sizes", sizes), ("costs", costs)):
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{name} of a fit of logarithms are positive and finite, got {list(values)}")
    middle = math.sqrt(min(sizes) * max(sizes)) if sizes else 0.0
    kept = [(math.log(s), math.log(c)) for s, c in zip(sizes, costs, strict=True) if s >= middle * (1 - 1e-9)]
    n = len(kept)
    if n < 3 or len({x for x, _ in kept}) < 3:
        raise ValueError(f"a slope with an error takes three sizes in the upper half of their range, got {n}: {sizes}")
    centre, level = sum(x for x, _ in kept) / n, sum(y for _, y in kept) / n
    spread = sum((x - centre) ** 2 for x, _ in kept)
    slope = sum((x - centre) * (y - level) for x, y in kept) / spread
    scatter = sum((y - level - slope * (x - centre)) ** 2 for x, y in kept)
    return Growth(slope, math.sqrt(scatter / (n - 2) / spread), n)
