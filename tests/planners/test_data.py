"""Data: what is collected obeys the simulator and its settings; readers against files that the test writes itself."""

import json
import math

import numpy as np
import pytest
import torch

from boltzmix.__main__ import main
from boltzmix.planners import data
from boltzmix.planners.data import (
    Driving,
    Trajectories,
    collect,
    collecting,
    read_lerobot,
    read_minari,
    read_npz,
    read_ogbench,
)
from boltzmix.planners.data.trajectories import ends_of
from boltzmix.planners.environments import NAMES, ObstacleWorld
from boltzmix.planners.obstacles import Disc

STATE, ACTION = ("x", "y", "vx", "vy"), ("ax", "ay")


def world():
    """A world that drives quickly and needs no simulator."""
    return ObstacleWorld([Disc(0.0, 0.0, 0.3)], dt=0.05)


def trajectories(lengths=(5, 1, 9), seed=0):
    """Random episodes of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    steps = sum(lengths)
    observations, actions = (torch.randn(steps, width, generator=generator) for width in (4, 2))
    ends = torch.tensor(lengths).cumsum(0)
    return Trajectories(observations, actions, ends, observations[:, :2].clone(), STATE, ACTION)


# --- windows ------------------------------------------------------------------------------------------------------


def window_by_hand(made, first, horizon, stride):
    """One window, token by token."""
    index = next(k for k, end in enumerate(made.ends.tolist()) if first < end)
    states, actions = made.episode(index)
    at = first - int(made.starts[index])
    rows = []
    for h in range(horizon):
        step = at + h * stride
        state = states[min(step, len(states) - 1)].clone()
        if step >= len(states):
            state[2:] = 0.0
        held = [actions[k] if k < len(actions) else torch.zeros(2) for k in range(step, step + stride)]
        rows.append(torch.cat([state, torch.stack(held).mean(0)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("horizon", "stride"), [(1, 1), (4, 1), (3, 2), (7, 3)])
def windows_hold_what_the_episode_does(horizon, stride):
    made = trajectories()
    every = torch.arange(len(made.observations))
    expected = torch.stack([window_by_hand(made, int(first), horizon, stride) for first in every])
    assert torch.allclose(made.at(every, horizon, stride), expected, atol=1e-6)


test_windows_hold_what_the_episode_does = windows_hold_what_the_episode_does


def windows_are_drawn_evenly():
    """Every step begins a window equally often; with begin="start" every episode does, at its first step.

    3000 draws among 15 steps: a share of 1/15 has a standard error of 0.0046; 5 of them, over 18 shares, fail with
    probability 1e-5.
    """
    made = trajectories()
    draws = made.windows(1, n=3000, generator=torch.Generator().manual_seed(1))[:, 0]
    counts = torch.tensor([int((draws[:, :4] == row).all(1).sum()) for row in made.observations])
    assert ((counts / 3000 - 1 / 15).abs() < 0.023).all()
    draws = made.windows(1, n=3000, generator=torch.Generator().manual_seed(1), begin="start")[:, 0]
    counts = torch.tensor([int((draws[:, :4] == row).all(1).sum()) for row in made.observations[made.starts]])
    assert ((counts / 3000 - 1 / 3).abs() < 0.044).all()


def test_windows_are_drawn_evenly():
    windows_are_drawn_evenly()


def test_ends_from_flags():
    assert ends_of([0, 1, 0, 0, 1]).tolist() == [2, 5]
    assert ends_of(torch.tensor([False, False])).tolist() == [2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observations": torch.full((3, 2), math.nan)}, r"observations hold 6 values .* first at \[0, 0\]"),
        ({"actions": torch.tensor([[0.0], [math.inf], [0.0]])}, r"actions hold 1 values .* first at \[1, 0\]"),
        ({"actions": torch.zeros(2, 1)}, r"actions are \(T, D\) with T = 3"),
        ({"goals": torch.zeros(3)}, r"goals are \(T, D\)"),
        ({"ends": torch.tensor([2])}, "T = 3"),
        ({"ends": torch.tensor([2, 2, 3])}, "grow"),
        ({"ends": torch.tensor([3.0])}, "long"),
        ({"state_names": ("x",)}, "state_names name 1 columns, and there are 2"),
        ({"action_names": ("a", "b")}, "action_names"),
    ],
)
def test_wrong_trajectories_are_refused(change, said):
    right = {"observations": torch.zeros(3, 2), "actions": torch.zeros(3, 1), "ends": torch.tensor([3])}
    Trajectories(**right)
    with pytest.raises(ValueError, match=said):
        Trajectories(**right | change)


def test_wrong_windows_are_refused():
    made, generator = trajectories(), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="at least 1"):
        made.windows(0, n=1, generator=generator)
    with pytest.raises(ValueError, match="begin"):
        made.windows(2, n=1, generator=generator, begin="goal")
    with pytest.raises(IndexError, match="3 episodes"):
        made.episode(3)


# --- collecting ---------------------------------------------------------------------------------------------------


def episodes_are_simulated_arrive_and_are_direct(folder, steps=2500):
    """Each state follows from the one before and its action; each episode ends at rest at its goal, without detours."""
    environment = world()
    made = read_npz(collect(environment, steps, seed=0, path=folder / "data.npz", progress=False))
    assert len(made.observations) >= steps > int(made.ends[-2])
    assert (made.state_names, made.action_names) == (STATE, ACTION)
    ratios, moving = [], 0
    for index in range(len(made)):
        states, actions = made.episode(index)
        goal = made.goals[int(made.ends[index]) - 1]
        predicted = environment.predict(states[:-1], actions[:-1])
        free = (predicted - states[1:]).abs().amax(1) < 1e-5
        near = torch.tensor([environment.clearance(state) < 0.2 or abs(state[:2]).max() > 0.8 for state in states[1:]])
        assert bool((free | near).all())  # the others are contacts
        assert float((states[-1, :2] - goal).norm()) < 0.2 * environment.radius
        assert float(states[-1, 2:].norm()) < 0.5 * environment.radius
        assert actions[-1].tolist() == [0.0, 0.0]
        length = environment.shortest_path(states[0, :2], goal)[0]
        moving += bool(states[0, 2:].abs().sum() > 0)
        if length > 0.5 and not bool(states[0, 2:].abs().sum() > 0):
            ratios.append(float(states[:, :2].diff(dim=0).norm(dim=1).sum()) / length)
    assert len(ratios) > 0.1 * len(made)
    assert np.median(ratios) < 1.05
    assert 0.25 * len(made) < moving < 0.75 * len(made)


def test_episodes_are_simulated_arrive_and_are_direct(tmp_path):
    episodes_are_simulated_arrive_and_are_direct(tmp_path)


def files_depend_on_their_settings_alone(folder, steps=900):
    """The same settings give the same bytes, also after a kill; other seeds give other data."""
    whole = collect(world(), steps, seed=3, path=folder / "whole.npz", progress=False).read_bytes()
    assert collect(world(), steps, seed=3, path=folder / "again.npz", progress=False).read_bytes() == whole
    first, other = (
        read_npz(collect(world(), steps, seed=seed, path=folder / f"{name}.npz", progress=False))
        for seed, name in ((3, "whole"), (4, "other"))
    )
    assert not torch.equal(first.observations[:1], other.observations[:1])
    assert len(torch.unique(first.goals, dim=0)) == len(first)

    class Killed(BaseException):
        """Stands for a signal."""

    calls, simulate = 0, collecting.episode

    def fatal(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return simulate(*arguments)

    killed = folder / "killed.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "episode", fatal)
        with pytest.raises(Killed):
            collect(world(), steps, seed=3, path=killed, progress=False, save_every=0.0)
        assert not killed.exists()
        calls = 100
        collect(world(), steps, seed=3, path=killed, progress=False, save_every=0.0)
    total = len(read_npz(killed))
    assert killed.read_bytes() == whole
    assert calls - 100 == total - 3  # three were saved
    assert sorted(path.name for path in folder.iterdir()) == ["again.npz", "killed.npz", "other.npz", "whole.npz"]


def test_files_depend_on_their_settings_alone(tmp_path):
    files_depend_on_their_settings_alone(tmp_path)


def a_file_with_the_same_settings_is_left_alone(folder):
    """And one with others is replaced only when that is said."""
    file = collect(world(), 200, seed=0, path=folder / "data.npz", progress=False)
    before = file.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "episode", lambda *_: pytest.fail("collected again"))
        assert collect(world(), 200, seed=0, path=file) == file
    others = (
        lambda: collect(world(), 201, seed=0, path=file),
        lambda: collect(world(), 200, seed=1, path=file),
        lambda: collect(world(), 200, seed=0, path=file, driving=Driving(moving=0.1)),
        lambda: collect(ObstacleWorld(dt=0.05), 200, seed=0, path=file),
    )
    for other in others:
        with pytest.raises(ValueError, match="other data"):
            other()
    assert file.read_bytes() == before
    collect(world(), 200, seed=1, path=file, overwrite=True)
    assert file.read_bytes() != before


def test_a_file_with_the_same_settings_is_left_alone(tmp_path):
    a_file_with_the_same_settings_is_left_alone(tmp_path)


def test_work_of_other_settings_is_not_gone_on_with(tmp_path):
    file = tmp_path / "data.npz"
    other = collect(world(), 200, seed=9, path=tmp_path / "other.npz", progress=False)
    other.rename(tmp_path / "data.npz.partial")
    expected = collect(world(), 200, seed=0, path=tmp_path / "alone.npz", progress=False)
    assert collect(world(), 200, seed=0, path=file, progress=False).read_bytes() == expected.read_bytes()


def test_a_controller_that_never_arrives_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="did not reach"):
        collect(world(), 200, seed=0, path=tmp_path / "data.npz", driving=Driving(longest=2), progress=False)
    with pytest.raises(ValueError, match="at least 1"):
        collect(world(), 0, seed=0, path=tmp_path / "data.npz")


def test_the_command(tmp_path, capsys):
    file = tmp_path / "mine.npz"
    assert main(["collect", "obstacles", "--steps", "100", "--seed", "2", "--out", str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    assert main(["collect", "obstacles", "--steps", "100", "--seed", "3", "--out", str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["collect", "obstacles", "--steps", "100", "--seed", "3", "--out", str(file), "--overwrite"]) == 0
    assert main(["collect", "nowhere"]) == 2
    assert "pointmaze-umaze" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    said = capsys.readouterr().out
    assert all(name.rpartition("-")[2] in said for name in NAMES)
    assert all(name in NAMES for name in data.STEPS)


def test_the_command_shows_a_bar(tmp_path, capsys):
    main(["collect", "obstacles", "--steps", "100", "--out", str(tmp_path / "mine.npz"), "--progress"])
    said = capsys.readouterr().err
    assert "obstacles" in said
    assert "100/100" in said


def test_pointmaze_data_are_direct_and_free_of_contacts(tmp_path):
    """Paths from rest within 5 % of the ball's shortest, in the middle; none nearer to a wall than its radius."""
    pytest.importorskip("gymnasium_robotics")
    from boltzmix.planners.environments import make

    maze = make("pointmaze-umaze")
    made = read_npz(collect(maze, 3000, seed=1, path=tmp_path / "data.npz", progress=False))
    ratios = []
    for index in range(len(made)):
        states, _ = made.episode(index)
        goal = made.goals[int(made.ends[index]) - 1]
        length = maze.shortest_path(states[0, :2], goal)[0]
        assert min(maze.clearance(state[:2]) for state in states[::5]) >= maze.radius - 2e-3
        if length > 1.0 and not bool(states[0, 2:].abs().sum() > 0):
            ratios.append(float(states[:, :2].diff(dim=0).norm(dim=1).sum()) / length)
    assert np.median(ratios) < 1.05
    predicted = maze.predict(states[:-1].double(), made.episode(index)[1][:-1].double())
    assert float((predicted - states[1:]).abs().max()) < 1e-4


