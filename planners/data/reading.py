"""Readers of files in the layouts of other libraries; all of them return :class:`~.trajectories.Trajectories`.

Nothing is downloaded and nothing is unpickled. What a file lacks, or holds in another shape, is an error that names the
file, what was looked for and what is there; values that are not finite are counted and never dropped.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.planners.data.trajectories import Trajectories, ends_of


def read_npz(path: str | os.PathLike[str]) -> Trajectories:
    """An npz with ``observations`` (T, S), ``actions`` (T, A) and ``terminals`` (T,), and perhaps ``goals`` (T, G).

    What :func:`~.collecting.collect` writes; its settings tell the names of the columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an array that is missing or has another shape; values that are not finite.
    """
    file = _existing(path)
    arrays = _npz(file, ("observations", "actions", "terminals"))
    settings = json.loads(str(arrays["settings"])) if "settings" in arrays else {}
    return _made(
        file,
        arrays["observations"],
        arrays["actions"],
        flags=arrays["terminals"],
        goals=arrays.get("goals"),
        state_names=tuple(settings.get("state", ())),
        action_names=tuple(settings.get("action", ())),
        settings=settings,
    )


def read_ogbench(path: str | os.PathLike[str]) -> Trajectories:
    """A dataset of ogbench: an npz with ``observations``, ``actions`` and ``terminals``.

    The file's layout is compact: an episode of n transitions has n + 1 rows, and the last row, whose ``terminals`` is
    1, is a state only; the action beside it belongs to no transition, and is set to 0 here.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an array that is missing or has another shape; values that are not finite; no row that ends an
            episode.

    Source: S. Park, K. Frans, B. Eysenbach, S. Levine (2025), "OGBench: Benchmarking Offline Goal-Conditioned RL".
    """
    file = _existing(path)
    arrays = _npz(file, ("observations", "actions", "terminals"))
    flags = arrays["terminals"]
    if not bool((flags > 0).any()):
        raise ValueError(f"{file}: no row of terminals is 1, where ogbench marks the last state of each episode")
    data = _made(file, arrays["observations"], arrays["actions"], flags=flags, settings={"source": "ogbench"})
    actions = data.actions.clone()
    actions[data.ends[:-1] - 1] = 0.0
    if bool(flags[-1] > 0):
        actions[-1] = 0.0
    return Trajectories(data.observations, actions, data.ends, settings=data.settings)


def read_minari(
    path: str | os.PathLike[str], *, observation: str = "observation", goal: str = "desired_goal"
) -> Trajectories:
    """A dataset of Minari: ``main_data.hdf5`` with one group ``episode_k`` for each episode.

    A group holds ``observations`` (n + 1 rows, an array or a group of arrays for a dictionary), ``actions`` (n rows)
    and others that are not read. The last observation of an episode gets the action 0.

    Args:
        path: the file, or the folder of the dataset, with its ``data/`` or without.
        observation: where observations are a dictionary, the key of the state.
        goal: and that of the goal, if there is one.

    Raises:
        MissingExtra: h5py is not installed.
        FileNotFoundError: no such file.
        ValueError: no episodes, arrays that are missing, or have another shape; values that are not finite.

    Source: O. Younis, R. Perez-Vicente, J. Balis et al. (2024), "Minari"; Farama Foundation.
    """
    file = _existing(path, ("data/main_data.hdf5", "main_data.hdf5"))
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra('Minari\'s files need h5py: pip install "boltzmix[planning]"') from error
    import numpy as np

    states, actions, goals, ends = [], [], [], []
    with h5py.File(file, "r") as opened:
        stored: Any = opened
        groups = [name for name in stored if name.startswith("episode_") and name[8:].isdigit()]
        if not groups:
            raise ValueError(
                f"{file}: Minari's episodes are groups episode_0, episode_1, …; here are {sorted(stored)[:8]}"
            )
        for name in sorted(groups, key=lambda name: int(name[8:])):
            group: Any = stored[name]
            found: Any = _hdf5(file, group, "observations")
            wanted = None
            if hasattr(found, "keys"):  # a dictionary of arrays
                wanted = found[goal][()] if goal in found else None
                found = _hdf5(file, found, observation)
            state, action = np.asarray(found[()]), np.asarray(_hdf5(file, group, "actions")[()])
            if state.ndim != 2 or action.ndim != 2 or len(state) != len(action) + 1:
                raise ValueError(
                    f"{file}: {name} holds observations (n + 1, S) and actions (n, A) in Minari's layout, got "
                    f"{state.shape} and {action.shape}"
                )
            states.append(state)
            actions.append(np.concatenate([action, np.zeros_like(action[:1])]))
            goals.append(wanted)
            ends.append((ends[-1] if ends else 0) + len(state))
    told = [wanted for wanted in goals if wanted is not None]
    if told and len(told) != len(goals):
        raise ValueError(f"{file}: {len(told)} of {len(goals)} episodes hold {goal!r}")
    return _made(
        file,
        _joined(file, "observations", states),
        _joined(file, "actions", actions),
        ends=torch.tensor(ends),
        goals=_joined(file, goal, told) if told else None,
        settings={"source": "minari"},
    )


def read_lerobot(
    path: str | os.PathLike[str], *, state: str = "observation.state", action: str = "action", goal: str | None = None
) -> Trajectories:
    """A dataset of LeRobot: parquet files below ``data/``, one row per step.

    Rows have the columns ``episode_index``, ``frame_index``, ``observation.state`` and ``action`` (lists of numbers of
    one length). Files may hold one episode each (``data/chunk-000/episode_000000.parquet``) or many
    (``data/chunk-000/file-000.parquet``). ``meta/info.json`` tells the names of columns, if it is there.

    Args:
        path: the dataset's folder, or one parquet file.
        state: the column of states.
        action: the column of actions.
        goal: the column of goals, if there is one.

    Raises:
        MissingExtra: pyarrow is not installed.
        FileNotFoundError: no parquet files.
        ValueError: columns that are missing, lists of different lengths, frames of an episode that are missing or come
            twice, values that are not finite.

    Source: R. Cadene, S. Alibert, A. Soare et al. (2024), "LeRobot: State-of-the-art Machine Learning for Real-World
    Robotics in PyTorch".
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted((root / "data").glob("**/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root}: LeRobot's layout has parquet files below data/, and there are none")
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra('LeRobot\'s files need pyarrow: pip install "boltzmix[planning]"') from error
    import numpy as np

    wanted = ["episode_index", "frame_index", state, action, *([] if goal is None else [goal])]
    parts: dict[str, list[Any]] = {name: [] for name in wanted}
    for file in files:
        table = parquet.read_table(file)
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise ValueError(f"{file} lacks {', '.join(missing)}; its columns are {', '.join(table.column_names)}")
        for name in wanted:
            rows = table.column(name).to_pylist()
            if name in wanted[:2]:
                parts[name].append(np.asarray(rows, dtype=np.int64).reshape(-1))
                continue
            lengths = {len(row) if isinstance(row, list) else 1 for row in rows}
            if len(lengths) != 1 or None in rows:
                raise ValueError(f"{file}: the rows of {name} are lists of one length, got {sorted(lengths)}")
            parts[name].append(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1))
    columns = {name: _joined(root, name, parts[name]) for name in wanted}
    episode, frame = columns["episode_index"], columns["frame_index"]
    order = np.lexsort((frame, episode))
    columns = {name: values[order] for name, values in columns.items()}
    episode, frame = columns["episode_index"], columns["frame_index"]
    new = np.diff(episode, prepend=episode[0] - 1) != 0
    expected = np.arange(len(frame)) - np.flatnonzero(new)[np.cumsum(new) - 1]
    if not np.array_equal(frame, expected):
        first = int(np.flatnonzero(frame != expected)[0])
        raise ValueError(
            f"{root}: episode {episode[first]} has the frame {frame[first]} where {expected[first]} was expected"
        )
    names = _features(root, state, action)
    return _made(
        root,
        columns[state],
        columns[action],
        flags=np.append(new[1:], True),
        goals=None if goal is None else columns[goal],
        state_names=names[0] if len(names[0]) == columns[state].shape[1] else (),
        action_names=names[1] if len(names[1]) == columns[action].shape[1] else (),
        settings={"source": "lerobot"},
    )


