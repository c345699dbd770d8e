"""Weights on disk: what was saved is what is loaded, damage is named, nothing is unpickled."""

import json
import os
import subprocess
import sys

import pytest
import torch

from boltzmix.models import Diffusion, EnergyDiffusion, card, load, names, save
from boltzmix.models.load import WEIGHTS, build, classes

SPEC = {
    "class": "EnergyDiffusion",
    "arguments": {"event_shape": [2], "num_classes": 3, "sigma_range": [0.01, 10.0], "level_weight": 0.1},
    "net": {"class": "MLP", "arguments": {"dim": 2, "hidden": 8, "out": 1, "num_classes": 3}},
}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build(SPEC)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        model.core.loc.copy_(torch.tensor([1.0, 2.0]))
    save(model, "toy", tmp_path, SPEC, command="python -m boltzmix train toy", seed=0, metrics={})
    return model, tmp_path


def test_what_is_saved_is_what_is_loaded(saved):
    model, folder = saved
    state = torch.random.get_rng_state()
    found = load("toy", folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(found, EnergyDiffusion)
    assert not found.training
    assert found.sigma_range == (0.01, 10.0)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.given(label=1).energy(x), model.given(label=1).energy(x))
    assert names(folder) == ["toy"]
    assert card("toy", folder)["command"] == "python -m boltzmix train toy"
    assert sorted(os.listdir(folder)) == ["toy.json", "toy.safetensors"]


def test_unknown_names_list_the_known_ones(saved):
    with pytest.raises(ValueError, match="'tou'.*toy"):
        load("tou", saved[1])


def test_damaged_weights(saved):
    file = saved[1] / "toy.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"toy.safetensors is damaged: its SHA-256"):
        load("toy", saved[1])
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"toy.safetensors"):
        load("toy", saved[1])


def rewrite(folder, content=None, **changes):
    import hashlib

    described = json.loads((folder / "toy.json").read_text())
    if content is not None:
        (folder / "toy.safetensors").write_bytes(content)
        described["sha256"] = hashlib.sha256(content).hexdigest()
    described.update(changes)
    (folder / "toy.json").write_text(json.dumps(described))


def test_weights_that_do_not_fit(saved):
    folder = saved[1]
    spec = json.loads(json.dumps(SPEC))
    spec["net"]["arguments"]["hidden"] = 16
    rewrite(folder, model=spec)
    with pytest.raises(ValueError, match=r"does not fit the architecture(?s:.*)size mismatch"):
        load("toy", folder)
    rewrite(folder, model={**SPEC, "class": "Oracle"})
    with pytest.raises(ValueError, match="'Oracle'.*EnergyDiffusion"):
        load("toy", folder)


