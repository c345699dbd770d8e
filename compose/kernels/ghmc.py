r"""Generalised Hamiltonian Monte Carlo: trajectories that go on in the direction of the last one.

A transition renews a part of the velocity, :math:`v \leftarrow \alpha v + \sqrt{1 - \alpha^2}\,\xi`, goes along a
leapfrog trajectory and tests its end. Where the test fails the chain stays *and turns round*: the trajectory followed
by a reversal of v is its own inverse, and so is the reversal, so that each of the two leaves :math:`p(x)\,N(v; 0, I)`
invariant; accepted trajectories are reversed twice, refused ones once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Noise, State, Target, Tune, metropolis
from boltzmix.compose.kernels.hmc import HMC, jittered, trajectory
from boltzmix.compose.kernels.velocity import VelocityState, turned, with_velocity


@dataclass(frozen=True)
class SliceState(VelocityState):
    """A state with a velocity, and the variable in [−1, 1) ``(N,)`` whose modulus is compared with the ratio."""

    slice: Tensor


@dataclass(frozen=True)
class GHMC(HMC):
    r"""Generalised HMC (Horowitz, 1991, *A generalized guided Monte Carlo algorithm*).

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        num_leapfrog: L ≥ 1 steps of the integrator in each transition.
        jitter: draw the step size of each chain from ε (1 ± 0.2).
        alpha: α in [0, 1), how much of the velocity is kept; 0 is HMC.
        delta: None tests with a fresh uniform number. A number in (0, 1) tests with one that drifts by ``delta`` (1 ±
            0.5) from transition to transition (Neal, 2020, *Non-reversibly updating a uniform [0, 1] value for
            Metropolis accept/reject decisions*), so that refusals, and the turns that come with them, gather.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> import torch, boltzmix as bm
        >>> p = bm.Gaussian(torch.zeros(2), 1.0)
        >>> draw = bm.sample(p, chains=4, sampler=bm.MCMC(bm.GHMC(step_size=0.5), draws=10), seed=0)
        >>> tuple(draw.x.shape)
        (4, 10, 2)
    """

    num_leapfrog: int = 1
    alpha: float = 0.9
    delta: float | None = None

    fresh_momentum = False
    target_acceptance = 0.95

    def __post_init__(self) -> None:
        """Check what HMC does not have."""
        super().__post_init__()
        for name, value, least in (("alpha", self.alpha, True), ("delta", self.delta, False)):
            if name == "delta" and value is None:
                continue
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
            if not good or not (least or value):
                raise ValueError(f"GHMC's {name} is in {'[' if least else '('}0, 1), got {value!r}")

    def attach(self, state: State, generator: torch.Generator | None = None) -> VelocityState:
        """The state with a velocity from N(0, I), and a slice variable where it persists."""
        moving = with_velocity(state, generator)
        if self.delta is None:
            return moving
        x = state.x
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        return SliceState(moving.x, moving.energy, moving.score, moving.velocity, 2 * uniform - 1)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; ``num_leapfrog`` evaluations, ``nodes`` more for each without energies."""
        assert isinstance(state, VelocityState)
        start = self.alpha * state.velocity + math.sqrt(1 - self.alpha**2) * noise.normal
        step = jittered(tune, noise, self.jitter)
        count = self.repetitions(tune, noise)
        end, velocity, first, last = trajectory(target, state, start, tune, step, count, self.nodes)
        before = first + 0.5 * (start * start).sum(-1)
        after = last + 0.5 * (velocity * velocity).sum(-1)
        log_ratio, uniform = before - after, noise.uniform
        old = replace(state, velocity=start)
        new = replace(state, x=end.x, energy=end.energy, score=end.score, velocity=velocity)
        if isinstance(state, SliceState):
            assert isinstance(old, SliceState)
            assert isinstance(new, SliceState)
            drifted = _wrap(state.slice + self.delta_of(noise))
            old, uniform = replace(old, slice=drifted), drifted.abs()
            new = replace(new, slice=drifted * (-log_ratio).exp())
        moved, info = metropolis(old, new, log_ratio, uniform, known=target.has_energy)
        if target.has_energy:
            info = replace(info, energy=torch.where(info.accepted, after, before))
        return turned(moved, info.accepted), info

    def delta_of(self, noise: Noise) -> Tensor:
        """How far the slice variable drifts."""
        assert self.delta is not None
        return self.delta * (0.5 + noise.uniform)


def _wrap(value: Tensor) -> Tensor:
    """Into [−1, 1), an interval closed to a ring."""
    return torch.remainder(value + 1, 2) - 1
