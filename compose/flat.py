"""One flat target for every kernel: states of any shape are seen as ``(N, D)``.

:class:`FlatView` lays a term's variables side by side, takes clamped coordinates out of what moves, and
counts evaluations. ``view.at(sigma)`` is the target that kernels see at one noise level.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.constraints import Clamp
from boltzmix.compose.errors import MissingEnergy, ScopeError
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State, Variable
from boltzmix.compose.wrappers import On


class Counter:
    """Evaluations so far: ``rows`` of states at one σ each, and ``network_rows`` that these cost."""

    def __init__(self) -> None:
        """Start at zero."""
        self.rows = 0
        self.network_rows = 0


class FlatView:
    """A term over flat states ``(N, D)``.

    Args:
        term: any term over continuous variables; :class:`Clamp` factors fix their coordinates.
        dtype: of the states; by default that of the term's parameters.
        device: likewise.
        rows: number of draws, needed when a Clamp has a value for each.

    Raises:
        TypeError: a discrete variable.
        ValueError: every coordinate is clamped, or a Clamp with values for another number of draws.
    """

    def __init__(
        self,
        term: Term,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rows: int | None = None,
    ) -> None:
        """Lay out the variables and separate the clamps."""
        self.original = term
        self.term, clamps = _separate(term)
        variables = term.variables
        self.names: list[str] | None = list(variables) if isinstance(variables, Mapping) else None
        self._variables: list[Variable] = list(variables.values()) if isinstance(variables, Mapping) else [variables]
        for name, variable in zip(self.names or ["x"], self._variables, strict=True):
            if variable.discrete:
                instead = (
                    f"draw exactly with {term.name()}.sample(n, generator)"
                    if term.samplable
                    else "condition on it with .given(…), or draw from a factor with .sample(n, generator) and weigh "
                    "the draws by exp(E_factor - E)"
                )
                raise TypeError(
                    f"variable {name!r} is discrete ({variable.support}) and samplers move real variables only; "
                    f"{instead}"
                )
        found = _first_float(term)
        declared = next((v.dtype for v in self._variables if v.dtype is not None), None)
        if dtype is not None and declared is not None and dtype != declared:
            raise TypeError(f"{term.name()} has states of {declared} and dtype={dtype} was asked for; leave out dtype=")
        default = found.dtype if found is not None else torch.get_default_dtype()
        self.dtype = dtype or declared or default
        if self.dtype in (torch.float16, torch.bfloat16):
            whose = "was asked for" if dtype is not None else f"is that of {term.name()}"
            raise TypeError(
                f"samplers move states in float32 or float64, and {self.dtype} {whose}: rounding would swallow small "
                "steps and weights. Keep a network in half precision behind states in float32 with "
                "boltzmix.term(network, …, cast=True), or convert the model with .float()"
            )
        self.device = torch.device(device) if device is not None else device_of(term)
        self.counter = Counter()
        self._sizes = [torch.Size(v.shape).numel() for v in self._variables]
        total = sum(self._sizes)
        self._free: Tensor | None = None
        self._fixed: Tensor | None = None
        self.per_row = any(getattr(module, "per_row", False) is True for module in self.term.modules())
        if clamps:
            self._clamp(clamps, total, rows)
        self.dim = total if self._free is None else len(self._free)

    def _clamp(self, clamps: list[tuple[str | None, Clamp]], total: int, rows: int | None) -> None:
        clamped_rows = any(c.per_row for _, c in clamps)
        self.per_row = self.per_row or clamped_rows
        mask = torch.zeros(total, dtype=torch.bool, device=self.device)
        value = torch.zeros((rows or 1) if clamped_rows else 1, total, dtype=self.dtype, device=self.device)
        for name, clamp in clamps:
            index = 0 if self.names is None or name is None else self.names.index(name)
            start = sum(self._sizes[:index])
            part = slice(start, start + self._sizes[index])
            if clamp.per_row and clamp.value.shape[0] != rows:
                raise ValueError(
                    f"a Clamp holds {clamp.value.shape[0]} conditions and {rows} draws were asked for; pass "
                    "n equal to the number of conditions, or one condition for all"
                )
            own = clamp.mask.reshape(-1).to(self.device)
            if bool((mask[part] & own).any()):
                raise ValueError("two Clamps fix the same coordinate")
            mask[part] |= own
            values = clamp.value.reshape(clamp.value.shape[0] if clamp.per_row else 1, -1).to(value)
            value[:, part] = torch.where(own, values, value[:, part])
        if bool(mask.all()):
            raise ValueError("every coordinate is clamped: there is nothing left to sample")
        self._free, self._fixed = (~mask).nonzero()[:, 0], value

    @property
    def has_energy(self) -> bool:
        """Whether Metropolis kernels and weights can be used."""
        return self.term.has_energy

    def ravel(self, x: State) -> Tensor:
        """Flat free coordinates ``(N, D)`` of a state."""
        parts = [x] if isinstance(x, Tensor) else [x[name] for name in self.names or []]
        flat = torch.cat([p.reshape(p.shape[0], -1) for p in parts], dim=1) if len(parts) > 1 else parts[0].flatten(1)
        return flat if self._free is None else flat[:, self._free]

    def unravel(self, flat: Tensor) -> State:
        """The state whose free coordinates are ``flat``."""
        if self._free is not None:
            assert self._fixed is not None
            full = self._fixed.to(flat).expand(flat.shape[0], -1).index_copy(1, self._free, flat)
        else:
            full = flat
        if self.names is None:
            return full.reshape(flat.shape[0], *self._variables[0].shape)
        pieces = full.split(self._sizes, dim=1)
        return {
            name: piece.reshape(flat.shape[0], *v.shape)
            for name, piece, v in zip(self.names, pieces, self._variables, strict=True)
        }

    def spread(self, values: list[float]) -> Tensor:
        """One number per variable as one per free coordinate, ``(D,)`` in float64."""
        sizes = torch.tensor(self._sizes, device=self.device)
        full = torch.tensor(values, dtype=torch.float64, device=self.device).repeat_interleave(sizes)
        return full if self._free is None else full[self._free]

    def with_term(self, term: Term) -> "FlatView":
        """The same layout and counter for another term over the same variables."""
        clone = object.__new__(FlatView)
        clone.__dict__.update(self.__dict__)
        clone.__dict__.pop("_rows_each", None)
        clone.term = term
        return clone

    def as_product(self) -> "FlatView":
        """The view with its term in the normal form of products."""
        return self if isinstance(self.term, Product) else self.with_term(Product([(self.term, 1.0)]))

    @property
    def full_dim(self) -> int:
        """Number of coordinates, clamped ones included."""
        return sum(self._sizes)

    def at(self, sigma: Any = None) -> "FlatTarget":
        """The target at one noise level."""
        self.term._require_score("sampling")
        if isinstance(sigma, (int, float)):
            sigma = torch.tensor(float(sigma), dtype=self.dtype, device=self.device)
        return FlatTarget(self, sigma)

    def count(self, rows: int) -> None:
        """Record ``rows`` evaluations."""
        self.counter.rows += rows
        self.counter.network_rows += rows * self._network_rows

    @property
    def _network_rows(self) -> int:
        if not hasattr(self, "_rows_each"):
            self._rows_each = self.term._rows()
        return self._rows_each


class FlatTarget:
    """What a kernel sees: energies ``(N,)`` and scores ``(N, D)`` at one noise level, without a graph."""

    def __init__(self, view: FlatView, sigma: Tensor | None) -> None:
        """Bind a view to a level."""
        self.view = view
        self.sigma = sigma
        self.dim, self.dtype, self.device, self.has_energy = view.dim, view.dtype, view.device, view.has_energy
        self._plain = view.names is None and view._free is None and len(view._variables[0].shape) == 1

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(N,)``."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            return self._checked(self.view.term._energy(self._state(x), self.sigma), x)

    def score(self, x: Tensor) -> Tensor:
        """Scores ``(N, D)``."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            return self._flat(self.view.term._score(self._state(x), self.sigma))

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            energy, score = self.view.term._energy_and_score(self._state(x), self.sigma)
            return self._checked(energy, x), self._flat(score)

    def _state(self, x: Tensor) -> State:
        return x if self._plain else self.view.unravel(x)

    def _flat(self, score: State) -> Tensor:
        return score if self._plain else self.view.ravel(score)  # pyright: ignore[reportReturnType]

    def _checked(self, energy: Tensor, x: Tensor) -> Tensor:
        if energy.shape != (x.shape[0],):
            raise ValueError(
                f"{self.view.term.name()} must return energies of shape (N,) = ({x.shape[0]},), "
                f"got {tuple(energy.shape)}; sum over the event dimensions"
            )
        return energy


