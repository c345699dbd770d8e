"""Compositions against exact answers: error against evaluations, evidence, weights, and what has no answer.

Sections: 2a the 2-D product of two mixtures (closed forms and plain functions), 2b products in 8 and 32 dimensions, 2c
the ring × bar of Du et al. (2023), 2d sums, 2e negations, 2f static factors, 3 independently trained networks, 4
samplers of score-only composites (4a FKC, 4b SuperDiff). An evaluation is a call at one (x, σ) for one particle; the
figure in the table is what the draw reports, and is compared with an independent tally of the rows at which the factors
were called (but in 4). Floors come from exact draws in the same run.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics, plots, targets
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.targets import Task
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC, Annealed

#: the setting within 400 evaluations that section 2a holds against exact pairs
THOROUGH = SMC(path="noise", cess=0.998, moves=2, final_moves=20)


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the arguments."""
    from boltzmix.benchmarks.suites import learned, score_only

    sections = [
        ("2a", ring_line),
        ("2b", many_dimensions),
        ("2c", circle_bar),
        ("2d", sums),
        ("2e", negations),
        ("2f", statics),
        ("3", learned.networks),
        ("4a", score_only.feynman_kac),
        ("4b", score_only.superposition),
    ]
    title = "Compositions against exact answers"
    return run_sections(
        "compositions", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress
    )  # fmt: skip


# ----------------------------------------------------------------- 2a: in 2-D


def ring_line(report: Report, settings: Settings) -> None:
    """Ring × line: targets for the default and a thorough setting, and curves of error against evaluations."""
    task = targets.ring_line()
    n = settings.size(4000, 500)
    judge = metrics.Discrepancy(task.exact, references=settings.size(5, 2))
    floor = judge.floor(n, settings.size(100, 10))
    tv_floor = mode_floor(task, n, settings.size(20, 5))
    top = metrics.quantile(floor, 0.99)
    low, high = metrics.bootstrap(floor, 0.99)
    report.tell(task.name, "ln MMD² of exact pairs, mean of ln", mean_log(floor.tolist()), f"{len(floor)} pairs")
    report.tell(
        task.name, "ln of their 99 % quantile", metrics.log_mmd2(top), f"90 % interval {_ln(low)} … {_ln(high)}"
    )
    report.tell(task.name, "mode-mass error of exact draws", tv_floor, f"mean total variation at n = {n}")
    for functions in (False, True):
        form = "functions" if functions else "closed forms"
        points = runs(task, SMC(), n, settings, judge, functions)
        what = f"{task.name}, {form}"
        default_targets(report, what, points, 75, tv_floor, "default SMC")
        value = metrics.log_mmd2(statistics.fmean(p["mmd2"] for p in points))
        each = ", ".join(f"{metrics.log_mmd2(p['mmd2']):.1f}" for p in points)
        report.check(what, "ln MMD², of the mean over seeds", value, "≤", -8.0, f"each {each}")
        points = runs(task, THOROUGH, n, settings, judge, functions)
        note = f"cess {THOROUGH.cess}, {THOROUGH.moves} moves, {THOROUGH.final_moves} final moves"
        report.check(what, "evaluations, thorough", most(points, "evaluations"), "≤", 400, note)
        worst = most(points, "single")
        report.check(what, "MMD² / 99 % quantile of exact pairs, worst seed", worst / top, "≤", 1.0, note)
        evidence(report, what, points, "thorough", 0.05)
    curves(report, task, n, settings, metrics.Discrepancy(task.exact, references=2))
    floors = {"mmd2": (mean_log(floor.tolist()), metrics.log_mmd2(top)), "tv": (tv_floor, tv_floor + 0.03)}
    report.figures["ring-line"] = lambda figure: plots.error_curves(figure, report.curves[task.name], floors)


def curves(report: Report, task: Task, n: int, settings: Settings, judge: metrics.Discrepancy) -> None:
    """Every sampler at several costs."""
    grid = settings.size(1, 0)
    cess = (0.9, 0.95, 0.98, 0.99, 0.995) if grid else (0.95,)
    levels = (8, 16, 32, 64, 128) if grid else (8,)
    methods: dict[str, tuple[bool, list[tuple[str, Sampler]]]] = {
        "SMC, exact start": (False, [(f"cess {c}", SMC(path="exact-start", cess=c)) for c in cess]),
        "SMC, noise path": (True, [(f"cess {c}", SMC(cess=c)) for c in cess]),
        "SMC, noise path, fixed levels": (False, [(f"{k} levels", SMC(path="noise", levels=k)) for k in levels]),
        "Annealed": (False, [(f"{k} levels", Annealed(levels=k)) for k in levels]),
        "AIS": (False, [(f"{k} levels", AIS(path="noise", levels=k, resample=True)) for k in levels]),
        "Reverse": (False, [(f"{k} steps", Reverse(steps=k)) for k in ((10, 25, 50, 100) if grid else (10,))]),
    }
    for method, (functions, choices) in methods.items():
        for name, sampler in choices:
            points = runs(task, sampler, n, settings, judge, functions)
            for point in points:
                report.point(task.name, method, setting=name, **point)
    for method, entries in report.curves[task.name].items():
        last = [p for p in entries if p["setting"] == entries[-1]["setting"]]
        value = metrics.log_mmd2(statistics.fmean(p["mmd2"] for p in last))
        spent = statistics.fmean(p["evaluations"] for p in last)
        report.tell(f"{task.name}, {method}", "ln MMD², of the mean over seeds", value, f"{spent:.0f} evaluations")


