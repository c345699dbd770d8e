"""Model predictive path integral control."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.planners.baselines.actions import ActionPlanner, Rollouts, noise, whiten


@dataclass(frozen=True)
class MPPI(ActionPlanner):
    r"""Average the noise of sampled sequences by the exponential of their cost.

    With :math:`v^i = u + \varepsilon^i`, :math:`\varepsilon^i \sim N(0, \Sigma)`, one iteration is

    .. math::
        u \leftarrow u + \sum_i w_i \varepsilon^i, \qquad
        w_i \propto \exp\!\Big(-\tfrac1\lambda \big(J(v^i) + \gamma \textstyle\sum_t u_t^\top \Sigma^{-1}
        \varepsilon^i_t\big)\Big).

    With :math:`\gamma = \lambda` this is importance sampling of the optimal distribution
    :math:`\propto e^{-J/\lambda}\, N(v; 0, \Sigma)`, so the actions pay :math:`\tfrac\lambda2 u^\top \Sigma^{-1} u`
    beside J: on a linear-quadratic problem repeated iterations lead to the regulator of cost
    :math:`J + \tfrac12 \sum u^\top R u` with :math:`R = \lambda \Sigma^{-1}` (up to clipping and the samples' noise).
    ``control_cost`` is :math:`\gamma / \lambda`; 0 weighs by J alone. Where actions are clipped, noise is
    what is left of it.

    Williams et al. (2017), "Information theoretic MPC for model-based reinforcement learning".

    Args:
        temperature: λ, in units of cost.
        spread: standard deviation of the noise, as a share of half the actions' range.
        control_cost: γ/λ in [0, 1]. With correlated noise uᵀ Σ⁻¹ ε runs over the whole sequence.
        decay: the spread's factor from one iteration to the next, in (0, 1].
    """

    temperature: float = 0.05
    spread: float = 0.3
    correlation: float = 0.8
    control_cost: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not (self.temperature > 0 and self.spread > 0 and 0 <= self.control_cost <= 1 and 0 < self.decay <= 1):
            raise ValueError(
                "MPPI: temperature > 0, spread > 0, control_cost in [0, 1], decay in (0, 1], got "
                f"{self.temperature}, {self.spread}, {self.control_cost}, {self.decay}"
            )

    def search(
        self, rollouts: Rollouts, mean: Tensor, generator: torch.Generator, stop: Callable[[], bool] = lambda: False
    ) -> Tensor:
        """The mean sequence after the last iteration."""
        low, high = mean.new_tensor(list(self.low)), mean.new_tensor(list(self.high))
        for k in range(self.iterations):
            deviation = self.decay**k * self.spread * (high - low) / 2
            drawn = deviation * noise(self.samples, mean, self.correlation, generator)
            actions = (mean + drawn).clamp(low, high)
            drawn = actions - mean
            costs = rollouts(actions)
            if self.control_cost:
                inner = whiten(mean / deviation, self.correlation) * whiten(drawn / deviation, self.correlation)
                costs = costs + self.control_cost * self.temperature * inner.sum((-1, -2))
            mean = mean + torch.einsum("n,nta->ta", weights(costs, self.temperature), drawn)
            if stop():
                break
        return mean


def weights(costs: Tensor, temperature: float) -> Tensor:
    """softmax(−J/λ) over sequences of finite cost, ``(N,) -> (N,)``.

    Raises:
        FloatingPointError: no sequence has a finite cost.
    """
    if not bool((costs < math.inf).any()):
        raise FloatingPointError(f"all {len(costs)} sequences cost +inf; more samples, or a cost that is finite")
    return torch.softmax(-costs / temperature, dim=0)
