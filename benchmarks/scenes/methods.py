"""Samplers of the image benchmark: the same formula, the same requests, a number of evaluations for each.

The formula of k requests is :math:`p(x) \\prod_j (p(x|c_j)/p(x))^w`, one condition for each picture, so that a batch
holds many different scenes and costs one forward of k + 1 times its rows.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.compose import FKC, HMC, MALA, UHMC, ULA, Reverse, SuperDiff, product, sample
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.samplers import Ladder
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term


@dataclass(frozen=True)
class Method:
    """One way to draw.

    Attributes:
        name: in tables.
        what: for readers.
        sampler: makes it for about so many evaluations a particle, and so many particles in a population.
        population: whether particles of one scene interact.
        joint: whether the formula is the product of the k conditional models, ``∏ p(x|c_j)``, in place of guidance.
        least: noise level below which guidance has exponent 0; 0 guides at every level.
    """

    name: str
    what: str
    sampler: Callable[[int, int], Sampler]
    population: bool = False
    joint: bool = False
    least: float = 0.0


CENTRE = -0.92
"""Mean pixel of scenes, where a ladder that begins at a low level begins."""


def visible(steps: int, top: float = 20.0, bottom: float = 0.05, rho: float = 7.0) -> Ladder:
    """Karras' levels where there is something to see, with a start about the mean picture's brightness.

    The models answer from σ = 0.02 to 80. An object of a scene is a vector of length 8 to 13, so that above σ = 20 it
    cannot be told from its absence; below 0.05 the networks were hardly trained, and have nothing left to add.
    """
    high, low = top ** (1 / rho), bottom ** (1 / rho)
    levels = [(high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)]
    return replace(Ladder.down(levels), centre=CENTRE, spread=top)


def _corrected(kernel: Any, each: int, corrections: int = 1) -> Callable[[int, int], Sampler]:
    """Ancestral steps with MCMC at every level; ``each`` evaluations for one correction."""

    def make(evaluations: int, population: int) -> Sampler:
        steps = max(2, evaluations // (1 + corrections * each))
        return Reverse(steps=steps, solver="ddpm", corrector=kernel, corrections=corrections)

    return make


def _focused(
    kernel: Any, each: int, corrections: int, between: tuple[float, float], snr: float
) -> Callable[..., Sampler]:
    """Ancestral steps from σ = 20 to 0.05, corrected where a scene decides how many objects it has, and only there.

    Above, blurred objects cannot be counted; below, none comes or goes any more. Of 50 evaluations, three levels there
    with four corrections of three take 39, and the other levels 11.
    """
    low, high = between

    def make(evaluations: int, population: int) -> Sampler:
        inner = max(1, round(0.06 * evaluations))
        outer = max(4, evaluations - inner * (1 + each * corrections))
        above = (outer + 1) // 2
        levels = [
            *_ratios(20.0, high, above),
            *_ratios(high, low, inner - 1),
            low,
            *_ratios(low, 0.05, outer - above)[1:],
            0.05,
        ]
        ladder = replace(Ladder.down(levels), centre=CENTRE, spread=20.0)
        return Reverse(
            sigmas=ladder, solver="ddpm", corrector=kernel, corrections=corrections, between=between, snr=snr
        )

    return make


def _ratios(start: float, end: float, n: int) -> list[float]:
    """n levels from ``start`` towards ``end``, which is left out, each the same share of the one before."""
    return [start * (end / start) ** (i / n) for i in range(n)]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("reverse", "ancestral steps on summed scores", lambda e, _: Reverse(steps=e, solver="ddpm")),
        Method(
            "visible",
            "ancestral steps from σ = 20 to 0.05",
            lambda e, _: Reverse(sigmas=visible(e), solver="ddpm"),
        ),
        Method(
            "focused",
            "the same, with four times three leapfrogs at each level from σ = 1.2 to 4, and few levels elsewhere",
            _focused(UHMC(num_leapfrog=3), 3, 4, (1.2, 4.0), 0.2),
        ),
        Method(
            "interval",
            "ancestral steps from σ = 20 to 0.05, guided above σ = 1 alone",
            lambda e, _: Reverse(sigmas=visible(e), solver="ddpm"),
            least=1.0,
        ),
        Method(
            "kinds",
            "the same, guided above σ = 0.1: shapes and colours are decided later than places",
            lambda e, _: Reverse(sigmas=visible(e), solver="ddpm"),
            least=0.1,
        ),
        Method("ode", "DPM-Solver++ on summed scores", lambda e, _: Reverse(steps=e, solver="dpmpp")),
        Method("ula", "ancestral steps, three Langevin steps a level", _corrected(ULA(), 1, 3)),
        Method("mala", "the same with a Metropolis test by line integrals", _corrected(MALA(), 4)),
        Method("uhmc", "ancestral steps, three leapfrogs a level", _corrected(UHMC(num_leapfrog=3), 4)),
        Method("hmc", "the same with a Metropolis test by line integrals", _corrected(HMC(num_leapfrog=3), 7)),
        Method("fkc", "Feynman–Kac weights", lambda e, p: FKC(steps=e, population=p), population=True),
        Method("superdiff", "superposition AND", lambda e, _: SuperDiff("and", steps=e), joint=True),
    )
}


def formula(model: Term, asked: Requests, power: float = 1.0, least: float = 0.0) -> Term:
    """``model * ∏ (model.given(c_j) / model) ** power``, the quotients with exponent 0 below the noise level ``least``.

    The level at which a picture says where its objects are is far above the level at which it is finished. From there
    on exact quotients are flat and networks' quotients are their errors, ``power`` times.
    """
    exponent = guided(power, least)
    product = model
    for j in range(asked.k):
        product = product * (model.given(**asked.given(j)) / model) ** exponent
    return product


def guided(power: float, least: float) -> float | Callable[[Tensor], Tensor]:
    """The exponent: ``power`` at and above the noise level ``least``, else 0."""
    return power if least == 0.0 else lambda sigma: power * (sigma >= least)


@dataclass(frozen=True)
class Pictures:
    """What a method drew.

    Attributes:
        x: pictures ``(n, 3, S, S)``.
        evaluations: of the formula, for each particle.
        rows: of the network, for each particle.
        seconds: of the processor.
    """

    x: Tensor
    evaluations: float
    rows: float
    seconds: float


def draw(
    method: Method,
    model: Term,
    asked: Requests,
    power: float,
    evaluations: int,
    seed: int,
    particles: int = 1,
) -> Pictures:
    """Pictures for all requests by one method.

    Each request is drawn by ``particles`` rows, which stand below each other and are all returned; they interact where
    the method has populations.
    """
    own = asked.rows(torch.arange(len(asked)).repeat_interleave(particles))

    def make(index: Tensor) -> tuple[Term, Sampler]:
        part = own.rows(index)
        if not method.joint:
            return formula(model, part, power, method.least), method.sampler(evaluations, particles)
        members = tuple(formula(model, _column(part, j), power) for j in range(part.k))
        if len(members) == 1:
            return members[0], Reverse(steps=evaluations, solver="ddpm")
        return product(*members), SuperDiff("and", steps=evaluations, members=members)

    return in_chunks(len(own), make, seed, particles)


def in_chunks(
    n: int, make: Callable[[Tensor], tuple[Term, Sampler]], seed: int, particles: int = 1, chunk: int = 128
) -> Pictures:
    """n rows, about ``chunk`` at a time, each chunk with a seed of its own; ``make`` is told which rows are next."""
    found, clock, evaluations, rows = [], time.process_time(), 0.0, 0.0
    size = max(1, chunk // particles) * particles
    for number, index in enumerate(torch.arange(n).split(size)):
        target, sampler = make(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            result = sample(target, len(index), sampler=sampler, seed=seed * 100_003 + number, progress=False)
        found.append(result.x)
        evaluations += result.info.evaluations * len(index)
        rows += result.info.network_rows * len(index)
    return Pictures(torch.cat(found), evaluations / n, rows / n, time.process_time() - clock)


def _column(asked: Requests, j: int) -> Requests:
    return Requests(asked.position[:, j : j + 1], asked.shape[:, j : j + 1], asked.color[:, j : j + 1])
