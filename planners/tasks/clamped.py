"""Hard tasks: a start, a goal and waypoints, held at their values at every noise level.

These are deltas, not energies: samplers take their coordinates out of what they move. Their :meth:`~Task.energy` is
½ Σ (x − value)² over the fixed normalised coordinates, for reports: 0 where they hold.
"""

from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.constraints import Clamp
from boltzmix.compose.term import Term
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Known, Task


class Clamped(Task):
    """Columns of one token at given values.

    Args:
        value: a state ``(S,)``, a position ``(P,)``, or numbers by column name, in physical units.
        at: the token, negative ones from the end.
        name: what results call it.

    Raises:
        ValueError: values that are not finite or do not fit the space, a token beyond the horizon.
    """

    hard = True

    def __init__(self, value: Any, at: int, name: str | None = None) -> None:
        """Hold the values; the space that they fit is known when the task is used."""
        super().__init__(name)
        if isinstance(at, bool) or not isinstance(at, int):
            raise TypeError(f"{self.name}: at= is a token, an int, got {at!r}")
        self.value, self.at = value, at

    def __pow__(self, weight: object) -> Task:
        """A delta has no other powers than 1."""
        raise TypeError(f"{self.name} is clamped, so it has no weight; for a soft goal use Reach(position, width) ** w")

    def _fit(self, space: TrajectorySpace) -> None:
        self._fixed(space)

    def _fixed(self, space: TrajectorySpace) -> tuple[int, dict[str, float]]:
        return space.token(self.at), space.values(self.value, self.name)

    def known(self, space: TrajectorySpace) -> Known:
        """Mask and normalised values, ``(H, D)``; values are 0 where nothing is fixed."""
        self._require_space(space)
        token, values = self._fixed(space)
        mask, held = torch.zeros(space.shape, dtype=torch.bool), torch.zeros(space.shape, dtype=torch.float64)
        for place, value in zip(space.columns(list(values)), values.values(), strict=True):
            mask[token, place] = True
            held[token, place] = (value - space.loc[place]) / space.scale[place]
        return mask, held.to(torch.get_default_dtype())

    def _term(self, space: TrajectorySpace) -> Term:
        return Clamp(*self.known(space))

    def _errors(self, tau: Tensor, space: TrajectorySpace) -> tuple[Tensor, Tensor]:
        """Differences in physical units ``(N, K)`` and their scales ``(K,)``."""
        token, values = self._fixed(space)
        places = space.columns(list(values))
        error = tau[:, token, places] - tau.new_tensor(list(values.values()))
        return error, tau.new_tensor([space.scale[p] for p in places])

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        error, scale = self._errors(tau, space)
        return 0.5 * (error / scale).square().sum(1)

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        error, _ = self._errors(tau, space)
        return torch.linalg.vector_norm(error, dim=1)


class Start(Clamped):
    """The first token is where the robot is: a state, or a position with the rest left open."""

    def __init__(self, state: Any, name: str | None = None) -> None:
        """Fix the first token."""
        super().__init__(state, 0, name)


class Goal(Clamped):
    """A token, by default the last, is at a state or a position."""

    def __init__(self, state_or_position: Any, at: int = -1, name: str | None = None) -> None:
        """Fix the token ``at``."""
        super().__init__(state_or_position, at, name)


class Waypoint(Clamped):
    """A token in between is at a state or a position."""

    def __init__(self, position: Any, at: int, name: str | None = None) -> None:
        """Fix the token ``at``."""
        super().__init__(position, at, name)
