"""Model families as terms, their networks, training, and weights that ship with the package.

Only torch is imported here; scikit-learn, safetensors and tqdm are imported where they are used.
"""

from boltzmix.models import data, nets, recipes
from boltzmix.models.classifier import Classifier
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.fit import FitResult, fit
from boltzmix.models.load import card, load, names, save

__all__ = [
    "Classifier",
    "Diffusion",
    "EnergyDiffusion",
    "FitResult",
    "card",
    "data",
    "fit",
    "load",
    "names",
    "nets",
    "recipes",
    "save",
]
