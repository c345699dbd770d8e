"""Samplers: from a formula to a draw."""

from boltzmix.compose.samplers.exact import Exact
from boltzmix.compose.samplers.fkc import FKC
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC, Annealed
from boltzmix.compose.samplers.superdiff import SuperDiff
from boltzmix.compose.samplers.twisted import Twisted

__all__ = ["AIS", "FKC", "MCMC", "SMC", "Annealed", "Exact", "Ladder", "Reverse", "SuperDiff", "Twisted"]
