"""Fixed work to be timed: transitions of one kernel on one target with given settings, ours in three tiers and peers'.

A job is prepared once, which compiles, and then run again and again, going on from where its chains stand. Jobs start
at the same points, and keep every position, as somebody who wants draws would.
"""

# pyright: reportMissingImports=false

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.speed import targets, timing
from boltzmix.compose.compiled.policy import REPORTED
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels.base import Kernel, State, Tune
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.kernels.microcanonical import MicrocanonicalLangevin

#: leapfrogs of a transition of HMC
LEAPFROGS = 10
#: what noise may hold at once, as in :class:`boltzmix.MCMC`
_NUMBERS = 2**19
_BLOCK = 64
#: compilers of :func:`boltzmix.compile_kernel`
BACKENDS = ("auto", "native", "inductor")


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Args:
        algorithm: ``"hmc"`` (10 leapfrogs, no jitter) or ``"mclmc"`` (unadjusted, two gradients a step).
        target: name of a target of :data:`boltzmix.benchmarks.speed.targets.TARGETS`.
        chains: number of chains.
        steps: transitions of one run.
        tier: ``"eager"``, or a backend of :func:`boltzmix.compile_kernel`, or ``"BlackJAX"``.
        seed: of starts and noise.

    Raises:
        ValueError: another algorithm, or numbers below 1.
    """

    algorithm: str
    target: str
    chains: int
    steps: int
    tier: str
    seed: int = 0

    def __post_init__(self) -> None:
        """Check."""
        if self.algorithm not in ("hmc", "mclmc"):
            raise ValueError(f"algorithm is 'hmc' or 'mclmc', got {self.algorithm!r}")
        for name in ("chains", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is an int >= 1, got {getattr(self, name)!r}")

    @property
    def gradients(self) -> int:
        """Of one run, all chains together."""
        return self.steps * self.chains * (LEAPFROGS if self.algorithm == "hmc" else 2)

    def settings(self, dim: int, step_size: float) -> dict[str, Any]:
        r"""Step size and, for MCLMC, length.

        MCLMC's particles have speed 1 where HMC's have :math:`\sqrt D` on average, so the same way in one step takes a
        step size of :math:`\epsilon \sqrt D`; the length is ten of them.
        """
        if self.algorithm == "hmc":
            return {"step_size": step_size}
        return {"step_size": step_size * dim**0.5, "length": 10 * step_size * dim**0.5}


class Prepared(ABC):
    """A job that is ready.

    Attributes:
        compile_seconds: of compiling, by the clock on the wall where compilers are other processes; 0 where nothing is.
        facts: what is worth a note, such as the backend.
    """

    compile_seconds: float = 0.0
    facts: dict[str, Any]

    @abstractmethod
    def transitions(self) -> Any:
        """The next transitions of all chains; returns when they are computed."""

    @abstractmethod
    def positions(self, found: Any) -> Tensor:
        """What :meth:`transitions` gave, as ``(steps, N, D)``."""

    def run(self) -> tuple[float, Any]:
        """CPU seconds of a run, and what it gave."""
        clock = timing.now()
        found = self.transitions()
        return timing.now() - clock, found


class Moments(NamedTuple):
    """Per chain, of one run: means ``(N, D)`` of x and of x²."""

    mean: Tensor
    square: Tensor


def moments(x: Tensor) -> Moments:
    """Of positions ``(steps, N, D)``, in float64."""
    x = x.double()
    return Moments(x.mean(0), (x * x).mean(0))


def discrepancy(a: Moments, b: Moments) -> float:
    r"""How far two samplers of the same law are apart: the largest :math:`|\sum_n d_n| / \sqrt{\sum_n d_n^2}`.

    Here d are differences of the chains' moments, chain by chain. When both sides have one law these are independent
    and symmetric, so that for each of the 2 D figures :math:`P(\ldots \ge t) \le 2 e^{-t^2 / 2}` whatever the law
    (Efron, 1969, *Student's t-test under symmetry conditions*). No figure exceeds :math:`\sqrt N`.
    """
    worst = 0.0
    for one, other in zip(a, b, strict=True):
        d = one - other
        norm = d.square().sum(0).sqrt()
        if not bool(torch.isfinite(norm).all()):
            return float("inf")
        figures = d.sum(0).abs() / norm
        worst = max(worst, float(torch.where(norm > 0, figures, torch.zeros_like(figures)).max()))
    return worst


# ------------------------------------------------------------------------ ours


def kernel_of(work: Work, dim: int, step_size: float) -> Kernel:
    """The kernel with the job's settings."""
    options = work.settings(dim, step_size)
    return HMC(num_leapfrog=LEAPFROGS, jitter=False, **options) if work.algorithm == "hmc" else MicrocanonicalLangevin(
        **options, integrator="mclachlan"
    )  # fmt: skip


class Ours(Prepared):
    """A kernel of ours in float32: eager steps, or compiled blocks."""

    def __init__(self, work: Work, density: Density, step_size: float) -> None:
        """Compile, where the tier asks for it."""
        kernel = kernel_of(work, density.dim, step_size)
        self.work, self.kernel = work, kernel
        self.target = ravel(density.term(torch.float32))
        self.generator = torch.Generator().manual_seed(work.seed)
        starts = density.starts(work.chains, work.seed).float()
        self.state: State = kernel.init(self.target, starts, self.generator)
        self.tune: Tune = kernel.tune(self.state.x)
        self.block: Any = None
        self.length = max(1, min(_BLOCK, _NUMBERS // max(starts.numel(), 1)))
        self.facts = {}
        if work.tier != "eager":
            clock = time.perf_counter()  # compilers are processes of their own
            block = self.block = compiled(kernel, self.target, self.state, self.tune, work.tier)
            noise = block.noise(self.state, self.generator, min(self.length, work.steps))
            # whatever is left to the first call; chains stay where they are
            block(self.state, self.tune, noise, REPORTED)
            self.compile_seconds = time.perf_counter() - clock
            self.facts["backend"] = getattr(self.block, "backend", work.tier)

    def transitions(self) -> list[Tensor]:
        """Draw noise and move, block by block."""
        found: list[Tensor] = []
        done = 0
        while done < self.work.steps:
            steps = min(self.length, self.work.steps - done)
            noise = (self.block or self.kernel).noise(self.state, self.generator, steps)
            if self.block is None:
                for k in range(steps):
                    self.state, _ = self.kernel.step(self.target, self.state, self.tune, noise[k])
                    found.append(self.state.x[None])
            else:
                self.state, trace = self.block(self.state, self.tune, noise, REPORTED)  # what MCMC asks for
                found.append(trace.x)
            done += steps
        return found

    def positions(self, found: list[Tensor]) -> Tensor:
        """In one tensor."""
        return torch.cat(found)


def compiled(kernel: Kernel, target: Any, state: State, tune: Tune, backend: str) -> Any:
    """A block of transitions by :func:`boltzmix.compile_kernel`.

    Raises:
        ValueError: no backend of this name.
        CompileError: the backend cannot.
    """
    if backend not in BACKENDS:
        raise ValueError(f"a tier is 'eager', 'BlackJAX' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    from boltzmix.compose.compiled.block import compile_kernel

    return compile_kernel(kernel, target, state, tune, backend=backend)


# ---------------------------------------------------------------------- theirs


class BlackJAXJob(Prepared):
    """BlackJAX in float32: jit of a scan over transitions of chains that are mapped over."""

    def __init__(self, work: Work, density: Density, step_size: float) -> None:
        """Compile."""
        import jax

        from boltzmix.benchmarks.peers import blackjax, jax_base
        from boltzmix.benchmarks.peers.base import require

        options: dict[str, Any] = {"dtype": torch.float32, **work.settings(density.dim, step_size)}
        make = blackjax.BlackJAXHMC if work.algorithm == "hmc" else blackjax.BlackJAXMCLMC
        require(make.packages, make.library)
        if work.algorithm == "hmc":
            options["num_leapfrog"] = LEAPFROGS
        self.peer = make(**options)
        self.precision = jax_base.precision
        with self.precision(torch.float32):
            programs = self.peer.programs(density, work.chains, 0, work.steps)
            self.draw = programs.draw.call
            self.key, begin = jax.random.split(jax.random.key(work.seed))
            starts = jax_base.array(density.starts(work.chains, work.seed), torch.float32)
            self.carry, _ = jax.block_until_ready(programs.tune.call(begin, starts))
        self.compile_seconds = programs.draw.seconds
        self.facts = {}

    def transitions(self) -> Any:
        """One call of the program."""
        import jax

        with self.precision(torch.float32):
            self.key, go = jax.random.split(self.key)
            self.carry, found = jax.block_until_ready(self.draw(go, self.carry))
        return found["x"]

    def positions(self, found: Any) -> Tensor:
        """As a tensor."""
        import numpy as np

        return torch.tensor(np.asarray(found))


def prepare(work: Work) -> Prepared:
    """Make a job ready; compiles."""
    density, step_size = targets.target(work.target)
    return (BlackJAXJob if work.tier == "BlackJAX" else Ours)(work, density, step_size)
