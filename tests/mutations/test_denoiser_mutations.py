"""Errors in labels, preconditioning, energy diffusion and embeddings, planted one by one: a law notices each."""

import math
import tempfile
from pathlib import Path

import pytest
import torch

from boltzmix.models import Diffusion
from boltzmix.models.nets import MLP
from tests.models import test_diffusion, test_every_family, test_nets, test_reward
from tests.mutations.harness import Mutation, verify

LABELS, DENOISER, ENERGY = "boltzmix.models.labels", "boltzmix.models.denoiser", "boltzmix.models.energy_diffusion"
EMBEDDING, FIT, TERM = "boltzmix.models.nets.embedding", "boltzmix.models.fit", "boltzmix.compose.term"
CLASSIFIER, REWARD, LOAD = "boltzmix.models.classifier", "boltzmix.models.reward", "boltzmix.models.load"


def optimum(energy, detail=0.1):
    return lambda: test_diffusion.test_gaussian_data_have_the_exact_optimum(energy, detail)


def least(level_weight, energy=True, detail=0.1):
    return lambda: test_diffusion.test_the_loss_is_least_at_the_exact_optimum(energy, level_weight, detail)


def together(name="vector energy", per_row=False):
    family = test_diffusion.FAMILIES[name]
    return lambda: test_diffusion.test_many_conditions_cost_one_forward_and_equal_separate_calls(family, per_row)


def every(check, name="diffusion", *more):
    return lambda: getattr(test_every_family, check)(name, *more)


def nets(check, name):
    return lambda: getattr(test_nets, check)(*test_nets.NETS[name])


def levels_are_stratified():
    """Of 4,096 levels one lies in each of as many equal shares, and their order is random."""
    p = Diffusion(MLP(2), (2,), noise=None, sigma_range=(0.1, 10.0))
    levels = p._draw_levels(4096, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)).log()
    share = (levels.sort().values - math.log(0.1)) / math.log(100.0)
    assert torch.equal((share * 4096).floor().long(), torch.arange(4096))
    assert abs(float(torch.corrcoef(torch.stack([levels, torch.arange(4096.0).double()]))[0, 1])) < 4 / 64


class OffCentre(torch.nn.Module):
    """F of data N(m, v) in coordinates that are centred at 0."""

    scalar = False

    def forward(self, x_in, c_noise, label=None):
        sigma = (4 * c_noise).exp()[:, None]
        spread = (sigma**2 + 0.25).sqrt()
        x = x_in * spread
        return sigma * spread / 0.5 * (x / spread**2 - (x - 3.0) / (sigma**2 + 0.5))


def coarse_is_centred_on_the_data():
    """One Newton step from the centre of the coordinates lands within 1/σ² of the mean; the variance is σ² + σ_d²."""
    for loc in (0.0, 2.0):
        p = Diffusion(OffCentre(), (3,), sigma_data=0.5, sigma_range=(0.1, 50.0), loc=loc).double()
        found = p.coarse(50.0)
        assert torch.allclose(found.mean, torch.full((3,), 3.0 + loc).double(), atol=1e-3)
        assert torch.allclose(found.variances, torch.full((3,), 2500.25).double())


def reward_names_two_dtypes():
    try:
        test_reward.test_weights_and_states_of_two_dtypes_are_named()
    except RuntimeError as error:
        raise AssertionError("an error of torch") from error


def trains_in_bfloat16(name):
    def law():
        try:
            test_every_family.test_bfloat16_trains_float32_weights(name)
        except TypeError as error:
            raise AssertionError("mixed precision refused") from error

    return law


def damaged_weights_are_named():
    with tempfile.TemporaryDirectory() as folder:
        test_every_family.test_damaged_weights_are_refused("reward", Path(folder))


def conditions_are_named():
    try:
        test_every_family.test_unknown_conditions_are_named("diffusion", "prompt")
    except KeyError as error:
        raise AssertionError("a missing key") from error


def saved_is_loaded():
    with tempfile.TemporaryDirectory() as folder:
        test_every_family.test_what_is_saved_is_what_is_loaded("reward", Path(folder))


def misfits_are_named():
    with tempfile.TemporaryDirectory() as folder:
        try:
            test_every_family.test_weights_of_another_family_are_refused("reward", Path(folder))
        except RuntimeError as error:
            raise AssertionError("an error of torch") from error


