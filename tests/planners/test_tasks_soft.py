"""Smooth, Reach, Bounds, Dynamics, Constraint and Value: closed forms."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from boltzmix.compose import HMC, MCMC, Gaussian, sample
from boltzmix.planners import Bounds, Constraint, Dynamics, Reach, Reward, Smooth, TrajectorySpace, Value

SPACE = TrajectorySpace(7, ("x", "y"), dt=0.3, loc=(1.0, -1.0), scale=(2.0, 2.0))
KERNELS = {
    "rbf": lambda r: math.exp(-0.5 * r * r),
    "matern32": lambda r: (1 + 3**0.5 * r) * math.exp(-(3**0.5) * r),
    "matern52": lambda r: (1 + 5**0.5 * r + 5 * r * r / 3) * math.exp(-(5**0.5) * r),
}


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(kernel, length, scale, space=SPACE):
    h = space.horizon
    k = [[scale**2 * KERNELS[kernel](abs(i - j) * space.dt / length) for j in range(h)] for i in range(h)]
    return torch.tensor(k, dtype=torch.float64)


# ----------------------------------------------------------------- smooth


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mean", ["place", "tokens"])
def test_smooth_with_a_mean_is_the_density_of_its_gaussian_process(kernel, mean):
    m = torch.tensor([0.4, -0.7], dtype=torch.float64).expand(7, 2) if mean == "place" else rows(7, 2, seed=3)
    task = Smooth(0.5, 0.8, kernel=kernel, mean=m[0] if mean == "place" else m)
    tau, cov = rows(6, 7, 2), matrix(kernel, 0.5, 0.8)
    expected = sum(-MultivariateNormal(m[:, j], cov).log_prob(tau[..., j]) for j in range(2))
    torch.testing.assert_close(task.energy(tau, SPACE), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(task.covariance(SPACE), cov)


@pytest.mark.parametrize("kernel", KERNELS)
def test_smooth_about_an_unknown_line_is_the_limit_of_a_wide_prior_of_lines(kernel):
    """½ pᵀ (K + κ B Bᵀ)⁻¹ p as κ → ∞, for B the constant and the straight line."""
    tau, cov = rows(6, 7, 2), matrix(kernel, 0.5, 0.8)
    lines = torch.stack([torch.ones(7), torch.arange(7.0)], 1).double()
    wide = torch.linalg.inv(cov + 1e6 * lines @ lines.mT)
    expected = 0.5 * torch.einsum("nhj,hk,nkj->n", tau, wide, tau)
    task = Smooth(0.5, 0.8, kernel=kernel)
    torch.testing.assert_close(task.energy(tau, SPACE), expected, rtol=1e-4, atol=1e-4)
    moved = tau + (lines @ rows(2, 2, seed=4))
    torch.testing.assert_close(task.energy(moved, SPACE), task.energy(tau, SPACE), rtol=1e-8, atol=1e-8)


def test_smooth_of_two_tokens_or_one_is_free():
    for horizon in (1, 2):
        task = Smooth(0.5, 0.8)
        assert task.energy(rows(3, horizon, 2), SPACE.resized(horizon)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore::boltzmix.compose.SamplingWarning")  # many short chains: R-hat has 10 draws of each
def test_sampling_smooth_gives_its_covariance_in_physical_units():
    """Alone, and times a Gaussian, whose precision adds.

    4000 draws of 14 coordinates: a covariance entry of two unit variances has a standard error of 0.022 from
    independent draws; 5 of these, over 210 entries, are a false alarm with probability 1e-4, and chains get 40 % more.
    """
    task = Smooth(0.5, 0.8, mean=(1.0, -1.0))
    k = torch.kron(matrix("matern52", 0.5, 0.8), torch.eye(2, dtype=torch.float64))
    wide = Gaussian(torch.zeros(SPACE.shape, dtype=torch.float64), 1.0)  # in normalised units: 2 m
    for target, cov in (
        (task.bind(SPACE), k),
        (task.bind(SPACE) * wide, torch.linalg.inv(torch.linalg.inv(k) + torch.eye(14) / 4)),
    ):
        draw = sample(target, chains=400, sampler=MCMC(HMC(0.06, num_leapfrog=12), warmup=40, draws=10), seed=1)
        x = SPACE.physical(draw.x.flatten(0, 1)).flatten(1)
        assert float((x.mean(0).reshape(7, 2) - torch.tensor([1.0, -1.0])).abs().max()) < 0.8 * 7 / 4000**0.5
        assert float((torch.cov(x.T) - cov).abs().max()) < 0.64 * 7 * 0.022


def test_one_smooth_serves_several_spaces():
    task, tau = Smooth(0.5, 0.8, mean=(0.0, 0.0)), rows(2, 7, 2)
    for dt in (0.3, 0.6, 0.3):
        space = TrajectorySpace(7, ("x", "y"), dt=dt)
        cov = matrix("matern52", 0.5, 0.8, space)
        expected = sum(-MultivariateNormal(torch.zeros(7).double(), cov).log_prob(tau[..., j]) for j in range(2))
        torch.testing.assert_close(task.energy(tau, space), expected)


def test_smooth_keeps_float32_where_the_matrix_is_stiff():
    space = TrajectorySpace(128, ("x", "y"), dt=0.05)
    tau = rows(3, 128, 2).cumsum(1) * 0.01
    task = Smooth(1.0, 1.0)
    exact = task.energy(tau, space)
    torch.testing.assert_close(task.energy(tau.float(), space).double(), exact, rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------- reach


def test_reach_at_a_token_is_a_gaussian_there():
    tau = rows(5, 7, 2)
    energy = Reach((0.5, 0.2), 0.3, at=2).energy(tau, SPACE)
    expected = ((tau[:, 2] - torch.tensor([0.5, 0.2])) ** 2).sum(1) / (2 * 0.09)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(
        Reach((0.5, 0.2), 0.3).energy(tau, SPACE), Reach((0.5, 0.2), 0.3, at=6).energy(tau, SPACE)
    )


def test_reach_anywhere_looks_along_the_segments():
    tau = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 1.0]]], dtype=torch.float64)
    space = TrajectorySpace(2, ("x", "y"))
    task = Reach((1.0, 0.0), 0.5, at="any")
    assert task.energy(tau, space).tolist() == pytest.approx([0.0, 2.0])
    assert task.violation(tau, space).tolist() == pytest.approx([0.0, 0.5])


def test_reach_anywhere_is_the_mean_of_densities_over_segments():
    tau, goal = rows(5, 7, 2), torch.tensor([0.5, 0.2], dtype=torch.float64)
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    squares = [((torch.lerp(tau[:, k, None], tau[:, k + 1, None], u) - goal) ** 2).sum(-1).amin(1) for k in range(6)]
    expected = -(torch.stack([(-s / (2 * 0.25)).exp() for s in squares], 1).mean(1).log())
    torch.testing.assert_close(Reach(goal, 0.5, at="any").energy(tau, SPACE), expected, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------- bounds, dynamics, constraints


def test_bounds_penalise_what_is_outside_by_its_distance():
    space = TrajectorySpace(2, ("x", "y"), bounds=((-1, 1), (0, 2)))
    tau = torch.tensor([[[0.0, 1.0], [0.9, 0.1]], [[1.5, 1.0], [-1.25, 3.0]]])
    assert Bounds(sharpness=10.0).energy(tau, space).tolist() == pytest.approx([0.0, 10 * (0.5 + 0.25 + 1.0)])
    assert Bounds().violation(tau, space).tolist() == pytest.approx([0.0, 1.0])
    assert Bounds(0, 2, columns="y").violation(tau, space).tolist() == pytest.approx([0.0, 1.0])
    assert Bounds((-9, -9), (9, 1.5)).violation(tau, space).tolist() == pytest.approx([0.0, 1.5])
    inside = Bounds(sharpness=10.0, margin=0.2).energy(tau, space)
    assert float(inside[0]) == pytest.approx(10 * 2 * 0.1**2 / 0.4)


def test_tokens_inside_bounds_keep_whole_segments_inside():
    tau = rows(50, 7, 2)
    violation = Bounds(-1.0, 1.0).violation(tau, SPACE)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    dense = torch.stack([torch.lerp(tau[:, k, None], tau[:, k + 1, None], u) for k in range(6)], 1)
    torch.testing.assert_close(violation, (dense.abs() - 1.0).flatten(1).amax(1).clamp(min=0.0))


CAR = TrajectorySpace(5, ("x", "y", "v"), ("a",), dt=0.5)


def car(s, a):
    return torch.stack([s[:, 0] + 0.5 * s[:, 2], s[:, 1], s[:, 2] + 0.5 * a[:, 0]], 1)


def test_dynamics_is_the_gaussian_of_its_steps():
    tau, width = rows(6, 5, 4), (0.5, 0.1, 2.0)
    expected = torch.zeros(6, dtype=torch.float64)
    worst = torch.zeros(6, dtype=torch.float64)
    for h in range(4):
        error = (tau[:, h + 1, :3] - car(tau[:, h, :3], tau[:, h, 3:])) / torch.tensor(width)
        expected += 0.5 * (error**2).sum(1)
        worst = torch.maximum(worst, error.abs().amax(1))
    task = Dynamics(car, width)
    torch.testing.assert_close(task.energy(tau, CAR), expected)
    torch.testing.assert_close(task.violation(tau, CAR), worst)


def test_a_rollout_obeys_its_dynamics():
    tau = rows(3, 5, 4)
    for h in range(4):
        tau[:, h + 1, :3] = car(tau[:, h, :3], tau[:, h, 3:])
    assert float(Dynamics(car, 0.01).energy(tau, CAR).abs().max()) < 1e-20
    assert Dynamics(lambda s: s, 0.1).energy(torch.ones(2, 7, 2), SPACE).tolist() == [0.0, 0.0]


def test_a_constraint_is_exceeded_by_what_it_says():
    tau = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [3.0, 0.0]]])
    space = TrajectorySpace(2, ("x", "y"))

    def speed(tau):
        return torch.linalg.vector_norm(tau.diff(dim=1), dim=-1) - 2.0

    task = Constraint(speed, 5.0)
    assert task.name == "speed"
    assert task.energy(tau, space).tolist() == pytest.approx([0.0, 5.0])
    assert task.violation(tau, space).tolist() == pytest.approx([0.0, 1.0])


# ----------------------------------------------------------------- rewards


def test_a_linear_reward_shifts_a_gaussian_by_its_gradient():
    """exp(w r) times N(0, I) in normalised units: the mean moves by w ∂r/∂x = w · scale · ∂r/∂τ."""
    prior = Gaussian(torch.zeros(SPACE.shape, dtype=torch.float64), 1.0)
    target = prior * (Reward(lambda tau: tau[..., 0].sum(1)) ** 0.25).bind(SPACE)
    centre = torch.zeros(1, *SPACE.shape, dtype=torch.float64)
    centre[..., 0] = 0.5
    torch.testing.assert_close(target.score(centre), torch.zeros_like(centre))


def test_a_value_is_read_in_the_samplers_units_and_may_take_the_noise_level():
    x = rows(4, 7, 2)
    plain = Value(lambda x: x.flatten(1).sum(1)).bind(SPACE)
    torch.testing.assert_close(plain.energy(x), -x.flatten(1).sum(1))
    assert plain.path == "static"
    noisy = Value(lambda x, sigma: x.flatten(1).sum(1) / (1 + sigma))
    assert noisy.bind(SPACE).path == "annealed"
    torch.testing.assert_close(noisy.bind(SPACE).energy(x, 1.0), -0.5 * x.flatten(1).sum(1))
    torch.testing.assert_close(noisy.energy(SPACE.physical(x), SPACE), -x.flatten(1).sum(1))
    assert Value(lambda x, sigma=None: x.flatten(1).sum(1)).bind(SPACE).path == "static"
    gauss = Gaussian(torch.zeros(SPACE.shape, dtype=torch.float64), 1.0)
    assert Value(gauss).bind(SPACE) is gauss
