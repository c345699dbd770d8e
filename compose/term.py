r"""Terms: unnormalised densities :math:`p(x; \sigma) \propto \exp(-E(x; \sigma))`.

Every model is a term and every formula over terms is a term. The noise coordinate is the same for all:
:math:`x_\sigma = x_0 + \sigma \varepsilon`, and ``sigma=None`` means the data end of the path.

A term's *path* says what σ means for it.

``"noised"``
    :math:`p(x; \sigma)` is exactly the density of :math:`x_0 + \sigma \varepsilon`.
``"annealed"``
    A family that ends in the right density at σ = 0 but is no convolution (a product of noised terms).
``"static"``
    σ is ignored.

Subclasses override hooks (``_energy``, ``_score`` or the fused ``_energy_and_score``); the public
methods validate their input, then call the hooks, and are final.
"""

import importlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.compose.variable import (
    Sigma,
    State,
    Variable,
    Variables,
    check_state,
    describe_variables,
    expand_rows,
    first_tensor,
    map_state,
)

if TYPE_CHECKING:
    from boltzmix.compose.gaussian import Gaussian, GaussianMixture
    from boltzmix.compose.product import Product

PathKind = Literal["static", "noised", "annealed"]
Evaluated = tuple[Tensor | None, State | None]
_FINAL = ("energy", "score", "energy_and_score", "log_ratio", "denoise", "coarse", "log_prob")

# Gauss–Legendre nodes and weights on [0, 1] (Abramowitz and Stegun, table 25.4).
_LEGENDRE = {
    1: ((0.5,), (1.0,)),
    2: ((0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3)), (0.5, 0.5)),
    3: ((0.5 - 0.5 * math.sqrt(0.6), 0.5, 0.5 + 0.5 * math.sqrt(0.6)), (5 / 18, 8 / 18, 5 / 18)),
}


