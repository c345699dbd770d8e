"""The table of a draw: a string that prints well and holds its numbers."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.coordinates import labels, variables_of
from boltzmix.compose.diagnostics import statistics
from boltzmix.compose.variable import State

if TYPE_CHECKING:
    from boltzmix.compose.draw import Draw

_MOST, _SHORT = 40, 20  # rows that are all shown, and how many are when there are more
_OF_CHAINS = ("mean", "sd", "5%", "95%", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
_OF_PARTICLES = ("mean", "sd", "5%", "95%")


class Summary(str):
    """What ``Draw.summary()`` returns: text for people, and every number of it.

    ``str(table)`` is the text: for chains one row for each scalar parameter and what is to be said of the run, for
    particles a paragraph. More than 40 rows are shortened to those with the largest R-hat; the numbers stay complete.

    Attributes:
        rows: names of the parameters: ``mu``, ``theta[0]``, …
        columns: names of the statistics: for chains ``mean``, ``sd``, ``5%``, ``95%``, ``mcse_mean``, ``mcse_sd``,
            ``ess_bulk``, ``ess_tail`` and ``r_hat``, for particles the first four, weights included.

    Example:
        >>> from boltzmix.compose import HMC, MCMC, Gaussian, sample
        >>> p = Gaussian(torch.zeros(1), 1.0).on("mu") * Gaussian(torch.ones(2), 4.0).on("theta")
        >>> table = sample(p, chains=4, sampler=MCMC(HMC(num_leapfrog=5), warmup=200, draws=500), seed=0).summary()
        >>> table.rows
        ('mu[0]', 'theta[0]', 'theta[1]')
        >>> abs(table["theta[0]", "mean"] - 1) < 5 * table["theta[0]", "mcse_mean"]
        True
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    _values: dict[str, list[float]]
    _notes: str

    def __new__(cls, rows: Sequence[str], values: Mapping[str, Sequence[float]], notes: str, table: bool) -> "Summary":
        """Numbers by column, and what is said below the table, or instead of it."""
        columns = {name: list(column) for name, column in values.items()}
        made = super().__new__(cls, (_table(rows, columns) + "\n\n" if table else "") + notes)
        made.rows, made.columns = tuple(rows), tuple(columns)
        made._values, made._notes = columns, notes
        return made

    def __getitem__(self, key: Any) -> Any:
        """``table["mu", "mean"]`` is a number, ``table["mu"]`` a row and ``table["mean"]`` a column, as dictionaries.

        Numbers and slices index the text, as those of any string do.

        Raises:
            KeyError: no such row or column.
        """
        if isinstance(key, tuple):
            row, column = key
            if column not in self.columns or row not in self.rows:
                raise KeyError(self._missing(row if row not in self.rows else column))
            return self._values[column][self.rows.index(row)]
        if isinstance(key, str):
            if key in self.rows:
                place = self.rows.index(key)
                return {name: column[place] for name, column in self._values.items()}
            if key in self.columns:
                return dict(zip(self.rows, self._values[key], strict=True))
            raise KeyError(self._missing(key))
        return super().__getitem__(key)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """All numbers: ``{row: {column: number}}``."""
        return {row: self[row] for row in self.rows}

    def _missing(self, key: Any) -> str:
        rows = ", ".join(self.rows[:8]) + (", …" if len(self.rows) > 8 else "")
        return f"no row or column {key!r}: rows are {rows}; columns {', '.join(self.columns)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies keep the numbers."""
        return (Summary, (self.rows, self._values, self._notes, not str(self).startswith(self._notes)))

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        shown, hidden = _shown(self.rows, self._values)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.columns))
        body = "".join(
            f"<tr><th>{html.escape(self.rows[k])}</th>"
            + "".join(f"<td>{_number(self._values, name, k)}</td>" for name in self.columns)
            + "</tr>"
            for k in shown
        )
        notes = "\n".join(([_hidden(hidden, shown, self._values)] if hidden else []) + [self._notes])
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><pre>{html.escape(notes)}</pre>"


def summarise(draw: "Draw") -> Summary:
    """The summary of a draw."""
    if not draw.chains:
        values = _weighted(draw.x, draw.log_weights)
        return Summary(labels(draw.x, lead=1), values, _paragraph(draw), table=False)
    parts = [{name: v.flatten() for name, v in statistics(t).items()} for t in variables_of(draw.x).values()]
    values = {name: torch.cat([part[name] for part in parts]).tolist() for name in _OF_CHAINS}
    return Summary(labels(draw.x), values, _notes(draw), table=True)


