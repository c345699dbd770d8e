r"""Underdamped (kinetic) Langevin dynamics, without a Metropolis test.

In whitened units, with a velocity v beside x and a friction γ,

.. math::
    dx = F v\, dt, \qquad dv = F^T s(x)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW,

leaves :math:`p(x)\, N(v; 0, I)` invariant. One step of size ε is BAOAB: half a kick, half a drift, the exact
Ornstein-Uhlenbeck update of v, half a drift, half a kick. The score at its end begins the next step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import (
    Info,
    Kernel,
    Noise,
    State,
    Target,
    Tune,
    check_positive,
    energy_fall,
    take_stable,
)
from boltzmix.compose.kernels.velocity import VelocityState, turned, with_velocity


@dataclass(frozen=True)
class Underdamped(Kernel):
    r"""Kinetic Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, 2013, *Rational construction of
    stochastic numerical methods for molecular sampling*).

    With :math:`\eta = e^{-\gamma\epsilon}` and :math:`\xi \sim N(0, I)` the velocity update is
    :math:`v \leftarrow \eta v + \sqrt{1 - \eta^2}\,\xi`. Terms that have only a score will do.

    Biased: by O(ε²) in general. On a Gaussian positions are exact for every stable step size, ε² < 4v for unit mass and
    a variance v, and it is the velocities whose variance is off, 1 − ε²/(4v). A step that is not finite, or whose
    energy error is that of an unstable integrator, is refused and counted as a divergence; the chain turns round.

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        friction: γ > 0, in units of 1/ε; 2 damps a unit Gaussian critically.

    Raises:
        ValueError: a friction that is not positive and finite.

    Example:
        >>> import torch, boltzmix as bm
        >>> p = bm.Gaussian(torch.zeros(2), 1.0)
        >>> draw = bm.sample(p, chains=4, sampler=bm.MCMC(bm.Underdamped(step_size=0.5), draws=10), seed=0)
        >>> tuple(draw.x.shape)
        (4, 10, 2)
    """

    friction: float = 1.0

    adjusted = False
    fresh_momentum = False
    target_acceptance = 0.98

    def __post_init__(self) -> None:
        """Check the friction."""
        super().__post_init__()
        check_positive(self, "friction", self.friction)

    def attach(self, state: State, generator: torch.Generator | None = None) -> VelocityState:
        """The state with a velocity from N(0, I)."""
        return with_velocity(state, generator)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One BAOAB step of every chain; one evaluation."""
        assert isinstance(state, VelocityState)
        step = tune.column
        decay = (-self.friction * step).exp()
        kicked = state.velocity + 0.5 * step * tune.pull(state.score)
        renewed = decay * kicked + (1 - decay * decay).sqrt() * noise.normal
        x = state.x + 0.5 * step * tune.push(kicked + renewed)
        energy, score = target.energy_and_score(x) if target.has_energy else (state.energy, target.score(x))
        velocity = renewed + 0.5 * step * tune.pull(score)
        proposal = VelocityState(x, energy, score, velocity)
        # the work that is not heat; without energies, with their change integrated along the chord
        work = energy_fall(target, state, proposal, (0.5 * (state.score + score) * (x - state.x)).sum(-1))
        work = work + 0.5 * (kinetic(state.velocity, kicked) + kinetic(renewed, velocity))
        moved, info = take_stable(state, proposal, work)
        return turned(moved, info.accepted), info

    def initial_step_size(self, dim: int) -> float:
        """Of the order of dim^(−1/4)."""
        return 0.5 * dim**-0.25


def kinetic(before: Tensor, after: Tensor) -> Tensor:
    """|before|² − |after|² of each row."""
    return (before * before).sum(-1) - (after * after).sum(-1)
