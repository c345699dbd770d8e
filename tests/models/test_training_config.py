"""Runs described by a file: every example trains, mistakes are named, a killed run resumes, two processes are one."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from boltzmix.models import card, data, load
from boltzmix.models.training import config

RING = {
    "model": {
        "class": "EnergyDiffusion",
        "arguments": {"event_shape": [2]},
        "net": {"class": "MLP", "arguments": {"dim": 2, "hidden": 8, "depth": 1, "out": 1}},
    },
    "data": {"name": "ring"},
    "fit": {"steps": 4, "batch_size": 8},
}


def changed(path, value):
    """RING with another value at a.b.c; None removes the key."""
    found = json.loads(json.dumps(RING))
    *parents, last = path.split(".")
    place = found
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return found


@pytest.mark.parametrize("name", config.examples())
def test_every_example_trains_and_loads(name, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("zuko")
    (tmp_path / f"{name}.toml").write_text(config.example(name), encoding="utf-8")
    described = config.override(
        config.read(tmp_path / f"{name}.toml"),
        ["fit.steps=2", "fit.batch_size=4", f"output.dir={str(tmp_path / 'out')!r}"],
    )
    result, folder, written = config.run(described, name)
    model = load(written, folder)
    assert type(model).__name__ == described["model"]["class"]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in result.model.state_dict().items())
    assert card(written, folder)["data"] == described["data"]
    assert sorted(os.listdir(folder)) == [f"{written}.json", f"{written}.jsonl", f"{written}.safetensors"]


def test_the_same_run_as_toml_and_json(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RING))
    (tmp_path / "run.toml").write_text(
        "[model]\nclass = 'EnergyDiffusion'\narguments = { event_shape = [2] }\n"
        "[model.net]\nclass = 'MLP'\narguments = { dim = 2, hidden = 8, depth = 1, out = 1 }\n"
        "[data]\nname = 'ring'\n[fit]\nsteps = 4\nbatch_size = 8\n"
    )
    assert config.read(tmp_path / "run.json") == config.read(tmp_path / "run.toml") == RING


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.toml", "[model\n", "run.toml is not TOML: .*line 1"),
        ("run.json", "{", "run.json is not JSON: .*line 1"),
        ("run.json", "[]", "holds a list, a configuration has sections model, data, fit, output"),
        ("run.yaml", "", "ends in .toml or .json"),
        ("run.toml", b"\xff\xfe", "not TOML"),
    ],
)
def test_files_that_are_no_configurations(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        config.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file diffusion; write one with: .*--print-config diffusion"):
        config.read("diffusion")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("modell", {}, r"unknown section \[modell\]; did you mean 'model'[?] known: model, data, fit, output"),
        ("model", None, r"no section \[model\]"),
        ("fit", 3, "fit is a section with keys, got 3"),
        ("model.clas", "MLP", r"unknown key 'clas' in \[model\]; did you mean 'class'[?] known: class, arguments"),
        ("fit.learning_rate", 0.1, r"unknown key 'learning_rate' in \[fit\].*known: steps, batch_size, lr"),
        ("fit.batchsize", 1, r"unknown key 'batchsize' in \[fit\]; did you mean 'batch_size'"),
        ("fit.progress", True, "unknown key 'progress'"),
        ("fit.steps", None, r"\[fit\] needs steps"),
        ("fit.lr", "fast", "lr is a number, got 'fast'"),
        ("output.folder", "x", r"unknown key 'folder' in \[output\].*known: dir, name"),
        ("output.name", "a/b", r"\[output\] name is a file name without folders"),
        ("data.name", "rings", r"name = 'rings' is unknown; did you mean 'ring'"),
        ("data.name", None, "says one of name"),
        ("data.npz", "x.npz", "says one of name"),
        ("data.split", "test", r"\[data\] split means nothing for ring; known: labels, name, transforms"),
        ("data.labels", False, "ring has no labels"),
        ("data.transforms", {"flop": True}, r"unknown transform 'flop'.*did you mean 'flip'"),
        ("data.transforms", {"flip": 2}, "flip is switched on by flip = true, got 2"),
        ("data.transforms", {"noise": True}, "noise is its scale, a number, got True"),
        ("data", {"name": "mnist"}, "mnist.* needs folder"),
        ("model.loc", 0.5, 'loc = "data" measures'),
        ("model.device", "gpu", r"device is .auto., .cpu., .cuda.* got 'gpu'"),
        ("model.class", "Energy", "unknown class 'Energy'"),
        ("model.net.arguments.width", "wide", "."),
    ],
)
def test_mistakes_are_named(tmp_path, path, value, words):
    found = changed(path, value)
    if "output" not in found:
        found["output"] = {"dir": str(tmp_path)}
    with pytest.raises((ValueError, TypeError), match=words):
        config.run(found, "ring")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("setting", ["lr=3", "fit.lr", "=3", "fit.=3", "fit..lr=3", "fit.steps.more=3"])
def test_settings_of_another_form(setting):
    with pytest.raises(ValueError, match="--set"):
        config.override(RING, [setting])


def test_settings_change_values_and_add_keys():
    found = config.override(RING, ["fit.lr=1e-3", "model.net.arguments.hidden=16", "fit.precision=bf16", "x.y=[1, 2]"])
    assert found["fit"] == {"steps": 4, "batch_size": 8, "lr": 1e-3, "precision": "bf16"}
    assert found["model"]["net"]["arguments"]["hidden"] == 16
    assert found["x"] == {"y": [1, 2]}
    assert "lr" not in RING["fit"]


def test_data_sections(tmp_path):
    import numpy as np
    from PIL import Image

    for label in ("ant", "bee"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "pictures" / label / "1.png")
    (x, label), change = config.load_data({"folder": str(tmp_path / "pictures"), "size": [4, 4]})
    assert x.shape == (2, 3, 4, 4)
    assert label.tolist() == [0, 1]
    assert change is None
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(3, 2) % 5, label=np.arange(3))
    section = {"npz": str(tmp_path / "a.npz"), "keys": ["x", "label"], "transforms": {"rescale": 5, "noise": 0.0}}
    rows, change = config.load_data(section)
    moved = change(rows, torch.Generator())
    torch.testing.assert_close(moved[0], torch.tensor([[-1, -0.5], [0, 0.5], [1, -1]]))
    assert moved[1].tolist() == [0, 1, 2]
    rows, change = config.load_data({**section, "labels": False})
    torch.testing.assert_close(change(rows, torch.Generator()), moved[0])
    rows, change = config.load_data({"npz": str(tmp_path / "a.npz"), "keys": ["x", "label"], "labels": False})
    assert torch.equal(change(rows, torch.Generator()), rows[0])


def test_the_centre_is_that_of_the_data(tmp_path):
    pytest.importorskip("sklearn")
    found = changed("model.loc", "data")
    found["output"] = {"dir": str(tmp_path)}
    found["data"] = {"name": "grid"}
    result, *_ = config.run(found, "a")
    assert result.model.core.loc.abs().max() < 0.03  # 10,000 rows of standard deviation 0.71: 4 errors
    x, _ = data.digits()
    target = torch.nn.Module()
    target.core = torch.nn.Module()
    target.core.register_buffer("loc", torch.zeros(1, 8, 8))
    config._centre(target, "data", data.digits(), None, 0)
    torch.testing.assert_close(target.core.loc, x.mean(0))
    with pytest.raises(ValueError, match="Module has no centre"):
        config._centre(torch.nn.Module(), "data", x, None, 0)
    with pytest.raises(TypeError, match=r"loc measures the centre of real data, got torch.int64; .*data.transforms"):
        config._centre(target, "data", data.digit_levels(), None, 0)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    found = {**RING, "output": {"dir": str(tmp_path), "name": "a"}}
    (tmp_path / "a.checkpoint").write_bytes(b"")
    (tmp_path / "a.checkpoint.json").write_text(json.dumps({"model": RING["model"], "data": {"name": "line"}}))
    with pytest.raises(ValueError, match=r"another configuration: \[data\] was {'name': 'line'}"):
        config.run(found, "a")


# -------------------------------------------------------------- the command line


def command(*arguments, start=("-m",), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    full = [sys.executable, *start, "boltzmix", "train", *map(str, arguments)]
    return subprocess.Popen(full, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_killed_command_resumes_and_two_processes_are_one(tmp_path):
    """The command, killed and repeated; once more with two processes: the same file, byte for byte."""
    file = tmp_path / "my.toml"
    file.write_text(config.example("energy-diffusion"), encoding="utf-8")
    settings = ["--config", file, "--steps", 60, "--set", "fit.accumulate=2", "--set", "fit.checkpoint_every=1"]
    settings += ["--set", "fit.batch_size=64", "--set", "output.name=ring"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    two = command(*settings, "--out", tmp_path / "two", start=launcher)
    killed = command(*settings, "--out", tmp_path / "one")
    while killed.poll() is None and not (tmp_path / "one/ring.checkpoint").exists():
        pass
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "one/ring.safetensors").exists()
    for process in (command(*settings, "--out", tmp_path / "one"), two):
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert said.count("ring: 60 steps, loss") == 1  # one process speaks
    one, both = ((tmp_path / name / "ring.safetensors").read_bytes() for name in ("one", "two"))
    assert one == both
    described = card("ring", tmp_path / "two")
    assert described["command"].startswith("python -m boltzmix train --config my.toml --set fit.accumulate=2")
    assert described["settings"]["steps"] == 60
    assert sorted(os.listdir(tmp_path / "one")) == ["ring.json", "ring.jsonl", "ring.safetensors"]
    assert load("ring", tmp_path / "one").event_shape == (2,)
