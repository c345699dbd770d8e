r"""Products, powers and quotients of densities in merged normal form.

.. math::
    p(x; \sigma) = e^{c} \prod_i p_i(x; \sigma)^{w_i}, \qquad
    E = \sum_i w_i E_i - c, \qquad s = \sum_i w_i s_i

Nested products are flattened and equal terms merge, so ``p * (p.given(c) / p) ** 3`` is
``{p: −2, p|c: 3}`` and costs one forward of two conditions.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NotNormalizable, ScopeError
from boltzmix.compose.exponent import Exponent, as_exponent
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.supports import describe, edges, identity, meet
from boltzmix.compose.term import Evaluated, Term, evaluate
from boltzmix.compose.tracing import is_tracing
from boltzmix.compose.variable import (
    State,
    Variable,
    Variables,
    describe_variables,
    expand_rows,
    first_tensor,
    map_state,
    rename,
)


class Composite(Term):
    """A formula over terms: its leaves are evaluated together, each once, then combined."""

    def _leaves(self) -> list[Term]:
        """Terms that the formula evaluates at its own (x, σ), nested composites opened."""
        raise NotImplementedError

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        """Energy (None when a member lacks one) and score from the values of the leaves."""
        raise NotImplementedError

    def _needs_energies(self) -> bool:
        """Whether scores depend on energies (a mixture's responsibilities do)."""
        return False

    def _energy(self, x: State, sigma: Any) -> Tensor:
        values = evaluate(self._leaves(), x, sigma, energy=True, score=False)
        energy = self._combine(values, x, sigma, False)[0]
        assert energy is not None
        return energy

    def _score(self, x: State, sigma: Any) -> State:
        values = evaluate(self._leaves(), x, sigma, energy=self._needs_energies(), score=True)
        score = self._combine(values, x, sigma, True)[1]
        assert score is not None
        return score

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        values = evaluate(self._leaves(), x, sigma, energy=True, score=True)
        energy, score = self._combine(values, x, sigma, True)
        assert energy is not None
        assert score is not None
        return energy, score

    def _rows(self) -> int:
        return sum(self._calls().values())

    def _calls(self) -> Mapping[Hashable, int]:
        return {call: rows for leaf in self._leaves() for call, rows in leaf._calls().items()}

    def _rebuild(self, change: Callable[[Term], Term], variables: Variables) -> Term:
        """The same formula over changed members, whose variables are ``variables`` together."""
        raise NotImplementedError

    def _given(self, **condition: object) -> Term:
        return self._rebuild(lambda member: condition_on(member, condition), self.variables)

    def on(self, *names: str) -> Term:
        """The formula over named variables: every member is bound, so that equal ones still merge."""
        bound = rename(self.variables, names, self.name())
        if isinstance(self.variables, Variable):
            return self._rebuild(lambda member: member.on(*names), bound)
        new = dict(zip(self.variables, names, strict=True))
        return self._rebuild(lambda member: member.on(*(new[name] for name in member.variables)), bound)  # pyright: ignore[reportGeneralTypeIssues]


class Product(Composite):
    """Product of powers of terms; made by the operators rather than by hand.

    Args:
        pairs: (term, exponent) pairs; exponents are numbers, scalar tensors or functions of σ.
        log_scale: log of a constant factor.
        variables: needed only when there are no pairs.

    Raises:
        ScopeError: members over different variables.

    Example:
        >>> import torch
        >>> p, q = Gaussian(torch.zeros(1), 1.0), Gaussian(torch.zeros(1), 4.0)
        >>> (p * (q / p) ** 3).exponents()
        [-2.0, 3.0]
    """

    def __init__(
        self, pairs: Sequence[tuple[Term, Any]], log_scale: float = 0.0, variables: Variables | None = None
    ) -> None:
        """Flatten, merge and derive path and flags."""
        super().__init__()
        merged: dict[Hashable, tuple[Term, Exponent]] = {}
        scopes: list[Variables] = [] if variables is None else [variables]
        holds = [True] * len(scopes)
        for term, exponent in pairs:
            if not isinstance(term, Term):
                raise TypeError(f"a product is over terms, got {type(term).__name__}; wrap it with boltzmix.term(...)")
            weight = as_exponent(exponent)
            inner: Sequence[tuple[Term, Exponent]] = [(term, Exponent(1.0))]
            if isinstance(term, Product):
                constant = weight.constant
                if term.log_scale and constant is None:
                    inner = [(term, Exponent(1.0))]  # a scale under a varying exponent stays one term
                else:
                    log_scale = log_scale + term.log_scale * (constant or 0.0)
                    inner = term.pairs()
            scopes.append(term.variables)
            holds.append(weight.constant is None or weight.constant > 0)
            for factor, power in inner:
                key = factor.key()
                total = weight * power
                if key in merged:
                    total = merged[key][1] + total
                merged[key] = (merged[key][0] if key in merged else factor, total)
        if not scopes:
            raise ValueError("product() needs at least one term")
        kept = [(t, e) for t, e in merged.values() if e.constant != 0.0]
        self.factors = nn.ModuleList([t for t, _ in kept])
        self._exponents = nn.ModuleList([e for _, e in kept])
        self.log_scale = float(log_scale)
        self.variables = unite(scopes, holds)
        self._derive(kept)

    def _derive(self, kept: list[tuple[Term, Exponent]]) -> None:
        self.has_energy = all(t.has_energy for t, _ in kept)
        self.has_score = all(t.has_score or is_discrete(t) for t, _ in kept) and not (kept and is_discrete(self))
        self.calibrated = all(t.calibrated for t, _ in kept)
        self.conditions = frozenset().union(*(t.conditions for t, _ in kept))
        self.sigma_range = common_range([t for t, _ in kept])
        disjoint = bool(kept) and self._disjoint(kept)
        self.samplable = (
            disjoint
            and scope_names(self) == set().union(*(scope_names(t) for t, _ in kept))
            and all(t.samplable for t, _ in kept)
        )
        if len(kept) == 1 and kept[0][1].constant == 1.0:
            self.path, self.path_reason = kept[0][0].path, kept[0][0].path_reason
        elif not any(t.path != "static" for t, _ in kept) and not any(e.depends_on_sigma for _, e in kept):
            self.path = "static"
        elif disjoint and all(t.path == "noised" for t, _ in kept):
            self.path = "noised"
        else:
            self.path, self.path_reason = "annealed", _reason(kept)
        covered = self._integrated(kept) if self.log_scale == 0.0 else None
        self.normalized = covered == scope_names(self)
        self.normalized_over = frozenset(covered) if covered and not self.normalized else None

    @staticmethod
    def _disjoint(kept: list[tuple[Term, Exponent]]) -> bool:
        """Whether every factor has exponent 1 and variables of its own."""
        names = [n for t, _ in kept for n in (t.variables if isinstance(t.variables, Mapping) else ["x"])]
        return len(names) == len(set(names)) and all(e.constant == 1.0 for _, e in kept)

    @staticmethod
    def _integrated(kept: list[tuple[Term, Exponent]]) -> set[str] | None:
        """The variables over which the product integrates to one, None when it does not.

        Factors are integrated out one after the other, each to one (the chain rule); a factor can go when no
        other one holds the variables over which it integrates.
        """
        left = [(t, normalized_names(t)) for t, _ in kept]
        if any(e.constant != 1.0 for _, e in kept) or any(names is None for _, names in left):
            return None
        covered: set[str] = set()
        while left:
            for index, (_, names) in enumerate(left):
                others = {n for j, (t, _) in enumerate(left) if j != index for n in scope_names(t)}
                if names and not names & others:
                    covered |= names
                    del left[index]
                    break
            else:
                return None
        return covered

    def pairs(self) -> list[tuple[Term, Exponent]]:
        """The (term, exponent) pairs of the normal form."""
        return list(zip(self.factors, self._exponents, strict=True))  # pyright: ignore[reportReturnType]

    def exponents(self, sigma: Tensor | None = None) -> list[float | Tensor]:
        """The exponents at a noise level, in the order of :meth:`pairs`."""
        return [e.value(sigma) for _, e in self.pairs()]

    def key(self) -> Hashable:
        """Products of the same terms to the same constant powers are one term."""
        weights = [e.constant for _, e in self.pairs()]
        if any(w is None for w in weights):
            return super().key()
        if weights == [1.0] and not self.log_scale:
            return self.factors[0].key()  # pyright: ignore[reportCallIssue]
        return ("product", frozenset(zip((t.key() for t, _ in self.pairs()), weights, strict=True)), self.log_scale)

    def _leaves(self) -> list[Term]:
        return open_leaves([t for t, _ in self.pairs()])

    def _needs_energies(self) -> bool:
        return any(isinstance(t, Composite) and t._needs_energies() for t, _ in self.pairs())

    def _rebuild(self, change: Callable[[Term], Term], variables: Variables) -> Term:
        return Product([(change(t), e) for t, e in self.pairs()], self.log_scale, variables)

    def _combine(self, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
        like = first_tensor(x)
        energy: Tensor | None = None
        total: State | None = None
        complete = True
        for term, exponent in self.pairs():
            e, s = value_of(term, values, x, sigma, score)
            w = exponent.value(_level_of(term, sigma))
            if _is_zero(w):
                continue  # p ** 0 is 1, also where p is 0
            if e is None:
                complete = False
            elif complete:
                part = _powered(e, w)
                energy = part if energy is None else energy + part
            if score:
                assert s is not None
                total = _accumulate(total, s, w)
        if energy is None and complete:
            energy = torch.zeros(like.shape[0], dtype=like.dtype, device=like.device)
        if energy is not None and self.log_scale:
            energy = energy - self.log_scale
        if score and (total is None or isinstance(total, Mapping)):
            done = {} if total is None else total
            zero = map_state(torch.zeros_like, x)
            total = zero if isinstance(zero, Tensor) else {n: done.get(n, zero[n]) for n in zero}  # pyright: ignore[reportAttributeAccessIssue]
        return (energy if complete else None), total

    def _strength(self, sigma: Tensor) -> float | Tensor:
        found = [_number(e.value(sigma)) * t._strength(sigma) for t, e in self.pairs()]
        numbers = [strength for strength in found if not isinstance(strength, Tensor)]
        total = math.fsum(numbers)
        return total if len(numbers) == len(found) else sum((s for s in found if isinstance(s, Tensor)), start=total)

    def _coarse(self, sigma: Tensor) -> Gaussian | GaussianMixture:
        moving = [(t, _number(e.value(sigma))) for t, e in self.pairs() if holds(t, sigma)]
        if len(moving) == 1 and moving[0][1] == 1.0:
            return moving[0][0]._coarse(sigma)
        parts = [(t._information(sigma), w) for t, w in moving]
        diagonal = all(inverse.ndim == 1 for (inverse, _), _ in parts)
        precision: Any = 0.0
        shift: Any = 0.0
        for (inverse, product_with_mean), weight in parts:
            full = inverse if diagonal or inverse.ndim == 2 else torch.diag(inverse)
            precision = precision + weight * full
            shift = shift + weight * product_with_mean
        if isinstance(precision, float) or not bool(
            ((precision if diagonal else torch.linalg.eigvalsh(precision)) > 0).all()
        ):
            raise NotNormalizable(
                f"{self.name()} has no start at sigma={float(sigma):g}: the precisions of its noised factors, times "
                "their exponents, do not add up to a positive definite matrix"
            )
        if diagonal:
            return Gaussian(
                (shift / precision).reshape(self.event_shape), precision.reciprocal().reshape(self.event_shape)
            )
        covariance = torch.linalg.inv(precision)
        return Gaussian((covariance @ shift).reshape(self.event_shape), 0.5 * (covariance + covariance.mT))

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        draws = [term.sample(n, generator) for term, _ in self.pairs()]
        if isinstance(draws[0], Tensor):
            return draws[0]
        return {name: value for draw in draws for name, value in draw.items()}  # pyright: ignore[reportAttributeAccessIssue]

    def name(self) -> str:
        """The formula in normal form."""
        parts = [t.name() if e.constant == 1.0 else f"{t.name()}^{e.extra_repr()}" for t, e in self.pairs()]
        return " · ".join(parts) or "1"


def product(*terms: Term) -> Product:
    """Product of densities, AND: energies and scores add."""
    flat = list(terms[0]) if len(terms) == 1 and isinstance(terms[0], (list, tuple)) else list(terms)
    if not flat:
        raise ValueError("product() needs at least one term, got none")
    return Product([(t, 1.0) for t in flat])


def negation(p: Term, q: Term, gamma: object = 1.0) -> Product:
    r"""NOT: :math:`p / q^\gamma`. Use :func:`bounded_negation` when that has no finite integral."""
    return Product([(p, 1.0), (q, as_exponent(gamma) * Exponent(-1.0))])


def guidance(p: Term, p_c: Term, power: object) -> Product:
    r"""Guidance power: :math:`p(x)\,(p(x|c)/p(x))^\alpha` (Ho and Salimans, 2022, Classifier-free guidance)."""
    alpha = as_exponent(power)
    return Product([(p, Exponent(1.0) + alpha * Exponent(-1.0)), (p_c, alpha)])


def multiply(left: Term, right: object) -> Product:
    """``left * right`` for a term or a positive number."""
    if isinstance(right, Term):
        return Product([(left, 1.0), (right, 1.0)])
    return Product([(left, 1.0)], log_scale=_log_positive(right))


def divide(left: object, right: object) -> Product:
    """``left / right``, where one of the two may be a positive number."""
    if isinstance(left, Term) and isinstance(right, Term):
        return Product([(left, 1.0), (right, -1.0)])
    if isinstance(left, Term):
        return Product([(left, 1.0)], log_scale=-_log_positive(right))
    assert isinstance(right, Term)
    return Product([(right, -1.0)], log_scale=_log_positive(left))


def power(base: Term, exponent: object) -> Product:
    """``base ** exponent``."""
    return Product([(base, exponent)])


def _log_positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"a density is multiplied by a term or by a positive number, got {type(value).__name__}; "
            "wrap models and functions with boltzmix.term(...), and a tensor's value with float(...)"
        )
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"a density is scaled by a positive finite number, got {value}")
    return math.log(value)


