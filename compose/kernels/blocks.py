r"""Different kernels for different variables of one target, each with the others held where they are.

A kernel that leaves :math:`p(x_b \mid x_{-b})` invariant leaves the joint density invariant, and so does one after the
other. The conditional's energy is the joint one, up to what does not depend on :math:`x_b`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, energy_of
from boltzmix.compose.kernels.mass import Mass

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class BlockState(State):
    """Joint positions and energies, and the state ``parts`` of each block's kernel. ``score`` is NaN."""

    parts: tuple[State, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Its own, and those of block b as ``"b/…"``."""
        own = {"x": self.x, "energy": self.energy.clone(), "score": self.score}  # the last block's is the same tensor
        return own | {f"{b}/{k}": v for b, part in enumerate(self.parts) for k, v in part.tensors().items()}

    def having(self, tensors: dict[str, Tensor]) -> "BlockState":
        """A state with these in the place of its own."""
        parts = tuple(
            part.having({k.removeprefix(f"{b}/"): v for k, v in tensors.items() if k.startswith(f"{b}/")})
            for b, part in enumerate(self.parts)
        )
        return replace(self, parts=parts, **{k: v for k, v in tensors.items() if "/" not in k})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class BlockInfo(Info):
    """Means over blocks, and the info ``parts`` of each."""

    parts: tuple[Info, ...] = ()


@dataclass(frozen=True)
class BlockTune(Tune):
    """The tuning ``parts`` of each block; ``step_size`` is that of the first."""

    parts: tuple[Tune, ...] = ()


@dataclass(frozen=True)
class BlockNoise(Noise):
    """The noise ``parts`` of each block."""

    parts: tuple[Noise, ...] = ()

    def __getitem__(self, step: int) -> "BlockNoise":
        """One transition of a block of transitions."""
        return _joint_noise(tuple(part[step] for part in self.parts))


@dataclass(frozen=True)
class BlockGibbs(Kernel):
    r"""A kernel for each variable, or group of variables, one after the other (Metropolis within Gibbs).

    A step goes through the blocks in the order given. What a block's kernel carries (a momentum) stays with it; its
    scores are evaluated anew in every step, since the other variables have moved: one evaluation for each block whose
    kernel reads scores or estimates. Energies are handed on from block to block. Evaluations for fewer rows than there
    are chains are not possible here, so kernels whose chains stop at different times evaluate all of them to the end.

    Args:
        kernels: from names of variables, or tuples of such names, to kernels; every variable is in one at least. Step
            sizes of None are adapted, each in the way of its kernel, unless
            :class:`~boltzmix.compose.adaptation.blocks.BlockAdaptation` says otherwise.

    Raises:
        ValueError: names that the target does not have, or variables without a kernel.
        TypeError: a kernel of real variables for a discrete one, or the other way round.

    Example:
        A mixture of two normals with its labels:

        >>> import torch, boltzmix as bm
        >>> def energy(v):
        ...     mean = 4.0 * v["z"][:, :1] - 2.0
        ...     return 0.5 * ((v["x"] - mean) ** 2).sum(1)
        >>> joint = bm.term(energy, kind="energy", event_shape={"x": 2, "z": 1}, support={"z": "integers(2)"})
        >>> kernel = bm.BlockGibbs({"x": bm.HMC(step_size=0.5), "z": bm.Gibbs()})
        >>> draw = bm.sample(joint, chains=100, sampler=bm.MCMC(kernel, draws=200), seed=0)
        >>> {name: t.dtype for name, t in draw.x.items()}
        {'x': torch.float32, 'z': torch.int64}
    """

    step_size: float | None = field(default=None, init=False, repr=False)
    inverse_mass: Mass | Tensor | None = field(default=None, init=False, repr=False)
    kernels: Mapping[Names, Kernel] = field(default_factory=dict)

    moves = "both"

    def __post_init__(self) -> None:
        """Check names and kernels."""
        from boltzmix.compose.kernels.tempering import ParallelTempering

        super().__post_init__()
        if not isinstance(self.kernels, Mapping) or not self.kernels:
            raise TypeError(f'BlockGibbs takes names and kernels, {{"x": HMC(), "z": Gibbs()}}, got {self.kernels!r}')
        for names, kernel in self.kernels.items():
            if not isinstance(kernel, Kernel):
                raise TypeError(f"BlockGibbs has kernels such as HMC() for its variables, got {kernel!r} for {names!r}")
            if isinstance(kernel, ParallelTempering):
                raise TypeError(
                    f"the replicas of ParallelTempering for {names!r} would stay behind when other variables move; use "
                    f"{kernel.kernel!r} there, or temper all variables together with a kernel that moves all of them"
                )
            if not isinstance(names, (str, tuple)) or not all(isinstance(name, str) for name in _listed(names)):
                raise TypeError(f"BlockGibbs names variables by strings or tuples of them, got {names!r}")

    @property
    def adjusted(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all of its kernels are."""
        return all(kernel.adjusted for kernel in self.kernels.values())

    @property
    def uses_score(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of its kernels reads scores."""
        return any(kernel.uses_score for kernel in self.kernels.values())

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of its kernels."""
        return sum(kernel.evaluations_per_step + kernel.uses_score for kernel in self.kernels.values())

    @property
    def adapts(self) -> bool:
        """Whether one of its kernels does."""
        return any(kernel.adapts for kernel in self.kernels.values())

    def adaptation(self) -> "Adaptation":
        """Each block in its own way."""
        from boltzmix.compose.adaptation.blocks import BlockAdaptation

        return BlockAdaptation()

    def tune(self, like: Tensor | None = None) -> BlockTune:
        """The tuning of each block as given."""
        return joint_tune(tuple(kernel.tune(like) for kernel in self.kernels.values()))

    def tuned(self, tune: Tune) -> "BlockGibbs":
        """With tuned kernels."""
        parts = zip(self.kernels.items(), _parts(tune), strict=True)
        return BlockGibbs({names: kernel.tuned(part) for (names, kernel), part in parts})

    def conditionals(self, target: Target, x: Tensor) -> "list[Conditional]":
        """The target of each block at a joint state ``(N, D)``.

        Raises:
            ValueError: names that do not fit the target.
        """
        view: Any = getattr(target, "view", None)
        named = list(getattr(view, "names", None) or [])
        used = [name for names in self.kernels for name in _listed(names)]
        if set(used) != set(named):
            raise ValueError(
                f"BlockGibbs has kernels for {sorted(set(used))} and the target's variables are {sorted(named)}"
                + ("" if named else "; name them with .on(name)")
            )
        return [Conditional(target, _listed(names), x) for names in self.kernels]

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> BlockState:
        """Evaluate the start of each block."""
        pairs = zip(self.conditionals(target, x), self.kernels.values(), strict=True)
        parts = tuple(kernel.init(there, x[:, there.columns], generator) for there, kernel in pairs)
        return BlockState(x, parts[-1].energy, torch.full_like(x, torch.nan), parts)

    def attach(self, state: State, generator: torch.Generator | None = None) -> State:
        """Not possible: a state for each block needs the target that tells which columns are whose.

        Raises:
            TypeError: always; :meth:`init` makes states.
        """
        raise TypeError(
            "BlockGibbs has a state for each block, which ParallelTempering, SMC and Annealed do not carry: run it in "
            "MCMC, or write its own loop from init(target, x)"
        )

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> BlockNoise:
        """Noise for each block."""
        assert isinstance(state, BlockState)
        pairs = zip(self.kernels.values(), state.parts, strict=True)
        return _joint_noise(tuple(kernel.noise(part, generator, steps) for kernel, part in pairs))

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[BlockState, BlockInfo]:
        """One transition of each block."""
        assert isinstance(state, BlockState)
        assert isinstance(noise, BlockNoise)
        kernels = list(self.kernels.values())
        x, energy, known = state.x, state.energy, kernels[-1].adjusted
        parts, infos = [], []
        for kernel, there, part, own_tune, own_noise in zip(
            kernels, self.conditionals(target, x), state.parts, _parts(tune), noise.parts, strict=True
        ):
            there = there.at(x)
            # a kernel that evaluates no energies hands on what it was given: not that of before its move
            given = energy if kernel.adjusted else torch.full_like(energy, torch.nan)
            part = replace(part, x=x[:, there.columns], energy=given)
            part, info = kernel.step(there, kernel.refresh(there, part, known), own_tune, own_noise)
            x = x.index_copy(1, there.columns, part.x)
            energy, known = part.energy, kernel.adjusted
            parts.append(part)
            infos.append(info)
        return replace(state, x=x, energy=energy, parts=tuple(parts)), _joint_info(infos)


class Conditional:
    """A target over the columns of some variables, the others held at the rows of a joint state."""

    def __init__(self, target: Target, names: tuple[str, ...], x: Tensor) -> None:
        """Hold ``x`` ``(N, D)``."""
        view: Any = target.view  # pyright: ignore[reportAttributeAccessIssue]
        self.target, self.names, self.x = target, names, x
        self.columns = torch.cat([view.columns(name) for name in names])
        self.dim, self.has_energy = len(self.columns), target.has_energy
        self.sigma = getattr(target, "sigma", None)
        levels: Tensor | None = getattr(target, "levels", None)
        levels = None if levels is None else levels[self.columns]
        self.levels = None if levels is None or not bool((levels > 0).any()) else levels
        self.view = _Scope(view, names, self.dim)

    def at(self, x: Tensor) -> "Conditional":
        """The same columns at another joint state."""
        clone = object.__new__(Conditional)
        clone.__dict__.update(self.__dict__)
        clone.x = x
        return clone

    def _joint(self, x: Tensor) -> Tensor:
        if len(x) != len(self.x):
            raise ValueError(
                f"each of {len(self.x)} chains has other variables of its own, and {len(x)} rows were to be evaluated: "
                "kernels in BlockGibbs evaluate all rows, in order"
            )
        return self.x.index_copy(1, self.columns, x)

    def energy(self, x: Tensor) -> Tensor:
        """Joint energies ``(N,)``."""
        return energy_of(self.target, self._joint(x))

    def score(self, x: Tensor) -> Tensor:
        """Scores ``(N, dim)``."""
        return self.target.score(self._joint(x))[:, self.columns]

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation."""
        energy, score = self.target.energy_and_score(self._joint(x))
        return energy, score[:, self.columns]

    def energies(self, x: Tensor) -> Tensor:
        """Joint energies ``(N, M)`` of M candidates for each row, ``(N, M, dim)``."""
        joint = self.x[:, None].expand(-1, x.shape[1], -1).index_copy(2, self.columns, x)
        many = getattr(self.target, "energies", None)
        return energy_of(self.target, joint.flatten(0, 1)).reshape(x.shape[:2]) if many is None else many(joint)

    def energy_and_one_hot_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Joint energies ``(N,)``, and scores of one-hot vectors ``(N, dim, K)``."""
        energy, score = self.target.energy_and_one_hot_score(self._joint(x))  # pyright: ignore[reportAttributeAccessIssue]
        return energy, score[:, self.columns]


class _Scope:
    """What kernels ask of a target's view: that rows differ, and which factors are over these variables alone."""

    per_row = True

    def __init__(self, view: Any, names: tuple[str, ...], dim: int) -> None:
        self._view, self.names, self.dim = view, list(names), dim
        self.full_dim = sum(view._sizes[view.names.index(name)] for name in names)

    @property
    def term(self) -> Any:
        """The product of the factors over these variables and no others; None where there is none."""
        from boltzmix.compose.product import Product, scope_names

        whole: Any = self._view.term
        pairs = whole.pairs() if isinstance(whole, Product) else [(whole, 1.0)]
        own = [(factor, power) for factor, power in pairs if set(scope_names(factor)) <= set(self.names)]
        return Product(own, variables={name: self._view.term.variables[name] for name in self.names}) if own else None


def joint_tune(parts: tuple[Tune, ...]) -> BlockTune:
    """The tunings of all blocks as one."""
    return BlockTune(parts[0].step_size, parts=parts)


def _parts(tune: Tune) -> tuple[Tune, ...]:
    if not isinstance(tune, BlockTune):
        raise TypeError(
            "BlockGibbs is tuned block by block: use adapt=True, or adapt=BlockAdaptation({…}) to say how, e.g. "
            '{"x": Windows(mass="dense")}'
        )
    return tune.parts


def _joint_noise(parts: tuple[Noise, ...]) -> BlockNoise:
    first = parts[0]
    return BlockNoise(first.normal, first.uniform, first.jitter, first.generator, parts)


def _joint_info(parts: list[Info]) -> BlockInfo:
    acceptance = torch.stack([part.acceptance for part in parts]).mean(0)
    accepted = torch.stack([part.accepted for part in parts]).any(0)
    divergent = torch.stack([part.divergent for part in parts]).any(0)
    counts = [part.num_leapfrog for part in parts if part.num_leapfrog is not None]
    total = torch.stack(counts).sum(0) if counts else None
    return BlockInfo(acceptance, accepted, divergent, num_leapfrog=total, parts=tuple(parts))


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
