"""Where chains put their draws: tensors in memory, or files of numpy's own format that grow no memory.

A file is written under the name ``….npy.partial`` while the run is on, and gets its own name when it is complete.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class Store:
    """Draws ``(chains, draws, …)`` by name, written in blocks of draws.

    Args:
        chains: number of chains.
        draws: number of draws that each keeps.
        folder: where to write one ``.npy`` for each name; None keeps tensors in memory.
    """

    def __init__(self, chains: int, draws: int, folder: Path | None = None) -> None:
        """Start empty."""
        self.chains, self.draws, self.folder = chains, draws, folder
        self.tensors: dict[str, Tensor] = {}

    def write(self, at: int, block: Mapping[str, Tensor]) -> None:
        """Put a block ``(chains, k, …)`` at the draws from ``at`` on."""
        for name, values in block.items():
            if name not in self.tensors:
                self.tensors[name] = self._make(name, values)
            self.tensors[name][:, at : at + values.shape[1]] = values

    def _make(self, name: str, like: Tensor) -> Tensor:
        shape = (self.chains, self.draws, *like.shape[2:])
        if self.folder is None:
            fill = torch.nan if like.is_floating_point() else 0
            return torch.full(shape, fill, dtype=like.dtype, device=like.device)
        import numpy as np

        self.folder.mkdir(parents=True, exist_ok=True)
        kind = np.dtype(str(like.dtype).removeprefix("torch."))
        return torch.from_numpy(np.lib.format.open_memmap(self._partial(name), "w+", dtype=kind, shape=shape))

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.npy"

    def _partial(self, name: str) -> Path:
        return self._file(name).with_suffix(".npy.partial")

    def snapshot(self, done: int) -> dict[str, Tensor]:
        """What a checkpoint must hold of the first ``done`` draws; files are brought to the disk instead."""
        if self.folder is None:
            return {name: values[:, :done] for name, values in self.tensors.items()}
        for name in self.tensors:
            with open(self._partial(name), "r+b") as file:
                os.fsync(file.fileno())
        return {}

    def restore(self, saved: Mapping[str, Tensor], names: list[str]) -> None:
        """Take up a snapshot.

        Raises:
            ValueError: a file of the interrupted run is missing or has another shape.
        """
        if self.folder is None:
            for name, values in saved.items():
                self.write(0, {name: values})
            return
        import numpy as np

        for name in names:
            try:
                values = np.lib.format.open_memmap(self._partial(name), "r+")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{self._partial(name)}, where the interrupted run wrote its draws, cannot be read: {error}; "
                    "delete the checkpoint to start again"
                ) from error
            if values.shape[:2] != (self.chains, self.draws):
                raise ValueError(f"{self._partial(name)} holds {values.shape[:2]} draws; delete the checkpoint")
            self.tensors[name] = torch.from_numpy(values)

    def close(self) -> None:
        """Give complete files their names."""
        if self.folder is not None:
            self.snapshot(self.draws)
            for name in self.tensors:
                os.replace(self._partial(name), self._file(name))
