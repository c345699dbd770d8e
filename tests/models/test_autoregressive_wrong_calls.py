"""Wrong calls of autoregressive models, each with the part of its message that says what to do."""

import math

import pytest
import torch

from boltzmix.compose import HMC, MCMC, sample
from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.compose.term import evaluate
from boltzmix.models import Autoregressive
from boltzmix.models.nets import PixelCNN
from tests.models.test_autoregressive import D, images, permuted, rng, states_of, transformer
from tests.models.test_autoregressive_reals import reals

TOKENS = torch.zeros(2, 3, dtype=torch.long)


def build(net=None, shape=(3,), **options):
    return Autoregressive(net or transformer(3, 4, levels=4), shape, **{"levels": 4, **options})


WRONG = {
    "neither": (lambda: Autoregressive(transformer(3, 4), (3,)), "levels=K or continuous=True"),
    "both": (lambda: build(continuous=True), "levels=K or continuous=True"),
    "no levels": (lambda: build(levels=0), "positive int"),
    "other levels": (lambda: build(transformer(3, 4, levels=5)), "built with levels=5, the model with levels=4"),
    "reals into levels": (lambda: build(transformer(3, 4)), "built with levels=None"),
    "outputs": (lambda: build(transformer(3, 5, levels=4)), "outputs=4, got outputs=5"),
    "mixture": (lambda: Autoregressive(transformer(3, 4), (3,), continuous=True), r"outputs=3 \* M"),
    "classes": (lambda: build(num_classes=3), "num_classes=None, the model with 3"),
    "head": (lambda: build(head="gaussian"), "head is one of"),
    "head of reals": (lambda: Autoregressive(transformer(3, 6), (3,), continuous=True, head="categorical"), "head is"),
    "scale": (lambda: reals(scale=0.0), "scale"),
    "interval": (lambda: reals(interval=(1.0, 1.0)), "low < high"),
    "interval of levels": (lambda: build(interval=(0.0, 1.0)), "continuous=True"),
    "corruption": (lambda: build(corruption=1.0), r"\[0, 1\)"),
    "dropout": (lambda: build(dropout=1.0), r"\[0, 1\)"),
    "eos": (lambda: build(eos=4), "eos is a token"),
    "eos is no flag": (lambda: build(eos=True), "eos is a token"),
    "pad": (lambda: build(eos=1, pad=-1), "pad is a token"),
    "eos of images": (lambda: build(transformer(4, 4, levels=4), (2, 2), eos=1), "for sequences of levels"),
    "eos of reals": (lambda: reals(eos=1), "for sequences of levels"),
    "eos and order": (lambda: build(eos=1, order=(2, 1, 0)), "read from the left"),
    "eos and head": (lambda: build(transformer(3, 6, levels=4), head="logistic", eos=0), "levels with an order"),
    "short network": (lambda: build(shape=(5,)), "takes 3 values"),
    "image network": (lambda: build(PixelCNN(1, 4, levels=4, hidden=4)), r"event_shape=\(C, H, W\)"),
    "image order": (lambda: build(PixelCNN(1, 4, levels=4, hidden=4), (1, 4, 4), order="multiscale"), "raster order"),
    "too high": (lambda: build().energy(TOKENS + 4), "levels 0 … 3, got values from 4 to 4"),
    "negative": (lambda: build().energy(TOKENS - 1), "got values from -1"),
    "shape": (lambda: build().energy(TOKENS[:, :2]), "expects x of shape"),
    "batch": (lambda: build().loss(TOKENS[:, :2], rng()), "a batch has shape"),
    "labels in the batch": (lambda: build().loss((TOKENS, TOKENS[:, 0]), rng()), "takes none"),
    "content behind eos": (lambda: build(eos=1).loss(TOKENS + torch.tensor([1, 0, 0]), rng()), "row 0 of the batch"),
    "prefix length": (lambda: build().given(prefix=TOKENS[0]), "1 <= m < 3"),
    "no prefix": (lambda: build().given(prefix=TOKENS[0, :0]), "1 <= m < 3"),
    "prefix levels": (lambda: build().given(prefix=TOKENS[0, :2] + 9), "levels 0 … 3"),
    "prefix behind eos": (lambda: build(eos=0, pad=1).given(prefix=TOKENS[0, :2]), "probability zero"),
    "prefix nan": (lambda: reals().given(prefix=torch.tensor([math.nan], dtype=D)), "probability zero"),
    "prefix outside": (lambda: reals(interval=(0, 1)).given(prefix=torch.tensor([2.0], dtype=D)), r"\[0, 1\]"),
    "prefix rows": (lambda: build().given(prefix=TOKENS[:, :2]).sample(3), "2 prefixes"),
    "prefix rows of x": (lambda: build().given(prefix=TOKENS[:, :2]).energy(TOKENS[:1]), "2 prefixes"),
    "prefix density": (lambda: build().prefix_log_prob(TOKENS[0, :2]), r"\(N, m\)"),
    "prefix of": (lambda: build().prefix_of(TOKENS, 3), r"\[1, 3\)"),
    "prefix of what": (lambda: build().prefix_of(TOKENS[0], 1), "x has shape"),
    "lengths": (lambda: build().sequence_log_prob(TOKENS, torch.tensor([1, 4])), "lengths are in 0 … 3"),
    "lengths beyond": (lambda: build().sequence_log_prob(TOKENS[:, :1], torch.tensor([1, 2])), "0 … 1"),
    "lengths dtype": (lambda: build().sequence_log_prob(TOKENS, torch.tensor([1.0, 2.0])), "long tensor"),
    "lengths shape": (lambda: build().sequence_log_prob(TOKENS, torch.tensor([1])), r"shape \(2,\)"),
    "lengths of content": (lambda: build(eos=0).sequence_log_prob(TOKENS, torch.tensor([1, 1])), "before the end"),
    "lengths of levels": (lambda: build().sequence_log_prob(TOKENS + 7, torch.tensor([1, 1])), "levels 0 … 3"),
    "label": (lambda: images().given(label=3), r"\[0, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


WRONG_TYPES = {
    "floats": (lambda: build().energy(TOKENS.float()), "expects torch.int64"),
    "int32": (lambda: build().energy(TOKENS.int()), "expects torch.int64, got torch.int32"),
    "ints into reals": (lambda: reals().energy(torch.zeros(1, 2, dtype=torch.long)), "floating-point"),
    "other precision": (lambda: reals().energy(torch.zeros(1, 2)), "holds torch.float64 weights"),
    "score": (lambda: build().score(TOKENS), "discrete variables have no score"),
    "energy and score": (lambda: build().energy_and_score(TOKENS), r"energy\(\) or log_prob\(\)"),
    "hmc": (lambda: sample(build(), chains=2, sampler=MCMC(HMC(), draws=2), seed=0), "discrete"),
    "prefix": (lambda: build().given(prefix=[0, 1]), "prefix is a tensor"),
    "prefix dtype": (lambda: build().given(prefix=TOKENS[0, :2].float()), "torch.int64 here, got torch.float32"),
    "unknown": (lambda: build().given(label=1), "unknown condition"),
    "nothing": (lambda: build().given(), "at least one condition"),
    "clamped levels": (lambda: build().given(prefix=TOKENS[0, :1]).clamp(), "continuous models"),
    "prefix twice": (lambda: build().given(prefix=TOKENS[0, :1]).prefix_log_prob(TOKENS[:, :1]), "without a prefix"),
    "lengths and prefix": (
        lambda: build().given(prefix=TOKENS[0, :1]).sequence_log_prob(TOKENS, torch.tensor([1, 1])),
        "without a prefix",
    ),
    "lengths of images": (lambda: images().sequence_log_prob(TOKENS, torch.tensor([1, 1])), "for sequences"),
    "lengths of floats": (lambda: build().sequence_log_prob(TOKENS.float(), torch.tensor([1, 1])), "torch.int64"),
    "no end to sample": (lambda: build(pad=0).sample(2), "cannot be sampled exactly"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types_are_refused(name):
    call, message = WRONG_TYPES[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_scores_of_levels_say_missing_energy():
    with pytest.raises(MissingEnergy):
        build().score(TOKENS)


def test_a_network_of_another_shape_is_refused_when_it_answers():
    class Flat(torch.nn.Module):
        def forward(self, values, label=None):
            return torch.zeros(len(values), 4)

    with pytest.raises(ValueError, match=r"returns \(N, 3, outputs\), got \(2, 4\)"):
        Autoregressive(Flat(), (3,), levels=4).energy(TOKENS)


def test_broken_weights_are_reported_when_drawn():
    model = build()
    with torch.no_grad():
        model.core.net.last.bias.fill_(math.nan)
    with pytest.raises(NonFinite, match="look at its weights"):
        model.sample(2, rng())


def test_an_empty_batch_has_no_energies():
    for model, x in ((build(), TOKENS[:0]), (reals(), torch.zeros(0, 2, dtype=D))):
        assert model.energy(x).shape == (0,)
    model = reals()
    found = evaluate([model, model.given(label=1)], torch.zeros(0, 2, dtype=D), None, energy=True, score=True)
    assert all(e.shape == (0,) and s.shape == (0, 2) for e, s in found.values())


def test_weights_travel_with_their_order():
    model, other = permuted(), permuted((0, 1, 2, 3))
    x = states_of(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.energy(x), model.energy(x))
