"""Pictures of scenes by composition: hits, the law of what comes out, NOT, large canvases, and what it costs.

One diffusion model, trained on descriptions of single objects, is composed at test time; an exact parser and exact laws
are the judges (:mod:`boltzmix.benchmarks.scenes`). ``--only`` runs a part.
"""

import functools
import io
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzmix.benchmarks import scenes_tapestry
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.scenes import accuracy, cost, counts, negation, pictures, style
from boltzmix.benchmarks.scenes.methods import METHODS
from boltzmix.benchmarks.scenes.parser import parse, parser_accuracy
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.benchmarks.shares import Share
from boltzmix.compose import SMC
from boltzmix.models.data.scenes import COLORS, Layouts, Scenes
from boltzmix.models.load import load

_EVALUATIONS = 50
_POPULATION = 4
_TIMES = (1, 3, 9)
"""Budgets of the parts that look at the law of N, in units of the usual one."""


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: Any = 1,
    progress: bool | None = None,
    only: Any = None,
) -> Report:
    """Run the suite; ``quick`` takes the 16 × 16 model and few pictures."""
    return run_sections(
        "images",
        "Pictures by composition",
        [
            ("parser", _parser),
            ("places", lambda report, settings: _places(report, settings, (1, 2, 3))),
            ("places-5", lambda report, settings: _places(report, settings, (5,))),
            ("places-guided", _guided),
            ("budget", _budget),
            ("attributes", _attributes),
            ("attributes-guided", _attributes_guided),
            ("counts-prior", _prior),
            ("counts-3", lambda report, settings: _counts(report, settings, 3, 1.0)),
            ("counts-1", lambda report, settings: _counts(report, settings, 1, 4.0)),
            ("not", _not),
            ("style", _style),
            ("tapestry", _tapestry),
            ("cost", _cost),
            ("sheets", lambda report, settings: pictures.sheets(report, *_model(settings), settings.quick)),
        ],
        out=out, quick=quick, seeds=seeds, only=only, progress=progress,
    )  # fmt: skip


def _model(settings: Settings) -> tuple[Any, Scenes]:
    return (load("scenes16"), Scenes.small()) if settings.quick else (load("scenes"), Scenes())


def _parser(report: Report, settings: Settings) -> None:
    _, scenes = _model(settings)
    for row in parser_accuracy(scenes, settings.size(2000, 200), seed=settings.seeds[0]):
        report.tell(
            f"rendered scenes, noise {row['noise']:g}",
            "pictures with everything right",
            row["exact"],
            f"n = {row['n']}; count {row['count']:.4f}, shape {row['shape']:.4f}, color {row['color']:.4f}, centres "
            f"{row['position_rms']:.3f} px rms, clean {row['clean']:.4f}; {row['seconds_per_1000']:.1f} s for 1,000",
        )
        if not row["noise"]:
            report.check("rendered scenes", "pictures with everything right", row["exact"], "≥", 0.999)


def _places(report: Report, settings: Settings, many: Sequence[int]) -> None:
    """k places at power 1, by every sampler at equal evaluations."""
    model, scenes = _model(settings)
    for k in many:
        if k > scenes.most:
            report.skip(f"{k} places", f"scenes of {scenes.size} × {scenes.size} pixels hold {scenes.most} objects")
            continue
        task, rate = f"{k} place{'s' if k > 1 else ''}, power 1", 0.0
        for name, method in METHODS.items():
            if method.least:
                continue  # for powers above 1
            n = settings.size(300 if name == "reverse" or (name == "uhmc" and k < 5) else 100, 16)
            particles = _POPULATION if method.population else 1
            found = _cell(report, settings, task, name, k, 1.0, n, particles)
            rate = found.rate if name == "reverse" else rate
        asked, _ = accuracy.requests(scenes, 2, k, ("position",), settings.seeds[0])
        accuracy.refusal(report, task, "smc", SMC(), model, asked, 1.0)
        report.check(task, "reverse: right pictures", rate, "≥", accuracy.TARGETS[1.0][k])


