"""Every public kernel, in one line each, under the checks of tests/kernel_contracts.py."""

import math

import pytest
import torch

from boltzmix.compose import kernels
from boltzmix.compose.callables import term
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import (
    HMC,
    MALA,
    NUTS,
    UHMC,
    ULA,
    Barker,
    EllipticalSlice,
    Kernel,
    ParallelTempering,
    RandomWalk,
)
from boltzmix.compose.kernels.base import State, metropolis
from boltzmix.compose.kernels.ghmc import GHMC
from boltzmix.compose.kernels.microcanonical import MicrocanonicalLangevin
from boltzmix.compose.kernels.underdamped import Underdamped
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import base
from boltzmix.compose.samplers.mcmc import MCMC
from tests import kernel_contracts
from tests.kernel_contracts import KernelContract, kernel_cases, seeded
from tests.kernel_targets import Banana, Edge, Gumbel, Posterior, Quartic, Scales


def prior(dim):
    """No factor of any target: any Gaussian will do."""
    return Gaussian(torch.full((dim,), 0.3, dtype=torch.float64), 2.0)


def microcanonical(v, size):
    """Variance of the unadjusted leapfrog with ε = size √D on N(0, v I): ρ v, where y tanh y = size² / 4v."""
    h = size / math.sqrt(v)
    y = h / 2
    for _ in range(20):
        y -= (y * math.tanh(y) - h * h / 4) / (math.tanh(y) + y / math.cosh(y) ** 2)
    return v * (2 * y / h) ** 2


TEMPERED = {
    "reversible": False,  # hot replicas are exact only after some transitions
    "rowwise": False,
    "sized": False,
    "steps": 60,
    "chains": 4000,
    "skip": {
        "decides_for_each_chain": "swaps move chains whose own proposals are refused",
        "costs_what_it_says": "at each temperature, and at both ends",
        "geweke": "one condition per row is refused",
    },
}

KERNELS = {
    "MALA": KernelContract(lambda dim: MALA(step_size=0.3), steps=16),
    "HMC": KernelContract(lambda dim: HMC(step_size=0.8, num_leapfrog=3), steps=16),
    "HMC of random length": KernelContract(
        lambda dim: HMC(step_size=0.5, num_leapfrog=None, length=1.5), shared=True, steps=10
    ),
    "NUTS": KernelContract(lambda dim: NUTS(step_size=0.5), rowwise=False, steps=4, chains=10_000),
    "Barker": KernelContract(lambda dim: Barker(step_size=0.9), steps=16),
    "RandomWalk": KernelContract(lambda dim: RandomWalk(step_size=0.7), steps=20),
    "EllipticalSlice": KernelContract(
        lambda dim: EllipticalSlice(prior(dim)), rowwise=False, sized=False, chains=16_000
    ),
    "ULA": KernelContract(lambda dim: ULA(step_size=0.3), bias=lambda v: v / (1 - 0.3 / (2 * v))),
    "UHMC": KernelContract(
        lambda dim: UHMC(step_size=0.8, num_leapfrog=2, jitter=False),
        bias=lambda v: v / (1 - 0.8**2 / (4 * v)),
        bias_steps=30,
    ),
    # velocities are kept from step to step
    "GHMC": KernelContract(lambda dim: GHMC(step_size=0.7, alpha=0.7), reversible=False, steps=30),
    "GHMC with slices": KernelContract(
        lambda dim: GHMC(step_size=0.7, alpha=0.7, delta=0.3), reversible=False, steps=30
    ),
    "Underdamped": KernelContract(lambda dim: Underdamped(step_size=0.5), bias=lambda v: v),
    "MAMS": KernelContract(
        lambda dim: MicrocanonicalLangevin(step_size=1.2, length=3.0, adjusted=True), shared=True, steps=10
    ),
    "MAMS by leapfrog": KernelContract(
        lambda dim: MicrocanonicalLangevin(step_size=0.7, length=2.0, adjusted=True, integrator="leapfrog"),
        shared=True,
        steps=10,
    ),
    "MCLMC": KernelContract(
        lambda dim: MicrocanonicalLangevin(step_size=0.8 * dim**0.5, length=3 * dim**0.5, integrator="leapfrog"),
        bias=lambda v: microcanonical(v, 0.8),
        bias_dim=100,
        slack=0.002,
    ),
    "ParallelTempering": KernelContract(
        lambda dim: ParallelTempering(HMC(step_size=0.6, num_leapfrog=2), temperatures=(1.0, 2.0, 4.0)), **TEMPERED
    ),
    "ParallelTempering from a reference": KernelContract(
        lambda dim: ParallelTempering(MALA(step_size=0.3), temperatures=(1.0, 3.0, math.inf), reference=prior(dim)),
        **TEMPERED,
    ),
}

#: kernels of discrete variables have checks of their own
OTHERS = {"Gibbs", "GibbsWithGradients", "DiscreteLangevin", "BlockGibbs"}


class Scan(RandomWalk):
    """Coordinate after coordinate in a fixed order: it leaves the target invariant, and is not reversible."""

    def step(self, target, state, tune, noise):
        for column in range(state.x.shape[1]):
            x = state.x.clone()
            x[:, column] += tune.step_size * noise.normal[:, column]
            uniform = torch.rand(len(x), generator=noise.generator, dtype=x.dtype)
            proposal = State(x, target.energy(x), torch.full_like(x, torch.nan))
            state, info = metropolis(state, proposal, state.energy - proposal.energy, uniform, scored=False)
        return state, info


