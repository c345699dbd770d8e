"""Exponents that hold for an interval of noise levels."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Within:
    r"""The indicator :math:`1[\mathrm{low} \le \sigma \le \mathrm{high}]`, a function of σ as exponents take it.

    Guidance within such an interval costs less diversity than guidance at all levels (Kynkäänniemi et al. 2024,
    *Applying guidance in a limited interval improves sample and distribution quality in diffusion models*).

    Example:
        >>> Within(0.5, 10.0)(torch.tensor([0.0, 0.5, 3.0, 20.0])).tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    low: float
    high: float

    def __call__(self, sigma: Tensor) -> Tensor:
        """One inside and zero outside, shaped like σ."""
        inside = (sigma >= self.low) & (sigma <= self.high)
        return torch.where(inside, torch.ones_like(sigma), torch.zeros_like(sigma))

    def __str__(self) -> str:
        """As formulas write it."""
        low = "" if self.low == 0 else f"{self.low:g}"
        high = "" if self.high == float("inf") else f"{self.high:g}"
        return f"[{low}:{high}]"
