r"""Terms on crops of a larger state: many crops, one batched evaluation.

A *crop* is a rectangular piece of a canvas: a start and a shape, one number for each axis of the event. A density on
crops, :math:`p(x) \propto \prod_r p_r(x_r)^{c_r}`, has the energy :math:`\sum_r c_r E_r(x_r)`, and its score is the
sum of the crops' scores, each at the coordinates of its crop. All crops of one shape that one network evaluates, those
of other terms over the same canvas included, are rows of one forward.

:class:`Window` is one such factor, :class:`~boltzmix.compose.canvas.Canvas` the whole formula.
"""

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boltzmix.compose.product import Composite, common_range, condition_on, open_leaves, value_of
from boltzmix.compose.term import Evaluated, Term, evaluate_one
from boltzmix.compose.variable import State, Variable, describe_variables


class Crop(NamedTuple):
    """Where a piece of a canvas is: its first entry and its shape, along every axis of the event."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """As an index of one event."""
        return tuple(slice(a, a + s) for a, s in zip(self.start, self.shape, strict=True))


class Piece(NamedTuple):
    """A term on a crop, and what multiplies its score: a number, or one for each entry of the crop."""

    crop: Crop
    term: Term
    weight: float | Tensor


Found = dict[tuple[Crop, Hashable], Evaluated]


class Cropped(Term):
    """Base of terms that are made of pieces of one canvas; all those of a formula are evaluated together.

    A subclass calls :meth:`_take_pieces` at the end of its constructor, when ``variables`` is set.
    """

    variables: Variable
    index: Tensor

    def _take_pieces(self, pieces: Sequence[Piece]) -> None:
        """Hold the pieces, no (crop, term) twice, and prepare where their scores are added up."""
        members = {piece.term.key(): piece.term for piece in pieces}
        self.members = nn.ModuleList(members.values())
        slots = {key: k for k, key in enumerate(members)}
        self._layout = [(piece.crop, slots[piece.term.key()]) for piece in pieces]
        self._scales = [None if isinstance(piece.weight, Tensor) else float(piece.weight) for piece in pieces]
        self.has_energy = all(t.has_energy for t in members.values()) and None not in self._scales
        self.has_score = all(t.has_score for t in members.values())
        self.calibrated = all(t.calibrated for t in members.values())
        self.sigma_range = common_range(list(members.values()))
        places = torch.cat([_places(self.variables.shape, (piece.crop,), torch.device("cpu")) for piece in pieces])
        weights = torch.cat(
            [torch.as_tensor(p.weight, dtype=torch.float64).expand(p.crop.shape).reshape(-1) for p in pieces]
        )
        table = _table(places, weights != 0, math.prod(self.variables.shape))
        padded = torch.cat([weights, weights.new_zeros(1)])[table]
        self.register_buffer("index", table, persistent=False)
        # no buffer: samplers take a term's dtype from its buffers, and this is not the user's
        self._exact_weights = padded
        self._weights = None if bool((weights == 1).all()) else padded

    def _pieces(self) -> list[tuple[Crop, Term]]:
        """The crops and their terms, in order."""
        return [(crop, self.members[slot]) for crop, slot in self._layout]  # pyright: ignore[reportReturnType]

    def _group(self) -> Hashable | None:
        return ("crops", self.variables.shape)

    def _evaluate_together(
        self, terms: Sequence[Term], x: State, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        assert isinstance(x, Tensor)
        cropped: list[Cropped] = list(terms)  # pyright: ignore[reportAssignmentType]
        wanted = list({(crop, t.key()): (crop, t) for term in cropped for crop, t in term._pieces()}.values())
        energies = energy and any(term.has_energy for term in cropped)
        found = evaluate_crops(wanted, x, sigma, energies, score)
        return [term._collect(found, x, energy and term.has_energy, score) for term in cropped]

    def _collect(self, found: Found, x: Tensor, energy: bool, score: bool) -> Evaluated:
        """This term's energy and score from those of its pieces."""
        parts = [found[crop, term.key()] for crop, term in self._pieces()]
        total: Tensor | None = None
        if energy:
            for (e, _), scale in zip(parts, self._scales, strict=True):
                assert e is not None
                assert scale is not None
                total = scale * e if total is None else total + scale * e
        if not score:
            return total, None
        flat = [s.flatten(1) for _, s in parts if isinstance(s, Tensor)]
        assert len(flat) == len(parts)
        everything = torch.cat([*flat, x.new_zeros(x.shape[0], 1)], dim=1)
        if self._weights is not None and (self._weights.dtype, self._weights.device) != (x.dtype, x.device):
            self._weights = self._exact_weights.to(x)
        summed: Tensor | None = None
        for k, places in enumerate(self.index):
            layer = everything[:, places]
            layer = layer if self._weights is None else layer * self._weights[k]
            summed = layer if summed is None else summed + layer
        assert summed is not None
        return total, summed.reshape(x.shape)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._evaluate_together([self], x, sigma, True, False)[0][0]  # pyright: ignore[reportReturnType]

    def _score(self, x: Any, sigma: Any) -> Tensor:
        return self._evaluate_together([self], x, sigma, False, True)[0][1]  # pyright: ignore[reportReturnType]

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        return self._evaluate_together([self], x, sigma, True, True)[0]  # pyright: ignore[reportReturnType]

    def _calls(self) -> Mapping[Hashable, int]:
        shape = self.variables.shape
        leaves = ((crop, leaf) for crop, term in self._pieces() for leaf in open_leaves([term]))
        return {("crop", shape, crop, leaf.key()): leaf._rows() for crop, leaf in leaves}

    def _rows(self) -> int:
        return sum(self._calls().values())


