"""Data: the toys have the moments of their definitions, digits split without overlap."""

import math
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
