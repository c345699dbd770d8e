"""The package's names: each leads somewhere, and importing the package loads none of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from boltzmix import planners


def test_every_public_name_can_be_loaded():
    for name in planners.__all__:
        assert getattr(planners, name) is not None
    assert dir(planners) == sorted(planners.__all__)
    with pytest.raises(AttributeError, match="has no 'Disk'; its names are"):
        _ = planners.Disk


def test_type_checkers_and_users_see_the_same_names():
    tree = ast.parse(Path(planners.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: (node.module or "").removeprefix("boltzmix.planners.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "boltzmix.planners"
        for alias in node.names
    }
    assert seen == planners._NAMES


def test_importing_the_package_loads_none_of_its_modules():
    code = "import sys, boltzmix.planners; print([m for m in sys.modules if m.startswith('boltzmix.planners.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
