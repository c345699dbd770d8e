"""Diffusion models: a network that knows the score of noised data, and no energy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.compose.term import Evaluated
from boltzmix.compose.variable import expand_rows
from boltzmix.models.denoiser import Denoiser, scaled


class Diffusion(Denoiser):
    r"""Score-based diffusion.

    .. math:: \nabla\log p(x;\sigma) = -\frac{x}{s^2} + \frac{\sigma_d r}{\sigma s} F(x/s, \tfrac14\ln\sigma)

    The network's output F has the shape of x. Arguments are those of :class:`~boltzmix.models.denoiser.Denoiser`.

    Raises:
        ValueError: a noise level outside ``sigma_range``, a label out of range.

    Source: T. Karras, M. Aittala, T. Aila, S. Laine (2022), Elucidating the design space of diffusion-based
    generative models. Conditioning by dropout: J. Ho, T. Salimans (2022), Classifier-free diffusion guidance.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import MLP
        >>> p = Diffusion(MLP(2, hidden=8, num_classes=3), (2,), num_classes=3)
        >>> p.given(label=1).score(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    has_energy = False

    def _evaluate_views(
        self, views: Sequence[Denoiser], x: Tensor, sigma: Tensor | None, energy: bool, score: bool
    ) -> list[Evaluated]:
        if not score:
            return [(None, None)] * len(views)
        level = self._level(x, sigma)
        coordinates = self._coordinates(views, x, level)
        out = self._network(views, scaled(coordinates, x), level)
        bases: dict[int, Tensor] = {}
        scores = []
        for c, rows in zip(coordinates, out.chunk(len(views)), strict=True):
            spread = expand_rows(c.spread, x)
            if id(c) not in bases:
                bases[id(c)] = -c.centred / spread**2
            scores.append((None, torch.addcmul(bases[id(c)], expand_rows(c.gain, x) / spread, rows)))
        return scores

    def _loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        core = self.core
        level = expand_rows(sigma, x0)
        x = x0 + level * noise
        out = core(x / core.spread(level), sigma, [label])
        reduced = out * (core.gain(level) * level / core.sigma_data)
        return (reduced - self._target(x0, noise, sigma)).square().flatten(1).mean()
