r"""Superposition of diffusion models: one trajectory, whose drift weighs the members by their densities on it.

Every member's log q_i(x_σ; σ) is followed from scores by :mod:`boltzmix.compose.samplers.ito`. From σ to σ' with
:math:`v = \sigma^2 - \sigma'^2` and :math:`c = (C + \sigma'^2) / (C + \sigma^2)` a step is DDPM's (that is C = 0, the
default) with a mixture of scores,

.. math:: x' = x + v \sum_i \kappa_i s_i + \sqrt{v c}\, z, \qquad \sum_i \kappa_i = 1 .

**OR.** :math:`\kappa = \operatorname{softmax}(T \log q_i + b_i + \log w_i)`. With T = 1 and b = 0 the drift is the
score of the noised mixture :math:`\sum_i w_i q_i`.

**AND.** κ solves the k − 1 linear equations under which all :math:`\log q_i - b_i` become equal
(:mod:`boltzmix.compose.samplers.equal_densities`): scores are averaged and the noise is projected off their difference.
That the log-densities themselves become equal, not their estimates alone, takes one thing more, the noise's return.

The start is drawn from the members' coarse forms, which say how their log-densities differ there.
"""

import functools
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import NonFinite, SamplingWarning, ScopeError
from boltzmix.compose.flat import FlatView
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product, scope_names
from boltzmix.compose.samplers.base import (
    Checkpoint,
    Progress,
    Request,
    Sampler,
    frames_of,
    frozen,
    is_number,
    new_info,
)
from boltzmix.compose.samplers.equal_densities import Axes, equalise, missing_slopes
from boltzmix.compose.samplers.ito import ItoDensity
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.members import Members, flat_member_scores
from boltzmix.compose.samplers.path import noise_path
from boltzmix.compose.term import Term, check_levels
from boltzmix.compose.variable import Variable

_MODES = ("and", "or")
_NOISES = ("returned", "corrected", "projected", "free")


