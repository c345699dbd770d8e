r"""Known coordinates: a term over a trajectory as a term over those coordinates of it that are free.

A planner knows the first state and often the last one. With :math:`x = (x_f, x_k)`, and :math:`x_k = v` known, the
density that is sampled is :math:`p(x_f \mid x_k = v)`, and there are three ways to have its noised versions, of which
:func:`hold` takes the best:

1. In closed form. For a Gaussian, :math:`p(x_f; \sigma \mid v)` is the Gaussian of mean
   :math:`m_f + C_{fk} C_{kk}^{-1} (v - m_k)` and covariance :math:`C_{ff} - C_{fk} C_{kk}^{-1} C_{kf} + \sigma^2 I`.
2. From a network that was trained with clean known coordinates (:class:`Conditions`): it gives the score of
   :math:`p(x_f; \sigma \mid v)` itself. This is a noised path, so reverse diffusion is exact.
3. By a slice, :math:`p(x_f, x_k = v; \sigma)`, for every other term. It ends in the right density at σ = 0, and is no
   convolution on the way (a noised model is asked about coordinates that carry no noise): an annealed path, for
   samplers that move states at every level.

Only free coordinates are ever moved, so every sampler works on the result, and known ones keep their bits.
"""

from collections.abc import Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite, ScopeError
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.product import Product
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import State, Variable
from boltzmix.compose.wrappers import Affine, Wrapper


@runtime_checkable
class Conditions(Protocol):
    """A prior that was trained with clean known coordinates."""

    def conditioned_on(self, mask: Tensor) -> Term:
        """The density of the coordinates outside of ``mask`` given those inside, which are clean at every σ.

        Args:
            mask: boolean, event-shaped; True where a coordinate is known.

        Returns:
            A term over the whole event. Its score at known coordinates is not used.
        """
        ...


class Held(nn.Module):
    """Which coordinates are known, and their values: shared by the factors of one formula.

    Args:
        mask: boolean, event-shaped; True where a coordinate is known.
        value: event-shaped, or ``(n, *event)`` with one row for each draw; read where the mask is True.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: shapes that do not fit, or a mask that leaves nothing free.
        NonFinite: a known value that is not finite.
    """

    mask: Tensor
    value: Tensor
    free: Tensor

    def __init__(self, mask: Tensor, value: Tensor) -> None:
        """Check the two and lay out the free coordinates."""
        super().__init__()
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"a mask of known coordinates is a boolean tensor, got {getattr(mask, 'dtype', type(mask))}"
            )
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"known values are a floating-point tensor, got {getattr(value, 'dtype', type(value))}")
        if value.shape[-mask.ndim :] != mask.shape or value.ndim not in (mask.ndim, mask.ndim + 1):
            raise ValueError(
                f"known values have the mask's shape {tuple(mask.shape)}, or (n, …) in front of it, got "
                f"{tuple(value.shape)}"
            )
        if bool(mask.all()):
            raise ValueError("every coordinate is known: there is nothing left to plan")
        wrong = ~torch.isfinite(value) & mask
        if bool(wrong.any()):
            raise NonFinite(f"{int(wrong.sum())} known coordinates are not finite numbers")
        rows = value.reshape(-1, mask.numel())
        self.register_buffer("mask", mask.clone())
        self.register_buffer("value", torch.where(mask.reshape(-1), rows, 0.0))
        self.register_buffer("free", (~mask.reshape(-1)).nonzero()[:, 0])

    @property
    def per_row(self) -> bool:
        """Whether every draw has known values of its own."""
        return len(self.value) > 1

    def join(self, x: Tensor) -> Tensor:
        """The event ``(N, *event)`` with free coordinates x ``(N, F)``.

        Raises:
            ValueError: x has another number of rows than the known values.
        """
        n = x.shape[0]
        if self.per_row and len(self.value) != n:
            raise ValueError(f"known values are given for {len(self.value)} draws, and {n} are asked for")
        full = self.value.to(x).expand(n, -1).index_copy(1, self.free, x)
        return full.reshape(n, *self.mask.shape)

    def split(self, event: Tensor) -> Tensor:
        """The free coordinates ``(N, F)`` of an event ``(N, *event)``."""
        return event.flatten(1)[:, self.free]


