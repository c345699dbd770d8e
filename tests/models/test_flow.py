"""Flow: zuko's transformations as a family; units with their own log-determinant."""

import copy
import math
import sys

import pytest
import torch
from torch.distributions import ExpTransform, Independent, TransformedDistribution, Uniform

from boltzmix.compose import HMC, MCMC, SMC, Clamp, Gaussian, sample
from boltzmix.compose.errors import MissingExtra
from boltzmix.models import data, fit
from boltzmix.models.adapters import term
from boltzmix.models.flow import KINDS, Flow
from boltzmix.models.load import build
from boltzmix.models.nets.units import Units
from tests.contracts import Contract, contract_cases
from tests.models.flow_laws import (
    D,
    assert_change_of_variables,
    assert_round_trip,
    assert_views_share_a_pass,
    entropy_of_draws_agrees,
    jacobian_log_det,
    mass,
    points,
    shaken,
)

zuko = pytest.importorskip("zuko")


def make(kind="spline", shape=(2,), seed=0, **options):
    torch.manual_seed(seed)
    return shaken(Flow(shape, kind, **{"transforms": 2, "hidden": (16,), **options}), size=0.1)


TERMS = {
    "coupling": Contract(lambda: make("coupling"), span=5.0),
    "spline": Contract(lambda: make("spline"), span=5.0, hessian=False, smooth=False),
    "spline-coupling-label": Contract(
        lambda: make("spline-coupling", num_classes=3).given(label=1), span=5.0, hessian=False, smooth=False
    ),
    "autoregressive-1d": Contract(lambda: make("autoregressive", (1,)), span=5.0),
    "autoregressive-image": Contract(lambda: make("autoregressive", (1, 2, 3)), span=3.0, tolerance=1e-6),
    "interval": Contract(
        lambda: make("coupling", bounds=(-1.0, 1.0), margin=0.1), span=0.9, tolerance=1e-5, smooth=False
    ),
    "float32": Contract(lambda: make("coupling").float(), span=5.0, dtype=torch.float32),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [None, (-3.0, 3.0)])
def test_log_density_is_the_change_of_variables_and_the_inverse_is_one(kind, bounds):
    flow = make(kind, (1, 2, 2), bounds=bounds, loc=0.3, scale=1.7, num_classes=3)
    x = 0.5 * points((1, 2, 2))
    for view in (flow, flow.given(label=2)):
        assert_change_of_variables(view, x)
        assert_round_trip(view, x, 1e-9)


@pytest.mark.parametrize("kind", ["coupling", "spline"])
def test_labels_share_a_pass(kind):
    flow = make(kind, (3,), num_classes=4)
    assert_views_share_a_pass(flow, points((3,)), flow.core.flow.transform, 1)


@pytest.mark.parametrize("kind", ["coupling", "spline"])
def test_second_derivatives(kind):
    """Models are trained through the score; a spline's knots are avoided by these points."""
    flow, x = make(kind), points((2,))
    leaf = x.clone().requires_grad_()
    direction = torch.cos(x)
    (found,) = torch.autograd.grad((flow.score(leaf) * direction).sum(), leaf)
    step = 1e-6
    expected = (flow.score(x + step * direction) - flow.score(x - step * direction)) / (2 * step)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    (flow.score(x).square().sum()).backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("bounds", [None, (-1.0, 3.0)])
def test_units(bounds, margin):
    units = Units((2, 3), loc=0.4, scale=torch.tensor([0.5, 1.0, 3.0]), bounds=bounds, margin=margin).to(D)
    x = points((2, 3)).tanh()
    u, log_det, inside = units(x)
    assert torch.allclose(log_det, jacobian_log_det(lambda t: units(t)[0], x), atol=1e-10)
    assert torch.allclose(units.inverse(u), x, atol=1e-12)
    assert (inside is None) == (bounds is None)


