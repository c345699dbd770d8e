"""Chains of transition energies: the Markov chain in closed form, LQR by energy minimisation, minima of a landscape."""

import math

import numpy as np
import pytest
import torch

from boltzmix.compose import HMC, SMC, Gaussian, GaussianMixture, sample, term
from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.models import Dynamics, Returns, TransitionEnergy, fit
from boltzmix.planners import Planner, TrajectorySpace, Value
from boltzmix.planners.known import Known
from boltzmix.planners.minimise import Minimise
from boltzmix.planners.tasks.transitions import TransitionChain, Transitions
from tests.contracts import Contract, assert_z, contract_cases

D = torch.float64
RHO, STEP = 0.9, math.sqrt(1 - 0.9**2)  # s' = ρ s + √(1 − ρ²) w keeps N(0, 1)


def pair(dim=1):
    """p(s, s') of the stationary chain in each of ``dim`` coordinates."""
    eye = torch.eye(dim, dtype=D)
    covariance = torch.cat([torch.cat([eye, RHO * eye], 1), torch.cat([RHO * eye, eye], 1)])
    return Gaussian(torch.zeros(2 * dim, dtype=D), covariance)


def single(dim=1):
    return Gaussian(torch.zeros(dim, dtype=D), 1.0)


def follow(x):
    """−log p(s' | s) up to a constant, of x = (s, s')."""
    return 0.5 * (x[:, 1] - RHO * x[:, 0]).square() / STEP**2


def small_dynamics():
    torch.manual_seed(0)
    return Dynamics(2, 1, hidden=8).to(D)


def push(x):
    """Any energy of (s, a, s') with two states and one action."""
    return 0.5 * (x[:, 3:] - x[:, :2] - 0.1 * x[:, 2:3]).square().sum(1) + 0.05 * x[:, :2].square().sum(1)


TERMS = {
    "joint": Contract(lambda: TransitionChain(pair(2), 4, 2), coarse=False),
    "quotient": Contract(lambda: TransitionChain(pair(2), 4, 2, overlap=single(2)), coarse=False),
    "static": Contract(
        lambda: TransitionChain(term(push, kind="energy", event_shape=(5,)), 4, 2, 1), convertible=False
    ),
    "dynamics": Contract(lambda: TransitionChain(small_dynamics(), 3, 2, 1)),
    "two tokens": Contract(lambda: TransitionChain(pair(), 2, 1, overlap=single()), coarse=False),
}


@pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------------------ the chain


def stationary(horizon):
    """Covariance ρ^|i − j| of the chain's states."""
    at = torch.arange(horizon, dtype=D)
    return RHO ** (at[:, None] - at).abs()


