"""Errors planted in the autoregressive family, one by one: a law notices each."""

import pytest
import torch

from boltzmix.compose.errors import MissingEnergy
from boltzmix.models.conditionals import DiscretisedLogistic, LogisticMixture
from boltzmix.models.nets import WaveNet
from boltzmix.models.orders import raster
from tests.contracts import assert_close
from tests.models import (
    test_autoregressive,
    test_autoregressive_reals,
    test_autoregressive_training,
    test_nets_causal,
)
from tests.models.test_autoregressive import D, coloured, images, permuted, rng, sentences, states_of
from tests.models.test_autoregressive_reals import reals
from tests.mutations.harness import Mutation, verify

NETS = "boltzmix.models.nets."
PIXELCNN, WAVENET, TRANSFORMER = NETS + "pixelcnn", NETS + "wavenet", NETS + "causal_transformer"
VALUES, ORDERED, ORDERS = NETS + "values", "boltzmix.models.ordered", "boltzmix.models.orders"
CONDITIONALS, MODEL = "boltzmix.models.conditionals", "boltzmix.models.autoregressive"
PREFIXES, LABELS = "boltzmix.models.prefixes", "boltzmix.models.labels"


def sees(name, levels=4):
    """Every output of a network depends on all values before its own and on no other."""
    return lambda: test_nets_causal.sees_exactly_what_comes_before(name, levels)


def labels_matter(name):
    return lambda: test_nets_causal.test_labels_move_every_output_and_none_is_the_null_label(name)


def sums(name):
    """Probabilities sum to one by enumeration."""
    return lambda: test_autoregressive.sums_to_one(test_autoregressive.DISCRETE[name])


def draws(name):
    """Frequencies of draws are the enumerated probabilities."""
    return lambda: test_autoregressive.frequencies_match(test_autoregressive.DISCRETE[name], n=3000)


def joint(name):
    return lambda: test_autoregressive.is_the_product_of_its_conditionals(test_autoregressive.DISCRETE[name])


def chain(make):
    return lambda: test_autoregressive.chain_rule_holds(make)


def integral(**options):
    return lambda: test_autoregressive_reals.integrates_to_one(**options)


def real_draws(**options):
    return lambda: test_autoregressive_reals.draws_of_reals_have_the_density(**options)


def bins_sum_to_one():
    outputs = 3 * torch.randn(20, 9, generator=rng(), dtype=D)
    for levels in (2, 5):
        every = torch.arange(levels).expand(20, -1)
        total = DiscretisedLogistic(levels).log_prob(outputs[:, None].expand(-1, levels, -1), every).exp().sum(1)
        assert_close(total, torch.ones(20), 1e-10, "mass of all bins")


def components_start_apart():
    locations = LogisticMixture()._split(torch.zeros(1, 12))[1]
    assert locations.unique().numel() == 4


def scales_are_bounded_below():
    raw = torch.zeros(1, 3, dtype=D)
    raw[0, 2] = -50
    assert -7 <= float(LogisticMixture(floor=-7.0)._split(raw)[2]) < -6.9


def tokens_of_padding_are_never_drawn():
    assert bool((sentences(pad=3).sample(400, rng())[:, 0] != 3).all())


def draws_end():
    """Behind the first end there is padding, and every draw is possible."""
    for model in (sentences(), sentences(pad=3), sentences(pad=3).given(prefix=torch.tensor([1]))):
        assert bool(torch.isfinite(model.energy(model.sample(300, rng()))).all())


def looking_ahead_is_found():
    test_autoregressive.test_a_network_that_looks_ahead_is_found()


