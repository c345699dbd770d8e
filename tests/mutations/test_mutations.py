"""Errors that released code in this field has had, and cousins of these, planted one by one: a law notices each.

Add a kernel's or a sampler's by one row in its list: (what is wrong, module, text, replacement, the law that fails).
"""

import math

import pytest
import torch

from boltzmix.compose import (
    Box,
    Denoised,
    Gaussian,
    GaussianMixture,
    Geometric,
    affine,
    bounded_negation,
    guidance,
    mixture,
    term,
)
from tests.compose import test_box, test_constraints, test_exponents, test_laws, test_mixture, test_product, test_scopes
from tests.contracts import (
    Contract,
    check_coarse,
    check_convolution,
    check_denoise,
    check_fused,
    check_hessian,
    check_integral,
    check_levels_are_checked,
    check_log_ratio,
    check_samples,
    check_score_is_gradient,
    check_state,
)
from tests.mutations.harness import Mutation, planted, verify

D = torch.float64


def vector(*values):
    return torch.tensor(values, dtype=D)


FULL = torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=D)
P, Q = Gaussian(vector(0.5, -0.3), FULL), Gaussian(vector(-0.5, 0.8), 1.7)
R = GaussianMixture(vector(-1.0, 0.0, 1.0, 1.0).reshape(2, 2), torch.stack([FULL, 0.5 * FULL]), [1.0, 3.0])
BOX = Box(vector(-1.0), vector(1.5))
COST = term(lambda x: (x[:, 0] - 1) ** 2 + torch.cos(x[:, 1]), kind="energy", event_shape=2)
TERMS = {
    "gaussian": Contract(lambda: P),
    "gaussian-far": Contract(lambda: P, levels=(2.0,)),
    "mixture": Contract(lambda: R),
    "box": Contract(lambda: BOX, span=2.0, smooth=False),
    "sum": Contract(lambda: mixture([P, Q], [1, 3]), span=6.0),
    "product": Contract(lambda: P * R**2 / Q**0.5),
    "affine": Contract(lambda: affine(R, 0.5, -1.5), span=6.0),
    "affine-diagonal": Contract(lambda: affine(R, 0.5, vector(0.5, 2.0)), span=7.0),
    "bounded": Contract(lambda: bounded_negation(R, P, 2.0)),
    "geometric": Contract(lambda: Geometric(P, R * COST), levels=(None, 0.3, 1.0)),
    "denoised": Contract(lambda: Denoised(COST, R), levels=(None, 0.5), coarse=False),
    "pull": Contract(
        lambda: term(pull, kind="score", event_shape=2, path="noised", sigma_range=(0.1, 9.0)), levels=(None, 0.5)
    ),
    "shared": Contract(lambda: guidance(P, Q, torch.nn.Parameter(vector(2.0)[0]))),
}


def pull(x, sigma):
    return -x / (1 + sigma.reshape(-1, 1) ** 2)


def stretched_noise_is_annealed():
    assert TERMS["affine-diagonal"].make().path == "annealed"


def holds(check, name):
    """A check of the contract suite on one of the terms above."""

    def law():
        check(TERMS[name])

    return law


def log_ratio_rises_towards_the_mode():
    assert float(P.log_ratio(vector(3.0, 3.0)[None], vector(0.5, -0.3)[None])) > 0


def functions_keep_their_sign():
    x = vector(1.0, 2.0)[None]
    for kind, sign in (("energy", 1.0), ("log_prob", -1.0)):
        assert float(term(lambda x: (x**2).sum(-1), kind=kind, event_shape=2).energy(x)) == sign * 5.0


def one_bad_row_spoils_no_other():
    def fn(x):
        if bool((x < 0).any()):
            raise ValueError("negative")
        return x[:, 0]

    with pytest.warns(UserWarning, match="NaN"):
        energy = term(fn, kind="energy", event_shape=1).energy(vector(1.0, -1.0, 3.0, 4.0)[:, None])
    assert torch.isnan(energy).tolist() == [False, True, False, False]
    assert energy[[0, 2, 3]].tolist() == [1.0, 3.0, 4.0]


def algebra(name):
    """A law of the semiring, on three formulas (hypothesis would shrink every failure for seconds)."""
    a, b, c = ("leaf", "gauss"), ("leaf", "wide"), ("**", ("leaf", "mixture"), 2.0)
    return lambda: test_laws.test_law.hypothesis.inner_test(name, a, b, c, 0.5, -1.5, 0.4)


def spells(tree):
    """A formula has the energy that it spells."""
    return lambda: test_laws.test_a_formula_has_the_energy_that_it_spells.hypothesis.inner_test(D, tree, 0.4)


