"""Continuous flows: linear fields in closed form, traces, solvers, and the density of a learned velocity."""

import math
import sys

import pytest
import torch
from torch import nn

from boltzmix.compose import HMC, MCMC, SMC, Gaussian, GaussianMixture, sample
from boltzmix.compose.errors import MissingExtra
from boltzmix.models import data, fit
from boltzmix.models.continuous_flow import ContinuousFlow, divergence
from boltzmix.models.load import build
from boltzmix.models.nets import MLP
from tests.contracts import Contract, contract_cases
from tests.models.flow_laws import (
    D,
    assert_change_of_variables,
    assert_views_share_a_pass,
    entropy_of_draws_agrees,
    points,
    shaken,
)

pytest.importorskip("torchdiffeq")
A = torch.tensor([[0.6, -1.1, 0.2], [0.9, -0.3, 0.4], [0.1, -0.5, 0.8]], dtype=D)


def make(dim=3, seed=0, num_classes=None, **options):
    torch.manual_seed(seed)
    net = MLP(dim, hidden=8, depth=1, num_classes=num_classes, width=8)
    options = {"steps": 6, "loc": 0.2, "scale": 1.3, "num_classes": num_classes, **options}
    return shaken(ContinuousFlow(net, (dim,), **options), size=0.2)


def linear(x, t):
    """dx/dt = A x, whose flow is expm(A t)."""
    return x @ A.T.to(x)


def linear_flow(**options):
    return ContinuousFlow.from_velocity(linear, (3,), **options).to(D)


TERMS = {
    "one dimension": Contract(lambda: make(1, steps=2), span=4.0, tolerance=1e-6),
    "label": Contract(lambda: make(num_classes=3, steps=2).given(label=1), span=3.0, tolerance=1e-6),
    "hutchinson": Contract(lambda: make(trace="hutchinson", probes=2, steps=3), span=3.0, tolerance=1e-6),
    "interval": Contract(lambda: make(1, bounds=(-4.0, 4.0), margin=0.3, steps=3), span=5.0, tolerance=1e-6),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


@pytest.mark.parametrize("options", [{"steps": 60}, {"solver": "dopri5", "rtol": 1e-9, "atol": 1e-9}])
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("base_scale", [1.0, 2.5])
def test_a_linear_field_is_a_matrix_exponential_and_its_trace(options, times, base_scale):
    flow = linear_flow(times=times, base_scale=base_scale, **options)
    length = times[1] - times[0]
    matrix = torch.linalg.matrix_exp(A * length)
    x = points((3,))
    z = x @ matrix.T / base_scale
    assert torch.allclose(flow.encode(x), z, atol=1e-6)
    assert torch.allclose(flow.decode(z), x, atol=1e-6)
    log_det = float(A.trace()) * length - 3 * math.log(base_scale)
    expected = -0.5 * (z.square().sum(1) + 3 * math.log(2 * math.pi)) + log_det
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-6)
    precision = matrix.T @ matrix / base_scale**2
    assert torch.allclose(flow.score(x), -x @ precision, atol=1e-5)


def test_draws_of_a_linear_field():
    """Covariance expm(−A) expm(−A)ᵀ: 6 z-scores below 5, so a false-positive rate of 4e-6."""
    flow = linear_flow(steps=20)
    inverse = torch.linalg.matrix_exp(-A)
    x = flow.sample(20_000, torch.Generator().manual_seed(0))
    outer = x[:, :, None] * x[:, None, :]
    z = (outer.mean(0) - inverse @ inverse.T) / (outer.std(0) / math.sqrt(len(x)))
    assert float(z.abs().max()) < 5
    assert torch.equal(x, flow.sample(20_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_divergence(trace):
    """Unit vectors give the trace of the Jacobian; random signs give their quadratic form."""
    y = points((2, 2)).requires_grad_()
    v = torch.sin(y @ torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=D)) * y.flip(1)
    jacobian = torch.stack(
        [torch.autograd.grad(v.flatten(1)[:, i].sum(), y, retain_graph=True)[0].flatten(1) for i in range(4)], 1
    )
    if trace == "exact":
        probes, expected = torch.eye(4, dtype=D).reshape(4, 1, 2, 2), jacobian.diagonal(dim1=1, dim2=2).sum(1)
    else:
        probes = points((4, 2, 2), n=3, seed=2).sign()
        flat = probes.flatten(2)
        expected = torch.einsum("kni,nij,knj->n", flat, jacobian, flat)
    assert torch.allclose(divergence(v, y, probes, False).sum(0), expected, atol=1e-12)


@pytest.mark.parametrize("bounds", [None, (-4.0, 4.0)])
def test_log_density_is_the_change_of_variables(bounds):
    """Up to the solver's error: the determinant is that of the discretised map."""
    flow = make(steps=40, bounds=bounds, num_classes=3)
    for view in (flow, flow.given(label=1)):
        assert_change_of_variables(view, points((3,), n=2), rtol=1e-6)
    x = points((3,))
    assert float((flow.decode(flow.encode(x)) - x).detach().abs().max()) < 1e-6


def test_images_and_an_embedded_network():
    """A velocity shaped like an image, through a convolution; its exact trace runs over all pixels."""
    torch.manual_seed(0)

    class Net(nn.Module):
        num_classes = None

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, label=None):
            return torch.tanh(self.conv(x)) * (1 + t[:, None, None, None])

    flow = ContinuousFlow(Net(), (1, 2, 3), steps=40, loc=0.0, scale=1.0).to(D)
    assert_change_of_variables(flow, points((1, 2, 3)), rtol=1e-6)
    assert flow.trace == "exact"


