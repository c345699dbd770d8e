"""``compare``: any samplers on any targets with known moments, in the same run, in parallel if wished."""

import hashlib
import importlib.metadata
import inspect
import json
import math
import pickle
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from boltzmix.benchmarks.audit import run_counted
from boltzmix.benchmarks.backends import check_backend, results
from boltzmix.benchmarks.cell import Cell, judge
from boltzmix.benchmarks.comparison import Comparison, decode, encode
from boltzmix.benchmarks.densities import Density, density
from boltzmix.benchmarks.methods import Budget, Method, method
from boltzmix.benchmarks.own_targets import known
from boltzmix.benchmarks.runner import one_thread, parse_seeds
from boltzmix.compose.draw import write_atomically
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.samplers.base import Progress
from boltzmix.compose.samplers.smc import SMC
from boltzmix.compose.term import Term

TargetLike = str | Density | Term
MethodLike = str | Kernel | SMC | Method

_LIBRARIES = ("torch", "numpy", "jax", "jaxlib", "blackjax", "numpyro", "pyro-ppl", "hamiltorch", "torchebm")


def compare(
    target: TargetLike | Sequence[TargetLike],
    kernels: MethodLike | Sequence[MethodLike] | Mapping[str, MethodLike],
    budget: Budget,
    seeds: int | Sequence[int] = 5,
    peers: Sequence[MethodLike] | Mapping[str, MethodLike] = (),
    *,
    chains: int = 16,
    jobs: int = 1,
    backend: str = "loky",
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Run samplers on a target, count their gradients, and rank them by how soon their moments are right.

    Every sampler starts at the same points, sees the target without its truth, and is counted from inside the target.
    One that raises is a row with its error. A run depends on its target, method, budget and seed alone, so that results
    are the same for any ``jobs`` and ``backend``.

    Args:
        target: a name of :data:`~boltzmix.benchmarks.densities.DENSITIES`, a Density, a term that can be drawn exactly,
            or several of these; for other terms see :func:`~boltzmix.benchmarks.own_targets.known`.
        kernels: names of :data:`~boltzmix.benchmarks.methods.METHODS`, kernels, SMC, or functions ``(density, starts,
            budget, seed) -> MethodRun``; as a dictionary, with labels.
        budget: for each run.
        seeds: how many (0, 1, …), or which: of starts and samplers.
        peers: names of :data:`boltzmix.benchmarks.peers.PEERS`, or anything that ``kernels`` takes; those that are not
            installed are rows that say so.
        chains: of each run.
        jobs: processes, one thread each; more than one needs joblib.
        backend: of joblib: ``"loky"``, ``"threading"``, ``"multiprocessing"``, ``"dask"`` or ``"ray"``. CPU seconds of
            threads are those of all of them together.
        out: a folder in which finished runs are kept; another call goes on from there, and runs again only what other
            settings, samplers or code would change.
        progress: show a bar; None shows it on a terminal.

    Raises:
        ValueError, TypeError: unknown names, a method given twice, numbers that make no sense.
        MissingExtra: joblib, dask or ray is needed and not installed.

    Example:
        >>> from boltzmix import MALA, NUTS, Gaussian
        >>> from boltzmix.benchmarks import Budget, compare
        >>> p = Gaussian(torch.zeros(3), torch.tensor([1.0, 4.0, 9.0]))
        >>> found = compare(p, [NUTS(), MALA()], Budget(warmup=200, draws=200), seeds=1, chains=4)
        >>> [s.method for s in found.standings[found.targets[0]]]
        ['NUTS', 'MALA']
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"budget is Budget(warmup=…, draws=…), got {budget!r}")
    for name, value in (("chains", chains), ("jobs", jobs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is a positive int, got {value!r}")
    check_backend(backend, jobs)
    numbers = parse_seeds(seeds)
    targets = _targets(target)
    methods = labelled(kernels) | _fresh(labelled(peers, of_peers=True), kernels)
    work = [
        _Work(what, label, run, budget, chains, seed, None if out is None else str(out))
        for what in targets.values()
        for label, run in methods.items()
        for seed in numbers
    ]
    with one_thread():  # of all the threads that ``backend="threading"`` starts
        cells = _run(work, jobs, backend, progress)
    about = {"versions": versions(), "machine": f"{platform.system()} {platform.machine()}", "jobs": jobs}
    accuracies = {name: _built(what).accuracy for name, what in targets.items()}
    found = Comparison(tuple(cells), budget, chains, accuracies, about | {"backend": backend if jobs > 1 else None})
    if out is not None:
        found.save(out)
    return found


def labelled(
    given: MethodLike | Sequence[MethodLike] | Mapping[str, MethodLike], of_peers: bool = False
) -> dict[str, Method]:
    """Methods by label: a name for itself, a kernel by what was set of it, a function by its name.

    Raises:
        ValueError: two methods of one label.
    """
    find = _peer if of_peers else method
    if isinstance(given, Mapping):
        return {str(label): find(what) for label, what in given.items()}
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    found: dict[str, Method] = {}
    for what in several:
        label = label_of(what)
        if label in found:
            raise ValueError(f'two methods are called {label!r}; give them labels, {{"{label}": …, "another": …}}')
        found[label] = find(what)  # pyright: ignore[reportArgumentType]
    return found


def label_of(what: Any) -> str:
    """What a method is called in the table.

    Example:
        >>> from boltzmix.compose.kernels import HMC
        >>> label_of(HMC(num_leapfrog=20)), label_of("NUTS")
        ('HMC(num_leapfrog=20)', 'NUTS')
    """
    if isinstance(what, str):
        return what
    if isinstance(what, (Kernel, SMC)):
        kind = type(what)()
        parts = [
            f"{f.name}={value!r}" if not isinstance(value := getattr(what, f.name), torch.Tensor) else f"{f.name}=…"
            for f in fields(what)
            if f.init and f.repr and getattr(what, f.name) is not getattr(kind, f.name)
            and (isinstance(getattr(what, f.name), torch.Tensor) or getattr(what, f.name) != getattr(kind, f.name))
        ]  # fmt: skip
        return type(what).__name__ + (f"({', '.join(parts)})" if parts else "")
    name = getattr(what, "name", None) or getattr(what, "__name__", None)
    return name if isinstance(name, str) else type(what).__name__


def _peer(what: Any) -> Method:
    if not isinstance(what, str):
        return method(what)
    from boltzmix.benchmarks.peers import PEERS

    if what not in PEERS:
        raise ValueError(f"no peer is called {what!r}; there are {', '.join(PEERS)}")
    return PEERS[what]


def _fresh(peers: dict[str, Method], kernels: Any) -> dict[str, Method]:
    if taken := sorted(set(peers) & set(labelled(kernels))):
        raise ValueError(f"{', '.join(taken)} are among the kernels and among the peers; give them labels")
    return peers


def _targets(given: TargetLike | Sequence[TargetLike]) -> dict[str, str | Density]:
    """Targets by name: those of the collection by name alone, so that other processes build them themselves."""
    several = [given] if isinstance(given, (str, Density, Term)) else list(given)
    found: dict[str, str | Density] = {}
    for what in several:
        if isinstance(what, Term):
            what = known(what)
        if not isinstance(what, (str, Density)):
            raise TypeError(
                f"a target is a name, a Density, or a term that can be drawn exactly, got {type(what).__name__}"
            )
        built = _built(what)
        _check_truth(built)
        if built.name in found:
            raise ValueError(f"two targets are called {built.name!r}; give one of them another name")
        found[built.name] = what
    if not found:
        raise ValueError("there is no target to compare on")
    return found


def _check_truth(target: Density) -> None:
    """Refuse a target whose moments are not known.

    Raises:
        ValueError: a moment of another shape or that is not finite, a variance that is not positive.
    """
    for name in ("mean", "variance", "square_mean", "square_variance"):
        moment = getattr(target, name)
        good = tuple(moment.shape) == (target.dim,) and bool(torch.isfinite(moment).all())
        if not good or (name.endswith("variance") and not bool((moment > 0).all())):
            raise ValueError(
                f"{target.name} has no {name} to compare with: one finite number for each of {target.dim} coordinates, "
                f"positive for a variance, is needed, got shape {tuple(moment.shape)}: {moment.flatten()[:4].tolist()}"
            )
    if not 0 <= target.accuracy < math.inf:
        raise ValueError(f"the accuracy of {target.name} is a b² of at least 0, got {target.accuracy}")


def _built(what: str | Density) -> Density:
    return density(what) if isinstance(what, str) else what


# --------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class _Work:
    """One run: everything that another process needs."""

    target: str | Density
    label: str
    method: Method
    budget: Budget
    chains: int
    seed: int
    out: str | None

    def __call__(self) -> Cell:
        """The judged run, from the folder where it is there."""
        target = _built(self.target)
        file = None if self.out is None else Path(self.out) / "cells" / f"{self.digest(target)}.json"
        if file is not None and file.exists():
            return Cell.from_json(decode(json.loads(file.read_text())))
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            starts = target.starts(self.chains, self.seed)
            cell = judge(run_counted(self.method, self.label, target, starts, self.budget, self.seed), target)
        if file is not None and not (cell.error or "").startswith("MissingExtra"):
            write_atomically(file, json.dumps(encode(cell.to_json()), allow_nan=False).encode())
        return cell

    def digest(self, target: Density) -> str:
        """Of everything on which the run depends."""
        moments = (target.mean, target.variance, target.square_mean, target.square_variance)
        parts = [
            repr((self.budget, self.chains, self.seed, self.label, target.name, target.log_z)),
            *(repr(t.tolist()) for t in moments),
            fingerprint(target.log_prob),
            fingerprint(self.method),
            _code(),
            repr(versions()),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def fingerprint(what: Any) -> str:
    """Of a method or a function: its source, and the values that it carries."""
    kind = what if inspect.isroutine(what) else type(what)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = repr(kind)
    cells = [cell.cell_contents for cell in getattr(what, "__closure__", None) or ()]
    carried: Any = cells if inspect.isroutine(what) else getattr(what, "__dict__", {})
    return hashlib.sha256(source.encode() + _bytes(carried)).hexdigest()


def _bytes(value: Any) -> bytes:
    """The same for the same values; functions by their source."""
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype).encode()
            + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    if isinstance(value, Mapping):
        return b"".join(str(k).encode() + _bytes(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return b"".join(_bytes(v) for v in value)
    if inspect.isroutine(value):
        return fingerprint(value).encode()
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return f"{type(value).__module__}.{type(value).__qualname__}".encode() + _bytes(vars(value))
    try:
        return pickle.dumps(value)
    except Exception:
        return repr(type(value)).encode()


@cache
def _code() -> str:
    """Of the library's own code that runs depend on."""
    import boltzmix.benchmarks
    import boltzmix.compose

    digest = hashlib.sha256()
    for module in (boltzmix.compose, boltzmix.benchmarks):
        root = Path(str(module.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            if "suites" not in path.parts and not path.name.startswith("demo"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Of Python, this library and those that are compared."""
    found = {"python": platform.python_version()}
    for name in ("boltzmix", *_LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --------------------------------------------------------------------------- all of them


def _run(work: Sequence[_Work], jobs: int, backend: str, progress: bool | None) -> list[Cell]:
    bar = Progress("compare", progress)
    found: list[Cell] = []
    try:
        for cell in results(work, jobs, backend):
            found.append(cell)
            failed = sum(c.error is not None for c in found)
            bar(len(found) / len(work), f"{cell.target}: {cell.method}, {failed} failed")
    finally:
        bar.close()
    return found
