"""Networks for classifiers: K numbers per row, ``net(x)`` or, over noise levels, ``net(x, c_noise)``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import Conditioning


class LogitsMLP(nn.Module):
    """Vectors to K logits: ``h ← silu((1 + a) ⊙ W h + b)``, with a, b from the noise level or 0.

    Args:
        dim: D, size of the vectors.
        out: K, numbers per row.
        hidden: width of each layer.
        noise_aware: whether the network is called ``net(x, c_noise)``.
        width: size of the embedding of the noise level.

    Example:
        >>> import torch
        >>> LogitsMLP(2, out=3, hidden=(8,))(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, dim: int, out: int = 10, hidden: Sequence[int] = (64, 64), noise_aware: bool = False, width: int = 32
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((dim, *hidden[:-1]), hidden, strict=True))
        self.conditioning = Conditioning(width) if noise_aware else None
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * h) for h in hidden) if noise_aware else None
        self.last = nn.Linear(hidden[-1], out)

    def forward(self, x: Tensor, c_noise: Tensor | None = None) -> Tensor:
        """``(N, D)``, and ``(N,)`` where the network is noise-aware, to ``(N, K)``."""
        embedding = embedded(self.conditioning, c_noise)
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if embedding is not None and self.modulation is not None:
                h = modulated(self.modulation[i](embedding), h)
            h = nn.functional.silu(h)
        return self.last(h)


class LogitsConv(nn.Module):
    """Small images to K logits: two stages of convolutions with group norms, each halved by pooling.

    Args:
        channels: image channels C.
        out: K, numbers per row.
        hidden: features of the two stages, multiples of 4.
        size: height and width of the images, a multiple of 4.
        noise_aware: whether the network is called ``net(x, c_noise)``: the norms are then modulated by the level.
        width: size of the embedding of the noise level.

    Raises:
        ValueError: sizes that four does not divide, or images of another shape.

    Example:
        >>> import torch
        >>> LogitsConv(1, out=10, hidden=(4, 8))(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        channels: int = 1,
        out: int = 10,
        hidden: Sequence[int] = (24, 48),
        size: int = 8,
        noise_aware: bool = False,
        width: int = 32,
    ) -> None:
        """Build the stages."""
        super().__init__()
        if len(hidden) != 2 or any(h % 4 for h in hidden) or size % 4:
            raise ValueError(
                f"hidden is two multiples of 4 and size a multiple of 4, got hidden={tuple(hidden)} and size={size}"
            )
        self.shape = (channels, size, size)
        a, b = hidden
        self.features = nn.Sequential(
            nn.Conv2d(channels, a, 3, padding=1),
            nn.GroupNorm(4, a),
            nn.SiLU(),
            nn.Conv2d(a, a, 3, padding=1),
            nn.GroupNorm(4, a),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3, padding=1),
            nn.GroupNorm(4, b),
            nn.SiLU(),
            nn.MaxPool2d(2),
        )
        self.conditioning = Conditioning(width) if noise_aware else None
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * h) for h in (a, a, b)) if noise_aware else None
        self.last = nn.Linear(b * (size // 4) ** 2, out)

    def forward(self, x: Tensor, c_noise: Tensor | None = None) -> Tensor:
        """``(N, C, H, W)``, and ``(N,)`` where the network is noise-aware, to ``(N, K)``."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the network takes (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        embedding = embedded(self.conditioning, c_noise)
        if embedding is None:
            return self.last(self.features(x).flatten(1))
        assert self.modulation is not None
        h, changes = x, iter(self.modulation)
        for layer in self.features:
            h = layer(h)
            if isinstance(layer, nn.GroupNorm):
                h = modulated(next(changes)(embedding), h)
        return self.last(h.flatten(1))


def embedded(conditioning: nn.Module | None, c_noise: Tensor | None) -> Tensor | None:
    """The embedding of a noise level, None for networks without one.

    Raises:
        TypeError: a level for a network without, or the other way round.
    """
    if (conditioning is None) != (c_noise is None):
        came = "no noise level" if c_noise is None else "a noise level"
        raise TypeError(f"the network was built with noise_aware={conditioning is not None} and got {came}")
    return None if conditioning is None else conditioning(c_noise)


def modulated(change: Tensor, h: Tensor) -> Tensor:
    """``(1 + a) ⊙ h + b`` over channels, with a and b the halves of ``(N, 2C)``."""
    shape: Any = (h.shape[0], h.shape[1], *[1] * (h.ndim - 2))
    scale, shift = (part.reshape(shape) for part in change.chunk(2, 1))
    return torch.addcmul(shift, h, 1 + scale)
