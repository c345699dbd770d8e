#!/usr/bin/env python3
"""Set Boltzmix up and run it: one file, standard library only, nothing to install first.

    python3 dev.py demo     compose generative models, sample the compositions, write the pictures to runs/demo/
    python3 dev.py test     run the tests
    python3 dev.py check    run the formatter, the linter, the type checker and the examples in docstrings

The first run makes a virtual environment in .venv and installs this folder in editable mode with the exact versions
of constraints.txt; later runs install again only when pyproject.toml or constraints.txt changed. Whatever follows the
job is passed on:

    python3 dev.py demo --quick              a smaller demo
    python3 dev.py demo --out /tmp/demo      somewhere else
    python3 dev.py test tests/test_dev.py    one file
    python3 dev.py test -k gaussian -x       tests whose name contains "gaussian", until the first failure
    python3 dev.py test -m slow              the tests that take minutes

Jobs run in the repository's folder, from wherever they are called: relative paths start there. The exit code is the
job's. Delete .venv to start over.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (before anything that an older Python cannot read)
    _running = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"dev.py needs Python 3.11 or newer, this is {_running} ({sys.executable}).")

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
EXTRAS = {"demo": "demo", "test": "dev", "check": "dev"}  # what a job needs, by its name in pyproject.toml
INCLUDES = {"dev": {"dev", "demo"}, "demo": {"demo"}}  # what an extra brings along
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


# --- where things are ---------------------------------------------------------------------------------------------


def venv_python() -> Path:
    """The environment's interpreter."""
    return ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_file() -> Path:
    """Written after a complete installation and removed before the next: it vouches for the environment."""
    return ROOT / ".venv" / "boltzmix-stamp.json"


def lock_file() -> Path:
    """Held by the dev.py that installs, so that a second one waits; holds INTERRUPTED until the work is complete."""
    return ROOT / ".venv.lock"


INTERRUPTED = "installing"


def say(line: str) -> None:
    """One line of news."""
    print(f"dev.py: {line}", flush=True)


def run(command: list[str], *, hide: str = "nothing") -> int:
    """The exit code of a command run in the repository; `hide` its "errors" if it may fail, or "everything" it prints.

    `close_fds=False` hands the lock on to pip: should dev.py be killed, the lock lasts until pip has ended too.
    """
    stdout = subprocess.DEVNULL if hide == "everything" else None
    stderr = subprocess.DEVNULL if hide in ("errors", "everything") else None
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=stderr, close_fds=False, check=False).returncode


# --- is an installation needed? -----------------------------------------------------------------------------------


def wanted_stamp() -> dict[str, str]:
    """What an environment was made from: it is up to date as long as these agree."""
    inputs = b"\0".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return {
        "inputs": hashlib.sha256(inputs).hexdigest(),
        "python": "{}.{}".format(*sys.version_info),
        "root": str(ROOT),  # an editable installation points here
    }


def read_stamp() -> dict[str, str]:
    """The environment's stamp; empty if there is none, or none that can be read."""
    try:
        stamp = json.loads(stamp_file().read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in stamp.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_stamp(stamp: dict[str, str]) -> None:
    """Write the stamp whole or not at all."""
    temporary = stamp_file().with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, stamp_file())


def up_to_date(extra: str) -> bool:
    """Whether the environment is complete, made from today's files, and holds what `extra` names."""
    stamp = read_stamp()
    installed = INCLUDES.get(stamp.pop("extra", ""), set())
    return stamp == wanted_stamp() and extra in installed and venv_python().exists()


# --- installing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def installation_lock() -> Iterator[bool]:
    """Let one dev.py install at a time. Yields whether the installation before this one was cut short."""
    with open(lock_file(), "a+", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), os.name != "nt")
        waited = False
        while not _try_lock(file.fileno()):
            if not waited:
                say("another run of dev.py is installing into .venv: waiting for it to end")
            waited = True
            time.sleep(0.5)
        file.seek(0)
        yield file.read() == INTERRUPTED


def _try_lock(descriptor: int) -> bool:
    # The operating system drops either lock when the process ends, however it ends.
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # a byte beyond the text, so that the text stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def ensure_environment(extra: str) -> int:
    """Bring .venv up to date for `extra`; the exit code of what failed, or 0."""
    if up_to_date(extra):
        return 0
    with installation_lock() as interrupted:
        if up_to_date(extra):  # the dev.py that we waited for has done it
            return 0
        before, wanted = read_stamp(), wanted_stamp()
        if extra in INCLUDES.get(before.get("extra", ""), set()):
            extra = before["extra"]  # installed again because the files changed: keep the larger set current
        other_python = before.get("python", wanted["python"]) != wanted["python"]
        stamp_file().unlink(missing_ok=True)
        lock_file().write_text(INTERRUPTED, encoding="utf-8")
        code = make_venv(rebuild=interrupted or other_python) or install(extra)
        if code == 0:
            write_stamp({**wanted, "extra": extra})
        if code >= 0:  # pip came to its own end, well or not, and left nothing half-written; negative: it was killed
            lock_file().write_text("", encoding="utf-8")
        return code


