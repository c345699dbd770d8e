r"""Energy diffusion: a network that knows the energy of noised data at every level, its score by autograd.

.. math:: E(x; \sigma) = \frac{\|x\|^2}{2 s^2} + \frac{D}{2}\log(2\pi s^2)
          + \frac{\sigma_d\, r}{\sigma}\, g(x/s, \tfrac14\ln\sigma), \qquad s^2 = \sigma^2 + \sigma_d^2

Its score is that of :mod:`boltzmix.models.denoiser` with :math:`F = -\nabla g`, so the implied denoiser has exactly
Karras et al.'s coefficients. Energies are what Metropolis steps and importance weights need (Du et al., 2023).

**Two regressions.** Denoising score matching fixes ∇E at each level and says nothing about E between regions that hold
data, nor about E between levels, so mode masses drift. The noise level's own score is known in the same way:
:math:`\partial_{\ln\sigma} \log p(x;\sigma) = E[\,\|\varepsilon\|^2 - D \mid x\,]`, an unbiased regression for the
energy's derivative in σ (Guth, Kadkhodaie and Simoncelli, 2025; Yu, Klami, Hyvärinen, Korba and Chehab, 2025) that ties
all levels to the largest, where the density is one Gaussian. ``level_weight`` is its weight. A model trained with it
has E = −log p up to what the fit misses, the same constant at every level and for every label.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated
from boltzmix.compose.variable import expand_rows
from boltzmix.models.denoiser import Denoiser, scaled


class EnergyDiffusion(Denoiser):
    r"""Diffusion with a scalar energy (see the module's page for the equation).

    Args:
        net: as for :class:`Denoiser`; its output is the scalar g, ``(N, 1)``, or f shaped like x, and then
            ``g = ⟨x_in, f(x_in)⟩``.
        event_shape: shape of one draw.
        readout: ``"scalar"`` or ``"inner"``; None takes what the network says (``net.scalar``).
        level_weight: weight of the regression on ∂E/∂ ln σ; 0 trains by denoising score matching alone.
        calibrated: whether the energy's constant has been found to mean −log p, so that log Z may be reported.
        options: the further arguments of :class:`~boltzmix.models.denoiser.Denoiser`.

    Source: Y. Du et al. (2023), Reduce, reuse, recycle: compositional generation with energy-based diffusion models and
    MCMC. F. Guth, Z. Kadkhodaie, E. P. Simoncelli (2025), Learning normalized image densities via dual score matching.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import MLP
        >>> p = EnergyDiffusion(MLP(2, hidden=8, out=1), (2,))
        >>> energy, score = p.energy_and_score(torch.zeros(5, 2), 0.5)
        >>> energy.shape, score.shape
        (torch.Size([5]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        readout: Literal["scalar", "inner"] | None = None,
        level_weight: float = 0.0,
        calibrated: bool = False,
        **options: Any,
    ) -> None:
        """Check the arguments and wrap the network."""
        super().__init__(net, event_shape, **options)
        if readout not in (None, "scalar", "inner"):
            raise ValueError(f"readout is 'scalar', 'inner' or None, got {readout!r}")
        if not 0 <= level_weight < math.inf:
            raise ValueError(f"level_weight is a number >= 0, got {level_weight}")
        self.readout = readout or ("scalar" if getattr(net, "scalar", False) else "inner")
        self.level_weight = float(level_weight)
        self.calibrated = bool(calibrated)

    def _potential(self, x_in: Tensor, out: Tensor) -> Tensor:
        """g, shape ``(rows,)``, from the network's input and output."""
        if self.readout == "scalar":
            if out.numel() != x_in.shape[0]:
                raise ValueError(
                    f"the network of an energy returns (N, 1), got {tuple(out.shape)} for N = {x_in.shape[0]}; "
                    "build it with out=1, or pass readout='inner' for a network shaped like x"
                )
            return out.reshape(-1)
        if out.shape != x_in.shape:
            raise ValueError(
                f"readout='inner' wants a network shaped like x, {tuple(x_in.shape)}; got {tuple(out.shape)}"
            )
        return (x_in * out).flatten(1).sum(1)

    def _base_energy(self, centred: Tensor, spread: Tensor) -> Tensor:
        """−log N(x; loc, s²), shape ``(N,)``."""
        dim = math.prod(self.event_shape)
        return 0.5 * (centred.flatten(1).square().sum(1) / spread**2 + dim * (2 * math.pi * spread**2).log())

    def _evaluate_views(
        self, views: Sequence[Denoiser], x: Tensor, sigma: Tensor | None, energy: bool, score: bool
    ) -> list[Evaluated]:
        level, k = self._level(x, sigma), len(views)
        trained = any(p.requires_grad for view in views for p in view.core.parameters())
        keep = torch.is_grad_enabled() and (x.requires_grad or trained)
        coordinates = self._coordinates(views, x, level)
        energies: list[Tensor | None] = [None] * k
        scores: list[Tensor | None] = [None] * k
        if not score:
            tall = scaled(coordinates, x)
            rows = self._potential(tall, self._network(views, tall, level))
        else:
            with torch.enable_grad():
                # Rows of one tall leaf: the k gradients come out of one backward, already apart.
                tall = scaled(coordinates, x)
                if not tall.requires_grad:
                    tall.requires_grad_()
                rows = self._potential(tall, self._network(views, tall, level))
                (slope,) = torch.autograd.grad(rows.sum(), tall, create_graph=keep)
            rows = rows if keep else rows.detach()
            base: dict[int, tuple[Tensor, Tensor]] = {}
            for i, (c, part) in enumerate(zip(coordinates, slope.chunk(k), strict=True)):
                if id(c) not in base:
                    base[id(c)] = (-c.centred / expand_rows(c.spread, x) ** 2, -expand_rows(c.gain / c.spread, x))
                scores[i] = torch.addcmul(*base[id(c)], part)
        if energy:
            gaussian = {id(c): self._base_energy(c.centred, c.spread) for c in coordinates}
            energies = [gaussian[id(c)] + c.gain * part for c, part in zip(coordinates, rows.chunk(k), strict=True)]
        return list(zip(energies, scores, strict=True))

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._evaluate_views([self], x, sigma, True, False)[0][0]  # pyright: ignore[reportReturnType]

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        return self._evaluate_views([self], x, sigma, True, True)[0]  # pyright: ignore[reportReturnType]

    def _loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        core, dim = self.core, math.prod(self.event_shape)
        level = expand_rows(sigma, x0)
        x = x0 + level * noise
        spread, gain = core.spread(sigma), core.gain(sigma)
        with torch.enable_grad():
            x_in = (x / expand_rows(spread, x)).requires_grad_()
            c_noise = (sigma.log() / 4).requires_grad_()
            g = self._potential(x_in, core.net(x_in, c_noise, label))
            slope, slope_c = torch.autograd.grad(g.sum(), (x_in, c_noise), create_graph=True)
        reduced = -slope * expand_rows(gain * sigma / core.sigma_data, x)
        loss = (reduced - self._target(x0, noise, sigma)).square().flatten(1).mean()
        if self.level_weight:
            # d/d ln σ at fixed x: of the Gaussian base, of the factor in front of g, of g's two inputs.
            share = (sigma / spread) ** 2
            base = share * (dim - x_in.detach().square().flatten(1).sum(1))
            decay = (gain * sigma / core.sigma_data) ** 2
            inner = (slope * x_in.detach()).flatten(1).sum(1)
            found = base + gain * (0.25 * slope_c - decay * g - share * inner)
            target = dim - noise.square().flatten(1).sum(1)
            loss = loss + self.level_weight * ((found - target).square() / (2 * dim)).mean()
        return loss
