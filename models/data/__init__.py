"""Data: 2-D toys as exact samplers, handwritten digits, procedural scenes, and files that are already on this machine.

``fit`` takes what these return: tensors, or streams ``(n, generator) -> batch``. Nothing here downloads anything.
"""

from boltzmix.models.data import scenes
from boltzmix.models.data.digits import bits_per_dim, dequantised_digits, digit_levels, digits
from boltzmix.models.data.files import Images, image_folder, npz
from boltzmix.models.data.scenes import Scenes
from boltzmix.models.data.standard import cifar10, mnist
from boltzmix.models.data.toys import BAR, TOYS, bar, circle, components, grid, line, ring, two_moons
from boltzmix.models.data.transforms import TRANSFORMS, chain

__all__ = [
    "BAR",
    "Images",
    "Scenes",
    "TOYS",
    "TRANSFORMS",
    "bar",
    "bits_per_dim",
    "chain",
    "cifar10",
    "circle",
    "components",
    "dequantised_digits",
    "digit_levels",
    "digits",
    "grid",
    "image_folder",
    "line",
    "mnist",
    "npz",
    "ring",
    "scenes",
    "two_moons",
]
