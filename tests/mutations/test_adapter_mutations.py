"""Errors in adapters of diffusion networks, planted one by one: a law notices each.

The laws are trajectories of the real schedulers and pipelines of the diffusers library, on tiny random networks.
"""

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from tests.mutations.harness import Mutation, law, verify

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from boltzmix.models.adapters import term
from tests.models import test_adapters_diffusers, test_adapters_pipelines, test_scheduler_parity, tiny_pipelines

pytestmark = pytest.mark.filterwarnings("ignore")

REVERSE, FROM_NOISE, NETWORK, SCHEDULERS, PIPELINES, SCHEDULE = (
    "boltzmix.compose.samplers.reverse",
    "boltzmix.compose.samplers.from_noise",
    "boltzmix.models.adapters.network",
    "boltzmix.models.adapters.schedulers",
    "boltzmix.models.adapters.pipelines",
    "boltzmix.models.schedules.base",
)


def follows(case, *data):
    """The scheduler's trajectory, with a location and a scale of the data where they are given."""
    return law(test_scheduler_parity.check, case, *data)


@functools.cache
def folder():
    return Path(tempfile.mkdtemp())


@functools.cache
def stable():
    return tiny_pipelines.stable_diffusion(folder())


def with_prompts(check):
    """A check of test_adapters_pipelines that takes the pipeline, and its term made anew."""
    return law(lambda: check(stable(), term(stable())))


def on_disk(check, *arguments):
    return law(lambda: check(folder(), *arguments))


def latents_keep_their_own_units():
    """A scaling factor inside the term: the state is what the autoencoder decodes."""
    test_adapters_pipelines.test_states_are_the_autoencoders_latents_whatever_its_factor(stable(), term(stable()))


def estimates_at_noise():
    for data_at in (0, 1):
        for velocity in ("noise", "data", None):
            test_adapters_pipelines.test_the_estimate_at_pure_noise_is_the_limit(data_at, velocity)


def given_keeps_what_was_given():
    p = term(stable()).given(negative_prompt="dog")
    assert p.given(prompt="a cat").reference.key() == p.reference.key()
    assert not torch.equal(p.reference.given_context, term(stable()).given(prompt="a cat").given_context)


def one_image_size_for_all_conditions():
    p = term(tiny_pipelines.stable_diffusion_xl(folder()))
    q = p.given(prompt="a cat", original_size=(32, 48), crop=(1, 2))
    assert torch.equal(q.reference._values()["time_ids"], q.given_time_ids)
    assert q.given_time_ids.tolist() == [32.0, 48.0, 1.0, 2.0, 16.0, 16.0]


GUIDED = with_prompts(
    functools.partial(test_adapters_pipelines.test_guidance_of_a_prompt_is_the_pipelines_guidance_scale, alpha=3.0)
)
NEGATIVE = with_prompts(test_adapters_pipelines.test_a_negative_prompt_is_the_reference_of_guidance)
NOISY = with_prompts(test_adapters_pipelines.test_noise_in_every_step_and_decoding)
BATCHED = with_prompts(test_adapters_pipelines.test_three_prompts_are_one_forward_and_large_batches_are_split)
FLOWS = law(test_scheduler_parity.test_euler_on_a_closed_form_flow_starts_at_pure_noise)

