"""Laws of the two-level VAE, on a linear-Gaussian one whose joint, posterior and bounds are closed forms.

z2 ~ N(0, I), z1 = A z2 + a + t ε, x = W z1 + V z2 + b + s ε. Under the sigma points ±√d e_i of all base noise
together a quadratic has its exact expectation, which makes the ELBO an exact number.
Statistical tests have fixed seeds and compare at most 200 numbers at |z| < 5: false-positive rate below 1.2e-4 each.
"""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import boltzmix as bm
from boltzmix.compose.variable import map_state
from boltzmix.models import HierarchicalVAE, fit
from boltzmix.models.nets import Dense
from tests.contracts import Contract, assert_close, assert_z, contract_cases

D = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=D)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Affine(nn.Module):
    """A x + c, with a constant log standard deviation beside it where one is given."""

    def __init__(self, matrix, shift, log_std=None):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(matrix.clone()), nn.Parameter(shift.clone())
        self.log_std = None if log_std is None else nn.Parameter(log_std.clone())

    def forward(self, x, label=None):
        mean = x @ self.matrix.mT + self.shift
        return mean if self.log_std is None else torch.cat([mean, self.log_std.expand(len(x), -1)], 1)


# sizes: x 3, z1 2, z2 1
A, SHIFT1, STD1 = tensor([0.7], [-0.4]), tensor(0.2, -0.1), tensor(0.5, 0.8)
W, V, SHIFT = tensor([0.8, -0.5], [0.4, 0.9], [-0.6, 0.3]), tensor([0.5], [-0.2], [0.1]), tensor(0.3, -0.2, 0.5)
SPREAD = 0.6


def stacked(skip=True, size=2):
    """Mean ``(L2 + L1 + 3,)`` and covariance of (z2, z1, x), the first ``size`` dimensions of z1 kept."""
    a, shift, std, w = A[:size], SHIFT1[:size], STD1[:size], W[:, :size]
    v = V if skip else torch.zeros_like(V)
    root = torch.zeros(4 + size, 4 + size, dtype=D)  # columns: noise of z2, of z1, of x
    root[0, 0] = 1.0
    root[1 : 1 + size, :1], root[1 : 1 + size, 1 : 1 + size] = a, torch.diag(std)
    root[1 + size :, :1], root[1 + size :, 1 : 1 + size] = w @ a + v, w * std
    root[1 + size :, 1 + size :] = SPREAD * torch.eye(3, dtype=D)
    mean = torch.cat([torch.zeros(1, dtype=D), shift, w @ shift + SHIFT])
    return mean, root @ root.mT


MEAN, COVARIANCE = stacked()
MARGINAL = bm.Gaussian(MEAN[3:], COVARIANCE[3:, 3:])
X = MARGINAL.sample(5, seeded(1))


def linear(skip=True, size=2, nets=None, **options):
    """The linear model, by default with a q that is far from the posterior."""
    if nets is None:
        nets = {
            "encoder": Affine(torch.eye(3, dtype=D), torch.zeros(3, dtype=D)),
            "top": Affine(tensor([0.2, 0.1, -0.1]), tensor(0.1), tensor(-0.2)),
            "bottom": Affine(
                tensor([0.3, 0.2, -0.2, 0.4], [-0.1, 0.4, 0.1, -0.2]), tensor(0.1, 0.0), tensor(-0.5, -0.3)
            ),
        }
    middle = Affine(A[:size], SHIFT1[:size], STD1[:size].log())
    decoder = Affine(torch.cat([W[:, :size], V], 1) if skip else W[:, :size], SHIFT)
    settings = {"event_shape": (3,), "latents": (size, 1), "skip": skip, "std": SPREAD, **options}
    return HierarchicalVAE(**nets, middle=middle, decoder=decoder, **settings)


def joint_q(vae, x):
    """Mean ``(N, 3)`` and covariance of q(z2, z1|x) of the linear model above."""
    core = vae.core
    m2, s2 = core.top.matrix @ x.mT, core.top.log_std.exp()
    mean2 = m2.mT + core.top.shift
    on_x, on_z2 = core.bottom.matrix[:, :3], core.bottom.matrix[:, 3:]
    mean1 = x @ on_x.mT + mean2 @ on_z2.mT + core.bottom.shift
    root = torch.zeros(3, 3, dtype=D)
    root[0, 0] = s2
    root[1:, :1], root[1:, 1:] = on_z2 * s2, torch.diag(core.bottom.log_std.exp())
    return MultivariateNormal(torch.cat([mean2, mean1], 1), root @ root.mT)


