r"""The Gaussian that an energy model tilts: normalisable at infinity, and a start and a noise that can be sampled.

:math:`q(x \mid y) = N(x; m_y, L_y L_y^\top)`, one for each label or one for all. It holds the whitening matrix
:math:`W_y = L_y^{-1}`, so that an energy costs one product:
:math:`E(x) = \tfrac12 \|W_y (x - m_y)\|^2 - \log\det W_y + \tfrac D2 \log 2\pi`.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.term import Normalized
from boltzmix.compose.variable import Variable

_LOG_2PI = math.log(2 * math.pi)


class GaussianBase(Normalized):
    r"""A Gaussian with a diagonal or a full covariance, fitted to data, learnable on request.

    Args:
        event_shape: shape of one draw.
        covariance: ``"diagonal"`` or ``"full"``.
        num_classes: one Gaussian for each label and one for data without label (−1); None for a single one.
        learnable: mean and covariance are parameters, for a noise that is trained by maximum likelihood.
        loc: mean, a number or ``event_shape``; None is 0 until :meth:`fit_moments`.
        scale: standard deviations, a number or ``event_shape``; None is 1 until :meth:`fit_moments`.

    Raises:
        ValueError: numbers out of range, or data without variance along a coordinate.

    Example:
        >>> import torch
        >>> q = GaussianBase((2,))
        >>> q.fit_moments(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> q.mean(None).tolist(), q.deviations().tolist()
        ([[1.0, 3.0]], [1.0, 2.0])
    """

    path = "static"
    samplable = True
    loc: Tensor
    log_diagonal: Tensor
    lower: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        covariance: Literal["diagonal", "full"] = "diagonal",
        *,
        num_classes: int | None = None,
        learnable: bool = False,
        loc: float | Sequence[float] | Tensor | None = None,
        scale: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        """Check the numbers and hold the moments, one row for each label and one for none."""
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance is 'diagonal' or 'full', got {covariance!r}")
        shape = tuple(int(s) for s in event_shape)
        self.variables = Variable(shape)
        self.covariance, self.num_classes = covariance, num_classes
        self.given_loc, self.given_scale = loc is not None, scale is not None
        size, rows = math.prod(shape), 1 + (num_classes or 0)
        mean = torch.as_tensor(0.0 if loc is None else loc, dtype=torch.get_default_dtype()).expand(shape)
        width = torch.as_tensor(1.0 if scale is None else scale, dtype=torch.get_default_dtype()).expand(shape)
        if not bool(torch.isfinite(mean).all()):
            raise ValueError("the mean of the base is finite")
        if not bool((torch.isfinite(width) & (width > 0)).all()):
            raise ValueError(f"scale holds positive finite standard deviations, got {width.flatten()[:4].tolist()}")
        tensors = {
            "loc": mean.reshape(1, size).repeat(rows, 1),
            "log_diagonal": -width.reshape(1, size).log().repeat(rows, 1),
            "lower": torch.zeros(rows, size, size) if covariance == "full" else torch.zeros(rows, 0, 0),
        }
        for name, value in tensors.items():
            if learnable and value.numel():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    # ------------------------------------------------------------------- rows

    def mean(self, label: Tensor | None) -> Tensor:
        """Flat means of the rows' Gaussians, ``(N, D)``, or ``(1, D)`` without labels."""
        return self.loc[self._index(label)]

    def deviations(self) -> Tensor:
        """Standard deviations of the Gaussian without label, ``event_shape``."""
        inverse = torch.linalg.inv(self.whitening(None)[0].double())
        return inverse.square().sum(1).sqrt().to(self.loc).reshape(self.event_shape)

    def whitening(self, label: Tensor | None) -> Tensor:
        """Lower-triangular W of the rows' Gaussians, ``(N, D, D)``, or ``(1, D, D)`` without labels."""
        index = self._index(label)
        diagonal = torch.diag_embed(self.log_diagonal[index].exp())
        return diagonal if self.covariance == "diagonal" else self.lower[index].tril(-1) + diagonal

    def row_energy(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """−log q(x | label), ``(N,)``."""
        index = self._index(label)
        centred = x.flatten(1) - self.loc[index]
        log_diagonal = self.log_diagonal[index]
        white = centred * log_diagonal.exp()
        if self.covariance == "full":
            lower = self.lower[index].tril(-1)
            white = white + (centred @ lower[0].mT if len(lower) == 1 else (lower @ centred[:, :, None])[..., 0])
        return 0.5 * white.square().sum(1) - log_diagonal.sum(1) + 0.5 * x[0].numel() * _LOG_2PI

    def draw(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """``(n, *event)`` draws, each from the Gaussian of its label."""
        like = self.loc
        with torch.no_grad():
            noise = torch.randn(n, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
            if self.covariance == "diagonal":
                x = noise * (-self.log_diagonal[self._index(label)]).exp()
            else:
                whitening = self.whitening(label)
                if len(whitening) == 1:
                    x = torch.linalg.solve_triangular(whitening[0], noise.mT, upper=False).mT
                else:
                    x = torch.linalg.solve_triangular(whitening, noise[:, :, None], upper=False)[..., 0]
            return (x + self.mean(label)).reshape(n, *self.event_shape)

    def row(self, label: int) -> "GaussianBase":
        """The Gaussian of one label (−1 for none) as a term of its own, a copy."""
        own = GaussianBase(self.event_shape, self.covariance).to(self.loc)  # pyright: ignore[reportArgumentType]
        index = self._index(torch.tensor([label], device=self.loc.device))
        with torch.no_grad():
            own.loc.copy_(self.loc[index])
            own.log_diagonal.copy_(self.log_diagonal[index])
            own.lower.copy_(self.lower[index])
        return own

    def fit_moments(self, x: Tensor, label: Tensor | None = None) -> None:
        """Take mean and covariance from data ``(N, *event)``, except those given to the constructor.

        Every label's Gaussian has the mean of its own rows, and their covariance where there are more than 2 D of
        them, else the covariance of all rows about their labels' means.

        Raises:
            NonFinite: data that are not finite.
            ValueError: a coordinate that does not vary, or a singular covariance.
        """
        flat = x.detach().flatten(1).to(self.loc)
        if not bool(torch.isfinite(flat).all()):
            raise NonFinite("the base is fitted to data with NaN or infinite values; remove or repair those rows")
        groups = [flat[label == k] for k in range(self.num_classes or 0)] if label is not None else []
        within = torch.cat([own - own.mean(0) for own in groups if len(own)]) if any(map(len, groups)) else flat
        with torch.no_grad():
            for row in range(len(self.loc)):
                own = groups[row] if row < len(groups) else flat
                if not self.given_loc:
                    self.loc[row] = (own if len(own) else flat).mean(0)
                if not self.given_scale:
                    enough = row >= len(groups) or len(own) > 2 * flat.shape[1]
                    self._take_covariance(row, own if enough else within)

    def _take_covariance(self, row: int, flat: Tensor) -> None:
        variance = flat.var(0, correction=0)
        still = (variance <= 0).nonzero()[:, 0].tolist()
        if still:
            raise ValueError(
                f"coordinates {still[:8]}{' …' if len(still) > 8 else ''} do not vary in the batch of {len(flat)} that "
                "the base is fitted to; dequantise the data, or give scale="
            )
        if self.covariance == "diagonal":
            self.log_diagonal[row] = -0.5 * variance.log()
            return
        covariance = flat.double().mT.cov(correction=0)
        share = min(1.0, flat.shape[1] / len(flat))  # fewer rows than coordinates leave directions without variance
        covariance = (1 - 0.5 * share) * covariance + 0.5 * share * torch.diag(variance.double())
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed):
            raise ValueError(
                "the covariance of the data is singular; dequantise the data, or use covariance='diagonal'"
            )
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, eye, upper=False).to(self.loc)
        self.log_diagonal[row] = whitening.diagonal().log()
        self.lower[row] = whitening.tril(-1)

    def _index(self, label: Tensor | None) -> Any:
        last = len(self.loc) - 1
        if label is None or last == 0:
            return slice(last, last + 1)
        return torch.where(label < 0, last, label)

    # ------------------------------------------------------------------ hooks

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self.row_energy(x)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.draw(n, None, generator)
