"""Networks of every schedule and prediction type, written exactly for one Gaussian, give its one score.

The networks here know their schedule forwards, t ↦ (α_t, σ_t), as papers write it; the adapters invert it.
"""

import math

import pytest
import torch

from boltzmix.compose.term import evaluate
from boltzmix.models.adapters import term
from boltzmix.models.adapters.network import Condition
from boltzmix.models.schedules import EDM, VE, VP, Cosine, FlowMatching, LinearVP

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[0.8, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.4, 0.2, 1.2]], dtype=torch.float64)
COV = ROOT @ ROOT.T
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
LEVELS = (0.03, 0.3, 1.0, 7.0, 40.0)


def gaussian_score(x, sigma, mean=MEAN, cov=COV):
    """∇ log N(x; mean, cov + σ² I) by its formula, float64."""
    total = cov + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
    return -torch.linalg.solve(total, (x.double() - mean).T).T


def discrete(t):
    ab = torch.cumprod(1 - BETAS, 0)
    table = 0.5 * ((1 - ab) / ab).log()
    low = t.floor().long().clamp(0, 998)
    sigma = (table[low] + (t - low) * (table[low + 1] - table[low])).exp()
    alpha = (1 + sigma**2).rsqrt()
    return alpha, alpha * sigma


def linear(t):
    log_alpha2 = -(0.1 * t + 0.5 * 19.9 * t**2)
    return (log_alpha2 / 2).exp(), (-torch.expm1(log_alpha2)).sqrt()


def cosine(t):
    angle = 0.5 * math.pi * (t + 0.008) / 1.008
    alpha = angle.cos() / math.cos(0.5 * math.pi * 0.008 / 1.008)
    return alpha, (1 - alpha**2).sqrt()


FORWARD = {  # name: (schedule, t ↦ (α_t, σ_t), sign of its velocity)
    "vp": (VP.from_betas(BETAS), discrete, 1),
    "linear": (LinearVP(), linear, 1),
    "linear-999": (LinearVP(time_scale=999.0), lambda t: linear(t / 999), 1),
    "cosine": (Cosine(), cosine, 1),
    "ve": (VE(), lambda t: (torch.ones_like(t), t), 1),
    "ve-log": (VE(conditioning="log"), lambda t: (torch.ones_like(t), t.exp()), 1),
    "ve-quarter-log": (VE(conditioning="quarter_log"), lambda t: (torch.ones_like(t), (4 * t).exp()), 1),
    "ve-function": (VE(conditioning=lambda s: 3 * s), lambda t: (torch.ones_like(t), t / 3), 1),
    "flow": (FlowMatching(), lambda t: (1 - t, t), 1),
    "flow-1000": (FlowMatching(time_scale=1000.0), lambda t: (1 - t / 1000, t / 1000), 1),
    "flow-opposite": (FlowMatching(velocity="data"), lambda t: (1 - t, t), -1),
    "flow-reversed": (FlowMatching(data_at=1), lambda t: (t, 1 - t), -1),
    "flow-reversed-opposite": (FlowMatching(data_at=1, velocity="noise"), lambda t: (t, 1 - t), 1),
}
EVERY = ("epsilon", "sample", "score")
CASES = [
    (name, prediction)
    for name in FORWARD
    for prediction in (*EVERY, *(("flow",) if "flow" in name else () if name.startswith("ve") else ("v_prediction",)))
]


def exact_network(forward, prediction, sign=1):
    """The minimiser of the training loss for data N(MEAN, COV), in float64 inside."""

    def net(x_t, t):
        alpha, sd = (a[:, None] for a in forward(t.double()))
        total = alpha[:, :, None] ** 2 * COV + sd[:, :, None] ** 2 * torch.eye(3, dtype=torch.float64)
        score = -torch.linalg.solve(total, (x_t.double() - alpha * MEAN)[:, :, None])[:, :, 0]
        eps, x0 = -sd * score, (x_t.double() + sd**2 * score) / alpha
        out = {
            "epsilon": eps,
            "sample": x0,
            "score": score,
            "v_prediction": alpha * eps - sd * x0,
            "flow": sign * (eps - x0),
        }
        return out[prediction].to(x_t.dtype)

    return net


