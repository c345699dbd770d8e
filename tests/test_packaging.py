"""The wheel: everything of the four folders under the one name boltzmix, and nothing beside it."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("compose", "models", "planners", "benchmarks")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.tmp")


def packages_on_disk():
    """The dotted name of every folder with an __init__.py, and of the front package."""
    inits = (init.parent.relative_to(ROOT) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py"))
    return {"boltzmix", *(".".join(("boltzmix", *folder.parts)) for folder in inits)}


def test_every_package_is_listed():
    listed = set(SETUPTOOLS["packages"])
    assert packages_on_disk() - listed == set(), "add these to [tool.setuptools] packages in pyproject.toml"
    assert listed - packages_on_disk() == set(), "these are listed in pyproject.toml and are not on disk"


def test_no_code_outside_packages():
    """A folder with code and no __init__.py would be left out of the wheel without a word."""
    folders = {file.parent for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def test_type_checker_sees_every_folder():
    """pyright passes over links that the configuration does not name, and would then find nothing wrong."""
    assert set(PYPROJECT["tool"]["pyright"]["include"]) >= {f"src/boltzmix/{folder}" for folder in FOLDERS}


def requirements(extra):
    """The distributions that an extra asks for, those of the extras it includes among them."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        included = re.fullmatch(r"boltzmix\[(.+)\]", requirement)
        if included:
            names |= {name for other in included[1].split(",") for name in requirements(other)}
        else:
            names.add(re.match(r"[\w.-]+", requirement)[0])
    return names


def test_dev_is_a_superset_of_every_extra_but_the_peers():
    """dev.py counts on it: after `test`, `demo` installs nothing. Simulators and peers are asked for apart."""
    apart = {"peers", "planning", "ompl"}
    extras = set(PROJECT["optional-dependencies"]) - apart
    assert requirements("dev") >= {name for extra in extras for name in requirements(extra)}
    assert not requirements("dev") & {name for extra in apart for name in requirements(extra)}


def test_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    direct = {re.match(r"[\w.-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    direct |= {name for extra in ("dev", "peers", "planning", "ompl") for name in requirements(extra)}
    assert {pin.partition("==")[0] for pin in pins} == direct


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources so that no build folder appears, or is found, in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=JUNK)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_wheel_has_one_top_level_name(wheel):
    dist_info = f"boltzmix-{PROJECT['version']}.dist-info"
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"boltzmix", dist_info}


def test_wheel_holds_every_file_once(wheel):
    in_wheel = [name for name in wheel.namelist() if name.startswith("boltzmix/")]
    expected = {f"boltzmix/{file.name}" for file in (ROOT / "src" / "boltzmix").glob("*.py")} | {"boltzmix/py.typed"}
    for folder in FOLDERS:
        expected |= {f"boltzmix/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / folder).rglob("*.py")}
    weights = [file for file in (ROOT / "models" / "weights").glob("*") if file.suffix in (".safetensors", ".json")]
    expected |= {f"boltzmix/models/weights/{file.name}" for file in weights}
    shipped = [*(ROOT / "benchmarks" / "data").rglob("*.*"), *(ROOT / "compose" / "compiled").glob("*.h")]
    expected |= {f"boltzmix/{file.relative_to(ROOT).as_posix()}" for file in shipped}
    expected |= {f"boltzmix/models/configs/{file.name}" for file in (ROOT / "models" / "configs").glob("*.toml")}
    assert sorted(in_wheel) == sorted(expected)


def test_wheel_metadata(wheel):
    dist_info = f"boltzmix-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{dist_info}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("boltzmix", "0.1.0", "MIT")
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert "boltzmix = boltzmix.__main__:main" in wheel.read(f"{dist_info}/entry_points.txt").decode()
    assert f"{dist_info}/licenses/LICENSE" in wheel.namelist()
