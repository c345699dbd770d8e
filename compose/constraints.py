r"""Static terms inside noisy formulas: at the denoised estimate, clamped, or as a bounded negation.

* :class:`Denoised` evaluates a static term at Tweedie's estimate :math:`E[x_0 | x_\sigma]` of a prior.
* :class:`Clamp` fixes coordinates: a delta, which kernels respect by not moving them.
* :func:`bounded_negation` is a NOT that always has a finite integral when p has one.
* :class:`Geometric` joins two densities by a geometric path.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.gaussian import as_float_tensor
from boltzmix.compose.product import Composite, unite
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import State, Variable, expand_rows, map_state


class Denoised(Term):
    r"""A static term at the prior's denoised estimate: :math:`E(x; \sigma) = E_r(\hat x_0(x, \sigma))`.

    At the data end (σ = None or 0) this is the term itself, so the formula means the same there; on the
    way, :math:`\hat x_0 = x + \sigma^2 \nabla \log p(x; \sigma)` costs one more evaluation of the prior.

    Args:
        term: a static term with an energy.
        prior: a noised term over the same variable.

    Raises:
        TypeError: the prior is not noised, or the term is not static.
    """

    path = "annealed"

    def __init__(self, term: Term, prior: Term) -> None:
        """Check that the two fit together."""
        super().__init__()
        if not isinstance(term, Term) or not isinstance(prior, Term):
            raise TypeError("Denoised(term, prior) takes two terms; wrap functions with boltzmix.term(...)")
        if term.path != "static":
            raise TypeError(f"Denoised needs a static term, {term.name()} is {term.path}; freeze it with .at(sigma)")
        if prior.path != "noised":
            raise TypeError(f"Denoised needs a noised prior, {prior.name()} is {prior.path}: {prior.path_reason}")
        if not term.has_energy:
            raise MissingEnergy(f"Denoised differentiates an energy and {term.name()} has only a score")
        self.variables = unite([term.variables, prior.variables])
        self.term, self.prior = term, prior
        self.calibrated = term.calibrated
        self.sigma_range = (0.0, prior.sigma_range[1])
        self.path_reason = "a term at the denoised estimate is no convolution"

    def key(self) -> Hashable:
        """The two terms' keys."""
        return ("denoised", self.term.key(), self.prior.key())

    def _energy(self, x: State, sigma: Any) -> Tensor:
        if sigma is None or (isinstance(sigma, Tensor) and not bool((sigma > 0).any())):
            return self.term._energy(x, None)
        low = self.prior.sigma_range[0]
        return self.term._energy(self.prior._denoise(x, sigma.clamp(min=low) if low else sigma), None)

    def _rows(self) -> int:
        return self.term._rows() + self.prior._rows()

    def name(self) -> str:
        """The term's name with a hat."""
        return f"denoised {self.term.name()}"


class Clamp(Term):
    """Coordinates that are known: ``prior * Clamp(mask, value)`` samples the others given these.

    A delta, not an energy. Samplers take the masked coordinates out of what kernels move and hold them at
    ``value`` at every level; ``energy`` is 0 where they agree and +inf elsewhere.

    Args:
        mask: boolean, event-shaped: True where the coordinate is known.
        value: event-shaped, or ``(n, *event)`` with one condition for each of the n draws.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: nothing masked, or shapes that do not fit.
    """

    mask: Tensor
    value: Tensor

    def __init__(self, mask: Any, value: Any) -> None:
        """Check mask and value."""
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"Clamp's mask is boolean, got {mask.dtype}; write mask > 0 or mask.bool()")
        value = as_float_tensor(value, "Clamp's value")
        if mask.ndim == 0 or value.shape not in (mask.shape, (value.shape[0] if value.ndim else 0, *mask.shape)):
            raise ValueError(
                f"Clamp needs a mask of the event's shape and a value of that shape or (n, *event), got "
                f"{tuple(mask.shape)} and {tuple(value.shape)}"
            )
        if not bool(mask.any()):
            raise ValueError("Clamp's mask selects no coordinate")
        self.variables = Variable(tuple(mask.shape))
        self.register_buffer("mask", mask.clone())
        self.register_buffer("value", value.clone())

    @property
    def per_row(self) -> bool:
        """Whether every draw has a condition of its own."""
        return self.value.ndim > self.mask.ndim

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        same = ((x == self.value.to(x)) | ~self.mask).flatten(1).all(1)
        energy = torch.where(same, 0.0, torch.inf).to(x)
        return energy, torch.zeros_like(x)


