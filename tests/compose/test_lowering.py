"""Generated C++ against torch: every operation, on numbers that make trouble, in both precisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from boltzmix.compose.errors import CompileError
from tests.compose.compiled_operations import awkward, compiled, differing, eager

D = 13
C = torch.linspace(-2.0, 3.0, D, dtype=torch.float64)
INTEGERS = torch.arange(D) - 4
MASK = INTEGERS % 3 == 0
INDEX = torch.tensor([3, 0, 0, 12, 5])


def c(x: Tensor) -> Tensor:
    """Known numbers, in the precision of the row."""
    return C.to(x.dtype)


def slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gradient of a function of one row."""

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(f(y).sum(), y)
        return found

    return gradient


NUMBERS = torch.randn(128, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def table(x: Tensor, rows: int) -> Tensor:
    """A matrix of known numbers, (rows, D)."""
    return NUMBERS[:rows].to(x.dtype)


#: of any number
POINTWISE = {
    **{
        name: getattr(torch, name)
        for name in (
            "exp",
            "log",
            "log1p",
            "expm1",
            "tanh",
            "atan",
            "erf",
            "erfc",
            "sigmoid",
            "sqrt",
            "rsqrt",
            "floor",
            "ceil",
            "log2",
            "log10",
            "exp2",
            "abs",
            "sign",
            "sgn",
            "neg",
            "reciprocal",
            "square",
            "asin",
            "acos",
            "asinh",
            "acosh",
            "atanh",
            "trunc",
            "round",
            "relu",
            "isnan",
            "isinf",
            "isfinite",
            "frac",
            "sinh",
            "cosh",
            "erfinv",
        )
    },
    "logit": lambda x: torch.logit(x),
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "leaky": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "mish": F.mish,
    "add": lambda x: x + c(x),
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * c(x),
    "div": lambda x: x / c(x),
    "rdiv": lambda x: c(x) / x,
    "alpha": lambda x: torch.add(x, c(x), alpha=0.3),
    "sub alpha": lambda x: torch.sub(x, c(x), alpha=2),
    "integers": lambda x: x * INTEGERS + INTEGERS / 7,
    "integer division": lambda x: x + INTEGERS // 3,
    "integer powers": lambda x: x * INTEGERS**2,
    "by integers": lambda x: x / INTEGERS,
    "double constant": lambda x: x * C.to(x.dtype).sum() + torch.tensor(0.1, dtype=torch.float64),
    **{f"power {p}": lambda x, p=p: x**p for p in (0, 1, 2, 3, 4, 5, -1, -2, -3, 0.5, 1.5, -0.5, 0.3)},
    "powers": lambda x: x.abs() ** c(x),
    "power of": lambda x: 2.0**x,
    "powers of": lambda x: c(x).abs() ** x,
    **{
        name: lambda x, name=name: getattr(torch, name)(x, c(x))
        for name in (
            "lt",
            "le",
            "gt",
            "ge",
            "eq",
            "ne",
            "maximum",
            "minimum",
            "atan2",
            "hypot",
            "remainder",
            "fmod",
            "copysign",
        )
    },
    "equal to": lambda x: (x == 1.0) | (x != x),
    "remainder of": lambda x: torch.remainder(x, -0.7),
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp below": lambda x: x.clamp(min=c(x)),
    "clamp above": lambda x: x.clamp(max=0.5),
    "where": lambda x: torch.where(x > 0, x, c(x)),
    "where known": lambda x: torch.where(MASK, x, -x),
    "where mask": lambda x: torch.where(x > 0, x > 1, MASK),
    "where nan": lambda x: torch.where(x > 0, x.log(), 0.0),
    "masks": lambda x: ((x > 0) & MASK) | ~(x < 1) ^ (x > 2),
    "mask number": lambda x: x * (x > 0),
    "mask to float": lambda x: (x > 0).to(x.dtype) * 3 + x,
    "fill": lambda x: x.masked_fill(x < 0, 7.0),
    "fill known": lambda x: x.masked_fill(MASK, -torch.inf),
    "nan_to_num": torch.nan_to_num,
    "nan to": lambda x: torch.nan_to_num(x, 3.0, 4.0, -5.0),
    "lerp": lambda x: torch.lerp(x, c(x), 0.3),
    "addcmul": lambda x: torch.addcmul(c(x), x, x, value=0.5),
    "logaddexp": lambda x: torch.logaddexp(x, c(x)),
    "logical": lambda x: torch.logical_not(x) | torch.logical_and(x, x > 1),
}

#: of numbers for which the two do not differ by cancellation or by the reach of single precision
CALM = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
    "log_ndtr": torch.special.log_ndtr,
    "ndtr": torch.special.ndtr,
    "erfcx": torch.special.erfcx,
    "xlogy": lambda x: torch.special.xlogy(x.abs(), x.abs()),
    "sinc": torch.sinc,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "prelu": lambda x: F.prelu(x, torch.tensor(0.2, dtype=x.dtype)),
    "sum": lambda x: x.sum(),
    "sum 1": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean(1),
    "prod": lambda x: x.prod(1),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "max": lambda x: x.max(),
    "max values": lambda x: x.max(1).values,
    "logsumexp": lambda x: x.logsumexp(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "std": lambda x: x.std(1),
    "var": lambda x: x.var(1, unbiased=False),
    "norm": lambda x: x.norm(dim=1),
    "norm 1": lambda x: x.norm(p=1, dim=1),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    "norm inf": lambda x: torch.linalg.vector_norm(x, torch.inf, dim=1),
    "layer norm": lambda x: F.layer_norm(x, (D,)),
    "any": lambda x: (x > 2).any(1),
    "all": lambda x: (x > -9).all(1),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "outer sums": lambda x: (x[:, :, None] * x[:, None, :]).sum((0, 2)),
    "outer columns": lambda x: (x[:, :, None] + c(x)[:, None] * x[:, None, :]).sum(1),
    "sum of two": lambda x: (x[:, None, :] * table(x, 8)[None]).sum((1, 2)),
    "mean rows": lambda x: (x[:, None, :] * table(x, 17)).mean(1),
    "max columns": lambda x: (x[:, None, :] * table(x, 5)).amax(1),
    "long": lambda x: (x[:, :1] * torch.arange(101)).sum(1),
    "views": lambda x: x[:, :12].reshape(1, 3, 4).permute(2, 0, 1)[1:, :, ::2].expand(3, 2, 2).transpose(0, 2),
    "odd": lambda x: x[:, 1::3].unsqueeze(2).expand(1, 4, 3).flatten(1)[:, 2:-1],
    "flip": lambda x: x.flip(1) * c(x),
    "select": lambda x: x[:, 3] + x[:, -1],
    "split": lambda x: x.split([4, 9], 1)[1] * 2,
    "unbind": lambda x: x.unbind(1)[4],
    "take": lambda x: x[:, INDEX],
    "take 2": lambda x: (x.T @ x)[INDEX, INDEX.flip(0)],
    "masked": lambda x: x[:, MASK],
    "gather": lambda x: x.gather(1, INDEX[None]),
    "index_select": lambda x: x.index_select(1, INDEX),
    "tril": lambda x: torch.tril(x.T @ x),
    "triu": lambda x: torch.triu(x.T @ x, 1),
    "diagonal": lambda x: (x.T @ c(x)[None]).diagonal(),
    "diag": lambda x: torch.diag_embed(x),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "repeat": lambda x: x.repeat(1, 2),
    "interleave": lambda x: x.repeat_interleave(2, 1),
    "roll": lambda x: x.roll(2, 1),
    "pad": lambda x: F.pad(x, (2, 1), value=0.5),
    "cat": lambda x: torch.cat([x, c(x)[None], x[:, :3]], 1),
    "stack": lambda x: torch.stack([x, 2 * x, x.exp()], 2),
    "diff": lambda x: x.diff(dim=1),
    "trapezoid": lambda x: torch.trapezoid(x, dx=0.1),
    "triangle": lambda x: (x.T @ x)[tuple(torch.tril_indices(D, D))],
    "put": lambda x: torch.zeros(1, D, dtype=x.dtype).index_put((torch.tensor([0]), INDEX.unique()), x[0, :4]),
    "put more": lambda x: x.index_add(1, INDEX, x[:, :5]),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, INDEX[None].unique()[None], x[:, :4]),
    "scatter add": lambda x: x.scatter_add(1, INDEX[None], x),
    "in place": lambda x: _written(x),
    "index_copy": lambda x: c(x).expand(1, -1).index_copy(1, torch.tensor([2, 7]), x[:, :2]),
    "embedding": lambda x: F.embedding(torch.tensor([[1, 2], [0, 4]]), x.T),
    **{f"product {n}": lambda x, n=n: x @ table(x, n).T for n in (1, 2, 3, 4, 7, 16, 29, 33, 64, 101)},
    **{f"columns {n}": lambda x, n=n: table(x, n) @ x.T for n in (1, 3, 14, 33)},
    "linear": lambda x: F.linear(x, table(x, 6), c(x)[:6]),
    "quadratic": lambda x: torch.einsum("ni,ij,nj->n", x, table(x, D), x),
    "own product": lambda x: x.T @ x,
    "three": lambda x: (x.T @ x) @ table(x, 5).T,
    "left": lambda x: table(x, 5) @ (x.T @ x),
    "batch": lambda x: torch.bmm(table(x, 2).view(2, 1, D).expand(2, 3, D) * x, (x.T @ x).expand(2, D, D)),
    "batch known": lambda x: torch.einsum("ni,kij->kj", x, torch.stack([table(x, D), table(x, D).T])),
    "dot": lambda x: (x[0] @ x[0])[None],
    "vector": lambda x: table(x, D) @ x[0],
    "addmm": lambda x: torch.addmm(c(x)[None], x, table(x, D), beta=0.5, alpha=2),
    "vmap": lambda x: torch.vmap(lambda r: (r @ table(r, D) @ r).sin())(x),
    "scalar": lambda x: (x[0, 0] * 2 + x[0, 1].exp()).reshape(1),
    "conditions": lambda x: x * torch.tensor(True) + torch.ones_like(x),
    **{
        f"slope {name}": slope(f)
        for name, f in {
            "slice": lambda x: (x[:, 2:9] * x[:, 3:10]).sum(),
            "index": lambda x: (x[:, INDEX] ** 2).sum(),
            "cat": lambda x: torch.cat([x, x.sin()], 1).prod(1),
            "cumsum": lambda x: (x.cumsum(1) ** 2).sum(),
            "logsumexp": lambda x: x.logsumexp(1),
            "gather": lambda x: x.gather(1, INDEX[None]).prod(),
            "softmax": lambda x: (x.softmax(1) * c(x)).sum(),
            "cumulative": lambda x: x.logcumsumexp(1).sum(),
            "lgamma": lambda x: torch.lgamma(x.exp()).sum(),
            "std": lambda x: x.std(1),
            "norm": lambda x: x.norm(dim=1),
            "var": lambda x: x.var(1),
            "unfold": lambda x: (x.unfold(1, 3, 1).sum(2) ** 2).sum(),
            "product": lambda x: (x @ table(x, 7).T).sin().sum(),
            "left": lambda x: (table(x, 7) @ x.T).sin().sum(),
            "two": lambda x: ((x.T @ x)[INDEX, INDEX] ** 2).sum(),
            "clamp": lambda x: x.clamp(-1, 1).sum(),
            "where": lambda x: torch.where(x > 0, x**2, x.exp()).sum(),
            "log_ndtr": lambda x: torch.special.log_ndtr(x).sum(),
            "atan2": lambda x: torch.atan2(x, c(x)).sum(),
            "amax": lambda x: x.amax(1).sum(),
            "tril": lambda x: (torch.tril(x.T @ x) ** 2).sum(),
            "select": lambda x: x[:, 3] ** 2 * x[:, 4],
            "stack": lambda x: torch.stack([x, x**2], 2).prod(2).sum(),
            "expand": lambda x: (x.expand(5, D) * table(x, 5)).sum(),
            "mlp": lambda x: ((x @ table(x, 9).T).tanh() @ table(x, 9)[:, :3]).logsumexp(1),
            "erfinv": lambda x: torch.erfinv(x.tanh() * 0.9).sum(),
            "diagonal": lambda x: (x.T @ x).diagonal().prod(),
            "pad": lambda x: (F.pad(x, (1, 2)) ** 2).sum(),
            "flip": lambda x: (x.flip(1) * x).sum(),
            "layer": lambda x: F.layer_norm(x, (D,)).pow(3).sum(),
            "embedding": lambda x: (F.embedding(INDEX, x.T) ** 2).sum(),
            "gelu": lambda x: F.gelu(x).sum(),
            "softplus": lambda x: F.softplus(x).sum(),
            "prod": lambda x: x.prod(1),
            "triangle": lambda x: (x.T @ x)[tuple(torch.tril_indices(D, D))].sin().sum(),
            "cross entropy": lambda x: F.cross_entropy(x, torch.tensor([2]), reduction="none"),
            "smooth l1": lambda x: F.smooth_l1_loss(x, c(x)[None], reduction="sum"),
        }.items()
    },
}


