r"""Smooth one-to-one maps x = T(y) from all real coordinates y onto a support, with :math:`\log |\det \partial T|`.

A density E(x) on a support is the density :math:`E(T(y)) - \log |\det J_T(y)|` of y, which has no edges: chains and
geometric paths move there. The determinant is that of the coordinates that a density on the support is a density of
(see :mod:`boltzmix.compose.supports`): K − 1 of a simplex, the entries below the diagonal of a correlation factor.

=====================  ======================================================================================
support                T
=====================  ======================================================================================
positive, x > a        :math:`a + e^{y}`
x < b                  :math:`b - e^{y}`
unit, a < x < b        :math:`a + (b - a)\, \mathrm{sigmoid}(y)`
simplex                stick-breaking, :math:`x_k = z_k \prod_{j<k} (1 - z_j)`, :math:`z_k =
                       \mathrm{sigmoid}(y_k - \log(K - k))`; y = 0 is the centre
ordered                :math:`x_k = x_{k-1} + e^{y_k}`
lower_cholesky         logarithms on the diagonal
corr_cholesky          :math:`L_{ij} = \tanh(y_{ij}) \prod_{k<j} \mathrm{sech}(y_{ik})`, each row of length one
positive_definite      :math:`L L^T` of a lower_cholesky
anything else          what ``torch.distributions.biject_to`` has for it
=====================  ======================================================================================

The same maps as in Stan (Stan Reference Manual, chapter *Constraint transforms*; for correlations Lewandowski,
Kurowicka and Joe, 2009, *Generating random correlation matrices based on vines and extended onion method*).

torch's own maps onto intervals, simplices and correlation factors clamp: beyond some y they return the point next to
the edge, whose density is not the one at T(y). Ours do not. Far out, T(y) may round onto the edge; then the density is
what the term says there: a finite one is right up to rounding, zero is an ordinary rejection (a density that vanishes
at the edge has next to no mass in that last rounding interval), an infinite or undefined one is a rejection that
samplers count as a divergence.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import CatTransform, StackTransform, Transform, biject_to, constraints

from boltzmix.compose.supports import NAMED, Ordered, Support, as_constraint, canonical, describe, edges


class HalfLine(Transform):
    """Onto x > edge (sign 1) or x < edge (sign −1)."""

    domain, bijective = constraints.real, True

    def __init__(self, edge: Any, sign: int) -> None:
        """Hold the edge."""
        super().__init__()
        self.edge, self.way = torch.as_tensor(edge, dtype=torch.float64), sign
        self.codomain = (constraints.greater_than if sign > 0 else constraints.less_than)(edge)  # pyright: ignore[reportAttributeAccessIssue]

    def _call(self, x: Tensor) -> Tensor:
        return self.edge.to(x) + self.way * x.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return (self.way * (y - self.edge.to(y))).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log e^y."""
        return x


class Between(Transform):
    """Onto low < x < high; near either edge the distance from it keeps its digits."""

    domain, bijective = constraints.real, True

    def __init__(self, low: Any, high: Any) -> None:
        """Hold the edges."""
        super().__init__()
        self.low, self.high = (torch.as_tensor(bound, dtype=torch.float64) for bound in (low, high))
        if not bool((self.low < self.high).all()):
            raise ValueError("an interval's low end is below its high end")
        self.codomain = constraints.interval(low, high)  # pyright: ignore[reportAttributeAccessIssue]

    def _call(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x), self.high.to(x)
        share = (high - low) * torch.sigmoid(-x.abs())
        return torch.where(x < 0, low + share, high - share)

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.low.to(y)).log() - (self.high.to(y) - y).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log of (b − a) times the slope of the sigmoid."""
        return (self.high - self.low).to(x).log() + F.logsigmoid(x) + F.logsigmoid(-x)


class StickBreaking(Transform):
    """Onto the simplex, in logarithms."""

    domain, codomain, bijective = constraints.real_vector, constraints.simplex, True

    @staticmethod
    def _shifted(x: Tensor) -> Tensor:
        return x - torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()

    @classmethod
    def _logs(cls, x: Tensor) -> Tensor:
        """log of the K entries."""
        z = cls._shifted(x)
        rest = F.pad(F.logsigmoid(-z).cumsum(-1), (1, 0))
        return F.pad(F.logsigmoid(z), (0, 1)) + rest

    def _call(self, x: Tensor) -> Tensor:
        return self._logs(x).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        rest = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # what is left of the stick after entry k
        z = y[..., :-1].log() - rest.log()
        return z - self._shifted(torch.zeros_like(z))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ_k log x_k + log(1 − z_k) over the first K − 1."""
        return (self._logs(x)[..., :-1] + F.logsigmoid(-self._shifted(x))).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """One more entry."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """One entry less."""
        if len(shape) < 1 or shape[-1] < 2:
            raise ValueError("a simplex has at least two entries")
        return torch.Size((*shape[:-1], shape[-1] - 1))


class Rising(Transform):
    """Onto vectors whose entries rise."""

    domain, bijective = constraints.real_vector, True

    def __init__(self, positive: bool) -> None:
        """Whether the first entry is positive."""
        super().__init__()
        self.positive = positive
        self.codomain = Ordered(positive)  # pyright: ignore[reportAttributeAccessIssue]

    def _call(self, x: Tensor) -> Tensor:
        first = x[..., :1].exp() if self.positive else x[..., :1]
        return torch.cat([first, x[..., 1:].exp()], -1).cumsum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        first = y[..., :1].log() if self.positive else y[..., :1]
        return torch.cat([first, y.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ of the exponentiated coordinates."""
        return (x if self.positive else x[..., 1:]).sum(-1)

    def inverse_shape(self, shape: Any) -> torch.Size:
        """As many."""
        if len(shape) < 1:
            raise ValueError("an ordered variable is a vector, (K,)")
        return torch.Size(shape)


