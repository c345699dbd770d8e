"""Pictures of a suite's figures; matplotlib is imported by whoever renders them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from boltzmix.benchmarks.metrics import log_mmd2

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
_MARKS = "osD^vP*X"


def error_curves(figure: Any, curves: Curves, floors: Mapping[str, tuple[float, float]]) -> None:
    """ln MMD² and mode-mass error against evaluations, each point the mean over seeds, bars the extremes."""
    figure.set_size_inches(11, 4.6)
    left, right = figure.subplots(1, 2)
    for (method, points), mark in zip(curves.items(), _MARKS, strict=False):
        settings = list(dict.fromkeys(p["setting"] for p in points))
        groups = [[p for p in points if p["setting"] == s] for s in settings]
        spent = [statistics.fmean(p["evaluations"] for p in g) for g in groups]
        _bars(
            left, spent, [[log_mmd2(p["mmd2"]) for p in g] for g in groups], method, mark, mean_of="mmd2", groups=groups
        )
        _bars(right, spent, [[p["tv"] for p in g] for g in groups], method, mark)
    low, high = floors["mmd2"]
    left.axhspan(low, high, color="0.85", label="exact pairs: mean of ln to 99 %")
    left.axhline(-8, color="0.4", linestyle=":", linewidth=1)
    left.set_ylim(bottom=-13)
    left.set_ylabel("ln MMD² (of the mean over seeds)")
    right.axhline(floors["tv"][0], color="0.6", linestyle="--", label="exact draws")
    right.axhline(floors["tv"][1], color="0.4", linestyle=":", label="exact draws + 0.03")
    right.set_ylabel("mode-mass error (total variation)")
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("evaluations per particle")
        axis.grid(alpha=0.3)
    left.set_title("ring × line, n = 4,000", fontsize=10)
    right.legend(fontsize=7, loc="upper right")
    left.legend(fontsize=7, loc="upper right")


def _bars(
    axis: Any,
    x: Sequence[float],
    groups_values: Sequence[Sequence[float]],
    label: str,
    mark: str,
    mean_of: str | None = None,
    groups: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> None:
    if mean_of is None:
        centre = [statistics.fmean(v) for v in groups_values]
    else:
        centre = [log_mmd2(statistics.fmean(p[mean_of] for p in g)) for g in groups]
    below = [max(c - min(v), 0.0) for c, v in zip(centre, groups_values, strict=True)]
    above = [max(max(v) - c, 0.0) for c, v in zip(centre, groups_values, strict=True)]
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
                if values and "cess" not in method:
                    entries.append((f"{task}, {method.split(':')[-1].strip()}", values))
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
    """Paired ratios of times: every pair, their median, the target."""
    figure.set_size_inches(8, 0.8 + 0.45 * max(len(curves), 2))
    axis = figure.subplots()
    for row, (name, points) in enumerate(curves.items()):
        values = [p["ratio"] for p in points]
        axis.plot(values, [row] * len(values), ".", markersize=4, alpha=0.35)
        axis.plot([statistics.median(values)], [row], "k|", markersize=16)
        if name in bounds:
            axis.plot([bounds[name]] * 2, [row - 0.35, row + 0.35], color="tab:red", linestyle=":", linewidth=1.5)
    spread = [p["ratio"] for points in curves.values() for p in points]
    axis.set_xlim(min(0.85, sorted(spread)[len(spread) // 50]), sorted(spread)[-1 - len(spread) // 50])
    axis.set_ylim(len(curves) - 0.4, -0.6)
    axis.axvline(1.0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(curves)), list(curves), fontsize=8)
    axis.set_xlabel("time / time of the bare work, paired (dots), median (bar), target (dotted)")
