r"""The denoised estimate at σ = ∞, where a state is its noise.

Schedulers of diffusers may begin there: x / σ tends to the noise ε, and E[x0 | x] to what a network makes of pure
noise. For a formula of factors whose exponents add up to one, as in guidance, the terms that grow with σ cancel and its
estimate is :math:`\sum_i w_i D_i`.
"""

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.flat import FlatView
from boltzmix.compose.product import Product


def from_noise(view: FlatView, noise: Tensor) -> Tensor:
    """E[x0 | pure noise] of factors whose exponents add up to one: Σ w_i D_i, one forward for each network."""
    term, limit = view.term, torch.tensor(math.inf, dtype=torch.float64)
    pairs = term.pairs() if isinstance(term, Product) else [(term, None)]
    weights = [1.0 if exponent is None else float(exponent.value(limit)) for _, exponent in pairs]
    if abs(math.fsum(weights) - 1.0) > 1e-6:
        raise ValueError(
            f"{term.name()}: at sigma = inf only formulas whose exponents add up to 1 have an estimate, these add up "
            f"to {math.fsum(weights):g}; begin the ladder at a finite level"
        )
    groups: dict[Hashable, list[int]] = {}
    for index, (factor, _) in enumerate(pairs):
        if getattr(factor, "_estimates_from_noise", None) is None:
            raise ValueError(f"{factor.name()} has no estimate at sigma = inf; begin the ladder at a finite level")
        groups.setdefault(factor._group(), []).append(index)
    view.count(noise.shape[0])
    state = view.unravel(noise)
    total: Tensor | float = 0.0
    for members in groups.values():
        factors: list[Any] = [pairs[i][0] for i in members]
        for i, estimate in zip(members, factors[0]._estimates_from_noise(factors, state), strict=True):
            total = total + weights[i] * view.ravel(estimate)
    return total  # pyright: ignore[reportReturnType]
