"""Memory against chains: the most that a process holds while HMC runs, with draws in memory and in files.

Every run has a process of its own. The figure is its largest resident size over what was resident before sampling
began. ``getrusage`` knows the largest size since the process started, imports included, which are larger than a small
run; where the system (Linux) can forget that and begin anew, it is told to. Pages of files that are mapped into memory
are resident while the system has room for them, although it may drop them at any time: where the system tells them
apart (Linux), the largest anonymous part, which it may not drop, stands beside. The floor is what draws themselves
take: D numbers for each chain and draw.
"""

import contextlib
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import pictures
from boltzmix.benchmarks.speed.fits import growth
from boltzmix.benchmarks.speed.scaling import FLOOR, sizes
from boltzmix.benchmarks.speed.sides import Side, SideFailed

DIM = 10
_STATUS = Path("/proc/self/status")
_KINDS = {"in memory": False, "in files": True}


def largest() -> int:
    """Bytes of this process that were resident at once, at most: since :func:`forget`, where the system can."""
    found = _status("VmHWM")
    if found is not None:
        return found
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kilobytes elsewhere


def forget() -> None:
    """Begin the largest size anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def anonymous() -> int | None:
    """Bytes resident now that belong to no file; None where the system does not say."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else None


class Watch:
    """The largest anonymous size while a block runs, looked at every few milliseconds."""

    def __enter__(self) -> "Watch":
        """Begin."""
        self.first, self.most, self._end = anonymous(), anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self.most is not None and not self._end.wait(0.002):
            self.most = max(self.most, anonymous() or 0)

    def __exit__(self, *error: object) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    @property
    def grown(self) -> int | None:
        """By how much."""
        return None if self.most is None or self.first is None else self.most - self.first


def measure_here(request: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Bytes by which one run of HMC grows this process; ``files`` has its draws written to a folder."""
    import torch

    from boltzmix.compose.gaussian import Gaussian
    from boltzmix.compose.kernels.hmc import HMC
    from boltzmix.compose.sample import sample
    from boltzmix.compose.samplers.mcmc import MCMC

    term = Gaussian(torch.zeros(DIM), 1.0)

    def go(chains: int, draws: int, out: str | None) -> None:
        sampler = MCMC(HMC(0.3, 3), warmup=0, draws=draws, adapt=False, out=out)
        sample(term, chains=chains, sampler=sampler, init=torch.zeros(chains, DIM), seed=0, progress=False)

    go(4, 8, None)  # everything is imported and allocated that any run needs
    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        forget()
        before = largest()  # what is resident now, where the largest size was forgotten
        go(request["chains"], request["draws"], folder if request["files"] else None)
        grown = largest() - before
    return {"resident": grown, "anonymous": watch.grown}


def section(report: Report, settings: Settings, open_side: Any = Side) -> None:
    """A hundred to a hundred thousand chains; bytes for each chain and draw from two numbers of draws."""
    counts = sizes(*((300, 3000, 4) if settings.quick else (100, 100_000, 2)))
    draws = settings.size(40, 20)
    task = f"HMC, {DIM}-d Gaussian, {draws} draws"
    found: dict[str, dict[int, int]] = {}
    for chains in counts:
        floor = chains * draws * DIM * 4
        point: dict[str, float] = {"size": chains, "rows": chains, FLOOR: floor}
        for kind, files in _KINDS.items():
            try:
                with open_side() as side:
                    answer = side("memory", chains=chains, draws=draws, files=files)
            except SideFailed as error:
                report.state(f"{task}, draws {kind}", f"{chains} chains ran", False, "yes", str(error))
                continue
            found.setdefault(kind, {})[chains] = answer["resident"]
            point[kind] = answer["resident"]
            if answer["anonymous"] is not None:
                found.setdefault(f"{kind}, anonymous", {})[chains] = answer["anonymous"]
                point[f"{kind}, anonymous"] = answer["anonymous"]
        report.point("chains of memory", task, **point)
    for kind, per in found.items():
        describe(report, task, kind, per, draws)
    points = report.curves.get("chains of memory", {})
    report.figures["memory"] = lambda figure: pictures.growth(figure, "chains of memory", points)


def describe(report: Report, task: str, kind: str, per: dict[int, int], draws: int) -> None:
    """Exponent, and bytes for each chain and draw at the largest number of chains beside those of the draws."""
    largest_run = max(per)
    positive = {chains: grown for chains, grown in per.items() if grown > 0}  # small runs fit what is there already
    each = per[largest_run] / (largest_run * draws)
    note = f"{largest_run} chains; the numbers of a draw take {DIM * 4}"
    report.tell(task, f"bytes for each chain and draw, {kind}", each, note)
    try:
        fit = growth(list(positive), list(positive.values()))
    except ValueError as error:
        report.skip(f"{task}, exponent of memory, {kind}", str(error))
        return
    report.tell(task, f"exponent of memory in chains, {kind}", fit.exponent, f"± {fit.error:.3f}; {fit.points} sizes")
