"""Elliptical slice sampling: closed forms, how the prior is found, and searches that end."""

import math

import pytest
import torch
from torch.distributions import HalfNormal, Independent

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.distributions import Distribution
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.kernels import EllipticalSlice
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC
from tests.kernel_contracts import assert_z, bound, march, seeded

DOUBLE = torch.float64


def process(points=20, length=0.3):
    """A Gaussian process on a grid, with a trend: mean and covariance."""
    at = torch.linspace(0, 1, points, dtype=DOUBLE)
    gap = at[:, None] - at
    return at, Gaussian(2 * at - 1, (-0.5 * (gap / length) ** 2).exp() + 1e-3 * torch.eye(points, dtype=DOUBLE))


def regression(seed):
    """The process seen at every second point with noise 0.3: prior, likelihood, the posterior's mean and covariance."""
    at, prior = process()
    seen = torch.arange(0, 20, 2)
    data = (5 * at[seen]).sin() + 0.3 * torch.randn(10, generator=seeded(seed), dtype=DOUBLE)
    likelihood = term(lambda f: 0.5 * ((f[:, seen] - data) ** 2).sum(-1) / 0.09, kind="energy", event_shape=20)
    cross = prior.covariance[:, seen]
    gain = torch.linalg.solve(prior.covariance[seen][:, seen] + 0.09 * torch.eye(10, dtype=DOUBLE), cross.mT).mT
    mean = prior.mean + gain @ (data - prior.mean[seen])
    return prior, likelihood, mean, prior.covariance - gain @ cross.mT


def test_a_conjugate_posterior_in_closed_form():
    """4000 chains of 10 transitions from exact draws, 20 dimensions: means and all covariances."""
    prior, likelihood, mean, covariance = regression(1)
    root, n = torch.linalg.cholesky(covariance), 4000
    start = mean + torch.randn(n, 20, generator=seeded(2), dtype=DOUBLE) @ root.mT
    state, _, divergences = march(EllipticalSlice(), ravel(prior * likelihood, dtype=DOUBLE), start, 10, seeded(4))
    assert divergences == 0
    z = torch.linalg.solve_triangular(root, (state.x - mean).mT, upper=False)  # whitened, (20, 4000)
    second = (z @ z.mT / n - torch.eye(20, dtype=DOUBLE)) * math.sqrt(n) / (1 + torch.eye(20, dtype=DOUBLE)).sqrt()
    rows, columns = torch.triu_indices(20, 20)
    assert_z(torch.cat([z.mean(1) * math.sqrt(n), second[rows, columns]]), "the posterior")


@pytest.mark.filterwarnings("ignore:MCMC. R-hat")  # 20 dimensions take some thousand transitions
def test_sampling_a_product_needs_nothing_else():
    prior, likelihood, mean, covariance = regression(5)
    draw = sample(prior * likelihood, chains=40, sampler=MCMC(EllipticalSlice(), warmup=100, draws=300), seed=6)
    each = draw.x.mean(1)
    # the standard error of 40 chains' means; 20 statistics of Student's t, |t| < 6
    assert float(((each.mean(0) - mean) / (each.std(0) / math.sqrt(40))).abs().max()) < 6
    assert float((draw.x.flatten(0, 1).var(0) / covariance.diagonal() - 1).abs().max()) < 0.15
    tried = draw.stats["n_steps"].double()
    assert draw.info.acceptance == 1.0
    assert draw.info.evaluations == pytest.approx(32 + 1 + float(tried.mean()) * 400, rel=0.05)
    assert draw.info.divergences == 0


def test_the_prior_found_is_the_prior_given():
    prior, likelihood, _, _ = regression(7)
    start = prior.sample(20, seeded(8))
    found = []
    for kernel in (EllipticalSlice(), EllipticalSlice(prior), EllipticalSlice(prior.on("f"))):
        found.append(march(kernel, ravel(prior * likelihood, dtype=DOUBLE), start, 5, seeded(9))[0].x)
    named = ravel(prior.on("f") * likelihood.on("f"), dtype=DOUBLE)
    found.append(march(EllipticalSlice(), named, start, 5, seeded(9))[0].x)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_priors_of_several_variables_go_side_by_side():
    """a ~ N(1, C), b ~ N(−1, 2) of two coordinates each, and data of a₀ + b₀: the closed form."""
    c = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=DOUBLE)
    a, b = Gaussian(torch.ones(2, dtype=DOUBLE), c), Gaussian(-torch.ones(2, dtype=DOUBLE), 2.0)
    link = term(
        lambda x: 2.0 * (x["a"][:, 0] + x["b"][:, 0] - 1.5) ** 2,
        kind="energy",
        variables={"a": a.variables, "b": b.variables},
    )
    target = ravel(a.on("a") * b.on("b") * link, dtype=DOUBLE)
    covariance = torch.block_diag(c, 2 * torch.eye(2, dtype=DOUBLE))
    row = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=DOUBLE)
    gain = covariance @ row.mT / (row @ covariance @ row.mT + 0.25)
    mean = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=DOUBLE) + gain[:, 0] * 1.5
    state, _, _ = march(EllipticalSlice(), target, torch.zeros(8000, 4, dtype=DOUBLE), 30, seeded(10))
    root = torch.linalg.cholesky(covariance - gain @ row @ covariance)
    z = torch.linalg.solve_triangular(root, (state.x - mean).mT, upper=False)
    first, second = z.mean(1) * math.sqrt(8000), ((z * z).mean(1) - 1) * math.sqrt(4000)
    assert_z(torch.cat([first, second, (z[0] * z[2]).mean()[None] * math.sqrt(8000)]), "posterior of two variables")


