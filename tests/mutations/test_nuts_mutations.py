"""Errors that a No-U-Turn sampler can have, planted one by one: a named check notices each."""

import pytest

from boltzmix.compose.kernels import NUTS
from tests import kernel_contracts as contracts
from tests.compose import test_nuts
from tests.compose.test_kernel_contracts import KERNELS
from tests.mutations.harness import Mutation, law, verify

MODULE = "boltzmix.compose.kernels.nuts"

OUTCOMES = law(test_nuts.test_every_outcome_has_the_probability_of_the_recursive_definition, 0.6, 1000.0)
LONG = law(test_nuts.test_every_outcome_has_the_probability_of_the_recursive_definition, 0.33, 1000.0)
DIVERGING = law(test_nuts.test_every_outcome_has_the_probability_of_the_recursive_definition, 1.1, 0.7)
ALONE = law(test_nuts.test_a_chain_follows_from_its_own_numbers, "a step size in each row")
TOGETHER = law(test_nuts.test_states_belong_together_and_the_start_is_left_alone)
HELD = law(lambda: monkeypatched(test_nuts.test_leaves_are_chosen_alike_however_many_are_held))
FLAT = law(test_nuts.test_a_flat_direction_ends_at_the_largest_depth)
POISONED = law(test_nuts.test_finite_energies_with_an_infinite_score_or_of_minus_infinity_are_divergences)


def monkeypatched(check):
    with pytest.MonkeyPatch.context() as patch:
        check(patch)


def contract(check):
    return law(check, KERNELS["NUTS"])


def row(name, old, new, check, within=""):
    return Mutation(name, MODULE, old, new, check, within)


