"""Terms of whole pipelines draw what the pipelines draw, and what they do with prompts is what the formula says.

The pipelines are randomly initialised and tiny. Parity: the same seed on both sides, through the pipeline's own loop,
its own text encoding and its own guidance, to 1e-4 of the largest number.
"""

import sys
import warnings

import pytest
import torch

import boltzmix as bm
from boltzmix.compose.errors import MissingExtra, NonFinite
from boltzmix.compose.term import evaluate
from boltzmix.models.adapters import term
from boltzmix.models.adapters.network import NetworkTerm
from boltzmix.models.adapters.pipelines import from_pipeline
from boltzmix.models.schedules import VE, FlowMatching

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from tests.models import tiny_pipelines as tiny  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
SEED, STEPS, N = 4, 5, 2


def generator():
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def sd(folder):
    return tiny.stable_diffusion(folder)


@pytest.fixture(scope="module")
def p(sd):
    return term(sd)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(p, target, **options):
    return bm.sample(target, N, sampler=p.reverse(STEPS, **options), seed=SEED).x


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def latents_of(pipeline, prompt="a cat", **options):
    options = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generator()} | options
    return pipeline(prompt, num_images_per_prompt=N, **options).images


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("alpha", [1.5, 7.5])
def test_guidance_of_a_prompt_is_the_pipelines_guidance_scale(sd, p, alpha):
    expected = latents_of(sd, guidance_scale=alpha)
    cat = p.given(prompt="a cat")
    for formula in (bm.guidance(p.given(prompt=""), cat, alpha), p * (cat / p) ** alpha, cat.guided(alpha)):
        assert_close(p.to_network(drawn(p, formula)), expected)


def test_a_prompt_alone_is_the_pipeline_without_guidance(sd, p):
    assert_close(p.to_network(drawn(p, p.given(prompt="a cat"))), latents_of(sd, guidance_scale=1.0))


def test_a_negative_prompt_is_the_reference_of_guidance(sd, p):
    expected = latents_of(sd, guidance_scale=5.0, negative_prompt="blurry")
    cat, blurry = p.given(prompt="a cat"), p.given(prompt="blurry")
    both = p.given(prompt="a cat", negative_prompt="blurry")
    later = p.given(negative_prompt="blurry").given(prompt="a cat")
    for formula in (blurry * (cat / blurry) ** 5.0, both.guided(5.0), later.guided(5.0)):
        assert_close(p.to_network(drawn(p, formula)), expected)
    assert both.key() == cat.key()  # by itself it is p(x | a cat)
    assert both.reference.key() == blurry.key()
    assert cat.reference.key() == p.key() == p.given(prompt="").key()
    swapped = cat * (blurry / cat) ** 5.0
    assert float((p.to_network(drawn(p, swapped)) - expected).abs().max()) > 0.1


def test_noise_in_every_step_and_decoding(sd, p):
    options = {"guidance_scale": 5.0, "eta": 1.0, "output_type": "pt"}
    expected = latents_of(sd, **options)
    x = drawn(p, p.given(prompt="a cat").guided(5.0), eta=1.0)
    for rows in (1, 8):
        assert_close(p.decode(x, max_rows=rows), expected)


def test_other_schedulers_of_one_pipeline(sd, p):
    for name, options in (
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
    ):
        scheduler = getattr(diffusers, name)(**tiny.PLAIN, **options)
        parts = sd.components | {"scheduler": scheduler, "requires_safety_checker": False}
        pipeline = tiny.quiet(diffusers.StableDiffusionPipeline(**parts))
        expected = latents_of(pipeline, guidance_scale=5.0)
        assert_close(p.to_network(drawn(p, p.given(prompt="a cat").guided(5.0), scheduler=scheduler)), expected)
        assert_close(term(pipeline).to_network(drawn(term(pipeline), p.given(prompt="a cat").guided(5.0))), expected)


