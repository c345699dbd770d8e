"""Errors that counting and reporting other libraries can have, planted one by one: a law notices each."""

from importlib.util import find_spec

import pytest

from tests.benchmarks import test_peers
from tests.mutations.harness import Mutation, law, verify

PEERS = "boltzmix.benchmarks.peers"
GUARD, COUNTING, BASE = f"{PEERS}.guard", f"{PEERS}.counting", f"{PEERS}.base"
LIMITED, PYRO, TORCHEBM = f"{PEERS}.limited", f"{PEERS}.pyro", f"{PEERS}.torchebm"
BLACKJAX = f"{PEERS}.blackjax"

ROWS, FINITE = law(test_peers.exceptions_are_rows), law(test_peers.draws_that_are_not_finite_are_errors)
LIES, LATE = law(test_peers.lies_are_noticed), law(test_peers.late_answers_are_rows)
TRANSITIONS = law(test_peers.gradients_of_pyro_are_those_of_each_transition)
WARMUPS = law(test_peers.warmups_are_counted_apart)


def counts(name):
    return law(test_peers.counts_are_those_that_the_target_sees, name, 30)


def starts(name):
    return law(test_peers.starts_are_evaluated, name)


EVERYWHERE = [
    Mutation("the library's name lost", GUARD, "name or name_of(method)", "name_of(method)", ROWS),
    Mutation("another seed", GUARD, "density, seed, error)", "density, 0, error)", ROWS),
    Mutation("only lookups that fail", GUARD, "except Exception", "except LookupError", ROWS),
    Mutation("rows that are wholly not finite", GUARD, "run.draws).all(-1)", "run.draws).any(-1)", FINITE),
    Mutation("infinities pass", GUARD, "torch.isfinite(run.draws)", "~torch.isnan(run.draws)", FINITE),
    Mutation("draws not looked at", GUARD, "return finite(method(", "return (method(", FINITE),
    Mutation(
        "what a failed run cost is forgotten",
        GUARD,
        "return replace(run, error=",
        "return replace(run, tuning_gradients=0.0, error=",
        FINITE,
    ),
    Mutation("tuning not asked for", COUNTING, " + run.tuning_gradients * chains", "", LIES),
    Mutation(
        "what is said is believed",
        COUNTING,
        "chains, spy.evaluations()",
        "chains, round(float(run.gradients.sum()) + run.tuning_gradients)",
        LIES,
    ),
    Mutation("a count of calls in jax alone", COUNTING, "self._tally.rows + self._calls", "self._calls", LIES),
    Mutation(
        "late processes live on",
        LIMITED,
        "self.close()\n                return failed(label, target, seed, f",
        "return failed(label, target, seed, f",
        LATE,
    ),
]
WITH_PYRO = [
    Mutation(
        "the warm-up's last transition for the first draw",
        PYRO,
        "diff()[budget.warmup :]",
        "diff()[budget.warmup - 1 : -1]",
        TRANSITIONS,
    ),
    Mutation(
        "the start not counted", PYRO, "float(rows[budget.warmup])", "float(rows[budget.warmup] - 1)", TRANSITIONS
    ),
    Mutation(
        "every chain from the first start",
        PYRO,
        "_chain(density, start, budget)",
        "_chain(density, starts[0].to(self.dtype), budget)",
        starts("Pyro NUTS"),
    ),
]
WITH_TORCHEBM = [
    Mutation(
        "a warm-up that is free", TORCHEBM, "tuning_gradients=before / len(starts)", "tuning_gradients=0.0", WARMUPS
    ),
    Mutation("warm-up counted as sampling", TORCHEBM, "(tally.rows - before)", "tally.rows", WARMUPS),
    Mutation(
        "gradients of all chains for one", TORCHEBM, "(draws.shape[0] * draws.shape[1])", "draws.shape[1]", WARMUPS
    ),
    Mutation(
        "what it should cost for what it did",
        TORCHEBM,
        "torch.full(draws.shape[:2], cost,",
        "torch.full(draws.shape[:2], 3.0,",
        WARMUPS,
    ),
    Mutation(
        "starts of its own",
        TORCHEBM,
        "clock, x = time.process_time(), starts.to(self.dtype)",
        "clock, x = time.process_time(), torch.randn_like(starts)",
        starts("torchebm HMC"),
    ),
]
#: seconds of compilation each
WITH_BLACKJAX = [
    Mutation(
        "one gradient for a step of the isokinetic integrator",
        BLACKJAX,
        "jnp.asarray(2)",
        "jnp.asarray(1)",
        counts("BlackJAX MCLMC"),
    ),
    Mutation(
        "tuning steps of one gradient",
        BLACKJAX,
        "jnp.asarray(2 * steps + 1)",
        "jnp.asarray(steps + 1)",
        counts("BlackJAX MCLMC"),
    ),
    Mutation(
        "steps of adjusted MCLMC for gradients",
        BLACKJAX,
        "transition(state, info, 2 * info",
        "transition(state, info, info",
        counts("BlackJAX adjusted MCLMC"),
    ),
    Mutation(
        "tuning of MALA that is free", BLACKJAX, "jnp.asarray(warmup + 1)", "jnp.asarray(1)", counts("BlackJAX MALA")
    ),
    Mutation(
        "transitions thrown away that are free",
        BLACKJAX,
        "costs.sum() + 1",
        "1 + 0 * costs.sum()",
        counts("BlackJAX HMC given"),
    ),
    Mutation(
        "one window of the adaptation",
        BLACKJAX,
        "num_integration_steps.sum() + 1",
        "num_integration_steps[-1] + 1",
        counts("BlackJAX NUTS"),
    ),
]


@pytest.mark.parametrize("mutation", EVERYWHERE, ids=lambda m: m.name)
def test_it_is_noticed(mutation):
    verify(mutation)


@pytest.mark.skipif(find_spec("pyro") is None, reason='needs pip install "boltzmix[peers]"')
@pytest.mark.parametrize("mutation", WITH_PYRO, ids=lambda m: m.name)
def test_it_is_noticed_with_pyro(mutation):
    verify(mutation)


@pytest.mark.skipif(find_spec("torchebm") is None, reason='needs pip install "boltzmix[peers]"')
@pytest.mark.parametrize("mutation", WITH_TORCHEBM, ids=lambda m: m.name)
def test_it_is_noticed_with_torchebm(mutation):
    verify(mutation)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("blackjax") is None, reason='needs pip install "boltzmix[peers]"')
@pytest.mark.parametrize("mutation", WITH_BLACKJAX, ids=lambda m: m.name)
def test_it_is_noticed_with_blackjax(mutation):
    verify(mutation)
