"""The score network of the historical recipe: its ladder, its loss, and what annealing is for."""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.models import NCSN, fit
from boltzmix.models.nets import MLP
from tests.contracts import Contract, contract_cases

D = torch.float64
MODES = bm.GaussianMixture(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), 0.09, [0.2, 0.8])


def share(x):
    """Of the draws, the part in the second mode."""
    return float((x.reshape(len(x), -1).sum(1) > 0).double().mean())


def ladder_is_geometric():
    p = NCSN(MLP(2), (2,), levels=10, sigma_range=(0.01, 1.0))
    ladder = p.ladder()
    assert ladder.tolist() == pytest.approx([10 ** (-2 * k / 9) for k in range(10)])
    sizes = p.step_sizes(2e-5)
    assert sizes.tolist() == pytest.approx([2e-5 * float(s) ** 2 / 0.01**2 for s in ladder])
    sigma = p._draw_levels(10_000, torch.Generator().manual_seed(0), torch.zeros(1, dtype=D))
    found, counts = sigma.log().mul(1e6).round().unique(return_counts=True)
    assert len(found) == 10
    assert counts.tolist() == [1000] * 10
    torch.testing.assert_close((found / 1e6).exp(), ladder.flip(0), rtol=1e-5, atol=0.0)


def test_training_visits_the_ladder_alone_and_evenly():
    ladder_is_geometric()


def loss_has_its_weight():
    r"""mean over levels of σ² ‖s + ε/σ‖² / D, for a network that returns 0: one at every level; for s = −x, by hand."""

    class Returned(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, c_noise, label=None):
            return self.factor * x

    data = torch.zeros(20_000, 2, dtype=D)
    for factor in (0.0, -1.0):
        p = NCSN(Returned(factor), (2,), levels=4, sigma_range=(0.1, 2.0)).double()
        want = ((1 + factor * p.ladder() ** 2) ** 2).mean()  # x = σ ε: σ² (factor σ ε + ε / σ)²
        found = float(p.loss(data, torch.Generator().manual_seed(0)))
        assert found == pytest.approx(float(want), rel=0.05)


def test_every_level_has_weight_sigma_squared():
    loss_has_its_weight()


def test_scaled_outputs_are_the_same_score():
    torch.manual_seed(0)
    net = MLP(2, hidden=8)
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(0.3 * torch.randn(q.shape))
    raw, scaled = (NCSN(net, (2,), parameterization=kind).double() for kind in ("score", "epsilon"))
    x = torch.randn(5, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(raw.score(x, 0.1), -0.1 * scaled.score(x, 0.1))
    torch.testing.assert_close(raw.score(x, 0.1), net(x, torch.full((5,), math.log(0.1) / 4, dtype=D)))


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    p = NCSN(MLP(2, hidden=64, depth=2), (2,), levels=10, sigma_range=(0.1, 8.0), parameterization="epsilon")
    fit(p, MODES.sample, steps=600, batch_size=256, lr=3e-3, ema=0.99, progress=False)
    return p.requires_grad_(False)


def langevin(p, x, sigmas, sizes, steps, generator):
    """Song and Ermon's algorithm 1."""
    for sigma, size in zip(sigmas.tolist(), sizes.tolist(), strict=True):
        for _ in range(steps):
            noise = torch.randn(x.shape, generator=generator)
            x = x + size / 2 * p.score(x, sigma) + math.sqrt(size) * noise
    return x


def test_annealing_recovers_the_weights_of_modes_and_one_level_does_not(learned):
    generator = torch.Generator().manual_seed(1)
    start = 8.0 * torch.randn(1000, 2, generator=generator)
    epsilon = 2e-3  # α_L = 0.2 σ_L²
    ladder, sizes = learned.ladder(), learned.step_sizes(epsilon)
    annealed = langevin(learned, start, ladder, sizes, 40, generator)
    assert share(annealed) == pytest.approx(0.8, abs=0.08)  # 4 standard errors are .05, the fit's own error below .03
    single = langevin(learned, start, ladder[-1:].expand(10), sizes[-1:].expand(10), 40, generator)
    assert abs(share(single) - 0.8) > 0.15
    # and it is not the network: the exact score of the same level does no better
    exact = langevin(MODES, start, ladder[-1:].expand(10), sizes[-1:].expand(10), 40, generator)
    assert abs(share(exact) - 0.8) > 0.15


def test_the_librarys_annealed_langevin_does_the_same(learned):
    draw = bm.sample(learned, 1000, sampler=bm.Annealed(levels=20, kernel=bm.ULA(step_size=1e-3), sweeps=20), seed=0)
    assert share(draw.x) == pytest.approx(0.8, abs=0.08)
    # close to the data, which one coordinate of the smaller mode's spread (.3, and the level's .1) says
    near = draw.x[draw.x.sum(1) > 0]
    assert float(near.std(0).mean()) == pytest.approx((0.09 + 0.01) ** 0.5, rel=0.3)


def contract_term():
    torch.manual_seed(0)
    net = MLP(2, hidden=8, depth=1, num_classes=2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return NCSN(net, (2,), num_classes=2, sigma_range=(0.1, 20.0)).given(label=1).double()


# no Hessian: the Jacobian of a score network is not symmetric
TERMS = {"ncsn": Contract(contract_term, levels=(None, 2.0), hessian=False)}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 1}, "levels"),
        ({"levels": True}, "levels"),
        ({"parameterization": "v"}, "Diffusion has others"),
        ({"schedule": "ve"}, "fixes schedule"),
        ({"noise": None}, "fixes noise"),
        ({"weight": "edm"}, "fixes weight"),
        ({"sigma_range": (1.0, 0.1)}, "VE's sigma"),
    ],
)
def test_wrong_calls(options, words):
    with pytest.raises(ValueError, match=words):
        NCSN(MLP(2), (2,), **options)


def test_wrong_step_sizes():
    with pytest.raises(ValueError, match="step_size"):
        NCSN(MLP(2), (2,)).step_sizes(0.0)
