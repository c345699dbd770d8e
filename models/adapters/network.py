r"""Diffusion networks as noised terms that know their score.

A network was trained on its own data, schedule and target; :class:`NetworkTerm` asks it the right
question and translates the answer:

.. math::
    y = (x - \mathrm{loc}) / \mathrm{scale}, \quad \tau = \sigma / \mathrm{scale}, \quad
    \nabla \log p(x; \sigma) = -\hat\varepsilon\bigl(\mathrm{net}(\alpha_\tau y, t_\tau)\bigr) / \sigma .

The noise prediction needs no factor for the scale: the same ε was added in both units.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import Variable, expand_rows
from boltzmix.models.adapters.schedule import Schedule

ConditionValue = int | Tensor


@dataclass(frozen=True)
class Condition:
    """One condition that a network takes, and the value that stands for its absence.

    Args:
        keyword: the network's argument that receives it, batched: ``(N,)`` labels or ``(N, *shape)``.
        classes: labels are 0 … classes − 1; None for conditions that are float tensors.
        shape: shape of a float condition, None where any size goes: ``(None, 768)`` for token embeddings.
        null: the label or tensor that makes the network unconditional; None: the network needs the condition.
    """

    keyword: str
    classes: int | None = None
    shape: tuple[int | None, ...] | None = None
    null: ConditionValue | None = None

    def parse(self, name: str, value: object) -> ConditionValue:
        """A validated label, or a tensor of ``shape``.

        Raises:
            TypeError: neither an int nor a tensor of the right kind.
            ValueError: a label out of range, or a tensor of the wrong shape.
        """
        return self._label(name, value) if self.classes is not None else self._tensor(name, value)

    def _label(self, name: str, value: object) -> int:
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            if value.numel() != 1:
                raise ValueError(
                    f"{name} is one label per term, got a tensor of shape {tuple(value.shape)}; "
                    "make one term per label: they share one forward"
                )
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is an integer label, got {_describe(value)}")
        assert self.classes is not None
        null = self.null if isinstance(self.null, int) else None
        if not 0 <= value < self.classes and value != null:
            extra = "" if null is None else f" (or {null} for none)"
            raise ValueError(f"{name} is a label in 0 … {self.classes - 1}{extra}, got {value}")
        return value

    def _tensor(self, name: str, value: object) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} is a floating-point tensor, got {_describe(value)}")
        if self.shape is None:
            return value
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in self.shape) + ")"
        if value.ndim == len(self.shape) + 1 and value.shape[0] == 1:
            value = value[0]
        if value.ndim != len(self.shape) or any(
            s not in (None, own) for s, own in zip(self.shape, value.shape, strict=True)
        ):
            raise ValueError(
                f"{name} has shape {wanted}, without a batch dimension, got {tuple(value.shape)}; "
                "make one term per condition: they share one forward"
            )
        return value


class NetworkTerm(Term):
    r"""A diffusion or flow-matching network as a noised, score-only term.

    :math:`\nabla\log p(x; \sigma) = -\hat\varepsilon / \sigma` with the noise :math:`\hat\varepsilon` that the
    network's prediction implies under its schedule. One evaluation is one forward; k conditions of one
    network are one forward of k·N rows. A graph is built only when grad mode is on and x or a
    parameter needs it; the network's mode, gradients and device stay as they are (call ``net.eval()``
    yourself, or sample through :func:`boltzmix.sample`, which does and restores it).

    Args:
        net: ``net(x_t, t, **conditions) -> prediction``, with x_t ``(N, *event)`` and t ``(N,)``.
        schedule: the schedule it was trained with.
        prediction: what it returns, one of the schedule's ``predictions``.
        event_shape: shape of one draw.
        conditions: what :meth:`given` takes, by name.
        given: values of conditions that are frozen already.
        learned_variance: the network returns 2C channels, of which the first C are the prediction.
        data_loc: shift of the network's data, which are (x − data_loc) / data_scale; broadcasts over the event.
        data_scale: scale of the network's data, a positive number.
        cast: convert x to the network's dtype, and its prediction back; otherwise dtypes must agree.
        integer_time: round times to whole steps, for networks that look them up in a table; the score is then
            exact at the schedule's own levels only.

    Raises:
        TypeError: x and the network differ in dtype and ``cast`` is not set.
        ValueError: levels outside the training range, predictions of the wrong shape, missing conditions.

    Example:
        >>> from boltzmix.models.adapters.schedule import VE
        >>> exact = lambda x_t, t: x_t / (1 + t[:, None] ** 2)     # data N(0, 1): the mean of x0
        >>> p = NetworkTerm(exact, VE(), "sample", (2,))
        >>> p.score(torch.ones(1, 2), 1.0).tolist()
        [[-0.5, -0.5]]
    """

    path = "noised"
    has_energy = False

    def __init__(
        self,
        net: Callable[..., Any],
        schedule: Schedule,
        prediction: str,
        event_shape: Sequence[int],
        *,
        conditions: Mapping[str, Condition] | None = None,
        given: Mapping[str, ConditionValue] | None = None,
        learned_variance: bool = False,
        data_loc: float | Tensor = 0.0,
        data_scale: float = 1.0,
        cast: bool = False,
        integer_time: bool = False,
    ) -> None:
        """Check the description; the network is not called."""
        super().__init__()
        if not callable(net):
            raise TypeError(f"a network is called as net(x_t, t), got {type(net).__name__}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule= is a Schedule such as VP(alphas_cumprod), got {type(schedule).__name__}")
        self.net = net
        self.schedule = schedule
        self.prediction = schedule.resolve(prediction)
        self.variables = Variable(tuple(event_shape))
        self.data_scale = _scale(data_scale)
        self._location = _location(data_loc, self.variables.shape)
        self.register_buffer("data_loc", self._location if isinstance(self._location, Tensor) else None)
        self.learned_variance, self.cast, self.integer_time = learned_variance, cast, integer_time
        least, most = schedule.sigma_range
        self.sigma_range = (least * self.data_scale, most * self.data_scale)
        self._conditions = dict(conditions or {})
        for name, condition in self._conditions.items():
            self.register_buffer(f"null_{name}", condition.null if isinstance(condition.null, Tensor) else None)
        self._frozen = {name: self._conditions[name].parse(name, value) for name, value in (given or {}).items()}
        for name, value in self._frozen.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(f"given_{name}", value)
            elif isinstance(value, Tensor):
                self.register_buffer(f"given_{name}", value)
        self.conditions = frozenset(self._conditions) - frozenset(self._frozen)
        self._identity: Hashable = (
            "network",
            id(net),
            schedule,
            self.prediction,
            self.variables.shape,
            fingerprint(self._location),
            self.data_scale,
            (learned_variance, cast, integer_time),
        )
        self._key = (self._identity, tuple(sorted((n, fingerprint(v)) for n, v in self._frozen.items())))

    # ------------------------------------------------------------------ hooks

    def _score(self, x: Tensor, sigma: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._scores([self], x, sigma)[0]

    def _given(self, **condition: object) -> "NetworkTerm":
        values = self._values()
        return type(self)(
            self.net,
            self.schedule,
            self.prediction,
            self.event_shape,
            conditions={name: self._current(name) for name in self._conditions},
            given={**{name: values[name] for name in self._frozen}, **condition},  # pyright: ignore[reportArgumentType]
            learned_variance=self.learned_variance,
            data_loc=self._location if self.data_loc is None else self.data_loc,  # pyright: ignore[reportArgumentType]
            data_scale=self.data_scale,
            cast=self.cast,
            integer_time=self.integer_time,
        )

    def key(self) -> Hashable:
        """Network, schedule, units and frozen conditions."""
        return self._key

    def _group(self) -> Hashable:
        return self._identity

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        if not score:
            return [(None, None)] * len(terms)
        return [(None, s) for s in self._scores(terms, x, sigma)]  # pyright: ignore[reportArgumentType]

    def _rows(self) -> int:
        return 1

    def _needs_graph(self, x: Any) -> bool:
        return super()._needs_graph(x) or any(b.requires_grad for b in self.buffers(recurse=False))

    def name(self) -> str:
        """The term's and the network's class."""
        return f"{type(self).__name__}({getattr(self.net, '__name__', type(self.net).__name__)})"

    # -------------------------------------------------------------- evaluation

    def _call(self, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """One forward of the network; adapters of a library override this."""
        return self.net(x_t, time, **conditions)

    def _time_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of the times that the network receives, given that of its input."""
        return dtype

    def _scores(self, terms: "Sequence[NetworkTerm]", x: Tensor, sigma: Tensor | None) -> list[Tensor]:
        """Scores of several conditions of this network at one (x, σ)."""
        own = self._net_dtype(x)
        keep = torch.is_grad_enabled() and any(term._needs_graph(x) for term in terms)
        if sigma is None:
            sigma = torch.tensor(self.sigma_range[0], dtype=x.dtype, device=x.device)
        level = sigma / self.data_scale
        with torch.set_grad_enabled(keep), attention_for_second_derivatives(keep and x.requires_grad):
            y = x if self.data_loc is None and self._location == 0 else x - self._shift(x)
            y = y if self.data_scale == 1 else y / self.data_scale
            x_t = (expand_rows(self.schedule.alpha(level).to(x.dtype), y) * y).to(own)
            time = self.schedule.time(level)
            time = (time.round().long() if self.integer_time else time.to(self._time_dtype(own))).expand(x.shape[0])
            scores: list[Tensor | None] = [None] * len(terms)
            for members in _together(terms):
                k = len(members)
                rows = x_t if k == 1 else x_t.repeat(k, *([1] * (x.ndim - 1)))
                conditions = self._batched([terms[i] for i in members], x.shape[0], rows)
                output = self._call(rows, time if k == 1 else time.repeat(k), conditions)
                output = self._checked(output, rows).to(x.dtype).reshape(k, *x.shape)
                eps = self.schedule.eps(self.prediction, output, y, level)
                found = (eps * expand_rows(-1 / sigma, x)).unbind(0)
                for i, s in zip(members, found, strict=True):
                    scores[i] = s
        return scores  # pyright: ignore[reportReturnType]

    def _batched(self, terms: "Sequence[NetworkTerm]", n: int, like: Tensor) -> dict[str, Tensor]:
        """Each condition repeated over the n rows of its term: ``(k·N, …)``."""
        batched = {}
        for name in terms[0]._present():
            condition = self._conditions[name]
            values: list[Any] = [term._values()[name] for term in terms]
            if condition.classes is not None:
                parts = [torch.full((n,), value, dtype=torch.long, device=like.device) for value in values]
            else:
                if any(value.dtype != like.dtype for value in values) and not self.cast:
                    raise TypeError(
                        f"{self.name()}: {name} is {values[0].dtype} and the network's input {like.dtype}; "
                        "convert one of them"
                    )
                parts = [value.to(like.dtype).expand(n, *value.shape) for value in values]
            batched[condition.keyword] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return batched

    def _values(self) -> dict[str, ConditionValue]:
        """Values of conditions, frozen or null; tensors as they are now (a module's ``.to`` moves them)."""
        values = {name: c.null for name, c in self._conditions.items() if c.null is not None} | self._frozen
        return {
            name: getattr(self, f"{'given' if name in self._frozen else 'null'}_{name}") if isinstance(v, Tensor) else v
            for name, v in values.items()
        }

    def _current(self, name: str) -> Condition:
        """A condition with its null tensor as it is now."""
        null = getattr(self, f"null_{name}")
        return self._conditions[name] if null is None else replace(self._conditions[name], null=null)

    def _present(self) -> tuple[str, ...]:
        """Names of the conditions that have a value, frozen or null."""
        missing = [n for n, c in self._conditions.items() if n not in self._frozen and c.null is None]
        if missing:
            raise ValueError(
                f"{self.name()} needs {missing}: write p.given({missing[0]}=…), or say what the network was trained "
                f"with for none, term(net, null_{missing[0]}=…)"
            )
        return tuple(sorted(self._conditions))

    def _checked(self, output: Any, rows: Tensor) -> Tensor:
        expected = list(rows.shape)
        if self.learned_variance:
            expected[1] *= 2
        if not isinstance(output, Tensor) or list(output.shape) != expected:
            hint = ""
            if isinstance(output, Tensor) and list(output.shape) == [expected[0], 2 * expected[1], *expected[2:]]:
                hint = "; if half of the channels are a learned variance, pass learned_variance=True"
            raise ValueError(f"{self.name()} must return predictions {tuple(expected)}, got {_describe(output)}{hint}")
        return output[:, : rows.shape[1]] if self.learned_variance else output

    def _net_dtype(self, x: Tensor) -> torch.dtype:
        own = network_dtype(self.net)
        if own is None or own == x.dtype or self.cast:
            return own or x.dtype
        raise TypeError(
            f"{self.name()} has {own} parameters and x is {x.dtype}; convert one of them, or pass cast=True to convert "
            "x for the network alone and its prediction back"
        )

    def _shift(self, x: Tensor) -> Tensor | float:
        return self._location if self.data_loc is None else self.data_loc.to(x)  # pyright: ignore[reportReturnType]


