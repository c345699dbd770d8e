"""Superposition: estimated log-densities against closed forms, AND's gap, OR's masses, counts, refusals, resuming.

Seeds are fixed and were not searched. Bounds on z-scores are 4, which a correct sampler exceeds once in 16,000 tests.
"""

import itertools
import math

import pytest
import torch

from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.errors import NonFinite, SamplingWarning, ScopeError
from boltzmix.compose.flat import FlatView
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.mixture import mixture
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import Ladder, SuperDiff, base
from boltzmix.compose.samplers.equal_densities import Axes, equalise
from boltzmix.compose.samplers.ito import ItoDensity, differences
from boltzmix.compose.samplers.members import Members, flat_member_scores, member_scores
from boltzmix.compose.term import Term
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.nets import MLP

TWO = [Gaussian(torch.tensor([1.0, 0.0]), 0.5), Gaussian(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 1.0]))]
THREE = [
    Gaussian(2 * torch.eye(4)[k], torch.tensor([0.5, 1.0, 1.5, 1.0]).roll(k)) for k in range(3)
]  # fmt: skip
MIXTURES = [
    GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.5]]), [0.3, 0.5], [0.5, 0.5]),
    GaussianMixture(torch.tensor([[0.0, 2.0], [0.5, -2.0]]), [0.5, 0.3], [0.3, 0.7]),
]


def score_of(p: Term, **options) -> Term:
    """A noised density known by its score alone."""
    return term(lambda x, s: p._score(x, s), kind="score", path="noised", event_shape=p.event_shape, **options)


def conditional(seed: int, **options) -> Diffusion:
    """A network whose conditions differ."""
    torch.manual_seed(seed)
    net = Diffusion(MLP(2, hidden=8, num_classes=3), (2,), num_classes=3, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def down(steps: int, top: float = 80.0, bottom: float = 2e-3) -> list[float]:
    a, b = top ** (1 / 7), bottom ** (1 / 7)
    return [(a + k / (steps - 1) * (b - a)) ** 7 for k in range(steps)]


# ------------------------------------------------------------ log-densities


def follow(p, steps: int, ratio, n: int = 400, drift=None):
    """RMS error of log p followed down to σ = 0.05 in float64, along a path with another drift than its own."""
    generator = torch.Generator().manual_seed(0)
    levels = down(steps, 20.0, 0.05)
    x = 20.0 * torch.randn(n, *p.event_shape, generator=generator, dtype=torch.float64)
    density = ItoDensity(-p.energy(x, levels[0])[None])
    for sigma, end in itertools.pairwise(levels):
        v, c = sigma**2 - end**2, ratio(sigma, end)
        score = p.score(x, sigma)
        mean = score if drift is None else drift.score(x, sigma)
        noise = math.sqrt(v * c) * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        move = v * mean + noise
        density.advance([score], move, v, c)
        x = x + move
    return float((density.log_q[0] + p.energy(x, levels[-1])).square().mean().sqrt())


def test_a_gaussian_s_log_density_is_exact_at_any_step_with_its_own_noise():
    p = Gaussian(torch.tensor([1.0, -2.0], dtype=torch.float64), 0.7)
    other = Gaussian(torch.tensor([-1.0, 3.0], dtype=torch.float64), 2.0)
    for drift in (None, other):
        assert follow(p, 5, lambda s, e: (0.7 + e**2) / (0.7 + s**2), drift=drift) < 1e-9


NOISES = {"Euler-Maruyama": lambda s, e: 1.0, "DDPM, ends at width 0.5": lambda s, e: (0.25 + e**2) / (0.25 + s**2)}


@pytest.mark.parametrize("noise", NOISES)
def test_followed_log_densities_converge_with_order_one_half(noise):
    p = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), [0.5, 1.0], [0.4, 0.6])
    q = Gaussian(torch.tensor([0.0, 1.0], dtype=torch.float64), 1.5)
    errors = [follow(p, steps, NOISES[noise], drift=q) for steps in (65, 257, 1025)]
    slope = math.log(errors[0] / errors[2]) / math.log(16)
    assert 0.4 < slope < 0.75, errors
    assert errors[2] < 0.25


def test_differences_are_those_of_the_whole_increments():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    move = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    whole = -(move - 0.3 * scores).square().sum(-1) / (2 * 0.3 * 0.6)  # the reverse kernel's, up to what is common
    mean = scores.mean(0)
    parts = differences(scores - mean, move - 0.3 * mean, 0.3, 0.6)
    assert torch.allclose(whole - whole[0], parts - parts[0], atol=1e-12)
    advanced = ItoDensity(torch.zeros(3, 7)).advance(scores, move, 0.3, 0.6)
    assert torch.allclose(whole - whole[0], advanced - advanced[0], atol=1e-12)


