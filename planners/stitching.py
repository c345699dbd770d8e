r"""Long horizons from overlapping segments.

A prior knows H tokens; a plan of L > H tokens is covered by segments of which neighbours share o tokens. Multiplying
what the prior says of each segment counts every overlap twice; dividing by the density of the overlaps counts it once,

.. math:: p(\tau) \propto \frac{\prod_i p(\tau_{\text{segment } i})}{\prod_j p(\tau_{\text{overlap } j})},

which is exact where the future beyond an overlap depends on the past through the overlap alone (a Markov process of an
order up to o), and a normalised density then. The density of an overlap is that of the same network over o tokens (a
prior that is trained on several lengths, ``prior.resized(o)``), or the marginal in closed form.

What is known of the long plan is handed to every segment and overlap that holds it: for a prior that is trained with
clean known coordinates, :math:`p(\tau_{free} \mid \tau_{known})` is the same quotient of conditionals, since the known
parts' own densities are constants.

Source: the quotient is Bethe's, J. Yedidia, W. Freeman, Y. Weiss (2005), Constructing free-energy approximations and
generalized belief propagation algorithms; the noised factors make an annealed path, as for any product.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from boltzmix.compose.crops import Window
from boltzmix.compose.marginals import marginal
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.wrappers import Wrapper
from boltzmix.planners.known import conditional_view

Resize = Callable[[int], Term]


class Stitched(Wrapper):
    """A prior over L tokens made of one over H; made by :func:`stitched`.

    Attributes:
        segments: first tokens of the segments.
        overlap: tokens that neighbours share.
    """

    def __init__(self, prior: Term, small: Term | None, horizon: int, overlap: int) -> None:
        """Lay out the segments; ``small`` is the density of an overlap, None leaves the quotient out."""
        h, d = prior.event_shape
        step = h - overlap
        segments = tuple(range(0, horizon - h + 1, step))
        super().__init__(_quotient(prior, small, segments, overlap, (horizon, d)))
        self.prior, self.small, self.horizon, self.overlap = prior, small, horizon, overlap
        self.segments = segments
        given = getattr(prior, "trajectory", None)
        if given is not None:
            self.trajectory: Mapping[str, Any] = {**given, "horizon": horizon}

    def resized(self, horizon: int) -> Term:
        """Another number of tokens, from the same prior."""
        if self.small is None:
            return stitched(self.prior, horizon, overlap=self.overlap, quotient=False)
        small = self.small
        return stitched(self.prior, horizon, overlap=self.overlap, marginals=lambda tokens: small)

    def _token(self) -> Hashable:
        return ("stitched", self.horizon, self.overlap)

    def key(self) -> Hashable:
        """The layout and what it is made of."""
        return (self._token(), self.inner.key())

    def _group(self) -> Hashable | None:
        return None

    def _rewrap(self, inner: Term) -> Term:
        return inner

    def _coarse(self, sigma: Tensor) -> Any:
        return self.inner._coarse(sigma)

    def _information(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner._information(sigma)

    def name(self) -> str:
        """The prior's name and how many segments there are."""
        return f"{len(self.segments)} segments of {self.prior.name()}"


class ConditionalStitched(Stitched):
    """One whose prior was trained with clean known coordinates."""

    def conditioned_on(self, mask: Tensor) -> Term:
        """The quotient of conditionals: every segment and overlap is told what is known of it.

        Raises:
            TypeError: a prior that was not trained with clean known coordinates.
        """

        def told(term: Term, part: Tensor) -> Term:
            if not bool(part.any()):
                return term
            found = conditional_view(term, part)
            if found is None:
                raise TypeError(f"{term.name()} cannot be conditioned on clean known coordinates")
            return found

        return _quotient(self.prior, self.small, self.segments, self.overlap, self.event_shape, mask, told)


def stitched(
    prior: Term, horizon: int, *, overlap: int | None = None, marginals: Resize | None = None, quotient: bool = True
) -> Term:
    """A prior over ``horizon`` tokens from overlapping segments of one over fewer.

    Args:
        prior: over ``(H, D)``.
        horizon: L ≥ H tokens; L − H is a multiple of H − overlap.
        overlap: tokens that neighbours share; None takes the smallest number, from a quarter of H on, that fits.
        marginals: tokens → the density of that many; None takes ``prior.resized``, or the marginal in closed form.
        quotient: False multiplies the segments as they are, which counts overlaps twice: to see what that does.

    Raises:
        ValueError: an overlap that does not fit, with those that do; a prior without a density of fewer tokens.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian
        >>> lag = torch.arange(4.0)[:, None] - torch.arange(4.0)
        >>> chain = Gaussian(torch.zeros(4, 1), 0.8 ** lag.abs())
        >>> stitched(chain, 10, overlap=1).segments
        (0, 3, 6)
    """
    if not isinstance(prior, Term) or len(prior.event_shape) != 2:
        raise TypeError("stitched() takes a prior over trajectories (H, D)")
    h = prior.event_shape[0]
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < h:
        raise ValueError(f"horizon is an int >= {h}, the prior's own, got {horizon!r}")
    if horizon == h:
        return prior
    fitting = [o for o in range(1, h) if (horizon - h) % (h - o) == 0]
    if overlap is None:
        longer = [o for o in fitting if o >= math.ceil(h / 4)]
        overlap = longer[0] if longer else fitting[-1]
    if overlap not in fitting:
        raise ValueError(
            f"{horizon} tokens are not covered by segments of {h} with an overlap of {overlap!r}; use one of {fitting}"
        )
    small = _density_of(prior, overlap, marginals) if quotient else None
    kind = ConditionalStitched if hasattr(prior, "conditioned_on") else Stitched
    return kind(prior, small, horizon, overlap)


def _density_of(prior: Term, tokens: int, marginals: Resize | None) -> Term:
    """The density of the tokens that two segments share."""
    if marginals is not None:
        found = marginals(tokens)
    elif hasattr(prior, "resized"):
        found = prior.resized(tokens)  # pyright: ignore[reportCallIssue]
    else:
        found = marginal(prior, [slice(0, tokens), slice(0, prior.event_shape[1])])
        if found is None:
            raise ValueError(
                f"{prior.name()} has no density of {tokens} tokens: give marginals=, a function from tokens to a term"
            )
    if not isinstance(found, Term) or found.event_shape != (tokens, prior.event_shape[1]):
        raise ValueError(f"the density of an overlap is a term over {(tokens, prior.event_shape[1])}")
    return found


def _quotient(
    prior: Term,
    small: Term | None,
    segments: tuple[int, ...],
    overlap: int,
    shape: tuple[int, ...],
    mask: Tensor | None = None,
    told: Callable[[Term, Tensor], Term] | None = None,
) -> Product:
    """∏ segments / ∏ overlaps."""
    h = prior.event_shape[0]
    pairs: list[tuple[Term, float]] = []
    for start in segments:
        own = prior if mask is None or told is None else told(prior, mask[start : start + h])
        pairs.append((Window(own, (start, 0), shape), 1.0))
    for start in segments[1:]:
        if small is not None:
            own = small if mask is None or told is None else told(small, mask[start : start + overlap])
            pairs.append((Window(own, (start, 0), shape), -1.0))
    return Product(pairs)
