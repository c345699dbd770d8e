r"""Predictor–corrector: Markov transitions at the levels of a reverse diffusion.

A step of :class:`~boltzmix.compose.samplers.reverse.Reverse` predicts states at the next level; a kernel, the
corrector, then moves them on the density of that level. The predictor brings particles near the right place in few
evaluations, the corrector makes up for its errors: those of discretisation, and for composites that of summed scores,
whose flow does not lead through the composite's own densities :math:`p_\sigma = \prod_i p_i(x; \sigma)^{w_i}`, while
the summed score is theirs exactly. What is left is what the kernel does not mix, and its own bias.

*The predictor's noise.* Where exponents add up to W, :math:`p_\sigma` is close to :math:`N(m, \sigma^2 / W)` at large
σ. A step that leads from one such density to the next takes the noise of its states to be σ² / W: its estimate of the
data is :math:`x + \tfrac{\sigma^2}{W} S(x)`. That is exact for factors that are Gaussians of one covariance, and the
usual step where W = 1, as for guidance. Usual steps on a product of two contract twice as much as its density does; in
many dimensions that is more than a few transitions make up for.

*Step sizes.* A kernel without one is adapted as :class:`~boltzmix.compose.samplers.smc.Annealed` does it: to its
acceptance, with the particles' variance as inverse mass. A given one is that of the last level, and scales like σ (a
Langevin kernel's like σ²). With a signal-to-noise ratio r, Song et al. (2021, *Score-based generative modeling through
stochastic differential equations*, algorithm 4) take Langevin steps :math:`x + h s + \sqrt{2h}\, z` of

.. math::
    h = 2 \Bigl(\frac{r\, |z|}{|s|}\Bigr)^2,

here with root mean squares over all particles, :math:`|z|^2 = D`, so that the size of a step does not lean on the state
that takes it; other kernels, whose step ε moves them as far as Langevin's :math:`h = \epsilon^2 / 2`, take
:math:`\epsilon = 2 r |z| / |s|`.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.draw import RunInfo
from boltzmix.compose.errors import NotNormalizable
from boltzmix.compose.flat import FlatView, require_energy
from boltzmix.compose.kernels.base import Kernel, State, Tune, check_kernel
from boltzmix.compose.samplers.anneal import cloud_variance, nudged, scaled_step
from boltzmix.compose.samplers.base import is_number
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.path import strengths

if TYPE_CHECKING:
    from boltzmix.compose.samplers.reverse import Reverse


@dataclass
class Corrector:
    """Transitions of a kernel at noise levels, one level after the other.

    Args:
        kernel: what moves the particles; one with a Metropolis test integrates the score where there are no energies.
        steps: transitions at each level.
        snr: r, or None for steps that are given or adapted.
        view: of the term.
        last: the lowest level of the ladder.
        between: the lowest and the highest level to correct.
        levels: what it did, by level.
    """

    kernel: Kernel
    steps: int
    snr: float | None
    view: FlatView
    last: float
    between: tuple[float, float] = (0.0, math.inf)
    step_size: float = math.nan
    levels: dict[float, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse kernels that do not suit the term."""
        if self.kernel.adjusted and not self.kernel.integrates:
            require_energy(self.view, f"{type(self.kernel).__name__}()")
        self.kernel.check_columns(self.view.at(self.last))
        self.step_size = self.kernel.step_size or self.kernel.initial_step_size(self.view.dim)

    def wanted(self, sigma: float) -> bool:
        """Whether a level is to be corrected."""
        low, high = self.between
        return low <= sigma <= high

    def __call__(self, x: Tensor, sigma: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """States after the transitions at a level, and their scores there, for kernels that know them."""
        target, kernel = self.view.at(sigma), self.kernel
        unknown = torch.full_like(x, torch.nan)
        state = kernel.attach(kernel.refresh(target, State(x, unknown[:, 0], unknown)), generator)
        rates, divergences = [], 0
        for _ in range(self.steps):
            tune = self._tune(state, sigma)
            state, info = kernel.step(target, state, tune, kernel.noise(state, generator))
            rates.append(float(info.acceptance.mean()))
            divergences += int(info.divergent.sum())
            if kernel.step_size is None and self.snr is None:
                self.step_size = nudged(kernel, self.step_size, rates[-1], len(x))
        self.levels[sigma] = {
            "acceptance": math.fsum(rates) / len(rates), "divergences": divergences, "step_size": self.step_size,
        }  # fmt: skip
        return state.x, state.score if kernel.uses_score else None

    def share(self, sigma: float) -> float | Tensor:
        """1/W at a level: what share of σ² the noise of the composite's states has, a number or ``(D,)``."""
        if sigma == math.inf:
            return 1.0
        total = strengths(self.view, sigma)
        if bool((total == 1.0).all()):
            return 1.0
        if not bool((total > 0).all()):
            raise NotNormalizable(
                f"{self.view.term.name()} has a total exponent of {float(total.min()):g} at sigma={sigma:g}: no "
                "density of finite width that a step could follow; use Annealed"
            )
        return total.reciprocal().to(self.view.dtype)

    def report(self, info: RunInfo) -> None:
        """Add what was done to the report of a run."""
        for level in info.levels:
            level.update(self.levels.get(level["sigma"], {}))
        if self.levels:
            info.acceptance = math.fsum(found["acceptance"] for found in self.levels.values()) / len(self.levels)
            info.step_size = self.step_size
        info.divergences += sum(found["divergences"] for found in self.levels.values())

    def _tune(self, state: State, sigma: float) -> Tune:
        mass: Any = self.kernel.inverse_mass
        if self.kernel.step_size is not None:
            self.step_size = scaled_step(self.kernel, sigma, self.last)
        elif self.snr is not None:
            self.step_size = snr_step(state.score, self.snr, self.kernel.step_power)
        elif mass is None:
            mass = cloud_variance(state.x, state.x.new_full((len(state.x),), 1.0 / len(state.x)))
        return Tune(torch.as_tensor(self.step_size, dtype=state.x.dtype), mass)


def snr_step(score: Tensor, ratio: float, power: int) -> float:
    """Song et al.'s step size h (of ``power`` 2), or the ε = √(2h) of kernels that step lengths."""
    finite = score[torch.isfinite(score).all(1)]
    length = 2.0 * ratio / float((finite * finite).mean().sqrt())
    return 0.5 * length**2 if power == 2 else length


def corrector_of(sampler: "Reverse", view: FlatView, ladder: Ladder) -> Corrector | None:
    """What corrects the states of a run, if it is asked for."""
    if sampler.corrector is None:
        return None
    corrector = Corrector(
        sampler.corrector, sampler.corrections, sampler.snr, view, ladder.begins[-1], sampler.between or (0.0, math.inf)
    )
    if sampler.between is not None and not any(corrector.wanted(sigma) for sigma in ladder.begins[1:]):
        raise ValueError(
            f"between={sampler.between} holds none of the levels that can be corrected, "
            f"{ladder.begins[-1]:.3g} to {max(ladder.begins[1:], default=math.nan):.3g}"
        )
    return corrector


def check_corrector(sampler: "Reverse") -> None:
    """Refuse settings of a corrector that make no sense.

    Raises:
        TypeError: a corrector that is not a kernel.
        ValueError: settings without a corrector, or that contradict it.
    """
    kernel, steps, snr = sampler.corrector, sampler.corrections, sampler.snr
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"corrections is an int >= 1, transitions of the corrector at each level, got {steps!r}")
    if snr is not None and (isinstance(snr, bool) or not isinstance(snr, (int, float)) or not 0 < snr < math.inf):
        raise ValueError(f"snr is a positive signal-to-noise ratio such as 0.16, got {snr!r}")
    if kernel is None:
        if steps != 1 or snr is not None or sampler.between is not None:
            raise ValueError(
                "corrections=, between= and snr= are for a corrector: give one, e.g. corrector=UHMC(num_leapfrog=3)"
            )
        return
    if sampler.between is not None:
        low, high = sampler.between
        if not all(is_number(v) for v in (low, high)) or not 0 <= low < high:
            raise ValueError(
                f"between is (lowest, highest) noise level, 0 <= lowest < highest, got {sampler.between!r}"
            )
    check_kernel(kernel, "Reverse(corrector=…)")
    if snr is not None and (kernel.step_size is not None or not kernel.uses_score):
        raise ValueError(
            f"snr= is for a corrector that uses scores and was given no step size, got {type(kernel).__name__}("
            f"step_size={kernel.step_size!r}); leave out one of the two"
        )
    if sampler.solver == "dpmpp" and sampler.order == 2:
        raise ValueError(
            "a corrector moves states between the two steps that dpmpp of order 2 extrapolates from: use order=1, "
            'solver="ddim" or solver="heun"'
        )
