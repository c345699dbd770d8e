"""The import arrows: compose ← models, compose ← planners, and benchmarks on top; torch alone at the top of a module.

Every file is parsed, none is imported, so a file counts even where its optional dependency is not installed.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("compose", "models", "planners", "benchmarks")

# folder -> the folders it may import, at any depth
ARROWS = {
    "compose": {"compose"},
    "models": {"compose", "models"},
    "planners": {"compose", "planners"},
    "benchmarks": {"compose", "models", "planners", "benchmarks"},
}
# import name -> name of the distribution, where they differ
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "matplotlib"}  # matplotlib brings pillow


def _requirements(groups: list[list[str]]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for group in groups for requirement in group)
    return {match[0].lower().replace("_", "-") for match in names if match} - {"boltzmix"}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = _requirements([PROJECT["dependencies"]])
USABLE = CORE | _requirements([group for name, group in EXTRAS.items() if name not in ("test", "dev")])
# What may stand at the top of a module. Benchmarks are loaded only when asked for.
TOP_LEVEL = {"compose": {"torch"}, "models": {"torch"}, "planners": {"torch"}, "benchmarks": CORE - {"matplotlib"}}


class Import(NamedTuple):
    line: int
    module: str
    runs_on_import: bool  # false inside functions and under `if TYPE_CHECKING:`
    relative: bool


def imports(node: ast.AST, runs: bool = True) -> Iterator[Import]:
    """Every import below a node: statements, and calls of import_module with a constant name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(child.lineno, alias.name, runs, False) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if module == "boltzmix":  # `from boltzmix import models` is an import of boltzmix.models
                yield from (Import(child.lineno, f"boltzmix.{alias.name}", runs, False) for alias in child.names)
            else:
                yield Import(child.lineno, module, runs, child.level > 0)
        elif isinstance(child, ast.Call):
            called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            name = child.args[0] if child.args else None
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield Import(child.lineno, str(name.value), runs, str(name.value).startswith("."))
            yield from imports(child, runs)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(child, False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from imports(ast.Module(body=child.body, type_ignores=[]), False)
            yield from imports(ast.Module(body=child.orelse, type_ignores=[]), runs)
        else:
            yield from imports(child, runs)


def violations(folder: str, source: str) -> list[str]:
    """What a file of `folder` imports and may not."""
    found = []
    for line, module, runs, relative in imports(ast.parse(source)):
        top, _, rest = module.partition(".")
        distribution = DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
        if relative:
            found.append(f"{line}: relative import of {module!r}; write from boltzmix.{folder}… import …")
        elif top in FOLDERS:
            found.append(f"{line}: imports {module} past its one name; write boltzmix.{module}")
        elif top == "boltzmix":
            target = rest.partition(".")[0]
            if target not in ARROWS[folder] and folder != "benchmarks":
                found.append(f"{line}: {folder} may not import {module}; it may import {sorted(ARROWS[folder])}")
        elif top in sys.stdlib_module_names:
            continue
        elif runs and distribution not in TOP_LEVEL[folder]:
            found.append(f"{line}: imports {module} at the top of the module; import it in the function that uses it")
        elif distribution not in USABLE and folder != "benchmarks":  # benchmarks also meet peers, where installed
            found.append(f"{line}: imports {module}, which pyproject.toml does not name")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no files in {folder}"
    bad = {
        str(file.relative_to(ROOT)): found for file in files if (found := violations(folder, file.read_text("utf-8")))
    }
    assert not bad


@pytest.mark.parametrize("file", sorted((ROOT / "src" / "boltzmix").glob("*.py")), ids=lambda file: file.name)
def test_package_front_imports_nothing_eagerly(file):
    """`import boltzmix` is cheap because its own modules load the folders only when a name is asked for."""
    found = [item for item in imports(ast.parse(file.read_text("utf-8"))) if item.runs_on_import]
    allowed = (*sys.stdlib_module_names, "torch")
    assert not [item for item in found if item.relative or item.module.partition(".")[0] not in allowed]


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("compose", "import numpy"),
        ("compose", "from scipy import stats"),
        ("compose", "if True:\n    import matplotlib.pyplot as plt"),
        ("compose", "try:\n    import zuko\nexcept ImportError:\n    zuko = None"),
        ("compose", "class A:\n    import numpy"),
        ("compose", "from boltzmix.models.diffusion import Diffusion"),
        ("compose", "def f():\n    from boltzmix import models"),
        ("compose", "def f():\n    importlib.import_module('boltzmix.models')"),
        ("compose", "import boltzmix"),
        ("compose", "from boltzmix import Gaussian"),
        ("compose", "from .term import Term"),
        ("compose", "from . import term"),
        ("compose", "from compose.term import Term"),
        ("compose", "def f():\n    import undeclared_package"),
        ("models", "import diffusers"),
        ("models", "from boltzmix.planners import Planner"),
        ("models", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from boltzmix.benchmarks import report"),
        ("planners", "from boltzmix.models.nets.mlp import MLP"),
        ("planners", "import boltzmix.models"),
        ("benchmarks", "import blackjax"),
        ("benchmarks", "import matplotlib.pyplot as plt"),
        ("benchmarks", "from models import Diffusion"),
    ],
)
def test_a_wrong_import_is_noticed(folder, source):
    assert violations(folder, source)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("compose", "import math\nimport torch.nn as nn\nfrom boltzmix.compose.term import Term"),
        ("compose", "def f():\n    import numpy as np\n    from PIL import Image"),
        ("compose", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        (
            "models",
            "from boltzmix.compose.term import Term\ndef f():\n    import safetensors.torch, diffusers, sklearn",
        ),
        ("planners", "from boltzmix.planners.space import Space"),
        ("benchmarks", "import numpy, scipy\nimport boltzmix as bm\ndef f():\n    import blackjax"),
    ],
)
def test_a_right_import_passes(folder, source):
    assert not violations(folder, source)
