"""Errors in diffusion, flow matching, likelihoods and their networks, planted one by one: a law notices each."""

import pytest
import torch

from tests.models import (
    test_diffusion,
    test_diffusion_targets,
    test_flow_matching,
    test_likelihood,
    test_ncsn,
    test_nets,
)
from tests.mutations.harness import Mutation, verify

DIFFUSION, DENOISER = "boltzmix.models.diffusion", "boltzmix.models.denoiser"
SCHEDULE, STRAIGHT = "boltzmix.models.schedules.base", "boltzmix.models.schedules.straight"
EXPLODING = "boltzmix.models.schedules.variance_exploding"
PRESERVING = "boltzmix.models.schedules.variance_preserving"
FLOW, NCSN = "boltzmix.models.flow_matching", "boltzmix.models.ncsn"
EQUATION, LIKELIHOOD = "boltzmix.models.probability_flow", "boltzmix.models.likelihood"
SOLVER, DIVERGENCE = "boltzmix.models.ode", "boltzmix.models.divergence"
ELBO = "boltzmix.models.diffusion_bound"
DIT, UNET = "boltzmix.models.nets.dit", "boltzmix.models.nets.unet"
D = torch.float64


def scores(name, target):
    return lambda: test_diffusion_targets.test_all_parameterizations_of_one_gaussian_have_its_score(name, target)


def trains(name, target, weight="own"):
    def law():
        assert abs(test_diffusion_targets.minimiser(name, target, weight) - 1) < 0.03

    return law


def undoes(name, target):
    return lambda: test_diffusion_targets.test_eps_undoes_target(name, target)


def weighs(weight):
    return lambda: test_diffusion_targets.test_a_weight_means_the_same_for_every_parameterization(weight)


def bounds(name="cosine", target="v", **options):
    return lambda: test_diffusion_targets.elbo_loss_is_the_bound(name, target, **{"noise": None, **options})


def steps():
    test_diffusion_targets.test_one_step_moments_iterate_to_the_marginal(test_diffusion_targets.VP.ddpm(25, 1e-3, 0.3))


def levels(schedule):
    return lambda: test_diffusion_targets.test_level_is_the_inverse_of_time_and_quantiles_have_their_density(schedule)


def likelihood():
    test_likelihood.test_a_mixture_in_the_plane_has_its_closed_form(D)


def order(method, number):
    return lambda: test_likelihood.test_fixed_solvers_have_their_order(method, number)


def karras_weight_is_karras():
    """With "edm" and the preconditioning of schedule=None, the weighted loss is that of F itself."""
    data = 0.5 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    p = test_diffusion.vector_score()
    first = float(p.loss(data, torch.Generator().manual_seed(1)).detach())
    p.weight = "edm"
    assert float(p.loss(data, torch.Generator().manual_seed(1)).detach()) == pytest.approx(first)


def hutchinson_claims_no_constant():
    p = test_likelihood.ODEDensity(test_likelihood.scored(test_likelihood.LINE), trace="hutchinson")
    assert not p.normalized
    assert not p.samplable


def drawn_from_the_density():
    p = test_likelihood.ODEDensity(test_likelihood.scored(test_likelihood.LINE, 0.05, 30.0), steps=16)
    x = p.sample(4000, torch.Generator().manual_seed(0))
    assert abs(float((x > 0).double().mean()) - 2 / 3) < 4 * (2 / 9 / 4000) ** 0.5
    assert float(x.abs().mean()) == pytest.approx(1.0, abs=0.05)


