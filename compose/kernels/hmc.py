r"""Hamiltonian Monte Carlo with a leapfrog integrator.

With velocities in whitened units, :math:`v \sim N(0, I)`, and an inverse mass :math:`C = F F^T`, one leapfrog is
:math:`v \mathrel{+}= \tfrac{\epsilon}{2} F^T s(x)`, :math:`x \mathrel{+}= \epsilon F v`,
:math:`v \mathrel{+}= \tfrac{\epsilon}{2} F^T s(x)`. The score is cached between steps: L leapfrogs cost L evaluations.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
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
from boltzmix.compose.tracing import Repetitions, repeat, unknown_repetitions

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

_LONGEST = 1000  # leapfrogs of a random trajectory


@dataclass(frozen=True)
class Trajectory(Info):
    """Where a trajectory ended, taken or not: position and whitened velocity ``(N, D)``, for adapting its length."""

    end: Tensor | None = None
    velocity: Tensor | None = None


@dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011).

    Trajectories have a fixed number L of leapfrogs, or a random length: with ``num_leapfrog=None`` every transition
    draws u ~ U(0, 1), the same for all chains, and takes L = ⌈2 u T / ε⌉ of them, T long in the mean (Hoffman, Radul
    and Sountsov, 2021, *An adaptive MCMC scheme for setting trajectory lengths in HMC*).

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        num_leapfrog: L ≥ 1 steps of the integrator; None for trajectories of random length.
        jitter: draw the step size of each chain from ε (1 ± 0.2), which keeps trajectories from resonating
            with a period of the target.
        length: by keyword, the mean length T of random trajectories in the units of ε; None has it adapted by
            :class:`~boltzmix.compose.adaptation.chees.ChEES`.
        nodes: by keyword, 0 to 3, for terms that have only a score: evaluations inside each leapfrog, beside the one
            at its end, for the line integral that stands for their energy
            (:mod:`boltzmix.compose.kernels.line_integral`).
    """

    num_leapfrog: int | None = 10
    jitter: bool = True
    length: float | None = field(default=None, kw_only=True)
    nodes: int = field(default=1, kw_only=True)

    integrates = True

    def __post_init__(self) -> None:
        """Check the trajectory."""
        super().__post_init__()
        check_nodes(self, self.nodes)
        count, name = self.num_leapfrog, type(self).__name__
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} needs num_leapfrog >= 1, or None for random lengths, got {count!r}")
        if self.length is not None and (count is not None or not 0 < self.length < float("inf")):
            raise ValueError(
                f"{name}'s length is positive and goes with num_leapfrog=None, got length={self.length!r} and "
                f"num_leapfrog={count!r}"
            )

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One for each leapfrog; of random trajectories, the mean where it is known."""
        if self.num_leapfrog is not None:
            return self.num_leapfrog
        return 1 if self.length is None or self.step_size is None else math.ceil(self.length / self.step_size)

    @property
    def adapts(self) -> bool:
        """Whether a step size or a length is left to adapt."""
        return self.step_size is None or (self.num_leapfrog is None and self.length is None)

    def adaptation(self) -> "Adaptation":
        """ChEES for random trajectories, windows otherwise."""
        if self.num_leapfrog is not None or self.length is not None:
            return super().adaptation()
        from boltzmix.compose.adaptation.chees import ChEES

        return ChEES()

    def tune(self, like: Tensor | None = None) -> Tune:
        """Tuning as given, without adaptation."""
        if self.num_leapfrog is None and self.length is None:
            raise ValueError("HMC(num_leapfrog=None) has no length: give one, or have it adapted by MCMC (adapt=True)")
        found = super().tune(like)
        return found if self.length is None else replace(found, length=torch.full_like(found.step_size, self.length))

    def tuned(self, tune: Tune) -> Self:
        """The kernel with a tuning as its hyper-parameters."""
        found = super().tuned(tune)
        return found if tune.length is None else replace(found, length=float(tune.length.median()))

    def repetitions(self, tune: Tune, noise: Noise) -> int | Repetitions:
        """The number of leapfrogs of one transition."""
        if self.num_leapfrog is not None:
            return self.num_leapfrog
        if (unknown := unknown_repetitions()) is not None:
            return unknown
        length = self.length if tune.length is None else float(tune.length.median())
        if length is None:
            raise ValueError(
                f"{type(self).__name__}(num_leapfrog=None) needs a length: MCMC adapts it, or give length="
            )
        share = float(noise.jitter.flatten()[0])
        return min(max(1, math.ceil(2 * share * length / float(tune.step_size.median()))), _LONGEST)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; one evaluation for each leapfrog, ``nodes`` more without energies."""
        count = self.repetitions(tune, noise)
        step = jittered(tune, noise, self.jitter)
        proposal, velocity, first, last = trajectory(target, state, noise.normal, tune, step, count, self.nodes)
        before = first + 0.5 * (noise.normal * noise.normal).sum(-1)
        after = last + 0.5 * (velocity * velocity).sum(-1)
        state, info = metropolis(state, proposal, before - after, noise.uniform, known=target.has_energy)
        hamiltonian = torch.where(info.accepted, after, before) if target.has_energy else None
        used = None
        if self.num_leapfrog is None and isinstance(count, int):
            each = 1 if target.has_energy else 1 + self.nodes
            used = torch.full_like(info.accepted, count * each, dtype=torch.long)
        return state, Trajectory(
            info.acceptance, info.accepted, info.divergent, hamiltonian, used, end=proposal.x, velocity=velocity
        )


