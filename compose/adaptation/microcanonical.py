r"""Step size, mass and trajectory length of microcanonical dynamics (Robnik, De Luca, Silverstein and Seljak, 2023;
Robnik and Seljak, 2024; Robnik, Cohn-Gordon and Seljak, 2025, for the adjusted kernel).

=========  ==========================================================================================
part       adapts
=========  ==========================================================================================
0 – 15 %   the step size, until chains have found the typical set
– 65 %     step size, and in windows of doubling width the inverse mass; :math:`L = \sqrt D` in whitened units
– 88 %     step size, and at the end L from the autocorrelation of the draws since 70 %
– 100 %    the step size for this L
=========  ==========================================================================================

Unadjusted, the step size is that at which the variance of the energy error is a given number v for each dimension.
The variance grows as ε⁶, so every step of every chain says where that is, :math:`\hat\epsilon^{-6} = \xi / \epsilon^6`
with :math:`\xi = \Delta E^2 / (D v)`, and their weighted mean over chains and the last steps is taken, with weights
:math:`\exp(-(\log\xi)^2 / (2 \cdot 9^2))` that are small where the law does not hold. Adjusted, dual averaging
finds the acceptance asked for.

The length is a fraction of the distance between effective draws: of :math:`n/\mathrm{ESS}`, averaged over coordinates,
times the distance that a transition goes. The papers have 0.4 unadjusted and 0.3 adjusted. On a hierarchy, a regression
and a Gaussian, 0.6 and 0.75 gave up to 60 % more effective draws of means for an evaluation, and 0.75 fewer of squares,
as half turns do.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, check_acceptance, joined, part
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.masses import MassEstimate, check_mass
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.kernels.base import Info, Kernel, State, Target, Tune
from boltzmix.compose.kernels.mass import Mass, mass_from
from boltzmix.compose.kernels.microcanonical import MicrocanonicalInfo, MicrocanonicalLangevin

_NUMBERS = 2**22  # of a history, at most
_STEPS = 100.0  # in a trajectory, on average and at most
_COORDINATES = 128  # of which the autocorrelation is measured


@dataclass(frozen=True)
class Microcanonical(Adaptation):
    """Tunes :class:`~boltzmix.compose.kernels.microcanonical.MicrocanonicalLangevin`, with all chains together.

    Args:
        energy_variance: of the energy error of a step, for each dimension; for the unadjusted kernel, whose bias it
            bounds.
        target_acceptance: for the adjusted kernel; None is the kernel's own, 0.9.
        mass: ``"diagonal"``, ``"dense"``, ``"low-rank"`` or None; a mass that the kernel was given is left.
        estimator: ``"fisher"`` or ``"welford"``, see :mod:`boltzmix.compose.adaptation.masses`.
        length_factor: what fraction of the distance between effective draws L is; None is 0.6 unadjusted and 0.75
            adjusted. A length that the kernel was given is left.

    Raises:
        ValueError: numbers out of their range, unknown names, or a kernel with a step size of its own.
        TypeError: another kernel.

    Example:
        >>> import torch, boltzmix as bm
        >>> p = bm.Gaussian(torch.zeros(5), torch.tensor([0.01, 1.0, 1.0, 1.0, 100.0]))
        >>> draw = bm.sample(p, chains=4, sampler=bm.MCMC(bm.MicrocanonicalLangevin(), warmup=300, draws=100), seed=0)
        >>> tuple(draw.x.shape)
        (4, 100, 5)
    """

    energy_variance: float = 5e-4
    target_acceptance: float | None = None
    mass: str | None = "diagonal"
    estimator: str = "fisher"
    length_factor: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of their range and unknown names."""
        if not 0 < self.energy_variance < math.inf:
            raise ValueError(f"energy_variance is positive, got {self.energy_variance!r}")
        check_acceptance(self.target_acceptance)
        if self.length_factor is not None and not 0 < self.length_factor < math.inf:
            raise ValueError(f"length_factor is positive, got {self.length_factor!r}")
        check_mass(self.mass, self.estimator)

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "MicrocanonicalTuner":
        """A tuner for ``warmup`` transitions from ``state``."""
        if not isinstance(kernel, MicrocanonicalLangevin):
            raise TypeError(f"Microcanonical tunes MicrocanonicalLangevin, got {type(kernel).__name__}; use Windows()")
        if kernel.step_size is not None:
            raise ValueError(
                f"MicrocanonicalLangevin(step_size={kernel.step_size!r}) leaves nothing to adapt; leave step_size out"
            )
        return MicrocanonicalTuner(self, kernel, state, warmup)


