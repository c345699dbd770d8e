"""Targets: exact draws agree with the formula they are said to be draws of, and log Z with its integral."""

import math

import pytest
import torch

from boltzmix.benchmarks import metrics, targets
from boltzmix.compose.errors import NotNormalizable
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.smc import SMC


def integral(task, low, high, cells=500):
    """log ∫ exp(−E) of the formula itself, on a grid."""
    grid = targets.Grid(lambda x: task.target.energy(x.float()).detach(), low, high, cells)
    return grid.solve()


PLANE = [*targets.sums(), *targets.negations()[:2], targets.ring_line(), targets.circle_bar()]


@pytest.mark.parametrize("task", PLANE, ids=lambda t: t.name)
def test_log_z_and_draws_agree_with_a_grid_over_the_formula(task):
    cells = 1000 if "circle" in task.name else 250  # several cells to the smallest standard deviation
    log_z, exact = integral(task, (-6.0, -5.0), (6.0, 5.0), cells)
    assert task.log_z == pytest.approx(log_z, abs=2e-3)
    generator = torch.Generator().manual_seed(1)
    judge = metrics.Discrepancy(task.exact)
    assert judge(exact(1500, generator)) < metrics.quantile(judge.floor(1500, 40), 0.99) * 1.5


@pytest.mark.parametrize("task", targets.statics(), ids=lambda t: t.name)
def test_static_targets_agree_with_a_grid_over_the_formula(task):
    dim = task.exact(1, torch.Generator()).shape[1]
    log_z, _ = integral(task, (-12.0,) * dim, (12.0,) * dim, 600)
    assert task.log_z == pytest.approx(log_z, abs=5e-3)


def test_the_flow_in_closed_form_is_normalised():
    log_z, _ = targets.Grid(targets.bent, (-14.0, -8.0), (14.0, 60.0), 1500).solve()
    assert log_z == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("dim", [8, 32])
def test_committed_seeds_are_those_the_search_finds(dim):
    assert targets.MIXTURE_SEEDS[dim] == targets.find_seeds(dim)
    for seed in targets.MIXTURE_SEEDS[dim]:
        task = targets.random_product(dim, seed)
        assert targets.effective_modes(task.truth) >= 4


@pytest.mark.parametrize("dim", [8, 32])
def test_truth_of_random_products_is_the_formula_up_to_log_z(dim):
    task = targets.random_product(dim, targets.MIXTURE_SEEDS[dim][0])
    x = task.exact(50, torch.Generator().manual_seed(0))
    difference = task.truth.energy(x.double()) - task.target.energy(x).double()
    assert torch.allclose(difference, torch.full_like(difference, task.log_z), atol=2e-3)


def test_circle_bar_support_holds_its_exact_draws():
    task = targets.circle_bar()
    x = task.exact(5000, torch.Generator().manual_seed(0))
    assert metrics.support_fraction(task.inside, x) > 0.998
    assert metrics.support_fraction(task.inside, x + torch.tensor([0.4, 0.0])) == 0.0


@pytest.mark.parametrize("functions", [False, True])
@pytest.mark.parametrize("path", ["auto", "noise"])
def test_independent_tally_equals_reported_evaluations(functions, path):
    task = targets.counted(targets.ring_line(), functions)
    draw = sample(task.target, 300, sampler=SMC(path=path), seed=0, progress=False)
    assert task.evaluations() / 300 == pytest.approx(draw.info.evaluations)


def test_counted_factors_are_the_factors():
    plain = targets.ring_line()
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for functions in (False, True):
        twin = targets.counted(plain, functions)
        for sigma in (0.0, 0.3):
            energy, score = twin.target.energy_and_score(x, sigma)
            expected = plain.target.energy_and_score(x, sigma)
            assert torch.allclose(energy, expected[0])
            assert torch.allclose(score, expected[1], atol=1e-4)
        assert twin.evaluations() == 40


def test_narrow_quotient_has_variance_two():
    task = targets.narrow_quotients()[0]
    assert float(task.truth.covariances) == pytest.approx(2.0)
    expected = 0.5 * math.log(4 * math.pi) - 0.5 * math.log(2 * math.pi) + math.log(8 * math.pi)
    assert task.log_z == pytest.approx(expected)


def test_formulas_without_an_integral_have_none():
    """On growing boxes the integral of each keeps growing."""
    for name, target in targets.unnormalizable():
        found = []
        for radius in (4.0, 16.0, 64.0):
            try:
                energy = target.energy(torch.cartesian_prod(*[torch.linspace(-radius, radius, 201)] * 2))
            except NotNormalizable:
                break
            found.append(float((-energy.double()).logsumexp(0)) + 2 * math.log(radius))
        else:
            grows = found[0] + 0.5 < found[1] + 0.25 < found[2]
            assert grows or not math.isfinite(found[-1]), (name, found)
