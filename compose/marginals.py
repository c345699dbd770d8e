r"""Marginals in closed form: the density of some entries of x when the others are integrated out.

Noise is added to every entry by itself, so the marginal of a noised density is the noised marginal: what holds at the
data end holds at every σ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.compose.wrappers import Affine, AffineMap


def marginal(term: Term, crop: Sequence[slice]) -> Term | None:
    r""":math:`p(x_r) = \int p(x)\, dx_{\setminus r}` for a rectangular crop r, or None where there is no closed form.

    Known for Gaussians, mixtures, sums of normalised terms that are known, and images of these under
    :func:`~boltzmix.compose.wrappers.affine` with one scale. A term of another class that defines ``marginal(crop)``
    is asked.

    Args:
        term: over one variable.
        crop: one slice for each axis of the event.

    Example:
        >>> p = Gaussian(torch.tensor([0.0, 1.0, 2.0]), 1.0)
        >>> marginal(p, [slice(1, 3)]).mean.tolist()
        [1.0, 2.0]
    """
    assert isinstance(term.variables, Variable)
    if isinstance(term, Product):
        pairs = term.pairs()
        single = len(pairs) == 1 and pairs[0][1].constant == 1.0 and not term.log_scale
        return marginal(pairs[0][0], crop) if single else None
    if isinstance(term, Mixture):
        parts = [marginal(t, crop) if t.normalized else None for t in term._terms()]
        known = [part for part in parts if part is not None]
        return Mixture(known, term.log_weights) if len(known) == len(parts) else None
    if isinstance(term, Affine):
        loc, scale = term.change.loc, term.change.scale
        inner = marginal(term.inner, crop)
        if inner is None or scale.ndim:  # a scale per coordinate shares its noise among all of them
            return None
        return Affine(inner, AffineMap(loc if loc.ndim == 0 else loc[tuple(crop)].clone(), scale))
    if isinstance(term, (Gaussian, GaussianMixture)):
        entries = torch.arange(torch.Size(term.event_shape).numel()).reshape(term.event_shape)[tuple(crop)]
        kept, shape = entries.reshape(-1), tuple(entries.shape)
        if isinstance(term, Gaussian):
            spread = term.variances[kept].reshape(shape) if term.basis is None else _block(term.covariance, kept)
            return Gaussian(term.mean[kept].reshape(shape), spread)
        spread = term.variances[:, kept] if term.basis is None else _block(term.covariances, kept)
        return GaussianMixture(term.means[:, kept], spread, term.weights)
    own: Any = getattr(term, "marginal", None)
    return None if own is None else own(tuple(crop))


def same_density(left: Term, right: Term) -> bool:
    """Whether two marginals are one density, up to rounding, for the classes that have a closed form."""
    if left.key() == right.key():
        return True
    if isinstance(left, Gaussian) and isinstance(right, Gaussian):
        return _close(left.mean, right.mean) and _close(left.covariance, right.covariance)
    if isinstance(left, GaussianMixture) and isinstance(right, GaussianMixture):
        pairs = ((left.means, right.means), (left.covariances, right.covariances), (left.weights, right.weights))
        return all(_close(a, b) for a, b in pairs)
    if isinstance(left, Affine) and isinstance(right, Affine):
        maps = ((left.change.loc, right.change.loc), (left.change.scale, right.change.scale))
        return all(_close(a, b) for a, b in maps) and same_density(left.inner, right.inner)
    if isinstance(left, Mixture) and isinstance(right, Mixture):
        return left.log_weights == right.log_weights and all(map(same_density, left._terms(), right._terms()))
    return False


def _block(covariance: Tensor, kept: Tensor) -> Tensor:
    block = covariance[..., kept, :][..., kept]
    return 0.5 * (block + block.mT)


def _close(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    scale = float(left.abs().max().clamp(min=1e-30))
    tolerance = 1e-5 if left.dtype == torch.float32 else 1e-9
    return float((left - right).abs().max()) <= tolerance * scale
