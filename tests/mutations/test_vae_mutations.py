"""Errors that VAEs have had in print and in code, planted one by one: a law notices each."""

import importlib
import inspect

import pytest
import torch

from tests.models import test_hierarchical_vae as two
from tests.models import test_latent as latent
from tests.models import test_vae as one
from tests.mutations.harness import Mutation, verify

MODULES = [
    importlib.import_module(f"boltzmix.models.{name}")
    for name in ("normal", "observation", "latent_model", "vae", "hierarchical_vae", "latent", "nets.autoencoder")
]
SOURCES = {module.__name__: inspect.getsource(module) for module in MODULES}

LINEAR = one.test_the_joint_of_the_linear_vae_is_its_gaussian
ELBO = one.test_elbo_plus_the_divergence_of_q_is_log_p
OPTIMUM = one.test_with_the_posterior_as_q_every_bound_is_log_p
ESTIMATE = one.test_the_estimate_is_unbiased_for_the_elbo
DRAWS = one.test_exact_draws_have_the_marginal_of_x
BINARY = one.test_binary_probabilities_sum_to_one_and_draws_follow_them
VIEWS = one.test_conditional_views_differ_and_share_the_network
TOGETHER = one.test_many_conditions_cost_one_forward_and_equal_separate_calls
FROZEN = one.test_the_frozen_bound_is_a_function_of_x_and_unbiased_over_seeds
PULLED = latent.test_a_score_pulls_back_by_the_transposed_jacobian
SHARED = latent.test_factors_over_one_decoder_share_its_forward
ELBO_TWO = two.test_elbo_plus_the_divergence_of_q_is_log_p
OPTIMUM_TWO = two.test_with_the_posterior_as_q_every_bound_is_log_p
PROPOSAL_TWO = two.test_the_proposal_is_its_gaussian
LEVELS = two.test_the_kl_of_each_level_is_reported_and_weighed


def with_beta(beta):
    """The law of the loss at one β."""
    return lambda: one.test_the_loss_is_the_elbo_with_beta_on_the_kl(beta)


def grid():
    latent.test_a_reward_in_latent_space_is_the_grids_answer(1)


def joint_two():
    two.test_the_joint_is_its_gaussian_and_the_sum_of_three(True)


def in_parts():
    with pytest.MonkeyPatch.context() as patch:
        one.test_parts_of_a_large_bound_are_joined(patch)


def each_dimension_has_its_own():
    one.test_a_standard_deviation_per_dimension_is_that_of_its_dimension()


def rows(law, *changes):
    """Rows of one law, each (what is wrong, text, replacement); the module is the one in which the text occurs."""
    found = []
    for name, old, new in changes:
        homes = [module for module, source in SOURCES.items() if old in source]
        assert len(homes) == 1, f"{name}: {old!r} occurs in {homes}"
        found.append(Mutation(name, homes[0], old, new, law))
    return found


WHITENED, KL = "whitened = (x - mean) * (-spread).exp()", "(0.5 * ((2 * gap).exp() + shift.square() - 1) - gap)"
NORMAL = "-(0.5 * whitened.square() + spread + 0.5 * _LOG_2PI)"
LOSS = "return (self.beta * rate - reconstruction).mean()"
AVERAGE = "return logs.logsumexp(0) - math.log(len(logs))"
Z, Z1 = "z = (mean + log_std.exp() * noise)", "z1 = mean1 + log_std1.exp() * noise"
TOTAL = "total = total + (reconstruction - kl.sum(0)).sum(0)"

JOINT = rows(
    LINEAR,
    ("the joint without the prior", "return out + self._log_prior(z, label)", "return out"),
    ("the joint with the prior's inverse", "return out + self._log_prior", "return out - self._log_prior"),
    ("the energy's sign", "return -self._log_joint(x", "return self._log_joint(x"),
    ("a missing ½ log det", NORMAL, "-(0.5 * whitened.square() + 0.5 * _LOG_2PI)"),
    ("half of the ½ log det", NORMAL, "-(0.5 * whitened.square() + 0.5 * spread + 0.5 * _LOG_2PI)"),
    ("a Gaussian without ½", NORMAL, "-(whitened.square() + spread + 0.5 * _LOG_2PI)"),
    ("a Gaussian without 2π", NORMAL, "-(0.5 * whitened.square() + spread)"),
    ("the standard deviation where the variance belongs", WHITENED, "whitened = (x - mean) * (-0.5 * spread).exp()"),
    ("the variance where the standard deviation starts", "math.log(std), dtype", "2 * math.log(std), dtype"),
    ("the mean over dimensions for their sum", "_LOG_2PI).flatten(1).sum(1)", "_LOG_2PI).flatten(1).mean(1)"),
)  # fmt: skip
JOINT += rows(
    DRAWS,
    ("draws of x with the variance", "return out + self.log_std.exp()", "return out + (2 * self.log_std).exp()"),
    ("draws of x that are means", "return out + self.log_std.exp() * noise", "return out"),
)  # fmt: skip
JOINT += rows(
    each_dimension_has_its_own,
    ("one standard deviation for all dimensions", "return log_normal(x, out, self.log_std)",
     "return log_normal(x, out, self.log_std.mean())"),
)  # fmt: skip