MUTATIONS = [
    # what is chosen
    row(
        "progressive sampling without bias",
        "uniform.log() < log_weight - self.log_weight",
        "uniform.log() < log_weight - torch.logaddexp(log_weight, self.log_weight)",
        OUTCOMES,
    ),
    row("the new half is always taken", "uniform.log() < log_weight - self.log_weight", "uniform < 2.0", OUTCOMES),
    row(
        "the new half is weighed by its last leaf",
        "log_weight = log_weight.logsumexp(0)",
        "log_weight = log_weight[-1]",
        OUTCOMES,
    ),
    row(
        "the old half is forgotten",
        "self.log_weight = torch.logaddexp(self.log_weight, log_weight)",
        "self.log_weight = log_weight",
        OUTCOMES,
    ),
    row("leaves are chosen without weights", "(log_weight + self.keys", "(self.keys", OUTCOMES),
    row("the leaf of the least key", "self.rows]).max(0)", "self.rows]).min(0)", OUTCOMES),
    row("exponential noise in the place of Gumbel's", "size - leaf)).log()).log()", "size - leaf)).log())", LONG),
    row("the energy of another leaf", "[which, rows]\n", "[0, rows]\n", TOGETHER, "energy = torch.stack([leaf[2]"),
    row("the Hamiltonian of the start", "self.start - log_weight[which, rows]", "self.start", OUTCOMES),
    row("the older leaf has the larger key", "key > old_key", "key < old_key", HELD),
    row("keys of leaves that were chosen from before", "self.keys = self.keys[count:]", "self.keys = self.keys", ALONE),
    row("keys of other chains", "self.keys[:count, self.rows]", "self.keys[:count, : len(self.rows)]", ALONE),
    row("coins of other chains", "coin[self.rows]", "coin[: len(self.rows)]", ALONE),
    row("decisions of other chains", "uniform[self.rows]", "uniform[: len(self.rows)]", ALONE),
    # where it goes
    row("always forwards", "coin[self.rows] < 0.5", "coin[self.rows] < 0.0", OUTCOMES),
    row("backwards with the velocity of forwards", "-self.velocities.flip(1)", "self.velocities.flip(1)", OUTCOMES),
    row("backwards from the wrong end", "self.ends.flip(1), self.ends", "self.ends, self.ends", OUTCOMES),
    row("the sum of velocities is not mirrored", "-self.rho, self.rho", "self.rho, self.rho", OUTCOMES),
    row("a whole kick", "0.5 * self.step * pull", "self.step * pull", OUTCOMES),
    row("no mass for velocities", "self.mass.push(half)", "half", contract(contracts.check_mass)),
    row("no mass for scores", "self.mass.pull(score)", "score", contract(contracts.check_mass)),
    # when it stops
    row("halves that turn are kept", "turns[:within].any(0) if within else None", "None", OUTCOMES),
    row(
        "sub-trees are not looked at, only the half",
        "spans += _spans(left, tree, 2**level)",
        "spans += _spans(left, tree, 2**level) if 2 ** (level + 1) == size else []",
        LONG,
    ),
    row(
        "no turns between neighbours",
        "[whole] if size == 1 else [whole, (left[0], right[0]), (left[1], right[1])]",
        "[whole]",
        OUTCOMES,
    ),
    row("no turns between neighbours within halves", "_spans(left, tree, 2**level)", "_spans(left, tree, 1)", LONG),
    row("the whole goes on until every stretch turns", "turns[within:].any(0)", "turns[within:].all(0)", OUTCOMES),
    row("only the last leaf's velocity counts", "(rho * first)", "(rho * last)", OUTCOMES),
    row("the sum without its last velocity", "rho = until + last - before", "rho = until - before", OUTCOMES),
    row("the sum is that of the new half", "self.before = self.rho\n", "self.before = 0 * self.rho\n", OUTCOMES),
    row("the sum is not updated", "self.rho = self.before", "self.rho = self.velocity", OUTCOMES),
    row("one doubling less", "range(self.max_depth)", "range(self.max_depth - 1)", FLAT),
    # leaves that cannot be
    row("halves with a divergent leaf are kept", "        return stop\n", "        return None\n", DIVERGING),
    row("errors of any size", "float(low) >= -self.limit", "float(low) >= -torch.inf", DIVERGING),
    row("errors of the other sign", "(log_weight >= -self.limit)", "(log_weight <= self.limit)", DIVERGING),
    row("minus infinity is a low energy", " & (log_weight < torch.inf)", "", POISONED),
    row("divergences are not counted", "stop & (energy != torch.inf)", "stop & False", POISONED),
    row(
        "infinite energies are counted",
        "stop & (energy != torch.inf)",
        "stop",
        contract(contracts.check_edges),
    ),
    # what is reported
    row("acceptance above one", "log_weight.clamp(max=0.0).exp()", "log_weight.exp()", OUTCOMES),
    row("acceptance of the last leaf", "clamp(max=0.0).exp().sum(0)", "clamp(max=0.0).exp()[-1]", OUTCOMES),
    row("a leaf too many", "self.retire(stop, size + leaf)", "self.retire(stop, size + leaf + 1)", OUTCOMES),
    row("leaves of the last half alone", "self.retire(whole, 2 * size - 1)", "self.retire(whole, size)", OUTCOMES),
    row("statistics of other chains", "order = index.argsort()", "order = torch.arange(n)", OUTCOMES),
    row("all chains are said to have moved", "self.moved.append(rows)", "self.moved.append(self.rows)", TOGETHER),
    # who takes part
    row("step sizes of other chains", "if self.step.ndim:", "if False:", ALONE),
    row(
        "masses of other chains",
        "if isinstance(self.mass, Diagonal) and self.mass.variance.ndim == 2:",
        "if False:",
        law(test_nuts.test_a_chain_follows_from_its_own_numbers, "a mass in each row"),
    ),
    row("conditions of other rows", '"per_row", False)', '"other", False)', contract(contracts.check_geweke)),
    row(
        "every chain is evaluated to the end",
        "lambda x, rows: target.energy_and_score(x)",
        "lambda x, rows: tuple(t[: len(x)] for t in target.energy_and_score(torch.cat([x, state.x])))",
        law(test_nuts.test_only_rows_that_grow_are_evaluated_and_each_evaluation_counts),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_error_is_noticed(mutation):
    verify(mutation)


def test_the_contract_is_that_of_nuts():
    assert isinstance(KERNELS["NUTS"].make(2), NUTS)