def test_stable_diffusion_xl(folder):
    pipeline = tiny.stable_diffusion_xl(folder)
    p = term(pipeline)
    assert p.conditions >= {"prompt", "negative_prompt", "original_size", "crop", "target_size"}
    # without a negative prompt the reference is what the pipeline takes: zeros, not the empty prompt
    expected = latents_of(pipeline, guidance_scale=5.0)
    assert_close(p.to_network(drawn(p, p.given(prompt="a cat").guided(5.0))), expected)
    assert p.given(prompt="").key() != p.key()
    sizes = {"original_size": (32, 48), "target_size": (20, 24)}
    expected = latents_of(
        pipeline, guidance_scale=5.0, negative_prompt="dog", crops_coords_top_left=(1, 2), **sizes
    )  # fmt: skip
    q = p.given(prompt="a cat", negative_prompt="dog", crop=(1, 2), **sizes)
    assert_close(p.to_network(drawn(p, q.guided(5.0))), expected)
    assert torch.equal(q.reference.given_time_ids, torch.tensor([32.0, 48.0, 1.0, 2.0, 20.0, 24.0]))
    with pytest.raises(ValueError, match="crop is a pair of numbers"):
        p.given(crop=3)
    with pytest.raises(ValueError, match="time_ids in words"):
        p.given(crop=(0, 0), time_ids=torch.zeros(6))


@pytest.mark.parametrize("config", [{}, {"use_dynamic_shifting": True}], ids=["shift 3", "dynamic shift"])
def test_stable_diffusion_3(folder, config):
    pipeline = tiny.stable_diffusion_3(folder, **config)
    p = term(pipeline)
    assert (p._location, p.data_scale) == (0.0609, pytest.approx(1 / 1.5305))
    expected = latents_of(pipeline, guidance_scale=5.0, negative_prompt="dog")
    x = drawn(p, p.given(prompt="a cat", negative_prompt="dog").guided(5.0))
    assert_close(p.to_network(x), expected)
    if not config:
        decoded = latents_of(pipeline, guidance_scale=5.0, negative_prompt="dog", output_type="pt")
        assert_close(p.decode(x), decoded)


@pytest.mark.filterwarnings("ignore")
def test_pixart_reads_a_mask_and_ignores_its_learned_variance(folder):
    pipeline = tiny.pixart(folder)
    p = term(pipeline)
    options = {"use_resolution_binning": False, "height": 16, "width": 16, "max_sequence_length": tiny.LENGTH}
    expected = latents_of(pipeline, guidance_scale=4.0, **options)
    assert_close(p.to_network(drawn(p, p.given(prompt="a cat").guided(4.0))), expected)


def test_dit_guides_by_class():
    pipeline = tiny.dit()
    p = term(pipeline)
    images = pipeline([3] * N, guidance_scale=4.0, num_inference_steps=STEPS, output_type="pt", generator=generator())
    assert_close(p.decode(drawn(p, p.given(label=3).guided(4.0))), images.images)
    assert p.given(label=3).reference.key() == p.key()
    assert "prompt" not in p.conditions


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_unconditional_pipelines(name):
    pipeline = tiny.pixels()
    if name == "DDIM":
        pipeline = tiny.quiet(diffusers.DDIMPipeline(pipeline.unet, pipeline.scheduler))
    options = {"eta": 0.5} if name == "DDIM" else {}
    out = pipeline(batch_size=N, generator=generator(), num_inference_steps=STEPS, output_type="np", **options)
    p = term(pipeline)
    assert_close(p.decode(drawn(p, p, **options)), torch.tensor(out.images).permute(0, 3, 1, 2))


# ------------------------------------------------------------------------------------------------ prompts and batches


def test_text_is_encoded_once_per_prompt(sd):
    calls = []
    hook = sd.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    p = term(sd)
    assert len(calls) == 1  # the empty prompt
    cat = p.given(prompt="a cat")
    assert len(calls) == 2
    bm.sample(cat.guided(3.0), 2, sampler=p.reverse(3), seed=0)
    cat.given_context  # noqa: B018
    assert len(calls) == 2
    hook.remove()
    assert not cat.given_context.requires_grad
    assert not any("text_encoder" in name for name in cat.state_dict())


