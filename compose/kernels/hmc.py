r"""Hamiltonian Monte Carlo with a leapfrog integrator.

With velocities in whitened units, :math:`v \sim N(0, I)`, and an inverse mass :math:`C = F F^T`, one leapfrog is
:math:`v \mathrel{+}= \tfrac{\epsilon}{2} F^T s(x)`, :math:`x \mathrel{+}= \epsilon F v`,
:math:`v \mathrel{+}= \tfrac{\epsilon}{2} F^T s(x)`. The score is cached between steps: L leapfrogs cost L evaluations.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, metropolis, take_stable


@dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011).

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        num_leapfrog: L ≥ 1 steps of the integrator.
        jitter: draw the step size of each chain from ε (1 ± 0.2), which keeps trajectories from resonating
            with a period of the target.
    """

    num_leapfrog: int = 10
    jitter: bool = True

    def __post_init__(self) -> None:
        """Check the trajectory."""
        super().__post_init__()
        if isinstance(self.num_leapfrog, bool) or not isinstance(self.num_leapfrog, int) or self.num_leapfrog < 1:
            raise ValueError(f"{type(self).__name__} needs num_leapfrog >= 1, got {self.num_leapfrog!r}")

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One for each leapfrog."""
        return self.num_leapfrog

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; ``num_leapfrog`` evaluations."""
        step = _jittered(tune, noise, self.jitter)
        x, velocity = state.x, noise.normal + 0.5 * step * tune.pull(state.score)
        for _ in range(self.num_leapfrog - 1):
            x = x + step * tune.push(velocity)
            velocity = velocity + step * tune.pull(target.score(x))
        x = x + step * tune.push(velocity)
        energy, score = target.energy_and_score(x)
        velocity = velocity + 0.5 * step * tune.pull(score)
        before = state.energy + 0.5 * (noise.normal * noise.normal).sum(-1)
        after = energy + 0.5 * (velocity * velocity).sum(-1)
        state, info = metropolis(state, State(x, energy, score), before - after, noise.uniform)
        return state, replace(info, energy=torch.where(info.accepted, after, before))


@dataclass(frozen=True)
class UHMC(HMC):
    """Unadjusted HMC: trajectories without a Metropolis test, for score-only terms.

    Biased: on a Gaussian with unit mass, leapfrog with step ε samples variance v / (1 − ε²/(4v)). The
    acceptance in its info is the one a test would have had, with the energy change integrated along the
    trajectory by the trapezoid rule (exact for Gaussians). Adaptation aims at 0.98: in two dimensions the
    variance of a Gaussian is then 4 % too large; at 0.9 it would be 65 %.
    """

    adjusted = False
    target_acceptance = 0.98

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; ``num_leapfrog`` evaluations."""
        step = _jittered(tune, noise, self.jitter)
        x, velocity, score = state.x, noise.normal, state.score
        work: Tensor | float = 0.0
        for _ in range(self.num_leapfrog):
            velocity = velocity + 0.5 * step * tune.pull(score)
            shift = step * tune.push(velocity)
            x, before = x + shift, score
            score = target.score(x)
            work = work + (0.5 * (before + score) * shift).sum(-1)
            velocity = velocity + 0.5 * step * tune.pull(score)
        kinetic = 0.5 * ((noise.normal * noise.normal).sum(-1) - (velocity * velocity).sum(-1))
        return take_stable(state, State(x, state.energy, score), work + kinetic)


def _jittered(tune: Tune, noise: Noise, jitter: bool) -> Tensor:
    """ε, per chain when jittered, shaped to multiply (N, D)."""
    return tune.column * (0.8 + 0.4 * noise.jitter)[:, None] if jitter else tune.column
