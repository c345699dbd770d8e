r"""Chains against reference moments: z-scores of means and spreads, R-hat, effective sizes, divergences.

With both sides' Monte Carlo standard errors, the collection's and the chains',

.. math:: z = \frac{\hat\theta - \theta}{\sqrt{\mathrm{se}(\hat\theta)^2 + \mathrm{se}(\theta)^2}}

is about N(0, 1) for a sampler that is right. Over m comparisons the largest |z| exceeds :func:`largest_z` with a chosen
probability: a family-wise rate of false positives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from boltzmix.benchmarks.posteriordb import Moments, moments
from boltzmix.compose.diagnostics import ess, rhat


@dataclass(frozen=True)
class Judgement:
    """What chains found of P parameters, all ``(P,)`` in float64.

    Attributes:
        names: of the parameters.
        z_mean: differences of means from the reference in standard errors of both sides.
        z_sd: the same of standard deviations.
        rhat: rank-normalised split R-hat.
        ess: effective sizes in the bulk.
        divergences: over all chains after the warm-up.
    """

    names: tuple[str, ...]
    z_mean: Tensor
    z_sd: Tensor
    rhat: Tensor
    ess: Tensor
    divergences: int

    def worst(self) -> dict[str, float]:
        """The largest |z| of a mean and of a standard deviation, the largest R-hat, the smallest effective size."""
        return {
            "mean": float(self.z_mean.abs().max()),
            "sd": float(self.z_sd.abs().max()),
            "rhat": float(self.rhat.max()),
            "ess": float(self.ess.min()),
            "divergences": float(self.divergences),
        }


def judge(draws: Mapping[str, Tensor], reference: Moments, divergences: int = 0) -> Judgement:
    """Compare chains ``(chains, draws)`` by parameter with reference moments.

    Raises:
        ValueError: a parameter of the reference that was not drawn.
    """
    missing = [name for name in reference.names if name not in draws]
    if missing:
        raise ValueError(f"the reference has parameters {missing}, which were not drawn; there are {sorted(draws)}")
    own = {name: draws[name] for name in reference.names}
    z_mean, z_sd = moments(own).z_scores(reference)
    x = torch.stack([t.double() for t in own.values()], -1)
    return Judgement(reference.names, z_mean, z_sd, rhat(x), ess(x), divergences)


def largest_z(comparisons: int, rate: float = 0.01) -> float:
    """The |z| that one of so many normal scores exceeds with probability ``rate`` (Šidák).

    Raises:
        ValueError: no comparison, or a rate outside (0, 1).

    Example:
        >>> round(largest_z(1, 0.05), 2), round(largest_z(224), 2)
        (1.96, 4.08)
    """
    if comparisons < 1 or not 0 < rate < 1:
        raise ValueError(f"largest_z needs a comparison and a rate in (0, 1), got {comparisons} and {rate}")
    each = -math.expm1(math.log1p(-rate) / comparisons)
    return -NormalDist().inv_cdf(each / 2)
