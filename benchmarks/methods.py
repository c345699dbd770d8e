r"""Methods of the comparison: what every one returns, our samplers as methods, and how gradients are counted.

A method is any function ``(density, starts, budget, seed) -> MethodRun``. What it costs is counted where it cannot be
talked about: :class:`~boltzmix.benchmarks.tally.Tally` stands in the place of the target's log-density and counts the
rows that it is given, whatever the sampler, its view of the target or its statistics say. One row is one gradient: the
kernels here evaluate energy and score together, and an energy alone counts as much.

Our methods are public samplers as they come: ``MCMC(kernel, warmup=…, draws=…)`` and ``SMC()`` through ``sample``.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.tally import Miscounted, Tally
from boltzmix.compose.adaptation.base import Adaptation
from boltzmix.compose.adaptation.loop import warm_up
from boltzmix.compose.draw import Draw
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels import (
    GHMC,
    HMC,
    MALA,
    NUTS,
    UHMC,
    ULA,
    Barker,
    Gibbs,
    GibbsWithGradients,
    MicrocanonicalLangevin,
    ParallelTempering,
    RandomWalk,
    Underdamped,
)
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, check_kernel
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC
from boltzmix.compose.term import Term


@dataclass(frozen=True)
class Budget:
    """What a method may spend.

    Attributes:
        warmup: transitions that tune, thrown away.
        draws: transitions kept, for each chain; of weighted samplers, particles for each chain.
        gradients: where given, for each chain in the place of ``draws``: a method whose transitions have a known cost
            after its tuning draws ``gradients / cost`` of them; others, such as NUTS, keep to ``draws``.
    """

    warmup: int
    draws: int
    gradients: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that buy nothing."""
        for name, least in (("warmup", 0), ("draws", 1), ("gradients", 1)):
            value = getattr(self, name)
            if name == "gradients" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Budget's {name} is an int >= {least}, got {value!r}")

    def transitions(self, cost: float) -> int:
        """Transitions to keep where each costs ``cost`` gradients."""
        return self.draws if self.gradients is None else max(4, round(self.gradients / cost))


@dataclass(frozen=True)
class MethodRun:
    """What one method did on one target with one seed.

    Attributes:
        method, target, seed: which run it is.
        draws: ``(chains, draws, D)`` in float64; of weighted samplers ``(1, n, D)``; None when it failed.
        gradients: that each kept draw cost its chain in the sampling phase, ``(chains, draws)``.
        tuning_gradients: for each chain, before the first kept draw.
        seconds: process-CPU time by phase: "compile", "tuning", "sampling".
        divergences: transitions of the sampling phase, all chains.
        log_weights: of weighted samplers, ``(1, n)``; None for equal weights.
        log_z: estimate of the log of the integral.
        counted: gradients were counted from inside the target; otherwise the library says so.
        numbers: step size, trajectory length and what else is worth knowing.
        error: what it raised; such a run is a row of the report, never dropped.
    """

    method: str
    target: str
    seed: int
    draws: Tensor | None
    gradients: Tensor
    tuning_gradients: float
    seconds: dict[str, float]
    divergences: int = 0
    log_weights: Tensor | None = None
    log_z: float | None = None
    counted: bool = True
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


Method = Callable[[Density, Tensor, Budget, int], MethodRun]


