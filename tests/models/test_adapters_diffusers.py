"""Terms of diffusers networks do what the real scheduler classes do with the same network."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.term import evaluate
from boltzmix.models.adapters import term
from boltzmix.models.adapters.diffusers import DISCRETE, FLOW, PRECONDITIONED, from_diffusers, read_schedule
from boltzmix.models.schedules import EDM, VE, VP, FlowMatching

diffusers = pytest.importorskip("diffusers")

PLAIN = {"clip_sample": False}
CASES = {
    **{f"ddpm-{p}": ("DDPMScheduler", PLAIN | {"prediction_type": p}) for p in ("epsilon", "sample", "v_prediction")},
    **{f"ddim-{p}": ("DDIMScheduler", PLAIN | {"prediction_type": p}) for p in ("epsilon", "sample", "v_prediction")},
    **{
        f"ddim-{b}": ("DDIMScheduler", PLAIN | {"beta_schedule": b, "prediction_type": "v_prediction"})
        for b in ("scaled_linear", "squaredcos_cap_v2")
    },
    **{
        f"dpm-{p}": ("DPMSolverMultistepScheduler", {"prediction_type": p, "solver_order": 1})
        for p in ("epsilon", "sample", "v_prediction")
    },
    **{f"euler-{p}": ("EulerDiscreteScheduler", {"prediction_type": p}) for p in ("epsilon", "sample", "v_prediction")},
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-continuous": (
        "EulerDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.01, "sigma_max": 100.0}
        | {"use_karras_sigmas": True},
    ),
    **{f"edm-{p}": ("EDMEulerScheduler", {"prediction_type": p}) for p in ("epsilon", "v_prediction")},
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}


def unet(channels=1, outputs=None, classes=None, seed=0):
    torch.manual_seed(seed)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=outputs or channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return unet()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real_trajectory(net, name, config, start, steps):
    """The scheduler's own loop from unit noise; states before each step and after the last, and its x0 estimates.

    Every state is returned in the σ coordinate with its level.
    """
    scheduler = getattr(diffusers, name)(**config)
    flow = name.startswith("Flow")
    if flow:
        scheduler.set_timesteps(sigmas=np.linspace(0.99, 0.02, steps))
    else:
        scheduler.set_timesteps(steps)
    in_sigma = name.startswith(("Euler", "EDM"))
    states, levels, estimates = [], [], []
    x = start * (scheduler.sigmas[0] if in_sigma else 1.0)
    for i, t in enumerate(scheduler.timesteps):
        if in_sigma:
            alpha, sigma = 1.0, float(scheduler.sigmas[i])
        elif flow:
            alpha, sigma = 1 - float(scheduler.sigmas[i]), float(scheduler.sigmas[i] / (1 - scheduler.sigmas[i]))
        else:
            ab = scheduler.alphas_cumprod[int(t)].double()
            alpha, sigma = float(ab.sqrt()), float(((1 - ab) / ab).sqrt())
        states.append(x / alpha)
        levels.append(sigma)
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = net(fed, t, return_dict=False)[0]
        if name == "DPMSolverMultistepScheduler":
            scheduler._step_index = i
            estimates.append(scheduler.convert_model_output(out, sample=x))
        elif flow:
            estimates.append(x - scheduler.sigmas[i] * out)
        stepped = scheduler.step(out, t, x)
        if len(estimates) == i:
            estimates.append(stepped.pred_original_sample)
        x = stepped.prev_sample
    return [*states, x], [*levels, 0.0], estimates


@pytest.mark.parametrize("case", CASES)
def test_denoised_estimates_are_the_schedulers(net, case):
    name, config = CASES[case]
    start = noise(2, 1, 8, 8)
    states, levels, estimates = real_trajectory(net, name, config, start, 10)
    p = term(net, schedule=getattr(diffusers, name)(**config))
    for x, sigma, estimate in zip(states, levels, estimates, strict=False):
        # relative to the noise that the estimate is a difference from
        assert (p.denoise(x, sigma) - estimate).abs().max() < 1e-4 * max(1.0, sigma), sigma


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("ddpm")])
def test_the_schedulers_trajectory_is_ours(net, case):
    """Deterministic samplers of the first order are all x += (σ' − σ) ε̂ in the σ coordinate."""
    name, config = CASES[case]
    states, levels, _ = real_trajectory(net, name, config, noise(2, 1, 8, 8), 10)
    p = term(net, schedule=getattr(diffusers, name)(**config))
    x = states[0]
    for i, (sigma, following) in enumerate(pairwise(levels)):
        x = x - (following - sigma) * sigma * p.score(x, sigma)
        scale = float(states[i + 1].abs().max())
        assert (x - states[i + 1]).abs().max() < 1e-4 * max(1.0, scale), (i, sigma)


@pytest.mark.parametrize("name", [*DISCRETE, *PRECONDITIONED, *FLOW])
def test_every_known_scheduler_is_read(name):
    schedule, prediction = read_schedule(getattr(diffusers, name)())
    kind = VP if name in DISCRETE else EDM if name in PRECONDITIONED else FlowMatching
    assert isinstance(schedule, kind)
    assert prediction == {VP: "epsilon", EDM: "edm", FlowMatching: "flow"}[kind]


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_schedulers_have_the_levels_of_their_own_noise(name):
    """σ from what add_noise does to nothing and to the noise; Euler and its kin add σ ε without α."""
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear")
    schedule, _ = read_schedule(scheduler)
    levels = torch.stack([schedule.level(i) for i in range(1000)])
    table = scheduler.alphas_cumprod.double()
    assert torch.allclose(levels, ((1 - table) / table).sqrt(), rtol=1e-12)


def test_a_flow_of_dpm_solver(net):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    schedule, prediction = read_schedule(scheduler)
    assert (schedule, prediction) == (FlowMatching(0.001, 1 - 1e-6, time_scale=1000), "flow_prediction")
    p, x = term(net, schedule=scheduler), noise(2, 1, 8, 8)
    v = net(x / 3.0, torch.tensor([2000 / 3]), return_dict=False)[0]  # t = 2/3 at σ = 2
    assert torch.allclose(p.denoise(x, 2.0), x / 3.0 - 2 / 3 * v, atol=1e-5)
    opposite = term(net, schedule=scheduler, velocity="data")
    assert torch.allclose(opposite.denoise(x, 2.0), x / 3.0 + 2 / 3 * v, atol=1e-5)


def test_labels_share_one_forward():
    net = unet(classes=6)
    p = term(net, schedule=diffusers.DDIMScheduler(), null_label=5)
    calls = []
    hook = net.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    x, sigma = noise(3, 1, 8, 8), torch.tensor([0.5, 2.0, 9.0])
    members = [p, p.given(label=0), p.given(label=4)]
    separate = [m.score(x, sigma) for m in members]
    calls.clear()
    together = evaluate(members, x, sigma, energy=False, score=True)
    hook.remove()
    assert calls == [9]
    for member, score in zip(members, separate, strict=True):
        assert torch.allclose(together[member.key()][1], score, atol=1e-5)
    assert (separate[1] - separate[2]).abs().max() > 1e-4
    labels = torch.tensor([4, 4, 4])
    schedule = p.schedule
    eps = net((x * schedule.alpha(sigma).float()[:, None, None, None]), schedule.time(sigma).float(), labels)[0]
    assert torch.allclose(separate[2], -eps / sigma[:, None, None, None], atol=1e-6)


def test_what_stands_for_no_condition_tells_terms_apart():
    net, scheduler = unet(classes=6), diffusers.DDIMScheduler()
    p = term(net, schedule=scheduler, null_label=5)
    assert p.given(label=5).key() == p.key()
    assert (p / p.given(label=5)).exponents() == []
    assert term(net, schedule=scheduler, null_label=4).key() != p.key()


def test_prompts_and_learned_variance_and_two_conditions():
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        num_class_embeds=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    p = term(net, schedule=diffusers.DDIMScheduler(), null_context=torch.zeros(5, 12), data_scale=1 / 0.18215)
    assert p.event_shape == (2, 8, 8)
    assert p.conditions == {"label", "context"}
    assert p.sigma_range[1] == pytest.approx(157.4 / 0.18215, rel=1e-3)
    context = noise(1, 5, 12)
    q = p.given(label=1).given(context=context)
    x = noise(2, 2, 8, 8)
    with torch.no_grad():
        found = evaluate([q, p.given(label=2)], x, torch.tensor(10.0), energy=False, score=True)
        tau = torch.tensor(1.8215, dtype=torch.float64)
        fed = x * 0.18215 * float(p.schedule.alpha(tau))
        eps = net(fed, p.schedule.time(tau).float(), context.expand(2, 5, 12), class_labels=torch.tensor([1, 1]))[0]
    assert torch.allclose(found[q.key()][1], -eps / 10, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(any, 12\)"):
        p.given(context=torch.zeros(5, 11))
    with pytest.raises(TypeError, match=r"context is torch.float64"):
        p.given(label=0).given(context=torch.zeros(5, 12, dtype=torch.float64)).score(x, 10.0)
    with pytest.raises(ValueError, match="null_context"):
        term(net, schedule=diffusers.DDIMScheduler()).given(label=0).score(x, 1.0)


def test_dit_with_learned_variance():
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=5,
    ).eval()
    for parameter in net.parameters():  # its last layers start at zero
        parameter.data = parameter.data + 0.02 * torch.randn(parameter.shape)
    p = term(net, schedule=diffusers.DDIMScheduler())
    x = noise(2, 2, 8, 8)
    step, level = torch.tensor([400, 400]), float(p.schedule.level(400))
    with torch.no_grad():
        found = evaluate([p, p.given(label=3)], x, torch.tensor(level), energy=False, score=True)
        for member, label in ((p, 5), (p.given(label=3), 3)):
            alpha = float(p.schedule.alpha(torch.tensor(level)))
            out = net(x * alpha, step, torch.tensor([label, label]), return_dict=False)[0]
            assert torch.allclose(found[member.key()][1], -out[:, :2] / level, atol=1e-5)
    with pytest.raises(ValueError, match=r"0 … 4 \(or 5 for none\), got 6"):
        p.given(label=6)


def test_second_derivatives_pass_through_attention(net):
    p = term(net, schedule=diffusers.DDIMScheduler())
    x = noise(1, 1, 8, 8).requires_grad_()
    with torch.no_grad():
        plain = p.score(x, 1.0)
    score = p.score(x, 1.0)
    assert torch.allclose(score, plain, atol=1e-5)  # the same numbers from the other kernel
    (first,) = torch.autograd.grad(score.square().sum(), x, create_graph=True)
    direction = noise(1, 1, 8, 8, seed=3)
    (second,) = torch.autograd.grad((first * direction).sum(), x)
    step = 1e-2

    def gradient(point):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(p.score(point, 1.0).square().sum(), point)[0]

    numeric = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    assert (second - numeric).abs().max() < 2e-2 * second.abs().max()


def test_half_precision_networks():
    net = unet(seed=2).to(torch.bfloat16)
    x = noise(2, 1, 8, 8)
    with pytest.raises(TypeError, match=r"torch.bfloat16 parameters and x is torch.float32"):
        term(net, schedule=diffusers.DDIMScheduler()).score(x, 1.0)
    times = []
    net.register_forward_pre_hook(lambda module, args: times.append(args[1]))
    found = term(net, schedule=diffusers.DDIMScheduler(), cast=True).score(x, 1.0)
    assert times[0].dtype == torch.float32  # bfloat16 would merge neighbouring steps
    exact = term(unet(seed=2), schedule=diffusers.DDIMScheduler()).score(x, 1.0)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_pipelines(net):
    scheduler = diffusers.DDPMScheduler()
    p = term(diffusers.DDPMPipeline(net, scheduler))
    assert p.key() == term(net, schedule=scheduler).key()


def test_a_plain_function_with_a_real_scheduler(net):
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    p = term(lambda x_t, t: net(x_t, t)[0], schedule=scheduler, event_shape=(1, 8, 8))
    x = noise(2, 1, 8, 8)
    assert torch.allclose(p.score(x, 1.0), term(net, schedule=scheduler).score(x, 1.0), atol=1e-6)


def test_subclasses_of_known_classes_are_known(net):
    class Mine(diffusers.DDIMScheduler):
        pass

    class MyNet(diffusers.UNet2DModel):
        pass

    mine = MyNet(**{k: v for k, v in unet().config.items() if not k.startswith("_")})
    assert term(mine, schedule=Mine()).event_shape == (1, 8, 8)


WRONG = {
    "no schedule": (lambda: term(unet()), ValueError, "schedule="),
    "unknown scheduler": (
        lambda: term(unet(), schedule=diffusers.VQDiffusionScheduler(4)),
        TypeError,
        "unknown scheduler VQDiffusionScheduler.*DDPMScheduler.*FlowMatchEuler",
    ),
    "unknown network": (
        lambda: term(diffusers.UNet1DModel(), schedule=diffusers.DDIMScheduler()),
        TypeError,
        "UNet2DModel.*got UNet1DModel",
    ),
    "schedule without prediction": (lambda: term(unet(), schedule=VE()), ValueError, "prediction="),
    "prediction of another family": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler(), prediction="flow"),
        ValueError,
        "knows predictions",
    ),
    "velocity of a VP": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler(), velocity="data"),
        ValueError,
        "flow matching",
    ),
    "channels": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler(), event_shape=(3, 8, 8)),
        ValueError,
        "C = 1",
    ),
    "state": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler()).score(torch.zeros(1, 8, 8), 1.0),
        ValueError,
        "batch dimension",
    ),
    "inpainting": (
        lambda: term(unet(channels=4, outputs=3), schedule=diffusers.DDIMScheduler()),
        ValueError,
        "4 channels to 3",
    ),
    "label": (lambda: term(unet(classes=3), schedule=diffusers.DDIMScheduler()).given(label=3), ValueError, "0 … 2"),
    "label of none": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler()).given(label=3),
        TypeError,
        "takes none",
    ),
    "null label": (
        lambda: term(unet(classes=3), schedule=diffusers.DDIMScheduler(), null_label=3),
        ValueError,
        "0 … 2",
    ),
    "null of none": (lambda: term(unet(), schedule=diffusers.DDIMScheduler(), null_label=3), ValueError, "no label"),
    "missing label": (
        lambda: term(unet(classes=3), schedule=diffusers.DDIMScheduler()).score(torch.zeros(1, 1, 8, 8), 1.0),
        ValueError,
        r"p\.given\(label=…\)",
    ),
    "level": (
        lambda: term(unet(), schedule=diffusers.DDIMScheduler()).score(torch.zeros(1, 1, 8, 8), 200.0),
        ValueError,
        "noise levels",
    ),
    "kind": (lambda: term(unet(), kind="score", schedule=diffusers.DDIMScheduler()), TypeError, "kind="),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_missing_extra_names_the_installation(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[diffusers\]"'):
        from_diffusers(net, VE(), prediction="epsilon")