def _features(root: Path, *columns: str) -> list[tuple[str, ...]]:
    info = root / "meta" / "info.json"
    features = json.loads(info.read_text("utf-8")).get("features", {}) if info.is_file() else {}

    def flat(names: Any) -> Iterator[str]:
        if isinstance(names, str):
            yield names
        elif isinstance(names, Mapping):  # older files: {"motors": [names]}
            for value in names.values():
                yield from flat(value)
        elif isinstance(names, Sequence):
            for value in names:
                yield from flat(value)

    return [tuple(flat(features.get(column, {}).get("names"))) for column in columns]


def _existing(path: str | os.PathLike[str], inside: Sequence[str] = ()) -> Path:
    file = Path(path)
    for candidate in (file, *(file / name for name in inside)):
        if candidate.is_file():
            return candidate
    tried = ", ".join(inside)
    raise FileNotFoundError(f"no file {file}" + (f", nor {tried} inside it" if inside else ""))


def _npz(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    import zipfile

    import numpy as np

    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no npz, which is an archive of arrays")
    found = {}
    with np.load(file, allow_pickle=False) as stored:
        for name in stored.files:
            try:
                found[name] = stored[name]
            except ValueError as error:  # objects, which would have to be unpickled
                raise ValueError(f"{file}: {name} is no array of numbers: {error}") from None
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}; it holds {', '.join(found) or 'nothing'}")
    return found


def _hdf5(file: Path, group: Any, key: str) -> Any:
    if key not in group:
        raise ValueError(f"{file}: {group.name} lacks {key}; it holds {', '.join(group)}")
    return group[key]


def _joined(file: Path, name: str, parts: Sequence[Any]) -> Any:
    import numpy as np

    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"{file}: {name} have one shape in all episodes, got {sorted(shapes)}")
    return np.concatenate(parts)


def _made(
    file: Path,
    observations: Any,
    actions: Any,
    *,
    flags: Any = None,
    ends: Tensor | None = None,
    goals: Any = None,
    **named: Any,
) -> Trajectories:
    """Trajectories of arrays, with the file's name in every complaint."""
    import numpy as np

    arrays = {"observations": observations, "actions": actions} | ({} if goals is None else {"goals": goals})
    found = {}
    for name, values in arrays.items():
        values = np.asarray(values)
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{file}: {name} are numbers, got {values.dtype}")
        found[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if ends is None:
        marks = np.asarray(flags)
        if marks.shape != (len(observations),) or not np.isin(marks, (0, 1)).all():
            raise ValueError(f"{file}: terminals are ({len(observations)},), 0 or 1, got {marks.dtype} {marks.shape}")
        ends = ends_of(torch.from_numpy(marks.astype(bool)))
    try:
        return Trajectories(found["observations"], found["actions"], ends, found.get("goals"), **named)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
