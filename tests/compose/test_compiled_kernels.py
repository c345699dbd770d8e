"""Compiled kernels do what their steps do: the same transitions on the same noise, rejections and counters included."""

import shutil

import pytest
import torch
from torch import Tensor

import boltzmix.compose as bm
from boltzmix.compose.compiled.block import Block, compile_kernel
from boltzmix.compose.flat import FlatTarget, ravel
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Tune
from boltzmix.compose.kernels.mass import Dense, Diagonal, LowRank, Mass

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")

D, STEPS = 3, 12
KERNELS: dict[str, Kernel] = {
    "HMC": bm.HMC(step_size=0.5, num_leapfrog=3),
    "UHMC": bm.UHMC(step_size=0.3, num_leapfrog=2),
    "MALA": bm.MALA(step_size=0.3),
    "ULA": bm.ULA(step_size=0.1),
    "GHMC": bm.GHMC(step_size=0.4, num_leapfrog=2),
    "GHMC-slice": bm.GHMC(step_size=0.4, delta=0.1),
    "Underdamped": bm.Underdamped(step_size=0.3),
    "Barker": bm.Barker(step_size=0.5),
    "RandomWalk": bm.RandomWalk(step_size=0.5),
    "MCLMC": bm.MicrocanonicalLangevin(step_size=0.5),
    "HMC of random lengths": bm.HMC(step_size=0.4, num_leapfrog=None, length=1.2),
    "UHMC of random lengths": bm.UHMC(step_size=0.3, num_leapfrog=None, length=0.9),
    "adjusted MCLMC": bm.MicrocanonicalLangevin(step_size=0.5, length=1.5, adjusted=True),
}


def bent(x: Tensor) -> Tensor:
    """Skewed, and correlated."""
    return -0.5 * (x[:, 0] ** 2 + (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2 + 0.3 * x[:, 2] ** 4) - torch.cos(x[:, 2])


def edged(x: Tensor) -> Tensor:
    """No density for x₀ > 1, and undefined for x₁ < −1."""
    inside = -0.5 * (x * x).sum(-1) + 0.01 * (x[:, 1] + 1).log()
    return torch.where(x[:, 0] > 1, -torch.inf, inside)


def masses(dtype: torch.dtype) -> dict[str, Mass]:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(D, 1, generator=generator, dtype=dtype)).Q
    spread = torch.randn(D, D, generator=generator, dtype=dtype)
    return {
        "diagonal": Diagonal(torch.tensor([0.5, 1.0, 2.0], dtype=dtype)),
        "per chain": Diagonal(0.5 + torch.rand(7, D, generator=generator, dtype=dtype)),
        "dense": Dense(torch.eye(D, dtype=dtype) + 0.1 * spread @ spread.mT),
        "low rank": LowRank(torch.ones(D, dtype=dtype), basis, torch.tensor([2.0], dtype=dtype)),
    }


def setting(
    kernel: Kernel, function: object, dtype: torch.dtype, mass: Mass | None = None
) -> tuple[FlatTarget, State, Tune, Noise]:
    generator = torch.Generator().manual_seed(0)
    target = ravel(bm.term(function, kind="log_prob", event_shape=(D,)), dtype=dtype)
    state = kernel.init(target, 0.3 * torch.randn(7, D, generator=generator, dtype=dtype), generator)
    assert kernel.step_size is not None
    tune = Tune(torch.tensor(kernel.step_size, dtype=dtype), mass)
    return target, state, tune, kernel.noise(state, generator, STEPS)


def eager(
    kernel: Kernel, target: FlatTarget, state: State, tune: Tune, noise: Noise
) -> tuple[State, list[State], list[Info]]:
    states, infos = [], []
    for k in range(len(noise.uniform)):
        state, info = kernel.step(target, state, tune, noise[k])
        states.append(state)
        infos.append(info)
    return state, states, infos


def agree(kernel: Kernel, block: Block, setting_: tuple[FlatTarget, State, Tune, Noise]) -> list[Info]:
    """Same states, infos and counters; the infos of the kernel's own steps."""
    target, state, tune, noise = setting_
    near = {"rtol": 1e-9, "atol": 1e-9} if state.x.dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    before = target.view.counter.rows
    last, states, infos = eager(kernel, target, state, tune, noise)
    middle = target.view.counter.rows
    found, trace = block(state, tune, noise)
    assert target.view.counter.rows - middle == middle - before
    for name, tensor in last.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, equal_nan=True, **near)
    torch.testing.assert_close(trace.x, torch.stack([s.x for s in states]), **near)
    torch.testing.assert_close(trace.states["energy"], torch.stack([s.energy for s in states]), equal_nan=True, **near)
    for name in ("acceptance", "accepted", "divergent"):
        wanted = torch.stack([getattr(info, name) for info in infos])
        torch.testing.assert_close(trace.reported[name], wanted, equal_nan=True, **near)
    return infos