@dataclass(frozen=True)
class SuperDiff(Sampler):
    r"""Superposition of two and more diffusion models of which only scores are known.

    ``sample(p * q, n, sampler=SuperDiff("and"))`` draws where all members are equally likely, and
    ``sample(0.3 * p + 0.7 * q, n, sampler=SuperDiff("or"))`` the mixture. AND is not the product: it is defined by its
    equations, :math:`\log q_1 = \log q_2`, and the law of the draws follows from the process. For the product use FKC,
    or SMC where energies are known.

    Args:
        mode: ``"and"``, whose target is a product of members to the power 1, or ``"or"``, whose target is a mixture.
        steps: number of levels above zero; the error of the estimated log-densities falls like 1/√steps.
        temperature: T, of OR: larger follows the likeliest member, 0 averages.
        bias: one number for each member, or 0.0 for none: AND ends with log q_i − log q_j = b_i − b_j (the bias rises
            linearly over the steps), OR adds it to the logarithms of the weights.
        sigmas: decreasing levels to use instead of Karras', or a plain :class:`Ladder`; its draws may end above zero.
        rho: curvature of Karras' levels.
        width: :math:`\sqrt C`, the standard deviation of the data within a mode, for which the noise of a step is
            right: 0 is DDPM's step, right for points, inf Euler and Maruyama's. A rough value cuts the error of the
            estimated log-densities several times.
        noise: of AND: ``"returned"``, ``"corrected"``, ``"projected"`` (see the module's page), or ``"free"``, which
            averages scores and controls nothing. None is ``"returned"``.
        members: the models, where products would merge them: guided ones, ``(p * (p.given(label=1) / p) ** 4, …)``,
            whose estimates are then surrogates, since guided densities are not noised ones. The target says what the
            draws are drawn from and is not evaluated.
        record: keep the states of every level for ``Draw.animate``.

    ``draw.stats["log_q"]``, ``(n, k)``, holds the estimated log-densities of the draws (of the states at the last level
    above zero where width is 0), ``info.levels`` the mean gap of AND or the mean weights of OR at each level.

    Bias: that of the estimate, of the order ½ in the step size. What OR draws with T = 1 and b = 0, ``Reverse`` on a
    score-only mixture draws without this error and at 1/k of the cost, each member by itself.

    Raises:
        ValueError: settings outside their range, fewer than two members, powers other than 1.
        TypeError: a target that does not go with the mode, static members, a Clamp.

    Source: M. Skreta, L. Atanackovic, J. Bose, A. Tong, K. Neklyudov (2025), The superposition of diffusion models
    using the Itô density estimator.

    Example:
        >>> from boltzmix.compose import Gaussian, sample
        >>> p, q = Gaussian(torch.tensor([1.0, 0.0]), 1.0), Gaussian(torch.tensor([-1.0, 0.0]), 0.5)
        >>> draw = sample(p * q, 200, sampler=SuperDiff("and", steps=400), seed=0)
        >>> bool((p.log_prob(draw.x) - q.log_prob(draw.x)).abs().mean() < 0.1)
        True
    """

    mode: str
    steps: int = 100
    temperature: float = 1.0
    bias: float | Sequence[float] = 0.0
    sigmas: Sequence[float] | Ladder | None = None
    rho: float = 7.0
    width: float = 0.0
    noise: str | None = None
    members: Sequence[Term] | None = field(default=None, repr=False)
    record: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.mode not in _MODES:
            raise ValueError(f'SuperDiff has the modes "and" and "or", got {self.mode!r}')
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise ValueError(f"SuperDiff needs steps >= 2, got {self.steps!r}")
        for name, least in (("temperature", 0.0), ("rho", 1e-9)):
            value = getattr(self, name)
            if not is_number(value) or not least <= value < math.inf:
                raise ValueError(f"SuperDiff needs a finite {name} >= {least:g}, got {value!r}")
        if not is_number(self.width) or not self.width >= 0:
            raise ValueError(f"width is a standard deviation >= 0, got {self.width!r}")
        if self.mode == "and" and self.temperature != 1.0:
            raise ValueError("temperature is for mode='or': AND has equations and no softmax; use bias= to favour one")
        if self.noise is not None and self.noise not in _NOISES:
            raise ValueError(f"noise is one of {_NOISES}, got {self.noise!r}")
        if self.mode == "or" and self.noise not in (None, "free"):
            raise ValueError(f"noise={self.noise!r} is for mode='and': OR leaves the noise as it is")
        biases = [self.bias] if isinstance(self.bias, int | float) else list(self.bias)
        if not biases or not all(is_number(b) and math.isfinite(b) for b in biases):
            raise ValueError(f"bias is a finite number for each member, got {self.bias!r}")
        if isinstance(self.bias, int | float) and self.bias:
            raise ValueError(f"one bias for all members changes nothing: give one for each, got {self.bias!r}")
        if self.members is not None and not all(isinstance(m, Term) for m in self.members):
            raise TypeError(f"members are terms, got {[type(m).__name__ for m in self.members]}")
        if isinstance(self.sigmas, Ladder):
            _check_ladder(self.sigmas)
        elif self.sigmas is not None:
            levels = [float(s) for s in self.sigmas]
            falling = all(a > b for a, b in itertools.pairwise(levels))
            if len(levels) < 2 or not falling or not levels[-1] > 0 or not levels[0] < math.inf:
                raise ValueError(f"sigmas are two or more finite, positive, strictly decreasing levels, got {levels}")

    def run(self, request: Request) -> Draw:
        """Go down the levels."""
        group, log_weights = self._group(request.term)
        with frozen(group):
            return self._run(replace(request, term=group), log_weights)

    def _group(self, target: Term) -> tuple[Members, list[float]]:
        """The members, and the logarithms of their weights."""
        if self.members is not None:
            terms, logs = list(self.members), [0.0] * len(self.members)
        elif self.mode == "and":
            if not isinstance(target, Product):
                raise TypeError(
                    f"SuperDiff('and') takes a product of members, p * q, got {target.name()}; for sums use "
                    "SuperDiff('or'), and name members that merge or nest with members=(p, q)"
                )
            if any(e.constant != 1.0 for _, e in target.pairs()):
                raise ValueError(
                    f"SuperDiff('and') has no powers, and the normal form is {target.name()}: use FKC, or name its "
                    "members with members=(…)"
                )
            terms = [t for t, _ in target.pairs()]
            logs = [0.0] * len(terms)
        else:
            if not isinstance(target, Mixture):
                raise TypeError(
                    f"SuperDiff('or') takes a mixture of members, 0.5 * p + 0.5 * q, got {target.name()}; for products "
                    "use SuperDiff('and')"
                )
            terms, logs = target._terms(), list(target.log_weights)
        if len(terms) < 2:
            raise ValueError(f"SuperDiff superposes two members or more, got {len(terms)}: {target.name()}")
        for term in terms:
            if term.path == "static":
                raise TypeError(f"SuperDiff follows noised members, and {term.name()} is static; use FKC or Annealed")
            if scope_names(term) != scope_names(target):
                raise ScopeError(
                    f"SuperDiff compares densities over the same variables, and {term.name()} is over "
                    f"{sorted(scope_names(term))} of {sorted(scope_names(target))}"
                )
            if term.path != "noised":
                _warn_once(
                    f"SuperDiff: {term.name()} is annealed ({term.path_reason}), so the estimate of its log-density, "
                    "which rests on the heat equation, is a surrogate"
                )
        if not isinstance(self.bias, int | float) and len(self.bias) != len(terms):
            raise ValueError(f"bias is one number for each of {len(terms)} members, got {self.bias!r}")
        return Members(terms), logs

    def _biases(self, count: int, like: Tensor) -> Tensor:
        values = [self.bias] * count if isinstance(self.bias, int | float) else list(self.bias)
        return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]

    # -------------------------------------------------------------------- run

    def _run(self, request: Request, log_weights: list[float]) -> Draw:
        clock = time.perf_counter()
        view = request.view()
        if view.dim != view.full_dim:
            raise TypeError("SuperDiff weighs noise on all coordinates and a Clamp holds some: use Annealed")
        store = None
        if request.checkpoint is not None:
            # a group of members has no log_weights of its own
            store = Checkpoint(request.checkpoint, {**request.fingerprint(self, view), "log_weights": log_weights})
        resumed = None if store is None else store.load()
        frames: list[Tensor] = []
        records: list[dict[str, Any]] = []
        if resumed is None:
            levels, ends = self._levels(view, request)
            x, log_q = _start(view, request, levels[0], log_weights if self.mode == "or" else None)
            if isinstance(self.sigmas, Ladder) and self.sigmas.spread is not None:
                x = self.sigmas.centre + self.sigmas.spread * _noise(x, request)
            frames = [x.clone()] if self.record else []
            first = 0
        else:
            tensors, state = resumed
            request.generator.set_state(tensors["generator"])
            x, log_q = tensors["x"].to(view.device), tensors["log_q"].to(view.device)
            frames = [tensors[k].to(view.device) for k in sorted(tensors) if k.startswith("frame")]
            levels, ends, first, records = state["levels"], state["ends"], state["step"], state["records"]
            view.counter.rows, view.counter.network_rows = state["rows"], state["network_rows"]
        density = ItoDensity(log_q)
        logs = torch.tensor(log_weights, dtype=torch.float64, device=x.device)[:, None]
        noisy = sum(end > 0 or self.width > 0 for end in ends)
        bar = Progress("SuperDiff", request.progress)
        try:
            for k in range(first, len(levels)):
                x, record = self._step(view, x, density, levels[k], ends[k], logs, _At(k, noisy, request))
                records.append(record)
                if self.record:
                    frames.append(x.clone())
                bar((k + 1) / len(levels), f"sigma={ends[k]:.3g}")
                if store is not None:
                    state = {"levels": levels, "ends": ends, "step": k + 1, "records": records}
                    store.save(functools.partial(_snapshot, x, density, frames, state, view, request))
        finally:
            bar.close()
        return self._finish(view, x, density, frames, records, request, clock)

    def _finish(
        self,
        view: FlatView,
        x: Tensor,
        density: ItoDensity,
        frames: list[Tensor],
        records: list[dict[str, Any]],
        request: Request,
        clock: float,
    ) -> Draw:
        info = new_info(self, request)
        info.path, info.ess, info.levels = "noise", float(request.n), records
        info.divergences = int((~torch.isfinite(x).all(1)).sum())
        if info.divergences == request.n:
            raise NonFinite(f"SuperDiff: no draw of {view.original.name()} is finite; check the members' scores")
        if info.divergences:
            warnings.warn(
                f"SuperDiff: {info.divergences} of {request.n} draws are not finite; they are returned as they are",
                SamplingWarning,
                stacklevel=5,
            )
        if self.mode == "and":
            gap = _gap(density.relative - self._biases(len(density.log_q), x))
            info.extra["estimated_gap"] = {"mean": float(gap.nanmean()), "largest": float(gap.nan_to_num().max())}
        info.evaluations = view.counter.rows / request.n
        info.network_rows = view.counter.network_rows / request.n
        info.seconds = time.perf_counter() - clock
        draw = Draw(view.unravel(x), zeros(request.n, x), None, None, info, frames_of(view, frames))
        draw.stats["log_q"] = density.log_q.mT.contiguous()
        return draw

    def _levels(self, view: FlatView, request: Request) -> tuple[list[float], list[float]]:
        """Where steps begin and end."""
        low, high = view.term.sigma_range
        if isinstance(self.sigmas, Ladder):
            begins, ends = list(self.sigmas.begins), list(self.sigmas.ends)
        elif self.sigmas is not None:
            begins = [float(s) for s in self.sigmas]
            ends = [*begins[1:], 0.0]
        else:
            top = high if high < 1e3 else 1e3
            if high >= 1e3 and not view.term._rows() and not view.per_row:
                inner = view.with_term(Product([(t, 1.0) for t in view.term.terms()]))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
                top = 2 * noise_path(inner, request.generator, 256).sigma
            bottom = max(low, 2e-3 * min(1.0, top))
            a, b = top ** (1 / self.rho), bottom ** (1 / self.rho)
            begins = [(a + i / (self.steps - 1) * (b - a)) ** self.rho for i in range(self.steps - 1)] + [bottom]
            ends = [*begins[1:], 0.0]
        check_levels(torch.tensor(begins, dtype=torch.float64), (low, high), view.term.name())
        return begins, ends

    # ------------------------------------------------------------------- step

    def _ratio(self, sigma: float, end: float) -> float:
        """c, the variance of a step's noise in units of σ² − σ'²."""
        return 1.0 if self.width == math.inf else (self.width**2 + end**2) / (self.width**2 + sigma**2)

    def _step(
        self, view: FlatView, x: Tensor, density: ItoDensity, sigma: float, end: float, log_weights: Tensor, at: "_At"
    ) -> tuple[Tensor, dict[str, Any]]:
        """One step from σ to its end; the new states and a record."""
        v, c = sigma**2 - end**2, self._ratio(sigma, end)
        scores = torch.stack(flat_member_scores(view, x, sigma))
        noise = math.sqrt(v * c) * _noise(x, at.request) if c > 0 else torch.zeros_like(x)
        biases = self._biases(len(scores), x)
        if self.mode == "or":
            kappa = (self.temperature * density.relative + biases + log_weights).softmax(0)
            move = v * torch.einsum("kn,knd->nd", kappa.to(x), scores) + noise
            record: dict[str, Any] = {"sigma": sigma, "weights": kappa.nanmean(1).tolist()}
        else:
            gap = density.relative - biases * min((at.step + 1) / at.noisy, 1.0)
            record = {"sigma": sigma, "gap": float(_gap(gap).nanmean())}
            if self.noise != "free":
                axes = Axes.of(scores)
                if self.noise == "corrected" and c > 0:
                    length = math.sqrt(v * c) * (-1.0) ** at.step
                    missing = missing_slopes(
                        axes, x, scores, v, length, lambda y: flat_member_scores(view, y, sigma)
                    )  # fmt: skip
                    density.log_q = density.log_q + missing
                    gap = gap + missing
                keep = self.noise in (None, "returned") and at.step % 2 == 0 and at.step < at.noisy - 1
                noise = equalise(axes, noise, gap, v, c, keep)
            move = v * scores.mean(0) + noise
        if c > 0:
            density.advance(scores, move, v, c)
        return x + move, record


