r"""Langevin kernels: :math:`x' = x + h C s(x) + \sqrt{2 h}\, F \xi` with step size h and inverse mass C = F Fᵀ."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from boltzmix.compose.kernels.base import (
    Info,
    Kernel,
    Noise,
    State,
    Target,
    Tune,
    energy_fall,
    metropolis,
    take_stable,
)
from boltzmix.compose.kernels.line_integral import check_nodes, line_integral

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation


@dataclass(frozen=True)
class _Langevin(Kernel):
    step_power = 2

    def adaptation(self) -> "Adaptation":
        """Windows with scores: moves this short do not see the variance of wide coordinates in one window."""
        from boltzmix.compose.adaptation.windows import Windows

        return Windows(estimator="fisher")


@dataclass(frozen=True)
class ULA(_Langevin):
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
        x, move = _propose(state, tune, noise)
        energy, score = target.energy_and_score(x) if target.has_energy else (state.energy, target.score(x))
        proposal = State(x, energy, score)
        # what a Metropolis test would say; without energies, with their change integrated along the segment
        change = energy_fall(target, state, proposal, 0.5 * ((state.score + score) * (x - state.x)).sum(-1))
        return take_stable(state, proposal, change + _reverse_ratio(move, score, tune, noise))

    def initial_step_size(self, dim: int) -> float:
        """Of the order of dim^(−1/3)."""
        return 0.5 * dim ** (-1 / 3)


@dataclass(frozen=True)
class MALA(_Langevin):
    r"""Metropolis-adjusted Langevin algorithm (Roberts and Tweedie, 1996).

    Proposals have variance 2h, so :math:`\log q(y | x) = -\|y - x - h s(x)\|^2 / 4h` up to a constant.

    Args:
        step_size: h, in units of the squared scale of x; None has it adapted.
        nodes: by keyword, 0 to 3, for terms that have only a score: evaluations between x and y, beside that at y, for
            the line integral that stands for their energy (:mod:`boltzmix.compose.kernels.line_integral`).
    """

    nodes: int = field(default=2, kw_only=True)

    integrates = True
    target_acceptance = 0.6

    def __post_init__(self) -> None:
        """Check the nodes, too."""
        super().__post_init__()
        check_nodes(self, self.nodes)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One move of every chain; one evaluation, and ``nodes`` more on terms that have only a score."""
        x, move = _propose(state, tune, noise)
        if not target.has_energy:
            score = target.score(x)
            change = line_integral(target, state.x, x - state.x, state.score, score, self.nodes)
            log_ratio = change + _reverse_ratio(move, score, tune, noise)
            return metropolis(state, State(x, state.energy, score), log_ratio, noise.uniform, known=False)
        energy, score = target.energy_and_score(x)
        log_ratio = state.energy - energy + _reverse_ratio(move, score, tune, noise)
        return metropolis(state, State(x, energy, score), log_ratio, noise.uniform)

    def initial_step_size(self, dim: int) -> float:
        """Of the order of dim^(−1/3)."""
        return 0.8 * dim ** (-1 / 3)


def _propose(state: State, tune: Tune, noise: Noise) -> tuple[Tensor, Tensor]:
    """The proposal, and its move in whitened units, √(2h) ξ + h Fᵀ s."""
    move = (2 * tune.column).sqrt() * noise.normal + tune.column * tune.pull(state.score)
    return state.x + tune.push(move), move


def _reverse_ratio(move: Tensor, score: Tensor, tune: Tune, noise: Noise) -> Tensor:
    """log q(x | y) − log q(y | x), from the noise that the reverse move would have drawn."""
    back = (move + tune.column * tune.pull(score)) / (2 * tune.column).sqrt()
    return 0.5 * ((noise.normal**2).sum(-1) - (back * back).sum(-1))
