"""What every task keeps: units, scores, weights, shapes, and what it refuses."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from boltzmix.compose import HMC, MCMC, Clamp, Gaussian, Term, sample, term
from boltzmix.planners import (
    Avoid,
    Bounds,
    Box,
    Constraint,
    Disc,
    Dynamics,
    Goal,
    Moving,
    Polygon,
    Reach,
    Reward,
    Smooth,
    Start,
    Task,
    TrajectorySpace,
    Value,
    Waypoint,
)

SPACE = TrajectorySpace(
    6, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.2, loc=(0.5, -0.5, 0, 1, 0, 0), scale=(2, 2, 0.5, 0.7, 1, 3),
    bounds=((-1, 1), (-1.5, 1)),
)  # fmt: skip


class Net(nn.Module):
    """A small smooth function of trajectories."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6))

    def forward(self, x):
        return (self.weight.to(x) * x).flatten(1).sum(1).tanh()


def noisy_value(x, sigma):
    return -(x.square().flatten(1).sum(1)) / (1.0 + sigma**2)


def step(s, a):
    return torch.cat([s[:, :2] + 0.2 * s[:, 2:], s[:, 2:] + 0.2 * a], 1)


TASKS = {
    "start": lambda: Start((0.0, 0.5, 1.0, 0.0)),
    "goal": lambda: Goal((1.0, 1.0)),
    "waypoint": lambda: Waypoint({"vx": 0.0, "y": 1.0}, at=3),
    "reach": lambda: Reach((0.3, 0.2), 0.5),
    "reach any": lambda: Reach({"x": 0.3, "vy": 0.1}, 0.5, at="any"),
    "reward": lambda: Reward(lambda tau: tau[..., 0].sum(1).sin(), name="x"),
    "value": lambda: Value(Net()),
    "noisy value": lambda: Value(noisy_value),
    "term value": lambda: Value(Gaussian(torch.zeros(6, 6, dtype=torch.float64), 2.0)),
    "smooth": lambda: Smooth(0.4, 0.7),
    "smooth about a place": lambda: Smooth(0.4, 0.7, kernel="matern32", mean=(0.5, 0.0)),
    "avoid": lambda: Avoid(
        [Disc(0, 0, 0.5), Disc(1, 1, 0.3), Box(-1, -1, 0, 0), Polygon(((0, 0), (2, 0), (0.5, 0.5), (0, 2)))], 0.2, 3.0
    ),
    "avoid moving": lambda: Avoid(
        [Moving(Box(-1, -1, 0, 0), (0.5, 0.2)), Moving(Disc(0, 0, 0.6), waypoints=[(0.1, 0, 0), (0.5, 1, 0)])], 0.2, 3.0
    ),
    "bounds": lambda: Bounds(margin=0.1),
    "bounds of speed": lambda: Bounds(-0.3, (0.3, 0.4), columns=("vx", "vy")),
    "dynamics": lambda: Dynamics(step, (0.3, 0.3, 0.2, 0.5)),
    "constraint": lambda: Constraint(lambda tau: tau[..., 1] - 0.5, 2.0, margin=0.1),
    "one constraint": lambda: Constraint(lambda tau: tau[..., 1].square().sum(1) - 0.5, 2.0),
}
SOFT = [name for name in TASKS if name not in ("start", "goal", "waypoint")]
STATIC = [name for name in SOFT if name not in ("noisy value", "term value")]


def states(n=9, seed=0, dtype=torch.float64):
    x = torch.randn(n, *SPACE.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * x).to(dtype)


@pytest.mark.parametrize("name", SOFT)
def test_the_bound_term_is_the_task_at_the_physical_trajectory(name):
    task, x = TASKS[name](), states()
    bound = task.bind(SPACE)
    assert isinstance(bound, Term)
    assert bound.has_energy
    assert bound.event_shape == SPACE.shape
    torch.testing.assert_close(bound.energy(x), task.energy(SPACE.physical(x), SPACE))
    assert float(bound.energy(x).detach().std()) > 1e-3  # a constant would satisfy all that follows


