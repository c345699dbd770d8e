"""A C++ compiler as a function: from a source to a loaded library, once for each source.

``CXX`` names the compiler, ``BOLTZMIX_CXXFLAGS`` adds options to its own, and ``BOLTZMIX_CACHE`` is where libraries are
kept.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from boltzmix.compose.errors import CompileError

HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
          "-shared", "-fPIC", "-w")  # fmt: skip


def load(source: str) -> ctypes.CDLL:
    """The library that a C++ source compiles to; libraries are kept in :func:`cache_folder`.

    Raises:
        CompileError: there is no compiler, or it refuses the source.
    """
    command = [
        compiler(),
        *_FLAGS,
        _effort(source),
        *os.environ.get("BOLTZMIX_CXXFLAGS", "").split(),
        *(f"-D{name}={value}" for name, value in definitions().items()),
    ]
    key = hashlib.sha256("\0".join([source, *command, identity()]).encode()).hexdigest()[:32]
    path = cache_folder() / f"{key}.so"
    if not path.exists():
        _build(command, source, path)
    return _open(path)


#: lines of generated code up to which optimising takes a second or two
_MANY = 4_000
_MOST = 100_000


def _effort(source: str) -> str:
    """How much the compiler optimises: less, where that would take minutes."""
    lines = source.count("\n")
    if lines > _MOST:
        raise CompileError(
            f"the generated code has {lines} lines, more than the {_MOST} that a compiler takes in a minute"
        )
    return "-O2" if lines < _MANY else "-O1"


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"a compiled library does not load: {error}") from error


def _build(command: list[str], source: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, library = Path(folder) / "block.cpp", Path(folder) / "block.so"
        text.write_text(source)
        libraries = ["-lmvec"] if definitions()["LIBMVEC"] else []
        made = subprocess.run(
            [*command, str(text), "-o", str(library), *libraries, "-lm"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            said = [line for line in made.stderr.splitlines() if "error" in line][:2]
            raise CompileError(f"{command[0]} refuses the generated code: {'; '.join(said) or made.stderr[-300:]}")
        library.replace(path)  # whole, or not at all: two processes may build the same


@functools.cache
def compiler() -> str:
    """The C++ compiler: ``CXX``, or g++ or clang++ of the path.

    Raises:
        CompileError: none is there.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise CompileError("there is no C++ compiler: install g++ or clang++, or set CXX")


@functools.cache
def definitions() -> dict[str, int]:
    """What the prelude is told of this machine: which of glibc's vector functions there are."""
    found = 0
    if platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc":
        major, minor = (int(part) for part in platform.libc_ver()[1].split(".")[:2])
        found = 2 if (major, minor) >= (2, 35) else 1 if (major, minor) >= (2, 22) else 0
    return {"LIBMVEC": found}


def vector_bytes() -> int:
    """Width of this processor's vectors."""
    return {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)


@functools.cache
def identity() -> str:
    """What a library depends on besides its source: compiler and processor."""
    said = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return f"{said.splitlines()[0] if said else ''} {platform.machine()} {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def cache_folder() -> Path:
    """Where libraries are kept: ``BOLTZMIX_CACHE``, or a folder of this user's cache that nobody else can write to.

    Raises:
        CompileError: the folder belongs to somebody else, or others can write to it.
    """
    given = os.environ.get("BOLTZMIX_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    folder = Path(given) / "boltzmix"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise CompileError(f"compiled code cannot be kept in {folder}: {error}; set BOLTZMIX_CACHE") from error
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise CompileError(f"{folder} can be written by others and code is loaded from it; set BOLTZMIX_CACHE")
    return folder