def test_the_prior_is_that_of_the_noise_level():
    """At level σ the factor is N(m, C + σ²); where it is all there is, the first angle is always good."""
    _, prior = process()
    target = ravel(prior, sigma=2.0, dtype=DOUBLE)
    kernel = EllipticalSlice()
    state = kernel.init(target, prior.sample(300, seeded(11)))
    _, info = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, seeded(12)))
    assert bool((info.num_leapfrog == 1).all())
    assert bool(info.accepted.all())


def test_smc_takes_it():
    """log Z of a conjugate product within 4 reported standard errors."""
    p, q = Gaussian(torch.zeros(3), 1.0), Gaussian(torch.ones(3), 0.5)
    truth = float(-0.5 * 3 * (torch.log(torch.tensor(2 * torch.pi * 1.5)) + 1 / 1.5))
    draw = sample(p * q, 1000, sampler=SMC(kernel=EllipticalSlice(p)), seed=13)
    assert abs(draw.log_z - truth) < 4 * draw.log_z_se
    assert abs(float(draw.x.mean()) - 2 / 3) < 0.1


def test_nothing_is_left_to_adapt():
    kernel = EllipticalSlice()
    assert not kernel.adapts
    assert kernel.tuned(kernel.tune()) is kernel
    with pytest.raises(TypeError, match="step_size"):
        EllipticalSlice(step_size=0.1)


def test_kernels_of_different_priors_have_different_names():
    one, other = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.zeros(2), 2.0)
    assert repr(EllipticalSlice(one)) != repr(EllipticalSlice(other))
    assert repr(EllipticalSlice(one)) == repr(EllipticalSlice(Gaussian(torch.zeros(2), 1.0)))
    assert repr(EllipticalSlice()) == "EllipticalSlice()"


def test_searches_end_where_the_likelihood_is_a_point():
    """A likelihood that nothing but the start satisfies: chains stay, count a divergence, and do not hang."""

    class Point:
        has_energy = True

        def energy_and_score(self, x):
            return torch.where((x == 1).all(1), 0.0, 1e30).to(x), torch.zeros_like(x)

        def score(self, x):
            return torch.zeros_like(x)

    for dtype in (torch.float32, torch.float64):
        kernel = EllipticalSlice(Gaussian(torch.zeros(2, dtype=dtype), 1.0))
        start = torch.ones(5, 2, dtype=dtype)
        state = kernel.init(Point(), start)
        after, info = kernel.step(Point(), state, kernel.tune(start), kernel.noise(state, seeded(14)))
        assert torch.equal(after.x, start)
        assert int(info.num_leapfrog.max()) < 400
        still = ~info.accepted
        assert torch.equal(info.divergent, still)


def test_chains_of_one_precision_never_lose_their_slice():
    """1000 dimensions in float32, where energies are known to 1e-4: chains move, and few searches fail."""
    prior = Gaussian(torch.zeros(1000), 1.0)
    likelihood = term(lambda f: 0.5 * (f[:, :5] - 1).square().sum(-1), kind="energy", event_shape=1000)
    start = prior.sample(200, seeded(15))
    state, _, divergences = march(EllipticalSlice(), ravel(prior * likelihood), start, 20, seeded(16))
    assert bool(torch.isfinite(state.x).all())
    assert divergences <= 4
    z = (state.x[:, 5:] ** 2).mean(1).sub(1).mul(math.sqrt(995 / 2))
    assert abs(float(z.mean()) * math.sqrt(200)) < bound(1)


def check_refused(make, message, **options):
    target = ravel(make(Gaussian(torch.zeros(2), 1.0)), **options)
    with pytest.raises(ValueError, match=message):
        EllipticalSlice().init(target, torch.zeros(3, target.dim))


def bowl():
    return term(lambda x: (x**4).sum(-1), kind="energy", event_shape=2)


def check_several_priors():
    check_refused(lambda g: g * Gaussian(torch.ones(2), 3.0) * bowl(), "several Gaussian factors over 'x'")


def check_powers():
    check_refused(lambda g: g**2 * bowl(), "no Gaussian factor over 'x'")


def test_targets_without_one_prior_say_what_to_do():
    check_several_priors()
    check_powers()
    check_refused(lambda g: GaussianMixture(torch.zeros(1, 2), 1.0), "no Gaussian factor over 'x'")
    check_refused(lambda g: g.on("a") * bowl().on("b"), "no Gaussian factor over 'b'")
    half = Distribution(Independent(HalfNormal(torch.ones(2)), 1))
    check_refused(lambda g: g * half, "move in unconstrained coordinates", unconstrained=True)
    clamp = Clamp(torch.tensor([True, False]), torch.zeros(2))
    check_refused(lambda g: g * clamp, "with a Gaussian over the 1 free ones")


def test_wrong_priors_say_what_to_do():
    with pytest.raises(TypeError, match=r"prior is a Gaussian, got GaussianMixture; write .* prior \* likelihood"):
        EllipticalSlice(GaussianMixture(torch.zeros(1, 2), 1.0))
    with pytest.raises(ValueError, match=r"over 3 coordinates and the target moves 2; give EllipticalSlice\(prior="):
        EllipticalSlice(Gaussian(torch.zeros(3), 1.0)).init(ravel(bowl()), torch.zeros(4, 2))

    class Bare:
        has_energy = True

        def energy_and_score(self, x):
            return (x**2).sum(1), -2 * x

        def score(self, x):
            return -2 * x

    with pytest.raises(ValueError, match=r"write EllipticalSlice\(prior=gaussian\)"):
        EllipticalSlice().init(Bare(), torch.zeros(4, 2))
