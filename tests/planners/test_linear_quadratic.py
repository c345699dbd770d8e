"""Plans of a linear-quadratic problem against the Riccati recursion and the smoother, and routes against counting.

The prior is a linear system with Gaussian noise and Gaussian actions, and tasks are quadratic costs, so that the plans'
density is Gaussian: with s the state, a the action and w the noise of the system,

    −log p(τ) = ½ Σ |a_t|²_R + ½ Σ |w_t|²_{W⁻¹} + ½ Σ |s_t − g|²_Q + ½ |s_H − g|²_T,   s_{t+1} = A s_t + B a_t + w_t.

Its mean is the optimal trajectory of a regulator whose controls are (a, w), by the Riccati recursion; means and
covariances are those of a Kalman filter and Rauch–Tung–Striebel smoother whose observations are the costs. Both are
computed here in numpy, from (A, B, W, R, Q, T) and without the library.
"""

import numpy as np
import torch

from boltzmix.compose import HMC, SMC, Annealed, Gaussian, GaussianMixture
from boltzmix.compose.variable import Variable
from boltzmix.compose.wrappers import Wrapper
from boltzmix.planners.planner import Planner
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks import Reach, Reward

H, DT = 10, 0.3
A = np.array([[1.0, DT], [0.0, 0.9]])
B = np.array([[0.5 * DT**2], [DT]])
W = np.diag([0.2, 0.3]) ** 2
R = np.array([[1.0]])
Q, T = np.diag([0.3, 0.1]), np.diag([8.0, 4.0])
GOAL, START = np.array([1.0, 0.0]), np.array([-0.5, 0.4])
SPACE = TrajectorySpace(H, ("x", "v"), ("a",), dt=DT, position=("x",), loc=(0.2, 0.0, 0.0), scale=(0.8, 0.5, 1.5))


def prior_precision() -> np.ndarray:
    """Precision of trajectories (H · 3,) before anything is asked, in physical units; their mean is 0."""
    size = 3 * H
    # Σ |a|²_R + Σ |s' − A s − B a|²_{W⁻¹} + |s_0|² is a quadratic form of the trajectory
    precision = np.zeros((size, size))
    precision[:2, :2] += np.eye(2)  # s_0 ~ N(0, 1), which a known start overrides
    for t in range(H):
        precision[3 * t + 2, 3 * t + 2] += R[0, 0]
        if t + 1 < H:
            residual = np.zeros((2, size))
            residual[:, 3 * (t + 1) : 3 * (t + 1) + 2] = np.eye(2)
            residual[:, 3 * t : 3 * t + 2] = -A
            residual[:, 3 * t + 2 : 3 * t + 3] = -B
            precision += residual.T @ np.linalg.inv(W) @ residual
    return precision


def gaussian_prior() -> Gaussian:
    """The same in the coordinates of the space."""
    covariance = np.linalg.inv(prior_precision())
    loc, scale = np.tile(SPACE.loc, H), np.tile(SPACE.scale, H)
    return Gaussian(torch.tensor(-loc / scale).reshape(SPACE.shape), torch.tensor(covariance / np.outer(scale, scale)))


def riccati() -> tuple[np.ndarray, np.ndarray]:
    """States (H, 2) and actions (H, 1) of the optimal trajectory with controls u = (a, w)."""
    wide = np.hstack([B, np.eye(2)])
    cost = np.block([[R, np.zeros((1, 2))], [np.zeros((2, 1)), np.linalg.inv(W)]])
    # the value function is ½ (s − g)ᵀ P (s − g) + pᵀ (s − g); around the goal the system drifts by (A − 1) g
    drift = (A - np.eye(2)) @ GOAL
    p_matrix, p_vector, gains = T, np.zeros(2), []
    for _ in range(H - 1):
        inner = cost + wide.T @ p_matrix @ wide
        gain = np.linalg.solve(inner, wide.T @ p_matrix @ A)
        shift = np.linalg.solve(inner, wide.T @ (p_matrix @ drift + p_vector))
        gains.append((gain, shift))
        closed = A - wide @ gain
        p_vector = closed.T @ (p_matrix @ (drift - wide @ shift) + p_vector) + gain.T @ cost @ shift
        p_matrix = Q + closed.T @ p_matrix @ closed + gain.T @ cost @ gain
    states, actions = [START - GOAL], []
    for gain, shift in reversed(gains):
        control = -gain @ states[-1] - shift
        actions.append(control[:1])
        states.append(A @ states[-1] + drift + wide @ control)
    actions.append(np.zeros(1))  # the last action leads nowhere
    return np.array(states) + GOAL, np.array(actions)


