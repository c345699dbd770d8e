"""Where a run starts: exact draws of a factor, the top of the noise levels, or a fitted Gaussian."""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy, NonFinite, NotNormalizable, ScopeError
from boltzmix.compose.flat import FlatView, require_energy
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product, scope_names, unite
from boltzmix.compose.samplers.anneal import Plan, begin, descend, move
from boltzmix.compose.samplers.base import Request
from boltzmix.compose.samplers.path import (
    NoisePath,
    Path,
    TemperedPath,
    effective_fraction,
    has_noise_path,
    noise_path,
    strengths,
)
from boltzmix.compose.supports import Support, describe, identity
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable, describe_variables

_PROBES = 256


def choose_path(view: FlatView, request: Request, wanted: str = "auto", weigh: bool = True) -> tuple[Path, str, str]:
    """The path, its name, and why it was taken; without weights, exact starts make no sense."""
    term = view.term
    probes = _PROBES if request.n >= 64 else max(32, request.n)
    if not weigh and view.dim > _PROBES:  # images: nothing rests on the start's density, and the search costs draws
        probes = max(32, min(request.n, 64))
    if isinstance(request.init, Term):
        if wanted == "noise":
            raise ValueError("path='noise' finds its own start; leave out init=, or use path='geometric' with it")
        base = _check_init(view, request.init)
        return tempered(view, base), "geometric", f"on a geometric path from {base.name()}, given as init"
    if wanted in ("auto", "exact-start") and weigh and view.dim == view.full_dim:
        found = _exact_start(view, request, probes, 0.0 if wanted == "exact-start" else 0.05)
        if found is not None:
            base, share = found
            return tempered(view, base), "exact-start", f"starts from exact draws of {base.name()} (ESS {share:.0%})"
        if wanted == "exact-start":
            raise ValueError(
                f"path='exact-start' needs a normalised factor with exponent >= 1 that can be sampled exactly; "
                f"{term.name()} has none"
            )
    covered = wanted == "noise" or not view.has_energy or has_noise_path(view)
    if wanted in ("auto", "noise") and term.path != "static" and covered:
        moved = view.as_product()
        if not moved.per_row:
            path = noise_path(moved, request.generator, probes)
        else:
            path = _row_path(moved, request)
        return (
            path,
            "noise",
            f"follows the noise levels from sigma={path.sigma:.3g}"
            + ("; static factors and improper quotients enter with a rising weight" if path.late else ""),
        )
    if wanted == "noise":
        raise ValueError(f"path='noise' needs a factor that changes with sigma; {term.name()} is static")
    if not view.has_energy:
        raise MissingEnergy(
            f"{term.name()} is static and score-only: it has no path to follow. Run MCMC(UHMC(step_size=…)) on it"
        )
    if view.per_row:
        start = "give a start, a normalised term as init=, or " if view.dim == view.full_dim else ""
        raise ValueError(
            f"{term.name()} has a condition for each draw and no noise levels to start from: {start}run chains, "
            f"sample(term, chains={request.n}, sampler=MCMC(…))"
        )
    reference = _reference(view, request)
    what = "static terms" if term.path == "static" else "a variable has no noised prior"
    return tempered(view, reference), "geometric", f"{what}: on a geometric path from a Gaussian fitted by a pilot"


def _row_path(view: FlatView, request: Request) -> NoisePath:
    """A start for targets that differ by row: the top of the range, centred by one evaluation."""
    sigma = min(view.term.sigma_range[1], 80.0)
    total = strengths(view, sigma).to(view.dtype)
    if not bool((total > 0).all()):
        raise NotNormalizable(
            f"{view.term.name()} has a total exponent of {float(total.min()):g}: no level where its path could start"
        )
    variance = sigma**2 / total
    origin = torch.zeros(request.n, view.dim, dtype=view.dtype, device=view.device)
    mean = (variance * view.at(sigma).score(origin)).mean(0)
    return NoisePath(view, sigma, mean, variance, late=False)


def candidates(term: Term) -> list[Term]:
    """Normalised factors with exponent ≥ 1 that can be sampled exactly, and the term itself."""
    if isinstance(term, Mixture) and term.samplable and not term.normalized:
        total = math.log(math.fsum(term.weights()))
        return [Mixture(term._terms(), [w - total for w in term.log_weights])]
    if term.samplable and term.normalized:
        return [term]
    if not isinstance(term, Product):
        return []
    found = []
    for factor, exponent in term.pairs():
        constant = exponent.constant
        whole = factor.variables == term.variables
        if constant is not None and constant >= 1 and factor.samplable and factor.normalized and whole:
            found.append(factor)
    return found


def _exact_start(view: FlatView, request: Request, probes: int, least: float) -> tuple[Term, float] | None:
    best: tuple[Term, float] | None = None
    for base in candidates(view.term):
        if base.variables != view.term.variables and view.transformed:
            continue  # draws of a factor with a wider support leave the target's
        try:
            x = view.ravel(_cast(base.sample(probes, request.generator), view))
        except ValueError:
            continue  # its draws round onto an edge
        energy = view.at(None).energy(x)
        with torch.no_grad():
            own = view.energy_of(base, x)
        share = effective_fraction(own - energy)
        if share >= least and (best is None or share > best[1]):
            best = (base, share)
    return best


