"""Moves of SMC, AIS and annealed MCMC: compiled once for all levels, and the same as eager on the same noise."""

import math
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import boltzmix.compose as bm
from boltzmix.compose.draw import Draw
from boltzmix.compose.flat import FlatView
from boltzmix.compose.samplers import moves
from boltzmix.compose.samplers.moves import LevelTarget, Moves, flat, unflat
from boltzmix.compose.samplers.start import tempered

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")

F64 = torch.float64


def quartic(x: Tensor) -> Tensor:
    return -(x**4).sum(-1) / 4 - x[:, 0] * x[:, 1] / 2


QUARTIC = bm.term(quartic, kind="log_prob", event_shape=(2,))
PRIOR = bm.Gaussian(torch.zeros(2, dtype=F64), 1.0)
MIXTURE = bm.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=F64), 0.4)
RUNS = {
    "geometric": (QUARTIC, bm.SMC(levels=4), PRIOR),
    "noise": (MIXTURE * PRIOR, bm.SMC(levels=5, path="noise"), None),
    "late factors": (MIXTURE * QUARTIC, bm.SMC(levels=5, path="noise"), None),
    "AIS": (QUARTIC, bm.AIS(levels=4, kernel=bm.MALA()), PRIOR),
    "Annealed": (MIXTURE * PRIOR, bm.Annealed(levels=4, kernel=bm.UHMC(num_leapfrog=2)), None),
    "a kernel with a velocity": (QUARTIC, bm.SMC(levels=4, kernel=bm.GHMC(num_leapfrog=1)), PRIOR),
}


def drawn(name: str, compile_: bool | str, n: int = 100) -> Draw:
    target, sampler, init = RUNS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return bm.sample(target, n, sampler=replace(sampler, compile=compile_), seed=1, init=init, dtype=F64)


@pytest.mark.parametrize(
    "name", [n if n in ("geometric", "late factors") else pytest.param(n, marks=pytest.mark.slow) for n in RUNS]
)
def test_compiled_is_eager_on_the_same_noise(name: str):
    eager, compiled = drawn(name, False), drawn(name, True)
    assert eager.info.extra["compile"]["backend"] == "eager"
    assert compiled.info.extra["compile"]["backend"] == "native"
    torch.testing.assert_close(compiled.x, eager.x, rtol=1e-6, atol=1e-6)
    assert compiled.info.evaluations == eager.info.evaluations
    assert compiled.info.network_rows == eager.info.network_rows
    if eager.log_z is not None:
        assert compiled.log_z is not None
        assert math.isclose(compiled.log_z, eager.log_z, abs_tol=1e-6)
    assert compiled.info.acceptance == pytest.approx(eager.info.acceptance, abs=1e-6)


def test_automatic_runs_that_are_short_are_eager(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BOLTZMIX_COMPILE", raising=False)
    found = drawn("geometric", "auto").info.extra["compile"]
    assert found == {"backend": "eager", "seconds": 0.0, "reason": "the run is short"}
    monkeypatch.setenv("BOLTZMIX_COMPILE", "0")
    assert drawn("geometric", "auto").info.extra["compile"]["reason"] == "BOLTZMIX_COMPILE=0"


def test_automatic_runs_compile_when_they_have_done_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BOLTZMIX_COMPILE", raising=False)
    monkeypatch.setattr(moves, "_FIRST", 3)
    monkeypatch.setattr(moves, "_WORK", 10)
    automatic, eager = drawn("geometric", "auto"), drawn("geometric", False)
    assert automatic.info.extra["compile"]["backend"] == "native"
    torch.testing.assert_close(automatic.x, eager.x, rtol=1e-6, atol=1e-6)


def test_what_does_not_compile_warns_once_and_goes_on():
    sampler = bm.SMC(levels=4, kernel=bm.NUTS(max_depth=3))
    with pytest.warns(bm.SamplingWarning, match="moves are not compiled: moves by NUTS are eager") as caught:
        draw = bm.sample(QUARTIC, 50, sampler=replace(sampler, compile=True), seed=1, init=PRIOR)
    assert len([w for w in caught if "not compiled" in str(w.message)]) == 1
    eager = bm.sample(QUARTIC, 50, sampler=replace(sampler, compile=False), seed=1, init=PRIOR)
    assert torch.equal(draw.x, eager.x)
    assert "NUTS" in draw.info.extra["compile"]["reason"]


def test_a_setting_that_is_none():
    for make in (bm.SMC, bm.Annealed, bm.AIS):
        with pytest.raises(ValueError, match='compile is "auto", True or False'):
            make(compile="yes")  # pyright: ignore[reportArgumentType]


def test_parts_in_one_tensor_and_apart():
    generator = torch.Generator().manual_seed(0)
    energies, slopes = torch.randn(2, 5, generator=generator), torch.randn(2, 5, 3, generator=generator)
    parts = (energies[0], slopes[0], energies[1], slopes[1])
    for found, wanted in zip(unflat(flat(parts)), parts, strict=True):
        assert torch.equal(found, wanted)


def work_is_counted() -> None:
    """Calls and numbers of one evaluation, times evaluations; both ends of a geometric path count."""
    path = tempered(FlatView(QUARTIC, dtype=F64), PRIOR)
    found = Moves(path, bm.HMC(), "auto")
    found._did(100, 10)
    x = torch.zeros(100, 2, dtype=F64)
    rows = path.view.counter.rows
    assert found._measure(0.5, x)
    assert path.view.counter.rows == rows
    assert found._work == 10 * (found._calls * moves._CALL + 100 * found._each)
    before = found._work
    found._did(100, 3)
    assert found._work * 10 == before * 13


def test_work_is_counted():
    work_is_counted()


def test_a_level_is_an_input():
    path = tempered(FlatView(QUARTIC, dtype=F64), PRIOR)
    x = torch.ones(3, 2, dtype=F64)
    target = LevelTarget(path, torch.tensor(0.25, dtype=F64))
    assert target.parts == 6
    for number in (0.25, 0.75):
        wanted = path.evaluate(x, number)
        energy, score, parts = target.having([torch.tensor(number, dtype=F64)]).energy_score_parts(x)
        torch.testing.assert_close(energy, wanted.energy)
        torch.testing.assert_close(score, wanted.score)
        assert wanted.parts is not None
        torch.testing.assert_close(parts, flat(wanted.parts))


def test_exact_weights():
    """Half way between N(0, 1) and N(0, 1/3) energies are their mean."""
    target = bm.term(lambda x: 1.5 * (x * x).sum(-1), kind="energy", event_shape=(2,))
    path = tempered(FlatView(target, dtype=F64), PRIOR)
    point = path.evaluate(torch.ones(1, 2, dtype=F64), 0.25)
    assert float(point.energy) == pytest.approx(0.75 * (1.0 + math.log(2 * math.pi)) + 0.25 * 3.0)
    assert point.score[0].tolist() == pytest.approx([-1.5, -1.5])
