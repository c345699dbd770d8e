"""Training: exact resume, determinism, errors that stop, files that are whole."""

import json
import os

import pytest
import torch
from torch import nn

from boltzmix.compose.errors import NonFinite
from boltzmix.models import Classifier, Diffusion, EnergyDiffusion, data, fit
from boltzmix.models.fit import _Batches
from boltzmix.models.nets import MLP


def toy(seed=0, family=EnergyDiffusion, num_classes=None):
    torch.manual_seed(seed)
    net = MLP(2, hidden=8, depth=1, out=1 if family is EnergyDiffusion else None, num_classes=num_classes)
    return family(net, (2,), num_classes=num_classes)


def labelled(n=50):
    generator = torch.Generator().manual_seed(0)
    return data.ring(n, generator), torch.randint(0, 3, (n,), generator=generator)


SETTINGS = {"steps": 24, "batch_size": 16, "lr": 1e-2, "ema": 0.9, "seed": 5, "log_every": 4, "checkpoint_every": 6}


class Killed(Exception):
    pass


def kill_at(model, call):
    """Make the loss raise at its ``call``-th evaluation, as a kill would end the run there."""
    original, calls = model.loss, []

    def loss(batch, generator):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return original(batch, generator)

    object.__setattr__(model, "loss", loss)
    return model


@pytest.mark.parametrize("kind", ["stream", "stored"])
def test_resume_after_a_kill_is_bit_for_bit(tmp_path, kind):
    source = data.ring if kind == "stream" else labelled()
    make = (lambda seed: toy(seed)) if kind == "stream" else (lambda seed: toy(seed, Diffusion, 3))
    whole = make(1)
    straight = fit(whole, source, **SETTINGS, metrics=tmp_path / "whole.jsonl")
    file, log = tmp_path / "run.safetensors", tmp_path / "run.jsonl"
    with pytest.raises(Killed):
        fit(kill_at(make(1), 14), source, **SETTINGS, checkpoint=file, metrics=log)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [4, 8, 12]
    resumed = make(2)  # other initial weights: everything must come from the checkpoint
    torch.manual_seed(99)
    result = fit(resumed, source, **SETTINGS, checkpoint=file, metrics=log)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert result.loss == straight.loss

    def records(path):
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]

    assert records(log) == records(tmp_path / "whole.jsonl")
    assert [r["step"] for r in records(log)] == [4, 8, 12, 16, 20, 24]
    assert sorted(os.listdir(tmp_path)) == ["run.jsonl", "run.safetensors", "whole.jsonl"]  # no temporary files


