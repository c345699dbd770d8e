"""Laws of VAEs: the joint is exact, the bounds are bounds, gradients are unbiased, conditional views share a network.

The linear-Gaussian VAE, x = W z + b + s ε, has everything in closed form. A quadratic function of Gaussian noise has
its exact expectation under the 2d sigma points ±√d e_i, which makes the ELBO of a linear VAE an exact number.
Statistical tests have fixed seeds and compare at most 200 numbers at |z| < 5: false-positive rate below 1.2e-4 each.
"""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import boltzmix as bm
from boltzmix.compose.variable import map_state
from boltzmix.models import VAE, fit
from boltzmix.models.load import build
from boltzmix.models.nets import ConvDecoder, ConvEncoder, Dense
from tests.contracts import Contract, assert_close, assert_z, check_score_is_gradient, contract_cases

D = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=D)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Affine(nn.Module):
    """A x + c, with a constant log standard deviation beside it for an encoder."""

    def __init__(self, matrix, shift, log_std=None):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(matrix.clone()), nn.Parameter(shift.clone())
        self.log_std = None if log_std is None else nn.Parameter(log_std.clone())

    def forward(self, x, label=None):
        mean = x @ self.matrix.mT + self.shift
        return mean if self.log_std is None else torch.cat([mean, self.log_std.expand(len(x), -1)], 1)


W = tensor([0.8, -0.5], [0.4, 0.9], [-0.6, 0.3])
SPREAD, SHIFT = 0.6, tensor(0.3, -0.2, 0.5)
MARGINAL = bm.Gaussian(SHIFT, W @ W.mT + SPREAD**2 * torch.eye(3, dtype=D))
X = MARGINAL.sample(6, seeded(1))


def linear(matrix=W, encoder=None, **options):
    """The linear-Gaussian VAE, by default with a q that is far from the posterior."""
    if encoder is None:
        encoder = Affine(
            0.3 * matrix.mT + 0.1, tensor(*[0.1] * matrix.shape[1]), tensor(*[-0.3, 0.1][: matrix.shape[1]])
        )
    return VAE(encoder, Affine(matrix, SHIFT), (3,), (matrix.shape[1],), std=SPREAD, **options)


def posterior(x, matrix=W, spread=SPREAD):
    """p(z|x) of the linear VAE."""
    precision = torch.eye(matrix.shape[1], dtype=D) + matrix.mT @ matrix / spread**2
    mean = (x - SHIFT) @ matrix @ torch.linalg.inv(precision) / spread**2
    return MultivariateNormal(mean, precision_matrix=precision)


def sigma_points(size, rows):
    """``(2 d, rows, d)`` base noise with mean 0 and covariance I, exactly."""
    points = math.sqrt(size) * torch.cat([torch.eye(size, dtype=D), -torch.eye(size, dtype=D)])
    return points[:, None].expand(-1, rows, -1)


def exact_elbo(vae, x):
    """The ELBO of a linear VAE, without noise."""
    reconstruction, kl = vae._bound(x, None, sigma_points(vae.core.latent_shape[0], len(x)))
    return reconstruction.mean(0) - kl.sum(0).mean(0)


def nonlinear(latent=1, classes=None, likelihood="gaussian", event=(2,), **options):
    torch.manual_seed(0)
    size = math.prod(event)
    nets = (Dense(event, 2 * latent, 8, 1, classes), Dense(latent, event, 8, 1, classes))
    vae = VAE(*(net.double() for net in nets), event, (latent,), likelihood=likelihood, num_classes=classes, **options)
    with torch.no_grad():
        for p in vae.core.decoder.parameters():
            p.mul_(1.0 if size > 4 else 2.0)
    return vae


def line(half=6.0, count=4001):
    """Grid over one latent and its cell."""
    z = torch.linspace(-half, half, count, dtype=D)
    return z[:, None], 2 * half / (count - 1)


