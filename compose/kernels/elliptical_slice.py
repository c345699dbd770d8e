r"""Elliptical slice sampling: a Gaussian prior times any likelihood, without a step size.

For :math:`p(x) \propto N(x; m, C)\, L(x)`, a draw ν of N(0, C) and the state x span an ellipse

.. math::
    x(\theta) = m + (x - m) \cos\theta + \nu \sin\theta

along which the prior has nothing to say: at every θ, x(θ) is a draw of the prior if x is. So only L decides, by slice
sampling: with :math:`\log y = \log L(x) + \log u`, angles are drawn from a bracket of length 2π around θ = 0, and each
one with :math:`\log L(x(\theta)) < \log y` becomes the end of the bracket on its side, until one is good.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune, energy_of
from boltzmix.compose.kernels.mass import Mass
from boltzmix.compose.product import Product
from boltzmix.compose.wrappers import On


@dataclass(frozen=True)
class EllipticalSlice(Kernel):
    r"""Elliptical slice sampling (Murray, Adams and MacKay, 2010).

    The target is a product with a Gaussian factor, the prior; the rest of it is the likelihood. Any Gaussian leaves the
    target invariant, since the likelihood is what is left of the target after dividing by it,
    :math:`E_L = E - E_{prior}`; the closer it is to the target, the fewer angles are tried. It needs energies only
    (``State.score`` is NaN) and has nothing to adapt. Chains look for their angles side by side, and only those that
    still look are evaluated.

    A bracket always shrinks towards the state, so the search ends. Energies that are NaN or −∞ are rejections, counted
    as divergences. ``Info.num_leapfrog`` is the number of angles that a chain tried; every search ends with one that is
    accepted, but for those whose bracket has shrunk to nothing: such a chain stays where it is and counts as a
    divergence, because its energy is not reproducible to the last digit, or its likelihood is a point.

    Args:
        prior: a :class:`~boltzmix.compose.gaussian.Gaussian` over all of the target's free coordinates; None takes the
            Gaussian factors with exponent 1 of the product that is sampled, one for each of its variables.

    Raises:
        TypeError: a prior that is not Gaussian.
        ValueError: a prior of another size, or a target in which none, or more than one, is found.

    Example:
        A latent Gaussian with counts for data:

        >>> import torch, boltzmix as bm
        >>> prior = bm.Gaussian(torch.zeros(3), 1.0)
        >>> counts = torch.tensor([0.0, 2.0, 7.0])
        >>> poisson = bm.term(lambda f: (f.exp() - counts * f).sum(-1), kind="energy", event_shape=3)
        >>> chains = bm.MCMC(bm.EllipticalSlice(), warmup=50, draws=200)
        >>> draw = bm.sample(prior * poisson, chains=20, sampler=chains, seed=0)
        >>> draw.x.mean((0, 1)).argsort().tolist()
        [0, 1, 2]
    """

    step_size: float | None = field(default=None, init=False, repr=False)
    inverse_mass: Mass | Tensor | None = field(default=None, init=False, repr=False)
    prior: Gaussian | None = None

    target_acceptance = 1.0
    uses_score = False

    def __post_init__(self) -> None:
        """Refuse priors that are not Gaussian."""
        super().__post_init__()
        prior = _bare(self.prior)
        if prior is not None and not isinstance(prior, Gaussian):
            raise TypeError(
                f"EllipticalSlice's prior is a Gaussian, got {type(prior).__name__}; write its likelihood as the rest "
                "of the product, prior * likelihood"
            )
        object.__setattr__(self, "prior", prior)

    def __repr__(self) -> str:
        """With a digest of the prior's numbers: kernels of different priors have different names."""
        if self.prior is None:
            return "EllipticalSlice()"
        digest = hashlib.sha256()
        for tensor in (self.prior.mean, self.prior.covariance):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"EllipticalSlice(prior=Gaussian({len(self.prior.mean)}, {digest.hexdigest()[:8]}))"

    @property
    def adapts(self) -> bool:
        """Nothing is left to adapt."""
        return False

    def tune(self, like: Tensor | None = None) -> Tune:
        """A step size of one, which is not read."""
        return Tune(torch.ones((), dtype=None if like is None else like.dtype))

    def tuned(self, tune: Tune) -> "EllipticalSlice":
        """The kernel itself."""
        return self

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> State:
        """Find the prior, and evaluate the start."""
        state = super().init(target, x, generator)
        _Prior(self.prior, target, state.x)
        return state

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One point of every chain's slice; as many evaluations of energies as angles are tried."""
        prior = _Prior(self.prior, target, state.x)
        start, nu = state.x - prior.mean, prior.scale(noise.normal)
        level = prior.energy(state.x) - state.energy + noise.uniform.log()
        theta = 2 * math.pi * noise.jitter
        low, high = theta - 2 * math.pi, theta
        narrow = torch.finfo(state.x.dtype).eps ** 2
        whole = bool(getattr(getattr(target, "view", None), "per_row", False))

        x, energy = state.x, state.energy
        tries = torch.zeros_like(state.energy, dtype=torch.long)
        accepted, divergent = torch.zeros_like(tries, dtype=torch.bool), torch.zeros_like(tries, dtype=torch.bool)
        rows = torch.arange(len(x), device=x.device)
        while len(rows):
            angle = theta[rows, None]
            tried = prior.mean + start[rows] * angle.cos() + nu[rows] * angle.sin()
            # where conditions belong to their rows, chains that are done are evaluated where they are
            found = energy_of(target, x.index_copy(0, rows, tried))[rows] if whole else energy_of(target, tried)
            finite = torch.isfinite(found)
            good = finite & (prior.energy(tried) - found > level[rows])
            tries = tries.index_add(0, rows, torch.ones_like(rows))
            divergent = divergent.index_put((rows,), divergent[rows] | ~(finite | (found == torch.inf)))
            x, energy = x.index_copy(0, rows[good], tried[good]), energy.index_copy(0, rows[good], found[good])
            accepted = accepted.index_fill(0, rows[good], True)

            rows = rows[~good]
            angle = theta[rows]
            low = low.index_copy(0, rows, torch.where(angle < 0, angle, low[rows]))
            high = high.index_copy(0, rows, torch.where(angle < 0, high[rows], angle))
            lost = high[rows] - low[rows] < narrow
            divergent = divergent.index_fill(0, rows[lost], True)
            rows = rows[~lost]
            share = torch.rand(len(rows), generator=noise.generator, dtype=x.dtype, device=x.device)
            theta = theta.index_copy(0, rows, low[rows] + share * (high[rows] - low[rows]))
        info = Info(accepted.to(x.dtype), accepted, divergent, num_leapfrog=tries)
        return State(x, energy, torch.full_like(x, torch.nan)), info

    def initial_step_size(self, dim: int) -> float:
        """One, which is not read."""
        return 1.0


