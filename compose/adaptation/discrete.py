"""Step sizes of discrete kernels: dual averaging up to a bound, since acceptance need not fall as they grow.

Where the energy is nearly a sum over coordinates, every proposal is accepted however far it goes, and an unbounded
search for an acceptance of 0.57 would not end.
"""

import math
from dataclasses import dataclass

import torch

from boltzmix.compose.adaptation.base import Adaptation
from boltzmix.compose.adaptation.windows import Windows, WindowTuner
from boltzmix.compose.kernels.base import Kernel, State, Target


@dataclass(frozen=True)
class BoundedSteps(Adaptation):
    """Dual averaging of the step size of a kernel with a ``largest_step_size(target)``."""

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "BoundedTuner":
        """A tuner for ``warmup`` transitions from ``state``."""
        return BoundedTuner(kernel, state, warmup, kernel.largest_step_size(target))  # pyright: ignore[reportAttributeAccessIssue]


class BoundedTuner(WindowTuner):
    """A warm-up in progress."""

    def __init__(self, kernel: Kernel, state: State, warmup: int, largest: float) -> None:
        """Begin with small step sizes."""
        self.largest = largest
        super().__init__(Windows(mass=None), kernel, state, warmup)

    def _retune(self) -> None:
        averaging = self.averaging
        averaging.step_size = averaging.step_size.clamp(max=self.largest)
        averaging.average = averaging.average.clamp(max=math.log(self.largest))
        super()._retune()