def test_wrong_densities_are_refused():
    with pytest.raises(ValueError, match=r"members, particles.*got \(3,\)"):
        ItoDensity(torch.zeros(3))
    with pytest.raises(ValueError, match="variance > 0"):
        ItoDensity(torch.zeros(1, 2)).advance([torch.zeros(2, 1)], torch.zeros(2, 1), 0.0)


# ---------------------------------------------------------------------- AND


def gap(members, steps: int, n: int = 400, **options) -> tuple[float, float]:
    """Mean true and estimated gap between the members' log-densities at the draws."""
    sampler = SuperDiff("and", sigmas=down(steps), **options)
    draw = sample(product(*map(score_of, members)), n, sampler=sampler, seed=2)
    logs = torch.stack([p.log_prob(draw.x).double() for p in members])
    return float((logs.max(0).values - logs.min(0).values).mean()), draw.info.extra["estimated_gap"]["mean"]


def check_gap_vanishes(members, noise, coarse=32, fine=512):
    first, last = gap(members, coarse, noise=noise), gap(members, fine, noise=noise)
    assert first[1] < 1e-3  # closed by the estimates at either step size
    assert last[1] < 1e-3
    slope = math.log(first[0] / last[0]) / math.log(fine / coarse)
    assert 0.35 < slope < 0.85, (first[0], last[0])


@pytest.mark.parametrize(
    ("members", "noise"),
    [(TWO, "returned"), (THREE, "returned"), (MIXTURES, "returned"), (THREE, "corrected")],
    ids=["two", "three", "mixtures", "three, corrected"],
)
def test_the_gap_vanishes_with_the_step_size(members, noise):
    check_gap_vanishes(members, noise)


def test_noise_that_is_only_projected_leaves_a_gap_at_any_step_size():
    wide, narrow = gap(TWO, 64, noise="projected"), gap(TWO, 512, noise="projected")
    assert narrow[1] < 1e-6  # the estimates agree
    assert 0.6 < narrow[0] < 0.7  # the truth does not
    assert narrow[0] > 0.9 * wide[0]
    alike = [Gaussian(torch.tensor([1.0, 0.0]), 1.0), Gaussian(torch.tensor([-1.0, 0.5]), 1.0)]
    assert gap(alike, 64, noise="projected")[0] < 1e-3  # scores of one slope share the error


@pytest.mark.parametrize("members", [TWO, THREE], ids=["two", "three"])
def test_averaged_scores_without_projection_miss(members):
    found = gap(members, 512, noise="free")
    assert found[0] > 1.0
    assert abs(found[0] - found[1]) < 0.2  # and the estimate says so


def test_bias_sets_the_gap_between_log_densities():
    sampler = SuperDiff("and", sigmas=down(400), bias=(1.5, 0.0, -0.5))
    draw = sample(product(*map(score_of, THREE)), 400, sampler=sampler, seed=3)
    logs = torch.stack([p.log_prob(draw.x).double() for p in THREE])
    assert abs(float((logs[0] - logs[1]).mean()) - 1.5) < 0.05
    assert abs(float((logs[1] - logs[2]).mean()) - 0.5) < 0.05


def test_the_estimates_agree_at_the_end_of_any_number_of_steps():
    """The last step with noise adds none that nothing would take back, whichever its number."""
    for steps in (300, 301):
        assert gap(TWO, steps)[1] < 1e-3


def test_two_scores_are_averaged_and_the_noise_is_projected_off_their_difference():
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(2, 6, 5, generator=generator)
    noise = torch.randn(6, 5, generator=generator)
    d = scores[0] - scores[1]
    expected = noise - d * (noise * d).sum(1, keepdim=True) / (d * d).sum(1, keepdim=True)
    found = equalise(Axes.of(scores), noise, torch.zeros(2, 6, dtype=torch.float64), 0.4, 0.7)
    assert torch.allclose(found, expected, atol=1e-5)


