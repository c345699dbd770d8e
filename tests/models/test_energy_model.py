"""Energy models: contracts, densities on a grid, labels, training that resumes, and wrong calls."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import boltzmix as bm
from boltzmix.compose import Gaussian, GaussianMixture
from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.term import evaluate
from boltzmix.models import (
    ContrastiveDivergence,
    EnergyModel,
    GaussianBase,
    NoiseContrastive,
    ScoreMatching,
    data,
    fit,
)
from boltzmix.models.load import build
from boltzmix.models.nets import EnergyConv, EnergyMLP
from boltzmix.models.replay import ReplayBuffer
from tests.contracts import Contract, contract_cases

D = torch.float64


def shaken(model, size=0.3, seed=1):
    """Weights away from their start, where the network is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.core.net.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def make(dim=2, num_classes=None, dtype=D, **options):
    torch.manual_seed(0)
    net = EnergyMLP(dim, hidden=12, depth=2, num_classes=num_classes, width=4)
    return shaken(EnergyModel(net, (dim,), num_classes=num_classes, **options).to(dtype))


def full_base(num_classes=None, dim=2):
    base = GaussianBase((dim,), "full", num_classes=num_classes)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, dim, generator=generator) @ torch.tensor([[1.0, 0.0], [0.6, 0.5]]).mT
    label = None if num_classes is None else torch.arange(400) % num_classes
    base.fit_moments(x if label is None else x + label[:, None], label)
    return base


def image_model():
    torch.manual_seed(0)
    net = EnergyConv(1, hidden=(4, 8), size=4, num_classes=3, width=4)
    return shaken(EnergyModel(net, (1, 4, 4), num_classes=3).to(D), 0.1)


MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=D), torch.tensor([0.3, 0.6], dtype=D))
TERMS = {
    "pcd": Contract(lambda: make()),
    "nce": Contract(lambda: make(objective="nce")),
    "label": Contract(lambda: make(num_classes=3, objective="nce").given(label=1)),
    "label-rows": Contract(lambda: make(num_classes=3).given(label=torch.arange(12) % 3)),
    "full-base": Contract(lambda: make(base=full_base())),
    "label-base": Contract(lambda: make(num_classes=3, base=full_base(3)).given(label=2)),
    "mixture-base": Contract(lambda: make(base=copy.deepcopy(MIXTURE))),
    "no-base": Contract(lambda: make(base=None, objective="score")),
    "float32": Contract(lambda: make(dtype=torch.float32), dtype=torch.float32),
    "image": Contract(image_model, span=2.0),
    "gaussian-base": Contract(lambda: full_base().to(D), span=6.0),
    "gaussian-base-diagonal": Contract(lambda: GaussianBase((2,), loc=0.3, scale=(0.5, 1.5)).to(D), span=6.0),
}


#: a row of labels belongs to its rows, so that part of a batch cannot be evaluated alone
CASES = [c for c in contract_cases(TERMS) if not c.id.startswith("label-rows-rows")]


@pytest.mark.parametrize(("check", "contract"), CASES)
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------- densities on a grid


def grid(half=7.0, count=500):
    axis = half * ((torch.arange(count, dtype=D) + 0.5) / count * 2 - 1)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * half / count)


def grid_log_z(model, half=7.0, count=500):
    points, cell = grid(half, count)
    with torch.no_grad():
        return float(torch.logsumexp(-model.energy(points), 0)) + cell


def test_smc_and_ais_find_the_integral_of_the_grid():
    """Three standard errors each: a false alarm in 1 of 180 seeds, and the seeds are fixed."""
    model = make(calibrated=True)
    with torch.no_grad():
        model.core.net.last.weight.mul_(4)
    truth = grid_log_z(model)
    for sampler in (bm.SMC(), bm.AIS()):
        draw = bm.sample(model, 2000, seed=1, sampler=sampler, progress=False)
        assert draw.log_z is not None
        assert abs(draw.log_z - truth) < 3 * draw.log_z_se + 1e-3, sampler
        assert draw.log_z_se < 0.1
    points, cell = grid()
    total = float((-model.energy(points).detach() - truth + cell).exp().sum())
    assert abs(total - 1) < 1e-9