# --- readers ------------------------------------------------------------------------------------------------------


def arrays(lengths=(4, 2), seed=0):
    """Observations and actions of episodes, float32."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n + 1, 4)).astype(np.float32), rng.standard_normal((n, 2)).astype(np.float32))
        for n in lengths
    ]


def compact(episodes):
    """The layout of ogbench: as many actions as observations, the last of each episode meaningless."""
    terminals = np.concatenate([np.eye(len(o), dtype=np.float32)[-1] for o, _ in episodes])
    padded = [np.concatenate([a, np.full((1, 2), 7.0, dtype=np.float32)]) for _, a in episodes]
    return {
        "observations": np.concatenate([o for o, _ in episodes]),
        "actions": np.concatenate(padded),
        "terminals": terminals,
    }


def write_minari(path, episodes, goals=True):
    """The layout of Minari, with dictionaries as observations or without."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for k, (observations, actions) in enumerate(episodes):
            group = file.create_group(f"episode_{k}")
            group.attrs["total_steps"] = len(actions)
            group["actions"], group["rewards"] = actions, np.zeros(len(actions))
            group["terminations"] = group["truncations"] = np.zeros(len(actions), dtype=bool)
            if goals:
                group["observations/observation"] = observations
                group["observations/achieved_goal"] = observations[:, :2]
                group["observations/desired_goal"] = observations[:, 2:]
            else:
                group["observations"] = observations


