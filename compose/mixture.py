r"""Sums of densities: :math:`p(x; \sigma) = \sum_k w_k\, p_k(x; \sigma)`.

``p + q`` adds unnormalised densities, ``mixture([p, q])`` weighs them. A sum of normalised noised terms
commutes with noising; other sums are annealed, and the relative weights of their members drift along
the path, so the samplers allocate particles to members and weigh each by its own log Z.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import ScopeError
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.product import (
    Composite,
    Product,
    common_range,
    holds,
    is_discrete,
    moments,
    open_leaves,
    scope_names,
    unite,
    value_of,
)
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import State, Variable, Variables, describe_variables, expand_rows, map_state


class Mixture(Composite):
    r"""Sum of densities, OR: :math:`E = -\log \sum_k e^{\log w_k - E_k}`.

    Args:
        terms: members over the same variables.
        log_weights: log of the weight of each member.

    Raises:
        ScopeError: members over different variables.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> p = 0.3 * Gaussian(torch.zeros(1), 1.0) + 0.7 * Gaussian(torch.ones(1), 1.0)
        >>> p.normalized, p.path
        (True, 'noised')
    """

    def __init__(self, terms: Sequence[Term], log_weights: Sequence[float]) -> None:
        """Flatten nested sums, merge equal members, derive path and flags."""
        super().__init__()
        merged: dict[Hashable, tuple[Term, float]] = {}
        for term, log_weight in zip(terms, log_weights, strict=True):
            for member, extra in _members(term):
                key = member.key()
                weight = log_weight + extra
                if key in merged:
                    weight = log_sum_exp([weight, merged[key][1]])
                merged[key] = (merged[key][0] if key in merged else member, weight)
        members = [t for t, _ in merged.values()]
        first = members[0]
        for other in members[1:]:
            if scope_names(other) != scope_names(first) or isinstance(other.variables, Variable) != isinstance(
                first.variables, Variable
            ):
                raise ScopeError(
                    f"a sum needs one scope, got {describe_variables(first.variables)} and "
                    f"{describe_variables(other.variables)}; multiply the narrower one with a density over the rest"
                )
        self.members = nn.ModuleList(members)
        self.log_weights = [w for _, w in merged.values()]
        self.variables = unite([t.variables for t in members], added=True)
        self.has_energy = all(t.has_energy for t in members)
        self.has_score = (self.has_energy or (len(members) == 1 and first.has_score)) and not is_discrete(self)
        self.calibrated = all(t.calibrated for t in members)
        self.conditions = frozenset().union(*(t.conditions for t in members))
        self.sigma_range = common_range(members)
        total = log_sum_exp(self.log_weights)
        normalized = all(t.normalized for t in members)
        self.normalized = normalized and abs(total) < 1e-6
        over = {t.normalized_over for t in members}
        self.normalized_over = over.pop() if len(over) == 1 and abs(total) < 1e-6 else None
        self.samplable = normalized and all(t.samplable for t in members)
        if all(t.path == "static" for t in members):
            self.path = "static"
        elif all(t.path == "noised" for t in members) and (normalized or len(members) == 1):
            self.path = "noised"
        else:
            self.path = "annealed"
            odd = next((t for t in members if t.path != "noised"), None)
            if odd is None:
                odd = next(t for t in members if not t.normalized)
                self.path_reason = f"its member {odd.name()} is not normalised, so the members' weights drift"
            else:
                why = f": {odd.path_reason}" if odd.path_reason else ""
                self.path_reason = f"its member {odd.name()} is {odd.path}{why}"

    def weights(self) -> list[float]:
        """The weights w_k, as written."""
        return [_exp(w) for w in self.log_weights]

    def key(self) -> Hashable:
        """Sums of the same members with the same weights are one term."""
        if self.log_weights == [0.0]:
            return self._terms()[0].key()
        return ("mixture", frozenset(zip((t.key() for t in self._terms()), self.log_weights, strict=True)))

    def _terms(self) -> list[Term]:
        return list(self.members)  # pyright: ignore[reportReturnType]

    def _leaves(self) -> list[Term]:
        return open_leaves(self._terms())

    def _needs_energies(self) -> bool:
        return len(self.members) > 1 or any(isinstance(t, Composite) and t._needs_energies() for t in self._terms())

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        parts = [value_of(t, values, x, sigma, score) for t in self._terms()]
        if len(parts) == 1:
            energy, only = parts[0]
            return (None if energy is None else energy - self.log_weights[0]), only
        energies = [e for e, _ in parts]
        assert all(e is not None for e in energies), "public methods refuse mixtures of score-only members"
        logs = torch.stack([w - e for w, e in zip(self.log_weights, energies, strict=True)], dim=-1)  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
        total = logs.logsumexp(-1)
        if not score:
            return total.neg(), None
        responsibilities = (logs - total[:, None]).exp()
        result: State | None = None
        for k, (_, s) in enumerate(parts):
            assert s is not None
            r = responsibilities[:, k]
            # a member of zero density has no say, whatever its score is there
            share = map_state(lambda t, r=r: torch.where(expand_rows(r, t) > 0, expand_rows(r, t) * t, 0.0), s)
            result = share if result is None else map_state(torch.add, result, share)
        return total.neg(), result

    def _strength(self, sigma: Tensor) -> float | Tensor:
        # the flattest member reaches farthest; static ones hold the state by themselves
        found = [t._strength(sigma) for t in self._terms() if t.path != "static"]
        numbers = [strength for strength in found if not isinstance(strength, Tensor)]
        if len(numbers) == len(found):
            return min(numbers, default=0.0)
        return functools.reduce(torch.minimum, [torch.as_tensor(strength) for strength in found])

    def _coarse(self, sigma: Tensor) -> Gaussian | GaussianMixture:
        # A static member does not look like anything else at a large σ: the others say where to start.
        moving = [
            (w, t, t._coarse(sigma)) for w, t in zip(self.log_weights, self._terms(), strict=True) if holds(t, sigma)
        ]
        parts = [part for _, _, part in moving]
        if len(parts) == 1:
            return parts[0]
        logs = torch.tensor([w + _log_mass(t, part, sigma) for w, t, part in moving], dtype=torch.float64)
        weights = logs.softmax(0)
        if len(self.event_shape) != 1:  # mixtures are over vectors: match the moments
            each = [moments(part) for part in parts]
            means = torch.stack([m for m, _ in each])
            spreads = torch.stack([c if c.ndim == 1 else c.diagonal() for _, c in each])
            share = weights.to(means)[:, None]
            mean = (share * means).sum(0)
            variance = (share * (spreads + (means - mean) ** 2)).sum(0)
            return Gaussian(mean.reshape(self.event_shape), variance.reshape(self.event_shape))
        diagonal = all(part.basis is None for part in parts)
        means, spreads, shares = [], [], []
        for w, part in zip(weights, parts, strict=True):
            single = isinstance(part, Gaussian)
            spread = part.variances if diagonal else part.covariance if single else part.covariances
            means.append(part.mean[None] if single else part.means)
            spreads.append(spread[None] if single else spread)
            shares.append(w[None].to(part.mean) if single else w.to(part.means) * part.weights)
        joined = torch.cat(shares)
        kept = joined > 0
        return GaussianMixture(torch.cat(means)[kept], torch.cat(spreads)[kept], joined[kept])

    def _rebuild(self, change: Callable[[Term], Term], variables: Variables) -> Term:
        return Mixture([change(t) for t in self._terms()], self.log_weights)

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        device = None if generator is None else generator.device
        weights = torch.tensor(self.log_weights, dtype=torch.float64, device=device).softmax(0)
        which = torch.multinomial(weights, n, replacement=True, generator=generator)
        result: Any = None
        for k, term in enumerate(self._terms()):
            rows = (which == k).nonzero()[:, 0]
            if not len(rows):
                continue
            draw = term.sample(len(rows), generator)
            if result is None:
                result = map_state(lambda t: t.new_empty(n, *t.shape[1:]), draw)
            result = map_state(lambda out, t, rows=rows: out.index_copy(0, rows.to(t.device), t), result, draw)
        return result

    def name(self) -> str:
        """The sum as written."""
        return " + ".join(f"{_exp(w):.3g}·{t.name()}" for w, t in zip(self.log_weights, self._terms(), strict=True))


def mixture(terms: Sequence[Term], weights: Sequence[float] | None = None) -> Mixture:
    """Mixture of densities with weights that are normalised for you (1/K each by default).

    Args:
        terms: members; those that are not normalised carry their own integral in the weights.
        weights: one positive number for each member.

    Raises:
        ValueError: no members, or weights that are not positive or too many.
    """
    terms = list(terms)
    if not terms:
        raise ValueError("mixture() needs at least one term, got none")
    for term in terms:
        if not isinstance(term, Term):
            raise TypeError(f"mixture() is over terms, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    given = [1.0] * len(terms) if weights is None else list(weights)
    if any(isinstance(w, Tensor) and w.requires_grad for w in given):
        raise ValueError("mixture weights are constants and must not require grad; pass weights.detach()")
    shares = [float(w) for w in given]
    if len(shares) != len(terms):
        raise ValueError(f"mixture() got {len(terms)} terms and {len(shares)} weights")
    if any(not (w > 0 and math.isfinite(w)) for w in shares):
        raise ValueError(f"mixture weights are positive finite numbers, got {shares}")
    return Mixture(terms, [math.log(w / math.fsum(shares)) for w in shares])


def add(left: Term, right: object) -> Term:
    """``left + right`` of two unnormalised densities."""
    if isinstance(right, (int, float)):
        raise TypeError(
            f"a density is added to a density, got the number {right}; write Box(low, high) for a uniform density, or "
            f"a factor for a scale"
        )
    if not isinstance(right, Term):
        raise TypeError(f"a density is added to a density, got {type(right).__name__}; wrap it with boltzmix.term(...)")
    return Mixture([left, right], [0.0, 0.0])


def _members(term: Term) -> list[tuple[Term, float]]:
    if isinstance(term, Mixture):
        return list(zip(term._terms(), term.log_weights, strict=True))
    if isinstance(term, Product):
        pairs = term.pairs()
        if len(pairs) == 1 and pairs[0][1].constant == 1.0 and scope_names(pairs[0][0]) == scope_names(term):
            return [(inner, extra + term.log_scale) for inner, extra in _members(pairs[0][0])]
        if term.log_scale:
            return [(Product(pairs, 0.0, term.variables), term.log_scale)]
    return [(term, 0.0)]


def _log_mass(term: Term, part: Gaussian | GaussianMixture, sigma: Tensor) -> float:
    """log of a member's integral at σ, by its coarse form; 0 for normalised members and those without energy."""
    if term.normalized or not term.has_energy:
        return 0.0
    mean = moments(part)[0][None]
    with torch.no_grad():
        energy = term._energy(mean.reshape(1, *term.event_shape), sigma.to(mean))
        return float(part._energy(mean.reshape(1, *part.event_shape), None) - energy)


def log_sum_exp(logs: Sequence[float]) -> float:
    """log Σ exp, without overflow."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(v - top) for v in logs))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