@dataclass(frozen=True)
class _At:
    """Where a run stands: the step's number, how many steps have noise, and what was asked for."""

    step: int
    noisy: int
    request: Request


def _start(view: FlatView, request: Request, sigma: float, log_weights: list[float] | None) -> tuple[Tensor, Tensor]:
    """Draws of what the members look like at the first level, and the log-densities there, ``(K, N)``.

    With weights from the mixture of their coarse forms, without from the normalised product of their k-th roots.
    """
    terms: list[Term] = view.term.terms()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    level = torch.tensor(sigma, dtype=torch.float64, device=view.device)
    if isinstance(view.term.variables, Variable) and not view.per_row:
        together = (
            Product([(t, 1.0 / len(terms)) for t in terms]) if log_weights is None else Mixture(terms, log_weights)
        )
        x = view.ravel(together._coarse(level).sample(request.n, request.generator))
        x = x.to(dtype=view.dtype, device=view.device)
        state = view.unravel(x)
        view.count(2)  # networks are asked at the origin, once for the draws and once for their densities
        return x, torch.stack([-t._coarse(level)._energy(state, None) for t in terms])
    origin = torch.zeros(request.n, view.dim, dtype=view.dtype, device=view.device)
    means = sigma**2 * torch.stack(flat_member_scores(view, origin, sigma))
    centre = means.mean(0)
    if log_weights is not None:
        shares = torch.tensor(log_weights, dtype=torch.float64, device=view.device).softmax(0)
        which = torch.multinomial(shares, request.n, replacement=True, generator=request.generator)
        centre = means[which, torch.arange(request.n, device=view.device)]
    x = centre + sigma * _noise(centre, request)
    return x, -0.5 * ((x - means).double() / sigma).square().sum(-1)


