r"""Smoothness as a Gaussian process over the positions of a plan.

Every position coordinate is a Gaussian process in time, independent of the others, with covariance
:math:`K_{hh'} = s^2 \kappa(|t_h - t_{h'}| / \ell)`. With a given mean m this is a proper density of the positions,

.. math::
    E = \tfrac12 \sum_j (p_j - m_j)^\top K^{-1} (p_j - m_j) + \tfrac{P}{2} \log\det 2\pi K .

With ``mean="line"`` the mean is an unknown straight line at constant speed, with a flat prior: for N, an orthonormal
basis of what is orthogonal to all lines, :math:`E = \tfrac12 \sum_j p_j^\top N (N^\top K N)^{-1} N^\top p_j`. This
is 0 for straight lines and pulls towards no place.

Source: C. E. Rasmussen, C. K. I. Williams (2006), Gaussian Processes for Machine Learning, sections 2.7 and 4.2;
M. Mukadam, J. Dong, X. Yan, F. Dellaert, B. Boots (2018), Continuous-time Gaussian process motion planning via
probabilistic inference.
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task, positive

KERNELS = ("matern32", "matern52", "rbf")


class Smooth(Task):
    r"""A Gaussian-process prior of the positions.

    Args:
        length: ℓ, the seconds over which positions vary together.
        scale: s, standard deviation of a position about the mean, in metres.
        kernel: κ: ``"matern52"`` (the paths have accelerations), ``"matern32"`` (velocities only) or ``"rbf"`` (all
            derivatives; its matrix is singular in floating point when ℓ is many time steps).
        mean: ``"line"``, a position ``(P,)``, or one for each token, ``(H, P)``, in metres.
        name: what results call it.

    Raises:
        ValueError: lengths or scales that are not positive, an unknown kernel, a mean that does not fit, a covariance
            that is singular in float64.

    Example:
        >>> space = TrajectorySpace(8, ("x", "y"), dt=0.1)
        >>> line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 2.0])
        >>> abs(float(Smooth(0.5, 1.0).energy(line[None], space))) < 1e-6
        True
    """

    def __init__(
        self, length: float, scale: float, *, kernel: str = "matern52", mean: Any = "line", name: str | None = None
    ) -> None:
        """Check the numbers."""
        super().__init__(name)
        self.length, self.scale = positive(length, "Smooth's length"), positive(scale, "Smooth's scale")
        if kernel not in KERNELS:
            raise ValueError(f"Smooth's kernel is one of {KERNELS}, got {kernel!r}")
        self.kernel = kernel
        if isinstance(mean, str) and mean != "line":
            raise ValueError(f"Smooth's mean is 'line', a position or one for each token, got {mean!r}")
        self.mean = None if isinstance(mean, str) else torch.as_tensor(mean, dtype=torch.float64).detach().clone()
        if self.mean is not None and not bool(torch.isfinite(self.mean).all()):
            raise ValueError(f"Smooth's mean must be finite, got {self.mean.flatten()[:8].tolist()}")
        self._roots: dict[tuple[int, float], tuple[Tensor, float]] = {}

    def covariance(self, space: TrajectorySpace) -> Tensor:
        """K of one position coordinate, ``(H, H)`` in square metres, float64."""
        times = space.times(torch.zeros((), dtype=torch.float64))
        r = (times[:, None] - times).abs() / self.length
        if self.kernel == "rbf":
            shape = (-0.5 * r * r).exp()
        elif self.kernel == "matern32":
            a = math.sqrt(3) * r
            shape = (1 + a) * (-a).exp()
        else:
            a = math.sqrt(5) * r
            shape = (1 + a + a * a / 3) * (-a).exp()
        return self.scale**2 * shape

    def _root(self, space: TrajectorySpace) -> tuple[Tensor, float]:
        """R with E = ½ |R p|² for each coordinate, ``(H or H − 2, H)``, and the constant of a coordinate."""
        where = (space.horizon, space.dt)
        if where not in self._roots:
            k = self.covariance(space)
            basis = torch.eye(space.horizon, dtype=torch.float64) if self.mean is not None else _contrasts(space)
            factor, info = torch.linalg.cholesky_ex(basis.mT @ k @ basis)
            if bool(info):
                raise ValueError(
                    f"the {self.kernel} kernel of length {self.length:g} s is singular in float64 at steps of "
                    f"{space.dt:g} s: take a rougher kernel or a shorter length"
                )
            root = torch.linalg.solve_triangular(factor, basis.mT, upper=False)
            constant = float(factor.diagonal().log().sum()) + 0.5 * space.horizon * math.log(2 * math.pi)
            self._roots[where] = (root, 0.0 if self.mean is None else constant)
        return self._roots[where]

    def _fit(self, space: TrajectorySpace) -> None:
        count = len(space.position)
        if self.mean is not None and self.mean.shape not in ((count,), (space.horizon, count)):
            raise ValueError(
                f"Smooth's mean is a position ({count},) or one for each token ({space.horizon}, {count}), got "
                f"{tuple(self.mean.shape)}"
            )

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        root, constant = self._root(space)
        p = space.positions(tau)
        if self.mean is not None:
            p = p - self.mean.to(tau)
        white = torch.einsum("rh,nhp->nrp", root.to(tau), p)
        return 0.5 * white.square().flatten(1).sum(1) + constant * p.shape[2]


def _contrasts(space: TrajectorySpace) -> Tensor:
    """An orthonormal basis ``(H, H − 2)`` of what is orthogonal to constants and lines; ``(H, 0)`` for H ≤ 2."""
    steps = torch.arange(space.horizon, dtype=torch.float64)
    lines = torch.stack([torch.ones_like(steps), steps - steps.mean()], 1)
    complete, _ = torch.linalg.qr(lines, mode="complete")
    return complete[:, min(2, space.horizon) :]
