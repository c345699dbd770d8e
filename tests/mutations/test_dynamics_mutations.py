"""Planted errors in dynamics, transition energies, returns, chains and minimisation: a law notices each."""

import pytest
import torch

from boltzmix.models import Dynamics, InverseDynamics
from tests.models import test_dynamics as dynamics
from tests.models import test_returns as returns
from tests.models import test_transition_energy as energies
from tests.mutations.harness import Mutation, law, verify
from tests.planners import test_transitions as chains

DYNAMICS = "boltzmix.models.dynamics"
ENERGY = "boltzmix.models.transition_energy"
RETURNS = "boltzmix.models.returns"
NET = "boltzmix.models.nets.ensemble"
CHAIN = "boltzmix.planners.tasks.transitions"
MINIMISE = "boltzmix.planners.minimise"


def units():
    dynamics.units_do_not_matter(Dynamics)
    dynamics.units_do_not_matter(InverseDynamics)


def mixtures():
    dynamics.mixture_by_hand(dynamics.small(members=3))


def slices():
    dynamics.given_is_the_slice(dynamics.small())
    dynamics.given_is_the_slice(dynamics.small(members=4))


def inverse_sees_the_change():
    """Adding a constant to s and s' changes the state alone: the network's last inputs stay."""
    model = dynamics.small(InverseDynamics)
    s, _, y = dynamics.linear(3)
    seen = []
    handle = model.net.register_forward_hook(lambda module, args, out: seen.append(args[0] * model.input_scale))
    for shift in (0.0, 1.0):
        model.predict(s + shift, y + shift)
    handle.remove()
    assert torch.allclose(seen[1] - seen[0], torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=dynamics.D).expand(3, -1))


