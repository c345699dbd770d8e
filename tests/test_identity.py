"""A class exists once, however it is imported: one module object per file, always named boltzmix.…

A file of compose/ can be reached as ./compose/x.py and as src/boltzmix/compose/x.py (a link). Two module objects of it
would mean two classes of one name, and isinstance would fail between them.
"""

import importlib
import os
import pkgutil
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("compose", "models", "planners", "benchmarks")


def modules_by_file():
    """The loaded modules whose file, links resolved, lies in one of the four folders."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().is_relative_to(ROOT):
            file = Path(file).resolve().relative_to(ROOT)
            if file.parts[0] in FOLDERS:
                found.append((str(file), name))
    return found


def import_everything():
    """Load every module of the four folders."""
    for folder in FOLDERS:
        package = importlib.import_module(f"boltzmix.{folder}")
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.endswith(".__main__"):
                importlib.import_module(info.name)


def test_public_names_are_the_modules_own():
    import boltzmix.compose
    from boltzmix.compose import Gaussian

    assert boltzmix.Gaussian is boltzmix.compose.Gaussian is Gaussian
    assert Gaussian is getattr(sys.modules[Gaussian.__module__], "Gaussian")  # noqa: B009
    assert Gaussian.__module__.startswith("boltzmix.compose.")


def test_every_file_is_one_module():
    import_everything()
    found = modules_by_file()
    on_disk = {str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert {file for file, _ in found} >= {file for file in on_disk if not file.endswith("__main__.py")}
    assert not {file: count for file, count in Counter(file for file, _ in found).items() if count > 1}
    assert not [name for _, name in found if not name.startswith("boltzmix.")]


def test_no_stray_top_level_package():
    """Neither our folders nor tests of the same names have taken a top-level name that users have of their own."""
    assert not set(FOLDERS) & set(sys.modules)


@pytest.mark.skipif(os.name == "nt", reason="a checkout on Windows may hold files in place of links")
@pytest.mark.parametrize("folder", FOLDERS)
def test_links_are_relative(folder):
    link = ROOT / "src" / "boltzmix" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"


def test_a_second_copy_is_noticed(monkeypatch):
    """Loading a file under its folder's bare name makes the copy that the tests above exclude."""
    from boltzmix.compose import Gaussian

    file = Path(sys.modules[Gaussian.__module__].__file__).resolve()
    bare = "compose." + file.stem
    spec = importlib.util.spec_from_file_location(bare, file)
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, bare, copy)
    spec.loader.exec_module(copy)
    assert copy.Gaussian is not Gaussian
    names = {name for path, name in modules_by_file() if path == str(file.relative_to(ROOT))}
    assert names == {bare, Gaussian.__module__}
