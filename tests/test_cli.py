"""The command line: help that teaches, one line for a user's error, exit codes."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import boltzmix
from boltzmix.__main__ import main
from boltzmix.compose.errors import MissingExtra


@pytest.fixture
def calls(monkeypatch):
    """What the commands were handed, instead of minutes of work."""
    found = {}

    def demo(out, **options):
        found["demo"] = (out, options)
        return SimpleNamespace(failed=[])

    def suite(name, **options):
        from boltzmix.benchmarks import SUITES

        if name not in SUITES:
            raise ValueError(f"no suite is called {name!r}; there are {', '.join(SUITES)}")
        found["bench"] = (name, options)
        return SimpleNamespace()

    def train(name, out, **options):
        found["train"] = (name, out, options)
        return SimpleNamespace(steps=3, loss=0.5, seconds=1.0)

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", demo)
    monkeypatch.setattr("boltzmix.benchmarks.run_suite", suite)
    monkeypatch.setattr("boltzmix.models.recipes.train", train)
    return found


def test_as_a_module_it_prints_its_version():
    done = subprocess.run([sys.executable, "-m", "boltzmix", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"boltzmix {boltzmix.__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["demo", "bench", "train", "examples:", "bm.sample(circle * bar"]),
        (["demo", "--help"], ["--quick", "--out", "--seed"]),
        (["bench", "--help"], ["compositions", "speed", "--seeds"]),
        (["train", "--help"], ["--steps", "--out", "--print-config diffusion", "[data]", "folder =", "torchrun"]),
    ],
)
def test_help_teaches(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in said)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["bench"],
        ["train"],
        ["train", "ring", "--steps", "0"],
        ["train", "ring", "--config", "a.toml"],
        ["train", "ring", "--set", "fit.lr=1"],
        ["bench", "speed", "--seeds", "two"],
    ],
)
def test_a_call_that_cannot_be_parsed_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: boltzmix" in capsys.readouterr().err


def test_arguments_reach_the_commands(calls, tmp_path, capsys):
    assert main(["demo", "--quick", "--seed", "3", "--out", "here"]) == 0
    assert calls["demo"] == ("here", {"quick": True, "seed": 3, "workers": 1})
    assert main(["bench", "speed", "--seeds", "2", "--out", "there"]) == 0
    assert calls["bench"] == ("speed", {"out": "there", "quick": False, "seeds": 2})
    assert main(["bench", "speed", "--only", "hmc", "guidance"]) == 0
    assert calls["bench"] == ("speed", {"out": None, "quick": False, "seeds": 5, "only": ["hmc", "guidance"]})
    assert main(["bench", "speed", "--seeds", "3", "4"]) == 0
    assert calls["bench"] == ("speed", {"out": None, "quick": False, "seeds": [3, 4]})
    assert main(["train", "ring", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert calls["train"] == ("ring", str(tmp_path), {"steps": 3, "seed": 0})
    assert "3 steps" in capsys.readouterr().out


def test_a_configuration_is_printed_changed_and_run(tmp_path, monkeypatch, capsys):
    from boltzmix.models.training import config

    assert main(["train", "--print-config", "diffusion"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    ran = []

    def run(described, name, **options):
        ran.append((described, name, options))
        return SimpleNamespace(steps=3, loss=0.5, seconds=1.0), tmp_path, "my-diffusion"

    monkeypatch.setattr(config, "run", run)
    file = str(tmp_path / "mine.toml")
    assert main(["train", "--config", file, "--set", "fit.lr=0.5", "--steps", "3", "--seed", "7", "--out", "here"]) == 0
    (described, name, options), *_ = ran
    assert name == "mine"
    assert (described["fit"]["lr"], described["fit"]["steps"], described["fit"]["seed"]) == (0.5, 3, 7)
    assert described["output"]["dir"] == "here"
    assert options["command"] == (
        "python -m boltzmix train --config mine.toml --set fit.lr=0.5 --set fit.steps=3 --set fit.seed=7"
    )
    assert f"written to {tmp_path}" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--config", file]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--print-config", "difusion"], "no example configuration is called 'difusion'; did you mean 'diffusion'"),
        (["--config", "absent.toml"], "there is no file absent.toml"),
        (["--config", "diffusion"], "--print-config diffusion > diffusion.toml"),
    ],
)
def test_mistakes_about_configurations_are_one_line(arguments, said, capsys):
    assert main(["train", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


def test_a_demo_with_failed_panels_exits_1(monkeypatch):
    monkeypatch.setattr("boltzmix.benchmarks.demo.run", lambda *a, **k: SimpleNamespace(failed=["a panel"]))
    assert main(["demo"]) == 1


def test_unknown_names_are_one_line_and_exit_2(calls, capsys, monkeypatch):
    monkeypatch.undo()  # the real ones
    assert main(["train", "unicorn"]) == 2
    assert main(["bench", "unicorn"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("boltzmix train: no recipe is called 'unicorn'; there are ring")
    assert shown[1].startswith("boltzmix bench: no suite is called 'unicorn'; there are compositions")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MissingExtra('pip install "boltzmix[digits]"'), 'boltzmix demo: pip install "boltzmix[digits]"'),
        (PermissionError(13, "Permission denied", "/pictures"), "Permission denied"),
        (ValueError("two\nlines"), "boltzmix demo: two lines"),
    ],
)
def test_errors_of_users_are_one_line(error, said, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", fail)
    assert main(["demo"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
    with pytest.raises(type(error)):
        main(["demo", "--debug"])


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("boltzmix.benchmarks.demo.run", lambda *a, **k: {}["a bug"])
    with pytest.raises(KeyError):
        main(["demo"])


def test_interruption_exits_130(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "boltzmix: interrupted"
