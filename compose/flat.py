r"""One flat target for every kernel: states of any shape are seen as ``(N, D)``.

:class:`FlatView` lays a term's variables side by side, takes clamped coordinates out of what moves, and
counts evaluations. ``view.at(sigma)`` is the target that kernels see at one noise level.

Variables with a support move in unconstrained coordinates y, x = T(y) (:mod:`boltzmix.compose.bijections`), with energy
:math:`E(T(y)) - \log |\det J_T(y)|` and score :math:`J_T^T\, s(T(y)) + \nabla \log |\det J_T(y)|`, so integrals are
those over x. Formulas with noise levels keep their coordinates: noise is added to x, and what is outside has zero
density.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.bijections import bijection, event_size
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.errors import MissingEnergy, ScopeError
from boltzmix.compose.product import Product, is_discrete
from boltzmix.compose.relaxation import to_one_hot, unrelaxed
from boltzmix.compose.supports import contains, describe, fixed_entries
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State, Variable, map_state
from boltzmix.compose.wrappers import On

_ROWS = 65_536  # candidates evaluated at once


class Counter:
    """Evaluations so far: ``rows`` of states at one σ each, and ``network_rows`` that these cost."""

    def __init__(self) -> None:
        """Start at zero."""
        self.rows = 0
        self.network_rows = 0


class FlatView:
    """A term over flat states ``(N, D)``.

    Args:
        term: any term; :class:`Clamp` factors fix their coordinates.
        dtype: of the states; by default that of the term's parameters.
        device: likewise.
        rows: number of draws, needed when a Clamp has a value for each.
        discrete: whether discrete variables are taken: their columns hold integers as floats, exactly.
        unconstrained: whether variables with a support move in unconstrained coordinates; by default where the term
            has no noise levels.

    Raises:
        TypeError: a discrete variable where none is taken; a simplex, or a matrix under a constraint, in a formula with
            noise levels.
        ValueError: every coordinate is clamped, a Clamp with values for another number of draws or outside the
            support, or one that holds a part of a simplex or matrix.
    """

    def __init__(
        self,
        term: Term,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rows: int | None = None,
        discrete: bool = False,
        unconstrained: bool | None = None,
    ) -> None:
        """Lay out the variables and separate the clamps."""
        self.original = term
        self.term, clamps = _separate(term)
        variables = term.variables
        self.names: list[str] | None = list(variables) if isinstance(variables, Mapping) else None
        self._variables: list[Variable] = list(variables.values()) if isinstance(variables, Mapping) else [variables]
        for name, variable in zip(self.names or ["x"], self._variables, strict=True):
            if variable.discrete and not discrete:
                raise TypeError(
                    f"variable {name!r} is discrete ({variable.support}) and this sampler moves real variables only; "
                    + _instead(term)
                )
        found = _first_float(term)
        declared = next((v.dtype for v in self._variables if v.dtype is not None and not v.discrete), None)
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
        moved = term.path == "static" if unconstrained is None else unconstrained
        self._transforms = [bijection(v.support) if moved and not v.discrete else None for v in self._variables]
        self.transformed = any(transform is not None for transform in self._transforms)
        for name, variable in zip(self.names or ["x"], self._variables, strict=True):
            if not moved and not variable.discrete and variable.dim < torch.Size(variable.shape).numel():
                raise TypeError(
                    f"variable {name!r} is {describe(variable.support)}, a surface of {variable.dim} dimensions in "
                    f"{variable.shape}, and {term.name()} has noise levels, which leave it; use static terms"
                )
        self._shapes = [
            torch.Size(v.shape) if t is None else v.free_shape
            for v, t in zip(self._variables, self._transforms, strict=True)
        ]
        self._sizes = [shape.numel() for shape in self._shapes]
        total = sum(self._sizes)
        self._free: Tensor | None = None
        self._fixed: Tensor | None = None
        self._held: Tensor | None = None
        self.per_row = any(getattr(module, "per_row", False) is True for module in self.term.modules())
        if clamps:
            self._clamp(clamps, total, rows)
        self.dim = total if self._free is None else len(self._free)
        self._take_levels()

    def _take_levels(self) -> None:
        """Which columns are discrete, and whether the term takes floats in their place."""
        self.levels: Tensor | None = None
        self.unrelaxed: list[Term] = []
        counts = [v.levels for v in self._variables]
        if not any(counts):
            return
        if max(counts) > 2**24 and self.dtype == torch.float32:
            raise ValueError(f"float32 holds integers up to 2^24 and a variable has {max(counts)}: pass dtype=float64")
        self.levels = self.spread([float(k) for k in counts]).long()
        self.unrelaxed = unrelaxed(self.term)

    def columns(self, name: str) -> Tensor:
        """The free columns of a variable."""
        index = 0 if self.names is None else self.names.index(name)
        return self.spread([float(k == index) for k in range(len(self._variables))]).nonzero()[:, 0]

    def _clamp(self, clamps: list[tuple[str | None, Clamp]], total: int, rows: int | None) -> None:
        clamped_rows = any(c.per_row for _, c in clamps)
        self.per_row = self.per_row or clamped_rows
        mask = torch.zeros(total, dtype=torch.bool, device=self.device)
        value = torch.zeros((rows or 1) if clamped_rows else 1, total, dtype=self.dtype, device=self.device)
        for name, clamp in clamps:
            index = 0 if self.names is None or name is None else self.names.index(name)
            start = sum(self._sizes[:index])
            part = slice(start, start + self._sizes[index])
            self._check_clamp(clamp, self._variables[index], name or "x")
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
        self._free, self._fixed, self._held = (~mask).nonzero()[:, 0], value, mask

    def _check_clamp(self, clamp: Clamp, variable: Variable, name: str) -> None:
        """A clamp holds entries of real variables, and of supports whose entries stand for themselves."""
        if variable.support == "real" or not self.transformed:
            return
        if event_size(variable.support):
            raise ValueError(
                f"variable {name!r} is {describe(variable.support)}, whose entries hang together, and a Clamp holds "
                "some of them; write the density of the others as a function"
            )
        value = clamp.value if clamp.per_row else clamp.value[None]
        inside = contains(variable.support, value, 0) | ~clamp.mask
        if not bool(inside.all()):
            raise ValueError(
                f"a Clamp holds variable {name!r} at {value[~inside].flatten()[:4].tolist()}, outside of its support "
                f"{describe(variable.support)}"
            )

    @property
    def has_energy(self) -> bool:
        """Whether Metropolis kernels and weights can be used."""
        return self.term.has_energy

    def ravel(self, x: State) -> Tensor:
        """Flat free coordinates ``(N, D)`` of a state; unconstrained where its variables have a support.

        Raises:
            ValueError: a state on the edge of a support, or outside.
        """
        parts = [x] if isinstance(x, Tensor) else [x[name] for name in self.names or []]
        if self.transformed:
            parts = [self._inverse(index, part) for index, part in enumerate(parts)]
        return self._joined(parts)

    def unravel(self, flat: Tensor, floats: bool = False) -> State:
        """The state whose free coordinates are ``flat``; with ``floats``, integers as floats."""
        return self._constrain(flat, False, floats)[0]

    def log_abs_det_jacobian(self, flat: Tensor) -> Tensor:
        """log |det ∂x/∂y| of the map from flat coordinates to states, ``(N,)``; 0 without supports."""
        found = self._constrain(flat, True)[1]
        return flat.new_zeros(flat.shape[0]) if found is None else found

    def energy_of(self, term: Term, flat: Tensor, sigma: Any = None, floats: bool = False) -> Tensor:
        """Energies ``(N,)`` of the density of ``flat`` for a term over the same variables."""
        state, log_det = self._constrain(flat, True, floats)
        energy = term._energy(state, sigma)
        return energy if log_det is None else _minus(energy, log_det)

    def score_of(self, term: Term, flat: Tensor, sigma: Any = None, floats: bool = False) -> Tensor:
        """Scores ``(N, D)`` of the density of ``flat`` for a term over the same variables."""
        if not self.transformed:
            return self._joined(self._parts(term._score(self.unravel(flat, floats), sigma)))
        return self._pulled_back(flat, lambda state: (None, term._score(state, sigma)), floats)[1]

    def energy_and_score_of(
        self, term: Term, flat: Tensor, sigma: Any = None, floats: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation."""
        if not self.transformed:
            energy, score = term._energy_and_score(self.unravel(flat, floats), sigma)
            return energy, self._joined(self._parts(score))
        energy, score = self._pulled_back(flat, lambda state: term._energy_and_score(state, sigma), floats)
        assert energy is not None
        return energy, score

    def _pulled_back(
        self, flat: Tensor, evaluate: Callable[[State], tuple[Tensor | None, State]], floats: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Energy and score of the density of y from those of the density of x = T(y)."""
        with torch.enable_grad():
            y = flat.detach().requires_grad_()
            state, log_det = self._constrain(y, True, floats)
        assert log_det is not None
        energy, score = evaluate(map_state(Tensor.detach, state))
        outputs, slopes = self._parts(state), self._parts(score)
        moving = [(x, s) for x, s in zip(outputs, slopes, strict=True) if x.requires_grad]
        (pulled,) = torch.autograd.grad(
            [*(x for x, _ in moving), log_det], y, [*(s for _, s in moving), torch.ones_like(log_det)]
        )
        return (None if energy is None else _minus(energy, log_det.detach())), pulled

    def _constrain(self, flat: Tensor, jacobian: bool, floats: bool = False) -> tuple[State, Tensor | None]:
        """The state of free coordinates, and the log-determinant where there are transforms and it is wanted."""
        full, held, masks = flat, None, None
        if self._free is not None:
            assert self._fixed is not None
            assert self._held is not None
            full = self._fixed.to(flat).expand(flat.shape[0], -1)
            if self.transformed:
                held, masks = full.split(self._sizes, dim=1), self._held.split(self._sizes)
                full = torch.where(self._held, 0.0, full)
            full = full.index_copy(1, self._free, flat)
        found, log_det = [], None
        pieces = [full] if len(self._sizes) == 1 else full.split(self._sizes, dim=1)
        for index, (piece, shape, transform) in enumerate(zip(pieces, self._shapes, self._transforms, strict=True)):
            y = piece.reshape(flat.shape[0], *shape)
            x: Any = y if transform is None else transform(y)
            logs: Any = None
            if transform is not None and jacobian:
                logs = transform.log_abs_det_jacobian(y, x).reshape(flat.shape[0], -1)
            if held is not None and masks is not None and event_size(self._variables[index].support) == 0:
                x = torch.where(masks[index].reshape(shape), held[index].reshape(y.shape), x)
                logs = None if logs is None else torch.where(masks[index], 0.0, logs)
            if self._variables[index].discrete and not floats:
                x = x.to(self._variables[index].dtype or torch.long)  # exact: these columns hold integers
            found.append(x)
            if logs is not None:
                log_det = logs.sum(1) if log_det is None else log_det + logs.sum(1)
        return (found[0] if self.names is None else dict(zip(self.names, found, strict=True))), log_det

    def _inverse(self, index: int, x: Tensor) -> Tensor:
        """Unconstrained coordinates of one variable."""
        transform, variable = self._transforms[index], self._variables[index]
        if transform is None:
            return x
        y: Any = transform.inv(x)
        good = torch.isfinite(y)
        if self._held is not None:
            good = good | self._held.split(self._sizes)[index].reshape(self._shapes[index])
        rows = good.reshape(len(x), -1).all(1) & contains(variable.support, x, len(variable.shape))
        if not bool(rows.all()):
            row = int((~rows).nonzero()[0])
            name = "x" if self.names is None else self.names[index]
            raise ValueError(
                f"variable {name!r} of row {row} is {x[row].flatten()[:8].tolist()}, on the edge of its support "
                f"{describe(variable.support)} or outside: {int((~rows).sum())} of {len(x)} states are; use points "
                "inside"
            )
        return y

    def _parts(self, x: State) -> list[Tensor]:
        return [x] if isinstance(x, Tensor) else [x[name] for name in self.names or []]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Free coordinates of one tensor for each variable, laid side by side."""
        rows = [part.reshape(part.shape[0], -1) for part in parts]
        rows = [row if row.is_floating_point() else row.to(self.dtype) for row in rows]
        flat = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        return flat if self._free is None else flat[:, self._free]

    def spread(self, values: Sequence[float | Tensor]) -> Tensor:
        """One number per variable, or one for each of its entries, as one per free coordinate, ``(D,)`` in float64."""
        own = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values]
        full = torch.cat([value.expand(size) for value, size in zip(own, self._sizes, strict=True)])
        return full if self._free is None else full[self._free]

    @property
    def clamped(self) -> Tensor | None:
        """Which entries of a state are held fixed, by clamps or by their support, ``(D,)``; None where none is."""
        held = None if self._held is None else self._held.split(self._sizes)
        parts = []
        for index, variable in enumerate(self._variables):
            own = fixed_entries(variable.support, variable.shape).to(self.device)
            if held is not None and event_size(variable.support) == 0:
                own = own | held[index].reshape(variable.shape)
            parts.append(own.reshape(-1))
        fixed = torch.cat(parts)
        return fixed if bool(fixed.any()) else None

    def with_term(self, term: Term) -> "FlatView":
        """The same layout and counter for another term over the same variables."""
        clone = object.__new__(FlatView)
        clone.__dict__.update(self.__dict__)
        clone.__dict__.pop("_rows_each", None)
        clone.term = term
        clone._take_levels()
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
        if not is_discrete(self.term):
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
        self.levels = view.levels
        plain = view.names is None and view._free is None and len(view._variables[0].shape) == 1
        self._plain = plain and view.levels is None and not view.transformed
        self._floats = view.levels is not None and not view.unrelaxed

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(N,)``."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            if self._plain:
                return self._checked(self.view.term._energy(x, self.sigma), x)
            return self._checked(self.view.energy_of(self.view.term, x, self.sigma, self._floats), x)

    def score(self, x: Tensor) -> Tensor:
        """Scores ``(N, D)``."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            if self._plain:
                return self.view.term._score(x, self.sigma)  # pyright: ignore[reportReturnType]
            return self.view.score_of(self.view.term, x, self.sigma, self._floats)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation."""
        self.view.count(x.shape[0])
        with torch.no_grad():
            if self._plain:
                energy, score = self.view.term._energy_and_score(x, self.sigma)
            else:
                energy, score = self.view.energy_and_score_of(self.view.term, x, self.sigma, self._floats)
            return self._checked(energy, x), score  # pyright: ignore[reportReturnType]

    def energies(self, x: Tensor) -> Tensor:
        """Energies ``(N, M)`` of M candidates for each row, ``(N, M, D)``; in parts where there are many."""
        n, m = x.shape[:2]
        if self.view.per_row:  # conditions belong to their rows
            return torch.stack([self.energy(x[:, k]) for k in range(m)], 1)
        width = max(1, _ROWS // max(n, 1))
        parts = [self.energy(part.flatten(0, 1)).reshape(n, -1) for part in x.split(width, 1)]
        return torch.cat(parts, 1)

    def energy_and_one_hot_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)``, and the scores of one-hot vectors ``(N, D, K)`` for the largest K.

        Entries of real columns, and of values that a column does not have, are zero.

        Raises:
            MissingEnergy: a member of the term takes integers only.
        """
        view = self.view
        require_relaxed(view)
        assert view.levels is not None
        view.count(x.shape[0])
        with torch.no_grad():
            state, log_det = view._constrain(x, True)
            energy, score = view.term._energy_and_score(to_one_hot(state, view.term.variables, view.dtype), self.sigma)
            energy = self._checked(energy if log_det is None else _minus(energy, log_det), x)
        parts = [score] if isinstance(score, Tensor) else [score[name] for name in view.names or []]
        widest = max(v.levels for v in view._variables)
        columns = []
        for part, variable, size in zip(parts, view._variables, view._sizes, strict=True):
            if variable.discrete:
                flat = part.reshape(x.shape[0], size, variable.levels)
                columns.append(torch.nn.functional.pad(flat, (0, widest - variable.levels)))
            else:
                columns.append(x.new_zeros(x.shape[0], size, widest))
        full = torch.cat(columns, 1)
        return energy, full if view._free is None else full[:, view._free]

    def _checked(self, energy: Tensor, x: Tensor) -> Tensor:
        if energy.shape != (x.shape[0],):
            raise ValueError(
                f"{self.view.term.name()} must return energies of shape (N,) = ({x.shape[0]},), "
                f"got {tuple(energy.shape)}; sum over the event dimensions"
            )
        if not energy.is_floating_point():
            raise TypeError(f"{self.view.term.name()} must return floating-point energies, got {energy.dtype}")
        return energy


def _minus(energy: Tensor, log_det: Tensor) -> Tensor:
    """E − log |det J|; an energy of the wrong shape goes on to the message that says so."""
    return energy - log_det if energy.shape == log_det.shape else energy


def ravel(term: Term, sigma: float | None = None, **options: Any) -> FlatTarget:
    """The flat target of a term, for writing one's own loop over a kernel.

    Variables with a support are seen in unconstrained coordinates, with the log-determinant in the energy:
    ``target.view.unravel(y)`` is the state at y, and ``target.view.ravel(x)`` leads back. Options are those of
    :class:`FlatView`: ``dtype``, ``device``, ``unconstrained``.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> target = ravel(Gaussian(torch.zeros(3, 4), 1.0))
        >>> target.dim, tuple(target.score(torch.ones(2, 12)).shape)
        (12, (2, 12))
    """
    if not isinstance(term, Term):
        raise TypeError(f"ravel() takes a term, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    return FlatView(term, discrete=True, **options).at(sigma)


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
            f"{what} needs energies and {view.term.name()} has only a score; use chains that need none, "
            "MCMC(MicrocanonicalLangevin()) or MCMC(ULA()), or that integrate the score, MCMC(HMC()) or MCMC(MALA()); "
            "Annealed with any of UHMC, ULA, HMC and MALA; Reverse; or an energy-parameterised model"
        )


def require_relaxed(view: FlatView) -> None:
    """Refuse terms that take integers only where a gradient is needed."""
    if view.unrelaxed:
        names = sorted({term.name() for term in view.unrelaxed})
        raise MissingEnergy(
            f"gradients of discrete variables are taken from energies that accept floats, and {', '.join(names)} takes "
            'integers only: declare it, term(fn, …, relaxed="one_hot") or relaxed="values"; or use Gibbs(), or '
            'GibbsWithGradients(differences="exact")'
        )


def _instead(term: Term) -> str:
    """What to do with discrete variables."""
    exact = f"draw exactly with {term.name()}.sample(n, generator), " if term.samplable else ""
    return (
        exact + "run chains with MCMC(Gibbs()), MCMC(GibbsWithGradients()) or MCMC(DiscreteLangevin()), with "
        'MCMC(BlockGibbs({"x": HMC(), "z": Gibbs()})) where other variables are real, or condition on it with .given(…)'
    )