def smoother() -> tuple[np.ndarray, np.ndarray]:
    """Means (H, 3) and covariances (H, 3, 3) of tokens (s, a), given the start and all costs."""
    f = np.zeros((3, 3))
    f[:2, :2], f[:2, 2:] = A, B
    noise = np.zeros((3, 3))
    noise[:2, :2], noise[2:, 2:] = W, np.linalg.inv(R)
    mean, cov = np.array([*START, 0.0]), np.diag([0.0, 0.0, 1.0 / R[0, 0]])
    means, covs, predicted = [], [], []
    for t in range(H):
        if t:
            mean, cov = f @ mean, f @ cov @ f.T + noise
            predicted.append((mean, cov))
            weight = T if t == H - 1 else Q  # an observation of s with precision Q, whose outcome was g
            gain = cov[:, :2] @ np.linalg.inv(cov[:2, :2] + np.linalg.inv(weight))
            mean, cov = mean + gain @ (GOAL - mean[:2]), cov - gain @ cov[:2]
        means.append(mean)
        covs.append(cov)
    for t in reversed(range(H - 1)):
        ahead, spread = predicted[t]
        gain = covs[t] @ f.T @ np.linalg.inv(spread)
        means[t] = means[t] + gain @ (means[t + 1] - ahead)
        covs[t] = covs[t] + gain @ (covs[t + 1] - spread) @ gain.T
    return np.array(means), np.array(covs)


def cost(tau: torch.Tensor) -> torch.Tensor:
    """The quadratic costs of states, as a reward."""
    away = tau[..., :2] - torch.tensor(GOAL, dtype=tau.dtype)
    running = torch.einsum("nhi,ij,nhj->n", away[:, 1:-1], torch.tensor(Q, dtype=tau.dtype), away[:, 1:-1])
    return -0.5 * (running + torch.einsum("ni,ij,nj->n", away[:, -1], torch.tensor(T, dtype=tau.dtype), away[:, -1]))


def plans(n: int, seed: int) -> np.ndarray:
    """Draws of the composition, by annealed HMC on the product."""
    sampler = Annealed(levels=24, kernel=HMC(num_leapfrog=12), sweeps=4)
    planner = Planner(gaussian_prior(), SPACE, sampler=sampler, tasks=[Reward(cost)], candidates=n)
    return planner.plan(START, seed=seed).trajectories


def test_two_ways_to_the_closed_form_agree() -> None:
    states, actions = riccati()
    means, _ = smoother()
    np.testing.assert_allclose(means[:, :2], states, atol=1e-9)
    np.testing.assert_allclose(means[:, 2:], actions, atol=1e-9)


def test_plans_match_the_riccati_and_smoother_solutions() -> None:
    """2000 independent plans: 28 means and their covariances within tokens as z-scores.

    With exact draws the largest of 28 |z| exceeds 4.2 with probability 7e-4, that of the 54 entries of covariances
    (z-scores from the Gaussian's own fourth moments) 4.4 with 6e-4, and n |mean - exact|² in the posterior's precision
    is χ² with 28 degrees of freedom, outside of [12.5, 51] for 1 % of seeds.
    """
    n = 2000
    found = plans(n, seed=0)
    states, actions = riccati()
    _means, covs = smoother()
    spread = covs[:, range(3), range(3)]
    free = spread > 1e-12
    z = (found.mean(0) - np.concatenate([states, actions], 1))[free] / np.sqrt(spread[free] / n)
    assert np.abs(z).max() < 4.2
    precision = prior_precision()
    for t in range(1, H):
        precision[3 * t : 3 * t + 2, 3 * t : 3 * t + 2] += T if t == H - 1 else Q
    away = (found.mean(0) - np.concatenate([states, actions], 1)).reshape(-1)[2:]
    assert 12.5 < n * away @ precision[2:, 2:] @ away < 51.0
    scores = []
    for t in range(1, H):
        own = np.cov(found[:, t].T)
        error = np.sqrt((np.outer(spread[t], spread[t]) + covs[t] ** 2) / n)
        scores.append(((own - covs[t]) / error)[np.triu_indices(3)])
    scores = np.concatenate(scores)
    assert np.abs(scores).max() < 4.4
    assert (scores**2).mean() < 2.0


# ------------------------------------------------------------------------------------- routes


class Shaped(Wrapper):
    """A term over (H · D,) as one over (H, D)."""

    def __init__(self, inner, shape) -> None:
        super().__init__(inner)
        self.variables = Variable(shape)

    def _token(self):
        return ("shaped", self.event_shape)

    def _into(self, x, sigma):
        return x.flatten(1), sigma

    def _back(self, value, x):
        return value[0], None if value[1] is None else value[1].reshape(x.shape)

    def _rewrap(self, inner):
        return Shaped(inner, self.event_shape)

    def _sample(self, n, generator):
        return self.inner.sample(n, generator).reshape(n, *self.event_shape)


