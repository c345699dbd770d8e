"""Likelihoods of noised terms: closed forms through the equation, the bound against its definition, composition."""

import math

import pytest
import torch

import boltzmix as bm
from boltzmix.models import VAE, Diffusion, FlowMatching, ODEDensity, diffusion_bound, diffusion_elbo
from boltzmix.models.adapters import term as adapt
from boltzmix.models.divergence import random_signs
from boltzmix.models.likelihood import log_likelihood
from boltzmix.models.nets import MLP, Dense
from boltzmix.models.ode import Solver
from boltzmix.models.probability_flow import integrate, value_and_divergence
from boltzmix.models.schedules import VP
from tests.contracts import Contract, contract_cases

D = torch.float64
P = bm.Gaussian(torch.tensor([0.5, -0.3], dtype=D), torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=D))
MIXTURE = bm.GaussianMixture(
    torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=D), torch.tensor([0.05, 0.1], dtype=D), [1, 3]
)
ENDS = {"sigma_range": (1e-3, 80.0)}


def draws(p, n=20, seed=0):
    return p.sample(n, torch.Generator().manual_seed(seed))


def scored(p, low=1e-3, high=80.0):
    """The same density, known by its score alone."""
    shape = p.event_shape
    return bm.term(p.score, kind="score", event_shape=shape, path="noised", sigma_range=(low, high))


# -------------------------------------------------------------------------------------------------------- the equation


@pytest.mark.parametrize("method", ["rk4", "heun", "dopri5"])
def test_gaussian_data_have_their_closed_form(method):
    x = draws(P)
    found = log_likelihood(scored(P), x, method=method)
    torch.testing.assert_close(found.log_prob, P.log_prob(x, 1e-3), rtol=0.0, atol=2e-3)
    assert found.standard_error is None
    assert found.evaluations == {"rk4": 256, "heun": 128}.get(method, found.evaluations)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mixture_in_the_plane_has_its_closed_form(dtype):
    p, x = scored(MIXTURE), draws(MIXTURE)
    x = torch.cat([x, torch.tensor([[0.0, 0.5], [3.0, -2.0]], dtype=D)])  # between the modes, and far out
    found = log_likelihood(p, x.to(dtype)).log_prob.double()
    torch.testing.assert_close(found, MIXTURE.log_prob(x, 1e-3), rtol=1e-4, atol=3e-3)


def test_the_answer_does_not_depend_on_scale_nor_on_a_larger_end():
    x, want = draws(MIXTURE), None
    for options in ({}, {"scale": 0.6}, {"sigma_range": (1e-3, 400.0)}):
        found = log_likelihood(scored(MIXTURE, high=500.0), x, steps=96, **{**ENDS, **options}).log_prob
        want = found if want is None else want
        torch.testing.assert_close(found, want, rtol=0.0, atol=2e-3)


def test_the_data_end_is_the_density_at_its_level():
    x = draws(P)
    found = log_likelihood(scored(P, low=0.5), x).log_prob
    torch.testing.assert_close(found, P.log_prob(x, 0.5), rtol=0.0, atol=2e-3)
    assert float((found - P.log_prob(x)).abs().max()) > 0.05


def test_adapters_have_likelihoods_too():
    vp = VP.ddpm()

    def net(x_t, t):  # ε̂ for N(0, v): σ_t x_t / (α² v + σ_t²)
        a = 1 / (1 + vp.level(t) ** 2)[:, None]
        return (1 - a).sqrt() * x_t / (a * 0.7 + 1 - a)

    p = adapt(net, schedule=vp, prediction="epsilon", event_shape=(3,))
    exact = bm.Gaussian(torch.zeros(3, dtype=D), 0.7)
    x = draws(exact)
    found = log_likelihood(p, x, scale=1.0).log_prob
    torch.testing.assert_close(found, exact.log_prob(x, p.sigma_range[0]), rtol=0.0, atol=5e-3)


def test_conditions_reach_the_equation():
    torch.manual_seed(0)
    p = Diffusion(MLP(2, hidden=8, num_classes=2), (2,), num_classes=2, sigma_range=(0.1, 20.0)).double()
    with torch.no_grad():
        for q in p.parameters():
            q.add_(0.1 * torch.randn_like(q))
    x = draws(P, 4)
    one = log_likelihood(p.given(label=0), x, steps=16).log_prob
    two = log_likelihood(p.given(label=1), x, steps=16).log_prob
    assert not torch.allclose(one, two)
    rows = log_likelihood(p.given(label=torch.tensor([0, 1, 0, 1])), x, steps=16).log_prob
    # rows of labels start from the coarse form of the unconditional model: a difference of (σ_d / σ_max)² at most
    torch.testing.assert_close(rows, torch.where(torch.tensor([True, False, True, False]), one, two), atol=5e-3, rtol=0)
    density = ODEDensity(p, steps=16)
    torch.testing.assert_close(density.given(label=1).log_prob(x).detach(), two)
    assert density.given(label=1).key() != density.key()


