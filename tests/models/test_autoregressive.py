"""Autoregressive models: enumerated sums, chain rule, prefixes, padding, exact draws, and reals against quadrature.

Statistical tests compare frequencies with enumerated probabilities by a chi-square statistic with a fixed seed, and
refuse it beyond the 1 − 1e-6 quantile: a correct model fails with probability 1e-6 for a new seed.
"""

import copy
import itertools
import math

import pytest
import torch

from boltzmix.models import Autoregressive
from boltzmix.models.nets import CausalTransformer, PixelCNN, WaveNet
from boltzmix.models.orders import as_order, multiscale, raster
from tests.contracts import assert_close
from tests.models.test_nets_causal import drawn

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def every(levels, shape):
    """All states of a discrete variable, ``(K^D, *shape)``."""
    size = math.prod(shape)
    return torch.cartesian_prod(*[torch.arange(levels)] * size).reshape(-1, *shape)


def transformer(length, outputs, **options):
    return CausalTransformer(length, outputs, hidden=8, depth=1, heads=2, **options)


def images(**options):
    """2×2 images with 3 levels and 3 labels."""
    net = PixelCNN(1, 3, levels=3, hidden=6, layers=1, first=3, num_classes=3)
    return drawn(Autoregressive(net, (1, 2, 2), levels=3, num_classes=3, **options))


def coloured(head=None):
    """1×2 images of two channels with 3 levels."""
    outputs = 6 if head == "logistic" else 3
    net = PixelCNN(2, outputs, levels=3, hidden=6, layers=1, first=3)
    return drawn(Autoregressive(net, (2, 1, 2), levels=3, head=head))


def permuted(order=(2, 0, 3, 1)):
    return drawn(Autoregressive(transformer(4, 3, levels=3), (2, 2), levels=3, order=order), seed=3)


def waves():
    net = WaveNet(3, levels=3, hidden=6, dilations=(1, 2), length=4)
    return drawn(Autoregressive(net, (1, 2, 2), levels=3, order=multiscale((1, 2, 2), 1)), seed=4)


def ordinal():
    return drawn(Autoregressive(transformer(4, 6, levels=3), (4,), levels=3, head="logistic"), seed=5)


def sentences(pad=None, eos=2):
    """Sequences of up to three tokens out of 0 … 3; 2 ends one, and 3 may be padding."""
    return drawn(Autoregressive(transformer(3, 4, levels=4), (3,), levels=4, eos=eos, pad=pad), seed=6)


DISCRETE = {
    "pixelcnn": images,
    "pixelcnn-label": lambda: images().given(label=1),
    "pixelcnn-channels": coloured,
    "pixelcnn-logistic": lambda: coloured("logistic"),
    "transformer-permuted": permuted,
    "wavenet-multiscale": waves,
    "transformer-logistic": ordinal,
    "eos": sentences,
    "eos-pad": lambda: sentences(pad=3),
    "prefix": lambda: permuted().given(prefix=torch.tensor([2, 1])),
    "prefix-of-an-image": lambda: images().given(prefix=torch.tensor([2, 0, 1]), label=2),
    "prefix-eos": lambda: sentences(pad=3).given(prefix=torch.tensor([1])),
    "prefix-ended": lambda: sentences(pad=3).given(prefix=torch.tensor([2, 3])),
}


def states_of(term):
    return every(term.levels, term.event_shape)


def sums_to_one(make):
    term = make()
    total = term.log_prob(states_of(term)).exp().sum()
    assert_close(total, 1.0, 1e-12, "the sum of all probabilities")


