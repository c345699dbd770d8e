"""Model families as terms, their networks, training, and weights that ship with the package.

Only torch is imported here; scikit-learn, safetensors and tqdm are imported where they are used.
"""

from boltzmix.models import data, nets, recipes, schedules
from boltzmix.models.autoregressive import Autoregressive
from boltzmix.models.classifier import Classifier
from boltzmix.models.continuous_flow import ContinuousFlow
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.diffusion_bound import diffusion_elbo
from boltzmix.models.dynamics import Dynamics, InverseDynamics
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.energy_model import EnergyModel
from boltzmix.models.fit import FitResult, fit
from boltzmix.models.flow import Flow
from boltzmix.models.flow_matching import FlowMatching
from boltzmix.models.gaussian_base import GaussianBase
from boltzmix.models.glow import Glow
from boltzmix.models.hierarchical_vae import HierarchicalVAE
from boltzmix.models.likelihood import ODEDensity, log_likelihood
from boltzmix.models.load import card, load, names, save
from boltzmix.models.ncsn import NCSN
from boltzmix.models.objectives import ContrastiveDivergence, LevelCalibration, NoiseContrastive, ScoreMatching
from boltzmix.models.returns import Returns
from boltzmix.models.reward import Reward
from boltzmix.models.trajectories import TrajectoryDiffusion
from boltzmix.models.transition_energy import NoisedTransitionNet, TransitionEnergy
from boltzmix.models.vae import VAE

__all__ = [
    "EnergyModel",
    "GaussianBase",
    "ContrastiveDivergence",
    "ScoreMatching",
    "NoiseContrastive",
    "LevelCalibration",
    "Diffusion",
    "TrajectoryDiffusion",
    "EnergyDiffusion",
    "NCSN",
    "FlowMatching",
    "Flow",
    "Glow",
    "ContinuousFlow",
    "VAE",
    "HierarchicalVAE",
    "Autoregressive",
    "Classifier",
    "Reward",
    "Returns",
    "Dynamics",
    "InverseDynamics",
    "TransitionEnergy",
    "NoisedTransitionNet",
    "ODEDensity",
    "log_likelihood",
    "diffusion_elbo",
    "fit",
    "FitResult",
    "save",
    "load",
    "names",
    "card",
    "data",
    "nets",
    "recipes",
    "schedules",
]