def edm_network(prediction, sigma_data):
    def net(scaled, c_noise):
        sigma = (4 * c_noise.double()).exp()[:, None]
        x = scaled.double() * (sigma**2 + sigma_data**2).sqrt()
        denoised = x + sigma**2 * torch.cat([gaussian_score(a[None], s) for a, s in zip(x, sigma, strict=True)])
        skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        return ((denoised - skip * x) / (out if prediction == "edm" else -out)).to(scaled.dtype)

    return net


def states(sigma, dtype, n=16):
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2, n, 3, dtype=torch.float64, generator=generator)
    return (MEAN + noise[0] @ ROOT.T + sigma * noise[1]).to(dtype)


def relative(found, truth):
    return float((found.double() - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-3)], ids=["f64", "f32"])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_wrapper_of_one_gaussian_gives_one_score(name, prediction, dtype, tolerance):
    schedule, forward, sign = FORWARD[name]
    p = term(exact_network(forward, prediction, sign), schedule=schedule, prediction=prediction, event_shape=(3,))
    for sigma in LEVELS:
        x = states(sigma, dtype)
        found = p.score(x, sigma)
        assert found.dtype == dtype
        assert relative(found, gaussian_score(x, sigma)) < tolerance, sigma


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-3)], ids=["f64", "f32"])
@pytest.mark.parametrize("prediction", ["edm", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_preconditioning(prediction, sigma_data, dtype, tolerance):
    schedule = EDM(sigma_data=sigma_data)
    p = term(edm_network(prediction, sigma_data), schedule=schedule, prediction=prediction, event_shape=(3,))
    for sigma in (0.002, *LEVELS):
        x = states(sigma, dtype)
        assert relative(p.score(x, sigma), gaussian_score(x, sigma)) < tolerance, sigma


@pytest.mark.parametrize("name", ["vp", "linear", "cosine", "ve", "flow", "flow-reversed"])
def test_levels_per_row_and_the_ends_of_the_range(name):
    schedule, forward, sign = FORWARD[name]
    p = term(exact_network(forward, "epsilon", sign), schedule=schedule, prediction="epsilon", event_shape=(3,))
    least, most = p.sigma_range
    x = states(1.0, torch.float64, n=4)
    levels = torch.tensor([least, 0.1, 3.0, most], dtype=torch.float64)
    each = torch.cat([p.score(x[i : i + 1], float(levels[i])) for i in range(4)])
    assert torch.allclose(p.score(x, levels), each, rtol=1e-12)
    assert torch.equal(p.score(x), p.score(x, least))
    assert relative(p.score(x, most), gaussian_score(x, most)) < 1e-5
    assert relative(p.score(x.float(), torch.tensor(most).float()), gaussian_score(x, most)) < 1e-3
    assert relative(p.denoise(x, 3.0), x + 9 * gaussian_score(x, 3.0)) < 1e-5


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan, math.inf, 1e-4, 1e5])
@pytest.mark.parametrize("name", ["vp", "linear", "cosine", "ve", "flow"])
def test_levels_outside_the_training_range_are_refused(name, level):
    schedule, forward, _ = FORWARD[name]
    p = term(exact_network(forward, "epsilon"), schedule=schedule, prediction="epsilon", event_shape=(3,))
    with pytest.raises(ValueError, match="noise levels"):
        p.score(torch.zeros(2, 3), level)


def test_discrete_times_at_and_between_the_steps():
    schedule = VP.from_betas(BETAS)
    steps = torch.arange(1000)
    levels = torch.stack([schedule.level(int(i)) for i in steps])
    assert torch.allclose(schedule.time(levels), steps.double(), atol=1e-8)
    assert (schedule.time(levels.float()) - steps).abs().max() < 1e-3
    between = (levels[:-1] * levels[1:]).sqrt()
    assert torch.allclose(schedule.time(between), steps[:-1].double() + 0.5, atol=1e-8)


