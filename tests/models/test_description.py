"""Conditions with several attributes: rows of numbers, merged views, one forward, training batches."""

import copy

import pytest
import torch

import boltzmix as bm
from boltzmix.models import Diffusion, FlowMatching
from boltzmix.models.description import Description
from boltzmix.models.load import build
from boltzmix.models.nets import MLP, SceneNet, SceneUNet

FIELDS = {"shape": ("circle", "square", "triangle"), "color": ("red", "green", "blue", "yellow"), "x": (3.0, 13.0),
          "y": (3.0, 13.0)}  # fmt: skip


def patches():
    return SceneNet(size=16, hidden=16, blocks=3)


def grids():
    return SceneUNet(size=16, hidden=(8, 16), blocks=(1, 1))


def model(family=Diffusion, seed=0, network=patches, **options):
    torch.manual_seed(seed)
    net = network()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return family(net, (3, 16, 16), fields=FIELDS, together=[("x", "y")], **options).eval()


def test_rows_hold_what_is_said():
    about = Description(FIELDS, [("x", "y")])
    assert about.rows({"color": "blue"}).tolist() == [[-1, 2, -1, -1]]
    assert about.rows({"shape": 1, "x": 4, "y": 5.5}).tolist() == [[1, -1, 4, 5.5]]
    several = about.rows({"shape": ["circle", "square"], "x": torch.tensor([4.0, 5.0]), "y": 6.0})
    assert several.tolist() == [[0, -1, 4, 6], [1, -1, 5, 6]]
    assert about.describe(several[1].tolist()) == "shape=square, x=5, y=6"


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"shape": "cube"}, ValueError, "circle, square, triangle"),
        ({"shape": 3}, ValueError, "circle"),
        ({"shape": 1.0}, ValueError, "circle"),
        ({"x": 4.0}, ValueError, "x and y are given together, got only x"),
        ({"x": 2.0, "y": 4.0}, ValueError, r"\[3, 13\]"),
        ({"x": float("nan"), "y": 4.0}, ValueError, r"\[3, 13\]"),
        ({"x": "4", "y": 4.0}, TypeError, "number"),
        ({"x": True, "y": 4.0}, TypeError, "number"),
        ({"shape": ["circle", "square"], "color": ["red"] * 3}, ValueError, "one length"),
        ({"shape": []}, ValueError, "got none"),
        ({"x": torch.zeros(2, 2), "y": 4.0}, TypeError, "one per particle"),
    ],
)
def test_wrong_values_are_refused(said, error, message):
    with pytest.raises(error, match=message):
        model().given(**said)


@pytest.mark.parametrize(
    ("fields", "together", "message"),
    [
        ({}, (), "at least one"),
        ({"x": (3.0,)}, (), "'x'"),
        ({"x": (-1.0, 3.0)}, (), "0 <= low"),
        ({"x": (3.0, 1.0)}, (), "low < high"),
        ({"x": ("a", 1.0)}, (), "'x'"),
        ({"x": (0.0, 1.0)}, [("x", "y")], "'y'"),
    ],
)
def test_fields_of_no_kind_are_refused(fields, together, message):
    with pytest.raises(ValueError, match=message):
        Description(fields, together)


def test_networks_and_descriptions_must_agree():
    with pytest.raises(ValueError, match="4 columns"):
        Diffusion(SceneNet(size=16, hidden=16), (3, 16, 16))
    with pytest.raises(ValueError, match="no columns"):
        Diffusion(MLP(2, hidden=8), (2,), fields=FIELDS)
    with pytest.raises(ValueError, match="not both"):
        Diffusion(MLP(2, hidden=8, num_classes=2), (2,), fields=FIELDS, num_classes=2)


def test_views_merge_by_what_they_say():
    p = model()
    again = p.given(shape="circle", x=4, y=5)
    product = p * (p.given(shape="circle", x=4.0, y=5.0) / p) ** 2 * again
    assert {term.extra_repr(): e.constant for term, e in product.pairs()} == {"": -1.0, "shape=circle, x=4, y=5": 3.0}
    assert again.name() == "Diffusion(shape=circle, x=4, y=5)"
    with pytest.raises(ValueError, match="already conditioned on shape=circle"):
        again.given(color="red")


@pytest.mark.parametrize(("family", "network"), [(Diffusion, patches), (FlowMatching, patches), (Diffusion, grids)])
def test_a_composite_of_descriptions_is_one_forward_and_the_sum_of_its_parts(family, network):
    p = model(family, network=network)
    first, second = p.given(shape="circle", x=4, y=5), p.given(color="red")
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    calls = []
    handle = p.core.net.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    found = (p * (first / p) ** 2 * (second / p) ** 2).score(x, 0.7)
    handle.remove()
    assert calls == [15]
    parts = -3 * p.score(x, 0.7) + 2 * first.score(x, 0.7) + 2 * second.score(x, 0.7)
    assert torch.allclose(found, parts, atol=1e-4)
    assert not torch.allclose(first.score(x, 0.7), p.score(x, 0.7), atol=1e-3)