def is_discrete(term: Term) -> bool:
    """Whether all variables of a term are discrete: it has no score, and adds none to a product."""
    own = term.variables
    return all(v.discrete for v in ([own] if isinstance(own, Variable) else own.values()))


def unite(scopes: Sequence[Variables], holds: Sequence[bool] | None = None, *, added: bool = False) -> Variables:
    """The union of scopes; unnamed terms must share one variable.

    A product lives where all of its factors do, so the supports of a variable meet; ``holds`` says whose supports
    count (a quotient ends where its numerator does). A sum of densities on several supports, ``added``, is over real
    variables: each member says where it is zero.

    Raises:
        ScopeError: shapes that differ, named and unnamed terms together, or supports that exclude each other.
    """
    named = [s for s in scopes if isinstance(s, Mapping)]
    plain = [s for s in scopes if isinstance(s, Variable)]
    if named and plain:
        raise ScopeError(
            f"terms over named variables {sorted(named[0])} cannot be combined with a term over one unnamed variable; "
            "bind it with .on(name)"
        )
    counts = [True] * len(scopes) if holds is None or not any(holds) else list(holds)
    if plain:
        if any(not s.compatible(plain[0]) for s in plain):
            raise ScopeError(
                f"terms over different variables: {' and '.join(dict.fromkeys(map(describe_variables, plain)))}; "
                "bind them to names with .on(name), or match their shapes"
            )
        return _joined(list(zip(plain, counts, strict=True)), "x", added)
    union: dict[str, list[tuple[Variable, bool]]] = {}
    for scope, held in zip(named, counts, strict=True):
        for name, variable in scope.items():
            if name in union and not union[name][0][0].compatible(variable):
                raise ScopeError(
                    f"variable {name!r} has {describe_variables(union[name][0][0])} in one term and "
                    f"{describe_variables(variable)} in another; rename one of them in .on(...)"
                )
            union.setdefault(name, []).append((variable, held))
    return {name: _joined(found, name, added) for name, found in union.items()}


