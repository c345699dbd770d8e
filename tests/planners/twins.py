"""Gaussian priors whose answers are known, in the interfaces of trained ones."""

from typing import Any

import torch
from torch import Tensor

from boltzmix.compose import Gaussian
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable


def smooth(horizon: int, columns: int = 2, length: float = 6.0, jitter: float = 1e-3) -> Tensor:
    """Covariance (H · D, H · D) of motions that are smooth in time, independent between columns."""
    lag = torch.arange(horizon, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((lag[:, None] - lag) / length) ** 2) + jitter * torch.eye(horizon)
    return torch.kron(kernel, torch.eye(columns, dtype=torch.float64))


def chain(horizon: int, columns: int = 1, decay: float = 0.7, variance: float = 1.05) -> Tensor:
    """Covariance of a stationary Markov chain x' = decay · x + noise."""
    lag = torch.arange(horizon, dtype=torch.float64)
    return torch.kron(variance * decay ** (lag[:, None] - lag).abs(), torch.eye(columns, dtype=torch.float64))


class GaussianTwin(Term):
    """A score-only prior like a trained network: conditioned on clean coordinates, resized, with a trajectory space.

    Its score at σ given known coordinates is that of the noised conditional, exactly; calls are counted.
    """

    path = "noised"
    has_energy = False
    sigma_range = (0.002, 80.0)

    def __init__(self, horizon: int, columns: int = 2, *, kernel: Any = smooth, mask: Tensor | None = None) -> None:
        super().__init__()
        self.kernel, self.mask, self.columns = kernel, mask, columns
        self.variables = Variable((horizon, columns))
        self.register_buffer("covariance", kernel(horizon, columns).float())
        self.calls = 0
        names = ["x", "y", "vx", "vy"][:columns]
        self.trajectory = {"horizon": horizon, "state": names, "dt": 0.1, "position": names[:2]}

    def key(self) -> Any:
        return ("twin", self.event_shape, None if self.mask is None else tuple(self.mask.flatten().tolist()))

    def conditioned_on(self, mask: Tensor) -> Term:
        return GaussianTwin(self.event_shape[0], self.columns, kernel=self.kernel, mask=mask)

    def resized(self, horizon: int) -> Term:
        return GaussianTwin(horizon, self.columns, kernel=self.kernel)

    def _rows(self) -> int:
        return 1

    def _coarse(self, sigma: Tensor) -> Gaussian:
        return Gaussian(torch.zeros(self.event_shape), 1.0 + float(sigma) ** 2)

    def _score(self, x: Any, sigma: Any) -> Tensor:
        self.calls += 1
        flat, full = x.flatten(1), self.covariance.to(x)
        level = torch.zeros((), dtype=x.dtype) if sigma is None else sigma
        known = torch.zeros(flat.shape[1], dtype=torch.bool) if self.mask is None else self.mask.flatten()
        free = ~known
        mean, spread = torch.zeros_like(flat[:, free]), full[free][:, free]
        if bool(known.any()):
            gain = torch.linalg.solve(full[known][:, known], full[known][:, free])
            mean, spread = flat[:, known] @ gain, spread - full[free][:, known] @ gain
        noised = spread + level**2 * torch.eye(len(spread), dtype=x.dtype)
        score = torch.zeros_like(flat)
        score[:, free] = torch.linalg.solve(noised, (mean - flat[:, free]).mT).mT
        return score.reshape(x.shape)
