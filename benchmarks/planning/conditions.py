r"""Conditions on skills and returns, and learned values: two ways to ask one prior for more than it gives by itself.

*Conditions* (Decision Diffuser; Ajay et al., 2023): the prior was told of each trajectory how direct it is and to which
side it bends, and is now asked, :math:`p(\tau) (p(\tau | c) / p(\tau))^w`. What comes out is measured on the
trajectories themselves.

*Values* (Diffuser; Janner et al., 2022): a network learns the return R of noised trajectories and multiplies the prior,
:math:`p(\tau) e^{R(\tau)/\beta}`. Here R is the mean height of the path, in metres, so that the tilted mean is known:
trajectories of the data, weighed by :math:`e^{R/\beta}`. The value that Diffuser learns, E[R | x], and the one whose
exponential is the tilt, :math:`\beta \log E[e^{R/\beta} | x]`, are drawn beside each other.
"""

import functools
import itertools
import math
import statistics
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.planning.constraints import at_rest, interval
from boltzmix.benchmarks.planning.priors import trained
from boltzmix.benchmarks.planning.rewards import height as height_over
from boltzmix.benchmarks.planning.rewards import questions
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.shares import share
from boltzmix.compose import Reverse, sample
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.term import Term
from boltzmix.models.data.obstacle_world import SIDES, TRAJECTORY, described, obstacles
from boltzmix.planners.planner import Planner
from boltzmix.planners.space import TrajectorySpace

NAME = "obstacles"
BETA = 0.25
"""Temperature of the tilt, metres of mean height."""

STEPS = 3000
"""Of training a value, about half a minute on one core."""

POWERS = (1.0, 2.0, 4.0)

LEVELS = 30
SPACE = TrajectorySpace.from_dict(TRAJECTORY)
height = height_over(SPACE)


def drawn(term: Term, n: int, seed: int) -> Tensor:
    """Physical trajectories ``(n, H, D)`` by reverse diffusion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # of the value's path, which is what is measured
        x = sample(term, n, sampler=Reverse(steps=LEVELS, solver="ddpm"), seed=seed, progress=False).x
    assert isinstance(x, Tensor)
    return SPACE.physical(x)


def planned(prior: Term, n: int, seed: int) -> Tensor:
    """Physical plans ``(n, H, D)`` between random starts, at rest, and goals; nothing else is asked."""
    planner = Planner(prior, SPACE, candidates=1)
    asked = questions(range(1000 * seed, 1000 * seed + n), SPACE.bounds)
    starts = np.stack([at_rest(q.start, SPACE) for q in asked])
    results = planner.plan_many(starts, [q.goal for q in asked], seed=seed)
    return torch.as_tensor(np.stack([result.best for result in results])).float()


def tilted_mean(n: int, seed: int, beta: float = BETA) -> tuple[float, float]:
    """The mean of R under the data tilted by e^{R/β}, self-normalised, and its standard error."""
    x, _ = obstacles(n, torch.Generator().manual_seed(seed))
    r = height(SPACE.physical(x)).double()
    weight = (r / beta).softmax(0)
    mean = float((weight * r).sum())
    return mean, float((weight.square() * (r - mean).square()).sum().sqrt())


@functools.cache
def value_of(kind: str, seed: int = 0, steps: int = STEPS) -> Any:
    """A value of the height, trained here on noised trajectories of the world."""
    from boltzmix.models import Returns, fit
    from boltzmix.models.training.seeding import seeded

    def stream(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, _ = obstacles(n, generator)
        return x, height(SPACE.physical(x))

    model = seeded(lambda: Returns(SPACE.shape, beta=BETA, kind=kind, sigma_range=(0.01, 20.0), hidden=128), seed)  # pyright: ignore[reportArgumentType]
    fit(model, stream, steps=steps, batch_size=256, lr=2e-3, ema=0.997, seed=seed, progress=False)
    return model.eval().requires_grad_(False)


def run(report: Report, settings: Settings) -> None:
    """Skills, returns, values."""
    for seed, prior in trained(report, NAME, settings.seeds):
        n = settings.size(500, 16)
        plain = described(planned(prior, n, seed))
        skills(report, prior, plain[:, 1], n, seed)
        returns(report, prior, plain[:, 0], n, seed)
        report.keep()
        values(report, prior, settings.size(STEPS, 20), settings.size(100_000, 500), n, seed)


def skills(report: Report, prior: Any, plain: Tensor, n: int, seed: int) -> None:
    """To the side that was asked for, between ends that are known."""
    for index, side in enumerate(SIDES):
        task = f"seed {seed}: skill, {side}"
        base = share(plain == index)
        report.tell(task, "prior alone: share that bends so", base.rate, interval(base))
        for power in POWERS:
            found = share(described(planned(_asked(prior, power, skill=side), n, seed))[:, 1] == index)
            report.tell(task, f"asked, power {power:g}: share that bends so", found.rate, interval(found))
            apart = found.low > base.high
            report.state(task, f"asked, power {power:g}: above the prior's", apart, "intervals apart")


def returns(report: Report, prior: Any, plain: Tensor, n: int, seed: int) -> None:
    """As direct as was asked for, between ends that are known."""
    report.tell(f"seed {seed}: directness", "prior alone: mean", *_mean(plain))
    means = []
    for asked in (0.6, 0.8, 1.0):
        found = described(planned(_asked(prior, POWERS[0], returns=asked), n, seed))[:, 0]
        report.tell(f"seed {seed}: directness", f"asked for {asked:g}: mean", *_mean(found))
        means.append(float(found.mean()))
    rising = all(b > a for a, b in itertools.pairwise(means))
    report.state(f"seed {seed}: directness", "means in the order asked for", rising, "rising")


def values(report: Report, prior: Term, steps: int, rows: int, n: int, seed: int) -> None:
    """Higher, by as much as the tilt says."""
    task = f"seed {seed}: height tilted by exp(R / {BETA:g} m)"
    exact, error = tilted_mean(rows, seed + 5)
    report.tell(task, "data, weighed: mean, m", exact, f"± {error:.4f}, {rows} trajectories")
    base = height(drawn(prior, n, seed))
    report.tell(task, "prior alone: mean, m", *_mean(base))
    for kind, what in (("soft", "log of the mean exponential"), ("mean", "mean return (Diffuser)")):
        found = height(drawn(prior * value_of(kind, seed, steps), n, seed))
        report.tell(task, f"prior × value, {what}: mean, m", *_mean(found))
        report.tell(
            task,
            f"prior × value, {what}: share of the way to the exact mean",
            float((found.mean() - base.mean()) / (exact - base.mean())),
            "1 is right",
        )
        z = float((found.mean() - base.mean()) / ((found.var() + base.var()) / n).sqrt())
        report.check(task, f"{what}: z of being higher than the prior", z, "≥", 3.0)


def _asked(prior: Any, power: float, **condition: Any) -> Term:
    return prior * (prior.given(**condition) / prior) ** power


def _mean(values: Tensor) -> tuple[float, str]:
    figures = [float(v) for v in values]
    return statistics.fmean(figures), f"± {statistics.stdev(figures) / math.sqrt(len(figures)):.4f}, n = {len(figures)}"
