r"""Discrete kernels that look where to go: proposals from estimates of how each change alters the log-density.

Both kernels read the score of the state's one-hot vectors, :math:`g_{ik}` (:mod:`boltzmix.compose.relaxation`), and
take the change of coordinate i to the value k to alter the log-density by

.. math:: d_{ik}(x) = g_{ik}(x) - g_{i x_i}(x) .

Proposals weigh changes by the square root of the ratio of densities, :math:`e^{d/2}`, which is the balance between
going uphill and being able to come back; a Metropolis test with the reverse proposal makes them exact however
poor the estimates are.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, StateLike, Target, Tune, energy_of, take
from boltzmix.compose.kernels.gibbs import DiscreteKernel, draw, energies_with, levels_of

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

_DIFFERENCES = ("gradient", "exact")


@dataclass(frozen=True)
class _Informed(DiscreteKernel):
    """What the two share: ``State.score`` is g, flattened to ``(N, D K)`` for the largest K."""

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> State:
        """Evaluate the start and its changes."""
        state = super().init(target, x, generator)
        energy, g = self.changes(target, state.x)
        state = replace(state, energy=energy, score=g.flatten(1))
        good = self._usable(state)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0, 0])
            raise NonFinite(
                f"the energy or its gradient is not finite at {int((~good).sum())} of {len(x)} starts, the first is "
                f"row {bad}: {x[bad][:6].tolist()}; start inside the support"
            )
        return state

    def refresh(self, target: Target, state: StateLike, known: bool = False) -> StateLike:
        """The state with energy and changes evaluated on this target."""
        energy, g = self.changes(target, state.x)
        return replace(state, energy=energy, score=g.flatten(1))

    def changes(self, target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)`` and g ``(N, D, K)``."""
        relaxed = getattr(target, "energy_and_one_hot_score", None)
        if relaxed is None:
            raise MissingEnergy(
                f"{type(self).__name__} needs a target with energy_and_one_hot_score(x); ravel(term) has it"
            )
        return relaxed(x)

    def _usable(self, state: State) -> Tensor:
        """Rows in which a chain may stand: a gradient of −∞ is a change that is never made."""
        return torch.isfinite(state.energy) & (state.score < torch.inf).all(1)


def estimates(target: Target, state: State) -> Tensor:
    """d ``(N, D, K)``: 0 at a coordinate's own value, −∞ at those that it does not have, or that are undefined."""
    g = state.score.reshape(*state.x.shape, -1)
    d = g - g.gather(2, state.x.long()[..., None])
    exists = torch.arange(g.shape[2], device=g.device) < levels_of(target)[:, None]
    return torch.where(exists & ~torch.isnan(d), d, -torch.inf)


