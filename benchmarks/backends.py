"""joblib's backends by name, each with what it needs started."""

# neither is among the tools of every checkout
# pyright: reportMissingImports=false

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from boltzmix.compose.errors import MissingExtra

#: packages that each backend needs, besides joblib
BACKENDS: dict[str, tuple[str, ...]] = {
    "loky": (),
    "threading": (),
    "multiprocessing": (),
    "dask": ("dask", "distributed"),
    "ray": ("ray",),
}
_STREAMS = ("loky", "threading", "multiprocessing")

Result = TypeVar("Result")


def check_backend(backend: str, jobs: int) -> None:
    """Refuse a backend that there is not.

    Raises:
        ValueError: an unknown one.
        MissingExtra: joblib, or what the backend needs, is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if jobs == 1:
        return
    if importlib.util.find_spec("joblib") is None:
        raise MissingExtra(f'jobs={jobs} needs joblib: pip install "boltzmix[sweeps]"')
    if absent := [name for name in BACKENDS[backend] if importlib.util.find_spec(name) is None]:
        needed = '"dask[distributed]"' if backend == "dask" else backend
        raise MissingExtra(f"backend={backend!r} needs {', '.join(absent)}: pip install {needed}")


def results(work: Sequence[Callable[[], Result]], jobs: int, backend: str) -> Iterator[Result]:
    """What each piece of work gives, in order, as they come where the backend can."""
    if jobs == 1:
        yield from (one() for one in work)
        return
    import joblib

    with _ready(backend, jobs) as options, joblib.parallel_config(backend=backend, n_jobs=jobs, **options):
        parallel = joblib.Parallel(return_as="generator" if backend in _STREAMS else "list")
        found: Any = parallel(joblib.delayed(_call)(one) for one in work)
        yield from found


def _call(one: Callable[[], Result]) -> Result:
    return one()


@contextlib.contextmanager
def _ready(backend: str, jobs: int) -> Iterator[dict[str, Any]]:
    """What the backend needs running, started where it is not, and stopped again."""
    if backend == "dask":
        from distributed import Client, LocalCluster, default_client

        with contextlib.ExitStack() as stack:
            try:
                default_client()
            except ValueError:  # there is none
                cluster = LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None, silence_logs=40)
                stack.enter_context(Client(stack.enter_context(cluster)))
            yield {}
    elif backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        began = not ray.is_initialized()
        if began:
            ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, logging_level="error")
        try:
            yield {}
        finally:
            if began:
                ray.shutdown()
    else:
        yield {"inner_max_num_threads": 1} if backend == "loky" else {}
