"""Errors in scenes, descriptions and their network, planted one by one: a law notices each."""

import pytest

from boltzmix.models import load
from tests.benchmarks import test_images
from tests.models import test_description, test_scenes
from tests.mutations.harness import Mutation, law, verify

SCENES, DESCRIPTION, NET = "boltzmix.models.data.scenes", "boltzmix.models.description", "boltzmix.models.nets.scene"
LABELS = "boltzmix.models.labels"

LAW = law(test_scenes.test_scenes_are_what_their_law_says)
AREA = law(test_scenes.test_the_renderer_covers_what_shapes_cover)
FAIR = law(test_scenes.test_descriptions_name_one_object_chosen_fairly)
RELATIONS = law(test_scenes.test_relations_are_true)
INVENTORY = law(test_scenes.test_an_inventory_holds_everything_in_random_order)
ROWS = law(test_description.test_rows_hold_what_is_said)
TRAINING = law(test_description.test_training_hides_descriptions_and_checks_them)
BLOB = law(test_description.test_a_blob_moves_with_its_place_and_nothing_else)
EACH = law(test_description.test_a_row_for_each_particle_is_that_row, test_description.patches)


def apart():
    test_images.test_attributes_told_apart_are_said_once(load("scenes16"))


APART = law(apart)

PLANTED = [
    Mutation("counts start at zero", SCENES, "randint(1, self.most + 1", "randint(1, self.most", LAW),
    Mutation("held-out pairs appear", SCENES, "if (s, c) not in held", "if (s, c) not in ()", LAW),
    Mutation("objects come too close", SCENES, "gap >= self.distance**2", "gap >= self.distance", LAW),
    Mutation("pixels are sampled at their corners", SCENES, "position.dtype) + 0.5", "position.dtype) + 0.4", AREA),
    Mutation("the ramp at an outline is shifted", SCENES, "(0.5 - signed)", "(0.8 - signed)", AREA),
    Mutation(
        "the first object is always described",
        SCENES,
        "(uniform(n) * layouts.count).long()",
        "(0 * uniform(n)).long()",
        FAIR,
    ),
    Mutation(
        "scenes of one object say nothing instead", SCENES, "< 2))[:, None], alone", "< 2))[:, None], NOTHING", FAIR
    ),
    Mutation("relations are turned around", SCENES, "related & swapped[:, 0]", "related & ~swapped[:, 0]", RELATIONS),
    Mutation(
        "an inventory keeps its order",
        SCENES,
        "order = key.argsort(1)",
        "order = (key > 1).long().argsort(1, stable=True)",
        INVENTORY,
    ),
    Mutation(
        "columns are filled in the order of the call",
        DESCRIPTION,
        "rows[:, index] = columns[name]",
        "rows[:, list(columns).index(name)] = columns[name]",
        ROWS,
    ),
    Mutation(
        "values out of range pass in training",
        DESCRIPTION,
        "(column >= low) & (column <= high)",
        "(column >= low) | (column <= high)",
        TRAINING,
    ),
    Mutation(
        "half of a description is hidden",
        LABELS,
        "torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), NULL, label)",
        "torch.where(torch.rand(label.shape, generator=generator) < self.dropout, NULL, label)",
        TRAINING,
    ),
    Mutation(
        "all rows are told the first one",
        LABELS,
        "            return self.labels\n        return None if self.label is None",
        "            return self.labels[:1].expand(n, -1)\n        return None if self.label is None",
        EACH,
    ),
    Mutation("x and y change places", NET, "x, y = along.unbind(2)", "y, x = along.unbind(2)", BLOB),
    Mutation("what has a place is in the vector, too", NET, "unplaced = 1 - placed", "unplaced = 1 + 0 * placed", BLOB),
    Mutation(
        "the last category has no channel",
        NET,
        "[..., 1:].to(rows.dtype) * placed",
        "[..., :-1].to(rows.dtype) * placed",
        BLOB,
    ),
    Mutation(
        "the place is said twice",
        "boltzmix.benchmarks.scenes.accuracy",
        "(colored / model.given(**place))",
        "(colored / model)",
        APART,
    ),
]


@pytest.mark.parametrize("mutation", PLANTED, ids=lambda m: m.name)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
