"""Windows of recorded episodes, normalised: what trajectory models are trained on.

The file is an npz with ``observations`` (T, S), ``actions`` (T, A), ``goals`` (T, 2) and ``terminals`` (T,), which is
true at the last step of each episode, as ``python -m boltzmix collect NAME`` writes it.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIELDS: Mapping[str, Any] = {"returns": [0.0, 1.0]}
"""What the rows of :class:`EpisodeWindows` say: the share of the window's tokens that are at the episode's goal."""


class EpisodeWindows:
    """A stream for ``fit``: random windows of the episodes of a file, at rest after their end.

    Token h of a window that begins at step t is the state at step ``t + h · stride`` and the mean action until the next
    token; after the last step the state stays, with velocities and actions of 0. So a window whose ends are known
    holds the way between them and the rest at the goal, and short ways are taken at once, not slowly.

    Args:
        path: the file.
        trajectory: ``horizon``, ``stride``, names of ``state`` and ``action``, ``loc`` and ``scale``, as
            :class:`~boltzmix.models.TrajectoryDiffusion` takes them.
        pace: cruising speed, m/s, to which every episode is brought by running it through faster or slower. Its own is
            the largest speed it reaches, if that lies within 20 % of ``pace``, else the nearer end of that range. A
            way is then a function of its ends nearly, and easier to learn than one of all speeds. Velocities are
            scaled with the ratio and actions with its square (forces without friction). None leaves times as they are.
        from_start: share of the windows that begin where an episode does; the others begin at any step.
        at_goal: distance within which a token is at the goal, metres.
        collect: the name in the command that the error for a missing file names; default the file's.

    Raises:
        FileNotFoundError: the file is missing; the message says how it is made.
        ValueError: columns that are missing, of other sizes than the names say, or not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        trajectory: Mapping[str, Any],
        *,
        pace: float | None = None,
        from_start: float = 0.6,
        at_goal: float = 0.3,
        collect: str | None = None,
    ) -> None:
        """Read the file."""
        import numpy as np

        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: make it with python -m boltzmix collect {collect or file.stem}"
            )
        with np.load(file, allow_pickle=False) as stored:
            missing = sorted({"observations", "actions", "goals", "terminals"} - set(stored))
            if missing:
                raise ValueError(f"{file} holds {sorted(stored)} and lacks {missing}")
            state, action, goals = (
                torch.from_numpy(np.asarray(stored[name], dtype=np.float32))
                for name in ("observations", "actions", "goals")
            )
            flags = torch.from_numpy(np.asarray(stored["terminals"], dtype=bool))
        names, moves = tuple(trajectory["state"]), tuple(trajectory.get("action", ()))
        wanted = {"observations": (state, len(names)), "goals": (goals, 2)}
        wanted |= {"actions": (action, len(moves))} if moves else {}
        for what, (values, size) in wanted.items():
            if values.ndim != 2 or tuple(values.shape) != (len(flags), size) or not len(flags):
                raise ValueError(f"{file}: {what} have shape ({len(flags)}, {size}), got {tuple(values.shape)}")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{file}: {int((~torch.isfinite(values)).sum())} of the {what} are not finite")
        flags[-1] = True  # steps after the last flag are an episode, too
        self.horizon, self.stride = int(trajectory["horizon"]), int(trajectory.get("stride", 1))
        self.state, self.goals = state, goals
        zeros = torch.zeros(1, action.shape[1], dtype=torch.float64)
        self.sums = torch.cat([zeros, action.double().cumsum(0)]) if moves else None
        self.ends = torch.nonzero(flags)[:, 0] + 1
        self.starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        self.loc = torch.tensor([float(v) for v in trajectory["loc"]])
        self.scale = torch.tensor([float(v) for v in trajectory["scale"]])
        self.velocities = [index for index, name in enumerate(names) if name.startswith("v")]
        self.positions = [names.index(name) for name in trajectory.get("position", ("x", "y"))]
        self.from_start, self.at_goal = from_start, at_goal
        self.ratio = self._ratios(pace)

    def _ratios(self, pace: float | None) -> Tensor:
        """How much faster each episode is run through, ``(E,)``."""
        if pace is None or not self.velocities:
            return torch.ones(len(self.ends))
        if not 0 < pace < math.inf:
            raise ValueError(f"pace is a positive speed in m/s, got {pace}")
        speed = self.state[:, self.velocities].norm(dim=1)
        episode = torch.searchsorted(self.ends, torch.arange(len(speed)), right=True)
        own = torch.zeros(len(self.ends)).scatter_reduce(0, episode, speed, "amax")
        return pace / own.clamp(0.8 * pace, 1.2 * pace)

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n windows ``(n, H, D)``, normalised, and what is said of them, ``(n, 1)``."""
        first = torch.randint(len(self.state), (n,), generator=generator)
        whole = self.starts[torch.randint(len(self.starts), (n,), generator=generator)]
        first = torch.where(torch.rand(n, generator=generator) < self.from_start, whole, first)
        tau, returns = self.at(first)
        return (tau - self.loc) / self.scale, returns[:, None]

    def at(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """The windows that begin at the steps ``first``, physical units ``(n, H, D)``, and their returns ``(n,)``."""
        episode = torch.searchsorted(self.ends, first, right=True)
        end, ratio = self.ends[episode][:, None], self.ratio[episode][:, None]
        step = first[:, None] + self.stride * ratio.double() * torch.arange(self.horizon + 1)
        tau = _between(self.state, step[:, :-1], end - 1)
        moving = torch.zeros(tau.shape[2], dtype=torch.bool)
        moving[self.velocities] = True
        tau = torch.where(moving, tau * ratio[..., None], tau)
        tau = torch.where((step[:, :-1] >= end)[..., None] & moving, 0.0, tau)
        gap = (tau[..., self.positions] - self.goals[first][:, None]).norm(dim=2)
        returns = (gap < self.at_goal).float().mean(1)
        if self.sums is not None:
            total = _between(self.sums, step, end).diff(dim=1)
            tau = torch.cat([tau, (total * ratio[..., None] / self.stride).to(tau.dtype)], -1)
        return tau, returns


def _between(rows: Tensor, step: Tensor, last: Tensor) -> Tensor:
    """Rows at fractional steps, up to ``last``, by linear interpolation: ``(n, h, D)``."""
    step = torch.minimum(step, last.to(step.dtype))
    below = step.floor().long()
    above = torch.minimum(below + 1, last)
    share = (step - below)[..., None].to(rows.dtype)
    return torch.lerp(rows[below], rows[above], share)
