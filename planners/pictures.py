"""Pictures of plans among obstacles: a figure, and a GIF or film of one plan. matplotlib is imported when drawing."""

import io
import math
import os
from pathlib import Path
from typing import Any

from boltzmix.compose.draw import write_atomically
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.pictures import save_figure
from boltzmix.planners.controllers import Reference
from boltzmix.planners.result import PlanResult

_BEST, _OTHERS, _WRONG, _OBSTACLE = "#004488", "#6699cc", "#bb5566", "#555555"


def plot_plans(
    result: PlanResult,
    path: str | os.PathLike[str] | None = None,
    *,
    most: int = 32,
    walls: Any = (),
    driven: Any = None,
    title: str | None = None,
    size: float = 4.2,
    dpi: int = 120,
) -> Any:
    """Plans, the best one in front, those that are not feasible in red, with start, goal and obstacles.

    Args:
        result: plans over two positions.
        path: where to save; the suffix says the format.
        most: plans drawn.
        walls: further obstacles, drawn lighter, such as a maze's.
        driven: ``(T, 2)`` positions that were driven.
        title: a line above; by default the status and how many plans are feasible.
        size: of the figure, in inches.
        dpi: dots per inch of a saved bitmap.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, ax = _axes(result, walls, size)
    places = result.space.columns(result.space.position)
    for k in reversed(range(min(most, len(result)))):
        line = result.trajectories[k][:, places]
        colour = _WRONG if not result.feasible[k] else _BEST if k == 0 else _OTHERS
        ax.plot(line[:, 0], line[:, 1], color=colour, lw=2.2 if k == 0 else 0.9, alpha=1.0 if k == 0 else 0.5, zorder=3)
    if driven is not None:
        ax.plot(driven[:, 0], driven[:, 1], color="black", lw=1.0, ls=":", zorder=4)
    good = int(result.feasible.sum())
    ax.set_title(title or f"{result.status}: {good} of {len(result)} plans feasible", fontsize=9)
    if path is not None:
        save_figure(figure, path, dpi=dpi)
    return figure


def animate_plan(
    result: PlanResult,
    path: str | os.PathLike[str],
    *,
    plan: int = 0,
    walls: Any = (),
    fps: int = 20,
    speed: float = 1.0,
    size: int = 360,
) -> Path:
    """The robot on its plan, with obstacles where they are at the time, as ``.gif`` or ``.mp4``.

    Args:
        result: plans over two positions.
        path: ends in ``.gif`` or ``.mp4``; films need imageio with ffmpeg.
        plan: which one.
        walls: further obstacles, such as a maze's.
        fps: frames per second.
        speed: seconds of the plan per second of the film.
        size: of the picture, in pixels.

    Raises:
        ValueError: another suffix, or a result without plans.
        MissingExtra: a film without imageio.
    """
    import numpy as np
    from matplotlib.patches import Circle

    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"an animation is written as .gif or .mp4, got {str(path)!r}")
    _ = result.best
    reference = Reference(result.space, result.trajectories[plan])
    places = result.space.columns(result.space.position)
    line = result.trajectories[plan][:, places]
    figure, ax = _axes(result, walls, size / 100, moving=False)
    figure.set_dpi(100)
    ax.plot(line[:, 0], line[:, 1], color=_OTHERS, lw=1.2, zorder=3)
    radius = result.radius or 0.015 * _extent(ax)
    robot = ax.add_patch(Circle(line[0], radius, color=_BEST, zorder=5))
    moving = [o for o in result.obstacles if getattr(o, "moves", False)]
    frames, patches = [], []
    count = max(2, math.ceil(reference.duration / speed * fps) + 1)
    for k in range(count):
        now = min(k * speed / fps, reference.duration)
        for patch in patches:
            patch.remove()
        patches = [ax.add_patch(o.patch(now, color=_OBSTACLE, zorder=2)) for o in moving]
        robot.center = tuple(reference.position(now))
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    return _film(frames, path, fps) if suffix == ".mp4" else _gif(frames, path, fps)


def _axes(result: PlanResult, walls: Any, size: float, moving: bool = True) -> tuple[Any, Any]:
    """A figure with obstacles, start and goal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    space = result.space
    if len(space.position) != 2:
        raise ValueError(f"pictures show two positions, and this space has {space.position}")
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for obstacle in walls:
        ax.add_patch(obstacle.patch(color="#bbbbbb", zorder=1))
    for obstacle in result.obstacles:
        if moving or not getattr(obstacle, "moves", False):
            ax.add_patch(obstacle.patch(color=_OBSTACLE, zorder=2))
    places = space.columns(space.position)
    for value, marker, name in ((result.start, "o", "start"), (result.goal, "*", "goal")):
        if value is not None:
            spot = value[places] if len(value) == len(space.state) else value
            ax.plot(*spot, marker, color="#228833", ms=9 if marker == "o" else 13, mec="white", zorder=6, label=name)
    ax.set_xlabel(f"{space.position[0]} (m)", fontsize=8)
    ax.set_ylabel(f"{space.position[1]} (m)", fontsize=8)
    ax.tick_params(labelsize=7)
    _window(ax, result)
    ax.set_aspect("equal")
    return figure, ax


def _window(ax: Any, result: PlanResult) -> None:
    """Limits: the bounds where there are any, else what is to be seen."""
    import numpy as np

    space = result.space
    if space.bounds is not None:
        (x0, x1), (y0, y1) = space.bounds
    else:
        places = space.columns(space.position)
        rows = [result.trajectories[..., places].reshape(-1, 2)]
        for value in (result.start, result.goal):
            if value is not None:
                rows.append(np.asarray(value)[places if len(value) == len(space.state) else [0, 1]][None])
        extents = [o.extent for o in result.obstacles if all(math.isfinite(e) for e in o.extent)]
        rows += [np.array([[e[0], e[1]], [e[2], e[3]]]) for e in extents]
        points = np.concatenate(rows)
        points = points[np.isfinite(points).all(1)]
        if not len(points):
            return
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
    pad = 0.05 * max(x1 - x0, y1 - y0, 1e-6)
    ax.set_xlim(x0 - pad, x1 + pad)
    ax.set_ylim(y0 - pad, y1 + pad)


def _extent(ax: Any) -> float:
    low, high = ax.get_xlim()
    return high - low


def _gif(frames: list[Any], path: str | os.PathLike[str], fps: int) -> Path:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    palette = images[-1].quantize(64)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    each = max(20, round(1000 / fps))
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], loop=0, disposal=1,
        duration=[each] * (len(images) - 1) + [1000],
    )  # fmt: skip
    return write_atomically(path, buffer.getvalue())


def _film(frames: list[Any], path: str | os.PathLike[str], fps: int) -> Path:
    try:
        import imageio.v2 as imageio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra('films need imageio with ffmpeg: pip install "boltzmix[planning]"') from error
    partial = Path(path).with_name(f".{Path(path).stem}.part.mp4")
    partial.parent.mkdir(parents=True, exist_ok=True)
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    try:
        writer: Any
        with imageio.get_writer(partial, fps=fps, codec="libx264", macro_block_size=2) as writer:
            for frame in even:
                writer.append_data(frame)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Path(path)
