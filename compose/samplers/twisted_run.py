"""Where a twisted run stands: particles, weights, and what its checkpoint holds."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.particles import Populations
from boltzmix.compose.samplers.twisting import Look, Twist


@dataclass
class Run:
    """Where a run stands; everything that resuming needs."""

    x: Tensor
    look: Look
    cloud: Populations
    begins: list[float]
    ends: list[float]
    k: int = 0
    divergences: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def weigh(self, twist: Twist, increments: Tensor, sigma: float) -> None:
        """Multiply the weights; count particles whose weight is not a number, and say where r has cut some off."""
        alive = self.cloud.log_weights.reshape(-1) > -torch.inf
        self.divergences += int((alive & torch.isnan(increments)).sum())
        lost = alive & (increments == -torch.inf)
        if sigma > 0 and bool(lost.any()):
            warn_once(
                f"Twisted on {twist.original.name()}: a factor is zero at the estimate of some particles at "
                f"sigma={sigma:.3g}. They are dropped, though they might have come back: use factors that are "
                "positive everywhere, e.g. a steep penalty in place of a hard edge"
            )
        self.cloud.reweigh(increments, f"{twist.original.name()} at sigma={sigma:.3g}")


def snapshot(twist: Twist, request: Request, run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    look, cloud, counter = run.look, run.cloud, twist.view.counter
    tensors = {
        "x": run.x,
        "estimate": look.estimate,
        "log_twist": look.log_twist,
        "slope": look.slope,
        "log_prior": look.log_prior,
        "log_weights": cloud.log_weights,
        "ancestors": cloud.ancestors,
        "log_z": cloud.log_z,
        "generator": request.generator.get_state(),
    }
    tensors.update({f"frame{k:05d}": f for k, f in enumerate(run.frames)})
    state = {
        "begins": run.begins,
        "ends": run.ends,
        "k": run.k,
        "divergences": run.divergences,
        "records": run.records,
        "rows": counter.rows,
        "network_rows": counter.network_rows,
    }
    return tensors, state


def restore(twist: Twist, request: Request, tensors: dict[str, Tensor], state: dict[str, Any]) -> Run:
    request.generator.set_state(tensors.pop("generator"))
    found = {name: value.to(twist.view.device) for name, value in tensors.items()}
    look = Look(found["estimate"], found["log_twist"], found["slope"], found["log_prior"])
    cloud = Populations(found["log_weights"], found["ancestors"], found["log_z"])
    frames = [found[k] for k in sorted(found) if k.startswith("frame")]
    twist.view.counter.rows, twist.view.counter.network_rows = state["rows"], state["network_rows"]
    return Run(
        found["x"],
        look,
        cloud,
        state["begins"],
        state["ends"],
        state["k"],
        state["divergences"],
        state["records"],
        frames,
    )


def warn_if_collapsed(run: Run, twist: Twist) -> None:
    size = run.cloud.log_weights.shape[1]
    families, least = float(run.cloud.families.min()), float(run.cloud.ess.min())
    if size >= 10 and (families < max(2, 0.02 * size) or least < 0.02):
        warnings.warn(
            f"Twisted: weights collapsed ({families:.0f} of {size} first ancestors left, effective fraction "
            f"{least:.1%}) on {twist.original.name()}: moments and log Z are unreliable. Use more particles or steps, "
            "or factors that are less steep far from the data end (r ** (lambda sigma: …))",
            SamplingWarning,
            stacklevel=5,
        )


_warned: set[str] = set()


def warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SamplingWarning, stacklevel=5)