def _written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1] = x[:, 2] * 2
    out[:, 4:6] += x[:, :2]
    return out


def _check(functions: dict[str, Callable[[Tensor], Tensor]], x: Tensor, lanes: int, near: float) -> None:
    found = compiled(functions, x, lanes)
    wrong = {}
    for name, function in functions.items():
        wanted = eager(function, x)
        bad = differing(found[name], wanted, near).nonzero()[:3].tolist()
        if bad:
            wrong[name] = [(float(found[name][i, j]), float(wanted[i, j])) for i, j in bad]
    assert not wrong, wrong


#: vectors of fewer chains than the processor holds, and full ones; half a minute of a compiler's time each, so that the
#: two tests share the quick ones
VECTORS = {"narrow": (torch.float32, 4, 2e-5), "narrower": (torch.float64, 2, 1e-11), "full": (torch.float64, 8, 1e-11)}


def vectors(quick: str) -> list[Any]:
    """All of them, the others than ``quick`` marked slow."""
    return [pytest.param(*v, marks=() if name == quick else pytest.mark.slow, id=name) for name, v in VECTORS.items()]


@pytest.mark.parametrize(("dtype", "lanes", "near"), vectors("full"))
def test_pointwise(dtype: torch.dtype, lanes: int, near: float) -> None:
    _check(POINTWISE, awkward(2 * lanes + 1, D, dtype), lanes, near)


