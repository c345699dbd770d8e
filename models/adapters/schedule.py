r"""Noise schedules: from the common coordinate σ to a network's own time and input.

Every term speaks of :math:`x_\sigma = x_0 + \sigma \varepsilon`. A network was trained on
:math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon`, which is :math:`\alpha_t x_\sigma` at
:math:`\sigma = \sigma_t / \alpha_t`. A schedule knows, for each σ, the network's time t and the factor
α on its input, and turns the network's output into the predicted noise
:math:`\hat\varepsilon = \mathbb{E}[\varepsilon \mid x_\sigma]`, from which the score is
:math:`-\hat\varepsilon / \sigma`:

==================  ===============================================  ==========================================
prediction          the network returns                              :math:`\hat\varepsilon`
==================  ===============================================  ==========================================
``"epsilon"``       :math:`\varepsilon`                              the output
``"sample"``        :math:`x_0`                                      :math:`(x_\sigma - x_0) / \sigma`
``"v_prediction"``  :math:`\alpha_t \varepsilon - \sigma_t x_0`      :math:`\alpha_t (v + \sigma_t x_\sigma)`
``"flow"``          :math:`\varepsilon - x_0`                        :math:`(1 - t)(x_\sigma + v)`
``"score"``         :math:`\nabla \log p_t(x_t)`                     :math:`-\sigma_t s`
``"edm"``           F of the EDM preconditioning                     see :class:`EDM`
==================  ===============================================  ==========================================

These forms keep float32 at small σ; only ``"sample"`` subtracts two nearly equal numbers.
Times and factors are computed in float64 whatever the dtype of σ: they cost N numbers, not N images.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from boltzmix.compose.variable import expand_rows

ALIASES = {
    "eps": "epsilon",
    "x0": "sample",
    "original_sample": "sample",
    "v": "v_prediction",
    "velocity": "flow",
    "flow_prediction": "flow",
}


class Schedule:
    """What a network's adapter needs to know of the schedule it was trained with.

    Subclasses are frozen dataclasses with :meth:`time`, :meth:`alpha` and ``sigma_range``. Levels are
    checked by the term that holds the schedule.
    """

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "score")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The levels that the network was trained on, inclusive."""
        raise NotImplementedError

    def time(self, sigma: Tensor) -> Tensor:
        """The network's time at σ, in float64, shaped like σ."""
        raise NotImplementedError

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor on the network's input at σ, in float64, shaped like σ."""
        raise NotImplementedError

    def resolve(self, prediction: str) -> str:
        """The canonical name of a prediction.

        Raises:
            ValueError: a prediction that this schedule does not define.
        """
        name = ALIASES.get(prediction, prediction)
        if name not in self.predictions:
            raise ValueError(f"{type(self).__name__} knows predictions {list(self.predictions)}, got {prediction!r}")
        return name

    def eps(self, prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        r"""Predicted noise :math:`\hat\varepsilon`, shaped like ``output``.

        Args:
            prediction: what the network returns; see the module's table.
            output: the network's output, ``(…, N, *event)``.
            x: the state :math:`x_\sigma` in the σ coordinate, ``(N, *event)``; it is not scaled by α.
            sigma: ``()`` or ``(N,)``.
        """
        name = self.resolve(prediction)
        level = sigma.double()
        alpha = self.alpha(sigma)

        def rows(value: Tensor) -> Tensor:
            return expand_rows(value.to(x.dtype), x)

        if name == "epsilon":
            return output
        if name == "sample":
            return (x - output) / rows(level)
        if name == "score":
            return output * rows(-alpha * level)
        if name == "v_prediction":
            return rows(alpha) * output + rows(alpha * alpha * level) * x
        raise NotImplementedError(f"{type(self).__name__}.eps does not handle {name!r}")


def _ordered(owner: str, low: float, high: float, least: float = 0.0, most: float = math.inf) -> None:
    if not (least < low < high < most):
        raise ValueError(f"{owner} needs {least:g} < minimum < maximum < {most:g}, got {low!r} and {high!r}")


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

    def level(self, step: int) -> Tensor:
        """σ of one step, float64."""
        return self._log_sigmas(torch.device("cpu"))[step].exp()

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
        _ordered("LinearVP's beta", self.beta_min, self.beta_max)
        _ordered("LinearVP's t", self.t_min, self.t_max)

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
        _ordered("Cosine's t", self.t_min, self.t_max, 0.0, 1.0)

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
        _ordered("VE's sigma", self.sigma_min, self.sigma_max)
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

    def alpha(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma, dtype=torch.float64)


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
        _ordered("FlowMatching's t", self.t_min, self.t_max, 0.0, 1.0)
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

    def eps(self, prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(1 − t)(x + v) for velocities."""
        if self.resolve(prediction) != "flow":
            return super().eps(prediction, output, x, sigma)
        points_to = self.velocity or ("data" if self.data_at else "noise")
        scale = expand_rows(self.alpha(sigma).to(x.dtype), x)
        return scale * (x + output if points_to == "noise" else x - output)


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
        _ordered("EDM's sigma", self.sigma_min, self.sigma_max)
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"EDM needs sigma_data > 0, got {self.sigma_data!r}")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def time(self, sigma: Tensor) -> Tensor:
        """¼ log σ."""
        return 0.25 * sigma.double().log()

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
