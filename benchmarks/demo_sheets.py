"""What the demo shows: a table in words, and the sheets of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzmix.benchmarks import demo_planning
from boltzmix.benchmarks.demo_panels import VIEW, Panel, Report, Setting, short
from boltzmix.benchmarks.plots import tiles

# ----------------------------------------------------------------------- words


def table(report: Report, setting: Setting) -> str:
    """What was composed, how well, at what cost; for someone who has not read anything else."""
    plane = [p for p in report.panels if p.gallery == "plane"]
    digits = [p for p in report.panels if p.gallery == "digits"]
    lines = [
        "",
        f"THE PLANE: networks trained apart, composed and drawn by {short(setting.plane)}, n = {plane[0].n:,}",
    ]
    rows = [["composed", "distance", "floor", "own formula", "summed scores", "log Z", "own", "true", "evals", "s"]]
    for p in plane:
        if p.error:
            rows.append([p.formula, p.error[:60]])
            continue
        z = "–" if p.log_z is None else f"{p.log_z:.2f} ± {p.log_z_se or 0:.2f}"
        numbers = [_number(v) for v in (p.distance, p.floor, p.to_formula, p.naive)]
        rows.append(
            [p.formula, *numbers, z, f"{p.log_z_formula:.2f}", f"{round(p.log_z_exact or 0.0, 2) + 0.0:.2f}", *_cost(p)]
        )
    lines += _aligned(rows)
    lines += [
        "  distance       MMD between the draws and the true answer: the formula over the true densities of the data",
        "  floor          the same between two sets of exact draws: no sampler can be expected below it",
        "  own formula    distance to the formula over the networks' energies: the sampler's part of the error",
        f"  summed scores  distance to the true answer of the usual shortcut, {short(setting.naive)}",
        "  log Z          log of the formula's integral and its standard error; own, true: of the two formulas",
        "  evals, s       evaluations of the formula per draw, everything counted; seconds of the sampler",
        "",
        f"DIGITS: one class-conditional network, drawn by {short(setting.digits)}, n = {digits[0].n}",
    ]
    rows = [["composed", "formula", "as asked", "(real)", "nearest", "(real)", "distance", "floor", "evals", "s"]]
    for p in digits:
        if p.error:
            rows.append([p.name, p.formula, p.error[:60]])
            continue
        rows.append(
            [
                p.name, p.formula, percent(p.right), percent(p.right_real), f"{p.nearest:.2f}",
                f"{p.nearest_real:.2f}", _number(p.distance), _number(p.floor), *_cost(p),
            ]
        )  # fmt: skip
    lines += _aligned(rows, left=2)
    lines += [
        "  as asked    share of draws that a classifier (trained on real digits only) sees as what was asked;",
        "              (real): of held-out real digits that are an example of it",
        "  nearest     median distance to the nearest training digit; (real): of held-out real digits. Much larger",
        "              means no digits; smaller means that the network leans on its training digits",
        "  distance    MMD to held-out real digits, where these are the true answer; floor: of real training digits",
        "  Annealed gives no log Z, and this network's energies are not calibrated: the column is left out.",
        "",
    ]
    if report.planned:
        lines += [*demo_planning.table(report.planned), ""]
    for gallery, panels in (("plane", plane), ("digits", digits)):
        if panels:
            worst = max(panels, key=Panel.badness)
            where = "the plane" if gallery == "plane" else "digits"
            lines.append(f"worst panel of {where} (worst.png): {worst.formula}. {_what_is_wrong(worst)}")
    warned = [(p.formula, w) for p in report.panels for w in p.warnings]
    lines += [f"warning, {formula}: {w}" for formula, w in warned]
    lines += ["", f"{report.seconds:.0f} s in all; written to {report.out}:"]
    lines += [f"  {path.name}" for path in sorted(report.out.iterdir()) if path.suffix in (".png", ".gif", ".json")]
    return "\n".join(lines)


def _what_is_wrong(p: Panel) -> str:
    """What the figures say about a panel's errors."""
    if p.error:
        return p.error
    if p.gallery == "plane":
        assert p.distance is not None
        assert p.floor is not None
        assert p.to_formula is not None
        if p.distance <= 1.5 * p.floor:
            return "Even this one is about as close as exact draws are to each other."
        if p.to_formula <= 1.5 * p.floor:
            return "The sampler draws what the networks say; what is left is the networks' own error."
        return "The sampler is away from the networks' own formula."
    said = f"{percent(p.right)} of the draws are as asked"
    if p.right_guess is not None:
        said += f"; from the given half alone the nearest training digit guesses {percent(p.right_guess)} right"
    return said + "."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cost(p: Panel) -> list[str]:
    return [f"{p.evaluations:.0f}", f"{p.seconds:.1f}"]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    full_rows = [r for r in rows if len(r) == len(rows[0])]
    widths = [max(len(r[k]) for r in full_rows) for k in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = [c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths, strict=False))]
        lines.append("  " + "  ".join(cells).rstrip())
    return [lines[0], "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


# -------------------------------------------------------------------- pictures


def draw_sheets(panels: Sequence[Panel], folder: Path) -> None:
    """Write plane.png, digits.png, completions.png and worst.png; panels best first, so that the worst is last."""
    made = sorted((p for p in panels if not p.error), key=Panel.badness)
    plane = [p for p in made if p.gallery == "plane"]
    digits = [p for p in made if p.gallery == "digits"]
    if plane:
        _plane_sheet(plane, folder / "plane.png")
    if digits:
        _digits_sheet(digits, folder / "digits.png")
    for p in digits:
        if p.pictures["completing"]:
            _completions_sheet(p, folder / "completions.png")
    if plane and digits:
        _worst_sheet(plane[-1], digits[-1], folder / "worst.png")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, dpi: int = 110) -> None:
    from boltzmix.compose.pictures import save_figure

    save_figure(figure, path, dpi=dpi)


