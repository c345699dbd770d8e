"""The planner: what it claims about feasibility, what it refuses, and that it keeps its word about seeds and time."""

import itertools
import time

import numpy as np
import pytest
import torch

from boltzmix.compose import MCMC, SMC, Gaussian
from boltzmix.compose.errors import NonFinite
from boltzmix.planners.baselines import BestOfN, GuidanceOnly
from boltzmix.planners.checker import check
from boltzmix.planners.guided import Guidance, Guided, OutOfTime, correlation_root
from boltzmix.planners.judgement import judge, merged
from boltzmix.planners.known import Held, hold
from boltzmix.planners.obstacles import Box, Disc, Moving
from boltzmix.planners.planner import Planner
from boltzmix.planners.reachability import Reachability, components
from boltzmix.planners.rounds import corrected, karras
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks import Avoid, Constraint, Goal, Reach, Reward, Waypoint
from tests.planners.twins import GaussianTwin, smooth

START, GOAL = [-1.0, 0.0], [1.0, 0.0]
WALLS = (Box(0.4, 0.4, 1.6, 0.6), Box(0.4, -0.6, 1.6, -0.4), Box(0.4, -0.6, 0.6, 0.6), Box(1.4, -0.6, 1.6, 0.6))
SPACE = TrajectorySpace(16, ("x", "y"), dt=0.1, bounds=((-2.0, 2.0), (-2.0, 2.0)))


def planner(**options) -> Planner:
    return Planner(GaussianTwin(16), SPACE, **options)


# --------------------------------------------------------------------- what comes out


def test_plans_begin_and_end_where_they_should_and_avoid_what_they_see() -> None:
    """64 candidates past a disc on the straight line, judged by the independent checker."""
    disc = Disc(0.0, 0.05, 0.5)
    found = planner(obstacles=[disc], radius=0.05, candidates=64).plan(START, GOAL, seed=0)
    assert found.status == "feasible"
    assert found.reasons == ()
    np.testing.assert_allclose(found.trajectories[:, 0], [START] * 64, atol=1e-6)
    np.testing.assert_allclose(found.trajectories[:, -1], [GOAL] * 64, atol=1e-6)
    report = check(found.trajectories, SPACE, [disc], radius=0.05, start=START, goal=GOAL)
    np.testing.assert_array_equal(report.feasible, found.feasible)
    straight = planner(candidates=64).plan(START, GOAL, seed=0)
    hits = check(straight.trajectories, SPACE, [disc], radius=0.05)
    assert found.feasible.mean() > 0.85 > 0.6 > hits.feasible.mean()


def test_the_best_plan_comes_first() -> None:
    found = planner(obstacles=[Disc(0.0, 0.0, 0.3)]).plan(START, GOAL, seed=3, n=6)
    assert len(found) == 6
    assert (np.diff(found.feasible.astype(int)) <= 0).all()
    assert (np.diff(found.path_lengths[found.feasible]) >= 0).all()
    lengths = planner(rank=lambda plans, energies: plans[:, 8, 1]).plan(START, GOAL, seed=3)
    assert (np.diff(lengths.trajectories[:, 8, 1]) >= 0).all()


def test_mixed_plans_are_sorted() -> None:
    """Feasible plans first, those by energy and length; the others by how much they violate."""
    problem = planner(obstacles=[Disc(0.0, 0.0, 0.3)])._pose(SPACE, START, GOAL, [Reach([0.0, 1.0], 0.3, at=8)])
    share = torch.linspace(0, 1, 16, dtype=torch.float64)[:, None]
    line = (1 - share) * torch.tensor(START, dtype=torch.float64) + share * torch.tensor(GOAL, dtype=torch.float64)
    arc = torch.sin(torch.pi * share) * torch.tensor([[0.0, 1.0]])
    plans = torch.stack([line, line - 0.7 * arc, line + 0.2 * arc, line + arc])
    judged = judge(problem, plans.numpy())
    np.testing.assert_array_equal(judged.trajectories, plans.numpy()[[3, 1, 2, 0]])
    np.testing.assert_array_equal(judged.feasible, [True, True, False, False])
    assert judged.violations["collision"][3] == pytest.approx(0.3)
    assert judged.select([3]).reasons()[0].startswith("collision: violated by 0.3")


def test_the_correlation_is_its_formula() -> None:
    correlation_root.cache_clear()
    root, lag = correlation_root(9, 2.0), torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(root @ root.mT, torch.exp(-0.5 * ((lag[:, None] - lag) / 2.0) ** 2))


