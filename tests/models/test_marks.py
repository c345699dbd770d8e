"""Pictures in palettes: the law of their colours, and the posterior that follows from it."""

import math

import torch

from boltzmix.models.data import PALETTES, marks
from boltzmix.models.data.scenes import PALETTE


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_palettes_are_fair_and_pictures_keep_to_them():
    """Frequencies within 4.5 standard errors, three of them: 1 false alarm in 40,000 seeds."""
    n = 1500
    x, palette = marks(n, generator())
    assert x.shape == (n, 3, 16, 16)
    assert x.min() == 0.0
    assert x.max() <= 1.0
    share = torch.bincount(palette[:, 0].long(), minlength=3) / n
    assert (share - 1 / 3).abs().max() < 4.5 * math.sqrt(2 / 9 / n)
    # a colour's own direction: fully covered pixels are exactly its RGB
    names = ("red", "green", "blue", "yellow")
    rgb = torch.tensor(PALETTE)
    flat = x.flatten(2).mT  # (n, pixels, 3)
    for index, (_, colors) in enumerate(PALETTES.items()):
        rows = flat[palette[:, 0] == index].flatten(0, 1)
        seen = {name for name, value in zip(names, rgb, strict=True) if ((rows - value).abs() < 1e-6).all(1).any()}
        assert seen == set(colors)


def test_the_same_seed_is_the_same_picture():
    first, second = marks(4, generator(3)), marks(4, generator(3))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], marks(4, generator(4))[0])