@pytest.mark.parametrize("name", SOFT)
def test_the_score_is_minus_the_gradient_of_the_energy(name):
    """Against differences of the energy in random directions, at points where it is smooth on that scale."""
    bound, x = TASKS[name]().bind(SPACE), states()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    slopes = [
        (bound.energy(x + h * direction) - bound.energy(x - h * direction)) / (2 * h) for h in (1e-5, 2e-5)
    ]  # fmt: skip
    smooth = (slopes[0] - slopes[1]).abs() < 1e-3 * (1 + slopes[0].abs())
    assert int(smooth.sum()) >= 7
    claimed = -(bound.score(x) * direction).flatten(1).sum(1)
    torch.testing.assert_close(claimed[smooth], slopes[0][smooth], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", SOFT)
def test_weights_multiply_energies_and_powers_of_powers_multiply(name):
    task, x = TASKS[name](), states()
    one, two = task.bind(SPACE), ((task**2.0) ** 1.5).bind(SPACE)
    torch.testing.assert_close(two.energy(x), 3.0 * one.energy(x))
    torch.testing.assert_close(two.score(x), 3.0 * one.score(x))
    assert ((task**2.0) ** 1.5).weight == 3.0
    assert task.weight == 1.0  # the original keeps its own
    torch.testing.assert_close((task**2.0).energy(SPACE.physical(x), SPACE), task.energy(SPACE.physical(x), SPACE))


@pytest.mark.parametrize("name", STATIC)
def test_a_weight_may_depend_on_the_noise_level(name):
    task, x = TASKS[name](), states()
    bound = ((task ** (lambda sigma: 1 / (1 + sigma))) ** 2.0).bind(SPACE)
    for sigma, weight in ((3.0, 0.5), (0.0, 2.0)):
        torch.testing.assert_close(bound.energy(x, sigma), weight * task.bind(SPACE).energy(x))
        torch.testing.assert_close(bound.score(x, sigma), weight * task.bind(SPACE).score(x))
    torch.testing.assert_close(bound.energy(x), 2.0 * task.bind(SPACE).energy(x))


@pytest.mark.parametrize("name", SOFT)
def test_one_task_twice_merges_into_one_factor(name):
    task = TASKS[name]()
    bound = (task**2.0).bind(SPACE) * (task**3.0).bind(SPACE) * Gaussian(torch.zeros(SPACE.shape), 1.0)
    assert sorted(exponent.constant for _, exponent in bound.pairs()) == [1.0, 5.0]
    other = task.bind(SPACE) * TASKS[name]().bind(SPACE)
    if name not in ("noisy value", "term value"):
        assert len(other.pairs()) == 2


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_and_violations_are_one_number_for_each_plan_in_its_dtype(name, dtype):
    task, tau = TASKS[name](), SPACE.physical(states(4, dtype=dtype))
    for value in (task.energy(tau, SPACE), task.violation(tau, SPACE)):
        assert value.shape == (4,)
        assert value.dtype == dtype
        assert bool(torch.isfinite(value).all())
    assert bool((task.violation(tau, SPACE) >= 0).all())
    assert not task.violation(tau.requires_grad_(), SPACE).requires_grad


@pytest.mark.parametrize("name", TASKS)
def test_each_plan_is_judged_by_itself(name):
    task, tau = TASKS[name](), SPACE.physical(states())
    alone = torch.cat([task.energy(row[None], SPACE) for row in tau])
    torch.testing.assert_close(task.energy(tau, SPACE), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOFT)
def test_plans_that_are_not_finite_have_no_finite_energy(name):
    task, tau = TASKS[name](), SPACE.physical(states(3))
    tau[1] = torch.nan
    energy = task.energy(tau, SPACE)
    assert energy.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("tau", "error"),
    [
        (torch.zeros(6, 6), ValueError),
        (torch.zeros(2, 5, 6), ValueError),
        (torch.zeros(2, 6, 4), ValueError),
        (torch.zeros(2, 6, 6, dtype=torch.long), TypeError),
        ([[0.0]], TypeError),
    ],
    ids=["no batch", "horizon", "columns", "integers", "list"],
)
def test_wrong_trajectories_are_refused_by_the_name_of_the_task(name, tau, error):
    task = TASKS[name]()
    for call in (task.energy, task.violation):
        with pytest.raises(error, match=task.name):
            call(tau, SPACE)
    with pytest.raises(TypeError, match="TrajectorySpace"):
        task.bind("space")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "2", True, None])
def test_wrong_weights_are_refused(weight):
    with pytest.raises((TypeError, ValueError)):
        TASKS["bounds"]() ** weight


@dataclass
class Wrong:
    """Functions of the user's that return the wrong thing."""

    value: object

    def __call__(self, *inputs):
        return self.value


