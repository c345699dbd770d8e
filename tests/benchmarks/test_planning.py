"""The planning suite: problems that can be solved and are no gift, judges that notice, statistics that are exact."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch

from boltzmix.benchmarks.planning import (
    constraints,
    episodes,
    infeasible,
    mazes,
    methods,
    paired,
    priors,
    problems,
)
from boltzmix.benchmarks.planning.problems import FAMILIES, Problem, clearance, solvable
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import planning
from boltzmix.compose import Gaussian
from boltzmix.planners.obstacles import Box, Disc, Moving
from tests.planners.twins import smooth

GEOMETRIC = methods.geometric
SQUARE = ((-1.0, 1.0), (-1.0, 1.0))


# ------------------------------------------------------------------- statistics


def mcnemar_is_the_binomial_tail():
    """Against scipy's exact test, over discordant pairs."""
    from scipy.stats import binomtest

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random(40) < 0.7, rng.random(40) < 0.5
        wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
        assert paired.mcnemar(list(a), list(b)) == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue)


def test_mcnemar_is_the_binomial_tail_over_discordant_pairs():
    mcnemar_is_the_binomial_tail()
    assert paired.mcnemar([True, False], [True, False]) == 1.0


def sign_flips_are_those_of_every_sign():
    """With few pairs all flips can be listed."""
    gap = np.array([0.3, -0.1, 0.8, 0.4, 0.2, -0.25])
    sums = [np.dot(signs, gap) for signs in itertools.product((-1, 1), repeat=len(gap))]
    exact = np.mean(np.asarray(sums) >= gap.sum() - 1e-12)
    found = paired.sign_flips(list(gap), [0.0] * len(gap), draws=40_000)
    assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / 40_000)


def test_sign_flips_are_those_of_every_sign():
    sign_flips_are_those_of_every_sign()
    assert paired.sign_flips([1.0] * 12, [0.0] * 12) < 0.001
    assert paired.sign_flips([0.0] * 12, [1.0] * 12) > 0.99


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_sign_flips_refuse_what_cannot_be_compared(values):
    with pytest.raises(ValueError, match=r"equal length|not finite"):
        paired.sign_flips(*values)


def test_mcnemar_refuses_numbers():
    with pytest.raises(ValueError, match="bools"):
        paired.mcnemar([1, 0], [0, 1])


# --------------------------------------------------------------------- problems


@pytest.mark.parametrize(("families", "count"), [(FAMILIES[:1], 1), (FAMILIES[:2], 3), (FAMILIES, 4)])
def test_problems_are_blocked_free_at_their_ends_and_solvable(families, count):
    found = problems.problems(6, SQUARE, families=families, count=count, radius=0.05, seed=3)
    assert len(found) == 6
    for problem in found:
        assert len(problem.obstacles) == count
        line = np.linspace(problem.start, problem.goal, 500)
        assert clearance(problem.obstacles, line, np.linspace(0, 1, 500)).min() < 0.05
        assert clearance(problem.obstacles, np.array([problem.start, problem.goal])).min() > 0.05
        assert solvable(problem, SQUARE, 0.05)
    assert repr(found) == repr(problems.problems(6, SQUARE, families=families, count=count, radius=0.05, seed=3))
    assert repr(found) != repr(problems.problems(6, SQUARE, families=families, count=count, radius=0.05, seed=4))


def a_wall_across_the_world_cannot_be_passed():
    wall = (Box(-1.0, -0.1, 1.0, 0.1),)
    assert not solvable(Problem((0.0, -0.8), (0.0, 0.8), wall), SQUARE, 0.05)
    assert solvable(Problem((0.0, -0.8), (0.0, 0.8), (Box(-1.0, -0.1, 0.6, 0.1),)), SQUARE, 0.05)
    assert not solvable(Problem((0.0, -0.8), (0.0, 0.8), (Box(-1.0, -0.1, 0.96, 0.1),)), SQUARE, 0.05)
    for gap, passes in ((0.08, False), (0.2, True)):
        two = Box(-1.0, -0.1, 0.0, 0.1), Box(gap, -0.1, 1.0, 0.1)
        assert solvable(Problem((0.0, -0.8), (0.0, 0.8), two), SQUARE, 0.05) == passes


