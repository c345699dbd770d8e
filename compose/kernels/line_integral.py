r"""Line integrals of the score: Metropolis tests on terms that have no energy.

A score is the gradient of log p, so along any piece from x to y

.. math::
    \log p(y) - \log p(x) = \int_0^1 \langle s(x + u (y - x)),\, y - x \rangle\, du.

Kernels hold the scores of both ends, so the rule is Gauss–Lobatto's (Abramowitz and Stegun, 25.4.32): the ends are
nodes, and m further evaluations make it exact for scores that are polynomials of degree 2m + 1 along the piece.
Gaussians need none. A trajectory is integrated over its leapfrogs, one after the other: in 2-D mixtures that errs less
than the straight segment from its start to its end does with as many evaluations, since pieces are short.

The nodes of the way back are those of the way there, so that the change is antisymmetric, and a Metropolis test with it
is reversible. What it leaves invariant is p up to the error of the quadrature. With m = 0, the trapezoid rule, the
change of the energy H along leapfrogs of size ε telescopes to

.. math::
    \Delta H = \tfrac{\epsilon^2}{8} \left( |F^T s(x_L)|^2 - |F^T s(x_0)|^2 \right),

which is exact for Gaussians, and of the same order as the error that it should find elsewhere.

A learned score need not be a gradient. The work that it does then depends on the path, proposals along a loop need not
come back with ratio 1, and no density is left invariant exactly; the test removes the error of the step size, not that
of the network.
"""

import math

from torch import Tensor

from boltzmix.compose.kernels.base import Kernel, Target

#: for m evaluations inside: the weight of each end, and (u, weight) of the nodes between
LOBATTO: dict[int, tuple[float, tuple[tuple[float, float], ...]]] = {
    0: (1 / 2, ()),
    1: (1 / 6, ((1 / 2, 2 / 3),)),
    2: (1 / 12, ((0.5 - math.sqrt(5) / 10, 5 / 12), (0.5 + math.sqrt(5) / 10, 5 / 12))),
    3: (1 / 20, ((0.5 - math.sqrt(21) / 14, 49 / 180), (0.5, 16 / 45), (0.5 + math.sqrt(21) / 14, 49 / 180))),
}


def line_integral(target: Target, x: Tensor, shift: Tensor, first: Tensor, last: Tensor, nodes: int) -> Tensor:
    """log p(x + shift) − log p(x), ``(N,)``, from the scores ``first`` and ``last`` of the ends and ``nodes`` between.

    Each node is one evaluation of every row.
    """
    ends, inner = LOBATTO[nodes]
    mean = ends * (first + last)
    for place, weight in inner:
        mean = mean + weight * target.score(x + place * shift)
    return (mean * shift).sum(-1)


def check_nodes(kernel: Kernel, nodes: object) -> None:
    """Refuse numbers of nodes that there is no rule for."""
    if isinstance(nodes, bool) or nodes not in LOBATTO:
        raise ValueError(
            f"{type(kernel).__name__} takes nodes in {sorted(LOBATTO)}, the evaluations inside each piece of a line "
            f"integral, got {nodes!r}"
        )
