"""NUTS in C++: the eager kernel's transitions where both are given the same numbers, and its laws with its own numbers.

Statistical checks are those of the eager kernel (tests/compose/test_nuts.py and tests/kernel_contracts.py, which state
their rates of false alarms), run with the compiled transitions in the place of its step.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.compiled import native
from boltzmix.compose.compiled import nuts as compiled
from boltzmix.compose.compiled.nuts import NutsBlock
from boltzmix.compose.compiled.toolchain import compiler
from boltzmix.compose.errors import CompileError
from boltzmix.compose.flat import FlatView, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import NUTS, Diagonal, Noise, State, Tune
from boltzmix.compose.kernels.mass import Dense, LowRank
from boltzmix.compose.kernels.nuts import _Forest
from tests import kernel_contracts as contracts
from tests.compose import test_nuts
from tests.compose.test_kernel_contracts import KERNELS
from tests.kernel_contracts import seeded as generator

F64 = torch.float64
FIELDS = ("acceptance", "accepted", "divergent", "energy", "num_leapfrog")


def missing():
    """Why nothing can be compiled here, or nothing."""
    try:
        compiler()
    except CompileError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


# ------------------------------------------------------------------- targets


class Correlated:
    """N(0, C) with C = (1 - r) I + r 1 1^T, r = 0.9, by its own formulas."""

    has_energy = True

    def energy_and_score(self, x):
        precise = 10 * (x - x.sum(1, keepdim=True) * 0.9 / (0.1 + 0.9 * x.shape[1]))
        return 0.5 * (x * precise).sum(1), -precise


class Funnel:
    """v ~ N(0, 9), x | v ~ N(0, e^v I): energies that explode in the neck."""

    has_energy = True

    def energy_and_score(self, x):
        v, rest = x[:, 0], x[:, 1:]
        precision, squares, d = (-v).exp(), (rest * rest).sum(1), rest.shape[1]
        slope = v / 9 + 0.5 * d - 0.5 * precision * squares
        energy = v * v / 18 + 0.5 * d * v + 0.5 * precision * squares
        return energy, -torch.cat([slope[:, None], precision[:, None] * rest], 1)


class Walls:
    """A normal with zero density where x_0 < 0, none defined where x_1 > 1.5, and worse beyond other edges."""

    has_energy = True

    def energy_and_score(self, x):
        energy = torch.where(x[:, 0] < 0, torch.inf, 0.5 * (x * x).sum(1))
        energy = torch.where(x[:, 1] > 1.5, torch.nan, energy)
        energy = torch.where(x[:, 2] > 1.5, -torch.inf, energy)
        return energy, torch.where(x[:, 2:] < -1.5, torch.inf, -x)


class Flat:
    """No density to speak of: nothing ever turns."""

    has_energy = True

    def energy_and_score(self, x):
        return 0 * x[:, 0], 0 * x


# ------------------------------------------------- eager and compiled, on one noise


@contextmanager
def uniforms_from(table):
    """The eager kernel's uniforms are rows ``(rows, N)`` of a table."""
    own, rows = _Forest._uniform, iter(table)
    _Forest._uniform = lambda self, count: torch.stack([next(rows) for _ in range(count)])
    try:
        yield
    finally:
        _Forest._uniform = own


@dataclass(frozen=True)
class Case:
    """A target with everything that transitions depend on."""

    target: object
    kernel: NUTS
    state: State
    tune: Tune
    normals: torch.Tensor
    uniforms: torch.Tensor

    def eager(self):
        """x, energy and infos ``(steps, N, …)``, and the last state."""
        states, infos, state = [], [], self.state
        for normal, table in zip(self.normals, self.uniforms, strict=True):
            with uniforms_from(table):
                state, info = self.kernel.step(self.target, state, self.tune, Noise(normal, normal, normal))
            states.append(state)
            infos.append(info)
        found = {name: torch.stack([getattr(s, name) for s in states]) for name in ("x", "energy")}
        return state, found, {name: torch.stack([getattr(i, name) for i in infos]) for name in FIELDS}

    def compiled(self, block=None):
        """The same, in C++."""
        block = block or NutsBlock(self.kernel, self.target, self.state, self.tune)
        seeds = torch.zeros(len(self.state.x), dtype=torch.long)
        state, trace = compiled.run(
            block.library, self.kernel, self.state, self.tune, self.normals, seeds, self.uniforms, block.constants
        )
        return state, trace.states, trace.reported