@pytest.mark.parametrize(("dtype", "lanes", "near"), vectors("narrow"))
def test_tensors(dtype: torch.dtype, lanes: int, near: float) -> None:
    generator = torch.Generator().manual_seed(4)
    _check(CALM, torch.randn(lanes + 1, D, generator=generator, dtype=dtype), lanes, near)


REFUSED = {
    "sort": lambda x: x.sort(1).values,
    "median": lambda x: x.median(1).values,
    "searchsorted": lambda x: torch.searchsorted(C.to(x.dtype), x),
    "cholesky": lambda x: torch.linalg.cholesky(x.T @ x + torch.eye(D)),
    "argmax": lambda x: x.argmax(1),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "solve": lambda x: torch.linalg.solve_triangular((x.T @ x).tril(), x.T, upper=False),
    "places of": lambda x: x.max(1).indices,
    "random": lambda x: x + torch.randn(1, D),
    "conv": lambda x: F.conv1d(x[:, None], torch.ones(2, 1, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_code_is_refused_by_name(name: str) -> None:
    with pytest.raises(CompileError, match="C\\+\\+|random|depend"):
        compiled({name: REFUSED[name]}, torch.ones(1, D), 4)


def test_trigamma_is_a_zeta_function() -> None:
    """torch's own is known to nine digits."""
    x = torch.linspace(0.05, 30.0, 40, dtype=torch.float64).reshape(8, 5)
    found = compiled({"trigamma": lambda t: torch.polygamma(1, t)}, x, 2)["trigamma"]
    torch.testing.assert_close(
        found, torch.special.zeta(torch.tensor(2.0, dtype=torch.float64), x), rtol=1e-12, atol=0.0
    )