def test_increments_of_all_members_become_equal_and_noise_across_is_kept():
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(4, 50, 9, generator=generator, dtype=torch.float64)
    noise, gaps = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((50, 9), (4, 50)))
    axes, v, c = Axes.of(scores), 0.1, 0.6
    y = equalise(axes, noise, 0.02 * gaps, v, c)
    after = 0.02 * gaps + differences(axes.apart, y, v, c)
    assert float((after - after.mean(0)).abs().max()) < 1e-12
    assert torch.allclose(axes.unit[1:].square().sum(-1), torch.ones(3, 50, dtype=torch.float64))
    assert float(axes.along(y - noise)[0].abs().max()) == 0.0
    across = (y - noise) - axes.back(axes.along(y - noise))
    assert float(across.abs().max()) < 1e-12


def test_a_gap_is_closed_at_the_pace_of_the_noise():
    scores = torch.tensor([[[1e-3, 0.0]], [[-1e-3, 0.0]]])
    y = equalise(Axes.of(scores), torch.zeros(1, 2), torch.tensor([[5.0], [-5.0]], dtype=torch.float64), 0.01, 1.0)
    assert 0.29 < float(y.norm()) < 0.31  # √0.01 times 3, in place of 5000


def test_scores_that_differ_by_rounding_have_no_axes():
    scores = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(5))
    apart = torch.cat([scores, scores * (1 + 2e-7)])
    assert float((apart[0] - apart[1]).abs().max()) > 0
    assert float(Axes.of(apart).unit.abs().max()) == 0.0
    clear = Axes.of(torch.cat([scores, scores * (1 + 1e-3)])).unit[1]
    assert torch.allclose(clear.square().sum(-1), torch.ones(20), atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e-9, 1e-4])
@pytest.mark.parametrize("noise", ["returned", "corrected", "projected"])
def test_members_that_coincide_give_their_own_density(shift, noise):
    p, q = Gaussian(torch.zeros(3), 1.0), Gaussian(torch.full((3,), shift), 1.0)
    draw = sample(
        score_of(p) * score_of(q), 1000, sampler=SuperDiff("and", sigmas=down(60), noise=noise, width=1.0), seed=6
    )
    assert bool(torch.isfinite(draw.x).all())
    if shift < 1e-6:  # no direction is singled out by rounding
        z = (draw.x.double().square().mean(0) - 1.0) / math.sqrt(2 / 1000)
        assert float(z.abs().max()) < 4.0


# ----------------------------------------------------------------------- OR

FAR = [Gaussian(torch.tensor([4.0, 0.0]), 0.5), Gaussian(torch.tensor([-4.0, 1.0]), 0.8)]
SEVERAL = [
    GaussianMixture(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), 0.4, [0.3, 0.7]),
    *FAR[:1],
    Gaussian(torch.zeros(2), 0.3),
]


def z_scores(x, members, weights, seed=0):
    """z of the masses of the members, and of moments against exact draws."""
    n = len(x)
    exact = mixture(members, weights)
    y = exact.sample(n, torch.Generator().manual_seed(seed))

    def shares(points):
        logs = [p.log_prob(points).double() + math.log(w) for p, w in zip(members, weights, strict=True)]
        return torch.stack(logs).softmax(0)

    mass = (shares(x).mean(1) - torch.tensor(weights, dtype=torch.float64)) / (shares(y).var(1) / n).sqrt()
    both = [torch.cat([p, p * p, exact.energy(p)[:, None]], 1).double() for p in (x, y)]
    moments = (both[0].mean(0) - both[1].mean(0)) / ((both[0].var(0) + both[1].var(0)) / n).sqrt()
    return torch.cat([mass, moments]).abs().max()


@pytest.mark.parametrize(
    ("members", "weights"), [(FAR, [0.2, 0.8]), (SEVERAL, [0.5, 0.2, 0.3])], ids=["far apart", "three that overlap"]
)
def test_or_reaches_the_mixture(members, weights):
    target = mixture([score_of(p) for p in members], weights)
    draw = sample(target, 2000, sampler=SuperDiff("or", sigmas=down(150), width=0.7), seed=7)
    assert float(z_scores(draw.x, members, weights)) < 4.0
    logs = torch.stack([p.log_prob(draw.x) for p in members], 1).double()
    error = draw.stats["log_q"] - logs
    assert float((error - error.mean(1, keepdim=True)).square().mean().sqrt()) < 0.5


def test_bias_of_or_adds_to_the_log_weights():
    target = mixture([score_of(p) for p in FAR])
    sampler = SuperDiff("or", sigmas=down(100), bias=(math.log(3), 0.0), width=0.7)
    draw = sample(target, 2000, sampler=sampler, seed=8)
    assert float(z_scores(draw.x, FAR, [0.75, 0.25])) < 4.0


