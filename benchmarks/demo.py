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

The galleries differ in their sampler, and no panel has a setting of its own. The plane takes ``SMC`` with its defaults.
Digits take ``Annealed``: in 64 dimensions with 64 particles SMC's resampling leaves descendants of very few (measured:
all 64 draws of the unconditional model were sevens with a quarter of the real digits' spread), and completing a
different digit in every row makes every row a target of its own, over which weights cannot be compared.
"""

import functools
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix import models
from boltzmix.benchmarks.metrics import bandwidths, kernel_mean, self_mean
from boltzmix.benchmarks.targets import Grid, bar, toy
from boltzmix.compose.constraints import Clamp, bounded_negation
from boltzmix.compose.draw import Draw, write_atomically
from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.mixture import mixture
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import SMC, Annealed
from boltzmix.compose.term import Term

Formula = Callable[..., Term]


@dataclass(frozen=True)
class Plane:
    """A panel in the plane: a formula over two of ring, line, circle and bar.

    Attributes:
        name: what was composed, in words.
        formula: as a user writes it.
        factors: names of the models, in the order that ``build`` takes them.
        build: the formula over terms, networks or exact densities.
    """

    name: str
    formula: str
    factors: tuple[str, ...]
    build: Formula


@dataclass(frozen=True)
class Digits:
    """A panel of digits: a formula over one network.

    Attributes:
        name: what was composed, in words.
        formula: as a user writes it.
        build: from the network and the images that are to be completed.
        right: whether a draw is what was asked, from the classifier's labels and the true ones.
        real: which held-out labels are an example of the same, None where real digits are no example.
        truth: whether those real digits are the truth of the formula, and not only examples.
    """

    name: str
    formula: str
    build: Callable[[Any, Tensor], Term]
    right: Callable[[Tensor, Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    truth: bool = False


PLANE = (
    Plane("product", "ring * line", ("ring", "line"), lambda p, q: p * q),
    Plane("product", "circle * bar", ("circle", "bar"), lambda p, q: p * q),
    Plane("mixture", "0.3 * circle + 0.7 * bar", ("circle", "bar"), lambda p, q: 0.3 * p + 0.7 * q),
    Plane("negation", "bounded_negation(line, ring, 3)", ("line", "ring"), lambda p, q: bounded_negation(p, q, 3.0)),
    Plane("negation", "ring * (ring / line) ** 0.5", ("ring", "line"), lambda p, q: p * (p / q) ** 0.5),
    Plane("power", "line ** 3", ("line",), lambda p: p**3),
)

UPPER = torch.zeros(1, 8, 8, dtype=torch.bool)
UPPER[:, :4] = True


def _any(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def _three(labels: Tensor) -> Tensor:
    return labels == 3


def _three_or_eight(labels: Tensor) -> Tensor:
    return (labels == 3) | (labels == 8)


def _guided(power: int) -> Digits:
    name = "guidance, power 1: class 3" if power == 1 else f"guidance, power {power}"
    return Digits(
        name,
        f"p * (p3 / p) ** {power}",
        lambda p, x: p * (p.given(label=3) / p) ** power,
        lambda found, wanted: _three(found),
        _three,
        truth=power == 1,
    )


DIGITS = (
    Digits("no condition", "p", lambda p, x: p, lambda found, wanted: _any(found), _any, truth=True),
    _guided(1),
    _guided(2),
    _guided(4),
    Digits(
        "mixture: 3 or 8",
        "mixture([p3, p8])",
        lambda p, x: mixture([p.given(label=3), p.given(label=8)]),
        lambda found, wanted: _three_or_eight(found),
        _three_or_eight,
        truth=True,
    ),
    Digits(
        "product: 3 and 8",
        "p3 * p8 / p",
        lambda p, x: p.given(label=3) * p.given(label=8) / p,
        lambda found, wanted: _three_or_eight(found),
        _three_or_eight,
    ),
    Digits(
        "negation: no 7, quotient",
        "p * (p / p7)",
        lambda p, x: p * (p / p.given(label=7)),
        lambda found, wanted: found != 7,
        lambda labels: labels != 7,
    ),
    Digits(
        "negation: no 7, bounded",
        "bounded_negation(p, p7, 2)",
        lambda p, x: bounded_negation(p, p.given(label=7), 2.0),
        lambda found, wanted: found != 7,
        lambda labels: labels != 7,
    ),
    Digits(
        "completing the lower half",
        "p * Clamp(upper, digits)",
        lambda p, x: p * Clamp(UPPER, x),
        lambda found, wanted: found == wanted,
        _any,
        truth=True,
    ),
)


@dataclass(frozen=True)
class Setting:
    """What holds for all panels of a run.

    Attributes:
        plane, digits: the samplers.
        points, images: draws per panel.
        judged: points that enter a distance.
        pairs: exact pairs behind a floor.
        cells: of a grid, per dimension.
        naive: what composes by summing scores, for comparison.
        seed: of every panel.
    """

    plane: Sampler
    digits: Sampler
    points: int
    images: int
    judged: int
    pairs: int
    cells: int
    naive: Sampler
    seed: int


def full(seed: int = 0) -> Setting:
    """The demo's settings."""
    return Setting(SMC(), Annealed(levels=64, sweeps=1), 4000, 64, 2000, 10, 480, Reverse(steps=50), seed)