def _guided(report: Report, settings: Settings) -> None:
    """k places at power 2: guidance at every level, and above a level alone, that at twice the evaluations, too."""
    _, scenes = _model(settings)
    for k in (1, 2, 3, 5) if scenes.most >= 5 else (1, 2, 3):
        task = f"{k} place{'s' if k > 1 else ''}, power 2"
        for name in ("reverse", "interval", "uhmc"):
            n = settings.size(100 if name == "uhmc" else 300, 16)
            found = _cell(report, settings, task, name, k, 2.0, n)
            if name == "interval":
                report.check(task, "interval: right pictures", found.rate, "≥", accuracy.TARGETS[2.0][k])
        twice = _cell(report, settings, task, "interval", k, 2.0, settings.size(300, 16), times=2)
        quantity = "interval, twice the evaluations: right pictures"
        report.check(task, quantity, twice.rate, "≥", accuracy.TARGETS[2.0][k])


def _cell(
    report: Report,
    settings: Settings,
    task: str,
    name: str,
    k: int,
    power: float,
    n: int,
    particles: int = 1,
    times: int = 1,
) -> Share:
    """One sampler on n scenes; the same scenes for all samplers of one n."""
    model, scenes = _model(settings)
    asked, _ = accuracy.requests(scenes, n, k, ("position",), settings.seeds[0])
    budget = times * settings.size(_EVALUATIONS, 20)
    return accuracy.cell(report, task, METHODS[name], model, scenes, asked, power, budget, settings.seeds[0], particles)


def _budget(report: Report, settings: Settings) -> None:
    """Right pictures against evaluations for three places at power 1."""
    model, scenes = _model(settings)
    asked, _ = accuracy.requests(scenes, settings.size(100, 16), 3, ("position",), settings.seeds[0])
    for evaluations in (12, 25, 100) if not settings.quick else (10,):
        for method in METHODS.values():
            if method.least:
                continue
            particles = _POPULATION if method.population else 1
            accuracy.cell(
                report, "right pictures, 3 places, power 1", method, model, scenes, asked, 1.0, evaluations,
                settings.seeds[0], particles,
            )  # fmt: skip
    report.figures["budget"] = pictures.curve(report, "right pictures, 3 places, power 1", "rate", "right pictures")


def _attributes(report: Report, settings: Settings) -> None:
    """Colour, shape and both at a place, at power 2; pairs never seen, and the model of whole scenes beside them."""
    model, scenes = _model(settings)
    for fields in accuracy.KIND_TARGETS:
        _kind(report, settings, "reverse", fields, 2.0)
    if settings.quick:
        report.skip("the model of whole scenes", "needs 32 × 32 pixels: run without --quick")
        return
    for k, held in itertools.product((1, 2), (False, True)):
        n, seed = settings.size(200, 16), settings.seeds[0]
        if held:
            asked, layouts = accuracy.held_out_requests(scenes, n, k, seed)
        else:
            asked, layouts = accuracy.requests(scenes, n, k, ("position", "shape", "color"), seed)
        _objects(report, settings, model, asked, layouts, _told(k, held), {"reverse": 2.0}, held)


def _attributes_guided(report: Report, settings: Settings) -> None:
    """The same with guidance that ends above σ = 0.1, and at larger powers."""
    model, scenes = _model(settings)
    for fields in accuracy.KIND_TARGETS:
        for power in (2.0, 4.0) if len(fields) == 1 else (2.0,):
            _kind(report, settings, "kinds", fields, power)
    if settings.quick:
        return
    for k in (1, 2):
        asked, layouts = accuracy.held_out_requests(scenes, settings.size(100, 16), k, settings.seeds[0])
        _objects(report, settings, model, asked, layouts, _told(k, True), {"reverse": 2.0, "kinds": 3.0}, True)


