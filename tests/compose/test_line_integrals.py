"""Metropolis tests on terms that have only a score, by line integrals.

Draws are exact at the start, so that after any number of transitions of a kernel that leaves its target alone they are
exact still: z-scores of their moments are compared with ``BOUND``, which one of a test's statistics exceeds with
probability 1e-3 (Bonferroni). Kernels without a test, or with the trapezoid rule in theirs, are shown to exceed it.
"""

import functools
import itertools
import math
from statistics import NormalDist

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.kernels import GHMC, HMC, MALA, UHMC, ULA, Barker, BlockGibbs
from boltzmix.compose.kernels.base import Tune
from boltzmix.compose.kernels.hmc import leapfrog_with_work
from boltzmix.compose.kernels.line_integral import LOBATTO, line_integral
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC, Annealed
from boltzmix.models.ncsn import NCSN
from boltzmix.models.nets import MLP

DOUBLE = torch.float64
MEANS = torch.tensor([[-1.2, 0.0], [1.2, 0.0], [0.0, 1.5]], dtype=DOUBLE)
P = GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.2], dtype=DOUBLE), torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE))
N, STEPS = 12_000, 12
BOUND = NormalDist().inv_cdf(1 - 1e-3 / (2 * 5))

#: steps so large that a test refuses between 6 and 30 per cent
KERNELS = {
    "MALA": lambda **options: MALA(0.3, **options),
    "HMC": lambda **options: HMC(0.6, 3, **options),
    "HMC of random length": lambda **options: HMC(0.5, None, length=1.2, **options),
    "GHMC": lambda **options: GHMC(0.4, **options),
    "Barker": lambda **options: Barker(0.7, **options),
}


class Scores:
    """A target known by its score alone, which counts its evaluations."""

    has_energy = False

    def __init__(self, score, dim=2):
        self.score_of, self.dim, self.rows = score, dim, 0

    def score(self, x):
        self.rows += len(x)
        return self.score_of(x)

    def energy_and_score(self, x):
        raise AssertionError("an energy was asked for")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def only_score(p, **options):
    """A noised density known by its score alone."""
    return term(lambda x, s: p._score(x, s), kind="score", path="noised", event_shape=p.event_shape, **options)


def march(kernel, target, x, steps, seed=1):
    """States after some transitions, and the share that was accepted."""
    source = seeded(seed)
    state, accepted = kernel.init(target, x, source), 0.0
    for _ in range(steps):
        state, info = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
        accepted += float(info.accepted.double().mean()) / steps
    return state, accepted


def features(x):
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, P.energy(x)], 1)


@functools.cache
def exact_features():
    return features(P.sample(400_000, seeded(3)).to(DOUBLE))


def worst_z(kernel):
    """The largest z-score of means, second moments and energy after transitions from exact draws."""
    x = P.sample(N, seeded(2)).to(DOUBLE)
    after = features(march(kernel, Scores(P.score), x, STEPS)[0].x)
    exact = exact_features()
    error = (after.var(0) / len(after) + exact.var(0) / len(exact)).sqrt()
    return float(((after.mean(0) - exact.mean(0)) / error).abs().max())


# ---------------------------------------------------------------- quadrature


@pytest.mark.parametrize("nodes", sorted(LOBATTO))
def test_polynomial_energies_are_integrated_exactly_up_to_their_degree(nodes):
    """log p = −(a · x)^d has a score of degree d − 1; the rule is exact up to 2 · nodes + 1, and errs beyond."""
    x, shift, a = normals(50, 3, seed=4), normals(50, 3, seed=5), normals(3, seed=6)

    def error(degree):
        target = Scores(lambda x: -degree * (x @ a)[:, None] ** (degree - 1) * a, 3)
        change = line_integral(target, x, shift, target.score(x), target.score(x + shift), nodes)
        truth = (x @ a) ** degree - ((x + shift) @ a) ** degree
        return float((change - truth).abs().max() / truth.abs().max())

    for degree in range(1, 2 * nodes + 3):
        assert error(degree) < 1e-12, degree
    assert error(2 * nodes + 4) > 1e-7


