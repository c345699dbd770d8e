"""Pictures of chains: traces with densities, histograms of ranks, autocorrelations, pairs, energies.

Colours are Paul Tol's bright scheme, which people with any colour vision tell apart; chains differ in their line style,
too. Figures are plain :class:`matplotlib.figure.Figure` objects on the Agg canvas.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.coordinates import Coordinates
from boltzmix.compose.diagnostics import autocorrelation, bfmi, convergence
from boltzmix.compose.pictures import save_figure
from boltzmix.compose.variable import State

KINDS = ("trace", "rank", "autocorrelation", "pair", "energy")
_WIDTHS = {"trace": (4.6, 1.2), "rank": (2.6,), "autocorrelation": (2.6,)}
_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_STYLES = ("-", "--", "-.", ":")
_DIVERGENT = "#000000"
_FEW = 8  # chains with a line each in histograms of ranks
_FEW_VALUES = 20  # of a discrete parameter, drawn by their frequencies
_MOST_LINES = 12
_MOST_POINTS = 2000


def plot_chains(
    x: State,
    stats: Mapping[str, Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    kind: str | Sequence[str] = ("trace", "rank"),
    names: str | Sequence[str] | None = None,
    most: int | None = None,
    title: str | None = None,
    dpi: int = 120,
) -> Any:
    """A figure of chains, saved when ``path`` is given.

    Args:
        x: ``(chains, draws, *event)``, or a dictionary of these.
        stats: as in ``draw.stats``; divergences are marked, and ``"energy"`` is drawn.
        path: where to save; the suffix says the format.
        kind: one of ``"trace"``, ``"rank"``, ``"autocorrelation"``, ``"pair"``, ``"energy"``, or several of the first
            three, which share a row for each parameter.
        names: parameters: a variable stands for all its coordinates, ``"theta[0]"`` is one of them.
        most: how many parameters are drawn where ``names`` does not choose them, those with the largest R-hat: 6, and
            4 for pairs.
        title: a line above.
        dpi: dots per inch of a saved bitmap.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: an unknown kind or parameter, or no energies to draw.

    Example:
        >>> x = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> figure = plot_chains({"mu": x[..., 0], "sd": x[..., 1].exp()}, {})
        >>> [axis.get_title() for axis in figure.axes][:3]
        ['mu: trace', 'density', 'ranks']
    """
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"pictures of chains are {', '.join(KINDS)} and 'states', got kind={kind!r}")
    if len(kinds) > 1 and {"pair", "energy"} & set(kinds):
        raise ValueError(f"pair and energy are figures of their own, got kind={kind!r}")
    if "energy" in kinds:
        figure = _energy(stats)
    else:
        figure = _parameters(x, stats, kinds, names, most)
    if title is not None:
        figure.suptitle(title)
    if path is not None:
        save_figure(figure, path, dpi=dpi)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _parameters(
    x: State,
    stats: Mapping[str, Tensor],
    kinds: tuple[str, ...],
    names: str | Sequence[str] | None,
    most: int | None,
) -> Any:
    at = Coordinates(x)
    most = (4 if "pair" in kinds else 6) if most is None else most
    note = ""
    if names is not None:
        places = at.choose([names] if isinstance(names, str) else list(names))
    elif len(at) <= most:
        places = list(range(len(at)))
    else:
        places, note = _worst(at, most), f"{most} of {len(at)} parameters, those with the largest R-hat; names= chooses"
    marked = stats.get("diverging")
    columns = [(at.names[k], at[k].double().cpu()) for k in places]
    if "pair" in kinds:
        figure = _pairs(columns, None if marked is None else marked.bool().cpu())
    else:
        figure = _rows(columns, kinds, None if marked is None else marked.bool().cpu())
    if note:
        letters = int(15 * figure.get_figwidth())  # that an inch holds at this size
        figure.supxlabel(textwrap.fill(note, letters), fontsize=8)
    return figure


def _worst(at: Coordinates, most: int) -> list[int]:
    if at.tensors[0].shape[1] < 4:
        return list(range(most))
    r = torch.cat([convergence(t)[2].cpu() for t in at.tensors])
    order = torch.nan_to_num(r, nan=-math.inf).argsort(descending=True, stable=True)
    return sorted(order[:most].tolist())


def _rows(columns: list[tuple[str, Tensor]], kinds: tuple[str, ...], marked: Tensor | None) -> Any:
    widths = [w for kind in kinds for w in _WIDTHS[kind]]
    figure = _figure(0.5 + sum(widths), 0.4 + 1.7 * len(columns))
    axes = figure.subplots(len(columns), len(widths), squeeze=False, width_ratios=widths)
    for at, (row, (name, c)) in enumerate(zip(axes, columns, strict=True)):
        k, last = 0, at == len(columns) - 1
        for kind in kinds:
            if kind == "trace":
                _trace(row[k], row[k + 1], name, c, marked, last)
            elif kind == "rank":
                _ranks(row[k], c, last)
            else:
                _autocorrelations(row[k], c, last)
            if k == 0 and kind != "trace":
                row[k].set_title(f"{name}: {row[k].get_title()}", fontsize=9)
            k += len(_WIDTHS[kind])
    for ax in axes.flatten():
        ax.tick_params(labelsize=7)
    return figure


def _style(k: int, chains: int) -> dict[str, Any]:
    """Colour and line of chain k."""
    return {
        "color": _COLORS[k % len(_COLORS)],
        "linestyle": _STYLES[(k // len(_COLORS)) % len(_STYLES)],
        "alpha": 0.75 if chains <= 4 else 0.6,
    }


def _trace(ax: Any, side: Any, name: str, c: Tensor, marked: Tensor | None, last: bool) -> None:
    chains, draws = c.shape
    c, every = _some(c), max(1, math.ceil(draws / _MOST_POINTS))
    shown = len(c)
    places = torch.arange(0, draws, every).numpy()
    for k in range(shown):
        style = _style(k, shown) | {"linestyle": "-"}
        ax.plot(places, c[k, ::every].numpy(), linewidth=0.6, **style)
    ax.set_title(f"{name}: trace", fontsize=9)
    ax.set_xlim(0, max(1, draws - 1))
    finite = c[torch.isfinite(c)]
    values = finite.unique()
    if 1 < len(values) <= _FEW_VALUES:
        middle = (values[1:] + values[:-1]) / 2
        edges = torch.cat([2 * values[:1] - middle[:1], middle, 2 * values[-1:] - middle[-1:]]).numpy()
        for k, row in enumerate(c):
            shares = (row == values[:, None]).double().mean(1).numpy()
            side.stairs(shares, edges, orientation="horizontal", linewidth=1.0, **_style(k, shown))
        side.set_title("frequency", fontsize=9)
    else:
        grid, densities = _densities(c)
        for k, density in enumerate(densities):
            side.plot(density.numpy(), grid.numpy(), linewidth=1.0, **_style(k, shown))
        side.set_title("density", fontsize=9)
    side.set_xticks([])
    side.set_xlim(left=0)
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        pad = (0.04 if len(values) > _FEW_VALUES else 0.5 / max(1, len(values) - 1)) * (high - low) or 0.5
        ax.set_ylim(low - 2 * pad, high + pad)
        side.set_ylim(low - 2 * pad, high + pad)
        side.set_yticklabels([])
        if marked is not None and bool(marked.any()):
            where = _some(marked).any(0).nonzero()[:, 0].numpy()
            ax.plot(where, [low - 1.2 * pad] * len(where), "|", color=_DIVERGENT, markersize=5, label="divergent")
            ax.legend(fontsize=6, loc="upper right", framealpha=0.7)
    if last:
        more = f" ({shown} of {chains} chains)" if shown < chains else ""
        ax.set_xlabel(f"draw{more}", fontsize=8)


def _some(c: Tensor) -> Tensor:
    """Not more chains than a picture can hold, from the first to the last."""
    if len(c) <= _MOST_LINES:
        return c
    return c[torch.linspace(0, len(c) - 1, _MOST_LINES).round().long()]


def _densities(c: Tensor, bins: int = 256) -> tuple[Tensor, list[Tensor]]:
    """Kernel density estimates of every row on one grid, by smoothing a histogram."""
    finite = c[torch.isfinite(c)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edge = 0.1 * (high - low)
    low, high = low - edge, high + edge
    width = (high - low) / bins
    grid = low + width * (torch.arange(bins, dtype=torch.float64) + 0.5)
    found = []
    for row in c:
        row = row[torch.isfinite(row)]
        counts = torch.histc(row, bins, low, high) / max(1, len(row)) / width
        if len(row) > 1 and float(row.std()) > 0:
            quartiles = row[:: max(1, len(row) // 100_000)].quantile(row.new_tensor([0.25, 0.75]))
            spread = min(float(row.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(row.std())
            bandwidth = max(0.9 * spread * len(row) ** -0.2, 0.5 * width)
            reach = min(bins - 1, math.ceil(4 * bandwidth / width))
            kernel = (-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) * width / bandwidth) ** 2).exp()
            counts = torch.nn.functional.conv1d(counts[None, None], (kernel / kernel.sum())[None, None], padding=reach)
            counts = counts[0, 0]
        found.append(counts)
    return grid, found


def _ranks(ax: Any, c: Tensor, last: bool, bins: int = 20) -> None:
    """Histograms of the ranks among all draws: of chains that agree, each is flat up to chance."""
    chains, draws = c.shape
    ax.set_title("ranks", fontsize=9)
    if last:
        ax.set_xlabel("rank of the draw", fontsize=8)
    if not bool(torch.isfinite(c).all()) or draws < 2:
        ax.text(0.5, 0.5, "not finite", ha="center", va="center", transform=ax.transAxes, fontsize=8)
        return
    bins = max(2, min(bins, draws // 5))
    # draws that are equal are put in a random order, so that discrete parameters can be even, too
    mixed = torch.randperm(c.numel(), generator=torch.Generator().manual_seed(0))
    rank = torch.empty(c.numel(), dtype=torch.float64)
    rank[mixed[c.flatten()[mixed].argsort(stable=True)]] = torch.arange(c.numel(), dtype=torch.float64) + 0.5
    rank = rank.reshape(c.shape)
    counts = torch.stack([torch.histc(row, bins, 0.0, c.numel()) for row in rank]) * bins / draws
    edges = torch.linspace(0, chains * draws, bins + 1).numpy()
    if chains > _FEW:
        from matplotlib.colors import TwoSlopeNorm

        norm = TwoSlopeNorm(1.0, 0.0, max(2.0, float(counts.max())))
        image = ax.pcolormesh(edges, range(chains + 1), counts.numpy(), cmap="PuOr_r", norm=norm, rasterized=True)
        bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("share / even share", fontsize=7)
        ax.set_ylabel("chain", fontsize=7)
        return
    sd = math.sqrt((1 - 1 / bins) * bins / draws)  # of a count over its mean, for independent draws
    ax.axhspan(1 - 2 * sd, 1 + 2 * sd, color="0.88", linewidth=0)
    ax.axhline(1, color="0.5", linewidth=0.6)
    for k in range(chains):
        ax.stairs(counts[k].numpy(), edges, baseline=None, linewidth=1.1, **_style(k, chains))
    ax.set_xlim(0, chains * draws)
    ax.set_ylim(0, max(2.0, 1.1 * float(counts.max())))
    ax.set_ylabel("share / even share", fontsize=7)


def _autocorrelations(ax: Any, c: Tensor, last: bool, lags: int = 100) -> None:
    draws = c.shape[1]
    rho = autocorrelation(_some(c), min(lags, draws))
    shown = len(rho)
    band = 1.96 / math.sqrt(draws)
    ax.axhspan(-band, band, color="0.88", linewidth=0)
    ax.axhline(0, color="0.5", linewidth=0.6)
    for k in range(shown):
        ax.plot(rho[k].numpy(), linewidth=0.8, **_style(k, shown))
    ax.set_ylim(min(-0.25, 1.05 * float(torch.nan_to_num(rho).min())), 1.05)
    ax.set_xlim(0, rho.shape[1] - 1 or 1)
    ax.set_title("autocorrelation", fontsize=9)
    if last:
        ax.set_xlabel("lag", fontsize=8)


def _pairs(columns: list[tuple[str, Tensor]], marked: Tensor | None) -> Any:
    if len(columns) < 2:
        raise ValueError(f"a pair plot needs two parameters, got {[name for name, _ in columns]}")
    size = len(columns) - 1
    figure = _figure(0.8 + 2.3 * size, 0.6 + 2.2 * size)
    axes = figure.subplots(size, size, squeeze=False, sharex="col", sharey="row")
    count = columns[0][1].numel()
    every = max(1, math.ceil(count / 5000))
    alpha = min(1.0, max(0.12, 12 / math.sqrt(count / every)))
    bad = None if marked is None or not bool(marked.any()) else marked.flatten()
    for i in range(size):
        for j in range(size):
            ax = axes[i, j]
            if j > i:
                ax.set_axis_off()
                continue
            (across, a), (up, b) = columns[j], columns[i + 1]
            a, b = a.flatten(), b.flatten()
            ax.scatter(a[::every].numpy(), b[::every].numpy(), s=4, alpha=alpha, color=_COLORS[0], linewidths=0)
            if bad is not None:
                ax.scatter(a[bad].numpy(), b[bad].numpy(), s=16, color=_DIVERGENT, marker="x", linewidths=0.8, zorder=3)
            ax.tick_params(labelsize=7)
            if i == size - 1:
                ax.set_xlabel(across, fontsize=9)
            if j == 0:
                ax.set_ylabel(up, fontsize=9)
    from matplotlib.lines import Line2D

    said = [Line2D([], [], marker="o", linestyle="", color=_COLORS[0], markersize=3, label="draws")]
    if bad is not None:
        label = f"divergent ({int(bad.sum())})"
        said.append(Line2D([], [], marker="x", linestyle="", color=_DIVERGENT, markersize=5, label=label))
    if size > 1:
        axes[0, -1].legend(handles=said, fontsize=8, loc="upper right", frameon=False)
    elif bad is not None:
        axes[0, 0].legend(handles=said, fontsize=7, loc="best", framealpha=0.7)
    return figure


def _energy(stats: Mapping[str, Tensor]) -> Any:
    energy = stats.get("energy")
    if energy is None or energy.shape[1] < 2 or not bool(torch.isfinite(energy.diff(dim=1)).any()):
        raise ValueError("there are no energies to draw: only kernels with a momentum (HMC, NUTS, …) have them")
    h = energy.double().cpu()
    figure = _figure(5.2, 3.2)
    ax = figure.subplots()
    both = [(h - h[torch.isfinite(h)].mean()).flatten(), h.diff(dim=1).flatten()]
    both = [v[torch.isfinite(v)] for v in both]
    inner = torch.stack([v.abs()[:: max(1, v.numel() // 100_000)].quantile(0.999) for v in both])
    reach = 1.1 * float(inner.max()) or 1.0
    said = ("energy, centred: what is to be crossed", "change in one transition: what a momentum can do")
    for k, (values, label) in enumerate(zip(both, said, strict=True)):
        kept = values[values.abs() <= reach]
        grid, (density,) = _densities(kept[None])
        ax.fill_between(grid.numpy(), density.numpy(), color=_COLORS[k], alpha=0.3, linewidth=0)
        ax.plot(grid.numpy(), density.numpy(), color=_COLORS[k], linestyle=_STYLES[k], linewidth=1.2, label=label)
    fractions = bfmi(h)
    fractions = fractions[torch.isfinite(fractions)]
    listed = ", ".join(f"{v:.2f}" for v in fractions[:6].tolist()) + (", …" if len(fractions) > 6 else "")
    least = f", the smallest {float(fractions.min()):.2f}" if len(fractions) > 6 else ""
    ax.set_title(f"E-BFMI of the chains: {listed or 'not defined'}{least}", fontsize=9)
    ax.set_xlabel("energy", fontsize=8)
    ax.set_yticks([])
    ax.set_ylim(bottom=0)
    ax.set_ylim(top=1.35 * ax.get_ylim()[1])
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7, frameon=False, loc="upper left")
    return figure
