"""Kernels of several variables, one after the other: joint distributions stay, caches are right, blocks adapt alone.

Each check fails for a correct kernel with probability FALSE_POSITIVES, shared among its statistics; seeds are fixed.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import chi2
from torch.distributions import Categorical

from boltzmix.compose import (
    HMC,
    MALA,
    MCMC,
    NUTS,
    UHMC,
    ULA,
    BlockGibbs,
    DiscreteLangevin,
    EllipticalSlice,
    Gaussian,
    Gibbs,
    GibbsWithGradients,
    RandomWalk,
    Windows,
    ravel,
    sample,
    term,
)
from boltzmix.compose.adaptation.blocks import BlockAdaptation
from boltzmix.compose.flat import FlatView
from boltzmix.compose.kernels import GHMC, ParallelTempering
from boltzmix.compose.kernels.blocks import Conditional
from tests.compose.test_discrete_kernels import FALSE_POSITIVES, D, bound, generator, killed_and_resumed

CHAINS = 10_000
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=D)
MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], dtype=D)
SCALES = torch.tensor([0.5, 1.0, 0.7], dtype=D)

pytestmark = pytest.mark.filterwarnings("ignore::boltzmix.compose.errors.SamplingWarning")


def labelled(relaxed=None):
    """p(z) p(x | z): a mixture of three normals with its labels, a product of a factor of labels and one of both."""

    def energy(v):
        z = v["z"].to(v["x"]).squeeze(1) if relaxed else torch.nn.functional.one_hot(v["z"][:, 0], 3).to(v["x"])
        scale = z @ SCALES.to(z)
        return 0.5 * ((v["x"] - z @ MEANS.to(z)) ** 2).sum(1) / scale**2 + 2 * scale.log()

    given = term(energy, kind="energy", event_shape={"x": 2, "z": 1}, support={"z": "integers(3)"}, relaxed=relaxed)
    if relaxed:
        prior = term(lambda u: -(u[:, 0] @ WEIGHTS.log().to(u)), kind="energy", event_shape=1, support="integers(3)",
                     relaxed="one_hot")  # fmt: skip
    else:
        prior = term(Categorical(WEIGHTS))
    return prior.on("z") * given


def labelled_draws(n, seed):
    z = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator(seed))
    x = MEANS[z] + SCALES[z][:, None] * torch.randn(n, 2, generator=generator(seed + 1), dtype=D)
    return x, z


def check_labelled(view, flat):
    """Counts of labels, and mean and variance of x given each."""
    state = view.unravel(flat)
    x, z = state["x"], state["z"][:, 0]
    expected = len(z) * WEIGHTS
    statistic = float(((torch.bincount(z, minlength=3) - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, 2) > FALSE_POSITIVES, statistic
    scores = []
    for k in range(3):
        own = (x[z == k] - MEANS[k]) / SCALES[k]
        scores += [own.mean(0) * math.sqrt(len(own)), ((own**2).mean(0) - 1) * math.sqrt(len(own) / 2)]
    z_scores = torch.cat(scores)
    assert float(z_scores.abs().max()) < bound(z_scores.numel()), z_scores


def march(kernel, target, x, steps, seed):
    source, state = generator(seed), kernel.init(target, x, generator(seed + 1))
    tune = kernel.tune(x)
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
    return state, info


MIXED = {
    "HMC, Gibbs": BlockGibbs({"x": HMC(step_size=0.5, num_leapfrog=3), "z": Gibbs()}),
    "Gibbs, MALA": BlockGibbs({"z": Gibbs(), "x": MALA(step_size=0.15)}),
    "random walk, informed": BlockGibbs({"x": RandomWalk(step_size=0.6), "z": GibbsWithGradients(differences="exact")}),
    "NUTS, Gibbs": BlockGibbs({"x": NUTS(step_size=0.6, max_depth=3), "z": Gibbs()}),
    "GHMC, Gibbs": BlockGibbs({"x": GHMC(step_size=0.5, num_leapfrog=2), "z": Gibbs()}),
}
RELAXED = {
    "HMC, gradients": BlockGibbs({"x": HMC(step_size=0.5, num_leapfrog=3), "z": GibbsWithGradients()}),
    "Langevin, HMC": BlockGibbs(
        {"z": DiscreteLangevin(step_size=0.8, ordered=False), "x": HMC(step_size=0.5, num_leapfrog=3)}
    ),
}


@pytest.mark.parametrize("name", [*MIXED, *RELAXED])
def test_a_mixture_with_labels_keeps_its_joint_distribution(name):
    term_ = labelled("one_hot" if name in RELAXED else None)
    target = ravel(term_, dtype=D)
    x, z = labelled_draws(CHAINS, 30)
    start = target.view.ravel({"x": x, "z": z[:, None]})
    state, info = march({**MIXED, **RELAXED}[name], target, start, 6, 131)
    assert float((state.x != start).any(1).double().mean()) > 0.9
    assert float(info.parts[list({**MIXED, **RELAXED}[name].kernels).index("x")].acceptance.mean()) < 0.999
    check_labelled(target.view, state.x)
    torch.testing.assert_close(state.energy, target.energy(state.x))


def test_labels_follow_from_where_x_is():
    """From one start only, so that stationarity alone will not do."""
    target = ravel(labelled(), dtype=D)
    start = target.view.ravel({"x": torch.zeros(CHAINS, 2, dtype=D), "z": torch.zeros(CHAINS, 1, dtype=torch.long)})
    state, _ = march(MIXED["HMC, Gibbs"], target, start, 60, 132)
    check_labelled(target.view, state.x)


ROUND = torch.tensor([[1.0, 0.7], [0.7, 1.5]], dtype=D)


def two_reals():
    """A Gaussian of two variables with a correlation, the prior of y a factor of its own."""
    precision = torch.linalg.inv(ROUND)

    def energy(v):
        x, y = v["x"][:, 0], v["y"][:, 0]
        return 0.5 * (precision[0, 0] * x * x + 2 * precision[0, 1] * x * y + (precision[1, 1] - 0.2) * y * y)

    prior = Gaussian(torch.zeros(1, dtype=D), 5.0)
    return term(energy, kind="energy", event_shape={"x": 1, "y": 1}) * prior.on("y")


@pytest.mark.parametrize(
    "kernel",
    [
        BlockGibbs({"x": HMC(step_size=0.9, num_leapfrog=2), "y": EllipticalSlice()}),
        BlockGibbs({"y": RandomWalk(step_size=1.5), "x": MALA(step_size=0.4)}),
        BlockGibbs({("x", "y"): HMC(step_size=0.6, num_leapfrog=3), "y": EllipticalSlice()}),
    ],
    ids=["HMC, slice", "walk, MALA", "both, slice"],
)
def test_real_variables_with_kernels_of_their_own(kernel):
    target = ravel(two_reals(), dtype=D)
    start = Gaussian(torch.zeros(2, dtype=D), ROUND).sample(CHAINS, generator(33))
    state, _ = march(kernel, target, start, 8, 34)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(ROUND), state.x.mT, upper=False)
    second = white @ white.mT / CHAINS
    z = torch.stack([
        (second[0, 0] - 1) * math.sqrt(CHAINS / 2), (second[1, 1] - 1) * math.sqrt(CHAINS / 2),
        second[0, 1] * math.sqrt(CHAINS), *(white.mean(1) * math.sqrt(CHAINS)),
    ])  # fmt: skip
    assert float(z.abs().max()) < bound(5), z


# ------------------------------------------------------------------------ an application

NOISE, SPIKE, SLAB = 0.5, 0.05, 1.0


def spike_and_slab():
    """Regression with an indicator for each of three coefficients; its term, and the exact inclusion probabilities."""
    design = torch.randn(20, 3, generator=generator(35), dtype=D)
    y = design @ torch.tensor([0.9, 0.12, 0.0], dtype=D) + NOISE * torch.randn(20, generator=generator(36), dtype=D)

    def energy(v):
        width = torch.where(v["gamma"] == 1, SLAB, SPIKE).to(v["beta"])
        fit = 0.5 * ((y - v["beta"] @ design.mT) ** 2).sum(1) / NOISE**2
        return fit + (0.5 * (v["beta"] / width) ** 2 + width.log()).sum(1)

    joint = term(energy, kind="energy", event_shape={"beta": 3, "gamma": 3}, support={"gamma": "integers(2)"})
    states = torch.cartesian_prod(*[torch.arange(2)] * 3)
    logs = []
    for state in states:
        variance = torch.where(state == 1, SLAB, SPIKE).to(D) ** 2
        covariance = (design * variance) @ design.mT + NOISE**2 * torch.eye(20, dtype=D)
        logs.append(torch.distributions.MultivariateNormal(torch.zeros(20, dtype=D), covariance).log_prob(y))
    return joint, states, torch.stack(logs).softmax(0)


def test_spike_and_slab_regression_has_its_exact_inclusion_probabilities():
    """Adapted from scratch, with z-scores from the means of independent chains."""
    joint, states, p = spike_and_slab()
    kernel = BlockGibbs({"beta": HMC(num_leapfrog=4), "gamma": Gibbs()})
    draw = sample(joint, chains=200, sampler=MCMC(kernel, warmup=150, draws=60), seed=37, dtype=D)
    exact = (p[:, None] * states).sum(0)
    assert 0.05 < float(exact[1]) < 0.6, "one coefficient is in doubt"
    means = draw.x["gamma"].double().mean(1)
    z = (means.mean(0) - exact) / (means.std(0) / math.sqrt(200)).clamp(min=1e-3)
    assert float(z.abs().max()) < bound(3), (means.mean(0), exact)


# --------------------------------------------------------------------- caches and counts


def test_scores_are_evaluated_anew_and_energies_handed_on():
    """A step costs one score for the block of x, its leapfrogs, and two candidates of z: no more."""
    view = FlatView(labelled(), dtype=D, discrete=True)
    target = view.at()
    x, z = labelled_draws(11, 38)
    kernel = BlockGibbs({"x": HMC(step_size=0.3, num_leapfrog=5), "z": Gibbs()})
    state = kernel.init(target, view.ravel({"x": x, "z": z[:, None]}))
    before = view.counter.rows
    for _ in range(4):
        state, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(39)))
    assert view.counter.rows - before == 4 * 11 * (1 + 5 + 2)


def test_the_next_block_compares_with_the_energy_of_the_joint_state():
    """A step that hardly moves is always accepted, also after the label has changed."""
    target = ravel(labelled(), dtype=D)
    kernel = BlockGibbs({"x": RandomWalk(step_size=1e-7), "z": Gibbs()})
    start = target.view.ravel({"x": torch.zeros(200, 2, dtype=D), "z": torch.zeros(200, 1, dtype=torch.long)})
    state, info = march(kernel, target, start, 3, 50)
    assert float((target.view.unravel(state.x)["z"] != 0).double().mean()) > 0.2
    assert float(info.parts[0].acceptance.min()) > 1 - 1e-4


@dataclass(frozen=True)
class Blind(ULA):
    """An unadjusted kernel that evaluates no energies."""

    def step(self, target, state, tune, noise):
        moved, info = super().step(target, state, tune, noise)
        return replace(moved, energy=torch.full_like(moved.energy, torch.nan)), info


def test_unadjusted_blocks_leave_energies_to_those_that_need_them():
    """The energy is that of the state whichever block is last, and evaluated where an unadjusted block has none."""
    target = ravel(labelled(), dtype=D)
    x, z = labelled_draws(CHAINS, 40)
    start = target.view.ravel({"x": x, "z": z[:, None]})
    kernel = BlockGibbs({"x": Blind(step_size=1e-3), "z": Gibbs()})
    assert not kernel.adjusted
    state, _ = march(kernel, target, start, 5, 141)
    check_labelled(target.view, state.x)
    torch.testing.assert_close(state.energy, target.energy(state.x))
    swapped = BlockGibbs({"z": Gibbs(), "x": UHMC(step_size=0.02, num_leapfrog=2)})
    state, _ = march(swapped, target, start, 5, 142)
    check_labelled(target.view, state.x)
    torch.testing.assert_close(state.energy, target.energy(state.x))  # not that of before the last block's move
    state, _ = march(BlockGibbs({"z": Gibbs(), "x": ULA(step_size=1e-3)}), target, start, 5, 143)
    torch.testing.assert_close(state.energy, target.energy(state.x))


def test_momenta_stay_with_their_block():
    target = ravel(labelled(), dtype=D)
    x, z = labelled_draws(50, 43)
    kernel = BlockGibbs({"x": GHMC(step_size=0.01, num_leapfrog=1, alpha=0.999), "z": Gibbs()})
    state = kernel.init(target, target.view.ravel({"x": x, "z": z[:, None]}), generator(44))
    after, _ = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator(45)))
    before, now = state.parts[0].velocity, after.parts[0].velocity
    assert float((before * now).sum() / (before.norm() * now.norm())) > 0.95


def test_conditionals_have_the_scores_of_their_variables():
    target = ravel(labelled(), dtype=D)
    x, z = labelled_draws(40, 49)
    there = Conditional(target, ("x",), target.view.ravel({"x": x, "z": z[:, None]}))
    expected = -(x - MEANS[z]) / SCALES[z][:, None] ** 2
    energy, score = there.energy_and_score(x)
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(there.score(x), expected)
    torch.testing.assert_close(energy, there.energy(x))
    torch.testing.assert_close(there.energies(x[:, None].expand(-1, 2, -1)), energy[:, None].expand(-1, 2))


def test_conditionals_refuse_a_part_of_the_rows():
    target = ravel(labelled(), dtype=D)
    there = Conditional(target, ("x",), torch.zeros(6, 3, dtype=D))
    assert there.view.per_row
    with pytest.raises(ValueError, match="6 chains.*4 rows"):
        there.score(torch.zeros(4, 2, dtype=D))


# ---------------------------------------------------------------------------- adaptation


def wide_and_narrow():
    def energy(v):
        return 0.5 * ((v["a"] / 0.01) ** 2).sum(1) + 0.5 * ((v["b"] / 100.0) ** 2).sum(1) + 0.0 * v["z"].sum(1)

    return term(energy, kind="energy", event_shape={"a": 2, "b": 2, "z": 1}, support={"z": "integers(2)"})


def test_each_block_adapts_its_own_step_size():
    kernel = BlockGibbs({"a": HMC(num_leapfrog=3), "b": RandomWalk(), "z": Gibbs()})
    target = ravel(wide_and_narrow(), dtype=D)
    start = torch.zeros(20, 5, dtype=D)
    state = kernel.init(target, start)
    how = BlockAdaptation({"a": Windows(mass=None), "b": Windows(mass=None)})
    tuner = how.begin(kernel, target, state, 300, generator(46))
    source = generator(47)
    for _ in range(300):
        before = state
        state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, source))
        tuner.update(before, state, info)
    tuned = kernel.tuned(tuner.finish())
    assert 0.005 < tuned.kernels["a"].step_size < 0.03
    assert 100.0 < tuned.kernels["b"].step_size < 500.0
    assert tuned.kernels["z"] == Gibbs()
    assert not tuned.adapts


def test_given_steps_are_kept_beside_adapted_ones():
    kernel = BlockGibbs({"a": HMC(step_size=0.012, num_leapfrog=2), "b": HMC(num_leapfrog=2), "z": Gibbs()})
    draw = sample(wide_and_narrow(), chains=20, sampler=MCMC(kernel, warmup=200, draws=50), seed=48, dtype=D)
    assert draw.info.step_size == pytest.approx(0.012)
    sd = {name: float(draw.x[name].std()) for name in ("a", "b")}
    assert 0.007 < sd["a"] < 0.014
    assert 70.0 < sd["b"] < 130.0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    kernel = BlockGibbs({"x": GHMC(), "z": Gibbs()})
    whole, again = killed_and_resumed(labelled(), kernel, tmp_path, dtype=D)
    assert all(torch.equal(whole.x[name], again.x[name]) for name in whole.x)
    assert whole.info.evaluations == again.info.evaluations


# ----------------------------------------------------------------------------- wrong calls

CALLS = {
    "no names": (lambda: BlockGibbs({}), TypeError, ["names and kernels", "{}"]),
    "a kernel's class": (lambda: BlockGibbs({"x": HMC}), TypeError, ["kernels such as HMC()", "'x'"]),
    "a number for a name": (lambda: BlockGibbs({3: HMC()}), TypeError, ["strings", "3"]),
    "tempering inside": (lambda: BlockGibbs({"x": ParallelTempering(HMC())}), TypeError, ["replicas", "'x'", "HMC("]),
    "tempering outside": (
        lambda: sample(labelled(), chains=2, dtype=D,
                       sampler=MCMC(ParallelTempering(MIXED["HMC, Gibbs"], temperatures=(1.0, 2.0)))),
        TypeError, ["a state for each block", "ParallelTempering", "MCMC"]),
    "a variable without a kernel": (
        lambda: sample(labelled(), chains=2, sampler=MCMC(BlockGibbs({"x": HMC(step_size=0.1)}))), ValueError,
        ["['x']", "['x', 'z']"]),
    "an unnamed target": (
        lambda: sample(Gaussian(torch.zeros(2), 1.0), chains=2, sampler=MCMC(BlockGibbs({"x": HMC(step_size=0.1)}))),
        ValueError, ["['x']", ".on(name)"]),
    "HMC for labels": (
        lambda: sample(labelled(), chains=2, sampler=MCMC(BlockGibbs({("x", "z"): HMC(step_size=1)}))),
        TypeError, ["HMC moves real", "1 of 3", "discrete"]),
    "Gibbs for reals": (
        lambda: sample(labelled(), chains=2, sampler=MCMC(BlockGibbs({"x": Gibbs(), "z": Gibbs()}))), TypeError,
        ["Gibbs moves discrete"]),
    "one adaptation for all": (
        lambda: sample(labelled(), chains=2, sampler=MCMC(BlockGibbs({"x": HMC(), "z": Gibbs()}), adapt=Windows())),
        TypeError, ["block by block", "BlockAdaptation"]),
    "an adaptation of no block": (
        lambda: sample(labelled(), chains=2, sampler=MCMC(BlockGibbs({"x": HMC(), "z": Gibbs()}),
                                                          adapt=BlockAdaptation({"y": Windows()}))),
        ValueError, ["['y']", "['x', 'z']"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_say_what_to_do(name):
    call, error, words = CALLS[name]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
