"""p(c | x) as a factor: Bayes' rule on a grid, noise levels, classifier guidance with and without weights."""

import math
import warnings

import pytest
import torch
from torch import nn

from boltzmix.benchmarks.metrics import bandwidths, kernel_mean, self_mean
from boltzmix.compose import SMC, Clamp, Denoised, Gaussian, GaussianMixture, Reverse, sample
from boltzmix.compose.errors import ScopeError
from boltzmix.compose.term import evaluate
from boltzmix.models import Classifier, fit, load
from boltzmix.models.nets import MLP, LogitsConv, LogitsMLP
from tests.contracts import Contract, contract_cases

D = torch.float64
# Five overlapping components in three classes: the middle one lies between the others.
MEANS = torch.tensor([[-1.2, 0.0], [0.2, 1.4], [0.0, 0.0], [1.0, -0.6], [0.9, 0.8]], dtype=D)
VARIANCES = torch.tensor([0.25, 0.1, 0.15, 0.2, 0.1], dtype=D)
WEIGHTS = torch.tensor([0.25, 0.15, 0.2, 0.25, 0.15], dtype=D)
CLASS = torch.tensor([0, 0, 1, 2, 2])
SIGMA_DATA = 0.5
PRIOR = GaussianMixture(MEANS, VARIANCES, WEIGHTS)
P_CLASS = torch.stack([WEIGHTS[c == CLASS].sum() for c in range(3)])


def conditional(c):
    """p(x | c), a mixture of the class's own components."""
    mine = c == CLASS
    return GaussianMixture(MEANS[mine], VARIANCES[mine], WEIGHTS[mine])


def class_logits(x, sigma=None):
    """log p(x; σ, c), so that their softmax is p(c | x; σ)."""
    variance = VARIANCES if sigma is None else VARIANCES + sigma.reshape(-1, 1) ** 2
    gap = (x[:, None] - MEANS.to(x)).square().sum(2)
    parts = WEIGHTS.log() - 0.5 * gap / variance - variance.log()
    return torch.stack([parts[:, c == CLASS].logsumexp(1) for c in range(3)], 1).to(x)


def noisy_logits(x_in, c_noise):
    """The same in the coordinates of a noise-aware classifier."""
    sigma = (4 * c_noise).exp()
    return class_logits(x_in * (sigma**2 + SIGMA_DATA**2).sqrt()[:, None], sigma)


def clean():
    return Classifier(class_logits, (2,), 3)


def aware(low=0.01, high=20.0):
    return Classifier(noisy_logits, (2,), 3, sigma_range=(low, high), sigma_data=SIGMA_DATA)


def small(num_classes=3, **options):
    torch.manual_seed(0)
    return Classifier(event_shape=(2,), num_classes=num_classes, hidden=(16,), **options).to(D)


def grid(count=300, half=4.0):
    axis = (torch.arange(count, dtype=D) + 0.5) / count * 2 * half - half
    return torch.cartesian_prod(axis, axis), (2 * half / count) ** 2


def points(n=40, seed=0):
    return 1.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=D)