@pytest.mark.parametrize("returns", [torch.zeros(3, 1), torch.zeros(2), 0.0, None], ids=["(N, 1)", "(2,)", "float", ""])
@pytest.mark.parametrize("make", [Reward, Value, lambda fn: Dynamics(fn, 1.0)], ids=["reward", "value", "dynamics"])
def test_functions_that_do_not_return_one_number_for_each_plan_are_refused(make, returns):
    task = make(Wrong(returns))
    with pytest.raises(ValueError, match=r"\(3|3 traj|\(15, 4\)"):
        task.energy(torch.zeros(3, 6, 6), SPACE)


def test_networks_of_tasks_are_part_of_their_terms_and_come_out_of_sampling_unchanged():
    net = Net()
    before = net.weight.detach().clone()
    target = Gaussian(torch.zeros(SPACE.shape, dtype=torch.float64), 1.0)
    for task in (Value(net), Reward(net), Constraint(net)):
        bound = (task**2.0).bind(SPACE)
        assert any(p is net.weight for p in bound.parameters())
        sample(target * bound, chains=2, sampler=MCMC(HMC(0.1, num_leapfrog=2), warmup=2, draws=2), seed=0)
    assert torch.equal(net.weight, before)
    assert net.weight.requires_grad
    assert net.weight.grad is None


# ----------------------------------------------------------------- clamped


def test_start_goal_and_waypoint_fix_what_they_say_in_normalised_units():
    mask, value = Start((0.5, 1.5, 1.0, 0.3)).known(SPACE)
    assert mask.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    torch.testing.assert_close(value[0], torch.tensor([0.0, 1.0, 2.0, -1.0, 0.0, 0.0]))
    assert not value[1:].any()
    assert Goal((1.0, 1.0)).known(SPACE)[0].nonzero().tolist() == [[5, 0], [5, 1]]
    assert Goal((1.0, 1.0), at=2).known(SPACE)[0].nonzero().tolist() == [[2, 0], [2, 1]]
    mask, value = Waypoint({"ay": 3.0, "vx": 0.0}, at=-2).known(SPACE)
    assert mask.nonzero().tolist() == [[4, 2], [4, 5]]
    assert value[4, 5] == 1.0
    assert Reach((0, 0)).known(SPACE) is None


@pytest.mark.parametrize("name", ["start", "goal", "waypoint"])
def test_a_clamped_task_is_the_clamp_of_what_it_knows(name):
    task = TASKS[name]()
    mask, value = task.known(SPACE)
    bound = task.bind(SPACE)
    assert isinstance(bound, Clamp)
    x = states(3, dtype=torch.float32)
    assert bool(torch.isinf(bound.energy(x)).all())
    held = torch.where(mask, value, x)
    assert bound.energy(held).tolist() == [0.0, 0.0, 0.0]
    assert float(task.violation(SPACE.physical(held), SPACE).max()) < 1e-6
    assert float(task.energy(SPACE.physical(held), SPACE).max()) < 1e-12
    assert task.hard
    with pytest.raises(TypeError, match="Reach"):
        _ = task**2.0


def test_the_violation_of_a_goal_is_the_distance_to_it():
    tau = torch.zeros(1, 6, 6)
    tau[0, -1, :2] = torch.tensor([0.3, 0.4])
    assert float(Goal((0.0, 0.0)).violation(tau, SPACE)) == pytest.approx(0.5)


