"""What a planner returns: trajectories, what their tasks say, what an independent checker says, and what it cost."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boltzmix.planners.space import TrajectorySpace


@dataclass(frozen=True)
class PlanResult:
    """Plans for one problem, best first.

    A plan is feasible where the dense checker finds nothing wrong and every hard task is satisfied; the result is
    feasible where its first plan is. Plans that are not feasible are returned all the same, since the best of them may
    be what a robot can do; a problem that is shown to have no solution before anything is sampled has none.

    Attributes:
        status: ``"feasible"`` or ``"infeasible"``.
        reasons: what is violated by the best plan, or why there is none, each beginning with the name of a task or
            check; empty for feasible results.
        trajectories: ``(n, H, D)`` in physical units, best first.
        energies: task → ``(n,)``, unweighted.
        feasible: ``(n,)`` booleans.
        violations: check or hard task → ``(n,)`` amounts in its own units, 0 where satisfied.
        evaluations: states at which the prior was evaluated, all levels and candidates counted; ``info["forwards"]``
            counts batches.
        seconds: wall time of the call.
        seed: that reproduces it; None for a generator of the caller's.
        space: of the trajectories.
        obstacles: that were known.
        start: state, as given.
        goal: position or state, as given; None where a task says what to reach.
        info: what else is known about the run: candidates, rounds, forwards, steps, seconds of the parts.
    """

    status: str
    reasons: tuple[str, ...]
    trajectories: Any
    energies: Mapping[str, Any]
    feasible: Any
    violations: Mapping[str, Any]
    evaluations: int
    seconds: float
    seed: int | None
    space: TrajectorySpace
    obstacles: tuple[Any, ...] = ()
    start: Any = None
    goal: Any = None
    radius: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of plans."""
        return len(self.trajectories)

    @property
    def best(self) -> Any:
        """The first plan, ``(H, D)`` in physical units.

        Raises:
            ValueError: the problem was shown to have no solution, so that there are no plans.
        """
        if not len(self):
            raise ValueError(f"there is no plan: {'; '.join(self.reasons)}")
        return self.trajectories[0]

    @property
    def path_lengths(self) -> Any:
        """Length of each plan's positions, ``(n,)``, in physical units."""
        return path_lengths(self.space, self.trajectories)

    def summary(self) -> str:
        """A few lines for people."""
        n = len(self)
        lines = [
            f"{self.status}: {int(self.feasible.sum())} of {n} plans feasible, {self.evaluations} evaluations, "
            f"{1e3 * self.seconds:.0f} ms"
        ]
        lines += [f"  {reason}" for reason in self.reasons]
        if n:
            lines.append(
                f"  best: {self.space.horizon} tokens of {self.space.dt:g} s, length {self.path_lengths[0]:.3g}"
            )
            lines += [f"  energy of {name}: {float(values[0]):.4g}" for name, values in self.energies.items()]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """A figure of the plans among the obstacles; see :func:`boltzmix.planners.pictures.plot_plans`."""
        from boltzmix.planners.pictures import plot_plans

        return plot_plans(self, path, **options)

    def animate(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """A GIF or film of the best plan; see :func:`boltzmix.planners.pictures.animate_plan`."""
        from boltzmix.planners.pictures import animate_plan

        return animate_plan(self, path, **options)


def path_lengths(space: TrajectorySpace, trajectories: Any) -> Any:
    """Sum of the distances between consecutive positions, ``(n,)``."""
    import numpy as np

    positions = np.asarray(trajectories)[..., space.columns(space.position)]
    return np.linalg.norm(np.diff(positions, axis=-2), axis=-1).sum(-1)
