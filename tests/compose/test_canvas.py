"""Canvases: exact on Markov Gaussian fields, biased by known amounts elsewhere, and one forward for everything.

Statistical checks use fixed seeds and refuse |z| > 5 over at most 600 numbers: a correct sampler fails with probability
below 600 · 6e-7 ≈ 4e-4 for a new seed.
"""

import copy
import math

import pytest
import torch
from torch import nn

from boltzmix.benchmarks.seams import (
    autocovariance,
    border_steps,
    langevin_covariance,
    reverse_covariance,
    score_matrix,
)
from boltzmix.compose import (
    FKC,
    HMC,
    SMC,
    UHMC,
    Annealed,
    Canvas,
    Gaussian,
    GaussianMixture,
    MissingEnergy,
    Reverse,
    SamplingWarning,
    Window,
    affine,
    mixture,
    product,
    sample,
    term,
)
from boltzmix.compose.closed_form import gaussian_product
from boltzmix.compose.crops import Crop
from boltzmix.compose.flat import FlatView
from boltzmix.compose.marginals import marginal, same_density
from boltzmix.compose.samplers.path import strengths
from boltzmix.models import Diffusion

D = torch.float64


def chain(n, a=0.9, b=0.0):
    return Gaussian(torch.zeros(n, dtype=D), autocovariance(n, a, b))


def field(height, width, first=(0.8,), second=(1.2, -0.5)):
    """A picture whose covariance is the product of two chains', of order 1 down and 2 across."""
    covariance = torch.kron(autocovariance(height, *first), autocovariance(width, *second))
    return Gaussian(torch.zeros(1, height, width, dtype=D), covariance)


def covariance_z(x, covariance):
    """z-scores of second moments of centred draws: all variances, and covariances of neighbours."""
    flat, n = x.reshape(len(x), -1).double(), len(x)
    found = flat.mT @ flat / n
    own = covariance.diagonal()
    z = (found - covariance) / ((own[:, None] * own + covariance**2) / n).sqrt()
    return torch.cat([z.diagonal(), z.diagonal(1)])


class Net(nn.Module):
    """A convolution that counts its calls and rows; conditions shift it, so that rows can be told apart."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes, self.calls, self.rows = num_classes, 0, 0
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 1, 3, padding=1, dtype=D)
        self.shifts = nn.Parameter(torch.linspace(-1, 1, num_classes + 1, dtype=D))

    def forward(self, x, c_noise, label=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        label = torch.full((len(x),), -1, dtype=torch.long) if label is None else label
        return torch.tanh(self.conv(x)) + (self.shifts[label + 1] * c_noise)[:, None, None, None]


def network(shape=(1, 4, 6)):
    net = Net()
    return Diffusion(net, shape, num_classes=4, sigma_range=(0.01, 20.0)), net


# ---------------------------------------------------------------------- exact


@pytest.mark.parametrize("stride", [9, 6, 4, 2])
@pytest.mark.parametrize("order", [(0.9,), (1.2, -0.5)], ids=["order 1", "order 2"])
def test_the_precision_of_a_chain_is_exact(order, stride):
    """∏ windows / ∏ overlaps is the field itself, where neighbours of a pixel fit into an overlap."""
    if len(order) > 12 - stride:
        stride = 8
    length = 12 + 4 * stride
    truth = chain(length, *order)
    canvas = Canvas(chain(12, *order), (length,), stride)
    assert canvas.overlap == "marginal"
    assert canvas.normalized
    exact = torch.linalg.inv(truth.covariance)
    assert float((score_matrix(canvas) - exact).abs().max()) < 1e-10
    x = truth.sample(5, torch.Generator().manual_seed(0))
    assert torch.allclose(canvas.energy(x), truth.energy(x), atol=1e-9, rtol=0)


def test_the_precision_of_a_picture_is_exact():
    """Two axes: windows +1, overlaps of neighbours −1, corners +1."""
    truth = field(14, 20)
    canvas = Canvas(field(6, 8), (1, 14, 20), stride=4)
    assert float((score_matrix(canvas) - torch.linalg.inv(truth.covariance)).abs().max()) < 1e-10
    x = truth.sample(5, torch.Generator().manual_seed(0))
    assert torch.allclose(canvas.energy(x), truth.energy(x), atol=1e-8, rtol=0)


def test_strides_may_differ_along_the_axes():
    truth = field(12, 18)
    canvas = Canvas(field(6, 8), (1, 12, 18), stride=(3, 5))
    assert canvas.windows == (3, 3)
    assert float((score_matrix(canvas) - torch.linalg.inv(truth.covariance)).abs().max()) < 1e-10


def test_without_the_quotient_overlaps_count_twice():
    """The product of windows has less than half of the variance; the quotient has all of it."""
    window, length = chain(16), 64
    twice = product(*[Window(window, start, (length,)) for start in range(0, 49, 8)])
    wrong = torch.linalg.inv(score_matrix(twice)).diagonal()
    right = torch.linalg.inv(score_matrix(Canvas(window, (length,), 8))).diagonal()
    assert float(wrong.min()) < 0.36
    assert float(wrong.mean()) < 0.5
    assert torch.allclose(right, torch.ones(length, dtype=D), atol=1e-9)


@pytest.mark.parametrize("make", [lambda c: c, lambda c: c.factors()], ids=["canvas", "factors"])
def test_draws_have_the_covariance_and_log_z_of_the_field(make):
    """SMC on the canvas and on its factors: log Z of a normalised chain is 0, second moments are the field's."""
    canvas = make(Canvas(chain(6, 0.7), (14,), 4))
    draw = sample(canvas, 3000, sampler=SMC(path="noise", compile=False), seed=1)
    assert draw.log_z is not None
    assert draw.log_z_se is not None
    assert abs(draw.log_z) < 4 * draw.log_z_se + 1e-9
    # draws share ancestors: their number is that of the effective families
    z = covariance_z(draw.x, autocovariance(14, 0.7)) * math.sqrt(1 / (1 + 3000 * draw.log_z_se**2))
    assert float(z.abs().max()) < 5


