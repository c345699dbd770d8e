r"""Tapestries: scenes on canvases larger than the model, their seams, and objects asked for anywhere on them.

The model knows scenes of 32 × 32 pixels in which every object keeps away from the edge, so a window never shows an
object that is cut, and a large canvas shows nothing else. It is the hard case for counting overlaps: wherever a
window's edge has a say, objects avoid it or fade. Each row is one way of counting overlaps and one sampler; seams are
measured by :mod:`boltzmix.benchmarks.seams`, on steps across the borders of windows, on those within three pixels of
them, and half way between, where ``"centre"`` hands over from one window to the next. The closed forms of the Gaussian
twin stand beside them.

Objects are asked for by local quotients, :math:`p(x) \prod_j (p(x_{r_j} | c_j) / p(x_{r_j}))^w`, and looked for with
the exact parser in the window around the place. ``rate`` is the share of requests that are met, to be compared with
``chance``, the share of the same requests that canvases meet which were asked nothing.
"""

import io
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.scenes.judges import match, share
from boltzmix.benchmarks.scenes.parser import parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.benchmarks.seams import seams, twin
from boltzmix.compose.canvas import Canvas
from boltzmix.compose.crops import Window
from boltzmix.compose.draw import Draw, write_atomically
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.kernels.langevin import ULA
from boltzmix.compose.pictures import image_sheet
from boltzmix.compose.product import Product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.term import Term
from boltzmix.models.data.scenes import Scenes
from boltzmix.models.load import load

TOLERANCE = 0.05
"""How far steps at borders may be from those inside."""

PLACES = (
    {"color": "red", "shape": "circle", "x": 100.0, "y": 40.0},
    {"color": "blue", "shape": "square", "x": 30.0, "y": 96.0},
    {"color": "green", "shape": "triangle", "x": 64.0, "y": 64.0},
    {"color": "yellow", "shape": "circle", "x": 17.0, "y": 19.0},
)
"""What is asked of a canvas of 128 × 128, in its pixels; smaller canvases take the same places, scaled."""

_CHUNK = 4  # canvases at a time: rows of a forward are windows × canvases


@dataclass(frozen=True)
class Method:
    """One way of tiling and sampling.

    Attributes:
        overlap: of :class:`~boltzmix.compose.canvas.Canvas`.
        parts: how many strides make up a window.
        sampler: how draws are made.
        share: of the canvases that the first method draws.
    """

    overlap: str
    parts: int
    sampler: Sampler
    share: float = 1.0


def methods(steps: int) -> dict[str, Method]:
    """The rows of the table."""
    reverse = Reverse(steps=steps, solver="dpmpp")
    corrected = Reverse(steps=steps, solver="ddim", corrector=ULA(), corrections=2, snr=0.1)
    return {
        "centre, reverse": Method("centre", 2, reverse),
        "centre, predictor-corrector": Method("centre", 2, corrected, 0.34),
        "centre, stride 1/4": Method("centre", 4, reverse, 0.34),
        "tent, reverse": Method("tent", 2, reverse, 0.34),
        "mean, reverse": Method("mean", 2, reverse, 0.34),
    }


