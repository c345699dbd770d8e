"""Chains of a Markov kernel on a static target: warm-up that adapts, then draws."""

import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, joined, part
from boltzmix.compose.advice import Facts, report
from boltzmix.compose.compiled.block import Trace
from boltzmix.compose.compiled.policy import Transitions, check_setting
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.flat import FlatTarget, FlatView, require_energy
from boltzmix.compose.kernels.base import Kernel, State, check_kernel
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.samplers.base import Checkpoint, Progress, Request, Sampler, new_info
from boltzmix.compose.samplers.chain_starts import chain_starts
from boltzmix.compose.samplers.energies import Energies
from boltzmix.compose.samplers.store import Store
from boltzmix.compose.variable import first_tensor, map_state

_BLOCK = 64  # transitions whose noise is drawn at once
_NUMBERS = 2**19  # and how many numbers that may be: they stay in the cache until they are used


@dataclass(frozen=True)
class MCMC(Sampler):
    """Independent chains of one kernel; the draw is ``(chains, draws, *event)``.

    Args:
        kernel: None is NUTS() with an adapted step size and mass.
        warmup: transitions that adapt and are thrown away; ``"auto"`` is 500, or 0 for a kernel that
            was given its step size.
        draws: transitions kept for each chain.
        adapt: True adapts what the kernel leaves open, in the way that suits it; an adaptation such as
            ``Windows(mass="dense")`` chooses the way; False runs the kernel exactly as given.
        thin: keep every ``thin``-th transition.
        out: a folder in which draws are written as they come, one ``.npy`` for each variable and statistic, instead
            of being held in memory; the draw's tensors are views of these files.
        compile: whether transitions are compiled together with the target (:func:`~boltzmix.compose.compile_kernel`):
            ``"auto"`` where the run is long enough and generated C++ can express it, True also where it takes torch's
            compiler, with a warning where neither can, False never. ``draw.info.extra["compile"]`` says what was done.
    """

    takes_states: ClassVar[bool] = True

    kernel: Kernel | None = None
    warmup: int | str = "auto"
    draws: int = 1000
    adapt: bool | Adaptation = True
    thin: int = 1
    out: str | os.PathLike[str] | None = None
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.kernel is not None:
            check_kernel(self.kernel, "MCMC(kernel=…)")
        for name, least in (("draws", 1), ("thin", 1), ("warmup", 0)):
            value = getattr(self, name)
            if name == "warmup" and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"MCMC's {name} is an int >= {least}, got {value!r}")
        check_setting(self.compile, "MCMC")
        if not isinstance(self.adapt, (bool, Adaptation)):
            raise TypeError(f"MCMC's adapt is True, False or an adaptation such as Windows(), got {self.adapt!r}")
        if self.adapt is False and self.kernel is not None and self.kernel.adapts:
            raise ValueError(
                f"adapt=False runs {type(self.kernel).__name__} exactly as given, and it has no step_size; "
                f"write {type(self.kernel).__name__}(step_size=…)"
            )
        if self.adapt is False and self.kernel is None:
            raise ValueError("adapt=False needs a kernel with a step size, e.g. MCMC(NUTS(step_size=0.1), adapt=False)")

    def run(self, request: Request) -> Draw:
        """Warm up, then draw."""
        clock = time.perf_counter()
        kernel = self.kernel or NUTS()
        view = request.view(discrete=kernel.moves != "real", unconstrained=True)
        if kernel.adjusted and not kernel.integrates:
            require_energy(view, f"{type(kernel).__name__}()")
        target = view.at(None)
        adapts = isinstance(self.adapt, Adaptation) or (self.adapt and kernel.adapts)
        as_given = kernel.step_size is not None and not adapts
        warmup = (0 if as_given else 500) if self.warmup == "auto" else int(self.warmup)
        if adapts and warmup == 0:
            raise ValueError("a step size of None is adapted during warm-up, and warmup=0 leaves no time for it")
        checkpoint = None
        if request.checkpoint is not None:
            checkpoint = Checkpoint(request.checkpoint, request.fingerprint(self, view))
        saved = None if checkpoint is None else checkpoint.load()
        starts = chain_starts(view, target, request, kernel.uses_score)
        state = kernel.init(target, starts, request.generator)
        run = _Run(self, kernel, target, state, warmup if adapts else 0, request)
        if saved is not None:
            run.restore(*saved, view, warmup)
        total = warmup + self.draws * self.thin
        longest = max(1, min(_BLOCK, _NUMBERS // max(max(t.numel() for t in state.tensors().values()), 1)))
        bar = Progress(f"MCMC({type(kernel).__name__})", request.progress)
        try:
            while run.step < total:
                warming = run.step < warmup
                steps = min(longest, (warmup if warming else total) - run.step)
                noise = run.noise(steps)
                if warming:
                    run.warm(noise, steps)
                else:
                    run.draw(noise, steps, view)
                if warming and run.step == warmup:
                    run.settle(view)
                bar(run.step / total, f"{'warm-up, ' if warming else ''}{run.divergences} divergences")
                if checkpoint is not None:
                    checkpoint.save(lambda: run.snapshot(view))
        finally:
            bar.close()
        run.store.close()
        return self._finish(request, view, run, warmup, clock)

    def _finish(self, request: Request, view: FlatView, run: "_Run", warmup: int, clock: float) -> Draw:
        info = new_info(self, request)
        total = self.draws * self.thin
        info.acceptance = float(run.acceptance.mean()) / total
        info.divergences = run.divergences
        moved = getattr(run.kernel, "kernel", run.kernel)  # what parallel tempering moves its replicas with
        if moved.step_size is not None or moved.adapts:
            info.step_size = float(run.tune.step_size.mean())
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.extra["kernel"], info.extra["warmup"], info.extra["thin"] = type(run.kernel).__name__, warmup, self.thin
        info.extra["warmup_evaluations"] = run.warmup_rows / request.n
        info.extra["compile"] = run.transitions.report()
        x, stats = run.draws(view)
        bfmi = run.energies.bfmi() if run.energies.count > 1 and run.kernel.fresh_momentum else None
        if bfmi is not None:
            info.extra["bfmi"] = bfmi.tolist()
        if self.draws >= 4:
            found = report(x, stats, Facts(
                kernel=run.kernel, warmup=warmup, transitions=request.n * total, divergences=run.divergences,
                acceptance=run.acceptance / total, bfmi=bfmi, tune=run.tune, clamped=view.clamped,
                separate=view.per_row,
            ))  # fmt: skip
            info.ess, info.extra["rhat"] = found.ess, found.rhat
            info.extra["warnings"] = [finding.to_dict() for finding in found.findings]
            for finding in found.findings:
                warnings.warn(f"MCMC: {finding}", SamplingWarning, stacklevel=4)
        evidence = None
        if run.recorder is not None:
            info.extra.update(run.recorder.extra())
            evidence = run.recorder.log_z() if request.term.calibrated else None
        info.seconds = time.perf_counter() - clock
        like = first_tensor(x)
        weights = torch.zeros((request.n, self.draws), dtype=torch.get_default_dtype(), device=like.device)
        weights = weights.to(like) if like.is_floating_point() else weights
        return Draw(x, weights, *(evidence or (None, None)), info, chains=True, stats=stats)


class _Run:
    """Where the chains stand, what adapts them, and what they have left behind."""

    def __init__(
        self, sampler: MCMC, kernel: Kernel, target: FlatTarget, state: State, warmup: int, request: Request
    ) -> None:
        self.kernel, self.target, self.state, self.generator = kernel, target, state, request.generator
        self.thin, self.step, self.kept = sampler.thin, 0, 0
        self.tuner: Tuner | None = None
        if warmup:
            adaptation = sampler.adapt if isinstance(sampler.adapt, Adaptation) else kernel.adaptation()
            self.tuner = adaptation.begin(kernel, target, state, warmup, request.generator)
        self.tune = kernel.tune(state.x) if self.tuner is None else self.tuner.tune
        self.divergences, self.warmup_rows = 0, 0
        self.acceptance = torch.zeros(len(state.x), dtype=torch.float64, device=state.x.device)
        self.energies = Energies()
        self.recorder = kernel.recorder(target, state, sampler.draws * sampler.thin)
        self.diverging = torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device)
        total = warmup + sampler.draws * sampler.thin
        self.transitions = Transitions(kernel, target, sampler.compile, total, state.x)
        self.store = Store(len(state.x), sampler.draws, None if sampler.out is None else Path(sampler.out))

    def noise(self, steps: int) -> Any:
        """The noise of the next block."""
        if self.recorder is not None:  # which has transitions run eagerly
            return self.kernel.noise(self.state, self.generator, steps)
        return self.transitions.noise(self.state, self.tune, self.generator, steps)

    def warm(self, noise: Any, steps: int) -> None:
        """Transitions of the warm-up, from each of which the tuner learns."""
        for k in range(steps):
            before = self.state
            self.state, info = self.transitions.step(before, self.tune, noise, k)
            self.step += 1
            if self.tuner is not None:
                self.tuner.update(before, self.state, info)
                self.state = self.tuner.carry(self.state)
                self.tune = self.tuner.tune

    def draw(self, noise: Any, steps: int, view: FlatView) -> None:
        """A block of transitions after the warm-up, of which every ``thin``-th is kept."""
        recorder = self.recorder
        each = None if recorder is None else lambda state, info: recorder.update(state, info, self.tune)
        self.state, trace = self.transitions.several(self.state, self.tune, noise, steps, each)
        info = trace.info
        self.step += steps
        self.acceptance += info.acceptance.double().sum(0)
        self.divergences += int(info.divergent.sum())
        if info.energy is not None:
            self.energies.update(info.energy)
        ends = [k for k in range(steps) if (self.kept + k + 1) % self.thin == 0]
        diverging, start = [], 0
        for end in ends:
            diverging.append(self.diverging | info.divergent[start : end + 1].any(0))
            self.diverging, start = torch.zeros_like(self.diverging), end + 1
        self.diverging = self.diverging | info.divergent[start:].any(0)
        if ends:
            kept = slice(ends[0], ends[-1] + 1, self.thin)
            columns = {name: column[kept].transpose(0, 1) for name, column in _statistics(trace).items()}
            columns["diverging"] = torch.stack(diverging, 1)
            self.write(view, self.kept // self.thin, trace.x[kept], columns)
        self.kept += steps

    def write(self, view: FlatView, at: int, flat: Tensor, stats: dict[str, Tensor]) -> None:
        """Hand draws ``(draws, chains, D)`` and their statistics to the store, in the shapes of the target."""
        if view.per_row:  # conditions belong to their rows
            states = [view.unravel(x) for x in flat]
            x = map_state(lambda *s: torch.stack(s, 1), states[0], *states[1:])
        else:
            flat = flat.transpose(0, 1)
            x = map_state(lambda t: t.reshape(*flat.shape[:2], *t.shape[1:]), view.unravel(flat.flatten(0, 1)))
        named = {"draws": x} if isinstance(x, Tensor) else {f"draws.{name}": t for name, t in x.items()}
        self.store.write(at, named | {f"stats.{name}": t for name, t in stats.items()})

    def settle(self, view: FlatView) -> None:
        """Keep the tuning that the warm-up has found."""
        if self.tuner is not None:
            self.tune = self.tuner.finish()
        self.warmup_rows = view.counter.rows

    def draws(self, view: FlatView) -> tuple[Any, dict[str, Tensor]]:
        """Everything that was kept."""
        found = self.store.tensors
        stats = {name.removeprefix("stats."): t for name, t in found.items() if name.startswith("stats.")}
        if view.names is None:
            return found["draws"], stats
        return {name: found[f"draws.{name}"] for name in view.names}, stats

    def snapshot(self, view: FlatView) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that resuming needs."""
        kept = self.store.snapshot(self.kept // self.thin)
        tensors = joined(state=self.state.tensors(), store=kept, energies=self.energies.tensors())
        tensors |= {
            "generator": self.generator.get_state(), "acceptance": self.acceptance, "diverging": self.diverging,
        }  # fmt: skip
        record: dict[str, Any] = {
            "step": self.step, "kept": self.kept, "divergences": self.divergences, "warmup_rows": self.warmup_rows,
            "energies": self.energies.count, "names": list(self.store.tensors),
            "rows": view.counter.rows, "network_rows": view.counter.network_rows,
        }  # fmt: skip
        if self.tuner is not None:
            learned, record["tuner"] = self.tuner.snapshot()
            tensors |= joined(tuner=learned)
        if self.recorder is not None:
            learned, record["recorder"] = self.recorder.snapshot()
            tensors |= joined(recorder=learned)
        return tensors, record

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any], view: FlatView, warmup: int) -> None:
        """Take up a snapshot."""
        self.generator.set_state(tensors.pop("generator"))
        tensors = {k: v.to(view.device) for k, v in tensors.items()}

        self.state = self.state.having(part(tensors, "state/"))
        self.acceptance, self.diverging = tensors["acceptance"], tensors["diverging"]
        self.step, self.kept, self.divergences = record["step"], record["kept"], record["divergences"]
        self.warmup_rows = record["warmup_rows"]
        self.energies.restore(part(tensors, "energies/"), record["energies"])
        self.store.restore(part(tensors, "store/"), record["names"])
        if self.tuner is not None:
            self.tuner.restore(part(tensors, "tuner/"), record["tuner"])
            self.tune = self.tuner.finish() if self.step >= warmup else self.tuner.tune
        if self.recorder is not None:
            self.recorder.restore(part(tensors, "recorder/"), record["recorder"])
        view.counter.rows, view.counter.network_rows = record["rows"], record["network_rows"]


def _statistics(trace: Trace) -> dict[str, Tensor]:
    """What is kept of transitions besides their states, by ArviZ's names, ``(steps, N)``."""
    info = trace.info
    found = {"acceptance_rate": info.acceptance, "lp": -trace.states["energy"]}
    if info.energy is not None:
        found["energy"] = info.energy
    if info.num_leapfrog is not None:
        found["n_steps"] = info.num_leapfrog
    return found
