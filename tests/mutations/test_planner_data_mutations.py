"""Errors in environments, shortest paths, collected data and readers, planted one by one: a named check notices."""

import functools
import tempfile
from pathlib import Path

import pytest

from tests.mutations.harness import Mutation, law, verify
from tests.planners import test_data as data
from tests.planners import test_environments as environments

BASE, LAYOUT, VISIBILITY, WORLD, WAYPOINTS, PAIRS = (
    f"boltzmix.planners.environments.{name}"
    for name in ("base", "layout", "visibility", "obstacle_world", "waypoints", "pairs")
)
TRAJECTORIES, COLLECTING, READING = (
    f"boltzmix.planners.data.{name}" for name in ("trajectories", "collecting", "reading")
)


def in_a_folder(check, *arguments):
    """A check of files as a law."""

    @functools.wraps(check)
    def run():
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), *arguments)

    return law(run)


TAUT = law(environments.shortest_paths_are_taut, 0.1)
APART = law(environments.paths_keep_their_distance_and_are_no_longer_than_others, 4)
SEGMENTS = law(environments.segment_distances_are_those_of_their_points)
LEFT = law(environments.a_start_at_a_wall_can_be_left)
FEWEST = law(environments.breadth_first_takes_the_fewest_cells)
CELLS = law(environments.cells_and_walls_agree, False)
FREE = law(environments.free_motion_is_the_double_integrator)
ENTERS = law(environments.nothing_enters_an_obstacle, 60)
SLIDES = law(environments.contacts_take_what_points_inwards_and_nothing_else)
ENDS = law(environments.success_reward_and_truncation_are_apart)
DRIVES = law(environments.drives_are_proportional_within_the_limit)
SPEEDS = law(environments.speeds_obey_bends_and_brakes)
ARRIVES = law(environments.controllers_arrive_directly_and_rest)
HARD = law(environments.hard_pairs_are_hard_and_repeat)
WINDOWS = law(data.windows_hold_what_the_episode_does, 7, 3)
EVENLY = law(data.windows_are_drawn_evenly)
EPISODES = in_a_folder(data.episodes_are_simulated_arrive_and_are_direct, 700)
SETTINGS = in_a_folder(data.files_depend_on_their_settings_alone, 250)
CACHED = in_a_folder(data.a_file_with_the_same_settings_is_left_alone)
OGBENCH, MINARI, LEROBOT = (
    in_a_folder(check) for check in (data.ogbench_is_read, data.minari_is_read, data.lerobot_is_read)
)

