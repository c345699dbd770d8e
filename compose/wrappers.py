"""Terms seen through a change of variables: named, frozen at a level, or in other units."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import ScopeError
from boltzmix.compose.gaussian import as_float_tensor
from boltzmix.compose.term import Evaluated, Term, evaluate, evaluate_one
from boltzmix.compose.variable import Sigma, State, Variable, describe_variables


class Wrapper(Term):
    """A term whose inner term is evaluated at a mapped (x, σ); members of one network stay together."""

    def __init__(self, inner: Term) -> None:
        """Take over the inner term's flags."""
        super().__init__()
        self.inner = inner
        self.variables = inner.variables
        self.path, self.path_reason = inner.path, inner.path_reason
        self.has_energy, self.has_score = inner.has_energy, inner.has_score
        self.normalized, self.calibrated = inner.normalized, inner.calibrated
        self.samplable, self.conditions = inner.samplable, inner.conditions
        self.sigma_range = inner.sigma_range

    def _token(self) -> Hashable:
        """Identity of the mapping: wrappers with equal tokens map (x, σ) alike."""
        raise NotImplementedError

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        return x, sigma

    def _back(self, value: Evaluated, x: State) -> Evaluated:
        return value

    def _rewrap(self, inner: Term) -> Term:
        raise NotImplementedError

    def key(self) -> Hashable:
        """The mapping and the inner term's key."""
        return (self._token(), self.inner.key())

    def _group(self) -> Hashable | None:
        inner = self.inner._group()
        return None if inner is None else (self._token(), inner)

    def _evaluate_together(
        self,
        terms: Sequence[Term],
        x: State,
        sigma: Any,
        energy: bool,
        score: bool,
    ) -> list[Evaluated]:
        inner = [t.inner for t in terms]  # pyright: ignore[reportAttributeAccessIssue]
        values = evaluate(inner, *self._into(x, sigma), energy=energy, score=score)
        return [self._back(values[t.key()], x) for t in inner]

    def _energy(self, x: State, sigma: Any) -> Tensor:
        energy = self._back((self.inner._energy(*self._into(x, sigma)), None), x)[0]
        assert energy is not None
        return energy

    def _score(self, x: State, sigma: Any) -> State:
        score = self._back(evaluate_one(self.inner, *self._into(x, sigma), energy=False, score=True), x)[1]
        assert score is not None
        return score

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        energy, score = self._back(self.inner._energy_and_score(*self._into(x, sigma)), x)
        assert energy is not None
        assert score is not None
        return energy, score

    def _given(self, **condition: object) -> Term:
        return self._rewrap(self.inner.given(**condition))

    def _rows(self) -> int:
        return self.inner._rows()


class On(Wrapper):
    """A term over named variables; made by :meth:`Term.on`.

    Raises:
        ScopeError: as many names as the term has variables are needed, all different.
    """

    def __init__(self, inner: Term, names: Sequence[str]) -> None:
        """Bind the inner term's variables, in order, to names."""
        super().__init__(inner)
        names = tuple(names)
        own = list(inner.variables) if isinstance(inner.variables, Mapping) else [None]
        if len(names) != len(own) or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
            raise ScopeError(
                f"{inner.name()} is over {describe_variables(inner.variables)}; on() needs {len(own)} different "
                f"names, got {names}"
            )
        self.names = names
        self._inner_names = own
        variables = inner.variables
        self.variables = (
            {names[0]: variables}
            if isinstance(variables, Variable)
            else {new: variables[old] for new, old in zip(names, own, strict=True)}  # pyright: ignore[reportArgumentType, reportCallIssue]
        )

    def _token(self) -> Hashable:
        return ("on", self.names)

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        if isinstance(self.inner.variables, Variable):
            return x[self.names[0]], _pick(sigma, self.names[0])  # pyright: ignore[reportArgumentType, reportCallIssue]
        pairs = list(zip(self.names, self._inner_names, strict=True))
        levels = {old: _pick(sigma, new) for new, old in pairs} if isinstance(sigma, Mapping) else sigma
        return {old: x[new] for new, old in pairs}, levels  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]

    def _back(self, value: Evaluated, x: State) -> Evaluated:
        energy, score = value
        if score is None:
            return value
        if isinstance(score, Tensor):
            return energy, {self.names[0]: score}
        return energy, {n: score[o] for n, o in zip(self.names, self._inner_names, strict=True)}  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _rewrap(self, inner: Term) -> Term:
        return On(inner, self.names)

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        draw = self.inner.sample(n, generator)
        if isinstance(draw, Tensor):
            return {self.names[0]: draw}
        return {new: draw[old] for new, old in zip(self.names, self._inner_names, strict=True)}  # pyright: ignore[reportArgumentType, reportCallIssue]

    def name(self) -> str:
        """The inner term's name with its variables."""
        return f"{self.inner.name()}({', '.join(self.names)})"


