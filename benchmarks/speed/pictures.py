"""Pictures of the speed sections; matplotlib is imported by whoever renders them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_FLOOR = "floor"


def ratios(figure: Any, table: Mapping[tuple[str, int], float], title: str, peer: str) -> None:
    """Median ratios of rates, a target a row and a number of chains a column; blue where ours is faster."""
    import numpy as np

    names, chains = (list(dict.fromkeys(key[k] for key in table)) for k in (0, 1))
    figure.set_size_inches(1.8 + 1.3 * max(len(chains), 1), 1.4 + 0.45 * max(len(names), 1))
    axis = figure.subplots()
    values = np.full((len(names), len(chains)), np.nan)
    for (name, number), value in table.items():
        values[names.index(name), chains.index(number)] = math.log2(value)
    axis.imshow(values, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    for (name, number), value in table.items():
        at = (chains.index(number), names.index(name))
        dark = abs(math.log2(value)) > 2
        axis.text(*at, f"{value:.2g}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(chains)), [f"{c} chains" for c in chains], fontsize=8)
    axis.set_yticks(range(len(names)), [str(n).replace("_", " ") for n in names], fontsize=8)
    axis.set_title(f"{title}: rate over {peer}'s", fontsize=9)


def bars(figure: Any, groups: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Figures of several methods side by side, a group for each target, on a logarithmic scale."""
    methods = list(dict.fromkeys(m for per in groups.values() for m in per))
    figure.set_size_inches(1.5 + 1.6 * max(len(groups), 1), 3.6)
    axis = figure.subplots()
    width = 0.8 / max(len(methods), 1)
    for k, method in enumerate(methods):
        at = [i + (k - (len(methods) - 1) / 2) * width for i, per in enumerate(groups.values()) if method in per]
        axis.bar(at, [per[method] for per in groups.values() if method in per], width, label=method)
    axis.set_yscale("log")
    axis.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axis.set_ylabel(label, fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)


def growth(figure: Any, axis_name: str, tasks: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Cost against size, both logarithmic, a panel for each task; the floor is dotted."""
    figure.set_size_inches(1 + 3.6 * max(len(tasks), 1), 3.8)
    panels = figure.subplots(1, max(len(tasks), 1), squeeze=False)[0]
    for panel, (task, points) in zip(panels, tasks.items(), strict=False):
        names = [n for n in dict.fromkeys(k for p in points for k in p) if n not in ("size", "rows", _FLOOR)]
        for name in [*names, *([_FLOOR] if any(_FLOOR in p for p in points) else [])]:
            known = [p for p in points if name in p]
            style = {"color": "0.4", "linestyle": ":"} if name == _FLOOR else {"marker": "o", "markersize": 3}
            panel.plot([p["size"] for p in known], [p[name] for p in known], label=name, **style)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(axis_name, fontsize=9)
        panel.set_title(task, fontsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("bytes" if axis_name.startswith("chains of") else "CPU seconds", fontsize=9)