TERMS = {
    "linear": Contract(linear, span=2.0),
    "dense": Contract(lambda: nonlinear(2, std=0.5), span=2.0),
    "conditional": Contract(lambda: nonlinear(2, classes=3, noise="diagonal").given(label=1), span=2.0),
    "conv": Contract(
        lambda: VAE(ConvEncoder((1, 4, 4), 4, (4, 8)), ConvDecoder(2, (1, 4, 4), (8, 4)), (1, 4, 4), (2,)),
        span=2.0,
        dtype=torch.float32,
        rows=4,
    ),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


def check_score(term):
    check_score_is_gradient(Contract(lambda: term, span=2.0))


# ------------------------------------------------------------------------------------------------------- the joint


def test_the_joint_of_the_linear_vae_is_its_gaussian():
    vae = linear()
    mean = torch.cat([SHIFT, torch.zeros(2, dtype=D)])
    upper = torch.cat([MARGINAL.covariance, W], 1)
    joint = bm.Gaussian(mean, torch.cat([upper, torch.cat([W.mT, torch.eye(2, dtype=D)], 1)]))
    state = vae.sample(7, seeded(0))
    both = torch.cat([state["x"], state["z"]], 1)
    assert_close(vae.log_prob(state), joint.log_prob(both), 1e-10, "log p(x, z)")
    score = vae.score(state)
    assert_close(torch.cat([score["x"], score["z"]], 1), joint.score(both), 1e-10, "score")


def test_a_standard_deviation_per_dimension_is_that_of_its_dimension():
    vae = linear(noise="diagonal")
    stds = tensor(0.5, 1.0, 2.0)
    with torch.no_grad():
        vae.core.likelihood.log_std.copy_(stds.log())
    state = vae.sample(5, seeded(0))
    expected = torch.distributions.Normal(state["z"] @ W.mT + SHIFT, stds).log_prob(state["x"]).sum(1)
    assert_close(-vae.energy(state), expected + vae.prior.log_prob(state["z"]), 1e-10, "log p(x, z)")


def test_the_joint_integrates_to_one():
    vae = nonlinear(1, event=(1,), std=0.4)
    (z, cell), (x, cell_x) = line(count=301), line(8.0, 401)
    state = {"x": x.repeat(len(z), 1), "z": z.repeat_interleave(len(x), 0)}
    with torch.no_grad():
        assert abs(float((-vae.energy(state)).exp().sum()) * cell * cell_x - 1) < 1e-4


def test_exact_draws_have_the_marginal_of_x():
    state = linear().sample(20_000, seeded(3))
    x = state["x"] - SHIFT
    covariance = MARGINAL.covariance
    assert_z(x.mean(0) / (covariance.diagonal() / len(x)).sqrt(), "mean of x")
    products = x[:, :, None] * x[:, None, :]
    assert_z((products.mean(0) - covariance) / (products.std(0) / math.sqrt(len(x))), "covariance of x")
    cross = x[:, :, None] * state["z"][:, None, :]
    assert_z((cross.mean(0) - W) / (cross.std(0) / math.sqrt(len(x))), "covariance of x and z")


def test_chains_over_x_and_z_have_the_closed_form_marginals():
    """512 independent chains of HMC; their last states are independent draws."""
    draw = bm.sample(linear(), chains=512, sampler=bm.MCMC(bm.HMC(), warmup=150, draws=3), seed=0)
    x, z = draw.x["x"][:, -1] - SHIFT, draw.x["z"][:, -1]
    for values, variances in ((x, MARGINAL.covariance.diagonal()), (z, torch.ones(2, dtype=D))):
        assert_z(values.mean(0) / (variances / len(values)).sqrt(), "means of the chains")
        ratio = (values**2 / variances).mean(0)
        assert_z((ratio - 1) / math.sqrt(2 / len(values)), "variances of the chains")


def test_smc_over_x_and_z_composes_with_a_factor_on_z():
    vae, factor = linear(), bm.Gaussian(tensor(0.5, -0.5), 0.5)
    draw = bm.sample(vae * factor.on("z"), 4000, seed=0)
    exact = bm.Gaussian(torch.zeros(2, dtype=D), 1.5)
    assert abs(draw.log_z - float(exact.log_prob(factor.mean[None]))) < 4 * draw.log_z_se + 1e-3
    z = factor.mean / 1.5
    assert_z((draw.x["z"].mean(0) - z) / math.sqrt(1 / 3 / 2000), "mean of z")
    spread = (W @ W.mT / 3 + SPREAD**2 * torch.eye(3, dtype=D)).diagonal()
    assert_z((draw.x["x"].mean(0) - W @ z - SHIFT) / (spread / 2000).sqrt(), "mean of x")


def check_posterior(z, x):
    exact = posterior(x)
    mean, covariance = exact.mean[0], exact.covariance_matrix
    half = len(z) / 2  # resampled particles repeat: count half of them
    assert_z((z.mean(0) - mean) / (covariance.diagonal() / half).sqrt(), "posterior mean")
    products = (z - mean)[:, :, None] * (z - mean)[:, None, :]
    assert_z((products.mean(0) - covariance) / (products.std(0) / math.sqrt(half)), "posterior covariance")


def test_a_clamp_on_x_gives_the_exact_posterior_of_z():
    x = X[:1]
    draw = bm.sample(linear() * bm.Clamp(torch.ones(3, dtype=torch.bool), x[0]).on("x"), 4000, seed=0)
    assert bool((draw.x["x"] == x).all())
    check_posterior(draw.x["z"], x)


def test_the_observed_factor_gives_the_posterior_and_its_evidence():
    vae, x = linear(), X[:1]
    for init in (None, vae.proposal(x)):
        draw = bm.sample(vae.prior * vae.observed(x), 4000, seed=0, init=init)
        check_posterior(draw.x, x)
        assert abs(draw.log_z - float(MARGINAL.log_prob(x))) < 4 * draw.log_z_se + 1e-3


# ------------------------------------------------------------------------------------------------------ the bounds


def test_elbo_plus_the_divergence_of_q_is_log_p():
    vae = linear()
    q = vae.encode(X)
    divergence = kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), posterior(X))
    assert_close(exact_elbo(vae, X) + divergence, MARGINAL.log_prob(X), 1e-10, "ELBO + KL")
    assert float(divergence.detach().min()) > 0.1


