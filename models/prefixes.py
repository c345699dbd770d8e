r"""Prefixes: an ordered model given the first of its values.

Given the first m values in the model's order, :math:`p(x \mid x_{<m} = v)` is exact wherever the density is a product
of conditionals in that order: ``p.given(prefix=v)`` is a view of the same network with the prefix frozen, as
``p.given(label=c)`` is one with the label frozen.
"""

import math
from collections.abc import Hashable
from typing import Self, cast

import torch
from torch import Tensor

from boltzmix.compose.constraints import Clamp
from boltzmix.models.conditionals import Conditional, LogisticMixture
from boltzmix.models.labels import Labelled
from boltzmix.models.ordered import Ordered


class Prefixed(Labelled):
    """A model that may be given a label, the first of its values, or both.

    A subclass calls :meth:`_take_prefix` after :meth:`_take_labels`, sets ``core``, ``levels`` and ``conditional``,
    says which values it knows, and leaves the factors of the prefix out of its energy.
    """

    core: Ordered
    levels: int | None
    conditional: Conditional
    prefix: Tensor | None

    def _take_prefix(self) -> None:
        """Declare the condition."""
        self.conditions = self.conditions | {"prefix"}
        self.register_buffer("prefix", None)
        self._prefix_identity: Hashable = None

    def _check_values(self, values: Tensor) -> None:
        """Refuse values that are none of the model's."""
        raise NotImplementedError

    def _counted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which factors of ``(N, T)`` values in order count, and which rows are possible at all."""
        raise NotImplementedError

    def _given(self, **condition: object) -> Self:
        if "prefix" not in condition:
            return super()._given(**condition)
        prefix = condition.pop("prefix")
        twin = super()._given(**condition) if condition else self._view()
        if self._prefix_identity is not None:
            raise ValueError("this term has a prefix already; call given() on the model without one")
        values = self._check_prefix(prefix)
        twin.prefix = values
        twin._prefix_identity = (tuple(values.shape), tuple(values.flatten().tolist()))
        return twin

    def _check_prefix(self, prefix: object) -> Tensor:
        own, size = self._weights(), math.prod(self.event_shape)
        wanted = own.dtype if self.levels is None else torch.long
        if not isinstance(prefix, Tensor):
            raise TypeError(f"prefix is a tensor of the first values, (m,) or (N, m), got {type(prefix).__name__}")
        if prefix.dtype != wanted:
            raise TypeError(f"prefix holds {wanted} here, got {prefix.dtype}; convert it with .to({wanted})")
        if prefix.ndim not in (1, 2) or not len(prefix) or not 1 <= prefix.shape[-1] < size:
            raise ValueError(
                f"prefix has shape (m,) or (N, m) with 1 <= m < {size} values in the model's order, "
                f"got {tuple(prefix.shape)}"
            )
        values = prefix.detach().to(own.device).clone()
        self._check_values(values)
        rows = values.reshape(-1, values.shape[-1])
        if not bool(torch.isfinite(rows).all()) or not bool(self._counted(rows)[1].all()):
            raise ValueError(
                "this prefix has probability zero: values that are not finite, or content behind eos or pad"
            )
        if isinstance(self.conditional, LogisticMixture) and self.conditional.interval is not None:
            low, high = self.conditional.interval
            if not bool(((rows >= low) & (rows <= high)).all()):
                raise ValueError(f"a prefix lies in the interval [{low:g}, {high:g}]")
        return values

    def prefix_of(self, x: Tensor, length: int) -> Tensor:
        """The first values of states x in the model's order, ``(N, length)``: what ``given(prefix=…)`` takes."""
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"x has shape (N, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length < math.prod(self.event_shape):
            raise ValueError(f"length is an int in [1, {math.prod(self.event_shape)}), got {length!r}")
        return self.core.arrange(x)[:, :length]

    def clamp(self) -> Clamp:
        """The factor that makes kernels hold the prefix of a view still: ``view * view.clamp()``.

        Raises:
            TypeError: no prefix, or levels, which no gradient kernel moves.
        """
        if self.prefix is None or self.levels is not None:
            raise TypeError("clamp() is for continuous models with a prefix: p.given(prefix=values).clamp()")
        known = self.prefix.shape[-1]
        mask = torch.zeros(1, len(self.core.order), dtype=torch.bool, device=self.prefix.device)
        mask[:, :known] = True
        values = self.prefix.new_zeros(*self.prefix.shape[:-1], len(self.core.order))
        values[..., :known] = self.prefix
        full = self.core.restore(values.reshape(-1, len(self.core.order)))
        return Clamp(self.core.restore(mask)[0], full if self.prefix.ndim == 2 else full[0])

    @property
    def per_row(self) -> bool:
        """Whether every row of a state has a label or a prefix of its own, so that rows must not be exchanged."""
        return self.labels is not None or (self.prefix is not None and self.prefix.ndim == 2)

    def _prefix_rows(self, n: int) -> Tensor | None:
        """The prefix ``(n, m)``."""
        if self.prefix is None:
            return None
        if self.prefix.ndim == 2 and len(self.prefix) != n:
            raise ValueError(
                f"this term holds {len(self.prefix)} prefixes, one per particle, and got {n} particles; "
                "use one prefix where the number of particles changes"
            )
        return self.prefix.expand(n, -1)

    def key(self) -> Hashable:
        """The network, the frozen label and the prefix: equal views of one model merge."""
        return (*cast("tuple[Hashable, ...]", super().key()), self._prefix_identity)

    def name(self) -> str:
        """The class, and the conditions when there are some."""
        shown = [] if self.label is None else [f"label={self.label}"]
        shown += [] if self.prefix is None else [f"prefix of {self.prefix.shape[-1]}"]
        return type(self).__name__ + (f"({', '.join(shown)})" if shown else "")
