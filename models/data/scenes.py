r"""Procedural scenes: a few coloured shapes on a black canvas, drawn exactly and rendered exactly.

A scene has N objects, N uniform on 1…``most``. Each object's shape and colour are one of the allowed pairs, uniformly
and independently; the centres are uniform on ``[margin, size − margin]²`` given that every two are at least
``distance`` apart (drawn by rejection, so this is the exact law). An object covers a pixel by
:math:`\operatorname{clip}(\tfrac12 - d, 0, 1)` with d the signed distance from the pixel's centre to the outline, so
that a rendered image depends continuously on the positions and determines them.

A *description* names one object, chosen uniformly among the N, by some of its attributes; the others are hidden at
random. So for a description c that gives certain attributes
:math:`p(c \mid x) \propto \#\{i : \text{object } i \text{ agrees with } c\} / N`, which is what conditional models
that are trained on descriptions learn, and what the exact law of compositions follows from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow")
RELATIONS = ("left of", "above", "alone")
"""What a description can say of two objects, or that there is only one (see :meth:`Scenes.describe`)."""

HELD_OUT = (("triangle", "red"), ("circle", "blue"))
"""Pairs that no scene contains: what a conditional model must put together without having seen it."""

PALETTE = ((1.0, 0.2, 0.2), (0.2, 0.9, 0.3), (0.25, 0.45, 1.0), (1.0, 0.85, 0.2))
"""RGB of the colours in [0, 1]; the canvas is black."""

FIELDS = ("shape", "color", "x", "y", "relation", "other_shape", "other_color")
"""Columns of a description; −1 where nothing is said."""

NOTHING = -1.0
_TRIES = 16
_HIDDEN = {"shape": 0.4, "color": 0.4, "position": 0.3, "other_shape": 0.5, "other_color": 0.3}
_RELATED = 0.2


class Layouts(NamedTuple):
    """What n scenes contain; slots beyond ``count`` hold −1.

    Attributes:
        count: number of objects, long ``(n,)``.
        position: centres (x, y) in pixels, x to the right and y down, ``(n, most, 2)``.
        shape: indices into :data:`SHAPES`, long ``(n, most)``.
        color: indices into :data:`COLORS`, long ``(n, most)``.
    """

    count: Tensor
    position: Tensor
    shape: Tensor
    color: Tensor


@dataclass(frozen=True)
class Scenes:
    """The law of scenes on one canvas.

    Args:
        size: height and width of the canvas in pixels.
        most: largest number of objects.
        radius: of a circle; squares and triangles have a similar area.
        margin: least distance of a centre from the edge.
        distance: least distance between two centres; at 2.8 radii and more no two outlines touch.
        held_out: pairs (shape, colour) that no scene contains.

    Raises:
        ValueError: numbers that leave no room for the objects, or names that do not exist.

    Example:
        >>> import torch
        >>> scenes = Scenes.small()
        >>> layouts = scenes.layouts(4, torch.Generator().manual_seed(0))
        >>> scenes.render(layouts).shape
        torch.Size([4, 3, 16, 16])
    """

    size: int = 32
    most: int = 5
    radius: float = 3.0
    margin: float = 5.0
    distance: float = 8.5
    held_out: tuple[tuple[str, str], ...] = HELD_OUT

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("size", "most"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a positive int, got {value!r}")
        for name in ("radius", "margin", "distance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a positive number of pixels, got {getattr(self, name)!r}")
        side = self.size - 2 * self.margin
        if side <= 0 or self.most * self.distance**2 > 1.1 * (side + self.distance) ** 2:
            raise ValueError(
                f"{self.most} objects {self.distance:g} px apart find no room on {self.size} px with margins of "
                f"{self.margin:g}; take fewer objects, or a larger canvas"
            )
        for shape, color in self.held_out:
            if shape not in SHAPES or color not in COLORS:
                raise ValueError(f"held_out holds pairs of {SHAPES} and {COLORS}, got {(shape, color)!r}")

    @classmethod
    def small(cls) -> "Scenes":
        """16 × 16 pixels and up to three smaller objects, for tests and quick runs."""
        return cls(size=16, most=3, radius=2.0, margin=3.0, distance=5.7)

    @property
    def pairs(self) -> Tensor:
        """Allowed pairs of indices (shape, colour), long ``(K, 2)``."""
        held = {(SHAPES.index(shape), COLORS.index(color)) for shape, color in self.held_out}
        return torch.tensor([(s, c) for s in range(len(SHAPES)) for c in range(len(COLORS)) if (s, c) not in held])

    # ----------------------------------------------------------------- drawing

    def layouts(self, n: int, generator: torch.Generator | None = None, count: int | Tensor | None = None) -> Layouts:
        """n independent scenes.

        Args:
            count: number of objects in each, an int or long ``(n,)``; None draws it.
        """
        device = torch.device("cpu") if generator is None else generator.device
        if count is None:
            counts = torch.randint(1, self.most + 1, (n,), generator=generator, device=device)
        else:
            counts = torch.as_tensor(count, device=device).expand(n).clone()
            if n and not 1 <= int(counts.min()) <= int(counts.max()) <= self.most:
                raise ValueError(f"a scene has 1 to {self.most} objects, got {count}")
        present = torch.arange(self.most, device=device) < counts[:, None]
        pairs = self.pairs.to(device)
        chosen = pairs[torch.randint(len(pairs), (n, self.most), generator=generator, device=device)]
        chosen = torch.where(present[..., None], chosen, -1)
        position = torch.where(present[..., None], self._positions(counts, generator), NOTHING)
        return Layouts(counts, position, chosen[..., 0], chosen[..., 1])

    def _positions(self, counts: Tensor, generator: torch.Generator | None) -> Tensor:
        """Centres ``(n, most, 2)``: the first proposal of each row that keeps the distance."""
        found = torch.empty(len(counts), self.most, 2, device=counts.device)
        pending = torch.arange(len(counts), device=counts.device)
        while len(pending):
            shape = (len(pending), _TRIES, self.most, 2)
            proposal = torch.rand(shape, generator=generator, device=counts.device)
            proposal = self.margin + (self.size - 2 * self.margin) * proposal
            apart = self.keeps_distance(proposal, counts[pending, None])
            first = apart.long().argmax(1)
            done = apart.any(1)
            found[pending[done]] = proposal[done, first[done]]
            pending = pending[~done]
        return found

    def keeps_distance(self, position: Tensor, count: Tensor) -> Tensor:
        """Whether the first ``count`` centres keep the distance; ``(…, most, 2)`` and ``(…)`` to ``(…)``."""
        slots = torch.arange(position.shape[-2], device=position.device)
        first, second = torch.triu_indices(len(slots), len(slots), 1, device=position.device)
        gap = (position[..., first, :] - position[..., second, :]).square().sum(-1)
        return ((gap >= self.distance**2) | (second >= count[..., None])).all(-1)

    # --------------------------------------------------------------- rendering

    def render(self, layouts: Layouts) -> Tensor:
        """Images ``(n, 3, size, size)`` in [−1, 1]; differentiable in the positions."""
        palette = torch.tensor(PALETTE, device=layouts.position.device, dtype=layouts.position.dtype)
        coverage = self.coverage(layouts.position, layouts.shape)
        ink = coverage[:, :, None] * palette[layouts.color.clamp(min=0)][..., None, None]
        return 2 * ink.sum(1) - 1

    def coverage(self, position: Tensor, shape: Tensor) -> Tensor:
        """How much of each pixel each object covers; ``(…, 2)`` and long ``(…)`` to ``(…, size, size)``.

        Pixel (i, j) has its centre at x = j + ½, y = i + ½. Objects of shape −1 cover nothing.
        """
        ticks = torch.arange(self.size, device=position.device, dtype=position.dtype) + 0.5
        x = ticks - position[..., 0, None, None]
        y = ticks[:, None] - position[..., 1, None, None]
        r = self.radius
        outside = torch.stack(
            [
                (x.square() + y.square()).clamp(min=1e-12).sqrt() - r,
                torch.maximum(x.abs(), y.abs()) - 0.9 * r,
                torch.maximum(y + 0 * x, 0.75**0.5 * x.abs() - 0.5 * y) - 0.7 * r,
            ],
            -1,
        )
        index = shape.clamp(min=0)[..., None, None, None].expand(*outside.shape[:-1], 1)
        signed = outside.gather(-1, index)[..., 0]
        return torch.where(shape[..., None, None] < 0, 0.0, (0.5 - signed).clamp(0, 1))

    # ------------------------------------------------------------- describing

    def describe(self, layouts: Layouts, generator: torch.Generator | None = None) -> Tensor:
        """One description of each scene, ``(n, 7)`` with the columns :data:`FIELDS`.

        With probability 0.8 an object, chosen uniformly, by its shape, its colour and its place, each hidden at times;
        otherwise an ordered pair of objects of which the first is left of, or above, the second (all
        true relations are equally likely), by shapes and colours. Scenes of one object have no relations, and those
        descriptions say "alone". Were they empty instead, an empty description would be six times as likely for one
        object as for more, and a model that is told nothing would not be the model of all scenes.
        """
        n = len(layouts.count)
        device = layouts.position.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        rows = torch.full((n, len(FIELDS)), NOTHING, device=device)
        first = (uniform(n) * layouts.count).long()
        second = (first + 1 + (uniform(n) * (layouts.count - 1)).long()) % layouts.count
        relation = (uniform(n) < 0.5).long()
        every = torch.arange(n, device=device)
        place = layouts.position
        swapped = place[every, first].gather(1, relation[:, None]) > place[every, second].gather(1, relation[:, None])
        related = uniform(n) < _RELATED
        turn = related & swapped[:, 0]
        first, second = torch.where(turn, second, first), torch.where(turn, first, second)
        shown = {name: uniform(n) >= share for name, share in _HIDDEN.items()}
        single = ~related
        rows[:, 0] = torch.where(shown["shape"], layouts.shape[every, first], NOTHING)
        rows[:, 1] = torch.where(shown["color"], layouts.color[every, first], NOTHING)
        rows[:, 2:4] = torch.where((shown["position"] & single)[:, None], place[every, first], NOTHING)
        rows[:, 4] = torch.where(related, relation, NOTHING)
        rows[:, 5] = torch.where(related & shown["other_shape"], layouts.shape[every, second], NOTHING)
        rows[:, 6] = torch.where(related & shown["other_color"], layouts.color[every, second], NOTHING)
        alone = torch.full_like(rows[0], NOTHING)
        alone[4] = RELATIONS.index("alone")
        return torch.where((related & (layouts.count < 2))[:, None], alone, rows)

    def inventory(self, layouts: Layouts, generator: torch.Generator | None = None) -> Tensor:
        """The whole content of each scene, objects in random order, ``(n, 4 · most)``: shape, color, x, y of each."""
        n, most = layouts.shape.shape
        key = torch.rand((n, most), generator=generator, device=layouts.position.device)
        key = torch.where(layouts.shape < 0, 2.0, key)
        order = key.argsort(1)
        columns = torch.cat([layouts.shape[..., None], layouts.color[..., None], layouts.position], -1)
        return columns.gather(1, order[..., None].expand(-1, -1, 4)).flatten(1)

    def stream(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """An endless supply of pictures and descriptions of single objects, for ``fit``."""
        layouts = self.layouts(n, generator)
        return self.render(layouts), self.describe(layouts, generator)

    def full_stream(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pictures and their whole content, for models that are told everything at once."""
        layouts = self.layouts(n, generator)
        return self.render(layouts), self.inventory(layouts, generator)


def objects(layouts: Layouts) -> Iterator[list[dict[str, float | str]]]:
    """Each scene as a list of ``{"shape": …, "color": …, "x": …, "y": …}``, as ``given()`` takes them."""
    for count, position, shape, color in zip(*layouts, strict=True):
        yield [
            {
                "shape": SHAPES[int(shape[i])],
                "color": COLORS[int(color[i])],
                "x": float(position[i, 0]),
                "y": float(position[i, 1]),
            }
            for i in range(int(count))
        ]
