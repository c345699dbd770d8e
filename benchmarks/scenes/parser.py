r"""The objects of a picture, by matching what the renderer draws: kinds, sub-pixel centres, and what is left over.

Greedy matching (Mallat and Zhang, 1993, *Matching pursuits with time-frequency dictionaries*, here with amplitudes
fixed at one): an object T lowers the squared error of a residual r by :math:`2 \langle r, T \rangle - \|T\|^2`. All
shapes, colours and half-pixel places are tried at once by convolution; the best is refitted to the residual and taken
while it explains a fair share of itself. Then every object's shape and colour are chosen anew, each shape at its own
best place, and all centres of a picture are fitted together (:mod:`boltzmix.benchmarks.scenes.fitting`).

All 12 pairs of shape and colour are looked for, those that scenes never contain, too, and up to three more objects
than scenes contain. Nothing is repaired: pictures with values that are not finite are not parsed, and say so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from time import process_time

import torch
from torch import Tensor

from boltzmix.benchmarks.scenes.fitting import Brush, fit_all, fit_one, ink, paint
from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts, Scenes

EXTRA = 3
"""How many more objects than ``scenes.most`` are found."""

_SHARE = 0.25  # an object is there if it lowers the error by this share of its own square: seen at 5/8 of its strength
_OFFSETS = (0.25, 0.75)  # of the centres tried, in pixels: none is further than a quarter from a tried one
_CHUNK = 256


@dataclass(frozen=True)
class Parsed:
    """What n pictures show; slots beyond ``count`` hold −1.

    Attributes:
        count: objects found, long ``(n,)``; up to ``most + EXTRA``, and −1 for a picture that is not finite.
        position: centres in pixels, ``(n, most + EXTRA, 2)``.
        shape, color: indices, long ``(n, most + EXTRA)``.
        residual: squared error that is left, ``(n,)``; NaN for a picture that is not finite.
        rms: its root mean over pixels and channels, ``(n,)``: the distance to the re-rendered parse.
        finite: whether all values are.
        explained: whether the rms is within the tolerance.
        inside: whether all centres are in the square of the prior, give or take the slack.
        apart: whether all pairs keep the prior's distance, give or take the slack.
    """

    count: Tensor
    position: Tensor
    shape: Tensor
    color: Tensor
    residual: Tensor
    rms: Tensor
    finite: Tensor
    explained: Tensor
    inside: Tensor
    apart: Tensor

    @property
    def clean(self) -> Tensor:
        """Pictures that are wholly explained by objects where objects may be, bool ``(n,)``."""
        return self.finite & self.explained & self.inside & self.apart

    @property
    def layouts(self) -> Layouts:
        """As the renderer takes them."""
        return Layouts(self.count, self.position, self.shape, self.color)

    def rows(self, index: Tensor | slice) -> "Parsed":
        """Some of the pictures."""
        return Parsed(*(getattr(self, field.name)[index] for field in fields(self)))


def tolerance(scenes: Scenes, noise: float = 0.03, share: float = 0.15) -> float:
    r"""The largest rms of a picture that counts as explained.

    .. math:: \tau^2 = \sigma^2 + \text{share} \cdot \min \|T\|^2 / (3 S^2),

    noise of standard deviation σ, and no more beside it than a share of the faintest object: a ghost of 0.4 of its
    strength, say.

    Example:
        >>> round(tolerance(Scenes()), 3), round(tolerance(Scenes.small()), 3)
        (0.068, 0.09)
    """
    return math.sqrt(noise**2 + share * float(_energies(scenes).min()) / (3 * scenes.size**2))


def parse(images: Tensor, scenes: Scenes, rms: float | None = None, slack: float = 0.5) -> Parsed:
    """Every object of each picture.

    Args:
        images: pictures ``(n, 3, S, S)`` in [−1, 1], floating point; computed in float32.
        scenes: the renderer and the prior.
        rms: largest error of a picture that counts as explained; None is :func:`tolerance`.
        slack: pixels by which centres may lie outside of the prior's square, or be closer than its distance, and still
            count as inside and apart.

    Raises:
        ValueError: another shape.
        TypeError: no floating point tensor.

    Example:
        >>> scenes = Scenes.small()
        >>> truth = scenes.layouts(3, torch.Generator().manual_seed(1))
        >>> found = parse(scenes.render(truth), scenes)
        >>> bool((found.count == truth.count).all()), bool(found.clean.all())
        (True, True)
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(
            f"parse takes pictures as a floating point tensor, got {getattr(images, 'dtype', type(images))}"
        )
    if images.ndim != 4 or images.shape[1:] != (3, scenes.size, scenes.size):
        raise ValueError(
            f"pictures of these scenes are (n, 3, {scenes.size}, {scenes.size}), got {tuple(images.shape)}"
        )
    n, slots = len(images), scenes.most + EXTRA
    images = images.detach().to("cpu", torch.float32)
    finite = images.isfinite().flatten(1).all(1)
    count = torch.where(finite, 0, -1)
    position = torch.full((n, slots, 2), -1.0)
    shape = torch.full((n, slots), -1)
    color = torch.full((n, slots), -1)
    residual = torch.full((n,), torch.nan)
    bank = _Bank.of(scenes)
    with torch.no_grad():
        for rows in finite.nonzero()[:, 0].split(_CHUNK) if finite.any() else ():
            found = _parse(images[rows], scenes, bank, slots)
            count[rows] = (found[1] >= 0).sum(1)
            position[rows], shape[rows], color[rows] = found
            drawn = scenes.render(Layouts(count[rows], *found))
            residual[rows] = (images[rows] - drawn).square().sum((1, 2, 3))
    root = (residual / images[0].numel()).sqrt() if n else residual
    low, high = scenes.margin - slack, scenes.size - scenes.margin + slack
    within = ((position >= low) & (position <= high)).all(-1) | (shape < 0)
    first, second = torch.triu_indices(slots, slots, 1)
    gap = (position[:, first] - position[:, second]).norm(dim=-1)
    apart = (gap >= scenes.distance - slack) | (shape[:, second] < 0)
    limit = tolerance(scenes) if rms is None else rms
    return Parsed(
        count, position, shape, color, residual, root, finite, root <= limit, within.all(1), finite & apart.all(1)
    )