def test_an_untrained_model_is_its_base():
    torch.manual_seed(0)
    model = EnergyModel(EnergyMLP(2, hidden=8), (2,), loc=(1.0, -1.0), scale=(0.5, 2.0)).to(D)
    exact = Gaussian(torch.tensor([1.0, -1.0], dtype=D), torch.tensor([0.25, 4.0], dtype=D))
    x = torch.randn(7, 2, dtype=D)
    assert torch.allclose(model.energy(x), exact.energy(x))
    assert abs(grid_log_z(model, 12.0)) < 1e-6


def test_a_base_keeps_any_network_normalisable():
    """The network grows linearly along rays, the base quadratically; without one the density may have no integral."""
    model = make()
    with torch.no_grad():
        model.core.net.last.weight.mul_(-50)
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.3]], dtype=D)
    energies = torch.stack([model.energy(far * r) for r in (1e4, 2e4)]).detach()
    assert bool((energies[1] > 3.9 * energies[0]).all())
    loose = make(base=None, objective="score")
    with torch.no_grad():
        loose.core.net.last.weight.fill_(-1.0)
    with torch.no_grad():
        assert bool((torch.diff(loose.energy(far[:1] * torch.tensor([[1e3], [1e4]], dtype=D))) < 0).all())


def test_without_a_learned_constant_no_integral_is_claimed():
    assert bm.sample(make(), 100, seed=0, progress=False).log_z is None
    assert make(objective="nce").calibrated
    assert make(objective="nce").core.log_z.requires_grad
    assert not make().core.log_z.requires_grad


def test_units_do_not_change_the_network():
    """A model prepared on data in other units is the same model in those units."""
    x = data.two_moons(500, torch.Generator().manual_seed(0)).to(D)
    models = []
    for factor in (1.0, 100.0):
        model = make(objective=None)
        model.prepare(factor * x + factor, torch.Generator())
        models.append(model)
    small, large = models
    assert torch.allclose(small.energy(x + 1) + 2 * math.log(100), large.energy(100 * x + 100))
    assert torch.allclose(small.core.base.deviations(), x.std(0, correction=0))


# ------------------------------------------------------------------------------------------------------------- labels


def test_views_share_the_network_and_one_forward():
    model = make(num_classes=3, objective="nce")
    with torch.no_grad():
        model.core.log_z.copy_(torch.arange(4.0))
    x = torch.randn(5, 2, dtype=D)
    views = [model, model.given(label=0), model.given(label=2)]
    calls = []
    model.core.net.register_forward_hook(lambda *a: calls.append(1))
    together = evaluate(views, x, None, energy=True, score=True)
    assert len(calls) == 1
    for view in views:
        energy, score = together[view.key()]
        assert torch.allclose(energy, view.energy(x))
        assert torch.allclose(score, view.score(x))
    assert not torch.allclose(model.given(label=2).energy(x), model.given(label=1).energy(x))
    assert {p for v in views for p in v.parameters()} == set(model.parameters())
    guided = model * (model.given(label=0) / model) ** 2.0
    expected = -model.energy(x) + 2 * model.given(label=0).energy(x)
    assert torch.allclose(guided.energy(x), expected)


def test_each_label_has_its_constant_and_its_base():
    model = make(num_classes=3, objective="nce", base=full_base(3))
    with torch.no_grad():
        model.core.log_z.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        model.core.net.last.weight.zero_()
        model.core.net.last.bias.zero_()
    x = torch.randn(6, 2, dtype=D)
    for label, constant in ((0, 1.0), (1, 2.0), (2, 3.0)):
        base = model.core.base
        exact = Gaussian(
            base.loc[label],
            torch.linalg.inv(base.whitening(torch.tensor([label]))[0].mT @ base.whitening(torch.tensor([label]))[0]),
        )
        assert torch.allclose(model.given(label=label).energy(x), exact.energy(x) + constant, atol=1e-6)
    assert torch.allclose(model.energy(x), model.core.base.energy(x) + 4.0)