def _kind(report: Report, settings: Settings, name: str, fields: tuple[str, ...], power: float) -> None:
    """One object by some of its attributes."""
    model, scenes = _model(settings)
    asked, _ = accuracy.requests(scenes, settings.size(300, 16), 1, fields, settings.seeds[0])
    task = " and ".join(field.replace("position", "place") for field in fields)
    budget = settings.size(_EVALUATIONS, 20)
    found = accuracy.cell(report, task, METHODS[name], model, scenes, asked, power, budget, settings.seeds[0])
    quantity = f"{name}: right pictures, power {power:g}"
    report.check(task, quantity, found.rate, "≥", accuracy.KIND_TARGETS[fields])


def _objects(
    report: Report,
    settings: Settings,
    model: Any,
    asked: Requests,
    layouts: Layouts,
    task: str,
    powers: dict[str, float],
    judged: bool,
) -> None:
    """Whole objects: shape and colour told apart, to the powers of each method, beside the model of whole scenes."""
    scenes, seed, budget = Scenes(), settings.seeds[0], settings.size(_EVALUATIONS, 20)
    whole = accuracy.whole(load("scenes-whole"), layouts, asked, budget, seed)
    theirs = accuracy.tell(report, task, "one model of whole scenes", whole, scenes, asked, 1.0)
    for name, power in powers.items():
        drawn = accuracy.composed_by_attribute(METHODS[name], model, asked, power, budget, seed)
        ours = accuracy.tell(report, task, f"composed, power {power:g}, {name}", drawn, scenes, asked, power)
        if judged:
            report.check(task, f"composed, {name}, less one model", ours.rate - theirs.rate, "≥", 0.0)


def _told(k: int, held: bool) -> str:
    return f"{k} whole object{'s' if k > 1 else ''}, " + ("pairs never seen" if held else "pairs seen")


def _prior(report: Report, settings: Settings) -> None:
    """What of the error in N is the network's own, whatever the number of steps, and at which noise it arises."""
    model, scenes = _model(settings)
    budget, n, seed = settings.size(_EVALUATIONS, 10), settings.size(512, 32), settings.seeds[0]
    for times in (1, 4) if not settings.quick else (1,):
        counts.prior(report, METHODS["reverse"], model, scenes, times * budget, n, seed)
    levels = (8.0, 5.0, 3.0, 2.0, 1.0) if not settings.quick else (2.0, 0.2)
    counts.restarted(report, model, scenes, levels, budget, n, seed)


def _counts(report: Report, settings: Settings, k: int, power: float) -> None:
    """The law of N: what reverse diffusion leaves, and what correction takes away of it, budget by budget."""
    model, scenes = _model(settings)
    base = settings.size(_EVALUATIONS, 10)
    task = f"N given {k} place{'s' if k > 1 else ''}, power {power:g}"
    for times in _TIMES if not settings.quick else _TIMES[:1]:
        left = {}
        pictures_each = settings.size(256 if times == 1 else 128, 32)
        for name in ("reverse", "visible", "uhmc", "focused", "fkc"):
            found = counts.judge(
                report, METHODS[name], model, scenes, k, power, times * base, pictures_each, settings.seeds[0]
            )
            left[name] = found.tv
            report.keep()
        plain = min(left.pop("reverse"), left.pop("visible"))
        best = min(left, key=lambda name: left[name])
        quantity = f"best corrected ({best}) over the better of two ladders without, about {times * base} evaluations"
        report.check(task, quantity, left[best] / plain, "≤", 0.5)
        report.keep()


