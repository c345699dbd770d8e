r"""Calibration across noise levels: teach a diffusion's energies what score matching cannot see.

Denoising score matching fixes ∇E at each level. Constants between levels are free, and at small σ so are the masses of
modes that no datum connects. Both are fixed by asking which of two levels a point came from: for
:math:`x \sim p(\cdot; \sigma)` or :math:`x \sim p(\cdot; \sigma')` with equal chances,

.. math:: \log \frac{P(\sigma \mid x)}{P(\sigma' \mid x)} = E(x; \sigma') - E(x; \sigma),

so the logistic loss of that question is least where :math:`E(x; \sigma') - E(x; \sigma)` is the true log-ratio of the
two noised densities, at every x. Ratios of near levels telescope from the data to :math:`\sigma_{max}`, where the
density is nearly a Gaussian of known integral; one more question, x from the model's largest level or from that
Gaussian, ties the top. At the optimum E = −log p at all levels, constants and masses included.

Points of either level are data plus noise, so nothing is sampled from the model.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.term import Term
from boltzmix.models.objectives.noise_contrastive import noise_contrastive


def cross_level_loss(
    term: Term,
    x0: Tensor,
    generator: torch.Generator,
    *,
    gap: float | None = None,
    anchor: float = 1.0,
) -> Tensor:
    r"""Logistic loss of telling σ from σ′ = σ e^{δ} by E(x; σ′) − E(x; σ), and the top level from its Gaussian.

    Args:
        term: a noised term with an energy, and a finite ``sigma_range`` above zero.
        x0: data ``(N, *event)``.
        generator: of levels and noise.
        gap: largest δ; None takes √(2/D), at which neighbours overlap well. δ is uniform up to it.
        anchor: weight of the question at σ_max; 0 leaves one constant free for all levels together.

    Raises:
        MissingEnergy: the term has only a score.
        TypeError: the term is not noised. ValueError: its levels are unbounded.
    """
    low, high = _levels(term)
    n, dim = len(x0), x0[0].numel()
    widest = math.sqrt(2 / dim) if gap is None else gap
    if not 0 < widest <= math.log(high / low):
        raise ValueError(f"gap is a positive difference of ln sigma inside the range, got {widest:g}")
    options: Any = {"generator": generator, "dtype": x0.dtype, "device": x0.device}
    # stratified: the levels of one batch cover the range evenly
    share = (torch.randperm(n, generator=generator, device=x0.device) + torch.rand(n, **options)) / n
    step = widest * (0.1 + 0.9 * torch.rand(n, **options))
    lower = (math.log(low) + share * (math.log(high / low) - step)).exp()
    upper = lower * step.exp()
    from_lower = torch.rand(n, **options) < 0.5
    level = torch.where(from_lower, lower, upper).reshape(-1, *[1] * (x0.ndim - 1))
    x = x0 + level * torch.randn(x0.shape, **options)
    # a rounding error above the range would be refused
    energy = term.energy(torch.cat([x, x]), torch.cat([lower, upper]).clamp(low, high))
    logit = energy[n:] - energy[:n]
    loss = nn.functional.softplus(torch.where(from_lower, -logit, logit)).mean()
    if anchor:
        loss = loss + anchor * _anchor_loss(term, x0, high, options)
    return loss


def _anchor_loss(term: Term, x0: Tensor, high: float, options: dict[str, Any]) -> Tensor:
    """Noise-contrastive estimation of the top level against the Gaussian with the moments of data and noise."""
    mean = x0.mean(0)
    variance = high**2 + (x0 - mean).square().mean()
    top = x0 + high * torch.randn(x0.shape, **options)
    drawn = mean + variance.sqrt() * torch.randn(x0.shape, **options)
    both = torch.cat([top, drawn])
    own = -0.5 * ((both - mean).flatten(1).square().sum(1) / variance + x0[0].numel() * (2 * math.pi * variance).log())
    ratio = -term.energy(both, high) - own
    return noise_contrastive(ratio[: len(x0)], ratio[len(x0) :])


class LevelCalibration(nn.Module):
    """Fine-tuning of an existing energy diffusion across levels, for :func:`boltzmix.models.fit`.

    Args:
        model: an :class:`~boltzmix.models.EnergyDiffusion`, or any trainable noised term with an energy. It is changed
            in place and declared calibrated: the constant of its energy is among what the loss determines.
        weight: of the cross-level loss, beside the model's own.
        gap, anchor: as for :func:`cross_level_loss`.
        own_weight: of the model's own loss, which keeps its scores; 0 leaves it out.

    A batch is ``x`` or ``(x, label)``. Labels share a batch's forward only within a label, so those of a conditional
    model are visited one by one: one forward per label present.

    Sources: B. Rhodes, K. Xu, M. Gutmann (2020), Telescoping density-ratio estimation. C. Ceylan and M. Gutmann (2018),
    Conditional noise-contrastive estimation of unnormalised models.

    Example:
        >>> import torch
        >>> from boltzmix.models import EnergyDiffusion
        >>> from boltzmix.models.nets import MLP
        >>> tuner = LevelCalibration(EnergyDiffusion(MLP(2, hidden=8, out=1), (2,)))
        >>> tuner.loss(torch.randn(16, 2), torch.Generator().manual_seed(0)).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Any,
        *,
        weight: float = 1.0,
        gap: float | None = None,
        anchor: float = 1.0,
        own_weight: float = 1.0,
    ) -> None:
        """Check the model and the numbers."""
        super().__init__()
        _levels(model)
        for name, value in (("weight", weight), ("anchor", anchor), ("own_weight", own_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is a number >= 0, got {value}")
        self.model = model
        self.weight, self.gap, self.anchor, self.own_weight = float(weight), gap, float(anchor), float(own_weight)
        model.calibrated = anchor > 0
        self._measured: dict[str, float] = {}

    def loss(self, batch: Tensor | Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """The model's own loss and the cross-level loss of a batch."""
        x, label = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1] if len(batch) > 1 else None)
        cross = self.weight * self._cross(x, label, generator)
        self._measured = {"cross_level": float(cross.detach())}
        if self.own_weight:
            cross = cross + self.own_weight * self.model.loss(batch, generator)
        return cross

    def metrics(self) -> dict[str, float]:
        """The cross-level part of the last loss."""
        return dict(self._measured)

    def _cross(self, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        options: Any = {"gap": self.gap, "anchor": self.anchor}
        total = cross_level_loss(self.model, x, generator, **options)
        if label is None:
            return total
        parts = []
        for value in label.unique().tolist():
            own = x[label == value]
            if value >= 0 and len(own) > 1:
                part = cross_level_loss(self.model.given(label=value), own, generator, **options)
                parts.append(part * len(own) / len(x))
        return 0.5 * (total + sum(parts)) if parts else total


def _levels(term: Any) -> tuple[float, float]:
    if not isinstance(term, Term):
        raise TypeError(f"calibration across levels takes a noised term, got {type(term).__name__}")
    if not term.has_energy:
        raise MissingEnergy(f"calibration across levels compares energies and {term.name()} has only a score")
    if term.path != "noised":
        raise TypeError(f"calibration across levels needs a noised term, {term.name()} is {term.path}")
    low, high = term.sigma_range
    if not 0 < low < high < math.inf:
        raise ValueError(f"calibration across levels needs a finite sigma_range above 0, got {(low, high)}")
    return low, high
