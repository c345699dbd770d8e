"""Training: AdamW, exponential moving average, exact resume.

``fit`` trains whatever has ``loss(batch, generator) -> scalar``. All randomness is a function of the seed and the step:
batches of stored data come from permutations seeded by (seed, epoch), and the one generator that losses and data
streams draw from is part of the checkpoint. A run that was killed and resumed is the run that was not, bit for bit.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from boltzmix.compose.draw import write_atomically
from boltzmix.compose.errors import NonFinite

Data = Tensor | Sequence[Tensor] | Callable[[int, torch.Generator], "Tensor | Sequence[Tensor]"]


class Trainable(Protocol):
    """A module with a loss: what :func:`fit` trains."""

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean loss of a batch."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` did.

    Attributes:
        model: the model that was handed in, now with averaged weights.
        steps: steps taken, those before a resume included.
        loss: mean loss over the last logging interval.
        history: one record per logging interval, as in the metrics file.
        seconds: time spent, that before a resume included.
        seed: seed of the run.
    """

    model: nn.Module
    steps: int
    loss: float
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    seed: int


@dataclass(frozen=True)
class _Plan:
    """What a run is; a checkpoint of another plan is refused."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    weight_decay: float
    ema: float
    clip: float | None
    seed: int
    log_every: int


def fit(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int | None = None,
    weight_decay: float = 0.0,
    ema: float = 0.999,
    clip: float | None = 1.0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    metrics: str | os.PathLike[str] | None = None,
    log_every: int = 50,
    progress: bool | None = None,
) -> FitResult:
    """Train ``model`` in place and leave the averaged weights in it.

    Args:
        model: a module with ``loss(batch, generator)``: Diffusion, EnergyDiffusion, Classifier, or your own.
        data: a tensor, a tuple of tensors of equal length, or a stream ``(n, generator) -> batch``.
        steps: optimiser steps.
        batch_size: rows per step.
        lr: largest learning rate; it rises linearly over ``warmup`` steps and falls as a cosine to zero.
        warmup: default a twentieth of the steps, at most 500.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, shorter at the start; 0 keeps the last weights.
        clip: largest gradient norm, None for no clipping.
        seed: an int; same seed, same device, same weights.
        checkpoint: file to resume from if it exists, and to write every ``checkpoint_every`` steps and at the end.
        metrics: JSON-lines file: step, loss, lr, gradient norm, seconds.
        progress: a progress bar; None shows one on terminals only.

    Raises:
        NonFinite: a loss or gradient that is NaN or infinite; the message names the step. The model keeps the weights
            of the step before, the checkpoint is the last one written.
        ValueError: a checkpoint of another run.

    Example:
        >>> import torch
        >>> from boltzmix.models import Diffusion, data
        >>> from boltzmix.models.nets import MLP
        >>> model = Diffusion(MLP(2, hidden=8), (2,))
        >>> fit(model, data.ring, steps=3, batch_size=16).steps
        3
    """
    _check_numbers(steps, batch_size, lr, ema, clip, seed, checkpoint_every, log_every)
    warmup = min(500, steps // 20) if warmup is None else warmup
    plan = _Plan(steps, batch_size, float(lr), warmup, float(weight_decay), float(ema), clip, seed, log_every)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the model has no parameters that require gradients")
    parameters = list(named.values())
    device = parameters[0].device
    generator = torch.Generator(device=device).manual_seed(seed)
    batches = _Batches(data, batch_size, seed, generator, device)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    averages = [p.detach().clone() for p in parameters]
    history: list[dict[str, float]] = []
    start, spent = 0, 0.0
    running = [0.0, 0.0, 0.0]  # loss, gradient norm and steps since the last record
    if checkpoint is not None and Path(checkpoint).exists():
        header = _restore(Path(checkpoint), plan, model, named, averages, optimizer, generator)
        start, spent, history, running = (header[k] for k in ("step", "seconds", "history", "running"))
    if metrics is not None:
        _write_text(Path(metrics), "".join(json.dumps(record) + "\n" for record in history))
    was_training = model.training
    model.train()
    began = time.perf_counter() - spent

    def save(step: int) -> None:
        if checkpoint is not None:
            seconds = time.perf_counter() - began
            header = {"step": step, "seconds": seconds, "history": history, "running": running, "plan": asdict(plan)}
            _store(Path(checkpoint), header, model, named, averages, optimizer, generator)

    try:
        with _progress(steps, start, progress) as bar:
            for step in range(start, steps):
                rate = _rate(step, plan)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = model.loss(batches(step), generator)  # pyright: ignore[reportCallIssue]
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise NonFinite(_advice("loss", value, step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip))
                if not math.isfinite(norm):
                    raise NonFinite(_advice("gradient norm", norm, step))
                optimizer.step()
                with torch.no_grad():
                    decay = min(ema, (1 + step) / (10 + step)) if ema else 0.0
                    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                        averages, [p.detach() for p in parameters], 1 - decay
                    )
                running = [running[0] + value, running[1] + norm, running[2] + 1]
                if (step + 1) % log_every == 0 or step + 1 == steps:
                    record = {
                        "step": step + 1,
                        "loss": running[0] / running[2],
                        "lr": rate,
                        "gradient_norm": running[1] / running[2],
                        "seconds": round(time.perf_counter() - began, 3),
                    }
                    history.append(record)
                    running = [0.0, 0.0, 0.0]
                    if metrics is not None:
                        with Path(metrics).open("a", encoding="utf-8") as file:
                            file.write(json.dumps(record) + "\n")
                    bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
                if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                    save(step + 1)
                bar.update(1)
        with torch.no_grad():
            for parameter, average in zip(parameters, averages, strict=True):
                parameter.copy_(average)
                parameter.grad = None
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - began
    return FitResult(model, steps, history[-1]["loss"], history, seconds, seed)


class _Batches:
    """Batches by step: slices of permutations of stored data, or draws from a stream."""

    def __init__(
        self, data: Data, batch_size: int, seed: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self.stream = data if callable(data) and not isinstance(data, Tensor) else None
        self.batch_size, self.seed, self.generator, self.device = batch_size, seed, generator, device
        if self.stream is None:
            tensors = (data,) if isinstance(data, Tensor) else tuple(data)  # pyright: ignore[reportArgumentType]
            if not tensors or not all(isinstance(t, Tensor) and t.ndim > 0 for t in tensors):
                raise TypeError("data is a tensor, a tuple of tensors, or a function (n, generator) -> batch")
            if len({len(t) for t in tensors}) > 1 or len(tensors[0]) == 0:
                raise ValueError(f"the tensors of a data set share a length > 0, got {[len(t) for t in tensors]}")
            for t in tensors:
                if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                    raise NonFinite("the data hold NaN or infinite values; remove or repair those rows")
            self.single = isinstance(data, Tensor)
            self.tensors = tuple(t.to(device) for t in tensors)
            self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Any:
        if self.stream is not None:
            return self.stream(self.batch_size, self.generator)
        n = len(self.tensors[0])
        wanted, at = [], step * self.batch_size
        while sum(map(len, wanted)) < self.batch_size:
            epoch, position = divmod(at, n)
            if epoch != self.epoch:
                # One seed per (run, epoch): the order of a resumed run needs no history.
                source = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                self.order, self.epoch = torch.randperm(n, generator=source), epoch
            part = self.order[position : position + self.batch_size - sum(map(len, wanted))]
            wanted.append(part)
            at += len(part)
        index = torch.cat(wanted).to(self.device)
        rows = tuple(t[index] for t in self.tensors)
        return rows[0] if self.single else rows


def _check_numbers(
    steps: int, batch_size: int, lr: float, ema: float, clip: float | None, seed: int, *intervals: int
) -> None:
    for name, value in {"steps": steps, "batch_size": batch_size}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a positive int, got {value!r}")
    if any(not isinstance(i, int) or i < 1 for i in intervals):
        raise ValueError(f"checkpoint_every and log_every are positive ints, got {intervals}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is a number > 0, got {lr!r}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema is a decay in [0, 1), got {ema!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is a gradient norm > 0 or None, got {clip!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise TypeError(f"seed is an int >= 0, got {seed!r}")


def _advice(what: str, value: float, step: int) -> str:
    return (
        f"the {what} is {value} at step {step}: nothing was skipped or repaired. Look for NaN or huge values in the "
        "data, lower lr, or tighten clip; with checkpoint= the run resumes from its last good step"
    )


def _rate(step: int, plan: _Plan) -> float:
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    return plan.lr * 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup)))


# ---------------------------------------------------------------- checkpoints


def _store(
    path: Path,
    header: dict[str, Any],
    model: nn.Module,
    named: dict[str, nn.Parameter],
    averages: list[Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write one safetensors file, whose header carries what is not a tensor, in one rename."""
    from safetensors.torch import save

    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for (name, parameter), average in zip(named.items(), averages, strict=True):
        tensors[f"ema.{name}"] = average
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    tensors["generator"] = generator.get_state()
    stored = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    write_atomically(path, save(stored, metadata={"boltzmix": json.dumps(header)}))


