"""How many objects are there? Samplers against the exact law of N, where the share of right pictures says nothing.

Guidance by a place also says that the scene has few objects: the condition is one object of N, chosen at random. The
exact composite has :math:`p(N) N^{-kw} (N)_k \\rho_N` (:mod:`boltzmix.benchmarks.scenes.law`), and a sampler that hits
every place may be far from it.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes.accuracy import requests
from boltzmix.benchmarks.scenes.judges import CountDistance, count_distance, diversity, image_error, match
from boltzmix.benchmarks.scenes.law import count_law
from boltzmix.benchmarks.scenes.methods import Method, draw, visible
from boltzmix.benchmarks.scenes.parser import parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.compose import Reverse, sample
from boltzmix.compose.term import Term
from boltzmix.models.data.scenes import Scenes

PARTICLES = 16
"""Rows for each request: populations of samplers that have them."""


def judge(
    report: Report,
    method: Method,
    model: Term,
    scenes: Scenes,
    k: int,
    power: float,
    evaluations: int,
    pictures: int,
    seed: int,
) -> CountDistance:
    """One sampler at one budget: mean and total variation of N, and what else the pictures are like."""
    asked, _ = requests(scenes, pictures // PARTICLES, k, ("position",), seed + 77)
    drawn = draw(method, model, asked, power, evaluations, seed, PARTICLES)
    index = torch.arange(len(asked)).repeat_interleave(PARTICLES)
    every, parsed = asked.rows(index), parse(drawn.x, scenes)
    law = count_law(scenes, asked, power)
    found = count_distance(parsed.count, law.masses[index], scenes.most, seed)
    matches = match(parsed, every)
    other, error = diversity(drawn.x, parsed, every, matches), image_error(parsed)
    task = f"N given {k} place{'s' if k > 1 else ''}, power {power:g}"
    report.tell(
        task,
        f"{method.name}: total variation of N",
        found.tv,
        f"floor {found.floor:.3f}; mean N {found.mean:.2f}, exact {found.exact_mean:.2f}; {drawn.evaluations:.0f} "
        f"evaluations; right {matches.accuracy().rate:.3f}; n = {len(every)} in {len(asked)} scenes",
    )
    numbers = {key: value for key, value in asdict(found).items() if key not in ("masses", "exact_masses")}
    report.point(
        task,
        method.name,
        evaluations=drawn.evaluations,
        accuracy=matches.accuracy().rate,
        masses=[round(float(v), 5) for v in found.masses],
        exact_masses=[round(float(v), 5) for v in found.exact_masses],
        seconds=drawn.seconds,
        **numbers,
        **other,
        **{f"image error, {key}": value for key, value in error.items()},
    )
    return found


def prior(
    report: Report, method: Method, model: Term, scenes: Scenes, evaluations: int, pictures: int, seed: int
) -> None:
    """The model by itself: what of the error is not the composition's."""
    nothing = Requests(torch.zeros(pictures, 0, 2), *(torch.zeros(pictures, 0, dtype=torch.long) for _ in range(2)))
    drawn = draw(method, model, nothing, 1.0, evaluations, seed)
    parsed = parse(drawn.x, scenes)
    uniform = torch.full((scenes.most,), 1 / scenes.most)
    found = count_distance(parsed.count, uniform, scenes.most, seed)
    report.tell(
        "N of the model by itself",
        f"{method.name}: total variation of N",
        found.tv,
        f"floor {found.floor:.3f}; mean N {found.mean:.2f}, exact {found.exact_mean:.2f}; {drawn.evaluations:.0f} "
        f"evaluations; clean {float(parsed.clean.float().mean()):.3f}; n = {pictures}",
    )


def restarted(
    report: Report, model: Term, scenes: Scenes, levels: Sequence[float], evaluations: int, n: int, seed: int
) -> None:
    """At which noise the model loses its count: reverse diffusion from real scenes, noised to a level.

    Below the level at which a picture has decided how many objects it holds, the count that comes out is that of the
    scene; above it, only an exact score keeps the law of N. The same scenes for all levels.
    """
    generator = torch.Generator().manual_seed(seed)
    layouts = scenes.layouts(n, generator)
    x, rows = scenes.render(layouts), 128
    for top in levels:
        noised = x + top * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
        sampler = Reverse(sigmas=visible(evaluations, top=top), solver="ddpm")
        drawn = []
        for k, part in enumerate(noised.split(rows)):
            found = sample(model, len(part), sampler=sampler, init=part, seed=seed * 1009 + k, progress=False).x
            assert isinstance(found, torch.Tensor)
            drawn.append(found)
        parsed = parse(torch.cat(drawn), scenes)
        most = int(max(parsed.count.max(), layouts.count.max())) + 1
        came, went = (torch.bincount(count, minlength=most) / n for count in (parsed.count, layouts.count))
        tv = 0.5 * float((came - went).abs().sum())
        kept = float((parsed.count == layouts.count).float().mean())
        shares = ", ".join(f"{float(share):.3f}" for share in came)
        report.tell(
            "N after noise and back, without conditions",
            f"from σ = {top:g}: total variation of N",
            tv,
            f"to the same {n} scenes; the number stays in {kept:.3f}; shares of N = 0, 1, …: {shares}; "
            f"{evaluations} evaluations",
        )