def ravel(term: Term, sigma: float | None = None, **options: Any) -> FlatTarget:
    """The flat target of a term, for writing one's own loop over a kernel.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> target = ravel(Gaussian(torch.zeros(3, 4), 1.0))
        >>> target.dim, tuple(target.score(torch.ones(2, 12)).shape)
        (12, (2, 12))
    """
    if not isinstance(term, Term):
        raise TypeError(f"ravel() takes a term, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    return FlatView(term, **options).at(sigma)


def device_of(term: Term) -> torch.device:
    """Where a term's parameters and buffers live; the CPU when it has none."""
    found = _first_float(term)
    return torch.device("cpu") if found is None else found.device


def _first_float(term: Term) -> Tensor | None:
    return next((t for t in (*term.parameters(), *term.buffers()) if t.is_floating_point()), None)


def _separate(term: Term) -> tuple[Term, list[tuple[str | None, Clamp]]]:
    """The term without its Clamp factors, and these."""
    if isinstance(term, Clamp):
        raise ValueError("a Clamp alone is no density: multiply it with a prior, prior * Clamp(mask, value)")
    if not isinstance(term, Product):
        if any(isinstance(m, Clamp) for m in term.modules()):
            raise ScopeError("a Clamp must be a factor of the outermost product, not inside a sum or a wrapper")
        return term, []
    clamps: list[tuple[str | None, Clamp]] = []
    kept = []
    for factor, exponent in term.pairs():
        inner, name = (factor.inner, factor.names[0]) if isinstance(factor, On) else (factor, None)
        if isinstance(inner, Clamp):
            if exponent.constant is None or exponent.constant <= 0:
                raise ValueError("a Clamp is a delta: it has no negative or varying power")
            clamps.append((name, inner))
        elif any(isinstance(m, Clamp) for m in factor.modules()):
            raise ScopeError("a Clamp must be a factor of the outermost product, not inside a sum or a wrapper")
        else:
            kept.append((factor, exponent))
    if not clamps:
        return term, []
    return Product(kept, term.log_scale, term.variables), clamps


def require_energy(view: FlatView, what: str) -> None:
    """Refuse score-only terms where an energy is needed."""
    if not view.has_energy:
        raise MissingEnergy(
            f"{what} needs energies and {view.term.name()} has only a score; use Annealed with UHMC or ULA, or "
            "Reverse, or an energy-parameterised model"
        )
