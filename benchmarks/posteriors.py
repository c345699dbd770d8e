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
``diamonds-diamonds``                     regression on 24 centred columns
``arK-arK``                               autoregression of order five
``garch-garch11``                         GARCH(1, 1): :math:`(\alpha_1, \beta_1, 1 - \alpha_1 - \beta_1)` is a simplex
``hmm_example-hmm_example``               hidden Markov model: rows of simplices, rising positive means
``low_dim_gauss_mix-low_dim_gauss_mix``   mixture of two Gaussians: rising means
``gp_pois_regr-gp_pois_regr``             Poisson counts of a Gaussian process, in whitened coordinates
``hudson_lynx_hare-lotka_volterra``       differential equation of predators and prey
========================================  ============================================================================

Priors are those of the collection's Stan models. What the reference draws are of, where it is not the variables
themselves, comes from :attr:`Posterior.quantities`.

Graphs are short. A Gaussian regression needs its data once, for :math:`X = QR`: with the least-squares residuals r,
:math:`\|y - X\beta\|^2 = \|r\|^2 + \|Q^T y - R\beta\|^2`. A recursion over T observations is an associative product,
taken of neighbours in pairs, then of pairs, …, in :math:`\log_2 T` steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.judgement import Judgement, judge
from boltzmix.benchmarks.posteriordb import Moments, Record, named
from boltzmix.compose.callables import term
from boltzmix.compose.draw import Draw
from boltzmix.compose.term import Term

State = Mapping[str, Tensor]
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Posterior:
    """A density over named variables, and what the reference draws are of.

    Attributes:
        term: the density.
        quantities: from a state ``(N, *event)`` to the parameters of the reference, by name, ``(N, …)``.
        state: the inverse, from parameters to the state: reference draws in the term's own variables.
        reference: moments of the reference draws; None for a density that comes without.
    """

    term: Term
    quantities: Callable[[State], dict[str, Tensor]] = dict
    state: Callable[[State], dict[str, Tensor]] = dict
    reference: Moments | None = None

    def parameters(self, x: State) -> dict[str, Tensor]:
        """Parameters by the reference's names, ``theta[1]``, ``(chains, draws)``, of chains ``(chains, draws, …)``."""
        lead = next(iter(x.values())).shape[:2]
        found = self.quantities({name: t.flatten(0, 1) for name, t in x.items()})
        return named({name: t.reshape(*lead, *t.shape[1:]) for name, t in found.items()})

    def judge(self, draw: Draw) -> Judgement:
        """What chains of this posterior found, against its reference.

        Raises:
            ValueError: a posterior without reference moments, or a draw that is no set of chains.
        """
        if self.reference is None:
            raise ValueError("this posterior has no reference moments; posterior(record) gives one that has")
        if not draw.chains or not isinstance(draw.x, dict):
            raise ValueError("judge() takes chains (chains, draws, …) of the posterior's named variables, from MCMC")
        return judge(self.parameters(draw.x), self.reference, draw.info.divergences)


def normal(x: Tensor | float, mean: Any, sd: Any) -> Tensor:
    """log N(x; mean, sd²) without its constant, and without log sd where sd is a number."""
    squares = -0.5 * ((x - mean) / sd) ** 2
    return squares - sd.log() if isinstance(sd, Tensor) else squares


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

    def state(p: State) -> dict[str, Tensor]:
        return {"mu": p["mu"], "tau": p["tau"], "z": (p["theta"] - p["mu"][:, None]) / p["tau"][:, None]}

    shapes = {"mu": (), "tau": (), "z": (len(y),)}
    density = term(log_prob, kind="log_prob", event_shape=shapes, support={"tau": "positive"})
    return Posterior(density, lambda p: {"theta": effects(p), "mu": p["mu"], "tau": p["tau"]}, state)


