"""`import boltzmix` costs `import torch` and at most 0.2 s: every other dependency is imported where it is used."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, time
import torch
known, report = set(sys.modules), {}

start = time.process_time()
import boltzmix
report["seconds"] = time.process_time() - start
report["import boltzmix"] = sorted(set(sys.modules) - known)

boltzmix.Gaussian, boltzmix.sample
report["boltzmix.Gaussian, boltzmix.sample"] = sorted(set(sys.modules) - known)
print(json.dumps(report))
"""

# Distributions of pyproject.toml by import name, what they bring along, and the slow corners of torch.
HEAVY = (
    *("numpy", "scipy", "matplotlib", "PIL", "tqdm", "safetensors"),
    *("zuko", "diffusers", "transformers", "sklearn", "joblib", "arviz", "xarray", "pandas"),
    *("torch._dynamo", "torch._inductor", "sympy"),
)


def heavy(modules):
    """The members of HEAVY that a list of modules holds."""
    return sorted({name for name in HEAVY for module in modules if module == name or module.startswith(name + ".")})


@pytest.fixture(scope="module")
def report():
    ended = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("moment", ["import boltzmix", "boltzmix.Gaussian, boltzmix.sample"])
def test_imports_nothing_heavy_beyond_torch(report, moment):
    """Modules that `import torch` had loaded already, numpy among them, are not counted."""
    assert not heavy(report[moment])


def test_takes_no_time(report):
    assert report["seconds"] <= 0.2  # of processor time, so that a busy machine does not fail it


def test_heavy_modules_are_recognised():
    assert heavy(["boltzmix", "scipy.stats", "matplotlib", "scipyx"]) == ["matplotlib", "scipy"]
