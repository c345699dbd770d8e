"""Flow matching: the straight path as a noised term, optimal-transport pairs as a normalised flow."""

import itertools
import math

import pytest
import torch
from torch import nn

import boltzmix as bm
from boltzmix.models import FlowMatching, fit, log_likelihood
from boltzmix.models.flow_matching import pair
from boltzmix.models.nets import MLP
from tests.contracts import Contract, contract_cases

D = torch.float64
MEAN, VARIANCE = 0.75, 0.25


class Independent(nn.Module):
    """E[ε − x0 | x_t] for data N(MEAN, VARIANCE), centred, and independent noise."""

    def forward(self, x, c_noise, label=None):
        sigma = (4 * c_noise)[:, None].exp()
        t = sigma / (1 + sigma)
        return (t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t**2) * x


class Transported(nn.Module):
    """The same for optimal-transport pairs x0 = √VARIANCE ε: every path is a straight line of its own."""

    def forward(self, x, c_noise, label=None):
        sigma = (4 * c_noise).exp().reshape(-1, *[1] * (x.ndim - 1))
        t = sigma / (1 + sigma)
        spread = VARIANCE**0.5
        return (1 - spread) * x / ((1 - t) * spread + t)


def randomised(**options):
    torch.manual_seed(0)
    net = MLP(1, hidden=8, depth=1, num_classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return FlowMatching(net, (1,), num_classes=3, **options).double()


def velocity_gives_the_score():
    p = FlowMatching(Independent(), (3,), loc=MEAN).double()
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    sigma = torch.logspace(-2, 2, 7, dtype=D)
    torch.testing.assert_close(p.score(x, sigma), -(x - MEAN) / (VARIANCE + sigma[:, None] ** 2))
    torch.testing.assert_close(p.denoise(x, 1.0), MEAN + VARIANCE / (1 + VARIANCE) * (x - MEAN))


def test_velocity_gives_the_gaussians_score_at_every_level():
    velocity_gives_the_score()


def test_the_straight_path_has_the_gaussians_likelihood():
    p = FlowMatching(Independent(), (2,), loc=MEAN, sigma_data=0.5).double()
    exact = bm.Gaussian(torch.full((2,), MEAN, dtype=D), VARIANCE)
    x = exact.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_likelihood(p, x).log_prob, exact.log_prob(x, p.sigma_range[0]), rtol=0, atol=1e-2)


def test_it_is_a_noised_term_that_composes_and_samples():
    p = FlowMatching(Independent(), (2,), loc=MEAN, sigma_data=0.5)
    assert (p.path, p.has_energy, p.samplable) == ("noised", False, False)
    draw = bm.sample(p, 4000, sampler=bm.Reverse(steps=40), seed=0)
    z = (draw.x.double().mean(0) - MEAN) / (VARIANCE / 4000) ** 0.5
    assert float(z.abs().max()) < 5
    assert float(draw.x.var()) == pytest.approx(VARIANCE, rel=0.06)


# ------------------------------------------------------------------------------------------------- optimal transport


