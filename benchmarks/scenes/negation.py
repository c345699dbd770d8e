r"""Everything but one colour, or one region: is it gone, and is the rest as it was?

Two ways to write NOT. *A quotient of conditions*, :math:`p \, (p / p_{red})^\gamma`, which pushes away from red without
end: where nothing is red, p / p_red has no bound, so the formula has no normalisable limit and its sampler decides what
comes out. *A factor*, :math:`p \, e^{-\beta E}` with an energy that is zero where nothing is red and large elsewhere,
which in the limit is p given that nothing is red: exact by importance weights (Twisted), biased without (its
``corrected=False``). *Rejection* draws from p and drops what the parser finds red in: what p itself makes of the task.

Two references judge the rest: prior scenes without red, exactly, and rejection, which has the network's own errors.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes.judges import attribute_distances, forbidden_share
from boltzmix.benchmarks.scenes.methods import Pictures, in_chunks
from boltzmix.benchmarks.scenes.parser import Parsed, parse
from boltzmix.compose import Reverse, Twisted, term
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.models.data.scenes import COLORS, Layouts, Scenes

COLOR = "red"
REGION = (16, 32, 0, 16)
"""Rows and columns of the region that is to stay empty: the lower left quarter of the canvas."""

PARTICLES = 16
_STRENGTH = 2.0


def redness(x: Tensor) -> Tensor:
    """Red ink of each picture, ``(n,)``: where red exceeds green and blue by more than it does in yellow."""
    red, green, blue = ((x.unbind(1)[channel] + 1) / 2 for channel in range(3))
    return (red - torch.maximum(green, blue) - 0.5).clamp(min=0).flatten(1).sum(1)


def ink_in_region(x: Tensor) -> Tensor:
    """How much ink the region holds, ``(n,)``."""
    top, bottom, left, right = REGION
    part = (x[:, :, top:bottom, left:right] + 1) / 2
    return (part - 0.2).clamp(min=0).flatten(1).sum(1)


def factor(amount: Callable[[Tensor], Tensor], model: Term) -> Term:
    """``exp(−β amount(x))`` as a static term."""
    return term(lambda x: _STRENGTH * amount(x), kind="energy", event_shape=tuple(model.event_shape))


def methods(model: Term, evaluations: int) -> dict[str, Callable[[int], Pictures]]:
    """Ways to draw pictures without red: ``(n) -> Pictures``."""
    red = model.given(color=COLOR)
    free = factor(redness, model)

    def drawn(target: Term, sampler: Sampler, particles: int = 1) -> Callable[[int], Pictures]:
        return lambda n: in_chunks(n, lambda index: (target, sampler), 5, particles)

    ways = {
        f"quotient, γ = {gamma:g}": drawn(model * (model / red) ** gamma, Reverse(steps=evaluations, solver="ddpm"))
        for gamma in (1.0, 3.0)
    }
    ways["factor, guidance alone"] = drawn(model * free, Twisted(steps=evaluations, corrected=False))
    weighed = Twisted(steps=evaluations, population=PARTICLES, lookahead=1)
    ways["factor, weighed"] = drawn(model * free, weighed, particles=PARTICLES)
    return ways


def rejection(model: Term, scenes: Scenes, n: int, evaluations: int) -> tuple[Parsed, float]:
    """What p makes of n draws without red, and the share that was kept."""
    drawn = in_chunks(n, lambda index: (model, Reverse(steps=evaluations, solver="ddpm")), 9)
    parsed = parse(drawn.x, scenes)
    keep = ~((parsed.color == COLORS.index(COLOR)) & (parsed.shape >= 0)).any(1) & parsed.finite
    return parsed.rows(keep), float(keep.float().mean())


def judge(
    report: Report,
    name: str,
    parsed: Parsed,
    scenes: Scenes,
    references: Mapping[str, Layouts | Parsed],
    note: str = "",
) -> tuple[float, dict[str, float]]:
    """Share of forbidden pictures, and how far the rest is above the floor of each reference (total variation)."""
    task = f"no {COLOR}"
    share = forbidden_share(parsed, color=COLOR)
    report.tell(
        task,
        f"{name}: pictures with {COLOR}",
        share.rate,
        f"[{share.low:.4f}, {share.high:.4f}], n = {share.n}; clean {float(parsed.clean.float().mean()):.3f}{note}",
    )
    worst = {}
    for label, reference in references.items():
        found = attribute_distances(parsed, reference, scenes)
        worst[label] = max(found[key].excess for key in ("count", "shape", "color", "cell"))
        parts = ", ".join(f"{key} {d.tv:.3f} ({d.floor:.3f})" for key, d in found.items())
        report.tell(
            task, f"{name}: largest total variation above the floor, {label}", worst[label], f"(floor): {parts}"
        )
        numbers = {key: d.tv for key, d in found.items()} | {f"{key} floor": d.floor for key, d in found.items()}
        report.point(f"{task}, {label}", name, red=share.rate, **numbers)
    return share.rate, worst


def exact_without(scenes: Scenes, n: int, keep: Callable[[Layouts], Tensor], seed: int) -> Layouts:
    """n prior scenes that ``keep`` accepts."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[Layouts] = []
    have = 0
    while have < n:
        drawn = scenes.layouts(4096, generator)
        good = keep(drawn)
        parts.append(Layouts(*(column[good] for column in drawn)))
        have += int(good.sum())
    return Layouts(*(torch.cat(columns)[:n] for columns in zip(*parts, strict=True)))