def _not(report: Report, settings: Settings) -> None:
    """No red, by quotients and by a factor, against exact scenes and against what the model makes of rejection."""
    model, scenes = _model(settings)
    n, budget, task = settings.size(2048, 32), settings.size(_EVALUATIONS, 20), f"no {negation.COLOR}"
    red = COLORS.index(negation.COLOR)
    exact = negation.exact_without(scenes, 20_000, lambda layouts: (layouts.color != red).all(1), 3)
    kept, share = negation.rejection(model, scenes, settings.size(4096, 64), budget)
    own = "against exact scenes"
    _, worst = negation.judge(report, "rejection", kept, scenes, {own: exact}, f"; {share:.3f} of all draws kept")
    references = {own: exact, "against rejection": kept}
    for name, draw in negation.methods(model, budget).items():
        pictures = draw(n if name == "factor, weighed" else settings.size(512, 32))
        note = f"; {pictures.evaluations:.0f} evaluations, {1e3 * pictures.seconds / len(pictures.x):.0f} ms a picture"
        rate, worst = negation.judge(report, name, parse(pictures.x, scenes), scenes, references, note)
        if name == "factor, weighed":
            report.check(task, "pictures with it", rate, "≤", 0.01)
            for label, value in worst.items():
                report.check(task, f"total variation above the floor, {label}", value, "≤", 0.03)


def _style(report: Report, settings: Settings) -> None:
    """Palettes by one network, content by another."""
    n, evaluations = settings.size(300, 16), settings.size(_EVALUATIONS, 20)
    rows = style.judge(
        report, load("scenes16"), load("palettes"), Scenes.small(), n, evaluations, settings.seeds[0]
    )  # fmt: skip
    report.figures["style"] = lambda figure: pictures.paint(figure, rows)


def _tapestry(report: Report, settings: Settings) -> None:
    """Seams of canvases larger than the model, and objects anywhere on them."""
    with tempfile.TemporaryDirectory() as folder:
        found = scenes_tapestry.tapestry(folder, settings.quick, settings.seeds[0], canvases=settings.size(24, 3))
        for path in sorted(Path(folder).glob("*.png")):
            report.figures[path.stem] = functools.partial(_show, path.read_bytes())
    for row in found["methods"]:
        task = f"{found['size']} × {found['size']}, {row['method']}"
        if "across" not in row:
            report.state(task, "finite canvases", False, "some", f"{row['canvases']} canvases")
            continue
        report.tell(
            task,
            "steps across borders over steps inside",
            row["across"]["ratio"],
            f"± {row['across']['error']:.3f}; within 3 px {row['within 3 px']['ratio']:.3f}, half way "
            f"{row['half way']['ratio']:.3f}; {row['canvases']} canvases, {row['evaluations']:.0f} evaluations, "
            f"{row['cpu_seconds_each']:.1f} s each",
        )
    first = found["methods"][0]
    worst = max(abs(first[name]["ratio"] - 1) for name in ("across", "within 3 px", "half way"))
    report.check(first["method"], "largest deviation of steps at borders", worst, "≤", scenes_tapestry.TOLERANCE)
    for row in found["local"]:
        key = "rate" if row["power"] else "chance"
        report.tell(
            "objects placed on the canvas",
            f"met, power {row['power']:g}",
            row[key],
            f"{row['low']:.2f}–{row['high']:.2f}",
        )


def _show(png: bytes, figure: Any) -> None:
    from matplotlib.image import imread

    picture = imread(io.BytesIO(png), format="png")
    figure.set_size_inches(picture.shape[1] / 90, picture.shape[0] / 90)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, interpolation="nearest")
    axes.axis("off")


def _cost(report: Report, settings: Settings) -> None:
    """One forward for five views; whole pictures beside a loop by hand."""
    model, _ = _model(settings)
    sizes = (4, 16, 64) if not settings.quick else (4,)
    worst = cost.overhead(report, model, sizes, settings.size(41, 5))
    report.check("four guided conditions", "time over one bare forward, worst size", worst, "≤", 1.05)
    ratio = cost.pictures_per_second(report, model, settings.size(32, 4), settings.size(40, 5), settings.size(7, 2))
    report.check("whole pictures", "rate over a loop by hand", ratio, "≥", 1.0)