def smooth(**options):
    """A classifier of images without kinks (pooling has some, that finite differences would meet)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3)).to(D)
    return Classifier(net, (1, 4, 4), 3, **options)


def pair(c):
    return c.given(label=0) * c.given(label=2) ** 0.5


TERMS = {
    "clean": Contract(lambda: small().given(label=1)),
    "clean-float32": Contract(
        lambda: Classifier(event_shape=(2,), num_classes=3).given(label=0), dtype=torch.float32, tolerance=1e-4
    ),
    "clean-image": Contract(lambda: smooth().given(label=2)),
    "exact": Contract(lambda: clean().given(label=1), convertible=False),
    "two-labels": Contract(lambda: pair(small())),
    "noise-aware": Contract(
        lambda: small(sigma_range=(0.1, 9.0)).given(label=1), levels=(None, 0.1, 0.5, 9.0), coarse=False
    ),
    "posterior": Contract(lambda: PRIOR * clean().given(label=0), coarse=False, convertible=False),
    "guided": Contract(
        lambda: PRIOR * aware().given(label=2) ** 2.0, levels=(None, 0.2, 1.0), coarse=False, convertible=False
    ),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------------- Bayes' rule


@pytest.mark.parametrize("label", range(3))
def test_prior_times_factor_is_the_enumerated_posterior(label):
    """On a grid: exp(−E) integrates to p(c), and divided by it is p(x | c)."""
    mesh, cell = grid()
    joint = PRIOR * clean().given(label=label)
    mass = (-joint.energy(mesh)).exp() * cell
    assert float(mass.sum()) == pytest.approx(float(P_CLASS[label]), rel=1e-6)
    truth = conditional(label).log_prob(mesh).exp() * cell
    assert torch.allclose(mass / mass.sum(), truth, atol=1e-9)
    assert not joint.normalized
    assert joint.calibrated


def test_classes_exhaust_the_prior():
    c = clean()
    total = sum((PRIOR * c.given(label=k) for k in range(1, 3)), start=PRIOR * c.given(label=0))
    assert torch.allclose(total.energy(points()), PRIOR.energy(points()), atol=1e-9)
    assert torch.allclose(c.log_posterior(points()).exp().sum(1), torch.ones(40, dtype=D))
    assert torch.equal(c.predict(points()), class_logits(points()).argmax(1))


def test_the_factor_over_x_and_label_completes_a_joint_density():
    c = clean()
    joint = PRIOR.on("x") * c
    assert (c.normalized, c.normalized_over, joint.normalized) == (False, {"label"}, True)
    x, label = points(12), torch.arange(12) % 3
    state = {"x": x, "label": label}
    each = torch.stack([(PRIOR * c.given(label=int(k))).energy(x[i : i + 1])[0] for i, k in enumerate(label)])
    assert torch.allclose(-joint.log_prob(state), each)
    score = joint.score(state)
    want = torch.cat([(PRIOR * c.given(label=int(k))).score(x[i : i + 1]) for i, k in enumerate(label)])
    assert torch.allclose(score["x"], want)
    assert not score["label"].any()
    mesh, cell = grid(200)
    total = sum(
        float((-joint.energy({"x": mesh, "label": torch.full((len(mesh),), k)})).exp().sum()) * cell for k in range(3)
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_labels_per_row():
    c, x = small(), points(6)
    label = torch.tensor([0, 1, 2, 2, 1, 0])
    rows = c.given(label=label)
    want = torch.stack([c.given(label=int(k)).energy(x[i : i + 1])[0] for i, k in enumerate(label)])
    assert torch.allclose(rows.energy(x), want)
    assert rows.per_row


def test_several_labels_are_one_forward_of_the_same_rows():
    c, x = small(), points(5)
    calls = []
    c.core.register_forward_hook(lambda module, args, out: calls.append(tuple(args[0].shape)))
    views = [c.given(label=k) for k in range(3)]
    found = evaluate(views, x, None, energy=True, score=True)
    assert calls == [(5, 2)]
    for view in views:
        energy, score = found[view.key()]
        assert torch.allclose(energy, view.energy(x))
        assert torch.allclose(score, view.score(x))
    product = c.given(label=0) * c.given(label=0)
    assert len(product.pairs()) == 1


# --------------------------------------------------------------------------------------------------- over noise levels


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5, 8.0])
def test_prior_times_noise_aware_factor_is_the_noised_conditional(sigma):
    """p(x; σ) p(c | x; σ) = p(c) p(x; σ | c) at every level, which no clean classifier gives."""
    x = points() * (1 + sigma)
    for label in range(3):
        joint = PRIOR * aware().given(label=label)
        truth = conditional(label)
        assert torch.allclose(-joint.energy(x, sigma), truth.log_prob(x, sigma) + P_CLASS[label].log(), atol=1e-8)
        assert torch.allclose(joint.score(x, sigma), truth.score(x, sigma), atol=1e-8)
        wrong = PRIOR * clean().given(label=label)
        assert float((wrong.score(x, sigma) - truth.score(x, sigma)).abs().max()) > 1e-2
    assert aware().path == "annealed"
    assert (PRIOR * aware().given(label=0)).path == "annealed"


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(3)
    component = torch.multinomial(WEIGHTS, 4000, replacement=True, generator=generator)
    noise = torch.randn(4000, 2, generator=generator, dtype=D)
    return (MEANS[component] + VARIANCES[component].sqrt()[:, None] * noise).float(), CLASS[component]


def test_training_reaches_the_posterior(data):
    """Mean absolute error of p(c | x) below 0.04 where the data are; the label shares alone would be off by 0.3."""
    torch.manual_seed(0)
    model = Classifier(event_shape=(2,), num_classes=3, hidden=(32, 32))
    fit(model, data, steps=300, batch_size=256, lr=1e-2, ema=0.98, progress=False)
    x = PRIOR.sample(1000, torch.Generator().manual_seed(5))
    with torch.no_grad():
        found, truth = model.log_posterior(x.float()).exp(), class_logits(x).softmax(1)
    assert float((found - truth).abs().mean()) < 0.04
    assert float((P_CLASS - truth).abs().mean()) > 0.25


def test_training_over_noise_levels_reaches_the_noised_posterior(data):
    """The same at three levels; the labels of clean data, kept by noise, would be off by 0.2 at the larger two."""
    torch.manual_seed(0)
    model = Classifier(event_shape=(2,), num_classes=3, hidden=(32, 32), sigma_range=(0.02, 10.0))
    fit(model, data, steps=400, batch_size=512, lr=1e-2, ema=0.98, progress=False)
    generator = torch.Generator().manual_seed(5)
    for sigma in (0.1, 1.0, 5.0):
        x = PRIOR.sample(1000, generator) + sigma * torch.randn(1000, 2, generator=generator, dtype=D)
        with torch.no_grad():
            found = model.log_posterior(x.float(), sigma).exp()
            truth = class_logits(x, torch.tensor(sigma, dtype=D)).softmax(1)
        assert float((found - truth).abs().mean()) < 0.05
        if sigma >= 1:
            assert float((class_logits(x).softmax(1) - truth).abs().mean()) > 0.15


# -------------------------------------------------------------------------------------------------- classifier guidance

LABEL, DRAWS = 0, 1500


def mmd(x, reference, squared):
    return self_mean(x, squared) + self_mean(reference, squared) - 2 * kernel_mean(x, reference, squared)


@pytest.fixture(scope="module")
def judge():
    """MMD² to exact draws of p(x | c), and the largest that 20 exact sets of the same size reach."""
    truth = conditional(LABEL)
    reference = truth.sample(3000, torch.Generator().manual_seed(77))
    squared = bandwidths(reference)
    floor = max(mmd(truth.sample(DRAWS, torch.Generator().manual_seed(100 + i)), reference, squared) for i in range(20))
    return lambda x: mmd(x, reference, squared), floor


def guided(term, sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Reverse says that a product is no noised density: that is what is measured
        return sample(term, DRAWS, sampler=sampler, seed=0, progress=False)


FACTORS = {
    "clean": lambda: clean().given(label=LABEL),
    "denoised": lambda: Denoised(clean().given(label=LABEL), PRIOR),
    "noise-aware": lambda: aware().given(label=LABEL),
}


@pytest.mark.parametrize("path", ["exact-start", "noise"])
@pytest.mark.parametrize("name", FACTORS)
def test_guidance_with_weights_reaches_the_posterior(name, path, judge):
    """SMC, from exact draws of the prior or down its levels, corrects any factor that is p(c | x) at the data end.

    MMD² is at the floor and log Z is log p(c).
    False-positive rates: log Z beyond 4 standard errors 6e-5; an MMD² twice the largest of 20 floors, below 1e-2.
    """
    distance, floor = judge
    draw = guided(PRIOR * FACTORS[name](), SMC(path=path))
    assert draw.info.path == path
    assert distance(draw.x) < 2 * floor
    assert abs(draw.log_z - math.log(P_CLASS[LABEL])) < 4 * draw.log_z_se


@pytest.mark.parametrize(("name", "biased"), [("clean", True), ("denoised", True), ("noise-aware", False)])
def test_guidance_without_weights_is_biased_unless_the_classifier_knows_the_noise(name, biased, judge):
    """Reverse diffusion on the summed scores: exact for the exact p(c | x; σ), far from p(x | c) for the others."""
    distance, floor = judge
    draw = guided(PRIOR * FACTORS[name](), Reverse(steps=60))
    if biased:
        assert distance(draw.x) > 8 * floor
    else:
        assert distance(draw.x) < 2 * floor


def test_shuffled_labels_fail(judge):
    """The negative control: the factor of another class, corrected by weights as well as it can be."""
    distance, floor = judge
    order = torch.tensor([1, 2, 0])
    shuffled = Classifier(lambda x: class_logits(x)[:, order], (2,), 3).given(label=LABEL)
    draw = guided(PRIOR * shuffled, SMC())
    assert distance(draw.x) > 20 * floor
    assert abs(draw.log_z - math.log(P_CLASS[LABEL])) > 4 * draw.log_z_se


def test_a_power_of_the_factor_sharpens():
    """Mean p(c | x) over draws rises with the guidance scale, and the draws' spread falls."""
    shares, spreads = [], []
    for scale in (0.0, 1.0, 4.0):
        draw = guided(PRIOR * clean().given(label=2) ** scale, SMC())
        shares.append(float(class_logits(draw.x).softmax(1)[:, 2].mean()))
        spreads.append(float(torch.cov(draw.x.T).logdet()))
    assert shares[0] < shares[1] < shares[2]
    assert spreads[0] > spreads[1] > spreads[2]


