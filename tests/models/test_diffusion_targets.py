"""Every prediction under every schedule that defines it: one Gaussian, one score, and the minimiser of every loss."""

import math

import pytest
import torch
from torch import nn

import boltzmix as bm
from boltzmix.models import Diffusion, FlowMatching, fit, schedules
from boltzmix.models.nets import MLP
from boltzmix.models.schedules import EDM, VE, VP, Cosine, LinearVP
from tests.contracts import Contract, contract_cases

D = torch.float64
SCHEDULES = {
    "ddpm": VP.ddpm(),
    "linear": LinearVP(),
    "cosine": Cosine(),
    "ve": VE(0.01, 50.0),
    "flow": schedules.FlowMatching(),
    "edm": EDM(0.01, 50.0, sigma_data=0.8),
}
PAIRS = [
    *[(s, p) for s in ("ddpm", "linear", "cosine") for p in ("epsilon", "sample", "v", "score")],
    *[("ve", p) for p in ("epsilon", "sample", "score")],
    *[("flow", p) for p in ("epsilon", "sample", "score", "velocity")],
    ("edm", "edm"),
    ("edm", "v"),
]
MEAN, VARIANCE, SIGMA_DATA = 0.5, 0.25, 0.8  # MEAN has no rounding error in float32, which holds it


class Optimal(nn.Module):
    """The conditional mean of each target for data N(MEAN, VARIANCE), written out anew; times a factor."""

    scalar = False

    def __init__(self, name, target, factor=1.0):
        super().__init__()
        self.name, self.target, self.factor = name, target, factor

    def forward(self, x_in, c_noise, label=None):
        sigma = (4 * c_noise).exp().reshape(-1, *[1] * (x_in.ndim - 1))
        alpha = {
            "ve": torch.ones_like(sigma),
            "flow": 1 / (1 + sigma),
            "edm": 1 / (sigma**2 + SIGMA_DATA**2).sqrt(),
        }.get(self.name, 1 / (1 + sigma**2).sqrt())
        x = x_in / alpha
        noise, data = sigma * x / (VARIANCE + sigma**2), VARIANCE * x / (VARIANCE + sigma**2)
        f = (sigma * data - SIGMA_DATA**2 * noise) * alpha / SIGMA_DATA
        found = {
            "epsilon": noise,
            "sample": data,
            "v": -f if self.name == "edm" else alpha * noise - alpha * sigma * data,
            "velocity": noise - data,
            "score": -x / (VARIANCE + sigma**2) / alpha,
            "edm": f,
        }
        return self.factor * found[self.target]


def exact(name, target, factor=1.0, shape=(3,), **options):
    options = {"loc": MEAN, "sigma_data": SIGMA_DATA, **options}
    net = Optimal(name, target, factor)
    return Diffusion(net, shape, parameterization=target, schedule=SCHEDULES[name], **options).double()


