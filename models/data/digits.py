"""scikit-learn's handwritten digits: as images, as grey levels, and as a stream with noise inside the levels."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra

Split = Literal["train", "test"]
Stream = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def digits(split: Split = "train", seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, ``(N, 1, 8, 8)`` in [−1, 1], and their labels ``(N,)``.

    One fifth of each class (359 images in all) is held out; the split depends on ``seed`` alone.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    levels, labels = digit_levels(split, seed)
    return levels.float() / 8 - 1, labels


def digit_levels(split: Split = "train", seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same images as grey levels: long ``(N, 1, 8, 8)`` in 0…16, and their labels ``(N,)``.

    For models of discrete variables; the split is that of :func:`digits`.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra('the digits need scikit-learn: pip install "boltzmix[digits]"') from error
    found: Any = load_digits()
    levels = torch.from_numpy(found.images).long()[:, None]
    labels = torch.from_numpy(found.target).long()
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(10):
        index = torch.nonzero(labels == label)[:, 0]
        index = index[torch.randperm(len(index), generator=generator)]
        held_out = round(len(index) / 5)
        chosen.append(index[:held_out] if split == "test" else index[held_out:])
    index = torch.cat(chosen).sort().values
    return levels[index], labels[index]


def dequantised_digits(split: Split = "train", seed: int = 0) -> Stream:
    r"""An endless stream of digits with uniform noise inside their grey levels, for models of densities.

    Rows are drawn at random with replacement. A pixel of level k becomes x = 2(k + u)/17 − 1 with u uniform on
    (0, 1), so x fills (−1, 1) and has a bounded density (Theis, van den Oord and Bethge, 2016). In the units of v =
    k + u the density is p(x) (2/17)^64, and Jensen's inequality over u gives

    .. math:: -\log P(k) \le E_u[-\log p(x)] + 64 \log(17/2),

    so (nll + 64 log(17/2)) / (64 log 2) bits per pixel bound what the 17-level image costs: :func:`bits_per_dim`.

    Args:
        split, seed: as for :func:`digits`.

    Returns:
        ``(n, generator) -> (x, label)``, x ``(n, 1, 8, 8)``, on the generator's device.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    levels, labels = digit_levels(split, seed)

    def stream(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        device = torch.device("cpu") if generator is None else generator.device
        rows = torch.randint(len(levels), (n,), generator=generator, device=device)
        return inside_levels(levels.to(device)[rows], 17, generator), labels.to(device)[rows]

    return stream


def inside_levels(k: Tensor, levels: int, generator: torch.Generator | None) -> Tensor:
    """``2 (k + u) / levels − 1`` in (−1, 1), with u uniform on (0, 1).

    u is the middle of one of 2^14 equal parts: float32 holds k + u without rounding it up to the next level.
    """
    parts = 1 << 14
    u = (torch.randint(parts, k.shape, generator=generator, device=k.device) + 0.5) / parts
    return 2 * (k + u) / levels - 1


def bits_per_dim(nll: float, dim: int = 64, levels: int = 17) -> float:
    """Bits per pixel of a quantised image from −log p of its dequantised version on (−1, 1), in nats.

    Example:
        >>> import math
        >>> round(2 ** bits_per_dim(64 * math.log(2)))  # the uniform density on (−1, 1)^64 knows nothing: log2(17) bits
        17
    """
    return (nll + dim * math.log(levels / 2)) / (dim * math.log(2))
