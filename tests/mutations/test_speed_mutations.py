"""Errors that the speed suite can have, planted one by one: a law notices each."""

import pytest

from tests.benchmarks import test_speed as laws
from tests.mutations.harness import Mutation, verify

SPEED = "boltzmix.benchmarks.speed"
FITS, TIMING, FLOORS, SCALING = f"{SPEED}.fits", f"{SPEED}.timing", f"{SPEED}.floors", f"{SPEED}.scaling"
JOBS, THROUGHPUT, NUTS = f"{SPEED}.jobs", f"{SPEED}.throughput", f"{SPEED}.nuts"

FIGURES = [
    Mutation(
        "slopes over all sizes",
        FITS,
        "if s >= middle * (1 - 1e-9)",
        "if s >= 0",
        laws.slopes_are_recovered_and_small_sizes_left_out,
    ),
    Mutation(
        "the middle of sizes, not of their logarithms",
        FITS,
        "math.sqrt(min(sizes) * max(sizes))",
        "(min(sizes) + max(sizes)) / 20 * 3.5",
        laws.slopes_are_recovered_and_small_sizes_left_out,
    ),
    Mutation(
        "slopes of costs, not of their logarithms",
        FITS,
        "(math.log(s), math.log(c))",
        "(math.log(s), c)",
        laws.slopes_are_recovered_and_small_sizes_left_out,
    ),
    Mutation(
        "scatter over n",
        FITS,
        "scatter / (n - 2) / spread",
        "scatter / n / spread",
        laws.errors_of_slopes_are_their_scatter,
    ),
    Mutation(
        "the scatter for the slope's error",
        FITS,
        "scatter / (n - 2) / spread",
        "scatter / (n - 2)",
        laws.errors_of_slopes_are_their_scatter,
    ),
    Mutation(
        "a line through the origin",
        FITS,
        "(x - centre) * (y - level) for x",
        "x * y for x",
        laws.slopes_are_recovered_and_small_sizes_left_out,
    ),
    Mutation(
        "the same side first in every round",
        TIMING,
        "order if k % 2 == 0 else order[::-1]",
        "order",
        laws.every_name_stands_before_every_other_equally_often,
    ),
    Mutation(
        "the same names first in every round",
        TIMING,
        "(k // 2) % len(names)",
        "0",
        laws.every_name_stands_before_every_other_equally_often,
    ),
    Mutation(
        "ratio of sums",
        TIMING,
        "return statistics.median(within)",
        "return sum(above) / sum(below)",
        laws.ratios_are_those_within_rounds,
    ),
    Mutation(
        "ratio of medians",
        TIMING,
        "return statistics.median(within)",
        "return statistics.median(above) / statistics.median(below)",
        laws.ratios_are_those_within_rounds,
    ),
    Mutation("the ratio upside down", TIMING, "a / b for a, b", "b / a for a, b", laws.ratios_are_those_within_rounds),
    Mutation(
        "the time of many calls for that of one",
        TIMING,
        "(now() - clock) / count",
        "now() - clock",
        laws.times_are_those_of_one_call,
    ),
    Mutation(
        "a triad that moves two arrays", FLOORS, "3 * size", "2 * size", laws.bytes_and_operations_are_those_of_the_work
    ),
    Mutation(
        "a copy that moves one array",
        FLOORS,
        "a.copy_(b), 2 * size",
        "a.copy_(b), size",
        laws.bytes_and_operations_are_those_of_the_work,
    ),
    Mutation(
        "multiplications without additions",
        FLOORS,
        "2 * n * k * m",
        "n * k * m",
        laws.bytes_and_operations_are_those_of_the_work,
    ),
    Mutation(
        "bandwidth times the time",
        FLOORS,
        "moved[name] / statistics.median(seconds)",
        "moved[name] * statistics.median(seconds) * 2",
        laws.bandwidths_divide_by_the_time,
    ),
    Mutation(
        "one evaluation in a block",
        SCALING,
        "statistics.median(spent) / each",
        "statistics.median(spent)",
        laws.shares_and_exponents_of_a_sweep,
    ),
    Mutation(
        "the share upside down",
        SCALING,
        "each * f / s for f, s",
        "s / f for f, s",
        laws.shares_and_exponents_of_a_sweep,
    ),
    Mutation(
        "evaluations of one chain",
        SCALING,
        "rate = rows[largest] / per[largest]",
        "rate = 1 / per[largest]",
        laws.shares_and_exponents_of_a_sweep,
    ),
]
RATES = [
    Mutation(
        "leapfrogs of one chain",
        JOBS,
        "self.steps * self.chains * (LEAPFROGS",
        "self.steps * (LEAPFROGS",
        laws.gradients_of_a_job_are_those_that_the_target_sees,
    ),
    Mutation(
        "compiling moves the chains",
        JOBS,
        "            block(self.state, self.tune, noise, REPORTED)",
        "            self.state, _ = block(self.state, self.tune, noise, REPORTED)",
        laws.compiled_jobs_start_where_eager_ones_do,
    ),
    Mutation(
        "the last block of a run is left out",
        JOBS,
        "while done < self.work.steps:",
        "while done + self.length <= self.work.steps:",
        laws.compiled_jobs_start_where_eager_ones_do,
    ),
    Mutation(
        "one gradient a microcanonical step",
        JOBS,
        'self.algorithm == "hmc" else 2)',
        'self.algorithm == "hmc" else 1)',
        laws.gradients_of_a_job_are_those_that_the_target_sees,
    ),
    Mutation(
        "squares of means", JOBS, "(x * x).mean(0)", "x.mean(0) ** 2", laws.discrepancies_are_those_of_symmetric_sums
    ),
    Mutation(
        "means alone are compared",
        JOBS,
        "worst = max(worst, float(",
        "worst = worst or max(worst, float(",
        laws.discrepancies_are_those_of_symmetric_sums,
    ),
    Mutation(
        "sums that cancel",
        JOBS,
        "d.sum(0).abs() / norm",
        "d.sum(0).abs() / d.abs().sum(0)",
        laws.discrepancies_are_those_of_symmetric_sums,
    ),
    Mutation(
        "NaN is no discrepancy", JOBS, 'return float("inf")', "continue", laws.discrepancies_are_those_of_symmetric_sums
    ),
    Mutation(
        "the peer's rate over ours",
        THROUGHPUT,
        "ratio(self.rates[tier], self.rates[PEER])",
        "ratio(self.rates[PEER], self.rates[tier])",
        laws.ratios_of_rates_are_ours_over_the_peers,
    ),
    Mutation(
        "seconds for a rate",
        THROUGHPUT,
        "works[tier].gradients / seconds",
        "seconds / works[tier].gradients",
        laws.ratios_of_rates_are_ours_over_the_peers,
    ),
    Mutation(
        "fewer eager transitions, counted in full",
        THROUGHPUT,
        "cell.rates.setdefault(tier, []).append(works[tier].gradients",
        "cell.rates.setdefault(tier, []).append(works[PEER].gradients",
        laws.ratios_of_rates_are_ours_over_the_peers,
    ),
    Mutation(
        "a floor of 4 chains for all targets",
        THROUGHPUT,
        "AT_4 if dim >= LARGE else None",
        "AT_4",
        laws.goals_are_the_issues,
    ),
    Mutation("no floor at many chains", THROUGHPUT, "if chains >= 256", "if chains > 256", laws.goals_are_the_issues),
    Mutation(
        "all numbers of chains in one tally",
        THROUGHPUT,
        "if chains == 256",
        "if chains <= 256 and name not in 'ab'",
        laws.goals_are_the_issues,
    ),
    Mutation(
        "another law passes", THROUGHPUT, 'cell.apart, "≤", SAME', 'cell.apart, "≤", 100.0', laws.another_law_is_noticed
    ),
    Mutation(
        "tuning in the seconds of sampling",
        NUTS,
        'found["ess"] / found["sampling"]',
        'found["ess"] / (found["sampling"] + found["tuning"])',
        laws.effective_draws_for_each_second_of_sampling,
    ),
    Mutation(
        "one peer is enough to beat",
        NUTS,
        "good = good and value > 1.0",
        "good = value < 1.3 or value > 1.4",
        laws.effective_draws_for_each_second_of_sampling,
    ),
    Mutation(
        "chains that disagree count",
        NUTS,
        'if found["rhat"] <= _CONVERGED else math.nan',
        "if True else math.nan",
        laws.chains_that_disagree_have_no_effective_draws,
    ),
    Mutation(
        "an R-hat that is not a number is none",
        NUTS,
        'found["rhat"] <= _CONVERGED',
        'not found["rhat"] > _CONVERGED',
        laws.chains_that_disagree_have_no_effective_draws,
    ),
]


@pytest.mark.parametrize("mutation", [*FIGURES, *RATES], ids=lambda m: m.name)
def test_it_is_noticed(mutation):
    verify(mutation)
