r"""Langevin kernels: :math:`x' = x + h C s(x) + \sqrt{2 h C}\, \xi` with step size h and inverse mass C."""

from dataclasses import dataclass

from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, metropolis, take_stable


@dataclass(frozen=True)
class ULA(Kernel):
    """Unadjusted Langevin algorithm (Parisi, 1981; Roberts and Tweedie, 1996).

    Biased: on N(0, v) with unit mass the stationary variance is v / (1 − h / (2v)), so the relative error is
    h / (2v) to first order in the step size h.

    Args:
        step_size: h, in units of the squared scale of x; None has it adapted.
    """

    adjusted = False
    target_acceptance = 0.98

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One move of every chain; one evaluation."""
        x, drift, spread = _propose(state, tune, noise)
        score = target.score(x)
        # what a Metropolis test would say, with the energy change integrated along the segment
        change = 0.5 * ((state.score + score) * (x - state.x)).sum(-1)
        back = (state.x - x - drift * score) / spread
        log_ratio = change + 0.5 * ((noise.normal**2).sum(-1) - (back * back).sum(-1))
        return take_stable(state, State(x, state.energy, score), log_ratio)

    def initial_step_size(self, dim: int) -> float:
        """Of the order of dim^(−1/3)."""
        return 0.5 * dim ** (-1 / 3)


@dataclass(frozen=True)
class MALA(Kernel):
    r"""Metropolis-adjusted Langevin algorithm (Roberts and Tweedie, 1996).

    Proposals have variance 2h, so :math:`\log q(y | x) = -\|y - x - h s(x)\|^2 / 4h` up to a constant.

    Args:
        step_size: h, in units of the squared scale of x; None has it adapted.
    """

    target_acceptance = 0.6

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One move of every chain; one evaluation."""
        x, drift, spread = _propose(state, tune, noise)
        energy, score = target.energy_and_score(x)
        back = (state.x - x - drift * score) / spread
        log_ratio = state.energy - energy + 0.5 * ((noise.normal**2).sum(-1) - (back * back).sum(-1))
        return metropolis(state, State(x, energy, score), log_ratio, noise.uniform)

    def initial_step_size(self, dim: int) -> float:
        """Of the order of dim^(−1/3)."""
        return 0.8 * dim ** (-1 / 3)


def _propose(state: State, tune: Tune, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """The proposal, h C and √(2hC)."""
    step = tune.step_size[:, None] if tune.step_size.ndim else tune.step_size
    drift = step if tune.inverse_mass is None else step * tune.inverse_mass
    spread = (2 * drift).sqrt()
    return state.x + drift * state.score + spread * noise.normal, drift, spread
