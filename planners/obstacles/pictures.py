"""Any obstacle as a patch of a picture."""

import math
from typing import Any

import torch

from boltzmix.planners.obstacles.base import Obstacle
from boltzmix.planners.obstacles.field import DistanceField
from boltzmix.planners.obstacles.moving import Moving


def outline(obstacle: Obstacle, time: float | None, points: int = 200, **style: Any) -> Any:
    """The region of negative distance on a grid over the extent, as a patch."""
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

    x_low, y_low, x_high, y_high = obstacle.grid if isinstance(obstacle, DistanceField) else obstacle.extent
    if not all(math.isfinite(v) for v in (x_low, y_low, x_high, y_high)):
        raise ValueError(f"{obstacle!r} has no extent, so no picture can be made of all of it")
    if obstacle.moves and time is not None and isinstance(obstacle, Moving):
        start = obstacle.shift(torch.zeros((), dtype=torch.float64))
        x, y = (obstacle.shift(torch.tensor(time, dtype=torch.float64)) - start).tolist()
        x_low, y_low, x_high, y_high = x_low + x, y_low + y, x_high + x, y_high + y
    border = 0.02 * max(x_high - x_low, y_high - y_low)
    xs = torch.linspace(x_low - border, x_high + border, points)
    ys = torch.linspace(y_low - border, y_high + border, points)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    with torch.no_grad():
        d = obstacle.distance(grid, 0.0 if obstacle.moves and time is None else time)
    contours = Figure().subplots().contourf(xs.numpy(), ys.numpy(), d.numpy(), levels=[min(float(d.min()), 0) - 1, 0])
    return PathPatch(contours.get_paths()[0], **style)
