"""Kernels of discrete variables leave enumerated distributions as they are.

Counts of states are compared with their probabilities by Pearson's chi-squared over all states; a correct kernel fails
such a check with probability FALSE_POSITIVES, and so it does the z-scores, whose bounds are shared by their number.
Seeds are fixed.
"""

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from boltzmix.benchmarks.ising import bonds, every_state, ising, ising_rows, ising_truth, potts
from boltzmix.compose import (
    HMC,
    MCMC,
    SMC,
    DiscreteLangevin,
    Gaussian,
    Gibbs,
    GibbsWithGradients,
    mixture,
    ravel,
    sample,
    term,
)
from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.compose.flat import FlatView
from boltzmix.compose.kernels import Tune
from boltzmix.compose.kernels.gradient_gibbs import estimates
from boltzmix.compose.samplers import base
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.chain_starts import chain_starts
from boltzmix.models import Autoregressive
from boltzmix.models.nets import CausalTransformer
from tests.kernel_contracts import FALSE_POSITIVES, bound
from tests.kernel_contracts import seeded as generator

D = torch.float64
CHAINS = 20_000

pytestmark = pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")


# ---------------------------------------------------------------------------- targets


def spins():
    """Five spins with uneven couplings and fields; 32 states, an energy that floats satisfy."""
    couplings = 0.5 * torch.randn(5, 5, generator=generator(1), dtype=D)
    fields = torch.randn(5, generator=generator(2), dtype=D)

    def energy(x):
        return -((x @ couplings.to(x)) * x).sum(1) - x @ fields.to(x)

    return term(energy, kind="energy", event_shape=5, support="integers(2)", relaxed="values")


def labels():
    """Three labels of three values with an energy that is linear in none of their one-hot vectors; 27 states."""
    table = torch.randn(3, 3, 3, generator=generator(3), dtype=D)
    weights = torch.randn(3, 3, generator=generator(4), dtype=D)

    def energy(u):
        inner = torch.einsum("na,nb,nc,abc->n", u[:, 0], u[:, 1], u[:, 2], table.to(u))
        return inner + 0.3 * (u * weights.to(u)).sum((1, 2)) ** 2

    return term(energy, kind="energy", event_shape=3, support="integers(3)", relaxed="one_hot")


def counts():
    """Two counts up to 3 and two switches, with a quartic energy; 64 states."""

    def energy(v):
        a, b = v["a"], v["b"]
        return 0.1 * (a - 1.2).pow(4).sum(1) - 0.5 * a[:, 0] * b[:, 0] + 0.4 * a[:, 1] * b[:, 1] - 0.3 * b.sum(1)

    return term(
        energy, kind="energy", event_shape={"a": 2, "b": 2}, support={"a": "integers(4)", "b": "integers(2)"},
        relaxed="values",
    )  # fmt: skip


TARGETS = {"spins": spins, "labels": labels, "counts": counts}
KERNELS = {
    "Gibbs": Gibbs(),
    "Gibbs of pairs": Gibbs(blocks=2),
    "Gibbs in random order": Gibbs(blocks=2, scan="random"),
    "GibbsWithGradients": GibbsWithGradients(),
    "GibbsWithGradients, exact": GibbsWithGradients(differences="exact"),
    "DiscreteLangevin": DiscreteLangevin(step_size=0.6),
    "DiscreteLangevin of labels": DiscreteLangevin(step_size=0.8, ordered=False),
}


def enumerate_flat(target):
    """All flat states ``(M, D)``, in the order of :func:`index_of`, and their probabilities."""
    x = torch.cartesian_prod(*[torch.arange(k, dtype=D) for k in target.levels.tolist()]).reshape(-1, target.dim)
    return x, target.energy(x).double().neg().softmax(0)


def index_of(target, x):
    place = torch.cat([target.levels, target.levels.new_ones(1)]).flip(0).cumprod(0).flip(0)[1:]
    return (x.long() * place).sum(1)


def exact_draws(target, n, seed):
    x, p = enumerate_flat(target)
    return x[torch.multinomial(p, n, replacement=True, generator=generator(seed))], p