def hutchinson_is_unbiased_with_its_standard_error():
    x = draws(P, 300)
    field = scored(MIXTURE).at(0.5).score
    signs = random_signs((64, 300, 2), x, torch.Generator().manual_seed(0))
    _, exact = value_and_divergence(lambda x, t: field(x), x, 0.0, None, False)
    _, found = value_and_divergence(lambda x, t: field(x), x, 0.0, signs, False)
    z = (found.mean(0) - exact[0]) / (found.std(0) / 8 + 1e-9)
    assert float(z.abs().max()) < 5  # 300 numbers: p < 2e-4
    assert 0.8 < float(z.std()) < 1.2


def test_hutchinsons_estimate_is_unbiased_and_its_standard_error_is_right():
    hutchinson_is_unbiased_with_its_standard_error()
    x = draws(MIXTURE, 200)
    exact = log_likelihood(scored(MIXTURE), x).log_prob
    found = log_likelihood(
        scored(MIXTURE), x, trace="hutchinson", probes=16, generator=torch.Generator().manual_seed(1)
    )
    assert found.standard_error is not None
    z = (found.log_prob - exact) / (found.standard_error + 1e-4)
    assert abs(float(z.mean())) < 4 / 200**0.5 * float(z.std())
    assert 0.7 < float(z.std()) < 1.4
    single = log_likelihood(scored(P), x, trace="hutchinson", probes=1, generator=torch.Generator().manual_seed(1))
    assert single.standard_error is not None
    assert bool(torch.isnan(single.standard_error).all())


def test_the_trace_is_the_jacobians():
    a = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=D)

    def field(x, t):
        return torch.sin(x) @ a.mT + t * x**2

    value, found = value_and_divergence(field, x, 0.3, None, False)
    torch.testing.assert_close(value, field(x, 0.3))
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda r: field(r[None], 0.3)[0], row) for row in x])
    torch.testing.assert_close(found[0], jacobians.diagonal(dim1=1, dim2=2).sum(1))
    _, zero = value_and_divergence(lambda x, t: torch.ones(4, 3, dtype=D), x, 0.0, None, False)
    assert zero.tolist() == [[0.0] * 4]


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("heun", 2), ("midpoint", 2), ("euler", 1)])
def test_fixed_solvers_have_their_order(method, order):
    """A linear field: x(1) = exp(A) x and ∫ tr A; and a field that depends on time."""
    a = torch.tensor([[0.3, -1.0], [1.0, 0.1]], dtype=D)
    x = torch.tensor([[1.0, 2.0]], dtype=D)
    want = x @ torch.matrix_exp(a).mT
    errors = []
    for steps in (8, 16):
        found, total = integrate(lambda x, t: x @ a.mT, x, 0.0, 1.0, Solver(method, steps))
        errors.append(float((found - want).abs().max()))
        assert float(total) == pytest.approx(0.4)
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)
    found, total = integrate(lambda x, t: 2 * t * x, x, 0.0, 1.0, Solver(method, 64))
    error = 0.04 if order == 1 else 1e-3
    assert float(total) == pytest.approx(2.0, abs=error)
    torch.testing.assert_close(found, math.e * x, rtol=error, atol=0.0)


def test_a_missing_torchdiffeq_is_named(monkeypatch):
    import sys

    from boltzmix.compose.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"boltzmix\[ode\]"):
        log_likelihood(scored(P), draws(P), method="dopri5")


# ----------------------------------------------------------------------------------------------- the density as a term

LINE = bm.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=D), torch.tensor([0.1, 0.2], dtype=D), [1, 2])


