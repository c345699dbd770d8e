"""Markov kernels: one transition, any target."""

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Tune, draw_noise
from boltzmix.compose.kernels.hmc import HMC, UHMC
from boltzmix.compose.kernels.langevin import MALA, ULA
from boltzmix.compose.kernels.mass import Dense, Diagonal, LowRank, Mass

__all__ = [
    "HMC",
    "MALA",
    "UHMC",
    "ULA",
    "Dense",
    "Diagonal",
    "Info",
    "Kernel",
    "LowRank",
    "Mass",
    "Noise",
    "State",
    "Tune",
    "draw_noise",
]
