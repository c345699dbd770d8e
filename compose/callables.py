"""Functions as terms, and ``term()``, which also takes torch.distributions."""

import inspect
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from boltzmix.compose.distributions import Distribution
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.term import Term
from boltzmix.compose.tracing import is_tracing
from boltzmix.compose.variable import State, Variable, Variables, first_tensor, map_state

KINDS = ("log_prob", "energy", "score")
_ROW_ERRORS = (ValueError, RuntimeError)  # torch's LinAlgError is a RuntimeError


class Function(Term):
    """A user's function as a term; made by :func:`term`.

    A batch in which the function raises is halved until the rows at fault are found; these become NaN,
    which samplers reject and count. A function that raises for every row, and has never worked for such
    states, is mistaken: its own error is raised again.
    """

    calibrated = True

    def __init__(
        self,
        fn: Callable[..., Any],
        kind: str,
        variables: Variables,
        path: str,
        **flags: Any,
    ) -> None:
        """Hold the function and what was said of it."""
        super().__init__()
        self.fn = fn
        self.kind = kind
        self.variables = variables
        self.path = path  # pyright: ignore[reportAttributeAccessIssue]
        if path == "annealed":
            self.path_reason = "it was declared annealed"
        self.has_energy = kind != "score"
        if "sigma_range" in flags:
            low, high = flags.pop("sigma_range")
            if not 0 <= float(low) <= float(high):
                raise ValueError(f"sigma_range is (low, high) with 0 <= low <= high, got {(low, high)}")
            self.sigma_range = (float(low), float(high))
        self.normalized = bool(flags.pop("normalized", False))
        self._label = flags.pop("name", None) or getattr(fn, "__name__", type(fn).__name__)
        over = flags.pop("normalized_over", None)
        if over is not None:
            names = set(variables) if isinstance(variables, Mapping) else {"x"}
            over = {over} if isinstance(over, str) else set(over)
            if not over or over - names:
                raise ValueError(f"normalized_over names variables among {sorted(names)}, got {sorted(over)}")
            self.normalized = self.normalized or over == names
            self.normalized_over = None if self.normalized else frozenset(over)
        self._take_relaxation(flags.pop("relaxed", None))
        if flags:
            raise TypeError(
                f"term() got unknown hints {sorted(flags)}; a function takes path, sigma_range, normalized, "
                "normalized_over, support, relaxed and name"
            )
        self._warned = False
        self._worked: set[tuple[torch.dtype, torch.device]] = set()

    def _take_relaxation(self, relaxed: str | None) -> None:
        own = [self.variables] if isinstance(self.variables, Variable) else list(self.variables.values())
        if relaxed not in (None, "one_hot", "values"):
            raise ValueError(
                f"relaxed is 'one_hot' (the function takes floats (N, *event, K)), 'values' (it takes floats "
                f"(N, *event)) or None (it takes integers), got {relaxed!r}"
            )
        if relaxed and not any(v.discrete for v in own):
            raise ValueError(f"relaxed={relaxed!r} is for integer variables: say support=integers(K)")
        self.relaxed = relaxed
        if all(v.discrete for v in own):
            self.has_score = False

    def key(self) -> Hashable:
        """The function itself: the same function wrapped twice is one term."""
        own = self.variables
        scope = own if isinstance(own, Variable) else tuple(own.items())
        return ("function", id(self.fn), self.kind, self.path, self.sigma_range, scope, self.relaxed)

    def name(self) -> str:
        """The function's name."""
        return str(self._label)

    def _floats(self, x: State) -> State:
        """Discrete variables as the function takes them, floats of its own dtype where x holds integers."""
        found = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

        def change(t: Tensor, variable: Variable) -> Tensor:
            if not variable.discrete:
                return t
            k, hot = variable.levels, t.ndim == len(variable.shape) + 2
            if self.relaxed == "values":
                values = t @ torch.arange(k, dtype=t.dtype, device=t.device) if hot else t
                return values if values.is_floating_point() else values.to(found)
            if hot:
                return t
            if not t.is_floating_point():
                return F.one_hot(t.long(), k).to(found)
            return F.one_hot(t.long(), k).to(t.dtype) + 0.0 * t[..., None]  # integers as floats: a gradient of zero

        if isinstance(x, Tensor):
            return change(x, self.variables)  # pyright: ignore[reportArgumentType]
        return {name: change(t, self.variables[name]) for name, t in x.items()}  # pyright: ignore[reportIndexIssue]

    def _call(self, x: State, sigma: Any) -> State:
        if self.relaxed:
            x = self._floats(x)
        if self.path == "static":
            return self.fn(x)
        if sigma is None:
            like = first_tensor(x)
            sigma = torch.full((), self.sigma_range[0], dtype=like.dtype, device=like.device)
        return self.fn(x, sigma)

    def _checked(self, value: Any, x: State) -> Any:
        """Refuse results of the wrong type, shape or dtype: mistakes in the function, not in the data."""
        if self.kind == "score" and not isinstance(x, Tensor):
            if not isinstance(value, Mapping) or set(value) != set(x):
                raise TypeError(f"{self.name()} must return a dictionary of scores for {sorted(x)}, got {value!r:.80}")
            for name, part in value.items():
                self._checked_tensor(part, tuple(x[name].shape), x[name])
            return value
        like = first_tensor(x) if isinstance(x, Tensor) else _first_real(x)
        self._checked_tensor(value, tuple(like.shape) if self.kind == "score" else (like.shape[0],), like)
        return value

    def _checked_tensor(self, value: Any, expected: tuple[int, ...], like: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name()} must return a tensor of shape {expected}, got {type(value).__name__}")
        if tuple(value.shape) != expected:
            raise ValueError(
                f"{self.name()} must return shape {expected} for x of shape {tuple(like.shape)}, got "
                f"{tuple(value.shape)}"
                + ("; sum over the event dimensions, or use value[:, 0]" if self.kind != "score" else "")
            )
        if like.is_floating_point() and value.dtype != like.dtype:
            raise TypeError(
                f"{self.name()} returned {value.dtype} for x of {like.dtype}; make its constants {like.dtype}, or "
                f"sample with dtype={value.dtype}"
            )

    def _guarded(self, x: State, sigma: Any) -> Any:
        like = first_tensor(x)
        try:
            value = self._call(x, sigma)
        except _ROW_ERRORS as error:
            if is_tracing():
                raise
            value, failed = self._split(x, sigma)
            worked = failed < like.shape[0] or (like.dtype, like.device) in self._worked
            if not worked and not isinstance(error, LinAlgError):
                raise  # no row works, and none ever did: a mistake in the function, not in the data
            self._warn(error)
            return value
        self._worked.add((like.dtype, like.device))
        return self._checked(value, x)

    def _split(self, x: State, sigma: Any) -> tuple[Any, int]:
        """Halve a batch that raised; the values and the number of rows that raise alone."""
        n = first_tensor(x).shape[0]
        if n <= 1:
            return self._not_a_number(x), n
        parts, failed = [], 0
        for rows in (slice(0, n // 2), slice(n // 2, None)):
            half, level = map_state(lambda t, r=rows: t[r], x), _rows(sigma, rows)
            try:
                part = self._checked(self._call(half, level), half)
            except _ROW_ERRORS:
                part, count = self._split(half, level)
                failed += count
            parts.append(part)
        joined = parts[0]
        return (torch.cat(parts) if isinstance(joined, Tensor) else map_state(lambda *t: torch.cat(t), *parts)), failed

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name()} raised {type(error).__name__} for some rows, which count as NaN: {error}",
                SamplingWarning,
                stacklevel=2,
            )

    def _not_a_number(self, x: State) -> Any:
        if self.kind == "score":
            return map_state(lambda t: t * torch.nan, x)
        total = [(t * torch.nan).reshape(len(t), -1).sum(1) for t in ([x] if isinstance(x, Tensor) else x.values())]
        return total[0] if len(total) == 1 else torch.stack(total).sum(0)

    def _energy(self, x: State, sigma: Any) -> Tensor:
        value = self._guarded(x, sigma)
        return value.neg() if self.kind == "log_prob" else value

    def _score(self, x: State, sigma: Any) -> State:
        if self.kind == "score":
            return self._guarded(x, sigma)
        return self._energy_and_score(x, sigma)[1]


