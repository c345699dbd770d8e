"""Energies of transitions: conditional moments on linear-Gaussian data, outcomes that no Gaussian has, noised ones."""

import json
import math

import pytest
import torch

from boltzmix.compose import Gaussian
from boltzmix.models import Dynamics, EnergyDiffusion, GaussianBase, NoisedTransitionNet, TransitionEnergy, fit
from boltzmix.models.load import build
from boltzmix.models.nets import EnergyMLP
from boltzmix.models.transition_energy import Following, StepFeatures
from tests.contracts import Contract, contract_cases

D = torch.float64
DRIFT, PUSH, NOISE = 0.9, 0.5, 0.2


def linear(n, seed=0):
    """s' = 0.9 s + 0.5 a + 0.2 w with standard normal s and a: numbers, ``(n, 1)`` each."""
    rng = torch.Generator().manual_seed(seed)
    s, a, w = torch.randn(3, n, 1, generator=rng)
    return s, a, DRIFT * s + PUSH * a + NOISE * w


def excited(model, seed=1):
    rng = torch.Generator().manual_seed(seed)
    model = model.to(D)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng, dtype=D))
    return model


def joint():
    torch.manual_seed(0)
    return excited(TransitionEnergy(1, 1, hidden=8, loc=0.0, scale=1.0))


def conditional():
    torch.manual_seed(0)
    return excited(TransitionEnergy(1, 1, base=Dynamics(1, 1, hidden=8), hidden=8))


TERMS = {
    "joint": Contract(joint),
    "conditional": Contract(conditional),
    "noised": Contract(
        lambda: excited(EnergyDiffusion(NoisedTransitionNet(1, 1, gain=3.0, hidden=8), (3,))), tolerance=1e-5
    ),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------------------- formulas


def features_by_hand():
    """The network is shown (s, a, s' − s) in units of its own spread."""
    seen = []

    class Spy(torch.nn.Module):
        num_classes = None

        def forward(self, x, label=None):
            seen.append(x)
            return x.sum(1)

    net = StepFeatures(Spy(), 1, 1).to(D)
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=D) * torch.tensor([2.0, 3.0, 2.0]) + 1
    net.take_units(x)
    net(x, None)
    z = torch.stack([x[:, 0], x[:, 1], x[:, 2] - x[:, 0]], 1)
    assert torch.allclose(seen[0], (z - z.mean(0)) / z.std(0, correction=0))


def test_the_network_sees_the_change():
    features_by_hand()


def conditional_adds_to_the_dynamics():
    """E = f + c − log q(s' | s, a), with q the dynamics' own density."""
    model = conditional()
    s, a, y = (t.to(D) for t in linear(6))
    x = model.join(s, a, y)
    q = model.core.base.dynamics.energy({"state": s, "action": a, "next": y})
    found = model.energy(x).detach()
    tilt = model.core.tilt(x).detach() + model.core.log_z.detach()
    assert torch.allclose(found, tilt + q)


def test_conditional_energy_adds_to_the_dynamics():
    conditional_adds_to_the_dynamics()


def noise_changes_the_outcome_alone():
    """Noise of the conditional objective keeps (s, a) and draws s' from the base: |z| < 5 for its mean and variance."""
    base = Following(Dynamics(1, 1, hidden=8).to(D))
    s, a, y = (t.to(D)[:1] for t in linear(1))
    n = 4_000
    x = torch.cat([s, a, y], 1).expand(n, -1)
    drawn = base.redraw(x, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, :2], x[:, :2])
    mean, spread = (t[0, 0, 0] for t in base.dynamics.moments(state=s, action=a))
    z = ((drawn[:, 2] - mean) / spread).detach()
    assert abs(float(z.mean())) * math.sqrt(n) < 5
    assert abs(float(z.var()) - 1) * math.sqrt(n / 2) < 5


def test_noise_changes_the_outcome_alone():
    noise_changes_the_outcome_alone()


def conditional_loss_by_hand():
    """Without a tilt the two are the same density: softplus(log ν) for data, ν times softplus(−log ν) for noise."""
    model = TransitionEnergy(1, 1, base=Dynamics(1, 1, hidden=8), hidden=8, ratio=4)
    value = float(model.loss(linear(32), torch.Generator().manual_seed(0)).detach())
    assert value == pytest.approx(math.log(5) + 4 * math.log(1.25), abs=1e-5)
    with torch.no_grad():
        model.core.log_z.fill_(0.7)  # now the ratio is −0.7 everywhere
    value = float(model.loss(linear(32), torch.Generator().manual_seed(0)).detach())
    assert value == pytest.approx(math.log(1 + 4 * math.exp(0.7)) + 4 * math.log(1 + math.exp(-0.7) / 4), abs=1e-5)


def test_conditional_loss_by_hand():
    conditional_loss_by_hand()


def test_noised_network_is_shown_the_change():
    net = NoisedTransitionNet(1, 1, gain=3.0, hidden=8)
    seen = {}
    net.net.register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    x = torch.tensor([[1.0, 2.0, 1.5]])
    net(x, torch.zeros(1))
    assert seen["x"].tolist() == [[1.0, 2.0, 1.5, 1.5]]


# ------------------------------------------------------------------------------------------------------------- learning


def moments_given(model, s, a):
    """Mean, standard deviation and integral of exp(−E) over s' at one (s, a), on a grid."""
    grid = torch.linspace(-4, 4, 4001)
    x = torch.stack([torch.full_like(grid, s), torch.full_like(grid, a), grid], 1)
    with torch.no_grad():
        logs = -model.energy(x).double()
    mass = logs.exp() * (8 / 4000)
    p = mass / mass.sum()
    mean = float((p * grid).sum())
    return mean, math.sqrt(float((p * (grid - mean) ** 2).sum())), float(mass.sum())


