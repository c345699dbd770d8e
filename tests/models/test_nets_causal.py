"""PixelCNN, WaveNet and the causal transformer: what each output may see, exactly, and that it sees all of it.

Networks start with a zero last layer, so every parameter is drawn anew here.
"""

import itertools

import pytest
import torch

from boltzmix.models.nets import CausalTransformer, PixelCNN, WaveNet
from boltzmix.models.nets.pixelcnn import MaskedConv
from boltzmix.models.orders import raster

D = torch.float64


def drawn(net, seed=0, dtype=D):
    """The network with random parameters everywhere."""
    rng = torch.Generator().manual_seed(seed)
    net = net.to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            fan = max(p[0].numel(), 1) if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=rng, dtype=dtype) * (1.5 / fan**0.5 if p.ndim > 1 else 0.5))
    return net


# One network of each kind for tokens and one for reals, with the event they read; all reach as far as their event.
NETS = {
    "transformer": (lambda k: CausalTransformer(6, 4, levels=k, hidden=8, depth=2, heads=2, num_classes=3), (6,)),
    "wavenet": (lambda k: WaveNet(4, levels=k, hidden=8, dilations=(1, 2, 4), num_classes=3), (7,)),
    "wavenet-3": (lambda k: WaveNet(4, levels=k, hidden=8, dilations=(1, 2), kernel=3, length=7, num_classes=3), (7,)),
    "pixelcnn": (lambda k: PixelCNN(1, 4, levels=k, hidden=6, layers=2, first=5, num_classes=3), (1, 4, 5)),
    "pixelcnn-rgb": (lambda k: PixelCNN(3, 2, levels=k, hidden=6, layers=2, first=3, num_classes=3), (3, 4, 3)),
    "pixelcnn-wide": (lambda k: PixelCNN(2, 2, levels=k, hidden=6, layers=2, first=7, num_classes=3), (2, 2, 6)),
}


def in_order(net, values, shape, label=None):
    """Outputs ``(N, D, P)`` for values ``(N, D)``, both in the network's own order."""
    order = raster(shape)
    if len(shape) == 1:
        return net(values, label)
    out = net(values[:, order.argsort()].reshape(-1, *shape), label)
    return out.flatten(1, -2)[:, order]


def states(levels, size, seed=1, dtype=D):
    rng = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(1, size, generator=rng, dtype=dtype)
    return torch.randint(levels, (1, size), generator=rng)


def moved_by(net, levels, shape, dtype=D):
    """``[j, i]``: whether changing value j changes any bit of the parameters of value i."""
    size = torch.Size(shape).numel()
    values = states(levels, size, dtype=dtype)
    label = torch.tensor([1])
    with torch.no_grad():
        before = in_order(net, values, shape, label)
        rows = []
        for j in range(size):
            other = values.clone()
            other[0, j] = values[0, j] + 0.7 if levels is None else (values[0, j] + 1) % levels
            rows.append((in_order(net, other, shape, label) != before)[0].any(-1))
    return torch.stack(rows)


def sees_exactly_what_comes_before(name, levels, dtype=D):
    make, shape = NETS[name]
    moved = moved_by(drawn(make(levels), dtype=dtype), levels, shape, dtype)
    expected = torch.ones_like(moved).triu(1)
    ahead, missed = (moved & ~expected).nonzero().tolist(), (expected & ~moved).nonzero().tolist()
    assert not ahead, f"[value, parameters it moves]: {ahead[:5]}"
    assert not missed, f"a blind spot at [value, parameters]: {missed[:5]}"


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("levels", [None, 4], ids=["reals", "tokens"])
@pytest.mark.parametrize("name", NETS)
def test_an_output_depends_on_all_values_before_its_own_and_on_no_other(name, levels, dtype):
    sees_exactly_what_comes_before(name, levels, dtype)


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_exactly_zero_where_nothing_may_be_seen(name):
    make, shape = NETS[name]
    net, size = drawn(make(None)), torch.Size(shape).numel()
    values = states(None, size).requires_grad_()
    out = in_order(net, values, shape)
    for i in range(size):
        (slope,) = torch.autograd.grad(out[0, i].sum(), values, retain_graph=True, allow_unused=True)
        slope = torch.zeros_like(values) if slope is None else slope
        assert bool((slope[0, i:] == 0).all()), i
        assert bool((slope[0, :i] != 0).all()), i


def test_a_shallow_pixelcnn_has_the_receptive_field_that_its_docstring_states():
    # first // 2 + layers · (kernel // 2) = 2 columns to either side, and as many rows up.
    net = drawn(PixelCNN(1, 2, hidden=4, layers=1, first=3))
    moved = moved_by_without_labels(net, (1, 6, 7)).reshape(6, 7, 6, 7)
    for r, c in itertools.product(range(6), range(7)):
        seen = {(a, b) for a, b in itertools.product(range(6), range(7)) if moved[a, b, r, c]}
        above = {(a, b) for a in range(r - 3, r) for b in range(c - 2, c + 3) if a >= 0 and 0 <= b < 7}
        left = {(r, b) for b in range(c - 2, c) if b >= 0}
        assert left <= seen, (r, c)
        assert {p for p in seen if p[0] == r} == left, (r, c)
        assert {p for p in seen if p[0] == r - 1 and abs(p[1] - c) <= 2} == {p for p in above if p[0] == r - 1}, (r, c)