def test_non_finite_weights(saved):
    from safetensors.torch import save as serialise

    model, folder = saved
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors["core.net.first.weight"][0, 0] = float("nan")
    rewrite(folder, serialise(tensors))
    with pytest.raises(ValueError, match="NaN"):
        load("toy", folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": "x"}'])
def test_damaged_descriptions(saved, content):
    (saved[1] / "toy.json").write_text(content)
    with pytest.raises(ValueError, match=r"toy.json is damaged"):
        load("toy", saved[1])


def test_nothing_is_ever_unpickled(saved):
    """A pickle in place of the weights is refused, and its payload does not run."""
    import pickle

    folder = saved[1]
    marker = folder / "executed"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    rewrite(folder, pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load("toy", folder)
    assert not marker.exists()


def test_shipped_weights():
    scenes = {"scenes", "scenes16", "scenes-whole", "palettes"}
    plans = {name for name in names() if name == "obstacles" or name.startswith("pointmaze-")}
    assert set(names()) == {"bar", "circle", "digits", "digits-classifier", "line", "ring"} | scenes | plans
    files = sorted(WEIGHTS.iterdir())
    assert {f.suffix for f in files} == {".json", ".safetensors"}
    assert sum(f.stat().st_size for f in files if f.stem not in scenes | plans) < 3_000_000
    assert sum(f.stat().st_size for f in files if f.stem in plans) < 5_000_000
    assert sum(f.stat().st_size for f in files if f.stem in scenes) < 8_000_000
    for name in names():
        model, described = load(name), card(name)
        assert described["command"] == f"python -m boltzmix train {name}"
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert described["metrics"]["loss"] > 0
        assert not any("/" in str(v) for v in described.values() if isinstance(v, str))  # no machine's paths
    with pytest.raises(ValueError, match=r"bar, circle, digits, digits-classifier, line, "):
        load("rings")


def test_loading_does_not_depend_on_the_working_directory(tmp_path):
    program = "from boltzmix.models import load; print(load('ring').event_shape)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.stdout == "(2,)\n"


def test_score_models_load_too(tmp_path):
    spec = {"class": "Diffusion", "arguments": {"event_shape": [2]}, "net": {"class": "MLP", "arguments": {"dim": 2}}}
    save(build(spec), "score", tmp_path, spec)
    assert isinstance(load("score", tmp_path), Diffusion)


# ------------------------------------------------------------------------ build


def test_descriptions_are_built_wherever_they_stand():
    net = {"class": "MLP", "arguments": {"dim": 2, "hidden": 8}}
    beside = build({"class": "Diffusion", "arguments": {"event_shape": [2]}, "net": net})
    within = build({"class": "Diffusion", "arguments": {"event_shape": [2], "net": net}})
    assert str(beside) == str(within)
    assert build(net).last.out_features == 2
    assert beside.event_shape == (2,)


def test_every_public_class_is_known_and_nothing_else():
    from torch import nn

    from boltzmix import models

    known = classes()
    assert {"Diffusion", "EnergyDiffusion", "Classifier", "MLP", "UNet"} <= set(known)
    assert all(issubclass(kind, nn.Module) and kind.__module__.startswith("boltzmix.") for kind in known.values())
    public = {name: getattr(models.nets, name) for name in models.nets.__all__}
    assert all(known[name] is kind for name, kind in public.items() if isinstance(kind, type))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"class": "Difusion"}, "unknown class 'Difusion'; did you mean 'Diffusion'[?] known: .*Classifier.*UNet"),
        ({"class": "os.system", "arguments": {"command": "true"}}, "unknown class 'os.system'"),
        ({"class": "Linear", "arguments": {"in_features": 1, "out_features": 1}}, "unknown class 'Linear'"),
        ({"class": "nn"}, "unknown class 'nn'"),
        ({"class": "__loader__"}, "unknown class"),
        ({"class": "FitResult"}, "unknown class 'FitResult'"),
        ({"class": "MLP"}, "MLP also needs dim"),
        ({"class": "MLP", "arguments": {"dims": 2}}, "MLP takes no argument 'dims'; did you mean 'dim'"),
        ({"class": "MLP", "arguments": [2]}, "arguments of MLP are a dictionary"),
        ({"class": "MLP", "arguments": {"dim": 2}, "argument": {}}, r"\['argument'\] stands beside"),
        ({"class": "Diffusion", "arguments": {"net": {}}, "net": {}}, "net twice"),
        ({"class": "Diffusion", "arguments": {"event_shape": [2], "net": {"class": "Oracle"}}}, "'Oracle'"),
        ({"arguments": {}}, "a model is described by"),
        ({"class": 3}, "a model is described by"),
        ("MLP", "a model is described by"),
    ],
)
def test_descriptions_that_describe_nothing(spec, words):
    with pytest.raises(ValueError, match=words):
        build(spec)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    model = build(SPEC)
    wider = {**SPEC, "net": {**SPEC["net"], "arguments": {**SPEC["net"]["arguments"], "hidden": 9}}}
    with pytest.raises(ValueError, match=r"could not read these weights again: .* is \(8, .* in the model and \(9, "):
        save(model, "a", tmp_path, wider)
    with pytest.raises(ValueError, match="unknown class"):
        save(model, "a", tmp_path, {"class": "Nothing"})
    with pytest.raises(ValueError, match="label=1 is not saved with the weights"):
        save(model.given(label=1), "a", tmp_path, SPEC)
    assert not os.listdir(tmp_path)