def quick(seed: int = 0) -> Setting:
    """Small ones, to see that everything runs."""
    return Setting(SMC(cess=0.9), Annealed(levels=6, sweeps=1), 300, 8, 300, 2, 160, Reverse(steps=8), seed)


@dataclass
class Panel:
    """What became of one panel; ``pictures`` holds arrays for the sheets and stays out of results.json.

    Attributes:
        gallery: ``"plane"`` or ``"digits"``.
        name, formula: of the composition.
        sampler: as Python writes it.
        distance: √MMD² to the truth; None where that is unknown.
        floor: of exact draws (plane) or real digits.
        to_formula: √MMD² to the same formula over the networks' own energies.
        naive: √MMD² to the truth of reverse diffusion on summed scores.
        log_z, log_z_se, log_z_exact: of the formula; the last of its true counterpart.
        log_z_formula: of the formula over the networks' energies, on the grid.
        right, right_real: share judged to be what was asked, of draws and of real digits.
        nearest, nearest_real: median distance to the nearest training digit, of draws and of held-out digits.
        evaluations, acceptance, seconds: of the sampler.
        warnings: what the sampler warned about.
        error: why there is no draw.
    """

    gallery: str
    name: str
    formula: str
    sampler: str
    n: int
    distance: float | None = None
    floor: float | None = None
    to_formula: float | None = None
    naive: float | None = None
    log_z: float | None = None
    log_z_se: float | None = None
    log_z_exact: float | None = None
    log_z_formula: float | None = None
    right: float | None = None
    right_real: float | None = None
    nearest: float | None = None
    nearest_real: float | None = None
    evaluations: float = math.nan
    acceptance: float = math.nan
    seconds: float = math.nan
    work_seconds: float = math.nan
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    pictures: dict[str, Any] = field(default_factory=dict, repr=False)

    def badness(self) -> float:
        """What panels of a gallery are sorted by: distance over floor, or the share that is not what was asked."""
        if self.error:
            return math.inf
        if self.gallery == "plane":
            assert self.distance is not None
            assert self.floor is not None
            return self.distance / self.floor
        assert self.right is not None
        assert self.right_real is not None
        return self.right_real - self.right


