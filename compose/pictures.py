"""Pictures of states: scatters, image sheets, histograms, and a GIF of a path.

What is drawn follows from the shape: ``(N, 2)`` is a scatter (a density when points would cover each other),
``(N, H, W)`` and ``(N, C, H, W)`` with one, three or four channels are a sheet of images, anything else histograms of
its coordinates; a dictionary gets one such picture per variable. Figures are plain :class:`matplotlib.figure.Figure`
objects on the Agg canvas: no window, no pyplot, no global state. Files are written to a temporary name and renamed.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import write_atomically
from boltzmix.compose.variable import State

Range = tuple[float, float]
_MANY_POINTS = 20_000
_MOST_HISTOGRAMS = 12
_MOST_FRAMES = 60


def plot_states(
    x: State,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    limits: Range | None = None,
    most: int = 64,
    columns: int | None = None,
    bins: int = 60,
    dpi: int = 120,
) -> Any:
    """A figure of states, saved when ``path`` is given.

    Args:
        x: ``(N, *event)``, or a dictionary of these.
        path: where to save; the suffix says the format (``.png`` without one).
        title: a line above.
        limits: the range shown: of both axes of a scatter, of the grey scale of images, of a histogram's axis;
            by default that of the states.
        most: images at most.
        columns: images per row.
        bins: of histograms and densities.
        dpi: dots per inch of a saved bitmap.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        TypeError: x is no state.
        ValueError: no states, or limits that are no range.

    Example:
        >>> import torch
        >>> figure = plot_states(torch.randn(100, 2), title="normal")
        >>> len(figure.axes)
        1
    """
    _check(x, limits)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = {"": x} if isinstance(x, Tensor) else dict(x)
    sizes = [_size(t, most, columns) for t in named.values()]
    height = sum(h for _, h in sizes) + 0.35 * (title is not None) + 0.3 * (len(named) > 1) * len(named)
    figure = Figure(figsize=(max(w for w, _ in sizes), height), layout="constrained")
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title)
    parts: Any = figure.subfigures(len(named), 1, squeeze=False, height_ratios=[h for _, h in sizes])[:, 0]
    for part, (name, t) in zip(parts, named.items(), strict=True):
        if name:
            part.suptitle(name)
        _draw(part, t, limits, most, columns, bins)
    if path is not None:
        save_figure(figure, path, dpi=dpi)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str], *, dpi: int = 120) -> Path:
    """Write a figure in the format of the path's suffix, whole or not at all.

    Raises:
        ValueError: a format that matplotlib does not write.
    """
    suffix = Path(path).suffix.lower().removeprefix(".") or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise ValueError(f"{path} ends in .{suffix}, which is no format for figures; expected one of {known}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=dpi)
    return write_atomically(path, buffer.getvalue())


def animate_states(
    frames: Sequence[State],
    path: str | os.PathLike[str],
    seconds: float = 4.0,
    *,
    title: str | None = None,
    limits: Range | None = None,
    most: int = 36,
    hold: float = 1.0,
    size: int = 360,
) -> Path:
    """A GIF of states along a path; the last one is held for ``hold`` seconds.

    Long runs are thinned to about 60 frames. Only ``(N, 2)`` and images can be shown; of a dictionary the first
    variable that is one of these is taken. A scatter's window closes in on the last frame as the particles do.

    Args:
        frames: states, first to last.
        path: ends in ``.gif``.
        seconds: the length without the hold.
        title: a line above.
        limits: as in :func:`plot_states`; by default the last frame's.
        most: images at most.
        hold: seconds for which the last frame stays.
        size: width in pixels, roughly for images.

    Raises:
        ValueError: no frames, times that are not positive, a path that is no GIF, or states that are neither points
            nor images.
    """
    from PIL import Image

    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"an animation is written as a GIF, got {str(path)!r}; end the name in .gif")
    if not seconds > 0 or not hold >= 0:
        raise ValueError(f"seconds is positive and hold at least 0, got seconds={seconds} and hold={hold}")
    if not len(frames):
        raise ValueError("an animation needs at least one frame")
    for frame in frames:
        _check(frame, limits)
    every = max(1, math.ceil(len(frames) / _MOST_FRAMES))
    kept = [_showable(frame) for frame in frames[::-1][::every][::-1]]
    if kept[-1].ndim == 2:
        pictures = _scatter_frames(kept, limits, title, size)
    else:
        pictures = _sheet_frames(kept, limits, title, most, size)
    images = [Image.fromarray(p) for p in pictures]
    images = _same_palette(images)
    each = max(20, round(1000 * seconds / len(images)))
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[each] * (len(images) - 1) + [each + round(1000 * hold)],
        loop=0,
        disposal=1,
    )
    return write_atomically(path, buffer.getvalue())


def image_sheet(
    x: Tensor,
    *,
    limits: Range | None = None,
    columns: int | None = None,
    gap: int = 1,
    scale: int = 1,
    background: float = 1.0,
) -> Tensor:
    """Images side by side: ``(N, H, W)`` or ``(N, C, H, W)`` to one ``(height, width, 3)`` in [0, 1].

    Args:
        x: images with one, three or four channels (the fourth is left out).
        limits: the values that become 0 and 1; by default the 0.5 % and 99.5 % quantiles of what is finite.
        columns: images per row; by default about as many as rows.
        gap: pixels between images, after scaling.
        scale: how often a pixel is repeated.
        background: grey of the gaps; pixels that are not finite are shown in it too.
    """
    x = x.detach().float().cpu()
    x = (x[:, None] if x.ndim == 3 else x)[:, :3]
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    low, high = limits or _quantiles(x)
    x = torch.nan_to_num((x - low) / max(high - low, 1e-12), nan=background, posinf=background, neginf=background)
    x = x.clamp(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, _, h, w = x.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = torch.full((3, rows * (h + gap) - gap, columns * (w + gap) - gap), background)
    for k in range(n):
        top, left = (k // columns) * (h + gap), (k % columns) * (w + gap)
        sheet[:, top : top + h, left : left + w] = x[k]
    return sheet.permute(1, 2, 0)


# --------------------------------------------------------------------- drawing


def _check(x: Any, limits: Range | None) -> None:
    values = dict(x) if isinstance(x, Mapping) else {"": x}
    for name, t in values.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"states are a tensor (N, *event) or a dictionary of these, got {type(t).__name__}")
        if t.ndim < 1 or t.numel() == 0:
            where = f" for {name!r}" if name else ""
            raise ValueError(f"there is nothing to draw: states have shape {tuple(t.shape)}{where}")
    if not values:
        raise ValueError("there is nothing to draw: the dictionary of states is empty")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits are (low, high) with low < high, got {limits}")


def _kind(t: Tensor) -> str:
    if t.ndim == 2 and t.shape[1] == 2:
        return "points"
    if (t.ndim == 3 and min(t.shape[1:]) > 1) or (t.ndim == 4 and t.shape[1] in (1, 3, 4)):
        return "images"
    return "histograms"


def _size(t: Tensor, most: int, columns: int | None) -> tuple[float, float]:
    """Width and height in inches."""
    kind = _kind(t)
    if kind == "points":
        return 4.2, 4.0
    if kind == "images":
        n = min(len(t), most)
        across = min(n, columns or math.ceil(math.sqrt(n)))
        width = min(10.0, max(2.5, 0.6 * across))
        return width, max(0.6, width / across * math.ceil(n / across) * t.shape[-2] / t.shape[-1])
    n = min(t[0].numel(), _MOST_HISTOGRAMS)
    return 2.2 * min(n, 4) + 0.4, 1.9 * math.ceil(n / 4)


def _draw(figure: Any, t: Tensor, limits: Range | None, most: int, columns: int | None, bins: int) -> None:
    kind = _kind(t)
    t = t.detach().float().cpu()
    if kind == "points":
        ax = figure.subplots()
        draw_points(ax, t, limits, bins)
        ax.set_xlabel("$x_1$")
        ax.set_ylabel("$x_2$")
        return
    if kind == "images":
        ax = figure.subplots()
        sheet = image_sheet(t[:most], limits=limits, columns=columns)
        ax.imshow(sheet.numpy(), interpolation="nearest")
        ax.set_axis_off()
        return
    flat = t.reshape(len(t), -1)
    shown = min(flat.shape[1], _MOST_HISTOGRAMS)
    axes = figure.subplots(math.ceil(shown / 4), min(shown, 4), squeeze=False).flatten()
    for k, ax in enumerate(axes):
        if k >= shown:
            ax.set_axis_off()
            continue
        column = flat[:, k]
        column = column[torch.isfinite(column)]
        ax.hist(column.numpy(), bins=bins, range=limits, density=True, color="#4477aa")
        ax.set_yticks([])
        ax.set_title(f"$x_{{{k + 1}}}$" if flat.shape[1] > 1 else "$x$", fontsize=9)
        ax.tick_params(labelsize=7)
    if flat.shape[1] > shown:
        figure.supxlabel(f"the first {shown} of {flat.shape[1]} coordinates", fontsize=8)


def draw_points(ax: Any, t: Tensor, limits: Range | None = None, bins: int = 60, color: str = "#224466") -> None:
    """Points ``(N, 2)`` on an axes: a scatter, beyond 20,000 of them a density."""
    t = t.detach().float().cpu()
    low, high = _box(t) if limits is None else (torch.tensor([limits[0]] * 2), torch.tensor([limits[1]] * 2))
    if len(t) > _MANY_POINTS:
        finite = t[torch.isfinite(t).all(1)].numpy()
        window = [[float(low[0]), float(high[0])], [float(low[1]), float(high[1])]]
        ax.hist2d(finite[:, 0], finite[:, 1], bins=2 * bins, range=window, cmap="magma_r", density=True)
    else:
        alpha = min(1.0, max(0.15, 20 / math.sqrt(len(t))))
        ax.scatter(t[:, 0].numpy(), t[:, 1].numpy(), s=3, alpha=alpha, color=color, linewidths=0)
    ax.set_xlim(float(low[0]), float(high[0]))
    ax.set_ylim(float(low[1]), float(high[1]))
    ax.set_aspect("equal")


def _box(t: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Corners of a square that holds the finite points, or the central ``share`` of them."""
    finite = t[torch.isfinite(t).all(1)].double()
    if not len(finite):
        return torch.full((2,), -1.0), torch.full((2,), 1.0)
    step = max(1, len(finite) // 100_000)  # quantile() has a limit on its input
    edge = (1 - share) / 2
    low, high = finite[::step].quantile(edge, dim=0), finite[::step].quantile(1 - edge, dim=0)
    half = 0.54 * max(float((high - low).max()), 1e-9)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _quantiles(x: Tensor) -> Range:
    values = x[torch.isfinite(x)].flatten()
    if not len(values):
        return 0.0, 1.0
    values = values[:: max(1, len(values) // 1_000_000)]
    low, high = float(values.quantile(0.005)), float(values.quantile(0.995))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


# ------------------------------------------------------------------- animation


def _showable(frame: State) -> Tensor:
    candidates = [frame] if isinstance(frame, Tensor) else list(frame.values())
    for t in candidates:
        if _kind(t) != "histograms":
            return t.detach().float().cpu()
    raise ValueError(
        f"only points (N, 2) and images can be animated, got shapes {[tuple(t.shape) for t in candidates]}; "
        "use plot() for histograms"
    )


def _scatter_frames(frames: list[Tensor], limits: Range | None, title: str | None, size: int) -> list[Any]:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size / 100, size / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    if title is not None:
        ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)
    shown = [t[:5000] for t in frames]
    last = _box(shown[-1])
    points = ax.scatter([], [], s=3, alpha=0.5, color="#224466", linewidths=0)
    ax.set_aspect("equal")
    pictures = []
    for t in shown:
        low, high = last if limits is None else (torch.tensor([limits[0]] * 2), torch.tensor([limits[1]] * 2))
        if limits is None:
            own = _box(t, 0.98)
            low, high = torch.minimum(low, own[0]), torch.maximum(high, own[1])
            half = float((high - low).max()) / 2
            low, high = (low + high) / 2 - half, (low + high) / 2 + half
        points.set_offsets(t.numpy())
        ax.set_xlim(float(low[0]), float(high[0]))
        ax.set_ylim(float(low[1]), float(high[1]))
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures


def _sheet_frames(frames: list[Tensor], limits: Range | None, title: str | None, most: int, size: int) -> list[Any]:
    from PIL import Image, ImageDraw, ImageFont

    limits = limits or _quantiles(frames[-1])
    n = min(most, len(frames[-1]))
    columns = math.ceil(math.sqrt(n))
    width = frames[-1].shape[-1]
    scale = max(1, round((size / columns - 2) / width))
    pictures = []
    for t in frames:
        sheet = image_sheet(t[:n], limits=limits, columns=columns, gap=2, scale=scale)
        pixels = (255 * sheet).round().to(torch.uint8)
        if title is not None:
            band = Image.new("RGB", (pixels.shape[1], 18), "white")
            ImageDraw.Draw(band).text((3, 2), title, fill="black", font=ImageFont.load_default(11))
            pixels = torch.cat([_pixels(band), pixels])
        pictures.append(pixels.numpy())
    return pictures


def _same_palette(images: list[Any]) -> list[Any]:
    """Indexed images of one palette, so that colours do not flicker: all greys, or colours from some of the frames."""
    from PIL import Image

    if all((picture == picture[..., :1]).all() for picture in map(_pixels, images)):
        return [image.convert("L") for image in images]
    some = images[:: max(1, len(images) // 6)] + images[-1:]
    montage = Image.new("RGB", (images[0].width, images[0].height * len(some)))
    for k, image in enumerate(some):
        montage.paste(image, (0, k * image.height))
    palette = montage.quantize(128)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _pixels(image: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image))
