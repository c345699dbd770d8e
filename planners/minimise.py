r"""Planning by energy minimisation: descend the energy of a formula from many starts, down its noise levels.

At each level of a decreasing ladder :math:`\sigma_1 > \dots > \sigma_K`, every row takes steps of Adam on
:math:`E(x; \sigma_k)`, with optional noise of variance :math:`2 T h \sigma_k^2`, h the step. Levels smooth the
landscape: at large σ a formula of noised terms has few minima, and the rows follow them as σ falls (graduated
optimisation, annealed sampling at temperature zero). Static formulas have one level. A last polish by L-BFGS goes to
the bottom of each row's basin.

What comes back is a set of local minima, lowest energy first, and not a sample: weights, evidence and spread mean
nothing. Many rows are cheap, and are the remedy for a landscape with many basins.

Source: A. Blake, A. Zisserman (1987), Visual reconstruction (graduated non-convexity). D. Kingma, J. Ba (2015), Adam.
D. Liu, J. Nocedal (1989), On the limited memory BFGS method for large scale optimization.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import NonFinite
from boltzmix.compose.flat import FlatView
from boltzmix.compose.samplers.base import Progress, Request, Sampler, frames_of, is_number, new_info


@dataclass(frozen=True)
class Minimise(Sampler):
    """Minima of a formula's energy, found from many starts.

    Starts are ``sample(…, init=x)``, ``(n, *event)``, or Gaussian draws of standard deviation ``spread``.

    Args:
        steps: gradient steps at each level.
        step_size: of Adam, in the units of x; at a level σ it is at most σ; at the last level it falls to a tenth.
        sigmas: decreasing levels to go down before the data end; none for static formulas.
        temperature: T of the Langevin noise that is added while going down the levels; 0 for plain descent.
        spread: standard deviation of the starts.
        polish: iterations of L-BFGS at the data end; 0 for none.
        record: keep the states of every level for ``Draw.animate``.

    Raises:
        ValueError: settings outside their range.
        MissingEnergy: a formula that has a score alone.
        NonFinite: rows that all left the finite numbers.

    Example:
        >>> from boltzmix.compose import Gaussian, sample
        >>> p = Gaussian(torch.zeros(2), 1.0) * Gaussian(torch.ones(2), 1.0)
        >>> found = sample(p.at(None), 4, sampler=Minimise(steps=20, polish=20), seed=0, progress=False)
        >>> bool((found.x - 0.5).abs().max() < 1e-3)
        True
    """

    steps: int = 100
    step_size: float = 0.05
    sigmas: Sequence[float] = ()
    temperature: float = 0.0
    spread: float = 1.0
    polish: int = 0
    record: bool = False

    takes_states: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        for name in ("steps", "polish"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"Minimise needs an int {name} >= 0, got {value!r}")
        if self.steps + self.polish == 0:
            raise ValueError("Minimise without steps and without polish does nothing")
        for name, least in (("step_size", False), ("spread", True), ("temperature", True)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf or (value == 0 and not least):
                raise ValueError(f"Minimise needs a finite {name} {'>=' if least else '>'} 0, got {value!r}")
        levels = [float(s) for s in self.sigmas]
        if any(not 0 < s < math.inf for s in levels) or levels != sorted(set(levels), reverse=True):
            raise ValueError(f"sigmas are decreasing numbers > 0, the data end left out, got {levels}")

    def run(self, request: Request) -> Draw:
        """Descend, polish, and sort by energy."""
        clock = time.perf_counter()
        view = request.view()
        view.term._require_energy("Minimise")
        if self.sigmas and request.term.path == "static":
            raise ValueError(f"{request.term.name()} is static: it has no noise levels to go down; leave out sigmas=")
        x = self._start(view, request)
        frames = [x.clone()] if self.record else []
        levels: list[float | None] = [*map(float, self.sigmas), None]
        bar = Progress(type(self).__name__, request.progress)
        rows = []
        try:
            for k, sigma in enumerate(levels):
                x, energy = self._descend(view, x, sigma, request.generator)
                rows.append({"sigma": sigma or 0.0, "energy": float(energy.median()), "least": float(energy.min())})
                if frames:
                    frames.append(x.clone())
                bar((k + 1) / len(levels), f"least energy {rows[-1]['least']:.3g}")
            if self.polish:
                x = self._polished(view, x)
        finally:
            bar.close()
        energy = view.at(None).energy(x)
        if not bool(torch.isfinite(energy).any()):
            raise NonFinite(
                f"{request.term.name()}: no row ends at a finite energy; start elsewhere, or take smaller steps"
            )
        order = torch.where(torch.isnan(energy), torch.inf, energy).argsort()
        info = new_info(self, request)
        info.path, info.levels, info.ess = "descent", rows, math.nan
        info.divergences = int((~torch.isfinite(energy)).sum())
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.seconds = time.perf_counter() - clock
        info.extra["energies"] = energy[order].tolist()
        return Draw(view.unravel(x[order]), zeros(request.n, x), None, None, info, frames_of(view, frames))

    def _start(self, view: FlatView, request: Request) -> Tensor:
        if request.init is None:
            noise = torch.randn(
                request.n, view.dim, generator=request.generator, dtype=view.dtype, device=view.device
            )  # fmt: skip
            return self.spread * noise
        init = request.init
        request.term._check(init, None)
        x = view.ravel(init)
        if x.shape[0] != request.n or x.dtype != view.dtype:
            raise ValueError(
                f"init holds {x.shape[0]} rows of {x.dtype}; n={request.n} rows of {view.dtype} are wanted"
            )
        if not bool(torch.isfinite(x).all()):
            raise NonFinite("init holds numbers that are not finite")
        return x.to(view.device)

    def _descend(
        self, view: FlatView, x: Tensor, sigma: float | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Adam at one level, row by row; a row whose gradient is not finite stays where it is for that step."""
        target = view.at(sigma)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        energy = x.new_full((len(x),), math.nan)
        rate = self.step_size if sigma is None else min(self.step_size, sigma)
        for k in range(self.steps):
            energy, score = target.energy_and_score(x)
            good = torch.isfinite(score).all(1, keepdim=True)
            slope = torch.where(good, -score, 0.0)
            first = 0.9 * first + 0.1 * slope
            second = 0.99 * second + 0.01 * slope.square()
            scaled = (first / (1 - 0.9 ** (k + 1))) / ((second / (1 - 0.99 ** (k + 1))).sqrt() + 1e-12)
            step = rate * (1.0 if sigma is not None else 0.55 + 0.45 * math.cos(math.pi * k / self.steps))
            x = x - step * scaled
            if self.temperature and sigma is not None:
                noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = x + math.sqrt(2 * self.temperature * step) * sigma * noise
        return x, energy

    def _polished(self, view: FlatView, x: Tensor) -> Tensor:
        """L-BFGS with a strong Wolfe line search on each row."""
        target, done = view.at(None), []
        for row in x.split(1):
            leaf = row.clone()
            optimiser = torch.optim.LBFGS(
                [leaf], max_iter=self.polish, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
                tolerance_change=1e-12,
            )  # fmt: skip

            def closure(leaf: Tensor = leaf) -> Any:
                energy, score = target.energy_and_score(leaf.detach())
                leaf.grad = -score
                return energy.sum()

            optimiser.step(closure)
            moved = leaf.detach()
            done.append(moved if bool(torch.isfinite(moved).all()) else row)
        return torch.cat(done)
