"""Other libraries as methods: what they draw, what they count, and that whatever goes wrong is a row.

Statistical checks have fixed seeds and state their false-positive rate. Libraries that are not installed are skipped;
what takes long to compile is marked slow.
"""

import functools
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from boltzmix.benchmarks.audit import run_counted
from boltzmix.benchmarks.densities import Density, density
from boltzmix.benchmarks.densities.base import gaussian_moments
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers import (
    PEERS,
    BlackJAXAdjustedMCLMC,
    BlackJAXHMC,
    BlackJAXMALA,
    BlackJAXMCLMC,
    BlackJAXNUTS,
    HamiltorchHMC,
    NumPyroHMC,
    NumPyroNUTS,
    PyroNUTS,
    TorchEBMHMC,
    TorchEBMLangevin,
    guarded,
    limited,
    raw_hmc,
    raw_mclmc,
    raw_nuts,
    verify_count,
)
from boltzmix.compose.errors import MissingExtra

MEAN, SD = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
LANGEVIN = 0.02
#: by name: the peer, chains, warm-up, draws
RUNS = {
    "BlackJAX NUTS": (BlackJAXNUTS(), 24, 200, 300),
    "BlackJAX HMC": (BlackJAXHMC(), 24, 200, 300),
    "BlackJAX HMC given": (BlackJAXHMC(step_size=0.4, num_leapfrog=5), 24, 50, 300),
    "BlackJAX MALA": (BlackJAXMALA(), 24, 300, 3000),
    "BlackJAX MCLMC": (BlackJAXMCLMC(), 24, 600, 3000),
    "BlackJAX adjusted MCLMC": (BlackJAXAdjustedMCLMC(), 24, 300, 600),
    "NumPyro NUTS": (NumPyroNUTS(), 24, 200, 300),
    "NumPyro HMC": (NumPyroHMC(), 24, 200, 300),
    "Pyro NUTS": (PyroNUTS(), 12, 40, 40),
    "torchebm HMC": (TorchEBMHMC(num_leapfrog=5), 24, 200, 200),
    "torchebm Langevin": (TorchEBMLangevin(step_size=LANGEVIN), 64, 1000, 1500),
}
#: nothing of these is compiled, and of what is, one
QUICK = ("Pyro NUTS", "torchebm HMC", "torchebm Langevin")
COMPILED = "BlackJAX MALA"


def gaussian(**changes):
    """A 3-d Gaussian with known moments, in torch and in jax; a new one each time, for which nothing is compiled."""

    def log_prob(x):
        return -0.5 * (((x - MEAN.to(x)) / SD.to(x)) ** 2).sum(1)

    def jax_log_prob():
        import jax.numpy as jnp

        return lambda x: -0.5 * jnp.sum(((x - MEAN.numpy()) / SD.numpy()) ** 2)

    found = Density("gaussian 3", 3, log_prob, jax_log_prob, **gaussian_moments(MEAN, SD**2))
    return replace(found, **changes)


def needs(peer):
    """Skip where its library is not installed."""
    for package in peer.packages:
        pytest.importorskip(package, reason='needs pip install "boltzmix[peers]"')


