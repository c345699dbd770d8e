"""Random-walk Metropolis: steps that know nothing of the target."""

from dataclasses import dataclass

import torch

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, energy_of, metropolis


@dataclass(frozen=True)
class RandomWalk(Kernel):
    r"""Random-walk Metropolis with Gaussian steps (Metropolis et al., 1953; Gelman, Gilks and Roberts, 1997).

    :math:`x' = x + \epsilon F \xi` with :math:`\xi \sim N(0, I)` and the inverse mass :math:`C = F F^T`, accepted with
    probability :math:`\min(1, p(x') / p(x))`. It evaluates energies only, so it moves on densities without gradients;
    ``State.score`` is NaN. The number of steps to an independent draw grows like D.

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted to an acceptance of
            0.234, the optimum in high dimensions (0.44 is best in one).

    Example:
        >>> import torch, boltzmix as bm
        >>> steps = bm.term(lambda x: x.abs().floor().sum(-1), kind="energy", event_shape=1)  # no gradient anywhere
        >>> draw = bm.sample(steps, chains=50, sampler=bm.MCMC(bm.RandomWalk(), draws=400), seed=0)
        >>> 0.58 < float((draw.x.abs() < 1).float().mean()) < 0.68  # exactly 1 − 1/e
        True
    """

    target_acceptance = 0.234
    uses_score = False

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One move of every chain; one evaluation of energies."""
        x = state.x + tune.column * tune.push(noise.normal)
        proposal = State(x, energy_of(target, x), torch.full_like(x, torch.nan))
        return metropolis(state, proposal, state.energy - proposal.energy, noise.uniform, scored=False)

    def initial_step_size(self, dim: int) -> float:
        """2.38 / √dim."""
        return 2.38 * dim**-0.5
