"""Signed distances on a grid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.obstacles.base import Extent, Obstacle, finite


class DistanceField(Obstacle):
    r"""A signed distance given on a grid, bilinear between its points.

    ``values[i, j]`` is the distance at ``(origin_x + i · cell, origin_y + j · cell)``. Outside the grid it is that of
    the nearest point of the grid's border, a lower bound where the obstacle lies inside the grid.

    Args:
        values: ``(nx, ny)``, in metres, negative inside; at least 2 × 2.
        origin: (x, y) of ``values[0, 0]``, in metres.
        cell: metres between grid points.

    Raises:
        ValueError: another shape, numbers that are not finite, or a field that is no distance: neighbours that differ
            by more than the metres between them.
    """

    def __init__(self, values: Any, origin: Sequence[float], cell: float) -> None:
        """Check the grid."""
        self.values = torch.as_tensor(values).detach().clone()
        if self.values.ndim != 2 or min(self.values.shape) < 2 or not self.values.is_floating_point():
            raise ValueError(
                f"a distance field has floating-point values (nx, ny), at least 2 × 2, got {self.values.dtype} of "
                f"shape {tuple(self.values.shape)}"
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError(f"{int((~torch.isfinite(self.values)).sum())} values of the distance field are not finite")
        if len(origin) != 2:
            raise ValueError(f"the origin of a distance field is (x, y), got {len(origin)} numbers")
        self.origin = (finite(origin[0], "origin"), finite(origin[1], "origin"))
        self.cell = finite(cell, "cell")
        if self.cell <= 0:
            raise ValueError(f"cell is the metres between grid points, > 0, got {self.cell:g}")
        steepest = max(float(self.values.diff(dim=d).abs().max()) for d in (0, 1))
        if steepest > self.cell * (1 + 1e-3):
            raise ValueError(
                f"a distance changes by no more than the way: neighbours {self.cell:g} m apart differ by {steepest:g}; "
                "give metres, not grid cells or an occupancy"
            )

    def __repr__(self) -> str:
        """Size and place."""
        return f"DistanceField({tuple(self.values.shape)}, origin={self.origin}, cell={self.cell:g})"

    @property
    def grid(self) -> Extent:
        """(x_low, y_low, x_high, y_high) of the grid."""
        (x, y), (nx, ny) = self.origin, self.values.shape
        return (x, y, x + (nx - 1) * self.cell, y + (ny - 1) * self.cell)

    def _distance(self, points: Tensor, time: Tensor | None) -> Tensor:
        values = self.values.to(points)
        nx, ny = values.shape
        place = (points - points.new_tensor(self.origin)) / self.cell
        u, v = place[..., 0].clamp(0.0, nx - 1), place[..., 1].clamp(0.0, ny - 1)
        i, j = u.detach().long().clamp(0, nx - 2), v.detach().long().clamp(0, ny - 2)
        u, v = u - i, v - j
        low = values[i, j] * (1 - v) + values[i, j + 1] * v
        high = values[i + 1, j] * (1 - v) + values[i + 1, j + 1] * v
        return low * (1 - u) + high * u