# ---------------------------------------------------------------------- matching


@dataclass(frozen=True)
class _Bank:
    """Templates of all shapes at all offsets, F = shapes · offsets²."""

    brush: Brush
    filters: Tensor  # (F, 1, side, side)
    shape: Tensor  # (F,)
    offset: Tensor  # (F, 2)
    square: Tensor  # sum of squared coverage on the canvas about each pixel, (F, S, S)

    @classmethod
    def of(cls, scenes: Scenes) -> "_Bank":
        brush = Brush(scenes)
        offsets = torch.tensor(_OFFSETS)
        offset = torch.cartesian_prod(offsets, offsets).repeat(len(SHAPES), 1)
        shape = torch.arange(len(SHAPES)).repeat_interleave(len(_OFFSETS) ** 2)
        filters = brush.coverage(brush.half + offset, shape)[:, None]
        ones = torch.ones(1, 1, scenes.size, scenes.size)
        square = torch.nn.functional.conv2d(ones, filters.square(), padding=brush.half)[0]
        return cls(brush, filters, shape, offset, square)


def _energies(scenes: Scenes) -> Tensor:
    """‖T‖² of each shape and colour, ``(shapes, colours)``."""
    brush = Brush(scenes)
    middle = torch.full((len(SHAPES), 2), brush.half + 0.5)
    square = brush.coverage(middle, torch.arange(len(SHAPES))).square().sum((1, 2))
    return square[:, None] * ink(square).square().sum(1)