def case(target, dim, *, n=37, steps=5, step=0.3, depth=6, limit=1000.0, mass=None, start=None, dtype=F64, seed=0):
    """Chains with step sizes of their own, ``step`` × (0.4 … 1.6)."""
    source = generator(seed)
    x = torch.randn(n, dim, generator=source, dtype=F64) if start is None else start(source)
    kernel = NUTS(step_size=step, max_depth=depth, max_energy_error=limit)
    tune = Tune(step * torch.linspace(0.4, 1.6, n, dtype=dtype), mass)
    normals = torch.randn(steps, n, dim, generator=source, dtype=F64).to(dtype)
    rows = 2 * depth + 2**depth - 1
    uniforms = torch.rand(steps, rows, n, generator=source, dtype=F64).to(dtype)
    return Case(target, kernel, kernel.init(target, x.to(dtype)), tune, normals, uniforms)


def assert_same(one, other, near=1e-9):
    """Two runs agree, decisions exactly."""
    (state, states, infos), (state_, states_, infos_) = one, other
    for name in ("accepted", "divergent", "num_leapfrog"):
        assert torch.equal(infos[name], infos_[name]), name
    pairs = [(infos[name], infos_[name], name) for name in ("acceptance", "energy")]
    pairs += [(states[name], states_[name], name) for name in ("x", "energy")]
    pairs += [(getattr(state, name), getattr(state_, name), f"last {name}") for name in ("x", "energy", "score")]
    for a, b, name in pairs:
        torch.testing.assert_close(a, b, rtol=near, atol=near, msg=lambda said, name=name: f"{name}: {said}")


def inside(source):
    """Starts inside the walls."""
    x = torch.rand(37, 3, generator=source, dtype=F64)
    return torch.stack([x[:, 0], x[:, 1], x[:, 2] - 0.5], 1)


def agree_on_a_gaussian():
    """Trajectories of all lengths, none of which diverges."""
    chosen = case(Correlated(), 5, step=0.4)
    found = chosen.eager()
    assert len(found[2]["num_leapfrog"].unique()) > 8
    assert_same(chosen.compiled(), found)


def agree_on_a_funnel():
    """Divergences, and trajectories that a low limit ends."""
    chosen = case(Funnel(), 5, step=0.5, limit=3.0, start=lambda s: 2 * torch.randn(37, 5, generator=s, dtype=F64))
    found = chosen.eager()
    assert int(found[2]["divergent"].sum()) > 10
    assert int((~found[2]["accepted"]).sum()) > 10
    assert_same(chosen.compiled(), found)


def agree_between_walls():
    """Energies +inf, which are no divergences, and NaN, −inf and infinite scores, which are."""
    chosen = case(Walls(), 3, step=0.4, start=inside)
    found = chosen.eager()
    divergent, cut = found[2]["divergent"], (found[2]["num_leapfrog"] + 1) & found[2]["num_leapfrog"] != 0
    assert int(divergent.sum()) > 5
    assert int((cut & ~divergent).sum()) > 5
    assert_same(chosen.compiled(), found)


def agree_where_nothing_turns():
    """Every trajectory is as long as it may be."""
    chosen = case(Flat(), 2, depth=7, steps=2)
    found = chosen.eager()
    assert found[2]["num_leapfrog"].unique().tolist() == [127]
    assert_same(chosen.compiled(), found)


@pytest.mark.parametrize(
    "law", [agree_on_a_gaussian, agree_on_a_funnel, agree_between_walls, agree_where_nothing_turns],
    ids=lambda law: law.__name__,
)  # fmt: skip
def test_the_same_numbers_make_the_same_transitions(law):
    law()


@pytest.mark.parametrize(("dim", "n", "depth"), [(1, 5, 4), (37, 20, 5), (5, 64, 1), (5, 300, 3)])
def test_sizes_that_do_not_fill_vectors(dim, n, depth):
    chosen = case(Correlated(), dim, n=n, depth=depth, steps=20 if n < 100 else 12)
    assert_same(chosen.compiled(), chosen.eager())


def masses(dim, n):
    """One of each kind, and none."""
    source = generator(3)
    spread = torch.rand(n, dim, generator=source, dtype=F64) + 0.3
    root = torch.randn(dim, dim, generator=source, dtype=F64)
    basis = torch.linalg.qr(root[:, :2])[0]
    return {
        "none": None,
        "diagonal": Diagonal(spread[0]),
        "one for each chain": Diagonal(spread),
        "dense": Dense(root @ root.mT / dim + torch.eye(dim, dtype=F64)),
        "low rank": LowRank(spread[1], basis, torch.tensor([4.0, 0.2], dtype=F64)),
    }


def agree_with_a_mass(name):
    """Velocities and scores go through the mass."""
    chosen = case(Correlated(), 5, mass=masses(5, 37)[name], step=0.4)
    assert_same(chosen.compiled(), chosen.eager())


@pytest.mark.parametrize("name", masses(5, 37))
def test_masses_are_those_of_the_eager_kernel(name):
    agree_with_a_mass(name)


