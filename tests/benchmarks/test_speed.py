"""The speed suite: fits, ratios, floors, and what its sections say; no test depends on how fast a machine is.

Clocks and the processes of the two sides are stand-ins, unless the test says otherwise. Statistical checks have fixed
seeds and state their false-positive rate.
"""

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from boltzmix import benchmarks
from boltzmix.benchmarks.densities import density
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import composites, floors, jobs, memory, nuts, scaling, throughput, timing
from boltzmix.benchmarks.speed.fits import growth
from boltzmix.benchmarks.speed.jobs import Moments, Work, discrepancy
from boltzmix.benchmarks.speed.sides import Here, Side, SideFailed
from boltzmix.benchmarks.speed.timing import in_turns, paired, ratio, turns
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import draw_noise

QUICK = Settings(quick=True, seeds=(0, 1))


class Clock:
    """CPU seconds that pass only where somebody says so, and ``each`` at every look."""

    def __init__(self, each=0.0):
        self.seconds, self.each = 100.0, each

    def __call__(self):
        self.seconds += self.each
        return self.seconds

    def takes(self, seconds):
        """A job of so many seconds, or of what a function says."""

        def job():
            self.seconds += seconds() if callable(seconds) else seconds

        return job


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless jobs move it."""
    clock = Clock()
    monkeypatch.setattr(timing, "now", clock)
    return clock


def rows(report, words):
    return [row for row in report.rows if words in row.quantity or words in row.task]


# ------------------------------------------------------------------------- fits


def slopes_are_recovered_and_small_sizes_left_out():
    """Cost 3 s^1.7 from size 10 on, and that of a call below."""
    sizes = [1, 2, 3, 5, 10, 20, 50, 100]
    found = growth(sizes, [3 * max(s, 10) ** 1.7 for s in sizes])
    assert found.exponent == pytest.approx(1.7)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.points == 4


def errors_of_slopes_are_their_scatter():
    """Over 2,000 fits of noisy costs the mean squared error of the slope is the mean of its squared standard error.

    Both means have relative errors of about 3 % and 2 %, so that 18 % is five of their difference's: false alarms
    below 1e-6.
    """
    sizes = [1.0, *(10.0 * 1.5**k for k in range(6))]
    generator = torch.Generator().manual_seed(0)
    squared, said = 0.0, 0.0
    for noise in torch.randn(2000, len(sizes), generator=generator, dtype=torch.float64):
        found = growth(sizes, [s**0.8 * math.exp(0.1 * e) for s, e in zip(sizes, noise.tolist(), strict=True)])
        squared += (found.exponent - 0.8) ** 2
        said += found.error**2
    assert said / squared == pytest.approx(1.0, rel=0.18)


def test_slopes_are_recovered_and_small_sizes_left_out():
    slopes_are_recovered_and_small_sizes_left_out()


def test_errors_of_slopes_are_their_scatter():
    errors_of_slopes_are_their_scatter()


@pytest.mark.parametrize(
    ("sizes", "costs", "words"),
    [
        ([1, 2, 4], [1.0, 2.0], "one cost for each"),
        ([1, 2, 4], [1.0, 2.0, 4.0], "three sizes in the upper half"),
        ([1, 2, 4, 8, 16], [1.0, 2.0, 4.0, 0.0, 1.0], "costs of a fit"),
        ([1, 2, -4, 8, 16], [1.0, 2.0, 4.0, 1.0, 1.0], "sizes of a fit"),
        ([1, 2, 4, 8, math.inf], [1.0, 2.0, 4.0, 1.0, 1.0], "sizes of a fit"),
        ([], [], "three sizes"),
    ],
)
def test_fits_of_too_little_are_refused(sizes, costs, words):
    with pytest.raises(ValueError, match=words):
        growth(sizes, costs)


# ----------------------------------------------------------------------- timing


def every_name_stands_before_every_other_equally_often():
    for names, rounds in ((["a", "b"], 6), (["a", "b", "c", "d"], 8)):
        orders = turns(names, rounds)
        assert all(sorted(order) == names for order in orders)
        for one, other in itertools.permutations(names, 2):
            assert sum(order.index(one) < order.index(other) for order in orders) == rounds / 2
        firsts = [order[0] for order in orders]
        assert {firsts.count(name) for name in names} == {rounds // len(names)}


def ratios_are_those_within_rounds():
    """A machine that slows down changes both sides of a round, and not their ratio."""
    drift = [1.0, 1.0, 5.0, 20.0, 20.0]
    value, low, high = ratio([3 * d for d in drift], [2 * d for d in drift])
    assert (value, low, high) == pytest.approx((1.5, 1.5, 1.5))
    value, low, high = ratio([2.0, 3.0, 40.0, 50.0, 6.0], [1.0, 1.0, 10.0, 10.0, 1.0])
    assert value == 4.0
    assert 2.0 <= low < value < high <= 6.0


def test_every_name_stands_before_every_other_equally_often():
    every_name_stands_before_every_other_equally_often()


def test_ratios_are_those_within_rounds():
    ratios_are_those_within_rounds()


def test_ratios_of_different_rounds_are_refused():
    for above, below in (([1.0, 2.0], [1.0]), ([1.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="two rounds or more"):
            ratio(above, below)


def times_are_those_of_one_call():
    """With a clock that jobs move: 3 ms and 50 ms a call, each called as often as it takes to see them."""
    clock, before = Clock(), timing.now
    timing.now = clock
    try:
        found = in_turns({"short": clock.takes(0.003), "long": clock.takes(0.05)}, 4, least=0.02)
    finally:
        timing.now = before
    assert found["short"] == pytest.approx([0.003] * 4)
    assert found["long"] == pytest.approx([0.05] * 4)


def test_times_are_those_of_one_call():
    times_are_those_of_one_call()


def test_jobs_of_no_time_end(clock):
    assert in_turns({"nothing": clock.takes(0.0)}, 2) == {"nothing": [0.0, 0.0]}


def test_pairs_take_turns_and_keep_their_sides(clock):
    said = []
    first, second = clock.takes(2.0), clock.takes(1.0)
    found = paired(lambda: (said.append("a"), first()), lambda: (said.append("b"), second()), 4)
    assert found == [(2.0, 1.0)] * 4
    assert "".join(said) == "ab" + "ab" + "ba" + "ab" + "ba"


# ----------------------------------------------------------------------- floors


def bytes_and_operations_are_those_of_the_work():
    add, moved = floors.triad(4000)
    assert moved == 3 * 4000
    assert torch.equal(add(), torch.full((1000,), 4.0))
    take, moved = floors.copy(4000)
    assert moved == 2 * 4000
    assert torch.equal(take(), torch.ones(1000))
    shapes = [(3, 4, 5), (7, 5, 2)]
    assert floors.operations(shapes) == 2 * (60 + 70)


def test_bytes_and_operations_are_those_of_the_work():
    bytes_and_operations_are_those_of_the_work()


def test_operations_are_those_that_torch_counts():
    shapes = [(3, 4, 5), (7, 5, 2)]
    assert scaling.operations(floors.products(shapes)) == floors.operations(shapes)


def bandwidths_divide_by_the_time():
    """With a clock of one second a look, a call takes a second however large its arrays are."""
    before, timing.now = timing.now, Clock(each=1.0)
    try:
        found = floors.bandwidths(2, in_memory=1 << 20)
        rate = floors.matrix_rate(16, 2)
    finally:
        timing.now = before
    assert found == {
        "copy in cache": 2 * floors.IN_CACHE, "triad in cache": 3 * floors.IN_CACHE,
        "copy in memory": 2 << 20, "triad in memory": 3 << 20,
    }  # fmt: skip
    assert rate == 2 * 16**3


def test_bandwidths_divide_by_the_time():
    bandwidths_divide_by_the_time()


def test_floors_of_this_machine_are_positive():
    assert all(0 < rate < math.inf for rate in floors.bandwidths(2, in_memory=1 << 20).values())
    assert 0 < floors.matrix_rate(32, 2) < math.inf


# ---------------------------------------------------------------------- scaling


def shares_and_exponents_of_a_sweep():
    """Ours costs 2 µs a row, the floor 0.5 µs, and compiled calls hold ten evaluations of 1 µs a row."""
    clock, before = Clock(), timing.now
    timing.now = clock
    try:
        report = Report("speed", "test")
        cases = [
            scaling.Case(
                n, n, {"eager": clock.takes(2e-6 * n), "compiled": clock.takes(1e-5 * n)}, clock.takes(5e-7 * n),
                each={"compiled": 10},
            )
            for n in (1000, 2000, 4000, 8000, 16000, 32000)
        ]  # fmt: skip
        scaling.sweep(report, QUICK, "chains", "task", cases, "a copy")
    finally:
        timing.now = before
    exponents = [row.value for row in rows(report, "exponent of cost")]
    assert exponents == pytest.approx([1.0, 1.0, 1.0])
    eager, compiled, floor = rows(report, "evaluations per CPU second")
    assert (eager.value, compiled.value, floor.value) == pytest.approx((5e5, 1e6, 2e6))
    assert eager.note.startswith("0.25 of the floor's")
    assert compiled.note.startswith("0.5 of the floor's")


def test_shares_and_exponents_of_a_sweep():
    shares_and_exponents_of_a_sweep()


@pytest.mark.parametrize("section", [scaling.floors, scaling.chains, scaling.dimension, scaling.conditions,
                                     scaling.networks, composites.section])  # fmt: skip
def test_sections_run_and_say_what_cannot_be_compiled(section, monkeypatch):
    """With a clock that passes a second at every look, so that nothing is repeated."""
    monkeypatch.setattr(timing, "now", Clock(each=1.0))

    def refuse(*args):
        raise CompileError("nothing is compiled here")

    monkeypatch.setattr(scaling, "compiled", refuse)
    monkeypatch.setattr(composites, "compiled", refuse)
    report = Report("speed", "test", section="test")
    section(report, QUICK)
    assert report.rows
    assert not report.missed
    skipped = [row for row in report.rows if row.quantity == "SKIPPED"]
    assert all("compiled" in row.task for row in skipped)
    assert bool(skipped) == (section not in (scaling.floors, scaling.networks))
    assert all(row.value > 0 or math.isnan(row.value) or "exponent" in row.quantity for row in report.rows)
    json.dumps(report.as_json())


def test_pictures_are_drawn(tmp_path, clock):
    pytest.importorskip("matplotlib")
    report = Report("speed", "test")
    report.about = {"command": "", "versions": {}, "seeds": [0], "threads": 1, "seconds": 0.0, "quick": True}
    sweep = [scaling.Case(n, n, {"eager": clock.takes(1e-3 * n)}, clock.takes(1e-4)) for n in (1, 2, 4, 8, 16, 32)]
    scaling.sweep(report, QUICK, "chains", "task", sweep, "a copy")
    compared(report, "hmc", Stub({"auto": 2.0, "inductor": 1.0, "eager": 1.0}), Stub({"BlackJAX": 1.0}))
    report.write(tmp_path)
    assert {f.name for f in tmp_path.glob("*.png")} == {"scaling-chains.png", "throughput-hmc.png"}


# ------------------------------------------------------------------- throughput


class Stub:
    """A side with given rates, in gradients a second; a rate that is an error is raised.

    Its chains' moments are those of draws around ``shift``.
    """

    def __init__(self, rates, shift=0.0):
        self.rates, self.shift, self.works, self.count = rates, shift, {}, 0

    def __call__(self, do, **request):
        tier = request["tier"]
        if isinstance(self.rates[tier], Exception):
            raise self.rates[tier]
        if do == "prepare":
            request.pop("clear")
            self.works[tier] = Work(**request)
            return {"compile": 1.5, "backend": tier if tier != "auto" else "native"}
        work = self.works[tier]
        if request.get("save"):
            dim = throughput.targets.target(work.target)[0].dim
            generator = torch.Generator().manual_seed(len(tier))
            x = self.shift + torch.randn(2, work.chains, dim, generator=generator)
            torch.save(tuple(jobs.moments(x)), request["save"])
        self.count += 1
        return {"seconds": work.gradients / self.rates[tier]}

    def close(self):
        """Nothing to end."""

    __enter__, __exit__ = Side.__enter__, Side.__exit__


def compared(report, algorithm, ours, theirs, settings=QUICK):
    sides = iter([ours, theirs])
    throughput.compare(report, settings, algorithm, open_side=lambda: next(sides))
    return report


def ratios_of_rates_are_ours_over_the_peers():
    report = compared(
        Report("speed", "t"), "hmc", Stub({"auto": 3e6, "inductor": 4e6, "eager": 1e5}), Stub({"BlackJAX": 2e6})
    )
    judged = rows(report, "rate over BlackJAX's, auto")
    assert [row.value for row in judged] == pytest.approx([1.5] * len(judged))
    assert {(row.task.rsplit(", ", 1)[1], row.target) for row in judged} == {
        ("4 chains", "≥ 2.5"), ("256 chains", "≥ 1"), ("4 chains", "")
    }  # fmt: skip
    eager = rows(report, "rate over BlackJAX's, eager")
    assert [row.value for row in eager] == pytest.approx([0.05] * len(eager))
    (most,) = rows(report, "targets of")
    assert (most.value, most.holds) == (0.0, False)


def goals_are_the_issues():
    assert [throughput.goal(c, d) for c, d in ((4, 2), (4, 24), (4, 25), (4, 100), (256, 2), (4096, 100))] == [
        None, None, 2.5, 2.5, 1.0, 1.0
    ]  # fmt: skip
    cells = {}
    for k, name in enumerate("abcdef"):
        cells[name, 256] = throughput.Cell(2, rates={"auto": [2.0 if k else 1.7] * 2, "BlackJAX": [1.0] * 2})
        cells[name, 4] = throughput.Cell(2, rates={"auto": [0.1] * 2, "BlackJAX": [1.0] * 2})
    report = Report("speed", "t")
    throughput.tally(report, "HMC", cells)
    cells["b", 256] = throughput.Cell(2, failed={"BlackJAX": SideFailed("RuntimeError", "")})
    throughput.tally(report, "HMC", cells)
    assert [(row.value, row.target, row.holds) for row in report.rows] == [(5.0, "≥ 5", True), (4.0, "≥ 5", False)]


def test_ratios_of_rates_are_ours_over_the_peers():
    ratios_of_rates_are_ours_over_the_peers()


def test_goals_are_the_issues():
    goals_are_the_issues()


def test_a_missing_peer_is_skipped_and_said():
    ours = Stub({"auto": 1e6, "inductor": 1e6, "eager": 1e5})
    report = compared(Report("speed", "t"), "hmc", ours, Stub({"BlackJAX": SideFailed("MissingExtra", "pip install")}))
    skipped = [row for row in report.rows if row.quantity == "SKIPPED"]
    assert len(skipped) == 6 + 1
    assert all("pip install" in row.note for row in skipped[:-1])
    assert not report.missed
    assert len(rows(report, "gradients per CPU second, auto")) == 6


def test_failures_are_rows():
    broken = SideFailed("RuntimeError", "out of order")
    ours, theirs = Stub({"auto": broken, "inductor": broken, "eager": 1e5}), Stub({"BlackJAX": 1e6})
    report = compared(Report("speed", "t"), "mclmc", ours, theirs)
    assert {row.quantity for row in report.missed} == {"auto ran", "targets of 3 with 1.8 times BlackJAX's rate"}
    assert all("out of order" in row.note for row in rows(report, "auto ran"))
    report = compared(Report("speed", "t"), "hmc", Stub({"auto": 1e6, "eager": 1e5}), Stub({"BlackJAX": broken}))
    assert {row.quantity for row in report.missed} == {"BlackJAX ran"}


def another_law_is_noticed():
    """Chains of 256 moved by half a standard deviation, which a rate alone would not tell."""
    rates = {"auto": 3e6, "inductor": 4e6, "eager": 1e5}
    for shift, holds in ((0.0, True), (0.5, False)):
        report = compared(Report("speed", "t"), "hmc", Stub(rates, shift), Stub({"BlackJAX": 2e6}))
        judged = [row for row in rows(report, "moments of chains") if row.holds is not None]
        assert len(judged) == 3
        assert all(row.holds is holds for row in judged)


def test_another_law_is_noticed():
    another_law_is_noticed()


def discrepancies_are_those_of_symmetric_sums():
    """Of one law: figures above 4.5 have probability 2 exp(−10.1) = 8·10⁻⁵ each; of 40, 0.4 % at most, with a fixed
    seed. One that is always on one side reaches √N.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 300, 20, generator=generator) for _ in range(2))
    one, other = jobs.moments(a), jobs.moments(b)
    assert tuple(one.mean.shape) == (300, 20)
    assert torch.allclose(one.square, (a.double() ** 2).mean(0))
    assert 0.5 < discrepancy(one, other) < 4.5
    assert discrepancy(one, Moments(one.mean + 1.0, one.square)) == pytest.approx(math.sqrt(300))
    assert discrepancy(one, Moments(one.mean, one.square - 1.0)) == pytest.approx(math.sqrt(300))
    assert discrepancy(one, Moments(other.mean, one.square - 1.0)) == pytest.approx(math.sqrt(300))
    assert discrepancy(one, one) == 0.0
    assert discrepancy(one, Moments(one.mean, one.square * math.nan)) == math.inf


