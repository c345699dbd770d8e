"""What a peer costs when everything is compiled: CPU seconds of repeated calls, nothing adapted in them.

Each call goes on where the one before ended, with its own key, and keeps positions, acceptance and divergences of every
transition, as a user's run would.
"""

# pyright: reportMissingImports=false

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.peers.base import check_starts, require
from boltzmix.benchmarks.peers.blackjax import BlackJAXHMC, BlackJAXMCLMC, BlackJAXNUTS
from boltzmix.benchmarks.peers.jax_base import JaxPeer, array, precision, rows_of, timed
from boltzmix.benchmarks.peers.numpyro import NumPyroNUTS


@dataclass(frozen=True)
class RawRun:
    """Repeated calls of one compiled program.

    Attributes:
        name: library and algorithm.
        seconds: of the process' CPU, one for each call.
        gradients: of all chains, one for each call.
        compile_seconds: of tracing and compiling.
        tuning_seconds: before the first call, compilation apart.
        tuning_gradients: of all chains.
        draws: of the last call, ``(chains, transitions, D)`` in float64.
        acceptance: mean over the last call; NaN for samplers without a test.
        divergences: of the last call, all chains.
        step_size: mean over chains.
    """

    name: str
    seconds: list[float]
    gradients: list[float]
    compile_seconds: float
    tuning_seconds: float
    tuning_gradients: float
    draws: Tensor
    acceptance: float
    divergences: int
    step_size: float

    @property
    def rate(self) -> float:
        """Gradients per CPU second: the median over calls."""
        return median(g / s for g, s in zip(self.gradients, self.seconds, strict=True))


def raw_hmc(
    density: Density,
    starts: Tensor,
    step_size: float,
    num_leapfrog: int,
    transitions: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
) -> RawRun:
    """BlackJAX's HMC with a fixed step and unit mass: jit, a scan over transitions, vmap over chains in it.

    Args:
        density: the target.
        starts: ``(chains, D)`` in float64.
        step_size: ε.
        num_leapfrog: L, gradients of a transition.
        transitions: of each chain in a call.
        seed: of the momenta and tests.
        dtype: float32 or float64.
        repeats: calls that are timed, after one that is not.

    Raises:
        MissingExtra: BlackJAX is not installed.
    """
    peer = BlackJAXHMC(dtype=dtype, step_size=step_size, num_leapfrog=num_leapfrog)
    return repeated(peer, density, starts, 0, transitions, seed, repeats)


def raw_mclmc(
    density: Density,
    starts: Tensor,
    step_size: float,
    length: float,
    transitions: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
) -> RawRun:
    """BlackJAX's unadjusted MCLMC with step ε and momentum decoherence length L, unit mass; see :func:`raw_hmc`."""
    peer = BlackJAXMCLMC(dtype=dtype, step_size=step_size, length=length)
    return repeated(peer, density, starts, 0, transitions, seed, repeats)


def raw_nuts(
    density: Density,
    starts: Tensor,
    warmup: int,
    draws: int,
    seed: int,
    library: str = "BlackJAX",
    dtype: torch.dtype = torch.float64,
    repeats: int = 1,
) -> RawRun:
    """NUTS of a library after its own adaptation: sampling timed apart from tuning.

    Args:
        density: the target.
        starts: ``(chains, D)`` in float64.
        warmup: transitions that adapt.
        draws: of each chain in a call.
        seed: of the whole run.
        library: "BlackJAX" or "NumPyro".
        dtype: float32 or float64.
        repeats: calls that are timed; the first is among them, since nothing is compiled in it.

    Raises:
        ValueError: another library.
        MissingExtra: it is not installed.
    """
    peers = {"BlackJAX": BlackJAXNUTS, "NumPyro": NumPyroNUTS}
    if library not in peers:
        raise ValueError(f"library is one of {', '.join(peers)}, got {library!r}")
    return repeated(peers[library](dtype=dtype), density, starts, warmup, draws, seed, repeats, untimed=0)


def repeated(
    peer: JaxPeer, density: Density, starts: Tensor, warmup: int, draws: int, seed: int, repeats: int, untimed: int = 1
) -> RawRun:
    """Any sampler in jax: tune it once, then call its program for ``draws`` transitions again and again."""
    check_starts(density, starts)
    if repeats < 1 or draws < 1:
        raise ValueError(f"repeats and transitions are at least 1, got {repeats} and {draws}")
    require(peer.packages, peer.name)
    import jax

    with precision(peer.dtype):
        made = peer.programs(density, len(starts), warmup, draws)
        begin, *keys = jax.random.split(jax.random.key(seed), 1 + untimed + repeats)
        (carry, tuned), tuning_seconds = timed(made.tune.call, begin, array(starts, peer.dtype))
        seconds, gradients, facts = [], [], {}
        for key in keys:
            (carry, facts), taken = timed(made.draw.call, key, carry)
            seconds.append(taken)
            gradients.append(float(np.sum(np.asarray(facts["gradients"]), dtype=np.float64)))
        facts, tuned = jax.device_get((facts, tuned))
    return RawRun(
        peer.name, seconds[untimed:], gradients[untimed:], made.tune.seconds + made.draw.seconds, tuning_seconds,
        tuning_gradients=float(np.sum(tuned["gradients"], dtype=np.float64)),
        draws=rows_of(facts["x"]),
        acceptance=float(np.mean(facts["acceptance"], dtype=np.float64)) if "acceptance" in facts else float("nan"),
        divergences=int(facts["divergent"].sum()),
        step_size=float(np.mean(tuned["step_size"], dtype=np.float64)),
    )  # fmt: skip
