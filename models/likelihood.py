r"""Log-likelihoods of noised terms through the probability-flow equation.

:math:`dx/d\ln\sigma = -\sigma^2 s(x; \sigma)` has the densities p(x; σ) of a noised term at every
level (Song et al., 2021), so that a score is enough for log p. It is integrated in
:math:`u = (x - m)/\sqrt{\sigma^2 + c^2}` over ln σ, where m and c are the centre and the spread of the data: for
N(m, c²) the right side is zero, and for other data it is what makes them differ from that Gaussian. Two ends remain:

- at σ_max the density is the term's ``coarse`` Gaussian (or its own, where the term is normalised); what this leaves
  out shrinks like (c / σ_max)²;
- at σ_min the answer is log p(x; σ_min), the density of the data *with* noise of that level. Nothing is
  dequantised: for data on a grid add uniform noise of one cell first, or use
  :func:`~boltzmix.models.diffusion_bound.diffusion_elbo` with ``bins=``.

Source: Y. Song et al. (2021), Score-based generative modeling through stochastic differential equations.
"""

import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.models.divergence import random_signs
from boltzmix.models.ode import Method, Solver
from boltzmix.models.probability_flow import Field, integrate

_EXACT_UP_TO = 32


class LogLikelihood(NamedTuple):
    """Log-densities ``(N,)``, their standard errors (None where nothing is random), and the field's evaluations."""

    log_prob: Tensor
    standard_error: Tensor | None
    evaluations: int


def log_likelihood(
    term: Term,
    x: Tensor,
    *,
    sigma_range: tuple[float, float] | None = None,
    method: Method = "rk4",
    steps: int = 64,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trace: Literal["exact", "hutchinson"] | None = None,
    probes: int = 4,
    generator: torch.Generator | None = None,
    scale: float | None = None,
) -> LogLikelihood:
    r"""log p(x; σ_min) of a noised term with a score, by the probability-flow equation.

    Cost: 4 · ``steps`` scores, each with D vector–Jacobian products (exact trace) or ``probes`` of them.

    Args:
        term: any noised term over one variable: a diffusion model, an adapter's network, a Gaussian mixture.
        x: ``(N, *event)``.
        sigma_range: the two ends; None for the term's own, with 10⁻³ for 0 and 10³ for ∞.
        method, steps, rtol, atol: see :class:`~boltzmix.models.ode.Solver`.
        trace: None is ``"exact"`` up to 32 dimensions and ``"hutchinson"`` beyond.
        probes: random sign vectors of Hutchinson's estimate; at least 2 for a standard error.
        generator: where they come from.
        scale: spread c of the data, for the coordinate alone; None reads it off the term's coarse form.

    Returns:
        :class:`LogLikelihood`; the standard error is that of the trace, the solver's error is not in it.

    Raises:
        TypeError: a term that is not noised, whose scores belong to no such equation.
        ValueError: a range outside the term's.

    Example:
        >>> p = Gaussian(torch.zeros(2), 1.0)
        >>> found = log_likelihood(p, torch.zeros(1, 2), sigma_range=(1e-3, 100.0))
        >>> abs(float(found.log_prob) + math.log(2 * math.pi)) < 1e-3
        True
    """
    flow = _Flow(term, sigma_range, Solver(method, steps, rtol, atol), scale)
    exact = _is_exact(trace, term)
    signs = None
    if not exact:
        _check_probes(probes)
        signs = random_signs((probes, *x.shape), x, generator)
    with torch.no_grad():  # no graph: differentiate an ODEDensity instead
        columns = flow.log_prob(x, signs)
    error = columns.std(0) / math.sqrt(probes) if not exact and probes > 1 else None
    if not exact and probes == 1:
        error = torch.full_like(columns[0], math.nan)
    return LogLikelihood(columns.mean(0), error, flow.count)


