r"""Models with latent variables: exact joint densities over data and latents, and bounds on the density of the data.

.. math::
    E(x, z) = -\log p(x \mid z) - \log p(z), \qquad p(x) = \int p(x \mid z)\, p(z)\, dz .

The joint is exact, so Metropolis kernels and weights are exact on it. log p(x) is known by bounds alone:

.. math::
    \mathrm{ELBO}(x) &= E_{q(z|x)} \log p(x|z) - KL(q(z|x) \,\|\, p(z)) = \log p(x) - KL(q(z|x) \,\|\, p(z|x)), \\
    \mathrm{IWAE}_k(x) &= E \log \tfrac1k \sum_{i=1}^k \frac{p(x, z_i)}{q(z_i \mid x)}, \quad z_i \sim q(z \mid x).

An estimate of a bound is noisy, and an accept step on noisy energies keeps another density: x enters formulas through
the joint over {"x", "z"}, or through the deterministic bound of :meth:`LatentVariableModel.marginal`.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from boltzmix.compose.product import Product
from boltzmix.compose.term import Evaluated, Normalized, Term, score_from_energy
from boltzmix.compose.variable import State, Variable, Variables, check_state, first_tensor, map_state
from boltzmix.models.labels import Batch, Labelled, stacked_labels, tile
from boltzmix.models.latent import Bound, Decoded, Observed, Proposal
from boltzmix.models.observation import BernoulliLikelihood, GaussianLikelihood

if TYPE_CHECKING:
    from boltzmix.compose.draw import Draw

_ROWS = 1 << 16  # rows of latents that one pass of a bound holds


class Inferred(NamedTuple):
    """Latents of q(z|x): S · N rows, draw by draw, with what bounds need of them."""

    z: State
    log_q: Tensor  # log q(z|x), (S · N,)
    kl: Tensor  # KL(q ‖ p) given the levels above, one row for each level, (levels, S · N)


class Core(nn.Module):
    """Everything learned, shared by the conditional views: networks and likelihood."""

    likelihood: GaussianLikelihood | BernoulliLikelihood

    def decode(self, z: Any, label: Tensor | None) -> Tensor:
        """The decoder's output for latents, ``(rows, *event)``."""
        raise NotImplementedError

    def infer(self, x: Tensor, label: Tensor | None, noise: Any) -> Inferred:
        """Latents z = mean + std · noise of q(z|x) for noise of shape ``(S, N, …)``."""
        raise NotImplementedError

    def log_q(self, z: Any, x: Tensor, label: Tensor | None) -> Tensor:
        """log q(z|x) at given latents, ``(rows,)``."""
        raise NotImplementedError


