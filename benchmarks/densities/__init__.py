"""Targets on which samplers are compared, each written twice, for torch and for jax, with its true moments.

====================  =============================================================================================
file                  targets
====================  =============================================================================================
``gaussians.py``      ``standard``, ``ill_conditioned``, ``rotated``, ``extreme``, ``dense_precision``
``shapes.py``         ``banana``, ``funnel``, ``funnel_noncentred``, ``ring``
``mixtures.py``       ``grid`` (25 Gaussians), ``forty_modes``, ``many_well``
``lattices.py``       ``phi4``, ``phi4_small``, ``ising``
``hierarchies.py``    ``eight_schools``
``regressions.py``    ``logistic_regression``, ``sparse_logistic_regression``
``processes.py``      ``stochastic_volatility``, ``cox_process``
====================  =============================================================================================

A file of targets ends with its ``DENSITIES``: names and the functions that make them. A new target is a row there, or a
file and its row here. How each truth is known is in :attr:`Density.truth`; ``"reference"`` moments are written by
:mod:`boltzmix.benchmarks.densities.reference`.
"""

from collections.abc import Callable

from boltzmix.benchmarks.densities import (
    gaussians,
    hierarchies,
    lattices,
    mixtures,
    processes,
    regressions,
    shapes,
)
from boltzmix.benchmarks.densities.base import Constants, Density, Modes, gaussian_moments, moments

DENSITIES: dict[str, Callable[[], Density]] = {
    **hierarchies.DENSITIES,
    **regressions.DENSITIES,
    **gaussians.DENSITIES,
    **shapes.DENSITIES,
    **mixtures.DENSITIES,
    **processes.DENSITIES,
    **lattices.DENSITIES,
}

#: the targets on which leapfrogs for each second are compared, with the step size of HMC of fixed length
SPEED_TARGETS: dict[str, float] = {
    "standard": 0.25,
    "dense_precision": 0.008,
    "banana": 0.1,
    "funnel": 0.1,
    "logistic_regression": 0.05,
    "eight_schools": 0.2,
}


def density(name: str) -> Density:
    """One of the targets by its name.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> target = density("banana")
        >>> target.dim, target.truth, target.square_mean.tolist()
        (2, 'exact', [100.0, 19.0])
    """
    if name not in DENSITIES:
        raise ValueError(f"no density is called {name!r}; there are {', '.join(DENSITIES)}")
    return DENSITIES[name]()


__all__ = ["DENSITIES", "SPEED_TARGETS", "Constants", "Density", "Modes", "density", "gaussian_moments", "moments"]
