"""Composites without a finite integral: refused from their closed form, or from how their tails grow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.compose.errors import NotNormalizable
from boltzmix.compose.flat import FlatView
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product
from boltzmix.compose.samplers.path import Point
from boltzmix.compose.term import Term


def refuse_improper(term: Term) -> None:
    """Gaussian composites have a closed form: refuse those that are not positive definite."""
    if not isinstance(term, Product):
        return
    pairs = term.pairs()
    if not pairs:
        raise NotNormalizable(f"{term.name()} is constant: everything cancelled, and a constant has no finite integral")
    if not all(isinstance(t, Gaussian) and e.constant is not None for t, e in pairs):
        return
    from boltzmix.compose.closed_form import gaussian_product

    gaussian_product([(t, e.constant) for t, e in pairs])  # pyright: ignore[reportArgumentType]


def refuse_growing_tails(term: Term, view: FlatView, point: Point) -> None:
    """Densities that may have no integral: along rays, energies must grow like D log r and more.

    A scale among the coordinates, such as a regression's log σ, makes energies rise to a ridge and fall behind it
    before they grow for good: rays that look heavy are followed farther out.
    """
    if not view.has_energy or view.term._rows() or view.per_row or _surely_proper(view.term):
        return
    x, mean, spread = point.x[:64], point.x.mean(0), point.x.std(0).clamp(min=1e-30)
    size = ((x - mean) / spread).square().mean(1, keepdim=True).sqrt()
    rays = (x - mean) / size.clamp(min=1e-3)  # as long as a draw is from the mean
    least = 0.99 * math.log(8.0) * view.dim

    def along(rays: Tensor, distances: Sequence[float]) -> Tensor:
        return torch.stack([view.at(None).energy(mean + r * rays) for r in distances])

    energies = along(rays, (8.0, 64.0, 512.0))
    heavy = energies[2] - energies[1] < least  # NaN where both are infinite: no mass
    if bool(heavy.any()):
        near, far = along(rays[heavy], (8.0**4, 8.0**5))
        heavy = heavy.masked_scatter(heavy, far - near < least)
    if view.transformed:  # far out, states round onto an edge, where a density may be infinite and integrable
        heavy = heavy & (energies[2] > -torch.inf)
    if bool(heavy.any()):
        raise NotNormalizable(
            f"{term.name()}: the density does not fall fast enough along {int(heavy.sum())} of {len(x)} rays from the "
            f"draws to infinity (energies {[round(float(e), 1) for e in energies[:, heavy][:, 0]]} at 8, 64 and 512 "
            "times the distance), so it has no finite integral; use bounded_negation, or a smaller exponent on the "
            "quotient"
        )


def _surely_proper(term: Term) -> bool:
    """Products of positive powers of normalised terms, at least one of them with exponent ≥ 1; sums of these."""
    if term.normalized:
        return True
    if isinstance(term, Mixture):
        return all(_surely_proper(t) for t in term._terms())
    if not isinstance(term, Product):
        return False
    weights = [e.constant for _, e in term.pairs()]
    return all(w is not None and w > 0 for w in weights) and all(t.normalized for t, _ in term.pairs())
