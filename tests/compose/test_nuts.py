"""The No-U-Turn sampler against its recursive definition, and where it is hard; kernel contracts have its other laws.

Seeds are fixed. Each bound is a two-sided normal quantile such that a correct kernel fails a check with probability
``FALSE_POSITIVES`` = 1e-4, shared among its statistics (Bonferroni): chains are
independent and start from exact draws, so that z-scores need no effective size.
"""

import itertools
import math
import warnings
from collections import Counter

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.errors import MissingEnergy, SamplingWarning
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import NUTS, Diagonal, Noise, State, Tune
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC
from tests import kernel_contracts
from tests.interruption import assert_same_run, interrupt
from tests.kernel_contracts import bound
from tests.kernel_contracts import seeded as generator

CHAINS = 20_000
F64 = torch.float64


def density(fn, dim, dtype=F64):
    """The flat target of an energy."""
    return ravel(term(fn, kind="energy", event_shape=dim), dtype=dtype)


class Recorder:
    """A target that notes the points that it was asked for."""

    has_energy = True

    def __init__(self, target):
        self.target, self.points = target, []

    def energy_and_score(self, x):
        self.points.append(x.clone())
        return self.target.energy_and_score(x)


def march(kernel, target, x, steps, seed):
    """The public loop: final state, mean acceptance, number of divergences."""
    return kernel_contracts.march(kernel, target, x, steps, generator(seed))


def once(kernel, target, x, seed, tune=None, normal=None):
    """One transition from x."""
    state = kernel.init(target, x)
    noise = kernel.noise(state, generator(seed))
    noise = noise if normal is None else Noise(normal, noise.uniform, noise.jitter, noise.generator)
    return kernel.step(target, state, tune or kernel.tune(x), noise)


# ---------------------------------------- against the recursive definition


def crooked(x):
    """Anharmonic and correlated: energy errors, and turns at any angle."""
    return 0.5 * x[:, 0] ** 2 + 0.25 * x[:, 1] ** 4 + 0.6 * x[:, 0] * x[:, 1] + 0.1 * x[:, 0] ** 4


class Orbit:
    """Leaves k = −R, …, R of one leapfrog orbit with unit mass, and Hoffman and Gelman's recursion over them."""

    def __init__(self, target, x, velocity, step, depth, limit, extra=True):
        self.depth, self.limit, self.extra = depth, limit, extra
        self.x, self.v, self.h = {}, {}, {}
        for sign in (1, -1):
            place, speed = x, sign * velocity
            energy, score = target.energy_and_score(place[None])
            for k in range(2**depth):
                self.x[sign * k], self.v[sign * k] = place, sign * speed
                self.h[sign * k] = float(energy) + 0.5 * float(speed @ speed)
                speed = speed + 0.5 * step * score[0]
                place = place + step * speed
                energy, score = target.energy_and_score(place[None])
                speed = speed + 0.5 * step * score[0]

    def weight(self, k):
        return math.exp(self.h[0] - self.h[k]) if self.alive(k) else 0.0

    def alive(self, k):
        return math.isfinite(self.h[k]) and self.h[k] - self.h[0] <= self.limit

    def turns(self, left, right):
        """Whether the union of two neighbours turns, or one of them with the nearest leaf of the other."""
        runs = [left + right] + ([left + right[:1], left[-1:] + right] if self.extra else [])
        for run in runs:
            rho = sum(self.v[k] for k in run)
            if float(rho @ self.v[run[0]]) <= 0 or float(rho @ self.v[run[-1]]) <= 0:
                return True
        return False

    def build(self, edge, sign, depth):
        """Leaves visited in order of time away from the edge, and whether the half is good."""
        if depth == 0:
            return [edge + sign], self.alive(edge + sign)
        first, good = self.build(edge, sign, depth - 1)
        if not good:
            return first, False
        second, good = self.build(first[-1], sign, depth - 1)
        if not good:
            return first + second, False
        return first + second, not self.turns(first, second)

    def outcomes(self):
        """Probability of each (leaves tried, mean acceptance, chosen leaf), by enumeration over the coins."""
        table = Counter()
        for coins in itertools.product((1, -1), repeat=self.depth):
            leaves, tried, chosen = [0], [], {0: 1.0}
            for depth, sign in enumerate(coins):
                new, good = self.build(leaves[-1] if sign == 1 else leaves[0], sign, depth)
                tried += new
                if not good:
                    break
                old_weight, new_weight = sum(map(self.weight, leaves)), sum(map(self.weight, new))
                take = min(1.0, new_weight / old_weight)
                chosen = {k: p * (1 - take) for k, p in chosen.items()}
                chosen |= {k: take * self.weight(k) / new_weight for k in new}
                stop = self.turns(leaves, new) if sign == 1 else self.turns(new[::-1], leaves)
                leaves = leaves + new if sign == 1 else new[::-1] + leaves
                if stop:
                    break
            rate = sum(min(1.0, self.weight(k)) for k in tried) / len(tried)
            for k, p in chosen.items():
                table[len(tried), round(rate, 8), k] += p / 2**self.depth
        return table


