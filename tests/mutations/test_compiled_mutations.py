"""Errors in whether and how transitions are compiled: each is noticed."""

import pytest

from tests.compose import test_compiled_kernels, test_compiled_mcmc
from tests.mutations.harness import Mutation, law, verify

pytestmark = test_compiled_mcmc.pytestmark
POLICY, TRANSITIONS = "boltzmix.compose.compiled.policy", "boltzmix.compose.compiled.transitions"
CHAINS = "boltzmix.compose.samplers.mcmc"


def _auto():
    with pytest.MonkeyPatch.context() as patch:
        test_compiled_mcmc.test_auto_is_eager_for_short_runs_and_where_it_is_turned_off(patch)


AUTO = law(_auto)
SAME = law(test_compiled_mcmc.test_a_fixed_kernel_makes_the_eager_chains, test_compiled_mcmc.HMC(0.6, 4))
RANDOM = law(test_compiled_kernels.test_compiled_is_eager_on_the_same_noise, "HMC of random lengths")

MUTATIONS = [
    Mutation("short runs are compiled", POLICY, "< _FEWEST", "< 0", AUTO),
    Mutation("the environment is not asked", POLICY, '== "0"', '== "off"', AUTO),
    Mutation("loops cost nothing", TRANSITIONS, "loop.evaluations * (", "0 * (", SAME),
    Mutation("a loop gone through once more", TRANSITIONS, "repetitions + {loop.count.offset}", "repetitions", RANDOM),
    Mutation("evaluations one off", TRANSITIONS, "repetitions + loop.count.offset", "repetitions", RANDOM),
    Mutation("acceptance of one transition", CHAINS, "info.acceptance.double().sum(0)", "info.acceptance[0]", law(
        test_compiled_mcmc.test_masses_may_change_their_kind_in_a_warm_up)),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
