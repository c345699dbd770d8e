"""What every objective of an energy model has: buffers of fixed shape, a loss, and figures about the last step."""

from typing import Any

import torch
from torch import Tensor, nn


class Objective(nn.Module):
    """Base of the objectives; a subclass defines :meth:`loss`.

    What must survive a kill lives in registered buffers of fixed shape: a checkpoint of ``fit`` is the model's
    ``state_dict()``, and the objective is part of the model.
    """

    #: whether the constant of the energy is a parameter that the loss determines
    learns_constant = False

    def __init__(self) -> None:
        """Nothing measured yet."""
        super().__init__()
        self._measured: dict[str, Tensor | float] = {}

    def attach(self, model: Any) -> None:
        """Allocate buffers, once the shape of the data is known."""

    def prepare(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> None:
        """Fill them from the first batch."""

    def loss(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean loss of a batch ``(N, *event)`` with labels ``(N,)`` or None."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Figures about the last step."""
        return {name: float(value) for name, value in self._measured.items()}