def write_lerobot(root, episodes, *, together=False, fixed=False, drop=()):
    """The layout of LeRobot: a parquet file for each episode, or one for all of them, rows in any order."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    def vectors(values):
        kind = pa.list_(pa.float32(), values.shape[1]) if fixed else pa.list_(pa.float32())
        return pa.array(values.tolist(), type=kind)

    tables = []
    for k, (observations, actions) in enumerate(episodes):
        count = len(actions)
        columns = {
            "observation.state": vectors(observations[:count]),
            "action": vectors(actions),
            "timestamp": pa.array(np.arange(count) / 10.0),
            "frame_index": pa.array(np.arange(count)),
            "episode_index": pa.array(np.full(count, k)),
        }
        table = pa.table({name: column for name, column in columns.items() if name not in drop})
        tables.append(table.take(list(reversed(range(count)))))
    folder = root / "data" / "chunk-000"
    folder.mkdir(parents=True)
    if together:
        parquet.write_table(pa.concat_tables(tables[::-1]), folder / "file-000.parquet")
    else:
        for k, table in enumerate(tables):
            parquet.write_table(table, folder / f"episode_{k:06d}.parquet")
    (root / "meta").mkdir()
    features = {
        "observation.state": {"dtype": "float32", "shape": [4], "names": {"motors": list(STATE)}},
        "action": {"dtype": "float32", "shape": [2], "names": list(ACTION)},
    }
    (root / "meta" / "info.json").write_text(json.dumps({"fps": 10, "features": features}))


def assert_episodes(made, episodes, last):
    """What was read is what was written, with the action ``last`` at the end of each episode."""
    assert len(made) == len(episodes)
    for k, (observations, actions) in enumerate(episodes):
        states, moves = made.episode(k)
        assert np.array_equal(states.numpy(), observations)
        assert np.array_equal(moves.numpy(), np.concatenate([actions, last]))


def ogbench_is_read(folder):
    episodes = arrays()
    np.savez(folder / "data.npz", **compact(episodes))
    assert_episodes(read_ogbench(folder / "data.npz"), episodes, np.zeros((1, 2)))


def minari_is_read(folder):
    """More than ten episodes, since their names sort as 0, 1, 10, 11, 2 …"""
    episodes = arrays(tuple(range(1, 13)))
    write_minari(folder / "data" / "main_data.hdf5", episodes)
    for path in (folder, folder / "data", folder / "data" / "main_data.hdf5"):
        made = read_minari(path)
        assert_episodes(made, episodes, np.zeros((1, 2)))
        assert np.array_equal(made.goals.numpy(), np.concatenate([o[:, 2:] for o, _ in episodes]))
    write_minari(folder / "plain.hdf5", episodes, goals=False)
    made = read_minari(folder / "plain.hdf5")
    assert made.goals is None
    assert_episodes(made, episodes, np.zeros((1, 2)))


def lerobot_is_read(folder):
    episodes = [(o[:-1], a) for o, a in arrays((3, 5, 1))]
    for together in (False, True):
        for fixed in (False, True):
            root = folder / f"set-{together}-{fixed}"
            write_lerobot(root, episodes, together=together, fixed=fixed)
            made = read_lerobot(root)
            assert_episodes(made, episodes, np.zeros((0, 2)))
            assert (made.state_names, made.action_names) == (STATE, ACTION)


@pytest.mark.parametrize("check", [ogbench_is_read, minari_is_read, lerobot_is_read])
def test_other_libraries_files_are_read(check, tmp_path):
    check(tmp_path)


def test_ogbench_files_mean_what_its_own_loader_says(tmp_path):
    """Every transition (state, action, next state) of ogbench's loader, in its order."""
    ogbench = pytest.importorskip("ogbench")
    np.savez(tmp_path / "data.npz", **compact(arrays()))
    made = read_ogbench(tmp_path / "data.npz")
    theirs = ogbench.load_dataset(str(tmp_path / "data.npz"))
    inner = torch.ones(len(made.observations), dtype=torch.bool)
    inner[made.ends - 1] = False
    assert np.array_equal(made.observations[inner].numpy(), theirs["observations"])
    assert np.array_equal(made.actions[inner].numpy(), theirs["actions"])
    assert np.array_equal(made.observations[1:][inner[:-1]].numpy(), theirs["next_observations"])


