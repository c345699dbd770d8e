r"""Feynman–Kac weights of reverse diffusion on a formula, from scores alone.

Noised factors obey the heat equation, :math:`\partial_v q_i = \tfrac12 \Delta q_i` with :math:`v = \sigma^2`, so the
formula :math:`Q_v = \prod_i q_i^{\beta_i} \prod_j e^{c_j(v) L_j}` (noised factors with scores :math:`s_i`, and
tilts by static log-densities :math:`L_j`) changes along its path by terms in which log q_i does not occur. Write
:math:`S = \sum_i \beta_i s_i`, :math:`G = \sum_j c_j \nabla L_j`, and let h = v_0 − v run forward. Particles that
follow

.. math::
    dx = \bigl[\tfrac{1 + \kappa}{2} S + \tfrac{\kappa}{2} G + u(x)\bigr] dh + \sqrt{\kappa}\, dW

with any share of noise κ ≥ 0 and any field u have the law Q_v when they carry the weights

.. math::
    d \log w = \bigl[\tfrac12 (|S|^2 - \textstyle\sum_i \beta_i |s_i|^2) + \tfrac12 \langle S, G \rangle
               + \nabla \cdot u + \langle u, S + G \rangle\bigr] dh + \textstyle\sum_j L_j\, dc_j .

κ = 1 and u = 0 is the reverse SDE on summed scores with the weights of Skreta et al. (2025). In σ, dh = 2σ dσ: a
product of two has the weight :math:`2\sigma \langle s_1, s_2 \rangle`, guidance of power a
:math:`\sigma\, a (a - 1) |s_1 - s_2|^2`, a tilt :math:`\dot c L + c \sigma \langle \nabla L, s \rangle`.

**Escort.** u is the affine field that carries along a Gaussian guess of the formula, a product of Gaussians fitted to
its factors (:class:`Guess`), whose divergence is known. Where the guess is right all weights are equal: with W = Σβ_i
summed scores contract the Gaussian of the coarse levels W times too fast, and without the escort weights spread only
to put that right. A wrong guess costs evenness and no exactness, since u has its own place in the weights. The guess's
own rate, the same for all particles, is taken off and its integral, a known log Z, put in its place.

**Integrator.** With :math:`a = \tfrac12(1 + \kappa W)` and B = x + (v/a) · drift, a step from v to v' is

.. math::
    x' = \tilde B + (v'/v)^a (x - \tilde B) + \sqrt{v' (1 - (v'/v)^{\kappa W}) / W}\; z

with B̃ extrapolated from the last two values, linearly in log v: exact for N(m, v/W) at any step (for W = κ = 1 and no
extrapolation it is DDPM's), finite at both ends, and weakly of the second order for one evaluation a step. The
weights' integral is the trapezoid rule of (rate · v) over log v (Strang's splitting, of the second order, too).

Sources: M. Skreta et al. (2025), Feynman–Kac correctors in diffusion: annealing, guidance, and product of experts.
S. Vaikuntanathan and C. Jarzynski (2008), Escorted free energy simulations. E. Buckwar and R. Winkler (2006),
Multistep methods for SDEs and their application to problems with small noise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.flat import FlatView
from boltzmix.compose.product import Composite, Product, open_leaves, scope_names, value_of
from boltzmix.compose.term import Term, evaluate
from boltzmix.compose.variable import State


@dataclass(frozen=True)
class Member:
    """A factor of the formula, its exponent, and the flat coordinates that it has, ``(D,)`` of zeros and ones."""

    term: Term
    exponent: Exponent
    columns: Tensor

    def power(self, sigma: float | None) -> float:
        """The exponent at a level."""
        value = self.exponent.value(None if sigma is None else torch.tensor(sigma, dtype=torch.float64))
        return float(value)


@dataclass(frozen=True)
class Values:
    """What one evaluation of all factors gives: scores ``(N, D)``, and log-densities ``(N,)`` where asked for."""

    scores: list[Tensor]
    tilts: list[tuple[Tensor, Tensor]]
    logs: list[Tensor | None]


class Formula:
    """The factors of a product as the correction sees them.

    Args:
        view: a view of a product, without clamps.

    Raises:
        TypeError: a factor that neither obeys the heat equation nor is static, or a Clamp.
        MissingEnergy: a static factor, or a noised one whose exponent changes with σ, that is score-only.
    """

    def __init__(self, view: FlatView) -> None:
        """Sort the factors."""
        assert isinstance(view.term, Product)
        self.view = view
        self.noised: list[Member] = []
        self.static: list[Member] = []
        if view.dim != view.full_dim:
            raise TypeError(
                "FKC weighs noise on all coordinates and a Clamp holds some without noise: use Annealed, or SMC for "
                "terms with energies"
            )
        names = view.names or ["x"]
        for term, exponent in view.term.pairs():
            own = scope_names(term)
            columns = view.spread([float(name in own) for name in names]).to(view.dtype)
            member = Member(term, exponent, columns)
            if term.path == "static":
                if not term.has_energy:
                    raise MissingEnergy(
                        f"FKC fades the static factor {term.name()} in, whose weights need its energy, and it has only "
                        "a score; give it as an energy or a log_prob, or use Annealed"
                    )
                self.static.append(member)
            elif term.path == "noised":
                if exponent.depends_on_sigma and not term.has_energy:
                    raise MissingEnergy(
                        f"{term.name()} has an exponent that changes with sigma: its weights need log p at every "
                        "level, and it has only a score. Use a constant exponent, a term with an energy, or Annealed"
                    )
                self.noised.append(member)
            else:
                raise TypeError(
                    f"FKC takes noised and static factors, and {term.name()} is annealed ({term.path_reason}); use "
                    "SMC for terms with energies, or Annealed"
                )
        self.varying = [k for k, member in enumerate(self.noised) if member.exponent.depends_on_sigma]

    def count(self, rows: int) -> None:
        """Record ``rows`` evaluations."""
        self.view.count(rows)

    def evaluate(self, x: Tensor, sigma: float, start: bool = False) -> Values:
        """Scores of the noised factors, log-densities and scores of the static ones, from one evaluation.

        ``start`` asks for log-densities of the noised factors, too, where they are normalised.
        """
        self.count(len(x))
        state = self.view.unravel(x)
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        wanted = [
            k in self.varying or (start and member.term.normalized and member.term.has_energy)
            for k, member in enumerate(self.noised)
        ]
        with torch.no_grad():
            known = self._evaluated([m.term for m, w in zip(self.noised, wanted, strict=True) if w], state, level, True)
            known |= self._evaluated(
                [m.term for m, w in zip(self.noised, wanted, strict=True) if not w], state, level, False
            )
            known |= self._evaluated([m.term for m in self.static], state, level, True)
        scores, logs = [], []
        for member, want in zip(self.noised, wanted, strict=True):
            energy, score = known[id(member.term)]
            scores.append(self._flat(score, state))
            logs.append(-energy if want and energy is not None else None)
        tilts = []
        for member in self.static:
            energy, score = known[id(member.term)]
            assert energy is not None
            tilts.append((-energy, self._flat(score, state)))
        return Values(scores, tilts, logs)

    def _evaluated(
        self, terms: list[Term], state: State, level: Tensor, energies: bool
    ) -> dict[int, tuple[Tensor | None, State]]:
        needs = energies or any(isinstance(t, Composite) and t._needs_energies() for t in terms)
        values = evaluate(open_leaves(terms), state, level, energy=needs, score=True)
        found = {}
        for term in terms:
            energy, score = value_of(term, values, state, level, True)
            assert score is not None
            found[id(term)] = (energy, score)
        return found

    def _flat(self, score: State, state: State) -> Tensor:
        if isinstance(state, Mapping):
            assert isinstance(score, Mapping)
            score = {name: score[name] if name in score else torch.zeros_like(state[name]) for name in state}
        return self.view.ravel(score)


@dataclass(frozen=True)
class Fade:
    """Weight of static factors, 0 at the top level and 1 at the bottom: what is left of a variance ``scale`` at σ."""

    top: float
    bottom: float
    scale: float

    def _share(self, sigma: float) -> float:
        return self.scale / (self.scale + sigma**2)

    def value(self, sigma: float) -> float:
        """λ(σ)."""
        least, most = self._share(self.top), self._share(self.bottom)
        return min(max((self._share(sigma) - least) / (most - least), 0.0), 1.0)

    def slope(self, sigma: float) -> float:
        """dλ / dv."""
        return -(self._share(sigma) ** 2) / self.scale / (self._share(self.bottom) - self._share(self.top))


@dataclass(frozen=True)
class Guess:
    r"""The formula as Gaussians, :math:`\prod_i N(m_i, c_i + v)^{\beta_i}\, e^{\lambda(v) (g x - H x^2 / 2)}`.

    The escort follows it, and its own log Z is known. Everything is in float64.

    Args:
        powers: exponents ``(K, D)``, zero along variables that a factor does not have.
        means: m_i ``(K, D)``.
        scales: c_i > 0, ``(K, D)``.
        pull: g of the static factors, ``(D,)``.
        curvature: H ≥ 0 of the static factors, ``(D,)``.
        fade: λ(σ).
    """

    powers: Tensor
    means: Tensor
    scales: Tensor
    pull: Tensor
    curvature: Tensor
    fade: Fade

    def precision(self, sigma: float) -> Tensor:
        """Σ β_i / (c_i + v), ``(D,)``."""
        return (self.powers / (self.scales + sigma**2)).sum(0)

    @property
    def tilted(self) -> bool:
        """Whether static factors have a part in it."""
        return bool((self.pull != 0).any() or (self.curvature != 0).any())

    def _natural(self, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Precision Λ, Λ μ, and their derivatives in v."""
        share = self.powers / (self.scales + sigma**2)
        second = share / (self.scales + sigma**2)
        weight, slope = self.fade.value(sigma), self.fade.slope(sigma)
        return (
            share.sum(0) + weight * self.curvature,
            (share * self.means).sum(0) + weight * self.pull,
            slope * self.curvature - second.sum(0),
            slope * self.pull - (second * self.means).sum(0),
        )

    def escort(self, sigma: float) -> tuple[Tensor, Tensor]:
        """Slope and value at 0 of the field u that, with half the noised score, carries the Gaussian along."""
        precision, shift, precision_change, shift_change = self._natural(sigma)
        mean = shift / precision
        mean_change = (shift_change - mean * precision_change) / precision
        noised = self.precision(sigma)
        score = (self.powers * self.means / (self.scales + sigma**2)).sum(0) - noised * mean
        slope = 0.5 * (noised + precision_change / precision)
        return slope, -mean_change - 0.5 * score - slope * mean

    def tilt(self, x: Tensor) -> Tensor:
        """g x − H x² / 2 of every coordinate, ``(N, D)`` in float64."""
        x = x.double()
        return (self.pull - 0.5 * self.curvature * x) * x

    def log_z(self, sigma: float) -> float:
        """log of the integral."""
        precision, shift, _, _ = self._natural(sigma)
        spread = self.scales + sigma**2
        logs = (self.powers * ((2 * math.pi * spread).log() + self.means**2 / spread)).sum(0)
        return float(0.5 * (shift**2 / precision - logs - (precision / (2 * math.pi)).log()).sum())

    def rate(self, sigma: float) -> Tensor:
        """−d log Z / dv of every coordinate, ``(D,)``."""
        precision, shift, precision_change, shift_change = self._natural(sigma)
        mean, spread = shift / precision, self.scales + sigma**2
        logs = (self.powers * (spread - self.means**2) / spread**2).sum(0)
        return 0.5 * (logs + precision_change / precision) + 0.5 * mean**2 * precision_change - mean * shift_change


