"""dev.py installs when it must and only then. Commands are recorded in place of being run."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[1] / "dev.py"


class Machine:
    """A machine in a folder: what dev.py would run is written down, and `fails` decides what exit codes it sees."""

    def __init__(self, dev, root):
        self.dev, self.root, self.commands = dev, root, []
        self.fails = lambda command: 0
        self.torch, self.pip = False, True

    def run(self, command, **options):
        if command[0] == str(self.dev.venv_python()) and not self.dev.venv_python().exists():
            raise FileNotFoundError(command[0])
        if "--version" in command:  # dev.py asks whether pip works
            return 0 if self.pip else 1
        if "-c" in command:  # dev.py asks whether torch is there
            return 0 if self.torch else 1
        self.commands.append(command)
        code = self.fails(command)
        if code == 0 and "venv" in command:
            self.dev.venv_python().parent.mkdir(parents=True, exist_ok=True)
            self.dev.venv_python().touch()
        return code

    def installs(self):
        """The extras installed since the last call, and whether the environment was made anew."""
        commands, self.commands = self.commands, []
        extras = [word for command in commands if "--editable" in command for word in command if word.startswith(".[")]
        return extras, any("venv" in command for command in commands)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("boltzmix_dev", DEV)
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\ntorch==2.13.0  # a comment\n")
    machine = Machine(dev, tmp_path)
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "run", machine.run)
    monkeypatch.setattr(dev, "prefers_cpu_torch", lambda: False)
    return machine


def test_installs_once(machine, capsys):
    assert machine.dev.ensure_environment("dev") == 0
    assert machine.installs() == ([".[dev]"], True)
    capsys.readouterr()
    assert machine.dev.ensure_environment("dev") == 0
    assert machine.commands == []
    assert capsys.readouterr().out == ""


def test_demo_after_test_installs_nothing_and_test_after_demo_adds(machine):
    machine.dev.ensure_environment("demo")
    assert machine.installs() == ([".[demo]"], True)
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([".[dev]"], False)
    machine.dev.ensure_environment("demo")
    assert machine.installs() == ([], False)


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_installs_again_when_a_file_changes(machine, name):
    machine.dev.ensure_environment("dev")
    machine.installs()
    with open(machine.root / name, "a") as file:
        file.write("# changed\n")
    machine.dev.ensure_environment("demo")
    assert machine.installs() == ([".[dev]"], False)  # the larger set stays current
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([], False)


def test_a_change_during_the_installation_is_not_missed(machine):
    def edit(command):
        if "--editable" in command:
            (machine.root / "constraints.txt").write_text("torch==2.14.0\n")
        return 0

    machine.fails = edit
    machine.dev.ensure_environment("dev")
    machine.installs()
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([".[dev]"], False)


def test_a_moved_repository_installs_again(machine, monkeypatch):
    machine.dev.ensure_environment("dev")
    machine.installs()
    moved = machine.root.with_name(machine.root.name + "-moved")
    machine.root.rename(moved)
    monkeypatch.setattr(machine.dev, "ROOT", moved)
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([".[dev]"], False)


def test_another_python_rebuilds(machine):
    machine.dev.ensure_environment("dev")
    stamp = json.loads(machine.dev.stamp_file().read_text())
    machine.dev.stamp_file().write_text(json.dumps({**stamp, "python": "3.9"}))
    machine.installs()
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([".[dev]"], True)


@pytest.mark.parametrize("first_time", [True, False])
def test_an_interrupted_installation_is_rebuilt(machine, first_time):
    """A kill in the midst of pip may leave a half-written package that pip takes for whole."""
    if not first_time:
        machine.dev.ensure_environment("demo")

    def interrupt(command):
        if "--editable" in command:
            raise KeyboardInterrupt
        return 0

    machine.fails = interrupt
    with pytest.raises(KeyboardInterrupt):
        machine.dev.ensure_environment("dev")
    assert not machine.dev.up_to_date("demo")  # nothing vouches for what was interrupted
    machine.fails = lambda command: 0
    machine.installs()
    assert machine.dev.ensure_environment("dev") == 0
    assert machine.installs() == ([".[dev]"], True)
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([], False)


def test_a_failed_installation_is_tried_again_in_place(machine, capsys):
    """pip ended by itself (no network, say): its exit code comes back, and what it had installed is whole."""
    machine.fails = lambda command: 7 if "--editable" in command else 0
    assert machine.dev.main(["demo"]) == 7
    assert not any("boltzmix" in command for command in machine.commands)  # the job did not start
    assert "exit code 7" in capsys.readouterr().out
    machine.fails = lambda command: 0
    machine.installs()
    assert machine.dev.main(["demo"]) == 0
    assert machine.installs() == ([".[demo]"], False)


def test_a_pip_that_was_killed_counts_as_interrupted(machine):
    machine.fails = lambda command: -9 if "--editable" in command else 0
    assert machine.dev.ensure_environment("dev") == -9
    machine.fails = lambda command: 0
    machine.installs()
    machine.dev.ensure_environment("dev")
    assert machine.installs() == ([".[dev]"], True)


@pytest.mark.parametrize("damage", ["no interpreter", "no pip", "no stamp", "torn stamp", "foreign stamp"])
def test_a_damaged_environment_is_repaired(machine, damage):
    machine.dev.ensure_environment("dev")
    machine.installs()
    if damage == "no interpreter":
        machine.dev.venv_python().unlink()
    elif damage == "no pip":
        machine.dev.stamp_file().unlink()
        machine.pip = False
    elif damage == "no stamp":
        machine.dev.stamp_file().unlink()
    else:
        machine.dev.stamp_file().write_text('{"inputs": "ab' if damage == "torn stamp" else "[1, 2]")
    assert machine.dev.ensure_environment("dev") == 0
    assert machine.installs() == ([".[dev]"], damage in ("no interpreter", "no pip"))


@pytest.mark.parametrize(
    ("reachable", "tries"),
    [("here", ["here"]), ("index", ["here", "index"]), ("nothing", ["here", "index"])],
)
def test_cpu_build_of_torch_is_preferred_and_said(machine, monkeypatch, capsys, reachable, tries):
    """Where pip looks anyway first, then PyTorch's index with a short timeout, then the default build."""
    monkeypatch.setattr(machine.dev, "prefers_cpu_torch", lambda: True)

    def where(command):
        return "index" if machine.dev.TORCH_CPU_INDEX in command else "here"

    machine.fails = lambda command: 1 if "torch==2.13.0+cpu" in command and where(command) != reachable else 0
    assert machine.dev.ensure_environment("demo") == 0
    attempts = [command for command in machine.commands if "torch==2.13.0+cpu" in command]
    assert [where(command) for command in attempts] == tries
    assert all("--timeout" in command for command in attempts if where(command) == "index")
    said = capsys.readouterr().out
    assert said.count("preferring PyTorch's CPU build") == 1
    assert ("default, larger build" in said) == (reachable == "nothing")
    assert machine.installs()[0] == [".[demo]"]