def test_npz_without_settings_is_read(tmp_path):
    made = compact(arrays())
    np.savez(tmp_path / "data.npz", **made, goals=made["observations"][:, :2])
    found = read_npz(tmp_path / "data.npz")
    assert np.array_equal(found.actions.numpy(), made["actions"])
    assert np.array_equal(found.goals.numpy(), made["observations"][:, :2])
    assert found.ends.tolist() == [5, 8]
    assert found.state_names == ()


@pytest.mark.parametrize("read", [read_npz, read_ogbench])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": None}, "lacks actions; it holds observations, terminals"),
        ({"terminals": None}, "lacks terminals"),
        ({"actions": np.zeros((7, 2))}, r"actions are \(T, D\) with T = 8"),
        ({"actions": np.zeros(8)}, r"actions are \(T, D\)"),
        ({"terminals": np.ones(7)}, "terminals"),
        ({"terminals": np.full(8, 0.5)}, "0 or 1"),
        ({"observations": np.full((8, 4), np.nan)}, "observations hold 32 values that are not finite"),
        ({"actions": np.array([["a", "b"]] * 8)}, "are numbers"),
    ],
)
def test_wrong_npz_files_are_refused(read, change, said, tmp_path):
    made = {name: values for name, values in (compact(arrays()) | change).items() if values is not None}
    np.savez(tmp_path / "data.npz", **made)
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path / "data.npz")
    assert "data.npz" in str(error.value)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no npz")
    with pytest.raises(ValueError, match="text.npz"):
        read_npz(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is no npz"):
        read_npz(tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", **compact(arrays()) | {"actions": np.array([None] * 8)})
    with pytest.raises(ValueError, match="actions is no array of numbers"):
        read_npz(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="other data"):
        collect(world(), 10, seed=0, path=tmp_path / "text.npz")
    for read in (read_npz, read_ogbench, read_minari, read_lerobot):
        with pytest.raises(FileNotFoundError, match="missing"):
            read(tmp_path / "missing")
    np.savez(tmp_path / "endless.npz", **compact(arrays()) | {"terminals": np.zeros(8)})
    with pytest.raises(ValueError, match="no row of terminals is 1"):
        read_ogbench(tmp_path / "endless.npz")


def test_wrong_minari_files_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    episodes = arrays()

    def file(name, change):
        write_minari(tmp_path / name, episodes)
        with h5py.File(tmp_path / name, "a") as stored:
            change(stored)
        return tmp_path / name

    def bad(stored):
        stored["episode_1/observations/observation"][0, 0] = np.nan

    def short(stored):
        del stored["episode_0/actions"]
        stored["episode_0/actions"] = np.zeros((3, 2))

    wrong = {
        "lacks actions": lambda stored: stored.pop("episode_1/actions"),
        "lacks observation; it holds achieved_goal": lambda stored: stored.pop("episode_0/observations/observation"),
        "hold 'desired_goal'": lambda stored: stored.pop("episode_0/observations/desired_goal"),
        "not finite": bad,
        r"\(5, 4\) and \(3, 2\)": short,
        "episode_0, episode_1, …": lambda stored: [stored.pop(name) for name in list(stored)],
    }
    for k, (said, change) in enumerate(wrong.items()):
        with pytest.raises(ValueError, match=said):
            read_minari(file(f"{k}.hdf5", change))


def test_wrong_lerobot_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    episodes = [(o[:-1], a) for o, a in arrays((3, 5))]
    write_lerobot(tmp_path / "a", episodes, drop=("action",))
    with pytest.raises(ValueError, match="lacks action; its columns are observation.state"):
        read_lerobot(tmp_path / "a")
    write_lerobot(tmp_path / "b", episodes)
    with pytest.raises(ValueError, match="lacks goal"):
        read_lerobot(tmp_path / "b", goal="goal")
    (tmp_path / "b/data/chunk-000/episode_000002.parquet").write_bytes(
        (tmp_path / "b/data/chunk-000/episode_000001.parquet").read_bytes()
    )
    with pytest.raises(ValueError, match="episode 1 has the frame 0 where 1 was expected"):
        read_lerobot(tmp_path / "b")
    broken = [(np.where(np.arange(4) == 1, np.nan, o).astype(np.float32), a) for o, a in episodes]
    write_lerobot(tmp_path / "c", broken)
    with pytest.raises(ValueError, match="8 values that are not finite"):
        read_lerobot(tmp_path / "c")
    write_lerobot(tmp_path / "d", [episodes[0], (episodes[1][0][:, :3], episodes[1][1])])
    with pytest.raises(ValueError, match="one shape"):
        read_lerobot(tmp_path / "d")
