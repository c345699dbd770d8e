r"""What score and energy diffusion share: preconditioning in the σ coordinate, labels, one forward for k conditions.

With :math:`x_\sigma = x_0 + \sigma\varepsilon`, centred data of standard deviation :math:`\sigma_d` and
:math:`s = \sqrt{\sigma^2 + \sigma_d^2}`, Karras et al. (2022) write the denoiser as

.. math:: D(x; \sigma) = \frac{\sigma_d^2}{s^2}\, x + \frac{\sigma \sigma_d}{s}\, F(x / s, \tfrac14 \ln\sigma),

so that both input and regression target of F have unit variance at every σ. The score that follows,

.. math:: \frac{D - x}{\sigma^2} = -\frac{x}{s^2} + \frac{\sigma_d}{\sigma s}\, F,

is written without the subtraction, which would lose 1.6 % in float32 at σ = 0.002.

Data that fill their space have a smallest width :math:`\sigma_0`, below which noise changes nothing and F must vanish
like σ. ``sigma_detail`` is that width: F is multiplied by :math:`r(\sigma) = \sigma/\sqrt{\sigma^2 + \sigma_0^2}`, so
that the network itself need not. With ``sigma_detail=0`` (the default) r = 1 and the form is exactly Karras et al.'s.

Training is denoising score matching with their weight, :math:`\|rF - (\sigma x_0 - \sigma_d^2
\varepsilon)/(\sigma_d s)\|^2` in the units of F, over log-normal σ restricted to ``sigma_range``.
"""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.twins import architecture, stacked, twins_pay
from boltzmix.compose.variable import Variable, expand_rows
from boltzmix.models.description import Description
from boltzmix.models.labels import Batch, Labelled, stacked_labels, tile

if TYPE_CHECKING:
    from boltzmix.compose.gaussian import Gaussian


class Preconditioned(nn.Module):
    """The network with its coordinates: shared, not copied, by every conditional view of one model.

    Args:
        net: called ``net(x, c_noise, label)``.
        event_shape: shape of one draw.
        sigma_data, sigma_detail, loc: as in :class:`Denoiser`.
    """

    loc: Tensor

    def __init__(
        self, net: nn.Module, event_shape: tuple[int, ...], sigma_data: float, sigma_detail: float, loc: float | Tensor
    ) -> None:
        """Keep the network and the centre of the data."""
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.sigma_detail = sigma_detail
        parameter = next(net.parameters(), torch.zeros(()))
        centre = torch.as_tensor(loc, dtype=parameter.dtype, device=parameter.device)
        self.register_buffer("loc", centre.expand(event_shape).clone())
        self.architecture = hash((architecture(net), event_shape))

    def spread(self, sigma: Tensor) -> Tensor:
        """``s = √(σ² + σ_d²)``, shaped like sigma."""
        return (sigma**2 + self.sigma_data**2).sqrt()

    def gain(self, sigma: Tensor) -> Tensor:
        """``σ_d r(σ) / σ = σ_d / √(σ² + σ_0²)``, what multiplies an energy network; shaped like sigma."""
        return self.sigma_data / (sigma**2 + self.sigma_detail**2).sqrt()

    def forward(self, tall: Tensor, sigma: Tensor, labels: Sequence[Tensor | None]) -> Tensor:
        """Network output for k label vectors: one forward of k · N rows.

        Args:
            tall: scaled states, N rows for each label vector in turn: ``tile(x / s, k)``.
            sigma: ``()`` or ``(N,)``.
            labels: k of None or ``(N,)``, or ``(N, columns)`` for descriptions.
        """
        k = len(labels)
        n = tall.shape[0] // k
        c_noise = sigma.log() / 4
        c_noise = c_noise.expand(k * n) if c_noise.ndim == 0 else tile(c_noise, k)
        return self.net(tall, c_noise, stacked_labels(labels, n, tall.device))


class Coordinates(NamedTuple):
    """x in the units of one core: centred ``(N, *event)``, and its spread and gain at the level."""

    centred: Tensor
    spread: Tensor
    gain: Tensor


def scaled(coordinates: Sequence[Coordinates], x: Tensor) -> Tensor:
    """The networks' inputs ``centred / spread`` of k views, ``(k · N, *event)``."""
    if all(c is coordinates[0] for c in coordinates):
        return tile(coordinates[0].centred / expand_rows(coordinates[0].spread, x), len(coordinates))
    return torch.cat([c.centred / expand_rows(c.spread, x) for c in coordinates])


