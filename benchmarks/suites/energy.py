"""Energy models against a diffusion model of the same size and training budget, on two moons and 25 Gaussians.

Static energies trained by persistent contrastive divergence and by noise-contrastive estimation are sampled with SMC;
the score diffusion with its reverse process. Budget: every method's training evaluates the network at the same number
of rows, forward and backward, chains and noise draws included. Draws are compared with exact held-out ones, and log Z,
by SMC, with a grid. Distances below those of exact draws tell nothing, so both sides are held at the floor: the 99 %
quantile of the same mean over seeds with exact sets in place of draws.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC
from boltzmix.models import data
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_model import EnergyModel
from boltzmix.models.fit import fit
from boltzmix.models.nets import MLP, EnergyMLP
from boltzmix.models.objectives import ContrastiveDivergence, NoiseContrastive
from boltzmix.models.training.seeding import seeded

TASKS = {"two_moons": "two moons", "grid": "25 Gaussians"}
METHODS = {"diffusion": "score diffusion", "pcd": "persistent CD", "nce": "NCE"}
#: chains, kernel transitions in a training step, and share of the chains drawn anew; these and the learning rate were
#: chosen by held-out likelihood on training seeds 100 to 102, which no run of the suite uses by default
CHAINS, MOVES, FRESH = 512, 2, 0.3
#: SMC's particles for each draw that is kept: particles share ancestors, so that as many as draws are not independent
PARTICLES = 4
RATES = {"diffusion": 3e-3, "pcd": 6e-3, "nce": 3e-3}
_BATCH = 512
_HALF = 4.0


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 3,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the arguments. Seeds train the models."""
    sections = [(name, _section(name)) for name in TASKS]
    title = "Energy models against diffusion at equal size and budget"
    return run_sections("energy", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress)


def _section(name: str) -> Any:
    return lambda report, settings: compare(report, settings, name)


def rows_per_step(method: str) -> int:
    """Network rows, forward and backward, that one training step evaluates."""
    if method == "diffusion":
        return _BATCH
    if method == "nce":
        return 2 * _BATCH
    return (MOVES + 2) * CHAINS + _BATCH  # where the chains stand, their moves, the gradient at chains and data


def build(method: str, hidden: int) -> Any:
    """An untrained model; widths are chosen so that all have about the parameters of the diffusion's network."""
    if method == "diffusion":
        return Diffusion(MLP(2, hidden=hidden), (2,), sigma_data=0.7, sigma_range=(0.01, 10.0), noise=(-1.2, 1.8))
    objective = NoiseContrastive()
    if method == "pcd":
        objective = ContrastiveDivergence(capacity=CHAINS, steps=MOVES, reinitialize=FRESH)
    return EnergyModel(EnergyMLP(2, hidden=_equal_width(hidden)), (2,), objective=objective)


def _equal_width(hidden: int) -> int:
    goal = size(MLP(2, hidden=hidden))
    return min(range(8, 4 * hidden), key=lambda h: abs(3 * h * (h + 1) + 4 * h + 1 - goal))