@dataclass
class Report:
    """A finished demo."""

    out: Path
    panels: list[Panel]
    seconds: float

    @property
    def failed(self) -> list[Panel]:
        """Panels without a draw."""
        return [p for p in self.panels if p.error]


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
    setting = _setting(quick, seed)
    models.data.digits("test")  # says at once what is missing
    folder = Path(out) if out is not None else Path("runs/demo") / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    # the slowest first, so that no worker is left with one at the end
    jobs = [("digits", k) for k in (5, 4, 2, 3, 6, 7)] + [("plane", k) for k in range(len(PLANE))]
    jobs += [("digits", k) for k in (8, 1, 0)]
    say(f"{len(jobs)} compositions of shipped models, {workers} process{'es' if workers > 1 else ''} of one thread")
    found: dict[tuple[str, int], Panel] = {}
    for job, panel in _work(jobs, quick, seed, str(folder), workers):
        found[job] = panel
        what = panel.error or f"{panel.evaluations:.0f} evaluations, {panel.work_seconds:.0f} s"
        say(f"  {len(found):2d}/{len(jobs)}  {panel.formula:32s} {what}")
    panels = [found[job] for job in sorted(found, key=lambda j: (j[0] != "plane", j[1]))]
    say("drawing the sheets")
    draw_sheets(panels, folder)
    report = Report(folder, panels, time.perf_counter() - clock)
    _write_results(report, setting, quick, workers)
    say(table(report, setting))
    return report


def _setting(small: bool, seed: int) -> Setting:
    return quick(seed) if small else full(seed)


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


def panel(gallery: str, index: int, small: bool, seed: int, folder: str) -> Panel:
    """Sample and judge one panel; what the composition itself makes impossible becomes its ``error``."""
    clock = time.perf_counter()
    setting = _setting(small, seed)
    item = (PLANE if gallery == "plane" else DIGITS)[index]
    sampler = setting.plane if gallery == "plane" else setting.digits
    n = setting.points if gallery == "plane" else setting.images
    made = Panel(gallery, item.name, item.formula, _short(sampler), n)
    try:
        if isinstance(item, Plane):
            _judge_plane(item, setting, made)
        else:
            _judge_digits(item, setting, made, Path(folder))
    except (NotNormalizable, NonFinite) as error:
        made.error = f"{type(error).__name__}: {error}"
    made.work_seconds = time.perf_counter() - clock
    return made


def _short(sampler: Sampler) -> str:
    """The sampler as a user writes it: only what differs from the defaults."""
    default = type(sampler)()
    changed = {k: v for k, v in vars(sampler).items() if v != getattr(default, k) or k in ("levels", "sweeps", "steps")}
    if isinstance(sampler, SMC):
        changed = {k: v for k, v in changed.items() if k != "levels" or v != "adaptive"}
    return f"{type(sampler).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


@functools.cache
def _load(name: str) -> Any:
    return models.load(name)


def _sampled(target: Term, n: int, sampler: Sampler, made: Panel, seed: int) -> Draw:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SamplingWarning)
        draw = sample(target, n, sampler=sampler, seed=seed, progress=False)
    made.warnings = sorted({str(w.message) for w in caught if issubclass(w.category, SamplingWarning)})
    made.evaluations, made.acceptance, made.seconds = draw.info.evaluations, draw.info.acceptance, draw.info.seconds
    made.log_z, made.log_z_se = draw.log_z, draw.log_z_se
    return draw


# ------------------------------------------------------------------- the plane


