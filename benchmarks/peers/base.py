"""What the samplers of other libraries have in common: checked arguments, a name, failures as rows."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers.guard import guarded
from boltzmix.compose.errors import MissingExtra


def missing(packages: Sequence[str]) -> str:
    """Those of the packages, by import name, that are not installed: "" when all are there."""
    return ", ".join(name for name in packages if importlib.util.find_spec(name) is None)


def require(packages: Sequence[str], what: str) -> None:
    """Refuse to go on without packages.

    Args:
        packages: import names.
        what: needs them.

    Raises:
        MissingExtra: with what to install.
    """
    if names := missing(packages):
        raise MissingExtra(f'{what} needs {names}: pip install "boltzmix[peers]"')


@dataclass(frozen=True)
class Peer(ABC):
    """A sampler of another library with its settings: a method ``(density, starts, budget, seed) -> MethodRun``.

    Calling one reports whatever goes wrong in the library as the run's ``error``; :meth:`run` raises it. Chains adapt
    each on their own, from the starts that are given; without adaptation, the warm-up's transitions are thrown away.

    Attributes:
        dtype: in which it computes, float64 or float32; draws are always kept in float64.

    Raises:
        ValueError, TypeError: starts that no library could use.
    """

    dtype: torch.dtype = torch.float64

    #: as the library's users write it
    library: ClassVar[str] = ""
    algorithm: ClassVar[str] = ""
    #: what has to be installed, by import name
    packages: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.dtype not in (torch.float64, torch.float32):
            raise ValueError(f"dtype is torch.float64 or torch.float32, got {self.dtype}")

    @property
    def name(self) -> str:
        """Library and algorithm: what the report calls it."""
        return f"{self.library} {self.algorithm}" + ("" if self.dtype == torch.float64 else " float32")

    def __call__(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Run; failures of the library are rows.

        Args:
            density: the target.
            starts: ``(chains, D)`` in float64, one for each chain.
            budget: transitions before and after the first kept draw.
            seed: of the library's own random numbers.
        """
        if density.support == "real":
            check_starts(density, starts)
        return guarded(self.run, density, starts, budget, seed, name=self.name)

    def run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """The same, but errors are raised.

        Raises:
            MissingExtra: the library is not installed.
            ValueError: a discrete target, which has no gradient.
        """
        if density.support != "real":
            raise ValueError(f"{density.name} is over {density.support}; {self.name} needs a gradient")
        check_starts(density, starts)
        require(self.packages, self.name)
        return self._run(density, starts, budget, seed)

    @abstractmethod
    def _run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """What the library does."""


def check_starts(density: Density, starts: Tensor) -> None:
    """Refuse starts that no method could use.

    Raises:
        TypeError, ValueError: with what came and what was expected.
    """
    if not isinstance(starts, Tensor) or starts.dtype != torch.float64:
        what = starts.dtype if isinstance(starts, Tensor) else type(starts).__name__
        raise TypeError(f"starts is a float64 tensor, got {what}; write density.starts(chains, seed)")
    if starts.ndim != 2 or starts.shape[1] != density.dim or not len(starts):
        raise ValueError(f"starts is (chains, {density.dim}) for {density.name}, got {tuple(starts.shape)}")
    if not bool(torch.isfinite(starts).all()):
        raise ValueError("starts holds values that are not finite; every chain needs a point to start from")