def test_a_wall_across_the_world_cannot_be_passed():
    a_wall_across_the_world_cannot_be_passed()


def test_a_moving_obstacle_is_where_it_is_at_the_time():
    moving = Moving(Disc(0.0, 0.0, 0.1), (1.0, 0.0))
    points = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert clearance((moving,), points, np.array([0.0, 1.0])) == pytest.approx([-0.1, -0.1])
    assert clearance((moving,), points, 0.0) == pytest.approx([-0.1, 0.9])
    assert clearance((), points).tolist() == [math.inf, math.inf]


def test_problems_refuse_what_cannot_be_made():
    with pytest.raises(ValueError, match="walls"):
        problems.problems(1, SQUARE, families=("walls",))
    with pytest.raises(ValueError, match="too crowded"):
        problems.problems(1, SQUARE, count=40, size=(0.3, 0.4), tries=5)


# --------------------------------------------------------------------- episodes


class World:
    """A point that goes where it is told, among walls."""

    def __init__(self, *walls, limit=20):
        self.obstacles, self.radius, self.dt, self.max_steps = walls, 0.1, 0.1, limit

    def reset(self, start, goal, seed):
        self.state, self.goal, self.steps = np.array(start), np.array(goal), 0
        return self.state

    def step(self, action):
        self.state, self.steps = self.state + action, self.steps + 1
        success = bool(np.linalg.norm(self.state - self.goal) < 0.05)
        return self.state, 0.0, False, self.steps >= self.max_steps, {"success": success}


class Straight:
    """Goes straight, one step at a time, or gives up."""

    def __init__(self, fails=False, records=()):
        self.fails, self.records = fails, records

    def reset(self, seed=None, options=None):
        self.goal = options["goal"]

    def act(self, observation):
        if self.fails:
            raise ValueError("no plan")
        gap = self.goal - observation
        return gap / max(1.0, np.linalg.norm(gap) / 0.1)


PAIR = episodes.Pair((0.0, 0.0), (1.0, 0.0), 7)


def episodes_are_judged_by_the_way_that_was_gone():
    free = episodes.run_episode(World(Box(0.3, 0.2, 0.5, 0.4)), Straight(), PAIR)
    assert (free.success, free.steps) == (True, 10)
    assert free.length == pytest.approx(1.0, abs=0.06)
    assert free.clearance == pytest.approx(0.1)
    assert not free.contact
    through = episodes.run_episode(World(Box(0.33, 0.02, 0.37, 0.4)), Straight(), PAIR)
    assert through.contact
    assert through.clearance == pytest.approx(-0.08)  # between two steps
    added = episodes.run_episode(World(), Straight(), PAIR, obstacles=(Disc(0.5, 0.0, 0.1),))
    assert added.contact
    late = episodes.run_episode(World(limit=5), Straight(), PAIR)
    assert (late.success, late.steps) == (False, 5)


def test_episodes_are_judged_by_the_way_that_was_gone():
    episodes_are_judged_by_the_way_that_was_gone()


def test_a_policy_that_gives_up_has_lost_and_its_words_are_kept():
    lost = episodes.run_episode(World(), Straight(fails=True), PAIR)
    assert (lost.success, lost.steps, lost.error) == (False, 0, "ValueError: no plan")


def made(success, length=1.0, latencies=(), evaluations=0.0, clearance=1.0, error=""):
    return episodes.Episode(success, 5, length, clearance, list(latencies), evaluations, error=error)


def outcomes_are_paired_with_the_oracle():
    mine = [
        made(True, 1.2, [0.1, 0.3], 20.0),
        made(True, 2.0, [0.2], 10.0),
        made(False, 9.0, [0.4], 10.0, clearance=-0.1),
    ]
    oracle = [made(True, 1.0), made(False, 1.0), made(True, 1.0)]
    found = episodes.outcome(mine, oracle)
    assert (found.success.hits, found.success.n) == (2, 3)
    assert found.cost == pytest.approx(1.2)  # where both succeed
    assert found.contacts == pytest.approx(1 / 3)
    assert (found.p50, found.replans, found.evaluations) == (pytest.approx(0.25), pytest.approx(4 / 3), 10.0)