def flags(name):
    return lambda: test_laws.test_flags(name)


GAUSSIAN, MIXTURE, PRODUCT = "boltzmix.compose.gaussian", "boltzmix.compose.mixture", "boltzmix.compose.product"
TERM, WRAPPERS, CONSTRAINTS = "boltzmix.compose.term", "boltzmix.compose.wrappers", "boltzmix.compose.constraints"
BOXES, EXPONENT, CALLABLES = "boltzmix.compose.box", "boltzmix.compose.exponent", "boltzmix.compose.callables"
CLOSED = "boltzmix.compose.closed_form"
NOISE = "variances = variances + (sigma[:, None] if sigma.ndim else sigma) ** 2"

ALGEBRA = [
    # Gaussians
    Mutation("noised covariance ignores σ", GAUSSIAN, NOISE, "pass", holds(check_convolution, "gaussian")),
    Mutation("variance grows with σ, not σ²", GAUSSIAN, NOISE, NOISE[:-5], holds(check_convolution, "gaussian-far")),
    Mutation(
        "log-determinant dropped from the energy",
        GAUSSIAN,
        "- precision.log().expand_as(y).sum(-1)",
        "",
        holds(check_integral, "gaussian"),
    ),
    Mutation(
        "2π counted once, whatever the dimension",
        GAUSSIAN,
        "y.shape[-1] * _LOG_2PI - precision.log().sum())",
        "_LOG_2PI - precision.log().sum())",
        holds(check_fused, "gaussian"),
    ),
    Mutation(
        "score has the wrong sign",
        GAUSSIAN,
        "self.basis.to(x).mT).neg()",
        "self.basis.to(x).mT)",
        holds(check_score_is_gradient, "gaussian"),
    ),
    Mutation(
        "draws scaled by variances",
        GAUSSIAN,
        "noise * self.variances.sqrt()",
        "noise * self.variances",
        holds(check_samples, "gaussian"),
    ),
    Mutation(
        "mixture forgets its weights", GAUSSIAN, " + self.weights.to(x).log()", "", holds(check_samples, "mixture")
    ),
    Mutation(
        "mixture draws components evenly",
        GAUSSIAN,
        "torch.multinomial(self.weights,",
        "torch.multinomial(torch.ones_like(self.weights),",
        holds(check_samples, "mixture"),
    ),
    Mutation(
        "mixture is not noised",
        GAUSSIAN,
        "(sigma[:, None, None] if sigma.ndim else sigma) ** 2",
        "0.0",
        holds(check_convolution, "mixture"),
    ),
    Mutation(
        "responsibilities left out of the score",
        GAUSSIAN,
        "responsibilities[..., None] * z",
        "z",
        holds(check_score_is_gradient, "mixture"),
    ),
    # boxes
    Mutation("box forgets its width", BOXES, "log_mass - log_width", "log_mass", holds(check_integral, "box")),
    Mutation(
        "box's tail is not reflected",
        BOXES,
        "flip = lower + upper > 0",
        "flip = lower + upper > torch.inf",
        lambda: test_box.test_energy_and_score_in_the_tails(1e-3, -1.0, 1.0, D, 1e-9),
    ),
    Mutation(
        "reflected score keeps its sign",
        BOXES,
        "torch.where(flip, -slope, slope)",
        "slope",
        holds(check_score_is_gradient, "box"),
    ),
    Mutation(
        "box is open, so that a draw may be outside",
        BOXES,
        "(x >= low) & (x <= high)",
        "(x > low) & (x < high)",
        test_box.test_the_data_end_is_the_closed_box,
    ),
    # sums
    Mutation(
        "sum forgets log weights",
        MIXTURE,
        "torch.stack([w - e for",
        "torch.stack([-e for",
        test_laws.test_mixtures_of_normalised_terms_commute_with_noising,
    ),
    Mutation(
        "responsibilities without the total",
        MIXTURE,
        "(logs - total[:, None]).exp()",
        "logs.exp()",
        holds(check_score_is_gradient, "sum"),
    ),
    Mutation(
        "merging a member drops its weight",
        MIXTURE,
        "weight = log_sum_exp([weight, merged[key][1]])",
        "pass",
        test_mixture.test_nested_sums_flatten_and_equal_members_merge,
    ),
    Mutation(
        "any sum is called noised", MIXTURE, "and (normalized or len(members) == 1)", "", flags("mixture uncalibrated")
    ),
    Mutation(
        "unnormalised weights called normalised",
        MIXTURE,
        "normalized and abs(total) < 1e-6",
        "normalized",
        flags("p+q"),
    ),
    # products
    Mutation(
        "score ignores exponents",
        PRODUCT,
        "return torch.add(total, score, alpha=weight)",
        "return torch.add(total, score)",
        holds(check_score_is_gradient, "product"),
    ),
    Mutation(
        "energy ignores exponents",
        PRODUCT,
        "part = _powered(e, w)",
        "part = e",
        holds(check_score_is_gradient, "product"),
    ),
    Mutation(
        "guidance has the wrong sign",
        PRODUCT,
        "Exponent(1.0) + alpha * Exponent(-1.0)",
        "Exponent(1.0) + alpha",
        test_laws.test_guidance_of_gaussians_is_the_closed_form,
    ),
    Mutation(
        "negation has the wrong sign",
        PRODUCT,
        "as_exponent(gamma) * Exponent(-1.0)",
        "as_exponent(gamma)",
        algebra("negation"),
    ),
    Mutation("merging drops an exponent", PRODUCT, "total = merged[key][1] + total", "pass", algebra("a * b / b == a")),
    Mutation(
        "a nested power is not multiplied",
        PRODUCT,
        "total = weight * power",
        "total = power",
        spells(("**", ("**", ("leaf", "gauss"), 2.7), 0.5)),
    ),
    Mutation(
        "a scale does not follow its power",
        PRODUCT,
        "term.log_scale * (constant or 0.0)",
        "term.log_scale",
        test_product.test_scales_follow_powers,
    ),
    Mutation(
        "a scale adds to the energy",
        PRODUCT,
        "energy = energy - self.log_scale",
        "energy = energy + self.log_scale",
        algebra("3 (a + b) == 3 a + 3 b"),
    ),
    Mutation(
        "0 · ∞ in a row",
        PRODUCT,
        "value = torch.where((weight == 0) & ~torch.isfinite(value), 0.0, value)",
        "pass",
        test_product.test_zero_exponents_leave_the_density_one_also_where_it_is_zero,
    ),
    Mutation(
        "a product of noised terms is called noised", PRODUCT, "elif disjoint and all(", "elif all(", flags("p*q")
    ),
    Mutation(
        "a conditional alone is called normalised",
        PRODUCT,
        "self.normalized = covered == scope_names(self)",
        "self.normalized = covered is not None",
        flags("p(y|x)p(z|y)"),
    ),
    Mutation(
        "the chain rule accepts two densities of one variable",
        PRODUCT,
        "if names and not names & others",
        "if names",
        flags("p(x)q(x)"),
    ),
    Mutation(
        "coarse forgets exponents",
        PRODUCT,
        "precision = precision + weight * full",
        "precision = precision + full",
        holds(check_coarse, "product"),
    ),
    Mutation(
        "variables at different levels share the first",
        PRODUCT,
        "for name in term.variables if sigma.get(name)",
        "for name in sigma if sigma.get(name)",
        test_scopes.test_a_varying_exponent_sees_the_level_of_its_own_variables,
    ),
    # exponents
    Mutation(
        "coefficients of exponents are added",
        EXPONENT,
        "+ ca * cb",
        "+ ca + cb",
        algebra("(a ** u) ** v == a ** (u v)"),
    ),
    Mutation(
        "a learnable exponent is read once and for all",
        EXPONENT,
        "factor.reshape(()) if",
        "factor.detach().reshape(()) if",
        test_exponents.test_a_learnable_exponent_gets_the_energys_gradient,
    ),
    # terms
    Mutation(
        "Tweedie with σ instead of σ²",
        TERM,
        "expand_rows(level, t) ** 2 * s",
        "expand_rows(level, t) * s",
        holds(check_denoise, "gaussian"),
    ),
    Mutation(
        "log_ratio upside down",
        TERM,
        "self._check_energy(self._energy(x, level), x) - self._check_energy(self._energy(y, level), y)",
        "self._energy(y, level) - self._energy(x, level)",
        log_ratio_rises_towards_the_mode,
    ),
    Mutation(
        "line integral without weights",
        TERM,
        "total = total + weight * inner",
        "total = total + inner",
        holds(check_log_ratio, "pull"),
    ),
    Mutation(
        "score is the gradient",
        TERM,
        "torch.zeros_like(t) if g is None else -g for",
        "torch.zeros_like(t) if g is None else g for",
        holds(check_log_ratio, "denoised"),
    ),
    Mutation(
        "score cannot be differentiated",
        TERM,
        "create_graph=create_graph",
        "create_graph=False",
        holds(check_hessian, "denoised"),
    ),
    Mutation(
        "NaN levels are taken",
        TERM,
        "low >= 0 and high < math.inf",
        "not (low < 0 or high == math.inf)",
        holds(check_levels_are_checked, "gaussian"),
    ),
    Mutation(
        "the range is not checked",
        TERM,
        "low < least * (1 - tolerance) or high > most * (1 + tolerance)",
        "False",
        holds(check_levels_are_checked, "pull"),
    ),
    Mutation(
        "state holds shared parameters twice",
        TERM,
        "state.pop(prefix + twin, None)",
        "pass",
        holds(check_state, "shared"),
    ),
    # wrappers
    Mutation(
        "affine forgets the log-determinant",
        WRAPPERS,
        "energy + self._log_det",
        "energy",
        holds(check_integral, "affine"),
    ),
    Mutation(
        "affine counts one coordinate's log-determinant",
        WRAPPERS,
        "float(logs) * size",
        "float(logs)",
        holds(check_integral, "affine"),
    ),
    Mutation(
        "affine does not rescale σ",
        WRAPPERS,
        "sigma / self._level_scale\n",
        "sigma\n",
        holds(check_convolution, "affine"),
        within="class Affine(Wrapper)",
    ),
    Mutation(
        "affine's score stays in the inner units",
        WRAPPERS,
        "score / self.change.scale.to(score)",
        "score",
        holds(check_score_is_gradient, "affine-diagonal"),
    ),
    Mutation(
        "anisotropic noise is called noised", WRAPPERS, 'self.path = "annealed"', "pass", stretched_noise_is_annealed
    ),
    Mutation(
        "affine's draws are not shifted",
        WRAPPERS,
        "return self.loc.to(x) + self.scale.to(x) * x",
        "return self.scale.to(x) * x",
        holds(check_samples, "affine"),
    ),
    # constraints
    Mutation(
        "bounded_negation compares the wrong way",
        CONSTRAINTS,
        "torch.inf, e_p - e_q)",
        "torch.inf, e_q - e_p)",
        lambda: test_constraints.test_bounded_negation_on_a_grid(2.0),
    ),
    Mutation(
        "bounded_negation's score forgets α",
        CONSTRAINTS,
        "share = self.alpha * torch.sigmoid(gap)",
        "share = torch.sigmoid(gap)",
        holds(check_score_is_gradient, "bounded"),
    ),
    Mutation(
        "geometric path runs backwards",
        CONSTRAINTS,
        "torch.where(b > 0, b * u, 0.0) + torch.where(b < 1, (1 - b) * v, 0.0)",
        "(1 - b) * u + b * v",
        test_constraints.test_geometric_joins_base_and_target,
    ),
    Mutation(
        "denoised estimate not differentiated",
        CONSTRAINTS,
        "denoised = self.prior._denoise(x,",
        "denoised = self.prior._denoise(x.detach(),",
        test_constraints.test_denoised_differentiates_through_the_prior,
    ),
    # functions, closed forms
    Mutation(
        "log_prob taken as energy",
        CALLABLES,
        'value.neg() if self.kind == "log_prob" else value',
        "value",
        functions_keep_their_sign,
    ),
    Mutation(
        "one failing row spoils its half",
        CALLABLES,
        "part, count = self._split(half, level)",
        "part, count = self._not_a_number(half), 1",
        one_bad_row_spoils_no_other,
    ),
    Mutation(
        "closed form without powers of log Z",
        CLOSED,
        "0.5 * w * (size * _LOG_2PI",
        "0.5 * (size * _LOG_2PI",
        test_laws.test_closed_form_log_z_is_the_integral,
    ),
]


@pytest.mark.parametrize("mutation", ALGEBRA, ids=lambda m: m.name)
def test_noticed(mutation):
    verify(mutation)


def test_the_original_is_back_afterwards():
    mutation = ALGEBRA[0]
    x = torch.zeros(1, 2, dtype=D)
    before = float(P.energy(x, 3.0))
    with planted(mutation):
        assert float(P.energy(x, 3.0)) != before
    assert float(P.energy(x, 3.0)) == before


def test_rows_cannot_rot():
    """A text that is gone, occurs twice, or changes no function is an error of the row."""
    for old, new in (("no such text", ""), ("Gaussian", "G"), ("_LOG_2PI = math.log(2 * math.pi)", "_LOG_2PI = 0.0")):
        with pytest.raises(LookupError), planted(Mutation("rotten", GAUSSIAN, old, new, lambda: None)):
            pass


def test_a_law_that_notices_nothing_is_found_out():
    blind = Mutation("harmless", GAUSSIAN, NOISE, "pass", lambda: math.pi)
    with pytest.raises(AssertionError, match="did not notice"):
        verify(blind)
