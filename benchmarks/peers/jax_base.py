"""How samplers written in jax are compiled, timed and read: tuning and sampling apart, compilation apart from both.

All chains are one program, compiled ahead of time (``jit(…).lower(…).compile()``), so that the first run costs what the
others do. Programs are kept for the target and the lengths that they were compiled for, and reused for every seed; each
run still says what compiling its program took. Results are brought over once, when everything has run.
"""

# pyright: reportMissingImports=false

import inspect
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers.base import Peer

LogProb = Callable[[Any], Any]

_FLAG = "--xla_cpu_multi_thread_eigen=false"


def one_thread() -> None:
    """Start jax with one thread to compute on; without effect where jax has computed already.

    XLA takes the size of its pool from the variable NPROC, once, when its first device is made.
    """
    import jax

    before = {name: os.environ.get(name) for name in ("NPROC", "XLA_FLAGS")}
    os.environ["NPROC"] = "1"
    os.environ["XLA_FLAGS"] = f"{before['XLA_FLAGS'] or ''} {_FLAG}".strip()
    try:
        jax.devices()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def precision(dtype: torch.dtype) -> Any:
    """A context in which jax computes in float64 or in float32, whatever it does outside."""
    import jax

    one_thread()
    return jax.enable_x64(dtype == torch.float64)


def array(x: Tensor, dtype: torch.dtype) -> np.ndarray:
    """As numpy holds it, in the precision of a program."""
    return x.to(dtype).numpy()


def rows_of(x: np.ndarray) -> Tensor:
    """Facts ``(draws, chains, …)`` as a tensor ``(chains, draws, …)`` in float64."""
    return torch.tensor(np.swapaxes(x, 0, 1), dtype=torch.float64)


@dataclass(frozen=True)
class Compiled:
    """A program and the CPU seconds of tracing and compiling it."""

    call: Callable[..., Any]
    seconds: float


def compiled(function: Callable[..., Any], *example: Any) -> Compiled:
    """The function compiled for arguments like the examples (arrays, or shapes of them)."""
    import jax

    clock = time.process_time()
    call = jax.jit(function).lower(*example).compile()
    return Compiled(call, time.process_time() - clock)


def timed(call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a program gives, when all of it is there, and its CPU seconds."""
    import jax

    clock = time.process_time()
    found = jax.block_until_ready(call(*args))
    return found, time.process_time() - clock


@dataclass(frozen=True)
class Programs:
    """Tuning and sampling of all chains, ``tune(key, starts)`` and ``draw(key, carry)``: both give ``(carry, facts)``.

    Facts of tuning: ``gradients`` per chain, and settings. Facts of sampling, each ``(draws, chains, …)``: positions
    ``x``, ``gradients``, ``divergent``, and what else is worth a number.
    """

    tune: Compiled
    draw: Compiled


@dataclass(frozen=True)
class JaxPeer(Peer):
    """A sampler in jax: :meth:`_functions` gives what it does, everything else is the same for all."""

    packages: ClassVar[tuple[str, ...]] = ("jax",)

    @abstractmethod
    def _functions(self, log_prob: LogProb, dim: int, chains: int, warmup: int, draws: int) -> tuple[Any, Any]:
        """The two functions of :class:`Programs`, of all chains, not compiled."""

    def _cost(self) -> float | None:
        """Gradients of a transition, where they are known before it; None where they are not."""
        return None

    def programs(self, density: Density, chains: int, warmup: int, draws: int) -> Programs:
        """Both programs, compiled once for each target, number of chains and lengths. Needs :func:`precision`.

        Raises:
            ValueError: the density was not written in jax.
        """
        make = density.jax_log_prob
        if make is None:
            raise ValueError(f"{density.name} is not written in jax, so {self.name} cannot run on it")
        key = inspect.unwrap(make)  # one who watches the target, and says so by ``__wrapped__``, does not change it
        return _programs(self, key, _Same(make()), density.dim, chains, warmup, draws)

    def _run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        import jax

        cost = self._cost()
        draws = budget.draws if cost is None else budget.transitions(cost)
        with precision(self.dtype):
            made = self.programs(density, len(starts), budget.warmup, draws)
            begin, go = jax.random.split(jax.random.key(seed))
            (carry, tuned), tuning_seconds = timed(made.tune.call, begin, array(starts, self.dtype))
            (_, drawn), sampling_seconds = timed(made.draw.call, go, carry)
            tuned, drawn = jax.device_get((tuned, drawn))
        gradients = rows_of(drawn["gradients"])
        return MethodRun(
            self.name, density.name, seed, rows_of(drawn["x"]), gradients,
            tuning_gradients=float(np.mean(tuned["gradients"], dtype=np.float64)),
            seconds={
                "compile": made.tune.seconds + made.draw.seconds,
                "tuning": tuning_seconds, "sampling": sampling_seconds,
            },
            divergences=int(drawn["divergent"].sum()), counted=False,
            numbers=numbers(tuned, drawn, float(gradients.mean())),
        )  # fmt: skip


def numbers(tuned: Mapping[str, Any], drawn: Mapping[str, Any], cost: float) -> dict[str, Any]:
    """Means over chains and draws of the settings that were found and of what happened with them.

    ``length`` is that of a trajectory in steps; where nothing says it, a step is a gradient.
    """
    facts: dict[str, Any] = {}
    for name in ("step_size", "length", "acceptance", "energy_error"):
        values = drawn.get(name, tuned.get(name))
        if values is not None:
            facts[name] = float(np.mean(values, dtype=np.float64))
    facts.setdefault("length", cost)
    if "mass" in tuned:
        facts["variances"] = np.mean(tuned["mass"], axis=0, dtype=np.float64).tolist()
    return facts


class _Same:
    """A log-density that is equal to any other: programs are kept by the function that made it."""

    def __init__(self, log_prob: LogProb) -> None:
        self.log_prob = log_prob

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _programs(
    peer: JaxPeer, key: Callable[..., Any], log_prob: _Same, dim: int, chains: int, warmup: int, draws: int
) -> Programs:
    import jax

    tune, draw = peer._functions(log_prob.log_prob, dim, chains, warmup, draws)
    seed = jax.random.key(0)
    starts = jax.ShapeDtypeStruct((chains, dim), np.float64 if peer.dtype == torch.float64 else np.float32)
    first = compiled(tune, seed, starts)
    carry, _ = jax.eval_shape(tune, seed, starts)
    return Programs(first, compiled(draw, seed, carry))