def test_the_same_seed_gives_the_same_plans() -> None:
    options = {"obstacles": [Disc(0.0, 0.05, 0.4)]}
    first, second, other = (planner(**options).plan(START, GOAL, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.trajectories, second.trajectories)
    assert not np.allclose(first.trajectories, other.trajectories)
    assert first.seed == 5
    by_generator = planner(**options).plan(START, GOAL, seed=torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(first.trajectories, by_generator.trajectories)
    again = planner(**options)
    unseeded = again.plan(START, GOAL)
    np.testing.assert_array_equal(unseeded.trajectories, again.plan(START, GOAL, seed=unseeded.seed).trajectories)


def test_a_prior_is_left_as_it_was() -> None:
    twin = GaussianTwin(16).train()
    before = {name: t.clone() for name, t in twin.state_dict().items()}
    Planner(twin, SPACE, obstacles=[Disc(0, 0, 0.3)]).plan(START, GOAL, tasks=[Reach([0.0, 1.0], 0.3, at=8)], seed=0)
    assert twin.training
    assert all(torch.equal(before[name], t) for name, t in twin.state_dict().items())


def test_evaluations_are_counted() -> None:
    """Ten levels of eight candidates and two looks at where they start from; each is a call of the prior."""
    twin = GaussianTwin(16)
    views: list[GaussianTwin] = []
    make = twin.conditioned_on
    twin.conditioned_on = lambda mask: views.append(make(mask)) or views[-1]  # type: ignore[method-assign]
    found = Planner(twin, SPACE, steps=10).plan(START, GOAL, seed=0)
    assert found.evaluations == 82
    assert sum(view.calls for view in views) + twin.calls == found.info["forwards"] == 12


def test_tasks_pull() -> None:
    """Plans with a soft waypoint come nearer to it than those without, and weights count."""
    spot = np.array([0.0, 0.8])

    def miss(*tasks) -> float:
        found = planner().plan(START, GOAL, tasks, seed=0)
        return float(np.linalg.norm(found.trajectories[:, 8] - spot, axis=1).mean())

    none, some, much = miss(), miss(Reach(spot, 0.3, at=8)), miss(Reach(spot, 0.3, at=8) ** 9.0)
    assert much < some < none
    assert much < 0.2


def test_a_waypoint_is_held() -> None:
    found = planner().plan(START, GOAL, [Waypoint([0.0, 0.9], at=8)], seed=0)
    np.testing.assert_allclose(found.trajectories[:, 8], [[0.0, 0.9]] * 8, atol=1e-6)


def test_a_goal_that_is_a_task_and_one_at_another_token() -> None:
    soft = planner().plan(START, Reach(GOAL, 0.05), seed=0)
    assert np.linalg.norm(soft.best[-1] - GOAL) < 0.3
    early = planner().plan(START, Goal(GOAL, at=10), seed=0)
    np.testing.assert_allclose(early.best[10], GOAL, atol=1e-6)


def test_other_samplers_take_the_plain_product() -> None:
    """SMC on a Gaussian prior times a quadratic task: the posterior's mean at the token, |z| < 4.5."""
    prior = Gaussian(torch.zeros(8, 2, dtype=torch.float64), smooth(8, length=3.0))
    space = TrajectorySpace(8, ("x", "y"))
    found = Planner(prior, space, sampler=SMC(), tasks=[Reach([0.5, 0.5], 0.4, at=4)], candidates=1500).plan(
        START, GOAL, seed=0
    )
    held = Held(*(lambda m, v: (m, v))(*_pins(space)))
    given = hold(prior, held)
    assert isinstance(given, Gaussian)
    places = [6, 7]  # token 4 among the free tokens 1 … 6
    precision = given.covariance.inverse()
    shift = precision @ given.mean
    for k in places:
        precision[k, k] += 1 / 0.4**2
        shift[k] += 0.5 / 0.4**2
    spread = precision.inverse()
    mean = (spread @ shift)[places].numpy()
    z = (found.trajectories[:, 4].mean(0) - mean) / np.sqrt(spread.diag()[places].numpy() / 1500)
    assert np.abs(z).max() < 4.5


def _pins(space: TrajectorySpace) -> tuple[torch.Tensor, torch.Tensor]:
    mask, value = torch.zeros(space.shape, dtype=torch.bool), torch.zeros(space.shape, dtype=torch.float64)
    mask[0] = mask[-1] = True
    value[0], value[-1] = torch.tensor(START), torch.tensor(GOAL)
    return mask, value


def test_plan_many_serves_every_pair() -> None:
    starts, goals = [START, [0.0, -1.0], [0.5, 0.5]], [GOAL, [0.0, 1.0], [-1.0, -1.0]]
    results = planner(obstacles=[Disc(0.0, 0.0, 0.3)], rounds=0).plan_many(starts, goals, n=2, seed=0)
    assert [len(r) for r in results] == [2, 2, 2]
    for result, start, goal in zip(results, starts, goals, strict=True):
        np.testing.assert_allclose(result.trajectories[:, 0], [start] * 2, atol=1e-6)
        np.testing.assert_allclose(result.trajectories[:, -1], [goal] * 2, atol=1e-6)
    inside = planner(obstacles=[Disc(0.0, 0.0, 0.3)]).plan_many([START, [0.0, 0.1]], [GOAL, GOAL], seed=0)
    assert [r.status for r in inside] == ["feasible", "infeasible"]


def test_horizons_are_those_of_the_prior() -> None:
    found = planner().plan(START, GOAL, horizon=24, seed=0)
    assert found.trajectories.shape == (8, 24, 2)
    prior = Gaussian(torch.zeros(8, 2), smooth(8, length=3.0).float())
    with pytest.raises(ValueError, match="stitched"):
        Planner(prior, TrajectorySpace(8, ("x", "y"))).plan(START, GOAL, horizon=16)


# ------------------------------------------------------------------ warm starts and budgets


def test_a_warm_start_stays_near_what_it_starts_from() -> None:
    """Renoised to a low level plans keep their side of the obstacle, and take half of the levels."""
    own = planner(obstacles=[Disc(0.0, 0.0, 0.3)], warm_level=0.15)
    first = own.plan(START, GOAL, seed=0)
    again = own.plan(START, GOAL, seed=1, init=first.best)
    assert again.info["forwards"] == 4
    assert (np.sign(again.trajectories[:, 8, 1]) == np.sign(first.best[8, 1])).all()
    assert np.abs(again.trajectories - first.best).max() < 1.0


def test_a_budget_bounds_the_work_and_the_best_so_far_is_returned() -> None:
    """A slow prior: the levels that fit are taken, and a deadline in mid-run returns the estimate at hand."""

    class Slow(GaussianTwin):
        def conditioned_on(self, mask):
            return Slow(16, mask=mask)

        def _score(self, x, sigma):
            time.sleep(0.02)
            return super()._score(x, sigma)

    own = Planner(Slow(16), SPACE, obstacles=[Disc(0.0, 0.0, 0.3)])
    own.plan(START, GOAL, budget_ms=100, seed=0)
    found = own.plan(START, GOAL, budget_ms=100, seed=0)
    assert found.info["forwards"] < 10
    assert len(found) == 8
    assert np.isfinite(found.trajectories).all()


def test_further_rounds_improve_on_the_first_within_a_budget() -> None:
    own = planner(obstacles=[Disc(0.0, 0.0, 0.3)])
    found = own.plan(START, GOAL, budget_ms=20_000, seed=0)
    assert found.info["rounds"] > 1
    assert found.status == "feasible"


def test_rounds_go_on_until_a_plan_is_feasible() -> None:
    never = planner(tasks=[Constraint(lambda tau: tau[:, 8, 0] * 0 + 1.0, name="impossible")], rounds=2)
    assert never.plan(START, GOAL, seed=0).info["rounds"] == 3
    assert planner(rounds=2).plan(START, GOAL, seed=0).info["rounds"] == 1


def test_the_deadline_raises_with_the_last_estimate() -> None:
    held = Held(*_pins(SPACE))
    guided = Guided(hold(GaussianTwin(16), held), [], held)
    x = torch.randn(2, 28, dtype=torch.float64)
    guided.deadline = time.perf_counter() - 1.0
    estimate = x + guided.score(x, 1.0)  # the first evaluation is always made
    with pytest.raises(OutOfTime) as caught:
        guided.score(x, 0.5)
    torch.testing.assert_close(caught.value.estimate, estimate)


# ------------------------------------------------------------------ the estimate's tasks


def test_quadratic_tasks_on_an_isotropic_prior_are_exact() -> None:
    """Prior N(0, v) per coordinate, a quadratic task: the score is that of the noised product, at every level."""
    v, w, h = 0.5, 0.6, 4
    prior = Gaussian(torch.zeros(h, 2, dtype=torch.float64), v)
    space = TrajectorySpace(h, ("x", "y"))
    held = Held(torch.zeros(h, 2, dtype=torch.bool), torch.zeros(h, 2, dtype=torch.float64))
    task = Reward(lambda tau: -0.5 * ((tau - 1.0) ** 2).flatten(1).sum(1) / w**2).bind(space)
    guided = Guided(hold(prior, held), [(task, 1.0)], held, Guidance(spread=v, length=0.0, iterations=30))
    x = torch.randn(5, 2 * h, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = 1 / (1 / v + 1 / w**2)
    mean = spread / w**2
    for sigma in (0.05, 0.5, 3.0):
        exact = (mean - x) / (spread + sigma**2)
        torch.testing.assert_close(guided.score(x, sigma), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.score(x), (mean - x) / spread, rtol=1e-9, atol=1e-9)


def test_weights_may_depend_on_the_level() -> None:
    held = Held(*_pins(SPACE))
    task = Reach([0.0, 1.0], 0.3, at=8)
    x = torch.randn(2, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(weight, sigma) -> torch.Tensor:
        pairs = (task**weight).bind(SPACE).pairs()  # pyright: ignore[reportAttributeAccessIssue]
        return Guided(hold(GaussianTwin(16), held), pairs, held).score(x, sigma)

    late = lambda sigma: (sigma < 1.0).double() * 2.0  # noqa: E731
    torch.testing.assert_close(score(late, 2.0), hold(GaussianTwin(16), held).score(x, 2.0))
    torch.testing.assert_close(score(late, 0.5), score(2.0, 0.5))


def test_corrected_sampling_takes_its_extra_evaluations() -> None:
    plain, more = (planner(sampler=s, steps=6).plan(START, GOAL, seed=0) for s in (None, corrected(corrections=2)))
    assert more.info["forwards"] > plain.info["forwards"]
    assert more.status == "feasible"


# --------------------------------------------------------------------- infeasible problems


def test_a_start_inside_an_obstacle_is_named() -> None:
    found = planner(obstacles=[Disc(-1.0, 0.0, 0.2)]).plan(START, GOAL, seed=0)
    assert found.status == "infeasible"
    assert found.evaluations == 0
    assert len(found) == 0
    assert found.reasons[0].startswith("start: (-1, 0) is 0.2 m inside obstacle 0 (Disc")
    with pytest.raises(ValueError, match="no plan: start"):
        _ = found.best


def test_a_start_that_touches_an_obstacle_is_planned_from_and_not_feasible() -> None:
    """A ball of 0.2 m that is 0.02 m too near: every plan collides, the best one no deeper than it began."""
    found = planner(obstacles=[Disc(-1.0, 0.38, 0.2)], radius=0.2).plan(START, GOAL, seed=0)
    assert found.status == "infeasible"
    assert len(found) == 8
    assert found.reasons[0].startswith("collision: violated by 0.02")
    deeper = planner(obstacles=[Disc(-1.0, 0.28, 0.2)], radius=0.2).plan(START, GOAL, seed=0)
    assert deeper.reasons[0].startswith("start:")


def test_rounds_are_merged_in_order() -> None:
    own = planner(obstacles=[Disc(0.0, 0.0, 0.3)])
    problem = own._pose(SPACE, START, GOAL, [])
    first, second = (own.plan(START, GOAL, seed=seed).trajectories for seed in (0, 1))
    both = merged(judge(problem, first), judge(problem, second))
    at_once = judge(problem, np.concatenate([first, second]))
    np.testing.assert_array_equal(both.trajectories, at_once.trajectories)
    np.testing.assert_array_equal(both.violations["collision"], at_once.violations["collision"])


def test_a_walled_in_goal_is_shown_to_be_unreachable() -> None:
    found = planner(obstacles=WALLS).plan(START, GOAL, seed=0)
    assert found.status == "infeasible"
    assert found.evaluations == 0
    assert found.reasons[0].startswith("goal: no path leads from (-1, 0) to (1, 0)")
    assert "cells of 0.025 m" in found.reasons[0]
    ajar = planner(obstacles=WALLS[:3]).plan(START, GOAL, seed=0)  # without the far wall there is a way
    assert len(ajar) == 8


def test_contradicting_tasks_are_named() -> None:
    found = planner().plan(START, GOAL, [Waypoint([0.0, 0.0], at=5), Waypoint([0.5, 0.0], at=5, name="other")])
    assert found.status == "infeasible"
    assert found.reasons[0].startswith("other: x of token 5 is fixed at 0.5 and by waypoint at 0")


def test_constraints_that_no_plan_meets_are_named() -> None:
    far = Constraint(lambda tau: 0.5 - tau[:, :, 1].amin(1), name="stay above")  # start and goal lie below
    found = planner().plan(START, GOAL, [far], seed=0)
    assert found.status == "infeasible"
    assert found.reasons[0].startswith("stay above: violated by 0.5")
    assert len(found) == 8
    assert not found.feasible.any()
    assert (found.violations["stay above"] >= 0.5 - 1e-6).all()


def test_a_goal_that_is_too_far_for_the_speed_is_named() -> None:
    found = planner(max_speed=1.0).plan(START, GOAL, seed=0)
    assert found.reasons[0].startswith("speed: start and goal are 2 m and 1.5 s apart")
    assert planner(max_speed=50.0).plan(START, GOAL, seed=0).status == "feasible"


def test_a_start_outside_of_the_bounds_is_named() -> None:
    found = planner().plan([-3.0, 0.0], GOAL)
    assert found.status == "infeasible"
    assert found.reasons[0].startswith("bounds: start is at x = -3")


def test_a_task_s_own_obstacles_are_checked_too() -> None:
    found = planner().plan(START, GOAL, [Avoid([Disc(1.0, 0.0, 0.2)])], seed=0)
    assert found.reasons[0].startswith("goal: (1, 0) is 0.2 m inside")


def test_an_obstacle_that_leaves_in_time_is_no_proof() -> None:
    leaving = Moving(Disc(1.0, 0.0, 0.2), velocity=(0.0, 2.0))  # 3 m away when the plan ends
    assert planner(obstacles=[leaving]).plan(START, GOAL, seed=0).status == "feasible"
    staying = planner(obstacles=[Moving(Disc(1.0, 0.0, 0.2), velocity=(0.0, 0.01))]).plan(START, GOAL)
    assert staying.reasons[0].startswith("goal:")


@pytest.mark.parametrize("where", ["planner", "task", "best of n", "guidance only"])
def test_obstacles_have_moved_by_the_clock_when_a_plan_begins(where: str) -> None:
    """On the goal from second 3 on, wherever the obstacle is said."""
    coming = Moving(Disc(1.0, 0.0, 0.2), waypoints=[(0.0, 0.0, 9.0), (3.0, 0.0, 0.0)])
    own = planner() if where == "task" else planner(obstacles=[coming])
    wrapped = BestOfN(own, 4) if where == "best of n" else GuidanceOnly(own) if where == "guidance only" else own
    tasks = [Avoid(coming)] if where == "task" else []
    before = wrapped.plan(START, GOAL, tasks, seed=0)
    assert before.status == "feasible", before.reasons
    found = wrapped.plan(START, GOAL, tasks, seed=0, clock=3.0)
    assert found.status == "infeasible"
    if where != "best of n":  # whose draws are blind, and judged
        assert found.reasons[0].startswith("goal: (1, 0) is 0.2 m inside")
    with pytest.raises(ValueError, match="clock is a finite number"):
        wrapped.plan(START, GOAL, tasks, clock=float("nan"))


# ---------------------------------------------------------------------- the flood fill


def test_components_are_connected_by_sides_and_corners() -> None:
    free = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1]], dtype=torch.bool)
    labels = components(free)
    assert labels[0, 0] == labels[1, 1] == labels[0, 2] == labels[0, 3]
    assert len({int(labels[0, 0]), int(labels[2, 3]), int(labels[3, 0])}) == 3
    assert (labels[~free] == 0).all()


@pytest.mark.parametrize(("width", "radius", "apart"), [(-0.1, 0.0, True), (0.12, 0.0, False), (0.3, 0.3, True)])
def test_a_gap_is_a_way_for_what_fits(width: float, radius: float, apart: bool) -> None:
    walls = [Box(-0.1, -2.2, 0.1, -width / 2), Box(-0.1, width / 2, 0.1, 2.2)]
    for resolution in (None, 0.11):
        found = Reachability(walls, (-2.0, -2.0), (2.0, 2.0), radius=radius, resolution=resolution)
        assert found.apart((-1.0, 0.0), (1.0, 0.0)) is (apart and (resolution is None or radius > 0))


def test_a_proof_is_never_wrong_about_open_ground() -> None:
    """Random discs: wherever a fine grid finds a path, no proof denies it.

    Centres of open neighbours are 0.057 m apart, half a diagonal from their own edges: a chain of them keeps 0.1 m.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        spots = torch.rand(12, 3, generator=generator).double()
        discs = [Disc(4 * x - 2, 4 * y - 2, 0.15 + 0.5 * r) for x, y, r in spots.tolist()]
        fine = Reachability(discs, (-2.0, -2.0), (2.0, 2.0), radius=0.1 + 0.057, resolution=0.04)
        coarse = Reachability(discs, (-2.0, -2.0), (2.0, 2.0), radius=0.1, resolution=0.11)
        points = (3.9 * torch.rand(30, 2, generator=generator) - 1.95).tolist()
        for a, b in itertools.combinations([p for p in points if fine.labels[fine._cell(p)]], 2):
            assert fine.apart(a, b) or not coarse.apart(a, b)


# --------------------------------------------------------------------------- refusals


def test_what_makes_no_sense_is_refused() -> None:
    own = planner()
    with pytest.raises(NonFinite, match="start must be finite"):
        own.plan([float("nan"), 0.0], GOAL)
    with pytest.raises(NonFinite, match="goal must be finite"):
        own.plan(START, [float("inf"), 0.0])
    with pytest.raises(ValueError, match="goal's x = 5 lies outside of the bounds"):
        own.plan(START, [5.0, 0.0])
    with pytest.raises(ValueError, match=r"start is a .* got shape \(3,\)"):
        own.plan([0.0, 0.0, 0.0], GOAL)
    with pytest.raises(ValueError, match="needs a start"):
        own.plan(None, GOAL)
    with pytest.raises(TypeError, match="vector of numbers"):
        own.plan("here", GOAL)
    with pytest.raises(TypeError, match="Reward"):
        own.plan(START, GOAL, [lambda tau: tau])
    with pytest.raises(ValueError, match="budget_ms"):
        own.plan(START, GOAL, budget_ms=0)
    with pytest.raises(ValueError, match="n is a positive int"):
        own.plan(START, GOAL, n=0)
    with pytest.raises(ValueError, match="init holds plans"):
        own.plan(START, GOAL, init=np.zeros((3, 2)))
    with pytest.raises(NonFinite, match="init"):
        own.plan(START, GOAL, init=np.full((16, 2), np.nan))
    with pytest.raises(TypeError, match="seed"):
        own.plan(START, GOAL, seed=1.5)  # pyright: ignore[reportArgumentType]
    for options in (
        {"candidates": 0}, {"steps": 0}, {"radius": -1.0}, {"warm_level": 0.0}, {"at": "nowhere"},
        {"bounds": ((1.0, 0.0), (0.0, 1.0))},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
            planner(**options)
    with pytest.raises(TypeError, match="MCMC"):
        planner(sampler=MCMC())
    with pytest.raises(ValueError, match="the prior is over"):
        Planner(GaussianTwin(8), SPACE)


def test_levels_fall_from_top_to_bottom() -> None:
    levels = karras(10.0, 0.02, 8)
    assert levels[0] == pytest.approx(10.0)
    assert levels[-1] == pytest.approx(0.02)
    assert all(a > b for a, b in itertools.pairwise(levels))


# --------------------------------------------------------------------------- pictures


def test_pictures_are_drawn_and_written(tmp_path) -> None:
    found = planner(obstacles=[Disc(0.0, 0.0, 0.3), Moving(Disc(0.0, 1.5, 0.2), velocity=(0.1, 0.0))]).plan(
        START, GOAL, seed=0, n=3
    )
    figure = found.plot(tmp_path / "plans.png")
    assert (tmp_path / "plans.png").stat().st_size > 1000
    assert len(figure.axes[0].lines) == 5  # plans, start and goal
    assert found.animate(tmp_path / "plan.gif", fps=4).stat().st_size > 1000
    with pytest.raises(ValueError, match="gif or .mp4"):
        found.animate(tmp_path / "plan.avi")
    assert "feasible" in found.summary()
    empty = planner(obstacles=WALLS).plan(START, GOAL)
    empty.plot(tmp_path / "none.png")
    assert "no path leads" in empty.summary()
