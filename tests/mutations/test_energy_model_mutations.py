"""Planted errors in energy models, their objectives and calibration across levels: a law notices each."""

import math
import warnings

import pytest
import torch

from boltzmix.compose import Gaussian
from boltzmix.models import EnergyModel, GaussianBase
from boltzmix.models.nets import EnergyMLP
from boltzmix.models.objectives import contrastive_divergence, noise_contrastive
from boltzmix.models.objectives.contrastive import ChainTarget
from tests.contracts import Contract, check_integral, check_samples
from tests.models import test_energy_model as laws
from tests.models import test_objectives as objectives
from tests.mutations.harness import Mutation, verify

D = torch.float64
MODEL = "boltzmix.models.energy_model"
BASE = "boltzmix.models.gaussian_base"
REPLAY = "boltzmix.models.replay"
CD = "boltzmix.models.objectives.contrastive"
NCE = "boltzmix.models.objectives.noise_contrastive"
SCORE = "boltzmix.models.objectives.score_matching"
LEVELS = "boltzmix.models.objectives.levels"


def base_integrates():
    contract = Contract(lambda: laws.full_base().to(D), span=6.0)
    check_integral(contract)
    check_samples(contract)


def contrastive_by_hand():
    value = contrastive_divergence(torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0]), torch.tensor([0.25, 0.75]))
    assert float(value) == -4.5
    assert float(contrastive_divergence(torch.tensor([1.0]), torch.tensor([5.0, 7.0]))) == -5.0


def nce_by_hand():
    r, s, nu = torch.tensor([0.3], dtype=D), torch.tensor([-0.2, 0.9], dtype=D), 2.0
    exact = math.log(1 + nu * math.exp(-0.3))
    exact += sum(math.log(1 + math.exp(v) / nu) for v in (-0.2, 0.9)) * nu / 2
    assert abs(float(noise_contrastive(r, s, nu)) - exact) < 1e-12


def the_constant_belongs_to_the_energy():
    model = laws.make(objective="nce")
    x = torch.zeros(1, 2, dtype=D)
    before = float(model.energy(x).detach())
    with torch.no_grad():
        model.core.log_z += 1.0
    assert abs(float(model.energy(x).detach()) - before - 1) < 1e-12