def test_outcomes_are_paired_with_the_oracle():
    outcomes_are_paired_with_the_oracle()
    nothing = episodes.outcome([made(False, error="ValueError: x")])
    assert nothing.success.rate == 0.0
    assert math.isnan(nothing.cost)
    assert nothing.errors == ("ValueError: x",)
    with pytest.raises(ValueError, match="paired"):
        episodes.outcome([made(True)], [])


# ------------------------------------------------------------------------ parts

QUICK = Settings(quick=True, seeds=(0,))


@pytest.fixture(scope="module")
def smooth_prior():
    """Smooth random motions in place of a trained network."""
    found = Gaussian(torch.zeros(12, 4), smooth(12, 4, length=4.0).float())
    found.trajectory = {
        "horizon": 12,
        "state": ["x", "y", "vx", "vy"],
        "dt": 0.28,
        "bounds": [[-1.0, 1.0], [-1.0, 1.0]],
    }
    return found


def report_of(part):
    return Report("test", "test", section=part)


def test_every_part_is_a_module_that_runs():
    for part in planning.PARTS:
        maze = part.removesuffix("-baselines")
        module = "mazes" if maze in planning.MAZES else {"compute": "constraints"}.get(part, part)
        found = importlib.import_module(f"boltzmix.benchmarks.planning.{module}")
        assert callable(found.run)


def test_missing_weights_are_a_visible_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(priors, "WEIGHTS", tmp_path)
    for module in (constraints, infeasible):
        report = report_of("missing")
        module.run(report, QUICK)
        assert [row.quantity for row in report.rows] == ["SKIPPED"]
        assert "weights missing" in report.rows[0].note
    with pytest.raises(priors.MissingWeights, match=r"train obstacles --seed 2 --out runs/weights/seed2"):
        priors.find("obstacles", 2)


def every_method_meets_the_same_problems_at_equal_evaluations(prior):
    report = report_of("constraints")
    asked = constraints.cases(3, FAMILIES[:1], 1, seed=constraints.TUNING)
    constraints.table(report, prior, "task", asked)
    points = {name: found[0] for name, found in report.curves["task"].items()}
    assert len(points) == 4
    most = constraints.FULL * constraints.CANDIDATES
    assert all(0.8 * most <= p["evaluations"] <= 1.05 * most for p in points.values())
    assert all(p["n"] == 3 for p in points.values())
    assert [row.target for row in report.rows if row.target] == ["≥ 0.98"]


def test_every_method_meets_the_same_problems_at_equal_evaluations(smooth_prior):
    every_method_meets_the_same_problems_at_equal_evaluations(smooth_prior)


def test_infeasible_problems_are_named_and_malformed_ones_refused(smooth_prior):
    report = report_of("infeasible")
    infeasible.judge(report, smooth_prior)
    assert not [row for row in report.rows if not row.holds]
    assert len(report.rows) == 14


def test_a_table_of_a_maze_has_a_row_for_each_method():
    report = report_of("maze")
    episodes_of = [made(True, 1.2, [0.1], 20.0), made(False, error="ValueError: no plan")]
    found = mazes.tell(report, "maze", "method", episodes_of, [made(True, 1.0), made(True, 1.0)], 2.0)
    assert report.rows[0].value == 0.5
    assert "gave up: ValueError: no plan" in report.rows[0].note
    lines = mazes.table({"method": found})
    assert lines[2].startswith("| method | 0.500 (2) | 0.095–0.905 | 1.2 |")


def test_a_policy_is_measured_in_a_maze(monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    from boltzmix.planners import environments

    monkeypatch.setattr(methods, "geometric", lambda *a: GEOMETRIC(*a)[:2])
    monkeypatch.setattr(methods, "others", lambda *a: methods.geometric(*a))
    report = report_of("pointmaze-umaze-baselines")
    mazes.run(report, QUICK, "pointmaze-umaze", "others")
    assert [row.value for row in report.rows] == [1.0, 0.0]  # the oracle, and the line that these pairs were chosen by
    assert "**pointmaze-umaze**" in report.summary
    pairs = mazes.hard_pairs(environments.make("pointmaze-umaze"), 2, 5)
    assert pairs == mazes.hard_pairs(environments.make("pointmaze-umaze"), 2, 5)
