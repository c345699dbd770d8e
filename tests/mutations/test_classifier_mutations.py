"""Errors planted in classifiers, rewards, language models and torch.distributions: a law notices each."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, Multinomial

from boltzmix.compose import Gaussian, term
from boltzmix.models import Reward
from boltzmix.models.adapters import term as adapted
from tests.compose import test_callables
from tests.models import test_classifier, test_reward
from tests.mutations.harness import Mutation, verify

D = torch.float64
CLASSIFIER, REWARD = "boltzmix.models.classifier", "boltzmix.models.reward"
LANGUAGE, DISTRIBUTIONS = "boltzmix.models.adapters.transformers", "boltzmix.compose.distributions"
CAUSAL, TOKENS = "boltzmix.models.adapters.causal", "boltzmix.models.adapters.tokens"


# ------------------------------------------------------------------------------------------------------------- laws


def posterior_by_enumeration():
    test_classifier.test_prior_times_factor_is_the_enumerated_posterior(0)


def noised_conditional():
    test_classifier.test_prior_times_noise_aware_factor_is_the_noised_conditional(0.4)


def labels_together():
    test_classifier.test_several_labels_are_one_forward_of_the_same_rows()


def cross_entropy_of_the_exact_posterior():
    """The loss of the exact noise-aware network is −E log p(c | x; σ) at the levels that were drawn."""
    seen = []

    def net(x_in, c_noise):
        seen.append((x_in, c_noise))
        return test_classifier.noisy_logits(x_in, c_noise)

    from boltzmix.models import Classifier

    sigma_range = (0.05, 2.0)
    model = Classifier(net, (2,), 3, sigma_range=sigma_range, sigma_data=test_classifier.SIGMA_DATA)
    x, label = test_classifier.points(4000), torch.arange(4000) % 3
    loss = model.loss((x, label), torch.Generator().manual_seed(0))
    (x_in, c_noise), *_ = seen
    sigma = (4 * c_noise).exp()
    assert float(sigma.min()) >= sigma_range[0]
    assert float(sigma.max()) <= sigma_range[1]
    logs = sigma.log()
    assert abs(float(logs.mean()) - 0.5 * math.log(0.05 * 2.0)) < 0.1  # log-uniform
    noise = (x_in * (sigma**2 + test_classifier.SIGMA_DATA**2).sqrt()[:, None] - x) / sigma[:, None]
    assert abs(float(noise.std()) - 1) < 0.05
    want = -test_classifier.class_logits(x + sigma[:, None] * noise, sigma).log_softmax(1)[torch.arange(4000), label]
    assert torch.allclose(loss, want.mean())


def tuned_gaussian():
    test_reward.test_tuned_gaussian_in_closed_form("linear", 2.0)


def bradley_terry():
    test_reward.test_the_loss_of_preferences_is_bradley_and_terrys()


def preferences_report_no_log_z():
    assert not (Gaussian(torch.zeros(2), 1.0) * Reward(lambda x: x[:, 0], (2,), objective="preferences")).calibrated


def constrained(name):
    return lambda: test_callables.test_a_constrained_density_integrates_to_one_and_is_zero_outside(name)


def discrete(name):
    return lambda: test_callables.test_discrete_distributions_have_energies_draws_and_no_score(name)


def simplex_points_sum_to_one():
    p = term(Dirichlet(torch.full((3,), 2.0, dtype=D)))
    assert torch.isfinite(p.energy(torch.tensor([[0.2, 0.3, 0.5]], dtype=D))).all()
    assert torch.isposinf(p.energy(torch.tensor([[0.2, 0.3, 0.4], [-0.1, 0.6, 0.5]], dtype=D))).all()


def counts_add_up():
    p = term(Multinomial(3, torch.tensor([0.2, 0.8], dtype=D)))
    assert torch.isposinf(p.energy(torch.tensor([[1, 1], [0, 0]]))).all()


def nan_stays_nan():
    test_callables.test_outside_the_support_energy_is_infinite()


ALGEBRA = [
    Mutation(
        "logits taken for log-probabilities",
        CLASSIFIER,
        "return self._chosen(self._logits(x, sigma).log_softmax(1)).neg()",
        "return self._chosen(self._logits(x, sigma)).neg()",
        posterior_by_enumeration,
    ),
    Mutation(
        "normalised over rows, not over labels",
        CLASSIFIER,
        "return self._chosen(self._logits(x, sigma).log_softmax(1)).neg()",
        "return self._chosen(self._logits(x, sigma).log_softmax(0)).neg()",
        posterior_by_enumeration,
    ),
    Mutation(
        "the network sees σ without its logarithm",
        CLASSIFIER,
        "(level.log() / 4).expand(x.shape[0])",
        "(level / 4).expand(x.shape[0])",
        noised_conditional,
    ),
    Mutation(
        "input of a noise-aware network is not scaled",
        CLASSIFIER,
        "self.core(x / expand_rows(scale, x),",
        "self.core(x,",
        noised_conditional,
    ),
    Mutation(
        "scale forgets σ_d",
        CLASSIFIER,
        "(level**2 + self.sigma_data**2).sqrt()",
        "level",
        noised_conditional,
    ),
    Mutation(
        "score of p(c | x) has the wrong sign",
        CLASSIFIER,
        "torch.zeros_like(x) if slope is None else slope)",
        "torch.zeros_like(x) if slope is None else -slope)",
        noised_conditional,
    ),
    Mutation(
        "all labels of a group get the first one's energy",
        CLASSIFIER,
        "chosen = view._chosen(rows)",
        "chosen = views[0]._chosen(rows)",
        labels_together,
    ),
    Mutation(
        "training levels uniform, not log-uniform",
        CLASSIFIER,
        "sigma = (low + (high - low) * u).exp().to(x)",
        "sigma = (math.exp(low) + (math.exp(high) - math.exp(low)) * u).to(x)",
        cross_entropy_of_the_exact_posterior,
    ),
    Mutation(
        "training noise not scaled by its level",
        CLASSIFIER,
        "x = x + expand_rows(sigma, x) * noise",
        "x = x + noise",
        cross_entropy_of_the_exact_posterior,
    ),
    Mutation(
        "the joint forgets which label it is asked for",
        CLASSIFIER,
        ".gather(1, label[:, None])[:, 0].neg()",
        ".gather(1, 0 * label[:, None])[:, 0].neg()",
        test_classifier.test_the_factor_over_x_and_label_completes_a_joint_density,
    ),
    Mutation(
        "reward multiplied by β", REWARD, "self._reward(x) / -self.beta", "self._reward(x) * -self.beta", tuned_gaussian
    ),
    Mutation(
        "reward as an energy", REWARD, "self._reward(x) / -self.beta", "self._reward(x) / self.beta", tuned_gaussian
    ),
    Mutation(
        "the worse answer is preferred",
        REWARD,
        "logsigmoid(better - worse)",
        "logsigmoid(worse - better)",
        bradley_terry,
    ),
    Mutation(
        "preferences claim a constant",
        REWARD,
        'self.calibrated = objective == "regression"',
        "self.calibrated = True",
        preferences_report_no_log_z,
    ),
    Mutation(
        "support of the image, not of the base",
        DISTRIBUTIONS,
        "within = within & inside(distribution.base_dist, x)",
        "inside(distribution.base_dist, x)",
        test_callables.test_the_support_is_the_image_of_the_bases,
    ),
    Mutation(
        "inverse taken outside its image",
        DISTRIBUTIONS,
        "within = within & image.reshape",
        "image.reshape",
        constrained("sigmoid of normal"),
    ),
    Mutation(
        "inside every member of a mixture",
        DISTRIBUTIONS,
        "x.unsqueeze(-1 - len(members.event_shape))).any(-1)",
        "x.unsqueeze(-1 - len(members.event_shape))).all(-1)",
        constrained("mixture of uniforms"),
    ),
    Mutation(
        "a periodic density on the whole line",
        DISTRIBUTIONS,
        "return x.abs() <= math.pi",
        "return x.abs() >= 0",
        constrained("von mises"),
    ),
    Mutation(
        "outside is NaN",
        DISTRIBUTIONS,
        "torch.full(point.shape[:1], torch.inf,",
        "torch.full(point.shape[:1], torch.nan,",
        constrained("uniform"),
    ),
    Mutation(
        "NaN counts as outside", DISTRIBUTIONS, "torch.nan, outside).to(x)", "outside, outside).to(x)", nan_stays_nan
    ),
    Mutation(
        "any positive vector is on the simplex",
        DISTRIBUTIONS,
        "(x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < slack)",
        "(x >= 0).all(-1)",
        simplex_points_sum_to_one,
    ),
    Mutation(
        "counts may be fewer than were drawn",
        DISTRIBUTIONS,
        "(x.sum(-1) == distribution.total_count)",
        "(x.sum(-1) <= distribution.total_count)",
        counts_add_up,
    ),
    Mutation(
        "one value too few",
        DISTRIBUTIONS,
        "int(torch.as_tensor(upper).max()) + 1",
        "int(torch.as_tensor(upper).max())",
        discrete("binomial"),
    ),
]


@pytest.mark.parametrize("mutation", ALGEBRA, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)


# --------------------------------------------------------------------------------------------------- language models


def language():
    return pytest.importorskip("tests.models.test_adapters_transformers")


def sums_to_one(reading, model="gpt2"):
    return lambda: language().test_probabilities_of_all_rows_sum_to_one(model, reading)


def prompted_draws(reading):
    return lambda: language().test_draws_have_their_probabilities("llama", reading)


def draws_do_not_end_early():
    module = language()
    p = adapted(module.gpt(), max_length=4, eos_id=1, pad_id=2)
    assert torch.isfinite(p.energy(p.sample(300, torch.Generator().manual_seed(0)))).all()


def dropout_is_off():
    try:
        language().test_dropout_is_off_and_the_mode_stays()
    except TypeError as error:  # with dropout no model looks causal, and it is refused
        raise AssertionError("dropout was on") from error


LANGUAGE_MODELS = [
    Mutation(
        "predictions read one place too early",
        LANGUAGE,
        "start = prefix.shape[1] - 1",
        "start = prefix.shape[1] - 2",
        lambda: language().test_rows_are_the_chain_rule("gpt2"),
    ),
    Mutation(
        "BOS left out",
        LANGUAGE,
        "return (() if self.bos_id is None else (self.bos_id,)) + self.prompt",
        "return self.prompt or (self.bos_id,)",
        lambda: language().test_rows_are_the_chain_rule("gpt2"),
    ),
    Mutation(
        "pads counted",
        LANGUAGE,
        "energy = -torch.where(counted, found, 0.0).sum(1)",
        "energy = -found.sum(1)",
        lambda: language().test_energy_is_the_loss_of_transformers("right"),
    ),
    Mutation(
        "EOS not counted",
        TOKENS,
        "counted = place <= end[:, None]",
        "counted = place < end[:, None]",
        sums_to_one("right"),
    ),
    Mutation(
        "rows that are no text have a density",
        LANGUAGE,
        "torch.where(possible, energy, torch.inf)",
        "energy",
        sums_to_one("right"),
    ),
    Mutation(
        "the pad keeps its share of the softmax",
        LANGUAGE,
        "apart = self.pad_id if self.pad_id != self.eos_id else None",
        "apart = None",
        sums_to_one("right, own pad"),
    ),
    Mutation(
        "any left padding goes",
        TOKENS,
        "fits = (end == room - 1) | ((end == size) & (lead == 0))",
        "fits = (end <= room - 1) | (end == size)",
        sums_to_one("left, own pad"),
    ),
    Mutation(
        "log-softmax in half precision",
        CAUSAL,
        "return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits",
        "return logits",
        lambda: language().test_half_precision(torch.bfloat16),
    ),
    Mutation(
        "prompts of a group share the first one's predictions",
        LANGUAGE,
        "zip(prefixes, logits.chunk(len(prefixes)), strict=True)",
        "zip(prefixes, [logits.chunk(len(prefixes))[0]] * len(prefixes), strict=True)",
        lambda: language().test_guidance_over_prompts_of_different_lengths_is_one_forward("llama"),
    ),
    Mutation(
        "dropout stays on",
        CAUSAL,
        "            module.training = False\n        yield",
        "            pass\n        yield",
        dropout_is_off,
    ),
    Mutation(
        "draws from logits without softmax's weights",
        LANGUAGE,
        "logits.softmax(1).to(where)",
        "(0.5 * logits).softmax(1).to(where)",
        prompted_draws("length"),
    ),
    Mutation(
        "tokens go on after the end",
        LANGUAGE,
        "token = torch.where(ended, self.pad_id, token)",
        "pass",
        draws_do_not_end_early,
    ),
    Mutation(
        "draws are aligned to the wrong side",
        LANGUAGE,
        "return shifted(rows, end - (size - 1), self.pad_id)",
        "return rows",
        prompted_draws("left, own pad"),
    ),
]


@pytest.mark.parametrize("mutation", LANGUAGE_MODELS, ids=lambda m: m.name)
def test_noticed_in_language_models(mutation):
    pytest.importorskip("transformers")
    verify(mutation)
