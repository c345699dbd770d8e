"""The six targets of the throughput sections, with the step sizes of their fixed-step HMC."""

from boltzmix.benchmarks.densities import SPEED_TARGETS, Density, density

#: step sizes by the names of :data:`boltzmix.benchmarks.densities.DENSITIES`
TARGETS: dict[str, float] = SPEED_TARGETS


def target(name: str) -> tuple[Density, float]:
    """A target and its step size.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TARGETS:
        raise ValueError(f"no target of the throughput sections is called {name!r}; there are {', '.join(TARGETS)}")
    return density(name), TARGETS[name]