@dataclass(frozen=True)
class Flow:
    """The particles' motion: share of noise κ, total exponents W ``(D,)``, and what escorts it."""

    noise: float
    strength: Tensor
    guess: Guess

    @property
    def rate(self) -> Tensor:
        """a = (1 + κW)/2, at which the Gaussian of the coarse levels relaxes."""
        return 0.5 * (1.0 + self.noise * self.strength)

    def drift(self, x: Tensor, score: Tensor, tilt: Tensor, sigma: float) -> Tensor:
        """Drift in h = v_0 − v."""
        summed = 0.5 * (1.0 + self.noise) * score + 0.5 * self.noise * tilt
        slope, shift = self.guess.escort(sigma)
        return summed + slope.to(x) * x + shift.to(x)

    def goal(self, x: Tensor, drift: Tensor, sigma: float) -> Tensor:
        """B, towards which x moves."""
        return x + sigma**2 / self.rate * drift

    def step(
        self, x: Tensor, goal: Tensor, before: tuple[Tensor, float] | None, sigma: float, following: float, z: Tensor
    ) -> Tensor:
        """From σ to σ' > 0; ``before`` is the last goal and the level that it was made at."""
        if before is not None:
            ratio = math.log(sigma / following) / math.log(before[1] / sigma)
            goal = goal + 0.5 * ratio * (goal - before[0])
        left = (following / sigma) ** 2
        variance = following**2 * (1.0 - left ** (self.noise * self.strength)) / self.strength
        return goal + left**self.rate * (x - goal) + variance.sqrt() * z