def runs(names, quick=QUICK):
    """The runs as parameters, those that compile for long marked."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow], id=name) for name in names]


def worst_t(errors):
    """The largest |t| over columns of errors of independent chains."""
    return float((errors.mean(0) / (errors.std(0) / len(errors) ** 0.5)).abs().max())


# --------------------------------------------------------------------- what they draw


@pytest.mark.parametrize("name", runs(RUNS, (*QUICK, COMPILED)))
def test_a_gaussian_is_drawn_right(name):
    """Means and variances, by t-tests over independent chains, 6 for each peer.

    |t| < 6.5 is exceeded with probability 1e-6 by 24 chains (t with 23 degrees of freedom), 5e-5 by the 12 of Pyro:
    less than 1e-3 for all together. The unadjusted ones have the bias that they should have: Langevin dynamics of
    variance v with step τ has the variance v / (1 − τ / 2v), and MCLMC's energy error of 5e-4 allows two per cent.
    """
    peer, chains, warmup, draws = RUNS[name]
    needs(peer)
    target = gaussian()
    run = peer(target, target.starts(chains, 0), Budget(warmup, draws), 1)
    assert run.error is None
    assert run.draws.shape == (chains, draws, 3)
    assert run.draws.dtype == torch.float64
    assert run.gradients.shape == (chains, draws)
    assert set(run.seconds) == {"compile", "tuning", "sampling"}
    truth = SD**2 / (1 - LANGEVIN / (2 * SD**2)) if name == "torchebm Langevin" else SD**2
    errors = (run.draws - MEAN) / truth.sqrt()
    squares = errors.square().mean(1) - 1
    assert worst_t(errors.mean(1)) < 6.5
    if name == "BlackJAX MCLMC":
        assert float(squares.mean(0).abs().max()) < 0.02 + 6.5 * float(squares.std(0).max()) / chains**0.5
    else:
        assert worst_t(squares) < 6.5
    assert float(squares.std(0).max()) < 1.0  # the test above says nothing where chains have not moved


def starts_are_evaluated(name):
    """Every chain begins where it was told to: its start is the first point, or among the first, that is evaluated."""
    peer = RUNS[name][0]
    seen = []
    plain = gaussian()

    def log_prob(x):
        seen.extend(x.detach().tolist())
        return plain.log_prob(x)

    def jax_log_prob():
        import jax

        one = plain.jax_log_prob()

        def spied(x):
            jax.debug.callback(lambda p: seen.append(p.tolist()), x)
            return one(x)

        return spied

    target = replace(plain, log_prob=log_prob, jax_log_prob=jax_log_prob)
    starts = target.starts(2, 5)
    assert peer(target, starts, Budget(4, 2), 0).error is None
    for start in starts.tolist():
        assert start in seen, name
    other = replace(target, name="other").starts(2, 6)
    assert not any(start in seen for start in other.tolist())


@pytest.mark.parametrize("name", runs(RUNS))
def test_chains_start_where_they_are_told_to(name):
    needs(RUNS[name][0])
    starts_are_evaluated(name)


@pytest.mark.parametrize("name", runs(n for n in RUNS if n not in ("torchebm Langevin", "BlackJAX HMC given")))
def test_seeds_reproduce(name):
    peer = RUNS[name][0]
    needs(peer)
    target = gaussian()
    first, again, other = (peer(target, target.starts(2, 0), Budget(10, 5), seed).draws for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_is_left_alone():
    needs(PyroNUTS())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    target = gaussian()
    PyroNUTS()(target, target.starts(1, 0), Budget(3, 3), 0)
    assert torch.rand(1) == expected


@pytest.mark.slow
def test_precisions_are_those_asked_for_and_end_with_the_run():
    needs(BlackJAXMALA())
    import jax

    target, before = gaussian(), jax.config.jax_enable_x64
    single, double = (
        BlackJAXMALA(dtype=dtype)(target, target.starts(2, 0), Budget(5, 5), 0)
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single.draws.float().double(), single.draws)
    assert not torch.equal(double.draws.float().double(), double.draws)
    assert (single.method, double.method) == ("BlackJAX MALA float32", "BlackJAX MALA")
    assert jax.config.jax_enable_x64 == before


@pytest.mark.slow
def test_programs_are_compiled_once_for_every_seed():
    """Also where something that counts stands before the target, as in a comparison; never where a spy does."""
    needs(BlackJAXMALA())
    from boltzmix.benchmarks.peers import jax_base

    peer, target, budget = BlackJAXMALA(step_size=0.1), gaussian(), Budget(2, 2)
    seconds = [run_counted(peer, "MALA", target, target.starts(2, s), budget, s).seconds["compile"] for s in range(2)]
    assert seconds[0] == seconds[1] > 0
    before = jax_base._programs.cache_info().misses
    peer(target, target.starts(2, 2), budget, 2)
    assert jax_base._programs.cache_info().misses == before
    peer(target, target.starts(3, 2), budget, 2)
    assert jax_base._programs.cache_info().misses == before + 1


# --------------------------------------------------------------------- what they count

#: gradients of a draw, where they are known
COSTS = {
    "BlackJAX HMC given": 5.0,
    "BlackJAX MALA": 1.0,
    "BlackJAX MCLMC": 2.0,
    "torchebm HMC": 12.0,  # 2 L and two energies
    "torchebm Langevin": 1.0,
}


def counts_are_those_that_the_target_sees(name, warmup=12, draws=8):
    said, counted = verify_count(RUNS[name][0], gaussian(), Budget(warmup, draws))
    assert 0 <= counted - said <= 2, (said, counted)  # a start may be evaluated twice


@pytest.mark.parametrize("name", runs(RUNS, (*QUICK, COMPILED)))
def test_counts_are_those_that_the_target_sees(name):
    needs(RUNS[name][0])
    counts_are_those_that_the_target_sees(name, warmup=30 if "MCLMC" in name else 12)


@pytest.mark.parametrize("name", runs(COSTS))
def test_a_gradient_budget_buys_what_it_should(name):
    peer = RUNS[name][0]
    needs(peer)
    target = gaussian()
    run = peer(target, target.starts(1, 0), Budget(30, 7, gradients=240), 0)
    assert run.draws.shape[1] == 240 / COSTS[name]
    assert bool((run.gradients == COSTS[name]).all())


def gradients_of_pyro_are_those_of_each_transition():
    """What the target sees of one more draw of the same chain is what that draw cost."""
    plain, seen = gaussian(), []

    def log_prob(x):
        seen.append(len(x))
        return plain.log_prob(x)

    totals, runs = [], []
    for draws in range(1, 6):
        seen.clear()
        runs.append(PyroNUTS()(replace(plain, log_prob=log_prob), plain.starts(1, 0), Budget(15, draws), 0))
        totals.append(sum(seen))
    assert totals == [float(r.gradients.sum()) + r.tuning_gradients for r in runs]
    assert len({r.tuning_gradients for r in runs}) == 1
    assert runs[-1].gradients[0, 1:].tolist() == torch.tensor(totals).diff().tolist()


def test_gradients_of_pyro_are_those_of_each_transition():
    needs(PyroNUTS())
    gradients_of_pyro_are_those_of_each_transition()


def warmups_are_counted_apart():
    """20 transitions of 3 leapfrogs that are thrown away, and 4 that are kept; searching a step costs as much."""
    for step_size in (0.3, None):
        target = gaussian()
        peer = TorchEBMHMC(step_size=step_size, num_leapfrog=3)
        run = peer(target, target.starts(5, 0), Budget(20, 4), 0)
        assert run.tuning_gradients == 20 * 8
        assert run.gradients.tolist() == [[8.0] * 4] * 5


def test_warmups_are_counted_apart():
    needs(TorchEBMHMC())
    warmups_are_counted_apart()


def lies_are_noticed():
    """Of methods that evaluate 4 rows before and 6 rows after the first draw: whatever they say, all 10 are counted."""

    def method(density, starts, budget, seed, gradients=3.0, tuning=4.0):
        density.log_prob(starts.expand(4, -1))
        density.log_prob(starts.expand(6, -1))
        cost = torch.full((1, 2), gradients)
        return MethodRun("method", density.name, seed, torch.zeros(1, 2, 3), cost, tuning, {})

    assert verify_count(method, gaussian()) == (10.0, 10)
    assert verify_count(functools.partial(method, gradients=1.0), gaussian()) == (6.0, 10)
    assert verify_count(functools.partial(method, tuning=0.0), gaussian()) == (6.0, 10)


def test_lies_are_noticed():
    lies_are_noticed()


# --------------------------------------------------------------------- raw rates


@pytest.mark.slow
def test_raw_rates_are_those_of_right_samplers():
    """Started from exact draws, HMC keeps them exact: 256 chains, |t| < 6 of 6 means with probability 1e-7."""
    needs(BlackJAXHMC())
    target = gaussian()
    normal = torch.randn(256, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = raw_hmc(target, MEAN + SD * normal, 0.4, 5, 20, seed=0, repeats=3)
    assert run.name == "BlackJAX HMC float32"
    assert len(run.seconds) == 3
    assert run.gradients == [256 * 20 * 5] * 3
    assert run.rate > 0
    assert run.compile_seconds > 0
    assert 0.6 < run.acceptance < 1
    assert run.divergences == 0
    errors = (run.draws - MEAN) / SD
    assert worst_t(errors.mean(1)) < 6
    assert worst_t(errors.square().mean(1) - 1) < 6
    run = raw_mclmc(target, MEAN + SD * normal, 0.3, 2.0, 20, seed=0, repeats=2)
    assert run.gradients == [256 * 20 * 2] * 2
    assert float((run.draws.var((0, 1)) / SD**2 - 1).abs().max()) < 0.2
    for library in ("BlackJAX", "NumPyro"):
        pytest.importorskip(library.lower())
        run = raw_nuts(target, target.starts(8, 0), 100, 50, seed=0, library=library)
        assert run.name == f"{library} NUTS"
        assert len(run.seconds) == 1
        assert run.draws.shape == (8, 50, 3)
        assert run.tuning_seconds > 0
        assert run.gradients[0] > 8 * 50


def test_raw_rates_refuse_what_they_cannot_do():
    target = gaussian()
    with pytest.raises(ValueError, match="library is one of BlackJAX, NumPyro, got 'Stan'"):
        raw_nuts(target, target.starts(2, 0), 5, 5, 0, library="Stan")
    with pytest.raises(ValueError, match="repeats and transitions are at least 1, got 0 and 5"):
        raw_hmc(target, target.starts(2, 0), 0.1, 3, 5, 0, repeats=0)


# --------------------------------------------------------------------- what goes wrong


def broken(x):
    raise RuntimeError("out of order\nand more")


def exceptions_are_rows():
    """With the name, target and seed of what failed, and the first line of why."""

    def method(density, starts, budget, seed):
        return density.log_prob(starts)

    target = gaussian(log_prob=broken)
    run = guarded(method, target, target.starts(2, 0), Budget(1, 1), 7)
    assert (run.method, run.target, run.seed, run.draws) == ("method", "gaussian 3", 7, None)
    assert run.error == "RuntimeError: out of order"
    assert guarded(method, target, target.starts(2, 0), Budget(1, 1), 7, name="mine").method == "mine"


def test_exceptions_are_rows():
    exceptions_are_rows()


def draws_that_are_not_finite_are_errors():
    """One coordinate is enough; the draws are kept as they are, and nothing is said of runs that are finite."""
    draws = torch.zeros(2, 5, 3, dtype=torch.float64)

    def method(density, starts, budget, seed):
        return MethodRun("method", density.name, seed, draws.clone(), torch.ones(2, 5), 3.0, {})

    target = gaussian()
    call = functools.partial(guarded, method, target, target.starts(2, 0), Budget(1, 5), 0)
    assert call().error is None
    draws[1, 3, 2] = torch.inf
    draws[1, 4] = torch.nan
    run = call()
    assert run.error == "NonFinite: 2 of 10 draws are not finite, the first is draw 3 of chain 1"
    assert run.tuning_gradients == 3.0


def test_draws_that_are_not_finite_are_errors():
    draws_that_are_not_finite_are_errors()


def peers_that_fail_are_rows():
    for name in ("torchebm HMC", "Pyro NUTS", "BlackJAX MALA"):
        peer = RUNS[name][0]
        target = gaussian(log_prob=broken, jax_log_prob=lambda: broken)
        run = peer(target, target.starts(2, 0), Budget(3, 3), 1)
        assert (run.method, run.draws, run.error) == (peer.name, None, "RuntimeError: out of order")
        with pytest.raises(RuntimeError, match="out of order"):
            peer.run(target, target.starts(2, 0), Budget(3, 3), 1)


def test_peers_that_fail_are_rows():
    for name in ("torchebm HMC", "Pyro NUTS", "BlackJAX MALA"):
        needs(RUNS[name][0])
    peers_that_fail_are_rows()


def test_a_density_that_is_not_in_jax_is_a_row():
    needs(BlackJAXMALA())
    target = gaussian(jax_log_prob=None)
    run = BlackJAXMALA()(target, target.starts(2, 0), Budget(3, 3), 1)
    assert run.error == "ValueError: gaussian 3 is not written in jax, so BlackJAX MALA cannot run on it"


def test_a_discrete_density_is_a_row():
    target = gaussian(support="integers(2)")
    run = TorchEBMHMC()(target, target.starts(2, 0), Budget(3, 3), 1)
    assert run.error == "ValueError: gaussian 3 is over integers(2); torchebm HMC needs a gradient"


@pytest.mark.parametrize("name", PEERS)
def test_a_library_that_is_missing_is_a_row(name, monkeypatch):
    def absent(package):
        return None if package not in ("torch", "numpy") else find_spec(package)

    monkeypatch.setattr("importlib.util.find_spec", absent)
    target = gaussian()
    run = PEERS[name](target, target.starts(2, 0), Budget(3, 3), 1)
    assert run.method == name
    assert run.error.startswith("MissingExtra: ")
    assert "boltzmix[peers]" in run.error
    with pytest.raises(MissingExtra):
        PEERS[name].run(target, target.starts(2, 0), Budget(3, 3), 1)


def test_hamiltorch_is_a_row_that_says_why():
    target = gaussian()
    run = HamiltorchHMC()(target, target.starts(2, 0), Budget(3, 3), 1)
    assert "not on the package index" in run.error


def test_wrong_arguments_are_refused():
    target, peer, budget = gaussian(), TorchEBMHMC(), Budget(3, 3)
    with pytest.raises(TypeError, match=r"starts is a float64 tensor, got torch.float32; write density.starts"):
        peer(target, torch.zeros(2, 3), budget, 0)
    with pytest.raises(ValueError, match=r"starts is \(chains, 3\) for gaussian 3, got \(2, 4\)"):
        peer(target, torch.zeros(2, 4, dtype=torch.float64), budget, 0)
    with pytest.raises(ValueError, match="not finite"):
        peer(target, torch.full((2, 3), torch.nan, dtype=torch.float64), budget, 0)
    for make, words in (
        (lambda: BlackJAXNUTS(dtype=torch.float16), "dtype is torch.float64 or torch.float32"),
        (lambda: BlackJAXHMC(step_size=-1.0), "step_size is a positive number or None, got -1.0"),
        (lambda: BlackJAXHMC(num_leapfrog=0), "num_leapfrog is an int >= 1, got 0"),
        (lambda: BlackJAXMCLMC(step_size=0.1), "given together, or neither"),
        (lambda: BlackJAXAdjustedMCLMC(acceptance=1.0), "acceptance is between 0 and 1"),
        (lambda: TorchEBMLangevin(step_size=0.0), "step_size is a positive number or None, got 0.0"),
        (lambda: limited(peer, 0.0), "seconds is a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


# --------------------------------------------------------------------- a limit in time


def late_answers_are_rows():
    """A process cannot start within a twentieth of a second, let alone answer; it is ended and never read."""
    from boltzmix.benchmarks.peers.limited import _RUNNING

    method, target = limited(TorchEBMHMC(), 0.05), density("eight_schools")
    run = method(target, target.starts(2, 0), Budget(1, 1), 3)
    assert (run.method, run.target, run.seed) == ("torchebm HMC", "eight_schools", 3)
    assert run.draws is None
    assert run.error == "TimeoutError: did not end within 0.05 s"
    assert method not in _RUNNING


def test_late_answers_are_rows():
    late_answers_are_rows()


def stays(log_prob):
    """A method that stays where it starts, after one evaluation, and what it is to evaluate: both by value."""

    def stay(density, starts, budget, seed):
        density.log_prob(starts)
        return MethodRun("stay", density.name, seed, starts[:, None].clone(), torch.ones(len(starts), 1), 0.0, {})

    return stay, gaussian(log_prob=log_prob, jax_log_prob=None)


def test_a_broken_density_and_a_slow_one_are_rows_and_the_next_run_goes_on():
    pytest.importorskip("cloudpickle")

    def wrong(x):
        raise RuntimeError("out of order\nand more")

    def slow(x):
        import time

        time.sleep(1000)

    method, budget, starts = limited(stays(None)[0], 60), Budget(1, 1), gaussian().starts(2, 0)
    assert method(stays(lambda x: wrong(x))[1], starts, budget, 0).error == "RuntimeError: out of order"
    target = stays(lambda x: -0.5 * x.square().sum(1))[1]
    run = run_counted(method, "mine", target, starts, budget, 0)
    assert (run.method, run.error) == ("mine", None)  # what it says is what was counted, in the other process
    assert torch.equal(run.draws[:, 0], starts)
    method.seconds, clock = 1.0, time.perf_counter()
    assert method(stays(slow)[1], starts, budget, 0).error == "TimeoutError: did not end within 1 s"
    assert time.perf_counter() - clock < 500  # rather than the 1000 that it sleeps


@pytest.mark.slow
def test_a_process_that_dies_is_a_row_and_the_next_run_goes_on():
    pytest.importorskip("cloudpickle")

    def dead(x):
        import os

        os._exit(5)

    method, budget, starts = limited(stays(None)[0], 60), Budget(1, 1), gaussian().starts(2, 0)
    run = method(stays(dead)[1], starts, budget, 0)
    assert run.error == "RuntimeError: its process ended with exit code 5"
    assert method(stays(lambda x: -0.5 * x.square().sum(1))[1], starts, budget, 0).error is None
    method.close()


def test_what_cannot_be_sent_is_a_row():
    pytest.importorskip("cloudpickle")
    lock = (time.sleep(0) for _ in range(3))  # no generator can be pickled
    target = gaussian(log_prob=lambda x: next(lock))
    run = limited(TorchEBMHMC(), 30)(target, target.starts(2, 0), Budget(1, 1), 0)
    assert "cannot be sent to another process" in run.error