def failed(method: str, density: Density, seed: int, error: BaseException | str) -> MethodRun:
    """The run of a method that raised."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    first = said.splitlines()[0] if said.strip() else type(error).__name__
    return MethodRun(method, density.name, seed, None, torch.zeros(0, 0), math.nan, {}, error=first)


@dataclass(frozen=True)
class Marks:
    """Rows counted before and after each transition, and the process-CPU time at the end of the warm-up.

    Attributes:
        warmup: transitions of it; the clock is read once, because reading it may cost as much as a transition.
    """

    warmup: int = 0
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)


def watched(kernel: Kernel, tally: Tally, marks: Marks) -> Kernel:
    """The same kernel, which leaves marks at each transition."""
    kind = type(kernel)

    def step(self: Any, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        if len(marks.before) == marks.warmup:
            marks.clock.append(time.process_time())
        marks.before.append(tally.rows)
        found = kind.step(self, target, state, tune, noise)
        marks.after.append(tally.rows)
        return found

    clone = copy.copy(kernel)
    object.__setattr__(clone, "__class__", type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__}))
    return clone


@dataclass(frozen=True)
class Chains:
    """Chains of a kernel by the public ``MCMC``, as a method.

    Gradients are counted from inside the target before and after each transition: what the warm-up cost is read off
    that count, not taken from the sampler. Where the two differ in all, the run is an error. Transitions are eager:
    compiled ones do not call the target's Python, and are the business of :class:`Compiled`.

    Args:
        kernel: any kernel; one that leaves its step size open is tuned in ``budget.warmup`` transitions.
        adapt: as of MCMC.
        tempered: run it inside parallel tempering, from the target's reference.

    Example:
        >>> import torch
        >>> from boltzmix.benchmarks.densities import density
        >>> target = density("logistic_regression")
        >>> run = Chains(MALA(step_size=0.05))(target, target.starts(4, 0), Budget(0, 10), 0)
        >>> tuple(run.draws.shape), float(run.gradients.sum()), run.tuning_gradients
        ((4, 10, 25), 40.0, 1.0)
    """

    kernel: Kernel
    adapt: bool | Adaptation = True
    tempered: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no kernel."""
        check_kernel(self.kernel, "Chains(kernel)")

    def __call__(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Tune, draw and count."""
        kernel: Kernel = self.kernel
        if self.tempered:
            kernel = ParallelTempering(self.kernel, reference=density.extent())
        tally = Tally()
        target = replace(density, log_prob=tally.of(density.log_prob)).term()
        tunes = kernel.adapts if self.adapt is True else self.adapt is not False
        warmup, x, number = budget.warmup if tunes else 0, starts, seed
        real = starts.dtype if starts.is_floating_point() else None
        begin, before = time.process_time(), 0
        if budget.gradients is not None and warmup and not _cost_known(kernel):
            adaptation = self.adapt if isinstance(self.adapt, Adaptation) else None
            flat = ravel(target, dtype=real)
            kernel, state = warm_up(kernel, flat, starts, warmup=warmup, adaptation=adaptation, seed=seed)
            x, before, warmup, number = state.x, tally.rows, 0, seed + 1_000_000
        draws = budget.draws if isinstance(kernel, NUTS) else budget.transitions(kernel.evaluations_per_step)
        adapt, marks = self.adapt if warmup else True, Marks(warmup)
        sampler = MCMC(watched(kernel, tally, marks), warmup=warmup, draws=draws, adapt=adapt, compile=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw = sample(target, chains=len(x), sampler=sampler, init=x, dtype=real, seed=number, progress=False)
        end = time.process_time()
        said = round(draw.info.evaluations * len(x)) + before
        if said != tally.rows:
            raise Miscounted(f"the sampler counts {said} evaluations and the target {tally.rows}")
        assert isinstance(draw.x, Tensor)
        first = len(marks.after) - draws
        total = torch.tensor([marks.before[first], *marks.after[first:-1], tally.rows], dtype=torch.float64)
        numbers = {"step_size": draw.info.step_size, "acceptance": draw.info.acceptance}
        numbers |= {name: draw.info.extra[name] for name in ("temperatures", "round_trips") if name in draw.info.extra}
        return MethodRun(
            type(kernel).__name__, density.name, seed,
            draws=draw.x.double(),
            gradients=(total.diff() / len(x)).expand(len(x), -1),
            tuning_gradients=marks.before[first] / len(x),
            seconds={"compile": 0.0, "tuning": marks.clock[0] - begin, "sampling": end - marks.clock[0]},
            divergences=draw.info.divergences,
            log_z=draw.log_z,
            numbers=numbers,
        )  # fmt: skip


def _cost_known(kernel: Kernel) -> bool:
    """Whether what a transition costs is known before it is tuned; for NUTS it never is."""
    if isinstance(kernel, HMC):
        return kernel.num_leapfrog is not None
    if isinstance(kernel, MicrocanonicalLangevin):
        return not kernel.adjusted
    return isinstance(kernel, NUTS) or not isinstance(kernel, ParallelTempering)


@dataclass(frozen=True)
class Compiled:
    """The same with compiled transitions, which cannot be counted from inside: the engine says what they cost.

    The kernel is tuned eagerly, and counted. Then the first transitions are run twice from the same state with the same
    noise, eager and counted, and compiled: where the engine says another number than the target counted, the run is an
    error. For NUTS, whose trajectories may part by rounding, a tenth is allowed.

    Args:
        kernel: one that compiles.
    """

    kernel: Kernel

    def __post_init__(self) -> None:
        """Refuse what is no kernel."""
        check_kernel(self.kernel, "Compiled(kernel)")

    def __call__(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Tune, hold the engine to its count, and draw."""
        log_prob, tally, kernel, x = density.log_prob, Tally(), self.kernel, starts
        plain = log_prob.release() if hasattr(log_prob, "release") else log_prob  # pyright: ignore[reportFunctionMemberAccess]
        counted, bare = (replace(density, log_prob=f).term() for f in (tally.of(plain), plain))
        clock = time.process_time()
        if kernel.adapts:
            kernel, state = warm_up(kernel, ravel(counted, dtype=x.dtype), x, warmup=budget.warmup, seed=seed)
            x = state.x
        tuning, before = time.process_time() - clock, tally.rows

        def run(target: Term, draws: int, compiled: bool) -> Draw:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = MCMC(kernel, warmup=0, draws=draws, compile=compiled)
                return sample(target, chains=len(x), sampler=sampler, init=x, dtype=x.dtype, seed=seed, progress=False)

        draws = budget.draws if isinstance(kernel, NUTS) else budget.transitions(kernel.evaluations_per_step)
        first = min(20, draws)
        run(counted, first, False)
        seen, twin = tally.rows - before, run(bare, first, True)
        said, report = round(twin.info.evaluations * len(x)), twin.info.extra["compile"]
        if "reason" in report:
            raise RuntimeError(f"{type(kernel).__name__} was not compiled: {report['reason']}")
        if abs(said - seen) > (0.1 * seen if isinstance(kernel, NUTS) else 0):
            raise Miscounted(f"compiled transitions count {said} evaluations and the target, run eagerly, {seen}")
        clock = time.process_time()
        draw = run(bare, draws, True)
        seconds = time.process_time() - clock
        assert isinstance(draw.x, Tensor)
        return MethodRun(
            f"{type(kernel).__name__}, compiled", density.name, seed,
            draws=draw.x.double(),
            gradients=torch.full(draw.x.shape[:2], draw.info.evaluations / draws, dtype=torch.float64),
            tuning_gradients=before / len(x),
            seconds={"compile": float(report["seconds"]), "tuning": tuning, "sampling": seconds},
            divergences=draw.info.divergences,
            counted=False,
            numbers={"step_size": draw.info.step_size, "backend": draw.info.extra["compile"]["backend"]},
        )  # fmt: skip


@dataclass(frozen=True)
class Particles:
    """SMC from the target's reference, as a method: one cloud of ``chains × draws`` particles.

    Every particle's share of the evaluations is its cost. The starts of the chains are not used.

    Args:
        sampler: its settings.
    """

    sampler: SMC = field(default_factory=SMC)

    def __call__(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Go down from the reference and count."""
        tally = Tally()
        target = replace(density, log_prob=tally.of(density.log_prob)).term()
        n, begin = len(starts) * budget.draws, time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw = sample(
                target, n, sampler=self.sampler, init=density.extent(), dtype=torch.float64, seed=seed,
                progress=False,
            )  # fmt: skip
        seconds = time.process_time() - begin
        assert isinstance(draw.x, Tensor)
        return MethodRun(
            type(self.sampler).__name__, density.name, seed,
            draws=draw.x.double()[None],
            gradients=torch.full((1, n), tally.rows / n, dtype=torch.float64),
            tuning_gradients=0.0,
            seconds={"compile": 0.0, "tuning": 0.0, "sampling": seconds},
            divergences=draw.info.divergences,
            log_weights=draw.log_weights.double()[None],
            log_z=draw.log_z,
            numbers={"ess": draw.info.ess, "levels": len(draw.info.levels), "log_z_se": draw.log_z_se},
        )  # fmt: skip


#: our samplers with their defaults, by name
METHODS: dict[str, Callable[[], Method]] = {
    "NUTS": lambda: Chains(NUTS()),
    "HMC": lambda: Chains(HMC()),
    "HMC, ChEES": lambda: Chains(HMC(num_leapfrog=None)),
    "GHMC": lambda: Chains(GHMC()),
    "MALA": lambda: Chains(MALA()),
    "Barker": lambda: Chains(Barker()),
    "MCLMC": lambda: Chains(MicrocanonicalLangevin()),
    "adjusted MCLMC": lambda: Chains(MicrocanonicalLangevin(adjusted=True)),
    "underdamped": lambda: Chains(Underdamped()),
    "ULA": lambda: Chains(ULA()),
    "UHMC": lambda: Chains(UHMC()),
    "random walk": lambda: Chains(RandomWalk()),
    "NUTS, compiled": lambda: Compiled(NUTS()),
    "MCLMC, compiled": lambda: Compiled(MicrocanonicalLangevin()),
    "tempering": lambda: Chains(HMC(num_leapfrog=3), tempered=True),
    "SMC": lambda: Particles(),
    "Gibbs": lambda: Chains(Gibbs()),
    "Gibbs with gradients": lambda: Chains(GibbsWithGradients()),
}


def method(what: str | Kernel | SMC | Method) -> Method:
    """A method of a name in :data:`METHODS`, of a kernel, of SMC, or of a function that is one.

    Raises:
        ValueError: an unknown name.
        TypeError: something else, such as the class of a kernel.
    """
    if isinstance(what, str):
        if what not in METHODS:
            raise ValueError(f"no method is called {what!r}; there are {', '.join(METHODS)}")
        return METHODS[what]()
    if isinstance(what, Kernel):
        return Chains(what)
    if isinstance(what, SMC):
        return Particles(what)
    if isinstance(what, type) or not callable(what):
        name = what.__name__ if isinstance(what, type) else type(what).__name__
        raise TypeError(
            f"a method is a name, a kernel such as NUTS(), SMC(), or a function (density, starts, budget, seed) -> "
            f"MethodRun, got {name}" + (f"; write {name}()" if isinstance(what, type) else "")
        )
    return what
