"""A residual multilayer perceptron for vectors, modulated by noise level and label."""

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning


class MLP(nn.Module):
    """``h ← h + silu((1 + a) ⊙ W h + b)`` with a, b from the noise level and the label.

    Args:
        dim: D, size of the vectors.
        hidden: width of the layers.
        depth: number of residual layers.
        out: outputs per row; None for D (a score network), 1 for the scalar that an energy needs.
        num_classes: number of labels; None for networks without labels.
        width: size of the embedding of noise level and label.

    Example:
        >>> import torch
        >>> MLP(2, hidden=8, out=1)(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        depth: int = 3,
        out: int | None = None,
        num_classes: int | None = None,
        width: int = 32,
    ) -> None:
        """Build the layers; the last one starts at zero, so that training starts from the Gaussian base."""
        super().__init__()
        self.scalar = out == 1
        self.num_classes = num_classes
        self.conditioning = Conditioning(width, num_classes)
        self.first = nn.Linear(dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * hidden * depth)
        self.last = nn.Linear(hidden, dim if out is None else out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        with torch.no_grad():
            self.modulation.weight.mul_(0.5)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, D)``, ``c_noise`` and ``label`` of shape ``(N,)``."""
        if x.ndim != 2 or x.shape[1] != self.first.in_features:
            raise ValueError(
                f"MLP({self.first.in_features}) takes vectors (N, {self.first.in_features}), got {tuple(x.shape)}; "
                "use UNet or DiT for images, or flatten them"
            )
        modulation = self.modulation(self.conditioning(c_noise, label)).chunk(2 * len(self.layers), 1)
        h = self.first(x)
        for i, layer in enumerate(self.layers):
            h = h + nn.functional.silu(torch.addcmul(modulation[2 * i + 1], layer(h), 1 + modulation[2 * i]))
        return self.last(h)
