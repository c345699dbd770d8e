r"""Dual averaging of a step size (Nesterov, 2009; Hoffman and Gelman, 2014, *The No-U-Turn sampler*).

With the acceptance :math:`\alpha_t` of transition t and the aim δ,

.. math::
    H_t = \left(1 - \tfrac{1}{t + t_0}\right) H_{t-1} + \tfrac{1}{t + t_0} (\delta - \alpha_t), \qquad
    \log \epsilon_{t+1} = \mu - \tfrac{\sqrt{t}}{\gamma} H_t, \qquad
    \log \bar\epsilon_{t+1} = t^{-\kappa} \log \epsilon_{t+1} + (1 - t^{-\kappa}) \log \bar\epsilon_t .
"""

import math
from typing import Any

import torch
from torch import Tensor

_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75


class DualAveraging:
    """Step sizes of one or many chains on their way to an acceptance.

    Args:
        step_size: () or (N,), where to begin; the search is centred at ten times as much.
        goal: the acceptance δ in (0, 1).
    """

    def __init__(self, step_size: Tensor, goal: float) -> None:
        """Begin at ``step_size``."""
        self.goal = goal
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Begin anew."""
        self.step_size = step_size
        self.centre = (10 * step_size).log()
        self.error = torch.zeros_like(step_size)
        self.average = step_size.log()
        self.count = 0

    def update(self, acceptance: Tensor) -> None:
        """Learn from the acceptance of one transition, shaped like the step size."""
        self.count += 1
        t = self.count
        self.error = self.error + (self.goal - acceptance - self.error) / (t + _T0)
        log_step = self.centre - math.sqrt(t) / _GAMMA * self.error
        weight = t**-_KAPPA
        self.average = weight * log_step + (1 - weight) * self.average
        self.step_size = log_step.exp()

    def averaged(self) -> Tensor:
        """The averaged step size, which a run keeps."""
        return self.average.exp()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        names = ("step_size", "centre", "error", "average")
        return {name: getattr(self, name) for name in names}, {"count": self.count}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        for name in ("step_size", "centre", "error", "average"):
            setattr(self, name, tensors[name])
        self.count = state["count"]