def test_three_prompts_are_one_forward_and_large_batches_are_split(sd, p):
    cat, dog = p.given(prompt="a cat"), p.given(prompt="dog")
    members, x, sigma = [p, cat, dog], noise(3, 4, 8, 8), torch.tensor([5.0, 1.0, 30.0])
    separate = [m.score(x, sigma) for m in members]
    calls = []
    hook = sd.unet.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    together = evaluate(members, x, sigma, energy=False, score=True)
    assert calls == [9]
    small = term(sd, max_rows=4)
    parts = [small, small.given(prompt="a cat"), small.given(prompt="dog")]
    calls.clear()
    split = evaluate(parts, x, sigma, energy=False, score=True)
    assert calls == [4, 4, 1]
    hook.remove()
    for member, part, score in zip(members, parts, separate, strict=True):
        assert torch.allclose(together[member.key()][1], score, atol=1e-5)
        assert torch.allclose(split[part.key()][1], score, atol=1e-5)
    assert float((separate[1] - separate[2]).abs().max()) > 1e-4


def test_two_prompts_composed_end_to_end_and_loaded_from_a_folder(sd, p, folder):
    path = folder / "checkpoint"
    sd.save_pretrained(path)
    loaded = term(tiny.quiet(diffusers.StableDiffusionPipeline.from_pretrained(path, local_files_only=True)))
    images = []
    for q in (p, loaded):
        cat, dog = q.given(prompt="a cat"), q.given(prompt="a dog")
        formula = q * (cat / q) ** 3.0 * (dog / q) ** 2.0
        assert sorted(formula.exponents()) == [-4.0, 2.0, 3.0]
        draw = bm.sample(formula, 2, sampler=q.reverse(4), seed=0)
        assert draw.info.network_rows == 12
        images.append(q.decode(draw.x))
    assert images[0].shape == (2, 3, 16, 16)
    assert float(images[0].min()) >= 0 <= float(images[0].max()) <= 1
    assert torch.allclose(*images, atol=1e-5)
    corrected = bm.sample(formula, 2, sampler=bm.Annealed(levels=3, sweeps=1), seed=0)
    assert bool(torch.isfinite(corrected.x).all())


