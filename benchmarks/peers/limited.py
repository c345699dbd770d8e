"""A limit in time for methods that may never come back, by running them in a process of their own."""

# pyright: reportMissingImports=false

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from torch import Tensor

from boltzmix.benchmarks.densities import DENSITIES, Density, density
from boltzmix.benchmarks.methods import Budget, Method, MethodRun, failed
from boltzmix.benchmarks.peers.base import require
from boltzmix.benchmarks.peers.guard import guarded, name_of


@dataclass(frozen=True)
class Sent:
    """A density of this library, which is sent by its name."""

    name: str

    def density(self) -> Density:
        """The density."""
        return density(self.name)


class Limited:
    """A method in a process of its own, with one thread and a limit on the time of each run.

    A run that takes longer is ended and becomes a row that says so, and so does one whose process dies, for want of
    memory for instance; the next run starts a new process. The process stays for later runs, which find compiled
    programs again. It does not share memory with this one: what a target counts there, it does not count here; with
    :meth:`apply`, functions that count run there too.

    Args:
        method: any ``(density, starts, budget, seed) -> MethodRun``.
        seconds: wall-clock time of one run, the start of the process and imports (a few seconds) among them.

    Raises:
        ValueError: a limit that is not a positive number.

    Densities of :data:`~boltzmix.benchmarks.densities.DENSITIES` are sent by name; others, and methods, are pickled,
    with cloudpickle where that is installed.
    """

    def __init__(self, method: Method, seconds: float) -> None:
        """The process starts with the first run."""
        if isinstance(seconds, bool) or not 0.0 < seconds < float("inf"):
            raise ValueError(f"seconds is a positive number, got {seconds!r}")
        self.method, self.seconds = method, float(seconds)

    @property
    def name(self) -> str:
        """That of the method."""
        return name_of(self.method)

    def __call__(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        """Run the method there, with its failures as rows."""
        return self.apply(guarded, density, starts, budget, seed, label=self.name)

    def apply(self, function: Callable[..., MethodRun], *args: Any, label: str) -> MethodRun:
        """What ``function(method, *args)`` gives, run there.

        Args:
            function: of a module that can be imported, such as one that runs a method and checks it.
            args: of the function, a density and an int for the seed among them.
            label: what a run that fails is called.
        """
        target = next(a for a in args if isinstance(a, Density))
        seed = next((a for a in reversed(args) if isinstance(a, int)), 0)
        try:
            parts = [packed(part) for part in (function, self.method, *args)]
        except Exception as error:  # pickle raises many kinds
            words = f"cannot be sent to another process: {type(error).__name__}: {error}"
            return failed(label, target, seed, f"ValueError: {label} on {target.name} {words}")
        there = _process_of(self)
        try:
            there.connection.send(parts)
            if not there.connection.poll(self.seconds):
                self.close()
                return failed(label, target, seed, f"TimeoutError: did not end within {self.seconds:g} s")
            found = pickle.loads(there.connection.recv_bytes())
        except (EOFError, OSError):
            code = there.process.wait()
            self.close()
            return failed(label, target, seed, f"RuntimeError: its process ended with exit code {code}")
        return failed(label, target, seed, found) if isinstance(found, str) else found

    def close(self) -> None:
        """End the process, whatever it is doing; the next run starts another."""
        if (there := _RUNNING.pop(self, None)) is not None:
            there.end()


@dataclass(frozen=True)
class _There:
    """A process, our end of its connection, and what ends both."""

    process: "subprocess.Popen[bytes]"
    connection: Connection
    end: Callable[[], object]


#: beside the methods and not in them: a method with a process is the same method, when it is sent or compared
_RUNNING: "weakref.WeakKeyDictionary[Limited, _There]" = weakref.WeakKeyDictionary()


def _process_of(method: Limited) -> _There:
    """The process of a method, started where there is none that lives."""
    there = _RUNNING.get(method)
    if there is not None and there.process.poll() is None:
        return there
    method.close()
    ours, theirs = Pipe()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "NPROC"), "1")
    command = [sys.executable, "-m", "boltzmix.benchmarks.peers.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    _RUNNING[method] = _There(process, ours, weakref.finalize(method, _end, process, ours))
    return _RUNNING[method]


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


def packed(part: Any) -> bytes:
    """A pickle of any part of a call."""
    if isinstance(part, Density) and part.name in DENSITIES and density(part.name) is part:
        return pickle.dumps(Sent(part.name))
    try:
        return pickle.dumps(part)
    except Exception:  # pickle raises many kinds
        require(("cloudpickle",), f"sending {type(part).__name__}, which pickle cannot,")
        import cloudpickle

        return cloudpickle.dumps(part)


def limited(method: Method, seconds: float) -> Limited:
    """The method in a process of its own, its runs ended after ``seconds`` of wall-clock time."""
    return Limited(method, seconds)
