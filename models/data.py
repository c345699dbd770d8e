"""Data: 2-D toys as exact samplers, and scikit-learn's handwritten digits.

A toy is a function ``(n, generator) -> (n, 2)``: an endless, exact stream. :func:`components` gives the mixtures behind
those that are mixtures, so that their exact densities can be built.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra

TOYS = ("ring", "line", "circle", "bar", "two_moons", "grid")
BAR = ((-0.2, 0.2), (-1.0, 1.0))


def components(name: str) -> tuple[Tensor, float, Tensor]:
    """Means ``(K, 2)``, variance and weights ``(K,)`` of the isotropic mixture behind ring, line, circle or grid."""
    if name == "ring":
        return _circle_of(8, 1.0), 0.15**2, torch.full((8,), 1 / 8)
    if name == "circle":
        return _circle_of(8, 0.5), 0.03**2, torch.full((8,), 1 / 8)
    if name == "line":
        along = torch.linspace(0, 1, 6)[:, None]
        start, end = torch.tensor([-0.6, 0.8]), torch.tensor([1.2, -0.4])
        return start + along * (end - start), 0.25**2, torch.softmax(torch.linspace(0, 1, 6), 0)
    if name == "grid":
        ticks = torch.linspace(-1, 1, 5)
        return torch.cartesian_prod(ticks, ticks), 0.1**2, torch.full((25,), 1 / 25)
    raise ValueError(f"components() knows ring, line, circle and grid, got {name!r}")


def _circle_of(k: int, radius: float) -> Tensor:
    angle = 2 * math.pi * torch.arange(k) / k
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _mixture(name: str, n: int, generator: torch.Generator | None) -> Tensor:
    means, variance, weights = components(name)
    chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
    return means[chosen] + variance**0.5 * torch.randn(n, 2, generator=generator)


def ring(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Eight equal modes of standard deviation 0.15 on the unit circle."""
    return _mixture("ring", n, generator)


def line(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Six modes of standard deviation 0.25 from (−0.6, 0.8) to (1.2, −0.4), weights softmax(linspace(0, 1, 6))."""
    return _mixture("line", n, generator)


def circle(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Eight equal modes of standard deviation 0.03 on a circle of radius 0.5 (Du et al., 2023)."""
    return _mixture("circle", n, generator)


def grid(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Twenty-five equal modes of standard deviation 0.1 on a 5 by 5 grid of spacing 0.5."""
    return _mixture("grid", n, generator)


def bar(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on |x| < 0.2, |y| < 1 (Du et al., 2023)."""
    return (2 * torch.rand(n, 2, generator=generator) - 1) * torch.tensor([0.2, 1.0])


def two_moons(n: int, generator: torch.Generator | None = None, noise: float = 0.1) -> Tensor:
    """Two interleaved half circles, centred, with Gaussian noise."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return torch.stack([x, y], 1) + noise * torch.randn(n, 2, generator=generator)


def digits(split: Literal["train", "test"] = "train", seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, ``(N, 1, 8, 8)`` in [−1, 1], and their labels ``(N,)``.

    One fifth of each class (359 images in all) is held out; the split depends on ``seed`` alone.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra('digits() needs scikit-learn: pip install "boltzmix[digits]"') from error
    found: Any = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(found.target).long()
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(10):
        index = torch.nonzero(labels == label)[:, 0]
        index = index[torch.randperm(len(index), generator=generator)]
        held_out = round(len(index) / 5)
        chosen.append(index[:held_out] if split == "test" else index[held_out:])
    index = torch.cat(chosen).sort().values
    return images[index], labels[index]