def frequencies_match(make, n=6000, seed=0):
    from scipy.stats import chi2

    term = make()
    x, p = states_of(term), term.log_prob(states_of(term)).exp().detach()
    draws = term.sample(n, rng(seed))
    weights = term.levels ** torch.arange(math.prod(term.event_shape) - 1, -1, -1)
    counts = torch.bincount((draws.flatten(1) * weights).sum(1), minlength=len(x)).double()
    assert float(counts[p == 0].sum()) == 0, "draws of probability zero"
    # Cells with small expectation are one cell, as Pearson's statistic needs some five in each.
    rare = n * p < 5
    expected = torch.cat([n * p[~rare], n * p[rare].sum()[None]])
    found = torch.cat([counts[~rare], counts[rare].sum()[None]])
    kept = expected > 1e-9
    statistic = float(((found - expected)[kept] ** 2 / expected[kept]).sum())
    limit = float(chi2.isf(1e-6, max(int(kept.sum()) - 1, 1)))
    assert statistic < limit, f"chi-square {statistic:.0f}, limit {limit:.0f}"


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name):
    sums_to_one(DISCRETE[name])


@pytest.mark.parametrize("name", DISCRETE)
def test_frequencies_of_draws_are_the_probabilities(name):
    frequencies_match(DISCRETE[name])


def is_the_product_of_its_conditionals(make):
    """log p(x) from the ratios of enumerated marginals, p(x_<t+1) / p(x_<t), and the network's own outputs."""
    term = make()
    x = states_of(term)
    p, values = term.log_prob(x).exp().detach(), x.flatten(1)[:, term.core.order]
    for row in range(0, len(x), 7):
        for t in range(values.shape[1]):
            same = (values[:, :t] == values[row, :t]).all(1)
            conditional = p[same & (values[:, t] == values[row, t])].sum() / p[same].sum()
            label = None if term.label is None else torch.tensor([term.label])
            outputs = term.core(values[row : row + 1], label)[0, t]
            assert_close(outputs.log_softmax(-1).exp()[values[row, t]], conditional, 1e-9, f"conditional {t}")


@pytest.mark.parametrize("name", ["pixelcnn-label", "pixelcnn-channels", "transformer-permuted", "wavenet-multiscale"])
def test_conditionals_are_those_of_the_enumerated_joint(name):
    is_the_product_of_its_conditionals(DISCRETE[name])


# ------------------------------------------------------------------------------------------------------------- prefixes


def chain_rule_holds(make, known=2):
    model = make()
    x = states_of(model)
    x = x[torch.isfinite(model.energy(x))][::5]
    prefixes = model.prefix_of(x, known)
    assert torch.equal(prefixes, x.flatten(1)[:, model.core.order[:known]])
    whole, first = model.log_prob(x), model.prefix_log_prob(prefixes)
    for i in range(0, len(x), 3):
        view = model.given(prefix=prefixes[i])
        assert_close(first[i] + view.log_prob(x[i : i + 1])[0], whole[i], 1e-10, "log p(prefix) + log p(rest | prefix)")
    assert_close(first + model.given(prefix=prefixes).log_prob(x), whole, 1e-10, "with a prefix for each row")


@pytest.mark.parametrize("make", [images, coloured, permuted, waves, ordinal, sentences], ids=lambda f: f.__name__)
def test_log_p_is_that_of_the_prefix_plus_that_of_the_rest(make):
    chain_rule_holds(make)


def prefix_density_is_the_marginal(make=permuted):
    model = make()
    x = states_of(model)
    p = model.log_prob(x).exp()
    for prefix in model.prefix_of(x[p > 0], 2).unique(dim=0):
        same = (model.prefix_of(x, 2) == prefix).all(1)
        assert_close(model.prefix_log_prob(prefix[None]).exp()[0], p[same].sum(), 1e-10, "marginal of a prefix")


@pytest.mark.parametrize("make", [images, permuted, sentences], ids=lambda f: f.__name__)
def test_the_density_of_a_prefix_is_the_enumerated_marginal(make):
    prefix_density_is_the_marginal(make)


def test_draws_complete_their_prefix():
    model = permuted()
    prefixes = torch.tensor([[0, 2], [1, 1], [2, 0]])
    draws = model.given(prefix=prefixes).sample(3, rng())
    assert torch.equal(model.prefix_of(draws, 2), prefixes)
    one = images().given(prefix=prefixes[0]).sample(5, rng())
    assert torch.equal(images().prefix_of(one, 2), prefixes[:1].expand(5, -1))


