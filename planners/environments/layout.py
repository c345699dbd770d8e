"""The floor plan of a maze: cells, walls, and shortest paths.

Cells are numbered ``(row, column)`` as in gymnasium-robotics and ogbench; 1 is a wall and 0 is free. The centre of a
cell lies at ``x = x0 + column · scale`` and ``y = y0 ± row · scale``.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from boltzmix.planners.environments.visibility import Point, VisibilityGraph

if TYPE_CHECKING:
    from boltzmix.planners.obstacles import Box

Cell = tuple[int, int]


@dataclass(frozen=True)
class MazeLayout:
    """A maze of square cells.

    Args:
        cells: rows of 0 (free) and 1 (wall), all of one length.
        scale: side of a cell, metres.
        origin: where the centre of cell (0, 0) lies.
        radius: of the ball that moves in it.
        down: whether y falls as the row number grows, as in gymnasium-robotics.

    Raises:
        ValueError: rows of different lengths, cells that are neither 0 nor 1, no free cell, a scale or radius that is
            not positive.

    Example:
        >>> maze = MazeLayout.centred(["#####", "#   #", "### #", "#   #", "#####"], scale=1.0, radius=0.1)
        >>> maze.bounds
        ((-2.5, 2.5), (-2.5, 2.5))
        >>> length, cells = maze.breadth_first((-1.0, -1.0), (-1.0, 1.0))
        >>> length, len(cells)
        (6.0, 7)
        >>> round(maze.shortest_path((-1.0, -1.0), (-1.0, 1.0))[0], 3)
        4.419
    """

    cells: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.1
    down: bool = True
    _graphs: dict[float, VisibilityGraph] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.cells}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"the rows of a layout have one length, got {sorted(widths)}")
        if not all(cell in (0, 1) for row in self.cells for cell in row):
            raise ValueError("the cells of a layout are 0 (free) and 1 (wall)")
        if not self.free_cells:
            raise ValueError("a layout needs a free cell: every one is a wall")
        if not (self.scale > 0.0 and self.radius > 0.0):
            raise ValueError(f"scale and radius are positive, got {self.scale!r} and {self.radius!r}")

    @classmethod
    def centred(cls, rows: Sequence[str] | Sequence[Sequence[int]], scale: float = 1.0, radius: float = 0.1) -> Any:
        """The maze with its middle at (0, 0), rows from top to bottom; rows of text have ``#`` for walls."""
        cells = tuple(tuple(int(cell in (1, "1", "#")) for cell in row) for row in rows)
        origin = (-0.5 * (len(cells[0]) - 1) * scale, 0.5 * (len(cells) - 1) * scale)
        return cls(cells, scale, origin, radius)

    # --- cells and points ---------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.cells), len(self.cells[0])

    @property
    def free_cells(self) -> list[Cell]:
        """The cells that are no wall, row by row."""
        return [(i, j) for i, row in enumerate(self.cells) for j, cell in enumerate(row) if cell == 0]

    def centre(self, cell: Cell) -> tuple[float, float]:
        """The point in the middle of a cell."""
        sign = -1.0 if self.down else 1.0
        return self.origin[0] + cell[1] * self.scale, self.origin[1] + sign * cell[0] * self.scale

    def cell(self, point: Point) -> Cell:
        """The cell of a point.

        Raises:
            ValueError: a point outside the maze, or one that is not finite.
        """
        x, y = _finite(point)
        sign = -1.0 if self.down else 1.0
        row = math.floor(sign * (y - self.origin[1]) / self.scale + 0.5)
        column = math.floor((x - self.origin[0]) / self.scale + 0.5)
        rows, columns = self.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"({x:g}, {y:g}) lies outside the maze, whose bounds are {self.bounds}")
        return row, column

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """``((x_low, x_high), (y_low, y_high))``, outer walls included."""
        rows, columns = self.shape
        (x0, y0), (x1, y1) = self.centre((0, 0)), self.centre((rows - 1, columns - 1))
        half = 0.5 * self.scale
        return (x0 - half, x1 + half), (min(y0, y1) - half, max(y0, y1) + half)

    @property
    def rectangles(self) -> tuple[tuple[float, float, float, float], ...]:
        """The walls as few rectangles ``(x_low, y_low, x_high, y_high)``: runs along rows and along columns.

        Runs may overlap, so that no wall has a seam inside where the distance to its surface would seem to be 0.
        """
        rows, columns = self.shape
        lines = [[(i, j) for j in range(columns)] for i in range(rows)]
        lines += [[(i, j) for i in range(rows)] for j in range(columns)]
        runs: list[list[Cell]] = []
        for line in lines:
            run: list[Cell] = []
            for i, j in [*line, (-1, -1)]:
                if i >= 0 and self.cells[i][j]:
                    run.append((i, j))
                elif run:
                    runs.append(run)
                    run = []
        long = [run for run in runs if len(run) > 1]
        covered = {cell for run in long for cell in run}
        chosen = long + [run for run in runs if len(run) == 1 and run[0] not in covered]
        found = {}
        for run in chosen:
            (x0, y0), (x1, y1) = self.centre(run[0]), self.centre(run[-1])
            half = 0.5 * self.scale
            found[(min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)] = None
        return tuple(found)

    @property
    def walls(self) -> "tuple[Box, ...]":
        """:attr:`rectangles` as obstacles."""
        from boltzmix.planners.obstacles import Box

        return tuple(Box(*rectangle) for rectangle in self.rectangles)

    def clearance(self, point: Point) -> float:
        """The distance of a point from the nearest wall; 0 inside one and outside the maze."""
        x, y = _finite(point)
        (x_low, x_high), (y_low, y_high) = self.bounds
        if not (x_low <= x <= x_high and y_low <= y <= y_high):
            return 0.0
        return min(
            math.hypot(max(left - x, x - right, 0.0), max(low - y, y - high, 0.0))
            for left, low, right, high in self.rectangles
        )

    def free(self, point: Point, radius: float | None = None) -> bool:
        """Whether a ball of this radius (default: the layout's own) may be centred there."""
        return self.clearance(point) >= (self.radius if radius is None else radius)

    def sample(self, rng: Any, *, noise: float = 0.25) -> tuple[float, float]:
        """A random point: the centre of a free cell, plus uniform noise of up to ``noise`` cells along each axis.

        This is how gymnasium-robotics draws starts and goals.

        Args:
            rng: a ``numpy.random.Generator``.
            noise: in cells, below 0.5.
        """
        cells = self.free_cells
        x, y = self.centre(cells[int(rng.integers(len(cells)))])
        across, up = rng.uniform(-noise * self.scale, noise * self.scale, 2)
        return x + float(across), y + float(up)

    # --- shortest paths -----------------------------------------------------------------------------------------

    def breadth_first(self, start: Point, goal: Point) -> tuple[float, list[tuple[float, float]]]:
        """Length and vertices of the path over the centres of the fewest cells that join side by side.

        ``(inf, [])`` where there is none. The first and last vertex are the start and the goal themselves.
        """
        first, last = self.cell(start), self.cell(goal)
        if self.cells[first[0]][first[1]] or self.cells[last[0]][last[1]]:
            return math.inf, []
        before: dict[Cell, Cell] = {first: first}
        queue = deque([first])
        while queue and last not in before:
            i, j = queue.popleft()
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                inside = 0 <= cell[0] < self.shape[0] and 0 <= cell[1] < self.shape[1]
                if inside and not self.cells[cell[0]][cell[1]] and cell not in before:
                    before[cell] = (i, j)
                    queue.append(cell)
        if last not in before:
            return math.inf, []
        chain = [last]
        while chain[-1] != first:
            chain.append(before[chain[-1]])
        middle = [self.centre(cell) for cell in reversed(chain[1:-1])]
        path = [_finite(start), *middle, _finite(goal)]
        return path_length(path), path

    def shortest_path(
        self, start: Point, goal: Point, radius: float | None = None
    ) -> tuple[float, list[tuple[float, float]]]:
        """Length and vertices of the shortest path of a ball (default radius: the layout's own); ``(inf, [])`` if none.

        What :class:`~boltzmix.planners.environments.visibility.VisibilityGraph` finds; the graph is kept.
        """
        return self.graph(radius).path(_finite(start), _finite(goal))

    def graph(self, radius: float | None = None) -> VisibilityGraph:
        """The visibility graph for a ball of this radius; made once."""
        radius = self.radius if radius is None else float(radius)
        if radius not in self._graphs:
            self._graphs[radius] = VisibilityGraph(self.rectangles, (), radius, self.bounds)
        return self._graphs[radius]


def path_length(path: Sequence[Point] | torch.Tensor) -> float:
    """The length of a polyline: the sum of its segments.

    Example:
        >>> path_length([(0, 0), (3, 4), (3, 5)])
        6.0
    """
    points = [(float(point[0]), float(point[1])) for point in path]
    return sum(math.dist(one, other) for one, other in pairwise(points))


def _finite(point: Point) -> tuple[float, float]:
    if len(point) != 2:
        raise ValueError(f"a point has 2 coordinates, got {len(point)}: {point!r}")
    x, y = float(point[0]), float(point[1])
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"a point is finite, got ({x}, {y})")
    return x, y
