r"""Terms that a model with latent variables makes: factors over z, its proposal, and a bound as a term over x.

With prior p(z), decoder mean :math:`D(z) = E[x|z]` and encoder q(z|x),

* :class:`Decoded`: a factor f over x at the decoder's mean, :math:`f(D(z))`: composition in latent space;
* :class:`Observed`: the likelihood p(x|z) of known x, so that ``prior * observed`` is the posterior p(z|x);
* :class:`Proposal`: q(z|x), normalised, which samplers can start from;
* :class:`Bound`: :math:`e^{\mathrm{IWAE}_k(x)}` with frozen noise, a deterministic lower bound on p(x) on average.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.errors import ScopeError
from boltzmix.compose.product import condition_on
from boltzmix.compose.term import Evaluated, Normalized, Term, evaluate, evaluate_one
from boltzmix.compose.variable import State, Variable, check_state, describe_variables, first_tensor, map_state

if TYPE_CHECKING:
    from boltzmix.models.latent_model import LatentVariableModel


class Decoded(Term):
    r"""A factor over x, pulled back to latents: :math:`E(z) = E_f(D(z))` at the decoder's mean; static.

    This is f at the point that z decodes to, with no Jacobian: right for rewards, classifiers, likelihoods and
    constraints, which are functions. It is not the density of D(z), which lives on a thin sheet in data space and has
    none. A noised f is taken at its data end. f may be known by its score alone: :math:`J_D^\top s_f(D(z))`.

    Factors over one decoder share its forward pass.

    Args:
        term: a term over one unnamed variable shaped like x.
        model: a VAE, or a conditional view of one.

    Raises:
        ScopeError: a term over other variables.
    """

    def __init__(self, term: Term, model: "LatentVariableModel") -> None:
        """Check that the term fits x."""
        super().__init__()
        if not isinstance(term, Term):
            raise TypeError(f"latent() takes terms over x, got {type(term).__name__}; wrap it with boltzmix.term(...)")
        data = Variable(model.core.likelihood.variable.shape)
        if not isinstance(term.variables, Variable) or not term.variables.compatible(data):
            raise ScopeError(
                f"latent() evaluates terms at the decoded x, one real variable of shape {data.shape}; {term.name()} is "
                f"over {describe_variables(term.variables)}; multiply terms over z instead: vae.latent() * term"
            )
        self.inner, self.model = term, model
        self.variables = model.latent_variables
        self.has_energy, self.has_score, self.calibrated = term.has_energy, term.has_score, term.calibrated
        self.conditions = term.conditions | free_conditions(model)

    def key(self) -> Hashable:
        """The decoder with its label, and the factor's key."""
        return ("decoded", self.model.key(), self.inner.key())

    def _group(self) -> Hashable:
        return ("decoded", self.model.key())

    def _rows(self) -> int:
        return 1 + self.inner._rows()

    def _given(self, **condition: object) -> Term:
        mine = {name: value for name, value in condition.items() if name in free_conditions(self.model)}
        return Decoded(condition_on(self.inner, condition), self.model.given(**mine) if mine else self.model)  # pyright: ignore[reportArgumentType]

    def _energy(self, x: State, sigma: Any) -> Tensor:
        return self.inner._energy(self._decode(x), None)

    def _score(self, x: State, sigma: Any) -> State:
        score = self._pulled([self], x, False, True)[0][1]
        assert score is not None
        return score

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        return self._pulled([self], x, True, True)[0]  # pyright: ignore[reportReturnType]

    def _evaluate_together(
        self, terms: Sequence[Term], x: State, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        return self._pulled(terms, x, energy, score)  # pyright: ignore[reportArgumentType]

    def _decode(self, z: State) -> Tensor:
        like = first_tensor(z)
        self.model._match(like)
        return self.model._mean(z, self.model._label_rows(len(like), like.device))

    def _pulled(self, terms: "Sequence[Decoded]", z: State, energy: bool, score: bool) -> list[Evaluated]:
        """Energies at D(z), and scores through one vector-Jacobian product for each term."""
        if not score:
            x = self._decode(z)
            inner = evaluate([t.inner for t in terms], x, None, energy=energy, score=False)
            return [inner[t.inner.key()] for t in terms]
        keep = torch.is_grad_enabled() and any(t._needs_graph(z) for t in terms)
        with torch.enable_grad():
            leaf = map_state(lambda t: t if keep and t.requires_grad else t.detach().requires_grad_(), z)
            x = self._decode(leaf)
        point = x if keep else x.detach()
        if len(terms) == 1:
            inner = {terms[0].inner.key(): evaluate_one(terms[0].inner, point, None, energy, True)}
        else:
            inner = evaluate([t.inner for t in terms], point, None, energy=energy, score=True)
        found: list[Evaluated] = []
        for term in terms:
            value, slope = inner[term.inner.key()]
            assert isinstance(slope, Tensor)
            leaves = [leaf] if isinstance(leaf, Tensor) else list(leaf.values())
            grads = torch.autograd.grad(x, leaves, slope, create_graph=keep, retain_graph=True, allow_unused=True)
            scores = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
            pulled: State = scores[0] if isinstance(leaf, Tensor) else dict(zip(leaf, scores, strict=True))
            found.append((value, pulled))
        return found

    def name(self) -> str:
        """The factor's name at D(z)."""
        return f"{self.inner.name()} at the decoded z"


class GivenData(Term):
    """A term over latents that holds data x: one row for all particles, or a row for each."""

    x: Tensor

    def __init__(self, model: "LatentVariableModel", x: Tensor) -> None:
        """Check the data and hold a copy."""
        super().__init__()
        variable = model.core.likelihood.variable
        if isinstance(x, Tensor) and tuple(x.shape) == variable.shape:
            x = x[None]
        check_state(x, variable, f"{type(self).__name__} of {model.name()}")
        model._match(x)
        if len(x) == 0:
            raise ValueError("observed data have at least one row, got none")
        self.model = model
        self.variables = model.latent_variables
        self.conditions = free_conditions(model)
        self.register_buffer("x", x.detach().clone())
        self._token: Hashable = object()  # shared by the views over the same data

    @property
    def per_row(self) -> bool:
        """Whether every particle has data of its own, so that rows must not be exchanged."""
        return len(self.x) > 1 or self.model.per_row

    def key(self) -> Hashable:
        """The model with its label, and the data."""
        return (type(self).__name__, self.model.key(), self._token)

    def _given(self, **condition: object) -> Term:
        twin = type(self)(self.model.given(**condition), self.x)  # pyright: ignore[reportArgumentType]
        twin._token = self._token
        return twin

    def _rows(self) -> int:
        return 1

    def _data(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The data and labels of n particles."""
        if len(self.x) not in (1, n):
            raise ValueError(
                f"{self.name()} holds {len(self.x)} rows of data, one for each particle, and got {n} particles; "
                "observe one x where the number of particles changes"
            )
        return self.x.expand(n, *self.x.shape[1:]), self.model._label_rows(n, self.x.device)


class Observed(GivenData):
    r"""The likelihood of known data as a factor over latents: :math:`E(z) = -\log p(x|z)`.

    ``vae.prior * vae.observed(x)`` is the posterior p(z|x), unnormalised, with log Z = log p(x). For real x it is what
    ``vae * Clamp(...).on("x")`` samples; for binary x, which gradient kernels do not move, it is the way to condition.

    Args:
        model: a VAE, or a conditional view of one.
        x: ``event_shape`` or ``(1, *event)`` for all particles, or ``(N, *event)``, a row for each of N.
    """

    calibrated = True

    def _energy(self, x: State, sigma: Any) -> Tensor:
        n = len(first_tensor(x))
        self.model._match(first_tensor(x))
        data, label = self._data(n)
        return -self.model.core.likelihood.log_prob(data, self.model.core.decode(x, label))

    def name(self) -> str:
        """p(x|z)."""
        return f"{self.model.name()} observed"


class Proposal(GivenData, Normalized):
    r"""The encoder's q(z|x) as a normalised term over latents: :math:`E(z) = -\log q(z|x)`.

    Samplers of a posterior start from it: ``sample(vae.prior * vae.observed(x), n, init=vae.proposal(x))``.

    Args:
        model: a VAE, or a conditional view of one.
        x: ``event_shape`` or ``(1, *event)`` for all draws, or ``(N, *event)``, a row for each of N draws.
    """

    samplable = True

    def _energy(self, x: State, sigma: Any) -> Tensor:
        n = len(first_tensor(x))
        self.model._match(first_tensor(x))
        return -self.model.core.log_q(x, *self._data(n))

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        with torch.no_grad():
            return self.model.core.infer(*self._data(n), self.model._noise(1, n, generator)).z

    def name(self) -> str:
        """q(z|x)."""
        return f"{self.model.name()} proposal"


class Bound(Term):
    r"""A deterministic lower bound as a term over x alone: :math:`E(x) = -\mathrm{IWAE}_k(x)` with frozen base noise.

    The k noise vectors are drawn once, from ``seed``, and serve every x: energies do not jitter, so Metropolis kernels
    and weights are exact for the density that this is. That density is not p(x): over seeds, exp(−E(x)) is p(x) on
    average and E is above −log p(x); the gap closes as k grows. It is neither normalised nor calibrated.

    Args:
        model: a VAE, or a conditional view of one.
        k: number of noise vectors; an evaluation decodes k rows.
        seed: of the noise.
    """

    def __init__(self, model: "LatentVariableModel", k: int, seed: int) -> None:
        """Draw the noise."""
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is a positive int, got {k!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed is an int >= 0, got {seed!r}")
        self.model, self.k, self.seed = model, k, seed
        self.variables = model.core.likelihood.variable
        self.conditions = free_conditions(model)
        like = model._weights()
        noise = model._noise(k, 1, torch.Generator(device=like.device).manual_seed(seed))
        self._names = [""] if isinstance(noise, Tensor) else list(noise)
        for name in self._names:
            self.register_buffer(f"noise{name}", noise if isinstance(noise, Tensor) else noise[name])

    def key(self) -> Hashable:
        """The model with its label, and the noise."""
        return ("bound", self.model.key(), self.k, self.seed)

    def _given(self, **condition: object) -> Term:
        return Bound(self.model.given(**condition), self.k, self.seed)  # pyright: ignore[reportArgumentType]

    def _rows(self) -> int:
        return self.k + 1

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self.model._match(x)
        label = self.model._label_rows(len(x), x.device)
        held = {name: getattr(self, f"noise{name}") for name in self._names}
        each = {name: t.expand(-1, len(x), *t.shape[2:]) for name, t in held.items()}
        noise = each.get("", each)
        return -self.model._log_mean_weight(x, label, [noise])

    def name(self) -> str:
        """The model, and that it is a bound."""
        return f"IWAE-{self.k} bound of {self.model.name()}"


def free_conditions(model: "LatentVariableModel") -> frozenset[str]:
    """The conditions that a model still takes: none once a label is frozen."""
    return model.conditions if model._identity is None else frozenset()
