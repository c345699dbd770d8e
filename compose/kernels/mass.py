r"""Inverse masses: the covariance C that a kernel takes the target to have, as a linear map F with :math:`F F^T = C`.

In whitened coordinates :math:`x = F y` the target has unit covariance, its score is :math:`F^T s(x)`, and every kernel
is written for unit mass: velocities :math:`v \sim N(0, I)` move x by :math:`F v` (:meth:`Mass.push`) and are changed
by :math:`F^T s` (:meth:`Mass.pull`).
"""

import hashlib
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Mass:
    """A symmetric positive definite inverse mass C = F Fᵀ: :class:`Diagonal`, :class:`Dense` or :class:`LowRank`."""

    def push(self, velocity: Tensor) -> Tensor:
        """F v for each row, ``(N, D)``."""
        raise NotImplementedError

    def pull(self, score: Tensor) -> Tensor:
        """Fᵀ s for each row, ``(N, D)``."""
        raise NotImplementedError

    @property
    def variances(self) -> Tensor:
        """The diagonal of C, ``(D,)`` (``(N, D)`` where rows differ)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What defines it, by the names of its arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def __repr__(self) -> str:
        """Class, shape and a digest of the numbers: two masses that differ have different names."""
        digest = hashlib.sha256()
        for tensor in self.tensors().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{type(self).__name__}({tuple(self.variances.shape)}, {digest.hexdigest()[:8]})"


@dataclass(frozen=True, repr=False)
class Diagonal(Mass):
    """C = diag(variance).

    Args:
        variance: positive, ``(D,)``, or ``(N, D)`` for a mass of its own in each row.

    Raises:
        ValueError: variances that are not positive and finite.
    """

    variance: Tensor
    scale: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Check positivity and keep the square root."""
        if not bool((torch.isfinite(self.variance) & (self.variance > 0)).all()):
            raise ValueError("the inverse mass holds positive finite variances")
        object.__setattr__(self, "scale", self.variance.sqrt())

    def push(self, velocity: Tensor) -> Tensor:
        """√C v."""
        return self.scale * velocity

    def pull(self, score: Tensor) -> Tensor:
        """√C s."""
        return self.scale * score

    @property
    def variances(self) -> Tensor:
        """The variances as given."""
        return self.variance


@dataclass(frozen=True, repr=False)
class Dense(Mass):
    """C = covariance = L Lᵀ.

    Args:
        covariance: symmetric positive definite, ``(D, D)``.

    Raises:
        ValueError: a matrix that is not symmetric positive definite.
    """

    covariance: Tensor
    factor: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Factorise."""
        c = self.covariance
        if c.ndim != 2 or c.shape[0] != c.shape[1]:
            raise ValueError(f"a dense inverse mass is (D, D), got {tuple(c.shape)}")
        factor, failed = torch.linalg.cholesky_ex(c)
        if bool(failed) or not bool(torch.isfinite(factor).all()) or not torch.allclose(c, c.mT, rtol=1e-4, atol=0):
            raise ValueError("a dense inverse mass is a symmetric positive definite covariance")
        object.__setattr__(self, "factor", factor)

    def push(self, velocity: Tensor) -> Tensor:
        """L v."""
        return velocity @ self.factor.mT

    def pull(self, score: Tensor) -> Tensor:
        """Lᵀ s."""
        return score @ self.factor

    @property
    def variances(self) -> Tensor:
        """The covariance's diagonal."""
        return self.covariance.diagonal()


@dataclass(frozen=True, repr=False)
class LowRank(Mass):
    r"""C = S (I + U (Λ − I) Uᵀ) S with a diagonal S = diag(√variance) and k ≪ D orthonormal columns U.

    Args:
        variance: ``(D,)``.
        basis: U, ``(D, k)`` with orthonormal columns.
        eigenvalues: the diagonal of Λ, ``(k,)``, positive.

    Raises:
        ValueError: shapes that do not fit, numbers that are not positive, columns that are not orthonormal.
    """

    variance: Tensor
    basis: Tensor
    eigenvalues: Tensor
    scale: Tensor = field(init=False)
    stretch: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Check, and keep the square roots."""
        d, k = self.basis.shape if self.basis.ndim == 2 else (-1, -1)
        if self.variance.shape != (d,) or self.eigenvalues.shape != (k,):
            raise ValueError(
                f"a low-rank inverse mass has variance (D,), basis (D, k) and eigenvalues (k,), got "
                f"{tuple(self.variance.shape)}, {tuple(self.basis.shape)} and {tuple(self.eigenvalues.shape)}"
            )
        for values in (self.variance, self.eigenvalues):
            if not bool((torch.isfinite(values) & (values > 0)).all()):
                raise ValueError("a low-rank inverse mass holds positive finite variances and eigenvalues")
        gram = self.basis.mT @ self.basis
        if not torch.allclose(gram, torch.eye(k, dtype=gram.dtype, device=gram.device), atol=1e-3):
            raise ValueError("a low-rank inverse mass has orthonormal columns in its basis")
        object.__setattr__(self, "scale", self.variance.sqrt())
        object.__setattr__(self, "stretch", self.eigenvalues.sqrt() - 1.0)

    def _root(self, v: Tensor) -> Tensor:
        return v + ((v @ self.basis) * self.stretch) @ self.basis.mT

    def push(self, velocity: Tensor) -> Tensor:
        """S (I + U (√Λ − I) Uᵀ) v."""
        return self.scale * self._root(velocity)

    def pull(self, score: Tensor) -> Tensor:
        """(I + U (√Λ − I) Uᵀ) S s."""
        return self._root(self.scale * score)

    @property
    def variances(self) -> Tensor:
        """The diagonal of C."""
        return self.variance * (1.0 + ((self.basis * self.basis) * (self.eigenvalues - 1.0)).sum(1))


def as_mass(value: "Mass | Tensor | None") -> Mass | None:
    """A mass as it is, variances ``()`` or ``(D,)`` as a diagonal, a covariance ``(D, D)`` as a dense one.

    Raises:
        TypeError: something else.
        ValueError: a tensor of another shape, or not positive.
    """
    if value is None or isinstance(value, Mass):
        return value
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"an inverse mass is a floating-point tensor or a Mass, got {type(value).__name__}")
    if value.ndim > 2:
        raise ValueError(f"an inverse mass is variances (D,) or a covariance (D, D), got {tuple(value.shape)}")
    return Dense(value) if value.ndim == 2 else Diagonal(value)


def mass_from(tensors: dict[str, Tensor]) -> Mass | None:
    """The mass of which :meth:`Mass.tensors` gave these; None for none."""
    kinds = {frozenset(f.name for f in fields(kind) if f.init): kind for kind in (Diagonal, Dense, LowRank)}
    return kinds[frozenset(tensors)](**tensors) if tensors else None