def test_the_estimate_is_unbiased_for_the_elbo():
    vae = linear()
    with torch.no_grad():
        found = torch.stack([vae.elbo(X, seeded(i), samples=4) for i in range(500)])
        z = (found.mean(0) - exact_elbo(vae, X)) / (found.std(0) / math.sqrt(len(found)))
        alone = torch.stack([vae.elbo(X, seeded(i)) for i in range(500)])
    assert_z(z, "ELBO")
    ratio = (alone.var(0) / found.var(0)).mean()
    assert 3 < float(ratio) < 5, "four draws have a quarter of the variance"


ORTHOGONAL = tensor([0.8, -0.4], [0.4, 0.8], [0.0, 0.0])


def optimal():
    """A VAE whose q is the posterior, diagonal because the columns of W are orthogonal."""
    x = torch.zeros(1, 3, dtype=D)
    exact = posterior(x, ORTHOGONAL)
    slope = exact.covariance_matrix[0] @ ORTHOGONAL.mT / SPREAD**2
    return linear(ORTHOGONAL, Affine(slope, -slope @ SHIFT, exact.variance[0].log() / 2))


def test_with_the_posterior_as_q_every_bound_is_log_p():
    vae = optimal()
    log_p = bm.Gaussian(SHIFT, ORTHOGONAL @ ORTHOGONAL.mT + SPREAD**2 * torch.eye(3, dtype=D)).log_prob(X)
    assert_close(exact_elbo(vae, X), log_p, 1e-10, "ELBO at the optimum")
    for k in (1, 7):
        assert_close(vae.iwae(X, k, seeded(0)), log_p, 1e-10, "IWAE at the optimum, whatever the draws")
    marginal = vae.marginal(3, seed=5)
    assert_close(-marginal.energy(X), log_p, 1e-10, "the bound as a term")


def test_iwae_rises_with_k_to_log_p():
    vae = linear()
    x, log_p = X[:1].expand(4000, 3), float(MARGINAL.log_prob(X[:1]))
    with torch.no_grad():
        ladder = torch.stack([vae.iwae(x, k, seeded(k)) for k in (1, 2, 8, 32)])
        mean, error = ladder.mean(1), ladder.std(1) / math.sqrt(ladder.shape[1])
        assert abs(float((mean[0] - exact_elbo(vae, X[:1])) / error[0])) < 5, "IWAE-1 is the ELBO"
        steps = (mean[1:] - mean[:-1]) / (error[1:] ** 2 + error[:-1] ** 2).sqrt()
        assert float(steps.min()) > 5, "each k is a better bound"
        assert float(((mean - log_p) / error).max()) < 5, "and a bound"
        weights = (ladder - log_p).exp()
        assert_z((weights.mean(1) - 1) / (weights.std(1) / math.sqrt(len(x))), "exp(IWAE) is unbiased for p(x)")
        limit = torch.stack([vae.iwae(X, 20_000, seeded(i)) for i in range(3)]).mean(0)
    assert_close(limit, MARGINAL.log_prob(X), 0.0, "the limit", atol=0.03)


