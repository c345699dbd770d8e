r"""Where a variable lives: names, torch constraints, and what two of them have in common.

A support is a name or a ``torch.distributions.constraints`` object; objects that have a name become it.

====================  =====================================================================================
name                  values
====================  =====================================================================================
``real``              all real numbers
``positive``          :math:`x > 0`
``unit``              :math:`0 < x < 1`
``simplex``           K positive numbers that add up to one; a density of the first K − 1
``ordered``           :math:`x_1 < x_2 < \dots < x_K`
``positive_ordered``  :math:`0 < x_1 < x_2 < \dots < x_K`
``lower_cholesky``    lower triangular (K, K) with a positive diagonal; a density of its K(K + 1)/2 entries
``corr_cholesky``     Cholesky factors of correlation matrices; a density of the entries below the diagonal
``positive_definite`` symmetric positive definite (K, K); a density of the lower triangle
``integers(K)``       0, 1, …, K − 1
====================  =====================================================================================

Half lines and intervals with other bounds have no name: ``constraints.greater_than(2.0)``,
``constraints.interval(low, high)``. Edges belong to a support or not as rounding has it: a density does not care.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

Support = str | Constraint
_INF = float("inf")


class Ordered(Constraint):
    """Vectors whose entries rise, and for ``positive`` begin above zero."""

    is_discrete = False
    event_dim = 1

    def __init__(self, positive: bool = False) -> None:
        """Say whether the first entry is positive."""
        self.positive = positive

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is in it."""
        rises = (value.diff(dim=-1) > 0).all(-1)
        return rises & (value[..., 0] > 0) if self.positive else rises


#: vectors :math:`x_1 < x_2 < \dots < x_K`, which torch has no constraint for
ordered = Ordered()
#: vectors :math:`0 < x_1 < \dots < x_K`
positive_ordered = Ordered(positive=True)

NAMED: dict[str, Constraint] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "unit": constraints.unit_interval,
    "simplex": constraints.simplex,
    "ordered": ordered,
    "positive_ordered": positive_ordered,
    "lower_cholesky": constraints.lower_cholesky,
    "corr_cholesky": constraints.corr_cholesky,
    "positive_definite": constraints.positive_definite,
}
_SAME = {"nonnegative": "positive", "real_vector": "real", "unit_interval": "unit"}
_LINES = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.interval,
    constraints.half_open_interval,
)


def canonical(support: Any) -> Support:
    """A support in its shortest form: a name where there is one, otherwise the constraint.

    Raises:
        ValueError: an unknown name, or an infinite set of integers.
        TypeError: neither a name nor a constraint.
    """
    if isinstance(support, str):
        if support in NAMED or support.startswith("integers("):
            return support
        if support in _SAME:
            return _SAME[support]
        raise ValueError(
            f"unknown support {support!r}: {', '.join(NAMED)}, integers(K), or one of torch.distributions.constraints"
        )
    if isinstance(support, type) and issubclass(support, Constraint):
        raise TypeError(f"support is a constraint, got the class {support.__name__}; write e.g. interval(0.0, 2.0)")
    if not isinstance(support, Constraint):
        raise TypeError(f"support is a name such as 'positive' or a torch constraint, got {type(support).__name__}")
    base = unwrapped(support)
    if base is constraints.boolean:
        return "integers(2)"
    if isinstance(base, constraints.integer_interval):
        low, high = int(base.lower_bound), int(base.upper_bound)
        if low != 0 or high < 0:
            raise ValueError(f"integer variables start at 0, got {describe(base)}; shift it")
        return f"integers({high + 1})"
    if base.is_discrete:
        raise ValueError(f"an integer variable has finitely many values, 0 to K − 1, got {describe(base)}")
    key = identity(base)
    for name, constraint in NAMED.items():
        if key == identity(constraint):
            return name
    bounds = edges(base)
    return base if bounds is None else _line(*bounds)


def _line(low: float | Tensor, high: float | Tensor) -> Support:
    """The interval or half line with these bounds."""
    if isinstance(high, float) and high == _INF:
        if isinstance(low, float) and low == -_INF:
            return "real"
        return "positive" if isinstance(low, float) and low == 0.0 else constraints.greater_than(low)
    if isinstance(low, float) and low == -_INF:
        return constraints.less_than(high)
    if isinstance(low, float) and isinstance(high, float) and (low, high) == (0.0, 1.0):
        return "unit"
    return constraints.interval(low, high)


