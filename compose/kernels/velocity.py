"""States of kernels whose velocity lives on from one transition to the next."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import State


@dataclass(frozen=True)
class VelocityState(State):
    """A state with the velocity ``(N, D)`` that the next step goes on with, in whitened units."""

    velocity: Tensor


VelocityLike = TypeVar("VelocityLike", bound=VelocityState)


def with_velocity(state: State, generator: torch.Generator | None) -> VelocityState:
    """The state with a velocity from N(0, I)."""
    x = state.x
    velocity = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return VelocityState(state.x, state.energy, state.score, velocity)


def turned(state: VelocityLike, accepted: Tensor) -> VelocityLike:
    """The state with its velocity reversed in rows that were refused."""
    return replace(state, velocity=torch.where(accepted[:, None], state.velocity, -state.velocity))