class _Prior:
    """N(m, C) over flat coordinates, C = B diag(v) Bᵀ, at the noise level of the target."""

    def __init__(self, prior: Gaussian | None, target: Target, x: Tensor) -> None:
        if prior is None:
            parts, spans = _factors(target)
        else:
            parts, spans = [prior], [slice(0, len(prior.mean))]
        size = sum(len(part.mean) for part in parts)
        if size != x.shape[1]:
            raise ValueError(
                f"EllipticalSlice's prior is over {size} coordinates and the target moves {x.shape[1]}; give "
                "EllipticalSlice(prior=…) a Gaussian over those that move"
            )
        sigma = getattr(target, "sigma", None)
        extra = 0.0 if sigma is None or prior is not None else sigma.to(x) ** 2
        self.mean = torch.cat([part.mean for part in parts]).to(x)
        self.variances = torch.cat([part.variances for part in parts]).to(x) + extra
        self.bases = [
            (span, part.basis.to(x)) for span, part in zip(spans, parts, strict=True) if part.basis is not None
        ]

    def scale(self, normal: Tensor) -> Tensor:
        """A draw of N(0, C) from one of N(0, I)."""
        draw = normal * self.variances.sqrt()
        for span, basis in self.bases:
            draw[:, span] = draw[:, span] @ basis.mT
        return draw

    def energy(self, x: Tensor) -> Tensor:
        """−log of the density, up to a constant."""
        y = x - self.mean
        for span, basis in self.bases:
            y[:, span] = y[:, span] @ basis
        return 0.5 * (y * y / self.variances).sum(-1)


def _factors(target: Target) -> tuple[list[Gaussian], list[slice]]:
    """The Gaussian factors of the product behind a target, in the order of its flat coordinates, and where they are."""
    view: Any = getattr(target, "view", None)
    term = getattr(view, "term", None)
    if term is None:
        raise ValueError(
            "EllipticalSlice() finds its prior in a product of terms; write EllipticalSlice(prior=gaussian)"
        )
    pairs = term.pairs() if isinstance(term, Product) else [(term, None)]
    found: dict[str, list[Gaussian]] = {}
    for factor, exponent in pairs:
        if isinstance(_bare(factor), Gaussian) and (exponent is None or exponent.constant == 1.0):
            found.setdefault(factor.names[0] if isinstance(factor, On) else "x", []).append(_bare(factor))
    names = list(term.variables) if isinstance(term.variables, Mapping) else ["x"]
    for name in names:
        if len(found.get(name, [])) != 1:
            several = "several Gaussian factors" if found.get(name) else "no Gaussian factor"
            raise ValueError(
                f"EllipticalSlice() takes the Gaussian factor of the product with exponent 1 as its prior, and "
                f"{term.name()} has {several} over {name!r}; write EllipticalSlice(prior=gaussian)"
            )
    if getattr(view, "transformed", False):
        raise ValueError(
            f"EllipticalSlice() finds no prior in {term.name()}: variables with a support move in unconstrained "
            "coordinates; write EllipticalSlice(prior=gaussian) with a Gaussian over these, or use NUTS()"
        )
    if view.dim != view.full_dim:
        raise ValueError(
            "EllipticalSlice() finds no prior where a Clamp fixes coordinates; write EllipticalSlice(prior=gaussian) "
            f"with a Gaussian over the {view.dim} free ones"
        )
    parts, spans, start = [], [], 0
    for name in names:
        parts.append(found[name][0])
        spans.append(slice(start, start + len(parts[-1].mean)))
        start = spans[-1].stop
    return parts, spans


def _bare(prior: Any) -> Any:
    """A Gaussian without the name of its variable."""
    return prior.inner if isinstance(prior, On) and isinstance(prior.inner, Gaussian) else prior