def _joined(found: Sequence[tuple[Variable, bool]], name: str, added: bool) -> Variable:
    """The first of compatible variables that declares a dtype, else the first, with the support of all."""
    variables = [v for v, _ in found]
    declared = {v.dtype: v for v in variables if v.dtype is not None}
    if len(declared) > 1:
        raise TypeError(f"terms want variable {name!r} in {' and in '.join(map(str, declared))}; convert one of them")
    chosen = next(iter(declared.values()), variables[0])
    supports = [v.support for v, held in found if held] or [v.support for v in variables]
    if len({identity(support) for support in supports}) == 1:
        both = supports[0]
    elif added:
        both = "real" if all(edges(support) is not None for support in supports) else None
    else:
        both = meet(supports)
    if both is None:
        raise ScopeError(
            f"variable {name!r} is {' in one term and '.join(dict.fromkeys(map(describe, supports)))} in another: "
            "declare one support for it in both"
        )
    return chosen if identity(both) == identity(chosen.support) else replace(chosen, support=both)


def common_range(terms: Sequence[Term]) -> tuple[float, float]:
    """The noise levels that all non-static terms take.

    Raises:
        ValueError: there are none.
    """
    moving = [t for t in terms if t.path != "static"]
    low = max((t.sigma_range[0] for t in moving), default=0.0)
    high = min((t.sigma_range[1] for t in moving), default=math.inf)
    if low > high:
        ranges = ", ".join(f"{t.name()}: [{t.sigma_range[0]:g}, {t.sigma_range[1]:g}]" for t in moving)
        raise ValueError(f"the terms share no noise level: {ranges}; rescale one with affine(term, scale=...)")
    return low, high