def quotient_is_the_chain():
    """∏ p(s, s') / ∏ p(s) is the Gaussian of covariance ρ^|i − j| exactly; without the quotient it is not."""
    truth = Gaussian(torch.zeros(5, dtype=D), stationary(5))
    x = torch.randn(8, 5, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    whole = TransitionChain(pair(), 5, 1, overlap=single())
    gap = whole.energy(x) - truth.energy(x[..., 0])
    assert torch.allclose(gap, torch.zeros(8, dtype=D), atol=1e-9)
    assert torch.allclose(whole.score(x)[..., 0], truth.score(x[..., 0]))
    doubled = TransitionChain(pair(), 5, 1).score(x)[..., 0]
    assert float((doubled - truth.score(x[..., 0])).abs().max()) > 0.1


def test_the_quotient_makes_it_the_markov_chain():
    quotient_is_the_chain()


def conditional_is_the_chain():
    """∏ p(s' | s) times p(s₀) is the same Gaussian, up to a constant."""
    truth = Gaussian(torch.zeros(4, dtype=D), stationary(4))
    x = torch.randn(8, 4, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    chain = TransitionChain(term(follow, kind="energy", event_shape=(2,)), 4, 1)
    gap = chain.energy(x) + 0.5 * x[:, 0, 0].square() - truth.energy(x[..., 0])
    assert float(gap.std()) < 1e-9


def conditional_is_the_chain_by_score():
    """The score is the gradient: each factor's reaches its own two tokens."""
    x = torch.randn(8, 4, 1, generator=torch.Generator().manual_seed(0), dtype=D).requires_grad_()
    chain = TransitionChain(term(follow, kind="energy", event_shape=(2,)), 4, 1)
    (slope,) = torch.autograd.grad(chain.energy(x).sum(), x)
    assert torch.allclose(chain.score(x.detach()), -slope)


def test_conditionals_make_it_the_markov_chain():
    conditional_is_the_chain()
    conditional_is_the_chain_by_score()


def the_last_action_is_standard_normal():
    """No factor holds it but its own: N(0, 1) at the data end, N(0, 1 + σ²) on the way."""
    moving = Gaussian(torch.zeros(3, dtype=D), 1.0)
    chain = TransitionChain(moving, 3, 1, 1)
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    assert torch.allclose(chain.score(x)[:, -1, 1], -x[:, -1, 1])
    assert torch.allclose(chain.score(x, 0.7)[:, -1, 1], -x[:, -1, 1] / 1.49)


def test_the_last_action_has_a_density_of_its_own():
    the_last_action_is_standard_normal()


def variables_or_vector():
    """A term over named variables and the same over the vector give one chain."""
    dynamics = small_dynamics()
    energy = TransitionEnergy(2, 1, base=dynamics, hidden=8).to(D)  # its tilt is zero before training
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    named, flat = TransitionChain(dynamics, 4, 2, 1), TransitionChain(energy, 4, 2, 1)
    assert torch.allclose(named.energy(x), flat.energy(x).detach())
    assert torch.allclose(named.score(x), flat.score(x).detach())
    by_hand = sum(
        dynamics.energy({"state": x[:, t, :2], "action": x[:, t, 2:], "next": x[:, t + 1, :2]}) for t in range(3)
    )
    assert torch.allclose(named.energy(x), by_hand + 0.5 * x[:, -1, 2].square())


def test_terms_over_variables_or_over_the_vector():
    variables_or_vector()


def noised_levels_reach_the_factors():
    """At σ a chain of noised factors is the sum of their noised energies, also with a level for each row."""
    chain = TransitionChain(pair(), 3, 1, overlap=single())
    x = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    wanted = pair().energy(x[:, :2, 0], 0.5) + pair().energy(x[:, 1:, 0], 0.5) - single().energy(x[:, 1], 0.5)
    assert torch.allclose(chain.energy(x, 0.5), wanted)
    rows = chain.energy(x, torch.tensor([0.5, 2.0], dtype=D))
    assert torch.allclose(rows[0], chain.energy(x[:1], 0.5)[0])
    assert torch.allclose(rows[1], chain.energy(x[1:], 2.0)[0])


def test_noise_levels_reach_the_factors():
    noised_levels_reach_the_factors()


def test_a_chain_that_is_held_at_both_ends_is_the_bridge():
    """SMC on the chain given its ends: mean and variance of the Gaussian bridge; 6 numbers at |z| < 5.

    4,000 particles; false-positive rate 4e-6.
    """
    mask = torch.tensor([[True], [False], [False], [False], [True]])
    value = torch.tensor([[1.5], [0.0], [0.0], [0.0], [-1.0]], dtype=D)
    chain = Known(TransitionChain(pair(), 5, 1, overlap=single()), mask, value)
    draw = sample(chain, 4_000, sampler=SMC(kernel=HMC(num_leapfrog=4)), seed=0, progress=False)
    covariance = stationary(5)
    free, known = [1, 2, 3], [0, 4]
    gain = covariance[free][:, known] @ torch.linalg.inv(covariance[known][:, known])
    mean = gain @ value[known, 0]
    rest = covariance[free][:, free] - gain @ covariance[known][:, free]
    z = (draw.x - mean) / rest.diagonal().sqrt()
    features = torch.cat([z, z**2 - 1], 1)
    assert_z(features.mean(0) / (features.std(0) / math.sqrt(4_000)), "moments of the bridge")


def test_other_horizons_share_the_factors():
    chain = TransitionChain(pair(), 3, 1, trajectory={"horizon": 3, "state": ["x"], "action": []})
    longer = chain.resized(6)
    assert longer.event_shape == (6, 1)
    assert longer.transition is chain.transition
    assert longer.trajectory["horizon"] == 6


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_transitions_as_a_task(dtype):
    """A task over physical plans has the energy of the chain over normalised ones, and weights multiply it."""
    space = TrajectorySpace(4, ("x", "y"), ("a",), loc=(1.0, 0.0, 0.0), scale=(2.0, 2.0, 1.0))
    dynamics = small_dynamics().to(dtype)
    task, chain = Transitions(dynamics), TransitionChain(dynamics, 4, 2, 1)
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    wanted = chain.energy(x.to(dtype)).double().detach()
    assert torch.allclose(task.energy(space.physical(x), space), wanted, rtol=1e-4)
    bound = (task**2.0).bind(space)
    assert torch.allclose(bound.energy(x.to(dtype)).double(), 2 * wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="have shape"):
        task.bind(TrajectorySpace(4, ("x", "y")))


def test_a_learned_value_guides_and_is_reported():
    """Returns, in float32, as a Value of a planner whose plans are judged in float64."""
    space = TrajectorySpace(4, ("x", "y"))
    torch.manual_seed(0)
    value = Returns((4, 2), hidden=8)
    with torch.no_grad():
        value.net.last.weight.normal_()
    planner = Planner(Gaussian(torch.zeros(4, 2), 1.0), space, tasks=[Value(value, name="value")])
    result = planner.plan([0.0, 0.0], [1.0, 1.0], seed=0)
    plans = torch.as_tensor(result.trajectories).float()
    assert torch.allclose(torch.as_tensor(result.energies["value"]).float(), value.energy(plans).detach(), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------ LQR

STEPS = 12
A = np.array([[1.0, 0.2], [0.0, 1.0]])
B = np.array([[0.02], [0.2]])
Q, R, FINAL = np.diag([1.0, 0.1]), np.array([[0.1]]), np.diag([10.0, 1.0])
START = np.array([1.0, -0.5])


def riccati():
    """Optimal cost from START: backward Riccati recursion over STEPS actions."""
    P = FINAL
    for _ in range(STEPS):
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ K)
    return float(START @ P @ START)


def cost_of(actions):
    """What actions cost in the true system, without noise."""
    s, total = START, 0.0
    for a in actions:
        total += s @ Q @ s + a @ R @ a
        s = A @ s + B @ a
    return float(total + s @ FINAL @ s)


def quadratic(x):
    """½ the cost of trajectories (N, STEPS + 1, 3)."""
    s, a = x[..., :2], x[:, :-1, 2:]
    running = torch.einsum("ntd,de,nte->n", s[:, :-1], torch.as_tensor(Q).to(x), s[:, :-1])
    final = torch.einsum("nd,de,ne->n", s[:, -1], torch.as_tensor(FINAL).to(x), s[:, -1])
    return 0.5 * (running + final + R[0, 0] * a.square().sum((1, 2)))


def planned(transition, dtype=D, temperature=1.0):
    """Actions of the trajectory of least energy: transitions at a temperature, the cost, and the start held."""
    chain = TransitionChain(transition, STEPS + 1, 2, 1)
    whole = chain ** (1 / temperature) * term(quadratic, kind="energy", event_shape=(STEPS + 1, 3))
    mask = torch.zeros(STEPS + 1, 3, dtype=torch.bool)
    mask[0, :2] = True
    value = torch.zeros(STEPS + 1, 3, dtype=dtype)
    value[0, :2] = torch.as_tensor(START)
    held = Known(chain, mask, value).held
    target = Known(whole, held)
    found = sample(target, 1, sampler=Minimise(steps=20, polish=300), seed=0, progress=False, dtype=dtype)
    return held.join(found.x)[0, :-1, 2:].double().numpy()


def linear_gaussian(width):
    """−log N(s'; A s + B a, width²)."""
    a, b = torch.as_tensor(A), torch.as_tensor(B)

    def energy(x):
        gap = x[:, 3:] - x[:, :2] @ a.T.to(x) - x[:, 2:3] @ b.T.to(x)
        return 0.5 * gap.square().sum(1) / width**2

    return term(energy, kind="energy", event_shape=(5,))


def test_minimising_a_linear_gaussian_energy_is_lqr():
    """The plan of least energy costs what the Riccati recursion says, within 5 %; a wide energy is not the same.

    Soft dynamics let a plan cheat: with a width of 1 the actions leave more to the noise than to the controls.
    """
    best = riccati()
    assert cost_of(planned(linear_gaussian(0.02))) == pytest.approx(best, rel=5e-3)
    assert cost_of(planned(linear_gaussian(0.05))) < 1.05 * best
    assert cost_of(planned(linear_gaussian(1.0))) > 1.1 * best


def test_learned_transition_energies_reach_the_cost_of_riccati():
    """Learned from transitions with noise 0.05: conditional energy on learned dynamics, within 5 % of the optimum."""
    rng = torch.Generator().manual_seed(0)
    s, a, w = (torch.randn(6_000, k, generator=rng) for k in (2, 1, 2))
    a = 2 * a
    y = s @ torch.as_tensor(A, dtype=torch.float32).T + a @ torch.as_tensor(B, dtype=torch.float32).T + 0.05 * w
    torch.manual_seed(0)
    base = Dynamics(2, 1, hidden=16)
    fit(base, (s, a, y), steps=400, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    model = TransitionEnergy(2, 1, base=base, hidden=24)
    fit(model, (s, a, y), steps=200, batch_size=256, lr=2e-3, ema=0.98, progress=False)
    best = riccati()
    assert cost_of(planned(base, torch.float32)) < 1.05 * best
    assert cost_of(planned(model, torch.float32)) < 1.05 * best


# ----------------------------------------------------------------------------------------------------------- minimising


def wells():
    """Two wells of different depth."""
    return GaussianMixture(torch.tensor([[-2.0], [2.0]], dtype=D), 0.1, [0.3, 0.7])


def minima_come_sorted():
    found = sample(wells().at(None), 6, sampler=Minimise(steps=40, polish=8, spread=2.0), seed=0, progress=False)
    energies = torch.tensor(found.info.extra["energies"], dtype=D)
    assert torch.allclose(wells().energy(found.x), energies)
    assert bool((energies.diff() >= -1e-9).all())
    assert float(found.x[0]) == pytest.approx(2.0, abs=1e-3)
    assert float(found.x[-1]) == pytest.approx(-2.0, abs=1e-3)


def test_minima_come_sorted_by_energy():
    minima_come_sorted()


def levels_lead_to_the_deeper_well():
    """From the shallow well: plain descent stays, going down the noise levels leads to the deep one."""
    start = torch.full((4, 1), -2.0, dtype=D)
    plain = sample(wells(), 4, init=start, sampler=Minimise(steps=50), seed=0, progress=False)
    assert bool((plain.x < 0).all())
    ladder = Minimise(steps=80, sigmas=(4.0, 2.0, 1.0, 0.5, 0.2), step_size=0.1)
    assert bool((sample(wells(), 4, init=start, sampler=ladder, seed=0, progress=False).x > 0).all())


def test_levels_lead_to_the_deeper_well():
    levels_lead_to_the_deeper_well()


def polish_reaches_the_bottom():
    stiff = Gaussian(torch.ones(4, dtype=D), torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=D))
    found = sample(stiff.at(None), 3, sampler=Minimise(steps=0, polish=100), seed=0, progress=False)
    assert float((found.x - 1.0).abs().max()) < 1e-4


def test_polish_reaches_the_bottom():
    polish_reaches_the_bottom()


def test_rows_descend_apart():
    """A row's path does not depend on the others, and the same seed gives the same minima."""
    x = torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    sampler = Minimise(steps=30, polish=5)
    both = [sample(wells(), 5, init=x, sampler=sampler, seed=0, progress=False).x for _ in range(2)]
    assert torch.equal(both[0], both[1])
    alone = torch.cat([sample(wells(), 1, init=r[None], sampler=sampler, seed=0, progress=False).x for r in x])
    assert torch.allclose(alone.sort(0).values, both[0].sort(0).values)


# ---------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TransitionChain(pair(), 1, 1), ValueError, "horizon"),
        (lambda: TransitionChain(pair(), 3, 2), ValueError, "have shape"),
        (lambda: TransitionChain(small_dynamics(), 3, 2), ValueError, "have shape"),
        (lambda: TransitionChain(follow, 3, 1), TypeError, "a term over"),  # pyright: ignore
        (lambda: TransitionChain(pair(), 3, 1, overlap=single(2)), ValueError, "overlap"),
        (lambda: TransitionChain(pair(), 3, 1, trajectory={"horizon": 4, "state": ["x"]}), ValueError, "the chain"),
        (lambda: Transitions(follow), TypeError, "a term"),  # pyright: ignore
        (lambda: Minimise(steps=0), ValueError, "does nothing"),
        (lambda: Minimise(step_size=0.0), ValueError, "step_size > 0"),
        (lambda: Minimise(sigmas=(1.0, 2.0)), ValueError, "decreasing"),
        (lambda: sample(wells().at(None), 2, sampler=Minimise(sigmas=(1.0,)), seed=0), ValueError, "static"),
        (
            lambda: sample(term(lambda x: -x, kind="score", event_shape=(1,)), 2, sampler=Minimise(), seed=0),
            MissingEnergy,
            "Minimise",
        ),
        (
            lambda: sample(wells(), 2, init=torch.full((2, 1), math.nan, dtype=D), sampler=Minimise(), seed=0),
            NonFinite,
            "init",
        ),
    ],
)
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=words):
        call()
