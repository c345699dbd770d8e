"""Data: the toys have the moments of their definitions, digits split without overlap."""

import gzip
import math
import struct
import sys

import pytest
import torch

from boltzmix.compose.errors import MissingExtra
from boltzmix.models import data

N = 100_000


def draw(name, seed=0, n=N):
    return getattr(data, name)(n, torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", ["ring", "line", "circle"])
def test_mixtures_have_the_moments_of_their_components(name):
    means, variance, weights = (torch.as_tensor(v, dtype=torch.float64) for v in data.components(name))
    x = draw(name)
    mean = weights @ means
    covariance = (means - mean).T @ (weights[:, None] * (means - mean)) + variance * torch.eye(2)
    error = (covariance.diagonal() / N).sqrt()
    assert ((x.mean(0) - mean).abs() < 4.5 * error).all()  # false positives: below 1e-4
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.03, atol=3e-3)
    nearest = torch.cdist(x, means).argmin(1).bincount(minlength=len(means)) / N
    if name != "line":  # the line's modes overlap
        assert (nearest - weights).abs().max() < 0.01


def test_definitions():
    ring, variance, weights = data.components("ring")
    torch.testing.assert_close(ring.norm(dim=1), torch.ones(8))
    assert math.isclose(variance, 0.15**2)
    assert weights.tolist() == [1 / 8] * 8
    line, variance, weights = data.components("line")
    torch.testing.assert_close(line[[0, -1]], torch.tensor([[-0.6, 0.8], [1.2, -0.4]]))
    torch.testing.assert_close(line.diff(dim=0), line.diff(dim=0)[:1].expand(5, 2))
    assert math.isclose(variance, 0.25**2)
    torch.testing.assert_close(weights, torch.linspace(0, 1, 6).softmax(0))
    circle, variance, _ = data.components("circle")
    torch.testing.assert_close(circle.norm(dim=1), torch.full((8,), 0.5))
    assert math.isclose(variance, 0.03**2)
    with pytest.raises(ValueError, match="'bar'"):
        data.components("bar")


def test_bar_is_uniform():
    x = draw("bar")
    assert (x.abs() <= torch.tensor([0.2, 1.0])).all()
    unit = x / torch.tensor([0.4, 2.0]) + 0.5
    for column in unit.T.sort().values:
        gap = (column - (torch.arange(N) + 0.5) / N).abs().max()
        assert gap < 2.0 / N**0.5  # Kolmogorov–Smirnov: 7e-4


def test_two_moons_are_centred_and_separate():
    x = data.two_moons(N, torch.Generator().manual_seed(0), noise=0.0)
    assert x.mean(0).abs().max() < 0.02
    upper = (x + torch.tensor([0.5, 0.25])).norm(dim=1) - 1
    lower = (x - torch.tensor([0.5, -0.25]) - torch.tensor([0.0, 0.5])).norm(dim=1) - 1
    assert torch.minimum(upper.abs(), lower.abs()).max() < 1e-5