def learned_density(**options):
    torch.manual_seed(0)
    net = MLP(1, hidden=8, depth=1, num_classes=2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    p = Diffusion(net, (1,), num_classes=2, sigma_range=(0.1, 30.0)).double()
    return ODEDensity(p, steps=12, **options)


TERMS = {
    "mixture": Contract(lambda: ODEDensity(scored(LINE, 0.05, 30.0), steps=12), tolerance=1e-6),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


def test_hutchinsons_energy_is_a_fixed_function_that_claims_no_constant_and_no_draws():
    p = ODEDensity(scored(MIXTURE), trace="hutchinson", steps=24, probes=2)
    assert not p.normalized
    assert not p.calibrated
    x = draws(MIXTURE, 5)
    assert torch.equal(p.energy(x), p.energy(x))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(p.energy(leaf).sum(), leaf)
    torch.testing.assert_close(p.score(x), -slope)
    with pytest.raises(TypeError, match="normalised"):
        p.log_prob(x)
    with pytest.raises(TypeError, match="cannot be sampled exactly"):  # draws of the flow are those of another energy
        p.sample(3)
    many = ODEDensity(scored(MIXTURE), trace="hutchinson", steps=16, probes=40)
    torch.testing.assert_close(-many.energy(x), MIXTURE.log_prob(x, 1e-3), atol=0.6, rtol=0.0)


def test_a_score_only_model_composes_with_an_exact_energy():
    """p q with p known by its score: log Z = log N(m_p; m_q, v_p + v_q)."""
    p, q = bm.Gaussian(torch.zeros(1, dtype=D), 0.6), bm.Gaussian(torch.full((1,), 1.5, dtype=D), 0.4)
    product = ODEDensity(scored(p), steps=12) * q
    draw = bm.sample(product, 400, sampler=bm.SMC(cess=0.9), seed=0)
    want = float(bm.Gaussian(torch.zeros(1, dtype=D), 1.0).log_prob(torch.full((1, 1), 1.5, dtype=D)))
    assert draw.log_z == pytest.approx(want, abs=4 * draw.log_z_se + 0.01)
    assert float(draw.x.mean()) == pytest.approx(0.9, abs=4 * (0.24 / 400) ** 0.5 + 0.01)


def test_training_through_the_density(monkeypatch):
    """The gradient in a parameter is that of finite differences, with the density at σ_max held."""
    p = learned_density()
    coarse = p.inner.coarse(30.0)
    monkeypatch.setattr(type(p.inner), "coarse", lambda term, sigma: coarse)
    x = draws(LINE, 6)
    loss = p.energy(x).mean()
    weight = next(q for n, q in p.named_parameters() if n.endswith("last.weight"))
    (slope,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        before = p.energy(x).mean()
        weight[0, 0] += 1e-6
        after = p.energy(x).mean()
    assert float(slope[0, 0]) == pytest.approx(float(after - before) / 1e-6, rel=1e-4)


def test_no_graph_is_kept_where_nobody_asks():
    p = learned_density()
    x = draws(LINE, 4)
    assert not log_likelihood(p.inner, x).log_prob.requires_grad
    with torch.no_grad():
        assert not p.energy(x).requires_grad
        assert not p.score(x).requires_grad
    assert p.energy(x).requires_grad
    assert not x.requires_grad


# ----------------------------------------------------------------------------------------------------------- the bound


def direct_bound(model, x0, vp, n, generator):
    """E_q [log p(x_{0:T}) − log q(x_{1:T} | x0)] as DDPM writes it: β, ᾱ and states in VP units; (n,) draws."""
    betas, alpha_bars = vp.betas, torch.tensor(vp.alphas_cumprod, dtype=D)
    chain = [x0.expand(n, -1)]
    log_q = torch.zeros(n, dtype=D)

    def log_normal(x, mean, variance):
        return (-0.5 * (x - mean) ** 2 / variance - 0.5 * (2 * math.pi * variance).log()).sum(1)

    for beta in betas:
        mean = (1 - beta).sqrt() * chain[-1]
        chain.append(mean + beta.sqrt() * torch.randn(mean.shape, generator=generator, dtype=D))
        log_q += log_normal(chain[-1], mean, beta)
    total, steps = -log_q, len(betas)
    coarse = model.coarse(float(((1 - alpha_bars[-1]) / alpha_bars[-1]).sqrt()))
    total += log_normal(chain[-1], alpha_bars[-1].sqrt() * coarse.mean, alpha_bars[-1] * coarse.variances[0])
    for t in range(steps - 1, -1, -1):
        a = alpha_bars[t]
        guess = model.denoise(chain[t + 1] / a.sqrt(), ((1 - a) / a).sqrt())
        if t == 0:
            total += log_normal(chain[0], guess, (1 - a) / a)
            continue
        before, beta = alpha_bars[t - 1], betas[t]
        mean = (before.sqrt() * beta * guess + (1 - beta).sqrt() * (1 - before) * chain[t + 1]) / (1 - a)
        total += log_normal(chain[t], mean, beta * (1 - before) / (1 - a))
    return total


WRONG = bm.Gaussian(torch.tensor([0.3, 0.1], dtype=D), 0.8)  # not where the datum comes from: the bound holds anyway
FEW = VP.ddpm(6, 0.05, 0.3)
DATUM = torch.tensor([[1.2, -0.7]], dtype=D)


def elbo_equals_its_definition(draws=None):
    n = 10_000
    direct = direct_bound(WRONG, DATUM, FEW, n, torch.Generator().manual_seed(0))
    levels = FEW.level(torch.arange(6))
    found = diffusion_elbo(
        WRONG, DATUM.expand(n, 2), levels, draws=draws, repeats=2, generator=torch.Generator().manual_seed(1)
    )
    error = math.hypot(float(direct.std()) / n**0.5, float(found.value.std()) / n**0.5)
    assert abs(float(found.value.mean() - direct.mean())) < 4 * error  # p < 1e-4
    assert error < 0.05
    assert float(found.prior[0]) > 0.2  # far above the error: a bound without it would be noticed
    torch.testing.assert_close(found.value, -(found.prior + found.path + found.decoder))


@pytest.mark.parametrize("draws", [None, 3])
def test_the_bound_is_its_definition(draws):
    elbo_equals_its_definition(draws)


def chain_log_prob(model, x, levels):
    """log p(x0) of the generative chain of a Gaussian model, one coordinate at a time: all steps are linear."""
    top = levels[-1]
    mean, variance = model.coarse(float(top)).mean.clone(), model.coarse(float(top)).variances.clone()
    m, v = model.mean, model.variances
    for after, sigma in zip([*levels[:-1].flip(0), None], levels.flip(0), strict=True):
        gain, offset = v / (v + sigma**2), m * sigma**2 / (v + sigma**2)  # D(x) = gain x + offset
        r, noise = (0.0, sigma**2) if after is None else (after**2 / sigma**2, after**2 * (1 - after**2 / sigma**2))
        slope = r + (1 - r) * gain
        mean, variance = slope * mean + (1 - r) * offset, slope**2 * variance + noise
    return bm.Gaussian(mean, variance).log_prob(x)


def elbo_is_below_log_p():
    x = 1.5 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    gaps = []
    for count in (8, 60):
        levels = torch.logspace(-1, 1.5, count, dtype=D)
        rows = x.repeat_interleave(200, 0)
        found = diffusion_elbo(WRONG, rows, levels, repeats=2, generator=torch.Generator().manual_seed(1))
        value = found.value.reshape(40, 200)
        gap = chain_log_prob(WRONG, x, levels) - value.mean(1)
        assert bool((gap > -4 * value.std(1) / 200**0.5).all())
        gaps.append(float(gap.mean()))
    assert gaps[1] < gaps[0] / 4


def test_the_bound_is_below_the_chains_log_density_and_tightens_with_levels():
    elbo_is_below_log_p()


def test_the_limit_of_many_levels():
    x = draws(WRONG, 4000)
    p = scored(WRONG, 0.01, 100.0)
    many, limit = (
        diffusion_elbo(p, x, levels, draws=32, repeats=2, generator=torch.Generator().manual_seed(0)).value
        for levels in (2000, None)
    )
    error = float((many - limit).std()) / 4000**0.5
    assert abs(float((many - limit).mean())) < 4 * error + 0.05  # 2000 levels are short of the limit by 1/2000
    # with the exact score the limit is log p itself, up to the two ends
    gap = WRONG.log_prob(x) - limit
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 4000**0.5 + 0.01


def test_the_loss_with_the_weight_of_the_bound_is_this_bound():
    torch.manual_seed(0)
    p = FlowMatching(MLP(2, hidden=8), (2,), weight="elbo", noise=None, sigma_data=1.0, t_range=(0.05, 0.95)).double()
    with torch.no_grad():
        for q in p.parameters():
            q.add_(0.1 * torch.randn_like(q))
    x = draws(P, 5000)
    losses = torch.stack([p.loss(x, torch.Generator().manual_seed(k)).detach() for k in range(8)])
    top = p.sigma_range[1]
    bound = diffusion_elbo(
        p, x, draws=8, decoder="identity", prior=bm.Gaussian(torch.zeros(2, dtype=D), top**2 + 1.0),
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    error = math.hypot(2 * float(losses.std()) / 8**0.5, float(bound.standard_error.mean()) / 5000**0.5)
    assert abs(float(2 * losses.mean() + bound.value.mean())) < 4 * error


def test_discrete_data_have_their_probability():
    """Three values with weights .2 .3 .5: the bound is on their log probability, and close to it."""
    values, weights = torch.tensor([[-1.0], [0.0], [1.0]], dtype=D), [0.2, 0.3, 0.5]
    model = bm.GaussianMixture(values, 1e-4, weights)
    found = diffusion_elbo(
        scored(model, 0.05, 100.0), values.repeat_interleave(150, 0), 300, bins=(-1.0, 1.0, 3), repeats=4,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    value = found.value.reshape(3, 150).mean(1)
    error = float(found.value.reshape(3, 150).std(1).max()) / 150**0.5
    gap = torch.tensor(weights, dtype=D).log() - value
    assert bool((gap > -4 * error).all())
    assert bool((gap < 0.15).all())


def test_the_mass_of_a_cell_keeps_its_precision_in_the_tails():
    edges = torch.tensor([-torch.inf, -30.0, -3.0, 0.5, 30.0, torch.inf], dtype=D)
    mass = diffusion_bound._log_mass(edges[:-1], edges[1:])
    assert float(mass.exp().sum()) == pytest.approx(1.0)
    left, right = torch.tensor([30.0, -31.0], dtype=D), torch.tensor([31.0, -30.0], dtype=D)
    found = diffusion_bound._log_mass(left, right)
    assert found[0] == pytest.approx(found[1])
    assert float(found[0]) == pytest.approx(float(torch.special.log_ndtr(torch.tensor(-30.0, dtype=D))))


# --------------------------------------------------------------------------------------------------------- wrong calls


def test_wrong_calls():
    x = draws(P)
    with pytest.raises(TypeError, match="annealed because"):
        log_likelihood(P * P, x)
    with pytest.raises(TypeError, match="static"):
        ODEDensity(ODEDensity(P))
    with pytest.raises(TypeError, match="log_prob"):
        diffusion_elbo(ODEDensity(P), x)
    with pytest.raises(TypeError, match=r"is static; its log_prob\(\) is that of all variables; a VAE bounds .* elbo"):
        log_likelihood(VAE(Dense(2, 4), Dense(2, 2), (2,), (2,)), x)
    with pytest.raises(TypeError, match="named variables"):
        log_likelihood(P.on("x"), x)
    with pytest.raises(TypeError, match=r"bm|boltzmix\.term"):
        log_likelihood(lambda x: x, x)  # pyright: ignore[reportArgumentType]
    p = scored(P, 0.01, 50.0)
    for options, words in (
        ({"method": "rk45"}, "method: a solver is one of"),
        ({"steps": 0}, "steps"),
        ({"rtol": -1.0}, "rtol"),
        ({"trace": "random"}, "trace is"),
        ({"trace": "hutchinson", "probes": 0}, "probes"),
        ({"scale": 0.0}, "scale"),
        ({"sigma_range": (0.001, 10.0)}, "sigma_range is"),
        ({"sigma_range": (10.0, 1.0)}, "sigma_range is"),
    ):
        with pytest.raises(ValueError, match=words):
            log_likelihood(p, x, **options)
    with pytest.raises(ValueError, match="shape"):
        log_likelihood(p, x[:, :1])
    for levels in (1, True, [1.0], [1.0, 0.5], [1.0, 100.0]):
        with pytest.raises(ValueError, match=r"levels|sigma_range"):
            diffusion_elbo(p, x, levels)
    with pytest.raises(ValueError, match="repeats"):
        diffusion_elbo(p, x, 10, repeats=1)
    with pytest.raises(ValueError, match="decoder"):
        diffusion_elbo(p, x, 10, decoder="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="values from"):
        diffusion_elbo(p, x, 10, bins=(-1.0, 1.0, 3))
    with pytest.raises(ValueError, match="count >= 2"):
        diffusion_elbo(p, x, 10, bins=(1.0, -1.0, 3))


def test_energy_models_have_both():
    """An energy diffusion's own energy differs from its equation's density by what its levels disagree on."""
    p = bm.models.load("ring").double()
    means, variance, weights = bm.models.data.components("ring")
    exact = bm.GaussianMixture(means.double(), variance, weights.double())
    x = draws(exact, 60)
    low = p.sigma_range[0]
    by_equation = log_likelihood(p, x, steps=48).log_prob
    want = exact.log_prob(x, low)
    assert float((by_equation - want).abs().mean()) < 0.1
    assert float((-p.energy(x).detach() - by_equation).abs().mean()) < 0.1
