"""One-step dynamics: noise floor, linear inverse, mixtures in closed form, units, wrong calls."""

import json
import math

import pytest
import torch

from boltzmix.compose import Gaussian
from boltzmix.compose.errors import NonFinite
from boltzmix.models import Dynamics, InverseDynamics, fit, load, save
from boltzmix.models.dynamics import transitions
from boltzmix.models.load import build
from boltzmix.models.nets import EnsembleMLP
from tests.contracts import Contract, contract_cases

D = torch.float64
A = torch.tensor([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.1], [0.0, 0.1, 0.95]], dtype=D)
B = torch.tensor([[0.5, 0.0], [0.0, 0.3], [0.2, -0.4]], dtype=D)
NOISE = torch.tensor([0.05, 0.1, 0.02], dtype=D)


def linear(n, seed=0, noise=NOISE):
    """Transitions of s' = A s + B a + w in float64."""
    rng = torch.Generator().manual_seed(seed)
    s, a, w = (torch.randn(n, k, generator=rng, dtype=D) for k in (3, 2, 3))
    return s, a, s @ A.T + a @ B.T + noise * w


def floats(*tensors):
    return tuple(t.float() for t in tensors)


def excited(model, seed=1):
    """A model in float64 with every number moved, so that nothing is zero or one by chance."""
    rng = torch.Generator().manual_seed(seed)
    model = model.to(D)
    with torch.no_grad():
        for p in (*model.parameters(), model.input_loc, model.output_loc):
            p.add_(0.3 * torch.randn(p.shape, generator=rng, dtype=D))
        for scale in (model.input_scale, model.output_scale):
            scale.copy_(0.5 + torch.rand(scale.shape, generator=rng, dtype=D))
    return model.requires_grad_(False)


def small(kind=Dynamics, seed=0, **options):
    torch.manual_seed(seed)
    return excited(kind(3, 2, hidden=8, depth=1, **options))


def without_actions():
    torch.manual_seed(0)
    return excited(Dynamics(3, hidden=8, depth=1))