class Denoiser(Labelled):
    r"""A noised term with a network inside; base of :class:`Diffusion` and :class:`EnergyDiffusion`.

    Args:
        net: ``net(x, c_noise, label)``, all with N rows; ``label`` is None or long, −1 meaning unconditional.
        event_shape: shape of one draw.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        fields: attributes that :meth:`given` takes in place of a label, as
            :class:`~boltzmix.models.description.Description` takes them; the network is then given rows of numbers.
        together: groups of fields that are given together or not at all.
        sigma_data: standard deviation of the centred data, per coordinate.
        sigma_range: noise levels that the model is trained on and answers for; ``sigma=None`` means the smallest.
        sigma_detail: smallest width in the data below which noise changes nothing, 0 where there is none.
        loc: centre of the data, a number or ``event_shape``, in the user's units.
        noise: mean and standard deviation of ln σ in training; None for uniform over ``sigma_range``.
        dropout: probability with which a label is hidden in training, so that the same network is unconditional.
    """

    path = "noised"
    core: Preconditioned

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        num_classes: int | None = None,
        fields: Mapping[str, Sequence[Any]] | None = None,
        together: Sequence[Sequence[str]] = (),
        sigma_data: float = 0.5,
        sigma_range: tuple[float, float] = (0.002, 80.0),
        sigma_detail: float = 0.0,
        loc: float | Tensor = 0.0,
        noise: tuple[float, float] | None = (-1.2, 1.2),
        dropout: float = 0.1,
    ) -> None:
        """Check the numbers and wrap the network."""
        super().__init__()
        low, high = (float(level) for level in sigma_range)
        if not 0 < low < high < math.inf:
            raise ValueError(f"sigma_range is (low, high) with 0 < low < high < inf, got {tuple(sigma_range)}")
        if not (0 < sigma_data < math.inf and 0 <= sigma_detail < math.inf):
            raise ValueError(f"sigma_data > 0 and sigma_detail >= 0 are wanted, got {sigma_data} and {sigma_detail}")
        if noise is not None and not (math.isfinite(noise[0]) and noise[1] > 0):
            raise ValueError(f"noise is (mean, positive standard deviation) of ln sigma, or None; got {noise}")
        shape = tuple(int(s) for s in event_shape)
        self.variables = Variable(shape)
        self.sigma_range = (low, high)
        description = None if fields is None else Description(fields, together)
        self._take_labels(num_classes, dropout, net, description=description)
        self.noise = None if noise is None else (float(noise[0]), float(noise[1]))
        self.core = Preconditioned(net, shape, float(sigma_data), float(sigma_detail), loc)

    def _group(self) -> Hashable | None:
        return (type(self).__name__, self.core.architecture)

    # ------------------------------------------------------------ evaluation

    def _level(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        self._match(x)
        return torch.tensor(self.sigma_range[0], dtype=x.dtype, device=x.device) if sigma is None else sigma

    def _evaluate_views(
        self, views: Sequence["Denoiser"], x: Tensor, sigma: Tensor | None, energy: bool, score: bool
    ) -> list[Evaluated]:
        """Energies and scores of k views of this network from one forward (and one backward)."""
        raise NotImplementedError

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        views: Any = terms
        cores: dict[int, list[Denoiser]] = {}
        for view in views:
            cores.setdefault(id(view.core), []).append(view)
        trains = torch.is_grad_enabled() and any(p.requires_grad for view in views for p in view.core.parameters())
        if len(cores) == 1 or (len(cores) == len(views) and not trains and twins_pay(len(cores), len(x), x.device)):
            return self._evaluate_views(views, x, sigma, energy, score)
        values = {}
        for members in cores.values():
            found = members[0]._evaluate_views(members, x, sigma, energy, score)
            values.update({id(view): value for view, value in zip(members, found, strict=True)})
        return [values[id(view)] for view in views]

    def _coordinates(self, views: Sequence["Denoiser"], x: Tensor, level: Tensor) -> list[Coordinates]:
        """Centred x, spread and gain of every view; computed once where all share this core."""
        found: dict[int, Coordinates] = {}
        for view in views:
            core = view.core
            if id(core) not in found:
                found[id(core)] = Coordinates(x - core.loc, core.spread(level), core.gain(level))
        return [found[id(view.core)] for view in views]

    def _network(self, views: Sequence["Denoiser"], tall: Tensor, level: Tensor) -> Tensor:
        """The networks' outputs for k · N rows: one forward of one network, or one vmap over k twins."""
        n = tall.shape[0] // len(views)
        labels = [view._label_rows(n, tall.device) for view in views]
        if all(view.core is self.core for view in views):
            return self.core(tall, level, labels)
        k = len(views)
        c_noise = (level.log() / 4).expand(k, n)
        label = stacked_labels(labels, n, tall.device)
        label = None if label is None else label.reshape(k, n, *label.shape[1:])
        out = stacked([view.core.net for view in views])(tall.reshape(k, n, *tall.shape[1:]), c_noise, label)
        return out.flatten(0, 1)

    def _score(self, x: Any, sigma: Any) -> Tensor:
        return self._evaluate_views([self], x, sigma, False, True)[0][1]  # pyright: ignore[reportReturnType]

    def _coarse(self, sigma: Tensor) -> "Gaussian":
        from boltzmix.compose.gaussian import Gaussian

        loc, sigma_data = self.core.loc.expand(self.event_shape), self.core.sigma_data
        level = sigma.to(loc)
        inside = level.clamp(*self.sigma_range)
        view = self
        if self.per_row:  # rows of labels share one start: that of the unconditional model
            view = copy.copy(self)
            view._buffers = {**self._buffers, "labels": None}
        with torch.no_grad():
            score = view._score(loc[None], inside)[0]
        # The Gaussian base of the preconditioning, recentred by one Newton step on the score at the centre.
        return Gaussian(loc + self.core.spread(inside) ** 2 * score, float(level) ** 2 + sigma_data**2)

    # -------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean training loss of a batch, ``x`` or ``(x, label)``; all randomness comes from ``generator``."""
        x0, label = self._training_batch(batch, generator)
        sigma = self._draw_levels(x0.shape[0], generator, x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return self._loss(x0 - self.core.loc, noise, sigma, label)

    def _draw_levels(self, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """Stratified noise levels in random order."""
        offset = torch.rand((), generator=generator, device=like.device, dtype=torch.float64)
        log_sigma = self._log_quantile((torch.arange(n, device=like.device) + offset) / n)
        order = torch.randperm(n, generator=generator, device=like.device)
        return log_sigma[order].exp().to(like.dtype)

    def _log_quantile(self, share: Tensor) -> Tensor:
        """ln σ below which a share of the training levels lies: truncated normal, or uniform, on ``sigma_range``."""
        low, high = (math.log(level) for level in self.sigma_range)
        if self.noise is None:
            return low + (high - low) * share
        (mean, std), (first, last) = self.noise, self._ends()
        return (mean + std * _normal().icdf(first + (last - first) * share)).clamp(low, high)

    def _log_density(self, sigma: Tensor) -> Tensor:
        """Log-density of ln σ in training, float64, shaped like sigma."""
        low, high = (math.log(level) for level in self.sigma_range)
        log_sigma = sigma.double().log()
        if self.noise is None:
            return torch.full_like(log_sigma, -math.log(high - low))
        (mean, std), (first, last) = self.noise, self._ends()
        return _normal().log_prob((log_sigma - mean) / std) - math.log(std * (last - first))

    def _ends(self) -> tuple[float, float]:
        """The shares of the untruncated normal below the ends of ``sigma_range``."""
        assert self.noise is not None
        mean, std = self.noise
        at = [torch.tensor((math.log(e) - mean) / std, dtype=torch.float64) for e in self.sigma_range]
        return _normal().cdf(at[0]).item(), _normal().cdf(at[1]).item()

    def _target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What r F is regressed on, ``(σ x0 − σ_d² ε) / (σ_d s)``."""
        sigma_data = self.core.sigma_data
        level = expand_rows(sigma, x0)
        return (level * x0 - sigma_data**2 * noise) / (sigma_data * self.core.spread(level))

    def _loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Mean loss for centred data x0; the hook of the two families."""
        raise NotImplementedError


def _normal() -> torch.distributions.Normal:
    return torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