def network_dtype(net: object) -> torch.dtype | None:
    """Dtype of a module's first floating-point parameter; None for functions and modules without one."""
    if not isinstance(net, nn.Module):
        return None
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), None)


def attention_for_second_derivatives(needed: bool) -> contextlib.AbstractContextManager[object]:
    """The attention kernel that can be differentiated twice, where a graph over x is built.

    The default CPU and memory-efficient kernels have no second derivative; plain sampling keeps them.
    """
    if not needed:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def fingerprint(value: object) -> Hashable:
    """Equal for equal numbers and tensors, so that equal conditions merge; learnable tensors are themselves."""
    if not isinstance(value, Tensor):
        return value  # pyright: ignore[reportReturnType]
    if value.requires_grad:
        return ("learnable", id(value))
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return (tuple(value.shape), str(value.dtype), hashlib.sha256(data).hexdigest())


def _together(terms: Sequence[NetworkTerm]) -> list[list[int]]:
    """Indices of terms whose conditions can be concatenated: tensors of the same shape."""
    groups: dict[Hashable, list[int]] = {}
    for index, term in enumerate(terms):
        term._present()
        shapes = [(n, tuple(v.shape)) for n, v in sorted(term._values().items()) if isinstance(v, Tensor)]
        groups.setdefault(tuple(shapes), []).append(index)
    return list(groups.values())


def _scale(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(
            f"data_scale is one positive number, got {_describe(value)}; noise that differs between coordinates is no "
            "noise level: use affine(term, loc, scale) for a scale per coordinate"
        )
    if not 0 < value < math.inf:
        raise ValueError(f"data_scale is positive and finite, got {value}")
    return float(value)


def _location(value: object, shape: tuple[int, ...]) -> float | Tensor:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"data_loc is finite, got {value}")
        return float(value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"data_loc is a number or a floating-point tensor, got {_describe(value)}")
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits or not bool(torch.isfinite(value).all()):
        raise ValueError(f"data_loc is finite and broadcasts over the event {shape}, got shape {tuple(value.shape)}")
    return value


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__
