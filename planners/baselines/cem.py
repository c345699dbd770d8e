"""The cross-entropy method over action sequences."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.planners.baselines.actions import ActionPlanner, Rollouts, noise


@dataclass(frozen=True)
class CEM(ActionPlanner):
    r"""Fit a diagonal Gaussian to the best sequences, again and again.

    Each iteration draws N sequences :math:`u^i \sim N(\mu, \mathrm{diag}\, s^2)`, keeps the K of lowest cost (those
    kept last time compete, too) and moves :math:`\mu` and :math:`s` towards their mean and standard deviation, by the
    share 1 − ``momentum``. The result is the cheapest sequence that was seen, or :math:`\mu` where that is cheaper.

    Rubinstein (1999), "The cross-entropy method for combinatorial and continuous optimization"; Chua et al. (2018),
    "Deep reinforcement learning in a handful of trials using probabilistic dynamics models"; the kept elites are of
    Pinneri et al. (2020).

    Args:
        elites: K, at most half of ``samples``.
        spread: first standard deviation, as a share of half the actions' range.
        momentum: share of the old mean and deviation that stays, in [0, 1).
        floor: lowest standard deviation, as a share of half the range.
    """

    elites: int = 24
    spread: float = 0.5
    momentum: float = 0.1
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 2 <= self.elites <= self.samples // 2:
            raise ValueError(f"CEM: elites is between 2 and half of samples ({self.samples}), got {self.elites}")
        if not (self.spread > 0 and 0 <= self.momentum < 1 and self.floor >= 0):
            raise ValueError(
                f"CEM: spread > 0, momentum in [0, 1), floor ≥ 0, got {self.spread}, {self.momentum}, {self.floor}"
            )

    def search(
        self, rollouts: Rollouts, mean: Tensor, generator: torch.Generator, stop: Callable[[], bool] = lambda: False
    ) -> Tensor:
        """The cheapest sequence seen."""
        low, high = mean.new_tensor(list(self.low)), mean.new_tensor(list(self.high))
        half = (high - low) / 2
        deviation = (self.spread * half).expand_as(mean)
        kept, kept_cost = mean[None], rollouts(mean[None])
        for _ in range(self.iterations):
            drawn = noise(self.samples, mean, self.correlation, generator)
            actions = (mean + deviation * drawn).clamp(low, high)
            actions = torch.cat([kept, actions])
            costs = torch.cat([kept_cost, rollouts(actions[len(kept) :])])
            order = costs.argsort(stable=True)[: self.elites]
            kept, kept_cost = actions[order], costs[order]
            mean = self.momentum * mean + (1 - self.momentum) * kept.mean(0)
            deviation = self.momentum * deviation + (1 - self.momentum) * kept.std(0, correction=0)
            deviation = torch.maximum(deviation, self.floor * half)
            if stop():
                break
        last = rollouts(mean[None])
        return mean if float(last[0]) <= float(kept_cost[0]) else kept[0]
