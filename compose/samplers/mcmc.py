r"""Chains of a Markov kernel on a static target, with dual averaging of the step size.

Warm-up follows Hoffman and Gelman (2014), *The No-U-Turn sampler*: the log step size of each chain moves
so that its mean acceptance reaches the kernel's target. In the first half of the warm-up every chain has a
step size of its own, so that one in the tails does not hold back the others; then they share the median
as a new start, and the average over chains adapts it.
"""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.flat import FlatTarget, FlatView, require_energy
from boltzmix.compose.kernels.base import Kernel, State, Tune, draw_noise
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, new_info
from boltzmix.compose.samplers.smc import check_kernel
from boltzmix.compose.variable import first_tensor, map_state

_BLOCK = 64


@dataclass(frozen=True)
class MCMC(Sampler):
    """Independent chains of one kernel; the draw is ``(chains, draws, *event)``.

    Args:
        kernel: None is HMC() with an adapted step size.
        warmup: transitions that adapt and are thrown away; ``"auto"`` is 500 when something is adapted,
            otherwise 0.
        draws: transitions kept for each chain.
        adapt: False runs the kernel exactly as given.
        thin: keep every ``thin``-th transition.
    """

    kernel: Kernel | None = None
    warmup: int | str = "auto"
    draws: int = 1000
    adapt: bool = True
    thin: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_kernel(self.kernel, "MCMC")
        for name, least in (("draws", 1), ("thin", 1), ("warmup", 0)):
            value = getattr(self, name)
            if name == "warmup" and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"MCMC's {name} is an int >= {least}, got {value!r}")
        if not self.adapt and self.kernel is not None and self.kernel.step_size is None:
            raise ValueError(
                f"adapt=False runs {type(self.kernel).__name__} exactly as given, and it has no step_size; "
                f"write {type(self.kernel).__name__}(step_size=…)"
            )
        if not self.adapt and self.kernel is None:
            raise ValueError("adapt=False needs a kernel with a step size, e.g. MCMC(HMC(step_size=0.1), adapt=False)")

    def run(self, request: Request) -> Draw:
        """Warm up, then draw."""
        clock = time.perf_counter()
        view = request.view()
        kernel = self.kernel or HMC()
        if kernel.adjusted:
            require_energy(view, f"{type(kernel).__name__}()")
        target = view.at(None)
        adapts = self.adapt and kernel.step_size is None
        warmup = (500 if adapts else 0) if self.warmup == "auto" else int(self.warmup)
        if adapts and warmup == 0:
            raise ValueError("a step size of None is adapted during warm-up, and warmup=0 leaves no time for it")
        total = warmup + self.draws * self.thin
        run = self._begin(view, target, kernel, request, warmup, adapts)
        store = None
        if request.checkpoint is not None:
            store = Checkpoint(request.checkpoint, request.fingerprint(self, view))
            run.restore(store.load(), request.generator, view)
        if run.state is None:
            run.state = kernel.init(target, self._starts(view, target, request))
        bar = Progress(f"MCMC({type(kernel).__name__})", request.progress)
        try:
            while run.step < total:
                steps = min(_BLOCK, (warmup if run.step < warmup else total) - run.step)
                noise = draw_noise(run.state.x, request.generator, steps)
                for k in range(steps):
                    run.state, info = kernel.step(target, run.state, run.tune(), noise[k])
                    if run.step < warmup:
                        run.adapt(info.acceptance)
                    else:
                        run.acceptance += float(info.acceptance.mean())
                        run.divergences += int(info.divergent.sum())
                        if (run.step - warmup) % self.thin == self.thin - 1:
                            run.kept[:, (run.step - warmup) // self.thin] = run.state.x
                    run.step += 1
                bar(run.step / total, f"{run.divergences} divergences")
                if store is not None:
                    store.save(lambda: run.snapshot(request.generator, view))
        finally:
            bar.close()
        return self._finish(request, view, run, clock)

    def _begin(
        self, view: FlatView, target: FlatTarget, kernel: Kernel, request: Request, warmup: int, adapts: bool
    ) -> "_Run":
        kept = torch.full((request.n, self.draws, view.dim), torch.nan, dtype=view.dtype, device=view.device)
        guess = kernel.step_size or 0.1 * kernel.initial_step_size(view.dim)
        steps = torch.full((request.n,), guess, dtype=view.dtype, device=view.device)
        return _Run(kept, steps, kernel.target_acceptance, warmup, adapts)

    def _starts(self, view: FlatView, target: FlatTarget, request: Request) -> Tensor:
        """The caller's starts, or for each chain the best of 32 draws uniform in (−2, 2)."""
        if request.init is not None:
            init = request.init
            if not isinstance(init, (Tensor, dict)):
                raise TypeError(f"init is a state (chains, *event) for MCMC, got {type(init).__name__}")
            request.term._check(init, None)
            x = view.ravel(init).to(view.device)
            if x.shape[0] != request.n:
                raise ValueError(f"init holds {x.shape[0]} starts and chains={request.n}; one start for each chain")
            if x.dtype != view.dtype:
                raise TypeError(f"init is {x.dtype} and the target {view.dtype}; convert it, or pass dtype={x.dtype}")
            return x
        tries = 32
        box = torch.rand(request.n * tries, view.dim, generator=request.generator, dtype=view.dtype, device=view.device)
        x = 4.0 * box - 2.0
        if not target.has_energy:
            return x[: request.n]
        if view.per_row:  # a Clamp's conditions belong to their rows
            columns = [target.energy_and_score(part) for part in x.reshape(request.n, tries, -1).unbind(1)]
            energy = torch.stack([e for e, _ in columns], 1).flatten()
            score = torch.stack([s for _, s in columns], 1).flatten(0, 1)
        else:
            energy, score = target.energy_and_score(x)
        usable = torch.isfinite(energy) & torch.isfinite(score).all(1)
        if not bool(usable.any()):
            raise NonFinite(
                f"none of {len(x)} starts in (-2, 2)^{view.dim} has a finite energy and score; pass init= with "
                "starts inside the support"
            )
        ranked = torch.where(usable, energy, torch.inf).reshape(request.n, tries)
        best = ranked.argmin(1) + tries * torch.arange(request.n, device=x.device)
        rows = torch.where(usable[best], best, usable.nonzero()[0, 0])
        return x[rows]

    def _finish(self, request: Request, view: FlatView, run: "_Run", clock: float) -> Draw:
        total = self.draws * self.thin
        info = new_info(self, request)
        info.acceptance = run.acceptance / total
        info.divergences = run.divergences
        info.step_size = float(run.step_size.mean())
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.extra["warmup"] = run.warmup
        if self.draws >= 4:
            info.ess = float(ess(run.kept).min())  # NaN when a coordinate never moved
            worst = float(rhat(run.kept).max())
            info.extra["rhat"] = worst
            still = int((run.kept == run.kept[:, :1]).flatten(1).all(1).sum())
            if still:
                warnings.warn(
                    f"MCMC: {still} of {request.n} chains never moved (mean acceptance {info.acceptance:.2g}), so "
                    "their draws are one point: use a smaller step size, or adapt=True with step_size=None",
                    SamplingWarning,
                    stacklevel=4,
                )
            elif worst > 1.05:
                warnings.warn(
                    f"MCMC: R-hat is {worst:.3f} for the worst coordinate, so chains disagree: run longer, give them "
                    "better starts with init=, or use SMC when the target has separated modes",
                    SamplingWarning,
                    stacklevel=4,
                )
        if run.divergences > 0.001 * request.n * total:
            warnings.warn(
                f"MCMC: {run.divergences} of {request.n * total} proposals were not finite and were rejected; the "
                "target is undefined where the chains go: reparametrise it, or use a smaller step size",
                SamplingWarning,
                stacklevel=4,
            )
        flat = run.kept.flatten(0, 1)
        shape = (request.n, self.draws)
        if view.per_row:
            flat = run.kept.transpose(0, 1)
            state = [view.unravel(f) for f in flat]
            x: Any = map_state(lambda *s: torch.stack(s, 1), state[0], *state[1:])
        else:
            x = map_state(lambda t: t.reshape(*shape, *t.shape[1:]), view.unravel(flat))
        info.seconds = time.perf_counter() - clock
        weights = torch.zeros(shape, dtype=first_tensor(x).dtype, device=first_tensor(x).device)
        return Draw(x, weights, None, None, info, chains=True)


class _Run:
    """Where the chains stand, and the dual averages."""

    def __init__(self, kept: Tensor, step_size: Tensor, goal: float, warmup: int, adapts: bool) -> None:
        self.kept, self.step_size, self.goal, self.warmup, self.adapts = kept, step_size, goal, warmup, adapts
        self.state: State | None = None
        self.step, self.divergences, self.acceptance = 0, 0, 0.0
        self._tune: Tune | None = None
        self._restart()

    def _restart(self) -> None:
        self.centre = (10 * self.step_size).log()
        self.error = torch.zeros_like(self.step_size)
        self.average = self.step_size.log()
        self.count = 0

    def tune(self) -> Tune:
        if self._tune is None:
            self._tune = Tune(self.step_size)
        return self._tune

    def adapt(self, acceptance: Tensor) -> None:
        """Dual averaging with the constants of Hoffman and Gelman (γ = 0.05, t₀ = 10, κ = 0.75)."""
        if not self.adapts:
            return
        shared = self.step >= self.warmup // 2
        if self.step == self.warmup // 2:
            self.step_size = torch.full_like(self.step_size, float(self.average.exp().median()))
            self._restart()
        if shared:
            acceptance = acceptance.mean().expand_as(acceptance)
        self.count += 1
        t = self.count
        self.error = self.error + (self.goal - acceptance - self.error) / (t + 10)
        log_step = self.centre - math.sqrt(t) / 0.05 * self.error
        weight = t**-0.75
        self.average = weight * log_step + (1 - weight) * self.average
        last = self.step == self.warmup - 1
        self.step_size = (self.average if last else log_step).exp()
        self._tune = None

    def snapshot(self, generator: torch.Generator, view: FlatView) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self.state is not None
        tensors = {
            "x": self.state.x, "energy": self.state.energy, "score": self.state.score, "kept": self.kept,
            "step_size": self.step_size, "centre": self.centre, "error": self.error, "average": self.average,
            "generator": generator.get_state(),
        }  # fmt: skip
        state = {
            "step": self.step, "count": self.count, "divergences": self.divergences, "acceptance": self.acceptance,
            "rows": view.counter.rows, "network_rows": view.counter.network_rows,
        }  # fmt: skip
        return tensors, state

    def restore(
        self, saved: tuple[dict[str, Tensor], dict[str, Any]] | None, generator: torch.Generator, view: FlatView
    ) -> None:
        if saved is None:
            return
        tensors, state = saved
        generator.set_state(tensors.pop("generator"))
        tensors = {k: v.to(view.device) for k, v in tensors.items()}
        self.state = State(tensors["x"], tensors["energy"], tensors["score"])
        self.kept, self.step_size = tensors["kept"], tensors["step_size"]
        self.centre, self.error, self.average = tensors["centre"], tensors["error"], tensors["average"]
        self.step, self.count = state["step"], state["count"]
        self.divergences, self.acceptance = state["divergences"], state["acceptance"]
        view.counter.rows, view.counter.network_rows = state["rows"], state["network_rows"]
        self._tune = None
