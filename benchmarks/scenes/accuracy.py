"""Are the requested objects there? Shares of right pictures for samplers, numbers of requests, powers and budgets."""

import math
from dataclasses import asdict

import torch
from torch import Tensor

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes.judges import Share, image_error, match
from boltzmix.benchmarks.scenes.methods import Method, Pictures, draw, formula, guided, in_chunks
from boltzmix.benchmarks.scenes.parser import parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.compose import Reverse, sample
from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.models.data.scenes import COLORS, HELD_OUT, SHAPES, Layouts, Scenes

TARGETS = {1.0: {1: 0.97, 2: 0.95, 3: 0.92, 5: 0.85}, 2.0: {1: 0.99, 2: 0.98, 3: 0.98, 5: 0.95}}
"""Least share of right pictures for k places, by the power of guidance."""

KIND_TARGETS = {("color",): 0.95, ("shape",): 0.90, ("position", "shape", "color"): 0.85}
"""Least share of right pictures of one object by its attributes."""


def requests(scenes: Scenes, n: int, k: int, fields: tuple[str, ...], seed: int) -> tuple[Requests, Layouts]:
    """k objects each of n scenes that hold at least so many, and the scenes; the same for every method."""
    generator = torch.Generator().manual_seed(1000 * seed + k)
    count = torch.randint(k, scenes.most + 1, (n,), generator=generator)
    layouts = scenes.layouts(n, generator, count=count)
    return Requests.among(layouts, k, fields, generator), layouts


def cell(
    report: Report,
    task: str,
    method: Method,
    model: Term,
    scenes: Scenes,
    asked: Requests,
    power: float,
    evaluations: int,
    seed: int,
    particles: int = 1,
) -> Share:
    """One cell of the table: drawn, parsed, matched, told."""
    pictures = draw(method, model, asked, power, evaluations, seed, particles)
    return tell(report, task, method.name, pictures, scenes, asked, power, particles)


def refusal(report: Report, task: str, name: str, sampler: Sampler, model: Term, asked: Requests, power: float) -> None:
    """The row of a sampler that refuses the formula, with its own words; one that draws after all is an error here."""
    try:
        sample(formula(model, asked, power), len(asked), sampler=sampler, seed=0, progress=False)
    except MissingEnergy as error:
        report.tell(task, f"{name}: right pictures", math.nan, f"{type(error).__name__}: {error}")
    else:
        raise AssertionError(f"{name} draws from {task}: judge it like the others")


def tell(
    report: Report,
    task: str,
    name: str,
    pictures: Pictures,
    scenes: Scenes,
    asked: Requests,
    power: float,
    particles: int = 1,
) -> Share:
    """The figures of some pictures, and a point of the curve; the first of each population is a fair draw."""
    parsed = parse(pictures.x[::particles], scenes)
    matches = match(parsed, asked)
    found = matches.accuracy()
    met = float(matches.met.all(1).float().mean())
    error = image_error(parsed)
    note = (
        f"[{found.low:.3f}, {found.high:.3f}], n = {found.n}; {pictures.evaluations:.0f} evaluations"
        + (f" × {particles} particles" if particles > 1 else "")
        + f"; all requests met {met:.3f}, clean {float(parsed.clean.float().mean()):.3f}; "
        f"{1e3 * pictures.seconds / len(pictures.x):.0f} ms a particle"
    )
    report.tell(task, f"{name}: right pictures", found.rate, note)
    report.point(
        task, name, evaluations=pictures.evaluations * particles, power=power, met=met, **asdict(found), **error
    )
    return found


def composed_by_attribute(
    method: Method, model: Term, asked: Requests, power: float, evaluations: int, seed: int
) -> Pictures:
    """Objects of which shape and colour are told apart: ``p ∏ (p(shape, place) / p)^w (p(color, place) / p(place))^w``.

    The quotient by p(place) keeps the place from being said twice; given the place, shape and colour are independent,
    so that this is the composite of whole descriptions, of pairs that no description and no picture ever held, too.
    """

    def make(index: Tensor) -> tuple[Term, Sampler]:
        part = asked.rows(index)
        exponent, target = guided(power, method.least), model
        for j in range(part.k):
            told = part.given(j)
            place = {name: told[name] for name in ("x", "y")}
            shaped = model.given(**place, shape=told["shape"])
            colored = model.given(**place, color=told["color"])
            target = target * (shaped / model) ** exponent * (colored / model.given(**place)) ** exponent
        return target, method.sampler(evaluations, 1)

    return in_chunks(len(asked), make, seed)


def whole(model: Term, layouts: Layouts, asked: Requests, evaluations: int, seed: int) -> Pictures:
    """The model that is told everything, asked for exactly the requested objects with their own attributes."""
    chosen = _attributes(layouts, asked)

    def make(index: Tensor) -> tuple[Term, Sampler]:
        condition = {
            f"{name}_{j + 1}": values[index, j].tolist() for name, values in chosen.items() for j in range(asked.k)
        }
        return model.given(**condition), Reverse(steps=evaluations, solver="ddpm")

    return in_chunks(len(asked), make, seed)


def _attributes(layouts: Layouts, asked: Requests) -> dict[str, Tensor]:
    """Shape, colour and place of the objects that were asked for; those of the nearest object of the scene."""
    gap = (asked.position[:, :, None] - layouts.position[:, None]).norm(dim=-1)
    index = torch.where(layouts.shape[:, None] >= 0, gap, torch.inf).argmin(-1)
    every = torch.arange(len(index))[:, None]
    shape = torch.where(asked.shape >= 0, asked.shape, layouts.shape[every, index])
    color = torch.where(asked.color >= 0, asked.color, layouts.color[every, index])
    place = layouts.position[every, index]
    return {"shape": shape, "color": color, "x": place[..., 0], "y": place[..., 1]}


def held_out_requests(scenes: Scenes, n: int, k: int, seed: int) -> tuple[Requests, Layouts]:
    """k places with pairs (shape, colour) that no training scene contains, and the scenes that the places are from."""
    asked, layouts = requests(scenes, n, k, ("position",), seed)
    pairs = torch.tensor([(SHAPES.index(shape), COLORS.index(color)) for shape, color in HELD_OUT])
    turn = torch.arange(n * k).reshape(n, k) % len(pairs)
    return Requests(asked.position, pairs[turn, 0], pairs[turn, 1]), layouts
