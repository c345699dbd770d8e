"""Training runs described by a file: ``python -m boltzmix train --config FILE``.

A configuration is TOML or JSON with four sections. ``[model]`` is what :func:`boltzmix.models.load.build` takes,
``[data]`` names what to train on, ``[fit]`` holds arguments of :func:`boltzmix.models.fit`, ``[output]`` says where the
weights go. Keys that mean nothing are errors. Examples, one for each family, lie in ``models/configs/``.
"""

import inspect
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import write_atomically
from boltzmix.models import data as sources
from boltzmix.models.fit import FitResult, fit
from boltzmix.models.load import build, nearest, save
from boltzmix.models.training.batches import Data
from boltzmix.models.training.seeding import derive, seeded

EXAMPLES = Path(__file__).resolve().parents[1] / "configs"
Config = dict[str, Any]

_NAMED: dict[str, Callable[..., Any]] = {
    **{name: getattr(sources, name) for name in sources.TOYS},
    "digits": sources.digits,
    "digit_levels": sources.digit_levels,
    "dequantised_digits": sources.dequantised_digits,
    "mnist": sources.mnist,
    "cifar10": sources.cifar10,
}
# what each kind of data may be told beside its transforms and whether labels are used
_DATA_KEYS = {
    **dict.fromkeys(sources.TOYS, ()),
    **dict.fromkeys(("digits", "digit_levels", "dequantised_digits"), ("split", "seed")),
    **dict.fromkeys(("mnist", "cifar10"), ("folder", "split", "levels")),
    "folder": ("size", "channels"),
    "npz": ("keys",),
}
_OURS = ("model", "data", "transform", "sheet_sampler", "progress")  # arguments of fit that a file cannot hold
_KEYS = {
    "model": ("class", "arguments", "net", "loc", "device"),
    "data": ("name", "folder", "npz", "keys", "split", "seed", "size", "channels", "levels", "labels", "transforms"),
    "fit": tuple(key for key in inspect.signature(fit).parameters if key not in _OURS),
    "output": ("dir", "name"),
}
_ROWS_FOR_LOC = 10_000


def examples() -> list[str]:
    """Names of the configurations that ship."""
    return sorted(path.stem for path in EXAMPLES.glob("*.toml"))


