r"""Gibbs sampling of discrete variables: each block from its exact conditional distribution.

For a block B of coordinates with the others held at :math:`x_{-B}`,

.. math:: p(x_B = v \mid x_{-B}) = \frac{e^{-E(v, x_{-B})}}{\sum_{v'} e^{-E(v', x_{-B})}}

over all :math:`\prod_{i \in B} K_i` values. One of them is the state's own, whose energy is known.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, energy_of
from boltzmix.compose.kernels.mass import Mass

_LARGEST = 65_536  # values of one block
_NUMBERS = 2**24  # held at once of candidates


@dataclass(frozen=True)
class DiscreteKernel(Kernel):
    """Base of kernels over integer coordinates: without a mass, and with energies instead of scores.

    The target's ``levels`` ``(D,)`` are the numbers of values of its coordinates; states hold the values
    0 … K − 1 as floats, exactly.
    """

    step_size: float | None = field(default=None, init=False, repr=False)
    inverse_mass: Mass | Tensor | None = field(default=None, init=False, repr=False)

    moves = "discrete"
    uses_score = False

    @property
    def adapts(self) -> bool:
        """Nothing is left to adapt."""
        return False

    def tune(self, like: Tensor | None = None) -> Tune:
        """A step size of one, which is not read."""
        return Tune(torch.ones((), dtype=None if like is None else like.dtype))

    def tuned(self, tune: Tune) -> Any:
        """The kernel itself."""
        return self

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> Noise:
        """Uniforms to accept; the others are drawn from the generator as they are needed."""
        lead = () if steps is None else (steps,)
        options: dict[str, Any] = {"dtype": state.x.dtype, "device": state.x.device}
        uniform = torch.rand(*lead, len(state.x), generator=generator, **options)
        empty = torch.zeros(*lead, len(state.x), 0, **options)
        return Noise(empty, uniform, empty, generator)


@dataclass(frozen=True)
class Gibbs(DiscreteKernel):
    r"""Gibbs sampling over discrete coordinates (Geman and Geman, 1984), all chains at once.

    A step is a sweep over all blocks of coordinates. The candidates of a block are evaluated in one batch of
    :math:`N \left(\prod_{i \in B} K_i - 1\right)` rows, so that a sweep over single coordinates costs
    :math:`\sum_i (K_i - 1)` evaluations for each chain. Every draw is exact and none is rejected. Energies will do.

    A candidate of energy +∞ has probability zero; one that is NaN or −∞ is never taken and counts as a divergence.

    Args:
        blocks: how many neighbouring coordinates of the flat state are updated jointly, by enumeration; or a list of
            blocks, each a list of flat coordinates (every one in at least one block).
        scan: ``"systematic"``: block after block, which leaves the target invariant; or ``"random"``: for every
            chain and sweep in a fresh random order, which also makes the sweep reversible.

    Raises:
        TypeError: a target with real coordinates.
        ValueError: blocks of more than 65,536 values, or that leave coordinates out.

    Example:
        >>> import torch, boltzmix as bm
        >>> chain = bm.term(  # neighbours like to be equal
        ...     lambda x: -(x[:, 1:] == x[:, :-1]).float().sum(1), kind="energy", event_shape=5, support="integers(3)"
        ... )
        >>> draw = bm.sample(chain, chains=100, sampler=bm.MCMC(bm.Gibbs(), draws=50), seed=0)
        >>> draw.x.dtype, round((draw.x[..., 1:] == draw.x[..., :-1]).float().mean().item(), 1)  # e / (e + 2) = 0.58
        (torch.int64, 0.6)
    """

    blocks: int | Sequence[Sequence[int]] = 1
    scan: str = "systematic"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.scan not in ("systematic", "random"):
            raise ValueError(f"Gibbs scans 'systematic' or 'random', got {self.scan!r}")
        if isinstance(self.blocks, int) and not isinstance(self.blocks, bool):
            if self.blocks < 1:
                raise ValueError(f"Gibbs's blocks hold at least one coordinate, got {self.blocks}")
            return
        try:
            blocks = tuple(tuple(int(c) for c in block) for block in self.blocks)  # pyright: ignore[reportGeneralTypeIssues]
        except TypeError:
            raise TypeError(
                f"Gibbs's blocks are an int, or a list of lists of flat coordinates, got {self.blocks!r}"
            ) from None
        if not all(block and len(set(block)) == len(block) for block in blocks):
            raise ValueError(f"each of Gibbs's blocks holds different coordinates, got {blocks}")
        object.__setattr__(self, "blocks", blocks)

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> State:
        """Evaluate the start, and refuse blocks that do not fit the target."""
        state = super().init(target, x, generator)
        plan(self.blocks, levels_of(target))
        return state

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One sweep of every chain."""
        table = plan(self.blocks, levels_of(target))
        n, count = len(state.x), len(table)
        options: dict[str, Any] = {"generator": noise.generator, "dtype": state.x.dtype, "device": state.x.device}
        uniform = torch.rand(n, count, **options)
        if self.scan == "random":
            padded = pad(table)
            order = torch.rand(n, count, **options).argsort(1)
            parts = [tuple(t[order[:, k]] for t in padded) for k in range(count)]
        else:
            parts = [tuple(t[None] for t in part) for part in table]
        x, energy = state.x, state.energy
        undefined = torch.zeros(n, dtype=torch.bool, device=x.device)
        for k, (columns, shifts, valid) in enumerate(parts):
            values, energies = _candidates(target, x, energy, columns, shifts, valid)
            usable = torch.isfinite(energies)
            undefined = undefined | ~(usable | (energies == torch.inf)).all(1)
            choice = draw(torch.where(usable, -energies, -torch.inf).log_softmax(1), uniform[:, k])
            x = x.scatter(1, columns.expand(n, -1), values[torch.arange(n, device=x.device), choice])
            energy = energies.gather(1, choice[:, None])[:, 0]
        moved = (x != state.x).any(1)
        return State(x, energy, state.score), Info(torch.ones_like(state.x[:, 0]), moved, undefined)


