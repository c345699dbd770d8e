"""Posteriors of posteriordb: their densities, the loader, and moments against reference draws."""

import json
import math
import zipfile
from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from boltzmix.benchmarks import posteriordb
from boltzmix.benchmarks.judgement import judge, largest_z
from boltzmix.benchmarks.posterior_density import coordinates, moments, posterior_density
from boltzmix.benchmarks.posteriors import POSTERIORS, Posterior, column, posterior
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import posteriors as suite
from boltzmix.compose import MALA, MCMC, ravel, sample, term

D = torch.float64
NAMES = list(POSTERIORS)


@cache
def record(name):
    return posteriordb.open_folder().record(name)


@cache
def model(name):
    return posterior(record(name))


def states(name, n=2, seed=0):
    """States near the middle of their supports; regressions and processes need a moderate scale."""
    target = ravel(model(name).term, dtype=D)
    y = 0.3 * torch.randn(n, target.dim, generator=torch.Generator().manual_seed(seed), dtype=D)
    return target, y, target.view.unravel(y)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    """In unconstrained coordinates and float64, central differences of two step sizes extrapolated."""
    target, y, _ = states(name)
    step = 2e-4 * torch.eye(target.dim, dtype=D)

    def slope(at, h):
        return (target.energy(at + h * step) - target.energy(at - h * step)) / (4e-4 * h)

    for row in y:
        estimate = (4 * slope(row, 0.5) - slope(row, 1.0)) / 3
        score = target.score(row[None])[0]
        assert torch.allclose(-estimate, score, rtol=1e-5, atol=1e-5 * float(score.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_quantities_are_the_parameters_of_the_reference(name):
    _, _, state = states(name, 6)
    found = model(name).parameters({k: v.reshape(2, 3, *v.shape[1:]) for k, v in state.items()})
    assert set(found) == set(record(name).reference.names)
    assert all(t.shape == (2, 3) for t in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_found_again_from_the_parameters_of_the_reference(name):
    """Gaussian processes of shorter lengths, whose covariances are far from singular, within rounding."""
    _, _, state = states(name, 6)
    if name == "gp_pois_regr-gp_pois_regr":
        state = state | {"rho": state["rho"].clamp(max=1.5)}
    back = model(name).state(model(name).quantities(state))
    assert set(back) == set(state)
    for key, t in back.items():
        assert torch.allclose(t, state[key], rtol=1e-9, atol=1e-9), key


# ---------------------------------------------------------------------------------- densities written independently


def normal(x, mean, sd):
    return stats.norm.logpdf(x, mean, sd).sum()


def eight_schools(data, p):
    theta = p["mu"] + p["tau"] * p["z"]
    prior = normal(p["z"], 0, 1) + normal(p["mu"], 0, 5) + stats.halfcauchy.logpdf(p["tau"], scale=5)
    return prior + normal(data["y"], theta, data["sigma"])


def regression(columns, y):
    def density(data, p):
        x = np.stack([np.ones(len(y(data))), *columns(data)], 1)
        return normal(y(data), x @ p["beta"], p["sigma"])

    return density


def kidiq(data, p):
    hs, iq = np.array(data["mom_hs"]), np.array(data["mom_iq"])
    fit = regression(lambda d: [hs, iq, hs * iq], lambda d: d["kid_score"])
    return fit(data, p) + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)


def mesquite(data, p):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [np.log(data[n]) for n in names] + [np.array(data["group"])]
    return regression(lambda d: columns, lambda d: np.log(d["weight"]))(data, p)


def nes(data, p):
    age = np.array(data["age_discrete"])
    columns = [data["real_ideo"], data["race_adj"], age == 2, age == 3, age == 4]
    columns += [data["educ1"], data["gender"], data["income"]]
    return regression(lambda d: [np.array(c, float) for c in columns], lambda d: d["partyid7"])(data, p)


def sblr(data, p):
    prior = normal(p["beta"], 0, 10) + normal(p["sigma"], 0, 10)
    return prior + normal(data["y"], np.array(data["X"]) @ p["beta"], p["sigma"])


def diamonds(data, p):
    x = np.array(data["X"])[:, 1:]
    mean = p["Intercept"] + (x - x.mean(0)) @ p["b"]
    prior = normal(p["b"], 0, 1) + stats.t.logpdf(p["Intercept"], 3, 8, 10) + stats.t.logpdf(p["sigma"], 3, 0, 10)
    return prior + normal(data["Y"], mean, p["sigma"])


def autoregression(data, p):
    y, total = data["y"], normal(p["alpha"], 0, 10) + normal(p["beta"], 0, 10)
    for t in range(5, len(y)):
        total += normal(y[t], p["alpha"] + sum(p["beta"][k] * y[t - 1 - k] for k in range(5)), p["sigma"])
    return total + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)


def garch(data, p):
    y, sigma, total = data["y"], data["sigma1"], 0.0
    for t in range(len(y)):
        total += normal(y[t], p["mu"], sigma)
        sigma = math.sqrt(p["alpha0"] + p["share"][0] * (y[t] - p["mu"]) ** 2 + p["share"][1] * sigma**2)
    return total


def hidden_markov(data, p):
    """Scaled forward recursion in probabilities."""
    forward, total = np.ones(2), normal(p["mu"], [3, 10], 1)
    for t, y in enumerate(data["y"]):
        forward = (forward @ p["theta"] if t else forward) * np.exp(stats.norm.logpdf(y, p["mu"], 1))
        total += math.log(forward.sum())
        forward = forward / forward.sum()
    return total


def gaussian_mixture(data, p):
    y, w = np.array(data["y"])[:, None], np.array([p["theta"], 1 - p["theta"]])
    each = np.log((w * stats.norm.pdf(y, p["mu"], p["sigma"])).sum(1)).sum()
    return each + normal(p["mu"], 0, 2) + normal(p["sigma"], 0, 2) + stats.beta.logpdf(p["theta"], 5, 5)


def poisson_process(data, p):
    x = np.array(data["x"])
    covariance = p["alpha"] ** 2 * np.exp(-0.5 * (x[:, None] - x) ** 2 / p["rho"] ** 2) + 1e-10 * np.eye(len(x))
    f = np.linalg.cholesky(covariance) @ p["z"]
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + normal(p["alpha"], 0, 2) + normal(p["z"], 0, 1)
    return prior + stats.poisson.logpmf(data["k"], np.exp(f)).sum()


def lotka_volterra(data, p):
    """A stiff solver in the populations themselves."""
    a, b, c, d = p["theta"]

    def rate(t, z):
        return [(a - b * z[1]) * z[0], (d * z[0] - c) * z[1]]

    times = data["ts"]
    path = integrate.solve_ivp(rate, (0, times[-1]), p["z_init"], t_eval=times, rtol=1e-9, atol=1e-9).y.T
    prior = normal(p["theta"], [1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05])
    prior += stats.lognorm.logpdf(p["sigma"], 1, scale=math.exp(-1)).sum()
    prior += stats.lognorm.logpdf(p["z_init"], 1, scale=10).sum()
    prior += normal(np.log(data["y_init"]), np.log(p["z_init"]), p["sigma"])
    return prior + normal(np.log(data["y"]), np.log(path), p["sigma"])


WRITTEN = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_interaction": kidiq,
    "earnings-logearn_height_male": regression(
        lambda d: [np.array(d["height"]), np.array(d["male"])], lambda d: np.log(d["earn"])
    ),
    "mesquite-logmesquite": mesquite,
    "nes2000-nes": nes,
    "sblrc-blr": sblr,
    "diamonds-diamonds": diamonds,
    "arK-arK": autoregression,
    "garch-garch11": garch,
    "hmm_example-hmm_example": hidden_markov,
    "low_dim_gauss_mix-low_dim_gauss_mix": gaussian_mixture,
    "gp_pois_regr-gp_pois_regr": poisson_process,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
}


