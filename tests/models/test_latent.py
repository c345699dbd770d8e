"""Composition in latent space: a formula over z means p(z) ∏ f(D(z)), against grids and closed forms.

Statistical tests have fixed seeds and compare at most 200 numbers at |z| < 5: false-positive rate below 1.2e-4 each.
"""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.compose.errors import SamplingWarning, ScopeError
from boltzmix.models import VAE, Diffusion, HierarchicalVAE, fit
from boltzmix.models.latent import Decoded
from boltzmix.models.nets import MLP, Dense
from tests.contracts import Contract, assert_close, assert_z, contract_cases

D = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=D)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def made(latent=1, classes=None, **options):
    torch.manual_seed(0)
    nets = Dense(2, 2 * latent, 8, 1, classes).double(), Dense(latent, 2, 8, 1, classes).double()
    with torch.no_grad():
        for p in nets[1].parameters():
            p.mul_(2.0)
    return VAE(*nets, (2,), (latent,), std=0.3, num_classes=classes, **options)


def two_levels(classes=None):
    torch.manual_seed(0)
    nets = [Dense(2, 4, 8, 1, classes), Dense(4, 2, 8, 1, classes), Dense(5, 2, 8, 1, classes)]
    nets += [Dense(1, 2, 8, 1, classes), Dense(2, 2, 8, 1, classes)]
    nets = [net.double() for net in nets]
    with torch.no_grad():
        for p in nets[-1].parameters():
            p.mul_(2.0)
    return HierarchicalVAE(*nets, event_shape=(2,), latents=(1, 1), skip=True, num_classes=classes)


REWARD = bm.term(lambda x: 2 * torch.cos(2 * x[:, 0]) - (x[:, 1] - 0.5) ** 2, kind="log_prob", event_shape=(2,))
PULL = bm.Gaussian(tensor(0.4, -0.3), 0.5)
SCORE_ONLY = bm.term(lambda x: (tensor(0.4, -0.3) - x) / 0.5, kind="score", event_shape=(2,))

