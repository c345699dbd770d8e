"""Variables and states: what a density is a density of.

A state is one tensor ``(N, *event)``, or a mapping from variable names to such tensors when a term
lives on several named variables.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.bijections import bijection, event_size
from boltzmix.compose.errors import ScopeError
from boltzmix.compose.supports import Support, canonical, describe, identity

State = Tensor | Mapping[str, Tensor]
Sigma = float | Tensor | Mapping[str, Any] | None


def integers(cardinality: int) -> str:
    """Support ``{0, …, K−1}`` of a discrete variable with ``K = cardinality`` values."""
    if not isinstance(cardinality, int) or isinstance(cardinality, bool) or cardinality < 1:
        raise ValueError(f"integers(K) needs a positive int, got {cardinality!r}")
    return f"integers({cardinality})"


@dataclass(frozen=True)
class Variable:
    """Shape and support of one variable.

    Args:
        shape: event shape, without the batch dimension; ``()`` is a number.
        support: ``"real"``, ``"positive"``, ``"unit"``, ``"simplex"``, ``"ordered"``, ``"positive_ordered"``,
            ``"lower_cholesky"``, ``"corr_cholesky"``, ``"positive_definite"``, ``integers(K)``, or one of
            ``torch.distributions.constraints``, such as ``greater_than(2.0)`` or ``interval(low, high)``.
        dtype: the dtype that states must have; ``None`` accepts any floating dtype (any integer
            dtype for a discrete support).

    Raises:
        ValueError: a shape that is no tuple of positive ints, an unknown support, or one that does not fit the shape.

    Example:
        >>> from torch.distributions import constraints
        >>> Variable((), constraints.positive).support, Variable((3, 3), "corr_cholesky").dim
        ('positive', 3)
        >>> Variable((2,), constraints.interval(0.0, 2.0)) == Variable((2,), constraints.interval(0.0, 2.0))
        True
    """

    shape: tuple[int, ...]
    support: Support = field(default="real", compare=False)
    dtype: torch.dtype | None = None
    _identity: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse shapes that are not tuples of positive integers, and supports of another shape."""
        if not isinstance(self.shape, tuple) or any(not isinstance(s, int) or s < 1 for s in self.shape):
            raise ValueError(f"an event shape is a tuple of positive ints such as (10,), got {self.shape!r}")
        object.__setattr__(self, "support", canonical(self.support))
        object.__setattr__(self, "_identity", identity(self.support))
        if not self.discrete:
            try:
                _ = self.free_shape
            except (ValueError, RuntimeError, IndexError) as error:
                raise ValueError(f"support {describe(self.support)} does not fit shape {self.shape}: {error}") from None

    @property
    def discrete(self) -> bool:
        """Whether values are integers rather than real numbers."""
        return isinstance(self.support, str) and self.support.startswith("integers(")

    @property
    def free_shape(self) -> torch.Size:
        """Shape of the real coordinates that make up one value, ``(K − 1,)`` for a simplex of K."""
        transform = None if self.discrete else bijection(self.support)
        if transform is None:
            return torch.Size(self.shape)
        if len(self.shape) < event_size(self.support):
            raise ValueError(f"it is of {event_size(self.support)} dimensions")
        free = torch.Size(transform.inverse_shape(self.shape))
        middle: Any = transform(torch.zeros(free))
        if middle.shape != torch.Size(self.shape):  # bounds of another shape would broadcast
            raise ValueError(f"its values have shape {tuple(middle.shape)}")
        if not bool(torch.isfinite(middle).all()):
            raise ValueError("its bounds are not all finite")
        return free

    @property
    def dim(self) -> int:
        """Degrees of freedom: K − 1 for a simplex of K."""
        return self.free_shape.numel()

    @property
    def levels(self) -> int:
        """K of a discrete variable with values 0 … K−1; 0 of a continuous one."""
        return int(str(self.support)[len("integers(") : -1]) if self.discrete else 0

    def compatible(self, other: "Variable") -> bool:
        """Whether one state can serve both: same shape, both discrete or both continuous."""
        return (
            self.shape == other.shape
            and self.discrete == other.discrete
            and (not self.discrete or self.support == other.support)
        )