def test_with_clamped_coordinates():
    """p(x₁ | x₀, c) of Gaussians whose classes differ in x₁: the posterior over x₁ is the class's."""
    c = Classifier(lambda x: torch.stack([-((x[:, 1] + k) ** 2) / 2 for k in (1.0, -1.0)], 1), (2,), 2)
    prior = Gaussian(torch.zeros(2, dtype=D), 1.0)
    clamp = Clamp(torch.tensor([True, False]), torch.tensor([0.7, 0.0], dtype=D))
    x = guided(prior * c.given(label=1) * clamp, SMC()).x
    assert bool((x[:, 0] == 0.7).all())
    axis = torch.linspace(-8, 8, 4001, dtype=D)
    log_p = -0.5 * axis**2 + nn.functional.logsigmoid(2 * axis)
    weights = log_p.softmax(0)
    mean = float(weights @ axis)
    deviation = float((weights @ axis**2 - mean**2).sqrt())
    assert abs(float(x[:, 1].mean()) - mean) < 5 * deviation / math.sqrt(DRAWS)


# -------------------------------------------------------------------------------------------- networks, weights, errors


def test_any_network_of_the_right_signature():
    """An MLP of the diffusion models serves as a noise-aware classifier as it is."""
    model = Classifier(MLP(2, hidden=8, out=3), (2,), 3, sigma_range=(0.02, 5.0))
    assert torch.allclose(model.log_posterior(points().float(), 0.3).exp(), torch.full((40, 3), 1 / 3))
    assert model.given(label=1).score(points().float(), torch.full((40,), 0.5)).shape == (40, 2)


