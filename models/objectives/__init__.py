"""What trains an energy model in place of its likelihood, and what repairs a diffusion's energies across levels.

Each is a class that :class:`~boltzmix.models.EnergyModel` takes as ``objective=``, and a plain function with its
formula.
"""

from collections.abc import Mapping
from typing import Any

from boltzmix.models.objectives.base import Objective
from boltzmix.models.objectives.contrastive import ContrastiveDivergence, contrastive_divergence
from boltzmix.models.objectives.levels import LevelCalibration, cross_level_loss
from boltzmix.models.objectives.noise_contrastive import NoiseContrastive, noise_contrastive
from boltzmix.models.objectives.score_matching import (
    ScoreMatching,
    denoising_score_matching,
    explicit_score_matching,
    sliced_score_matching,
)

_CLASSES = {c.__name__: c for c in (ContrastiveDivergence, NoiseContrastive, ScoreMatching)}
_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "pcd": ("ContrastiveDivergence", {}),
    "cd": ("ContrastiveDivergence", {"persistent": False}),
    "nce": ("NoiseContrastive", {}),
    "score": ("ScoreMatching", {}),
    "denoising": ("ScoreMatching", {"kind": "denoising"}),
}


def make_objective(what: "str | Mapping[str, Any] | Objective | None") -> Objective | None:
    """The objective that a name or ``{"class": …, "arguments": {…}}`` describes.

    Raises:
        ValueError: an unknown name.
        TypeError: something else.
    """
    if what is None or isinstance(what, Objective):
        return what
    if isinstance(what, str):
        if what not in _NAMES:
            raise ValueError(f"objective is one of {sorted(_NAMES)}, an Objective or None, got {what!r}")
        name, arguments = _NAMES[what]
        return _CLASSES[name](**arguments)
    if isinstance(what, Mapping):
        if what.get("class") not in _CLASSES:
            raise ValueError(f"an objective's class is one of {sorted(_CLASSES)}, got {what.get('class')!r}")
        return _CLASSES[what["class"]](**what.get("arguments", {}))
    raise TypeError(f"objective is a name, a description, an Objective or None, got {type(what).__name__}")


__all__ = [
    "ContrastiveDivergence",
    "LevelCalibration",
    "NoiseContrastive",
    "Objective",
    "ScoreMatching",
    "contrastive_divergence",
    "cross_level_loss",
    "denoising_score_matching",
    "explicit_score_matching",
    "make_objective",
    "noise_contrastive",
    "sliced_score_matching",
]