BOUNDS = rows(
    ELBO,
    ("the KL's direction", "gap = log_std - base\n    shift = (mean - base_mean) * (-base).exp()",
     "gap = base - log_std\n    shift = (mean - base_mean) * (-log_std).exp()"),
    ("the KL's sign of log σ", KL, "(0.5 * ((2 * gap).exp() + shift.square() - 1) + gap)"),
    ("the KL without the mean", KL, "(0.5 * ((2 * gap).exp() - 1) - gap)"),
    ("the KL with σ for σ²", KL, "(0.5 * (gap.exp() + shift.square() - 1) - gap)"),
    ("the KL without −1", KL, "(0.5 * ((2 * gap).exp() + shift.square()) - gap)"),
    ("the KL without ½", KL, "((2 * gap).exp() + shift.square() - 1 - gap)"),
    ("draws of z with the variance", Z, "z = (mean + (2 * log_std).exp() * noise)"),
    ("draws of z at the mean", Z, "z = (mean + 0.0 * noise)"),
    ("rows of x out of step with their z", "likelihood.log_prob(repeated(x, count), out)",
     "likelihood.log_prob(x.repeat_interleave(count, 0), out)"),
)  # fmt: skip
BOUNDS += rows(
    ESTIMATE,
    ("the KL added", TOTAL, "total = total + (reconstruction + kl.sum(0)).sum(0)"),
    ("the bound without the KL", TOTAL, "total = total + reconstruction.sum(0)"),
    ("the log outside the expectation", TOTAL,
     "total = total + samples * (reconstruction.logsumexp(0) - math.log(len(reconstruction)) - kl.sum(0).mean(0))"),
    ("the sum of draws for their mean", "return total / samples", "return total"),
)  # fmt: skip
BOUNDS += rows(
    OPTIMUM,
    ("q over p", "return (joint - found.log_q)", "return (found.log_q - joint)"),
    ("weights without q", "return (joint - found.log_q)", "return joint"),
    ("the sum of weights for their mean", AVERAGE, "return logs.logsumexp(0)"),
    ("log q at other rows", "log_q = log_normal(z, repeated(mean, len(noise))",
     "log_q = log_normal(z, mean.repeat_interleave(len(noise), 0)"),
)  # fmt: skip
BOUNDS += rows(
    one.test_iwae_rises_with_k_to_log_p,
    ("the mean of logs for the log of the mean", AVERAGE, "return logs.mean(0)"),
    ("the best weight for the mean weight", AVERAGE, "return logs.amax(0)"),
)  # fmt: skip
BOUNDS += rows(
    in_parts,
    ("k of the first part alone", AVERAGE, "return logs.logsumexp(0) - math.log(len(noises[0]))"),
    ("parts that overlap", "min(step, count - start)", "step"),
)  # fmt: skip
BOUNDS += rows(
    one.test_reparameterised_gradients_are_unbiased_and_quieter_than_reinforce,
    ("draws that carry no gradient", "z = (mean + log_std.exp() * noise).flatten(0, 1)",
     "z = (mean + log_std.exp() * noise).flatten(0, 1).detach()"),
    ("a spread that carries no gradient", Z, "z = (mean + log_std.exp().detach() * noise)"),
    ("a KL that carries no gradient", "rate = kl.sum(0)", "rate = kl.sum(0).detach()"),
)  # fmt: skip
BOUNDS += rows(
    with_beta(4.0),
    ("β on the reconstruction", LOSS, "return (rate - self.beta * reconstruction).mean()"),
    ("β on both", LOSS, "return (self.beta * (rate - reconstruction)).mean()"),
    ("β forgotten", LOSS, "return (rate - reconstruction).mean()"),
    ("β squared", LOSS, "return (self.beta**2 * rate - reconstruction).mean()"),
)  # fmt: skip
BOUNDS += rows(
    with_beta(1.0),
    ("the KL's sign in the loss", LOSS, "return (-self.beta * rate - reconstruction).mean()"),
    ("the loss's sign", LOSS, "return (reconstruction - self.beta * rate).mean()"),
    ("a sum over the batch", LOSS, "return (self.beta * rate - reconstruction).sum()"),
)  # fmt: skip
BOUNDS += rows(
    one.test_the_aggregate_is_the_mean_of_the_proposals,
    ("the aggregate with σ for σ²", "GaussianMixture(q.loc, q.scale**2)", "GaussianMixture(q.loc, q.scale)"),
)  # fmt: skip
BOUNDS += rows(
    one.test_encode_decode_and_reconstruct,
    ("mean and spread change places", "mean, log_std = out.flatten(1)", "log_std, mean = out.flatten(1)"),
    ("q with log σ for σ", "Normal(mean, log_std.exp()), len(self.core.lat",
     "Normal(mean, log_std.abs()), len(self.core.lat"),
    ("reconstruction at a draw", "noise = map_state(torch.zeros_like, noise)", "noise = noise"),
)  # fmt: skip