@pytest.mark.parametrize("name", NAMES)
def test_densities_are_those_of_scipy_up_to_a_constant(name):
    """The same in numpy, observation by observation, at four states; differences leave the constants out."""
    _, _, state = states(name, 4, seed=3)
    if name == "hudson_lynx_hare-lotka_volterra":  # where populations stay within what was ever seen
        state = state | {"theta": torch.tensor([0.55, 0.028, 0.8, 0.024], dtype=D) * state["theta"] ** 0.2}
        state = state | {"z_init": torch.tensor([33.0, 6.0], dtype=D) * state["z_init"] ** 0.3}
    ours = -posterior(record(name)).term.energy(state)
    each = [{k: v[row].numpy() for k, v in state.items()} for row in range(4)]
    theirs = torch.tensor([float(WRITTEN[name](record(name).data, p)) for p in each], dtype=D)
    rounding = {"gp_pois_regr-gp_pois_regr": 1e-6, "hudson_lynx_hare-lotka_volterra": 1e-3}  # jitter; a fixed step
    slack = rounding.get(name, 1e-13) * float(theirs.abs().max()) + 1e-9
    assert torch.allclose(ours - ours[0], theirs - theirs[0], rtol=0.0, atol=slack)


def test_a_differential_equation_is_solved_to_order_four_and_better_than_by_the_collection():
    """At the reference means: halving a step divides the error by 16; one step a year is within 1e-3 of scipy's best.

    The collection's own solver, Runge–Kutta 4(5) at tolerances 1e-5 and 1e-3, is within 2e-3.
    """
    own = record("hudson_lynx_hare-lotka_volterra")
    mean = dict(zip(own.reference.names, own.reference.mean, strict=True))
    state = {k: t[None] for k, t in posteriordb.gathered(mean).items()}
    a, b, c, d = state["theta"][0].tolist()

    def rate(t, z):
        return [(a - b * z[1]) * z[0], (d * z[0] - c) * z[1]]

    def solved(method, relative, absolute):
        options = {"t_eval": own.data["ts"], "method": method, "rtol": relative, "atol": absolute}
        found = integrate.solve_ivp(rate, (0, 20), state["z_init"][0].tolist(), **options)
        return torch.tensor(np.log(found.y.T))

    exact = solved("DOP853", 1e-12, 1e-12)
    assert float((solved("RK45", 1e-5, 1e-3) - exact).abs().max()) < 2e-3
    errors = []
    for steps in (1, 2, 4):
        seen = {"y": exact.exp().tolist(), "y_init": state["z_init"][0].tolist(), "ts": own.data["ts"]}
        sharp = state | {"sigma": torch.full((1, 2), 1e-3, dtype=D)}  # what is left of the energy is the error, squared
        perfect, found = (POSTERIORS[own.name](seen, steps=k).term.energy(sharp) for k in (64, steps))
        errors.append(float((found - perfect)[0] * 2e-6) ** 0.5)
    assert errors[0] < 1e-3 * math.sqrt(40)
    assert all(12 < coarse / fine < 24 for coarse, fine in pairwise(errors)), errors


