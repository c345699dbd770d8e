"""Training: AdamW or Muon, averaged weights, mixed precision, several processes, exact resume.

``fit`` trains whatever has ``loss(batch, generator) -> scalar``. A step is a number of micro-batches whose mean
gradient is used, and all randomness of a micro-batch is a function of the run's seed and its number: the order of the
data, the draws of a stream, the noise of the loss, dropout. So a run that was killed and resumed is the run that was
not, bit for bit, and two processes with one micro-batch each take the steps of one process with two.

The parts live in ``models/training/``.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.models.training.batches import Data, IteratedBatches, batches_of
from boltzmix.models.training.checkpoint import Checkpoint
from boltzmix.models.training.distributed import Processes, processes
from boltzmix.models.training.muon import Muon
from boltzmix.models.training.plan import Plan, check_intervals, check_numbers
from boltzmix.models.training.precision import Precision
from boltzmix.models.training.records import Record, Records
from boltzmix.models.training.seeding import derive, global_state_kept
from boltzmix.models.training.sheets import Sheets, SheetSampler

__all__ = ["Data", "FitResult", "Trainable", "fit"]
PathLike = str | os.PathLike[str]
_OPTIMIZERS = ("adamw", "muon")


class Trainable(Protocol):
    """A module with a loss: what :func:`fit` trains.

    Two methods more are called where they exist: ``prepare(batch, generator)`` once before the first step of a fresh
    run, for initialisation that looks at data, and ``metrics() -> dict[str, float]`` at every logging interval.
    """

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
    history: list[Record] = field(repr=False)
    seconds: float
    seed: int


def fit(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    batch_size: int | None = None,
    lr: float = 1e-3,
    warmup: int | None = None,
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "muon"] = "adamw",
    ema: float = 0.999,
    clip: float | None = 1.0,
    precision: Literal["float32", "bf16", "fp16"] = "float32",
    accumulate: int | None = None,
    transform: Callable[[Any, torch.Generator], Any] | None = None,
    seed: int = 0,
    checkpoint: PathLike | None = None,
    checkpoint_every: int = 500,
    metrics: PathLike | None = None,
    log_every: int = 50,
    tensorboard: PathLike | None = None,
    sheets: PathLike | None = None,
    sheet_every: int | None = None,
    sheet_sampler: SheetSampler | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train ``model`` in place and leave the averaged weights in it.

    Started by ``torchrun``, every process calls ``fit`` with the same arguments and computes an equal share of each
    step's micro-batches; the first one writes files and shows the bar. The weights of the first are given to all.
    Buffers that training changes (a replay buffer) are each process's own.

    Args:
        model: a module with ``loss(batch, generator)``: any family of ``boltzmix.models``, or your own.
        data: a tensor, a tuple of tensors of equal length, a stream ``(n, generator) -> batch``, or batches: a
            ``DataLoader``, another iterable, or a function without arguments that returns an iterator. Iterables are
            started again for each epoch; to resume, the current epoch is read again up to the batch that is due.
        steps: optimiser steps.
        batch_size: rows of a micro-batch, default 128; left out for iterables, whose batches have their own size.
        lr: largest learning rate; it rises linearly over ``warmup`` steps and falls as a cosine to zero.
        warmup: default a twentieth of the steps, at most 500.
        weight_decay: decoupled, as AdamW's.
        optimizer: ``"muon"`` moves weight matrices by orthogonalised momentum, with AdamW's learning rates and for the
            rest AdamW (:mod:`boltzmix.models.training.muon`): fewer steps for networks of convolutions or attention.
        ema: decay of the averaged weights, shorter at the start; 0 keeps the last weights.
        clip: largest gradient norm, None for no clipping.
        precision: ``"float32"`` computes in the dtype of the weights; ``"bf16"`` and ``"fp16"`` compute the loss in
            mixed precision, ``"fp16"`` with an adaptive loss scale.
        accumulate: micro-batches in a step, whose mean gradient is used: a multiple of the number of processes.
            Default: one for each process.
        transform: ``(batch, generator) -> batch``, applied to every micro-batch before its loss.
        seed: an int; same seed, same device, same weights.
        checkpoint: file to resume from if it exists, and to write every ``checkpoint_every`` steps and at the end.
        metrics: JSON-lines file: step, loss, lr, gradient norm, seconds, and what ``model.metrics()`` says.
        log_every: steps in a logging interval.
        tensorboard: folder for the same figures as TensorBoard events.
        sheets: folder for pictures of draws from the averaged weights, one every ``sheet_every`` steps (default a tenth
            of the run) and one at the end; they leave the run as it would be without.
        sheet_sampler: a sampler, or a function ``(model, n, generator) -> states``, for the sheets.
        progress: a progress bar; None shows one on terminals only.

    Raises:
        NonFinite: a loss or gradient that is NaN or infinite; the message names the step. The model keeps the weights
            of the step before, the checkpoint is the last one written. Under ``"fp16"`` overflowing steps are left out
            with a warning, and too many in a row are this error.
        ValueError: settings out of range, data that end early, or a checkpoint of another run.
        MissingExtra: ``tensorboard=`` without TensorBoard.

    Example:
        >>> import torch
        >>> from boltzmix.models import Diffusion, data
        >>> from boltzmix.models.nets import MLP
        >>> model = Diffusion(MLP(2, hidden=8), (2,))
        >>> fit(model, data.ring, steps=3, batch_size=16).steps
        3
    """
    check_numbers(steps, batch_size, lr, warmup, weight_decay, ema, clip, seed)
    if optimizer not in _OPTIMIZERS:
        raise ValueError(f"optimizer is one of {', '.join(map(repr, _OPTIMIZERS))}, got {optimizer!r}")
    intervals = {"checkpoint_every": checkpoint_every, "log_every": log_every, "accumulate": accumulate}
    check_intervals({**intervals, "sheet_every": sheet_every})
    if not callable(getattr(model, "loss", None)):
        raise TypeError(f"fit() trains a module with loss(batch, generator), and {type(model).__name__} has none")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the model has no parameters that require gradients")
    device = next(iter(named.values())).device
    with global_state_kept(device), processes(device) as peers:
        accumulate = peers.size if accumulate is None else accumulate
        if accumulate % peers.size:
            raise ValueError(
                f"accumulate={accumulate} micro-batches cannot be shared equally by {peers.size} processes; use a "
                f"multiple of {peers.size}"
            )
        batches = batches_of(data, batch_size, seed, device)
        warmup = min(500, steps // 20) if warmup is None else warmup
        plan = Plan(
            steps, batches.size, float(lr), warmup, float(weight_decay), float(ema), clip, seed, log_every, accumulate,
            precision, batches.describe(), optimizer,
        )  # fmt: skip
        run = _Run(model, named, plan, batches, transform, Precision(precision, device, named.values()), peers)
        if sheets is not None:
            run.sheets = Sheets(sheets, sheet_every or max(1, steps // 10), model, sheet_sampler, seed)
        if checkpoint is not None:
            run.checkpoint = Checkpoint(checkpoint, asdict(plan), model, named, run.averages, run.optimizer, peers)
            run.checkpoint_every = checkpoint_every
        return run.go(metrics, tensorboard, progress)


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        named: dict[str, nn.Parameter],
        plan: Plan,
        batches: Any,
        transform: Callable[[Any, torch.Generator], Any] | None,
        precision: Precision,
        peers: Processes,
    ) -> None:
        self.model: Any = model
        self.plan, self.batches, self.transform = plan, batches, transform
        self.precision, self.peers = precision, peers
        self.parameters = list(named.values())
        self.generator = torch.Generator(device=self.parameters[0].device)
        options: Any = {"lr": plan.lr, "weight_decay": plan.weight_decay, "betas": (0.9, 0.99)}
        muon = plan.optimizer == "muon"
        self.optimizer = Muon(model, named, **options) if muon else torch.optim.AdamW(self.parameters, **options)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.sheets: Sheets | None = None
        self.checkpoint: Checkpoint | None = None
        self.checkpoint_every = 0
        self.history: list[Record] = []
        self.running = [0.0, 0.0, 0.0, 0.0]  # loss, gradient norm, steps taken and steps left out since the last record

    # ------------------------------------------------------------------ a run

    def go(self, metrics: PathLike | None, tensorboard: PathLike | None, progress: bool | None) -> FitResult:
        """All steps, or those after a checkpoint."""
        start, spent = self._begin()
        first = self.peers.first
        records = Records(
            self.history,
            metrics if first else None,
            tensorboard if first else None,
            start,
            self.plan.steps,
            progress if first else False,
        )
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.train()
        began = time.perf_counter() - spent
        with contextlib.closing(records):
            try:
                for step in range(start, self.plan.steps):
                    self._step(step)
                    taken = step + 1
                    last = taken == self.plan.steps
                    if taken % self.plan.log_every == 0 or last:
                        records.add(self._record(taken, time.perf_counter() - began))
                    if self.sheets is not None and first and (taken % self.sheets.every == 0 or last):
                        self.sheets.draw(taken, self.parameters, self.averages)
                    if self.checkpoint is not None and (taken % self.checkpoint_every == 0 or last):
                        records.flush()
                        self._save(taken, time.perf_counter() - began)
                    records.stepped()
                with torch.no_grad():
                    for parameter, average in zip(self.parameters, self.averages, strict=True):
                        parameter.copy_(average)
            finally:
                for module, mode in modes:
                    module.training = mode
                for parameter in self.parameters:
                    parameter.grad = None
        seconds = time.perf_counter() - began
        return FitResult(self.model, self.plan.steps, self.history[-1]["loss"], self.history, seconds, self.plan.seed)

    def _begin(self) -> tuple[int, float]:
        """Steps taken and seconds spent so far: from the checkpoint, or none after preparing the model."""
        if self.checkpoint is not None and self.checkpoint.exists():
            header = self.checkpoint.restore()
            self.history.extend(header["history"])
            self.running = header["running"]
            self.precision.restore(header["scaler"])
            if isinstance(self.batches, IteratedBatches):
                self.batches.at_epoch(header["epoch"])
            return header["step"], header["seconds"]
        self.peers.broadcast(self.model)
        if hasattr(self.model, "prepare"):
            batch = self._batch(0)
            with torch.no_grad():
                self._seed("prepare", 0)
                self.model.prepare(batch, self.generator)
            self.peers.broadcast(self.model)
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                average.copy_(parameter)
        return 0, 0.0

    def _save(self, taken: int, seconds: float) -> None:
        assert self.checkpoint is not None
        self.checkpoint.save(
            {
                "step": taken,
                "seconds": seconds,
                "history": self.history,
                "running": self.running,
                "scaler": self.precision.state(),
                "epoch": self.batches.first if isinstance(self.batches, IteratedBatches) else 0,
            }
        )

    # ----------------------------------------------------------------- a step

    def _seed(self, purpose: str, number: int) -> None:
        """Seed the generator, and torch's global one for dropout layers, by purpose and micro-batch."""
        torch.manual_seed(derive(self.plan.seed, "global", purpose, number))
        self.generator.manual_seed(derive(self.plan.seed, purpose, number))

    def _batch(self, number: int) -> Any:
        self._seed("batch", number)
        batch = self.batches(number, self.generator)
        if self.transform is None:
            return batch
        self._seed("transform", number)
        return self.transform(batch, self.generator)

    def _step(self, step: int) -> None:
        plan = self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(step)
        self.peers.sum_gradients(self.parameters)
        self.precision.unscale(self.optimizer)
        if plan.accumulate > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(plan.accumulate)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, math.inf if plan.clip is None else plan.clip))
        if not math.isfinite(norm) and self.precision.scaler is None:
            raise NonFinite(_advice("gradient norm", norm, step, plan.precision))
        if self.precision.step(self.optimizer, math.isfinite(norm), step):
            self._average(step)
            self.running = [a + b for a, b in zip(self.running, (value, norm, 1.0, 0.0), strict=True)]
        else:
            self.running[3] += 1

    def _gradients(self, step: int) -> float:
        """Sum of the gradients of this process's micro-batches, in place; the mean loss of all processes."""
        total = 0.0
        for micro in self.peers.share(self.plan.accumulate):
            number = step * self.plan.accumulate + micro
            batch = self._batch(number)
            self._seed("loss", number)
            with self.precision.autocast():
                loss = self.model.loss(batch, self.generator)
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                if isinstance(loss, Tensor) and not loss.ndim:
                    what = "one without a gradient"
                raise TypeError(f"loss() of {type(self.model).__name__} returns a scalar with a graph, got {what}")
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            self.precision.scale(loss).backward()
        value = self.peers.sum([total])[0] / self.plan.accumulate
        if not math.isfinite(value):
            raise NonFinite(_advice("loss", value, step, self.plan.precision))
        return value

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.plan.ema, (1 + step) / (10 + step)) if self.plan.ema else 0.0
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self.averages, [p.detach() for p in self.parameters], 1 - decay
        )

    def _record(self, taken: int, seconds: float) -> Record:
        loss, norm, count, skipped = self.running
        self.running = [0.0, 0.0, 0.0, 0.0]
        record = {
            "step": taken,
            "loss": loss / count if count else math.nan,
            "lr": self.plan.rate(taken - 1),
            "gradient_norm": norm / count if count else math.nan,
            "seconds": round(seconds, 3),
        }
        if self.precision.scaler is not None:
            record |= {"skipped": skipped, "loss_scale": self.precision.scaler.get_scale()}
        if hasattr(self.model, "metrics"):
            found = {key: float(value) for key, value in self.model.metrics().items()}
            if twice := sorted(found.keys() & record.keys()):
                raise ValueError(
                    f"metrics() of {type(self.model).__name__} returns {twice}, which fit() reports itself"
                )
            record |= found
        return record


def _advice(what: str, value: float, step: int, precision: str) -> str:
    half = (
        " Half precision ends at 65504: an activation may have overflowed, which precision='bf16' would not."
        if precision == "fp16"
        else ""
    )
    return (
        f"the {what} is {value} at step {step}: nothing was skipped or repaired. Look for NaN or huge values in the "
        f"data, lower lr, or tighten clip; with checkpoint= the run resumes from its last good step.{half}"
    )
