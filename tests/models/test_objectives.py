"""Objectives of energy models against enumeration, finite differences, closed forms and identities.

Statistical checks fix their seeds and refuse |z| > 5: a correct objective fails one with probability 6e-7 for new ones.
"""

import copy
import math

import pytest
import torch
from torch import nn

import boltzmix as bm
from boltzmix.compose import Gaussian, GaussianMixture, term
from boltzmix.compose.errors import MissingEnergy
from boltzmix.models import (
    ContrastiveDivergence,
    Diffusion,
    EnergyDiffusion,
    EnergyModel,
    GaussianBase,
    LevelCalibration,
    NoiseContrastive,
    ScoreMatching,
    fit,
)
from boltzmix.models.nets import MLP, EnergyMLP
from boltzmix.models.objectives import (
    contrastive_divergence,
    cross_level_loss,
    denoising_score_matching,
    explicit_score_matching,
    noise_contrastive,
    sliced_score_matching,
)

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def z(values, exact=0.0):
    values = torch.as_tensor(values, dtype=D)
    return float((values.mean() - exact).abs() / (values.std() / math.sqrt(len(values))))


def small(dim=1, objective=None, seed=0, **options):
    torch.manual_seed(seed)
    model = EnergyModel(EnergyMLP(dim, hidden=6, depth=1), (dim,), objective=objective, loc=0.0, scale=1.0, **options)
    with torch.no_grad():
        for p in model.core.net.parameters():
            p += 0.4 * torch.randn(p.shape, generator=rng(seed + 1))
    return model.to(D)


# ----------------------------------------------------------------------------------------------- contrastive divergence


def test_the_gradient_is_that_of_the_likelihood_of_an_enumerable_model():
    """Central differences of −E_data log p over 40 states, with the exact expectation of the model."""
    model, states = small(2), torch.randn(40, 2, generator=rng(5), dtype=D)
    data = states[torch.tensor([0, 3, 3, 7, 11])]
    parameters = [p for p in model.core.net.parameters() if p.requires_grad]

    def nll():
        with torch.no_grad():
            return float(model.energy(data).mean() + torch.logsumexp(-model.energy(states), 0))

    weights = (-model.energy(states)).softmax(0).detach()
    loss = contrastive_divergence(model.energy(data), model.energy(states), weights)
    found = torch.autograd.grad(loss, parameters)
    for p, gradient in zip(parameters, found, strict=True):
        for index in range(min(3, p.numel())):
            flat, values = p.detach().view(-1), []
            for step in (1e-5, -2e-5, 1e-5):
                flat[index] += step
                values.append(nll())
            expected = (values[0] - values[1]) / 2e-5
            assert abs(float(gradient.flatten()[index]) - expected) < 1e-7


def line_expectation(model):
    """Exact log Z and gradient of E_model[E] on a fine line."""
    axis = torch.linspace(-9, 9, 4001, dtype=D)[:, None]
    energy = model.core(axis)
    log_z = torch.logsumexp(-energy, 0).detach() + math.log(18 / 4000)
    weights = (-energy).softmax(0).detach()
    gradient = torch.autograd.grad((weights * energy).sum(), list(model.core.net.parameters()))
    return float(log_z), torch.cat([g.flatten() for g in gradient])


def moved_chains(objective, steps=12):
    """A model whose parameters move while its chains follow, and the last gradient at the chains."""
    model = small(1, objective)
    generator = rng(2)
    x = torch.randn(200, 1, generator=generator, dtype=D)
    model.prepare(x, generator)
    direction = [torch.randn(p.shape, generator=generator, dtype=D) for p in model.core.net.parameters()]
    for _ in range(steps):
        with torch.no_grad():
            for p, d in zip(model.core.net.parameters(), direction, strict=True):
                p += 0.03 * d
        loss = model.loss(x, generator)
    gradient = torch.autograd.grad(loss, list(model.core.net.parameters()))
    data = torch.autograd.grad(model.core(x).mean(), list(model.core.net.parameters()))
    return model, torch.cat([(d - g).flatten() for d, g in zip(data, gradient, strict=True)])


