"""Variance-preserving schedules: α² + σ_t² = 1."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.models.schedules.base import Schedule, ordered


class _VariancePreserving(Schedule):
    """α² + σ_t² = 1, so that α = 1 / √(1 + σ²) whatever the time."""

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction", "score")

    def alpha(self, sigma: Tensor) -> Tensor:
        """1 / √(1 + σ²)."""
        return (1 + sigma.double() ** 2).rsqrt()


@dataclass(frozen=True)
class VP(_VariancePreserving):
    r"""Variance preserving with discrete steps: DDPM's and its relatives'.

    :math:`\sigma(t) = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}` for t = 0 … T−1; between steps, t is
    linear in log σ. Steps without signal (:math:`\bar\alpha = 0`, zero terminal SNR) lie at σ = ∞ and are left out.

    Args:
        alphas_cumprod: :math:`\bar\alpha_t`, ``(T,)``, strictly decreasing in (0, 1).

    Source: Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models".

    Example:
        >>> schedule = VP.from_betas(torch.linspace(1e-4, 0.02, 1000))
        >>> round(float(schedule.time(schedule.level(500))), 6)
        500.0
    """

    alphas_cumprod: Sequence[float] | Tensor
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the table as numbers, so that equal schedules compare equal."""
        given = self.alphas_cumprod
        table = tuple(float(a) for a in (given.tolist() if isinstance(given, Tensor) else given))
        while table and table[-1] == 0:
            table = table[:-1]
        inside = all(0 < a < 1 for a in table)
        if len(table) < 2 or not inside or any(a <= b for a, b in itertools.pairwise(table)):
            raise ValueError(
                "alphas_cumprod decreases strictly from below 1 to above 0 over at least two steps, "
                f"got {len(table)} steps from {table[:1]} to {table[-1:]}"
            )
        object.__setattr__(self, "alphas_cumprod", table)

    def __hash__(self) -> int:
        """Cheap: terms are looked up by their schedule at every evaluation."""
        return hash((VP, len(self.alphas_cumprod), self.alphas_cumprod[0], self.alphas_cumprod[-1]))

    @classmethod
    def from_betas(cls, betas: Tensor) -> "VP":
        """The schedule with variances β_t per step."""
        return cls(torch.cumprod(1 - betas.double(), 0))

    @classmethod
    def ddpm(cls, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> "VP":
        """Ho, Jain and Abbeel's: β from ``beta_min`` to ``beta_max`` in equal increments.

        Raises:
            ValueError: fewer than two steps, or variances that are not in (0, 1) and increasing.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"VP.ddpm takes steps >= 2, got {steps!r}")
        ordered("VP.ddpm's beta", beta_min, beta_max, 0.0, 1.0)
        return cls.from_betas(torch.linspace(beta_min, beta_max, steps, dtype=torch.float64))

    @property
    def betas(self) -> Tensor:
        r"""β_t = 1 − ᾱ_t / ᾱ_{t−1}, ``(T,)``, float64, with ᾱ = 1 before the first step."""
        table = torch.tensor([1.0, *self.alphas_cumprod], dtype=torch.float64)
        return 1 - table[1:] / table[:-1]

    def forward_step(self, x: Tensor, step: int, noise: Tensor) -> Tensor:
        r"""A draw of :math:`q(x_t \mid x_{t-1}) = N(\sqrt{1 - \beta_t}\, x_{t-1}, \beta_t I)` for t = ``step``.

        Args:
            x: :math:`x_{t-1}` in the network's units, the data for step 0.
            step: 0 … T−1.
            noise: standard normal, shaped like x.
        """
        if not 0 <= step < len(self.alphas_cumprod):
            raise ValueError(f"this schedule has steps 0 … {len(self.alphas_cumprod) - 1}, got {step}")
        beta = float(self.betas[step])
        return math.sqrt(1 - beta) * x + math.sqrt(beta) * noise

    def level(self, time: float | Tensor) -> Tensor:
        """σ of a step; between steps, log σ is linear."""
        at = torch.as_tensor(time, dtype=torch.float64)
        table = self._log_sigmas(at.device)
        if bool(((at < -1e-9) | (at > len(table) - 1 + 1e-9)).any()):
            raise ValueError(f"this schedule has steps 0 … {len(table) - 1}, got {time}")
        before = at.floor().long().clamp(0, len(table) - 2)
        return torch.lerp(table[before], table[before + 1], at - before).exp()

    def _log_sigmas(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            table = torch.tensor(self.alphas_cumprod, dtype=torch.float64, device=device)
            self._tables[device] = 0.5 * ((1 - table) / table).log()
        return self._tables[device]

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The first and the last step's level."""
        first, last = float(self.alphas_cumprod[0]), float(self.alphas_cumprod[-1])
        return math.sqrt((1 - first) / first), math.sqrt((1 - last) / last)

    def time(self, sigma: Tensor) -> Tensor:
        """Fractional step."""
        table = self._log_sigmas(sigma.device)
        log_sigma = sigma.double().log().clamp(table[0], table[-1])  # a rounded end of the range is still that end
        after = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        low, high = table[after - 1], table[after]
        return (after - 1) + (log_sigma - low) / (high - low)


@dataclass(frozen=True)
class LinearVP(_VariancePreserving):
    r"""Variance preserving with β linear in continuous time t ∈ [0, 1].

    :math:`\log(1 + \sigma^2) = \beta_{\min} t + \tfrac12 (\beta_{\max} - \beta_{\min}) t^2`; the network
    receives ``time_scale · t``.

    Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations".
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse empty ranges."""
        ordered("LinearVP's beta", self.beta_min, self.beta_max)
        ordered("LinearVP's t", self.t_min, self.t_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """σ at t_min and t_max."""

        def level(t: float) -> float:
            return math.sqrt(math.expm1(self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t))

        return level(self.t_min), level(self.t_max)

    def time(self, sigma: Tensor) -> Tensor:
        """The positive root, in the form that does not cancel at small σ."""
        growth = torch.log1p(sigma.double() ** 2)
        slope = self.beta_max - self.beta_min
        return self.time_scale * 2 * growth / (self.beta_min + (self.beta_min**2 + 2 * slope * growth).sqrt())

    def level(self, time: float | Tensor) -> Tensor:
        """√(exp(growth) − 1)."""
        t = torch.as_tensor(time, dtype=torch.float64) / self.time_scale
        return torch.expm1(self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t).sqrt()


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    r"""Variance preserving along a quarter circle in continuous time t ∈ [0, 1].

    :math:`\alpha_t = \cos\theta_t / \cos\theta_0` with :math:`\theta_t = \tfrac{\pi}{2} \tfrac{t + s}{1 + s}`;
    the network receives ``time_scale · t``.

    Source: Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (s = 0.008).
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.999
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse empty ranges; t = 1 is σ = ∞."""
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"Cosine needs an offset >= 0, got {self.offset!r}")
        ordered("Cosine's t", self.t_min, self.t_max, 0.0, 1.0)

    @property
    def _start(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """σ at t_min and t_max."""

        def level(t: float) -> float:
            angle = 0.5 * math.pi * (t + self.offset) / (1 + self.offset)
            return math.sqrt((math.cos(self._start) / math.cos(angle)) ** 2 - 1)

        return level(self.t_min), level(self.t_max)

    def time(self, sigma: Tensor) -> Tensor:
        """From tan² θ = (σ² + sin² θ₀) / cos² θ₀."""
        tangent = (sigma.double() ** 2 + math.sin(self._start) ** 2).sqrt() / math.cos(self._start)
        angle = tangent.atan()
        return self.time_scale * (angle * (1 + self.offset) * 2 / math.pi - self.offset)

    def level(self, time: float | Tensor) -> Tensor:
        """√(cos² θ₀ tan² θ − sin² θ₀)."""
        t = torch.as_tensor(time, dtype=torch.float64) / self.time_scale
        angle = 0.5 * math.pi * (t + self.offset) / (1 + self.offset)
        return ((math.cos(self._start) * angle.tan()) ** 2 - math.sin(self._start) ** 2).sqrt()