class _Triangle(Transform):
    """Maps between vectors of entries of a lower triangle, row by row, and matrices."""

    domain, bijective = constraints.real_vector, True
    offset = 0

    def _matrix(self, x: Tensor, size: int) -> Tensor:
        rows, columns = torch.tril_indices(size, size, self.offset, device=x.device)
        flat = x.new_zeros(*x.shape[:-1], size * size).index_copy(-1, rows * size + columns, x)
        return flat.reshape(*x.shape[:-1], size, size)

    def _vector(self, matrix: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(matrix.shape[-2], matrix.shape[-1], self.offset, device=matrix.device)
        return matrix[..., rows, columns]

    def _size(self, count: int) -> int:
        """K of K(K + 1)/2 entries, or of K(K − 1)/2 below the diagonal."""
        size = (math.isqrt(8 * count + 1) - 1) // 2
        return size - self.offset

    def forward_shape(self, shape: Any) -> torch.Size:
        """The matrix of so many entries."""
        size = self._size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """The entries of such a matrix."""
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 1 - self.offset:
            raise ValueError(f"a square matrix (K, K) with K >= {1 - self.offset} is needed")
        size = shape[-1]
        return torch.Size((*shape[:-2], size * (size + 1) // 2 + self.offset * size))


class LowerCholesky(_Triangle):
    """Onto lower triangular matrices with a positive diagonal."""

    codomain = constraints.lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        matrix = self._matrix(x, self._size(x.shape[-1]))
        return matrix.tril(-1) + matrix.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        return self._vector(y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed())

    def _log_diagonal(self, x: Tensor) -> Tensor:
        at = torch.arange(1, self._size(x.shape[-1]) + 1, device=x.device)
        return x[..., at * (at + 1) // 2 - 1]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ log L_ii."""
        return self._log_diagonal(x).sum(-1)


class PositiveDefinite(LowerCholesky):
    """Onto positive definite matrices by their Cholesky factor."""

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(y)
        return super()._inverse(torch.where(failed[..., None, None] == 0, factor, torch.nan))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Lower triangle of L Lᵀ by that of L: 2^K Π L_ii^(K − i + 1); and once more L_ii for its logarithm."""
        logs = self._log_diagonal(x)
        powers = torch.arange(logs.shape[-1] + 1, 1, -1, dtype=x.dtype, device=x.device)
        return (powers * logs).sum(-1) + logs.shape[-1] * math.log(2.0)


class CorrCholesky(_Triangle):
    """Onto Cholesky factors of correlation matrices, row by row."""

    codomain = constraints.corr_cholesky
    offset = -1

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tanh y, log sech² y, and the logarithm of what the entries to the left leave of a row's squared length."""
        size = self._size(x.shape[-1])
        logs = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
        taken = self._matrix(logs, size)
        return self._matrix(torch.tanh(x), size), logs, taken.cumsum(-1) - taken

    def _call(self, x: Tensor) -> Tensor:
        tanh, _, left = self._parts(x)
        lower = torch.ones_like(left).tril()
        unit = torch.eye(left.shape[-1], dtype=x.dtype, device=x.device)
        return (tanh + unit) * (0.5 * left).exp() * lower

    def _inverse(self, y: Tensor) -> Tensor:
        squares = (y * y).tril()
        rest = squares.flip(-1).cumsum(-1).flip(-1) - squares  # of the entries to the right
        return self._vector(y).div(self._vector(rest).sqrt()).asinh()  # sinh y = tanh y / sech y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Each entry by its own y: sech² y times the length that was left."""
        _, logs, left = self._parts(x)
        return logs.sum(-1) + 0.5 * self._vector(left).sum(-1)


def bijection(support: Support) -> Transform | None:
    """The map from real coordinates onto a support; None for real variables.

    Raises:
        ValueError: a constraint without a map.
    """
    constraint: Any = as_constraint(support)
    if constraint is constraints.real:
        return None
    bounds = edges(constraint)
    if bounds is not None:
        low, high = bounds
        if isinstance(high, float) and high == math.inf:
            return HalfLine(low, 1)
        if isinstance(low, float) and low == -math.inf:
            return HalfLine(high, -1)
        return Between(low, high)
    if isinstance(constraint, Ordered):
        return Rising(constraint.positive)
    for kind, known in (
        (constraints.simplex, StickBreaking),
        (constraints.lower_cholesky, LowerCholesky),
        (constraints.corr_cholesky, CorrCholesky),
        (constraints.positive_definite, PositiveDefinite),
    ):
        if constraint is kind:
            return known()
    if isinstance(constraint, (constraints.cat, constraints.stack)):
        parts = [bijection(canonical(part)) or biject_to(constraints.real) for part in constraint.cseq]
        if isinstance(constraint, constraints.stack):
            return StackTransform(parts, constraint.dim)
        return CatTransform(parts, constraint.dim, constraint.lengths)
    try:
        found = biject_to(constraint)
    except NotImplementedError:
        raise ValueError(
            f"no one-to-one map onto {describe(support)} is known; register one with "
            "torch.distributions.biject_to.register(...), or write the density over unconstrained variables"
        ) from None
    if not found.bijective:
        raise ValueError(f"torch's map onto {describe(support)} is not one-to-one: it has no density to change")
    return found


def event_size(support: Support) -> int:
    """Number of trailing dimensions that a support binds together; 0 where every entry stands for itself."""
    if isinstance(support, str) and support not in NAMED:
        return 0  # integers
    return int(as_constraint(support).event_dim)
