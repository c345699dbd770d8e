r"""Sums of densities: :math:`p(x; \sigma) = \sum_k w_k\, p_k(x; \sigma)`.

``p + q`` adds unnormalised densities, ``mixture([p, q])`` weighs them. A sum of normalised noised terms
commutes with noising; other sums are annealed, and the relative weights of their members drift along
the path, so the samplers allocate particles to members and weigh each by its own log Z.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import ScopeError
from boltzmix.compose.product import Composite, Product
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import State, describe_variables, expand_rows, map_state


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
                    weight = math.log(math.exp(weight) + math.exp(merged[key][1]))
                merged[key] = (merged[key][0] if key in merged else member, weight)
        members = [t for t, _ in merged.values()]
        first = members[0]
        for other in members[1:]:
            if _scope(other) != _scope(first):
                raise ScopeError(
                    f"a sum needs one scope, got {describe_variables(first.variables)} and "
                    f"{describe_variables(other.variables)}"
                )
        self.members = nn.ModuleList(members)
        self.log_weights = [w for _, w in merged.values()]
        self.variables = first.variables
        self.has_energy = all(t.has_energy for t in members)
        self.has_score = self.has_energy or (len(members) == 1 and first.has_score)
        self.calibrated = all(t.calibrated for t in members)
        self.conditions = frozenset().union(*(t.conditions for t in members))
        self.sigma_range = (max(t.sigma_range[0] for t in members), min(t.sigma_range[1] for t in members))
        total = math.fsum(math.exp(w) for w in self.log_weights)
        normalized = all(t.normalized for t in members)
        self.normalized = normalized and abs(total - 1.0) < 1e-6
        self.samplable = normalized and all(t.samplable for t in members)
        if all(t.path == "static" for t in members):
            self.path = "static"
        elif normalized and all(t.path == "noised" for t in members):
            self.path = "noised"
        else:
            self.path = "annealed"
            odd = next((t for t in members if t.path != "noised"), None)
            why = f"its member {odd.name()} is {odd.path}" if odd else "a member is not normalised"
            self.path_reason = why

    def weights(self) -> list[float]:
        """The weights w_k, as written."""
        return [math.exp(w) for w in self.log_weights]

    def key(self) -> Hashable:
        """Sums of the same members with the same weights are one term."""
        return ("mixture", frozenset(zip((t.key() for t in self._terms()), self.log_weights, strict=True)))

    def _terms(self) -> list[Term]:
        return list(self.members)  # pyright: ignore[reportReturnType]

    def _leaves(self) -> list[Term]:
        leaves: list[Term] = []
        for term in self._terms():
            leaves.extend(term._leaves() if isinstance(term, Composite) else [term])
        return leaves

    def _needs_energies(self) -> bool:
        return len(self.members) > 1 or any(isinstance(t, Composite) and t._needs_energies() for t in self._terms())

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        parts = [
            t._combine(values, x, sigma, score) if isinstance(t, Composite) else values[t.key()] for t in self._terms()
        ]
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

    def _coarse(self, sigma: Tensor) -> Any:
        from boltzmix.compose.gaussian import Gaussian, GaussianMixture

        weights = torch.tensor(self.log_weights).softmax(0)
        means, covariances, shares = [], [], []
        for w, term in zip(weights, self._terms(), strict=True):
            part = term._coarse(sigma)
            if isinstance(part, Gaussian):
                means.append(part.mean[None])
                covariances.append(part.covariance[None])
                shares.append(w[None].to(part.mean))
            else:
                means.append(part.means)
                covariances.append(part.covariances)
                shares.append(w.to(part.means) * part.weights)
        if len(self.event_shape) != 1:
            return self._terms()[int(weights.argmax())]._coarse(sigma)
        return GaussianMixture(torch.cat(means), torch.cat(covariances), torch.cat(shares))

    def _given(self, **condition: object) -> Term:
        members = []
        for term in self._terms():
            mine = {k: v for k, v in condition.items() if k in term.conditions}
            members.append(term.given(**mine) if mine else term)
        return Mixture(members, self.log_weights)

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
        return " + ".join(f"{math.exp(w):.3g}·{t.name()}" for w, t in zip(self.log_weights, self._terms(), strict=True))


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
        raise ValueError("mixture() needs at least one term")
    for term in terms:
        if not isinstance(term, Term):
            raise TypeError(f"mixture() is over terms, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    shares = [1.0] * len(terms) if weights is None else [float(w) for w in weights]
    if len(shares) != len(terms):
        raise ValueError(f"mixture() got {len(terms)} terms and {len(shares)} weights")
    if any(not (w > 0 and math.isfinite(w)) for w in shares):
        raise ValueError(f"mixture weights are positive finite numbers, got {shares}")
    return Mixture(terms, [math.log(w / math.fsum(shares)) for w in shares])


def add(left: Term, right: object) -> Term:
    """``left + right`` of two unnormalised densities."""
    if not isinstance(right, Term):
        raise TypeError(f"a density is added to a density, got {type(right).__name__}; wrap it with boltzmix.term(...)")
    return Mixture([left, right], [0.0, 0.0])


def _members(term: Term) -> list[tuple[Term, float]]:
    if isinstance(term, Mixture):
        return list(zip(term._terms(), term.log_weights, strict=True))
    if isinstance(term, Product) and term.log_scale:
        pairs = term.pairs()
        if len(pairs) == 1 and pairs[0][1].constant == 1.0:
            return [(inner, extra + term.log_scale) for inner, extra in _members(pairs[0][0])]
        return [(Product(pairs, 0.0, term.variables), term.log_scale)]
    return [(term, 0.0)]


def _scope(term: Term) -> Any:
    if isinstance(term.variables, Mapping):
        return {name: v.shape for name, v in term.variables.items()}
    return term.variables.shape
