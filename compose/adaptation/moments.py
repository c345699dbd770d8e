"""Running moments over draws of all chains (Welford, 1962; Chan, Golub and LeVeque, 1983, for whole batches)."""

from typing import Any

import torch
from torch import Tensor


class Moments:
    """Mean and centred second moments of rows that arrive in batches; ``dense`` keeps the whole matrix."""

    def __init__(self, like: Tensor, dense: bool = False) -> None:
        """Start empty, for rows like those of ``like`` ``(N, D)``."""
        d = like.shape[1]
        self.dense = dense
        self.count = 0
        self.mean = torch.zeros(d, dtype=torch.float64, device=like.device)
        self.second = torch.zeros((d, d) if dense else (d,), dtype=torch.float64, device=like.device)

    def update(self, rows: Tensor) -> None:
        """Add rows ``(N, D)``."""
        rows = rows.double()
        n = len(rows)
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self.mean
        total = self.count + n
        factor = self.count * n / total
        if self.dense:
            self.second = self.second + centred.mT @ centred + factor * shift[:, None] * shift
        else:
            self.second = self.second + (centred * centred).sum(0) + factor * shift * shift
        self.mean = self.mean + shift * (n / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The unbiased covariance, ``(D, D)`` when dense and its diagonal otherwise."""
        return self.second / max(self.count - 1, 1)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        return {"mean": self.mean, "second": self.second}, {"count": self.count}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.mean, self.second, self.count = tensors["mean"], tensors["second"], state["count"]
