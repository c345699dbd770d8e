"""What may be done to a batch before its loss: ``(batch, generator) -> batch``, for ``fit(transform=…)``.

A batch is ``x`` or ``(x, label)``; only x is changed, and a new tensor is returned.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from boltzmix.models.data.digits import inside_levels

Transform = Callable[[Tensor, torch.Generator], Tensor]


def flatten() -> Transform:
    """``(N, *event)`` to ``(N, D)``."""
    return lambda x, generator: x.flatten(1)


def flip() -> Transform:
    """Mirror each image left to right with probability one half."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
        return torch.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

    return apply


def noise(scale: float) -> Transform:
    """Add normal noise of this standard deviation."""
    if not scale >= 0:
        raise ValueError(f"noise is a standard deviation >= 0, got {scale!r}")
    return lambda x, generator: x + scale * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def dequantise(levels: int) -> Transform:
    """Integers k in 0…levels − 1 to ``2 (k + u) / levels − 1`` with u uniform on (0, 1): see ``bits_per_dim``."""
    _check_levels("dequantise", levels)
    if levels > 256:
        raise ValueError(f"dequantise keeps float32 exact up to 256 levels, got {levels}")

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        if x.is_floating_point() or int(x.min()) < 0 or int(x.max()) >= levels:
            raise ValueError(f"dequantise takes integers in 0…{levels - 1}, got {x.dtype} from {x.min()} to {x.max()}")
        return inside_levels(x, levels, generator)

    return apply


def rescale(levels: int) -> Transform:
    """Integers k in 0…levels − 1 to ``2 k / (levels − 1) − 1``."""
    _check_levels("rescale", levels)

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        if x.is_floating_point() or int(x.min()) < 0 or int(x.max()) >= levels:
            raise ValueError(f"rescale takes integers in 0…{levels - 1}, got {x.dtype} from {x.min()} to {x.max()}")
        return 2 * x.float() / (levels - 1) - 1

    return apply


def _check_levels(name: str, levels: Any) -> None:
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 2:
        raise ValueError(f"{name} is a number of levels >= 2, got {levels!r}")


TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "rescale": rescale,
    "dequantise": dequantise,
    "flip": flip,
    "noise": noise,
    "flatten": flatten,
}


def chain(*transforms: Transform) -> Callable[[Any, torch.Generator], Any]:
    """Transforms of x one after the other, as a transform of batches.

    Example:
        >>> import torch
        >>> change = chain(rescale(17), flatten())
        >>> x, label = change((torch.full((2, 1, 8, 8), 16), torch.zeros(2)), torch.Generator())
        >>> x.shape, float(x.max())
        (torch.Size([2, 64]), 1.0)
    """

    def apply(batch: Any, generator: torch.Generator) -> Any:
        x, rest = (batch, None) if isinstance(batch, Tensor) else (batch[0], tuple(batch[1:]))
        for transform in transforms:
            x = transform(x, generator)
        return x if rest is None else (x, *rest)

    return apply
