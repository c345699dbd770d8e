"""Data made here: episodes of a waypoint controller, written to a file.

An episode begins at a random point, at rest or moving, and follows the shortest path of a slightly larger ball to a
random goal, where it rests. Speeds, margins and gains differ from episode to episode, so that the data are diverse, and
direct. Episode k draws from its own random stream ``(seed, k)``, in a simulator that is set back completely: files
depend on their settings alone, whether the run that made them was interrupted or not.
"""

import hashlib
import io
import json
import math
import os
import time
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzmix.compose.draw import write_atomically
from boltzmix.planners.environments.base import Environment
from boltzmix.planners.environments.making import make
from boltzmix.planners.environments.waypoints import WaypointController

if TYPE_CHECKING:
    import numpy as np

STEPS = {"pointmaze-umaze": 200_000, "pointmaze-medium": 400_000, "pointmaze-large": 800_000}
"""How many steps the recipes of the same names want."""

DEFAULT_STEPS = 200_000

FORMAT = 1  # raised when the same settings give other data


@dataclass(frozen=True)
class Driving:
    """How episodes differ: each value is drawn uniformly between two numbers. Lengths are in radii of the ball.

    Args:
        speed: at most, m/s; None takes the environment's own ``cruise``.
        margin: between the ball and corners, beyond its radius; drawn among ``margins`` values.
        margins: how many.
        lookahead: of the controller.
        stiffness: of its velocity control, 1/s.
        approach: speed over distance near the goal, 1/s.
        rest: steps at the goal before the episode ends.
        moving: the share of episodes that begin with a velocity.
        start_speed: standard deviation of that velocity, per axis, m/s.
        anywhere: the share of starts and goals that are uniform over free space; the others are drawn by the
            environment.
        longest: steps after which an episode that has not arrived is thrown away and counted.
    """

    speed: tuple[float, float] | None = None
    margin: tuple[float, float] = (0.3, 0.9)
    margins: int = 4
    lookahead: tuple[float, float] = (1.2, 1.8)
    stiffness: tuple[float, float] = (12.0, 18.0)
    approach: tuple[float, float] = (4.0, 6.0)
    rest: tuple[int, int] = (10, 30)
    moving: float = 0.5
    start_speed: float = 0.7
    anywhere: float = 0.5
    longest: int = 5000


def collect(
    environment: str | Environment,
    steps: int,
    *,
    seed: int,
    path: str | os.PathLike[str] | None = None,
    driving: Driving | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
    save_every: float = 20.0,
) -> Path:
    """Write whole episodes of at least ``steps`` steps together to an npz file; the file's path.

    The file holds ``observations`` (T, S), ``actions`` (T, 2), ``goals`` (T, 2), ``terminals`` (T,), true at the last
    step of each episode, ``settings`` (JSON) and ``hash``, which tells the settings apart. A file with the same hash is
    left as it is; a run that was killed goes on from what it last saved beside the file; both end in the same bytes.

    Args:
        environment: a name, as for :func:`boltzmix.planners.environments.make`, or an environment.
        steps: at least this many.
        seed: of everything random.
        path: the file; default ``runs/data/NAME.npz``.
        driving: how the controller drives.
        progress: show a bar; None shows one on a terminal.
        overwrite: replace a file that was made with other settings, which is an error otherwise.
        save_every: seconds between saves of unfinished work.

    Raises:
        ValueError: fewer than 1 step; a file with other settings is there already.
        RuntimeError: more than half of 20 or more episodes did not reach their goal.
    """
    from tqdm import tqdm

    if steps < 1:
        raise ValueError(f"steps is at least 1, got {steps}")
    environment = make(environment) if isinstance(environment, str) else environment
    driving = _resolved(driving or Driving(), environment)
    file = Path("runs/data") / f"{environment.name}.npz" if path is None else Path(path)
    settings = _settings(environment, steps, seed, driving)
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    if file.exists():
        found = _stored_key(file)
        if found == key:
            return file
        if not overwrite:
            raise ValueError(
                f"{file} holds other data (hash {found}, wanted {key}): pass overwrite=True (--overwrite), "
                "or another path"
            )
    partial = file.with_name(f"{file.name}.partial")
    episodes, index, failed = _resume(partial, key)
    done = sum(len(actions) for _, actions, _ in episodes)
    saved = time.monotonic()
    hidden = None if progress is None else not progress
    with tqdm(total=steps, initial=min(done, steps), desc=environment.name, unit="step", disable=hidden) as bar:
        while done < steps:
            made = episode(environment, seed, index, driving)
            index += 1
            if made is None:
                failed += 1
                if index >= 20 and 2 * failed > index:
                    raise RuntimeError(f"{failed} of {index} episodes of {environment.name} did not reach their goal")
                continue
            episodes.append(made)
            done += len(made[1])
            bar.update(min(len(made[1]), steps - bar.n))
            if time.monotonic() - saved > save_every:
                write_atomically(partial, _packed(episodes, settings, key, index, failed))
                saved = time.monotonic()
    write_atomically(file, _packed(episodes, settings, key, index, failed))
    with suppress(FileNotFoundError):
        partial.unlink()
    return file