def gaussian_fit(x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """log N(y; X β, σ²) of T observations as a function of β ``(N, K)`` and σ ``(N,)``, without its constant."""
    q, r = torch.linalg.qr(x)
    centre, scatter = q.mT @ y, (y - q @ (q.mT @ y)).square().sum()

    def fit(beta: Tensor, sigma: Tensor) -> Tensor:
        squares = scatter + (centre - beta @ r.mT).square().sum(1)
        return -0.5 * squares / sigma**2 - len(y) * sigma.log()

    return fit


def regression(columns: list[Tensor], y: Tensor, prior: Callable[[State], Tensor] | None = None) -> Posterior:
    """y ~ N(X β, σ²), σ > 0; flat but for ``prior``."""
    fit = gaussian_fit(torch.stack(columns, 1), y)

    def log_prob(p: State) -> Tensor:
        found = fit(p["beta"], p["sigma"])
        return found if prior is None else found + prior(p)

    shapes = {"beta": (len(columns),), "sigma": ()}
    support = {"sigma": "positive"}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support=support, name="regression"))


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
    x = column(data["X"])[:, 1:]
    x = x - x.mean(0)
    fit = gaussian_fit(torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1), column(data["Y"]))

    def student(t: Tensor, mean: float) -> Tensor:
        return -2.0 * torch.log1p(((t - mean) / 10.0) ** 2 / 3.0)

    def log_prob(p: State) -> Tensor:
        prior = normal(p["b"], 0.0, 1.0).sum(1) + student(p["Intercept"], 8.0) + student(p["sigma"], 0.0)
        return prior + fit(torch.cat([p["Intercept"][:, None], p["b"]], 1), p["sigma"])

    shapes = {"b": (x.shape[1],), "Intercept": (), "sigma": ()}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support={"sigma": "positive"}))


def autoregression(data: Data) -> Posterior:
    """y_t ~ N(α + Σ_k β_k y_{t−k}, σ²), given the first K values."""
    y, order = column(data["y"]), int(data["K"])
    past = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    fit = gaussian_fit(torch.stack([torch.ones_like(past[0]), *past], 1), y[order:])

    def log_prob(p: State) -> Tensor:
        prior = normal(p["alpha"], 0.0, 10.0) + normal(p["beta"], 0.0, 10.0).sum(1) + half_cauchy(p["sigma"], 2.5)
        return prior + fit(torch.cat([p["alpha"][:, None], p["beta"]], 1), p["sigma"])

    shapes = {"alpha": (), "beta": (order,), "sigma": ()}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support={"sigma": "positive"}))


def garch(data: Data) -> Posterior:
    """σ²_t = α₀ + α₁ (y_{t−1} − μ)² + β₁ σ²_{t−1} with α₁ + β₁ < 1: shares of a simplex, uniformly."""
    y, first = column(data["y"]), float(data["sigma1"])

    def log_prob(p: State) -> Tensor:
        surprise = y - p["mu"][:, None]
        jumps = p["alpha0"][:, None] + p["share"][:, :1] * surprise[:, :-1] ** 2
        variance, decay = torch.cat([torch.full_like(jumps[:, :1], first**2), jumps], 1), p["share"][:, 1:2]
        reach = 1  # terms of σ²_t = Σ_s β₁^s jump_{t−s} that are summed
        while reach < len(y):
            variance = torch.cat([variance[:, :reach], variance[:, reach:] + decay * variance[:, :-reach]], 1)
            reach, decay = 2 * reach, decay * decay
        return -0.5 * (surprise**2 / variance + variance.log()).sum(1)

    def quantities(p: State) -> dict[str, Tensor]:
        return {"mu": p["mu"], "alpha0": p["alpha0"], "alpha1": p["share"][:, 0], "beta1": p["share"][:, 1]}

    def state(p: State) -> dict[str, Tensor]:
        share = torch.stack([p["alpha1"], p["beta1"], 1 - p["alpha1"] - p["beta1"]], 1)
        return {"mu": p["mu"], "alpha0": p["alpha0"], "share": share}

    shapes, support = {"mu": (), "alpha0": (), "share": (3,)}, {"alpha0": "positive", "share": "simplex"}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support=support), quantities, state)