ROWS = [
    # shortest paths
    Mutation(
        "vertices on the arc, whose chords cut it", VISIBILITY, "out = 1.0 / math.cos(0.5 * step)", "out = 1.0", APART
    ),
    Mutation(
        "a ball of no size between nodes",
        VISIBILITY,
        ">= self.radius - _SLACK\n        gaps",
        ">= 0.5 * self.radius\n        gaps",
        APART,
    ),
    Mutation(
        "arcs around corners of another size",
        VISIBILITY,
        "ring = self.radius * out *",
        "ring = 1.5 * self.radius * out *",
        TAUT,
    ),
    Mutation(
        "arcs around discs without the ball",
        VISIBILITY,
        "(self.discs[:, None, 2:] + self.radius)",
        "(self.discs[:, None, 2:] + 2.0 * self.radius)",
        TAUT,
    ),
    Mutation(
        "a straight line through walls",
        VISIBILITY,
        "if float(straight) >= float(needed.min()):",
        "if float(straight) >= -1.0:",
        TAUT,
    ),
    Mutation(
        "ends that are too near a wall see nothing",
        VISIBILITY,
        "room.clamp_max(self.radius) - _SLACK",
        "room.clamp_min(self.radius) - _SLACK",
        LEFT,
    ),
    Mutation(
        "the way back to the wrong end",
        VISIBILITY,
        "self._lengths + reach[1][None]",
        "self._lengths + reach[1][:, None]",
        APART,
    ),
    Mutation(
        "corners forgotten",
        VISIBILITY,
        "apart = torch.minimum(apart, _point_segment(corners, start, end).amin(-1))",
        "apart = apart + 0.0",
        SEGMENTS,
    ),
    Mutation("lines instead of segments", VISIBILITY, "share.clamp(0.0, 1.0)", "share", SEGMENTS),
    Mutation("slabs entered from one side only", VISIBILITY, "torch.minimum(first, second)", "first", SEGMENTS),
    Mutation(
        "discs without their radius",
        VISIBILITY,
        "_point_segment(discs[:, :2], start, end) - discs[:, 2]",
        "_point_segment(discs[:, :2], start, end)",
        SEGMENTS,
    ),
    Mutation("depth first", LAYOUT, "queue.popleft()", "queue.pop()", FEWEST),
    Mutation(
        "diagonal steps",
        LAYOUT,
        "((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1))",
        "((i + 1, j + 1), (i - 1, j), (i, j + 1), (i, j - 1), (i + 1, j))",
        FEWEST,
    ),
    Mutation(
        "rows counted from the other side",
        LAYOUT,
        "sign = -1.0 if self.down else 1.0\n        row",
        "sign = -1.0\n        row",
        CELLS,
    ),
    Mutation(
        "cells half a cell off",
        LAYOUT,
        "(x - self.origin[0]) / self.scale + 0.5)",
        "(x - self.origin[0]) / self.scale)",
        CELLS,
    ),
    Mutation(
        "walls half as thick",
        LAYOUT,
        "half = 0.5 * self.scale",
        "half = 0.4 * self.scale",
        CELLS,
        within="def rectangles",
    ),
    # the world
    Mutation(
        "displacement twice that of the acceleration",
        WORLD,
        "half = 0.5 * seconds * seconds",
        "half = seconds * seconds",
        FREE,
    ),
    Mutation(
        "a prediction without the acceleration's displacement", WORLD, "0.5 * self.dt**2 * action", "0.0 * action", FREE
    ),
    Mutation(
        "a ball of no size",
        WORLD,
        "begin + seconds, slack) < self.radius - slack",
        "begin + seconds, slack) < 0.0",
        ENTERS,
    ),
    Mutation(
        "far means farther than the ball only",
        WORLD,
        "self._room(x, y) > self.radius + reach",
        "self._room(x, y) > self.radius",
        ENTERS,
    ),
    Mutation(
        "bounds are not walls",
        WORLD,
        "inside = min(x - x_low, x_high - x, y - y_low, y_high - y) > reach",
        "inside = True",
        ENTERS,
    ),
    Mutation(
        "contacts stop the ball",
        WORLD,
        "[x, y, vx - inward * normal[0], vy - inward * normal[1]]",
        "[x, y, 0.0, 0.0]",
        SLIDES,
    ),
    Mutation(
        "contacts reflect the ball",
        WORLD,
        "[x, y, vx - inward * normal[0], vy - inward * normal[1]]",
        "[x, y, vx - 2 * inward * normal[0], vy - 2 * inward * normal[1]]",
        SLIDES,
    ),
    Mutation(
        "pushes into a wall go on",
        WORLD,
        "ax, ay = ax - push * normal[0], ay - push * normal[1]",
        "ax, ay = ax, ay",
        SLIDES,
    ),
    Mutation("contacts are not told", WORLD, "return impacts > 0", "return False", SLIDES),
    Mutation(
        "truncation one step late",
        BASE,
        "truncated = self.steps >= self.max_steps",
        "truncated = self.steps > self.max_steps",
        ENDS,
    ),
    Mutation(
        "success ends the episode", BASE, "float(success), False, truncated", "float(success), success, truncated", ENDS
    ),
    Mutation(
        "success within twice the radius",
        BASE,
        "self.goal) <= self.goal_radius\n        truncated",
        "self.goal) <= 6 * self.goal_radius\n        truncated",
        ENDS,
    ),
    Mutation("damping added once more", BASE, "+ self.damping * state[2 + i]", "- self.damping * state[2 + i]", DRIVES),
    Mutation(
        "limits that bend the direction",
        BASE,
        "np.array(push) / self.gain / max(1.0, size)",
        "np.clip(np.array(push) / self.gain, -self.action_limit, self.action_limit)",
        DRIVES,
    ),
    # the controller and its pairs
    Mutation(
        "brakes twice as strong",
        WAYPOINTS,
        "2.0 * self.brake * self.spacing",
        "4.0 * self.brake * self.spacing",
        SPEEDS,
    ),
    Mutation(
        "curvature over another length",
        WAYPOINTS,
        "bend = turn / (reach * self.spacing)",
        "bend = turn / self.spacing",
        SPEEDS,
    ),
    Mutation(
        "no approach", WAYPOINTS, "min(self._speeds[self._at], self.approach * left)", "self._speeds[self._at]", ARRIVES
    ),
    Mutation("aims at where it is", WAYPOINTS, "points[min(last, self._at + ahead)]", "points[self._at]", ARRIVES),
    Mutation(
        "easy pairs", PAIRS, "if around and not straight_line_arrives(", "if around and straight_line_arrives(", HARD
    ),
    Mutation("pairs of another seed", PAIRS, "np.random.default_rng(seed)", "np.random.default_rng(0)", HARD),
    # windows
    Mutation(
        "the end of an episode belongs to the next", TRAJECTORIES, "first, right=True)", "first, right=False)", WINDOWS
    ),
    Mutation(
        "states of the next episode",
        TRAJECTORIES,
        "self.observations[torch.minimum(step, end - 1)]",
        "self.observations[torch.minimum(step, self.ends[-1] - 1)]",
        WINDOWS,
    ),
    Mutation(
        "no rest",
        TRAJECTORIES,
        "state[..., column][step >= end] = 0.0",
        "state[..., column][step > end + 99] = 0.0",
        WINDOWS,
    ),
    Mutation("sums instead of means", TRAJECTORIES, "(total / stride)", "total", WINDOWS),
    Mutation(
        "actions of the next episode",
        TRAJECTORIES,
        "self._sums[torch.minimum(step + stride, end)]",
        "self._sums[torch.minimum(step + stride, self.ends[-1])]",
        WINDOWS,
    ),
    Mutation(
        "windows of the first steps",
        TRAJECTORIES,
        "torch.randint(len(self.observations), (n,)",
        "torch.randint(len(self), (n,)",
        EVENLY,
    ),
    # collecting
    Mutation(
        "every episode alike",
        COLLECTING,
        "np.random.default_rng([seed, index])",
        "np.random.default_rng([seed])",
        SETTINGS,
    ),
    Mutation(
        "seeds that do nothing",
        COLLECTING,
        "np.random.default_rng([seed, index])",
        "np.random.default_rng([0, index])",
        SETTINGS,
    ),
    Mutation(
        "begins anew after a kill", COLLECTING, "strict=True)), index, failed", "strict=True)), 0, failed", SETTINGS
    ),
    Mutation("the partial file stays", COLLECTING, "        partial.unlink()", "        pass", SETTINGS),
    Mutation("a hash without the seed", COLLECTING, '"seed": seed,', '"seed": 0,', CACHED),
    Mutation("a hash without the world", COLLECTING, '"world": environment.description(),', '"world": {},', CACHED),
    Mutation("a hash without how one drives", COLLECTING, '"driving": asdict(driving),', '"driving": {},', CACHED),
    Mutation(
        "an action that the last state did not see",
        COLLECTING,
        "actions.append(np.zeros(2))",
        "actions.append(actions[-1] + 1.0)",
        EPISODES,
    ),
    Mutation(
        "ends one step late",
        COLLECTING,
        "for _, actions, _ in episodes]) - 1] = True",
        "for _, actions, _ in episodes]) - 2] = True",
        EPISODES,
    ),
    Mutation(
        "episodes end before the goal",
        COLLECTING,
        "gap < 0.2 * unit and speed < 0.5 * unit",
        "gap < 10.0 * unit",
        EPISODES,
    ),
    # readers
    Mutation(
        "ogbench's last actions kept",
        READING,
        "actions[data.ends[:-1] - 1] = 0.0",
        "actions[data.ends[:-1] - 1] += 0.0",
        OGBENCH,
    ),
    Mutation("Minari's episodes by the alphabet", READING, "key=lambda name: int(name[8:])", "key=str", MINARI),
    Mutation(
        "Minari's actions one step late",
        READING,
        "np.concatenate([action, np.zeros_like(action[:1])])",
        "np.concatenate([np.zeros_like(action[:1]), action])",
        MINARI,
    ),
    Mutation(
        "LeRobot's rows in the file's order",
        READING,
        "order = np.lexsort((frame, episode))",
        "order = np.arange(len(frame))",
        LEROBOT,
    ),
]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda mutation: mutation.name)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
