r"""Posteriors of posteriordb written as a user of the package would: functions of named variables, and supports.

========================================  ============================================================================
posterior                                 model
========================================  ============================================================================
``eight_schools-eight_schools_…``         hierarchy, non-centred: :math:`\tau > 0`
``kidiq-kidscore_interaction``            regression with an interaction, :math:`\sigma > 0`
``earnings-logearn_height_male``          regression of a logarithm
``mesquite-logmesquite``                  regression of logarithms on logarithms
``nes2000-nes``                           regression with ages as a factor
``sblrc-blr``                             regression with a Gaussian prior
``diamonds-diamonds``                     regression on 24 centred columns (data from a posteriordb folder)
``arK-arK``                               autoregression of order five
``garch-garch11``                         GARCH(1, 1): :math:`(\alpha_1, \beta_1, 1 - \alpha_1 - \beta_1)` is a simplex
``hmm_example-hmm_example``               hidden Markov model: rows of simplices, rising positive means
``low_dim_gauss_mix-low_dim_gauss_mix``   mixture of two Gaussians: rising means
``gp_pois_regr-gp_pois_regr``             Poisson counts of a Gaussian process, in whitened coordinates
``hudson_lynx_hare-lotka_volterra``       differential equation of predators and prey
========================================  ============================================================================

Priors are those of the collection's Stan models. What the reference draws are of, where it is not the variables
themselves, comes from :attr:`Posterior.quantities`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.posteriordb import Record
from boltzmix.compose.callables import term
from boltzmix.compose.term import Term

State = Mapping[str, Tensor]
Data = Mapping[str, Any]


def _itself(p: State) -> dict[str, Tensor]:
    return dict(p)


@dataclass(frozen=True)
class Posterior:
    """A density over named variables, and what the reference draws are of.

    Attributes:
        term: the density.
        quantities: from a state ``(N, *event)`` to the parameters of the reference, by name, ``(N, …)``.
        dense: whether its coordinates are so correlated that a dense mass pays.
        target_acceptance: of NUTS; higher where steps of the usual length diverge.
    """

    term: Term
    quantities: Callable[[State], dict[str, Tensor]] = _itself
    dense: bool = False
    target_acceptance: float = 0.8


def normal(x: Tensor | float, mean: Any, sd: Any) -> Tensor:
    """log N(x; mean, sd²) without its constant."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((x - mean) / sd) ** 2 - sd.log()


def half_cauchy(x: Tensor, scale: float) -> Tensor:
    """log-density of |Cauchy(0, scale)| without its constant."""
    return -torch.log1p((x / scale) ** 2)


def column(values: Any) -> Tensor:
    """Data as float64."""
    return torch.tensor(values, dtype=torch.float64)


def eight_schools(data: Data) -> Posterior:
    """Effects of coaching in eight schools (Rubin, 1981)."""
    y, error = column(data["y"]), column(data["sigma"])

    def effects(p: State) -> Tensor:
        return p["mu"][:, None] + p["tau"][:, None] * p["z"]

    def log_prob(p: State) -> Tensor:
        prior = normal(p["z"], 0.0, 1.0).sum(1) + normal(p["mu"], 0.0, 5.0) + half_cauchy(p["tau"], 5.0)
        return prior + normal(y, effects(p), error).sum(1)

    density = term(
        log_prob, kind="log_prob", event_shape={"mu": (), "tau": (), "z": (len(y),)}, support={"tau": "positive"}
    )
    return Posterior(density, lambda p: {"theta": effects(p), "mu": p["mu"], "tau": p["tau"]})


def regression(columns: list[Tensor], y: Tensor, prior: Callable[[State], Tensor] | None = None) -> Posterior:
    """y ~ N(X β, σ²), σ > 0; flat but for ``prior``."""
    x = torch.stack(columns, 1)

    def log_prob(p: State) -> Tensor:
        fit = normal(y, p["beta"] @ x.mT, p["sigma"][:, None]).sum(1)
        return fit if prior is None else fit + prior(p)

    density = term(
        log_prob,
        kind="log_prob",
        event_shape={"beta": (x.shape[1],), "sigma": ()},
        support={"sigma": "positive"},
        name="regression",
    )
    return Posterior(density, dense=True)


def kidiq(data: Data) -> Posterior:
    """Test scores of children by schooling and intelligence of their mothers (Gelman and Hill, 2007)."""
    school, iq = column(data["mom_hs"]), column(data["mom_iq"])
    columns = [torch.ones_like(iq), school, iq, school * iq]
    return regression(columns, column(data["kid_score"]), lambda p: half_cauchy(p["sigma"], 2.5))


def earnings(data: Data) -> Posterior:
    """Logarithms of earnings by height and sex."""
    height = column(data["height"])
    return regression([torch.ones_like(height), height, column(data["male"])], column(data["earn"]).log())


