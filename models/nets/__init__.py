"""Networks that the model families use: plain ``nn.Module`` classes called ``net(x, c_noise, label)``."""

from boltzmix.models.nets.mlp import MLP
from boltzmix.models.nets.unet import UNet

__all__ = ["MLP", "UNet"]
