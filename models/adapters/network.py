r"""Diffusion networks as noised terms that know their score.

A network was trained on its own data, schedule and target; :class:`NetworkTerm` asks it the right
question and translates the answer:

.. math::
    y = (x - \mathrm{loc}) / \mathrm{scale}, \quad \tau = \sigma / \mathrm{scale}, \quad
    \nabla \log p(x; \sigma) = -\hat\varepsilon\bigl(\mathrm{net}(\alpha_\tau y, t_\tau)\bigr) / \sigma .

The noise prediction needs no factor for the scale: the same ε was added in both units.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import Variable, expand_rows
from boltzmix.models.adapters.condition import (
    Condition,
    ConditionValue,
    describe,
    fingerprint,
    location,
    scale,
)
from boltzmix.models.schedules import FlowMatching, Schedule

HALF = (torch.float16, torch.bfloat16)


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
        cast: convert x to the network's dtype, and its prediction back; otherwise dtypes must agree. The states of
            a network in half precision are then float32.
        max_rows: the most rows of one forward; larger batches (k conditions of N states are k·N rows) are split.
        integer_time: round times to whole steps, for networks that look them up in a table; the score is then
            exact at the schedule's own levels only.

    Raises:
        TypeError: x and the network differ in dtype and ``cast`` is not set.
        ValueError: levels outside the training range, predictions of the wrong shape, missing conditions.
        NonFinite: a network in half precision gave inf or NaN for finite states; other networks' predictions are
            handed on as they are, and samplers count them.

    Example:
        >>> from boltzmix.models.schedules import VE
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
        max_rows: int | None = None,
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
        if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1):
            raise ValueError(f"max_rows is a positive int or None, got {max_rows!r}")
        self.max_rows = max_rows
        # a network in half precision has float32 states; others take the dtype that they are given
        half = cast and network_dtype(net) in HALF
        self.variables = Variable(tuple(event_shape), dtype=torch.float32 if half else None)
        self.data_scale = scale(data_scale)
        self._location = location(data_loc, self.variables.shape)
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
        # what stands for no condition counts like one: p.given(label=null) is p, and another null is another term
        values = {name: c.null for name, c in self._conditions.items() if c.null is not None} | self._frozen
        self._key = (self._identity, tuple(sorted((n, fingerprint(v)) for n, v in values.items())))

    # ------------------------------------------------------------------ hooks

    def _score(self, x: Tensor, sigma: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._scores([self], x, sigma)[0]

    def _given(self, **condition: object) -> "NetworkTerm":
        values = self._values()
        return self._view({**{name: values[name] for name in self._frozen}, **condition})

    def _view(self, given: Mapping[str, object], **more: Any) -> "NetworkTerm":
        """The same network with other frozen conditions; subclasses add their own arguments."""
        return type(self)(
            self.net,
            self.schedule,
            self.prediction,
            self.event_shape,
            conditions={name: self._current(name) for name in self._conditions},
            given=given,  # pyright: ignore[reportArgumentType]
            learned_variance=self.learned_variance,
            data_loc=self._location if self.data_loc is None else self.data_loc,  # pyright: ignore[reportArgumentType]
            data_scale=self.data_scale,
            cast=self.cast,
            integer_time=self.integer_time,
            max_rows=self.max_rows,
            **more,
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
        scores: list[Tensor | None] = [None] * len(terms)
        if sigma is None:
            sigma = torch.tensor(self.sigma_range[0], dtype=x.dtype, device=x.device)
        with self._graph(terms, x):
            for members, output, y in self._outputs(terms, x, sigma):
                eps = self.schedule.eps(self.prediction, output[:, :, : x.shape[1]], y, sigma / self.data_scale)
                found = (eps * expand_rows(-1 / sigma, x)).unbind(0)
                for i, s in zip(members, found, strict=True):
                    scores[i] = s
        return scores  # pyright: ignore[reportReturnType]

    def _score_and_share(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The score, and the share of the larger of two variances that the other half of the channels stands for.

        The step's log-variance is share · log β + (1 − share) · log β̃ (Nichol, Dhariwal 2021, equation 15, with the
        network's number in [−1, 1]).
        """
        if not self.learned_variance:
            raise TypeError(f"{self.name()} has no learned variance: its network returns as many channels as x has")
        with self._graph([self], x):
            ((_, output, y),) = self._outputs([self], x, sigma)
            eps = self.schedule.eps(self.prediction, output[0, :, : x.shape[1]], y, sigma / self.data_scale)
            return eps * expand_rows(-1 / sigma, x), (output[0, :, x.shape[1] :] + 1) / 2

    def _estimates_from_noise(self, terms: "Sequence[NetworkTerm]", noise: Tensor) -> list[Tensor]:
        """E[x0 | pure noise], the limit σ → ∞, in which x / σ is unit noise; flow matching has it at t = 1."""
        schedule = self.schedule
        if not isinstance(schedule, FlowMatching) or self.prediction not in ("flow", "sample"):
            raise ValueError(
                f"{self.name()} has no estimate at sigma = inf: {type(schedule).__name__} with "
                f"{self.prediction!r} does not define it; begin at a finite level"
            )
        sign = 0.0 if self.prediction == "sample" else 1.0
        if (schedule.velocity or ("data" if schedule.data_at else "noise")) == "noise":
            sign = -sign
        estimates: list[Tensor | None] = [None] * len(terms)
        time = torch.tensor(0.0 if schedule.data_at else schedule.time_scale, dtype=torch.float64, device=noise.device)
        with self._graph(terms, noise):
            for members, output in self._forwards(terms, noise, time):
                clean = output if sign == 0.0 else noise + sign * output
                for i, found in zip(members, clean[:, :, : noise.shape[1]].unbind(0), strict=True):
                    estimates[i] = self.data_scale * found + self._shift(noise)
        return estimates  # pyright: ignore[reportReturnType]

    @contextlib.contextmanager
    def _graph(self, terms: "Sequence[NetworkTerm]", x: Tensor) -> Iterator[None]:
        """Gradients where they are wanted and someone needs them."""
        keep = torch.is_grad_enabled() and any(term._needs_graph(x) for term in terms)
        with torch.set_grad_enabled(keep), attention_for_second_derivatives(keep and x.requires_grad):
            yield

    def _outputs(
        self, terms: "Sequence[NetworkTerm]", x: Tensor, sigma: Tensor
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Predictions ``(k, N, C, …)`` for groups of terms (by index), and x in the network's units."""
        level = sigma / self.data_scale
        y = x if self.data_loc is None and self._location == 0 else x - self._shift(x)
        y = y if self.data_scale == 1 else y / self.data_scale
        x_t = expand_rows(self.schedule.alpha(level).to(x.dtype), y) * y
        for members, output in self._forwards(terms, x_t, self.schedule.time(level)):
            yield members, output, y

    def _forwards(
        self, terms: "Sequence[NetworkTerm]", x_t: Tensor, time: Tensor
    ) -> Iterator[tuple[list[int], Tensor]]:
        """One forward for each group of conditions of equal shapes, in the dtype of ``x_t``."""
        own = self._net_dtype(x_t)
        rows = x_t.to(own)
        n = x_t.shape[0]
        time = (time.round().long() if self.integer_time else time.to(self._time_dtype(own))).expand(n)
        for members in _together(terms):
            group = [terms[i] for i in members]
            k = len(group)
            most = self.max_rows or k * n
            outputs = []
            for start in range(0, k * n, most):
                stop = min(start + most, k * n)
                parts = [  # (term, its first and last row) of this slice
                    (term, max(start - i * n, 0), min(stop - i * n, n))
                    for i, term in enumerate(group)
                    if start < (i + 1) * n and stop > i * n
                ]
                tall = _cat([rows[low:high] for _, low, high in parts])
                times = _cat([time[low:high] for _, low, high in parts])
                conditions = self._batched([term for term, _, _ in parts], [high - low for _, low, high in parts], tall)
                outputs.append(self._checked(self._call(tall, times, conditions), tall))
            output = _cat(outputs)
            if own in HALF:
                self._require_finite(output.reshape(k, n, -1), x_t)
            yield members, output.to(x_t.dtype).reshape(k, n, *output.shape[1:])

    def _require_finite(self, output: Tensor, x_t: Tensor) -> None:
        bad = ~torch.isfinite(output).all(-1).all(0) & torch.isfinite(x_t).flatten(1).all(1)
        if bool(bad.any()):
            raise NonFinite(
                f"{self.name()} in {output.dtype} gave inf or NaN for {int(bad.sum())} of {len(bad)} finite states, "
                "most likely because its activations overflow half precision; convert the network with "
                f"{'.to(torch.bfloat16) or .float()' if output.dtype == torch.float16 else '.float()'}"
            )

    def _batched(self, terms: "Sequence[NetworkTerm]", counts: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Each condition repeated over the rows of its term."""
        batched = {}
        for name in terms[0]._present():
            condition = self._conditions[name]
            values: list[Any] = [term._values()[name] for term in terms]
            if condition.classes is not None:
                parts = [
                    torch.full((n,), value, dtype=torch.long, device=like.device)
                    for value, n in zip(values, counts, strict=True)
                ]
            else:
                if any(value.dtype != like.dtype for value in values) and not self.cast:
                    raise TypeError(
                        f"{self.name()}: {name} is {values[0].dtype} and the network's input {like.dtype}; "
                        "convert one of them"
                    )
                parts = [value.to(like.dtype).expand(n, *value.shape) for value, n in zip(values, counts, strict=True)]
            batched[condition.keyword] = _cat(parts)
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
            raise ValueError(f"{self.name()} must return predictions {tuple(expected)}, got {describe(output)}{hint}")
        return output

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


def _together(terms: Sequence[NetworkTerm]) -> list[list[int]]:
    """Indices of terms whose conditions can be concatenated: tensors of the same shape."""
    groups: dict[Hashable, list[int]] = {}
    for index, term in enumerate(terms):
        term._present()
        shapes = [(n, tuple(v.shape)) for n, v in sorted(term._values().items()) if isinstance(v, Tensor)]
        groups.setdefault(tuple(shapes), []).append(index)
    return list(groups.values())


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
