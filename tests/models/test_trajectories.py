"""Trajectory models: known coordinates are told clean, and what is learned is the score of the free ones given them."""

import copy
import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from boltzmix.compose import Reverse, sample
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.term import evaluate
from boltzmix.models import TrajectoryDiffusion, data, fit, load, save
from boltzmix.models.load import build
from boltzmix.models.nets import TemporalUNet, TrajectoryDiT
from boltzmix.models.nets.fields import FieldEmbedding
from boltzmix.models.trajectories import PATTERNS, KnownPatterns
from boltzmix.planners.known import Held, hold
from boltzmix.planners.space import TrajectorySpace

FIELDS = {"returns": (0.0, 1.0), "skill": ("left", "right")}
NETS = {
    "unet": lambda **o: TemporalUNet(3, hidden=(8, 16), kernel=3, width=16, **o),
    "one level": lambda **o: TemporalUNet(3, hidden=(8,), patch=4, blocks=2, width=16, **o),
    "dit": lambda **o: TrajectoryDiT(3, width=16, depth=2, heads=2, embedding=8, waves=(1.0,), **o),
    "waves": lambda **o: TemporalUNet(3, hidden=(8, 8), kernel=3, width=16, waves=(1.0, 2.0), **o),
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)
ABOUT = {
    "horizon": 8,
    "state": ["x", "y"],
    "action": ["ax"],
    "dt": 0.5,
    "stride": 5,
    "loc": [0.0, 1.0, 0.0],
    "scale": [2.0, 2.0, 3.0],
    "position": ["x", "y"],
    "bounds": [[-4.0, 4.0], [-3.0, 5.0]],
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def excite(module, seed=0):
    rng = generator(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=rng))
    return module


def model(seed=0, **options):
    net = NETS["unet"](fields=FIELDS)
    return excite(TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT, fields=FIELDS, **options), seed).eval()


def known(*places):
    mask = torch.zeros(8, 3, dtype=torch.bool)
    for token, columns in places:
        mask[token, columns] = True
    return mask


ENDS = known((0, [0, 1, 2]), (-1, [0, 1]))

# ------------------------------------------------------------------------------------------------------------- networks


@every_net
def test_networks_take_every_length_and_rows_do_not_see_each_other(make):
    net = excite(make(fields=FIELDS)).double()
    for horizon in (8, 16, 24):
        x = torch.randn(3, horizon, 6, generator=generator(), dtype=torch.float64)
        c, rows = torch.linspace(-1, 1, 3).double(), torch.tensor([[0.5, 1.0], [-1, -1], [1.0, -1]]).double()
        whole = net(x, c, rows)
        assert whole.shape == (3, horizon, 3)
        for i in range(3):
            torch.testing.assert_close(net(x[i : i + 1], c[i : i + 1], rows[i : i + 1]), whole[i : i + 1])