class EnergyVariance:
    """Step size at which the energy error has a given variance; chains share it.

    Args:
        step_size: (), where to begin.
        goal: E[ΔE²], for all dimensions together.
    """

    def __init__(self, step_size: Tensor, goal: float) -> None:
        """Begin at ``step_size``."""
        self.goal = goal
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Begin anew."""
        self.step_size = step_size
        self.total, self.weight = torch.zeros_like(step_size), torch.zeros_like(step_size)
        self.count = 0

    def update(self, error: Tensor, refused: Tensor) -> None:
        """Learn from the energy errors ``(N,)`` of one step; refused ones count as a variance 10 times too large."""
        self.count += 1
        # outliers say no more than "at least a thousand times too large", or one chain would decide for all
        xi = torch.where(refused, 10.0, (error * error / self.goal).clamp(1e-8, 1e3))
        weight = (-0.5 * (xi.log() / 9.0) ** 2).exp()
        keep = 1.0 - 2.0 / (min(self.count, 150) + 1.0)  # forgets in half the steps so far, and at most 75
        self.total = keep * self.total + (weight * xi).mean() / self.step_size**6
        self.weight = keep * self.weight + weight.mean()
        self.step_size = (self.total / self.weight) ** (-1 / 6)

    def averaged(self) -> Tensor:
        """The step size as it stands."""
        return self.step_size

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        return {"step_size": self.step_size, "total": self.total, "weight": self.weight}, {"count": self.count}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.step_size, self.total, self.weight = (tensors[name] for name in ("step_size", "total", "weight"))
        self.count = state["count"]


def phases(warmup: int) -> tuple[int, list[int], tuple[int, int]]:
    """Where the first part ends, where the windows of the mass end, and which draws tell the length."""
    if warmup < 20:
        return warmup, [], (warmup, warmup)
    first, last = round(0.15 * warmup), round(0.65 * warmup)
    widths = [1.0, 2.0, 4.0] if warmup < 400 else [1.0, 2.0, 4.0, 8.0]
    ends = [first + round((last - first) * sum(widths[: k + 1]) / sum(widths)) for k in range(len(widths))]
    return first, ends, (round(0.7 * warmup), round(0.88 * warmup))


def _shared(info: Info) -> Tensor:
    """The mean acceptance of trajectories that stay where the target is defined.

    Those that end beyond an edge say more of their length than of the step size, unless they are most of them.
    """
    assert isinstance(info, MicrocanonicalInfo)
    assert info.energy_error is not None
    inside = torch.isfinite(info.energy_error)
    acceptance = torch.where(inside, info.acceptance, 0.0)
    count = inside.sum()
    return torch.where(2 * count > len(inside), acceptance.sum() / count.clamp(min=1), acceptance.mean())


class MicrocanonicalTuner(Tuner):
    """A warm-up in progress."""

    def __init__(self, settings: Microcanonical, kernel: MicrocanonicalLangevin, state: State, warmup: int) -> None:
        """Begin with the kernel's own mass and guess."""
        x = state.x
        self.settings, self.kernel, self.like = settings, kernel, x
        self.mass: Mass | None = kernel.inverse_mass  # pyright: ignore[reportAttributeAccessIssue]
        self.first, self.ends, self.measured = phases(warmup)
        if settings.mass is None or self.mass is not None:
            self.ends = []
        self.warmup, self.step = warmup, 0
        self.fresh = x.new_tensor(kernel.initial_step_size(x.shape[1]))
        self.search = self._search()
        self.window = self._empty()
        self.length = x.new_tensor(kernel.length or math.sqrt(x.shape[1]))
        rows = max(2, _NUMBERS // max(1, (self.measured[1] - self.measured[0]) * min(x.shape[1], _COORDINATES)))
        stride = -(-x.shape[1] // _COORDINATES)
        self.rows, self.columns = slice(0, rows), slice(0, None, stride)
        self.history: list[Tensor] = []
        self._retune()

    def _search(self) -> DualAveraging | EnergyVariance:
        if not self.kernel.adjusted:
            return EnergyVariance(self.fresh, self.settings.energy_variance * self.like.shape[1])
        goal = self.settings.target_acceptance or self.kernel.target_acceptance
        return DualAveraging(self.fresh.expand(len(self.like)), goal)  # a step size for each chain at first

    def _empty(self) -> MassEstimate:
        return MassEstimate(self.settings.mass or "diagonal", self.settings.estimator, self.like)

    def _retune(self) -> None:
        step, length = self.search.step_size, self.length
        if self.kernel.adjusted:
            # chains that look for the typical set take few steps, and all as many
            if self.step < self.first:
                length = 2.0 * step
            else:
                length = torch.minimum(length, _STEPS * step)
        self.tune = Tune(step, self.mass, length)

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        if isinstance(self.search, EnergyVariance):
            assert isinstance(info, MicrocanonicalInfo)
            assert info.energy_error is not None
            self.search.update(info.energy_error, ~info.accepted)
        else:
            alone = self.search.step_size.ndim > 0
            self.search.update(info.acceptance if alone else _shared(info))
        self.step += 1
        if self.step == self.first < self.warmup:
            # chains share it from here on, and what those in the tails said is forgotten
            self.search.restart(self.search.averaged().median())
        if self.ends and self.first < self.step <= self.ends[-1]:
            self.window.update(state.x, state.score)
            if self.step in self.ends:
                self._close_window()
        begin, end = self.measured
        if begin < self.step <= end and self.kernel.length is None:
            self.history.append(state.x[self.rows, self.columns])
            if self.step == end:
                self._measure()
        self._retune()

    def _close_window(self) -> None:
        mass, self.window = self.window.estimate(), self._empty()
        if mass is None:
            return  # a coordinate that never moved says nothing of its scale
        self.mass = mass
        self.search.restart(self.fresh)

    def _measure(self) -> None:
        step, draws = self.search.averaged(), torch.stack(self.history, 1)
        self.history = []
        if draws.shape[1] < 10:
            return
        spacing = draws.shape[0] * draws.shape[1] / ess(draws)  # transitions for one effective draw
        spacing = spacing[torch.isfinite(spacing)]
        if not len(spacing):
            return
        adjusted = self.kernel.adjusted
        distance = torch.maximum(torch.minimum(self.length, _STEPS * step), step) if adjusted else step
        self.length = (self.settings.length_factor or (0.75 if adjusted else 0.6)) * distance * float(spacing.mean())
        self.search.restart(step)

    def finish(self) -> Tune:
        """The last step size, mass and length."""
        step = self.search.averaged()
        step = step.median() if step.ndim else step
        length = torch.minimum(self.length, _STEPS * step) if self.kernel.adjusted else self.length
        self.tune = Tune(step, self.mass, length)
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        search, count = self.search.snapshot()
        window, seen = self.window.snapshot()
        mass = {} if self.mass is None else self.mass.tensors()
        tensors = joined(search=search, window=window, mass=mass) | {"length": self.length}
        if self.history:
            tensors["history"] = torch.stack(self.history)
        return tensors, {"step": self.step, "search": count, "window": seen}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.search.restore(part(tensors, "search/"), state["search"])
        self.window.restore(part(tensors, "window/"), state["window"])
        self.step = state["step"]
        self.mass = mass_from(part(tensors, "mass/"))
        self.length = tensors["length"]
        self.history = list(tensors["history"]) if "history" in tensors else []
        self._retune()
