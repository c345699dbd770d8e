"""Samplers of score-only composites where the answer is known: FKC beside SMC, the errors of SuperDiff's estimates.

The densities are mixtures in closed form. SMC is given their energies, the others only their scores.
"""

import itertools
import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics, targets
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.callables import term
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.mixture import mixture
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import FKC, SMC, Reverse, SuperDiff
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term

THREE_TWO = (
    GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]]), [0.3, 0.5, 0.2], [0.5, 0.3, 0.2]),
    GaussianMixture(torch.tensor([[-2.0, 1.0], [2.5, -0.5]]), [0.8, 0.6], [0.4, 0.6]),
)
"""Two mixtures in 2-d."""

MEMBERS: dict[str, Sequence[Gaussian | GaussianMixture]] = {
    "two Gaussians in 2-d, different covariances": (
        Gaussian(torch.tensor([1.0, 0.0]), 0.5),
        Gaussian(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 1.0])),
    ),
    "three Gaussians in 4-d": tuple(
        Gaussian(2 * torch.eye(4)[k], torch.tensor([0.5, 1.0, 1.5, 1.0]).roll(k)) for k in range(3)
    ),
    "two mixtures in 2-d": (
        GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.5]]), [0.3, 0.5], [0.5, 0.5]),
        GaussianMixture(torch.tensor([[0.0, 2.0], [0.5, -2.0]]), [0.5, 0.3], [0.3, 0.7]),
    ),
    "two mixtures in 2-d, mirror images": (
        GaussianMixture(torch.tensor([[2.0, 0.5], [1.0, -1.5]]), [0.3, 0.5], [0.4, 0.6]),
        GaussianMixture(torch.tensor([[-2.0, 0.5], [-1.0, -1.5]]), [0.3, 0.5], [0.4, 0.6]),
    ),
}
"""Members of AND."""


def score_of(p: Term) -> Term:
    """A noised density known by its score alone."""
    return term(lambda x, s: p._score(x, s), kind="score", path="noised", event_shape=p.event_shape)


def karras(steps: int, top: float = 80.0, bottom: float = 2e-3) -> list[float]:
    """Levels from top to bottom with ρ = 7."""
    a, b = top ** (1 / 7), bottom ** (1 / 7)
    return [(a + k / (steps - 1) * (b - a)) ** 7 for k in range(steps)]


def feynman_kac(report: Report, settings: Settings) -> None:
    """Products of two mixtures: evidence and masses from scores alone, beside SMC, which knows energies."""
    n = settings.size(2000, 300)
    seed = targets.MIXTURE_SEEDS[8][0]
    for task in (
        targets.mixture_task("2-d, 3 × 2 components", THREE_TWO),
        targets.mixture_task("8-d, 6 × 6 components", targets.random_mixtures(8, seed)),
    ):
        assert task.truth is not None
        generator = torch.Generator().manual_seed(99)
        floor = [metrics.mode_error(task.truth, task.exact(n, generator)) for _ in range(20)]
        report.tell(task.name, "total variation of masses, exact draws", statistics.fmean(floor), f"n = {n}")
        energies = targets.product_of([targets.as_function(p) for p in task.factors])
        scores = targets.product_of([score_of(p) for p in task.factors])
        choices: list[tuple[str, Term, Sampler]] = [
            ("SMC(path='noise')", energies, SMC(path="noise")),
            ("FKC(steps=50)", scores, FKC(steps=50)),
            ("FKC()", scores, FKC()),
            ("Reverse(steps=100, solver='ddpm')", scores, Reverse(steps=100, solver="ddpm")),
        ]
        for name, target, sampler in choices:
            errors, spreads, masses, spent, clock = [], [], [], [], time.process_time()
            for one in settings.seeds:
                draw = sample(target, n, sampler=sampler, seed=one, progress=False)
                assert isinstance(draw.x, Tensor)
                masses.append(metrics.mode_error(task.truth, draw.x))
                spent.append(draw.info.evaluations)
                if draw.log_z is not None and draw.log_z_se is not None:
                    errors.append(draw.log_z - task.log_z)
                    spreads.append(draw.log_z_se)
            seconds = (time.process_time() - clock) / len(settings.seeds)
            note = f"{statistics.fmean(spent):.0f} evaluations, {seconds:.2f} CPU-s"
            report.tell(task.name, f"{name}: total variation of masses", statistics.fmean(masses), note)
            if errors:
                rms = math.sqrt(statistics.fmean(e * e for e in errors))
                spread = statistics.fmean(spreads)
                report.tell(task.name, f"{name}: error of log Z, rms", rms, f"standard error {spread:.3f}")


def superposition(report: Report, settings: Settings) -> None:
    """AND: by how much true log-densities differ at the draws. OR: the error of the estimated difference."""
    n = settings.size(1000, 100)
    for task, members in MEMBERS.items():
        target = product(*map(score_of, members))
        for noise in ("returned", "corrected", "projected", "free"):
            for levels in settings.size(1, 0) * (50, 200, 800) or (20,):
                sampler = SuperDiff("and", sigmas=karras(levels), noise=noise)
                draw = sample(target, n, sampler=sampler, seed=settings.seeds[0], progress=False)
                assert isinstance(draw.x, Tensor)
                logs = torch.stack([p.log_prob(draw.x).double() for p in members])
                gap = float((logs.max(0).values - logs.min(0).values).mean())
                estimated = draw.info.extra["estimated_gap"]["mean"]
                note = f"{draw.info.evaluations:.0f} evaluations; estimated gap {estimated:.1e}; n = {n}"
                report.tell(f"AND of {task}", f'"{noise}", {levels} levels: gap', gap, note)
    far, near = Gaussian(torch.tensor([3.0, 0.0]), 0.5), Gaussian(torch.tensor([-3.0, 0.0]), 1.0)
    target, n = mixture([score_of(far), score_of(near)], [0.2, 0.8]), 4 * n
    for width, levels in itertools.product((0.0, 0.7), settings.size(1, 0) * (25, 50, 100, 200) or (20,)):
        sampler = SuperDiff("or", steps=levels, width=width)
        draw = sample(target, n, sampler=sampler, seed=settings.seeds[0], progress=False)
        assert isinstance(draw.x, Tensor)
        # without a width, estimates end at the last level above zero
        level = None if width else torch.tensor(draw.info.levels[-1]["sigma"])
        exact = (near.energy(draw.x, level) - far.energy(draw.x, level)).double()
        estimate = draw.stats["log_q"][:, 0] - draw.stats["log_q"][:, 1]
        error = float((estimate - exact).square().mean().sqrt())
        share = float((draw.x[:, 0] > 0).double().mean())
        quantity = f"width {width:g}, {levels} levels: error of log q₁ − log q₂, rms"
        note = f"share of the first {share:.3f}, exactly 0.2; n = {n}"
        report.tell("OR of two separated Gaussians", quantity, error, note)
