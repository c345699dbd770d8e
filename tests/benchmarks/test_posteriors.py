"""Posteriors of posteriordb: their densities, the loader, and moments against reference draws."""

import json
import math
import zipfile
from functools import cache

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from boltzmix.benchmarks import posteriordb
from boltzmix.benchmarks.posteriors import POSTERIORS, posterior
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.suites import posteriors as suite
from boltzmix.compose import MCMC, ravel, sample

D = torch.float64
NAMES = list(POSTERIORS)
DIAMONDS = {
    "X": np.random.default_rng(0).normal(size=(30, 5)).tolist(),
    "Y": np.random.default_rng(1).normal(8.0, 1.0, size=30).tolist(),
}


@cache
def record(name):
    if name == "diamonds-diamonds":
        none = torch.zeros(1, dtype=D)
        return posteriordb.Record(name, DIAMONDS, posteriordb.Moments(("b[1]",), none, none, none, none))
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


@pytest.mark.parametrize("name", [n for n in NAMES if n != "diamonds-diamonds"])
def test_quantities_are_the_parameters_of_the_reference(name):
    _, _, state = states(name, 6)
    found = posteriordb.named({k: v.reshape(2, 3, *v.shape[1:]) for k, v in model(name).quantities(state).items()})
    assert set(found) == set(record(name).reference.names)
    assert all(t.shape == (2, 3) for t in found.values())


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


# ------------------------------------------------------------------------------------------------- reference moments


def judged(name, warmup, draws, seed=0):
    found = suite.chains(model(name), record(name).reference.names, warmup, draws, seed)
    return posteriordb.moments(found.draws).z_scores(record(name).reference)


@pytest.mark.parametrize(
    ("name", "draws"), [("eight_schools-eight_schools_noncentered", 300), ("low_dim_gauss_mix-low_dim_gauss_mix", 200)]
)
def test_moments_are_those_of_the_reference(name, draws):
    """Means and standard deviations of at most ten parameters: |z| < 4.5, false-positive rate 1.4e-4."""
    for z in judged(name, 250, draws):
        assert float(z.abs().max()) < 4.5, z


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
@pytest.mark.parametrize("name", [n for n in NAMES if n != "diamonds-diamonds"])
def test_moments_of_every_posterior_are_those_of_the_reference(name):
    """|z| < 4.5 for 2 × 76 moments: false-positive rate 1e-3."""
    for z in judged(name, 500, 500):
        assert float(z.abs().max()) < 4.5, z


@pytest.mark.parametrize(("shift", "scale", "noticed"), [(0.0, 1.0, ""), (0.4, 1.0, "means"), (0.0, 1.3, "spreads")])
def test_a_wrong_mean_or_spread_would_be_noticed(shift, scale, noticed):
    """Normal draws with the reference's moments pass at |z| < 4.5 (1.4e-4), and shifted or wider ones do not."""
    reference = record("eight_schools-eight_schools_noncentered").reference
    normals = torch.randn(4, 1000, len(reference.names), generator=torch.Generator().manual_seed(0), dtype=D)
    x = reference.mean + reference.sd * (scale * normals + shift)
    means, spreads = posteriordb.moments(dict(zip(reference.names, x.unbind(-1), strict=True))).z_scores(reference)
    assert (float(means.abs().max()) > 8) == (noticed == "means")
    assert (float(spreads.abs().max()) > 8) == (noticed == "spreads")
    assert noticed or max(float(means.abs().max()), float(spreads.abs().max())) < 4.5


def test_the_suite_fills_a_report():
    report = Report("test", "test", section="eight_schools")
    suite.compare(report, Settings(quick=True, seeds=(0,)), record("eight_schools-eight_schools_noncentered"))
    assert [row.quantity for row in report.rows][:3] == [
        "largest |z| of a mean", "largest |z| of a standard deviation", "largest R-hat",
    ]  # fmt: skip
    assert report.rows[0].holds
    assert report.rows[1].holds


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