def test_the_integral_over_z_is_the_limit_of_iwae():
    vae = nonlinear(1, std=0.5)
    z, cell = line()
    x = vae.sample(4, seeded(2))["x"]
    with torch.no_grad():
        logs = torch.stack([-vae.energy({"x": row.expand(len(z), -1), "z": z}) for row in x])
        exact = logs.logsumexp(1) + math.log(cell)
        repeats = torch.stack([vae.iwae(x, 2000, seeded(i)).exp() for i in range(40)])
    ratio = repeats / exact.exp()
    assert_z((ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(40)), "IWAE against quadrature")
    assert float(ratio.std(0).max()) < 0.5


def test_parts_of_a_large_bound_are_joined(monkeypatch):
    import boltzmix.models.latent_model as module

    monkeypatch.setattr(module, "_ROWS", 18)  # three draws for six rows
    vae = optimal()
    parts = [len(noise) for noise in vae._noises(7, 6, seeded(0))]
    assert parts == [3, 3, 1]
    with torch.no_grad():
        assert_close(vae.iwae(X, 7, seeded(0)), vae.iwae(X, 2, seeded(1)), 1e-10, "IWAE in parts")
        found = torch.stack([vae.elbo(X, seeded(i), samples=7) for i in range(300)])
        assert_z((found.mean(0) - exact_elbo(vae, X)) / (found.std(0) / math.sqrt(300)), "ELBO in parts")


def test_the_frozen_bound_is_a_function_of_x_and_unbiased_over_seeds():
    vae = linear()
    bound = vae.marginal(4, seed=1)
    assert not bound.normalized
    assert torch.equal(bound.energy(X), bound.energy(X))
    assert_close(bound.energy(X[2:4]), bound.energy(X)[2:4], 1e-12, "rows are independent")
    with torch.no_grad():
        energies = torch.stack([vae.marginal(4, seed=i).energy(X) for i in range(600)])
    ratio = (-energies - MARGINAL.log_prob(X)).exp()
    assert_z((ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(len(ratio))), "p(x) on average over seeds")
    assert float((energies.mean(0) + MARGINAL.log_prob(X)).min()) > 0, "above −log p on average"


BOUNDS = {
    "bound": Contract(lambda: linear().marginal(3), span=2.0),
    "proposal": Contract(lambda: linear().proposal(X[0]), span=4.0),
    "observed": Contract(lambda: nonlinear(2).observed(torch.ones(2, dtype=D)), span=2.0),
    "aggregate": Contract(lambda: linear().aggregate(X), span=4.0),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(BOUNDS))
def test_contract_of_what_a_model_makes(check, contract):
    check(contract)


def test_the_aggregate_is_the_mean_of_the_proposals():
    vae = linear()
    z = torch.randn(5, 2, generator=seeded(0), dtype=D)
    each = torch.stack([vae.proposal(x).log_prob(z) for x in X])
    assert_close(vae.aggregate(X).log_prob(z), each.logsumexp(0) - math.log(len(X)), 1e-10, "log q(z)")


def test_a_proposal_with_a_row_of_data_for_each_draw():
    vae = linear()
    q = vae.proposal(X)
    z = q.sample(len(X), seeded(0))
    each = torch.cat([vae.proposal(X[i]).log_prob(z[i : i + 1]) for i in range(len(X))])
    assert_close(q.log_prob(z), each, 1e-12, "rows")
    with pytest.raises(ValueError, match="6 rows of data"):
        q.sample(4)


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_loss_is_the_elbo_with_beta_on_the_kl(beta):
    vae = linear(beta=beta)
    kl = kl_divergence(vae.encode(X), bm_standard(2)).mean()
    elbo = vae.elbo(X, seeded(4)).mean()
    assert_close(vae.loss(X, seeded(4)), -elbo + (beta - 1) * kl, 1e-10, "loss")
    found = vae.metrics()
    assert set(found) == {"elbo", "reconstruction", "kl_z"}
    assert_close(torch.tensor(found["kl_z"]), kl, 1e-6, "the KL that is reported")
    assert_close(torch.tensor(found["elbo"]), elbo, 1e-6, "the ELBO that is reported")


