"""Weighted particles: systematic resampling, evidence, and an error bar from ancestors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
