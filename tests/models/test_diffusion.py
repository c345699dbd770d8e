"""Laws of the diffusion families: closed forms, one forward for many conditions, graphs, labels."""

import math

import pytest
import torch
from torch import nn

from boltzmix.compose import GaussianMixture
from boltzmix.models import Diffusion, EnergyDiffusion, FlowMatching, data, load
from boltzmix.models.nets import MLP, DiT, UNet


class Counted(nn.Module):
    """A network that remembers the rows of each call."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows = net, []
        self.scalar, self.num_classes = net.scalar, net.num_classes

    def forward(self, x, c_noise, label=None):
        self.rows.append(len(x))
        return self.net(x, c_noise, label)


def randomised(net, seed=0):
    """A network whose zero-initialised layers do something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return net


def vector_energy(**options):
    net = randomised(MLP(3, hidden=16, depth=2, out=1, num_classes=4))
    return EnergyDiffusion(net, (3,), num_classes=4, sigma_range=(0.05, 20.0), loc=0.3, **options).double()


def image_energy(**options):
    net = randomised(UNet(1, hidden=(8, 16), attention=True, num_classes=4))
    return EnergyDiffusion(net, (1, 4, 4), num_classes=4, sigma_range=(0.05, 20.0), **options).double()


def patch_energy(**options):
    net = randomised(DiT(1, size=4, patch=2, width=8, depth=1, heads=2, num_classes=4))
    return EnergyDiffusion(net, (1, 4, 4), num_classes=4, sigma_range=(0.05, 20.0), **options).double()


def patch_velocity(**options):
    net = randomised(DiT(1, size=4, patch=2, width=8, depth=1, heads=2, num_classes=4))
    return FlowMatching(net, (1, 4, 4), num_classes=4, **options).double()


def image_v(**options):
    net = randomised(UNet(1, hidden=(8, 16), attention=(0, 1), num_classes=4))
    return Diffusion(net, (1, 4, 4), parameterization="v", schedule="cosine", num_classes=4, **options).double()


def vector_score(**options):
    net = randomised(MLP(3, hidden=16, depth=2, num_classes=4))
    return Diffusion(net, (3,), num_classes=4, sigma_range=(0.05, 20.0), loc=0.3, **options).double()


FAMILIES = {
    "vector energy": vector_energy,
    "image energy": image_energy,
    "patch energy": patch_energy,
    "vector score": vector_score,
    "image v": image_v,
    "patch velocity": patch_velocity,
}
ENERGIES = {k: v for k, v in FAMILIES.items() if "energy" in k}


def states(p, n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *p.event_shape, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-1, 1, n, dtype=torch.float64)
    return x, sigma