TERMS = {
    "decoded": Contract(lambda: made(2).pulled(REWARD), span=2.0),
    "decoded-score": Contract(lambda: made(2).pulled(SCORE_ONLY), span=2.0, convertible=False),
    "decoded-hierarchy": Contract(lambda: two_levels().pulled(PULL), span=2.0),
    "latent": Contract(lambda: made(1).latent(REWARD, PULL), span=2.0, coarse=False),
    "latent-label": Contract(lambda: made(1, classes=3).given(label=2).latent(PULL), span=2.0, coarse=False),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


def grid(latent):
    axis = torch.linspace(-5, 5, 2001 if latent == 1 else 301, dtype=D)
    mesh = torch.cartesian_prod(*[axis] * latent).reshape(-1, latent)
    return mesh, float(axis[1] - axis[0]) ** latent


def written(vae, z, factors):
    """log p(z) + Σ log f(D(z)), by hand."""
    x = vae.core.decoder(z)
    normal = -0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
    return normal - sum(f.energy(x) for f in factors)


def check_against_grid(term, log_density, latent, n=4000):
    """Draws by SMC have the grid's moments and its log Z; resampled particles repeat, so half of them count."""
    mesh, cell = grid(latent)
    with torch.no_grad():
        logs = log_density(mesh)
        assert_close(-term.energy(mesh), logs, 1e-9, "the formula's energy")
    weights = logs.softmax(0)
    draw = bm.sample(term, n, seed=0)

    def features(z):
        return torch.cat([z, z**2, torch.sin(2 * z)], 1)

    exact = weights @ features(mesh)
    spread = (weights @ features(mesh) ** 2 - exact**2).sqrt()
    assert_z((features(draw.x).mean(0) - exact) / (spread / math.sqrt(n / 2)), "moments of the draws")
    assert abs(draw.log_z - float(logs.logsumexp(0)) - math.log(cell)) < 4 * draw.log_z_se + 2e-3
    return draw


@pytest.mark.parametrize("latent", [1, 2])
def test_a_reward_in_latent_space_is_the_grids_answer(latent):
    vae = made(latent)
    check_against_grid(vae.latent(REWARD, PULL), lambda z: written(vae, z, [REWARD, PULL]), latent)


def test_another_prior_over_z_replaces_that_of_the_model():
    vae, q = made(1), bm.GaussianMixture(tensor(-1.0, 1.5)[:, None], tensor(0.2, 0.1))
    term = vae.latent(REWARD) * q / vae.prior
    assert len(term.pairs()) == 2, "the model's prior cancels"
    check_against_grid(term, lambda z: q.log_prob(z) - REWARD.energy(vae.core.decoder(z)), 1)


def test_an_empty_formula_is_the_prior():
    vae = made(2)
    z = torch.randn(4, 2, dtype=D, generator=seeded(0))
    assert_close(vae.latent().energy(z), vae.prior.energy(z), 0.0, "energy")
    assert vae.latent().samplable


def test_a_factor_is_pulled_back_without_a_jacobian():
    """Change of variables would add log|D'|; a factor is a function, and its value is that at D(z)."""
    vae = made(1)
    z = torch.randn(5, 1, dtype=D, generator=seeded(1))
    assert_close(vae.pulled(PULL).energy(z), PULL.energy(vae.decode(z)), 1e-12, "f(D(z))")


def test_a_score_pulls_back_by_the_transposed_jacobian():
    vae = made(2)
    z = torch.randn(5, 2, dtype=D, generator=seeded(1))
    assert not vae.pulled(SCORE_ONLY).has_energy
    assert_close(vae.pulled(SCORE_ONLY).score(z), vae.pulled(PULL).score(z), 1e-10, "score")


def test_factors_over_one_decoder_share_its_forward():
    vae = made(2)
    rows = []
    vae.core.decoder.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    term = vae.latent(REWARD, PULL, SCORE_ONLY)
    z = torch.randn(5, 2, dtype=D, generator=seeded(1))
    score = term.score(z)
    assert rows == [5]
    alone = sum(vae.pulled(f).score(z) for f in (REWARD, PULL, SCORE_ONLY)) + vae.prior.score(z)
    assert_close(score, alone, 1e-10, "score")
    both = vae.latent(REWARD, PULL)
    rows.clear()
    energy, together = both.energy_and_score(z)
    assert rows == [5]
    assert_close(energy, both.energy(z), 1e-12, "energy")
    assert_close(together, both.score(z), 1e-12, "score")


def test_equal_factors_merge_and_different_labels_do_not():
    vae = made(1, classes=3)
    assert vae.latent(PULL, PULL).exponents() == [1.0, 2.0]
    one, two = vae.given(label=1), vae.given(label=2)
    assert len((one.latent(PULL) * two.latent(PULL)).pairs()) == 3
    assert one.prior is two.prior


def test_a_label_given_to_the_formula_reaches_the_decoder():
    vae = made(1, classes=3)
    z = torch.randn(5, 1, dtype=D, generator=seeded(1))
    found = vae.latent(PULL).given(label=2).energy(z)
    assert_close(found, vae.given(label=2).latent(PULL).energy(z), 1e-12, "energy")
    assert not torch.allclose(found, vae.latent(PULL).energy(z))


def test_a_label_goes_to_a_conditional_factor_too():
    classes = 3
    torch.manual_seed(0)
    p = Diffusion(MLP(2, hidden=8, depth=1, num_classes=classes).double(), (2,), num_classes=classes).double()
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.add_(0.1)
    vae = made(1)
    term = vae.pulled(p)
    assert term.conditions == {"label"}
    z = torch.randn(5, 1, dtype=D, generator=seeded(1))
    assert_close(term.given(label=1).score(z), vae.pulled(p.given(label=1)).score(z), 1e-12, "score")


def test_a_classifier_in_latent_space_is_bayes_rule():
    """Two labels with logits linear in x: draws fall where the posterior says."""
    vae = made(1)
    slope = tensor(3.0, -2.0)
    label = bm.term(lambda x: torch.nn.functional.logsigmoid(x @ slope), kind="log_prob", event_shape=(2,))

    def log_density(z):
        logits = vae.core.decoder(z) @ slope
        return -0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) - torch.log1p((-logits).exp())

    check_against_grid(vae.latent(label), log_density, 1)


def test_both_levels_of_a_hierarchy_compose():
    vae = two_levels()
    axis = torch.linspace(-6, 6, 301, dtype=D)
    mesh = torch.cartesian_prod(axis, axis)
    z = {"z1": mesh[:, :1], "z2": mesh[:, 1:]}
    with torch.no_grad():
        mean, log_std = vae.core.middle(z["z2"]).chunk(2, 1)
        low = torch.distributions.Normal(mean, log_std.exp()).log_prob(z["z1"])[:, 0]
        high = torch.distributions.Normal(0.0, 1.0).log_prob(z["z2"])[:, 0]
        logs = low + high - REWARD.energy(vae.core.decoder(torch.cat([z["z1"], z["z2"]], 1)))
        assert_close(-vae.latent(REWARD).energy(z), logs, 1e-10, "energy")
    weights = logs.softmax(0)
    draw = bm.sample(vae.latent(REWARD), 4000, seed=0)
    for i, name in enumerate(("z1", "z2")):
        mean = weights @ mesh[:, i]
        std = (weights @ (mesh[:, i] - mean) ** 2).sqrt()
        assert_z((draw.x[name].mean() - mean) / (std / math.sqrt(2000)), name)
    decoded = vae.decoded(draw)
    assert set(decoded.x) == {"x", "z1", "z2"}


