"""The demo: compositions of shipped models, sampled with one setting per gallery and judged, the worst panel shown too.

**The plane.** Ring, line, circle and bar are four networks that never saw each other's data. The truth of a composition
is the same formula over the four data densities, which are known, summed on a grid. Beside it stands the same formula
over the networks' own energies, also on a grid, which tells the sampler's error from the networks'. Distances are
√MMD² (biased, so positive; four RBF bandwidths about the median distance of exact draws) between equal numbers of
draws; no finite sample has distance zero, so the mean over pairs of exact sets is printed as the floor.

**Digits.** One class-conditional network on 8×8 handwritten digits. Where a formula's truth is a set of real digits the
distance is to held-out ones, with the floor that real training digits reach; elsewhere the truth is unknown, and two
figures stand for it: how many draws a classifier that never saw them recognises as what was asked, and the distance to
the nearest training digit, beside those of held-out real digits.

**Planning.** One prior of motions meets obstacles that no training data had: shares of plans that an independent dense
checker finds free of collisions, of the prior alone and of the prior times the obstacles.

The galleries differ in their sampler, and no panel has a setting of its own. The plane takes ``SMC`` with its defaults.
Digits take ``Annealed``: in 64 dimensions with 48 particles SMC's resampling leaves descendants of very few. Measured
on the unconditional model: with ``SMC()`` all 48 draws were ones with a sixth of the real digits' spread, after 1,084
evaluations; with ``Annealed`` all ten classes came, with 0.94 of the spread, after 261. And completing a different
digit in every row makes every row a target of its own, over which weights cannot be compared.
"""

import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from boltzmix import models
from boltzmix.benchmarks import demo_planning
from boltzmix.benchmarks.demo_panels import PLANE, Panel, Report, Setting, panel, setting_of, short
from boltzmix.benchmarks.demo_sheets import draw_sheets, table
from boltzmix.benchmarks.runner import one_thread
from boltzmix.compose.draw import write_atomically


