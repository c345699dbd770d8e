"""Recipes: what `python -m boltzmix train NAME` makes, and that the weights that ship are good."""

import dataclasses
import json

import pytest
import torch

from boltzmix.models import card, data, load, recipes
from boltzmix.models.load import names

TOYS = ("ring", "line", "circle", "bar")


def test_every_shipped_model_has_its_recipe_and_the_recipe_made_it():
    assert sorted(recipes.SHIPPED) == names()
    for name in names():
        described, recipe = card(name), recipes.RECIPES[name]
        assert described["model"] == json.loads(json.dumps(recipe.spec))
        assert described["settings"] == {**recipe.settings, "seed": described["seed"]}
        assert described["metrics"]["steps"] == recipe.settings["steps"]


def test_training_a_recipe_writes_what_load_reads(tmp_path, monkeypatch):
    quick = dataclasses.replace(recipes.RECIPES["ring"], judge=lambda model: {"judged": True})
    monkeypatch.setitem(recipes.RECIPES, "ring", quick)
    state = torch.random.get_rng_state()
    result = recipes.train("ring", tmp_path / "a", steps=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.steps == 3
    model = load("ring", tmp_path / "a")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.energy(x), result.model.energy(x))
    assert card("ring", tmp_path / "a")["metrics"]["judged"]
    assert card("ring", tmp_path / "a")["command"] == "python -m boltzmix train ring --steps 3"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["ring.json", "ring.jsonl", "ring.safetensors"]
    torch.manual_seed(7)
    recipes.train("ring", tmp_path / "b", steps=3)
    assert (tmp_path / "a/ring.safetensors").read_bytes() == (tmp_path / "b/ring.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"'rings'.*ring, line"):
        recipes.train("rings", tmp_path)


def exact_log_density(name, x, sigma):
    if name == "bar":
        half = torch.tensor([0.2, 1.0], dtype=torch.float64)
        inside = torch.special.ndtr((x + half) / sigma) - torch.special.ndtr((x - half) / sigma)
        return (inside / (2 * half)).log().sum(1)
    means, variance, weights = (torch.as_tensor(v, dtype=torch.float64) for v in data.components(name))
    total = variance + sigma**2
    distance = (x[:, None] - means).square().sum(-1)
    return torch.logsumexp(weights.log() - distance / (2 * total) - torch.log(2 * torch.pi * total), 1)


@pytest.mark.parametrize("name", TOYS)
def test_shipped_toys_know_their_density_at_every_level(name):
    """E = −log p up to a few hundredths where data are, at all levels: mode masses and log Z follow."""
    model = load(name)
    assert model.calibrated
    assert abs(card(name)["metrics"]["log_z_on_grid"]) < 0.05
    low, high = model.sigma_range
    for sigma in (low, 0.05, 0.2, 1.0, high):
        generator = torch.Generator().manual_seed(0)
        x = getattr(data, name)(4000, generator)
        x = x + sigma * torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            gap = model.energy(x, sigma).double() + exact_log_density(name, x.double(), torch.tensor(sigma).double())
        inner = gap.sort().values[20:-20]  # the bar's edges are steeper than any network
        assert abs(float(inner.mean())) < 0.05, (sigma, float(inner.mean()))
        assert float(inner.std()) < 0.15, (sigma, float(inner.std()))


def test_shipped_classifier_judges_well():
    pytest.importorskip("sklearn")
    x, label = data.digits("test")
    judge = load("digits-classifier")
    assert float((judge.predict(x) == label).double().mean()) > 0.97
    assert card("digits-classifier")["metrics"]["held_out_accuracy"] > 0.97


def test_shipped_digits_know_their_classes():
    """Bayes' rule with the ten class energies recognises held-out digits: their offsets mean something."""
    pytest.importorskip("sklearn")
    x, label = data.digits("test")
    model = load("digits")
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        energies = torch.stack([model.given(label=k).energy(noisy, 0.2) for k in range(10)])
    assert float((energies.argmin(0) == label).double().mean()) > 0.95
