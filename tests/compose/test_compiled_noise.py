"""Noise that compiled code draws: torch's numbers from the same seeds, and the memory that it is put into."""

import gc
import shutil
from dataclasses import dataclass

import pytest
import torch

import boltzmix.compose as bm
from boltzmix.compose.compiled import memory, normals, toolchain
from boltzmix.compose.compiled.block import compile_kernel
from boltzmix.compose.flat import ravel
from boltzmix.compose.kernels.base import draw_noise

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")

DTYPES = [torch.float32, torch.float64]


def library(dtype=torch.float32):
    return toolchain.load(normals.source(dtype))


def normal_numbers(count, seed):
    """As many of them in float32."""
    generator = torch.Generator().manual_seed(seed)
    return normals._drawn(library(), torch.empty(count, 1), generator, 1).normal.flatten()


# -------------------------------------------------------------- the same numbers


def agrees_with_torch(dtype=torch.float32):
    """From any place of the twister, for groups that are full and that are not; the state to the bit."""
    drawing, near = library(dtype), 2e-6 if dtype == torch.float32 else 5e-14
    for skipped in (0, 1, 7, 311, 623, 624, 625):
        for steps, n, d in ((1, 16, 1), (1, 17, 1), (3, 7, 5), (1, 39, 16), (2, 311, 2), (1, 1000, 3)):
            mine, torchs = (torch.Generator().manual_seed(skipped + 5) for _ in range(2))
            for generator in (mine, torchs):
                torch.rand(skipped, generator=generator)
            like = torch.empty(n, d, dtype=dtype)
            found, truth = normals._drawn(drawing, like, mine, steps), draw_noise(like, torchs, steps)
            torch.testing.assert_close(found.normal, truth.normal, rtol=0, atol=near)
            assert torch.equal(found.uniform, truth.uniform)
            assert torch.equal(found.jitter, truth.jitter)
            assert torch.equal(mine.get_state(), torchs.get_state())
    assert normals.draws_as_torch_does(drawing, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_those_of_torch(dtype):
    agrees_with_torch(dtype)


def test_the_default_generator_is_used_where_none_is_given():
    torch.manual_seed(3)
    found = normals.draw_noise(torch.empty(100, 50), None, 2)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.testing.assert_close(found.normal, draw_noise(torch.empty(100, 50), None, 2).normal, rtol=0, atol=2e-6)
    assert torch.equal(after, torch.rand(1))


def test_library_that_draws_otherwise_is_not_used(monkeypatch):
    """As if torch had changed its ways: torch draws."""
    like = torch.empty(100, 50)
    monkeypatch.setattr(normals, "draw_by_torch", lambda like, generator, steps: draw_noise(like + 1, generator, 2))
    assert not normals.draws_as_torch_does(library(), torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(normals, "checked_library", lambda dtype: None)
    found, truth = (f(like, torch.Generator().manual_seed(1), 3) for f in (normals.draw_noise, draw_noise))
    assert torch.equal(found.normal, truth.normal)


def test_without_a_compiler_torch_draws(monkeypatch):
    def refuse(source):
        raise bm.CompileError("no compiler")

    monkeypatch.setattr(normals, "load", refuse)
    assert normals.checked_library.__wrapped__(torch.float32) is None


# ----------------------------------------------------------------- the normal law


def looks_normal():
    """Moments, tails, dependence of 2^22 numbers, each within five standard errors: 18 figures, false alarms 1e-5."""
    x = normal_numbers(1 << 22, 1).double()
    n = len(x)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - mean) < 5 * (variance / n) ** 0.5
    for limit in (1.0, 2.0, 3.0, 4.0):
        share = float(torch.special.erfc(torch.tensor(limit / 2**0.5, dtype=torch.float64)))
        assert abs(float((x.abs() > limit).double().mean()) - share) < 5 * (share / n) ** 0.5
    for lag in (1, 2, 8, 16, 624):
        for power in (1, 2):
            a = x**power - (0 if power == 1 else 1)
            assert abs(float((a[lag:] * a[:-lag]).mean())) < 5 * (1 if power == 1 else 2) / n**0.5


def reaches_far_out():
    """Beyond 4.5 in 2^25 numbers: 228 are expected and 5.5 standard errors are allowed, false alarms 1e-7."""
    count = sum(int((normal_numbers(1 << 22, seed).abs() > 4.5).sum()) for seed in range(8))
    expected = (1 << 25) * float(torch.special.erfc(torch.tensor(4.5 / 2**0.5, dtype=torch.float64)))
    assert abs(count - expected) < 5.5 * expected**0.5


def passes_kolmogorovs_test():
    """The largest distance of distribution functions of 2^20 numbers, sqrt(n) D < 2.8: false alarms 3e-7."""
    x = normal_numbers(1 << 20, 2).double().sort().values
    n = len(x)
    wanted = torch.special.ndtr(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - wanted).max(), (wanted - steps[:-1]).max())
    assert float(distance) * n**0.5 < 2.8


@pytest.mark.parametrize("check", [looks_normal, reaches_far_out, passes_kolmogorovs_test], ids=lambda c: c.__name__)
def test_law(check):
    check()


def test_chains_and_steps_have_numbers_of_their_own():
    """Correlations of 64 chains × 8 steps over 2,000 coordinates: 131,328 pairs and |z| < 6.5, false alarms 1e-5."""
    noise = normals.draw_noise(torch.empty(64, 2000), torch.Generator().manual_seed(4), 8)
    x = noise.normal.reshape(512, 2000).double()
    z = (x @ x.mT / 2000**0.5).triu(1).abs().max()
    assert float(z) < 6.5