def test_draws_of_a_labelled_base_have_its_moments():
    """z-scores below 5 for 3 labels × 5 moments: false alarms below 1e-5."""
    base = full_base(3).to(D)
    label = torch.arange(60_000) % 3
    x = base.draw(len(label), label, torch.Generator().manual_seed(0))
    for k in range(3):
        own, whitening = x[label == k], base.whitening(torch.tensor([k]))[0]
        white = (own - base.loc[k]) @ whitening.mT
        n = len(own)
        assert float(white.mean(0).abs().max()) < 5 / math.sqrt(n)
        assert float((white.mT @ white / n - torch.eye(2)).abs().max()) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_base_takes_the_moments_of_the_data(covariance):
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0), dtype=D) @ torch.randn(3, 3, dtype=D)
    base = GaussianBase((3,), covariance).to(D)
    base.fit_moments(x)
    whitening = base.whitening(None)[0]
    found = torch.linalg.inv(whitening.mT @ whitening)
    exact = x.mT.cov(correction=0)
    exact = torch.diag(exact.diag()) if covariance == "diagonal" else exact
    assert torch.allclose(found, exact, rtol=2e-3, atol=2e-3)
    assert torch.allclose(base.mean(None)[0], x.mean(0))
    assert torch.allclose(base.deviations(), x.std(0, correction=0), rtol=1e-3)


def test_labels_with_few_rows_share_the_covariance_about_their_means():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(24) % 3
    x = torch.randn(24, 4, generator=generator, dtype=D) + 10 * label[:, None]
    base = GaussianBase((4,), num_classes=3).to(D)
    base.fit_moments(x, label)
    means = torch.stack([x[label == k].mean(0) for k in range(3)])
    assert torch.allclose(base.loc[:3], means)
    assert torch.allclose(base.loc[3], x.mean(0))
    within = (x - means[label]).square().mean(0)
    assert torch.allclose((-2 * base.log_diagonal[:3]).exp(), within.expand(3, 4))
    assert torch.allclose((-2 * base.log_diagonal[3]).exp(), x.var(0, correction=0))


# ------------------------------------------------------------------------------------------------------------ training

OBJECTIVES = {
    "cd": lambda: ContrastiveDivergence(persistent=False, steps=2),
    "pcd": lambda: ContrastiveDivergence(steps=2, capacity=64, weighted=False),
    "weighted": lambda: ContrastiveDivergence(steps=2, capacity=64),
    "from-data": lambda: ContrastiveDivergence(steps=2, capacity=64, restart="data", kernel="hmc"),
    "nce": lambda: NoiseContrastive(ratio=2),
    "nce-learned": lambda: NoiseContrastive(
        GaussianBase((2,), "full", num_classes=3, learnable=True), learn_noise=True
    ),
    "sliced": lambda: ScoreMatching(),
    "explicit": lambda: ScoreMatching("explicit", sigma=0.1),
    "denoising": lambda: ScoreMatching("denoising"),
}


def labelled(n=300):
    generator = torch.Generator().manual_seed(0)
    return data.ring(n, generator), torch.randint(0, 3, (n,), generator=generator)


def trainable(objective, seed=0):
    torch.manual_seed(seed)
    net = EnergyMLP(2, hidden=8, depth=1, num_classes=3, width=4)
    return EnergyModel(net, (2,), num_classes=3, objective=OBJECTIVES[objective]())


SETTINGS = {"steps": 12, "batch_size": 32, "lr": 1e-2, "ema": 0.9, "seed": 5, "log_every": 3, "checkpoint_every": 4}