def tapestry(
    out: str | Path,
    quick: bool = False,
    seed: int = 0,
    *,
    model: Term | None = None,
    canvases: int | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Draw tapestries, measure their seams, place objects on them; write ``tapestry.json`` and pictures into ``out``.

    Args:
        out: a folder.
        quick: 64 × 64 from the 16 × 16 model, a few of each, few steps.
        seed: of all draws.
        model: in place of the weights that ship.
        canvases: of the first method; 48 by default, 3 if quick.
        only: names of methods, all by default.

    Returns:
        What the JSON holds.
    """
    folder = Path(out)
    scenes = Scenes.small() if quick else Scenes()
    p = (load("scenes16") if quick else load("scenes")) if model is None else model
    size, steps = 4 * scenes.size, 10 if quick else 30
    count = canvases or (3 if quick else 48)
    found: dict[str, Any] = {
        "size": size, "window": scenes.size, "seed": seed, "steps": steps, "tolerance": TOLERANCE,
        "twin": {"order 1": twin((0.9,)), "order 2": twin((1.2, -0.5))}, "methods": [],
    }  # fmt: skip
    pictures: dict[str, Tensor] = {}
    for name, method in methods(steps).items():
        if only is not None and name not in only:
            continue
        stride = scenes.size // method.parts
        canvas = Canvas(p, (3, size, size), stride, overlap=method.overlap)
        x, cost = _draws(canvas, max(2, round(count * method.share)), method.sampler, seed)
        row = {"method": name, "overlap": method.overlap, "stride": stride, "canvases": len(x), **cost}
        found["methods"].append(row | _seam_figures(x, scenes.size, stride))
        pictures[name] = x[:2]
    found["local"] = _local(p, scenes, size, Reverse(steps=steps, solver="dpmpp"), max(2, count // 3), seed, pictures)
    wide = Canvas(p, (3, size, 2 * size), scenes.size // 2, overlap="centre")
    pictures["wide"] = _draws(wide, 1, Reverse(steps=steps, solver="dpmpp"), seed)[0]
    payload = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "tapestry.json", payload.encode())
    for name, x in pictures.items():
        file = "tapestry-" + name.replace(",", "").replace("/", "-").replace(" ", "-") + ".png"
        write_atomically(folder / file, _png(image_sheet(x, limits=(-1.0, 1.0), columns=2, gap=4, scale=3)))
    return found


def _draws(term: Term, n: int, sampler: Sampler, seed: int) -> tuple[Tensor, dict[str, float]]:
    """n canvases, a few at a time from one generator, and what one of them cost."""
    generator = torch.Generator().manual_seed(seed)
    clock = time.process_time()
    parts: list[Draw] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # that summed scores are biased is in the table
        for start in range(0, n, _CHUNK):
            parts.append(sample(term, min(_CHUNK, n - start), sampler=sampler, seed=generator))
    x = torch.cat([draw.x for draw in parts])  # pyright: ignore[reportArgumentType, reportCallIssue]
    seconds = time.process_time() - clock
    info = parts[0].info
    cost = {"evaluations": info.evaluations, "network_rows": info.network_rows, "cpu_seconds_each": seconds / n}
    return x, cost


def _seam_figures(x: Tensor, window: int, stride: int) -> dict[str, Any]:
    finite = x.isfinite().flatten(1).all(1)
    if not bool(finite.any()):
        return {"finite": 0.0, "seamless": False}
    across = seams(x[finite], window, stride)
    near = seams(x[finite], window, stride, reach=3)
    middle = seams(x[finite], window, stride, offset=stride // 2)
    return {
        "finite": float(finite.double().mean()),
        "across": asdict(across),
        "within 3 px": {"ratio": near.ratio, "error": near.error, "by_axis": near.by_axis},
        "half way": {"ratio": middle.ratio, "error": middle.error, "by_axis": middle.by_axis},
        "seamless": all(abs(found.ratio - 1) <= TOLERANCE for found in (across, near)),
    }


# ------------------------------------------------------------------ objects anywhere


def place(canvas: Canvas, p: Term, condition: Mapping[str, Any], power: float = 1.0) -> Product:
    """A local quotient: what a description says, with x and y in pixels of the canvas.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian
        >>> canvas = Canvas(Gaussian(torch.zeros(3, 32, 32), 1.0), (3, 64, 64), 16)
        >>> canvas.around((40.0, 50.5))
        ((24, 32), (16.0, 18.5))
    """
    at, (y, x) = canvas.around((condition["y"], condition["x"]))
    return (Window(p.given(**{**condition, "x": x, "y": y}), at, canvas) / Window(p, at, canvas)) ** power


def _local(
    p: Term, scenes: Scenes, size: int, sampler: Sampler, n: int, seed: int, pictures: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Shares of requests that are met, for powers of the quotients and for none."""
    canvas = Canvas(p, (3, size, size), scenes.size // 2, overlap="centre")
    asked = [{**c, "x": c["x"] * size / 128, "y": c["y"] * size / 128} for c in PLACES]
    rows = []
    for power in (0.0, 1.0, 2.0):
        formula: Term = canvas
        for condition in asked if power else ():
            formula = formula * place(canvas, p, condition, power)
        x, cost = _draws(formula, n, sampler, seed)
        met = met_requests(x, canvas, asked, scenes)
        each = {f"{c['color']} {c['shape']}": float(m) for c, m in zip(asked, met.double().mean(0), strict=True)}
        found = share(met.flatten())
        name = "chance" if power == 0 else "rate"
        rows.append({"power": power, "canvases": n, name: found.rate, "low": found.low, "high": found.high,
                     "each": each, **cost})  # fmt: skip
        if power:
            pictures[f"placed, power {power:g}"] = x[:2]
    return rows


def met_requests(x: Tensor, canvas: Canvas, asked: Sequence[Mapping[str, Any]], scenes: Scenes) -> Tensor:
    """Which requests canvases meet, bool ``(n, k)``: the right object within two pixels, seen in the window around it.

    Objects that the window's edge cuts are parsed as best they can be, and do not count against anything.
    """
    met = []
    for condition in asked:
        (top, left), (y, inner) = canvas.around((condition["y"], condition["x"]))
        crop = x[:, :, top : top + scenes.size, left : left + scenes.size].clamp(-1.0, 1.0)
        wanted = Requests.of({**condition, "x": inner, "y": y}, n=len(x))
        met.append(match(parse(crop, scenes), wanted).met[:, 0])
    return torch.stack(met, 1)


def _png(sheet: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((sheet * 255).round().byte().numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
