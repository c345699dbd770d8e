"""Benchmark targets: both languages agree, and the true moments are those of the density.

Statistical checks have fixed seeds; |z| < 4.5 is 7e-6 per statistic, |z| < 5 is 6e-7.
"""

import itertools
import json
import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Gamma,
    HalfCauchy,
    MultivariateNormal,
    Normal,
    Poisson,
)

from boltzmix.benchmarks.densities import (
    DENSITIES,
    SPEED_TARGETS,
    density,
    hierarchies,
    lattices,
    mixtures,
    processes,
    reference,
    regressions,
    truths,
)
from boltzmix.benchmarks.densities.base import Constants, moments
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC

EXACT = [name for name in DENSITIES if density(name).exact is not None]
REFERENCES = sorted(reference.WAYS)


def made(name):
    """A target made anew, so that errors planted in its maker are in it."""
    make = DENSITIES[name]
    return getattr(make, "__wrapped__", make)()


def needs_reference(name):
    """Skip, with what to do, where the long run of a target has not been made."""
    if name in REFERENCES and not (truths.FOLDER / f"{name}.json").exists():
        pytest.skip(f"no reference moments: python -m boltzmix.benchmarks.densities.reference {name}")


def points(target, n=16, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    if target.support != "real":
        return torch.randint(2, (n, target.dim), generator=generator).double()
    return scale * torch.randn(n, target.dim, generator=generator, dtype=torch.float64)


def value_and_gradient(log_prob, x):
    x = x.clone().requires_grad_()
    value = log_prob(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


# ----------------------------------------------------------------------------------- every target


def energies_and_gradients_of_both_languages_agree(target):
    jax = pytest.importorskip("jax", reason='needs pip install "boltzmix[peers]"')
    x = points(target)
    value, gradient = value_and_gradient(target.log_prob, x)
    with jax.enable_x64(True):
        other, slope = jax.vmap(jax.value_and_grad(target.jax_log_prob()))(x.numpy())
    assert str(other.dtype) == "float64"
    torch.testing.assert_close(value, torch.tensor(other), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.tensor(slope), rtol=1e-6, atol=1e-6)
    single = jax.vmap(target.jax_log_prob())(x.float().numpy())
    assert str(single.dtype) == "float32"


@pytest.mark.parametrize("name", [name for name in DENSITIES if density(name).jax_log_prob is not None])
def test_energies_and_gradients_of_both_languages_agree(name):
    energies_and_gradients_of_both_languages_agree(density(name))


@pytest.mark.parametrize("name", DENSITIES)
def test_both_precisions_agree_and_follow_the_rows(name):
    """Rounding in float32 is 6e-8 of the largest of the terms that are added."""
    target = density(name)
    x = points(target).float()
    double, slope = value_and_gradient(target.log_prob, x.double())
    single, other = value_and_gradient(target.log_prob, x)
    assert (single.dtype, double.dtype, other.dtype) == (torch.float32, torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-3)
    torch.testing.assert_close(other.double(), slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))


@pytest.mark.parametrize("name", DENSITIES)
def test_what_is_known_has_the_shapes_that_are_promised(name):
    needs_reference(name)
    target = density(name)
    assert target.name == name
    assert target.truth in ("exact", "quadrature", "reference")
    for known in (target.mean, target.variance, target.square_mean, target.square_variance):
        assert known.shape == (target.dim,)
        assert known.dtype == torch.float64
        assert bool(torch.isfinite(known).all())
    torch.testing.assert_close(target.square_mean, target.variance + target.mean**2)
    assert bool((target.variance > 0).all())
    assert bool((target.square_variance >= 0).all())
    assert 0 <= target.accuracy < 1e-3
    assert (target.accuracy > 0) == (target.truth == "reference" or name == "phi4")


@pytest.mark.parametrize("name", DENSITIES)
def test_starts_depend_on_the_seed_alone_and_have_gradients(name):
    target = density(name)
    assert torch.equal(target.starts(4, 3), target.starts(4, 3))
    assert not torch.equal(target.starts(4, 3), target.starts(4, 4))
    x = target.starts(64, 0)
    assert x.shape == (64, target.dim)
    if target.support != "real":
        assert x.dtype == torch.long
        assert x.unique().tolist() == [0, 1]
        return
    assert x.dtype == torch.float64
    if target.reference is None:
        assert float(x.abs().max()) < 2
    value, gradient = value_and_gradient(target.log_prob, x)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())
    torch.testing.assert_close(-target.term().energy(x), value)
    torch.testing.assert_close(target.term(torch.float32).score(x.float()).double(), gradient, rtol=0.01, atol=0.1)


