"""Markov kernels: one transition, any target."""

from boltzmix.compose.kernels.barker import Barker
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Tune, draw_noise
from boltzmix.compose.kernels.blocks import BlockGibbs
from boltzmix.compose.kernels.elliptical_slice import EllipticalSlice
from boltzmix.compose.kernels.ghmc import GHMC
from boltzmix.compose.kernels.gibbs import Gibbs
from boltzmix.compose.kernels.gradient_gibbs import DiscreteLangevin, GibbsWithGradients
from boltzmix.compose.kernels.hmc import HMC, UHMC
from boltzmix.compose.kernels.langevin import MALA, ULA
from boltzmix.compose.kernels.mass import Dense, Diagonal, LowRank, Mass
from boltzmix.compose.kernels.microcanonical import MicrocanonicalLangevin
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.kernels.random_walk import RandomWalk
from boltzmix.compose.kernels.tempering import ParallelTempering
from boltzmix.compose.kernels.underdamped import Underdamped

__all__ = [
    "GHMC",
    "HMC",
    "MALA",
    "NUTS",
    "UHMC",
    "ULA",
    "Barker",
    "BlockGibbs",
    "Dense",
    "Diagonal",
    "DiscreteLangevin",
    "EllipticalSlice",
    "Gibbs",
    "GibbsWithGradients",
    "Info",
    "Kernel",
    "LowRank",
    "Mass",
    "MicrocanonicalLangevin",
    "Noise",
    "ParallelTempering",
    "RandomWalk",
    "State",
    "Tune",
    "Underdamped",
    "draw_noise",
]
