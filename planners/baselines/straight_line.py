"""The straight line: what a task must defeat before a planner's success on it means anything."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from boltzmix.planners.baselines.base import Baseline, Found, Question
from boltzmix.planners.baselines.timing import timed


@dataclass(frozen=True)
class StraightLine(Baseline):
    """The segment from start to goal, whatever stands in between.

    With a PD controller (``RecedingHorizonPolicy(StraightLine(space), PD(…))``) this is the reference of the planning
    benchmarks: pairs that it solves are not counted. One evaluation is one segment.

    Args:
        speed: the highest, in metres per second; None stretches the motion over the horizon.
        acceleration: with ``speed``, in m/s².

    Example:
        >>> from boltzmix.planners.space import TrajectorySpace
        >>> line = StraightLine(TrajectorySpace(5, ("x", "y"), dt=0.1))
        >>> line.plan((0.0, 0.0), (4.0, 0.0)).best[:, 0].round(2).tolist()
        [0.0, 0.41, 2.0, 3.59, 4.0]
    """

    speed: float | None = None
    acceleration: float | None = None
    evaluation: ClassVar[str] = "segment"

    def _search(self, question: Question) -> Found:
        path = torch.stack([question.position, question.needs_goal("StraightLine")])
        positions, velocities = timed(
            path,
            question.space.horizon,
            question.space.dt,
            speed=self.speed,
            acceleration=self.acceleration,
            initial_speed=question.speed_along(path),
        )
        return Found(question.trajectory(positions[None], velocities[None]).repeat(question.n, 1, 1), evaluations=1)