def example(name: str) -> str:
    """The text of a configuration that ships.

    Raises:
        ValueError: an unknown name.
    """
    if name not in examples():
        raise ValueError(f"no example configuration is called {name!r}; {nearest(name, examples())}")
    return (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")


def read(path: str | os.PathLike[str]) -> Config:
    """A configuration from a ``.toml`` or ``.json`` file, not yet checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither TOML nor JSON, or damaged; the message says where.
    """
    file = Path(path)
    if not file.is_file():
        hint = f"; write one with: python -m boltzmix train --print-config {file.name} > {file.name}.toml"
        raise FileNotFoundError(f"there is no file {file}{hint if file.name in examples() else ''}")
    if file.suffix not in (".toml", ".json"):
        raise ValueError(f"{file}: a configuration ends in .toml or .json")
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, a configuration has sections {', '.join(_KEYS)}")
    return found


def override(config: Config, settings: Sequence[str]) -> Config:
    """The configuration with ``section.key=value`` settings; values are written as in TOML, plain words are text.

    Raises:
        ValueError: a setting of another form.

    Example:
        >>> override({"fit": {"lr": 1.0}}, ["fit.lr=1e-3", "output.name=mine"])
        {'fit': {'lr': 0.001}, 'output': {'name': 'mine'}}
    """
    changed = json.loads(json.dumps(config))
    for setting in settings:
        path, equals, text = setting.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not parents or not all((*parents, last)):
            raise ValueError(f"--set takes SECTION.KEY=VALUE, e.g. fit.lr=1e-3, got {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting}: {parent} is a value, not a section")
        place[last] = value
    return changed


def check(config: Config) -> None:
    """Refuse keys that mean nothing, and sections that are missing.

    Raises:
        ValueError: names the key, the known ones, and the nearest of them.
    """
    for section, content in config.items():
        if section not in _KEYS:
            raise ValueError(f"unknown section [{section}]; {nearest(section, _KEYS)}")
        if not isinstance(content, Mapping):
            raise ValueError(f"{section} is a section with keys, got {content!r}")
        for key in content:
            if key not in _KEYS[section]:
                raise ValueError(f"unknown key {key!r} in [{section}]; {nearest(key, _KEYS[section])}")
    if missing := [section for section in ("model", "data", "fit") if section not in config]:
        raise ValueError(f"the configuration has no section [{missing[0]}]; it needs [model], [data] and [fit]")
    if "steps" not in config["fit"]:
        raise ValueError("[fit] needs steps")
    _kind(config["data"])


def _kind(section: Mapping[str, Any]) -> str:
    """What a data section names, once its keys agree with that."""
    name = section.get("name")
    if name is not None and name not in _NAMED:
        raise ValueError(f"[data] name = {name!r} is unknown; {nearest(str(name), _NAMED)}")
    kinds = [name] if name is not None else [key for key in ("folder", "npz") if key in section]
    if len(kinds) != 1 or (name is not None and "npz" in section):
        raise ValueError('[data] says one of name = "…", folder = "…" and npz = "…"')
    kind = kinds[0]
    allowed = {"name" if name is not None else kind, "labels", "transforms", *_DATA_KEYS[kind]}
    for key in section:
        if key not in allowed:
            raise ValueError(f"[data] {key} means nothing for {kind}; {nearest(key, sorted(allowed))}")
    return kind


def load_data(section: Mapping[str, Any]) -> tuple[Data, Callable[[Any, torch.Generator], Any] | None]:
    """What a data section describes: data and transform, as ``fit`` takes them."""
    kind = _kind(section)
    given = {key: section[key] for key in _DATA_KEYS[kind] if key in section}
    if kind == "folder":
        size = given.get("size")
        given["size"] = tuple(size) if isinstance(size, list) else size
        data: Any = sources.image_folder(section["folder"], **given)[:2]
    elif kind == "npz":
        data = sources.npz(section["npz"], given.get("keys"), torch.float32)
    elif kind in sources.TOYS:
        data = _NAMED[kind]
    else:
        if kind in ("mnist", "cifar10") and "folder" not in given:
            raise ValueError(f'[data] name = "{kind}" needs folder = "…", where its files are: nothing is downloaded')
        data = _NAMED[kind](**given)
    steps = [_transform(key, value) for key, value in section.get("transforms", {}).items()]
    change = sources.chain(*steps) if steps else None
    if section.get("labels", True):
        return data, change
    if isinstance(data, Tensor) or kind in sources.TOYS:
        raise ValueError(f"[data] labels = false, and {kind} has no labels")
    return data, lambda batch, generator: batch[0] if change is None else change(batch[0], generator)


def _transform(name: str, value: Any) -> Any:
    if name not in sources.TRANSFORMS:
        raise ValueError(f"unknown transform {name!r} in [data.transforms]; {nearest(name, sources.TRANSFORMS)}")
    make = sources.TRANSFORMS[name]
    takes = list(inspect.signature(make).parameters)
    if not takes and value is not True:
        raise ValueError(f"[data.transforms] {name} is switched on by {name} = true, got {value!r}")
    if takes and isinstance(value, bool | str | Mapping):
        raise ValueError(f"[data.transforms] {name} is its {takes[0]}, a number, got {value!r}")
    return make(value) if takes else make()


def run(config: Config, name: str, *, command: str = "", progress: bool | None = None) -> tuple[FitResult, Path, str]:
    """Train what a configuration describes; write ``DIR/NAME.safetensors`` and ``DIR/NAME.json`` for ``load``.

    While it trains ``DIR/NAME.checkpoint`` holds its state: the same call after a kill resumes. Started by
    ``torchrun``, the first process writes.

    Args:
        config: as :func:`read` returns it.
        name: of the weights, where ``[output]`` gives none.
        command: for the JSON.
        progress: as in :func:`boltzmix.models.fit`.

    Returns:
        What ``fit`` returned, the folder and the name.

    Raises:
        ValueError: a key that means nothing, values out of range, or a checkpoint of another configuration.
    """
    check(config)
    output = {"dir": "runs/weights", "name": name, **config.get("output", {})}
    if not isinstance(output["name"], str) or Path(output["name"]).name != output["name"]:
        raise ValueError(f"[output] name is a file name without folders, got {output['name']!r}")
    folder, name = Path(output["dir"]), output["name"]
    settings = {
        "checkpoint": str(folder / f"{name}.checkpoint"),
        "metrics": str(folder / f"{name}.jsonl"),
        **config["fit"],
    }
    model_section = dict(config["model"])
    where, loc = model_section.pop("device", "auto"), model_section.pop("loc", None)
    seed = settings.get("seed", 0)
    data, transform = load_data(config["data"])
    model: Any = seeded(lambda: build(model_section), seed)
    if loc is not None:
        _centre(model, loc, data, transform, seed)
    model.to(_device(where))
    first = int(os.environ.get("RANK", "0")) == 0
    note = _remember(config, Path(settings["checkpoint"]), first)
    result = fit(model, data, **settings, transform=transform, progress=progress)
    model.eval()
    if first:
        metrics = {
            "steps": result.steps,
            "loss": result.loss,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(result.seconds, 1),
        }
        from boltzmix.models.recipes import thin

        save(
            model, name, folder, model_section, command=command, seed=seed, settings=config["fit"],
            data=config["data"], metrics=metrics, history=thin(result.history), torch=torch.__version__,
        )  # fmt: skip
        Path(settings["checkpoint"]).unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    return result, folder, name


def _centre(model: Any, loc: Any, data: Any, transform: Any, seed: int) -> None:
    """Write the mean of the data into a model that is centred on ``core.loc``."""
    if loc != "data":
        raise ValueError(f'[model] loc = "data" measures the centre of the data, got {loc!r}')
    target = getattr(getattr(model, "core", None), "loc", None)
    if not isinstance(target, Tensor):
        raise ValueError(f"[model] loc: {type(model).__name__} has no centre to set; leave it out")
    generator = torch.Generator().manual_seed(derive(seed, "loc"))
    if isinstance(data, Tensor):
        batch: Any = data[:_ROWS_FOR_LOC]
    elif callable(data):
        batch = data(_ROWS_FOR_LOC, generator)
    else:
        batch = tuple(t[:_ROWS_FOR_LOC] for t in data)
    batch = batch if transform is None else transform(batch, generator)
    x = batch if isinstance(batch, Tensor) else batch[0]
    if not x.is_floating_point():
        raise TypeError(
            f"[model] loc measures the centre of real data, got {x.dtype}; convert them by [data.transforms]"
        )
    target.copy_(x.mean(0))


def _device(where: str) -> torch.device:
    if where == "auto":
        where = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(where)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'[model] device is "auto", "cpu", "cuda" or "cuda:1", got {where!r}') from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _remember(config: Config, checkpoint: Path, first: bool) -> Path:
    """A note beside the checkpoint of what it trains: the same weights under another loss are not the same run."""
    note = checkpoint.with_name(f"{checkpoint.name}.json")
    here = json.loads(json.dumps({key: config[key] for key in ("model", "data")}))
    if checkpoint.exists() and note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        if there != here:
            changed = [f"[{key}] was {there.get(key)}" for key in here if there.get(key) != here[key]]
            raise ValueError(
                f"{checkpoint} belongs to another configuration: {'; '.join(changed)}. Use that, or remove the file "
                "to start again"
            )
    elif first:
        write_atomically(note, json.dumps(here).encode())
    return note