def run(
    out: str | Path | None = None, *, quick: bool = False, seed: int = 0, workers: int = 1, say: Any = print
) -> Report:
    """Sample and judge every panel, write the folder, print the table.

    Args:
        out: folder; None is ``runs/demo/TIME``.
        quick: few draws; figures mean little then.
        seed: of every panel.
        workers: processes of one thread each. With more than one, call this under ``if __name__ == "__main__"``.
        say: prints a line.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    clock = time.perf_counter()
    setting = setting_of(quick, seed)
    models.data.digits("test")  # says at once what is missing
    folder = Path(out) if out is not None else Path("runs/demo") / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    # the slowest first, so that no worker is left with one at the end
    jobs = [("digits", k) for k in (5, 4, 2, 3, 6, 7)] + [("plane", k) for k in range(len(PLANE))]
    jobs += [("digits", k) for k in (8, 1, 0)]
    say(f"{len(jobs)} compositions of shipped models, {workers} process{'es' if workers > 1 else ''} of one thread")
    found: dict[tuple[str, int], Panel] = {}
    for job, made in _work(jobs, quick, seed, str(folder), workers):
        found[job] = made
        what = made.error or f"{made.evaluations:.0f} evaluations, {made.work_seconds:.0f} s"
        say(f"  {len(found):2d}/{len(jobs)}  {made.formula:32s} {what}")
    panels = [found[job] for job in sorted(found, key=lambda j: (j[0] != "plane", j[1]))]
    say("drawing the sheets")
    draw_sheets(panels, folder)
    with one_thread():
        planned = demo_planning.plan_all(quick, seed) if demo_planning.available() else []
    if planned:
        demo_planning.draw(planned, folder)
    report = Report(folder, panels, time.perf_counter() - clock, planned)
    _write_results(report, setting, quick, workers)
    say(table(report, setting))
    return report


def _work(
    jobs: Sequence[tuple[str, int]], small: bool, seed: int, folder: str, workers: int
) -> Iterator[tuple[tuple[str, int], Panel]]:
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                yield job, panel(*job, small, seed, folder)
        finally:
            torch.set_num_threads(threads)
        return
    import multiprocessing

    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)
    try:
        futures = {pool.submit(panel, *job, small, seed, folder): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write_results(report: Report, setting: Setting, small: bool, workers: int) -> None:
    entries = []
    for p in report.panels:
        entry = asdict(p)
        del entry["pictures"]
        entries.append({k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in entry.items()})
    content = {
        "command": f"python -m boltzmix demo --seed {setting.seed}" + (" --quick" if small else ""),
        "quick": small,
        "seed": setting.seed,
        "samplers": {"plane": short(setting.plane), "digits": short(setting.digits), "naive": short(setting.naive)},
        "seconds": round(report.seconds, 1),
        "workers": workers,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "panels": entries,
        "planning": [{k: v for k, v in vars(p).items() if k != "pictures"} for p in report.planned],
    }
    payload = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    write_atomically(report.out / "results.json", payload)


def markdown(results: dict[str, Any]) -> str:
    """The README's tables from a run's results.json."""
    plane = [p for p in results["panels"] if p["gallery"] == "plane"]
    digits = [p for p in results["panels"] if p["gallery"] == "digits"]
    lines = [
        f"`{results['samplers']['plane']}`, n = {plane[0]['n']:,}; summed scores: `{results['samplers']['naive']}`",
        "",
        "| composed | distance | floor | own formula | summed scores | log Z | its true value | evaluations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in plane:
        distances = (p["distance"], p["floor"], p["to_formula"], p["naive"])
        cells = [f"{v:.3f}" for v in distances]
        cells += [
            f"{p['log_z']:.2f} ± {p['log_z_se']:.2f}",
            f"{round(p['log_z_exact'], 2) + 0.0:.2f}",
            f"{p['evaluations']:.0f}",
        ]
        lines.append(f"| `{p['formula']}` | {' | '.join(cells)} |")
    lines += [
        "",
        f"`{results['samplers']['digits']}`, n = {digits[0]['n']}; *as asked*: share that a classifier sees as what "
        "was asked; *nearest*: median distance to the nearest training digit, in brackets that of held-out real digits",
        "",
        "| composed | formula | as asked | nearest | distance to real digits | floor of real digits | evaluations |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in digits:
        asked = "" if p["right"] is None else f"{100 * p['right']:.0f} %"
        apart = ["" if v is None else f"{v:.3f}" for v in (p["distance"], p["floor"])]
        cells = [f"`{p['formula']}`", asked, f"{p['nearest']:.2f} ({p['nearest_real']:.2f})", *apart]
        lines.append(f"| {p['name']} | {' | '.join(cells)} | {p['evaluations']:.0f} |")
    return "\n".join(lines)


BEGIN, END = "<!-- generated", "<!-- end -->"


def publish(folder: str | Path, root: str | Path = ".") -> None:
    """Put a run into the repository's README and docs/images, so that picture and figures come from one run."""
    folder, root = Path(folder), Path(root)
    content = (folder / "results.json").read_bytes()
    results = json.loads(content)
    if results["quick"] or any(p["error"] for p in results["panels"]):
        raise ValueError(f"{folder} is a quick run, or one with failed panels: nothing to show")
    images = root / "docs" / "images"
    for name in ("plane.png", "digits.png", "worst.png", "planning.png"):
        write_atomically(images / f"demo-{name}", (folder / name).read_bytes())
    write_atomically(images / "demo-results.json", content)
    readme = root / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split(BEGIN, 1)
    marker, tail = rest.split("\n", 1)
    tail = tail[tail.index(END) :]
    text = f"{head}{BEGIN}{marker}\n\n{markdown(results)}\n\n{tail}"
    write_atomically(readme, text.encode())


if __name__ == "__main__":
    import sys

    publish(sys.argv[1])