CASES = 12
COPIES = 4000


def orbits(step, limit, extra=True):
    target, source = density(crooked, 2), generator(30)
    x, v = (torch.randn(CASES, 2, generator=source, dtype=F64) for _ in range(2))
    return target, x, v, [Orbit(target, a, b, step, 4, limit, extra) for a, b in zip(x, v, strict=True)]


@pytest.mark.parametrize(("step", "limit"), [(0.33, 1000.0), (0.6, 1000.0), (1.1, 0.7)], ids=str)
def test_every_outcome_has_the_probability_of_the_recursive_definition(step, limit):
    target, x, v, paths = orbits(step, limit)
    kernel = NUTS(step_size=step, max_depth=4, max_energy_error=limit)
    start, momentum = x.repeat_interleave(COPIES, 0), v.repeat_interleave(COPIES, 0)
    state, info = once(kernel, target, start, 31, normal=momentum)
    worst, statistics = 0.0, 0
    for case, path in enumerate(paths):
        rows = slice(case * COPIES, (case + 1) * COPIES)
        keys = list(path.x)
        leaves = torch.stack([path.x[k] for k in keys]).nan_to_num(torch.inf)  # some orbits explode
        distance = (state.x[rows, None] - leaves).abs().amax(2)
        nearest, index = distance.min(1)
        assert float(nearest.max()) < 1e-9, "a state that is no leaf"
        hamiltonians = torch.tensor([path.h[k] for k in keys], dtype=F64)[index]
        torch.testing.assert_close(info.energy[rows], hamiltonians)
        seen = Counter(
            (n, round(a, 8), keys[i])
            for n, a, i in zip(
                info.num_leapfrog[rows].tolist(), info.acceptance[rows].tolist(), index.tolist(), strict=True
            )
        )
        expected = path.outcomes()
        assert sum(expected.values()) == pytest.approx(1.0)
        assert not set(seen) - {k for k, p in expected.items() if p > 0}, "an outcome that cannot be"
        for key, p in expected.items():
            if p * COPIES >= 10 and p < 1:
                statistics += 1
                worst = max(worst, abs(seen[key] - p * COPIES) / math.sqrt(p * (1 - p) * COPIES))
    assert statistics > 25
    assert worst < bound(statistics) + 0.5  # counts of ten are not quite normal


def test_the_cases_of_that_check_have_every_kind_of_end():
    full = plain = cut = 0
    for step, limit in ((0.33, 1000.0), (0.6, 1000.0), (1.1, 0.7)):
        for path, other in zip(orbits(step, limit)[3], orbits(step, limit, extra=False)[3], strict=True):
            plain += path.outcomes() != other.outcomes()
            lengths = {n for n, _, _ in path.outcomes()}
            full += 15 in lengths
            cut += any(n + 1 & n for n in lengths)
    assert full > 3, "trajectories of all sixteen leaves"
    assert cut > 3, "halves that were thrown away before they were complete"
    assert plain > 3, "turns that only the checks between neighbours see"


