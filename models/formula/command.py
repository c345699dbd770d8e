"""What ``python -m boltzmix sample`` does: list, explain, or draw and write files, each whole or not at all."""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from boltzmix.compose.draw import Draw, write_atomically
from boltzmix.compose.pictures import plot_states
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State, Variable, map_state
from boltzmix.models.formula.build import Formula, formula
from boltzmix.models.formula.describe import conditions, normal_form, sentence
from boltzmix.models.formula.errors import FormulaError
from boltzmix.models.formula.explain import briefly, explain
from boltzmix.models.formula.grammar import FUNCTIONS
from boltzmix.models.formula.library import Library
from boltzmix.models.formula.samplers import choices, named_sampler, short
from boltzmix.models.versions import versions

_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
_MOST_IMAGES = 400


def run(arguments: argparse.Namespace) -> int:
    """The command; its exit code.

    Raises:
        FormulaError, ValueError, TypeError, OSError: mistakes of the user, which the caller shows.
    """
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    if arguments.device is not None:
        _check_device(arguments.device)
    library = Library(_models(arguments.model), device=arguments.device, dtype=dtype)
    if arguments.list:
        print(listing(library))
        return 0
    found = formula(arguments.formula, library)
    options = {"device": arguments.device, "dtype": dtype}
    n = arguments.n or _how_many(found.term)
    sampler, reason = named_sampler(arguments.sampler, found.term, arguments.steps, found.operands)
    if arguments.explain:
        said = explain(found, sampler, reason, n, arguments.seed, **options)
        print(said)
        if arguments.json:
            _write_json(arguments.json, said.data | {"versions": versions()})
        return 0
    sampler = _recording(sampler, found.term, arguments)
    _check_files(arguments)
    print(briefly(found, sampler, reason, n), flush=True)
    with _warnings() as warned:
        try:
            draw = sample(
                found.term, n, sampler=sampler, seed=arguments.seed, progress=arguments.progress,
                checkpoint=arguments.checkpoint, **options,
            )  # fmt: skip
        except KeyboardInterrupt:
            if arguments.checkpoint and Path(arguments.checkpoint).exists():
                print(f"boltzmix sample: the same command goes on from {arguments.checkpoint}", file=sys.stderr)
            raise
        draw.info.reason = draw.info.reason.replace("as asked", reason, 1)
        print(draw.summary())
        written = _write(draw, found, sampler, arguments, warned)
    for path in written:
        print(f"written to {path}")
    if arguments.checkpoint:
        Path(arguments.checkpoint).unlink(missing_ok=True)  # the run is complete
    return 0


# --------------------------------------------------------------------- what there is


def listing(library: Library) -> str:
    """Models with their shapes, conditions and ranges, functions, and samplers with their settings."""
    lines = ["models:"]
    names = library.names()
    width = max(map(len, names)) + 4
    for name in names:
        term: Any = library.load(name)
        shown = name if name.isidentifier() else f"'{name}'"
        lines.append(f"  {shown:{width}}{sentence(term)}")
        lines += [f"  {'':{width}}  {key} = {what}" for key, what in conditions(term).items()]
    lines += ["", "functions:"]
    lines += [
        f"  {name}(p, q, {takes}={'[0.3, 0.7]' if takes == 'weights' else 2})" for name, takes in FUNCTIONS.items()
    ]
    lines += ["", "samplers:", f"  {'auto':16}what fits the formula (the default)"]
    for name, choice in choices().items():
        settings = ", ".join(f"{key}={_plain(default)}" for key, (_, default) in choice.fields().items())
        lines.append(f"  {name:16}{choice.says}")
        lines += [f"  {'':16}  {settings}"] if settings else []
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_plain, value))}]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _models(given: list[str]) -> dict[str, str | Path | Term]:
    found: dict[str, str | Path | Term] = {}
    for pair in given:
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise ValueError(f"--model is NAME=PATH, e.g. --model mine=runs/weights/mine.safetensors; got {pair!r}")
        if name in found:
            raise ValueError(f"--model {name}= is given twice")
        found[name] = Path(path)
    return found


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _how_many(term: Term) -> int:
    """Draws where -n does not say: as many as there are conditions, 16 pictures, or 1000 of anything else."""
    for module in term.modules():
        rows = getattr(module, "labels", None)
        if getattr(module, "per_row", False) is True and isinstance(rows, torch.Tensor):
            return len(rows)
    return 16 if isinstance(term.variables, Variable) and len(term.variables.shape) > 1 else 1000