def states(p, n=7):
    low, high = p.sigma_range
    x = torch.randn(n, *p.event_shape, generator=torch.Generator().manual_seed(0), dtype=D)
    return x, torch.logspace(math.log10(low), math.log10(high), n, dtype=D).clamp(low, high)


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_all_parameterizations_of_one_gaussian_have_its_score(name, target):
    p = exact(name, target)
    x, sigma = states(p)
    torch.testing.assert_close(p.score(x, sigma), -(x - MEAN) / (sigma[:, None] ** 2 + VARIANCE), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(p.score(x, 1.0), -(x - MEAN) / (1 + VARIANCE))
    assert p.coarse(10.0).mean.tolist() == pytest.approx([MEAN] * 3, abs=1e-6)


@pytest.mark.parametrize(("name", "target"), [pair for pair in PAIRS if pair[1] != "sample"])
def test_float32_keeps_the_score_at_the_smallest_level(name, target):
    p = exact(name, target).float()
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    low = p.sigma_range[0]
    torch.testing.assert_close(p.score(x, low), -(x - MEAN) / (low**2 + VARIANCE), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_eps_undoes_target(name, target):
    s = SCHEDULES[name]
    p = exact(name, target)
    x0, sigma = states(p)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=D)
    output = s.target(target, x0, noise, sigma)
    back = s.eps(target, output, x0 + sigma[:, None] * noise, sigma)
    torch.testing.assert_close(back, noise, rtol=1e-6, atol=1e-6)


def minimiser(name, target, weight="own", n=20_000):
    """The factor on the optimal network at which the loss, a parabola, is least."""
    generator = torch.Generator().manual_seed(0)
    data = MEAN + VARIANCE**0.5 * torch.randn(n, 3, generator=generator, dtype=D)
    low, middle, high = (
        float(exact(name, target, k, weight=weight).loss(data, torch.Generator().manual_seed(1)).detach())
        for k in (0.0, 1.0, 2.0)
    )
    return 1 - (high - low) / (2 * (high - 2 * middle + low))


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_the_loss_is_least_at_the_closed_form(name, target):
    assert abs(minimiser(name, target) - 1) < 0.03  # about 4 standard errors of the parabola's slope


@pytest.mark.parametrize("weight", ["epsilon", "edm", "elbo"])
@pytest.mark.parametrize(("name", "target"), [("ddpm", "v"), ("flow", "velocity"), ("cosine", "score"), ("edm", "edm")])
def test_every_weight_is_least_at_the_closed_form(name, target, weight):
    assert abs(minimiser(name, target, weight) - 1) < 0.03


@pytest.mark.parametrize("weight", ["epsilon", "edm", "elbo"])
def test_a_weight_means_the_same_for_every_parameterization(weight):
    """Weights are on the error of the noise: networks that imply the same noise have the same loss."""
    data = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    found = [
        float(
            exact("cosine", target, weight=weight, noise=(0.0, 1.0))
            .loss(data, torch.Generator().manual_seed(1))
            .detach()
        )
        for target in ("epsilon", "sample", "v", "score")
    ]
    plain = Diffusion(
        Optimal("edm", "edm"),
        (3,),
        weight=weight,
        noise=(0.0, 1.0),
        loc=MEAN,
        sigma_data=SIGMA_DATA,
        sigma_range=Cosine().sigma_range,
    )
    found.append(float(plain.double().loss(data, torch.Generator().manual_seed(1)).detach()))
    assert found == pytest.approx([found[0]] * 5, rel=1e-6)


def elbo_loss_is_the_bound(name="cosine", target="v", **options):
    """For the exact score the bound is tight but for its two ends: D · loss = −E log p. |z| > 4 has p < 1e-4."""
    n = 4000
    data = MEAN + VARIANCE**0.5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    p = exact(name, target, weight="elbo", **options)
    losses = 3 * torch.stack([p.loss(data, torch.Generator().manual_seed(k)).detach() for k in range(40)])
    entropy = -bm.Gaussian(torch.full((3,), MEAN, dtype=D), VARIANCE).log_prob(data).mean()
    z = (losses.mean() - entropy) / (losses.std() / 40**0.5 + 1e-3)
    assert abs(float(z)) < 4
    assert float(losses.std()) / 40**0.5 < 0.1


@pytest.mark.parametrize(
    ("name", "target", "options"),
    [
        ("cosine", "v", {"noise": None}),
        ("flow", "velocity", {"noise": None}),
        ("ddpm", "epsilon", {"sigma_range": (0.05, 100.0)}),
        ("ve", "epsilon", {}),
        ("edm", "edm", {"noise": (0.0, 2.5)}),
        ("cosine", "v", {"noise": None, "sigma_range": (0.05, 0.7), "sigma_data": VARIANCE**0.5}),  # exact prior
    ],
)
def test_with_the_weight_of_the_bound_the_loss_is_the_bound(name, target, options):
    elbo_loss_is_the_bound(name, target, **options)


class Line(nn.Module):
    """An output linear in x with a coefficient that it learns as a function of the noise level."""

    scalar = False

    def __init__(self):
        super().__init__()
        self.gain = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x, c_noise, label=None):
        return x * self.gain(4 * c_noise[:, None])