def test_discrepancies_are_those_of_symmetric_sums():
    discrepancies_are_those_of_symmetric_sums()


def gradients_of_a_job_are_those_that_the_target_sees():
    for algorithm in ("hmc", "mclmc"):
        work = Work(algorithm, "banana", chains=6, steps=5, tier="eager")
        job = jobs.prepare(work)
        assert isinstance(job, jobs.Ours)
        before = job.target.view.counter.rows
        _, found = job.run()
        assert job.target.view.counter.rows - before == work.gradients
        assert tuple(job.positions(found).shape) == (5, 6, 2)


def test_gradients_of_a_job_are_those_that_the_target_sees():
    gradients_of_a_job_are_those_that_the_target_sees()


def compiled_jobs_start_where_eager_ones_do():
    """Compiling calls the block once, and that leaves chains where they are; every transition is in a run."""
    works = [Work("hmc", "banana", chains=6, steps=130, tier=tier) for tier in ("eager", "native")]
    before, jobs.compiled = jobs.compiled, lambda kernel, target, state, tune, tier: Drift()
    try:
        eager, drifting = map(jobs.prepare, works)
    finally:
        jobs.compiled = before
    assert torch.equal(eager.state.x, drifting.state.x)
    x = drifting.positions(drifting.run()[1])
    assert len(x) == 130
    assert torch.allclose(x - eager.state.x, torch.arange(1.0, 131.0)[:, None, None].expand_as(x), atol=1e-4)