def test_a_finished_run_resumes_to_its_result(tmp_path):
    first, again = toy(1), toy(2)
    fit(first, data.ring, **SETTINGS, checkpoint=tmp_path / "c")
    result = fit(again, data.ring, **SETTINGS, checkpoint=tmp_path / "c")
    assert result.steps == 24
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    results = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        model = toy()
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        fit(model, data.ring, **{**SETTINGS, "seed": seed})
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_average_of_the_weights_is_what_stays():
    """With a decay of 0 the last weights stay; with the average they are the running mean of the path."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
            self.path = []

        def loss(self, batch, generator):
            self.path.append(float(self.w.detach()))
            return (self.w - 1).square().sum()

    rows = torch.zeros(4, 1)
    last, average = Line(), Line()
    fit(last, rows, steps=50, batch_size=2, ema=0.0, lr=0.05)
    fit(average, rows, steps=50, batch_size=2, ema=0.5, lr=0.05)
    path = [*average.path[1:], float(last.w.detach())]
    want = 0.0
    for step, w in enumerate(path):
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * w
    assert float(average.w.detach()) == pytest.approx(want, rel=1e-12)
    assert float(average.w.detach()) != pytest.approx(path[-1], rel=1e-6)


def test_training_lowers_the_loss():
    """On data far narrower than sigma_data the Gaussian base is wrong and must be learned away."""
    model = toy()
    result = fit(model, 0.05 * data.ring(500, torch.Generator().manual_seed(0)), steps=200, batch_size=128, lr=1e-2)
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]
    assert result.model is model
    assert all(p.grad is None for p in model.parameters())


def test_classifier_learns():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (64,), generator=generator)
    x = torch.full((64, 1, 8, 8), -1.0)
    x[label == 1, :, 2:6, 2:6] = 1.0
    model = Classifier(hidden=(4, 8), num_classes=2)
    fit(model, (x, label), steps=60, batch_size=32, lr=1e-2, ema=0.9)
    model.eval()
    assert (model.predict(x) == label).float().mean() == 1
    torch.testing.assert_close(model.log_prob(x).exp().sum(1), torch.ones(64))
    with pytest.raises(ValueError, match=r"\(N, 1, 8, 8\)"):
        model.predict(torch.zeros(3, 8, 8))


def test_augmentation_shifts_by_at_most_one_pixel():
    model = Classifier(noise=0.0)
    x = torch.full((500, 1, 8, 8), -1.0)
    x[:, 0, 3, 4] = 1.0
    moved = model._augment(x, torch.Generator().manual_seed(0))
    _, _, rows, columns = torch.nonzero(moved == 1, as_tuple=True)
    assert moved.shape == x.shape
    assert (moved == 1).sum() == 500
    assert {(int(r), int(c)) for r, c in zip(rows, columns, strict=True)} == {
        (r, c) for r in (2, 3, 4) for c in (3, 4, 5)
    }


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_stops_and_is_named(tmp_path, what):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.calls = 0

        def loss(self, batch, generator):
            self.calls += 1
            if self.calls < 8:
                return self.w.square().sum()
            return self.w.sum() * float("nan") if what == "loss" else (self.w - self.w.detach()).sum().sqrt()

    model = Breaks()
    with pytest.raises(NonFinite, match=f"{what}.* at step 7"):
        fit(
            model, torch.zeros(4, 1), steps=20, batch_size=2, log_every=1, checkpoint_every=1, checkpoint=tmp_path / "c"
        )
    assert torch.isfinite(model.w).all()
    from safetensors import safe_open

    with safe_open(tmp_path / "c", framework="pt") as file:
        assert json.loads(file.metadata()["boltzmix"])["step"] == 7


def test_checkpoints_of_other_runs_and_other_files_are_refused(tmp_path):
    file = tmp_path / "c"
    fit(toy(), data.ring, **SETTINGS, checkpoint=file)
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.01 there, 0.02 here\)"):
        fit(toy(), data.ring, **{**SETTINGS, "lr": 0.02}, checkpoint=file)
    with pytest.raises(ValueError, match="another model"):
        fit(toy(num_classes=2), data.ring, **SETTINGS, checkpoint=file)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"not a checkpoint", b"\x80\x04N."):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a checkpoint of fit"):
            fit(toy(), data.ring, **SETTINGS, checkpoint=file)


def test_checkpoints_are_not_pickles(tmp_path, monkeypatch):
    import pickle

    def forbidden(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(torch, "save", forbidden)
    fit(toy(), data.ring, **SETTINGS, checkpoint=tmp_path / "c")
    fit(toy(), data.ring, **SETTINGS, checkpoint=tmp_path / "c")


def test_every_row_is_seen_once_per_epoch():
    rows = torch.arange(10)
    batches = _Batches(rows, 4, 0, torch.Generator(), torch.device("cpu"))
    seen = torch.cat([batches(step) for step in range(10)])
    for epoch in seen.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()
    late = _Batches(rows, 4, 0, torch.Generator(), torch.device("cpu"))
    assert torch.equal(late(7), batches(7))
    other = _Batches(rows, 4, 1, torch.Generator(), torch.device("cpu"))
    assert not torch.equal(torch.cat([other(s) for s in range(5)]), seen[:20])
    assert len(_Batches(rows, 25, 0, torch.Generator(), torch.device("cpu"))(0)) == 25


def test_mode_and_flags_are_restored():
    model = toy()
    model.eval()
    model.core.net.first.weight.requires_grad_(False)
    before = model.core.net.first.weight.clone()
    fit(model, data.ring, **SETTINGS)
    assert not model.training
    assert torch.equal(model.core.net.first.weight, before)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["core.net.first.weight"]


def test_no_bar_away_from_a_terminal(capsys):
    fit(toy(), data.ring, **SETTINGS)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    fit(toy(), data.ring, **SETTINGS, progress=True)
    assert "step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.5}, ValueError, "steps"),
        ({"batch_size": -1}, ValueError, "batch_size"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"ema": 1.0}, ValueError, "ema"),
        ({"clip": 0.0}, ValueError, "clip"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"log_every": 0}, ValueError, "log_every"),
    ],
)
def test_wrong_settings(change, error, words):
    with pytest.raises(error, match=words):
        fit(toy(), data.ring, **{**SETTINGS, **change})


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.full((4, 2), float("nan")), NonFinite, "data"),
        ((torch.zeros(4, 2), torch.zeros(3)), ValueError, r"\[4, 3\]"),
        (torch.zeros(0, 2), ValueError, "> 0"),
        ([[1.0, 2.0]], TypeError, "tuple of tensors"),
        (torch.zeros(4, 3), ValueError, r"\(N, 2\)"),
    ],
)
def test_wrong_data(rows, error, words):
    with pytest.raises(error, match=words):
        fit(toy(), rows, **SETTINGS)