TARGETS = [
    Mutation(
        "v target has the sign of its data part turned",
        SCHEDULE,
        "return rows(alpha) * noise - rows(own) * x0",
        "return rows(alpha) * noise + rows(own) * x0",
        undoes("cosine", "v"),
    ),
    Mutation(
        "v adds data where it should subtract",
        SCHEDULE,
        "rows(alpha) * output + rows(alpha * alpha * level) * x",
        "rows(alpha) * output - rows(alpha * alpha * level) * x",
        scores("cosine", "v"),
    ),
    Mutation(
        "x0 taken for ε", SCHEDULE, "            return x0\n", "            return noise\n", trains("ddpm", "sample")
    ),
    Mutation(
        "ε taken for x0", SCHEDULE, "            return noise\n", "            return x0\n", trains("ddpm", "epsilon")
    ),
    Mutation(
        "score target scaled by σ_t",
        SCHEDULE,
        "return -noise / rows(own)",
        "return -noise * rows(own)",
        undoes("linear", "score"),
    ),
    Mutation(
        "velocity has the opposite sign in training",
        STRAIGHT,
        'return noise - x0 if self._points_to == "noise" else x0 - noise',
        'return x0 - noise if self._points_to == "noise" else noise - x0',
        trains("flow", "velocity"),
    ),
    Mutation(
        "velocity has the opposite sign in the score",
        STRAIGHT,
        'scale * (x + output if self._points_to == "noise" else x - output)',
        'scale * (x - output if self._points_to == "noise" else x + output)',
        test_flow_matching.velocity_gives_the_score,
    ),
    Mutation(
        "F's target forgets σ_d² on the noise",
        EXPLODING,
        "(scale * self.sigma_data**2).to(x0.dtype)",
        "(scale * self.sigma_data).to(x0.dtype)",
        undoes("edm", "edm"),
    ),
    Mutation(
        "the state is not scaled by α",
        DIFFUSION,
        "width = (1 / self.schedule.alpha(level)).to(x.dtype)",
        "width = torch.ones_like(level)",
        scores("cosine", "v"),
    ),
    Mutation(
        "training feeds the unscaled state",
        DIFFUSION,
        "own = core(alpha * x, sigma, [label])",
        "own = core(x, sigma, [label])",
        trains("cosine", "sample"),
    ),
    Mutation(
        "predicted noise taken for the score",
        DIFFUSION,
        "eps * expand_rows(-1 / level, x)",
        "-eps + 0 * expand_rows(level, x)",
        scores("ddpm", "epsilon"),
    ),
    Mutation(
        "mean of a forward step without its square root",
        PRESERVING,
        "return math.sqrt(1 - beta) * x",
        "return (1 - beta) * x",
        steps,
    ),
    Mutation("spread of a forward step is β", PRESERVING, "+ math.sqrt(beta) * noise", "+ beta * noise", steps),
    Mutation(
        "β from ᾱ alone",
        PRESERVING,
        "return 1 - table[1:] / table[:-1]",
        "return 1 - table[1:]",
        steps,
    ),
    Mutation(
        "levels between steps are linear in σ",
        PRESERVING,
        "return torch.lerp(table[before], table[before + 1], at - before).exp()",
        "return torch.lerp(table[before].exp(), table[before + 1].exp(), at - before)",
        levels(test_diffusion_targets.VP.ddpm(25, 1e-3, 0.3)),
    ),
    Mutation(
        "density of levels forgets the share's span",
        SCHEDULE,
        "return slope.abs().log() - (last - first).abs().log()",
        "return slope.abs().log()",
        levels(test_diffusion_targets.LinearVP()),
    ),
]
WEIGHTS = [
    Mutation(
        "the bound weighs by p instead of 1/p",
        DIFFUSION,
        "(-self._log_density(sigma)).exp()",
        "self._log_density(sigma).exp()",
        bounds(),
    ),
    Mutation(
        "the bound forgets its prior term",
        DIFFUSION,
        "return prior + 0.5 *",
        "return 0.5 *",
        bounds(sigma_range=(0.05, 0.7), sigma_data=0.5),
    ),
    Mutation("the bound forgets its decoder", DIFFUSION, "math.log(2 * math.pi * low**2)", "0.0", bounds()),
    Mutation(
        "truncation missing from the density of levels",
        DENOISER,
        "- math.log(std * (last - first))",
        "- math.log(std)",
        test_diffusion_targets.test_the_density_of_training_levels,
    ),
    Mutation(
        "Karras' weight without its square",
        DIFFUSION,
        "(self.core.spread(sigma) / self.core.sigma_data) ** 2",
        "(self.core.spread(sigma) / self.core.sigma_data)",
        karras_weight_is_karras,
    ),
    Mutation(
        "weights act on the output's error, not the noise's",
        DIFFUSION,
        "squares = of_noise.square()",
        "squares = own.square()",
        weighs("epsilon"),
    ),
    Mutation(
        "NCSN's λ(σ) = σ² is missing",
        DIFFUSION,
        '(of_noise if self.parameterization == "score" else own)',
        "own",
        test_ncsn.loss_has_its_weight,
    ),
    Mutation(
        "NCSN's levels are equidistant",
        EXPLODING,
        "        return value.exp()\n",
        "        return value\n",
        test_ncsn.ladder_is_geometric,
    ),
    Mutation(
        "annealed steps scale with σ, not σ²",
        NCSN,
        "(ladder / ladder[-1]) ** 2",
        "(ladder / ladder[-1])",
        test_ncsn.ladder_is_geometric,
    ),
    Mutation(
        "NCSN leaves out its last level",
        NCSN,
        "(share * self.levels).long().clamp(max=self.levels - 1)",
        "(share * (self.levels - 1)).long()",
        test_ncsn.ladder_is_geometric,
    ),
]
TRANSPORT = [
    Mutation(
        "pairs are the worst ones",
        FLOW,
        "linear_sum_assignment(-gain",
        "linear_sum_assignment(gain",
        test_flow_matching.pairs_are_optimal,
    ),
    Mutation(
        "pairs cross labels",
        FLOW,
        "if label is None else",
        "if label is not None else",
        test_flow_matching.pairs_keep_to_their_label,
    ),
    Mutation(
        "noise is not paired at all",
        FLOW,
        "noise = noise[pair(x0, noise, label)]",
        "pass",
        test_flow_matching.loss_pairs_by_transport,
    ),
    Mutation(
        "log-determinant of the flow has the wrong sign",
        FLOW,
        "return -log_standard_normal(z) - total[0]",
        "return -log_standard_normal(z) + total[0]",
        test_flow_matching.flow_has_the_gaussians_density,
    ),
    Mutation(
        "draws start where the data are",
        FLOW,
        "noise, 1.0, 0.0, self.solver",
        "noise, 0.0, 1.0, self.solver",
        test_flow_matching.test_draws_are_those_of_the_density,
    ),
    Mutation(
        "an OT model claims a noised path",
        FLOW,
        'self.path, self.sigma_range = "static", (0.0, math.inf)',
        "pass",
        test_flow_matching.test_the_velocity_of_transported_pairs_is_no_score,
    ),
]
LIKELIHOODS = [
    Mutation(
        "the trace enters with the wrong sign",
        LIKELIHOOD,
        "return self._start(top)[None] + growth + total",
        "return self._start(top)[None] + growth - total",
        likelihood,
    ),
    Mutation(
        "the Jacobian of the scaling is missing", LIKELIHOOD, "[None] + growth + total", "[None] + total", likelihood
    ),
    Mutation(
        "the scaling of the coordinate is missing from its equation",
        LIKELIHOOD,
        "/ width * (score + u / width)",
        "/ width * score",
        likelihood,
    ),
    Mutation(
        "drift of the stochastic equation: twice the score",
        LIKELIHOOD,
        "/ width * (score + u / width)",
        "/ width * (2 * score + u / width)",
        likelihood,
    ),
    Mutation(
        "trace of the first coordinate only",
        EQUATION,
        "unit_vectors(leaf)",
        "unit_vectors(leaf)[:1]",
        test_likelihood.test_the_trace_is_the_jacobians,
    ),
    Mutation(
        "Hutchinson's probes are not signs",
        DIVERGENCE,
        "return 2 * bits.to(like.dtype) - 1",
        "return 2 * bits.to(like.dtype)",
        test_likelihood.hutchinson_is_unbiased_with_its_standard_error,
    ),
    Mutation(
        "Runge and Kutta's middle slopes count once",
        SOLVER,
        "s + h / 6 * (a + 2 * b + 2 * c + d)",
        "s + h / 4 * (a + b + c + d)",
        order("rk4", 4),
    ),
    Mutation(
        "the midpoint's slope at the old time",
        SOLVER,
        "second = field(_moved(state, h / 2, first), t + h / 2)",
        "second = field(state, t)",
        order("midpoint", 2),
    ),
    Mutation(
        "Heun's second slope at the old time",
        SOLVER,
        "second = field(_moved(state, h, first), after)",
        "second = field(_moved(state, h, first), t)",
        order("heun", 2),
    ),
    Mutation(
        "the divergence at another time",
        EQUATION,
        "return value_and_divergence(field, state[0], t, probes, keep)",
        "return field(state[0], t), value_and_divergence(field, state[0], start, probes, keep)[1]",
        order("rk4", 4),
    ),
    Mutation(
        "the density's draws keep the coarse width",
        LIKELIHOOD,
        "return self.centre.to(top) + self._width(self.low) * u",
        "return self.centre.to(top) + self._width(self.high) * u",
        drawn_from_the_density,
    ),
    Mutation(
        "Hutchinson's energy claims to be normalised",
        LIKELIHOOD,
        "self.normalized = self.calibrated = self.samplable = exact",
        "self.normalized = self.calibrated = True\n        self.samplable = exact",
        hutchinson_claims_no_constant,
    ),
    Mutation(
        "draws of log p pass for draws of the estimated energy",
        LIKELIHOOD,
        "self.normalized = self.calibrated = self.samplable = exact",
        "self.normalized = self.calibrated = exact\n        self.samplable = True",
        hutchinson_claims_no_constant,
    ),
]
BOUND = [
    Mutation(
        "L_T dropped",
        ELBO,
        "Bound(-(top + (path + decoding).mean(0))",
        "Bound(-((path + decoding).mean(0))",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "L_0 dropped",
        ELBO,
        "Bound(-(top + (path + decoding).mean(0))",
        "Bound(-(top + path.mean(0))",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "the simple loss's weights in the bound",
        ELBO,
        "weights = 0.5 * (levels[1:] ** 2 / levels[:-1] ** 2 - 1)",
        "weights = torch.ones_like(levels[1:])",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "weights without their half",
        ELBO,
        "weights = 0.5 * (levels[1:]",
        "weights = (levels[1:]",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "weights of the ratio's inverse",
        ELBO,
        "(levels[1:] ** 2 / levels[:-1] ** 2 - 1)",
        "(1 - levels[:-1] ** 2 / levels[1:] ** 2)",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "a share of the levels without its factor",
        ELBO,
        "total = total + count / draws * weights[index]",
        "total = total + weights[index]",
        lambda: test_likelihood.elbo_equals_its_definition(3),
    ),
    Mutation(
        "the control variate has a mean",
        ELBO,
        "excess = noise.square().flatten(1).sum(1) - x[0].numel()",
        "excess = noise.square().flatten(1).sum(1)",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "the prior's trace is missing",
        ELBO,
        "return at_mean + trace - 0.5",
        "return at_mean - 0.5",
        test_likelihood.elbo_equals_its_definition,
    ),
    Mutation(
        "the limit forgets the span of ln σ",
        ELBO,
        "total = total + span / draws *",
        "total = total + 1 / draws *",
        test_likelihood.test_the_limit_of_many_levels,
    ),
    Mutation(
        "cells are half as wide",
        ELBO,
        "(x + cell / 2 - mean) / low)",
        "(x - mean) / low)",
        test_likelihood.test_discrete_data_have_their_probability,
    ),
    Mutation(
        "mass of a cell cancels in the tail",
        ELBO,
        "flip = left + right > 0",
        "flip = left + right > torch.inf",
        test_likelihood.test_the_mass_of_a_cell_keeps_its_precision_in_the_tails,
    ),
]
NETS = [
    Mutation(
        "patches are put back transposed",
        DIT,
        "grid.permute(0, 3, 1, 4, 2, 5)",
        "grid.permute(0, 3, 1, 5, 2, 4)",
        test_nets.dit_patches_go_back_where_they_came_from,
    ),
    Mutation(
        "gates are left out",
        DIT,
        "return h + g2 * self.narrow(inner)",
        "return h + self.narrow(inner)",
        test_nets.dit_blocks_start_as_the_identity,
    ),
    Mutation(
        "attention is not scaled",
        DIT,
        "torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)",
        "torch.softmax(q @ k.mT, -1)",
        test_nets.test_dits_attention_is_scaled_dot_product_attention,
    ),
    Mutation(
        "rows and columns of patches look alike",
        DIT,
        "for place in (down, across)",
        "for place in (down, down)",
        test_nets.test_positions_tell_every_patch_apart,
    ),
    Mutation(
        "attention on the way up is left out",
        UNET,
        "h = self.attend_up[str(i)](h)",
        "pass",
        lambda: test_nets.test_second_derivatives_and_every_parameter_takes_part(*test_nets.NETS["attending unet"]),
    ),
]
ALL = [*TARGETS, *WEIGHTS, *TRANSPORT, *LIKELIHOODS, *BOUND, *NETS]


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