def _decide(state: State, proposal: State, usable: Tensor, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """Accept per chain with probability min(1, exp(log_ratio)), where the proposal is defined."""
    log_ratio = torch.where(usable & ~torch.isnan(log_ratio), log_ratio, -torch.inf)
    accepted = uniform.log() < log_ratio
    divergent = ~(usable | (proposal.energy == torch.inf))
    probability = log_ratio.clamp(max=0.0).exp().to(state.x.dtype)
    return take(accepted, proposal, state), Info(probability, accepted, divergent)


@dataclass(frozen=True)
class GibbsWithGradients(_Informed):
    r"""Gibbs with gradients (Grathwohl, Swersky, Hashemi, Duvenaud and Maddison, 2021, *Oops I took a gradient:
    scalable sampling for discrete distributions*).

    Every chain proposes to change one coordinate i to another value k with probability

    .. math:: q(i, k \mid x) \propto e^{d_{ik}(x) / 2}

    over all coordinates and values, and accepts with the ratio :math:`p(x')\, q(x \mid x') / (p(x)\, q(x' \mid x))`. A
    step changes at most one coordinate, with one evaluation however many there are.

    Args:
        differences: ``"gradient"`` estimates d from the gradient with respect to one-hot vectors, for terms that say
            ``relaxed=``; ``"exact"`` evaluates all :math:`\sum_i (K_i - 1)` neighbours (the locally informed proposal
            of Zanella, 2020, *Informed proposals for local MCMC in discrete spaces*), which any energy allows.
            Neighbours whose energy is NaN or −∞ are then never proposed; a proposal beside one counts as a divergence.

    Raises:
        MissingEnergy: ``"gradient"`` on a term that takes integers only.
        TypeError: a target with real coordinates.

    Example:
        >>> import torch, boltzmix as bm
        >>> def ring(x):  # spins of 0 or 1
        ...     return -0.5 * ((2 * x - 1) * (2 * x.roll(1, 1) - 1)).sum(1)
        >>> ising = bm.term(ring, kind="energy", event_shape=8, support="integers(2)", relaxed="values")
        >>> draw = bm.sample(ising, chains=50, sampler=bm.MCMC(bm.GibbsWithGradients(), draws=500), seed=0)
        >>> spins = 2.0 * draw.x - 1
        >>> round((spins * spins.roll(1, 2)).mean().item(), 1)  # about tanh(0.5) = 0.46
        0.5
    """

    differences: str = "gradient"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.differences not in _DIFFERENCES:
            raise ValueError(f"GibbsWithGradients takes its differences from {_DIFFERENCES}, got {self.differences!r}")

    def changes(self, target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)``, and g ``(N, D, K)``: estimates, or E(x) − E(x with x_i = k)."""
        if self.differences == "gradient":
            return super().changes(target, x)
        energy = energy_of(target, x)
        levels, counts = levels_of(target), levels_of(target).tolist()
        column = torch.arange(len(counts), device=x.device).repeat_interleave(levels - 1)
        shift = torch.cat([torch.arange(1, k, device=x.device) for k in counts])
        value = (x[:, column] + shift) % levels[column]
        found = energies_with(target, x, column[None, :, None], value[..., None])
        found = torch.where(found > -torch.inf, found, torch.nan)
        widest = max(counts)
        g = energy.new_zeros(len(x), len(counts) * widest)
        return energy, g.scatter(1, column * widest + value.long(), energy[:, None] - found).unflatten(1, (-1, widest))

    def _usable(self, state: State) -> Tensor:
        return super()._usable(state) if self.differences == "gradient" else torch.isfinite(state.energy)

    def log_proposal(self, target: Target, state: State) -> Tensor:
        """log q(i, k | x), ``(N, D K)``; −∞ at each coordinate's own value."""
        half = 0.5 * estimates(target, state)
        half = half.scatter(2, state.x.long()[..., None], -torch.inf).flatten(1)
        return half.log_softmax(1)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One proposal for every chain; one evaluation, or one and all neighbours with ``"exact"``."""
        forward = self.log_proposal(target, state)
        stuck = torch.isnan(forward).any(1)  # no change is possible at all
        options: dict[str, Any] = {"dtype": state.x.dtype, "device": state.x.device}
        uniform = torch.rand(len(state.x), generator=noise.generator, **options)
        choice = draw(torch.where(stuck[:, None], 0.0, forward), uniform)
        width = state.score.shape[1] // state.x.shape[1]
        column, value = (choice // width)[:, None], (choice % width)[:, None]
        x = state.x.scatter(1, column, value.to(state.x.dtype))
        x = torch.where(stuck[:, None], state.x, x)
        energy, g = self.changes(target, x)
        proposal = replace(state, x=x, energy=energy, score=g.flatten(1))
        back = self.log_proposal(target, proposal)
        old = column * width + state.x.gather(1, column).long()
        log_ratio = state.energy - energy + back.gather(1, old)[:, 0] - forward.gather(1, choice[:, None])[:, 0]
        state, info = _decide(state, proposal, self._usable(proposal), log_ratio, noise.uniform)
        beside = torch.isnan(proposal.score).any(1) if self.differences == "exact" else torch.zeros_like(stuck)
        return state, replace(info, divergent=info.divergent | beside)


@dataclass(frozen=True)
class DiscreteLangevin(_Informed):
    r"""Discrete Langevin proposal (Zhang, Liu and Liu, 2022, *A Langevin-like sampler for discrete distributions*).

    All coordinates are proposed at once and independently,

    .. math:: q(x' \mid x) = \prod_i \operatorname{softmax}_k
        \left( \tfrac12 d_{ik}(x) - \frac{\rho(k, x_i)}{2\alpha} \right)\!(x'_i),

    with :math:`\rho(k, j) = (k - j)^2` for values with an order and 1 for every change otherwise, and accepted
    together by a Metropolis test. One evaluation a step.

    Unadjusted (``adjusted=False``) every proposal is taken. Biased: a binary coordinate with log-odds h and independent
    of the others then has

    .. math:: h + \log\frac{1 + e^{-h/2 - 1/(2\alpha)}}{1 + e^{h/2 - 1/(2\alpha)}},

    that is h for α → 0 and h / 2 for α → ∞. The acceptance in its info is the one that a test would have had.

    Args:
        step_size: α, in squared units of x; None has it adapted, to an acceptance of 0.57 (Sun, Dai and Schuurmans,
            2022, *Optimal scaling for locally balanced proposals in discrete spaces*), at most where
            the distance has no more say.
        ordered: whether values are quantities, whose distance counts, or labels. Two values are the same either way.
        adjusted: whether to accept or reject.

    Raises:
        MissingEnergy: a term that takes integers only; see :mod:`boltzmix.compose.relaxation`.
        TypeError: a target with real coordinates.

    Example:
        >>> import torch, boltzmix as bm
        >>> def ring(x):  # spins of 0 or 1
        ...     return -0.5 * ((2 * x - 1) * (2 * x.roll(1, 1) - 1)).sum(1)
        >>> ising = bm.term(ring, kind="energy", event_shape=8, support="integers(2)", relaxed="values")
        >>> draw = bm.sample(ising, chains=50, sampler=bm.MCMC(bm.DiscreteLangevin(), draws=300), seed=0)
        >>> spins = 2.0 * draw.x - 1
        >>> round((spins * spins.roll(1, 2)).mean().item(), 1)  # about tanh(0.5) = 0.46
        0.5
    """

    step_size: float | None = None
    ordered: bool = True
    adjusted: bool = True

    target_acceptance = 0.574

    @property
    def adapts(self) -> bool:
        """Whether the step size is left to adapt."""
        return self.step_size is None

    def tune(self, like: Tensor | None = None) -> Tune:
        """The step size as given."""
        return Kernel.tune(self, like)

    def tuned(self, tune: Tune) -> "DiscreteLangevin":
        """The kernel with its median step size."""
        return replace(self, step_size=float(tune.step_size.median()))

    def adaptation(self) -> "Adaptation":
        """Dual averaging up to the step size beyond which nothing changes."""
        from boltzmix.compose.adaptation.discrete import BoundedSteps

        return BoundedSteps()

    def initial_step_size(self, dim: int) -> float:
        """One: where about a third of free binary coordinates change."""
        return 1.0

    def largest_step_size(self, target: Target) -> float:
        """α at which the distance takes 0.01 from the logarithm of the farthest change."""
        farthest = float(levels_of(target).max()) - 1
        return 50.0 * max(farthest, 1.0) ** 2 if self.ordered else 50.0

    def log_proposal(self, target: Target, state: State, step_size: Tensor) -> Tensor:
        """log q of every value of every coordinate, ``(N, D, K)``."""
        d = estimates(target, state)
        values = torch.arange(d.shape[2], dtype=state.x.dtype, device=d.device)
        gap = values - state.x[..., None]
        distance = gap * gap if self.ordered else (gap != 0).to(gap.dtype)
        scale = step_size[:, None, None] if step_size.ndim else step_size
        return (0.5 * d - distance / (2 * scale)).log_softmax(2)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One proposal for all coordinates of every chain; one evaluation."""
        forward = self.log_proposal(target, state, tune.step_size)
        options: dict[str, Any] = {"dtype": state.x.dtype, "device": state.x.device}
        choice = draw(forward, torch.rand(state.x.shape, generator=noise.generator, **options))
        x = choice.to(state.x.dtype)
        energy, g = self.changes(target, x)
        proposal = replace(state, x=x, energy=energy, score=g.flatten(1))
        back = self.log_proposal(target, proposal, tune.step_size)
        change = back.gather(2, state.x.long()[..., None]) - forward.gather(2, choice[..., None])
        log_ratio = state.energy - energy + change.sum((1, 2))
        usable = self._usable(proposal)
        taken, info = _decide(state, proposal, usable, log_ratio, noise.uniform)
        if self.adjusted:
            return taken, info
        return take(usable, proposal, state), replace(info, accepted=usable, divergent=~usable)
