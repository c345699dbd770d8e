r"""Canvases larger than the model: one density on small pictures tiled over a large one.

Windows r of the model's size lie on a grid and overlap. Multiplying what the model says of each counts the overlaps
twice; dividing by the density of the overlaps o counts them once (Bethe 1935; Kikuchi 1951; Yedidia, Freeman and
Weiss, 2005, *Constructing free-energy approximations and generalized belief propagation algorithms*):

.. math::
    p(x; \sigma) \propto \frac{\prod_r p(x_r; \sigma)}{\prod_o p(x_o; \sigma)}
    \qquad \text{with exponents that add up to 1 at every pixel.}

Along one axis these are windows and the overlaps of neighbours, and the formula is exact for fields that are Markov of
an order up to the overlap. Along two axes the exponents are products of those of the axes: windows +1, overlaps of
neighbours in a row or a column −1, the corners that four windows share +1; exact where the field is a product of such
fields in its covariance, an approximation elsewhere.

A network knows the windows and not the overlaps. Fisher's identity writes an overlap's score as a mean,
:math:`s_o(x_o) = E[s_r(x_r)|_o \mid x_o]`, and the canvas holds one draw of the rest of each window, so
:math:`\sum_r w_r\, s_r|_o` with weights that add up to one estimates it, once for every extra window. What remains of
the quotient is the average of the windows' scores,

.. math:: s(x)_i = \sum_{r \ni i} w_r(i)\, s_r(x_r)_i, \qquad \sum_r w_r(i) = 1.

With equal weights this is MultiDiffusion (Bar-Tal, Yariv, Lipman and Dekel, 2023, *MultiDiffusion: Fusing diffusion
paths for controlled image generation*). It is biased: a pixel at the edge of a window is averaged with a score that
knows nothing of its neighbour outside. In a Markov field, though, the score of the whole field at a pixel *is* that of
any window that holds all of the pixel's neighbours. ``overlap="centre"`` takes every pixel from the window in which it
is farthest from the edges, and is exact as soon as twice the order of the field fits into an overlap. The average of
scores is no gradient of anything, so these canvases have no energy.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.crops import Crop, Cropped, Piece, Window, check_larger, check_real, check_shape
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.marginals import marginal, same_density
from boltzmix.compose.product import Product, condition_on, moments
from boltzmix.compose.term import Term

AVERAGES = ("centre", "tent", "mean")
Index = tuple[int, ...]
Condition = Mapping[str, object] | Term | None
Overlap = str | Term | Mapping[tuple[int, ...], Term] | Callable[[tuple[int, ...]], Term]


class Canvas(Cropped):
    r"""A model on small pictures as a density on large ones; see the module's page for the formulas.

    All windows are rows of one forward, also where some have conditions, and also those of several canvases and
    :class:`~boltzmix.compose.crops.Window` factors over one canvas in a product. The path is annealed: the tiled noised
    densities are not the noised canvas. ``Reverse`` is therefore biased where overlaps are divided out, and close for
    ``overlap="centre"``, whose scores estimate those of the noised canvas; ``Annealed``, or SMC where there are
    energies, is right at the data end.

    Args:
        model: a term over one real variable.
        shape: the canvas, with all axes of the model's event, such as ``(3, 128, 128)``; larger along some of them.
        stride: from one window to the next, a number for all larger axes or one for each.
        overlap: how overlaps are counted once.

            - a term, a mapping from shapes to terms, or a function of the shape: the density of an overlap. Two axes
              have overlaps of three shapes.
            - ``"marginal"``: the model's own marginals in closed form. Where those of neighbouring windows differ (the
              model is not stationary), their geometric mean.
            - ``"centre"``: each pixel's score is that of the window that holds most of its surroundings.
            - ``"tent"``: an average whose weights fall linearly towards the edges of windows.
            - ``"mean"``: the plain average, MultiDiffusion.
            - None: ``"marginal"`` where that is known, else ``"centre"``; :attr:`overlap` says which.
        conditions: for single windows by their index (row, column), or a function of the index: what the model is
            given there, ``dict(label=3)``, or a term over the window. The density is multiplied by
            :math:`p(x_r | c) / p(x_r)` for each.

    Raises:
        TypeError: a model over several variables, or not over reals.
        ValueError: a grid that does not end at the canvas's edge, an unknown window or overlap, an overlap's density of
            another shape, or no marginal where one is asked for.

    Example:
        >>> import torch
        >>> lag = torch.arange(4.0)[:, None] - torch.arange(4.0)
        >>> ar = Gaussian(torch.zeros(4), 0.8 ** lag.abs())                     # four steps of a Markov chain
        >>> long = Canvas(ar, (10,), stride=3)
        >>> long.overlap, long.windows, long.normalized
        ('marginal', (3,), True)
    """

    def __init__(
        self,
        model: Term,
        shape: Sequence[int],
        stride: int | Sequence[int],
        *,
        overlap: Overlap | None = None,
        conditions: Mapping[Any, Condition] | Callable[[Index], Condition] | None = None,
    ) -> None:
        """Lay the grid and decide how overlaps are counted."""
        super().__init__()
        event = check_real(model, "Canvas")
        full = check_shape(shape, "Canvas's shape")
        tiled = check_larger(event, full, model.name())
        if not tiled:
            raise ValueError(f"a canvas is larger than its windows along some axis, got {full} for windows of {event}")
        if overlap is not None and not isinstance(overlap, (str, Term, Mapping)) and not callable(overlap):
            raise TypeError(f"overlap is a name, a term, a mapping or a function, got {type(overlap).__name__}")
        if isinstance(overlap, str) and overlap not in (*AVERAGES, "marginal"):
            raise ValueError(f"overlap is 'marginal', {', '.join(map(repr, AVERAGES))}, or a term, got {overlap!r}")
        self.variables = replace(model.variables, shape=full)  # pyright: ignore[reportArgumentType]
        self.stride = _strides(stride, event, full, tiled)
        self.model, self.tiled = model, tiled
        self._asked = (overlap, conditions)  # terms in it are members already
        self._starts = [
            tuple(range(0, large - small + 1, step)) if large > small else (0,)
            for small, large, step in zip(event, full, self.stride, strict=True)
        ]
        self.windows: Index = tuple(len(self._starts[axis]) for axis in tiled)
        local = self._conditions(conditions)
        densities = None if overlap in AVERAGES else self._overlaps(overlap)
        if overlap is None:
            self.overlap = "centre" if densities is None else "marginal"
        else:
            self.overlap = overlap if isinstance(overlap, str) else "given"
        base = self._averaged() if densities is None else self._divided(densities)
        pieces = _merged([*base, *self._local(local)])
        self.conditions = frozenset().union(*(piece.term.conditions for piece in pieces))
        self._take_pieces(pieces)
        self._derive(pieces, closed=densities is not None and self.overlap == "marginal" and not local)

    def _derive(self, pieces: Sequence[Piece], closed: bool) -> None:
        """Path and flags."""
        apart = all(self.stride[axis] >= self.model.event_shape[axis] for axis in self.tiled)
        if all(piece.term.path == "static" for piece in pieces):
            self.path = "static"
        elif apart and self._scales == [1.0] * len(pieces) and all(p.term.path == "noised" for p in pieces):
            self.path = "noised"
        else:
            self.path = "annealed"
            self.path_reason = "overlapping windows of noised densities are not the noised canvas"
        chain = len(self.tiled) == 1 and closed and not self._mixed
        self.normalized = all(p.term.normalized for p in pieces) and (apart or chain)

    # ------------------------------------------------------------------- grid

    def crop(self, index: Index | int) -> Crop:
        """The window of an index, (row, column) for pictures."""
        where = (index,) if isinstance(index, int) else tuple(index)
        good = len(where) == len(self.windows) and all(isinstance(i, int) for i in where)
        if not good or not all(0 <= i < count for i, count in zip(where, self.windows, strict=True)):
            raise ValueError(
                f"windows have indices below {self.windows}, one number for each tiled axis, got {index!r}"
            )
        position = dict(zip(self.tiled, where, strict=True))
        start = tuple(starts[position.get(axis, 0)] for axis, starts in enumerate(self._starts))
        return Crop(start, self.model.event_shape)

    def around(self, point: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Where a window may begin whose middle is near a point of the canvas, and the point as that window sees it.

        Args:
            point: in pixels from the canvas's corner, one number for each tiled axis: (y, x) for pictures.

        Returns:
            ``at`` for :class:`~boltzmix.compose.crops.Window`, and the coordinates inside it.

        Example:
            >>> import torch
            >>> canvas = Canvas(Gaussian(torch.zeros(3, 32, 32), 1.0), (3, 64, 128), stride=32)
            >>> canvas.around((40.0, 101.5))
            ((24, 86), (16.0, 15.5))
            >>> canvas.around((3.0, 126.0))
            ((0, 96), (3.0, 30.0))
        """
        if len(point) != len(self.tiled):
            raise ValueError(f"a point has one number for each tiled axis, {len(self.tiled)}, got {tuple(point)}")
        starts = []
        for axis, value in zip(self.tiled, point, strict=True):
            small, large = self.model.event_shape[axis], self.event_shape[axis]
            if not 0 <= value <= large:
                raise ValueError(f"a point of the canvas is in [0, {large}] along axis {axis}, got {value!r}")
            starts.append(min(max(round(value - small / 2), 0), large - small))
        return tuple(starts), tuple(float(v) - a for v, a in zip(point, starts, strict=True))

    def _indices(self) -> list[Index]:
        return list(itertools.product(*map(range, self.windows)))

    # ----------------------------------------------------------------- pieces

    def _conditions(self, conditions: Any) -> dict[Index, Term]:
        """Windows with a term of their own."""
        if conditions is None:
            return {}
        if isinstance(conditions, Mapping):
            given = {(k,) if isinstance(k, int) else tuple(k): value for k, value in conditions.items()}
        elif callable(conditions):
            given = {index: conditions(index) for index in self._indices()}
        else:
            raise TypeError(f"conditions is a mapping from windows or a function, got {type(conditions).__name__}")
        found: dict[Index, Term] = {}
        for index, condition in given.items():
            self.crop(index)
            if condition is None:
                continue
            if not isinstance(condition, (Term, Mapping)):
                raise TypeError(
                    f"the condition of window {index} is what the model is given, such as dict(label=3), or a term, "
                    f"got {type(condition).__name__}"
                )
            term = condition if isinstance(condition, Term) else self.model.given(**condition)
            if check_real(term, "a window") != self.model.event_shape:
                raise ValueError(f"window {index} is over {self.model.event_shape}, its term over {term.event_shape}")
            found[index] = term
        return found

    def _local(self, conditions: Mapping[Index, Term]) -> list[Piece]:
        """p(x_r | c) / p(x_r) for the windows with a condition."""
        pieces = []
        for index, term in conditions.items():
            crop = self.crop(index)
            pieces += [Piece(crop, term, 1.0), Piece(crop, self.model, -1.0)]
        return pieces

    def _overlaps(self, overlap: Overlap | None) -> dict[Crop, list[Term]] | None:
        """Densities of every overlap, one of them or those of all neighbours; None where there is no closed form."""
        found: dict[Crop, list[Term]] = {}
        cache: dict[tuple[Any, ...], Term | None] = {}
        self._mixed = False
        for crop, _, owners in self._regions():
            if crop.shape == self.model.event_shape:
                continue
            if overlap is not None and overlap != "marginal":
                found[crop] = [self._density(overlap, crop.shape)]
                continue
            terms: list[Term] = []
            for owner in owners:
                inside = tuple(slice(a - b, a - b + s) for a, b, s in zip(crop.start, owner, crop.shape, strict=True))
                token = tuple((piece.start, piece.stop) for piece in inside)
                if token not in cache:
                    cache[token] = marginal(self.model, inside)
                part = cache[token]
                if part is None:
                    if overlap is None:
                        return None
                    raise ValueError(
                        f"{self.model.name()} has no marginal in closed form: give the density of an overlap, "
                        "overlap=term, or overlap='centre'"
                    )
                terms.append(part)
            first = terms[0]
            found[crop] = [first] if all(same_density(first, t) for t in terms[1:]) else terms
            self._mixed = self._mixed or len(found[crop]) > 1
        return found

    def _density(self, overlap: Overlap, shape: tuple[int, ...]) -> Term:
        """What the user says of overlaps of a shape."""
        if isinstance(overlap, Mapping):
            if shape not in overlap:
                raise ValueError(f"overlap has no density for overlaps of {shape}, only for {sorted(overlap)}")
            term = overlap[shape]
        else:
            term = overlap if isinstance(overlap, Term) else overlap(shape)  # pyright: ignore[reportCallIssue]
        if check_real(term, "overlap") != shape:
            raise ValueError(
                f"overlaps here have the shape {shape}, and {term.name()} is over {term.event_shape}; two axes have "
                "overlaps of three shapes: give a mapping from shapes to terms, or a function of the shape"
            )
        return term

    def _regions(self) -> list[tuple[Crop, int, list[tuple[int, ...]]]]:
        """Windows and overlaps with their exponents, and the starts of the windows around each."""
        axes = []
        for starts, small in zip(self._starts, self.model.event_shape, strict=True):
            own: list[tuple[int, int, int, tuple[int, ...]]] = [(a, small, 1, (a,)) for a in starts]
            own += [(b, a + small - b, -1, (a, b)) for a, b in itertools.pairwise(starts) if a + small > b]
            axes.append(own)
        regions = []
        for parts in itertools.product(*axes):
            crop = Crop(tuple(p[0] for p in parts), tuple(p[1] for p in parts))
            owners = list(itertools.product(*(p[3] for p in parts)))
            regions.append((crop, math.prod(p[2] for p in parts), owners))
        return regions

    def _divided(self, densities: Mapping[Crop, Sequence[Term]]) -> list[Piece]:
        """∏ windows / ∏ overlaps."""
        pieces = []
        for crop, exponent, _ in self._regions():
            terms = densities.get(crop, [self.model])
            pieces += [Piece(crop, term, exponent / len(terms)) for term in terms]
        return pieces

    def _averaged(self) -> list[Piece]:
        """The windows, with weights that add up to one at every pixel."""
        axes = []
        for starts, small, large in zip(self._starts, self.model.event_shape, self.event_shape, strict=True):
            axes.append(_axis_weights(starts, small, large, self.overlap))
        pieces = []
        for index in self._indices():
            crop = self.crop(index)
            weight: Tensor = torch.ones((), dtype=torch.float64)
            for axis, (start, small) in enumerate(zip(crop.start, crop.shape, strict=True)):
                own = axes[axis][self._starts[axis].index(start), start : start + small]
                weight = weight[..., None] * own
            pieces.append(Piece(crop, self.model, 1.0 if bool((weight == 1).all()) else weight))
        return pieces

    # ------------------------------------------------------------------ hooks

    @property
    def divides(self) -> bool:
        """Whether overlaps are divided out, so that the canvas is a product of powers of densities."""
        return None not in self._scales

    def factors(self) -> Product:
        """The same density as a product of :class:`~boltzmix.compose.crops.Window` factors.

        For samplers that weigh the factors one by one, such as ``FKC``: each is noised, which the canvas is not.

        Raises:
            TypeError: the overlaps are averaged, which is no product of densities.
        """
        if not self.divides:
            raise TypeError(f"{self.name()} averages scores, which is no product; give the density of an overlap")
        shape = self.event_shape
        windows = [Window(term, crop.start, shape) for crop, term in self._pieces()]
        return Product(list(zip(windows, self._scales, strict=True)))

    def key(self) -> Hashable:
        """The pieces, and how each counts."""
        parts = tuple((crop, term.key()) for crop, term in self._pieces())
        counts = tuple(self._scales) if self.divides else (self.overlap, self.stride)
        return (
            "canvas",
            self.event_shape,
            frozenset(zip(parts, counts, strict=True)) if self.divides else (parts, counts),
        )

    def _given(self, **condition: object) -> Term:
        overlap, conditions = self._asked
        if isinstance(overlap, Term):
            overlap = condition_on(overlap, condition)
        elif isinstance(overlap, Mapping):
            overlap = {shape: condition_on(term, condition) for shape, term in overlap.items()}
        elif callable(overlap):
            make = overlap
            overlap = lambda shape: condition_on(make(shape), condition)  # noqa: E731
        model = condition_on(self.model, condition)
        stride = [self.stride[axis] for axis in self.tiled]
        return Canvas(model, self.event_shape, stride, overlap=overlap, conditions=conditions)

    def _strength(self, sigma: Tensor) -> float | Tensor:
        return self.model._strength(sigma)

    def _coarse(self, sigma: Tensor) -> Gaussian:
        mean, spread = moments(self.model._coarse(sigma))
        variance = spread if spread.ndim == 1 else spread.diagonal()
        total = [torch.zeros(self.event_shape, dtype=mean.dtype, device=mean.device) for _ in range(3)]
        for index in self._indices():
            for sum_, part in zip(total, (mean, variance, torch.ones_like(mean)), strict=True):
                sum_[self.crop(index).slices] += part.reshape(self.model.event_shape)
        return Gaussian(total[0] / total[2], total[1] / total[2])

    def name(self) -> str:
        """The model's name and the canvas's size."""
        return f"{self.model.name()} on {self.event_shape} ({self.overlap} overlaps)"