def exact_posterior(x, size=2, skip=True):
    """p(z2, z1|x)."""
    mean, covariance = stacked(skip, size)
    k = 1 + size
    gain = covariance[:k, k:] @ torch.linalg.inv(covariance[k:, k:])
    spread = covariance[:k, :k] - gain @ covariance[k:, :k]
    return MultivariateNormal(mean[:k] + (x - mean[k:]) @ gain.mT, 0.5 * (spread + spread.mT))


def sigma_points(rows, size=2):
    """Base noise of both levels with mean 0 and covariance I over the two together, exactly."""
    d = 1 + size
    points = math.sqrt(d) * torch.cat([torch.eye(d, dtype=D), -torch.eye(d, dtype=D)])
    noise = points[:, None].expand(-1, rows, -1)
    return {"z1": noise[..., 1:], "z2": noise[..., :1]}


def exact_elbo(vae, x, size=2):
    reconstruction, kl = vae._bound(x, None, sigma_points(len(x), size))
    return (reconstruction - kl.sum(0)).mean(0)


def dense(classes=None, likelihood="gaussian", event=(2,), **options):
    torch.manual_seed(0)
    nets = [Dense(event, 4, 8, 1, classes), Dense(4, 2, 8, 1, classes), Dense(5, 2, 8, 1, classes)]
    nets += [Dense(1, 2, 8, 1, classes), Dense(2, event, 8, 1, classes)]
    return HierarchicalVAE(
        *(net.double() for net in nets),
        event_shape=event,
        latents=(1, 1),
        skip=True,
        likelihood=likelihood,
        num_classes=classes,
        **options,
    )