def runs(
    task: Task, sampler: Sampler, n: int, settings: Settings, judge: metrics.Discrepancy | None, functions: bool = False
) -> list[dict[str, Any]]:
    """One point for each seed: cost, distances, evidence."""
    found = []
    for index, seed in enumerate(settings.seeds):
        own = targets.counted(task, functions)
        draw = sample(own.target, n, sampler=sampler, seed=seed, progress=False)
        assert isinstance(draw.x, Tensor)
        point: dict[str, Any] = {
            "seed": seed,
            "evaluations": draw.info.evaluations,
            "counted": own.evaluations() / n,
            "path": draw.info.path,
            "acceptance": draw.info.acceptance,
            "seconds": draw.info.seconds,
        }
        if judge is not None:
            values = judge.values(draw.x)
            point["mmd2"] = math.fsum(values) / len(values)
            point["single"] = values[index % len(values)]
        if task.truth is not None:
            point["tv"] = metrics.mode_error(task.truth, draw.x)
        point.update(log_z_error(draw, task.log_z))
        found.append(point)
    return found


def log_z_error(draw: Draw, log_z: float) -> dict[str, float]:
    """Error of log Z, its reported standard error, and their ratio (float32 counts as exact); nothing where unknown."""
    if draw.log_z is None or draw.log_z_se is None:
        return {}
    error = draw.log_z - log_z
    return {"log_z_error": error, "log_z_se": draw.log_z_se, "z": error / max(draw.log_z_se, 1e-6)}


def default_targets(
    report: Report, what: str, points: list[dict[str, Any]], budget: float | None, tv_floor: float, note: str
) -> None:
    """Cost, independent count, mode masses and evidence of one setting."""
    note = f"{note}: {points[0]['path']}"
    spent = most(points, "evaluations")
    if budget is None:
        report.tell(what, "evaluations, the most", spent, note)
    else:
        report.check(what, "evaluations, the most", spent, "≤", budget, note)
    gap = max(abs(p["evaluations"] - p["counted"]) for p in points)
    report.check(what, "reported − independently counted evaluations", gap, "≤", 0.01, note)
    excess = [p["tv"] - tv_floor for p in points]
    worst = f"{note}; worst seed {max(excess):.3f}"
    report.check(what, "mode-mass error above exact draws", statistics.fmean(excess), "≤", 0.03, worst)
    evidence(report, what, points, note, 0.05 if budget == 75 else None)


def evidence(report: Report, what: str, points: list[dict[str, Any]], note: str, bound: float | None) -> None:
    """log Z within three standard errors in all seeds, and within a bound."""
    report.check(what, "log Z, worst |error| / standard error", most(points, "z"), "≤", 3.0, note)
    if bound is None:
        report.tell(what, "log Z, worst |error|", most(points, "log_z_error"), note)
    else:
        report.check(what, "log Z, worst |error|", most(points, "log_z_error"), "≤", bound, note)


def mode_floor(task: Task, n: int, sets: int) -> float:
    """Mean total variation of exact sets of size n."""
    assert task.truth is not None
    generator = torch.Generator().manual_seed(987_654_321)
    return statistics.fmean(metrics.mode_error(task.truth, task.exact(n, generator)) for _ in range(sets))


# ------------------------------------------------------- 2b: in 8 and 32 dimensions