def march(kernel, target, x, steps, seed):
    source, state, divergent = generator(seed), kernel.init(target, x), 0
    tune = kernel.tune(x)
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
        divergent += int(info.divergent.sum())
    return state, info, divergent


def check_counts(index, p):
    """Counts of states against probabilities; states that are expected fewer than five times count as one."""
    expected = len(index) * p
    found = torch.bincount(index, minlength=len(p)).double()
    common = expected >= 5
    if not bool(common.all()):
        rest = ~common
        expected = torch.cat([expected[common], expected[rest].sum()[None]])
        found = torch.cat([found[common], found[rest].sum()[None]])
        expected, found = expected[expected > 0], found[expected > 0]
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, len(expected) - 1) > FALSE_POSITIVES, statistic


def flat_target(name):
    return ravel(TARGETS[name](), dtype=D)


# -------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_draws_stay_exact(kernel, target):
    there = flat_target(target)
    x, p = exact_draws(there, CHAINS, 5)
    state, _, divergent = march(KERNELS[kernel], there, x, 4, 6)
    assert divergent == 0
    assert bool((state.x != x).any(1).double().mean() > 0.2), "the check needs chains that move"
    check_counts(index_of(there, state.x), p)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_energies_and_estimates_are_those_of_the_state(kernel, target):
    there = flat_target(target)
    x, _ = exact_draws(there, 200, 7)
    state, _, _ = march(KERNELS[kernel], there, x, 3, 8)
    again = KERNELS[kernel].init(there, state.x)
    torch.testing.assert_close(state.energy, again.energy)
    torch.testing.assert_close(state.score, again.score, equal_nan=True)


@pytest.mark.parametrize("blocks", [5, [[0, 2, 4, 1, 3]]], ids=["an int", "a list"])
def test_a_block_of_everything_is_drawn_exactly(blocks):
    there = flat_target("spins")
    state, info, _ = march(Gibbs(blocks=blocks), there, torch.zeros(CHAINS, 5, dtype=D), 1, 9)
    assert info.acceptance.tolist() == [1.0] * CHAINS
    check_counts(index_of(there, state.x), enumerate_flat(there)[1])


def test_one_sweep_of_systematic_gibbs_is_the_product_of_conditionals():
    """From one state: coordinates in order, each given those already drawn."""
    there = flat_target("labels")
    start = torch.tensor([[2.0, 0.0, 1.0]], dtype=D)
    state, _, _ = march(Gibbs(), there, start.expand(CHAINS, -1).contiguous(), 1, 10)
    _, p = enumerate_flat(there)
    joint = p.reshape(3, 3, 3)
    first = joint[:, 0, 1] / joint[:, 0, 1].sum()
    second = joint[:, :, 1] / joint[:, :, 1].sum(1, keepdim=True)
    third = joint / joint.sum(2, keepdim=True)
    expected = first[:, None, None] * second[:, :, None] * third
    check_counts(index_of(there, state.x), expected.flatten())


def test_a_sweep_in_random_order_is_reversible():
    """As many moves from state i to j as from j to i, among exact draws: |z| bounded over all pairs."""
    there = flat_target("labels")
    x, _ = exact_draws(there, 40_000, 11)
    state, _, _ = march(Gibbs(scan="random"), there, x, 1, 12)
    pairs = torch.zeros(27, 27, dtype=D)
    pairs.index_put_((index_of(there, x), index_of(there, state.x)), torch.ones(len(x), dtype=D), accumulate=True)
    total = pairs + pairs.T
    often = (total >= 20).triu(1)
    z = ((pairs - pairs.T) / total.sqrt())[often]
    assert len(z) > 100
    assert float(z.abs().max()) < bound(len(z))


def test_estimates_of_multilinear_energies_are_their_differences():
    """Ragged numbers of values: d from the gradient is d from all neighbours."""

    def energy(v):
        return 0.7 * v["a"][:, 0] * v["b"][:, 1] - v["a"][:, 1] * v["c"][:, 0] + 0.3 * v["b"].sum(1)

    ragged = term(energy, kind="energy", event_shape={"a": 2, "b": 2, "c": 1}, relaxed="values",
                  support={"a": "integers(4)", "b": "integers(2)", "c": "integers(3)"})  # fmt: skip
    there = ravel(ragged, dtype=D)
    x, _ = exact_draws(there, 100, 26)
    d = [estimates(there, k.init(there, x)) for k in (GibbsWithGradients(), GibbsWithGradients(differences="exact"))]
    assert float(d[0][torch.isfinite(d[0])].abs().max()) > 1
    torch.testing.assert_close(*d)