def open_leaves(terms: Sequence[Term]) -> list[Term]:
    """The terms with composites opened: what is evaluated together at one (x, σ)."""
    leaves: list[Term] = []
    for term in terms:
        leaves.extend(term._leaves() if isinstance(term, Composite) else [term])
    return leaves


def value_of(term: Term, values: Mapping[Hashable, Evaluated], x: State, sigma: Any, score: bool) -> Evaluated:
    """A member's value from those of the leaves."""
    return term._combine(values, x, sigma, score) if isinstance(term, Composite) else values[term.key()]


def condition_on(term: Term, condition: Mapping[str, object]) -> Term:
    """``term.given`` of those conditions that it takes."""
    mine = {name: value for name, value in condition.items() if name in term.conditions}
    return term.given(**mine) if mine else term


def holds(term: Term, sigma: Tensor) -> bool:
    """Whether a term holds any entry of the state at a large σ."""
    return bool(torch.as_tensor(term._strength(sigma)).any())


def scope_names(term: Term) -> set[str]:
    """Names of a term's variables; one unnamed variable is called x."""
    return set(term.variables) if isinstance(term.variables, Mapping) else {"x"}


def normalized_names(term: Term) -> set[str] | None:
    """The variables over which a term integrates to one, None when it does not."""
    if term.normalized:
        return scope_names(term)
    return set(term.normalized_over) if term.normalized_over else None