def test_temperature_of_or():
    target = mixture([score_of(p) for p in FAR], [0.5, 0.5])
    even = sample(target, 100, sampler=SuperDiff("or", sigmas=down(30), temperature=0.0), seed=9)
    assert all(record["weights"] == [0.5, 0.5] for record in even.info.levels)
    assert float((even.x - torch.tensor([0.0, 0.5])).abs().mean()) < 2.0  # scores averaged: between the two
    cold = sample(target, 400, sampler=SuperDiff("or", sigmas=down(60), temperature=20.0), seed=9)
    assert float((cold.x[:, 0].abs() - 4.0).abs().max()) < 4.0


# ------------------------------------------------------------------ the ends


@pytest.mark.parametrize("mode", ["and", "or"])
def test_everything_is_finite_from_999_down(mode):
    members = [score_of(p, sigma_range=(1e-3, 999.0)) for p in FAR]
    target = members[0] * members[1] if mode == "and" else mixture(members, [0.3, 0.7])
    draw = sample(target, 500, sampler=SuperDiff(mode, steps=120, record=True), seed=10)
    assert draw.info.levels[0]["sigma"] == pytest.approx(999.0)
    assert draw.info.levels[-1]["sigma"] == pytest.approx(2e-3)
    assert all(bool(torch.isfinite(frame).all()) for frame in [*draw.frames, draw.x, draw.stats["log_q"]])
    if mode == "or":
        assert abs(float((draw.x[:, 0] > 0).double().mean()) - 0.3) < 4 * math.sqrt(0.21 / 500)
    else:
        assert float((draw.stats["log_q"][:, 0] - draw.stats["log_q"][:, 1]).abs().max()) < 1e-3


@pytest.mark.parametrize("mode", ["and", "or"])
def test_a_flow_matching_network_is_finite_at_both_ends(mode):
    net = conditional(0, parameterization="velocity")
    p, q = net.given(label=0), net.given(label=2)
    target = p * q if mode == "and" else 0.5 * p + 0.5 * q
    draw = sample(target, 50, sampler=SuperDiff(mode, steps=40), seed=11)
    assert draw.info.levels[0]["sigma"] > 900
    assert draw.info.levels[-1]["sigma"] < 0.01
    assert bool(torch.isfinite(draw.x).all())
    assert bool(torch.isfinite(draw.stats["log_q"]).all())


def test_the_start_knows_how_members_differ_there():
    """From a level where they do not look alike; with the noise of Gaussians every later step is exact."""
    members = [Gaussian(torch.tensor([2.0, 0.0]), 0.5), Gaussian(torch.tensor([-2.0, 1.0]), 0.5)]
    sampler = SuperDiff("or", sigmas=down(10, 3.0), width=math.sqrt(0.5))
    draw = sample(mixture(members, [0.3, 0.7]), 50, sampler=sampler, seed=12)
    logs = torch.stack([p.log_prob(draw.x) for p in members], 1).double()
    assert torch.allclose(draw.stats["log_q"], logs, atol=1e-3)


# -------------------------------------------------------- counts and members


def test_one_evaluation_a_step_and_one_forward_for_all_conditions():
    net = conditional(1)
    rows: list[int] = []
    net.core.net.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    target = net.given(label=0) * net.given(label=1) * net.given(label=2)
    draw = sample(target, 100, sampler=SuperDiff("and", steps=12), seed=13)
    assert rows.count(300) == 12
    assert sum(rows) == pytest.approx(draw.info.network_rows * 100, abs=6)
    assert draw.info.evaluations == pytest.approx(12 + 2 / 100)
    corrected = sample(target, 100, sampler=SuperDiff("and", steps=12, noise="corrected"), seed=13)
    assert corrected.info.evaluations == pytest.approx(12 + 2 * 11 + 2 / 100)


def test_scores_of_members_are_those_of_the_terms():
    x, level = torch.randn(5, 2), torch.tensor(0.7)
    inner = 0.5 * TWO[0] + 0.5 * TWO[1]
    for formula, parts in ((TWO[0] ** 2 / TWO[1], TWO), (TWO[0] * inner, [TWO[0], inner])):
        for found, part in zip(member_scores(formula, x, level), parts, strict=True):
            assert torch.allclose(found, part.score(x, level))
    kept = Members([TWO[0] * TWO[1], TWO[0]])  # neither flattened nor merged
    assert [t.name() for t in kept.terms()] == [(TWO[0] * TWO[1]).name(), TWO[0].name()]
    assert torch.allclose(member_scores(kept, x, level)[0], (TWO[0] * TWO[1]).score(x, level))


