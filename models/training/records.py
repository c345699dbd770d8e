"""What a run reports: JSON lines, TensorBoard on request, a bar on terminals."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzmix.compose.draw import write_atomically
from boltzmix.compose.errors import MissingExtra

Record = dict[str, float]


class Records:
    """Writes records; one that belongs to a resumed run goes on where that run's checkpoint stood.

    Args:
        history: records so far; a metrics file is rewritten from them.
        metrics: a JSON-lines file, or None; numbers that are not finite become null.
        tensorboard: a folder for TensorBoard's event files, or None.
        step: steps taken so far: events of later steps, which a killed run left, are declared void.
        steps: length of the bar.
        progress: show a bar; None shows one on terminals.

    Raises:
        MissingExtra: TensorBoard was asked for and is not installed.
    """

    def __init__(
        self,
        history: list[Record],
        metrics: str | os.PathLike[str] | None,
        tensorboard: str | os.PathLike[str] | None,
        step: int,
        steps: int,
        progress: bool | None,
    ) -> None:
        """Open what is wanted."""
        self.history = history
        self.metrics = None if metrics is None else Path(metrics)
        self._events: Any = None if tensorboard is None else _events(tensorboard, step + 1 if step else 0)
        if self.metrics is not None:
            write_atomically(self.metrics, "".join(map(_line, history)).encode())
        self._bar: Any = None
        if progress or (progress is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, desc="fit", unit="step", leave=False)

    def add(self, record: Record) -> None:
        """Report one logging interval."""
        self.history.append(record)
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        if self._events is not None:
            for key, value in record.items():
                if key != "step":
                    self._events.add_scalar(key, value, int(record["step"]))
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)

    def stepped(self) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(1)

    def flush(self) -> None:
        """Bring events to disk: before every checkpoint, since a resumed run does not repeat what lies before it."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Take down the bar and the event file."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()


def _line(record: Mapping[str, float]) -> str:
    return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


def _events(folder: str | os.PathLike[str], purge: int) -> Any:
    try:
        import tensorboard  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra('tensorboard= needs TensorBoard: pip install "boltzmix[tensorboard]"') from error
    return SummaryWriter(str(folder), purge_step=purge)
