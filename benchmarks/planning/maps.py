"""A maze in characters."""

from typing import Any


def drawn(layout: Any) -> list[str]:
    """Rows of a maze from the top down, ``##`` a wall, and the centres of its free cells.

    Args:
        layout: a :class:`boltzmix.planners.environments.layout.MazeLayout`.
    """
    rows = layout.cells if layout.down else layout.cells[::-1]
    lines = ["".join("##" if wall else "  " for wall in row) for row in rows]
    centres = [f"{x:g},{y:g}" for x, y in map(layout.centre, layout.free_cells)]
    return [*lines, "", "centres of the free cells: " + "  ".join(centres)]