def _judge_plane(item: Plane, setting: Setting, made: Panel) -> None:
    networks = [_load(name) for name in item.factors]
    truths = [(bar() if name == "bar" else toy(name)).double() for name in item.factors]
    side = (-3.0, -3.0), (3.0, 3.0)
    with torch.no_grad():
        exact = item.build(*truths)
        made.log_z_exact, draw_exact = Grid(lambda x: exact.energy(x), *side, cells=setting.cells).solve()
        target = item.build(*networks)
        made.log_z_formula, draw_formula = Grid(lambda x: target.energy(x.float()), *side, cells=setting.cells).solve()
    draw = _sampled(target, setting.points, setting.plane, made, setting.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # that this one is biased is the point of it
        naive = sample(target, setting.points, sampler=setting.naive, seed=setting.seed, progress=False)
    generator = torch.Generator().manual_seed(10_000 + setting.seed)
    m = setting.judged
    squared = bandwidths(draw_exact(m, generator))
    sets = [draw_exact(m, generator) for _ in range(5 if setting.pairs > 3 else 3)]
    own = [self_mean(x, squared, unbiased=False) for x in sets]
    pairs = [(i, j) for i in range(len(sets)) for j in range(i)][: setting.pairs]
    made.floor = _mean(_root(own[i] + own[j] - 2 * kernel_mean(sets[i], sets[j], squared)) for i, j in pairs)
    states = [draw.x, naive.x, draw_formula(m, generator)]
    rows = [x[torch.isfinite(x).all(1)][:m] for x in states if isinstance(x, Tensor)]
    mine, summed, formula = rows
    alone = self_mean(mine, squared, unbiased=False)
    made.distance = _root(own[0] + alone - 2 * kernel_mean(sets[0], mine, squared))
    made.naive = _root(own[0] + self_mean(summed, squared, unbiased=False) - 2 * kernel_mean(sets[0], summed, squared))
    made.to_formula = _root(
        alone + self_mean(formula, squared, unbiased=False) - 2 * kernel_mean(mine, formula, squared)
    )
    made.pictures = {
        "factors": [_heat(truth) for truth in truths],
        "exact": draw_exact(setting.points, generator).numpy(),
        "naive": naive.x.numpy(),  # pyright: ignore[reportAttributeAccessIssue]
        "draws": draw.x.numpy(),  # pyright: ignore[reportAttributeAccessIssue]
    }


VIEW = 1.7


def _heat(density: Any, cells: int = 120) -> Any:
    """p(x) on a grid over the view, for an image whose first row is at the bottom."""
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * VIEW - VIEW
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        energy = density.energy(torch.stack([x, y], -1).reshape(-1, 2))
    return (-energy).exp().reshape(cells, cells).numpy()


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0))


def _mean(values: Any) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


# ---------------------------------------------------------------------- digits


def _judge_digits(item: Digits, setting: Setting, made: Panel, folder: Path) -> None:
    network, classifier = _load("digits"), _load("digits-classifier")
    (train, train_label), (test, test_label) = models.data.digits("train"), models.data.digits("test")
    n = setting.images
    # digits to complete: held out, evenly spread over the test set, not chosen by how they look
    chosen = (torch.arange(n) * len(test)) // n
    given, wanted = test[chosen], test_label[chosen]
    animated = item.formula == "p * (p3 / p) ** 2"
    sampler = _recording(setting.digits) if animated else setting.digits
    draw = _sampled(item.build(network, given), n, sampler, made, setting.seed)
    x = draw.x
    assert isinstance(x, Tensor)
    if animated:
        draw.animate(folder / "path.gif", title=f"from noise to {item.formula}", limits=(-1.0, 1.0))
    log_prob = classifier.log_prob(x)
    found = log_prob.argmax(1)
    right = item.right(found, wanted)
    made.right = float(right.double().mean())
    completing = "Clamp" in item.formula
    real = item.real(test_label)
    judged = item.right(classifier.predict(test[real]), test_label[real])
    made.right_real = float(judged.double().mean())
    made.nearest = _nearest(x, train)
    made.nearest_real = _nearest(test[real], train)
    if item.truth:
        others = torch.ones(len(test), dtype=torch.bool)
        if completing:
            others[chosen] = False
        truth = test[real & others]
        example = train[item.real(train_label)]
        squared = bandwidths(example.flatten(1))
        reference = self_mean(truth, squared, unbiased=False)
        made.distance = _root(reference + self_mean(x, squared, unbiased=False) - 2 * kernel_mean(truth, x, squared))
        generator = torch.Generator().manual_seed(20_000 + setting.seed)
        floors = []
        for _ in range(setting.pairs):
            y = example[torch.randperm(len(example), generator=generator)[:n]]
            floors.append(_root(reference + self_mean(y, squared, unbiased=False) - 2 * kernel_mean(truth, y, squared)))
        made.floor = _mean(floors)
    made.pictures = {
        "draws": x[:, 0].numpy(),
        "right": right.numpy(),
        "found": found.numpy(),
        "certain": log_prob.max(1).values.exp().numpy(),
        "completing": completing,
    }
    if completing:
        made.pictures |= {"given": given[:, 0].numpy(), "wanted": wanted.numpy()}


