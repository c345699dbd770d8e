r"""Seams of canvases: steps between pixels at the borders of windows against those inside, and the exact Gaussian twin.

A canvas made of windows shows a seam where its pixels change more, or less, across the border of a window than they do
elsewhere. :func:`seams` measures :math:`|\partial x|`, the mean absolute difference of neighbours, on both sides.

For Gaussian windows everything is linear, and nothing need be sampled: Langevin dynamics :math:`dx = -A x\,dt +
\sqrt 2\, dW` ends in the Σ that solves :math:`A\Sigma + \Sigma A^\top = 2I`, and reverse diffusion is a matrix that its
own solver gives, applied to unit vectors. :func:`twin` compares the ways of counting overlaps on a stationary chain.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.canvas import Canvas
from boltzmix.compose.crops import Window
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.term import Term

RULES = ("product", "mean", "tent", "centre", "marginal")


@dataclass(frozen=True)
class Seams:
    """Steps between neighbouring pixels at the borders of windows and elsewhere.

    Attributes:
        ratio: mean step at borders over that inside; 1 where there are no seams.
        error: its standard error, from resampled blocks.
        border, inside: mean absolute steps.
        by_axis: the ratio along each axis.
        profile: mean step by position within a stride, over the mean of all; the first is at a border.
        blocks: strips that were resampled.
    """

    ratio: float
    error: float
    border: float
    inside: float
    by_axis: tuple[float, ...]
    profile: tuple[float, ...]
    blocks: int


def borders(length: int, window: int, stride: int) -> list[int]:
    """The i for which a window begins or ends between pixels i and i + 1."""
    starts = range(0, length - window + 1, stride)
    return sorted({s - 1 for s in starts if s} | {s + window - 1 for s in starts if s + window < length})


def seams(
    x: Tensor, window: int, stride: int, *, reach: int = 1, offset: int = 0, resamples: int = 2000, seed: int = 0
) -> Seams:
    """Compare steps across the borders of windows with the others.

    Only steps between the outermost borders count: the edges of a canvas have statistics of their own. Errors are those
    of a bootstrap over strips as wide as a window, which are nearly independent.

    Args:
        x: pictures ``(N, C, H, W)``.
        window: side of a window.
        stride: from one to the next.
        reach: how far from a border steps count as its own: 1 are those across it, 2 their neighbours, too.
        offset: look so many pixels after each border: where ``overlap="centre"`` hands over from one window to the
            next, for instance, which is half a stride away where windows are two strides long.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no border inside, borders everywhere, or pictures of another shape.
    """
    if x.ndim != 4 or not x.isfinite().all():
        raise ValueError(f"seams are looked for in finite pictures (N, C, H, W), got {tuple(x.shape)}")
    if reach < 1:
        raise ValueError(f"reach is 1 or more, got {reach}")
    sums, profiles = [], []
    for axis in (2, 3):
        length = x.shape[axis]
        where = [i + offset for i in borders(length, window, stride) if i + offset < length - 1]
        steps = x.double().diff(dim=axis).abs().mean(1)  # (N, H, W), one less along the axis
        steps = steps if axis == 3 else steps.mT
        first, last = (where[0], where[-1]) if where else (0, -1)
        marked = torch.zeros(length - 1, dtype=torch.bool)
        for shift in range(1 - reach, reach):
            marked[[i + shift for i in where if 0 <= i + shift < length - 1]] = True
        inner = torch.zeros_like(marked)
        inner[first : last + 1] = True
        if not bool((inner & marked).any()) or not bool((inner & ~marked).any()):
            raise ValueError(f"windows of {window} at a stride of {stride} leave nothing to compare in {length} pixels")
        strips = [strip.mean(1) for strip in steps.split(window, dim=1)]  # each (N, length − 1)
        every = torch.cat(strips)
        sums.append(torch.stack([every[:, inner & marked].mean(1), every[:, inner & ~marked].mean(1)], 1))
        mean = every.mean(0)[first : last + 1]
        profiles.append(torch.stack([mean[k::stride].mean() for k in range(stride)]) / mean.mean())
    generator = torch.Generator().manual_seed(seed)
    again = torch.zeros(resamples, 2, dtype=torch.float64)
    for part in sums:  # each axis by itself: seams along one of them are no noise
        again += part[torch.randint(len(part), (resamples, len(part)), generator=generator)].mean(1) / len(sums)
    border, inside = (sum(float(part[:, k].mean()) for part in sums) / len(sums) for k in (0, 1))
    return Seams(
        ratio=border / inside,
        error=float((again[:, 0] / again[:, 1]).std()),
        border=border,
        inside=inside,
        by_axis=tuple(float(part[:, 0].mean() / part[:, 1].mean()) for part in sums),
        profile=tuple(((profiles[0] + profiles[1]) / 2).tolist()),
        blocks=sum(map(len, sums)),
    )


# ------------------------------------------------------------------ the Gaussian twin


def autocovariance(length: int, first: float, second: float = 0.0) -> Tensor:
    """Covariance of the stationary :math:`x_t = a x_{t-1} + b x_{t-2} + e` of unit variance, ``(length, length)``."""
    r = [1.0, first / (1.0 - second)]
    while len(r) < length:
        r.append(first * r[-1] + second * r[-2])
    lag = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    return torch.tensor(r[:length], dtype=torch.float64)[lag]


def score_matrix(term: Term, sigma: float | None = None) -> Tensor:
    """A of a linear score −A x, from its values at the unit vectors."""
    shape = term.event_shape
    size = math.prod(shape)
    at_units = term.score(torch.eye(size, dtype=torch.float64).reshape(size, *shape), sigma)
    at_zero = term.score(torch.zeros(1, *shape, dtype=torch.float64), sigma)
    assert isinstance(at_units, Tensor)
    assert isinstance(at_zero, Tensor)
    return (at_zero - at_units).reshape(size, size).mT


def langevin_covariance(drift: Tensor) -> Tensor:
    """Where dx = −A x dt + √2 dW ends, from A Σ + Σ Aᵀ = 2 I."""
    values, vectors = torch.linalg.eig(drift)
    inverse = torch.linalg.inv(vectors)
    middle = 2 * inverse @ inverse.mH / (values[:, None] + values.conj())
    return (vectors @ middle @ vectors.mH).real


def reverse_covariance(term: Term, top: float = 50.0, low: float = 1e-3, steps: int = 150) -> Tensor:
    """Where reverse diffusion (Heun) from N(0, top² I) ends: a linear map, followed on unit vectors."""
    shape = term.event_shape
    size, ends = math.prod(shape), (top ** (1 / 7), low ** (1 / 7))
    sigmas = tuple((ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** 7 for i in range(steps))
    start = top * torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # that it is biased is what is measured
        x = sample(term, size, sampler=Reverse(sigmas=sigmas), init=start, seed=0).x
    assert isinstance(x, Tensor)
    return x.reshape(size, size).mT @ x.reshape(size, size)


def border_steps(covariance: Tensor, window: int, stride: int) -> float:
    """E (x_{i+1} − x_i)² at the borders of windows over its mean inside: the ratio that is farthest from 1."""
    variance, neighbours = covariance.diagonal(), covariance.diagonal(1)
    squares = variance[:-1] + variance[1:] - 2 * neighbours
    marked = torch.zeros(len(squares), dtype=torch.bool)
    marked[borders(len(covariance), window, stride)] = True
    ratios = squares[marked] / squares[~marked].mean()
    return float(ratios[(ratios - 1).abs().argmax()])


def twin(order: Sequence[float] = (0.9,), window: int = 16, stride: int = 8, length: int = 48) -> list[dict[str, Any]]:
    """What each way of counting overlaps makes of a stationary Markov chain of unit variance, in closed form.

    ``"product"`` multiplies the windows and divides by nothing. Variances are those of the draws, 1 in truth.
    """
    p = Gaussian(torch.zeros(window, dtype=torch.float64), autocovariance(window, *order))
    truth = torch.linalg.inv(autocovariance(length, *order))
    rows = []
    for rule in RULES:
        if rule == "product":
            term: Term = product(*[Window(p, s, (length,)) for s in range(0, length - window + 1, stride)])
        else:
            term = Canvas(p, (length,), stride, overlap=rule)
        drift = score_matrix(term)
        row: dict[str, Any] = {"rule": rule, "score_error": float((drift - truth).abs().max())}
        found = {"langevin": langevin_covariance(drift), "reverse": reverse_covariance(term)}
        for name, covariance in found.items():
            variances = covariance.diagonal()
            row[name] = {
                "variance_mean": float(variances.mean()),
                "variance_least": float(variances.min()),
                "border_steps": border_steps(covariance, window, stride),
            }
        rows.append(row)
    return rows
