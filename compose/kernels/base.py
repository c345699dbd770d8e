"""What every kernel shares: state, tuning, noise, and the rules for proposals that are not finite.

A kernel is a frozen dataclass of hyper-parameters. Its loop is public::

    state = kernel.init(target, x)
    for _ in range(1000):
        state, info = kernel.step(target, state, tune, kernel.noise(state, generator))

``target`` is a :class:`boltzmix.compose.flat.FlatTarget`, or anything with its three methods. The last
evaluation of a step is at its proposal.

Energies +inf are zero density: an ordinary rejection. NaN, −inf or a non-finite score in a proposal is a
rejection counted as a divergence. Unadjusted kernels also reject, and count, trajectories whose energy error
exceeds 100 + D: a step that is unstable would otherwise throw its chains to infinity. States are never
rewritten, clamped or zeroed.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite


class Target(Protocol):
    """Energies and scores over flat states ``(N, D)``."""

    has_energy: bool

    def score(self, x: Tensor) -> Tensor:
        """∇ log p, ``(N, D)``."""
        ...

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """−log p ``(N,)`` and ∇ log p ``(N, D)``."""
        ...


@dataclass(frozen=True)
class State:
    """Positions with the energy and score that the next step needs; ``energy`` is NaN where unused."""

    x: Tensor
    energy: Tensor
    score: Tensor

    def select(self, rows: Tensor) -> "State":
        """The state at an index or mask of rows."""
        return State(self.x[rows], self.energy[rows], self.score[rows])


@dataclass(frozen=True)
class Info:
    """Per chain: acceptance probability, whether the proposal was taken, whether it diverged."""

    acceptance: Tensor
    accepted: Tensor
    divergent: Tensor


@dataclass(frozen=True)
class Tune:
    """What adaptation changes: step size, () or (N,), and inverse mass (D,), a variance for each coordinate."""

    step_size: Tensor
    inverse_mass: Tensor | None = None
    scale: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check positivity and keep the square root of the inverse mass."""
        if not bool((torch.isfinite(self.step_size) & (self.step_size > 0)).all()):
            raise ValueError(f"step sizes are positive and finite, got {self.step_size.flatten()[:8].tolist()}")
        if self.inverse_mass is not None:
            if not bool((torch.isfinite(self.inverse_mass) & (self.inverse_mass > 0)).all()):
                raise ValueError("the inverse mass holds positive finite variances")
            object.__setattr__(self, "scale", self.inverse_mass.sqrt())


@dataclass(frozen=True)
class Noise:
    """Randomness of one transition: normals (N, D), uniforms (N,) to accept, uniforms (N,) to jitter."""

    normal: Tensor
    uniform: Tensor
    jitter: Tensor

    def __getitem__(self, step: int) -> "Noise":
        """One transition of a block drawn by :func:`draw_noise` with ``steps``."""
        return Noise(self.normal[step], self.uniform[step], self.jitter[step])


