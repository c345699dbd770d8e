r"""Estimators of an inverse mass from the draws x of a warm-up, and from the scores s that come with them for nothing.

==========  ===========================================  ==================================================
            Welford                                      Fisher
==========  ===========================================  ==================================================
diagonal    :math:`\mathrm{var}(x)`                      :math:`\sqrt{\mathrm{var}(x) / \mathrm{var}(s)}`
dense       :math:`A = \mathrm{cov}(x)`                  C with :math:`C B C = A`, :math:`B = \mathrm{cov}(s)`
low rank    A in the leading directions of x             C in the leading directions of x and s
==========  ===========================================  ==================================================

On a Gaussian both columns agree: :math:`B = A^{-1}`. The Fisher column minimises the expected
:math:`\|F^T s(x) + F^{-1}(x - \mu)\|^2`, by which whitened scores differ from those of a unit Gaussian, and needs fewer
draws: on a Gaussian, D + 1 of them give C exactly (Seyboldt, Carlson and Carpenter, 2024, *Preconditioning Hamiltonian
Monte Carlo by minimizing Fisher divergence*).

Correlations are shrunk towards zero with the intensity of Chen, Wiesel, Eldar and Hero (2010), *Shrinkage algorithms
for MMSE covariance estimation*.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from boltzmix.compose.adaptation.base import joined, part
from boltzmix.compose.adaptation.moments import Moments
from boltzmix.compose.kernels.mass import Dense, Diagonal, LowRank, Mass

MASSES = ("diagonal", "dense", "low-rank")
ESTIMATORS = ("welford", "fisher")

_ROWS = 2048  # that a low-rank estimate keeps
_CUTOFF = 2.0  # eigenvalues nearer to 1 than this factor are left at 1


def check_mass(mass: str | None, estimator: str) -> None:
    """Refuse unknown names."""
    if mass is not None and mass not in MASSES:
        raise ValueError(f"mass is one of {MASSES} or None, got {mass!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is one of {ESTIMATORS}, got {estimator!r}")


class MassEstimate:
    """Draws and scores of one window on their way to an inverse mass.

    Args:
        mass: ``"diagonal"``, ``"dense"`` or ``"low-rank"``.
        estimator: ``"welford"`` or ``"fisher"``.
        like: a state ``(N, D)``, for shapes, dtype and device.
    """

    def __init__(self, mass: str, estimator: str, like: Tensor) -> None:
        """Start empty."""
        self.kind, self.fisher, self.like = mass, estimator == "fisher", like
        self.draws, self.scores = (Moments(like, dense=mass == "dense") for _ in range(2))
        width = like.shape[1] if mass == "low-rank" else 0
        self.rows = torch.zeros((0, 2, width), dtype=like.dtype, device=like.device)
        self.stride, self.seen = 1, 0

    def update(self, x: Tensor, score: Tensor) -> None:
        """Add the states of all chains ``(N, D)`` and their scores."""
        self.draws.update(x)
        if self.fisher:
            self.scores.update(score)
        if self.kind == "low-rank":
            if self.seen % self.stride == 0:
                self.rows = torch.cat([self.rows, torch.stack([x, score], 1)])
            self.seen += 1
            if len(self.rows) > _ROWS:
                self.rows, self.stride = self.rows[::2].clone(), 2 * self.stride

    def estimate(self) -> Mass | None:
        """The inverse mass; None where draws do not determine it (a coordinate that never moved, say)."""
        first, second = self.draws.covariance(), self.scores.covariance()
        variance = first.diagonal() if self.kind == "dense" else first
        if self.fisher:
            variance = (variance / (second.diagonal() if self.kind == "dense" else second)).sqrt()
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return None
        if self.kind == "diagonal":
            return Diagonal(variance.to(self.like))
        try:
            return self._dense(first, second) if self.kind == "dense" else self._low_rank(variance)
        except (ValueError, LinAlgError):  # singular in the precision of the states
            return None

    def _dense(self, first: Tensor, second: Tensor) -> Mass:
        if not self.fisher:
            return Dense(shrink(first, self.draws.count).to(self.like))
        if self.draws.count <= 2 * len(first):  # singular, or nearly
            first, second = shrink(first, self.draws.count), shrink(second, self.scores.count)
        return Dense(between(first, second).to(self.like))

    def _low_rank(self, variance: Tensor) -> Mass:
        scale = variance.sqrt()
        x, score = self.rows.double().unbind(1)
        x, score = (x - x.mean(0)) / scale, (score - score.mean(0)) * scale
        n, dim = x.shape
        basis = leading(x, max(1, min(n // 4, dim // 2)))
        if self.fisher:
            basis = torch.linalg.qr(torch.cat([basis, leading(score, basis.shape[1])], 1))[0]
        moment, rest = _inside_and_outside(x, basis)
        if self.fisher:
            scores, rest_of_scores = _inside_and_outside(score, basis)
            moment, rest = between(moment, scores), math.sqrt(rest / rest_of_scores)
        values, vectors = torch.linalg.eigh(moment / rest)
        keep = (values > _CUTOFF) | (values < 1 / _CUTOFF)
        columns = torch.linalg.qr(basis @ vectors[:, keep])[0]
        return LowRank((rest * variance).to(self.like), columns.to(self.like), values[keep].to(self.like))

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        (draws, count), (scores, scored) = self.draws.snapshot(), self.scores.snapshot()
        record = {"draws": count, "scores": scored, "stride": self.stride, "seen": self.seen}
        return joined(draws=draws, scores=scores) | {"rows": self.rows}, record

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.draws.restore(part(tensors, "draws/"), record["draws"])
        self.scores.restore(part(tensors, "scores/"), record["scores"])
        self.rows, self.stride, self.seen = tensors["rows"], record["stride"], record["seen"]


def shrink(covariance: Tensor, n: int) -> Tensor:
    r"""A covariance with its correlations R shrunk: :math:`(1 - \rho) R + \rho I`, ρ from n, tr R and tr R²."""
    p = len(covariance)
    if p == 1:
        return covariance
    scale = covariance.diagonal().sqrt()
    correlation = covariance / (scale[:, None] * scale)
    squares = float((correlation * correlation).sum())
    excess = squares - p
    rho = 1.0 if excess <= 0 else min(1.0, ((1 - 2 / p) * squares + p * p) / ((n + 1 - 2 / p) * excess))
    shrunk = (1 - rho) * correlation
    shrunk.diagonal().fill_(1.0)
    return shrunk * scale[:, None] * scale


def between(first: Tensor, second: Tensor) -> Tensor:
    """The symmetric positive definite C with C B C = A, for A = ``first`` and B = ``second``."""
    values, vectors = torch.linalg.eigh(second)
    root = vectors * values.sqrt() @ vectors.mT
    inverse = vectors / values.sqrt() @ vectors.mT
    inner, columns = torch.linalg.eigh(root @ first @ root)
    middle = columns * inner.clamp(min=0.0).sqrt() @ columns.mT
    found = inverse @ middle @ inverse
    return 0.5 * (found + found.mT)


def leading(rows: Tensor, most: int) -> Tensor:
    """Orthonormal columns that span the leading directions of centred rows."""
    _, _, right = torch.linalg.svd(rows, full_matrices=False)
    return right[:most].mT


def _inside_and_outside(rows: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The covariance of centred rows within a subspace, and their mean variance outside of it (1 where nothing is)."""
    inside = rows @ basis
    left = rows.shape[1] - basis.shape[1]
    covariance = shrink(inside.mT @ inside / max(len(rows) - 1, 1), len(rows))
    total = float((rows * rows).sum() - (inside * inside).sum()) / max(len(rows) - 1, 1)
    return covariance, total / left if left and total > 0 else 1.0
