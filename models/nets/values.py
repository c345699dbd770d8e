"""What causal networks share: values to feature vectors, one value at a time."""

import torch
from torch import Tensor, nn


class ValueEmbedding(nn.Module):
    """Each entry of ``(N, …)`` to ``(N, …, width)``: a table for levels, a small perceptron for reals.

    Args:
        levels: number of levels K of long inputs; None for reals.
        width: size of the embedding.

    Raises:
        TypeError: reals where levels are wanted, or the other way round.
    """

    def __init__(self, levels: int | None, width: int) -> None:
        """Build the table or the perceptron."""
        super().__init__()
        self.levels = levels
        self.table = None if levels is None else nn.Embedding(levels, width)
        self.perceptron = (
            nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width)) if levels is None else None
        )

    def forward(self, values: Tensor) -> Tensor:
        """``(N, …)`` to ``(N, …, width)``."""
        if self.table is not None:
            if values.dtype != torch.long:
                raise TypeError(f"a network built with levels={self.levels} takes long tensors, got {values.dtype}")
            return self.table(values)
        if not values.is_floating_point():
            raise TypeError(f"a network built without levels= takes floating-point tensors, got {values.dtype}")
        assert self.perceptron is not None
        return self.perceptron(values[..., None])


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not positive ints."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is a positive int, got {size!r}")


def label_bias(embedding: nn.Module | None, label: Tensor | None) -> Tensor | None:
    """The label's features ``(N, width)`` or ``(1, width)``; None for networks without labels.

    Raises:
        TypeError: labels for a network without classes.
    """
    if embedding is not None:
        return embedding(label)
    if label is not None:
        raise TypeError("this network was built without classes and got labels; build it with num_classes=")
    return None
