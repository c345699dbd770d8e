"""Whole trajectories of the real scheduler classes, reproduced by ``Reverse`` in the σ coordinate to 1e-4.

Both sides start from the same seed: the start and every step's noise are then the same numbers, drawn in the same
order. States are compared before every step and after the last, in the scheduler's own units, relative to the largest
number of the state where that exceeds 1.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.product import guidance
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import Ladder, Reverse, reverse
from boltzmix.models.adapters import term
from boltzmix.models.adapters.diffusers import reverse_like
from boltzmix.models.adapters.schedulers import _READERS
from boltzmix.models.schedules import VE

diffusers = pytest.importorskip("diffusers")

PREDICTIONS = ("epsilon", "sample", "v_prediction")
DDIM = {"clip_sample": False}
STABLE_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE = DDIM | STABLE_BETAS | {"steps_offset": 1}


def ddim(steps=8, eta=0.0, **config):
    return "DDIMScheduler", DDIM | config, steps, {"eta": eta}


def ddpm(steps=8, **config):
    return "DDPMScheduler", DDIM | config, steps, {}


def euler(steps=8, **config):
    return "EulerDiscreteScheduler", config, steps, {}


def dpm(steps=8, **config):
    return "DPMSolverMultistepScheduler", config, steps, {}


def flow(steps=8, more=None, **config):
    return "FlowMatchEulerDiscreteScheduler", config, steps, more or {}


CASES = {
    **{f"ddim {p}": ddim(prediction_type=p) for p in PREDICTIONS},
    **{f"ddim {p}, eta 1": ddim(eta=1.0, prediction_type=p) for p in PREDICTIONS},
    "ddim, eta 0.6": ddim(eta=0.6),
    "ddim of Stable Diffusion": ddim(**STABLE, set_alpha_to_one=False),
    "ddim of Stable Diffusion, eta 1": ddim(eta=1.0, **STABLE, set_alpha_to_one=False),
    "ddim trailing": ddim(timestep_spacing="trailing"),
    "ddim trailing, uneven": ddim(steps=7, timestep_spacing="trailing"),
    "ddim linspace": ddim(timestep_spacing="linspace", set_alpha_to_one=False),
    "ddim linspace, eta 1": ddim(eta=1.0, timestep_spacing="linspace"),
    "ddim clipped": ddim(clip_sample=True),
    "ddim clipped, eta 1": ddim(eta=1.0, clip_sample=True, clip_sample_range=0.7),
    "ddim cosine": ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    **{f"ddpm {p}": ddpm(prediction_type=p) for p in PREDICTIONS},
    "ddpm large": ddpm(variance_type="fixed_large"),
    "ddpm large, trailing": ddpm(variance_type="fixed_large", timestep_spacing="trailing"),
    "ddpm large, offset": ddpm(variance_type="fixed_large", steps_offset=1),
    "ddpm small_log": ddpm(variance_type="fixed_small_log"),
    "ddpm small, linspace": ddpm(timestep_spacing="linspace"),
    "ddpm learned": ddpm(variance_type="learned_range"),
    "ddpm learned, offset": ddpm(variance_type="learned_range", steps_offset=1),
    "ddpm learned v": ddpm(variance_type="learned_range", prediction_type="v_prediction"),
    "ddpm clipped": ddpm(clip_sample=True),
    **{f"euler {p}": euler(prediction_type=p) for p in PREDICTIONS},
    "euler leading": euler(timestep_spacing="leading", **STABLE_BETAS, steps_offset=1),
    "euler trailing": euler(timestep_spacing="trailing"),
    "euler karras": euler(use_karras_sigmas=True),
    "euler exponential": euler(use_exponential_sigmas=True, final_sigmas_type="sigma_min"),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}, 8, {}),
    "euler ancestral v": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, 8, {}),
    "heun": ("HeunDiscreteScheduler", {}, 6, {}),
    "heun karras v": ("HeunDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, 6, {}),
    "edm": ("EDMEulerScheduler", {}, 8, {}),
    "edm v": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, 8, {}),
    **{f"dpm {p}": dpm(prediction_type=p) for p in PREDICTIONS},
    "dpm, 1st order": dpm(solver_order=1),
    "dpm, 1st order, to the first level": dpm(solver_order=1, final_sigmas_type="sigma_min"),
    "dpm, few steps to the first level": dpm(steps=8, final_sigmas_type="sigma_min"),
    "dpm, many steps to the first level": dpm(steps=16, final_sigmas_type="sigma_min"),
    "dpm, Euler at the end": dpm(steps=16, final_sigmas_type="sigma_min", euler_at_final=True),
    "dpm, no lower order at the end": dpm(steps=8, final_sigmas_type="sigma_min", lower_order_final=False),
    "dpm karras": dpm(use_karras_sigmas=True),
    "dpm trailing": dpm(timestep_spacing="trailing"),
    "dpm leading": dpm(timestep_spacing="leading", steps_offset=1),
    "dpm sde": dpm(algorithm_type="sde-dpmsolver++"),
    "dpm sde, 1st order": dpm(algorithm_type="sde-dpmsolver++", solver_order=1),
    "flow": flow(),
    "flow, shifted": flow(shift=3.0),
    "flow, shifted to the data": flow(shift=0.5),
    "flow, many shifted steps": flow(steps=60, shift=3.0),
    "flow, from below 1": flow(steps=None, more={"sigmas": np.linspace(0.98, 0.05, 8)}),
    "flow, shifted by size": flow(use_dynamic_shifting=True, more={"mu": 0.8}),
}


class Near(diffusers.UNet2DModel):
    """A random network near the exact one of N(0, 1), so that its trajectories end near the data's scale."""

    def forward(self, sample, timestep, return_dict=True):
        out = super().forward(sample, timestep, return_dict=False)[0]
        t = torch.as_tensor(timestep, dtype=torch.float64).expand(sample.shape[0])
        mean = self.exact(t).float()[:, None, None, None] * sample + 0.5 * out[:, :1]
        return (torch.cat([mean, torch.tanh(out[:, 1:])], 1),)


