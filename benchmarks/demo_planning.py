"""The demo's planning panel: obstacles that no training data had, added at test time to one prior of motions."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boltzmix import models
from boltzmix.compose.pictures import save_figure
from boltzmix.planners.judgement import judge
from boltzmix.planners.obstacles import Box, Disc, Obstacle, Polygon
from boltzmix.planners.planner import Planner

PRIOR = "obstacles"
START, GOAL = (-0.8, -0.1, 0.0, 0.0), (0.8, 0.1)
RADIUS = 0.04
_FIVE = ((-0.4, 0.25), (-0.35, -0.3), (0.05, 0.0), (0.45, 0.4), (0.4, -0.25))
WORLDS: tuple[tuple[str, tuple[Obstacle, ...]], ...] = (
    ("a disc", (Disc(0.0, 0.05, 0.3),)),
    ("a box and a triangle", (Box(-0.35, -0.5, -0.05, 0.15), Polygon(((0.2, 0.6), (0.55, -0.2), (0.5, 0.65))))),
    ("five discs", tuple(Disc(x, y, 0.17) for x, y in _FIVE)),
)  # fmt: skip
"""Obstacles in words, and what they are."""


@dataclass
class Planned:
    """One world: shares of plans that are free of collisions, of the prior alone and of prior times obstacles.

    Attributes:
        name: the obstacles in words.
        alone, composed: shares of single plans that the dense checker finds feasible.
        status: of the composed result, whose first plan is the answer.
        evaluations, seconds: of the composed call.
        pictures: both results.
    """

    name: str
    alone: float
    composed: float
    status: str
    evaluations: int
    seconds: float
    pictures: dict[str, Any] = field(default_factory=dict, repr=False)


def available() -> bool:
    """Whether the prior ships."""
    return PRIOR in models.names()


def plan_all(quick: bool, seed: int) -> list[Planned]:
    """Every world, with one setting."""
    prior = models.load(PRIOR)
    found = []
    for name, obstacles in WORLDS:
        options: dict[str, Any] = {"candidates": 16, "steps": 10 if quick else 20, "radius": RADIUS}
        blind = Planner(prior, **options).plan(START, GOAL, seed=seed)
        planner = Planner(prior, obstacles=obstacles, **options)
        clock = time.perf_counter()
        result = planner.plan(START, GOAL, seed=seed)
        seconds = time.perf_counter() - clock
        alone = judge(planner._pose(planner.space, START, GOAL, ()), blind.trajectories)
        share, own = float(np.mean(alone.feasible)), float(np.mean(result.feasible))
        pictures = {"alone": alone, "composed": result}
        found.append(Planned(name, share, own, result.status, int(result.evaluations), seconds, pictures))
    return found


def table(planned: list[Planned]) -> list[str]:
    """What was planned, in words."""
    lines = ["", "PLANNING: one prior of motions, and obstacles that no training data had, added at test time"]
    lines.append(f"  {'unseen obstacles':22s} {'prior alone':>12s} {'composed':>9s} {'evals':>6s} {'s':>5s}  best plan")
    for p in planned:
        shares = f"{100 * p.alone:10.0f} % {100 * p.composed:7.0f} %"
        lines.append(f"  {p.name:22s} {shares} {p.evaluations:6d} {p.seconds:5.1f}  {p.status}")
    lines.append("  shares of single plans that an independent dense checker finds free of collisions")
    return lines


def draw(planned: list[Planned], folder: Path) -> None:
    """planning.png, both ways in every world, and planning.gif of the last best plan."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(planned), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(planned), squeeze=False)
    for column, p in enumerate(planned):
        result = p.pictures["composed"]
        for row, (found, share) in enumerate(((p.pictures["alone"], p.alone), (result, p.composed))):
            ax = axes[row][column]
            for obstacle in result.obstacles:
                ax.add_patch(obstacle.patch(facecolor="#b9b9b9", edgecolor="#777777"))
            places = result.space.columns(result.space.position)
            for plan, good in zip(found.trajectories, found.feasible, strict=True):
                ax.plot(*plan[:, places].T, color="#1f5fa8" if good else "#b5452c", lw=1.0, alpha=0.7)
            ax.plot(*START[:2], "ko", ms=4)
            ax.plot(*GOAL, "k*", ms=8)
            ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
            ax.set_title(f"{'prior alone' if row == 0 else 'composed'}: {100 * share:.0f} % free", fontsize=9)
        axes[1][column].set_xlabel(p.name, fontsize=9)
    figure.suptitle("obstacles that no training data had, added at test time; red: collides", fontsize=9)
    save_figure(figure, folder / "planning.png", dpi=95)
    solved = [p for p in planned if p.status == "feasible"]
    if solved:
        solved[-1].pictures["composed"].animate(folder / "planning.gif")