def test_flat_scores_of_members_are_zero_along_variables_that_they_lack():
    p, q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.zeros(2, 1), 1.0)
    view = FlatView(p.on("a") * q.on("b"))
    x = torch.randn(3, 4)
    first, second = flat_member_scores(view, x, None)
    assert torch.equal(first, torch.cat([-x[:, :2], torch.zeros(3, 2)], 1))
    assert torch.equal(second, torch.cat([torch.zeros(3, 2), -x[:, 2:]], 1))
    assert view.counter.rows == 3


def test_members_that_a_product_would_merge():
    net = conditional(2)
    guided = [net * (net.given(label=k) / net) ** 2.0 for k in (0, 1)]
    with pytest.warns(SamplingWarning, match="annealed.*surrogate"):
        draw = sample(guided[0] * guided[1], 40, sampler=SuperDiff("and", steps=20, members=guided), seed=14)
    assert draw.stats["log_q"].shape == (40, 2)
    assert draw.info.network_rows == pytest.approx(3 * 20 + 3 * 2 / 40)
    with pytest.raises(ValueError, match="has no powers.*members="):
        sample(guided[0] * guided[1], 40, sampler=SuperDiff("and"))


def test_conditions_by_row_do_not_interact():
    net = conditional(3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    other = torch.tensor([0, 1, 2, 2, 0, 1])
    fixed = net.given(label=1)
    for mode in ("and", "or"):
        draws = []
        for rows in (labels, other):
            p = net.given(label=rows)
            target = p * fixed if mode == "and" else 0.5 * p + 0.5 * fixed
            draws.append(sample(target, 6, sampler=SuperDiff(mode, steps=15), seed=15).x)
        assert torch.allclose(draws[0][:3], draws[1][:3], atol=1e-4)
        assert not torch.allclose(draws[0][3:], draws[1][3:], atol=1e-2)


def test_named_variables_and_shapes():
    p = [Gaussian(torch.full((1, 2, 2), m), 0.5) for m in (-1.0, 1.0)]
    plain = sample(p[0] * p[1], 30, sampler=SuperDiff("and", sigmas=down(40), width=0.7), seed=16)
    assert plain.x.shape == (30, 1, 2, 2)
    named = sample(p[0].on("a") * p[1].on("a"), 30, sampler=SuperDiff("and", sigmas=down(40), width=0.7), seed=16)
    assert set(named.x) == {"a"}
    for draw, x in ((plain, plain.x), (named, named.x["a"])):
        assert float((p[0].log_prob(x) - p[1].log_prob(x)).abs().max()) < 0.2
        assert draw.log_z is None


# ------------------------------------------------------- reports and resuming


def test_rows_that_are_not_finite_are_reported_and_leave_the_others_alone():
    p, q = TWO

    def broken(x, s):
        return torch.where((torch.arange(len(x)) == 3)[:, None] & (s < 1.0), torch.nan, q._score(x, s))

    bad = term(broken, kind="score", path="noised", event_shape=2)
    sampler = SuperDiff("and", sigmas=down(30))
    whole = sample(score_of(p) * score_of(q), 10, sampler=sampler, seed=17)
    with pytest.warns(SamplingWarning, match="1 of 10 draws are not finite"):
        draw = sample(score_of(p) * bad, 10, sampler=sampler, seed=17)
    rest = torch.arange(10) != 3
    assert torch.allclose(draw.x[rest], whole.x[rest], atol=1e-5)
    assert bool(draw.x[3].isnan().all())
    assert draw.info.divergences == 1
    nothing = term(lambda x, s: torch.where(s < 1.0, torch.nan, -x), kind="score", path="noised", event_shape=2)
    with pytest.raises(NonFinite, match="no draw"):
        sample(score_of(p) * nothing, 10, sampler=sampler, seed=17)


def test_a_seed_is_a_draw_and_every_level_is_recorded():
    target = score_of(TWO[0]) * score_of(TWO[1])
    one, two = (sample(target, 20, sampler=SuperDiff("and", sigmas=down(15), record=True), seed=18) for _ in range(2))
    assert torch.equal(one.x, two.x)
    assert len(one.frames) == 16
    assert [record["sigma"] for record in one.info.levels] == down(15)


class Killed(Exception):
    pass


@pytest.mark.parametrize("mode", ["and", "or"])
def test_a_killed_run_goes_on_bit_for_bit(mode, tmp_path, monkeypatch):
    save = base.Checkpoint.save
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))

    def target(most):
        calls = [0]

        def score(x, s):
            calls[0] += 1
            if calls[0] > most:
                raise Killed
            return TWO[1]._score(x, s)

        p, q = score_of(TWO[0]), term(score, kind="score", path="noised", event_shape=2)
        return p * q if mode == "and" else 0.3 * p + 0.7 * q

    sampler = SuperDiff(mode, steps=20, record=True)
    whole = sample(target(10**6), 30, sampler=sampler, seed=19)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        sample(target(31), 30, sampler=sampler, seed=19, checkpoint=file)
    assert file.exists()
    rest = sample(target(16), 30, sampler=sampler, seed=19, checkpoint=file)
    assert torch.equal(rest.x, whole.x)
    assert torch.equal(rest.stats["log_q"], whole.stats["log_q"])
    assert rest.info.evaluations == whole.info.evaluations
    assert rest.info.levels == whole.info.levels
    assert len(rest.frames) == len(whole.frames)
    with pytest.raises(ValueError, match="another run"):
        sample(target(10**6), 30, sampler=SuperDiff(mode, steps=21, record=True), seed=19, checkpoint=file)