DATA = rows(
    BINARY,
    ("a Bernoulli without its normaliser", "(x * out - nn.functional.softplus(out))", "(x * out)"),
    ("the other class", "(x * out - nn", "(-x * out - nn"),
    ("draws of the other class", "device=out.device) < out.sigmoid()", "device=out.device) > out.sigmoid()"),
)  # fmt: skip
DATA += rows(
    one.test_intensities_are_probabilities_of_binary_pixels,
    ("intensities rounded instead of drawn", "device=x.device) < x).long()", "device=x.device) * 0 + 0.5 < x).long()"),
)  # fmt: skip
DATA += rows(
    VIEWS,
    ("labels that miss the decoder", "checked(self.decoder(z, label)", "checked(self.decoder(z, None)"),
    ("labels that miss the encoder", "self.encoder(as_input(x, self), label), self.lat",
     "self.encoder(as_input(x, self), None), self.lat"),
)  # fmt: skip
DATA += rows(
    TOGETHER,
    ("conditions in the wrong order", "for view in views], n, device)", "for view in views[::-1]], n, device)"),
    ("one forward for each condition", "        device = x[\"x\"].device\n",
     "        device = x[\"x\"].device\n        self.core.decode(self._latents(x), None)\n"),
)  # fmt: skip
DATA += rows(
    one.test_labels_reach_every_network,
    ("a network that ignores its labels", "return self.embedding(label)", "return self.embedding(None)"),
)  # fmt: skip

COMPOSED = rows(
    grid,
    ("a formula over z without the prior", "[(self.prior, 1.0), *", "[*"),
    ("a formula over z with the prior twice", "[(self.prior, 1.0), *", "[(self.prior, 2.0), *"),
)  # fmt: skip
COMPOSED += rows(
    grid,
    ("a factor at something else than D(z)", "return self.model._mean(z, ", "return 0.9 * self.model._mean(z, "),
)  # fmt: skip
COMPOSED += rows(
    latent.test_a_factor_is_pulled_back_without_a_jacobian,
    ("a factor's inverse at D(z)", "return self.inner._energy(self._decode(x), None)",
     "return -self.inner._energy(self._decode(x), None)"),
)  # fmt: skip
COMPOSED += rows(
    SHARED,
    ("every factor pulled back by one score", "value, slope = inner[term.inner.key()]",
     "value, slope = inner[terms[0].inner.key()]"),
    ("a decoder that runs for every factor", "point = x if keep else x.detach()",
     "point = self._decode(leaf) if keep else x.detach()"),
)  # fmt: skip
COMPOSED += rows(
    lambda: one.check_score(latent.made(2).pulled(latent.REWARD)),
    ("a Jacobian without the factor's score", "grad(x, leaves, slope, create", "grad(x, leaves, slope * 0 + 1, create"),
    ("a score of the wrong sign", "grad(x, leaves, slope, create", "grad(x, leaves, -slope, create"),
)  # fmt: skip
COMPOSED += rows(
    latent.test_the_factor_is_trained_through,
    ("a score that cannot be trained through", "point = x if keep else x.detach()", "point = x.detach()"),
)  # fmt: skip
COMPOSED += rows(
    latent.test_a_label_given_to_the_formula_reaches_the_decoder,
    ("a label that the decoder does not get", "self.model.given(**mine) if mine else self.model)", "self.model)"),
)  # fmt: skip
COMPOSED += rows(
    latent.test_equal_factors_merge_and_different_labels_do_not,
    ("labels that merge", 'return ("decoded", self.model.key(), self.inner.key())',
     'return ("decoded", self.inner.key())'),
)  # fmt: skip
COMPOSED += rows(
    joint_two,
    ("the likelihood's inverse", "return -self.model.core.likelihood.log_prob(data",
     "return self.model.core.likelihood.log_prob(data"),
)  # fmt: skip
COMPOSED += rows(
    one.test_a_proposal_with_a_row_of_data_for_each_draw,
    ("a proposal of the first row", "return -self.model.core.log_q(x, *self._data(n))",
     "return -self.model.core.log_q(x, self.x[:1].expand(n, -1), None)"),
)  # fmt: skip
COMPOSED += rows(
    FROZEN,
    ("noise that differs between rows", "each = {name: t.expand(-1, len(x), *t.shape[2:]) for",
     "each = {name: t.expand(-1, len(x), *t.shape[2:]) * torch.arange(1, len(x) + 1)[:, None] for"),
    ("the bound's sign", "return -self.model._log_mean_weight", "return self.model._log_mean_weight"),
    ("one seed for all", "manual_seed(seed)", "manual_seed(0)"),
)  # fmt: skip
COMPOSED += rows(
    latent.test_a_draw_is_decoded_with_its_weights,
    ("a decoded draw without weights", "return replace(draw, x=self._joined(x, z), frames=[])",
     "return replace(draw, x=self._joined(x, z), frames=[], log_weights=0 * draw.log_weights)"),
)  # fmt: skip