def test_views_share_the_network_and_combine_in_any_order():
    model = images()
    prefix = torch.tensor([1, 2])
    a = model.given(label=2).given(prefix=prefix)
    b = model.given(prefix=prefix).given(label=2)
    c = model.given(prefix=prefix, label=2)
    assert a.key() == b.key() == c.key()
    assert a.core is model.core
    assert (
        len({v.key() for v in (model, a, model.given(label=2), model.given(prefix=prefix), model.given(label=1))}) == 5
    )
    x = states_of(model)
    assert torch.equal(a.energy(x), c.energy(x))
    assert "label=2" in a.name()
    assert "prefix of 2" in a.name()
    assert model.prefix is None
    with pytest.raises(ValueError, match="has a prefix already"):
        a.given(prefix=prefix)
    with pytest.raises(ValueError, match="already conditioned on label=2"):
        a.given(label=1)


# -------------------------------------------------------------------------------------------- sequences of many lengths


def all_lengths_sum_to_one(pad=None):
    """Contents over the tokens that are neither end nor padding, of all lengths up to the event's."""
    model = sentences(pad)
    tokens = [t for t in range(4) if t not in (model.eos, model.pad)]
    total, each = 0.0, []
    for length in range(4):
        contents = torch.tensor(list(itertools.product(tokens, repeat=length)), dtype=torch.long)
        contents = contents.reshape(len(tokens) ** length, length)
        lengths = torch.full((len(contents),), length)
        logs = model.sequence_log_prob(contents, lengths)
        total, each = total + logs.exp().sum(), [*each, logs]
        # the same sequences as states of the term: content, end, padding
        x = torch.full((len(contents), 3), model.pad)
        x[:, :length] = contents
        x[:, length : length + 1] = model.eos
        assert_close(model.log_prob(x), logs, 1e-12, f"the term's own probability at length {length}")
    assert_close(total, 1.0, 1e-12, "all lengths together")


@pytest.mark.parametrize("pad", [None, 3])
def test_the_probabilities_of_all_lengths_sum_to_one(pad):
    all_lengths_sum_to_one(pad)


def given_lengths_sum_to_one_each():
    model = drawn(Autoregressive(transformer(3, 4, levels=4), (3,), levels=4, pad=0), seed=6)
    for length in range(4):
        contents = torch.tensor(list(itertools.product((1, 2, 3), repeat=length)), dtype=torch.long)
        contents = contents.reshape(3**length, length)
        logs = model.sequence_log_prob(contents, torch.full((len(contents),), length))
        assert_close(logs.exp().sum(), 1.0, 1e-12, f"all contents of length {length}")
        x = torch.zeros(len(contents), 3, dtype=torch.long)
        x[:, :length] = contents
        assert_close(-model.energy(x), logs, 1e-12, "the term's own energy")


def test_without_an_end_each_length_sums_to_one():
    given_lengths_sum_to_one_each()
    model = Autoregressive(transformer(3, 4, levels=4), (3,), levels=4, pad=0)
    assert not model.normalized
    assert not model.calibrated
    assert not model.samplable
    with pytest.raises(TypeError, match="known up to a constant"):
        model.log_prob(torch.zeros(1, 3, dtype=torch.long))