def bm_standard(size):
    normal = torch.distributions.Normal(torch.zeros(size, dtype=D), torch.ones(size, dtype=D))
    return torch.distributions.Independent(normal, 1)


def gradients(vae, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(vae.core.parameters()))])


def test_reparameterised_gradients_are_unbiased_and_quieter_than_reinforce():
    """Over 250 seeds, against the gradient of the closed form; REINFORCE weighs ∇ log q by log p(x|z)."""
    vae = linear()
    exact = gradients(vae, -exact_elbo(vae, X).mean())
    found = torch.stack([gradients(vae, vae.loss(X, seeded(i))) for i in range(250)])
    error = found.std(0) / math.sqrt(len(found))
    assert_z((found.mean(0) - exact) / (error + 1e-9), "gradient of the loss")

    def reinforce(seed):
        with torch.no_grad():
            z = vae.proposal(X).sample(len(X), seeded(seed))
        label = None
        value = vae.core.likelihood.log_prob(X, vae.core.decode(z, label))
        log_q = vae.core.log_q(z, X, label)
        kl = kl_divergence(vae.encode(X), bm_standard(2))
        return gradients(vae, -(value + value.detach() * log_q - kl).mean())

    rough = torch.stack([reinforce(i) for i in range(250)])
    assert_z((rough.mean(0) - exact) / (rough.std(0) / math.sqrt(250) + 1e-9), "gradient of REINFORCE")
    encoder = sum(p.numel() for p in vae.core.encoder.parameters())
    ratio = (rough.var(0)[:encoder] / found.var(0)[:encoder].clamp(min=1e-12)).log().mean().exp()
    assert float(ratio) > 5, f"REINFORCE has {float(ratio):.1f} times the variance"


def ellipse(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=D) @ tensor([1.0, 0.6], [0.0, 0.3]) + tensor(1.0, -0.5)


def small(beta=1.0, classes=None):
    torch.manual_seed(0)
    nets = Dense(2, 4, 16, 1, classes).double(), Dense(2, 2, 16, 1, classes).double()
    return VAE(*nets, (2,), (2,), std=0.3, noise="fixed", beta=beta, num_classes=classes)


def test_the_kl_falls_as_beta_grows():
    rates = []
    for beta in (0.25, 1.0, 4.0):
        vae = small(beta)
        fit(vae, ellipse, steps=100, batch_size=64, lr=1e-2, seed=0, ema=0.9, progress=False)
        with torch.no_grad():
            rates.append(float(kl_divergence(vae.encode(ellipse(500, seeded(9))), bm_standard(2)).mean()))
    assert all(high > 1.2 * low for high, low in itertools.pairwise(rates)), rates


def test_fit_nears_the_entropy_of_gaussian_data():
    torch.manual_seed(0)
    vae = VAE(Dense(2, 2, 32, 1).double(), Dense(1, 2, 32, 1).double(), (2,), (1,), noise="diagonal")
    fit(vae, ellipse, steps=400, batch_size=128, lr=1e-2, seed=0, ema=0.97, progress=False)
    data = bm.Gaussian(tensor(1.0, -0.5), tensor([1.0, 0.6], [0.6, 0.45]))
    x = ellipse(2000, seeded(11))
    with torch.no_grad():
        gap = float((data.log_prob(x) - vae.iwae(x, 32, seeded(0))).mean())
        elbo = float((data.log_prob(x) - vae.elbo(x, seeded(0), samples=8)).mean())
    assert -0.01 < gap < 0.05, gap
    assert gap - 0.01 < elbo < 0.15


def test_weights_return_from_a_state_dict():
    vae, other = small(classes=2), small(classes=2)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    other.load_state_dict(vae.state_dict())
    state = vae.sample(3, seeded(0))
    assert_close(other.energy(state), vae.energy(state), 0.0, "energies")


# ------------------------------------------------------------------------------------------------------- conditions


