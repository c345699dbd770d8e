"""Metrics agree with their definitions, and exact draws reach the floor that biased ones do not."""

import math

import pytest
import torch

from boltzmix.benchmarks import metrics, targets
from boltzmix.compose.gaussian import GaussianMixture


def brute_force(x, y, squared, unbiased):
    def k(a, b):
        return sum(
            math.exp(-sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True)) / (2 * h)) for h in squared
        ) / len(squared)

    def own(z):
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if not unbiased or i != j]
        return sum(pairs) / len(pairs)

    return own(x) + own(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("squared", [(0.1, 0.4, 2.0, 10.0), (0.04,), (0.3, 0.7)])
def test_mmd_equals_double_sum(dim, unbiased, squared):
    generator = torch.Generator().manual_seed(dim)
    x, y = torch.randn(13, dim, generator=generator), 0.5 + torch.randn(9, dim, generator=generator)
    found = metrics.mmd2(x, y, squared, unbiased)
    assert found == pytest.approx(brute_force(x, y, squared, unbiased), abs=1e-12)


@pytest.mark.parametrize("dim", [2, 6])
def test_blocks_do_not_change_the_sum(dim, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(101, dim, generator=generator), torch.randn(77, dim, generator=generator)
    squared = metrics.bandwidths(x)
    whole = metrics.mmd2(x, y, squared)
    monkeypatch.setattr(metrics, "_BLOCK", 10)
    assert metrics.mmd2(x, y, squared) == pytest.approx(whole, abs=1e-14)


def test_bandwidths_are_multiples_of_the_median_squared_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4, 9
    assert metrics.bandwidths(x) == pytest.approx((0.2, 0.8, 4.0, 20.0))
    with pytest.raises(ValueError, match="coincide"):
        metrics.bandwidths(torch.zeros(5, 2))


def test_mmd_is_invariant_under_scale():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 2, generator=generator), torch.rand(60, 2, generator=generator)
    one = metrics.mmd2(x, y, metrics.bandwidths(x))
    assert metrics.mmd2(100 * x, 100 * y, metrics.bandwidths(100 * x)) == pytest.approx(one, rel=1e-5)


def test_unbiased_mmd_of_exact_pairs_has_mean_zero():
    task = targets.ring_line()
    floor = metrics.Discrepancy(task.exact).floor(200, 60)
    z = float(floor.mean() / (floor.std() / math.sqrt(len(floor))))
    assert abs(z) < 4  # false positives: 1e-4
    assert bool((floor < 0).any())
    assert bool((floor > 0).any())


def test_logarithm_is_clamped():
    assert metrics.log_mmd2(-1.0) == metrics.log_mmd2(0.0) == math.log(1e-9)
    assert metrics.log_mmd2(0.5) == math.log(0.5)


def test_mode_masses_of_separated_modes_are_counts():
    truth = GaussianMixture([[-10.0], [0.0], [10.0]], 0.1, [0.2, 0.3, 0.5])
    x = torch.tensor([[-10.0], [0.1], [10.0], [9.9]])
    assert metrics.mode_masses(truth, x).tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert metrics.mode_error(truth, x) == pytest.approx(0.05)
    assert metrics.total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0


def test_mode_error_of_exact_draws_shrinks_like_root_n():
    task = targets.ring_line()
    assert task.truth is not None
    errors = []
    for n in (500, 8000):
        draws = [task.exact(n, torch.Generator().manual_seed(s)) for s in range(8)]
        errors.append(sum(metrics.mode_error(task.truth, x) for x in draws) / 8)
    assert 2.5 < errors[0] / errors[1] < 6  # 4 expected


def test_member_scores_are_standard_for_exact_draws_and_large_for_shifted_weights():
    truth = GaussianMixture([[-3.0], [0.0], [3.0]], 1.0, [0.2, 0.3, 0.5])
    wrong = GaussianMixture([[-3.0], [0.0], [3.0]], 1.0, [0.2, 0.36, 0.44])
    reference = truth.sample(20_000, torch.Generator().manual_seed(0))
    scores = [
        z
        for seed in range(1, 21)
        for z in metrics.member_z(truth, (2, 1), truth.sample(2000, torch.Generator().manual_seed(seed)), reference)
    ]
    assert max(map(abs, scores)) < 4.5
    assert 0.6 < math.sqrt(sum(z * z for z in scores) / len(scores)) < 1.5
    biased = metrics.member_z(truth, (2, 1), wrong.sample(20_000, torch.Generator().manual_seed(5)), reference)
    assert max(map(abs, biased)) > 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: 1.15 * x,
        lambda x: x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)),
        lambda x: x[x[:, 0] < x[:, 0].quantile(0.8)],
        lambda x: torch.cat([x, x[x[:, 1] > 0.6]]),
    ],
    ids=["scaled", "blurred", "tail cut", "weights shifted"],
)
def test_biased_draws_are_seen(spoil):
    task = targets.ring_line()
    judge = metrics.Discrepancy(task.exact)
    floor = metrics.quantile(judge.floor(1500, 30), 0.99)
    x = task.exact(1500, torch.Generator().manual_seed(11))
    assert judge(x) < floor
    assert judge(spoil(x)) > 1.5 * floor


def test_quantiles_and_their_interval():
    values = torch.arange(101.0)
    assert metrics.quantile(values, 0.99) == pytest.approx(99.0)
    low, high = metrics.bootstrap(values, 0.5)
    assert low < 50 < high


def test_rows_are_wanted():
    with pytest.raises(ValueError, match=r"rows \(N, D\)"):
        metrics.mmd2(torch.zeros(3), torch.zeros(3, 1), (1.0,))
    with pytest.raises(ValueError, match="two rows"):
        metrics.mmd2(torch.zeros(1, 2), torch.zeros(3, 2), (1.0,))


def test_energy_distance_is_that_of_two_gaussians_and_zero_between_equals():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    # 2 E|X - Y - 1| - 2 E|X - X'|, with X - Y ~ N(0, 2): the folded normal's mean
    spread = math.sqrt(2)
    folded = spread * math.sqrt(2 / math.pi) * math.exp(-1 / 4) + math.erf(1 / 2)
    exact = 2 * folded - 2 * spread * math.sqrt(2 / math.pi)
    # standard errors by 200 repetitions: 0.012 and 0.0006; five of them are a false positive in 1e6 runs
    assert metrics.energy_distance(x, y + 1) == pytest.approx(exact, abs=0.06)
    assert abs(metrics.energy_distance(x, y)) < 0.003


def test_nearest_distance_is_the_median_of_the_smallest():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    assert metrics.nearest_distance(x, torch.tensor([[0.0, 0.0], [10.0, 2.0]])) == pytest.approx(2.0)
