r"""Running energies of chains, whose E-BFMI thinning cannot spoil."""

import torch
from torch import Tensor


class Energies:
    r"""Sums for E-BFMI over every transition, kept or not.

    :math:`\sum_n (H_n - H_{n-1})^2 / \sum_n (H_n - \bar H)^2` needs consecutive energies, which thinned draws no longer
    hold; of draws that are not thinned :func:`boltzmix.compose.diagnostics.bfmi` says the same.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self.last = self.mean = self.second = self.jumps = torch.zeros(0)

    def update(self, energy: Tensor) -> None:
        """Add the energies of a block of transitions, ``(steps, N)``."""
        energy = energy.double()
        steps = len(energy)
        if not self.count:
            self.last = energy[0]
            self.mean, self.second, self.jumps = (torch.zeros_like(energy[0]) for _ in range(3))
        self.jumps = self.jumps + (torch.cat([self.last[None], energy]).diff(dim=0) ** 2).sum(0)
        mean = energy.mean(0)
        # sums of squares about two means, joined (Chan, Golub and LeVeque, 1979)
        shift, total = mean - self.mean, self.count + steps
        self.second = self.second + ((energy - mean) ** 2).sum(0) + shift**2 * (self.count * steps / total)
        self.mean = self.mean + shift * (steps / total)
        self.last, self.count = energy[-1], total

    def bfmi(self) -> Tensor:
        """E-BFMI of each chain, ``(N,)``; NaN where the energy never changed."""
        return self.jumps / self.second

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"last": self.last, "mean": self.mean, "second": self.second, "jumps": self.jumps}

    def restore(self, tensors: dict[str, Tensor], count: int) -> None:
        """Take up a snapshot."""
        self.count = count
        self.last, self.mean = tensors["last"], tensors["mean"]
        self.second, self.jumps = tensors["second"], tensors["jumps"]
