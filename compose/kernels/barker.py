r"""The Barker proposal: a random walk whose steps lean towards higher density, coordinate by coordinate.

In whitened coordinates, where the score is :math:`g(x) = F^T s(x)`, a step of size :math:`|z|` goes up with probability
:math:`1/(1 + e^{-|z| g})`. Steps :math:`w` therefore have the density :math:`2 \phi_\epsilon(w) / (1 + e^{-w g(x)})`,
and the Metropolis ratio has a closed form. However steep the target, a proposal is never further away than a random
walk's: the gradient turns steps, and does not stretch them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, draw_noise, metropolis
from boltzmix.compose.kernels.line_integral import check_nodes, line_integral


@dataclass(frozen=True)
class BarkerNoise(Noise):
    """Noise with a uniform for the direction of every coordinate, ``turns`` (N, D)."""

    turns: Tensor | None = None

    def __getitem__(self, step: int | slice) -> "BarkerNoise":
        """One transition of a block."""
        assert self.turns is not None
        return BarkerNoise(
            self.normal[step], self.uniform[step], self.jitter[step], self.generator, turns=self.turns[step]
        )


@dataclass(frozen=True)
class Barker(Kernel):
    r"""Barker's proposal with a Metropolis test (Livingstone and Zanella, 2022, The Barker proposal).

    With :math:`x' = x + F w` and :math:`C = F F^T` the inverse mass, it is accepted with probability

    .. math::
        \min\left(1, \frac{p(x')}{p(x)} \prod_i \frac{1 + e^{-w_i g_i(x)}}{1 + e^{w_i g_i(x')}}\right), \qquad
        g(x) = F^T \nabla \log p(x).

    It scales with the dimension like MALA, D^(−1/3) for the squared step. Unlike MALA, whose proposals are thrown far
    away where gradients are steep, it forgives step sizes that are too large for some coordinates or regions.

    Args:
        step_size: ε, the standard deviation of a step, in units of x divided by the square root of the mass; None has
            it adapted to an acceptance of 0.4, the optimum in high dimensions.
        nodes: by keyword, as for :class:`MALA <boltzmix.compose.kernels.langevin.MALA>`.

    Example:
        >>> import torch, boltzmix as bm
        >>> target = bm.Gaussian(torch.zeros(2), torch.tensor([1.0, 100.0]))
        >>> draw = bm.sample(target, chains=20, sampler=bm.MCMC(bm.Barker(), draws=200), seed=0)
        >>> 8 < float(draw.x[..., 1].std()) < 12
        True
    """

    nodes: int = field(default=2, kw_only=True)

    integrates = True
    target_acceptance = 0.4

    def __post_init__(self) -> None:
        """Check the nodes, too."""
        super().__post_init__()
        check_nodes(self, self.nodes)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One move of every chain; one evaluation, and ``nodes`` more on terms that have only a score."""
        turns = getattr(noise, "turns", None)
        if turns is None:
            raise TypeError("Barker needs a uniform for each coordinate; draw its noise with kernel.noise(state)")
        slope = tune.pull(state.score)
        move = tune.column * noise.normal
        move = torch.where(turns < torch.sigmoid(move * slope), move, -move)
        x = state.x + tune.push(move)
        known = target.has_energy
        energy, score = target.energy_and_score(x) if known else (state.energy, target.score(x))
        back = logsigmoid(-move * tune.pull(score)) - logsigmoid(move * slope)
        if known:
            change = state.energy - energy
        else:
            change = line_integral(target, state.x, x - state.x, state.score, score, self.nodes)
        log_ratio = change + back.sum(-1)
        return metropolis(state, State(x, energy, score), log_ratio, noise.uniform, known=known)

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> BarkerNoise:
        """Fresh noise for one transition, or for a block of ``steps``."""
        plain = draw_noise(state.x, generator, steps)
        options: dict[str, Any] = {"generator": generator, "dtype": state.x.dtype, "device": state.x.device}
        turns = torch.rand(plain.normal.shape, **options)
        return BarkerNoise(plain.normal, plain.uniform, plain.jitter, generator, turns=turns)

    def initial_step_size(self, dim: int) -> float:
        """About 0.4 is accepted from 10 to 1000 dimensions."""
        return 1.9 * dim**-0.22