def test_dense_masses_of_many_dimensions():
    chosen = case(Correlated(), 37, n=12, steps=2, mass=masses(37, 12)["dense"])
    assert_same(chosen.compiled(), chosen.eager())


def test_single_precision_is_close():
    chosen = case(Correlated(), 5, steps=2, step=0.4, depth=5, dtype=torch.float32)
    assert_same(chosen.compiled(), chosen.eager(), near=2e-4)


# ------------------------------------------------------- chains are independent


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_the_number_of_lanes_changes_nothing(lanes, monkeypatch):
    chosen = case(Funnel(), 5, step=0.5, n=23)
    monkeypatch.setattr(compiled, "lanes_for", lambda chains, dtype: lanes)
    assert_same(chosen.compiled(), chosen.eager())


def seeded_run(block, kernel, state, tune, rows, steps=40):
    """Transitions of some of the chains, each with numbers of its own."""
    n = len(state.x)
    normals = torch.randn(steps, n, state.x.shape[1], generator=generator(5), dtype=F64)[:, rows]
    seeds = torch.randint(2**62, (n,), generator=generator(6))[rows]
    mass = tune.mass
    if isinstance(mass, Diagonal) and mass.variance.ndim == 2:
        mass = Diagonal(mass.variance[rows])
    return compiled.run(
        block.library, kernel, state.select(rows), Tune(tune.step_size[rows], mass), normals, seeds,
        constants=block.constants,
    )  # fmt: skip


def alone_and_together(name):
    """Three of 64 chains do what they do when they are alone, bit for bit, though lanes change hands."""
    n = 64
    chosen = case(Correlated(), 5, n=n, step=0.4, mass=masses(5, n)[name])
    block = NutsBlock(chosen.kernel, chosen.target, chosen.state, chosen.tune)
    some = torch.tensor([0, 17, 63])
    state, trace = seeded_run(block, chosen.kernel, chosen.state, chosen.tune, torch.arange(n))
    alone, own = seeded_run(block, chosen.kernel, chosen.state, chosen.tune, some)
    for field in ("x", "energy", "score"):
        assert torch.equal(getattr(state, field)[some], getattr(alone, field)), field
    for field in FIELDS:
        assert torch.equal(trace.reported[field][:, some], own.reported[field]), field
    assert torch.equal(trace.x[:, some], own.x)
    assert not torch.equal(trace.x[1], trace.x[2])


@pytest.mark.parametrize("name", masses(5, 37))
def test_a_chain_follows_from_its_own_numbers(name):
    alone_and_together(name)


def test_the_generator_decides_everything():
    chosen = case(Correlated(), 5)
    block = NutsBlock(chosen.kernel, chosen.target, chosen.state, chosen.tune)

    def blocks(state, source, count):
        for _ in range(count):
            state, trace = block(state, chosen.tune, chosen.kernel.noise(state, source, 4))
        return state, trace

    whole, trace = blocks(chosen.state, generator(7), 4)
    source = generator(7)
    half, _ = blocks(chosen.state, source, 2)
    torch.rand(5)  # the global generator has no say
    again, same = blocks(half, source, 2)
    other, _ = blocks(chosen.state, generator(8), 4)
    assert torch.equal(whole.x, again.x)
    assert torch.equal(trace.x, same.x)
    assert not torch.equal(whole.x, other.x)


def fair_coins():
    """Where nothing turns, a trajectory of one doubling goes a step forwards or backwards: each chain's own coin.

    Of 2000 chains × 20 transitions the mean and the correlations between neighbouring transitions and neighbouring
    chains are normal; false alarms have probability 1e-4 in all.
    """
    n, steps = 2000, 20
    target, kernel = Flat(), NUTS(step_size=1.0, max_depth=1)
    state = kernel.init(target, torch.zeros(n, 2, dtype=F64))
    block = NutsBlock(kernel, target, state, kernel.tune(state.x))
    seeds = torch.randint(2**62, (n,), generator=generator(12))
    normals = torch.ones(steps, n, 2, dtype=F64)
    _, trace = compiled.run(
        block.library, kernel, state, kernel.tune(state.x), normals, seeds, constants=block.constants
    )
    coins = torch.diff(trace.x[:, :, 0], dim=0, prepend=torch.zeros(1, n, dtype=F64))
    assert coins.unique().tolist() == [-1.0, 1.0]
    for product in (coins, coins[1:] * coins[:-1], coins[:, 1:] * coins[:, :-1]):
        assert abs(float(product.mean())) * product.numel() ** 0.5 < contracts.bound(3)


def test_coins_are_fair():
    fair_coins()


# ------------------------------------------------------------ what is left behind


