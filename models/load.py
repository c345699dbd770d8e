"""Weights that ship with the package: safetensors next to a JSON that says what they are and how they were made.

``NAME.json`` holds the architecture, the command and seed that trained it, training metrics, and the SHA-256 of
``NAME.safetensors``. Nothing is ever unpickled.
"""

import difflib
import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boltzmix.compose.draw import write_atomically

WEIGHTS = Path(__file__).resolve().parent / "weights"
_AGAIN = "install the package again if it came with it, or train again: python -m boltzmix train"


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The untrained model that a specification describes.

    Classes are looked up by name among the public ones of ``boltzmix.models`` and ``boltzmix.models.nets``, nothing
    else is ever imported. Lists become tuples.

    Args:
        spec: ``{"class": …, "arguments": {…}}``; an argument that is such a dictionary is built too, wherever it
            stands. ``{"class": …, "arguments": {…}, "net": {…}}`` is short for an argument called net.

    Raises:
        ValueError: an unknown class or argument; the message lists the known ones.

    Example:
        >>> net = {"class": "MLP", "arguments": {"dim": 2, "hidden": 8}}
        >>> build({"class": "Diffusion", "arguments": {"event_shape": [2]}, "net": net}).event_shape
        (2,)
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class"), str):
        raise ValueError(f'a model is described by {{"class": NAME, "arguments": {{…}}}}, got {spec!r}')
    name, rest = spec["class"], set(spec) - {"class", "arguments", "net"}
    if rest:
        raise ValueError(f"{name}: {sorted(rest)} stands beside class, arguments and net; write it within arguments")
    given = spec.get("arguments", {})
    if not isinstance(given, Mapping):
        raise ValueError(f"the arguments of {name} are a dictionary, got {given!r}")
    if "net" in spec and "net" in given:
        raise ValueError(f"{name} has a net twice: beside its arguments and within them")
    known = classes()
    if name not in known:
        raise ValueError(f"unknown class {name!r}; {nearest(name, known)}")
    arguments = {
        key: _built(value) for key, value in {**given, **({"net": spec["net"]} if "net" in spec else {})}.items()
    }
    parameters = _parameters(known[name])
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"{name} takes no argument {key!r}; {nearest(key, parameters)}")
    missing = [key for key, needed in parameters.items() if needed and key not in arguments]
    if missing:
        raise ValueError(f"{name} also needs {', '.join(missing)}")
    return known[name](**arguments)


def _parameters(kind: type[nn.Module]) -> dict[str, bool]:
    """Arguments of a class and whether each must be given; ``**options`` stands for those of its base."""
    found: dict[str, bool] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                found.setdefault(p.name, p.default is p.empty and base is kind)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "class" in value else {key: _built(v) for key, v in value.items()}
    return tuple(_built(v) for v in value) if isinstance(value, list | tuple) else value


def classes() -> dict[str, type[nn.Module]]:
    """The classes that :func:`build` knows, by name: the public models and networks of this package."""
    from boltzmix import models

    found: dict[str, type[nn.Module]] = {}
    for module in (models.nets, models):
        for name in {*vars(module), *getattr(module, "__all__", ())}:
            value = None if name.startswith("_") else getattr(module, name)
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("boltzmix."):
                found[name] = value
    return dict(sorted(found.items()))


def nearest(name: str, known: Iterable[str]) -> str:
    """``"did you mean …? known: …"``, for error messages."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(names)}"


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
        if not isinstance(found["sha256"], str) or not isinstance(found["model"]["class"], str):
            raise TypeError("sha256 and the model's class are text")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
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
        raise FileNotFoundError(f"{path} is missing beside its JSON; {_AGAIN}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}…, its JSON says {described['sha256'][:12]}…; {_AGAIN}"
        )
    try:
        tensors = parse(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}; {_AGAIN}") from error
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: leave the caller's generator alone
        try:
            model = build(described["model"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path.with_suffix('.json')} describes no model: {error}; {_AGAIN}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the architecture in {name}.json: {error}; {_AGAIN}") from error
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise ValueError(f"{path} holds NaN or infinite weights; {_AGAIN}")
    return model.eval()


def save(
    model: nn.Module, name: str, directory: str | os.PathLike[str], spec: Mapping[str, Any], **described: Any
) -> Path:
    """Write ``NAME.safetensors`` and ``NAME.json`` so that ``load(name, directory)`` returns the model.

    Args:
        spec: what :func:`build` takes.
        described: further entries of the JSON: command, seed, metrics.

    Raises:
        ValueError: a specification that does not build this model, or a conditional view of one.
    """
    from safetensors.torch import save as serialise

    if getattr(model, "_identity", None) is not None:
        raise ValueError(
            f"{model.extra_repr()} is not saved with the weights: save the model that given() was asked of"
        )
    with torch.random.fork_rng(devices=[]):
        built = build(spec).state_dict()
    own = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    wanted = {key: tuple(t.shape) for key, t in built.items()}
    if own != wanted:
        first = next(key for key in (*own, *wanted) if own.get(key) != wanted.get(key))
        raise ValueError(
            f"load({name!r}) could not read these weights again: {first} is {own.get(first, 'missing')} in the model "
            f"and {wanted.get(first, 'missing')} in what the specification builds"
        )
    folder = Path(directory)
    content = serialise({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    entry = {"model": dict(spec), "sha256": hashlib.sha256(content).hexdigest(), **described}
    write_atomically(folder / f"{name}.safetensors", content)
    write_atomically(folder / f"{name}.json", (json.dumps(entry, indent=2, ensure_ascii=False) + "\n").encode())
    return folder / f"{name}.json"


def _folder(directory: str | os.PathLike[str] | None) -> Path:
    return WEIGHTS if directory is None else Path(directory)