@pytest.mark.parametrize("net", [LogitsMLP, LogitsConv])
def test_networks_see_the_level_only_where_they_were_built_to(net):
    torch.manual_seed(0)
    make = (lambda a: LogitsMLP(3, 4, (8,), a)) if net is LogitsMLP else (lambda a: LogitsConv(1, 4, (4, 8), 4, a))
    x = torch.randn(5, 3) if net is LogitsMLP else torch.randn(5, 1, 4, 4)
    with pytest.raises(TypeError, match="noise_aware=False and got a noise level"):
        make(False)(x, torch.zeros(5))
    with pytest.raises(TypeError, match="noise_aware=True and got no noise level"):
        make(True)(x)
    built = make(True)
    assert not torch.allclose(built(x, torch.zeros(5)), built(x, torch.ones(5)))


def test_double_backward_reaches_the_weights():
    c = smooth()
    c.given(label=0).score(torch.randn(3, 1, 4, 4, dtype=D)).square().sum().backward()
    assert all(p.grad is not None for p in c.parameters() if p.numel() > 3)


def test_shipped_weights_are_a_term():
    judge = load("digits-classifier")
    view = judge.given(label=3)
    energy, score = view.energy_and_score(torch.zeros(2, 1, 8, 8))
    with torch.no_grad():
        assert torch.allclose(energy, -judge.log_posterior(torch.zeros(2, 1, 8, 8))[:, 3])
    assert score.shape == (2, 1, 8, 8)
    renamed = {k.removeprefix("core."): v for k, v in judge.state_dict().items()}
    other = Classifier()
    other.load_state_dict(renamed)  # as files name them that were written when a classifier was no term
    assert torch.equal(other.core.last.weight, judge.core.last.weight)


