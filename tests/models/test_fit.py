"""Training: exact resume, determinism, errors that stop, files that are whole."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from boltzmix.compose.errors import MissingExtra, NonFinite
from boltzmix.models import VAE, Classifier, Diffusion, EnergyDiffusion, EnergyModel, Flow, FlowMatching, data, fit
from boltzmix.models.nets import MLP, Dense, EnergyMLP
from boltzmix.models.training.batches import batches_of


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
    torch.testing.assert_close(model.log_posterior(x).exp().sum(1), torch.ones(64))
    with pytest.raises(ValueError, match=r"\(N, 1, 8, 8\)"):
        model.predict(torch.zeros(3, 8, 8))


def test_augmentation_shifts_by_at_most_one_pixel():
    model = Classifier(shift=1)
    x = torch.full((500, 1, 8, 8), -1.0)
    x[:, 0, 3, 4] = 1.0
    moved = model._shifted(x, torch.Generator().manual_seed(0))
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
    def batches(size, seed=0):
        made = batches_of(torch.arange(10), size, seed, torch.device("cpu"))
        return lambda number: made(number, torch.Generator())

    seen = torch.cat([batches(4)(number) for number in range(10)])
    for epoch in seen.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()
    straight = batches(4)
    assert torch.equal(torch.cat([straight(number) for number in range(10)]), seen)
    assert not torch.equal(torch.cat([batches(4, 1)(s) for s in range(5)]), seen[:20])
    assert len(batches(25)(0)) == 25


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


class Line(nn.Module):
    """Least squares in float64: the mean of the rows is the minimum."""

    def __init__(self, dim=1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def loss(self, batch, generator):
        return (self.w - batch).square().sum(1).mean()


def test_micro_batches_are_the_parts_of_one_large_batch():
    """The mean gradient of four micro-batches is that of their union, rows and all."""
    rows = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 13, "lr": 0.05, "ema": 0.5, "seed": 3, "log_every": 1}
    large, small = Line(3), Line(3)
    whole = fit(large, rows, batch_size=12, **settings)
    parts = fit(small, rows, batch_size=3, accumulate=4, **settings)
    torch.testing.assert_close(small.w, large.w, rtol=1e-12, atol=0)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-12)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-12)


class Noisy(nn.Module):
    """Uses every source of randomness and state: the generator, dropout layers, a buffer, matrix products."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 2))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.dtypes, self.draws, self.prepared = set(), [], 0

    def prepare(self, batch, generator):
        self.prepared += 1
        self.net[0].bias.copy_(batch.mean() + torch.randn(16, generator=generator))

    def metrics(self):
        return {"count": int(self.count), "seen": self.seen.sum()}

    def loss(self, batch, generator):
        noise = torch.randn(batch.shape, generator=generator)
        self.draws.append(float(noise.sum()))
        self.seen += 0.1 * batch.mean(0)
        self.count += 1
        out = self.net(batch + noise)
        self.dtypes.add(out.dtype)
        return (out + noise).float().square().mean() + self.seen.square().sum()


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("source", ["stream", "loader"])
def test_everything_that_is_random_or_kept_survives_a_kill(tmp_path, precision, source):
    from torch.utils.data import DataLoader

    rows = data.ring(40, torch.Generator().manual_seed(0))
    settings = {**SETTINGS, "precision": precision, "accumulate": 2}
    if source == "loader":
        settings["batch_size"] = None
    made = data.ring if source == "stream" else DataLoader(list(rows), batch_size=8, shuffle=True)  # 5 batches an epoch
    whole, resumed, killed = Noisy(1), Noisy(2), Noisy(1)
    straight = fit(whole, made, **settings, warmup=0)
    with pytest.raises(Killed):
        fit(kill_at(killed, 32), made, **settings, warmup=0, checkpoint=tmp_path / "c")
    torch.manual_seed(11)
    result = fit(resumed, made, **settings, warmup=0, checkpoint=tmp_path / "c")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    strip = [{k: v for k, v in record.items() if k != "seconds"} for record in straight.history]
    assert strip == [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]
    assert straight.history[-1]["count"] == 48
    assert (whole.prepared, killed.prepared, resumed.prepared) == (1, 1, 0)
    assert whole.dtypes == {{"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert len(set(whole.draws)) == 48  # no noise is used twice
    assert whole.draws[30:] == resumed.draws[-18:]
    assert whole.net[0].weight.dtype == torch.float32


def test_metrics_must_not_hide_those_of_fit():
    model = Noisy()
    model.metrics = lambda: {"loss": 0.0}
    with pytest.raises(ValueError, match=r"\['loss'\]"):
        fit(model, data.ring, **SETTINGS)


class Steep(nn.Module):
    """Its gradient passes through half precision, times ``slope``: it overflows while slope · scale > 65504."""

    def __init__(self, slope):
        super().__init__()
        self.layer, self.slope = nn.Linear(1, 1), slope
        nn.init.ones_(self.layer.weight)

    def loss(self, batch, generator):
        return self.slope * self.layer(batch).float().mean()


def test_half_precision_lowers_its_loss_scale_until_gradients_fit(tmp_path):
    rows = torch.ones(4, 1)
    with pytest.warns(RuntimeWarning, match="fp16: the gradients of 8 steps in a row overflowed, up to step 7"):
        result = fit(Steep(1e3), rows, steps=16, batch_size=1, precision="fp16", log_every=4, metrics=tmp_path / "m")
    assert [record["skipped"] for record in result.history] == [4, 4, 2, 0]  # 10³ · 2^16 > 65504 until 10³ · 2^6
    assert result.history[-1]["loss_scale"] == 2**6
    assert result.history[-1]["gradient_norm"] == pytest.approx(1e3 * 2**0.5, rel=1e-2)  # in the units of the loss
    first = json.loads((tmp_path / "m").read_text().splitlines()[0])
    assert first["loss"] is None  # no step was taken: not a number in the result, null in the file


@pytest.mark.filterwarnings("ignore:fp16")
def test_half_precision_that_never_fits_is_an_error_that_says_so():
    model = Steep(1e30)
    with pytest.raises(NonFinite, match=r"half-precision overflow.*24 steps in a row, up to step 23.*'bf16'"):
        fit(model, torch.ones(4, 1), steps=100, batch_size=1, precision="fp16")
    assert float(model.layer.weight.detach()) == 1
    with pytest.raises(NonFinite, match="loss is inf at step 0.*precision='bf16'"):
        fit(Steep(float("inf")), torch.ones(4, 1), steps=3, batch_size=1, precision="fp16")


def test_mixed_precision_trains_what_it_also_sampled_without_gradients():
    """Weights cast to half without a graph must not be used again with one."""

    class Samples(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def loss(self, batch, generator):
            with torch.no_grad():
                fake = self.layer(batch)
            return (self.layer(batch) - fake.float() - 1).float().square().mean()

    model = Samples()
    before = model.layer.weight.detach().clone()
    fit(model, torch.ones(4, 2), steps=2, batch_size=2, precision="bf16", ema=0.0)
    assert not torch.equal(model.layer.weight, before)


def test_transforms_are_part_of_the_run(tmp_path):
    flips = []

    def transform(batch, generator):
        flips.append(float(torch.rand((), generator=generator)))
        return batch + flips[-1]

    straight, resumed = toy(1), toy(1)
    fit(straight, data.ring, **SETTINGS, transform=transform)
    first = list(flips)
    assert len(set(first)) == 24
    flips.clear()
    with pytest.raises(Killed):
        fit(kill_at(toy(1), 14), data.ring, **SETTINGS, transform=transform, checkpoint=tmp_path / "c")
    fit(resumed, data.ring, **SETTINGS, transform=transform, checkpoint=tmp_path / "c")
    assert flips == first[:14] + first[12:]
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


# ------------------------------------------------------------ sheets, TensorBoard


def test_sheets_show_the_averaged_weights_and_leave_the_run_alone(tmp_path):
    seen = []

    def sampler(model, n, generator):
        assert not model.training
        assert not model.net[1].training
        seen.append(model.net[0].weight.detach().clone())
        model.seen += 1
        model.train()
        return model.net(torch.randn(n, 2, generator=generator) + torch.randn(n, 2))

    with_sheets, without = Noisy(1), Noisy(1)
    settings = {**SETTINGS, "accumulate": 2}
    fit(with_sheets, data.ring, **settings, sheets=tmp_path, sheet_every=10, sheet_sampler=sampler)
    fit(without, data.ring, **settings)
    for (name, a), b in zip(with_sheets.state_dict().items(), without.state_dict().items(), strict=True):
        assert torch.equal(a, b[1]), name
    assert sorted(os.listdir(tmp_path)) == [f"step-00000{n}.png" for n in (10, 20, 24)]
    assert (tmp_path / "step-0000010.png").read_bytes().startswith(b"\x89PNG")
    assert torch.equal(seen[-1], with_sheets.net[0].weight)  # the average, which is what stays in the model
    assert with_sheets.training


@pytest.mark.parametrize("family", [Diffusion, EnergyDiffusion])
def test_sheets_of_a_family_need_no_sampler(tmp_path, family):
    with_sheets, without = toy(1, family), toy(1, family)
    fit(with_sheets, data.ring, **SETTINGS, sheets=tmp_path, sheet_every=24)
    fit(without, data.ring, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(with_sheets.parameters(), without.parameters(), strict=True))
    assert os.listdir(tmp_path) == ["step-0000024.png"]
    assert all(p.requires_grad for p in with_sheets.parameters())


def test_sheets_of_a_model_with_latents_show_x(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("boltzmix.compose.pictures.plot_states", lambda x, path, title: shown.append(x))
    torch.manual_seed(0)
    model = VAE(Dense(2, 6, hidden=8), Dense(3, 2, hidden=8), (2,), (3,))
    fit(model, data.ring, **SETTINGS, sheets=tmp_path, sheet_every=24)
    assert [tuple(x.shape) for x in shown] == [(1000, 2)]  # as many points as of any family over the plane


def test_sheets_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"Line is no term; pass sheet_sampler="):
        fit(Line(), torch.zeros(4, 1, dtype=torch.float64), steps=2, sheets=tmp_path)
    with pytest.raises(TypeError, match="sheet_sampler is a sampler or a function, got int"):
        fit(toy(), data.ring, **SETTINGS, sheets=tmp_path, sheet_sampler=3)

    def fails(model, n, generator):
        raise NonFinite("too early")

    model, plain = toy(1), toy(1)
    with pytest.warns(RuntimeWarning, match="no sheet at step 24: too early"):
        fit(model, data.ring, **SETTINGS, sheets=tmp_path, sheet_every=24, sheet_sampler=fails)
    fit(plain, data.ring, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {**SETTINGS, "log_every": 1, "tensorboard": tmp_path / "events", "checkpoint": tmp_path / "c"}
    with pytest.raises(Killed):
        fit(kill_at(toy(1), 16), data.ring, **settings)
    result = fit(toy(1), data.ring, **settings)
    shown = EventAccumulator(str(tmp_path / "events"))
    shown.Reload()
    assert sorted(shown.Tags()["scalars"]) == ["gradient_norm", "loss", "lr", "seconds"]
    events = shown.Scalars("loss")
    assert [event.step for event in events] == list(range(1, 25))
    assert [event.value for event in events] == pytest.approx([record["loss"] for record in result.history], rel=1e-6)


def test_missing_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[tensorboard\]"'):
        fit(toy(), data.ring, **SETTINGS, tensorboard=tmp_path)


# ------------------------------------------------------------- kinds of data


def test_iterables_start_again_for_each_epoch():
    batches = [torch.full((2, 1), float(k), dtype=torch.float64) for k in range(3)]
    seen = []

    class Watches(Line):
        def loss(self, batch, generator):
            seen.append(float(batch[0, 0]))
            return super().loss(batch, generator)

    wanted = [0, 1, 2, 0, 1, 2, 0, 1]
    for source in ([(b,) for b in batches], lambda: iter([(b,) for b in batches])):
        fit(Watches(), source, steps=8, transform=lambda batch, generator: batch[0])
        assert seen == wanted
        seen.clear()
    fit(Watches(), iter(batches * 4), steps=8)
    assert seen == wanted
    seen.clear()
    fit(Watches(), [{"x": b} for b in batches], steps=8, transform=lambda batch, generator: batch["x"])
    assert seen == wanted


def test_an_iterator_is_read_again_from_its_beginning_to_resume(tmp_path):
    rows = data.ring(24 * 16, torch.Generator().manual_seed(0)).split(16)
    settings = {**SETTINGS, "batch_size": None}
    whole, resumed = toy(1), toy(2)
    fit(whole, iter(rows), **settings)
    with pytest.raises(Killed):
        fit(kill_at(toy(1), 14), iter(rows), **settings, checkpoint=tmp_path / "c")
    fit(resumed, iter(rows), **settings, checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_iterables_that_cannot_serve():
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    model, rows = Line(), torch.zeros(6, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="the iterator ended after 3 batches.*DataLoader"):
        fit(model, iter(rows.split(2)), steps=4)
    with pytest.raises(ValueError, match="an epoch of the data holds no batch"):
        fit(model, lambda: iter([]), steps=4)
    with pytest.raises(ValueError, match="leave out batch_size"):
        fit(model, DataLoader(list(rows), batch_size=2), steps=4, batch_size=2)
    with pytest.raises(TypeError, match=r"DataLoader\(dataset"):
        fit(model, TensorDataset(rows), steps=4)
    loader = DataLoader(list(rows), sampler=DistributedSampler(list(rows), num_replicas=2, rank=0))
    with pytest.raises(ValueError, match="without a DistributedSampler"):
        fit(model, loader, steps=4)
    with pytest.raises(TypeError, match=r"a batch is a tensor.*got a list of \['float'\]"):
        fit(model, lambda: iter([[1.0]]), steps=4)
    with pytest.raises(TypeError, match="a batch is a tensor.*got a ndarray"):
        fit(model, lambda n, generator: rows.numpy(), steps=4)


@pytest.mark.parametrize("value", [1.0, torch.zeros(2, requires_grad=True), torch.zeros(())])
def test_losses_that_are_none(value):
    model = Line()
    model.loss = lambda batch, generator: value
    with pytest.raises(TypeError, match="returns a scalar with a graph"):
        fit(model, torch.zeros(4, 1), steps=2)
    with pytest.raises(TypeError, match=r"loss\(batch, generator\), and Linear has none"):
        fit(nn.Linear(1, 1), torch.zeros(4, 1), steps=2)


# ---------------------------------------------------------------- wrong calls


def test_half_a_distributed_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT is not set: start with torchrun"):
        fit(toy(), data.ring, **SETTINGS)


def rewritten(file, tensors=None, **header):
    """A checkpoint whose tensors or header were changed."""
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(str(file), framework="pt") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        described = json.loads(opened.metadata()["boltzmix"])
    found = {k: v for k, v in {**found, **(tensors or {})}.items() if v is not None}
    file.write_bytes(save(found, metadata={"boltzmix": json.dumps({**described, **header})}))


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({"ema.core.net.first.weight": None}, {}, "another model: ema.core.net.first.weight is missing"),
        (
            {"model.core.net.first.bias": torch.zeros(3)},
            {},
            r"is \(3,\) torch.float32 there, \(8,\) torch.float32 here",
        ),
        ({"model.core.net.first.bias": torch.zeros(8).double()}, {}, r"float64 there, \(8,\) torch.float32 here"),
        ({"model.spare": torch.zeros(3)}, {}, "model.spare is not in this model"),
        ({"optimizer.exp_avg.core.net.first.bias": torch.zeros(3)}, {}, r"is \(3,\), its parameter \(8,\)"),
        ({}, {"format": 1}, "written by another version"),
        ({}, {"plan": 3}, "not a checkpoint of fit"),
        ({"rank1.core.loc": torch.zeros(2)}, {"processes": 2}, "buffers of 2 processes and 1 would resume"),
    ],
)
def test_checkpoints_that_do_not_fit_leave_the_model_alone(tmp_path, tensors, header, words):
    file = tmp_path / "c"
    fit(toy(), data.ring, **SETTINGS, checkpoint=file)
    rewritten(file, tensors, **header)
    model = toy(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        fit(model, data.ring, **SETTINGS, checkpoint=file)
    assert str(file) in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_data_are_another_run(tmp_path):
    fit(toy(), torch.zeros(9, 2), **SETTINGS, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"stored \(9, 2\) torch.float32 there, stored \(8, 2\) torch.float32 here"):
        fit(toy(), torch.zeros(8, 2), **SETTINGS, checkpoint=tmp_path / "c")


def test_what_a_kill_within_a_write_left_is_removed(tmp_path):
    (tmp_path / ".c.123.tmp").write_bytes(b"half")
    (tmp_path / ".other.123.tmp").write_bytes(b"not ours")
    fit(toy(), data.ring, **SETTINGS, checkpoint=tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == [".other.123.tmp", "c"]


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
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"sheet_every": -1}, ValueError, "sheet_every"),
        ({"warmup": -1}, ValueError, "warmup"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"lr": "fast"}, TypeError, "lr is a number, got 'fast'"),
        ({"ema": True}, TypeError, "ema"),
        ({"precision": "half"}, ValueError, "'float32', 'bf16', 'fp16', got 'half'"),
    ],
)
def test_wrong_settings(change, error, words):
    with pytest.raises(error, match=words):
        fit(toy(), data.ring, **{**SETTINGS, **change})


