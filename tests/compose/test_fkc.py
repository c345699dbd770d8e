r"""Feynman–Kac corrected reverse diffusion against closed forms, from scores alone.

Bounds on z-scores: moments of m coordinates are compared at 4.5 standard deviations of n / 4 independent draws, which a
correct sampler fails with a probability below 1e-5 each; log Z is compared over five seeds, each within 3 of its own
standard errors (0.3 % each) and their mean within 3 of its own. Seeds are fixed and were not searched. Where the
formula's Gaussian guess is right, weights are even and the standard error is zero: there log Z is compared to 1e-3.
"""

import dataclasses
import math

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.closed_form import gaussian_product, mixture_product
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.errors import MissingEnergy, NotNormalizable
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.mixture import mixture
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import FKC, SMC, Ladder, Reverse, base, coarse_start, feynman_kac
from boltzmix.compose.samplers.feynman_kac import Fade, Guess
from boltzmix.compose.term import Term
from boltzmix.models import FlowMatching
from boltzmix.models.nets import MLP

P = GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]]), [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
Q = GaussianMixture(torch.tensor([[-2.0, 1.0], [2.5, -0.5]]), [0.8, 0.6], [0.4, 0.6])
PQ, LOG_PQ = mixture_product([P, Q])
# the first two components of P, and guidance towards them
LEFT = GaussianMixture(torch.tensor([[-2.0, 0.0], [-1.0, 2.0]]), [0.3, 0.4], [0.6, 0.4])
BOTH = GaussianMixture(torch.tensor([[-2.0, 0.0], [-1.0, 2.0], [2.0, 0.0]]), [0.3, 0.4, 0.6], [0.3, 0.2, 0.5])


def known_by_score(p: Term, levels: tuple[float, float] = (0.0, math.inf)) -> Term:
    return term(lambda x, s: p._score(x, s), kind="score", path="noised", event_shape=p.event_shape, sigma_range=levels)


def formula(pairs) -> Term:
    total = None
    for p, power in pairs:
        factor = known_by_score(p) ** power
        total = factor if total is None else total * factor
    assert total is not None
    return total


def gaussian(mean, variance) -> Gaussian:
    return Gaussian(torch.as_tensor(mean), torch.as_tensor(variance))


def correlated() -> Gaussian:
    factor = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    return Gaussian(0.5 * torch.ones(8), factor @ factor.mT / 8 + 0.2 * torch.eye(8))


def on_a_grid(pairs) -> tuple[float, torch.Tensor, torch.Tensor]:
    """log Z, mean and variances of a 2-d formula."""
    axis = torch.linspace(-10, 10, 501)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    logs = sum(-power * p._energy(points, None).double() for p, power in pairs)
    weights, x = logs.softmax(0)[:, None], points.double()
    mean = (weights * x).sum(0)
    return float(logs.logsumexp(0)) + 2 * math.log(20 / 500), mean, (weights * (x - mean) ** 2).sum(0)


def check_moments(x, mean, variance, bound=4.5):
    n = len(x) / 4
    x, mean, variance = x.double(), mean.double(), variance.double()
    assert float(((x.mean(0) - mean) / (variance / n).sqrt()).abs().max()) < bound
    assert float(((x.var(0) / variance - 1) / math.sqrt(2 / n)).abs().max()) < bound


def check_evidence(target, truth, sampler, n=1000, seeds=5):
    draws = [sample(target, n, sampler=sampler, seed=seed) for seed in range(seeds)]
    errors = torch.tensor([d.log_z - truth for d in draws])
    spread = torch.tensor([d.log_z_se for d in draws])
    assert float((errors / spread).abs().max()) < 3
    assert float(errors.mean().abs() / (spread.square().sum().sqrt() / seeds)) < 3
    assert 0 < float(spread.max()) < 0.15
    return torch.cat([d.x for d in draws])


GAUSSIANS = {
    "product": [(gaussian([0.0], [1.0]), 1.0), (gaussian([1.0], [2.0]), 1.0)],
    "three factors": [(gaussian([0.0], [1.0]), 1.0), (gaussian([3.0], [0.5]), 1.0), (gaussian([-1.0], [2.0]), 1.0)],
    "power 0.5": [(gaussian([1.0], [1.0]), 0.5)],
    "power 2": [(gaussian([1.0], [1.0]), 2.0)],
    "power 3": [(gaussian([1.0], [1.0]), 3.0)],
    "guidance 4": [(gaussian([0.0], [4.0]), -3.0), (gaussian([1.0], [1.0]), 4.0)],
    "quotient": [(gaussian([0.0], [1.0]), 2.0), (gaussian([1.0], [4.0]), -1.0)],
    "8-d": [
        (gaussian(torch.zeros(8), torch.ones(8)), 1.0),
        (Gaussian(torch.linspace(-1, 1, 8), torch.linspace(0.3, 3, 8)), 1.0),
    ],
}


@pytest.mark.parametrize("case", GAUSSIANS)
def test_gaussians(case):
    truth, log_z = gaussian_product(GAUSSIANS[case])
    draw = sample(formula(GAUSSIANS[case]), 2000, sampler=FKC(steps=60), seed=0)
    assert draw.log_z == pytest.approx(log_z, abs=1e-3)
    check_moments(draw.x, truth.mean, truth.covariance.diagonal())


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_a_wrong_guess_changes_weights_only(monkeypatch, noise):
    """Every share of noise and every escort has its own place in the weights."""
    found = coarse_start._gaussians

    def wrong(*arguments):
        powers, means, scales = found(*arguments)
        return powers, means + 0.7, 1.6 * scales

    monkeypatch.setattr(coarse_start, "_gaussians", wrong)
    for case in ("three factors", "quotient"):
        truth, log_z = gaussian_product(GAUSSIANS[case])
        x = check_evidence(formula(GAUSSIANS[case]), log_z, FKC(steps=150, noise=noise), 500)
        check_moments(x, truth.mean, truth.covariance.diagonal())


@pytest.mark.filterwarnings("ignore:Reverse on")
def test_correlated_gaussians_in_eight_dimensions():
    pairs = [(gaussian(torch.zeros(8), torch.ones(8)), 1.0), (correlated(), 1.0)]
    truth, log_z = gaussian_product(pairs)
    x = check_evidence(formula(pairs), log_z, FKC())
    check_moments(x, truth.mean, truth.covariance.diagonal())
    summed = sample(formula(pairs), 5000, sampler=Reverse(steps=100, solver="ddpm"), seed=0).x.double()
    assert float((summed.var(0) / truth.covariance.diagonal()).max()) < 0.85  # too narrow without weights


MIXTURES = {
    "product": [(P, 1.0), (Q, 1.0)],
    "power 2": [(P, 2.0)],
    "power 0.5": [(P, 0.5)],
    "guidance 3": [(BOTH, -2.0), (LEFT, 3.0)],
    "quotient": [(BOTH, 1.0), (gaussian([2.0, 0.0], [0.8, 0.8]), -0.4)],
}


@pytest.mark.parametrize("case", MIXTURES)
def test_mixtures(case):
    log_z, mean, variance = on_a_grid(MIXTURES[case])
    x = check_evidence(formula(MIXTURES[case]), log_z, FKC(), 600)
    check_moments(x, mean, variance)


@pytest.mark.filterwarnings("ignore:Reverse on")
def test_without_weights_mixtures_are_missed():
    for case in ("product", "guidance 3"):
        _, mean, variance = on_a_grid(MIXTURES[case])
        summed = sample(formula(MIXTURES[case]), 3000, sampler=Reverse(steps=60, solver="ddpm"), seed=0).x
        with pytest.raises(AssertionError):
            check_moments(summed, mean, variance, 5.0)
    log_z, mean, variance = on_a_grid(MIXTURES["product"])
    draw = sample(formula(MIXTURES["product"]), 3000, sampler=FKC(ess_threshold=0.0, resample=False), seed=0)
    with pytest.raises(AssertionError):
        check_moments(draw.x, mean, variance, 5.0)
    shares = draw.log_weights.double().softmax(0)
    assert float(((shares[:, None] * draw.x).sum(0) - mean).abs().max()) < 0.2
    assert abs(draw.log_z - log_z) < 3 * draw.log_z_se


def test_masses_of_modes():
    draw = sample(formula(MIXTURES["product"]), 3000, sampler=FKC(), seed=3)
    share = PQ.component_log_prob(draw.x).softmax(-1).double().mean(0)
    assert float((share - PQ.weights).abs().sum() / 2) < 0.05  # exact draws: 0.01


TILTS = {
    "linear": (lambda x: -x.sum(-1), 1.0, 1.0, 0.5),
    "quadratic": (lambda x: 2.0 * ((x - 1) ** 2).sum(-1), 0.8, 0.2, 0.5 * math.log(0.2) - 0.4),
    "sharp": (lambda x: 50.0 * ((x - 1) ** 2).sum(-1), 100 / 101, 1 / 101, -0.5 * math.log(101) - 50 / 101),
}


@pytest.mark.parametrize("dim", [1, 8])
@pytest.mark.parametrize("case", TILTS)
def test_rewards(case, dim):
    energy, mean, variance, log_z = TILTS[case]
    prior, reward = Gaussian(torch.zeros(dim), 1.0), term(energy, kind="energy", event_shape=(dim,))
    draw = sample(known_by_score(prior) * reward, 2000, sampler=FKC(steps=60), seed=1)
    assert draw.log_z == pytest.approx(dim * log_z, abs=2e-3)
    check_moments(draw.x, mean * torch.ones(dim), variance * torch.ones(dim))
    fading = [level["weight"] for level in draw.info.levels]
    assert fading[0] == 0.0
    assert fading[-1] == 1.0
    assert fading == sorted(fading)


def test_a_reward_on_a_mixture():
    # what the Gaussian guess does not know: a kink
    reward = term(lambda x: 1.5 * (x[:, 0] - x[:, 1]).abs(), kind="energy", event_shape=(2,))
    axis = torch.linspace(-10, 10, 501)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    logs = -P._energy(points, None).double() - reward._energy(points, None).double()
    weights, x = logs.softmax(0)[:, None], points.double()
    mean = (weights * x).sum(0)
    truth = float(logs.logsumexp(0)) + 2 * math.log(20 / 500)
    x = check_evidence(known_by_score(P) * reward, truth, FKC(), 600)
    check_moments(x, mean, (weights * (points.double() - mean) ** 2).sum(0))


def velocity(p: Term) -> Term:
    """A flow-matching model of p in float32: its velocity, and the score made of it."""

    def score(x, sigma):
        t, own = sigma / (1 + sigma), p._score(x, sigma)
        v = -sigma * own - (x + sigma**2 * own)
        return -(1 - t) * ((1 - t) * x / (1 - t) + v) / sigma

    return term(score, kind="score", path="noised", event_shape=p.event_shape, sigma_range=(1 / 999, 999.0))


def test_flow_matching_from_end_to_end():
    for sigmas in (None, [999.0 * (999.0**-2) ** (k / 159) for k in range(160)]):
        draw = sample(velocity(P) * velocity(Q), 1500, sampler=FKC(sigmas=sigmas), seed=2)
        assert bool(torch.isfinite(draw.x).all())
        assert all(math.isfinite(level["ess"]) for level in draw.info.levels)
        assert abs(draw.log_z - LOG_PQ) < 3 * draw.log_z_se
        check_moments(draw.x, *on_a_grid(MIXTURES["product"])[1:])
    net = FlowMatching(MLP(2, hidden=8), (2,))
    draw = sample(net**2, 64, sampler=FKC(steps=20), seed=0)
    assert bool(torch.isfinite(draw.x).all())


def test_energies_are_weighed_where_an_exponent_changes():
    p, q = gaussian(torch.zeros(2), torch.ones(2)), gaussian(torch.ones(2), 2 * torch.ones(2))
    target = p ** (lambda sigma: 1.0 + 1.0 / (1.0 + sigma)) * known_by_score(q)
    truth, log_z = gaussian_product([(p, 2.0), (q, 1.0)])
    check_moments(check_evidence(target, log_z, FKC(steps=150)), truth.mean, truth.covariance.diagonal())
    with pytest.raises(MissingEnergy, match="changes with sigma"):
        sample(known_by_score(p) ** (lambda sigma: 1.0 / (1.0 + sigma)), 10, sampler=FKC(), seed=0)


def test_one_noised_term_needs_no_weights():
    draw = sample(known_by_score(P), 2000, sampler=FKC(), seed=0)
    assert draw.log_z == pytest.approx(0.0, abs=0.01)
    assert draw.info.ess > 1990
    _, mean, variance = on_a_grid([(P, 1.0)])
    check_moments(draw.x, mean, variance)


def test_named_variables():
    p, q = gaussian(torch.zeros(2), torch.ones(2)), gaussian(torch.ones(2), 2 * torch.ones(2))
    target = known_by_score(p).on("a") * known_by_score(q).on("a") * known_by_score(p).on("b")
    draw = sample(target, 2000, sampler=FKC(steps=40), seed=0)
    truth, log_z = gaussian_product([(p, 1.0), (q, 1.0)])
    assert draw.log_z == pytest.approx(log_z, abs=2e-3)
    check_moments(draw.x["a"], truth.mean, truth.covariance.diagonal())
    check_moments(draw.x["b"], torch.zeros(2), torch.ones(2))


def test_sums_are_weighed_by_their_members():
    p, q = known_by_score(gaussian([0.0], [1.0])), known_by_score(gaussian([1.0], [2.0]))
    draw = sample(mixture([p * q, q**2]), 400, sampler=FKC(steps=30), seed=0)
    members = [gaussian_product([(gaussian([0.0], [1.0]), 1.0), (gaussian([1.0], [2.0]), 1.0)])[1],
               gaussian_product([(gaussian([1.0], [2.0]), 2.0)])[1]]  # fmt: skip
    assert draw.log_z == pytest.approx(math.log(0.5 * sum(map(math.exp, members))), abs=2e-3)
    assert "draws from each" in sample(mixture([p, q]), 100, sampler=FKC(steps=10), seed=0).info.reason


# ------------------------------------------------------------- the mechanics


def test_evaluations_are_those_that_were_made():
    rows = []

    def score(x, sigma):
        rows.append(len(x))
        return P._score(x, sigma)

    target = term(score, kind="score", path="noised", event_shape=(2,)) ** 2
    draw = sample(target, 300, sampler=FKC(steps=20), seed=0)
    assert draw.info.evaluations == sum(rows) / 300
    assert len(draw.info.levels) == 20
    assert draw.info.evaluations < 30


def test_populations_are_weighed_by_themselves():
    target = formula(MIXTURES["product"])
    draw = sample(target, 1200, sampler=FKC(steps=60, population=300), seed=0)
    each, errors = (torch.tensor(draw.info.extra[k]) for k in ("population_log_z", "population_log_z_se"))
    assert each.shape == (4,)
    assert float(((each - LOG_PQ) / errors).abs().max()) < 4
    assert draw.log_z == pytest.approx(float(each.logsumexp(0)) - math.log(4))
    with pytest.raises(ValueError, match="do not divide"):
        sample(target, 10, sampler=FKC(population=3), seed=0)


def test_rows_of_a_population_are_in_random_order():
    """Copies are as often first and last as they are first and second: 4.5 standard deviations, 1e-5."""
    sampler = FKC(steps=15, population=4, ess_threshold=0.0)
    x = sample(formula(MIXTURES["power 2"]), 2400, sampler=sampler, seed=0).x.reshape(600, 4, 2)
    near, far = ((x[:, 0] == x[:, k]).all(1).double() for k in (1, 3))
    assert float(near.sum() + far.sum()) > 50
    assert float((near - far).sum().abs()) < 4.5 * math.sqrt(float((near - far).abs().sum()))


def test_conditions_of_rows_need_populations():
    net = FlowMatching(MLP(2, hidden=8, num_classes=3), (2,), num_classes=3)
    conditioned = net.given(label=torch.tensor([0, 1, 2]).repeat_interleave(4))
    draw = sample(net * (conditioned / net) ** 2, 12, sampler=FKC(steps=10, population=4), seed=0)
    assert draw.x.shape == (12, 2)
    assert draw.log_z is None
    assert len(draw.info.extra["population_log_z"]) == 3
    with pytest.raises(ValueError, match="population"):
        sample(net * (conditioned / net) ** 2, 12, sampler=FKC(steps=10), seed=0)
    with pytest.raises(ValueError, match="differ within"):
        sample(net * (conditioned / net) ** 2, 12, sampler=FKC(steps=10, population=6), seed=0)


def test_kept_weights_and_the_same_numbers_again():
    target = formula(MIXTURES["product"])
    kept = sample(target, 300, sampler=FKC(steps=30, resample=False), seed=5)
    assert float(kept.log_weights.exp().mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(kept.log_weights.std()) > 0
    again = sample(target, 300, sampler=FKC(steps=30, resample=False), seed=5)
    assert torch.equal(kept.x, again.x)
    assert kept.log_z == again.log_z
    assert torch.equal(sample(target, 300, sampler=FKC(steps=30), seed=5).log_weights, torch.zeros(300))


def test_unspent_weights_are_carried():
    """Resampling at every level, seldom, or never: one evidence."""
    target = formula(MIXTURES["power 2"])
    truth = on_a_grid(MIXTURES["power 2"])[0]
    for threshold in (0.0, 0.5, 1.0):
        draw = sample(target, 3000, sampler=FKC(ess_threshold=threshold), seed=1)
        assert abs(draw.log_z - truth) < 3 * draw.log_z_se
        share = sum(level["resampled"] for level in draw.info.levels)
        assert (share == 0.0) if threshold == 0 else (share > 90) if threshold == 1 else (0 < share < 20)


class Killed(BaseException):
    """Stands for a signal."""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    calls, last = 0, math.inf
    reward = term(lambda x: (x**2).sum(-1), kind="energy", event_shape=(2,))

    def score(x, sigma):
        nonlocal calls
        calls += 1
        if calls >= last:
            raise Killed
        return P._score(x, sigma)

    target = term(score, kind="score", path="noised", event_shape=(2,)) ** 2 * reward
    save = base.Checkpoint.save
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
    sampler = FKC(steps=20, record=True)
    whole = sample(target, 200, sampler=sampler, seed=0)
    last, calls = calls - 8, 0
    with pytest.raises(Killed):
        sample(target, 200, sampler=sampler, seed=0, checkpoint=tmp_path / "run")
    last = math.inf
    resumed = sample(target, 200, sampler=sampler, seed=0, checkpoint=tmp_path / "run")
    assert torch.equal(whole.x, resumed.x)
    assert whole.log_z == resumed.log_z
    assert whole.info.evaluations == resumed.info.evaluations
    assert len(whole.frames) == len(resumed.frames) == 21
    with pytest.raises(ValueError, match="another run"):
        sample(target, 200, sampler=FKC(steps=21), seed=0, checkpoint=tmp_path / "run")


def test_evidence_is_kept_back_where_constants_are_free():
    energy = term(lambda x, s: P._energy(x, s), kind="energy", path="noised", event_shape=(2,))
    assert sample(energy**2, 64, sampler=FKC(steps=10), seed=0).log_z is None  # as written, or as normalised?
    scaled = sample(3.0 * known_by_score(P) ** 2, 64, sampler=FKC(steps=10), seed=0)
    plain = sample(known_by_score(P) ** 2, 64, sampler=FKC(steps=10), seed=0)
    assert scaled.log_z == pytest.approx(plain.log_z + math.log(3.0))


def test_refusals():
    score = known_by_score(gaussian([0.0, 0.0], [1.0, 1.0]))
    static = term(lambda x: -x, kind="score", event_shape=(2,))
    with pytest.raises(MissingEnergy, match="static factor"):
        sample(score * static, 10, sampler=FKC(), seed=0)
    with pytest.raises(TypeError, match="is static"):
        sample(term(lambda x: (x**2).sum(-1), kind="energy", event_shape=(2,)), 10, sampler=FKC(), seed=0)
    clamp = Clamp(torch.tensor([True, False]), torch.zeros(2))
    with pytest.raises(TypeError, match="Clamp"):
        sample(score * clamp, 10, sampler=FKC(), seed=0)
    with pytest.raises(NotNormalizable, match="add up to -1"):
        sample(score / known_by_score(gaussian([0.0, 0.0], [4.0, 4.0])) ** 2, 10, sampler=FKC(), seed=0)
    with pytest.raises(NotNormalizable):
        sample(gaussian([0.0], [1.0]) ** 2 / gaussian([0.0], [0.3]), 10, sampler=FKC(), seed=0)
    with pytest.raises(ValueError, match="leave out init"):
        sample(score, 10, sampler=FKC(), init=gaussian([0.0, 0.0], [1.0, 1.0]), seed=0)
    annealed = term(lambda x, s: -x, kind="score", path="annealed", event_shape=(2,))
    with pytest.raises(TypeError, match="is annealed"):
        sample(score * annealed, 10, sampler=FKC(), seed=0)
    for wrong in (
        {"steps": 1}, {"steps": 2.0}, {"rho": 0}, {"ess_threshold": 1.5}, {"noise": -1.0}, {"population": 0},
        {"sigmas": [1.0, 2.0]}, {"sigmas": [1.0]}, {"sigmas": Ladder((2.0, 1.0), (1.0, 0.0), carry=(1.0, 0.5))},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"FKC|sigmas|noise|ess_threshold"):
            FKC(**wrong)


# -------------------------------------------------------------- laws, exactly


def test_weight_rates_are_the_formulas_of_the_papers():
    """Product of two: ⟨s₁, s₂⟩; guidance a: a (a − 1) |s₁ − s₂|² / 2; a tilt: c ⟨∇L, s⟩ / 2."""
    one, two, tilt = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, none = torch.zeros(5, 4, dtype=torch.float64), torch.zeros(5, 4, dtype=torch.float64)

    def rate(scores, powers, tilt):
        return feynman_kac.weight_rates(x, scores, powers, tilt, None, 1.0, escort=False).sum(1)  # pyright: ignore[reportArgumentType]

    assert torch.allclose(rate([one, two], [1.0, 1.0], none), (one * two).sum(1))
    assert torch.allclose(rate([one, two], [-2.0, 3.0], none), 3.0 * ((one - two) ** 2).sum(1))
    assert torch.allclose(rate([one], [1.0], tilt), 0.5 * (one * tilt).sum(1))


def a_guess() -> Guess:
    rows = torch.tensor([[1.5, 1.0], [-0.4, 1.0]]), torch.tensor([[0.3, -1.0], [0.8, 2.0]])
    scales = torch.tensor([[1.0, 0.5], [3.0, 2.0]])
    pull, curvature = torch.tensor([0.7, -0.2]), torch.tensor([0.5, 2.0])
    return Guess(*(t.double() for t in (*rows, scales, pull, curvature)), Fade(9.0, 0.01, 0.4))


def test_the_guess_transports_itself():
    """Particles of the guess have equal rates under its escort, and these are −d log Z / dv."""
    guess = a_guess()
    for sigma in (0.05, 0.6, 3.0):
        x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        spread = guess.scales + sigma**2
        scores = [-(x - m) / s for m, s in zip(guess.means, spread, strict=True)]
        total = sum(w * s for w, s in zip(guess.powers, scores, strict=True))
        tilt = guess.fade.value(sigma) * (guess.pull - guess.curvature * x)
        slope, shift = guess.escort(sigma)
        rate = 0.5 * (total**2 - sum(w * s**2 for w, s in zip(guess.powers, scores, strict=True)) + total * tilt)
        rate = rate + slope + (slope * x + shift) * (total + tilt) - guess.fade.slope(sigma) * guess.tilt(x)
        assert torch.allclose(rate, guess.rate(sigma).expand(6, 2))
        v, step = sigma**2, 1e-5 * sigma**2
        change = (guess.log_z(math.sqrt(v + step)) - guess.log_z(math.sqrt(v - step))) / (2 * step)
        assert float(guess.rate(sigma).sum()) == pytest.approx(-change, rel=1e-5, abs=1e-8)


def test_a_step_keeps_the_gaussian_of_the_coarse_levels():
    """N(0, v/W) at σ is N(0, v'/W) at σ', for a step of any length: variances, exactly."""
    guess = Guess(*(torch.tensor([[3.0]]).double(), torch.zeros(1, 1).double(), torch.full((1, 1), 1e-12).double()),
                  torch.zeros(1).double(), torch.zeros(1).double(), Fade(9.0, 0.01, 1.0))  # fmt: skip
    for noise in (0.0, 1.0, 2.5):
        flow = feynman_kac.Flow(noise, torch.tensor([3.0]).double(), guess)
        sigma, following = 4.0, 1.5
        one = torch.ones(1, 1, dtype=torch.float64)
        zero = torch.zeros_like(one)

        def moved(x, z, flow=flow, sigma=sigma, following=following):
            drift = flow.drift(x, -3.0 * x / sigma**2, torch.zeros_like(x), sigma)
            return flow.step(x, flow.goal(x, drift, sigma), None, sigma, following, z)

        kept, fresh = float(moved(one, zero)), float(moved(zero, one))
        assert kept**2 * sigma**2 / 3 + fresh**2 == pytest.approx(following**2 / 3)


def test_the_trapezoid_rule_is_of_the_second_order():
    errors = []
    for count in (20, 40):
        levels = [20.0 * 1e-3 ** (k / count) for k in range(count + 1)]
        sides = zip([None, *levels[:-1]], levels, [*levels[1:], None], strict=True)
        total = sum(feynman_kac.interval(a, s, b) / (1 + s**2) for a, s, b in sides)
        errors.append(abs(total - math.log((1 + levels[0] ** 2) / (1 + levels[-1] ** 2))))
    assert errors[1] < 1e-2
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_smc_and_fkc_agree():
    """The same formula with energies and by scores alone."""
    weighed = sample(P * Q, 1500, sampler=SMC(path="noise"), seed=0)
    corrected = sample(formula(MIXTURES["product"]), 1500, sampler=FKC(), seed=0)
    assert abs(weighed.log_z - corrected.log_z) < 4 * math.hypot(weighed.log_z_se, corrected.log_z_se)


def test_settings_are_data():
    assert dataclasses.replace(FKC(), steps=7) == FKC(steps=7)
