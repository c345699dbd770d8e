"""Functions and torch.distributions as terms."""

import inspect
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.term import Normalized, Term, score_from_energy
from boltzmix.compose.variable import State, Variable

KINDS = ("log_prob", "energy", "score")
_ROW_ERRORS = (torch.linalg.LinAlgError, ValueError, RuntimeError)


class Function(Term):
    """A user's function as a term; made by :func:`term`.

    A batch in which the function raises is halved until the rows at fault are found; these become NaN,
    which samplers reject and count.
    """

    calibrated = True

    def __init__(
        self,
        fn: Callable[..., Any],
        kind: str,
        event_shape: tuple[int, ...],
        path: str,
        **flags: Any,
    ) -> None:
        """Hold the function and what was said of it."""
        super().__init__()
        self.fn = fn
        self.kind = kind
        self.variables = Variable(event_shape, support=flags.pop("support", "real"))
        self.path = path  # pyright: ignore[reportAttributeAccessIssue]
        if path == "annealed":
            self.path_reason = "it was declared annealed"
        self.has_energy = kind != "score"
        if "sigma_range" in flags:
            low, high = flags.pop("sigma_range")
            self.sigma_range = (float(low), float(high))
        self.normalized = bool(flags.pop("normalized", False))
        self._label = flags.pop("name", None) or getattr(fn, "__name__", type(fn).__name__)
        over = flags.pop("normalized_over", None)
        if over is not None:
            self.normalized_over = frozenset(over)
        if flags:
            raise TypeError(f"term() got unknown hints {sorted(flags)}")
        self._warned = False

    def key(self) -> Hashable:
        """The function itself: the same function wrapped twice is one term."""
        return ("function", id(self.fn), self.kind, self.path, self.variables)  # pyright: ignore[reportReturnType]

    def name(self) -> str:
        """The function's name."""
        return str(self._label)

    def _call(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        if self.path == "static":
            value = self.fn(x)
        else:
            value = self.fn(x, torch.zeros((), dtype=x.dtype, device=x.device) if sigma is None else sigma)
        expected = tuple(x.shape) if self.kind == "score" else (x.shape[0],)
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name()} must return a tensor, got {type(value).__name__}")
        if tuple(value.shape) != expected:
            raise ValueError(
                f"{self.name()} must return shape {expected} for x of shape {tuple(x.shape)}, got {tuple(value.shape)}"
                + ("; sum over the event dimensions" if self.kind != "score" else "")
            )
        if value.dtype != x.dtype:
            raise TypeError(
                f"{self.name()} returned {value.dtype} for x of {x.dtype}; make its constants {x.dtype}, or sample "
                f"with dtype={value.dtype}"
            )
        return value

    def _guarded(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        try:
            return self._call(x, sigma)
        except _ROW_ERRORS as error:
            if x.shape[0] <= 1 and not isinstance(error, torch.linalg.LinAlgError):
                raise
            values, failed = self._split(x, sigma)
            if failed == x.shape[0] and not isinstance(error, torch.linalg.LinAlgError):
                raise  # no row works: a mistake in the function, not in the data
            return values

    def _split(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, int]:
        try:
            return self._call(x, sigma), 0
        except _ROW_ERRORS as error:
            if x.shape[0] <= 1:
                return self._not_a_number(x, error), 1
            half = x.shape[0] // 2
            left, a = self._split(x[:half], _rows(sigma, slice(0, half)))
            right, b = self._split(x[half:], _rows(sigma, slice(half, None)))
            return torch.cat([left, right]), a + b

    def _not_a_number(self, x: Tensor, error: Exception) -> Tensor:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name()} raised {type(error).__name__} for some rows, which count as NaN: {error}",
                SamplingWarning,
                stacklevel=2,
            )
        return x * torch.nan if self.kind == "score" else (x * torch.nan).flatten(1).sum(1)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        value = self._guarded(x, sigma)
        return value.neg() if self.kind == "log_prob" else value

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, State]:
        keep = torch.is_grad_enabled() and self._needs_graph(x)
        with torch.enable_grad():
            leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
            energy = self._energy(leaf, sigma)
            score = score_from_energy(energy, leaf, keep, self)
        return (energy if keep else energy.detach()), score

    def _score(self, x: Any, sigma: Any) -> State:
        if self.kind == "score":
            return self._guarded(x, sigma)
        return self._energy_and_score(x, sigma)[1]