ROWS = [
    # the step
    Mutation("no noise in DDIM with eta", REVERSE, "variance = eta**2 *", "variance = 0.0 *", follows("ddim, eta 0.6")),
    Mutation("eta, not eta²", REVERSE, "eta**2", "eta", follows("ddim, eta 0.6")),
    Mutation(
        "the deterministic part keeps all of the noise",
        REVERSE,
        "math.sqrt(max(following**2 - variance, 0.0))",
        "following",
        follows("ddim epsilon, eta 1"),
    ),
    Mutation(
        "noise as variance",
        REVERSE,
        "(variance * noise_share) ** 0.5 * noise",
        "(variance * noise_share) * noise",
        follows("ddpm epsilon"),
    ),
    Mutation(
        "DDPM's mean drifts with the noise",
        REVERSE,
        "keep = following**2 / sigma",
        "keep = following",
        follows("ddpm epsilon"),
    ),
    Mutation(
        "learned variance upside down",
        REVERSE,
        "share * math.log(upper) + (1.0 - share) * math.log(lower)",
        "share * math.log(lower) + (1.0 - share) * math.log(upper)",
        follows("ddpm learned"),
    ),
    Mutation(
        "large variance is small", REVERSE, "return upper if ladder", "return lower if ladder", follows("ddpm large")
    ),
    Mutation(
        "clipped direction in DDIM",
        REVERSE,
        "towards = (x - estimate) / sigma",
        "towards = (x - base) / sigma",
        follows("ddim clipped"),
    ),
    Mutation("no clipping", REVERSE, "estimate.clamp(*self.clip)", "estimate", follows("ddpm clipped")),
    Mutation(
        "second order at the end",
        REVERSE,
        "or (last and self.last_order == 1)",
        "",
        follows("dpm, Euler at the end"),
    ),
    Mutation(
        "second order from the start", REVERSE, "first = self.order == 1 or", "first =", follows("dpm, 1st order")
    ),
    Mutation(
        "extrapolated by the wrong ratio",
        REVERSE,
        "math.log(sigma / following) / math.log(previous[1] / sigma)",
        "math.log(previous[1] / sigma) / math.log(sigma / following)",
        follows("dpm epsilon"),
    ),
    Mutation(
        "Heun's second slope at the first level", REVERSE, "second = -following", "second = -sigma", follows("heun")
    ),
    Mutation(
        "nothing carried over",
        REVERSE,
        "if ladder.carry is not None and ladder.carry[k] != 1.0:",
        "if False:",
        follows("ddim linspace"),
    ),
    Mutation(
        "carried about zero",
        REVERSE,
        "x = ladder.centre + ladder.carry[k] * (x - ladder.centre)",
        "x = ladder.carry[k] * x",
        follows("ddim of Stable Diffusion", 100.0, 2.0),
    ),
    Mutation(
        "start about zero",
        REVERSE,
        "ladder.centre + ladder.spread * noise",
        "ladder.spread * noise",
        follows("euler karras", 3.0, 1.0),
    ),
    Mutation(
        "given states forgotten",
        REVERSE,
        "if request.init is not None:\n            x =",
        "if request.init is None:\n            x =",
        law(test_scheduler_parity.test_states_may_be_given_at_the_first_level),
        within="def _start",
    ),
    Mutation("pure noise without weights", FROM_NOISE, "total + weights[i] *", "total +", FLOWS),
    # the scheduler's settings
    Mutation(
        "the last step of DDIM to zero",
        SCHEDULERS,
        "last = _level(own.final_alpha_cumprod.double())",
        "last = 0.0",
        follows("ddim of Stable Diffusion"),
    ),
    Mutation(
        "steps end where the next one begins",
        SCHEDULERS,
        "ends = [_level(table[t - gap]) if t >= gap else last for t in times]",
        "ends = [*(_level(table[t]) for t in times[1:]), last]",
        follows("ddim trailing, uneven"),
    ),
    Mutation(
        "the last state is not handed out as it is",
        SCHEDULERS,
        "after = [*begins[1:], 0.0]",
        "after = [*begins[1:], ends[-1]]",
        follows("ddim of Stable Diffusion"),
    ),
    Mutation(
        "the start without its data",
        SCHEDULERS,
        "spread=1 / _alpha(begins[0])",
        "spread=begins[0]",
        follows("ddpm epsilon"),
    ),
    Mutation(
        "Euler's start by another rule",
        SCHEDULERS,
        "spread=float(own.init_noise_sigma)",
        "spread=float(own.sigmas.max())",
        follows("euler leading"),
    ),
    Mutation(
        "noise at time 0",
        SCHEDULERS,
        "upper.append(beta / other if t else 0.0)",
        "upper.append(beta / other)",
        follows("ddpm large"),
    ),
    Mutation(
        "a large variance of the wrong state",
        SCHEDULERS,
        "upper.append(beta / other",
        "upper.append(beta / alpha",
        follows("ddpm large, trailing"),
    ),
    Mutation(
        "few steps end in the second order",
        SCHEDULERS,
        "config.euler_at_final or (config.lower_order_final and n < 15) or",
        "config.euler_at_final or",
        follows("dpm, few steps to the first level"),
    ),
    Mutation("the SDE without its noise", SCHEDULERS, "sde = 1.0 if", "sde = 0.0 if", follows("dpm sde")),
    Mutation(
        "Heun's levels counted twice",
        SCHEDULERS,
        "[levels[0], *levels[1::2]]",
        "levels",
        follows("heun"),
    ),
    Mutation(
        "flow's time is not σ",
        SCHEDULERS,
        "math.inf if t >= 1 else t / (1 - t)",
        "math.inf if t >= 1 else t",
        follows("flow"),
    ),
    Mutation(
        "flow's start below t = 1", SCHEDULERS, "else 1 + levels[0]", "else levels[0]", follows("flow, from below 1")
    ),
    Mutation(
        "variances in the network's units",
        SCHEDULERS,
        "scale * scale * v for v in values",
        "v for v in values",
        follows("ddpm large", 0.3, 2.0),
    ),
    Mutation(
        "levels in the network's units",
        SCHEDULERS,
        "tuple(scale * s for s in ladder.ends)",
        "ladder.ends",
        follows("ddim epsilon", 0.0, 2.0),
    ),
    Mutation(
        "clipped in the network's units",
        SCHEDULERS,
        "bound = data_scale * float(",
        "bound = float(",
        follows("ddim clipped", 0.3, 3.0),
    ),
    # the network's answer
    Mutation(
        "v with the wrong sign",
        SCHEDULE,
        "rows(alpha) * output + rows(alpha * alpha * level) * x",
        "rows(alpha * alpha * level) * x - rows(alpha) * output",
        follows("ddim v_prediction"),
    ),
    Mutation(
        "the variance's half is the mean",
        NETWORK,
        "output[0, :, : x.shape[1]]",
        "output[0, :, x.shape[1] :]",
        follows("ddpm learned"),
    ),
    Mutation(
        "a share in [−1, 1]",
        NETWORK,
        "(output[0, :, x.shape[1] :] + 1) / 2",
        "output[0, :, x.shape[1] :]",
        follows("ddpm learned"),
    ),
    Mutation(
        "pure noise asked at t = 0",
        NETWORK,
        "0.0 if schedule.data_at else",
        "0.0 if not schedule.data_at else",
        law(estimates_at_noise),
    ),
    Mutation("a velocity to the other end", NETWORK, "sign = -sign", "pass", law(estimates_at_noise)),
    Mutation(
        "an estimate in the network's units",
        NETWORK,
        "self.data_scale * found + self._shift(noise)",
        "found",
        law(estimates_at_noise),
    ),
    Mutation(
        "slices of large batches mixed up",
        NETWORK,
        "max(start - i * n, 0), min(stop - i * n, n)",
        "0, min(stop - start, n)",
        BATCHED,
    ),
    Mutation(
        "overflow in half precision passes",
        NETWORK,
        "if own in HALF:",
        "if False:",
        law(test_adapters_pipelines.test_an_overflow_in_half_precision_says_so),
    ),
    Mutation(
        "terms of other nulls merge",
        NETWORK,
        "| self._frozen\n        self._key",
        "and self._frozen\n        self._key",
        law(test_adapters_diffusers.test_what_stands_for_no_condition_tells_terms_apart),
    ),
    # pipelines
    Mutation(
        "no scaling factor",
        PIPELINES,
        "1 / scaling if data_scale is None",
        "1.0 if data_scale is None",
        law(latents_keep_their_own_units),
    ),
    Mutation(
        "the scaling factor upside down", PIPELINES, "1 / scaling if", "scaling if", law(latents_keep_their_own_units)
    ),
    Mutation(
        "no shift factor",
        PIPELINES,
        'float(vae.config.get("shift_factor") or 0.0)',
        "0.0",
        on_disk(test_adapters_pipelines.test_stable_diffusion_3, {}),
    ),
    Mutation(
        "guidance from the prompt",
        PIPELINES,
        "guidance(self.reference, self, power)",
        "guidance(self, self.reference, power)",
        GUIDED,
    ),
    Mutation(
        "guidance with the wrong sign",
        PIPELINES,
        "return guidance(self.reference, self, power)",
        "return guidance(self.reference, self, -power)",
        GUIDED,
    ),
    Mutation(
        "prompt and negative prompt swapped",
        PIPELINES,
        'encoded = self._encoded(texts["prompt"])',
        'encoded = self._encoded(texts.get("negative_prompt", texts["prompt"]))',
        NEGATIVE,
    ),
    Mutation(
        "the negative prompt is dropped",
        PIPELINES,
        'reference = self._encoded(texts["negative_prompt"])',
        "pass",
        NEGATIVE,
    ),
    Mutation(
        "a later prompt forgets it",
        PIPELINES,
        "reference = self._negative()",
        "reference = None",
        law(given_keeps_what_was_given),
    ),
    Mutation(
        "the reference forgets the image sizes",
        PIPELINES,
        'if name == "time_ids"}',
        "if False}",
        law(one_image_size_for_all_conditions),
    ),
    Mutation(
        "SDXL's reference is the empty prompt",
        PIPELINES,
        'if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):',
        "if False:",
        on_disk(test_adapters_pipelines.test_stable_diffusion_xl),
    ),
    Mutation("images in [−1, 1]", PIPELINES, "return (found / 2 + 0.5).clamp(0, 1)", "return found.clamp(0, 1)", NOISY),
    Mutation(
        "standardised latents decoded as they are",
        PIPELINES,
        "x * deviation / vae.config.scaling_factor + mean",
        "x / vae.config.scaling_factor",
        on_disk(test_adapters_pipelines.test_standardised_latents_stay_in_the_networks_units),
    ),
    Mutation(
        "a sampler in the network's units",
        PIPELINES,
        "data_scale=self.data_scale, **options",
        "**options",
        GUIDED,
        within="def reverse",
    ),
    Mutation(
        "the dynamic shift of all pixels",
        PIPELINES,
        "(self.event_shape[1] // patch) * (self.event_shape[2] // patch)",
        "self.event_shape[1] * self.event_shape[2]",
        on_disk(test_adapters_pipelines.test_stable_diffusion_3, {"use_dynamic_shifting": True}),
    ),
]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
