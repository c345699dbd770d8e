r"""The length of random HMC trajectories from the change in the estimator of the expected square, for many chains.

For the state x and the end x' of a trajectory of length t = 2 u T, in whitened coordinates,

.. math::
    \mathrm{ChEES} = \tfrac{1}{4}\, E\left[\left(\|x' - E x'\|^2 - \|x - E x\|^2\right)^2\right], \qquad
    \frac{\partial\, \mathrm{ChEES}}{\partial \log T}
    = E\left[t \left(\|x' - E x'\|^2 - \|x - E x\|^2\right) \langle x' - E x', v' \rangle\right] ,

estimated over the chains with their acceptance probabilities as weights, and log T climbs it by Adam. Squares of
distances decorrelate more slowly than the coordinates themselves, and do not profit from antithetic half periods.

Source: Hoffman, Radul and Sountsov (2021), *An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo*. Differences: a diagonal mass is estimated in the first half of the warm-up, and lengths are uniform, not
quasi-random.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, check_acceptance, joined, part
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.masses import MassEstimate
from boltzmix.compose.adaptation.windows import window_ends
from boltzmix.compose.kernels.base import Info, Kernel, State, Target, Tune
from boltzmix.compose.kernels.hmc import HMC, Trajectory
from boltzmix.compose.kernels.mass import Diagonal, Mass, mass_from

_FEWEST = 8
_RATE, _MEMORY = 0.025, 0.95  # Adam's, those of the paper
_NUMBERS = ("step", "log_length", "square", "count", "log_average", "averaged")


@dataclass(frozen=True)
class ChEES(Adaptation):
    """Step size, diagonal mass and trajectory length of ``HMC(num_leapfrog=None)``, from at least eight chains.

    Args:
        target_acceptance: that the step size aims at, in the harmonic mean over chains.
        mass: ``"diagonal"``, or None, which leaves the kernel's own.

    Raises:
        ValueError: another kernel, too few chains, or a mass that is not diagonal.

    Example:
        >>> import torch
        >>> from boltzmix.compose import HMC, MCMC, Gaussian, sample
        >>> p = Gaussian(torch.zeros(5), 4.0)
        >>> draw = sample(p, chains=64, sampler=MCMC(HMC(num_leapfrog=None), draws=50), seed=0)
        >>> tuple(draw.x.shape)
        (64, 50, 5)
    """

    target_acceptance: float = 0.651
    mass: str | None = "diagonal"

    def __post_init__(self) -> None:
        """Refuse what cannot be adapted."""
        check_acceptance(self.target_acceptance)
        if self.mass not in ("diagonal", None):
            raise ValueError(f"ChEES adapts a 'diagonal' mass or None, got {self.mass!r}")

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "ChEESTuner":
        """A tuner for ``warmup`` transitions from ``state``."""
        if not isinstance(kernel, HMC) or not kernel.adjusted or kernel.num_leapfrog is not None:
            raise ValueError(f"ChEES adapts HMC(num_leapfrog=None), got {kernel}")
        if kernel.step_size is not None or kernel.length is not None:
            raise ValueError(
                "ChEES adapts step size and length together: leave out both, or give both with adapt=False"
            )
        if len(state.x) < _FEWEST:
            raise ValueError(
                f"ChEES learns from the spread over at least {_FEWEST} chains, got {len(state.x)}; use more chains, "
                "HMC(num_leapfrog=…), or NUTS()"
            )
        if kernel.inverse_mass is not None and not isinstance(kernel.inverse_mass, Diagonal):
            raise ValueError("ChEES measures distances with a diagonal mass; leave out inverse_mass or give (D,)")
        return ChEESTuner(self, kernel, state, warmup)


class ChEESTuner(Tuner):
    """A warm-up of random trajectories in progress."""

    def __init__(self, settings: ChEES, kernel: HMC, state: State, warmup: int) -> None:
        """Begin with one small leapfrog."""
        x = state.x
        self.kernel, self.like, self.warmup, self.step = kernel, x, warmup, 0
        self.mass: Mass | None = kernel.inverse_mass  # pyright: ignore[reportAttributeAccessIssue]
        windowed = settings.mass is not None and self.mass is None
        self.first, self.ends = window_ends(warmup // 2, first=30, last=20) if windowed else (warmup, [])
        self.fresh = kernel.initial_step_size(x.shape[1])
        guess = torch.full((), 0.1 * self.fresh, dtype=x.dtype, device=x.device)
        self.averaging = DualAveraging(guess, settings.target_acceptance)
        self.log_length, self.square, self.count = float(guess.log()), 0.0, 0
        self.log_average, self.averaged = 0.0, 0
        self.window = MassEstimate("diagonal", "welford", x)
        self._retune(self.averaging.step_size, self.log_length)

    def _retune(self, step_size: Tensor, log_length: float) -> None:
        self.tune = Tune(step_size, self.mass, torch.full_like(step_size, math.exp(log_length)))

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        assert isinstance(info, Trajectory)
        self._climb(before.x, info)
        harmonic = 1.0 / (1.0 / info.acceptance.clamp(min=1e-4)).mean()  # one bad chain counts
        self.averaging.update(harmonic)
        self.step += 1
        if self.ends and self.first < self.step <= self.ends[-1]:
            self.window.update(state.x, state.score)
            if self.step in self.ends:
                self._close_window()
        if self.step > 0.75 * self.warmup:
            self.averaged += 1
            self.log_average += (self.log_length - self.log_average) / self.averaged
        self._retune(self.averaging.step_size, self.log_length)

    def _climb(self, start: Tensor, info: Trajectory) -> None:
        """One step of Adam on log T."""
        end, velocity, acceptance, leapfrogs = info.end, info.velocity, info.acceptance, info.num_leapfrog
        assert end is not None
        assert velocity is not None
        assert leapfrogs is not None
        good = torch.isfinite(end).all(1) & torch.isfinite(velocity).all(1) & (acceptance > 0)
        if int(good.sum()) < 2:
            return
        scale = 1.0 if self.mass is None else self.mass.variances.sqrt()
        start, end = ((t[good] / scale).double() for t in (start, end))
        start, end = start - start.mean(0), end - end.mean(0)
        gain = (end * end).sum(1) - (start * start).sum(1)
        slopes = gain * (end * velocity[good].double()).sum(1)
        weights = acceptance[good].double()
        length = float(leapfrogs[0]) * float(self.tune.step_size)
        slope = length * float((weights * slopes).sum() / weights.sum())
        self.count += 1
        self.square = _MEMORY * self.square + (1 - _MEMORY) * slope * slope
        scaled = slope / math.sqrt(self.square / (1 - _MEMORY**self.count) + 1e-300)
        longest = math.log(1000.0) + float(self.averaging.step_size.log())
        self.log_length = min(self.log_length + _RATE * max(-5.0, min(5.0, scaled)), longest)

    def _close_window(self) -> None:
        mass, self.window = self.window.estimate(), MassEstimate("diagonal", "welford", self.like)
        if mass is None:
            return
        old = torch.ones_like(mass.variances) if self.mass is None else self.mass.variances
        # lengths are in whitened units: of the widest coordinate, which takes the longest
        self.log_length -= 0.5 * math.log(float((mass.variances / old).max()))
        self.mass = mass
        self.averaging.restart(torch.full_like(self.averaging.step_size, self.fresh))
        self.log_length = max(self.log_length, math.log(self.fresh))
        self.square, self.count = 0.0, 0

    def finish(self) -> Tune:
        """The averaged step size and length, and the last mass."""
        self._retune(self.averaging.averaged(), self.log_average if self.averaged else self.log_length)
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        averaging, count = self.averaging.snapshot()
        window, seen = self.window.snapshot()
        mass = {} if self.mass is None else self.mass.tensors()
        tensors = joined(averaging=averaging, window=window, mass=mass)
        record: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        return tensors, record | {"averaging": count, "window": seen}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.averaging.restore(part(tensors, "averaging/"), state["averaging"])
        self.window.restore(part(tensors, "window/"), state["window"])
        self.mass = mass_from(part(tensors, "mass/"))
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self._retune(self.averaging.step_size, self.log_length)