ROWS = [
    # labels
    Mutation(
        "labels are hidden too seldom",
        LABELS,
        "device=x.device) < self.dropout",
        "device=x.device) < self.dropout**2",
        test_diffusion.test_dropout_hides_labels_at_its_rate,
    ),
    Mutation(
        "labels are hidden where they should stay",
        LABELS,
        "torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), NULL, label)",
        "torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), label, NULL)",
        test_diffusion.test_dropout_hides_labels_at_its_rate,
    ),
    Mutation(
        "a hidden label is label 0",
        LABELS,
        "torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), NULL, label)",
        "torch.where(hidden.reshape(-1, *[1] * (label.ndim - 1)), 0, label)",
        test_diffusion.test_dropout_hides_labels_at_its_rate,
    ),
    Mutation(
        "dropout from the global generator",
        LABELS,
        "torch.rand(len(x), generator=generator, device=x.device)",
        "torch.rand(len(x), device=x.device)",
        every("test_same_seed_same_loss_and_no_other_generator"),
    ),
    Mutation(
        "every view has the same key",
        LABELS,
        "return (type(self).__name__, id(self.core), self._identity)",
        "return (type(self).__name__, id(self.core))",
        every("test_views_share_their_parameters_and_differ"),
    ),
    Mutation(
        "views copy the network",
        LABELS,
        "twin._buffers, twin._modules = dict(self._buffers), dict(self._modules)",
        "twin._buffers, twin._modules = dict(self._buffers), copy.deepcopy(self._modules)",
        every("test_views_share_their_parameters_and_differ"),
    ),
    Mutation(
        "all rows get the first label",
        LABELS,
        "            return self.labels\n",
        "            return self.labels[:1].expand(n)\n",
        every("test_views_share_their_parameters_and_differ"),
    ),
    Mutation(
        "a view answers without its label",
        LABELS,
        "return None if self.label is None else torch.full(",
        "return None if self.label is not None else torch.full(",
        every("test_views_share_their_parameters_and_differ", "ncsn"),
    ),
    Mutation(
        "a view of a view forgets the first label",
        LABELS,
        "if self._identity is not None:",
        "if False:",
        every("test_wrong_labels_are_named"),
    ),
    Mutation(
        "labels never reach the training",
        LABELS,
        "        return x, label\n",
        "        return x, None\n",
        every("test_shuffled_labels_fail", "vae"),
    ),
    Mutation(
        "labels of a batch that no model takes",
        LABELS,
        "if label is not None and self.num_classes is None and self.description is None:",
        "if False:",
        every("test_models_without_labels_take_none"),
    ),
    Mutation(
        "unknown conditions reach the model",
        TERM,
        "        if unknown:\n",
        "        if False:\n",
        conditions_are_named,
    ),
    # preconditioning
    Mutation(
        "the spread of the state without σ_d",
        DENOISER,
        "return (sigma**2 + self.sigma_data**2).sqrt()",
        "return (sigma**2 + 1).sqrt()",
        optimum(False),
    ),
    Mutation(
        "the gain without its detail",
        DENOISER,
        "return self.sigma_data / (sigma**2 + self.sigma_detail**2).sqrt()",
        "return self.sigma_data / sigma",
        optimum(True),
    ),
    Mutation(
        "c_noise is ln σ",
        DENOISER,
        "c_noise = sigma.log() / 4",
        "c_noise = sigma.log()",
        optimum(False),
    ),
    Mutation(
        "data are not centred",
        DENOISER,
        "Coordinates(x - core.loc,",
        "Coordinates(x + 0 * core.loc,",
        optimum(True),
    ),
    Mutation(
        "data are not centred in training",
        DENOISER,
        "self._loss(x0 - self.core.loc, noise",
        "self._loss(x0, noise",
        least(0.0),
    ),
    Mutation(
        "the target's noise without σ_d²",
        DENOISER,
        "(level * x0 - sigma_data**2 * noise)",
        "(level * x0 - sigma_data * noise)",
        least(0.0),
    ),
    Mutation(
        "the target's data without σ",
        DENOISER,
        "(level * x0 - sigma_data**2 * noise)",
        "(x0 - sigma_data**2 * noise)",
        least(0.0),
    ),
    Mutation(
        "levels of training come one by one",
        DENOISER,
        "return log_sigma[order].exp()",
        "return log_sigma.exp()",
        levels_are_stratified,
    ),
    Mutation(
        "levels of training are not stratified",
        DENOISER,
        "(torch.arange(n, device=like.device) + offset) / n",
        "torch.rand(n, generator=generator, device=like.device, dtype=torch.float64)",
        levels_are_stratified,
    ),
    Mutation(
        "a coarse Gaussian off its centre",
        DENOISER,
        "Gaussian(loc + self.core.spread(inside) ** 2 * score,",
        "Gaussian(0 * loc + self.core.spread(inside) ** 2 * score,",
        coarse_is_centred_on_the_data,
    ),
    Mutation(
        "conditions of one forward in the wrong order",
        DENOISER,
        "labels = [view._label_rows(n, tall.device) for view in views]",
        "labels = [view._label_rows(n, tall.device) for view in views[::-1]]",
        together(),
    ),
    # energies
    Mutation(
        "an energy without its Gaussian's constant",
        ENERGY,
        "+ dim * (2 * math.pi * spread**2).log())",
        "+ 0 * spread)",
        optimum(True),
    ),
    Mutation(
        "an energy whose Gaussian has σ for σ²",
        ENERGY,
        "centred.flatten(1).square().sum(1) / spread**2",
        "centred.flatten(1).square().sum(1) / spread",
        optimum(True),
    ),
    Mutation(
        "a potential without its gain",
        ENERGY,
        "gaussian[id(c)] + c.gain * part",
        "gaussian[id(c)] + part",
        optimum(True),
    ),
    Mutation(
        "a score without the factor of its input's scale",
        ENERGY,
        "-expand_rows(c.gain / c.spread, x)",
        "-expand_rows(c.gain, x)",
        optimum(True),
    ),
    Mutation(
        "a score that climbs the potential",
        ENERGY,
        "-expand_rows(c.gain / c.spread, x)",
        "expand_rows(c.gain / c.spread, x)",
        optimum(True),
    ),
    Mutation(
        "an energy's inner product is a mean",
        ENERGY,
        "(x_in * out).flatten(1).sum(1)",
        "out.flatten(1).sum(1)",
        test_diffusion.test_an_inner_product_is_the_potential,
    ),
    Mutation(
        "training's F has the wrong sign",
        ENERGY,
        "reduced = -slope *",
        "reduced = slope *",
        least(0.0),
    ),
    Mutation(
        "training's F without r(σ)",
        ENERGY,
        "expand_rows(gain * sigma / core.sigma_data, x)",
        "1.0",
        least(0.0),
    ),
    Mutation(
        "the level's regression without the Gaussian",
        ENERGY,
        "found = base + gain *",
        "found = gain *",
        least(1000.0),
    ),
    Mutation(
        "the level's regression without c_noise's quarter",
        ENERGY,
        "(0.25 * slope_c",
        "(slope_c",
        least(1000.0),
    ),
    Mutation(
        "the level's regression without the gain's own slope",
        ENERGY,
        "- decay * g",
        "- g",
        least(1000.0),
    ),
    Mutation(
        "the level's regression at fixed input, not at fixed x",
        ENERGY,
        "- share * inner)",
        ")",
        least(1000.0),
    ),
    Mutation(
        "the level's regression on ‖ε‖² with the wrong sign",
        ENERGY,
        "target = dim - noise.square()",
        "target = -dim + noise.square()",
        least(1000.0, detail=0.0),
    ),
    # diffusion with a score network
    Mutation(
        "weight of levels ignored",
        ENERGY,
        "loss = loss + self.level_weight *",
        "loss = loss + 0 *",
        test_diffusion.test_level_loss_sees_an_offset_between_levels,
    ),
    # networks
    Mutation(
        "−1 is the last class",
        EMBEDDING,
        "torch.where(label < 0, null, label)",
        "torch.where(label < 0, null - 1, label)",
        test_diffusion.test_unconditional_is_the_null_class,
    ),
    Mutation(
        "no labels is class 0",
        EMBEDDING,
        "return self.weight[null:]",
        "return self.weight[:1]",
        test_diffusion.test_unconditional_is_the_null_class,
    ),
    Mutation(
        "the embedding forgets the label",
        EMBEDDING,
        "embedding = embedding + self.label(label)",
        "embedding = embedding + self.label(None)",
        nets("test_noise_level_and_label_matter_and_none_is_the_null_class", "mlp"),
    ),
    Mutation(
        "the embedding forgets the noise level",
        EMBEDDING,
        "torch.cat([angles.sin(), angles.cos(), c_noise[:, None]], 1)",
        "torch.cat([0 * angles.sin(), 0 * angles.cos(), 0 * c_noise[:, None]], 1)",
        nets("test_noise_level_and_label_matter_and_none_is_the_null_class", "mlp"),
    ),
    # files, mixed precision
    Mutation(
        "a loss that is not finite is trained on",
        FIT,
        "if not math.isfinite(value):",
        "if False:",
        every("test_a_loss_that_is_not_finite_stops_and_names_the_step"),
    ),
    Mutation(
        "loaded models are in training mode",
        LOAD,
        "    return model.eval()\n",
        "    return model.train()\n",
        saved_is_loaded,
    ),
    Mutation(
        "loading draws from the caller's generator",
        LOAD,
        "with torch.random.fork_rng(devices=[]):  # initial",
        "with torch.enable_grad():  # initial",
        saved_is_loaded,
    ),
    Mutation(
        "damaged weights are read",
        LOAD,
        'if digest != described["sha256"]:',
        "if False:",
        damaged_weights_are_named,
    ),
    Mutation(
        "weights that do not fit are an error of torch",
        LOAD,
        'raise ValueError(f"{path} does not fit',
        'raise error\n        raise ValueError(f"{path} does not fit',
        misfits_are_named,
    ),
    Mutation(
        "a reward's dtype is not checked",
        REWARD,
        "own.dtype != x.dtype:",
        "False:",
        reward_names_two_dtypes,
    ),
    Mutation(
        "rewards cannot be trained in mixed precision",
        REWARD,
        "value = value.to(x.dtype)  #",
        "pass  #",
        trains_in_bfloat16("reward"),
    ),
    Mutation(
        "classifiers cannot be trained in mixed precision",
        CLASSIFIER,
        "if torch.is_autocast_enabled(x.device.type):",
        "if False:",
        trains_in_bfloat16("classifier"),
    ),
]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
