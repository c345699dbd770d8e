"""Planted errors in training, data and loading: each must break a law, fast."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from boltzmix.compose.errors import NonFinite
from boltzmix.models import data, fit
from boltzmix.models.load import build
from boltzmix.models.training.distributed import Processes
from tests.mutations.harness import Mutation, verify

FIT, TRAINING = "boltzmix.models.fit", "boltzmix.models.training"


class Noisy(nn.Module):
    """A regression with noise from the generator, dropout, and a buffer that the loss feels."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("seen", torch.zeros(2))
        self.noise, self.calls, self.stop, self.prepared = [], 0, None, 0

    def prepare(self, batch, generator):
        self.prepared += 1

    def loss(self, batch, generator):
        self.calls += 1
        if self.calls == self.stop:
            raise InterruptedError
        noise = torch.randn(batch.shape, generator=generator)
        self.noise.append(float(noise.sum()))
        self.seen += 0.1 * batch.mean(0)
        return (self.net(batch + noise) + noise).float().square().mean() + self.seen.square().sum()


ROWS = data.ring(20, torch.Generator().manual_seed(0))
SETTINGS = {"steps": 9, "lr": 1e-2, "ema": 0.9, "log_every": 4, "accumulate": 2, "warmup": 0}


def resumes(**options):
    """A run that stops and goes on is the run that does not: weights, buffers, history, noise."""
    settings = {**SETTINGS, **options}
    source = settings.pop("source", data.ring)
    if not isinstance(source, DataLoader):
        settings["batch_size"] = 4
    whole, stopped, resumed = Noisy(1), Noisy(1), Noisy(2)
    stopped.stop = 13
    straight = fit(whole, source, **settings)
    with tempfile.TemporaryDirectory() as folder:
        again = {**settings, "checkpoint": Path(folder) / "c", "checkpoint_every": 3}
        with pytest.raises(InterruptedError):
            fit(stopped, source, **again)
        result = fit(resumed, source, **again)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert [r["loss"] for r in result.history] == [r["loss"] for r in straight.history]
    assert [r["step"] for r in result.history] == [4, 8, 9]
    assert (stopped.prepared, resumed.prepared) == (1, 0)
    assert len(set(whole.noise)) == len(whole.noise)


def resumes_with_a_loader():
    resumes(source=DataLoader(list(ROWS), batch_size=4, shuffle=True))


def resumes_in_half_precision():
    class Scaled(Noisy):
        def loss(self, batch, generator):
            return 3e3 * super().loss(batch, generator)

    whole, stopped, resumed = Scaled(1), Scaled(1), Scaled(2)
    settings = {"steps": 14, "batch_size": 4, "lr": 1e-2, "ema": 0.9, "precision": "fp16", "log_every": 2}
    straight = fit(whole, data.ring, **settings)
    assert straight.history[-1]["loss_scale"] < 2**16
    with tempfile.TemporaryDirectory() as folder:
        stopped.stop = 13
        with pytest.raises(InterruptedError):
            fit(stopped, data.ring, **settings, checkpoint=Path(folder) / "c", checkpoint_every=11)
        fit(resumed, data.ring, **settings, checkpoint=Path(folder) / "c", checkpoint_every=11)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.path = nn.Parameter(torch.zeros(2, dtype=torch.float64)), []

    def loss(self, batch, generator):
        self.path.append(self.w.detach().clone())
        return (self.w - batch).square().sum(1).mean()


def micro_batches_are_parts_of_a_batch():
    large, small = Line(), Line()
    rows = ROWS.double()
    whole = fit(large, rows, steps=4, batch_size=12, lr=0.05, log_every=1)
    parts = fit(small, rows, steps=4, batch_size=3, accumulate=4, lr=0.05, log_every=1)
    torch.testing.assert_close(small.w, large.w, rtol=1e-12, atol=0)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-12)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-12)


def the_average_is_that_of_the_path():
    last, average = Line(), Line()
    fit(last, ROWS.double(), steps=20, batch_size=2, ema=0.0, lr=0.05)
    fit(average, ROWS.double(), steps=20, batch_size=2, ema=0.5, lr=0.05)
    want = torch.zeros(2, dtype=torch.float64)
    for step, w in enumerate([*average.path[1:], last.w.detach()]):
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * w
    torch.testing.assert_close(average.w.detach(), want, rtol=1e-12, atol=0)


def the_rate_rises_and_falls_to_zero():
    result = fit(Line(), ROWS.double(), steps=20, batch_size=2, lr=0.4, warmup=4, log_every=1)
    rates = [record["lr"] for record in result.history]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[12] == pytest.approx(0.2)  # half of the way down
    assert rates[19] < 0.004