def test_zero_terminal_signal_is_left_out():
    table = torch.cat([torch.cumprod(1 - BETAS, 0), torch.zeros(1, dtype=torch.float64)])
    assert VP(table).sigma_range == VP.from_betas(BETAS).sigma_range


def test_equal_schedules_are_equal():
    assert VP.from_betas(BETAS) == VP.from_betas(BETAS)
    assert hash(VP.from_betas(BETAS)) == hash(VP.from_betas(BETAS))
    assert VP.from_betas(BETAS) != VP.from_betas(BETAS * 0.9)
    assert VP.from_betas(BETAS) != VP.from_betas(torch.cat([BETAS[:1], BETAS[1:].flip(0)]))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "score"])
def test_data_in_other_units(prediction):
    """The network's data are (x − loc) / scale; the user's σ is in the units of x."""
    loc, scale = torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64), 2.5
    schedule, forward, _ = FORWARD["cosine"]
    net = exact_network(forward, prediction)
    hints = {"schedule": schedule, "prediction": prediction, "event_shape": (3,)}
    p = term(net, **hints, data_loc=loc, data_scale=scale)
    plain = term(net, **hints)
    assert p.sigma_range == pytest.approx([scale * s for s in plain.sigma_range])
    for sigma in LEVELS:
        x = loc + scale * states(sigma / scale, torch.float64)
        truth = gaussian_score(x, sigma, loc + scale * MEAN, scale**2 * COV)
        assert relative(p.score(x, sigma), truth) < 1e-5
    assert p.key() != plain.key()
    assert p.key() != term(net, **hints, data_loc=loc + 1, data_scale=scale).key()
    assert p.key() == term(net, **hints, data_loc=loc.clone(), data_scale=scale).key()


class Labelled(torch.nn.Module):
    """Predicts x0 as the label's mean; counts its calls and rows."""

    def __init__(self):
        super().__init__()
        self.means = torch.nn.Embedding(5, 3)
        self.calls = []

    def forward(self, x_t, t, label):
        self.calls.append(len(x_t))
        assert t.shape == label.shape == x_t.shape[:1]
        return self.means(label) + 0.1 * torch.tanh(x_t * t[:, None])


def labelled(net=None, **hints):
    hints = {"schedule": FlowMatching(), "prediction": "sample", "event_shape": (3,), "num_classes": 4} | hints
    return term(Labelled() if net is None else net, **hints)


def test_conditions_of_one_network_share_one_forward():
    p = labelled(null_label=4)
    net = p.net
    members = [p.given(label=0), p, p.given(label=torch.tensor(3)), p.given(label=1)]
    x, sigma = torch.randn(6, 3), torch.linspace(0.1, 4.0, 6)
    separate = [m.score(x, sigma) for m in members]
    net.calls.clear()
    together = evaluate(members, x, sigma, energy=True, score=True)
    assert net.calls == [4 * 6]
    for member, expected in zip(members, separate, strict=True):
        energy, score = together[member.key()]
        assert energy is None
        assert torch.allclose(score, expected, atol=1e-6)
    assert (separate[0] - separate[2]).abs().max() > 0.1  # the labels do differ
    assert p.given(label=3).key() == members[2].key() == labelled(net, null_label=4).given(label=3).key()
    assert p.given(label=3).key() != p.given(label=2).key() != p.key()


def test_a_guidance_formula_is_one_forward():
    p = labelled(null_label=4)
    q = p.given(label=2)
    formula = p * (q / p) ** 4 * (p.given(label=0) / p) ** 2
    x = torch.randn(5, 3)
    expected = -5 * p.score(x, 1.0) + 4 * q.score(x, 1.0) + 2 * p.given(label=0).score(x, 1.0)
    p.net.calls.clear()
    assert torch.allclose(formula.score(x, 1.0), expected, atol=1e-4)
    assert p.net.calls == [3 * 5]
    assert sum(a.numel() for a in formula.parameters()) == sum(a.numel() for a in p.net.parameters())


