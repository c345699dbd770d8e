"""What a comparison of samplers found: standings, tables, pictures, files."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from boltzmix.benchmarks.bias import ALPHA, median_curve
from boltzmix.benchmarks.cell import Cell
from boltzmix.benchmarks.methods import Budget
from boltzmix.benchmarks.standing import RHAT, THRESHOLD, Standing, ranked, standing
from boltzmix.compose.draw import write_atomically

_SCHEMA = 1
#: columns of the table: heading, and what stands there
_COLUMNS: dict[str, Callable[[Standing], Any]] = {
    "rank": lambda s: s.rank,
    "method": lambda s: s.method,
    "status": lambda s: s.status,
    "gradients to b_avg²": lambda s: s.to_average,
    "gradients to b_max²": lambda s: s.to_largest,
    "b_max² at the end": lambda s: s.largest,
    "bias: b² ≥": lambda s: s.bias.floor,
    "worst error / allowed": lambda s: s.bias.worst / s.bias.allowed,
    "ESS / 1000 gradients": lambda s: s.numbers.get("ess_per_1000", math.nan),
    "ESS of x² / 1000": lambda s: s.numbers.get("ess_squares_per_1000", math.nan),
    "R-hat": lambda s: s.numbers.get("rhat", math.nan),
    "divergences": lambda s: s.numbers.get("divergences", math.nan),
    "tuning gradients": lambda s: s.numbers.get("tuning_gradients", math.nan),
    "ESS / CPU s": lambda s: s.numbers.get("ess_per_second", math.nan),
    "mode masses": lambda s: s.numbers.get("mode_error", math.nan),
    "log Z error": lambda s: s.numbers.get("log_z_error", math.nan),
    "counted by": lambda s: "target" if s.counted else "library",
    "note": lambda s: s.note,
}
_OPTIONAL = ("mode masses", "log Z error", "note")


@dataclass(frozen=True)
class Comparison:
    """What :func:`~boltzmix.benchmarks.sweep.compare` gives; print it, plot it, save it.

    Attributes:
        cells: every run, judged; those that went wrong are there with their error.
        budget: what each run could spend.
        chains: of each run.
        accuracies: b² below which the truth of a target is not known, by target.
        about: versions, machine, command.
        threshold: of b².
    """

    cells: tuple[Cell, ...]
    budget: Budget
    chains: int
    accuracies: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)
    threshold: float = THRESHOLD

    @property
    def targets(self) -> list[str]:
        """Names, in the order in which they were given."""
        return list(self.accuracies)

    @property
    def methods(self) -> list[str]:
        """Labels, in the order in which they were given."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        """Of the starts and of the samplers."""
        return sorted({cell.seed for cell in self.cells})

    def of(self, target: str, method: str) -> list[Cell]:
        """The runs of a method on a target, one for each seed."""
        return [cell for cell in self.cells if (cell.target, cell.method) == (target, method)]

    @cached_property
    def standings(self) -> dict[str, list[Standing]]:
        """Ranked, by target."""
        return {
            target: ranked(
                [standing(own, accuracy, self.threshold) for name in self.methods if (own := self.of(target, name))]
            )
            for target, accuracy in self.accuracies.items()
        }

    def standing(self, method: str, target: str | None = None) -> Standing:
        """Where a method stands; of several targets, on one of them.

        Raises:
            KeyError: a method or a target that was not compared.
        """
        name = self.targets[0] if target is None and len(self.targets) == 1 else target
        if name not in self.standings:
            raise KeyError(f"say which target: one of {', '.join(self.targets)}, got {target!r}")
        for found in self.standings[name]:
            if found.method == method:
                return found
        raise KeyError(f"no method is called {method!r}; there are {', '.join(self.methods)}")

    def curve(self, target: str, method: str) -> dict[str, list[float]]:
        """Medians of b_avg² and b_max² over chains and seeds: ``gradients``, ``average``, ``largest``."""
        cells = [cell for cell in self.of(target, method) if cell.error is None]
        if not cells:
            return {"gradients": [], "average": [], "largest": []}
        where = [cell.gradients for cell in cells]
        grid, average = median_curve(where, [cell.average for cell in cells])
        _, largest = median_curve(where, [cell.largest for cell in cells])
        return {"gradients": grid.tolist(), "average": average.tolist(), "largest": largest.tolist()}

    def rows(self) -> list[dict[str, Any]]:
        """The table: a dictionary for each target and method."""
        return [
            {"target": target, **{name: value(s) for name, value in _COLUMNS.items()}}
            for target, found in self.standings.items()
            for s in found
        ]

    def markdown(self) -> str:
        """One ranked table for each target, and how to read it."""
        lines = []
        for target, found in self.standings.items():
            lines += [f"### {target}", "", *_table(found), ""]
        return "\n".join([*lines, *self.legend()]) + "\n"

    __str__ = markdown

    def legend(self) -> list[str]:
        """How to read the table."""
        spent = self.budget
        each = f"{spent.draws} draws" if spent.gradients is None else f"{spent.gradients} gradients"
        return [
            f"{self.chains} chains from the same starts, seeds {', '.join(map(str, self.seeds))}, {spent.warmup} "
            f"transitions of warm-up, {each}; medians over chains and seeds; gradients of one chain, warm-up apart, "
            f"until b² stays below {self.threshold:g}; – where it never does, or a figure has no meaning.",
            "",
            f"Ranked: first methods that are *ok*, then those whose chains disagree (R-hat > {RHAT}), then *biased* "
            "ones, whose errors of means of x or x² are larger than chance allows (a sampler without bias is called "
            f"biased with probability {ALPHA:g}; their b² never falls below what stands under *bias*), then those that "
            "say another number of gradients than the target counted, those that failed, and those that are not "
            "installed.",
        ]

    def csv(self) -> str:
        """The table as comma-separated values."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, ["target", *_COLUMNS], lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
        return stream.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Everything, in values that JSON has; see :func:`encode`."""
        found = {
            "schema": _SCHEMA,
            "budget": asdict(self.budget),
            "chains": self.chains,
            "threshold": self.threshold,
            "accuracies": self.accuracies,
            "about": self.about,
            "cells": [cell.to_json() for cell in self.cells],
        }
        return encode(found)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Comparison":
        """What :meth:`to_json` gave.

        Raises:
            ValueError: a file of another kind or of a newer version.
        """
        if plain.get("schema") != _SCHEMA or "cells" not in plain:
            raise ValueError(f"not a comparison of schema {_SCHEMA}: it has {sorted(plain)[:8]}")
        found = decode(plain)
        cells = tuple(Cell.from_json(cell) for cell in found["cells"])
        return cls(
            cells, Budget(**found["budget"]), found["chains"], found["accuracies"], found["about"], found["threshold"]
        )

    def save(self, folder: str | Path) -> Path:
        """``comparison.json``, ``table.md``, ``table.csv`` and, for each target, ``TARGET.png``.

        Returns:
            the folder.
        """
        folder = Path(folder)
        text = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "comparison.json", text.encode())
        write_atomically(folder / "table.md", self.markdown().encode())
        write_atomically(folder / "table.csv", self.csv().encode())
        for target in self.targets:
            self.plot(target, folder / f"{target}.png")
        return folder

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """A comparison from its folder or its JSON file."""
        path = Path(path)
        return cls.from_json(json.loads((path / "comparison.json" if path.is_dir() else path).read_text()))

    def plot(self, target: str | None = None, path: str | Path | None = None) -> Any:
        """Curves of b_avg² and b_max² over gradients: a matplotlib Figure, written to ``path`` where one is given."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        name = self.targets[0] if target is None else target
        if name not in self.accuracies:
            raise ValueError(f"no target is called {name!r}; there are {', '.join(self.targets)}")
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(figure, name)
        if path is not None:
            stream = io.BytesIO()
            figure.savefig(stream, format=Path(path).suffix.lstrip(".") or "png", dpi=110)
            write_atomically(Path(path), stream.getvalue())
        return figure

    def draw(self, figure: Any, target: str) -> None:
        """The curves of one target into a figure: biased samplers dashed, clouds of particles as points."""
        figure.set_size_inches(11, 4.2)
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, key, title in zip(axes, ("average", "largest"), ("b_avg²", "b_max²"), strict=True):
            for k, s in enumerate(self.standings[target]):
                found = self.curve(target, s.method)
                if not found["gradients"]:
                    continue
                style: dict[str, Any] = {"color": f"C{k % 10}", "label": s.method, "linewidth": 1.3}
                style |= {"marker": "o"} if len(found["gradients"]) == 1 else {}
                style |= {"linestyle": "-" if s.status == "ok" else "--" if s.status == "biased" else ":"}
                axis.loglog(found["gradients"], found[key], **style)
            axis.axhline(self.threshold, color="0.5", linewidth=0.8)
            axis.set_title(f"{target}: {title}", fontsize=9)
            axis.set_xlabel("gradients of one chain, warm-up apart", fontsize=8)
            axis.grid(alpha=0.3)
        axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _table(found: Sequence[Standing]) -> list[str]:
    cells = [[_cell(value(s)) for value in _COLUMNS.values()] for s in found]
    names = list(_COLUMNS)
    kept = [k for k, name in enumerate(names) if name not in _OPTIONAL or any(row[k] not in ("–", "") for row in cells)]
    rows = [[names[k] for k in kept], ["---"] * len(kept), *([row[k] for k in kept] for row in cells)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value).replace("|", "\\|")
    if math.isnan(value):
        return "–"
    return (
        f"{value:.3g}"
        if value == 0 or 1e-3 <= abs(value) < 1e3
        else f"{value:.2e}"
        if abs(value) < 1
        else f"{value:.0f}"
    )


_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> Any:
    """JSON has no numbers that are not finite: their names stand for them."""
    if isinstance(value, dict):
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decode(value: Any) -> Any:
    """The inverse of :func:`encode`."""
    if isinstance(value, dict):
        return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode(v) for v in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
