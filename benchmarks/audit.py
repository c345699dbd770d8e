"""A method runs on a target that counts, without the truth to look up, and is held to what it says."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, Method, MethodRun, failed
from boltzmix.benchmarks.peers.limited import Limited
from boltzmix.benchmarks.tally import Tally


def blind(density: Density, tally: Tally) -> Density:
    """The target as a method sees it: evaluations are counted, and the truth is not there to be looked up."""
    jax = density.jax_log_prob
    unknown = torch.full_like(density.mean, torch.nan)
    return replace(
        density,
        log_prob=tally.of(density.log_prob),
        jax_log_prob=None if jax is None else tally.away(jax),
        mean=unknown,
        variance=unknown,
        square_mean=unknown,
        square_variance=unknown,
        exact=None,
        log_z=None,
        modes=None,
    )


def run_counted(method: Method, label: str, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
    """Run a method on a target that counts, and hold what it says against the count.

    A method that raises, returns draws that are not finite or of the wrong shape, or says another number of gradients
    than the target counted, comes back with ``error`` set and its numbers kept. A method that is
    :class:`~boltzmix.benchmarks.peers.limited.Limited` is counted where it runs, in its own process.
    """
    if isinstance(method, Limited):
        return method.apply(run_counted, label, density, starts, budget, seed, label=label)
    tally = Tally()
    try:
        run = method(blind(density, tally), starts.clone(), budget, seed)
    except Exception as error:
        return failed(label, density, seed, error)
    if not isinstance(run, MethodRun):
        return failed(label, density, seed, f"TypeError: a method returns a MethodRun, got {type(run).__name__}")
    run = replace(run, method=label, target=density.name, seed=seed)
    if run.error is not None:
        return run
    return replace(run, error=_fault(run, density, len(starts), tally))


def _fault(run: MethodRun, density: Density, chains: int, tally: Tally) -> str | None:
    """What is wrong with a run, None when nothing is."""
    x, cost = run.draws, run.gradients
    if x is None:
        return "ValueError: the method returned no draws and no error"
    lead = tuple(x.shape[:2])
    expected = 1 if run.log_weights is not None else chains
    if x.ndim != 3 or x.shape[2] != density.dim or (lead[0] != expected and run.log_weights is None):
        return f"ValueError: draws are (chains, draws, D) = ({expected}, …, {density.dim}), got {tuple(x.shape)}"
    if tuple(cost.shape) != lead:
        return f"ValueError: gradients are (chains, draws) = {lead}, got {tuple(cost.shape)}"
    if run.log_weights is not None and tuple(run.log_weights.shape) != lead:
        return f"ValueError: log_weights are (1, n) = {lead}, got {tuple(run.log_weights.shape)}"
    if bad := int((~torch.isfinite(x)).flatten(2).any(2).sum()):
        return f"NonFinite: {bad} of {lead[0] * lead[1]} draws are not finite"
    said = float(cost.double().sum()) + run.tuning_gradients * (1 if run.log_weights is not None else chains)
    if not (math.isfinite(said) and bool((cost >= 0).all()) and run.tuning_gradients >= 0):
        return f"ValueError: gradients are finite and not negative, got {said:g} in all"
    uncounted = not run.counted and tally.elsewhere and tally.rows == 0
    if not uncounted and abs(said - tally.rows) > 0.5 + 1e-6 * tally.rows:
        return f"Miscounted: {said:.0f} gradients were reported and the target counted {tally.rows}"
    return None