def weight_rates(
    x: Tensor, scores: list[Tensor], powers: list[float], tilt: Tensor, flow: Flow, sigma: float, escort: bool = True
) -> Tensor:
    """d log w / dh of every coordinate ``(N, D)``, but for the terms L dc.

    With the escort, the guess's rate is taken off, which integrates to its own log Z, and its tilt's L dc is in.
    """
    total = summed(scores, powers, x)
    rate = total * total
    for score, power in zip(scores, powers, strict=True):
        rate = rate - power * (score * score)
    rate = 0.5 * rate + 0.5 * total * tilt
    if escort:
        slope, shift = flow.guess.escort(sigma)
        own = slope - flow.guess.rate(sigma)
        rate = rate + own.to(x) + (slope.to(x) * x + shift.to(x)) * (total + tilt)
        if flow.guess.tilted:
            rate = rate - flow.guess.fade.slope(sigma) * flow.guess.tilt(x)
    return rate


def interval(before: float | None, sigma: float, following: float | None) -> float:
    """What a rate at σ is multiplied by in the trapezoid rule: v times half the steps in log v beside it."""
    steps = 0.0 if before is None else 2 * math.log(before / sigma)
    steps += 0.0 if following is None else 2 * math.log(sigma / following)
    return 0.5 * sigma**2 * steps


def summed(scores: list[Tensor], powers: list[float], like: Tensor) -> Tensor:
    """Σ w_i s_i."""
    total = torch.zeros_like(like)
    for score, power in zip(scores, powers, strict=True):
        total = total + power * score
    return total


def log_coarse(
    x: Tensor, score: Tensor, at_centre: Tensor, centre: Tensor, variance: Tensor, columns: Tensor
) -> Tensor:
    r"""log q at a large σ from scores at x and at a centre, ``(N,)``: :math:`\ell(x) - \ell(m)` by the trapezoid rule,
    exact for Gaussians, and :math:`\ell(m)` of the Gaussian with this variance and this score at m."""
    along = 0.5 * ((score + at_centre) * (x - centre)).double().sum(1)
    constant = (columns * ((2 * math.pi * variance).log() + variance * at_centre**2)).double().sum(-1)
    return along - 0.5 * constant
