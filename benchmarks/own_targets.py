"""Targets of one's own for a comparison: a term, and what is known of its moments."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable

_DRAWS = 2**18
_PIECE = 2**14


def known(
    term: Term,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    square_mean: Tensor | None = None,
    square_variance: Tensor | None = None,
    exact: Callable[[int, torch.Generator], Tensor] | None = None,
    log_z: float | None = None,
    name: str | None = None,
    accuracy: float | None = None,
) -> Density:
    """A term of one variable ``(D,)`` as a target of comparisons.

    Its moments are given, all four of them, or estimated from 2¹⁸ exact draws: of ``exact``, or of the term itself
    where it can be drawn. An estimate is off by :math:`b^2 = 2^{-18}` on average, and is trusted to sixteen times that.

    Args:
        term: any static term with energies; its parameters are copied to float64.
        mean, variance: of x, ``(D,)``.
        square_mean, square_variance: of x², ``(D,)``.
        exact: exact draws ``(n, D)`` in float64.
        log_z: log of the integral of exp(−energy).
        name: in the tables; None is the term's.
        accuracy: b² below which the moments are not known.

    Raises:
        ValueError: no moments and nothing to estimate them from, or a variable of another shape.

    Example:
        >>> from boltzmix.compose.callables import term
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> p = term(lambda x: -0.5 * (x * x).sum(1), kind="log_prob", event_shape=(2,), name="normal")
        >>> known(p, mean=0 * one, variance=one, square_mean=one, square_variance=2 * one).name
        'normal'
    """
    variable = term.variables
    if not isinstance(variable, Variable) or len(variable.shape) != 1:
        raise ValueError(f"a comparison's target is over one variable (D,), and {term.name()} is over {variable}")
    dim, own = variable.shape[0], copy.deepcopy(term).double()
    given = (mean, variance, square_mean, square_variance)
    missing = [
        n for n, m in zip(("mean", "variance", "square_mean", "square_variance"), given, strict=True) if m is None
    ]
    if missing:
        if exact is None and not own.samplable:
            raise ValueError(
                f"the moments of {term.name()} are not known: give mean, variance, square_mean and square_variance "
                f"(of x², each ({dim},)), or exact=, which draws; got none of {', '.join(missing)}"
            )
        found = _moments(exact or _drawn_from(own), dim)
        accuracy = 16 / _DRAWS if accuracy is None else accuracy
    else:
        found = tuple(torch.as_tensor(m, dtype=torch.float64) for m in given)
    for what, moment in zip(("mean", "variance", "square_mean", "square_variance"), found, strict=True):
        if tuple(moment.shape) != (dim,) or not bool(torch.isfinite(moment).all()):
            raise ValueError(f"{what} of {term.name()} is finite and of shape ({dim},), got {tuple(moment.shape)}")

    def log_prob(x: Tensor) -> Tensor:
        return -own.energy(x)

    return Density(
        name or term.name(), dim, log_prob, None, *found, exact=exact, log_z=log_z,
        truth="reference" if missing else "exact", accuracy=accuracy or 0.0,
    )  # fmt: skip


def _drawn_from(term: Term) -> Callable[[int, torch.Generator], Tensor]:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        x = term.sample(n, generator)
        assert isinstance(x, Tensor)
        return x

    return draw


def _moments(draw: Callable[[int, torch.Generator], Tensor], dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(20_000)
    sums = torch.zeros(4, dim, dtype=torch.float64)
    for _ in range(math.ceil(_DRAWS / _PIECE)):
        x = draw(_PIECE, generator).double()
        sums += torch.stack([(x**k).mean(0) for k in (1, 2, 3, 4)]) * _PIECE / _DRAWS
    first, second, _, fourth = sums
    return first, second - first**2, second, fourth - second**2
