"""Schedules in the common coordinate σ itself: variance exploding, and EDM's preconditioning of the same levels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from boltzmix.compose.variable import expand_rows
from boltzmix.models.schedules.base import Schedule, ordered


@dataclass(frozen=True)
class VE(Schedule):
    r"""Variance exploding: :math:`x_t = x_0 + \sigma \varepsilon`, the common coordinate itself.

    Args:
        sigma_min: least level.
        sigma_max: greatest level.
        conditioning: what the network receives for time: ``"sigma"``, ``"log"`` (log σ), ``"quarter_log"``
            (¼ log σ), or a function of the tensor of levels.

    A network with EDM preconditioning inside, D(x, σ), is ``VE()`` with prediction ``"sample"``.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    conditioning: Literal["sigma", "log", "quarter_log"] | Callable[[Tensor], Tensor] = "sigma"

    def __post_init__(self) -> None:
        """Refuse empty ranges and unknown conditionings."""
        ordered("VE's sigma", self.sigma_min, self.sigma_max)
        if not callable(self.conditioning) and self.conditioning not in ("sigma", "log", "quarter_log"):
            raise ValueError(f"VE's conditioning is sigma, log, quarter_log or a function, got {self.conditioning!r}")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def time(self, sigma: Tensor) -> Tensor:
        """What the conditioning makes of σ."""
        level = sigma.double()
        if callable(self.conditioning):
            return self.conditioning(level)
        return level if self.conditioning == "sigma" else level.log() * (0.25 if self.conditioning != "log" else 1.0)

    def level(self, time: float | Tensor) -> Tensor:
        """The conditioning undone.

        Raises:
            TypeError: a conditioning that is a function, which cannot be inverted.
        """
        if callable(self.conditioning):
            raise TypeError("VE with a function for its conditioning has no inverse; name the level itself")
        at = torch.as_tensor(time, dtype=torch.float64)
        return at if self.conditioning == "sigma" else (at if self.conditioning == "log" else 4 * at).exp()

    def alpha(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma, dtype=torch.float64)

    def _clock(self, sigma: Tensor) -> Tensor:
        """Levels are geometric in training (Song et al., 2021), whatever the network receives."""
        return sigma.double().log()

    def _unclock(self, value: Tensor) -> Tensor:
        return value.exp()


@dataclass(frozen=True)
class EDM(Schedule):
    r"""A raw network F under EDM's preconditioning.

    :math:`D = c_{skip} x + c_{out} F(c_{in} x, \tfrac14 \log\sigma)`, with
    :math:`c_{skip} = \sigma_d^2 / (\sigma^2 + \sigma_d^2)`, :math:`c_{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}` and
    :math:`c_{out} = \sigma \sigma_d c_{in}`; ``"v_prediction"`` has :math:`c_{out}` negative. In the form that
    does not cancel, :math:`\hat\varepsilon = c_{in} (\sigma c_{in} x \mp \sigma_d F)`. :meth:`alpha` is :math:`c_{in}`.

    Source: Karras, Aittala, Aila, Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    predictions: ClassVar[tuple[str, ...]] = ("edm", "v_prediction")

    def __post_init__(self) -> None:
        """Refuse empty ranges."""
        ordered("EDM's sigma", self.sigma_min, self.sigma_max)
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"EDM needs sigma_data > 0, got {self.sigma_data!r}")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def time(self, sigma: Tensor) -> Tensor:
        """¼ log σ."""
        return 0.25 * sigma.double().log()

    def level(self, time: float | Tensor) -> Tensor:
        """exp(4 t)."""
        return (4 * torch.as_tensor(time, dtype=torch.float64)).exp()

    def alpha(self, sigma: Tensor) -> Tensor:
        """c_in = 1 / √(σ² + σ_d²)."""
        return (sigma.double() ** 2 + self.sigma_data**2).rsqrt()

    def eps(self, prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(x − D) / σ, simplified."""
        sign = 1 if self.resolve(prediction) == "v_prediction" else -1
        scale = self.alpha(sigma)
        on_state = expand_rows((scale * scale * sigma.double()).to(x.dtype), x)
        on_output = expand_rows((sign * self.sigma_data * scale).to(x.dtype), x)
        return on_state * x + on_output * output

    def target(self, prediction: str, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        r"""(σ x0 − σ_d² ε) / (σ_d s), or the opposite for ``"v_prediction"``."""
        sign = -1 if self.resolve(prediction) == "v_prediction" else 1
        scale = sign * self.alpha(sigma) / self.sigma_data
        on_data = expand_rows((scale * sigma.double()).to(x0.dtype), x0)
        on_noise = expand_rows((scale * self.sigma_data**2).to(x0.dtype), x0)
        return on_data * x0 - on_noise * noise