ROWS = [
    # dynamics
    ("members are summed, not averaged", DYNAMICS, "math.log(self.members) - logs", "-logs", mixtures),
    ("a deviation without its logarithm", DYNAMICS, "gap.square() + spreads.log()", "gap.square()", mixtures),
    ("the change without the state", DYNAMICS, 'return parts["state"]', 'return 0.0 * parts["state"]',
     dynamics.silent_networks_predict_the_mean_change),
    ("raw inputs", DYNAMICS, "(self._inputs(parts) - self.input_loc) / self.input_scale", "self._inputs(parts)", units),
    ("the output's mean is left out", DYNAMICS, "self.output_loc + self.output_scale * out", "self.output_scale * out",
     dynamics.silent_networks_predict_the_mean_change),
    ("spreads in other units than means", DYNAMICS, "spread = self.output_scale * (", "spread = (", units),
    ("the inverse is shown s' itself", DYNAMICS, 'parts["next"] - parts["state"]', 'parts["next"]',
     inverse_sees_the_change),
    ("deviations for variances", DYNAMICS, "Gaussian(means[0, 0], spreads[0, 0] ** 2)",
     "Gaussian(means[0, 0], spreads[0, 0])", slices),
    ("the mixture takes deviations", DYNAMICS, "GaussianMixture(means[:, 0], spreads[:, 0] ** 2)",
     "GaussianMixture(means[:, 0], spreads[:, 0])", slices),
    ("one member draws for all", DYNAMICS, "torch.randint(self.members, (n,)", "torch.randint(1, (n,)",
     dynamics.draws_have_the_moments),
    ("draws of one spread", DYNAMICS, "spreads[which, rows] * noise", "noise", dynamics.draws_have_the_moments),
    ("the floor is added to the logarithm", DYNAMICS, "self.floor**2 + (2 * log).exp()",
     "(2 * (log + self.floor)).exp()", dynamics.test_the_floor_bounds_the_spread),
    ("disagreement of one member", DYNAMICS, "means.var(0, correction=0)", "means[:1].var(0, correction=0)",
     dynamics.disagreement_by_hand),
    ("rollouts restart", DYNAMICS, "self.predict(states[-1], action)", "self.predict(state, action)",
     dynamics.test_rollout_iterates_the_prediction),
    ("actions one step late", DYNAMICS, "actions[:, :steps].flatten(0, 1)", "actions[:, -steps:].flatten(0, 1)",
     dynamics.test_transitions_of_trajectories),
    ("members share the first bias", NET, "torch.baddbmm(biases[-1], h, weights[-1])",
     "torch.baddbmm(biases[-1], h, weights[-1][:1].expand_as(weights[-1]))",
     dynamics.test_ensembles_are_members_side_by_side),
    # transition energies
    ("the network sees s' itself", ENERGY, "x[:, -self.state :] - x[:, : self.state]], 1)\n\n    def take",
     "x[:, -self.state :]], 1)\n\n    def take", energies.features_by_hand),
    ("features are not centred", ENERGY, "(self.features(x) - self.loc) / self.scale", "self.features(x) / self.scale",
     energies.features_by_hand),
    ("noise replaces the state", ENERGY, "torch.cat([x[:, : -drawn.shape[1]], drawn], 1)",
     "torch.cat([drawn, x[:, drawn.shape[1] :]], 1)", energies.noise_changes_the_outcome_alone),
    ("a conditional ratio without its constant", ENERGY, "tilt(torch.cat([x, drawn])) + model.core.constant(None))",
     "tilt(torch.cat([x, drawn])))", energies.conditional_loss_by_hand),
    ("noise counts once", ENERGY, "noise_contrastive(data, fake, self.ratio)", "noise_contrastive(data, fake)",
     energies.conditional_loss_by_hand),
    ("the dynamics the wrong way round", ENERGY, "return self.dynamics._energy(self.parts(x), None)",
     "return -self.dynamics._energy(self.parts(x), None)", energies.conditional_adds_to_the_dynamics),
    ("no gain on the change", ENERGY, "self.gain * change", "change",
     energies.test_noised_network_is_shown_the_change),
    # returns
    ("values the wrong way round", RETURNS, "/ -self.beta", "/ self.beta", returns.soft_value_is_the_noised_tilt),
    ("inputs are not scaled", RETURNS, "(level**2 + self.sigma_data**2).sqrt()", "(0 * level + 1)",
     returns.soft_value_is_the_noised_tilt),
    ("the network is told σ for ln σ / 4", RETURNS, "level.log() / 4)", "level)",
     returns.soft_value_is_the_noised_tilt),
    ("the temperature is forgotten in the loss", RETURNS, "v = (found - self.centre) / self.beta",
     "v = found - self.centre", returns.exact_values_have_the_least_loss),
    ("soft values by the wrong side", RETURNS, "/ self.beta - v).exp()", "/ self.beta + v).exp()",
     returns.exact_values_have_the_least_loss),
    ("noise that the level does not tell", RETURNS, "expand_rows(sigma, x) * noise",
     "0.5 * expand_rows(sigma, x) * noise", returns.loss_by_hand),
    # chains
    ("the overlap is counted, not divided out", CHAIN, "else total - e.reshape", "else total + e.reshape",
     chains.quotient_is_the_chain),
    ("the overlap's score is forgotten", CHAIN, "slope = slope - torch.nn.functional.pad(g.reshape",
     "slope = slope - 0.0 * torch.nn.functional.pad(g.reshape", chains.quotient_is_the_chain),
    ("scores land one token early", CHAIN, "(0, self.action, 1, 0))\n            slope",
     "(0, self.action, 0, 1))\n            slope", chains.conditional_is_the_chain_by_score),
    ("actions of the next token", CHAIN, "torch.cat([x[:, :-1], x[:, 1:, : self.state]], 2)",
     "torch.cat([x[:, :-1, : self.state], x[:, 1:, self.state :], x[:, 1:, : self.state]], 2)",
     chains.variables_or_vector),
    ("the last action without its noise", CHAIN, "1.0 + expand_rows(sigma, last) ** 2", "1.0",
     chains.the_last_action_is_standard_normal),
    ("levels of other rows", CHAIN, "sigma.repeat_interleave(count)", "sigma.repeat(count)",
     chains.noised_levels_reach_the_factors),
    # minimisation
    ("it climbs", MINIMISE, "torch.where(good, -score, 0.0)", "torch.where(good, score, 0.0)",
     chains.levels_lead_to_the_deeper_well),
    ("the highest energy first", MINIMISE, "torch.where(torch.isnan(energy), torch.inf, energy).argsort()",
     "torch.where(torch.isnan(energy), torch.inf, energy).argsort(descending=True)", chains.minima_come_sorted),
    ("levels are skipped", MINIMISE, "target = view.at(sigma)\n        first", "target = view.at(None)\n        first",
     chains.levels_lead_to_the_deeper_well),
    ("the polish climbs", MINIMISE, "leaf.grad = -score", "leaf.grad = score", chains.polish_reaches_the_bottom),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0])
def test_noticed(row):
    name, module, old, new, check = row
    verify(Mutation(name, module, old, new, law(check)))