def term(
    obj: Any, *, kind: str | None = None, event_shape: Any = None, variables: Variables | None = None, **hints: Any
) -> Term:
    """A term from a term, a function or a ``torch.distributions`` object.

    Args:
        obj: a Term (returned as it is), a callable, or a distribution.
        kind: for callables, what they return: ``"log_prob"``, ``"energy"`` ``(N,)`` or ``"score"``
            ``(N, *event)``. The sign is never guessed.
        event_shape: for callables, the shape of one draw, e.g. ``(10,)``, or such a shape for each named
            variable, ``{"mu": (), "theta": (8,)}``: the function then takes a dictionary of tensors ``(N, *shape)``.
        variables: instead of ``event_shape``, a :class:`Variable`, or one for each name.
        **hints: ``path`` (``"static"``: fn(x); ``"noised"``, ``"annealed"``: fn(x, sigma)),
            ``sigma_range=(low, high)``, ``normalized``, ``normalized_over``, ``name``, and ``support``, of all
            variables or of each, ``{"tau": "positive"}`` (others are real): a name or a torch constraint, see
            :class:`Variable`. Samplers move variables with a support in unconstrained coordinates. For integer
            variables, ``relaxed`` says that the function can be differentiated: ``"one_hot"`` when it takes floats
            ``(N, *event, K)`` with one 1 for each value, ``"values"`` when it takes the values as floats
            ``(N, *event)``; without it, it takes integers. See :mod:`boltzmix.compose.relaxation`.

    Raises:
        TypeError: something that is none of these, or a hint that is not known.
        ValueError: a missing or unknown ``kind``, or a missing ``event_shape``.

    Example:
        >>> import torch
        >>> normal = term(lambda x: -0.5 * (x**2).sum(-1), kind="log_prob", event_shape=(3,))
        >>> normal.score(torch.ones(1, 3)).tolist()
        [[-1.0, -1.0, -1.0]]
        >>> def funnel(p):
        ...     return -p["tau"] - 0.5 * ((p["x"] / p["tau"][:, None]) ** 2).sum(1) - 2 * p["tau"].log()
        >>> shapes = {"tau": (), "x": (2,)}
        >>> term(funnel, kind="log_prob", event_shape=shapes, support={"tau": "positive"}).variables["tau"]
        Variable(shape=(), support='positive', dtype=None)
    """
    if isinstance(obj, Term):
        if kind is not None or event_shape is not None or variables is not None or hints:
            raise TypeError("term() got a Term already; hints are for functions and models")
        return obj
    if isinstance(obj, torch.distributions.Distribution):
        if kind is not None or variables is not None or hints:
            raise TypeError(f"a torch distribution needs no hints, got kind={kind!r}, {sorted(hints)}")
        return Distribution(obj)
    if isinstance(obj, type) or not callable(obj):
        raise TypeError(
            f"term() takes a function, a torch distribution, a flow or a network with its schedule, got "
            f"{obj.__name__ if isinstance(obj, type) else type(obj).__name__}"
        )
    if kind not in KINDS:
        raise ValueError(
            f"term() needs kind in {KINDS} for a function, got {kind!r}; the sign is never guessed: log_prob is "
            "log p, energy is −log p, score is ∇ log p"
        )
    path = hints.pop("path", "static")
    if path not in ("static", "noised", "annealed"):
        raise ValueError(f"path is 'static', 'noised' or 'annealed', got {path!r}")
    if variables is not None:
        if event_shape is not None or "support" in hints:
            raise TypeError("term() takes variables=, or event_shape= and support=, not both")
        variables = _declared(variables)
    elif event_shape is None:
        raise ValueError(
            "term() needs event_shape for a function, e.g. event_shape=(10,), or {'mu': (), 'theta': (8,)}"
        )
    else:
        variables = _variables(event_shape, hints.pop("support", "real"))
    if path == "static" and not isinstance(obj, nn.Module) and _required_arguments(obj) == 2:
        raise ValueError("the function takes two arguments: say path='noised' or path='annealed' for fn(x, sigma)")
    return Function(obj, kind, variables, path, **hints)  # pyright: ignore[reportArgumentType]