@pytest.mark.parametrize("name", data.TOYS)
def test_same_seed_same_draw(name):
    assert torch.equal(draw(name, 3, 10), draw(name, 3, 10))
    assert not torch.equal(draw(name, 3, 10), draw(name, 4, 10))
    before = torch.random.get_rng_state()
    draw(name, 3, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_digits_split():
    pytest.importorskip("sklearn")
    (train, train_labels), (test, test_labels) = data.digits("train"), data.digits("test")
    assert train.shape == (1438, 1, 8, 8)
    assert test.shape == (359, 1, 8, 8)
    assert train.min() == -1
    assert train.max() == 1
    assert test_labels.bincount().min() >= 35
    assert (train_labels.bincount() / 4 - test_labels.bincount()).abs().max() < 1
    every = torch.cat([train, test])
    assert len(every.flatten(1).unique(dim=0)) == 1797  # no image is in both
    again, labels = data.digits("test")
    assert torch.equal(again, test)
    assert torch.equal(labels, test_labels)
    assert not torch.equal(data.digits("test", seed=1)[0], test)
    with pytest.raises(ValueError, match="'valid'"):
        data.digits("valid")


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[digits\]"') as caught:
        data.digits()
    assert "\n" not in str(caught.value)


def test_levels_are_the_pixels_of_the_images():
    pytest.importorskip("sklearn")
    for split in ("train", "test"):
        (levels, labels), (images, same) = data.digit_levels(split, 3), data.digits(split, 3)
        assert levels.dtype == torch.long
        assert levels.unique().tolist() == list(range(17))
        assert torch.equal(levels.float() / 8 - 1, images)
        assert torch.equal(labels, same)
    with pytest.raises(ValueError, match="'valid'"):
        data.digit_levels("valid")


def test_dequantised_digits_are_rows_of_the_split_with_uniform_noise_inside_their_levels():
    pytest.importorskip("sklearn")
    stream = data.dequantised_digits("test", seed=2)
    x, label = stream(20_000, torch.Generator().manual_seed(0))
    assert x.shape == (20_000, 1, 8, 8)
    assert x.min() > -1
    assert x.max() < 1
    v = (x.double() + 1) * 17 / 2
    levels, labels = data.digit_levels("test", 2)
    known = {(*row.flatten().tolist(), int(k)) for row, k in zip(levels, labels, strict=True)}
    drawn = [(*row.flatten().tolist(), int(k)) for row, k in zip(v.floor().long(), label, strict=True)]
    assert set(drawn) == known  # 359 rows: one is missed with probability 359 exp(-20000 / 359) < 1e-21
    u = (v - v.floor()).flatten()[::7].sort().values
    gap = (u - (torch.arange(len(u)) + 0.5) / len(u)).abs().max()
    assert gap < 2.0 / len(u) ** 0.5  # Kolmogorov–Smirnov: 7e-4
    again, _ = data.dequantised_digits("test", seed=2)(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(again, x)


def test_bits_per_dim_are_those_of_the_levels():
    """For one pixel: a density that is constant inside each level gives exactly the entropy of the levels."""
    p = torch.softmax(torch.randn(17, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0)
    entropy = -(p * p.log2()).sum()
    nll = -(p * (p * 17 / 2).log()).sum()  # the density of x = 2(k + u)/17 − 1 on level k is p_k · 17/2
    assert data.bits_per_dim(float(nll), dim=1) == pytest.approx(float(entropy), rel=1e-12)
    assert data.bits_per_dim(64 * math.log(2)) == pytest.approx(math.log2(17), rel=1e-12)  # uniform on [−1, 1)^64
    wrong = -(p * torch.full((17,), 0.5, dtype=torch.float64).log()).sum()
    assert data.bits_per_dim(float(wrong), dim=1) > entropy  # Gibbs' inequality


# ----------------------------------------------------------------- image files


def picture(path, value=0, mode="L", size=(4, 3), **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def test_folders_of_images(tmp_path):
    from PIL import Image

    picture(tmp_path / "zebra/b.png", 255)
    picture(tmp_path / "ant/deep/er.png", 0)
    red = Image.new("RGB", (4, 3))
    red.putpixel((3, 0), (255, 51, 0))  # right-most of the first row
    red.save(tmp_path / "zebra/a.png")
    x, label, names = data.image_folder(tmp_path)
    assert names == ("ant", "zebra")
    assert label.tolist() == [0, 1, 1]
    assert x.shape == (3, 3, 3, 4)
    assert x[0].unique().tolist() == [-1]
    torch.testing.assert_close(x[1, :, 0, 3], torch.tensor([1.0, -0.6, -1.0]))
    assert (x[1].flatten() > -1).sum() == 2
    assert x[2].unique().tolist() == [1]
    grey = data.image_folder(tmp_path / "zebra", channels=1)
    assert grey.x.shape == (2, 1, 3, 4)
    assert grey.names == ("zebra",)
    assert grey.label.tolist() == [0, 0]


def test_sizes_cover_and_crop_around_the_centre(tmp_path):
    from PIL import Image

    image = Image.new("L", (12, 4))
    for column in range(4, 8):
        for row in range(4):
            image.putpixel((column, row), 255)  # the middle third is white
    image.save(tmp_path / "wide.png")
    assert data.image_folder(tmp_path, 4, 1).x.unique().tolist() == [1]
    assert data.image_folder(tmp_path, (2, 6), 1).x.shape == (1, 1, 2, 6)
    picture(tmp_path / "other.png", size=(5, 5))
    with pytest.raises(ValueError, match=r"wide.png is 4 by 12 pixels and .*other.png 5 by 5.*size="):
        data.image_folder(tmp_path, channels=1)
    for size in (0, (3,), 2.5, (4, -1)):
        with pytest.raises((ValueError, TypeError)):
            data.image_folder(tmp_path, size)
    with pytest.raises(ValueError, match="channels is 1, 3 or 4, got 2"):
        data.image_folder(tmp_path, channels=2)


def test_turned_photographs_are_turned_back(tmp_path):
    from PIL import Image

    image = Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    image.save(tmp_path / "a.png", exif=exif)
    x = data.image_folder(tmp_path, channels=1).x
    assert x.shape == (1, 1, 4, 2)
    assert float(x[0, 0, 0, 1]) == 1


def test_files_that_are_no_images_are_named(tmp_path):
    for k in range(3):
        picture(tmp_path / f"cats/{k}.png")
    (tmp_path / "cats/notes.txt").write_text("not an image")
    picture(tmp_path / "cats/cut.png", size=(500, 500), mode="RGB")
    content = (tmp_path / "cats/cut.png").read_bytes()
    (tmp_path / "cats/cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"2 of 5 files cannot be used: .*cut.png.*notes.txt.*none is left out"):
        data.image_folder(tmp_path)


def test_images_that_would_lose_something_are_refused(tmp_path):
    picture(tmp_path / "a/clear.png", (0, 0, 0, 0), "RGBA")
    with pytest.raises(ValueError, match=r"clear.png \(it has transparency; use channels=4"):
        data.image_folder(tmp_path)
    assert data.image_folder(tmp_path, channels=4).x.shape == (1, 4, 3, 4)
    picture(tmp_path / "b/deep.png", 40_000, "I;16")
    with pytest.raises(ValueError, match=r"deep.png \(mode I;16, which is not eight bits"):
        data.image_folder(tmp_path / "b")


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        data.image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        data.image_folder(tmp_path)
    picture(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"b holds no images"):
        data.image_folder(tmp_path)
    picture(tmp_path / "b/1.png")
    picture(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"files beside its class folders \(.*loose.png\)"):
        data.image_folder(tmp_path)


# ----------------------------------------------------------------- NumPy files


def test_arrays(tmp_path):
    import numpy as np

    x, label, pixels = np.linspace(0, 1, 6).reshape(3, 2), np.arange(3, dtype="int32"), np.zeros((3, 2), "uint8")
    np.savez(tmp_path / "a.npz", x=x, label=label, pixels=pixels)
    found = data.npz(tmp_path / "a.npz", ("x", "label", "pixels"))
    assert [t.dtype for t in found] == [torch.float64, torch.long, torch.uint8]
    assert torch.equal(found[0], torch.from_numpy(x))
    assert data.npz(tmp_path / "a.npz", ("x",), torch.float32)[0].dtype == torch.float32
    assert isinstance(data.npz(tmp_path / "a.npz", "x"), torch.Tensor)
    np.save(tmp_path / "one.npy", x.astype(">f4"))
    assert torch.equal(data.npz(tmp_path / "one.npy"), torch.from_numpy(x).float())
    np.savez_compressed(tmp_path / "one.npz", only=x)
    assert torch.equal(data.npz(tmp_path / "one.npz"), torch.from_numpy(x))


def test_arrays_that_cannot_be_read(tmp_path):
    import numpy as np

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.zeros(2))
    np.save(tmp_path / "a.npy", np.zeros(2))
    np.save(tmp_path / "object.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", x=np.array([Payload()], dtype=object))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-40])
    (tmp_path / "none.npz").write_bytes(b"")
    for name, keys, words in (
        ("a.npz", None, r"a.npz holds x, y; say which with keys="),
        ("a.npz", ("x", "z"), r"a.npz holds no z; it holds x, y"),
        ("a.npy", "x", "leave out keys="),
        ("object.npy", None, "object.npy cannot be read .* without unpickling"),
        ("object.npz", None, "object.npz cannot be read .* without unpickling.*numeric dtype"),
        ("text.npy", None, "text.npy holds an array of <U1"),
        ("cut.npz", None, "cut.npz cannot be read"),
        ("none.npz", None, "none.npz cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            data.npz(tmp_path / name, keys)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match="no file .*absent.npz"):
        data.npz(tmp_path / "absent.npz")


# -------------------------------------------------- files of well-known data sets


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + bytes(array.flatten().tolist())


def test_idx_files(tmp_path):
    images = torch.arange(2 * 3 * 5).reshape(2, 3, 5) * 8
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(torch.tensor([7, 9]))))
    x, label = data.mnist(tmp_path)
    assert x.shape == (2, 1, 3, 5)
    torch.testing.assert_close(x[:, 0], images / 127.5 - 1)
    assert label.tolist() == [7, 9]
    assert torch.equal(data.mnist(tmp_path, levels=True)[0][:, 0], images)
    with pytest.raises(FileNotFoundError, match=r"nothing is downloaded.*place t10k-images-idx3-ubyte \(or .*gz\)"):
        data.mnist(tmp_path, "test")
    with pytest.raises(ValueError, match="'valid'"):
        data.mnist(tmp_path, "valid")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte", lambda whole: whole[:-1], "29 bytes where its header says 30"),
        ("train-images-idx3-ubyte", lambda whole: b"", "no IDX file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", lambda whole: b"\0\0\x0d" + whole[3:], "no IDX file of bytes"),
        ("train-labels-idx1-ubyte", lambda whole: idx(torch.zeros(3).long()), "2 train images and 3 labels"),
    ],
)
def test_damaged_idx_files(tmp_path, name, content, words):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(torch.zeros(2, 3, 5).long()))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(2).long()))
    (tmp_path / name).write_bytes(content((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=words):
        data.mnist(tmp_path)


def test_a_damaged_archive(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(torch.zeros(2, 3, 5).long()))[:-9])
    with pytest.raises(ValueError, match="gz is damaged"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_files(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    image = torch.zeros(3, 32, 32, dtype=torch.long)
    image[0, 0, 31], image[2, 31, 0] = 255, 51  # red at the upper right, blue at the lower left
    for k in range(1, 6):
        (folder / f"data_batch_{k}.bin").write_bytes(bytes([k]) + bytes(image.flatten().tolist()))
    x, label = data.cifar10(tmp_path)
    assert label.tolist() == [1, 2, 3, 4, 5]
    torch.testing.assert_close(x, (image / 127.5 - 1).expand(5, 3, 32, 32))
    assert torch.equal(data.cifar10(tmp_path, levels=True)[0][3], image)
    with pytest.raises(FileNotFoundError, match=r"place test_batch.bin, from CIFAR-10's binary version"):
        data.cifar10(tmp_path, "test")
    (folder / "data_batch_3.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="data_batch_3.bin is damaged: 3 bytes"):
        data.cifar10(tmp_path)
    (folder / "data_batch_3.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="data_batch_3.bin is damaged: it holds a label above 9"):
        data.cifar10(tmp_path)


# ------------------------------------------------------------------ transforms


def change(name, *arguments):
    made = data.TRANSFORMS[name](*arguments)
    return lambda x, seed=0: made(x, torch.Generator().manual_seed(seed))


def test_transforms():
    x = torch.randn(200, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(change("flatten")(x), x.reshape(200, 6))
    flipped = change("flip")(x)
    mirrored = (flipped != x).flatten(1).any(1)
    assert torch.equal(flipped[mirrored], x[mirrored].flip(-1))
    assert 70 < mirrored.sum() < 130  # false positives: below 1e-4
    noisy = change("noise", 0.1)(x) - x
    assert 0.09 < noisy.std() < 0.11
    levels = torch.arange(17).repeat(300, 1)
    torch.testing.assert_close(change("rescale", 17)(levels), levels / 8 - 1)
    dequantised = change("dequantise", 17)(levels)
    assert torch.equal(((dequantised.double() + 1) * 8.5).floor().long(), levels)
    assert abs(float(((dequantised + 1) * 8.5 - levels).mean()) - 0.5) < 0.02
    for name in ("rescale", "dequantise"):
        with pytest.raises(ValueError, match="integers in 0…15"):
            change(name, 16)(levels)
        with pytest.raises(ValueError, match="integers in 0…16, got torch.float32"):
            change(name, 17)(levels.float())
        with pytest.raises(ValueError, match="levels >= 2, got 1"):
            change(name, 1)
    assert change("dequantise", 256)(torch.full((1000, 1000), 255)).max() < 1  # not rounded up
    with pytest.raises(ValueError, match="up to 256 levels, got 257"):
        change("dequantise", 257)
    with pytest.raises(ValueError, match="standard deviation >= 0"):
        change("noise", -1.0)


def test_a_chain_leaves_labels_alone():
    made = data.chain(data.TRANSFORMS["rescale"](3), data.TRANSFORMS["flatten"]())
    x, label = torch.ones(4, 2, 2, dtype=torch.long), torch.arange(4)
    found, same = made((x, label), torch.Generator())
    assert torch.equal(found, torch.zeros(4, 4))
    assert same is label
    assert torch.equal(made(x, torch.Generator()), found)