def test_float_conditions_of_two_lengths():
    def net(x_t, t, prompt):
        calls.append(tuple(prompt.shape))
        return x_t + prompt.mean(1)

    calls = []
    condition = Condition("prompt", shape=(None, 3), null=torch.zeros(1, 3))
    p = term(net, schedule=VE(), prediction="sample", event_shape=(3,), conditions={"context": condition})
    one, two, long = (p.given(context=torch.full((length, 3), v)) for length, v in ((1, 1.0), (1, 2.0), (4, 3.0)))
    x = torch.randn(5, 3)
    found = evaluate([one, p, long, two], x, torch.tensor(0.5), energy=False, score=True)
    assert sorted(calls) == [(5, 4, 3), (15, 1, 3)]
    for member, value in ((one, 1.0), (p, 0.0), (long, 3.0), (two, 2.0)):
        assert torch.allclose(found[member.key()][1], torch.full_like(x, value / 0.25), rtol=1e-4)
    assert one.key() == p.given(context=torch.ones(1, 1, 3)).key()
    assert [b.shape for b in long.buffers()] == [(1, 3), (4, 3)]
    assert long.double().score(x.double(), 0.5).dtype == torch.float64


def test_a_network_stays_as_it_is():
    net = Labelled()
    net.means.weight.grad = torch.ones_like(net.means.weight)
    net.train()
    p = labelled(net, null_label=4)
    x = torch.randn(2, 3)
    assert p.score(x, 1.0).requires_grad  # the parameters need it
    with torch.no_grad():
        assert not p.score(x, 1.0).requires_grad
    net.requires_grad_(False)
    assert not p.score(x, 1.0).requires_grad
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(p.score(leaf, 1.0).sum(), leaf)
    assert grad.abs().sum() > 0
    hidden = term(
        lambda x, t: x * weight, schedule=VE(), prediction="sample", event_shape=(3,)
    )  # a parameter that the term cannot see
    weight = torch.ones(3, requires_grad=True)
    assert not hidden.score(x, 1.0).requires_grad
    assert net.training
    assert torch.equal(net.means.weight.grad, torch.ones(5, 3))


def test_learned_variance_channels_are_dropped():
    def both(x_t, t):
        return torch.cat([x_t * 0.5, torch.full_like(x_t, 9.0)], 1)

    hints = {"schedule": VE(), "prediction": "epsilon", "event_shape": (2, 4, 4)}
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(term(both, **hints, learned_variance=True).score(x, 2.0), -x * 0.25)
    with pytest.raises(ValueError, match="learned_variance=True"):
        term(both, **hints).score(x, 2.0)


def test_whole_steps_for_networks_that_look_times_up():
    seen = []

    def net(x_t, t):
        seen.append(t)
        return x_t

    schedule = VP.from_betas(BETAS)
    p = term(net, schedule=schedule, prediction="epsilon", event_shape=(1,), integer_time=True)
    p.score(torch.zeros(2, 1), schedule.level(77) * 0.999)  # step 76.96
    assert seen[0].tolist() == [77, 77]
    assert seen[0].dtype == torch.long


def test_dtypes_are_never_mixed_silently():
    net = Labelled().double()
    with pytest.raises(TypeError, match=r"torch\.float64 parameters and x is torch\.float32.*cast=True"):
        labelled(net).given(label=1).score(torch.zeros(2, 3), 1.0)
    cast = labelled(net, cast=True).given(label=1)
    assert cast.score(torch.zeros(2, 3), 1.0).dtype == torch.float32
    own = labelled(net).given(label=1).score(torch.zeros(2, 3, dtype=torch.float64), 1.0)
    assert torch.allclose(cast.score(torch.zeros(2, 3), 1.0), own.float(), rtol=1e-5)


def function(x_t, t):
    return x_t