def weighted_chains_estimate_the_model():
    """Chains that hardly move are carried by their weights alone: E_model[∇E] and log Z against the line."""
    kernel = bm.MALA(step_size=1e-3)
    objective = ContrastiveDivergence(capacity=20_000, steps=1, kernel=kernel, ess_threshold=0.9, reinitialize=0.02)
    model, found = moved_chains(objective)
    log_z, exact = line_expectation(model)
    assert abs(model.metrics()["log_z"] - log_z) < 0.03
    assert float((found - exact).abs().max()) < 0.03 * float(exact.abs().max())
    nll = float(model.core(torch.randn(200, 1, generator=rng(2), dtype=D)).mean().detach()) + log_z
    assert abs(model.metrics()["nll"] - nll) < 0.03


def test_weighted_chains_estimate_the_model():
    weighted_chains_estimate_the_model()


def persistent_chains_reach_the_model():
    """Without weights, chains with enough steps have the model's moments; those of CD-1 still lag."""
    many = ContrastiveDivergence(capacity=2000, steps=25, reinitialize=0.0, weighted=False)
    torch.manual_seed(0)
    model = small(1, many)
    x, generator = 3 + torch.randn(2000, 1, generator=rng(1), dtype=D), rng(2)
    for _ in range(6):
        model.loss(x, generator)
    axis = torch.linspace(-9, 9, 4001, dtype=D)[:, None]
    weights = (-model.energy(axis)).softmax(0).detach()
    mean, chains = float((weights * axis[:, 0]).sum()), model.objective.buffer.x[:, 0]
    deviation = float((weights * (axis[:, 0] - mean) ** 2).sum().sqrt())
    assert abs(float(chains.mean()) - mean) < 5 * deviation / math.sqrt(2000)
    assert abs(float(chains.std()) - deviation) < 0.1 * deviation


def test_persistent_chains_reach_the_model():
    persistent_chains_reach_the_model()


def test_chains_of_cd_start_at_the_data():
    kernel = bm.ULA(step_size=1e-8)
    model = small(1, ContrastiveDivergence(persistent=False, steps=1, kernel=kernel))
    loss = model.loss(torch.randn(50, 1, generator=rng(), dtype=D), rng())
    assert abs(float(loss.detach())) < 1e-2
    assert not any("buffer" in name for name in model.state_dict())


def label_weights_follow_the_batch():
    """Chains are dealt out evenly over labels; their weights sum to the batch's shares, label by label."""
    torch.manual_seed(0)
    objective = ContrastiveDivergence(capacity=80, steps=1)
    model = EnergyModel(EnergyMLP(1, hidden=4, num_classes=3), (1,), num_classes=3, objective=objective, dropout=0.2)
    x, label = torch.randn(100, 1, generator=rng()), torch.tensor([0] * 70 + [1] * 30)
    model.prepare((x, label), rng(1))
    assert objective.buffer is not None
    assert set(objective.buffer.label.tolist()) == {-1, 0, 1, 2}
    _, own, weights = objective._weighted(model, x, label, rng(3))
    sums = {k: float(weights[own == k].sum()) for k in (-1, 0, 1, 2)}
    assert all(abs(sums[k] - v) < 1e-4 for k, v in {-1: 0.0, 0: 0.7, 1: 0.3, 2: 0.0}.items()), sums


def test_label_weights_follow_the_batch():
    label_weights_follow_the_batch()


def test_step_sizes_adapt_and_given_ones_stay():
    x, generator = torch.randn(200, 1, generator=rng(), dtype=D), rng(1)
    for kernel, goal in ((bm.MALA(), 0.6), (bm.ULA(), 0.98)):
        model = small(1, ContrastiveDivergence(kernel=kernel, capacity=400, steps=5))
        for _ in range(60):
            model.loss(x, generator)
        assert abs(model.metrics()["acceptance"] - goal) < 0.05
    fixed = small(1, ContrastiveDivergence(kernel=bm.MALA(step_size=0.3), capacity=100, steps=2))
    for _ in range(5):
        fixed.loss(x, generator)
    assert fixed.metrics()["step_size"] == pytest.approx(0.3, rel=1e-6)


def test_regularisation_is_that_of_the_networks_part():
    x = torch.randn(50, 1, generator=rng(), dtype=D)
    values = {}
    for alpha in (0.0, 0.5):
        model = small(1, ContrastiveDivergence(persistent=False, steps=1, regularization=alpha))
        values[alpha] = float(model.loss(x, rng(4)).detach())
        if alpha == 0:
            target = model.core.tilt(x).square().mean().detach()
    assert values[0.5] - values[0.0] > 0.5 * float(target)


