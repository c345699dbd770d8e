"""Markov kernels: one transition, any target."""

from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Tune, draw_noise
from boltzmix.compose.kernels.hmc import HMC, UHMC
from boltzmix.compose.kernels.langevin import MALA, ULA

__all__ = ["HMC", "MALA", "UHMC", "ULA", "Info", "Kernel", "Noise", "State", "Tune", "draw_noise"]