TERMS = {
    "linear": Contract(linear, span=2.0),
    "linear-no-skip": Contract(lambda: linear(skip=False), span=2.0),
    "dense-label": Contract(lambda: dense(3, noise="diagonal").given(label=1), span=2.0),
    "prior": Contract(lambda: linear().prior, span=4.0),
    "prior-label": Contract(lambda: dense(3).given(label=1).prior, span=4.0),
    "proposal": Contract(lambda: linear().proposal(X[0]), span=4.0),
    "observed": Contract(lambda: linear().observed(X[0]), span=2.0),
    "bound": Contract(lambda: linear().marginal(3), span=2.0),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


@pytest.mark.parametrize("skip", [True, False])
def test_the_joint_is_its_gaussian_and_the_sum_of_three(skip):
    vae = linear(skip)
    mean, covariance = stacked(skip)
    state = vae.sample(7, seeded(0))
    both = torch.cat([state["z2"], state["z1"], state["x"]], 1)
    assert_close(vae.log_prob(state), bm.Gaussian(mean, covariance).log_prob(both), 1e-10, "log p(x, z1, z2)")
    z = {name: state[name] for name in ("z1", "z2")}
    parts = vae.prior.log_prob(z) - vae.observed(state["x"]).energy(z)
    assert_close(vae.log_prob(state), parts, 1e-10, "prior and likelihood")
    top = MultivariateNormal(mean[:1], covariance[:1, :1]).log_prob(state["z2"])
    low = torch.distributions.Normal(state["z2"] @ A.mT + SHIFT1, STD1).log_prob(state["z1"]).sum(1)
    assert_close(vae.prior.log_prob(z), top + low, 1e-10, "log p(z2) + log p(z1|z2)")


def test_exact_draws_have_the_closed_form_moments():
    state = linear().sample(20_000, seeded(2))
    both = torch.cat([state["z2"], state["z1"], state["x"]], 1) - MEAN
    assert_z(both.mean(0) / (COVARIANCE.diagonal() / len(both)).sqrt(), "means")
    products = both[:, :, None] * both[:, None, :]
    assert_z((products.mean(0) - COVARIANCE) / (products.std(0) / math.sqrt(len(both))), "covariances")


def test_elbo_plus_the_divergence_of_q_is_log_p():
    vae = linear()
    divergence = kl_divergence(joint_q(vae, X), exact_posterior(X))
    assert_close(exact_elbo(vae, X) + divergence, MARGINAL.log_prob(X), 1e-10, "ELBO + KL")
    assert float(divergence.detach().min()) > 0.05
    with torch.no_grad():
        found = torch.stack([vae.elbo(X, seeded(i)) for i in range(500)])
        assert_z((found.mean(0) - exact_elbo(vae, X)) / (found.std(0) / math.sqrt(500)), "the estimate")


def test_the_proposal_is_its_gaussian():
    vae = linear()
    z = vae.proposal(X).sample(len(X), seeded(0))
    both = torch.cat([z["z2"], z["z1"]], 1)
    assert_close(vae.proposal(X).log_prob(z), joint_q(vae, X).log_prob(both), 1e-10, "log q")
    found = vae.core.infer(X, None, vae._noise(1, len(X), seeded(3)))
    assert_close(found.log_q, vae.core.log_q(found.z, X, None), 1e-10, "log q at draws of q")


def test_with_the_posterior_as_q_every_bound_is_log_p():
    """With one dimension for each level, p(z2|x) and p(z1|x, z2) are Gaussians that q can be."""
    mean, covariance = stacked(True, 1)
    exact = exact_posterior(X, 1)
    gain = covariance[:2, 2:] @ torch.linalg.inv(covariance[2:, 2:])
    shift = mean[:2] - gain @ mean[2:]
    spread = exact.covariance_matrix[0]
    slope = spread[1, 0] / spread[0, 0]  # of z1 on z2, given x
    conditional = spread[1, 1] - slope * spread[0, 1]
    nets = {
        "encoder": Affine(torch.eye(3, dtype=D), torch.zeros(3, dtype=D)),
        "top": Affine(gain[:1], shift[:1], spread[0, 0].log()[None] / 2),
        "bottom": Affine(
            torch.cat([gain[1:] - slope * gain[:1], slope.reshape(1, 1)], 1),
            shift[1:] - slope * shift[:1],
            conditional.log()[None] / 2,
        ),
    }
    vae = linear(size=1, nets=nets)
    log_p = bm.Gaussian(mean[2:], covariance[2:, 2:]).log_prob(X)
    assert_close(vae.iwae(X, 5, seeded(0)), log_p, 1e-10, "IWAE at the optimum, whatever the draws")
    assert_close(exact_elbo(vae, X, 1), log_p, 1e-10, "ELBO at the optimum")


def test_iwae_rises_with_k_to_log_p():
    vae = linear()
    x, log_p = X[:1].expand(4000, 3), float(MARGINAL.log_prob(X[:1]))
    with torch.no_grad():
        ladder = torch.stack([vae.iwae(x, k, seeded(k)) for k in (1, 4, 32)])
        mean, error = ladder.mean(1), ladder.std(1) / math.sqrt(len(x))
        assert abs(float((mean[0] - exact_elbo(vae, X[:1])) / error[0])) < 5, "IWAE-1 is the ELBO"
        assert float(((mean[1:] - mean[:-1]) / error[:-1]).min()) > 5
        assert float(((mean - log_p) / error).max()) < 5
        limit = torch.stack([vae.iwae(X, 20_000, seeded(i)) for i in range(3)]).mean(0)
    assert_close(limit, MARGINAL.log_prob(X), 0.0, "the limit", atol=0.05)


def test_the_kl_of_each_level_is_reported_and_weighed():
    vae, heavy = linear(), linear(beta=3.0)
    loss = float(vae.loss(X, seeded(1)))
    found = vae.metrics()
    assert set(found) == {"elbo", "reconstruction", "kl_z1", "kl_z2"}
    total = found["kl_z1"] + found["kl_z2"]
    assert abs(loss + found["elbo"]) < 1e-9
    assert abs(found["elbo"] - found["reconstruction"] + total) < 1e-9
    assert abs(float(heavy.loss(X, seeded(1))) - loss - 2 * total) < 1e-9
    top = kl_divergence(vae.encode(X).base_dist, torch.distributions.Normal(tensor(0.0), tensor(1.0))).sum(1)
    assert abs(found["kl_z2"] - float(top.mean())) < 1e-9
    assert_close(vae.loss(X, seeded(4)), -vae.elbo(X, seeded(4)).mean(), 1e-10, "β = 1")


def test_gradients_of_the_loss_are_unbiased():
    vae = linear()

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(vae.core.parameters()))])

    exact = gradient(-exact_elbo(vae, X).mean())
    found = torch.stack([gradient(vae.loss(X, seeded(i))) for i in range(300)])
    assert_z((found.mean(0) - exact) / (found.std(0) / math.sqrt(len(found)) + 1e-9), "gradient")


def test_a_clamp_on_x_gives_the_posterior_of_both_levels():
    vae, x = linear(), X[:1]
    exact = exact_posterior(x)
    clamped = vae * bm.Clamp(torch.ones(3, dtype=torch.bool), x[0]).on("x")
    observed = vae.prior * vae.observed(x)
    for term, init in ((clamped, None), (observed, vae.proposal(x))):
        draw = bm.sample(term, 3000, seed=0, init=init)
        z = torch.cat([draw.x["z2"], draw.x["z1"]], 1)
        half = len(z) / 2  # resampled particles repeat
        spread = exact.covariance_matrix[0]
        assert_z((z.mean(0) - exact.mean[0]) / (spread.diagonal() / half).sqrt(), "posterior mean")
        assert_z((z.var(0) / spread.diagonal() - 1) / math.sqrt(2 / half), "posterior variance")
        assert abs(draw.log_z - float(MARGINAL.log_prob(x))) < 4 * draw.log_z_se + 5e-3


