r"""Variational autoencoders with one level of latents.

.. math::
    p(x, z) = p(x \mid z)\, N(z; 0, I), \qquad q(z \mid x) = N(\mu(x), \mathrm{diag}\, s(x)^2);

see :mod:`boltzmix.models.latent_model` for the joint, the bounds and the loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.variable import Variable
from boltzmix.models.latent_model import Core, Inferred, LatentVariableModel, repeated
from boltzmix.models.normal import kl_normal, log_normal
from boltzmix.models.observation import (
    BernoulliLikelihood,
    GaussianLikelihood,
    as_input,
    checked,
    halves,
    make_likelihood,
)


class VAECore(Core):
    """Encoder, decoder, likelihood and prior of a VAE with one level."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_shape: tuple[int, ...],
        likelihood: GaussianLikelihood | BernoulliLikelihood,
    ) -> None:
        """Keep the networks."""
        super().__init__()
        self.encoder, self.decoder, self.latent_shape, self.likelihood = encoder, decoder, latent_shape, likelihood
        self.prior = Gaussian(torch.zeros(latent_shape), 1.0)

    def encode(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x)."""
        return halves(self.encoder(as_input(x, self), label), self.latent_shape, "the encoder")

    def decode(self, z: Any, label: Tensor | None) -> Tensor:
        """The decoder's output."""
        return checked(self.decoder(z, label), len(z), self.likelihood.variable.shape)

    def infer(self, x: Tensor, label: Tensor | None, noise: Any) -> Inferred:
        """One pass of the encoder for all draws."""
        mean, log_std = self.encode(x, label)
        z = (mean + log_std.exp() * noise).flatten(0, 1)
        log_q = log_normal(z, repeated(mean, len(noise)), repeated(log_std, len(noise)))
        return Inferred(z, log_q, repeated(kl_normal(mean, log_std), len(noise))[None])

    def log_q(self, z: Any, x: Tensor, label: Tensor | None) -> Tensor:
        """log q(z|x)."""
        return log_normal(z, *self.encode(x, label))


class VAE(LatentVariableModel):
    r"""A variational autoencoder as a normalised term over {"x", "z"}, with z ~ N(0, I).

    :math:`E(x, z) = -\log p(x|z) - \log p(z)`. With ``num_classes`` it is p(x, z|c) = p(x|z, c) p(z): encoder and
    decoder know the label, and training hides it at random, so that the same network is unconditional.

    Args:
        encoder: ``net(x, label)`` to 2 · L numbers per row: mean and log standard deviation of q(z|x).
        decoder: ``net(z, label)`` to ``(N, *event_shape)``: the mean of x, or the logits of binary x.
        event_shape: shape of x.
        latent_shape: shape of z, with L numbers.
        likelihood: ``"gaussian"`` for real x, or ``"bernoulli"`` for integer x in {0, 1}.
        std: standard deviation of p(x|z), where training starts; Gaussian only.
        noise: ``"scalar"`` learns one standard deviation, ``"diagonal"`` one per dimension, ``"fixed"`` none.
        beta: weight of the KL in the loss (β-VAE); energies and bounds are those of the model, whatever it is.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        dropout: probability with which training hides a label.

    Raises:
        ValueError: numbers out of range, networks that were built for others, outputs of another size.

    Sources: Kingma and Welling (2014), *Auto-encoding variational Bayes*; Higgins et al. (2017), *β-VAE*; Sohn, Lee and
    Yan (2015), *Learning structured output representation using deep conditional generative models*.

    Example:
        >>> from boltzmix.models.nets import Dense
        >>> vae = VAE(Dense(3, 4, hidden=8), Dense(2, 3, hidden=8), (3,), (2,))
        >>> draw = vae.sample(5)
        >>> draw["x"].shape, draw["z"].shape, vae.energy(draw).shape, vae.iwae(draw["x"], k=4).shape
        (torch.Size([5, 3]), torch.Size([5, 2]), torch.Size([5]), torch.Size([5]))
    """

    core: VAECore

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        event_shape: Sequence[int],
        latent_shape: Sequence[int],
        *,
        likelihood: str = "gaussian",
        std: float = 1.0,
        noise: str = "scalar",
        beta: float = 1.0,
        num_classes: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        """Check the numbers and wrap the networks."""
        super().__init__()
        latent = Variable(tuple(latent_shape))
        core = VAECore(encoder, decoder, latent.shape, make_likelihood(likelihood, event_shape, std, noise))
        self._take(core, latent, beta, (num_classes, dropout), (encoder, decoder))

    @property
    def prior(self) -> Gaussian:
        """N(0, I) over z, one object for all views, so that it merges and cancels in formulas."""
        return self.core.prior

    def encode(self, x: Tensor) -> Independent:
        """q(z|x), a torch distribution with a batch of N."""
        n = self._check_data(x)
        mean, log_std = self.core.encode(x, self._label_rows(n, x.device))
        return Independent(Normal(mean, log_std.exp()), len(self.core.latent_shape))

    def aggregate(self, x: Tensor) -> GaussianMixture:
        r""":math:`\frac1N \sum_i q(z|x_i)`: the aggregate posterior of N data, a mixture, exact at every noise level.

        Where it differs from the prior, ``vae.latent(f) * vae.aggregate(x) / vae.prior`` keeps z to what the decoder
        was trained on. A z of several axes is refused: mixtures are over vectors.
        """
        if len(self.core.latent_shape) != 1:
            raise ValueError(f"aggregate() needs latents of shape (L,), this model has {self.core.latent_shape}")
        with torch.no_grad():
            q: Any = self.encode(x).base_dist
        return GaussianMixture(q.loc, q.scale**2)

    def _log_prior(self, z: Any, label: Tensor | None) -> Tensor:
        return log_normal(z, 0.0, 0.0)