def hidden_markov(data: Data) -> Posterior:
    """Two states with means μ₁ < μ₂ and unit variance, summed out."""
    y = column(data["y"])

    def log_prob(p: State) -> Tensor:
        emission = normal(y[:, None], p["mu"][:, None], 1.0)
        steps = p["theta"].log()[:, None] + emission[:, 1:, None]  # (N, T − 1, from, to)
        while steps.shape[1] > 1:
            even = steps.shape[1] // 2 * 2
            early, late = steps[:, 0:even:2], steps[:, 1:even:2]
            through = [early[..., k : k + 1] + late[..., k : k + 1, :] for k in (0, 1)]  # in state k between them
            steps = torch.cat([torch.logaddexp(*through), steps[:, even:]], 1)
        prior = normal(p["mu"], column([3.0, 10.0]), 1.0).sum(1)
        return (emission[:, 0, :, None] + steps[:, 0]).logsumexp((1, 2)) + prior

    def quantities(p: State) -> dict[str, Tensor]:
        return {"theta1": p["theta"][:, 0], "theta2": p["theta"][:, 1], "mu": p["mu"]}

    def state(p: State) -> dict[str, Tensor]:
        return {"theta": torch.stack([p["theta1"], p["theta2"]], 1), "mu": p["mu"]}

    shapes, support = {"theta": (2, 2), "mu": (2,)}, {"theta": "simplex", "mu": "positive_ordered"}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support=support), quantities, state)


def gaussian_mixture(data: Data) -> Posterior:
    """θ N(μ₁, σ₁²) + (1 − θ) N(μ₂, σ₂²) with μ₁ < μ₂, so that labels cannot switch."""
    y = column(data["y"])

    def log_prob(p: State) -> Tensor:
        weights = torch.stack([p["theta"].log(), torch.log1p(-p["theta"])], 1)
        each = weights[:, :, None] + normal(y, p["mu"][:, :, None], p["sigma"][:, :, None])
        prior = normal(p["mu"], 0.0, 2.0).sum(1) + normal(p["sigma"], 0.0, 2.0).sum(1) + 4.0 * weights.sum(1)
        return prior + torch.logaddexp(each[:, 0], each[:, 1]).sum(1)

    shapes = {"mu": (2,), "sigma": (2,), "theta": ()}
    support = {"mu": "ordered", "sigma": "positive", "theta": "unit"}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support=support))


def poisson_process(data: Data) -> Posterior:
    """Counts k ~ Poisson(e^f) with f a Gaussian process of squared-exponential covariance, f = L z."""
    x, counts = column(data["x"]), column(data["k"])
    squares = (x[:, None] - x) ** 2
    jitter = 1e-10 * torch.eye(len(x), dtype=torch.float64)

    def factor(p: State) -> Tensor:
        rho, alpha = p["rho"][:, None, None], p["alpha"][:, None, None]
        found, wrong = torch.linalg.cholesky_ex(alpha**2 * torch.exp(-0.5 * squares / rho**2) + jitter)
        return torch.where(wrong[:, None, None] == 0, found, torch.nan)

    def process(p: State) -> Tensor:
        return (factor(p) @ p["z"][:, :, None])[:, :, 0]

    def log_prob(p: State) -> Tensor:
        f = process(p)
        prior = 24.0 * p["rho"].log() - 4.0 * p["rho"] + normal(p["alpha"], 0.0, 2.0) + normal(p["z"], 0.0, 1.0).sum(1)
        return prior + (counts * f - f.exp()).sum(1)

    def quantities(p: State) -> dict[str, Tensor]:
        return {"rho": p["rho"], "alpha": p["alpha"], "f": process(p)}

    def state(p: State) -> dict[str, Tensor]:
        z = torch.linalg.solve_triangular(factor(p), p["f"][:, :, None], upper=False)[:, :, 0]
        return {"rho": p["rho"], "alpha": p["alpha"], "z": z}

    shapes, support = {"rho": (), "alpha": (), "z": (len(x),)}, {"rho": "positive", "alpha": "positive"}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support=support), quantities, state)