class Distribution(Normalized):
    """A ``torch.distributions`` object over real vectors: static, normalised, sampled with its own sampler.

    Points outside the support have energy +inf. An event of shape () becomes ``(1,)``; a distribution
    with a batch shape is refused unless ``Independent`` makes the batch an event.
    """

    samplable = True

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        """Check support and shapes."""
        super().__init__()
        if distribution.batch_shape:
            raise ValueError(
                f"{type(distribution).__name__} has batch shape {tuple(distribution.batch_shape)}; wrap it in "
                "torch.distributions.Independent to make it an event"
            )
        if distribution.support.is_discrete:  # pyright: ignore[reportOptionalMemberAccess]
            raise TypeError(f"{type(distribution).__name__} is discrete; gradient samplers need real variables")
        self.distribution = distribution
        self._scalar = not distribution.event_shape
        self.variables = Variable(tuple(distribution.event_shape) or (1,))

    def key(self) -> Hashable:
        """The distribution object."""
        return ("distribution", id(self.distribution))

    def name(self) -> str:
        """The distribution's class."""
        return type(self.distribution).__name__

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        point = x[:, 0] if self._scalar else x
        support: Any = self.distribution.support
        inside = support.check(point)
        if bool(inside.all()):
            return self._log_prob(point, x).neg()
        rows = inside.nonzero()[:, 0]
        outside = torch.full((x.shape[0],), torch.inf, dtype=x.dtype, device=x.device)
        if not len(rows):
            return outside + 0 * torch.zeros_like(x).sum()
        return outside.index_put((rows,), self._log_prob(point[rows], x).neg())

    def _log_prob(self, point: Tensor, x: Tensor) -> Tensor:
        value = self.distribution.log_prob(point)
        if value.dtype != x.dtype:
            raise TypeError(f"{self.name()} has {value.dtype} parameters and x is {x.dtype}; convert one of them")
        return value

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        # torch.distributions draws from the global generator: fork it and seed it from ours.
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            draw = self.distribution.sample((n,))
        return draw[:, None] if self._scalar else draw


def term(obj: Any, *, kind: str | None = None, event_shape: Any = None, **hints: Any) -> Term:
    """A term from a term, a function or a ``torch.distributions`` object.

    Args:
        obj: a Term (returned as it is), a callable, or a distribution.
        kind: for callables, what they return: ``"log_prob"``, ``"energy"`` ``(N,)`` or ``"score"``
            ``(N, *event)``. The sign is never guessed.
        event_shape: for callables, the shape of one draw, e.g. ``(10,)``.
        **hints: ``path`` (``"static"``: fn(x); ``"noised"``, ``"annealed"``: fn(x, sigma)),
            ``sigma_range=(low, high)``, ``normalized``, ``normalized_over``, ``support``, ``name``.

    Raises:
        TypeError: something that is none of these, or a hint that is not known.
        ValueError: a missing or unknown ``kind``, or a missing ``event_shape``.

    Example:
        >>> import torch
        >>> normal = term(lambda x: -0.5 * (x**2).sum(-1), kind="log_prob", event_shape=(3,))
        >>> normal.score(torch.ones(1, 3)).tolist()
        [[-1.0, -1.0, -1.0]]
    """
    if isinstance(obj, Term):
        if kind is not None or event_shape is not None or hints:
            raise TypeError("term() got a Term already; hints are for functions and models")
        return obj
    if isinstance(obj, torch.distributions.Distribution):
        if kind is not None or hints:
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
    if event_shape is None:
        raise ValueError("term() needs event_shape for a function, e.g. event_shape=(10,)")
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if path == "static" and not isinstance(obj, nn.Module) and _required_arguments(obj) == 2:
        raise ValueError("the function takes two arguments: say path='noised' or path='annealed' for fn(x, sigma)")
    return Function(obj, kind, shape, path, **hints)  # pyright: ignore[reportArgumentType]


def _required_arguments(fn: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _rows(sigma: Tensor | None, rows: slice) -> Tensor | None:
    return sigma[rows] if sigma is not None and sigma.ndim else sigma
