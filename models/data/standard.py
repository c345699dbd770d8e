"""MNIST-like and CIFAR-10 files that are already on this machine, in the formats of their authors.

Nothing is downloaded, and of CIFAR-10 the binary version is read, since the Python version is a pickle.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from boltzmix.models.data.digits import Split

_CIFAR = 3073  # a label and 3 · 32 · 32 pixels


def mnist(folder: str | os.PathLike[str], split: Split = "train", levels: bool = False) -> tuple[Tensor, Tensor]:
    """Images and labels in IDX files: MNIST, Fashion-MNIST, KMNIST.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``.
        split: ``"train"`` or ``"test"``.
        levels: long grey levels 0…255 in place of numbers in [−1, 1].

    Returns:
        Images ``(N, 1, H, W)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: a file is not there; the message says which goes where.
        ValueError: a file is damaged.
    """
    part = {"train": "train", "test": "t10k"}[_split(split)]
    images = _idx(Path(folder), f"{part}-images-idx3-ubyte", 3)
    labels = _idx(Path(folder), f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder} holds {len(images)} {split} images and {len(labels)} labels: files of two sets?")
    return _scaled(images[:, None], levels), labels.long()


def _idx(folder: Path, name: str, dimensions: int) -> Tensor:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            break
    else:
        raise FileNotFoundError(
            f"nothing is downloaded for you: place {name} (or {name}.gz), from the authors of the data set, in {folder}"
        )
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}; fetch it again") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{file} is no IDX file of bytes in {dimensions} dimensions; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{file} is damaged: {len(content) - start} bytes where its header says {math.prod(shape)}; fetch it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def cifar10(folder: str | os.PathLike[str], split: Split = "train", levels: bool = False) -> tuple[Tensor, Tensor]:
    """CIFAR-10 in its binary version.

    Args:
        folder: holds ``data_batch_1.bin`` … ``data_batch_5.bin`` and ``test_batch.bin``, or the folder
            ``cifar-10-batches-bin`` with them.
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        levels: long levels 0…255 in place of numbers in [−1, 1].

    Returns:
        Images ``(N, 3, 32, 32)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: a file is not there; the message says which goes where.
        ValueError: a file is damaged.
    """
    names = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}[_split(split)]
    place = Path(folder)
    if (place / "cifar-10-batches-bin").is_dir():
        place = place / "cifar-10-batches-bin"
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"nothing is downloaded for you: place {', '.join(missing)}, from CIFAR-10's binary version "
            f"(cifar-10-binary.tar.gz), in {place}"
        )
    rows = []
    for name in names:
        content = (place / name).read_bytes()
        if not content or len(content) % _CIFAR:
            raise ValueError(
                f"{place / name} is damaged: {len(content)} bytes, no multiple of {_CIFAR}; fetch it again"
            )
        rows.append(torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, _CIFAR))
        if int(rows[-1][:, 0].max()) > 9:
            raise ValueError(f"{place / name} is damaged: it holds a label above 9; fetch it again")
    table = torch.cat(rows)
    return _scaled(table[:, 1:].reshape(-1, 3, 32, 32), levels), table[:, 0].long()


def _split(split: str) -> str:
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', got {split!r}")
    return split


def _scaled(pixels: Tensor, levels: bool) -> Tensor:
    return pixels.long() if levels else pixels.float() / 127.5 - 1
