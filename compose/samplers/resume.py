"""What a checkpoint of a descent holds, and how a run goes on from it."""

from typing import Any

from torch import Tensor

from boltzmix.compose.flat import FlatView
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.samplers.anneal import Descent
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.particles import Cloud
from boltzmix.compose.samplers.path import (
    NoisePath,
    Path,
    Point,
)
from boltzmix.compose.samplers.start import FlatGaussian, candidates, tempered
from boltzmix.compose.term import Term


def snapshot(
    path: Path, run: Descent, request: Request, kind: str, why: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {
        "x": run.point.x,
        "energy": run.point.energy,
        "score": run.point.score,
        "log_weights": run.cloud.log_weights,
        "ancestors": run.cloud.ancestors,
        "generator": request.generator.get_state(),
    }
    if run.point.parts is not None:
        tensors.update({f"part{k}": p for k, p in enumerate(run.point.parts)})
    tensors.update({f"frame{k:05d}": f for k, f in enumerate(run.frames)})
    state: dict[str, Any] = {
        "u": run.u,
        "increment": run.increment,
        "step_size": run.step_size,
        "width": run.width,
        "levels": run.levels,
        "log_z": run.cloud.log_z,
        "path": kind,
        "why": why,
        "rows": path.view.counter.rows,
        "network_rows": path.view.counter.network_rows,
    }
    if isinstance(path, NoisePath):
        tensors["start_mean"], tensors["start_variance"] = path.mean, path.variance
        state["sigma"], state["late"] = path.sigma, path.late
    else:
        base = path.base_term  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(base, FlatGaussian):
            tensors.update({f"base/{k}": v for k, v in base.gaussian.named_buffers()})
        elif not isinstance(request.init, Term):
            state["base"] = [c.key() for c in candidates(path.view.term)].index(base.key())
    return tensors, state


def restore(
    view: FlatView, request: Request, tensors: dict[str, Tensor], state: dict[str, Any]
) -> tuple[Path, Descent, str, str]:
    tensors = {k: v if k == "generator" else v.to(view.device) for k, v in tensors.items()}
    request.generator.set_state(tensors["generator"])
    path: Path
    if state["path"] == "noise":
        path = NoisePath(
            view.as_product(), state["sigma"], tensors["start_mean"], tensors["start_variance"], state["late"]
        )
    elif "base/mean" in tensors:
        gaussian = Gaussian(tensors["base/mean"], tensors["base/variances"])
        gaussian.basis = tensors.get("base/basis")
        path = tempered(view, FlatGaussian(view, gaussian))
    else:
        base = request.init if isinstance(request.init, Term) else candidates(view.term)[state["base"]]
        path = tempered(view, base)
    parts = tuple(tensors[f"part{k}"] for k in range(4)) if "part0" in tensors else None
    point = Point(tensors["x"], tensors["energy"], tensors["score"], parts)  # pyright: ignore[reportArgumentType]
    cloud = Cloud(tensors["log_weights"], tensors["ancestors"], state["log_z"])
    frames = [tensors[k] for k in sorted(tensors) if k.startswith("frame")]
    run = Descent(
        point, cloud, state["u"], state["increment"], state["step_size"], state["width"], state["levels"], frames
    )
    view.counter.rows, view.counter.network_rows = state["rows"], state["network_rows"]
    return path, run, state["path"], state["why"]