@pytest.mark.parametrize("network", [patches, grids])
def test_a_row_for_each_particle_is_that_row(network):
    p = model(network=network)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    each = p.given(shape=["circle", "square", "triangle"], x=[4.0, 5.0, 6.0], y=7.0)
    assert each.per_row
    assert not p.given(shape="circle").per_row
    whole = each.score(x, 1.0)
    for row, (shape, along) in enumerate((("circle", 4.0), ("square", 5.0), ("triangle", 6.0))):
        alone = p.given(shape=shape, x=along, y=7.0).score(x[row : row + 1], 1.0)
        assert torch.allclose(whole[row : row + 1], alone, atol=1e-5)
    with pytest.raises(ValueError, match="3 labels"):
        each.score(x[:2], 1.0)


def test_training_hides_descriptions_and_checks_them():
    p = model(dropout=0.5)
    x = torch.zeros(400, 3, 16, 16)
    rows = torch.tensor([[0.0, 1.0, 4.0, 5.0]]).repeat(400, 1)
    _, told = p._training_batch((x, rows), torch.Generator().manual_seed(0))
    hidden = (told == -1).all(1)
    assert 140 < hidden.sum() < 260
    assert torch.equal(told[~hidden], rows[~hidden])
    far = torch.tensor([[0.0, 1.0, 20.0, 5.0]]).repeat(400, 1)
    for wrong, error in ((rows[:, :3], TypeError), (rows.long(), TypeError), (rows + 4, ValueError), (far, ValueError)):
        with pytest.raises(error, match="description"):
            p.loss((x, wrong), torch.Generator().manual_seed(0))
    assert p.loss((x[:8], rows[:8]), torch.Generator().manual_seed(0)).isfinite()


def test_the_model_is_written_down_and_built_again():
    spec = {
        "class": "Diffusion",
        "arguments": {
            "event_shape": [3, 16, 16],
            "fields": {name: list(values) for name, values in FIELDS.items()},
            "together": [["x", "y"]],
        },
        "net": {"class": "SceneNet", "arguments": {"size": 16, "hidden": 16}},
    }
    built = build(spec)
    assert built.conditions == frozenset(FIELDS)
    with pytest.raises(TypeError, match="label"):
        built.given(label=3)


@pytest.mark.parametrize("network", [patches, grids])
def test_what_is_said_follows_the_model_to_float64_and_copies(network):
    p = model(network=network)
    view = copy.deepcopy(p.given(shape="circle")).double()
    assert view.score(torch.zeros(2, 3, 16, 16, dtype=torch.float64), 1.0).dtype == torch.float64


def test_a_model_of_descriptions_is_sampled():
    p = model()
    draw = bm.sample(p * (p.given(color="red") / p) ** 2, 3, sampler=bm.Reverse(steps=4), seed=0)
    assert draw.x.shape == (3, 3, 16, 16)
    assert draw.x.isfinite().all()


@pytest.mark.parametrize(("options", "message"), [({"size": 18}, "do not tile"), ({"blocks": 2}, "odd number")])
def test_networks_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneNet(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 18}, "must tile 18"), ({"hidden": (8,)}, "two positive"), ({"blocks": (0, 1)}, "two positive")],
)
def test_grids_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneUNet(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_in_memory_changes_no_number(dtype):
    """In bfloat16 the grids lie channels first, as everywhere else; the result is the same up to rounding."""
    net = model(network=grids).core.net
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[0.0, 2.0, 4.5, 9.5]]).repeat(3, 1)
    exact = net.double()(x.double(), torch.zeros(3, dtype=torch.float64), rows.double())
    net.float()
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        found = net(x, torch.zeros(3), rows)
    torch.testing.assert_close(found.double(), exact, atol=1e-6 if dtype is torch.float32 else 0.01, rtol=0)
    assert exact.std() > 0.05


def test_a_blob_moves_with_its_place_and_nothing_else():
    maps = SceneNet(size=16, hidden=16).maps
    rows = torch.tensor([[0.0, 2.0, 4.5, 9.5], [-1.0, -1.0, 4.5, 9.5], [0.0, 2.0, -1.0, -1.0]])
    pictures, vector = maps(rows)
    assert pictures.shape == (3, 8, 16, 16)
    assert pictures[0, 0].argmax() == 9 * 16 + 4
    assert (pictures[0].flatten(1).sum(1) > 0).tolist() == [True, True, False, False, False, False, True, False]
    assert (pictures[1].flatten(1).sum(1) > 0).tolist() == [True] + [False] * 7
    assert pictures[2].abs().sum() == 0
    assert vector[0].abs().sum() == 0
    assert vector[2].abs().sum() > 0