TERMS = {
    "dynamics": Contract(small),
    "ensemble": Contract(lambda: small(members=3, noise="network")),
    "state only": Contract(without_actions),
    "inverse": Contract(lambda: small(InverseDynamics, members=2)),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


# ---------------------------------------------------------------------------------------------------------- the density


def mixture_by_hand(model):
    """−log of the mean over the members of Gaussians, computed by torch.distributions."""
    s, a, y = linear(7, 3)
    means, spreads = model.moments(state=s, action=a)
    logs = torch.distributions.Normal(means, spreads).log_prob(y).sum(-1)
    wanted = -(logs.logsumexp(0) - math.log(model.members))
    assert torch.allclose(model.energy({"state": s, "action": a, "next": y}), wanted)


def test_energy_is_the_mixture_of_the_members():
    mixture_by_hand(small(members=3))
    mixture_by_hand(small(members=1, noise="network"))


def given_is_the_slice(model):
    """``given`` is the closed form of the same conditional: energies agree."""
    s, a, y = linear(5, 4)
    for k in range(3):
        given = model.given(state=s[k], action=a[k])
        rows = {"state": s[k].expand(5, -1), "action": a[k].expand(5, -1), "next": y}
        assert torch.allclose(given.energy(y), model.energy(rows))
        assert given.normalized


def test_given_is_a_gaussian_or_a_mixture_in_closed_form():
    given_is_the_slice(small())
    given_is_the_slice(small(members=4))
    assert isinstance(small().given(state=torch.zeros(3), action=torch.zeros(2)), Gaussian)


def draws_have_the_moments():
    """Mean and covariance diagonal of 20,000 draws of an ensemble of two; 6 z-scores below 5."""
    model = small(members=2)
    s, a, _ = linear(1, 5)
    n = 20_000
    x = model.draw(torch.Generator().manual_seed(0), state=s.expand(n, -1), action=a.expand(n, -1))
    means, spreads = (t[:, 0] for t in model.moments(state=s, action=a))
    mean = means.mean(0)
    variance = (spreads**2 + means**2).mean(0) - mean**2
    assert bool((((x.mean(0) - mean) / (variance / n).sqrt()).abs() < 5).all())
    fourth = ((x - mean) ** 4).mean(0)
    assert bool((((x - mean).square().mean(0) - variance).abs() < 5 * ((fourth - variance**2) / n).sqrt()).all())


def test_draws_have_the_mixtures_moments():
    draws_have_the_moments()


def test_rollout_iterates_the_prediction():
    model = small(members=2)
    s, _, _ = linear(4, 6)
    actions = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    states = model.rollout(s, actions)
    assert torch.equal(states[:, 0], s)
    for t in range(3):
        assert torch.allclose(states[:, t + 1], model.predict(states[:, t], actions[:, t]))


def units_do_not_matter(kind):
    """Data in other units: the same network says the same thing in these units, and log p changes by the scale."""
    s, a, y = linear(200, 7)
    k, c = torch.tensor([10.0, 0.1, 3.0], dtype=D), torch.tensor([1.0, -2.0, 5.0], dtype=D)
    rng = torch.Generator()
    torch.manual_seed(0)
    one = kind(3, 2, hidden=8, depth=1).to(D)
    torch.manual_seed(0)
    two = kind(3, 2, hidden=8, depth=1).to(D)
    first = one.loss((s, a, y), rng)
    second = two.loss((c + k * s, 4 * a, c + k * y), rng)
    shift = float(k.log().mean()) if kind is Dynamics else math.log(4.0)
    assert float((second - first).detach()) == pytest.approx(shift, abs=1e-9)


@pytest.mark.parametrize("kind", [Dynamics, InverseDynamics])
def test_units_do_not_matter(kind):
    units_do_not_matter(kind)


def silent_networks_predict_the_mean_change():
    """With a network that says 0, s' is s plus the mean change of the first batch, and an action the mean action."""
    s, a, y = linear(100, 9)
    for kind, given, wanted in (
        (Dynamics, {"state": s, "action": a}, s + (y + 3 - s).mean(0)),
        (InverseDynamics, {"state": s, "next": y + 3}, a.mean(0).expand(100, 2)),
    ):
        model = kind(3, 2, hidden=8, depth=1).to(D)
        model.loss((s, a, y + 3), torch.Generator())
        with torch.no_grad():
            for p in model.net.parameters():
                p.zero_()
        assert torch.allclose(model.moments(**given)[0][0], wanted)


def test_silent_networks_predict_the_mean_change():
    silent_networks_predict_the_mean_change()


def disagreement_by_hand():
    model = small(members=3)
    s, a, _ = linear(4, 8)
    means, _ = model.moments(state=s, action=a)
    by_hand = [((m - m.mean(0)).square().mean(0) / model.output_scale**2).mean().sqrt() for m in means.unbind(1)]
    assert torch.allclose(model.disagreement(state=s, action=a), torch.stack(by_hand))


def test_disagreement_is_the_spread_of_the_members():
    disagreement_by_hand()
    s, a, _ = linear(4, 8)
    assert float(small().disagreement(state=s, action=a).abs().max()) == 0.0


def test_the_floor_bounds_the_spread():
    model = small(floor=0.25)
    with torch.no_grad():
        model.log_noise.fill_(-50.0)
    s, a, _ = linear(2)
    assert torch.allclose(model.moments(state=s, action=a)[1], 0.25 * model.output_scale.expand(1, 2, 3))


# ------------------------------------------------------------------------------------------------------------- learning


def trained(kind, data, steps=400, **options):
    torch.manual_seed(0)
    model = kind(3, 2, hidden=32, **options)
    fit(model, floats(*data), steps=steps, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    return model


def test_linear_dynamics_reach_the_noise_floor():
    """Held-out squared errors of each coordinate are within 5 % of the noise's variance, and so is the learned spread.

    4,000 held-out rows: the mean of squares has a relative standard error of 2.2 %, compared with the squares of the
    true noise of the same rows, whose fluctuation cancels.
    """
    model = trained(Dynamics, linear(8_000), members=2)
    s, a, y = linear(4_000, 1)
    error = (model.predict(*floats(s, a)).double() - y).square().mean(0)
    floor = (s @ A.T + a @ B.T - y).square().mean(0)
    assert bool((error < 1.05 * floor).all()), (error / floor).tolist()
    spread = model.moments(state=s.float(), action=a.float())[1].double().mean((0, 1))
    assert bool(((spread / NOISE).log().abs() < 0.05).all()), (spread / NOISE).tolist()


def test_inverse_dynamics_recover_the_linear_inverse():
    """Without noise a = B⁺(s' − A s) exactly; with it, least squares of a on (s, s') is the best linear inverse."""
    data = linear(8_000, noise=0.0 * NOISE)
    model = trained(InverseDynamics, data)
    s, a, y = linear(1_000, 1, noise=0.0 * NOISE)
    error = model.predict(*floats(s, y)).double() - a
    assert float(error.detach().square().mean().sqrt()) < 0.02  # of actions of standard deviation 1
    inverse = torch.linalg.pinv(B)
    assert float(((y - s @ A.T) @ inverse.T - a).abs().max()) < 1e-9
    noisy, held = linear(8_000, 2, 3 * NOISE), linear(4_000, 3, 3 * NOISE)
    learned = trained(InverseDynamics, noisy)
    design = torch.cat([noisy[0], noisy[2], torch.ones(8_000, 1, dtype=D)], 1)
    weights = torch.linalg.lstsq(design, noisy[1]).solution
    best = (torch.cat([held[0], held[2], torch.ones(4_000, 1, dtype=D)], 1) @ weights - held[1]).square().mean()
    found = (learned.predict(*floats(held[0], held[2])).double() - held[1]).square().mean()
    assert float(found) < 1.05 * float(best)


def test_the_network_learns_a_noise_that_varies():
    """s' = s + |s| ε: the learned spread follows |s| where the data are."""
    rng = torch.Generator().manual_seed(0)
    s = 1.0 + torch.rand(8_000, 1, generator=rng)
    y = s + s * torch.randn(8_000, 1, generator=rng)
    torch.manual_seed(0)
    model = Dynamics(1, noise="network", hidden=16)
    fit(model, (s, y), steps=300, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    for value in (1.2, 1.5, 1.8):
        assert float(model.given(state=[value]).variances.sqrt()) == pytest.approx(value, rel=0.1)


def test_members_disagree_away_from_the_data():
    model = trained(Dynamics, linear(2_000), steps=200, members=4)
    s, a, _ = floats(*linear(100, 1))
    assert float(model.disagreement(state=10 * s, action=10 * a).mean()) > 3 * float(
        model.disagreement(state=s, action=a).mean()
    )


def test_save_and_load(tmp_path):
    spec = {"class": "Dynamics", "arguments": {"state": 3, "action": 2, "members": 2, "hidden": 8}}
    model = build(json.loads(json.dumps(spec)))
    model.loss(floats(*linear(50)), torch.Generator())
    save(model, "step", tmp_path, spec)
    s, a, _ = floats(*linear(5, 1))
    assert torch.equal(load("step", tmp_path).predict(s, a), model.predict(s, a))


# --------------------------------------------------------------------------------------------------------- trajectories


def test_transitions_of_trajectories():
    states = torch.arange(24.0).reshape(2, 4, 3)
    actions = torch.arange(16.0).reshape(2, 4, 2)
    s, a, y = transitions(states, actions)
    assert torch.equal(s[1], states[0, 1])
    assert torch.equal(y[1], states[0, 2])
    assert torch.equal(a[4], actions[1, 1])
    assert torch.equal(transitions(states, actions[:, :3])[1], a)
    assert [t.shape for t in transitions(states)] == [(6, 3), (6, 3)]


def test_ensembles_are_members_side_by_side():
    torch.manual_seed(0)
    net = EnsembleMLP(3, 2, members=4, hidden=8)
    x = torch.randn(5, 3)
    out = net(x)
    apart = net(x.expand(4, 5, 3))
    assert torch.equal(out, apart)
    alone = EnsembleMLP(3, 2, members=1, hidden=8)
    for mine, all_of in zip(alone.parameters(), net.parameters(), strict=True):
        mine.data.copy_(all_of.data[2:3])
    assert torch.allclose(alone(x)[0], out[2], atol=1e-6)
    assert float((out[0] - out[1]).detach().abs().max()) > 0.01


# ---------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Dynamics(0), "size of state"),
        (lambda: Dynamics(2, -1), "size of action"),
        (lambda: InverseDynamics(2, 0), "size of action"),
        (lambda: Dynamics(2, noise="diagonal"), "noise is"),
        (lambda: Dynamics(2, floor=0.0), "floor"),
        (lambda: Dynamics(2, 1, net=EnsembleMLP(2, 2)), "from 3 inputs to 2"),
        (lambda: EnsembleMLP(2, 0), "out is a positive int"),
        (lambda: EnsembleMLP(2, 1)(torch.zeros(3, 4)), r"\(N, 2\)"),
        (lambda: Dynamics(2, 1).given(state=torch.zeros(2)), "also give"),
        (lambda: Dynamics(2, 1).given(state=torch.zeros(3), action=torch.zeros(1)), "one vector"),
        (lambda: Dynamics(2, 1).rollout(torch.zeros(4, 2), torch.zeros(3, 5, 1)), "N = 4"),
        (lambda: Dynamics(2, 1).loss((torch.zeros(4, 2), torch.zeros(4, 2)), torch.Generator()), "a batch of"),
        (lambda: Dynamics(2).loss((torch.zeros(4, 2), torch.zeros(4, 2)), torch.Generator()), "do not vary"),
        (lambda: transitions(torch.zeros(3, 1, 2)), "T >= 2"),
        (lambda: transitions(torch.zeros(3, 4, 2), torch.zeros(3, 2, 2)), "actions are"),
    ],
)
def test_wrong_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_other_dtypes_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(TypeError, match="float64"):
        Dynamics(2).predict(torch.zeros(3, 2, dtype=D))
    bad = torch.randn(8, 2)
    bad[3, 0] = math.nan
    with pytest.raises(NonFinite, match="NaN"):
        Dynamics(2).loss((bad, torch.randn(8, 2)), torch.Generator())
