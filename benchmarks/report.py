"""What a suite found: rows with their targets, curves, pictures; written as JSON, Markdown and PNG."""

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boltzmix.compose.draw import write_atomically

SCHEMA = 1
_COMPARE: dict[str, Callable[[float, float], bool]] = {"≤": lambda a, b: a <= b, "≥": lambda a, b: a >= b}


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        section: the part of the suite, e.g. ``"2a"``.
        task: what was composed.
        quantity: what was measured.
        value: the figure; NaN where nothing could be measured.
        target: what it should be, in words; empty for context.
        holds: whether it is so; None for context and for rows that were skipped.
        note: setting, floor, worst seed.
    """

    section: str
    task: str
    quantity: str
    value: float
    target: str = ""
    holds: bool | None = None
    note: str = ""


@dataclass
class Report:
    """Everything that a suite writes.

    Attributes:
        suite: its name.
        title: the heading of the table.
        rows: figures in the order in which they were found.
        curves: per task and method, a list of points (dictionaries of numbers).
        notes: remarks for the reader, such as what was skipped.
        summary: a table of its own, above the rows.
        figures: per file name, a function that draws into a matplotlib Figure.
        about: command, versions, seeds, threads, seconds.
        folder: where :meth:`keep` writes; None writes nowhere.
        began: the clock's reading when the run began.
    """

    suite: str
    title: str
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    summary: str = ""
    figures: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    section: str = ""
    folder: Path | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

    def tell(self, task: str, quantity: str, value: float, note: str = "") -> None:
        """A figure without a target."""
        self.rows.append(Row(self.section, task, quantity, float(value), note=note))

    def check(self, task: str, quantity: str, value: float, relation: str, bound: float, note: str = "") -> bool:
        """A figure and its target, ``"≤"`` or ``"≥"`` a bound."""
        value = float(value)
        holds = math.isfinite(value) and _COMPARE[relation](value, bound)
        self.rows.append(Row(self.section, task, quantity, value, f"{relation} {bound:g}", holds, note))
        return holds

    def state(self, task: str, quantity: str, holds: bool, target: str, note: str = "") -> None:
        """A yes or no."""
        self.rows.append(Row(self.section, task, quantity, float(holds), target, holds, note))

    def skip(self, task: str, why: str) -> None:
        """Something that was not measured; visible in the table."""
        self.rows.append(Row(self.section, task, "SKIPPED", math.nan, note=why))

    def point(self, task: str, method: str, **numbers: Any) -> None:
        """One point of a curve."""
        self.curves.setdefault(task, {}).setdefault(method, []).append(numbers)

    @property
    def missed(self) -> list[Row]:
        """Rows whose target does not hold."""
        return [row for row in self.rows if row.holds is False]

    def markdown(self) -> str:
        """The table, with how it was made above it."""
        judged = sum(row.holds is not None for row in self.rows)
        about = self.about
        lines = [f"# {self.title}", ""]
        if about:
            lines += [
                f"`{about['command']}`: {', '.join(f'{k} {v}' for k, v in about['versions'].items())}; "
                f"seeds {_span(about['seeds'])}; {about['threads']} thread; {about['seconds']:.0f} s"
                + ("; QUICK: smaller sizes, targets are indicative" if about["quick"] else ""),
                "",
            ]
        lines += [f"{judged - len(self.missed)} of {judged} targets hold.", ""]
        if self.summary:
            lines += [self.summary, ""]
        lines += ["| part | task | quantity | value | target | holds | note |", "|---|---|---|---|---|---|---|"]
        mark = {True: "yes", False: "**NO**", None: ""}
        for r in self.rows:
            cells = [r.section, r.task, r.quantity, _number(r.value), r.target, mark[r.holds], r.note]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        found = {
            "schema": SCHEMA,
            "suite": self.suite,
            "title": self.title,
            "summary": self.summary,
            **self.about,
            "rows": [asdict(r) for r in self.rows],
            "curves": self.curves,
            "notes": self.notes,
        }
        return _plain(found)

    def keep(self) -> None:
        """Write what is known so far: a long section that is killed keeps the rows that it has."""
        if self.folder is not None:
            self.about["seconds"] = self.elapsed
            self.write(self.folder)

    def write(self, folder: Path) -> Path:
        """``results.json``, ``table.md`` and one PNG for each figure; every file is renamed into place."""
        payload = json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / "results.json", payload.encode())
        write_atomically(folder / "table.md", self.markdown().encode())
        for name, draw in self.figures.items():
            write_atomically(folder / f"{name}.png", _render(draw))
        return folder


def _render(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return (round(value, 12) if abs(value) < 1e6 else value) if math.isfinite(value) else None
    return value


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"


def _span(seeds: list[int]) -> str:
    return f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
