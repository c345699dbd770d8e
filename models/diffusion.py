"""Diffusion models: a network that knows the score of noised data, and no energy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.compose.term import Evaluated
from boltzmix.compose.variable import expand_rows
from boltzmix.models.denoiser import Denoiser, tile


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
        core, level = self.core, self._level(x, sigma)
        spread, gain = expand_rows(core.spread(level), x), expand_rows(core.gain(level), x)
        centred = x - core.loc
        labels = [view._label_rows(x.shape[0], x.device) for view in views]
        out = core(tile(centred / spread, len(views)), level, labels)
        base = -centred / spread**2
        return [(None, torch.addcmul(base, gain / spread, rows)) for rows in out.chunk(len(views))]

    def _loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        core = self.core
        level = expand_rows(sigma, x0)
        x = x0 + level * noise
        out = core(x / core.spread(level), sigma, [label])
        reduced = out * (core.gain(level) * level / core.sigma_data)
        return (reduced - self._target(x0, noise, sigma)).square().flatten(1).mean()