@pytest.mark.parametrize("nodes", sorted(LOBATTO))
def test_the_way_back_undoes_the_way_there(nodes):
    """Also where the score is no gradient, and then only along the same way: a loop may have work."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)

    def work(score, points):
        target, total = Scores(score), 0.0
        for x, y in itertools.pairwise(points):
            total = total + line_integral(target, x, y - x, score(x), score(y), nodes)
        return total

    x = normals(40, 2, seed=7)
    y, z = x + 0.4 * normals(40, 2, seed=8), x + 0.4 * normals(40, 2, seed=9)
    for score in (P.score, lambda x: P.score(x) + x.sin() @ turn):
        torch.testing.assert_close(work(score, [x, y]), -work(score, [y, x]), rtol=0, atol=1e-12)
    round_trips = [float(work(score, [x, y, z, x]).abs().median()) for score in (P.score, lambda x: x @ turn)]
    assert round_trips[1] > 0.1
    assert round_trips[0] < (0.5, 0.05, 0.005, 0.001)[nodes]


def test_the_trapezoid_rule_on_leapfrogs_sees_their_ends_only():
    target, step, count = Scores(P.score), torch.tensor(0.4, dtype=DOUBLE), 5
    kernel = HMC(0.4, count)
    state = kernel.init(target, P.sample(30, seeded(10)).to(DOUBLE))
    velocity = normals(30, 2, seed=11)
    tune = Tune(step, torch.tensor([0.5, 2.0], dtype=DOUBLE))
    end, last, work = leapfrog_with_work(target, state, velocity, tune, step, count, 0)
    change = 0.5 * (last**2).sum(1) - 0.5 * (velocity**2).sum(1) - work
    ends = step**2 / 8 * ((tune.pull(end.score) ** 2).sum(1) - (tune.pull(state.score) ** 2).sum(1))
    torch.testing.assert_close(change, ends)


# ------------------------------------------------------------------- kernels


@pytest.mark.parametrize("nodes", sorted(LOBATTO))
@pytest.mark.parametrize("name", KERNELS)
def test_on_gaussians_chains_are_those_that_energies_give(name, nodes):
    gaussian = Gaussian(torch.zeros(3, dtype=DOUBLE), torch.tensor([0.3, 1.0, 2.0], dtype=DOUBLE))
    kernel, x = KERNELS[name](nodes=nodes), gaussian.sample(60, seeded(12)).to(DOUBLE)
    known, share = march(kernel, ravel(gaussian), x, 6)
    found, same = march(kernel, Scores(gaussian.score, 3), x, 6)
    torch.testing.assert_close(found.x, known.x)
    torch.testing.assert_close(found.score, known.score)
    assert share == same < 1.0
    assert bool(torch.isnan(found.energy).all()), "an energy that nobody knows stays unknown"


@pytest.mark.parametrize("name", KERNELS)
def test_a_mixture_is_left_invariant_from_its_scores_alone(name):
    assert worst_z(KERNELS[name]()) < BOUND


@pytest.mark.parametrize(
    "kernel",
    [ULA(0.3), UHMC(0.6, 3), *(make(nodes=0) for name, make in KERNELS.items() if name != "HMC of random length")],
    ids=lambda kernel: f"{type(kernel).__name__}, {kernel.step_size}",
)
def test_without_a_test_or_with_the_trapezoid_rule_it_is_not(kernel):
    assert worst_z(kernel) > 1.2 * BOUND


@pytest.mark.parametrize("name", KERNELS)
def test_evaluations_are_counted(name):
    for nodes in sorted(LOBATTO):
        kernel, target = KERNELS[name](nodes=nodes), Scores(P.score)
        x = P.sample(10, seeded(13)).to(DOUBLE)
        source = seeded(14)
        state = kernel.init(target, x, source)
        target.rows = 0
        _, info = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
        if info.num_leapfrog is not None:
            assert target.rows == int(info.num_leapfrog.sum())
        else:
            assert target.rows == 10 * kernel.evaluations_per_step * (1 + nodes)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "HMC of random length"])
def test_rows_are_targets_of_their_own_and_what_is_not_finite_is_refused(name):
    """Chain k on a target of its own does what it does in a batch with others, some of which diverge."""
    centres = torch.linspace(-3.0, 3.0, 60, dtype=DOUBLE)[:, None]

    def target(rows):
        def score(x):
            return torch.where(x[:, :1].abs() > 3.01, torch.nan, centres[rows] - x - 0.2 * (x - centres[rows]) ** 3)

        return Scores(score)

    everyone = torch.arange(60)
    kernel, x = KERNELS[name](), centres.expand(-1, 2).contiguous()
    source = seeded(15)
    state = kernel.init(target(everyone), x, source)
    noise = kernel.noise(state, source)
    together, info = kernel.step(target(everyone), state, kernel.tune(x), noise)
    assert 0 < int(info.divergent.sum()) < 60
    assert not bool((info.divergent & info.accepted).any())
    torch.testing.assert_close(together.x[info.divergent], x[info.divergent], rtol=0, atol=0)
    for k in range(0, 60, 6):
        rows = torch.tensor([k])
        own = {name: value[rows] for name, value in vars(noise).items() if isinstance(value, torch.Tensor)}
        alone, _ = kernel.step(target(rows), state.select(rows), kernel.tune(x), type(noise)(**own, generator=None))
        torch.testing.assert_close(alone.x, together.x[rows])


def test_what_is_not_finite_between_both_ends_is_a_divergence():
    def inside(x):
        return (x[:, 0] > 0.4) & (x[:, 0] < 0.6)

    target = Scores(lambda x: torch.where(inside(x)[:, None], torch.nan, -x), 1)
    kernel, x = MALA(0.5, nodes=1), torch.zeros(400, 1, dtype=DOUBLE)
    state, noise = kernel.init(target, x), kernel.noise(kernel.init(target, x), seeded(17))
    after, info = kernel.step(target, state, kernel.tune(x), noise)
    lost = inside(noise.normal) | inside(0.5 * noise.normal)  # the step is √(2h) = 1 times the noise
    assert torch.equal(info.divergent, lost)
    assert int(lost.sum()) > int(inside(noise.normal).sum()) > 0
    assert bool((after.x[lost] == 0).all())


# ------------------------------------------------------------------ samplers


@pytest.mark.parametrize("kernel", [MALA(), HMC(num_leapfrog=3), GHMC(num_leapfrog=3), Barker()], ids=repr)
def test_annealed_products_of_gaussians(kernel):
    """Variances of a product from two scores, within three standard errors and 5 % that adiabatic bias may take."""
    p = only_score(Gaussian(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.2])))
    q = only_score(Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.6])))
    draw = sample(p * q, 3000, sampler=Annealed(levels=24, kernel=kernel, sweeps=4), seed=0)
    variance = torch.tensor([0.5, 0.15])
    mean = torch.tensor([0.5, 0.75])
    assert float(((draw.x.mean(0) - mean) / (variance / 3000).sqrt()).abs().max()) < 3.5
    assert float((draw.x.var(0) / variance - 1).abs().max()) < 3 * math.sqrt(2 / 3000) + 0.05
    assert 0.4 < draw.info.acceptance < 0.999
    assert bool(torch.isfinite(draw.x).all())


def test_evaluations_of_a_run_are_those_of_its_factors():
    calls = []

    def counted(p):
        def score(x, s):
            calls.append(len(x))
            return p._score(x, s)

        return term(score, kind="score", path="noised", event_shape=2)

    p = counted(Gaussian(torch.zeros(2), 1.0)) * counted(Gaussian(torch.ones(2), 1.0))
    for kernel in (MALA(nodes=2), HMC(num_leapfrog=3, nodes=1)):
        calls.clear()
        draw = sample(p, 50, sampler=Annealed(levels=6, kernel=kernel, sweeps=2), seed=0)
        assert draw.info.evaluations * 50 == pytest.approx(sum(calls) / 2)


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_all_conditions_of_a_network_are_one_forward():
    """Every node of a line integral is one forward of k · N rows for k conditions."""
    torch.manual_seed(0)
    net = MLP(2, hidden=8, depth=1, num_classes=3)
    p = NCSN(net, (2,), num_classes=3, sigma_range=(0.1, 20.0))
    guided = p * (p.given(label=0) / p) ** 2 * (p.given(label=1) / p) * (p.given(label=2) / p)
    forwards = []
    net.register_forward_hook(lambda module, inputs, output: forwards.append(len(output)))
    kernel = HMC(step_size=0.01, num_leapfrog=2, nodes=1)
    draw = sample(guided, 40, sampler=Annealed(levels=3, kernel=kernel, sweeps=1), seed=0)
    assert forwards[-12:] == [4 * 40] * 12
    assert draw.info.network_rows * 40 == sum(forwards) == 4 * draw.info.evaluations * 40


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chains_on_a_static_score(compiled):
    p = term(lambda x: -(x - 1.0) / 2.0, kind="score", event_shape=2)
    sampler = MCMC(HMC(step_size=1.5, num_leapfrog=3), draws=60, compile=compiled)
    draw = sample(p, chains=200, sampler=sampler, init=1.0 + normals(200, 2, seed=16).float() * math.sqrt(2.0), seed=0)
    z = (draw.x.mean(1).mean(0) - 1.0) / math.sqrt(2.0 / 200)  # chains are independent: their means err no more
    assert float(z.abs().max()) < 3
    assert float((draw.x.var((0, 1)) / 2.0 - 1).abs().max()) < 0.1
    assert 0.7 < draw.info.acceptance < 0.999
    assert draw.info.evaluations == pytest.approx(1 + 60 * 3 * 2, abs=40)  # and the search for starts


def test_adapted_chains_on_a_static_score():
    p = term(lambda x: -x / torch.tensor([0.2, 1.0]), kind="score", event_shape=2)
    draw = sample(p, chains=16, sampler=MCMC(HMC(num_leapfrog=4), warmup=150, draws=150), seed=0)
    assert float((draw.x.var((0, 1)) / torch.tensor([0.2, 1.0]) - 1).abs().max()) < 0.2
    assert draw.info.acceptance > 0.6


def test_conditions_of_their_own_for_each_row():
    """Half of the coordinates are clamped to another value in every row; the others follow their conditional."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    prior = only_score(Gaussian(torch.zeros(2), covariance), sigma_range=(0.0, 50.0))
    known = torch.linspace(-2.0, 2.0, 1000)
    value = torch.stack([known, torch.zeros(1000)], 1)
    clamp = Clamp(torch.tensor([True, False]), value)
    draw = sample(prior * clamp, 1000, sampler=Annealed(levels=24, kernel=HMC(num_leapfrog=3), sweeps=3), seed=0)
    torch.testing.assert_close(draw.x[:, 0], known)
    rest = draw.x[:, 1] - 0.8 * known
    assert abs(float(rest.mean())) < 3 * math.sqrt(0.36 / 1000)
    assert float(rest.var()) == pytest.approx(0.36, rel=3 * math.sqrt(2 / 1000))


@pytest.mark.parametrize("kernel", [HMC(num_leapfrog=3), MALA(), ULA(), UHMC(num_leapfrog=3)], ids=repr)
def test_finite_from_sigma_999_to_the_data(kernel):
    """Flow matching ends at t = 0.999: its σ = t / (1 − t) goes up to 999."""
    p = only_score(Gaussian(torch.zeros(2), 1.0), sigma_range=(0.0, 999.0))
    q = only_score(Gaussian(torch.ones(2), 1.0), sigma_range=(0.001, 999.0))
    levels = [1e-9, *(k / 12 for k in range(1, 13))]
    draw = sample(p * q, 200, sampler=Annealed(levels=levels, kernel=kernel), seed=0)
    assert bool(torch.isfinite(draw.x).all())
    assert 0.2 < float(draw.x.var(0).mean()) < 1.0


def test_blocks_of_scores_still_need_energies():
    p = term(lambda x: {"a": -x["a"], "b": -x["b"]}, kind="score", event_shape={"a": 1, "b": 1})
    with pytest.raises(TypeError, match="energ"):
        sample(p, chains=4, sampler=MCMC(BlockGibbs({"a": HMC(0.3), "b": HMC(0.3)}), draws=4), seed=0)