POINTS = [(0.0, 0.0), (1.0, -0.5), (-0.7, 1.0)]


@pytest.mark.slow
def test_joint_energy_has_the_conditional_moments():
    """A diagonal base knows nothing of the dynamics, so the network has to: mean within 0.05, spread within 15 %."""
    torch.manual_seed(0)
    model = TransitionEnergy(1, 1, base=GaussianBase((3,)), ratio=8, hidden=48)
    fit(model, linear(20_000), steps=1_200, batch_size=256, lr=5e-3, ema=0.99, progress=False)
    for s, a in POINTS:
        mean, spread, _ = moments_given(model, s, a)
        assert mean == pytest.approx(DRIFT * s + PUSH * a, abs=0.05)
        assert spread == pytest.approx(NOISE, rel=0.15)


def test_conditional_energy_is_the_normalised_conditional():
    """On a base that is untrained and too wide the network learns p(s' | s, a), its integral 1 for every (s, a)."""
    torch.manual_seed(0)
    base = Dynamics(1, 1, hidden=8)
    base.prepare(linear(2_000, 5), torch.Generator())
    model = TransitionEnergy(1, 1, base=base, ratio=4, hidden=48)
    fit(model, linear(20_000), steps=700, batch_size=256, lr=5e-3, ema=0.99, progress=False)
    for s, a in POINTS:
        mean, spread, mass = moments_given(model, s, a)
        assert mean == pytest.approx(DRIFT * s + PUSH * a, abs=0.05)
        assert spread == pytest.approx(NOISE, rel=0.15)
        assert mass == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
def test_two_outcomes_where_a_gaussian_has_one():
    """s' = s ± 1: learned dynamics put their mean between the outcomes; the energy finds both, with equal mass."""
    rng = torch.Generator().manual_seed(0)
    s, w = torch.randn(2, 8_000, 1, generator=rng)
    y = s + 2.0 * (torch.rand(8_000, 1, generator=rng) < 0.5) - 1 + 0.1 * w
    torch.manual_seed(0)
    base = Dynamics(1, hidden=16)
    fit(base, (s, y), steps=200, batch_size=256, lr=5e-3, progress=False)
    assert float(base.predict(torch.zeros(1, 1))) == pytest.approx(0.0, abs=0.15)
    model = TransitionEnergy(1, base=base, hidden=48)
    fit(model, (s, y), steps=600, batch_size=256, lr=5e-3, ema=0.99, progress=False)
    grid = torch.linspace(-2.5, 2.5, 1001)
    with torch.no_grad():
        p = (-model.energy(torch.stack([torch.zeros(1001), grid], 1))).double().softmax(0)
    right = float(p[grid > 0].sum())
    assert 0.4 < right < 0.6
    assert float((p[grid > 0] * grid[grid > 0]).sum() / right) == pytest.approx(1.0, abs=0.05)
    assert float(p[grid.abs() < 0.4].sum()) < 0.02


@pytest.mark.slow
def test_noised_energy_matches_the_conditional_of_noised_data():
    """EnergyDiffusion over (s, a, s') at σ: the score of the Gaussian of noised transitions, within 6 %."""
    torch.manual_seed(0)
    net = NoisedTransitionNet(1, 1, gain=2.0, hidden=64)
    model = EnergyDiffusion(net, (3,), sigma_data=1.0, sigma_range=(0.05, 5.0))
    x = torch.cat(linear(20_000), 1)
    fit(model, x, steps=2_000, batch_size=256, lr=2e-3, ema=0.99, progress=False)
    one = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [DRIFT, PUSH, NOISE]])
    for sigma in (0.1, 0.5, 2.0):
        truth = Gaussian(torch.zeros(3), one @ one.T + sigma**2 * torch.eye(3))
        points = truth.sample(2_000, torch.Generator().manual_seed(1))
        wanted = truth.score(points)
        error = (model.score(points, sigma) - wanted).square().mean() / wanted.square().mean()
        assert float(error.sqrt()) < 0.06


def test_save_and_build():
    spec = {
        "class": "TransitionEnergy",
        "arguments": {
            "state": 1, "action": 1, "hidden": 8,
            "base": {"class": "Dynamics", "arguments": {"state": 1, "action": 1, "hidden": 8}},
        },
    }  # fmt: skip
    model = build(json.loads(json.dumps(spec)))
    model.loss(linear(50), torch.Generator().manual_seed(0))
    twin = build(json.loads(json.dumps(spec)))
    twin.load_state_dict(model.state_dict())
    x = torch.cat(linear(6), 1)
    assert torch.equal(twin.energy(x), model.energy(x))
    assert not any(p.requires_grad for p in model.core.base.parameters())


# ---------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TransitionEnergy(0), "size of state"),
        (lambda: TransitionEnergy(1, base="uniform"), "base is"),
        (lambda: TransitionEnergy(2, 1, base=Dynamics(1, 1)), "sizes"),
        (lambda: TransitionEnergy(1, 1, base=Dynamics(1, 1), objective="pcd"), "objective='nce'"),
        (lambda: TransitionEnergy(2, 1).join(torch.zeros(3, 2), torch.zeros(3, 2)), "sizes"),
        (lambda: TransitionEnergy(2, 1, net=EnergyMLP(4)).energy(torch.zeros(3, 5)), "EnergyMLP"),
        (lambda: StepFeatures(EnergyMLP(5), 2, 1)(torch.zeros(3, 4)), "2 \\+ 1 \\+ 2"),
        (lambda: NoisedTransitionNet(2, gain=0.0), "gain"),
    ],
)
def test_wrong_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call()