# ------------------------------------------------------------------------------------------------- reference moments


def judged(name, warmup, draws, seed=0):
    return suite.chains(model(name), seed, warmup, draws, compiled=False).found


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("eight_schools-eight_schools_noncentered", 150),
        pytest.param("garch-garch11", 100, marks=pytest.mark.slow),  # half a minute
    ],
)
def test_moments_are_those_of_the_reference(name, draws):
    """Means and standard deviations of at most ten parameters: |z| < 4.5, false-positive rate 1.4e-4."""
    found = judged(name, 150, draws)
    assert float(found.z_mean.abs().max()) < 4.5, found
    assert float(found.z_sd.abs().max()) < 4.5, found


def test_the_summary_of_eight_schools_is_that_of_the_reference():
    """The table that users print: means and sds of mu and tau, |z| < 4.5 for four numbers, false-positive rate 3e-5."""
    name = "eight_schools-eight_schools_noncentered"
    draw = sample(model(name).term, chains=4, sampler=MCMC(warmup=250, draws=300), dtype=D, seed=1)
    table, reference = draw.summary(), record(name).reference
    for parameter in ("mu", "tau"):
        k = reference.names.index(parameter)
        for value, error, truth, of_truth in (
            ("mean", "mcse_mean", reference.mean, reference.mean_se),
            ("sd", "mcse_sd", reference.sd, reference.sd_se),
        ):
            se = math.hypot(table[parameter, error], float(of_truth[k]))
            assert abs(table[parameter, value] - float(truth[k])) < 4.5 * se, (parameter, value)
        assert table[parameter, "r_hat"] < 1.03


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_moments_of_every_posterior_are_those_of_the_reference(name):
    """The suite's layout with half of its draws and its bound over all thirteen: 1 % of false positives in all."""
    found = judged(name, suite.WARMUP, suite.DRAWS // 2)
    bound = largest_z(suite.comparisons([record(n) for n in NAMES], 1))
    assert float(found.z_mean.abs().max()) < bound, found
    assert float(found.z_sd.abs().max()) < bound, found
    assert float(found.rhat.max()) < 1.02, found


@pytest.mark.parametrize(("shift", "scale", "noticed"), [(0.0, 1.0, ""), (0.4, 1.0, "means"), (0.0, 1.3, "spreads")])
def test_a_wrong_mean_or_spread_would_be_noticed(shift, scale, noticed):
    """Normal draws with the reference's moments pass at |z| < 4.5 (1.4e-4), and shifted or wider ones do not."""
    reference = record("eight_schools-eight_schools_noncentered").reference
    normals = torch.randn(4, 1000, len(reference.names), generator=torch.Generator().manual_seed(0), dtype=D)
    x = reference.mean + reference.sd * (scale * normals + shift)
    found = judge(dict(zip(reference.names, x.unbind(-1), strict=True)), reference, divergences=3)
    worst = found.worst()
    assert (worst["mean"] > 8) == (noticed == "means")
    assert (worst["sd"] > 8) == (noticed == "spreads")
    assert noticed or max(worst["mean"], worst["sd"]) < 4.5
    assert worst["divergences"] == 3
    assert worst["rhat"] < 1.01
    assert 3000 < worst["ess"] < 6000


@pytest.mark.parametrize(("comparisons", "rate"), [(1, 0.05), (224, 0.01), (1120, 0.01)])
def test_the_bound_is_exceeded_as_often_as_is_said(comparisons, rate):
    inside = 2 * NormalDist().cdf(largest_z(comparisons, rate)) - 1
    assert 1 - inside**comparisons == pytest.approx(rate, rel=1e-6)


def scores_are_standard_normal_for_correlated_chains():
    """400 sets of eight AR(1) chains of 250 draws (lag one: 0.5) against references of 10,000 draws.

    The scores have a variance of 1 within 0.2 (standard error 0.07: 0.4 % of false positives) and no mean (3.3 standard
    errors: 0.1 %). Were one side's error left out, the variance would be 1.6 for a reference of the size of the chains.
    """
    generator, sets = torch.Generator().manual_seed(1), 400
    noise = torch.randn(8, 250, sets, generator=generator, dtype=D) * math.sqrt(0.75)
    x = [noise[:, 0] / math.sqrt(0.75)]
    for k in range(1, 250):
        x.append(0.5 * x[-1] + noise[:, k])
    reference = torch.randn(4, 200, sets, generator=generator, dtype=D)
    names = [f"x[{k + 1}]" for k in range(sets)]
    own = posteriordb.moments(dict(zip(names, reference.unbind(-1), strict=True)))
    found = judge(dict(zip(names, torch.stack(x, 1).unbind(-1), strict=True)), own)
    for z in (found.z_mean, found.z_sd):
        assert abs(float(z.mean())) < 3.3 / math.sqrt(sets)
        assert abs(float(z.var()) - 1) < 0.2


def test_scores_are_standard_normal_for_correlated_chains():
    scores_are_standard_normal_for_correlated_chains()


def test_judging_needs_a_reference_and_all_its_parameters():
    own = model("arK-arK")
    start = {"alpha": torch.zeros(4, dtype=D), "beta": torch.zeros(4, 5, dtype=D), "sigma": torch.ones(4, dtype=D)}
    kernel = MALA(step_size=0.01)
    draw = sample(own.term, chains=4, init=start, sampler=MCMC(kernel, draws=20), dtype=D, seed=0, progress=False)
    assert own.judge(draw).names == own.reference.names
    with pytest.raises(ValueError, match="no reference moments"):
        replace(own, reference=None).judge(draw)
    with pytest.raises(ValueError, match=r"parameters \['tau'\], which were not drawn"):
        judge({"mu": torch.zeros(4, 20)}, replace(own.reference, names=("tau",)))


def gradients_of_all_phases_are_counted():
    """Against a count from inside the density."""
    rows, known = [0], model("eight_schools-eight_schools_noncentered")

    def counting(p):
        rows[0] += len(p["tau"])
        return -known.term.energy(p)

    shapes = {"mu": (), "tau": (), "z": (8,)}
    counted = replace(known, term=term(counting, kind="log_prob", event_shape=shapes, support={"tau": "positive"}))
    one = suite.chains(counted, 0, 20, 10, compiled=False)
    checked = 4 * suite.PARTICLES  # rays on which the tails of the density are looked at
    total = suite.CHAINS * (one.start + one.warmup + one.sampling)
    assert abs(rows[0] - total) <= checked, (rows[0], total)


def test_gradients_of_all_phases_are_counted():
    gradients_of_all_phases_are_counted()


def test_the_suite_fills_a_report():
    report = Report("test", "test", section="eight_schools")
    name = "eight_schools-eight_schools_noncentered"
    suite.compare(report, Settings(quick=True, seeds=(0,)), name, model(name), 4.5)
    assert [row.quantity for row in report.rows][:3] == [
        "largest |z| of a mean", "largest |z| of a standard deviation", "largest R-hat",
    ]  # fmt: skip
    assert report.rows[0].holds
    assert report.rows[1].holds
    assert report.rows[0].target == "≤ 4.5"
    assert "| eight_schools | 10 |" in report.summary


def the_bound_is_that_of_all_parameters_and_seeds():
    every = [record(name) for name in NAMES]
    assert sum(len(r.reference.names) for r in every) == 112
    assert suite.comparisons(every, 1) == 224
    assert suite.comparisons(every, 5) == 1120
    each = 1 - 0.99 ** (1 / 1120)
    assert largest_z(suite.comparisons(every, 5)) == pytest.approx(stats.norm.isf(each / 2), rel=1e-9)


def test_the_bound_is_that_of_all_parameters_and_seeds():
    the_bound_is_that_of_all_parameters_and_seeds()


# ---------------------------------------------------------------------------------------- targets over coordinates


def a_target_over_coordinates_is_the_posterior(name):
    target, y, _ = states(name, 3)
    own = posterior_density(name)
    assert own.dim == target.dim
    assert torch.allclose(own.log_prob(y), -target.energy(y), rtol=1e-12, atol=1e-9)
    assert own.log_prob(y.float()).dtype == torch.float32
    rows = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(own.log_prob(rows).sum(), rows)
    score = target.score(y)
    assert torch.allclose(slope, score, rtol=1e-9, atol=1e-9 * float(score.abs().max()))
    assert own.truth == "reference"
    assert 5e-5 < own.accuracy < 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_target_over_coordinates_is_the_posterior(name):
    a_target_over_coordinates_is_the_posterior(name)


def moments_over_coordinates_are_those_of_the_reference():
    """Where a coordinate is the parameter itself, and of a logarithm of a narrow one by a series."""
    own, known = posterior_density("mesquite-logmesquite"), record("mesquite-logmesquite").reference
    assert torch.allclose(own.mean[:7], known.mean[:7], rtol=1e-7)
    assert torch.allclose(own.variance[:7], known.sd[:7] ** 2, rtol=1e-6)
    ratio = float(known.sd[7] / known.mean[7]) ** 2
    assert float(own.mean[7]) == pytest.approx(math.log(float(known.mean[7])) - 0.5 * ratio, abs=2e-3)
    assert float(own.variance[7]) == pytest.approx(ratio, rel=0.05)
    assert torch.allclose(own.square_mean, own.mean**2 + own.variance, rtol=1e-3)


def test_moments_over_coordinates_are_those_of_the_reference():
    moments_over_coordinates_are_those_of_the_reference()


def coordinates_of_draws_lead_back_to_them():
    """Simplices and ordered vectors of Stan's names and theirs in unconstrained coordinates."""
    name = "hmm_example-hmm_example"
    _, y, state = states(name, 6)
    own = posterior(record(name))
    draws = own.parameters({k: v.reshape(2, 3, *v.shape[1:]) for k, v in state.items()})
    found = coordinates(own, draws)
    assert torch.allclose(found, y.reshape(2, 3, -1))
    normals = torch.randn(4, 500, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    known = moments(1 + 2 * normals)  # E y² = 5, Var y² = 2·16 + 4·4 = 48
    values = [known[key][0] for key in ("mean", "variance", "square_mean", "square_variance")]
    assert values == pytest.approx([1, 4, 5, 48], rel=0.15)
    assert known["accuracy"] == pytest.approx(1 / 2000, rel=0.3)


def test_coordinates_of_draws_lead_back_to_them():
    coordinates_of_draws_lead_back_to_them()


# ------------------------------------------------------------------------------------------------------------ folders


def packed(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(file.name.removesuffix(".zip"), json.dumps(value))


@pytest.mark.parametrize("layout", ["posteriordb", "side by side"])
def test_a_folder_of_ones_own_is_read(tmp_path, layout):
    whole = layout == "posteriordb"
    root = tmp_path / "posterior_database" if whole else tmp_path
    info, data, draws = (
        ("posteriors", "data/data", "reference_posteriors/draws/draws") if whole else ("info", "data", "draws")
    )
    (root / info).mkdir(parents=True)
    for name, reference in (("coins-flips", "coins-flips"), ("coins-none", None)):
        text = json.dumps({"data_name": "coins", "reference_posterior_name": reference})
        (root / info / f"{name}.json").write_text(text)
    packed(root / data / "coins.json.zip", {"y": [1, 0, 1]})
    generator = np.random.default_rng(0)
    packed(root / draws / "coins-flips.json.zip", [{"p": generator.normal(3, 2, 500).tolist()} for _ in range(4)])
    folder = posteriordb.open_folder(tmp_path)
    assert folder.names() == ["coins-flips"]
    found = folder.record("coins-flips")
    assert found.data == {"y": [1, 0, 1]}
    assert found.reference.names == ("p",)
    assert float(found.reference.mean[0]) == pytest.approx(3.0, abs=0.2)
    assert float(found.reference.sd[0]) == pytest.approx(2.0, abs=0.2)
    assert float(found.reference.mean_se[0]) == pytest.approx(2 / math.sqrt(2000), rel=0.2)
    with pytest.raises(ValueError, match="no posterior is called 'dice'; there are coins-flips"):
        folder.record("dice")
    with pytest.raises(ValueError, match="coins-none has no reference draws"):
        folder.record("coins-none")
    with pytest.raises(ValueError, match="coins-flips is not written here"):
        posterior(found)
    posteriordb.write_moments(folder, ["coins-flips"], tmp_path / "references.json")
    assert json.loads((tmp_path / "references.json").read_text())["coins-flips"]["names"] == ["p"]


def test_wrong_folders_and_names_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no posteriordb folder: it has none of posteriors, info"):
        posteriordb.open_folder(tmp_path)
    with pytest.raises(ValueError, match="no posterior called 'x' comes with the package; there are arK"):
        posteriordb.open_folder().record("x")
    with pytest.raises(ValueError, match="open a posteriordb folder"):
        posteriordb.open_folder().draws("arK-arK")
    one, other = (record(n).reference for n in ("arK-arK", "sblrc-blr"))
    with pytest.raises(ValueError, match="do not compare"):
        one.z_scores(other)


def coins(data):
    """Chance p of heads, uniform before: Beta(1 + heads, 1 + tails) after."""
    y = column(data["y"])

    def log_prob(p):
        return y.sum() * p["p"].log() + (1 - y).sum() * torch.log1p(-p["p"])

    return Posterior(term(log_prob, kind="log_prob", event_shape={"p": ()}, support={"p": "unit"}))


def test_a_posterior_of_ones_own_is_a_row(tmp_path):
    """Three heads of four against draws of Beta(4, 2): false-positive rate 1 % for both scores, at a fixed seed."""
    folder = tmp_path / "mine"
    (folder / "info").mkdir(parents=True)
    (folder / "info" / "coins-flips.json").write_text(json.dumps({"data_name": "coins"}))
    packed(folder / "data" / "coins.json.zip", {"y": [1, 0, 1, 1]})
    draws = np.random.default_rng(0).beta(4, 2, (10, 1000))
    packed(folder / "draws" / "coins-flips.json.zip", [{"p": chain.tolist()} for chain in draws])
    models = POSTERIORS | {"coins-flips": coins}
    report = suite.run(
        out=tmp_path / "out", quick=True, seeds=1, only=["coins", "arK"], folder=folder, models=models, progress=False
    )
    first, mean, spread = report.rows[:3]
    assert (first.task, first.quantity, first.note) == ("arK-arK", "SKIPPED", "the folder has no reference draws of it")
    assert mean.target == "≤ 2.81"  # two comparisons
    assert mean.holds
    assert spread.holds
    assert "| coins | 1 |" in report.summary


def test_names_of_sections_tell_posteriors_apart():
    assert suite.short_names(["kidiq-a", "kidiq-b", "arK-arK"]) == {
        "kidiq-a": "kidiq-a", "kidiq-b": "kidiq-b", "arK-arK": "arK",
    }  # fmt: skip