def test_annealed_draws_of_a_picture_have_its_covariance():
    """Chains without weights on 84 pixels: all variances, and covariances of neighbours, of 500 draws."""
    markov = {"first": (0.5,), "second": (0.6,)}
    canvas = Canvas(field(3, 6, **markov), (1, 7, 12), stride=(2, 3))
    annealed = Annealed(levels=6, kernel=HMC(num_leapfrog=6), sweeps=5, compile=False)
    z = covariance_z(sample(canvas, 500, sampler=annealed, seed=2).x, field(7, 12, **markov).covariance)
    assert float(z.abs().max()) < 5
    assert float(z.square().mean()) < 2


# ---------------------------------------------------------------------- averages


def test_centres_are_exact_where_a_window_holds_all_neighbours():
    """A pixel's score is that of any window with its surroundings; half an overlap must hold the order."""
    for order, stride, right in [
        ((0.9,), 10, True),
        ((0.9,), 11, False),
        ((1.2, -0.5), 8, True),
        ((1.2, -0.5), 10, False),
    ]:
        length = 12 + 3 * stride
        canvas = Canvas(chain(12, *order), (length,), stride, overlap="centre")
        error = (score_matrix(canvas) - torch.linalg.inv(autocovariance(length, *order))).abs().max()
        assert (float(error) < 1e-10) == right, (order, stride, float(error))


def test_the_mean_is_the_quotient_with_estimated_overlaps():
    """MultiDiffusion = windows − overlaps where an overlap's score is the mean of its windows' (Fisher's identity)."""
    model = GaussianMixture(torch.randn(2, 6, dtype=D), torch.tensor([0.5, 1.0], dtype=D))
    canvas = Canvas(model, (10,), 4, overlap="mean")
    x = torch.randn(7, 10, dtype=D)
    first, second = model.score(x[:, :6], 0.4), model.score(x[:, 4:], 0.4)
    estimate = 0.5 * (first[:, 4:] + second[:, :2])
    expected = torch.zeros_like(x)
    expected[:, :6] += first
    expected[:, 4:] += second
    expected[:, 4:6] -= estimate
    assert torch.allclose(canvas.score(x, 0.4), expected)


def test_weights_of_averages_add_up_to_one():
    model = affine(Gaussian(torch.zeros(1, 5, 6, dtype=D), 1.0), 0.0, 1.0)
    x = torch.randn(3, 1, 11, 14, dtype=D)
    for rule in ("mean", "tent", "centre"):
        canvas = Canvas(model, (1, 11, 14), (2, 4), overlap=rule)
        assert torch.allclose(canvas.score(x), -x), rule  # windows that agree are left as they are