X = torch.zeros(2, 2)
WRONG = {
    "no label": (lambda: Gaussian(torch.zeros(2), 1.0) * small().float(), ScopeError, "bind it with"),
    "label too large": (lambda: small().given(label=3), ValueError, r"\[0, 3\)"),
    "label a string": (lambda: small().given(label="three"), TypeError, "label is an int"),
    "label twice": (lambda: small().given(label=1).given(label=2), ValueError, "already conditioned"),
    "labels of the joint": (
        lambda: small().energy({"x": X.double(), "label": torch.tensor([0, 7])}),
        ValueError,
        r"labels are ints in \[0, 3\)",
    ),
    "x of another shape": (lambda: small().log_posterior(torch.zeros(2, 3, dtype=D)), ValueError, r"\(N, 2\)"),
    "x of another dtype": (lambda: small().given(label=0).energy(X), TypeError, "float64 weights"),
    "x in half precision": (lambda: small().given(label=0).energy(X.half()), TypeError, "float16"),
    "wrong logits": (
        lambda: Classifier(lambda x: x, (2,), 3).given(label=0).energy(X),
        ValueError,
        r"returns logits \(2, 3\), got \(2, 2\)",
    ),
    "logits of another dtype": (lambda: Classifier(lambda x: x.double(), (2,), 2).predict(X), TypeError, "float64"),
    "logits without a graph": (
        lambda: Classifier(lambda x: x.detach(), (2,), 2).given(label=0).score(X),
        ValueError,
        "carry no gradient",
    ),
    "one class": (lambda: Classifier(event_shape=(2,), num_classes=1), ValueError, "num_classes >= 2"),
    "no network": (lambda: Classifier(3, (2,), 2), TypeError, "got int"),
    "no default network": (lambda: Classifier(event_shape=(1, 4, 8)), ValueError, "pass net="),
    "image of a size": (lambda: Classifier(event_shape=(1, 6, 6)), ValueError, "multiple of 4"),
    "hidden and net": (lambda: Classifier(LogitsMLP(2), (2,), 10, hidden=(4,)), ValueError, "has its own"),
    "levels": (lambda: small(sigma_range=(0.5, 0.1)), ValueError, "sigma_range"),
    "sigma_data": (lambda: small(sigma_data=0.0), ValueError, "sigma_data"),
    "noise twice": (lambda: small(sigma_range=(0.1, 1.0), noise=0.1), ValueError, "leave out noise"),
    "smoothing": (lambda: small(smoothing=1.0), ValueError, "smoothing"),
    "shift of vectors": (lambda: small(shift=1), ValueError, "images"),
    "level too small": (
        lambda: small(sigma_range=(0.1, 1.0)).log_posterior(X.double(), 0.01),
        ValueError,
        "noise levels",
    ),
    "denoise": (lambda: small(sigma_range=(0.1, 1.0)).given(label=0).denoise(X.double(), 0.5), TypeError, "annealed"),
    "coarse": (lambda: small(sigma_range=(0.1, 1.0)).given(label=0).coarse(0.5), TypeError, "no coarse form"),
    "batch without labels": (lambda: small().loss(X.double(), torch.Generator()), ValueError, r"\(x, label\)"),
    "labels of a batch": (lambda: small().loss((X.double(), torch.zeros(2)), torch.Generator()), ValueError, "ints"),
    "labels short": (
        lambda: small().loss((X.double(), torch.zeros(3, dtype=torch.long)), torch.Generator()),
        ValueError,
        r"\(2,\)",
    ),
    "x of a batch": (
        lambda: small().loss((torch.zeros(2, 3, dtype=D), torch.zeros(2, dtype=torch.long)), torch.Generator()),
        ValueError,
        r"\(N, 2\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
