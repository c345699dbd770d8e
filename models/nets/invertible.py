r"""Invertible layers for images: actnorm, a 1×1 convolution by its LU factors, affine coupling, squeezing.

A layer maps ``(N, C, H, W)`` to ``(N, C, H, W)`` and gives :math:`\log|\det|` of its Jacobian for every row, ``(N,)``;
``inverse`` goes back. Scales are :math:`e^{B \tanh(a / B)}`, smooth and within :math:`e^{\pm B}` by construction, so
nothing needs to be clamped.

Source: D. P. Kingma, P. Dhariwal (2018), Glow: generative flow with invertible 1×1 convolutions.
"""

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import LabelEmbedding


class ActNorm(nn.Module):
    r""":math:`y = e^{s} (x + b)` with one s and b for each channel; :math:`\log|\det| = HW \sum_c s_c`.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        """The identity, until :meth:`initialise`."""
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and the log-determinant."""
        y = (x + self.shift) * self.log_scale.exp()
        return y, (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(x.shape[0])

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """x."""
        return y * self.log_scale.neg().exp() - self.shift

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Choose s and b such that the channels of y have mean 0 and variance 1 on a batch.

        Raises:
            ValueError: a channel that is constant.
        """
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        if not bool((variance > 0).all()):
            raise ValueError(
                "a channel of the first batch is constant, so actnorm cannot be initialised by it: dequantise the "
                "data, or take a larger batch"
            )
        self.shift.copy_(-mean[:, None, None])
        self.log_scale.copy_(-0.5 * variance.log()[:, None, None])


class InvertibleConv(nn.Module):
    r""":math:`y = W x` at every pixel, :math:`W = P L (U + \mathrm{diag}(\varsigma e^{s}))`.

    P is a permutation and ς are signs, both fixed; L is unit lower and U strictly upper triangular. So
    :math:`\log|\det| = HW \sum_c s_c` whatever the sign of the determinant.

    Args:
        channels: C; the first W is a random rotation or reflection.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        """Draw W."""
        super().__init__()
        self.register_buffer("permutation", torch.eye(channels))
        self.register_buffer("sign", torch.ones(channels))
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.set_weight(torch.linalg.qr(torch.randn(channels, channels)).Q)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Take any invertible W, ``(C, C)``.

        Raises:
            ValueError: another shape, or a singular matrix.
        """
        if weight.shape != self.lower.shape:
            raise ValueError(f"a weight of shape {tuple(self.lower.shape)} is wanted, got {tuple(weight.shape)}")
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        if not bool((diagonal != 0).all()):
            raise ValueError("the weight of an invertible convolution is singular")
        self.permutation.copy_(permutation)
        self.sign.copy_(diagonal.sign())
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_scale.copy_(diagonal.abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U with its diagonal."""
        lower = self.lower.tril(-1) + torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + (self.sign * self.log_scale.exp()).diag()

    def weight(self) -> Tensor:
        """W."""
        lower, upper = self.factors()
        return self.permutation @ lower @ upper

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and the log-determinant."""
        y = nn.functional.conv2d(x, self.weight()[:, :, None, None])
        return y, (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(x.shape[0])

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """x, by two triangular solves."""
        lower, upper = self.factors()
        columns = self.permutation.mT @ y.movedim(1, 0).flatten(1)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.unflatten(1, (y.shape[0], *y.shape[2:])).movedim(0, 1)


class CouplingNet(nn.Module):
    """Convolutions 3×3, 1×1, 3×3 with SiLU between them; the last starts at zero, so that a coupling is the identity.

    Args:
        channels, out: channels of input and output.
        hidden: channels between.
        num_classes: number of labels; None for networks without labels.

    Example:
        >>> import torch
        >>> CouplingNet(2, 4, hidden=8)(torch.zeros(5, 2, 4, 4)).shape
        torch.Size([5, 4, 4, 4])
    """

    def __init__(self, channels: int, out: int, hidden: int = 64, num_classes: int | None = None) -> None:
        """Build the layers."""
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, out, 3, padding=1)
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """``x`` of shape ``(N, C, H, W)``; ``label`` None or ``(N,)`` with −1 for the null class."""
        h = self.first(x)
        if self.label is not None:
            h = h + self.label(label)[:, :, None, None]
        elif label is not None:
            raise TypeError("this network was built without classes and got labels; build it with num_classes=")
        return self.last(nn.functional.silu(self.middle(nn.functional.silu(h))))


class AffineCoupling(nn.Module):
    r""":math:`y_a = x_a`, :math:`y_b = e^{s} x_b + t`, t and s = B tanh(raw / B) from :math:`\mathrm{net}(x_a, c)`.

    The two are the halves of the channels, of which b is the larger. :math:`\log|\det| = \sum s`.

    Args:
        channels: C >= 2.
        hidden, num_classes: of the :class:`CouplingNet`.
        bound: B > 0, the largest \|log-scale\|.
    """

    def __init__(self, channels: int, hidden: int = 64, num_classes: int | None = None, bound: float = 2.0) -> None:
        """Build the network."""
        super().__init__()
        self.kept, self.bound = channels // 2, float(bound)
        self.net = CouplingNet(self.kept, 2 * (channels - self.kept), hidden, num_classes)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The halves a and b."""
        return x[:, : self.kept], x[:, self.kept :]

    def _affine(self, a: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(a, label).chunk(2, 1)
        return shift, bounded(raw, self.bound)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and the log-determinant."""
        a, b = self.split(x)
        shift, log_scale = self._affine(a, label)
        return torch.cat([a, log_scale.exp() * b + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """x."""
        a, b = self.split(y)
        shift, log_scale = self._affine(a, label)
        return torch.cat([a, (b - shift) * log_scale.neg().exp()], 1)


class LabelAffine(nn.Module):
    r""":math:`y = e^{s_c} x + t_c`, one s and t for each channel and label: the learned Gaussian at the top of a flow.

    Args:
        channels: C.
        num_classes: number of labels; None for one s and t in all.
        bound: B > 0, the largest \|log-scale\|.
    """

    def __init__(self, channels: int, num_classes: int | None = None, bound: float = 2.0) -> None:
        """The identity."""
        super().__init__()
        self.bound = float(bound)
        # Without labels there is one row, that of the null class.
        self.label = LabelEmbedding(num_classes or 0, 2 * channels)
        nn.init.zeros_(self.label.weight)

    def _affine(self, label: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.label(label)[:, :, None, None].chunk(2, 1)
        return shift, bounded(raw, self.bound)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and the log-determinant."""
        shift, log_scale = self._affine(label)
        gain = x.shape[2] * x.shape[3] * log_scale.flatten(1).sum(1)
        return x * log_scale.exp() + shift, gain.expand(x.shape[0])

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """x."""
        shift, log_scale = self._affine(label)
        return (y - shift) * log_scale.neg().exp()


def bounded(raw: Tensor, bound: float) -> Tensor:
    """``B tanh(raw / B)``: the identity near zero, within ±B everywhere."""
    return bound * torch.tanh(raw / bound)


def squeeze(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N, 4C, H/2, W/2)``: every 2×2 block of pixels becomes channels."""
    return nn.functional.pixel_unshuffle(x, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`."""
    return nn.functional.pixel_shuffle(x, 2)