@pytest.mark.parametrize("detail", [0.0, 0.2])
@pytest.mark.parametrize("family", ENERGIES.values(), ids=ENERGIES)
def test_score_is_minus_the_gradient_of_the_energy(family, detail):
    p = family(sigma_detail=detail).given(label=2)
    x, sigma = states(p)
    energy, score = p.energy_and_score(x, sigma)
    torch.testing.assert_close(p.energy(x, sigma), energy)
    for i in range(x[0].numel()):
        step = torch.zeros_like(x).flatten(1)
        step[:, i] = 1e-6
        step = step.reshape(x.shape)
        slope = (p.energy(x + step, sigma) - p.energy(x - step, sigma)) / 2e-6
        torch.testing.assert_close(score.flatten(1)[:, i].detach(), -slope.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_many_conditions_cost_one_forward_and_equal_separate_calls(family, per_row):
    p = family()
    p.core.net = counted = Counted(p.core.net)
    x, sigma = states(p)
    sigma = sigma if per_row else sigma[2]
    terms = [p.given(label=3), p, p.given(label=0), p.given(label=torch.tensor([0, 1, 2, 3, 0, 1]))]
    together = p._evaluate_together(terms, x, sigma, True, True)
    assert counted.rows == [len(terms) * len(x)]
    for term, (energy, score) in zip(terms, together, strict=True):
        torch.testing.assert_close(score, term.score(x, sigma))
        if p.has_energy:
            torch.testing.assert_close(energy, term.energy(x, sigma))
            assert p._evaluate_together(terms, x, sigma, True, False)[0][1] is None
        else:
            assert energy is None
    assert not torch.allclose(together[0][1], together[1][1])


class Optimal(nn.Module):
    """What a network of N(MEAN, VARIANCE) learns in three dimensions, times a factor: F, or g with F = −∇g."""

    def __init__(self, energy, detail, factor=1.0):
        super().__init__()
        self.scalar, self.detail, self.factor = energy, detail, factor

    def forward(self, x, c_noise, label=None):
        sigma = (4 * c_noise).exp()[:, None]
        spread2 = sigma**2 + SIGMA_DATA**2
        gain = SIGMA_DATA / (sigma**2 + self.detail**2).sqrt()
        curvature = (spread2 / (sigma**2 + VARIANCE) - 1) / gain  # of g in x_in
        if not self.scalar:
            return -self.factor * curvature * x
        constant = 3 / 2 * ((sigma**2 + VARIANCE) / spread2).log() / gain
        return self.factor * (0.5 * curvature * x.square().sum(1, keepdim=True) + constant)


SIGMA_DATA, VARIANCE, MEAN = 0.6, 0.7, 0.4


def optimal(energy, detail=0.0, factor=1.0, **options):
    family = EnergyDiffusion if energy else Diffusion
    options = {"sigma_data": SIGMA_DATA, "sigma_detail": detail, "loc": MEAN, "sigma_range": (0.01, 50.0), **options}
    return family(Optimal(energy, detail, factor), (3,), **options).double()


@pytest.mark.parametrize("detail", [0.0, 0.1])
@pytest.mark.parametrize("energy", [False, True])
def test_gaussian_data_have_the_exact_optimum(energy, detail):
    """For N(m, v) the optimal F is linear in x_in; with it, score and energy are the Gaussian's at every σ."""
    p = optimal(energy, detail)
    x, sigma = states(p)
    total = sigma[:, None] ** 2 + VARIANCE
    torch.testing.assert_close(p.score(x, sigma), -(x - MEAN) / total)
    torch.testing.assert_close(p.denoise(x, sigma), MEAN + VARIANCE / total * (x - MEAN))
    if energy:
        exact = ((x - MEAN) ** 2 / (2 * total)).sum(1) + 3 / 2 * (2 * math.pi * total[:, 0]).log()
        torch.testing.assert_close(p.energy(x, sigma), exact)


def least_factor(energy, detail=0.0, level_weight=0.0):
    """The factor on the optimal network at which the loss of Gaussian data, a parabola, is least."""
    options = {"level_weight": level_weight} if energy else {}
    data = MEAN + VARIANCE**0.5 * torch.randn(
        100_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    low, middle, high = (
        float(optimal(energy, detail, k, **options).loss(data, torch.Generator().manual_seed(1)).detach())
        for k in (0.0, 1.0, 2.0)
    )
    return 1 - (high - low) / (2 * (high - 2 * middle + low))


@pytest.mark.parametrize("detail", [0.0, 0.1])
@pytest.mark.parametrize(("energy", "level_weight"), [(False, 0.0), (True, 0.0), (True, 1.0), (True, 1000.0)])
def test_the_loss_is_least_at_the_exact_optimum(energy, level_weight, detail):
    """Of each regression alone and of both: the residual is the irreducible part, uncorrelated with F."""
    assert abs(least_factor(energy, detail, level_weight) - 1) < 0.05  # about 4 standard errors of the slope


def test_energy_differences_agree_with_the_exact_density_on_a_grid():
    """A trained energy on the plane, against the closed form of its data at three levels, where there is mass."""
    means, variance, weights = data.components("ring")
    exact = GaussianMixture(means.double(), variance, weights.double())
    p = load("ring").double()
    axis = torch.linspace(-1.6, 1.6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for sigma in (0.05, 0.3, 1.0):
        want = exact.energy(grid, sigma)
        weight = (-want).softmax(0)
        gap = p.energy(grid, sigma).detach() - want
        gap = gap - (weight * gap).sum()
        assert float((weight * gap**2).sum().sqrt()) < 0.1
        # the same on the grid alone: both, normalised there, are one distribution
        found = (-p.energy(grid, sigma).detach()).softmax(0)
        assert float((found - weight).abs().sum()) < 0.1


def test_karras_coefficients():
    """The implied denoiser is c_skip x + c_out F with F = −∇g, Karras et al.'s table 1."""
    p, sigma_data = vector_energy(), 0.5
    x, sigma = states(p)
    level, c = sigma[:, None], x - 0.3
    spread = (level**2 + sigma_data**2).sqrt()
    x_in = (c / spread).detach().requires_grad_()
    (slope,) = torch.autograd.grad(p.core.net(x_in, sigma.log() / 4, None).sum(), x_in)
    want = 0.3 + sigma_data**2 / spread**2 * c + level * sigma_data / spread * -slope
    torch.testing.assert_close(p.denoise(x, sigma).detach(), want)


def test_an_inner_product_is_the_potential():
    """With a network shaped like x, E = −log N(x; 0, s²) + (σ_d / σ) ⟨x_in, f(x_in)⟩."""
    p, sigma = image_energy(), 0.7
    x, _ = states(p)
    spread = math.sqrt(sigma**2 + 0.25)
    centred = x - p.core.loc
    inner = centred / spread * p.core.net(centred / spread, torch.full((len(x),), math.log(sigma) / 4).double(), None)
    base = 0.5 * centred.flatten(1).square().sum(1) / spread**2 + x[0].numel() / 2 * math.log(2 * math.pi * spread**2)
    torch.testing.assert_close(p.energy(x, sigma), base + 0.5 / sigma * inner.flatten(1).sum(1))


def test_float32_score_at_small_noise():
    net = randomised(MLP(3, hidden=16))
    single = Diffusion(net, (3,), sigma_range=(0.002, 80.0))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    found = single.score(x, 0.002).detach()
    want = single.double().score(x.double(), 0.002).detach()
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_double_backward(family):
    p = family()
    x, sigma = states(p)
    x.requires_grad_()
    score = p.given(label=1).score(x, sigma)
    (twice,) = torch.autograd.grad(score.square().sum(), x)
    shift = torch.zeros_like(x).flatten(1)
    shift[:, 0] = 1e-6
    shift = shift.reshape(x.shape)
    with torch.no_grad():
        up, down = (p.given(label=1).score(x + e, sigma).square().flatten(1).sum(1) for e in (shift, -shift))
    torch.testing.assert_close(twice.flatten(1)[:, 0], (up - down) / 2e-6, rtol=1e-5, atol=1e-5)
    p.score(x, sigma).square().sum().backward()
    assert all(q.grad is not None for n, q in p.core.net.named_parameters() if "last.bias" not in n)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_graph_only_on_request_and_nothing_changes_in_the_network(family):
    p = family()
    x, sigma = states(p)
    p.train()
    modes = [m.training for m in p.modules()]
    weights = {k: v.clone() for k, v in p.state_dict().items()}
    assert p.score(x, sigma).requires_grad  # parameters need it
    with torch.no_grad():
        assert not p.score(x, sigma).requires_grad
        if p.has_energy:
            energy, score = p.energy_and_score(x, sigma)
            assert not energy.requires_grad
            assert not score.requires_grad
    p.requires_grad_(False)
    assert not p.score(x, sigma).requires_grad
    if p.has_energy:
        energy, score = p.energy_and_score(x, sigma)
        assert not energy.requires_grad
        assert not score.requires_grad
    assert p.score(x.clone().requires_grad_(), sigma).requires_grad
    assert not x.requires_grad
    assert [m.training for m in p.modules()] == modes
    assert not any(q.requires_grad for q in p.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in p.state_dict().items())
    assert all(q.grad is None for q in p.parameters())


def test_conditions_share_the_network_and_merge_by_label():
    p = vector_energy()
    a, b = p.given(label=1), p.given(label=1)
    assert a is not b
    assert a.key() == b.key() != p.key()
    assert p.given(label=2).key() != a.key()
    assert a._group() == p._group()
    assert next(iter(a.parameters())) is next(iter(p.parameters()))
    assert p.label is None
    assert "labels" not in p.state_dict()
    assert p.given(label=torch.tensor(1)).key() == a.key()
    rows = p.given(label=torch.tensor([1, 2]))
    assert torch.equal(rows.state_dict()["labels"], torch.tensor([1, 2]))
    assert rows.key() == p.given(label=torch.tensor([1, 2])).key()
    p.float()  # converts what both views share
    assert a.core.loc.dtype == torch.float32


def test_unconditional_is_the_null_class():
    p = vector_score()
    x, sigma = states(p)
    net, c_noise = p.core.net, sigma.log() / 4
    null = torch.full((len(x),), -1)
    torch.testing.assert_close(net(x, c_noise, None), net(x, c_noise, null))
    for label in range(4):
        assert not torch.allclose(net(x, c_noise, None), net(x, c_noise, torch.full((len(x),), label)))


@pytest.mark.parametrize(
    ("label", "error", "words"),
    [
        (4, ValueError, r"\[0, 4\)"),
        (-1, ValueError, r"\[0, 4\)"),
        (True, TypeError, "int"),
        (1.0, TypeError, "int"),
        ("cat", TypeError, "int"),
        (torch.tensor([0, 4]), ValueError, r"\[0, 4\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "float"),
        (torch.tensor([True, False]), TypeError, "bool"),
        (torch.zeros(2, 2, dtype=torch.long), TypeError, "row"),
        (torch.tensor(True), TypeError, "bool"),
        (torch.tensor(4), ValueError, r"\[0, 4\)"),
    ],
)
def test_wrong_labels(label, error, words):
    with pytest.raises(error, match=words):
        vector_energy().given(label=label)


def test_wrong_calls():
    p = vector_energy()
    x, _ = states(p)
    with pytest.raises(TypeError, match="label"):
        p.given(prompt="a cat")
    with pytest.raises(ValueError, match="already"):
        p.given(label=1).given(label=2)
    with pytest.raises(ValueError, match="2 labels, one per particle, and got 6"):
        p.given(label=torch.tensor([0, 1])).score(x, 1.0)
    with pytest.raises(ValueError, match=r"\[0.05, 20\]"):
        p.score(x, 0.01)
    with pytest.raises(TypeError, match="float64 weights"):
        p.score(x.float(), 1.0)
    with pytest.raises(TypeError, match="none"):
        Diffusion(MLP(2), (2,)).given(label=1)
    with pytest.raises(ValueError, match="num_classes=3"):
        Diffusion(MLP(2, num_classes=3), (2,))
    with pytest.raises(ValueError, match="sigma_range"):
        Diffusion(MLP(2), (2,), sigma_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="out=1"):
        EnergyDiffusion(MLP(2), (2,), readout="scalar").energy(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="inner"):
        EnergyDiffusion(MLP(2, out=1), (2,), readout="inner").energy(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no labels|takes none"):
        Diffusion(MLP(2), (2,)).loss((torch.zeros(3, 2), torch.zeros(3).long()), torch.Generator())


def test_an_energy_is_calibrated_only_where_somebody_checked():
    assert not vector_energy(level_weight=1.0).calibrated
    assert vector_energy(calibrated=True).given(label=1).calibrated


def test_no_noise_level_means_the_smallest():
    p = vector_energy()
    x, _ = states(p)
    torch.testing.assert_close(p.score(x), p.score(x, 0.05))


def test_noise_levels_are_log_normal_within_the_range():
    p = Diffusion(MLP(2), (2,), noise=(-1.0, 0.5), sigma_range=(1e-4, 1e3))
    log_sigma = p._draw_levels(4096, torch.Generator().manual_seed(0), torch.zeros(1)).double().log()
    assert abs(float(log_sigma.mean()) + 1.0) < 0.01  # stratified: far below 0.5 / 64
    assert abs(float(log_sigma.std()) - 0.5) < 0.01
    p = Diffusion(MLP(2), (2,), noise=(0.0, 2.0), sigma_range=(math.exp(-1), math.exp(1)))
    log_sigma = p._draw_levels(4096, torch.Generator().manual_seed(0), torch.zeros(1)).double().log()
    assert abs(float(log_sigma.std()) - 0.5677) < 0.002  # of a normal truncated at half its standard deviation
    p = Diffusion(MLP(2), (2,), noise=None, sigma_range=(0.1, 10.0))
    sigma = p._draw_levels(4096, torch.Generator().manual_seed(0), torch.zeros(1))
    assert 0.1 <= float(sigma.min()) < 0.102
    assert 9.8 < float(sigma.max()) <= 10.0
    assert abs(float(sigma.log().mean())) < 0.01


def test_dropout_hides_labels_at_its_rate():
    seen = []
    p = Diffusion(MLP(2, hidden=8, num_classes=3), (2,), num_classes=3, dropout=0.3)
    p.core.net.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    p.loss((torch.zeros(20_000, 2), torch.ones(20_000).long()), torch.Generator().manual_seed(0))
    hidden = (seen[0] == -1).double().mean()
    assert abs(float(hidden) - 0.3) < 4 * (0.21 / 20_000) ** 0.5  # 4 standard errors
    assert set(seen[0].tolist()) == {-1, 1}


def test_level_loss_sees_an_offset_between_levels():
    """Denoising score matching cannot see a constant c(σ) in the energy; the regression on ∂E/∂ln σ can."""

    class Offset(nn.Module):
        scalar = True

        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, x, c_noise, label=None):
            sigma = (4 * c_noise).exp()
            return (self.slope * 4 * c_noise * sigma / 0.5)[:, None] + 0 * x.sum(1, keepdim=True)

    def losses(weight):
        data = 0.5 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
        return [
            float(
                EnergyDiffusion(Offset(s), (2,), level_weight=weight)
                .loss(data, torch.Generator().manual_seed(1))
                .detach()
            )
            for s in (0.0, 1.0)
        ]

    blind, seeing = losses(0.0), losses(1.0)
    assert blind[0] == pytest.approx(blind[1])
    assert seeing[1] - seeing[0] == pytest.approx(1 / 4, abs=0.1)  # slope² / (2 D)


def test_rows_of_labels_keep_to_their_rows() -> None:
    import boltzmix as bm

    p = vector_energy().given(label=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="condition for each draw"):
        bm.sample(p, 4, sampler=bm.SMC(), seed=0)
    for sampler in (bm.Annealed(levels=2), bm.Reverse(steps=2)):
        assert bm.sample(p, 4, sampler=sampler, seed=0).x.shape == (4, *p.event_shape)
