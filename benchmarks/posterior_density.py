r"""Posteriors of posteriordb as targets of the comparison of samplers, over unconstrained coordinates.

Samplers that know nothing of supports see :math:`y` with :math:`x = T(y)` and the density
:math:`p(T(y)) \, |\det J_T(y)|`. Reference draws are of constrained parameters; as these can be solved for the
variables of every posterior here, and the variables for y, the moments of y and of y² are known from the same draws.
About 10,000 independent ones tell them to :math:`b^2 \approx 10^{-4}`.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from boltzmix.benchmarks import posteriordb
from boltzmix.benchmarks.densities.base import Density
from boltzmix.benchmarks.posteriors import Posterior, posterior
from boltzmix.compose.diagnostics import mcse
from boltzmix.compose.flat import FlatView

_FILE = posteriordb.SHIPPED / "coordinates.json"
_MOMENTS = ("mean", "variance", "square_mean", "square_variance")


def posterior_density(name: str, folder: str | Path | None = None) -> Density:
    """A posterior as a target with the moments of its reference draws.

    It is computed in float64 whatever the precision of the rows that it is given.

    Args:
        name: of a record, such as ``"garch-garch11"``.
        folder: a posteriordb folder; None takes the records that come with the package.

    Raises:
        ValueError: no such record, or one that has no model.

    Example:
        >>> target = posterior_density("garch-garch11")
        >>> target.dim, target.truth, target.accuracy < 3e-4
        (4, 'reference', True)
    """
    records = posteriordb.open_folder(folder)
    model = posterior(records.record(name))
    view = FlatView(model.term, dtype=torch.float64)

    def log_prob(y: Tensor) -> Tensor:
        return (-view.energy_of(view.term, y.double(), None)).to(y.dtype)

    if folder is None:
        known = _shipped()[name]
    else:
        known = moments(coordinates(model, records.draws(name)))
    mean, variance, square, spread = (torch.tensor(known[key], dtype=torch.float64) for key in _MOMENTS)
    accuracy = float(known["accuracy"])  # pyright: ignore[reportArgumentType]
    return Density(name, view.dim, log_prob, None, mean, variance, square, spread, truth="reference", accuracy=accuracy)


def coordinates(model: Posterior, draws: Mapping[str, Tensor]) -> Tensor:
    """Reference draws ``(chains, draws)`` by parameter as unconstrained coordinates ``(chains, draws, D)``."""
    lead = next(iter(draws.values())).shape
    parameters = posteriordb.gathered(draws)
    state = model.state({name: t.flatten(0, 1) for name, t in parameters.items()})
    return FlatView(model.term, dtype=torch.float64).ravel(state).reshape(*lead, -1)


def moments(y: Tensor) -> dict[str, list[float] | float]:
    """Means and variances of y and y² of chains ``(chains, draws, D)``, and the b² to which they are known."""
    squares = y**2
    flat = torch.stack([y, squares]).flatten(1, 2)
    errors = torch.stack([mcse(y), mcse(squares)]) ** 2 / flat.var(1)
    values = [flat[0].mean(0), flat[0].var(0), flat[1].mean(0), flat[1].var(0)]
    found: dict[str, list[float] | float] = {
        key: [float(f"{float(v):.8g}") for v in value] for key, value in zip(_MOMENTS, values, strict=True)
    }
    return found | {"accuracy": float(f"{float(errors.max()):.3g}")}


def write_coordinates(folder: posteriordb.Folder, names: list[str], file: Path = _FILE) -> None:
    """Moments of a folder's reference draws in coordinates as JSON: how ``coordinates.json`` was made."""
    found = {name: moments(coordinates(posterior(folder.record(name)), folder.draws(name))) for name in names}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@cache
def _shipped() -> dict[str, dict[str, list[float] | float]]:
    return json.loads(_FILE.read_text(encoding="utf-8"))