@pytest.mark.parametrize(
    ("name", "target"),
    [("ddpm", "v"), ("linear", "score"), ("cosine", "sample"), ("ve", "epsilon"), ("flow", "velocity"), ("edm", "edm")],
)
def test_a_short_fit_reaches_the_closed_form(name, target):
    torch.manual_seed(0)
    p = Diffusion(
        Line(), (2,), parameterization=target, schedule=SCHEDULES[name], loc=MEAN, noise=(0.0, 1.0),
        sigma_data=SIGMA_DATA,
    )  # fmt: skip

    def data(n, generator):
        return MEAN + VARIANCE**0.5 * torch.randn(n, 2, generator=generator)

    fit(p, data, steps=250, batch_size=128, lr=2e-2, ema=0.98, progress=False)
    x = data(256, torch.Generator().manual_seed(1))
    for sigma in (0.4, 1.0, 3.0):
        noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        want = -(noisy - MEAN) / (sigma**2 + VARIANCE)
        error = (p.score(noisy, sigma).detach() - want).square().mean() / want.square().mean()
        assert float(error) < 0.01


# --------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("s", [VP.ddpm(), VP.ddpm(25, 1e-3, 0.3)], ids=["1000", "25"])
def test_one_step_moments_iterate_to_the_marginal(s):
    r"""q(x_t | x_{t−1}) has mean √(1−β_t) x_{t−1}; T of them have mean √ᾱ_T x_0 and variance 1 − ᾱ_T."""
    zero, one = torch.zeros((), dtype=D), torch.ones((), dtype=D)
    mean, variance = one, zero
    for step, alpha_bar in enumerate(s.alphas_cumprod):
        gain, spread = s.forward_step(one, step, zero), s.forward_step(zero, step, one)
        mean, variance = s.forward_step(mean, step, zero), gain**2 * variance + spread**2
        assert float(mean) == pytest.approx(math.sqrt(alpha_bar), rel=1e-9)
        assert float(variance) == pytest.approx(1 - alpha_bar, rel=1e-9)
        assert float((variance / mean**2).sqrt()) == pytest.approx(float(s.level(step)), rel=1e-9)
    with pytest.raises(ValueError, match="steps 0"):
        s.forward_step(one, len(s.alphas_cumprod), zero)


@pytest.mark.parametrize("s", [*SCHEDULES.values(), schedules.FlowMatching(data_at=1)], ids=repr)
def test_level_is_the_inverse_of_time_and_quantiles_have_their_density(s):
    low, high = s.sigma_range
    sigma = torch.logspace(math.log10(low), math.log10(high), 40, dtype=D).clamp(low, high)
    torch.testing.assert_close(s.level(s.time(sigma)), sigma, rtol=1e-9, atol=0.0)
    for sigma_range in (None, (max(low, 0.05), 5.0)):
        share = torch.linspace(0.0137, 0.9861, 23, dtype=D)
        found = s.quantile(share, sigma_range)
        assert bool((found[1:] > found[:-1]).all())
        slope = (s.quantile(share + 1e-6, sigma_range).log() - s.quantile(share - 1e-6, sigma_range).log()) / 2e-6
        torch.testing.assert_close(s.log_density(found, sigma_range), -slope.log(), rtol=1e-4, atol=1e-4)
        ends = s.quantile(torch.tensor([0.0, 1.0], dtype=D), sigma_range)
        assert ends.tolist() == pytest.approx(list(sigma_range or s.sigma_range))


def test_training_visits_the_levels_of_the_schedule():
    p = Diffusion(MLP(2), (2,), parameterization="epsilon", schedule="ddpm")
    sigma = p._draw_levels(4000, torch.Generator().manual_seed(0), torch.zeros(1)).double()
    time = VP.ddpm().time(sigma)
    assert float(time.mean()) == pytest.approx(499.5, abs=1.0)
    assert float(time.std()) == pytest.approx(999 / 12**0.5, abs=1.0)
    p = Diffusion(MLP(2), (2,), parameterization="velocity", noise=(0.0, 1.0))
    logit = p._draw_levels(4000, torch.Generator().manual_seed(0), torch.zeros(1)).double().log()
    assert float(logit.std()) == pytest.approx(1.0, abs=0.02)  # logit-normal time