# ------------------------------------------------------------------ U-turns


@pytest.mark.parametrize("step", [0.07, 0.15, 0.3])
def test_trajectories_of_an_isotropic_gaussian_end_after_half_a_period(step):
    target = ravel(Gaussian(torch.zeros(400, dtype=F64), 1.0))
    x = torch.randn(200, 400, generator=generator(36), dtype=F64)
    _, info = once(NUTS(step_size=step), target, x, 37)
    leaves = 2 ** math.ceil(math.log2(math.pi / step))  # the first doubling that spans π
    assert info.num_leapfrog.tolist() == [leaves - 1] * 200


def test_the_chosen_leaf_lies_before_and_after_the_start_alike():
    target = ravel(Gaussian(torch.zeros(2, dtype=F64), 1.0))
    x = torch.tensor([[1.0, 0.0]], dtype=F64).expand(CHAINS, 2)
    momentum = torch.tensor([[0.0, 1.0]], dtype=F64).expand(CHAINS, 2)
    state, info = once(NUTS(step_size=0.3), target, x, 38, normal=momentum)
    assert bool(info.accepted.any())
    assert abs(float(state.x[:, 1].mean() / state.x[:, 1].std())) * math.sqrt(CHAINS) < bound(1)


# --------------------------------------------------------------- hard cases


def test_an_infinite_gradient_at_an_edge_keeps_the_moments():
    target = density(lambda x: x[:, 0] - 0.5 * x[:, 0].log(), 1)  # Gamma(1.5, 1), undefined below 0
    x = 0.5 * torch.randn(CHAINS, 3, generator=generator(39), dtype=F64).square().sum(1, keepdim=True)
    state, acceptance, divergences = march(NUTS(step_size=0.5), target, x, 6, seed=40)
    assert divergences > 100
    assert acceptance > 0.7
    assert bool((state.x > 0).all())
    first, second = state.x[:, 0], state.x[:, 0] ** 2  # E x = 1.5, E x² = 3.75, E x³ = 13.125, E x⁴ = 59.0625
    z = [(float(first.mean()) - 1.5) / math.sqrt(1.5 / CHAINS), (float(second.mean()) - 3.75) / math.sqrt(45 / CHAINS)]
    assert max(map(abs, z)) < bound(2)


def test_finite_energies_with_an_infinite_score_or_of_minus_infinity_are_divergences():
    class Poisoned:
        has_energy = True

        def energy_and_score(self, x):
            energy, score = 0.5 * (x**2).sum(-1), -x
            score = torch.where(x[:, :1] > 1.0, torch.inf, score)
            return torch.where(x[:, 1] > 1.0, -torch.inf, energy), score

        def score(self, x):
            return self.energy_and_score(x)[1]

    x = torch.zeros(500, 2, dtype=F64)
    state, acceptance, divergences = march(NUTS(step_size=0.5), Poisoned(), x, 5, seed=41)
    assert divergences > 100
    assert 0.2 < acceptance < 1.0
    assert bool((state.x <= 1.0).all())
    assert bool(torch.isfinite(state.energy).all() & torch.isfinite(state.score).all())


def test_energies_that_explode_are_divergences_and_are_never_taken():
    target = density(lambda x: (x**4).sum(-1), 2)
    x = torch.full((100, 2), 0.5, dtype=F64)
    state, info = once(NUTS(step_size=8.0), target, x, 42)
    assert bool(info.divergent.all())
    assert not bool(info.accepted.any())
    assert torch.equal(state.x, x)
    assert info.num_leapfrog.tolist() == [1] * 100
    assert float(info.acceptance.max()) == 0.0
    assert bool((info.energy >= target.energy(x)).all())