def make_venv(*, rebuild: bool) -> int:
    """Make .venv unless a working one is there; an exit code."""
    home = ROOT / ".venv"
    pip_version = [str(venv_python()), "-m", "pip", "--version"]
    if not rebuild and venv_python().exists() and run(pip_version, hide="everything") == 0:
        return 0
    say("rebuilding .venv, which is incomplete or of another Python" if home.exists() else "making .venv")
    code = run([sys.executable, "-m", "venv", "--clear", str(home)])
    if code:
        say("Python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv).")
    return code


def install(extra: str) -> int:
    """Install this folder in editable mode with one of its extras; pip's exit code."""
    pip = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "install"]
    if prefers_cpu_torch() and not has_torch():
        install_cpu_torch(pip)
    say(f"installing boltzmix[{extra}] with the versions of constraints.txt into .venv (minutes at first)")
    code = run([*pip, "--editable", f".[{extra}]", "--constraint", "constraints.txt"])
    if code:
        say(f"pip failed with exit code {code}: its message is above. The next run tries again.")
    return code


def prefers_cpu_torch() -> bool:
    """Linux without an NVIDIA driver: PyPI's torch would bring gigabytes of CUDA libraries that cannot run here."""
    has_driver = os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi") is not None
    return sys.platform == "linux" and not has_driver


def torch_pin() -> str:
    """The version of torch in constraints.txt."""
    match = re.search(r"^torch==([^\s#;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        sys.exit("constraints.txt has no line torch==VERSION: dev.py needs one.")
    return match[1]


def has_torch() -> bool:
    """Whether the environment already holds the pinned torch, in any build."""
    program = (
        "import importlib.metadata, sys; sys.exit(importlib.metadata.version('torch').split('+')[0] != sys.argv[1])"
    )
    return run([str(venv_python()), "-c", program, torch_pin()], hide="everything") == 0


def install_cpu_torch(pip: list[str]) -> None:
    """Try the CPU build where pip looks anyway (a mirror, a folder of wheels), then on PyTorch's own index."""
    say("no NVIDIA driver found: preferring PyTorch's CPU build")
    build = [f"torch=={torch_pin()}+cpu", "--no-deps"]
    if run([*pip, *build], hide="errors") == 0:
        return
    if run([*pip, *build, "--index-url", TORCH_CPU_INDEX, "--timeout", "10", "--retries", "0"], hide="errors") == 0:
        return
    say(f"no CPU build within reach ({TORCH_CPU_INDEX} does not answer): installing the default, larger build")


# --- jobs ---------------------------------------------------------------------------------------------------------


def job(name: str, arguments: list[str]) -> int:
    """Run a job in the environment; its exit code, for `check` that of the first step that failed."""
    python = [str(venv_python()), "-P"]  # -P: nothing is importable merely because it lies in this folder
    if name == "demo":
        return run([*python, "-m", "boltzmix", "demo", *arguments])
    # Tests run side by side, one per core, with one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if name == "test":
        return run([*python, "-m", "pytest", "-n", "auto", *arguments])
    if arguments:
        say(f"check takes no arguments, it was given {' '.join(arguments)!r}")
        return 2
    steps = {
        "ruff format": ["ruff", "format", "--check", "."],
        "ruff check": ["ruff", "check", "."],
        "pyright": ["pyright", "--pythonpath", str(venv_python())],
        # through the links, so that pytest finds each module under its one name
        "doctests": ["pytest", "--doctest-modules", "src/boltzmix/compose", "src/boltzmix/models"],
    }
    codes: dict[str, int] = {}
    for title, step in steps.items():
        say(f"{title}: python -m {' '.join(step)}")
        codes[title] = run([*python, "-m", *step])
    failed = [title for title, code in codes.items() if code]
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return next((code for code in codes.values() if code), 0)


def main(arguments: list[str]) -> int:
    """Set up and run the job named first."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in EXTRAS:
        print(f"dev.py: {name!r} is no job; expected one of {', '.join(EXTRAS)}.\n\n{(__doc__ or '').strip()}")
        return 2
    return ensure_environment(EXTRAS[name]) or job(name, rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