def _recording(sampler: Sampler) -> Sampler:
    from dataclasses import replace

    return replace(sampler, record=True)  # pyright: ignore[reportCallIssue]


def _nearest(x: Tensor, train: Tensor) -> float:
    return float(torch.cdist(x.flatten(1).double(), train.flatten(1).double()).min(1).values.median())


# ----------------------------------------------------------------------- words


def table(report: Report, setting: Setting) -> str:
    """What was composed, how well, at what cost; for someone who has not read anything else."""
    plane = [p for p in report.panels if p.gallery == "plane"]
    digits = [p for p in report.panels if p.gallery == "digits"]
    lines = [
        "",
        f"THE PLANE: networks trained apart, composed and drawn by {_short(setting.plane)}, n = {plane[0].n:,}",
    ]
    rows = [["composed", "distance", "floor", "own formula", "summed scores", "log Z (exact)", "evals", "s"]]
    for p in plane:
        if p.error:
            rows.append([p.formula, p.error[:60]])
            continue
        z = "" if p.log_z is None else f"{p.log_z:.2f} ± {p.log_z_se or 0:.2f} ({p.log_z_exact:.2f})"
        numbers = [_number(v) for v in (p.distance, p.floor, p.to_formula, p.naive)]
        rows.append([p.formula, *numbers, z, f"{p.evaluations:.0f}", f"{p.seconds:.1f}"])
    lines += _aligned(rows)
    lines += [
        "  distance       MMD between the draws and the true answer: the formula over the true densities of the data",
        "  floor          the same between two sets of exact draws: no sampler can be expected below it",
        "  own formula    distance to the formula over the networks' energies: the sampler's part of the error",
        f"  summed scores  distance to the true answer of the usual shortcut, {_short(setting.naive)}",
        "  evals, s       evaluations of the formula per draw, everything counted; seconds of the sampler",
        "",
        f"DIGITS: one class-conditional network, drawn by {_short(setting.digits)}, n = {digits[0].n}",
    ]
    rows = [["composed", "formula", "as asked", "(real)", "nearest", "(real)", "distance", "floor", "evals", "s"]]
    for p in digits:
        if p.error:
            rows.append([p.name, p.formula, p.error[:60]])
            continue
        rows.append(
            [
                p.name, p.formula, _percent(p.right), _percent(p.right_real), f"{p.nearest:.2f}",
                f"{p.nearest_real:.2f}", _number(p.distance), _number(p.floor), f"{p.evaluations:.0f}",
                f"{p.seconds:.1f}",
            ]
        )  # fmt: skip
    lines += _aligned(rows, left=2)
    lines += [
        "  as asked    share of draws that a classifier (trained on real digits only) sees as what was asked;",
        "              (real): of held-out real digits that are an example of it",
        "  nearest     median distance to the nearest training digit; (real): of held-out real digits. Much larger:",
        "              no digits; much smaller: copies",
        "  distance    MMD to held-out real digits, where these are the true answer; floor: of real training digits",
        "  Annealed gives no log Z, and this network's energies are not calibrated: the column is left out.",
        "",
    ]
    for gallery, panels in (("plane", plane), ("digits", digits)):
        if panels:
            worst = max(panels, key=Panel.badness)
            lines.append(
                f"worst panel of {'the plane' if gallery == 'plane' else 'digits'}: {worst.formula}, see worst.png"
            )
    warned = [(p.formula, w) for p in report.panels for w in p.warnings]
    lines += [f"warning, {formula}: {w}" for formula, w in warned]
    lines += ["", f"{report.seconds:.0f} s in all; written to {report.out}:"]
    lines += [f"  {path.name}" for path in sorted(report.out.iterdir()) if path.suffix in (".png", ".gif", ".json")]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    full_rows = [r for r in rows if len(r) == len(rows[0])]
    widths = [max(len(r[k]) for r in full_rows) for k in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = [c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths, strict=False))]
        lines.append("  " + "  ".join(cells).rstrip())
    return [lines[0], "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


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
        "samplers": {"plane": _short(setting.plane), "digits": _short(setting.digits), "naive": _short(setting.naive)},
        "seconds": round(report.seconds, 1),
        "workers": workers,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "panels": entries,
    }
    payload = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    write_atomically(report.out / "results.json", payload)