def _restore(
    path: Path,
    plan: _Plan,
    model: nn.Module,
    named: dict[str, nn.Parameter],
    averages: list[Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = json.loads((file.metadata() or {})["boltzmix"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a checkpoint of fit(): {error}; remove it or name another file") from error
    different = {k: (v, asdict(plan)[k]) for k, v in header["plan"].items() if asdict(plan)[k] != v}
    if different:
        listed = ", ".join(f"{k}: {was} there, {now} here" for k, (was, now) in different.items())
        raise ValueError(f"{path} belongs to a run with other settings ({listed}); use them, or another file")
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}") from error
    for (name, parameter), average in zip(named.items(), averages, strict=True):
        average.copy_(tensors[f"ema.{name}"])
        prefix, suffix = "optimizer.", f".{name}"
        for key, value in tensors.items():
            if key.startswith(prefix) and key.endswith(suffix) and "." not in key[len(prefix) : -len(suffix)]:
                state = key[len(prefix) : -len(suffix)]
                optimizer.state[parameter][state] = value if state == "step" else value.to(parameter.device)
    generator.set_state(tensors["generator"])
    return header


def _write_text(path: Path, content: str) -> None:
    write_atomically(path, content.encode())


class _Silent:
    """A progress bar that shows nothing."""

    def update(self, n: int) -> None:
        """Nothing."""

    def set_postfix(self, **_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def _progress(steps: int, start: int, progress: bool | None) -> Iterator[Any]:
    if progress or (progress is None and sys.stderr.isatty()):
        from tqdm import tqdm

        with tqdm(total=steps, initial=start, desc="fit", unit="step", leave=False) as bar:
            yield bar
    else:
        yield _Silent()