def pads_play_no_part(eos=2):
    model = sentences(pad=3, eos=eos)
    content, lengths = torch.tensor([[0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 2])
    expected = model.sequence_log_prob(content, lengths)
    for extra, value in itertools.product((0, 1, 4), (-7, 0, 1, 99)):
        padded = torch.cat([content, torch.full((3, extra), value)], 1)
        padded = torch.where(torch.arange(2 + extra) < lengths[:, None], padded, value)
        assert torch.equal(model.sequence_log_prob(padded, lengths), expected), (extra, value)


@pytest.mark.parametrize("eos", [2, None])
def test_padding_plays_no_part_whatever_it_is_and_however_long(eos):
    pads_play_no_part(eos)


def test_content_behind_an_end_has_probability_zero():
    for pad, bad in ((None, [[2, 1, 2], [0, 2, 1]]), (3, [[2, 2, 2], [0, 2, 1], [3, 2, 3], [1, 3, 2], [0, 1, 3]])):
        assert bool(torch.isposinf(sentences(pad).energy(torch.tensor(bad))).all())
    model = drawn(Autoregressive(transformer(3, 4, levels=4), (3,), levels=4, pad=0), seed=6)
    assert torch.isposinf(model.energy(torch.tensor([[1, 0, 1], [0, 0, 2], [1, 0, 0]]))).tolist() == [True, True, False]


# ------------------------------------------------------------------------------------------------------------- orders


def multiscale_is_as_defined():
    # 4×4 with two scales: a 1×1 grid; its three neighbours at stride 2; the twelve others, sub-grid by sub-grid.
    found = multiscale((4, 4), 2).tolist()
    assert found == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert multiscale((5,), 2).tolist() == [0, 4, 2, 1, 3]
    assert multiscale((2, 2, 2), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    # after each stride the pixels visited are the image at that stride
    for shape, scales in itertools.product(((8, 8), (5, 7), (9,)), range(3)):
        order = multiscale(shape, scales)
        for k in range(scales + 1):
            grid = torch.arange(math.prod(shape)).reshape(shape)
            for axis in range(len(shape)):
                grid = grid.index_select(axis, torch.arange(0, shape[axis], 2**k))
            assert set(order[: grid.numel()].tolist()) == set(grid.flatten().tolist())


def test_the_multiscale_order_is_as_defined():
    multiscale_is_as_defined()
    assert multiscale((1, 8, 8))[:4].tolist() == [0, 4, 32, 36]


def test_raster_goes_by_pixels_and_multiscale_without_scales_is_raster():
    assert raster((2, 3)).tolist() == list(range(6))
    assert raster((2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    for shape in ((5,), (3, 4), (3, 2, 2)):
        assert torch.equal(multiscale(shape, 0), raster(shape))


def test_a_multiscale_model_with_the_identity_is_the_raster_model():
    net = transformer(4, 3, levels=3)
    x = every(3, (2, 2))
    orders = ("raster", multiscale((2, 2), 0), (0, 1, 2, 3), "multiscale")
    models = [Autoregressive(drawn(copy.deepcopy(net)), (2, 2), levels=3, order=order) for order in orders]
    for model in models[1:]:
        assert torch.equal(model.energy(x), models[0].energy(x))
    other = Autoregressive(drawn(copy.deepcopy(net)), (2, 2), levels=3, order=(0, 2, 1, 3))
    assert not torch.allclose(other.energy(x), models[0].energy(x))
    # reading x in another order is reading the reordered x in the identity order
    assert torch.equal(other.energy(x), models[0].energy(x.mT))


@pytest.mark.parametrize(
    ("order", "shape", "message"),
    [
        ("spiral", (4,), "'raster', 'multiscale' or a permutation"),
        ((0, 1, 2), (4,), "4 ints"),
        ((0, 1, 2, 2), (4,), "exactly once"),
        ((0.0, 1.0), (2,), "2 ints"),
    ],
)
def test_wrong_orders_are_refused(order, shape, message):
    with pytest.raises(ValueError, match=message):
        as_order(order, shape)


@pytest.mark.parametrize(("shape", "scales"), [((4,), 3), ((4,), -1), ((2, 2, 2, 2), 1), ((0,), 0), ((4,), 1.0)])
def test_wrong_scales_are_refused(shape, scales):
    with pytest.raises(ValueError):
        multiscale(shape, scales)


def conditionals_see_only_what_comes_before(make):
    """Across orders: [j, i] of the model's own order, bit by bit."""
    make().check_causal()


@pytest.mark.parametrize("make", [images, coloured, permuted, waves, ordinal, sentences], ids=lambda f: f.__name__)
def test_models_are_causal_in_their_order(make):
    conditionals_see_only_what_comes_before(make)


def test_a_network_that_looks_ahead_is_found():
    class Peeking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 12)

        def forward(self, values, label=None):
            return self.linear(values.float()).unflatten(1, (4, 3))

    with pytest.raises(ValueError, match=r"not causal: value 0 .* of value 0"):
        Autoregressive(Peeking(), (4,), levels=3).check_causal()
