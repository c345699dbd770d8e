"""Judging plans: energies of tasks, violations by the dense checker and by hard tasks, and which plan is best.

Whatever made the trajectories, a planner of this package or a baseline, they are judged here, by
:func:`boltzmix.planners.checker.check`, which shares no code with the tasks that a planner is guided by.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.problem import Problem
from boltzmix.planners.result import PlanResult, path_lengths

_TOLERANCE = 1e-4

Rank = Callable[[Any, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Judgement:
    """Plans of one problem, best first; see :class:`~boltzmix.planners.result.PlanResult` for the fields.

    ``clearance`` is the checker's, in metres, and ``cost`` what feasible plans are sorted by, both ``(n,)``.
    """

    trajectories: Any
    energies: dict[str, Any]
    feasible: Any
    violations: dict[str, Any]
    clearance: Any
    cost: Any

    def __len__(self) -> int:
        """Number of plans."""
        return len(self.trajectories)

    def first(self, n: int) -> "Judgement":
        """The n best."""
        return self.select(slice(n))

    def select(self, rows: Any) -> "Judgement":
        """Some of them."""
        return Judgement(
            self.trajectories[rows],
            {name: values[rows] for name, values in self.energies.items()},
            self.feasible[rows],
            {name: values[rows] for name, values in self.violations.items()},
            self.clearance[rows],
            self.cost[rows],
        )

    def sorted(self) -> "Judgement":
        """Feasible ones first, by cost; the others by the sum of their violations."""
        import numpy as np

        total = sum((np.nan_to_num(v, nan=math.inf) for v in self.violations.values()), np.zeros(len(self)))
        return self.select(np.lexsort((self.cost, np.where(self.feasible, 0.0, total), ~self.feasible)))

    def reasons(self) -> tuple[str, ...]:
        """What is wrong with the best plan, the worst violation first."""
        if not len(self) or bool(self.feasible[0]):
            return ()
        found = [(float(values[0]), name) for name, values in self.violations.items() if not values[0] <= _TOLERANCE]
        found.sort(key=lambda item: -math.inf if math.isnan(item[0]) else -item[0])
        return tuple(f"{name}: violated by {amount:.3g}" for amount, name in found)


def judge(problem: Problem, trajectories: Any, *, tolerance: float = _TOLERANCE, rank: Rank | None = None) -> Judgement:
    """Check plans and sort them: feasible ones first, then by ``rank``.

    Args:
        problem: what they are plans for.
        trajectories: ``(n, H, D)`` in physical units.
        tolerance: on violations, in their own units.
        rank: (trajectories, energies) → ``(n,)``, smaller is better; None takes the weighted energies of soft tasks,
            plus the path's length in units of the position scale where obstacles are known. (Where none are, a short
            path may be one through a wall that only the prior knows of.) Among plans that are not feasible the one with
            the smallest sum of violations is first.
    """
    import numpy as np

    from boltzmix.planners.checker import check

    plans = np.asarray(trajectories, dtype=np.float64)
    space = problem.space
    report = check(
        plans,
        space,
        problem.obstacles,
        radius=problem.radius,
        bounds=problem.bounds,
        max_speed=problem.max_speed,
        start=_numbers(problem.start),
        goal=_numbers(problem.goal),
    )
    violations = {name: np.asarray(values, dtype=np.float64) for name, values in report.violations.items()}
    feasible = np.asarray(report.feasible, dtype=bool).copy()
    energies: dict[str, Any] = {}
    cost = np.zeros(len(plans))
    if problem.obstacles:
        cost = path_lengths(space, plans) / space.scale[space.columns(space.position)[0]]
    tau = torch.from_numpy(plans)
    with torch.no_grad():
        for name, task in named(problem).items():
            energies[name] = task.energy(tau, space).double().numpy()
            if gates(task):
                amount = task.violation(tau, space).double().numpy()
                violations[name] = np.maximum(violations.get(name, 0.0), amount)
                feasible &= amount <= tolerance
            else:
                cost = cost + _weight(task) * energies[name]
    cost = cost if rank is None else np.asarray(rank(plans, energies), dtype=np.float64)
    return Judgement(plans, energies, feasible, violations, np.asarray(report.clearance), cost).sorted()


def merged(first: Judgement, second: Judgement) -> Judgement:
    """Two sets of plans for one problem as one, sorted again."""
    import numpy as np

    def both(a: Any, b: Any) -> Any:
        return {k: both(a[k], b[k]) for k in a} if isinstance(a, dict) else np.concatenate([a, b])

    pairs = ((getattr(first, f.name), getattr(second, f.name)) for f in fields(Judgement))
    return Judgement(*(both(a, b) for a, b in pairs)).sorted()


def refused(problem: Problem, reasons: tuple[str, ...], seconds: float, seed: int | None) -> PlanResult:
    """The result of a problem that was shown to have no solution: no plans, and why."""
    import numpy as np

    h, d = problem.space.shape
    return PlanResult(
        "infeasible", reasons, np.zeros((0, h, d)), {}, np.zeros(0, dtype=bool), {}, 0, seconds, seed,
        problem.space, problem.obstacles, _numbers(problem.start), _numbers(problem.goal), problem.radius,
        {"proven": True},
    )  # fmt: skip


def result_of(
    problem: Problem, judged: Judgement, *, evaluations: int, seconds: float, seed: int | None, info: dict[str, Any]
) -> PlanResult:
    """Judged plans as a result."""
    good = bool(judged.feasible[0]) if len(judged) else False
    return PlanResult(
        "feasible" if good else "infeasible", judged.reasons(), judged.trajectories, judged.energies, judged.feasible,
        judged.violations, evaluations, seconds, seed, problem.space, problem.obstacles, _numbers(problem.start),
        _numbers(problem.goal), problem.radius, info,
    )  # fmt: skip


def named(problem: Problem) -> dict[str, Any]:
    """Tasks by name; the second of a name is ``name 2``."""
    found: dict[str, Any] = {}
    for task in problem.tasks:
        name, k = task.name, 2
        while name in found:
            name, k = f"{task.name} {k}", k + 1
        found[name] = task
    return found


def gates(task: Any) -> bool:
    """Whether a plan that violates the task is not feasible: clamped tasks, obstacles, bounds and constraints."""
    from boltzmix.planners.tasks.avoid import Avoid
    from boltzmix.planners.tasks.limits import Bounds, Constraint

    return task.hard or isinstance(task, (Avoid, Bounds, Constraint))


def _weight(task: Any) -> float:
    """The weight at the data end."""
    from boltzmix.compose.exponent import as_exponent

    return float(as_exponent(task.weight).value(None))


def _numbers(vector: Tensor | None) -> Any:
    return None if vector is None else vector.numpy()
