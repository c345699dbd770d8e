"""Evaluations counted from inside the target."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Miscounted(RuntimeError):
    """A sampler says another number of evaluations than the target counted."""


class Tally:
    """Rows on which log-densities were evaluated.

    Attributes:
        rows: so far.
        elsewhere: whether the target was taken to where nothing is counted: to jax, or to a compiler.
    """

    def __init__(self) -> None:
        """Start from none."""
        self.rows, self.elsewhere = 0, False

    def of(self, log_prob: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same log-density, counting; what it counts for is out of a sampler's reach.

        Raises:
            RuntimeError: when it is called under ``torch.func.vmap``, where it cannot see how many rows there are.
        """

        def counted(x: Tensor) -> Tensor:
            if torch._C._functorch.is_functorch_wrapped_tensor(x):  # pyright: ignore[reportAttributeAccessIssue]
                raise RuntimeError(
                    "evaluations under torch.func.vmap or grad cannot be counted; call the log-density on rows (N, D) "
                    "and differentiate with torch.autograd.grad"
                )
            self.rows += x.shape[0]
            return log_prob(x)

        def release() -> Callable[[Tensor], Tensor]:
            self.elsewhere = True
            return log_prob

        counted.release = release  # for compilers; whoever takes it is noted  # pyright: ignore[reportFunctionMemberAccess]
        return counted

    def away(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """The maker of the density in jax, noting that it was used."""

        @functools.wraps(make)  # by which compiled programs of the same target are found again
        def made() -> Any:
            self.elsewhere = True
            return make()

        return made