def test_rows_do_not_touch_each_other():
    for name in DENSITIES:
        target = density(name)
        x = points(target, 5)
        torch.testing.assert_close(target.log_prob(x)[2:3], target.log_prob(x[2:3]))


def exact_draws_have_the_true_moments(name, n=20_000):
    """z-scores of means of x and of x², which are known with their variances."""
    target = made(name)
    x = target.exact(n, torch.Generator().manual_seed(3))
    assert x.shape == (n, target.dim)
    assert x.dtype == torch.float64
    first = (x.mean(0) - target.mean) / (target.variance / n).sqrt()
    assert float(first.abs().max()) < 4.5
    if name == "funnel":  # e^18: the mean of n squares is far from normal; log v is what can be seen
        x, second, fourth = (x[:, :1], target.square_mean[:1], target.square_variance[:1])
    elif name == "ising":  # x² = x
        return
    else:
        second, fourth = target.square_mean, target.square_variance
    square = x * x
    assert float((((square.mean(0) - second) / (fourth / n).sqrt()).abs()).max()) < 4.5
    # variances of squares from the draws: heavier-tailed, so within a tenth
    torch.testing.assert_close(square.var(0), fourth, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_have_the_true_moments(name):
    exact_draws_have_the_true_moments(name)


def exact_draws_are_draws_of_the_density(name, n=5000):
    """Stein's identity for x, E[x · s(x)] = −D, and E[s(x)] = 0, with the score s of the density itself."""
    target = made(name)
    x = target.exact(n, torch.Generator().manual_seed(4))
    _, score = value_and_gradient(target.log_prob, x)
    product = (x * score).sum(1)
    assert abs(float(product.mean()) + target.dim) < 5 * float(product.std()) / math.sqrt(n)
    assert float((score.mean(0) / score.std(0)).abs().max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("name", [name for name in EXACT if name != "ising"])
def test_exact_draws_are_draws_of_the_density(name):
    exact_draws_are_draws_of_the_density(name)


def masses_of_modes_are_those_of_exact_draws(name):
    """Counts of n draws, in standard errors; a cell with mass below 1e-4 may be empty."""
    target, n = made(name), 40_000
    masses = target.modes.masses
    assert float(masses.sum()) == pytest.approx(1.0, abs=1e-9)
    found = target.modes.assign(target.exact(n, torch.Generator().manual_seed(6)))
    assert found.dtype == torch.long
    share = torch.bincount(found, minlength=len(masses)) / n
    assert len(share) == len(masses)
    seen = masses > 1e-4
    z = (share - masses)[seen] / (masses * (1 - masses) / n).sqrt()[seen]
    assert float(z.abs().max()) < 5


@pytest.mark.parametrize("name", ["grid", "forty_modes", "many_well", "ising"])
def test_masses_of_modes_are_those_of_exact_draws(name):
    masses_of_modes_are_those_of_exact_draws(name)


# --------------------------------------------------------------------------- by other integrals

SQUARES = {"banana": (80.0, 200.0, 1601), "ring": (2.6, 2.6, 801), "grid": (2.6, 2.6, 401),
           "forty_modes": (50.0, 50.0, 301)}  # fmt: skip


def moments_in_the_plane_are_those_of_a_grid(name):
    """Trapezoid sums over a rectangle, which converge faster than any power for such densities."""
    target = made(name)
    width, height, n = SQUARES[name]
    a, b = (torch.linspace(-end, end, n, dtype=torch.float64) for end in (width, height))
    totals = torch.zeros(7, dtype=torch.float64)
    for rows in a.split(100):
        x = torch.cartesian_prod(rows, b)
        weight = target.log_prob(x).exp()
        totals += torch.cat([weight.sum()[None], *(weight @ x**k for k in (1, 2, 4))])
    log_z = math.log(float(totals[0]) * float(a[1] - a[0]) * float(b[1] - b[0]))
    assert log_z == pytest.approx(target.log_z, abs=1e-6)
    first, second, fourth = (totals[1:] / totals[0]).reshape(3, 2)
    torch.testing.assert_close(first, target.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, target.square_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fourth - second**2, target.square_variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SQUARES)
def test_moments_in_the_plane_are_those_of_a_grid(name):
    moments_in_the_plane_are_those_of_a_grid(name)


@pytest.mark.parametrize("name", ["standard", "ill_conditioned", "rotated", "extreme", "dense_precision"])
def test_gaussians_are_those_of_torch(name):
    target = density(name)
    x = points(target, scale=0.1)
    _, gradient = value_and_gradient(target.log_prob, torch.eye(target.dim, dtype=torch.float64))
    covariance = torch.linalg.inv(-gradient)
    torch.testing.assert_close(covariance.diagonal(), target.variance, rtol=1e-6, atol=0.0)
    scales = torch.linalg.eigvalsh(-gradient)
    condition = {"standard": 1.0, "extreme": 1e6}.get(name, 1e4)
    assert float(scales[-1] / scales[0]) == pytest.approx(condition)
    whole = MultivariateNormal(target.mean, precision_matrix=-0.5 * (gradient + gradient.mT))
    torch.testing.assert_close(target.log_prob(x) - target.log_z, whole.log_prob(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["funnel", "funnel_noncentred"])
def test_funnels_are_normalised_and_their_moments_those_of_the_log_normal(name):
    target = density(name)
    x = points(target)
    v, rest = x[:, :1], x[:, 1:]
    scale = (0.5 * v).exp() if name == "funnel" else torch.ones_like(v)
    expected = Normal(0.0, 3.0).log_prob(v)[:, 0] + Normal(0.0, scale).log_prob(rest).sum(1)
    torch.testing.assert_close(target.log_prob(x), expected)
    if name == "funnel":
        # E x² = E e^v and E x⁴ = 3 E e^{2v}, by sums over v
        grid = torch.linspace(-40, 60, 20_001, dtype=torch.float64)
        weight = (Normal(0.0, 3.0).log_prob(grid)).exp() * float(grid[1] - grid[0])
        second, fourth = (weight * grid.exp()).sum(), 3 * (weight * (2 * grid).exp()).sum()
        assert float(target.square_mean[1]) == pytest.approx(float(second))
        assert float(target.square_variance[1]) == pytest.approx(float(fourth - second**2))


def transfer_moments_are_those_of_a_grid():
    """2 × 2 sites: the density itself on a grid of 41⁴ points against its transfer matrix."""
    log_prob, _ = lattices._phi4(2, 6.975)
    line = torch.linspace(-1.8, 1.8, 37, dtype=torch.float64)
    x = torch.cartesian_prod(line, line, line, line)
    log_weight = log_prob(x) + 4 * math.log(float(line[1] - line[0]))
    weight = log_weight.softmax(0)
    log_z, second, fourth = lattices.transfer_moments(2, 6.975, 12)
    assert log_z == pytest.approx(float(log_weight.logsumexp(0)), abs=1e-6)
    assert second == pytest.approx(float(weight @ x[:, 0] ** 2), rel=1e-6)
    assert fourth == pytest.approx(float(weight @ x[:, 3] ** 4), rel=1e-6)


def test_transfer_moments_are_those_of_a_grid():
    transfer_moments_are_those_of_a_grid()


def the_small_lattice_is_as_chains_find_it():
    """Means of φ² and φ⁴ over all sites and chains, |z| < 4.5, from HMC with a test of Metropolis."""
    target = made("phi4_small")
    sampler = MCMC(HMC(step_size=0.12, num_leapfrog=8), warmup=0, draws=150)
    generator = torch.Generator().manual_seed(0)
    init = 0.4 * torch.randn(192, 16, generator=generator, dtype=torch.float64)
    draw = sample(target.term(), chains=192, sampler=sampler, init=init, seed=0, progress=False)
    x = draw.x[:, 50:]
    for power, truth in ((2, target.square_mean), (4, target.square_variance + target.square_mean**2)):
        means = (x**power).mean((1, 2))
        z = (means.mean() - truth[0]) / (means.std() / math.sqrt(len(means)))
        assert abs(float(z)) < 4.5


def test_the_small_lattice_is_as_chains_find_it():
    the_small_lattice_is_as_chains_find_it()


def test_the_action_is_the_one_that_is_written():
    for length, coupling in ((4, 6.975), (8, 6.008)):
        log_prob, _ = lattices._phi4(length, coupling)
        phi = torch.randn(3, length, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        action = lattices.MASS * phi**2 + coupling * phi**4
        for axis in (1, 2):
            action = action + (phi.roll(-1, axis) - phi) ** 2
        torch.testing.assert_close(log_prob(phi.flatten(1)), -action.sum((1, 2)))


def small_magnets_are_those_of_all_states():
    """3 × 3 spins: log Z, and exact draws against the probabilities of all 512 states (G-test by its normal limit)."""
    target = getattr(lattices.ising, "__wrapped__", lattices.ising)(3)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64)
    log_prob = target.log_prob(states)
    assert target.log_z == pytest.approx(float(log_prob.logsumexp(0)))
    chance, n = log_prob.softmax(0), 200_000
    codes = target.exact(n, torch.Generator().manual_seed(0)) @ 2.0 ** torch.arange(8, -1, -1, dtype=torch.float64)
    count = torch.bincount(codes.long(), minlength=512).double()
    statistic = float(((count - n * chance) ** 2 / (n * chance)).sum())
    spread = math.sqrt(2 * 511 + float((1 / chance).sum()) / n)
    assert abs(statistic - 511) < 5 * spread
    ups = torch.zeros(10, dtype=torch.float64).index_add(0, target.modes.assign(states), chance)
    torch.testing.assert_close(target.modes.masses, ups)


def test_small_magnets_are_those_of_all_states():
    small_magnets_are_those_of_all_states()


# --------------------------------------------------------------------------- models as written


def same_but_for_a_constant(found, expected):
    difference = found - expected
    torch.testing.assert_close(difference, difference[:1].expand(len(found)), rtol=1e-8, atol=1e-6)


def eight_schools_is_the_model_as_written():
    target = made("eight_schools")
    x = points(target)
    mu, tau, theta = x[:, :1], x[:, 1:2].exp(), x[:, 2:]
    y, s = torch.tensor(hierarchies.EFFECTS), torch.tensor(hierarchies.ERRORS)
    expected = Normal(0.0, 5.0).log_prob(mu)[:, 0] + (HalfCauchy(5.0).log_prob(tau) + tau.log())[:, 0]
    expected = expected + Normal(0.0, 1.0).log_prob(theta).sum(1) + Normal(mu + tau * theta, s).log_prob(y).sum(1)
    same_but_for_a_constant(target.log_prob(x), expected)


def test_eight_schools_is_the_model_as_written():
    eight_schools_is_the_model_as_written()


def bernoulli(logits, labels):
    return torch.distributions.Bernoulli(logits=logits).log_prob(labels).sum(1)


def sparse_regression_is_the_model_as_written():
    target = made("sparse_logistic_regression")
    x = points(target)
    features, labels = (torch.tensor(part) for part in regressions.sparse_data())
    weights, local, overall = x[:, :25], x[:, 25:50].exp(), x[:, 50:].exp()
    half = torch.tensor(0.5, dtype=torch.float64)
    scale = Gamma(half, half)
    expected = Normal(0.0, 1.0).log_prob(weights).sum(1) + bernoulli((weights * local * overall) @ features.mT, labels)
    for level in (local, overall):  # d level / d log level = level
        expected = expected + (scale.log_prob(level) + level.log()).sum(1)
    same_but_for_a_constant(target.log_prob(x), expected)


def test_sparse_regression_is_the_model_as_written():
    sparse_regression_is_the_model_as_written()


def test_dense_regression_is_the_model_as_written():
    target = density("logistic_regression")
    x = points(target)
    features, labels = (torch.tensor(part) for part in regressions.dense_data())
    expected = Normal(0.0, 1.0).log_prob(x).sum(1) + bernoulli(x @ features.mT, labels)
    difference = target.log_prob(x) - expected
    # softplus is linear beyond 20, which is off by 2e-9 for each of 1000 rows
    torch.testing.assert_close(difference, difference[:1].expand(16), rtol=0.0, atol=2e-6)


def volatility_is_the_model_as_written():
    """With the recursion taken one step after the other."""
    target = made("stochastic_volatility")
    x = points(target, scale=0.5)
    x[:, 0] += 4.0  # φ near 0.96, so that shocks of long ago are felt
    share, mean, scale, z = x[:, 0].sigmoid(), x[:, 1], x[:, 2].exp(), x[:, 3:]
    phi = 2 * share - 1
    level = [scale * z[:, 0] / (1 - phi**2).sqrt()]
    for t in range(1, z.shape[1]):
        level.append(phi * level[-1] + scale * z[:, t])
    spread = (0.5 * (mean[:, None] + torch.stack(level, 1))).exp()
    y = torch.tensor(processes.returns())
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (20.0, 1.5)]
    prior = Beta(*numbers).log_prob(share) + (share * (1 - share)).log()
    prior = prior + Normal(0.0, 5.0).log_prob(mean) + HalfCauchy(2.0).log_prob(scale) + scale.log()
    expected = prior + Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(0.0, spread).log_prob(y).sum(1)
    same_but_for_a_constant(target.log_prob(x), expected)


def test_volatility_is_the_model_as_written():
    volatility_is_the_model_as_written()


def cox_process_is_the_model_as_written():
    target = made("cox_process")
    x = points(target)
    covariance = torch.tensor(processes.covariance())
    factor = torch.linalg.cholesky(covariance)
    level = processes.MEAN + x @ factor.mT
    y = torch.tensor(processes.counts())
    expected = Poisson(level.exp() / processes.SIDE**2).log_prob(y).sum(1)
    prior = MultivariateNormal(torch.zeros(256, dtype=torch.float64) + processes.MEAN, covariance)
    same_but_for_a_constant(target.log_prob(x), expected + prior.log_prob(level))


def test_cox_process_is_the_model_as_written():
    cox_process_is_the_model_as_written()


# -------------------------------------------------------------------------------------- moments


def moments_of_eight_schools_are_those_of_weighted_prior_draws(n=400_000):
    """The likelihood alone weighs draws from the prior, whichever way τ is written."""
    y, s = torch.tensor(hierarchies.EFFECTS), torch.tensor(hierarchies.ERRORS)
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    mu, theta = 5 * torch.randn(n, 1, **options), torch.randn(n, 8, **options)
    tau = 5 * (math.pi / 2 * torch.rand(n, 1, **options)).tan()
    weight = Normal(mu + tau * theta, s).log_prob(y).sum(1).softmax(0)
    x = torch.cat([mu, tau.log(), theta], 1)
    for power, truth in zip((1, 2, 4), hierarchies.eight_schools_moments(401), strict=True):
        found = weight @ x**power
        error = (weight**2 @ (x**power - found) ** 2).sqrt()
        assert float(((found - truth) / error).abs().max()) < 4.5


def test_moments_of_eight_schools_are_those_of_weighted_prior_draws():
    moments_of_eight_schools_are_those_of_weighted_prior_draws()


def moments_are_those_of_chains(name, sampler, chains, seed=0):
    """Means of x and x² in standard errors of both; the worst of 2D below what one of 10⁵ runs exceeds."""
    target = density(name)
    init = target.starts(chains, seed)
    draw = sample(target.term(), chains=chains, sampler=sampler, init=init, seed=seed, progress=False)
    allowed = reference.largest_z(2 * target.dim, 1e-5)
    pairs = ((draw.x, target.mean, target.variance), (draw.x**2, target.square_mean, target.square_variance))
    for values, truth, variance in pairs:
        error = (values.flatten(0, 1).var(0) / ess(values, "mean") + target.accuracy * variance).sqrt()
        assert float(((values.flatten(0, 1).mean(0) - truth) / error).abs().max()) < allowed


def test_moments_of_the_regression_are_those_of_chains():
    moments_are_those_of_chains("logistic_regression", MCMC(HMC(num_leapfrog=4), warmup=300, draws=800), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4", "cox_process", "stochastic_volatility", "sparse_logistic_regression"])
def test_reference_moments_are_those_of_chains(name):
    needs_reference(name)
    moments_are_those_of_chains(name, MCMC(NUTS(target_acceptance=0.9), warmup=400, draws=300), 32, seed=7)


# ------------------------------------------------------------------------------- reference runs


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_moments_were_checked_by_another_method(name):
    needs_reference(name)
    kept = truths.stored(name)
    assert kept["name"] == name
    assert kept["check"]["how"] != kept["how"]
    assert kept["check"]["largest_z"] < kept["check"]["allowed_z"]
    for run in (kept, kept["check"]):
        assert run.get("rhat", 1.0) < reference.LARGEST_RHAT
    assert {len(kept[key]) for key in ("mean", "square", "fourth", "mean_error", "square_error")} == {density(name).dim}


def found(seed, chains=64, draws=200, shift=0.0, slow=0.0):
    """Moments of chains of a Gaussian, which agree with each other the more the closer ``slow`` is to 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, 20, generator=generator, dtype=torch.float64)
    common = torch.randn(chains, 1, 20, generator=generator, dtype=torch.float64)
    x = math.sqrt(1 - slow**2) * noise + slow * common + shift
    return reference.of_chains(x, "draws", {})


def agreement_is_in_standard_errors_of_both():
    """The largest of 40 normal scores has mean 2.5 and spread 0.4: means over 6 pairs within 3.5 errors, 5e-4."""
    runs = [found(seed, draws=100) for seed in range(12)]
    scores = [reference.agreement(*pair)[0] for pair in zip(runs[::2], runs[1::2], strict=True)]
    assert abs(sum(scores) / 6 - 2.5) < 0.6
    # exact draws: 1 / N, times a largest of 40 of chi-squares over K - 1 = 63
    assert 1 / 6400 < runs[0].accuracy() < 3 / 6400


def test_agreement_is_in_standard_errors_of_both():
    agreement_is_in_standard_errors_of_both()


def test_runs_that_agree_are_kept_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    one = found(0)
    path = reference.write("cox_process", one, found(1))
    kept = json.loads(path.read_text())
    torch.testing.assert_close(torch.tensor(kept["mean"], dtype=torch.float64), one.mean)
    with pytest.raises(RuntimeError, match="standard errors"):
        reference.write("cox_process", one, found(1, shift=0.08))
    with pytest.raises(RuntimeError, match="R-hat"):
        found(2, slow=0.5)


def test_importance_sampling_finds_the_stored_moments_of_the_regression():
    """A small run against the file, both with their errors; the worst of 50 above 4.3 has a chance of 1e-3."""
    first, second, _, first_error, second_error, numbers = regressions.importance_moments(1 << 14, seed=11)
    kept = {key: torch.tensor(v, dtype=torch.float64) for key, v in truths.stored("logistic_regression").items()
            if isinstance(v, list)}  # fmt: skip
    assert numbers["weights_ess"] > 8000
    for value, error, name in ((first, first_error, "mean"), (second, second_error, "square")):
        z = (value - kept[name]) / torch.hypot(error, kept[f"{name}_error"])
        assert float(z.abs().max()) < 4.3
        assert 0.5 < float(z.std()) < 2.0  # errors are neither too large nor too small


# ----------------------------------------------------------------------------------- wrong calls


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="there are eight_schools"):
        density("nine_schools")


def test_a_missing_file_says_how_to_write_it():
    with pytest.raises(FileNotFoundError, match=r"densities\.reference nine_schools"):
        truths.stored("nine_schools")
    nothing = truths.reference_moments("nine_schools", 3)
    assert math.isnan(nothing["accuracy"])
    assert bool(nothing["mean"].isnan().all())


def test_what_is_no_mixture_is_refused():
    with pytest.raises(ValueError, match="no mixture"):
        mixtures.components(density("ring"))


def test_constants_are_cast_once():
    held = Constants(torch.ones(3))
    for dtype in (torch.float32, torch.float64):
        (own,) = held(torch.zeros(2, dtype=dtype))
        assert own.dtype == dtype
        assert own is held(torch.ones(5, 5, dtype=dtype))[0]


def test_moments_are_those_of_the_powers():
    x = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    known = moments(x.mean(0), (x**2).mean(0), (x**4).mean(0))
    torch.testing.assert_close(known["variance"], x.var(0, correction=0))
    torch.testing.assert_close(known["square_variance"], (x**2).var(0, correction=0))


def test_six_targets_are_those_of_the_speed_table():
    assert {name: density(name).dim for name in SPEED_TARGETS} == {
        "standard": 100, "dense_precision": 50, "banana": 2, "funnel": 10, "logistic_regression": 25,
        "eight_schools": 10,
    }  # fmt: skip