# ------------------------------------------------------------------------- chains


def gaussian(dtype):
    return ravel(bm.Gaussian(torch.zeros(40, dtype=dtype), torch.linspace(0.5, 2, 40, dtype=dtype)), dtype=dtype)


def block_noise_is_the_kernels(kernel=None):
    """Up to rounding, with as much taken from the generator; of kernels with noise of their own it is that."""
    kernel = kernel or bm.HMC(step_size=0.3)
    target = gaussian(torch.float64)
    state = kernel.init(target, torch.ones(64, 40, dtype=torch.float64))
    block = compile_kernel(kernel, target, state, kernel.tune(state.x), backend="native")
    mine, torchs = (torch.Generator().manual_seed(9) for _ in range(2))
    found, truth = block.noise(state, mine, 5), kernel.noise(state, torchs, 5)
    assert type(found) is type(truth)
    torch.testing.assert_close(found.normal, truth.normal, rtol=0, atol=5e-14)
    assert torch.equal(found.uniform, truth.uniform)
    assert torch.equal(found.jitter, truth.jitter)
    assert found.generator is mine
    assert torch.equal(mine.get_state(), torchs.get_state())


@pytest.mark.parametrize(
    "kernel", [bm.HMC(step_size=0.3, num_leapfrog=2), bm.Barker(step_size=0.3)], ids=lambda k: type(k).__name__
)
def test_noise_of_a_block_is_the_kernels(kernel):
    block_noise_is_the_kernels(kernel)


def compiled_chains_are_the_eager_ones():
    """With as many numbers as compiled code draws itself."""
    term = bm.Gaussian(torch.zeros(40, dtype=torch.float64), torch.linspace(0.5, 2, 40, dtype=torch.float64))
    runs = [
        bm.sample(term, chains=32, sampler=bm.MCMC(bm.HMC(0.3, 4), draws=70, compile=c), seed=2, dtype=torch.float64)
        for c in (False, True)
    ]
    assert runs[1].info.extra["compile"]["backend"] == "native"
    torch.testing.assert_close(runs[1].x, runs[0].x, rtol=1e-11, atol=1e-11)


def test_compiled_chains_are_the_eager_ones():
    compiled_chains_are_the_eager_ones()


@dataclass(frozen=True)
class Recorded(bm.HMC):
    """HMC that records something, so that its draws are eager."""

    def recorder(self, target, state, transitions):
        from boltzmix.compose.kernels.base import Recorder

        class Nothing(Recorder):
            def update(self, state, info, tune):
                pass

        return Nothing()


def test_eager_transitions_have_torchs_noise():
    """Bit for bit, where a recorder keeps a run eager that was asked to be compiled."""
    term = bm.Gaussian(torch.zeros(40), 1.0)
    eager, recorded = (
        bm.sample(term, chains=64, sampler=bm.MCMC(kernel(0.3, 2), draws=20, compile=setting), seed=0)
        for kernel, setting in ((bm.HMC, False), (Recorded, True))
    )
    assert torch.equal(eager.x, recorded.x)


# ------------------------------------------------------------------------- memory

needs_large_pages = pytest.mark.skipif(not memory.large_pages(), reason="this system has no large pages to give")


@needs_large_pages
def test_large_tensors_begin_where_pages_do_and_small_ones_are_torchs():
    large = memory.empty((3, 1 << 18), torch.float32)
    assert large.shape == (3, 1 << 18)
    assert large.is_contiguous()
    assert large.data_ptr() % (1 << 21) == 0
    large.fill_(2.0)
    assert float(large.double().sum()) == 2.0 * 3 * (1 << 18)
    assert memory.empty((5, 2), torch.bool).shape == (5, 2)
    assert memory.empty((1 << 21,), torch.bool).dtype == torch.bool


def memory_is_used_again_when_nobody_has_it():
    """Views keep it; what is gone waits."""
    memory._waiting.clear()
    whole = memory.empty((1 << 19,), torch.float32)
    whole.fill_(1.0)
    place, part = whole.data_ptr(), whole[5:10]
    del whole
    gc.collect()
    other = memory.empty((1 << 19,), torch.float32)
    other.fill_(7.0)
    assert other.data_ptr() != place
    assert part.tolist() == [1.0] * 5
    assert memory.waiting() == 0
    del part
    gc.collect()
    assert memory.waiting() == 1 << 21
    again = memory.empty((1 << 19,), torch.float32)
    assert again.data_ptr() == place
    assert memory.waiting() == 0
    del again, other


@needs_large_pages
def test_memory_is_used_again_when_nobody_has_it():
    memory_is_used_again_when_nobody_has_it()


@needs_large_pages
def test_no_more_than_a_limit_waits(monkeypatch):
    memory._waiting.clear()
    monkeypatch.setattr(memory, "_WAITING", 2 << 21)
    held = [memory.empty((1 << 19,), torch.float32) for _ in range(4)]
    del held
    gc.collect()
    assert memory.waiting() == 2 << 21


def test_without_large_pages_memory_is_torchs(monkeypatch):
    monkeypatch.setattr(memory, "large_pages", lambda: False)
    memory._waiting.clear()
    tensor = memory.empty((1 << 20,), torch.float32)
    assert tensor.shape == (1 << 20,)
    del tensor
    gc.collect()
    assert memory.waiting() == 0