# ---------------------------------------------------------------------------------------------- noise-contrastive


def optimum_of_nce(ratio=2):
    """Four states with counts for probabilities: the least loss is at E = −log p, constant included."""
    p, q = torch.tensor([1, 2, 3, 4]), torch.tensor([4, 3, 2, 1])
    energy = torch.zeros(4, dtype=D, requires_grad=True)
    data, noise = torch.arange(4).repeat_interleave(p), torch.arange(4).repeat_interleave(ratio * q)
    log_q = (q / q.sum()).to(D).log()
    solver = torch.optim.LBFGS(
        [energy], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        r = -energy - log_q
        loss = noise_contrastive(r[data], r[noise], ratio)
        loss.backward()
        return loss

    solver.step(closure)
    assert torch.allclose(energy.detach(), -(p / p.sum()).to(D).log(), atol=1e-5)


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_the_optimum_of_nce_is_the_density_with_its_constant(ratio):
    optimum_of_nce(ratio)


def fitted_constants(shift, replicates=300, n=200):
    """ĉ of E = x²/2 + c for N(0, 1) data and N(shift, 1) noise, by Newton's method on each data set."""
    data = torch.randn(replicates, n, generator=rng(1), dtype=D)
    noise = shift + torch.randn(replicates, n, generator=rng(2), dtype=D)
    c = torch.zeros(replicates, 1, dtype=D)
    log_q = lambda x: -0.5 * (x - shift) ** 2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
    for _ in range(60):
        r, s = -0.5 * data**2 - c - log_q(data), -0.5 * noise**2 - c - log_q(noise)
        slope = (-r).sigmoid().mean(1) - s.sigmoid().mean(1)
        bend = ((-r).sigmoid() * r.sigmoid()).mean(1) + (s.sigmoid() * (-s).sigmoid()).mean(1)
        c = c - (slope / bend).clamp(-1, 1)[:, None]
    check = noise_contrastive(r[0], s[0])
    assert math.isfinite(float(check))
    return c[:, 0]


def test_the_variance_of_nce_grows_with_the_mismatch_of_the_noise():
    """A ratio of two variances from 300 replicates each has a standard error of 12 %."""
    found = [fitted_constants(shift) for shift in (0.5, 1.5, 2.5)]
    variances = [float(c.var()) for c in found]
    assert variances[1] > 1.6 * variances[0]
    assert variances[2] > 1.6 * variances[1]
    assert z(found[0], 0.5 * math.log(2 * math.pi)) < 5


def relative_and_absolute_forms_agree():
    """Noise that is the base, and the same noise beside it, give one loss and one gradient."""
    losses, slopes = [], []
    for noise in (None, GaussianBase((2,), loc=0.0, scale=1.0).to(D)):
        model = small(2, NoiseContrastive(noise, ratio=3))
        with torch.no_grad():
            model.core.log_z.fill_(0.7)
        loss = model.loss(torch.randn(20, 2, generator=rng(), dtype=D), rng(1))
        losses.append(float(loss.detach()))
        slopes.append(torch.autograd.grad(loss, model.core.net.last.weight)[0])
    assert abs(losses[0] - losses[1]) < 1e-12
    assert torch.allclose(*slopes)


def test_relative_and_absolute_forms_agree():
    relative_and_absolute_forms_agree()


def test_the_loss_of_nce_by_hand():
    model = small(2, NoiseContrastive(ratio=2))
    x, generator = torch.randn(5, 2, generator=rng(), dtype=D), rng(1)
    loss = model.loss(x, generator)
    noise = model.core.base.draw(10, None, rng(1))
    log_p, log_q = (lambda t: -model.energy(t)), model.core.base.log_prob
    h = lambda t: log_p(t) - log_q(t) - math.log(2)  # noqa: E731
    expected = -h(x).sigmoid().log().mean() - 2 * (1 - h(noise).sigmoid()).log().mean()
    assert torch.allclose(loss, expected)


def learned_noise_takes_the_likelihoods_gradient():
    """The noise is trained by −log q at data and by nothing else."""
    base = GaussianBase((2,), "full", learnable=True, loc=0.0, scale=1.0)
    model = small(2, NoiseContrastive(base, learn_noise=True))
    x = torch.randn(30, 2, generator=rng(), dtype=D)
    model.prepare(x, rng())
    parameters = [base.loc, base.log_diagonal, base.lower]
    found = torch.autograd.grad(model.loss(x, rng(1)), parameters)
    expected = torch.autograd.grad(base.row_energy(x).mean(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_learned_noise_takes_the_likelihoods_gradient():
    learned_noise_takes_the_likelihoods_gradient()


def test_a_flow_as_noise():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    from boltzmix.models.adapters import term as adapt

    noise = adapt(zuko.flows.NSF(2, transforms=1, hidden_features=(8,)))
    model = EnergyModel(EnergyMLP(2, hidden=8), (2,), objective=NoiseContrastive(noise, learn_noise=True))
    x = torch.randn(200, 2, generator=rng()) * 0.3
    first = model.loss(x, rng(1)).detach()
    fit(model, x, steps=20, batch_size=64, lr=1e-2, ema=0.0, progress=False)
    assert float(model.loss(x, rng(1)).detach()) < float(first)
    assert any(p.grad is None for p in noise.parameters())
    relative = EnergyModel(EnergyMLP(2, hidden=8), (2,), base=noise, objective="nce")
    assert torch.allclose(relative.energy(x), noise.energy(x))


def test_noise_rows_take_the_labels_of_their_data():
    class Spy(nn.Module):
        num_classes = 3

        def forward(self, x, label=None):
            self.seen = label
            return 0 * x[:, :1]

    net = Spy()
    net.w = nn.Parameter(torch.zeros(()))
    model = EnergyModel(net, (1,), num_classes=3, objective=NoiseContrastive(ratio=2), loc=0.0, scale=1.0, dropout=0.0)
    label = torch.tensor([2, 0, 1])
    model.loss((torch.randn(3, 1), label), rng())
    assert torch.equal(net.seen, label.repeat(3))


# ------------------------------------------------------------------------------------------------------ score matching

MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=D), torch.tensor([0.3, 0.6], dtype=D))


def curved(x):
    return torch.stack([torch.sin(x[:, 1]) - x[:, 0], -x[:, 1] * x[:, 0].cos() - 0.3 * x[:, 1]], 1)


def straight(x):
    return -2.0 * x


def explicit_by_hand():
    """s = −A x: the trace is −tr A at every x."""
    a = torch.tensor([[1.0, 0.7], [-0.2, 2.0]], dtype=D)
    x = torch.randn(6, 2, generator=rng(), dtype=D)
    expected = -3.0 + 0.5 * ((x @ a.mT) ** 2).sum(1).mean()
    assert torch.allclose(explicit_score_matching(lambda t: -t @ a.mT, x), expected)


def test_explicit_by_hand():
    explicit_by_hand()


def test_the_implicit_identity_holds_with_one_constant_for_two_scores():
    differences = []
    generator = rng()
    for _ in range(60):
        x = MIXTURE.sample(500, generator)
        exact = MIXTURE.score(x)
        sides = [
            float(0.5 * (s(x) - exact).square().sum(1).mean() - explicit_score_matching(s, x).detach())
            for s in (curved, straight)
        ]
        differences.append(sides[0] - sides[1])
    assert z(differences) < 5
    constant = float(0.5 * exact.square().sum(1).mean())
    assert abs(sides[0] - constant) < 0.5 * abs(constant)


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_sliced_is_unbiased_for_explicit(variance_reduced):
    sliced_is_unbiased(variance_reduced)


def sliced_is_unbiased(variance_reduced=True):
    x = torch.randn(5, 2, generator=rng(), dtype=D)
    exact, generator = float(explicit_score_matching(curved, x).detach()), rng(1)
    options = {"variance_reduced": variance_reduced, "projections": 2}
    values = [float(sliced_score_matching(curved, x, generator, **options).detach()) for _ in range(600)]
    assert z(values, exact) < 5
    assert torch.tensor(values).std() > 0


def denoising_is_explicit_for_the_noised_density():
    """Both losses at the same noised draws, for two scores, so that the constant and most of the noise drop out."""
    generator, sigma, found = rng(), 0.5, []
    for _ in range(60):
        x = MIXTURE.sample(600, generator)
        state = generator.get_state()
        noised = x + sigma * torch.randn(x.shape, generator=generator, dtype=D)
        sides = []
        for s in (curved, straight):
            generator.set_state(state)
            denoising = float(denoising_score_matching(s, x, sigma, generator))
            sides.append(denoising - float(explicit_score_matching(s, noised).detach()))
        found.append(sides[0] - sides[1])
    assert z(found) < 5
    assert torch.tensor(found, dtype=D).std() / math.sqrt(60) < 0.03


def test_denoising_is_explicit_for_the_noised_density():
    denoising_is_explicit_for_the_noised_density()


def test_objectives_scale_with_the_units_and_reach_the_parameters():
    """The same data in other units give the same loss, and every parameter of the network a gradient."""
    x = MIXTURE.sample(50, rng())
    for kind in ("sliced", "explicit", "denoising"):
        values = []
        for factor in (1.0, 50.0):
            torch.manual_seed(0)
            model = EnergyModel(EnergyMLP(2, hidden=6, depth=1), (2,), objective=ScoreMatching(kind)).to(D)
            with torch.no_grad():
                model.core.net.last.weight.fill_(0.3)
            loss = model.loss(factor * x, rng(3))
            loss.backward()
            assert all(p.grad is not None for n, p in model.core.net.named_parameters() if n != "last.bias")
            values.append(float(loss.detach()))
        assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("kind", ["sliced", "explicit"])
def test_score_matching_finds_a_gaussian(kind):
    """The score of a model trained on N(m, C) is that of N(m, C): the network corrects a base that is wrong."""
    exact = Gaussian(torch.tensor([0.5, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]]))
    torch.manual_seed(0)
    model = EnergyModel(EnergyMLP(2, hidden=32, depth=2), (2,), objective=ScoreMatching(kind), loc=0.0, scale=1.0)
    x = exact.sample(500, rng(9))
    error = lambda: float((model.score(x) - exact.score(x)).detach().square().sum(1).mean())  # noqa: E731
    before = error()
    fit(model, exact.sample, steps=250, batch_size=256, lr=5e-3, ema=0.97, progress=False)
    assert error() < 0.1 * before


