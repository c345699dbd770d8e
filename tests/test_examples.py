"""Everything shown runs: the examples and the scripts of README and docs; the README's figures are those of a run."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{k}")
    for page in PAGES
    for k, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, and torch's global generator left as it was."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_an_example_runs(path, monkeypatch, capsys):
    needs = re.search(r"boltzmix\[(\w+)\]", path.read_text(encoding="utf-8"))
    if needs:
        pytest.importorskip({"digits": "sklearn"}.get(needs[1], needs[1]))
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("code", BLOCKS)
def test_a_shown_script_runs(code):
    assert code.startswith("import"), "a script can be copied and run as it stands"
    exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})


def test_the_readme_shows_three_scripts():
    assert sum(p.id.startswith("README") for p in BLOCKS) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_picture_is_small():
    for path in (ROOT / "docs/images").glob("*.png"):
        assert path.stat().st_size < 300_000, path.name


def test_the_readmes_figures_are_those_of_the_run_beside_its_picture():
    from boltzmix.benchmarks.demo import markdown

    results = json.loads((ROOT / "docs/images/demo-results.json").read_text(encoding="utf-8"))
    assert not results["quick"]
    assert markdown(results) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_publishing_a_run_replaces_the_block_and_nothing_else(tmp_path):
    from boltzmix.benchmarks.demo import publish

    results = json.loads((ROOT / "docs/images/demo-results.json").read_text(encoding="utf-8"))
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    results["panels"][0]["distance"] = 7.777
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name in ("plane.png", "digits.png", "worst.png", "planning.png"):
        (run / name).write_bytes(b"picture")
    publish(run, tmp_path)
    after = (tmp_path / "README.md").read_text(encoding="utf-8")
    changed = [b for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    assert "7.777" in changed[0]
    assert (tmp_path / "docs/images/demo-plane.png").read_bytes() == b"picture"
    results["quick"] = True
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(ValueError, match="quick run"):
        publish(run, tmp_path)
