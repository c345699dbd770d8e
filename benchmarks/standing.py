"""Where a method stands on a target, all seeds together, and what comes first."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from boltzmix.benchmarks.bias import Bias, bias, gradients_to, median_curve
from boltzmix.benchmarks.cell import Cell

#: b² that a sampler is asked to stay below
THRESHOLD = 0.01
#: R-hat above which chains have not converged
RHAT = 1.05
#: what can be said of a sampler, best first: standings are ordered by it, and only then by cost
STATUSES = ("ok", "not converged", "biased", "miscounted", "failed", "skipped")


@dataclass(frozen=True)
class Standing:
    """One method on one target, all seeds together.

    Attributes:
        target, method: which.
        rank: from 1.
        status: one of :data:`STATUSES`.
        to_average, to_largest: gradients after which b_avg² and b_max² stay below the threshold, NaN where they do not.
        spread: the least and the largest of ``to_largest`` of single seeds.
        average, largest: b_avg² and b_max² at the end.
        bias: see :func:`~boltzmix.benchmarks.bias.bias`.
        numbers: medians over seeds.
        counted: whether gradients were counted from inside the target.
        note: errors, and how many seeds had them.
    """

    target: str
    method: str
    rank: int
    status: str
    to_average: float
    to_largest: float
    spread: tuple[float, float]
    average: float
    largest: float
    bias: Bias
    numbers: dict[str, float]
    counted: bool
    note: str = ""


def standing(cells: Sequence[Cell], accuracy: float, threshold: float = THRESHOLD) -> Standing:
    """The runs of one method on one target; ranks come with :func:`ranked`."""
    first = cells[0]
    good = [cell for cell in cells if cell.error is None]
    errors = [cell.error for cell in cells if cell.error is not None]
    nothing = Bias(None, math.nan, math.nan, math.nan)
    if not good:
        nan = math.nan
        return Standing(
            first.target, first.method, 0, _status(errors, nothing, nan), nan, nan, (nan, nan), nan, nan, nothing, {},
            first.counted, _note(errors, len(cells)),
        )  # fmt: skip
    where = [cell.gradients for cell in good]
    grid, average = median_curve(where, [cell.average for cell in good])
    _, largest = median_curve(where, [cell.largest for cell in good])
    single = [_own(cell, threshold) for cell in good]
    reached = [value for value in single if not math.isnan(value)]
    tested = bias(torch.cat([cell.errors for cell in good]), sum(cell.draws for cell in good), accuracy)
    names = dict.fromkeys(name for cell in good for name in cell.numbers)
    numbers = {name: _middle([cell.numbers.get(name, math.nan) for cell in good]) for name in names}
    numbers["divergences"] = sum(cell.numbers["divergences"] for cell in good)
    numbers["log_z_error"] = _middle([abs(cell.numbers["log_z_error"]) for cell in good])
    return Standing(
        first.target, first.method, 0, _status(errors, tested, numbers["rhat"]),
        gradients_to(threshold, grid, average), gradients_to(threshold, grid, largest),
        (min(reached, default=math.nan), max(reached) if len(reached) == len(single) else math.nan),
        float(average[-1]), float(largest[-1]), tested, numbers, all(cell.counted for cell in good),
        _note(errors, len(cells)),
    )  # fmt: skip


def _own(cell: Cell, threshold: float) -> float:
    return gradients_to(threshold, *median_curve([cell.gradients], [cell.largest]))


def _middle(values: Iterable[float]) -> float:
    values = list(values)
    return math.nan if any(math.isnan(v) for v in values) else statistics.median(values)


def _status(errors: Sequence[str], tested: Bias, worst_rhat: float) -> str:
    kinds = {error.partition(":")[0] for error in errors}
    if kinds:
        return "skipped" if "MissingExtra" in kinds else "miscounted" if "Miscounted" in kinds else "failed"
    if tested.biased:
        return "biased"
    return "not converged" if worst_rhat > RHAT else "ok"


def _note(errors: Sequence[str], runs: int) -> str:
    if not errors:
        return ""
    return (f"{len(errors)} of {runs} seeds: " if len(errors) < runs else "") + errors[0]


def ranked(found: Sequence[Standing]) -> list[Standing]:
    """Best first: by status, then by gradients to the threshold, then by the error at the end."""

    def order(s: Standing) -> tuple[float, ...]:
        reached = math.inf if math.isnan(s.to_largest) else s.to_largest
        return STATUSES.index(s.status), reached, math.inf if math.isnan(s.largest) else s.largest

    return [replace(s, rank=k) for k, s in enumerate(sorted(found, key=order), 1)]