def chains_see_the_score():
    model = laws.make(num_classes=3)
    x, label = torch.randn(6, 2, dtype=D, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    energy, score = ChainTarget(model.core, (2,), label).energy_and_score(x)
    view = model.given(label=label)
    assert torch.allclose(energy, view.energy(x).detach())
    assert torch.allclose(score, view.score(x).detach())


def adaptation_reaches_its_goal():
    objectives.test_step_sizes_adapt_and_given_ones_stay()


def fresh_chains_come_from_the_base():
    """Chains drawn anew have the base's moments, those kept stay where they were."""
    model = objectives.small(1, "pcd")
    x = torch.full((4000, 1), 50.0, dtype=D)
    chains, fresh = model.objective._reborn(model, x, None, x, objectives.rng())
    assert abs(float(fresh.double().mean()) - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 4000)
    assert bool((chains[~fresh] == 50).all())
    assert abs(float(chains[fresh].mean())) < 5 / math.sqrt(int(fresh.sum()))


def resampling_keeps_means():
    laws.test_resampling_keeps_weighted_means()


def slots_have_their_labels():
    laws.test_picked_chains_have_the_labels_asked_for()


def several_labels_in_one_forward():
    laws.test_views_share_the_network_and_one_forward()


def units_do_not_matter():
    laws.test_units_do_not_change_the_network()
    objectives.test_objectives_scale_with_the_units_and_reach_the_parameters()


def wide_base():
    torch.manual_seed(0)
    model = EnergyModel(EnergyMLP(2, hidden=4), (2,), loc=0.5, scale=2.0).to(D)
    x = torch.randn(5, 2, dtype=D)
    assert torch.allclose(model.energy(x), Gaussian(torch.full((2,), 0.5, dtype=D), 4.0).energy(x))
    assert torch.allclose(GaussianBase((2,), scale=2.0).deviations(), torch.full((2,), 2.0))


def moments():
    for covariance in ("diagonal", "full"):
        laws.test_the_base_takes_the_moments_of_the_data(covariance)


def runaway():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        laws.test_energies_that_run_away_stop_the_training()


def stuck():
    laws.test_chains_that_stand_still_are_reported_once()


ROWS = [
    # the model
    (
        "the base has another sign",
        MODEL,
        "self.tilt(x, label) + self.base_energy",
        "self.tilt(x, label) - self.base_energy",
        wide_base,
    ),
    ("the constant is left out", MODEL, " + self.constant(label)", "", the_constant_belongs_to_the_energy),
    (
        "the null label takes the first constant",
        MODEL,
        "return self.log_z[-1:]",
        "return self.log_z[:1]",
        laws.test_each_label_has_its_constant_and_its_base,
    ),
    (
        "labels take the next constant",
        MODEL,
        "self.log_z[torch.where(label < 0, len(self.log_z) - 1, label)]",
        "self.log_z[torch.where(label < 0, len(self.log_z) - 1, label + 1)]",
        laws.test_each_label_has_its_constant_and_its_base,
    ),
    (
        "views share the first label",
        MODEL,
        "stacked_labels([view._label_rows(n, x.device) for view in views], n, x.device)",
        "stacked_labels([views[0]._label_rows(n, x.device) for view in views], n, x.device)",
        several_labels_in_one_forward,
    ),
    ("the network sees raw units", MODEL, "(x - self.shift) / self.width", "x - self.shift", units_do_not_matter),
    (
        "the null label of a view is lost",
        MODEL,
        "self.core(x, self._label_rows(x.shape[0], x.device))",
        "self.core(x, None)",
        several_labels_in_one_forward,
    ),
    # the base
    ("half of the log-determinant", BASE, "- log_diagonal.sum(1)", "- 0.5 * log_diagonal.sum(1)", base_integrates),
    ("whitening by the transpose", BASE, "centred @ lower[0].mT if", "centred @ lower[0] if", base_integrates),
    (
        "draws that are not whitened back",
        BASE,
        "solve_triangular(whitening[0], noise.mT, upper=False).mT",
        "solve_triangular(whitening[0].mT, noise.mT, upper=True).mT",
        base_integrates,
    ),
    (
        "labelled draws by the transpose",
        BASE,
        "solve_triangular(whitening, noise[:, :, None], upper=False)",
        "solve_triangular(whitening.mT, noise[:, :, None], upper=True)",
        laws.test_draws_of_a_labelled_base_have_its_moments,
    ),
    (
        "labelled rows by the transpose",
        BASE,
        "(lower @ centred[:, :, None])",
        "(lower.mT @ centred[:, :, None])",
        laws.test_each_label_has_its_constant_and_its_base,
    ),
    ("variances for deviations", BASE, "-0.5 * variance.log()", "-variance.log()", moments),
    (
        "the precision's diagonal for the covariance's",
        BASE,
        "inverse.square().sum(1).sqrt()",
        "inverse.square().sum(0).sqrt()",
        moments,
    ),
    # contrastive divergence
    ("the sign of the chains", CD, "energy_data.mean() - model", "energy_data.mean() + model", contrastive_by_hand),
    ("weights are forgotten", CD, "(weights * energy_chains).sum()", "energy_chains.mean()", contrastive_by_hand),
    (
        "weights move the wrong way",
        CD,
        "+ before - state.energy",
        "- before + state.energy",
        objectives.weighted_chains_estimate_the_model,
    ),
    (
        "fresh chains inherit a weight",
        CD,
        "torch.where(fresh, 0.0, buffer.log_weight)",
        "buffer.log_weight",
        objectives.weighted_chains_estimate_the_model,
    ),
    (
        "old chains are weighed as fresh ones",
        CD,
        "torch.where(fresh, model.core.base_energy(chains, own), buffer.energy)",
        "model.core.base_energy(chains, own)",
        objectives.weighted_chains_estimate_the_model,
    ),
    (
        "states are not resampled with their weights",
        CD,
        "self._run(model, target, state.select(order), generator)",
        "self._run(model, target, state, generator)",
        objectives.weighted_chains_estimate_the_model,
    ),
    ("chains climb", CD, "return energy.detach(), -slope", "return energy.detach(), slope", chains_see_the_score),
    (
        "labels count by their chains",
        CD,
        "(label == value).to(share).mean() * len(buffer) / chains_of.sum()",
        "1.0",
        objectives.label_weights_follow_the_batch,
    ),
    (
        "steps adapt the wrong way",
        CD,
        "0.2 * (acceptance - self.kernel",
        "-0.2 * (acceptance - self.kernel",
        adaptation_reaches_its_goal,
    ),
    (
        "all chains are drawn anew",
        CD,
        "device=x.device) < self.reinitialize",
        "device=x.device) < 1.0",
        fresh_chains_come_from_the_base,
    ),
    (
        "energies run away unseen",
        CD,
        "if not math.isfinite(gap) or abs(gap) > bound:",
        "if not math.isfinite(gap):",
        runaway,
    ),
    ("chains stand still unseen", CD, "acceptance < 0.02 or diverged > 0.2", "diverged > 0.2", stuck),
    # the buffer
    (
        "chains of any label",
        REPLAY,
        "own = (self.label == value).nonzero()[:, 0]\n            rows",
        "own = (self.label != 99).nonzero()[:, 0]\n            rows",
        slots_have_their_labels,
    ),
    (
        "the mean weight is lost",
        REPLAY,
        "logs.logsumexp(0) - torch.tensor(float(len(own)), device=own.device).log()",
        "0.0 * logs.logsumexp(0)",
        resampling_keeps_means,
    ),
    (
        "weights are flattened before resampling",
        REPLAY,
        "weights = logs.double().softmax(0)",
        "weights = (0.5 * logs).double().softmax(0)",
        resampling_keeps_means,
    ),
    # noise-contrastive estimation
    ("the ratio is left out of h", NCE, "shift = math.log(ratio)\n    return", "shift = 0.0\n    return", nce_by_hand),
    ("noise counts once", NCE, "+ ratio * softplus", "+ softplus", nce_by_hand),
    (
        "the wrong branch for data",
        NCE,
        "softplus(shift - log_ratio_data)",
        "softplus(log_ratio_data - shift)",
        objectives.optimum_of_nce,
    ),
    (
        "the ratio of the base without its constant",
        NCE,
        "-(model.core.tilt(x, label) + model.core.constant(label))",
        "-model.core.tilt(x, label)",
        objectives.relative_and_absolute_forms_agree,
    ),
    (
        "noise of the wrong sign",
        NCE,
        "return own - model.core(x, label)",
        "return -own - model.core(x, label)",
        objectives.relative_and_absolute_forms_agree,
    ),
    (
        "the noise's likelihood upside down",
        NCE,
        "loss = loss + nll",
        "loss = loss - nll",
        objectives.learned_noise_takes_the_likelihoods_gradient,
    ),
    (
        "noise without the labels of its data",
        NCE,
        "label.repeat(self.ratio)",
        "label.flip(0).repeat(self.ratio)",
        objectives.test_noise_rows_take_the_labels_of_their_data,
    ),
    # score matching
    ("the trace loses its sign", SCORE, "trace = trace + row", "trace = trace - row", objectives.explicit_by_hand),
    ("the square is not halved", SCORE, "(trace + 0.5 * flat", "(trace + flat", objectives.explicit_by_hand),
    ("one row of the Jacobian", SCORE, "row.flatten(1)[:, d]", "row.flatten(1)[:, 0]", objectives.explicit_by_hand),
    (
        "a square that is not projected",
        SCORE,
        "if variance_reduced else along.square()",
        "if not variance_reduced else along.square() + 1",
        objectives.sliced_is_unbiased,
    ),
    (
        "projections of the wrong variance",
        SCORE,
        "v = (2 * coin - 1)",
        "v = 1.1 * (2 * coin - 1)",
        objectives.sliced_is_unbiased,
    ),
    ("projections are summed", SCORE, "(total / projections).mean()", "total.mean()", objectives.sliced_is_unbiased),
    (
        "noise pulls the other way",
        SCORE,
        "+ noise / sigma)",
        "- noise / sigma)",
        objectives.denoising_is_explicit_for_the_noised_density,
    ),
    (
        "denoising by variance",
        SCORE,
        "+ noise / sigma)",
        "+ noise / sigma**2)",
        objectives.denoising_is_explicit_for_the_noised_density,
    ),
    # across levels
    (
        "levels change places",
        LEVELS,
        "torch.where(from_lower, -logit, logit)",
        "torch.where(from_lower, logit, -logit)",
        objectives.the_truth_is_a_stationary_point,
    ),
    (
        "noise of one level only",
        LEVELS,
        "torch.where(from_lower, lower, upper).reshape",
        "lower.reshape",
        objectives.the_truth_is_a_stationary_point,
    ),
    (
        "the anchor's Gaussian without its constant",
        LEVELS,
        "(2 * math.pi * variance).log()",
        "variance.log()",
        objectives.the_truth_is_a_stationary_point,
    ),
    (
        "the anchor's draws are too narrow",
        LEVELS,
        "mean + variance.sqrt() * torch",
        "mean + high * torch",
        objectives.the_truth_is_a_stationary_point,
    ),
    (
        "the anchor is left out",
        LEVELS,
        "loss = loss + anchor * _anchor",
        "loss = loss + 0.0 * _anchor",
        objectives.wrong_energies_cost_more,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0])
def test_noticed(row):
    verify(Mutation(*row))