def levels_of(target: Target) -> Tensor:
    """Numbers of values of a target's coordinates, ``(D,)``."""
    return target.levels  # pyright: ignore[reportAttributeAccessIssue]


def plan(blocks: int | Sequence[Sequence[int]], levels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each block its columns ``(b,)``, all shifts of its values but none ``(M, b)``, and that these M are valid."""
    return _plan(blocks, tuple(levels.tolist()), levels.device)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=32)
def _plan(
    blocks: int | tuple[tuple[int, ...], ...], counts: tuple[int, ...], device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    dim = len(counts)
    if isinstance(blocks, int):
        blocks = tuple(tuple(range(at, min(at + blocks, dim))) for at in range(0, dim, blocks))
    named = {column for block in blocks for column in block}
    if named != set(range(dim)):
        raise ValueError(f"Gibbs's blocks name coordinates {sorted(named)} and the target has 0 … {dim - 1}")
    table = []
    for block in blocks:
        size = math.prod(counts[c] for c in block)
        if size > _LARGEST:
            raise ValueError(
                f"a block of {len(block)} coordinates has {size} values, at most {_LARGEST} are enumerated; use "
                "smaller blocks, or GibbsWithGradients()"
            )
        shifts = list(itertools.product(*(range(counts[c]) for c in block)))[1:]
        rows = torch.tensor(shifts, device=device, dtype=torch.long).reshape(len(shifts), len(block))
        table.append((torch.tensor(block, device=device), rows, torch.ones(len(rows), dtype=torch.bool, device=device)))
    return table


def pad(table: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """All blocks in one table; shorter ones repeat their last column, and shifts of zero that are not valid."""
    wide, tall = max(len(c) for c, _, _ in table), max(len(v) for _, _, v in table)
    columns, shifts, valid = [], [], []
    for c, s, v in table:
        again = [-1] * (wide - len(c))
        columns.append(torch.cat([c, c[again]]))
        own = torch.cat([s, s[:, again]], 1)
        shifts.append(torch.cat([own, own.new_zeros(tall - len(own), wide)]))
        valid.append(torch.cat([v, v.new_zeros(tall - len(v))]))
    return torch.stack(columns), torch.stack(shifts), torch.stack(valid)


def _candidates(
    target: Target, x: Tensor, energy: Tensor, columns: Tensor, shifts: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """All values of a block ``(N, 1 + M, b)``, the state's own first, and their energies ``(N, 1 + M)``."""
    columns = columns.expand(len(x), -1)
    own = x.gather(1, columns)[:, None]
    others = (own + shifts) % levels_of(target)[columns][:, None]
    if not others.shape[1]:
        return own, energy[:, None]
    found = torch.where(valid, energies_with(target, x, columns[:, None], others), torch.inf)
    return torch.cat([own, others], 1), torch.cat([energy[:, None], found], 1)


def energies_with(target: Target, x: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Energies ``(N, M)`` of states with ``values`` ``(N, M, b)`` in some columns, ``(N or 1, M or 1, b)``."""
    columns, width = columns.expand(values.shape), max(1, _NUMBERS // max(x.numel(), 1))
    many, parts = getattr(target, "energies", None), []
    for at, new in zip(columns.split(width, 1), values.split(width, 1), strict=True):
        states = x[:, None].expand(-1, new.shape[1], -1).scatter(2, at, new)
        flat = states.flatten(0, 1)
        parts.append(energy_of(target, flat).reshape(states.shape[:2]) if many is None else many(states))
    return torch.cat(parts, 1)


def draw(log_probability: Tensor, uniform: Tensor) -> Tensor:
    """Indices ``(N, …)`` from categorical log-probabilities ``(N, …, M)`` by inversion of their cumulative sums."""
    cumulative = log_probability.exp().cumsum(-1)
    total = cumulative[..., -1:]
    # below the total whatever the rounding, so that an index of probability zero is never the first above it
    height = torch.minimum(uniform[..., None].to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, height.contiguous(), right=True)[..., 0]
