"""OMPL's sampling-based planners over the positions: RRTConnect, RRT*, BIT*.

The tree grows in the plane, its states are certified as :mod:`boltzmix.planners.baselines.geometry` certifies them: a
state is valid when it keeps the clearance plus half a resolution, and OMPL checks edges at states one resolution apart,
so that what lies between them keeps the clearance. The path is then timed.

OMPL's random numbers come from one generator of its process, which is seeded at the start of each search; a search that
stops by its count of validity checks, or at the first solution, is repeated exactly by the same seed, one that stops by
the clock is not.

Kuffner and LaValle (2000), "RRT-Connect: An efficient approach to single-query path planning"; Karaman and Frazzoli
(2011), "Sampling-based algorithms for optimal motion planning"; Gammell, Srinivasa and Barfoot (2015), "Batch informed
trees (BIT*)"; Şucan, Moll and Kavraki (2012), "The Open Motion Planning Library".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.planners.baselines.base import Baseline, Found, Question
from boltzmix.planners.baselines.geometry import Surroundings, length, margins
from boltzmix.planners.baselines.timing import timed

METHODS = ("RRTConnect", "RRTstar", "BITstar")


@dataclass(frozen=True)
class OMPL(Baseline):
    """A planner of the Open Motion Planning Library.

    One evaluation is one validity check of a state.

    Args:
        method: ``"RRTConnect"`` (stops at its first path), ``"RRTstar"`` or ``"BITstar"`` (shorten until the budget).
        checks: validity checks after which the search stops, once the edge in hand is checked; simplifying may take a
            tenth more. The budget in milliseconds stops it, too.
        simplify: shorten a path that was found with OMPL's shortcuts.
        range: longest edge of the trees, in units of length; None leaves it to OMPL.
        resolution: of checked edges; None takes one 500th of the extent.
        margin: clearance of the path beyond the radius, in metres; halved down to none where an end has less.
        speed, acceleration, cut: of the motion along the path, see :func:`timed`.

    Raises:
        MissingExtra: OMPL is not installed.
        ValueError: another method, no bounds.
    """

    method: str = "RRTConnect"
    checks: int = 50_000
    simplify: bool = True
    range: float | None = None
    resolution: float | None = None
    margin: float = 0.05
    speed: float | None = None
    acceleration: float | None = None
    cut: float = 0.05

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"OMPL: method is one of {', '.join(METHODS)}, got {self.method!r}")
        if self.checks < 1:
            raise ValueError(f"OMPL: checks is a positive number, got {self.checks}")

    evaluation: ClassVar[str] = "validity check of a state"

    def _search(self, question: Question) -> Found:
        goal = question.needs_goal("OMPL")
        if question.limits is None:
            raise ValueError("OMPL samples within bounds: give bounds=((x_low, x_high), (y_low, y_high))")
        ends, surroundings = torch.stack([question.position, goal]), question.surroundings("OMPL", self.resolution)
        for margin in margins(self.margin):
            surroundings = question.surroundings("OMPL", self.resolution, margin)
            if bool(surroundings.free(ends).all()):
                break
        plans, paths, checked = [], [], 0
        for _ in range(question.n):
            seed = int(torch.randint(1, 2**31 - 1, (), generator=question.generator))
            path, count = self._solve(question, goal, surroundings, seed)
            checked += count
            if path is None:
                continue
            paths.append(path)
            positions, velocities = timed(
                path,
                question.space.horizon,
                question.space.dt,
                speed=self.speed,
                acceleration=self.acceleration,
                initial_speed=question.speed_along(path),
                cut=self.cut,
            )
            plans.append(question.trajectory(positions[None], velocities[None]))
        if not plans:
            return Found(None, checked, reason=f"goal: {self.method} found no path in {checked} checks")
        info = {"paths": [path.numpy() for path in paths], "lengths": [float(length(path)) for path in paths]}
        return Found(torch.cat(plans), checked, info=info)

    def _solve(
        self, question: Question, goal: Tensor, surroundings: Surroundings, seed: int
    ) -> tuple[Tensor | None, int]:
        """A polyline, or None, and the number of validity checks."""
        base, geometric, util = _ompl()
        low_high = surroundings.bounds
        assert low_high is not None
        space = base.RealVectorStateSpace(2)
        bounds = base.RealVectorBounds(2)
        for axis, (low, high) in enumerate(low_high):
            bounds.setLow(axis, low)
            bounds.setHigh(axis, high)
        space.setBounds(bounds)
        valid = Validity(surroundings)
        util.noOutputHandler()
        try:
            util.RNG.setSeed(seed)
            setup = geometric.SimpleSetup(space)
            setup.setStateValidityChecker(lambda state: valid(state[0], state[1]))
            information = setup.getSpaceInformation()
            information.setStateValidityCheckingResolution(surroundings.resolution / space.getMaximumExtent())
            ends = []
            for point in (question.position, goal):
                state = space.allocState()
                state[0], state[1] = float(point[0]), float(point[1])
                ends.append(state)
            setup.setStartAndGoalStates(*ends)
            planner = getattr(geometric, self.method)(information)
            if self.range is not None and hasattr(planner, "setRange"):
                planner.setRange(self.range)
            setup.setPlanner(planner)
            stop = base.PlannerTerminationCondition(lambda: valid.count >= self.checks or question.out_of_time())
            setup.solve(stop)
            if not setup.haveExactSolutionPath():
                return None, valid.count
            if self.simplify:
                budget = valid.count + self.checks // 10
                setup.simplifySolution(
                    base.PlannerTerminationCondition(lambda: valid.count >= budget or question.out_of_time())
                )
            points = [[state[0], state[1]] for state in setup.getSolutionPath().getStates()]
        finally:
            util.restorePreviousOutputHandler()
        return torch.tensor(points, dtype=torch.float64), valid.count


class Validity:
    """Whether a state is free: from a table where that decides, otherwise from the obstacles; counts its calls.

    The table holds the distance d at the middles of square cells. A state in a cell is at most half a diagonal away, so
    d beyond that on either side decides. This is as exact as asking the obstacles, and fifty times as fast.
    """

    def __init__(self, surroundings: Surroundings, cells: int = 256) -> None:
        """Tabulate the distances."""
        assert surroundings.bounds is not None
        (x_low, x_high), (y_low, y_high) = surroundings.bounds
        self.surroundings, self.count = surroundings, 0
        self.origin = (x_low, y_low)
        self.cell = max(x_high - x_low, y_high - y_low) / cells
        x, y = (
            torch.arange(low + self.cell / 2, high + self.cell, self.cell, dtype=torch.float64)
            for low, high in surroundings.bounds
        )
        needed = 0.5 * surroundings.resolution
        distance = surroundings.distance(torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)) - needed
        reach = self.cell * 0.5**0.5
        self.table: list[list[Any]] = torch.where(distance > reach, 1, torch.where(distance < -reach, -1, 0)).tolist()

    def __call__(self, x: float, y: float) -> bool:
        """Whether the point is free."""
        self.count += 1
        i, j = int((x - self.origin[0]) / self.cell), int((y - self.origin[1]) / self.cell)
        if 0 <= i < len(self.table) and 0 <= j < len(self.table[0]) and self.table[i][j]:
            return self.table[i][j] > 0
        return bool(self.surroundings.free(torch.tensor([x, y], dtype=torch.float64)))


def _ompl() -> tuple[Any, Any, Any]:
    """OMPL's modules."""
    try:
        from ompl import base, geometric, util  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise MissingExtra('OMPL() needs the Open Motion Planning Library: pip install "boltzmix[ompl]"') from error
    return base, geometric, util