# ----------------------------------------------------------------- refusals

P, Q = (score_of(p) for p in TWO)
STATIC = term(lambda x: x.square().sum(1), kind="energy", event_shape=2)
WRONG = {
    "an unknown mode": (lambda: SuperDiff("xor"), ValueError, 'modes "and" and "or"'),
    "one step": (lambda: SuperDiff("and", steps=1), ValueError, "steps >= 2"),
    "a temperature for AND": (lambda: SuperDiff("and", temperature=2.0), ValueError, "use bias="),
    "a negative temperature": (lambda: SuperDiff("or", temperature=-1.0), ValueError, "temperature >= 0"),
    "a negative width": (lambda: SuperDiff("or", width=-1.0), ValueError, "width is a standard deviation"),
    "an unknown noise": (lambda: SuperDiff("and", noise="white"), ValueError, "noise is one of"),
    "projected noise for OR": (lambda: SuperDiff("or", noise="projected"), ValueError, "is for mode='and'"),
    "one bias for all": (lambda: SuperDiff("or", bias=1.0), ValueError, "one for each"),
    "a bias that is not finite": (lambda: SuperDiff("or", bias=(0.0, math.nan)), ValueError, "finite number"),
    "rising levels": (lambda: SuperDiff("or", sigmas=[1.0, 2.0]), ValueError, "strictly decreasing"),
    "a ladder from infinity": (
        lambda: SuperDiff("or", sigmas=Ladder((math.inf, 1.0), (1.0, 0.0))), ValueError, "levels that join",
    ),
    "members that are no terms": (lambda: SuperDiff("and", members=[1, 2]), TypeError, "members are terms"),
    "a sum for AND": (lambda: sample(0.5 * P + 0.5 * Q, 5, sampler=SuperDiff("and")), TypeError, r"SuperDiff\('or'\)"),
    "a product for OR": (lambda: sample(P * Q, 5, sampler=SuperDiff("or")), TypeError, r"SuperDiff\('and'\)"),
    "a power": (lambda: sample(P**2 * Q, 5, sampler=SuperDiff("and")), ValueError, "no powers.*use FKC"),
    "one member": (lambda: sample(1.0 * P, 5, sampler=SuperDiff("and")), ValueError, "two members or more"),
    "a static member": (lambda: sample(P * STATIC, 5, sampler=SuperDiff("and")), TypeError, "is static"),
    "a member over other variables": (
        lambda: sample(P.on("a") * Q.on("b"), 5, sampler=SuperDiff("and")), ScopeError, "over the same variables",
    ),
    "biases of another number": (
        lambda: sample(P * Q, 5, sampler=SuperDiff("and", bias=(0.0, 1.0, 2.0))), ValueError, "each of 2 members",
    ),
    "a clamp": (
        lambda: sample(P * Q * Clamp(torch.tensor([True, False]), torch.zeros(2)), 5, sampler=SuperDiff("and")),
        (TypeError, ScopeError), "Clamp|static",
    ),
    "levels outside the members' range": (
        lambda: sample(score_of(TWO[0], sigma_range=(0.1, 5.0)) * Q, 5, sampler=SuperDiff("and", sigmas=[9.0, 1.0])),
        ValueError, "knows noise levels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_say_what_to_do(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