def test_score_matching_forms_refuse_wrong_numbers():
    x = torch.zeros(3, 2)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma"):
            denoising_score_matching(straight, x, sigma)
    with pytest.raises(ValueError, match="projections"):
        sliced_score_matching(straight, x, projections=0)
    with pytest.raises(ValueError, match="ratio"):
        noise_contrastive(x[:, 0], x[:, 0], 0.0)


# ---------------------------------------------------------------------------------------- calibration across levels


class Skewed(nn.Module):
    """Energy of a noised mixture, off by a ln σ + b (constants), masses c tanh(x₀) that drift with σ, and a factor."""

    def __init__(self, off=(0.0, 0.0, 0.0, 0.0)):
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=D))

    def forward(self, x, sigma):
        level = sigma if sigma.ndim else sigma.expand(len(x))
        masses = torch.tanh(x[:, 0]) * torch.exp(-level)
        wrong = self.off[0] * level.log() + self.off[1] + self.off[2] * masses
        return (1 + self.off[3]) * MIXTURE.energy(x, level) + wrong


def noised(off=(0.0, 0.0, 0.0, 0.0)):
    return term(Skewed(off), kind="energy", event_shape=(2,), path="noised", sigma_range=(0.1, 1.5))


def the_truth_is_a_stationary_point(batches=60, n=400):
    """Gradients of the cross-level loss in every direction of error vanish on average at the exact energies."""
    p, generator = noised(), rng()
    gradients = []
    for _ in range(batches):
        loss = cross_level_loss(p, MIXTURE.sample(n, generator), generator)
        gradients.append(torch.autograd.grad(loss, list(p.parameters()))[0])
    gradients = torch.stack(gradients)
    assert all(z(column) < 5 for column in gradients.mT), gradients.mean(0)
    assert bool((gradients.std(0) / math.sqrt(batches) < 0.02).all())


