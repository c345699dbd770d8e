"""Samplers: from a formula to a draw."""

from boltzmix.compose.samplers.exact import Exact
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC, Annealed

__all__ = ["AIS", "MCMC", "SMC", "Annealed", "Exact", "Ladder", "Reverse"]