class LatentVariableModel(Labelled, Normalized):
    """What VAEs with one and with several levels share; a normalised, samplable joint over data and latents.

    A subclass gives ``latent_variables``, ``prior`` and the ``core``; it names its latents in ``variables``.
    """

    path = "static"
    samplable = True
    core: Core
    latent_variables: Variables

    def _take(self, core: Core, latents: Variables, beta: float, classes: tuple[int | None, float], nets: Any) -> None:
        """Keep what the constructor of a family was given."""
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < math.inf:
            raise ValueError(f"beta, the weight of the KL, is a finite number >= 0, got {beta!r}")
        self._take_labels(*classes, *nets)
        own = [p for net in nets for p in net.parameters() if p.is_floating_point()] or [torch.zeros(())]
        if len({(p.dtype, p.device) for p in own}) > 1:
            raise TypeError("the networks of one model share dtype and device; convert one of them with .to(...)")
        for part in core.children():  # likelihood and prior follow the networks
            if part not in nets:
                part.to(own[0].device, own[0].dtype)
        self.core, self.beta, self.latent_variables = core, float(beta), latents
        named = {"z": latents} if isinstance(latents, Variable) else latents
        self.variables = {"x": core.likelihood.variable, **named}
        self._last: dict[str, Tensor] = {}

    @property
    def prior(self) -> Term:
        """p(z), normalised and samplable: what :meth:`latent` starts from."""
        raise NotImplementedError

    # ------------------------------------------------------------ the joint as a term

    def _latents(self, state: Any) -> State:
        """The latents of a state over data and latents, as terms over latents take them."""
        return state["z"] if isinstance(self.latent_variables, Variable) else {n: state[n] for n in self._names()}

    def _names(self) -> list[str]:
        return ["z"] if isinstance(self.latent_variables, Variable) else list(self.latent_variables)

    def _joined(self, x: Tensor, z: State) -> dict[str, Tensor]:
        return {"x": x, "z": z} if isinstance(z, Tensor) else {"x": x, **z}

    def _log_prior(self, z: Any, label: Tensor | None) -> Tensor:
        """log p(z), ``(rows,)``."""
        raise NotImplementedError

    def _log_joint(self, x: Tensor, z: State, label: Tensor | None) -> Tensor:
        """log p(x|z) + log p(z), ``(rows,)``."""
        out = self.core.likelihood.log_prob(x, self.core.decode(z, label))
        return out + self._log_prior(z, label)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self._match_state(x)
        label = self._label_rows(len(x["x"]), x["x"].device)
        return -self._log_joint(x["x"], self._latents(x), label)

    def _group(self) -> Hashable:
        return (type(self).__name__, id(self.core))

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        self._match_state(x)
        k, n = len(terms), len(x["x"])
        views: Any = terms
        device = x["x"].device
        label = stacked_labels([view._label_rows(n, device) for view in views], n, device)
        keep = torch.is_grad_enabled() and self._needs_graph(x)

        def tall(t: Tensor) -> Tensor:
            copied = tile(t, k)
            return copied if keep and copied.requires_grad else copied.detach().requires_grad_(t.is_floating_point())

        with torch.set_grad_enabled(score or torch.is_grad_enabled()):
            state = {name: tall(t) if score else tile(t, k) for name, t in x.items()}
            energies = -self._log_joint(state["x"], self._latents(state), label)
            scores: Any = score_from_energy(energies, state, keep, self) if score else None
        parts = (energies if keep else energies.detach()).chunk(k)
        each = [{name: s.chunk(k)[i] for name, s in scores.items()} if score else None for i in range(k)]
        return [(e if energy else None, s) for e, s in zip(parts, each, strict=True)]

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        with torch.no_grad():
            z = self.prior.sample(n, generator)
            label = self._label_rows(n, first_tensor(z).device)
            return self._joined(self.core.likelihood.draw(self.core.decode(z, label), generator), z)

    # ------------------------------------------------------------------- bounds

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, *, samples: int = 1) -> Tensor:
        """An unbiased estimate of the ELBO, ``(N,)`` in nats: analytic KL, ``samples`` draws of z for each x.

        The bound is that of the model (β = 1), whatever β it was trained with.

        Args:
            x: ``(N, *event)``.
            generator: of the draws; None for torch's own.
            samples: draws of z per row.
        """
        n = self._check_data(x)
        _count(samples, "samples")
        label = self._label_rows(n, x.device)
        total: Any = 0.0
        for noise in self._noises(samples, n, generator):
            reconstruction, kl = self._bound(x, label, noise)
            total = total + (reconstruction - kl.sum(0)).sum(0)
        return total / samples

    def iwae(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        r"""The importance-weighted bound :math:`\log \frac1k \sum_i p(x, z_i) / q(z_i|x)`, ``(N,)`` in nats.

        In expectation it rises with k to log p(x); its exponential is an unbiased estimate of p(x) at every k.
        Source: Burda, Grosse and Salakhutdinov (2016), *Importance weighted autoencoders*.
        """
        n = self._check_data(x)
        _count(k, "k")
        label = self._label_rows(n, x.device)
        return self._log_mean_weight(x, label, list(self._noises(k, n, generator)))

    def marginal(self, k: int, seed: int = 0) -> Bound:
        """A term over x alone: exp of the bound IWAE-k with base noise frozen by ``seed``; see :class:`Bound`."""
        return Bound(self, k, seed)

    def _bound(self, x: Tensor, label: Tensor | None, noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x|z) ``(S, N)`` and the KL of each level ``(levels, S, N)`` for base noise ``(S, N, …)``."""
        count, n = first_tensor(noise).shape[:2]
        found = self.core.infer(x, label, noise)
        out = self.core.decode(found.z, repeated(label, count))
        reconstruction = self.core.likelihood.log_prob(repeated(x, count), out)
        return reconstruction.reshape(count, n), found.kl.reshape(-1, count, n)

    def _log_weights(self, x: Tensor, label: Tensor | None, noise: Any) -> Tensor:
        """log p(x, z) − log q(z|x) for base noise ``(S, N, …)``, ``(S, N)``."""
        count, n = first_tensor(noise).shape[:2]
        found = self.core.infer(x, label, noise)
        joint = self._log_joint(repeated(x, count), found.z, repeated(label, count))
        return (joint - found.log_q).reshape(count, n)

    def _log_mean_weight(self, x: Tensor, label: Tensor | None, noises: Sequence[Any]) -> Tensor:
        logs = torch.cat([self._log_weights(x, label, noise) for noise in noises])
        return logs.logsumexp(0) - math.log(len(logs))

    def _noise(self, count: int, n: int, generator: torch.Generator | None) -> State:
        """Base noise ``(count, n, *latent)`` of every latent variable."""
        like = self._weights()

        def draw(variable: Variable) -> Tensor:
            shape = (count, n, *variable.shape)
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        found = self.latent_variables
        return draw(found) if isinstance(found, Variable) else {name: draw(v) for name, v in found.items()}

    def _noises(self, count: int, n: int, generator: torch.Generator | None) -> Any:
        """The same in parts that bound the memory of one pass."""
        step = max(1, _ROWS // max(n, 1))
        for start in range(0, count, step):
            yield self._noise(min(step, count - start), n, generator)

    # ----------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        r""":math:`-E_q \log p(x|z) + \beta\, KL(q(z|x) \| p(z))`, the mean over a batch, in nats.

        One reparameterised draw of z for each row. A Bernoulli likelihood takes integers in {0, 1}, or floating-point
        intensities in [0, 1], of which every call draws fresh binary pixels.
        """
        x, label = self._training_batch(batch, generator)
        x = self.core.likelihood.binarised(x, generator)
        self._check_data(x)
        reconstruction, kl = self._bound(x, label, self._noise(1, len(x), generator))
        rate = kl.sum(0)
        self._last = {"reconstruction": reconstruction.detach().mean(), "elbo": (reconstruction - rate).detach().mean()}
        self._last.update({f"kl_{name}": kl[i].detach().mean() for i, name in enumerate(self._names())})
        return (self.beta * rate - reconstruction).mean()

    def metrics(self) -> dict[str, float]:
        """ELBO, reconstruction and the KL of each level for the last training batch, in nats."""
        return {name: float(value) for name, value in self._last.items()}

    # ------------------------------------------------------- the map, and terms over latents

    def decode(self, z: State) -> Tensor:
        """E[x|z], ``(N, *event)``: the mean of a Gaussian, the probabilities of a Bernoulli likelihood."""
        n = check_state(z, self.latent_variables, f"{self.name()}.decode")
        self._match(first_tensor(z))
        return self._mean(z, self._label_rows(n, first_tensor(z).device))

    def _mean(self, z: State, label: Tensor | None) -> Tensor:
        return self.core.likelihood.mean(self.core.decode(z, label))

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """E[x|z] at the mean of q(z|x), or at a draw of it when there is a generator; ``(N, *event)``."""
        n = self._check_data(x)
        label = self._label_rows(n, x.device)
        noise = self._noise(1, n, generator)
        if generator is None:
            noise = map_state(torch.zeros_like, noise)
        return self._mean(self.core.infer(x, label, noise).z, label)

    def latent(self, *terms: Term) -> Product:
        r"""A formula over z: :math:`p(z) \prod_i f_i(D(z))` for terms :math:`f_i` over x.

        Terms over z multiply it as any others do: ``vae.latent(reward) * q_of_z / vae.prior``. See :class:`Decoded`
        for what a factor at D(z) means.
        """
        return Product([(self.prior, 1.0), *((self.pulled(f), 1.0) for f in terms)])

    def pulled(self, term: Term) -> Decoded:
        """One factor :math:`f(D(z))` over z, without the prior."""
        return Decoded(term, self)

    def observed(self, x: Tensor) -> Observed:
        """p(x|z) as a factor over z: ``vae.prior * vae.observed(x)`` is p(z|x) with log Z = log p(x)."""
        return Observed(self, x)

    def proposal(self, x: Tensor) -> Proposal:
        """q(z|x) as a normalised, samplable term over z."""
        return Proposal(self, x)

    def decoded(self, draw: "Draw", generator: torch.Generator | None = None) -> "Draw":
        """A draw of latents with x beside them: ``draw.x`` becomes a dictionary of x and the latents.

        x is E[x|z], or with a generator a draw of p(x|z).
        """
        z = draw.x
        lead = 2 if draw.chains else 1
        rows = map_state(lambda t: t.flatten(0, lead - 1), z)
        with torch.no_grad():
            x = self.decode(rows)
            if generator is not None:
                label = self._label_rows(len(x), x.device)
                x = self.core.likelihood.draw(self.core.decode(rows, label), generator)
        x = x.reshape(*first_tensor(z).shape[:lead], *x.shape[1:])
        return replace(draw, x=self._joined(x, z), frames=[])

    # ------------------------------------------------------------------ helpers

    def _data_shape(self) -> tuple[int, ...]:
        return self.core.likelihood.variable.shape

    def _check_data(self, x: Tensor) -> int:
        n = check_state(x, self.core.likelihood.variable, self.name())
        self._match(x)
        return n

    def _match_state(self, x: Mapping[str, Tensor]) -> None:
        for t in x.values():
            self._match(t)


def repeated(value: Any, count: int) -> Any:
    """``count`` copies of the rows below each other; None stays None."""
    return value if value is None or count == 1 else value.repeat(count, *[1] * (value.ndim - 1))


def _count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is a positive int, got {value!r}")
