"""Errors in changes of variables, planted one by one: each is noticed by a law of the flow families."""

import pytest
import torch

from boltzmix.compose import Gaussian
from boltzmix.models.continuous_flow import ContinuousFlow
from boltzmix.models.flow import Flow
from tests.contracts import Contract, check_stein
from tests.models import flow_laws, test_continuous_flow, test_flow, test_glow
from tests.models.flow_laws import D, assert_change_of_variables, assert_round_trip, points
from tests.mutations.harness import Mutation, verify

INVERTIBLE, NORMAL = "boltzmix.models.invertible", "boltzmix.models.normal"
UNITS = "boltzmix.models.nets.units"
LAYERS = "boltzmix.models.nets.invertible"
GLOW = "boltzmix.models.glow"
FLOW = "boltzmix.models.flow"
ZUKO = "boltzmix.models.adapters.zuko"
ODE = "boltzmix.models.continuous_flow"


def layer(name):
    return lambda: test_glow.test_the_log_determinant_of_a_layer_is_that_of_its_jacobian(name)


def glow_density(**options):
    def law():
        glow = test_glow.make(size=0.2, **options)
        x = points(glow.event_shape, n=2)
        view = glow.given(label=1) if glow.num_classes else glow
        assert_change_of_variables(view, x)
        assert_round_trip(view, x)

    return law


def standard_normal_before_training():
    test_glow.test_unprepared_it_starts_as_a_rotated_gaussian()


def units_law(bounds, margin=0.2):
    return lambda: test_flow.test_units(bounds, margin)


def whole_density_in_user_units():
    """The density of a flow, not of its coordinates: against autograd through encode, scale and interval included."""
    flow = test_flow.make("coupling", (1, 2, 2), bounds=(-3.0, 3.0), scale=1.7)
    assert_change_of_variables(flow, 0.5 * points((1, 2, 2)))


def draws_are_standardised_by_encode():
    """encode of exact draws is the noise that made them."""
    flow = test_flow.make("coupling", loc=0.7, scale=2.0)
    x = flow.sample(2000, torch.Generator().manual_seed(0))
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    assert torch.allclose(flow.encode(x), noise, atol=1e-6)


def stein():
    check_stein(Contract(lambda: test_flow.make("coupling"), span=5.0))


def labels_share_a_pass():
    test_flow.test_labels_share_a_pass("coupling")


def loss_is_the_mean_energy():
    flow, x = test_flow.make("coupling", (3,), num_classes=4), points((3,))
    flow.dropout = 0.0
    label = torch.tensor([0, 1, 2, 3])
    expected = flow.given(label=label).energy(x).mean() / 3
    assert torch.allclose(flow.loss((x, label), torch.Generator()), expected)


def bracket_is_noticed():
    """A wide flow whose inverse search ends at ±10 must refuse."""

    class Bracketed:
        def __call__(self, x):
            return x

        def inv(self, z):
            return z.clamp(-1, 1)

    from boltzmix.models.adapters.zuko import invert

    with pytest.raises(ValueError, match="misses 1 of 2"):
        invert(Bracketed(), torch.tensor([[0.5], [3.0]]), "a flow")


def linear_law(**options):
    return lambda: test_continuous_flow.test_a_linear_field_is_a_matrix_exponential_and_its_trace(
        {"steps": 40}, **{"times": (0.0, 1.0), "base_scale": 1.0, **options}
    )


def the_score_is_the_slope_of_log_p():
    """Central differences of log p against the score of a nonlinear field."""
    flow, x = test_continuous_flow.make(steps=3), points((3,))
    step = 1e-5 * torch.cos(x)
    slope = (flow.log_prob(x + step) - flow.log_prob(x - step)) / 2
    assert torch.allclose(slope, (flow.score(x) * step).sum(1), rtol=1e-5, atol=1e-12)