def _parse(images: Tensor, scenes: Scenes, bank: _Bank, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, shapes and colours of finite pictures."""
    n = len(images)
    above = images + 1
    position = torch.full((n, slots, 2), -1.0)
    shape, color = torch.full((n, slots), -1), torch.full((n, slots), -1)
    residual = above.clone()
    active = torch.arange(n)
    for slot in range(slots):
        where, kind, hue, there = _best(residual[active], bank, _SHARE * _energies(scenes))
        active, where, kind, hue = active[there], where[there], kind[there], hue[there]
        if len(active) == 0:
            break
        brush = Brush(scenes, slack=1)
        origin = brush.origin(where)
        window = _windows(brush, residual[active], origin)
        where = origin + fit_one(brush, window, where - origin, kind, hue, steps=3)
        position[active, slot], shape[active, slot], color[active, slot] = where, kind, hue
        residual[active] -= paint(bank.brush, where, kind, hue, torch.arange(len(active)), len(active))
    slots_used = int((shape >= 0).sum(1).max()) if n else 0
    if slots_used:
        used = slice(0, slots_used)
        position[:, used], shape[:, used], color[:, used] = _settle(
            bank.brush, above, position[:, used], shape[:, used], color[:, used]
        )
    return position, shape, color


def _best(residual: Tensor, bank: _Bank, least: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The object that lowers each error most: centre, shape, colour, and whether by more than ``least`` of its kind."""
    n, size = len(residual), residual.shape[-1]
    match = torch.nn.functional.conv2d(residual.flatten(0, 1)[:, None], bank.filters, padding=bank.brush.half)
    match = match.reshape(n, 3, -1)
    colors = ink(residual)
    gain, best = residual.new_full((n,), -torch.inf), torch.zeros(n, dtype=torch.long)
    hue = torch.zeros(n, dtype=torch.long)
    for index, rgb in enumerate(colors):
        lowered = 2 * torch.einsum("c,ncf->nf", rgb, match) - rgb.square().sum() * bank.square.flatten()
        value, where = lowered.max(1)
        better = value > gain
        gain, best = torch.where(better, value, gain), torch.where(better, where, best)
        hue = torch.where(better, index, hue)
    template, pixel = best // size**2, best % size**2
    corner = torch.stack([pixel % size, pixel // size], 1)
    kind = bank.shape[template]
    return corner + bank.offset[template], kind, hue, gain > least[kind, hue]


def _windows(brush: Brush, images: Tensor, origin: Tensor) -> Tensor:
    """One window of each picture, ``(n, 3, side, side)``, zero beyond the canvas."""
    index = brush.indices(origin)[:, None].expand(-1, 3, -1)
    return brush.pad(images).gather(2, index).unflatten(2, (brush.side, brush.side))


def _settle(
    brush: Brush, above: Tensor, position: Tensor, shape: Tensor, color: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All centres together, then each object's kind anew, then all centres again."""
    position = fit_all(brush, above, position, shape, color, steps=3)
    n = len(above)
    wide = Brush(brush.scenes, slack=1)
    colors = ink(above)
    for slot in range(shape.shape[1]):
        active = (shape[:, slot] >= 0).nonzero()[:, 0]
        others = shape.clone()
        others[:, slot] = -1
        row, which = (others >= 0).nonzero(as_tuple=True)
        rest = above - paint(brush, position[row, which], shape[row, which], color[row, which], row, n)
        start, hue = position[active, slot], color[active, slot]
        origin = wide.origin(start)
        window = _windows(wide, rest[active], origin)
        gains, places = [], []
        for kind in range(len(SHAPES)):
            kinds = torch.full_like(hue, kind)
            place = fit_one(wide, window, start - origin, kinds, hue, steps=3)
            cover = wide.coverage(place, kinds)
            match = torch.einsum("mcij,mij,kc->mk", window, cover, colors)
            gains.append(2 * match - colors.square().sum(1) * cover.square().sum((1, 2))[:, None])
            places.append(origin + place)
        best = torch.stack(gains, 1).flatten(1).argmax(1)
        kind, hue = best // len(COLORS), best % len(COLORS)
        position[active, slot] = torch.stack(places, 1)[torch.arange(len(active)), kind]
        shape[active, slot], color[active, slot] = kind, hue
    return fit_all(brush, above, position, shape, color, steps=6), shape, color


# ---------------------------------------------------------------------- accuracy


def parser_accuracy(
    scenes: Scenes, n: int = 5000, noises: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3), seed: int = 0
) -> list[dict[str, float]]:
    """How well n rendered scenes are recovered, as they are and with noise.

    Half of the scenes are the prior's; the other half have pairs of shape and colour that it holds out, too.

    Returns:
        For each noise: shares of pictures with the right ``count`` and with everything right (``exact``: all kinds,
        every centre within 1 px), shares of matched objects with the right ``shape`` and ``color``, ``missed`` and
        ``spurious`` objects for each true one, root mean square and largest error of centres in pixels
        (``position_rms``, ``position_max``, over both coordinates together), share of ``clean`` pictures by a tolerance
        for this noise, mean ``rms``, and CPU seconds for 1,000 pictures.
    """
    from boltzmix.benchmarks.scenes.judges import pair_objects

    generator = torch.Generator().manual_seed(seed)
    every = Scenes(**{**{f.name: getattr(scenes, f.name) for f in fields(scenes)}, "held_out": ()})
    parts = scenes.layouts(n - n // 2, generator), every.layouts(n // 2, generator)
    truth = Layouts(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    images = scenes.render(truth)
    rows = []
    for noise in noises:
        noisy = images + noise * torch.randn(images.shape, generator=generator)
        start = process_time()
        found = parse(noisy, scenes, rms=tolerance(scenes, max(noise, 0.03)))
        seconds = process_time() - start
        pairs = pair_objects(truth, found, radius=2.0)
        own, other = pairs.first, pairs.second
        shape = truth.shape[pairs.row, own] == found.shape[pairs.row, other]
        color = truth.color[pairs.row, own] == found.color[pairs.row, other]
        error = (truth.position[pairs.row, own] - found.position[pairs.row, other]).norm(dim=1)
        right = torch.zeros(n, dtype=torch.long).index_add_(0, pairs.row, (shape & color & (error < 1)).long())
        objects = int(truth.count.sum())
        rows.append(
            {
                "noise": noise,
                "n": n,
                "count": float((found.count == truth.count).double().mean()),
                "exact": float(((found.count == truth.count) & (right == truth.count)).double().mean()),
                "shape": float(shape.double().mean()),
                "color": float(color.double().mean()),
                "missed": (objects - len(own)) / objects,
                "spurious": (int(found.count.sum()) - len(own)) / objects,
                "position_rms": float(error.double().square().mean().sqrt()),
                "position_max": float(error.max()),
                "clean": float(found.clean.double().mean()),
                "rms": float(found.rms.double().mean()),
                "seconds_per_1000": 1000 * seconds / n,
            }
        )
    return rows


__all__ = ["EXTRA", "Parsed", "parse", "parser_accuracy", "tolerance"]