def many_dimensions(report: Report, settings: Settings) -> None:
    """Products of random six-component mixtures: mode masses, evidence, and whether its error bar is honest."""
    n = settings.size(4000, 400)
    for dim, budget in ((8, 170), (32, 400)):
        seeds = targets.MIXTURE_SEEDS[dim][: settings.size(3, 1)]
        for seed in seeds:
            task = targets.random_product(dim, seed)
            assert task.truth is not None
            modes = targets.effective_modes(task.truth)
            report.check(task.name, "effective modes", modes, "≥", 4.0)
            tv_floor = mode_floor(task, n, settings.size(10, 3))
            exact = SMC(path="exact-start") if dim == 8 else SMC(path="exact-start", cess=0.96)
            choices: list[tuple[SMC, int | None, bool, str]] = [
                (SMC(), budget, True, "default SMC on functions"),
                (SMC(), None, False, "default SMC on closed forms"),
                (exact, 60, False, f"SMC(path='exact-start', cess={exact.cess})"),
            ]
            for sampler, limit, functions, note in choices:
                points = runs(task, sampler, n, settings, None, functions)
                default_targets(report, task.name, points, limit, tv_floor, note)
                for point in points:
                    report.point(task.name, note, **point)
        if not settings.quick:
            honesty(report, targets.random_product(dim, seeds[0]), 2000, 50)
    if not settings.quick:
        honesty(report, targets.ring_line(), 2000, 50)
    report.figures["evidence"] = lambda figure: plots.evidence(figure, report.curves)


def honesty(report: Report, task: Task, n: int, repeats: int) -> None:
    """Root mean square of error over reported standard error, over many seeds."""
    for path in ("noise", "exact-start"):
        ratios = []
        for seed in range(1000, 1000 + repeats):
            draw = sample(task.target, n, sampler=SMC(path=path), seed=seed, progress=False)
            ratios.append(log_z_error(draw, task.log_z))
            report.point("log Z over its standard error", f"{task.name}, {path}", seed=seed, **ratios[-1])
        rms = math.sqrt(statistics.fmean(r["z"] ** 2 for r in ratios))
        bias = statistics.fmean(r["log_z_error"] for r in ratios)
        spread = statistics.stdev(r["log_z_error"] for r in ratios)
        note = f"{path}, {repeats} runs, n = {n}: mean error {bias:+.4f}, standard deviation {spread:.4f}"
        report.check(task.name, "rms(log Z error / standard error), at least", rms, "≥", 0.7, note)
        report.check(task.name, "rms(log Z error / standard error), at most", rms, "≤", 1.6, note)


# -------------------------------------------------------------- 2c: ring × bar


def circle_bar(report: Report, settings: Settings) -> None:
    """Du et al.'s product: biased MMD² with one RBF of h = 0.2, and the share on the true support.

    The answer is two narrow modes, so the distance is that of their masses. Particles that start at draws of the ring
    reach them one in four, and masses scatter twice as much as those of independent draws, whatever the number of
    levels: more particles, thinned, are the way to spend evaluations here.
    """
    task = targets.circle_bar()
    assert task.inside is not None
    n = settings.size(2000, 500)
    judge = metrics.Discrepancy(task.exact, squared=(0.2**2,), unbiased=False, references=settings.size(20, 4))
    floor = judge.floor(n, settings.size(100, 10)).log()
    bar = float(floor.mean())
    report.tell(task.name, "mean ln biased MMD² of exact pairs", bar, f"standard deviation {float(floor.std()):.2f}")
    exact = task.exact(20_000, torch.Generator().manual_seed(5))
    report.tell(task.name, "share of exact draws on the support", metrics.support_fraction(task.inside, exact))
    functions = targets.Task(
        task.name, targets.product_of([targets.as_function(f) for f in task.factors]), task.exact, task.log_z
    )  # fmt: skip
    choices: list[tuple[str, Task, Sampler, int, bool]] = [
        ("SMC, 8n particles thinned", task, SMC(), 8, True),
        ("SMC on functions, 3n thinned", functions, SMC(), 3, True),
        ("default SMC", task, SMC(), 1, False),
        ("default SMC on functions", functions, SMC(), 1, False),
        ("Annealed, 32 levels", task, Annealed(levels=32), 1, False),
        ("Reverse, 50 steps", task, Reverse(steps=50), 1, False),
    ]
    for name, own, sampler, times, judged in choices:
        logs, shares, points = [], [], []
        for seed in settings.seeds:
            draw = sample(own.target, times * n, sampler=sampler, seed=seed, progress=False)
            x = thin(_rows(draw), n, seed)
            logs.append(statistics.fmean(math.log(v) for v in judge.values(x)))
            shares.append(metrics.support_fraction(task.inside, x))
            numbers = {"evaluations": times * draw.info.evaluations, "ln_mmd2": logs[-1], "inside": shares[-1]}
            points.append(numbers | log_z_error(draw, task.log_z))
            report.point(task.name, name, seed=seed, **points[-1])
        above, share, spent = statistics.fmean(logs) - bar, min(shares), most(points, "evaluations")
        note = f"{name}: each {', '.join(f'{v:.1f}' for v in logs)}"
        if judged:
            report.check(task.name, "evaluations per draw kept", spent, "≤", 400, name)
            report.check(task.name, "mean ln biased MMD² above the floor", above, "≤", 1.0, note)
            report.check(task.name, "share on the support, worst seed", share, "≥", 0.99, name)
            evidence(report, task.name, points, name, None)
        else:
            report.tell(task.name, "mean ln biased MMD² above the floor", above, f"{note}; {spent:.0f} evaluations")
            report.tell(task.name, "share on the support, worst seed", share, name)


