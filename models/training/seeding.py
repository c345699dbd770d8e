"""Seeds: all randomness of a run is a function of (seed, purpose, step, micro-batch).

Nothing random is carried from one step to the next, so a run that was killed needs no generator's state to go on, and
a micro-batch is the same whichever process computes it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Built = TypeVar("Built")


def seeded(make: Callable[[], Built], seed: int) -> Built:
    """``make()`` with its initial weights drawn from ``seed``; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def derive(*parts: int | str) -> int:
    """A seed for ``torch.Generator.manual_seed`` from a run's seed, a purpose and counters.

    Example:
        >>> derive(0, "loss", 3, 0) == derive(0, "loss", 3, 0) != derive(0, "loss", 3, 1)
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def global_state_kept(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators, which dropout layers and data loaders draw from, at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