def test_a_diffusion_over_latents_is_a_prior_with_noise_levels():
    """Its formula anneals over the latents' noise, and the decoder's factor enters on the way."""
    vae = made(2)
    torch.manual_seed(0)
    p = Diffusion(MLP(2, hidden=16, depth=1).double(), (2,), sigma_data=1.0, sigma_range=(0.05, 10.0))
    latents = torch.randn(256, 2, dtype=D, generator=seeded(0))
    fit(p, latents, steps=5, batch_size=32, progress=False)
    term = vae.latent(PULL) * p / vae.prior
    assert term.path == "annealed"
    draw = bm.sample(term, 16, sampler=bm.Annealed(levels=4), seed=0)
    assert vae.decoded(draw).x["x"].shape == (16, 2)


def test_a_draw_is_decoded_with_its_weights():
    vae = made(2)
    draw = bm.sample(vae.latent(PULL), 200, sampler=bm.SMC(resample=False), seed=0)
    found = vae.decoded(draw)
    assert_close(found.x["x"], vae.decode(draw.x), 0.0, "x")
    assert torch.equal(found.x["z"], draw.x)
    assert torch.equal(found.log_weights, draw.log_weights)
    assert found.log_z == draw.log_z
    assert isinstance(draw.x, torch.Tensor), "the draw itself is as it was"
    noisy = torch.stack([vae.decoded(draw, seeded(i)).x["x"] for i in range(50)]) - found.x["x"]
    expected = float(vae.core.likelihood.log_std.detach().exp())
    ratio = float((noisy**2).mean() / expected**2)
    assert abs(ratio - 1) < 5 * math.sqrt(2 / noisy.numel())


def test_chains_keep_their_shape_when_decoded():
    vae = made(2)
    with pytest.warns(SamplingWarning):  # so few draws cannot agree
        draw = bm.sample(vae.latent(PULL), chains=3, sampler=bm.MCMC(bm.HMC(), warmup=20, draws=5), seed=0)
    found = vae.decoded(draw)
    assert found.x["x"].shape == (3, 5, 2)
    assert_close(found.x["x"][1], vae.decode(draw.x[1]), 0.0, "x")


def test_the_factor_is_trained_through():
    """A parameter of a factor, and those of the decoder, get the gradient of the pulled-back score."""
    vae = made(1)
    weight = torch.nn.Parameter(tensor(1.5)[0])
    term = vae.latent(PULL) * vae.pulled(REWARD) ** weight
    z = torch.randn(4, 1, dtype=D, generator=seeded(0))
    term.score(z).square().sum().backward()
    assert float(weight.grad.abs()) > 0
    assert all(p.grad is not None for p in vae.core.decoder.parameters())
    bias = next(vae.core.decoder.last.parameters())
    found = bias.grad[0, 0].clone()
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            bias[0, 0] += step
            values.append(float(term.score(z).square().sum()))
        bias[0, 0] += 1e-6
    assert_close(found, torch.tensor((values[0] - values[1]) / 2e-6), 1e-4, "gradient through the score")


WRONG = {
    "no term": (lambda: made().latent(torch.cos), TypeError, "wrap it"),
    "over z": (
        lambda: made(3).latent(bm.Gaussian(torch.zeros(3, dtype=D), 1.0)),
        ScopeError,
        r"vae.latent\(\) \* term",
    ),
    "named": (lambda: made(1).latent(PULL.on("x")), ScopeError, "decoded x"),
    "joint": (lambda: made(1).latent(made(1)), ScopeError, "decoded x"),
    "z shape": (lambda: made(2).latent(PULL).energy(torch.zeros(3, 1, dtype=D)), ValueError, "shape"),
    "z dtype": (lambda: made(2).pulled(PULL).energy(torch.zeros(3, 2)), TypeError, "float64"),
    "given": (lambda: made(1).latent(PULL).given(label=1), TypeError, "unknown condition"),
    "twice": (lambda: made(1, 2).given(label=0).latent(PULL).given(label=1), TypeError, "unknown condition"),
}


@pytest.mark.parametrize(("call", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_names_say_what_is_where():
    vae = made(1, classes=2).given(label=1)
    assert "at the decoded z" in vae.latent(PULL).name()
    assert Decoded(PULL, vae)._rows() == 1
    assert "observed" in vae.observed(torch.zeros(2, dtype=D)).name()
    assert "proposal" in vae.proposal(torch.zeros(2, dtype=D)).name()
    assert "IWAE-2" in vae.marginal(2).name()
