"""Errors that trajectory models, their networks and their data can have, planted one by one: a law notices each."""

import tempfile
from pathlib import Path

import pytest

from tests.models import test_trajectories as laws
from tests.mutations.harness import Mutation, law, verify

MODEL, WORLD = "boltzmix.models.trajectories", "boltzmix.models.data.obstacle_world"
WINDOWS, DIT = "boltzmix.models.data.windows", "boltzmix.models.nets.trajectory_dit"
UNET, FIELDS = "boltzmix.models.nets.temporal_unet", "boltzmix.models.nets.fields"

CLEAN = laws.test_views_know_their_coordinates_clean
LOSS = laws.test_the_loss_tells_known_coordinates_clean_and_does_not_ask_for_them
APART = law(laws.test_views_are_told_apart_and_evaluated_together)
PATTERNS = laws.test_patterns_are_as_frequent_as_said_and_hold_what_they_say
OBSTACLES = laws.test_the_world_of_obstacles_keeps_its_laws
MAPS = laws.test_maps_are_read_at_positions_whatever_the_noise


def in_a_folder(check):
    """A law whose check writes files."""

    def run():
        with tempfile.TemporaryDirectory() as folder:
            law(check, Path(folder))()

    return run


EPISODES, PACE = in_a_folder(laws.test_windows_of_episodes), in_a_folder(laws.test_windows_at_one_pace)

MODELS = [
    Mutation(
        "known coordinates are told with noise",
        MODEL,
        "torch.where(known, x0 / core.sigma_data,",
        "torch.where(known, (x0 + level * noise) / core.spread(level),",
        LOSS,
    ),
    Mutation("known coordinates are asked for", MODEL, "(~known).to(error)", "(known | ~known).to(error)", LOSS),
    Mutation(
        "known values shrink with the noise",
        MODEL,
        "torch.where(known, c.centred / view.core.sigma_data, values)",
        "values",
        CLEAN,
    ),
    Mutation("the mask is not told", MODEL, "known.to(values).expand_as(values)", "torch.zeros_like(values)", CLEAN),
    Mutation("known coordinates are moved", MODEL, "torch.where(known, 0.0, value)", "value", CLEAN),
    Mutation("masks that merge", MODEL, "(super().key(), self._known,", "(super().key(), None,", APART),
    Mutation(
        "rows of other masks in one batch",
        MODEL,
        'getattr(term, "_known", None) != self._known for term',
        "False for term",
        APART,
    ),
    Mutation(
        "the trajectory keeps its old length",
        MODEL,
        '{**self.trajectory, "horizon": horizon}',
        "self.trajectory",
        law(laws.test_other_lengths_share_the_network),
    ),
    Mutation(
        "windows begin at the start",
        MODEL,
        "x0[:, first : first + length]",
        "x0[:, :length]",
        laws.test_shorter_lengths_are_windows_of_the_batch,
    ),
    Mutation(
        "all fields are hidden together",
        MODEL,
        "torch.rand(rows.shape, generator",
        "torch.rand((len(rows), 1), generator",
        laws.test_each_field_is_hidden_on_its_own,
    ),
    Mutation(
        "importance that is not used",
        MODEL,
        "* self.importance.to(error)",
        "* 1",
        laws.test_importance_weighs_columns_and_nothing_else,
    ),
    Mutation("no waypoints", MODEL, "(rank < count)", "(rank < 0)", PATTERNS),
    Mutation("prefixes of any length", MODEL, "horizon // 2 + 1)", "horizon + 1)", PATTERNS),
    Mutation("starts that are places alone", MODEL, "one_of(0.85, _STATE", "one_of(0.0, _STATE", PATTERNS),
    Mutation("goals at the first token", MODEL, "(token == horizon - 1)", "(token == 0)", PATTERNS),
    Mutation("actions are never known", MODEL, "one_of(0.5, _EVERYTHING", "one_of(0.0, _EVERYTHING", PATTERNS),
]

NETWORKS = [
    Mutation("free places as the network reads them", DIT, "position, position * spread)", "position, position)", MAPS),
    Mutation("known places scaled", DIT, "position, position * spread)", "position * spread, position * spread)", MAPS),
    Mutation(
        "no positions in time",
        DIT,
        "h = h + torch.cat([angles.sin(), angles.cos()], 1)",
        "pass",
        law(laws.test_positions_of_the_transformer_tell_tokens_apart),
    ),
    Mutation(
        "networks that forget what is said",
        UNET,
        "embedding = embedding + self.fields(",
        "self.fields(",
        law(laws.test_networks_see_everything_that_they_are_told, laws.NETS["unet"]),
    ),
    Mutation(
        "skips that are all there is",
        UNET,
        "h = skips[index - 1] + self.grow",
        "h = skips[index - 1] + 0 * self.grow",
        law(laws.test_networks_start_at_zero_and_every_parameter_takes_part, laws.NETS["unet"]),
    ),
    Mutation(
        "nothing said is a number",
        FIELDS,
        "said = (value >= 0)",
        "said = (value >= -2)",
        law(laws.test_what_a_column_does_not_say_adds_nothing),
    ),
]

DATA = [
    Mutation("paths that touch discs", WORLD, "(radius + self.clearance)", "(0 * radius)", OBSTACLES),
    Mutation("Euler's rule", WORLD, "(velocity[:, :-1] + velocity[:, 1:])", "(2 * velocity[:, :-1])", OBSTACLES),
    Mutation("actions of the wrong size", WORLD, "velocity.diff(dim=1) / self.dt", "velocity.diff(dim=1)", OBSTACLES),
    Mutation("everybody starts at rest", WORLD, "* duration * (uniform", "* 0 * (uniform", OBSTACLES),
    Mutation("pushes of any size", WORLD, "<= self.push", "<= 1e9", OBSTACLES),
    Mutation(
        "left is right", WORLD, "torch.where(farthest > 0, 0.0, 2.0)", "torch.where(farthest < 0, 0.0, 2.0)",
        laws.test_sides_are_those_that_one_sees,
    ),
    Mutation("windows run into the next episode", WINDOWS, "step[:, :-1], end - 1)", "step[:, :-1], end)", EPISODES),
    Mutation("moving while at rest", WINDOWS, "& moving, 0.0, tau)", "& moving, 1.0, tau)", EPISODES),
    Mutation("sums in place of mean actions", WINDOWS, "/ self.stride)", "/ 1)", EPISODES),
    Mutation("all windows begin anywhere", WINDOWS, "< self.from_start", "< 0", EPISODES),
    Mutation("one pace for places alone", WINDOWS, "tau * ratio[..., None], tau)", "tau, tau)", PACE),
    Mutation("actions grow like velocities", WINDOWS, "total * ratio[..., None] /", "total /", PACE),
    Mutation("steps are rounded down", WINDOWS, "share = (step - below)", "share = 0 * (step - below)", PACE),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [*MODELS, *NETWORKS, *DATA], ids=lambda mutation: mutation.name)
def test_a_law_notices(mutation):
    verify(mutation)