class BoundedNegation(Composite):
    """See :func:`bounded_negation`."""

    def __init__(self, p: Term, q: Term, alpha: float) -> None:
        """Check that both have energies and one scope."""
        super().__init__()
        for t in (p, q):
            if not isinstance(t, Term):
                raise TypeError(f"bounded_negation is over terms, got {type(t).__name__}")
            if not t.has_energy:
                raise MissingEnergy(f"bounded_negation compares energies and {t.name()} has only a score")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < float("inf"):
            raise ValueError(f"bounded_negation needs a finite alpha >= 0, got {alpha!r}")
        self.p, self.q, self.alpha = p, q, float(alpha)
        self.variables = unite([p.variables, q.variables])
        self.conditions = p.conditions | q.conditions
        self.calibrated = p.calibrated and q.calibrated
        moving = [t for t in (p, q) if t.path != "static"]
        self.path = "annealed" if moving else "static"
        self.path_reason = "a bounded negation is no convolution" if moving else ""
        if moving:
            self.sigma_range = (max(t.sigma_range[0] for t in moving), min(t.sigma_range[1] for t in moving))

    def _leaves(self) -> list[Term]:
        leaves: list[Term] = []
        for term in (self.p, self.q):
            leaves.extend(term._leaves() if isinstance(term, Composite) else [term])
        return leaves

    def _needs_energies(self) -> bool:
        return True

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        parts = [
            t._combine(values, x, sigma, score) if isinstance(t, Composite) else values[t.key()]
            for t in (self.p, self.q)
        ]
        (e_p, s_p), (e_q, s_q) = parts
        assert e_p is not None
        assert e_q is not None
        gap = e_p - e_q
        energy = e_p + self.alpha * F.softplus(gap)
        if not score:
            return energy, None
        share = self.alpha * torch.sigmoid(gap)
        combined = map_state(lambda a, b: a + expand_rows(share, a) * (a - b), s_p, s_q)  # pyright: ignore[reportArgumentType]
        return energy, combined

    def _given(self, **condition: object) -> Term:
        both = []
        for t in (self.p, self.q):
            mine = {k: v for k, v in condition.items() if k in t.conditions}
            both.append(t.given(**mine) if mine else t)
        return BoundedNegation(both[0], both[1], self.alpha)

    def name(self) -> str:
        """p without q."""
        return f"bounded_negation({self.p.name()}, {self.q.name()}, {self.alpha:g})"


def bounded_negation(p: Term, q: Term, alpha: float) -> BoundedNegation:
    r"""NOT with a finite integral: :math:`E = E_p + \alpha\, \mathrm{softplus}(E_p - E_q)`.

    Where q is unlikely relative to p this is p; where q dominates it is :math:`p (p/q)^\alpha`. The factor
    never exceeds 1, so the composite is dominated by p and integrable whenever p is.
    """
    return BoundedNegation(p, q, alpha)


class Geometric(Term):
    r"""A geometric path between two densities: :math:`p(x; \sigma) \propto p_b(x)^{\sigma} p_t(x)^{1-\sigma}`.

    The level runs from σ = 1 (the base) to σ = 0 or None (the target). Both are taken at their data end.

    Args:
        base: where the path starts, usually normalised and sampled exactly.
        target: where it ends.
    """

    path = "annealed"
    path_reason = "a geometric path is no convolution"
    sigma_range = (0.0, 1.0)

    def __init__(self, base: Term, target: Term) -> None:
        """Check that the two share a scope."""
        super().__init__()
        if not isinstance(base, Term) or not isinstance(target, Term):
            raise TypeError("Geometric(base, target) takes two terms; wrap functions with boltzmix.term(...)")
        self.variables = unite([base.variables, target.variables])
        self.base, self.target = base, target
        self.has_energy = base.has_energy and target.has_energy
        self.has_score = base.has_score and target.has_score
        self.calibrated = base.calibrated and target.calibrated

    def _weights(self, sigma: Any) -> tuple[Any, Any]:
        level = 0.0 if sigma is None else sigma
        return level, 1.0 - level

    def _energy(self, x: State, sigma: Any) -> Tensor:
        b, t = self._weights(sigma)
        return b * self.base._energy(x, None) + t * self.target._energy(x, None)

    def _score(self, x: State, sigma: Any) -> State:
        return self._join(x, sigma, self.base._score(x, None), self.target._score(x, None))

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        b, t = self._weights(sigma)
        (e_b, s_b), (e_t, s_t) = self.base._energy_and_score(x, None), self.target._energy_and_score(x, None)
        return b * e_b + t * e_t, self._join(x, sigma, s_b, s_t)

    def _join(self, x: State, sigma: Any, s_b: State, s_t: State) -> State:
        b, t = self._weights(sigma)

        def mix(u: Tensor, v: Tensor) -> Tensor:
            if isinstance(b, Tensor):
                return expand_rows(b, u) * u + expand_rows(t, v) * v
            return b * u + t * v

        return map_state(mix, s_b, s_t)

    def name(self) -> str:
        """From base to target."""
        return f"geometric path {self.base.name()} → {self.target.name()}"
