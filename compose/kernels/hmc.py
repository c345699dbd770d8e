r"""Hamiltonian Monte Carlo with a leapfrog integrator and a diagonal mass.

With velocities in whitened units, :math:`v \sim N(0, I)` and :math:`a = \epsilon \sqrt{C}` for the inverse
mass C, one leapfrog is :math:`v \mathrel{+}= \tfrac{a}{2} s(x)`, :math:`x \mathrel{+}= a v`,
:math:`v \mathrel{+}= \tfrac{a}{2} s(x)`. The score is cached between steps: L leapfrogs cost L evaluations.
"""

from dataclasses import dataclass

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
        move = _move(tune, noise, self.jitter)
        half = 0.5 * move
        x, velocity = state.x, noise.normal + half * state.score
        for _ in range(self.num_leapfrog - 1):
            x = x + move * velocity
            velocity = velocity + move * target.score(x)
        x = x + move * velocity
        energy, score = target.energy_and_score(x)
        velocity = velocity + half * score
        kinetic = 0.5 * ((noise.normal * noise.normal).sum(-1) - (velocity * velocity).sum(-1))
        return metropolis(state, State(x, energy, score), state.energy - energy + kinetic, noise.uniform)


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
        move = _move(tune, noise, self.jitter)
        half = 0.5 * move
        x, velocity, score = state.x, noise.normal, state.score
        work: Tensor | float = 0.0
        for _ in range(self.num_leapfrog):
            velocity = velocity + half * score
            shift = move * velocity
            x, before = x + shift, score
            score = target.score(x)
            work = work + (0.5 * (before + score) * shift).sum(-1)
            velocity = velocity + half * score
        kinetic = 0.5 * ((noise.normal * noise.normal).sum(-1) - (velocity * velocity).sum(-1))
        return take_stable(state, State(x, state.energy, score), work + kinetic)


def _move(tune: Tune, noise: Noise, jitter: bool) -> Tensor:
    """ε √C, per chain when jittered, shaped to multiply (N, D)."""
    step = tune.step_size
    if jitter:
        step = step * (0.8 + 0.4 * noise.jitter)
    if step.ndim:
        step = step[:, None]
    return step if tune.scale is None else step * tune.scale
