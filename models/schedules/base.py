"""What a schedule is: the time and the input scale of a network at each σ, and what its output means."""

import math
from typing import ClassVar

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
            prediction: what the network returns; see the table of :mod:`boltzmix.models.schedules`.
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
            prediction: what the network returns; see the table of :mod:`boltzmix.models.schedules`.
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


def ordered(owner: str, low: float, high: float, least: float = 0.0, most: float = math.inf) -> None:
    """Refuse an empty range of a schedule, or one that leaves (least, most)."""
    if not (least < low < high < most):
        raise ValueError(f"{owner} needs {least:g} < minimum < maximum < {most:g}, got {low!r} and {high!r}")