WRONG = {
    "no event shape": (lambda: term(function, schedule=VE(), prediction="epsilon"), ValueError, "event_shape"),
    "no prediction": (lambda: term(function, schedule=VE(), event_shape=(2,)), ValueError, "prediction="),
    "no schedule": (lambda: term(Labelled(), prediction="epsilon", event_shape=(2,)), ValueError, "schedule="),
    "unknown scheduler": (
        lambda: term(function, schedule=object(), prediction="epsilon", event_shape=(2,)),
        TypeError,
        "DDIMScheduler",
    ),
    "v of a flow": (
        lambda: term(function, schedule=FlowMatching(), prediction="v", event_shape=(2,)),
        ValueError,
        "knows predictions",
    ),
    "kind and schedule": (
        lambda: term(function, kind="score", schedule=VE(), prediction="epsilon", event_shape=(2,)),
        TypeError,
        "prediction=",
    ),
    "hints of a term": (lambda: term(labelled(), event_shape=(3,)), TypeError, "already"),
    "a term as a network": (
        lambda: term(labelled(), schedule=VE(), prediction="epsilon", event_shape=(3,)),
        TypeError,
        "already",
    ),
    "label too large": (lambda: labelled().given(label=4), ValueError, r"0 … 3, got 4"),
    "label negative": (lambda: labelled().given(label=-1), ValueError, r"got -1"),
    "label a float": (lambda: labelled().given(label=1.0), TypeError, "integer label"),
    "label a bool": (lambda: labelled().given(label=True), TypeError, "integer label"),
    "labels per row": (lambda: labelled().given(label=torch.arange(3)), ValueError, "one term per label"),
    "given twice": (lambda: labelled().given(label=1).given(label=2), TypeError, "takes none"),
    "unknown condition": (lambda: labelled().given(colour=1), TypeError, r"\['label'\]"),
    "no label": (lambda: labelled().score(torch.zeros(1, 3), 1.0), ValueError, "null_label"),
    "null without classes": (lambda: labelled(num_classes=None, null_label=1), ValueError, "num_classes"),
    "scale negative": (lambda: labelled(data_scale=-1.0), ValueError, "positive"),
    "scale nan": (lambda: labelled(data_scale=math.nan), ValueError, "positive"),
    "scale per coordinate": (lambda: labelled(data_scale=torch.ones(3)), TypeError, "affine"),
    "loc of another shape": (lambda: labelled(data_loc=torch.zeros(2)), ValueError, "broadcasts"),
    "event shape of x": (
        lambda: labelled().given(label=1).score(torch.zeros(2, 4), 1.0),
        ValueError,
        r"shape \(N, 3\)",
    ),
    "prediction of another shape": (
        lambda: term(lambda x, t: x[:, :1], schedule=VE(), prediction="epsilon", event_shape=(3,)).score(
            torch.zeros(2, 3), 1.0
        ),
        ValueError,
        r"must return predictions \(2, 3\)",
    ),
    "energy": (lambda: labelled().energy(torch.zeros(2, 3), 1.0), TypeError, "score"),
    "table that rises": (lambda: VP([0.5, 0.9]), ValueError, "decreases"),
    "table of one": (lambda: VP([0.5]), ValueError, "two steps"),
    "table with nan": (lambda: VP([0.9, math.nan]), ValueError, "decreases"),
    "range reversed": (lambda: VE(sigma_min=2.0, sigma_max=1.0), ValueError, "minimum < maximum"),
    "flow to the end": (lambda: FlowMatching(t_max=1.0), ValueError, "< 1"),
    "cosine from nan": (lambda: Cosine(t_min=math.nan), ValueError, "minimum < maximum"),
    "velocity": (lambda: FlowMatching(velocity="up"), ValueError, "noise"),
    "data at 2": (lambda: FlowMatching(data_at=2), ValueError, "0 or 1"),
    "edm data": (lambda: EDM(sigma_data=0.0), ValueError, "sigma_data"),
    "ve conditioning": (lambda: VE(conditioning="time"), ValueError, "quarter_log"),
    "not a network": (lambda: term(3, schedule=VE(), prediction="epsilon", event_shape=(3,)), TypeError, "net"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