class Drift:
    """A block whose transitions add 1."""

    def noise(self, state, generator, steps):
        return draw_noise(state.x, generator, steps)

    def __call__(self, state, tune, noise, reported):
        steps = torch.arange(1.0, len(noise.uniform) + 1)[:, None, None]
        return replace(state, x=state.x + len(noise.uniform)), SimpleNamespace(x=state.x + steps)


def test_compiled_jobs_start_where_eager_ones_do():
    compiled_jobs_start_where_eager_ones_do()


def test_settings_of_microcanonical_particles_go_as_far_in_a_step():
    work = Work("mclmc", "standard", 4, 10, "eager")
    assert work.settings(100, 0.25) == {"step_size": 2.5, "length": 25.0}
    assert Work("hmc", "standard", 4, 10, "eager").settings(100, 0.25) == {"step_size": 0.25}


@pytest.mark.parametrize("wrong", [{"algorithm": "nuts"}, {"chains": 0}, {"steps": 0}])
def test_wrong_jobs_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Work(**{"algorithm": "hmc", "target": "banana", "chains": 4, "steps": 10, "tier": "eager", **wrong})


def test_unknown_targets_and_tiers_are_refused():
    with pytest.raises(ValueError, match="there are standard"):
        jobs.prepare(Work("hmc", "bananas", 4, 10, "eager"))
    with pytest.raises(ValueError, match="a tier is"):
        jobs.prepare(Work("hmc", "banana", 4, 10, "fast"))


