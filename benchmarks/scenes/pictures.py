"""Contact sheets and curves of the image benchmark."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.plots import logarithmic
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes.methods import METHODS, draw, in_chunks
from boltzmix.benchmarks.scenes.negation import factor, ink_in_region, redness
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.compose import Reverse, Twisted
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.models.data.scenes import Scenes

_COLUMNS = 8


def curve(report: Report, task: str, value: str, label: str) -> Callable[[Any], None]:
    """A figure of one value of a task's points against evaluations, a line for each method."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for name, points in report.curves.get(task, {}).items():
            ordered = sorted(points, key=lambda point: point["evaluations"])
            axes.plot([p["evaluations"] for p in ordered], [p[value] for p in ordered], "o-", label=name)
        logarithmic(axes)
        axes.set_xlabel("evaluations of the formula for one picture")
        axes.set_ylabel(label)
        axes.set_title(task)
        axes.legend()

    return paint


def sheets(report: Report, model: Any, scenes: Scenes, quick: bool) -> None:
    """One contact sheet of each kind of composition; every picture of a sheet is a draw, none is chosen."""
    steps, n = (10, 8) if quick else (60, 16)
    place = (0.3 * scenes.size, 0.3 * scenes.size), (0.7 * scenes.size, 0.65 * scenes.size)
    first, second = ({"x": x, "y": y} for x, y in place)
    ticks = ((0.05, 0.05), (0.95, 0.05), (0.05, 0.95), (0.95, 0.95), (0.5, 0.5))[: scenes.most]
    side = scenes.size - 2 * scenes.margin
    several = [{"x": scenes.margin + x * side, "y": scenes.margin + y * side} for x, y in ticks]
    reverse = METHODS["reverse"]

    def shown(target: Term, sampler: Sampler, particles: int = 1) -> Tensor:
        return in_chunks(n * particles, lambda index: (target, sampler), 1, particles).x[::particles]

    def asked(*conditions: dict[str, Any], power: float = 2.0) -> Tensor:
        return draw(reverse, model, Requests.of(*conditions, n=n), power, steps, 1).x

    plain = Reverse(steps=steps, solver="ddpm")
    relation = model * (model.given(relation="left of", color="red", other_color="green") / model) ** 2.0
    above = model * (model.given(relation="above", color="blue", other_color="yellow") / model) ** 2.0
    interval = model * (model.given(**first, color="red") / model) ** (
        lambda sigma: 3.0 * ((sigma > 0.3) & (sigma < 8.0))
    )
    weighed = Twisted(steps=steps, population=8, lookahead=1)
    found: list[tuple[str, Callable[[], Tensor]]] = [
        ("the model by itself", lambda: shown(model, plain)),
        ("a red circle here and a green one there, power 2", lambda: asked(
            {**first, "color": "red", "shape": "circle"}, {**second, "color": "green"})),
        ("objects at all of these places, power 2", lambda: asked(*several)),
        ("objects at all of these places, power 1", lambda: asked(*several, power=1.0)),
        ("a red triangle, a pair never seen, power 2", lambda: asked({**first, "shape": "triangle", "color": "red"})),
        ("red left of green, power 2", lambda: shown(relation, plain)),
        ("blue above yellow, power 2", lambda: shown(above, plain)),
        ("red here: guidance only for 0.3 < σ < 8, power 3", lambda: shown(interval, plain)),
        ("red OR blue", lambda: shown(0.5 * model.given(color="red") + 0.5 * model.given(color="blue"), plain)),
        ("no red (factor, Twisted)", lambda: shown(model * factor(redness, model), weighed, 8)),
        ("nothing in the lower left (factor, Twisted)", lambda: shown(
            model * factor(ink_in_region, model), weighed, 8)),
    ]  # fmt: skip
    if scenes.size != 32:
        found = [entry for entry in found if "lower left" not in entry[0]]
    rows = []
    for title, make in found:
        x = make()
        report.tell("contact sheet", title, float(len(x)), "pictures, none chosen")
        rows.append((title, x))
    report.figures["sheets"] = lambda figure: paint(figure, rows)


def paint(figure: Any, rows: list[tuple[str, Tensor]]) -> None:
    """A sheet for each row of pictures, with its title."""
    lines = max(len(x) for _, x in rows) // _COLUMNS
    figure.set_size_inches(8, 1.15 * lines * len(rows))
    for axes, (title, x) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        size = x.shape[-1]
        framed = torch.nn.functional.pad(((x + 1) / 2).clamp(0, 1), (1, 1, 1, 1), value=0.35)
        sheet = framed.reshape(-1, _COLUMNS, 3, size + 2, size + 2).permute(0, 3, 1, 4, 2)
        axes.imshow(sheet.reshape(-1, _COLUMNS * (size + 2), 3).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.axis("off")
