"""Networks of one architecture under one vmap: the same values, only where it pays."""

import pytest
import torch

from boltzmix.compose import twins
from boltzmix.compose.term import evaluate
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.nets import MLP


def members(kind: type, count: int = 8) -> list:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        out = {"out": 1} if kind is EnergyDiffusion else {}
        term = kind(MLP(2, hidden=8, num_classes=3, **out), (2,), num_classes=3, sigma_data=0.5 + seed, loc=float(seed))
        with torch.no_grad():  # at initialisation, labels have no say yet
            for parameter in term.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        made.append(term.eval().requires_grad_(False))
    return made


@pytest.mark.parametrize("kind", [Diffusion, EnergyDiffusion])
@pytest.mark.parametrize("conditioned", [False, True])
def test_twins_equal_a_loop(kind: type, conditioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = members(kind)
    if conditioned:
        terms = [t.given(label=i % 3) if i % 2 else t for i, t in enumerate(terms)]
    x, sigma = torch.randn(5, 2), torch.rand(5) + 0.1
    calls = []
    real = twins.Twins.__call__
    monkeypatch.setattr(twins.Twins, "__call__", lambda self, *a: calls.append(1) or real(self, *a))
    together = evaluate(terms, x, sigma, energy=terms[0].has_energy, score=True)
    assert len(calls) == 1
    for term in terms:
        energy, score = together[term.key()]
        assert torch.allclose(score, term.score(x, sigma), rtol=1e-4, atol=1e-5)
        if energy is not None:
            assert torch.allclose(energy, term.energy(x, sigma), rtol=1e-4, atol=1e-5)


def test_changed_parameters_are_seen() -> None:
    terms = members(Diffusion)
    x = torch.randn(4, 2)
    evaluate(terms, x, torch.tensor(0.5), energy=False, score=True)
    with torch.no_grad():
        for parameter in terms[3].parameters():
            parameter.add_(0.3)
    after = evaluate(terms, x, torch.tensor(0.5), energy=False, score=True)
    assert torch.allclose(after[terms[3].key()][1], terms[3].score(x, 0.5), rtol=1e-4, atol=1e-5)


def test_a_loop_where_stacking_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("stacked")

    monkeypatch.setattr(twins.Twins, "__call__", refuse)
    few, many_rows = members(Diffusion, 2), torch.randn(100, 2)
    evaluate(few, torch.randn(3, 2), torch.tensor(0.5), energy=False, score=True)
    evaluate(members(Diffusion), many_rows, torch.tensor(0.5), energy=False, score=True)


def test_gradients_reach_parameters_in_training() -> None:
    terms = [t.requires_grad_(True) for t in members(EnergyDiffusion)]
    values = evaluate(terms, torch.randn(3, 2), torch.tensor(0.5), energy=True, score=True)
    sum(e.sum() for e, _ in values.values()).backward()
    assert all(any(p.grad is not None for p in t.parameters()) for t in terms)


def test_nothing_is_kept_alive() -> None:
    terms = members(Diffusion)
    evaluate(terms, torch.randn(3, 2), torch.tensor(0.5), energy=False, score=True)
    before = len(twins._stacks)
    del terms
    import gc

    gc.collect()
    assert len(twins._stacks) == before - 1
