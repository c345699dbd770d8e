"""What every test shares: one torch thread, since two on small tensors are slower than one on small machines."""

import os

import pytest
import torch

from boltzmix.compose.compiled.toolchain import compiler
from boltzmix.compose.errors import CompileError

torch.set_num_threads(1)

os.environ["BOLTZMIX_COMPILE"] = "0"  # tests of compiled code ask for it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of generated code are skipped, visibly, where no compiler can build it."""
    try:
        compiler()
    except CompileError as error:
        for item in items:
            if item.path.name.startswith(("test_compiled", "test_lower")):
                item.add_marker(pytest.mark.skip(reason=str(error)))
