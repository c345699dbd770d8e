"""Windowed adaptation of step size and inverse mass, after Stan (Carpenter et al., 2017).

======  ===================================================================
phase   adapts
======  ===================================================================
first   the step size, until chains have found the typical set
middle  step size, and in windows of doubling width the inverse mass
last    the step size for the final mass
======  ===================================================================

Draws of all chains estimate one mass together. In the first half every chain has a step size of its own, so that one in
the tails does not hold back the others; then they share the median as a new start, and the average over chains adapts
it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.moments import Moments
from boltzmix.compose.kernels.base import Info, Kernel, State, Target, Tune
from boltzmix.compose.kernels.mass import Diagonal, Mass


@dataclass(frozen=True)
class Windows(Adaptation):
    """Dual averaging of the step size and a mass estimated in windows.

    Args:
        mass: ``"diagonal"`` or None, which leaves the kernel's own.
    """

    mass: str | None = "diagonal"

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "WindowTuner":
        """A tuner for ``warmup`` transitions from ``state``."""
        return WindowTuner(self, kernel, state, warmup)


def window_ends(warmup: int, first: int = 75, base: int = 25, last: int = 50) -> tuple[int, list[int]]:
    """Where the first phase ends, and the ends of the windows that estimate a mass.

    Short warm-ups keep the proportions 15 : 75 : 10; below 20 transitions there are no windows.
    """
    if warmup < 20:
        return warmup, []
    if first + base + last > warmup:
        first, last = int(0.15 * warmup), int(0.1 * warmup)
        return first, [warmup - last]
    ends, at, width = [], first, base
    while at < warmup - last:
        end = at + width
        if end + 2 * width > warmup - last:
            end = warmup - last
        ends.append(end)
        at, width = end, 2 * width
    return first, ends


class WindowTuner(Tuner):
    """A windowed warm-up in progress."""

    def __init__(self, settings: Windows, kernel: Kernel, state: State, warmup: int) -> None:
        """Begin with small step sizes and the kernel's own mass."""
        x = state.x
        self.warmup, self.step = warmup, 0
        self.first, self.ends = window_ends(warmup) if settings.mass else (warmup, [])
        self.fresh = kernel.initial_step_size(x.shape[1])
        self.mass: Mass | None = kernel.inverse_mass  # pyright: ignore[reportAttributeAccessIssue]
        self.adapts = kernel.step_size is None
        guess = torch.full((x.shape[0],), kernel.step_size or 0.1 * self.fresh, dtype=x.dtype, device=x.device)
        self.averaging = DualAveraging(guess, kernel.target_acceptance)
        self.moments = Moments(x)
        self._retune()

    def _retune(self) -> None:
        self.tune = Tune(self.averaging.step_size, self.mass)

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        if not self.adapts:
            return
        acceptance, half = info.acceptance, self.warmup // 2
        if self.step == half:
            self.averaging.restart(self._shared())
        if self.step >= half:
            acceptance = acceptance.mean().expand_as(acceptance)
        self.averaging.update(acceptance)
        self.step += 1
        if self.ends and self.first <= self.step - 1 < self.ends[-1]:
            self.moments.update(state.x)
            if self.step in self.ends:
                self._estimate(state.x)
        self._retune()

    def _shared(self) -> Tensor:
        steps = self.averaging.averaged()
        return torch.full_like(steps, float(steps.median()))

    def _estimate(self, x: Tensor) -> None:
        variance = self.moments.covariance().to(x)
        self.moments = Moments(x)
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return  # a coordinate that never moved says nothing of its scale
        self.mass = Diagonal(variance)
        self.averaging.restart(torch.full_like(self.averaging.step_size, self.fresh))

    def finish(self) -> Tune:
        """The averaged step size and the last mass."""
        self.tune = Tune(self.averaging.averaged() if self.adapts else self.averaging.step_size, self.mass)
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        averaging, count = self.averaging.snapshot()
        moments, seen = self.moments.snapshot()
        tensors = {f"averaging/{k}": v for k, v in averaging.items()} | {f"moments/{k}": v for k, v in moments.items()}
        if isinstance(self.mass, Diagonal):
            tensors["mass"] = self.mass.variance
        return tensors, {"step": self.step, "averaging": count, "moments": seen}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        self.averaging.restore(part("averaging/"), state["averaging"])
        self.moments.restore(part("moments/"), state["moments"])
        self.step = state["step"]
        if "mass" in tensors:
            self.mass = Diagonal(tensors["mass"])
        self._retune()
