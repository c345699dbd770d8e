"""Failures as rows: whatever goes wrong in a method becomes a :class:`MethodRun` that says so."""

from dataclasses import replace

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, Method, MethodRun, failed


def name_of(method: Method) -> str:
    """What a method calls itself, or the name of its function or class."""
    return str(getattr(method, "name", None) or getattr(method, "__name__", type(method).__name__))


def finite(run: MethodRun) -> MethodRun:
    """The same run; with draws that are not finite, its ``error`` says how many and where the first is."""
    if run.error is not None or run.draws is None:
        return run
    good = torch.isfinite(run.draws).all(-1)
    if bool(good.all()):
        return run
    chain, draw = (~good).nonzero()[0].tolist()
    where = f"the first is draw {draw} of chain {chain}"
    return replace(run, error=f"NonFinite: {int((~good).sum())} of {good.numel()} draws are not finite, {where}")


def guarded(method: Method, density: Density, starts: Tensor, budget: Budget, seed: int, name: str = "") -> MethodRun:
    """Run a method, with every exception and every draw that is not finite turned into a row with an ``error``.

    ``KeyboardInterrupt`` and ``SystemExit`` still end the program.

    Args:
        method: any ``(density, starts, budget, seed) -> MethodRun``.
        density: the target.
        starts: ``(chains, D)``.
        budget: what it may spend.
        seed: of the method.
        name: of a method that fails; by default what it calls itself.
    """
    try:
        return finite(method(density, starts, budget, seed))
    except Exception as error:
        return failed(name or name_of(method), density, seed, error)