def test_conditional_views_differ_and_share_the_network():
    vae = nonlinear(2, classes=3)
    views = [vae.given(label=i) for i in range(3)]
    state = vae.sample(5, seeded(0))
    energies = torch.stack([v.energy(state) for v in (vae, *views)])
    assert float((energies[1:] - energies[:-1]).abs().min(1).values.max()) > 1e-3
    assert all(v.core is vae.core and v.prior is vae.prior for v in views)
    assert {id(p) for v in views for p in v.parameters()} == {id(p) for p in vae.parameters()}
    q = [v.encode(state["x"]).mean for v in views]
    assert not torch.allclose(q[0], q[1])
    assert not torch.allclose(views[0].iwae(state["x"], 3, seeded(0)), views[1].iwae(state["x"], 3, seeded(0)))
    guided = vae * (views[1] / vae) ** 2.0
    assert guided.exponents() == [-1.0, 2.0]
    assert_close(guided.energy(state), 2 * views[1].energy(state) - vae.energy(state), 1e-10, "guidance power")


def test_many_conditions_cost_one_forward_and_equal_separate_calls():
    vae = nonlinear(2, classes=3)
    rows, decoder = [], vae.core.decoder
    decoder.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    state = vae.sample(4, seeded(0))
    terms = [vae.given(label=2), vae, vae.given(label=torch.tensor([0, 1, 2, 0]))]
    rows.clear()
    together = vae._evaluate_together(terms, state, None, True, True)
    assert rows == [12]
    for term, (energy, score) in zip(terms, together, strict=True):
        assert_close(energy, term.energy(state), 1e-12, "energy")
        for name, value in term.score(state).items():
            assert_close(score[name], value, 1e-12, name)
    assert vae._evaluate_together(terms, state, None, True, False)[0][1] is None
    leaf = map_state(lambda t: t.requires_grad_(), vae.sample(4, seeded(1)))
    total = sum(s["z"].sum() for _, s in vae._evaluate_together(terms, leaf, None, False, True))
    one = sum(t.score(leaf)["z"].sum() for t in terms)
    assert_close(*(torch.autograd.grad(v, leaf["z"], retain_graph=True)[0] for v in (total, one)), 1e-9, "Hessians")


def test_labels_are_learned_and_the_hidden_label_is_the_mixture():
    centres = tensor([-1.5, 0.0], [1.5, 0.0])

    def stream(n, generator):
        label = torch.randint(2, (n,), generator=generator)
        return centres[label] + 0.3 * torch.randn(n, 2, generator=generator, dtype=D), label

    vae = small(classes=2)
    fit(vae, stream, steps=200, batch_size=64, lr=1e-2, seed=0, ema=0.95, progress=False)
    for label in (0, 1):
        x = vae.given(label=label).sample(500, seeded(label))["x"]
        assert float((x.mean(0) - centres[label]).abs().max()) < 0.3
    assert float(vae.sample(500, seeded(2))["x"][:, 0].std()) > 1.0
    mixed = vae.given(label=torch.arange(6) % 2).sample(6, seeded(0))["x"][:, 0]
    assert torch.equal(mixed > 0, torch.arange(6) % 2 == 1)


# -------------------------------------------------------------------------------------------------- binary data


def binary(**options):
    return nonlinear(1, likelihood="bernoulli", event=(3,), **options)


def corners():
    return torch.cartesian_prod(*[torch.arange(2)] * 3)


def enumerated(vae, x):
    """log p(x) by quadrature over z."""
    z, cell = line()
    with torch.no_grad():
        logs = torch.stack([-vae.energy({"x": row.expand(len(z), -1), "z": z}) for row in x])
    return logs.logsumexp(1) + math.log(cell)


def test_binary_probabilities_sum_to_one_and_draws_follow_them():
    vae = binary()
    log_p = enumerated(vae, corners())
    assert abs(float(log_p.exp().sum()) - 1) < 1e-6
    draws = vae.sample(20_000, seeded(0))["x"]
    assert not draws.is_floating_point()
    found = torch.bincount(draws @ torch.tensor([4, 2, 1]), minlength=8) / len(draws)
    p = log_p.exp()
    assert_z((found - p) / (p * (1 - p) / len(draws)).sqrt(), "frequencies")


def test_binary_bounds_reach_the_enumerated_probability():
    vae = binary()
    with torch.no_grad():
        ratio = (
            torch.stack([vae.iwae(corners(), 500, seeded(i)) for i in range(30)]).sub(enumerated(vae, corners())).exp()
        )
        elbo = torch.stack([vae.elbo(corners(), seeded(i), samples=50) for i in range(10)]).mean(0)
    assert_z((ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(30)), "IWAE against enumeration")
    assert bool((elbo < enumerated(vae, corners()) + 0.02).all())