class Known(Wrapper):
    r"""A term over the free coordinates ``(F,)``, its known ones held at their clean values.

    Args:
        term: over one real variable.
        mask: boolean, event-shaped; True where a coordinate is known. Or a :class:`Held`, which factors share.
        value: event-shaped, or ``(n, *event)`` with one row for each draw.
        conditional: whether the term is the density of the free coordinates given the known ones, as
            :meth:`Conditions.conditioned_on` returns it: its path is then kept, and that of other terms is annealed.

    Raises:
        ScopeError: a term over several variables.
        ValueError: shapes that do not fit.

    Example:
        >>> p = Gaussian(torch.zeros(3, 1), 1.0)
        >>> mask = torch.tensor([[True], [False], [False]])
        >>> Known(p, mask, torch.ones(3, 1)).event_shape
        (2,)
    """

    def __init__(
        self, term: Term, mask: Tensor | Held, value: Tensor | None = None, *, conditional: bool = False
    ) -> None:
        """Check that the term's event is the mask's."""
        super().__init__(term)
        if not isinstance(term.variables, Variable):
            raise ScopeError(
                f"Known(…) holds coordinates of one variable, and {term.name()} has {list(term.variables)}"
            )
        if isinstance(mask, Held):
            self.held = mask
        elif value is None:
            raise ValueError("Known(term, mask, value) needs the known values")
        else:
            self.held = Held(mask, value)
        if tuple(self.held.mask.shape) != term.event_shape:
            raise ValueError(
                f"the mask has shape {tuple(self.held.mask.shape)} and {term.name()} is over {term.event_shape}"
            )
        self.conditional = conditional
        self.variables = Variable((len(self.held.free),), dtype=term.variables.dtype)
        self.normalized = self.samplable = False
        self.normalized_over = None
        if term.path == "noised" and not conditional:
            self.path = "annealed"
            self.path_reason = f"{term.name()} is asked about known coordinates without noise, which is no convolution"

    @property
    def per_row(self) -> bool:
        """Whether every draw has known values of its own."""
        return self.held.per_row

    def _token(self) -> Hashable:
        return ("known", id(self.held))

    def key(self) -> Hashable:
        """Which values are held, and the inner term's key."""
        return (self._token(), self.conditional, self.inner.key())

    def _into(self, x: State, sigma: Any) -> tuple[State, Any]:
        assert isinstance(x, Tensor)
        return self.held.join(x), sigma

    def _back(self, value: Evaluated, x: State) -> Evaluated:
        energy, score = value
        assert not isinstance(score, Mapping)
        return energy, (None if score is None else self.held.split(score))

    def _rewrap(self, inner: Term) -> Term:
        return Known(inner, self.held, conditional=self.conditional)

    def _stack_rows(self, terms: Any, n: int) -> Term | None:
        return None  # rows of several terms would meet the known values of one

    def _strength(self, sigma: Tensor) -> float | Tensor:
        found = super()._strength(sigma)
        return found.reshape(-1)[self.held.free] if isinstance(found, Tensor) and found.ndim else found

    def _coarse(self, sigma: Tensor) -> Gaussian | GaussianMixture:
        part, free = self.inner._coarse(sigma), self.held.free
        if isinstance(part, Gaussian):
            spread = part.variances[free] if part.basis is None else part.covariance[free][:, free]
            return Gaussian(part.mean[free], spread)
        spread = part.variances[:, free] if part.basis is None else part.covariances[:, free][:, :, free]
        return GaussianMixture(part.means[:, free], spread, part.weights)

    def name(self) -> str:
        """The inner term's name, given what is known."""
        return f"{self.inner.name()} | known"


def hold(term: Term, held: Held) -> Term:
    """The term over the free coordinates, factor by factor, each in the best of the three ways of the module's page.

    Args:
        term: over the whole event; products are opened.
        held: what is known.

    Example:
        >>> chain = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> given = hold(chain, Held(torch.tensor([True, False]), torch.tensor([2.0, 0.0])))
        >>> round(float(given.mean), 4), given.covariance.tolist(), given.path
        (1.0, [[0.75]], 'noised')
    """
    if isinstance(term, Product):
        pairs = [(hold(factor, held), exponent) for factor, exponent in term.pairs()]
        return Product(pairs, term.log_scale, Variable((len(held.free),)))
    if isinstance(term, Gaussian) and not held.per_row:
        return condition_gaussian(term, held)
    given = conditional_view(term, held.mask)
    return Known(term, held) if given is None else Known(given, held, conditional=True)


def conditional_view(term: Term, mask: Tensor) -> Term | None:
    """What a term that :class:`Conditions` gives for a mask, also in other units; None for other terms."""
    if isinstance(term, Conditions):
        return term.conditioned_on(mask)
    if isinstance(term, Affine):
        inner = conditional_view(term.inner, mask)
        return None if inner is None else Affine(inner, term.change)
    return None


def condition_gaussian(term: Gaussian, held: Held) -> Gaussian:
    """The Gaussian of the free coordinates given the known ones, in float64 arithmetic."""
    free, known = held.free, held.mask.reshape(-1).nonzero()[:, 0]
    mean, spread = term.mean.double(), term.covariance.double()
    if not len(known):
        return Gaussian(term.mean[free], _symmetric(spread[free][:, free]).to(term.mean))
    cross = spread[free][:, known]
    gain = torch.linalg.solve(spread[known][:, known], cross.mT).mT
    centre = mean[free] + gain @ (held.value[0, known].double() - mean[known])
    rest = spread[free][:, free] - gain @ cross.mT
    return Gaussian(centre.to(term.mean), _symmetric(rest).to(term.mean))


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)
