r"""What a target of the comparison is: a log-density in two languages and the truth about its moments.

Errors of a sampler are judged by means of :math:`x_i` and of :math:`x_i^2`, so a target knows :math:`E\,x_i`,
:math:`\mathrm{Var}\,x_i`, :math:`E\,x_i^2` and :math:`\mathrm{Var}\,x_i^2 = E\,x_i^4 - (E\,x_i^2)^2`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.compose.callables import term
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.term import Term
from boltzmix.compose.tracing import is_tracing
from boltzmix.compose.variable import Variable

LogProb = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Modes:
    """Regions of which the masses are known.

    Attributes:
        assign: the region of each row, ``(N, D) -> (N,)`` of ``torch.long``.
        masses: their probabilities, ``(M,)`` in float64.
    """

    assign: Callable[[Tensor], Tensor]
    masses: Tensor


@dataclass(frozen=True, eq=False)
class Density:
    """A target in both languages and what is known of it.

    Attributes:
        name: one of :data:`boltzmix.benchmarks.densities.DENSITIES`.
        dim: D.
        log_prob: of rows ``(N, D)`` in torch, ``(N,)``, in the precision of the rows.
        jax_log_prob: makes the same function of one point ``(D,)`` in jax; None for discrete targets.
        mean: true means, ``(D,)`` in float64.
        variance: true variances, ``(D,)`` in float64.
        square_mean: true means of squares, ``(D,)`` in float64.
        square_variance: true variances of squares, ``(D,)`` in float64.
        exact: exact draws in float64, ``(n, generator) -> (n, D)``.
        log_z: the log of the integral of ``exp(log_prob)``.
        modes: regions with known masses, where whether a sampler finds them all is the question.
        truth: how the moments are known: ``"exact"``, ``"quadrature"`` or ``"reference"``, long runs.
        accuracy: b² below which the truth itself is not known: the square of its largest standard error in units of
            the standard deviations of :math:`x_i` and of :math:`x_i^2`.
        reference: mean and standard deviation, ``(D,)`` in float64, that somebody who knows the target's extent, and
            nothing else, would temper from; None is N(0, I).
        support: ``"real"``, or ``"integers(K)"`` for discrete targets, whose ``log_prob`` takes the values as floats.
    """

    name: str
    dim: int
    log_prob: LogProb
    jax_log_prob: Callable[[], LogProb] | None
    mean: Tensor
    variance: Tensor
    square_mean: Tensor
    square_variance: Tensor
    exact: Callable[[int, torch.Generator], Tensor] | None = None
    log_z: float | None = None
    modes: Modes | None = None
    truth: str = "exact"
    accuracy: float = 0.0
    reference: tuple[Tensor, Tensor] | None = None
    support: str = "real"

    def term(self, dtype: torch.dtype | None = torch.float64) -> Term:
        """The target as a term over states of one precision; None takes any, and discrete states are integers."""
        discrete = self.support != "real"
        variable = Variable((self.dim,), self.support, dtype=None if discrete else dtype)
        hints: dict[str, Any] = {"relaxed": "values"} if discrete else {}
        return term(self.log_prob, kind="log_prob", variables=variable, name=self.name, **hints)

    def starts(self, chains: int, seed: int) -> Tensor:
        """The same starts for every sampler, ``(chains, D)`` in float64.

        Draws of the reference where there is one, otherwise uniform in (−2, 2); integers of a discrete target are
        uniform and ``torch.long``.
        """
        generator = torch.Generator().manual_seed(90_000 + seed)
        size = (chains, self.dim)
        if self.support != "real":
            levels = Variable((self.dim,), self.support).levels
            return torch.randint(levels, size, generator=generator)
        if self.reference is not None:
            mean, sd = self.reference
            return mean + sd * torch.randn(size, generator=generator, dtype=torch.float64)
        return 4 * torch.rand(size, generator=generator, dtype=torch.float64) - 2

    def extent(self, dtype: torch.dtype = torch.float64) -> Gaussian:
        """The reference as a normalised term."""
        if self.reference is None:
            return Gaussian(torch.zeros(self.dim, dtype=dtype), 1.0)
        mean, sd = self.reference
        return Gaussian(mean.to(dtype), (sd**2).to(dtype))


class Constants:
    """Numbers that a log-density holds, in the precision and on the device of the states that it is given.

    They are cast once: float32 and float64 on the CPU here, what else is asked for when it first is.

    Example:
        >>> held = Constants(np.array([1.0, 2.0]))
        >>> (own,) = held(torch.zeros(1, dtype=torch.float32))
        >>> own, own is held(torch.zeros(3, dtype=torch.float32))[0]
        (tensor([1., 2.]), True)
    """

    def __init__(self, *values: "np.ndarray | Tensor") -> None:
        """Hold arrays or tensors of numbers, which are taken as float64."""
        self.values = tuple(torch.as_tensor(v, dtype=torch.float64) for v in values)
        self._cast = {(v, "cpu"): self._to(v, torch.device("cpu")) for v in (torch.float32, torch.float64)}

    def _to(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(v.to(device=device, dtype=dtype).contiguous() for v in self.values)

    def __call__(self, like: Tensor) -> tuple[Tensor, ...]:
        """The numbers as a state has its own."""
        key = (like.dtype, str(like.device))
        if key in self._cast:
            return self._cast[key]
        found = self._to(like.dtype, like.device)
        if not is_tracing():  # what is made while a graph is traced belongs to the graph
            self._cast[key] = found
        return found


def moments(first: Tensor, second: Tensor, fourth: Tensor) -> dict[str, Any]:
    """The four moments of a density from :math:`E\\,x_i`, :math:`E\\,x_i^2` and :math:`E\\,x_i^4`, ``(D,)`` each."""
    first, second, fourth = first.double(), second.double(), fourth.double()
    return {
        "mean": first, "variance": second - first**2, "square_mean": second, "square_variance": fourth - second**2,
    }  # fmt: skip


def gaussian_moments(mean: Tensor, variance: Tensor) -> dict[str, Any]:
    r"""The same of Gaussian coordinates: :math:`\mathrm{Var}\,x^2 = 2 v^2 + 4 m^2 v`."""
    mean, variance = mean.double(), variance.double()
    return {
        "mean": mean, "variance": variance, "square_mean": mean**2 + variance,
        "square_variance": 2 * variance**2 + 4 * mean**2 * variance,
    }  # fmt: skip


def zeros(dim: int) -> Tensor:
    """Zeros in float64."""
    return torch.zeros(dim, dtype=torch.float64)


def normal_draws(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal draws in float64, ``(n, D)``."""
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)