def test_states_belong_together_and_the_start_is_left_alone():
    chosen = case(Funnel(), 5, step=0.5)
    block = NutsBlock(chosen.kernel, chosen.target, chosen.state, chosen.tune)
    before = {name: tensor.clone() for name, tensor in chosen.state.tensors().items()}
    state, trace = block(chosen.state, chosen.tune, chosen.kernel.noise(chosen.state, generator(9), 6))
    for name, tensor in chosen.state.tensors().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(trace.x[-1], state.x)
    assert torch.equal(trace.states["energy"][-1], state.energy)
    energy, score = chosen.target.energy_and_score(state.x)
    torch.testing.assert_close(state.energy, energy)
    torch.testing.assert_close(state.score, score)
    moved = (torch.diff(trace.x, dim=0, prepend=chosen.state.x[None]) != 0).any(-1)
    assert torch.equal(moved, trace.info.accepted)
    assert bool((trace.info.energy >= trace.states["energy"]).all())


def test_evaluations_are_counted():
    view = FlatView(Gaussian(torch.zeros(3, dtype=F64), 1.0), dtype=F64)
    target, kernel = view.at(), NUTS(step_size=0.4)
    state = kernel.init(target, torch.zeros(10, 3, dtype=F64))
    block = NutsBlock(kernel, target, state, kernel.tune(state.x))
    view.counter.rows = 0
    _, trace = block(state, kernel.tune(state.x), kernel.noise(state, generator(10), 7), ["num_leapfrog"])
    assert view.counter.rows == int(trace.reported["num_leapfrog"].sum()) > 70
    assert set(trace.reported) == {"num_leapfrog"}


def test_one_library_serves_all_tunings():
    target, kernel = ravel(Gaussian(torch.zeros(3, dtype=F64), 1.0)), NUTS(step_size=0.4)
    state = kernel.init(target, torch.zeros(10, 3, dtype=F64))
    block = NutsBlock(kernel, target, state, kernel.tune(state.x))
    for tune in (kernel.tune(state.x), Tune(torch.full((10,), 0.4, dtype=F64), torch.eye(3, dtype=F64))):
        after, _ = block(state, tune, kernel.noise(state, generator(11), 2))
        torch.testing.assert_close(after.x, block(state, tune, kernel.noise(state, generator(11), 2))[0].x)


def test_what_is_refused():
    chosen = case(Correlated(), 5, n=4)
    block = NutsBlock(chosen.kernel, chosen.target, chosen.state, chosen.tune)
    with pytest.raises(ValueError, match=r"compiled for states \(N, 5\) of torch.float64"):
        block(chosen.state.having({"x": torch.zeros(4, 6, dtype=F64)}), chosen.tune, None)
    with pytest.raises(ValueError, match=r"velocities are \(steps, 4, 5\)"):
        compiled.run(block.library, chosen.kernel, chosen.state, chosen.tune, chosen.normals[:, :2], torch.arange(4))
    with pytest.raises(ValueError, match=r"uniforms are \(5, 75, 4\)"):
        replace(chosen, uniforms=chosen.uniforms[:, :9]).compiled(block)
    with pytest.raises(ValueError, match="at most 40 times, got max_depth=41"):
        replace(chosen, kernel=NUTS(0.1, max_depth=41)).compiled(block)
    score_only = ravel(term(lambda x: -x, kind="score", event_shape=2), dtype=F64)
    with pytest.raises(CompileError, match="NUTS needs energies"):
        NutsBlock(chosen.kernel, score_only, chosen.state, chosen.tune)
    assert native.lanes_for(1, F64) == 2


# --------------------------------------------- laws of the eager kernel, with its own numbers


def compiled_steps(patch):
    """NUTS steps in C++ for the length of a test."""
    blocks = {}

    def step(self, target, state, tune, noise):
        key = (id(target), self.max_depth, self.max_energy_error, state.x.dtype)
        if key not in blocks:
            blocks[key] = NutsBlock(self, target, state, tune)
        one = Noise(noise.normal[None], noise.uniform[None], noise.jitter[None], noise.generator)
        state, trace = blocks[key](state, tune, one)
        return state, trace.last()

    patch.setattr(NUTS, "step", step)


@pytest.mark.parametrize(("step", "limit"), [(0.33, 1000.0), (0.6, 1000.0), (1.1, 0.7)], ids=str)
def test_outcomes_have_the_probabilities_of_the_recursive_definition(step, limit, monkeypatch):
    compiled_steps(monkeypatch)
    test_nuts.test_every_outcome_has_the_probability_of_the_recursive_definition(step, limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check", [contracts.check_stationary, contracts.check_edges, contracts.check_reversible, contracts.check_mass],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_the_contract_of_kernels_holds(check, monkeypatch):
    compiled_steps(monkeypatch)
    check(KERNELS["NUTS"])
