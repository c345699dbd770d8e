"""Records of a posteriordb folder: data, and what long runs of another sampler say of the posterior.

``posteriordb`` (Magnusson, Bürkner and Vehtari, https://github.com/stan-dev/posteriordb, BSD-3) collects posteriors
with reference draws: ten chains of 1,000 draws each, thinned until they are nearly independent. :func:`open_folder`
reads a checkout of it, a folder of one's own in its layout, or one with the same files side by side::

    posteriors/NAME.json            or   info/NAME.json      {"data_name": …, "reference_posterior_name": …}
    data/data/DATA.json.zip         or   data/DATA.json.zip
    reference_posteriors/draws/draws/REFERENCE.json.zip   or   draws/REFERENCE.json.zip

Without a folder, thirteen records come with the package: their data, and means and standard deviations of the reference
draws with Monte Carlo standard errors in place of the draws.
"""

import itertools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.diagnostics import mcse

SHIPPED = Path(__file__).parent / "data" / "posteriordb"
_PLACES = {
    "info": ("posteriors", "info"),
    "data": ("data/data", "data"),
    "draws": ("reference_posteriors/draws/draws", "draws"),
}


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations by parameter, e.g. ``theta[1]``, with their Monte Carlo standard errors.

    Attributes:
        names: P parameters.
        mean: ``(P,)``, float64.
        sd: ``(P,)``.
        mean_se: ``(P,)``, standard errors of the means.
        sd_se: ``(P,)``, of the standard deviations.
    """

    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    mean_se: Tensor
    sd_se: Tensor

    def z_scores(self, other: "Moments") -> tuple[Tensor, Tensor]:
        """Differences of means and of standard deviations in units of both standard errors together.

        Raises:
            ValueError: other parameters.
        """
        if self.names != other.names:
            raise ValueError(f"moments of {list(self.names)} do not compare with those of {list(other.names)}")
        means = (self.mean - other.mean) / (self.mean_se**2 + other.mean_se**2).sqrt()
        return means, (self.sd - other.sd) / (self.sd_se**2 + other.sd_se**2).sqrt()


def moments(draws: Mapping[str, Tensor]) -> Moments:
    """Moments of chains ``(chains, draws)`` by parameter."""
    x = torch.stack([t.double() for t in draws.values()], -1)
    flat = x.flatten(0, 1)
    return Moments(tuple(draws), flat.mean(0), flat.std(0), mcse(x), mcse(x, method="sd"))


def named(values: Mapping[str, Tensor], lead: int = 2) -> dict[str, Tensor]:
    """Entries by the names that Stan gives them, ``theta[1]``, ``L[2,1]``, of tensors with ``lead`` dimensions first.

    Example:
        >>> list(named({"mu": torch.zeros(4, 10), "theta": torch.zeros(4, 10, 2)}))
        ['mu', 'theta[1]', 'theta[2]']
    """
    found = {}
    for name, t in values.items():
        for place in itertools.product(*(range(s) for s in t.shape[lead:])):
            label = f"{name}[{','.join(str(k + 1) for k in place)}]" if place else name
            found[label] = t[(..., *place)]
    return found


def gathered(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`named`: tensors ``(…, *event)`` of entries by their names.

    Example:
        >>> {k: tuple(t.shape) for k, t in gathered({"mu": torch.zeros(4), "L[1,1]": torch.zeros(4)}).items()}
        {'mu': (4,), 'L': (4, 1, 1)}
    """
    places: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for label, t in draws.items():
        name, _, inside = label.partition("[")
        places.setdefault(name, {})[tuple(int(k) - 1 for k in inside[:-1].split(",")) if inside else ()] = t
    found = {}
    for name, entries in places.items():
        shape = [1 + max(sizes) for sizes in zip(*entries, strict=True)]
        rows = [entries[place] for place in itertools.product(*(range(s) for s in shape))]
        found[name] = torch.stack(rows, -1).reshape(*rows[0].shape, *shape)
    return found


@dataclass(frozen=True)
class Record:
    """One posterior: its name, the data, and the moments of its reference draws."""

    name: str
    data: dict[str, Any]
    reference: Moments


