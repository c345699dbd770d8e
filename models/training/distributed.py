"""Several processes, started by ``torchrun``: who computes which micro-batch, and how their gradients meet.

A step is a fixed number of micro-batches. Each process computes a share of them and the gradients are summed, so the
number of processes changes who computes a micro-batch and nothing else. Gradients are reduced explicitly, once per
step: losses need not go through ``forward``, as the hooks of ``DistributedDataParallel`` would want, and one that
leaves out a parameter is no error.
"""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among its peers; alone by default.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: where collective operations happen.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows the bar."""
        return self.rank == 0

    def share(self, accumulate: int) -> range:
        """Which of a step's micro-batches this process computes: an equal, contiguous part."""
        part = accumulate // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over processes, in float64."""
        if self.size == 1:
            return list(values)
        double = torch.float64 if self.device.type != "mps" else torch.float32
        total = torch.tensor(values, dtype=double, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over processes; one that nobody has stays None."""
        if self.size == 1:
            return
        present = self.sum([float(p.grad is not None) for p in parameters])
        wanted = [p for p, count in zip(parameters, present, strict=True) if count]
        for dtype in dict.fromkeys(p.dtype for p in wanted):
            members = [p for p in wanted if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in members])
            torch.distributed.all_reduce(flat)
            for p, part in zip(members, flat.split([p.numel() for p in members]), strict=True):
                p.grad = part.view_as(p).clone()

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        if self.size == 1:
            return
        for t in module.state_dict().values():
            if t.numel():
                content = _bytes(t).clone()
                torch.distributed.broadcast(content, 0)
                t.copy_(content.view(t.dtype).view_as(t))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, on the CPU."""
        if self.size == 1 or not tensor.numel():
            return [tensor.detach().cpu()] * self.size
        content = _bytes(tensor)
        found = [torch.empty_like(content) for _ in range(self.size)]
        torch.distributed.all_gather(found, content)
        return [part.view(tensor.dtype).view_as(tensor).cpu() for part in found]


def _bytes(t: Tensor) -> Tensor:
    """Any dtype travels as bytes: back ends differ in what they support."""
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


_counter = itertools.count()


@functools.cache
def _store() -> Any:
    """The key-value store where processes meet, as the environment describes it."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://")))[0]


def _leave_together(store: Any, world: int, patience: float = 10.0) -> None:
    """Wait until every process is done with the group: closing it cuts off what is still on its way to the others.

    A process that failed never comes, so the wait has an end; then the others see their connections close.
    """
    until = time.monotonic() + patience
    try:
        store.add("left", 1)
        while store.add("left", 0) < world and time.monotonic() < until:
            time.sleep(0.01)
    except RuntimeError:
        pass  # the process that holds the store has left, and it waited for us


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone.

    A process group that exists is used; one that is made here (gloo on the CPU, NCCL on CUDA) is taken down here.

    Raises:
        ValueError: half of torchrun's environment, or CUDA processes that would share a device.
    """
    distributed = torch.distributed
    usable = distributed.is_available()
    if usable and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device=device)
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing or not usable:
        why = f"{', '.join(missing)} is not set" if missing else "this torch was built without torch.distributed"
        raise ValueError(f"WORLD_SIZE={world} and {why}: start with torchrun --nproc_per_node {world}, or unset it")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and "LOCAL_RANK" in os.environ and (device.index or 0) != local:
        raise ValueError(
            f"process {os.environ['RANK']} has its model on {device}; move it to cuda:{local} (LOCAL_RANK) first"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # One store for the life of this process, and keys of its own for each group: a second run in one script would
    # else find the addresses of the first. All processes call fit() in the same order, so they count alike.
    store = distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"boltzmix/{next(_counter)}", _store()
    )
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=int(os.environ["RANK"]), world_size=world
    )
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        _leave_together(store, world)
        distributed.destroy_process_group()