def _snapshot(
    x: Tensor, density: ItoDensity, frames: list[Tensor], state: dict[str, Any], view: FlatView, request: Request
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"x": x, "log_q": density.log_q, "generator": request.generator.get_state()}
    tensors.update({f"frame{k:05d}": f for k, f in enumerate(frames)})
    return tensors, state | {"rows": view.counter.rows, "network_rows": view.counter.network_rows}


def _noise(like: Tensor, request: Request) -> Tensor:
    return torch.randn(like.shape, generator=request.generator, dtype=like.dtype, device=like.device)


def _gap(values: Tensor) -> Tensor:
    """Largest less smallest over members, ``(N,)``."""
    return values.max(0).values - values.min(0).values


def _check_ladder(ladder: Ladder) -> None:
    """Log-densities are followed along levels that join, from a finite one down."""
    joined = all(end == begin for end, begin in zip(ladder.ends, ladder.begins[1:], strict=False))
    if ladder.begins[0] == math.inf or ladder.carry is not None or not joined:
        raise ValueError(
            "SuperDiff follows log-densities along levels that join: a Ladder that begins at a finite level, each step "
            "where the last one ended, without carry"
        )
    if len(ladder.begins) < 2 or any(end >= begin for begin, end in zip(ladder.begins, ladder.ends, strict=True)):
        raise ValueError("SuperDiff needs a Ladder of two steps or more, each of them down")


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SamplingWarning, stacklevel=5)