def exact_factor(scheduler):
    """t → c, where a network of N(0, 1) returns c · x_t."""
    name, kind = type(scheduler).__name__, scheduler.config.get("prediction_type")
    if name.startswith("Flow"):
        return lambda t: (2 * t / 1000 - 1) / ((t / 1000) ** 2 + (1 - t / 1000) ** 2)
    if name.startswith("EDM") or kind == "v_prediction":
        return torch.zeros_like
    table = scheduler.alphas_cumprod.double()

    def factor(t):
        low = t.floor().long().clamp(max=len(table) - 2)
        alphas = torch.lerp(table[low], table[low + 1], t - low)
        return alphas.sqrt() if kind == "sample" else (1 - alphas).sqrt()

    return factor


def unet(outputs=1, seed=0):
    torch.manual_seed(seed)
    net = Near(
        sample_size=8,
        in_channels=1,
        out_channels=outputs,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return net.eval().requires_grad_(False)


NETS: dict[int, torch.nn.Module] = {}


def network(scheduler):
    outputs = 2 if scheduler.config.get("variance_type") == "learned_range" else 1
    net = NETS.setdefault(outputs, unet(outputs))
    net.exact = exact_factor(scheduler)
    return net


def make(case):
    name, config, steps, more = CASES[case]
    return getattr(diffusers, name)(**config), steps, more


def theirs(call, scheduler, steps, shape, seed, dtype=torch.float32, eta=None, **timesteps):
    """The loop of the library's pipelines; states before each step and after the last, in the scheduler's units."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    scheduler.set_timesteps(**timesteps) if steps is None else scheduler.set_timesteps(steps, **timesteps)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    accepted = scheduler.step.__code__.co_varnames
    options = {"generator": generator} if "generator" in accepted else {}
    if eta is not None:
        options["eta"] = eta
    states = []
    for t in scheduler.timesteps:
        states.append(x)
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(call(fed, t), t, x, return_dict=False, **options)[0]
    if "Heun" in type(scheduler).__name__:
        states = states[::2]  # between them lie Euler's guesses
    return [*states, x]


def ours(p, sampler, n, seed, scheduler):
    """Our states in the scheduler's units."""
    draw = sample(p, n, sampler=replace(sampler, record=True), seed=seed)
    assert torch.equal(draw.frames[-1], draw.x)
    ladder = sampler.sigmas
    scale, loc = p.data_scale, p._location
    states = []
    for x, sigma in zip(draw.frames, (*ladder.begins, None), strict=True):
        if sigma == math.inf:
            states.append(x)  # unit noise, whatever the units
            continue
        y = (x - loc) / scale
        if sigma is None or type(scheduler).__name__.startswith(("Euler", "EDM", "Heun")):
            states.append(y)
        elif type(scheduler).__name__.startswith("Flow"):
            states.append(y / (1 + sigma / scale))
        else:
            states.append(y / math.sqrt(1 + (sigma / scale) ** 2))
    return states


def assert_same(found, expected, tolerance=1e-4):
    assert len(found) == len(expected)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = max(1.0, float(b.abs().max()))
        error = float((a - b).abs().max())
        assert error < tolerance * size, f"state {k} of {len(found)}: {error / size:.2e}"


def check(case, data_loc=0.0, data_scale=1.0, tolerance=1e-4):
    scheduler, steps, more = make(case)
    config = CASES[case][1]
    net = network(scheduler)
    options = {k: v for k, v in more.items() if k != "eta"}
    p = term(
        net,
        schedule=scheduler,
        data_loc=data_loc,
        data_scale=data_scale,
        integer_time=bool(config.get("use_karras_sigmas")) and "DPM" in type(scheduler).__name__,
    )
    sampler = reverse_like(
        scheduler, steps, eta=more.get("eta", 0.0), data_loc=data_loc, data_scale=data_scale, **options
    )
    found = ours(p, sampler, 2, 11, scheduler)

    def call(x, t):
        return net(x, t, return_dict=False)[0]

    with torch.no_grad():
        expected = theirs(call, scheduler, steps, (2, 1, 8, 8), 11, **more)
    assert_same(found, expected, tolerance)


@pytest.mark.parametrize("case", CASES)
def test_a_trajectory_is_the_schedulers(case):
    check(case)


SCALED = [
    "ddim of Stable Diffusion, eta 1",
    "ddim clipped, eta 1",
    "ddpm large",
    "ddpm learned",
    "euler karras",
    "dpm v_prediction",
    "flow, shifted",
]


@pytest.mark.parametrize("case", SCALED)
def test_scaled_and_shifted_data_follow_the_same_trajectory(case):
    check(case, data_loc=0.3, data_scale=1 / 0.18215)


@pytest.mark.parametrize("case", ["ddim epsilon", "ddim linspace, eta 1", "ddpm large, offset", "ddpm epsilon"])
def test_closed_form_denoisers_agree_far_below_float32(case):
    """Data N(0.4, 0.09) and its exact ε at whole steps, in float64; the scheduler's tables are float32."""
    scheduler, steps, more = make(case)
    table = scheduler.alphas_cumprod.double()

    def exact(x_t, t):
        t = t if isinstance(t, torch.Tensor) else torch.tensor(t)
        alpha = table[t.round().long()].sqrt()
        alpha = alpha if alpha.ndim == 0 else alpha[:, None]
        noise = (1 - alpha**2).sqrt()
        return noise * (x_t - alpha * 0.4) / (alpha**2 * 0.09 + noise**2)

    p = term(exact, schedule=scheduler, event_shape=(3,))
    draw = sample(
        p,
        5,
        sampler=reverse_like(scheduler, steps, record=True, eta=more.get("eta", 0.0)),
        seed=3,
        dtype=torch.float64,
    )
    expected = theirs(exact, scheduler, steps, (5, 3), 3, dtype=torch.float64, **more)
    assert float((draw.x - expected[-1]).abs().max()) < 2e-6


def test_euler_on_a_closed_form_flow_starts_at_pure_noise():
    """Data N(m, s²): E[ε − x0 | x_t], also at t = 1, where σ is infinite."""
    m, s = 0.4, 0.3

    def exact(x_t, t):
        t = (t / 1000).reshape(-1, *[1] * (x_t.ndim - 1)) if t.ndim else t / 1000
        gain = ((1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
        clean = m + gain * (x_t - (1 - t) * m)
        return t / ((1 - t) ** 2 * s**2 + t**2) * (x_t - (1 - t) * m) - clean

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    p = term(exact, schedule=scheduler, event_shape=(3,))
    sampler = reverse_like(scheduler, 12, record=True)
    assert sampler.sigmas.begins[0] == math.inf
    draw = sample(p, 6, sampler=sampler, seed=5)
    expected = theirs(exact, scheduler, 12, (6, 3), 5)
    assert float((draw.x - expected[-1]).abs().max()) < 1e-5
    # guidance of the same density with itself is itself, at infinity too
    q = term(lambda x, t: exact(x, t), schedule=scheduler, event_shape=(3,))
    reverse._warned.clear()
    with pytest.warns(SamplingWarning, match="biased"):
        both = sample(guidance(p, q, 3.0), 6, sampler=sampler, seed=5)
    assert torch.allclose(both.x, draw.x, atol=1e-4)


def test_states_may_be_given_at_the_first_level():
    scheduler = diffusers.DDIMScheduler(**DDIM)
    p, sampler = term(network(scheduler), schedule=scheduler), reverse_like(scheduler, 6)
    free = sample(p, 3, sampler=sampler, seed=2)
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * sampler.sigmas.spread
    assert torch.allclose(sample(p, 3, sampler=sampler, init=start, seed=99).x, free.x, atol=1e-6)
    # half of the way, from a state on the way
    whole = sample(p, 3, sampler=replace(sampler, record=True), seed=2)
    rest = Ladder(sampler.sigmas.begins[3:], sampler.sigmas.ends[3:], sampler.sigmas.carry[3:])
    halfway = sample(p, 3, sampler=replace(sampler, sigmas=rest), init=whole.frames[3], seed=1)
    assert torch.allclose(halfway.x, whole.x, atol=1e-5)


def test_the_scheduler_is_left_as_it_was():
    scheduler = diffusers.DDIMScheduler()
    before = scheduler.timesteps.clone()
    reverse_like(scheduler, 10)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.num_inference_steps is None


def test_euler_ancestral_is_ddim_with_eta_one():
    p = term(lambda x, t: -x / (1 + t[:, None] ** 2), schedule=VE(), prediction="score", event_shape=(2,))
    ladder = Ladder.down([20.0, 5.0, 1.0, 0.2, 0.05])
    left = sample(p, 50, sampler=Reverse(solver="euler-ancestral", sigmas=ladder), seed=1).x
    right = sample(p, 50, sampler=Reverse(solver="ddim", eta=1.0, sigmas=ladder), seed=1).x
    ancestral = sample(p, 50, sampler=Reverse(solver="ddpm", sigmas=ladder), seed=1).x
    assert torch.equal(left, right)
    assert torch.allclose(left, ancestral, atol=1e-5)


def test_every_reader_reads_its_default():
    for name in _READERS:
        config = {"clip_sample": False} if name.startswith("DDPM") else {}
        sampler = reverse_like(getattr(diffusers, name)(**config), 5)
        assert len(sampler.sigmas.begins) == 5
        assert sampler.steps == 5


WRONG = {
    "no steps": (lambda: reverse_like(diffusers.DDIMScheduler()), ValueError, "how many steps"),
    "no scheduler": (lambda: reverse_like(VE(), 5), TypeError, "reverse_like knows.*got VE"),
    "PNDM": (lambda: reverse_like(diffusers.PNDMScheduler(), 5), TypeError, r"from_config\(scheduler.config\)"),
    "eta of Euler": (lambda: reverse_like(diffusers.EulerDiscreteScheduler(), 5, eta=1.0), ValueError, "DDIMScheduler"),
    "thresholding": (lambda: reverse_like(diffusers.DDIMScheduler(thresholding=True), 5), ValueError, "thresholding"),
    "zero terminal SNR": (
        lambda: reverse_like(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 5),
        ValueError,
        "zero terminal SNR",
    ),
    "a variance of its own": (
        lambda: reverse_like(diffusers.DDPMScheduler(variance_type="learned"), 5),
        ValueError,
        "variance_type='learned'",
    ),
    "third order": (
        lambda: reverse_like(diffusers.DPMSolverMultistepScheduler(solver_order=3), 5),
        ValueError,
        "solver_order=3",
    ),
    "the other second order": (
        lambda: reverse_like(diffusers.DPMSolverMultistepScheduler(solver_type="heun"), 5),
        ValueError,
        "midpoint",
    ),
    "DPM-Solver without ++": (
        lambda: reverse_like(
            diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"), 5
        ),
        ValueError,
        r"sde-dpmsolver\+\+ are",
    ),
    "a stochastic flow": (
        lambda: reverse_like(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 5),
        ValueError,
        "stochastic_sampling",
    ),
    "a clipped heun": (
        lambda: reverse_like(diffusers.HeunDiscreteScheduler(clip_sample=True), 5),
        ValueError,
        "clips no heun",
    ),
    "learned variance of a network without": (
        lambda: sample(
            term(unet(), schedule=diffusers.DDPMScheduler(**DDIM)),
            1,
            sampler=reverse_like(diffusers.DDPMScheduler(variance_type="learned_range", **DDIM), 3),
        ),
        TypeError,
        "no learned variance",
    ),
    "pure noise for a network of ε": (
        lambda: sample(
            term(unet(), schedule=diffusers.DDIMScheduler()),
            1,
            sampler=reverse_like(diffusers.FlowMatchEulerDiscreteScheduler(), 500),
        ),
        ValueError,
        "noise levels",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
