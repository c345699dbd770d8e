"""2-D toys as exact samplers.

A toy is a function ``(n, generator) -> (n, 2)``: an endless, exact stream. :func:`components` gives the mixtures behind
those that are mixtures, so that their exact densities can be built.
"""

import math

import torch
from torch import Tensor

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


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _circle_of(k: int, radius: float) -> Tensor:
    angle = 2 * math.pi * torch.arange(k) / k
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _mixture(name: str, n: int, generator: torch.Generator | None) -> Tensor:
    means, variance, weights = components(name)
    device = _device(generator)
    chosen = torch.multinomial(weights.to(device), n, replacement=True, generator=generator)
    return means.to(device)[chosen] + variance**0.5 * torch.randn(n, 2, generator=generator, device=device)


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
    device = _device(generator)
    return (2 * torch.rand(n, 2, generator=generator, device=device) - 1) * torch.tensor([0.2, 1.0], device=device)


def two_moons(n: int, generator: torch.Generator | None = None, noise: float = 0.1) -> Tensor:
    """Two interleaved half circles, centred, with Gaussian noise."""
    device = _device(generator)
    angle = math.pi * torch.rand(n, generator=generator, device=device)
    upper = torch.rand(n, generator=generator, device=device) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return torch.stack([x, y], 1) + noise * torch.randn(n, 2, generator=generator, device=device)