def _weighted(x: State, log_weights: Tensor) -> dict[str, list[float]]:
    """Mean, standard deviation and quantiles of weighted particles."""
    found: dict[str, list[float]] = {name: [] for name in _OF_PARTICLES}
    for t in variables_of(x).values():
        rows = t.detach().reshape(len(t), t[:1].numel()).double()
        w = log_weights.to(rows).softmax(0)[:, None]
        mean = (w * rows).sum(0)
        found["mean"] += mean.tolist()
        found["sd"] += (w * (rows - mean).square()).sum(0).sqrt().tolist()
        ordered, order = rows.sort(0)
        reached = w[:, 0][order].cumsum(0)
        for name, p in (("5%", 0.05), ("95%", 0.95)):
            place = (reached < p).sum(0).clamp(max=len(rows) - 1)
            found[name] += ordered.gather(0, place[None])[0].tolist()
    return found


def _paragraph(draw: "Draw") -> str:
    i = draw.info
    z = "unknown (a member is not calibrated)"
    if draw.log_z is not None:
        z = f"{draw.log_z:.4f} ± {draw.log_z_se or 0:.4f}"
    return (
        f"{len(draw)} draws by {i.sampler}: {i.reason}\n"
        f"log Z {z}; {i.evaluations:.1f} evaluations each; acceptance {i.acceptance:.2f}; "
        f"effective size {i.ess:.0f}; {i.divergences} divergences; {i.seconds:.1f} s"
    )


def _notes(draw: "Draw") -> str:
    """What is said below the table of chains."""
    i, extra = draw.info, draw.info.extra
    draws = next(iter(variables_of(draw.x).values())).shape[1]
    by = f"{i.sampler}({extra['kernel']})" if "kernel" in extra else i.sampler
    thin = f", one of {extra['thin']} transitions" if extra.get("thin", 1) > 1 else ""
    chains = f"{len(draw)} chain{'s' if len(draw) != 1 else ''}"
    warmup = f"after {extra['warmup']} of warm-up" if extra.get("warmup") else "without warm-up"
    lines = [f"{chains} by {by}, {draws} draws each{thin}, {warmup}"]
    bfmi = [v for v in extra.get("bfmi", []) if not math.isnan(v)]
    step = "" if math.isnan(i.step_size) else f"; step size {i.step_size:.3g}"
    energy = f"; smallest E-BFMI {min(bfmi):.2f}" if bfmi else ""
    lines.append(
        f"{i.evaluations:.0f} evaluations for each chain; acceptance {i.acceptance:.2f}{step}; "
        f"{i.divergences} divergences{energy}; {i.seconds:.1f} s"
    )
    said = [f"warning: {w['message']}: {w['remedy']}" for w in extra.get("warnings", [])]
    return "\n".join(lines + [textwrap.fill(line, 110, subsequent_indent="  ") for line in said])


# ------------------------------------------------------------------------ text


def _shown(rows: Sequence[str], values: Mapping[str, Sequence[float]]) -> tuple[list[int], int]:
    """Places of the rows to show, and how many are not: of more than 40, those with the largest R-hat, NaN first."""
    if len(rows) <= _MOST:
        return list(range(len(rows))), 0
    key = [math.inf if math.isnan(v) else v for v in values["r_hat"]]
    order = sorted(range(len(rows)), key=lambda k: -key[k])
    return order[:_SHORT], len(rows) - _SHORT


def _hidden(count: int, shown: Sequence[int], values: Mapping[str, Sequence[float]]) -> str:
    last = values["r_hat"][shown[-1]]
    below = "" if math.isnan(last) else f", R-hat at most {last:.3f}"
    return f"… and {count} more{below} (the largest R-hat first; all numbers are in to_dict())"


def _number(values: Mapping[str, Sequence[float]], column: str, k: int) -> str:
    """Sizes as integers, R-hat with three decimals, errors with two digits, the rest to the fourth digit of sd."""
    value = values[column][k]
    if math.isnan(value):
        return "nan"
    if column.startswith("ess") and math.isfinite(value):
        return f"{value:.0f}"
    if column == "r_hat":
        return f"{value:.3f}"
    scale, digits = (value, 2) if column.startswith("mcse") else (values["sd"][k], 4)
    if not math.isfinite(value) or not 0 < abs(scale) < math.inf:
        return f"{value:.4g}"
    decimals = digits - 1 - math.floor(math.log10(abs(scale)))
    if decimals > 8 or abs(value) >= 1e8:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, decimals)}f}"


def _table(rows: Sequence[str], values: Mapping[str, Sequence[float]]) -> str:
    shown, hidden = _shown(rows, values)
    cells = [["", *values]] + [[rows[k], *(_number(values, c, k) for c in values)] for k in shown]
    widths = [max(len(line[j]) for line in cells) for j in range(len(cells[0]))]
    lines = [
        "  ".join(c.ljust(w) if j == 0 else c.rjust(w) for j, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join([line.rstrip() for line in lines] + ([_hidden(hidden, shown, values)] if hidden else []))
