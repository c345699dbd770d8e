r"""A VAE with two levels of latents, inferred from the top down.

.. math::
    p(x, z_1, z_2) &= p(z_2)\, p(z_1 \mid z_2)\, p(x \mid z_1[, z_2]),
    \qquad q(z_1, z_2 \mid x) = q(z_2 \mid x)\, q(z_1 \mid x, z_2), \\
    \mathrm{ELBO}(x) &= E_q \big[\log p(x|z_1, z_2) - KL(q(z_1|x, z_2) \| p(z_1|z_2))\big] - KL(q(z_2|x) \| p(z_2)).

The proposal follows the order of the prior, so that both KLs are those of Gaussians, in closed form.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from boltzmix.compose.term import Normalized, Term
from boltzmix.compose.variable import State, Variable, check_state
from boltzmix.models.latent import free_conditions
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


class HierarchicalCore(Core):
    """The networks of the two levels and the likelihood."""

    def __init__(
        self,
        nets: dict[str, nn.Module],
        latents: tuple[int, int],
        skip: bool,
        likelihood: GaussianLikelihood | BernoulliLikelihood,
    ) -> None:
        """Keep the networks."""
        super().__init__()
        self.encoder, self.top, self.bottom, self.middle, self.decoder = nets.values()
        self.sizes, self.skip, self.likelihood = latents, skip, likelihood

    def decode(self, z: Any, label: Tensor | None) -> Tensor:
        """The decoder's output."""
        seen = torch.cat([z["z1"], z["z2"]], 1) if self.skip else z["z1"]
        return checked(self.decoder(seen, label), len(seen), self.likelihood.variable.shape)

    def below(self, z2: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of p(z1|z2)."""
        return halves(self.middle(z2, label), (self.sizes[0],), "the middle network")

    def features(self, x: Tensor, label: Tensor | None) -> Tensor:
        """What both levels of q read of x, ``(N, F)``."""
        return self.encoder(as_input(x, self), label).flatten(1)

    def q2(self, features: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z2|x)."""
        return halves(self.top(features, label), (self.sizes[1],), "the top network")

    def q1(self, features: Tensor, z2: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z1|x, z2)."""
        return halves(self.bottom(torch.cat([features, z2], 1), label), (self.sizes[0],), "the bottom network")

    def infer(self, x: Tensor, label: Tensor | None, noise: Any) -> Inferred:
        """From the top down; x is read once for all draws."""
        count = len(noise["z1"])
        features = self.features(x, label)
        mean2, log_std2 = self.q2(features, label)
        z2 = (mean2 + log_std2.exp() * noise["z2"]).flatten(0, 1)
        tall = repeated(label, count)
        mean1, log_std1 = self.q1(repeated(features, count), z2, tall)
        z1 = mean1 + log_std1.exp() * noise["z1"].flatten(0, 1)
        log_q = log_normal(z1, mean1, log_std1) + log_normal(z2, repeated(mean2, count), repeated(log_std2, count))
        kl1 = kl_normal(mean1, log_std1, *self.below(z2, tall))
        kl2 = repeated(kl_normal(mean2, log_std2), count)
        return Inferred({"z1": z1, "z2": z2}, log_q, torch.stack([kl1, kl2]))

    def log_q(self, z: Any, x: Tensor, label: Tensor | None) -> Tensor:
        """log q(z2|x) + log q(z1|x, z2)."""
        features = self.features(x, label)
        upper = log_normal(z["z2"], *self.q2(features, label))
        return upper + log_normal(z["z1"], *self.q1(features, z["z2"], label))

    def log_prior(self, z: Any, label: Tensor | None) -> Tensor:
        """log p(z2) + log p(z1|z2)."""
        return log_normal(z["z2"], 0.0, 0.0) + log_normal(z["z1"], *self.below(z["z2"], label))


class HierarchicalVAE(LatentVariableModel):
    r"""A two-level VAE as a normalised term over {"x", "z1", "z2"}, with z2 ~ N(0, I).

    :math:`E(x, z_1, z_2) = -\log p(x|z_1[, z_2]) - \log p(z_1|z_2) - \log p(z_2)`. Every network is called
    ``net(input, label)``; with ``num_classes`` all of them know the label.

    Args:
        encoder: x to features ``(N, F)``, which both levels of q read.
        top: features to 2 · L2 numbers: q(z2|x).
        bottom: features and z2, ``(N, F + L2)``, to 2 · L1 numbers: q(z1|x, z2).
        middle: z2 to 2 · L1 numbers: p(z1|z2).
        decoder: z1 to ``(N, *event_shape)``; with ``skip`` it reads z1 and z2, ``(N, L1 + L2)``.
        event_shape: shape of x.
        latents: sizes (L1, L2).
        skip: whether p(x|z1, z2) sees both levels.
        likelihood, std, noise, beta, num_classes, dropout: as for :class:`boltzmix.models.vae.VAE`; β weighs the KL of
            both levels.

    Raises:
        ValueError: numbers out of range, networks that were built for others, outputs of another size.

    Source: Sønderby, Raiko, Maaløe, Sønderby and Winther (2016), *Ladder variational autoencoders*.

    Example:
        >>> from boltzmix.models.nets import Dense
        >>> nets = {"encoder": Dense(3, 8), "top": Dense(8, 2), "bottom": Dense(9, 4), "middle": Dense(1, 4)}
        >>> vae = HierarchicalVAE(**nets, decoder=Dense(2, 3), event_shape=(3,), latents=(2, 1))
        >>> {name: tuple(t.shape) for name, t in vae.sample(5).items()}
        {'x': (5, 3), 'z1': (5, 2), 'z2': (5, 1)}
    """

    core: HierarchicalCore

    def __init__(
        self,
        encoder: nn.Module,
        top: nn.Module,
        bottom: nn.Module,
        middle: nn.Module,
        decoder: nn.Module,
        event_shape: Sequence[int],
        latents: Sequence[int],
        *,
        skip: bool = False,
        likelihood: str = "gaussian",
        std: float = 1.0,
        noise: str = "scalar",
        beta: float = 1.0,
        num_classes: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        """Check the numbers and wrap the networks."""
        super().__init__()
        if len(latents) != 2:
            raise ValueError(f"latents are the two sizes (L1, L2), got {tuple(latents)}")
        variables = {"z1": Variable((latents[0],)), "z2": Variable((latents[1],))}
        nets = {"encoder": encoder, "top": top, "bottom": bottom, "middle": middle, "decoder": decoder}
        made = make_likelihood(likelihood, event_shape, std, noise)
        core = HierarchicalCore(nets, (latents[0], latents[1]), bool(skip), made)
        self._take(core, variables, beta, (num_classes, dropout), tuple(nets.values()))

    @property
    def prior(self) -> "HierarchicalPrior":
        """p(z2) p(z1|z2) over {"z1", "z2"}; equal for equal labels, so that it merges and cancels in formulas."""
        return HierarchicalPrior(self)

    def encode(self, x: Tensor, z2: Tensor | None = None) -> Independent:
        """q(z2|x), or q(z1|x, z2) where z2 ``(N, L2)`` is given; a torch distribution with a batch of N."""
        n = self._check_data(x)
        label = self._label_rows(n, x.device)
        features = self.core.features(x, label)
        if z2 is None:
            mean, log_std = self.core.q2(features, label)
        else:
            if check_state(z2, Variable((self.core.sizes[1],)), f"{self.name()}.encode") != n:
                raise ValueError(f"z2 has a row for each x, got {len(z2)} for {n}")
            mean, log_std = self.core.q1(features, z2, label)
        return Independent(Normal(mean, log_std.exp()), 1)

    def _log_prior(self, z: Any, label: Tensor | None) -> Tensor:
        return self.core.log_prior(z, label)


class HierarchicalPrior(Normalized):
    """p(z2) p(z1|z2) of a model, a term over {"z1", "z2"}; made by :attr:`HierarchicalVAE.prior`."""

    samplable = True

    def __init__(self, model: HierarchicalVAE) -> None:
        """Share the model's network."""
        super().__init__()
        self.model = model
        self.variables = model.latent_variables
        self.conditions = free_conditions(model)

    def key(self) -> Hashable:
        """The network and the frozen label."""
        return ("hierarchical prior", self.model.key())

    def _given(self, **condition: object) -> Term:
        return HierarchicalPrior(self.model.given(**condition))  # pyright: ignore[reportArgumentType]

    def _rows(self) -> int:
        return 1

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self.model._match_state(x)
        return -self.model._log_prior(x, self.model._label_rows(len(x["z1"]), x["z1"].device))

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        with torch.no_grad():
            noise: Any = self.model._noise(1, n, generator)
            z2 = noise["z2"][0]
            mean, log_std = self.model.core.below(z2, self.model._label_rows(n, z2.device))
            return {"z1": mean + log_std.exp() * noise["z1"][0], "z2": z2}