class ODEDensity(Term):
    r"""The density that a noised term's probability-flow equation defines, as a static term.

    :math:`E(x) = -\log p(x; \sigma_{\min})` of :func:`log_likelihood`, so that a model that knows only its score can be
    composed as an exact energy; its score is the gradient of that number, through the solver. With the exact trace the
    term is normalised and its draws, the coarse Gaussian pushed down the same equation, are exact (both to the solver's
    accuracy). With Hutchinson's, over sign vectors that are drawn once and kept, the energy is a fixed function
    scattered around −log p: nothing is claimed of its constant, and there are no exact draws of it.

    One energy costs 4 · ``steps`` scores with D (or ``probes``) vector–Jacobian products each, and a score about three
    times as much, with the graph of the whole solution in memory: this is for low dimensions or few evaluations.
    Gradients in the term's parameters hold its coarse Gaussian constant.

    Args:
        term: as for :func:`log_likelihood`, as are ``sigma_range``, ``method``, ``steps``, ``rtol``, ``atol``,
            ``trace`` and ``scale``.
        probes: number of kept sign vectors.
        seed: of these.

    Raises:
        TypeError: a term that is not noised.

    Example:
        >>> p = ODEDensity(Gaussian(torch.zeros(2), 1.0), sigma_range=(1e-2, 50.0), steps=16)
        >>> p.path, p.normalized, p.sample(3, torch.Generator().manual_seed(0)).shape
        ('static', True, torch.Size([3, 2]))
    """

    path = "static"
    signs: Tensor | None

    def __init__(
        self,
        term: Term,
        *,
        sigma_range: tuple[float, float] | None = None,
        method: Method = "rk4",
        steps: int = 64,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        trace: Literal["exact", "hutchinson"] | None = None,
        probes: int = 4,
        scale: float | None = None,
        seed: int = 0,
    ) -> None:
        """Check the term; nothing is evaluated."""
        super().__init__()
        require_noised(term)
        self.inner = term
        self.variables = term.variables
        self.conditions = term.conditions
        self.solver = Solver(method, steps, rtol, atol)
        self.levels = noise_ends(term, sigma_range)
        self.scale = scale
        exact = _is_exact(trace, term)
        self.normalized = self.calibrated = self.samplable = exact
        signs = None
        if not exact:
            _check_probes(probes)
            like = next((p for p in term.parameters()), torch.zeros(()))
            shape = (probes, 1, *term.event_shape)
            signs = random_signs(shape, torch.zeros((), dtype=like.dtype), torch.Generator().manual_seed(seed))
            signs = signs.to(like.device)
        self.register_buffer("signs", signs)
        self._settings: dict[str, Any] = {
            "sigma_range": sigma_range,
            "method": method,
            "steps": steps,
            "rtol": rtol,
            "atol": atol,
            "trace": "exact" if exact else "hutchinson",
            "probes": probes,
            "scale": scale,
            "seed": seed,
        }

    def _flow(self) -> "_Flow":
        return _Flow(self.inner, self.levels, self.solver, self.scale)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        signs = None if self.signs is None else self.signs.to(x)
        return -self._flow().log_prob(x, signs).mean(0)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._flow().sample(n, generator)

    def _given(self, **condition: object) -> "ODEDensity":
        return ODEDensity(self.inner.given(**condition), **self._settings)

    def key(self) -> Hashable:
        """The settings and the inner term's key."""
        return ("ode", tuple(self._settings.items()), self.inner.key())

    def _rows(self) -> int:
        return self.inner._rows() * self.solver.evaluations

    def name(self) -> str:
        """The inner term's."""
        return f"ODEDensity({self.inner.name()})"


