"""Networks without a noise level, called ``net(x, label)``: the two halves of an autoencoder.

``label`` is None or long ``(N,)`` with −1 for the null class, as for every network here.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from boltzmix.models.nets.embedding import LabelEmbedding


class Labels(nn.Module):
    """``label ↦ (N, size)``, zero without classes; what the layers of a network are shifted by.

    Args:
        num_classes: number of labels; None for networks without labels.
        size: of the shift.
    """

    def __init__(self, num_classes: int | None, size: int) -> None:
        """Draw the rows."""
        super().__init__()
        self.embedding = None if num_classes is None else LabelEmbedding(num_classes, size)

    def forward(self, label: Tensor | None) -> Tensor | float:
        """``(N,)`` or None to a shift, ``(N, size)``, ``(1, size)`` or 0.

        Raises:
            TypeError: labels for a network that was built without classes.
        """
        if self.embedding is not None:
            return self.embedding(label)
        if label is not None:
            raise TypeError("this network was built without classes and got labels; build it with num_classes=")
        return 0.0


class Dense(nn.Module):
    r"""A residual perceptron between two shapes: an encoder, a decoder, or a map between latents.

    :math:`h \leftarrow h + \mathrm{silu}(W_i h + e_c)`, with :math:`e_c` the embedding of the label.

    Args:
        inputs: shape of a row that comes in, or its size.
        outputs: shape of a row that goes out, or its size; twice the latent size for an encoder of a Gaussian.
        hidden: width of the layers.
        depth: number of residual layers.
        num_classes: number of labels; None for networks without labels.

    Example:
        >>> import torch
        >>> Dense((1, 8, 8), 32, num_classes=10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int | Sequence[int],
        hidden: int = 128,
        depth: int = 2,
        num_classes: int | None = None,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.inputs, self.outputs, self.num_classes = as_shape(inputs), as_shape(outputs), num_classes
        self.first = nn.Linear(math.prod(self.inputs), hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))
        self.labels = Labels(num_classes, hidden)
        self.last = nn.Linear(hidden, math.prod(self.outputs))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, *inputs)`` to ``(N, *outputs)``."""
        check_rows(x, self.inputs, "Dense")
        shift = self.labels(label)
        h = nn.functional.silu(self.first(x.flatten(1)) + shift)
        for layer in self.layers:
            h = h + nn.functional.silu(layer(h) + shift)
        return self.last(h).reshape(len(x), *self.outputs)


class ConvEncoder(nn.Module):
    """Image to vector: each stage halves height and width.

    Args:
        shape: of an image, ``(C, H, W)``; H and W are multiples of 2 to the number of stages.
        outputs: numbers per image.
        hidden: features of the stages.
        num_classes: number of labels; None for networks without labels.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 8, 8), 32, hidden=(8, 16))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        outputs: int = 32,
        hidden: Sequence[int] = (32, 64),
        num_classes: int | None = None,
    ) -> None:
        """Build the stages."""
        super().__init__()
        self.shape, self.num_classes = as_image(shape, len(hidden)), num_classes
        self.first = nn.Conv2d(self.shape[0], hidden[0], 3, padding=1)
        self.labels = Labels(num_classes, hidden[0])
        sizes = [hidden[0], *hidden]
        self.stages = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], 4, stride=2, padding=1) for i in range(len(hidden))
        )
        coarse = self.shape[1] * self.shape[2] // 4 ** len(hidden)
        self.last = nn.Linear(hidden[-1] * coarse, outputs)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, C, H, W)`` to ``(N, outputs)``."""
        check_rows(x, self.shape, "ConvEncoder")
        h = nn.functional.silu(self.first(x) + as_channels(self.labels(label)))
        for stage in self.stages:
            h = nn.functional.silu(stage(h))
        return self.last(h.flatten(1))


class ConvDecoder(nn.Module):
    """Vector to image: each stage doubles height and width.

    Args:
        inputs: size of the vectors.
        shape: of an image, ``(C, H, W)``; H and W are multiples of 2 to the number of stages.
        hidden: features of the stages.
        num_classes: number of labels; None for networks without labels.

    Example:
        >>> import torch
        >>> ConvDecoder(16, (1, 8, 8), hidden=(16, 8), num_classes=3)(torch.zeros(2, 16)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        inputs: int = 16,
        shape: Sequence[int] = (1, 8, 8),
        hidden: Sequence[int] = (64, 32),
        num_classes: int | None = None,
    ) -> None:
        """Build the stages."""
        super().__init__()
        self.inputs, self.num_classes = int(inputs), num_classes
        self.shape = as_image(shape, len(hidden))
        self.coarse = (hidden[0], self.shape[1] // 2 ** len(hidden), self.shape[2] // 2 ** len(hidden))
        self.first = nn.Linear(self.inputs, math.prod(self.coarse))
        self.labels = Labels(num_classes, hidden[0])
        sizes = [*hidden, hidden[-1]]
        self.stages = nn.ModuleList(nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1) for i in range(len(hidden)))
        self.last = nn.Conv2d(hidden[-1], self.shape[0], 3, padding=1)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, inputs)`` to ``(N, C, H, W)``."""
        check_rows(z, (self.inputs,), "ConvDecoder")
        h = self.first(z).reshape(len(z), *self.coarse)
        h = nn.functional.silu(h + as_channels(self.labels(label)))
        for stage in self.stages:
            h = nn.functional.silu(stage(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")))
        return self.last(h)


def as_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """A size or a shape as a shape.

    Raises:
        ValueError: not positive ints.
    """
    found = (shape,) if isinstance(shape, int) else tuple(shape)
    if not found or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in found):
        raise ValueError(f"a shape is one or several positive ints such as (16,), got {shape!r}")
    return found


def as_image(shape: Sequence[int], stages: int) -> tuple[int, ...]:
    """``(C, H, W)`` whose height and width can be halved ``stages`` times."""
    found = as_shape(shape)
    if len(found) != 3 or stages < 1 or found[1] % 2**stages or found[2] % 2**stages:
        raise ValueError(
            f"an image has shape (C, H, W) with H and W multiples of 2 to the number of stages, got {found} and "
            f"{stages} stages"
        )
    return found


def as_channels(shift: Tensor | float) -> Tensor | float:
    """``(N, C)`` as ``(N, C, 1, 1)``."""
    return shift[:, :, None, None] if isinstance(shift, Tensor) else shift


def check_rows(x: Tensor, shape: tuple[int, ...], owner: str) -> None:
    """Refuse rows of another shape."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{owner} was built for (N, {', '.join(map(str, shape))}) and got {tuple(x.shape)}")