def test_binary_data_sum_to_one():
    vae = dense(likelihood="bernoulli", event=(2,))
    axis = torch.linspace(-6, 6, 161, dtype=D)
    mesh = torch.cartesian_prod(axis, axis)
    x = torch.cartesian_prod(*[torch.arange(2)] * 2)
    with torch.no_grad():
        logs = torch.stack(
            [-vae.energy({"x": row.expand(len(mesh), -1), "z1": 2 * mesh[:, :1], "z2": mesh[:, 1:]}) for row in x]
        )
    p = logs.exp().sum(1) * 2 * float(axis[1] - axis[0]) ** 2
    assert abs(float(p.sum()) - 1) < 1e-5
    draws = vae.sample(20_000, seeded(0))["x"]
    found = torch.bincount(draws @ torch.tensor([2, 1]), minlength=4) / len(draws)
    assert_z((found - p) / (p * (1 - p) / len(draws)).sqrt(), "frequencies")


def test_conditional_views_share_the_network_and_their_priors_merge():
    vae = dense(classes=3)
    one, two = vae.given(label=1), vae.given(label=2)
    state = vae.sample(4, seeded(0))
    z = {name: state[name] for name in ("z1", "z2")}
    assert one.core is vae.core
    assert not torch.allclose(one.energy(state), two.energy(state))
    assert not torch.allclose(one.prior.energy(z), two.prior.energy(z)), "p(z1|z2) knows the label"
    assert one.prior.key() == vae.given(label=1).prior.key() != two.prior.key()
    assert len((one.latent() / one.prior).pairs()) == 0
    assert_close(vae.prior.given(label=2).energy(z), two.prior.energy(z), 0.0, "energy")
    rows = []
    vae.core.decoder.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    together = vae._evaluate_together([one, vae, two], state, None, True, True)
    assert rows == [12]
    for term, (energy, score) in zip((one, vae, two), together, strict=True):
        assert_close(energy, term.energy(state), 1e-12, "energy")
        for name, value in term.score(state).items():
            assert_close(score[name], value, 1e-12, name)


def test_fit_raises_the_bound_and_uses_both_levels():
    """Two far modes: the upper level chooses."""

    def stream(n, generator):
        sign = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
        return sign * tensor(1.5, 0.5) + 0.2 * torch.randn(n, 2, generator=generator, dtype=D)

    vae = dense(std=0.5)
    before = float(vae.loss(stream(500, seeded(1)), seeded(2)))
    fit(vae, stream, steps=300, batch_size=64, lr=1e-2, seed=0, ema=0.95, progress=False)
    after = float(vae.loss(stream(500, seeded(1)), seeded(2)))
    assert after < before - 2
    x = vae.sample(500, seeded(3))["x"]
    assert 0.3 < float((x[:, 0] > 0).double().mean()) < 0.7
    assert float(x[:, 0].abs().mean()) == pytest.approx(1.5, abs=0.3)


def test_encode_gives_each_level_and_reconstructions_decode_its_mean():
    vae = linear()
    z2 = vae.encode(X).mean
    assert_close(z2, joint_q(vae, X).mean[:, :1], 1e-12, "q(z2|x)")
    z1 = vae.encode(X, z2).mean
    assert_close(z1, joint_q(vae, X).mean[:, 1:], 1e-12, "q(z1|x, z2)")
    assert_close(vae.reconstruct(X), vae.decode({"z1": z1, "z2": z2}), 1e-12, "reconstruction")
    state = map_state(lambda t: t[:2], vae.sample(4, seeded(0)))
    assert vae.decode({"z1": state["z1"], "z2": state["z2"]}).shape == (2, 3)


WRONG = {
    "latents": (lambda: linear(latents=(2,)), ValueError, "two sizes"),
    "size": (lambda: linear(latents=(2, 0)), ValueError, "event shape"),
    "beta": (lambda: linear(beta=math.inf), ValueError, "beta"),
    "z2 rows": (lambda: linear().encode(X, torch.zeros(2, 1, dtype=D)), ValueError, "row for each x"),
    "z2 shape": (lambda: linear().encode(X, torch.zeros(5, 2, dtype=D)), ValueError, "shape"),
    "middle": (lambda: linear(latents=(3, 1)).sample(2), ValueError, "middle network"),
    "z names": (lambda: linear().decode({"z1": torch.zeros(1, 2, dtype=D)}), ValueError, "lacks"),
    "z plain": (lambda: linear().decode(torch.zeros(1, 2, dtype=D)), TypeError, "dictionary"),
    "classes": (
        lambda: HierarchicalVAE(*[Dense(2, 2)] * 4, Dense(1, 2, num_classes=2), event_shape=(2,), latents=(1, 1)),
        ValueError,
        "num_classes",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()
