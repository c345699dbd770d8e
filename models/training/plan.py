"""The settings that a training run is: the learning rate they give, and what is refused."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a run is; a checkpoint of another plan is refused."""

    steps: int
    batch_size: int | None
    lr: float
    warmup: int
    weight_decay: float
    ema: float
    clip: float | None
    seed: int
    log_every: int
    accumulate: int
    precision: str
    data: str
    optimizer: str = "adamw"

    def rate(self, step: int) -> float:
        """Learning rate: a linear rise, then half a cosine down to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def check_numbers(
    steps: Any, batch_size: Any, lr: Any, warmup: Any, weight_decay: Any, ema: Any, clip: Any, seed: Any
) -> None:
    """Refuse settings of a run that are no such numbers."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is a positive int, got {steps!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(f"batch_size is a positive int, got {batch_size!r}")
    if warmup is not None and (not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0):
        raise ValueError(f"warmup is a number of steps >= 0, got {warmup!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise TypeError(f"seed is an int >= 0, got {seed!r}")
    for name, value in {"lr": lr, "weight_decay": weight_decay, "ema": ema, "clip": clip}.items():
        if (value is not None or name != "clip") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is a number, got {value!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is a number > 0, got {lr!r}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is a number >= 0, got {weight_decay!r}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema is a decay in [0, 1), got {ema!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is a gradient norm > 0 or None, got {clip!r}")


def check_intervals(intervals: dict[str, int | None]) -> None:
    """Refuse intervals that are no positive ints; some may be None."""
    optional = {"accumulate", "sheet_every"}
    for name, value in intervals.items():
        if value is None and name in optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a positive int, got {value!r}")