Variables = Variable | Mapping[str, Variable]


def map_state(fn: Callable[..., Tensor], x: State, *rest: State) -> State:
    """Apply ``fn`` to the tensor of a state, or to each variable's tensor."""
    if isinstance(x, Tensor):
        return fn(x, *rest)
    return {name: fn(value, *(r[name] for r in rest)) for name, value in x.items()}  # pyright: ignore[reportArgumentType, reportCallIssue]


def first_tensor(x: State) -> Tensor:
    """The tensor of a state, or one of its tensors: for batch size, dtype and device."""
    return x if isinstance(x, Tensor) else next(iter(x.values()))


def expand_rows(value: Tensor, like: Tensor) -> Tensor:
    """Reshape a per-row tensor ``(N,)`` (or a scalar) so that it broadcasts over ``like``."""
    return value if value.ndim == 0 else value.reshape(value.shape[0], *([1] * (like.ndim - 1)))


def describe_variables(variables: Variables) -> str:
    """One line that names the variables and their shapes, for messages."""
    if isinstance(variables, Variable):
        return f"one variable of shape {variables.shape}"
    return "{" + ", ".join(f"{name}: {v.shape}" for name, v in variables.items()) + "}"


def rename(variables: Variables, names: tuple[str, ...], owner: str) -> dict[str, Variable]:
    """The variables, in order, under new names.

    Raises:
        ScopeError: as many names as there are variables are needed, all different.
    """
    own = [variables] if isinstance(variables, Variable) else list(variables.values())
    if len(names) != len(own) or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
        raise ScopeError(
            f"{owner} is over {describe_variables(variables)}; on() needs {len(own)} different names, got {names}"
        )
    return dict(zip(names, own, strict=True))


def check_state(x: object, variables: Variables, owner: str) -> int:
    """Check a state against the variables it is meant for and return its batch size N.

    Raises:
        TypeError: not a tensor or mapping, or a dtype that the variable does not take.
        ValueError: wrong event shape or batch sizes that differ.
        ScopeError: missing or unknown variable names.
    """
    if isinstance(variables, Variable):
        if not isinstance(x, Tensor):
            hint = "pass a tensor (N, *event)" if not isinstance(x, Mapping) else "bind the term with .on(name) first"
            raise TypeError(f"{owner} is over {describe_variables(variables)} and got a {type(x).__name__}; {hint}")
        return _check_tensor(x, variables, owner)
    if not isinstance(x, Mapping):
        raise TypeError(
            f"{owner} is over {describe_variables(variables)} and got a {type(x).__name__}; pass a dictionary of "
            "tensors"
        )
    if set(x) != set(variables):
        missing, unknown = sorted(set(variables) - set(x)), sorted(set(x) - set(variables))
        raise ScopeError(
            f"{owner} is over {describe_variables(variables)}; the state lacks {missing} and has unknown {unknown}"
        )
    sizes = {name: _check_tensor(x[name], v, f"{owner}[{name}]") for name, v in variables.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{owner}: the variables of one state must share N, got {sizes}")
    return next(iter(sizes.values()), 0)


def _check_tensor(x: Tensor, variable: Variable, owner: str) -> int:
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner} expects a tensor (N, *{variable.shape}), got {type(x).__name__}")
    if x.shape[1:] != variable.shape or x.ndim == 0:
        raise ValueError(
            f"{owner} expects x of shape (N, {', '.join(map(str, variable.shape))}), got {tuple(x.shape)}"
            + ("; add a batch dimension with x[None]" if tuple(x.shape) == variable.shape else "")
        )
    if variable.dtype is not None and x.dtype != variable.dtype:
        raise TypeError(f"{owner} expects {variable.dtype}, got {x.dtype}; convert x with x.to({variable.dtype})")
    if variable.discrete == x.is_floating_point() or x.is_complex():
        want = "integer" if variable.discrete else "floating-point"
        raise TypeError(f"{owner} expects {want} values, got {x.dtype}; convert x yourself, nothing is cast silently")
    return x.shape[0]