class At(Wrapper):
    """A density frozen at one noise level; made by :meth:`Term.at`.

    The result is static: its own σ is ignored.
    """

    def __init__(self, inner: Term, sigma: Sigma) -> None:
        """Freeze ``inner`` at ``sigma`` (a non-negative number, or None for the data end)."""
        super().__init__(inner)
        if isinstance(sigma, Tensor):
            sigma = float(sigma)
        if sigma is not None and (isinstance(sigma, (bool, Mapping)) or not isinstance(sigma, (int, float))):
            raise TypeError(f"at() freezes one noise level, a number or None, got {type(sigma).__name__}")
        if sigma is not None:
            inner._check_level(float(sigma), torch.zeros(1), 1)
        self.level: float | None = None if sigma is None else float(sigma)
        self.path, self.path_reason = "static", ""
        self.sigma_range = (0.0, float("inf"))
        self.samplable = False

    def _token(self) -> Hashable:
        return ("at", self.level)

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        like = x if isinstance(x, Tensor) else next(iter(x.values()))
        level = None if self.level is None else torch.tensor(self.level, dtype=like.dtype, device=like.device)
        return x, level

    def _rewrap(self, inner: Term) -> Term:
        return At(inner, self.level)

    def name(self) -> str:
        """The inner term's name and the level."""
        return f"{self.inner.name()} at sigma={self.level}"


class Affine(Wrapper):
    r"""The density of :math:`y = \mathrm{loc} + \mathrm{scale} \cdot x` for x ~ inner; made by :func:`affine`."""

    loc: Tensor
    scale: Tensor

    def __init__(self, inner: Term, loc: Tensor, scale: Tensor) -> None:
        """Hold the map; a per-coordinate scale is annealed, since its noise would not be isotropic."""
        super().__init__(inner)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        size = torch.Size(inner.event_shape).numel()
        logs = scale.abs().log()
        self._log_det = float(logs) * size if scale.ndim == 0 else float(logs.sum())
        self._level_scale = float(logs.mean().exp())
        if scale.ndim and inner.path == "noised":
            self.path = "annealed"
            self.path_reason = "a scale per coordinate makes its noise anisotropic"
        low, high = inner.sigma_range
        self.sigma_range = (low * self._level_scale, high * self._level_scale)

    def _token(self) -> Hashable:
        return ("affine", id(self.loc), id(self.scale))

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        return (x - self.loc.to(x)) / self.scale.to(x), None if sigma is None else sigma / self._level_scale  # pyright: ignore[reportOperatorIssue, reportArgumentType]

    def _back(self, value: Evaluated, x: State) -> Evaluated:
        energy, score = value
        return (
            None if energy is None else energy + self._log_det,
            None if score is None else score / self.scale.to(score),  # pyright: ignore[reportOperatorIssue, reportArgumentType]
        )

    def _rewrap(self, inner: Term) -> Term:
        return Affine(inner, self.loc, self.scale)

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        draw = self.inner.sample(n, generator)
        return self.loc.to(draw) + self.scale.to(draw) * draw  # pyright: ignore[reportOperatorIssue, reportArgumentType]


def affine(term: Term, loc: Any = 0.0, scale: Any = 1.0) -> Affine:
    r"""``term`` in other units: the density of :math:`y = \mathrm{loc} + \mathrm{scale} \cdot x`.

    Args:
        term: a term over one variable x.
        loc: a number or an event-shaped tensor, in units of y.
        scale: a non-zero number, which also maps σ and keeps a noised path noised, or an event-shaped
            tensor, which makes the path annealed.

    Raises:
        ValueError: a scale of zero, or shapes other than () and the event's.
    """
    if not isinstance(term, Term):
        raise TypeError(f"affine() maps a term, got {type(term).__name__}")
    shape = term.event_shape
    loc, scale = as_float_tensor(loc, "loc"), as_float_tensor(scale, "scale")
    for what, value in (("loc", loc), ("scale", scale)):
        if value.shape not in ((), shape):
            raise ValueError(f"affine's {what} is a number or has the event's shape {shape}, got {tuple(value.shape)}")
    if not bool((scale != 0).all()):
        raise ValueError("affine's scale must not be zero")
    return Affine(term, loc, scale)


def _pick(sigma: Any, name: str) -> Any:
    return sigma.get(name) if isinstance(sigma, Mapping) else sigma
