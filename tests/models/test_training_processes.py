"""Processes: two take the steps of one, and a run that is killed again and again is the one that was not."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from boltzmix.models import EnergyDiffusion, data, fit
from boltzmix.models.nets import MLP
from boltzmix.models.training.distributed import Processes, _leave_together

HERE = os.path.dirname(os.path.abspath(__file__))

SETTINGS = {"steps": 12, "batch_size": 8, "lr": 1e-2, "ema": 0.9, "seed": 5, "log_every": 5, "weight_decay": 0.1}


class Uneven(nn.Module):
    """Noise, dropout, a parameter that only some batches use, and one that none does."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 2))
        self.sometimes, self.never = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.register_buffer("flag", torch.tensor(seed == 0))

    def loss(self, batch, generator):
        noise = torch.randn(batch.shape, generator=generator)
        out = self.net(batch + noise)
        if float(batch[0, 0]) > 0.8:
            out = out * self.sometimes
        return (out + noise).square().mean()


class Replays(Uneven):
    """A buffer that differs between processes and matters."""

    def __init__(self, seed):
        super().__init__(seed)
        self.register_buffer("memory", torch.zeros(4, 2))

    def loss(self, batch, generator):
        self.memory.mul_(0.5).add_(batch[:4])
        return super().loss(batch, generator) + (self.net(self.memory) ** 2).mean()


class Breaks(Uneven):
    """Not a number, in one process only."""

    def loss(self, batch, generator):
        value = super().loss(batch, generator)
        bad = os.environ.get("RANK") == "1" and float(batch[0, 0]) > 0.8
        return value * float("nan") if bad else value


def worker(folder):
    """What each of two processes does; raises where something does not hold."""
    rank = int(os.environ["RANK"])
    for name, accumulate, precision in (("two", 2, "float32"), ("bf16", None, "bf16"), ("four", 4, "float32")):
        model = Uneven(rank)  # the first process's weights count
        fit(model, data.ring, **SETTINGS, accumulate=accumulate, precision=precision, metrics=f"{folder}/{name}.jsonl")
        assert not torch.distributed.is_initialized()
        assert bool(model.flag)
        if rank == 0:
            from safetensors.torch import save_file

            save_file(model.state_dict(), f"{folder}/{name}.safetensors")

    class Killed(Exception):
        pass

    whole, resumed, killed = Replays(rank), Replays(7), Replays(rank)
    fit(whole, data.ring, **SETTINGS)
    original, calls = killed.loss, []

    def loss(batch, generator):
        calls.append(None)
        if len(calls) == 9:
            raise Killed
        return original(batch, generator)

    killed.loss = loss
    file = f"{folder}/checkpoint"
    try:
        fit(killed, data.ring, **SETTINGS, checkpoint=file, checkpoint_every=3)
    except Killed:
        fit(resumed, data.ring, **SETTINGS, checkpoint=file, checkpoint_every=3)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for model, options, words in (
        (Uneven(rank), {"accumulate": 3}, "accumulate=3 micro-batches cannot be shared equally by 2 processes"),
        (Breaks(rank), {}, "the loss is nan at step 5"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(model, data.ring, **SETTINGS, **options)
    with open(f"{folder}/memory{rank}.json", "w") as out:
        json.dump(whole.memory.tolist(), out)


def launch(folder, program, ranks=2):
    """Processes of one group, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        return [(process.wait(timeout=120), process.stderr.read() if process.stderr else "") for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stderr.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    program = f"import sys; sys.path.insert(0, {HERE!r}); import test_training_processes as t; t.worker(sys.argv[1])"
    for code, said in launch(folder, program):
        assert code == 0, said
    return folder


@pytest.mark.parametrize(("name", "accumulate", "precision"), [("two", 2, "float32"), ("bf16", 2, "bf16")])
def test_two_processes_take_the_steps_of_one_bit_for_bit(two, name, accumulate, precision, tmp_path):
    from safetensors.torch import load_file

    model = Uneven(0)
    fit(model, data.ring, **SETTINGS, accumulate=accumulate, precision=precision, metrics=tmp_path / "m")
    found = load_file(two / f"{name}.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(value, found[key]), key
    assert torch.equal(found["never"], torch.ones(2))  # not even decayed: nobody had a gradient for it
    assert not torch.equal(found["sometimes"], torch.ones(2))

    def records(path):
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]

    assert records(two / f"{name}.jsonl") == records(tmp_path / "m")


def test_more_micro_batches_agree_up_to_the_order_of_sums(two):
    from safetensors.torch import load_file

    model = Uneven(0)
    fit(model, data.ring, **SETTINGS, accumulate=4)
    found = load_file(two / "four.safetensors")
    torch.testing.assert_close({k: v for k, v in found.items() if k != "flag"}, {
        k: v for k, v in model.state_dict().items() if k != "flag"
    }, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_each_process_keeps_its_own_buffers(two):
    first, second = (json.loads((two / f"memory{rank}.json").read_text()) for rank in (0, 1))
    assert first != second
    assert not (two / "memory2.json").exists()


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 5), (2, 6), (3, 3)])
def test_shares_are_equal_and_leave_nothing_out(size, accumulate):
    shares = [list(Processes(rank, size).share(accumulate)) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    assert [micro for share in shares for micro in share] == list(range(accumulate))


def test_processes_leave_together_but_do_not_wait_for_ever():
    store = torch.distributed.HashStore()
    began = time.monotonic()
    _leave_together(store, 2, patience=0.2)  # the other never comes
    assert time.monotonic() - began >= 0.2
    assert store.add("left", 0) == 1
    _leave_together(store, 2, patience=1e9)

    class Gone:
        def add(self, key, count):
            raise RuntimeError("the server has left")

    _leave_together(Gone(), 2, patience=1e9)


# --------------------------------------------------------------------- kills


def planar(folder=None):
    """A short run, written to ``folder`` and kept alive by its checkpoint where one is named."""
    torch.manual_seed(0)
    model = EnergyDiffusion(MLP(2, hidden=8, depth=1, out=1), (2,))
    loss, calls = model.loss, []

    def counted(batch, generator):
        calls.append(None)
        if folder is not None:
            print(len(calls), flush=True)
        return loss(batch, generator)

    object.__setattr__(model, "loss", counted)
    options = {} if folder is None else {"checkpoint": f"{folder}/c", "checkpoint_every": 4, "metrics": f"{folder}/m"}
    fit(model, data.ring, steps=60, batch_size=16, ema=0.9, accumulate=2, precision="bf16", log_every=7, **options)
    if folder is not None:
        from safetensors.torch import save_file

        save_file(model.state_dict(), f"{folder}/killed.safetensors")
    return model


def test_sigkill_again_and_again(tmp_path):
    """Killed from outside at two seeded moments; the weights are those of the run that nobody killed."""
    from safetensors.torch import load_file

    program = f"import sys; sys.path.insert(0, {HERE!r}); import test_training_processes as t; t.planar(sys.argv[1])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("WORLD_SIZE", None)

    def start():
        full = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.Popen(full, env=environment, stdout=subprocess.PIPE, text=True)

    chance = random.Random(3)
    for _ in range(2):
        process = start()
        last = chance.randrange(9, 50)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= last:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert not (tmp_path / "killed.safetensors").exists()
        assert (tmp_path / "c").exists()
    process = start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(output.split()) < 120  # it did not start from the beginning
    killed, whole = load_file(tmp_path / "killed.safetensors"), planar().state_dict()
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "m").read_text().splitlines()]
    assert steps == [7, 14, 21, 28, 35, 42, 49, 56, 60]
