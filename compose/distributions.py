r"""torch.distributions as terms: where their support ends, energies are +inf.

The library's own ``log_prob`` is a density on its support and undefined elsewhere; with validation it raises, without
it gives whatever the formula gives. Here a point outside has zero density, an ordinary rejection for a kernel.

==========================================  ==================================================================
support                                     becomes
==========================================  ==================================================================
real, intervals, half lines                 real variables with that support
images of a base under transforms           what the base's support maps to: :math:`e^{U[0, 2]}` lives on [1, e²]
simplex                                     a density of the first K − 1 coordinates; its points are K numbers
Cholesky factors, positive definite         a density of the free entries (see :mod:`boltzmix.compose.supports`)
integers 0 … K − 1, booleans, counts        ``integers(K)``: energies and exact draws, no score
all of 0, 1, 2, …                           refused: an integer variable has finitely many values here
other matrices under constraints            refused: their densities live on a surface of fewer dimensions
==========================================  ==================================================================
"""

import copy
import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Independent,
    MixtureSameFamily,
    Multinomial,
    Transform,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions import Distribution as TorchDistribution

from boltzmix.compose.supports import Support, canonical
from boltzmix.compose.term import Normalized
from boltzmix.compose.tracing import is_tracing
from boltzmix.compose.variable import Variable, integers

_SURFACES = tuple(
    type(found)
    for name in (
        "lower_triangular",
        "positive_semidefinite",
        "square",
        "symmetric",
    )
    if (found := getattr(constraints, name, None)) is not None
)


class Distribution(Normalized):
    """A ``torch.distributions`` object: static, normalised, sampled with its own sampler.

    Points outside the support have energy +inf (NaN stays NaN). An event of shape () becomes ``(1,)``; a distribution
    with a batch shape is refused unless ``Independent`` makes the batch an event. States must have the distribution's
    dtype: ``.to(dtype)`` does not reach into it. Discrete distributions take integer states of any integer dtype, and
    their draws are long.

    Raises:
        ValueError: a batch shape.
        TypeError: a support that the module's page refuses, or a transform that is not one-to-one.

    Example:
        >>> import torch
        >>> from torch.distributions import ExpTransform, TransformedDistribution, Uniform
        >>> p = Distribution(TransformedDistribution(Uniform(0.0, 2.0), [ExpTransform()]))
        >>> p.log_prob(torch.tensor([[2.0], [8.0]])).exp().tolist()      # 1/(2x) on [1, e²]
        [0.25, 0.0]
    """

    samplable = True

    def __init__(self, distribution: TorchDistribution) -> None:
        """Check support and shapes."""
        super().__init__()
        if distribution.batch_shape:
            raise ValueError(
                f"{type(distribution).__name__} has batch shape {tuple(distribution.batch_shape)}; wrap it in "
                "torch.distributions.Independent to make it an event"
            )
        self.distribution = distribution
        self._density = unvalidated(distribution)
        self._scalar = not distribution.event_shape
        _refuse(distribution)
        shape, first = tuple(distribution.event_shape) or (1,), self._draw(1, 0)
        self._value_dtype = first.dtype
        support: Any = distribution.support
        if support.is_discrete:
            self.variables = Variable(shape, integers(_cardinality(distribution)))
            self.has_score = False
        else:
            self.variables = Variable(shape, _support_of(distribution, shape), first.dtype)

    def key(self) -> Hashable:
        """The distribution object."""
        return ("distribution", id(self.distribution))

    def name(self) -> str:
        """The distribution's class."""
        return type(self.distribution).__name__

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        x = x.to(self._value_dtype)  # integer states: some distributions compute with their counts in floating point
        point = x[:, 0] if self._scalar else x
        with torch.no_grad():
            within = inside(self._density, point)
        if is_tracing():  # a graph has no branches
            outside = torch.where(torch.isnan(x).flatten(1).any(1), torch.nan, torch.inf)
            return torch.where(within, self._formula(point), outside.to(point))
        if bool(within.all()):
            return self._formula(point)
        rows = within.nonzero()[:, 0]
        found = self._formula(point[rows]) if len(rows) else None
        outside = torch.full(point.shape[:1], torch.inf, device=x.device)
        if x.is_floating_point():
            # NaN is no point outside the support: it stays NaN, so that samplers see a divergence
            outside = torch.where(torch.isnan(x).flatten(1).any(1), torch.nan, outside).to(x)
        return outside if found is None else outside.to(found.dtype).index_put((rows,), found)

    def _formula(self, point: Tensor) -> Tensor:
        """−log p at points inside the support."""
        energy = self._density.log_prob(point).neg()
        if point.requires_grad and not energy.requires_grad:
            energy = energy + 0.0 * point.reshape(len(point), -1).sum(1)  # flat pieces: a gradient of zero, not none
        return energy

    def _score(self, x: Any, sigma: Any) -> Any:
        return super()._score(x, sigma) if self.has_score else torch.zeros_like(x)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = None if generator is None else generator.device
        draw = self._draw(n, int(torch.randint(2**62, (), generator=generator, device=device)))
        return draw if self.has_score else draw.long()

    def _draw(self, n: int, seed: int) -> Tensor:
        # torch.distributions draws from the global generator: fork it and seed it from ours.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            draw = self.distribution.sample((n,))
        return draw[:, None] if self._scalar else draw