def episode(
    environment: Environment, seed: int, index: int, driving: Driving
) -> "tuple[np.ndarray, np.ndarray, np.ndarray] | None":
    """Observations ``(n, S)``, actions ``(n, 2)`` and goals ``(n, 2)`` of one episode; None if it did not arrive."""
    import numpy as np

    driving = _resolved(driving, environment)
    rng = np.random.default_rng([seed, index])
    environment._generator = rng
    unit = environment.radius
    choice = int(rng.integers(driving.margins))
    share = choice / max(1, driving.margins - 1)
    margin = unit * (driving.margin[0] + share * (driving.margin[1] - driving.margin[0]))
    controls = {name: float(rng.uniform(*getattr(driving, name))) for name in ("speed", "stiffness", "approach")}
    lookahead = max(unit * float(rng.uniform(*driving.lookahead)), 1.5 * environment.dt * controls["speed"])
    rest = int(rng.integers(driving.rest[0], driving.rest[1] + 1))
    start = np.zeros(len(environment.state_names))
    start[:2], goal = _point(environment, rng, driving), _point(environment, rng, driving)
    if len(start) == 4 and rng.random() < driving.moving:
        start[2:] = driving.start_speed * rng.standard_normal(2)
    length, path = environment.shortest_path(start[:2], goal, unit + margin)
    if not math.isfinite(length):
        length, path = environment.shortest_path(start[:2], goal)
    if not math.isfinite(length):
        return None  # no way between these two
    controller = WaypointController(path, lookahead=lookahead, spacing=0.2 * unit, **controls)
    environment.reset(start, goal)
    observations, actions, resting = [environment.state], [], 0
    while resting < rest:
        if len(actions) >= driving.longest:
            return None
        action = controller.act(environment, observations[-1])
        environment.step(action)
        observations.append(environment.state)
        actions.append(action)
        gap, speed = math.dist(observations[-1][:2], goal), float(np.linalg.norm(observations[-1][2:]))
        resting = resting + 1 if gap < 0.2 * unit and speed < 0.5 * unit else 0
    actions.append(np.zeros(2))  # of the last state, which stays
    goals = np.broadcast_to(np.array(goal, dtype=np.float32), (len(actions), 2))
    return np.asarray(observations, dtype=np.float32), np.asarray(actions, dtype=np.float32), goals


def _resolved(driving: Driving, environment: Environment) -> Driving:
    return replace(driving, speed=environment.cruise) if driving.speed is None else driving


def _point(environment: Environment, rng: Any, driving: Driving) -> tuple[float, float]:
    if rng.random() >= driving.anywhere:
        return environment.sample()
    low, high = zip(*environment.bounds, strict=True)
    for _ in range(10_000):
        x, y = (float(value) for value in rng.uniform(low, high))
        if environment.clearance((x, y)) >= 1.2 * environment.radius:
            return x, y
    raise ValueError(f"{environment.name} has hardly any free space")


def _settings(environment: Environment, steps: int, seed: int, driving: Driving) -> str:
    simulator: dict[str, str] = {}
    for package in ("mujoco", "gymnasium-robotics", "ogbench") if environment.env is not None else ():
        with suppress(PackageNotFoundError):
            simulator[package] = version(package)
    described = {
        "format": FORMAT,
        "environment": environment.name,
        "world": environment.description(),
        "state": environment.state_names,
        "action": environment.action_names,
        "dt": environment.dt,
        "steps": steps,
        "seed": seed,
        "driving": asdict(driving),
        "simulator": simulator,
    }
    return json.dumps(described, sort_keys=True)


def _packed(episodes: list[Any], settings: str, key: str, index: int, failed: int) -> bytes:
    import numpy as np

    columns = [np.concatenate(parts) for parts in zip(*episodes, strict=True)]
    terminals = np.zeros(len(columns[0]), dtype=bool)
    terminals[np.cumsum([len(actions) for _, actions, _ in episodes]) - 1] = True
    buffer = io.BytesIO()
    np.savez(
        buffer,
        observations=columns[0],
        actions=columns[1],
        goals=columns[2],
        terminals=terminals,
        settings=np.array(settings),
        hash=np.array(key),
        drawn=np.array([index, failed]),  # episodes that were begun, and those thrown away
    )
    return buffer.getvalue()


def _stored_key(file: Path) -> str:
    import numpy as np

    if not zipfile.is_zipfile(file):
        return "none"
    with np.load(file, allow_pickle=False) as stored:
        return str(stored["hash"]) if "hash" in stored else "none"


def _resume(partial: Path, key: str) -> tuple[list[Any], int, int]:
    import numpy as np

    if not partial.exists():
        return [], 0, 0
    with np.load(partial, allow_pickle=False) as stored:
        if str(stored["hash"]) != key:  # of other settings: begin anew
            return [], 0, 0
        cuts = np.flatnonzero(stored["terminals"])[:-1] + 1
        parts = [np.split(stored[name], cuts) for name in ("observations", "actions", "goals")]
        index, failed = (int(value) for value in stored["drawn"])
    return list(zip(*parts, strict=True)), index, failed