def test_intensities_are_probabilities_of_binary_pixels():
    vae = binary()
    x = tensor([0.0, 0.25, 1.0]).expand(2, 3).clone()
    drawn = torch.stack([vae.core.likelihood.binarised(x, seeded(i)) for i in range(4000)]).double()
    assert bool((drawn[..., 0] == 0).all() & (drawn[..., 2] == 1).all())
    assert abs(float(drawn[..., 1].mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8000)
    assert torch.equal(vae.core.likelihood.binarised(corners(), seeded(0)), corners())
    assert math.isfinite(float(vae.loss(x, seeded(0))))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        vae.loss(2 * x, seeded(0))


def test_binary_data_are_observed_rather_than_clamped():
    vae, x = binary(), torch.tensor([1, 0, 1])
    draw = bm.sample(vae.prior * vae.observed(x), 4000, seed=0)
    assert abs(draw.log_z - float(enumerated(vae, x[None]))) < 4 * draw.log_z_se + 1e-3
    with pytest.raises(TypeError, match="discrete"):
        bm.sample(vae, chains=2, sampler=bm.MCMC(bm.HMC()), seed=0)


# ---------------------------------------------------------------------------------------------------- small things


def test_encode_decode_and_reconstruct():
    vae = linear()
    q = vae.encode(X)
    assert_close(q.mean, X @ vae.core.encoder.matrix.mT + vae.core.encoder.shift, 1e-12, "mean of q")
    assert_close(q.stddev[0], vae.core.encoder.log_std.exp(), 1e-12, "standard deviation of q")
    assert_close(vae.decode(q.mean), q.mean @ W.mT + SHIFT, 1e-12, "decoder")
    assert_close(vae.reconstruct(X), vae.decode(q.mean), 1e-12, "reconstruction at the mean")
    drawn = torch.stack([vae.reconstruct(X, seeded(i)) for i in range(400)]).detach()
    assert_z((drawn.mean(0) - vae.reconstruct(X)) / (drawn.std(0) / 20), "reconstruction at draws")


def test_the_same_seed_gives_the_same_numbers_and_nothing_else_is_touched():
    vae = linear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(vae.loss(X, seeded(1)), vae.loss(X, seeded(1)))
    assert torch.equal(vae.iwae(X, 3, seeded(1)), vae.iwae(X, 3, seeded(1)))
    vae.sample(3, seeded(0))
    vae.marginal(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_follows_its_networks_dtype():
    vae = nonlinear(2)
    assert vae.prior.mean.dtype == vae.core.likelihood.log_std.dtype == D
    assert vae.float().sample(2)["x"].dtype == torch.float32
    with pytest.raises(TypeError, match="share dtype"):
        VAE(Dense(2, 4).double(), Dense(2, 2), (2,), (2,))


WRONG = {
    "beta": (lambda: linear(beta=-1.0), ValueError, "beta"),
    "beta nan": (lambda: linear(beta=math.nan), ValueError, "beta"),
    "beta bool": (lambda: linear(beta=True), ValueError, "beta"),
    "likelihood": (lambda: linear(likelihood="laplace"), ValueError, "likelihood is one of"),
    "noise": (lambda: linear(noise="full"), ValueError, "noise"),
    "std": (lambda: VAE(Dense(2, 4), Dense(2, 2), (2,), (2,), std=0.0), ValueError, "std"),
    "latent shape": (lambda: VAE(Dense(2, 4), Dense(2, 2), (2,), (0,)), ValueError, "event shape"),
    "classes": (lambda: VAE(Dense(2, 4, num_classes=3), Dense(2, 2), (2,), (2,), num_classes=3), ValueError, "built"),
    "encoder size": (lambda: VAE(Dense(2, 3), Dense(2, 2), (2,), (2,)).encode(torch.zeros(1, 2)), ValueError, "2 · 2"),
    "decoder": (lambda: VAE(Dense(2, 4), Dense(2, 3), (2,), (2,)).decode(torch.zeros(1, 2)), ValueError, "decoder"),
    "x shape": (lambda: linear().elbo(torch.zeros(2, 4, dtype=D)), ValueError, "shape"),
    "x dtype": (lambda: linear().elbo(torch.zeros(2, 3)), TypeError, "float64"),
    "x named": (lambda: linear().energy(torch.zeros(2, 3, dtype=D)), TypeError, "dictionary"),
    "integers": (lambda: linear().elbo(torch.zeros(2, 3, dtype=torch.long)), TypeError, "floating"),
    "batch": (lambda: linear().loss(torch.zeros(2, 4, dtype=D), seeded(0)), ValueError, "batch"),
    "batch dtype": (lambda: linear().loss(X.float(), seeded(0)), TypeError, "float64"),
    "batch of integers": (lambda: linear().loss(X.long(), seeded(0)), TypeError, "density over reals"),
    "labels": (lambda: linear().loss((X, torch.zeros(6, dtype=torch.long)), seeded(0)), ValueError, "num_classes"),
    "samples": (lambda: linear().elbo(X, samples=0), ValueError, "samples"),
    "k": (lambda: linear().iwae(X, 0), ValueError, "k is"),
    "k float": (lambda: linear().iwae(X, 2.0), ValueError, "k is"),
    "bound k": (lambda: linear().marginal(0), ValueError, "k is"),
    "bound seed": (lambda: linear().marginal(2, seed=-1), ValueError, "seed"),
    "given": (lambda: linear().given(label=1), TypeError, "takes none"),
    "label": (lambda: nonlinear(1, classes=2).given(label=2), ValueError, "label"),
    "given twice": (lambda: nonlinear(1, classes=2).given(label=1).given(label=0), ValueError, "already"),
    "not binary": (lambda: binary().elbo(torch.full((1, 3), 2)), ValueError, r"\{0, 1\}"),
    "floats for bits": (lambda: binary().elbo(torch.ones(1, 3, dtype=D)), TypeError, "integer"),
    "observed": (lambda: linear().observed(torch.zeros(4, dtype=D)), ValueError, "shape"),
    "observed dtype": (lambda: linear().observed(torch.zeros(3)), TypeError, "float64"),
    "observed none": (lambda: linear().observed(torch.zeros(0, 3, dtype=D)), ValueError, "at least one"),
    "rows of labels": (
        lambda: nonlinear(1, classes=2).given(label=torch.tensor([0, 1])).sample(3),
        ValueError,
        "labels",
    ),
    "aggregate": (
        lambda: VAE(Dense(2, 8), Dense((2, 2), 2), (2,), (2, 2)).aggregate(torch.zeros(3, 2)),
        ValueError,
        "aggregate",
    ),
    "net rows": (lambda: Dense(3, 2)(torch.zeros(2, 4)), ValueError, "built for"),
    "net labels": (lambda: Dense(3, 2)(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)), TypeError, "classes"),
    "net size": (lambda: Dense(0, 2), ValueError, "positive ints"),
    "image": (lambda: ConvEncoder((1, 6, 8), 4, (4, 8)), ValueError, "multiples"),
    "image rows": (lambda: ConvDecoder(4)(torch.zeros(1, 5)), ValueError, "built for"),
}


@pytest.mark.parametrize(("call", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_calls_say_what_came_and_what_was_expected(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_labels_reach_every_network():
    label = torch.tensor([0, 1, -1])
    for net, x in (
        (Dense(3, 2, num_classes=2), torch.ones(3, 3)),
        (ConvEncoder((1, 4, 4), 4, (4, 8), num_classes=2), torch.ones(3, 1, 4, 4)),
        (ConvDecoder(4, (1, 4, 4), (8, 4), num_classes=2), torch.ones(3, 4)),
    ):
        out = net(x, label)
        assert not torch.allclose(out[0], out[1])
        assert torch.allclose(out[2], net(x)[2], atol=1e-6)


def test_a_specification_builds_it():
    encoder = {"class": "ConvEncoder", "arguments": {"shape": [1, 8, 8], "outputs": 8, "hidden": [4, 8]}}
    decoder = {"class": "Dense", "arguments": {"inputs": [4], "outputs": [1, 8, 8], "hidden": 8}}
    arguments = {"encoder": encoder, "decoder": decoder, "event_shape": [1, 8, 8], "latent_shape": [4], "beta": 2.0}
    vae = build({"class": "VAE", "arguments": arguments})
    assert isinstance(vae, VAE)
    assert vae.sample(2)["x"].shape == (2, 1, 8, 8)


def test_copies_are_independent():
    vae = linear()
    clone = copy.deepcopy(vae)
    with torch.no_grad():
        clone.core.decoder.shift.add_(1.0)
    assert vae.key() != clone.key()
    state = vae.sample(3, seeded(0))
    assert not torch.allclose(clone.energy(state), vae.energy(state))
