"""Batches by number: slices of permutations of stored data, draws from a stream, or what an iterable yields.

Batch m of a run is the same whenever it is asked for, in whichever process, after however many kills.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.models.training.seeding import derive

Batch = Any  # a tensor, or a tuple or mapping of tensors
Stream = Callable[[int, torch.Generator], Batch]
Data = Tensor | Sequence[Tensor] | Stream | Iterable[Batch] | Callable[[], Iterator[Batch]]
DEFAULT_SIZE = 128
_ACCEPTED = (
    "data is a tensor, a tuple of tensors, a stream (n, generator) -> batch, or batches: a DataLoader, another "
    "iterable, or a function without arguments that returns an iterator"
)


class Batches:
    """Base of the three kinds: ``batches(m, generator)`` is batch m, on the device, from a freshly seeded generator."""

    size: int | None  # rows per batch where this side decides
    seed: int
    device: torch.device

    def __call__(self, number: int, generator: torch.Generator) -> Batch:
        """Batch ``number``; streams draw from ``generator``."""
        raise NotImplementedError

    def describe(self) -> str:
        """What a checkpoint remembers of the data."""
        raise NotImplementedError


def batches_of(data: Data, size: int | None, seed: int, device: torch.device) -> Batches:
    """The kind of batches that ``data`` asks for.

    Raises:
        TypeError: not data at all.
        ValueError: tensors of different lengths, or a batch size for an iterable that has its own.
        NonFinite: stored data with NaN or infinite values.
    """
    if isinstance(data, Tensor):
        return StoredBatches((data,), True, size or DEFAULT_SIZE, seed, device)
    if isinstance(data, list | tuple):
        if data and all(isinstance(t, Tensor) for t in data):
            return StoredBatches(tuple(data), False, size or DEFAULT_SIZE, seed, device)
        if not data or not all(isinstance(b, list | tuple | Mapping) and _is_batch(b) for b in data):
            raise TypeError(f"{_ACCEPTED}; got a {type(data).__name__} of {[type(t).__name__ for t in data[:3]]}")
    if type(data).__module__ == "numpy":
        raise TypeError(f"{_ACCEPTED}; got a NumPy array: write torch.from_numpy(array).float()")
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        raise TypeError("a Dataset gives rows, not batches: hand in DataLoader(dataset, batch_size=…, shuffle=True)")
    if callable(data) and not isinstance(data, torch.utils.data.DataLoader):
        if _takes_nothing(data):
            return IteratedBatches(data, size, seed, device)
        return StreamBatches(data, size or DEFAULT_SIZE, seed, device)
    if isinstance(data, Iterable):
        return IteratedBatches(data, size, seed, device)
    raise TypeError(f"{_ACCEPTED}; got {type(data).__name__}")


class StoredBatches(Batches):
    """Rows of tensors in an order that is shuffled anew every epoch; every row is seen once per epoch."""

    def __init__(self, tensors: tuple[Tensor, ...], single: bool, size: int, seed: int, device: torch.device) -> None:
        """Check the tensors and move them to the device."""
        if not all(t.ndim > 0 for t in tensors) or len({len(t) for t in tensors}) > 1 or len(tensors[0]) == 0:
            shapes = [len(t) if t.ndim else "a scalar" for t in tensors]
            raise ValueError(f"the tensors of a data set share a length > 0, got {shapes}")
        for t in tensors:
            if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                raise NonFinite("the data hold NaN or infinite values; remove or repair those rows")
        self.tensors, self.single = tuple(t.to(device) for t in tensors), single
        self.size, self.seed, self.device = size, seed, device
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, number: int, generator: torch.Generator) -> Batch:
        """Rows ``number * size`` to ``(number + 1) * size`` of the endless sequence of epochs."""
        assert self.size is not None
        n = len(self.tensors[0])
        wanted, at = [], number * self.size
        missing = self.size
        while missing:
            epoch, position = divmod(at, n)
            if epoch != self.epoch:
                source = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
                self.order, self.epoch = torch.randperm(n, generator=source), epoch
            part = self.order[position : position + missing]
            wanted.append(part)
            at, missing = at + len(part), missing - len(part)
        index = torch.cat(wanted).to(self.device)
        rows = tuple(t[index] for t in self.tensors)
        return rows[0] if self.single else rows

    def describe(self) -> str:
        """Shapes and types: other rows are another run."""
        return "stored " + ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in self.tensors)


class StreamBatches(Batches):
    """Draws of a function ``(n, generator) -> batch``."""

    def __init__(self, stream: Callable[..., Any], size: int, seed: int, device: torch.device) -> None:
        """Keep the function."""
        self.stream, self.size, self.seed, self.device = stream, size, seed, device

    def __call__(self, number: int, generator: torch.Generator) -> Batch:
        """``size`` rows from the stream."""
        return moved(self.stream(self.size, generator), self.device)

    def describe(self) -> str:
        """Streams cannot be told apart."""
        return "a stream"


class IteratedBatches(Batches):
    """Batches of an iterable, which is started again for every epoch.

    Torch's global generator is seeded by the batch's number before each one is asked for, so that the shuffling of a
    ``DataLoader`` (and augmentation in this process) is a function of the run's seed. To resume, the current epoch is
    read again up to the batch that is due; an iterator, which can be read only once, from its beginning.
    """

    def __init__(self, source: Any, size: int | None, seed: int, device: torch.device) -> None:
        """Keep the source; refuse what would split or size the batches a second time."""
        if size is not None:
            raise ValueError("an iterable has batches of its own size: leave out batch_size, or set it in the loader")
        if isinstance(getattr(source, "sampler", None), torch.utils.data.DistributedSampler):
            raise ValueError(
                "fit() shares batches among the processes itself: use the same plain DataLoader in every process, "
                "without a DistributedSampler"
            )
        self.source, self.size, self.seed, self.device = source, None, seed, device
        self.once = isinstance(source, Iterator)
        self.iterator: Iterator[Any] | None = None
        self.next = 0  # number of the batch that the iterator yields next
        self.first = 0  # number of the first batch of its epoch
        self.held: Any = None  # the batch before that one: batch 0 is asked for twice where a model is prepared

    def __call__(self, number: int, generator: torch.Generator) -> Batch:
        """Batch ``number``: those in between are read and dropped."""
        assert number >= self.next - 1, "batches are asked for in order"
        while self.next <= number:
            self.held = self._read()
        return moved(self.held, self.device)

    def at_epoch(self, first: int) -> None:
        """Continue with the epoch whose first batch has this number; earlier ones need not be read."""
        if not self.once:
            self.first = self.next = first

    def _read(self) -> Any:
        for fresh in (self.iterator is None, True):
            torch.manual_seed(derive(self.seed, "loader", self.next))
            if fresh:
                if self.once and self.next:
                    break
                self.first = self.next
                source: Any = self.source() if callable(self.source) else self.source
                self.iterator = iter(source)
            assert self.iterator is not None
            try:
                batch = next(self.iterator)
            except StopIteration:
                continue
            self.next += 1
            return batch
        if not self.once:
            raise ValueError(f"an epoch of the data holds no batch ({self.next} were read before)")
        raise ValueError(
            f"the iterator ended after {self.next} batches and the run needs more: hand in something that can be "
            "iterated again (a DataLoader, a list of batches, a function without arguments that returns an iterator)"
        )

    def describe(self) -> str:
        """Iterables cannot be told apart."""
        return "batches of an iterable"


def moved(batch: Any, device: torch.device) -> Batch:
    """A batch on the device; lists become tuples.

    Raises:
        TypeError: a batch that is no tensor, nor a tuple or mapping of tensors.
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if _is_batch(batch):
        if isinstance(batch, Mapping):
            return {key: t.to(device) for key, t in batch.items()}
        return tuple(t.to(device) for t in batch)
    inside = f" of {[type(t).__name__ for t in batch]}" if isinstance(batch, list | tuple) else ""
    raise TypeError(f"a batch is a tensor, or a tuple or mapping of tensors, got a {type(batch).__name__}{inside}")


def _is_batch(value: Any) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(values, list | tuple) and bool(values) and all(isinstance(t, Tensor) for t in values)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False