def test_the_average_is_biased_and_seams_show_it():
    """In closed form: the equal average loses variance and triples squared steps at borders; the quotient is exact."""
    length, window = 48, chain(16)
    found = {}
    for rule in ("marginal", "centre", "tent", "mean"):
        canvas = Canvas(window, (length,), 8, overlap=rule)
        langevin, reverse = langevin_covariance(score_matrix(canvas)), reverse_covariance(canvas)
        found[rule] = (float(langevin.diagonal().mean()), border_steps(reverse, 16, 8))
    assert abs(found["marginal"][0] - 1) < 1e-8
    assert abs(found["centre"][0] - 1) < 1e-8
    assert found["mean"][0] < 0.85
    assert found["mean"][1] > 2.5
    assert found["marginal"][1] < 1.02
    assert found["centre"][1] < 1.07
    assert found["tent"][1] < found["mean"][1]


def test_averages_have_no_energy_and_say_what_they_are():
    canvas = Canvas(chain(8), (16,), 4, overlap="mean")
    assert not canvas.has_energy
    assert canvas.path == "annealed"
    with pytest.raises(MissingEnergy):
        canvas.energy(torch.zeros(1, 16, dtype=D))
    with pytest.raises(TypeError, match="no product"):
        canvas.factors()


# ---------------------------------------------------------------------- overlaps


def test_overlaps_are_given_as_a_term_a_mapping_or_a_function():
    x = torch.randn(4, 1, 14, 20, dtype=D)
    model = field(6, 8)
    auto = Canvas(model, (1, 14, 20), 4)
    shapes = {(1, 2, 8), (1, 6, 4), (1, 2, 4)}
    known = {shape: marginal(model, [slice(0, s) for s in shape]) for shape in shapes}
    for overlap in (known, known.__getitem__):
        canvas = Canvas(model, (1, 14, 20), 4, overlap=overlap)
        assert canvas.overlap == "given"
        assert torch.allclose(canvas.energy(x, 0.3), auto.energy(x, 0.3))
        assert torch.allclose(canvas.score(x, 0.3), auto.score(x, 0.3))
    line = Canvas(chain(6), (10,), 4, overlap=chain(2))
    assert torch.allclose(line.score(x[:, 0, 0, :10], 0.5), Canvas(chain(6), (10,), 4).score(x[:, 0, 0, :10], 0.5))


def test_marginals_that_differ_enter_by_their_geometric_mean():
    """A window whose two ends differ: an overlap has two densities, and each is divided out with exponent 1/2."""
    model = Gaussian(torch.tensor([1.0, 0.0, -1.0], dtype=D), torch.tensor([1.0, 2.0, 3.0], dtype=D))
    canvas = Canvas(model, (5,), 2)
    assert not canvas.normalized
    x = torch.randn(6, 5, dtype=D)
    head, tail = marginal(model, [slice(0, 1)]), marginal(model, [slice(2, 3)])
    middle = x[:, 2:3]
    expected = model.energy(x[:, :3]) + model.energy(x[:, 2:]) - 0.5 * (head.energy(middle) + tail.energy(middle))
    assert torch.allclose(canvas.energy(x), expected)