def test_a_flat_direction_ends_at_the_largest_depth():
    target = density(lambda x: 0 * x[:, 0], 1)
    _, info = once(NUTS(step_size=0.1, max_depth=6), target, torch.zeros(300, 1, dtype=F64), 43)
    assert info.num_leapfrog.tolist() == [63] * 300
    assert float(info.acceptance.min()) == 1.0
    assert not bool(info.divergent.any())
    assert bool(info.accepted.all())
    improper = term(lambda x: 0.5 * x[:, 0] ** 2, kind="energy", event_shape=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # R-hat is what an improper density deserves
        draw = sample(improper, chains=4, sampler=MCMC(NUTS(max_depth=4), warmup=60, draws=30), seed=0)
    assert bool(torch.isfinite(draw.x).all())
    assert int(draw.stats["n_steps"].max()) <= 15


def test_rows_that_raise_are_divergences_of_their_own():
    def fn(x):
        if bool((x[:, 0] > 1.5).any()):
            raise ValueError("beyond the table")
        return 0.5 * (x**2).sum(-1)

    target = density(fn, 2)
    with pytest.warns(SamplingWarning, match="beyond the table"):
        state, _, divergences = march(NUTS(step_size=0.5), target, torch.zeros(60, 2, dtype=F64), 6, seed=44)
    assert 10 < divergences < 300
    assert bool((state.x[:, 0] <= 1.5).all())
    assert float(state.x[:, 0].std()) > 0.5


# ------------------------------------------------------------- batch, masses


def fan(n, seed):
    """Starts between the centre and the far tails: trajectories of many lengths."""
    scale = torch.logspace(-1, 1, n, dtype=F64)[torch.randperm(n, generator=generator(seed))]
    return scale[:, None] * torch.randn(n, 2, generator=generator(seed + 1), dtype=F64)


@pytest.mark.parametrize("rows", ["one step size", "a step size in each row", "a mass in each row"])
def test_a_chain_follows_from_its_own_numbers(rows):
    target, kernel, n = density(crooked, 2), NUTS(step_size=0.2, max_depth=7), 64
    spread = torch.linspace(0.1, 0.9, n, dtype=F64)
    mass = Diagonal(torch.stack([spread, 1 - spread], 1)) if "mass" in rows else None
    tune = Tune(torch.tensor(0.2, dtype=F64) if rows == "one step size" else spread, mass)
    x, other = fan(n, 45), fan(n, 47)
    mine = torch.arange(n) % 3 == 0
    mixed = torch.where(mine[:, None], x, other)
    state, info = once(kernel, target, x, 49, tune)
    again, same = once(kernel, target, mixed, 49, tune)
    assert len(info.num_leapfrog.unique()) > 5
    torch.testing.assert_close(state.x[mine], again.x[mine], rtol=1e-9, atol=1e-9)
    for field in ("acceptance", "energy", "num_leapfrog", "divergent"):
        torch.testing.assert_close(getattr(info, field)[mine], getattr(same, field)[mine], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(state.x[~mine], again.x[~mine])


def test_leaves_are_chosen_alike_however_many_are_held(monkeypatch):
    target, kernel, x = density(crooked, 2), NUTS(step_size=0.05), fan(40, 50)
    results = []
    for held in (64, 4, 1):
        monkeypatch.setattr("boltzmix.compose.kernels.nuts._LEAVES", held)
        results.append(once(kernel, target, x, 52))
    for state, info in results[1:]:
        torch.testing.assert_close(state.x, results[0][0].x)
        torch.testing.assert_close(info.acceptance, results[0][1].acceptance)
        assert torch.equal(info.num_leapfrog, results[0][1].num_leapfrog)


def test_states_belong_together_and_the_start_is_left_alone():
    target, x = density(crooked, 2), fan(200, 56)
    kernel = NUTS(step_size=0.3)
    state = kernel.init(target, x)
    before = State(x.clone(), state.energy.clone(), state.score.clone())
    noise = kernel.noise(state, generator(57))
    after, info = kernel.step(target, state, kernel.tune(x), noise)
    for field in ("x", "energy", "score"):
        assert torch.equal(getattr(state, field), getattr(before, field)), "the step changed its argument"
    energy, score = target.energy_and_score(after.x)
    torch.testing.assert_close(after.energy, energy)
    torch.testing.assert_close(after.score, score)
    assert torch.equal(info.accepted, (after.x != x).any(1))
    assert bool((info.energy >= after.energy).all())
    assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all())


def test_only_rows_that_grow_are_evaluated_and_each_evaluation_counts():
    view = FlatView(term(crooked, kind="energy", event_shape=2), dtype=F64)
    target = Recorder(view.at())
    kernel, x = NUTS(step_size=0.2, max_depth=7), fan(64, 58)
    state = kernel.init(target, x)
    target.points, view.counter.rows = [], 0
    _, info = kernel.step(target, state, kernel.tune(x), kernel.noise(state, generator(60)))
    assert sum(map(len, target.points)) == view.counter.rows == int(info.num_leapfrog.sum())
    assert len(target.points) == int(info.num_leapfrog.max()) <= kernel.evaluations_per_step
    assert min(len(p) for p in target.points) < 10


def test_conditions_that_differ_by_row_have_all_rows_evaluated():
    p = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64))
    values = torch.stack([torch.linspace(-2, 2, CHAINS, dtype=F64), torch.zeros(CHAINS, dtype=F64)], 1)
    view = FlatView(p * Clamp(torch.tensor([True, False]), values), dtype=F64, rows=CHAINS)
    mean = 0.8 * values[:, :1]
    x = mean + 0.6 * torch.randn(CHAINS, 1, generator=generator(61), dtype=F64)
    kernel = NUTS(step_size=0.3)
    state, _, _ = march(kernel, view.at(), x, 3, seed=62)
    z = (state.x - mean) / 0.6
    scores = [float(z.mean()) * math.sqrt(CHAINS), float((z**2).mean() - 1) * math.sqrt(CHAINS / 2)]
    assert max(map(abs, scores)) < bound(2)
    view.counter.rows = 0
    _, info = once(kernel, view.at(), x, 63)
    assert view.counter.rows == CHAINS * (1 + int(info.num_leapfrog.max()))


