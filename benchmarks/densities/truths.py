r"""Moments that only long runs can tell, kept as JSON beside the code that made them.

``benchmarks/data/truths/NAME.json`` holds :math:`E\,x_i, E\,x_i^2, E\,x_i^4` with the standard errors of the first
two, and how they were found and checked; :mod:`boltzmix.benchmarks.densities.reference` writes it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from boltzmix.benchmarks.densities.base import moments

FOLDER = Path(__file__).resolve().parents[1] / "data" / "truths"


def stored(name: str) -> dict[str, Any]:
    """What the file of one target says.

    Raises:
        FileNotFoundError: there is none.
    """
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"the reference moments of {name!r} are not at {path}; "
            f"write them with: python -m boltzmix.benchmarks.densities.reference {name}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def reference_moments(name: str, dim: int) -> dict[str, Any]:
    """Moments, how they are known, ``accuracy`` and ``log_z``: arguments of a density. Moments are NaN without a file.

    A target can so be made, and run on, before its reference run.
    """
    try:
        found = stored(name)
    except FileNotFoundError:
        nothing = torch.full((dim,), torch.nan, dtype=torch.float64)
        return {**moments(nothing, nothing, nothing), "accuracy": float("nan"), "truth": "reference"}
    first, second, fourth = (torch.tensor(found[key], dtype=torch.float64) for key in ("mean", "square", "fourth"))
    known = {"accuracy": float(found["accuracy"]), "log_z": found.get("log_z"), "truth": "reference"}
    return {**moments(first, second, fourth), **known}
