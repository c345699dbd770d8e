"""What adaptation shares: settings that are frozen, and a tuner that changes from transition to transition.

::

    tuner = kernel.adaptation().begin(kernel, target, state, warmup, generator)
    for _ in range(warmup):
        before = state
        state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, generator))
        tuner.update(before, state, info)
        state = tuner.carry(state)
    tuned = kernel.tuned(tuner.finish())
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, State, Target, Tune


class Tuner:
    """A warm-up in progress; ``tune`` is what the next transition uses."""

    tune: Tune

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        raise NotImplementedError

    def carry(self, state: State) -> State:
        """The state to go on with, after :meth:`update`: another one where what a state holds is adapted, too."""
        return state

    def finish(self) -> Tune:
        """The tuning to keep, after the last transition of the warm-up."""
        raise NotImplementedError

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on bit for bit."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up what :meth:`snapshot` gave."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adaptation:
    """Base of all adaptations: hyper-parameters and one method."""

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> Tuner:
        """A tuner for ``warmup`` transitions from ``state``."""
        raise NotImplementedError


def check_acceptance(value: float | None) -> None:
    """Refuse an acceptance to aim at that is not between 0 and 1; None is the kernel's own."""
    if value is not None and not 0 < value < 1:
        raise ValueError(f"target_acceptance is a fraction between 0 and 1, got {value!r}")


def joined(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of several parts under ``name/…``, from which :func:`part` takes them again."""
    return {f"{name}/{key}": tensor for name, found in parts.items() for key, tensor in found.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