def test_sampling_with_clamped_tasks_holds_them():
    """A random walk between a start and a goal: half-way its mean is half-way, its variance that of the bridge."""
    space = TrajectorySpace(5, ("x", "y"), loc=(1, 1), scale=(2, 2))
    walk = term(lambda x: 0.5 * x.diff(dim=1).square().flatten(1).sum(1), kind="energy", event_shape=(5, 2))
    target = walk * Start((1.0, 1.0)).bind(space) * Goal((5.0, 3.0)).bind(space)
    draw = sample(target, chains=200, sampler=MCMC(HMC(0.5, num_leapfrog=6), warmup=50, draws=20), seed=0)
    x = space.physical(draw.x.flatten(0, 1))
    assert torch.equal(x[:, 0], torch.ones(4000, 2))
    torch.testing.assert_close(x[:, -1], torch.tensor([5.0, 3.0]).expand(4000, 2))
    middle = x[:, 2].double()
    # 4000 draws of standard deviation 2: standard error 0.032 of independent ones; 5 of them are a false alarm in 10⁶
    torch.testing.assert_close(middle.mean(0), torch.tensor([3.0, 2.0]).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(middle.var(0), torch.tensor([4.0, 4.0]).double(), atol=0.6, rtol=0)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Start((0, 0, 0)).bind(SPACE), ValueError, "start"),
        (lambda: Start((0, float("nan"))).bind(SPACE), ValueError, "finite"),
        (lambda: Goal((0, 0), at=6).bind(SPACE), ValueError, "tokens"),
        (lambda: Goal((0, 0), at="end"), TypeError, "token"),
        (lambda: Waypoint({"z": 1}, at=1).bind(SPACE), ValueError, "no column"),
        (lambda: Goal("home").bind(SPACE), TypeError, "vector"),
        (lambda: Start((0, 0), name=""), TypeError, "name"),
        (lambda: Reach((0, 0), 0.0), ValueError, "width"),
        (lambda: Reach((0, 0), at="last"), TypeError, "token"),
        (lambda: Reach((0, 0), at=7).bind(SPACE), ValueError, "tokens"),
        (lambda: Reward(3), TypeError, "function"),
        (lambda: Value(3), TypeError, "function"),
        (lambda: Value(Gaussian(torch.zeros(3), 1.0)).bind(SPACE), ValueError, "over"),
        (lambda: Dynamics(3, 1.0), TypeError, "function"),
        (lambda: Dynamics(step, 0.0), ValueError, "width"),
        (lambda: Dynamics(step, (1.0, 1.0)).bind(SPACE), ValueError, "one for each"),
        (lambda: Constraint(3), TypeError, "function"),
        (lambda: Constraint(step, -1.0), ValueError, "sharpness"),
        (lambda: Constraint(lambda t: t).energy(torch.zeros(1, 6, 6), SPACE), ValueError, "(N, J)"),
        (lambda: Bounds(0.0), ValueError, "low and high"),
        (lambda: Bounds(columns="vx"), ValueError, "needs low"),
        (lambda: Bounds().bind(TrajectorySpace(2, ("x", "y"))), ValueError, "has none"),
        (lambda: Bounds(1.0, 0.0).bind(SPACE), ValueError, "low < high"),
        (lambda: Bounds((0, 0, 0), 1.0).bind(SPACE), ValueError, "one for each"),
        (lambda: Bounds(0, float("inf")), ValueError, "finite"),
        (lambda: Bounds("a", "b"), TypeError, "number"),
        (lambda: Bounds(0, 1, columns="speed").bind(SPACE), ValueError, "no column"),
        (lambda: Bounds(margin=-1), ValueError, "margin"),
        (lambda: Smooth(0.0, 1.0), ValueError, "length"),
        (lambda: Smooth(1.0, -1.0), ValueError, "scale"),
        (lambda: Smooth(1.0, 1.0, kernel="cosine"), ValueError, "kernel"),
        (lambda: Smooth(1.0, 1.0, mean="goal"), ValueError, "line"),
        (lambda: Smooth(1.0, 1.0, mean=(1.0,)).bind(SPACE), ValueError, "mean"),
        (lambda: Smooth(1.0, 1.0, mean=(1.0, float("nan"))), ValueError, "finite"),
        (
            lambda: Smooth(100.0, 1.0, kernel="rbf").energy(torch.zeros(1, 6, 6), SPACE.resized(6)),
            ValueError,
            "singular",
        ),
        (lambda: Avoid([]), ValueError, "at least one"),
        (lambda: Avoid("disc:0,0,1", -0.1), ValueError, "margin"),
        (lambda: Avoid("disc:0,0,1", 0.1, 0.0), ValueError, "sharpness"),
        (lambda: Avoid("disc:0,0,1", radius=-1), ValueError, "radius"),
        (lambda: Avoid("disc:0,0,1", float("nan")), ValueError, "margin"),
        (lambda: Avoid("disc:0,0,1").bind(TrajectorySpace(2, ("x",), position=("x",))), ValueError, "plane"),
        (lambda: Avoid("disk:0,0,1"), ValueError, "disc:x,y,r"),
    ],
)
def test_wrong_tasks_are_refused(make, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(").replace(")", r"\)")):
        make()


def test_a_task_of_ones_own_needs_an_energy_alone():
    class Short(Task):
        def _energy(self, tau, space):
            return space.positions(tau).diff(dim=1).square().flatten(1).sum(1)

    tau = torch.arange(6.0)[None, :, None].expand(1, 6, 6)
    assert Short().energy(tau, SPACE).tolist() == [10.0]
    assert Short().name == "short"
    assert Short().violation(tau, SPACE).tolist() == [0.0]
    assert repr(Short() ** 2.0) == "Short('short') ** 2"