def moved_by_without_labels(net, shape):
    size = torch.Size(shape).numel()
    values = states(None, size)
    rows = []
    with torch.no_grad():
        before = net(values.reshape(1, *shape))
        for j in range(size):
            other = values.clone()
            other[0, j] += 0.7
            rows.append((net(other.reshape(1, *shape)) != before)[0].any(-1).flatten())
    return torch.stack(rows)


def test_wavenet_sees_its_receptive_field_and_no_further():
    net = drawn(WaveNet(2, hidden=6, dilations=(1, 2), kernel=3))
    moved = moved_by_without_labels_sequence(net, 12)
    gap = torch.arange(12)[None, :] - torch.arange(12)[:, None]
    assert net.receptive_field == 7
    assert torch.equal(moved, (gap >= 1) & (gap <= 7))


def moved_by_without_labels_sequence(net, size):
    values = states(None, size)
    with torch.no_grad():
        before = net(values)
        rows = []
        for j in range(size):
            other = values.clone()
            other[0, j] += 0.7
            rows.append((net(other) != before)[0].any(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", NETS)
def test_labels_move_every_output_and_none_is_the_null_label(name):
    make, shape = NETS[name]
    net, size = drawn(make(4)), torch.Size(shape).numel()
    values = states(4, size).expand(3, -1)
    out = in_order(net, values, shape, torch.tensor([0, 2, -1]))
    assert bool((out[0] != out[1]).any(-1).all())
    assert torch.allclose(in_order(net, values, shape)[0], out[2], rtol=1e-12)
    with pytest.raises(TypeError, match="without classes"):
        WaveNet(2, hidden=4)(torch.zeros(1, 3), torch.tensor([0]))


@pytest.mark.parametrize("name", NETS)
def test_a_second_derivative_equals_central_differences(name):
    make, shape = NETS[name]
    net, size = drawn(make(None)), torch.Size(shape).numel()
    x = states(None, size)
    direction = torch.cos(torch.arange(size, dtype=D))[None]

    def slope(point, create_graph=False):
        out = in_order(net, point, shape)
        return torch.autograd.grad((out * out.detach().sign()).sum(), point, create_graph=create_graph)[0]

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((slope(leaf, True) * direction).sum(), leaf)
    up, down = (slope((x + s * 1e-5 * direction).requires_grad_()) for s in (1, -1))
    assert torch.allclose(found, (up - down) / 2e-5, atol=1e-4 * float(found.abs().max()))


def caching_changes_nothing(levels=4):
    net = drawn(CausalTransformer(6, 4, levels=levels, hidden=8, depth=2, heads=2, num_classes=3))
    values = torch.cat([states(levels, 6, seed) for seed in range(4)])
    label = torch.tensor([0, 1, 2, -1])
    advance = net.decoder(4, label)
    rows = [advance(None if t == 0 else values[:, t - 1]) for t in range(6)]
    torch.testing.assert_close(torch.stack(rows, 1), net(values, label), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("levels", [None, 4])
def test_the_key_value_cache_changes_nothing(levels):
    caching_changes_nothing(levels)


@pytest.mark.parametrize("name", ["transformer", "wavenet", "wavenet-3"])
def test_a_beginning_has_the_outputs_that_it_has_within_the_whole(name):
    make, shape = NETS[name]
    net, values = drawn(make(4)), states(4, shape[0])
    for length in range(1, shape[0]):
        torch.testing.assert_close(net(values[:, :length]), net(values)[:, :length], rtol=1e-12, atol=1e-12)


def test_masks():
    a, b = (MaskedConv(4, 8, 2, 2, kind, copies=2).mask[:, :, 0] for kind in ("A", "B"))
    assert bool((a[:, :, 0] == 1).all())  # left of the pixel everything is shown
    # features 0, 1 of each half belong to channel 0, features 2, 3 to channel 1; so do the inputs
    half_a = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).float()
    half_b = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).float()
    assert torch.equal(a[:, :, 1], half_a.repeat(2, 1))
    assert torch.equal(b[:, :, 1], half_b.repeat(2, 1))


WRONG = {
    "heads": (lambda: CausalTransformer(4, 2, hidden=10, heads=4), "heads must divide"),
    "length": (lambda: CausalTransformer(0, 2), "length is a positive int"),
    "too long": (lambda: CausalTransformer(4, 2, hidden=4)(torch.zeros(1, 5)), "T <= 4"),
    "too long for positions": (lambda: WaveNet(2, hidden=4, length=4)(torch.zeros(1, 5)), "T <= 4"),
    "no layers": (lambda: WaveNet(2, dilations=()), "layers is a positive int"),
    "dilation": (lambda: WaveNet(2, dilations=(1, 0)), r"dilations\[1\] is a positive int"),
    "flat": (lambda: WaveNet(2, hidden=4)(torch.zeros(5)), r"takes \(N, T\)"),
    "outputs": (lambda: PixelCNN(1, 0), "outputs is a positive int"),
    "hidden": (lambda: PixelCNN(3, 2, hidden=16), "multiple of the 3 channels"),
    "even": (lambda: PixelCNN(1, 2, kernel=4), "odd"),
    "channels": (lambda: PixelCNN(3, 2, hidden=6)(torch.zeros(1, 1, 4, 4)), r"takes \(N, 3, H, W\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_are_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_dtypes_are_refused():
    with pytest.raises(TypeError, match="takes long tensors, got torch.float32"):
        WaveNet(3, levels=3, hidden=4)(torch.zeros(1, 3))
    with pytest.raises(TypeError, match="takes floating-point tensors, got torch.int64"):
        PixelCNN(1, 3, hidden=4)(torch.zeros(1, 1, 3, 3, dtype=torch.long))
