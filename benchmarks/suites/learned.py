"""The compositions of the suite with networks in place of closed forms, each trained without seeing the others' data.

Products are judged against the exact product of the data's densities, so the figures hold the networks' own error too;
the floor is what a sampler of the exact formula reaches. Learned energies enter sums with whatever constant they have:
the weights are shown before and after :func:`boltzmix.calibrate`.
"""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics, targets
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.targets import Task
from boltzmix.compose.calibration import calibrate
from boltzmix.compose.callables import term as as_term
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import SMC, Annealed
from boltzmix.compose.term import Term
from boltzmix.models.load import load


def networks(report: Report, settings: Settings) -> None:
    """Products by three samplers, and sums before and after calibration."""
    ring, line, circle, bar = (_load(report, name) for name in ("ring", "line", "circle", "bar"))
    if ring is not None and line is not None:
        product(report, settings, targets.ring_line(), ring * line)
        weights(report, settings, (0.3, 0.7), ("ring", ring), ("line", line))
    if circle is not None and bar is not None:
        product(report, settings, targets.circle_bar(), circle * bar)
    if circle is not None and line is not None:
        weights(report, settings, (0.5, 0.5), ("circle", circle), ("line", line))


def _load(report: Report, name: str) -> Any:
    try:
        return load(name)
    except (ValueError, FileNotFoundError) as error:
        report.skip(f"network {name}", f"no weights: {str(error).splitlines()[0][:120]}")
        return None


def product(report: Report, settings: Settings, task: Task, target: Term) -> None:
    """ln MMD² of the composition of networks by SMC, Annealed and Reverse."""
    n = settings.size(4000, 500)
    what = f"networks, {task.name}"
    judge = metrics.Discrepancy(task.exact, references=settings.size(4, 2))
    floor = judge.floor(n, settings.size(20, 5))
    report.tell(what, "ln of the mean |MMD²| of exact pairs", metrics.log_mmd2(float(floor.abs().mean())))
    choices: dict[str, Sampler] = {
        "SMC": SMC(),
        "Annealed": Annealed(levels=settings.size(32, 8)),
        "Reverse": Reverse(),
    }
    found: dict[str, float] = {}
    for name, sampler in choices.items():
        values, errors, spent, masses = [], [], [], []
        for seed in settings.seeds:
            draw = sample(target, n, sampler=sampler, seed=seed, progress=False)
            assert isinstance(draw.x, Tensor)
            x = draw.x[torch.isfinite(draw.x).all(1)]
            values.append(judge(x) if len(x) == n else math.inf)
            spent.append(draw.info.evaluations)
            if task.truth is not None:
                masses.append(metrics.mode_error(task.truth, x))
            if draw.log_z is not None:
                errors.append(draw.log_z - task.log_z)
            report.point(
                what, name, seed=seed, mmd2=values[-1], evaluations=spent[-1], log_z_error=(errors or [None])[-1]
            )
        found[name] = metrics.log_mmd2(statistics.fmean(values))
        note = f"{statistics.fmean(spent):.0f} evaluations"
        if masses:
            note += f"; mode-mass error {statistics.fmean(masses):.3f}"
        if errors:
            note += f"; log Z error {statistics.fmean(errors):+.3f}"
        report.tell(what, f"ln MMD², {name}", found[name], note)
    gain = found["Reverse"] - min(found["SMC"], found["Annealed"])
    report.check(what, "nats closer than Reverse, better of SMC and Annealed", gain, "≥", 2.0)


def weights(report: Report, settings: Settings, shares: tuple[float, float], *members: tuple[str, Any]) -> None:
    """Member masses of a sum of two learned energies: as trained, with a planted constant, and calibrated."""
    n = settings.size(4000, 1000)
    closed = [targets.toy(name) for name, _ in members]
    task = targets.sum_task("", closed[0] * shares[0] + closed[1] * shares[1], list(zip(shares, closed, strict=True)))
    assert task.truth is not None
    what = "networks, " + " + ".join(f"{w:g} {name}" for w, (name, _) in zip(shares, members, strict=True))
    learned = [model for _, model in members]
    misled = [shifted(learned[0], 1.0), learned[1]]
    masses: dict[str, list[float]] = {}
    for seed in settings.seeds:
        size = settings.size(2000, 500)
        forms = {
            "as trained": learned,
            "a constant of 1 added to the first": misled,
            "the same after calibrate": [calibrate(model, n=size, seed=seed) for model in misled],
        }
        for label, terms in forms.items():
            draw = sample(shares[0] * terms[0] + shares[1] * terms[1], n, seed=seed, progress=False)
            assert isinstance(draw.x, Tensor)
            mass = float(metrics.responsibilities(task.truth, draw.x)[:, : task.sizes[0]].sum(1).mean())
            masses.setdefault(label, []).append(mass)
            report.point(what, label, seed=seed, mass=mass, truth=shares[0], log_z=draw.log_z)
        if seed == settings.seeds[0]:
            for (name, _), fixed in zip(members, forms["the same after calibrate"], strict=True):
                found = fixed.offset(None)
                report.tell(what, f"constant of {name} found by calibrate", found, f"± {fixed.log_z_se:.3f}")
    for label, values in masses.items():
        error = statistics.fmean(abs(v - shares[0]) for v in values)
        note = f"masses {', '.join(f'{v:.3f}' for v in values)}; truth {shares[0]:g}"
        if label == "the same after calibrate":
            report.check(what, f"mass of {members[0][0]}, mean |error|, {label}", error, "≤", 0.03, note)
        else:
            report.tell(what, f"mass of {members[0][0]}, mean |error|, {label}", error, note)


def shifted(model: Any, constant: float) -> Term:
    """The learned energy with another constant: score matching would not notice."""

    def energy(x: Tensor, sigma: Tensor) -> Tensor:
        return model._energy(x, sigma.clamp(min=model.sigma_range[0])) + constant

    return as_term(
        energy,
        kind="energy",
        event_shape=model.event_shape,
        path="noised",
        sigma_range=model.sigma_range,
        name="shifted",
    )
