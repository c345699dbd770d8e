r"""The No-U-Turn sampler, multinomial, iterative, and for all chains at once.

A transition draws a momentum and doubles a trajectory of leapfrogs, forwards or backwards in time by a fair coin,
until it turns back on itself; one of its L leaves is the next state. With whitened velocities v (the masses of
:class:`~boltzmix.compose.kernels.hmc.HMC`), the sum :math:`\rho` of the velocities of leaves i, …, j says that they
turn when

.. math:: \rho \cdot v_i \le 0 \quad \text{or} \quad \rho \cdot v_j \le 0 .

**No recursion.** A new half of :math:`2^d` leaves is integrated leaf by leaf. Completed sub-trees wait on a stack, each
as its first and last leaf, and two neighbours of one size are merged as in a binary counter: leaf n closes as many
sub-trees as n has trailing ones. So O(d) leaves are kept, and since all chains stand at the same n, which checks are
due is known without looking at a tensor.

**No direction.** Rows that go backwards are mirrored: ends swapped and velocities negated, which maps the flow onto
itself and changes neither criterion. Every row then grows forwards, in one leapfrog.

**Rows come and go.** A chain whose trajectory has ended leaves the batch before the next evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune
from boltzmix.compose.kernels.mass import Diagonal

_NUMBERS = 2**20  # numbers of recent leaves that are held until one of them is chosen
_LEAVES = 64  # and how many leaves that may be

#: a leaf on the boundary of a sub-tree: its velocity, and the sum of the velocities before it, (A, D) each
_Leaf = tuple[Tensor, Tensor]
#: a completed sub-tree: its first leaf and its last
_Tree = tuple[_Leaf, _Leaf]

#: attributes of a _Forest that have a row for each trajectory that still grows
_GROWING = (
    *("rows", "start", "ends", "velocities", "rho", "log_weight", "total"),
    *("x", "velocity", "kick", "before", "old", "trees", "best"),
)


@dataclass(frozen=True)
class NUTS(Kernel):
    r"""The No-U-Turn sampler (Hoffman and Gelman, 2014) with multinomial weights (Betancourt, 2017).

    Leaf z has weight :math:`e^{H_0 - H(z)}`. Within a new half a leaf is chosen by these weights; the chosen leaf of
    the new half replaces that of the old with probability :math:`\min(1, W_\text{new} / W_\text{old})` (biased
    progressive sampling). A new half with a turn within, or with a leaf that diverges or has no density, is thrown
    away and ends the trajectory; a turn of the whole ends it after the choice. Turns are looked for as current Stan
    does: over every sub-tree, and, where two neighbours merge, from each of them to the nearest leaf of the other.

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        max_depth: a trajectory doubles at most so often: at most :math:`2^\text{max\_depth} - 1` evaluations.
        target_acceptance: mean acceptance probability over the leaves of a trajectory that adaptation aims at.
        max_energy_error: a leaf with :math:`H - H_0` above it is a divergence.

    Info: ``acceptance`` is the mean of :math:`\min(1, e^{H_0 - H})` over all leaves tried, ``energy`` the Hamiltonian
    of the chosen leaf, ``num_leapfrog`` the leaves tried by each chain. Energies +inf end a trajectory without being
    counted as divergences.

    Raises:
        ValueError: a ``max_depth`` below 1, an aim outside (0, 1), or a ``max_energy_error`` that is not positive.

    Source: M. Hoffman and A. Gelman (2014), *The No-U-Turn sampler: adaptively setting path lengths in Hamiltonian
    Monte Carlo*; M. Betancourt (2017), *A conceptual introduction to Hamiltonian Monte Carlo*; iterative forms: D.
    Phan, N. Pradhan and M. Jankowiak (2019), *Composable effects for flexible and accelerated probabilistic
    programming in NumPyro*; J. Lao and J. Dillon (2020), *Unrolled implementation of no-U-turn sampler*.

    Example:
        >>> import torch
        >>> from boltzmix.compose import MCMC, Gaussian, sample
        >>> p = Gaussian(torch.zeros(3), torch.tensor([0.01, 1.0, 100.0]))
        >>> draw = sample(p, chains=4, sampler=MCMC(NUTS(), warmup=200, draws=100), seed=0)
        >>> draw.x.shape, draw.stats["n_steps"].shape
        (torch.Size([4, 100, 3]), torch.Size([4, 100]))
    """

    max_depth: int = 10
    target_acceptance: float = 0.8
    max_energy_error: float = 1000.0

    def __post_init__(self) -> None:
        """Check the limits."""
        super().__post_init__()
        if isinstance(self.max_depth, bool) or not isinstance(self.max_depth, int) or self.max_depth < 1:
            raise ValueError(f"NUTS needs max_depth >= 1, got {self.max_depth!r}")
        for name, value, top in (
            ("target_acceptance", self.target_acceptance, 1.0),
            ("max_energy_error", self.max_energy_error, float("inf")),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < top:
                raise ValueError(f"NUTS needs a {name} in (0, {top}), got {value!r}")

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """At most: a trajectory of ``max_depth`` doublings."""
        return 2**self.max_depth - 1

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One trajectory of every chain; momenta come from ``noise.normal``, the rest from its generator."""
        forest = _Forest(self, target, state, tune, noise)
        for depth in range(self.max_depth):
            forest.double(2**depth)
            if not len(forest.rows):
                break
        else:
            forest.retire(slice(None), 2**self.max_depth - 1)
        return forest.result()