def _strides(
    stride: int | Sequence[int], event: tuple[int, ...], full: tuple[int, ...], tiled: tuple[int, ...]
) -> tuple[int, ...]:
    """A stride for every axis; those of axes that are not tiled are the window's size."""
    given = list(stride) if isinstance(stride, Sequence) else [stride] * len(tiled)
    if any(isinstance(s, bool) or not isinstance(s, int) for s in given):
        raise TypeError(f"stride is an int, or one for each tiled axis, got {stride!r}")
    if len(given) != len(tiled):
        raise ValueError(f"stride is an int, or one for each of the {len(tiled)} tiled axes, got {stride!r}")
    result = list(event)
    for axis, step in zip(tiled, given, strict=True):
        small, large = event[axis], full[axis]
        if not 1 <= step <= small:
            raise ValueError(f"a stride is from 1 to the window's {small} along axis {axis}, got {step}")
        if (large - small) % step:
            fits = [small + k * step for k in ((large - small) // step, (large - small) // step + 1)]
            raise ValueError(
                f"windows of {small} at a stride of {step} do not end at {large} along axis {axis}: use a canvas of "
                f"{fits[0]} or {fits[1]}, or a stride that divides {large - small}"
            )
        result[axis] = step
    return tuple(result)


def _axis_weights(starts: Sequence[int], small: int, large: int, rule: str) -> Tensor:
    """Weights ``(windows, large)`` of the windows along one axis; they add up to one at every entry.

    They depend on how much of an entry's surroundings a window holds: its distance from the window's nearest edge.
    Edges of the canvas do not count, since nothing lies behind them.
    """
    entry = torch.arange(large)
    reach = []
    for start in starts:
        left = torch.full((large,), large) if start == 0 else entry - start
        right = torch.full((large,), large) if start + small == large else start + small - 1 - entry
        inside = (entry >= start) & (entry < start + small)
        reach.append(torch.where(inside, torch.minimum(left, right), -1))
    near = torch.stack(reach)
    if rule == "mean":
        weights = (near >= 0).double()
    elif rule == "tent":
        weights = (near + 1).clamp(0, small).double()
    else:
        weights = (near == near.amax(0)).double()
    return weights / weights.sum(0)


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece for each crop and term, their weights added; those without weight are left out."""
    merged: dict[Hashable, Piece] = {}
    for piece in pieces:
        key = (piece.crop, piece.term.key())
        weight = piece.weight + merged[key].weight if key in merged else piece.weight
        merged[key] = Piece(piece.crop, piece.term, weight)
    return [p for p in merged.values() if bool(torch.as_tensor(p.weight != 0).any())]