@dataclass(frozen=True)
class UHMC(HMC):
    """Unadjusted HMC: trajectories without a Metropolis test, for score-only terms.

    Biased: on a Gaussian with unit mass, leapfrog with step ε samples variance v / (1 − ε²/(4v)). The
    acceptance in its info is the one a test would have had; terms that have only a score have the energy change
    integrated along the trajectory, with ``nodes=0`` by the trapezoid rule (exact for Gaussians). Adaptation aims at
    0.98: in two dimensions the variance of a Gaussian is then 4 % too large; at 0.9 it would be 65 %.
    """

    nodes: int = field(default=0, kw_only=True)

    adjusted = False
    target_acceptance = 0.98

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; ``num_leapfrog`` evaluations."""
        step = jittered(tune, noise, self.jitter)
        count = self.repetitions(tune, noise)
        proposal, velocity, work = leapfrog_with_work(target, state, noise.normal, tune, step, count, self.nodes)
        kinetic = 0.5 * ((noise.normal * noise.normal).sum(-1) - (velocity * velocity).sum(-1))
        return take_stable(state, proposal, energy_fall(target, state, proposal, work) + kinetic)


def jittered(tune: Tune, noise: Noise, jitter: bool) -> Tensor:
    """ε, per chain when jittered, shaped to multiply (N, D)."""
    return tune.column * (0.8 + 0.4 * noise.jitter)[:, None] if jitter else tune.column


def leapfrog(
    target: Target, state: State, velocity: Tensor, tune: Tune, step: Tensor, count: int | Repetitions
) -> tuple[State, Tensor]:
    """Where ``count`` leapfrogs with step sizes ``step`` lead, and with what velocity; one evaluation each."""

    def move(x: Tensor, velocity: Tensor, step: Tensor, tune: Tune) -> tuple[Tensor, Tensor]:
        x = x + step * tune.push(velocity)
        return x, velocity + step * tune.pull(target.score(x))

    velocity = velocity + 0.5 * step * tune.pull(state.score)
    x, velocity = repeat(count - 1, move, (state.x, velocity), (step, tune))
    x = x + step * tune.push(velocity)
    energy, score = target.energy_and_score(x)
    return State(x, energy, score), velocity + 0.5 * step * tune.pull(score)


def trajectory(
    target: Target, state: State, velocity: Tensor, tune: Tune, step: Tensor, count: int | Repetitions, nodes: int
) -> tuple[State, Tensor, Tensor, Tensor]:
    """A trajectory's end, its velocity, and −log p at both ends; where only a score is known, up to a constant."""
    if target.has_energy:
        end, velocity = leapfrog(target, state, velocity, tune, step, count)
        return end, velocity, state.energy, end.energy
    end, velocity, work = leapfrog_with_work(target, state, velocity, tune, step, count, nodes)
    return end, velocity, work, torch.zeros_like(work)


def leapfrog_with_work(
    target: Target, state: State, velocity: Tensor, tune: Tune, step: Tensor, count: int | Repetitions, nodes: int
) -> tuple[State, Tensor, Tensor]:
    """The same, and the change of log p along the way, integrated over each leapfrog's piece of it ``(N,)``.

    ``nodes`` more evaluations for each leapfrog where the target has no energies, and none where it has.
    """
    nodes = 0 if target.has_energy else nodes

    def half(velocity: Tensor, score: Tensor, step: Tensor, tune: Tune) -> Tensor:
        return velocity + 0.5 * step * tune.pull(score)

    def move(x: Tensor, velocity: Tensor, score: Tensor, work: Tensor, step: Tensor, tune: Tune) -> tuple[Any, ...]:
        velocity = half(velocity, score, step, tune)
        shift = step * tune.push(velocity)
        after = target.score(x + shift)
        work = work + line_integral(target, x, shift, score, after, nodes)
        return x + shift, half(velocity, after, step, tune), after, work

    start = (state.x, velocity, state.score, torch.zeros_like(state.energy))
    x, velocity, before, work = repeat(count - 1, move, start, (step, tune))
    velocity = half(velocity, before, step, tune)
    shift = step * tune.push(velocity)
    last = x + shift
    energy, score = target.energy_and_score(last) if target.has_energy else (state.energy, target.score(last))
    work = work + line_integral(target, x, shift, before, score, nodes)
    return State(last, energy, score), half(velocity, score, step, tune), work