class Window(Cropped):
    r"""A term that sees one crop of a larger canvas: :math:`p(x) \propto p_{window}(x_{crop})`.

    Alone it says nothing of the rest of the canvas, so it is a factor: ``canvas * Window(p.given(…), at, canvas) /
    Window(p, at, canvas)`` asks for something in one place, by the quotient of what the window's model says with and
    without the condition. The rest is flat, which noise leaves flat: the window of a noised term is noised, and where
    nothing is said :meth:`denoise` returns x.

    Args:
        term: over one real variable.
        at: where the crop begins, (row, column) for pictures: one number for each axis along which the canvas is
            larger than the term, or one for every axis of the event.
        canvas: a :class:`~boltzmix.compose.canvas.Canvas`, or the shape of one.

    Raises:
        ValueError: a crop that leaves the canvas, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> local = Window(Gaussian(torch.ones(2), 1.0), at=3, canvas=(6,))
        >>> local.score(torch.zeros(1, 6)).tolist()
        [[0.0, 0.0, 0.0, 1.0, 1.0, 0.0]]
    """

    def __init__(self, term: Term, at: int | Sequence[int], canvas: Term | Sequence[int]) -> None:
        """Check that the crop fits."""
        super().__init__()
        event = check_real(term, "Window")
        shape = canvas.event_shape if isinstance(canvas, Term) else check_shape(canvas, "Window's canvas")
        tiled = check_larger(event, shape, term.name())
        self.crop = Crop(_start(at, event, shape, tiled), event)
        self.variables = replace(term.variables, shape=shape)  # pyright: ignore[reportArgumentType]
        self.path, self.path_reason, self.conditions = term.path, term.path_reason, term.conditions
        self._take_pieces([Piece(self.crop, term, 1.0)])

    @property
    def inner(self) -> Term:
        """The term that sees the crop."""
        return self.members[0]  # pyright: ignore[reportReturnType]

    def key(self) -> Hashable:
        """The crop, the canvas and the term's key."""
        return ("window", self.variables.shape, self.crop, self.inner.key())

    def _given(self, **condition: object) -> Term:
        return Window(condition_on(self.inner, condition), self.crop.start, self.variables.shape)

    def _strength(self, sigma: Tensor) -> float | Tensor:
        mask = torch.zeros(self.variables.shape, dtype=torch.float64)
        mask[self.crop.slices] = 1.0
        return mask.reshape(-1) * self.inner._strength(sigma)

    def _information(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        precision, shift = self.inner._information(sigma)
        size = math.prod(self.variables.shape)
        places = _places(self.variables.shape, (self.crop,), precision.device)
        whole = precision.new_zeros([size] * precision.ndim)
        whole[places if precision.ndim == 1 else (places[:, None], places)] = precision
        return whole, shift.new_zeros(size).index_copy(0, places, shift)

    def _coarse(self, sigma: Tensor) -> Any:
        raise TypeError(f"{self.name()} says nothing of the rest of its canvas and has no coarse form; ask the canvas")

    def name(self) -> str:
        """The term's name and where the window is."""
        return f"{self.inner.name()} at {self.crop.start}"


# ------------------------------------------------------------------ evaluation


def evaluate_crops(wanted: Sequence[tuple[Crop, Term]], x: Tensor, sigma: Any, energy: bool, score: bool) -> Found:
    """Evaluate terms on crops of one canvas: the crops of one shape under one network in one forward."""
    groups: dict[Hashable, dict[tuple[Crop, Hashable], Term]] = {}
    needs = energy or any(isinstance(t, Composite) and t._needs_energies() for _, t in wanted)
    for crop, term in wanted:
        for leaf in open_leaves([term]):
            key, group = leaf.key(), leaf._group()
            together = ("single", key) if group is None else group
            groups.setdefault((together, crop.shape), {})[crop, key] = leaf
    found: Found = {}
    for members in groups.values():
        crops = tuple(crop for crop, _ in members)
        cut = x.flatten(1)[:, _places(tuple(x.shape[1:]), crops, x.device)]
        rows = cut.reshape(x.shape[0], len(crops), -1).transpose(0, 1).reshape(len(crops), -1, *crops[0].shape)
        values = _evaluate_rows(list(members.values()), rows, sigma, needs, score)
        found.update(zip(members, values, strict=True))
    result: Found = {}
    for crop, term in wanted:
        if isinstance(term, Composite):
            own = {leaf.key(): found[crop, leaf.key()] for leaf in open_leaves([term])}
            result[crop, term.key()] = value_of(term, own, x[(slice(None), *crop.slices)], sigma, score)
        else:
            result[crop, term.key()] = found[crop, term.key()]
    return result


def _evaluate_rows(terms: Sequence[Term], rows: Tensor, sigma: Any, energy: bool, score: bool) -> list[Evaluated]:
    """Term i at ``rows[i]``, ``(N, *event)``, for terms of one group: in one call where they can be stacked."""
    k, n = rows.shape[:2]
    keys = [term.key() for term in terms]
    alike = len(set(keys)) == 1 and not any(getattr(m, "per_row", False) is True for m in terms[0].modules())
    stacked = terms[0] if alike else terms[0]._stack_rows(terms, n)
    if stacked is None:
        values: list[Evaluated] = [(None, None)] * k
        for key in dict.fromkeys(keys):
            own = [i for i in range(k) if keys[i] == key]
            if len(own) == k:  # a condition in each row, and no way to stack it: one crop after the other
                return [evaluate_one(t, r, sigma, energy, score) for t, r in zip(terms, rows, strict=True)]
            part = _evaluate_rows([terms[i] for i in own], rows[own], sigma, energy, score)
            for i, value in zip(own, part, strict=True):
                values[i] = value
        return values
    levels = sigma.repeat(k) if isinstance(sigma, Tensor) and sigma.ndim else sigma
    e, s = evaluate_one(stacked, rows.flatten(0, 1), levels, energy, score)
    energies = [None] * k if e is None else list(e.chunk(k))
    scores = [None] * k if s is None else list(s.chunk(k))  # pyright: ignore[reportAttributeAccessIssue]
    return list(zip(energies, scores, strict=True))


@functools.lru_cache(maxsize=64)
def _places(shape: tuple[int, ...], crops: tuple[Crop, ...], device: torch.device) -> Tensor:
    """Flat indices of the crops' entries, crop after crop."""
    with torch.inference_mode(False):
        entries = torch.arange(math.prod(shape), device=device).reshape(shape)
        return torch.cat([entries[crop.slices].reshape(-1) for crop in crops])


def _table(places: Tensor, used: Tensor, size: int) -> Tensor:
    """For each entry of the canvas, where in the pieces' entries it occurs: ``(most, size)``, padded with their number.

    A gather adds up in one order on every device, which a scatter does not.
    """
    kept = used.nonzero()[:, 0]
    order = kept[torch.argsort(places[kept], stable=True)]
    sorted_places = places[order]
    counts = torch.bincount(sorted_places, minlength=size)
    first = counts.cumsum(0) - counts
    layer = torch.arange(len(order)) - first[sorted_places]
    table = torch.full((max(1, int(counts.max())), size), len(places))
    table[layer, sorted_places] = order
    return table


# ------------------------------------------------------------------ checks


def check_real(term: Term, owner: str) -> tuple[int, ...]:
    """The event shape of a term over one real variable.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(term, Term):
        raise TypeError(f"{owner} takes a term, got {type(term).__name__}; wrap it with boltzmix.term(...)")
    if not isinstance(term.variables, Variable):
        raise TypeError(
            f"{owner} takes a term over one variable, {term.name()} is over {describe_variables(term.variables)}; crop "
            "first, and bind the canvas with .on(name)"
        )
    if term.variables.support != "real":
        raise TypeError(f"{owner} crops real variables, and {term.name()} is over {term.variables.support}")
    if not term.event_shape:
        raise ValueError(f"{owner} crops along the axes of an event, and {term.name()} is over a single number")
    return term.event_shape


def check_shape(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """A shape as a tuple of positive ints."""
    if not isinstance(shape, Sequence) or not all(isinstance(s, int) and not isinstance(s, bool) for s in shape):
        raise TypeError(f"{what} is a shape such as (3, 128, 128), or a Canvas; got {shape!r}")
    return Variable(tuple(shape)).shape


def check_larger(event: tuple[int, ...], shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The axes along which a canvas is larger than the event.

    Raises:
        ValueError: another number of axes, or a canvas that is smaller.
    """
    if len(shape) != len(event):
        raise ValueError(
            f"a canvas for {name} has the axes of its event {event}, got {shape}: write all of them, the channels too"
        )
    if any(large < small for large, small in zip(shape, event, strict=True)):
        raise ValueError(f"a canvas is at least as large as what it is made of, got {shape} for {name} over {event}")
    return tuple(i for i, (large, small) in enumerate(zip(shape, event, strict=True)) if large > small)


def _start(
    at: int | Sequence[int], event: tuple[int, ...], shape: tuple[int, ...], tiled: tuple[int, ...]
) -> tuple[int, ...]:
    given = tuple(at) if isinstance(at, Sequence) else (at,)
    if any(isinstance(a, bool) or not isinstance(a, int) for a in given):
        raise TypeError(f"at is where the window begins, ints such as (40, 100), got {at!r}")
    if len(given) not in (len(shape), len(tiled)):
        raise ValueError(
            f"at has one number for each axis along which {shape} is larger than {event}, {len(tiled)}, or one for "
            f"every axis; got {at!r}"
        )
    start = dict(zip(range(len(shape)) if len(given) == len(shape) else tiled, given, strict=True))
    full = tuple(start.get(i, 0) for i in range(len(shape)))
    for a, small, large in zip(full, event, shape, strict=True):
        if not 0 <= a <= large - small:
            raise ValueError(
                f"a window of {event} at {at!r} leaves the canvas {shape}: starts go from 0 to {large - small}"
            )
    return full
