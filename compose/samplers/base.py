"""What samplers are given, and what they share: preparation of the target, progress, checkpoints."""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, RunInfo, write_atomically
from boltzmix.compose.flat import FlatView
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State


@dataclass
class Request:
    """One call of ``sample``: the target and everything that was asked for."""

    term: Term
    n: int
    generator: torch.Generator
    seed: int | None
    reason: str
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    init: Any = None
    progress: bool | None = None
    checkpoint: Path | None = None

    def view(self, discrete: bool = False, unconstrained: bool | None = None) -> FlatView:
        """A flat view of the target with its own counter; ``discrete`` takes discrete variables, too.

        ``unconstrained`` moves variables with a support in unconstrained coordinates, by default for static targets.
        """
        return FlatView(self.term, self.dtype, self.device, self.n, discrete, unconstrained)

    def fingerprint(self, sampler: "Sampler", view: FlatView) -> dict[str, Any]:
        """What identifies a run for its checkpoint: sampler, size, seed, and the target with its numbers."""
        digest = hashlib.sha256(self.term.name().encode())
        scale = getattr(self.term, "log_scale", getattr(self.term, "log_weights", None))
        digest.update(repr(scale).encode())
        for name, tensor in self.term.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return {
            "sampler": repr(sampler),
            "n": self.n,
            "seed": self.seed,
            "dim": view.dim,
            "dtype": str(view.dtype),
            "target": digest.hexdigest()[:16],
        }


@dataclass(frozen=True)
class Sampler:
    """Base of all samplers: frozen hyper-parameters and one method.

    Attributes:
        takes_states: whether ``init`` may be states to go on from; samplers that weigh their draws need the density of
            what they start from, a term.
    """

    takes_states: ClassVar[bool] = False

    def run(self, request: Request) -> Draw:
        """Draw what was asked for."""
        raise NotImplementedError


@contextlib.contextmanager
def frozen(term: Term) -> Iterator[None]:
    """Evaluation mode and parameters without gradients, both restored afterwards."""
    modes = [(m, m.training) for m in term.modules()]
    gradients = [(p, p.requires_grad) for p in term.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


class Progress:
    """A bar over a fraction of the work; silent unless stderr is a terminal or ``show`` is True."""

    def __init__(self, title: str, show: bool | None) -> None:
        """Open the bar where it is wanted."""
        self._bar: Any = None
        if sys.stderr.isatty() if show is None else show:
            from tqdm import tqdm

            self._bar = tqdm(total=1000, desc=title, bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")

    def __call__(self, fraction: float, note: str = "") -> None:
        """Move to a fraction of the whole."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(round(1000 * fraction) - self._bar.n)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()


class Checkpoint:
    """Tensors and JSON in one safetensors file, written atomically at most every few seconds."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], every: float = 5.0) -> None:
        """``fingerprint`` identifies the run: a file of another run is refused."""
        self.path, self.fingerprint, self.every = Path(path), fingerprint, every
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved, or None when there is nothing yet.

        Raises:
            ValueError: the file belongs to another run, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                meta = json.loads((file.metadata() or {})["run"])
                found, state = meta["fingerprint"], meta["state"]
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged: {error}; delete it to start again") from error
        wanted = json.loads(json.dumps(self.fingerprint))
        if found != wanted:
            differing = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v}
            raise ValueError(
                f"checkpoint {self.path} belongs to another run, which differs in {differing} (there, here); "
                "give another file, or delete it"
            )
        return tensors, state

    def save(self, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]], force: bool = False) -> None:
        """Write what ``make`` returns when the time has come."""
        if not force and time.monotonic() - self._last < self.every:
            return
        from safetensors.torch import save

        tensors, state = make()
        header = {"run": json.dumps({"fingerprint": self.fingerprint, "state": state})}
        write_atomically(self.path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, header))
        self._last = time.monotonic()


def frames_of(view: FlatView, frames: list[Tensor]) -> list[State]:
    """Recorded flat states in the shape of the target."""
    return [view.unravel(f) for f in frames]


def new_info(sampler: Sampler, request: Request) -> RunInfo:
    """An empty report for a sampler."""
    return RunInfo(sampler=type(sampler).__name__, reason=request.reason, seed=request.seed)


def is_number(value: object) -> bool:
    """Whether a setting is an int or a float; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