def gradients_are_clipped():
    model = Line()
    fit(model, 1e6 * ROWS.double().abs(), steps=1, batch_size=20, lr=1.0, warmup=0, ema=0.0, clip=1e-9)
    assert model.w.abs().max() < 0.2  # AdamW's step is 1 unless the gradient is down at its epsilon, 1e-8


def sheets_leave_the_run_alone():
    def sampler(model, n, generator):
        seen.append(model.net[0].weight.detach().clone())
        assert not model.net[1].training
        model.seen += 1
        return torch.randn(n, 2) + torch.randn(n, 2, generator=generator)

    seen, drawn, plain = [], Noisy(1), Noisy(1)
    settings = {**SETTINGS, "steps": 4, "batch_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        fit(drawn, data.ring, **settings, sheets=folder, sheet_every=2, sheet_sampler=sampler)
    fit(plain, data.ring, **settings)
    for key, value in drawn.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
    assert torch.equal(seen[-1], drawn.net[0].weight)


class Steep(nn.Module):
    def __init__(self, slope=1e3):
        super().__init__()
        self.layer, self.slope = nn.Linear(1, 1), slope

    def loss(self, batch, generator):
        return self.slope * self.layer(batch).float().mean()


@pytest.mark.filterwarnings("ignore:fp16")
def half_precision_skips_until_gradients_fit():
    result = fit(Steep(), torch.ones(4, 1), steps=12, batch_size=1, precision="fp16", log_every=4)
    assert [record["skipped"] for record in result.history] == [4, 4, 2]
    assert result.history[-1]["gradient_norm"] == pytest.approx(1e3 * 2**0.5, rel=1e-2)
    with pytest.raises(NonFinite, match="24 steps in a row"):
        fit(Steep(1e30), torch.ones(4, 1), steps=40, batch_size=1, precision="fp16")


def half_precision_is_used_and_keeps_its_graph():
    class Samples(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def loss(self, batch, generator):
            with torch.no_grad():
                fake = self.layer(batch)
            assert fake.dtype == torch.bfloat16
            return (self.layer(batch).float() - fake.float() - 1).square().mean()

    model = Samples()
    before = model.layer.weight.detach().clone()
    fit(model, torch.ones(4, 2), steps=2, batch_size=2, precision="bf16", ema=0.0)
    assert not torch.equal(model.layer.weight, before)


def epochs_hold_every_row_once():
    seen = []

    class Watches(Line):
        def loss(self, batch, generator):
            seen.extend(batch[:, 0].tolist())
            return super().loss(batch, generator)

    rows = torch.arange(10, dtype=torch.float64)[:, None].expand(10, 2)
    fit(Watches(), rows, steps=10, batch_size=4)
    for start in (0, 10, 20, 30):
        assert sorted(seen[start : start + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


@contextmanager
def peer(all_reduce=None, broadcast=None):
    """A process of two, whose peer is played by functions in the place of the collective operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", all_reduce)
        patch.setattr(torch.distributed, "broadcast", broadcast)
        yield Processes(1, 2)


def gradients_meet():
    """Sums over both, also where only one has a gradient; where none has, there is none."""
    theirs = iter([torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 2.0, 5.0, 5.0, 5.0])])
    first, second, third = (nn.Parameter(torch.zeros(n)) for n in (2, 3, 1))
    first.grad = torch.ones(2)
    with peer(all_reduce=lambda own: own.add_(fitting(next(theirs), own))) as processes:
        processes.sum_gradients([first, second, third])
    assert third.grad is None
    assert second.grad is not None
    assert first.grad.tolist() == [3.0, 3.0]
    assert second.grad.tolist() == [5.0, 5.0, 5.0]


def fitting(theirs, own):
    assert theirs.shape == own.shape, "the processes reduce different tensors"
    return theirs.to(own)


def weights_are_those_of_the_first():
    own, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    contents = iter([t.detach().contiguous().reshape(-1).view(torch.uint8) for t in theirs.state_dict().values()])
    with peer(broadcast=lambda content, source: content.copy_(next(contents))) as processes:
        processes.broadcast(own)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), theirs.parameters(), strict=True))


def shares_cover_the_step():
    for size, accumulate in ((1, 3), (2, 6), (3, 3)):
        shares = [micro for rank in range(size) for micro in Processes(rank, size).share(accumulate)]
        assert shares == list(range(accumulate))


def checkpoints_of_other_runs_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SETTINGS, "steps": 2, "batch_size": 4, "checkpoint": Path(folder) / "c"}
        fit(Noisy(), data.ring, **settings)
        for change in ({"lr": 1e-3}, {"precision": "bf16"}, {"accumulate": 3}):
            with pytest.raises(ValueError, match="other settings"):
                fit(Noisy(), data.ring, **{**settings, **change})
        with pytest.raises(ValueError, match="another model"):
            fit(Line().float(), data.ring, **settings)


def metrics_files_go_on_where_the_checkpoint_stood():
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "m"
        options = {**SETTINGS, "log_every": 1, "batch_size": 4, "metrics": log, "checkpoint": Path(folder) / "c"}
        stopped = Noisy()
        stopped.stop = 13
        with pytest.raises(InterruptedError):
            fit(stopped, data.ring, **options, checkpoint_every=4)
        fit(Noisy(), data.ring, **options, checkpoint_every=4)
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 10))


def bits_are_those_of_the_levels():
    p = torch.softmax(torch.randn(17, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0)
    nll = float(-(p * (p * 17 / 2).log()).sum())
    assert data.bits_per_dim(nll, dim=1) == pytest.approx(float(-(p * p.log2()).sum()), rel=1e-12)


def dequantised_levels_round_back():
    levels = torch.arange(17).repeat(2000, 1)
    x = data.TRANSFORMS["dequantise"](17)(levels, torch.Generator().manual_seed(0)).double()
    v = (x + 1) * 17 / 2
    assert torch.equal(v.floor().long(), levels)
    assert abs(float((v - levels).mean()) - 0.5) < 0.01
    assert float((v - levels).std()) == pytest.approx(12**-0.5, rel=0.02)
    rescaled = data.TRANSFORMS["rescale"](17)(levels, torch.Generator())
    torch.testing.assert_close(rescaled, levels / 8 - 1)


def images_keep_their_pixels():
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for name in ("b", "a"):
            (Path(folder) / name).mkdir()
            picture = Image.new("RGB", (4, 4))
            picture.putpixel((3, 0), (255, 51, 0) if name == "a" else (0, 0, 0))
            picture.save(Path(folder) / name / "1.png")
        x, label, names = data.image_folder(folder)
    torch.testing.assert_close(x[0, :, 0, 3], torch.tensor([1.0, -0.6, -1.0]))
    assert (label.tolist(), names) == ([0, 1], ("a", "b"))


def known_files_keep_their_pixels():
    image = torch.zeros(3, 32, 32, dtype=torch.long)
    image[0, 0, 31], image[2, 31, 0] = 255, 51
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_batch.bin").write_bytes(bytes([7]) + bytes(image.flatten().tolist()))
        header = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3])
        (Path(folder) / "t10k-images-idx3-ubyte").write_bytes(header + bytes(range(6)))
        (Path(folder) / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]))
        x, label = data.cifar10(folder, "test")
        torch.testing.assert_close(x[0], image / 127.5 - 1)
        assert label.tolist() == [7]
        x, label = data.mnist(folder, "test", levels=True)
        assert x.tolist() == [[[[0, 1, 2], [3, 4, 5]]]]
        assert label.tolist() == [5]


def only_public_classes_are_built():
    net = {"class": "MLP", "arguments": {"dim": 2, "hidden": 8}}
    found = build({"class": "Diffusion", "arguments": {"event_shape": [2], "net": net}})
    assert found.event_shape == (2,)
    for name in ("Linear", "Module", "nn", "FitResult"):
        with pytest.raises(ValueError, match="unknown class"):
            build({"class": name})
    with pytest.raises(ValueError, match="takes no argument 'dims'"):
        build({"class": "MLP", "arguments": {"dim": 2, "dims": 2}})


def row(name, module, old, new, law, within=""):
    return Mutation(name, module, old, new, law=law, within=within)


CHECKPOINT, BATCHES, PRECISION = f"{TRAINING}.checkpoint", f"{TRAINING}.batches", f"{TRAINING}.precision"
SHEETS, DISTRIBUTED, PLAN = f"{TRAINING}.sheets", f"{TRAINING}.distributed", f"{TRAINING}.plan"
DATA, LOAD = "boltzmix.models.data", "boltzmix.models.load"
ERRORS = [
    row("gradients are summed, not averaged", FIT, "parameter.grad.div_(plan.accumulate)", "pass",
        micro_batches_are_parts_of_a_batch),
    row("the loss of a step is a sum", FIT, "self.peers.sum([total])[0] / self.plan.accumulate",
        "self.peers.sum([total])[0]", micro_batches_are_parts_of_a_batch),
    row("micro-batches of a step share their data", FIT, "number = step * self.plan.accumulate + micro",
        "number = step", micro_batches_are_parts_of_a_batch),
    row("the same noise at every step", FIT, "self.generator.manual_seed(derive(self.plan.seed, purpose, number))",
        "self.generator.manual_seed(derive(self.plan.seed, purpose))", resumes),
    row("dropout is not seeded", FIT, 'torch.manual_seed(derive(self.plan.seed, "global", purpose, number))', "pass",
        resumes),
    row("a resumed run is prepared again", FIT, 'return header["step"], header["seconds"]',
        'self.model.prepare(None, None); return header["step"], header["seconds"]', resumes),
    row("losses since the last record are forgotten", FIT, 'self.running = header["running"]', "pass", resumes),
    row("the average decays with 1 − decay", FIT, "1 - decay\n", "decay\n", the_average_is_that_of_the_path),
    row("the average starts at full decay", FIT, "min(self.plan.ema, (1 + step) / (10 + step))", "self.plan.ema",
        the_average_is_that_of_the_path),
    row("the last weights stay, not the averaged", FIT, "parameter.copy_(average)", "pass",
        the_average_is_that_of_the_path),
    row("warm-up starts at zero", PLAN, "self.lr * (step + 1) / self.warmup", "self.lr * step / self.warmup",
        the_rate_rises_and_falls_to_zero),
    row("the cosine runs twice as fast", PLAN, "math.pi * (step - self.warmup)", "2 * math.pi * (step - self.warmup)",
        the_rate_rises_and_falls_to_zero),
    row("no clipping", FIT, "math.inf if plan.clip is None else plan.clip", "math.inf", gradients_are_clipped),
    row("averages are not restored", CHECKPOINT, 'average.copy_(tensors[f"ema.{name}"])', "pass", resumes),
    row("the optimiser starts anew", CHECKPOINT, 'value if key == "step" else value.to(parameter.device)',
        "torch.zeros_like(value)", resumes),
    row("weights are not restored", CHECKPOINT, "self.model.load_state_dict(state)", "pass", resumes),
    row("buffers are not stored anew", CHECKPOINT, 'state |= {k', "state['seen'] = state['seen'] * 0; state |= {k",
        resumes),
    row("another run's checkpoint is taken", CHECKPOINT, "        if different:", "        if False:",
        checkpoints_of_other_runs_are_refused),
    row("missing tensors are not noticed", CHECKPOINT, "if key not in tensors:", "if False:",
        lambda: checkpoint_without_an_average()),
    row("the loader's order is not seeded", BATCHES, 'torch.manual_seed(derive(self.seed, "loader", self.next))',
        "pass", resumes_with_a_loader),
    row("an epoch is resumed from its start", BATCHES, "while self.next <= number:",
        "self.next = number\n        while self.next <= number:", resumes_with_a_loader),
    row("every epoch in the same order", BATCHES, 'derive(self.seed, "order", epoch)', 'derive(self.seed, "order")',
        epochs_hold_every_row_once),
    row("rows are drawn with replacement", BATCHES, "torch.randperm(n, generator=source)",
        "torch.randint(n, (n,), generator=source)", epochs_hold_every_row_once),
    row("the scale of the loss stays in the gradient", PRECISION, "self.scaler.unscale_(optimizer)", "pass",
        half_precision_skips_until_gradients_fit),
    row("the loss scale never falls", PRECISION, "self.scaler.update()", "self.scaler.update(65536.0)",
        half_precision_skips_until_gradients_fit),
    row("overflow without end", PRECISION, "self.skipped >= STOP_AFTER", "False",
        half_precision_skips_until_gradients_fit),
    row("the loss scale is forgotten", PRECISION, "self.scaler.load_state_dict(", "dict(", resumes_in_half_precision),
    row("mixed precision is not used", PRECISION, "if self.dtype is None:\n            return contextlib",
        "if True:\n            return contextlib", half_precision_is_used_and_keeps_its_graph),
    row("sheets leave the averages in", SHEETS, "t.copy_(value)", "pass", sheets_leave_the_run_alone),
    row("sheets change buffers", SHEETS, "(*parameters, *model.buffers()), own",
        "tuple(parameters), own[:len(parameters)]", sheets_leave_the_run_alone),
    row("sheets show the last weights", SHEETS, "parameter.copy_(value)", "pass", sheets_leave_the_run_alone),
    row("sheets are drawn in training mode", SHEETS, "    model.eval()\n", "    model.train()\n",
        sheets_leave_the_run_alone),
    row("processes overlap", DISTRIBUTED, "range(self.rank * part, (self.rank + 1) * part)", "range(part)",
        shares_cover_the_step),
    row("gradients of a process that has none are forgotten", DISTRIBUTED, "strict=True) if count]",
        "strict=True) if p.grad is not None]", gradients_meet),
    row("each process keeps its own gradient", DISTRIBUTED, "p.grad = part.view_as(p).clone()", "pass", gradients_meet),
    row("parameters that nobody trained get a gradient", DISTRIBUTED, "strict=True) if count]", "strict=True)]",
        gradients_meet),
    row("each process keeps its own weights", DISTRIBUTED, "t.copy_(content.view(t.dtype).view_as(t))", "pass",
        weights_are_those_of_the_first),
    row("records are appended twice", f"{TRAINING}.records", '"".join(map(_line, history)).encode()',
        '"".join(map(_line, [*history, *history])).encode()', metrics_files_go_on_where_the_checkpoint_stood),
    row("bits with the other sign", f"{DATA}.digits", "nll + dim * math.log(levels / 2)",
        "nll - dim * math.log(levels / 2)", bits_are_those_of_the_levels),
    row("bits of the levels without the width", f"{DATA}.digits", "math.log(levels / 2)", "math.log(levels)",
        bits_are_those_of_the_levels),
    row("noise beyond the level", f"{DATA}.digits", "2 * (k + u) / levels - 1", "2 * (k + 2 * u) / levels - 1",
        dequantised_levels_round_back),
    row("levels over K − 1", f"{DATA}.digits", "2 * (k + u) / levels - 1", "2 * (k + u) / (levels - 1) - 1",
        dequantised_levels_round_back),
    row("rescaled over K", f"{DATA}.transforms", "2 * x.float() / (levels - 1) - 1", "2 * x.float() / levels - 1",
        dequantised_levels_round_back),
    row("rows and channels exchanged", f"{DATA}.files", "pixels.movedim(2, 0)",
        "pixels.transpose(0, 1).movedim(2, 0)", images_keep_their_pixels),
    row("classes in another order", f"{DATA}.files", "names = tuple(group.name for group in groups)",
        "names = tuple(group.name for group in groups[::-1])", images_keep_their_pixels),
    row("CIFAR's channels last", f"{DATA}.standard", "table[:, 1:].reshape(-1, 3, 32, 32)",
        "table[:, 1:].reshape(-1, 32, 32, 3).movedim(3, 1)", known_files_keep_their_pixels),
    row("CIFAR's label at the end", f"{DATA}.standard", "table[:, 0].long()", "table[:, -1].long()",
        known_files_keep_their_pixels),
    row("IDX sizes in the other byte order", f"{DATA}.standard", 'f">{dimensions}I"', 'f"<{dimensions}I"',
        lambda: noticed(known_files_keep_their_pixels)),
    row("any module is built", LOAD, 'value.__module__.startswith("boltzmix.")', "True",
        lambda: only_public_classes_are_built_also_beside_torch()),
    row("unknown arguments pass", LOAD, "        if key not in parameters:", "        if False:",
        lambda: noticed(only_public_classes_are_built)),
]  # fmt: skip


def noticed(law):
    """A law that a mutation may also break by another error."""
    try:
        law()
    except (ValueError, TypeError) as error:
        raise AssertionError(str(error)) from error


def checkpoint_without_an_average():
    """A missing tensor is an error that names it, not a KeyError."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        settings = {**SETTINGS, "steps": 2, "batch_size": 4, "checkpoint": path}
        fit(Noisy(), data.ring, **settings)
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata()
            kept = {k: file.get_tensor(k) for k in file.keys() if not k.startswith("ema.")}  # noqa: SIM118
        save_file(kept, path, metadata=header)
        try:
            fit(Noisy(), data.ring, **settings)
        except ValueError as error:
            assert "is missing" in str(error)  # noqa: PT017
        except KeyError as error:
            raise AssertionError from error
        else:
            raise AssertionError("the checkpoint was taken")


def only_public_classes_are_built_also_beside_torch():
    """A class of torch that happens to be imported by the package is not one of ours."""
    from boltzmix import models

    models.Linear = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    try:
        only_public_classes_are_built()
    except TypeError as error:
        raise AssertionError from error
    finally:
        del models.Linear  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("mutation", ERRORS, ids=lambda m: m.name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore:no sheet", "ignore:fp16")
def test_planted_errors_are_noticed(mutation):
    verify(mutation)
