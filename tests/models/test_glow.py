"""Glow: every layer's log-determinant against autograd, data-dependent initialisation, splits that are counted."""

import math

import pytest
import torch

from boltzmix.compose import HMC, MCMC, SMC, Clamp, Gaussian, sample
from boltzmix.models import fit
from boltzmix.models.glow import Glow
from boltzmix.models.load import build
from boltzmix.models.nets.invertible import (
    ActNorm,
    AffineCoupling,
    CouplingNet,
    InvertibleConv,
    LabelAffine,
    squeeze,
    unsqueeze,
)
from tests.contracts import Contract, contract_cases
from tests.models.flow_laws import (
    D,
    assert_change_of_variables,
    assert_round_trip,
    assert_views_share_a_pass,
    jacobian_log_det,
    points,
    shaken,
)

SHAPE = (1, 4, 4)


def make(seed=0, shape=SHAPE, size=0.1, **options):
    torch.manual_seed(seed)
    options = {"levels": 2, "steps": 2, "hidden": 8, "loc": 0.2, "scale": 1.5, **options}
    return shaken(Glow(shape, **options), size=size)


TERMS = {
    "glow": Contract(make, span=3.0, tolerance=1e-6),
    "glow-label-interval": Contract(
        lambda: make(num_classes=3, bounds=(-4.0, 4.0), margin=0.3).given(label=1), span=2.0, tolerance=1e-6
    ),
    "glow-colour": Contract(lambda: make(shape=(3, 2, 2), levels=1), span=3.0, tolerance=1e-6),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


def reflection(channels):
    """A weight of negative determinant, with a permutation in its LU factors."""
    weight = torch.randn(channels, channels, generator=torch.Generator().manual_seed(1), dtype=D)
    return weight if float(torch.linalg.det(weight)) < 0 else weight[[1, 0, *range(2, channels)]]


def convolution(channels=4):
    layer = InvertibleConv(channels).to(D)
    layer.set_weight(reflection(channels))
    return layer


LAYERS = {
    "actnorm": lambda: shaken(ActNorm(4)),
    "convolution": convolution,
    "convolution, trained": lambda: shaken(convolution()),
    "coupling": lambda: shaken(AffineCoupling(4, hidden=6)),
    "coupling, odd": lambda: shaken(AffineCoupling(5, hidden=6)),
    "top": lambda: shaken(LabelAffine(4)),
    "top, label": lambda: shaken(LabelAffine(4, num_classes=3)),
    "coupling, label": lambda: shaken(AffineCoupling(4, hidden=6, num_classes=3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_log_determinant_of_a_layer_is_that_of_its_jacobian(name):
    layer = LAYERS[name]()
    x = points((5 if "odd" in name else 4, 2, 3), n=3)
    labels = [None, 1] if "label" in name else [None]
    for label in labels:

        def forward(t, label=label):
            return layer(t, None if label is None else torch.full((len(t),), label))

        rows = None if label is None else torch.full((3,), label)
        y, log_det = forward(x)
        assert log_det.shape == (3,)
        assert torch.allclose(log_det, jacobian_log_det(lambda t: forward(t)[0], x), atol=1e-9)
        with torch.no_grad():
            assert torch.allclose(layer.inverse(y, rows), x, atol=1e-10)
            single = layer.float()
            back = single.inverse(single(x.float(), rows)[0], rows)
            layer.to(D)
        assert float((back - x.float()).abs().max()) < 1e-5


def test_a_convolution_of_negative_determinant():
    """log|det W|, not log det W, which would be NaN."""
    layer, weight = convolution(), reflection(4)
    assert float(torch.linalg.det(weight)) < 0
    assert torch.allclose(layer.weight(), weight, atol=1e-12)
    x = points((4, 2, 3), n=2)
    expected = 2 * 3 * torch.linalg.slogdet(weight)[1]
    assert torch.allclose(layer(x)[1], expected.expand(2), atol=1e-12)
    assert torch.allclose(layer(x)[0], torch.einsum("ij,njhw->nihw", weight, x), atol=1e-12)


def test_a_coupling_depends_on_its_label():
    layer, x = LAYERS["coupling, label"](), points((4, 2, 3), n=3)
    one, other, none = (layer(x, label)[0] for label in (torch.zeros(3).long(), torch.ones(3).long(), None))
    assert torch.equal(layer(x, torch.full((3,), -1))[0], none)
    for a, b in ((one, other), (one, none), (other, none)):
        assert float((a - b).detach().abs().max()) > 1e-3


def test_squeezing_keeps_every_number():
    x = points((2, 4, 6))
    assert squeeze(x).shape == (4, 8, 2, 3)
    assert torch.equal(unsqueeze(squeeze(x)), x)
    assert torch.equal(
        squeeze(x)[:, :4].sort(1).values,
        x[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).movedim(3, 1).sort(1).values,
    )


@pytest.mark.parametrize(
    "options", [{"levels": 1}, {}, {"num_classes": 3}, {"bounds": (-4.0, 4.0)}, {"shape": (2, 4, 8), "steps": 1}]
)
def test_log_density_is_the_change_of_variables_and_the_inverse_is_one(options):
    glow = make(size=0.2, **options)
    x = points(glow.event_shape, n=3)
    for view in (glow, *([glow.given(label=2)] if glow.num_classes else [])):
        assert_change_of_variables(view, x)
        assert_round_trip(view, x)


def test_the_prior_of_a_split_depends_on_what_stays():
    """z of the first split is standardised by mean and scale from the other half: change that half, and it changes."""
    glow = make(size=0.3)
    x, y = points(SHAPE, n=1), points(SHAPE, n=1, seed=5)
    split = glow.core.splits[0]
    h, k = (squeeze(t) for t in (x, y))
    mixed = torch.cat([k[:, : split.kept], h[:, split.kept :]], 1)
    a, b = (split(t)[0][:, split.kept :] for t in (h, mixed))
    assert float((a - b).detach().abs().max()) > 0.01


def test_labels_share_a_pass():
    glow = make(num_classes=4, size=0.2)
    assert_views_share_a_pass(glow, points(SHAPE), glow.core.splits[0], 1)


def test_actnorm_is_initialised_layer_by_layer():
    """After prepare, what every actnorm puts out on that batch has mean 0 and variance 1 in each channel."""
    torch.manual_seed(0)
    glow = Glow(SHAPE, steps=2, hidden=8, num_classes=2, loc=0.0, scale=1.0)
    x = 3 + 2 * torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 4)
    label = torch.arange(64) % 2
    seen = []
    norms = [m for m in glow.modules() if isinstance(m, ActNorm)]
    assert len(norms) == 4
    glow.dropout = 0.0
    glow.prepare((x, label), torch.Generator())
    for norm in norms:
        norm.register_forward_hook(lambda module, args, out: seen.append(out[0].detach()))
    glow.given(label=label).energy(x)
    for y in seen:
        assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(y.shape[1]), atol=1e-4)
        assert torch.allclose(y.var((0, 2, 3), correction=0), torch.ones(y.shape[1]), atol=1e-3)
    state = {k: v.clone() for k, v in glow.state_dict().items()}
    glow.prepare((100 * x, label), torch.Generator())
    assert all(torch.equal(v, state[k]) for k, v in glow.state_dict().items())


def test_unprepared_it_starts_as_a_rotated_gaussian():
    torch.manual_seed(0)
    x = points(SHAPE).float()
    expected = -0.5 * (x.flatten(1).square().sum(1) + 16 * math.log(2 * math.pi))
    assert torch.allclose(Glow(SHAPE, hidden=8).log_prob(x), expected, atol=1e-4)


def correlated(n, generator):
    """Images with one common factor: a Gaussian whose entropy is known."""
    common = torch.randn(n, 1, 1, 1, generator=generator)
    return 0.5 + common + 0.3 * torch.randn(n, 1, 2, 2, generator=generator)


def test_fit_reaches_the_entropy_of_a_gaussian():
    """−E log p of the data falls to its entropy, within 0.1 nats of 1.6 in 4 coordinates; draws have its moments."""
    torch.manual_seed(0)
    glow = Glow((1, 2, 2), levels=1, steps=3, hidden=16)
    fit(glow, correlated, steps=200, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    covariance = torch.ones(4, 4) + 0.09 * torch.eye(4)
    truth = Gaussian(torch.full((4,), 0.5), covariance)
    x = correlated(4000, torch.Generator().manual_seed(5))
    with torch.no_grad():
        gap = float((glow.energy(x) - truth.energy(x.flatten(1))).mean())
        draws = glow.sample(4000, torch.Generator().manual_seed(6)).flatten(1)
    assert -0.05 < gap < 0.1
    assert torch.allclose(draws.mean(0), torch.full((4,), 0.5), atol=0.15)
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.2)


def test_composition_and_inpainting():
    """Glow × Gaussian from the exact start of SMC and by HMC agree; clamped pixels stay. False-positive rate 1e-3."""
    glow = make(shape=(1, 2, 2), levels=1).float()
    product = glow * Gaussian(torch.full((1, 2, 2), 0.5), 0.5)
    by_smc = sample(product, 1000, sampler=SMC(), seed=0)
    chains = sample(product, chains=100, sampler=MCMC(HMC(), warmup=60, draws=20), seed=1)
    a, b = (t.reshape(-1, 4).double() for t in (by_smc.x, chains.x))
    error = (a.var(0) / 250 + b.var(0) / 250).sqrt()  # a quarter of each is independent
    assert bool(((a.mean(0) - b.mean(0)).abs() < 4 * error).all())
    assert by_smc.log_z is not None
    mask = torch.tensor([[[True, False], [False, False]]])
    clamped = glow * Clamp(mask, torch.full((1, 2, 2), 0.7))
    drawn = sample(clamped, chains=40, sampler=MCMC(HMC(), warmup=60, draws=20), seed=0).x
    assert bool((drawn[..., 0, 0, 0] == 0.7).all())
    assert float(drawn[..., 0, 0, 1].std()) > 0.1


def test_a_specification_of_plain_values_builds_one():
    arguments = {"event_shape": [1, 8, 8], "levels": 3, "steps": 1, "hidden": 8, "num_classes": 10, "bounds": [-1, 1]}
    glow = build({"class": "Glow", "arguments": arguments})
    assert glow.given(label=3).sample(2).shape == (2, 1, 8, 8)


WRONG = {
    "vector": (lambda: Glow((4,)), ValueError, r"event_shape is \(C, H, W\)"),
    "odd": (lambda: Glow((1, 6, 6), levels=2), ValueError, r"multiples of 2\*\*levels = 4"),
    "levels": (lambda: Glow(SHAPE, levels=0), ValueError, "levels is a positive int"),
    "steps": (lambda: Glow(SHAPE, steps=1.0), ValueError, "steps is a positive int"),
    "hidden": (lambda: Glow(SHAPE, hidden=True), ValueError, "hidden is a positive int"),
    "bound": (lambda: Glow(SHAPE, bound=0.0), ValueError, "bound"),
    "constant": (
        lambda: Glow(SHAPE, loc=0.0, scale=1.0).prepare(torch.zeros(5, *SHAPE), torch.Generator()),
        ValueError,
        "channel of the first batch is constant",
    ),
    "weight shape": (lambda: InvertibleConv(3).set_weight(torch.eye(4)), ValueError, r"shape \(3, 3\)"),
    "singular": (lambda: InvertibleConv(3).set_weight(torch.zeros(3, 3)), ValueError, "singular"),
    "labels unwanted": (
        lambda: CouplingNet(1, 2)(torch.zeros(2, 1, 2, 2), torch.zeros(2).long()),
        TypeError,
        "without classes",
    ),
    "x": (lambda: make().energy(torch.zeros(2, 1, 4, 5, dtype=D)), ValueError, r"\(N, 1, 4, 4\)"),
    "label": (lambda: make(num_classes=3).given(label=7), ValueError, r"\[0, 3\)"),
    "twice": (lambda: make(num_classes=3).given(label=1).given(label=2), ValueError, "already conditioned"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
