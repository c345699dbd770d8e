r"""Objects fitted to windows and to pictures by damped Gauss–Newton steps through the renderer.

A picture is black plus objects, :math:`x = -1 + 2 \sum_i m(p_i, s_i) \otimes r(c_i)` with m the coverage of shape s
at centre p and r the colour's RGB. So the error :math:`\|x - \hat x\|^2` is a least-squares problem in the centres
with the Jacobian :math:`2\, \partial m_i \otimes r_i`, which forward-mode differentiation of the renderer gives. Steps
are those of Levenberg and Marquardt, :math:`(J^\top J + \lambda \operatorname{diag}) \delta = J^\top r`, with a λ of
its own for each window or picture: taken where the error falls (λ/4), refused where it does not (8 λ).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import jvp

from boltzmix.models.data.scenes import PALETTE, Scenes

_LONGEST = 0.75  # px: the renderer's edges are one pixel wide, and its gradient says nothing beyond


@dataclass(frozen=True)
class Brush:
    """The renderer on a small window that holds one object.

    Args:
        scenes: whose renderer.
        slack: pixels by which the object may move inside its window.
    """

    scenes: Scenes
    slack: int = 0

    @property
    def half(self) -> int:
        """Pixels on each side of the middle one: a triangle reaches furthest, 1.4 radii and its soft edge."""
        return math.ceil(1.4 * self.scenes.radius + 1.5) + self.slack

    @property
    def side(self) -> int:
        """Of the window."""
        return 2 * self.half + 1

    def coverage(self, position: Tensor, shape: Tensor) -> Tensor:
        """Coverage of windows ``(m, side, side)``, with centres ``(m, 2)`` in the window's own pixels."""
        return replace(self.scenes, size=self.side, most=1, margin=0.5).coverage(position, shape)

    def slopes(self, position: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Coverage ``(m, side, side)`` and its derivatives in x and y, ``(m, 2, side, side)``."""
        slopes = []
        cover = position.new_empty(0)
        for axis in range(2):
            tangent = torch.zeros_like(position)
            tangent[..., axis] = 1.0
            both = jvp(lambda p: self.coverage(p, shape), (position,), (tangent,))
            cover = both[0]
            slopes.append(both[1])
        return cover, torch.stack(slopes, 1)

    def origin(self, position: Tensor) -> Tensor:
        """First pixel (x, y) of the windows about centres ``(m, 2)``, long; may lie outside of the canvas."""
        return position.floor().long() - self.half

    def indices(self, origin: Tensor) -> Tensor:
        """Flat indices ``(m, side²)`` of windows on the padded canvas."""
        ticks = torch.arange(self.side, device=origin.device)
        x = origin[:, 0, None] + self.side + ticks
        y = origin[:, 1, None] + self.side + ticks
        return (y[:, :, None] * self.padded + x[:, None]).flatten(1)

    @property
    def padded(self) -> int:
        """Side of the canvas with a window's width around it."""
        return self.scenes.size + 2 * self.side

    def crop(self, canvas: Tensor) -> Tensor:
        """The canvas ``(…, S, S)`` of a padded one ``(…, padded²)``."""
        canvas = canvas.unflatten(-1, (self.padded, self.padded))
        inner = slice(self.side, self.side + self.scenes.size)
        return canvas[..., inner, inner]

    def pad(self, images: Tensor) -> Tensor:
        """Pictures ``(n, 3, S, S)`` with zeros around, ``(n, 3, padded²)``."""
        return torch.nn.functional.pad(images, [self.side] * 4).flatten(2)


def ink(like: Tensor) -> Tensor:
    """What full coverage adds to black, ``(colours, 3)``: pictures are in [−1, 1]."""
    return 2 * torch.tensor(PALETTE, dtype=like.dtype, device=like.device)


def paint(brush: Brush, position: Tensor, shape: Tensor, color: Tensor, row: Tensor, n: int) -> Tensor:
    """Sum of m objects on n black pictures of level 0, ``(n, 3, S, S)``; ``row`` says whose each object is."""
    origin = brush.origin(position)
    cover = brush.coverage(position - origin, shape).flatten(1)
    canvas = position.new_zeros(n * brush.padded**2, 3)
    where = (row[:, None] * brush.padded**2 + brush.indices(origin)).flatten()
    canvas.index_add_(0, where, (cover[..., None] * ink(position)[color][:, None]).flatten(0, 1))
    return brush.crop(canvas.reshape(n, -1, 3).mT)


def levenberg(
    position: Tensor,
    error_of: Callable[[Tensor], Tensor],
    normal_equations: Callable[[Tensor], tuple[Tensor, Tensor]],
    free: Tensor,
    steps: int,
) -> Tensor:
    """Damped Gauss–Newton steps of n independent problems.

    Args:
        position: unknowns ``(n, d)``.
        error_of: squared errors ``(n,)`` at positions; infinite where they are not allowed.
        normal_equations: JᵀJ ``(n, d, d)`` and Jᵀr ``(n, d)`` at positions.
        free: unknowns that exist, bool ``(n, d)``.
        steps: how many.
    """
    damping = position.new_full((len(position), 1), 1e-2)
    error = error_of(position)
    eye = torch.eye(position.shape[1], dtype=position.dtype, device=position.device)
    for _ in range(steps):
        normal, gradient = normal_equations(position)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        scale = torch.where(free, damping * diagonal + 1e-3, 1.0)  # a flat unknown stays where it is
        step = torch.linalg.solve(normal + eye * scale[:, None], torch.where(free, gradient, 0.0))
        longest = step.abs().amax(1, keepdim=True)
        step = step * (_LONGEST / longest.clamp(min=_LONGEST))
        proposal = position + step
        proposed = error_of(proposal)
        better = proposed < error
        position = torch.where(better[:, None], proposal, position)
        error = torch.where(better, proposed, error)
        damping = torch.where(better[:, None], damping / 4, damping * 8)
    return position


def fit_one(brush: Brush, window: Tensor, position: Tensor, shape: Tensor, color: Tensor, steps: int) -> Tensor:
    """Centres ``(m, 2)`` of one object in each window ``(m, 3, side, side)``, in the window's own pixels."""
    rgb = ink(window)[color]
    projected = torch.einsum("mcij,mc->mij", window, rgb)
    square = rgb.square().sum(1)
    low, high = 1.0, brush.side - 1.0

    def error_of(p: Tensor) -> Tensor:
        cover = brush.coverage(p, shape)
        error = square * cover.square().sum((1, 2)) - 2 * (cover * projected).sum((1, 2))
        return torch.where(((p > low) & (p < high)).all(1), error, torch.inf)

    def normal_equations(p: Tensor) -> tuple[Tensor, Tensor]:
        cover, slopes = brush.slopes(p, shape)
        residual = projected - square[:, None, None] * cover
        return (
            square[:, None, None] * torch.einsum("mdij,meij->mde", slopes, slopes),
            torch.einsum("mdij,mij->md", slopes, residual),
        )

    return levenberg(position, error_of, normal_equations, torch.ones_like(position, dtype=torch.bool), steps)


def fit_all(brush: Brush, above: Tensor, position: Tensor, shape: Tensor, color: Tensor, steps: int) -> Tensor:
    """Centres ``(n, K, 2)`` of all objects of each picture together.

    Args:
        brush: the renderer, without slack.
        above: pictures less black, ``(n, 3, S, S)``.
        position: where to start, ``(n, K, 2)``.
        shape, color: ``(n, K)``, −1 for slots without an object.
        steps: of Levenberg and Marquardt.
    """
    n, most = shape.shape
    present = shape >= 0
    row, slot = present.nonzero(as_tuple=True)
    if len(row) == 0:
        return position
    kinds, hues = shape[row, slot], color[row, slot]
    rgb = ink(above)[hues]
    size = brush.scenes.size

    def residual(p: Tensor) -> Tensor:
        return above - paint(brush, p, kinds, hues, row, n)

    def flat(p: Tensor) -> Tensor:
        return p.reshape(n, most, 2)[row, slot]

    def error_of(p: Tensor) -> Tensor:
        error = residual(flat(p)).square().sum((1, 2, 3))
        inside = ((p > -1) & (p < size + 1)) | ~present.repeat_interleave(2, 1)
        return torch.where(inside.all(1), error, torch.inf)

    def normal_equations(p: Tensor) -> tuple[Tensor, Tensor]:
        places = flat(p)
        origin = brush.origin(places)
        _, slopes = brush.slopes(places - origin, kinds)
        index = brush.indices(origin)[:, None].expand(-1, 2, -1)
        canvas = above.new_zeros(len(row), 2, brush.padded**2).scatter_(2, index, slopes.flatten(2))
        spread = above.new_zeros(n, most, 2, size * size)
        spread[row, slot] = brush.crop(canvas).flatten(2)
        spread = spread.flatten(1, 2)
        mix = above.new_zeros(n, most, 3)
        mix[row, slot] = rgb
        colors = (mix @ mix.mT).repeat_interleave(2, 1).repeat_interleave(2, 2)
        rest = residual(places).flatten(2)  # (n, 3, S²)
        gradient = ((spread @ rest.mT) * mix.repeat_interleave(2, 1)).sum(-1)
        return colors * (spread @ spread.mT), gradient

    start = position.reshape(n, 2 * most)
    free = present.repeat_interleave(2, 1)
    return levenberg(start, error_of, normal_equations, free, steps).reshape(n, most, 2)
