"""Asking whether the gradients that a method says it used are those that its target saw.

One gradient is one row on which the log-density was evaluated, alone or with its derivative: the rule by which our own
samplers are counted, and every library that calls a target in torch. A library in jax only says what it used, since
compiled programs do not call Python; here its target does, on a short run of one chain. (Several chains in one program
take both branches of a condition, which costs time but is no gradient that an algorithm asked for.)
"""

# pyright: reportMissingImports=false

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, Method
from boltzmix.benchmarks.peers.guard import name_of
from boltzmix.benchmarks.tally import Tally


class Spy:
    """A density whose evaluations are counted, in torch and in jax.

    Attributes:
        density: the same target, counting.
    """

    def __init__(self, density: Density) -> None:
        """Nothing is counted yet."""
        self._tally, self._calls, self._make = Tally(), 0, density.jax_log_prob
        make = None if self._make is None else self._made
        self.density = replace(density, log_prob=self._tally.of(density.log_prob), jax_log_prob=make)

    def _made(self) -> Callable[[Any], Any]:
        import jax

        assert self._make is not None
        log_prob = self._make()

        def counted(x: Any) -> Any:
            jax.debug.callback(self._count)
            return log_prob(x)

        return counted

    def _count(self) -> None:
        self._calls += 1

    def evaluations(self) -> int:
        """All of them so far, when everything that still runs has ended."""
        if (jax := sys.modules.get("jax")) is not None:
            jax.effects_barrier()
        return self._tally.rows + self._calls


def verify_count(
    method: Method, density: Density, budget: Budget | None = None, seed: int = 0, chains: int = 1
) -> tuple[float, int]:
    """The gradients that a method says it used on a short run, warm-up included, and those that the target saw.

    Args:
        method: any ``(density, starts, budget, seed) -> MethodRun``.
        density: the target; a copy of it that counts is handed to the method.
        budget: of the run; by default 20 transitions before and 20 after the first kept draw.
        seed: of starts and method.
        chains: more than one only for targets in torch.

    Returns:
        ``(said, counted)``. Libraries in jax may evaluate a start twice without saying so; any other difference is a
        wrong count.

    Raises:
        RuntimeError: the method failed.
    """
    spy = Spy(density)
    run = method(spy.density, density.starts(chains, seed), budget or Budget(20, 20), seed)
    if run.error is not None:
        raise RuntimeError(f"{name_of(method)} failed on {density.name}: {run.error}")
    return float(run.gradients.sum()) + run.tuning_gradients * chains, spy.evaluations()