@every_net
def test_networks_start_at_zero_and_every_parameter_takes_part(make):
    x = torch.randn(2, 8, 6, generator=generator())
    assert torch.count_nonzero(make()(x, torch.zeros(2))) == 0
    net = excite(make(fields=FIELDS))
    net(x, torch.zeros(2), torch.tensor([[0.5, 0.0], [0.2, -1.0]])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_net
def test_networks_see_everything_that_they_are_told(make):
    net = excite(make(fields=FIELDS)).double()
    x = torch.randn(1, 8, 6, generator=generator(), dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(net(x, torch.zeros(1).double())[0, -1].square().sum(), x)
    assert slope[0, 0].abs().min() > 0, "the last token does not see the first"
    with torch.no_grad():
        said = [net(x, torch.zeros(1).double(), torch.tensor([row]).double()) for row in ([-1, -1], [0.5, -1], [-1, 1])]
        assert torch.equal(net(x, torch.zeros(1).double()), said[0])
        assert not torch.allclose(said[0], said[1])
        assert not torch.allclose(said[0], said[2])
        assert not torch.allclose(net(x, torch.ones(1).double()), said[0])


@every_net
def test_networks_name_wrong_shapes(make):
    net = make()
    for shape in ((2, 7, 6), (2, 8, 3), (2, 8)):
        with pytest.raises(ValueError, match=r"trajectories \(N, H, 6\).*multiple of"):
            net(torch.zeros(shape), torch.zeros(2))


def test_networks_without_a_mask_and_wrong_sizes():
    assert TemporalUNet(3, hidden=(8,), masked=False)(torch.zeros(1, 4, 3), torch.zeros(1)).shape == (1, 4, 3)
    assert TrajectoryDiT(3, width=8, depth=1, masked=False)(torch.zeros(1, 4, 3), torch.zeros(1)).shape == (1, 4, 3)
    with pytest.raises(ValueError, match="odd kernel"):
        TemporalUNet(3, kernel=4)
    with pytest.raises(ValueError, match="multiple of 2 and of heads"):
        TrajectoryDiT(3, width=9)
    with pytest.raises(ValueError, match="at least 1"):
        TrajectoryDiT(3, depth=0)
    with pytest.raises(ValueError, match="at least one attribute"):
        FieldEmbedding({}, 8)


def test_positions_of_the_transformer_tell_tokens_apart():
    net = excite(TrajectoryDiT(1, patch=1, width=16, depth=1, heads=2)).double()
    out = net(torch.ones(1, 6, 2).double(), torch.zeros(1).double())[0, :, 0].detach()
    assert len({round(float(v), 9) for v in out}) == 6


def test_what_a_column_does_not_say_adds_nothing():
    embed = excite(FieldEmbedding(FIELDS, 8))
    nothing, number = embed(torch.tensor([[-1.0, -1.0]])), embed(torch.tensor([[0.0, -1.0]]))
    assert torch.equal(nothing[0], embed.parts[1].weight[0])
    assert not torch.allclose(nothing, number), "0 is said as nothing"
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        embed(torch.zeros(3, 1))


# --------------------------------------------------------------------------------------------------- known coordinates


def test_views_know_their_coordinates_clean():
    """The network reads x / s where free and x / σ_d where known, and the mask beside them; known scores are 0."""
    p = model(sigma_data=0.7, loc=0.3)
    seen = []
    p.core.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    x = torch.randn(4, 8, 3, generator=generator())
    with torch.no_grad():
        score = p.conditioned_on(ENDS).score(x, 2.0)
        joint = p.score(x, 2.0)
    spread = math.hypot(2.0, 0.7)
    for mask, tall in ((ENDS, seen[0]), (torch.zeros_like(ENDS), seen[1])):
        torch.testing.assert_close(tall[..., :3], (x - 0.3) / torch.where(mask, 0.7, spread))
        assert torch.equal(tall[..., 3:], mask.float().expand(4, 8, 3))
    assert torch.count_nonzero(score[:, ENDS]) == 0
    out = p.core.net(seen[0], torch.full((4,), math.log(2.0) / 4))
    expected = -(x - 0.3) / spread**2 + 0.7 / (2.0 * spread) * out
    torch.testing.assert_close(score[:, ~ENDS], expected[:, ~ENDS])
    assert not torch.allclose(score[:, ~ENDS], joint[:, ~ENDS])
    moved = x.clone()
    moved[:, ENDS] += 1
    with torch.no_grad():
        assert not torch.allclose(p.conditioned_on(ENDS).score(moved, 2.0)[:, ~ENDS], score[:, ~ENDS])
        assert torch.equal(p.conditioned_on(ENDS).denoise(x, 2.0)[:, ENDS], x[:, ENDS])


def test_views_are_told_apart_and_evaluated_together():
    p = model()
    views = [p, p.conditioned_on(ENDS), p.conditioned_on(known((3, [0]))), p.given(skill="left").conditioned_on(ENDS)]
    assert len({view.key() for view in views}) == 4
    assert p.conditioned_on(ENDS).key() == p.conditioned_on(ENDS.numpy()).key()
    assert p.conditioned_on(torch.zeros_like(ENDS)) is p
    x = torch.randn(5, 8, 3, generator=generator())
    with torch.no_grad():
        together = evaluate(views, x, torch.tensor(0.5), energy=False, score=True)
        for view in views:
            torch.testing.assert_close(together[view.key()][1], view.score(x, 0.5), rtol=1e-4, atol=1e-5)
        power = p.conditioned_on(ENDS).given(skill="left")
        assert power.key() == views[3].key()
    assert [id(q) for q in views[1].parameters()] == [id(q) for q in p.parameters()]
    assert "5 known coordinates" in views[1].extra_repr()
    assert p._stack_rows([p, views[1]], 5) is None
    same = copy.deepcopy(views[1])
    with torch.no_grad():
        assert torch.equal(same.score(x, 0.5), views[1].score(x, 0.5))


def test_wrong_masks_are_named():
    p = model()
    with pytest.raises(TypeError, match=r"boolean, got torch.float32"):
        p.conditioned_on(torch.zeros(8, 3))
    with pytest.raises(ValueError, match=r"shape \(8, 3\), got \(8,\)"):
        p.conditioned_on(torch.zeros(8, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing left"):
        p.conditioned_on(torch.ones(8, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="already"):
        p.conditioned_on(ENDS).conditioned_on(ENDS)
    with pytest.raises(ValueError, match="resize the model, then"):
        p.conditioned_on(ENDS).resized(16)


def test_other_lengths_share_the_network():
    p = model(loc=torch.tensor([0.1, 0.2, 0.3]))
    q = p.resized(16)
    assert q.event_shape == (16, 3)
    assert q.trajectory == {**ABOUT, "horizon": 16}
    assert p.event_shape == (8, 3)
    assert p.trajectory["horizon"] == 8
    assert q.key() != p.key()
    x = torch.randn(2, 16, 3, generator=generator())
    with torch.no_grad():
        assert q.score(x, 1.0).shape == x.shape
        assert q.coarse(10.0).mean.numel() == 48
    mask = torch.zeros(16, 3, dtype=torch.bool)
    mask[0] = True
    assert q.conditioned_on(mask).coarse(10.0).mean.numel() == 48
    with pytest.raises(ValueError, match="multiples of 4, got 10"):
        p.resized(10)


def test_descriptions_of_trajectories_are_checked():
    net = NETS["unet"]()
    for change, message in (
        ({"horizon": 12}, r"\(H, D\) = \(12, 3\)"),
        ({"action": []}, r"\(H, D\) = \(8, 2\)"),
        ({"position": ["x", "z"]}, r"\['z'\]"),
        ({"scale": [1.0]}, "scale has one number"),
    ):
        with pytest.raises(ValueError, match=message):
            TrajectoryDiffusion(net, (8, 3), trajectory={**ABOUT, **change})
    for options, message in (
        ({"parameterization": "epsilon"}, "preconditioning"),
        ({"lengths": (6,)}, "multiples of 4"),
        ({"lengths": (16,)}, "windows of the data's 8"),
        ({"crops": 2.0}, "share"),
        ({"weight": "elbo"}, "EDM's weights"),
        ({"loc": torch.arange(24.0).reshape(8, 3)}, "must not depend on the token"),
        ({"patterns": {"middle": 1.0}}, "middle"),
        ({"patterns": {"none": 0.0}}, "not all 0"),
        ({"fields": FIELDS}, "columns"),
    ):
        with pytest.raises(ValueError, match=message):
            TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT, **options)
    with pytest.raises(ValueError, match="masked=False"):
        TrajectoryDiffusion(NETS["unet"](masked=False), (8, 3), trajectory=ABOUT)
    with pytest.raises(ValueError, match="describes the tokens"):
        TrajectoryDiffusion(net, (8, 3), trajectory={"state": ["x"]})


def test_planners_read_the_space_from_the_model(tmp_path):
    spec = {
        "class": "TrajectoryDiffusion",
        "arguments": {"event_shape": [8, 3], "trajectory": ABOUT, "fields": {k: list(v) for k, v in FIELDS.items()}},
        "net": {"class": "TemporalUNet", "arguments": {"dim": 3, "hidden": [8], "fields": FIELDS}},
    }
    save(excite(build(spec)), "tiny", tmp_path, spec)
    space = TrajectorySpace.of(load("tiny", tmp_path))
    assert space == TrajectorySpace.from_dict(ABOUT)
    assert space.shape == (8, 3)
    assert TrajectorySpace.of(load("tiny", tmp_path).resized(16)).horizon == 16


# ----------------------------------------------------------------------------------------------- patterns and training


def test_patterns_are_as_frequent_as_said_and_hold_what_they_say():
    n, horizon = 4000, 8
    draw = KnownPatterns({"state": ("x", "y", "v"), "action": ("a",)})
    masks = draw(n, horizon, generator(1))
    assert masks.shape == (n, horizon, 4)
    positions, state = masks[..., 0], masks[..., 2]
    assert torch.equal(positions, masks[..., 1])
    assert not bool((state & ~positions).any())
    nothing = float((~masks).flatten(1).all(1).float().mean())
    assert abs(nothing - PATTERNS["none"]) < 5 * math.sqrt(0.15 * 0.85 / n)
    # one pattern at a time, with what it must and must not hold
    inner = slice(1, horizon - 1)
    for name in PATTERNS:
        m = KnownPatterns({"state": ("x", "y", "v"), "action": ("a",)}, {name: 2.0})(n, horizon, generator(2))
        token = m[..., 0]
        share = {"first": float(token[:, 0].float().mean()), "last": float(token[:, -1].float().mean())}
        has_first = name in ("start", "start and goal", "waypoints", "prefix")
        half = name in ("waypoints", "prefix")
        assert share["first"] == (1.0 if has_first else 0.0), name
        assert token[:, -1].any() == (name in ("goal", "start and goal") or half), name
        if name in ("goal", "start and goal"):
            assert share["last"] == 1.0
        assert bool(token[:, inner].any()) == half, name
        assert bool(m[..., 3].any()) == (name == "prefix"), name
        if name == "prefix":
            length = token[:, :-1].sum(1)
            assert int(length.min()) == 1
            assert int(length.max()) == horizon // 2
            assert bool((token[:, :-1].long().diff(dim=1) <= 0).all())
        if name == "start and goal":  # whole states in 85 % and 50 %
            for place, expected in ((0, 0.85), (-1, 0.5)):
                found = float(m[:, place, 2].float().mean())
                assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


class Recorder(nn.Module):
    """A network that answers with 7 where its input is said to be known, and keeps what it was given."""

    def __init__(self, dim=3, columns=None):
        super().__init__()
        self.dim, self.columns, self.factor, self.seen = dim, columns, 1, []
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, rows=None):
        self.seen.append((x.detach(), c_noise, rows))
        return 7 * self.gate * x[..., self.dim :]


def test_the_loss_tells_known_coordinates_clean_and_does_not_ask_for_them():
    net = Recorder()
    p = TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT, sigma_data=0.7)
    x = torch.randn(256, 8, 3, generator=generator())
    loss = p.loss(x, generator(5))
    seen, c_noise, _ = net.seen[0]
    sigma, mask = (4 * c_noise).exp(), seen[..., 3:].bool()
    torch.testing.assert_close(seen[..., :3][mask], (x / 0.7)[mask])
    spread = (sigma**2 + 0.49).sqrt()[:, None, None]
    noise = ((seen[..., :3] * spread - x) / sigma[:, None, None])[~mask]
    assert abs(float(noise.mean())) < 5 / math.sqrt(len(noise))
    assert abs(float(noise.std()) - 1) < 0.1
    # the answer 7 at known coordinates costs nothing: the loss is that of a network that says 0
    full = torch.zeros_like(x).masked_scatter(~mask, noise)
    level = sigma[:, None, None]
    target = (level * x - 0.49 * full) / (0.7 * spread)
    torch.testing.assert_close(loss.detach(), target[~mask].square().mean(), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert float(net.gate.grad) == 0


def test_importance_weighs_columns_and_nothing_else():
    x, losses = torch.randn(64, 8, 3, generator=generator()), {}
    for weights in ((), (3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0), (5.0, 5.0, 5.0)):
        p = TrajectoryDiffusion(
            Recorder(), (8, 3), trajectory=ABOUT, importance=weights, sigma_data=0.7, patterns={"none": 1.0}
        )
        losses[weights] = float(p.loss(x, generator(1)).detach())
    assert losses[5.0, 5.0, 5.0] == pytest.approx(losses[()])
    three = [losses[w] for w in ((3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0))]
    assert sum(three) / 3 == pytest.approx(losses[()], rel=1e-5)
    assert len({round(loss, 5) for loss in three}) == 3
    with pytest.raises(ValueError, match="importance is one positive number"):
        TrajectoryDiffusion(Recorder(), (8, 3), trajectory=ABOUT, importance=(1.0, 0.0, 1.0))


def test_maps_are_read_at_positions_whatever_the_noise():
    """Free positions come divided by √(σ² + 1), known ones do not: the map sees both where they are."""
    places = {"low": (-3.0, -3.0), "high": (3.0, 3.0), "counts": (7, 5), "size": 4}
    net = excite(TrajectoryDiT(3, width=16, depth=1, heads=2, embedding=8, places=places))
    p, seen = TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT), []
    net.places.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 8, 3, generator=generator())
    with torch.no_grad():
        for sigma in (0.1, 3.0):
            p.conditioned_on(ENDS).score(x, sigma)
            torch.testing.assert_close(seen[-1], x[..., :2])
        vectors = net.places(torch.tensor([[-3.0, -3.0], [3.0, 0.0], [40.0, 0.0]]))
    table = net.places.table.weight
    assert torch.count_nonzero(vectors[2]) == 0
    along = torch.exp(-0.5 * torch.arange(7.0) ** 2)[:, None] * torch.exp(-0.5 * torch.arange(5.0) ** 2)
    torch.testing.assert_close(vectors[0], table @ along.flatten())


def test_shorter_lengths_are_windows_of_the_batch():
    net = Recorder()
    p = TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT, lengths=(2, 4), crops=0.5, patterns={"prefix": 1.0})
    x = torch.arange(8.0)[None, :, None].expand(16, 8, 3).contiguous()
    firsts = set()
    for seed in range(60):
        p.loss(x, generator(seed))
        seen = net.seen[-1][0]
        first = seen[0, 0, 0]
        firsts.add((seen.shape[1], int(first)))
        assert bool((seen[:, 0, 0] == first).all())
    assert {length for length, _ in firsts} == {2, 4, 8}
    assert {first for length, first in firsts if length == 4} == {0, 1, 2, 3, 4}
    assert {first for length, first in firsts if length == 8} == {0}


