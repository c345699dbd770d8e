r"""Style × content: one network knows scenes, another knows palettes, and neither has seen what the other was shown.

``scenes16`` was trained with Karras et al.'s preconditioning on pictures of scenes in [−1, 1], told single objects.
``palettes`` was trained by flow matching on pictures of marks in [0, 1], told the palette of the whole picture. In the
units of the scenes it is ``affine(palettes, −1, 2)``, whose noise levels are doubled with its pixels, and

.. math:: p_{scenes}(x) \Bigl(\frac{p_{scenes}(x \mid c)}{p_{scenes}(x)}\Bigr)^2
    \frac{p_{marks}(x \mid k)}{p_{marks}(x)}

asks for content c in palette k. The last quotient is proportional to p(k | x), which depends on the colours of a
picture's parts alone (:mod:`boltzmix.models.data.marks`), so the law of what should come out is exact: scenes, weighed
by the posterior of their palette.
"""

from dataclasses import asdict

import torch
from torch import Tensor

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes.accuracy import requests
from boltzmix.benchmarks.scenes.judges import count_distance, match, share
from boltzmix.benchmarks.scenes.methods import METHODS, Method, Pictures, formula, in_chunks
from boltzmix.benchmarks.scenes.parser import Parsed, parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.compose import affine
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.models.data.marks import PALETTES
from boltzmix.models.data.scenes import COLORS, Layouts, Scenes

CORRECTED = ("uhmc", "fkc")
"""Samplers that stand beside reverse diffusion."""

POWERS = (1.0, 2.0, 4.0)
"""Of the palette's quotient."""

PARTICLES = 4
"""Rows of a population, for samplers that have them; one is judged."""


def in_units_of_scenes(style: Term) -> Term:
    """The model of palettes, on [0, 1], as a density of pictures in [−1, 1]."""
    return affine(style, -1.0, 2.0)


def styled(content: Term, style: Term, palette: str, power: float = 1.0) -> Term:
    """``content * (style(palette) / style) ** power``."""
    other = in_units_of_scenes(style)
    return content * (other.given(palette=palette) / other) ** power


def posterior(color: Tensor, palette: str) -> Tensor:
    """p(palette | colours) of objects, from colours ``(n, most)`` with −1 where there is none; ``(n,)``, float64."""
    likelihood = []
    for colors in PALETTES.values():
        member = torch.zeros(len(COLORS) + 1, dtype=torch.float64)
        member[[COLORS.index(c) for c in colors]] = 1.0 / len(colors)
        member[-1] = 1.0  # no object
        likelihood.append(member[color].prod(1))
    every = torch.stack(likelihood, 1)
    return every[:, list(PALETTES).index(palette)] / every.sum(1)


def number_law(scenes: Scenes, palette: str, layouts: Layouts, power: float = 1.0) -> Tensor:
    """p(N | palette) of prior scenes, by weighing ``layouts`` that were drawn from them; ``(most,)``."""
    weights = posterior(layouts.color, palette) ** power
    masses = torch.zeros(scenes.most, dtype=torch.float64).index_add_(0, layouts.count - 1, weights)
    return masses / masses.sum()


def within(parsed: Parsed | Layouts, palette: str) -> Tensor:
    """Whether all objects of a picture have the palette's colours, bool ``(n,)``."""
    allowed = torch.zeros(len(COLORS) + 1, dtype=torch.bool)
    allowed[[*(COLORS.index(c) for c in PALETTES[palette]), -1]] = True
    return allowed[parsed.color].all(1) & (parsed.count > 0)


def draw(
    method: Method,
    content: Term,
    style: Term,
    palette: str,
    asked: Requests,
    evaluations: int,
    seed: int,
    power: float = 1.0,
) -> Pictures:
    """One picture for each request (which may ask for nothing) in a palette, to a power."""
    particles = PARTICLES if method.population else 1
    own = asked.rows(torch.arange(len(asked)).repeat_interleave(particles))

    def make(index: Tensor) -> tuple[Term, Sampler]:
        target = styled(formula(content, own.rows(index), 2.0), style, palette, power)
        return target, method.sampler(evaluations, particles)

    found = in_chunks(len(own), make, seed, particles)
    return Pictures(found.x[::particles], found.evaluations, found.rows, found.seconds)


