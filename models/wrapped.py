"""Functions where networks are expected."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Wrapped(nn.Module):
    """A plain function as a module without parameters."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        """Hold the function."""
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function's value."""
        return self.fn(*inputs)
