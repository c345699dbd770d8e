r"""Pictures in one of three palettes, whatever they show: the data of a model that knows style and no content.

A picture is 16 × 16, RGB in [0, 1], black where nothing is. It shows one to four marks, ellipses and blunted
rectangles of any size, angle and place, later ones on top of earlier ones. Its palette is warm, cool or mixed, each one
time in three, and the colours of the marks are independent and uniform over the palette's. So the palette of a picture
in which m marks can be told has the posterior

.. math:: p(k \mid x) \propto \prod_{i=1}^m \frac{1[c_i \in P_k]}{|P_k|},

which holds for all pictures whose parts have these colours, those of :class:`~boltzmix.models.data.Scenes`, too.
"""

import math

import torch
from torch import Tensor

from boltzmix.models.data.scenes import COLORS, PALETTE

PALETTES: dict[str, tuple[str, ...]] = {"warm": ("red", "yellow"), "cool": ("green", "blue"), "mixed": COLORS}
"""Colours of each palette."""

_SIZE = 16
_MOST = 4
_HALF = (1.2, 2.6)  # half axes, in pixels
_BLUNT = 6.0  # exponent of the superellipses that stand for rectangles


def marks(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """n pictures ``(n, 3, 16, 16)`` and their palettes as indices into :data:`PALETTES`, floating point ``(n, 1)``.

    Example:
        >>> x, palette = marks(5, torch.Generator().manual_seed(0))
        >>> x.shape, palette.shape, bool((x >= 0).all())
        (torch.Size([5, 3, 16, 16]), torch.Size([5, 1]), True)
    """
    device = torch.device("cpu") if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    which = (len(PALETTES) * uniform(n)).long()
    count = 1 + (_MOST * uniform(n)).long()
    members = torch.zeros(len(PALETTES), len(COLORS), device=device)
    for index, colors in enumerate(PALETTES.values()):
        members[index, [COLORS.index(color) for color in colors]] = 1.0
    hue = torch.multinomial(members[which], _MOST, replacement=True, generator=generator)
    color = torch.tensor(PALETTE, device=device)[hue]  # (n, marks, 3)
    cover = _coverage(uniform(n, _MOST, 6))
    cover = cover * (torch.arange(_MOST, device=device) < count[:, None])[..., None, None]
    x = torch.zeros(n, 3, _SIZE, _SIZE, device=device)
    for index in range(_MOST):
        own = cover[:, index, None]
        x = (1 - own) * x + own * color[:, index, :, None, None]
    return x, which[:, None].to(x.dtype)


def _coverage(u: Tensor) -> Tensor:
    """Marks of uniform numbers ``(n, marks, 6)``: place, half axes, angle and kind; ``(n, marks, size, size)``."""
    ticks = torch.arange(_SIZE, device=u.device) + 0.5
    x, y, a, b, turn, kind = (part[..., None, None] for part in u.unbind(-1))
    x, y = ticks - _SIZE * x, ticks[:, None] - _SIZE * y
    a, b = (_HALF[0] + (_HALF[1] - _HALF[0]) * half for half in (a, b))
    cos, sin = (math.pi * turn).cos(), (math.pi * turn).sin()
    power = torch.where(kind < 0.5, 2.0, _BLUNT)
    along, across = ((cos * x + sin * y) / a).abs(), ((cos * y - sin * x) / b).abs()
    radius = (along.clamp(min=1e-6) ** power + across.clamp(min=1e-6) ** power) ** (1 / power)
    outside = (radius - 1) * torch.minimum(a, b)  # close to the signed distance near the outline
    return (0.5 - outside).clamp(0, 1)
