"""Weights that ship with the package: safetensors next to a JSON that says what they are and how they were made.

``NAME.json`` holds the architecture, the command and seed that trained it, training metrics, and the SHA-256 of
``NAME.safetensors``. Nothing is ever unpickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boltzmix.compose.draw import write_atomically
from boltzmix.models.classifier import Classifier
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.nets import MLP, UNet

WEIGHTS = Path(__file__).resolve().parent / "weights"
_NETS = {"MLP": MLP, "UNet": UNet}
_MODELS = {"Diffusion": Diffusion, "EnergyDiffusion": EnergyDiffusion, "Classifier": Classifier}


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The untrained model that a specification describes.

    Args:
        spec: ``{"class": …, "arguments": {…}, "net": {"class": …, "arguments": {…}}}``; a classifier has no ``net``.
    """
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["arguments"].items()}
    if spec["class"] not in _MODELS:
        raise ValueError(f"unknown model class {spec['class']!r}; known: {sorted(_MODELS)}")
    kind = _MODELS[spec["class"]]
    if "net" not in spec:
        return kind(**arguments)
    if spec["net"]["class"] not in _NETS:
        raise ValueError(f"unknown network class {spec['net']['class']!r}; known: {sorted(_NETS)}")
    return kind(_NETS[spec["net"]["class"]](**spec["net"]["arguments"]), **arguments)


def names(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """Names that :func:`load` takes.

    Example:
        >>> "ring" in names()
        True
    """
    return sorted(path.stem for path in _folder(directory).glob("*.json"))


def card(name: str, directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What ``NAME.json`` says: architecture, training command, seed, metrics."""
    folder, known = _folder(directory), names(directory)
    if name not in known:
        raise ValueError(f"no weights are called {name!r}; there are {', '.join(known) or 'none'} in {folder}")
    path = folder / f"{name}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["sha256"], found["model"]["class"], found["model"]["arguments"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); install the package again or train with recipes.train"
        ) from error
    return found


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Any:
    """A trained model, in eval mode: a term, or the classifier that judges digits.

    Args:
        name: one of :func:`names`.
        directory: where to look; None for the weights that ship with the package.

    Raises:
        ValueError: an unknown name, a damaged file, or weights that do not fit the architecture.
        FileNotFoundError: the JSON is there and the weights are not.

    Example:
        >>> circle, bar = load("circle"), load("bar")
        >>> circle.event_shape
        (2,)
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    described = card(name, directory)
    path = _folder(directory) / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing beside its JSON; install the package again")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}…, its JSON says {described['sha256'][:12]}…; "
            "install the package again or train with recipes.train"
        )
    try:
        tensors = parse(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: leave the caller's generator alone
        model = build(described["model"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the architecture in {name}.json: {error}") from error
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise ValueError(f"{path} holds NaN or infinite weights")
    return model.eval()


def save(
    model: nn.Module, name: str, directory: str | os.PathLike[str], spec: Mapping[str, Any], **described: Any
) -> Path:
    """Write ``NAME.safetensors`` and ``NAME.json`` so that ``load(name, directory)`` returns the model.

    Args:
        spec: what :func:`build` takes.
        described: further entries of the JSON: command, seed, metrics.
    """
    from safetensors.torch import save as serialise

    folder = Path(directory)
    content = serialise({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    entry = {"model": dict(spec), "sha256": hashlib.sha256(content).hexdigest(), **described}
    write_atomically(folder / f"{name}.safetensors", content)
    write_atomically(folder / f"{name}.json", (json.dumps(entry, indent=2, ensure_ascii=False) + "\n").encode())
    return folder / f"{name}.json"


def _folder(directory: str | os.PathLike[str] | None) -> Path:
    return WEIGHTS if directory is None else Path(directory)
