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
Training goes the other way: :meth:`Schedule.target` is what a network should return for known x0 and ε, and
:meth:`Schedule.quantile` draws the levels that its time, uniform, visits. Times and factors are computed in float64
whatever the dtype of σ: they cost N numbers, not N images.
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

    def level(self, time: float | Tensor) -> Tensor:
        """σ at a time, the inverse of :meth:`time`; float64, shaped like time."""
        raise NotImplementedError

    def quantile(self, share: Tensor, sigma_range: tuple[float, float] | None = None) -> Tensor:
        """Levels that training visits: σ at the share of ``sigma_range`` that the time has run through.

        Args:
            share: in [0, 1], any shape; 0 is the least level.
            sigma_range: levels between which time is uniform; None for the schedule's own.
        """
        ends = torch.tensor(sigma_range or self.sigma_range, dtype=torch.float64, device=share.device)
        first, last = self._clock(ends)
        return self._unclock(first + (last - first) * share.double()).clamp(ends[0], ends[1])

    def log_density(self, sigma: Tensor, sigma_range: tuple[float, float] | None = None) -> Tensor:
        """Log-density of ln σ under :meth:`quantile` of a uniform share, float64, shaped like σ."""
        ends = torch.tensor(sigma_range or self.sigma_range, dtype=torch.float64, device=sigma.device)
        first, last = self._clock(ends)
        with torch.enable_grad():
            log_sigma = sigma.detach().double().log().requires_grad_()
            (slope,) = torch.autograd.grad(self._clock(log_sigma.exp()).sum(), log_sigma)
        return slope.abs().log() - (last - first).abs().log()

    def _clock(self, sigma: Tensor) -> Tensor:
        """What is uniform in training; the network's time unless that is no clock."""
        return self.time(sigma)

    def _unclock(self, value: Tensor) -> Tensor:
        return self.level(value)

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

    def target(self, prediction: str, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        r"""What the network should return for data x0 and noise ε; :meth:`eps` of it is ε again.

        Args:
            prediction: what the network returns; see the module's table.
            x0, noise: ``(N, *event)``.
            sigma: ``()`` or ``(N,)``.
        """
        name = self.resolve(prediction)
        alpha = self.alpha(sigma)
        own = alpha * sigma.double()  # σ_t

        def rows(value: Tensor) -> Tensor:
            return expand_rows(value.to(x0.dtype), x0)

        if name == "epsilon":
            return noise
        if name == "sample":
            return x0
        if name == "score":
            return -noise / rows(own)
        if name == "v_prediction":
            return rows(alpha) * noise - rows(own) * x0
        raise NotImplementedError(f"{type(self).__name__}.target does not handle {name!r}")


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

    @classmethod
    def ddpm(cls, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> "VP":
        """Ho, Jain and Abbeel's: β from ``beta_min`` to ``beta_max`` in equal increments.

        Raises:
            ValueError: fewer than two steps, or variances that are not in (0, 1) and increasing.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"VP.ddpm takes steps >= 2, got {steps!r}")
        _ordered("VP.ddpm's beta", beta_min, beta_max, 0.0, 1.0)
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

    def level(self, time: float | Tensor) -> Tensor:
        """√(cos² θ₀ tan² θ − sin² θ₀)."""
        t = torch.as_tensor(time, dtype=torch.float64) / self.time_scale
        angle = 0.5 * math.pi * (t + self.offset) / (1 + self.offset)
        return ((math.cos(self._start) * angle.tan()) ** 2 - math.sin(self._start) ** 2).sqrt()


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


_NAMED = {"ddpm": VP.ddpm, "linear": LinearVP, "cosine": Cosine, "ve": VE, "flow": FlowMatching, "edm": EDM}


def named(schedule: str) -> Schedule:
    """The schedule of a name, with its usual numbers: ddpm, linear, cosine, ve, flow or edm.

    Raises:
        ValueError: another name.

    Example:
        >>> named("ve")
        VE(sigma_min=0.002, sigma_max=80.0, conditioning='sigma')
    """
    if schedule not in _NAMED:
        raise ValueError(f"schedules by name are {sorted(_NAMED)}, got {schedule!r}; or pass a Schedule")
    return _NAMED[schedule]()
