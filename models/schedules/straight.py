"""The straight path between data and noise."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from boltzmix.compose.variable import expand_rows
from boltzmix.models.schedules.base import Schedule, ordered


@dataclass(frozen=True)
class FlowMatching(Schedule):
    r"""The straight path :math:`x_t = (1 - t) x_0 + t \varepsilon`, so that t = σ / (1 + σ) and α = 1 − t.

    Args:
        t_min: least t (t = 0 is the data, whatever ``data_at``).
        t_max: greatest t; t = 1 is σ = ∞.
        time_scale: the network receives ``time_scale · t``.
        data_at: 0, or 1 for networks whose own time runs from noise to data and is 1 − t here.
        velocity: ``"noise"`` for networks that return :math:`\varepsilon - x_0`, ``"data"`` for the opposite
            sign; None takes the derivative along the network's own time.

    Source: Lipman et al. 2023, "Flow Matching for Generative Modeling"; Liu, Gong, Liu 2023, "Flow Straight and Fast".
    """

    t_min: float = 1e-3
    t_max: float = 0.999
    time_scale: float = 1.0
    data_at: Literal[0, 1] = 0
    velocity: Literal["noise", "data"] | None = None

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "score", "flow")

    def __post_init__(self) -> None:
        """Refuse empty ranges and unknown conventions."""
        ordered("FlowMatching's t", self.t_min, self.t_max, 0.0, 1.0)
        if self.data_at not in (0, 1):
            raise ValueError(f"FlowMatching's data_at is 0 or 1, got {self.data_at!r}")
        if self.velocity not in ("noise", "data", None):
            raise ValueError(f'FlowMatching\'s velocity is "noise" (ε − x0) or "data" (x0 − ε), got {self.velocity!r}')

    @property
    def sigma_range(self) -> tuple[float, float]:
        """t / (1 − t) at t_min and t_max."""
        return self.t_min / (1 - self.t_min), self.t_max / (1 - self.t_max)

    def time(self, sigma: Tensor) -> Tensor:
        """σ / (1 + σ), or 1 / (1 + σ) where the data is at 1."""
        alpha = self.alpha(sigma)
        return self.time_scale * (alpha if self.data_at else sigma.double() * alpha)

    def alpha(self, sigma: Tensor) -> Tensor:
        """1 − t = 1 / (1 + σ)."""
        return 1 / (1 + sigma.double())

    def level(self, time: float | Tensor) -> Tensor:
        """t / (1 − t)."""
        t = torch.as_tensor(time, dtype=torch.float64) / self.time_scale
        return (1 - t) / t if self.data_at else t / (1 - t)

    def eps(self, prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(1 − t)(x + v) for velocities."""
        if self.resolve(prediction) != "flow":
            return super().eps(prediction, output, x, sigma)
        scale = expand_rows(self.alpha(sigma).to(x.dtype), x)
        return scale * (x + output if self._points_to == "noise" else x - output)

    def target(self, prediction: str, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """ε − x0 for velocities, or the opposite."""
        if self.resolve(prediction) != "flow":
            return super().target(prediction, x0, noise, sigma)
        return noise - x0 if self._points_to == "noise" else x0 - noise

    @property
    def _points_to(self) -> str:
        return self.velocity or ("data" if self.data_at else "noise")
