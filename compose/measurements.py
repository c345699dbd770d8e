r"""Measurements: likelihoods :math:`N(y; A x, s^2 I)` as factors, for inverse problems and conditions on pictures.

A prior times a measurement is the posterior, and its log Z the evidence log p(y). Away from the data end, where x is
known only as :math:`x_0 \sim N(\hat x_0, V)` with a diagonal V, the same measurement has the likelihood

.. math:: p(y \mid x_\sigma) \approx N(y; A \hat x_0, s^2 I + A V A^\top),

which is what samplers that look ahead use (:class:`~boltzmix.compose.samplers.twisted.Twisted`).

Source of the second form: J. Song, A. Vahdat, M. Mardani, J. Kautz (2023), Pseudoinverse-guided diffusion models for
inverse problems.
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.gaussian import as_float_tensor
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable

_LOG_2PI = math.log(2 * math.pi)


class Measurement(Term):
    r"""The likelihood :math:`x \mapsto N(y; A x, s^2 I)`, static and normalised over y.

    For coordinates that are known without noise use :class:`~boltzmix.compose.constraints.Clamp`.

    Args:
        operator: A: a boolean mask, event-shaped (True where x is measured), or a matrix ``(M, *event)``.
        value: y: event-shaped for a mask (what the mask leaves out is ignored), ``(M,)`` for a matrix; with a first
            dimension ``(n, …)``, one measurement for each of the n draws.
        std: s > 0, in the units of y; a number, or ``(M,)`` for a matrix and event-shaped for a mask.

    Raises:
        ValueError: shapes that do not fit, an empty mask, a standard deviation that is not positive.
        TypeError: an operator that is neither boolean nor floating point, or a value in another dtype than a matrix.

    Example:
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> posterior = Gaussian(torch.zeros(2), 1.0) * Measurement(torch.tensor([True, False]), torch.ones(2), 1.0)
        >>> posterior.score(torch.tensor([[0.5, 0.0]])).tolist()        # N(1/2, 1/2) in the first coordinate
        [[0.0, 0.0]]
    """

    calibrated = True
    matrix: Tensor | None
    mask: Tensor | None
    value: Tensor
    std: Tensor

    def __init__(self, operator: Any, value: Any, std: Any) -> None:
        """Check the shapes and keep what is measured."""
        super().__init__()
        operator = torch.as_tensor(operator)
        if operator.dtype == torch.bool:
            shape, measured = tuple(operator.shape), tuple(operator.shape)
            if not shape or not bool(operator.any()):
                raise ValueError(f"a mask selects at least one entry of an event, got shape {shape} without any")
        elif operator.is_floating_point():
            if operator.ndim < 2:
                raise ValueError(f"a matrix has shape (M, *event), got {tuple(operator.shape)}")
            operator = as_float_tensor(operator, "Measurement's matrix")
            shape, measured = tuple(operator.shape[1:]), tuple(operator.shape[:1])
        else:
            raise TypeError(f"an operator is a boolean mask or a floating-point matrix, got {operator.dtype}")
        like = None if operator.dtype == torch.bool else operator
        value = as_float_tensor(value, "Measurement's value", like=like)
        if tuple(value.shape) != measured and (value.ndim != len(measured) + 1 or tuple(value.shape[1:]) != measured):
            raise ValueError(
                f"Measurement's value has shape {measured} or (n, {', '.join(map(str, measured))}), got "
                f"{tuple(value.shape)}"
            )
        std = as_float_tensor(std, "Measurement's std", like=value)
        if tuple(std.shape) not in ((), measured) or not bool((std > 0).all()):
            raise ValueError(
                f"Measurement's std is a number > 0 or such numbers of shape {measured}, got {tuple(std.shape)} with "
                f"the least {float(std.min()):g}; for coordinates known exactly use Clamp"
            )
        self.variables = Variable(shape)
        self.register_buffer("mask", operator.clone() if operator.dtype == torch.bool else None)
        self.register_buffer("matrix", None if operator.dtype == torch.bool else operator.flatten(1).clone())
        self.register_buffer("value", value.clone())
        self.register_buffer("std", std.clone())

    @property
    def per_row(self) -> bool:
        """Whether every draw has a measurement of its own."""
        return self.value.ndim > (self.mask.ndim if self.mask is not None else 1)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        residual, std = self._residual(x), self._each(self.std, x)
        logs = std.log().expand(residual.shape[-1]).sum() + 0.5 * residual.shape[-1] * _LOG_2PI
        return 0.5 * (residual / std).square().sum(-1) + logs

    def blurred(self, estimate: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        r"""Energies ``(N,)`` of :math:`N(y; A \hat x_0, s^2 I / w + A V A^\top)`, scaled like :math:`N(y; A x, s^2)^w`.

        Args:
            estimate: x̂0, ``(N, *event)``.
            variance: V, diagonal: event-shaped or a number; 0 gives the likelihood itself, to its power.
            power: w > 0, the exponent of the measurement in its formula.
        """
        residual = self._residual(estimate)
        noise = self._each(self.std, estimate).double().square() / power
        count = residual.shape[-1]
        own = 0.5 * noise.log().expand(count).sum() + 0.5 * count * _LOG_2PI  # of the narrowed Gaussian at V = 0
        scale = (power * (own + 0.5 * count * math.log(power)) - own).to(residual)
        spread = variance.double().expand(self.event_shape).reshape(-1)
        if self.mask is not None:
            total = (noise + spread[self.mask.reshape(-1)]).to(residual)
            return 0.5 * (residual.square() / total + total.log() + _LOG_2PI).sum(-1) + scale
        matrix = self.matrix.double()  # pyright: ignore[reportOptionalMemberAccess]
        total = (matrix * spread) @ matrix.mT + torch.diag(noise.expand(len(matrix)))
        root = torch.linalg.cholesky(total)
        white = torch.linalg.solve_triangular(root.to(residual), residual.mT, upper=False)
        constant = root.diag().log().sum() + 0.5 * len(matrix) * _LOG_2PI
        return 0.5 * white.square().sum(0) + constant.to(residual) + scale

    def _residual(self, x: Tensor) -> Tensor:
        """y − A x, ``(N, M)``."""
        flat = x.flatten(1)
        value = self.value.to(x)
        if self.per_row and len(value) != len(x):
            raise ValueError(
                f"Measurement holds {len(value)} measurements, one for each draw, and got {len(x)} rows; pass n equal "
                "to their number, or one measurement for all"
            )
        if self.matrix is not None:
            return value - flat @ self.matrix.to(x).mT
        assert self.mask is not None
        mask = self.mask.reshape(-1)
        return (value.reshape(-1, len(mask)) - flat)[:, mask]

    def _each(self, std: Tensor, like: Tensor) -> Tensor:
        """Standard deviations of what is measured, ``()`` or ``(M,)``."""
        std = std.to(like)
        return std.reshape(-1)[self.mask.reshape(-1)] if self.mask is not None and std.ndim else std

    def name(self) -> str:
        """What is measured."""
        count = int(self.mask.sum()) if self.mask is not None else len(self.matrix)  # pyright: ignore[reportArgumentType]
        return f"Measurement({count} of {torch.Size(self.event_shape).numel()})"