def _bare(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_color("#bbbbbb")


def _cloud(ax: Any, x: Any, color: str) -> None:
    ax.scatter(x[:, 0], x[:, 1], s=2.0, alpha=0.35, color=color, linewidths=0)
    ax.set_xlim(-VIEW, VIEW)
    ax.set_ylim(-VIEW, VIEW)
    ax.set_aspect("equal")
    _bare(ax)


def _plane_sheet(panels: Sequence[Panel], path: Path) -> None:
    figure = _figure(9.2, 1.75 * len(panels) + 0.5)
    axes = figure.subplots(len(panels), 5, squeeze=False)
    titles = ["first model", "second model", "exact answer", "Boltzmix", "summed scores"]
    colors = ("#222222", "#1f5fa8", "#b5452c")
    for row, p in zip(axes, panels, strict=True):
        heats = p.pictures["factors"]
        for k in range(2):
            if k < len(heats):
                row[k].imshow(heats[k], origin="lower", cmap="Greys", extent=(-VIEW, VIEW, -VIEW, VIEW))
                _bare(row[k])
            else:
                row[k].set_axis_off()
        for ax, key, color in zip(row[2:], ("exact", "draws", "naive"), colors, strict=True):
            _cloud(ax, p.pictures[key], color)
        for ax, value in ((row[2], p.floor), (row[3], p.distance), (row[4], p.naive)):
            ax.text(0.04, 0.04, f"{value:.3f}", transform=ax.transAxes, fontsize=7.5, color="#555555")
        row[0].set_ylabel(p.formula.replace(" * (", " *\n(").replace("(line", "(\nline"), fontsize=7.5)
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, fontsize=9.5)
    figure.supxlabel(
        'in the corner: distance (MMD) to exact draws, for "exact answer" that of a second set; best panel first',
        fontsize=8,
    )
    _save(figure, path, dpi=95)


def _digits_sheet(panels: Sequence[Panel], path: Path, columns: int = 16) -> None:
    figure = _figure(7.6, 1.17 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, p in zip(axes, panels, strict=True):
        count = min(2 * columns, len(p.pictures["draws"]))
        ax.imshow(tiles(p.pictures["draws"][:count], p.pictures["right"][:count], columns))
        ax.set_axis_off()
        asked = "" if p.right is None else f"as asked {percent(p.right)}, "
        ax.set_title(f"{p.name}:  {p.formula}", fontsize=8.5, loc="left")
        ax.set_title(f"{asked}nearest {p.nearest:.2f} (real {p.nearest_real:.2f})", fontsize=7.5, loc="right")
    figure.supxlabel(
        "the first draws of each panel, none chosen; red: the classifier does not see what was asked; best panel first",
        fontsize=7.5,
    )
    _save(figure, path)


def _completions_sheet(p: Panel, path: Path, columns: int = 16) -> None:
    import numpy as np

    given, draws, right = (p.pictures[k] for k in ("given", "draws", "right"))
    count = min(2 * columns, len(given))
    figure = _figure(9.2, 4.2)
    axes = figure.subplots(math.ceil(count / columns), 1, squeeze=False)[:, 0]
    for k, ax in enumerate(axes):
        part = slice(k * columns, min((k + 1) * columns, count))
        shown = np.array(given[part])
        shown[:, 4:] = -0.6
        yes = np.ones(len(shown), dtype=bool)
        rows = [tiles(given[part], yes, columns), tiles(shown, yes, columns)]
        ax.imshow(np.concatenate([*rows, tiles(draws[part], right[part], columns)]))
        ax.set_yticks([27, 81, 135], ["real digit", "given", "completed"], fontsize=8)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.suptitle(
        f"{p.formula}: held-out digits, lower half drawn; red: the classifier sees another digit", fontsize=9
    )
    _save(figure, path)


def _worst_sheet(plane: Panel, digits: Panel, path: Path) -> None:
    import numpy as np

    figure = _figure(9.2, 5.6)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
    axes = left.subplots(2, 1)
    for ax, key, color, value in (
        (axes[0], "exact", "#222222", plane.floor),
        (axes[1], "draws", "#1f5fa8", plane.distance),
    ):
        _cloud(ax, plane.pictures[key], color)
        ax.set_title(f"{'exact answer, floor' if key == 'exact' else 'Boltzmix, distance'} {value:.3f}", fontsize=8.5)
    left.suptitle(f"worst of the plane: {plane.formula}", fontsize=9)
    good, certain = digits.pictures["right"], digits.pictures["certain"]
    order = np.lexsort((certain, good))  # what was not asked for first, then what the classifier is unsure of
    ax = right.subplots()
    ax.imshow(tiles(digits.pictures["draws"][order], good[order], 8))
    ax.set_axis_off()
    right.suptitle(
        f"worst of digits: {digits.name}, {digits.formula}\nall draws, worst first; {percent(digits.right)} as asked",
        fontsize=9,
    )
    _save(figure, path)
