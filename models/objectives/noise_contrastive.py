r"""Noise-contrastive estimation: tell data from noise of known density, and the energy's constant comes with it.

With :math:`\nu` noise draws :math:`x \sim q` for each datum and :math:`h(x) = -E(x) - \log q(x) - \log\nu`,

.. math:: L = E_{p} \operatorname{softplus}(-h) + \nu\, E_{q} \operatorname{softplus}(h),

whose minimum over all functions is :math:`E = -\log p`, constant included: the integral need not be known. Its variance
grows as the noise moves away from the data, and with it the number of draws that an estimate needs.

Where the noise is the model's own base, :math:`E = f - \log q + c` gives :math:`h = -f - c - \log\nu`: the energy is
relative to the noise, written :math:`E = -(H + \log q) + c` with H = −f, and q itself is never evaluated.
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.term import Term
from boltzmix.models.gaussian_base import GaussianBase
from boltzmix.models.objectives.base import Objective


def noise_contrastive(log_ratio_data: Tensor, log_ratio_noise: Tensor, ratio: float = 1.0) -> Tensor:
    r"""Loss of one batch from :math:`\log p_\theta - \log q` at data ``(N,)`` and at noise ``(M,)``.

    .. math:: \frac1N \sum_i \operatorname{softplus}(-(r_i - \log\nu))
              + \frac{\nu}{M} \sum_j \operatorname{softplus}(r_j - \log\nu)

    Args:
        log_ratio_data: r at data.
        log_ratio_noise: r at noise; M = ν N in the usual case.
        ratio: ν.

    Example:
        >>> import torch
        >>> round(float(noise_contrastive(torch.zeros(4), torch.zeros(4))), 4)  # 2 ln 2 where nothing is known
        1.3863
    """
    if not ratio > 0:
        raise ValueError(f"ratio is the number of noise draws for each datum, > 0, got {ratio}")
    softplus = torch.nn.functional.softplus
    shift = math.log(ratio)
    return softplus(shift - log_ratio_data).mean() + ratio * softplus(log_ratio_noise - shift).mean()


class NoiseContrastive(Objective):
    """Noise-contrastive estimation as an objective; the model's constant is learned and the model calibrated.

    Args:
        noise: a normalised term that is sampled exactly, such as a Gaussian or a flow; None takes the model's base.
        ratio: noise draws for each datum.
        learn_noise: also train the noise by maximum likelihood on the data, so that it comes close to them.

    Class labels: a noise draw takes the label of its datum, so that the ratio is that of p(x | label).

    Raises:
        TypeError: noise that is not normalised or not sampled exactly, none at all, or none with parameters to learn.
        ValueError: noise over another shape, a ratio below 1.

    Source: M. Gutmann and A. Hyvärinen (2010), Noise-contrastive estimation: a new estimation principle for
    unnormalized statistical models. A trained noise: R. Gao et al. (2020), Flow contrastive estimation of energy-based
    models (there adversarial, here by maximum likelihood).
    """

    learns_constant = True

    def __init__(self, noise: Term | None = None, ratio: int = 1, *, learn_noise: bool = False) -> None:
        """Check the numbers."""
        super().__init__()
        if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
            raise ValueError(f"ratio is the number of noise draws for each datum, an int >= 1, got {ratio!r}")
        self.noise, self.ratio, self.learn_noise = noise, ratio, bool(learn_noise)

    def attach(self, model: Any) -> None:
        """Check the noise against the model."""
        noise = self._noise(model)
        if not isinstance(noise, Term) or not (noise.normalized and noise.samplable):
            what = "no noise and a model without a base" if noise is None else type(noise).__name__
            raise TypeError(f"noise is a normalised term that is sampled exactly, such as a Gaussian; got {what}")
        if noise.event_shape != model.event_shape:
            raise ValueError(f"the noise is over {noise.event_shape} and the model over {model.event_shape}")
        if self.learn_noise and not any(p.requires_grad for p in noise.parameters()):
            raise TypeError(
                f"learn_noise=True needs noise with parameters and {noise.name()} has none; use a flow, or "
                "GaussianBase(..., learnable=True)"
            )

    def prepare(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> None:
        """Fit a Gaussian noise to the first batch."""
        if isinstance(self.noise, GaussianBase):
            self.noise.fit_moments(x, label)

    def loss(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """NCE's loss, plus the noise's −log q at data where it is learned."""
        noise = self._noise(model)
        wanted = None if label is None else label.repeat(self.ratio)
        with torch.no_grad():
            if isinstance(noise, GaussianBase):
                drawn = noise.draw(self.ratio * len(x), wanted, generator)
            else:
                drawn = noise._sample(self.ratio * len(x), generator)
        both = torch.cat([x, drawn])
        labels = None if label is None else torch.cat([label, wanted])  # pyright: ignore[reportArgumentType, reportCallIssue]
        ratio = self._log_ratio(model, noise, both, labels)
        data, fake = ratio[: len(x)], ratio[len(x) :]
        loss = noise_contrastive(data, fake, self.ratio)
        shift = math.log(self.ratio)
        right = ((data.detach() > shift).float().sum() + (fake.detach() <= shift).float().sum()) / len(both)
        self._measured = {
            "noise_contrastive": loss.detach(),
            "told_apart": right,
            "log_z": model.core.log_z.detach()[-1],
        }
        if self.learn_noise or isinstance(noise, GaussianBase):  # of a flow, not for the sake of a figure
            own = self._energy(noise, x, label)
            nll = own.mean()
            self._measured |= {"noise_nll": nll.detach(), "energy_data": (own - data).detach().mean()}
        if self.learn_noise:
            loss = loss + nll
        return loss

    def _noise(self, model: Any) -> Any:
        return model.core.base if self.noise is None else self.noise

    def _log_ratio(self, model: Any, noise: Term, x: Tensor, label: Tensor | None) -> Tensor:
        """log p_θ − log q; the noise is a constant here, its own training is by likelihood alone."""
        if self.noise is None:
            return -(model.core.tilt(x, label) + model.core.constant(label))
        with torch.no_grad():
            own = self._energy(noise, x, label)
        return own - model.core(x, label)

    def _energy(self, noise: Term, x: Tensor, label: Tensor | None) -> Tensor:
        return noise.row_energy(x, label) if isinstance(noise, GaussianBase) else noise._energy(x, None)
