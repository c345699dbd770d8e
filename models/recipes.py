"""The committed recipes behind the weights that ship: ``python -m boltzmix train NAME``.

Each recipe is an architecture, a stream or set of data and the settings of :func:`boltzmix.models.fit`. The four 2-D
models never see each other's data: their products are compositions of independently trained networks.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.models import data
from boltzmix.models.fit import Data, FitResult, fit
from boltzmix.models.load import build, save
from boltzmix.models.training.seeding import seeded


@dataclass(frozen=True)
class Recipe:
    """How one set of weights is made.

    Attributes:
        spec: the architecture, as :func:`boltzmix.models.load.build` takes it.
        settings: arguments of :func:`boltzmix.models.fit`.
        data: makes what ``fit`` takes as data.
        judge: figures about the trained model, for the JSON beside the weights.
        shipped: whether the weights come with the package; others are made when they are needed.
    """

    spec: dict[str, Any]
    settings: dict[str, Any]
    data: Callable[[], Data]
    judge: Callable[[Any], dict[str, Any]] = field(default=lambda model: {})
    shipped: bool = True


def _toy(name: str, sigma_data: float, sigma_detail: float, low: float) -> Recipe:
    arguments = {
        "event_shape": [2],
        "sigma_data": sigma_data,
        "sigma_detail": sigma_detail,
        "sigma_range": [low, 10.0],
        "noise": [-1.2, 1.8],
        "level_weight": 0.5,
        "calibrated": True,  # judged: the integral of exp(−E) on a grid, "log_z_on_grid" beside the weights
    }
    net = {"class": "MLP", "arguments": {"dim": 2, "hidden": 128, "depth": 3, "out": 1}}
    return Recipe(
        {"class": "EnergyDiffusion", "arguments": arguments, "net": net},
        {"steps": 8_000, "batch_size": 1024, "lr": 2e-3, "ema": 0.999},
        lambda: getattr(data, name),
        lambda model: _judge_toy(model, getattr(data, name)),
    )


def _judge_toy(model: Any, draw: Callable[[int, torch.Generator], Tensor]) -> dict[str, Any]:
    """The integral of exp(−E) on a grid: log Z is 0 when the energy is −log p."""
    axis = torch.linspace(-3, 3, 1201)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        energy = torch.cat([model.energy(rows) for rows in grid.split(1 << 17)])
    cell = 2 * math.log(6 / 1200)
    log_z = torch.logsumexp(-energy.double(), 0) + cell
    x = draw(20_000, torch.Generator().manual_seed(1))
    x = x + model.sigma_range[0] * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return {"log_z_on_grid": float(log_z), "held_out_nll": float(model.energy(x).double().mean() + log_z)}


def _digits() -> Recipe:
    arguments = {
        "event_shape": [1, 8, 8],
        "num_classes": 10,
        "sigma_data": 0.55,
        "sigma_detail": 0.05,
        "sigma_range": [0.03, 20.0],
        "noise": [-0.8, 1.3],
        "dropout": 0.15,
        "level_weight": 0.05,
    }
    net = {"class": "UNet", "arguments": {"channels": 1, "hidden": [32, 64], "num_classes": 10}}
    return Recipe(
        {"class": "EnergyDiffusion", "arguments": arguments, "net": net},
        {"steps": 6_000, "batch_size": 128, "lr": 2e-3, "ema": 0.999},
        lambda: data.digits("train"),
        _judge_digits,
    )


def _judge_digits(model: Any) -> dict[str, Any]:
    """Loss on held-out digits beside that on training digits, and Bayes' rule with the class energies."""
    (train, train_label), (test, test_label) = data.digits("train"), data.digits("test")
    figures: dict[str, Any] = {}
    for split, x, label in (("train", train[:359], train_label[:359]), ("held_out", test, test_label)):
        batch = x.repeat(8, 1, 1, 1), label.repeat(8)
        figures[f"{split}_loss"] = float(model.loss(batch, torch.Generator().manual_seed(0)).detach())
    for sigma in (0.03, 0.2):
        noisy = test + sigma * torch.randn(test.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            energies = torch.stack([model.given(label=k).energy(noisy, sigma) for k in range(10)])
        right = (energies.argmin(0) == test_label).float().mean()
        figures[f"held_out_accuracy_by_energy_at_{sigma:g}"] = float(right)
    return figures


def _classifier() -> Recipe:
    return Recipe(
        # A judge, not a posterior: it learns from moved and noised copies, and from smoothed labels.
        {"class": "Classifier", "arguments": {"shift": 1, "noise": 0.3, "smoothing": 0.05}},
        {"steps": 2_000, "batch_size": 128, "lr": 3e-3, "ema": 0.995, "weight_decay": 0.01},
        lambda: data.digits("train"),
        _judge_classifier,
    )


def _judge_classifier(model: Any) -> dict[str, Any]:
    x, label = data.digits("test")
    right = model.predict(x) == label
    by_class = [float(right[label == k].float().mean()) for k in range(10)]
    return {"held_out_images": len(x), "held_out_accuracy": float(right.float().mean()), "by_class": by_class}


def _scenes(
    scenes: data.Scenes,
    net: Mapping[str, Any],
    settings: Mapping[str, Any],
    whole: bool = False,
    noise: tuple[float, float] = (0.2, 1.5),
    dropout: float = 0.15,
) -> Recipe:
    """Scenes told by the description of one object, or (``whole``) by everything that they contain."""
    counts = {"shape": list(data.scenes.SHAPES), "color": list(data.scenes.COLORS)}
    place = {axis: [scenes.margin, scenes.size - scenes.margin] for axis in ("x", "y")}
    if whole:
        fields = {f"{key}_{i + 1}": value for i in range(scenes.most) for key, value in (counts | place).items()}
        together = [[f"{key}_{i + 1}" for key in (*counts, *place)] for i in range(scenes.most)]
    else:
        others = {f"other_{key}": value for key, value in counts.items()}
        fields = {**counts, **place, "relation": list(data.scenes.RELATIONS), **others}
        together = [["x", "y"]]
    arguments = {
        "event_shape": [3, scenes.size, scenes.size],
        "fields": fields,
        "together": together,
        "sigma_data": 0.33,
        "sigma_range": [0.02, 80.0],
        "noise": list(noise),
        "dropout": dropout,
    }
    columns = {
        "size": scenes.size,
        "attributes": [len(values) for values in counts.values()],
        "objects": scenes.most if whole else 1,
        "extra": [] if whole else [len(data.scenes.RELATIONS), *(len(values) for values in counts.values())],
    }
    net = {**net, "arguments": {**net["arguments"], **columns}}
    return Recipe(
        {"class": "Diffusion", "arguments": arguments, "net": net},
        {"batch_size": 64, "lr": 1.5e-3, "ema": 0.9995, **settings},
        lambda: scenes.full_stream if whole else scenes.stream,
        lambda model: _judge_scenes(model, scenes.full_stream if whole else scenes.stream),
    )


def _patches(patch: int, hidden: int) -> dict[str, Any]:
    return {"class": "SceneNet", "arguments": {"patch": patch, "hidden": hidden}}


def _palettes() -> Recipe:
    """Pictures told by their palette: flow matching on [0, 1], where the models of scenes are EDM on [−1, 1]."""
    arguments = {
        "event_shape": [3, 16, 16],
        "fields": {"palette": list(data.PALETTES)},
        "sigma_data": 0.2,
        "dropout": 0.25,
    }
    net = {"size": 16, "patch": 2, "hidden": 32, "attributes": [], "objects": 0, "extra": [len(data.PALETTES)]}
    return Recipe(
        {"class": "FlowMatching", "arguments": arguments, "net": {"class": "SceneNet", "arguments": net}},
        {"steps": 4_000, "batch_size": 64, "lr": 2e-3, "ema": 0.998},
        lambda: data.marks,
        lambda model: _judge_scenes(model, data.marks),
    )


def _judge_scenes(model: Any, stream: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Loss on fresh scenes with and without their descriptions."""
    x, rows = stream(1024, torch.Generator().manual_seed(1))
    told = [
        float(model.loss(b, torch.Generator().manual_seed(2)).detach())
        for b in zip(x.split(128), rows.split(128), strict=True)
    ]
    untold = [float(model.loss(b, torch.Generator().manual_seed(2)).detach()) for b in x.split(128)]
    return {"loss_on_fresh_scenes": sum(told) / len(told), "loss_without_descriptions": sum(untold) / len(untold)}


def _trajectories(
    trajectory: Mapping[str, Any],
    fields: Mapping[str, Any],
    source: Callable[[], Data],
    net: dict[str, Any],
    settings: Mapping[str, Any],
    *,
    shipped: bool = True,
    **arguments: Any,
) -> Recipe:
    """Trajectories, told which of their coordinates are known."""
    dim = len(trajectory["state"]) + len(trajectory["action"])
    about = {
        "event_shape": [trajectory["horizon"], dim],
        "trajectory": dict(trajectory),
        "fields": dict(fields),
        "sigma_range": [0.01, 20.0],
        **arguments,
    }
    net = {**net, "arguments": {"dim": dim, **net["arguments"], "fields": dict(fields)}}
    return Recipe(
        {"class": "TrajectoryDiffusion", "arguments": about, "net": net},
        {"batch_size": 128, "lr": 2e-3, "ema": 0.997, **settings},
        source,
        lambda model: _judge_trajectories(model, source()),
        shipped,
    )


def _judge_trajectories(model: Any, stream: Any) -> dict[str, Any]:
    """Loss on fresh trajectories of which nothing is known, or the two ends."""
    batch = stream(1024, torch.Generator().manual_seed(1))
    figures, kept = {}, model.patterns
    for what in ("none", "start and goal"):
        model.patterns = type(kept)(model.trajectory, {what: 1.0})
        losses = [
            float(model.loss(x, torch.Generator().manual_seed(2)).detach()) for x in batch[0].split(128)
        ]  # fmt: skip
        figures[f"loss_with_{what.replace(' ', '_')}_known"] = sum(losses) / len(losses)
    model.patterns = kept
    return figures


def _maze(
    size: str,
    half: Sequence[float],
    horizon: int,
    stride: int,
    scale: float,
    steps: int,
    *,
    net: dict[str, Any],
    shipped: bool = True,
) -> Recipe:
    """Ways through one of gymnasium-robotics' mazes, from the file that ``collect`` writes.

    Places count most in the loss, and noise levels at which a way is chosen: what is left at small ones is soon learnt.
    """
    trajectory = {
        "horizon": horizon,
        "state": ["x", "y", "vx", "vy"],
        "action": ["ax", "ay"],
        "dt": round(0.01 * stride, 6),
        "stride": stride,
        "loc": [0.0] * 6,
        "scale": [scale, scale, 0.8, 0.8, 0.08, 0.08],
        "position": ["x", "y"],
        "bounds": [[-extent, extent] for extent in half],
    }
    shares = {"none": 0.08, "start": 0.08, "goal": 0.02, "start and goal": 0.62, "waypoints": 0.1, "prefix": 0.1}
    name = f"pointmaze-{size}"
    return _trajectories(
        trajectory,
        data.windows.FIELDS,
        lambda: data.EpisodeWindows(f"runs/data/{name}.npz", trajectory, collect=name),
        {"class": "TrajectoryDiT", "arguments": {"width": 128, "depth": 4, "heads": 4, "embedding": 32, **net}},
        {"steps": steps, "precision": "bf16"},
        shipped=shipped,
        dropout=0.6,
        patterns=shares,
        lengths=[horizon // 4, horizon // 2],
        crops=0.1,
        importance=[4.0, 4.0, 1.0, 1.0, 0.3, 0.3],
        noise=[0.3, 1.3],
    )


_FINE = {"patch": 2, "waves": [2.0, 4.0, 8.0]}
_COARSE = {"patch": 4, "waves": [2.0, 4.0, 8.0, 16.0]}  # of long trajectories


RECIPES: dict[str, Recipe] = {
    "ring": _toy("ring", 0.7, 0.15, 0.01),
    "line": _toy("line", 0.5, 0.25, 0.01),
    "circle": _toy("circle", 0.35, 0.03, 0.005),
    "bar": _toy("bar", 0.4, 0.02, 0.005),
    "digits": _digits(),
    "digits-classifier": _classifier(),
    "scenes": _scenes(
        data.Scenes(),
        {"class": "SceneUNet", "arguments": {"patch": 2, "hidden": [64, 96], "blocks": [1, 2]}},
        {"steps": 12_000, "lr": 1.3e-3, "optimizer": "muon", "precision": "bf16", "accumulate": 2},
        noise=(0.3, 1.3),
        dropout=0.25,
    ),
    "scenes16": _scenes(data.Scenes.small(), _patches(2, 48), {"steps": 12_000}),
    "scenes-whole": _scenes(data.Scenes(), _patches(4, 96), {"steps": 8_000}, whole=True),
    "palettes": _palettes(),
    "obstacles": _trajectories(
        data.obstacle_world.TRAJECTORY,
        data.obstacle_world.FIELDS,
        lambda: data.obstacles,
        {"class": "TrajectoryDiT", "arguments": {"patch": 2, "width": 112, "depth": 4, "heads": 4, "embedding": 32}},
        {"steps": 4_000, "precision": "bf16"},
        dropout=0.3,
        lengths=[8, 16],
        crops=0.1,
        importance=[2.0, 2.0, 1.0, 1.0, 0.5, 0.5],
        noise=[0.0, 1.3],
    ),
    "pointmaze-umaze": _maze("umaze", (1.5, 1.5), 32, 11, 0.87, 4_000, net=_FINE),
    "pointmaze-medium": _maze("medium", (3.0, 3.0), 64, 9, 1.7, 4_500, net=_COARSE, shipped=False),
    "pointmaze-large": _maze("large", (5.0, 3.5), 80, 12, 2.2, 12_000, net=_COARSE, shipped=False),
}
NAMES = tuple(RECIPES)
SHIPPED = tuple(name for name, recipe in RECIPES.items() if recipe.shipped)


def _mean(source: Any, dim: int, seed: int) -> Tensor:
    """The mean picture, or point, at which a model is centred."""
    rows = min(100_000, 20_000_000 // dim)
    sample: Any = source(rows, torch.Generator().manual_seed(seed)) if callable(source) else source
    return (sample if isinstance(sample, Tensor) else sample[0]).mean(0)


def thin(history: list[dict[str, float]], most: int = 20) -> list[list[float]]:
    """At most ``most`` pairs (step, loss), evenly spaced, the last included: the training curve for the JSON."""
    every = max(1, math.ceil(len(history) / most))
    kept = history[::-1][::every][::-1]
    return [[record["step"], round(record["loss"], 5)] for record in kept]


def train(
    name: str,
    out: str | os.PathLike[str] = "runs/weights",
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: bool = True,
) -> FitResult:
    """Train one recipe and write ``OUT/NAME.safetensors`` and ``OUT/NAME.json``.

    Args:
        name: one of :data:`NAMES`.
        out: directory; ``load(name, out)`` reads it.
        steps: fewer or more steps than the recipe's.
        seed: seeds the initial weights, the data order and the noise.
        progress: as in :func:`boltzmix.models.fit`.
        checkpoint: keep ``OUT/NAME.checkpoint`` while training, so that a killed run resumes exactly.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(NAMES)}")
    recipe, folder = RECIPES[name], Path(out)
    settings = {**recipe.settings, "seed": seed, **({} if steps is None else {"steps": steps})}
    source: Any = recipe.data()
    model: Any = seeded(lambda: build(recipe.spec), seed)
    if hasattr(getattr(model, "core", None), "loc") and not hasattr(model, "trajectory"):  # those come normalised
        model.core.loc.copy_(_mean(source, model.core.loc.numel(), seed))
    partial = folder / f"{name}.checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    result = fit(
        model,
        source,
        **settings,
        checkpoint=partial if checkpoint else None,
        metrics=folder / f"{name}.jsonl",
        log_every=100,
        progress=progress,
    )
    model.eval()
    command = f"python -m boltzmix train {name}"
    if steps is not None:
        command += f" --steps {steps}"
    if seed:
        command += f" --seed {seed}"
    metrics = {
        "steps": result.steps,
        "loss": result.loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(result.seconds, 1),
        **recipe.judge(model),
    }
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process writes
        return result
    save(
        model,
        name,
        folder,
        recipe.spec,
        command=command,
        seed=seed,
        settings=settings,
        metrics=metrics,
        history=thin(result.history),
        torch=torch.__version__,
    )
    partial.unlink(missing_ok=True)
    return result
