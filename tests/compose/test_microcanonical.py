"""Microcanonical Langevin, unadjusted and adjusted, and how it is tuned.

Statistical checks compare with exact or predicted moments by z-scores; seeds are fixed, and a correct kernel fails a
check with probability ``FALSE_POSITIVES``, shared among its statistics (Bonferroni). Laws that hold as D grows are
checked to a tolerance that the finite D explains.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from boltzmix.compose import MCMC, Microcanonical, MicrocanonicalLangevin, sample, window_adaptation
from boltzmix.compose.adaptation.microcanonical import EnergyVariance, phases
from boltzmix.compose.callables import term
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import GHMC, HMC, Dense, Noise, State, Tune, Underdamped, draw_noise
from boltzmix.compose.kernels.microcanonical import INTEGRATORS, MicrocanonicalInfo, kick, unit
from boltzmix.compose.kernels.velocity import VelocityState
from boltzmix.compose.samplers import base
from tests.kernel_contracts import bound
from tests.kernel_contracts import seeded as generator

CHAINS = 20_000


def normal(*shape, seed):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quartic(dim=3, score_only=False):
    """A target that is no Gaussian, over any number of coordinates."""

    def energy(x):
        return (x**4).sum(-1) / 4 + 0.3 * (x[:, 1:] * x[:, :-1]).sum(-1)

    def score(x):
        left = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        right = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return -(x**3) - 0.3 * (left + right)

    made = term(score, kind="score", event_shape=dim) if score_only else term(energy, kind="energy", event_shape=dim)
    return ravel(made, dtype=torch.float64)


def advance(kernel, target, state, size):
    """A step of the integrator and its energy error."""
    end, gain, work = kernel._integrate(target, state, kernel.tune(state.x), size)
    known = torch.isfinite(state.energy)
    return end, gain + torch.where(known, end.energy - state.energy, work)


# ------------------------------------------------------------- the kick


def test_a_kick_is_the_flow_of_the_velocity_and_its_jacobian():
    for seed, size in ((1, 0.3), (2, 2.0), (3, 6.0)):
        u, score = unit(normal(1, 4, seed=seed)), normal(1, 4, seed=seed + 10) * 3
        g = score[0].numpy()

        def flow(_, v, g=g):
            return (g - v * (v @ g)) / 3

        end = solve_ivp(flow, (0, size), u[0].numpy(), rtol=1e-11, atol=1e-12).y[:, -1]
        found, gain = kick(u, score, torch.tensor(size, dtype=torch.float64))
        torch.testing.assert_close(found[0], torch.as_tensor(end), rtol=1e-7, atol=1e-8)
        # the Jacobian of the map of the sphere, in orthonormal frames of its tangent spaces
        jacobian = torch.autograd.functional.jacobian(
            lambda v, s=score, h=size: kick(unit(v), s, torch.tensor(h, dtype=torch.float64))[0].sum(0), u
        )
        assert isinstance(jacobian, torch.Tensor)
        frames = [torch.linalg.svd(v)[2][1:] for v in (u, found)]
        area = (frames[1] @ jacobian[:, 0, :] @ frames[0].T).det().abs()
        assert float(area.log()) == pytest.approx(-float(gain), abs=1e-8)


def test_steep_scores_do_not_overflow_and_no_score_does_nothing():
    u = unit(normal(3, 5, seed=4)).float()
    score = torch.stack([1e15 * torch.ones(5), torch.zeros(5), -20.0 * u[2]])
    found, gain = kick(u, score, torch.tensor(1.0))
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(gain).all())
    torch.testing.assert_close(found[0], torch.full((5,), 5**-0.5))
    torch.testing.assert_close(found[1], u[1])
    torch.testing.assert_close(found[2], u[2])  # against the score there is nowhere to turn
    assert float(gain[2]) == pytest.approx(-20.0, rel=1e-4)
    assert float(gain[1]) == 0.0
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_the_dynamics_conserve_energy_to_the_order_of_the_integrator():
    # second order: over a fixed time the energy error falls as ε²
    for name in INTEGRATORS:
        errors = []
        for steps in (20, 40):
            target, total = quartic(), torch.zeros(100, dtype=torch.float64)
            kernel = MicrocanonicalLangevin(step_size=1.0 / steps, length=1.0, integrator=name)
            state = kernel.init(target, normal(100, 3, seed=5), generator(6))
            for _ in range(steps):
                state, change = advance(kernel, target, state, torch.tensor(1.0 / steps))
                total = total + change
            errors.append(float(total.square().mean().sqrt()))
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.15)
        assert errors[1] < 1e-3


@pytest.mark.parametrize("integrator", list(INTEGRATORS))
def test_a_step_and_its_energy_error_are_reversible(integrator):
    target, size = quartic(5), torch.tensor(0.7, dtype=torch.float64)
    kernel = MicrocanonicalLangevin(step_size=0.7, integrator=integrator)
    state = kernel.init(target, normal(50, 5, seed=7), generator(8))
    assert isinstance(state, VelocityState)
    state = replace(state, energy=target.energy(state.x))
    end, error = advance(kernel, target, state, size)
    assert float(error.abs().max()) > 0.01
    back, again = advance(kernel, target, replace(end, velocity=-end.velocity), size)
    torch.testing.assert_close(back.x, state.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(-back.velocity, state.velocity, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, -error, rtol=0, atol=1e-9)


def test_the_energy_error_is_the_volume_and_the_density():
    """exp(−ΔE) is the ratio of densities times the Jacobian of a step, by autograd on positions and velocities."""
    target, size = quartic(3), torch.tensor(0.9, dtype=torch.float64)
    kernel = MicrocanonicalLangevin(step_size=0.9)
    x, u = normal(1, 3, seed=9), unit(normal(1, 3, seed=10))
    frame = torch.linalg.svd(u)[2][1:]

    class Differentiable:
        has_energy = True

        def score(self, x):
            return self.energy_and_score(x)[1]

        def energy_and_score(self, x):
            left = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            right = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
            energy = (x**4).sum(-1) / 4 + 0.3 * (x[:, 1:] * x[:, :-1]).sum(-1)
            return energy, -(x**3) - 0.3 * (left + right)

    smooth = Differentiable()

    def whole(z):
        velocity = unit(u + z[None, 3:] @ frame)
        energy, score = smooth.energy_and_score(z[None, :3])
        state = VelocityState(z[None, :3], energy, score, velocity)
        end, error = advance(kernel, smooth, state, size)
        return torch.cat([end.x[0], end.velocity[0]]), error[0]

    start = torch.cat([x[0], torch.zeros(2, dtype=torch.float64)])
    end, error = whole(start)
    jacobian = torch.autograd.functional.jacobian(lambda z: whole(z)[0], start)
    assert isinstance(jacobian, torch.Tensor)
    arrival = torch.linalg.svd(end[None, 3:])[2][1:]
    square = torch.cat([jacobian[:3], arrival @ jacobian[3:]])
    change = target.energy(end[None, :3]) - target.energy(x)
    assert float(square.det().abs().log() - change) == pytest.approx(-float(error), abs=1e-9)


# --------------------------------------------------------- unadjusted: bias


def limit(h, integrator):
    """E|x|²/D of a unit Gaussian as D grows: a step that starts with x·u = 0 ends with the same |x|²."""

    def missed(rho):
        if integrator == "leapfrog":
            return 2 * math.sqrt(rho) * math.tanh(0.5 * h * math.sqrt(rho)) - h
        # to the middle kick's middle, where x·u = 0 again: c = −x·u/|x| obeys artanh c += δ in kicks
        b = INTEGRATORS[integrator][0]
        inward = math.sqrt(rho) * math.tanh(b * h * math.sqrt(rho))
        middle = rho - h * inward + 0.25 * h * h
        return math.atanh((0.5 * h - inward) / math.sqrt(middle)) - (0.5 - b) * h * math.sqrt(middle)

    return brentq(missed, 0.5, 2.0)


def radius(dim, h, integrator, steps, chains, seed):
    """Measured E|x|²/D and E[ΔE²]/D on a unit Gaussian; the first third is left out."""
    p = Gaussian(torch.zeros(dim, dtype=torch.float64), 1.0)
    target, source = ravel(p), generator(seed)
    kernel = MicrocanonicalLangevin(step_size=h * math.sqrt(dim), integrator=integrator)
    state, found, errors = kernel.init(target, p.sample(chains, source), source), [], []
    for k in range(steps):
        state, info = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
        if 3 * k >= steps:
            assert isinstance(info, MicrocanonicalInfo)
            assert info.energy_error is not None
            found.append((state.x**2).mean(1))
            errors.append((info.energy_error**2).mean() / dim)
    rho = torch.stack(found).mean(0)  # one number for each chain
    return float(rho.mean()), float(rho.std()) / math.sqrt(chains), float(torch.stack(errors).mean())


@pytest.mark.parametrize(("integrator", "h"), [("leapfrog", 1.0), ("mclachlan", 1.5)])
def test_the_bias_on_a_gaussian_tends_to_the_stated_one(integrator, h):
    expected = limit(h, integrator)
    assert abs(expected - 1) > 0.015
    if integrator == "leapfrog":
        y = 0.5 * h * math.sqrt(expected)
        assert y * math.tanh(y) == pytest.approx(0.25 * h * h)
        assert expected == pytest.approx(1 + h * h / 12, abs=h**4 / 40)
    dim = 200
    rho, error, _ = radius(dim, h, integrator, steps=90, chains=300, seed=11)
    # the finite D adds a part of order 1/D to the bias itself
    assert abs(rho - expected) < bound(1) * error + 5 * abs(expected - 1) / dim


def test_the_energy_variance_grows_as_the_sixth_power():
    for integrator, constant in (("leapfrog", 1 / 144), ("mclachlan", 1.19e-4)):
        values = {h: radius(256, h, integrator, 24, 200, 12)[2] for h in (0.2, 0.4)}
        assert math.log2(values[0.4] / values[0.2]) == pytest.approx(6.0, abs=0.15)
        assert values[0.2] / 0.2**6 == pytest.approx(constant, rel=0.08)


def test_directions_are_forgotten_over_the_length():
    # on a flat target u_n · u_0 = e^{−nε/L} as D grows
    flat = ravel(term(lambda x: 0.0 * x.sum(-1), kind="energy", event_shape=300), dtype=torch.float64)
    kernel = MicrocanonicalLangevin(step_size=0.5, length=2.0)
    source = generator(13)
    first = kernel.init(flat, torch.zeros(500, 300, dtype=torch.float64), source)
    state = first
    for _ in range(3):
        state, _ = kernel.step(flat, state, kernel.tune(state.x), kernel.noise(state, source))
    assert isinstance(first, VelocityState)
    assert isinstance(state, VelocityState)
    assert float((first.velocity * state.velocity).sum(1).mean()) == pytest.approx(math.exp(-0.75), abs=0.01)
    torch.testing.assert_close(state.velocity.norm(dim=1), torch.ones(500, dtype=torch.float64))


def test_a_score_alone_will_do_and_its_energy_error_is_exact_on_a_gaussian():
    variances = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    p = Gaussian(torch.zeros(3, dtype=torch.float64), variances)
    blind = ravel(term(lambda x: -x / variances, kind="score", event_shape=3), dtype=torch.float64)
    kernel = MicrocanonicalLangevin(step_size=1.0)
    x = p.sample(50, generator(14))
    noise, errors = draw_noise(x, generator(15)), []
    for target in (ravel(p), blind):
        state = kernel.init(target, x, generator(16))
        for _ in range(2):  # the second step knows energies where there are any
            expected = advance(kernel, target, state, kernel.tune(x).step_size)[1]
            state, info = kernel.step(target, state, kernel.tune(x), noise)
        assert isinstance(info, MicrocanonicalInfo)
        errors.append(info.energy_error)
        torch.testing.assert_close(info.energy_error, expected)
        assert bool(torch.isfinite(state.energy).all()) == target.has_energy
    torch.testing.assert_close(errors[0], errors[1])
    p, adjusted = term(lambda x: -x, kind="score", event_shape=2), MicrocanonicalLangevin(step_size=0.1, adjusted=True)
    with pytest.raises(MissingEnergy):
        sample(p, chains=2, sampler=MCMC(adjusted, draws=4))


def test_energies_of_a_target_that_has_changed_are_taken_anew():
    kernel = MicrocanonicalLangevin(step_size=0.5)
    one, two = ravel(Gaussian(torch.zeros(3), 1.0)), ravel(Gaussian(torch.ones(3), 0.3))
    state = kernel.init(one, torch.randn(5, 3, generator=generator(17)), generator(18))
    state, _ = kernel.step(one, state, kernel.tune(state.x), kernel.noise(state, generator(19)))
    fresh = kernel.refresh(two, state)
    energy, score = two.energy_and_score(state.x)
    torch.testing.assert_close(fresh.energy, energy)
    torch.testing.assert_close(fresh.score, score)


# --------------------------------------------------- adjusted: exactness

ADJUSTED = [
    (MicrocanonicalLangevin(step_size=2.0, length=4.5, adjusted=True), 0.8, 12),
    (MicrocanonicalLangevin(step_size=1.2, length=3.0, adjusted=True, integrator="leapfrog"), 0.8, 12),
    (MicrocanonicalLangevin(step_size=2.6, length=1.0, adjusted=True), 0.75, 20),
]


@pytest.mark.parametrize(("kernel", "acceptance", "steps"), ADJUSTED, ids=["mclachlan", "leapfrog", "single"])
def test_exact_draws_of_a_gaussian_stay_exact(kernel, acceptance, steps):
    variances = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    p = Gaussian(torch.zeros(3, dtype=torch.float64), variances)
    target, source, rate = ravel(p), generator(21), 0.0
    state = kernel.init(target, p.sample(CHAINS, generator(20)), source)
    for _ in range(steps):
        state, info = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
        rate += float(info.acceptance.mean()) / steps
    assert rate == pytest.approx(acceptance, abs=0.05)
    z = [
        state.x.mean(0) / (variances / CHAINS).sqrt(),
        ((state.x**2).mean(0) / variances - 1) * math.sqrt(CHAINS / 2),
        (state.x[:, [0, 0, 1]] * state.x[:, [1, 2, 2]]).mean(0)
        / (variances[[0, 0, 1]] * variances[[1, 2, 2]] / CHAINS).sqrt(),
    ]
    assert float(torch.cat(z).abs().max()) < bound(9)


def test_exact_draws_of_a_star_stay_exact():
    """No Gaussian: |x| and the angle of a density with five arms, whose moments are known."""
    arms, depth = 5, 0.8

    def energy(x):  # p ∝ exp(−|x|²/2) (1 + depth cos 5φ), cos 5φ as a polynomial over |x|⁵
        a, b = x[:, 0], x[:, 1]
        cosine = (a**5 - 10 * a**3 * b**2 + 5 * a * b**4) / (x * x).sum(-1) ** 2.5
        return 0.5 * (x * x).sum(-1) - (1 + depth * cosine).log()

    target, source = ravel(term(energy, kind="energy", event_shape=2), dtype=torch.float64), generator(22)
    angle = 2 * math.pi * torch.rand(8 * CHAINS, generator=source, dtype=torch.float64)
    keep = (
        torch.rand(8 * CHAINS, generator=source, dtype=torch.float64) * (1 + depth) < 1 + depth * (arms * angle).cos()
    )
    angle = angle[keep][:CHAINS]
    r = (-2 * torch.rand(CHAINS, generator=source, dtype=torch.float64).log()).sqrt()
    x = r[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    kernel = MicrocanonicalLangevin(step_size=0.6, length=1.2, adjusted=True)
    state, rate = kernel.init(target, x, source), 0.0
    for _ in range(10):
        state, info = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
        rate += float(info.acceptance.mean()) / 10
    assert 0.5 < rate < 0.95
    cosine = (arms * torch.atan2(state.x[:, 1], state.x[:, 0])).cos()
    square = (state.x**2).sum(1)
    z = [
        (float(cosine.mean()) - depth / 2) / math.sqrt((0.5 - depth**2 / 4) / CHAINS),
        (float(square.mean()) - 2) / math.sqrt(4 / CHAINS),
        (float((square * cosine).mean()) - depth) / math.sqrt((4 - depth**2) / CHAINS),
    ]
    assert max(map(abs, z)) < bound(3)


def test_a_trajectory_is_accepted_by_its_whole_energy_error_and_its_end_leads_back():
    kernel, target = MicrocanonicalLangevin(step_size=0.8, length=2.4, adjusted=True), quartic(4)
    state = kernel.init(target, normal(300, 4, seed=23), generator(24))
    noise = draw_noise(state.x, generator(25))
    after, info = kernel.step(target, state, kernel.tune(state.x), noise)
    assert type(after) is State
    assert isinstance(info, MicrocanonicalInfo)
    assert info.energy_error is not None
    torch.testing.assert_close(info.acceptance, (-info.energy_error).clamp(max=0).exp())
    assert torch.equal(info.accepted, noise.uniform < info.acceptance)
    assert 0.1 < float(info.accepted.double().mean()) < 0.97
    torch.testing.assert_close(after.energy, target.energy(after.x))
    # accepted with probability min(1, r), the way back has min(1, 1/r)
    moving, total = VelocityState(state.x, state.energy, state.score, unit(noise.normal)), 0.0
    count = int((noise.jitter[0] * (2 * 3 - 1)).ceil())
    for _ in range(count):
        moving, change = advance(kernel, target, moving, kernel.tune(state.x).step_size)
        total = total + change
    torch.testing.assert_close(total, info.energy_error)
    taken = info.accepted
    torch.testing.assert_close(after.x[taken], moving.x[taken])
    back = replace(noise, normal=-moving.velocity, uniform=torch.zeros_like(noise.uniform))
    start = State(moving.x, moving.energy, moving.score)
    home, again = kernel.step(target, start, kernel.tune(state.x), back)
    torch.testing.assert_close(home.x, state.x, rtol=0, atol=1e-9)
    assert isinstance(again, MicrocanonicalInfo)
    torch.testing.assert_close(again.energy_error, -info.energy_error, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 1.7, 4.2])
def test_the_number_of_steps_has_the_mean_that_the_length_asks_for(ratio):
    kernel, target = MicrocanonicalLangevin(step_size=0.1, length=0.1 * ratio, adjusted=True), quartic()
    state, counts = kernel.init(target, normal(2, 3, seed=26)), []
    for u in torch.linspace(0.0005, 0.9995, 1000):
        jitter = torch.full((2,), float(u), dtype=torch.float64)
        noise = Noise(torch.ones(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64), jitter)
        if len(counts) % 20 == 0:  # the cost of the loop: every twentieth is walked
            _, info = kernel.step(target, state, kernel.tune(state.x), noise)
            assert info.num_leapfrog is not None
            counts.append(float(info.num_leapfrog[0]) / 2)
        else:
            counts.append(max(1.0, math.ceil(float(u) * (2 * ratio - 1))))
    s = 2 * ratio - 1  # ceil(u s) has mean (⌊s⌋+1)(1 − ⌊s⌋/(2s))
    expected = (math.floor(s) + 1) * (1 - math.floor(s) / (2 * s))
    assert sum(counts) / 1000 == pytest.approx(expected, abs=0.01)
    assert expected == pytest.approx(ratio, rel=0.08)
    walked = counts[::20]
    assert walked == [max(1.0, math.ceil(u * s - 1e-9)) for u in torch.linspace(0.0005, 0.9995, 1000)[::20].tolist()]


def test_a_length_that_was_given_counts_without_one_in_the_tuning():
    """SMC and ParallelTempering tune step sizes and masses only."""
    kernel, target = MicrocanonicalLangevin(step_size=0.1, length=0.7, adjusted=True), quartic()
    state, source = kernel.init(target, normal(2, 3, seed=26)), generator(27)
    noise = kernel.noise(state, source)
    _, given = kernel.step(target, state, kernel.tune(state.x), noise)
    _, plain = kernel.step(target, state, Tune(torch.tensor(0.1, dtype=torch.float64)), noise)
    assert torch.equal(given.num_leapfrog, plain.num_leapfrog)


def test_a_step_size_for_each_chain_is_that_chain_s():
    target, start = quartic(), normal(6, 3, seed=27)
    sizes = torch.linspace(0.05, 0.5, 6, dtype=torch.float64)
    for adjusted in (False, True):
        kernel = MicrocanonicalLangevin(adjusted=adjusted)
        state = kernel.init(target, start, generator(28))
        noise = replace(draw_noise(start, generator(29)), jitter=torch.full((6,), 0.83, dtype=torch.float64))
        together, info = kernel.step(target, state, Tune(sizes, length=torch.full_like(sizes, 0.4)), noise)
        for row in range(6):
            own = Noise(*(t[row : row + 1] for t in (noise.normal, noise.uniform, noise.jitter)))
            tune = Tune(sizes[row], length=torch.tensor(0.4, dtype=torch.float64))
            single, alone = kernel.step(target, state.select(slice(row, row + 1)), tune, own)
            torch.testing.assert_close(single.x[0], together.x[row])
            if adjusted:
                assert info.num_leapfrog is not None
                assert alone.num_leapfrog is not None
                assert float(alone.num_leapfrog[0]) == float(info.num_leapfrog[row])


# -------------------------------------------------- what all kernels have to do


@pytest.mark.parametrize("adjusted", [False, True])
def test_a_mass_is_a_change_of_coordinates(adjusted):
    root = torch.tensor([[0.1, 0.0, 0.0], [3.0, 2.0, 0.0], [-4.0, 1.0, 10.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(root)

    def energy(y):
        return (y**4).sum(-1) / 4 + 0.2 * y[:, 0] * y[:, 1]

    plain = ravel(term(energy, kind="energy", event_shape=3), dtype=torch.float64)
    mapped = ravel(term(lambda x: energy(x @ inverse.T), kind="energy", event_shape=3), dtype=torch.float64)
    y = normal(40, 3, seed=30)
    ends = []
    for target, x, mass in ((plain, y, None), (mapped, y @ root.T, Dense(root @ root.T))):
        kernel, source = MicrocanonicalLangevin(0.6, 1.5, adjusted, inverse_mass=mass), generator(31)
        state = kernel.init(target, x, source)
        for _ in range(8):
            state, _ = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
        ends.append(state.x)
    torch.testing.assert_close(ends[1] @ inverse.T, ends[0])


@pytest.mark.parametrize(("integrator", "cost"), [("mclachlan", 2), ("leapfrog", 1)])
def test_a_step_costs_what_the_kernel_says(integrator, cost):
    view = FlatView(term(lambda x: (x**2).sum(-1), kind="energy", event_shape=2))
    target = view.at()
    kernel = MicrocanonicalLangevin(step_size=0.1, integrator=integrator)
    state = kernel.init(target, torch.ones(11, 2), generator(0))
    for _ in range(3):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(0)))
    assert kernel.evaluations_per_step == cost
    assert view.counter.rows == 11 * (1 + 3 * cost)
    kernel = MicrocanonicalLangevin(step_size=0.1, length=0.4, adjusted=True, integrator=integrator)
    assert kernel.evaluations_per_step == 4 * cost
    before, source = view.counter.rows, generator(1)
    state, told = kernel.init(target, torch.ones(11, 2)), 11
    for _ in range(20):
        state, info = kernel.step(target, state, kernel.tune(), kernel.noise(state, source))
        assert info.num_leapfrog is not None
        told += int(info.num_leapfrog.sum())
    assert view.counter.rows - before == told


def semicircle(x):
    return -2.0 * (4 - x[:, 0] ** 2).sqrt() + 0.5 * x[:, 1] ** 2


def test_steps_out_of_the_support_are_refused_counted_and_turned_round():
    target = ravel(term(semicircle, kind="energy", event_shape=2), dtype=torch.float64)
    for adjusted in (False, True):
        kernel, source = MicrocanonicalLangevin(step_size=1.0, length=2.0, adjusted=adjusted), generator(32)
        start = torch.tensor([[1.9, 0.0]], dtype=torch.float64).expand(500, 2)
        state, divergences = kernel.init(target, start, source), 0
        for _ in range(30):
            state, info = kernel.step(target, state, kernel.tune(start), kernel.noise(state, source))
            divergences += int(info.divergent.sum())
            assert bool(torch.isfinite(info.acceptance).all())
        assert divergences > 100
        assert bool((state.x[:, 0].abs() < 2).all())
        assert all(bool(torch.isfinite(t).all()) for t in state.tensors().values())
    kernel = MicrocanonicalLangevin(step_size=1.0, length=1e9)
    state = kernel.init(target, start, source)
    assert isinstance(state, VelocityState)
    outward = replace(state, velocity=torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(500, 2))
    after, info = kernel.step(target, outward, kernel.tune(start), kernel.noise(state, source))
    assert bool(info.divergent.all())
    torch.testing.assert_close(after.velocity, -outward.velocity, atol=1e-3, rtol=0)


def test_infinite_energies_are_ordinary_rejections():
    def energy(x):
        return torch.where(x[:, 0] < 0, torch.inf, x.sum(-1) + 0.5 * (x * x).sum(-1))

    for adjusted in (False, True):
        target = ravel(term(energy, kind="energy", event_shape=2), dtype=torch.float64)
        kernel, source = MicrocanonicalLangevin(step_size=0.5, adjusted=adjusted), generator(33)
        state = kernel.init(target, torch.full((200, 2), 0.2, dtype=torch.float64), source)
        refused = 0
        for _ in range(10):
            state, info = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, source))
            refused += int((~info.accepted).sum())
            assert not bool(info.divergent.any())
        assert refused > 50
        assert bool((state.x[:, 0] >= 0).all())


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_the_dtype_of_their_start_and_are_never_changed_in_place(adjusted, dtype):
    target = ravel(Gaussian(torch.zeros(3, dtype=dtype), 1.0))
    kernel = MicrocanonicalLangevin(step_size=0.5, adjusted=adjusted)
    state = kernel.init(target, torch.ones(4, 3, dtype=dtype), generator(34))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    after, _ = kernel.step(target, state, kernel.tune(state.x), kernel.noise(state, generator(35)))
    assert {t.dtype for t in after.tensors().values()} == {dtype}
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_wrong_calls_say_what_to_do():
    for make, message in (
        (lambda: MicrocanonicalLangevin(step_size=0.0), "positive finite step_size"),
        (lambda: MicrocanonicalLangevin(length=-1.0), "positive finite length"),
        (lambda: MicrocanonicalLangevin(integrator="verlet"), "'leapfrog', 'mclachlan'"),
        (lambda: Microcanonical(energy_variance=0.0), "energy_variance"),
        (lambda: Microcanonical(target_acceptance=1.0), "target_acceptance"),
        (lambda: Microcanonical(length_factor=-1.0), "length_factor"),
        (lambda: Microcanonical(mass="full"), "mass"),
        (lambda: Microcanonical(estimator="mle"), "estimator"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="adjusted is True or False"):
        MicrocanonicalLangevin(adjusted=1)
    line = ravel(Gaussian(torch.zeros(1), 1.0))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        MicrocanonicalLangevin(step_size=0.1).init(line, torch.zeros(3, 1))
    plane = ravel(Gaussian(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match=r"got HMC; use Windows"):
        window_adaptation(HMC(), plane, torch.zeros(3, 2), warmup=30, adaptation=Microcanonical())


# ------------------------------------------------------------- adaptation


def test_the_step_size_is_that_of_the_energy_variance_asked_for():
    """Errors that follow the law exactly, with one chain in four far off at first."""
    source, true = generator(36), 1.7  # E[ΔE²] = goal at this step size
    search = EnergyVariance(torch.tensor(0.4, dtype=torch.float64), goal=0.01)
    for k in range(400):
        error = 0.1 * (search.step_size / true) ** 3 * torch.randn(8, generator=source, dtype=torch.float64)
        if k < 30:
            error[:2] *= 1e4  # chains that are still far out
        search.update(error, torch.zeros(8, dtype=torch.bool))
        if k == 30:
            assert float(search.step_size) < 0.3
            search.restart(search.step_size)
    # weights prefer errors near the goal, which moves the estimate by a few per cent
    assert float(search.step_size) == pytest.approx(true, rel=0.08)
    settled = float(search.step_size)
    for _ in range(10):
        search.update(torch.full((8,), torch.nan, dtype=torch.float64), torch.ones(8, dtype=torch.bool))
    assert float(search.step_size) < 0.9 * settled


@pytest.mark.parametrize("warmup", [5, 19, 20, 100, 500, 2000])
def test_phases_follow_each_other(warmup):
    first, ends, (begin, end) = phases(warmup)
    marks = [first, *ends, begin, end]
    assert marks == sorted(marks)
    assert end <= warmup
    assert (warmup < 20) == (not ends)
    widths = [b - a for a, b in zip([first, *ends], ends, strict=False)]
    assert widths == sorted(widths)


SCALES = torch.tensor([1e-2, 0.1, 1.0, 1.0, 1.0, 10.0, 100.0, 1.0, 1.0, 1.0], dtype=torch.float64)


def check_tuned(adjusted, length=None):
    """Scales over four decades: mass, step size and length are found, and the draws are right."""
    p = Gaussian(torch.zeros(10, dtype=torch.float64), SCALES**2)
    kernel = MicrocanonicalLangevin(adjusted=adjusted, length=length)
    target = ravel(p)
    tuned = window_adaptation(kernel, target, normal(16, 10, seed=37), warmup=400, seed=38)
    assert tuned.inverse_mass is not None
    ratio = tuned.inverse_mass.variances / SCALES**2
    assert float(ratio.log().abs().max()) < 0.4
    assert tuned.length is not None
    assert tuned.step_size is not None
    if length is None:
        assert 0.7 * math.sqrt(10) < tuned.length < 4 * math.sqrt(10)
    else:
        assert tuned.length == pytest.approx(length)
    source, x, rates, errors = generator(39), [], [], []
    state = tuned.init(target, p.sample(200, source), source)
    for _ in range(100):
        state, info = tuned.step(target, state, tuned.tune(state.x), tuned.noise(state, source))
        x.append(state.x)
        rates.append(info.acceptance.mean())
        errors.append((info.energy_error**2).mean() / 10)
    if adjusted:
        assert float(torch.stack(rates).mean()) == pytest.approx(0.9, abs=0.06)
    else:
        assert 1e-4 < float(torch.stack(errors).mean()) < 2e-3
    draws = torch.stack(x, 1) / SCALES
    count = ess(draws)
    z = draws.mean((0, 1)) * count.sqrt()
    assert float(z.abs().max()) < bound(10)
    assert float(((draws**2).mean((0, 1)) - 1).abs().max()) < 0.08


@pytest.mark.parametrize("adjusted", [False, True])
def test_four_decades_of_scales_are_tuned_without_help(adjusted):
    check_tuned(adjusted)


@pytest.mark.parametrize("adjusted", [False, True])
def test_an_edge_that_trajectories_cross_does_not_shrink_their_steps(adjusted):
    """Undefined in a tenth of its space: trajectories end there at every step size."""

    def energy(x):
        return torch.where(x[:, 0] > 1.2816, torch.nan, 0.5 * (x * x).sum(-1))

    target = ravel(term(energy, kind="energy", event_shape=5), dtype=torch.float64)
    start = -normal(8, 5, seed=43).abs()
    tuned = window_adaptation(MicrocanonicalLangevin(adjusted=adjusted), target, start, warmup=200, seed=44)
    assert tuned.step_size is not None
    assert tuned.length is not None
    assert tuned.step_size > 0.2 * math.sqrt(5)
    assert tuned.length < 20 * tuned.step_size


def test_a_length_that_was_given_is_left():
    check_tuned(False, length=5.0)


def test_one_line_is_enough():
    p = Gaussian(torch.zeros(5), torch.tensor([1e-4, 1.0, 1.0, 4.0, 1e4]))
    for kernel in (MicrocanonicalLangevin(), MicrocanonicalLangevin(adjusted=True)):
        draw = sample(p, chains=4, sampler=MCMC(kernel, warmup=200, draws=200), seed=0)
        assert draw.info.divergences == 0
        assert float(draw.info.extra["rhat"]) < 1.1
        assert draw.info.ess > 100


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("stop", [5, 30, 75, 85])
def test_a_warm_up_goes_on_bit_for_bit(adjusted, stop):
    p = Gaussian(torch.zeros(4, dtype=torch.float64), torch.tensor([0.1, 1.0, 1.0, 10.0], dtype=torch.float64))
    kernel, target = MicrocanonicalLangevin(adjusted=adjusted), ravel(p)
    first = kernel.init(target, normal(5, 4, seed=40), generator(41))
    results = []
    for breaks in (None, stop):
        source = generator(42)
        tuner, state = kernel.adaptation().begin(kernel, target, first, 100, source), first
        for k in range(100):
            if k == breaks:
                tensors, record = tuner.snapshot()
                tuner = kernel.adaptation().begin(kernel, target, first, 100, source)
                tuner.restore({name: t.clone() for name, t in tensors.items()}, record)
            before = state
            state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, source))
            tuner.update(before, state, info)
        results.append((state.x, tuner.finish()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].step_size, results[1][1].step_size)
    assert torch.equal(results[0][1].length, results[1][1].length)


class Killed(Exception):
    """What stops a run half-way."""


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize(
    "kernel", [MicrocanonicalLangevin(), Underdamped(), GHMC(delta=0.1)], ids=lambda k: type(k).__name__
)
def test_a_killed_run_goes_on_bit_for_bit(kernel, share, tmp_path, monkeypatch):
    """Velocities and the tuning in progress survive, in the warm-up and after it."""
    save, calls, limit = base.Checkpoint.save, 0, math.inf
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))

    def energy(x):
        nonlocal calls
        calls += 1
        if calls > limit:
            raise Killed
        return 0.5 * (x * x).sum(-1)

    target, sampler = term(energy, kind="energy", event_shape=3), MCMC(kernel, warmup=200, draws=200)
    whole = sample(target, chains=4, sampler=sampler, seed=13)
    limit, calls = int(share * calls), 0
    with pytest.raises(Killed):
        sample(target, chains=4, sampler=sampler, seed=13, checkpoint=tmp_path / "run")
    limit = math.inf
    resumed = sample(target, chains=4, sampler=sampler, seed=13, checkpoint=tmp_path / "run")
    assert isinstance(whole.x, torch.Tensor)
    assert isinstance(resumed.x, torch.Tensor)
    assert torch.equal(whole.x, resumed.x)
