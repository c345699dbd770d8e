"""What ``python -m boltzmix plan`` does: look at the problem, plan, say what came out, write a picture and a video."""

import argparse
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzmix.benchmarks.planning.maps import drawn
from boltzmix.benchmarks.planning.options import PRIORS
from boltzmix.benchmarks.planning.priors import prior_of
from boltzmix.benchmarks.planning.problems import clearance
from boltzmix.compose.draw import write_atomically
from boltzmix.compose.term import Term
from boltzmix.models.versions import versions


def run(arguments: argparse.Namespace) -> int:
    """The command; its exit code.

    Raises:
        ValueError, TypeError, ImportError, OSError: mistakes of the user, which the caller shows.
    """
    from boltzmix.planners import Planner, environments, obstacles

    if arguments.env not in PRIORS:
        raise ValueError(f"no environment is called {arguments.env!r}; --env is one of {', '.join(PRIORS)}")
    if arguments.n < 1:
        raise ValueError(f"-n is a positive number of plans, got {arguments.n}")
    if arguments.json is not None and not arguments.json.endswith(".json"):
        raise ValueError(f"--json writes .json, got {arguments.json}")
    avoid = tuple(obstacles.parse(text) for text in arguments.avoid)
    if arguments.env == "obstacles":
        environment = environments.ObstacleWorld()  # empty: what is in it, --avoid says
    else:
        environment = environments.make(arguments.env)
    if arguments.list:
        print(listing(arguments.env, environment))
        return 0
    if arguments.start is None or arguments.goal is None:
        raise ValueError("say both --start X,Y and --goal X,Y; --list shows where they may lie")
    start, goal = point("--start", arguments.start), point("--goal", arguments.goal)
    for name, position in (("--start", start), ("--goal", goal)):
        check_position(name, position, environment)
    prior = prior_of(arguments.env) if arguments.prior is None else own_prior(arguments.prior)
    obstacles_known = (*environment.obstacles, *avoid)
    planner = Planner(prior, obstacles=obstacles_known, radius=environment.radius, bounds=environment.bounds)
    result = planner.plan(
        at_rest(start, planner.space), goal, n=arguments.n, horizon=arguments.horizon, budget_ms=arguments.budget_ms,
        seed=arguments.seed,
    )  # fmt: skip
    print(told(arguments, result, obstacles_known, environment.radius))
    folder = Path(arguments.out) if arguments.out else Path("runs/plan") / datetime.now().strftime("%Y%m%d-%H%M%S")
    for path in written(result, folder, arguments.video):
        print(f"written to {path}")
    if arguments.json is not None:
        path = write_atomically(arguments.json, (as_json(arguments, result) + "\n").encode())
        print(f"written to {path}")
    return 0 if result.status == "feasible" else 1


def point(name: str, text: str) -> np.ndarray:
    """Two finite numbers from ``"x,y"``.

    Example:
        >>> point("--start", "1, -0.5")
        array([ 1. , -0.5])
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} is two finite numbers X,Y, as in {name} 1,-0.5; got {text!r}")
    return np.asarray(values)


def check_position(name: str, position: np.ndarray, environment: Any) -> None:
    """Refuse points outside the world or in a wall; what is wrong with those in obstacles is the result's to say."""
    x, y = (float(v) for v in position)
    (x_low, x_high), (y_low, y_high) = environment.bounds
    if not (x_low <= x <= x_high and y_low <= y <= y_high):
        raise ValueError(
            f"{name} {x:g},{y:g} lies outside the world, x {x_low:g} … {x_high:g} and y {y_low:g} … {y_high:g}"
        )
    room = float(environment.clearance((x, y)))
    if room < environment.radius:
        raise ValueError(
            f"{name} {x:g},{y:g} lies {'in a wall' if room <= 0 else f'{room:.3g} from a wall'}, and the body has a "
            f"radius of {environment.radius:g}; --list shows where there is room"
        )


def own_prior(path: str) -> Term:
    """The prior of a file of weights."""
    from boltzmix.models.load import load

    file = Path(path)
    if file.suffix != ".safetensors" or not file.exists():
        raise ValueError(f"--prior is a file .safetensors of `python -m boltzmix train`, with its .json; got {path}")
    return load(file.stem, file.parent)


def at_rest(position: np.ndarray, space: Any) -> np.ndarray:
    """A state at ``position`` with every other coordinate (velocities) zero."""
    state = np.zeros(len(space.state))
    state[[space.state.index(name) for name in space.position]] = position
    return state


def listing(name: str, environment: Any) -> str:
    """Bounds, walls and radius; for mazes a map."""
    (x_low, x_high), (y_low, y_high) = environment.bounds
    lines = [
        f"{name}: x {x_low:g} … {x_high:g}, y {y_low:g} … {y_high:g}; a body of radius {environment.radius:g}, "
        f"{len(environment.obstacles)} walls, {1e3 * environment.dt:g} ms a step",
    ]
    if environment.layout is not None:
        lines += ["", *drawn(environment.layout)]
    return "\n".join(lines)


def told(arguments: argparse.Namespace, result: Any, obstacles: tuple[Any, ...], radius: float) -> str:
    """The result in words: what, how good, what it cost, and which terms it breaks where there is no plan."""
    where = f"{arguments.env}: from {arguments.start} to {arguments.goal}"
    if arguments.avoid:
        where += f", avoiding {', '.join(arguments.avoid)}"
    lines = [where, result.summary()]
    if len(result):
        best = np.asarray(result.best)[:, result.space.columns(result.space.position)]
        if obstacles:
            room = _dense(obstacles, best, result.space.dt * (len(best) - 1)) - radius
            lines.append(f"  clearance of the body along it: {room:.3g}")
        for name, values in result.violations.items():
            worst = float(np.asarray(values)[0])
            lines.append(f"  {name}: " + ("kept" if worst <= 0 else f"violated by {worst:.3g}"))
    lines.append(f"  seed {result.seed}")
    return "\n".join(lines)


def _dense(obstacles: tuple[Any, ...], path: np.ndarray, seconds: float) -> float:
    fine = np.linspace(0, len(path) - 1, 8 * (len(path) - 1) + 1)
    whole = np.floor(fine).astype(int).clip(max=len(path) - 2)
    points = path[whole] + (fine - whole)[:, None] * (path[whole + 1] - path[whole])
    return float(clearance(obstacles, points, np.linspace(0, seconds, len(fine))).min())


def written(result: Any, folder: Path, video: str) -> list[Path]:
    """The picture, and the video where there is a plan."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "plan.png"
    result.plot(picture)
    if video == "none" or not len(result):
        return [picture]
    film = folder / f"plan.{video}"
    result.animate(film)
    return [picture, film]


def as_json(arguments: argparse.Namespace, result: Any) -> str:
    """Everything as JSON; numbers that are not finite are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, torch.Tensor):
            return plain(value.detach().cpu().numpy())
        if isinstance(value, np.ndarray):
            return plain(value.tolist())
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            return plain(value.item())
        return value if not isinstance(value, float) or math.isfinite(value) else None

    keys = ("status", "reasons", "feasible", "energies", "violations", "evaluations", "seconds", "seed", "trajectories")
    asked = {k: getattr(arguments, k) for k in ("env", "start", "goal", "avoid", "n", "horizon", "budget_ms", "seed")}
    content = {"asked": asked, **{k: getattr(result, k) for k in keys}, "versions": versions()}
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
