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

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.kernels.mass import Mass, as_mass

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

StateLike = TypeVar("StateLike", bound="State")
KernelLike = TypeVar("KernelLike", bound="Kernel")


class Target(Protocol):
    """Energies and scores over flat states ``(N, D)``."""

    has_energy: bool

    def score(self, x: Tensor) -> Tensor:
        """∇ log p, ``(N, D)``."""
        ...

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """−log p ``(N,)`` and ∇ log p ``(N, D)``."""
        ...


def energy_of(target: Target, x: Tensor) -> Tensor:
    """−log p ``(N,)``, without the score where the target has a method ``energy`` for it."""
    alone = getattr(target, "energy", None)
    return target.energy_and_score(x)[0] if alone is None else alone(x)


@dataclass(frozen=True)
class State:
    """Positions with the energy and score that the next step needs; either is NaN where the kernel has no use for it.

    Kernels that carry more from step to step (a momentum, replicas) subclass it; every field is a tensor whose first
    dimension is the chain.
    """

    x: Tensor
    energy: Tensor
    score: Tensor

    def select(self, rows: Tensor) -> Self:
        """The state at an index or mask of rows."""
        return self.having({name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name: what a checkpoint holds."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def having(self, tensors: dict[str, Tensor]) -> Self:
        """A state with these in the place of its own tensors of the same names."""
        return replace(self, **tensors)


def take(accepted: Tensor, proposal: StateLike, state: StateLike) -> StateLike:
    """The proposal in rows that are accepted and the old state in the others; neither is changed."""
    old = state.tensors()
    return proposal.having(
        {
            name: torch.where(accepted.reshape(-1, *([1] * (new.ndim - 1))), new, old[name])
            for name, new in proposal.tensors().items()
        }
    )


@dataclass(frozen=True)
class Info:
    """Per chain: acceptance probability, whether the proposal was taken, whether it diverged.

    Attributes:
        energy: the Hamiltonian, potential and kinetic, of the state and momentum that the transition ends with, for
            E-BFMI; None for kernels without a momentum.
        num_leapfrog: evaluations that each chain used, where chains differ.
    """

    acceptance: Tensor
    accepted: Tensor
    divergent: Tensor
    energy: Tensor | None = None
    num_leapfrog: Tensor | None = None


class Recorder:
    """What a kernel makes of the transitions after the warm-up, besides draws; see :meth:`Kernel.recorder`."""

    def update(self, state: State, info: Info, tune: "Tune") -> None:
        """Learn from a transition that ended in ``state``."""
        raise NotImplementedError

    def log_z(self) -> tuple[float, float] | None:
        """log Z and its standard error, for kernels that know them."""
        return None

    def extra(self) -> dict[str, Any]:
        """What goes to ``draw.info.extra``."""
        return {}

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up what :meth:`snapshot` gave."""
        raise NotImplementedError


@dataclass(frozen=True)
class Tune:
    """What adaptation changes.

    Args:
        step_size: ε, () or (N,).
        inverse_mass: C, variances (D,), a covariance (D, D), or a :class:`~boltzmix.compose.kernels.mass.Mass`.
        length: of a trajectory, () or (N,), in the units of ε, for kernels whose trajectories are adapted.
    """

    step_size: Tensor
    inverse_mass: Mass | Tensor | None = None
    length: Tensor | None = None
    mass: Mass | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check positivity and factorise the inverse mass."""
        for name, value in (("step sizes", self.step_size), ("trajectory lengths", self.length)):
            if value is not None and not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError(f"{name} are positive and finite, got {value.flatten()[:8].tolist()}")
        object.__setattr__(self, "mass", as_mass(self.inverse_mass))

    @property
    def column(self) -> Tensor:
        """The step size, shaped to multiply (N, D)."""
        return self.step_size[:, None] if self.step_size.ndim else self.step_size

    def push(self, velocity: Tensor) -> Tensor:
        """F v: a velocity in whitened units as a direction of x; C = F Fᵀ is the inverse mass."""
        return velocity if self.mass is None else self.mass.push(velocity)

    def pull(self, score: Tensor) -> Tensor:
        """Fᵀ s: a score of x in whitened units."""
        return score if self.mass is None else self.mass.pull(score)


@dataclass(frozen=True)
class Noise:
    """Randomness of one transition: normals (N, D), uniforms (N,) to accept, uniforms (N,) to jitter.

    ``generator`` is where kernels that cannot know how much they need draw the rest as they go.
    """

    normal: Tensor
    uniform: Tensor
    jitter: Tensor
    generator: torch.Generator | None = None

    def __getitem__(self, step: int | slice) -> "Noise":
        """One transition of a block drawn by :func:`draw_noise` with ``steps``, or some of them as a block."""
        return Noise(self.normal[step], self.uniform[step], self.jitter[step], self.generator)


def draw_noise(like: Tensor, generator: torch.Generator | None, steps: int | None = None) -> Noise:
    """Noise for one transition of states like ``(N, D)``, or for a block of ``steps``."""
    lead = () if steps is None else (steps,)
    options: dict[str, Any] = {"generator": generator, "dtype": like.dtype, "device": like.device}
    rows = (*lead, like.shape[0])
    normal = torch.randn(*lead, *like.shape, **options)
    return Noise(normal, torch.rand(rows, **options), torch.rand(rows, **options), generator)


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels: start, noise and tuning; subclasses define ``step``.

    Args:
        step_size: a positive number, or None to have it adapted by the sampler.
        inverse_mass: by keyword: variances (D,), a covariance (D, D) or a Mass, the scales of the target over its
            flat coordinates; None has it adapted together with a step size of None, and is the identity otherwise.
    """

    step_size: float | None = None
    inverse_mass: Mass | Tensor | None = field(default=None, kw_only=True)

    #: whether the kernel accepts or rejects with energies, so that it leaves the target invariant
    adjusted = True
    #: whether its test takes line integrals of the score where a term has no energy
    integrates = False
    #: the power of the target's scale that step sizes are proportional to
    step_power = 1
    #: whether steps read scores; the others evaluate energies only, and their states' scores are NaN
    uses_score = True
    #: the coordinates that it moves: "real", "discrete", or "both"
    moves = "real"
    #: acceptance that adaptation aims at
    target_acceptance = 0.75
    #: whether transitions draw a new momentum; energies of one that is kept in part move slowly whatever the target
    fresh_momentum = True
    #: evaluations of one step
    evaluations_per_step = 1

    def __post_init__(self) -> None:
        """Refuse step sizes that are not positive and finite."""
        if self.step_size is not None:
            check_positive(self, "step_size", self.step_size, "; None has it adapted")
        object.__setattr__(self, "inverse_mass", as_mass(self.inverse_mass))

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> State:
        """Evaluate the start; ``generator`` is for kernels that carry random numbers from the start on.

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
        self.check_columns(target)
        if not self.uses_score:
            energy, score = energy_of(target, x), torch.full_like(x, torch.nan)
            good = torch.isfinite(energy)
        elif self.adjusted and (target.has_energy or not self.integrates):
            energy, score = target.energy_and_score(x)
            good = torch.isfinite(score).all(-1) & torch.isfinite(energy)
        else:
            energy, score = x.new_full((x.shape[0],), torch.nan), target.score(x)
            good = torch.isfinite(score).all(-1)
        if not bool(good.all()):
            bad = (~good).nonzero()[:, 0]
            raise NonFinite(
                f"{len(bad)} of {x.shape[0]} starts have a non-finite energy or score, the first is row "
                f"{int(bad[0])}: {x[bad[0]].flatten()[:6].tolist()}; start inside the support"
            )
        return self.attach(State(x, energy, score), generator)

    def check_columns(self, target: Target) -> None:
        """Refuse integer coordinates where real ones are moved, and the other way round.

        Raises:
            TypeError: the target has coordinates that the kernel cannot move.
        """
        levels = getattr(target, "levels", None)
        if self.moves == "real" and levels is not None and bool((levels > 0).any()):
            raise TypeError(
                f"{type(self).__name__} moves real variables and {int((levels > 0).sum())} of {len(levels)} "
                "coordinates are discrete: use Gibbs(), GibbsWithGradients() or DiscreteLangevin() where all are, and "
                f'BlockGibbs({{"x": {type(self).__name__}(), "z": Gibbs()}}) where only some are'
            )
        if self.moves == "discrete" and (levels is None or not bool((levels > 0).all())):
            real = "all" if levels is None else f"{int((levels == 0).sum())} of {len(levels)}"
            raise TypeError(
                f"{type(self).__name__} moves discrete variables and {real} coordinates are real: use HMC() or NUTS() "
                f'where all are, and BlockGibbs({{"x": HMC(), "z": {type(self).__name__}()}}) where only some are'
            )

    def refresh(self, target: Target, state: StateLike, known: bool = False) -> StateLike:
        """The state of chains that stand where they stood on another target, with what this kernel reads evaluated.

        :class:`~boltzmix.compose.kernels.blocks.BlockGibbs` calls it after other variables have moved; ``known`` says
        that the energy is right already.
        """
        if not self.uses_score:
            return state if known else replace(state, energy=energy_of(target, state.x))
        if not self.adjusted or (self.integrates and not target.has_energy):
            return replace(state, score=target.score(state.x))
        energy, score = target.energy_and_score(state.x)
        return replace(state, energy=energy, score=score)

    def attach(self, state: State, generator: torch.Generator | None = None) -> State:
        """A state with what the kernel carries besides positions, energies and scores (a fresh momentum, say)."""
        return state

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One transition of every chain."""
        raise NotImplementedError

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> Noise:
        """Fresh noise for one transition, or for a block of ``steps``."""
        return draw_noise(state.x, generator, steps)

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
        return Tune(torch.as_tensor(self.step_size, dtype=None if like is None else like.dtype), self.inverse_mass)

    @property
    def adapts(self) -> bool:
        """Whether something is left to adapt."""
        return self.step_size is None

    def adaptation(self) -> "Adaptation":
        """What a warm-up adapts by default where ``step_size`` is None."""
        from boltzmix.compose.adaptation.windows import Windows

        return Windows()

    def tuned(self, tune: Tune) -> Self:
        """The kernel with a tuning as its hyper-parameters; step sizes of several chains become their median."""
        return replace(self, step_size=float(tune.step_size.median()), inverse_mass=tune.mass)

    def recorder(self, target: Target, state: State, transitions: int) -> Recorder | None:
        """What keeps a record of the ``transitions`` after the warm-up; None where draws say everything."""
        return None

    def initial_step_size(self, dim: int) -> float:
        """A first guess for unit-variance targets in ``dim`` dimensions."""
        return dim**-0.25


def check_positive(kernel: Kernel, name: str, value: object, instead: str = "") -> None:
    """Refuse a hyper-parameter that is not a positive finite number; ``instead`` ends the message."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"{type(kernel).__name__} needs a positive finite {name}, got {value!r}{instead}")


def metropolis(
    state: StateLike, proposal: StateLike, log_ratio: Tensor, uniform: Tensor, scored: bool = True, known: bool = True
) -> tuple[StateLike, Info]:
    """Accept per chain with probability min(1, exp(log_ratio)), under the rules for non-finite values.

    ``scored=False`` is for kernels that evaluate no scores, ``known=False`` for terms that have no energies: the ratio
    must then be finite in their place.
    """
    value = proposal.energy if known else log_ratio
    finite = torch.isfinite(value) & (torch.isfinite(proposal.score).all(-1) if scored else True)
    accepted = finite & (uniform.log() < log_ratio)
    divergent = ~(finite | (proposal.energy == torch.inf))
    probability = torch.where(finite, log_ratio.clamp(max=0.0).exp(), 0.0)
    chosen = take(accepted, proposal, state)
    return chosen, Info(torch.nan_to_num(probability), accepted, divergent)


def energy_fall(target: Target, state: State, proposal: State, estimate: Tensor) -> Tensor:
    """E(x) − E(x') of an unadjusted move, ``(N,)``, for terms that have only a score ``estimate``.

    An estimate integrates the score between few points, and sees nothing of a step from one side of a kink to the
    other: energies take its place where there are any. −∞ where the proposal has no finite energy.
    """
    if not target.has_energy:
        return estimate
    # the first state of an unadjusted kernel has not got its energy yet
    fall = torch.where(torch.isnan(state.energy), estimate, state.energy - proposal.energy)
    return torch.where(torch.isfinite(proposal.energy), fall, -torch.inf)


def take_stable(state: StateLike, proposal: StateLike, log_ratio: Tensor) -> tuple[StateLike, Info]:
    """Unadjusted kernels take every finite proposal of a stable trajectory; the others count as divergences.

    ``log_ratio`` is what a Metropolis test would compare; its exponential, at most 1, is the acceptance reported. An
    energy of +∞ is no density, and no divergence.
    """
    good = torch.isfinite(proposal.score).all(-1) & torch.isfinite(proposal.x).all(-1)
    good = good & (log_ratio > -100.0 - state.x.shape[1])
    chosen = take(good, proposal, state)
    rate = torch.where(good, log_ratio.clamp(max=0.0).exp(), 0.0)
    return chosen, Info(rate, good, ~good & (proposal.energy != torch.inf))


def check_kernel(kernel: object, owner: str) -> None:
    """Kernels are instances, not classes."""
    if not isinstance(kernel, Kernel):
        what = f"the class {kernel.__name__}; write {kernel.__name__}()" if isinstance(kernel, type) else repr(kernel)
        raise TypeError(f"{owner} takes a kernel such as HMC(), got {what}")
