"""Networks that the model families use: plain ``nn.Module`` classes called ``net(x, c_noise, label)``."""

from boltzmix.models.nets.autoencoder import ConvDecoder, ConvEncoder, Dense
from boltzmix.models.nets.causal_transformer import CausalTransformer
from boltzmix.models.nets.dit import DiT
from boltzmix.models.nets.energy import EnergyConv, EnergyMLP
from boltzmix.models.nets.ensemble import EnsembleMLP
from boltzmix.models.nets.logits import LogitsConv, LogitsMLP
from boltzmix.models.nets.mlp import MLP
from boltzmix.models.nets.pixelcnn import PixelCNN
from boltzmix.models.nets.scene import SceneNet
from boltzmix.models.nets.scene_unet import SceneUNet
from boltzmix.models.nets.temporal_unet import TemporalUNet
from boltzmix.models.nets.trajectory_dit import TrajectoryDiT
from boltzmix.models.nets.unet import UNet
from boltzmix.models.nets.wavenet import WaveNet

__all__ = [
    "CausalTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "Dense",
    "DiT",
    "EnergyConv",
    "EnergyMLP",
    "EnsembleMLP",
    "LogitsConv",
    "LogitsMLP",
    "MLP",
    "PixelCNN",
    "SceneNet",
    "SceneUNet",
    "TemporalUNet",
    "TrajectoryDiT",
    "UNet",
    "WaveNet",
]