class Folder:
    """A folder in posteriordb's layout; see the module's page."""

    def __init__(self, path: str | Path) -> None:
        """Find its parts.

        Raises:
            FileNotFoundError: no such folder, or one without information, data and draws.
        """
        root = Path(path)
        root = root / "posterior_database" if (root / "posterior_database").is_dir() else root
        self._parts = {}
        for part, places in _PLACES.items():
            found = next((root / place for place in places if (root / place).is_dir()), None)
            if found is None:
                raise FileNotFoundError(f"{path} is no posteriordb folder: it has none of {', '.join(places)}")
            self._parts[part] = found

    def names(self) -> list[str]:
        """The posteriors with reference draws."""
        found = [file.stem for file in sorted(self._parts["info"].glob("*.json"))]
        return [name for name in found if self._draws_file(name).exists()]

    def record(self, name: str) -> Record:
        """One posterior, with moments of its draws.

        Raises:
            ValueError: no such posterior, or none with reference draws.
        """
        return Record(name, self.data(name), moments(self.draws(name)))

    def data(self, name: str) -> dict[str, Any]:
        """The observed data."""
        return _unzip(self._parts["data"] / f"{self._info(name)['data_name']}.json.zip")

    def draws(self, name: str) -> dict[str, Tensor]:
        """Reference draws ``(chains, draws)`` by parameter, float64."""
        if not self._draws_file(name).exists():
            raise ValueError(f"{name} has no reference draws; those with some are {', '.join(self.names())}")
        chains = _unzip(self._draws_file(name))
        return {key: torch.tensor([chain[key] for chain in chains], dtype=torch.float64) for key in chains[0]}

    def _info(self, name: str) -> dict[str, Any]:
        file = self._parts["info"] / f"{name}.json"
        if not file.exists():
            raise ValueError(f"no posterior is called {name!r}; there are {', '.join(self.names())}")
        return json.loads(file.read_text(encoding="utf-8"))

    def _draws_file(self, name: str) -> Path:
        return self._parts["draws"] / f"{self._info(name).get('reference_posterior_name') or name}.json.zip"


class Shipped(Folder):
    """The records that come with the package: no draws, only their moments."""

    def __init__(self) -> None:
        """Read the moments."""
        self._moments = _shipped_moments()

    def names(self) -> list[str]:
        """The posteriors that are here."""
        return sorted(self._moments)

    def record(self, name: str) -> Record:
        """One posterior."""
        return Record(name, self.data(name), self._of(name))

    def data(self, name: str) -> dict[str, Any]:
        """The observed data."""
        self._of(name)
        return _unzip(SHIPPED / "data" / f"{name.split('-')[0]}.json.zip")

    def draws(self, name: str) -> dict[str, Tensor]:
        """Not here."""
        raise ValueError("reference draws do not come with the package, only their moments; open a posteriordb folder")

    def _of(self, name: str) -> Moments:
        if name not in self._moments:
            raise ValueError(
                f"no posterior called {name!r} comes with the package; there are {', '.join(self.names())}"
            )
        return self._moments[name]


def open_folder(path: str | Path | None = None) -> Folder:
    """A posteriordb folder; None is what comes with the package."""
    return Shipped() if path is None else Folder(path)


def write_moments(folder: Folder, names: list[str], file: Path) -> None:
    """Moments of a folder's reference draws as JSON: how ``references.json`` was made."""
    found = {}
    for name in names:
        own = folder.record(name).reference
        values = {"mean": own.mean, "sd": own.sd, "mean_se": own.mean_se, "sd_se": own.sd_se}
        found[name] = {"names": list(own.names)} | {
            key: [float(f"{float(v):.8g}") for v in value] for key, value in values.items()
        }
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@cache
def _shipped_moments() -> dict[str, Moments]:
    found = json.loads((SHIPPED / "references.json").read_text(encoding="utf-8"))
    keys = ("mean", "sd", "mean_se", "sd_se")
    return {
        name: Moments(tuple(own["names"]), *(torch.tensor(own[key], dtype=torch.float64) for key in keys))
        for name, own in found.items()
    }


def _unzip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