class Killed(Exception):
    pass


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resume_after_a_kill_is_bit_for_bit(tmp_path, objective):
    whole = trainable(objective)
    straight = fit(whole, labelled(), **SETTINGS, progress=False)
    assert all(math.isfinite(v) for record in straight.history for v in record.values())
    broken, calls = trainable(objective), []
    original = broken.loss

    def loss(batch, generator):
        calls.append(None)
        if len(calls) == 8:
            raise Killed
        return original(batch, generator)

    object.__setattr__(broken, "loss", loss)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        fit(broken, labelled(), **SETTINGS, checkpoint=file, progress=False)
    resumed = trainable(objective, seed=9)
    torch.manual_seed(99)
    result = fit(resumed, labelled(), **SETTINGS, checkpoint=file, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for a, b in zip(straight.history, result.history, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.parametrize("objective", ["pcd", "weighted", "nce"])
def test_training_brings_the_model_to_a_shifted_mixture(objective):
    """NLL on the grid falls from the base's to within 0.1 of the truth's entropy."""
    truth = GaussianMixture(torch.tensor([[-1.0], [1.5]]), torch.tensor([0.1, 0.2]), [0.3, 0.7])
    made = {
        "pcd": ContrastiveDivergence(steps=10, weighted=False, capacity=2000, regularization=1e-3),
        "weighted": ContrastiveDivergence(steps=5, capacity=256),
        "nce": NoiseContrastive(),
    }
    torch.manual_seed(0)
    model = EnergyModel(EnergyMLP(1, hidden=32, depth=2), (1,), objective=made[objective])
    result = fit(model, truth.sample, steps=300, batch_size=128, lr=1e-2, ema=0.98, progress=False)
    axis = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        log_z = float(torch.logsumexp(-model.energy(axis).double(), 0)) + math.log(16 / 4000)
        x = truth.sample(4000, torch.Generator().manual_seed(1))
        excess = float((model.energy(x) - truth.energy(x)).mean()) + log_z
        mass = float(((-model.energy(axis).double() - log_z).exp() * (axis[:, 0] < 0.2)).sum()) * 16 / 4000
    assert excess < 0.1
    assert abs(mass - 0.3) < (0.12 if objective == "pcd" else 0.06)
    if objective == "nce":
        assert abs(log_z) < 0.15
    if objective == "weighted":
        assert abs(result.history[-1]["log_z"] - log_z) < 0.25
        assert abs(result.history[-1]["nll"] - float(truth.energy(x).mean())) < 0.3


def test_chains_must_know_the_labels_of_a_batch():
    x, label = labelled(64)
    for first, then in (((x, label), x), (x, (x, label))):
        model = trainable("weighted")
        model.loss(first, torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="throughout"):
            model.loss(then, torch.Generator().manual_seed(0))


def test_smc_may_start_from_the_base_of_a_label():
    model = make(num_classes=3, base=full_base(3), calibrated=True)
    view = model.given(label=1)
    assert torch.allclose(
        view.start().energy(torch.zeros(2, 2, dtype=D)),
        model.core.base.row_energy(torch.zeros(2, 2, dtype=D), torch.tensor([1, 1])),
    )
    truth = grid_log_z(view)
    draw = bm.sample(view, 2000, init=view.start(), seed=0, progress=False)
    assert abs(draw.log_z - truth) < 3 * draw.log_z_se + 1e-3
    with pytest.raises(TypeError, match="every row"):
        model.given(label=torch.arange(3)).start()
    with pytest.raises(TypeError, match="there is none"):
        make(base=None, objective="score").start()


def test_preparing_twice_changes_nothing():
    model = trainable("pcd")
    generator = torch.Generator().manual_seed(0)
    model.prepare(labelled(), generator)
    before = copy.deepcopy(model.state_dict())
    model.prepare((10 * labelled()[0], labelled()[1]), generator)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_built_from_plain_values():
    spec = {
        "class": "EnergyModel",
        "arguments": {
            "event_shape": [1, 8, 8],
            "num_classes": 10,
            "objective": {"class": "ContrastiveDivergence", "arguments": {"capacity": 64, "steps": 1}},
            "base": {"class": "GaussianBase", "arguments": {"event_shape": [1, 8, 8], "covariance": "full"}},
        },
        "net": {"class": "EnergyConv", "arguments": {"channels": 1, "hidden": [4, 8], "num_classes": 10}},
    }
    model = build(spec)
    assert isinstance(model.objective, ContrastiveDivergence)
    assert model.given(label=3).energy(torch.zeros(2, 1, 8, 8)).shape == (2,)
    named = EnergyModel(EnergyMLP(2), (2,), objective={"class": "NoiseContrastive", "arguments": {"ratio": 3}})
    assert named.objective.ratio == 3


# ---------------------------------------------------------------------------------------------- chains that go astray


def test_energies_that_run_away_stop_the_training():
    model = EnergyModel(EnergyMLP(2, hidden=8), (2,), objective=ContrastiveDivergence(capacity=64, steps=2))
    x, generator = data.ring(64), torch.Generator().manual_seed(0)
    model.prepare(x, generator)
    with torch.no_grad():
        model.core.net.last.weight.fill_(3e3)
        model.core.net.first.bias.fill_(1.0)
        model.objective.buffer.x += 30.0
    with pytest.raises(NonFinite, match="has diverged.*lower lr"):
        model.loss(x, generator)


def test_energies_that_are_not_finite_are_named():
    model = EnergyModel(EnergyMLP(2, hidden=8), (2,), objective=ContrastiveDivergence(capacity=64, steps=2))
    x, generator = data.ring(64), torch.Generator().manual_seed(0)
    model.prepare(x, generator)
    with torch.no_grad():
        model.core.net.last.bias.fill_(math.inf)
    with pytest.raises(NonFinite, match="contrastive divergence.*lower lr"):
        model.loss(x, generator)


def test_chains_that_stand_still_are_reported_once():
    kernel = bm.MALA(step_size=1e4)
    model = EnergyModel(
        EnergyMLP(2, hidden=8), (2,), objective=ContrastiveDivergence(capacity=64, steps=2, kernel=kernel)
    )
    x, generator = data.ring(64), torch.Generator().manual_seed(0)
    with pytest.warns(SamplingWarning, match="hardly move"):
        model.loss(x, generator)
    assert model.metrics()["acceptance"] < 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.loss(x, generator)


def test_diverging_chains_are_counted_and_left_where_they_were():
    class Cliff(nn.Module):
        def forward(self, x, label=None):
            return torch.where(x.sum(1) > 0, torch.nan, 0.0) * x[:, 0]

    model = EnergyModel(
        Cliff(), (2,), loc=0.0, scale=1.0, objective=ContrastiveDivergence(capacity=64, reinitialize=0.0)
    )
    x, generator = -data.ring(64).abs(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.prepared.fill_(True)
        model.objective.buffer.fill(x)
    with torch.no_grad():
        model.objective.moved += 50  # past the time that a step size takes to adapt
    with pytest.warns(SamplingWarning, match="diverge"):
        model.loss(x, generator)
    assert 0.2 < model.metrics()["chain_diverged"] < 1
    assert bool((model.objective.buffer.x.sum(1) <= 0).all())


# -------------------------------------------------------------------------------------------------------- replay buffer


def test_picked_chains_have_the_labels_asked_for():
    buffer = ReplayBuffer(30, (2,))
    buffer.fill(torch.randn(30, 2), torch.arange(30) % 3)
    label = torch.tensor([2, 0, 0, 1, 2, 2])
    slots = buffer.pick(label, torch.Generator().manual_seed(0))
    assert torch.equal(buffer.label[slots], label)
    assert len(slots.unique()) == 6
    many = buffer.pick(torch.zeros(15, dtype=torch.long), torch.Generator().manual_seed(0))
    assert bool((many.bincount(minlength=30)[::3] >= 1).all())
    with pytest.raises(ValueError, match="no chain has label 7"):
        buffer.pick(torch.tensor([7]), torch.Generator())
    with pytest.raises(ValueError, match="capacity"):
        buffer.pick(None, torch.Generator(), 31)


def test_resampling_keeps_weighted_means():
    """The mean weight of each label exactly, and E[f] on average over 1,000 resamplings: z below 5."""
    generator = torch.Generator().manual_seed(0)
    x, logs, label = (
        torch.randn(40, 1, generator=generator),
        2 * torch.randn(40, generator=generator),
        torch.arange(40) % 2,
    )
    found = []
    for _ in range(1000):
        buffer = ReplayBuffer(40, (1,))
        buffer.fill(x, label)
        buffer.log_weight.copy_(logs)
        means = buffer.log_means()
        order, count = buffer.resample(1.0, generator)
        assert count == 2
        assert torch.equal(label[order], label)
        assert torch.allclose(buffer.log_means(), means, atol=1e-5)
        assert float(buffer.log_weight[label == 0].std()) < 1e-6
        found.append((buffer.log_weight.exp() * buffer.x[order, 0]).mean())
    values = torch.stack(found)
    exact = (logs.exp() * x[:, 0]).mean()
    assert abs(float((values.mean() - exact) / (values.std() / math.sqrt(2000)))) < 5
    untouched = ReplayBuffer(40, (1,))
    untouched.fill(x)
    assert untouched.resample(0.9, generator)[1] == 0


# ---------------------------------------------------------------------------------------------------------- wrong calls

NET = EnergyMLP(2, hidden=4)
WRONG = {
    "an unknown objective": (lambda: EnergyModel(NET, (2,), objective="mle"), ValueError, "'cd'"),
    "an unknown class": (lambda: EnergyModel(NET, (2,), objective={"class": "MLE"}), ValueError, "MLE"),
    "an objective of another kind": (lambda: EnergyModel(NET, (2,), objective=3), TypeError, "int"),
    "an unknown base": (lambda: EnergyModel(NET, (2,), base="flow"), ValueError, "gaussian"),
    "a base without integral": (lambda: EnergyModel(NET, (2,), base=make()), TypeError, "normalised"),
    "a base over another shape": (lambda: EnergyModel(NET, (2,), base=GaussianBase((3,))), ValueError, r"\(3,\)"),
    "a base with other labels": (
        lambda: EnergyModel(NET, (2,), base=GaussianBase((2,), num_classes=4)),
        ValueError,
        "num_classes=4",
    ),
    "labels that the network does not know": (lambda: EnergyModel(NET, (2,), num_classes=3), ValueError, "num_classes"),
    "a scale of zero": (lambda: EnergyModel(NET, (2,), scale=0.0), ValueError, "positive"),
    "a scale that is no number": (lambda: EnergyModel(NET, (2,), scale=math.nan), ValueError, "positive"),
    "an infinite centre": (lambda: EnergyModel(NET, (2,), loc=math.inf), ValueError, "finite"),
    "no base to start from": (lambda: EnergyModel(NET, (2,), base=None), TypeError, "restart='data'"),
    "weights without a base": (
        lambda: EnergyModel(NET, (2,), base=None, objective=ContrastiveDivergence(weighted=True)),
        TypeError,
        "base",
    ),
    "weights of biased chains": (lambda: ContrastiveDivergence(weighted=True, kernel="ula"), TypeError, "mala"),
    "weights of new chains": (lambda: ContrastiveDivergence(weighted=True, persistent=False), TypeError, "persistent"),
    "an unknown kernel": (lambda: ContrastiveDivergence(kernel="nuts"), ValueError, "mala"),
    "a kernel of another kind": (lambda: ContrastiveDivergence(kernel=3), TypeError, "int"),
    "no steps": (lambda: ContrastiveDivergence(steps=0), ValueError, "steps"),
    "no chains": (lambda: ContrastiveDivergence(capacity=0), ValueError, "capacity"),
    "a share above one": (lambda: ContrastiveDivergence(reinitialize=1.5), ValueError, "1.5"),
    "a negative penalty": (lambda: ContrastiveDivergence(regularization=-1.0), ValueError, "-1"),
    "an unknown restart": (lambda: ContrastiveDivergence(restart="noise"), ValueError, "restart"),
    "a ratio of zero": (lambda: NoiseContrastive(ratio=0), ValueError, "ratio"),
    "noise without integral": (
        lambda: EnergyModel(NET, (2,), objective=NoiseContrastive(make())),
        TypeError,
        "normalised",
    ),
    "noise of another shape": (
        lambda: EnergyModel(NET, (2,), objective=NoiseContrastive(GaussianBase((3,)))),
        ValueError,
        r"\(3,\)",
    ),
    "no noise at all": (lambda: EnergyModel(NET, (2,), base=None, objective="nce"), TypeError, "without a base"),
    "noise without parameters": (
        lambda: EnergyModel(NET, (2,), objective=NoiseContrastive(learn_noise=True)),
        TypeError,
        "learnable=True",
    ),
    "an unknown form": (lambda: ScoreMatching("implicit"), ValueError, "sliced"),
    "noise of no width": (lambda: ScoreMatching("denoising", sigma=0.0), ValueError, "sigma"),
    "no projections": (lambda: ScoreMatching(projections=0), ValueError, "projections"),
    "an unknown covariance": (lambda: GaussianBase((2,), "banded"), ValueError, "diagonal"),
    "an image of odd size": (lambda: EnergyConv(1, (4, 8), size=7), ValueError, "multiple"),
    "a buffer without rows": (lambda: ReplayBuffer(0, (2,)), ValueError, "capacity"),
    "a buffer filled with less": (lambda: ReplayBuffer(3, (2,)).fill(torch.zeros(2, 2)), ValueError, "as much"),
    "data of another shape": (
        lambda: EnergyModel(NET, (2,)).loss(torch.zeros(5, 3), torch.Generator()),
        ValueError,
        "3",
    ),
    "labels for a model without": (
        lambda: EnergyModel(NET, (2,)).loss((torch.zeros(5, 2), torch.zeros(5).long()), torch.Generator()),
        ValueError,
        "num_classes",
    ),
    "data that do not vary": (
        lambda: EnergyModel(NET, (2,)).loss(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), torch.Generator()),
        ValueError,
        "dequantise",
    ),
    "data that are not finite": (
        lambda: EnergyModel(NET, (2,)).loss(torch.full((4, 2), math.nan), torch.Generator()),
        NonFinite,
        "NaN",
    ),
    "training without an objective": (
        lambda: EnergyModel(NET, (2,), objective=None).loss(torch.randn(4, 2), torch.Generator()),
        TypeError,
        "objective=None",
    ),
    "doubles for floats": (lambda: EnergyModel(NET, (2,)).energy(torch.zeros(3, 2, dtype=D)), TypeError, "float64"),
    "labels for a network without": (lambda: NET(torch.zeros(3, 2), torch.zeros(3).long()), TypeError, "num_classes="),
    "more chains than there are": (
        lambda: EnergyModel(NET, (2,), objective=ContrastiveDivergence(capacity=4, weighted=False)).loss(
            torch.randn(8, 2), torch.Generator()
        ),
        ValueError,
        "capacity",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_name_the_remedy(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_a_network_of_another_shape_is_refused():
    class Wide(nn.Module):
        def forward(self, x, label=None):
            return x

    with pytest.raises(ValueError, match="EnergyMLP"):
        EnergyModel(Wide(), (2,)).energy(torch.zeros(3, 2))


def test_samplers_draw_from_a_conditional_model():
    model = make(num_classes=3, dtype=torch.float32)
    draw = bm.sample(model.given(label=1), 200, seed=0, progress=False)
    assert bool(torch.isfinite(draw.x).all())
    assert model.name() == "EnergyModel"
    assert model.given(label=1).name() == "EnergyModel(label=1)"