def judge(
    report: Report,
    content: Term,
    style: Term,
    scenes: Scenes,
    n: int,
    evaluations: int,
    seed: int,
) -> list[tuple[str, Tensor]]:
    """Every palette by powers and samplers, with and without content that is asked for; pictures for a sheet."""
    nothing = Requests(torch.zeros(n, 0, 2), *(torch.zeros(n, 0, dtype=torch.long) for _ in range(2)))
    asked, _ = requests(scenes, n, 1, ("position", "shape"), seed)
    triangle = Requests.of({"shape": "triangle", "x": 8.0, "y": 8.0}, n=16)
    exact = scenes.layouts(200_000, torch.Generator().manual_seed(seed + 1))
    cells = [(METHODS["reverse"], power) for power in POWERS] + [(METHODS[name], 1.0) for name in CORRECTED]
    sheet: list[tuple[str, Tensor]] = []
    for palette in PALETTES:
        task = f"palette {palette}"
        chance = float(within(exact, palette).double().mean())
        report.tell(task, "scenes that have it by chance", chance, "exact draws of the prior")
        for method, power in cells:
            rows = nothing.rows(slice(0, n // 3 if method.population else n))
            drawn = draw(method, content, style, palette, rows, evaluations, seed, power)
            law = number_law(scenes, palette, exact, power)
            tell(report, f"{task}, power {power:g}", method.name, drawn, scenes, palette, rows, law, seed)
            if method.name == "reverse" and power in (1.0, POWERS[-1]):
                sheet.append((f"scenes, {palette}, power {power:g}", drawn.x[:16]))
        drawn = draw(METHODS["reverse"], content, style, palette, asked, evaluations, seed, POWERS[-1])
        task += f", power {POWERS[-1]:g}, a shape at a place"
        found = tell(report, task, "reverse", drawn, scenes, palette, asked, None, seed)
        report.check(task, "reverse: right pictures", found, "≥", 0.9)
        drawn = draw(METHODS["reverse"], content, style, palette, triangle, evaluations, seed, POWERS[-1])
        sheet.append((f"a triangle in the middle, {palette}, power {POWERS[-1]:g}", drawn.x))
    return sheet


def tell(
    report: Report,
    task: str,
    name: str,
    drawn: Pictures,
    scenes: Scenes,
    palette: str,
    asked: Requests,
    law: Tensor | None,
    seed: int,
) -> float:
    """Share of pictures that have the palette and what was asked for, and the law of N; returns the share."""
    parsed = parse(drawn.x, scenes)
    met = match(parsed, asked).met.all(1) if asked.k else torch.ones(len(drawn.x), dtype=torch.bool)
    inside = within(parsed, palette)
    right = share(met & inside & parsed.clean)
    note = f"[{right.low:.3f}, {right.high:.3f}], n = {right.n}; {drawn.evaluations:.0f} evaluations"
    note += f"; palette {float(inside.double().mean()):.3f}, clean {float(parsed.clean.double().mean()):.3f}"
    if asked.k:
        note += f", request met {float(met.double().mean()):.3f}"
    report.tell(task, f"{name}: right pictures", right.rate, note)
    numbers = asdict(right)
    if law is not None:
        found = count_distance(parsed.count, law, scenes.most, seed)
        note = f"floor {found.floor:.3f}; mean N {found.mean:.2f}, exact {found.exact_mean:.2f}"
        report.tell(task, f"{name}: total variation of N", found.tv, note)
        numbers |= {"tv": found.tv, "floor": found.floor}
    report.point(task, name, evaluations=drawn.evaluations, **numbers)
    return right.rate