def test_a_peers_job_keeps_every_position():
    pytest.importorskip("blackjax")
    job = jobs.prepare(Work("hmc", "banana", 4, 5, "BlackJAX"))
    _, first = job.run()
    _, second = job.run()
    x, y = job.positions(first), job.positions(second)
    assert tuple(x.shape) == (5, 4, 2)
    assert not torch.equal(x[-1], y[-1])
    assert job.compile_seconds > 0


# ------------------------------------------------------------------------ sides


def test_sides_are_processes_that_answer_and_whose_errors_come_back():
    """A real process: an answer, an error of its own, a run of a job, and its death."""
    with Side() as side:
        assert side("ping", number=3) == {"number": 3}
        work = vars(Work("hmc", "banana", 3, 4, "eager"))
        assert side("prepare", clear=True, **work) == {"compile": 0.0}
        assert side("run", tier="eager")["seconds"] >= 0.0
        with pytest.raises(SideFailed, match="no target of the throughput"):
            side("prepare", clear=True, **{**work, "target": "nothing"})
        side.process.kill()
        with pytest.raises(SideFailed, match="ended with exit code"):
            side("ping")


def test_commands_run_here_too():
    with Here() as side:
        assert side("ping", number=3) == {"number": 3}
        with pytest.raises(SideFailed, match="^KeyError") as caught:
            side("nothing")
        assert caught.value.kind == "KeyError"