def mesquite(data: Data) -> Posterior:
    """Weight of bushes by their measures, in logarithms."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    y = column(data["weight"]).log()
    return regression([torch.ones_like(y), *(column(data[n]).log() for n in names), column(data["group"])], y)


def nes(data: Data) -> Posterior:
    """Party identification in the survey of 2000."""
    y, age = column(data["partyid7"]), column(data["age_discrete"])
    ages = [(age == k).double() for k in (2, 3, 4)]
    first, last = ("real_ideo", "race_adj"), ("educ1", "gender", "income")
    return regression(
        [torch.ones_like(y), *(column(data[n]) for n in first), *ages, *(column(data[n]) for n in last)], y
    )


def sblr(data: Data) -> Posterior:
    """Simulated regression with Gaussian priors."""
    return regression(
        list(column(data["X"]).T),
        column(data["y"]),
        lambda p: normal(p["beta"], 0.0, 10.0).sum(1) + normal(p["sigma"], 0.0, 10.0),
    )


def diamonds(data: Data) -> Posterior:
    """Logarithm of prices by carat, cut, colour and clarity: 24 correlated columns."""
    x, y = column(data["X"])[:, 1:], column(data["Y"])
    x = x - x.mean(0)

    def student(t: Tensor, mean: float) -> Tensor:
        return -2.0 * torch.log1p(((t - mean) / 10.0) ** 2 / 3.0)

    def log_prob(p: State) -> Tensor:
        mean = p["Intercept"][:, None] + p["b"] @ x.mT
        prior = normal(p["b"], 0.0, 1.0).sum(1) + student(p["Intercept"], 8.0) + student(p["sigma"], 0.0)
        return prior + normal(y, mean, p["sigma"][:, None]).sum(1)

    shapes = {"b": (x.shape[1],), "Intercept": (), "sigma": ()}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support={"sigma": "positive"}), dense=True)


def autoregression(data: Data) -> Posterior:
    """y_t ~ N(α + Σ_k β_k y_{t−k}, σ²), given the first K values."""
    y, order = column(data["y"]), int(data["K"])
    past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)])

    def log_prob(p: State) -> Tensor:
        prior = normal(p["alpha"], 0.0, 10.0) + normal(p["beta"], 0.0, 10.0).sum(1) + half_cauchy(p["sigma"], 2.5)
        mean = p["alpha"][:, None] + p["beta"] @ past
        return prior + normal(y[order:], mean, p["sigma"][:, None]).sum(1)

    shapes = {"alpha": (), "beta": (order,), "sigma": ()}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support={"sigma": "positive"}), dense=True)


def garch(data: Data) -> Posterior:
    """σ²_t = α₀ + α₁ (y_{t−1} − μ)² + β₁ σ²_{t−1} with α₁ + β₁ < 1: shares of a simplex, uniformly."""
    y, first = column(data["y"]), float(data["sigma1"])

    def log_prob(p: State) -> Tensor:
        surprise = y - p["mu"][:, None]
        jumps = p["alpha0"][:, None] + p["share"][:, :1] * surprise**2
        variance = [torch.full_like(p["mu"], first**2)]
        for t in range(len(y) - 1):
            variance.append(jumps[:, t] + p["share"][:, 1] * variance[-1])
        return normal(surprise, 0.0, torch.stack(variance, 1).sqrt()).sum(1)

    density = term(
        log_prob,
        kind="log_prob",
        event_shape={"mu": (), "alpha0": (), "share": (3,)},
        support={"alpha0": "positive", "share": "simplex"},
    )

    def quantities(p: State) -> dict[str, Tensor]:
        return {"mu": p["mu"], "alpha0": p["alpha0"], "alpha1": p["share"][:, 0], "beta1": p["share"][:, 1]}

    return Posterior(density, quantities)


def hidden_markov(data: Data) -> Posterior:
    """Two states with means μ₁ < μ₂ and unit variance; states summed out forwards."""
    y = column(data["y"])

    def log_prob(p: State) -> Tensor:
        emission = normal(y[:, None], p["mu"][:, None], 1.0)
        step = p["theta"].log()
        forward = emission[:, 0]
        for t in range(1, len(y)):
            forward = (forward[:, :, None] + step).logsumexp(1) + emission[:, t]
        return forward.logsumexp(1) + normal(p["mu"], column([3.0, 10.0]), 1.0).sum(1)

    density = term(
        log_prob,
        kind="log_prob",
        event_shape={"theta": (2, 2), "mu": (2,)},
        support={"theta": "simplex", "mu": "positive_ordered"},
    )
    return Posterior(density, lambda p: {"theta1": p["theta"][:, 0], "theta2": p["theta"][:, 1], "mu": p["mu"]})


def gaussian_mixture(data: Data) -> Posterior:
    """θ N(μ₁, σ₁²) + (1 − θ) N(μ₂, σ₂²) with μ₁ < μ₂, so that labels cannot switch."""
    y = column(data["y"])

    def log_prob(p: State) -> Tensor:
        weights = torch.stack([p["theta"].log(), torch.log1p(-p["theta"])], 1)
        each = weights[:, :, None] + normal(y, p["mu"][:, :, None], p["sigma"][:, :, None])
        prior = normal(p["mu"], 0.0, 2.0).sum(1) + normal(p["sigma"], 0.0, 2.0).sum(1) + 4.0 * weights.sum(1)
        return prior + each.logsumexp(1).sum(1)

    density = term(
        log_prob,
        kind="log_prob",
        event_shape={"mu": (2,), "sigma": (2,), "theta": ()},
        support={"mu": "ordered", "sigma": "positive", "theta": "unit"},
    )
    return Posterior(density)


def poisson_process(data: Data) -> Posterior:
    """Counts k ~ Poisson(e^f) with f a Gaussian process of squared-exponential covariance, f = L z."""
    x, counts = column(data["x"]), column(data["k"])
    squares = (x[:, None] - x) ** 2
    jitter = 1e-10 * torch.eye(len(x), dtype=torch.float64)

    def process(p: State) -> Tensor:
        rho, alpha = p["rho"][:, None, None], p["alpha"][:, None, None]
        factor = torch.linalg.cholesky(alpha**2 * torch.exp(-0.5 * squares / rho**2) + jitter)
        return (factor @ p["z"][:, :, None])[:, :, 0]

    def log_prob(p: State) -> Tensor:
        f = process(p)
        prior = 24.0 * p["rho"].log() - 4.0 * p["rho"] + normal(p["alpha"], 0.0, 2.0) + normal(p["z"], 0.0, 1.0).sum(1)
        return prior + (counts * f - f.exp()).sum(1)

    shapes = {"rho": (), "alpha": (), "z": (len(x),)}
    support = {"rho": "positive", "alpha": "positive"}
    density = term(log_prob, kind="log_prob", event_shape=shapes, support=support)

    def quantities(p: State) -> dict[str, Tensor]:
        return {"rho": p["rho"], "alpha": p["alpha"], "f": process(p)}

    return Posterior(density, quantities, target_acceptance=0.95)  # at 0.8 it diverges where columns of L nearly vanish


def lotka_volterra(data: Data, steps: int = 4) -> Posterior:
    """Hares u and lynxes v, du/dt = (α − β v) u, dv/dt = (δ u − γ) v, by Runge–Kutta steps of their logarithms."""
    first, logs = column(data["y_init"]).log(), column(data["y"]).log()
    gaps = torch.diff(column(data["ts"]), prepend=column([0.0])).tolist()

    def paths(p: State) -> Tensor:
        alpha, beta, gamma, delta = p["theta"].T
        constant, slope = torch.stack([alpha, -gamma], 1), torch.stack([-beta, delta], 1)

        def rate(z: Tensor) -> Tensor:
            return constant + slope * z.exp().flip(1)

        z, found = p["z_init"].log(), []
        for gap in gaps:
            h = gap / steps
            for _ in range(steps):
                a = rate(z)
                b = rate(z + 0.5 * h * a)
                c = rate(z + 0.5 * h * b)
                z = z + h / 6 * (a + 2 * (b + c) + rate(z + h * c))
            found.append(z)
        return torch.stack(found, 1)

    def log_prob(p: State) -> Tensor:
        prior = normal(p["theta"], column([1.0, 0.05, 1.0, 0.05]), column([0.5, 0.05, 0.5, 0.05])).sum(1)
        start, spread = p["z_init"].log(), p["sigma"].log()
        prior = prior + (normal(spread, -1.0, 1.0) - spread + normal(start, math.log(10.0), 1.0) - start).sum(1)
        observed = torch.cat([first[None], logs])
        path = torch.cat([start[:, None], paths(p)], 1)
        return prior + normal(observed, path, p["sigma"][:, None]).sum((1, 2))

    shapes = {"theta": (4,), "z_init": (2,), "sigma": (2,)}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support="positive"), dense=True)


POSTERIORS: dict[str, Callable[[Data], Posterior]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_interaction": kidiq,
    "earnings-logearn_height_male": earnings,
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


def posterior(record: Record) -> Posterior:
    """The density of a record.

    Raises:
        ValueError: one that is not written here.
    """
    if record.name not in POSTERIORS:
        raise ValueError(f"{record.name} is not written here; there are {', '.join(POSTERIORS)}")
    return POSTERIORS[record.name](record.data)
