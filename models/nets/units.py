"""The coordinates in which a flow works: data in the user's units to the line, with the log-determinant."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Units(nn.Module):
    r""":math:`u = (g(x) - \mathrm{loc}) / \mathrm{scale}` in each coordinate, and its log-determinant.

    g is the identity or, for data in an interval [low, high] such as dequantised pixels,

    .. math:: g(x) = \mathrm{logit}\,p, \qquad p = \alpha + (1 - 2\alpha) \frac{x - \mathrm{low}}{\mathrm{high} -
              \mathrm{low}}.

    The margin α keeps the ends of the interval finite. The density then lives where 0 < p < 1, which is wider than
    [low, high] by α / (1 − 2α) of its length at either end; outside it is zero.

    Args:
        event_shape: shape of one draw.
        loc, scale: numbers or ``event_shape``, of g(x); None means those of the first batch of :meth:`measure`.
        bounds: (low, high), or None for data on the whole line.
        margin: α in [0, ½).

    Source: L. Dinh, J. Sohl-Dickstein, S. Bengio (2017), Density estimation using Real NVP, for the logit.

    Raises:
        ValueError: numbers out of range.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        margin: float = 0.05,
    ) -> None:
        """Check the numbers."""
        super().__init__()
        shape = tuple(event_shape)
        if bounds is not None and not (len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf):
            raise ValueError(f"bounds is None or (low, high) with low < high, got {bounds!r}")
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin is a share of the interval in [0, 0.5), got {margin!r}")
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.margin = float(margin)
        self.measured = (loc is None, scale is None)
        for name, value, default in (("loc", loc, 0.0), ("scale", scale, 1.0)):
            number = torch.as_tensor(default if value is None else value, dtype=torch.get_default_dtype())
            try:
                number = number.expand(shape).clone()
            except RuntimeError as error:
                raise ValueError(
                    f"{name} is a number or broadcasts over the event {shape}, got shape {tuple(number.shape)}"
                ) from error
            if not bool(torch.isfinite(number).all()) or (name == "scale" and not bool((number > 0).all())):
                raise ValueError(f"loc is finite and scale positive, got {name}={value!r}")
            self.register_buffer(name, number)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(N, *event)`` to u, its log-determinant ``(N,)``, and which rows have a density, ``(N,)`` or None for all.

        Rows without a density get some finite u; the caller gives them log p = −∞.
        """
        y, log_det, inside = self._to_line(x)
        u = (y - self.loc) / self.scale
        return u, log_det - self.scale.log().sum(), inside

    def inverse(self, u: Tensor) -> Tensor:
        """u to x."""
        y = u * self.scale + self.loc
        if self.bounds is None:
            return y
        low, high = self.bounds
        return low + (high - low) * (y.sigmoid() - self.margin) / (1 - 2 * self.margin)

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Take loc, the mean of each coordinate, and scale from a batch, where they were not given.

        Vectors get one scale for each coordinate; an image gets one for all its pixels, since pixels that hardly ever
        change would be blown up when they do.

        Raises:
            ValueError: fewer than two rows, or coordinates that never vary.
        """
        if not any(self.measured):
            return
        if x.shape[0] < 2:
            raise ValueError("loc and scale are those of the first batch, which needs at least 2 rows; or pass them")
        y = self._to_line(x)[0]
        if self.measured[0]:
            self.loc.copy_(y.mean(0))
        if self.measured[1]:
            variance = y.var(0) if y.ndim == 2 else y.var(0).mean().expand_as(self.scale)
            if not bool((variance > 0).all()):
                raise ValueError(
                    "a coordinate of the first batch never varies, so its density is a delta: dequantise the data, "
                    "leave the coordinate out, or pass scale="
                )
            self.scale.copy_(variance.sqrt())

    def _to_line(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """g(x), its log-determinant, and which rows lie inside."""
        if self.bounds is None:
            return x, x.new_zeros(x.shape[0]), None
        low, high = self.bounds
        slope = (1 - 2 * self.margin) / (high - low)
        p = self.margin + slope * (x - low)
        inside = (p > 0) & (p < 1)
        # Rows outside have no density; the value that stands in keeps the gradients of the others finite.
        p = torch.where(inside, p, 0.5)
        up, down = p.log(), torch.log1p(-p)
        return up - down, (math.log(slope) - up - down).flatten(1).sum(1), inside.flatten(1).all(1)

    def extra_repr(self) -> str:
        """The interval."""
        return "" if self.bounds is None else f"bounds={self.bounds}, margin={self.margin}"