def _cast(x: Any, view: FlatView) -> Any:
    if isinstance(x, Tensor):
        return x.to(dtype=view.dtype, device=view.device)
    return {name: t.to(dtype=view.dtype, device=view.device) for name, t in x.items()}


def tempered(view: FlatView, base: Term) -> TemperedPath:
    """The geometric path from a normalised term that can be sampled."""
    flat = base.gaussian if isinstance(base, FlatGaussian) else None

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if flat is not None:
                return flat._energy_and_score(x, None)
            return view.energy_and_score_of(base, x)

    def draw(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if flat is not None:
            x = flat.sample(n, generator).to(dtype=view.dtype, device=view.device)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            x = view.ravel(_cast(base.sample(n, generator), view))
        with torch.no_grad():
            return x, -(flat._energy(x, None) if flat is not None else view.energy_of(base, x))

    path = TemperedPath(view, evaluate, draw, base._rows())
    path.base_term = base  # pyright: ignore[reportAttributeAccessIssue]
    return path


class FlatGaussian(Term):
    """A Gaussian over the flat coordinates of a view, as a base for a geometric path: unconstrained ones."""

    samplable = True
    normalized = True

    def __init__(self, view: FlatView, gaussian: Gaussian) -> None:
        super().__init__()
        self.variables = view.term.variables
        self.gaussian = gaussian

    def name(self) -> str:
        return "a fitted Gaussian"


def _check_init(view: FlatView, init: Term) -> Term:
    """A term to start from: normalised, sampled exactly, over the target's variables."""
    if not (init.samplable and init.normalized):
        raise TypeError(
            f"init as a term is where the path starts: it must be normalised and sampled exactly, {init.name()} is "
            f"{'not normalised' if init.samplable else 'not sampled exactly'}; use a Gaussian"
        )
    if scope_names(init) != scope_names(view.term):
        raise ScopeError(
            f"init is over {describe_variables(init.variables)} and the target over "
            f"{describe_variables(view.term.variables)}"
        )
    unite([init.variables, view.term.variables])
    own, theirs = _supports(view.term), _supports(init)
    if view.transformed and any(identity(own[name]) != identity(theirs[name]) for name in own):
        where = [{name: describe(support) for name, support in each.items()} for each in (theirs, own)]
        raise ValueError(
            f"init lives on {where[0]} and the target on {where[1]}: a path between them needs one support; use a "
            "distribution with that of the target, e.g. term(Gamma(…))"
        )
    require_energy(view, "a path from init")
    if view.dim != view.full_dim:
        raise ValueError("init= and a Clamp do not go together: the start would not respect the clamped coordinates")
    return init


def _supports(term: Term) -> dict[str, Support]:
    own = {"x": term.variables} if isinstance(term.variables, Variable) else term.variables
    return {name: variable.support for name, variable in sorted(own.items())}


def _reference(view: FlatView, request: Request) -> Term:
    """A Gaussian matched to a short pilot run, with its covariance inflated.

    Pilots start from N(0, 5² I) and N(0, 50² I). Both estimate the same integral, so a wide one that finds more of it
    has seen modes that the narrow one has missed; where they agree, the one with the smaller standard error is taken.
    """
    size = min(512, max(128, request.n))
    narrow = _pilot(view, request, 5.0, size)
    assert narrow is not None
    wide = _pilot(view, request, 50.0, size)
    x, _, error = narrow
    if wide is not None:
        gain, spread = wide[1] - narrow[1], math.hypot(wide[2], narrow[2])
        if gain > spread or (gain > -spread and wide[2] < narrow[2]):
            x, _, error = wide
    mean, centred = x.mean(0), x - x.mean(0)
    if size >= 4 * view.dim:
        covariance = 1.5 * centred.mT @ centred / (size - 1)
        families = 1.0 / (error * error + 1.0 / size)  # few of them show correlations that are not there
        share = max(0.05, view.dim / (view.dim + families))
        covariance = (1.0 - share) * covariance + share * torch.diag(covariance.diag())
    else:
        covariance = 1.5 * centred.var(0).clamp(min=1e-12)
    return FlatGaussian(view, Gaussian(mean, covariance))


def _pilot(view: FlatView, request: Request, scale: float, size: int) -> tuple[Tensor, float, float] | None:
    """Particles of a run from N(0, scale² I), log Z and its standard error; None where a wide one meets no density."""
    zero = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
    plan = Plan(HMC(num_leapfrog=3), cess=0.9, max_levels=400)
    path = tempered(view, FlatGaussian(view, Gaussian(zero, scale * scale)))
    try:
        run = descend(path, plan, begin(path, plan, size, request.generator), request.generator)
    except (NonFinite, NotNormalizable):
        if scale > 5.0:
            return None
        raise
    log_z, error = run.cloud.log_z, run.cloud.log_z_se()
    run.point = run.point.select(run.cloud.resample(request.generator))
    move(path, plan, run, request.generator, 5)
    return run.point.x, log_z, error
