r"""Static terms inside noisy formulas: at the denoised estimate, clamped, or as a bounded negation.

* :class:`Denoised` evaluates a static term at Tweedie's estimate :math:`E[x_0 | x_\sigma]` of a prior.
* :class:`Clamp` fixes coordinates: a delta, which kernels respect by not moving them.
* :func:`bounded_negation` is a NOT that always has a finite integral when p has one.
* :class:`Geometric` joins two densities by a geometric path.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy, ScopeError
from boltzmix.compose.gaussian import as_float_tensor
from boltzmix.compose.product import Composite, common_range, condition_on, open_leaves, scope_names, unite, value_of
from boltzmix.compose.term import Evaluated, Term, evaluate
from boltzmix.compose.variable import (
    State,
    Variable,
    Variables,
    describe_variables,
    expand_rows,
    first_tensor,
    map_state,
)


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
        self.conditions = term.conditions | prior.conditions
        self.path_reason = "a term at the denoised estimate is no convolution"

    def key(self) -> Hashable:
        """The two terms' keys."""
        return ("denoised", self.term.key(), self.prior.key())

    def _energy(self, x: State, sigma: Any) -> Tensor:
        levels: dict[Any, Any] = dict(sigma) if isinstance(sigma, Mapping) else {None: sigma}
        if all(level is None or not bool((level > 0).any()) for level in levels.values()):
            return self.term._energy(x, None)
        low = self.prior.sigma_range[0]
        raised = {name: None if level is None else level.clamp(min=low) for name, level in levels.items()}
        denoised = self.prior._denoise(x, raised if isinstance(sigma, Mapping) else raised[None])

        def at_data_end(t: Tensor, d: Tensor, level: Tensor | None) -> Tensor:
            return t if level is None else torch.where(expand_rows(level, t) > 0, d, t)

        if isinstance(x, Tensor):
            return self.term._energy(at_data_end(x, denoised, sigma), None)  # pyright: ignore[reportArgumentType]
        each = {name: levels.get(name) if isinstance(sigma, Mapping) else sigma for name in x}
        return self.term._energy({n: at_data_end(x[n], denoised[n], each[n]) for n in x}, None)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _given(self, **condition: object) -> Term:
        return Denoised(condition_on(self.term, condition), condition_on(self.prior, condition))

    def _strength(self, sigma: Tensor) -> float:
        return 0.0  # far away the estimate hardly moves with x

    def _coarse(self, sigma: Tensor) -> Any:
        raise TypeError(f"{self.name()} is flat at large sigma and has no coarse form; ask its prior")

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

    calibrated = True
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
        if self.per_row and len(self.value) != len(x):
            raise ValueError(f"Clamp holds {len(self.value)} conditions, one for each draw, and got {len(x)} rows")
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
            raise ValueError(f"bounded_negation needs a finite number alpha >= 0, got {alpha!r}")
        self.p, self.q, self.alpha = p, q, float(alpha)
        self.variables = unite([p.variables, q.variables], [True, False])
        self.conditions = p.conditions | q.conditions
        self.calibrated = p.calibrated and q.calibrated
        moving = [t for t in (p, q) if t.path != "static"]
        self.path = "annealed" if moving else "static"
        self.path_reason = "a bounded negation is no convolution" if moving else ""
        self.sigma_range = common_range(moving)

    def key(self) -> Hashable:
        """The two terms' keys and alpha."""
        return ("bounded_negation", self.p.key(), self.q.key(), self.alpha)

    def _leaves(self) -> list[Term]:
        return open_leaves([self.p, self.q])

    def _needs_energies(self) -> bool:
        return True

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        (e_p, s_p), (e_q, s_q) = (value_of(t, values, x, sigma, score) for t in (self.p, self.q))
        assert e_p is not None
        assert e_q is not None
        # where p is 0 the composite is, whatever q is
        gap = torch.where(torch.isposinf(e_p), torch.inf, e_p - e_q)
        energy = e_p + self.alpha * F.softplus(gap)
        if not score:
            return energy, None
        share = self.alpha * torch.sigmoid(gap)
        return energy, self._join(s_p, s_q, share, x)

    @staticmethod
    def _join(s_p: Any, s_q: Any, share: Tensor, x: State) -> State:
        """Scores over the union of variables, that of a variable which one term lacks being 0."""
        if isinstance(x, Tensor):
            r = expand_rows(share, x)
            return s_p + torch.where(r > 0, r * (s_p - s_q), 0.0)
        joined = {}
        for name, t in x.items():
            r = expand_rows(share, t)
            a, b = s_p.get(name, torch.zeros_like(t)), s_q.get(name, torch.zeros_like(t))
            joined[name] = a + torch.where(r > 0, r * (a - b), 0.0)
        return joined

    def _rebuild(self, change: Callable[[Term], Term], variables: Variables) -> Term:
        return BoundedNegation(change(self.p), change(self.q), self.alpha)

    def _strength(self, sigma: Tensor) -> float | Tensor:
        return self.p._strength(sigma)

    def _coarse(self, sigma: Tensor) -> Any:
        # far away p and q differ by little: the bounded factor is flat there
        return self.p._coarse(sigma)

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
        if scope_names(base) != scope_names(target):
            raise ScopeError(
                f"a geometric path joins densities over the same variables, got {describe_variables(base.variables)} "
                f"and {describe_variables(target.variables)}"
            )
        self.variables = unite([base.variables, target.variables])
        self.base, self.target = base, target
        self.has_energy = base.has_energy and target.has_energy
        self.has_score = base.has_score and target.has_score
        self.calibrated = base.calibrated and target.calibrated
        self.conditions = base.conditions | target.conditions

    def key(self) -> Hashable:
        """The two ends' keys."""
        return ("geometric", self.base.key(), self.target.key())

    def _energy(self, x: State, sigma: Any) -> Tensor:
        energy = self._join(x, sigma, energy=True, score=False)[0]
        assert energy is not None
        return energy

    def _score(self, x: State, sigma: Any) -> State:
        score = self._join(x, sigma, energy=False, score=True)[1]
        assert score is not None
        return score

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        energy, score = self._join(x, sigma, energy=True, score=True)
        assert energy is not None
        assert score is not None
        return energy, score

    def _join(self, x: State, sigma: Any, *, energy: bool, score: bool) -> Evaluated:
        ends = [t for t in (self.base, self.target) if isinstance(t, Composite)]
        wanted = energy or any(t._needs_energies() for t in ends)
        values = evaluate(open_leaves([self.base, self.target]), x, None, energy=wanted, score=score)
        e_b, s_b = value_of(self.base, values, x, None, score)
        e_t, s_t = value_of(self.target, values, x, None, score)
        like = first_tensor(x)
        level = torch.zeros((), dtype=like.dtype, device=like.device) if sigma is None else sigma
        if isinstance(level, Mapping):
            raise ValueError("a geometric path has one level for all variables, got one per variable")

        def mix(u: Tensor, v: Tensor) -> Tensor:
            b = expand_rows(level, u)
            # 0 · ∞ = 0: at its ends the path is one of the two densities
            return torch.where(b > 0, b * u, 0.0) + torch.where(b < 1, (1 - b) * v, 0.0)

        joined = mix(e_b, e_t) if energy and e_b is not None and e_t is not None else None
        return joined, (map_state(mix, s_b, s_t) if score and s_b is not None and s_t is not None else None)

    def _coarse(self, sigma: Tensor) -> Any:
        raise TypeError(f"the {self.name()} starts at its base, not at a coarse form")

    def _given(self, **condition: object) -> Term:
        return Geometric(condition_on(self.base, condition), condition_on(self.target, condition))

    def _rows(self) -> int:
        return sum(leaf._rows() for leaf in {t.key(): t for t in open_leaves([self.base, self.target])}.values())

    def name(self) -> str:
        """From base to target."""
        return f"geometric path {self.base.name()} → {self.target.name()}"