@pytest.mark.parametrize("name", KERNELS)
def test_compiled_is_eager_on_the_same_noise(name: str):
    kernel = KERNELS[name]
    given = setting(kernel, bent, torch.float64)
    infos = agree(kernel, compile_kernel(kernel, *given[:3], backend="native"), given)
    assert any(bool(info.accepted.any()) for info in infos)


@pytest.mark.parametrize("mass", ["diagonal", "per chain", "dense", "low rank"])
@pytest.mark.parametrize("name", ["HMC", pytest.param("MCLMC", marks=pytest.mark.slow)])
def test_masses(name: str, mass: str):
    kernel = KERNELS[name]
    given = setting(kernel, bent, torch.float64, masses(torch.float64)[mass])
    agree(kernel, compile_kernel(kernel, *given[:3], backend="native"), given)


@pytest.mark.parametrize("name", ["HMC", *(pytest.param(n, marks=pytest.mark.slow) for n in KERNELS if n != "HMC")])
def test_single_precision(name: str):
    kernel = KERNELS[name]
    given = setting(kernel, bent, torch.float32, masses(torch.float32)["dense"])
    agree(kernel, compile_kernel(kernel, *given[:3], backend="native"), given)


@pytest.mark.parametrize("name", ["MALA", pytest.param("HMC", marks=pytest.mark.slow)])
def test_rejections_and_divergences_where_densities_are_zero_or_undefined(name: str):
    kernel = KERNELS[name]
    target, state, _, noise = setting(kernel, edged, torch.float64)
    tune = Tune(torch.tensor(1.5, dtype=torch.float64))
    infos = agree(kernel, compile_kernel(kernel, target, state, tune, backend="native"), (target, state, tune, noise))
    assert any(bool(info.divergent.any()) for info in infos)
    assert any(bool((~info.accepted & ~info.divergent).any()) for info in infos)


def test_a_compiled_kernel_keeps_its_target():
    """From exact draws, |z| < 4.5 for four moments: a false alarm in 1 of 37,000 runs, and the seed is fixed."""
    n, kernel = 20_000, bm.HMC(step_size=0.9, num_leapfrog=3)
    generator = torch.Generator().manual_seed(5)
    variances = torch.tensor([0.5, 2.0], dtype=torch.float64)
    target = ravel(bm.Gaussian(torch.tensor([1.0, -2.0], dtype=torch.float64), variances))
    draws = torch.tensor([1.0, -2.0]) + variances.sqrt() * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    state = kernel.init(target, draws)
    tune = kernel.tune(state.x)
    block = compile_kernel(kernel, target, state, tune, backend="native")
    after, trace = block(state, tune, kernel.noise(state, generator, 10))
    assert 0.5 < float(trace.reported["acceptance"].mean()) < 0.99
    z = (after.x - torch.tensor([1.0, -2.0])) / variances.sqrt()
    assert float((z.mean(0) * n**0.5).abs().max()) < 4.5
    assert float(((z * z).mean(0) - 1).abs().max()) * (n / 2) ** 0.5 < 4.5


def test_what_cannot_be_compiled_says_why():
    kernel = bm.HMC(step_size=0.1, num_leapfrog=1)

    def branching(x: Tensor) -> Tensor:
        return -x.sum(-1) if float(x.sum()) > 0 else x.sum(-1)

    target, state, tune, _ = setting(kernel, branching, torch.float64)
    with pytest.raises(bm.CompileError, match="native: .*inductor: "):
        compile_kernel(kernel, target, state, tune)
    with pytest.raises(ValueError, match="backend is one of"):
        compile_kernel(kernel, target, state, tune, backend="jit")


def test_a_step_that_draws_random_numbers_is_refused():
    from boltzmix.compose.compiled.scan import whole_step

    kernel = bm.ULA(step_size=0.1)

    def noisy(x: Tensor) -> Tensor:
        return -(x * x).sum(-1) + torch.randn_like(x).sum(-1)

    target, state, tune, _ = setting(kernel, noisy, torch.float64)
    with pytest.raises(bm.CompileError, match="draws random numbers"):
        whole_step(kernel, target, state, tune)


def test_a_step_that_writes_to_what_it_holds_is_refused():
    from boltzmix.compose.compiled.scan import whole_step

    kernel, calls = bm.ULA(step_size=0.1), torch.zeros(3)

    def counting(x: Tensor) -> Tensor:
        calls[1:].add_(1)
        return -(x * x).sum(-1)

    target, state, tune, _ = setting(kernel, counting, torch.float64)
    with pytest.raises(bm.CompileError, match="changes a tensor"):
        whole_step(kernel, target, state, tune)
