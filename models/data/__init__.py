"""Data: 2-D toys as exact samplers, handwritten digits, procedural scenes, and files that are already on this machine.

``fit`` takes what these return: tensors, or streams ``(n, generator) -> batch``. Nothing here downloads anything.
"""

from boltzmix.models.data import obstacle_world, scenes, windows
from boltzmix.models.data.digits import bits_per_dim, dequantised_digits, digit_levels, digits
from boltzmix.models.data.files import Images, image_folder, npz
from boltzmix.models.data.marks import PALETTES, marks
from boltzmix.models.data.obstacle_world import ObstacleWorld, obstacles
from boltzmix.models.data.scenes import Scenes
from boltzmix.models.data.standard import cifar10, mnist
from boltzmix.models.data.toys import BAR, TOYS, bar, circle, components, grid, line, ring, two_moons
from boltzmix.models.data.transforms import TRANSFORMS, chain
from boltzmix.models.data.windows import EpisodeWindows

__all__ = [
    "BAR",
    "EpisodeWindows",
    "Images",
    "ObstacleWorld",
    "PALETTES",
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
    "marks",
    "mnist",
    "npz",
    "obstacle_world",
    "obstacles",
    "ring",
    "scenes",
    "two_moons",
    "windows",
]
