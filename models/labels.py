"""Class labels: what every conditional family shares.

``p.given(label=3)`` is a view of the same network with the label frozen; ``p`` itself is unconditional, because
training hides labels at random (Ho and Salimans, 2022, *Classifier-free diffusion guidance*).
"""

import copy
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.models.description import Description
from boltzmix.models.nets.embedding import NULL

Batch = Tensor | Sequence[Tensor]


def tile(x: Tensor, k: int) -> Tensor:
    """k copies of x below each other, ``(k · N, …)``; x itself for k = 1."""
    return x if k == 1 else x.repeat(k, *[1] * (x.ndim - 1))


def stacked_labels(labels: Sequence[Tensor | None], n: int, device: torch.device) -> Tensor | None:
    """Labels of k views of a model at N rows each, below each other, or None where no view has any.

    ``(k · N,)``, or ``(k · N, columns)`` for descriptions.
    """
    if all(label is None for label in labels):
        return None
    known = next(label for label in labels if label is not None)
    null = torch.full((n, *known.shape[1:]), NULL, dtype=known.dtype, device=device)
    return torch.cat([null if label is None else label for label in labels])


class Labelled(Term):
    """A term over a network that may take a class label, or a description with several attributes.

    A subclass keeps everything learned in ``self.core``, which its conditional views share, calls
    :meth:`_take_labels` in its constructor, and asks :meth:`_label_rows` for what its network wants: None, or long
    ``(N,)`` with −1 for the unconditional model; with descriptions floats ``(N, columns)``, −1 where nothing is said.
    """

    core: nn.Module
    labels: Tensor | None

    def _take_labels(
        self, num_classes: int | None, dropout: float, *nets: nn.Module, description: Description | None = None
    ) -> None:
        """Declare the condition.

        Args:
            num_classes: number of labels that :meth:`given` takes; None for a model without labels.
            dropout: probability with which a label is hidden in training.
            nets: networks whose own ``num_classes`` or ``columns``, where they have them, must agree.
            description: attributes that :meth:`given` takes in place of a label.

        Raises:
            ValueError: numbers out of range, or networks that were built for others.
        """
        if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
            raise ValueError(f"num_classes is None or a positive int, got {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {dropout}")
        if description is not None and num_classes is not None:
            raise ValueError("a model is told a label or a description; give num_classes= or fields=, not both")
        for net in nets:
            columns = getattr(net, "columns", None)
            if columns != (None if description is None else len(description.names)):
                raise ValueError(
                    f"the network was built for descriptions of {columns or 'no'} columns, the model for "
                    f"{'none' if description is None else ', '.join(description.names)}"
                )
            built = getattr(net, "num_classes", num_classes)
            if built != num_classes:
                raise ValueError(f"the network was built with num_classes={built}, the model with {num_classes}")
        self.num_classes = num_classes
        self.description = description
        said = ("label",) if num_classes is not None else () if description is None else description.names
        self.conditions = frozenset(said)
        self.dropout = float(dropout)
        self.label: int | None = None
        self.register_buffer("labels", None)
        self._identity: Hashable = None

    def _given(self, **condition: object) -> Self:
        if self._identity is not None:
            raise ValueError(
                f"this term is already conditioned on {self.extra_repr()}; call given() on the unconditional model"
            )
        if self.description is not None:
            rows = self.description.rows(condition)
            twin = self._view()
            twin.labels = rows.to(self._weights())
            twin._identity = tuple(map(tuple, rows.tolist()))
            return twin
        label = condition["label"]
        assert self.num_classes is not None
        twin = self._view()
        if isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point():
            if label.dtype == torch.bool or label.is_complex():
                raise TypeError(f"labels are integers, got {label.dtype}")
            values = tuple(label.tolist())
            if not values or min(values) < 0 or max(values) >= self.num_classes:
                raise ValueError(f"labels are ints in [0, {self.num_classes}), got {sorted(set(values))}")
            twin.labels = label.to(self._weights().device, torch.long)
            twin._identity = values
            return twin
        try:
            if isinstance(label, bool) or (isinstance(label, Tensor) and (label.ndim > 0 or label.dtype == torch.bool)):
                raise TypeError
            number = operator.index(label)  # pyright: ignore[reportArgumentType]
        except TypeError:
            what = f"a {label.dtype} tensor of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise TypeError(
                f"label is an int in [0, {self.num_classes}), or a row of N such ints, one per particle; got {what}"
            ) from None
        if not 0 <= number < self.num_classes:
            raise ValueError(f"label is an int in [0, {self.num_classes}), got {number}")
        twin.label = twin._identity = number
        return twin

    def _view(self) -> Self:
        """A twin whose attributes are its own, over the same networks."""
        twin = copy.copy(self)
        # nn.Module keeps these dictionaries by reference; the twin shares what is in them, not the dictionaries.
        twin._buffers, twin._modules = dict(self._buffers), dict(self._modules)
        return twin

    def key(self) -> Hashable:
        """The network and the frozen label: equal views of one model merge."""
        return (type(self).__name__, id(self.core), self._identity)

    @property
    def per_row(self) -> bool:
        """Whether every row of a state has a label of its own, so that rows must not be exchanged."""
        return self.labels is not None and (self.description is None or len(self.labels) > 1)

    def _stack_rows(self, terms: Sequence[Term], n: int) -> Term | None:
        views: Any = terms
        if any(getattr(view, "core", None) is not self.core for view in views):
            return None
        device = self._weights().device
        twin = self._view()
        twin.label, twin.labels = None, stacked_labels([view._label_rows(n, device) for view in views], n, device)
        twin._identity = ("stacked", *(view.key() for view in views))
        return twin

    def _rows(self) -> int:
        return 1

    def extra_repr(self) -> str:
        """The condition, when there is one."""
        if self._identity is None:
            return ""
        if self.description is None:
            return f"label={self._identity}"
        first = self.description.describe(self._identity[0])  # pyright: ignore[reportIndexIssue]
        return f"{first} and {len(self.labels) - 1} others" if self.per_row else first  # pyright: ignore[reportArgumentType]

    def name(self) -> str:
        """The class, and the condition when there is one for all rows."""
        said = f"label={self.label}" if self.label is not None else self.extra_repr() if self.description else ""
        return type(self).__name__ + (f"({said})" if said else "")

    # --------------------------------------------------------------- helpers

    def _weights(self) -> Tensor:
        """A tensor of the network, whose dtype and device are those of the model; an empty one where it has none."""
        tensors = (*self.core.parameters(), *self.core.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

    def _match(self, x: Tensor) -> None:
        """Refuse a state in another dtype or on another device than the weights, where there are any."""
        own = self._weights()
        if own.numel() == 0:
            return
        if (x.is_floating_point() and x.dtype != own.dtype) or x.device != own.device:
            raise TypeError(
                f"{self.name()} holds {own.dtype} weights on {own.device} and got {x.dtype} on {x.device}; "
                f"convert x, or the model with .to({x.dtype}) and .to({str(x.device)!r})"
            )

    def _label_rows(self, n: int, device: torch.device) -> Tensor | None:
        if self.labels is not None:
            if not self.per_row:
                return self.labels.expand(n, -1)
            if self.labels.shape[0] != n:
                raise ValueError(
                    f"this term holds {self.labels.shape[0]} labels, one per particle, and got {n} particles; "
                    "use an int label where the number of particles changes (resampling, probes)"
                )
            return self.labels
        return None if self.label is None else torch.full((n,), self.label, dtype=torch.long, device=device)

    def _data_shape(self) -> tuple[int, ...]:
        """Shape of a row of training data; models with latents have other variables beside it."""
        return self.event_shape

    def _training_batch(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A batch ``x`` or ``(x, label)`` as data and labels, of which a share ``dropout`` is hidden (−1).

        Raises:
            ValueError: another event shape, labels that the model does not take, or labels out of range.
            TypeError: no such pair, values in another dtype than the weights, or labels that are no integers.
        """
        if isinstance(batch, Mapping):
            raise TypeError(
                f"a batch is x or (x, label), got a mapping of {sorted(map(str, batch))}; pick what is needed with "
                "transform=lambda batch, generator: (batch[…], batch[…])"
            )
        x, *rest = (batch,) if isinstance(batch, Tensor) else batch
        if len(rest) > 1:
            raise ValueError(
                f"a batch is x or (x, label), got {len(rest) + 1} tensors; a list of batches of equal length is read "
                "as columns of one data set: hand in a function that returns iter(batches)"
            )
        label = rest[0] if rest else None
        shape = self._data_shape()
        if x.shape[1:] != shape:
            raise ValueError(f"a batch has shape (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        variable = self.variables if isinstance(self.variables, Variable) else self.variables["x"]
        if not variable.discrete:
            if not x.is_floating_point():
                raise TypeError(
                    f"{self.name()} is a density over reals and the batch holds {x.dtype}: dequantise it, e.g. "
                    "fit(…, transform=data.chain(data.dequantise(256))), or convert it yourself; nothing is cast"
                )
            self._match(x)
        if label is not None and self.num_classes is None and self.description is None:
            raise ValueError("the batch has labels and the model takes none; build it with num_classes= or fields=")
        if label is not None:
            label = self._checked_labels(label, len(x))
        if label is not None and self.dropout > 0:
            hidden = torch.rand(len(x), generator=generator, device=x.device) < self.dropout
            label = torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), NULL, label)
        return x, label

    def _checked_labels(self, label: Tensor, n: int) -> Tensor:
        """Labels of a batch as long ``(N,)``; −1 hides one, and anything else out of range is refused."""
        if self.description is not None:
            self.description.check(label, n)
            return label
        assert self.num_classes is not None
        if label.is_floating_point() or label.dtype == torch.bool or label.shape != (n,):
            raise TypeError(f"labels are ints of shape ({n},), got {label.dtype} of shape {tuple(label.shape)}")
        label = label.long()
        if n and not NULL <= int(label.min()) <= int(label.max()) < self.num_classes:
            raise ValueError(
                f"labels are ints in [0, {self.num_classes}), or {NULL} for a row without one, got "
                f"{int(label.min())} … {int(label.max())}"
            )
        return label
