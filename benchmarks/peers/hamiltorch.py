"""hamiltorch (Cobb and Jalaian, 2021, *Scaling Hamiltonian Monte Carlo inference for Bayesian neural networks*).

It is not on the package index, so that no adapter of ours could be run against it. The row says so: a peer that is
missing is reported, not left out.
"""

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers.base import Peer
from boltzmix.compose.errors import MissingExtra


@dataclass(frozen=True)
class HamiltorchHMC(Peer):
    """A row that says why there are no figures."""

    library: ClassVar[str] = "hamiltorch"
    algorithm: ClassVar[str] = "HMC"

    def run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Say that there is no adapter.

        Raises:
            MissingExtra: always.
        """
        return self._run(density, starts, budget, seed)

    def _run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> NoReturn:
        raise MissingExtra(
            "hamiltorch is not on the package index (pip install hamiltorch finds nothing), so that "
            '"boltzmix[peers]" does not bring it, and it was not compared'
        )
