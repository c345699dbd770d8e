"""Persistent chains in tensors of fixed shape, so that a checkpoint holds them and a killed run resumes bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import NULL


class ReplayBuffer(nn.Module):
    """States of ``capacity`` chains, each with its label, its log-weight and the energy at its last visit.

    Chains keep their labels: slot k has the k-th of the labels that :meth:`fill` was given, so no class dies out.

    Args:
        capacity: number of chains.
        event_shape: shape of one state.

    Source: T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient.

    Example:
        >>> import torch
        >>> buffer = ReplayBuffer(4, (2,))
        >>> buffer.fill(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> buffer.pick(torch.tensor([1, 1, 1]), torch.Generator().manual_seed(0)).remainder(2).tolist()
        [1, 1, 1]
    """

    x: Tensor
    label: Tensor
    log_weight: Tensor
    energy: Tensor

    def __init__(self, capacity: int, event_shape: Sequence[int]) -> None:
        """Allocate."""
        super().__init__()
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity is a positive int, got {capacity!r}")
        self.register_buffer("x", torch.zeros(capacity, *event_shape))
        self.register_buffer("label", torch.full((capacity,), NULL, dtype=torch.long))
        self.register_buffer("log_weight", torch.zeros(capacity))
        self.register_buffer("energy", torch.zeros(capacity))

    def __len__(self) -> int:
        """Number of chains."""
        return self.x.shape[0]

    def fill(self, x: Tensor, label: Tensor | None = None) -> None:
        """Take these states and labels, one for each chain; weights start equal."""
        if x.shape != self.x.shape:
            raise ValueError(f"a buffer of shape {tuple(self.x.shape)} is filled with as much, got {tuple(x.shape)}")
        self.x.copy_(x)
        self.label.copy_(torch.full_like(self.label, NULL) if label is None else label)
        self.log_weight.zero_()

    def pick(self, label: Tensor | None, generator: torch.Generator, n: int | None = None) -> Tensor:
        """Slots to visit: ``n`` different ones, or one with each of the given labels, ``(N,)``.

        Raises:
            ValueError: a label that no chain has, or more slots than there are.
        """
        if label is None:
            if n is None or n > len(self):
                raise ValueError(f"{n} chains were asked for and the buffer holds {len(self)}; raise its capacity")
            return torch.randperm(len(self), generator=generator, device=self.x.device)[:n]
        slots = torch.empty_like(label)
        for value in label.unique().tolist():
            own = (self.label == value).nonzero()[:, 0]
            rows = (label == value).nonzero()[:, 0]
            if not len(own):
                raise ValueError(f"no chain has label {value}; raise the capacity beyond {len(self)}")
            # different chains while they last: a chain that is visited twice is moved once in vain
            order = [
                torch.randperm(len(own), generator=generator, device=own.device)
                for _ in range(-(-len(rows) // len(own)))
            ]
            slots[rows] = own[torch.cat(order)[: len(rows)]]
        return slots

    def store(self, slots: Tensor, x: Tensor, energy: Tensor) -> None:
        """Write states and their energies back."""
        self.x[slots] = x.detach()
        self.energy[slots] = energy.detach()

    def log_means(self) -> Tensor:
        """Log of the mean weight of the chains that share each chain's label, ``(capacity,)``."""
        found = torch.empty_like(self.log_weight)
        for value in self.label.unique().tolist():
            own = self.label == value
            found[own] = self.log_weight[own].logsumexp(0) - own.sum().log()
        return found

    def resample(self, threshold: float, generator: torch.Generator) -> tuple[Tensor, int]:
        """Resample, label by label, where less than ``threshold`` of the chains are effective; systematic.

        Weights become equal and keep their mean; states are for the caller to reorder.

        Returns:
            The slot that each slot's state now comes from, ``(capacity,)``, and the number of labels resampled.
        """
        order, count = torch.arange(len(self), device=self.x.device), 0
        for value in self.label.unique().tolist():
            own = (self.label == value).nonzero()[:, 0]
            logs = self.log_weight[own]
            weights = logs.double().softmax(0)
            if float(1 / weights.square().sum()) >= threshold * len(own):
                continue
            offset = torch.rand((), generator=generator, dtype=torch.float64, device=own.device)
            points = (torch.arange(len(own), dtype=torch.float64, device=own.device) + offset) / len(own)
            order[own] = own[torch.searchsorted(weights.cumsum(0), points).clamp(max=len(own) - 1)]
            self.log_weight[own] = logs.logsumexp(0) - torch.tensor(float(len(own)), device=own.device).log()
            count += 1
        return order, count