def thin(x: Tensor, n: int, seed: int) -> Tensor:
    """n rows at random: the masses of modes of more particles, at the size that is compared."""
    if len(x) == n:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]


# ------------------------------------------------------------------- 2d: sums


def sums(report: Report, settings: Settings) -> None:
    """Sums keep the weights of their members, normalised or not."""
    n = settings.size(40_000, 4000)
    for task in targets.sums():
        assert task.truth is not None
        exact = task.exact(n, torch.Generator().manual_seed(77))
        scores: list[float] = []
        points = []
        for seed in settings.seeds:
            draw = sample(task.target, n, seed=seed, progress=False)
            scores += metrics.member_z(task.truth, task.sizes, _rows(draw), exact)
            points.append(log_z_error(draw, task.log_z) | {"evaluations": draw.info.evaluations})
        worst = max(map(abs, scores))
        note = f"n = {n}, {len(scores)} scores, rms {math.sqrt(statistics.fmean(z * z for z in scores)):.2f}; "
        note += f"{points[0]['evaluations']:.0f} evaluations"
        report.check(task.name, "member masses, worst |z|", worst, "≤", 4.0, note)
        evidence(report, task.name, points, "", None)


# --------------------------------------------------------------- 2e: negations


def negations(report: Report, settings: Settings) -> None:
    """Quotients and bounded negation against their answers, and formulas without one."""
    n = settings.size(4000, 500)
    for task in targets.negations():
        answered(report, task, n, settings)
    for name, target in targets.unnormalizable():
        outcome, words = attempt(lambda t=target: sample(t, 1000, seed=0, progress=False))
        note = outcome if not words else f"{outcome}: {words if len(words) < 160 else words[:157] + '…'}"
        report.state(name, "no finite integral", outcome != "drawn without a word", "refused or reported", note)


def attempt(draw: Callable[[], Draw]) -> tuple[str, str]:
    """What became of a formula without an integral: the error that refused it, or the warning that reported it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            draw()
        except (NotNormalizable, NonFinite) as error:
            return type(error).__name__, str(error)
        except ValueError as error:
            return type(error).__name__, str(error)
    told = [str(w.message) for w in caught if issubclass(w.category, SamplingWarning)]
    return ("warned", told[0]) if told else ("drawn without a word", "")


def answered(report: Report, task: Task, n: int, settings: Settings, bound: float = 0.05) -> None:
    """Default settings against an answer: MMD² within exact pairs, and log Z within a bound."""
    judge = metrics.Discrepancy(task.exact, references=settings.size(4, 2))
    floor = judge.floor(n, settings.size(50, 10))
    draws = [sample(task.target, n, seed=seed, progress=False) for seed in settings.seeds]
    points = [log_z_error(d, task.log_z) for d in draws]
    value = statistics.fmean(judge(_rows(d)) for d in draws)
    spent = max(d.info.evaluations for d in draws)
    note = f"ln {metrics.log_mmd2(value):.2f}; {draws[0].info.path}, {spent:.0f} evaluations"
    top = metrics.quantile(floor, 0.99)
    report.check(task.name, "mean MMD² / 99 % quantile of exact pairs", value / top, "≤", 1.0, note)
    evidence(report, task.name, points, "", bound)


# ------------------------------------------------------------------ 2f: statics


def statics(report: Report, settings: Settings) -> None:
    """Static factors by default settings: no noise levels, no exact integral but the grid's."""
    n = settings.size(4000, 1000)
    names = []
    for task in targets.statics():
        names.append(task.name)
        answered(report, task, n, settings)
    if not any("zuko" in name for name in names):
        report.skip("zuko NSF² × Gaussian", "zuko is not installed")


# -------------------------------------------------------------------- helpers


def most(points: Sequence[dict[str, Any]], name: str) -> float:
    """The largest |value| over seeds; NaN where a point has none."""
    return max((abs(p.get(name, math.nan)) for p in points), default=math.nan)


def mean_log(values: Sequence[float]) -> float:
    """Mean of the clamped logarithms."""
    return statistics.fmean(metrics.log_mmd2(v) for v in values)


def _ln(value: float) -> str:
    return f"{metrics.log_mmd2(value):.2f}"


def _rows(draw: Draw) -> Tensor:
    assert isinstance(draw.x, Tensor)
    return draw.x