# ------------------------------------------------------------------------- NUTS


class Runs:
    """A side whose runs have given figures."""

    def __init__(self, **numbers):
        self.numbers = {"ess": 100.0, "rhat": 1.0, "worst": 1.0, "gradients": 1e4, "divergences": 0, "compile": 1.0,
                        "tuning": 9.0, "sampling": 1.0, "backend": "native"} | numbers  # fmt: skip
        self.error = numbers.get("error")

    def __call__(self, do, **request):
        if self.error is not None:
            raise self.error
        return dict(self.numbers)

    def close(self):
        """Nothing to end."""

    __enter__, __exit__ = Side.__enter__, Side.__exit__


def nuts_report(ours, blackjax, numpyro):
    sides, report = iter([ours, blackjax, numpyro]), Report("speed", "t")
    nuts.section(report, QUICK, open_side=lambda: next(sides))
    return report


def effective_draws_for_each_second_of_sampling():
    report = nuts_report(Runs(ess=600.0, sampling=2.0), Runs(ess=200.0), Runs(ess=500.0, sampling=2.0))
    assert [row.value for row in rows(report, "over BlackJAX's")] == pytest.approx([1.5, 1.5])
    assert [row.value for row in rows(report, "over NumPyro's")] == pytest.approx([1.2, 1.2])
    (most,) = rows(report, "above every peer")
    assert (most.value, most.holds) == (2.0, True)
    report = nuts_report(Runs(ess=600.0, sampling=2.0), Runs(ess=200.0), Runs(ess=301.0))
    assert [row.value for row in rows(report, "above every peer")] == [0.0]