# ------------------------------------------------------------------------- files


def _check_files(arguments: argparse.Namespace) -> None:
    """Complain of paths before the run rather than after it."""
    for option, suffixes in (("out", _PICTURES), ("gif", (".gif",)), ("json", (".json",)), ("save", (".safetensors",))):
        path = getattr(arguments, option)
        if path is None:
            continue
        if Path(path).suffix.lower() not in suffixes:
            shown = "-o" if option == "out" else f"--{option}"
            raise ValueError(f"{shown} writes {' or '.join(suffixes)}, got {path}")
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a folder, expected a file to write")


def _recording(sampler: Sampler, term: Term, arguments: argparse.Namespace) -> Sampler:
    """The sampler with what --gif and --compile ask of it."""
    own = {f.name for f in dataclasses.fields(sampler)}
    changes: dict[str, Any] = {}
    if arguments.gif is not None:
        if "record" not in own:
            raise ValueError(f"--gif shows the way of a sampler that records it, and {short(sampler)} does not")
        shape = term.variables.shape if isinstance(term.variables, Variable) else ()
        if shape != (2,) and len(shape) not in (2, 3):
            raise ValueError(f"--gif shows points in the plane and images, and one draw is {shape}")
        changes["record"] = True
    if arguments.compile is not None:
        if "compile" in own:
            changes["compile"] = arguments.compile
        elif arguments.compile:
            raise ValueError(f"--compile is for samplers that compile, and {short(sampler)} does not")
    return dataclasses.replace(sampler, **changes) if changes else sampler


def _write(
    draw: Draw, found: Formula, sampler: Sampler, arguments: argparse.Namespace, warned: list[str]
) -> list[str | Path]:
    """All files; the diagnostics come last, so that they are there only where the others are."""
    written: list[str | Path] = []
    if arguments.save is not None:
        written.append(draw.save(arguments.save))
    if arguments.out is not None or arguments.gif is not None:
        shown, limits = pictured(draw, found.term)
        if arguments.out is not None:
            plot_states(shown.x, arguments.out, most=_MOST_IMAGES, limits=limits)
            written.append(arguments.out)
        if arguments.gif is not None:
            written.append(shown.animate(arguments.gif, limits=limits))
    if arguments.json is not None:
        report = {
            "formula": found.text,
            "normal_form": normal_form(found),
            "models": {name: str(path) for name, path in _models(arguments.model).items()},
            "sampler": short(sampler),
            "n": len(draw),
            "seed": arguments.seed,
            "dtype": arguments.dtype,
            "device": arguments.device,
            "log_z": draw.log_z,
            "log_z_se": draw.log_z_se,
            "info": dataclasses.asdict(draw.info),
            "summary": {"text": str(draw.summary()), "statistics": draw.summary().to_dict()},
            "warnings": list(warned),
            "files": [str(path) for path in written],
            "versions": versions(),
        }
        _write_json(arguments.json, report)
        written.append(arguments.json)
    return written


def pictured(draw: Draw, term: Term) -> tuple[Draw, tuple[float, float] | None]:
    """The draw as images where its models are pipelines of latents, and the range of its values."""
    decoder: Any = next((m for m in term.modules() if hasattr(m, "decode") and hasattr(m, "parts")), None)
    if decoder is None:
        return draw, None

    def decoded(x: State) -> State:
        return map_state(lambda t: decoder.decode(t), x)

    step = max(1, len(draw.frames) // 30)  # an autoencoder is not run on frames that no GIF shows
    return dataclasses.replace(draw, x=decoded(draw.x), frames=[decoded(f) for f in draw.frames[::step]]), (0.0, 1.0)


def _write_json(path: str, report: dict[str, Any]) -> None:
    text = json.dumps(_finite(report), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_atomically(path, (text + "\n").encode())


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Warnings as lines on stderr, kept for the diagnostics."""
    found: list[str] = []

    def show(message: Any, *rest: Any, **options: Any) -> None:
        said = " ".join(str(message).split())
        if said not in found:
            found.append(said)
            print(f"boltzmix sample: warning: {said}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield found


def pointed(error: FormulaError) -> str:
    """A mistake in a formula, as the shell shows it."""
    return f"boltzmix sample: {error}"