def test_each_field_is_hidden_on_its_own():
    net = Recorder(columns=2)
    p = TrajectoryDiffusion(net, (8, 3), trajectory=ABOUT, fields=FIELDS, dropout=0.5)
    n = 2000
    p.loss((torch.zeros(n, 8, 3), torch.tensor([[0.5, 1.0]]).expand(n, 2)), generator(0))
    said = net.seen[0][2] != -1
    shares = [float(rows.float().mean()) for rows in (said[:, 0], said[:, 1], said.all(1))]
    for found, expected in zip(shares, (0.25, 0.25, 0.125), strict=True):
        assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


class Oracle(nn.Module):
    """What a perfect network says of Gaussian data N(0, C), for any mask: E[x0 | what it is given] in EDM's form."""

    def __init__(self, covariance, shape, blind=False):
        super().__init__()
        self.register_buffer("covariance", covariance)
        self.shape, self.blind, self.factor, self.columns = shape, blind, 1, None
        self.unused = nn.Parameter(torch.zeros((), dtype=covariance.dtype))

    def forward(self, x, c_noise, rows=None):
        sigma = (4 * c_noise).exp()
        values, mask = x.chunk(2, -1)
        spread = (sigma**2 + 1).sqrt()[:, None]
        mask, values = mask.flatten(1).bool(), values.flatten(1)
        seen = torch.where(mask, values, values * spread)
        out = torch.zeros_like(seen)
        for pattern in mask.unique(dim=0):
            rows, k, f = (mask == pattern).all(1).nonzero()[:, 0], pattern.nonzero()[:, 0], (~pattern).nonzero()[:, 0]
            mean, c = torch.zeros(len(rows), len(f), dtype=x.dtype), self.covariance[f][:, f]
            if len(k) and not self.blind:
                gain = torch.linalg.solve(self.covariance[k][:, k], self.covariance[k][:, f]).mT
                mean, c = seen[rows][:, k] @ gain.mT, c - gain @ self.covariance[k][:, f]
            level, x_f = sigma[rows, None], seen[rows][:, f]
            total = c + level[..., None] ** 2 * torch.eye(len(f), dtype=x.dtype)
            estimate = mean + (c @ torch.linalg.solve(total, (x_f - mean)[..., None]))[..., 0]
            out[rows[:, None], f] = (estimate - x_f / spread[rows] ** 2) * spread[rows] / level
        return out.reshape(len(x), *self.shape) + self.unused


