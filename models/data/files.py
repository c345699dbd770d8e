"""Data in files: folders of images, and NumPy's npz and npy. Nothing is unpickled and nothing is left out silently."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa", "RGBX"}


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
        x: ``(N, C, H, W)`` in [−1, 1].
        label: long ``(N,)``.
        names: what the labels mean.
    """

    x: Tensor
    label: Tensor
    names: tuple[str, ...]


def image_folder(path: str | os.PathLike[str], size: int | tuple[int, int] | None = None, channels: int = 3) -> Images:
    """All images of a folder; the names of its subfolders are the labels, in alphabetical order.

    A folder without subfolders is one class, named after it. Subfolders may have folders within. Images are turned as
    their EXIF orientation says.

    Args:
        path: the folder.
        size: height and width, or one number for both: images are scaled until they cover it and cropped around the
            centre. None keeps them as they are, and they must then agree.
        channels: 1 for grey, 3 for colour, 4 for colour with opacity.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images; files that are no readable images, which are named; images of different sizes without
            ``size``; more than eight bits per channel, or transparency without ``channels=4``, which would be lost.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp()) / "cats"
        >>> folder.mkdir()
        >>> Image.new("L", (5, 4), 255).save(folder / "white.png")
        >>> x, label, names = image_folder(folder.parent, size=4, channels=1)
        >>> x.shape, float(x.min()), names
        (torch.Size([1, 1, 4, 4]), 1.0, ('cats',))
    """
    if channels not in _MODES:
        raise ValueError(f"channels is 1, 3 or 4, got {channels!r}")
    wanted = _size(size)
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    groups = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    loose = sorted(entry for entry in folder.iterdir() if not entry.is_dir())
    if groups and loose:
        raise ValueError(
            f"{folder} holds files beside its class folders ({_some(loose)}); move them into a class, or away"
        )
    files = [(0, file) for file in loose]
    for label, group in enumerate(groups):
        inside = sorted(file for file in group.rglob("*") if not file.is_dir())
        if not inside:
            raise ValueError(f"{group} holds no images; fill it or remove it")
        files += [(label, file) for file in inside]
    if not files:
        raise ValueError(f"{folder} holds no images")
    images, bad = [], []
    for _, file in files:
        try:
            images.append(_image(file, wanted, channels))
        except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for some broken files
            bad.append(f"{file} ({error})")
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(files)} files cannot be used: {_some(bad)}. Convert or remove them; none is left out "
            "silently"
        )
    for (_, file), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{file} is {image.shape[1]} by {image.shape[2]} pixels and {files[0][1]} {images[0].shape[1]} by "
                f"{images[0].shape[2]} (height by width): pass size= to bring all to one"
            )
    names = tuple(group.name for group in groups) or (folder.resolve().name,)
    return Images(torch.stack(images), torch.tensor([label for label, _ in files]), names)


def _image(file: Path, size: tuple[int, int] | None, channels: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        opened = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    with opened:
        if opened.mode not in _EIGHT_BITS:
            raise ValueError(f"mode {opened.mode}, which is not eight bits per channel")
        transparent = opened.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in opened.info
        if transparent and channels != 4:
            raise ValueError("it has transparency; use channels=4, or flatten it")
        picture: Any = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, channels)
    return pixels.movedim(2, 0).float() / 127.5 - 1


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in both):
        raise ValueError(f"size is a positive int, or (height, width), got {size!r}")
    return both


def _some(items: Sequence[object], most: int = 10) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def npz(
    path: str | os.PathLike[str], keys: str | Sequence[str] | None = None, dtype: torch.dtype | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Arrays of a NumPy file, ``.npz`` or ``.npy``.

    Args:
        path: the file.
        keys: which arrays of an ``.npz``: a name for one tensor, several for a tuple. None where there is only one.
        dtype: what floating-point arrays are converted to; None keeps theirs. Integers become long, except bytes,
            which stay uint8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, arrays of objects (which would have to be unpickled), or a missing name.

    Example:
        >>> import tempfile, numpy
        >>> file = Path(tempfile.mkdtemp()) / "points.npz"
        >>> numpy.savez(file, x=numpy.zeros((5, 2)), label=numpy.arange(5))
        >>> [t.dtype for t in npz(file, ("x", "label"), torch.float32)]
        [torch.float32, torch.int64]
    """
    import zipfile

    import numpy as np

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        found: Any = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            if keys is not None:
                raise ValueError(f"{file} is one array without a name; leave out keys=")
            return _tensor(found, file, dtype)
        with found:
            names = list(found.files)
            if keys is None and len(names) != 1:
                raise ValueError(f"{file} holds {', '.join(names) or 'nothing'}; say which with keys=")
            wanted = names if keys is None else [keys] if isinstance(keys, str) else list(keys)
            missing = [key for key in wanted if key not in names]
            if missing:
                raise ValueError(f"{file} holds no {', '.join(missing)}; it holds {', '.join(names) or 'nothing'}")
            tensors = tuple(_tensor(found[key], file, dtype) for key in wanted)
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        if str(file) in str(error):
            raise
        advice = "save the array with a numeric dtype" if "allow_pickle" in str(error) else "write it again"
        raise ValueError(f"{file} cannot be read as NumPy arrays without unpickling: {error}; {advice}") from error
    return tensors[0] if keys is None or isinstance(keys, str) else tensors


def _tensor(array: Any, file: Path, dtype: torch.dtype | None) -> Tensor:
    kind = array.dtype
    if kind.kind in "iub" and kind.name != "uint8":
        return torch.from_numpy(array.astype("int64"))
    if kind.kind not in "fu":
        raise ValueError(f"{file} holds an array of {kind}, which is no array of numbers")
    tensor = torch.from_numpy(array.astype(kind.newbyteorder("=")))  # torch knows the machine's byte order only
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