# A ring of eight cells around a pillar: from the left to the right there is a route above and one below.
CELLS = np.array([[-1, 0], [-1, 1], [0, 1], [1, 1], [1, 0], [1, -1], [0, -1], [-1, -1]], dtype=float)
TOKENS, SIZE = 6, 0.15
UP, STAY, DOWN = 0.4, 0.25, 0.35
TERRAIN, WIDTH = 0.25, 0.35


def walks() -> tuple[np.ndarray, np.ndarray]:
    """All walks (K, TOKENS) from cell 0 as unwrapped positions on the ring, and their probabilities."""
    found = [((0,), 1.0)]
    for _ in range(TOKENS - 1):
        found = [((*w, w[-1] + d), p * q) for w, p in found for d, q in ((1, UP), (0, STAY), (-1, DOWN))]
    return np.array([w for w, _ in found]), np.array([p for _, p in found])


def route_masses() -> np.ndarray:
    """p(route above), p(route below), p(neither reaches the goal's side) by forward dynamic programming.

    A cell is a Gaussian of standard deviation SIZE, so a linear cost TERRAIN · y of a token weighs it by
    exp(−TERRAIN · y) times a constant, and a goal of width w by exp(−|c − g|² / 2 (w² + SIZE²)).
    """
    reach = 2 * TOKENS + 1  # unwrapped places −TOKENS … TOKENS
    cell = lambda place: CELLS[(place - TOKENS) % 8]  # noqa: E731
    alpha = np.zeros(reach)
    alpha[TOKENS] = 1.0
    for t in range(1, TOKENS):
        spread = np.zeros(reach)
        for d, q in ((1, UP), (0, STAY), (-1, DOWN)):
            spread += q * np.roll(alpha, d)
        alpha = spread * np.array([np.exp(-TERRAIN * cell(k)[1]) for k in range(reach)])
        if t == TOKENS - 1:
            away = np.array([((cell(k) - CELLS[4]) ** 2).sum() for k in range(reach)])
            alpha *= np.exp(-away / (2 * (WIDTH**2 + SIZE**2)))
    places = np.arange(reach) - TOKENS
    masses = np.array([alpha[places > 0].sum(), alpha[places < 0].sum(), alpha[places == 0].sum()])
    return masses / masses.sum()


def route_of(trajectories: np.ndarray) -> np.ndarray:
    """Frequencies of routes: above, below, neither, by the angle that the nearest cells turn through."""
    nearest = ((trajectories[:, :, None] - CELLS) ** 2).sum(-1).argmin(-1)
    turns = (np.diff(nearest, axis=1) + 4) % 8 - 4
    total = turns.sum(1)
    return np.array([(total > 0).mean(), (total < 0).mean(), (total == 0).mean()])


def maze_planner(n: int) -> Planner:
    """A prior of all walks, each cell blurred, with a terrain that makes the route below cheaper, and a goal."""
    places, weights = walks()
    means = torch.tensor(CELLS[places % 8].reshape(len(places), -1))
    prior = Shaped(GaussianMixture(means, SIZE**2, torch.tensor(weights)), (TOKENS, 2))
    terrain = Reward(lambda tau: -TERRAIN * tau[:, 1:, 1].sum(1))
    return Planner(
        prior, TrajectorySpace(TOKENS, ("x", "y")), sampler=SMC(), tasks=[terrain, Reach(CELLS[4], WIDTH)], candidates=n
    )


def test_routes_are_taken_as_often_as_dynamic_programming_says() -> None:
    """2000 plans in a maze of two routes: total variation below 0.05.

    The standard error of a frequency of 2000 independent plans is 0.009, and with resampling some 0.015: more than 0.05
    for one seed in a thousand.
    """
    exact = route_masses()
    assert 0.1 < exact[0] < 0.4  # neither route is negligible, and the prior alone prefers the other one
    found = route_of(maze_planner(2000).plan(CELLS[0], seed=0).trajectories)
    assert 0.5 * np.abs(found - exact).sum() < 0.05


def test_the_prior_alone_takes_the_other_route() -> None:
    """Without the terrain the route above is the likelier one, so the masses are those of the product."""
    prior = maze_planner(400)
    bare = Planner(prior.prior, prior.space, sampler=SMC(), tasks=[Reach(CELLS[4], WIDTH)], candidates=400)
    found = route_of(bare.plan(CELLS[0], seed=1).trajectories)
    assert found[0] > found[1]
