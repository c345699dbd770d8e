r"""One-dimensional conditionals p(x_t | θ) whose parameters θ a network puts out: densities and exact draws.

*Categorical*: K logits. *Logistic mixture*: M weights, locations and scales,

.. math:: p(u) = \sum_m \pi_m f\Big(\frac{u - \mu_m}{s_m}\Big) \frac1{s_m}, \qquad f = F(1 - F),\; F(z) = 1/(1+e^{-z}),

truncated to an interval, or with its mass collected in K bins. Everything is written in log σ(±z), so that the far
tails keep their digits: the mass between z = a and z = b is :math:`\log(F(b) - F(a)) = \log F(b) + \log F(-a)
+ \log(1 - e^{a - b})`.

Source: T. Salimans, A. Karpathy, X. Chen, D. P. Kingma (2017), PixelCNN++.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from boltzmix.compose.errors import NonFinite


class Conditional:
    """A distribution of one number given the network's P outputs; values are ``(…)``, parameters ``(…, P)``."""

    def check(self, outputs: int | None) -> None:
        """Refuse a network with another number of outputs per variable (None: unknown)."""
        raise NotImplementedError

    def inputs(self, values: Tensor) -> Tensor:
        """What the network sees of the values."""
        return values

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Log-density, shaped like the values."""
        raise NotImplementedError

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """One exact draw for each row of parameters ``(N, P)``."""
        raise NotImplementedError


class Categorical(Conditional):
    """K levels with a logit each.

    Args:
        levels: K.
        forbidden: a level of probability zero (an id for padding), or None.
    """

    def __init__(self, levels: int, forbidden: int | None = None) -> None:
        """Remember both."""
        self.levels, self.forbidden = levels, forbidden

    def check(self, outputs: int | None) -> None:
        """K outputs are wanted."""
        if outputs not in (None, self.levels):
            raise ValueError(f"{self.levels} levels need a network with outputs={self.levels}, got outputs={outputs}")

    def _log_table(self, parameters: Tensor) -> Tensor:
        if self.forbidden is not None:
            out = torch.arange(self.levels, device=parameters.device) == self.forbidden
            parameters = parameters.masked_fill(out, -torch.inf)
        return parameters.log_softmax(-1)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Log-probabilities of the values."""
        return self._log_table(parameters).gather(-1, values[..., None])[..., 0]

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """One level for each row."""
        return _choose(self._log_table(parameters), generator)


class LogisticMixture(Conditional):
    r"""A mixture of M logistics for real x, in the coordinate :math:`u = (x - loc) / scale`.

    The 3M outputs are, M each: logits of the weights; locations, to which the fixed M points between −1 and 1 are
    added, since components that start equal would stay equal; raw scales r with
    :math:`\log s = l + \mathrm{softplus}(r - \log M - l)`, bounded below by l = ``floor``.

    Args:
        loc, scale: the data's centre and spread.
        interval: ends (low, high) in the data's units; every component is truncated to them. None for all reals.
        floor: smallest log s.
    """

    def __init__(
        self,
        loc: float = 0.0,
        scale: float = 1.0,
        interval: tuple[float, float] | None = None,
        floor: float = -7.0,
    ) -> None:
        """Remember the coordinates."""
        self.loc, self.scale, self.interval, self.floor = loc, scale, interval, floor

    def check(self, outputs: int | None) -> None:
        """A multiple of three is wanted."""
        if outputs is not None and (outputs < 3 or outputs % 3):
            raise ValueError(
                f"a mixture of M logistics needs a network with outputs=3 * M (weights, locations, scales), got"
                f" {outputs}"
            )

    def inputs(self, values: Tensor) -> Tensor:
        """The values in units of the data's spread."""
        return (values - self.loc) / self.scale

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, locations and log-scales, ``(…, M)`` each."""
        logits, shift, raw = parameters.unflatten(-1, (3, -1)).unbind(-2)
        count = logits.shape[-1]
        points = (2 * torch.arange(count, dtype=shift.dtype, device=shift.device) + 1) / count - 1
        # softplus(r) = −log σ(−r), which torch's softplus only approximates for large r
        log_scale = self.floor - logsigmoid(self.floor + math.log(count) - raw)
        return logits.log_softmax(-1), shift + points, log_scale

    def _ends(self) -> tuple[float, float]:
        assert self.interval is not None
        low, high = ((end - self.loc) / self.scale for end in self.interval)
        return low, high

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Log-density of the values, in their own units; −inf outside the interval."""
        log_weights, location, log_scale = self._split(parameters)
        z = (self.inputs(values)[..., None] - location) / log_scale.exp()
        logs = logsigmoid(z) + logsigmoid(-z) - log_scale
        if self.interval is not None:
            low, high = ((end - location) / log_scale.exp() for end in self._ends())
            logs = logs - log_mass(low, high)
        total = (log_weights + logs).logsumexp(-1) - math.log(self.scale)
        if self.interval is None:
            return total
        return torch.where((values >= self.interval[0]) & (values <= self.interval[1]), total, -torch.inf)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """A component, then a logistic by the inverse of its distribution function."""
        log_weights, location, log_scale = self._split(parameters)
        chosen = _choose(log_weights, generator)[:, None]
        location, spread = location.gather(1, chosen)[:, 0], log_scale.gather(1, chosen)[:, 0].exp()
        # The log of the odds of a uniform number, from two exponential ones: neither end can be hit.
        first, second = (torch.empty_like(location).exponential_(generator=generator) for _ in range(2))
        log_odds = first.log() - second.log()
        if self.interval is not None:
            low, high = ((end - location) / spread for end in self._ends())
            log_u, log_v = logsigmoid(log_odds), logsigmoid(-log_odds)
            # F = (1 − u) F(low) + u F(high), and the same for 1 − F: each in logs.
            below = torch.logaddexp(log_v + logsigmoid(low), log_u + logsigmoid(high))
            above = torch.logaddexp(log_v + logsigmoid(-low), log_u + logsigmoid(-high))
            log_odds = below - above
        x = self.loc + self.scale * (location + spread * log_odds)
        # Rounding alone can leave the interval, by the last digit.
        return x if self.interval is None else x.clamp(*self.interval)