def gaussian_twin(blind=False, **options):
    """A random walk of 4 tokens of one number, with its covariance."""
    covariance = torch.minimum(*torch.meshgrid(torch.arange(1.0, 5), torch.arange(1.0, 5), indexing="ij")).double() / 2
    about = {"horizon": 4, "state": ["x"], "position": ["x"]}
    net = Oracle(covariance, (4, 1), blind)
    return TrajectoryDiffusion(net, (4, 1), trajectory=about, sigma_range=(0.01, 20.0), **options).double(), covariance


def test_a_perfect_network_samples_the_conditional_law():
    """Start and goal of a random walk are pinned: means and covariances of the bridge, |z| < 4.5 for 5 figures.

    False positives: 5 · P(|z| > 4.5) = 3e-5, and seeds are fixed.
    """
    p, covariance = gaussian_twin()
    mask = torch.tensor([True, False, False, True])
    target = hold(p, Held(mask[:, None], torch.tensor([1.5, 0, 0, -1.0]).double()[:, None]))
    assert target.path == "noised"
    n = 1000
    draw = sample(target, n, sampler=Reverse(steps=24), seed=0, dtype=torch.float64)
    known_part, free = covariance[mask][:, mask], covariance[~mask][:, mask]
    gain = torch.linalg.solve(known_part, free.mT).mT
    mean = gain @ torch.tensor([1.5, -1.0]).double()
    spread = covariance[~mask][:, ~mask] - gain @ free.mT
    z = (draw.x.mean(0) - mean) / (spread.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 4.5, z
    found = draw.x.T.cov()
    error = ((spread.diagonal()[:, None] * spread.diagonal() + spread**2) / n).sqrt()
    assert float(((found - spread) / error).abs().max()) < 4.5, found


def test_the_loss_is_least_where_the_network_heeds_what_is_known():
    """Denoising score matching with masks: the perfect network's gradient vanishes, and a blind one loses."""
    x0 = torch.linalg.cholesky(gaussian_twin()[1]) @ torch.randn(4, 600, generator=generator(3), dtype=torch.float64)
    losses, slope = [], 0.0
    for blind in (False, True):
        p, _ = gaussian_twin(blind, patterns={"start and goal": 1.0})
        loss = p.loss(x0.T[..., None], generator(4))
        losses.append(float(loss.detach()))
        if not blind:
            loss.backward()
            slope = float(p.core.net.unused.grad)
    assert losses[1] > 1.15 * losses[0]
    assert abs(slope) < 5 * 2 * math.sqrt(losses[0] / 600), slope


def test_fit_learns_a_corner_and_not_the_straight_line():
    """Ways that go right and then up: with both ends known, the corner is found. 120 steps of a tiny network."""
    about = {"horizon": 8, "state": ["x", "y"], "loc": [0, 0], "scale": [1, 1]}
    torch.manual_seed(0)
    net = TemporalUNet(2, hidden=(24,), kernel=5, width=16)
    p = TrajectoryDiffusion(net, (8, 2), trajectory=about, patterns={"start and goal": 1.0}, noise=(0.0, 1.2))

    def stream(n, rng):
        size = 0.5 + torch.rand(n, 1, generator=rng)
        t = torch.linspace(0, 2, 8)
        return torch.stack([size * t.clamp(max=1), size * (t - 1).clamp(min=0)], 2)

    fit(p, stream, steps=120, batch_size=32, lr=5e-3, ema=0.95, progress=False)
    p.eval()
    mask = torch.zeros(8, 2, dtype=torch.bool)
    mask[0] = mask[-1] = True
    value = torch.zeros(8, 2)
    value[-1] = 1.0
    draw = sample(hold(p, Held(mask, value)), 16, sampler=Reverse(steps=8, solver="ddim"), seed=0)
    corner = draw.x.reshape(16, 6, 2)[:, 2:4].mean((0, 1))
    assert float(corner[0]) > 0.8, corner
    assert float(corner[1]) < 0.2, corner


# -------------------------------------------------------------------------------------------------------------- data


def test_the_world_of_obstacles_keeps_its_laws():
    """Off the discs and in the square along segments, a double integrator, and the same from the same seed."""
    world = data.ObstacleWorld(clearance=0.04)
    tau, rows, discs = world.worlds(300, generator(2))
    again = world.sample(300, generator(2))
    assert torch.equal(tau, again[0])
    assert torch.equal(rows, again[1])
    position, velocity, action = tau[..., :2], tau[..., 2:4], tau[..., 4:]
    share = torch.linspace(0, 1, 9)[:, None]
    dense = (position[:, :-1, None] + share * position.diff(dim=1)[:, :, None]).flatten(1, 2)
    assert float(dense.abs().max()) < 1
    for x, y, radius in discs.permute(1, 2, 0):
        gap = (dense - torch.stack([x, y], 1)[:, None]).norm(dim=2).amin(1)
        assert bool((gap[radius > 0] > radius[radius > 0] + 0.03).all())
    count = (discs[..., 2] > 0).sum(1)
    assert set(count.tolist()) == {0, 1, 2}
    dt = world.dt
    moved = position[:, :-1] + dt * velocity[:, :-1] + dt**2 / 2 * action[:, :-1]
    torch.testing.assert_close(position[:, 1:], moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(velocity[:, 1:], velocity[:, :-1] + dt * action[:, :-1], rtol=0, atol=1e-5)
    resting = [float((velocity[:, at].norm(dim=1) < 1e-3).float().mean()) for at in (0, -1)]
    assert 0.45 < resting[0] < 0.75
    assert float(action.abs().max()) <= world.push
    assert resting[1] > 0.85
    assert bool(((rows[:, 0] >= 0) & (rows[:, 0] <= 1)).all())


def test_sides_are_those_that_one_sees():
    t = torch.linspace(0, 1, 32)
    paths = [torch.stack([t, height * (math.pi * t).sin()], 1) for height in (0.4, 0.0, -0.4)]
    tau = torch.cat([torch.stack(paths), torch.zeros(3, 32, 4)], 2)
    from boltzmix.models.data.obstacle_world import SIDES, described

    rows = described(tau)
    assert [SIDES[int(side)] for side in rows[:, 1]] == ["left", "straight", "right"]
    assert rows[1, 0] == pytest.approx(1.0, abs=1e-4)
    assert rows[0, 0] == pytest.approx(rows[2, 0].item())
    assert rows[0, 0] < 0.85


def test_worlds_that_make_no_sense_are_refused():
    for change in ({"horizon": 1}, {"most": -1}, {"radius": (0.3, 0.2)}, {"speed": (0.0, 1.0)}, {"moving": 2.0}):
        with pytest.raises(ValueError, match="wanted|low, high|shares"):
            data.ObstacleWorld(**change)
    with pytest.raises(ValueError, match="dt > 0"):
        dataclasses.replace(data.ObstacleWorld(), dt=math.nan)


EPISODES = {**ABOUT, "horizon": 3, "stride": 2, "state": ["x", "y", "vx"], "loc": [0.0] * 4, "scale": [1, 1, 2, 4]}


def write_episodes(path, **changes):
    """Two episodes of 4 and 3 steps; x counts steps from 10 and from 20, the goal is at the last."""
    x = np.array([10, 11, 12, 13, 20, 21, 22], dtype=np.float32)
    columns = {
        "observations": np.stack([x, 0 * x, 0 * x + 5], 1),
        "actions": np.arange(7, dtype=np.float32)[:, None],
        "goals": np.stack([np.where(x < 20, 13, 22), 0 * x], 1).astype(np.float32),
        "terminals": np.array([0, 0, 0, 1, 0, 0, 1], dtype=bool),
    }
    np.savez(path, **{k: v for k, v in {**columns, **changes}.items() if v is not None})
    return path


def test_windows_of_episodes(tmp_path):
    windows = data.EpisodeWindows(write_episodes(tmp_path / "a.npz"), EPISODES, at_goal=0.5)
    tau, returns = windows.at(torch.tensor([0, 1, 4]))
    # states two steps apart, then the last state at rest; the mean action of the two steps; never the next episode
    assert tau[0].tolist() == [[10, 0, 5, 0.5], [12, 0, 5, 2.5], [13, 0, 0, 0]]
    assert tau[1].tolist() == [[11, 0, 5, 1.5], [13, 0, 5, 1.5], [13, 0, 0, 0]]
    assert tau[2].tolist() == [[20, 0, 5, 4.5], [22, 0, 5, 3.0], [22, 0, 0, 0]]
    assert returns.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    x, rows = windows(400, generator(0))
    assert x.shape == (400, 3, 4)
    assert rows.shape == (400, 1)
    begins = torch.bincount(x[:, 0, 0].long(), minlength=23)[[10, 11, 12, 13, 20, 21, 22]] / 400
    expected = torch.tensor([0.6 / 2] + [0.0] * 3 + [0.6 / 2, 0, 0]) + 0.4 / 7
    assert float((begins - expected).abs().max()) < 5 * math.sqrt(0.36 * 0.64 / 400)
    assert float(x[..., 2].max()) == 2.5, "normalised"


def test_windows_at_one_pace(tmp_path):
    """An episode at 5 m/s brought to 6: states lie 2.4 steps apart, velocities grow by 1.2 and actions by 1.44."""
    windows = data.EpisodeWindows(write_episodes(tmp_path / "a.npz"), EPISODES, pace=6.0)
    tau, _ = windows.at(torch.tensor([0]))
    expected = [[10, 0, 6, 1.44 * (0 + 1 + 0.4 * 2) / 2.4], [12.4, 0, 6, 1.44 * (0.6 * 2 + 3) / 2.4], [13, 0, 0, 0]]
    torch.testing.assert_close(tau[0], torch.tensor(expected))
    slow, _ = data.EpisodeWindows(tmp_path / "a.npz", EPISODES, pace=2.5).at(torch.tensor([0]))
    assert float(slow[0, 1, 0]) == pytest.approx(10 + 2 * 2.5 / 3.0)
    with pytest.raises(ValueError, match="positive speed"):
        data.EpisodeWindows(tmp_path / "a.npz", EPISODES, pace=-1.0)


def test_windows_name_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m boltzmix collect pointmaze-umaze"):
        data.EpisodeWindows(tmp_path / "pointmaze-umaze.npz", EPISODES)
    bad = np.full((7, 3), np.nan, dtype=np.float32)
    for change, message in (
        ({"goals": None}, r"lacks \['goals'\]"),
        ({"observations": np.zeros((7, 2), np.float32)}, r"observations have shape \(7, 3\), got \(7, 2\)"),
        ({"actions": np.zeros((6, 1), np.float32)}, r"actions have shape \(7, 1\)"),
        ({"observations": bad}, "21 of the observations are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            data.EpisodeWindows(write_episodes(tmp_path / "b.npz", **change), EPISODES)


def test_windows_are_those_of_the_planners_reader(tmp_path):
    """The same file, read by the package's own class for recorded trajectories."""
    from boltzmix.planners.data.trajectories import Trajectories, ends_of

    path = write_episodes(tmp_path / "a.npz")
    with np.load(path) as stored:
        columns = {name: torch.from_numpy(stored[name]) for name in stored}
    recorded = Trajectories(
        columns["observations"], columns["actions"], ends_of(columns["terminals"]), state_names=("x", "y", "vx")
    )
    windows, first = data.EpisodeWindows(path, EPISODES), torch.arange(7)
    assert torch.equal(windows.at(first)[0], recorded.at(first, 3, 2))


# --------------------------------------------------------------------------------------------------- weights that ship


def test_shipped_obstacles_plan_from_start_to_goal():
    """Pins are kept bit for bit, plans stay in the square and obey the double integrator; what is said is heeded."""
    prior = load("obstacles")
    space = TrajectorySpace.of(prior)
    mask = torch.zeros(space.shape, dtype=torch.bool)
    mask[0, :4] = mask[-1, :4] = True
    value = torch.zeros(space.shape)
    value[0, :2], value[-1, :2] = torch.tensor([-1.4, -0.8]), torch.tensor([1.2, 1.0])
    sides, lengths = {}, {}
    left, right = (prior.given(skill=side) for side in ("left", "right"))
    terms = {"free": prior, "left": prior * (left / prior) ** 2, "right": prior * (right / prior) ** 2}
    terms |= {"long": prior.given(returns=0.6), "short": prior.given(returns=0.99)}
    for name, term in terms.items():
        held = Held(mask, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # guidance is no noised path
            draw = sample(hold(term, held), 64, sampler=Reverse(steps=10, solver="dpmpp"), seed=0)
        x = held.join(draw.x)
        assert torch.equal(x[:, mask], value[mask].expand(64, -1))
        tau = space.physical(x)
        position, velocity, action = tau[..., :2], tau[..., 2:4], tau[..., 4:]
        inside = (position.abs() < 1.02).flatten(1).all(1)
        assert float(inside.float().mean()) > 0.9, name
        step = 0.1 * velocity[:, :-1] + 0.005 * action[:, :-1]
        assert float((position.diff(dim=1) - step).square().mean().sqrt()) < 0.02, name
        across = value[-1, :2] - value[0, :2]
        offset = x[..., :2] - value[0, :2]
        height = across[0] * offset[..., 1] - across[1] * offset[..., 0]
        sides[name] = float((height.gather(1, height.abs().argmax(1, keepdim=True)) > 0).float().mean())
        lengths[name] = float(position.diff(dim=1).norm(dim=2).sum(1).median())
    assert 0.25 < sides["free"] < 0.75, sides
    assert sides["left"] > 0.75, sides
    assert sides["right"] < 0.25, sides
    assert lengths["long"] > 1.15 * lengths["short"], lengths
