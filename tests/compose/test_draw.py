"""Draws go to files and to ArviZ and come back; loading never unpickles."""

import builtins
import json
import math
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file

from boltzmix.compose.draw import Draw, RunInfo, write_atomically
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import AIS, MCMC, SMC, Reverse

P, Q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 0.5)
CHAIN = MCMC(HMC(step_size=0.5), draws=20, adapt=False)


def draws():
    yield "particles", sample(P * Q, 32, sampler=SMC(record=True), seed=0)
    yield "weights", sample(P * Q, 32, sampler=AIS(levels=4), seed=0)
    yield "named", sample(P.on("a") * Gaussian(torch.zeros(1, 3), 2.0).on("b/c"), 16, seed=0)
    yield "one named variable", sample(P.on("a") * Q.on("a"), 16, sampler=SMC(record=True, path="noise"), seed=0)
    yield "chains", sample(P * Q, chains=3, sampler=CHAIN, seed=0)
    yield "named chains", sample(P.on("a") * Gaussian(torch.zeros(3), 2.0).on("b"), chains=3, sampler=CHAIN, seed=0)
    yield "reverse", sample(P, 16, sampler=Reverse(steps=3, record=True), seed=0)
    yield "one draw in float64", sample(P, 1, dtype=torch.float64, seed=0)


def assert_same_state(one, other):
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert list(one) == list(other)
        for name in one:
            assert_same_state(one[name], other[name])


@pytest.mark.parametrize("name", [n for n, _ in draws()])
def test_files_hold_everything(name, tmp_path):
    draw = dict(draws())[name]
    file = draw.save(tmp_path / "deep" / "draw.safetensors")
    again = Draw.load(file)
    assert_same_state(draw.x, again.x)
    assert torch.equal(draw.log_weights, again.log_weights)
    assert (draw.log_z, draw.log_z_se, draw.chains) == (again.log_z, again.log_z_se, again.chains)
    assert len(draw.frames) == len(again.frames)
    for one, other in zip(draw.frames, again.frames, strict=True):
        assert_same_state(one, other)
    assert repr(draw.info) == repr(again.info)
    assert draw.summary() == again.summary()
    assert_same_state(draw.stats, again.stats)
    assert len(again) == len(draw)
    assert [f.name for f in file.parent.iterdir()] == ["draw.safetensors"], "temporary files are left behind"


def test_loading_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    file = tmp_path / "trap"
    for payload in (pickle.dumps(Trap()), pickle.dumps({"x": 1})):
        file.write_bytes(payload)
        with pytest.raises(ValueError, match="not a saved draw, or is damaged"):
            Draw.load(file)
    torch.save({"x": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="not a saved draw, or is damaged"):
        Draw.load(file)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    file = sample(P, 8, seed=0).save(tmp_path / "draw")
    whole = file.read_bytes()
    for damaged in (b"", whole[:20], whole[: len(whole) - 10], whole.replace(b"log_z", b"log_y"), b"\0" * 100):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a saved draw, or is damaged"):
            Draw.load(file)
    x = {"x/": torch.zeros(2, 2), "log_weights": torch.zeros(2)}
    header = {"format": 1, "log_z": None, "log_z_se": None, "chains": False, "info": {"sampler": "SMC"}}
    cases = [
        (x, None),
        (x, "no json"),
        (x, json.dumps([1])),
        ({"x/": torch.zeros(2, 2)}, json.dumps(header)),
        ({"log_weights": torch.zeros(2)}, json.dumps(header)),
        (x, json.dumps({**header, "info": {"sampler": "SMC", "surprise": 1}})),
    ]
    for tensors, text in cases:
        save_file(tensors, file, None if text is None else {"draw": text})
        with pytest.raises(ValueError, match="not a saved draw, or is damaged"):
            Draw.load(file)
    save_file(x, file, {"draw": json.dumps({**header, "format": 99})})
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        Draw.load(file)
    save_file(x, file, {"draw": json.dumps(header)})
    assert Draw.load(file).info == RunInfo("SMC") or math.isnan(Draw.load(file).info.acceptance)
    with pytest.raises(FileNotFoundError, match="no draw at"):
        Draw.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a saved draw"):
        Draw.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = write_atomically(tmp_path / "file", b"old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("boltzmix.compose.draw.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_draws_go_to_arviz():
    pytest.importorskip("arviz")
    made = dict(draws())
    assert made["particles"].to_arviz().posterior["x"].shape == (1, 32, 2)
    assert made["chains"].to_arviz().posterior["x"].shape == (3, 20, 2)
    assert not hasattr(made["particles"].to_arviz(), "sample_stats")
    stats = made["chains"].to_arviz().sample_stats
    assert {"lp", "energy", "diverging", "acceptance_rate"} <= set(stats.data_vars)
    assert all(values.dims == ("chain", "draw") for values in stats.data_vars.values())
    named = made["named chains"].to_arviz()
    assert named.posterior["b"].dims == ("chain", "draw", "b_dim_0")
    assert {k: v.shape for k, v in named.posterior.data_vars.items()} == {"a": (3, 20, 2), "b": (3, 20, 3)}
    assert named.attrs["sampler"] == "MCMC"
    with pytest.raises(ValueError, match="resample=True"):
        made["weights"].to_arviz()


def test_every_type_goes_to_arviz_and_through_files(tmp_path):
    arviz = pytest.importorskip("arviz")
    g = torch.Generator().manual_seed(0)
    x = {
        "half": torch.randn(12, 6, generator=g).bfloat16(),
        "double": torch.randn(12, 6, 2, 3, generator=g).double(),
        "spins": torch.randint(0, 2, (12, 6, 4), generator=g),
        "on": torch.rand(12, 6, generator=g) < 0.5,
    }
    stats = {"lp": torch.randn(12, 6, generator=g), "n_steps": torch.ones(12, 6, dtype=torch.long)}
    draw = Draw(x, torch.zeros(12, 6), None, None, RunInfo("MCMC", seed=3), chains=True, stats=stats)
    again = Draw.load(draw.save(tmp_path / "draw"))
    assert_same_state(x, again.x)
    assert_same_state(stats, again.stats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ArviZ warns of more chains than draws
        found = again.to_arviz()
    assert found.posterior["double"].dims == ("chain", "draw", "double_dim_0", "double_dim_1")
    assert found.posterior["spins"].dtype.kind == "i"
    assert found.attrs["seed"] == 3
    assert found.sample_stats["n_steps"].values.sum() == 72
    table = arviz.summary(found, var_names=["double"], kind="diagnostics", round_to="none")
    ours = draw.summary()
    assert [name.replace(", ", ",") for name in table.index] == [r for r in ours.rows if r.startswith("double")]
    for name, row in zip(table.index, table["ess_bulk"], strict=True):
        assert ours[name.replace(", ", ","), "ess_bulk"] == pytest.approx(row, rel=1e-6)
    bad = Draw({"chain": x["double"]}, torch.zeros(12, 6), None, None, RunInfo("MCMC"), chains=True)
    with pytest.raises(ValueError, match="variable is called 'chain'"):
        bad.to_arviz()


def test_a_missing_arviz_names_the_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[arviz\]"'):
        sample(P, 8, seed=0).to_arviz()


def test_animating_needs_a_record(tmp_path):
    with pytest.raises(ValueError, match="record=True"):
        sample(P, 8, seed=0).animate(tmp_path / "x.gif")