def proposals(kernel, there, repeats, seed):
    """For all states: q ``(M, M)``, acceptance probabilities where seen (NaN elsewhere), and how often each was."""
    x, p = enumerate_flat(there)
    m = len(x)
    state = kernel.init(there, x)
    q = torch.zeros(m, m, dtype=D)
    if isinstance(kernel, DiscreteLangevin):
        log_q = kernel.log_proposal(there, state, torch.tensor(kernel.step_size, dtype=D))
        for j in range(m):
            q[:, j] = log_q.gather(2, x[j].long().expand(m, -1)[..., None]).sum((1, 2)).exp()
    else:
        log_q = kernel.log_proposal(there, state)
        width = log_q.shape[1] // there.dim
        for i in range(there.dim):
            for value in range(int(there.levels[i])):
                y = x.clone()
                y[:, i] = value
                other = index_of(there, y)
                q[torch.arange(m), other] += log_q[:, i * width + value].exp()
    rows = torch.arange(m).repeat_interleave(repeats)
    start = kernel.init(there, x[rows])
    noise = kernel.noise(start, generator(seed))
    noise = type(noise)(noise.normal, torch.zeros_like(noise.uniform), noise.jitter, noise.generator)
    after, info = kernel.step(there, start, kernel.tune(x), noise)
    to = index_of(there, after.x)
    seen = torch.zeros(m, m, dtype=D).index_put_((rows, to), torch.ones(len(rows), dtype=D), accumulate=True)
    acceptance = torch.full((m, m), torch.nan, dtype=D)
    acceptance[rows, to] = info.acceptance
    return p, q, acceptance, seen


INFORMED = {name: kernel for name, kernel in KERNELS.items() if "Gibbs" not in name or "With" in name}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", INFORMED)
def test_flows_balance_in_detail(kernel, target):
    """π(x) q(y|x) a(x, y) = π(y) q(x|y) a(y, x) to rounding, for every pair that was seen both ways."""
    there = flat_target(target)
    p, q, acceptance, seen = proposals(INFORMED[kernel], there, 300, 13)
    torch.testing.assert_close(q.sum(1), torch.ones(len(p), dtype=D))
    flow = p[:, None] * q * acceptance
    both = ~torch.isnan(flow) & ~torch.isnan(flow.T)
    assert int(both.sum()) > 0.5 * int((q > 1e-2).sum()), "too few pairs to tell"
    torch.testing.assert_close(flow[both], flow.T[both], rtol=1e-9, atol=1e-14)
    assert float(torch.maximum(acceptance, acceptance.T)[both].min()) > 1 - 1e-9, "one of the two ways is always taken"
    variance = (300 * q * (1 - q)).clamp(min=1.0)
    usual = 300 * q > 10
    z = ((seen - 300 * q) / variance.sqrt())[usual]
    assert float(z.abs().max()) < bound(len(z)) + 1.0, "proposals are drawn with other probabilities"


@pytest.mark.parametrize(("h", "alpha"), [(1.0, 1.0), (2.0, 0.4)])
def test_unadjusted_langevin_has_the_stated_bias(h, alpha):
    p = term(lambda x: -h * x.sum(1), kind="energy", event_shape=2, support="integers(2)", relaxed="values")
    a = 1 / (2 * alpha)
    stated = h + math.log((1 + math.exp(-h / 2 - a)) / (1 + math.exp(h / 2 - a)))
    share = 1 / (1 + math.exp(-stated))
    assert abs(share - 1 / (1 + math.exp(-h))) > 0.02
    x = (torch.rand(CHAINS, 2, generator=generator(14), dtype=D) < share).to(D)
    kernel = DiscreteLangevin(step_size=alpha, adjusted=False)
    state, info, _ = march(kernel, ravel(p, dtype=D), x, 15, 15)
    z = (state.x.mean(0) - share) / math.sqrt(share * (1 - share) / CHAINS)
    assert float(z.abs().max()) < bound(2)
    assert float(info.acceptance.min()) < 1.0, "it reports what a test would have said"
    assert bool(info.accepted.all())