#: a symmetric splitting of order four with six stages, A₁ B₁ A₂ B₂ A₃ B₃ A₄ B₃ A₃ B₂ A₂ B₁ A₁ (Blanes and Moan, 2002,
#: *Practical symplectic partitioned Runge–Kutta and Runge–Kutta–Nyström methods*)
_A = (0.0792036964311957, 0.353172906049774, -0.0420650803577195)
_B = (0.209515106613362, -0.143851773179818)
_PREY = (*_A, 1.0 - 2.0 * sum(_A), *_A[:0:-1])  # and _A[0] once more
_PREDATORS = (*_B, 0.5 - sum(_B), 0.5 - sum(_B), *_B[::-1])


def lotka_volterra(data: Data, steps: int = 1) -> Posterior:
    r"""Hares u and lynxes v, :math:`\dot u = (\alpha - \beta v) u`, :math:`\dot v = (\delta u - \gamma) v`.

    The rate of each logarithm depends on the other population alone, so each is moved in turn with the other held, by
    shares of a step that make a method of order four. At one step a year paths are within 8e-4 of exact ones over the
    reference draws, where the collection's own solver, at its tolerances, is within 1.3e-3.
    """
    first, logs = column(data["y_init"]).log(), column(data["y"]).log()
    gaps = torch.diff(column(data["ts"]), prepend=column([0.0])).tolist()

    def paths(p: State) -> Tensor:
        hares, lynxes = p["z_init"].log().unbind(1)
        found = []
        for gap in gaps:
            alpha, gamma = ((gap / steps) * p["theta"][:, 0:3:2]).unbind(1)
            beta, delta = ((gap / steps) * p["theta"][:, 1:4:2]).unbind(1)
            for _ in range(steps):
                for share, other in zip(_PREY, _PREDATORS, strict=True):
                    hares = torch.addcmul(hares + share * alpha, beta, lynxes.exp(), value=-share)
                    lynxes = torch.addcmul(lynxes - other * gamma, delta, hares.exp(), value=other)
                hares = torch.addcmul(hares + _PREY[0] * alpha, beta, lynxes.exp(), value=-_PREY[0])
            found += [hares, lynxes]
        return torch.stack(found, 1).unflatten(1, (-1, 2))

    def log_prob(p: State) -> Tensor:
        prior = normal(p["theta"], column([1.0, 0.05, 1.0, 0.05]), column([0.5, 0.05, 0.5, 0.05])).sum(1)
        start, spread = p["z_init"].log(), p["sigma"].log()
        prior = prior + (normal(spread, -1.0, 1.0) - spread + normal(start, math.log(10.0), 1.0) - start).sum(1)
        observed = torch.cat([first[None], logs])
        path = torch.cat([start[:, None], paths(p)], 1)
        return prior + normal(observed, path, p["sigma"][:, None]).sum((1, 2))

    shapes = {"theta": (4,), "z_init": (2,), "sigma": (2,)}
    return Posterior(term(log_prob, kind="log_prob", event_shape=shapes, support="positive"))


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


def posterior(record: Record, models: Mapping[str, Callable[[Data], Posterior]] = POSTERIORS) -> Posterior:
    """The density of a record, with its reference moments.

    Args:
        record: of a posteriordb folder, or one that comes with the package.
        models: by a record's name, the function that makes the density of its data; one's own beside
            :data:`POSTERIORS`.

    Raises:
        ValueError: a record that has no model.
    """
    if record.name not in models:
        raise ValueError(f"{record.name} is not written here; there are {', '.join(models)}")
    return replace(models[record.name](record.data), reference=record.reference)
