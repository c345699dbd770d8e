"""What numbers depend on: the versions that made them."""

import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Of this package, torch and Python, and the kind of machine."""
    return {
        "boltzmix": version("boltzmix"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