class _Forest:
    """The trajectories of one transition: A rows that still grow, out of N.

    Uniforms are drawn for all N, so that what a chain does follows from its own numbers alone.
    """

    def __init__(self, kernel: NUTS, target: Target, state: State, tune: Tune, noise: Noise) -> None:
        """Trajectories of a single leaf."""
        self.limit, self.state, self.mass, self.generator = kernel.max_energy_error, state, tune.mass, noise.generator
        self.evaluate = _evaluator(target, state)
        n, d = state.x.shape
        self.chunk = max(1, min(_LEAVES, _NUMBERS // max(n * d, 1)))
        velocity = noise.normal
        self.step = tune.column.expand(n, 1) if tune.column.ndim else tune.column
        # what follows has A rows
        self.rows = torch.arange(n, device=state.x.device)
        place = torch.stack([state.x, 0.5 * self.step * tune.pull(state.score)], 1)
        # first and last leaf: (A, 2, 2, D), x and the kick of half a step; (A, 2, D)
        self.ends, self.velocities = torch.stack([place, place], 1), torch.stack([velocity, velocity], 1)
        self.rho = velocity
        self.start = state.energy + 0.5 * (velocity * velocity).sum(-1)
        self.log_weight = torch.zeros_like(self.start)  # log of the sum of the leaves' weights
        self.total = torch.zeros_like(self.start)  # sum of acceptance probabilities
        # what follows has N, or is put together in the end
        self.place = torch.cat([state.x, state.score], 1)
        self.level = torch.stack([state.energy, self.start], 1)
        self.moved: list[Tensor] = []
        self.divergent: list[Tensor] = []
        self.retired: list[tuple[Tensor, Tensor, Tensor]] = []

    def double(self, size: int) -> None:
        """Double every trajectory of ``size`` leaves."""
        coin, uniform = self._uniform(2)
        self._mirror(coin[self.rows] < 0.5)
        self.x, self.kick = self.ends[:, 1].unbind(1)
        first, self.velocity = self.velocities.unbind(1)
        self.before = self.rho
        self.old: _Tree = ((first, torch.zeros_like(first)), (self.velocity, self.rho - self.velocity))
        self.trees: list[_Tree] = []
        self.recent: list[tuple[Tensor, ...]] = []
        self.best: tuple[Tensor, ...] | None = None
        whole: Tensor | None = None
        for leaf in range(size):
            if leaf % self.chunk == 0:
                self._choose()
                self.keys = -(-self._uniform(min(self.chunk, size - leaf)).log()).log()  # Gumbel noise
            stop = self._leaf()
            turned, whole = self._close(leaf, size)
            stop = turned if stop is None else stop if turned is None else stop | turned
            if stop is not None and bool(stop.any()):
                self._choose()
                alive = ~stop
                self.retire(stop, size + leaf)
                self._keep(alive)
                whole = whole if whole is None else whole[alive]
                if not len(self.rows):
                    return
        assert whole is not None
        self._merge(uniform[self.rows])
        if bool(whole.any()):
            self.retire(whole, 2 * size - 1)
            self._keep(~whole)

    def _uniform(self, count: int) -> Tensor:
        like = self.state.x
        return torch.rand((count, like.shape[0]), generator=self.generator, dtype=like.dtype, device=like.device)

    def _mirror(self, backwards: Tensor) -> None:
        """Swap the ends and negate the velocities in rows that go backwards in time."""
        self.ends = torch.where(backwards[:, None, None, None], self.ends.flip(1), self.ends)
        self.velocities = torch.where(backwards[:, None, None], -self.velocities.flip(1), self.velocities)
        self.rho = torch.where(backwards[:, None], -self.rho, self.rho)

    def _leaf(self) -> Tensor | None:
        """One leapfrog; which rows cannot go on, None if all can."""
        half = self.velocity + self.kick
        shift = half if self.mass is None else self.mass.push(half)
        self.x = self.x + self.step * shift
        energy, score = self.evaluate(self.x, self.rows)
        pull = score if self.mass is None else self.mass.pull(score)
        self.kick = 0.5 * self.step * pull
        self.velocity = half + self.kick
        total = energy + 0.5 * (self.velocity * self.velocity).sum(-1)  # not finite if the score is not
        log_weight = self.start - total
        stop = None
        low, high = torch.aminmax(log_weight)  # NaN if one is
        if not (float(low) >= -self.limit and float(high) < torch.inf):
            stop = ~((log_weight >= -self.limit) & (log_weight < torch.inf))
            log_weight = torch.where(stop, -torch.inf, log_weight)
            self.divergent.append(self.rows[stop & (energy != torch.inf)])
        self.recent.append((self.x, score, energy, log_weight))
        return stop

    def _close(self, leaf: int, size: int) -> tuple[Tensor | None, Tensor | None]:
        """Close the sub-trees that end with this leaf.

        Returns:
            Whether one of them turns, and, after the last leaf, whether the whole trajectory does; None if none is due.
        """
        point = (self.velocity, self.before)
        self.before = self.before + self.velocity
        tree, spans = (point, point), []
        for level in range(_trailing_ones(leaf)):
            left = self.trees.pop()
            spans += _spans(left, tree, 2**level)
            tree = (left[0], tree[1])
        self.trees.append(tree)
        last = leaf == size - 1
        within = len(spans)
        if last:
            spans += _spans(self.old, tree, size)
        if not spans:
            return None, None
        turns = _turns(spans)
        return turns[:within].any(0) if within else None, turns[within:].any(0) if last else None

    def _choose(self) -> None:
        """Choose among the recent leaves of the new half and the one chosen before, by adding Gumbel noise."""
        if not self.recent:
            return
        count = len(self.recent)
        rows = torch.arange(len(self.rows), device=self.rows.device)
        log_weight = torch.stack([leaf[3] for leaf in self.recent])
        key, which = (log_weight + self.keys[:count, self.rows]).max(0)
        self.keys = self.keys[count:]
        places = torch.cat([t for leaf in self.recent for t in leaf[:2]], 1)
        place = places.reshape(len(rows), count, -1)[rows, which]
        energy = torch.stack([leaf[2] for leaf in self.recent])[which, rows]
        level = torch.stack([energy, self.start - log_weight[which, rows]], 1)
        self.total = self.total + log_weight.clamp(max=0.0).exp().sum(0)
        log_weight = log_weight.logsumexp(0)
        if self.best is not None:
            old_key, old_log_weight, old_place, old_level = self.best
            newer = (key > old_key)[:, None]
            key, log_weight = torch.maximum(key, old_key), torch.logaddexp(log_weight, old_log_weight)
            place, level = torch.where(newer, place, old_place), torch.where(newer, level, old_level)
        self.best = (key, log_weight, place, level)
        self.recent = []

    def _merge(self, uniform: Tensor) -> None:
        """Join the new half to the trajectory; prefer its leaf."""
        self._choose()
        assert self.best is not None
        _, log_weight, place, level = self.best
        taken = (uniform.log() < log_weight - self.log_weight).nonzero()[:, 0]
        rows = self.rows[taken]
        self.place = self.place.index_copy(0, rows, place[taken])
        self.level = self.level.index_copy(0, rows, level[taken])
        self.moved.append(rows)
        self.log_weight = torch.logaddexp(self.log_weight, log_weight)
        self.rho = self.before
        self.ends = torch.stack([self.ends[:, 0], torch.stack([self.x, self.kick], 1)], 1)
        self.velocities = torch.stack([self.velocities[:, 0], self.velocity], 1)

    def _keep(self, alive: Tensor) -> None:
        """Drop the other rows."""
        index = alive.nonzero()[:, 0]
        if not len(index):
            self.rows = index
            return

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.index_select(0, index)
            return None if value is None else type(value)(pick(part) for part in value)

        for name in _GROWING:
            setattr(self, name, pick(getattr(self, name)))
        if self.step.ndim:
            self.step = pick(self.step)
        if isinstance(self.mass, Diagonal) and self.mass.variance.ndim == 2:
            self.mass = Diagonal(pick(self.mass.variance))

    def retire(self, rows: Tensor | slice, count: int) -> None:
        """Note what there is to know of rows whose trajectories ended after ``count`` leapfrogs."""
        index = self.rows[rows]
        self.retired.append((index, self.total[rows], torch.full_like(index, count)))

    def result(self) -> tuple[State, Info]:
        """The chosen leaves."""
        n, d = self.state.x.shape
        index, total, count = (torch.cat(parts) for parts in zip(*self.retired, strict=True))
        order = index.argsort()
        total, count = total[order], count[order]
        x, score = (t.contiguous() for t in self.place.split(d, 1))
        energy, hamiltonian = (t.contiguous() for t in self.level.unbind(1))
        return State(x, energy, score), Info(
            total / count, _mask(self.moved, n, index), _mask(self.divergent, n, index), hamiltonian, count
        )


def _evaluator(target: Target, state: State) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Energies and scores of some rows; conditions that differ by row have all rows evaluated, others at rest."""
    if not getattr(getattr(target, "view", None), "per_row", False):
        return lambda x, rows: target.energy_and_score(x)

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = target.energy_and_score(state.x.index_copy(0, rows, x))
        return energy[rows], score[rows]

    return evaluate


def _trailing_ones(number: int) -> int:
    return (~number & (number + 1)).bit_length() - 1


def _spans(left: _Tree, right: _Tree, size: int) -> list[tuple[_Leaf, _Leaf]]:
    """First and last leaves of the stretches that must not turn when two neighbours of ``size`` leaves are merged."""
    whole = (left[0], right[1])
    return [whole] if size == 1 else [whole, (left[0], right[0]), (left[1], right[1])]


def _turns(spans: list[tuple[_Leaf, _Leaf]]) -> Tensor:
    """Whether each stretch turns back on itself, (S, A)."""
    (first, before), (last, until) = (
        tuple(torch.stack([span[end][part] for span in spans]) for part in (0, 1)) for end in (0, 1)
    )
    rho = until + last - before
    return torch.minimum((rho * first).sum(-1), (rho * last).sum(-1)) <= 0


def _mask(rows: list[Tensor], n: int, like: Tensor) -> Tensor:
    found = torch.zeros(n, dtype=torch.bool, device=like.device)
    return found.index_fill(0, torch.cat(rows), True) if rows else found
