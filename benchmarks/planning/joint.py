"""A joint conditional model against composition, with one and with two obstacles.

One network of trajectories is told start, goal and the disc that is in the way, x, y and radius in one of two slots,
and sometimes nothing. In training there is one disc, or none, never two. Asked about two it is told both, one in each
slot: a combination that it has not seen. The same weights serve three planners, at the same number of plans:

``joint``
    p(τ | start, goal, discs), the conditional model as it is, without composition.
``product of conditionals``
    p(τ | disc 1) p(τ | disc 2) / p(τ): each factor is a condition that was seen in training.
``composition``
    p(τ) times the energy of the obstacles, of which the network is told nothing.

The dense checker picks among the plans of each, and a problem is solved where one is feasible; the share of feasible
plans is reported beside it.
"""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.planning.constraints import CANDIDATES, RADIUS, REPORTED, Solved, at_rest, cases
from boltzmix.benchmarks.planning.paired import mcnemar
from boltzmix.benchmarks.planning.problems import Problem
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.shares import share
from boltzmix.planners import baselines
from boltzmix.planners.planner import Planner

STEPS = 2500
"""Of training, about two minutes on one core."""

SLOTS = ("a", "b")


def fields() -> dict[str, tuple[float, float]]:
    """What the network is told: x + 1, y + 1 and radius of a disc in each slot (numbers are ≥ 0)."""
    return {f"{what}_{slot}": (0.0, 2.0) for slot in SLOTS for what in ("x", "y", "r")}


def said(discs: Sequence[Any]) -> dict[str, float]:
    """At most two discs as the conditions of ``given``."""
    if len(discs) > len(SLOTS):
        raise ValueError(f"the joint model has {len(SLOTS)} slots for discs, got {len(discs)}")
    found = {}
    for slot, disc in zip(SLOTS, discs, strict=False):
        found |= {f"x_{slot}": disc.x + 1, f"y_{slot}": disc.y + 1, f"r_{slot}": disc.radius}
    return found


def stream(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Trajectories around one disc or none, normalised, and the disc's numbers in a random slot."""
    from boltzmix.models.data.obstacle_world import TRAJECTORY, ObstacleWorld

    tau, _, discs = ObstacleWorld(most=1, between=0.9).worlds(n, generator)
    x = (tau - torch.tensor(TRAJECTORY["loc"])) / torch.tensor(TRAJECTORY["scale"])
    rows = torch.full((n, 2, 3), -1.0)
    there = discs[:, 0, 2] > 0
    slot = torch.randint(2, (n,), generator=generator)
    told = torch.cat([(discs[:, 0, :2] + 1).clamp(0, 2), discs[:, 0, 2:]], 1)  # a disc may be centred outside
    rows[there, slot[there]] = told[there]
    return x, rows.flatten(1)


@functools.cache
def model_of(seed: int = 0, steps: int = STEPS) -> Any:
    """The joint model, trained here."""
    from boltzmix.models import TrajectoryDiffusion, fit
    from boltzmix.models.data.obstacle_world import TRAJECTORY
    from boltzmix.models.nets import TemporalUNet
    from boltzmix.models.training.seeding import seeded

    groups = [[f"{what}_{slot}" for what in ("x", "y", "r")] for slot in SLOTS]

    def built() -> Any:
        net = TemporalUNet(6, hidden=(48, 64), patch=2, width=64, fields=fields())
        return TrajectoryDiffusion(
            net, (TRAJECTORY["horizon"], 6), trajectory=TRAJECTORY, fields=fields(), together=groups,
            sigma_range=(0.01, 20.0), noise=(-0.4, 1.4), dropout=0.2,
        )  # fmt: skip

    model = seeded(built, seed)
    fit(model, stream, steps=steps, batch_size=128, lr=2e-3, ema=0.997, seed=seed, progress=False)
    return model.eval().requires_grad_(False)


def planners(model: Any, problem: Problem) -> dict[str, Any]:
    """The three planners by name."""
    options: dict[str, Any] = {"obstacles": problem.obstacles, "radius": RADIUS, "candidates": CANDIDATES}
    apart = [model.given(**said([disc])) for disc in problem.obstacles]
    product = apart[0]
    for other in apart[1:]:
        product = product * other / model
    return {
        "joint": baselines.BestOfN(Planner(model.given(**said(problem.obstacles)), **options), CANDIDATES),
        "product of conditionals": baselines.BestOfN(Planner(product, **options), CANDIDATES),
        "composition": Planner(model, **options),
    }


def run(report: Report, settings: Settings) -> None:
    """One disc, as in training, and two."""
    asked = {count: cases(settings.size(60, 3), ("discs",), count, REPORTED) for count in (1, 2)}
    for seed in settings.seeds[:1]:
        model = model_of(seed, settings.size(STEPS, 20))
        lines = ["| discs | method | solved | feasible plans | evaluations |", "|---|---|---|---|---|"]
        for count, problems in asked.items():
            found: dict[str, list[Solved]] = {}
            for number, problem in enumerate(problems):
                for name, planner in planners(model, problem).items():
                    found.setdefault(name, []).append(solved(planner, problem, number))
            for name, results in found.items():
                rate = share(torch.tensor([r.feasible for r in results]))
                each = statistics.fmean(r.any for r in results)
                note = f"[{rate.low:.3f}, {rate.high:.3f}], n = {rate.n}; feasible plans {each:.3f}"
                report.tell(f"seed {seed}, discs: {count}", f"{name}: solved", rate.rate, note)
                cost = statistics.fmean(r.evaluations for r in results)
                lines.append(f"| {count} | {name} | {rate.rate:.3f} | {each:.3f} | {cost:.0f} |")
            ours, theirs = ([r.feasible for r in found[name]] for name in ("composition", "joint"))
            gap = statistics.fmean(ours) - statistics.fmean(theirs)
            p = mcnemar(ours, theirs)
            report.tell(f"seed {seed}, discs: {count}", "composition less joint", gap, f"paired (McNemar), p = {p:.2g}")
        report.summary += "\n" + "\n".join(lines) + "\n"


def solved(planner: Any, problem: Problem, seed: int) -> Solved:
    """One call."""
    result = planner.plan(at_rest(problem.start, planner.space), problem.goal, seed=seed)
    good = result.status == "feasible"
    straight = float(torch.tensor(problem.goal).sub(torch.tensor(problem.start)).norm())
    return Solved(
        good, float(result.feasible.mean()) if len(result) else 0.0,
        float(result.path_lengths[0]) / straight if good else float("nan"), int(result.evaluations),
        float(result.seconds), result.reasons,
    )  # fmt: skip