def _required_arguments(fn: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _declared(variables: Any) -> Variables:
    """Variables as given, checked."""
    if isinstance(variables, Variable):
        return variables
    wrong = not isinstance(variables, Mapping) or not variables
    if wrong or not all(isinstance(n, str) and isinstance(v, Variable) for n, v in variables.items()):
        raise TypeError(f"variables is a Variable or a dictionary of them by name, got {variables!r:.200}")
    return dict(variables)


def _variables(event_shape: Any, support: Any) -> Variables:
    if isinstance(event_shape, Mapping):
        supports = support if isinstance(support, Mapping) else dict.fromkeys(event_shape, support)
        if unknown := sorted(set(supports) - set(event_shape)):
            raise ValueError(f"support names {unknown}, and the variables are {sorted(event_shape)}")
        return {n: _variable(s, supports.get(n, "real")) for n, s in event_shape.items()}
    if isinstance(support, Mapping):
        raise TypeError("support is given by name, and event_shape is not: write event_shape={'mu': (), …}")
    return _variable(event_shape, support)


def _variable(shape: Any, support: Any) -> Variable:
    try:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
    except TypeError as error:
        raise TypeError(f"event_shape is a tuple of positive ints such as (10,), got {shape!r}") from error
    return Variable(shape, support)


def _first_real(x: Mapping[str, Tensor]) -> Tensor:
    """A floating-point tensor of a state where it has one: results have its dtype."""
    return next((t for t in x.values() if t.is_floating_point()), first_tensor(x))


def _rows(sigma: Any, rows: slice) -> Any:
    if isinstance(sigma, Mapping):
        return {name: _rows(level, rows) for name, level in sigma.items()}
    return sigma[rows] if sigma is not None and sigma.ndim else sigma