def test_marginals_integrate_the_rest_out():
    """By quadrature over the second coordinate, at two levels."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=D)
    p = GaussianMixture(torch.tensor([[0.0, 0.5], [1.0, -1.0]], dtype=D), torch.stack([covariance, 2 * covariance]))
    other = Gaussian(torch.tensor([0.3, 0.1], dtype=D), covariance)
    x = torch.linspace(-2, 2, 5, dtype=D)[:, None]
    rest = torch.linspace(-12, 12, 4001, dtype=D)
    for joint in (p, other, affine(p, 0.5, -1.3), mixture([p, other]), affine(other, torch.ones(2, dtype=D), 2.0)):
        found = marginal(joint, [slice(0, 1)])
        assert found is not None
        for sigma in (None, 0.7):
            grid = torch.cartesian_prod(x[:, 0], rest)
            dense = joint.log_prob(grid, sigma).exp().reshape(len(x), -1)
            expected = torch.trapezoid(dense, rest, dim=1)
            assert torch.allclose(found.log_prob(x, sigma).exp(), expected, rtol=1e-6)
    assert marginal(affine(other, 0.0, torch.tensor([1.0, 2.0], dtype=D)), [slice(0, 1)]) is None
    assert marginal(term(lambda x: -x.square().sum(-1), kind="log_prob", event_shape=(2,)), [slice(0, 1)]) is None
    assert same_density(marginal(mixture([p, other]), [slice(0, 2)]), mixture([p, other]))
    assert not same_density(marginal(p, [slice(0, 1)]), marginal(p, [slice(1, 2)]))


def test_a_mixture_of_fields_is_normalised():
    """Windows that are mixtures: by quadrature in three dimensions."""
    pair = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=D)
    model = GaussianMixture(
        torch.tensor([[-1.5, -1.5], [1.5, 1.5]], dtype=D), 0.5 * torch.stack([pair, pair]), [1.0, 2.0]
    )
    canvas = Canvas(model, (3,), 1)
    assert canvas.normalized
    axis = torch.linspace(-6, 6, 61, dtype=D)
    grid = torch.cartesian_prod(axis, axis, axis)
    for sigma in (None, 0.5):
        total = (-canvas.energy(grid, sigma)).exp().sum() * (axis[1] - axis[0]) ** 3
        assert abs(float(total) - 1) < 1e-6


# ---------------------------------------------------------------------- one forward, conditions, windows


def test_all_windows_are_rows_of_one_forward():
    """Windows with and without conditions, and the factors of a formula over one canvas."""
    model, net = network()
    x = torch.randn(5, 1, 8, 14, dtype=D)
    canvas = Canvas(model, (1, 8, 14), (2, 4))
    assert canvas.overlap == "centre"
    canvas.score(x, 0.5)
    assert (net.calls, net.rows) == (1, 9 * 5)
    local = Canvas(model, (1, 8, 14), (2, 4), conditions={(0, 1): {"label": 2}, (2, 2): {"label": 0}})
    net.calls = net.rows = 0
    local.score(x, 0.5)
    assert (net.calls, net.rows) == (1, 11 * 5)
    formula = canvas * (canvas.given(label=1) / canvas) ** 2
    formula = formula * (Window(model.given(label=3), (1, 3), canvas) / Window(model, (1, 3), canvas)) ** 1.5
    net.calls = net.rows = 0
    formula.score(x, 0.5)
    assert (net.calls, net.rows) == (1, 20 * 5)
    assert formula._rows() == 20
    shared = canvas * (Window(model.given(label=3), (2, 4), canvas) / Window(model, (2, 4), canvas))
    net.calls = net.rows = 0
    shared.score(x, 0.5)
    assert (net.calls, net.rows) == (1, 10 * 5)
    assert shared._rows() == 10
    levels = torch.linspace(0.1, 2.0, 5, dtype=D)
    together = formula.score(x, levels)
    for i, level in enumerate(levels):
        assert torch.allclose(together[i], formula.score(x[i : i + 1], float(level))[0])


def test_conditions_multiply_by_local_quotients():
    """p(canvas) ∏ p(x_r | c) / p(x_r), however overlaps are counted, and from a mapping, a function or terms."""
    x = torch.randn(3, 1, 8, 14, dtype=D)
    model, _ = network()
    for rule in ("centre", "mean"):
        canvas = Canvas(model, (1, 8, 14), (2, 4), overlap=rule)
        where = canvas.crop((1, 2))
        assert where == Crop((0, 2, 8), (1, 4, 6))
        crop = x[:, :, 2:6, 8:14]
        by_hand = canvas.score(x, 0.5).clone()
        by_hand[:, :, 2:6, 8:14] += model.given(label=2).score(crop, 0.5) - model.score(crop, 0.5)
        expected = canvas * (Window(model.given(label=2), (2, 8), canvas) / Window(model, (2, 8), canvas))
        for conditions in (
            {(1, 2): {"label": 2}},
            {(1, 2): model.given(label=2)},
            lambda index: {"label": 2} if index == (1, 2) else None,
        ):
            local = Canvas(model, (1, 8, 14), (2, 4), overlap=rule, conditions=conditions)
            assert torch.allclose(local.score(x, 0.5), by_hand)
        assert torch.allclose(expected.score(x, 0.5), by_hand)
    gaussian, narrow = chain(6), Gaussian(torch.ones(6, dtype=D), 0.5)
    local = Canvas(gaussian, (14,), 4, conditions={1: narrow})
    base = Canvas(gaussian, (14,), 4)
    y = torch.randn(4, 14, dtype=D)
    expected = base.energy(y, 0.3) + narrow.energy(y[:, 4:10], 0.3) - gaussian.energy(y[:, 4:10], 0.3)
    assert torch.allclose(local.energy(y, 0.3), expected)
    assert not local.normalized
    assert local.calibrated


def test_canvas_conditions_reach_the_model():
    model, _ = network()
    x = torch.randn(3, 1, 8, 14, dtype=D)
    canvas = Canvas(model, (1, 8, 14), (2, 4))
    assert canvas.conditions == {"label"}
    told = canvas.given(label=2)
    assert torch.allclose(told.score(x, 0.5), Canvas(model.given(label=2), (1, 8, 14), (2, 4)).score(x, 0.5))
    rows = canvas.given(label=torch.tensor([0, 3, 1]))
    each = [canvas.given(label=k).score(x[i : i + 1], 0.5) for i, k in enumerate((0, 3, 1))]
    assert torch.allclose(rows.score(x, 0.5), torch.cat(each))
    assert FlatView(rows).per_row
    window = Window(model, (1, 1), canvas).given(label=1)
    assert torch.allclose(window.score(x, 0.5), Window(model.given(label=1), (1, 1), canvas).score(x, 0.5))


def test_windows_of_formulas_and_of_strangers():
    """A window may hold a whole formula, a mixture with energies, or terms that cannot be stacked."""
    x = torch.randn(4, 14, dtype=D)
    p, q = chain(6), Gaussian(torch.ones(6, dtype=D), 0.7)
    r = GaussianMixture(torch.randn(2, 6, dtype=D), 0.5)
    for model in (p * (q / p) ** 0.5, mixture([p, q, r]), r**0.5 * p):
        canvas = Canvas(model, (14,), 4, overlap=lambda shape: Gaussian(torch.zeros(shape, dtype=D), 1.0))
        expected = sum(model.energy(x[:, s : s + 6], 0.4) for s in (0, 4, 8))
        expected = expected + 0.5 * (x[:, [4, 5, 8, 9]].square() / 1.16).sum(1) * -1
        expected = expected - 2 * math.log(2 * math.pi * 1.16)
        assert torch.allclose(canvas.energy(x, 0.4), expected)
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(canvas.energy(leaf, 0.4).sum(), leaf)
        assert torch.allclose(canvas.score(x, 0.4), -slope)
    first, _ = network()
    second, _ = network()
    z = torch.randn(2, 1, 8, 6, dtype=D)
    both = Canvas(first, (1, 8, 6), 2, conditions={0: second.given(label=1), 1: second})
    expected = Canvas(first, (1, 8, 6), 2).score(z, 0.5)
    for start, term_ in ((0, second.given(label=1)), (2, second)):
        expected = expected + (Window(term_, (start,), (1, 8, 6)) / Window(first, (start,), (1, 8, 6))).score(z, 0.5)
    assert torch.allclose(both.score(z, 0.5), expected)


def test_a_window_is_flat_elsewhere():
    q = Gaussian(torch.ones(3, dtype=D), 0.5)
    local = Window(q, 4, (10,))
    x = torch.randn(4, 10, dtype=D)
    assert torch.equal(local.energy(x, 0.2), q.energy(x[:, 4:7], 0.2))
    score = local.score(x, 0.2)
    assert torch.equal(score[:, 4:7], q.score(x[:, 4:7], 0.2))
    assert float(score[:, :4].abs().max()) == float(score[:, 7:].abs().max()) == 0
    denoised = local.denoise(x, 0.2)
    assert torch.equal(denoised[:, :4], x[:, :4])
    with pytest.raises(TypeError, match="ask the canvas"):
        local.coarse(5.0)


def test_windows_hold_their_own_pixels_only():
    """Where a path starts: a window adds precision inside, and a local quotient adds none."""
    canvas, local = Canvas(chain(6, 0.7), (10,), 4), Window(chain(3), 2, (10,))
    assert strengths(FlatView(canvas * local), 50.0).tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert strengths(FlatView(mixture([canvas * local, canvas**2])), 50.0).tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert strengths(FlatView(canvas * local**2 / Window(chain(3, 0.2), 2, (10,)) ** 2), 50.0).tolist() == [1.0] * 10


def test_a_local_factor_is_sampled_right():
    """canvas * window has a closed form: its start is narrower where the window adds precision."""
    q = Gaussian(torch.ones(3, dtype=D), 0.4)
    canvas, local = Canvas(chain(6, 0.7), (10,), 4), Window(q, 2, (10,))
    formula = canvas * local
    inside = torch.full((10,), 1e8, dtype=D)  # flat outside
    inside[2:5] = 0.4
    wide = Gaussian(torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0, 0, 0], dtype=D), inside)
    truth, log_z = gaussian_product([(chain(10, 0.7), 1.0), (wide, 1.0)])
    log_z += 7 * 0.5 * math.log(2 * math.pi * 1e8)
    draw = sample(formula, 3000, sampler=SMC(path="noise", compile=False), seed=3)
    assert draw.log_z is not None
    assert draw.log_z_se is not None
    assert abs(draw.log_z - log_z) < 4 * draw.log_z_se
    z = (draw.x.mean(0) - truth.mean) / (truth.covariance.diagonal() * (1 / 3000 + draw.log_z_se**2)).sqrt()
    assert float(z.abs().max()) < 5


# ---------------------------------------------------------------------- samplers and modules


def test_samplers_take_canvases():
    model, _net = network()
    canvas = Canvas(model, (1, 8, 14), (2, 4))
    with pytest.warns(SamplingWarning, match="not the noised canvas"):
        draw = sample(canvas, 2, sampler=Reverse(steps=4), seed=0)
    assert draw.x.shape == (2, 1, 8, 14)
    assert draw.info.network_rows == 9 * draw.info.evaluations
    draw = sample(canvas, 2, sampler=Annealed(levels=3, kernel=UHMC(step_size=0.1)), seed=0)
    assert bool(torch.isfinite(draw.x).all())
    formula = canvas * (Window(model.given(label=3), (1, 3), canvas) / Window(model, (1, 3), canvas)) ** 2
    draw = sample(formula, 2, sampler=Annealed(levels=3, kernel=UHMC(step_size=0.1)), seed=0)
    assert bool(torch.isfinite(draw.x).all())


def test_feynman_kac_weights_correct_reverse_diffusion_on_the_factors():
    """Windows are noised, so the corrected sampler takes them: log Z of a normalised chain is 0."""
    factors = Canvas(chain(4, 0.9), (8,), 2).factors()
    draw = sample(factors, 4000, sampler=FKC(), seed=0)
    z = covariance_z(draw.x, autocovariance(8, 0.9))
    assert float(z.square().mean()) < 2.5
    assert abs(draw.info.extra["raw_log_z"]) < 0.02
    biased = (reverse_covariance(Canvas(chain(4, 0.9), (8,), 2)) - autocovariance(8, 0.9)).abs().max()
    assert float(biased) > 0.05


def test_disjoint_windows_are_noised_and_independent():
    canvas = Canvas(field(4, 6), (1, 4, 12), 6)
    assert canvas.path == "noised"
    assert canvas.normalized
    x = torch.randn(3, 1, 4, 12, dtype=D)
    model = field(4, 6)
    assert torch.allclose(canvas.energy(x, 0.5), model.energy(x[..., :6], 0.5) + model.energy(x[..., 6:], 0.5))
    assert torch.allclose(canvas.coarse(9.0).variances, torch.full((48,), 82.0, dtype=D))


def test_canvases_are_modules_like_others():
    model, net = network()
    canvas = Canvas(model, (1, 8, 14), (2, 4), conditions={(0, 0): {"label": 1}})
    names = [name for name, _ in canvas.named_parameters()]
    assert len(names) == len({id(p) for p in canvas.parameters()}) == len(list(model.parameters()))
    assert len(canvas.state_dict()) == len(model.state_dict())
    x = torch.randn(2, 1, 8, 14, dtype=D)
    twin = copy.deepcopy(canvas).float()
    assert twin.score(x.float(), 0.5).dtype == torch.float32
    assert torch.allclose(twin.score(x.float(), 0.5).double(), canvas.score(x, 0.5), atol=1e-4)
    canvas.score(x, 0.5).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert canvas.key() == Canvas(model, (1, 8, 14), (2, 4), conditions={(0, 0): {"label": 1}}).key()
    assert canvas.key() != Canvas(model, (1, 8, 14), (2, 4)).key()
    assert Canvas(model, (1, 8, 14), (2, 4), overlap="mean").key() != Canvas(model, (1, 8, 14), (2, 4)).key()


def test_canvases_bind_to_names():
    joint = Canvas(chain(6), (14,), 4).on("a") * Gaussian(torch.zeros(2, dtype=D), 1.0).on("b")
    x = {"a": torch.randn(3, 14, dtype=D), "b": torch.randn(3, 2, dtype=D)}
    assert torch.equal(joint.score(x, 0.4)["a"], Canvas(chain(6), (14,), 4).score(x["a"], 0.4))


def test_a_point_finds_its_window():
    canvas = Canvas(field(6, 8), (1, 14, 20), 4)
    assert canvas.around((7.0, 11.5)) == ((4, 8), (3.0, 3.5))
    assert canvas.around((0.5, 19.0)) == ((0, 12), (0.5, 7.0))
    with pytest.raises(ValueError, match=r"in \[0, 14\]"):
        canvas.around((15.0, 3.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: Canvas(m, (14,), 5), ValueError, "canvas of 11 or 16, or a stride that divides 8"),
        (lambda m: Canvas(m, (14,), 0), ValueError, "from 1 to the window's 6"),
        (lambda m: Canvas(m, (14,), 7), ValueError, "from 1 to the window's 6"),
        (lambda m: Canvas(m, (14,), 4.0), TypeError, "stride is an int"),
        (lambda m: Canvas(m, (14,), (4, 4)), ValueError, "1 tiled axes"),
        (lambda m: Canvas(m, (1, 14), 4), ValueError, "write all of them, the channels too"),
        (lambda m: Canvas(m, (4,), 2), ValueError, "at least as large"),
        (lambda m: Canvas(m, (6,), 2), ValueError, "larger than its windows"),
        (lambda m: Canvas(m, 14, 4), TypeError, "a shape such as"),
        (lambda m: Canvas("scenes", (14,), 4), TypeError, "takes a term"),
        (lambda m: Canvas(m.on("a"), (14,), 4), TypeError, "one variable"),
        (lambda m: Canvas(m, (14,), 4, overlap="average"), ValueError, "overlap is 'marginal'"),
        (lambda m: Canvas(m, (14,), 4, overlap=3), TypeError, "overlap is a name"),
        (lambda m: Canvas(m, (14,), 4, overlap=chain(3)), ValueError, r"overlaps here have the shape \(2,\)"),
        (lambda m: Canvas(m, (14,), 4, overlap={(3,): chain(3)}), ValueError, "no density for overlaps of"),
        (lambda m: Canvas(m * m, (14,), 4, overlap="marginal"), ValueError, "no marginal in closed form"),
        (lambda m: Canvas(m, (14,), 4, conditions={3: m}), ValueError, r"indices below \(3,\)"),
        (lambda m: Canvas(m, (14,), 4, conditions={(0, 1): m}), ValueError, "one number for each tiled axis"),
        (lambda m: Canvas(m, (14,), 4, conditions={0: chain(5)}), ValueError, "window .* is over"),
        (lambda m: Canvas(m, (14,), 4, conditions={0: 3}), TypeError, "such as dict"),
        (lambda m: Canvas(m, (14,), 4, conditions=[1]), TypeError, "a mapping from windows or a function"),
        (lambda m: Canvas(m, (14,), 4, conditions={0: {"label": 1}}), TypeError, "unknown condition"),
        (lambda m: Window(m, 9, (14,)), ValueError, "starts go from 0 to 8"),
        (lambda m: Window(m, -1, (14,)), ValueError, "starts go from 0 to 8"),
        (lambda m: Window(m, (1, 1), (14,)), ValueError, "one for every axis"),
        (lambda m: Window(m, 1.5, (14,)), TypeError, "at is where the window begins"),
        (lambda m: Window(m, 0, "big"), TypeError, "a shape such as"),
        (lambda m: Canvas(m, (14,), 4).around((1.0, 2.0)), ValueError, "one number for each tiled axis"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call(chain(6))