def test_a_network_of_vectors_over_images():
    torch.manual_seed(0)
    net = MLP(6, hidden=8, depth=1, num_classes=2, width=8)
    options = {"num_classes": 2, "loc": 0.2, "scale": 1.3, "steps": 4}
    image = shaken(ContinuousFlow(net, (1, 2, 3), flatten=True, **options), size=0.2)
    vector = ContinuousFlow(net, (6,), **options).to(D)
    x = points((1, 2, 3))
    assert torch.allclose(image.given(label=1).energy(x), vector.given(label=1).energy(x.flatten(1)))
    assert torch.allclose(image.decode(image.encode(x)), x, atol=1e-2)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_error_of_fixed_steps_has_the_solvers_order(solver, order):
    x = points((3,))
    truth = linear_flow(steps=400).log_prob(x)
    coarse, fine = (linear_flow(solver=solver, steps=n) for n in (10, 20))
    errors = [(f.log_prob(x) - truth).abs().max() for f in (coarse, fine)]
    assert 0.7 * 2**order < float(errors[0] / errors[1]) < 1.4 * 2**order
    share = coarse.discretisation_error(x).max() / errors[0]
    assert 0.4 < float(share) < 1.1  # |e(h) − e(h/2)| = (1 − 2^−order) e(h)


def test_tolerance_bounds_the_error_of_adaptive_steps():
    x = points((3,))
    truth = linear_flow(steps=400).log_prob(x)
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        flow = linear_flow(solver="dopri5", rtol=tolerance, atol=tolerance)
        errors.append(float((flow.log_prob(x) - truth).abs().max()))
        assert errors[-1] < 100 * tolerance
    assert errors[0] > errors[1] > errors[2]


def test_flow_matching_of_a_gaussian_gives_its_density():
    """x_t = (1 − t) x₀ + t ε with x₀ ~ N(m, s²): the marginal velocity is known, and so is the density it implies."""
    mean, variance = 0.7, 0.4

    def velocity(x, t):
        t = t[:, None]
        residual = (x - (1 - t) * mean) / ((1 - t) ** 2 * variance + t**2)
        return t * residual - (mean + (1 - t) * variance * residual)

    flow = ContinuousFlow.from_velocity(velocity, (2,), steps=60).to(D)
    truth = Gaussian(torch.full((2,), mean, dtype=D), variance)
    x = truth.sample(6, torch.Generator().manual_seed(0))
    assert torch.allclose(flow.log_prob(x), truth.log_prob(x), atol=1e-5)
    assert torch.allclose(flow.score(x), truth.score(x), atol=1e-4)


def test_the_probability_flow_of_a_diffusion_gives_its_density():
    """dx/dσ = −σ ∇log p(x; σ), from σ_min to σ_max where the data are forgotten: −log p(x; σ_min) of the mixture."""
    mixture = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=D), torch.tensor([0.2, 0.3], dtype=D), [1.0, 1.0])

    def velocity(x, sigma):
        return -sigma[:, None] * mixture.score(x, sigma)

    flow = ContinuousFlow.from_velocity(
        velocity, (1,), times=(0.02, 200.0), base_scale=200.0, solver="dopri5", rtol=1e-7, atol=1e-7
    ).to(D)
    x = torch.linspace(-2, 2, 7, dtype=D)[:, None]
    assert torch.allclose(flow.log_prob(x), mixture.log_prob(x, 0.02), atol=1e-3)


def test_labels_share_a_pass():
    """Four evaluations of the network for each of six steps, whatever the number of labels."""
    flow = make(num_classes=4)
    assert_views_share_a_pass(flow, points((3,)), flow.core.net, 24)
    assert flow._rows() == 24


