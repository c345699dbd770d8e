r"""Uniform densities on a box, noised exactly by differences of the normal distribution function.

.. math::
    p(x; \sigma) = \prod_i \frac{\Phi((x_i - l_i)/\sigma) - \Phi((x_i - h_i)/\sigma)}{h_i - l_i}

With b the bound that is nearer and a the farther one, both in units of σ and reflected so that
:math:`a < b, a + b \le 0`, no digits are lost in either tail:

.. math::
    \log(\Phi(b) - \Phi(a)) = \log \Phi(b) + \log(1 - r), \qquad
    r = \frac{\Phi(a)}{\Phi(b)} = e^{(b - a)(b + a)/2}\,
        \frac{\mathrm{erfcx}(-a/\sqrt2)}{\mathrm{erfcx}(-b/\sqrt2)}

(the exponent is a product, not a difference of squares), and the score follows from the hazard
:math:`\varphi(b)/\Phi(b) = \sqrt{2/\pi} / \mathrm{erfcx}(-b/\sqrt2)`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.gaussian import Gaussian, as_float_tensor
from boltzmix.compose.term import Normalized
from boltzmix.compose.variable import Variable, expand_rows

_HAZARD_AT_ZERO = math.sqrt(2 / math.pi)


class Box(Normalized):
    """Uniform density on ``low ≤ x ≤ high``, exact at every noise level.

    Args:
        low: lower corner, event-shaped.
        high: upper corner, same shape, ``high > low``.

    Raises:
        ValueError: shapes that differ, or a side that is empty.

    Example:
        >>> import torch
        >>> Box([0.0], [2.0]).energy(torch.tensor([[1.0], [3.0]])).tolist()
        [0.6931471824645996, inf]
    """

    path = "noised"
    samplable = True
    low: Tensor
    high: Tensor

    def __init__(self, low: Any, high: Any) -> None:
        """Check the corners."""
        super().__init__()
        low = as_float_tensor(low, "low")
        high = as_float_tensor(high, "high", like=low)
        if low.ndim == 0 or low.shape != high.shape:
            raise ValueError(
                f"Box needs corners of one event shape such as (D,), got {tuple(low.shape)}, {tuple(high.shape)}"
            )
        if not bool((high > low).all()):
            raise ValueError(f"Box needs high > low, got low={low.tolist()}, high={high.tolist()}")
        self.variables = Variable(tuple(low.shape))
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._log_density(x, sigma)[0].neg()

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        log_density, score = self._log_density(x, sigma)
        return log_density.neg(), score

    def _log_density(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high = self.low.to(x), self.high.to(x)
        log_width = (high - low).log()
        sharp = ((x >= low) & (x <= high)).to(x).log() - log_width
        if sigma is None or bool((sigma == 0).all()):
            return sharp.flatten(1).sum(1), torch.zeros_like(x)
        level = expand_rows(sigma, x)
        at_zero = level == 0
        level = torch.where(at_zero, 1.0, level)
        upper, lower = (x - low) / level, (x - high) / level
        flip = lower + upper > 0
        a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        log_mass, slope = _log_difference(a, b)
        score = torch.where(flip, -slope, slope) / level
        log_density = torch.where(at_zero, sharp, log_mass - log_width)
        return log_density.flatten(1).sum(1), torch.where(at_zero, 0.0, score)

    def _coarse(self, sigma: Tensor) -> Gaussian:
        return Gaussian(0.5 * (self.low + self.high), (self.high - self.low) ** 2 / 12 + float(sigma) ** 2)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        unit = torch.rand(n, *self.event_shape, generator=generator, dtype=self.low.dtype, device=self.low.device)
        return self.low + (self.high - self.low) * unit


def _log_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """log(Φ(b) − Φ(a)) and its derivative along (1, 1), for a < b and a + b ≤ 0."""
    root = math.sqrt(0.5)
    exponent = (b - a) * (b + a) / 2
    # Each branch sees only arguments at which it is finite, so that its gradient is too.
    left = b.clamp(max=0.0)
    ratio = torch.special.erfcx(-a * root) / torch.special.erfcx(-left * root)
    in_tail = (left - a) * (left + a) / 2 + ratio.log()
    log_b = torch.special.log_ndtr(b)
    log_r = torch.where(b < 0, in_tail, torch.special.log_ndtr(a) - log_b)
    rest = -torch.expm1(log_r)
    # φ(b) is below the smallest number that matters beyond the clamp, and erfcx would overflow.
    edge = b.clamp(max=12.0 if b.dtype == torch.float32 else 37.0)
    hazard = _HAZARD_AT_ZERO / torch.special.erfcx(-edge * root)
    return log_b + rest.log(), -hazard * torch.expm1(exponent) / rest