def orders_of_channels():
    assert raster((2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]


def repeated_entries_are_no_order():
    test_autoregressive.test_wrong_orders_are_refused((0, 1, 2, 2), (4,), "exactly once")


def per_row_prefixes():
    test_autoregressive.test_draws_complete_their_prefix()


def prefixes_of_other_views_differ():
    model = permuted()
    a, b = (model.given(prefix=torch.tensor([k, 1])) for k in (0, 1))
    x = states_of(model)
    assert a.key() != b.key()
    assert bool(torch.isposinf((a * b**2.0).energy(x)).all())


def clamps_hold_the_prefix():
    clamp = reals(order=(1, 0)).given(prefix=torch.tensor([0.4], dtype=D)).clamp()
    assert clamp.mask.tolist() == [False, True]
    assert clamp.value.tolist()[1] == 0.4


def levels_have_no_score():
    with pytest.raises(Exception) as caught:
        images().energy_and_score(states_of(images()))
    assert isinstance(caught.value, MissingEnergy)


def outside_there_is_nothing():
    test_autoregressive_reals.test_outside_its_interval_a_density_is_zero()


def a_model_of_waves_of_any_length():
    """Without positions a WaveNet's parameters depend on what it has seen, not on where."""
    net = test_nets_causal.drawn(WaveNet(2, hidden=6, dilations=(1, 2)))
    x = torch.randn(1, 12, generator=rng(), dtype=D)
    assert_close(net(x[:, 2:])[:, 5:], net(x)[:, 7:], 1e-10, "shifted")


def training_hides_no_more_than_it_says():
    model = images(dropout=0.5)
    x = states_of(model)[:64]
    losses = {round(float(model.loss((x, torch.ones(64, dtype=torch.long)), rng(seed))), 6) for seed in range(4)}
    assert len(losses) == 4


def every_length(pad=None):
    return lambda: test_autoregressive.all_lengths_sum_to_one(pad)


def cached_draws():
    test_autoregressive_training.test_cached_draws_are_those_of_the_full_forward()


def forwards(score):
    return lambda: test_autoregressive_training.conditions_share_a_forward(score)


def loss():
    test_autoregressive_training.loss_is_the_mean_negative_log_likelihood()


# (what is wrong, module, text, replacement, law[, within])
ROWS = [
    # ------------------------------------------------------------------------------------------------------- networks
    ("mask A shows the own channel", PIXELCNN,
     "source[None, :] < target",
     "source[None, :] <= target",
     sees("pixelcnn")),
    ("mask A everywhere", PIXELCNN, 'if mask == "A" else', 'if mask in ("A", "B") else', sees("pixelcnn-rgb")),
    ("mask A in the place of B and B in that of A", PIXELCNN,
     'if mask == "A" else',
     'if mask == "B" else',
     sees("pixelcnn")),
    ("no mask on the weights", PIXELCNN, "self.weight * self.mask", "self.weight", sees("pixelcnn")),
    ("gates of one half belong to other channels", PIXELCNN,
     "% block * groups // block",
     "* groups // features",
     sees("pixelcnn-rgb")),
    ("horizontal convolution off by one to the right", PIXELCNN,
     "(self.kernel_size[1] - 1, 0, 0, 0)",
     "(self.kernel_size[1] - 2, 1, 0, 0)",
     sees("pixelcnn")),
    ("the current row leaks from the vertical stack", PIXELCNN,
     "self.link(_down(a))",
     "self.link(a)",
     sees("pixelcnn")),
    ("the vertical stack moves down twice", PIXELCNN,
     "pad(a, (0, 0, 1, 0))[:, :, :-1]",
     "pad(a, (0, 0, 2, 0))[:, :, :-2]",
     sees("pixelcnn")),
    ("the vertical stack is not handed over: a blind spot", PIXELCNN,
     "self.horizontal(h) + self.link(_down(a))",
     "self.horizontal(h)",
     sees("pixelcnn")),
    ("vertical padding below", PIXELCNN,
     "(self.reach, self.reach, self.reach, 0)",
     "(self.reach, self.reach, 0, self.reach)",
     sees("pixelcnn")),
    ("no labels in a PixelCNN", PIXELCNN, "a, b = a + for_a, b + for_b", "a, b = a, b", labels_matter("pixelcnn")),
    ("WaveNet not shifted", WAVENET,
     "torch.cat([start, self.values(values)[:, :-1]], 1)",
     "self.values(values)",
     sees("wavenet")),
    ("WaveNet shifted by two", WAVENET,
     "[start, self.values(values)[:, :-1]]",
     "[start, start, self.values(values)[:, :-2]]",
     sees("wavenet")),
    ("convolutions centred, not causal", WAVENET, "pad(h, (reach, 0))", "pad(h, (reach - 1, 1))", sees("wavenet")),
    ("receptive field without its first value", WAVENET,
     "1 + (kernel - 1) * sum",
     "(kernel - 1) * sum",
     test_nets_causal.test_wavenet_sees_its_receptive_field_and_no_further),
    ("no labels in a WaveNet", WAVENET,
     "a if bias is None else a + modulate(bias)[:, :, None]",
     "a",
     labels_matter("wavenet")),
    ("positions in a WaveNet that has none", WAVENET,
     "h if self.positions is None",
     "h + torch.arange(h.shape[1])[:, None].to(h) if self.positions is None",
     a_model_of_waves_of_any_length),
    ("attention to the future", TRANSFORMER, ".triu(1)", ".triu(2)", sees("transformer")),
    ("attention to two values only", TRANSFORMER,
     "device=h.device).triu(1)",
     "device=h.device).triu(1) | torch.ones(length, length, dtype=torch.bool).tril(-2)",
     sees("transformer")),
    ("transformer not shifted", TRANSFORMER,
     "torch.cat([start, self.values(values)[:, :-1]], 1)",
     "self.values(values)",
     sees("transformer")),
    ("a cache that forgets", TRANSFORMER,
     "seen[:] = [k, v]",
     "seen[:] = [k[:, :, -1:], v[:, :, -1:]]",
     test_nets_causal.caching_changes_nothing),
    ("cache one position late", TRANSFORMER,
     "self.positions[position]",
     "self.positions[position - 1]",
     test_nets_causal.caching_changes_nothing),
    ("cache without labels", TRANSFORMER,
     "h = h if bias is None else h + bias[:, None]\n            for",
     "h = h\n            for",
     test_nets_causal.caching_changes_nothing),
    ("a label where there is none", VALUES,
     "return embedding(label)",
     "return embedding(torch.zeros(1, dtype=torch.long) if label is None else label)",
     labels_matter("wavenet")),
    # --------------------------------------------------------------------------------------------------------- orders
    ("channels before pixels", ORDERS,
     "(order[:, None] + size * torch.arange(channels))",
     "(order + size * torch.arange(channels)[:, None])",
     orders_of_channels),
    ("multi-scale from fine to coarse", ORDERS,
     "reversed(range(1, scales + 1))",
     "range(1, scales + 1)",
     test_autoregressive.multiscale_is_as_defined),
    ("sub-grids at the wrong offset", ORDERS, "(0, step // 2)", "(0, 1)", test_autoregressive.multiscale_is_as_defined),
    ("a coarse grid twice as fine", ORDERS,
     "(0,) * len(grid), 2**scales)",
     "(0,) * len(grid), 2**scales // 2)",
     test_autoregressive.multiscale_is_as_defined),
    ("orders with repeats", ORDERS, "found.long().sort().values", "torch.arange(size)", repeated_entries_are_no_order),
    ("the order where its inverse belongs", ORDERED,
     "self.order.argsort()",
     "self.order",
     draws("transformer-permuted")),
    ("the order where its inverse belongs, read", ORDERED,
     "x.flatten(1)[:, self.order]",
     "x.flatten(1)[:, self.order.argsort()]",
     per_row_prefixes),
    ("outputs of images not in order", ORDERED,
     "out.flatten(1, -2)[:, self.order]",
     "out.flatten(1, -2)",
     sums("pixelcnn-channels")),
    ("a check of causality that forgets the value itself", ORDERED, "[: j + 1]", "[:j]", looking_ahead_is_found),
    # --------------------------------------------------------------------------------------------------- conditionals
    ("logits not normalised", CONDITIONALS,
     "return parameters.log_softmax(-1)",
     "return parameters",
     sums("transformer-permuted")),
    ("padding may be predicted", CONDITIONALS,
     "if self.forbidden is not None:",
     "if False:",
     tokens_of_padding_are_never_drawn),
    ("no log-scale in the density", CONDITIONALS, "+ logsigmoid(-z) - log_scale", "+ logsigmoid(-z)", integral()),
    ("one tail of the density only", CONDITIONALS, "logsigmoid(z) + logsigmoid(-z)", "2 * logsigmoid(-z)", integral()),
    ("no weights in the mixture", CONDITIONALS,
     "(log_weights + logs).logsumexp(-1) - math.log(self.scale)",
     "logs.logsumexp(-1) - math.log(self.scale)",
     integral()),
    ("weights not normalised", CONDITIONALS,
     "return logits.log_softmax(-1), shift",
     "return logits, shift",
     integral()),
    ("the largest component for the sum", CONDITIONALS,
     "(log_weights + logs).logsumexp(-1) - math.log(self.scale)",
     "(log_weights + logs).amax(-1) - math.log(self.scale)",
     integral()),
    ("no Jacobian of the units", CONDITIONALS, " - math.log(self.scale)", "", integral(scale=0.7)),
    ("the Jacobian's sign", CONDITIONALS, " - math.log(self.scale)", " + math.log(self.scale)", integral(scale=0.7)),
    ("truncated, not normalised", CONDITIONALS,
     "logs = logs - log_mass(low, high)",
     "logs = logs",
     integral(interval=(-0.7, 0.4))),
    ("ends in the wrong units", CONDITIONALS,
     "((end - self.loc) / self.scale for end in self.interval)",
     "(end for end in self.interval)",
     integral(interval=(-0.7, 0.4), scale=0.5)),
    ("a density beyond its ends", CONDITIONALS, "& (values <= self.interval[1])", "", outside_there_is_nothing),
    ("the mass between two points without its gap", CONDITIONALS,
     "logsigmoid(high) + logsigmoid(-low) + log_gap(low, high)",
     "logsigmoid(high) + logsigmoid(-low)",
     integral(interval=(-0.7, 0.4))),
    ("scales without a floor", CONDITIONALS,
     "self.floor - logsigmoid(self.floor + math.log(count) - raw)",
     "raw - math.log(count)",
     scales_are_bounded_below),
    ("components that start equal", CONDITIONALS, "shift + points", "shift", components_start_apart),
    ("inner bins as wide as half a step", CONDITIONALS, "side * step / 2", "side * step / 4", bins_sum_to_one),
    ("the last bin without its tail", CONDITIONALS,
     "torch.where(last, 0.0, logsigmoid(high))",
     "logsigmoid(high)",
     bins_sum_to_one),
    ("the first bin without its tail", CONDITIONALS,
     "torch.where(first, 0.0, logsigmoid(-low))",
     "logsigmoid(-low)",
     bins_sum_to_one),
    ("the outer bins with a gap", CONDITIONALS,
     "torch.where(first | last, 0.0, log_gap(low, high))",
     "log_gap(low, high)",
     bins_sum_to_one),
    ("weights of discretised logistics forgotten", CONDITIONALS,
     "(log_weights + logs).logsumexp(-1)",
     "logs.logsumexp(-1)",
     bins_sum_to_one,
     "class DiscretisedLogistic"),
    ("draws of one component only", CONDITIONALS,
     "chosen = _choose(log_weights, generator)[:, None]",
     "chosen = _choose(log_weights, generator)[:, None] * 0",
     real_draws()),
    ("draws of a Laplace law", CONDITIONALS, "first.log() - second.log()", "first - second", real_draws()),
    ("draws in the network's units", CONDITIONALS,
     "self.loc + self.scale * (location",
     "(location",
     real_draws(loc=0.5, scale=0.5)),
    ("truncated draws with the ends exchanged", CONDITIONALS,
     "log_v + logsigmoid(low), log_u + logsigmoid(high)",
     "log_u + logsigmoid(low), log_v + logsigmoid(high)",
     real_draws(interval=(-0.7, 0.9))),
    ("truncated draws moved to the ends", CONDITIONALS,
     "log_odds = below - above",
     "log_odds = log_odds",
     real_draws(interval=(-0.7, 0.9))),
    # ------------------------------------------------------------------------------------------------------ the model
    ("the sign of the energy", MODEL,
     "energy = -torch.where(counted",
     "energy = torch.where(counted",
     sums("pixelcnn")),
    ("the first factor left out", MODEL,
     "torch.where(counted, factors, 0.0).sum(1)\n        return torch.where(possible",
     "torch.where(counted, factors, 0.0)[:, 1:].sum(1)\n        return torch.where(possible",
     sums("pixelcnn")),
    ("factors of the prefix counted twice", MODEL,
     "device=values.device) >= known)",
     "device=values.device) >= 0)",
     chain(permuted)),
    ("the last factor of the prefix counted twice", MODEL,
     "device=values.device) >= known)",
     "device=values.device) >= known - 1)",
     chain(coloured)),
    ("states that disagree with the prefix", MODEL, "& (values[:, :known] == rows).all(1)", "", sums("prefix")),
    ("the density of a prefix with a factor more", MODEL,
     "[:, : values.shape[1]]\n",
     "[:, : values.shape[1] + 1]\n        values = padded[:, : values.shape[1] + 1]\n",
     test_autoregressive.prefix_density_is_the_marginal),
    ("draws that ignore their prefix", MODEL, "if t >= known:", "if True:", per_row_prefixes),
    ("draws that do not see their prefix", MODEL, "values[:, :known] = rows", "prefix_is_lost = rows", draws("prefix")),
    ("a prefix of other variables", PREFIXES,
     "return self.core.arrange(x)[:, :length]",
     "return x.flatten(1)[:, :length]",
     chain(permuted)),
    ("a clamp on other variables", PREFIXES,
     "return Clamp(self.core.restore(mask)[0]",
     "return Clamp(mask[0]",
     clamps_hold_the_prefix),
    ("views of different prefixes merge", PREFIXES,
     "(*cast(\"tuple[Hashable, ...]\", super().key()), self._prefix_identity)",
     "super().key()",
     prefixes_of_other_views_differ),
    ("draws one value late", MODEL,
     "values[:, t - 1]) if t else None",
     "values[:, t - 2]) if t > 1 else None",
     draws("transformer-permuted")),
    ("draws that see an unfinished value", MODEL,
     "[:, t]\n        return lambda",
     "[:, t - 1]\n        return lambda",
     draws("pixelcnn")),
    ("draws without labels", MODEL,
     "return lambda t: self._outputs(values, label)[:, t]",
     "return lambda t: self._outputs(values, None)[:, t]",
     draws("pixelcnn-label")),
    ("cached draws that see other values", MODEL,
     "follow = cast(Any, net).decoder(len(values), label)",
     "follow = cast(Any, net).decoder(len(values), label)\n            values = values.flip(1)",
     cached_draws),
    ("the end itself does not count", MODEL,
     "ends.cumsum(1) - ends.long() == 0",
     "ends.cumsum(1) == 0",
     every_length()),
    ("pads are counted", MODEL, "ends.cumsum(1) - ends.long() == 0", "ends.cumsum(1) >= 0", every_length(3)),
    ("anything may stand behind an end", MODEL,
     "fits = torch.where(counted, (values != self.pad) | (values == self.eos), values == self.pad)",
     "fits = counted | ~counted",
     sums("eos")),
    ("lengths without the end", MODEL,
     "counted = places <= lengths[:, None]",
     "counted = places < lengths[:, None]",
     every_length()),
    ("lengths without an end that the network sees", MODEL,
     "torch.where(places == lengths[:, None], self.eos, values)",
     "values",
     every_length(3)),
    ("lengths that count one value more", MODEL,
     "content = places < lengths[:, None]",
     "content = places <= lengths[:, None]",
     test_autoregressive_reals.test_reals_of_given_lengths_ignore_what_stands_behind),
    ("pads that the likelihood counts", MODEL,
     "        counted = content\n",
     "        counted = content | ~content\n",
     test_autoregressive.given_lengths_sum_to_one_each),
    ("pads of a state that count", MODEL,
     "(values == self.pad).cumsum(1) == 0",
     "(values == self.pad).cumsum(1) >= 0",
     test_autoregressive.given_lengths_sum_to_one_each),
    ("draws go on behind the end", MODEL,
     "drawn if self.eos is None else torch.where(done, cast(int, self.pad), drawn)",
     "drawn",
     draws_end),
    ("draws stop at the first end of any row", MODEL, "bool(done.all())", "bool(done.any())", draws("eos")),
    ("labels of other views", LABELS,
     "return torch.cat([null if label is None else label for label in labels])",
     "return torch.cat([null if label is None else label for label in labels[::-1]])",
     forwards(False)),
    ("the null label of a view is label 0", LABELS,
     "torch.full((n, *known.shape[1:]), NULL, dtype",
     "torch.full((n, *known.shape[1:]), 0, dtype",
     forwards(False)),
    ("totals of the first view for all", MODEL,
     "view._total(part, own) for view, part, own",
     "self._total(part, own) for view, part, own",
     forwards(True)),
    ("a score for levels", MODEL, 'self._require_score("energy_and_score()")', "pass", levels_have_no_score),
    ("the loss counts what padding contributes", MODEL,
     "-torch.where(counted, factors, 0.0).sum(1).mean() / values.shape[1]",
     "-factors.sum(1).mean() / values.shape[1]",
     loss),
    ("the loss of corrupted targets", MODEL,
     "factors = self.conditional.log_prob(parameters, values)",
     "factors = self.conditional.log_prob(parameters, seen)",
     test_autoregressive_training.corruption_changes_what_is_seen_and_not_what_is_predicted),
    ("no labels in training", MODEL,
     "parameters = self._outputs(seen, label)",
     "parameters = self._outputs(seen, None)",
     loss),
    ("conditional probabilities of other labels", MODEL,
     "stacked_labels(labels, n, tall.device)",
     "stacked_labels([None for _ in labels], n, tall.device)",
     joint("pixelcnn-label")),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in ROWS])
def test_a_planted_error_is_noticed(row):
    name, module, old, new, law, *within = row
    verify(Mutation(name, module, old, new, law, *within))
