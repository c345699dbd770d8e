"""Embeddings of the noise level and of a class label, shared by every network.

Networks are called ``net(x, c_noise, label)`` with ``c_noise = ln(σ)/4`` of shape ``(N,)`` and ``label`` either None
or long ``(N,)``; a label of −1, and None, mean the unconditional model (the null class).
"""

import math

import torch
from torch import Tensor, nn

NULL = -1


class LabelEmbedding(nn.Embedding):
    """``(N,)`` labels to ``(N, width)``, with one more row for the null class (−1, or no labels at all).

    Args:
        num_classes: number of labels, the null class not counted.
        width: size of the embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        """Draw the rows."""
        super().__init__(num_classes + 1, width)
        nn.init.normal_(self.weight, std=0.5)

    def forward(self, label: Tensor | None) -> Tensor:
        """``(N,)`` to ``(N, width)``; None to the one null row, ``(1, width)``."""
        null = self.num_embeddings - 1
        if label is None:
            return self.weight[null:]
        return super().forward(torch.where(label < 0, null, label))


class Conditioning(nn.Module):
    """``(c_noise, label) ↦ (N, width)``: smooth Fourier features of the noise level plus a label embedding.

    Frequencies stay low on purpose: an energy's derivative in σ is only as smooth as its embedding.

    Args:
        width: size of the embedding.
        num_classes: number of labels; None for networks without labels.
        frequencies: number of Fourier frequencies, geometric in [1/8, 2] cycles per unit of ``c_noise``.
    """

    cycles: Tensor

    def __init__(self, width: int, num_classes: int | None = None, frequencies: int = 8) -> None:
        """Build the two embeddings."""
        super().__init__()
        self.num_classes = num_classes
        cycles = torch.logspace(math.log10(1 / 8), math.log10(2.0), frequencies)
        self.register_buffer("cycles", 2 * math.pi * cycles, persistent=False)
        self.noise = nn.Sequential(nn.Linear(2 * frequencies + 1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if num_classes is None else LabelEmbedding(num_classes, width)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N,)`` and ``(N,)`` or None to ``(N, width)``."""
        angles = c_noise[:, None] * self.cycles
        embedding = self.noise(torch.cat([angles.sin(), angles.cos(), c_noise[:, None]], 1))
        if self.label is not None:
            embedding = embedding + self.label(label)
        elif label is not None:
            raise TypeError("this network was built without classes and got labels; build it with num_classes=")
        return nn.functional.silu(embedding)