@pytest.mark.parametrize(
    ("kernel", "cost"),
    [
        (Gibbs(), 2 * 3 + 2 * 1),
        (Gibbs(blocks=2), 15 + 3),
        (GibbsWithGradients(), 1),
        (GibbsWithGradients(differences="exact"), 1 + 2 * 3 + 2),
        (DiscreteLangevin(step_size=0.5), 1),
    ],
    ids=lambda v: repr(v),
)
def test_a_step_costs_what_the_kernel_says(kernel, cost):
    view = FlatView(counts(), dtype=D, discrete=True)
    target = view.at()
    state = kernel.init(target, torch.ones(7, 4, dtype=D))
    before = view.counter.rows
    for _ in range(3):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(0)))
    assert view.counter.rows - before == 3 * 7 * cost


# ----------------------------------------------------------------------- hard energies


def walled(value):
    """Five values of a coordinate, of which 3 has the energy ``value``."""

    def energy(x):
        plain = 0.3 * x.double().sum(1)
        return torch.where((x == 3).any(1), value, plain)

    return term(energy, kind="energy", event_shape=2, support="integers(5)")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("kernel", [Gibbs(), GibbsWithGradients(differences="exact")], ids=["Gibbs", "informed"])
def test_undefined_states_are_never_entered_and_counted(kernel, value):
    target = ravel(walled(value), dtype=D)
    state, _, divergent = march(kernel, target, torch.ones(CHAINS // 4, 2, dtype=D), 25, 16)
    assert bool((state.x != 3).all())
    assert (divergent > 0) == (value != torch.inf)
    p = torch.tensor([0.0, 0.3, 0.6, -value if value == torch.inf else torch.inf, 1.2], dtype=D).abs().neg().softmax(0)
    check_counts((state.x[:, 0] * 5 + state.x[:, 1]).long(), (p[:, None] * p).flatten())


def test_undefined_proposals_of_gradients_are_rejected_and_counted():
    def energy(x):
        return torch.where((x == 1).all(1), torch.nan, -0.5 * x.sum(1))

    target = ravel(term(energy, kind="energy", event_shape=2, support="integers(2)", relaxed="values"), dtype=D)
    for kernel in (GibbsWithGradients(), DiscreteLangevin(step_size=1.0)):
        state, _, divergent = march(kernel, target, torch.zeros(2000, 2, dtype=D), 20, 17)
        assert divergent > 0
        assert not bool((state.x == 1).all(1).any())
        p = torch.tensor([0.0, 0.5, 0.5, -torch.inf], dtype=D).softmax(0)
        check_counts((state.x @ torch.tensor([2.0, 1.0], dtype=D)).long(), p)


def test_a_state_without_neighbours_stays():
    def energy(x):
        return torch.where((x == 1).all(1), 0.0, torch.inf)

    target = ravel(term(energy, kind="energy", event_shape=3, support="integers(2)"))
    start = torch.ones(5, 3)
    for kernel in (Gibbs(), GibbsWithGradients(differences="exact")):
        state, info, divergent = march(kernel, target, start, 3, 18)
        assert torch.equal(state.x, start)
        assert divergent == 0
        assert bool(torch.isfinite(info.acceptance).all())


@pytest.mark.parametrize("kernel", [Gibbs(), GibbsWithGradients(differences="exact")], ids=["Gibbs", "informed"])
def test_starts_of_zero_density_are_refused(kernel):
    with pytest.raises(NonFinite, match="1 of 2 starts"):
        kernel.init(ravel(walled(torch.inf)), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))


class ByRow(nn.Module):
    """An energy that differs from row to row, so that parts of a batch mean nothing."""

    per_row = True

    def __init__(self, n):
        super().__init__()
        self.register_buffer("field", torch.randn(n, 3, generator=generator(19), dtype=D))

    def forward(self, x):
        assert len(x) == len(self.field)
        return -(x * self.field).sum(1)


def test_conditions_stay_with_their_rows():
    net = ByRow(8000)
    target = ravel(term(net, kind="energy", event_shape=3, support="integers(3)"), dtype=D)
    for kernel in (Gibbs(blocks=3), GibbsWithGradients(differences="exact")):
        steps = 1 if isinstance(kernel, Gibbs) else 30
        state, _, _ = march(kernel, target, torch.zeros(8000, 3, dtype=D), steps, 20)
        weights = (net.field[..., None] * torch.arange(3)).softmax(2)
        mean = (weights * torch.arange(3)).sum(2)
        variance = (weights * torch.arange(3) ** 2).sum(2) - mean**2
        z = (state.x - mean).sum(0) / variance.sum(0).sqrt()
        assert float(z.abs().max()) < bound(6)


# ------------------------------------------------------------------- terms and samplers


def test_relaxed_terms_take_integers_and_keep_their_gradient_in_formulas():
    """The one-hot score of a product with a power and of a mixture is that of the formula."""
    p, q = labels(), term(lambda u: u[..., 1].sum(1) ** 2, kind="energy", event_shape=3, support="integers(3)",
                          relaxed="one_hot")  # fmt: skip
    x = torch.cartesian_prod(*[torch.arange(3.0, dtype=D)] * 3)
    parts = [ravel(t, dtype=D).energy_and_one_hot_score(x) for t in (p, q)]
    energy, score = ravel(p * q**0.5, dtype=D).energy_and_one_hot_score(x)
    torch.testing.assert_close(score, parts[0][1] + 0.5 * parts[1][1])
    torch.testing.assert_close(energy, parts[0][0] + 0.5 * parts[1][0])
    _, mixed = ravel(mixture([p, q]), dtype=D).energy_and_one_hot_score(x)
    share = (parts[1][0] - parts[0][0]).sigmoid()[:, None, None]
    torch.testing.assert_close(mixed, share * parts[0][1] + (1 - share) * parts[1][1])
    torch.testing.assert_close(p.energy(x.long()), parts[0][0].float())


def test_members_without_a_gradient_are_named():
    plain = term(lambda x: x.sum(1).float(), kind="energy", event_shape=3, support="integers(3)", name="plain")
    with pytest.raises(MissingEnergy, match=r"plain takes\s+integers only.*relaxed=.*exact"):
        GibbsWithGradients().init(ravel(labels() * plain, dtype=D), torch.zeros(2, 3, dtype=D))


def test_gibbs_samples_a_product_of_autoregressive_models():
    """Two networks over three letters of three: counts against the enumerated product."""
    torch.manual_seed(0)
    nets = [CausalTransformer(3, 3, levels=3, hidden=8, depth=1) for _ in range(2)]
    for net in nets:
        for weights in net.parameters():
            nn.init.normal_(weights, std=0.6)
    product = Autoregressive(nets[0], (3,), levels=3) * Autoregressive(nets[1], (3,), levels=3)
    draw = sample(product, chains=3000, sampler=MCMC(Gibbs(), warmup=6, draws=1), seed=21)
    assert draw.x.dtype == torch.long
    states = torch.cartesian_prod(*[torch.arange(3)] * 3)
    with torch.no_grad():
        p = product.energy(states).double().neg().softmax(0)
    assert float(p.max() / p.min()) > 5, "the product should not be flat"
    check_counts((draw.x[:, 0] * torch.tensor([9, 3, 1])).sum(1), p)


@pytest.mark.parametrize("periodic", [True, False])
def test_transfer_matrices_agree_with_enumeration(periodic):
    target, truth = ising(3, 0.45, periodic), ising_truth(3, 0.45, periodic)
    states, p = every_state(target)
    total = bonds(2.0 * states.double() - 1.0, periodic)
    assert truth.bonds == pytest.approx(float(p @ total), rel=1e-5)
    assert truth.heat_capacity == pytest.approx(0.45**2 * float(p @ total**2 - (p @ total) ** 2), rel=1e-5)
    assert truth.log_z == pytest.approx(float((0.45 * total).logsumexp(0)))
    ups = torch.zeros(10, dtype=D).index_add_(0, states.flatten(1).sum(1), p)
    torch.testing.assert_close(truth.ups, ups, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [*KERNELS, "adapted"])
def test_ising_by_mcmc_has_its_exact_energy_and_magnetisation(kernel):
    """4 × 4 at the critical temperature; z-scores of the means over independent chains."""
    found = KERNELS.get(kernel, DiscreteLangevin())
    slow = isinstance(found, GibbsWithGradients)
    chains = MCMC(found, warmup=400 if slow else 60, draws=16, thin=8 if slow else 2)
    if kernel == "adapted":
        chains = MCMC(found, warmup=200, draws=20, thin=4)
    target, truth = ising(4, 0.4407), ising_truth(4, 0.4407)
    draw = sample(target, chains=300, sampler=chains, seed=22)
    assert draw.x.dtype == torch.long
    assert tuple(draw.x.shape[2:]) == (4, 4)
    s = 2.0 * draw.x.double() - 1
    for values, exact in ((bonds(s, True), truth.bonds), (s.mean((-1, -2)).abs(), truth.magnetisation)):
        means = values.mean(1)
        z = (float(means.mean()) - exact) / (float(means.std()) / math.sqrt(300))
        assert abs(z) < bound(2)
    if kernel == "adapted":
        assert 0.45 < draw.info.acceptance < 0.7


@pytest.mark.parametrize("kernel", ["Gibbs", "DiscreteLangevin of labels"])
def test_potts_energies_match_enumeration(kernel):
    target = potts(3, 3, 0.9)
    states, p = every_state(target)
    exact = float(p @ target.energy(states).double())
    draw = sample(target, chains=400, sampler=MCMC(KERNELS[kernel], warmup=60, draws=10, thin=4), seed=23)
    energy = target.energy(draw.x.flatten(0, 1)).reshape(400, 10).double().mean(1)
    assert abs(float(energy.mean()) - exact) / float(energy.std() / 20) < bound(1)


@pytest.mark.slow
def test_rows_of_the_benchmark_are_within_their_errors():
    rows = ising_rows([0], quick=True, betas=(0.25,))
    z = torch.tensor([[row["energy_z"], row["magnetisation_z"]] for row in rows])
    assert float(z.abs().max()) < bound(z.numel())


def test_steps_of_free_spins_are_bounded():
    """Every proposal is accepted however large the step: adaptation stops where the distance has no say."""
    free = term(lambda x: 0.2 * x.sum(1), kind="energy", event_shape=4, support="integers(2)", relaxed="values")
    draw = sample(free, chains=20, sampler=MCMC(DiscreteLangevin(), warmup=300, draws=10), seed=24)
    assert draw.info.step_size == pytest.approx(50.0, rel=1e-3)


def test_starts_are_integers_of_all_kinds_and_given_ones_are_checked():
    free = term(lambda v: 0.0 * (v["a"].sum(1) + v["b"].sum(1)), kind="energy", event_shape={"a": 2, "b": 2},
                support={"a": "integers(4)", "b": "integers(2)"})  # fmt: skip
    view = FlatView(free, discrete=True)
    x = chain_starts(view, view.at(), Request(free, 2000, generator(25), 25, "test"), scores=False)
    for k, column in enumerate([4, 4, 2, 2]):
        found = torch.bincount(x[:, k].long()) / 2000
        assert len(found) == column
        assert float((found - 1 / column).abs().max()) < bound(12) * math.sqrt((1 - 1 / column) / column / 2000)
    given = torch.full((3, 5), 2)
    with pytest.raises(ValueError, match="outside 0 … K−1 in 15"):
        sample(spins(), chains=3, sampler=MCMC(Gibbs(), draws=1), init=given, seed=0)


def killed_and_resumed(target, kernel, folder, **options):
    """A run killed after its third block, and one that was not, from the same seed."""
    sampler = MCMC(kernel, warmup=100, draws=200)
    whole = sample(target, chains=4, sampler=sampler, seed=3, **options)
    save, saves = base.Checkpoint.save, []

    def stop(self, make, force=False):
        save(self, make, True)
        saves.append(1)
        if len(saves) == 3:
            raise KeyboardInterrupt

    path = Path(folder) / "run.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            sample(target, chains=4, sampler=sampler, seed=3, **options, checkpoint=path)
    again = sample(target, chains=4, sampler=sampler, seed=3, **options, checkpoint=path)
    return whole, again


@pytest.mark.parametrize("kernel", [Gibbs(scan="random"), GibbsWithGradients(), DiscreteLangevin()], ids=repr)
def test_a_killed_run_goes_on_bit_for_bit(kernel, tmp_path):
    whole, again = killed_and_resumed(spins(), kernel, tmp_path)
    assert torch.equal(whole.x, again.x)
    assert whole.info.evaluations == again.info.evaluations


GAUSSIAN = Gaussian(torch.zeros(2), 1.0)
HUGE = term(lambda x: x.sum(1).float(), kind="energy", event_shape=2, support="integers(20000000)")
WIDE = term(lambda x: x.sum(1).float(), kind="energy", event_shape=9, support="integers(10)")

CALLS = {
    "HMC on integers": (lambda: HMC(step_size=0.1).init(ravel(spins()), torch.zeros(1, 5)), TypeError,
                        ["HMC moves real", "5 of 5", "Gibbs()", "BlockGibbs"]),
    "MCMC(HMC()) on integers": (lambda: sample(spins(), chains=2, sampler=MCMC(HMC())), TypeError,
                                ["discrete", "integers(2)", "MCMC(Gibbs())", "BlockGibbs"]),
    "SMC on integers": (lambda: sample(spins(), 5, sampler=SMC()), TypeError, ["discrete", "MCMC(Gibbs())", ".given("]),
    "Gibbs on reals": (lambda: Gibbs().init(ravel(GAUSSIAN), torch.zeros(1, 2)), TypeError,
                       ["Gibbs moves discrete", "all coordinates are real", "HMC()"]),
    "MCMC(Gibbs()) on reals": (lambda: sample(GAUSSIAN, chains=2, sampler=MCMC(Gibbs())), TypeError,
                               ["Gibbs moves discrete", "HMC()"]),
    "too many values": (lambda: ravel(HUGE), ValueError, ["2^24", "20000000", "float64"]),
    "a block too large": (lambda: Gibbs(blocks=9).init(ravel(WIDE), torch.zeros(1, 9)), ValueError,
                          ["1000000000 values", "smaller blocks"]),
    "blocks that leave some out": (lambda: Gibbs(blocks=[[0, 1]]).init(ravel(spins()), torch.zeros(1, 5)), ValueError,
                                   ["[0, 1]", "0 … 4"]),
    "blocks of zero": (lambda: Gibbs(blocks=0), ValueError, ["at least one", "0"]),
    "blocks as a word": (lambda: Gibbs(blocks=1.5), TypeError, ["list of lists", "1.5"]),
    "a block twice the same": (lambda: Gibbs(blocks=[[0, 0]]), ValueError, ["different coordinates"]),
    "an unknown scan": (lambda: Gibbs(scan="zigzag"), ValueError, ["systematic", "zigzag"]),
    "unknown differences": (lambda: GibbsWithGradients(differences="finite"), ValueError, ["gradient", "finite"]),
    "an unknown relaxation": (
        lambda: term(lambda x: x, kind="energy", event_shape=2, support="integers(2)", relaxed="soft"), ValueError,
        ["one_hot", "values", "'soft'"]),
    "a relaxation of reals": (lambda: term(lambda x: x, kind="energy", event_shape=2, relaxed="values"), ValueError,
                              ["integer variables", "support=integers(K)"]),
    "integer energies": (
        lambda: ravel(term(lambda x: x.sum(1), kind="energy", event_shape=2, support="integers(3)")).energy(
            torch.zeros(1, 2)), TypeError, ["floating-point energies", "int64"]),
    "no step size": (lambda: DiscreteLangevin().tune(), ValueError, ["no step_size", "DiscreteLangevin(step_size"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_say_what_to_do(name):
    call, error, words = CALLS[name]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_tunings_come_back_as_kernels():
    assert Gibbs().tuned(Gibbs().tune()) == Gibbs()
    assert DiscreteLangevin().tuned(Tune(torch.tensor([0.1, 0.3, 0.2]))).step_size == pytest.approx(0.2)
