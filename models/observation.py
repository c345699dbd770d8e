"""Observation models p(x|z): what a decoder's output says of x."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzmix.compose.variable import Variable, integers
from boltzmix.models.normal import log_normal

LIKELIHOODS = ("gaussian", "bernoulli")
NOISES = ("fixed", "scalar", "diagonal")


def halves(out: Tensor, shape: tuple[int, ...], who: str) -> tuple[Tensor, Tensor]:
    """A network's output as mean and log standard deviation, each ``(N, *shape)``.

    Raises:
        ValueError: another number of outputs than two per latent dimension.
    """
    size = math.prod(shape)
    if out[0].numel() != 2 * size:
        raise ValueError(
            f"{who} returns mean and log standard deviation, 2 · {size} numbers per row, got {tuple(out.shape)}"
        )
    mean, log_std = out.flatten(1).split(size, 1)
    return mean.reshape(-1, *shape), log_std.reshape(-1, *shape)


class GaussianLikelihood(nn.Module):
    """p(x|z) = N(x; D(z), s²) with one s, or one for each dimension of x; learned, or fixed.

    Args:
        event_shape: of x.
        std: s at the start.
        noise: ``"fixed"``, ``"scalar"`` or ``"diagonal"``.
    """

    log_std: Tensor

    def __init__(self, event_shape: tuple[int, ...], std: float, noise: str) -> None:
        """Hold log s, in float64 until the model gives it the dtype of its networks."""
        super().__init__()
        self.variable = Variable(event_shape)
        start = torch.full(event_shape if noise == "diagonal" else (), math.log(std), dtype=torch.float64)
        if noise == "fixed":
            self.register_buffer("log_std", start)
        else:
            self.log_std = nn.Parameter(start)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        """log p(x|z), ``(rows,)``, from the decoder's output."""
        return log_normal(x, out, self.log_std)

    def mean(self, out: Tensor) -> Tensor:
        """E[x|z]."""
        return out

    def draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """x ~ p(x|z)."""
        noise = torch.randn(out.shape, generator=generator, dtype=out.dtype, device=out.device)
        return out + self.log_std.exp() * noise

    def binarised(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Training data as they are."""
        return x


class BernoulliLikelihood(nn.Module):
    """p(x|z) of binary x, with the decoder's output as logits: normalised over x ∈ {0, 1} only."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        """Hold the variable; there is nothing to learn."""
        super().__init__()
        self.variable = Variable(event_shape, integers(2))

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        """log p(x|z), ``(rows,)``, from the logits.

        Raises:
            ValueError: values other than 0 and 1.
        """
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"a Bernoulli likelihood takes x in {{0, 1}}, got {int(x.min())} … {int(x.max())}")
        return (x * out - nn.functional.softplus(out)).flatten(1).sum(1)

    def mean(self, out: Tensor) -> Tensor:
        """P(x = 1|z)."""
        return out.sigmoid()

    def draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """x ~ p(x|z)."""
        return (torch.rand(out.shape, generator=generator, dtype=out.dtype, device=out.device) < out.sigmoid()).long()

    def binarised(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Integers as they are; floating-point intensities in [0, 1] are probabilities of fresh binary pixels."""
        if not x.is_floating_point():
            return x
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(f"intensities for a Bernoulli likelihood lie in [0, 1], got {x.min():g} … {x.max():g}")
        return (torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) < x).long()


def make_likelihood(
    likelihood: str, event_shape: Sequence[int], std: float, noise: str
) -> GaussianLikelihood | BernoulliLikelihood:
    """The likelihood that a name means.

    Raises:
        ValueError: unknown names, or a standard deviation that is not positive.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is one of {LIKELIHOODS}, got {likelihood!r}")
    if noise not in NOISES:
        raise ValueError(f"noise, how the standard deviation is learned, is one of {NOISES}, got {noise!r}")
    if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 < std < math.inf:
        raise ValueError(f"std is a finite number > 0, got {std!r}")
    shape = tuple(event_shape)
    return BernoulliLikelihood(shape) if likelihood == "bernoulli" else GaussianLikelihood(shape, float(std), noise)


def as_input(x: Tensor, core: nn.Module) -> Tensor:
    """Binary data in the dtype of the network that reads them."""
    if x.is_floating_point():
        return x
    return x.to(next((p.dtype for p in core.parameters() if p.is_floating_point()), torch.get_default_dtype()))


def checked(out: Tensor, n: int, shape: tuple[int, ...]) -> Tensor:
    """Refuse a decoder's output that is not shaped like x."""
    if tuple(out.shape) != (n, *shape):
        raise ValueError(f"the decoder returns (N, {', '.join(map(str, shape))}) for N = {n}, got {tuple(out.shape)}")
    return out