def as_constraint(support: Support) -> Constraint:
    """The torch constraint of a real support."""
    return NAMED[support] if isinstance(support, str) else support


def unwrapped(constraint: Any) -> Any:
    """A constraint without the wrappers that make batch dimensions events."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def identity(support: Any) -> Hashable:
    """What two equal supports share: torch compares its constraints by object."""
    if isinstance(support, Constraint):
        return (type(support).__name__, *((k, identity(v)) for k, v in sorted(vars(support).items())))
    if isinstance(support, Tensor):
        return identity(support.item()) if support.ndim == 0 else (tuple(support.shape), tuple(support.tolist()))
    if isinstance(support, (list, tuple)):
        return tuple(identity(part) for part in support)
    return float(support) if isinstance(support, (int, float)) and not isinstance(support, bool) else support


def describe(support: Any) -> str:
    """A support as one would write it."""
    if isinstance(support, str):
        return support
    inner = vars(support)
    name = type(support).__name__.lstrip("_")
    name = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
    return f"{name}({', '.join(_short(value) for value in inner.values())})" if inner else name


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
    return (
        f"{value:g}" if isinstance(value, (int, float)) else describe(value) if isinstance(value, Constraint) else "…"
    )


def edges(support: Support) -> tuple[float | Tensor, float | Tensor] | None:
    """Lower and upper bound of an interval or half line, infinite where it has none; None for other supports."""
    constraint = NAMED.get(support) if isinstance(support, str) else support
    if constraint is constraints.real:
        return -_INF, _INF
    if not isinstance(constraint, _LINES):
        return None
    return _bound(getattr(constraint, "lower_bound", -_INF)), _bound(getattr(constraint, "upper_bound", _INF))


def _bound(value: Any) -> float | Tensor:
    """A number where there is one for all entries."""
    return value if isinstance(value, Tensor) and value.ndim else float(value)


def contains(support: Support, x: Tensor, event_dims: int) -> Tensor:
    """Whether each row of ``(N, *event)`` is in a support, shaped ``(N,)``; NaN is not."""
    constraint: Any = as_constraint(support)
    if constraint is constraints.simplex:
        # torch asks for a sum within 1e-6 of one, which its own draws of many coordinates miss
        slack = max(1e-6, 4 * x.shape[-1] * torch.finfo(x.dtype).eps)
        found = (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < slack)
    elif isinstance(constraint, _LINES):
        low, high = (torch.as_tensor(b, dtype=torch.float64).to(x) for b in edges(constraint) or (-_INF, _INF))
        found = (x >= low) & (x <= high)
    else:
        found = constraint.check(x)
    return found.reshape(len(x), -1).all(1) if event_dims else found


def fixed_entries(support: Support, shape: tuple[int, ...]) -> Tensor:
    """Which entries have one value only, shaped like the event: those above the diagonal of a Cholesky factor."""
    fixed = torch.zeros(shape, dtype=torch.bool)
    if support not in ("lower_cholesky", "corr_cholesky"):
        return fixed
    fixed = fixed | torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    if support == "corr_cholesky":
        fixed[..., 0, 0] = True
    return fixed


def meet(supports: Sequence[Support]) -> Support | None:
    """The support of a product: where all of them hold; None where no support says so."""
    found = supports[0]
    for support in supports[1:]:
        both = _meet_two(found, support)
        if both is None:
            return None
        found = both
    return found


def _meet_two(a: Support, b: Support) -> Support | None:
    if identity(a) == identity(b) or b == "real":
        return a
    if a == "real":
        return b
    for one, other in ((a, b), (b, a)):
        if one in ("positive", "unit") and other == "simplex":
            return "simplex"
        if one == "positive" and other in ("ordered", "positive_ordered"):
            return "positive_ordered"
        if one == "ordered" and other == "positive_ordered":
            return "positive_ordered"
    first, second = edges(a), edges(b)
    if first is None or second is None:
        return None
    low, high = _extreme(first[0], second[0], torch.maximum), _extreme(first[1], second[1], torch.minimum)
    if not bool(torch.as_tensor(low < high).all()):
        return None
    return _line(low, high)


def _extreme(a: Any, b: Any, choose: Any) -> Any:
    """The larger or smaller of two bounds; numbers stay numbers."""
    found = choose(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64))
    return float(found) if found.ndim == 0 else found