def test_mixed_precision_keeps_float32_weights():
    with pytest.raises(ValueError, match="'bf16' keeps float32 weights and this model holds torch.float64"):
        fit(toy().double(), data.ring, **SETTINGS, precision="bf16")


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.full((4, 2), float("nan")), NonFinite, "data"),
        ((torch.zeros(4, 2), torch.zeros(3)), ValueError, r"\[4, 3\]"),
        (torch.zeros(0, 2), ValueError, "> 0"),
        ([[1.0, 2.0]], TypeError, "tuple of tensors"),
        (torch.zeros(4, 3), ValueError, r"\(N, 2\)"),
        (torch.zeros(()), ValueError, "a scalar"),
        ((), TypeError, "a stream"),
        (3, TypeError, "got int"),
        (np.zeros((4, 2)), TypeError, r"got a NumPy array: write torch.from_numpy"),
        ([torch.zeros(4, 2)] * 3, ValueError, r"x or \(x, label\), got 3 tensors; a list of batches"),
        (lambda: iter([{"x": torch.zeros(4, 2)}]), ValueError, "leave out batch_size"),
        (lambda n, generator: {"x": torch.zeros(n, 2)}, TypeError, r"got a mapping of \['x'\]; .*transform="),
        (torch.zeros(4, 2).double(), TypeError, "float32 weights on cpu and got torch.float64"),
        (torch.zeros(4, 2).half(), TypeError, "float32 weights on cpu and got torch.float16"),
    ],
)
def test_wrong_data(rows, error, words):
    with pytest.raises(error, match=words):
        fit(toy(), rows, **SETTINGS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_no_data_of_a_density_over_reals(dtype):
    pytest.importorskip("zuko")
    families = (
        toy(family=Diffusion), toy(family=EnergyDiffusion), toy(family=FlowMatching), Flow((2,)),
        EnergyModel(EnergyMLP(2), (2,)), VAE(Dense(2, 4), Dense(2, 2), (2,), (2,)),
    )  # fmt: skip
    for model in families:
        with pytest.raises(TypeError, match=r"is a density over reals and the batch holds torch.u?int.*dequantise"):
            fit(model, torch.ones(8, 2, dtype=dtype), steps=1, batch_size=4)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (torch.full((8,), 3), ValueError, r"labels are ints in \[0, 3\), or -1 .*, got 3 … 3"),  # the null class's row
        (torch.full((8,), -2), ValueError, r"got -2 … -2"),
        (torch.zeros(8), TypeError, r"labels are ints of shape \(4,\), got torch.float32"),
        (torch.zeros(8, 3).long(), TypeError, r"got torch.int64 of shape \(4, 3\)"),
        (torch.zeros(8, dtype=torch.bool), TypeError, "got torch.bool"),
    ],
)
def test_wrong_labels(labels, error, words):
    with pytest.raises(error, match=words):
        fit(toy(0, Diffusion, 3), (torch.zeros(8, 2), labels), steps=1, batch_size=4)


def test_labels_of_every_integer_dtype_mean_the_same():
    x, label = labelled()
    models = [toy(0, Diffusion, 3) for _ in range(3)]
    for model, dtype in zip(models, (torch.int64, torch.int32, torch.uint8), strict=True):
        fit(model, (x, label.to(dtype)), **SETTINGS)
    for other in models[1:]:
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), other.parameters(), strict=True))


def test_a_classifier_takes_no_label_out_of_range():
    for bad in (-100, 3):
        with pytest.raises(ValueError, match=rf"labels are ints in \[0, 3\), got {bad} … {bad}"):
            fit(Classifier(event_shape=(2,), num_classes=3), (torch.zeros(8, 2), torch.full((8,), bad)), steps=1)