def parameters_learn_from_the_trace():
    """The gradient of log p with respect to a rate a of dx/dt = a x at x = 0 is that of the trace alone."""

    class Rate(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    rate = Rate(2, 2, bias=False)
    flow = ContinuousFlow.from_velocity(rate, (2,)).to(D)
    flow.log_prob(torch.zeros(1, 2, dtype=D)).sum().backward()
    assert torch.allclose(rate.weight.grad, torch.eye(2, dtype=D), atol=1e-6)


def hutchinson_is_not_exact():
    flow = ContinuousFlow.from_velocity(lambda x, t: x, (2,), trace="hutchinson")
    assert not flow.normalized
    assert not flow.samplable
    assert not flow.calibrated


def fresh_probes_differ():
    flow = test_continuous_flow.linear_flow(trace="hutchinson")
    x, rng = points((3,)), torch.Generator().manual_seed(0)
    assert not torch.equal(flow.estimate_log_prob(x, rng), flow.estimate_log_prob(x, rng))
    assert torch.equal(flow.energy(x), flow.energy(x))
    spread = flow.estimate_log_prob(x[:1].repeat(50, 1), rng)
    assert float(spread.std()) > 0.1, "rows share one probe"


def sizes_of_probes_add_up():
    """Random signs give a diagonal Jacobian's trace exactly, however many probes."""
    flow = ContinuousFlow.from_velocity(lambda x, t: 0.5 * x, (2,), trace="hutchinson", probes=3).to(D)
    truth = Gaussian(torch.zeros(2, dtype=D), float(torch.tensor(-1.0, dtype=D).exp()))
    assert torch.allclose(-flow.energy(points((2,))), truth.log_prob(points((2,))), atol=1e-5)


def a_prepared_flow_is_left_alone():
    test_flow.test_prepare_leaves_a_trained_flow_alone_and_given_units_too()


def hidden_labels_reach_the_null_class():
    """p(x) without a label is the null class, not class 0."""
    flow = Flow((2,), "coupling", transforms=1, hidden=(8,), num_classes=2)
    flow_laws.shaken(flow)
    x = points((2,))
    assert not torch.allclose(flow.energy(x), flow.given(label=0).energy(x))
    mixed = flow._log_density(x, torch.full((4,), -1))
    assert torch.allclose(mixed, -flow.energy(x))


ROWS = [
    # what all share
    Mutation("no base density", INVERTIBLE, "log_standard_normal(z) + gain + log_det", "gain + log_det", stein),
    Mutation(
        "no log-determinant",
        INVERTIBLE,
        "log_standard_normal(z) + gain + log_det",
        "log_standard_normal(z) + log_det",
        stein,
    ),
    Mutation(
        "units' log-determinant dropped",
        INVERTIBLE,
        "log_standard_normal(z) + gain + log_det",
        "log_standard_normal(z) + gain",
        whole_density_in_user_units,
    ),
    Mutation("base without 2π", NORMAL, "math.prod(z.shape[1:]) * _LOG_2PI", "0.0", standard_normal_before_training),
    Mutation("base without one half", NORMAL, "-0.5 * (z.flatten(1)", "-1.0 * (z.flatten(1)", stein),
    Mutation(
        "outside the interval the density is not zero",
        INVERTIBLE,
        "torch.where(inside, value, -torch.inf)",
        "value",
        test_flow.test_outside_its_interval_the_density_is_zero_and_nothing_is_nan,
    ),
    Mutation(
        "draws skip the units",
        INVERTIBLE,
        "self.core.units.inverse(self.core.inverse(z,",
        "(self.core.inverse(z,",
        draws_are_standardised_by_encode,
    ),
    Mutation(
        "labels of views exchanged",
        INVERTIBLE,
        "zip(energies.chunk(k), scores.chunk(k), strict=True)",
        "zip(energies.chunk(k)[::-1], scores.chunk(k)[::-1], strict=True)",
        labels_share_a_pass,
    ),
    Mutation(
        "views interleaved with rows",
        INVERTIBLE,
        "tall = tile(x, k)\n",
        "tall = x.repeat_interleave(k, 0)\n",
        labels_share_a_pass,
    ),
    Mutation(
        "loss forgets the label",
        INVERTIBLE,
        "-self._log_density(x, label).mean()",
        "-self._log_density(x, None).mean()",
        loss_is_the_mean_energy,
    ),
    Mutation(
        "loss has the wrong sign",
        INVERTIBLE,
        "return -self._log_density(x, label).mean()",
        "return self._log_density(x, label).mean()",
        loss_is_the_mean_energy,
    ),
    Mutation("prepared twice", INVERTIBLE, "self.core.prepared.fill_(True)", "pass", a_prepared_flow_is_left_alone),
    # units
    Mutation(
        "scale multiplies", UNITS, "u = (y - self.loc) / self.scale", "u = (y - self.loc) * self.scale", units_law(None)
    ),
    Mutation(
        "log-determinant of the scale has the wrong sign",
        UNITS,
        "log_det - self.scale.log().sum()",
        "log_det + self.scale.log().sum()",
        units_law(None),
    ),
    Mutation(
        "logit without its log-determinant",
        UNITS,
        "(math.log(slope) - up - down)",
        "(math.log(slope) + 0 * up)",
        units_law((-1.0, 3.0)),
    ),
    Mutation("log p for log|dp/dx| of the interval", UNITS, "math.log(slope) - up", "-up", units_law((-1.0, 3.0))),
    Mutation(
        "margin forgotten on the way back",
        UNITS,
        "(y.sigmoid() - self.margin) / (1 - 2 * self.margin)",
        "y.sigmoid()",
        units_law((-1.0, 3.0)),
    ),
    Mutation(
        "units of the batch overwrite those given",
        UNITS,
        "if self.measured[0]:",
        "if True:",
        a_prepared_flow_is_left_alone,
    ),
    Mutation("one scale for each pixel", UNITS, "if y.ndim == 2 else", "if True else", a_prepared_flow_is_left_alone),
    # actnorm
    Mutation(
        "actnorm's log-determinant dropped",
        LAYERS,
        "(x.shape[2] * x.shape[3] * self.log_scale.sum()).expand",
        "(0 * self.log_scale.sum()).expand",
        layer("actnorm"),
        within="class ActNorm",
    ),
    Mutation(
        "actnorm counts one pixel",
        LAYERS,
        "x.shape[2] * x.shape[3] * self.log_scale.sum()",
        "self.log_scale.sum()",
        layer("actnorm"),
        within="class ActNorm",
    ),
    Mutation(
        "actnorm shifts after scaling",
        LAYERS,
        "(x + self.shift) * self.log_scale.exp()",
        "x * self.log_scale.exp() + self.shift",
        layer("actnorm"),
    ),
    Mutation(
        "actnorm starts with half the scale",
        LAYERS,
        "-0.5 * variance.log()",
        "-1.0 * variance.log()",
        test_glow.test_actnorm_is_initialised_layer_by_layer,
    ),
    Mutation(
        "actnorm starts with the wrong mean",
        LAYERS,
        "self.shift.copy_(-mean",
        "self.shift.copy_(mean",
        test_glow.test_actnorm_is_initialised_layer_by_layer,
    ),
    Mutation(
        "all actnorms see the data",
        GLOW,
        "layer.initialise(h)",
        "layer.initialise(h + 1.0)",
        test_glow.test_actnorm_is_initialised_layer_by_layer,
    ),
    # 1×1 convolution
    Mutation(
        "1×1 convolution without H·W",
        LAYERS,
        "x.shape[2] * x.shape[3] * self.log_scale.sum()",
        "self.log_scale.sum()",
        layer("convolution"),
        within="class InvertibleConv",
    ),
    Mutation(
        "1×1 convolution counts one side",
        LAYERS,
        "x.shape[2] * x.shape[3] * self.log_scale.sum()",
        "x.shape[3] * self.log_scale.sum()",
        layer("convolution"),
        within="class InvertibleConv",
    ),
    Mutation(
        "log s for log|s|",
        LAYERS,
        "diagonal.abs().log()",
        "diagonal.log()",
        test_glow.test_a_convolution_of_negative_determinant,
    ),
    Mutation(
        "signs forgotten",
        LAYERS,
        "(self.sign * self.log_scale.exp()).diag()",
        "self.log_scale.exp().diag()",
        test_glow.test_a_convolution_of_negative_determinant,
    ),
    Mutation(
        "permutation forgotten",
        LAYERS,
        "self.permutation @ lower @ upper",
        "lower @ upper",
        test_glow.test_a_convolution_of_negative_determinant,
    ),
    Mutation("permutation not inverted", LAYERS, "self.permutation.mT @", "self.permutation @", layer("convolution")),
    Mutation(
        "diagonal of L trained", LAYERS, "self.lower.tril(-1) +", "self.lower.tril() +", layer("convolution, trained")
    ),
    # coupling
    Mutation(
        "coupling's log-determinant has the wrong sign",
        LAYERS,
        "+ shift], 1), log_scale.flatten(1).sum(1)",
        "+ shift], 1), -log_scale.flatten(1).sum(1)",
        layer("coupling"),
    ),
    Mutation(
        "coupling's log-determinant is a mean",
        LAYERS,
        "+ shift], 1), log_scale.flatten(1).sum(1)",
        "+ shift], 1), log_scale.flatten(1).mean(1)",
        layer("coupling"),
    ),
    Mutation(
        "the inverse scales the wrong way",
        LAYERS,
        "(b - shift) * log_scale.neg().exp()",
        "(b - shift) * log_scale.exp()",
        layer("coupling"),
    ),
    Mutation(
        "scale conditions on itself",
        LAYERS,
        "shift, log_scale = self._affine(a, label)\n        return torch.cat([a, log_scale.exp()",
        "shift, log_scale = self._affine(b[:, : a.shape[1]], label)\n        return torch.cat([a, log_scale.exp()",
        layer("coupling"),
    ),
    Mutation(
        "top without H·W",
        LAYERS,
        "x.shape[2] * x.shape[3] * log_scale.flatten(1).sum(1)",
        "log_scale.flatten(1).sum(1)",
        layer("top, label"),
    ),
    Mutation(
        "top's log-determinant dropped",
        LAYERS,
        "return x * log_scale.exp() + shift, gain.expand",
        "return x * log_scale.exp() + shift, 0 * gain.expand",
        layer("top"),
    ),
    Mutation(
        "coupling ignores its label",
        LAYERS,
        "h + self.label(label)[:, :, None, None]",
        "h + self.label(None)[:, :, None, None]",
        test_glow.test_a_coupling_depends_on_its_label,
    ),
    # Glow
    Mutation(
        "a split is not counted",
        GLOW,
        "h, gain = split(h, label)\n                total = total + gain",
        "h, gain = split(h, label)",
        glow_density(),
    ),
    Mutation(
        "a step is not counted",
        GLOW,
        "h, gain = layer(h, label)\n                total = total + gain",
        "h, gain = layer(h, label)",
        glow_density(levels=1),
    ),
    Mutation("the top is not counted", GLOW, "1), total + gain", "1), total", glow_density(num_classes=3)),
    Mutation(
        "layers inverted in the order of forward",
        GLOW,
        "for layer in reversed(layers)",
        "for layer in layers",
        glow_density(levels=1),
    ),
    Mutation(
        "the inverse forgets the label",
        GLOW,
        "self.top.inverse(latents[-1], label)",
        "self.top.inverse(latents[-1], None)",
        glow_density(num_classes=3),
    ),
    # zuko
    Mutation(
        "log-determinant of the inverse",
        FLOW,
        "return self._transform(u.shape[0], label).call_and_ladj(u.flatten(1))",
        "z, gain = self._transform(u.shape[0], label).call_and_ladj(u.flatten(1)); return z, -gain",
        stein,
    ),
    Mutation(
        "labels do not reach the flow",
        FLOW,
        "self.embedding(label).expand",
        "self.embedding(None).expand",
        hidden_labels_reach_the_null_class,
    ),
    Mutation("a bracket's end passes for a draw", ZUKO, "if bool(missed.any()):", "if False:", bracket_is_noticed),
    # continuous flows
    Mutation("the trace has the wrong sign", ODE, "return v, trace,", "return v, -trace,", linear_law()),
    Mutation("no trace", ODE, "return v, trace,", "return v, 0 * trace,", linear_law()),
    Mutation("draws run forward", ODE, "back = (self.times[1], self.times[0])", "back = self.times", linear_law()),
    Mutation(
        "the base's scale is not in the density",
        ODE,
        "gain - z.shape[1] * math.log(self.base_scale)",
        "gain",
        linear_law(base_scale=2.5),
    ),
    Mutation(
        "the base's scale counts once",
        ODE,
        "gain - z.shape[1] * math.log(self.base_scale)",
        "gain - math.log(self.base_scale)",
        linear_law(base_scale=2.5),
    ),
    Mutation(
        "draws start with unit noise",
        ODE,
        "z.unflatten(1, self.shape) * self.base_scale",
        "z.unflatten(1, self.shape)",
        linear_law(base_scale=2.5),
    ),
    Mutation(
        "time stands still",
        ODE,
        "y.new_full((y.shape[0],), t), label)",
        "y.new_full((y.shape[0],), 0), label)",
        test_continuous_flow.test_flow_matching_of_a_gaussian_gives_its_density,
    ),
    Mutation(
        "the trace has no gradient",
        ODE,
        "divergence(v, y, probes, create)",
        "divergence(v, y, probes, create).detach()",
        parameters_learn_from_the_trace,
    ),
    Mutation(
        "the score misses the trace's derivative",
        ODE,
        "divergence(v, y, probes, create)",
        "divergence(v, y, probes, create).detach()",
        the_score_is_the_slope_of_log_p,
    ),
    Mutation(
        "off-diagonal entries count",
        "boltzmix.models.divergence",
        "(rows * directions).flatten(2).sum(2)",
        "rows.flatten(2).sum(2)",
        lambda: test_continuous_flow.test_the_divergence("exact"),
    ),
    Mutation("an estimate passes for exact", ODE, "if not exact:", "if False:", hutchinson_is_not_exact),
    Mutation(
        "the term's probes for training",
        ODE,
        "random_signs((probes, *x.shape), x, generator)",
        "random_signs((probes, *x.shape), x, torch.Generator().manual_seed(0))",
        fresh_probes_differ,
    ),
    Mutation(
        "rows share a probe",
        ODE,
        "random_signs((probes, *x.shape), x, generator)",
        "random_signs((probes, 1, *x.shape[1:]), x, generator)",
        fresh_probes_differ,
    ),
    Mutation("probes are summed, not averaged", ODE, "/ math.sqrt(probes)", "", sizes_of_probes_add_up),
    Mutation(
        "probes of one sign",
        ODE,
        "random_signs((probes, *x.shape), x, generator)",
        "(1 + random_signs((probes, *x.shape), x, generator))",
        sizes_of_probes_add_up,
    ),
    Mutation(
        "kinetic term without the square",
        ODE,
        "v.square().flatten(1).mean(1)",
        "v.abs().flatten(1).mean(1)",
        test_continuous_flow.test_the_kinetic_term_is_the_mean_squared_velocity,
    ),
]


@pytest.mark.parametrize("mutation", ROWS, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)
