"""Recorded trajectories, and windows of them to train on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Episodes, one after the other.

    Args:
        observations: ``(T, S)``: the states in which the actions were taken, physical units.
        actions: ``(T, A)``; the last of an episode has no successor in the data.
        ends: long ``(E,)``: where each episode ends, exclusive; the last is T.
        goals: ``(T, G)`` or None.
        state_names: of the columns of ``observations``; those whose name begins with ``v`` are velocities.
        action_names: of the columns of ``actions``.
        settings: how the data came about.

    Raises:
        ValueError: shapes that do not fit together, ends that do not grow up to T, values that are not finite (the
            message counts them and says where the first one is).

    Example:
        >>> data = Trajectories(torch.arange(8.0).reshape(4, 2), torch.ones(4, 1), torch.tensor([3, 4]))
        >>> len(data), data.episode(1)
        (2, (tensor([[6., 7.]]), tensor([[1.]])))
        >>> data.at(torch.tensor([1]), horizon=3)
        tensor([[[2., 3., 1.],
                 [4., 5., 1.],
                 [4., 5., 0.]]])
    """

    observations: Tensor
    actions: Tensor
    ends: Tensor
    goals: Tensor | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    _sums: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = len(self.observations)
        named: dict[str, Tensor] = {"observations": self.observations, "actions": self.actions}
        named |= {} if self.goals is None else {"goals": self.goals}
        for name, values in named.items():
            if values.ndim != 2 or len(values) != steps or not len(values):
                raise ValueError(f"{name} are (T, D) with T = {steps} steps, at least one, got {tuple(values.shape)}")
            bad = ~torch.isfinite(values)
            if bool(bad.any()):
                row, column = torch.nonzero(bad)[0].tolist()
                raise ValueError(f"{name} hold {int(bad.sum())} values that are not finite, first at [{row}, {column}]")
        ends = self.ends
        grows = ends.ndim == 1 and len(ends) > 0 and bool((torch.diff(ends, prepend=ends.new_zeros(1)) > 0).all())
        if ends.dtype != torch.int64 or not grows or int(ends[-1]) != steps:
            raise ValueError(
                f"ends are long, they grow, and the last is T = {steps}, got {ends.dtype} {ends.tolist()[:9]}"
            )
        for names, values, what in (
            (self.state_names, self.observations, "state_names"),
            (self.action_names, self.actions, "action_names"),
        ):
            if names and len(names) != values.shape[1]:
                raise ValueError(f"{what} name {len(names)} columns, and there are {values.shape[1]}")
        sums = torch.cat([torch.zeros(1, self.actions.shape[1]).double(), self.actions.double().cumsum(0)])
        object.__setattr__(self, "_sums", sums)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> Tensor:
        """Where each episode begins, long ``(E,)``."""
        return torch.cat([self.ends.new_zeros(1), self.ends[:-1]])

    def episode(self, index: int) -> tuple[Tensor, Tensor]:
        """Observations ``(n, S)`` and actions ``(n, A)`` of one episode."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} episodes, got the index {index}")
        part = slice(int(self.starts[index]), int(self.ends[index]))
        return self.observations[part], self.actions[part]

    def windows(
        self,
        horizon: int,
        stride: int = 1,
        *,
        n: int,
        generator: torch.Generator,
        begin: str = "any",
    ) -> Tensor:
        """Random windows ``(n, horizon, S + A)``; see :meth:`at`.

        Args:
            horizon: tokens.
            stride: steps of the data between tokens.
            n: how many.
            generator: chooses them.
            begin: "any" begins at any step, each equally likely; "start" at the first step of an episode.

        Raises:
            ValueError: a horizon or stride below 1, or another ``begin``.
        """
        if begin == "any":
            first = torch.randint(len(self.observations), (n,), generator=generator)
        elif begin == "start":
            first = self.starts[torch.randint(len(self), (n,), generator=generator)]
        else:
            raise ValueError(f'begin is "any" or "start", got {begin!r}')
        return self.at(first, horizon, stride)

    def at(self, first: Tensor, horizon: int, stride: int = 1) -> Tensor:
        """The windows ``(n, horizon, S + A)`` that begin at the steps ``first``.

        Token h holds the state at step ``first + h · stride`` and the mean of the actions from there to the next token.
        After the end of the episode the state is its last one, at rest: velocities and actions are 0.
        """
        if horizon < 1 or stride < 1:
            raise ValueError(f"horizon and stride are at least 1, got {horizon} and {stride}")
        end = self.ends[torch.searchsorted(self.ends, first, right=True)][:, None]
        step = first[:, None] + stride * torch.arange(horizon)
        state = self.observations[torch.minimum(step, end - 1)].clone()
        rest = [i for i, name in enumerate(self.state_names) if name.startswith("v")]
        for column in rest:
            state[..., column][step >= end] = 0.0
        total = self._sums[torch.minimum(step + stride, end)] - self._sums[torch.minimum(step, end)]
        return torch.cat([state, (total / stride).to(state.dtype)], -1)


def ends_of(flags: Tensor | Sequence[bool]) -> Tensor:
    """Where episodes end, exclusive, from a flag per step that is true at each last step.

    Steps after the last flag are an episode, too.

    Example:
        >>> ends_of([False, True, False])
        tensor([2, 3])
    """
    flags = torch.as_tensor(flags).bool().clone()
    flags[-1:] = True
    return torch.nonzero(flags).flatten() + 1