class _Flow:
    """The probability-flow equation of one noised term between two levels, in scaled coordinates."""

    def __init__(
        self, term: Term, sigma_range: tuple[float, float] | None, solver: Solver, scale: float | None
    ) -> None:
        require_noised(term)
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale is the spread of the data, a positive number, got {scale!r}")
        self.term, self.solver, self.count = term, solver, 0
        self.low, self.high = noise_ends(term, sigma_range)
        with torch.no_grad():
            self.coarse = term.coarse(self.high)
        self.centre, self.spread = centre_and_spread(self.coarse, self.high)
        if scale is not None:
            self.spread = float(scale)

    def log_prob(self, x: Tensor, probes: Tensor | None) -> Tensor:
        """Log-densities ``(K, N)`` at the lower level, one row per probe."""
        self.term._check(x, None)
        keep = torch.is_grad_enabled() and self.term._needs_graph(x)
        field, centre = self._field(x), self.centre.to(x)
        u = (x - centre) / self._width(self.low)
        u, total = integrate(field, u, math.log(self.low), math.log(self.high), self.solver, probes=probes, keep=keep)
        with torch.set_grad_enabled(keep):
            top = centre + self._width(self.high) * u
            growth = x[0].numel() * math.log(self._width(self.high) / self._width(self.low))
            return self._start(top)[None] + growth + total

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draws of the coarse density carried to the lower level."""
        with torch.no_grad():
            top: Any = self.coarse.sample(n, generator)
            like = next((t for t in (*self.term.parameters(), *self.term.buffers()) if t.is_floating_point()), top)
            top = top.reshape(n, *self.term.event_shape).to(like)
            u = (top - self.centre.to(top)) / self._width(self.high)
            u, _ = integrate(
                self._field(top), u, math.log(self.high), math.log(self.low), self.solver, divergence=False
            )
            return self.centre.to(top) + self._width(self.low) * u

    def _start(self, x: Tensor) -> Tensor:
        """Log-density at the upper level, ``(N,)``."""
        if self.term.normalized:
            return self.term.log_prob(x, self.high)
        coarse = self.coarse.to(x.dtype).to(x.device)
        return coarse.log_prob(x.reshape(len(x), *coarse.event_shape))

    def _width(self, sigma: float) -> float:
        return math.sqrt(sigma**2 + self.spread**2)

    def _field(self, like: Tensor) -> Field:
        centre = self.centre.to(like)

        def field(u: Tensor, log_sigma: float) -> Tensor:
            sigma = min(max(math.exp(log_sigma), self.low), self.high)
            width = self._width(sigma)
            self.count += 1
            score: Any = self.term.score(centre + width * u, sigma)
            return -(sigma**2) / width * (score + u / width)

        return field


def require_noised(term: Term) -> None:
    """Refuse what has no probability-flow equation, saying why."""
    if not isinstance(term, Term):
        raise TypeError(f"a log-likelihood is that of a term, got {type(term).__name__}; boltzmix.term(obj) makes one")
    if term.path != "noised" or not term.has_score:
        why = f" because {term.path_reason}" if term.path_reason else ""
        instead = "use its log_prob()" if term.normalized else "estimate its log Z with SMC"
        if term.normalized and not isinstance(term.variables, Variable):
            instead = "its log_prob() is that of all variables; a VAE bounds that of x by elbo(x) or iwae(x, k)"
        raise TypeError(
            f"the probability-flow equation is that of a noised term with a score, and {term.name()} is {term.path}"
            f"{why}; {instead}"
        )
    if not isinstance(term.variables, Variable):
        raise TypeError(f"{term.name()} is over named variables; ask its factors")


def _check_probes(probes: object) -> None:
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes is a positive int, got {probes!r}")


def _is_exact(trace: str | None, term: Term) -> bool:
    if trace not in (None, "exact", "hutchinson"):
        raise ValueError(f"trace is 'exact', 'hutchinson' or None, got {trace!r}")
    return math.prod(term.event_shape) <= _EXACT_UP_TO if trace is None else trace == "exact"


def noise_ends(term: Term, sigma_range: tuple[float, float] | None) -> tuple[float, float]:
    """The levels asked for, checked; or the term's own, 10⁻³ for 0 and 10³ for ∞."""
    least, most = term.sigma_range
    if sigma_range is None:
        return (least if least > 0 else 1e-3), (most if most < math.inf else 1e3)
    low, high = (float(level) for level in sigma_range)
    if not (0 < low < high < math.inf and low >= least * (1 - 1e-6) and high <= most * (1 + 1e-6)):
        raise ValueError(
            f"sigma_range is (low, high) with 0 < low < high inside [{least:g}, {most:g}], got {tuple(sigma_range)}"
        )
    return low, high


def centre_and_spread(coarse: Any, sigma: float) -> tuple[Tensor, float]:
    """Centre and root mean variance of the data, as far as the coarse form tells; a spread of 1 where it does not."""
    if not isinstance(coarse, Gaussian):
        centre = (coarse.weights[:, None] * coarse.means).sum(0)
        return centre, 1.0
    variance = float(coarse.variances.double().mean()) - sigma**2
    known = variance > 1e-5 * sigma**2 if coarse.variances.dtype == torch.float32 else variance > 1e-10 * sigma**2
    return coarse.mean.reshape(coarse.event_shape), math.sqrt(variance) if known else 1.0
