"""Several perceptrons of one architecture in one batched product: the members of an ensemble."""

import math

import torch
from torch import Tensor, nn

from boltzmix.models.nets.values import check_sizes


class EnsembleMLP(nn.Module):
    r"""K residual perceptrons side by side, :math:`h \leftarrow h + \mathrm{silu}(W_k h + b_k)`, then a linear layer.

    The first and the last layer are linear and the layers between are residual, so every member contains the linear
    maps: what is linear in the data costs the network nothing.

    Args:
        dim: size of the input vectors.
        out: outputs for each row.
        members: K.
        hidden: width of the layers.
        depth: number of residual layers.

    Raises:
        ValueError: a size that is no positive int, or vectors of another size.

    Example:
        >>> import torch
        >>> EnsembleMLP(3, 2, members=4, hidden=8)(torch.zeros(5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(self, dim: int, out: int, members: int = 1, hidden: int = 64, depth: int = 2) -> None:
        """Draw every member's layers on its own; the last layer is small, so that training starts near zero."""
        super().__init__()
        check_sizes(dim=dim, out=out, members=members, hidden=hidden, depth=depth)
        self.dim, self.out, self.members = dim, out, members
        sizes = [(dim, hidden), *[(hidden, hidden)] * depth, (hidden, out)]
        self.weights = nn.ParameterList(nn.Parameter(_uniform(members, a, b)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(_uniform(members, 1, b) / math.sqrt(a)) for a, b in sizes)
        with torch.no_grad():
            self.weights[-1].mul_(0.1)
            self.biases[-1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, dim)``, the same rows for all members, or ``(K, N, dim)``, rows of their own, to ``(K, N, out)``."""
        if x.ndim not in (2, 3) or x.shape[-1] != self.dim or (x.ndim == 3 and x.shape[0] != self.members):
            raise ValueError(
                f"an EnsembleMLP of {self.members} takes vectors (N, {self.dim}) or ({self.members}, N, {self.dim}), "
                f"got {tuple(x.shape)}"
            )
        rows = x.expand(self.members, *x.shape) if x.ndim == 2 else x
        weights, biases = list(self.weights), list(self.biases)
        h = torch.baddbmm(biases[0], rows, weights[0])
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            h = h + nn.functional.silu(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(biases[-1], h, weights[-1])


def _uniform(members: int, rows: int, columns: int) -> Tensor:
    """Uniform on ±1/√rows, as ``nn.Linear`` draws its weights."""
    return (2 * torch.rand(members, rows, columns) - 1) / math.sqrt(rows)