def chains_that_disagree_have_no_effective_draws():
    report = nuts_report(Runs(rhat=1.2, ess=1e6), Runs(), Runs())
    assert [row.value for row in rows(report, "above every peer")] == [0.0]
    assert not rows(report, "median over seeds, boltzmix")
    report = nuts_report(Runs(), Runs(ess=50.0), Runs(rhat=math.nan, ess=1e6))
    assert [row.value for row in rows(report, "above every peer")] == [2.0]
    assert len([row for row in report.rows if row.quantity == "SKIPPED" and "NumPyro" in row.task]) == 2


def test_effective_draws_for_each_second_of_sampling():
    effective_draws_for_each_second_of_sampling()


def test_chains_that_disagree_have_no_effective_draws():
    chains_that_disagree_have_no_effective_draws()


def test_peers_of_nuts_that_are_missing_or_fail_are_rows():
    missing = SideFailed("MissingExtra", 'pip install "boltzmix[peers]"')
    report = nuts_report(Runs(), Runs(error=missing), Runs(error=missing))
    assert not report.missed
    assert len([row for row in report.rows if row.quantity == "SKIPPED"]) == 2 * 2 + 1
    report = nuts_report(Runs(), Runs(ess=50.0), Runs(error=SideFailed("RuntimeError", "out of order")))
    assert {row.quantity for row in report.missed} == {"NumPyro ran"}
    report = nuts_report(Runs(error=SideFailed("RuntimeError", "out of order")), Runs(), Runs())
    assert {row.quantity for row in report.missed} == {
        "boltzmix ran",
        "targets of 2 above every peer in ESS per CPU second",
    }


