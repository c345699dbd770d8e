r"""Trajectory spaces: which numbers a plan is made of, in which units, and how samplers see them.

A trajectory :math:`\tau` is H tokens of D numbers, the state columns and then the action columns, in physical units.
Samplers add isotropic noise, which means nothing in mixed units, so they work in normalised coordinates

.. math::
    x = (\tau - \mathrm{loc}) / \mathrm{scale},

one loc and scale for each column. All position columns share one scale: a disc stays a disc. The normaliser belongs to
the space, not to a network, so priors that were trained with different ones compose (:meth:`TrajectorySpace.adopt`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Term
from boltzmix.compose.wrappers import Affine, AffineMap


@dataclass(frozen=True)
class TrajectorySpace:
    r"""H tokens of D = S + A numbers: names, units, time and normaliser.

    Args:
        horizon: number of tokens H.
        state: names of the S state columns, which come first.
        action: names of the A action columns, which come after them.
        dt: seconds between two tokens.
        stride: environment steps between two tokens.
        loc: ``(D,)``, what is subtracted from each column, in its own unit; empty for zeros.
        scale: ``(D,)``, what each column is divided by; the same for all position columns; empty for ones.
        position: the state columns that are coordinates in metres; obstacles need two of them.
        bounds: the lowest and highest value of each position column, in metres; None where nothing bounds them.

    Raises:
        ValueError: names that repeat or are unknown, sizes that do not fit, numbers that are not finite, a scale that
            is not positive or differs between position columns, bounds without room.
        TypeError: a horizon or stride that is no int.

    Example:
        >>> space = TrajectorySpace(8, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.1, scale=(2, 2, 1, 1, 1, 1))
        >>> space.shape, space.columns(("vx", "ax"))
        ((8, 6), [2, 4])
        >>> space.normalise(torch.ones(1, 8, 6))[0, 0].tolist()
        [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    horizon: int
    state: tuple[str, ...]
    action: tuple[str, ...] = ()
    dt: float = 1.0
    stride: int = 1
    loc: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    position: tuple[str, ...] = ("x", "y")
    bounds: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        """Check every field and store it as plain numbers."""
        for what in ("horizon", "stride"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{what} is a positive int, got {type(value).__name__} {value!r}")
            if value < 1:
                raise ValueError(f"{what} is a positive int, got {value}")
        for what in ("state", "action", "position"):
            self._set(what, _names(getattr(self, what), what))
        if not self.state:
            raise ValueError("a trajectory space needs at least one state column, e.g. state=('x', 'y')")
        every = self.state + self.action
        if len(set(every)) != len(every):
            raise ValueError(f"column names must differ, got {every}")
        if not self.position or len(set(self.position)) != len(self.position) or set(self.position) - set(self.state):
            raise ValueError(f"position names different state columns, got {self.position}; the state is {self.state}")
        self._set("dt", _number(self.dt, "dt"))
        if self.dt <= 0:
            raise ValueError(f"dt is the seconds between two tokens, > 0, got {self.dt:g}")
        for what, default in (("loc", 0.0), ("scale", 1.0)):
            given = getattr(self, what)
            values = tuple(_number(v, what) for v in given) if len(given) else (default,) * len(every)
            if len(values) != len(every):
                raise ValueError(f"{what} has one number for each of the columns {every}, got {len(values)}")
            self._set(what, values)
        if min(self.scale) <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        shared = {self.scale[i] for i in self.columns(self.position)}
        if len(shared) > 1:
            raise ValueError(
                f"position columns {self.position} share one scale, or distances would depend on the direction; got "
                f"{tuple(self.scale[i] for i in self.columns(self.position))}"
            )
        if self.bounds is not None:
            bounds = tuple(tuple(_number(v, "bounds") for v in pair) for pair in self.bounds)
            if len(bounds) != len(self.position) or any(len(pair) != 2 or pair[0] >= pair[1] for pair in bounds):
                raise ValueError(f"bounds are (low, high) with low < high for each of {self.position}, got {bounds}")
            self._set("bounds", bounds)

    def _set(self, what: str, value: object) -> None:
        object.__setattr__(self, what, value)

    # ---------------------------------------------------------------- columns

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, those of the state first."""
        return self.state + self.action

    @property
    def shape(self) -> tuple[int, int]:
        """(H, D)."""
        return self.horizon, len(self.names)

    @property
    def duration(self) -> float:
        """Seconds from the first token to the last."""
        return (self.horizon - 1) * self.dt

    def columns(self, names: str | Sequence[str]) -> list[int]:
        """Places of columns, by name.

        Raises:
            ValueError: a name that the space does not have.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in wanted if name not in self.names]
        if unknown:
            raise ValueError(f"no column {unknown}; this space has {self.names}")
        return [self.names.index(name) for name in wanted]

    def token(self, at: int) -> int:
        """A token by its place, negative ones from the end.

        Raises:
            ValueError: beyond the horizon.
        """
        if not isinstance(at, int) or isinstance(at, bool):
            raise TypeError(f"a token is an int in [{-self.horizon}, {self.horizon - 1}], got {at!r}")
        if not -self.horizon <= at < self.horizon:
            raise ValueError(f"this space has tokens {-self.horizon} … {self.horizon - 1}, got {at}")
        return at % self.horizon

    def times(self, like: Tensor | None = None) -> Tensor:
        """Seconds of each token after the first, ``(H,)``."""
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        return torch.arange(self.horizon, dtype=dtype or torch.get_default_dtype(), device=device) * self.dt

    def positions(self, tau: Any) -> Any:
        """Position columns ``(…, P)`` of trajectories ``(…, D)`` in the units that these are in."""
        self._check(tau)
        return self._pick(tau, self.columns(self.position))

    def states(self, tau: Any) -> Any:
        """State columns ``(…, S)``."""
        self._check(tau)
        return tau[..., : len(self.state)]

    def actions(self, tau: Any) -> Any:
        """Action columns ``(…, A)``.

        Raises:
            ValueError: a space without actions.
        """
        self._check(tau)
        if not self.action:
            raise ValueError(f"this space has no action columns, only the state {self.state}")
        return tau[..., len(self.state) :]

    @staticmethod
    def _pick(tau: Any, places: list[int]) -> Any:
        start, stop = places[0], places[0] + len(places)
        return tau[..., start:stop] if places == list(range(start, stop)) else tau[..., places]

    def values(self, given: Any, what: str) -> dict[str, float]:
        """Numbers by column name, from a mapping, a whole state ``(S,)`` or a position ``(P,)``, in physical units.

        Raises:
            ValueError: unknown names, another size, numbers that are not finite.
        """
        if isinstance(given, Mapping):
            if not given:
                raise ValueError(f"{what} names no column; write {what}({{{self.names[0]!r}: 0.0}})")
            self.columns(list(given))
            return {name: _number(value, f"{what}[{name}]") for name, value in given.items()}
        numbers = _vector(given, what)
        for names in (self.state, self.position):
            if len(numbers) == len(names):
                return dict(zip(names, numbers, strict=True))
        raise ValueError(
            f"{what} is a state {self.state}, a position {self.position} or numbers by column name, got "
            f"{len(numbers)} numbers"
        )

    # -------------------------------------------------------------- normaliser

    def normalise(self, tau: Any) -> Any:
        """Physical units to the sampler's coordinates, ``(…, D)``; tensors and arrays."""
        loc, scale = self._normaliser(tau)
        return (tau - loc) / scale

    def physical(self, x: Any) -> Any:
        """The sampler's coordinates to physical units, ``(…, D)``; tensors and arrays."""
        loc, scale = self._normaliser(x)
        return x * scale + loc

    def _normaliser(self, like: Any) -> tuple[Any, Any]:
        self._check(like)
        if isinstance(like, Tensor):
            return like.new_tensor(self.loc), like.new_tensor(self.scale)
        import numpy as np

        return np.asarray(self.loc, like.dtype), np.asarray(self.scale, like.dtype)

    def _check(self, tau: Any) -> None:
        """Refuse what is no floating-point array of D columns."""
        size = len(self.names)
        if isinstance(tau, Tensor):
            floating = tau.is_floating_point()
        elif hasattr(tau, "__array__") and hasattr(tau, "dtype"):
            floating = tau.dtype.kind == "f"
        else:
            raise TypeError(f"a trajectory is a tensor or an array (…, {size}), got {type(tau).__name__}")
        if not floating:
            raise TypeError(f"a trajectory holds floating-point numbers, got {tau.dtype}; convert it")
        if tau.ndim < 1 or tau.shape[-1] != size:
            raise ValueError(f"a trajectory has the {size} columns {self.names}, got shape {tuple(tau.shape)}")

    # ------------------------------------------------------------ other spaces

    def resized(self, horizon: int) -> "TrajectorySpace":
        """The same columns over another number of tokens."""
        return replace(self, horizon=horizon)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as weights keep them in JSON."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        found.update({k: list(v) for k, v in found.items() if isinstance(v, tuple)})
        if self.bounds is not None:
            found["bounds"] = [list(pair) for pair in self.bounds]
        return found

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "TrajectorySpace":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: missing or unknown entries.
            TypeError: no mapping.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"a trajectory space is read from a mapping, got {type(given).__name__}")
        names = {f.name for f in fields(cls)}
        unknown, missing = sorted(set(given) - names), sorted({"horizon", "state"} - set(given))
        if unknown or missing:
            raise ValueError(
                f"a trajectory space has the entries {sorted(names)}; unknown {unknown}, missing {missing}"
            )
        return cls(**given)

    @classmethod
    def of(cls, prior: Term) -> "TrajectorySpace":
        """The space of a prior, from its ``trajectory``; formulas over one space have this space.

        Raises:
            TypeError: a prior without one.
            ValueError: members in different spaces; bring them into one with :meth:`adopt`.
        """
        if not isinstance(prior, Term):
            raise TypeError(f"a prior is a term, got {type(prior).__name__}")
        found = []
        for given in _trajectories(prior):
            space = cls.from_dict(given)
            if space not in found:
                found.append(space)
        if not found:
            raise TypeError(
                f"{prior.name()} does not say which trajectories it is over: pass the space, "
                "TrajectorySpace(horizon=…, state=(…), …)"
            )
        if len(found) > 1:
            raise ValueError(
                f"{prior.name()} has members in {len(found)} trajectory spaces: choose one and bring the others into "
                "it, space.adopt(prior, other_space)"
            )
        return found[0]

    @classmethod
    def fit(
        cls,
        trajectories: Any,
        *,
        state: Sequence[str],
        action: Sequence[str] = (),
        dt: float = 1.0,
        stride: int = 1,
        position: Sequence[str] = ("x", "y"),
        bounds: Any = None,
    ) -> "TrajectorySpace":
        """The space in which data ``(N, H, D)`` have mean 0 and variance 1 in each column.

        Position columns share the root of their mean variance. A column that never changes keeps scale 1.

        Raises:
            ValueError: another shape than (N, H, D), or numbers that are not finite.
        """
        data = torch.as_tensor(trajectories)
        size = len(tuple(state)) + len(tuple(action))
        if data.ndim != 3 or data.shape[2] != size or not data.shape[0]:
            raise ValueError(f"trajectories are (N, H, {size}) for the columns given, got {tuple(data.shape)}")
        if not bool(torch.isfinite(data).all()):
            rows = int((~torch.isfinite(data)).flatten(1).any(1).sum())
            raise ValueError(f"{rows} of {len(data)} trajectories hold numbers that are not finite; leave them out")
        rows = data.double().flatten(0, 1)
        centre, variance = rows.mean(0), rows.var(0, correction=0)
        plain = cls(int(data.shape[1]), tuple(state), tuple(action), dt, stride, position=tuple(position))
        places = plain.columns(plain.position)
        variance[places] = variance[places].mean()
        # what rounding leaves of a constant column is no spread
        still = variance <= (1e-7 * centre.abs()).square()
        scale = torch.where(still, 1.0, variance.sqrt())
        return replace(plain, loc=tuple(centre.tolist()), scale=tuple(scale.tolist()), bounds=bounds)

    def adopt(self, term: Term, other: "TrajectorySpace") -> Term:
        r"""A term over another space's coordinates, seen in these: exact at the data end.

        With :math:`x' = (\tau - \mathrm{loc}')/\mathrm{scale}'` the density of x is that of x' under
        :math:`x = (\mathrm{loc}' - \mathrm{loc} + \mathrm{scale}' x') / \mathrm{scale}`. Where scale'/scale is one
        number for all columns, σ is mapped with it and the term stays noised; otherwise its noise has another size in
        each column, and the path is annealed.

        Args:
            term: over ``other.shape``.
            other: the space it was trained in: the same columns, horizon and time step.

        Raises:
            ValueError: spaces that differ in more than units, or a term of another shape.
        """
        for what in ("horizon", "state", "action", "dt"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(
                    f"only units may differ between spaces, here {what} is {getattr(self, what)} and "
                    f"{getattr(other, what)}; resize or retrain the prior, or build the space with its columns"
                )
        if not isinstance(term, Term):
            raise TypeError(f"adopt() takes a term, got {type(term).__name__}")
        if term.event_shape != self.shape:
            raise ValueError(f"{term.name()} is over {term.event_shape} and the space is {self.shape}")
        if (self.loc, self.scale) == (other.loc, other.scale):
            return term
        ratios = [there / here for there, here in zip(other.scale, self.scale, strict=True)]
        shift = [
            (there - here) / unit for there, here, unit in zip(other.loc, self.loc, self.scale, strict=True)
        ]  # fmt: skip
        own = next((t for t in (*term.parameters(), *term.buffers()) if t.is_floating_point()), torch.zeros(()))
        like = own.new_zeros(())
        one = max(ratios) - min(ratios) <= 1e-12 * max(ratios)
        scale = like.new_tensor(ratios[0]) if one else like.new_tensor(ratios).expand(self.shape).clone()
        change = AffineMap(like.new_tensor(shift).expand(self.shape).clone(), scale)
        kind = ConditionedAdopted if hasattr(term, "conditioned_on") else Adopted
        return kind(term, change, self)


class Adopted(Affine):
    """A prior in the units of another space; made by :meth:`TrajectorySpace.adopt`."""

    def __init__(self, inner: Term, change: AffineMap, space: TrajectorySpace) -> None:
        """Hold the map and the space that it leads to."""
        super().__init__(inner, change)
        self.space = space

    @property
    def trajectory(self) -> dict[str, Any]:
        """The space, as priors keep it."""
        return self.space.to_dict()

    def _rewrap(self, inner: Term) -> Term:
        return type(self)(inner, self.change, self.space)


class ConditionedAdopted(Adopted):
    """An adopted prior that was trained with clean known coordinates: the map reaches them, too."""

    def conditioned_on(self, mask: Tensor) -> Term:
        """The adopted p(x_free; σ | x_known)."""
        return Adopted(self.inner.conditioned_on(mask), self.change, self.space)  # pyright: ignore[reportCallIssue]


def _trajectories(module: nn.Module) -> Iterator[Any]:
    """What modules say about their trajectories; one that does speaks for what is inside it."""
    own = getattr(module, "trajectory", None)
    if own is not None:
        yield own
    else:
        for child in module.children():
            yield from _trajectories(child)


def _names(given: object, what: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(n, str) and n for n in given):
        raise TypeError(f"{what} is a tuple of column names such as ('x', 'y'), got {given!r}")
    return tuple(given)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, got {number}")
    return number


def _vector(given: Any, what: str) -> list[float]:
    """One-dimensional numbers from a tensor, an array or a sequence."""
    shape = getattr(given, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(f"{what} is a vector, got shape {tuple(shape)}")
    if isinstance(given, str) or (shape is None and not isinstance(given, Sequence)):
        raise TypeError(f"{what} is a vector or numbers by column name, got {given!r}")
    return [_number(v, what) for v in given]
