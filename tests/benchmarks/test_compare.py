"""The comparison of samplers is honest: biased ones rank as biased, gradients are counted, failures are rows.

Statistical checks have fixed seeds and state their false-positive rate.
"""

import importlib.util
import json
import math
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch

from boltzmix import HMC, MALA, SMC, ULA, Gaussian, GaussianMixture, sample, term
from boltzmix.benchmarks import Budget, Comparison, MethodRun, compare, known, methods
from boltzmix.benchmarks import bias as b
from boltzmix.benchmarks.audit import run_counted
from boltzmix.benchmarks.bias import bias, gradients_to, median_curve, squared_bias, t_quantile
from boltzmix.benchmarks.cell import judge
from boltzmix.benchmarks.densities import Density, Modes
from boltzmix.benchmarks.methods import METHODS, Chains, Particles, method
from boltzmix.benchmarks.standing import STATUSES
from boltzmix.benchmarks.sweep import fingerprint, label_of
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.kernels.base import Info, Kernel, State

VARIANCES = torch.tensor([1.0, 4.0], dtype=torch.float64)
SHORT = Budget(warmup=0, draws=40)


def gaussian(dim=2, name="gaussian"):
    """Independent coordinates with variances 1 and 4."""
    variance = VARIANCES.repeat(dim // 2)

    def log_prob(x):
        return -0.5 * (x * x / variance.to(x)).sum(1)

    zero = torch.zeros(dim, dtype=torch.float64)
    log_z = 0.5 * float((2 * math.pi * variance).log().sum())
    return Density(name, dim, log_prob, None, zero, variance, variance, 2 * variance**2, log_z=log_z)


def drawn(density, starts, budget, seed, scale=1.0, cost=10.0):
    """Independent draws that cost what they say, honestly."""
    chains = len(starts)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(chains, budget.draws, density.dim, generator=generator, dtype=torch.float64)
    x = scale * x * VARIANCES.sqrt()
    density.log_prob(starts.repeat(int(cost) * budget.draws, 1))
    cost_each = torch.full((chains, budget.draws), cost)
    return MethodRun("drawn", density.name, seed, x, cost_each, 0.0, {"sampling": 0.0})


# ------------------------------------------------------------------------- figures


def squared_bias_is_that_of_the_definition():
    """Against loops over the formula, with a target whose means are not zero."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    square_mean, square_variance = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.5
    average, largest = squared_bias(draws, square_mean, square_variance)
    for chain in range(3):
        for n in range(1, 8):
            errors = []
            for i in range(4):
                mean = float((draws[chain, :n, i] ** 2).sum()) / n
                errors.append((mean - float(square_mean[i])) ** 2 / float(square_variance[i]))
            assert float(average[chain, n - 1]) == pytest.approx(sum(errors) / 4)
            assert float(largest[chain, n - 1]) == pytest.approx(max(errors))


def test_squared_bias_is_that_of_the_definition():
    squared_bias_is_that_of_the_definition()


def test_squared_bias_is_the_same_in_pieces(monkeypatch):
    draws = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = torch.ones(5, dtype=torch.float64)
    whole = squared_bias(draws, one, 2 * one)
    monkeypatch.setattr(b, "_NUMBERS", 9)
    for piece, other in zip(squared_bias(draws, one, 2 * one), whole, strict=True):
        torch.testing.assert_close(piece, other, rtol=1e-14, atol=0)


def exact_draws_need_a_hundred_draws():
    """E b² = 1/n: the mean of b_avg² over 4,000 coordinates at n = 100 is 0.01; one standard error is 2.2 %."""
    target = gaussian(2)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2000, 100, 2, generator=generator, dtype=torch.float64) * VARIANCES.sqrt()
    average, largest = squared_bias(x, target.square_mean, target.square_variance)
    assert float(average[:, -1].mean()) == pytest.approx(0.01, rel=0.1)
    assert bool((largest >= average).all())


def test_exact_draws_need_a_hundred_draws():
    exact_draws_need_a_hundred_draws()


def gradients_are_those_of_draws_times_cost():
    """b² that falls below the threshold at a known draw, at 10 gradients each."""
    x = torch.full((4, 200, 1), math.sqrt(2.0), dtype=torch.float64)
    x[:, 0] = math.sqrt(
        2.0 + math.sqrt(0.02) * 5 - 1e-9
    )  # the running mean is off by √0.02 · 5 / n: b² < 0.01 at n = 5
    one = torch.ones(1, dtype=torch.float64)
    target = Density("one", 1, lambda x: x[:, 0], None, 0 * one, one, 2 * one, 2 * one)
    curve = b.curve(x, torch.full((4, 200), 10.0), target)
    found = gradients_to(0.01, *median_curve([curve.gradients], [curve.largest]))
    assert 50 <= found <= 50 * 10 ** (1 / b.PER_DECADE) * 1.0001
    uneven = b.curve(x, torch.tensor([[5.0], [15.0], [5.0], [15.0]]).expand(4, 200), target)
    assert torch.equal(uneven.largest, curve.largest)  # the average over chains is what counts


def test_gradients_are_those_of_draws_times_cost():
    gradients_are_those_of_draws_times_cost()


def staying_below_is_asked():
    """A curve that comes back above the threshold has not reached it, nor has one that never gets there."""
    g = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert gradients_to(0.01, g, torch.tensor([0.001, 0.02, 0.001, 0.001])) == 3.0
    assert gradients_to(0.01, g, torch.tensor([0.001, 0.001, 0.001, 0.001])) == 1.0
    assert math.isnan(gradients_to(0.01, g, torch.tensor([0.001, 0.001, 0.001, 0.02])))
    assert math.isnan(gradients_to(0.01, g, torch.tensor([0.001, 0.001, 0.001, math.nan])))
    assert math.isnan(gradients_to(0.01, g, torch.full((4,), 0.01)))


def test_staying_below_is_asked():
    staying_below_is_asked()


def medians_are_over_the_chains_of_all_runs():
    """Where all runs have gone; a run whose first draw comes later counts as infinite before it."""
    grid = b.grid_up_to(1000.0)
    slow = grid[(grid >= 10) & (grid <= 500)]
    three, two = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[1.0], [3.0]])
    g, median = median_curve([grid, slow], [three.expand(3, len(grid)), two.expand(2, len(slow))])
    assert float(g[0]) == 1.0
    assert float(g[-1]) == float(slow[-1])
    assert float(median[0]) == 9.0  # of 1, 2, 9, ∞, ∞
    assert float(median[-1]) == 2.0  # of 1, 1, 2, 3, 9
    g, median = median_curve(
        [torch.tensor([80.0]), torch.tensor([120.0])], [torch.tensor([[0.5]]), torch.tensor([[1.5]])]
    )
    assert (float(g), float(median)) == (100.0, 1.0)


def test_medians_are_over_the_chains_of_all_runs():
    medians_are_over_the_chains_of_all_runs()


@pytest.mark.parametrize(
    ("degrees", "tail", "value"), [(1, 0.5, 1.0), (2, 0.05, 4.30265), (19, 1e-3, 3.88341), (9, 1e-6, 11.6368)]
)
def test_quantiles_are_students(degrees, tail, value):
    assert t_quantile(degrees, tail) == pytest.approx(value, rel=2e-3)


def false_positives_are_as_rare_as_said(trials=1500, alpha=0.05):
    """Exact draws of 8 chains in 5 dimensions: α = 5 %; 1,500 trials have a standard error of 0.6 %, four are 2.3 %."""
    generator = torch.Generator().manual_seed(3)
    flagged = 0
    for _ in range(trials):
        errors = torch.randn(8, 10, generator=generator, dtype=torch.float64)
        flagged += bool(bias(errors, 8, alpha=alpha).biased)
    assert flagged / trials <= alpha + 0.023
    flagged = sum(
        bool(bias(torch.randn(8, 10, generator=generator, dtype=torch.float64), 10**9, alpha=alpha).biased)
        for _ in range(trials)
    )
    assert 0.02 <= flagged / trials <= alpha + 0.023  # the floor of the standard error does not make it powerless


def test_false_positives_are_as_rare_as_said():
    false_positives_are_as_rare_as_said()


def a_bias_is_found_and_its_size_is_a_lower_bound():
    """Chain means with a standard error of 0.01 over all chains, and one moment that is off by 0.2."""
    generator = torch.Generator().manual_seed(4)
    errors = 0.04 * torch.randn(16, 10, generator=generator, dtype=torch.float64)
    assert bias(errors, 10_000).biased is False
    assert bias(errors, 10_000).floor == 0
    errors[:, 3] += 0.2
    found = bias(errors, 10_000)
    assert found.biased
    assert 0.01 < found.floor < 0.04
    assert bias(errors, 10_000, accuracy=0.04).biased is False  # the truth may be off by as much
    assert bias(errors[:1], 1000).biased is None
    assert (
        bias(torch.full((4, 10), 1e-3), 400).biased is False
    )  # tails that no chain has visited: 400 draws say no more


def test_a_bias_is_found_and_its_size_is_a_lower_bound():
    a_bias_is_found_and_its_size_is_a_lower_bound()


def weights_are_used():
    """A cloud at two places: by its weights the moments are right, without them not."""
    x = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    one = torch.ones(1, dtype=torch.float64)
    modes = Modes(lambda x: (x[:, 0] > 2).long(), torch.tensor([0.5, 0.5]))
    target = Density("two", 1, lambda x: x[:, 0], None, 1.5 * one, 0.75 * one, 3 * one, one, log_z=1.0, modes=modes)
    run = MethodRun("cloud", "two", 0, x, torch.full((1, 2), 5.0), 0.0, {}, log_weights=weights, log_z=1.25)
    cell = judge(run, target)
    assert float(cell.largest) < 1e-12
    assert cell.gradients.tolist() == [10.0]  # of all its particles
    assert float(cell.errors.abs().max()) < 1e-12
    assert cell.numbers["mode_error"] == pytest.approx(0.25)
    assert cell.numbers["log_z_error"] == pytest.approx(0.25)
    assert cell.numbers["ess"] == pytest.approx(1 / (0.75**2 + 0.25**2))
    even = judge(replace(run, log_weights=torch.zeros(1, 2)), target)
    assert float(even.largest) == pytest.approx(4.0)
    assert even.numbers["mode_error"] == 0.0


def test_weights_are_used():
    weights_are_used()


def figures_of_exact_draws():
    """400 independent draws of 4 chains at 10 gradients: 1,600 effective draws, 100 for 1,000 gradients."""
    target = gaussian()
    run = run_counted(drawn, "drawn", target, target.starts(4, 0), Budget(0, 400), 0)
    assert run.error is None
    cell = judge(run, target)
    assert cell.numbers["ess_per_1000"] == pytest.approx(100, rel=0.2)
    assert cell.numbers["ess_squares_per_1000"] == pytest.approx(100, rel=0.2)
    assert cell.numbers["gradients"] == 4000
    assert cell.numbers["rhat"] < 1.02
    assert cell.draws == 1600


def test_figures_of_exact_draws():
    figures_of_exact_draws()


# -------------------------------------------------------------------------- honesty


@dataclass(frozen=True)
class Lenient(Kernel):
    """Random-walk Metropolis with a wrong acceptance: the square root of the ratio."""

    power: float = 0.5
    adjusted = True

    def step(self, target, state, tune, noise):
        x = state.x + tune.column * noise.normal
        energy, score = target.energy_and_score(x)
        ratio = (self.power * (state.energy - energy)).exp().clamp(max=1.0)
        accepted = noise.uniform < ratio
        new = State(
            torch.where(accepted[:, None], x, state.x),
            torch.where(accepted, energy, state.energy),
            torch.where(accepted[:, None], score, state.score),
        )
        return new, Info(ratio, accepted, torch.zeros_like(accepted))


def biased_samplers_rank_as_biased(planted=None, name="exact"):
    """An unadjusted step so large that draws are nearly independent, and wrong: its ESS is best and its rank last."""
    planted = {name: ULA(step_size=1.0)} if planted is None else planted
    target = gaussian()
    found = compare(target, {**planted, "MALA": MALA(step_size=1.0)}, Budget(0, 800), seeds=2, chains=8)
    wrong, right = found.standing(name), found.standing("MALA")
    assert (right.rank, right.status) == (1, "ok")
    assert (wrong.rank, wrong.status) == (2, "biased")
    assert wrong.bias.floor > 1e-3
    assert wrong.bias.worst > wrong.bias.allowed
    return wrong, right


def test_a_biased_sampler_is_ranked_as_biased_though_its_effective_size_is_best():
    wrong, right = biased_samplers_rank_as_biased()
    assert wrong.numbers["ess_per_1000"] > right.numbers["ess_per_1000"]


def test_a_wrong_acceptance_is_ranked_as_biased():
    biased_samplers_rank_as_biased({"Metropolis": Lenient(step_size=2.0)}, "Metropolis")


def test_the_right_acceptance_is_not():
    found = compare(gaussian(), {"Metropolis": Lenient(step_size=2.0, power=1.0)}, Budget(0, 1500), seeds=2, chains=8)
    assert found.standing("Metropolis").status == "ok"


def bias_comes_before_speed():
    """The order of standings: a biased sampler that reaches the threshold first still comes last."""
    target = gaussian()
    found = compare(
        target,
        {"wrong": lambda *a: drawn(*a, scale=0.96, cost=1.0), "right": drawn},
        Budget(0, 2000),
        seeds=2,
        chains=8,
    )
    assert [s.method for s in found.standings["gaussian"]] == ["right", "wrong"]
    assert found.standing("wrong").to_largest < 0.5 * found.standing("right").to_largest
    assert found.standing("wrong").status == "biased"


def test_bias_comes_before_speed():
    bias_comes_before_speed()


def says_half(density, starts, budget, seed):
    """Reports half of its gradients."""
    run = drawn(density, starts, budget, seed)
    return replace(run, gradients=run.gradients / 2)


def says_the_library_counts(density, starts, budget, seed):
    """Says that its gradients cannot be counted."""
    return replace(says_half(density, starts, budget, seed), counted=False)


class Around(MALA):
    """Evaluates behind the view's back, where the engine does not count."""

    def step(self, target, state, tune, noise):
        target.view.term.score(state.x)
        return super().step(target, state, tune, noise)


class Hidden(MALA):
    """Evaluates three times as much in one call of the view, and hides it from its statistics."""

    def step(self, target, state, tune, noise):
        target.score(torch.cat([state.x, state.x]))
        state, info = super().step(target, state, tune, noise)
        return state, replace(info, num_leapfrog=torch.zeros(len(state.x), dtype=torch.long))


class Cached(MALA):
    """Looks ten transitions ahead at once, and then says that transitions cost nothing."""

    def step(self, target, state, tune, noise):
        target.view.term._energy_and_score(state.x.repeat(10, 1), None)
        return super().step(target, state, tune, noise)


def cheaters_are_caught():
    """Whoever says less than the target counted is miscounted, however it came about."""
    target = gaussian()
    cheats = {
        "half": says_half,
        "library": says_the_library_counts,
        "around": Around(step_size=0.5),
        "cached": Cached(step_size=0.5),
    }
    found = compare(target, {**cheats, "MALA": MALA(step_size=0.5)}, SHORT, seeds=1, chains=4)
    assert found.standing("MALA").rank == 1
    for name in cheats:
        assert found.standing(name).status == "miscounted", name
    return found


def test_cheaters_are_caught():
    found = cheaters_are_caught()
    assert "gradients were reported and the target counted" in found.standing("half").note
    assert "miscounted" in str(found)


def what_kernels_spend_is_counted_from_inside():
    """Tuning and sampling apart, transition by transition, whatever their statistics say."""
    target = gaussian()
    run = Chains(Hidden(step_size=0.5))(target, target.starts(4, 0), SHORT, 0)
    assert run.tuning_gradients == 1.0  # the starts
    assert run.gradients.tolist() == [[3.0] * 40] * 4
    tuned = Chains(HMC(num_leapfrog=5))(target, target.starts(4, 0), Budget(60, 10), 0)
    assert tuned.gradients.tolist() == [[5.0] * 10] * 4
    assert tuned.tuning_gradients >= 301


def test_what_kernels_spend_is_counted_from_inside():
    what_kernels_spend_is_counted_from_inside()


def test_evaluations_that_cannot_be_counted_are_refused():
    def mapped(density, starts, budget, seed):
        torch.func.vmap(lambda x: density.log_prob(x[None])[0])(starts)
        return drawn(density, starts, budget, seed)

    run = run_counted(mapped, "mapped", gaussian(), torch.zeros(4, 2, dtype=torch.float64), SHORT, 0)
    assert "cannot be counted" in run.error


def the_truth_cannot_be_looked_up():
    """A method sees neither moments nor exact draws."""
    seen = []

    def curious(density, starts, budget, seed):
        seen.append(density)
        return drawn(density, starts, budget, seed)

    target = replace(gaussian(), exact=lambda n, g: torch.zeros(n, 2), modes=Modes(lambda x: x, torch.ones(1)))
    assert run_counted(curious, "curious", target, target.starts(4, 0), SHORT, 0).error is None
    (given,) = seen
    assert given.exact is given.modes is given.log_z is None
    assert all(torch.isnan(t).all() for t in (given.mean, given.variance, given.square_mean, given.square_variance))


def test_the_truth_cannot_be_looked_up():
    the_truth_cannot_be_looked_up()


def raises(density, starts, budget, seed):
    raise ZeroDivisionError("out of order\nand more")


def failures_are_rows():
    """Every way to fail has its row, last of all, and what is known of it."""

    def spoiled(density, starts, budget, seed):
        run = drawn(density, starts, budget, seed)
        run.draws[1, 3, 0] = math.nan
        return run

    def short(density, starts, budget, seed):
        run = drawn(density, starts, budget, seed)
        return replace(run, draws=run.draws[:, :5])

    def fewer(density, starts, budget, seed):
        return drawn(density, starts[:2], budget, seed)

    def nothing(density, starts, budget, seed):
        return None

    def absent(density, starts, budget, seed):
        raise MissingExtra("needs a library")

    def sometimes(density, starts, budget, seed):
        return raises(density, starts, budget, seed) if seed == 1 else drawn(density, starts, budget, seed)

    methods = {
        "absent": absent, "raises": raises, "spoiled": spoiled, "short": short, "fewer": fewer, "nothing": nothing,
        "sometimes": sometimes, "drawn": drawn,
    }  # fmt: skip
    found = compare(gaussian(), methods, Budget(0, 150), seeds=2, chains=4)
    notes = {s.method: (s.status, s.note) for s in found.standings["gaussian"]}
    assert found.standing("drawn").rank == 1
    assert notes["raises"] == ("failed", "ZeroDivisionError: out of order")
    assert notes["absent"] == ("skipped", "MissingExtra: needs a library")
    assert notes["spoiled"] == ("failed", "NonFinite: 1 of 600 draws are not finite")
    assert notes["sometimes"] == ("failed", "1 of 2 seeds: ZeroDivisionError: out of order")
    assert found.standing("sometimes").numbers["gradients"] == 1500  # of the seed that ran
    for name in ("short", "fewer", "nothing"):
        assert notes[name][0] == "failed", name
    assert found.standings["gaussian"][-1].method == "absent"
    for name in methods:
        assert f"| {name} |" in found.markdown()


def test_failures_are_rows():
    failures_are_rows()


# ------------------------------------------------------------------- runs and files


def stripped(found):
    """Everything but how long it took."""
    plain = found.to_json()
    plain["about"] = None
    for cell in plain["cells"]:
        cell["numbers"] = {k: v for k, v in cell["numbers"].items() if "second" not in k}
    return plain


KERNELS = {"MALA": MALA(), "HMC": HMC(num_leapfrog=3), "drawn": drawn}


@pytest.fixture(scope="module")
def reference():
    return compare(gaussian(), KERNELS, Budget(60, 40), seeds=[3, 5], chains=4)


def test_results_reproduce_bit_for_bit(reference):
    assert stripped(compare(gaussian(), KERNELS, Budget(60, 40), seeds=[3, 5], chains=4)) == stripped(reference)
    other = compare(gaussian(), KERNELS, Budget(60, 40), seeds=[3, 6], chains=4)
    assert stripped(other)["cells"][0] == stripped(reference)["cells"][0]
    assert stripped(other)["cells"][1] != stripped(reference)["cells"][1]


@pytest.mark.parametrize(
    "backend", ["threading", *(pytest.param(name, marks=pytest.mark.slow) for name in ("loky", "dask", "ray"))]
)
def test_every_backend_gives_the_same(reference, backend):
    pytest.importorskip("joblib")
    pytest.importorskip({"dask": "distributed", "ray": "ray"}.get(backend, "joblib"))
    found = compare(gaussian(), KERNELS, Budget(60, 40), seeds=[3, 5], chains=4, jobs=2, backend=backend)
    assert stripped(found) == stripped(reference)


def test_a_backend_that_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(MissingExtra, match=r"jobs=2 needs joblib: pip install"):
        compare(gaussian(), "MALA", SHORT, jobs=2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else True)
    with pytest.raises(MissingExtra, match=r"backend='ray' needs ray: pip install ray"):
        compare(gaussian(), "MALA", SHORT, jobs=2, backend="ray")
    with pytest.raises(ValueError, match="backend is one of 'loky'"):
        compare(gaussian(), "MALA", SHORT, backend="threads")


RUNS = []


def noted(scale):
    def run(density, starts, budget, seed):
        RUNS.append((scale, budget.draws, seed))
        return drawn(density, starts, budget, seed, scale=scale)

    return run


def finished_runs_are_kept(folder):
    """Only what other settings, methods or seeds change is run again."""
    RUNS.clear()
    with patch.object(Comparison, "save"):
        _finished_runs_are_kept(folder)


def _finished_runs_are_kept(folder):
    first = compare(gaussian(), {"a": noted(1.0)}, SHORT, seeds=2, chains=4, out=folder)
    again = compare(gaussian(), {"a": noted(1.0)}, SHORT, seeds=3, chains=4, out=folder)
    assert [seed for _, _, seed in RUNS] == [0, 1, 2]
    assert again.to_json()["cells"][:2] == first.to_json()["cells"]
    compare(gaussian(), {"a": noted(0.5)}, SHORT, seeds=1, chains=4, out=folder)
    compare(gaussian(), {"a": noted(1.0)}, Budget(0, 41), seeds=1, chains=4, out=folder)
    assert RUNS[3:] == [(0.5, 40, 0), (1.0, 41, 0)]


def test_finished_runs_are_kept(tmp_path):
    finished_runs_are_kept(tmp_path)


def test_what_a_method_carries_tells_it_from_others():
    masses = [torch.ones(2), torch.tensor([1.0, 2.0])]
    assert fingerprint(Chains(MALA(step_size=0.1))) != fingerprint(Chains(MALA(step_size=0.2)))
    assert fingerprint(Chains(MALA(0.1, inverse_mass=masses[0]))) != fingerprint(
        Chains(MALA(0.1, inverse_mass=masses[1]))
    )
    assert fingerprint(Chains(MALA(0.1, inverse_mass=masses[0]))) == fingerprint(
        Chains(MALA(0.1, inverse_mass=masses[0].clone()))
    )
    assert fingerprint(drawn) != fingerprint(says_half)


def test_a_comparison_is_printed_plotted_saved_and_read_back(reference, tmp_path):
    folder = reference.save(tmp_path)
    back = Comparison.load(folder)
    assert back.to_json() == reference.to_json()
    assert str(back) == str(reference)
    assert Comparison.load(folder / "comparison.json").seeds == [3, 5]
    assert (folder / "gaussian.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "table.md").read_text() == reference.markdown()
    lines = (folder / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(KERNELS)
    assert lines[0].startswith("target,rank,method,status,gradients to b_avg²")
    assert len(reference.plot().axes) == 2
    assert "nan" not in json.dumps(reference.rows()[0]["ESS / 1000 gradients"])
    with pytest.raises(ValueError, match="not a comparison"):
        Comparison.from_json({"schema": 99})
    with pytest.raises(KeyError, match="no method"):
        reference.standing("nobody")
    with pytest.raises(ValueError, match="no target"):
        reference.plot("nowhere")


def test_failed_and_infinite_values_survive_a_file(tmp_path):
    found = compare(gaussian(), {"raises": raises, "drawn": drawn}, SHORT, seeds=1, chains=4)
    back = Comparison.load(found.save(tmp_path))
    assert back.to_json() == found.to_json()
    assert back.standing("raises").note == "ZeroDivisionError: out of order"
    assert back.budget == SHORT


def test_several_targets_have_a_table_each():
    found = compare([gaussian(), gaussian(4, "wider")], MALA(step_size=0.5), SHORT, seeds=1, chains=4)
    assert found.targets == ["gaussian", "wider"]
    assert found.standing("MALA(step_size=0.5)", "wider").rank == 1
    with pytest.raises(KeyError, match="say which target"):
        found.standing("MALA(step_size=0.5)")


# ------------------------------------------------------------------ methods, targets


@pytest.mark.parametrize("name", [n for n in METHODS if "Gibbs" not in n and "compiled" not in n])
def test_every_method_runs_and_is_counted(name):
    target = gaussian(4)
    run = run_counted(METHODS[name](), name, target, target.starts(8, 0), Budget(60, 12, 60), 0)
    assert run.error is None
    assert run.counted
    assert float(run.gradients.min()) > 0
    if name not in ("SMC", "NUTS", "tempering"):
        assert 20 <= float(run.gradients.sum(1)[0]) <= 200


def compiled_counts_are_held_to_eager_ones(extra=1):
    """With an engine that runs eagerly and says what it likes of what it compiled."""

    def engine(target, *, chains, sampler, **options):
        draw = sample(target, chains=chains, sampler=replace(sampler, compile=False), **options)
        if sampler.compile:
            draw.info.extra["compile"] = {"backend": "test", "seconds": 0.5}
            draw.info.evaluations -= extra
        return draw

    target = gaussian(4)
    with patch.object(methods, "sample", engine):
        run = run_counted(methods.Compiled(MALA()), "MALA", target, target.starts(4, 0), Budget(50, 30), 0)
    if extra:
        assert run.error is not None
        assert run.error.startswith("Miscounted: compiled transitions count 80 evaluations")
    else:
        assert run.error is None
        assert not run.counted
        assert run.seconds["compile"] == 0.5
        assert run.tuning_gradients >= 51


@pytest.mark.parametrize("extra", [0, 1])
def test_compiled_transitions_are_held_to_what_the_target_counts_in_eager_ones(extra):
    compiled_counts_are_held_to_eager_ones(extra)


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_a_row():
    @dataclass(frozen=True)
    class Talking(MALA):
        def step(self, target, state, tune, noise):
            float(state.x.sum())  # leaves every graph
            return super().step(target, state, tune, noise)

    target = gaussian(4)
    run = run_counted(methods.Compiled(Talking(0.1)), "t", target, target.starts(4, 0), Budget(0, 30), 0)
    assert run.error is not None


def test_discrete_methods_run_and_are_counted():
    def log_prob(x):
        return 0.8 * x[:, 0] - 0.5 * x[:, 1] * x[:, 0]

    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2)).double()
    weight = log_prob(grid).softmax(0)
    mean = weight @ grid
    target = Density(
        "bits", 2, log_prob, None, mean, mean * (1 - mean), mean, mean * (1 - mean), support="integers(2)"
    )  # fmt: skip
    found = compare(target, ["Gibbs", "Gibbs with gradients"], Budget(0, 500), seeds=2, chains=8)
    for s in found.standings["bits"]:
        assert s.status == "ok", s.note


def test_smc_is_a_cloud_with_weights():
    target = gaussian()
    run = Particles()(target, target.starts(8, 0), Budget(0, 100), 0)
    assert tuple(run.draws.shape) == (1, 800, 2)
    assert run.log_z == pytest.approx(target.log_z, abs=0.2)
    found = compare(target, {"SMC": SMC(resample=False), "MALA": "MALA"}, Budget(100, 100), seeds=2, chains=8)
    assert found.standing("SMC").status == "ok"
    assert found.standing("SMC").numbers["log_z_error"] < 0.2


def test_terms_that_can_be_drawn_are_targets():
    found = compare(Gaussian(torch.zeros(2), torch.tensor([1.0, 4.0])), "MALA", Budget(200, 500), seeds=2, chains=8)
    (s,) = found.standings["Gaussian"]
    assert s.status == "ok"


def moments_of_a_term_are_estimated_from_exact_draws():
    """A mixture in one dimension: moments up to the fourth, within four standard errors of 2¹⁸ draws."""
    target = known(GaussianMixture([[-1.0], [2.0]], 0.25, [0.5, 0.5]), name="pair")
    second, fourth = 2.5 + 0.25, 8.5 + 6 * 0.25 * 2.5 + 3 * 0.25**2
    for found, truth in zip(
        (target.mean, target.variance, target.square_mean, target.square_variance),
        (0.5, second - 0.25, second, fourth - second**2),
        strict=True,
    ):
        assert float(found) == pytest.approx(truth, rel=0.02)
    assert target.accuracy == pytest.approx(16 / 2**18)


def test_moments_of_a_term_are_estimated_from_exact_draws():
    moments_of_a_term_are_estimated_from_exact_draws()


def test_moments_of_a_term_may_be_given():
    p = term(lambda x: -0.5 * (x * x).sum(1), kind="log_prob", event_shape=(2,), name="normal")
    one = torch.ones(2)
    target = known(p, mean=0 * one, variance=one, square_mean=one, square_variance=2 * one, log_z=1.8379)
    assert (target.accuracy, target.truth, target.log_z) == (0.0, "exact", 1.8379)
    with pytest.raises(ValueError, match="moments of normal are not known: give mean"):
        known(p, mean=one)
    with pytest.raises(ValueError, match=r"square_mean of normal is finite and of shape \(2,\)"):
        known(p, mean=one, variance=one, square_mean=torch.ones(3), square_variance=one)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "budget is Budget", {"budget": 100}),
        (ValueError, "chains is a positive int", {"chains": 0}),
        (ValueError, "jobs is a positive int", {"jobs": 0}),
        (ValueError, "no method is called 'nuts'", {"kernels": "nuts"}),
        (TypeError, "a method is a name", {"kernels": [MALA]}),
        (ValueError, "two methods are called 'MALA'", {"kernels": ["MALA", MALA()]}),
        (ValueError, "no peer is called", {"peers": ["Stan"]}),
        (ValueError, "are among the kernels and among the peers", {"peers": {"MALA": drawn}}),
        (ValueError, "no density is called", {"target": "nowhere"}),
        (TypeError, "a target is a name", {"target": [3]}),
        (ValueError, "two targets are called", {"target": [gaussian(), gaussian()]}),
        (ValueError, "there is no target", {"target": []}),
        (ValueError, "seeds is a positive int", {"seeds": 0}),
        (ValueError, "has no mean to compare with", {"target": replace(gaussian(), mean=torch.full((2,), math.nan))}),
        (ValueError, "has no variance", {"target": replace(gaussian(), variance=torch.zeros(2))}),
        (ValueError, "the accuracy of", {"target": replace(gaussian(), accuracy=math.nan)}),
    ],
)
def test_wrong_calls(error, message, change):
    given = {"target": gaussian(), "kernels": ["MALA"], "budget": SHORT, "seeds": 1, "chains": 4} | change
    with pytest.raises(error, match=message):
        compare(**given)


@pytest.mark.parametrize(("name", "value"), [("warmup", -1), ("draws", 0), ("gradients", 0), ("draws", 2.5)])
def test_budgets_that_buy_nothing(name, value):
    with pytest.raises(ValueError, match=f"Budget's {name} is an int"):
        Budget(**({"warmup": 0, "draws": 1} | {name: value}))


def test_budgets_in_gradients():
    assert Budget(0, 100).transitions(7) == 100
    assert Budget(0, 100, 700).transitions(7) == 100
    assert Budget(0, 100, 7000).transitions(7) == 1000


def test_labels_say_what_was_set():
    assert label_of(HMC(num_leapfrog=20)) == "HMC(num_leapfrog=20)"
    assert label_of(drawn) == "drawn"
    assert label_of(Chains(MALA())) == "Chains"
    assert STATUSES[0] == "ok"
    assert method(drawn) is drawn