def test_the_truth_is_a_stationary_point_across_levels():
    the_truth_is_a_stationary_point()


def wrong_energies_cost_more():
    """Each planted error raises the loss; without the anchor a constant shared by all levels is free."""
    x = MIXTURE.sample(4000, rng())
    value = lambda off, **o: float(cross_level_loss(noised(off), x, rng(1), **o).detach())  # noqa: E731
    best = value((0.0, 0.0, 0.0, 0.0))
    for index, size in ((0, 0.6), (1, 0.6), (2, 1.0), (3, 0.3)):
        for sign in (1, -1):
            off = [0.0] * 4
            off[index] = sign * size
            assert value(off) > best + 0.004, off
    assert value((0.0, 0.6, 0.0, 0.0), anchor=0.0) == pytest.approx(value((0.0, 0.0, 0.0, 0.0), anchor=0.0))
    assert value((0.6, 0.0, 0.0, 0.0), anchor=0.0) > value((0.0, 0.0, 0.0, 0.0), anchor=0.0) + 0.004


def test_wrong_energies_cost_more():
    wrong_energies_cost_more()


MODES = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.04, 0.04]), [0.75, 0.25])
MISLED = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.04, 0.04]), [0.3, 0.7])


def left_mass_and_constants(model, levels=(0.1, 0.3, 1.0, 3.0)):
    """Mass left of the axis at the smallest level, and log Z at each, on a grid."""
    axis = torch.linspace(-12, 12, 481)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logs = [-model.energy(points, level).double() + 2 * math.log(24 / 480) for level in levels]
    return float(logs[0].softmax(0)[points[:, 0] < 0].sum()), [float(v.logsumexp(0)) for v in logs]