# ------------------------------------------------------------------ as MCMC


def test_two_thousand_chains_in_float32_find_a_badly_scaled_gaussian():
    variances = torch.logspace(-2, 2, 5)
    draw = sample(Gaussian(torch.ones(5), variances), chains=2000, sampler=MCMC(NUTS(), warmup=100, draws=3), seed=1)
    assert draw.x.dtype == torch.float32
    last = draw.x[:, -1].double()
    z = (last.mean(0) - 1) / (variances / 2000).sqrt()
    assert float(z.abs().max()) < bound(10)
    z = ((last - 1).square().mean(0) / variances - 1) * math.sqrt(2000 / 2)
    assert float(z.abs().max()) < bound(10)
    assert draw.info.acceptance == pytest.approx(0.8, abs=0.07)
    assert draw.stats["n_steps"].shape == draw.stats["energy"].shape == (2000, 3)
    assert draw.info.divergences == 0


def test_it_is_the_kernel_of_chains_that_name_none():
    p = Gaussian(torch.zeros(3), torch.tensor([0.2, 1.0, 3.0]))
    named = sample(p, chains=4, sampler=MCMC(NUTS(), warmup=40, draws=20), seed=2)
    silent = sample(p, chains=4, sampler=MCMC(warmup=40, draws=20), seed=2)
    assert torch.equal(named.x, silent.x)
    with pytest.raises(MissingEnergy, match=r"NUTS\(\) needs energies"):
        sample(term(lambda x: -x, kind="score", event_shape=2), chains=2)


@pytest.mark.parametrize("share", [0.6, 0.95], ids=["in the warm-up", "in the draws"])
def test_a_killed_run_goes_on_bit_for_bit(share, tmp_path):
    sampler = MCMC(NUTS(), warmup=200, draws=100)
    found = interrupt(lambda x: 0.5 * (x**2).sum(-1), sampler, share, tmp_path / "run", seed=3)
    assert_same_run(found.resumed, found.whole)
