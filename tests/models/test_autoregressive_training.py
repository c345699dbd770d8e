"""Autoregressive models in training and in formulas: one forward for k conditions, the loss, and ``fit``."""

import itertools
import math

import pytest
import torch

from boltzmix.compose.term import evaluate
from boltzmix.models import Autoregressive, fit
from boltzmix.models.nets import CausalTransformer
from tests.contracts import assert_close
from tests.models.test_autoregressive import D, every, images, permuted, rng, sentences, states_of, transformer, waves
from tests.models.test_autoregressive_reals import reals
from tests.models.test_nets_causal import drawn


class Counted(torch.nn.Module):
    """Rows and calls of the network inside."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls, self.rows = net, 0, 0

    def forward(self, values, label=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(values)
        return self.net(values, label)


def conditions_share_a_forward(score, train=False):
    net = Counted(transformer(2, 9, num_classes=4))
    model = drawn(Autoregressive(net, (2,), continuous=True, num_classes=4))
    model.requires_grad_(train)
    views = [
        model,
        model.given(label=1),
        model.given(label=3),
        model.given(label=2, prefix=torch.tensor([0.3], dtype=D)),
    ]
    x = torch.randn(5, 2, generator=rng(), dtype=D)
    x[:, 0] = 0.3
    found = evaluate(views, x, None, energy=True, score=score)
    assert (net.calls, net.rows) == (1, 20)
    for view in views:
        energy, slope = found[view.key()]
        assert_close(energy, view.energy(x), 1e-12, "energy")
        assert energy.requires_grad == train
        if score:
            assert_close(slope, view.score(x), 1e-12, "score")


@pytest.mark.parametrize(("score", "train"), [(False, False), (True, False), (True, True)])
def test_conditions_of_one_network_share_a_forward(score, train):
    conditions_share_a_forward(score, train)


def test_levels_share_a_forward_too():
    model = images()
    guided = model * (model.given(label=1) / model) ** 2.0
    x = states_of(model)
    expected = 2 * model.given(label=1).energy(x) - model.energy(x)
    assert_close(guided.energy(x), expected, 1e-10, "guidance")
    assert not guided.has_score


def test_training_goes_through_energy_and_score():
    model = reals()
    x = torch.randn(4, 2, generator=rng(), dtype=D)
    for value in (model.energy(x).sum(), model.score(x).square().sum(), model.loss(x, rng())):
        model.zero_grad()
        value.backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "label" not in name)
    assert model.score(x).requires_grad
    with torch.no_grad():
        assert not model.score(x).requires_grad


def loss_is_the_mean_negative_log_likelihood():
    for model in (images(dropout=0.0), sentences(pad=3), permuted()):
        x = states_of(model)
        x = x[torch.isfinite(model.energy(x))]
        size = math.prod(model.event_shape)
        assert_close(model.loss(x, rng()), model.energy(x).mean() / size, 1e-12, type(model).__name__)
    model, x = images(dropout=0.0), states_of(images())
    label = torch.arange(len(x)) % 3
    assert_close(model.loss((x, label), rng()), model.given(label=label).energy(x).mean() / 4, 1e-12, "with labels")


def test_the_loss_is_the_mean_negative_log_likelihood_per_variable():
    loss_is_the_mean_negative_log_likelihood()


def corruption_changes_what_is_seen_and_not_what_is_predicted():
    x = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    model = drawn(Autoregressive(transformer(4, 3, levels=3), (4,), levels=3, corruption=0.6))
    losses = {round(float(model.loss(x, rng(seed))), 9) for seed in range(60)}
    # Every input is its own value or the other row's: the losses are among those of enumerated inputs.
    targets, possible = x, set()
    for seen in itertools.product(range(2), repeat=8):
        inputs = torch.tensor(seen).reshape(2, 4)
        logs = model.core(inputs, None).log_softmax(-1).gather(-1, targets[..., None])
        possible.add(round(-float(logs.detach().mean()), 9))
    assert len(losses) > 10
    assert losses <= possible


def test_corruption_changes_what_is_seen_and_not_what_is_predicted():
    corruption_changes_what_is_seen_and_not_what_is_predicted()


def test_fit_reaches_the_entropy_of_a_known_law():
    # A chain on three levels: x_t = x_{t−1} with probability 0.8, else one of the other two.
    def chain(n, generator):
        steps = torch.multinomial(torch.tensor([0.8, 0.1, 0.1]), n * 3, replacement=True, generator=generator)
        start = torch.randint(3, (n, 1), generator=generator)
        return torch.cat([start, start + steps.reshape(n, 3).cumsum(1)], 1) % 3

    torch.manual_seed(0)
    model = Autoregressive(CausalTransformer(4, 3, levels=3, hidden=16, depth=1, heads=2), (4,), levels=3)
    result = fit(model, chain, steps=250, batch_size=128, lr=1e-2, ema=0.98, seed=0, progress=False)
    x = every(3, (4,))
    steps = (x.diff(dim=1) % 3).gt(0)
    truth = math.log(1 / 3) + torch.where(steps, math.log(0.1), math.log(0.8)).sum(1)
    with torch.no_grad():
        divergence = float((truth.exp() * (truth - result.model.log_prob(x))).sum())
    assert 0 <= divergence < 0.02
    entropy = -float((truth.exp() * truth).sum())
    assert abs(result.loss - entropy / 4) < 0.03


def test_fit_trains_labels_and_reals():
    def labelled(n, generator):
        label = torch.randint(2, (n,), generator=generator)
        x = torch.randn(n, 2, generator=generator)
        return torch.stack([x[:, 0], 0.5 * x[:, 1] + (2.0 * label - 1) * x[:, 0]], 1), label

    torch.manual_seed(0)
    net = CausalTransformer(2, 12, hidden=24, depth=1, heads=2, num_classes=2)
    model = Autoregressive(net, (2,), continuous=True, num_classes=2)
    fit(model, labelled, steps=300, batch_size=256, lr=1e-2, ema=0.98, seed=0, progress=False)
    x, label = labelled(4000, rng(1))
    with torch.no_grad():
        found = model.given(label=label).energy(x).mean()
        wrong = model.given(label=1 - label).energy(x).mean()
    entropy = 1 + math.log(2 * math.pi) + math.log(0.5)
    assert entropy - 0.1 < float(found) < entropy + 0.15
    assert float(wrong) > float(found) + 1  # shuffled labels fail


def test_same_seed_same_draws():
    for model in (images(), permuted(), waves(), sentences(), reals()):
        assert torch.equal(model.sample(5, rng(3)), model.sample(5, rng(3)))
        state = torch.get_rng_state()
        model.sample(3, rng(3))
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_cached_draws_are_those_of_the_full_forward():
    model = permuted()
    cached = model.sample(50, rng(1))
    del_decoder = Counted(model.core.net)  # hides the decoder
    model.core.net = del_decoder
    assert torch.equal(model.sample(50, rng(1)), cached)
