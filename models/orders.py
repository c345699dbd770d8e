r"""Orders in which an autoregressive model visits the variables of an event.

An order of D variables is a permutation o of 0 … D−1: the t-th variable visited is number o[t] of ``x.flatten(1)``.
Images ``(C, H, W)`` are visited pixel by pixel, all channels of a pixel one after the other, as in PixelCNN.

*Raster* goes row by row. *Multi-scale* with s scales visits the pixels whose coordinates are multiples of
:math:`2^s`, then, for each stride :math:`2h = 2^s, \dots, 2`, the sub-grids that interleave with them: the pixels whose
coordinates are, modulo 2h, equal to an offset in :math:`\{0, h\}^d \setminus \{0\}`, one offset after the other (for
images (0, h), (h, 0), (h, h)), each sub-grid row by row. After each stride, the pixels visited are an image at half of
it. With s = 0 the order is raster.

Source: S. Reed et al. (2017), Parallel multiscale autoregressive density estimation (the order; here every variable
still depends on all before it).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def raster(event_shape: Sequence[int]) -> Tensor:
    """Row by row, the channels of a pixel together; long ``(D,)``.

    Example:
        >>> raster((2, 1, 2)).tolist()
        [0, 2, 1, 3]
    """
    return multiscale(event_shape, 0)


def multiscale(event_shape: Sequence[int], scales: int | None = None) -> Tensor:
    """Coarse pixels first (see the module's page); long ``(D,)``.

    Args:
        event_shape: ``(L,)``, ``(H, W)`` or ``(C, H, W)``; with ``scales=0`` any shape.
        scales: s, the coarse grid having stride 2^s; None leaves at least two coarse pixels along the shortest side.

    Raises:
        ValueError: a grid whose stride exceeds every side, or a shape without a grid.

    Example:
        >>> multiscale((5,), scales=2).tolist()
        [0, 4, 2, 1, 3]
    """
    shape = tuple(int(s) for s in event_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"an event shape is a tuple of positive ints, got {tuple(event_shape)}")
    channels, grid = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
    if scales is None:
        scales = max(0, int(math.log2(max(1, min(grid)))) - 1)
    if isinstance(scales, bool) or not isinstance(scales, int) or scales < 0:
        raise ValueError(f"scales is an int >= 0, got {scales!r}")
    if scales and (len(grid) > 2 or 2**scales > max(grid)):
        raise ValueError(
            f"{scales} scales need an event (L,), (H, W) or (C, H, W) with a side of at least {2**scales}, got {shape}"
        )
    pixels = _sub_grid(grid, (0,) * len(grid), 2**scales)
    for step in (2**k for k in reversed(range(1, scales + 1))):
        for offset in itertools.product((0, step // 2), repeat=len(grid)):
            if any(offset):
                pixels += _sub_grid(grid, offset, step)
    order = torch.tensor(pixels, dtype=torch.long)
    size = math.prod(grid)
    return (order[:, None] + size * torch.arange(channels)).reshape(-1)


def _sub_grid(grid: tuple[int, ...], offset: tuple[int, ...], stride: int) -> list[int]:
    """Flat indices of the pixels at ``offset`` modulo ``stride``, row by row."""
    found = []
    for place in itertools.product(*(range(o, n, stride) for o, n in zip(offset, grid, strict=True))):
        index = 0
        for coordinate, side in zip(place, grid, strict=True):
            index = index * side + coordinate
        found.append(index)
    return found


def as_order(order: str | Sequence[int] | Tensor, event_shape: Sequence[int]) -> Tensor:
    """The permutation behind ``"raster"``, ``"multiscale"`` or a sequence of flat indices; long ``(D,)``.

    Raises:
        ValueError: an unknown name, or numbers that are no permutation of 0 … D−1.
    """
    if isinstance(order, str):
        if order not in ("raster", "multiscale"):
            raise ValueError(f"order is 'raster', 'multiscale' or a permutation, got {order!r}")
        return raster(event_shape) if order == "raster" else multiscale(event_shape)
    found = torch.as_tensor(order)
    size = math.prod(event_shape)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or found.shape != (size,):
        raise ValueError(
            f"an order of {size} variables holds {size} ints, got {found.dtype} of shape {tuple(found.shape)}"
        )
    if not torch.equal(found.long().sort().values, torch.arange(size, device=found.device)):
        raise ValueError(f"an order is a permutation of 0 … {size - 1}: each variable is visited exactly once")
    return found.long().clone()
