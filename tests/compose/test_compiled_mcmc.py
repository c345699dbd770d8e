"""``MCMC(compile=…)``: compiled chains are the chains that were asked for, and what cannot be compiled says so."""

import warnings

import pytest
import torch

from boltzmix.compose import HMC, MALA, MCMC, NUTS, ULA, Gaussian, Windows, compile_kernel, ravel, sample, term
from boltzmix.compose.compiled import toolchain
from boltzmix.compose.errors import CompileError
from boltzmix.compose.samplers import base
from tests.interruption import Killed, assert_same_run

SCALES = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def _has_compiler() -> bool:
    try:
        toolchain.compiler()
    except CompileError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_compiler(), reason="there is no C++ compiler here")


def _log_prob(x):
    return -0.5 * ((x / SCALES.to(x)) ** 2).sum(1)


def _target(**hints):
    return term(_log_prob, kind="log_prob", event_shape=(3,), **hints)


def _run(kernel, setting=True, **options):
    settings = {"warmup": 100, "draws": 100, **options}
    return sample(_target(), chains=6, sampler=MCMC(kernel, compile=setting, **settings), seed=0, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [HMC(0.6, 4), MALA(0.4)], ids=["HMC", "MALA"])
def test_a_fixed_kernel_makes_the_eager_chains(kernel):
    """The same noise, so the same states up to rounding, the same statistics and the same count."""
    eager, compiled = (_run(kernel, c, warmup=0, thin=3, draws=30) for c in (False, True))
    assert compiled.info.extra["compile"]["backend"] == "native"
    assert eager.info.extra["compile"] == {"backend": "eager", "seconds": 0.0, "reason": "compile=False"}
    torch.testing.assert_close(compiled.x, eager.x, rtol=1e-9, atol=1e-9)
    assert set(compiled.stats) == set(eager.stats)
    for name, values in eager.stats.items():
        torch.testing.assert_close(compiled.stats[name], values, rtol=1e-8, atol=1e-8)
    for name in ("evaluations", "divergences"):
        assert getattr(compiled.info, name) == getattr(eager.info, name)
    assert compiled.info.acceptance == pytest.approx(eager.info.acceptance)
    if eager.info.extra.get("bfmi") is not None:
        assert compiled.info.extra["bfmi"] == pytest.approx(eager.info.extra["bfmi"])


def test_a_compiled_warm_up_learns():
    """Variances of compiled NUTS with its adaptation: 6 chains × 400 draws, six standard errors (about 1e-8)."""
    draw = _run(NUTS(), warmup=200, draws=400)
    assert draw.info.extra["compile"]["backend"] == "native"
    flat = draw.x.flatten(0, 1)
    effective = draw.info.ess
    assert bool(((flat.var(0) / SCALES**2).log().abs() < 6 * (2 / effective) ** 0.5).all())
    assert draw.info.evaluations == pytest.approx(
        float(draw.stats["n_steps"].sum(1).double().mean()) + draw.info.extra["warmup_evaluations"]
    )


@pytest.mark.parametrize("kernel", [HMC(num_leapfrog=3), NUTS(max_depth=4)], ids=["HMC", "NUTS"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kernel):
    """Killed at its third save, in the sampling phase; saved after every block."""
    sampler, save, count = MCMC(kernel, warmup=100, draws=150, compile=True), base.Checkpoint.save, 0

    def dies(self, make, force=False):
        nonlocal count
        save(self, make, True)
        count += 1
        if count == 3:
            raise Killed

    def run(checkpoint):
        return sample(_target(), chains=4, sampler=sampler, seed=1, checkpoint=checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.Checkpoint, "save", dies)
        with pytest.raises(Killed):
            run(tmp_path / "run.safetensors")
    resumed = run(tmp_path / "run.safetensors")
    assert resumed.info.extra["compile"]["backend"] == "native"
    assert_same_run(run(None), resumed)


def test_a_changed_parameter_is_never_stale():
    """The target is traced anew for each run."""
    p = Gaussian(torch.zeros(2), 1.0)
    sampler = MCMC(HMC(0.5, 3), draws=200, compile=True)
    before = sample(p, chains=4, sampler=sampler, seed=0)
    with torch.no_grad():
        next(t for t in (*p.parameters(), *p.buffers()) if t.shape == (2,)).add_(50.0)
    after = sample(p, chains=4, sampler=sampler, seed=0)
    assert after.info.extra["compile"]["backend"] == "native"
    assert float(before.x.mean()) < 5 < 45 < float(after.x.mean())


def test_auto_is_eager_for_short_runs_and_where_it_is_turned_off(monkeypatch):
    """``"auto"`` judges by counts; the reason is on record."""
    monkeypatch.delenv("BOLTZMIX_COMPILE", raising=False)
    short = _run(HMC(0.5, 2), "auto", warmup=0)
    assert short.info.extra["compile"]["reason"] == "the run is short"
    long = _run(HMC(0.5, 16), "auto", warmup=0, draws=1100)
    assert long.info.extra["compile"]["backend"] == "native"
    monkeypatch.setenv("BOLTZMIX_COMPILE", "0")
    assert _run(HMC(0.5, 16), "auto", warmup=0, draws=1100).info.extra["compile"]["reason"] == "BOLTZMIX_COMPILE=0"


def _branches(x):
    return _log_prob(x) if float(x.sum()) < 1e9 else 2 * _log_prob(x)


def _mixes_rows(x):
    return _log_prob(x) + 0.0 * x.sum(1) + (x.mean(0) ** 2).sum()


def test_what_cannot_be_compiled_is_eager_with_one_warning():
    """The draws are those of ``compile=False``."""
    p = term(_branches, kind="log_prob", event_shape=(3,))
    sampler = MCMC(HMC(num_leapfrog=2), warmup=60, draws=50, compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw = sample(p, chains=4, sampler=sampler, seed=0)
    assert sum("not compiled" in str(w.message) for w in caught) == 1
    assert draw.info.extra["compile"]["backend"] == "eager"
    eager = sample(p, chains=4, sampler=MCMC(HMC(num_leapfrog=2), warmup=60, draws=50, compile=False), seed=0)
    assert torch.equal(draw.x, eager.x)


def test_rows_that_touch_each_other_are_not_compiled_alone():
    """A function of the whole batch has no graph of one row."""
    target = ravel(term(_mixes_rows, kind="log_prob", event_shape=(3,)))
    kernel = ULA(0.01)
    state = kernel.init(target, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(CompileError, match="rows touch"):
        compile_kernel(kernel, target, state, backend="native")


def test_without_a_compiler_chains_are_eager(monkeypatch, tmp_path):
    """``"auto"`` goes on silently, and says why."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.delenv("BOLTZMIX_COMPILE")
    toolchain.compiler.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw = _run(HMC(0.5, 16), "auto", warmup=0, draws=1100)
    finally:
        toolchain.compiler.cache_clear()
    assert "CXX" in draw.info.extra["compile"]["reason"]
    assert not any("compiled" in str(w.message) for w in caught)


@pytest.mark.parametrize("value", ["always", 1, None])
def test_other_settings_are_refused(value):
    """Three values, and no others."""
    with pytest.raises(ValueError, match="compile"):
        MCMC(compile=value)


def test_masses_may_change_their_kind_in_a_warm_up():
    """A dense window after none: code for each."""
    draw = _run(HMC(num_leapfrog=3), adapt=Windows(mass="dense"), warmup=150)
    assert draw.info.extra["compile"]["backend"] == "native"
    assert draw.info.acceptance > 0.5
