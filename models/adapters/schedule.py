"""The schedules of :mod:`boltzmix.models.schedule`, under the name that users of adapters know."""

from boltzmix.models.schedule import (
    ALIASES,
    EDM,
    VE,
    VP,
    Cosine,
    FlowMatching,
    LinearVP,
    Schedule,
)

__all__ = ["ALIASES", "EDM", "VE", "VP", "Cosine", "FlowMatching", "LinearVP", "Schedule"]