def unvalidated(distribution: TorchDistribution) -> TorchDistribution:
    """A shallow copy that computes without checking its argument; the user's object is left as it is."""
    clone = copy.copy(distribution)
    clone._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, TorchDistribution):
            setattr(clone, name, unvalidated(value))
    return clone


def inside(distribution: TorchDistribution, x: Tensor) -> Tensor:
    """Whether each event of ``(…, *event)`` is in the support, shaped ``(…)``; NaN is not."""
    if isinstance(distribution, Independent):
        within = inside(distribution.base_dist, x)
        count = distribution.reinterpreted_batch_ndims
        return within if count == 0 else within.flatten(within.ndim - count).all(-1)
    if isinstance(distribution, MixtureSameFamily):
        members = distribution.component_distribution
        return inside(members, x.unsqueeze(-1 - len(members.event_shape))).any(-1)
    if isinstance(distribution, VonMises):
        return x.abs() <= math.pi  # torch calls its support real: it is periodic, and a density on one period
    if isinstance(distribution, Multinomial):
        return (x >= 0).all(-1) & (x.sum(-1) == distribution.total_count)  # torch only asks that the sum is no larger
    support: Any = distribution.support
    if support is constraints.simplex:
        # torch asks for a sum within 1e-6 of one, which its own draws of many coordinates miss
        slack = max(1e-6, 4 * x.shape[-1] * torch.finfo(x.dtype).eps)
        return (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < slack)
    within = support.check(x)
    if _pulls_back(distribution):
        for transform in reversed(_parts(distribution.transforms)):  # pyright: ignore[reportAttributeAccessIssue]
            reached: Any = transform.codomain
            image = reached.check(x)  # an inverse outside its image is whatever the formula gives
            within = within & image.reshape(*within.shape, -1).all(-1)
            inverse: Any = transform.inv
            x = inverse(x)
        within = within & inside(distribution.base_dist, x)  # pyright: ignore[reportAttributeAccessIssue]
    return within


def _parts(transforms: Sequence[Transform]) -> list[Transform]:
    """Transforms in order, compositions opened."""
    parts: list[Transform] = []
    for transform in transforms:
        parts.extend(_parts(transform.parts) if isinstance(transform, ComposeTransform) else [transform])
    return parts


def _pulls_back(distribution: TorchDistribution) -> bool:
    """Whether the density is that of the base at the inverse image; HalfNormal and others have their own formula."""
    own = type(distribution).log_prob is TransformedDistribution.log_prob
    return own and isinstance(distribution, TransformedDistribution)


def _refuse(distribution: TorchDistribution) -> None:
    """Refuse what has no density over our variables."""
    name, support = type(distribution).__name__, _unwrapped(distribution.support)
    if type(support) in _SURFACES:
        raise TypeError(
            f"{name} is over matrices under a constraint ({type(support).__name__.strip('_')}), a surface of fewer "
            "dimensions than their entries; write the density of unconstrained parameters as a function, with "
            'kind="log_prob" and the log-determinant of the map'
        )
    inner: Any = distribution
    while isinstance(inner, (Independent, TransformedDistribution)):
        if _pulls_back(inner):
            if inner.base_dist.support.is_discrete:  # pyright: ignore[reportOptionalMemberAccess]
                raise TypeError(f"{name} transforms a discrete distribution, which has no density over real numbers")
            if not ComposeTransform(inner.transforms).bijective:  # pyright: ignore[reportAttributeAccessIssue]
                raise TypeError(f"{name} has a transform that is not one-to-one, so its density is not known")
        inner = inner.base_dist


def _unwrapped(support: Any) -> Any:
    """A constraint without the wrappers that make batch dimensions events."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _cardinality(distribution: TorchDistribution) -> int:
    """K of a discrete support within {0, …, K − 1}.

    Raises:
        TypeError: an infinite support, or negative values.
    """
    support, name = _unwrapped(distribution.support), type(distribution).__name__
    if support is constraints.boolean or support is constraints.one_hot:
        return 2
    upper = getattr(support, "upper_bound", None)
    if upper is None:
        raise TypeError(
            f"{name} has infinitely many values and an integer variable K of them, {{0, …, K − 1}}; cut its tail: "
            "Categorical(probs=p.log_prob(torch.arange(K)).exp()) is normalised for you"
        )
    if float(torch.as_tensor(getattr(support, "lower_bound", 0)).min()) < 0:
        raise TypeError(f"{name} takes negative values; integer variables start at 0: shift it")
    return int(torch.as_tensor(upper).max()) + 1


def _support_of(distribution: TorchDistribution, shape: tuple[int, ...]) -> Support:
    """The support of a continuous distribution; real where its constraint is not one of events of this shape."""
    if isinstance(distribution, VonMises):
        return constraints.interval(-math.pi, math.pi)
    try:
        return Variable(shape, canonical(distribution.support)).support
    except (TypeError, ValueError):
        return "real"
