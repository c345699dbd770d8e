"""Windowed adaptation of step size and inverse mass, after Stan (Carpenter et al., 2017).

======  ===================================================================
phase   adapts
======  ===================================================================
first   the step size, until chains have found the typical set; a third of the way, a first
        diagonal mass from draws and scores, which sees scales before chains have crossed them
middle  step size, and in windows of doubling width the inverse mass
last    the step size for the final mass
======  ===================================================================

Draws of all chains estimate one mass together. Until the last window every chain has a step size of its own, so that
one in the tails does not hold back the others; then they share one, and the average acceptance over chains adapts it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, check_acceptance, joined, part
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.masses import MassEstimate, check_mass
from boltzmix.compose.errors import NonFinite
from boltzmix.compose.kernels.base import Info, Kernel, State, Target, Tune
from boltzmix.compose.kernels.mass import Mass, mass_from


@dataclass(frozen=True)
class Windows(Adaptation):
    """Dual averaging of the step size, and an inverse mass estimated in windows of doubling width.

    Args:
        mass: ``"diagonal"``, ``"dense"`` (for up to some hundreds of correlated coordinates), ``"low-rank"``
            (for more), or None, which leaves the kernel's own; a mass that the kernel was given is left, too.
        estimator: ``"welford"`` from the variance of draws, or ``"fisher"`` from draws and scores, which needs fewer
            draws; :mod:`boltzmix.compose.adaptation.masses` has the formulas.
        target_acceptance: that the step size aims at; None is the kernel's own.

    Example:
        >>> import torch
        >>> from boltzmix.compose import HMC, MCMC, Gaussian, sample
        >>> p = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.99], [0.99, 1.0]]))
        >>> draw = sample(p, chains=4, sampler=MCMC(HMC(), draws=100, adapt=Windows(mass="dense")), seed=0)
        >>> tuple(draw.x.shape)
        (4, 100, 2)
    """

    mass: str | None = "diagonal"
    estimator: str = "welford"
    target_acceptance: float | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names and an acceptance outside (0, 1)."""
        check_mass(self.mass, self.estimator)
        check_acceptance(self.target_acceptance)

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "WindowTuner":
        """A tuner for ``warmup`` transitions from ``state``.

        Raises:
            ValueError: the kernel has a step size of its own, or none at all.
            TypeError: the kernel is parallel tempering, whose temperatures are to be adapted with its steps.
        """
        name = type(kernel).__name__
        if hasattr(kernel, "temperatures"):
            raise TypeError(f"Windows adapts one kernel alone; {name} takes adapt=True, or adapt=Temperatures(…)")
        if kernel.step_size is None and not kernel.adapts:
            raise ValueError(f"{name} has no step size to adapt; leave adapt= out")
        if kernel.step_size is not None:
            raise ValueError(
                f"{type(kernel).__name__}(step_size={kernel.step_size!r}) leaves nothing to adapt; leave step_size out"
            )
        if self.mass is not None and self.estimator == "fisher" and not bool(torch.isfinite(state.score).all()):
            raise ValueError(f"estimator='fisher' needs scores and {type(kernel).__name__} has none; use 'welford'")
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
        self.step, self.settings, self.like = 0, settings, x
        self.mass: Mass | None = kernel.inverse_mass  # pyright: ignore[reportAttributeAccessIssue]
        windowed = settings.mass is not None and self.mass is None
        self.first, self.ends = window_ends(warmup) if windowed else (warmup, [])
        self.early = self.first // 3 if self.ends and bool(torch.isfinite(state.score).all()) else 0
        self.shared_from = self.ends[-2] if len(self.ends) > 1 else warmup // 2
        self.fresh = kernel.initial_step_size(x.shape[1])
        guess = torch.full((x.shape[0],), 0.1 * self.fresh, dtype=x.dtype, device=x.device)
        self.averaging = DualAveraging(guess, settings.target_acceptance or kernel.target_acceptance)
        self.window = self._empty()
        self._retune()

    def _empty(self) -> MassEstimate:
        if self.step < self.early:
            return MassEstimate("diagonal", "fisher", self.like)
        return MassEstimate(self.settings.mass or "diagonal", self.settings.estimator, self.like)

    def _retune(self) -> None:
        try:
            self.tune = Tune(self.averaging.step_size, self.mass)
        except ValueError as error:
            raise NonFinite(
                f"no step size is small enough: after {self.step} transitions of the warm-up it is "
                f"{float(self.averaging.step_size.min()):.1g} and proposals are still rejected, so the energy or "
                "score is not finite, or not continuous, around where chains are; test the target near its starts, "
                "or give better ones with init="
            ) from error

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        acceptance = info.acceptance
        if self.step == self.shared_from:
            self.averaging.restart(torch.full_like(acceptance, float(self.averaging.averaged().median())))
        if self.step >= self.shared_from:
            acceptance = acceptance.mean().expand_as(acceptance)
        self.averaging.update(acceptance)
        self.step += 1
        if self.step <= self.early or (self.ends and self.first < self.step <= self.ends[-1]):
            self.window.update(state.x, state.score)
            if self.step in (self.early, *self.ends):
                self._close_window()
        self._retune()

    def _close_window(self) -> None:
        mass, self.window = self.window.estimate(), self._empty()
        if mass is None:
            return  # a coordinate that never moved says nothing of its scale
        self.mass = mass
        self.averaging.restart(torch.full_like(self.averaging.step_size, self.fresh))

    def finish(self) -> Tune:
        """The averaged step size and the last mass."""
        self.tune = Tune(self.averaging.averaged(), self.mass)
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        averaging, count = self.averaging.snapshot()
        window, seen = self.window.snapshot()
        mass = {} if self.mass is None else self.mass.tensors()
        tensors = joined(averaging=averaging, window=window, mass=mass)
        return tensors, {"step": self.step, "averaging": count, "window": seen}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.averaging.restore(part(tensors, "averaging/"), state["averaging"])
        self.step = state["step"]
        self.window = self._empty()
        self.window.restore(part(tensors, "window/"), state["window"])
        self.mass = mass_from(part(tensors, "mass/"))
        self._retune()