def pairs_are_optimal():
    """Against all permutations."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x0, noise = (torch.randn(6, 2, generator=generator, dtype=D) for _ in range(2))
        found = pair(x0, noise)
        assert sorted(found.tolist()) == list(range(6))
        cost = torch.cdist(x0, noise) ** 2
        best = min(sum(float(cost[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
        assert float(cost[torch.arange(6), found].sum()) == pytest.approx(best)


def test_pairs_are_optimal():
    pairs_are_optimal()


def pairs_keep_to_their_label():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(40, 2, generator=generator) for _ in range(2))
    label = torch.randint(-1, 3, (40,), generator=generator)
    found = pair(x0, noise, label)
    assert sorted(found.tolist()) == list(range(40))
    assert torch.equal(label[found], label)
    for k in range(-1, 3):
        rows = torch.nonzero(label == k)[:, 0]
        assert torch.equal(found[rows], rows[pair(x0[rows], noise[rows])])


def test_pairs_keep_to_their_label():
    pairs_keep_to_their_label()


def flow_has_the_gaussians_density():
    p = FlowMatching(Transported(), (2,), path="ot", loc=MEAN, t_range=(1e-6, 1 - 1e-6)).double()
    exact = bm.Gaussian(torch.full((2,), MEAN, dtype=D), VARIANCE)
    x = exact.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(p.score(x), exact.score(x), rtol=1e-4, atol=1e-4)


def test_the_flow_of_transported_pairs_has_the_gaussians_density():
    flow_has_the_gaussians_density()


def test_draws_are_those_of_the_density():
    p = FlowMatching(Transported(), (1,), path="ot", loc=MEAN).double()
    x = p.sample(20_000, torch.Generator().manual_seed(0)).double()
    assert float(x.mean()) == pytest.approx(MEAN, abs=5 * (VARIANCE / 20_000) ** 0.5 + 1e-3)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=5 * (2 / 20_000) ** 0.5 + 2e-3)


def test_the_velocity_of_transported_pairs_is_no_score():
    """Read as if noise were independent, it would claim another density at every level: so no score is offered."""
    read = FlowMatching(Transported(), (1,), loc=MEAN).double()
    x = torch.full((1, 1), MEAN + 1.0, dtype=D)
    assert abs(float(read.score(x, 1.0)) + 1 / (1 + VARIANCE)) > 0.1
    p = FlowMatching(Transported(), (1,), path="ot", loc=MEAN)
    for call in (lambda: p.denoise(x.float(), 1.0), lambda: p.coarse(10.0), lambda: log_likelihood(p, x.float())):
        with pytest.raises(TypeError, match="static"):
            call()
    with pytest.raises(TypeError, match="static"):
        bm.sample(p, 4, sampler=bm.Reverse(steps=2), seed=0)
    assert (p * bm.Gaussian(torch.zeros(1), 1.0)).path == "annealed"


def loss_pairs_by_transport():
    """The exact transported velocity has a small loss in large batches, and none of the independent kind reaches it."""
    data = MEAN + VARIANCE**0.5 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    losses = {
        (path, type(net).__name__): float(
            FlowMatching(net, (1,), path=path, loc=MEAN).double().loss(data, torch.Generator().manual_seed(1))
        )
        for path in ("ot", "linear")
        for net in (Transported(), Independent())
    }
    assert losses["ot", "Transported"] < 0.02
    assert losses["ot", "Independent"] > 0.05
    assert losses["linear", "Independent"] < losses["linear", "Transported"]


def test_the_loss_pairs_by_transport():
    loss_pairs_by_transport()


def test_a_short_fit_of_either_path():
    """Two modes of weights .3 and .7 on a line: masses from the density of "ot", and from draws of both."""
    exact = bm.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.05, [0.3, 0.7])
    for path in ("linear", "ot"):
        torch.manual_seed(0)
        p = FlowMatching(MLP(1, hidden=32, depth=1), (1,), path=path, sigma_data=1.0, steps=16)
        fit(p, exact.sample, steps=300, batch_size=128, lr=1e-2, ema=0.99, progress=False)
        draws = (
            p.sample(2000, torch.Generator().manual_seed(1))
            if path == "ot"
            else bm.sample(p, 2000, sampler=bm.Reverse(steps=30), seed=1).x
        )
        assert float((draws < 0).float().mean()) == pytest.approx(0.3, abs=0.06)  # the fit's own error is near .02
        if path == "ot":
            grid = torch.linspace(-3, 3, 301)[:, None]
            with torch.no_grad():
                mass = p.log_prob(grid).exp() * 0.02
            assert float(mass.sum()) == pytest.approx(1.0, abs=0.01)
            assert float(mass[:151].sum()) == pytest.approx(0.3, abs=0.06)
            x = exact.sample(500, torch.Generator().manual_seed(2))
            with torch.no_grad():
                assert float((exact.log_prob(x) - p.log_prob(x)).mean()) < 0.15


TERMS = {
    "ot": Contract(lambda: randomised(path="ot", steps=8), tolerance=1e-6),
    "ot-label": Contract(lambda: randomised(path="ot", steps=4, method="heun").given(label=1), tolerance=1e-6),
}
FAST = {"shapes", "rows", "state", "score_is_gradient", "hessian", "copies", "static"}


@pytest.mark.parametrize(
    ("check", "contract"),
    [p for p in contract_cases(TERMS) if "ot-label" not in str(p.id) or str(p.id).removeprefix("ot-label-") in FAST],
)
def test_contract(check, contract):
    if check.__name__ in ("check_samples", "check_stein"):
        made = contract.make().requires_grad_(False)
        contract = Contract(lambda: made, tolerance=1e-6)
    check(contract)


def test_conditions_are_views_of_one_flow():
    p = randomised(path="ot", steps=4)
    x = torch.randn(6, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    found = [p.given(label=k).log_prob(x) for k in range(3)]
    assert not torch.allclose(found[0], found[1])
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = p.given(label=label).log_prob(x)
    torch.testing.assert_close(rows, torch.stack(found)[label, torch.arange(6)])
    assert p.given(label=1).key() == p.given(label=1).key() != p.key()
    assert p.given(label=1).normalized
    product = p.given(label=0) * p.given(label=1)
    torch.testing.assert_close(product.energy(x), -(found[0] + found[1]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "curved"}, "path is"),
        ({"parameterization": "v"}, "its own parameterization"),
        ({"schedule": "ddpm"}, "its own schedule"),
        ({"path": "ot", "weight": "elbo"}, "leave it out"),
        ({"t_range": (0.0, 1.0)}, "FlowMatching's t"),
        ({"method": "rk45"}, "method"),
        ({"steps": 0}, "steps"),
    ],
)
def test_wrong_calls(options, words):
    with pytest.raises(ValueError, match=words):
        FlowMatching(MLP(2), (2,), **options)


def test_labels_with_transport_train_and_batches_are_checked():
    p = randomised(path="ot", steps=4, dropout=0.3).float()
    label = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(0))
    data = torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    first, again = (float(p.loss((data, label), torch.Generator().manual_seed(2)).detach()) for _ in range(2))
    assert first == again
    assert math.isfinite(first)
    with pytest.raises(ValueError, match="shape"):
        p.loss(torch.zeros(4, 2), torch.Generator())
    assert p.path == "static"