# -------------------------------------------------------------------- pictures


def draw_sheets(panels: Sequence[Panel], folder: Path) -> None:
    """Write plane.png, digits.png, completions.png and worst.png; panels best first, so that the worst is last."""
    made = sorted((p for p in panels if not p.error), key=Panel.badness)
    plane = [p for p in made if p.gallery == "plane"]
    digits = [p for p in made if p.gallery == "digits"]
    if plane:
        _plane_sheet(plane, folder / "plane.png")
    if digits:
        _digits_sheet(digits, folder / "digits.png")
    for p in digits:
        if p.pictures["completing"]:
            _completions_sheet(p, folder / "completions.png")
    if plane and digits:
        _worst_sheet(plane[-1], digits[-1], folder / "worst.png")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, dpi: int = 110) -> None:
    from boltzmix.compose.pictures import save_figure

    save_figure(figure, path, dpi=dpi)


def _bare(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_color("#bbbbbb")


def _cloud(ax: Any, x: Any, color: str) -> None:
    ax.scatter(x[:, 0], x[:, 1], s=2.0, alpha=0.35, color=color, linewidths=0)
    ax.set_xlim(-VIEW, VIEW)
    ax.set_ylim(-VIEW, VIEW)
    ax.set_aspect("equal")
    _bare(ax)


def _plane_sheet(panels: Sequence[Panel], path: Path) -> None:
    figure = _figure(9.2, 1.75 * len(panels) + 0.5)
    axes = figure.subplots(len(panels), 5, squeeze=False)
    titles = ["first model", "second model", "exact answer", "Boltzmix", "summed scores"]
    for row, p in zip(axes, panels, strict=True):
        heats = p.pictures["factors"]
        for k in range(2):
            if k < len(heats):
                row[k].imshow(heats[k], origin="lower", cmap="Greys", extent=(-VIEW, VIEW, -VIEW, VIEW))
                _bare(row[k])
            else:
                row[k].set_axis_off()
        for ax, key, color in zip(row[2:], ("exact", "draws", "naive"), ("#222222", "#1f5fa8", "#b5452c"), strict=True):
            _cloud(ax, p.pictures[key], color)
        for ax, value in ((row[2], p.floor), (row[3], p.distance), (row[4], p.naive)):
            ax.text(0.04, 0.04, f"{value:.3f}", transform=ax.transAxes, fontsize=7.5, color="#555555")
        row[0].set_ylabel(p.formula.replace(" * (", " *\n(").replace("(line", "(\nline"), fontsize=7.5)
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, fontsize=9.5)
    figure.supxlabel(
        'in the corner: distance (MMD) to exact draws, under "exact answer" that of a second exact set; best panel first',
        fontsize=8,
    )
    _save(figure, path)