def test_a_labelled_function_and_one_without():
    rates = torch.tensor([0.5, -0.3], dtype=D)

    def velocity(x, t, label):
        rate = torch.zeros(len(x), dtype=x.dtype) if label is None else rates[label]
        return rate[:, None] * x

    flow = ContinuousFlow.from_velocity(velocity, (2,), num_classes=2).to(D)
    x = points((2,))
    for label, rate in ((None, 0.0), (0, 0.5), (1, -0.3)):
        view = flow if label is None else flow.given(label=label)
        expected = Gaussian(torch.zeros(2, dtype=D), math.exp(-2 * rate)).log_prob(x)
        assert torch.allclose(view.log_prob(x), expected, atol=1e-5)
    with pytest.raises(TypeError, match="write it as fn"):
        ContinuousFlow.from_velocity(linear, (3,), num_classes=2).given(label=1).energy(points((3,)).float())


def test_a_velocity_that_does_not_depend_on_x_has_no_trace():
    flow = ContinuousFlow.from_velocity(lambda x, t: torch.full_like(x, 2.0), (2,)).to(D)
    x = points((2,))
    assert torch.allclose(flow.log_prob(x), Gaussian(torch.full((2,), -2.0, dtype=D), 1.0).log_prob(x))


def test_hutchinsons_estimate_is_unbiased_for_log_p_and_the_term_does_not_pass_for_exact():
    """Mean over 4000 calls against the exact value: z-scores of 4 rows below 5, false-positive rate 2e-6."""
    exact, rough = linear_flow(), linear_flow(trace="hutchinson")
    assert (exact.normalized, exact.samplable, exact.calibrated) == (True, True, True)
    assert (rough.normalized, rough.samplable, rough.calibrated) == (False, False, False)
    x = points((3,))
    many = x.repeat(4000, 1)
    estimates = rough.estimate_log_prob(many, torch.Generator().manual_seed(0)).reshape(4000, 4)
    z = (estimates.mean(0) - exact.log_prob(x)) / (estimates.std(0) / math.sqrt(4000))
    assert float(z.abs().max()) < 5
    assert float(estimates.std(0).min()) > 0.1
    averaged = rough.estimate_log_prob(many, torch.Generator().manual_seed(0), probes=16).reshape(4000, 4)
    assert 3 < float((estimates.std(0) / averaged.std(0)).mean()) < 5  # 1/√16
    assert float((estimates.exp().mean(0) / exact.log_prob(x).exp()).min()) > 1.05  # Jensen: biased for p
    assert torch.equal(rough.energy(x), rough.energy(x))
    with pytest.raises(TypeError, match="normalised density"):
        rough.log_prob(x)
    with pytest.raises(TypeError, match="sampled exactly"):
        rough.sample(3)
    assert rough.decode(rough.encode(x)).shape == x.shape


def test_auto_is_exact_up_to_128_dimensions():
    flows = [ContinuousFlow.from_velocity(lambda x, t: x, (n,)) for n in (128, 129)]
    assert [f.trace for f in flows] == ["exact", "hutchinson"]