def test_masses_and_constants_of_a_diffusion_are_repaired():
    """Trained with wrong masses and offsets planted per level; denoising score matching alone leaves both."""
    torch.manual_seed(0)
    net = MLP(2, hidden=48, depth=2, out=1)
    model = EnergyDiffusion(net, (2,), sigma_data=1.0, sigma_range=(0.1, 3.0), noise=None)
    fit(model, MISLED.sample, steps=700, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    with torch.no_grad():  # an offset of the potential: gain(σ) · 0.5, which the score does not see
        net.last.bias += 0.5
    before, offsets = left_mass_and_constants(model)
    assert abs(before - 0.75) > 0.2
    assert max(abs(v) for v in offsets) > 0.6
    alone = copy.deepcopy(model)
    settings = {"steps": 400, "batch_size": 256, "lr": 3e-3, "ema": 0.98, "progress": False}
    fit(alone, MODES.sample, **settings)
    mass, left = left_mass_and_constants(alone)
    assert max(abs(mass - 0.75) / 0.06, *(abs(v) / 0.15 for v in left)) > 2
    fit(LevelCalibration(model, weight=2.0), MODES.sample, **settings)
    after, constants = left_mass_and_constants(model)
    assert abs(after - 0.75) < 0.06
    assert max(abs(v) for v in constants) < 0.15
    assert model.calibrated


def test_labels_are_calibrated_one_by_one():
    torch.manual_seed(0)
    net = MLP(2, hidden=8, depth=1, out=1, num_classes=3)
    model = EnergyDiffusion(net, (2,), num_classes=3, sigma_range=(0.1, 3.0))
    seen = []
    original = EnergyDiffusion._evaluate_views

    def spy(self, views, x, sigma, energy, score):
        seen.append(views[0].label)
        return original(self, views, x, sigma, energy, score)

    x, label = torch.randn(30, 2, generator=rng()), torch.arange(30) % 2
    tuner = LevelCalibration(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnergyDiffusion, "_evaluate_views", spy)
        tuner.loss((x, label), rng()).backward()
    assert seen.count(0) == seen.count(1) == seen.count(None) == 2
    assert tuner.metrics()["cross_level"] > 0


def test_calibration_names_what_it_cannot_take():
    with pytest.raises(MissingEnergy, match="only a score"):
        LevelCalibration(Diffusion(MLP(2, hidden=4), (2,)))
    with pytest.raises(TypeError, match="static"):
        LevelCalibration(small(2))
    with pytest.raises(ValueError, match="finite sigma_range"):
        cross_level_loss(MIXTURE, torch.zeros(4, 2, dtype=D), rng())
    with pytest.raises(TypeError, match="term"):
        LevelCalibration(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="gap"):
        cross_level_loss(noised(), torch.zeros(4, 2, dtype=D), rng(), gap=99.0)
    with pytest.raises(ValueError, match="weight"):
        LevelCalibration(EnergyDiffusion(MLP(2, hidden=4, out=1), (2,)), weight=-1.0)