class Term(nn.Module):
    r"""Unnormalised density :math:`p(x; \sigma) \propto e^{-E(x; \sigma)}` over one or several variables.

    Attributes:
        variables: a :class:`Variable`, or a mapping from names to variables.
        path: ``"static"``, ``"noised"`` or ``"annealed"`` (see the module's page).
        has_energy: whether :meth:`energy` works; False for terms known by their score alone.
        has_score: whether :meth:`score` works; False for mixtures of score-only terms.
        normalized: whether ``energy == −log p`` exactly at every σ.
        calibrated: whether the energy's constant means something, so that log Z does too.
        sigma_range: the noise levels that the term takes, inclusive.
        samplable: whether :meth:`sample` draws exactly.
        conditions: the names that :meth:`given` takes.
        path_reason: for annealed terms, the factor or operation that made the path so.
        normalized_over: the variables over which a conditional integrates to one, given the others.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> p = Gaussian(torch.zeros(2), 1.0) * Gaussian(torch.ones(2), 1.0)
        >>> p.score(torch.full((1, 2), 0.5)).tolist()
        [[0.0, 0.0]]
    """

    variables: Variables
    path: PathKind = "static"
    has_energy: bool = True
    has_score: bool = True
    normalized: bool = False
    calibrated: bool = False
    samplable: bool = False
    sigma_range: tuple[float, float] = (0.0, math.inf)
    conditions: frozenset[str] = frozenset()
    path_reason: str = ""
    normalized_over: frozenset[str] | None = None

    #: numpy scalars leave ``np.float64(0.3) * p`` to us
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Refuse overrides of the public methods: they validate, and the hooks do the work."""
        super().__init_subclass__(**kwargs)
        taken = [name for name in _FINAL if name in cls.__dict__ and cls.__module__ != __name__]
        if taken:
            raise TypeError(f"{cls.__name__} overrides {taken}; override the hooks _energy, _score, … instead")

    # ------------------------------------------------------------------ hooks

    def _energy(self, x: State, sigma: Any) -> Tensor:
        """Energy ``(N,)``; σ is None, a scalar tensor, ``(N,)``, or a mapping of these per variable."""
        if type(self)._energy_and_score is Term._energy_and_score:
            raise NotImplementedError(f"{type(self).__name__} defines neither _energy nor _energy_and_score")
        return self._energy_and_score(x, sigma)[0]

    def _score(self, x: State, sigma: Any) -> State:
        """Score ∇ log p, shaped like x."""
        return self._energy_and_score(x, sigma)[1]

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        """Energy and score from one forward and one backward."""
        keep = torch.is_grad_enabled() and self._needs_graph(x)

        def tracked(t: Tensor) -> Tensor:
            return t if keep and t.requires_grad else t.detach().requires_grad_(t.is_floating_point())

        with torch.enable_grad():
            leaf = map_state(tracked, x)
            energy = self._energy(leaf, sigma)
            score = score_from_energy(energy, leaf, keep, self)
        return (energy if keep else energy.detach()), score

    def _coarse(self, sigma: Tensor) -> "Gaussian | GaussianMixture":
        from boltzmix.compose.gaussian import Gaussian

        assert isinstance(self.variables, Variable)
        tensors = (t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())
        reference = next(tensors, torch.zeros(()))
        level = sigma.to(reference)
        origin = torch.zeros(1, *self.variables.shape, dtype=level.dtype, device=level.device)
        mean = origin + level**2 * self._score(origin, level)  # pyright: ignore[reportOperatorIssue]
        return Gaussian(mean[0].detach(), float(level) ** 2)

    def _information(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Precision of the coarse form, ``(D,)`` or ``(D, D)``, and its product with the mean, ``(D,)``."""
        mean, spread = _operators().moments(self._coarse(sigma))
        if spread.ndim == 1:
            return spread.reciprocal(), mean / spread
        precision = torch.linalg.inv(spread)
        return precision, precision @ mean

    def _strength(self, sigma: Tensor) -> float | Tensor:
        """Precision that the term adds at a large σ, in units of 1/σ²; 0 where it does not hold the state.

        A tensor of one number for each entry of the variable where the term holds some of them.
        """
        return 0.0 if self.path == "static" else 1.0

    def _denoise(self, x: State, sigma: Any) -> State:
        score = self._score(x, sigma)

        def step(t: Tensor, s: Tensor, name: str | None = None) -> Tensor:
            level = sigma.get(name) if isinstance(sigma, Mapping) else sigma
            return t if level is None else t + expand_rows(level, t) ** 2 * s

        if isinstance(x, Tensor):
            return step(x, score)  # pyright: ignore[reportArgumentType]
        return {name: step(x[name], score[name], name) for name in x}  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _given(self, **condition: object) -> "Term":
        raise TypeError(f"{self.name()} takes no condition, got {sorted(condition)}")

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        raise TypeError(f"{self.name()} cannot be sampled exactly; draw from it with boltzmix.sample(term, {n})")

    def key(self) -> Hashable:
        """Identity under which equal terms of a product merge: network and frozen condition."""
        return ("term", id(self))

    def _group(self) -> Hashable | None:
        """Terms with equal groups are evaluated together by :meth:`_evaluate_together`."""
        return None

    def _evaluate_together(
        self,
        terms: Sequence["Term"],
        x: State,
        sigma: Any,
        energy: bool,
        score: bool,
    ) -> list[Evaluated]:
        """Evaluate terms of one group at one (x, σ), in one forward pass where the family can."""
        raise NotImplementedError

    def _stack_rows(self, terms: Sequence["Term"], n: int) -> "Term | None":
        """One term for the k · n rows of k terms of one group, term after term; None where a family cannot say so.

        For terms of which each is evaluated at states of its own: a batch in which conditions differ by row.
        """
        return None

    def _rows(self) -> int:
        """Network rows that one evaluation of one state costs (0 for closed forms)."""
        return 0

    def _calls(self) -> Mapping[Hashable, int]:
        """The same by what is evaluated, so that what terms of a formula share is counted once."""
        return {self.key(): self._rows()}

    # ----------------------------------------------------------- public, final

    def energy(self, x: State, sigma: Sigma = None) -> Tensor:
        r""":math:`E(x; \sigma) = -\log p(x; \sigma)` up to the term's constant.

        Args:
            x: state, ``(N, *event)`` or a mapping of such tensors.
            sigma: noise level, a scalar, ``(N,)`` or a mapping per variable; None is the data end.

        Returns:
            ``(N,)``.

        Raises:
            MissingEnergy: the term is known by its score alone.
        """
        level = self._check(x, sigma)
        self._require_energy("energy()")
        return self._check_energy(self._energy(x, level), x)

    def score(self, x: State, sigma: Sigma = None) -> State:
        r""":math:`\nabla_x \log p(x; \sigma)`, shaped like x."""
        level = self._check(x, sigma)
        self._require_score("score()")
        return self._score(x, level)

    def energy_and_score(self, x: State, sigma: Sigma = None) -> tuple[Tensor, State]:
        """Both, from one forward and one backward pass."""
        level = self._check(x, sigma)
        self._require_energy("energy_and_score()")
        energy, score = self._energy_and_score(x, level)
        return self._check_energy(energy, x), score

    def log_prob(self, x: State, sigma: Sigma = None) -> Tensor:
        """Log-density ``(N,)`` of a normalised term.

        Raises:
            TypeError: the term is not normalised.
        """
        if not self.normalized:
            if not self.has_energy and self.path == "noised":
                raise TypeError(
                    f"log_prob() needs a normalised density and {self.name()} has only a score; integrate it along "
                    "the noise levels: boltzmix.models.log_likelihood(term, x)"
                )
            raise TypeError(
                f"log_prob() needs a normalised density and {self.name()} is known up to a constant; use -energy(x), "
                "or calibrate(term) first"
            )
        return -self.energy(x, sigma)

    def log_ratio(self, x: State, y: State, sigma: Sigma = None, *, nodes: int = 3) -> Tensor:
        r""":math:`\log p(y; \sigma) - \log p(x; \sigma)`, shaped ``(N,)``.

        Score-only terms integrate the score along the segment,
        :math:`\int_0^1 \langle s(x + u(y - x)), y - x \rangle\, du`, by Gauss–Legendre quadrature with
        ``nodes`` ∈ {1, 2, 3} evaluations; exact for scores that are polynomials of degree 2·nodes − 1.
        """
        if nodes not in _LEGENDRE:
            raise ValueError(f"log_ratio takes nodes in {sorted(_LEGENDRE)}, got {nodes}")
        level = self._check(x, sigma)
        self._check(y, sigma)
        if first_tensor(x).shape[0] != first_tensor(y).shape[0]:
            raise ValueError(
                f"log_ratio compares states of one batch size, got {first_tensor(x).shape[0]} and "
                f"{first_tensor(y).shape[0]}"
            )
        if self.has_energy:
            return self._check_energy(self._energy(x, level), x) - self._check_energy(self._energy(y, level), y)
        self._require_score("log_ratio()")
        total: Tensor | float = 0.0
        for node, weight in zip(*_LEGENDRE[nodes], strict=True):
            point = map_state(lambda a, b, u=node: a + u * (b - a), x, y)
            products = map_state(lambda s, a, b: (s * (b - a)).flatten(1).sum(1), self._score(point, level), x, y)
            inner = products if isinstance(products, Tensor) else sum(products.values())
            total = total + weight * inner
        return total  # pyright: ignore[reportReturnType]

    def denoise(self, x: State, sigma: Sigma) -> State:
        r"""Tweedie's estimate :math:`E[x_0 | x_\sigma = x] = x + \sigma^2 \nabla \log p(x; \sigma)`.

        Raises:
            TypeError: the path is not noised, so the formula does not hold; the message says why.
        """
        if self.path != "noised":
            why = f" because {self.path_reason}" if self.path_reason else ""
            raise TypeError(
                f"denoise() needs a noised path and {self.name()} is {self.path}{why}; "
                "denoise its noised factors instead"
            )
        if sigma is None:
            raise ValueError("denoise() needs a noise level, got sigma=None")
        return self._denoise(x, self._check(x, sigma))

    def coarse(self, sigma: float) -> "Gaussian | GaussianMixture":
        """What the term looks like at a large noise level: where a path may start."""
        if self.path == "static":
            raise TypeError(f"{self.name()} is static: it does not change with sigma and has no coarse form")
        if not isinstance(self.variables, Variable):
            raise TypeError("coarse() is for terms over one variable; ask the factors")
        if not (isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"coarse() needs a finite sigma > 0, got {sigma!r}")
        return self._coarse(torch.tensor(float(sigma), dtype=torch.float64))

    def given(self, **condition: object) -> "Term":
        """The conditional term, e.g. ``p.given(label=3)``; the network is shared, not copied.

        Raises:
            TypeError: a name that the term does not take; the message lists those it takes.
        """
        if not condition:
            raise TypeError("given() needs at least one condition, e.g. given(label=3)")
        unknown = sorted(set(condition) - self.conditions)
        if unknown:
            takes = f"it takes {sorted(self.conditions)}" if self.conditions else "it takes none"
            raise TypeError(f"{self.name()} got unknown condition {unknown}; {takes}")
        return self._given(**condition)

    def sample(self, n: int, generator: torch.Generator | None = None) -> State:
        """``n`` exact, independent draws (only where ``samplable``)."""
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"sample() needs a positive int n, got {n!r}")
        if not self.samplable:
            raise TypeError(f"{self.name()} cannot be sampled exactly; draw with boltzmix.sample(term, {n})")
        return self._sample(n, generator)

    def on(self, *names: str) -> "Term":
        """The same density over named variables, for factor graphs: ``p.on("x") * q.on("x", "y")``."""
        from boltzmix.compose.wrappers import On

        return On(self, names)

    def at(self, sigma: Sigma) -> "Term":
        """The density frozen at one noise level: a static term."""
        from boltzmix.compose.wrappers import At

        return At(self, sigma)

    # -------------------------------------------------------------- operators

    def __mul__(self, other: object) -> "Product":
        """Product of densities, or a positive scale."""
        return _operators().multiply(self, other)

    def __rmul__(self, other: object) -> "Product":
        """``0.3 * p``: a density scaled by a positive number."""
        return _operators().multiply(self, other)

    def __truediv__(self, other: object) -> "Product":
        """Quotient ``p / q``, or division by a positive number."""
        return _operators().divide(self, other)

    def __rtruediv__(self, other: object) -> "Product":
        """``1 / p``."""
        return _operators().divide(other, self)

    def __pow__(self, exponent: object) -> "Product":
        """Power ``p ** w``; w is a number, a scalar tensor or a function of σ."""
        return _operators().power(self, exponent)

    def __add__(self, other: object) -> "Term":
        """Sum of unnormalised densities (``mixture`` weighs its members)."""
        from boltzmix.compose.mixture import add

        return add(self, other)

    def __radd__(self, other: object) -> "Term":
        """``0 + p`` is p, so that ``sum([p, q])`` works."""
        if isinstance(other, (int, float)) and not isinstance(other, bool) and other == 0:
            return self
        return self + other

    def __neg__(self) -> "Term":
        """Densities have no negative; write ``1 / p`` or a quotient."""
        raise TypeError("a density has no negative: write p / q ** gamma for NOT, or 1 / p")

    def __sub__(self, other: object) -> "Term":
        """Densities cannot be subtracted; write a quotient."""
        raise TypeError("densities are not subtracted: write p / q ** gamma, or bounded_negation(p, q, alpha)")

    __rsub__ = __sub__

    def __or__(self, other: object) -> "Term":
        """Use ``+`` or ``mixture``."""
        raise TypeError("write mixture([p, q]) or 0.5 * p + 0.5 * q for OR")

    def __and__(self, other: object) -> "Term":
        """Use ``*``."""
        raise TypeError("write p * q for AND")

    def __invert__(self) -> "Term":
        """Use a quotient."""
        raise TypeError("write p / q ** gamma for NOT: the complement of a density alone cannot be normalised")

    # ------------------------------------------------------------------ state

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """PyTorch's, with what members share (a network, a learnable exponent) held once."""
        prefix = args[1] if len(args) > 1 else kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        for twin in _twins(self):
            state.pop(prefix + twin, None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for twin, original in _twins(self).items():
            if prefix + twin not in state_dict and prefix + original in state_dict:
                state_dict[prefix + twin] = state_dict[prefix + original]
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---------------------------------------------------------------- helpers

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one draw, for terms over one variable."""
        if not isinstance(self.variables, Variable):
            raise TypeError(f"event_shape is for terms over one variable; this one has {list(self.variables)}")
        return self.variables.shape

    def name(self) -> str:
        """A short name for messages."""
        return type(self).__name__

    def _needs_graph(self, x: State) -> bool:
        tensors = [x] if isinstance(x, Tensor) else list(x.values())
        return any(t.requires_grad for t in tensors) or any(p.requires_grad for p in self.parameters())

    def _require_energy(self, what: str) -> None:
        if not self.has_energy:
            raise MissingEnergy(
                f"{what} needs an energy and {self.name()} has only a score; use score(), log_ratio(), "
                "an energy-parameterised model, or a score-only sampler (Reverse, Annealed with UHMC or ULA)"
            )

    def _require_score(self, what: str) -> None:
        own = [self.variables] if isinstance(self.variables, Variable) else list(self.variables.values())
        if not self.has_score and all(v.discrete for v in own):
            raise MissingEnergy(
                f"{what}: {self.name()} is over integers ({own[0].support}) and has no gradient; use its energy, or a "
                "sampler of discrete variables"
            )
        if not self.has_score:
            raise MissingEnergy(
                f"{what}: {self.name()} mixes score-only members, whose weights are unknown away from a sampler; "
                "sample the mixture at the top level, or use members with energies"
            )

    def _check(self, x: State, sigma: Sigma) -> Any:
        n = check_state(x, self.variables, self.name())
        if sigma is None:
            return None
        if isinstance(sigma, Mapping):
            if isinstance(self.variables, Variable) or set(sigma) - set(self.variables):
                raise ValueError(
                    f"sigma per variable needs the names of {describe_variables(self.variables)}, got {sorted(sigma)}"
                )
            return {k: None if v is None else self._check_level(v, x[k], n) for k, v in sigma.items()}  # pyright: ignore[reportArgumentType, reportCallIssue]
        return self._check_level(sigma, first_tensor(x), n)

    def _check_level(self, sigma: float | Tensor, like: Tensor, n: int) -> Tensor:
        if isinstance(sigma, Tensor):
            if not sigma.is_floating_point():
                raise TypeError(f"sigma must be floating point, got {sigma.dtype}")
            if sigma.shape not in ((), (n,)):
                raise ValueError(f"sigma has shape () or (N,) = ({n},), got {tuple(sigma.shape)}")
            level = sigma.to(like if like.is_floating_point() else like.device)
        elif isinstance(sigma, (int, float)) and not isinstance(sigma, bool):
            level = torch.tensor(float(sigma), dtype=like.dtype if like.is_floating_point() else None)
            level = level.to(like.device)
        else:
            raise TypeError(f"sigma is a number, a tensor or None, got {type(sigma).__name__}")
        check_levels(level, (0.0, math.inf) if self.path == "static" else self.sigma_range, self.name())
        return level

    def _check_energy(self, energy: Tensor, x: State) -> Tensor:
        like = first_tensor(x)
        if energy.shape != (like.shape[0],):
            raise ValueError(
                f"{self.name()} must return energies of shape (N,) = ({like.shape[0]},), got {tuple(energy.shape)}; "
                "sum over the event dimensions"
            )
        if energy.dtype in (torch.float16, torch.bfloat16) and bool(energy.isnan().any()):
            raise NonFinite(
                f"{self.name()} gives NaN energies in {energy.dtype}, whose numbers end at "
                f"{torch.finfo(energy.dtype).max:.3g}: compute it in float32, with model.float() and x.float()"
            )
        return energy


class Normalized(Term):
    """A term whose energy is exactly −log p at every σ."""

    normalized = True
    calibrated = True


def check_levels(level: Tensor, sigma_range: tuple[float, float], owner: str) -> None:
    """Refuse noise levels that are negative, NaN, infinite or outside ``sigma_range``."""
    if not level.numel():
        return
    low, high = float(level.min()), float(level.max())
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"noise levels are finite and >= 0, got {low:g} … {high:g} for {owner}")
    least, most = sigma_range
    tolerance = 1e-6
    if low < least * (1 - tolerance) or high > most * (1 + tolerance):
        raise ValueError(
            f"{owner} knows noise levels in [{least:g}, {most:g}], got {low:g} … {high:g}; "
            "use sigma=None for its data end, or levels inside the range"
        )


def _twins(module: nn.Module) -> dict[str, str]:
    """Names under which a parameter or buffer is held again, with the name that holds it first."""
    first: dict[int, str] = {}
    twins: dict[str, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if first.setdefault(id(tensor), name) != name:
            twins[name] = first[id(tensor)]
    return twins


def score_from_energy(energy: Tensor, x: State, create_graph: bool, owner: Term) -> State:
    """−∂E/∂x by autograd; zero where a constant energy does not depend on x."""
    leaves = [x] if isinstance(x, Tensor) else list(x.values())
    if energy.requires_grad:
        wanted = [t for t in leaves if t.is_floating_point()]
        grads = iter(torch.autograd.grad(energy.sum(), wanted, create_graph=create_graph, allow_unused=True))
        found = [next(grads) if t.is_floating_point() else None for t in leaves]
    else:
        finite = energy[torch.isfinite(energy)]
        if finite.numel() and not bool((finite == finite[0]).all()):
            raise ValueError(
                f"{owner.name()}: the energy varies with x but carries no gradient; compute it with torch "
                "operations on x, outside no_grad(), without detach() or numpy"
            )
        found = [None] * len(leaves)
    scores = [torch.zeros_like(t) if g is None else -g for t, g in zip(leaves, found, strict=True)]
    return scores[0] if isinstance(x, Tensor) else dict(zip(x, scores, strict=True))


def evaluate(
    terms: Sequence[Term],
    x: State,
    sigma: Any,
    *,
    energy: bool,
    score: bool,
) -> dict[Hashable, Evaluated]:
    """Evaluate distinct terms at one (x, σ), each once, members of one network in one forward.

    Energies are computed for terms that have them when ``energy`` is set, scores when ``score`` is.
    """
    values: dict[Hashable, Evaluated] = {}
    groups: dict[Hashable, dict[Hashable, Term]] = {}
    for term in terms:
        key = term.key()
        if key not in values:
            values[key] = (None, None)
            group = term._group()
            groups.setdefault(("single", key) if group is None else group, {})[key] = term
    for named in groups.values():
        members = list(named.values())
        flat = _without_gradient(members[0], x) if score else None
        if len(members) == 1:
            results = [evaluate_one(members[0], x, sigma, energy, score and flat is None)]
        else:
            results = members[0]._evaluate_together(members, x, sigma, energy, score and flat is None)
        if flat is not None:
            results = [(found, flat) for found, _ in results]
        values.update(zip(named, results, strict=True))
    return values


def _without_gradient(term: Term, x: State) -> State | None:
    """The score of a term that reads integers only, which is zero; None for others."""
    if isinstance(x, Tensor):
        return None if x.is_floating_point() else torch.zeros_like(x)
    own = {name: x[name] for name in term.variables}  # pyright: ignore[reportGeneralTypeIssues]
    if any(t.is_floating_point() for t in own.values()):
        return None
    return {name: torch.zeros_like(t) for name, t in own.items()}


def evaluate_one(term: Term, x: State, sigma: Any, energy: bool, score: bool) -> Evaluated:
    """One term's (energy or None, score or None) from the cheapest hook."""
    if energy and term.has_energy:
        return term._energy_and_score(x, sigma) if score else (term._energy(x, sigma), None)
    return None, (term._score(x, sigma) if score else None)


def _operators() -> Any:
    """The module of the product, whose name the function ``product`` takes in the package."""
    return importlib.import_module("boltzmix.compose.product")