def _reason(kept: list[tuple[Term, Exponent]]) -> str:
    for term, exponent in kept:
        if term.path != "noised":
            return f"its factor {term.name()} is {term.path}" + (f": {term.path_reason}" if term.path_reason else "")
        if exponent.constant != 1.0:
            return f"its factor {term.name()} has exponent {exponent.extra_repr()}"
    return "a product of noised densities is not the noised product"


def moments(part: Gaussian | GaussianMixture) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and covariance of a coarse form, ``(D,)`` where it is diagonal, else ``(D, D)``."""
    if isinstance(part, Gaussian):
        return part.mean, part.variances if part.basis is None else part.covariance
    mean = part.weights @ part.means
    centred = part.means - mean
    return mean, torch.einsum("k,kij->ij", part.weights, part.covariances) + (
        part.weights[:, None] * centred
    ).mT @ centred


def _level_of(term: Term, sigma: Any) -> Tensor | None:
    """The level at which a factor's exponent is taken: the largest among its own variables."""
    if not isinstance(sigma, Mapping):
        return sigma
    levels = [sigma[name] for name in term.variables if sigma.get(name) is not None]  # pyright: ignore[reportGeneralTypeIssues]
    return functools.reduce(torch.maximum, levels) if levels else None


def _number(weight: float | Tensor) -> float:
    return float(weight.detach()) if isinstance(weight, Tensor) else float(weight)


def _is_zero(weight: float | Tensor) -> bool:
    if isinstance(weight, Tensor):
        return weight.ndim == 0 and not weight.requires_grad and not is_tracing() and float(weight) == 0.0
    return weight == 0.0


def _powered(value: Tensor, weight: float | Tensor) -> Tensor:
    """``weight · value``, with 0 · ∞ = 0: p ** 0 is 1 also where p is 0."""
    if isinstance(weight, Tensor):
        weight = expand_rows(weight, value)
        if weight.ndim or weight.requires_grad or is_tracing():
            value = torch.where((weight == 0) & ~torch.isfinite(value), 0.0, value)
        return weight * value
    return value if weight == 1.0 else weight * value


def _accumulate(total: State | None, score: State, weight: float | Tensor) -> State:
    def scaled(s: Tensor) -> Tensor:
        return _powered(s, weight)

    if isinstance(score, Tensor):
        if isinstance(total, Tensor) and not isinstance(weight, Tensor):
            return torch.add(total, score, alpha=weight)
        part = scaled(score)
        return part if total is None else total + part  # pyright: ignore[reportOperatorIssue]
    assert not isinstance(total, Tensor)
    result: dict[str, Tensor] = {} if total is None else dict(total)
    for name, s in score.items():
        part = scaled(s)
        result[name] = result[name] + part if name in result else part
    return result