def test_outside_its_interval_the_density_is_zero_and_nothing_is_nan():
    flow = make("coupling", bounds=(0.0, 1.0), margin=0.1)  # lives on (−1/8, 9/8)
    x = torch.tensor([[0.5, 0.5], [-0.2, 0.5], [0.5, 1.2], [0.0, 1.0]], dtype=D)
    energy, score = flow.energy_and_score(x)
    assert torch.isinf(energy).tolist() == [False, True, True, False]
    assert torch.equal(score[1:3], torch.zeros(2, 2, dtype=D))
    assert bool(torch.isfinite(score).all())
    assert abs(mass(flow, -0.125, 1.125, 400)[0] - 1) < 2e-3
    with pytest.raises(ValueError, match="2 of 4 rows lie outside"):
        flow.encode(x)
    with pytest.raises(ValueError, match="pass bounds that hold the data"):
        flow.loss(x, torch.Generator())


def test_the_exponential_of_a_uniform():
    """x = exp(u), u uniform on [0, 2], has density 1 / (2x) on (1, e²): through torch and through zuko."""
    x = torch.linspace(1.01, 7.3, 50)[:, None]
    uniform = Uniform(torch.zeros(1), torch.full((1,), 2.0))
    direct = term(Independent(TransformedDistribution(uniform, [ExpTransform()]), 1))
    base = zuko.distributions.BoxUniform(torch.zeros(1), torch.full((1,), 2.0))
    flow = term(zuko.distributions.NormalizingFlow(ExpTransform().inv, base))
    for p in (direct, flow):
        assert torch.allclose(p.log_prob(x).exp(), 1 / (2 * x[:, 0]), rtol=1e-5)
        assert torch.allclose(p.score(x), -1 / x, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_on_a_grid_sums_to_one(kind):
    """Of a transformation that is far from the identity, in units that are not those of the data."""
    flow = make(kind, loc=0.4, scale=1.3, num_classes=3)
    for view in (flow, flow.given(label=1)):
        assert abs(mass(view, -9.0, 9.0, 300)[0] - 1) < 1e-3


def test_fit_on_two_moons():
    """After a few seconds: a density (its grid sums to one within 1e-3), better than a Gaussian, with its own draws."""
    torch.manual_seed(0)
    flow = Flow((2,), "coupling", transforms=6, hidden=(32, 32))
    result = fit(flow, data.two_moons, steps=300, batch_size=256, lr=5e-3, ema=0.99, progress=False)
    assert bool(flow.core.prepared)
    x = data.two_moons(4000, torch.Generator().manual_seed(7))
    assert torch.allclose(flow.core.units.loc, torch.zeros(2), atol=0.2)
    assert torch.allclose(flow.core.units.scale, x.std(0), rtol=0.2)
    gaussian = Gaussian(x.mean(0), torch.cov(x.T))
    with torch.no_grad():
        gain = float(gaussian.energy(x).mean() - flow.energy(x).mean())
    assert gain > 0.5
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    entropy_of_draws_agrees(flow, -4.0, 4.0)


def test_fit_learns_labels_and_hides_some():
    """Two far Gaussians, one for each label: p(x|c) finds its own, p(x) both."""

    def stream(n, generator):
        label = torch.randint(2, (n,), generator=generator)
        return (6.0 * label - 3.0)[:, None] + torch.randn(n, 1, generator=generator), label

    torch.manual_seed(0)
    flow = Flow((1,), "spline", transforms=1, hidden=(16,), num_classes=2, dropout=0.3)
    fit(flow, stream, steps=250, batch_size=256, lr=2e-2, ema=0.9, progress=False)
    x = torch.tensor([[-3.0], [3.0]])
    with torch.no_grad():
        own = [flow.given(label=k).log_prob(x) for k in range(2)]
        both = flow.log_prob(x)
        draws = flow.given(label=torch.arange(2).repeat(500)).sample(1000, torch.Generator().manual_seed(0))
    exact = -0.5 * math.log(2 * math.pi)
    assert abs(float(own[0][0]) - exact) < 0.15
    assert abs(float(own[1][1]) - exact) < 0.15
    assert float(own[0][1]) < -6
    assert bool(((both - exact + math.log(2)).abs() < 0.35).all())
    assert abs(float(draws[::2].mean()) + 3) < 0.3
    assert abs(float(draws[1::2].mean()) - 3) < 0.3


def test_an_interrupted_fit_is_the_fit(tmp_path):
    """What prepare measures is in the checkpoint and is not measured again."""

    def run(**options):
        torch.manual_seed(0)
        flow = Flow((2,), "coupling", transforms=1, hidden=(8,))
        fit(flow, data.ring, steps=6, batch_size=32, checkpoint_every=3, progress=False, **options)
        return flow

    whole = run()

    class Killed(Exception):
        pass

    def dies(n, generator, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] > 5:
            raise Killed
        return data.ring(n, generator)

    torch.manual_seed(0)
    flow, path = Flow((2,), "coupling", transforms=1, hidden=(8,)), tmp_path / "run"
    with pytest.raises(Killed):
        fit(flow, dies, steps=6, batch_size=32, checkpoint_every=3, checkpoint=path, progress=False)
    again = run(checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_prepare_leaves_a_trained_flow_alone_and_given_units_too():
    flow = Flow((2,), "coupling", loc=5.0)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    flow.prepare(x, torch.Generator())
    assert flow.core.units.loc.tolist() == [5.0, 5.0]
    assert torch.allclose(flow.core.units.scale, x.std(0))
    flow.prepare(10 * x, torch.Generator())
    assert torch.allclose(flow.core.units.scale, x.std(0))
    image = Flow((1, 2, 2), "coupling")
    image.prepare(x.repeat(1, 2).reshape(100, 1, 2, 2), torch.Generator())
    assert len(set(image.core.units.scale.flatten().tolist())) == 1
    assert torch.allclose(image.core.units.loc.flatten(), x.mean(0).repeat(2), atol=1e-5)


def test_products_sample_from_the_flow_and_hmc_agrees():
    """Flow × Gaussian by SMC, whose exact start is the flow, and by HMC, against a grid; false-positive rate 1e-3."""
    flow, likelihood = make("coupling").float(), Gaussian(torch.tensor([1.0, -0.5]), 0.5)
    product = flow * likelihood
    total, energy, grid = mass(product, -6.0, 6.0, 300)
    weights = (-energy).softmax(0)
    mean = weights @ grid
    variance = weights @ (grid - mean) ** 2
    drawn = sample(product, 4000, sampler=SMC(), seed=0)
    assert abs(float(drawn.log_z) - math.log(total)) < 4 * float(drawn.log_z_se) + 1e-3
    error = (variance / 1000).sqrt()  # at least a quarter of the particles are distinct after resampling
    assert bool(((drawn.x.double().mean(0) - mean).abs() < 4 * error).all())
    chains = sample(product, chains=64, sampler=MCMC(HMC(), warmup=150, draws=60), seed=0).x.double().flatten(0, 1)
    assert bool(((chains.mean(0) - mean).abs() < 4 * error).all())


def test_inpainting_clamps_coordinates_of_a_flow():
    flow = make("autoregressive").float()
    product = flow * Clamp(torch.tensor([True, False]), torch.tensor([0.7, 0.0]))
    drawn = sample(product, chains=64, sampler=MCMC(HMC(), warmup=150, draws=60), seed=0).x.flatten(0, 1)
    assert bool((drawn[:, 0] == 0.7).all())
    axis = torch.linspace(-8, 8, 4001)
    with torch.no_grad():
        density = (-flow.energy(torch.stack([torch.full_like(axis, 0.7), axis], 1))).double().softmax(0)
    mean = float(density @ axis.double())
    std = float((density @ (axis.double() - mean) ** 2).sqrt())
    assert abs(float(drawn[:, 1].double().mean()) - mean) < 4 * std / math.sqrt(500)


def test_a_specification_of_plain_values_builds_one():
    spec = {
        "class": "Flow",
        "arguments": {"event_shape": [1, 2, 2], "kind": "coupling", "hidden": [8, 8], "bounds": [-1, 1]},
    }
    assert build(spec).event_shape == (1, 2, 2)


def test_temperature_is_a_power():
    flow, x = make("coupling"), points((2,))
    assert torch.allclose((flow ** (1 / 0.5)).energy(x), 2 * flow.energy(x))


WRONG = {
    "kind": (lambda: Flow((2,), "realnvp"), ValueError, "kind is one of coupling"),
    "transforms": (lambda: Flow((2,), transforms=0), ValueError, "transforms is an int >= 1"),
    "transforms float": (lambda: Flow((2,), transforms=2.0), ValueError, "transforms is an int"),
    "hidden": (lambda: Flow((2,), hidden=(8, 0)), ValueError, r"hidden\[1\]"),
    "bins": (lambda: Flow((2,), bins=1), ValueError, "bins is an int >= 2"),
    "residual": (lambda: Flow((2,), "coupling", residual=True), ValueError, "autoregressive kinds"),
    "scalar": (lambda: Flow(()), ValueError, "vectors or images"),
    "bounds": (lambda: Flow((2,), bounds=(1.0, -1.0)), ValueError, "low < high"),
    "margin": (lambda: Flow((2,), bounds=(-1, 1), margin=0.5), ValueError, r"\[0, 0.5\)"),
    "scale": (lambda: Flow((2,), scale=0.0), ValueError, "scale positive"),
    "loc": (lambda: Flow((2,), loc=math.nan), ValueError, "loc is finite"),
    "loc shape": (lambda: Flow((2,), loc=torch.zeros(3)), ValueError, r"broadcasts over the event \(2,\)"),
    "classes": (lambda: Flow((2,), num_classes=0), ValueError, "num_classes"),
    "dropout": (lambda: Flow((2,), dropout=1.0), ValueError, "dropout"),
    "x": (lambda: make().energy(torch.zeros(2, 3, dtype=D)), ValueError, r"\(N, 2\)"),
    "x float32": (lambda: make().energy(torch.zeros(2, 2)), TypeError, "float64 weights"),
    "z": (lambda: make().decode(torch.zeros(2, 3, dtype=D)), ValueError, r"\(N, 2\), got \(2, 3\)"),
    "z float32": (lambda: make().decode(torch.zeros(2, 2)), TypeError, "float64 weights"),
    "label": (lambda: make().given(label=1), TypeError, "takes none"),
    "label range": (lambda: make(num_classes=3).given(label=3), ValueError, r"\[0, 3\)"),
    "labels, other number": (
        lambda: make(num_classes=3).given(label=torch.arange(3)).sample(4),
        ValueError,
        "3 labels, one per particle, and got 4",
    ),
    "batch": (lambda: make().loss(torch.zeros(4, 3, dtype=D), torch.Generator()), ValueError, r"\(N, 2\)"),
    "batch label": (
        lambda: make().loss((torch.zeros(4, 2, dtype=D), torch.zeros(4).long()), torch.Generator()),
        ValueError,
        "takes none",
    ),
    "one row": (lambda: make().prepare(torch.zeros(1, 2, dtype=D), torch.Generator()), ValueError, "at least 2 rows"),
    "constant": (lambda: make().prepare(torch.zeros(5, 2, dtype=D), torch.Generator()), ValueError, "never varies"),
    "denoise": (lambda: make().denoise(torch.zeros(1, 2, dtype=D), 1.0), TypeError, "static"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_draw_that_overflows_is_reported():
    flow = make("coupling")
    with torch.no_grad():
        flow.core.units.scale.fill_(1e308)
    with pytest.raises(ValueError, match="not finite"):
        flow.sample(50, torch.Generator().manual_seed(0))


def test_a_missing_extra_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[flows\]"'):
        Flow((2,))


def test_a_copy_shares_nothing():
    flow = make(num_classes=2)
    clone = copy.deepcopy(flow)
    assert not {id(p) for p in flow.parameters()} & {id(p) for p in clone.parameters()}
    assert flow.given(label=1).key() == flow.given(label=1).key() != clone.given(label=1).key()
