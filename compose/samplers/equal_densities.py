r"""The step of a reverse diffusion under which the log-densities of k members become equal.

Write :math:`d_i = s_i - \bar s` and a step from σ to σ' as :math:`x' = x + v \bar s + y`, with
:math:`v = \sigma^2 - \sigma'^2` and noise of variance v c. The increments of log q_i differ by
:math:`(\langle d_i, y \rangle - \tfrac{v}{2} |d_i|^2) / c` (:mod:`boltzmix.compose.samplers.ito`), so k − 1 linear
equations fix y in the span of the d_i and leave it free across. With eigenvalues λ and eigenvectors Q of
:math:`\langle d_i, d_j \rangle` and orthonormal axes :math:`e_m = \lambda_m^{-1/2} \sum_i Q_{im} d_i` the solution is

.. math::
    \langle e_m, y \rangle = \lambda_m^{-1/2} \sum_i Q_{im}
    \bigl[\tfrac{v}{2} |d_i|^2 - c\, g_i\bigr], \qquad g_i = \log q_i - b_i .

For two members and g = 0 that is zero: the scores are averaged, and the noise is projected off their difference.

**The noise along the axes.** Taking it out is what the paper does, and it breaks the estimate: Itô's formula counts
noise in all directions, and without it log q_i gathers the error :math:`\int \sigma \sum_m e_m^\top \nabla s_i\, e_m\,
d\tau`, whatever the step size. Members whose scores have one slope along e_m (Gaussians of one covariance) share it;
others end with different log-densities, though their estimates agree to the last digit. Two remedies:

*Returned noise.* Every other step adds :math:`\pm\sqrt{v c}` along each axis, with a random sign, and the step after
it, which closes the gap, takes it back. The noise is complete, and the gap is of the order ½ in the step size.

*Correction.* The missing second derivative, :math:`-\tfrac{v}{2} e_m^\top \nabla s_i\, e_m`, from the scores at
:math:`x + h e_m`: one more evaluation of all members for each axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FARTHEST = 3.0  # standard deviations of a step's noise that a particle goes to close a gap
_ROUNDING = 16.0  # units of rounding in the scores below which two of them coincide
_FLAT = 1e-10  # an axis with less than this share of the largest λ is none


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes ``(K, N, D)`` of the scores' differences; those of no length are zero.

    ``turn`` ``(N, K, K)`` holds :math:`Q_{im} / \\sqrt{\\lambda_m}`, zero for those, too.
    """

    apart: Tensor
    unit: Tensor
    turn: Tensor

    @staticmethod
    def of(scores: Tensor) -> "Axes":
        """Axes of scores ``(K, N, D)``.

        Directions below the rounding of the scores are left out: members that coincide have none.
        """
        mean = scores.mean(0)
        apart = scores - mean
        wide = apart.double()
        gram = torch.einsum("knd,jnd->nkj", wide, wide)
        good = torch.isfinite(gram).all(-1).all(-1)[:, None, None]
        # rows that are not finite keep their NaN in the axes; the decomposition must not see it
        values, vectors = torch.linalg.eigh(torch.where(good, gram, torch.eye(len(scores)).to(gram)))
        noise = (_ROUNDING * torch.finfo(scores.dtype).eps) ** 2 * (scores.double() ** 2).sum((0, 2))
        least = torch.maximum(_FLAT * values[:, -1], torch.where(good[:, 0, 0], noise, 0.0))
        kept = values > least[:, None]
        turn = torch.where(kept[:, None, :], vectors * values.clamp(min=1e-300).rsqrt()[:, None, :], 0.0)
        return Axes(apart, torch.einsum("nkm,knd->mnd", turn, wide).to(scores), turn)

    def along(self, x: Tensor) -> Tensor:
        """Coordinates ``(K, N)`` of ``x`` ``(N, D)`` along the axes, in float64."""
        return torch.einsum("mnd,nd->mn", self.unit.double(), x.double())

    def back(self, coordinates: Tensor) -> Tensor:
        """The vector ``(N, D)`` with these coordinates."""
        return torch.einsum("mn,mnd->nd", coordinates, self.unit.double()).to(self.unit)


def equalise(axes: Axes, noise: Tensor, gap: Tensor, variance: float, ratio: float, keep: bool = False) -> Tensor:
    """y ``(N, D)``: the noise across the axes, and along them what makes the gap vanish.

    A particle goes at most the length of the scores' own differences and three standard deviations of the noise; what
    remains of the gap is left to later steps.

    Args:
        axes: of the scores at the step's beginning.
        noise: of variance v c, ``(N, D)``.
        gap: g_i, ``(K, N)``; what all members share has no effect.
        variance: v.
        ratio: c.
        keep: whether to add noise along the axes, for the next step to take back.
    """
    squares = (axes.apart.double() ** 2).sum(-1)
    wanted = torch.einsum("nkm,kn->mn", axes.turn, 0.5 * variance * squares - ratio * gap)
    deviation = (variance * ratio) ** 0.5
    limit = variance * squares.max(0).values.sqrt() + _FARTHEST * deviation
    wanted = torch.maximum(torch.minimum(wanted, limit), -limit)
    own = axes.along(noise)
    if keep:
        wanted = wanted + deviation * own.sign()
    return noise + axes.back(wanted - own)


def missing_slopes(
    axes: Axes,
    x: Tensor,
    scores: Tensor,
    variance: float,
    length: float,
    evaluate: Callable[[Tensor], Sequence[Tensor]],
) -> Tensor:
    r"""What log q_i gathers without noise along the axes, :math:`-\tfrac{v}{2} \sum_m e_m^\top \nabla s_i e_m`.

    Args:
        axes: of the scores at x.
        x: states ``(N, D)``.
        scores: of all members there, ``(K, N, D)``.
        variance: v.
        length: h of the differences, with either sign.
        evaluate: the members' scores at other states.
    """
    total = torch.zeros(scores.shape[:2], dtype=torch.float64, device=x.device)
    for unit in axes.unit[1:]:  # eigenvalues rise: the first is that of what all members share
        if bool((unit != 0).any()):
            there = torch.stack(list(evaluate(x + length * unit)))
            total = total + torch.einsum("knd,nd->kn", (there - scores).double(), unit.double()) / length
    return -0.5 * variance * total