def draw_noise(like: Tensor, generator: torch.Generator | None, steps: int | None = None) -> Noise:
    """Noise for one transition of states like ``(N, D)``, or for a block of ``steps``."""
    lead = () if steps is None else (steps,)
    options: dict[str, Any] = {"generator": generator, "dtype": like.dtype, "device": like.device}
    rows = (*lead, like.shape[0])
    return Noise(torch.randn(*lead, *like.shape, **options), torch.rand(rows, **options), torch.rand(rows, **options))


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels: start, noise and tuning; subclasses define ``step``.

    Args:
        step_size: a positive number, or None to have it adapted by the sampler.
    """

    step_size: float | None = None

    #: whether the kernel accepts or rejects with energies, so that it leaves the target invariant
    adjusted = True
    #: acceptance that adaptation aims at
    target_acceptance = 0.75
    #: evaluations of one step
    evaluations_per_step = 1

    def __post_init__(self) -> None:
        """Refuse step sizes that are not positive and finite."""
        if self.step_size is not None and (
            isinstance(self.step_size, bool)
            or not isinstance(self.step_size, (int, float))
            or not 0 < self.step_size < float("inf")
        ):
            raise ValueError(
                f"{type(self).__name__} needs a positive finite step_size, got {self.step_size!r}; None has it adapted"
            )

    def init(self, target: Target, x: Tensor) -> State:
        """Evaluate the start.

        Raises:
            NonFinite: a start with an energy or score that is not finite.
        """
        if not isinstance(x, Tensor) or x.ndim != 2:
            raise ValueError(f"kernels move flat states (N, D), got {tuple(getattr(x, 'shape', ()))}; see ravel()")
        width = getattr(target, "dim", x.shape[1])
        if x.shape[1] != width:
            raise ValueError(f"starts have shape {tuple(x.shape)} and the target takes (N, {width})")
        if not x.is_floating_point():
            raise TypeError(f"starts are floating-point, got {x.dtype}; convert them with x.float()")
        if self.adjusted:
            energy, score = target.energy_and_score(x)
        else:
            score = target.score(x)
            energy = x.new_full((x.shape[0],), torch.nan)
        good = torch.isfinite(score).all(-1) & (torch.isfinite(energy) if self.adjusted else True)
        if not bool(good.all()):
            bad = (~good).nonzero()[:, 0]
            raise NonFinite(
                f"{len(bad)} of {x.shape[0]} starts have a non-finite energy or score, the first is row "
                f"{int(bad[0])}: {x[bad[0]].flatten()[:6].tolist()}; start inside the support"
            )
        return State(x, energy, score)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One transition of every chain."""
        raise NotImplementedError

    def noise(self, state: State, generator: torch.Generator | None = None) -> Noise:
        """Fresh noise for one transition."""
        return draw_noise(state.x, generator)

    def tune(self, like: Tensor | None = None) -> Tune:
        """Tuning as given, without adaptation.

        Raises:
            ValueError: no step size was given.
        """
        if self.step_size is None:
            raise ValueError(
                f"{type(self).__name__} has no step_size: give one, e.g. {type(self).__name__}(step_size=0.1), "
                "or let the sampler adapt it (adapt=True)"
            )
        return Tune(torch.as_tensor(self.step_size, dtype=None if like is None else like.dtype))

    def initial_step_size(self, dim: int) -> float:
        """A first guess for unit-variance targets in ``dim`` dimensions."""
        return dim**-0.25


def metropolis(state: State, proposal: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """Accept per chain with probability min(1, exp(log_ratio)), under the rules for non-finite values."""
    finite = torch.isfinite(proposal.energy) & torch.isfinite(proposal.score).all(-1)
    accepted = finite & (uniform.log() < log_ratio)
    divergent = ~(finite | (proposal.energy == torch.inf))
    probability = torch.where(finite, log_ratio.clamp(max=0.0).exp(), 0.0)
    column = accepted[:, None]
    chosen = State(
        torch.where(column, proposal.x, state.x),
        torch.where(accepted, proposal.energy, state.energy),
        torch.where(column, proposal.score, state.score),
    )
    return chosen, Info(torch.nan_to_num(probability), accepted, divergent)


def take_stable(state: State, proposal: State, log_ratio: Tensor) -> tuple[State, Info]:
    """Unadjusted kernels take every finite proposal of a stable trajectory; the others count as divergences.

    ``log_ratio`` is what a Metropolis test would compare; its exponential, at most 1, is the acceptance reported.
    """
    good = torch.isfinite(proposal.score).all(-1) & torch.isfinite(proposal.x).all(-1)
    good = good & (log_ratio > -100.0 - state.x.shape[1])
    column = good[:, None]
    chosen = State(
        torch.where(column, proposal.x, state.x),
        proposal.energy,
        torch.where(column, proposal.score, state.score),
    )
    rate = torch.where(good, log_ratio.clamp(max=0.0).exp(), 0.0)
    return chosen, Info(rate, good, ~good)