def size(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def train(method: str, name: str, seed: int, rows: int, hidden: int) -> tuple[Any, float]:
    """A trained model and the seconds spent."""
    model = seeded(lambda: build(method, hidden), seed)
    steps = max(1, rows // rows_per_step(method))
    decay = min(0.999, 1 - 6 / max(steps, 12))
    options: dict[str, Any] = {"steps": steps, "batch_size": _BATCH, "lr": RATES[method], "ema": decay, "seed": seed}
    result = fit(model, getattr(data, name), **options, log_every=max(1, steps // 20), progress=False)
    return model.eval(), result.seconds


def compare(report: Report, settings: Settings, name: str) -> None:
    """The three methods on one data set: distance of draws to held-out data, log Z against the grid, pictures."""
    task, n = TASKS[name], settings.size(4000, 400)
    rows, hidden = settings.size(4_000_000, 60_000), settings.size(48, 16)
    exact = getattr(data, name)
    judge = metrics.Discrepancy(exact, references=settings.size(4, 2))
    top = floor_of_means(judge, exact, n, settings.size(60, 6), len(settings.seeds))
    what = f"mean over {len(settings.seeds)} exact sets of n = {n}, in place of draws"
    report.tell(task, "floor: ln of the 99 % quantile for exact draws", math.log(top), what)
    report.tell(task, "training budget", float(rows), "network rows, forward and backward, for every method")
    found: dict[str, list[float]] = {}
    densities: dict[str, Tensor] = {}
    for method, label in METHODS.items():
        values, errors, seconds = [], [], []
        for seed in settings.seeds:
            model, spent = train(method, name, seed, rows, hidden)
            point: dict[str, Any] = {"seed": seed, "seconds": spent}
            sampler = Reverse(steps=settings.size(100, 20)) if method == "diffusion" else SMC()
            particles = n if method == "diffusion" else PARTICLES * n
            draw = sample(model, particles, sampler=sampler, seed=seed, progress=False)
            assert isinstance(draw.x, Tensor)
            kept = draw.x[torch.randperm(particles, generator=torch.Generator().manual_seed(seed))[:n]]
            values.append(judge(kept))
            seconds.append(spent)
            point |= {"mmd2": values[-1], "evaluations": draw.info.evaluations}
            if method != "diffusion":
                log_z = grid_log_z(model)
                errors.append(draw.info.extra["raw_log_z"] - log_z)
                held_out = exact(20_000, torch.Generator().manual_seed(10_007))
                with torch.no_grad():
                    point["nll"] = float(model.energy(held_out).double().mean()) + log_z
                point |= {"log_z": log_z, "log_z_error": errors[-1]}
                if seed == settings.seeds[0]:
                    thorough = sample(model, n, sampler=AIS(), seed=seed, progress=False)
                    point["log_z_error_ais"] = thorough.info.extra.get("raw_log_z", math.nan) - log_z
            if seed == settings.seeds[0]:
                densities[label] = kept if method == "diffusion" else log_density(model)
            report.point(task, label, **point)
        found[method] = values
        note = "" if method == "diffusion" else f"{PARTICLES} particles for each of {n} draws; "
        note += f"{size(build(method, hidden))} parameters; {statistics.fmean(seconds):.0f} s of training; each "
        note += ", ".join(f"{metrics.log_mmd2(v):.2f}" for v in values)
        value = metrics.log_mmd2(statistics.fmean(values))
        if method == "diffusion":
            report.tell(task, f"ln MMD², of the mean over seeds, {label}", value, note)
            continue
        report.tell(task, f"ln MMD², of the mean over seeds, {label}", value, note)
        above = held(values, top) - held(found["diffusion"], top)
        report.check(task, f"ln MMD² above the diffusion's, {label}", above, "≤", 0.5, "both held at the floor")
        worst = max(errors, key=abs)
        report.check(task, f"log Z by SMC against the grid, worst |error|, {label}", abs(worst), "≤", 0.05)
        points = report.curves[task][label]
        report.tell(task, f"held-out −ln p, {label}", statistics.fmean(p["nll"] for p in points), "mean over seeds")
        if method == "nce":
            constant = max((p["log_z"] for p in points), key=abs)
            report.tell(task, "log Z that NCE left, worst", constant, "0 where its constant is exact")
    report.figures[name.replace("_", "-")] = lambda figure: picture(figure, task, exact, densities)


def floor_of_means(judge: metrics.Discrepancy, exact: metrics.Exact, n: int, sets: int, seeds: int) -> float:
    """What the mean over seeds would be, at its 99 % quantile, were the draws exact: the same figure on exact sets."""
    generator = torch.Generator().manual_seed(10_009)
    values = torch.tensor([judge(exact(n, generator)) for _ in range(sets)], dtype=torch.float64)
    chosen = torch.randint(sets, (10_000, seeds), generator=generator)
    return max(metrics.quantile(values[chosen].mean(1), 0.99), metrics.CLAMP)


def held(values: Sequence[float], floor: float) -> float:
    """ln of the mean distance, no less than the floor."""
    return math.log(max(statistics.fmean(values), floor))


def log_density(model: Any, count: int = 401) -> Tensor:
    """Log-density on a square grid, ``(count, count)``, normalised there."""
    axis = torch.linspace(-_HALF, _HALF, count)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logs = torch.cat([-model.energy(rows).double() for rows in points.split(1 << 15)])
    return (logs - logs.logsumexp(0) - 2 * math.log(2 * _HALF / (count - 1))).reshape(count, count)


def grid_log_z(model: Any, count: int = 801) -> float:
    """log Z by the midpoint rule."""
    axis = torch.linspace(-_HALF, _HALF, count)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logs = torch.cat([-model.energy(rows).double() for rows in points.split(1 << 15)])
    return float(logs.logsumexp(0)) + 2 * math.log(2 * _HALF / (count - 1))


def picture(figure: Any, task: str, exact: Any, densities: dict[str, Tensor]) -> None:
    """Held-out data, draws of the diffusion, and the energies' densities on the grid."""
    figure.set_size_inches(3.2 * (1 + len(densities)), 3.4)
    axes = figure.subplots(1, 1 + len(densities))
    panels = {f"{task}: data": exact(4000, torch.Generator().manual_seed(10_007)), **densities}
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        if values.shape[-1] == 2:
            axis.hist2d(values[:, 0].numpy(), values[:, 1].numpy(), bins=120, range=[[-2, 2], [-2, 2]], cmap="magma")
        else:
            extent = (-_HALF, _HALF, -_HALF, _HALF)
            axis.imshow(values.exp().mT.numpy(), origin="lower", extent=extent, cmap="magma")
        axis.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=10)