def test_a_torch_that_is_there_stays(machine, monkeypatch, capsys):
    monkeypatch.setattr(machine.dev, "prefers_cpu_torch", lambda: True)
    machine.torch = True
    machine.dev.ensure_environment("demo")
    assert not any(word.startswith("torch") for command in machine.commands for word in command)
    assert "CPU build" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("system", "driver_file", "nvidia_smi", "expected"),
    [
        ("linux", False, None, True),
        ("linux", True, None, False),
        ("linux", False, "/usr/bin/nvidia-smi", False),
        ("darwin", False, None, False),
        ("win32", False, None, False),
    ],
)
def test_which_machines_prefer_the_cpu_build(monkeypatch, machine, system, driver_file, nvidia_smi, expected):
    monkeypatch.undo()  # the real function again
    spec = importlib.util.spec_from_file_location("boltzmix_dev", DEV)
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    monkeypatch.setattr(dev.sys, "platform", system)
    monkeypatch.setattr(dev.os.path, "exists", lambda path: driver_file)
    monkeypatch.setattr(dev.shutil, "which", lambda name: nvidia_smi)
    assert dev.prefers_cpu_torch() is expected


def test_a_second_run_waits_for_the_first(machine):
    """Two shells in a fresh clone: the second finds the first one's work done."""
    dev = machine.dev
    dev.make_venv(rebuild=False)
    program = f"""
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("dev", {str(DEV)!r})
dev = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dev)
dev.ROOT = pathlib.Path({str(machine.root)!r})
dev.make_venv = dev.install = None  # calling either would fail
raise SystemExit(dev.ensure_environment("dev"))
"""
    with contextlib.ExitStack() as first:
        first.enter_context(dev.installation_lock())
        second = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        first.callback(second.stdout.close)
        assert "waiting" in second.stdout.readline()
        dev.write_stamp({**dev.wanted_stamp(), "extra": "dev"})
        assert second.poll() is None
    assert second.wait(timeout=30) == 0


@pytest.mark.parametrize("job", ["demo", "test", "check"])
def test_exit_codes_propagate(machine, monkeypatch, job):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.fails = lambda command: 3 if "-P" in command else 0
    assert machine.dev.main([job]) == 3
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_arguments_are_passed_on(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.dev.main(["demo", "--quick", "--out", "x"])
    assert machine.commands[-1][-5:] == ["boltzmix", "demo", "--quick", "--out", "x"]
    machine.dev.main(["test", "-k", "gaussian"])
    assert machine.commands[-1][-2:] == ["-k", "gaussian"]
    assert machine.dev.main(["check", "--fix"]) == 2


def test_help_teaches_and_an_unknown_job_is_refused(machine, capsys):
    assert machine.dev.main(["--help"]) == 0
    taught = capsys.readouterr().out
    assert all(f"python3 dev.py {job}" in taught for job in ("demo", "test", "check"))
    assert machine.dev.main(["tset"]) == 2
    assert "'tset' is no job; expected one of demo, test, check" in capsys.readouterr().out
    assert machine.dev.main([]) == 2
    assert machine.commands == []


def test_it_runs_from_another_folder(tmp_path):
    ended = subprocess.run([sys.executable, str(DEV), "--help"], cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == 0
    assert os.listdir(tmp_path) == []
