"""Terms of the library as C++: what they evaluate to is compared with themselves when they are built."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from boltzmix.compose import Gaussian, GaussianMixture, Term, ravel, term
from boltzmix.compose.compiled.native import check_source, source
from boltzmix.compose.compiled.toolchain import load
from boltzmix.compose.errors import CompileError
from boltzmix.compose.flat import FlatTarget

NETWORK = nn.Sequential(nn.Linear(3, 9), nn.SiLU(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 1))


def _gaussian(mean: float = 0.0) -> Gaussian:
    return Gaussian(torch.tensor([mean, 1.0, -2.0]), 0.7)


def _supports(support: object, **options: object) -> Term:
    def log_prob(x: Tensor) -> Tensor:
        return -((x - 0.3) ** 2).flatten(1).sum(1) + x.flatten(1).exp().sum(1).log()

    return term(log_prob, kind="log_prob", event_shape=(3,), support=support, **options)


TERMS: dict[str, Callable[[], Term]] = {
    "Gaussian": _gaussian,
    "mixture": lambda: GaussianMixture(torch.randn(4, 3), 0.5),
    "product": lambda: _gaussian() * _gaussian(1.0) ** 0.3,
    "mixture of products": lambda: 0.3 * (_gaussian() * _gaussian(2.0)) + 0.7 * _gaussian(-1.0),
    "negative power": lambda: _gaussian() * Gaussian(torch.ones(3), 3.0) ** -0.5,
    "network": lambda: term(lambda x: NETWORK(x)[:, 0], kind="energy", event_shape=(3,)),
    "positive": lambda: _supports("positive"),
    "simplex": lambda: _supports("simplex"),
    "distribution": lambda: term(
        torch.distributions.Independent(torch.distributions.StudentT(torch.full((3,), 4.0)), 1)
    ),
    "gamma": lambda: term(torch.distributions.Independent(torch.distributions.Gamma(torch.full((3,), 2.5), 1.5), 1)),
}


def _built(target: FlatTarget, x: Tensor) -> None:
    made = source(target, x, 4)
    check_source(load(made.text), made, target, x)


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_lowered(name: str) -> None:
    torch.manual_seed(0)
    target = ravel(TERMS[name]())
    _built(target, torch.randn(5, target.dim, dtype=target.dtype))


def test_rows_that_touch_each_other_are_refused() -> None:
    target = ravel(term(lambda x: ((x - x.mean(0)) ** 2).sum(1) + x.square().sum(1), kind="energy", event_shape=(3,)))
    with pytest.raises(CompileError, match="rows"):
        _built(target, torch.randn(5, 3))


def _raises(x: Tensor) -> Tensor:
    raise ValueError("this density is not meant to be called")


def _branches(x: Tensor) -> Tensor:
    return x.sum(1) if float(x.sum()) > 0 else x.square().sum(1)


@pytest.mark.parametrize("function", [_raises, _branches])
def test_functions_that_raise_or_branch_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    target = ravel(term(function, kind="energy", event_shape=(3,)))
    with pytest.raises(CompileError, match="traced"):
        source(target, torch.randn(5, 3), 4)


def test_double_constants_do_not_hide_in_single_precision() -> None:
    wide = torch.linspace(0, 1, 3, dtype=torch.float64)
    target = ravel(term(lambda x: ((x - wide) ** 2).sum(1), kind="energy", event_shape=(3,)))
    with pytest.raises(CompileError, match="float64"):
        source(target, torch.randn(5, 3), 4)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from boltzmix.compose.compiled import toolchain

    for cached in (toolchain.compiler, toolchain.identity):
        cached.cache_clear()
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("PATH", "")
    try:
        with pytest.raises(CompileError, match="install g\\+\\+"):
            load("int nothing;")
    finally:
        for cached in (toolchain.compiler, toolchain.identity):
            cached.cache_clear()


def test_folders_that_others_can_write_to_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from pathlib import Path

    from boltzmix.compose.compiled import toolchain

    folder = Path(str(tmp_path)) / "boltzmix"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("BOLTZMIX_CACHE", str(tmp_path))
    with pytest.raises(CompileError, match="written by others"):
        toolchain.cache_folder()