def test_states_are_the_autoencoders_latents_whatever_its_factor(sd, p):
    """The score of x = z / factor is the network's at z, times the factor."""
    plain = term(sd.unet, schedule=sd.scheduler)
    x, factor = noise(2, 4, 8, 8), 0.18215
    context = p.given(prompt="a cat").given_context
    expected = factor * plain.given(context=context).score(factor * x, factor * 7.0)
    assert torch.allclose(p.given(prompt="a cat").score(x, 7.0), expected, atol=1e-6)
    assert torch.allclose(p.from_network(p.to_network(x)), x, atol=1e-6)
    assert p.sigma_range == pytest.approx(tuple(s / factor for s in plain.sigma_range))
    assert torch.allclose(p.decode(x), (sd.vae.decode(x).sample / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_images_become_latents_and_back(sd, p):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = p.encode(images, max_rows=2)
    assert torch.allclose(latents, sd.vae.encode(2 * images - 1).latent_dist.mode(), atol=1e-5)
    with pytest.raises(ValueError, match=r"latents of shape \(4, 4, 4\).*event_shape"):
        p.encode(images[:, :, :8, :8])
    pixels = term(tiny.pixels())
    small = images[:, :, :8, :8]
    assert torch.allclose(pixels.decode(pixels.encode(small)), small, atol=1e-6)


def test_standardised_latents_stay_in_the_networks_units(folder):
    mean, deviation = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    vae = tiny.autoencoder(latents_mean=mean, latents_std=deviation, scaling_factor=0.5)
    pipeline = tiny.stable_diffusion_xl(folder, vae=vae)
    p = term(pipeline)
    assert p.data_scale == 1.0
    x = drawn(p, p.given(prompt="a cat").guided(5.0))
    assert_close(p.decode(x), latents_of(pipeline, guidance_scale=5.0, output_type="pt"))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    z = p.encode(images)
    back = z * torch.tensor(deviation)[:, None, None] / 0.5 + torch.tensor(mean)[:, None, None]
    assert torch.allclose(back, vae.encode(2 * images - 1).latent_dist.mode(), atol=1e-5)


def test_conditions_follow_the_term_to_another_dtype(folder):
    p = term(tiny.stable_diffusion(folder)).given(prompt="a cat", negative_prompt="dog")
    x = noise(1, 4, 8, 8)
    single = p.guided(2.0).score(x, 3.0)
    double = p.double().guided(2.0).score(x.double(), 3.0)
    assert p.reference.given_context.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- half precision


def test_half_precision_pipelines_have_float32_states(folder):
    exact = term(tiny.stable_diffusion(folder)).given(prompt="a cat")
    pipeline = tiny.stable_diffusion(folder).to(torch.bfloat16)
    p = term(pipeline, cast=True).given(prompt="a cat")
    draw = bm.sample(p.guided(2.0), 2, sampler=p.reverse(3), seed=0)
    assert draw.x.dtype == torch.float32
    x = noise(2, 4, 8, 8)
    found, expected = p.score(x, 5.0), exact.score(x, 5.0)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert p.decode(draw.x).dtype == torch.float32
    with pytest.raises(TypeError, match="float64"):
        p.score(x.double(), 5.0)


class Loud(torch.nn.Module):
    """x times 1e5, which float16 cannot hold."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1e3))

    def forward(self, x, t):
        return x * self.gain * 1e2


def test_an_overflow_in_half_precision_says_so():
    def make(dtype):
        return NetworkTerm(Loud().to(dtype), VE(), "sample", (2,), cast=True)

    x = torch.tensor([[0.1, 0.1], [2.0, 3.0]])
    with pytest.raises(NonFinite, match=r"float16 gave inf or NaN for 1 of 2.*bfloat16"):
        make(torch.float16).score(x, 1.0)
    assert bool(torch.isfinite(make(torch.bfloat16).score(x, 1.0)).all())
    assert bool(torch.isfinite(make(torch.float32).score(x, 1.0)).all())
    # a state that is not finite is not the network's fault, and float32 networks are left to the samplers
    bad = torch.tensor([[0.1, 0.1], [float("inf"), float("inf")]])
    assert not bool(torch.isfinite(make(torch.float16).score(bad, 1.0)[1]).any())
    assert not bool(torch.isfinite(make(torch.float32).score(1e37 * x, 1.0)).any())


def test_an_autoencoder_that_overflows_says_so(folder):
    vae = tiny.autoencoder()
    vae.decoder.conv_out.weight.data *= 1e7
    pipeline = tiny.stable_diffusion(folder, vae=vae.to(torch.float16))
    with pytest.raises(NonFinite, match=r"vae.to\(torch.float32\)"):
        term(pipeline).decode(noise(1, 4, 8, 8))


# --------------------------------------------------------------------------------------------------------- wrong calls


def without_text(folder):
    return term(tiny.stable_diffusion(folder, text_encoder=None, tokenizer=None))


CALLS = {
    "a misspelt name": (
        lambda p, folder: p.given(promt="a cat"),
        TypeError,
        r"\['promt'\].*'negative_prompt', 'prompt'",
    ),
    "two prompts at once": (lambda p, folder: p.given(prompt=["a", "b"]), TypeError, "one string, got list"),
    "no prompt": (lambda p, folder: p.given(prompt=None), TypeError, "one string, got NoneType"),
    "a negative number": (lambda p, folder: p.given(prompt="a", negative_prompt=3), TypeError, "got int"),
    "a prompt and its embedding": (
        lambda p, folder: p.given(prompt="a", context=torch.zeros(16, 16)),
        ValueError,
        r"\['context'\] was given beside it",
    ),
    "a prompt twice": (lambda p, folder: p.given(prompt="a").given(prompt="b"), TypeError, "it takes none"),
    "an embedding of another width": (
        lambda p, folder: p.given(context=torch.zeros(16, 15)),
        ValueError,
        r"shape \(any, 16\)",
    ),
    "sizes for a network without": (lambda p, folder: p.given(prompt="a", crop=(0, 0)), TypeError, r"\['crop'\]"),
    "a prompt by class": (lambda p, folder: term(tiny.dit()).given(prompt="a"), TypeError, r"takes \['label'\]"),
    "a prompt for pixels": (lambda p, folder: term(tiny.pixels()).given(prompt="a"), TypeError, "takes none"),
    "a prompt without encoder": (
        lambda p, folder: without_text(folder).given(prompt="a"),
        ValueError,
        r"StableDiffusionPipeline holds no text encoder.*context=",
    ),
    "no prompt without encoder": (
        lambda p, folder: without_text(folder).score(torch.zeros(1, 4, 8, 8), 5.0),
        ValueError,
        r"needs \['context'\]",
    ),
    "an autoencoder of another model": (
        lambda p, folder: term(tiny.stable_diffusion(folder, vae=tiny.autoencoder(8))),
        ValueError,
        "8 latent channels and the network 4",
    ),
    "images for latents": (lambda p, folder: p.decode(torch.zeros(1, 3, 16, 16)), ValueError, r"\(N, 4, 8, 8\)"),
    "one latent": (lambda p, folder: p.decode(torch.zeros(4, 8, 8)), ValueError, "batch dimension"),
    "no rows at a time": (lambda p, folder: p.decode(torch.zeros(1, 4, 8, 8), max_rows=0), ValueError, "max_rows"),
    "no rows in a forward": (lambda p, folder: term(p.parts.pipeline, max_rows=0), ValueError, "max_rows.*got 0"),
    "too large a kind": (lambda p, folder: term(p.parts.pipeline, kind="score"), TypeError, "kind="),
    "another shape": (lambda p, folder: term(p.parts.pipeline, event_shape=(3, 8, 8)), ValueError, "C = 4"),
    "an unknown scheduler": (
        lambda p, folder: p.reverse(5, scheduler=diffusers.PNDMScheduler()),
        TypeError,
        "reverse_like knows",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls(p, folder, case):
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call(p, folder)


def test_pipelines_with_other_parts_are_refused(sd):
    class WithControl:
        components = sd.components | {"controlnet": sd.unet}
        config = sd.config

    WithControl.__module__ = "diffusers.mine"
    with pytest.raises(TypeError, match=r"also has \['controlnet'\].*term\(pipeline.unet"):
        term(WithControl())


def test_refiners_and_distilled_networks_are_refused(folder):
    with pytest.raises(TypeError, match="aesthetics score"):
        refiner(folder)
    with pytest.raises(TypeError, match="guidance scale as an input"):
        term(tiny.unet(time_cond_proj_dim=8), schedule=diffusers.DDIMScheduler())


def refiner(folder):
    parts = tiny.stable_diffusion_xl(folder).components
    options = {"requires_aesthetics_score": True, "add_watermarker": False}
    return term(diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **options))


def test_safety_checkers_are_ignored(sd, p):
    class Checked:
        components = sd.components | {"safety_checker": lambda *_: 1 / 0}
        config, _execution_device, vae_scale_factor = sd.config, torch.device("cpu"), 2
        encode_prompt = staticmethod(sd.encode_prompt)

    Checked.__module__ = "diffusers.mine"
    assert term(Checked()).key() == p.key()


def test_a_flow_needs_a_velocity_or_a_sample_at_pure_noise():
    p = NetworkTerm(lambda x, t: x, FlowMatching(), "epsilon", (2,))
    with pytest.raises(ValueError, match=r"no estimate at sigma = inf.*'epsilon'"):
        p._estimates_from_noise([p], torch.zeros(1, 2))


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("velocity", ["noise", "data", None])
def test_the_estimate_at_pure_noise_is_the_limit(data_at, velocity):
    """Data N(m, s²) in each convention of flow matching: E[x0 | noise] = m."""
    m, s = 0.7, 0.4
    schedule = FlowMatching(1e-3, 1 - 1e-6, data_at=data_at, velocity=velocity)
    towards_noise = (velocity or ("data" if data_at else "noise")) == "noise"

    def flow(x_t, time):
        t = (1 - time if data_at else time).reshape(-1, 1)
        total = (1 - t) ** 2 * s**2 + t**2
        v = (t - (1 - t) * s**2) / total * (x_t - (1 - t) * m) - m
        return v if towards_noise else -v

    p = NetworkTerm(flow, schedule, "flow", (2,), data_loc=0.2, data_scale=3.0)
    (found,) = p._estimates_from_noise([p], noise(4, 2))
    assert torch.allclose(found, torch.full((4, 2), 0.2 + 3.0 * m), atol=1e-5)
    clean = NetworkTerm(lambda x, t: torch.full_like(x, m), schedule, "sample", (2,), data_loc=0.2, data_scale=3.0)
    assert torch.allclose(clean._estimates_from_noise([clean], noise(4, 2))[0], found, atol=1e-5)


def test_a_missing_extra_names_the_installation(sd, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[diffusers\]"'):
        from_pipeline(sd)


def test_nothing_warns_when_a_pipeline_becomes_a_term(sd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term(sd).given(prompt="a cat", negative_prompt="dog").guided(2.0)