@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_phases_of_a_run_follow_each_other():
    """Real chains; compiled or not, the draws are those of the sampler and the phases fill the time."""
    target, begin = density("eight_schools"), timing.now()
    run = nuts.ours(target, target.starts(4, 0), 30, 20, 0)
    assert tuple(run.draws.shape) == (4, 20, 10)
    assert set(run.seconds) == {"compile", "tuning", "sampling"}
    assert all(s >= 0 for s in run.seconds.values())
    assert 0 < run.seconds["tuning"] + run.seconds["sampling"] <= timing.now() - begin
    assert run.backend
    assert run.gradients >= 4 * 20
    found = nuts.figures(target, run)
    assert found["sampling"] == run.seconds["sampling"]
    assert found["ess"] < 100


# ----------------------------------------------------------------------- memory


class Bytes:
    """A side that grows by 1 MB and 120 bytes for each chain and draw."""

    def __call__(self, do, chains, draws, files):
        if files:
            raise SideFailed("OSError", "no space left")
        return {"resident": 1e6 + 120 * chains * draws, "anonymous": None}

    def close(self):
        """Nothing to end."""

    __enter__, __exit__ = Side.__enter__, Side.__exit__


def test_memory_of_chains_is_fitted_and_failures_are_rows():
    report = Report("speed", "t")
    memory.section(report, QUICK, open_side=Bytes)
    (each,) = rows(report, "bytes for each chain and draw")
    assert each.value == pytest.approx(120 + 1e6 / (3000 * 20))
    (exponent,) = rows(report, "exponent of memory")
    assert 0.7 < exponent.value < 1.0
    assert len(report.missed) == 5
    assert all("no space left" in row.note for row in report.missed)


def test_a_run_grows_the_process_by_its_draws_at_least():
    """A real process and 8 MB of draws."""
    with Side() as side:
        found = side("memory", chains=5000, draws=40, files=False)
    assert found["resident"] > 5000 * 40 * memory.DIM * 4


# ------------------------------------------------------------------------ suite


def test_sections_are_known_by_name(tmp_path):
    with pytest.raises(ValueError, match="throughput-hmc"):
        benchmarks.run_suite("speed", only=["throughput"], out=tmp_path)


def test_a_section_alone_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "now", Clock(each=1.0))
    benchmarks.run_suite("speed", quick=True, seeds=1, only=["floors"], out=tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["sections"] == ["floors"]
    assert all(row["value"] > 0 for row in found["rows"])