HIERARCHY = rows(
    joint_two,
    ("the joint without p(z2)", 'return log_normal(z["z2"], 0.0, 0.0) + log_normal(z["z1"]',
     'return log_normal(z["z1"]'),
    ("z1 from a prior that ignores z2", 'log_normal(z["z1"], *self.below(z["z2"], label))',
     'log_normal(z["z1"], *self.below(0 * z["z2"], label))'),
    ("a decoder that misses z2", 'torch.cat([z["z1"], z["z2"]], 1)', 'torch.cat([z["z1"], 0 * z["z2"]], 1)'),
)  # fmt: skip
HIERARCHY += rows(
    two.test_exact_draws_have_the_closed_form_moments,
    ("draws of z1 with the variance", 'mean + log_std.exp() * noise["z1"][0]',
     'mean + (2 * log_std).exp() * noise["z1"][0]'),
    ("z1 drawn from another z2", 'return {"z1": mean + log_std.exp() * noise["z1"][0], "z2": z2}',
     'return {"z1": mean + log_std.exp() * noise["z1"][0], "z2": z2.flip(0)}'),
)  # fmt: skip
HIERARCHY += rows(
    ELBO_TWO,
    ("the KL of z2 dropped", "torch.stack([kl1, kl2])", "torch.stack([kl1, 0 * kl2])"),
    ("the KL of z1 dropped", "torch.stack([kl1, kl2])", "torch.stack([0 * kl1, kl2])"),
    ("z1's KL to N(0, 1) instead of p(z1|z2)", "kl_normal(mean1, log_std1, *self.below(z2, tall))",
     "kl_normal(mean1, log_std1)"),
    ("z1's KL at the mean of z2", "*self.below(z2, tall))", "*self.below(repeated(mean2, count), tall))"),
    ("z1's proposal without z2", "mean1, log_std1 = self.q1(repeated(features, count), z2, tall)",
     "mean1, log_std1 = self.q1(repeated(features, count), 0 * z2, tall)"),
    ("draws of z1 with the variance", Z1, "z1 = mean1 + (2 * log_std1).exp() * noise"),
)  # fmt: skip
HIERARCHY += rows(
    OPTIMUM_TWO,
    ("log q without z2", "log_q = log_normal(z1, mean1, log_std1) + log_normal(z2,",
     "log_q = log_normal(z1, mean1, log_std1) + 0 * log_normal(z2,"),
)  # fmt: skip
HIERARCHY += rows(
    PROPOSAL_TWO,
    ("the proposal without z2", 'return upper + log_normal(z["z1"]', 'return log_normal(z["z1"]'),
    ("the proposal of z1 without z2", '*self.q1(features, z["z2"], label))', '*self.q1(features, 0 * z["z2"], label))'),
)  # fmt: skip
HIERARCHY += rows(
    LEVELS,
    ("β on one level", LOSS, "return (rate + (self.beta - 1) * kl[0] - reconstruction).mean()"),
)  # fmt: skip
HIERARCHY += rows(
    two.test_conditional_views_share_the_network_and_their_priors_merge,
    ("p(z1|z2) that misses the label", "halves(self.middle(z2, label)", "halves(self.middle(z2, None)"),
)  # fmt: skip


@pytest.mark.parametrize("mutation", JOINT + BOUNDS + DATA + COMPOSED + HIERARCHY, ids=lambda m: m.name)
def test_noticed(mutation):
    with torch.random.fork_rng(devices=[]):
        verify(mutation)
