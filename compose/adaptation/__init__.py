"""Adaptation during warm-up: step sizes, masses, trajectory lengths."""

from boltzmix.compose.adaptation.base import Adaptation, Tuner
from boltzmix.compose.adaptation.blocks import BlockAdaptation
from boltzmix.compose.adaptation.chees import ChEES
from boltzmix.compose.adaptation.loop import warm_up, window_adaptation
from boltzmix.compose.adaptation.microcanonical import Microcanonical
from boltzmix.compose.adaptation.temperatures import Temperatures
from boltzmix.compose.adaptation.windows import Windows

__all__ = [
    "Adaptation",
    "BlockAdaptation",
    "ChEES",
    "Microcanonical",
    "Temperatures",
    "Tuner",
    "Windows",
    "warm_up",
    "window_adaptation",
]
