"""Checkpoints: one safetensors file with weights, averages, optimiser state and buffers; JSON in its header.

A file is written under a temporary name, synced and renamed, so a kill leaves the last one whole. Nothing is ever
unpickled. What does not belong to the run that reads it is refused, before anything of the model is touched.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.draw import write_atomically
from boltzmix.models.training.distributed import Processes

FORMAT = 2


class Checkpoint:
    """The state of a run on disk.

    Args:
        path: the file.
        plan: what the run is: a file of another plan is refused.
        model, optimizer, averages: what is stored; averages are those of ``named``, the trained parameters.
        peers: processes of the run; the first writes. Buffers may differ between processes (a replay buffer) and are
            stored for each that differs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: Mapping[str, Any],
        model: nn.Module,
        named: Mapping[str, nn.Parameter],
        averages: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        peers: Processes,
    ) -> None:
        """Keep references; remove what a kill within a write left behind."""
        self.path, self.plan = Path(path), dict(plan)
        self.model, self.named, self.averages, self.optimizer, self.peers = model, named, averages, optimizer, peers
        if peers.first:
            for stale in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                stale.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Whether there is something to resume from; all processes must agree.

        Raises:
            ValueError: some processes see the file and others do not.
        """
        found = self.path.exists()
        count = round(self.peers.sum([float(found)])[0])
        if count not in (0, self.peers.size):
            raise ValueError(
                f"{count} of {self.peers.size} processes see {self.path}: a checkpoint lies where all of them can read"
            )
        return found

    # ---------------------------------------------------------------- writing

    def save(self, header: Mapping[str, Any]) -> None:
        """Write everything; ``header`` is plain JSON."""
        from safetensors.torch import save

        state = self.model.state_dict()
        parts = {f"model.{key}": value for key, value in state.items()}
        for key in self._buffers(state):
            for rank, value in enumerate(self.peers.gather(state[key])[1:], 1):
                if not torch.equal(value, state[key].detach().cpu()):
                    parts[f"rank{rank}.{key}"] = value
        if not self.peers.first:
            return
        for (name, parameter), average in zip(self.named.items(), self.averages, strict=True):
            parts[f"ema.{name}"] = average
            for key, value in self.optimizer.state[parameter].items():
                parts[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        for key, value in parts.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the model's state holds {key}, a {type(value).__name__}; only tensors can be stored")
        stored = {key: value.detach().cpu().clone().contiguous() for key, value in parts.items()}
        described = {"format": FORMAT, "plan": self.plan, "processes": self.peers.size, **header}
        write_atomically(self.path, save(stored, metadata={"boltzmix": json.dumps(described)}))

    def _buffers(self, state: Mapping[str, Tensor]) -> list[str]:
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return [key for key in state if key not in parameters]

    # ---------------------------------------------------------------- reading

    def restore(self) -> dict[str, Any]:
        """Put everything back; the header.

        Raises:
            ValueError: the file is damaged, no checkpoint, or that of another run, model or number of processes.
        """
        tensors, header = self._read()
        self._check(tensors, header)
        state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        own = f"rank{self.peers.rank}."
        state |= {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
        self.model.load_state_dict(state)
        for (name, parameter), average in zip(self.named.items(), self.averages, strict=True):
            average.copy_(tensors[f"ema.{name}"])
            for key in self._optimizer_keys(tensors, name):
                value = tensors[f"optimizer.{key}.{name}"]
                self.optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
        return header

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        advice = "remove it to start again, or name another file"
        try:
            with safe_open(str(self.path), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                header = json.loads((file.metadata() or {})["boltzmix"])
            if not isinstance(header, dict) or not isinstance(header.get("plan"), dict):
                raise KeyError("plan")
        except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{self.path} is not a checkpoint of fit(), or is damaged: {error!r}; {advice}") from error
        if header.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} was written by another version (format {header.get('format', 1)}, this one reads "
                f"{FORMAT}); {advice}"
            )
        return tensors, header

    def _check(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        there, here = header["plan"], json.loads(json.dumps(self.plan))
        different = {
            key: (there.get(key), here.get(key)) for key in {**there, **here} if there.get(key) != here.get(key)
        }
        if different:
            listed = ", ".join(f"{key}: {was} there, {now} here" for key, (was, now) in different.items())
            raise ValueError(f"{self.path} belongs to a run with other settings ({listed}); use them, or another file")
        wrong = []
        expected = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for (name, _), average in zip(self.named.items(), self.averages, strict=True):
            expected[f"ema.{name}"] = average
        for key, value in expected.items():
            if key not in tensors:
                wrong.append(f"{key} is missing")
            elif tensors[key].shape != value.shape or tensors[key].dtype != value.dtype:
                found = tensors[key]
                wrong.append(
                    f"{key} is {tuple(found.shape)} {found.dtype} there, {tuple(value.shape)} {value.dtype} here"
                )
        wrong += [
            f"{k} is not in this model" for k in tensors if k.startswith(("model.", "ema.")) and k not in expected
        ]
        for name, parameter in self.named.items():
            for key in self._optimizer_keys(tensors, name):
                shape = tensors[f"optimizer.{key}.{name}"].shape
                if key != "step" and shape != parameter.shape:
                    wrong.append(f"optimizer.{key}.{name} is {tuple(shape)}, its parameter {tuple(parameter.shape)}")
        if wrong:
            listed = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise ValueError(
                f"{self.path} belongs to another model: {listed}. Build the same model, or use another file"
            )
        ranks = any(k.startswith("rank") for k in tensors)
        if ranks and header["processes"] != self.peers.size:
            raise ValueError(
                f"{self.path} holds buffers of {header['processes']} processes and {self.peers.size} would resume it; "
                "start as many"
            )

    def _optimizer_keys(self, tensors: Mapping[str, Tensor], name: str) -> list[str]:
        found = []
        for key in tensors:
            if key.startswith("optimizer.") and key.endswith(f".{name}"):
                part = key[len("optimizer.") : -len(name) - 1]
                if "." not in part:
                    found.append(part)
        return found
