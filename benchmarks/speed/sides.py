"""Processes that wait to be told to run: ours and the peers', each with one library's threads and memory of its own.

The parent writes one JSON object a line, and the child answers each with one: ``{"do": NAME, …}`` calls a function of
:data:`COMMANDS`. What the child's libraries print goes to its stderr. Jobs stay prepared between commands, so that two
processes can be run in turns.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

#: commands, as "module:function" of this package: each takes the request and what was kept, and gives the answer
COMMANDS = {
    "prepare": "boltzmix.benchmarks.speed.throughput:prepare_here",
    "run": "boltzmix.benchmarks.speed.throughput:run_here",
    "method": "boltzmix.benchmarks.speed.nuts:method_here",
    "memory": "boltzmix.benchmarks.speed.memory:measure_here",
}
#: one thread for everything that might start more
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
_XLA = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class SideFailed(RuntimeError):
    """What went wrong in the other process, in one line.

    Attributes:
        kind: name of the exception's class there.
    """

    def __init__(self, kind: str, words: str) -> None:
        """Keep the kind."""
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind = kind


class Side:
    """A child process with one thread; a context manager, which ends it.

    Example:
        >>> with Side() as side:
        ...     side("ping", number=3)["number"]
        3
    """

    def __init__(self) -> None:
        """Start it."""
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA}".strip()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "boltzmix.benchmarks.speed.sides"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __call__(self, do: str, **request: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            SideFailed: it raised there, or the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SideFailed("EndedEarly", f"the process ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(*answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End it."""
        self.close()


class Here:
    """The same without another process, for tests: commands run where they are called."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.kept: dict[str, Any] = {}

    def __call__(self, do: str, **request: Any) -> dict[str, Any]:
        """As :meth:`Side.__call__`."""
        answer = _answer({"do": do, **request}, self.kept)
        if "error" in answer:
            raise SideFailed(*answer["error"])
        return answer

    def close(self) -> None:
        """Nothing to end."""

    __enter__, __exit__ = Side.__enter__, Side.__exit__


def _answer(request: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    try:
        name = request.pop("do")
        if name == "ping":
            return request
        module, _, function = COMMANDS[name].partition(":")
        command: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
        return command(request, kept)
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()
        return {"error": [type(error).__name__, first[0] if first else ""]}


def main() -> None:
    """Answer until the parent closes the line."""
    import torch

    from boltzmix.compose.errors import SamplingWarning

    warnings.simplefilter("ignore", SamplingWarning)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    kept: dict[str, Any] = {}
    for line in sys.stdin:
        out.write(json.dumps(_answer(json.loads(line), kept)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
