"""Samplers of other libraries as methods of a comparison: same targets, same starts, same run.

One file for each library. Every peer is a frozen dataclass of its settings, called as
``peer(density, starts, budget, seed) -> MethodRun``; what a library raises, draws that are not finite, and with
:func:`limited` a run without end, are rows with an ``error``. None of the libraries is needed to import this package.
"""

from boltzmix.benchmarks.peers.base import Peer, missing, require
from boltzmix.benchmarks.peers.blackjax import (
    BlackJAXAdjustedMCLMC,
    BlackJAXHMC,
    BlackJAXMALA,
    BlackJAXMCLMC,
    BlackJAXNUTS,
)
from boltzmix.benchmarks.peers.counting import verify_count
from boltzmix.benchmarks.peers.guard import guarded
from boltzmix.benchmarks.peers.hamiltorch import HamiltorchHMC
from boltzmix.benchmarks.peers.limited import Limited, limited
from boltzmix.benchmarks.peers.numpyro import NumPyroHMC, NumPyroNUTS
from boltzmix.benchmarks.peers.pyro import PyroNUTS
from boltzmix.benchmarks.peers.raw import RawRun, raw_hmc, raw_mclmc, raw_nuts
from boltzmix.benchmarks.peers.torchebm import TorchEBMHMC, TorchEBMLangevin

#: every peer with the settings that its library recommends, by the name that a report calls it
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        BlackJAXNUTS(),
        BlackJAXHMC(),
        BlackJAXMALA(),
        BlackJAXMCLMC(),
        BlackJAXAdjustedMCLMC(),
        NumPyroNUTS(),
        NumPyroHMC(),
        PyroNUTS(),
        HamiltorchHMC(),
        TorchEBMHMC(),
        TorchEBMLangevin(),
    )
}

__all__ = [
    "PEERS",
    "Peer",
    "BlackJAXNUTS",
    "BlackJAXHMC",
    "BlackJAXMALA",
    "BlackJAXMCLMC",
    "BlackJAXAdjustedMCLMC",
    "NumPyroNUTS",
    "NumPyroHMC",
    "PyroNUTS",
    "HamiltorchHMC",
    "TorchEBMHMC",
    "TorchEBMLangevin",
    "Limited",
    "limited",
    "guarded",
    "verify_count",
    "RawRun",
    "raw_hmc",
    "raw_mclmc",
    "raw_nuts",
    "missing",
    "require",
]