class DiscretisedLogistic(LogisticMixture):
    r"""A mixture of logistics whose mass is collected in K bins: ordered levels such as pixel values.

    Level k lies at :math:`u = 2k/(K-1) - 1` and collects what is within half a step; the first and the last level
    collect the tails.

    Args:
        levels: K.
        floor: as in :class:`LogisticMixture`.
    """

    def __init__(self, levels: int, floor: float = -7.0) -> None:
        """Remember both."""
        super().__init__(floor=floor)
        self.levels = levels

    def inputs(self, values: Tensor) -> Tensor:
        """The levels themselves: the network embeds them."""
        return values

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Log-probabilities of the levels."""
        log_weights, location, log_scale = self._split(parameters)
        step = 2 / max(self.levels - 1, 1)
        u = (values.to(location) * step - 1)[..., None]
        low, high = ((u + side * step / 2 - location) / log_scale.exp() for side in (-1, 1))
        first, last = (values == 0)[..., None], (values == self.levels - 1)[..., None]
        # log(F(high) − F(low)) with F(low) = 0 for the first level and F(high) = 1 for the last.
        logs = torch.where(last, 0.0, logsigmoid(high)) + torch.where(first, 0.0, logsigmoid(-low))
        logs = logs + torch.where(first | last, 0.0, log_gap(low, high))
        return (log_weights + logs).logsumexp(-1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """One level for each row, from the table of all K."""
        count = parameters.shape[0]
        every = torch.arange(self.levels, device=parameters.device).expand(count, -1)
        return _choose(self.log_prob(parameters[:, None].expand(-1, self.levels, -1), every), generator)


def conditional_of(
    levels: int | None,
    head: str | None,
    loc: float,
    scale: float,
    interval: Sequence[float] | None,
    forbidden: int | None,
) -> Conditional:
    """The conditional that a model's settings describe.

    Raises:
        ValueError: settings out of range, or of another kind of variable.
    """
    wanted = ("logistic",) if levels is None else ("categorical", "logistic")
    if head is not None and head not in wanted:
        raise ValueError(f"head is one of {', '.join(wanted)} here, got {head!r}")
    if levels is not None:
        if (loc, scale, interval) != (0.0, 1.0, None):
            raise ValueError("loc, scale and interval are for continuous=True; levels have none")
        return DiscretisedLogistic(levels) if head == "logistic" else Categorical(levels, forbidden)
    if not (math.isfinite(loc) and 0 < scale < math.inf):
        raise ValueError(f"loc is finite, scale finite and > 0, got {loc} and {scale}")
    if interval is None:
        return LogisticMixture(loc, scale)
    ends = tuple(float(end) for end in interval)
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError(f"interval is (low, high) with low < high, both finite, got {ends}")
    return LogisticMixture(loc, scale, ends)


def log_gap(low: Tensor, high: Tensor) -> Tensor:
    """``log(1 − e^{low − high})`` for low < high."""
    return (-torch.expm1(low - high)).log()


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """``log(F(high) − F(low))`` of the standard logistic."""
    return logsigmoid(high) + logsigmoid(-low) + log_gap(low, high)


def _choose(log_table: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index for each row of log-probabilities ``(N, K)``."""
    if bool(torch.isnan(log_table).any()):
        raise NonFinite("the network's outputs are NaN or infinite where a value was to be drawn; look at its weights")
    return torch.multinomial(log_table.exp(), 1, generator=generator)[:, 0]
