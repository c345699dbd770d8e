"""Weighted particles: systematic resampling, evidence, and an error bar from ancestors.

:class:`Cloud` is one population; :class:`Populations` holds several of equal size side by side, each weighed and
resampled by itself, so that each may have a target of its own (a condition, repeated for the rows of its population).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite


@dataclass
class Cloud:
    """Log-weights (normalised to sum to one), first ancestors, and log Z so far."""

    log_weights: Tensor
    ancestors: Tensor
    log_z: float = 0.0

    @staticmethod
    def uniform(n: int, like: Tensor) -> "Cloud":
        """Equal weights, every particle its own ancestor."""
        weights = torch.full((n,), -math.log(n), dtype=torch.float64, device=like.device)
        return Cloud(weights, torch.arange(n, device=like.device))

    @property
    def weights(self) -> Tensor:
        """Normalised weights in float64."""
        return self.log_weights.exp()

    @property
    def ess(self) -> float:
        """Effective sample size, 1 / Σ W²."""
        return float(1.0 / (self.weights**2).sum())

    def reweigh(self, increments: Tensor) -> None:
        """Multiply the weights by exp(increments) and add the log of their mean to log Z."""
        total = self.log_weights + increments.double()
        norm = total.logsumexp(0)
        self.log_z += float(norm)
        self.log_weights = total - norm

    def conditional_ess(self, increments: Tensor, rows: Tensor | None = None) -> float:
        """(Σ W w)² / Σ W w² for incremental weights w, of all particles or of ``rows``.

        1 when they are all equal, 0 when none is finite.
        """
        weights = self.log_weights if rows is None else self.log_weights[rows] - self.log_weights[rows].logsumexp(0)
        logs = torch.where(torch.isnan(increments), -torch.inf, increments).double()
        first = (weights + logs).logsumexp(0)
        second = (weights + 2 * logs).logsumexp(0)
        value = float((2 * first - second).exp())
        return value if math.isfinite(value) else 0.0

    def resample(self, generator: torch.Generator | None) -> Tensor:
        """Systematic resampling (Carpenter, Clifford and Fearnhead, 1999); returns the chosen rows."""
        rows = systematic(self.weights, len(self.log_weights), generator)
        self.ancestors = self.ancestors[rows]
        self.log_weights = torch.full_like(self.log_weights, -math.log(len(rows)))
        return rows

    def log_z_se(self) -> float:
        r"""Standard error of log Z from first ancestors, :math:`\sqrt{\sum_e (\sum_{i \in e} W_i)^2 - 1/N}`.

        It sees the spread between families of particles, not modes that no particle ever visited.
        """
        n = len(self.log_weights)
        shares = torch.zeros(n, dtype=torch.float64, device=self.log_weights.device)
        shares.index_add_(0, self.ancestors, self.weights)
        return math.sqrt(max(float((shares**2).sum()) - 1.0 / n, 0.0))


def systematic(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """``n`` rows with counts within one of n·weights."""
    edges = weights.double().cumsum(0)
    edges = edges / edges[-1]
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=weights.device)
    points = (offset + torch.arange(n, dtype=torch.float64, device=weights.device)) / n
    return torch.searchsorted(edges, points).clamp(max=len(weights) - 1)


@dataclass
class Populations:
    r"""K populations of P particles, rows k·P … (k+1)·P − 1 of a state, with weights and evidence of their own.

    ``log_weights`` ``(K, P)`` sum to one in each population, ``ancestors`` ``(K, P)`` count within it, and ``log_z``
    ``(K,)`` is the evidence of each, all in float64.
    """

    log_weights: Tensor
    ancestors: Tensor
    log_z: Tensor

    @staticmethod
    def uniform(n: int, size: int | None, like: Tensor) -> "Populations":
        """Equal weights in n / size populations; None is one population of n.

        Raises:
            ValueError: n is no multiple of the size.
        """
        size = n if size is None else size
        if n % size:
            raise ValueError(
                f"n={n} draws do not divide into populations of {size}: pass a multiple, e.g. n={n - n % size + size}"
            )
        device, count = like.device, n // size
        weights = torch.full((count, size), -math.log(size), dtype=torch.float64, device=device)
        ancestors = torch.arange(size, device=device).expand(count, size).clone()
        return Populations(weights, ancestors, torch.zeros(count, dtype=torch.float64, device=device))

    @property
    def ess(self) -> Tensor:
        """Effective fraction of each population, 1 / (P Σ W²), ``(K,)``."""
        return 1.0 / (self.log_weights.exp().square().sum(1) * self.log_weights.shape[1])

    def reweigh(self, increments: Tensor, who: str = "the composite") -> None:
        """Multiply the weights by exp(increments), ``(n,)``, and add the log of their mean to log Z.

        A particle whose increment is NaN has no weight from then on; whoever calls counts it.

        Raises:
            NonFinite: a population in which no particle has a finite weight.
        """
        logs = torch.where(torch.isnan(increments), -torch.inf, increments).double().reshape(self.log_weights.shape)
        logs = torch.where(self.log_weights == -torch.inf, -torch.inf, logs)
        total = self.log_weights + logs
        norm = total.logsumexp(1)
        if not bool(torch.isfinite(norm).all()):
            lost = (~torch.isfinite(norm)).nonzero()[:, 0].tolist()
            where = "no particle" if len(norm) == 1 else f"no particle of populations {lost[:8]}"
            raise NonFinite(f"{who}: {where} has a finite weight; check its scores and factors there")
        self.log_z = self.log_z + norm
        self.log_weights = total - norm[:, None]

    def resample(self, generator: torch.Generator | None, threshold: float = 1.0) -> Tensor | None:
        """Systematic resampling of the populations whose effective fraction is below a threshold.

        Returns:
            The chosen rows of the whole state ``(n,)``, those of other populations staying in place; None where none
            was resampled, and then no random number was drawn.
        """
        count, size = self.log_weights.shape
        chosen = self.ess < threshold
        if not bool(chosen.any()):
            return None
        device = self.log_weights.device
        edges = self.log_weights.exp().cumsum(1)
        edges = edges / edges[:, -1:]
        offsets = torch.rand(count, 1, generator=generator, dtype=torch.float64, device=device)
        points = (offsets + torch.arange(size, dtype=torch.float64, device=device)) / size
        drawn = torch.searchsorted(edges, points).clamp(max=size - 1)
        own = torch.arange(size, device=device).expand(count, size)
        drawn = torch.where(chosen[:, None], drawn, own)
        self.ancestors = self.ancestors.gather(1, drawn)
        self.log_weights = torch.where(chosen[:, None], -math.log(size), self.log_weights)
        return (drawn + size * torch.arange(count, device=device)[:, None]).reshape(-1)

    def log_z_se(self) -> Tensor:
        """Standard error of each log Z from first ancestors, as :meth:`Cloud.log_z_se`, ``(K,)``."""
        shares = torch.zeros_like(self.log_weights).scatter_add_(1, self.ancestors, self.log_weights.exp())
        return (shares.square().sum(1) - 1.0 / shares.shape[1]).clamp(min=0.0).sqrt()

    def evidence(self) -> tuple[float, float]:
        """log of the mean of the populations' Z and its standard error, where all have the same target."""
        count = len(self.log_z)
        shares = self.log_z.softmax(0)
        spread = float((shares * self.log_z_se()).square().sum())
        return float(self.log_z.logsumexp(0)) - math.log(count), math.sqrt(spread)

    @property
    def families(self) -> Tensor:
        """Number of first ancestors that are left in each population, ``(K,)``."""
        present = torch.zeros_like(self.log_weights).scatter_(1, self.ancestors, 1.0)
        return present.sum(1)


def check_population(size: Any, who: str) -> None:
    """A population's size is None or a positive int."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"{who}(population=…) is None or the number of particles of each population, got {size!r}")


def check_rows(term: nn.Module, n: int, size: int | None) -> None:
    """Refuse conditions of each row that differ within a population: resampling moves rows there.

    Raises:
        ValueError: conditions of each row without populations, or conditions that differ within one.
    """
    for module in term.modules():
        if getattr(module, "per_row", False) is not True:
            continue
        if size is None:
            raise ValueError(
                f"{type(module).__name__} holds a condition for each row, and resampling moves rows: give every "
                "condition a population of its own, population=P, with each condition repeated P times"
            )
        for name, value in module.named_buffers(recurse=False):
            if value is not None and value.ndim and len(value) == n:
                rows = value.reshape(n // size, size, -1)
                if not bool((rows == rows[:, :1]).all()):
                    raise ValueError(
                        f"{type(module).__name__} holds conditions ({name}) that differ within a population of {size}: "
                        f"repeat each condition {size} times, e.g. value.repeat_interleave({size}, 0)"
                    )
