"""Blocks by torch's compiler: whole transitions in a scan, steps one by one, and the networks that they are for."""

import pytest
import torch
from torch import Tensor, nn

import boltzmix.compose as bm
from boltzmix.compose.compiled import scan
from boltzmix.compose.compiled.scan import ScanBlock, options, padded, whole_step
from boltzmix.compose.flat import ravel
from tests.compose.test_compiled_kernels import KERNELS, STEPS, agree, bent, edged, setting

slow = pytest.mark.slow


def test_padding_repeats_the_last_noise():
    block = torch.arange(6.0).reshape(3, 2)
    assert padded(block, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert torch.equal(padded(block, 3), block)


def test_options_of_devices():
    """Without a GPU here, what is asked of the compiler is all that can be checked."""
    assert options(torch.device("cuda")) == {"triton.cudagraphs": True}
    assert options(torch.device("cpu"))["realize_opcount_threshold"] == 1


def test_graphs_do_not_depend_on_the_numbers_that_a_target_holds():
    kernel = bm.HMC(step_size=0.5, num_leapfrog=2)
    texts, held = [], []
    for mean in (torch.zeros(3), torch.ones(3)):
        target = ravel(bm.Gaussian(mean, torch.ones(3)))
        state = kernel.init(target, torch.zeros(4, 3))
        step = whole_step(kernel, target, state, kernel.tune(state.x))
        texts.append(step.graph.code)
        held.append([t.flatten().tolist() for t in step.held])
        assert step.rows == {"rows": 8, "network_rows": 0}
        assert target.view.counter.rows == 4  # tracing is not counted
    assert texts[0] == texts[1]
    assert held[0] != held[1]


def graphs_run(block: ScanBlock, steps: int) -> tuple[Tensor, Tensor]:
    """Final and all positions of a run of ``steps``, without a compiler: the graph is called as it is."""
    generator = torch.Generator().manual_seed(4)
    kernel = bm.HMC(step_size=0.5, num_leapfrog=2)
    noise = kernel.noise(block.like, generator, steps)
    after, trace = block(block.like, kernel.tune(block.like.x), noise)
    return after.x, trace.x


def uncompiled(monkeypatch: pytest.MonkeyPatch, length: int) -> ScanBlock:
    """A block whose graphs run eagerly, the scan as a loop."""

    def loop(graph: object, states: int, wanted: list[int]) -> object:
        def run(shared: list[Tensor], carry: list[Tensor], noise: list[Tensor], active: Tensor) -> object:
            kept: list[list[Tensor]] = [[] for _ in wanted]
            for k in range(len(active)):
                out = graph(*shared, *carry, *(t[k] for t in noise))
                carry = [torch.where(active[k], a, b) for a, b in zip(out[:states], carry, strict=True)]
                for column, index in zip(kept, wanted, strict=True):
                    column.append(out[index])
            return carry, [torch.stack(column) for column in kept]

        return run

    monkeypatch.setattr(scan, "code", lambda graph, inputs, tier, make: make())
    monkeypatch.setattr(scan, "scan_over", loop)
    monkeypatch.setattr(scan, "_FEWEST", 2)
    kernel = bm.HMC(step_size=0.5, num_leapfrog=2)
    target = ravel(bm.Gaussian(torch.zeros(3), 1.0))
    state = kernel.init(target, torch.full((4, 3), 0.2))
    return ScanBlock(kernel, target, state, kernel.tune(state.x), length)


def padding_changes_nothing() -> None:
    """Blocks of five transitions, with one left over, are twelve, and end where twelve end."""
    with pytest.MonkeyPatch.context() as patch:
        block = uncompiled(patch, 5)
        rows = block.target.view.counter.rows  # pyright: ignore[reportAttributeAccessIssue]
        last, every = graphs_run(block, 12)
        assert block.target.view.counter.rows - rows == 12 * 4 * 2  # pyright: ignore[reportAttributeAccessIssue]
        block.tier = "step"
        wanted_last, wanted = graphs_run(block, 12)
        assert torch.equal(last, wanted_last)
        assert torch.equal(every, wanted)
        assert torch.equal(every[-1], last)


def test_padding_changes_nothing():
    padding_changes_nothing()


def test_other_numbers_of_chains_are_refused(monkeypatch: pytest.MonkeyPatch):
    block = uncompiled(monkeypatch, 5)
    kernel = bm.HMC(step_size=0.5, num_leapfrog=2)
    state = block.like.select(torch.arange(2))
    with pytest.raises(ValueError, match="compiled for 4 chains, got 2"):
        block(state, kernel.tune(state.x), kernel.noise(state, None, 3))


def test_a_scan_that_fails_leaves_steps(monkeypatch: pytest.MonkeyPatch):
    block = uncompiled(monkeypatch, 5)

    def fails(*_: object) -> object:
        raise RuntimeError("no scan today")

    wanted = graphs_run(block, 12)
    monkeypatch.setattr(scan, "scan_over", fails)
    found = graphs_run(block, 12)
    assert block.tier == "step"
    assert "no scan today" in block.reason
    assert torch.equal(found[0], wanted[0])


@slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_is_eager_on_the_same_noise(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan, "_FEWEST", 2)
    kernel = KERNELS[name]
    given = setting(kernel, bent, torch.float64)
    block = ScanBlock(kernel, *given[:3], length=STEPS - 3)  # pyright: ignore[reportArgumentType]
    agree(kernel, block, given)
    assert block.tier == "scan", block.reason


@slow
def test_rejections_and_divergences_where_densities_are_zero_or_undefined():
    kernel = bm.MALA(step_size=1.5)
    given = setting(kernel, edged, torch.float64)
    infos = agree(kernel, ScanBlock(kernel, *given[:3], length=1), given)  # pyright: ignore[reportArgumentType]
    assert any(bool(info.divergent.any()) for info in infos)


@slow
def test_networks_and_parameters_that_change():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)).double().requires_grad_(False)
    kernel = bm.HMC(step_size=0.3, num_leapfrog=2)

    def log_prob(x: Tensor) -> Tensor:
        return -network(x)[:, 0] - 0.5 * (x * x).sum(-1)

    compiled = []
    for _ in range(2):
        given = setting(kernel, log_prob, torch.float64)
        block = ScanBlock(kernel, *given[:3], length=1)  # pyright: ignore[reportArgumentType]
        agree(kernel, block, given)
        compiled.append(len(scan._CODE))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
    assert compiled[0] == compiled[1]  # other numbers, the same code


def test_one_step_through_the_compiler():
    kernel = bm.ULA(step_size=0.1)
    target = ravel(bm.term(lambda x: -(x * x).sum(-1), kind="log_prob", event_shape=(3,)), dtype=torch.float64)
    state = kernel.init(target, torch.ones(7, 3, dtype=torch.float64))
    tune = kernel.tune(state.x)
    noise = kernel.noise(state, torch.Generator().manual_seed(0), STEPS)
    agree(kernel, ScanBlock(kernel, target, state, tune, length=1), (target, state, tune, noise))
