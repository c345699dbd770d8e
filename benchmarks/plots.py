"""Pictures of a suite's figures; matplotlib is imported by whoever renders them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from boltzmix.benchmarks.metrics import log_mmd2

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
_MARKS = "osD^vP*X"
_LOWEST = -11.0


def logarithmic(axes: Any) -> None:
    """A logarithmic x axis over a decade or two, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def error_curves(figure: Any, curves: Curves, floors: Mapping[str, tuple[float, float]]) -> None:
    """ln MMD² and mode-mass error against evaluations, each point the mean over seeds, bars the extremes."""
    figure.set_size_inches(10.5, 5)
    left, right = figure.subplots(1, 2)
    for (method, points), mark in zip(curves.items(), _MARKS, strict=False):
        groups = [[p for p in points if p["setting"] == s] for s in dict.fromkeys(p["setting"] for p in points)]
        spent = [statistics.fmean(p["evaluations"] for p in g) for g in groups]
        _bars(left, spent, [[p["mmd2"] for p in g] for g in groups], _clipped_log, method, mark)
        _bars(right, spent, [[p["tv"] for p in g] for g in groups], float, method, mark)
    high = floors["mmd2"][1]
    left.axhspan(_LOWEST - 0.8, high, color="0.88", zorder=0)
    left.annotate(
        "below the 99 % quantile of exact pairs", (0.98, 0.015), xycoords="axes fraction", ha="right", fontsize=8
    )
    left.axhline(-8, color="0.4", linestyle=":", linewidth=1)
    left.set_ylim(_LOWEST - 0.8, -0.5)
    left.set_title(f"ln MMD² of the mean over seeds (those below {_LOWEST:g} drawn there)", fontsize=10)
    right.axhline(floors["tv"][0], color="0.6", linestyle="--")
    right.axhline(floors["tv"][1], color="0.4", linestyle=":")
    right.annotate("exact draws", (right.get_xlim()[1], floors["tv"][0]), ha="right", va="bottom", fontsize=8)
    right.annotate("+ 0.03", (right.get_xlim()[1], floors["tv"][1]), ha="right", va="bottom", fontsize=8)
    right.set_title("mode-mass error (total variation)", fontsize=10)
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("evaluations per particle")
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def _clipped_log(value: float) -> float:
    return max(log_mmd2(value), _LOWEST)


def _bars(
    axis: Any,
    x: Sequence[float],
    groups: Sequence[Sequence[float]],
    scale: Callable[[float], float],
    label: str,
    mark: str,
) -> None:
    centre = [scale(statistics.fmean(g)) for g in groups]
    below = [c - scale(min(g)) for c, g in zip(centre, groups, strict=True)]
    above = [scale(max(g)) - c for c, g in zip(centre, groups, strict=True)]
    axis.errorbar(x, centre, yerr=[below, above], marker=mark, markersize=4, linewidth=1.2, capsize=2, label=label)


def evidence(figure: Any, curves: Mapping[str, Curves]) -> None:
    """Error of log Z over its reported standard error, for each task and path, with ±3."""
    entries: list[tuple[str, list[float]]] = []
    repeated = curves.get("log Z over its standard error", {})
    for name, points in repeated.items():
        entries.append((f"{name} ({len(points)})", [p["z"] for p in points if p.get("z") is not None]))
    if not entries:
        for task, methods in curves.items():
            for method, points in methods.items():
                values = [p["z"] for p in points if p.get("z") is not None and math.isfinite(p["z"])]
                if values and "default" in method:
                    entries.append((f"{task}, {method.removeprefix('default SMC on ')}", values))
    figure.set_size_inches(8, 0.6 + 0.42 * max(len(entries), 2))
    axis = figure.subplots()
    for row, (_, values) in enumerate(entries):
        axis.plot(values, [row] * len(values), "|", markersize=12, alpha=0.7)
        rms = math.sqrt(statistics.fmean(v * v for v in values))
        axis.text(4.1, row, f"rms {rms:.2f}", va="center", fontsize=8)
    axis.axvspan(-3, 3, color="0.93", zorder=0)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_xlim(-5, 5.4)
    axis.set_ylim(len(entries) - 0.4, -0.6)
    axis.set_yticks(range(len(entries)), [name for name, _ in entries], fontsize=8)
    axis.set_xlabel("(log Z − truth) / reported standard error")


def ratios(figure: Any, curves: Curves, bounds: Mapping[str, float]) -> None:
    """Paired ratios of times that have a target: every pair, their median, the target."""
    judged = {name: [p["ratio"] for p in points] for name, points in curves.items() if name in bounds}
    figure.set_size_inches(9, 0.8 + 0.4 * max(len(judged), 2))
    axis = figure.subplots()
    for row, (name, values) in enumerate(judged.items()):
        axis.plot(values, [row] * len(values), ".", markersize=4, alpha=0.35)
        axis.plot([statistics.median(values)], [row], "k|", markersize=16, markeredgewidth=2)
        axis.plot([bounds[name]] * 2, [row - 0.35, row + 0.35], color="tab:red", linestyle=":", linewidth=1.5)
    axis.set_xlim(0.5, 1.5)
    axis.set_ylim(len(judged) - 0.4, -0.6)
    axis.axvline(1.0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(judged)), list(judged), fontsize=8)
    axis.set_xlabel("time over that of the bare work: pairs, median (bar), target (dotted)", fontsize=9)


def tiles(images: Any, right: Any, columns: int, scale: int = 6) -> Any:
    """Grey images ``(N, H, H)`` in [−1, 1] side by side, as RGB bytes; where ``right`` is false, in a red frame."""
    rows, edge = math.ceil(len(images) / columns), images.shape[-1] * scale + 6
    sheet = np.full((rows * edge, columns * edge, 3), 255, dtype=np.uint8)
    for k, (image, good) in enumerate(zip(images, right, strict=True)):
        top, start = (k // columns) * edge, (k % columns) * edge
        if not good:
            sheet[top + 1 : top + edge - 1, start + 1 : start + edge - 1] = (214, 62, 42)
        grey = (255 * (1 - (image.clip(-1, 1) + 1) / 2)).astype(np.uint8)
        big = grey.repeat(scale, 0).repeat(scale, 1)
        sheet[top + 3 : top + edge - 3, start + 3 : start + edge - 3] = big[..., None]
    return sheet