def test_the_density_of_training_levels():
    for noise in (None, (-1.0, 0.7)):
        p = Diffusion(MLP(2), (2,), noise=noise, sigma_range=(0.05, 5.0))
        share = torch.linspace(0.01, 0.99, 9, dtype=D)
        slope = (p._log_quantile(share + 1e-6) - p._log_quantile(share - 1e-6)) / 2e-6
        torch.testing.assert_close(p._log_density(p._log_quantile(share).exp()), -slope.log(), rtol=1e-5, atol=1e-5)


def test_edm_as_a_schedule_is_the_default():
    options = {"sigma_data": SIGMA_DATA, "sigma_range": (0.01, 50.0), "loc": MEAN}
    plain = Diffusion(Optimal("edm", "edm"), (3,), **options).double()
    x, sigma = states(plain)
    torch.testing.assert_close(plain.score(x, sigma), exact("edm", "edm").score(x, sigma))
    losses = [float(p.loss(x, torch.Generator().manual_seed(0))) for p in (plain, exact("edm", "edm"))]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"parameterization": "noise"}, ValueError, "parameterization is one of"),
        ({"parameterization": "velocity", "schedule": "ddpm"}, ValueError, "VP knows predictions"),
        ({"parameterization": "v", "schedule": "flow"}, ValueError, "FlowMatching knows predictions"),
        ({"parameterization": "epsilon", "schedule": "edm"}, ValueError, "EDM knows predictions"),
        ({"parameterization": "edm", "schedule": "ve"}, ValueError, "VE knows predictions"),
        ({"schedule": "sigmoid"}, ValueError, "schedules by name"),
        ({"schedule": 3}, TypeError, "int"),
        ({"weight": "snr"}, ValueError, "weight is one of"),
        ({"noise": "schedule"}, ValueError, "time of its own"),
        ({"noise": "uniform"}, ValueError, "time of its own"),
        ({"parameterization": "epsilon", "sigma_range": (1e-5, 1.0)}, ValueError, "within the schedule"),
        ({"parameterization": "epsilon", "sigma_detail": 0.1}, ValueError, "sigma_detail"),
        ({"schedule": "edm", "sigma_data": 0.7}, ValueError, "say it once"),
    ],
)
def test_wrong_calls(options, error, words):
    with pytest.raises(error, match=words):
        Diffusion(MLP(2), (2,), **options)


def test_wrong_ddpm_schedules():
    with pytest.raises(ValueError, match="steps"):
        VP.ddpm(1)
    with pytest.raises(ValueError, match="beta"):
        VP.ddpm(10, 0.3, 0.1)
    with pytest.raises(ValueError, match="steps 0"):
        VP.ddpm(10).level(11.0)
    with pytest.raises(TypeError, match="inverse"):
        VE(conditioning=lambda sigma: sigma).level(1.0)


def learned(**options):
    torch.manual_seed(0)
    net = MLP(2, hidden=8, depth=1, num_classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return Diffusion(net, (2,), num_classes=3, **options).double()


# no Hessian: the Jacobian of a score network is not symmetric, and the contract compares its two sides
TERMS = {
    "v": Contract(lambda: learned(parameterization="v", schedule="cosine"), levels=(None, 0.3, 2.0), hessian=False),
    "velocity": Contract(
        lambda: FlowMatching(learned().core.net, (2,), num_classes=3).double(), levels=(None, 2.0), hessian=False
    ),
    "score": Contract(
        lambda: learned(parameterization="score", schedule="ve").given(label=1), levels=(None, 2.0), hessian=False
    ),
    "sample": Contract(lambda: learned(parameterization="sample", schedule="ddpm"), levels=(0.1, 2.0), hessian=False),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


@pytest.mark.parametrize("options", [{"parameterization": "v"}, {"parameterization": "velocity"}, {"schedule": "edm"}])
def test_twins_of_one_schedule_are_stacked_and_equal_separate_calls(options):
    models = [learned(**options, loc=0.1 * k).requires_grad_(False) for k in range(9)]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    assert len({p._group() for p in models}) == 1
    assert learned()._group() != models[0]._group()
    together = models[0]._evaluate_together(models, x, torch.tensor(0.7, dtype=D), False, True)
    for p, (_, score) in zip(models, together, strict=True):
        torch.testing.assert_close(score, p.score(x, 0.7))
