r"""Gaussians and Gaussian mixtures, exact at every noise level.

Adding noise of standard deviation σ to :math:`N(m, C)` gives :math:`N(m, C + \sigma^2 I)`, so with the
eigendecomposition :math:`C = U \Lambda U^\top` made once, every level costs two matrix products:

.. math::
    E(x; \sigma) = \tfrac12 \sum_i \frac{y_i^2}{\lambda_i + \sigma^2}
                 + \tfrac12 \sum_i \log 2\pi(\lambda_i + \sigma^2), \qquad y = U^\top (x - m).
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.term import Normalized
from boltzmix.compose.variable import Variable

_LOG_2PI = math.log(2 * math.pi)


class Gaussian(Normalized):
    r""":math:`N(m, C)` over ``(N, *event)``, noised exactly: :math:`N(m, C + \sigma^2 I)`.

    Args:
        mean: event-shaped, usually ``(D,)``.
        covariance: a scalar variance, variances shaped like the mean, or a matrix ``(D, D)``.

    Raises:
        ValueError: shapes that do not match, or a covariance that is not symmetric positive definite.
        TypeError: integer tensors, or parameters in different dtypes.

    Example:
        >>> import torch
        >>> p = Gaussian(torch.zeros(2), 1.0)
        >>> round(float(p.energy(torch.zeros(1, 2))), 4)
        1.8379
    """

    path = "noised"
    samplable = True
    mean: Tensor
    variances: Tensor
    basis: Tensor | None

    def __init__(self, mean: Any, covariance: Any) -> None:
        """Check the parameters and decompose the covariance."""
        super().__init__()
        mean = as_float_tensor(mean, "mean")
        if mean.ndim == 0:
            raise ValueError("Gaussian needs a mean of shape (D,), got a scalar; write torch.tensor([m])")
        covariance = as_float_tensor(covariance, "covariance", like=mean)
        self.variables = Variable(tuple(mean.shape))
        size = mean.numel()
        if covariance.shape in ((), mean.shape):
            variances, basis = covariance.expand(mean.shape).reshape(-1), None
        elif covariance.shape == (size, size):
            variances, basis = decompose(covariance, "Gaussian")
        else:
            raise ValueError(
                f"Gaussian's covariance is a scalar, {tuple(mean.shape)} variances or a ({size}, {size}) matrix, "
                f"got {tuple(covariance.shape)}"
            )
        check_variances(variances, "Gaussian")
        self.register_buffer("mean", mean.reshape(-1).clone())
        self.register_buffer("variances", variances.clone())
        self.register_buffer("basis", basis)

    @property
    def covariance(self) -> Tensor:
        """The full covariance matrix, ``(D, D)``."""
        if self.basis is None:
            return torch.diag(self.variances)
        return (self.basis * self.variances) @ self.basis.mT

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        y, precision = self._whiten(x, sigma)
        return 0.5 * ((y * y * precision).sum(-1) - precision.log().expand_as(y).sum(-1) + y.shape[-1] * _LOG_2PI)

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        y, precision = self._whiten(x, sigma)
        z = y * precision
        if sigma is None or sigma.ndim == 0:
            offset = 0.5 * (y.shape[-1] * _LOG_2PI - precision.log().sum())
        else:
            offset = 0.5 * (y.shape[-1] * _LOG_2PI - precision.log().sum(-1))
        energy = 0.5 * (y * z).sum(-1) + offset
        score = z if self.basis is None else z @ self.basis.to(x).mT
        return energy, score.neg().reshape(x.shape)

    def _score(self, x: Any, sigma: Any) -> Tensor:
        y, precision = self._whiten(x, sigma)
        z = y * precision
        return (z if self.basis is None else z @ self.basis.to(x).mT).neg().reshape(x.shape)

    def _whiten(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        variances = self.variances.to(x)
        if sigma is not None:
            variances = variances + (sigma[:, None] if sigma.ndim else sigma) ** 2
        y = x.reshape(x.shape[0], -1) - self.mean.to(x)
        return (y if self.basis is None else y @ self.basis.to(x)), variances.reciprocal()

    def _coarse(self, sigma: Tensor) -> "Gaussian":
        level = float(sigma) ** 2
        shape = self.event_shape
        if self.basis is None:
            return Gaussian(self.mean.reshape(shape), (self.variances + level).reshape(shape))
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        return Gaussian(self.mean.reshape(shape), self.covariance + level * eye)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        draw = noise * self.variances.sqrt()
        if self.basis is not None:
            draw = draw @ self.basis.mT
        return (draw + self.mean).reshape(n, *self.event_shape)


class GaussianMixture(Normalized):
    r""":math:`\sum_k \pi_k N(m_k, C_k)`, noised exactly: every component keeps its weight.

    Args:
        means: ``(K, D)``.
        covariances: ``(K,)`` variances, ``(K, D)`` diagonals or ``(K, D, D)`` matrices; a number serves all.
        weights: ``(K,)`` positive, normalised for you; None weighs all alike.

    Raises:
        ValueError: shapes that do not match, weights that are not positive, covariances that are not
            symmetric positive definite.

    Example:
        >>> import torch
        >>> p = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1, [1.0, 3.0])
        >>> p.weights.tolist()
        [0.25, 0.75]
    """

    path = "noised"
    samplable = True
    means: Tensor
    variances: Tensor
    basis: Tensor | None
    weights: Tensor

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        """Check the parameters and decompose the covariances."""
        super().__init__()
        means = as_float_tensor(means, "means")
        if means.ndim != 2:
            raise ValueError(f"GaussianMixture needs means of shape (K, D), got {tuple(means.shape)}")
        count, size = means.shape
        covariances = as_float_tensor(covariances, "covariances", like=means)
        weights = torch.ones(count) if weights is None else weights
        weights = as_float_tensor(weights, "weights", like=means if not isinstance(weights, Tensor) else None)
        weights = weights.to(means)
        if weights.shape != (count,) or not bool((weights > 0).all() & torch.isfinite(weights).all()):
            raise ValueError(
                f"GaussianMixture needs ({count},) positive finite weights, got {tuple(weights.shape)}: "
                f"{weights.flatten()[:8].tolist()}"
            )
        if covariances.shape in ((), (count,)):
            variances, basis = covariances.expand(count)[:, None].expand(count, size), None
        elif covariances.shape == (count, size):
            variances, basis = covariances, None
        elif covariances.shape == (count, size, size):
            variances, basis = decompose(covariances, "GaussianMixture")
        else:
            raise ValueError(
                f"GaussianMixture's covariances are ({count},), ({count}, {size}) or ({count}, {size}, {size}), "
                f"got {tuple(covariances.shape)}"
            )
        check_variances(variances, "GaussianMixture")
        self.variables = Variable((size,))
        self.register_buffer("means", means.clone())
        self.register_buffer("variances", variances.clone())
        self.register_buffer("basis", basis)
        self.register_buffer("weights", weights / weights.sum())

    @property
    def covariances(self) -> Tensor:
        """The full covariance matrices, ``(K, D, D)``."""
        if self.basis is None:
            return torch.diag_embed(self.variances)
        return (self.basis * self.variances[:, None, :]) @ self.basis.mT

    def _log_components(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        """log π_k N_k(x) as ``(N, K)`` and −∇ of the quadratic in the eigenbasis, ``(N, K, D)``."""
        variances = self.variances.to(x)
        if sigma is not None:
            variances = variances + (sigma[:, None, None] if sigma.ndim else sigma) ** 2
        precision = variances.reciprocal()
        y = x[:, None, :] - self.means.to(x)
        if self.basis is not None:
            y = torch.einsum("nkd,kde->nke", y, self.basis.to(x))
        z = y * precision
        constant = 0.5 * (precision.log().sum(-1) - x.shape[-1] * _LOG_2PI) + self.weights.to(x).log()
        return constant - 0.5 * (y * z).sum(-1), z

    def component_log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """:math:`\\log \\pi_k N(x; m_k, C_k + σ² I)`, shaped ``(N, K)``: for mode masses."""
        return self._log_components(x, self._check(x, sigma))[0]

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return -self._log_components(x, sigma)[0].logsumexp(-1)

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        logs, z = self._log_components(x, sigma)
        responsibilities = logs.softmax(-1)
        if self.basis is None:
            score = torch.einsum("nk,nkd->nd", responsibilities, z)
        else:
            score = torch.einsum("nke,kde->nd", responsibilities[..., None] * z, self.basis.to(x))
        return -logs.logsumexp(-1), score.neg()

    def _coarse(self, sigma: Tensor) -> "GaussianMixture":
        level = float(sigma) ** 2
        if self.basis is None:
            return GaussianMixture(self.means, self.variances + level, self.weights)
        eye = torch.eye(self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        return GaussianMixture(self.means, self.covariances + level * eye, self.weights)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        draw = noise * self.variances[which].sqrt()
        if self.basis is not None:
            draw = torch.einsum("ne,nde->nd", draw, self.basis[which])
        return draw + self.means[which]


def as_float_tensor(value: Any, what: str, like: Tensor | None = None) -> Tensor:
    """A floating-point constant tensor; Python numbers take ``like``'s dtype, tensors must share it.

    Raises:
        TypeError: integer or complex tensors, or a dtype other than ``like``'s.
        NonFinite: NaN or infinite entries.
    """
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        tensor = torch.as_tensor(value)
        if not tensor.is_floating_point():
            raise TypeError(f"{what} must be floating point, got {tensor.dtype}; convert it, nothing is cast silently")
        if like is not None and tensor.ndim and tensor.dtype != like.dtype:
            raise TypeError(f"{what} is {tensor.dtype} and the other parameters are {like.dtype}; convert one of them")
    else:
        if isinstance(value, bool):
            raise TypeError(f"{what} must be a number or a tensor, got a bool")
        try:
            tensor = torch.tensor(value, dtype=torch.get_default_dtype() if like is None else like.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{what} must be a tensor or nested lists of numbers, got {value!r}") from error
    if like is not None:
        tensor = tensor.to(like)
    if tensor.requires_grad:
        raise ValueError(f"{what} is a constant of the term and must not require grad; pass {what}.detach()")
    if not bool(torch.isfinite(tensor).all()):
        raise NonFinite(f"{what} must be finite, got {tensor.flatten()[:8].tolist()}")
    return tensor


def check_variances(variances: Tensor, owner: str) -> None:
    """Refuse variances that are not positive."""
    if not bool((variances > 0).all()):
        raise ValueError(f"{owner} needs positive variances, the smallest is {float(variances.min()):g}")


def decompose(covariance: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric positive definite matrices ``(…, D, D)``.

    Raises:
        ValueError: not symmetric, or not positive definite.
    """
    scale = covariance.abs().amax()
    if not bool((covariance - covariance.mT).abs().amax() <= 1e-5 * scale):
        raise ValueError(f"{owner}'s covariance is not symmetric; use 0.5 * (C + C.mT) if that is what you mean")
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
    if not bool((values > 0).all()):
        raise ValueError(f"{owner}'s covariance is not positive definite: smallest eigenvalue {float(values.min()):g}")
    return values, vectors