def test_the_adjoint_gives_the_gradients_of_the_loss():
    x = points((3,), n=16)
    grads = []
    for adjoint in (False, True):
        flow = make(steps=20, adjoint=adjoint, kinetic=0.3)
        flow.loss(x, torch.Generator().manual_seed(0)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert float(grads[0].abs().max()) > 0.01
    assert torch.allclose(*grads, atol=1e-4)


def test_the_kinetic_term_is_the_mean_squared_velocity():
    x = points((3,))
    rate = 0.5
    flow = ContinuousFlow.from_velocity(lambda y, t: rate * y, (3,), steps=20, kinetic=2.0).to(D)
    time = torch.linspace(0, 1, 2001, dtype=D)
    effort = torch.trapezoid((rate * torch.exp(rate * time)) ** 2, time) * x.square().mean(1)
    expected = -flow.log_prob(x).mean() / 3 + 2.0 * effort.mean()
    assert torch.allclose(flow.loss(x, torch.Generator()), expected, atol=1e-6)


def test_training_in_many_dimensions_uses_fresh_probes():
    """Unbiased for the exact loss: a z-score over 150 calls below 4, false-positive rate 6e-5."""
    flow, x = make(6, steps=3), points((6,), n=8)
    exact = -flow.log_prob(x).mean() / 6
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        losses = torch.stack([flow.loss(x, rng) for _ in range(150)])
    assert float(losses.std()) > 0
    assert abs(float((losses.mean() - exact) / (losses.std() / math.sqrt(150)))) < 4


def test_fit_on_two_moons():
    """A density after a short fit: its grid sums to one within 1e-3, it beats a Gaussian, and draws are its own."""
    torch.manual_seed(0)
    flow = ContinuousFlow(MLP(2, hidden=32, depth=2), (2,), steps=4, kinetic=0.01)
    fit(flow, data.two_moons, steps=60, batch_size=128, lr=2e-2, ema=0.9, progress=False)
    x = data.two_moons(2000, torch.Generator().manual_seed(7))
    with torch.no_grad():
        gain = float(Gaussian(x.mean(0), torch.cov(x.T)).energy(x).mean() - flow.energy(x).mean())
    assert gain > 0.2
    assert float(flow.discretisation_error(x[:50]).mean()) < 0.02
    fine = ContinuousFlow(flow.core.net, (2,), steps=12, loc=flow.core.units.loc, scale=flow.core.units.scale)
    entropy_of_draws_agrees(fine, -4.0, 4.0, count=120, n=5000)


def test_products_by_the_exact_start_and_by_hmc():
    """The linear flow is a Gaussian, so its product with another is one; 4 standard errors: false alarms at 4e-4."""
    flow, other = linear_flow(steps=3).float(), Gaussian(torch.tensor([0.5, 0.0, -0.5]), 0.5)
    matrix = torch.linalg.matrix_exp(A).float()
    precision = matrix.T @ matrix + torch.eye(3) / 0.5
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (other.mean / 0.5)
    drawn = sample(flow * other, 500, sampler=SMC(), seed=0)
    chains = sample(flow * other, chains=50, sampler=MCMC(HMC(num_leapfrog=5), warmup=40, draws=15), seed=0)
    for x in (drawn.x, chains.x.flatten(0, 1)):
        error = (covariance.diagonal() / 125).sqrt()
        assert bool(((x.mean(0) - mean).abs() < 4 * error).all())
    assert drawn.log_z is not None


def test_a_specification_of_plain_values_builds_one():
    net = {"class": "MLP", "arguments": {"dim": 4, "hidden": 8, "num_classes": 3}}
    spec = {"class": "ContinuousFlow", "arguments": {"event_shape": [4], "num_classes": 3, "times": [0, 1]}, "net": net}
    flow = build(spec)
    assert flow.given(label=1).sample(2).shape == (2, 4)
    assert any(p.requires_grad for p in flow.parameters())


def field(**options):
    return ContinuousFlow.from_velocity(lambda x, t: x, (2,), **options)


WRONG = {
    "trace": (lambda: field(trace="skilling"), ValueError, "trace is 'auto'"),
    "solver": (lambda: field(solver="rk45"), ValueError, "solver is one of euler"),
    "steps": (lambda: field(steps=0), ValueError, "steps is a positive int"),
    "probes": (lambda: field(probes=1.5), ValueError, "probes is a positive int"),
    "rtol": (lambda: field(rtol=0.0), ValueError, "rtol is a number > 0"),
    "base": (lambda: field(base_scale=-1.0), ValueError, "base_scale is a number > 0"),
    "times": (lambda: field(times=(1.0, 1.0)), ValueError, "two different numbers"),
    "kinetic": (lambda: field(kinetic=math.nan), ValueError, "kinetic is a number"),
    "function": (lambda: ContinuousFlow.from_velocity(3, (2,)), TypeError, "called as fn"),
    "shape of the velocity": (
        lambda: ContinuousFlow.from_velocity(lambda x, t: x[:, :1], (2,)).energy(torch.zeros(3, 2)),
        ValueError,
        r"velocity of x \(3, 2\) has its shape, got \(3, 1\)",
    ),
    "classes of the network": (
        lambda: ContinuousFlow(MLP(2, num_classes=3), (2,), num_classes=4),
        ValueError,
        "num_classes=3",
    ),
    "x": (lambda: field().energy(torch.zeros(3, 3)), ValueError, r"\(N, 2\)"),
    "x double": (lambda: field().energy(torch.zeros(3, 2, dtype=D)), TypeError, "float32 weights"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_missing_extra_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r'dopri5.*pip install "boltzmix\[ode\]"'):
        field(solver="dopri5").energy(torch.zeros(1, 2))
    with pytest.raises(MissingExtra, match=r'adjoint.*pip install "boltzmix\[ode\]"'):
        make(adjoint=True).loss(points((3,), n=2), torch.Generator())
    assert bool(torch.isfinite(field().energy(torch.zeros(1, 2))).all())  # fixed steps need nothing
