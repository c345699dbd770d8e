"""Terms seen through a change of variables: named, frozen at a level, or in other units."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import ScopeError
from boltzmix.compose.gaussian import Gaussian, GaussianMixture, as_float_tensor
from boltzmix.compose.term import Evaluated, Term, evaluate, evaluate_one
from boltzmix.compose.variable import Sigma, State, Variable, describe_variables, rename


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
        self.normalized_over = inner.normalized_over

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
        inner: list[Term] = [t.inner for t in terms]  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
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

    def _stack_rows(self, terms: Sequence[Term], n: int) -> Term | None:
        inner: list[Term] = [t.inner for t in terms]  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        stacked = self.inner._stack_rows(inner, n)
        return None if stacked is None else self._rewrap(stacked)

    def _strength(self, sigma: Tensor) -> float | Tensor:
        return 0.0 if self.path == "static" else self.inner._strength(sigma)


class On(Wrapper):
    """A term over named variables; made by :meth:`Term.on`.

    Raises:
        ScopeError: as many names as the term has variables are needed, all different.
    """

    def __init__(self, inner: Term, names: Sequence[str]) -> None:
        """Bind the inner term's variables, in order, to names."""
        super().__init__(inner)
        self.names = tuple(names)
        self.variables = rename(inner.variables, self.names, inner.name())
        self._inner_names = list(inner.variables) if isinstance(inner.variables, Mapping) else [None]
        if inner.normalized_over is not None:
            new = dict(zip(self._inner_names, self.names, strict=True))
            self.normalized_over = frozenset(new.get(name, self.names[0]) for name in inner.normalized_over)

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
            if sigma.numel() != 1:
                raise ValueError(f"at() freezes one noise level, got a tensor of shape {tuple(sigma.shape)}")
            sigma = float(sigma)
        if sigma is not None and (isinstance(sigma, (bool, Mapping)) or not isinstance(sigma, (int, float))):
            raise TypeError(f"at() freezes one noise level, a number >= 0 or None, got {type(sigma).__name__}")
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


class AffineMap(nn.Module):
    """y = loc + scale · x, shared by the conditional views of one term so that these stay together."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        """Hold the map."""
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """From the inner term's units to ours."""
        return self.loc.to(x) + self.scale.to(x) * x

    def inverse(self, y: Tensor) -> Tensor:
        """From our units to the inner term's."""
        return (y - self.loc.to(y)) / self.scale.to(y)


class Affine(Wrapper):
    r"""The density of :math:`y = \mathrm{loc} + \mathrm{scale} \cdot x` for x ~ inner; made by :func:`affine`.

    :math:`p_y(y; \sigma) = p(x; \sigma / g) / |\det|`, where g is the scale, or the geometric mean of the scales.
    """

    def __init__(self, inner: Term, change: AffineMap) -> None:
        """Hold the map; a per-coordinate scale is annealed, since its noise would not be isotropic."""
        super().__init__(inner)
        self.change = change
        assert isinstance(inner.variables, Variable)
        if inner.variables.support != "real":
            self.variables = replace(inner.variables, support="real")
        size = torch.Size(inner.event_shape).numel()
        logs = change.scale.double().abs().log()
        self._log_det = float(logs.expand(inner.event_shape).sum()) if change.scale.ndim else float(logs) * size
        self._level_scale = float(change.scale.double().abs()) if not change.scale.ndim else float(logs.mean().exp())
        if change.scale.ndim and inner.path == "noised":
            self.path = "annealed"
            self.path_reason = "a scale per coordinate makes its noise anisotropic"
        if inner.path != "static":
            low, high = inner.sigma_range
            self.sigma_range = (low * self._level_scale, high * self._level_scale)

    def _token(self) -> Hashable:
        return ("affine", id(self.change))

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        assert isinstance(x, Tensor)
        return self.change.inverse(x), None if sigma is None else sigma / self._level_scale

    def _back(self, value: Evaluated, x: State) -> Evaluated:
        energy, score = value
        assert not isinstance(score, Mapping)
        return (
            None if energy is None else energy + self._log_det,
            None if score is None else score / self.change.scale.to(score),
        )

    def _rewrap(self, inner: Term) -> Term:
        return Affine(inner, self.change)

    def _coarse(self, sigma: Tensor) -> Gaussian | GaussianMixture:
        part = self.inner._coarse(sigma / self._level_scale)
        if isinstance(part, Gaussian):
            mean = part.mean.reshape(self.event_shape)
            scale = self.change.scale.to(mean).expand(self.event_shape)
            if part.basis is None:
                return Gaussian(self.change(mean), part.variances.reshape(self.event_shape) * scale**2)
            return Gaussian(self.change(mean), part.covariance * torch.outer(scale.flatten(), scale.flatten()))
        scale = self.change.scale.to(part.means).expand(self.event_shape)
        spread = part.variances * scale**2 if part.basis is None else part.covariances * torch.outer(scale, scale)
        return GaussianMixture(self.change(part.means), spread, part.weights)

    def _sample(self, n: int, generator: torch.Generator | None) -> State:
        return self.change(self.inner.sample(n, generator))

    def name(self) -> str:
        """The inner term's name."""
        return f"affine({self.inner.name()})"


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
        raise TypeError(f"affine() maps a term, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    if not isinstance(term.variables, Variable):
        raise ScopeError(
            f"affine() maps a term over one variable, {term.name()} is over {describe_variables(term.variables)}; map "
            "the factors before binding them with .on(name)"
        )
    if term.variables.discrete:
        raise TypeError(f"affine() maps real variables and {term.name()} is over {term.variables.support}")
    shape = term.event_shape
    own = next((t for t in (*term.parameters(), *term.buffers()) if t.is_floating_point()), None)
    loc, scale = as_float_tensor(loc, "loc", like=own), as_float_tensor(scale, "scale", like=own)
    for what, value in (("loc", loc), ("scale", scale)):
        if value.shape not in ((), shape):
            raise ValueError(f"affine's {what} is a number or has the event's shape {shape}, got {tuple(value.shape)}")
    if not bool((scale != 0).all()):
        raise ValueError(f"affine's scale must not be zero, got {scale.flatten()[:8].tolist()}")
    return Affine(term, AffineMap(loc.clone(), scale.clone()))


def _pick(sigma: Any, name: str) -> Any:
    return sigma.get(name) if isinstance(sigma, Mapping) else sigma