def uniforms(n, k, seed):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("check", "contract"), kernel_cases(KERNELS))
def test_kernel(check, contract):
    check(contract)


def test_every_public_kernel_has_a_contract():
    public = {
        name
        for name in kernels.__all__
        if isinstance(getattr(kernels, name), type) and issubclass(getattr(kernels, name), Kernel)
    }
    made = {type(contract.make(2)).__name__ for contract in KERNELS.values()}
    assert public - made - OTHERS == {"Kernel"}, "a row in KERNELS is missing"


def test_what_is_not_reversible_is_noticed():
    contract = KernelContract(lambda dim: Scan(step_size=1.5), rowwise=False, steps=20)
    kernel_contracts.check_stationary(contract)
    with pytest.raises(AssertionError, match="pairs of states"):
        kernel_contracts.check_reversible(contract)


@pytest.mark.parametrize("check", ["uniform", "counts", "z"])
def test_statistics_are_wrong_as_seldom_as_they_say(check, monkeypatch):
    """At a rate of 0.1 shared among three columns, 400 sets of exact draws fail 10 to 60 times (2e-6 beyond)."""
    monkeypatch.setattr(kernel_contracts, "FALSE_POSITIVES", 0.1)
    failures = 0
    for seed in range(400):
        u = uniforms(2000, 3, seed)
        try:
            if check == "uniform":
                kernel_contracts.assert_uniform(u, "draws")
            elif check == "counts":
                bins = (20 * u).long()
                kernel_contracts.assert_counts(torch.stack([torch.bincount(b, minlength=20) for b in bins.T]), "draws")
            else:
                kernel_contracts.assert_z((u.mean(0) - 0.5) * math.sqrt(12 * 2000), "draws")
        except AssertionError:
            failures += 1
    assert 10 < failures < 60


def test_statistics_see_what_is_small():
    """Half a percent too wide, one part in fifty moved: what one wrong acceptance in a hundred would do."""
    u = uniforms(200_000, 2, 0)
    kernel_contracts.assert_uniform(u, "draws")
    wide = torch.special.ndtr(1.015 * torch.special.ndtri(u))
    with pytest.raises(AssertionError, match="draws"):
        kernel_contracts.assert_uniform(wide, "draws")
    with pytest.raises(AssertionError, match="draws"):
        kernel_contracts.assert_uniform(torch.where(u < 0.02, 0.5 + u, u), "draws")


def test_exact_draws_are_those_of_their_targets():
    """Stein's identity E[f'(x) + f(x) s(x)] = 0 and uniform distribution functions for every toy, |z| < 5."""
    for kind in (Scales, Banana, Gumbel):
        target = kind()
        x = target.draw(20_000, seeded(1))
        kernel_contracts.assert_uniform(target.uniforms(x), kind.__name__)
        score = target.score(x)
        values = torch.cat([score, x.cos() + x.sin() * score], 1)
        assert float((values.mean(0) / values.std(0)).abs().max()) * math.sqrt(20_000) < 5
    kernel_contracts.assert_uniform(Edge(math.inf).uniforms(Edge(math.inf).draw(20_000, seeded(2))), "the edge")


@pytest.mark.parametrize("kind", [Scales, Banana, Gumbel, Quartic, Edge])
def test_scores_of_the_toys_are_their_gradients(kind):
    target = kind(math.inf) if kind is Edge else kind()
    x = (0.5 * torch.randn(50, target.dim, generator=seeded(3), dtype=torch.float64)).requires_grad_()
    expected = -torch.autograd.grad(target.energy(x).sum(), x)[0]
    torch.testing.assert_close(target.score(x.detach()), expected)


def test_scores_of_posteriors_are_their_gradients():
    x = Posterior.prior(50, seeded(4))
    target = Posterior.given(x, seeded(5))
    leaf = x.clone().requires_grad_()
    expected = -torch.autograd.grad(target.energy(leaf).sum(), leaf)[0]
    torch.testing.assert_close(target.score(x), expected)
    kernel_contracts.assert_uniform(target.uniforms(x), "parameters and data")


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize(
    "kernel", [Barker(), RandomWalk(), EllipticalSlice(Gaussian(torch.zeros(2), 2.0))], ids=lambda k: type(k).__name__
)
@pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")
def test_a_killed_run_goes_on_bit_for_bit(kernel, tmp_path, monkeypatch):
    save = base.Checkpoint.save
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
    calls, last = [0], [math.inf]

    def energy(x):
        calls[0] += 1
        if calls[0] >= last[0]:
            raise Killed
        return (x**4).sum(-1)

    target = term(energy, kind="energy", event_shape=2)
    sampler, file = MCMC(kernel, warmup=70, draws=70), tmp_path / "run"
    whole = sample(target, chains=4, sampler=sampler, seed=1)
    last[0], total, calls[0] = 0.8 * calls[0], calls[0], 0
    with pytest.raises(Killed):
        sample(target, chains=4, sampler=sampler, seed=1, checkpoint=file)
    calls[0], last[0] = 0, math.inf
    resumed = sample(target, chains=4, sampler=sampler, seed=1, checkpoint=file)
    assert calls[0] < total
    assert torch.equal(resumed.x, whole.x)
    assert resumed.info.evaluations == whole.info.evaluations