def _tiles(images: Any, right: Any, columns: int, scale: int = 6) -> Any:
    """Grey images side by side, those that are not as asked in a red frame."""
    import numpy as np

    rows, edge = math.ceil(len(images) / columns), 8 * scale + 6
    sheet = np.full((rows * edge, columns * edge, 3), 255, dtype=np.uint8)
    for k, (image, good) in enumerate(zip(images, right, strict=True)):
        top, start = (k // columns) * edge, (k % columns) * edge
        if not good:
            sheet[top + 1 : top + edge - 1, start + 1 : start + edge - 1] = (214, 62, 42)
        grey = (255 * (1 - (image.clip(-1, 1) + 1) / 2)).astype(np.uint8)
        big = grey.repeat(scale, 0).repeat(scale, 1)
        sheet[top + 3 : top + edge - 3, start + 3 : start + edge - 3] = big[..., None]
    return sheet


def _digits_sheet(panels: Sequence[Panel], path: Path, columns: int = 16) -> None:
    figure = _figure(9.2, 0.98 * len(panels) + 0.4)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, p in zip(axes, panels, strict=True):
        count = min(2 * columns, len(p.pictures["draws"]))
        ax.imshow(_tiles(p.pictures["draws"][:count], p.pictures["right"][:count], columns))
        ax.set_axis_off()
        ax.set_title(
            f"{p.name}:  {p.formula}      as asked {_percent(p.right)} (real {_percent(p.right_real)}), "
            f"nearest {p.nearest:.2f} (real {p.nearest_real:.2f})",
            fontsize=8.5, loc="left",
        )  # fmt: skip
    figure.supxlabel(
        "the first draws of each panel, none chosen; red: the classifier does not see what was asked; best panel first",
        fontsize=8,
    )
    _save(figure, path)


def _completions_sheet(p: Panel, path: Path, columns: int = 16) -> None:
    import numpy as np

    given, draws, right = (p.pictures[k] for k in ("given", "draws", "right"))
    count = min(2 * columns, len(given))
    figure = _figure(9.2, 4.2)
    axes = figure.subplots(math.ceil(count / columns), 1, squeeze=False)[:, 0]
    for k, ax in enumerate(axes):
        part = slice(k * columns, min((k + 1) * columns, count))
        shown = np.array(given[part])
        shown[:, 4:] = -0.6
        yes = np.ones(len(shown), dtype=bool)
        rows = [
            _tiles(given[part], yes, columns),
            _tiles(shown, yes, columns),
            _tiles(draws[part], right[part], columns),
        ]
        ax.imshow(np.concatenate(rows))
        ax.set_yticks([27, 81, 135], ["real digit", "given", "completed"], fontsize=8)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.suptitle(
        f"{p.formula}: held-out digits, lower half drawn; red: the classifier sees another digit", fontsize=9
    )
    _save(figure, path)


def _worst_sheet(plane: Panel, digits: Panel, path: Path) -> None:
    import numpy as np

    figure = _figure(9.2, 5.6)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
    axes = left.subplots(2, 1)
    for ax, key, color, value in (
        (axes[0], "exact", "#222222", plane.floor),
        (axes[1], "draws", "#1f5fa8", plane.distance),
    ):
        _cloud(ax, plane.pictures[key], color)
        ax.set_title(f"{'exact answer, floor' if key == 'exact' else 'Boltzmix, distance'} {value:.3f}", fontsize=8.5)
    left.suptitle(f"worst of the plane: {plane.formula}", fontsize=9)
    good, certain = digits.pictures["right"], digits.pictures["certain"]
    order = np.lexsort((certain, good))  # what was not asked for first, then what the classifier is unsure of
    ax = right.subplots()
    ax.imshow(_tiles(digits.pictures["draws"][order], good[order], 8))
    ax.set_axis_off()
    right.suptitle(
        f"worst of digits: {digits.name}, {digits.formula}\nall draws, worst first; {_percent(digits.right)} as asked",
        fontsize=9,
    )
    _save(figure, path)


if __name__ == "__main__":
    sys.exit(1 if run(quick="--quick" in sys.argv).failed else 0)
